//! Bad paths: two kernels, and a kernel and Haypile, joined by `haypile join`, and a service with `--fault`.
//! What arrives is what was sent, whatever is lost on the way.

use crate::support::process::Process;
use crate::support::stage::{HOST, INTERFACE, SERVICE, Stage, on_stage, service};
use crate::support::{PATIENCE, content, http, nginx, wait_until};
use serde_json::Value;
use std::net::SocketAddr;
use std::process::Command;

/// The bad path of these tests.
const FAULT: &str = "loss=1%,delay=5ms";

fn join(stage: &Stage, words: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_haypile"));
    command.args(["join", "--json"]).args(words);
    let mut join = stage.start_command("join", command);
    join.wait_for_output("ready");
    join
}

/// Ends a join by a signal; what happened on it.
#[track_caller]
fn end(stage: &Stage, join: Process) -> Value {
    join.signal("TERM");
    let out = join.finish(PATIENCE).expect_success("join").out;
    let report: Value = out
        .lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok())
        .unwrap_or_else(|| panic!("no report in {out}"));
    stage.say(&format!("there {}, back {}", report["there"], report["back"]));
    for way in ["there", "back"] {
        assert!(report[way]["frames"].as_u64() > Some(100), "{report}");
    }
    let lost = |way: &str| report[way]["lost"].as_u64().unwrap_or(0);
    assert!(lost("there") + lost("back") > 0, "{report}");
    report
}

#[test]
fn two_kernels_share_a_bad_path() {
    let needs = ["nginx", "curl", "unshare", "nsenter"];
    on_stage("two_kernels_share_a_bad_path", &needs, |stage| {
        content::write(&stage.served("page"), 3_000_000);
        let other = stage.start(&["unshare", "-n", "sleep", "600"]);
        let pid = other.pid().to_string();
        let own = crate::support::inspect::own_namespace();
        let namespace = format!("/proc/{pid}/ns/net");
        wait_until("there is another namespace", PATIENCE, || {
            crate::support::stage::inode(&namespace).filter(|other| *other != own)
        });
        let words = ["tap:haypile-a", "tap:haypile-b", "--netns-b", &pid, "--fault", FAULT];
        let addresses = ["--addr-a", "198.18.0.1/24", "--addr-b", "198.18.0.2/24"];
        let join = join(stage, &[&words[..], &addresses[..]].concat());
        let listen = service(8080).to_string();
        let command = nginx::command(stage, "nginx", &[&listen]);
        let entered = ["nsenter", "--target", &pid, "--net", "--"].map(str::to_string);
        let words: Vec<String> = entered.into_iter().chain(command).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut server = stage.start(&words);
        stage.wait_for_listener(service(8080), &mut server);
        let file = stage.path("fetched");
        let seconds = http::fetch(stage, &http::url(service(8080), "page"), &file, 60);
        content::assert_same(&stage.served("page"), &file);
        stage.say(&format!("3 MB from kernel to kernel in {seconds:.2} s"));
        // A round trip takes 10 ms at least.
        let words = ["ping", "-c", "5", "-i", "0.1", "-W", "5", "198.18.0.2"];
        let output = stage.output(&words, PATIENCE).out;
        let times = output.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next());
        for time in times {
            assert!(time.parse::<f64>().is_ok_and(|ms| ms >= 10.0), "{output}");
        }
        end(stage, join);
        drop(server);
        other.kill_group();
    });
}

#[test]
fn a_kernel_reaches_haypile_over_a_bad_path() {
    let needs = ["nginx", "curl"];
    on_stage("a_kernel_reaches_haypile_over_a_bad_path", &needs, |stage| {
        content::write(&stage.served("page"), 1_000_000);
        let wire = format!("wire:bad{}", std::process::id());
        let host = format!("{HOST}/24");
        let join = join(stage, &["tap:haypile-a", &wire, "--addr-a", &host, "--fault", FAULT]);
        let mut command = stage.haypile("serve");
        command.args(["--link", &wire, "--addr", &format!("{SERVICE}/24")]);
        let mut served = stage.start_command("serve", command);
        served.wait_for_output("ready");
        let _nginx = nginx::start(stage, 8080);
        let file = stage.path("fetched");
        for _ in 0..3 {
            http::fetch(stage, &http::url(service(8080), "page"), &file, 60);
            content::assert_same(&stage.served("page"), &file);
        }
        if nginx::can_put() {
            http::upload(stage, &http::url(service(8080), "up/page"), &stage.served("page"), 60);
            content::assert_same(&stage.served("page"), &stage.served("up/page"));
        }
        end(stage, join);
        // A join that is killed leaves nothing either, and the service goes on.
        let again = self::join(stage, &["tap:haypile-a", &wire, "--addr-a", &host]);
        http::fetch(stage, &http::url(service(8080), "page"), &file, 60);
        again.signal("KILL");
        drop(again.finish(PATIENCE));
        wait_until("the interface is gone", PATIENCE, || {
            stage.interfaces().is_empty().then_some(())
        });
        served.assert_alive();
    });
}

/// What `haypile trace` tells of the transfers: their handshakes, their states, what was sent again.
fn check_trace(stage: &Stage) {
    let trace = |filters: &[&str]| -> Vec<Value> {
        let mut command = stage.haypile("trace");
        command.arg("--json").args(filters);
        let finished = stage.start_command("trace", command).finish(PATIENCE);
        let out = finished.expect_success("trace").out;
        out.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
    };
    let all = trace(&["port=8080"]);
    let again = trace(&["port=8080", "event=again"]);
    let sent = all.iter().filter(|event| event["event"] == "sent").count();
    assert!(!again.is_empty() && again.len() < sent, "{} of {sent} again", again.len());
    for event in &again {
        let reason = event["reason"].as_str().unwrap_or_default();
        assert!(["timeout", "recovery", "probe"].contains(&reason), "{event}");
        assert!(event["retransmits"].as_u64() > Some(0), "{event}");
    }
    let states = trace(&["event=state"]);
    assert!(states.iter().any(|event| event["state"] == "ESTAB"), "{states:?}");
    assert!(trace(&["port=1"]).is_empty());
    stage.say(&format!("{} events traced, {} segments sent again", all.len(), again.len()));
}

#[test]
fn a_service_behaves_on_a_link_with_faults() {
    let needs = ["nginx", "curl"];
    on_stage("a_service_behaves_on_a_link_with_faults", &needs, |stage| {
        content::write(&stage.served("page"), 500_000);
        let mut command = stage.haypile("serve");
        let spec = "loss=1%,dup=1%,reorder=1%,corrupt=0.5%,delay=1ms,jitter=1ms,rate=200mbit";
        command.args(["--link", &format!("tap:{INTERFACE}"), "--addr", &format!("{SERVICE}/24")]);
        command.args(["--fault", spec, "--fault-seed", "4"]);
        let mut served = stage.start_command("serve", command);
        served.wait_for_output("ready");
        let _nginx = nginx::start(stage, 8080);
        let address: SocketAddr = service(8080);
        for _ in 0..5 {
            http::fetch(stage, &http::url(address, "page"), &stage.path("fetched"), 60);
            content::assert_same(&stage.served("page"), &stage.path("fetched"));
        }
        let status = stage.ask("status", &[]).expect("status");
        let counters = status["counters"].as_array().expect("counters");
        for name in ["fault_tx_lost", "fault_tx_reordered", "fault_tx_duplicated"] {
            assert!(counters.iter().any(|row| row["name"] == name), "{name} in {counters:?}");
        }
        check_trace(stage);
        let mut bad = stage.haypile("serve");
        bad.args(["--addr", "198.18.0.9/24", "--fault", "los=1%"]);
        let finished = stage.start_command("bad", bad).finish(PATIENCE);
        assert!(finished.err.contains("\"los\" is no fault: use loss"), "{}", finished.err);
    });
}
