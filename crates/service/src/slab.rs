//! A vector whose places are used again, with keys that tell one use from the next. Holds sockets
//! (`sockets`), trust domains (`domains`) and processes (`processes`).

use std::collections::{HashMap, HashSet};

use foldhash::fast::FixedState;

/// A map whose keys the service chooses itself, so that nobody can make them collide.
pub type OwnMap<K, V> = HashMap<K, V, FixedState>;
/// A set of the same kind.
pub type OwnSet<K> = HashSet<K, FixedState>;

/// Names one use of one place. A key whose entry is gone never names another one.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    index: u32,
    serial: u32,
}

impl Key {
    /// Place and use of it as one number.
    pub fn number(self) -> u64 {
        u64::from(self.serial) << 32 | u64::from(self.index)
    }

    /// From the number of a key; one that was never given out names nothing.
    pub fn from_number(number: u64) -> Key {
        Key { index: number as u32, serial: (number >> 32) as u32 }
    }

    /// The place.
    pub fn index(self) -> u32 {
        self.index
    }
}

/// See the module.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    serial: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Puts a value in.
    pub fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { serial: 0, value: None });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.serial = place.serial.wrapping_add(1);
        place.value = Some(value);
        Key { index, serial: place.serial }
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.serial != key.serial {
            return None;
        }
        let value = place.value.take()?;
        self.free.push(key.index);
        Some(value)
    }

    /// Looks at a value.
    pub fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.index as usize)?;
        if place.serial == key.serial { place.value.as_ref() } else { None }
    }

    /// Changes a value.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.serial == key.serial { place.value.as_mut() } else { None }
    }

    /// The value in a place, whichever use it is, with its key.
    pub fn at(&self, index: u32) -> Option<(Key, &T)> {
        let place = self.places.get(index as usize)?;
        Some((Key { index, serial: place.serial }, place.value.as_ref()?))
    }

    /// All values with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0u32..).zip(&self.places).filter_map(|(index, place)| {
            Some((Key { index, serial: place.serial }, place.value.as_ref()?))
        })
    }

    /// All keys, in a list of their own.
    pub fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of places ever used; indices are below it.
    pub fn places(&self) -> u32 {
        self.places.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_names_nothing_new() {
        let mut slab = Slab::default();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!(second.index(), first.index());
        assert_eq!((slab.get(first), slab.get(second)), (None, Some(&'b')));
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.keys(), [second]);
        assert_eq!(Key::from_number(second.number()), second);
        assert_eq!(slab.get(Key::from_number(u64::MAX)), None);
    }
}
