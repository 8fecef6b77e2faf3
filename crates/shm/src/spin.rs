//! How long a waiter spins before it sleeps, and how. Waking a sleeper on another core costs tens
//! of microseconds, a polled word almost nothing; but a core that spins does nothing else.
//!
//! Two rules. [`Gaps`]: whoever is usually called again soon spins for as long as that usually
//! takes, everybody else for a moment only. [`Spinner`]: the core is offered to others every few
//! microseconds, and whoever gets it back late has learnt that others need it, and sleeps. So two
//! who share a core do not spin against each other. Used by the service's loop and by every
//! blocking call of an application.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::sys;

/// Longest spin, in nanoseconds.
pub const PATIENCE_MAX_NS: u64 = 200_000;
/// Waits that are longer than this on average are not worth spinning for, in nanoseconds.
const WORTHWHILE_NS: u32 = 100_000;
/// One long wait among many short ones counts as this much, in nanoseconds.
const GAP_MAX_NS: u64 = 400_000;

/// How long waits usually take: mean and mean deviation, weighted as the round-trip time of RFC 6298
/// is. Threads may share one; a lost update only makes the estimate follow later.
#[derive(Debug)]
pub struct Gaps {
    mean_ns: AtomicU32,
    deviation_ns: AtomicU32,
}

impl Default for Gaps {
    fn default() -> Self {
        Self::new()
    }
}

impl Gaps {
    /// Nothing known: as if waits were long.
    pub const fn new() -> Gaps {
        Gaps { mean_ns: AtomicU32::new(GAP_MAX_NS as u32), deviation_ns: AtomicU32::new(0) }
    }

    /// A wait has ended with what it waited for after `gap_ns` nanoseconds.
    pub fn note(&self, gap_ns: u64) {
        let gap = gap_ns.min(GAP_MAX_NS) as i64;
        let mean = i64::from(self.mean_ns.load(Ordering::Relaxed));
        let deviation = i64::from(self.deviation_ns.load(Ordering::Relaxed));
        let error = gap - mean;
        let deviation = deviation + (error.abs() - deviation) / 4;
        // Both stay within 0..=GAP_MAX_NS.
        self.mean_ns.store((mean + error / 8) as u32, Ordering::Relaxed);
        self.deviation_ns.store(deviation as u32, Ordering::Relaxed);
    }

    /// How long to spin for what comes next, in nanoseconds: `floor_ns` where waits are long, or
    /// nothing is known.
    pub fn patience_ns(&self, floor_ns: u64) -> u64 {
        let mean = self.mean_ns.load(Ordering::Relaxed);
        if mean > WORTHWHILE_NS {
            return floor_ns;
        }
        let usual = u64::from(mean) + 4 * u64::from(self.deviation_ns.load(Ordering::Relaxed));
        usual.clamp(floor_ns, PATIENCE_MAX_NS.max(floor_ns))
    }
}

/// Pauses of the processor between two looks.
const PAUSES: u32 = 8;
/// The core is offered to others this often, in nanoseconds.
const OFFER_EVERY_NS: u64 = 2_000;
/// Whoever gets the core back later than this, in nanoseconds, shares it.
const SHARED_AFTER_NS: u64 = 5_000;

/// One wait's spinning.
#[derive(Debug)]
pub struct Spinner {
    end_ns: u64,
    offer_ns: u64,
    now_ns: u64,
}

impl Spinner {
    /// Spins from `now_ns` on the monotonic clock for up to `patience_ns` nanoseconds.
    pub fn new(now_ns: u64, patience_ns: u64) -> Spinner {
        let end_ns = now_ns.saturating_add(patience_ns);
        Spinner { end_ns, offer_ns: now_ns + OFFER_EVERY_NS, now_ns }
    }

    /// Whether a time of the monotonic clock had come at the last rest.
    pub fn is_past(&self, time_ns: u64) -> bool {
        self.now_ns >= time_ns
    }

    /// Between two looks: rests for an instant. False: enough; look once more, then sleep.
    #[inline]
    pub fn rest(&mut self) -> bool {
        for _ in 0..PAUSES {
            core::hint::spin_loop();
        }
        let now_ns = sys::clock_monotonic_ns();
        self.now_ns = now_ns;
        if now_ns >= self.end_ns {
            return false;
        }
        if now_ns >= self.offer_ns {
            sys::sched_yield();
            return self.offered(now_ns, sys::clock_monotonic_ns());
        }
        true
    }

    /// The core was offered to others at `from_ns` and ours again at `to_ns`.
    fn offered(&mut self, from_ns: u64, to_ns: u64) -> bool {
        self.offer_ns = to_ns + OFFER_EVERY_NS;
        to_ns - from_ns < SHARED_AFTER_NS
    }

    /// Spins until `done` or until it is enough; whether it is done.
    pub fn until(mut self, mut done: impl FnMut() -> bool) -> bool {
        loop {
            if done() {
                return true;
            }
            if !self.rest() {
                return done();
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn short_waits_are_spun_for_and_long_ones_are_not() {
        let gaps = Gaps::new();
        assert_eq!(gaps.patience_ns(20_000), 20_000, "nothing known");
        for _ in 0..100 {
            gaps.note(60_000);
        }
        let patience = gaps.patience_ns(20_000);
        assert!((60_000..70_000).contains(&patience), "{patience}");
        // Waits of 10 and 60 us in turn: the longer ones are covered, too.
        for turn in 0..200 {
            gaps.note(if turn % 2 == 0 { 10_000 } else { 60_000 });
        }
        assert!((60_000..=PATIENCE_MAX_NS).contains(&gaps.patience_ns(20_000)));
        for _ in 0..100 {
            gaps.note(1_000_000_000);
        }
        assert_eq!(gaps.patience_ns(20_000), 20_000, "long waits");
    }

    #[test]
    fn one_long_wait_does_not_end_the_patience() {
        let gaps = Gaps::new();
        for _ in 0..100 {
            gaps.note(10_000);
        }
        gaps.note(u64::MAX);
        assert!(gaps.patience_ns(1_000) > 10_000);
        assert!(gaps.patience_ns(1_000) <= PATIENCE_MAX_NS);
    }

    #[test]
    fn whoever_gets_the_core_back_late_stops() {
        let mut spinner = Spinner::new(0, 1_000_000);
        assert!(spinner.offered(10_000, 10_300));
        assert!(!spinner.offered(20_000, 20_000 + SHARED_AFTER_NS));
    }

    #[test]
    fn a_spin_ends_by_itself_and_looks_last() {
        let mut looks = 0;
        let done = Spinner::new(sys::clock_monotonic_ns(), 30_000).until(|| {
            looks += 1;
            false
        });
        assert!(!done && looks >= 2);
        assert!(Spinner::new(0, 0).until(|| true));
    }
}
