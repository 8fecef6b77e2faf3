//! Dialogues: against two queues as oracle, over the wrap of positions, between two threads, in one
//! direction alone, and with an other side that writes impossible stamps and acknowledgements.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::ring::ring_size;
use crate::segment::Segment;

const CAPACITY: u32 = 8;

fn memory() -> (Arc<Segment>, [SharedRing; 2]) {
    let segment = Arc::new(Segment::create("test", 1 << 16).unwrap());
    let ring = |at| SharedRing::new(Arc::clone(&segment), at, CAPACITY).unwrap();
    let rings = [ring(0), ring(ring_size(CAPACITY))];
    (segment, rings)
}

/// Both ends, after so many messages each way.
fn ends_at(rings: &[SharedRing; 2], sent: u32, answered: u32) -> [Dialogue; 2] {
    for (ring, position) in rings.iter().zip([sent, answered]) {
        ring.consumer_position().store(position, Ordering::Relaxed);
        for back in 1..=CAPACITY.min(position) {
            let before = stamp_of(position.wrapping_sub(back));
            ring.write_slot(back.wrapping_neg(), before, &[9; 8], 0);
        }
    }
    let [there, back] = rings.clone();
    let one = Dialogue::at(there.clone(), back.clone(), sent, answered);
    [one, Dialogue::at(back, there, answered, sent)]
}

/// Every word says the number; the last one is not sent.
fn message(number: u64) -> Message {
    let word = |index: usize| number.wrapping_mul(31).wrapping_add((index as u64) << 40);
    core::array::from_fn(|index| if index == LAST { 0 } else { word(index) })
}

fn positions() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0u32), u32::MAX - 20..=u32::MAX, STAY_MAX - 10..STAY_MAX + 10]
}

proptest! {
    #[test]
    fn behaves_as_two_queues(
        steps in prop::collection::vec((0usize..2, any::<bool>(), 0usize..12), 0..200),
        starts in (positions(), positions()),
    ) {
        let (_segment, rings) = memory();
        let mut ends = ends_at(&rings, starts.0, starts.1);
        let mut oracle = [VecDeque::new(), VecDeque::new()];
        let mut number = 0u64;
        for (end, pushes, count) in steps {
            if pushes {
                let burst: Vec<Message> = (number..number + count as u64).map(message).collect();
                let pushed = ends[end].push_burst(&burst);
                prop_assert_eq!(pushed, count.min(CAPACITY as usize - oracle[end].len()));
                oracle[end].extend(&burst[..pushed]);
                number += pushed as u64;
            } else {
                let mut out = vec![[0; 8]; count];
                let taken = ends[end].pop_burst(&mut out);
                prop_assert_eq!(taken, count.min(oracle[1 - end].len()));
                for message in &out[..taken] {
                    prop_assert_eq!(Some(*message), oracle[1 - end].pop_front());
                }
            }
            for end in [0, 1] {
                prop_assert_eq!(ends[end].is_empty(), oracle[1 - end].is_empty());
            }
        }
        prop_assert!(!ends[0].is_corrupt() && !ends[1].is_corrupt());
    }

    #[test]
    fn impossible_stamps_are_noticed_and_harmless(start in positions(), behind in any::<u32>(), next in any::<bool>()) {
        let (_segment, rings) = memory();
        let [mut one, _] = ends_at(&rings, 0, start);
        let stamp = stamp_of(start).wrapping_sub(behind);
        rings[1].write_slot(if next { 0 } else { u32::MAX }, stamp, &message(5), 0);
        let mut out = [[0; 8]; 4];
        let count = one.pop_burst(&mut out);
        prop_assert_eq!(count, usize::from(behind == 0));
        let usual = behind <= CAPACITY * STAY_MAX || behind >= CAPACITY.wrapping_neg();
        prop_assert_eq!(one.is_corrupt(), !usual);
        if !usual {
            // For good, whatever is written then.
            rings[1].write_slot(0, stamp_of(start), &message(1), 0);
            prop_assert!(one.pop().is_none() && one.is_empty());
        }
    }

    #[test]
    fn impossible_acknowledgements_harm_nobody(
        start in positions(), pushed in 0usize..8, acknowledged in any::<u32>(), position in any::<u32>(),
    ) {
        let (_segment, rings) = memory();
        let [mut one, mut other] = ends_at(&rings, start, 0);
        prop_assert_eq!(one.push_burst(&vec![message(1); pushed]), pushed);
        rings[1].write_slot(0, stamp_of(0), &message(2), acknowledged);
        prop_assert_eq!(one.pop(), Some(message(2)));
        prop_assert!(!one.is_corrupt());
        // What was not taken is not written over, unless it was acknowledged.
        let lied = acknowledged.wrapping_sub(start);
        let freed = if lied <= pushed as u32 { lied as usize } else { 0 };
        let most = CAPACITY as usize - pushed + freed;
        rings[0].consumer_position().store(position, Ordering::Relaxed);
        let more = one.push_burst(&[message(3); 12]);
        let true_position = position.wrapping_sub(start) <= pushed as u32;
        prop_assert!(more <= most || true_position, "{} of {}", more, most);
        let _: Option<Message> = other.pop();
    }

    /// An other side that writes anything anywhere at any time: every call is bounded, nothing panics.
    #[test]
    fn a_scribbling_peer_is_harmless(
        start in any::<u32>(),
        scribbles in prop::collection::vec((0usize..160, any::<u64>(), any::<bool>(), 0usize..12), 1..60),
    ) {
        let (segment, rings) = memory();
        let [mut one, _] = ends_at(&rings, start, start);
        let mut out = [[0; 8]; 12];
        for (word, value, near, most) in scribbles {
            // Half of the words come near what is expected.
            let stamp = u64::from(stamp_of(one.rx.position.wrapping_add(value as u32 % 3)));
            let value = if near { stamp << 32 | value & 0xf } else { value };
            segment.atomic_u64(word * 8).unwrap().store(value, Ordering::Relaxed);
            let count = one.pop_burst(&mut out[..most]);
            prop_assert!(out[..count].iter().all(|message| message[LAST] == 0));
            prop_assert!(one.push_burst(&vec![message(3); most]) <= most.min(CAPACITY as usize));
            let _: [bool; 2] = [one.is_empty(), one.is_corrupt()];
        }
    }
}

#[test]
fn who_speaks_in_turn_moves_one_line_each_way_and_moves_on_in_time() {
    let (_segment, rings) = memory();
    let [mut one, mut other] = ends_at(&rings, 0, 0);
    let mut slots = Vec::new();
    for number in 0..u64::from(2 * STAY_MAX) {
        assert!(one.push(&message(number)));
        assert_eq!(other.pop(), Some(message(number)));
        assert!(other.push(&message(!number)));
        assert_eq!(one.pop(), Some(message(!number)));
        slots.push((one.tx.slot, other.tx.slot));
    }
    slots.dedup();
    assert_eq!(slots, [(0, 0), (1, 1)]);
    assert!((2..CAPACITY).all(|slot| rings.iter().all(|ring| ring.stamp(slot) == 0)));
}

#[test]
fn one_direction_alone_goes_on() {
    let (_segment, rings) = memory();
    let [mut one, mut other] = ends_at(&rings, u32::MAX - 50, 0);
    for number in 0..200 {
        assert!(one.push(&message(number)));
        if number % 7 == 6 {
            let mut out = [[0; 8]; 12];
            assert_eq!(other.pop_burst(&mut out), 7);
            assert_eq!(out[6], message(number));
        }
    }
}

/// Round trips, then floods of which only some are answered: everything arrives, in order.
#[test]
fn two_threads_keep_order() {
    const COUNT: u64 = 100_000;
    let (_segment, rings) = memory();
    let [mut one, mut other] = ends_at(&rings, u32::MAX - 1000, STAY_MAX - 100);
    let answerer = std::thread::spawn(move || {
        let (mut heard, mut out) = (0, [[0; 8]; 5]);
        while heard < COUNT {
            let count = other.pop_burst(&mut out);
            for got in &out[..count] {
                assert_eq!(*got, message(heard));
                assert!(!other.is_corrupt());
                heard += 1;
                while heard % 3 == 0 && !other.push(&message(heard)) {
                    std::thread::yield_now();
                }
            }
            if count == 0 {
                std::thread::yield_now();
            }
        }
    });
    let (mut sent, mut answered) = (0, 0);
    while answered < COUNT / 3 {
        // In turn for a while, then as many as there is room for.
        let in_turn = sent / 1000 % 2 == 0;
        if sent < COUNT && (!in_turn || sent / 3 <= answered) && one.push(&message(sent)) {
            sent += 1;
        }
        assert!(!one.is_corrupt());
        match one.pop() {
            Some(got) => {
                answered += 1;
                assert_eq!(got, message(3 * answered));
            }
            None => {
                assert!(sent == COUNT || !answerer.is_finished());
                std::thread::yield_now();
            }
        }
    }
    answerer.join().unwrap();
}
