//! Set-associative caches with least-recently-used replacement, lines of 64 bytes; writes allocate:
//! the model of Cachegrind.

/// Bytes of a line.
pub const LINE: u64 = 64;
const WAYS: usize = 8;
const EMPTY: u64 = u64::MAX;

/// One cache.
#[derive(Clone, Debug)]
pub struct Cache {
    /// By set, the most recently used line first.
    sets: Vec<[u64; WAYS]>,
    /// References that found nothing.
    pub misses: u64,
}

impl Cache {
    /// An empty cache of so many bytes, 8-way; a power of two, 512 at least.
    pub fn new(bytes: u64) -> Cache {
        let sets = (bytes / LINE / WAYS as u64).next_power_of_two().max(1);
        Cache { sets: vec![[EMPTY; WAYS]; sets as usize], misses: 0 }
    }

    /// Touches so many bytes at an address: one or two lines.
    #[inline]
    pub fn touch(&mut self, address: u64, bytes: u64) {
        let (first, last) = (address / LINE, (address + bytes.max(1) - 1) / LINE);
        for line in first..=last {
            self.touch_line(line);
        }
    }

    #[inline]
    fn touch_line(&mut self, line: u64) {
        let index = (line & (self.sets.len() as u64 - 1)) as usize;
        let set = &mut self.sets[index];
        if set[0] == line {
            return;
        }
        let place = match set.iter().position(|held| *held == line) {
            Some(place) => place,
            None => {
                self.misses += 1;
                WAYS - 1
            }
        };
        set[..=place].rotate_right(1);
        set[0] = line;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_misses_once() {
        let mut cache = Cache::new(4096);
        for _ in 0..3 {
            (0..64).for_each(|line| cache.touch(line * LINE, 8));
        }
        assert_eq!(cache.misses, 64);
    }

    /// In turn over one line more than fits, the least recently used is always the one needed next.
    #[test]
    fn one_line_too_many_always_misses() {
        let mut cache = Cache::new(512);
        for _ in 0..4 {
            (0..9).for_each(|line| cache.touch(line * LINE, 1));
        }
        assert_eq!(cache.misses, 36);
    }

    #[test]
    fn a_reference_over_an_edge_is_two() {
        let mut cache = Cache::new(4096);
        cache.touch(LINE - 4, 8);
        assert_eq!(cache.misses, 2);
        cache.touch(0, 64);
        assert_eq!(cache.misses, 2);
    }
}
