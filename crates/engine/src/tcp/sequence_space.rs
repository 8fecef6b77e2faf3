//! The one place where 32-bit sequence numbers meet 64-bit offsets and stream positions.
//!
//! Inside a connection every sequence number is an offset: a `u64` that never wraps, so that plain
//! comparisons are right. The SYN sits at [`SYN_OFFSET`], the first data byte (stream position 0)
//! at [`FIRST_DATA`]; the start is large so that numbers before the SYN exist too.
//!
//! ```text
//! wire      iss-1      iss        iss+1 ...            (modulo 2^32)
//! offset    2^32-1     2^32       2^32+1 ...
//!           old        SYN        data, position 0 ...
//! ```

use super::segment::SeqNumber;
use crate::carry::carried;

/// Offset of the SYN of a direction.
pub(super) const SYN_OFFSET: u64 = 1 << 32;
/// Offset of the first data byte of a direction.
pub(super) const FIRST_DATA: u64 = SYN_OFFSET + 1;

/// Sequence numbers of one direction.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct SequenceSpace {
    initial: SeqNumber,
}

impl SequenceSpace {
    /// The space whose SYN has this sequence number.
    pub(super) const fn new(initial: SeqNumber) -> SequenceSpace {
        SequenceSpace { initial }
    }

    /// The sequence number of an offset.
    pub(super) fn wire(self, offset: u64) -> SeqNumber {
        self.initial + (offset.wrapping_sub(SYN_OFFSET)) as u32
    }

    /// The offset of a sequence number, taken as the one nearest to `near` (at least
    /// [`SYN_OFFSET`]): exact when they are less than 2^31 apart.
    pub(super) fn offset(self, seq: SeqNumber, near: u64) -> u64 {
        let distance = seq.distance(self.wire(near));
        near.wrapping_add_signed(i64::from(distance))
    }
}

/// Stream position of an offset: bytes since the first data byte.
pub(super) fn position(offset: u64) -> u64 {
    offset.saturating_sub(FIRST_DATA)
}

/// Offset of a stream position; stays at the end of the space instead of wrapping.
pub(super) fn offset_of_position(position: u64) -> u64 {
    position.saturating_add(FIRST_DATA)
}

carried!(struct SequenceSpace { initial });

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn offsets_survive_the_wire(
            initial: u32,
            near in SYN_OFFSET..1 << 40,
            distance in i64::from(i32::MIN) + 1..=i64::from(i32::MAX),
        ) {
            let space = SequenceSpace::new(SeqNumber::new(initial));
            let offset = near.wrapping_add_signed(distance);
            prop_assert_eq!(space.offset(space.wire(offset), near), offset);
        }

        #[test]
        fn positions_follow_the_initial_number(initial: u32, at in 0u64..1 << 40) {
            let space = SequenceSpace::new(SeqNumber::new(initial));
            let wire = space.wire(offset_of_position(at));
            prop_assert_eq!(wire.value(), initial.wrapping_add(1).wrapping_add(at as u32));
            prop_assert_eq!(position(offset_of_position(at)), at);
        }
    }

    #[test]
    fn wraps_right_after_the_syn() {
        let space = SequenceSpace::new(SeqNumber::new(u32::MAX));
        assert_eq!(space.wire(SYN_OFFSET).value(), u32::MAX);
        assert_eq!(space.wire(FIRST_DATA).value(), 0);
        assert_eq!(space.offset(SeqNumber::new(0), SYN_OFFSET), FIRST_DATA);
        assert_eq!(space.offset(SeqNumber::new(u32::MAX - 1), SYN_OFFSET), SYN_OFFSET - 1);
    }
}
