//! Facts about the machine that a figure depends on, and its noise, measured before everything else. Called by `frame`.

use std::fs;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::processor_time::Reading;

/// What the machine is. Empty texts: not told.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// Model of the processor.
    pub processor: String,
    /// Logical processors that are on line.
    pub cores: String,
    /// Kernel release.
    pub kernel: String,
    /// The hypervisor flag of the processor.
    pub virtual_machine: bool,
    /// Idle driver and governor.
    pub idle: String,
    /// Idle states with their exit latency.
    pub idle_states: Vec<String>,
    /// Frequency governor.
    pub frequency_governor: String,
    /// Clock source.
    pub clock_source: String,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Whether sessions share the processor equally, whatever `nice` says.
    pub autogroup: bool,
}

/// How steady the machine is while nothing of ours runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Noise {
    /// Length of the look, seconds.
    pub seconds: f64,
    /// Processor time of other processes, share of one core.
    pub others_share: f64,
    /// Time that the hypervisor took, share of one core.
    pub steal_share: f64,
    /// Slowest over fastest of equal pieces of work, one thread.
    pub spin_slowest: f64,
    /// 90th percentile over the median of the same.
    pub spin_p90: f64,
}

impl Noise {
    /// What would disturb a measurement, in words; `None` on a quiet machine.
    pub fn warning(&self) -> Option<String> {
        let mut reasons = Vec::new();
        if self.others_share > 0.05 {
            reasons
                .push(format!("other processes use {:.0} % of a core", self.others_share * 100.0));
        }
        if self.steal_share > 0.01 {
            reasons
                .push(format!("the hypervisor takes {:.1} % of a core", self.steal_share * 100.0));
        }
        if self.spin_p90 > 1.1 {
            reasons.push(format!("equal work varies by {:.0} %", (self.spin_p90 - 1.0) * 100.0));
        }
        (!reasons.is_empty()).then(|| format!("not quiet: {}", reasons.join(", ")))
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

impl Facts {
    /// Reads them.
    pub fn read() -> Facts {
        let cpuinfo = text("/proc/cpuinfo");
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
        };
        let memory = text("/proc/meminfo");
        let memory_kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let memory_kib =
            memory_kib.and_then(|value| value.trim().trim_end_matches(" kB").parse::<u64>().ok());
        let idle = "/sys/devices/system/cpu/cpuidle";
        let governor = text(&format!("{idle}/current_governor"));
        let states =
            (0..16).map(|state| format!("/sys/devices/system/cpu/cpu0/cpuidle/state{state}"));
        let described = states.filter(|folder| fs::metadata(folder).is_ok()).map(|folder| {
            format!("{} {} us", text(&format!("{folder}/name")), text(&format!("{folder}/latency")))
        });
        Facts {
            processor: field("model name").to_string(),
            cores: text("/sys/devices/system/cpu/online"),
            kernel: text("/proc/sys/kernel/osrelease"),
            virtual_machine: field("flags").split(' ').any(|flag| flag == "hypervisor"),
            idle: format!("{} {governor}", text(&format!("{idle}/current_driver")))
                .trim()
                .to_string(),
            idle_states: described.collect(),
            frequency_governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            clock_source: text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            memory_bytes: memory_kib.unwrap_or(0) * 1024,
            autogroup: text("/proc/sys/kernel/sched_autogroup_enabled") == "1",
        }
    }
}

/// Watches the machine for about `look`: what others use, and how equal equal work is.
pub fn noise(look: Duration) -> Noise {
    let (before, started) = (Reading::take(), Instant::now());
    let mut pieces_ns = Vec::new();
    while started.elapsed() < look {
        let piece = Instant::now();
        spin(SPIN_STEPS);
        pieces_ns.push(piece.elapsed().as_nanos() as f64);
    }
    let seconds = started.elapsed().as_secs_f64();
    let used = Reading::take().since(&before, &[], std::process::id());
    let (slowest, p90) = spread(&mut pieces_ns);
    Noise {
        seconds,
        others_share: used.others_s / seconds,
        steal_share: used.steal_s / seconds,
        spin_slowest: slowest,
        spin_p90: p90,
    }
}

/// Slowest over fastest, and 90th percentile over the median.
fn spread(pieces: &mut [f64]) -> (f64, f64) {
    pieces.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| pieces.get((pieces.len() as f64 * share) as usize).copied();
    match (pieces.first(), pieces.last(), at(0.5), at(0.9)) {
        (Some(first), Some(last), Some(half), Some(p90)) => (last / first, p90 / half),
        _ => (1.0, 1.0),
    }
}

/// About 100 us of work that depends on nothing but the core.
const SPIN_STEPS: u64 = 100_000;

/// Works for a time that depends only on the core's speed.
pub fn spin(steps: u64) -> u64 {
    let mut value = 1_u64;
    for _ in 0..steps {
        value = std::hint::black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_name_the_kernel() {
        let facts = Facts::read();
        assert!(!facts.kernel.is_empty() && !facts.cores.is_empty(), "{facts:?}");
    }

    #[test]
    fn only_a_disturbed_machine_is_warned_of() {
        let quiet = Noise { spin_p90: 1.02, ..Noise::default() };
        assert_eq!(quiet.warning(), None);
        let busy = Noise { others_share: 0.5, spin_p90: 1.0, ..Noise::default() };
        assert!(busy.warning().is_some_and(|text| text.contains("50 %")));
    }

    #[test]
    fn spread_compares_the_slow_with_the_usual() {
        let mut pieces: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(spread(&mut pieces), (100.0, 91.0 / 51.0));
        assert_eq!(spread(&mut []), (1.0, 1.0));
    }
}
