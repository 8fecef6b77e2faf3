//! SACK in both directions: RFC 2018, RFC 2883 (D-SACK) and RFC 6675; RFC 8985 for copies.
//!
//! As a receiver it owns which blocks an acknowledgement carries; as a sender, what the blocks of
//! the peer do to the scoreboard and when that shows a loss. Called by `receive.rs` (blocks in),
//! `loss.rs` and `transmit.rs` (blocks out). A peer's block is believed only where it speaks of data
//! in flight; what it can cost is bounded by the scoreboard.

use super::connection::{AckNeed, Connection};
use super::loss::{Phase, Rescue};
use super::scoreboard::DUPLICATE_THRESHOLD;
use super::seam::TcpCounters;
use super::segment::{Options, SACK_BLOCKS_MAX, Segment, SeqNumber};
use super::transmit::SENT_GRAINS;
use crate::Instant;

/// A data segment carries blocks only if they leave it this share of its payload at least.
const DATA_SHARE: u32 = 2;
/// RACK.reo_wnd is this share of RACK.min_RTT (RFC 8985 section 6.2 step 4).
const REO_WND_SHARE: u32 = 4;
/// Largest reordering that is told, in segments (Linux).
const REORDERING_MAX: u16 = 300;

/// What the blocks of one acknowledgement said.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct SackNews {
    /// Bytes that the peer holds and did not say so before.
    pub(super) bytes: u64,
    /// Something arrived twice (RFC 2883).
    pub(super) is_duplicate: bool,
}

impl Connection {
    /// Blocks that the next acknowledgement could carry, at most four (three beside timestamps).
    fn sack_blocks_due(&self) -> usize {
        if !self.sack_permitted || !self.connected {
            return 0;
        }
        let most = SACK_BLOCKS_MAX - usize::from(self.timestamps.on);
        let count = self.receive.out_of_order.len() + usize::from(self.has_duplicate());
        count.min(most)
    }

    /// Bytes of the SACK option in a segment with data; it makes room for it.
    pub(super) fn sack_len_with_data(&self) -> u32 {
        let len = match self.sack_blocks_due() {
            0 => return 0,
            count => 4 + 8 * count as u32,
        };
        if len <= self.segment_payload_max() / DATA_SHARE { len } else { 0 }
    }

    /// Puts blocks into the options of an acknowledgement: first what arrived twice (RFC 2883
    /// section 4), then what is held, most recent first (RFC 2018 section 4).
    pub(super) fn add_sack_blocks(&mut self, options: &mut Options) {
        let due = self.sack_blocks_due();
        if due == 0 {
            return;
        }
        let mut blocks = [(0, 0); SACK_BLOCKS_MAX];
        let mut count = 0;
        if self.has_duplicate() {
            options.sack[0] = std::mem::take(&mut self.receive.duplicate);
            count = 1;
        }
        let held = self.receive.out_of_order.tell(&mut blocks[count..due]);
        let space = self.receive.space;
        for (block, (start, end)) in options.sack.iter_mut().zip(blocks).skip(count).take(held) {
            *block = (space.wire(start), space.wire(end));
        }
        options.sack_len = (count + held) as u8;
    }

    /// True when the peer should be told of something that arrived twice.
    fn has_duplicate(&self) -> bool {
        self.receive.duplicate.0 != self.receive.duplicate.1
    }

    /// `start..end` has arrived before; the next acknowledgement says so.
    pub(super) fn note_duplicate(&mut self, start: u64, end: u64, counters: &mut TcpCounters) {
        if self.sack_permitted && start < end && !self.has_duplicate() {
            counters.dsacks_sent += 1;
            let space = self.receive.space;
            self.receive.duplicate = (space.wire(start), space.wire(end));
        }
    }

    /// So many segments arrived out of order. Each gets an acknowledgement of its own, however many
    /// arrive in one burst, because a peer without SACK counts them (RFC 5681 section 3.2); one that
    /// permits SACK learns all from one, so only the first few are counted for it (as on Linux).
    pub(super) fn owe_duplicate_acks(&mut self, segments: usize) {
        let segments = segments.min(usize::from(u8::MAX)) as u8;
        let first_few = (DUPLICATE_THRESHOLD as u8).saturating_sub(self.receive.duplicate_acks);
        let owed = if self.sack_permitted { segments.min(first_few) } else { segments };
        self.receive.duplicate_acks = self.receive.duplicate_acks.saturating_add(owed);
        self.duplicate_acks_due = self.duplicate_acks_due.saturating_add(owed);
        self.ack = AckNeed::Now;
    }

    /// Update of RFC 6675 section 5: takes the blocks of a segment that acknowledges `ack`.
    pub(super) fn take_sack_blocks(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        ack: u64,
        counters: &mut TcpCounters,
    ) -> SackNews {
        let mut news = SackNews::default();
        let blocks = segment.options.sack_blocks();
        if !self.sack_permitted || blocks.is_empty() {
            return news;
        }
        let latest_us = (now.us() as u32).wrapping_sub(self.shortest_round_trip_us());
        self.loss.board_mut().expect_sent_before(latest_us);
        let first = self.block_offsets(blocks[0]);
        let second = blocks.get(1).map(|&block| self.block_offsets(block));
        // RFC 2883 section 4: below the acknowledgement, or inside the next block.
        let inside = second.is_some_and(|held| held.0 <= first.0 && first.1 <= held.1);
        let is_duplicate = first.0 < first.1 && (first.1 <= ack || inside);
        counters.dsacks_received += u64::from(is_duplicate);
        news.is_duplicate = is_duplicate;
        for &block in &blocks[usize::from(is_duplicate)..] {
            let (start, end) = self.block_offsets(block);
            news.bytes += self.take_sack_block(start, end, counters);
        }
        news
    }

    /// A block in offsets, near what is in flight.
    fn block_offsets(&self, block: (SeqNumber, SeqNumber)) -> (u64, u64) {
        let space = self.send.space;
        (space.offset(block.0, self.send.nxt), space.offset(block.1, self.send.nxt))
    }

    /// Takes one block; gives the bytes that are news.
    fn take_sack_block(&mut self, start: u64, end: u64, counters: &mut TcpCounters) -> u64 {
        let una = self.send.una;
        if start >= end || end > self.send.nxt {
            counters.sack_blocks_invalid += 1;
            return 0;
        }
        // An acknowledgement that was overtaken tells of what is acknowledged by now; and nobody
        // holds the byte at SND.UNA without acknowledging it.
        if start <= una {
            return 0;
        }
        match self.loss.board_mut().sack(una, start, end) {
            Ok((bytes, reordered)) => {
                self.note_reordering(reordered);
                bytes
            }
            Err(_) => {
                counters.sack_blocks_refused += 1;
                0
            }
        }
    }

    /// HighACK moves to `ack`.
    pub(super) fn advance_scoreboard(&mut self, now: Instant, ack: u64) {
        let latest_us = (now.us() as u32).wrapping_sub(self.shortest_round_trip_us());
        let Some(board) = self.loss.board.as_mut() else { return };
        board.expect_sent_before(latest_us);
        let high_sacked = board.high_sacked();
        if let Some(from) = board.advance(ack) {
            self.note_reordering_from(from, high_sacked);
        }
    }

    /// Something that was not sent again arrived from `from`, after later data.
    fn note_reordering(&mut self, from: Option<u64>) {
        if let Some(from) = from {
            self.note_reordering_from(from, self.loss.board().high_sacked());
        }
    }

    fn note_reordering_from(&mut self, from: u64, high_sacked: u64) {
        // After a time-out nobody knows which copy arrived.
        if self.sack_permitted && self.loss.phase != Phase::Loss {
            let segments = high_sacked.saturating_sub(from) / u64::from(self.segment_payload_max());
            let segments = segments.min(u64::from(REORDERING_MAX)) as u16;
            self.loss.reordering = self.loss.reordering.max(segments);
        }
    }

    /// What an acknowledgement with its blocks means, RFC 6675 section 5; `progress` when it moved
    /// SND.UNA, which has been dealt with.
    pub(super) fn judge_scoreboard(
        &mut self,
        now: Instant,
        news: SackNews,
        progress: bool,
        counters: &mut TcpCounters,
    ) {
        let calm = self.loss.phase == Phase::Open && self.loss.board().is_empty();
        if calm || !self.sack_permitted {
            return;
        }
        if self.loss.board().is_reneged() {
            counters.sack_reneged += 1;
            return self.start_loss_recovery();
        }
        if news.bytes > 0 && !progress {
            counters.duplicate_acks_received += 1;
            self.loss.duplicates = self.loss.duplicates.saturating_add(1);
        }
        self.look_for_lost_copies(counters);
        match self.loss.phase {
            Phase::Open => self.look_for_loss(counters),
            Phase::Recovery => self.go_on_with_recovery(now),
            Phase::Loss => {}
        }
    }

    /// RACK.min_RTT, zero before the first sample.
    fn shortest_round_trip_us(&self) -> u32 {
        self.rtt.min_us.min(self.rtt.srtt_us)
    }

    /// RACK_detect_loss for what was sent again (RFC 8985 section 6.2 step 5): something sent later
    /// has arrived, so the copy is lost too, and is sent once more instead of waiting for the timer.
    /// The reordering window is the RFC's first, a quarter of the shortest round trip. The window
    /// was reduced when the first loss was seen; this is the same round of repair.
    fn look_for_lost_copies(&mut self, counters: &mut TcpCounters) {
        if self.loss.board().resent() == 0 {
            return;
        }
        let grain_us = self.rtt.srtt_us / SENT_GRAINS;
        let reo_wnd_us = self.shortest_round_trip_us() / REO_WND_SHARE + grain_us;
        let lost = self.loss.board_mut().mark_copies_lost(reo_wnd_us);
        if lost > 0 {
            counters.lost_retransmissions += self.segments_in(lost);
        }
    }

    /// Steps 1 to 3: is there a loss to begin a recovery for? What was sent again in an earlier
    /// recovery is no news.
    fn look_for_loss(&mut self, counters: &mut TcpCounters) {
        if self.loss.board().sacked() == 0 {
            return;
        }
        let bound = self.loss.board().lost_bound(self.segment_payload_max());
        let enough =
            self.loss.duplicates >= DUPLICATE_THRESHOLD && !self.loss.board().first_is_resent();
        let probe_bound = self.bound_by_tail_probe();
        let bound = bound.max(probe_bound.unwrap_or(bound));
        if enough || probe_bound.is_some() || self.loss.board().has_untouched_below(bound) {
            self.loss.board_mut().mark_lost_below(bound);
            self.enter_recovery(counters);
        }
    }

    /// Step B: what else is lost by now, and has the end of the flight had the time to arrive?
    fn go_on_with_recovery(&mut self, now: Instant) {
        let bound = self.loss.board().lost_bound(self.segment_payload_max());
        self.loss.board_mut().mark_lost_below(bound);
        let patience_us = u64::from(self.rtt.srtt_us) + 4 * u64::from(self.rtt.rttvar_us);
        let waited_us = u64::from((now.us() as u32).wrapping_sub(self.loss.new_data_sent_us));
        if self.loss.rescue == Rescue::Waits && waited_us >= patience_us {
            self.loss.rescue = Rescue::Due;
        }
    }
}
