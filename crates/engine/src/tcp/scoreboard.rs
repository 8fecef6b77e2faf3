//! The sender's scoreboard, RFC 6675 section 4: what is known of the data in flight.
//!
//! The data between SND.UNA and SND.NXT is cut into runs of equal marks; what lies beyond the last
//! run is plain: in flight, and nothing is known of it. So a connection without losses has no runs
//! and pays nothing. Without SACK the same marks serve NewReno. Called by `loss.rs`, which decides,
//! and `transmit.rs`, which asks what to send again. What was sent again carries its time, so that a
//! copy that is lost too is found by what was sent later and arrived (RFC 8985). Runs know nothing
//! of segments: a run may be a part of one, or many that were sent as one large frame. What a peer
//! can make of its blocks is bounded by [`RUNS_MAX`].

mod carry;

use std::collections::VecDeque;

/// Most runs that SACK blocks may cut the flight into, per connection: a hole after each segment of
/// the largest window. What would need more is refused, which costs a retransmission at worst.
pub(super) const RUNS_MAX: usize = 1024;
/// Runs whose memory is kept for the next loss.
const RUNS_KEPT: usize = 64;
/// Most times of new data that are kept; what goes out after them counts as sent with the last.
const SENT_MAX: usize = 64;
/// DupThresh, RFC 6675 section 2.
pub(super) const DUPLICATE_THRESHOLD: u16 = 3;

/// What is known of a run. A run that the peer holds has no other mark.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
struct Marks {
    /// The peer holds it.
    sacked: bool,
    /// It left the network without arriving.
    lost: bool,
    /// It was sent again, and that copy is in flight.
    resent: bool,
    /// Segment.xmit_ts of the copy (RFC 8985), the low half of its microseconds; zero without one.
    sent_us: u32,
}

impl Marks {
    const SACKED: Marks = Marks { sacked: true, lost: false, resent: false, sent_us: 0 };

    /// True when it has to be sent again.
    fn waits(self) -> bool {
        self.lost && !self.resent
    }
}

/// A run reaches from the end of the one before it to its own.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Run {
    end: u64,
    marks: Marks,
}

/// Sums over runs, in bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
struct Sums {
    sacked: u64,
    lost: u64,
    resent: u64,
    waiting: u64,
}

const NOTHING: Sums = Sums { sacked: 0, lost: 0, resent: 0, waiting: 0 };

impl Sums {
    fn add(&mut self, marks: Marks, len: u64) {
        self.sacked += if marks.sacked { len } else { 0 };
        self.lost += if marks.lost { len } else { 0 };
        self.resent += if marks.resent { len } else { 0 };
        self.waiting += if marks.waits() { len } else { 0 };
    }

    fn take(&mut self, marks: Marks, len: u64) {
        self.sacked -= if marks.sacked { len } else { 0 };
        self.lost -= if marks.lost { len } else { 0 };
        self.resent -= if marks.resent { len } else { 0 };
        self.waiting -= if marks.waits() { len } else { 0 };
    }
}

/// When new data from `start` on went out, as far as the next entry.
#[derive(Copy, Clone, Debug)]
struct Sent {
    start: u64,
    at_us: u32,
}

/// RACK.xmit_ts of RFC 8985 section 5: when the copy went out that was sent last of all that are
/// known to have arrived.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
struct Delivered {
    sent_us: Option<u32>,
    /// Copies later than this have not had the time to arrive: the first one did (section 6.2
    /// step 2).
    latest_us: Option<u32>,
}

impl Delivered {
    /// A copy that went out at `sent_us` has arrived.
    fn note(&mut self, sent_us: u32) {
        let is_first_copy = self.latest_us.is_some_and(|latest| is_after(sent_us, latest));
        if !is_first_copy && self.sent_us.is_none_or(|known| is_after(sent_us, known)) {
            self.sent_us = Some(sent_us);
        }
    }
}

/// Order of the low halves of microseconds.
fn is_after(one_us: u32, other_us: u32) -> bool {
    one_us.wrapping_sub(other_us) as i32 > 0
}

/// A block could not be taken: the runs would become too many.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct TooManyRuns;

/// Marks of the data in flight.
#[derive(Debug, Default)]
pub(super) struct Scoreboard {
    runs: VecDeque<Run>,
    sums: Sums,
    /// HighACK: where the first run starts; means nothing without runs.
    start: u64,
    /// One past the highest offset that the peer holds.
    high_sacked: u64,
    /// Nothing below this waits to be sent again.
    waiting_from: u64,
    /// When new data went out since the first run exists, oldest first.
    sent: VecDeque<Sent>,
    delivered: Delivered,
    /// `delivered` when copies were last judged.
    judged_us: Option<u32>,
    /// When something last went out again; a little earlier than that for what followed soon.
    resent_us: u32,
}

impl Scoreboard {
    /// Nothing is known.
    pub(super) const fn new() -> Scoreboard {
        Scoreboard {
            runs: VecDeque::new(),
            sums: NOTHING,
            start: 0,
            high_sacked: 0,
            waiting_from: 0,
            sent: VecDeque::new(),
            delivered: Delivered { sent_us: None, latest_us: None },
            judged_us: None,
            resent_us: 0,
        }
    }

    /// True when nothing is known but what cumulative acknowledgements say.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes the peer holds beyond HighACK.
    pub(super) fn sacked(&self) -> u64 {
        self.sums.sacked
    }

    /// Bytes marked lost and not held by the peer, whether sent again or not.
    pub(super) fn lost(&self) -> u64 {
        self.sums.lost
    }

    /// Bytes sent again and not held by the peer.
    pub(super) fn resent(&self) -> u64 {
        self.sums.resent
    }

    /// True when something waits to be sent again.
    pub(super) fn has_waiting(&self) -> bool {
        self.sums.waiting > 0
    }

    /// One past the highest offset that the peer holds; below HighACK when it holds nothing more.
    pub(super) fn high_sacked(&self) -> u64 {
        self.high_sacked
    }

    /// SetPipe: of `in_flight` bytes, how many are thought to be in the network.
    pub(super) fn pipe(&self, in_flight: u64) -> u64 {
        (in_flight + self.sums.resent).saturating_sub(self.sums.sacked + self.sums.lost)
    }

    /// HighACK moves to `una`: forgets what lies before. Gives the lowest offset of what is now
    /// acknowledged though the peer held later data and nothing of it was sent again: the path
    /// reorders.
    pub(super) fn advance(&mut self, una: u64) -> Option<u64> {
        if self.runs.is_empty() {
            return None;
        }
        let mut reordered = None;
        while let Some(&run) = self.runs.front() {
            if self.start >= una {
                break;
            }
            let end = run.end.min(una);
            let untouched = !run.marks.sacked && !run.marks.resent;
            if untouched && self.start < self.high_sacked && reordered.is_none() {
                reordered = Some(self.start);
            }
            if run.marks.resent {
                self.delivered.note(run.marks.sent_us);
            }
            self.sums.take(run.marks, end - self.start);
            self.start = end;
            if run.end <= una {
                self.runs.pop_front();
            }
        }
        self.start = una;
        self.note_new_data_delivered(una);
        while self.sent.get(1).is_some_and(|next| next.start <= una) {
            self.sent.pop_front();
        }
        if self.sums == NOTHING {
            self.forget();
        }
        reordered
    }

    /// RACK_transmit_new_data: new data from `start` on goes out at `now_us`. Times closer than
    /// `grain_us` become the earlier one. Nothing is kept while nothing is known to be lost.
    pub(super) fn note_sent(&mut self, start: u64, now_us: u32, grain_us: u32) {
        let last = self.sent.back();
        let is_close = last.is_some_and(|last| now_us.wrapping_sub(last.at_us) < grain_us);
        if !self.runs.is_empty() && !is_close && self.sent.len() < SENT_MAX {
            self.sent.push_back(Sent { start, at_us: now_us });
        }
    }

    /// The byte before `end` has arrived, which was sent once.
    fn note_new_data_delivered(&mut self, end: u64) {
        let after = self.sent.partition_point(|sent| sent.start < end);
        if let Some(sent) = after.checked_sub(1).and_then(|index| self.sent.get(index)) {
            self.delivered.note(sent.at_us);
        }
    }

    /// RACK_detect_loss of RFC 8985 section 6.2 for copies: marks lost what was sent again more than
    /// `reo_wnd_us` before something that has arrived. Those that are sent once only are judged by
    /// what the peer holds above them ([`Scoreboard::lost_bound`]). Gives the bytes that are lost
    /// once more.
    pub(super) fn mark_copies_lost(&mut self, reo_wnd_us: u32) -> u64 {
        let Some(delivered_us) = self.delivered.sent_us else { return 0 };
        if self.sums.resent == 0 || self.judged_us == Some(delivered_us) {
            return 0;
        }
        self.judged_us = Some(delivered_us);
        let deadline_us = delivered_us.wrapping_sub(reo_wnd_us);
        let (mut from, mut found) = (self.start, 0);
        for run in &mut self.runs {
            if run.marks.resent && is_after(deadline_us, run.marks.sent_us) {
                let len = run.end - from;
                self.sums.take(run.marks, len);
                run.marks = Marks { lost: true, ..Marks::default() };
                self.sums.add(run.marks, len);
                self.waiting_from = self.waiting_from.min(from);
                found += len;
            }
            from = run.end;
        }
        if found > 0 {
            self.merge(0, self.runs.len());
        }
        found
    }

    /// Update: the peer, which acknowledges up to `una`, holds `start..end`, which lies beyond.
    /// Gives the bytes that are news, and the lowest offset of news below what it held already and
    /// never sent again (the path reorders).
    ///
    /// # Errors
    /// [`TooManyRuns`]; nothing has changed.
    pub(super) fn sack(
        &mut self,
        una: u64,
        start: u64,
        end: u64,
    ) -> Result<(u64, Option<u64>), TooManyRuns> {
        self.begin(una);
        if self.is_sacked(start, end) {
            return Ok((0, None));
        }
        // Covering and two cuts add three runs at most.
        if self.runs.len() + 3 > RUNS_MAX {
            return Err(TooManyRuns);
        }
        let before = self.sums.sacked;
        let mut reordered = None;
        let high_sacked = self.high_sacked;
        let mut delivered = self.delivered;
        self.change(start, end, |from, marks| {
            if marks.resent {
                delivered.note(marks.sent_us);
            }
            let untouched = !marks.sacked && !marks.resent;
            if untouched && from < high_sacked && reordered.is_none() {
                reordered = Some(from);
            }
            *marks = Marks::SACKED;
        });
        self.delivered = delivered;
        if end > high_sacked {
            self.note_new_data_delivered(end);
        }
        self.high_sacked = self.high_sacked.max(end);
        Ok((self.sums.sacked - before, reordered))
    }

    /// IsLost, told as a bound: what lies below it and is not held by the peer is lost. That is when
    /// the peer holds DupThresh discontiguous runs above, or more than DupThresh - 1 segments.
    pub(super) fn lost_bound(&self, mss: u32) -> u64 {
        let enough_bytes = u64::from(DUPLICATE_THRESHOLD - 1) * u64::from(mss);
        let (mut bytes, mut count) = (0, 0);
        for (index, run) in self.runs.iter().enumerate().rev() {
            if !run.marks.sacked {
                continue;
            }
            let start = self.start_of(index);
            bytes += run.end - start;
            count += 1;
            if count >= DUPLICATE_THRESHOLD || bytes > enough_bytes {
                return start;
            }
        }
        self.start
    }

    /// True when something below `bound` is neither held by the peer nor was sent again.
    pub(super) fn has_untouched_below(&self, bound: u64) -> bool {
        let mut start = self.start;
        for run in self.runs.iter().take_while(|run| run.end <= bound) {
            if start < bound && !run.marks.sacked && !run.marks.resent {
                return true;
            }
            start = run.end;
        }
        false
    }

    /// Marks lost what lies below `bound`, which is the start of a run that the peer holds.
    pub(super) fn mark_lost_below(&mut self, bound: u64) {
        if bound > self.start && !self.runs.is_empty() {
            self.mark_lost(self.start, self.start, bound);
        }
    }

    /// Marks `start..end` lost, as far as the peer does not hold it.
    pub(super) fn mark_lost(&mut self, una: u64, start: u64, end: u64) {
        self.begin(una);
        if start < end {
            self.waiting_from = self.waiting_from.min(start);
            self.change(start, end, |_, marks| marks.lost |= !marks.sacked);
        }
    }

    /// Everything up to `nxt` that the peer does not hold is lost, copies sent again included.
    pub(super) fn mark_all_lost(&mut self, una: u64, nxt: u64) {
        self.begin(una);
        if una < nxt {
            self.waiting_from = una;
            self.change(una, nxt, |_, marks| {
                marks.lost = !marks.sacked;
                marks.resent = false;
                marks.sent_us = 0;
            });
        }
    }

    /// An acknowledgement is about to be taken in, and what went out after `latest_us` cannot be what
    /// it is for.
    pub(super) fn expect_sent_before(&mut self, latest_us: u32) {
        self.delivered.latest_us = Some(latest_us);
    }

    /// RACK_retransmit_data: `start..end` goes out again at `now_us`. Times closer than `grain_us`
    /// become the earlier one, so that neighbours stay one run.
    pub(super) fn mark_resent(&mut self, start: u64, end: u64, now_us: u32, grain_us: u32) {
        if self.sums.resent == 0 || now_us.wrapping_sub(self.resent_us) >= grain_us {
            self.resent_us = now_us;
        }
        let sent_us = self.resent_us;
        self.change(start, end, |_, marks| {
            marks.resent = !marks.sacked;
            marks.sent_us = if marks.sacked { 0 } else { sent_us };
        });
        if self.waiting_from >= start {
            self.waiting_from = self.waiting_from.max(end);
        }
    }

    /// NextSeg rule 1: the first run that is lost and was not sent again.
    pub(super) fn next_lost(&self) -> Option<(u64, u64)> {
        if !self.has_waiting() {
            return None;
        }
        let first = self.index_of(self.waiting_from);
        let found = self.runs.iter().skip(first).position(|run| run.marks.waits())?;
        let index = first + found;
        Some((self.start_of(index), self.runs[index].end))
    }

    /// NextSeg rule 3: the first run below the highest that the peer holds of which nothing is known.
    pub(super) fn next_unknown(&self) -> Option<(u64, u64)> {
        let index = self.runs.iter().position(|run| run.marks == Marks::default())?;
        let start = self.start_of(index);
        (start < self.high_sacked).then(|| (start, self.runs[index].end))
    }

    /// NextSeg rule 4: the last `len` bytes or less of what the peer does not hold, out of a flight
    /// `una..nxt`, unless that was sent again already.
    pub(super) fn last_unknown(&self, una: u64, nxt: u64, len: u64) -> Option<(u64, u64)> {
        let covered = self.runs.back().map_or(una, |run| run.end);
        let (start, end) = if covered < nxt {
            let plain = self.runs.back().is_some_and(|run| run.marks == Marks::default());
            (if plain { self.start_of(self.runs.len() - 1) } else { covered }, nxt)
        } else {
            let index = self.runs.iter().rposition(|run| !run.marks.sacked)?;
            if self.runs[index].marks != Marks::default() {
                return None;
            }
            (self.start_of(index), self.runs[index].end)
        };
        Some((start.max(end.saturating_sub(len)), end))
    }

    /// True when the peer held what it now says it has not: RFC 2018 section 8.
    pub(super) fn is_reneged(&self) -> bool {
        self.runs.front().is_some_and(|run| run.marks.sacked)
    }

    /// True when the first byte not acknowledged was sent again.
    pub(super) fn first_is_resent(&self) -> bool {
        self.runs.front().is_some_and(|run| run.marks.resent)
    }

    /// Where the first run that the peer holds starts; `nxt` when there is none.
    pub(super) fn first_sacked(&self, nxt: u64) -> u64 {
        let index = self.runs.iter().position(|run| run.marks.sacked);
        index.map_or(nxt, |index| self.start_of(index))
    }

    /// Where the last run that the peer holds starts; HighACK when there is none.
    pub(super) fn last_sacked_start(&self) -> u64 {
        let index = self.runs.iter().rposition(|run| run.marks.sacked);
        index.map_or(self.start, |index| self.start_of(index))
    }

    /// Forgets everything, and gives memory back that a large repair took.
    pub(super) fn forget(&mut self) {
        self.sums = NOTHING;
        self.high_sacked = 0;
        self.sent.clear();
        self.delivered = Delivered::default();
        self.judged_us = None;
        if self.runs.capacity() > RUNS_KEPT {
            self.runs = VecDeque::new();
        } else {
            self.runs.clear();
        }
    }

    /// Runs that exist; for tests of the bound.
    #[cfg(test)]
    pub(super) fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// Before the first run: it will start at `una`.
    pub(super) fn begin(&mut self, una: u64) {
        if self.runs.is_empty() {
            self.start = una;
            self.waiting_from = una;
        }
        debug_assert_eq!(self.start, una);
    }

    /// Where the run at `index` starts.
    fn start_of(&self, index: usize) -> u64 {
        index.checked_sub(1).map_or(self.start, |before| self.runs[before].end)
    }

    /// The run that `offset` lies in; the number of runs when it lies beyond them.
    fn index_of(&self, offset: u64) -> usize {
        self.runs.partition_point(|run| run.end <= offset)
    }

    /// True when the peer is known to hold all of `start..end`.
    fn is_sacked(&self, start: u64, end: u64) -> bool {
        let run = self.runs.get(self.index_of(start));
        run.is_some_and(|run| run.marks.sacked && run.end >= end)
    }

    /// Changes the marks of `start..end`; the closure gets where each run starts.
    fn change(&mut self, start: u64, end: u64, mut change: impl FnMut(u64, &mut Marks)) {
        debug_assert!(self.start <= start && start < end);
        self.cover(end);
        let first = self.cut(start);
        let last = self.cut(end);
        let mut from = start;
        for run in self.runs.range_mut(first..last) {
            let len = run.end - from;
            self.sums.take(run.marks, len);
            change(from, &mut run.marks);
            self.sums.add(run.marks, len);
            from = run.end;
        }
        self.merge(first.saturating_sub(1), last);
    }

    /// Makes the runs reach `end` at least.
    fn cover(&mut self, end: u64) {
        let covered = self.runs.back().map_or(self.start, |run| run.end);
        if covered >= end {
            return;
        }
        match self.runs.back_mut().filter(|run| run.marks == Marks::default()) {
            Some(run) => run.end = end,
            None => self.runs.push_back(Run { end, marks: Marks::default() }),
        }
    }

    /// Sees that a run starts at `offset` and gives its index.
    fn cut(&mut self, offset: u64) -> usize {
        let index = self.index_of(offset);
        let Some(&run) = self.runs.get(index) else { return index };
        if self.start_of(index) == offset {
            return index;
        }
        self.runs.insert(index, Run { end: offset, ..run });
        index + 1
    }

    /// Makes one run of neighbours with equal marks among the runs `first..=last`.
    fn merge(&mut self, first: usize, last: usize) {
        let last = last.min(self.runs.len().saturating_sub(1));
        let mut kept = first;
        for index in first + 1..=last {
            let run = self.runs[index];
            if run.marks == self.runs[kept].marks {
                self.runs[kept].end = run.end;
            } else {
                kept += 1;
                self.runs[kept] = run;
            }
        }
        if kept < last {
            self.runs.drain(kept + 1..=last);
        }
    }
}

#[cfg(test)]
mod tests;
