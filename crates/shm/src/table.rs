//! The tables of socket records of one trust domain and their allocator, owned by the service.
//! Which slots are in use and their generations are private; the records themselves are shared.

use std::sync::Arc;

use crate::limits::{TABLE_BLOCKS, TABLE_SIZE, TABLES_MAX, slot_table};
use crate::segment::Segment;

/// Where a new socket record goes.
#[derive(Clone, Debug)]
pub struct Place {
    /// The table that holds it.
    pub table: Arc<Segment>,
    /// Its slot, counted over all tables of the domain.
    pub slot: u32,
    /// Its generation, never 0, another one each time the slot is used.
    pub generation: u32,
}

#[derive(Copy, Clone, Debug)]
struct Slot {
    generation: u32,
    taken: bool,
}

/// All socket records of one trust domain.
#[derive(Debug)]
pub struct SocketTable {
    segments: Vec<Arc<Segment>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    used: u32,
    quota: u32,
}

impl SocketTable {
    /// No sockets yet; at most `quota` at a time.
    pub fn new(quota: u32) -> SocketTable {
        let most = TABLES_MAX.saturating_mul(TABLE_BLOCKS);
        SocketTable {
            segments: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            used: 0,
            quota: quota.min(most),
        }
    }

    /// The segment of a table number, made if it is the next one (table 0 is sent at attach,
    /// before there is any socket). `None` if it is not in use or the system gives no memory.
    pub fn segment(&mut self, index: u32) -> Option<&Arc<Segment>> {
        if index == 0 && self.segments.is_empty() {
            self.add_segment()?;
        }
        self.segments.get(index as usize)
    }

    fn add_segment(&mut self) -> Option<()> {
        let segment = Segment::create("haypile-sockets", TABLE_SIZE).ok()?;
        self.segments.push(Arc::new(segment));
        Some(())
    }

    /// Takes a slot; `None` when the quota is used up or the system gives no more memory.
    pub fn allocate(&mut self) -> Option<Place> {
        if self.used >= self.quota {
            return None;
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => self.start_slot()?,
        };
        self.used += 1;
        let entry = &mut self.slots[slot as usize];
        entry.taken = true;
        entry.generation = entry.generation.wrapping_add(1).max(1);
        let table = Arc::clone(&self.segments[slot_table(slot) as usize]);
        Some(Place { table, slot, generation: entry.generation })
    }

    fn start_slot(&mut self) -> Option<u32> {
        let slot = self.slots.len() as u32;
        if slot_table(slot) as usize == self.segments.len() {
            self.add_segment()?;
        }
        self.slots.push(Slot { generation: 0, taken: false });
        Some(slot)
    }

    /// Gives a slot back.
    ///
    /// # Panics
    /// If it is not in use: the caller's own books are wrong.
    pub fn free(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        assert!(entry.taken, "slot {slot} freed twice");
        entry.taken = false;
        self.used -= 1;
        self.free.push(slot);
    }

    /// Whether this slot is in use with this generation: the check of every slot that an
    /// application names.
    #[inline]
    pub fn is_current(&self, slot: u32, generation: u32) -> bool {
        self.slots
            .get(slot as usize)
            .is_some_and(|entry| entry.taken && entry.generation == generation)
    }

    /// Slots that may still be taken.
    pub fn room(&self) -> u32 {
        self.quota - self.used
    }

    /// Slots in use.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Tables made so far.
    pub fn segments(&self) -> u32 {
        self.segments.len() as u32
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
