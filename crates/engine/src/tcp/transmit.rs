//! Segments out: what a connection sends next, one segment at a time.
//!
//! [`Connection::next_transmission`] decides without changing anything, in this order: SYN, what
//! was lost, new data, probes, a bare acknowledgement. [`Connection::poll_segment`] does it. Sender
//! silly window avoidance is RFC 9293 section 3.8.6.2.1, Nagle is RFC 9293 section 3.7.4 with
//! Minshall's variant (only one small segment in flight), as on Linux.

use super::connection::{AckNeed, Connection, Probe};
use super::loss::{Phase, Rescue};
use super::seam::{State, TcpCounters};
use super::segment::{Flags, Options, Outgoing, Timestamps};
use super::sequence_space::{FIRST_DATA, SYN_OFFSET, position};
use super::timers::Timer;
use crate::Instant;

/// A reply this soon after the peer's data means a conversation (Linux's least delay), in
/// microseconds.
const CONVERSATION_US: u64 = 40_000;
/// Times of sending that the scoreboard tells apart in a round trip.
pub(super) const SENT_GRAINS: u32 = 32;

/// What goes out next.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Transmission {
    /// SYN or SYN-ACK.
    Syn,
    /// Something sent before.
    Again(Piece),
    /// The end of the flight, though nothing says that it is lost.
    Rescue(Piece),
    /// Something never sent before.
    New(Piece),
    /// Asks for an acknowledgement of the end of the flight (RFC 8985 section 7).
    TailProbe(Piece),
    /// A segment without data just before the window, which the peer has to answer.
    Probe(Probe),
    /// A bare acknowledgement.
    Ack,
}

/// A piece of the send stream.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) from: u64,
    pub(super) len: u64,
    pub(super) fin: bool,
}

impl Piece {
    /// One past the last offset of the piece.
    fn end(self) -> u64 {
        self.from + self.len + u64::from(self.fin)
    }
}

impl Connection {
    /// True when [`Connection::poll_segment`] has something.
    pub fn wants_transmit(&self, _now: Instant) -> bool {
        self.next_transmission().is_some()
    }

    /// The next segment to send, until `None`; then look at [`Connection::next_timeout`]. Its
    /// payload must be read from the stream before the connection takes another segment.
    pub fn poll_segment(&mut self, now: Instant, counters: &mut TcpCounters) -> Option<Outgoing> {
        self.poll_superframe(now, 0, counters)
    }

    /// As [`Connection::poll_segment`]; new data may come as one segment of up to `payload_max`
    /// bytes, which somebody cuts at [`Outgoing::segment_size`].
    // A row of docs/cost.md.
    #[inline(never)]
    pub fn poll_superframe(
        &mut self,
        now: Instant,
        payload_max: u32,
        counters: &mut TcpCounters,
    ) -> Option<Outgoing> {
        if self.is_over() {
            return None;
        }
        let Some(transmission) = self.next_transmission() else {
            self.arm_persist(now);
            return None;
        };
        Some(match transmission {
            Transmission::Syn => self.send_syn(now, counters),
            Transmission::Again(piece) => {
                let piece = self.grow_lost_piece(piece, payload_max);
                self.send_again(now, piece, counters)
            }
            Transmission::Rescue(piece) => {
                counters.rescue_retransmissions += 1;
                self.loss.rescue = Rescue::Done;
                self.send_again(now, piece, counters)
            }
            Transmission::New(piece) => {
                self.end_pause(now);
                let piece = self.grow_piece(piece, payload_max);
                self.send_new(now, piece, counters)
            }
            Transmission::TailProbe(piece) => self.send_tail_probe(now, piece, counters),
            Transmission::Probe(probe) => self.send_probe(now, probe, counters),
            Transmission::Ack => {
                counters.pure_acks_sent += 1;
                self.header(now, self.send.nxt, Flags::ACK, 0, counters)
            }
        })
    }

    /// Decides what goes out next.
    fn next_transmission(&self) -> Option<Transmission> {
        if self.is_over() {
            return None;
        }
        if self.syn_due {
            return Some(Transmission::Syn);
        }
        if self.connected {
            if let Some(piece) = self.lost_piece() {
                return Some(Transmission::Again(piece));
            }
            if let Some(piece) = self.new_piece() {
                return Some(Transmission::New(piece));
            }
            if let Some(piece) = self.tail_probe_piece() {
                return Some(Transmission::TailProbe(piece));
            }
            if self.loss.phase == Phase::Recovery
                && let Some(transmission) = self.speculative_transmission()
            {
                return Some(transmission);
            }
            if self.probe != Probe::None {
                return Some(Transmission::Probe(self.probe));
            }
        }
        (self.ack == AckNeed::Now).then_some(Transmission::Ack)
    }

    /// True when data or a FIN waits that was never sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.send.nxt < self.send.tail + u64::from(self.fin_queued)
    }

    /// True when waiting data may go out now.
    pub(super) fn can_send_new(&self) -> bool {
        self.connected && !self.is_over() && self.new_piece().is_some()
    }

    /// The next piece to send again, if the congestion window allows.
    fn lost_piece(&self) -> Option<Piece> {
        let (from, end) = self.loss.board().next_lost()?;
        let window_end = self.send.una + u64::from(self.send.window);
        // The peer may have taken its window back; then only the first segment is tried.
        if from != self.send.una && from >= window_end {
            return None;
        }
        let piece = self.sent_piece(from, end);
        let pipe = u64::from(self.pipe());
        let cwnd = u64::from(self.congestion.cwnd);
        if !self.loss.retransmit_now && pipe > 0 && pipe + piece.len > cwnd {
            return None;
        }
        Some(piece)
    }

    /// As much of `from..end`, sent before, as a segment takes, with the FIN if that is the end.
    pub(super) fn sent_piece(&self, from: u64, end: u64) -> Piece {
        let len = end.min(self.send.tail).saturating_sub(from).min(self.piece_max());
        let fin = from + len == self.send.tail && end > self.send.tail;
        Piece { from, len, fin }
    }

    /// NextSeg rules 3 and 4 of RFC 6675: there is room, nothing is known to be lost, and no new data
    /// may go out. Then what lies below data that the peer holds is sent again, and once in a
    /// recovery the end of the flight. Unlike the RFC's wording that is not done for what was sent
    /// again already, nor before it has had the time to arrive by itself.
    fn speculative_transmission(&self) -> Option<Transmission> {
        let mss = u64::from(self.segment_payload_max());
        let room = u64::from(self.pipe()) + mss <= u64::from(self.congestion.cwnd);
        if !room || !self.sack_permitted || self.loss.board().has_waiting() {
            return None;
        }
        if let Some((from, end)) = self.loss.board().next_unknown() {
            return Some(Transmission::Again(self.sent_piece(from, end)));
        }
        if self.loss.rescue != Rescue::Due {
            return None;
        }
        let (una, nxt) = (self.send.una, self.send.nxt);
        let (from, end) = self.loss.board().last_unknown(una, nxt, self.piece_max())?;
        Some(Transmission::Rescue(self.sent_piece(from, end)))
    }

    /// Most payload of a segment sent now: SACK blocks take their room.
    pub(super) fn piece_max(&self) -> u64 {
        u64::from(self.segment_payload_max() - self.sack_len_with_data())
    }

    /// The next piece of new data, if windows, Nagle and cork allow.
    fn new_piece(&self) -> Option<Piece> {
        if !self.has_unsent() || self.loss.board().has_waiting() {
            return None;
        }
        let from = self.send.nxt;
        let mss = self.piece_max();
        let limit = self.send.una + u64::from(self.parameters.send_buffer_max);
        let available = self.send.tail.min(limit).saturating_sub(from);
        let len = available.min(mss);
        let room = (self.send.una + u64::from(self.send.window)).saturating_sub(from);
        let ends = self.fin_queued && from + len == self.send.tail;
        let forced = self.probe == Probe::Window && self.in_flight() == 0;
        if len == 0 && !ends {
            return None;
        }
        if room < len.max(1) {
            return self.piece_for_narrow_window(from, room, forced);
        }
        let pipe = u64::from(self.pipe());
        if len > 0 && pipe > 0 && pipe + len > u64::from(self.congestion.cwnd) {
            return None;
        }
        if len < mss && !ends && !forced && self.waits_for_more() {
            return None;
        }
        Some(Piece { from, len, fin: ends && room > len })
    }

    /// The window takes less than a segment: worth it only when nothing is in flight and it is at
    /// least half of what the peer ever offered, or when the persist timer insists.
    fn piece_for_narrow_window(&self, from: u64, room: u64, forced: bool) -> Option<Piece> {
        let half = u64::from(self.send.window_max / 2);
        let worth = self.in_flight() == 0 && room >= half;
        (room > 0 && (forced || worth)).then_some(Piece { from, len: room, fin: false })
    }

    /// A segment that is not full waits: for the cork, or because another small one is in flight.
    fn waits_for_more(&self) -> bool {
        if self.send.nxt < self.send.push_end {
            return false;
        }
        let small_in_flight = self.in_flight() > 0 && self.send.small_end > self.send.una;
        self.options.cork || (!self.options.no_delay && small_in_flight)
    }

    /// Sends our SYN, alone or with the acknowledgement of the peer's.
    fn send_syn(&mut self, now: Instant, counters: &mut TcpCounters) -> Outgoing {
        self.syn_due = false;
        let answers = self.state == State::SynReceived;
        if self.send.nxt == SYN_OFFSET {
            self.send.nxt = FIRST_DATA;
            self.waiting_since = now;
            self.rtt.start_timing(FIRST_DATA, now);
        } else {
            self.rtt.abandon_timing();
            self.loss.retransmits += 1;
            counters.retransmitted_segments += 1;
        }
        if self.timers.deadline(Timer::Retransmission).is_none() {
            self.timers.set(Timer::Retransmission, self.retransmission_deadline(now));
        }
        let echo = if answers { self.timestamps.recent } else { 0 };
        let timestamps = Timestamps { value: self.timestamps.value(now), echo };
        let options = Options {
            mss: Some(self.receive.mss_announced),
            sack_permitted: self.sack_permitted,
            window_scale: self.scaling.then_some(self.receive.shift),
            timestamps: self.timestamps.on.then_some(timestamps),
            ..Options::default()
        };
        let mut outgoing = Outgoing {
            seq: self.send.space.wire(SYN_OFFSET),
            flags: Flags::SYN,
            window: self.syn_window(),
            options,
            ..Outgoing::default()
        };
        if answers {
            outgoing.flags = Flags::SYN | Flags::ACK;
            outgoing.ack = self.receive.space.wire(self.receive.nxt);
            self.acknowledged(false);
        }
        outgoing
    }

    /// Sends something again.
    pub(super) fn send_again(
        &mut self,
        now: Instant,
        piece: Piece,
        counters: &mut TcpCounters,
    ) -> Outgoing {
        let segments = self.segments_in(piece.len);
        counters.retransmitted_segments += segments;
        self.loss.retransmits = self.loss.retransmits.saturating_add(segments as u32);
        self.loss.retransmit_now = false;
        let grain_us = self.rtt.srtt_us / SENT_GRAINS;
        let now_us = now.us() as u32;
        // A rescue, or a probe of the tail, may be the first that is known of the flight.
        let una = self.send.una;
        let board = self.loss.board_mut();
        board.begin(una);
        board.mark_resent(piece.from, piece.end(), now_us, grain_us);
        self.rtt.abandon_timing();
        self.send_piece(now, piece, counters)
    }

    /// New data is about to go out, perhaps after a pause.
    fn end_pause(&mut self, now: Instant) {
        if self.in_flight() == 0 {
            self.waiting_since = now;
            // RFC 5681 section 4.1: a window that was not used for a while says little.
            let idle_us = now.since(self.data_sent_at);
            let mss = self.segment_payload_max();
            self.congestion.restart_after_idle(idle_us, self.rtt.rto_us, mss);
        }
    }

    /// Sends new data, a FIN, or both.
    pub(super) fn send_new(
        &mut self,
        now: Instant,
        piece: Piece,
        counters: &mut TcpCounters,
    ) -> Outgoing {
        self.loss.new_data_sent_us = now.us() as u32;
        if let Some(board) = &mut self.loss.board {
            board.note_sent(piece.from, now.us() as u32, self.rtt.srtt_us / SENT_GRAINS);
        }
        counters.data_segments_sent += self.segments_in(piece.len);
        counters.data_bytes_sent += piece.len;
        self.stop_persist();
        self.send.nxt = piece.end();
        let mss = self.segment_payload_max();
        if piece.len > 0 {
            if !piece.len.is_multiple_of(self.piece_max()) {
                self.send.small_end = self.send.nxt;
            }
            let heard_data = self.receive.nxt > FIRST_DATA;
            if heard_data && now.since(self.data_received_at) < CONVERSATION_US {
                self.ping_pong = true;
            }
        }
        self.rtt.start_timing(self.send.nxt, now);
        self.congestion.on_sent(self.send.nxt, self.pipe(), mss);
        let outgoing = self.send_piece(now, piece, counters);
        self.schedule_tail_probe(now);
        outgoing
    }

    /// Builds the segment of a piece and sees that it is timed.
    fn send_piece(&mut self, now: Instant, piece: Piece, counters: &mut TcpCounters) -> Outgoing {
        if self.timers.deadline(Timer::Retransmission).is_none() {
            self.timers.set(Timer::Retransmission, self.retransmission_deadline(now));
        }
        if piece.len > 0 {
            self.data_sent_at = now;
        }
        let mut flags = Flags::ACK;
        if piece.len > 0 && piece.from + piece.len == self.send.tail {
            flags = flags | Flags::PSH;
        }
        if piece.fin {
            flags = flags | Flags::FIN;
        }
        let size = self.piece_max();
        let mut outgoing = self.header(now, piece.from, flags, piece.len as usize, counters);
        outgoing.payload_position = position(piece.from);
        outgoing.segment_size = if piece.len > size { size as u16 } else { 0 };
        outgoing
    }

    /// Sends a segment the peer cannot accept and so has to answer.
    fn send_probe(&mut self, now: Instant, probe: Probe, counters: &mut TcpCounters) -> Outgoing {
        self.probe = Probe::None;
        self.probes_unanswered = self.probes_unanswered.saturating_add(1);
        if probe == Probe::Window {
            counters.window_probes_sent += 1;
            self.probe_backoff = (self.probe_backoff + 1).min(63);
            self.arm_persist(now);
        } else {
            counters.keepalive_probes_sent += 1;
        }
        self.header(now, self.send.una - 1, Flags::ACK, 0, counters)
    }

    /// A segment of a synchronised connection: acknowledgement, window and options as of now. The
    /// caller says where its payload lies.
    pub(super) fn header(
        &mut self,
        now: Instant,
        seq: u64,
        flags: Flags,
        payload_len: usize,
        counters: &mut TcpCounters,
    ) -> Outgoing {
        let window = self.take_window(counters);
        let mut options = self.timestamp_options(now);
        if payload_len == 0 || self.sack_len_with_data() > 0 {
            self.add_sack_blocks(&mut options);
        }
        let pure = payload_len == 0 && flags == Flags::ACK && seq == self.send.nxt;
        self.acknowledged(pure);
        Outgoing {
            seq: self.send.space.wire(seq),
            ack: self.receive.space.wire(self.receive.nxt),
            flags,
            window,
            options,
            payload_position: 0,
            payload_len,
            segment_size: 0,
        }
    }

    /// The options of every segment after the handshake.
    pub(super) fn timestamp_options(&self, now: Instant) -> Options {
        let timestamps = self.timestamps.on.then(|| Timestamps {
            value: self.timestamps.value(now),
            echo: self.timestamps.recent,
        });
        Options { timestamps, ..Options::default() }
    }
}
