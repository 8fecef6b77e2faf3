//! What `haypile balance`, `ss`, `status` and `steer` show is true, also of connections that have moved: compared
//! with what the load knows.

use crate::growth::set_plan;
use crate::support::process::Process;
use crate::support::stage::{Stage, on_stage, service};
use crate::support::{PATIENCE, python, script, wait_until};
use haypile_service::control::{Request, ask};
use haypile_service::moving::{MoveReport, Selection};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;

const HELD: usize = 40;

fn start_echo(stage: &Stage, port: u16) -> Process {
    let (words, port_text) = (script("asyncio_echo.py"), port.to_string());
    let mut server = stage.run(&[python(), &words, "server", "plain", "0.0.0.0", &port_text]);
    stage.wait_for_listener(service(port), &mut server);
    server
}

fn hold(port: u16) -> TcpStream {
    let stream = TcpStream::connect_timeout(&service(port), PATIENCE).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a limit");
    stream
}

/// Everybody says something and hears it again.
#[track_caller]
fn talk(streams: &mut [TcpStream]) {
    for stream in streams {
        let mut heard = [0; 5];
        stream.write_all(b"hello").expect("send");
        stream.read_exact(&mut heard).expect("an answer");
        assert_eq!(&heard, b"hello");
    }
}

/// All buckets of a server go to another one; how many connections that were.
fn move_all(stage: &Stage, from: u16, to: u16) -> usize {
    let request = Request::SteerMove { what: Selection::AllOf(from), to, patience_ms: 20_000 };
    let answer = ask(&stage.control(), &request).expect("steer move");
    let report: MoveReport = serde_json::from_value(answer).expect("a report");
    assert!(report.moves.iter().all(|row| row.moved), "{:?}", report.moves);
    report.moves.iter().map(|row| row.connections).sum()
}

/// Connections that applications have, by each one's own manager.
fn open(stage: &Stage) -> u64 {
    let report = stage.ask("balance", &[]).expect("balance");
    let rows = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let queues = rows(&report, "managers").into_iter().flat_map(|one| rows(&one, "queues"));
    let acceptors = queues.flat_map(|queue| rows(&queue, "acceptors"));
    let ours = acceptors.filter(|one| one["offered_by"].is_null());
    ours.map(|one| one["open"].as_u64().expect("a number")).sum()
}

#[track_caller]
fn wait_for_open(stage: &Stage, what: &str, expected: usize) {
    let mut last = 0;
    let found = (0..200).any(|_| {
        last = open(stage);
        std::thread::sleep(std::time::Duration::from_millis(20));
        last == expected as u64
    });
    assert!(found, "{what}: {last} connections are open, not {expected}");
}

/// Nothing waits to be read or to be acknowledged.
#[track_caller]
fn assert_read(stage: &Stage, port: u16, count: usize) {
    wait_until("all is read and acknowledged", PATIENCE, || {
        let answer = stage.ask("ss", &[]).ok()?;
        let local = service(port).to_string();
        let rows = answer["sockets"].as_array()?.iter().filter(|row| row["local"] == local);
        let rows: Vec<&Value> = rows.collect();
        let empty = |row: &&Value| row["recv_queue"] == 0 && row["send_queue"] == 0;
        (rows.len() == count && rows.iter().all(empty)).then_some(())
    });
}

fn frames_received(stage: &Stage) -> Vec<u64> {
    let status = stage.ask("status", &[]).expect("status");
    let rows = status["servers"].as_array().expect("servers");
    rows.iter().map(|row| row["rx_frames"].as_u64().unwrap_or_default()).collect()
}

#[test]
fn figures_are_true_after_moves_by_hand() {
    on_stage("figures_are_true_after_moves_by_hand", &["python3"], |stage| {
        let _service = stage.serve_with(&["--plan", "TS2LS2CM2"]);
        let _programs = [start_echo(stage, 8080), start_echo(stage, 8081)];
        // Each of the two has its home and its manager at another server.
        let mut held: Vec<TcpStream> =
            (0..2 * HELD).map(|number| hold(8080 + (number % 2) as u16)).collect();
        talk(&mut held);
        wait_for_open(stage, "at first", held.len());
        for (from, to) in [(1_u16, 0_u16), (0, 1)] {
            let moved = move_all(stage, from, to);
            assert!(moved > 0);
            talk(&mut held);
            wait_for_open(stage, "after a move", held.len());
            assert_read(stage, 8080, HELD);
            // What comes now comes to the new server by itself.
            wait_until("frames come where their connections are", PATIENCE, || {
                let before = frames_received(stage);
                (0..5).for_each(|_| talk(&mut held));
                let after = frames_received(stage);
                let strayed = after[usize::from(from)] - before[usize::from(from)];
                let came = after[usize::from(to)] - before[usize::from(to)];
                (came >= 5 * held.len() as u64 && strayed < 20).then_some(())
            });
        }
        drop(held.split_off(HELD));
        wait_for_open(stage, "half of them are closed", HELD);
        move_all(stage, 1, 0);
        talk(&mut held);
        drop(held);
        wait_for_open(stage, "all are closed", 0);
    });
}

#[test]
fn figures_are_true_while_the_plan_changes() {
    on_stage("figures_are_true_while_the_plan_changes", &["python3"], |stage| {
        let _service = stage.serve();
        let _programs = [start_echo(stage, 8080), start_echo(stage, 8081), start_echo(stage, 8082)];
        let mut held = Vec::new();
        for plan in ["TS3LS3CM3", "TS2LS2CM2", "TS4LS4CM2", "TS1LS1CM1", "TS2LS2CM2"] {
            held.extend((0..HELD).map(|number| hold(8080 + (number % 3) as u16)));
            talk(&mut held);
            wait_for_open(stage, "before the plan changes", held.len());
            set_plan(stage, plan).expect_success(plan);
            talk(&mut held);
            wait_for_open(stage, plan, held.len());
            drop(held.split_off(held.len() - HELD / 2));
            wait_for_open(stage, plan, held.len());
        }
        drop(held);
        wait_for_open(stage, "all are closed", 0);
    });
}
