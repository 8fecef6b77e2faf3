//! The sleep flag and the sleep count: a consumer that is about to sleep says so, a producer that
//! has just published rings only if it must. The flag serves one producer that may write it (each
//! watcher ring), the count any number of producers that may not (the status segment).
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
}

/// View of a sleep count: the consumer alone writes it; it is odd while the consumer sleeps or is
/// about to, and each sleep has a number of its own.
///
/// A producer rings once for a sleep, however much it publishes meanwhile. Nothing is lost: that
/// ring ends the sleep, and before the next one the consumer has added one, passed its fence and
/// looked for work. What was published before that fence is found by that look; what comes later
/// reads the number of the next sleep, for which nobody has rung.
#[derive(Debug)]
pub struct SleepCount<'a, W: Word = AtomicU32> {
    word: &'a W,
}

impl<'a, W: Word> SleepCount<'a, W> {
    /// A view of the count in `word`.
    #[inline]
    pub fn new(word: &'a W) -> Self {
        SleepCount { word }
    }

    /// Consumer: announces sleep. Look for work once more after this call, and sleep only if there
    /// is none; call [`SleepCount::awake`] afterwards in both cases.
    #[inline]
    pub fn prepare_sleep(&self) {
        self.word.store(self.word.load(Ordering::Relaxed) | 1, Ordering::Relaxed);
        W::fence();
    }

    /// Consumer: takes the announcement back.
    #[inline]
    pub fn awake(&self) {
        let count = self.word.load(Ordering::Relaxed);
        self.word.store(count.wrapping_add(count & 1), Ordering::Relaxed);
    }

    /// Producer, after publishing: true if the consumer must be rung. `rung` is private to
    /// producers that ring the same bell, and starts at 0: the sleep they last rang for.
    #[inline]
    pub fn must_wake(&self, rung: &W) -> bool {
        W::fence();
        let count = self.word.load(Ordering::Relaxed);
        count & 1 != 0
            && rung.load(Ordering::Relaxed) != count
            && rung.swap(count, Ordering::Relaxed) != count
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
