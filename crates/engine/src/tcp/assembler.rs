//! Which bytes beyond the in-order edge have arrived: a bounded set of ranges.
//!
//! The bytes themselves lie in their final place in the stream already; this only remembers where.
//! Called by `receive.rs`. The ranges are sorted, disjoint and never touch each other.

/// Most ranges kept for one connection; a segment that would need one more is not stored.
pub(super) const RANGES_MAX: usize = 32;

/// Ranges of offsets received out of order.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    ranges: Vec<(u64, u64)>,
}

impl Assembler {
    /// True when nothing is out of order.
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, in order, as (first, one past the last).
    pub(super) fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Indices of the ranges that `start..end` overlaps or touches.
    fn touched(&self, start: u64, end: u64) -> (usize, usize) {
        let first = self.ranges.partition_point(|range| range.1 < start);
        let last = self.ranges.partition_point(|range| range.0 <= end);
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
        let (first, last) = self.touched(start, end);
        if first == last {
            self.ranges.insert(first, (start, end));
            return;
        }
        let merged = (start.min(self.ranges[first].0), end.max(self.ranges[last - 1].1));
        self.ranges[first] = merged;
        self.ranges.drain(first + 1..last);
    }

    /// The in-order edge has reached `edge`: forgets what it swallowed and returns the edge after
    /// the ranges that now follow without a gap.
    pub(super) fn advance(&mut self, mut edge: u64) -> u64 {
        let mut count = 0;
        while let Some(range) = self.ranges.get(count).filter(|range| range.0 <= edge) {
            edge = edge.max(range.1);
            count += 1;
        }
        self.ranges.drain(..count);
        edge
    }

    /// Gives the memory back.
    pub(super) fn clear(&mut self) {
        self.ranges = Vec::new();
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
                    prop_assert_eq!(assembler.ranges().len(), RANGES_MAX);
                }
                prop_assert_eq!(assembler.ranges(), ranges_of(&oracle));
                prop_assert!(assembler.ranges().len() <= RANGES_MAX);
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
}
