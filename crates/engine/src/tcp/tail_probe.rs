//! Tail loss probes, RFC 8985 section 7: when the end of a flight is not acknowledged in about two
//! round trips, a new segment, or the last one again, asks for an acknowledgement, which shows what
//! is lost long before the retransmission timer runs out.
//!
//! Called by `timers.rs` when the probe is due, by `transmit.rs`, which sends it, and by `receive.rs`
//! and `sack.rs`, which learn what became of it. Only for peers that permit SACK, while nothing is
//! known to be lost, and one at a time.

use super::connection::Connection;
use super::loss::Phase;
use super::sack::SackNews;
use super::seam::TcpCounters;
use super::segment::Outgoing;
use super::timers::Timer;
use super::transmit::Piece;
use crate::Instant;
use crate::carry::carried;

/// Added to the two round trips, in microseconds, for the peer's and our own slowness (Linux: two
/// ticks of its clock, at 250 ticks a second). With less, a core that was busy elsewhere looks like
/// a loss.
const SLACK_US: u64 = 8_000;
/// Added where one segment is out, whose acknowledgement may be delayed (RFC 8985's WCDelAckT).
const DELAYED_ACK_MAX_US: u64 = 200_000;

/// The probe of a flight.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum TailProbe {
    /// Not needed yet.
    None,
    /// To be sent.
    Due,
    /// New data was sent.
    New,
    /// The last segment was sent again (TLP.is_retrans).
    Copy,
}

impl Connection {
    /// TLP_calc_PTO, section 7.2, in microseconds.
    fn probe_timeout_us(&self) -> u64 {
        let one = self.in_flight() <= u64::from(self.segment_payload_max());
        2 * u64::from(self.rtt.srtt_us) + if one { DELAYED_ACK_MAX_US } else { SLACK_US }
    }

    /// Section 7.2: after new data was sent or acknowledged. Where the retransmission timer comes
    /// first, there is no probe.
    pub(super) fn schedule_tail_probe(&mut self, now: Instant) {
        self.timers.stop(Timer::Persist);
        if let TailProbe::Due = self.loss.tail_probe {
            self.loss.tail_probe = TailProbe::None;
        }
        if !self.may_probe_tail() || self.loss.tail_probe != TailProbe::None {
            return;
        }
        let due = now.plus_us(self.probe_timeout_us());
        if self.timers.deadline(Timer::Retransmission).is_some_and(|timeout| due < timeout) {
            self.timers.set(Timer::Persist, due);
        }
    }

    /// The probe is due.
    pub(super) fn handle_tail_probe_timeout(&mut self) {
        if self.may_probe_tail() && self.loss.tail_probe == TailProbe::None {
            self.loss.tail_probe = TailProbe::Due;
        }
    }

    fn may_probe_tail(&self) -> bool {
        let calm = self.loss.phase == Phase::Open && self.loss.board().sacked() == 0;
        let measured = self.rtt.srtt_us > 0 && self.loss.backoff == 0;
        calm && measured && self.connected && self.sack_permitted && self.in_flight() > 0
    }

    /// TLP_send_probe, section 7.3: new data whatever the congestion window says, as far as the peer
    /// takes it, or else the last segment.
    pub(super) fn tail_probe_piece(&self) -> Option<Piece> {
        if self.loss.tail_probe != TailProbe::Due || !self.may_probe_tail() {
            return None;
        }
        let (una, nxt) = (self.send.una, self.send.nxt);
        let limit = una + u64::from(self.parameters.send_buffer_max);
        let room = (una + u64::from(self.send.window)).saturating_sub(nxt);
        let available = self.send.tail.min(limit).saturating_sub(nxt);
        let len = available.min(room).min(self.piece_max());
        if len > 0 {
            return Some(Piece { from: nxt, len, fin: false });
        }
        Some(self.sent_piece(una.max(nxt.saturating_sub(self.piece_max())), nxt))
    }

    /// Sends the probe; the retransmission timer starts anew.
    pub(super) fn send_tail_probe(
        &mut self,
        now: Instant,
        piece: Piece,
        counters: &mut TcpCounters,
    ) -> Outgoing {
        counters.tail_loss_probes += 1;
        let is_copy = piece.from < self.send.nxt;
        let outgoing = match is_copy {
            true => self.send_again(now, piece, counters),
            false => self.send_new(now, piece, counters),
        };
        self.loss.tail_probe = if is_copy { TailProbe::Copy } else { TailProbe::New };
        self.loss.recover = self.send.nxt;
        self.timers.stop(Timer::Persist);
        self.timers.set(Timer::Retransmission, self.retransmission_deadline(now));
        outgoing
    }

    /// TLP_process_ack, section 7.4: a copy that was needed means that something was lost, which
    /// costs what other losses cost; one that the peer got twice does not.
    pub(super) fn judge_tail_probe(
        &mut self,
        ack: u64,
        news: SackNews,
        counters: &mut TcpCounters,
    ) {
        let is_out = matches!(self.loss.tail_probe, TailProbe::New | TailProbe::Copy);
        let end = self.loss.recover;
        if !is_out || ack < end {
            return;
        }
        if self.loss.tail_probe == TailProbe::Copy && !news.is_duplicate {
            if ack == end {
                return;
            }
            counters.tail_losses_repaired += 1;
            let flight = self.in_flight().min(u64::from(u32::MAX)) as u32;
            self.congestion.on_loss(flight, self.segment_payload_max());
            self.congestion.on_recovered_with_sack();
        }
        self.loss.tail_probe = TailProbe::None;
    }

    /// RACK_detect_loss for originals, section 6.2: the probe went out two round trips after
    /// everything before it. Once the peer holds it, that is lost; gives up to where.
    pub(super) fn bound_by_tail_probe(&self) -> Option<u64> {
        let is_out = matches!(self.loss.tail_probe, TailProbe::New | TailProbe::Copy);
        let board = self.loss.board();
        (is_out && board.high_sacked() >= self.loss.recover).then(|| board.last_sacked_start())
    }

    /// Other ways of repair have taken over.
    pub(super) fn forget_tail_probe(&mut self) {
        self.loss.tail_probe = TailProbe::None;
        if self.in_flight() > 0 {
            self.timers.stop(Timer::Persist);
        }
    }
}

carried!(
    enum TailProbe {
        None = 0,
        Due = 1,
        New = 2,
        Copy = 3,
    }
);
