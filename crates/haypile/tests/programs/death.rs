//! Sudden deaths: of workers, servers, clients and of the service itself. Peers hear of it, nothing of the dead is
//! left, and whoever lives goes on.

use crate::support::process::{Process, send_signal};
use crate::support::random::Random;
use crate::support::stage::{Stage, host, on_stage, service};
use crate::support::{
    PATIENCE, content, http, inspect, nginx, python, script, setting, wait_until,
};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// A random moment under load: the time of the kill is the point of the test, nothing is waited for.
fn random_moment(random: &mut Random) {
    thread::sleep(Duration::from_millis(20 + random.below(100)));
}

fn python_server(stage: &Stage, port: u16) -> Process {
    let (program, port_text, root) =
        (script("http_server.py"), port.to_string(), stage.text("root"));
    let mut server = stage.run(&[python(), &program, "198.18.0.2", &port_text, &root]);
    server.wait_for_output("ready");
    server
}

/// The process that runs `program` and is `ancestor` or below it.
fn find_process(ancestor: u32, program: &str) -> u32 {
    wait_until(&format!("{program} runs"), PATIENCE, || {
        let runs = |pid: &u32| inspect::program_of(*pid).starts_with(program);
        family_of(ancestor).into_iter().find(runs)
    })
}

fn family_of(ancestor: u32) -> HashSet<u32> {
    let mut family = HashSet::from([ancestor]);
    let mut unseen = vec![ancestor];
    while let Some(parent) = unseen.pop() {
        for child in inspect::children_of(parent) {
            if family.insert(child) {
                unseen.push(child);
            }
        }
    }
    family
}

fn check_outcome(stage: &Stage, what: &str, outcome: http::Outcome) {
    let silent = outcome.silent + outcome.unconnected;
    if silent > 0 {
        let o = stage.output(&["ss", "-tnaoi"], PATIENCE).out;
        stage.say(&format!("SS {:?} KSS {o}", inspect::sockets(stage)));
        let st = stage.ask("status", &[]).unwrap();
        stage.say(&format!("{}", st["counters"]));
        stage.say(&format!("{}", st["drops"]));
    }
    assert_eq!(silent, 0, "{what}: clients heard nothing: {outcome:?}");
    assert_eq!(outcome.wrong, 0, "{what}: wrong answers: {outcome:?}");
    stage.say(&format!("{what}: {} right, {} broken off", outcome.right, outcome.broken));
}

#[test]
fn killed_workers_are_replaced() {
    on_stage("killed_workers_are_replaced", &["nginx", "curl"], |stage| {
        content::write(&stage.served("page"), 100_000);
        let mut service_process = stage.serve();
        let mut server = nginx::start(stage, 8080);
        let master = nginx::master(stage, "nginx-8080");
        let mut random = Random::for_test(8);
        let load = http::Load::start(8, service(8080), "page", 100_000);
        let kills = setting("HAYPILE_E2E_KILLS", 10);
        for _ in 0..kills {
            random_moment(&mut random);
            let workers = nginx::workers(master);
            let victim = workers[random.below(2) as usize];
            send_signal("KILL", &victim.to_string());
            inspect::wait_until_disowned(stage, victim);
            nginx::workers(master);
            http::fetch(stage, &http::url(service(8080), "page"), &stage.path("fetched"), 60);
            content::assert_same(&stage.served("page"), &stage.path("fetched"));
        }
        check_outcome(stage, &format!("{kills} workers killed"), load.stop());
        service_process.assert_alive();
        server.assert_alive();
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn a_killed_server_leaves_its_port_to_the_next() {
    on_stage("a_killed_server_leaves_its_port_to_the_next", &["python3", "curl"], |stage| {
        content::write(&stage.served("page"), 1 << 20);
        let mut service_process = stage.serve();
        let mut random = Random::for_test(80);
        let load = http::Load::start(6, service(8080), "page", 1 << 20);
        let kills = setting("HAYPILE_E2E_KILLS", 10);
        for _ in 0..kills {
            let server = python_server(stage, 8080);
            let victim = find_process(server.pid(), "python");
            random_moment(&mut random);
            send_signal("KILL", &victim.to_string());
            server.finish(PATIENCE);
            inspect::wait_until_disowned(stage, victim);
            let listed = inspect::sockets(stage);
            assert!(!listed.iter().any(|socket| inspect::state(socket) == "LISTEN"), "{listed:?}");
        }
        let _last = python_server(stage, 8080);
        http::fetch(stage, &http::url(service(8080), "page"), &stage.path("fetched"), 60);
        content::assert_same(&stage.served("page"), &stage.path("fetched"));
        check_outcome(stage, &format!("{kills} servers killed"), load.stop());
        service_process.assert_alive();
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn a_killed_client_ends_its_connection() {
    on_stage("a_killed_client_ends_its_connection", &["curl"], |stage| {
        let mut service_process = stage.serve();
        let listener = TcpListener::bind(host(8000)).expect("listen on the kernel's side");
        let mut random = Random::for_test(800);
        let kills = setting("HAYPILE_E2E_KILLS", 10);
        for _ in 0..kills {
            let address = http::url(host(8000), "endless");
            let words = [&http::CURL[..], &["60", "--output", "/dev/null", &address]].concat();
            let client = stage.run(&words);
            let (mut stream, _) = listener.accept().expect("accept");
            stream.set_read_timeout(Some(PATIENCE)).expect("set a limit");
            stream.set_write_timeout(Some(PATIENCE)).expect("set a limit");
            let victim = find_process(client.pid(), "curl");
            let writer = thread::spawn(move || serve_without_end(&mut stream));
            random_moment(&mut random);
            send_signal("KILL", &victim.to_string());
            let ended = client.finish(PATIENCE).status;
            assert!(!ended.success(), "a killed program: {ended}");
            let error = writer.join().expect("the server's thread");
            use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
            assert!(matches!(error.kind(), BrokenPipe | ConnectionReset), "{error}");
            inspect::wait_until_disowned(stage, victim);
        }
        service_process.assert_alive();
        inspect::wait_for_rest(stage);
    });
}

/// Answers a request with bytes until the client is gone; returns how that was noticed.
fn serve_without_end(stream: &mut TcpStream) -> std::io::Error {
    let mut request = [0; 4096];
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n";
    let block = vec![7; 64 * 1024];
    let first = stream.read(&mut request).and_then(|_| stream.write_all(head));
    if let Err(error) = first {
        return error;
    }
    loop {
        if let Err(error) = stream.write_all(&block) {
            return error;
        }
    }
}

/// A process that was stopped cannot take part in anything and must not hold up the service.
#[test]
fn a_stopped_worker_hurts_only_its_own() {
    on_stage("a_stopped_worker_hurts_only_its_own", &["python3", "nginx", "curl"], |stage| {
        content::write(&stage.served("page"), 100_000);
        let _service = stage.serve();
        let stopped = python_server(stage, 8081);
        let _server = nginx::start(stage, 8080);
        let victim = find_process(stopped.pid(), "python");
        send_signal("STOP", &victim.to_string());
        let held: Vec<_> = (0..20).filter_map(|_| TcpStream::connect(service(8081)).ok()).collect();
        for _ in 0..10 {
            http::fetch(stage, &http::url(service(8080), "page"), &stage.path("fetched"), 60);
            content::assert_same(&stage.served("page"), &stage.path("fetched"));
        }
        send_signal("CONT", &victim.to_string());
        http::fetch(stage, &http::url(service(8081), "page"), &stage.path("fetched"), 60);
        drop(held);
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn programs_hear_of_the_death_of_the_service() {
    on_stage("programs_hear_of_the_death_of_the_service", &["python3", "nginx"], |stage| {
        let service_process = stage.serve();
        let silent = TcpListener::bind(host(8000)).expect("listen on the kernel's side");
        let connecting = ["recv", "send", "poll", "epoll", "select"];
        let accepting = [
            ("accept", "9001"),
            ("accept-epoll", "9002"),
            ("stubborn-poll", "9003"),
            ("stubborn-epoll", "9004"),
        ];
        let program = script("waiter.py");
        let mut waiters: Vec<(String, Process)> = Vec::new();
        for way in connecting {
            let words = [python(), &program, way, "198.18.0.1", "8000"];
            waiters.push((way.to_string(), stage.run(&words)));
        }
        for (way, port) in accepting {
            let words = [python(), &program, way, "198.18.0.2", port];
            waiters.push((way.to_string(), stage.run(&words)));
        }
        let nginx = nginx::start(stage, 8080);
        for (_, waiter) in &mut waiters {
            waiter.wait_for_output("waiting");
        }
        let _held: Vec<_> = connecting.iter().map(|_| silent.accept().expect("accept")).collect();
        service_process.signal("KILL");
        drop(service_process.finish(PATIENCE));
        for (way, waiter) in waiters {
            let said = waiter.finish(PATIENCE).expect_success(&way).out;
            let why = said.lines().find_map(|line| line.strip_prefix("ended: "));
            let why = why.unwrap_or_else(|| panic!("{way} does not say how it ended: {said}"));
            stage.say(&format!("{way}: {why}"));
            assert!(!why.contains("gave a connection"), "{way}: {why}");
            if let Some((_, used)) = why.split_once("waits used ") {
                let used_ms: u64 = used.trim_end_matches(" ms").parse().expect("a time");
                // Four seconds of waiting. What turns for nothing uses all the processor it gets.
                assert!(used_ms < 400, "{way}: {why}");
            }
        }
        wait_until("the interface is gone", PATIENCE, || {
            stage.interfaces().is_empty().then_some(())
        });
        nginx.terminate();
        // What a killed service could not remove, the next one replaces.
        let next = stage.serve();
        next.signal("TERM");
        assert_eq!(next.finish(PATIENCE).status.code(), Some(0));
    });
}
