//! Superframes: several full segments of new or of lost data under one header, which the link cuts.
//!
//! Called by `transmit.rs`, which has decided on one segment by all the rules; here that piece grows
//! as far as the same rules would let the following segments go at this moment. Windows, Nagle and
//! congestion control go on counting bytes and segments, so nothing else has to know.

use super::connection::{Connection, Probe};
use super::transmit::Piece;

impl Connection {
    /// Lets a full segment of new data grow to at most `payload_max` bytes: full segments, and the
    /// stream's end where it may leave too.
    pub(super) fn grow_piece(&self, piece: Piece, payload_max: u32) -> Piece {
        let mss = self.piece_max();
        let is_full = piece.len == mss && !piece.fin && self.probe != Probe::Window;
        if !is_full || u64::from(payload_max) < 2 * mss {
            return piece;
        }
        let from = piece.from;
        let limit = self.send.una + u64::from(self.parameters.send_buffer_max);
        let available = self.send.tail.min(limit).saturating_sub(from);
        let room = (self.send.una + u64::from(self.send.window)).saturating_sub(from);
        let congestion = u64::from(self.congestion.cwnd.saturating_sub(self.pipe()));
        let most = available.min(room).min(congestion).min(u64::from(payload_max));
        let full = (most / mss * mss).max(mss);
        let rest = available - full;
        let is_tail = rest > 0 && rest < mss && full + rest <= most;
        let goes_along = is_tail && !self.tail_waits(from + full, from + available);
        let len = if goes_along { available } else { full };
        let ends = self.fin_queued && from + len == self.send.tail;
        Piece { from, len, fin: ends && room > len }
    }

    /// Lets a full segment of lost data grow to at most `payload_max` bytes of the same lost run:
    /// nothing that is not lost goes along.
    pub(super) fn grow_lost_piece(&self, piece: Piece, payload_max: u32) -> Piece {
        let mss = self.piece_max();
        let is_full = piece.len == mss && !piece.fin;
        let run = self.loss.board().next_lost().filter(|run| run.0 == piece.from);
        let Some((from, end)) = run.filter(|_| is_full && u64::from(payload_max) >= 2 * mss) else {
            return piece;
        };
        let lost = end.min(self.send.tail) - from;
        let room = (self.send.una + u64::from(self.send.window)).saturating_sub(from);
        let congestion = u64::from(self.congestion.cwnd.saturating_sub(self.pipe()));
        let most = lost.min(room).min(congestion).min(u64::from(payload_max));
        let len = if most == lost { lost } else { (most / mss * mss).max(mss) };
        let fin = from + len == self.send.tail && end > self.send.tail;
        Piece { from, len, fin }
    }

    /// Whether the last, short segment of what was written has to wait, with full ones before it
    /// under way: for the cork, or because another small one is in flight.
    fn tail_waits(&self, from: u64, end: u64) -> bool {
        let ends = self.fin_queued && end == self.send.tail;
        if ends || from < self.send.push_end {
            return false;
        }
        let small_in_flight = self.send.small_end > self.send.una;
        self.options.cork || (!self.options.no_delay && small_in_flight)
    }

    /// Segments that a piece of `len` bytes makes on the wire.
    pub(super) fn segments_in(&self, len: u64) -> u64 {
        len.div_ceil(self.piece_max()).max(1)
    }
}
