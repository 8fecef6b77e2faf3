//! The lock of this crate: holds a value, is held for a copy and never across a wait, refuses a
//! signal handler that interrupts its own holder, and survives `fork`.
//!
//! Used by every module that keeps more than single words. The gate decides who may enter; the
//! inner mutex is never contended and only lends the value out. `fork.rs` closes all gates before a
//! fork and opens them on both sides.
//!
//! Order, outermost first: socket options, epoll set, watcher pool, offers, attachment, free lists.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use haypile_shm::Errno;
use haypile_shm::handshake::{LocalGuard, LocalLock};

/// Longest wait for another thread that holds a lock. It is reached only if a signal handler left
/// the holder by a long jump, never by load.
const LIMIT: Duration = Duration::from_secs(10);

/// A value behind a lock.
#[derive(Debug, Default)]
pub(crate) struct Lock<T> {
    gate: LocalLock,
    held_for_fork: AtomicBool,
    value: Mutex<T>,
}

/// The value, while the lock is held. Fields drop in order: first the value, then the gate.
#[derive(Debug)]
pub(crate) struct Guard<'a, T> {
    value: MutexGuard<'a, T>,
    _gate: LocalGuard<'a>,
}

impl<T> Lock<T> {
    /// A free lock.
    pub(crate) const fn new(value: T) -> Self {
        Lock {
            gate: LocalLock::new(),
            held_for_fork: AtomicBool::new(false),
            value: Mutex::new(value),
        }
    }

    /// Takes the lock. `EAGAIN`: the calling thread holds it already, so this is a signal handler
    /// in the middle of one of our own calls.
    pub(crate) fn lock(&self) -> Result<Guard<'_, T>, Errno> {
        let gate = self.gate.lock(LIMIT).map_err(|_| Errno::EAGAIN)?;
        match self.value.try_lock() {
            Ok(value) => Ok(Guard { value, _gate: gate }),
            // Left behind by a thread that a fork without handlers did not copy.
            Err(_) => Err(Errno::EAGAIN),
        }
    }

    /// Whether the calling thread holds it.
    pub(crate) fn is_held_by_caller(&self) -> bool {
        self.gate.is_held_by_caller()
    }

    /// Closes the gate until [`Lock::release_after_fork`], so that the value is whole in the child.
    pub(crate) fn hold_for_fork(&self) {
        if let Ok(guard) = self.gate.lock(LIMIT) {
            std::mem::forget(guard);
            self.held_for_fork.store(true, Ordering::Relaxed);
        }
    }

    /// Opens the gate again, in the parent and in the child.
    pub(crate) fn release_after_fork(&self) {
        if self.held_for_fork.swap(false, Ordering::Relaxed) {
            self.gate.reset();
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::Lock;
    use haypile_shm::Errno;

    #[test]
    fn re_entry_is_refused() {
        let lock = Lock::new(1);
        let guard = lock.lock().unwrap();
        assert_eq!(lock.lock().err(), Some(Errno::EAGAIN));
        drop(guard);
        *lock.lock().unwrap() = 2;
        assert_eq!(*lock.lock().unwrap(), 2);
    }

    #[test]
    fn fork_holds_the_gate_and_opens_it() {
        let lock = Lock::new(());
        lock.hold_for_fork();
        assert!(lock.lock().is_err());
        lock.release_after_fork();
        assert!(lock.lock().is_ok());
        // A release without a hold must not free somebody else's lock.
        let guard = lock.lock().unwrap();
        lock.release_after_fork();
        assert!(lock.lock().is_err());
        drop(guard);
    }
}
