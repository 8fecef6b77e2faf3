//! The socket calls answer as the kernel's do: one program runs through many situations on the kernel's stack
//! and on Haypile, and what it prints has to be the same.

use crate::support::process::Finished;
use crate::support::stage::{Stage, on_stage};
use crate::support::{inspect, python, script};
use std::collections::BTreeMap;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);

/// The printed lines by situation.
fn answers(finished: Finished, where_run: &str) -> BTreeMap<String, String> {
    let out = finished.expect_success(where_run).out;
    let pairs = out.lines().filter_map(|line| line.split_once(": "));
    pairs.map(|(situation, answer)| (situation.to_string(), answer.to_string())).collect()
}

fn compare(stage: &Stage, program: &str, loopback: &str, address: &str) {
    let _service = stage.serve();
    compare_answers(stage, program, loopback, address);
}

/// Runs a program on the kernel's stack and on a service that is there, and compares what it prints.
pub fn compare_answers(stage: &Stage, program: &str, loopback: &str, address: &str) {
    let program = script(program);
    let on_kernel = stage.output(&[python(), &program, loopback, "7000"], LIMIT);
    let want = answers(on_kernel, "on the kernel's stack");
    let on_haypile = stage.run(&[python(), &program, address, "7001"]).finish(LIMIT);
    let got = answers(on_haypile, "on Haypile");
    let mut different = Vec::new();
    for situation in want.keys().chain(got.keys().filter(|key| !want.contains_key(*key))) {
        let answer = |side: &BTreeMap<String, String>| {
            side.get(situation).map_or("nothing".to_string(), String::clone)
        };
        if answer(&want) != answer(&got) {
            let (kernel, haypile) = (answer(&want), answer(&got));
            different.push(format!("{situation}: kernel {kernel}, haypile {haypile}"));
        }
    }
    stage.say(&format!("{} answers compared, {} differ", want.len(), different.len()));
    assert!(want.len() > 100, "the kernel gave only {} answers", want.len());
    assert!(different.is_empty(), "answers differ:\n{}", different.join("\n"));
    inspect::wait_for_rest(stage);
}

#[test]
fn calls_answer_as_the_kernels_do() {
    on_stage("calls_answer_as_the_kernels_do", &["python3"], |stage| {
        compare(stage, "semantics.py", "127.0.0.1", "198.18.0.2");
    });
}

#[test]
fn calls_answer_as_the_kernels_do_over_ipv6() {
    on_stage("calls_answer_as_the_kernels_do_over_ipv6", &["python3"], |stage| {
        compare(stage, "semantics.py", "::1", "2001:2::2");
    });
}

#[test]
fn options_answer_as_the_kernels_do() {
    on_stage("options_answer_as_the_kernels_do", &["python3"], |stage| {
        compare(stage, "semantics_options.py", "127.0.0.1", "198.18.0.2");
    });
}

#[test]
fn options_answer_as_the_kernels_do_over_ipv6() {
    on_stage("options_answer_as_the_kernels_do_over_ipv6", &["python3"], |stage| {
        compare(stage, "semantics_options.py", "::1", "2001:2::2");
    });
}

#[test]
fn datagram_calls_answer_as_the_kernels_do() {
    on_stage("datagram_calls_answer_as_the_kernels_do", &["python3"], |stage| {
        compare(stage, "semantics_udp.py", "127.0.0.1", "198.18.0.2");
    });
}

#[test]
fn datagram_calls_answer_as_the_kernels_do_over_ipv6() {
    on_stage("datagram_calls_answer_as_the_kernels_do_over_ipv6", &["python3"], |stage| {
        compare(stage, "semantics_udp.py", "::1", "2001:2::2");
    });
}
