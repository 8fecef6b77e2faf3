//! What there is when all is quiet: processes, interfaces, sockets, descriptors, mappings, memory, files. Taken
//! before and after kills, and compared.

use crate::support::inspect;
use crate::support::stage::Stage;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long it may take until all is quiet.
const QUIET: Duration = Duration::from_secs(60);
/// A mapping more or less is the allocator's business, as are pages that it keeps.
const MAPPINGS_SLACK: u64 = 8;
const MEMORY_SLACK_KIB: u64 = 8 * 1024;
/// Between a socket's state and its name.
const LOCAL: &str = " at ";

/// Whose descriptors are counted.
pub struct People {
    pub supervisor: u32,
    pub servers: Vec<u32>,
    /// Programs that live as long as the service.
    pub lasting: Vec<u32>,
    /// The sockets of those that are bound and have no peer.
    pub sockets: usize,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Must be the same each time.
    exact: BTreeMap<String, String>,
    /// Must not grow by more than their slack.
    counts: BTreeMap<String, (u64, u64)>,
    /// What the descriptors of the service are, and who is attached: to understand a growth.
    kinds: BTreeMap<String, String>,
}

impl Census {
    /// What has leaked, in words.
    fn leaks(&self, later: &Census) -> Vec<String> {
        let exact = self.exact.iter().filter(|(name, value)| later.exact.get(*name) != Some(value));
        let exact = exact.map(|(name, value)| {
            format!("{name}: {value} before, {:?} now", later.exact.get(name))
        });
        let after = |name: &String| later.counts.get(name).map_or(0, |(count, _)| *count);
        let grown =
            self.counts.iter().filter(|(name, (before, slack))| after(name) > before + slack);
        let grown = grown
            .map(|(name, (before, _))| format!("{name}: {before} before, {} now", after(name)));
        exact.chain(grown).collect()
    }

    /// What has become of what the descriptors are, and of who is attached.
    fn show_kinds(&self, stage: &Stage, later: &Census) {
        for (name, before) in &self.kinds {
            let now = later.kinds.get(name).map_or("-", String::as_str);
            stage.say(&format!("{name}:\n  before {before}\n  now    {now}"));
        }
    }

    /// Both in a line.
    pub fn beside(&self, later: &Census) -> String {
        let pair = |(name, (before, _)): (&String, &(u64, u64))| {
            let after = later.counts.get(name).map_or(0, |(count, _)| *count);
            format!("{name} {before} -> {after}")
        };
        let counts: Vec<String> = self.counts.iter().map(pair).collect();
        format!("{}; {:?}", counts.join(", "), later.exact)
    }
}

/// Waits until all is quiet, and as it was `before`, and counts. `processes` is how many there are then.
#[track_caller]
pub fn take(
    stage: &Stage,
    people: &People,
    processes: usize,
    before: Option<&Census>,
    what: &str,
) -> Census {
    let started = Instant::now();
    let mut last = count(stage, people);
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = count(stage, people);
        let quiet = now.exact["processes"] == processes.to_string()
            && now.exact["connections"] == "[]"
            && now.exact["sockets"].matches(LOCAL).count() == people.sockets
            && now.exact == last.exact;
        let steady = now.counts.iter().all(|(name, (count, slack))| {
            last.counts.get(name).is_some_and(|(before, _)| count.abs_diff(*before) <= *slack / 4)
        });
        if quiet && steady && before.is_none_or(|before| before.leaks(&now).is_empty()) {
            return now;
        }
        if started.elapsed() > QUIET && quiet {
            let leaks = before.map(|before| before.leaks(&now)).unwrap_or_default();
            stage.say(&format!("status: {:?}", stage.ask("status", &[])));
            if let Some(before) = before {
                before.show_kinds(stage, &now);
            }
            stage.say(&format!("sockets: {:?}", inspect::sockets(stage)));
            panic!("{what}: after {QUIET:?} still {}", leaks.join(", "));
        }
        if started.elapsed() > QUIET {
            let all: Vec<String> = stage.processes().into_iter().map(inspect::describe).collect();
            panic!("not quiet after {QUIET:?}: {now:?}\n{processes} processes wanted: {all:#?}");
        }
        last = now;
    }
}

fn count(stage: &Stage, people: &People) -> Census {
    let mut census = Census::default();
    let mut exact = |name: &str, value: String| drop(census.exact.insert(name.to_string(), value));
    let alive = stage.processes().into_iter().filter(|pid| inspect::is_alive(*pid)).count();
    exact("processes", alive.to_string());
    exact("interfaces", format!("{:?}", stage.interfaces()));
    let mut files = stage.control_files();
    files.sort();
    exact("files", format!("{files:?}"));
    let sockets = inspect::sockets(stage);
    let of_state = |wanted: &dyn Fn(&str) -> bool| {
        let mut rows: Vec<String> = sockets
            .iter()
            .filter(|socket| wanted(&inspect::state(socket)))
            .map(|socket| format!("{}{LOCAL}{}", inspect::state(socket), socket["local"]))
            .collect();
        rows.sort();
        format!("{rows:?}")
    };
    exact("sockets", of_state(&|state| state == "LISTEN" || state == "UNCONN"));
    exact("connections", of_state(&|state| !["LISTEN", "UNCONN", "TIME-WAIT"].contains(&state)));
    let mut kinds = BTreeMap::new();
    let mut add = |name: String, count: u64, slack: u64| {
        census.counts.insert(name, (count, slack));
    };
    let status = stage.ask("status", &[]).unwrap_or_default();
    for field in ["domains", "sockets", "stream_bytes", "unclaimed_bytes"] {
        add(format!("memory {field}"), status["memory"][field].as_u64().unwrap_or(0), 0);
    }
    let attached = status["processes"].as_array().map_or(0, Vec::len) as u64;
    add("attached processes".into(), attached, 0);
    for (number, pid) in people.servers.iter().enumerate() {
        add(format!("server {number} descriptors"), descriptors(*pid), 0);
        kinds.insert(format!("server {number}"), format!("{:?}", links(*pid)));
        add(format!("server {number} memory KiB"), resident_kib(*pid), MEMORY_SLACK_KIB);
    }
    let programs: BTreeMap<u32, BTreeMap<String, u64>> = status["processes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| u32::try_from(row["pid"].as_u64()?).ok())
        .map(|pid| (pid, links(pid)))
        .collect();
    kinds.insert("attached".to_string(), format!("{programs:?}"));
    kinds.insert("supervisor".to_string(), format!("{:?}", links(people.supervisor)));
    add("supervisor descriptors".into(), descriptors(people.supervisor), 0);
    add("supervisor memory KiB".into(), resident_kib(people.supervisor), MEMORY_SLACK_KIB);
    for pid in &people.lasting {
        let name = inspect::program_of(*pid);
        add(format!("{name} descriptors"), descriptors(*pid), 0);
        add(format!("{name} mappings"), mappings(*pid), MAPPINGS_SLACK);
        add(format!("{name} memory KiB"), resident_kib(*pid), MEMORY_SLACK_KIB);
    }
    census.kinds = kinds;
    census
}

/// What the descriptors of a process are, and how many of each kind.
fn links(pid: u32) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
        // Without the number of this one.
        let kind = target.split(":[").next().unwrap_or_default().to_string();
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

fn descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64)
}

fn mappings(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().count() as u64
}

/// Private and shared memory in use, files left out.
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    field("RssAnon:") + field("RssShmem:")
}

/// Processes, in any namespace, that were started for the test whose folder this is.
pub fn ours(folder: &Path) -> Vec<String> {
    let mark = folder.display().to_string().trim_end_matches('/').as_bytes().to_vec();
    let names = |pid: u32, file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.windows(mark.len()).any(|window| window == mark)
    };
    inspect::all_processes()
        .into_iter()
        .filter(|pid| *pid != std::process::id() && inspect::is_alive(*pid))
        .filter(|pid| names(*pid, "environ") || names(*pid, "cmdline"))
        .map(inspect::describe)
        .collect()
}
