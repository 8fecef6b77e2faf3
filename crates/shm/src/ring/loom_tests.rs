//! Loom models of the ring: publish and consume, backlog, READY coalescing, sleep. What a slot holds
//! besides its stamp is a loom cell, so that any access that is not ordered by stamps and the
//! consumer's position fails the model.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};

use super::{Consumer, Producer, RingMemory};
use crate::messages::Message;
use crate::sleep::SleepFlag;

const CAPACITY: u32 = 2;

struct Memory {
    consumer: AtomicU32,
    backlog: AtomicU32,
    sleeping: AtomicU32,
    stamps: [AtomicU32; CAPACITY as usize],
    /// The first word of a message and the last one.
    slots: [UnsafeCell<[u64; 2]>; CAPACITY as usize],
}

#[derive(Clone)]
pub(crate) struct ModelRing(Arc<Memory>);

// SAFETY: loom's cells check every access of the model.
unsafe impl Send for ModelRing {}
// SAFETY: as above.
unsafe impl Sync for ModelRing {}

impl ModelRing {
    pub(crate) fn new() -> ModelRing {
        ModelRing(Arc::new(Memory {
            consumer: AtomicU32::new(0),
            backlog: AtomicU32::new(0),
            sleeping: AtomicU32::new(0),
            stamps: [AtomicU32::new(0), AtomicU32::new(0)],
            slots: [UnsafeCell::new([0; 2]), UnsafeCell::new([0; 2])],
        }))
    }

    fn ends() -> (Producer<ModelRing>, Consumer<ModelRing>) {
        let ring = ModelRing::new();
        (Producer::new(ring.clone()), Consumer::new(ring))
    }

    /// The word of the consumer's sleep flag.
    pub(crate) fn sleeping(&self) -> &AtomicU32 {
        &self.0.sleeping
    }
}

impl RingMemory for ModelRing {
    type Word = AtomicU32;

    fn capacity(&self) -> u32 {
        CAPACITY
    }
    fn consumer_position(&self) -> &AtomicU32 {
        &self.0.consumer
    }
    fn backlog(&self) -> &AtomicU32 {
        &self.0.backlog
    }
    fn write_slot(&self, slot: u32, stamp: u32, message: &Message, below: u32) {
        // SAFETY: loom checks that nobody else is in the slot.
        self.0.slots[(slot % CAPACITY) as usize]
            .with_mut(|slot| unsafe { *slot = [message[0], u64::from(below)] });
        self.0.stamps[(slot % CAPACITY) as usize].store(stamp, Ordering::Release);
    }
    fn stamp(&self, slot: u32) -> u32 {
        self.0.stamps[(slot % CAPACITY) as usize].load(Ordering::Acquire)
    }
    fn read_slot(&self, slot: u32, wanted: u32, message: &mut Message) -> u32 {
        let stamp = self.stamp(slot);
        if stamp == wanted {
            // SAFETY: loom checks that nobody writes the slot.
            [message[0], message[7]] =
                self.0.slots[(slot % CAPACITY) as usize].with(|slot| unsafe { *slot });
        }
        stamp
    }
}

pub(crate) fn message(number: u64) -> Message {
    [number, 0, 0, 0, 0, 0, 0, 0]
}

#[test]
fn loom_ring_publishes_and_consumes() {
    loom::model(|| {
        let (mut producer, mut consumer) = ModelRing::ends();
        let sender = loom::thread::spawn(move || {
            let mut sent = 0;
            for number in 1..=3 {
                if !producer.push(&message(number)) {
                    break;
                }
                sent += 1;
            }
            sent
        });
        let mut next = 1;
        for _ in 0..2 {
            if let Some(got) = consumer.pop() {
                assert_eq!(got[0], next);
                next += 1;
            }
        }
        let sent = sender.join().unwrap();
        while let Some(got) = consumer.pop() {
            assert_eq!(got[0], next);
            next += 1;
        }
        assert_eq!(next - 1, sent);
        assert!(!consumer.is_corrupt());
    });
}

#[test]
fn loom_backlog_is_never_forgotten() {
    loom::model(|| {
        let (mut producer, mut consumer) = ModelRing::ends();
        assert_eq!(producer.push_burst(&[message(1), message(2)]), 2);
        let sender = loom::thread::spawn(move || {
            // One more message finds no room: either it is marked as waiting, or it goes out.
            if producer.push(&message(3)) {
                return false;
            }
            producer.mark_backlog()
        });
        let mut drained = false;
        for _ in 0..2 {
            assert!(consumer.pop().is_some());
        }
        if consumer.pop().is_none() {
            drained = consumer.take_backlog();
        }
        let marked = sender.join().unwrap();
        // What was marked is reported by the look after the last message.
        assert!(!marked || drained);
    });
}

#[test]
fn loom_ready_coalescing_loses_no_state() {
    loom::model(|| {
        let (mut producer, mut consumer) = ModelRing::ends();
        let state = Arc::new(AtomicU32::new(1));
        let position = producer.position();
        assert!(producer.push(&message(7)));
        let service_state = Arc::clone(&state);
        let service = loom::thread::spawn(move || {
            service_state.store(2, Ordering::Relaxed);
            // Not queued again while the first one is still to be taken.
            if !producer.is_pending(position) {
                assert!(producer.push(&message(7)));
                return true;
            }
            false
        });
        let mut out = [[0; 8]];
        assert_eq!(consumer.pop_burst_fenced(&mut out), 1);
        let seen = state.load(Ordering::Relaxed);
        let again = service.join().unwrap();
        // The application has seen the new state, or there is another message for it.
        assert!(seen == 2 || again);
    });
}

#[test]
fn loom_sleeping_consumer_is_rung() {
    loom::model(|| {
        let (mut producer, mut consumer) = ModelRing::ends();
        let sender = loom::thread::spawn(move || {
            assert!(producer.push(&message(1)));
            SleepFlag::new(producer.memory.sleeping()).must_wake()
        });
        SleepFlag::new(consumer.memory.sleeping()).prepare_sleep();
        let sleeps = consumer.is_empty();
        let rung = sender.join().unwrap();
        // The last look found the message, or the producer saw the announcement.
        assert!(rung || !sleeps);
        assert!(consumer.pop().is_some() && !consumer.is_corrupt());
    });
}

#[test]
fn loom_slots_are_used_again_only_when_read() {
    loom::model(|| {
        let (mut producer, mut consumer) = ModelRing::ends();
        assert_eq!(producer.push_burst(&[message(1), message(2)]), 2);
        let sender = loom::thread::spawn(move || {
            // Into the slots of the first two, as far as those have been taken.
            producer.push_burst(&[message(3), message(4)])
        });
        let mut out = [[0; 8]; 3];
        let count = consumer.pop_burst(&mut out);
        let numbers: Vec<u64> = out[..count].iter().map(|got| got[0]).collect();
        assert_eq!(numbers, [1, 2, 3][..count], "in order, and nothing twice");
        let sent = sender.join().unwrap();
        let mut next = count as u64 + 1;
        while let Some(got) = consumer.pop() {
            assert_eq!(got[0], next);
            next += 1;
        }
        assert_eq!(next, 3 + sent as u64);
        assert!(!consumer.is_corrupt());
    });
}
