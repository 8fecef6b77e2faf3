//! The experiments of `haypile bench`, tiny: each runs to its end, finds no wrong answer, and
//! leaves nothing behind, even when it is killed. What they measure is not looked at here.

use crate::support::process::{Finished, Process, send_signal};
use crate::support::stage::{Stage, on_stage};
use crate::support::{PATIENCE, wait_until};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

/// The longest that a tiny experiment may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

fn start(stage: &Stage, words: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_haypile"));
    command.arg("bench").args(words);
    command.env("TMPDIR", stage.path(""));
    stage.start_command("bench", command)
}

/// Runs an experiment and returns its report; again, for longer, while nothing was completed in a
/// window because others had the cores.
fn run(stage: &Stage, words: &[&str]) -> Value {
    for duration in ["0.2", "2"] {
        if let Some(report) = run_for(stage, words, duration).ok().filter(is_complete) {
            return report;
        }
    }
    run_for(stage, words, "10").unwrap_or_else(|why| panic!("{words:?}: {why}"))
}

fn run_for(stage: &Stage, words: &[&str], duration: &str) -> Result<Value, String> {
    let json = stage.text("report.json");
    let tiny = ["--repeat", "1", "--retries", "0", "--warmup", "0.1", "--json", &json];
    let words = [words, &tiny, &["--duration", duration]].concat();
    let Finished { status, out, err } = start(stage, &words).finish(LIMIT);
    assert_nothing_is_left(stage);
    if !status.success() && err.contains("nothing was answered in the whole time") {
        return Err(err);
    }
    assert!(status.success(), "{words:?}: {err}");
    assert!(out.contains("machine: ") && out.contains("noise: "), "{out}");
    let text = std::fs::read_to_string(json).expect("a report");
    Ok(serde_json::from_str(&text).expect("JSON"))
}

/// The sides of all cases; reports of tables have none.
fn sides(report: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let cases = report["cases"].as_array().into_iter().flatten();
    cases.flat_map(|case| {
        let sides = case["sides"].as_array().into_iter().flatten();
        sides.map(|side| (&case["title"], &side["runs"][0]))
    })
}

fn completed_something(run: &Value) -> bool {
    run["metrics"]["rate"].as_f64().is_some_and(|rate| rate > 0.0)
}

fn is_complete(report: &Value) -> bool {
    sides(report).all(|(_, run)| completed_something(run))
}

/// Every side of every case completed something, and nothing failed.
fn assert_right(report: &Value, cases: usize, count: usize) {
    let found = report["cases"].as_array().expect("cases");
    assert_eq!(found.len(), cases);
    for case in found {
        assert_eq!(case["sides"].as_array().map(Vec::len), Some(count), "{}", case["title"]);
    }
    for (title, run) in sides(report) {
        assert_eq!(run["failed"], 0, "{title}: {run}");
        assert!(completed_something(run), "{title}: {run}");
    }
}

fn assert_nothing_is_left(stage: &Stage) {
    let files = || {
        let entries = std::fs::read_dir(stage.path("")).expect("the test's folder").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("haypile-bench-")).collect::<Vec<_>>()
    };
    wait_until("its processes and files are gone", PATIENCE, || {
        (files().is_empty() && processes(stage).is_empty()).then_some(())
    });
}

/// Command lines of the processes that `start` began, directly or not: they inherit its environment.
fn processes(stage: &Stage) -> Vec<String> {
    let mark = format!("TMPDIR={}\0", stage.text(""));
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let text = |path: std::path::PathBuf| {
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    };
    let ours = entries.filter(|entry| text(entry.path().join("environ")).contains(&mark));
    ours.map(|entry| text(entry.path().join("cmdline"))).collect()
}

#[test]
fn bench_http_and_its_open_loop() {
    on_stage("bench_http_and_its_open_loop", &[], |stage| {
        let report = run(stage, &["http", "--server", "builtin", "--connections", "1,8"]);
        assert_right(&report, 4, 2);
        assert_eq!(report["cases"][0]["unit"], "connections/s");
        let report =
            run(stage, &["http", "--server", "builtin", "--rate", "200", "--against", "none"]);
        assert_right(&report, 2, 1);
    });
}

#[test]
fn bench_http_with_nginx() {
    on_stage("bench_http_with_nginx", &["nginx"], |stage| {
        assert_right(&run(stage, &["http", "--server", "nginx", "--connections", "8"]), 2, 2);
    });
}

#[test]
fn bench_latency_goodput_and_echo() {
    on_stage("bench_latency_goodput_and_echo", &[], |stage| {
        // Two placements, each one at a time and after quiet.
        assert_right(&run(stage, &["latency"]), 4, 2);
        let report = run(stage, &["goodput", "--connections", "1,2"]);
        assert_right(&report, 4, 2);
        assert_eq!(report["cases"][0]["unit"], "Gb/s");
        assert_right(&run(stage, &["echo", "--size", "1000"]), 1, 2);
    });
}

#[test]
fn bench_over_a_wire() {
    on_stage("bench_over_a_wire", &[], |stage| {
        let words = ["http", "--link", "wire", "--server", "builtin", "--connections", "8"];
        assert_right(&run(stage, &words), 2, 2);
        assert_right(&run(stage, &[&words[..], &["--client", "engine"]].concat()), 2, 2);
        let report = run(stage, &["goodput", "--link", "wire", "--client", "engine"]);
        assert_right(&report, 4, 2);
    });
}

#[test]
fn bench_messages_idle_and_generator() {
    on_stage("bench_messages_idle_and_generator", &[], |stage| {
        let several = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
        for (experiment, rows) in [("messages", 15), ("idle", 3), ("generator", 6)] {
            if experiment == "messages" && !several {
                continue;
            }
            let report = run(stage, &[experiment]);
            let table = &report["tables"][0];
            assert_eq!(table["rows"].as_array().map(Vec::len), Some(rows), "{experiment}: {table}");
        }
    });
}

/// What is simulated needs no stage, but says its tables, writes its plots, and repeats.
#[test]
fn bench_in_virtual_time() {
    on_stage("bench_in_virtual_time", &[], |stage| {
        for (experiment, tables, plots) in
            [("schemes", 6, 2), ("balance", 5, 5), ("accept", 1, 1), ("configs", 2, 1)]
        {
            let folder = stage.text(experiment);
            let words = [experiment, "--quick", "--only", "simulated", "--plots", &folder];
            let report = run(stage, &words);
            let found = report["tables"].as_array().expect("tables");
            assert_eq!(found.len(), tables, "{experiment}");
            assert!(found.iter().all(|table| {
                table["title"].as_str().is_some_and(|title| title.starts_with("simulated"))
                    && table["rows"].as_array().is_some_and(|rows| !rows.is_empty())
            }));
            let drawn = std::fs::read_dir(&folder).expect("its folder").flatten();
            let drawn = drawn.map(|file| std::fs::read_to_string(file.path()).expect("a plot"));
            assert_eq!(drawn.filter(|text| text.ends_with("</svg>\n")).count(), plots);
        }
    });
}

/// Four workers on two services and two ways of the kernel: everybody answers, nobody fails.
#[test]
fn bench_balance_for_real() {
    on_stage("bench_balance_for_real", &[], |stage| {
        let report = run(stage, &["balance", "--quick", "--only", "real", "--rate", "100"]);
        let rows = report["tables"][0]["figures"].as_array().expect("figures").clone();
        assert_eq!(rows.len(), 10, "{rows:?}");
        for row in rows {
            assert_eq!(row["failed"], 0, "{row}");
            assert!(row["count"].as_u64().is_some_and(|count| count > 0), "{row}");
        }
    });
}

#[test]
fn a_killed_bench_leaves_nothing() {
    on_stage("a_killed_bench_leaves_nothing", &[], |stage| {
        for signal in ["INT", "KILL"] {
            let bench = start(stage, &["http", "--server", "builtin", "--duration", "60"]);
            wait_until("a load runs", LIMIT, || {
                processes(stage).iter().any(|line| line.contains("\"load\":{")).then_some(())
            });
            send_signal(signal, &bench.pid().to_string());
            bench.finish(PATIENCE);
            assert_nothing_is_left(stage);
        }
    });
}

#[test]
fn bench_says_what_it_cannot_do() {
    on_stage("bench_says_what_it_cannot_do", &[], |stage| {
        let mistakes: [&[&str]; 5] = [
            &["http", "--client", "engine"],
            &["http", "--cores", "client=9999"],
            &["echo", "--server", "nginx"],
            &["http", "--congestion", "no-such-algorithm"],
            &["http", "--connections", "0"],
        ];
        for words in mistakes {
            let ended = start(stage, words).finish(LIMIT);
            assert_eq!(ended.status.code(), Some(1), "{words:?}: {}", ended.err);
            let last = ended.err.lines().last().unwrap_or_default();
            assert!(last.starts_with("haypile: bench: "), "{words:?}: {}", ended.err);
            assert!(!ended.err.contains("panicked"), "{words:?}: {}", ended.err);
            assert_nothing_is_left(stage);
        }
    });
}
