//! Programs whose connections move from server to server all the time, and who notice nothing of it.

use crate::semantics::compare_answers;
use crate::support::stage::{Stage, on_stage};
use crate::support::{inspect, python, script};
use serde_json::Value;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const SERVERS: u64 = 3;
const LIMIT: Duration = Duration::from_secs(300);
const PLAN: [&str; 2] = ["--plan", "TS3LS3CM3"];

/// Does something while every bucket with a connection goes from server to server without a rest. How many
/// connections went along.
fn while_all_moves(stage: &Stage, act: impl FnOnce()) -> u64 {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let mover = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                move_all(stage);
            }
        });
        // Also when it panics, or the mover would never end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        done.store(true, Ordering::Relaxed);
        mover.join().expect("the mover ends");
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    let moved = servers(stage).iter().map(|one| count(&one["counters"], "connections_taken")).sum();
    stage.say(&format!("{moved} connections have moved"));
    moved
}

fn servers(stage: &Stage) -> Vec<Value> {
    let report = stage.ask("steer", &[]).expect("an answer");
    report["servers"].as_array().expect("servers").clone()
}

fn count(counters: &Value, name: &str) -> u64 {
    counters[name].as_u64().unwrap_or_else(|| panic!("no {name} in {counters}"))
}

/// Moves the buckets that have connections to the next server. One in which a program is in the middle of
/// something may stay.
fn move_all(stage: &Stage) {
    for row in servers(stage) {
        let to = (count(&row, "server") + 1) % SERVERS;
        for bucket in row["busiest"].as_array().expect("buckets") {
            let mut command = Command::new(env!("CARGO_BIN_EXE_haypile"));
            command.args(["steer", "move", "--json", "--patience-ms", "100", "--control-dir"]);
            command.arg(stage.control());
            command.args([count(bucket, "bucket").to_string(), to.to_string()]);
            let output = command.output().expect("run haypile");
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
                panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
            });
            assert!(answer["moves"].is_array(), "{answer}");
        }
    }
}

fn same_answers(test: &'static str, program: &'static str, ends: [&'static str; 2]) {
    on_stage(test, &["python3"], move |stage| {
        let _service = stage.serve_with(&PLAN);
        let [loopback, address] = ends;
        let moved = while_all_moves(stage, || compare_answers(stage, program, loopback, address));
        // Most of them are short.
        assert!(moved > 0, "no connection has moved");
    });
}

#[test]
fn calls_answer_as_the_kernels_do_while_connections_move() {
    let test = "calls_answer_as_the_kernels_do_while_connections_move";
    same_answers(test, "semantics.py", ["127.0.0.1", "198.18.0.2"]);
}

#[test]
fn options_answer_as_the_kernels_do_while_connections_move() {
    let test = "options_answer_as_the_kernels_do_while_connections_move";
    same_answers(test, "semantics_options.py", ["127.0.0.1", "198.18.0.2"]);
}

#[test]
fn conversations_of_every_kind_go_on_while_connections_move() {
    on_stage("conversations_of_every_kind_go_on_while_connections_move", &["python3"], |stage| {
        let _service = stage.serve_with(&PLAN);
        let want = stage.output(&[python(), &script("restless.py"), "127.0.0.1", "7100"], LIMIT);
        let mut got = None;
        let moved = while_all_moves(stage, || {
            let words = [python(), &script("restless.py"), "198.18.0.2", "7100"];
            got = Some(stage.run(&words).finish(LIMIT));
        });
        let [want, got] =
            [want, got.expect("an outcome")].map(|one| one.expect_success("restless"));
        stage.say(&got.err);
        assert_eq!(got.out, want.out, "with {moved} moved connections");
        // How many depends on what else the machine does: some 450 on a busy one, thousands on a quiet one.
        assert!(moved > 100, "only {moved} connections have moved");
        inspect::wait_for_rest(stage);
    });
}
