//! A table with stable places: an index and a generation name an entry, both are checked.
//!
//! Used for sockets and TIME-WAIT records. It grows by chunks, so that a full table of a million
//! entries was never moved, and frees places last in, first out, so that hot memory is used again.

use crate::socket_id::SocketId;

/// Entries of one chunk.
const CHUNK: usize = 256;
/// End of the free list.
const NONE: u32 = u32::MAX;

/// One place.
#[derive(Debug)]
struct Place<T> {
    generation: u32,
    next_free: u32,
    value: Option<T>,
}

/// The table.
#[derive(Debug)]
pub struct Slab<T> {
    chunks: Vec<Box<[Place<T>]>>,
    first_free: u32,
    len: usize,
    limit: usize,
}

impl<T> Slab<T> {
    /// An empty table for at most `limit` entries; memory is taken as it fills.
    pub fn new(limit: usize) -> Slab<T> {
        Slab { chunks: Vec::new(), first_free: NONE, len: 0, limit }
    }

    /// Entries in the table.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no further entry fits.
    pub fn is_full(&self) -> bool {
        self.len >= self.limit
    }

    /// Entries that still fit.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.len)
    }

    /// Stores the value that `make` builds from its name; `None` when the table is full.
    pub fn insert_with(&mut self, make: impl FnOnce(SocketId) -> T) -> Option<SocketId> {
        if self.is_full() {
            return None;
        }
        if self.first_free == NONE {
            self.grow();
        }
        let index = self.first_free;
        let place = place_mut(&mut self.chunks, index)?;
        // Generation 0 is never given out, so that an all-zero name is always wrong.
        place.generation = place.generation.wrapping_add(1).max(1);
        self.first_free = place.next_free;
        let id = SocketId::new(index, place.generation);
        place.value = Some(make(id));
        self.len += 1;
        Some(id)
    }

    /// The entry of that name.
    pub fn get(&self, id: SocketId) -> Option<&T> {
        let place = self.place(id.index())?;
        place.value.as_ref().filter(|_| place.generation == id.generation())
    }

    /// The entry of that name, to change.
    pub fn get_mut(&mut self, id: SocketId) -> Option<&mut T> {
        let place = place_mut(&mut self.chunks, id.index())?;
        place.value.as_mut().filter(|_| place.generation == id.generation())
    }

    /// The name of the entry at an index that the table itself keeps elsewhere.
    pub fn id_at(&self, index: u32) -> Option<SocketId> {
        let place = self.place(index)?;
        place.value.as_ref().map(|_| SocketId::new(index, place.generation))
    }

    /// Takes the entry of that name out.
    pub fn remove(&mut self, id: SocketId) -> Option<T> {
        let first_free = self.first_free;
        let place = place_mut(&mut self.chunks, id.index())?;
        if place.generation != id.generation() {
            return None;
        }
        let value = place.value.take()?;
        place.next_free = first_free;
        self.first_free = id.index();
        self.len -= 1;
        Some(value)
    }

    /// All entries, in order of their indices. Walks every place: for listings only.
    pub fn iter(&self) -> impl Iterator<Item = (SocketId, &T)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).enumerate().filter_map(
            |(index, place)| {
                let id = SocketId::new(index as u32, place.generation);
                place.value.as_ref().map(|value| (id, value))
            },
        )
    }

    fn place(&self, index: u32) -> Option<&Place<T>> {
        self.chunks.get(index as usize / CHUNK)?.get(index as usize % CHUNK)
    }

    /// Adds a chunk whose places are all free, lowest first.
    fn grow(&mut self) {
        let first = (self.chunks.len() * CHUNK) as u32;
        let last = first + CHUNK as u32 - 1;
        let chunk = (first..=last)
            .map(|index| Place {
                generation: 0,
                next_free: if index == last { NONE } else { index + 1 },
                value: None,
            })
            .collect();
        self.chunks.push(chunk);
        self.first_free = first;
    }
}

fn place_mut<T>(chunks: &mut [Box<[Place<T>]>], index: u32) -> Option<&mut Place<T>> {
    chunks.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn an_old_name_never_reaches_a_new_entry() {
        let mut slab = Slab::new(2);
        let first = slab.insert_with(|_| 'a').expect("room");
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert_with(|_| 'b').expect("room");
        assert_eq!(first.index(), second.index());
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&'b'));
        assert_eq!(slab.get(SocketId::new(9999, 1)), None);
        assert_eq!(slab.get(SocketId::new(1, 0)), None);
    }

    #[test]
    fn the_limit_holds() {
        let mut slab = Slab::new(3);
        for n in 0..3 {
            assert!(slab.insert_with(|_| n).is_some());
        }
        assert!(slab.is_full());
        assert!(slab.insert_with(|_| 3).is_none());
        assert_eq!(slab.len(), 3);
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_map(steps in prop::collection::vec((any::<bool>(), any::<u16>()), 0..600)) {
            let mut slab = Slab::new(400);
            let mut oracle: HashMap<SocketId, u16> = HashMap::new();
            let mut names = Vec::new();
            for (insert, number) in steps {
                if insert {
                    if let Some(id) = slab.insert_with(|_| number) {
                        prop_assert!(oracle.insert(id, number).is_none());
                        names.push(id);
                    }
                } else if !names.is_empty() {
                    let id = names[usize::from(number) % names.len()];
                    prop_assert_eq!(slab.remove(id), oracle.remove(&id));
                }
                prop_assert_eq!(slab.len(), oracle.len());
            }
            for id in names {
                prop_assert_eq!(slab.get(id), oracle.get(&id));
            }
            prop_assert_eq!(slab.iter().count(), oracle.len());
        }
    }
}
