//! Runs the trace: under callgrind for instructions, natively for nanoseconds.

use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::callgrind;
use super::table::{OTHERS, ROWS, SCENARIOS};
use crate::steps::root;

/// Operations under valgrind: whole rounds of every burst.
const OPERATIONS: u32 = 640;
/// Operations natively, in one repetition.
const OPERATIONS_TIMED: u32 = 1600;
/// Repetitions, of which the median counts.
const REPETITIONS: u32 = 11;
/// The functions that bracket what is counted: turns of the server with something to do; turns of the peer and of the
/// application.
const SERVICE: &[&str] = &["*haypile_cost::busy_turn*"];
const BESIDE: &[&str] = &["*harness::Peer::step*", "*harness::application*"];

/// Instructions of every row of every scenario, and what they were counted with.
///
/// # Errors
/// The scenario that could not be run, and what it said.
pub fn count() -> Result<Value, String> {
    build()?;
    let jobs: Vec<(&str, &[&str])> =
        SCENARIOS.iter().flat_map(|(name, _)| [(*name, SERVICE), (*name, BESIDE)]).collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((name, toggles)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run_counted(name, toggles);
                    if let Ok(mut results) = results.lock() {
                        results.push((*name, *toggles == SERVICE, outcome));
                    }
                }
            });
        }
    });
    let mut scenarios = Map::new();
    let mut memory = Vec::new();
    for (name, of_service, outcome) in results.into_inner().unwrap_or_default() {
        let (costs, said) = outcome.map_err(|error| format!("cost, {name}: {error}"))?;
        let entry = scenarios.entry(name).or_insert_with(|| json!({"instructions": {}}));
        let operations = said["operations"].as_f64().unwrap_or(1.0);
        let per_operation = |part: &dyn Fn(&str) -> bool| -> f64 {
            let sum: u64 = costs.iter().filter(|(name, _)| part(name)).map(|(_, cost)| cost).sum();
            (sum as f64 / operations * 10.0).round() / 10.0
        };
        if of_service {
            for row in ROWS {
                let count = per_operation(&|name| (row.is_it)(name));
                entry["instructions"][row.name] = json!(count);
            }
            entry["frames"] =
                json!([per(&said["received"], operations), per(&said["sent"], operations)]);
            memory.extend(costs.into_keys().filter(|name| is_memory_function(name)));
        } else {
            entry["instructions"][OTHERS[0]] =
                json!(per_operation(&|name| name.ends_with("Peer::step")));
            entry["instructions"][OTHERS[1]] =
                json!(per_operation(&|name| name.contains("harness::application")));
        }
    }
    memory.sort();
    memory.dedup();
    Ok(json!({
        "compiler": version("rustc")?,
        "valgrind": version("valgrind")?,
        "memory functions": memory.join(" "),
        "scenarios": scenarios,
    }))
}

fn per(count: &Value, operations: f64) -> f64 {
    (count.as_f64().unwrap_or(0.0) / operations * 100.0).round() / 100.0
}

/// The C library chooses these by the processor, and their counts differ.
fn is_memory_function(name: &str) -> bool {
    ["__memcpy", "__memmove", "__memset", "__memcmp"].iter().any(|start| name.starts_with(start))
}

/// Adds nanoseconds to what was counted.
///
/// # Errors
/// The scenario that could not be run, and what it said.
pub fn time(table: &mut Value) -> Result<(), String> {
    for (name, _) in SCENARIOS {
        let words = ["time", name, &OPERATIONS_TIMED.to_string(), &REPETITIONS.to_string()];
        let said = answer(Command::new(program()).args(words))?;
        table["scenarios"][*name]["ns"] = said;
    }
    Ok(())
}

fn build() -> Result<(), String> {
    let arguments = ["build", "--profile", "checks", "--package", "haypile-cost", "--locked"];
    crate::steps::run("build the trace", "cargo", &arguments, &[])
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn program() -> PathBuf {
    target().join("checks/haypile-cost")
}

/// One scenario under callgrind: inclusive instructions by function, and what the program said.
fn run_counted(name: &str, toggles: &[&str]) -> Result<(HashMap<String, u64>, Value), String> {
    let folder = target().join("cost");
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let file =
        folder.join(format!("{name}.{}", if toggles == SERVICE { "service" } else { "beside" }));
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet", "--separate-threads=no"]);
    command.arg(format!("--callgrind-out-file={}", file.display()));
    command.args(toggles.iter().map(|toggle| format!("--toggle-collect={toggle}")));
    command.arg(program()).args(["count", name, &OPERATIONS.to_string()]);
    let said = answer(&mut command)?;
    if said["misjudged"] != json!(0) {
        return Err(format!("turns were not what was foretold, so the count is wrong: {said}"));
    }
    Ok((callgrind::inclusive(&read(&file)?), said))
}

fn read(file: &Path) -> Result<String, String> {
    let bytes = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a command that says one line of JSON.
fn answer(command: &mut Command) -> Result<Value, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} failed ({}):\n{said}", output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("{command:?}: {error}"))
}

fn version(program: &str) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}
