//! How long a waiter spins before it sleeps, and how. Waking a sleeper on another core costs tens
//! of microseconds, a polled word almost nothing; but a core that spins does nothing else.
//!
//! Three rules. [`others_run`]: nobody spins where only one processor runs, because what it waits
//! for is done by that one. [`Gaps`]: whoever is usually called again soon spins for as long as that
//! usually takes, everybody else for a moment only. [`Spinner`]: whoever spins offers the core to
//! others, first of all and every few microseconds: to the program, above all, that was woken just
//! before. So a service and a program that share a core hand it to each other in a microsecond, and
//! the service hears of other cores without being woken. Used by the service's loop and by every
//! blocking call of an application that runs on another core than its service.
//!
//! An offer is dear where somebody computes: Linux (6.18) lets the offerer wait as if it had used its
//! whole slice, some 3 ms, and the next time, too, if it sleeps meanwhile. Whoever offered at every
//! wait got a five-hundredth of the core, and was starved for many seconds by one who never offers.
//! So an offer that cost that much is remembered for the core: nobody spins there, or offers it, for
//! a time that doubles while that goes on.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::OnceLock;

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
/// Whoever gets the core back later than this, in nanoseconds, shares it with one that computes:
/// less than the least slice of Linux, more than a program needs for what a service had for it.
const LOST_NS: u64 = 500_000;

/// For how long nobody spins on such a core the first time, and at most, in nanoseconds.
const LEFT_FIRST_NS: u64 = 8_000_000;
const LEFT_LONGEST_NS: u64 = 256_000_000;

/// What is known of a core. Threads may write at the same time: a lost update only makes it follow
/// later.
#[derive(Debug)]
struct Core {
    /// Nobody spins there until then, on the monotonic clock.
    left_until_ns: AtomicU64,
    /// For how long it was left the last time.
    left_for_ns: AtomicU64,
}

/// Cores; those whose numbers are equal modulo the length share a place.
static CORES: [Core; 256] = [const { Core::new() }; 256];

impl Core {
    const fn new() -> Core {
        Core { left_until_ns: AtomicU64::new(0), left_for_ns: AtomicU64::new(0) }
    }

    /// The one that the caller runs on, if that can be told.
    fn present() -> Option<&'static Core> {
        sys::current_core().map(|number| &CORES[number as usize % CORES.len()])
    }

    fn is_left(&self, now_ns: u64) -> bool {
        now_ns < self.left_until_ns.load(Ordering::Relaxed)
    }

    /// An offer that ended at `now_ns` cost the offerer a slice.
    fn lost(&self, now_ns: u64) {
        let before_ns = self.left_for_ns.load(Ordering::Relaxed);
        let free_ns = now_ns.saturating_sub(self.left_until_ns.load(Ordering::Relaxed));
        // Forgotten in four times the time it took to learn.
        let known_ns = before_ns.saturating_sub(free_ns / 4);
        let for_ns = (known_ns * 2).clamp(LEFT_FIRST_NS, LEFT_LONGEST_NS);
        self.left_for_ns.store(for_ns, Ordering::Relaxed);
        self.left_until_ns.store(now_ns + for_ns, Ordering::Relaxed);
    }
}

/// Whether anybody can do something while the caller spins: another processor runs, and the caller
/// is not held to the time of one (`cpu.max` of cgroups). That it may use only one itself is no
/// reason not to spin there.
pub fn others_run() -> bool {
    static OTHERS: OnceLock<bool> = OnceLock::new();
    *OTHERS.get_or_init(|| {
        let allowed = sys::privilege::allowed_processors().map_or(1, |cores| cores.len());
        let usable = std::thread::available_parallelism().map_or(1, usize::from);
        is_worth_it(sys::processors_online(), allowed, usable)
    })
}

/// Of so many processors that run and that the caller is allowed, it may use the time of so many.
fn is_worth_it(online: usize, allowed: usize, usable: usize) -> bool {
    online > 1 && (usable > 1 || allowed == 1)
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
    /// a core where somebody computes.
    pub fn new(now_ns: u64, patience_ns: u64) -> Spinner {
        let core = if patience_ns > 0 { Core::present() } else { None };
        let left = core.is_none_or(|core| core.is_left(now_ns));
        let end_ns = if left { now_ns } else { now_ns.saturating_add(patience_ns) };
        Spinner { end_ns, offer_ns: now_ns, now_ns }
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
        if now_ns < self.offer_ns {
            return true;
        }
        let (back_ns, lost) = give_away(now_ns);
        self.offer_ns = back_ns + OFFER_EVERY_NS;
        !lost
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

/// Offers the core to whoever waits for it, unless somebody computes there.
pub fn offer() {
    let now_ns = sys::clock_monotonic_ns();
    if Core::present().is_some_and(|core| !core.is_left(now_ns)) {
        give_away(now_ns);
    }
}

/// Offers the core at `now_ns`. When it was back, and whether that cost a slice.
fn give_away(now_ns: u64) -> (u64, bool) {
    let core = Core::present();
    sys::sched_yield();
    let back_ns = sys::clock_monotonic_ns();
    let lost = is_lost(now_ns, back_ns);
    if lost && let Some(core) = core {
        core.lost(back_ns);
    }
    (back_ns, lost)
}

/// Whether the time from `from_ns` to `to_ns`, for which a core was given away, was lost.
fn is_lost(from_ns: u64, to_ns: u64) -> bool {
    to_ns - from_ns >= LOST_NS
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
    fn a_core_on_which_somebody_computes_is_left_longer_and_longer() {
        let core = Core::new();
        assert!(!core.is_left(0));
        let mut now_ns = 1;
        for wanted_ms in [8, 16, 32, 64, 128, 256, 256] {
            core.lost(now_ns);
            assert!(core.is_left(now_ns + wanted_ms * 1_000_000 - 1), "{wanted_ms}");
            now_ns += wanted_ms * 1_000_000;
            assert!(!core.is_left(now_ns), "{wanted_ms}");
        }
        // A tenth of a second without a loss is little, ten seconds are enough.
        core.lost(now_ns + 100_000_000);
        assert!(core.is_left(now_ns + 100_000_000 + LEFT_LONGEST_NS - 1));
        core.lost(now_ns + 10_000_000_000);
        assert!(!core.is_left(now_ns + 10_000_000_000 + LEFT_FIRST_NS));
    }

    #[test]
    fn offers_take_little_of_a_core_on_which_somebody_computes() {
        let (core, slice_ns) = (Core::new(), 4_000_000);
        let (mut now_ns, mut given_ns) = (0, 0);
        while now_ns < 10_000_000_000 {
            if core.is_left(now_ns) {
                now_ns = core.left_until_ns.load(Ordering::Relaxed);
                continue;
            }
            given_ns += slice_ns;
            now_ns += slice_ns;
            core.lost(now_ns);
        }
        assert!(given_ns < 250_000_000, "{given_ns} ns of 10 s given away");
    }

    #[test]
    fn a_program_that_answers_soon_costs_nothing() {
        assert!(!is_lost(10_000, 10_300) && !is_lost(10_000, 110_000));
        assert!(is_lost(20_000, 20_000 + LOST_NS));
    }

    #[test]
    fn whoever_has_a_core_of_its_own_spins_there() {
        assert!(is_worth_it(4, 4, 4) && is_worth_it(4, 1, 1) && is_worth_it(2, 2, 2));
        assert!(!is_worth_it(1, 1, 1), "nobody else runs");
        assert!(!is_worth_it(8, 8, 1), "its time is that of one");
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
