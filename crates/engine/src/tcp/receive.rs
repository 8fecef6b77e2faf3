//! Segments in: the numbered steps of RFC 9293 section 3.10.7.4, one function each.
//!
//! The shard calls [`Connection::handle_segment`]. Two paths, written down:
//! * fast (header prediction): an established connection without loss or holes gets exactly what it
//!   expects next, an acknowledgement of new data or the next data; [`Connection::is_expected`];
//! * everything else: [`Connection::run_steps`].
//!
//! Replies are owed, not sent: an acknowledgement comes out of `poll_segment`, a reset out of the
//! [`Disposition`]. Every dropped segment is counted once.

use std::ops::ControlFlow::{self, Break, Continue};

use super::connection::{AckNeed, Connection};
use super::handshake::reset_for_ack;
use super::loss::Phase;
use super::seam::{Disposition, State, TcpCounters};
use super::segment::{Flags, Segment, Timestamps};
use super::sequence_space::{FIRST_DATA, SYN_OFFSET, position};
use super::tail_probe::TailProbe;
use crate::{Instant, SocketError, SocketId, Streams};

/// TS.Recent is too old to judge by after this many seconds: 24 days, RFC 7323 section 5.5.
const TIMESTAMP_LIFE_S: u32 = 24 * 24 * 3600;

/// A segment in the connection's own terms.
struct Arrival<'a> {
    segment: &'a Segment<'a>,
    /// Offset of the first sequence number, and one past the last (SYN and FIN included).
    seq: u64,
    end: u64,
    /// Offset acknowledged; means nothing without ACK.
    ack: u64,
    /// Window in bytes.
    window: u32,
    timestamps: Option<Timestamps>,
}

impl Arrival<'_> {
    fn has(&self, flags: Flags) -> bool {
        self.segment.flags.contains(flags)
    }
}

impl Connection {
    /// Takes a segment of this connection, checksum verified.
    // A row of docs/cost.md.
    #[inline(never)]
    pub fn handle_segment(
        &mut self,
        now: Instant,
        id: SocketId,
        segment: &Segment<'_>,
        streams: &mut impl Streams,
        counters: &mut TcpCounters,
    ) -> Disposition {
        match self.state {
            State::SynSent => return self.handle_in_syn_sent(now, segment, counters),
            State::Closed | State::TimeWait => {
                // The shard answers for a connection that is over; nothing is left to do here.
                counters.drop_over += 1;
                return Disposition::Continue;
            }
            _ => {}
        }
        let arrival = self.translate(segment);
        let announced = self.receive.mss_announced;
        self.receive.segment_max = match segment.segment_size {
            0 => announced,
            merged => merged.min(announced),
        };
        let is_short = segment.payload.len() < usize::from(self.receive.mss);
        self.receive.pushed = is_short || segment.flags.contains(Flags::PSH);
        let disposition = if self.is_expected(&arrival) {
            self.handle_expected(now, id, &arrival, streams, counters)
        } else {
            match self.run_steps(now, id, &arrival, streams, counters) {
                Continue(disposition) | Break(disposition) => disposition,
            }
        };
        self.arm_persist(now);
        disposition
    }

    /// Puts a segment into offsets.
    fn translate<'a>(&self, segment: &'a Segment<'a>) -> Arrival<'a> {
        let seq = self.receive.space.offset(segment.seq, self.receive.nxt);
        let shift = if segment.flags.contains(Flags::SYN) { 0 } else { self.send.shift };
        Arrival {
            segment,
            seq,
            end: seq + u64::from(segment.sequence_len()),
            ack: self.send.space.offset(segment.ack, self.send.nxt),
            window: u32::from(segment.window) << shift,
            timestamps: segment.options.timestamps.filter(|_| self.timestamps.on),
        }
    }

    /// Header prediction: nothing in this segment needs the steps.
    fn is_expected(&self, arrival: &Arrival<'_>) -> bool {
        let telling = Flags::FIN.bits() | Flags::SYN.bits() | Flags::RST.bits() | Flags::ACK.bits();
        let in_place = arrival.segment.flags.bits() & telling == Flags::ACK.bits()
            && self.state == State::Established
            && arrival.seq == self.receive.nxt
            && arrival.end <= self.receive.edge;
        let fresh = match arrival.timestamps {
            Some(timestamps) => !is_before(timestamps.value, self.timestamps.recent),
            None => true,
        };
        let calm = self.loss.phase == Phase::Open
            && self.loss.duplicates == 0
            && self.loss.tail_probe == TailProbe::None
            && self.loss.board().is_empty()
            && arrival.segment.options.sack_len == 0
            && self.receive.out_of_order.is_empty()
            && self.receive.fin_at == u64::MAX
            && self.receive.discard_from == u64::MAX;
        let progress = arrival.ack > self.send.una
            || (arrival.ack == self.send.una && !arrival.segment.payload.is_empty());
        in_place && fresh && calm && progress && arrival.ack <= self.send.nxt
    }

    /// The fast path: steps five and seven for a segment without surprises.
    fn handle_expected(
        &mut self,
        now: Instant,
        id: SocketId,
        arrival: &Arrival<'_>,
        streams: &mut impl Streams,
        counters: &mut TcpCounters,
    ) -> Disposition {
        counters.fast_path_segments += 1;
        self.note_heard(now);
        self.update_timestamp(now, arrival);
        if arrival.ack > self.send.una {
            self.advance_una(now, arrival.ack, arrival.timestamps.map(|ts| ts.echo));
        }
        self.update_send_window(arrival);
        if !arrival.segment.payload.is_empty() {
            self.store(now, id, arrival.seq, arrival.segment.payload, streams, counters);
        }
        Disposition::Continue
    }

    /// RFC 9293 section 3.10.7.4.
    fn run_steps(
        &mut self,
        now: Instant,
        id: SocketId,
        arrival: &Arrival<'_>,
        streams: &mut impl Streams,
        counters: &mut TcpCounters,
    ) -> ControlFlow<Disposition, Disposition> {
        self.check_sequence(now, arrival, counters)?;
        self.check_reset(now, arrival, counters)?;
        // Third: security and compartment, not implemented anywhere.
        self.check_syn(now, arrival, counters)?;
        let established = self.check_ack(now, arrival, counters)?;
        // Sixth: the urgent pointer is ignored; urgent data stays in line (RFC 6093 section 6).
        self.take_text(now, id, arrival, streams, counters)?;
        let disposition = self.check_fin(now, counters);
        Continue(match disposition {
            Disposition::Continue if established => Disposition::Established,
            other => other,
        })
    }

    /// First: is the sequence number acceptable, and the timestamp not old (RFC 7323 section 5.3)?
    /// As on Linux the lower bound is our last acknowledgement: what lies between it and RCV.NXT
    /// was sent before the peer could know, and its acknowledgement may be news.
    fn check_sequence(
        &mut self,
        now: Instant,
        arrival: &Arrival<'_>,
        counters: &mut TcpCounters,
    ) -> ControlFlow<Disposition> {
        let old = self.is_old_duplicate(now, arrival);
        let in_window = arrival.end >= self.receive.acked && arrival.seq <= self.receive.edge;
        if in_window && !old {
            self.note_heard(now);
            return Continue(());
        }
        match in_window {
            true => counters.drop_old_timestamp += 1,
            false => counters.drop_out_of_window += 1,
        }
        if arrival.has(Flags::RST) {
            return Break(Disposition::Continue);
        }
        // A segment with data cannot be part of a loop of acknowledgements, so its answer needs no
        // rate limit; the peer waits for it.
        if !arrival.segment.payload.is_empty() && !arrival.has(Flags::SYN) {
            self.ack = AckNeed::Now;
            let start = arrival.seq;
            let end = start + arrival.segment.payload.len() as u64;
            if !old && end <= self.receive.nxt {
                self.note_duplicate(start, end, counters);
            }
        } else {
            self.challenge(now, counters);
        }
        Break(Disposition::Continue)
    }

    /// PAWS: the timestamp is older than the last one that counted. Resets are not judged by it.
    fn is_old_duplicate(&self, now: Instant, arrival: &Arrival<'_>) -> bool {
        let Some(timestamps) = arrival.timestamps else { return false };
        let age_s = ((now.us() / 1_000_000) as u32).wrapping_sub(self.timestamps.recent_at_s);
        is_before(timestamps.value, self.timestamps.recent)
            && age_s < TIMESTAMP_LIFE_S
            && !arrival.has(Flags::RST)
    }

    /// Second: RST, by RFC 5961 section 3: only at exactly RCV.NXT.
    fn check_reset(
        &mut self,
        now: Instant,
        arrival: &Arrival<'_>,
        counters: &mut TcpCounters,
    ) -> ControlFlow<Disposition> {
        if !arrival.has(Flags::RST) {
            return Continue(());
        }
        if arrival.seq != self.receive.nxt {
            counters.drop_bad_reset += 1;
            if arrival.seq > self.receive.nxt {
                self.challenge(now, counters);
            }
            return Break(Disposition::Continue);
        }
        counters.resets_received += 1;
        let error = match self.state {
            State::SynReceived if !self.passive => SocketError::ConnectionRefused,
            State::CloseWait => SocketError::BrokenPipe,
            _ => SocketError::ConnectionReset,
        };
        self.finish(State::Closed, Some(error));
        Break(Disposition::Reset)
    }

    /// Fourth: SYN. In SYN-RECEIVED it may be the peer's SYN again, or the other half of a
    /// simultaneous open; otherwise RFC 5961 section 4.
    fn check_syn(
        &mut self,
        now: Instant,
        arrival: &Arrival<'_>,
        counters: &mut TcpCounters,
    ) -> ControlFlow<Disposition> {
        if !arrival.has(Flags::SYN) {
            return Continue(());
        }
        if self.state == State::SynReceived && arrival.seq == SYN_OFFSET {
            if arrival.has(Flags::ACK) {
                return Continue(());
            }
            // The peer measures its round trip by what we echo: this SYN, not the first.
            self.update_timestamp(now, arrival);
            self.syn_due = true;
            return Break(Disposition::Continue);
        }
        counters.drop_unexpected_syn += 1;
        self.challenge(now, counters);
        Break(Disposition::Continue)
    }

    /// Fifth: ACK. Says whether it completed the handshake.
    fn check_ack(
        &mut self,
        now: Instant,
        arrival: &Arrival<'_>,
        counters: &mut TcpCounters,
    ) -> ControlFlow<Disposition, bool> {
        if !arrival.has(Flags::ACK) {
            counters.drop_no_ack += 1;
            return Break(Disposition::Continue);
        }
        let echo = arrival.timestamps.map(|ts| ts.echo);
        if self.state == State::SynReceived {
            if arrival.ack <= self.send.una || arrival.ack > self.send.nxt {
                counters.drop_bad_ack += 1;
                return Break(Disposition::Reply(reset_for_ack(arrival.segment)));
            }
            counters.established += 1;
            self.update_timestamp(now, arrival);
            self.establish(now, arrival.ack, echo);
            self.set_send_window(arrival);
            return Continue(true);
        }
        // RFC 5961 section 5: neither from the future nor from long ago, nor from before our SYN.
        let oldest = self.send.una.saturating_sub(u64::from(self.send.window_max)).max(FIRST_DATA);
        if arrival.ack > self.send.nxt || arrival.ack < oldest {
            counters.drop_bad_ack += 1;
            self.challenge(now, counters);
            return Break(Disposition::Continue);
        }
        self.update_timestamp(now, arrival);
        let progress = arrival.ack > self.send.una;
        if progress {
            self.advance_una(now, arrival.ack, echo);
        } else if !self.sack_permitted && self.is_duplicate_ack(arrival) {
            self.handle_duplicate_ack(counters);
        }
        let news = self.take_sack_blocks(now, arrival.segment, arrival.ack, counters);
        self.judge_tail_probe(arrival.ack, news, counters);
        self.judge_scoreboard(now, news, progress, counters);
        if arrival.ack >= self.send.una {
            self.update_send_window(arrival);
        }
        if self.fin_sent()
            && self.send.una > self.send.tail
            && let Some(disposition) = self.handle_fin_acknowledged(now)
        {
            return Break(disposition);
        }
        Continue(false)
    }

    /// RFC 5681 section 2: acknowledges nothing new, carries nothing, and means nothing else.
    fn is_duplicate_ack(&self, arrival: &Arrival<'_>) -> bool {
        arrival.ack == self.send.una
            && self.in_flight() > 0
            && arrival.seq == arrival.end
            && arrival.window == self.send.window
    }

    /// RFC 9293 section 3.10.7.4: the window of the newest segment counts.
    fn update_send_window(&mut self, arrival: &Arrival<'_>) {
        let (seq, ack) = (arrival.seq as u32, arrival.ack as u32);
        let newer_seq = seq.wrapping_sub(self.send.wl1) as i32;
        let newer_ack = ack.wrapping_sub(self.send.wl2) as i32;
        if newer_seq > 0 || (newer_seq == 0 && newer_ack >= 0) {
            self.set_send_window(arrival);
        }
    }

    /// Takes the window, and ends waiting for it when it lets something go.
    fn set_send_window(&mut self, arrival: &Arrival<'_>) {
        self.send.window = arrival.window;
        self.send.window_max = self.send.window_max.max(arrival.window);
        self.send.wl1 = arrival.seq as u32;
        self.send.wl2 = arrival.ack as u32;
        if self.probe_backoff > 0 && self.can_send_new() {
            self.stop_persist();
        }
    }

    /// Seventh: text.
    fn take_text(
        &mut self,
        now: Instant,
        id: SocketId,
        arrival: &Arrival<'_>,
        streams: &mut impl Streams,
        counters: &mut TcpCounters,
    ) -> ControlFlow<Disposition> {
        let payload = arrival.segment.payload;
        let fin = arrival.has(Flags::FIN);
        if payload.is_empty() && !fin {
            return Continue(());
        }
        let start = arrival.seq + u64::from(arrival.has(Flags::SYN));
        let data_end = start + payload.len() as u64;
        let open = matches!(self.state, State::Established | State::FinWait1 | State::FinWait2);
        if !open || arrival.end <= self.receive.nxt {
            // Sent again, FIN included: the peer has not heard us.
            counters.duplicate_data_segments += 1;
            self.ack = AckNeed::Now;
            self.note_duplicate(start, data_end.min(self.receive.nxt), counters);
            return Continue(());
        }
        self.note_duplicate(start, data_end.min(self.receive.nxt), counters);
        if self.is_read_by_nobody() && data_end > self.receive.nxt && !payload.is_empty() {
            counters.drop_after_close += 1;
            return Break(self.abort_for_late_data(now));
        }
        if fin {
            self.note_fin(data_end);
        }
        let first = start.max(self.receive.nxt);
        let last = data_end.min(self.receive.edge).min(self.receive.fin_at);
        if first < last {
            let data = &payload[(first - start) as usize..(last - start) as usize];
            self.store(now, id, first, data, streams, counters);
        } else {
            // A FIN alone behind a hole shows the hole as data would (RFC 5681 section 4.2).
            if start > self.receive.nxt {
                self.owe_duplicate_acks(1);
            }
            self.ack = AckNeed::Now;
        }
        Continue(())
    }

    /// Remembers where the peer's data ends; the first word counts, and it must lie inside the
    /// window and not before anything that has arrived.
    fn note_fin(&mut self, at: u64) {
        let arrived = self.receive.out_of_order.last_end().unwrap_or(0);
        let plausible = at >= self.receive.nxt && at >= arrived && at <= self.receive.edge;
        if self.receive.fin_at == u64::MAX && plausible {
            self.receive.fin_at = at;
        }
    }

    /// Puts data at `start`, inside the window and not empty, into its final place.
    fn store(
        &mut self,
        now: Instant,
        id: SocketId,
        start: u64,
        data: &[u8],
        streams: &mut impl Streams,
        counters: &mut TcpCounters,
    ) {
        self.note_data(now, data.len());
        let end = start + data.len() as u64;
        let in_order = start == self.receive.nxt;
        if !in_order && !self.receive.out_of_order.has_room(start, end) {
            counters.drop_too_many_ranges += 1;
            self.ack = AckNeed::Now;
            return;
        }
        let discards = start >= self.receive.discard_from;
        let stored = match discards {
            true => data.len(),
            false => streams.write(id, position(start), data).min(data.len()),
        };
        if stored < data.len() {
            counters.drop_no_memory += 1;
            self.ack = AckNeed::Now;
        }
        if stored == 0 {
            return;
        }
        if discards {
            counters.discarded_after_shutdown += stored as u64;
        }
        let end = start + stored as u64;
        if let Some((start, end)) = self.receive.out_of_order.overlap(start, end) {
            self.note_duplicate(start, end, counters);
        }
        if in_order {
            counters.data_bytes_received += stored as u64;
            self.advance_in_order(now, end);
        } else {
            counters.out_of_order_bytes += stored as u64;
            self.receive.out_of_order.insert(start, end);
            self.owe_duplicate_acks(stored.div_ceil(usize::from(self.receive.segment_max.max(1))));
        }
    }

    /// The in-order edge has reached `edge`, and maybe more that was waiting there.
    fn advance_in_order(&mut self, now: Instant, edge: u64) {
        let had_holes = !self.receive.out_of_order.is_empty();
        self.receive.nxt = match had_holes {
            true => self.receive.out_of_order.advance(edge),
            false => edge,
        };
        if self.receive.discard_from != u64::MAX {
            self.receive.consumed = self.receive.consumed.max(self.receive.nxt);
        }
        self.changed = true;
        self.duplicate_acks_due = 0;
        self.receive.duplicate_acks = 0;
        if had_holes {
            self.ack = AckNeed::Now;
        } else {
            self.owe_ack_for_data(now);
        }
    }

    /// Eighth: FIN, once everything before it has arrived.
    fn check_fin(&mut self, now: Instant, counters: &mut TcpCounters) -> Disposition {
        if self.receive.nxt != self.receive.fin_at {
            return Disposition::Continue;
        }
        self.take_fin(now, counters)
    }

    /// The peer lives.
    fn note_heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.probes_unanswered = 0;
        if self.probe == super::connection::Probe::KeepAlive {
            self.probe = super::connection::Probe::None;
        }
    }

    /// RFC 7323 section 4.3: TS.Recent follows segments that touch our last acknowledgement.
    fn update_timestamp(&mut self, now: Instant, arrival: &Arrival<'_>) {
        if let Some(timestamps) = arrival.timestamps
            && arrival.seq <= self.receive.acked
        {
            self.keep_timestamp(now, timestamps.value);
        }
    }

    /// Sets TS.Recent.
    pub(super) fn keep_timestamp(&mut self, now: Instant, value: u32) {
        self.timestamps.recent = value;
        self.timestamps.recent_at_s = (now.us() / 1_000_000) as u32;
    }
}

/// Serial comparison of timestamps.
fn is_before(value: u32, other: u32) -> bool {
    (value.wrapping_sub(other) as i32) < 0
}
