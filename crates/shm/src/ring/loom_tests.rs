//! Loom models of the ring: publish and consume, backlog, READY coalescing. The slots are loom
//! cells, so that any access that is not ordered by the positions fails the model.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};

use super::{Consumer, Producer, RingMemory};
use crate::messages::Message;

const CAPACITY: u32 = 2;

struct Memory {
    producer: AtomicU32,
    consumer: AtomicU32,
    backlog: AtomicU32,
    slots: [UnsafeCell<u64>; CAPACITY as usize],
}

#[derive(Clone)]
struct ModelRing(Arc<Memory>);

// SAFETY: loom's cells check every access of the model.
unsafe impl Send for ModelRing {}
// SAFETY: as above.
unsafe impl Sync for ModelRing {}

impl ModelRing {
    fn ends() -> (Producer<ModelRing>, Consumer<ModelRing>) {
        let ring = ModelRing(Arc::new(Memory {
            producer: AtomicU32::new(0),
            consumer: AtomicU32::new(0),
            backlog: AtomicU32::new(0),
            slots: [UnsafeCell::new(0), UnsafeCell::new(0)],
        }));
        (Producer::new(ring.clone()), Consumer::new(ring))
    }
}

impl RingMemory for ModelRing {
    type Word = AtomicU32;

    fn capacity(&self) -> u32 {
        CAPACITY
    }
    fn producer_position(&self) -> &AtomicU32 {
        &self.0.producer
    }
    fn consumer_position(&self) -> &AtomicU32 {
        &self.0.consumer
    }
    fn backlog(&self) -> &AtomicU32 {
        &self.0.backlog
    }
    fn write_slot(&self, position: u32, message: &Message) {
        // SAFETY: loom checks that nobody else is in the slot.
        self.0.slots[(position % CAPACITY) as usize].with_mut(|slot| unsafe { *slot = message[0] });
    }
    fn read_slot(&self, position: u32) -> Message {
        // SAFETY: loom checks that nobody writes the slot.
        let first = self.0.slots[(position % CAPACITY) as usize].with(|slot| unsafe { *slot });
        [first, 0, 0, 0, 0, 0, 0, 0]
    }
}

fn message(number: u64) -> Message {
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
        assert_eq!(consumer.pop_burst(&mut out), 1);
        let seen = state.load(Ordering::Relaxed);
        let again = service.join().unwrap();
        // The application has seen the new state, or there is another message for it.
        assert!(seen == 2 || again);
    });
}
