//! SYN cookies: a SYN answered without keeping anything of it (RFC 4987 section 3.6).
//!
//! What is needed later comes back with the peer's first acknowledgement. Our initial sequence number
//! tells that a SYN was answered, when, and the class of the peer's segment size:
//!
//! ```text
//! 31            16 15                 4 3     1   0
//!   hash of flow  | hash of handshake  | class | period's last bit
//! ```
//!
//! The low bits of our first timestamp, which the peer echoes, hold its window scale and whether it
//! takes SACK; a peer without timestamps goes on without both. The keyed hashes cover addresses, ports,
//! the period, the class and those bits, the second one the peer's initial sequence number too, so that
//! an acknowledgement of any other handshake is taken with a chance of 16 in 2^32: two periods, eight
//! classes. The first one alone tells segments that have overtaken the acknowledgement, or follow one
//! that was lost: to reset these would end a sound connection. Pure functions; called by
//! `shard/cookies.rs`.

use crate::flow_table::FlowKey;
use crate::keys::Keys;
use crate::tcp::{Flags, Options, Segment, SeqNumber, mss_of_syn};
use crate::time::Instant;

/// Length of a period, in microseconds.
const PERIOD_US: u64 = 64_000_000;
/// A cookie is taken in the period that it was sent in and in the next: for this long at most, in
/// microseconds, and at least for half of it.
pub const LIFE_US: u64 = 2 * PERIOD_US;

/// Segment sizes that a cookie can tell; the peer's is rounded down. The least that connections take,
/// those that RFC 9293 section 3.7.1 assumes for IPv4 and IPv6, what Ethernet leaves to IPv6 and IPv4
/// with a tunnel on the way and without, and jumbo frames.
const MSS_CLASSES: [u16; 8] = [48, 256, 536, 1220, 1360, 1440, 1460, 8940];
const CLASS_SHIFT: u32 = 1;
const HANDSHAKE_SHIFT: u32 = 4;
const FLOW_SHIFT: u32 = 16;

/// Bits of a timestamp: four of the window scale, one of SACK. It lies less than 32 ms behind the
/// clock, so that the next one is never older (RFC 7323 section 5).
const STAMP_MASK: u32 = 0x1f;
const SACK_BIT: u8 = 1 << 4;
/// In place of a window scale, whose largest is 14: none was offered.
const NO_SCALE: u8 = 15;
/// In place of a timestamp's bits: the peer sent none.
const NO_STAMP: u8 = 0xff;

/// What a segment of no connection is to a cookie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recalled<'a> {
    /// Nothing: it acknowledges none of ours, or one that is too old.
    Nothing,
    /// It acknowledges a cookie, but does not begin where the peer's data does.
    Ahead,
    /// It completes a handshake.
    Handshake {
        /// Our initial sequence number.
        iss: SeqNumber,
        /// What was kept of the SYN.
        syn: Segment<'a>,
    },
}

/// A SYN with only those of its options that a cookie can keep.
pub fn kept_of_syn<'a>(syn: &Segment<'_>, ipv6: bool) -> Segment<'a> {
    let offered = &syn.options;
    let mss = MSS_CLASSES[class_of(mss_of_syn(offered, ipv6))];
    let mut options = Options { mss: Some(mss), ..Options::default() };
    if offered.timestamps.is_some() {
        options.timestamps = offered.timestamps;
        options.window_scale = offered.window_scale;
        options.sack_permitted = offered.sack_permitted;
    }
    Segment { options, payload: &[], flags: Flags::SYN, ..*syn }
}

/// Our initial sequence number in answer to what is kept of a SYN.
pub fn initial_sequence(
    keys: &Keys,
    now: Instant,
    flow: &FlowKey,
    kept: &Segment<'_>,
) -> SeqNumber {
    let class = class_of(kept.options.mss.unwrap_or_default());
    let stamp = kept.options.timestamps.map_or(NO_STAMP, |_| stamp_of(&kept.options));
    number(keys, flow, kept.seq, now.us() / PERIOD_US, class, stamp)
}

/// Our first timestamp: `clock`, or a little less, with what is kept of the peer's options.
pub fn stamped(clock: u32, kept: &Options) -> u32 {
    let stamp = u32::from(stamp_of(kept));
    let ahead = stamp > clock & STAMP_MASK;
    let value = (clock & !STAMP_MASK) | stamp;
    value.wrapping_sub(if ahead { STAMP_MASK + 1 } else { 0 })
}

/// What an acknowledgement says of a cookie.
pub fn recall<'a>(
    keys: &Keys,
    now: Instant,
    flow: &FlowKey,
    acknowledgement: &Segment<'_>,
) -> Recalled<'a> {
    let cookie = before(acknowledgement.ack);
    let period = now.us() / PERIOD_US;
    let periods_ago = (period ^ u64::from(cookie.value())) & 1;
    let Some(period) = period.checked_sub(periods_ago) else { return Recalled::Nothing };
    let class = (cookie.value() >> CLASS_SHIFT) as usize % MSS_CLASSES.len();
    let timestamps = acknowledgement.options.timestamps;
    let stamp = timestamps.map_or(NO_STAMP, |timestamps| (timestamps.echo & STAMP_MASK) as u8);
    let seq = before(acknowledgement.seq);
    let expected = number(keys, flow, seq, period, class, stamp);
    if expected != cookie {
        let same_flow = expected.value() >> FLOW_SHIFT == cookie.value() >> FLOW_SHIFT;
        return if same_flow { Recalled::Ahead } else { Recalled::Nothing };
    }
    let mut options = Options { mss: Some(MSS_CLASSES[class]), timestamps, ..Options::default() };
    if timestamps.is_some() {
        options.window_scale = Some(stamp & NO_SCALE).filter(|&scale| scale != NO_SCALE);
        options.sack_permitted = stamp & SACK_BIT != 0;
    }
    let syn = Segment { seq, options, payload: &[], flags: Flags::SYN, ..*acknowledgement };
    Recalled::Handshake { iss: cookie, syn }
}

/// The largest class that is no larger than `mss`; the least for what is smaller still.
fn class_of(mss: u16) -> usize {
    MSS_CLASSES.iter().rposition(|&class| class <= mss).unwrap_or(0)
}

fn stamp_of(kept: &Options) -> u8 {
    let sack = if kept.sack_permitted { SACK_BIT } else { 0 };
    kept.window_scale.unwrap_or(NO_SCALE) | sack
}

fn number(
    keys: &Keys,
    flow: &FlowKey,
    peer_iss: SeqNumber,
    period: u64,
    class: usize,
    stamp: u8,
) -> SeqNumber {
    let told = [class as u8, stamp];
    let (of_flow, of_handshake) =
        keys.cookie(flow.local(), flow.remote(), period, told, peer_iss.value());
    let hashes =
        (of_flow as u32) << FLOW_SHIFT | u32::from(of_handshake as u16) >> 4 << HANDSHAKE_SHIFT;
    SeqNumber::new(hashes | (class as u32) << CLASS_SHIFT | (period & 1) as u32)
}

/// The sequence number before this one.
fn before(number: SeqNumber) -> SeqNumber {
    number + u32::MAX
}

#[cfg(test)]
mod tests;
