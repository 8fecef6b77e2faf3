//! Numbered, reused entries that live in place for ever: pages of 256, made on demand, never freed.
//! An entry is reached by number without a lock and pinned by a count while it is used.
//!
//! Used by `socket.rs` and `epoll.rs`. An entry whose count falls to zero is put on the free list;
//! pinning refuses a count of zero, so a free entry is never brought back by accident.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use haypile_shm::Errno;

use crate::lock::Lock;

const PAGE: usize = 256;
const PAGES: usize = 4096;

/// What an entry must offer to live in a [`Slab`].
pub(crate) trait Entry: Default {
    /// The count of those who use the entry; the slab owns its meaning.
    fn uses(&self) -> &AtomicU32;
}

/// The entries.
#[derive(Debug)]
pub(crate) struct Slab<T: 'static> {
    pages: [OnceLock<Box<[T]>>; PAGES],
    free: Lock<FreeList>,
}

#[derive(Debug)]
struct FreeList {
    made: u32,
    numbers: Vec<u32>,
}

impl<T: Entry + 'static> Slab<T> {
    /// No entries yet.
    pub(crate) const fn new() -> Self {
        Slab {
            pages: [const { OnceLock::new() }; PAGES],
            free: Lock::new(FreeList { made: 0, numbers: Vec::new() }),
        }
    }

    /// The entry with a number, in use or not.
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.pages.get(number as usize / PAGE)?.get()?.get(number as usize % PAGE)
    }

    /// A free entry, with a count of one. Its fields are as the last user left them.
    pub(crate) fn take(&self) -> Result<(u32, &T), Errno> {
        let number = {
            let mut free = self.free.lock()?;
            match free.numbers.pop() {
                Some(number) => number,
                None => self.make_page(&mut free)?,
            }
        };
        let entry = self.get(number).ok_or(Errno::ENFILE)?;
        entry.uses().store(1, Ordering::Release);
        Ok((number, entry))
    }

    fn make_page(&self, free: &mut FreeList) -> Result<u32, Errno> {
        let first = free.made;
        let page = self.pages.get(first as usize / PAGE).ok_or(Errno::ENFILE)?;
        let entries: Box<[T]> = (0..PAGE).map(|_| T::default()).collect();
        let _ = page.set(entries);
        free.made += PAGE as u32;
        // So that putting an entry back never allocates.
        let wanted = free.made as usize;
        let held = free.numbers.len();
        free.numbers.reserve(wanted - held);
        free.numbers.extend((first + 1..first + PAGE as u32).rev());
        Ok(first)
    }

    /// Counts one more user; `None` if the entry is free.
    pub(crate) fn pin(&self, number: u32) -> Option<&T> {
        let entry = self.get(number)?;
        let uses = entry.uses();
        let mut seen = uses.load(Ordering::Relaxed);
        while seen != 0 {
            match uses.compare_exchange_weak(seen, seen + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(entry),
                Err(now) => seen = now,
            }
        }
        None
    }

    /// One user less; true if it was the last, and then the caller must tidy up and [`Slab::put`].
    pub(crate) fn unpin(&self, number: u32) -> bool {
        self.get(number).is_some_and(|entry| entry.uses().fetch_sub(1, Ordering::AcqRel) == 1)
    }

    /// Gives a number without users back. In a signal handler that interrupts this very list the
    /// number is lost, not the program.
    pub(crate) fn put(&self, number: u32) {
        if let Ok(mut free) = self.free.lock() {
            free.numbers.push(number);
        }
    }

    /// Calls `visit` for every entry in use.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(u32, &T)) {
        for (page_number, page) in self.pages.iter().enumerate() {
            let Some(page) = page.get() else { break };
            for (index, entry) in page.iter().enumerate() {
                if entry.uses().load(Ordering::Acquire) != 0 {
                    visit((page_number * PAGE + index) as u32, entry);
                }
            }
        }
    }

    /// Before a fork.
    pub(crate) fn hold_for_fork(&self) {
        self.free.hold_for_fork();
    }

    /// After a fork, on both sides.
    pub(crate) fn release_after_fork(&self) {
        self.free.release_after_fork();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Thing {
        uses: AtomicU32,
    }
    impl Entry for Thing {
        fn uses(&self) -> &AtomicU32 {
            &self.uses
        }
    }

    #[test]
    fn entries_are_reused_and_never_pinned_when_free() {
        static SLAB: Slab<Thing> = Slab::new();
        let (first, _) = SLAB.take().unwrap();
        assert!(SLAB.pin(first).is_some());
        assert!(!SLAB.unpin(first));
        assert!(SLAB.unpin(first));
        assert!(SLAB.pin(first).is_none());
        SLAB.put(first);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..600 {
            assert!(seen.insert(SLAB.take().unwrap().0));
        }
        assert!(seen.contains(&first));
        let mut counted = 0;
        SLAB.for_each(|_, _| counted += 1);
        assert_eq!(counted, 600);
    }
}
