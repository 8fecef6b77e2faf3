//! Messages between two who answer each other: a [`ring`](crate::ring) of 64-byte slots each way, of
//! which a slot is used again at once when everything before it has been taken. Made by `peer` for
//! two servers; either may be the untrusted side. Read `ring` first: memory and stamps are its own.
//!
//! A message has seven words. The lower half of the eighth is an acknowledgement: how many messages
//! its sender had taken of the other direction. Who is answered so knows, without reading a line of
//! the other's, that its slots are free. It then writes the slot that it wrote last once more, and
//! two who speak in turn move one cache line each way, always the same one, which costs what a bare
//! word costs; walking through slots costs half as much again (decision 0016).
//!
//! The slot of a message is that of the message before it, or the next one. It is the same one only
//! when all messages before it are acknowledged. So whoever has taken a message looks for the next in
//! two slots. Messages that are not acknowledged lie in slots of their own, one after the other, and
//! there are never more of them than slots.
//!
//! A slot that is not written for long could hold a stamp that comes again. The sender therefore
//! moves on at least once in [`STAY_MAX`] messages: what a slot holds is younger than capacity times
//! that. A stamp that cannot be right marks the direction corrupt, and it gives nothing more. An
//! acknowledgement of what is not outstanding is old, or a lie that harms its sender alone, and is
//! not looked at. Where nothing comes back, positions are read as in `ring`, once the slots are full.

use core::sync::atomic::Ordering;

use crate::messages::Message;
use crate::ring::{RingMemory, SharedRing, stamp_of};
use crate::sync::Word;

/// Messages in one slot, one after the other, at most; a power of two.
pub const STAY_MAX: u32 = 1 << 16;

/// One end of a dialogue.
#[derive(Debug)]
pub struct Dialogue<M: RingMemory = SharedRing> {
    tx: Sending<M>,
    rx: Receiving<M>,
}

/// The direction away.
#[derive(Debug)]
struct Sending<M> {
    memory: M,
    /// Messages sent, wrapping.
    position: u32,
    /// Of these, taken by the other side as far as known.
    acknowledged: u32,
    /// Where the last one is.
    slot: u32,
    /// The other side has written an impossible position.
    corrupt: bool,
}

/// The direction here.
#[derive(Debug)]
struct Receiving<M> {
    memory: M,
    /// Messages taken, wrapping.
    position: u32,
    /// Where the last one was.
    slot: u32,
    /// The other side has written an impossible stamp.
    corrupt: bool,
}

impl<M: RingMemory> Dialogue<M> {
    /// One end of two directions that nothing has been sent on.
    pub fn new(tx: M, rx: M) -> Self {
        Dialogue::at(tx, rx, 0, 0)
    }

    /// One end of two directions on which so many messages were sent and taken, the last ones in the
    /// slots before slot 0.
    fn at(tx: M, rx: M, sent: u32, taken: u32) -> Self {
        let slot = u32::MAX;
        Dialogue {
            tx: Sending { memory: tx, position: sent, acknowledged: sent, slot, corrupt: false },
            rx: Receiving { memory: rx, position: taken, slot, corrupt: false },
        }
    }

    /// Sends a message, of which the last word is not sent. False: there is no room, or the other
    /// side has written nonsense.
    #[inline]
    pub fn push(&mut self, message: &Message) -> bool {
        self.push_burst(core::slice::from_ref(message)) == 1
    }

    /// Sends as many messages from the front as there is room for; returns how many. The last word
    /// of a message is not sent.
    #[inline]
    pub fn push_burst(&mut self, messages: &[Message]) -> usize {
        self.tx.push_burst(messages, self.rx.position)
    }

    /// Takes a message. `None`: there is none, or the other side has written nonsense.
    #[inline]
    pub fn pop(&mut self) -> Option<Message> {
        let mut message = [Message::default()];
        (self.pop_burst(&mut message) == 1).then_some(message[0])
    }

    /// Takes up to `out.len()` messages; their last word is 0. Returns how many.
    #[inline]
    pub fn pop_burst(&mut self, out: &mut [Message]) -> usize {
        let count = self.rx.pop_burst(out);
        if let Some(last) = out[..count].last() {
            self.tx.acknowledge(last[LAST] as u32);
            out[..count].iter_mut().for_each(|message| message[LAST] = 0);
        }
        count
    }

    /// Whether there is nothing to take.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        self.rx.is_empty()
    }

    /// The other side has written what cannot be right.
    pub fn is_corrupt(&self) -> bool {
        self.tx.corrupt || self.rx.corrupt
    }
}

/// The word of a message that is the dialogue's.
const LAST: usize = 7;

impl<M: RingMemory> Sending<M> {
    #[inline]
    fn push_burst(&mut self, messages: &[Message], taken: u32) -> usize {
        let capacity = self.memory.capacity();
        let wanted = messages.len().min(capacity as usize) as u32;
        if capacity - self.outstanding() < wanted {
            self.refresh();
        }
        let room = capacity - self.outstanding();
        let count = if self.corrupt { 0 } else { wanted.min(room) };
        if count == 0 {
            return 0;
        }
        // Only the first of them can find everything taken.
        if self.outstanding() != 0 || self.position.is_multiple_of(STAY_MAX) {
            self.move_on();
        }
        for (number, message) in (0..count).zip(messages) {
            let stamp = stamp_of(self.position.wrapping_add(number));
            self.memory.write_slot(self.slot.wrapping_add(number), stamp, message, taken);
        }
        self.slot = self.slot.wrapping_add(count - 1);
        self.position = self.position.wrapping_add(count);
        count as usize
    }

    /// To the next slot. A call, so that compilers make a jump of the choice, which is foreseen,
    /// instead of computing the slot from the acknowledgement: the processor could not fetch the
    /// slot before the message that is answered is there, and all would be lost (decision 0016).
    #[inline(never)]
    fn move_on(&mut self) {
        self.slot = self.slot.wrapping_add(1);
    }

    /// Messages not taken as far as known; never more than slots.
    #[inline]
    fn outstanding(&self) -> u32 {
        self.position.wrapping_sub(self.acknowledged)
    }

    /// The other side says that it has taken so many.
    #[inline]
    fn acknowledge(&mut self, taken: u32) {
        if taken.wrapping_sub(self.acknowledged) <= self.outstanding() {
            self.acknowledged = taken;
        }
    }

    /// Looks at the other side's position, because nothing has come back for long.
    fn refresh(&mut self) {
        let taken = self.memory.consumer_position().load(Ordering::Acquire);
        // It may only move forwards, and not past us.
        if taken.wrapping_sub(self.acknowledged) > self.outstanding() {
            self.corrupt = true;
        } else {
            self.acknowledged = taken;
        }
    }
}

impl<M: RingMemory> Receiving<M> {
    #[inline]
    fn pop_burst(&mut self, out: &mut [Message]) -> usize {
        let mut count = 0;
        for place in out {
            // What follows in a burst was sent before we could acknowledge the one before it.
            if count > 0 || !self.take(self.slot, place) {
                let next = self.slot.wrapping_add(1);
                if !self.take(next, place) {
                    break;
                }
                self.slot = next;
            }
            self.position = self.position.wrapping_add(1);
            count += 1;
        }
        if count > 0 {
            self.memory.consumer_position().store(self.position, Ordering::Release);
        }
        count
    }

    /// Copies the next message if it is in this slot. False: not yet, or corrupt.
    #[inline]
    fn take(&mut self, slot: u32, place: &mut Message) -> bool {
        let wanted = stamp_of(self.position);
        let stamp = self.memory.read_slot(slot, wanted, place);
        if stamp == wanted {
            return !self.corrupt;
        }
        self.check(stamp);
        false
    }

    #[inline]
    fn is_empty(&mut self) -> bool {
        let wanted = stamp_of(self.position);
        [self.slot, self.slot.wrapping_add(1)].into_iter().all(|slot| {
            let stamp = self.memory.stamp(slot);
            self.check(stamp);
            stamp != wanted || self.corrupt
        })
    }

    /// Looks whether a stamp can be right that is not the one of the next message.
    #[inline]
    fn check(&mut self, stamp: u32) {
        let behind = stamp_of(self.position).wrapping_sub(stamp);
        // One that comes later may be there first: in the next slot, when the next one comes to the
        // same slot just after we looked there; and in the same slot, a round ahead.
        let capacity = self.memory.capacity();
        if behind > capacity * STAY_MAX && behind < capacity.wrapping_neg() {
            self.corrupt = true;
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
