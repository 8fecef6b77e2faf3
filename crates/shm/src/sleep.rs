//! The sleep flag: a consumer that is about to sleep says so, a producer that has just published
//! rings only if it must. Used by the service (status segment) and by each watcher ring.
//!
//! No wake-up is lost: the consumer does `flag = 1; fence; look for work; sleep`, the producer does
//! `publish work; fence; read flag`. Both fences are sequentially consistent, so one is first. If
//! the consumer's is, the producer reads the 1 and rings; if the producer's is, the consumer's last
//! look finds the work. The loom model in `sleep/loom_tests.rs` checks it. A ring that comes
//! without need only costs a turn: the consumer looks again.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::sync::Word;

/// View of one sleep flag: 0 awake, 1 asleep or about to be.
#[derive(Debug)]
pub struct SleepFlag<'a, W: Word = AtomicU32> {
    word: &'a W,
}

impl<'a, W: Word> SleepFlag<'a, W> {
    /// A view of the flag in `word`.
    #[inline]
    pub fn new(word: &'a W) -> Self {
        SleepFlag { word }
    }

    /// Consumer: announces sleep. Look for work once more after this call, and sleep only if there
    /// is none; call [`SleepFlag::awake`] afterwards in both cases.
    #[inline]
    pub fn prepare_sleep(&self) {
        self.word.store(1, Ordering::Relaxed);
        W::fence();
    }

    /// Consumer: takes the announcement back.
    #[inline]
    pub fn awake(&self) {
        self.word.store(0, Ordering::Relaxed);
    }

    /// Producer, after publishing: true if the consumer must be rung. Of several producers that
    /// publish at the same time one gets true.
    #[inline]
    pub fn must_wake(&self) -> bool {
        W::fence();
        self.word.load(Ordering::Relaxed) != 0 && self.word.swap(0, Ordering::Relaxed) != 0
    }

    /// Producer that may not write the flag (the status segment), after publishing: true if the
    /// consumer must be rung. Every producer that publishes while the consumer sleeps gets true.
    #[inline]
    pub fn is_sleeping(&self) -> bool {
        W::fence();
        self.word.load(Ordering::Relaxed) != 0
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
