//! Rings of records: against a queue as oracle, over the end of the ring and the wrap of the
//! positions, between two threads, and with peers that write impossible positions and lengths.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const LINES: u32 = 16;

fn shared(lines: u32) -> SharedRecords {
    let segment = Segment::create("test", record_ring_size(lines).next_multiple_of(4096)).unwrap();
    SharedRecords::new(Arc::new(segment), 0, lines).unwrap()
}

fn ends_at(ring: &SharedRecords, at: u32) -> (RecordProducer, RecordConsumer) {
    ring.producer_position().store(at, Ordering::Relaxed);
    ring.consumer_position().store(at, Ordering::Relaxed);
    let mut producer = RecordProducer::new(ring.clone());
    (producer.position, producer.published, producer.consumed) = (at, at, at);
    let mut consumer = RecordConsumer::new(ring.clone());
    (consumer.position, consumer.released, consumer.looked, consumer.produced) = (at, at, at, at);
    (producer, consumer)
}

fn content(number: u64, len: usize) -> Vec<u8> {
    (0..len).map(|index| (number as usize * 31 + index) as u8).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Push(usize),
    Publish,
    Take,
    Release,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0usize..=600).prop_map(Step::Push),
        2 => Just(Step::Publish),
        3 => Just(Step::Take),
        1 => Just(Step::Release),
    ];
    prop::collection::vec(step, 0..150)
}

proptest! {
    #[test]
    fn behaves_as_a_queue(
        steps in steps(),
        start in prop_oneof![Just(0u32), u32::MAX - 20..=u32::MAX],
    ) {
        let (mut producer, mut consumer) = ends_at(&shared(LINES), start);
        // Records in order, and how many of them may be seen.
        let (mut oracle, mut seen) = (VecDeque::new(), 0usize);
        let mut number = 0u64;
        for step in steps {
            match step {
                Step::Push(len) => {
                    let bytes = content(number, len);
                    match producer.push(number, &bytes) {
                        Push::Written => {
                            prop_assert!(len <= record_max(LINES));
                            oracle.push_back((number, bytes));
                        }
                        Push::TooLong => prop_assert!(len > record_max(LINES)),
                        // An empty ring has room for every record, wherever it stands.
                        Push::Full => {
                            prop_assert!(!oracle.is_empty() || consumer.position != consumer.released);
                        }
                    }
                    number += 1;
                }
                Step::Publish => {
                    prop_assert!(!producer.publish());
                    seen = oracle.len();
                }
                Step::Take => match consumer.front() {
                    Some(record) => {
                        let (tag, bytes) = oracle.pop_front().unwrap();
                        prop_assert_eq!((record.tag, record.len as usize), (tag, bytes.len()));
                        let mut out = vec![0; bytes.len()];
                        consumer.take(record, &mut out);
                        prop_assert_eq!(out, bytes);
                        prop_assert!(seen > 0);
                        seen -= 1;
                    }
                    None => prop_assert_eq!(seen, 0),
                },
                Step::Release => prop_assert!(!consumer.release()),
            }
        }
        prop_assert!(!producer.is_corrupt() && !consumer.is_corrupt());
    }

    /// Whatever the other side writes, neither end panics, reads outside the ring, or gives a
    /// record that is longer than a record can be.
    #[test]
    fn scribbled_memory_is_harmless(
        words in prop::collection::vec(any::<u64>(), 0..40),
        short in prop::collection::vec((0usize..LINES as usize, 0u64..1100), 0..16),
        positions in (any::<u32>(), 0u32..40, any::<bool>()),
    ) {
        let ring = shared(LINES);
        let (mut producer, mut consumer) = ends_at(&ring, 0);
        prop_assert_eq!(producer.push(1, &[1; 100]), Push::Written);
        for (index, word) in words.iter().enumerate() {
            let line = ring.line((index / 8) as u32);
            line.0[index % 8].store(*word, Ordering::Relaxed);
        }
        for (line, len) in short {
            ring.line(line as u32).0[0].store(len, Ordering::Relaxed);
        }
        let (far, near, use_far) = positions;
        let produced = if use_far { far } else { near };
        ring.producer_position().store(produced, Ordering::Relaxed);
        let mut out = [0; 2000];
        for _ in 0..2 * LINES {
            let Some(record) = consumer.front() else { break };
            prop_assert!(record.len as usize <= record_max(LINES));
            consumer.take(record, &mut out);
            let _: bool = consumer.release();
        }
        prop_assert!(consumer.front().is_none() || !consumer.is_corrupt());
        prop_assert!(consumer.is_corrupt() || produced <= LINES);
        let _: bool = producer.publish();
        ring.consumer_position().store(far, Ordering::Relaxed);
        let _: bool = producer.prepare_sleep(100);
        prop_assert_eq!(producer.is_corrupt(), far > producer.published);
    }
}

#[test]
fn two_threads_keep_order_and_content() {
    const COUNT: u64 = 100_000;
    let (mut producer, mut consumer) = ends_at(&shared(64), u32::MAX - 1000);
    let len_of = |number: u64| (number * 7919 % 1800) as usize;
    let sender = std::thread::spawn(move || {
        for number in 0..COUNT {
            let bytes = content(number, len_of(number));
            while producer.push(number, &bytes) == Push::Full {
                let _: bool = producer.publish();
                std::thread::yield_now();
            }
        }
        let _: bool = producer.publish();
    });
    let mut out = [0; 2048];
    for number in 0..COUNT {
        let record = loop {
            match consumer.front() {
                Some(record) => break record,
                None => {
                    let _: bool = consumer.release();
                    std::thread::yield_now();
                }
            }
        };
        assert!(record.tag == number && record.len as usize == len_of(number));
        consumer.take(record, &mut out);
        assert_eq!(out[..record.len as usize], content(number, len_of(number)));
    }
    sender.join().unwrap();
}

#[test]
fn only_sleepers_are_rung() {
    let (mut producer, mut consumer) = ends_at(&shared(LINES), 0);
    assert!(!producer.publish());
    assert!(consumer.prepare_sleep());
    assert_eq!(producer.push(0, &[0; 400]), Push::Written);
    assert!(producer.publish() && !producer.publish());
    assert!(!consumer.prepare_sleep(), "a record is there");
    consumer.awake();
    assert_eq!(producer.push(0, &[0; 400]), Push::Written);
    assert!(!producer.publish());
    assert_eq!(producer.push(0, &[0; 400]), Push::Full);
    assert!(producer.prepare_sleep(400));
    for rung in [false, true] {
        let record = consumer.front().unwrap();
        consumer.take(record, &mut []);
        assert_eq!(consumer.release(), !rung, "the first release rings");
    }
    assert!(!producer.prepare_sleep(400), "there is room");
    assert!(!consumer.release());
}

#[test]
fn a_waiting_producer_is_rung_also_after_a_release_in_between() {
    let (mut producer, mut consumer) = ends_at(&shared(1024), 0);
    let long = vec![0; record_max(1024)];
    assert_eq!(producer.push(0, &long), Push::Written);
    assert_eq!(producer.push(0, &long), Push::Written);
    assert!(producer.prepare_sleep(1));
    assert!(!producer.publish());
    let record = consumer.front().unwrap();
    // Long enough that its room is given back at once.
    consumer.take(record, &mut []);
    assert_eq!(consumer.position, consumer.released);
    assert!(consumer.release());
}

#[test]
fn rings_outside_their_segment_are_refused() {
    let segment = Arc::new(Segment::create("test", 4096).unwrap());
    assert!(SharedRecords::new(Arc::clone(&segment), 0, 63).is_none());
    assert!(SharedRecords::new(Arc::clone(&segment), 0, 64).is_none());
    assert!(SharedRecords::new(Arc::clone(&segment), 32, 16).is_none());
    assert!(SharedRecords::new(Arc::clone(&segment), usize::MAX - 63, 16).is_none());
    assert!(SharedRecords::new(segment, 64, 32).is_some());
}
