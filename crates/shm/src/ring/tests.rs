//! Rings: against a queue as oracle, over the wrap of the positions, between two threads, and with
//! peers that write impossible positions.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn shared(capacity: u32) -> SharedRing {
    let segment = Arc::new(Segment::create("test", 1 << 16).unwrap());
    SharedRing::new(segment, 64, capacity).unwrap()
}

fn ends_at(ring: &SharedRing, position: u32) -> (Producer, Consumer) {
    ring.producer_position().store(position, Ordering::Relaxed);
    ring.consumer_position().store(position, Ordering::Relaxed);
    (Producer::resume(ring.clone()), Consumer::resume(ring.clone()))
}

fn message(number: u64) -> Message {
    core::array::from_fn(|index| number.wrapping_mul(31).wrapping_add(index as u64))
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
        from_producer in any::<u32>(), from_consumer in any::<u32>(), pushed in 0usize..8
    ) {
        let ring = shared(8);
        let (mut producer, mut consumer) = ends_at(&ring, 5);
        prop_assert_eq!(producer.push_burst(&vec![message(1); pushed]), pushed);
        ring.consumer_position().store(from_consumer, Ordering::Relaxed);
        let free = producer.free();
        prop_assert!(free <= 8);
        prop_assert_eq!(producer.is_corrupt(), from_consumer.wrapping_sub(5) > pushed as u32);
        prop_assert!(!producer.is_corrupt() || !producer.push(&message(2)));

        ring.producer_position().store(from_producer, Ordering::Relaxed);
        let count = from_producer.wrapping_sub(5);
        let mut taken = 0;
        while consumer.pop().is_some() { taken += 1; }
        prop_assert_eq!(consumer.is_corrupt(), count > 8);
        prop_assert_eq!(taken, if count > 8 { 0 } else { count });
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
