//! How long a waiter spins before it sleeps, and how. Waking a sleeper on another core costs tens
//! of microseconds, a polled word almost nothing; but a core that spins does nothing else.
//!
//! Two rules. [`Gaps`]: whoever is usually called again soon spins for as long as that usually
//! takes, everybody else for a moment only. [`Spinner`]: nobody spins on a core that others need.
//! Whether they do is found out by offering it to them: whoever gets it back late has learnt it, and
//! sleeps. So two who share a core do not spin against each other. Used by the service's loop and by
//! every blocking call of an application.
//!
//! An offer is dear on a shared core: Linux (6.18) lets the offerer wait as if it had used its whole
//! slice, some 3 ms, and the next time, too, if it sleeps meanwhile. Whoever offered at every wait
//! got a five-hundredth of the core, and was starved for many seconds by one who never offers. So
//! what was learnt is remembered for the core: nothing is offered again for a few milliseconds, and
//! nobody spins on a shared core for a time that doubles while it stays shared.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

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
/// The core is not offered to others before this time of a spin, in nanoseconds.
const OFFER_AFTER_NS: u64 = 2_000;
/// Whoever gets the core back later than this, in nanoseconds, shares it.
const SHARED_AFTER_NS: u64 = 5_000;

/// A core that nobody wanted is not offered again for this long, in nanoseconds.
const FREE_FOR_NS: u64 = 4_000_000;
/// The first time that nobody spins on a core found shared, and the longest, in nanoseconds.
const SHARED_FIRST_NS: u64 = 8_000_000;
const SHARED_LONGEST_NS: u64 = 256_000_000;

/// What is known of a core. Threads may write at the same time: a lost update only makes it follow
/// later.
#[derive(Debug)]
struct Core {
    /// It is not offered until then, on the monotonic clock.
    known_until_ns: AtomicU64,
    /// For how long nobody spun there when it was last found shared; less since it was found free.
    shared_for_ns: AtomicU64,
    /// Whether it is shared, as far as known.
    shared: AtomicBool,
}

/// Cores; those whose numbers are equal modulo the length share a place.
static CORES: [Core; 256] = [const { Core::new() }; 256];

impl Core {
    const fn new() -> Core {
        Core {
            known_until_ns: AtomicU64::new(0),
            shared_for_ns: AtomicU64::new(0),
            shared: AtomicBool::new(false),
        }
    }

    /// The one that the caller runs on, if that can be told.
    fn present() -> Option<&'static Core> {
        sys::current_core().map(|number| &CORES[number as usize % CORES.len()])
    }

    fn known_until_ns(&self) -> u64 {
        self.known_until_ns.load(Ordering::Relaxed)
    }

    fn is_shared(&self, now_ns: u64) -> bool {
        self.shared.load(Ordering::Relaxed) && now_ns < self.known_until_ns()
    }

    /// An offer that ended at `now_ns` was taken, or not.
    fn note(&self, now_ns: u64, taken: bool) {
        let before_ns = self.shared_for_ns.load(Ordering::Relaxed);
        let (until_ns, for_ns) = if taken {
            let for_ns = (before_ns * 2).clamp(SHARED_FIRST_NS, SHARED_LONGEST_NS);
            (now_ns + for_ns, for_ns)
        } else {
            // Less than what one that is taken adds: half of them taken is shared.
            (now_ns + FREE_FOR_NS, before_ns / 4 * 3)
        };
        self.shared_for_ns.store(for_ns, Ordering::Relaxed);
        self.shared.store(taken, Ordering::Relaxed);
        self.known_until_ns.store(until_ns, Ordering::Relaxed);
    }
}

/// One wait's spinning.
#[derive(Debug)]
pub struct Spinner {
    end_ns: u64,
    offer_ns: u64,
    now_ns: u64,
}

impl Spinner {
    /// Spins from `now_ns` on the monotonic clock for up to `patience_ns` nanoseconds; not at all on
    /// a core that others were lately found to need.
    pub fn new(now_ns: u64, patience_ns: u64) -> Spinner {
        let core = if patience_ns > 0 { Core::present() } else { None };
        let shared = core.is_some_and(|core| core.is_shared(now_ns));
        let end_ns = if shared { now_ns } else { now_ns.saturating_add(patience_ns) };
        let offer_ns = core.map_or(u64::MAX, |core| core.known_until_ns());
        Spinner { end_ns, offer_ns: offer_ns.max(now_ns + OFFER_AFTER_NS), now_ns }
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
            let core = Core::present();
            sys::sched_yield();
            let back_ns = sys::clock_monotonic_ns();
            let taken = is_late(now_ns, back_ns);
            if let Some(core) = core {
                core.note(back_ns, taken);
            }
            self.offer_ns = back_ns + FREE_FOR_NS;
            return !taken;
        }
        true
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

/// Whether a core that was offered at `from_ns` and was back at `to_ns` was used meanwhile.
fn is_late(from_ns: u64, to_ns: u64) -> bool {
    to_ns - from_ns >= SHARED_AFTER_NS
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
    fn a_shared_core_is_left_alone_longer_and_longer() {
        assert!(!is_late(10_000, 10_300) && is_late(20_000, 20_000 + SHARED_AFTER_NS));
        let core = Core::new();
        assert!(!core.is_shared(0) && core.known_until_ns() == 0);
        let mut now_ns = 1;
        for wanted_ms in [8, 16, 32, 64, 128, 256, 256] {
            core.note(now_ns, true);
            assert!(core.is_shared(now_ns + wanted_ms * 1_000_000 - 1), "{wanted_ms}");
            now_ns += wanted_ms * 1_000_000;
            assert!(!core.is_shared(now_ns) && core.known_until_ns() == now_ns, "{wanted_ms}");
        }
        // One offer that nobody takes: it is used, and hardly forgotten.
        core.note(now_ns, false);
        assert!(!core.is_shared(now_ns) && core.known_until_ns() == now_ns + FREE_FOR_NS);
        core.note(now_ns, true);
        assert!(core.is_shared(now_ns + SHARED_LONGEST_NS - 1));
        // Nobody wants it any more.
        for _ in 0..64 {
            core.note(now_ns, false);
        }
        core.note(now_ns, true);
        assert!(!core.is_shared(now_ns + SHARED_FIRST_NS));
    }

    #[test]
    fn offers_take_little_of_a_shared_core() {
        let core = Core::new();
        let (mut now_ns, mut offers) = (0, 0);
        while now_ns < 10_000_000_000 {
            // Every third offer finds nobody.
            core.note(now_ns, offers % 3 != 2);
            offers += 1;
            now_ns = core.known_until_ns();
        }
        assert!(offers < 100, "{offers} slices of 3 ms given away in 10 s");
    }

    #[test]
    fn a_spin_ends_by_itself_and_looks_last() {
        let mut looks = 0;
        let done = Spinner::new(sys::clock_monotonic_ns(), 30_000).until(|| {
            looks += 1;
            false
        });
        // On a core that others need it ends at once.
        assert!(!done && looks >= 1);
        assert!(Spinner::new(0, 0).until(|| true));
    }
}
