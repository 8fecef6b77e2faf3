//! What /proc and the service say of processes and sockets. Used by tests that look at ends and owners.

use super::stage::{Stage, inode};
use super::{PATIENCE, wait_until};
use serde_json::Value;
use std::fs;

/// The number of the calling thread's network namespace.
pub fn own_namespace() -> u64 {
    inode("/proc/thread-self/ns/net").expect("/proc is mounted")
}

/// All processes of the machine.
pub fn all_processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("read /proc");
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Processes of a network namespace other than this one (whose other threads may be in it).
pub fn processes_in(namespace: u64) -> Vec<u32> {
    let own = std::process::id();
    let inside =
        |pid: &u32| *pid != own && inode(&format!("/proc/{pid}/ns/net")) == Some(namespace);
    all_processes().into_iter().filter(inside).collect()
}

/// Whether a process has a handler for a signal of this number: a python that is starting has none yet.
pub fn catches(process: u32, signal: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// A process in words.
pub fn describe(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&line).replace('\0', " ");
    format!("process {pid} ({})", words.trim())
}

/// The fields of /proc/PID/stat from the third (state) on; `None` once the process is gone.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_string).collect())
}

/// Name of the program a process runs, at most 15 bytes.
pub fn program_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_string()
}

/// Children of `parent`.
pub fn children_of(parent: u32) -> Vec<u32> {
    let is_child = |pid: &u32| {
        stat_fields(*pid).is_some_and(|fields| fields.get(1) == Some(&parent.to_string()))
    };
    all_processes().into_iter().filter(is_child).collect()
}

/// The session that a process belongs to.
pub fn session_of(pid: u32) -> Option<u32> {
    stat_fields(pid)?.get(3)?.parse().ok()
}

/// Processor time a process has used so far, in seconds (its clock ticks are 10 ms on every Linux).
pub fn processor_seconds(pid: u32) -> f64 {
    let fields = stat_fields(pid).unwrap_or_default();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// True while the process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    stat_fields(pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z"))
}

/// Sockets of the service, as `haypile ss --all --json` lists them.
#[track_caller]
pub fn sockets(stage: &Stage) -> Vec<Value> {
    let answer = stage.ask("ss", &["--all"]).expect("haypile ss --all --json");
    answer["sockets"].as_array().cloned().unwrap_or_else(|| panic!("no sockets in {answer}"))
}

/// State of a socket in upper case, as ss(8) writes it.
pub fn state(socket: &Value) -> String {
    socket["state"].as_str().unwrap_or_default().to_uppercase().replace('_', "-")
}

/// True for what may stay when all is done: listeners and TIME-WAIT records.
fn is_at_rest(socket: &Value) -> bool {
    matches!(state(socket).as_str(), "LISTEN" | "TIME-WAIT")
}

/// Waits until the service has nothing but listeners and TIME-WAIT records.
#[track_caller]
pub fn wait_for_rest(stage: &Stage) {
    let mut last = Vec::new();
    let started = std::time::Instant::now();
    while started.elapsed() < PATIENCE {
        last = sockets(stage).into_iter().filter(|socket| !is_at_rest(socket)).collect();
        if last.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let shown: Vec<String> = last.iter().take(5).map(Value::to_string).collect();
    panic!("{} sockets are neither LISTEN nor TIME-WAIT: {}", last.len(), shown.join("\n"));
}

/// True when the socket belongs to `pid` alone (a socket of several processes names none of them).
pub fn is_owned_by(socket: &Value, pid: u32) -> bool {
    socket["pid"].as_u64() == Some(pid.into())
}

/// Waits until no socket of the service belongs to `pid`.
#[track_caller]
pub fn wait_until_disowned(stage: &Stage, pid: u32) {
    wait_until(&format!("haypile shows nothing of process {pid}"), PATIENCE, || {
        let status = stage.ask("status", &[]).expect("haypile status --json");
        let mut attached = status["processes"].as_array().into_iter().flatten();
        let gone = !attached.any(|process| process["pid"].as_u64() == Some(pid.into()));
        let nothing = !sockets(stage).iter().any(|socket| is_owned_by(socket, pid));
        (gone && nothing).then_some(())
    });
}

/// Sum of the counters of dropped packets in `haypile status --json`.
#[track_caller]
pub fn drops(stage: &Stage) -> u64 {
    let status = stage.ask("status", &[]).expect("haypile status --json");
    let mut sum = 0;
    add_drops(&status, &mut sum);
    sum
}

fn add_drops(value: &Value, sum: &mut u64) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if name == "drops" {
                    *sum += numbers(field);
                } else {
                    add_drops(field, sum);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| add_drops(item, sum)),
        _ => {}
    }
}

fn numbers(value: &Value) -> u64 {
    match value {
        Value::Number(number) => number.as_u64().unwrap_or(0),
        Value::Object(fields) => fields.values().map(numbers).sum(),
        Value::Array(items) => items.iter().map(numbers).sum(),
        _ => 0,
    }
}

/// Whether somebody listens on a TCP port of the kernel's stack in this namespace.
pub fn kernel_listens(port: u16) -> bool {
    const LISTEN: &str = "0A";
    let wanted = format!(":{port:04X}");
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].iter().any(|table| {
        let text = fs::read_to_string(table).unwrap_or_default();
        text.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            matches!(fields[..], [_, local, _, state, ..]
                if state == LISTEN && local.ends_with(&wanted))
        })
    })
}
