//! Who used the processor: readings of /proc/stat and /proc/PID/stat and their differences. Called by `frame` around
//! each measured window. Times are seconds; the kernel counts in hundredths, so windows below a second tell little.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

/// /proc/stat and /proc/PID/stat count in this unit, fixed on Linux (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Time of one core, seconds since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CoreTime {
    /// Programs, user mode, `nice` included.
    pub user_s: f64,
    /// Kernel on behalf of programs.
    pub system_s: f64,
    /// Interrupts, hard and soft.
    pub interrupt_s: f64,
    /// Nothing to do.
    pub idle_s: f64,
    /// Taken by the hypervisor for others.
    pub steal_s: f64,
}

impl CoreTime {
    /// All but idle and stolen time.
    pub fn busy_s(&self) -> f64 {
        self.user_s + self.system_s + self.interrupt_s
    }

    fn since(&self, earlier: &CoreTime) -> CoreTime {
        let less = |now: f64, before: f64| (now - before).max(0.0);
        CoreTime {
            user_s: less(self.user_s, earlier.user_s),
            system_s: less(self.system_s, earlier.system_s),
            interrupt_s: less(self.interrupt_s, earlier.interrupt_s),
            idle_s: less(self.idle_s, earlier.idle_s),
            steal_s: less(self.steal_s, earlier.steal_s),
        }
    }
}

/// One process at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its session.
    pub session: u32,
    /// User mode, seconds.
    pub user_s: f64,
    /// System mode, seconds.
    pub system_s: f64,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    cores: BTreeMap<usize, CoreTime>,
    processes: BTreeMap<u32, Process>,
}

/// What one part used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Used {
    /// User mode, seconds.
    pub user_s: f64,
    /// System mode, seconds; work that the kernel does in a program's name, even for others, is in here.
    pub system_s: f64,
}

impl Used {
    /// Both.
    pub fn total_s(&self) -> f64 {
        self.user_s + self.system_s
    }
}

/// The time between two readings.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Use {
    /// By core.
    pub cores: BTreeMap<usize, CoreTime>,
    /// By part, in the order of the roots given.
    pub parts: Vec<Used>,
    /// Processes that belong to no part, this one and the kernel's threads left out.
    pub others_s: f64,
    /// Taken by the hypervisor, on all cores.
    pub steal_s: f64,
}

impl Reading {
    /// Reads both now.
    pub fn take() -> Reading {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let mut processes = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !name.to_string_lossy().starts_with(|first: char| first.is_ascii_digit()) {
                continue;
            }
            // A process may end between the two steps.
            let Ok(text) = fs::read_to_string(entry.path().join("stat")) else { continue };
            if let Some(process) = parse_process(&text) {
                processes.insert(process.pid, process);
            }
        }
        Reading { cores: parse_cores(&stat), processes }
    }

    /// What was used since an earlier reading: by the parts, each a process with its descendants and its session, and
    /// by others.
    pub fn since(&self, earlier: &Reading, roots: &[u32], own: u32) -> Use {
        let mut parts = vec![Used::default(); roots.len()];
        let mut others_s = 0.0;
        for process in self.processes.values() {
            let before = earlier.processes.get(&process.pid);
            let user_s = process.user_s - before.map_or(0.0, |before| before.user_s);
            let system_s = process.system_s - before.map_or(0.0, |before| before.system_s);
            let (user_s, system_s) = (user_s.max(0.0), system_s.max(0.0));
            match self.root_of(process, roots) {
                Some(index) => {
                    parts[index].user_s += user_s;
                    parts[index].system_s += system_s;
                }
                None if process.pid == own || self.is_kernel_thread(process) => {}
                None => others_s += user_s + system_s,
            }
        }
        let before = |core| earlier.cores.get(core).copied().unwrap_or_default();
        let cores: BTreeMap<usize, CoreTime> =
            self.cores.iter().map(|(core, time)| (*core, time.since(&before(core)))).collect();
        let steal_s = cores.values().map(|core| core.steal_s).sum();
        Use { cores, parts, others_s, steal_s }
    }

    /// Processor time of each root with its descendants until now, seconds, exact to the nanosecond where the kernel
    /// keeps it (`/proc/PID/task/TID/schedstat`): for what is too little for hundredths. Ended threads are not in it.
    pub fn exact_s(&self, roots: &[u32]) -> Vec<f64> {
        let mut times = vec![0.0; roots.len()];
        for process in self.processes.values() {
            let Some(index) = self.root_of(process, roots) else { continue };
            let threads = fs::read_dir(format!("/proc/{}/task", process.pid));
            for thread in threads.into_iter().flatten().flatten() {
                let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
                let ran_ns: Option<f64> = text.split(' ').next().and_then(|word| word.parse().ok());
                times[index] += ran_ns.unwrap_or(0.0) / 1e9;
            }
        }
        times
    }

    /// The nearest ancestor, itself included, that is a root, or the root that leads its session.
    fn root_of(&self, process: &Process, roots: &[u32]) -> Option<usize> {
        let mut at = Some(process);
        // A chain of parents that is longer than this was read while it changed.
        for _ in 0..64 {
            let Some(found) = at else { break };
            if let Some(index) = roots.iter().position(|root| *root == found.pid) {
                return Some(index);
            }
            at = self.processes.get(&found.parent);
        }
        roots.iter().position(|root| *root == process.session)
    }

    fn is_kernel_thread(&self, process: &Process) -> bool {
        const KTHREADD: u32 = 2;
        let real = self.processes.get(&KTHREADD).is_some_and(|process| process.session == 0);
        real && (process.pid == KTHREADD || process.parent == KTHREADD)
    }
}

/// The lines `cpuN` of /proc/stat.
fn parse_cores(text: &str) -> BTreeMap<usize, CoreTime> {
    let line = |line: &str| {
        let mut words = line.strip_prefix("cpu")?.split_ascii_whitespace();
        let number: usize = words.next()?.parse().ok()?;
        let times: Vec<f64> =
            words.map(|word| word.parse::<f64>().unwrap_or(0.0) / TICKS_PER_SECOND).collect();
        let at = |index: usize| times.get(index).copied().unwrap_or(0.0);
        let core = CoreTime {
            user_s: at(0) + at(1),
            system_s: at(2),
            idle_s: at(3) + at(4),
            interrupt_s: at(5) + at(6),
            steal_s: at(7),
        };
        Some((number, core))
    };
    // The line of all cores has no number directly behind `cpu`.
    text.lines().filter(|text| !text.starts_with("cpu ")).filter_map(line).collect()
}

/// One /proc/PID/stat; the name, in brackets, may hold anything.
fn parse_process(text: &str) -> Option<Process> {
    let (pid, rest) = (text.split_once(' ')?.0.parse().ok()?, text.rsplit_once(')')?.1);
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Field 3 of proc(5), the state, is the first of these.
    let seconds =
        |field: usize| Some(words.get(field - 3)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(Process {
        pid,
        parent: words.get(1)?.parse().ok()?,
        session: words.get(3)?.parse().ok()?,
        user_s: seconds(14)?,
        system_s: seconds(15)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_read() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 20 30 400 5 6 7 8 0 0\nintr 5\n";
        let cores = parse_cores(text);
        let core = cores[&0];
        assert_eq!(cores.len(), 1);
        assert!((core.user_s - 1.2).abs() < 1e-9 && (core.interrupt_s - 0.13).abs() < 1e-9);
        assert!((core.idle_s - 4.05).abs() < 1e-9 && (core.steal_s - 0.08).abs() < 1e-9);
        let line = "42 (a) name) R 7 42 40 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 99 1 1";
        let process = parse_process(line).expect("a process");
        assert_eq!((process.pid, process.parent, process.session), (42, 7, 40));
        assert!((process.user_s - 1.5).abs() < 1e-9 && (process.system_s - 0.5).abs() < 1e-9);
        assert_eq!(parse_process("42 (cut"), None);
    }

    fn reading(processes: &[(u32, u32, u32, f64)]) -> Reading {
        let process = |&(pid, parent, session, user_s): &(u32, u32, u32, f64)| {
            (pid, Process { pid, parent, session, user_s, system_s: 0.0 })
        };
        Reading { cores: BTreeMap::new(), processes: processes.iter().map(process).collect() }
    }

    #[test]
    fn time_goes_to_the_nearest_root() {
        let before =
            reading(&[(2, 0, 0, 5.0), (10, 1, 10, 1.0), (20, 10, 20, 1.0), (99, 1, 99, 0.0)]);
        let after = reading(&[
            (2, 0, 0, 6.0),
            (3, 2, 0, 4.0),
            (10, 1, 10, 2.0),
            (11, 10, 10, 0.5),
            (20, 10, 20, 4.0),
            (21, 1, 20, 0.25),
            (50, 1, 50, 7.0),
            (99, 1, 99, 8.0),
        ]);
        let used = after.since(&before, &[10, 20], 99);
        assert_eq!(used.parts[0].user_s, 1.5);
        // The orphan 21 is in the session of 20.
        assert_eq!(used.parts[1].user_s, 3.25);
        assert_eq!(used.others_s, 7.0);
    }

    #[test]
    fn our_own_work_is_found() {
        let own = std::process::id();
        let before = Reading::take();
        let mut sum = 0_u64;
        let used = loop {
            for value in 0..5_000_000_u64 {
                sum = std::hint::black_box(sum.wrapping_add(value));
            }
            let used = Reading::take().since(&before, &[own], 0);
            if used.parts[0].total_s() >= 0.05 {
                break used;
            }
        };
        assert!(used.cores.values().map(CoreTime::busy_s).sum::<f64>() > 0.0);
    }
}
