//! Checks of the machine: kernel, cores, idle states, memory, limits, counters.

use super::{Check, Verdict, read};

/// `futex_waitv`, which blocking calls sleep in, came with this version of Linux.
const KERNEL_MIN: (u32, u32) = (5, 16);
/// Descriptors that a busy service and its programs should be able to have.
const DESCRIPTORS_WANTED: u64 = 65_536;
/// A service alone takes about so much, in bytes.
const MEMORY_WANTED: u64 = 256 << 20;

/// All of them.
pub fn checks() -> Vec<Check> {
    vec![
        kernel(&read("/proc/sys/kernel/osrelease").unwrap_or_default()),
        privileges(&read("/proc/self/status").unwrap_or_default()),
        cores(),
        quota(&read("/sys/fs/cgroup/cpu.max").unwrap_or_default()),
        idle_states(),
        clock(&read("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        memory(),
        descriptors(&read("/proc/self/limits").unwrap_or_default()),
        huge_pages(),
        counters(),
    ]
}

fn kernel(release: &str) -> Check {
    let architecture = std::env::consts::ARCH;
    let found = format!("Linux {release} on {architecture}");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < KERNEL_MIN {
        let (major, minor) = KERNEL_MIN;
        return Check::new("kernel", Verdict::Broken, found)
            .advise(format!("blocking calls need Linux {major}.{minor} or newer: upgrade"));
    }
    Check::new("kernel", Verdict::Good, found)
}

/// Capabilities that matter, by their bit in /proc/PID/status (linux/capability.h).
const CAPABILITIES: [(u32, &str); 4] =
    [(12, "net_admin"), (13, "net_raw"), (21, "sys_admin"), (23, "sys_nice")];
const NET_ADMIN: u32 = 12;

/// The value of a line `name: value` of a file in /proc.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn privileges(status: &str) -> Check {
    let user: u32 = field(status, "Uid")
        .and_then(|users| users.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(u32::MAX);
    let effective =
        field(status, "CapEff").and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    let held: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective >> bit & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    let held = if held.is_empty() { "none".to_string() } else { held.join(", ") };
    let found = format!("user {user}; capabilities of use: {held}");
    if effective >> NET_ADMIN & 1 == 1 {
        return Check::new("privileges", Verdict::Good, found);
    }
    Check::new("privileges", Verdict::Limited, found).advise(
        "for an interface in this network run as root or with CAP_NET_ADMIN; haypile run makes a \
             network of its own without",
    )
}

fn cores() -> Check {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let online = read("/sys/devices/system/cpu/online").unwrap_or_default();
    let cache = read("/sys/devices/system/cpu/cpu0/cache/index3/shared_cpu_list")
        .map_or_else(String::new, |list| format!("; cores {list} share a last-level cache"));
    let siblings = read("/sys/devices/system/cpu/smt/active").as_deref() == Some("1");
    let threads = if siblings { "; hyper-threads are on" } else { "" };
    let found = format!("{usable} usable of {online}{cache}{threads}");
    if usable == 1 {
        return Check::new("cores", Verdict::Limited, found)
            .advise("with one core the service and the programs take turns; two are better");
    }
    Check::new("cores", Verdict::Good, found)
}

/// The CPU quota of the control group: "max 100000" or "200000 100000".
fn quota(text: &str) -> Check {
    let mut words = text.split_whitespace();
    let (quota, period) = (words.next().unwrap_or("max"), words.next().unwrap_or(""));
    match (quota.parse::<f64>(), period.parse::<f64>()) {
        (Ok(quota), Ok(period)) if period > 0.0 => {
            let found = format!("{:.2} cores by the control group", quota / period);
            Check::new("CPU quota", Verdict::Limited, found).advise(
                "a service that is throttled answers late: raise cpu.max, or give it cores by cpuset",
            )
        }
        _ => Check::new("CPU quota", Verdict::Good, "none"),
    }
}

fn idle_states() -> Check {
    let driver = read("/sys/devices/system/cpu/cpuidle/current_driver")
        .filter(|driver| driver != "none")
        .unwrap_or_else(|| "the hypervisor's or none".to_string());
    let latency = std::fs::OpenOptions::new().write(true).open("/dev/cpu_dma_latency").is_ok();
    let may = if latency { "can" } else { "cannot" };
    let found = format!("{driver}; this user {may} turn deep ones off");
    Check::new("idle states", Verdict::Note, found)
}

fn clock(source: &Option<String>) -> Check {
    let source = source.as_deref().unwrap_or("unknown");
    let found = format!("clock source {source}");
    // These are read without a system call on x86-64 and arm64.
    if ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"].contains(&source) {
        return Check::new("clock", Verdict::Good, found);
    }
    Check::new("clock", Verdict::Limited, found)
        .advise("each look at the clock is a system call; boot with a stable TSC if there is one")
}

fn memory() -> Check {
    let text = read("/proc/meminfo").unwrap_or_default();
    let available = field(&text, "MemAvailable")
        .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        << 10;
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|text| text.parse::<u64>().ok());
    let usable = limit.map_or(available, |limit| available.min(limit));
    let limited = limit
        .map_or_else(String::new, |limit| format!(", {} MiB by the control group", limit >> 20));
    let found = format!("{} MiB available{limited}", available >> 20);
    if usable < MEMORY_WANTED {
        return Check::new("memory", Verdict::Limited, found)
            .advise("programs may see ENOBUFS under load: free memory or raise memory.max");
    }
    Check::new("memory", Verdict::Good, found)
}

fn descriptors(limits: &str) -> Check {
    let hard = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(u64::MAX);
    let found = format!("up to {hard} a process");
    if hard < DESCRIPTORS_WANTED {
        return Check::new("descriptors", Verdict::Limited, found)
            .advise("each socket is a descriptor: raise it with ulimit -Hn or limits.conf");
    }
    Check::new("descriptors", Verdict::Good, found)
}

fn huge_pages() -> Check {
    let free = read("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .unwrap_or_else(|| "no".to_string());
    Check::new(
        "huge pages",
        Verdict::Note,
        format!("{free} free of 2 MiB; not used by this version"),
    )
}

fn counters() -> Check {
    let found = match read("/sys/bus/event_source/devices/cpu/type") {
        Some(_) => "cycles and cache misses can be counted",
        None => "none here; benches leave their columns empty",
    };
    Check::new("hardware counters", Verdict::Note, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_broken_and_a_new_one_is_not() {
        assert_eq!(kernel("5.15.0-91-generic").verdict, Verdict::Broken);
        assert_eq!(kernel("5.16.0").verdict, Verdict::Good);
        assert_eq!(kernel("6.18.44+deb13-amd64").verdict, Verdict::Good);
        assert_eq!(kernel("").verdict, Verdict::Broken);
    }

    #[test]
    fn capabilities_are_read_by_bit() {
        let root = privileges("Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n");
        assert_eq!(root.verdict, Verdict::Good);
        let network = privileges("Uid:\t1000\t1000\t0\t0\nCapEff:\t0000000000001000\n");
        assert_eq!(network.verdict, Verdict::Good);
        assert_eq!(network.found, "user 1000; capabilities of use: net_admin");
        let plain = privileges("Uid:\t1000\t1000\t0\t0\nCapEff:\t0000000000000000\n");
        assert_eq!(plain.verdict, Verdict::Limited);
    }

    #[test]
    fn a_quota_is_told_in_cores() {
        assert_eq!(quota("max 100000").verdict, Verdict::Good);
        assert_eq!(quota("").verdict, Verdict::Good);
        let limited = quota("150000 100000");
        assert_eq!(limited.verdict, Verdict::Limited);
        assert_eq!(limited.found, "1.50 cores by the control group");
    }

    #[test]
    fn few_descriptors_are_told() {
        let line = "Max open files            1024                 4096                 files";
        assert_eq!(descriptors(line).verdict, Verdict::Limited);
        assert_eq!(descriptors("").verdict, Verdict::Good);
    }
}
