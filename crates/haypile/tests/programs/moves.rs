//! Buckets that move from server to server, many times a second, under programs that know nothing of it: nginx,
//! python servers of every make, clients on Haypile, over a TAP and a wire, under plans with servers combined and
//! apart. Nothing fails, every byte is right, and nothing is left afterwards. While servers die nothing fails but what
//! a death explains.
//!
//! `HAYPILE_E2E_MOVES_S=60` lets each go on for so many seconds, `HAYPILE_E2E_SEED` chooses what moves where. The
//! load and whoever moves buckets are in `moves/traffic.rs`.

pub mod traffic;

use crate::kills_under_load::load::EchoServers;
use crate::support::process::{Process, send_signal};
use crate::support::stage::{HOST, SERVICE, Stage, on_stage, service};
use crate::support::{PATIENCE, content, inspect, nginx, python, script, setting, wait_until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;
use traffic::{Moved, Restless, Traffic, look};

const PORT: u16 = 8080;
const BUCKETS: usize = 4096;
/// Between two rounds of moves.
const PAUSE: Duration = Duration::from_millis(20);

fn seconds(default: u64) -> Duration {
    Duration::from_secs(setting("HAYPILE_E2E_MOVES_S", default))
}

fn seed() -> u64 {
    setting("HAYPILE_E2E_SEED", 1)
}

/// Memory of sockets, as `haypile status` sees it: sockets with a record, and bytes of their streams.
fn memory(stage: &Stage) -> (u64, u64) {
    let status = stage.ask("status", &[]).expect("haypile status --json");
    let number = |name: &str| status["memory"][name].as_u64().unwrap_or_default();
    (number("sockets"), number("stream_bytes"))
}

/// Everything is as it was before the load: no connection, no stub of one that moved, no byte of it, and no bucket
/// on its way; every bucket is with one server.
#[track_caller]
fn assert_nothing_left(stage: &Stage, before: (u64, u64)) {
    inspect::wait_for_rest(stage);
    let (mut last, started) = ((0, 0), std::time::Instant::now());
    while started.elapsed() < PATIENCE {
        last = memory(stage);
        if last.0 <= before.0 && last.1 <= before.1 {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let shown = stage.ask("status", &[]).unwrap_or_default();
    assert!(last.0 <= before.0 && last.1 <= before.1, "{before:?} became {last:?}: {shown}");
    wait_until("all moves are settled", PATIENCE, || {
        let report = look(&stage.control())?;
        let quiet = report
            .servers
            .iter()
            .all(|row| row.wished + row.leaving + row.coming + row.unsettled == 0);
        let buckets: usize = report.servers.iter().map(|row| row.buckets).sum();
        (quiet && buckets == BUCKETS).then_some(())
    });
}

/// No server was started again, and none said nonsense to another.
#[track_caller]
fn assert_sound(stage: &Stage) {
    let status = stage.ask("status", &[]).expect("haypile status --json");
    let rows = status["servers"].as_array().expect("servers");
    assert!(rows.iter().all(|row| row["restarts"] == 0), "{status}");
    let report = look(&stage.control()).expect("haypile steer --json");
    for row in &report.servers {
        let counters = &row.counters;
        assert_eq!((counters.nonsense, counters.lost), (0, 0), "{row:?}");
    }
}

#[track_caller]
fn assert_all_right(
    stage: &Stage,
    what: &str,
    (right, failures): (u64, BTreeMap<String, u64>),
    moved: &Moved,
) {
    stage.say(&format!(
        "{what}: {right} exchanges right, while {} connections and {} TIME-WAIT records moved in {} buckets, the \
         slowest in {} us; stayed: {:?}",
        moved.connections, moved.time_wait, moved.buckets, moved.longest_us, moved.stayed
    ));
    assert!(failures.is_empty(), "{}: {what}: {right} right, but {failures:?}", stage.name);
    assert!(right > 0, "{what}: nothing was exchanged");
    assert!(moved.connections > 0, "{what}: no connection moved: {moved:?}");
    assert_eq!(moved.unanswered, 0, "{what}");
}

/// nginx under every kind of load, while its connections move.
fn nginx_moves(test: &'static str, plan: &'static str) {
    on_stage(test, &["nginx"], move |stage| {
        content::write(&stage.served("page"), 30_000);
        content::write(&stage.served("big"), 12 << 20);
        let read = |name: &str| fs::read(stage.served(name)).expect("a page");
        let _service = stage.serve_with(&["--plan", plan]);
        let mut program = nginx::start(stage, PORT);
        let before = settled_memory(stage);
        let mut traffic = Traffic::at(stage.control());
        traffic.pages(6, service(PORT), "page", read("page"));
        traffic.pages(2, service(PORT), "big", read("big"));
        traffic.short_pages(4, service(PORT), "page", read("page"));
        if nginx::can_put() {
            traffic.uploads(2, service(PORT), &stage.served("up"), content::bytes(3 << 20, 5));
        }
        let restless = Restless::start(stage.control(), PAUSE, seed());
        thread::sleep(seconds(6));
        let moved = restless.stop();
        assert_all_right(stage, plan, traffic.stop(), &moved);
        program.assert_alive();
        assert_nothing_left(stage, before);
        assert_sound(stage);
    });
}

/// Memory once the connections that looked whether the server answers are gone.
fn settled_memory(stage: &Stage) -> (u64, u64) {
    inspect::wait_for_rest(stage);
    wait_for_memory(stage)
}

/// Memory that does not change any more.
fn wait_for_memory(stage: &Stage) -> (u64, u64) {
    let mut last = memory(stage);
    wait_until("memory is at rest", PATIENCE, || {
        thread::sleep(Duration::from_millis(100));
        let now = memory(stage);
        (std::mem::replace(&mut last, now) == now).then_some(now)
    })
}

#[test]
fn nginx_at_two_servers() {
    nginx_moves("nginx_at_two_servers", "TS2LS2CM2");
}

#[test]
fn nginx_at_servers_apart() {
    nginx_moves("nginx_at_servers_apart", "TS2+LS1+CM1");
}

#[test]
fn nginx_at_three_servers_with_one_link() {
    nginx_moves("nginx_at_three_servers_with_one_link", "TS3LS1CM3");
}

/// Servers of these makes echo while their connections move.
fn echo_moves(test: &'static str, plan: &'static str, kinds: &'static [&'static str]) {
    on_stage(test, &["python3"], move |stage| {
        let _service = stage.serve_with(&["--plan", plan]);
        for (number, kind) in kinds.iter().enumerate() {
            let port = PORT + number as u16;
            let words =
                [python(), &script("echo_server.py"), kind, "198.18.0.2", &port.to_string()];
            let mut program = stage.run(&words);
            program.wait_for_output("ready");
            stage.wait_for_listener(service(port), &mut program);
            let before = settled_memory(stage);
            let mut traffic = Traffic::at(stage.control());
            traffic.echo(6, service(port), seed());
            traffic.flood(1, service(port), seed());
            let restless = Restless::start(stage.control(), PAUSE, seed());
            thread::sleep(seconds(3));
            let moved = restless.stop();
            assert_all_right(stage, kind, traffic.stop(), &moved);
            program.assert_alive();
            assert_nothing_left(stage, before);
        }
        assert_sound(stage);
    });
}

#[test]
fn waits_of_every_kind_follow() {
    let test = "waits_of_every_kind_follow";
    echo_moves(test, "TS2LS2CM1", &["thread", "select", "poll", "epoll", "edge", "asyncio"]);
}

#[test]
fn shared_connections_move() {
    let test = "shared_connections_move";
    echo_moves(test, "TS3LS3CM3", &["fork", "prefork", "inetd", "exec", "pass"]);
}

/// What clients on Haypile said that is no turn.
fn complaints(client: &Process) -> Vec<String> {
    let said = client.out();
    let bad = said.lines().filter(|line| !line.starts_with("turn"));
    bad.map(str::to_string).collect()
}

fn turns(client: &Process) -> u64 {
    let said = client.out();
    let last = said.lines().rfind(|line| line.starts_with("turn "));
    last.and_then(|line| line[5..].trim().parse().ok()).unwrap_or_default()
}

#[test]
fn clients_ask_while_connections_move() {
    let test = "clients_ask_while_connections_move";
    on_stage(test, &["python3"], |stage| {
        let _service = stage.serve_with(&["--plan", "TS3LS3CM1"]);
        let servers = EchoServers::start();
        let inside = start_under_fire(stage, "prefork", PORT);
        let datagrams = start_under_fire(stage, "udp", PORT);
        let before = wait_for_memory(stage);
        let fire = script("under_fire.py");
        let (out, port) = (servers.port.to_string(), PORT.to_string());
        let clients: Vec<Process> =
            [(HOST, &out), (HOST, &out), (SERVICE, &port), (SERVICE, &port)]
                .into_iter()
                .map(|(address, port)| {
                    // Late on a busy machine is not lost.
                    let address = address.to_string();
                    stage.run(&[python(), &fire, "client", &address, port, port, "10"])
                })
                .collect();
        let restless = Restless::start(stage.control(), PAUSE, seed());
        thread::sleep(seconds(6));
        let moved = restless.stop();
        let right: u64 = clients.iter().map(turns).sum();
        stage.say(&format!("{right} turns of 4 clients, {moved:?}"));
        for client in clients {
            assert_eq!(complaints(&client), [""; 0], "{moved:?}");
            assert!(turns(&client) > 0, "a client has done nothing");
            client.terminate();
        }
        assert!(moved.connections > 0 && moved.unanswered == 0, "{moved:?}");
        assert_nothing_left_but_datagrams(stage, before);
        assert_sound(stage);
        drop((inside, datagrams));
        servers.end();
    });
}

fn start_under_fire(stage: &Stage, kind: &str, port: u16) -> Process {
    let words = [python(), &script("under_fire.py"), kind, "198.18.0.2", &port.to_string()];
    let mut program = stage.run(&words);
    program.wait_for_output("ready");
    program
}

/// As [`assert_nothing_left`], where a UDP socket stays open.
#[track_caller]
fn assert_nothing_left_but_datagrams(stage: &Stage, before: (u64, u64)) {
    wait_until("memory is as before", PATIENCE, || {
        let now = memory(stage);
        (now.0 <= before.0 && now.1 <= before.1).then_some(())
    });
    let report = look(&stage.control()).expect("haypile steer --json");
    assert!(report.servers.iter().all(|row| row.leaving + row.coming == 0), "{report:?}");
}

/// One end of a wire: a service of two servers and a link server apart.
fn serve_wire(stage: &Stage, wire: &str, end: u8, control: &Path) -> Process {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_haypile"));
    command.args(["serve", "--plan", "TS2+LS1+CM1", "--link", wire, "--control-dir"]).arg(control);
    command.args(["--addr", &format!("198.18.0.{end}/24")]);
    let mut service = stage.start_command(&format!("serve{end}"), command);
    service.wait_for_output("ready");
    service
}

fn run_at(stage: &Stage, control: &Path, words: &[&str]) -> Process {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_haypile"));
    command.args(["run", "--control-dir"]).arg(control).arg("--").args(words);
    stage.start_command("run", command)
}

#[test]
fn both_ends_of_a_wire_move_connections() {
    on_stage("both_ends_of_a_wire_move_connections", &["python3"], |stage| {
        let wire = format!("wire:moves{}", std::process::id());
        let (one, other) = (stage.control(), stage.path("other-end"));
        let _services = [serve_wire(stage, &wire, 1, &one), serve_wire(stage, &wire, 2, &other)];
        let (fire, port) = (script("under_fire.py"), PORT.to_string());
        let start = |kind: &str| {
            let mut program = run_at(stage, &one, &[python(), &fire, kind, "198.18.0.1", &port]);
            program.wait_for_output("ready");
            program
        };
        let _programs = [start("prefork"), start("udp")];
        let client = || {
            run_at(stage, &other, &[python(), &fire, "client", "198.18.0.1", &port, &port, "10"])
        };
        let clients = [client(), client(), client()];
        // The ends may find each other after the clients have begun.
        wait_until("the clients are served", PATIENCE, || {
            clients.iter().all(|client| turns(client) > 0).then_some(())
        });
        let early: Vec<usize> = clients.iter().map(|client| complaints(client).len()).collect();
        let restless =
            [&one, &other].map(|control| Restless::start(control.clone(), PAUSE, seed()));
        thread::sleep(seconds(6));
        let moved = restless.map(Restless::stop);
        let right: u64 = clients.iter().map(turns).sum();
        stage.say(&format!("{right} turns of 3 clients, {moved:?}"));
        for (client, early) in clients.into_iter().zip(early) {
            assert_eq!(complaints(&client)[early..], [""; 0], "{moved:?}");
            client.terminate();
        }
        for (control, moved) in [&one, &other].into_iter().zip(&moved) {
            assert!(moved.connections > 0 && moved.unanswered == 0, "{moved:?}");
            let report = look(control).expect("haypile steer --json");
            let lost = report.servers.iter().map(|row| row.counters.nonsense + row.counters.lost);
            assert_eq!(lost.sum::<u64>(), 0, "{report:?}");
        }
    });
}

/// What the death of a server explains.
fn is_explained(failure: &str) -> bool {
    ["ConnectionReset", "UnexpectedEof", "BrokenPipe", "ConnectionRefused", "ConnectionAborted"]
        .iter()
        .any(|kind| failure.contains(kind))
}

/// The process of each server.
pub fn pids(stage: &Stage) -> Vec<u64> {
    // One that is being started again does not answer.
    let status = wait_until("haypile status answers", PATIENCE, || stage.ask("status", &[]).ok());
    let rows = status["servers"].as_array().cloned().unwrap_or_default();
    rows.iter().map(|row: &Value| row["pid"].as_u64().unwrap_or_default()).collect()
}

/// A server dies by -9; returns when there is another.
pub fn kill_server(stage: &Stage, number: usize) {
    let old = pids(stage)[number];
    send_signal("KILL", &old.to_string());
    wait_until("another server takes its place", PATIENCE, || {
        let now = pids(stage)[number];
        (now != 0 && now != old).then_some(())
    });
}

#[test]
fn servers_die_while_connections_move() {
    on_stage("servers_die_while_connections_move", &["nginx"], |stage| {
        content::write(&stage.served("page"), 30_000);
        let page = fs::read(stage.served("page")).expect("a page");
        let _service = stage.serve_with(&["--plan", "TS3LS3CM3"]);
        let mut program = nginx::start(stage, PORT);
        let before = settled_memory(stage);
        let mut traffic = Traffic::at(stage.control());
        traffic.pages(6, service(PORT), "page", page.clone());
        traffic.short_pages(4, service(PORT), "page", page.clone());
        let restless = Restless::start(stage.control(), Duration::ZERO, seed());
        for kill in 0..setting("HAYPILE_E2E_KILLS", 6) {
            let enough = traffic.right() + 200;
            wait_until("requests are answered", PATIENCE * 2, || {
                (traffic.right() > enough).then_some(())
            });
            kill_server(stage, (kill % 3) as usize);
        }
        let moved = restless.stop();
        let (right, failures) = traffic.stop();
        stage.say(&format!("{right} right; {failures:?}; {moved:?}"));
        let unexplained: Vec<&String> =
            failures.keys().filter(|failure| !is_explained(failure)).collect();
        assert!(unexplained.is_empty(), "{unexplained:?} of {failures:?}");
        assert!(moved.connections > 0, "{moved:?}");
        program.assert_alive();
        assert_nothing_left(stage, before);
        // All is well again, and moves as before.
        let mut traffic = Traffic::at(stage.control());
        traffic.pages(4, service(PORT), "page", page.clone());
        traffic.short_pages(4, service(PORT), "page", page);
        let restless = Restless::start(stage.control(), PAUSE, seed());
        thread::sleep(seconds(2));
        let moved = restless.stop();
        assert_all_right(stage, "afterwards", traffic.stop(), &moved);
        assert_nothing_left(stage, before);
    });
}

#[test]
fn the_command_moves_what_it_is_told() {
    on_stage("the_command_moves_what_it_is_told", &["python3"], |stage| {
        let _service = stage.serve_with(&["--plan", "TS2LS2CM1"]);
        let words = [python(), &script("echo_server.py"), "epoll", "198.18.0.2", "8080"];
        let mut program = stage.run(&words);
        program.wait_for_output("ready");
        let mut stream = std::net::TcpStream::connect(service(PORT)).expect("connect");
        let mut echo = |byte: u8| {
            use std::io::{Read, Write};
            let mut heard = [0];
            stream.write_all(&[byte]).expect("send");
            stream.read_exact(&mut heard).expect("hear");
            assert_eq!(heard, [byte]);
            stream.local_addr().expect("an address")
        };
        let local = echo(1);
        let flows = || -> Vec<usize> {
            let report = look(&stage.control()).expect("haypile steer --json");
            report.servers.iter().map(|row| row.connections).collect()
        };
        let at = usize::from(flows()[0] == 0);
        let run = |words: &[&str]| {
            let program = env!("CARGO_BIN_EXE_haypile");
            let control = stage.control().display().to_string();
            let line = [&[program, "steer", "move", "--control-dir", &control][..], words].concat();
            stage.output(&line, PATIENCE)
        };
        let ends = format!("198.18.0.2:8080-{local}");
        let other = (1 - at).to_string();
        let said = run(&["--connection", &ends, &other]).expect_success("move a connection").out;
        assert!(said.contains("with 1 connection"), "{said}");
        assert_eq!((flows()[at], flows()[1 - at]), (0, 1));
        assert_eq!(echo(2), local);
        let said = run(&["--all-of", &other, &at.to_string()]).expect_success("move all").out;
        assert!(said.starts_with("4096 buckets moved") || said.contains("buckets moved"), "{said}");
        assert_eq!((flows()[at], flows()[1 - at]), (1, 0));
        assert_eq!(echo(3), local);
        let refused = run(&["17", "2"]);
        assert!(
            !refused.status.success() && refused.err.contains("no transport server 2"),
            "{}",
            refused.err
        );
        let stayed = run(&["17", &at.to_string()]);
        assert!(!stayed.status.success() && stayed.out.contains("there already"), "{}", stayed.out);
        let refused = run(&["--connection", "198.18.0.2:9-198.18.0.1:9", "0"]);
        assert!(
            !refused.status.success() && refused.err.contains("no connection"),
            "{}",
            refused.err
        );
    });
}
