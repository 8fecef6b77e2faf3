//! A hierarchical timer wheel in flat arrays: one timer for each small index, all steps O(1).
//!
//! Four levels of 256 slots over ticks of 256 us: 65 ms, 17 s, 72 minutes, 12.7 days; later
//! deadlines wait in the last slot and are looked at again. A timer never fires early, and at most
//! one tick late. Moving a deadline later only stores it (a retransmission timer is moved with
//! every ACK); the entry is put in its new place when its old slot comes up. The shard keeps one
//! wheel for connections and one for neighbours.
//!
//! ```text
//!  level 3 [ ][ ]..   each slot 4.7 h ---+  when the tick reaches a slot of an upper level,
//!  level 2 [ ][ ]..   each slot 16.8 s --+  its entries move down (a few in each call)
//!  level 1 [ ][ ]..   each slot 65.5 ms -+
//!  level 0 [ ][ ]..   each slot 256 us    -> due
//! ```

use crate::time::Instant;

const TICK_BITS: u32 = 8;
const SLOT_BITS: u32 = 8;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 4;
/// Ticks that the wheel spans, less one level-3 slot, so that a slot never meets its own past.
const HORIZON: u64 = (SLOTS as u64 - 1) << (SLOT_BITS * 3);
const NONE: u32 = u32::MAX;
const UNARMED: u16 = u16::MAX;
const WORDS: usize = SLOTS / 64;

/// One timer.
#[derive(Copy, Clone, Debug)]
struct Entry {
    deadline: Instant,
    previous: u32,
    next: u32,
    /// Slot number over all levels, or [`UNARMED`].
    slot: u16,
}

const IDLE: Entry =
    Entry { deadline: Instant::from_us(0), previous: NONE, next: NONE, slot: UNARMED };

/// The wheel.
#[derive(Debug)]
pub struct TimerWheel {
    entries: Vec<Entry>,
    heads: Vec<u32>,
    occupied: [[u64; WORDS]; LEVELS],
    /// All earlier ticks are done.
    tick: u64,
    armed: usize,
}

impl TimerWheel {
    /// An empty wheel that starts at `now`.
    pub fn new(now: Instant) -> TimerWheel {
        TimerWheel {
            entries: Vec::new(),
            heads: vec![NONE; SLOTS * LEVELS],
            occupied: [[0; WORDS]; LEVELS],
            tick: now.us() >> TICK_BITS,
            armed: 0,
        }
    }

    /// Sets the timer of `key`, or moves it.
    pub fn schedule(&mut self, key: u32, deadline: Instant) {
        let at = key as usize;
        if at >= self.entries.len() {
            self.entries.resize(at + 1, IDLE);
        }
        let entry = &mut self.entries[at];
        if entry.slot != UNARMED {
            let later = deadline >= entry.deadline;
            entry.deadline = deadline;
            if later {
                return;
            }
            self.unlink(key);
        }
        self.entries[at].deadline = deadline;
        self.link(key);
    }

    /// Stops the timer of `key`, if it runs.
    pub fn cancel(&mut self, key: u32) {
        if self.entries.get(key as usize).is_some_and(|entry| entry.slot != UNARMED) {
            self.unlink(key);
        }
    }

    /// When the timer of `key` is due.
    pub fn deadline(&self, key: u32) -> Option<Instant> {
        let entry = self.entries.get(key as usize)?;
        (entry.slot != UNARMED).then_some(entry.deadline)
    }

    /// When [`TimerWheel::expire`] has something to do; never later than the earliest deadline
    /// plus one tick, possibly earlier than any.
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.armed == 0 {
            return None;
        }
        let tick =
            if self.work_at_current_tick().is_some() { self.tick } else { self.next_tick()? };
        Some(Instant::from_us(tick << TICK_BITS))
    }

    /// Takes out timers that are due, in order of their ticks, and appends their keys to `due`.
    /// Touches at most `budget` entries; returns whether work is left for this `now`.
    pub fn expire(&mut self, now: Instant, budget: usize, due: &mut Vec<u32>) -> bool {
        let now_tick = now.us() >> TICK_BITS;
        if now_tick < self.tick {
            return false;
        }
        let mut left = budget;
        loop {
            while let Some(slot) = self.work_at_current_tick() {
                if left == 0 {
                    return true;
                }
                left -= 1;
                self.step(self.heads[slot], due);
            }
            if self.tick == now_tick {
                return false;
            }
            self.tick = match self.next_tick() {
                Some(next) if self.armed > 0 => next.min(now_tick),
                _ => now_tick,
            };
        }
    }

    /// Takes one entry out of its slot: it is due, or moves to a lower level or a later slot.
    fn step(&mut self, key: u32, due: &mut Vec<u32>) {
        self.unlink(key);
        if due_tick(self.entries[key as usize].deadline) <= self.tick {
            due.push(key);
        } else {
            self.link(key);
        }
    }

    /// A slot that has to be emptied before the current tick is done: upper levels first.
    fn work_at_current_tick(&self) -> Option<usize> {
        for level in (0..LEVELS).rev() {
            let shift = SLOT_BITS * level as u32;
            if self.tick & ((1 << shift) - 1) != 0 {
                continue;
            }
            let slot = (self.tick >> shift) as usize % SLOTS;
            if self.occupied[level][slot / 64] & (1 << (slot % 64)) != 0 {
                return Some(level * SLOTS + slot);
            }
        }
        None
    }

    /// The next tick after the current one at which a slot has to be emptied.
    fn next_tick(&self) -> Option<u64> {
        let next_of_level = |level: usize| {
            let shift = SLOT_BITS * level as u32;
            let position = self.tick >> shift;
            let distance = next_occupied(&self.occupied[level], position as usize % SLOTS)?;
            Some((position + distance) << shift)
        };
        (0..LEVELS).filter_map(next_of_level).min()
    }

    fn link(&mut self, key: u32) {
        let slot = self.slot_for(due_tick(self.entries[key as usize].deadline));
        let head = self.heads[slot];
        let entry = &mut self.entries[key as usize];
        entry.previous = NONE;
        entry.next = head;
        entry.slot = slot as u16;
        if head != NONE {
            self.entries[head as usize].previous = key;
        }
        self.heads[slot] = key;
        self.occupied[slot / SLOTS][slot % SLOTS / 64] |= 1 << (slot % 64);
        self.armed += 1;
    }

    fn unlink(&mut self, key: u32) {
        let entry = &mut self.entries[key as usize];
        let (previous, next, slot) = (entry.previous, entry.next, usize::from(entry.slot));
        entry.slot = UNARMED;
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            self.heads[slot] = next;
            if next == NONE {
                self.occupied[slot / SLOTS][slot % SLOTS / 64] &= !(1 << (slot % 64));
            }
        }
        self.armed -= 1;
    }

    /// The slot for a due tick; the past goes into the current slot, the far future into the last.
    fn slot_for(&self, due: u64) -> usize {
        let due = due.clamp(self.tick, self.tick + HORIZON);
        let distance = due - self.tick;
        let level = match distance {
            0..0x100 => 0,
            0x100..0x1_0000 => 1,
            0x1_0000..0x100_0000 => 2,
            _ => 3,
        };
        level * SLOTS + (due >> (SLOT_BITS * level as u32)) as usize % SLOTS
    }
}

/// The first tick at which a deadline has passed.
fn due_tick(deadline: Instant) -> u64 {
    deadline.us().div_ceil(1 << TICK_BITS)
}

/// Distance, 1..=256, from slot `from` to the next occupied slot, going round.
fn next_occupied(words: &[u64; WORDS], from: usize) -> Option<u64> {
    let start = (from + 1) % SLOTS;
    // The word of the start is looked at twice: its upper part first, its lower part last.
    for step in 0..=WORDS {
        let word = (start / 64 + step) % WORDS;
        let mask = match step {
            0 => u64::MAX << (start % 64),
            WORDS => !(u64::MAX << (start % 64)),
            _ => u64::MAX,
        };
        let bits = words[word] & mask;
        if bits != 0 {
            let slot = word * 64 + bits.trailing_zeros() as usize;
            return Some(((slot + SLOTS - start) % SLOTS) as u64 + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests;
