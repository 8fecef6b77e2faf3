//! Measurements that say what to expect: waking a sleeper, reading the clock. They take a quarter
//! of a second together; the machine's other work shows in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Check, Verdict};

const WAKE_UPS: usize = 100;
const CLOCK_READS: u32 = 20_000;
/// From here on waking decides the latency of every quiet connection.
const SLOW_WAKE_NS: u64 = 15_000;

/// All of them.
pub fn checks() -> Vec<Check> {
    vec![waking(), clock()]
}

fn waking() -> Check {
    let mut times = wake_ups();
    times.sort_unstable();
    let (Some(median), Some(worst)) = (times.get(times.len() / 2), times.last()) else {
        return Check::new("wake-up", Verdict::Note, "not measured");
    };
    let micros = |ns: u64| ns as f64 / 1000.0;
    let found = format!(
        "{:.1} us to wake a sleeping thread (median of {WAKE_UPS}; worst {:.1})",
        micros(*median),
        micros(*worst)
    );
    if *median < SLOW_WAKE_NS {
        return Check::new("wake-up", Verdict::Good, found);
    }
    Check::new("wake-up", Verdict::Limited, found).advise(
        "idle cores sleep deeply: requests after a pause wait for them; hold /dev/cpu_dma_latency at \
         0, or set guest_halt_poll_ns in a virtual machine",
    )
}

/// Nanoseconds from the call to the sleeper's first instruction, many times.
fn wake_ups() -> Vec<u64> {
    let epoch = Instant::now();
    let woken_ns = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let (shared, ends) = (Arc::clone(&woken_ns), Arc::clone(&over));
    let sleeper = std::thread::spawn(move || {
        while !ends.load(Ordering::Acquire) {
            std::thread::park_timeout(Duration::from_secs(1));
            shared.store(epoch.elapsed().as_nanos() as u64, Ordering::Release);
        }
    });
    let mut times = Vec::with_capacity(WAKE_UPS);
    for _ in 0..WAKE_UPS {
        // Long enough that the sleeper's core goes to rest.
        std::thread::sleep(Duration::from_millis(2));
        woken_ns.store(0, Ordering::Release);
        let start_ns = epoch.elapsed().as_nanos() as u64;
        sleeper.thread().unpark();
        let limit = Instant::now() + Duration::from_millis(100);
        while woken_ns.load(Ordering::Acquire) == 0 && Instant::now() < limit {
            std::hint::spin_loop();
        }
        let end_ns = woken_ns.load(Ordering::Acquire);
        if end_ns > start_ns {
            times.push(end_ns - start_ns);
        }
    }
    over.store(true, Ordering::Release);
    sleeper.thread().unpark();
    drop(sleeper.join());
    times
}

fn clock() -> Check {
    let start = Instant::now();
    for _ in 0..CLOCK_READS {
        std::hint::black_box(Instant::now());
    }
    let each_ns = start.elapsed().as_nanos() as u64 / u64::from(CLOCK_READS);
    Check::new("clock read", Verdict::Note, format!("{each_ns} ns"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wake_ups_are_measured_and_the_sleeper_ends() {
        let times = wake_ups();
        assert!(times.len() > WAKE_UPS / 2);
        assert!(times.iter().all(|time| *time > 0));
    }
}
