//! Three small agreements between one side that publishes and one that looks, each over one or two
//! words: the coalesced kick, the waiters' word, and the process-local lock. Used by `stream` and
//! `channel`; each has its argument written here and its loom model in `handshake/loom_tests.rs`.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use core::time::Duration;

use crate::sync::Word;
use crate::sys::futex::{self, Waited};

/// A coalesced notification. The sender publishes, then raises: only the first raise since the
/// receiver's last `take` needs a message.
///
/// Argument: `raise` and `take` are read-modify-write operations on one word, so they are ordered.
/// A raise that finds the word set comes before the receiver's next `take`, which reads it (or a
/// later raise, which carries on its release sequence) with acquire: whatever was published before
/// the raise is visible after the take.
pub fn raise_kick<W: Word>(word: &W) -> bool {
    word.swap(1, Ordering::AcqRel) == 0
}

/// Receiver of a kick: call it before looking at what the sender publishes.
pub fn take_kick<W: Word>(word: &W) {
    let _: u32 = word.swap(0, Ordering::AcqRel);
}

/// What a waiter saw when it announced itself; give it to the futex wait.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct WaitTicket {
    pub(crate) sequence: u32,
}

/// Waiter: reads the sequence, then announces itself. Re-check the condition after this call; wait
/// on `sequence` only if it does not hold.
///
/// Argument (with [`notify`]): the waiter does `s = sequence; waiters = 1; fence; check; wait(s)`,
/// the notifier `change state; fence; w = swap(waiters, 0); if w { sequence += 1; wake all }`.
/// If the notifier's swap misses the announcement, its fence is the earlier one and the check sees
/// the change. If the swap takes the announcement, the waiter's read of the sequence came before
/// the increment, so the futex wait returns at once or is woken. The word is a flag and no count,
/// so a waiter that dies leaves one needless wake-up behind and nothing else.
pub fn prepare_wait<W: Word>(sequence: &W, waiters: &W) -> WaitTicket {
    let seen = sequence.load(Ordering::Acquire);
    // A read-modify-write, so that the notifier's swap that takes any later announcement is also
    // ordered after this one.
    let _: u32 = waiters.swap(1, Ordering::AcqRel);
    W::fence();
    WaitTicket { sequence: seen }
}

/// Notifier, after a change of state: true if `sequence` was moved and sleepers must be woken.
pub fn notify<W: Word>(sequence: &W, waiters: &W) -> bool {
    W::fence();
    if waiters.load(Ordering::Relaxed) == 0 || waiters.swap(0, Ordering::AcqRel) == 0 {
        return false;
    }
    let _: u32 = sequence.fetch_add(1, Ordering::Release);
    true
}

/// A token for the calling thread: unique among the living threads of the process, never 0, the
/// same in a forked child (which has one thread) and in signal handlers of the thread.
pub fn thread_token() -> usize {
    thread_local! {
        static MARK: u8 = const { 0 };
    }
    MARK.with(|mark| std::ptr::from_ref(mark) as usize)
}

/// Why a [`LocalLock`] was not taken.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LockFailure {
    /// The calling thread holds it already: this is a signal handler that interrupted the holder.
    Reentered,
    /// Somebody else held it for longer than the limit.
    TimedOut,
}

/// A lock among the threads of one process, in private memory, held only for a copy. It knows its
/// holder, so that a signal handler that interrupts the holder is refused and not hung.
#[derive(Debug, Default)]
pub struct LocalLock {
    holder: AtomicUsize,
    waiting: AtomicU32,
    sequence: AtomicU32,
}

/// Turns of spinning before a lock wait sleeps.
const LOCK_SPINS: u32 = 200;

impl LocalLock {
    /// A free lock.
    pub const fn new() -> Self {
        LocalLock {
            holder: AtomicUsize::new(0),
            waiting: AtomicU32::new(0),
            sequence: AtomicU32::new(0),
        }
    }

    /// Takes the lock, waiting at most about `limit`.
    #[inline]
    pub fn lock(&self, limit: Duration) -> Result<LocalGuard<'_>, LockFailure> {
        let token = thread_token();
        if self.try_take(token) {
            return Ok(LocalGuard { lock: self });
        }
        self.lock_slow(token, limit)
    }

    /// Frees the lock whoever holds it. For a forked child, whose other threads do not exist.
    pub fn reset(&self) {
        self.holder.store(0, Ordering::Release);
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// Whether the calling thread holds it.
    pub fn is_held_by_caller(&self) -> bool {
        self.holder.load(Ordering::Relaxed) == thread_token()
    }

    fn try_take(&self, token: usize) -> bool {
        self.holder.compare_exchange(0, token, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn lock_slow(&self, token: usize, limit: Duration) -> Result<LocalGuard<'_>, LockFailure> {
        if self.holder.load(Ordering::Relaxed) == token {
            return Err(LockFailure::Reentered);
        }
        for _ in 0..LOCK_SPINS {
            core::hint::spin_loop();
            if self.try_take(token) {
                return Ok(LocalGuard { lock: self });
            }
        }
        let slice = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        while waited < limit {
            let ticket = prepare_wait(&self.sequence, &self.waiting);
            if self.try_take(token) {
                return Ok(LocalGuard { lock: self });
            }
            if futex::wait(&self.sequence, ticket.sequence, Some(slice)) == Waited::TimedOut {
                waited += slice;
            }
        }
        Err(LockFailure::TimedOut)
    }

    fn unlock(&self) {
        self.holder.store(0, Ordering::Release);
        if notify(&self.sequence, &self.waiting) {
            futex::wake(&self.sequence, u32::MAX);
        }
    }
}

/// Frees the lock when dropped.
#[derive(Debug)]
pub struct LocalGuard<'a> {
    lock: &'a LocalLock,
}

impl Drop for LocalGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.lock.unlock();
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
