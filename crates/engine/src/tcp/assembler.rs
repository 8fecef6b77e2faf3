//! Which bytes beyond the in-order edge have arrived: a bounded set of ranges.
//!
//! The bytes themselves lie in their final place in the stream already; this only remembers where,
//! and in which order the ranges grew, for SACK. Called by `receive.rs` and `sack.rs`. The ranges
//! are sorted, disjoint and never touch each other.

use crate::carry::{Carry, Reader, Refusal, Writer, carried, demand, read_list, write_list};

/// Most ranges kept for one connection; a segment that would need one more is not stored.
pub(super) const RANGES_MAX: usize = 128;

/// One range.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Range {
    /// First offset, and one past the last.
    pub(super) start: u64,
    pub(super) end: u64,
    /// Later than that of every range that grew before.
    grown: u32,
    /// The peer was told of it since it grew.
    told: bool,
}

/// Ranges of offsets received out of order.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    ranges: Vec<Range>,
}

impl Assembler {
    /// True when nothing is out of order.
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges there are.
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// One past the last offset that arrived out of order.
    pub(super) fn last_end(&self) -> Option<u64> {
        self.ranges.last().map(|range| range.end)
    }

    /// Indices of the ranges that `start..end` overlaps or touches.
    fn touched(&self, start: u64, end: u64) -> (usize, usize) {
        let first = self.ranges.partition_point(|range| range.end < start);
        let last = self.ranges.partition_point(|range| range.start <= end);
        (first, last)
    }

    /// True when [`Assembler::insert`] of this range keeps the bound.
    pub(super) fn has_room(&self, start: u64, end: u64) -> bool {
        let (first, last) = self.touched(start, end);
        last > first || self.ranges.len() < RANGES_MAX
    }

    /// Adds `start..end`, not empty; the caller has asked [`Assembler::has_room`].
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        debug_assert!(start < end && self.has_room(start, end));
        let latest = self.ranges.iter().map(|range| range.grown).max();
        let grown = latest.map_or(0, |latest| latest.saturating_add(1));
        let mut added = Range { start, end, grown, told: false };
        let (first, last) = self.touched(start, end);
        if first == last {
            self.ranges.insert(first, added);
            return;
        }
        added.start = start.min(self.ranges[first].start);
        added.end = end.max(self.ranges[last - 1].end);
        self.ranges[first] = added;
        self.ranges.drain(first + 1..last);
    }

    /// The first stretch of `start..end` that has arrived already.
    pub(super) fn overlap(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let first = self.ranges.partition_point(|range| range.end <= start);
        let range = self.ranges.get(first).filter(|range| range.start < end)?;
        Some((range.start.max(start), range.end.min(end)))
    }

    /// The in-order edge has reached `edge`: forgets what it swallowed and returns the edge after
    /// the ranges that now follow without a gap.
    pub(super) fn advance(&mut self, mut edge: u64) -> u64 {
        let mut count = 0;
        while let Some(range) = self.ranges.get(count).filter(|range| range.start <= edge) {
            edge = edge.max(range.end);
            count += 1;
        }
        self.ranges.drain(..count);
        edge
    }

    /// True when a range has grown that the peer was not told of.
    pub(super) fn has_untold(&self) -> bool {
        self.ranges.iter().any(|range| !range.told)
    }

    /// Gives what the peer should be told, most recently grown first, and takes it for told. What
    /// grew together but found no room goes first the next time.
    pub(super) fn tell(&mut self, out: &mut [(u64, u64)]) -> usize {
        let mut chosen = [usize::MAX; 4];
        let most = out.len().min(chosen.len());
        let mut count = 0;
        for index in 0..self.ranges.len() {
            let place = chosen[..count].partition_point(|&other| self.precedes(other, index));
            if place < most {
                count = (count + 1).min(most);
                chosen[place..count].rotate_right(1);
                chosen[place] = index;
            }
        }
        for (block, &index) in out.iter_mut().zip(&chosen[..count]) {
            let range = &mut self.ranges[index];
            range.told = true;
            *block = (range.start, range.end);
        }
        count
    }

    /// True when the range at `index` is more urgent to tell than that at `other`.
    fn precedes(&self, index: usize, other: usize) -> bool {
        let (first, second) = (&self.ranges[index], &self.ranges[other]);
        let younger = first.grown > second.grown;
        if first.told == second.told { younger } else { second.told }
    }

    /// Gives the memory back.
    pub(super) fn clear(&mut self) {
        self.ranges = Vec::new();
    }
}

carried!(struct Range { start, end, grown, told });

impl Carry for Assembler {
    fn write(&self, out: &mut Writer) {
        write_list(out, self.ranges.iter());
    }

    fn read(input: &mut Reader<'_>) -> Result<Assembler, Refusal> {
        Ok(Assembler { ranges: read_list(input, RANGES_MAX)? })
    }
}

impl Assembler {
    /// That the ranges are what ranges are, and lie beyond `edge` and before `end`.
    pub(super) fn check(&self, edge: u64, end: u64) -> Result<(), Refusal> {
        let mut before = edge;
        for range in &self.ranges {
            demand(before < range.start && range.start < range.end, "ranges received")?;
            before = range.end;
        }
        demand(self.ranges.is_empty() || before <= end, "ranges received")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The ranges of a set of bytes.
    fn ranges_of(bytes: &BTreeSet<u64>) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for &byte in bytes {
            match ranges.last_mut() {
                Some(last) if last.1 == byte => last.1 = byte + 1,
                _ => ranges.push((byte, byte + 1)),
            }
        }
        ranges
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_bytes(
            steps in prop::collection::vec((0u64..300, 1u64..20, any::<bool>()), 1..80),
        ) {
            let mut assembler = Assembler::default();
            let mut oracle = BTreeSet::new();
            let mut edge = 0;
            for (start, len, fills_gap) in steps {
                let (start, end) = (start.max(edge + 1), start.max(edge + 1) + len);
                if fills_gap {
                    edge = assembler.advance(edge + len);
                    oracle = oracle.split_off(&edge);
                    prop_assert!(!oracle.contains(&edge));
                } else if assembler.has_room(start, end) {
                    assembler.insert(start, end);
                    oracle.extend(start..end);
                } else {
                    prop_assert_eq!(assembler.len(), RANGES_MAX);
                }
                let ranges: Vec<_> = assembler.ranges.iter().map(|r| (r.start, r.end)).collect();
                prop_assert_eq!(ranges, ranges_of(&oracle));
                prop_assert!(assembler.len() <= RANGES_MAX);
                let overlap = assembler.overlap(start, end);
                let first = (start..end).find(|at| oracle.contains(at));
                prop_assert_eq!(overlap.map(|overlap| overlap.0), first);
                let after = overlap.map(|o| (o.0..end).find(|at| !oracle.contains(at)).unwrap_or(end));
                prop_assert_eq!(overlap.map(|overlap| overlap.1), after);
            }
        }
    }

    #[test]
    fn refuses_one_range_too_many() {
        let mut assembler = Assembler::default();
        for index in 0..RANGES_MAX as u64 {
            assembler.insert(10 * index + 5, 10 * index + 6);
        }
        assert!(!assembler.has_room(1, 2));
        assert!(assembler.has_room(6, 7), "growing a range needs no room");
        assert_eq!(assembler.advance(5), 6);
        assert!(assembler.has_room(1000, 1001));
    }

    #[test]
    fn tells_the_most_recent_first_and_nothing_is_left_out() {
        let mut assembler = Assembler::default();
        for start in [50, 10, 90, 30, 70] {
            assembler.insert(start, start + 1);
        }
        let mut blocks = [(0, 0); 3];
        assert_eq!(assembler.tell(&mut blocks), 3);
        assert_eq!(blocks, [(70, 71), (30, 31), (90, 91)]);
        assert!(assembler.has_untold());
        assert_eq!(assembler.tell(&mut blocks), 3);
        assert_eq!(blocks, [(10, 11), (50, 51), (70, 71)], "what found no room, then the latest");
        assert!(!assembler.has_untold());
        assembler.insert(31, 32);
        assert_eq!(assembler.tell(&mut blocks), 3);
        assert_eq!(blocks, [(30, 32), (70, 71), (90, 91)]);
    }
}
