//! The receive window, and when to acknowledge.
//!
//! Owns receiver silly window avoidance (RFC 9293 section 3.8.6.2.2), growth of the receive buffer,
//! delayed acknowledgements (section 3.8.6.3) and the rate limit of challenge acknowledgements
//! (RFC 5961 section 7). Called by `receive.rs` and by the owner's commands; `transmit.rs` asks
//! [`Connection::take_window`] for every segment.

use super::connection::{AckNeed, Connection};
use super::seam::TcpCounters;
use super::segment::WINDOW_SCALE_MAX;
use super::sequence_space::FIRST_DATA;
use super::timers::Timer;
use crate::Instant;

/// First guess of the peer's segment size, RFC 9293 section 3.7.1.
pub(super) const RECEIVE_MSS_INITIAL: u16 = 536;
/// Acknowledgements sent without delay at the start and after a pause, as on Linux: the peer is in
/// slow start then.
const QUICK_ACKS: u32 = 16;
/// How long an application takes to read, in microseconds, as far as we wait for it: nobody tells us.
/// Too short for the peer to notice, long enough for the answer to a request to carry the
/// acknowledgement, which is a frame less for every short connection.
const READING_US: u64 = 500;
/// Least time over which the application's reading is measured, in microseconds.
const MEASURE_US_MIN: u64 = 1_000;

/// The smallest shift that can tell a window of `bytes`, RFC 7323 section 2.2.
pub(super) fn shift_for(bytes: u32) -> u8 {
    (0..WINDOW_SCALE_MAX).find(|&shift| bytes <= 0xffff << shift).unwrap_or(WINDOW_SCALE_MAX)
}

impl Connection {
    /// Shift of the windows in our segments after the handshake.
    pub(super) fn shift_sent(&self) -> u8 {
        if self.scaling { self.receive.shift } else { 0 }
    }

    /// The window of our SYN or SYN-ACK, which is never scaled. It is one that can be told with the
    /// shift too, so that later segments can repeat it exactly.
    pub(super) fn syn_window(&self) -> u16 {
        let window = self.receive.buffer.min(0xffff);
        (window >> self.shift_sent() << self.shift_sent()) as u16
    }

    /// Bytes received in order that the application has not read.
    fn unread(&self) -> u64 {
        self.receive.nxt.min(self.receive.fin_at).saturating_sub(self.receive.consumed)
    }

    /// Bytes the peer may send by our last word.
    fn window_now(&self) -> u64 {
        self.receive.edge.saturating_sub(self.receive.nxt)
    }

    /// Bytes the peer may send by our next word: the edge moves only by a worthwhile step, and not
    /// further than the window field can tell (64 KiB without scaling, however large the buffer).
    fn window_next(&self) -> u64 {
        let tellable = 0xffff << self.shift_sent();
        let free = u64::from(self.receive.buffer).saturating_sub(self.unread()).min(tellable);
        let step = (self.receive.buffer / 2).min(u32::from(self.receive.mss_announced));
        let now = self.window_now();
        if free >= now + u64::from(step) { free } else { now }
    }

    /// The window field of the next segment; promises it. The edge never goes back: what the shift
    /// rounds off is still taken (RFC 7323 section 2.4). A window that grows is rounded up, so that
    /// room for one segment reaches the peer as room for one segment.
    pub(super) fn take_window(&mut self, counters: &mut TcpCounters) -> u16 {
        let shift = self.shift_sent();
        let now = self.window_now();
        // An acknowledgement with another window is no duplicate to the peer (RFC 5681 section 2).
        let next = if self.duplicate_acks_due > 0 { now } else { self.window_next() };
        let rounding = if next > now { (1 << shift) - 1 } else { 0 };
        let units = ((next + rounding) >> shift).min(0xffff);
        self.receive.edge = self.receive.edge.max(self.receive.nxt + (units << shift));
        if units == 0 && now > 0 {
            counters.zero_windows_sent += 1;
        }
        units as u16
    }

    /// The application has read: tell the peer at once if the window at least doubles (Linux), so
    /// that a stalled sender does not wait.
    pub(super) fn offer_wider_window(&mut self) {
        if !self.connected || self.is_over() || self.fin_received() {
            return;
        }
        let (now, next) = (self.window_now(), self.window_next());
        if next > now && next >= 2 * now {
            self.ack = AckNeed::Now;
        }
    }

    /// Lets the buffer follow what the application reads in a round trip, so that the window does
    /// not hold a fast path back (dynamic right-sizing).
    pub(super) fn grow_receive_buffer(&mut self, now: Instant) {
        let elapsed_us = now.since(self.receive.measured_at);
        if elapsed_us < u64::from(self.rtt.srtt_us).max(MEASURE_US_MIN) {
            return;
        }
        let read = self.receive.consumed - self.receive.measured_from;
        self.receive.measured_at = now;
        self.receive.measured_from = self.receive.consumed;
        if !self.buffer_fixed && read > u64::from(self.receive.buffer / 2) {
            let wish = self.receive.buffer.saturating_mul(2);
            self.receive.buffer = wish.min(self.parameters.receive_buffer_max);
        }
    }

    /// Data of `len` bytes arrived: remembers the peer's segment size and its pauses.
    pub(super) fn note_data(&mut self, now: Instant, len: usize) {
        let len = len.min(usize::from(self.receive.segment_max)) as u16;
        self.receive.mss = self.receive.mss.max(len);
        let first = self.receive.nxt == FIRST_DATA;
        if first || now.since(self.data_received_at) > u64::from(self.rtt.rto_us) {
            let segments = self.window_now() as u32 / (2 * u32::from(self.receive.mss.max(1)));
            self.quick_acks = segments.clamp(2, QUICK_ACKS) as u8;
        }
        self.data_received_at = now;
    }

    /// In-order data was stored: acknowledge every second full segment at once, others with delay
    /// (RFC 9293 section 3.8.6.3). As on Linux the delay is for conversations: where we do not answer
    /// what we get, the end of what the peer wrote is acknowledged as soon as the
    /// application has read it, and so is the second such end in any case. A peer with Nagle's
    /// algorithm waits for that.
    pub(super) fn owe_ack_for_data(&mut self, now: Instant) {
        let pending = self.receive.nxt - self.receive.acked;
        let full = u64::from(self.receive.mss);
        let quick = self.quick_acks > 0 && !self.ping_pong;
        let at_once = self.options.quick_ack || pending > full || (quick && pending == full);
        if at_once || !self.receive.out_of_order.is_empty() {
            self.ack = AckNeed::Now;
            return;
        }
        let second = self.ack == AckNeed::Delayed;
        let soon = quick || (self.receive.pushed && (second || !self.ping_pong));
        if second && !soon {
            return;
        }
        self.ack = AckNeed::Delayed;
        let delayed_us = u64::from(self.parameters.delayed_ack_us);
        let delay_us = if soon { READING_US.min(delayed_us) } else { delayed_us };
        let due = now.plus_us(delay_us);
        let armed = self.timers.deadline(Timer::DelayedAck).filter(|_| second);
        self.timers.set(Timer::DelayedAck, armed.map_or(due, |armed| armed.min(due)));
    }

    /// Something odd arrived that an acknowledgement answers, but not more often than the limit.
    pub(super) fn challenge(&mut self, now: Instant, counters: &mut TcpCounters) {
        let first = self.challenged_at == Instant::default();
        let interval_us = u64::from(self.parameters.challenge_interval_us);
        if first || now.since(self.challenged_at) >= interval_us {
            self.challenged_at = now.max(Instant::from_us(1));
            self.ack = AckNeed::Now;
            counters.challenge_acks_sent += 1;
        } else {
            counters.challenge_acks_limited += 1;
        }
    }

    /// A segment with the acknowledgement goes out; `pure` when it carries nothing else, as only
    /// then the peer may count it as a duplicate.
    pub(super) fn acknowledged(&mut self, pure: bool) {
        if pure && self.receive.acked == self.receive.nxt {
            self.duplicate_acks_due = self.duplicate_acks_due.saturating_sub(1);
        }
        let untold = self.sack_permitted && self.receive.out_of_order.has_untold();
        let more = self.duplicate_acks_due > 0 || untold;
        self.ack = if more { AckNeed::Now } else { AckNeed::None };
        self.receive.acked = self.receive.nxt;
        self.quick_acks = self.quick_acks.saturating_sub(1);
        self.timers.stop(Timer::DelayedAck);
    }
}
