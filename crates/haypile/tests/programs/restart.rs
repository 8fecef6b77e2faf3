//! Servers killed under the programs that use them: programs go on, connections are reset, nothing leaks; and
//! the sandbox that servers are in.

use crate::support::process::send_signal;
use crate::support::stage::{Stage, on_stage, service};
use crate::support::{PATIENCE, content, http, inspect, nginx, python, setting, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

/// Echoes what clients of port 8081 say, one after the other, in blocking calls.
const BLOCKING: &str = "
import socket
listener = socket.create_server(('198.18.0.2', 8081), backlog=64)
print('ready', flush=True)
while True:
    connection, _ = listener.accept()
    try:
        while data := connection.recv(100):
            connection.sendall(data)
    except ConnectionResetError:
        pass
    connection.close()
";

/// The same on port 8082, with one epoll set for all.
const EPOLL: &str = "
import selectors, socket
listener = socket.create_server(('198.18.0.2', 8082), backlog=64)
listener.setblocking(False)
waiting = selectors.EpollSelector()
waiting.register(listener, selectors.EVENT_READ)
print('ready', flush=True)
while True:
    for key, _ in waiting.select():
        try:
            if key.fileobj is listener:
                connection, _ = listener.accept()
                connection.setblocking(False)
                waiting.register(connection, selectors.EVENT_READ)
            elif data := key.fileobj.recv(100):
                key.fileobj.send(data)
            else:
                waiting.unregister(key.fileobj)
                key.fileobj.close()
        except BlockingIOError:
            pass
        except ConnectionResetError:
            waiting.unregister(key.fileobj)
            key.fileobj.close()
";

/// The server process of a supervisor.
#[track_caller]
fn server_of(supervisor: u32) -> u32 {
    wait_until("a server runs", PATIENCE, || {
        let is_server = |pid: &u32| inspect::program_of(*pid).starts_with("haypile-srv");
        inspect::children_of(supervisor).into_iter().find(is_server)
    })
}

/// The server process once it says that it runs.
#[track_caller]
fn running_server(stage: &Stage) -> u32 {
    wait_until("the server says that it runs", PATIENCE, || {
        let status = stage.ask("status", &[]).ok()?;
        status["servers"][0]["pid"].as_u64().filter(|pid| *pid != 0)?.try_into().ok()
    })
}

/// Says something and hears it again.
fn echo(stream: &mut TcpStream, word: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(word)?;
    let mut heard = vec![0; word.len()];
    stream.read_exact(&mut heard)?;
    assert_eq!(heard, word);
    Ok(())
}

/// Waits until a server answers on an address.
#[track_caller]
fn wait_for_echo(address: SocketAddr) -> TcpStream {
    wait_until(&format!("{address} answers"), PATIENCE, || {
        let limit = Duration::from_millis(500);
        let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
        echo(&mut stream, b"hello").ok()?;
        Some(stream)
    })
}

/// Descriptors and mappings of a process.
fn holdings(pid: u32) -> (usize, usize) {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    (descriptors, maps.lines().count())
}

/// What the supervisor says of its server.
fn server_row(stage: &Stage) -> Value {
    stage.ask("status", &[]).expect("status")["servers"][0].clone()
}

#[test]
fn programs_outlive_their_server() {
    let needs = ["nginx", "python3", "curl"];
    on_stage("programs_outlive_their_server", &needs, |stage| {
        content::write(&stage.served("page"), 30_000);
        let service_process = stage.serve();
        let _nginx = nginx::start(stage, 8080);
        let mut programs = [BLOCKING, EPOLL].map(|text| stage.run(&[python(), "-c", text]));
        programs.iter_mut().for_each(|program| program.wait_for_output("ready"));
        let fetch = || {
            let file = stage.path("fetched");
            http::fetch(stage, &http::url(service(8080), "page"), &file, 60);
            content::assert_same(&stage.served("page"), &file);
        };
        let mut watched: Vec<u32> = programs.iter().map(|program| program.pid()).collect();
        watched.push(service_process.pid());
        watched.extend(nginx::workers(nginx::master(stage, "nginx-8080")));
        let (mut times_ms, mut before) = (Vec::new(), Vec::new());
        for round in 0..setting("HAYPILE_E2E_KILLS", 20) {
            let ports = [8081, 8082];
            let mut held: Vec<TcpStream> =
                ports.iter().map(|port| wait_for_echo(service(*port))).collect();
            fetch();
            let server = server_of(service_process.pid());
            send_signal("KILL", &server.to_string());
            let killed = Instant::now();
            // The first connection that comes is served.
            drop(wait_for_echo(service(8082)));
            times_ms.push(killed.elapsed().as_millis());
            for stream in &mut held {
                let outcome = echo(stream, b"still there?").expect_err("reset");
                let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                assert!(kinds.contains(&outcome.kind()), "{outcome}");
            }
            drop(held);
            drop(wait_for_echo(service(8081)));
            fetch();
            programs.iter_mut().for_each(crate::support::process::Process::assert_alive);
            if round == 2 {
                before = watched.iter().map(|pid| holdings(*pid)).collect();
            }
        }
        // Those in a row wait longer and longer.
        let first: Vec<String> = times_ms.iter().take(4).map(u128::to_string).collect();
        stage.say(&format!("served again after {} ... ms", first.join(", ")));
        inspect::wait_for_rest(stage);
        let after: Vec<(usize, usize)> = watched.iter().map(|pid| holdings(*pid)).collect();
        for (pid, (before, after)) in watched.iter().zip(before.iter().zip(&after)) {
            let what = inspect::describe(*pid);
            assert!(after.0 <= before.0 + 1, "{what}: descriptors {before:?}, then {after:?}");
            assert!(after.1 <= before.1 + 6, "{what}: mappings {before:?}, then {after:?}");
        }
        let row = server_row(stage);
        assert_eq!(row["restarts"].as_u64(), Some(times_ms.len() as u64), "{row}");
    });
}

/// Echoes datagrams on port 8083 in blocking calls, on 8084 with a time limit, on 8085 with an epoll set, and on
/// 8086 in two processes that share a socket. Each in a process of its own.
const DATAGRAMS: &str = "
import os, selectors, socket
def bound(port):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(('198.18.0.2', port))
    return one
def answer(one):
    data, sender = one.recvfrom(9000)
    one.sendto(data, sender)
def patiently(one):
    one.settimeout(60)
    while True:
        answer(one)
def by_epoll(one):
    one.setblocking(False)
    waiting = selectors.EpollSelector()
    waiting.register(one, selectors.EVENT_READ)
    while True:
        for _ in waiting.select():
            try:
                answer(one)
            except BlockingIOError:
                pass
def blocking(one):
    while True:
        answer(one)
for port, way in ((8083, blocking), (8084, patiently), (8085, by_epoll)):
    if os.fork() == 0:
        way(bound(port))
shared = bound(8086)
os.fork()
print('ready', flush=True)
blocking(shared)
";

/// Says something by a datagram until it is heard again.
#[track_caller]
fn wait_for_answer(address: SocketAddr) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("set a limit");
    wait_until(&format!("{address} answers by a datagram"), PATIENCE, || {
        socket.send_to(b"hello", address).ok()?;
        let mut heard = [0; 100];
        let (len, from) = socket.recv_from(&mut heard).ok()?;
        (from == address && heard[..len] == *b"hello").then_some(())
    });
}

#[test]
fn sockets_of_datagrams_outlive_their_server() {
    on_stage("sockets_of_datagrams_outlive_their_server", &["python3"], |stage| {
        let service_process = stage.serve();
        let mut program = stage.run(&[python(), "-c", DATAGRAMS]);
        program.wait_for_output("ready");
        let ports = [8083, 8084, 8085, 8086];
        for _ in 0..4 {
            ports.iter().for_each(|port| wait_for_answer(service(*port)));
            let server = server_of(service_process.pid());
            send_signal("KILL", &server.to_string());
            wait_until("the server is gone", PATIENCE, || {
                (!inspect::is_alive(server)).then_some(())
            });
            ports.iter().for_each(|port| wait_for_answer(service(*port)));
            program.assert_alive();
        }
        // Each is there once, whoever opened it first.
        let listed = inspect::sockets(stage);
        assert_eq!(listed.len(), ports.len(), "{listed:?}");
        drop(program);
        wait_until("the sockets end with their programs", PATIENCE, || {
            inspect::sockets(stage).is_empty().then_some(())
        });
    });
}

#[test]
fn a_death_that_is_noticed_late_ends_nobody() {
    on_stage("a_death_that_is_noticed_late_ends_nobody", &["python3"], |stage| {
        // Longer than programs wait for a supervisor that cannot be asked.
        const LATE: Duration = Duration::from_millis(3_500);
        let service_process = stage.serve_with(&["--plan", "TS2LS2CM2"]);
        let mut programs =
            [BLOCKING, EPOLL, DATAGRAMS].map(|text| stage.run(&[python(), "-c", text]));
        programs.iter_mut().for_each(|program| program.wait_for_output("ready"));
        let streams = [8081, 8082].map(service);
        let datagrams = [8083, 8084, 8085, 8086].map(service);
        streams.iter().for_each(|address| drop(wait_for_echo(*address)));
        datagrams.iter().for_each(|address| wait_for_answer(*address));
        let servers = inspect::children_of(service_process.pid());
        send_signal("STOP", &service_process.pid().to_string());
        servers.iter().for_each(|server| send_signal("KILL", &server.to_string()));
        thread::sleep(LATE);
        programs.iter_mut().for_each(crate::support::process::Process::assert_alive);
        send_signal("CONT", &service_process.pid().to_string());
        streams.iter().for_each(|address| drop(wait_for_echo(*address)));
        datagrams.iter().for_each(|address| wait_for_answer(*address));
        programs.iter_mut().for_each(crate::support::process::Process::assert_alive);
    });
}

/// Asks on the control socket, as a person with socat would.
fn command(stage: &Stage, line: &str) -> String {
    let mut stream = UnixStream::connect(stage.control().join("control.sock")).expect("connect");
    stream.write_all(line.as_bytes()).expect("asked");
    let mut answer = String::new();
    drop(stream.set_read_timeout(Some(PATIENCE)));
    let mut bytes = [0; 4096];
    if let Ok(len) = stream.read(&mut bytes) {
        answer.push_str(&String::from_utf8_lossy(&bytes[..len]));
    }
    answer
}

#[test]
fn a_failing_server_takes_nobody_along() {
    on_stage("a_failing_server_takes_nobody_along", &["python3"], |stage| {
        let mut service_process = stage.serve();
        let mut program = stage.run(&[python(), "-c", BLOCKING]);
        program.wait_for_output("ready");
        let ways: [(&str, &str); 4] = [
            ("{\"command\":\"fail\",\"how\":\"forbidden-call\"}\n", "system call"),
            ("{\"command\":\"fail\",\"how\":\"panic\"}\n", "asked to fail"),
            ("TERM", "signal 15"),
            ("ABRT", "signal 6"),
        ];
        for (way, told) in ways {
            let server = running_server(stage);
            match way.starts_with('{') {
                true => drop(command(stage, way)),
                false => send_signal(way, &server.to_string()),
            }
            wait_until("the server is gone", PATIENCE, || {
                (!inspect::is_alive(server)).then_some(())
            });
            drop(wait_for_echo(service(8081)));
            service_process.assert_alive();
            program.assert_alive();
            assert!(service_process.err().contains(told), "{way}: {}", service_process.err());
        }
        let row = server_row(stage);
        assert_eq!(row["restarts"].as_u64(), Some(4), "{row}");
        service_process.signal("TERM");
        assert_eq!(service_process.finish(PATIENCE).status.code(), Some(0));
    });
}

#[test]
fn changes_of_balancing_outlive_the_servers() {
    on_stage("changes_of_balancing_outlive_the_servers", &[], |stage| {
        let mut service_process = stage.serve_with(&["--plan", "TS2LS2CM2", "--tariff", "3"]);
        let rules = |report: &Value| -> Vec<Value> {
            let rows = report["managers"].as_array().into_iter().flatten();
            rows.map(|row| json!([row["balance"]["scheme"], row["balance"]["tariff"]])).collect()
        };
        let told = stage.ask("balance", &["--scheme", "filtered", "--tariff", "7"]).expect("told");
        assert_eq!(rules(&told), vec![json!(["filtered", 7.0]); 2], "{told}");
        let refusal = stage.ask("balance", &["--tariff", "0"]).expect_err("a tariff of 0");
        assert!(refusal.contains("choose a tariff of 1 to 1000"), "{refusal}");
        for server in 0..2 {
            let status = stage.ask("status", &[]).expect("status");
            let pid = status["servers"][server]["pid"].as_u64().expect("a process");
            send_signal("KILL", &pid.to_string());
            wait_until("the server is started again", PATIENCE, || {
                let row = &stage.ask("status", &[]).ok()?["servers"][server];
                (row["restarts"] == 1 && row["pid"] != pid).then_some(())
            });
            let report = wait_until("both managers answer", PATIENCE, || {
                stage.ask("balance", &[]).ok().filter(|report| rules(report).len() == 2)
            });
            assert_eq!(rules(&report), vec![json!(["filtered", 7.0]); 2], "{report}");
        }
        service_process.assert_alive();
    });
}

#[test]
fn servers_are_confined() {
    on_stage("servers_are_confined", &[], |stage| {
        let service_process = stage.serve();
        let server = running_server(stage);
        assert_eq!(server, server_of(service_process.pid()));
        let status = fs::read_to_string(format!("/proc/{server}/status")).expect("a process");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().split_whitespace().map(str::to_string).collect::<Vec<_>>()
        };
        assert_eq!(field("Seccomp:"), ["2"]);
        assert_eq!(field("NoNewPrivs:"), ["1"]);
        for set in ["CapEff:", "CapPrm:", "CapInh:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        for ids in ["Uid:", "Gid:"] {
            assert!(field(ids).iter().all(|id| id != "0"), "{ids} {:?}", field(ids));
        }
        assert_eq!(field("Groups:"), Vec::<String>::new());
        let row = server_row(stage);
        assert_eq!(row["pid"].as_u64(), Some(server.into()));
        assert!(row["sandbox"].as_str().is_some_and(|text| text.starts_with("on ")), "{row}");
    });
}
