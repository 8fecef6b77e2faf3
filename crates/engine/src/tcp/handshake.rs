//! Opening: active, passive and simultaneous.
//!
//! Owns RFC 9293 section 3.10.7.3 (SYN-SENT) and what both SYNs agree on: segment size (RFC 6691),
//! window scale and timestamps (RFC 7323), SACK (RFC 2018).

use super::connection::Connection;
use super::seam::{Disposition, Setup, State, TcpCounters};
use super::segment::{Flags, Options, Outgoing, Segment};
use super::sequence_space::{FIRST_DATA, SYN_OFFSET, SequenceSpace};
use crate::{Instant, SocketError};

/// Segment size of a peer that names none, RFC 9293 section 3.7.1.
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1220;
/// Least segment size we take from a peer, so that nobody makes us send headers only (Linux).
const MSS_MIN: u16 = 48;
/// RFC 6298 section 5.7: after a lost SYN that gave no sample, be careful.
const RTO_AFTER_SYN_LOSS_US: u32 = 3_000_000;

impl Connection {
    /// Starts an active open; the SYN comes out of [`Connection::poll_segment`].
    pub fn open_active(now: Instant, setup: Setup<'_>) -> Connection {
        Connection::new(now, &setup, false)
    }

    /// Starts a passive open from a SYN that the listener admitted; the SYN-ACK comes out of
    /// [`Connection::poll_segment`]. Payload of the SYN is not taken: the peer sends it again.
    pub fn open_passive(now: Instant, setup: Setup<'_>, syn: &Segment<'_>) -> Connection {
        let mut connection = Connection::new(now, &setup, true);
        connection.agree(now, syn);
        connection
    }

    /// As [`Connection::open_passive`], of a SYN whose SYN-ACK went out before anything was kept: the
    /// acknowledgement of that is all that is missing.
    pub fn open_answered(now: Instant, setup: Setup<'_>, syn: &Segment<'_>) -> Connection {
        let mut connection = Connection::open_passive(now, setup, syn);
        connection.send.nxt = FIRST_DATA;
        connection.syn_due = false;
        connection
    }

    /// Takes the peer's SYN: its sequence number, its window, its options.
    fn agree(&mut self, now: Instant, syn: &Segment<'_>) {
        self.receive.space = SequenceSpace::new(syn.seq);
        self.receive.nxt = FIRST_DATA;
        self.receive.acked = FIRST_DATA;
        self.receive.edge = FIRST_DATA + u64::from(self.syn_window());
        let mss = mss_of_syn(&syn.options, self.ipv6);
        self.send.mss = self.send.mss.min(mss.max(MSS_MIN));
        self.scaling &= syn.options.window_scale.is_some();
        self.send.shift = syn.options.window_scale.filter(|_| self.scaling).unwrap_or(0);
        self.sack_permitted &= syn.options.sack_permitted;
        match syn.options.timestamps.filter(|_| self.timestamps.on) {
            Some(timestamps) => self.keep_timestamp(now, timestamps.value),
            None => self.timestamps.on = false,
        }
        // The window of a SYN is never scaled.
        self.send.window = u32::from(syn.window);
        self.send.window_max = self.send.window;
        self.send.wl1 = SYN_OFFSET as u32;
        self.send.wl2 = SYN_OFFSET as u32;
    }

    /// RFC 9293 section 3.10.7.3.
    pub(super) fn handle_in_syn_sent(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        counters: &mut TcpCounters,
    ) -> Disposition {
        let has_ack = segment.flags.contains(Flags::ACK);
        let ack = self.send.space.offset(segment.ack, self.send.nxt);
        let ack_is_good = has_ack && ack > SYN_OFFSET && ack <= self.send.nxt;
        // First: an acknowledgement of something else is answered with a reset.
        if has_ack && !ack_is_good {
            counters.drop_bad_ack += 1;
            return match segment.flags.contains(Flags::RST) {
                true => Disposition::Continue,
                false => Disposition::Reply(reset_for_ack(segment)),
            };
        }
        // Second: a reset counts only when it acknowledges our SYN (RFC 5961 section 3).
        if segment.flags.contains(Flags::RST) {
            if !ack_is_good {
                counters.drop_bad_reset += 1;
                return Disposition::Continue;
            }
            counters.resets_received += 1;
            self.finish(State::Closed, Some(SocketError::ConnectionRefused));
            return Disposition::Reset;
        }
        // Third (security) is obsolete. Fifth: neither SYN nor RST means nothing here.
        if !segment.flags.contains(Flags::SYN) {
            counters.drop_no_ack += 1;
            return Disposition::Continue;
        }
        // Fourth: the SYN.
        self.agree(now, segment);
        self.heard_at = now;
        if !ack_is_good {
            // Simultaneous open: RFC 9293 section 3.5, figure 8.
            self.state = State::SynReceived;
            self.syn_due = true;
            return Disposition::Continue;
        }
        counters.established += 1;
        self.establish(now, ack, segment.options.timestamps.map(|ts| ts.echo));
        self.ack = super::connection::AckNeed::Now;
        self.arm_persist(now);
        Disposition::Established
    }

    /// The peer has acknowledged our SYN with `ack`.
    pub(super) fn establish(&mut self, now: Instant, ack: u64, echo: Option<u32>) {
        let syns_lost = self.loss.retransmits;
        let echo = echo.filter(|_| self.timestamps.on);
        self.connected = true;
        self.syn_due = false;
        self.advance_una(now, ack, None);
        if self.rtt.srtt_us == 0 {
            match echo {
                Some(echo) if syns_lost > 0 => {
                    let age_ms = self.timestamps.value(now).wrapping_sub(echo);
                    self.rtt.sample(u64::from(age_ms.min(1 << 20)) * 1000, &self.parameters);
                }
                _ if syns_lost > 0 => {
                    self.rtt.rto_us = self.rtt.rto_us.max(RTO_AFTER_SYN_LOSS_US);
                }
                _ => {}
            }
        }
        // Linux forgives the first lost SYN.
        self.congestion.start(self.segment_payload_max(), syns_lost > 1);
        self.send.tail = self.send.tail.max(FIRST_DATA);
        self.state = if self.fin_queued { State::FinWait1 } else { State::Established };
        self.data_sent_at = now;
        self.arm_keep_alive(now);
        self.changed = true;
    }
}

/// The segment size that a SYN asks for, said or not.
pub(crate) fn mss_of_syn(options: &Options, ipv6: bool) -> u16 {
    let default = if ipv6 { MSS_DEFAULT_V6 } else { MSS_DEFAULT_V4 };
    options.mss.filter(|&mss| mss > 0).unwrap_or(default)
}

/// The reset for a segment that acknowledges what we never sent: RFC 9293 section 3.10.7.1.
pub(super) fn reset_for_ack(segment: &Segment<'_>) -> Outgoing {
    Outgoing { seq: segment.ack, flags: Flags::RST, ..Outgoing::default() }
}
