//! A ring of 64-byte messages in shared memory: one producer, one consumer, either of which may be
//! the untrusted side. Used for requests (application to service), offers and watcher events
//! (service to application); `channel` says where each lies.
//!
//! ```text
//! line 0, written by the producer:  position u32, backlog u32
//! line 1, written by the consumer:  position u32, sleep flag u32 (the producer swaps it to 0)
//! line 2...                         the messages, a cache line each
//! ```
//!
//! Positions run freely and wrap; message `p` lies in slot `p % capacity`. The producer writes the
//! slot, then stores its position with release; the consumer loads it with acquire, copies the
//! slot, then stores its own position with release, which the producer loads with acquire before it
//! uses the slot again. Each side keeps its own position privately and never reads it back, and looks at
//! the other's only when its cached copy says full or empty. A position that cannot be right marks
//! the ring corrupt: it delivers nothing more, and the caller drops the peer.
//!
//! READY coalescing: the service writes a socket's state, fences, and reads how far the consumer is
//! ([`Producer::is_pending`]); the application publishes how far it is, fences
//! ([`Consumer::pop_burst`] does both), and then reads the socket's state. One of the two sees the
//! other, so a message that is still queued never needs a second one behind it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use crate::messages::Message;
use crate::segment::{Segment, SharedLayout};
use crate::sleep::SleepFlag;
use crate::sync::Word;

/// Bytes of a ring before its first message.
pub const RING_HEADER: usize = 128;

/// Bytes of a ring of `capacity` messages.
pub const fn ring_size(capacity: u32) -> usize {
    RING_HEADER + capacity as usize * core::mem::size_of::<Message>()
}

/// What the ring logic needs of the memory a ring lies in: shared memory in the product, loom's in
/// the models.
pub trait RingMemory {
    /// The atomic words of that memory.
    type Word: Word;
    /// Messages; a power of two.
    fn capacity(&self) -> u32;
    /// The producer's position.
    fn producer_position(&self) -> &Self::Word;
    /// The consumer's position.
    fn consumer_position(&self) -> &Self::Word;
    /// Whether the producer holds messages that found no room.
    fn backlog(&self) -> &Self::Word;
    /// Writes the slot of a position.
    fn write_slot(&self, position: u32, message: &Message);
    /// Copies the slot of a position.
    fn read_slot(&self, position: u32) -> Message;
}

#[repr(C, align(64))]
struct HeaderLayout {
    producer_position: AtomicU32,
    backlog: AtomicU32,
    _producer_rest: [AtomicU64; 7],
    consumer_position: AtomicU32,
    sleeping: AtomicU32,
    _consumer_rest: [AtomicU64; 7],
}

const _: () = {
    assert!(core::mem::size_of::<HeaderLayout>() == RING_HEADER);
    assert!(core::mem::offset_of!(HeaderLayout, consumer_position) == 64);
    assert!(core::mem::size_of::<Message>() == 64);
};

// SAFETY: `repr(C)`, atomics only.
unsafe impl SharedLayout for HeaderLayout {}

#[repr(C, align(64))]
struct SlotLayout([AtomicU64; 8]);

// SAFETY: `repr(C)`, atomics only.
unsafe impl SharedLayout for SlotLayout {}

/// A ring in a [`Segment`].
#[derive(Clone, Debug)]
pub struct SharedRing {
    segment: Arc<Segment>,
    offset: usize,
    capacity: u32,
}

impl SharedRing {
    /// The ring of `capacity` messages (a power of two) at `offset` (a multiple of 64); `None` if
    /// it does not lie wholly inside the segment.
    pub fn new(segment: Arc<Segment>, offset: usize, capacity: u32) -> Option<SharedRing> {
        let end = offset.checked_add(ring_size(capacity))?;
        let fits = end <= segment.len() && offset.is_multiple_of(64);
        (fits && capacity.is_power_of_two()).then_some(SharedRing { segment, offset, capacity })
    }

    /// Sets both positions and flags to zero. Only while nobody else uses the ring.
    pub fn reset(&self) {
        let header = self.header();
        header.producer_position.store(0, Ordering::Relaxed);
        header.backlog.store(0, Ordering::Relaxed);
        header.sleeping.store(0, Ordering::Relaxed);
        header.consumer_position.store(0, Ordering::Release);
    }

    #[inline]
    fn header(&self) -> &HeaderLayout {
        // `new` checked that the whole ring fits.
        self.segment.view(self.offset).expect("the ring lies inside its segment")
    }

    #[inline]
    fn slot(&self, position: u32) -> &SlotLayout {
        let index = (position & (self.capacity - 1)) as usize;
        let offset = self.offset + RING_HEADER + index * core::mem::size_of::<Message>();
        // `new` checked that the whole ring fits.
        self.segment.view(offset).expect("the ring lies inside its segment")
    }

    fn sleep_flag(&self) -> SleepFlag<'_> {
        SleepFlag::new(&self.header().sleeping)
    }
}

impl RingMemory for SharedRing {
    type Word = AtomicU32;

    #[inline]
    fn capacity(&self) -> u32 {
        self.capacity
    }
    #[inline]
    fn producer_position(&self) -> &AtomicU32 {
        &self.header().producer_position
    }
    #[inline]
    fn consumer_position(&self) -> &AtomicU32 {
        &self.header().consumer_position
    }
    #[inline]
    fn backlog(&self) -> &AtomicU32 {
        &self.header().backlog
    }
    #[inline]
    fn write_slot(&self, position: u32, message: &Message) {
        for (word, value) in self.slot(position).0.iter().zip(message) {
            word.store(*value, Ordering::Relaxed);
        }
    }
    #[inline]
    fn read_slot(&self, position: u32) -> Message {
        let slot = self.slot(position);
        core::array::from_fn(|index| slot.0[index].load(Ordering::Relaxed))
    }
}

/// The sending end of a ring.
#[derive(Debug)]
pub struct Producer<M: RingMemory = SharedRing> {
    memory: M,
    position: u32,
    consumed: u32,
    corrupt: bool,
}

impl<M: RingMemory> Producer<M> {
    /// The sending end of a ring that nothing has been sent on (both positions 0).
    pub fn new(memory: M) -> Self {
        Producer { memory, position: 0, consumed: 0, corrupt: false }
    }

    /// The sending end of a ring in use, going on where the last producer stopped. For the trusting
    /// side only: it believes the shared position.
    pub fn resume(memory: M) -> Self {
        let position = memory.producer_position().load(Ordering::Relaxed);
        let consumed = memory.consumer_position().load(Ordering::Acquire);
        let corrupt = position.wrapping_sub(consumed) > memory.capacity();
        Producer { memory, position, consumed, corrupt }
    }

    /// Sends a message. False: the ring is full, or corrupt.
    #[inline]
    pub fn push(&mut self, message: &Message) -> bool {
        self.push_burst(core::slice::from_ref(message)) == 1
    }

    /// Sends as many messages from the front as there is room for, published at once; returns how
    /// many.
    #[inline]
    pub fn push_burst(&mut self, messages: &[Message]) -> usize {
        let capacity = self.memory.capacity();
        let wanted = messages.len().min(capacity as usize) as u32;
        if capacity - self.position.wrapping_sub(self.consumed) < wanted {
            self.refresh();
        }
        let room = capacity - self.position.wrapping_sub(self.consumed);
        let count = if self.corrupt { 0 } else { wanted.min(room) };
        for (index, message) in messages.iter().take(count as usize).enumerate() {
            self.memory.write_slot(self.position.wrapping_add(index as u32), message);
        }
        if count > 0 {
            self.position = self.position.wrapping_add(count);
            self.memory.producer_position().store(self.position, Ordering::Release);
        }
        count as usize
    }

    /// Looks at the consumer's position; keeps the old one if it cannot be right.
    fn refresh(&mut self) {
        let consumed = self.memory.consumer_position().load(Ordering::Acquire);
        // The consumer may only move forwards, and not past us.
        if consumed.wrapping_sub(self.consumed) > self.position.wrapping_sub(self.consumed) {
            self.corrupt = true;
        } else {
            self.consumed = consumed;
        }
    }

    /// Messages there is room for, looked up now.
    pub fn free(&mut self) -> u32 {
        self.refresh();
        self.memory.capacity() - self.position.wrapping_sub(self.consumed)
    }

    /// How many messages have been sent in all, wrapping; a message's own position is the value
    /// before its push.
    pub fn position(&self) -> u32 {
        self.position
    }

    /// Messages that the consumer has not taken yet, looked up now.
    pub fn queued(&mut self) -> u32 {
        self.refresh();
        self.position.wrapping_sub(self.consumed)
    }

    /// How many messages the consumer has taken in all, wrapping: read now, after a fence that puts
    /// everything written before ahead of the read.
    pub fn consumed_position(&mut self) -> u32 {
        M::Word::fence();
        self.refresh();
        self.consumed
    }

    /// Whether the message sent at `position` is still in the ring, so that the consumer will look
    /// at everything that was written before this call when it takes it.
    pub fn is_pending(&mut self, position: u32) -> bool {
        let consumed = self.consumed_position();
        let queued = self.position.wrapping_sub(consumed);
        !self.corrupt && position.wrapping_sub(consumed) < queued
    }

    /// Tells the consumer that messages wait outside the ring because it was full, so that it
    /// reports when it has drained it. False: there is room again, and the caller goes on pushing.
    pub fn mark_backlog(&mut self) -> bool {
        self.memory.backlog().store(1, Ordering::Relaxed);
        // Against `take_backlog`: either it sees the mark, or we see the room that it has made.
        M::Word::fence();
        if self.free() > 0 && !self.corrupt {
            self.memory.backlog().store(0, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// The consumer has written an impossible position.
    pub fn is_corrupt(&self) -> bool {
        self.corrupt
    }
}

impl Producer<SharedRing> {
    /// After a push: true if the consumer sleeps and must be rung.
    #[inline]
    pub fn must_wake(&self) -> bool {
        self.memory.sleep_flag().must_wake()
    }
}

/// The receiving end of a ring.
#[derive(Debug)]
pub struct Consumer<M: RingMemory = SharedRing> {
    memory: M,
    position: u32,
    produced: u32,
    corrupt: bool,
}

impl<M: RingMemory> Consumer<M> {
    /// The receiving end of a ring that nothing has been taken from (consumer position 0).
    pub fn new(memory: M) -> Self {
        Consumer { memory, position: 0, produced: 0, corrupt: false }
    }

    /// The receiving end of a ring in use, going on where the last consumer stopped. For the
    /// trusting side only: it believes the shared position.
    pub fn resume(memory: M) -> Self {
        let position = memory.consumer_position().load(Ordering::Relaxed);
        Consumer { memory, position, produced: position, corrupt: false }
    }

    /// Takes a message. `None`: the ring is empty, or corrupt.
    #[inline]
    pub fn pop(&mut self) -> Option<Message> {
        if !self.refresh() {
            return None;
        }
        let message = self.memory.read_slot(self.position);
        self.position = self.position.wrapping_add(1);
        self.memory.consumer_position().store(self.position, Ordering::Release);
        Some(message)
    }

    /// Takes up to `out.len()` messages, publishes that they are taken, and fences: what the
    /// messages are about may be read after this call. Returns how many.
    #[inline]
    pub fn pop_burst(&mut self, out: &mut [Message]) -> usize {
        if !self.refresh() {
            return 0;
        }
        let queued = self.produced.wrapping_sub(self.position) as usize;
        let count = queued.min(out.len());
        for (index, place) in out.iter_mut().take(count).enumerate() {
            *place = self.memory.read_slot(self.position.wrapping_add(index as u32));
        }
        self.position = self.position.wrapping_add(count as u32);
        self.memory.consumer_position().store(self.position, Ordering::Release);
        M::Word::fence();
        count
    }

    /// Looks at the producer's position if nothing is known to be queued. False: empty or corrupt.
    #[inline]
    fn refresh(&mut self) -> bool {
        if self.produced == self.position && !self.corrupt {
            let produced = self.memory.producer_position().load(Ordering::Acquire);
            if produced.wrapping_sub(self.position) > self.memory.capacity() {
                self.corrupt = true;
            } else {
                self.produced = produced;
            }
        }
        self.produced != self.position && !self.corrupt
    }

    /// Whether there is nothing to take.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        !self.refresh()
    }

    /// How many messages have been taken in all, wrapping.
    pub fn position(&self) -> u32 {
        self.position
    }

    /// After the ring was found empty: true, once, if the producer holds messages that found no
    /// room. The consumer then tells it that it has drained the ring.
    pub fn take_backlog(&mut self) -> bool {
        // Against `mark_backlog`.
        M::Word::fence();
        let backlog = self.memory.backlog();
        backlog.load(Ordering::Relaxed) != 0 && backlog.swap(0, Ordering::Relaxed) != 0
    }

    /// The producer has written an impossible position.
    pub fn is_corrupt(&self) -> bool {
        self.corrupt
    }
}

impl Consumer<SharedRing> {
    /// Announces sleep: the producer will ring. Look at the ring once more, then sleep if it is
    /// empty.
    pub fn prepare_sleep(&self) {
        self.memory.sleep_flag().prepare_sleep();
    }

    /// Takes the announcement back; also after a sleep.
    pub fn awake(&self) {
        self.memory.sleep_flag().awake();
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
