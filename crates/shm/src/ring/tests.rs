//! Rings: against a queue as oracle, over the wrap of the positions, between two threads, and with
//! peers that write impossible positions and stamps.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn shared(capacity: u32) -> SharedRing {
    let segment = Arc::new(Segment::create("test", 1 << 16).unwrap());
    SharedRing::new(segment, 64, capacity).unwrap()
}

/// A ring that has been in use up to `position`, and is empty.
fn ends_at(ring: &SharedRing, position: u32) -> (Producer, Consumer) {
    for back in 1..=ring.capacity() {
        let before = position.wrapping_sub(back);
        ring.write_slot(before, stamp_of(before), &message(99), 7);
    }
    (Producer::restart(ring.clone(), position), Consumer::resume(ring.clone()))
}

/// Every word says the number; the upper half of the last one is the ring's.
fn message(number: u64) -> Message {
    let mut words: Message =
        core::array::from_fn(|index| number.wrapping_mul(31).wrapping_add((index as u64) << 40));
    words[7] = words[7] & LAST_WORD | 7;
    words
}

#[derive(Clone, Debug)]
enum Step {
    Push(usize),
    Pop,
    PopBurst(usize),
    Free,
    Pending(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0usize..12).prop_map(Step::Push),
        Just(Step::Pop),
        (0usize..12).prop_map(Step::PopBurst),
        Just(Step::Free),
        (0usize..10).prop_map(Step::Pending),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #[test]
    fn behaves_as_a_queue(
        steps in steps(),
        start in prop_oneof![Just(0u32), u32::MAX - 20..=u32::MAX],
    ) {
        let (mut producer, mut consumer) = ends_at(&shared(8), start);
        let mut oracle = VecDeque::new();
        let mut number = 0u64;
        for step in steps {
            match step {
                Step::Push(count) => {
                    let numbers = number..number + count as u64;
                    let burst: Vec<Message> = numbers.map(message).collect();
                    let pushed = producer.push_burst(&burst);
                    prop_assert_eq!(pushed, count.min(8 - oracle.len()));
                    oracle.extend(&burst[..pushed]);
                    number += pushed as u64;
                }
                Step::Pop => prop_assert_eq!(consumer.pop(), oracle.pop_front()),
                Step::PopBurst(most) => {
                    let mut out = vec![[0; 8]; most];
                    let count = consumer.pop_burst(&mut out);
                    // What the consumer has not looked up yet may be left for the next burst.
                    prop_assert!(count <= most.min(oracle.len()));
                    prop_assert!(count > 0 || most == 0 || oracle.is_empty());
                    for message in &out[..count] {
                        prop_assert_eq!(Some(*message), oracle.pop_front());
                    }
                }
                Step::Free => prop_assert_eq!(producer.free() as usize, 8 - oracle.len()),
                Step::Pending(back) => {
                    let position = producer.position().wrapping_sub(1 + back as u32);
                    prop_assert_eq!(producer.is_pending(position), back < oracle.len());
                }
            }
            prop_assert_eq!(consumer.is_empty(), oracle.is_empty());
        }
        prop_assert!(!producer.is_corrupt() && !consumer.is_corrupt());
    }

    #[test]
    fn impossible_positions_are_noticed_and_harmless(
        from_consumer in any::<u32>(), pushed in 0usize..8
    ) {
        let ring = shared(8);
        let (mut producer, _) = ends_at(&ring, 5);
        prop_assert_eq!(producer.push_burst(&vec![message(1); pushed]), pushed);
        ring.consumer_position().store(from_consumer, Ordering::Relaxed);
        let free = producer.free();
        prop_assert!(free <= 8);
        prop_assert_eq!(producer.is_corrupt(), from_consumer.wrapping_sub(5) > pushed as u32);
        prop_assert!(!producer.is_corrupt() || !producer.push(&message(2)));
    }

    #[test]
    fn impossible_stamps_are_noticed_and_harmless(
        start in prop_oneof![Just(0u32), any::<u32>()],
        // Of every slot: how far its stamp is from the right one, and whether it was written at all.
        stamps in prop::collection::vec(
            prop_oneof![4 => Just(Some(0i32)), 1 => Just(Some(-8)), 1 => Just(None), 1 => any::<i32>().prop_map(Some)],
            8,
        ),
    ) {
        let ring = shared(8);
        let (_, mut consumer) = ends_at(&ring, start);
        for (place, off) in stamps.iter().enumerate() {
            let position = start.wrapping_add(place as u32);
            let stamp = off.map_or(0, |off| stamp_of(position).wrapping_add_signed(off));
            ring.slot(position).0[7].store(u64::from(stamp) << STAMP_SHIFT | 5, Ordering::Relaxed);
        }
        let mut out = [[0; 8]; 20];
        let count = consumer.pop_burst(&mut out);
        let stamp_at = |place: usize| {
            let position = start.wrapping_add(place as u32);
            (position, ring.stamp(position))
        };
        // No more than have their own stamp, and nothing of the stamp in them.
        prop_assert!(count <= 8);
        prop_assert!((0..count).all(|place| stamp_at(place).1 == stamp_of(stamp_at(place).0)));
        prop_assert!(out[..count].iter().all(|message| message[7] == 5));
        let (position, stamp) = stamp_at(count);
        prop_assert_ne!(stamp, stamp_of(position));
        let usual = [0, stamp_of(position.wrapping_sub(8))];
        prop_assert_eq!(consumer.is_corrupt(), !usual.contains(&stamp));
        if consumer.is_corrupt() {
            // For good, whatever is written then.
            ring.write_slot(position, stamp_of(position), &message(1), 7);
            prop_assert!(consumer.pop().is_none() && consumer.is_empty());
        }
    }

    /// A peer that writes anything anywhere at any time: every call is bounded and nothing panics.
    #[test]
    fn a_scribbling_peer_is_harmless(
        start in any::<u32>(),
        scribbles in prop::collection::vec((0usize..80, any::<u64>(), any::<bool>(), 0usize..12), 1..60),
    ) {
        let ring = shared(8);
        let (mut producer, mut consumer) = ends_at(&ring, start);
        let mut out = [[0; 8]; 12];
        for (word, value, near, most) in scribbles {
            // Half of the words come near what the ring expects.
            let stamp = u64::from(stamp_of(consumer.position().wrapping_add(value as u32 % 3)));
            let value = if near { stamp << STAMP_SHIFT } else { value };
            ring.segment.atomic_u64(64 + word * 8).unwrap().store(value, Ordering::Relaxed);
            prop_assert!(consumer.pop_burst_fenced(&mut out[..most]) <= most);
            prop_assert!(out.iter().all(|message| message[7] <= LAST_WORD));
            prop_assert!(producer.push_burst(&vec![message(3); most]) <= most.min(8));
            prop_assert!(producer.free() <= 8);
            let _: bool = producer.is_pending(value as u32);
            let _: [bool; 3] = [producer.mark_backlog(), consumer.take_backlog(), producer.must_wake()];
        }
    }
}

/// A new consumer of a ring that was left full finds nothing of it, at any position.
#[test]
fn a_restarted_ring_is_empty() {
    let ring = shared(8);
    for start in [0, 3, u32::MAX - 11, u32::MAX] {
        let (mut producer, _) = ends_at(&ring, start);
        for round in 0..3 {
            assert_eq!(producer.push_burst(&[message(round); 9]), 8);
            producer = Producer::restart(ring.clone(), producer.position());
            let mut consumer = Consumer::resume(ring.clone());
            assert!(consumer.is_empty() && !consumer.is_corrupt());
            assert!(producer.push(&message(77)));
            assert_eq!(consumer.pop(), Some(message(77)));
            assert_eq!(consumer.pop(), None);
        }
        assert!(!producer.is_corrupt());
    }
}

#[test]
fn two_threads_keep_order() {
    const COUNT: u64 = 200_000;
    let (mut producer, mut consumer) = ends_at(&shared(64), u32::MAX - 1000);
    let sender = std::thread::spawn(move || {
        for number in 0..COUNT {
            while !producer.push(&message(number)) {
                std::thread::yield_now();
            }
        }
    });
    for number in 0..COUNT {
        let got = loop {
            match consumer.pop() {
                Some(got) => break got,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(got, message(number));
    }
    sender.join().unwrap();
}

#[test]
fn a_backlog_is_reported_once() {
    let (mut producer, mut consumer) = ends_at(&shared(2), 0);
    assert_eq!(producer.push_burst(&[message(1); 3]), 2);
    assert!(producer.mark_backlog());
    assert!(consumer.pop().is_some() && consumer.pop().is_some() && consumer.pop().is_none());
    assert!(consumer.take_backlog());
    assert!(!consumer.take_backlog());
    assert!(!producer.mark_backlog(), "there is room again");
    assert!(!consumer.take_backlog());
}

#[test]
fn what_the_consumer_has_not_taken_is_queued() {
    let (mut producer, mut consumer) = ends_at(&shared(8), u32::MAX - 1);
    assert_eq!(producer.queued(), 0);
    for queued in 1..=5 {
        assert!(producer.push(&[0; 8]));
        assert_eq!(producer.queued(), queued);
    }
    assert!(consumer.pop().is_some() && consumer.pop().is_some());
    assert_eq!(producer.queued(), 3);
}

#[test]
fn only_a_sleeper_is_woken() {
    let (producer, consumer) = ends_at(&shared(2), 0);
    assert!(!producer.must_wake());
    consumer.prepare_sleep();
    assert!(producer.must_wake());
    assert!(!producer.must_wake());
    consumer.prepare_sleep();
    consumer.awake();
    assert!(!producer.must_wake());
}

#[test]
fn rings_outside_their_segment_are_refused() {
    let segment = Arc::new(Segment::create("test", 4096).unwrap());
    assert!(SharedRing::new(Arc::clone(&segment), 0, 62).is_none());
    assert!(SharedRing::new(Arc::clone(&segment), 0, 64).is_none());
    assert!(SharedRing::new(Arc::clone(&segment), 32, 8).is_none());
    assert!(SharedRing::new(Arc::clone(&segment), usize::MAX - 63, 8).is_none());
    assert!(SharedRing::new(segment, 0, 32).is_some());
}
