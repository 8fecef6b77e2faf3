//! Where the record of a socket is kept, so that it can be replaced by another at any time: under calls of
//! other threads, under a call of the same thread that a signal handler has interrupted, and in a forked child
//! that has a copy of the locks of threads which do not exist there.
//!
//! Each socket has a place of its own. A record that cannot be put there, because somebody still looks at the
//! one before, goes to a place *beside*, one of a common stock. Nobody ever waits for a reader to leave. Used
//! by `entry.rs`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{RwLock, RwLockReadGuard};

use haypile_shm::Errno;

use crate::attach;
use crate::lock::Lock;
use crate::memory::Record;
use crate::slab::{Entry, Slab};

/// The place of a socket's record.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// 0: the record is in `own`; else one more than the number of its place beside.
    beside: AtomicU32,
    own: RwLock<Option<Record>>,
}

#[derive(Debug, Default)]
struct Beside {
    uses: AtomicU32,
    record: RwLock<Option<Record>>,
}

impl Entry for Beside {
    fn uses(&self) -> &AtomicU32 {
        &self.uses
    }
}

static STOCK: Slab<Beside> = Slab::new();
/// Places beside that are nobody's, and that somebody still looked at when they were given up.
static GIVEN_UP: Lock<VecDeque<u32>> = Lock::new(VecDeque::new());

/// The record of a socket, held open while a call uses it.
pub(crate) struct StreamRef<'a>(RwLockReadGuard<'a, Option<Record>>);

impl std::ops::Deref for StreamRef<'_> {
    type Target = Record;
    #[inline]
    fn deref(&self) -> &Record {
        // `Place::open` gives out none that is empty.
        self.0.as_ref().expect("an open record")
    }
}

impl Place {
    /// The record, if there is one.
    #[inline]
    pub(crate) fn open(&self) -> Option<StreamRef<'_>> {
        if self.beside.load(Ordering::Acquire) == 0
            && let Ok(guard) = self.own.try_read()
            && guard.is_some()
        {
            return Some(StreamRef(guard));
        }
        self.open_beside()
    }

    #[cold]
    fn open_beside(&self) -> Option<StreamRef<'_>> {
        // A place is locked for writing for the time of a copy. Longer than this it is if that thread does not
        // run, or if a signal handler has interrupted it and is who asks.
        for turn in 0..300 {
            let beside = self.beside.load(Ordering::Acquire);
            let place = match beside.checked_sub(1) {
                None => &self.own,
                Some(number) => &STOCK.get(number)?.record,
            };
            match place.try_read() {
                // The place may have been given to another socket before it was locked.
                Ok(guard) if self.beside.load(Ordering::Acquire) == beside => {
                    return guard.is_some().then_some(StreamRef(guard));
                }
                Ok(_) => {}
                Err(_) if turn < 200 => std::thread::yield_now(),
                Err(_) => attach::sleep_ms(1),
            }
        }
        None
    }

    /// Puts a record in the place of the one before.
    pub(crate) fn put(&self, record: Record) -> Result<(), Errno> {
        let before = self.beside.load(Ordering::Acquire);
        let mut own = self.own.try_write().ok();
        if let Some(place) = &mut own {
            let old = place.replace(record);
            self.beside.store(0, Ordering::Release);
            // Its memory may go with it, which takes time.
            drop(own);
            drop(old);
        } else {
            drop(own);
            self.beside.store(put_beside(record)? + 1, Ordering::Release);
        }
        if let Some(number) = before.checked_sub(1) {
            give_up(number);
        }
        Ok(())
    }

    /// Drops the record. False: somebody was left behind with it.
    pub(crate) fn clear(&self) -> bool {
        let beside = self.beside.swap(0, Ordering::AcqRel);
        if let Some(number) = beside.checked_sub(1) {
            give_up(number);
        }
        let Ok(mut place) = self.own.try_write() else { return false };
        let old = place.take();
        drop(place);
        drop(old);
        true
    }
}

/// Puts a record into a place beside; its number.
fn put_beside(record: Record) -> Result<u32, Errno> {
    let (number, place) = STOCK.take()?;
    // Nobody has the number but readers of before, who find out at once that it is not theirs.
    for _ in 0..1000 {
        if let Ok(mut place) = place.record.try_write() {
            *place = Some(record);
            return Ok(number);
        }
        std::thread::yield_now();
    }
    give_up(number);
    Err(Errno::EAGAIN)
}

/// A place beside is nobody's any more. Looks after a few of the others that are so, too.
fn give_up(number: u32) {
    const LOOKS: usize = 8;
    let Ok(mut given_up) = GIVEN_UP.lock() else { return };
    given_up.push_back(number);
    for _ in 0..LOOKS.min(given_up.len()) {
        if let Some(number) = given_up.pop_front()
            && !empty(number)
        {
            given_up.push_back(number);
        }
    }
}

fn empty(number: u32) -> bool {
    let Some(place) = STOCK.get(number) else { return true };
    let Ok(mut record) = place.record.try_write() else { return false };
    let old = record.take();
    drop(record);
    drop(old);
    if STOCK.unpin(number) {
        STOCK.put(number);
    }
    true
}

pub(crate) fn hold_for_fork() {
    GIVEN_UP.hold_for_fork();
    STOCK.hold_for_fork();
}

pub(crate) fn release_after_fork() {
    STOCK.release_after_fork();
    GIVEN_UP.release_after_fork();
}
