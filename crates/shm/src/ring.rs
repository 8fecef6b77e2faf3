//! A ring of 64-byte messages in shared memory: one producer, one consumer, either of which may be
//! the untrusted side. Used for requests (application to service), offers and watcher events
//! (service to application); `channel` says where each lies. Between servers the same memory is
//! used in another order: `dialogue`.
//!
//! ```text
//! line 0, written by the producer:  backlog u32
//! line 1, written by the consumer:  position u32, sleep flag u32 (the producer swaps it to 0)
//! line 2...                         the messages, a cache line each, stamped
//! ```
//!
//! Positions run freely and wrap; message `p` lies in slot `p % capacity`. A slot says itself which
//! message it holds: the upper half of its last word is the *stamp*, one more than the message's
//! position. The producer writes the other words, then the last one with release; the consumer loads
//! that with acquire and, if the stamp is the one it waits for, copies the slot. So one cache line
//! moves for a message, the one that the consumer was looking at already (decision 0014).
//!
//! The consumer stores its position with release once it has copied, and the producer loads it with
//! acquire before it uses the slot again; it looks only when what it remembers says full. Each side
//! keeps its own position privately and never reads it back. A position or a stamp that cannot be
//! right marks the ring corrupt: it delivers nothing more, and the caller drops the peer. Whatever
//! the other side writes, nothing but its own slots is read, and no more of them than was asked for.
//!
//! READY coalescing: the service writes a socket's state, fences, and reads how far the consumer is
//! ([`Producer::is_pending`]); the application publishes how far it is, fences
//! ([`Consumer::pop_burst_fenced`] does both), and then reads the socket's state. One of the two sees
//! the other, so a message that is still queued never needs a second one behind it.

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
    /// The consumer's position.
    fn consumer_position(&self) -> &Self::Word;
    /// Whether the producer holds messages that found no room.
    fn backlog(&self) -> &Self::Word;
    /// Writes a slot (its number modulo the capacity): all words of the message but the last one, then
    /// the stamp with `below` in its other half, with release.
    fn write_slot(&self, slot: u32, stamp: u32, message: &Message, below: u32);
    /// The stamp of a slot, with acquire.
    fn stamp(&self, slot: u32) -> u32;
    /// Copies a slot, without its stamp, if it has the stamp that is wanted. Returns the stamp that
    /// it has.
    fn read_slot(&self, slot: u32, wanted: u32, message: &mut Message) -> u32;
}

/// The stamp of the message at a position. 0, which is what a slot reads before its first message, is
/// the stamp of a position that comes when all slots have been written for long.
#[inline]
pub(crate) fn stamp_of(position: u32) -> u32 {
    position.wrapping_add(1)
}

/// Where in the last word of a slot the stamp is; what is below is the message's.
const STAMP_SHIFT: u32 = 32;
/// The part of the last word that is the message's.
const LAST_WORD: u64 = (1 << STAMP_SHIFT) - 1;

#[repr(C, align(64))]
struct HeaderLayout {
    backlog: AtomicU32,
    _unused: AtomicU32,
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

    /// Takes an announced sleep back: for a ring that gets a new consumer.
    pub fn clear_sleep(&self) {
        self.sleep_flag().awake();
    }

    #[inline]
    fn header(&self) -> &HeaderLayout {
        // SAFETY: `new` checked that the offset is a multiple of 64 and that the whole ring fits.
        unsafe { self.segment.view_unchecked(self.offset) }
    }

    #[inline]
    fn slot(&self, slot: u32) -> &SlotLayout {
        let index = (slot & (self.capacity - 1)) as usize;
        let offset = self.offset + RING_HEADER + index * core::mem::size_of::<Message>();
        // SAFETY: as above; the mask keeps the index below the capacity, a power of two.
        unsafe { self.segment.view_unchecked(offset) }
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
    fn consumer_position(&self) -> &AtomicU32 {
        &self.header().consumer_position
    }
    #[inline]
    fn backlog(&self) -> &AtomicU32 {
        &self.header().backlog
    }
    #[inline]
    fn write_slot(&self, slot: u32, stamp: u32, message: &Message, below: u32) {
        let ([words @ .., last_word], [values @ .., _]) = (&self.slot(slot).0, message);
        for (word, value) in words.iter().zip(values) {
            word.store(*value, Ordering::Relaxed);
        }
        last_word.store(u64::from(stamp) << STAMP_SHIFT | u64::from(below), Ordering::Release);
    }
    #[inline]
    fn stamp(&self, slot: u32) -> u32 {
        (self.slot(slot).0[7].load(Ordering::Acquire) >> STAMP_SHIFT) as u32
    }
    #[inline]
    fn read_slot(&self, slot: u32, wanted: u32, message: &mut Message) -> u32 {
        let [words @ .., last_word] = &self.slot(slot).0;
        let last = last_word.load(Ordering::Acquire);
        let stamp = (last >> STAMP_SHIFT) as u32;
        if stamp == wanted {
            let [values @ .., last_value] = message;
            for (value, word) in values.iter_mut().zip(words) {
                *value = word.load(Ordering::Relaxed);
            }
            *last_value = last & LAST_WORD;
        }
        stamp
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
    /// The sending end of a ring that nothing has been sent on.
    pub fn new(memory: M) -> Self {
        Producer { memory, position: 0, consumed: 0, corrupt: false }
    }

    /// The sending end of a ring that was in use up to `position` (0: never was), emptied for a new
    /// consumer. Only while nobody else uses the ring. What was sent before keeps stamps that no
    /// message will have again, so that the slots need not be cleared.
    pub fn restart(memory: M, position: u32) -> Self {
        memory.backlog().store(0, Ordering::Relaxed);
        memory.consumer_position().store(position, Ordering::Release);
        Producer { memory, position, consumed: position, corrupt: false }
    }

    /// Sends a message. False: the ring is full, or corrupt.
    #[inline]
    pub fn push(&mut self, message: &Message) -> bool {
        self.push_burst(core::slice::from_ref(message)) == 1
    }

    /// Sends as many messages from the front as there is room for; returns how many. The upper half
    /// of a message's last word is not sent ([`Message`]).
    #[inline]
    pub fn push_burst(&mut self, messages: &[Message]) -> usize {
        let capacity = self.memory.capacity();
        let wanted = messages.len().min(capacity as usize) as u32;
        if capacity - self.position.wrapping_sub(self.consumed) < wanted {
            self.refresh();
        }
        let room = capacity - self.position.wrapping_sub(self.consumed);
        let count = if self.corrupt { 0 } else { wanted.min(room) };
        for message in messages.iter().take(count as usize) {
            let stamp = stamp_of(self.position);
            self.memory.write_slot(self.position, stamp, message, message[7] as u32);
            self.position = self.position.wrapping_add(1);
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
    corrupt: bool,
}

impl<M: RingMemory> Consumer<M> {
    /// The receiving end of a ring that nothing has been taken from (consumer position 0).
    pub fn new(memory: M) -> Self {
        Consumer { memory, position: 0, corrupt: false }
    }

    /// The receiving end of a ring in use, going on where the last consumer stopped, or where the
    /// producer restarted it. For the trusting side only: it believes the shared position.
    pub fn resume(memory: M) -> Self {
        let position = memory.consumer_position().load(Ordering::Relaxed);
        Consumer { memory, position, corrupt: false }
    }

    /// Takes a message. `None`: the ring is empty, or corrupt.
    #[inline]
    pub fn pop(&mut self) -> Option<Message> {
        let mut message = [Message::default()];
        (self.pop_burst(&mut message) == 1).then_some(message[0])
    }

    /// Takes up to `out.len()` messages and publishes that they are taken. Returns how many.
    #[inline]
    pub fn pop_burst(&mut self, out: &mut [Message]) -> usize {
        let mut count = 0;
        for place in out {
            let wanted = stamp_of(self.position);
            let stamp = self.memory.read_slot(self.position, wanted, place);
            if !self.is_next(stamp) {
                break;
            }
            self.position = self.position.wrapping_add(1);
            count += 1;
        }
        if count > 0 {
            self.memory.consumer_position().store(self.position, Ordering::Release);
        }
        count
    }

    /// As [`Consumer::pop_burst`], and fences if there was something: the present state of what the
    /// messages are about may be read after this call, where the producer goes by
    /// [`Producer::is_pending`].
    #[inline]
    pub fn pop_burst_fenced(&mut self, out: &mut [Message]) -> usize {
        let count = self.pop_burst(out);
        if count > 0 {
            M::Word::fence();
        }
        count
    }

    /// Whether the next slot, with this stamp, holds the next message. False: empty or corrupt.
    #[inline]
    fn is_next(&mut self, stamp: u32) -> bool {
        let behind = stamp_of(self.position).wrapping_sub(stamp);
        // Otherwise the slot holds the message of one round before, or has never held any.
        if behind != 0 && behind != self.memory.capacity() && stamp != 0 {
            self.corrupt = true;
        }
        behind == 0 && !self.corrupt
    }

    /// Whether there is nothing to take.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        let stamp = self.memory.stamp(self.position);
        !self.is_next(stamp)
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

    /// The producer has written an impossible stamp.
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
pub(crate) mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
