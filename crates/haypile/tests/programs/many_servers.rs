//! Services of several servers, combined and apart: short connections with their contents checked, servers
//! killed under load, and what the commands say of it all.

use crate::support::process::{Process, send_signal};
use crate::support::stage::{Stage, on_stage, service};
use crate::support::{PATIENCE, content, nginx, python, script, setting, wait_until};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const SILENCE: Duration = Duration::from_secs(60);
const CLIENTS: u64 = 16;
const WORKERS: &str = "4";

/// A connection of its own for `request`; the answer up to its end.
fn ask(server: SocketAddr, request: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// What the prefork server gives.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251 * 7 % 251) as u8).collect()
}

/// `total` short connections by several clients at once, all of which must be answered in full.
fn load(stage: &Stage, name: &str, total: u64, one: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let started = std::time::Instant::now();
    let failed = thread::scope(|scope| {
        let client = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return;
                }
                one(number);
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().map(|client| client.join()).filter(Result::is_err).count()
    });
    assert_eq!(failed, 0, "{}: {name}: clients failed", stage.name);
    let rate = total as f64 / started.elapsed().as_secs_f64();
    stage.say(&format!("{name}: {total} connections, none failed: {rate:.0}/s"));
}

/// nginx with four workers.
fn start_nginx(stage: &Stage, port: u16) -> Process {
    let address = service(port);
    let words = nginx::command(stage, "nginx", &[&address.to_string()]);
    let path = stage.path("nginx").join("nginx.conf");
    let text = fs::read_to_string(&path).expect("nginx.conf");
    fs::write(&path, text.replace("worker_processes 2", "worker_processes 4")).expect("written");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut nginx = stage.run(&words);
    stage.wait_for_listener(address, &mut nginx);
    nginx
}

fn start_prefork(stage: &Stage, port: u16, children: &str) -> Process {
    let words = [python(), &script("prefork_server.py"), "198.18.0.2", &port.to_string(), children];
    let mut server = stage.run(&words);
    server.wait_for_output("ready");
    stage.wait_for_listener(service(port), &mut server);
    server
}

/// Short connections to nginx and to a server of several processes, under one plan.
fn short_connections(test: &'static str, plan: &'static str, servers: usize) {
    on_stage(test, &["nginx", "python3"], move |stage| {
        content::write(&stage.served("page"), 5_000);
        let page = fs::read(stage.served("page")).expect("a page");
        let _service = stage.serve_with(&["--plan", plan]);
        let _nginx = start_nginx(stage, 8080);
        let _prefork = start_prefork(stage, 8081, WORKERS);
        let requests = setting("HAYPILE_E2E_REQUESTS", 3_000);
        load(stage, "nginx", requests, |_| {
            let answer = ask(service(8080), "GET /page HTTP/1.0\r\n\r\n").expect("an answer");
            assert!(answer.ends_with(&page), "{} bytes", answer.len());
        });
        load(stage, "prefork", requests.div_ceil(10), |number| {
            let len = (number * 997 % 40_000) as usize;
            let answer = ask(service(8081), &format!("give {len}\n")).expect("an answer");
            assert!(answer == pattern(len), "{} of {len} bytes", answer.len());
        });
        let status = stage.ask("status", &[]).expect("status");
        let rows = status["servers"].as_array().expect("rows");
        assert_eq!(rows.len(), servers, "{status}");
        assert!(rows.iter().all(|row| row["restarts"] == 0), "{status}");
        assert_every_transport_served(&status);
        // A listener is one, although every transport server has it.
        let listeners = stage.ask("ss", &["-l"]).expect("ss")["sockets"].clone();
        let at = |port: u16| {
            let local = service(port).to_string();
            let rows = listeners.as_array().into_iter().flatten();
            rows.filter(|row| row["local"] == local.as_str()).count()
        };
        assert_eq!((at(8080), at(8081)), (1, 1), "{listeners}");
    });
}

/// Every server with a part of the link has received or sent something.
fn assert_every_transport_served(status: &Value) {
    for row in status["servers"].as_array().expect("rows") {
        let has = |name: &str| {
            row["components"].as_array().expect("components").iter().any(|one| one == name)
        };
        let turns = row["busy_turns"].as_u64().unwrap_or_default();
        assert!(!has("transport") || turns > 0, "{row}");
        let frames = row["rx_frames"].as_u64().unwrap_or_default();
        assert!(!has("link") || frames > 0, "{row}");
    }
}

macro_rules! short_connection_tests {
    ($($test:ident: $plan:literal, $servers:literal,)*) => { $(
        #[test]
        fn $test() {
            short_connections(stringify!($test), $plan, $servers);
        }
    )* };
}

short_connection_tests! {
    one_server_serves_short_connections: "TS1LS1CM1", 1,
    two_combined_servers_serve_short_connections: "TS2LS2CM2", 2,
    servers_apart_serve_short_connections: "TS2+LS1+CM1", 4,
    a_manager_apart_serves_short_connections: "TS2LS2+CM1", 3,
    four_servers_with_two_managers_serve_short_connections: "TS4LS4CM2", 4,
}

/// Says something and hears it again; false when the connection was reset.
fn echo(stream: &mut TcpStream) -> bool {
    let word = *b"0123456789";
    let mut heard = [0; 10];
    let done = stream.write_all(&word).and_then(|()| stream.read_exact(&mut heard));
    match done {
        Ok(()) => heard == word,
        Err(error) => {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "no answer");
            false
        }
    }
}

/// Connections that a server of the plan has.
fn connections_of(stage: &Stage, server: usize) -> u64 {
    let status = stage.ask("status", &[]).expect("status");
    status["servers"][server]["connections"].as_u64().unwrap_or_default()
}

fn pid_of(stage: &Stage, server: usize) -> u64 {
    wait_until("the server says that it runs", PATIENCE, || {
        let status = stage.ask("status", &[]).ok()?;
        status["servers"][server]["pid"].as_u64().filter(|pid| *pid != 0)
    })
}

/// Says at its end that something is over.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills a server of the plan while connections are held and made: those of that server end, if it has any,
/// the others do not, and the next ones are served.
fn kill_one(test: &'static str, plan: &'static str, server: usize, owns: bool) {
    on_stage(test, &["python3"], move |stage| {
        let _service = stage.serve_with(&["--plan", plan]);
        let mut program = start_prefork(stage, 8081, WORKERS);
        let hold = |_| {
            let mut stream = TcpStream::connect_timeout(&service(8081), SILENCE).expect("connect");
            stream.set_read_timeout(Some(SILENCE)).expect("set a limit");
            stream.write_all(b"echo 10\n").expect("send");
            assert!(echo(&mut stream), "an echo");
            stream
        };
        let mut held: Vec<TcpStream> = (0..40).map(hold).collect();
        let its_own = connections_of(stage, server);
        let stop = AtomicBool::new(false);
        let (served, broken) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            // However this ends: the clients do too.
            let _stop = SetOnDrop(&stop);
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let right = ask(service(8081), "give 3000\n")
                            .is_ok_and(|answer| answer == pattern(3000));
                        let count = if right { &served } else { &broken };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let victim = pid_of(stage, server);
            send_signal("KILL", &victim.to_string());
            wait_until("another server takes its place", PATIENCE, || {
                (pid_of(stage, server) != victim).then_some(())
            });
            // Twice as many as before the kill: whatever was under way is over.
            let enough = served.load(Ordering::Relaxed) + 50;
            // Whoever was cut off may be all of them, and notices it by the silence alone.
            wait_until("connections are served again", SILENCE + PATIENCE, || {
                (served.load(Ordering::Relaxed) >= enough).then_some(())
            });
        });
        let alive = held.iter_mut().filter_map(|stream| echo(stream).then_some(())).count();
        let (served, broken) = (served.into_inner(), broken.into_inner());
        stage.say(&format!(
            "server {server} of {plan} killed: {alive} of 40 held connections live on ({its_own} were \
             its own), {served} short ones right, {broken} broken off"
        ));
        match owns {
            true => {
                let ended = 40 - alive as u64;
                assert!(alive > 0 && ended > 0 && ended <= its_own, "{ended} of {its_own}");
            }
            false => {
                assert_eq!((alive, broken), (40, 0));
            }
        }
        program.assert_alive();
        load(stage, "afterwards", 200, |number| {
            let len = (number * 97) as usize;
            let answer = ask(service(8081), &format!("give {len}\n")).expect("an answer");
            assert!(answer == pattern(len));
        });
    });
}

#[test]
fn a_combined_server_that_dies_takes_its_own_connections_along() {
    let test = "a_combined_server_that_dies_takes_its_own_connections_along";
    kill_one(test, "TS2LS2CM2", 1, true);
}

#[test]
fn the_first_server_that_dies_takes_its_own_connections_along() {
    let test = "the_first_server_that_dies_takes_its_own_connections_along";
    kill_one(test, "TS2LS2+CM1", 0, true);
}

#[test]
fn a_manager_that_dies_takes_no_connection_along() {
    kill_one("a_manager_that_dies_takes_no_connection_along", "TS2LS2+CM1", 2, false);
}

#[test]
fn a_link_server_that_dies_takes_no_connection_along() {
    kill_one("a_link_server_that_dies_takes_no_connection_along", "TS2+LS1+CM1", 2, false);
}
