//! Services of several servers, combined and apart: short connections with their contents checked, servers
//! killed under load, and what the commands say of it all.

use crate::support::held::{echo, hold, start_prefork};
use crate::support::process::{Process, send_signal};
use crate::support::stage::{Stage, on_stage, service};
use crate::support::{PATIENCE, content, nginx, python, script, setting, wait_until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
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

/// What the python servers give.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251 * 7 % 251) as u8).collect()
}

/// `total` short connections by several clients at once, all of which must be answered in full. `one` makes
/// one of them, and says what was wrong with it.
fn load(stage: &Stage, name: &str, total: u64, one: impl Fn(u64) -> Result<(), String> + Sync) {
    let next = AtomicU64::new(0);
    // How many, and which was the first and the last.
    let failures: Mutex<BTreeMap<String, (u64, u64, u64)>> = Mutex::default();
    let started = std::time::Instant::now();
    thread::scope(|scope| {
        let client = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return;
                }
                if let Err(why) = one(number) {
                    let mut failures = failures.lock().expect("no client panics");
                    let (count, _, last) = failures.entry(why).or_insert((0, number, number));
                    (*count, *last) = (*count + 1, number);
                }
            }
        };
        for _ in 0..CLIENTS {
            scope.spawn(client);
        }
    });
    let failures = failures.into_inner().expect("no client panics");
    let failed: u64 = failures.values().map(|(count, ..)| count).sum();
    let rate = total as f64 / started.elapsed().as_secs_f64();
    stage.say(&format!("{name}: {total} connections, {failed} failed: {rate:.0}/s"));
    assert!(failures.is_empty(), "{}: {name}: {failed} of {total}: {failures:?}", stage.name);
}

/// Asks a server that speaks HTTP for `path`, which must be all of `body`.
fn check_page(server: SocketAddr, path: &str, body: &[u8]) -> Result<(), String> {
    let request = format!("GET /{path} HTTP/1.0\r\n\r\n");
    let answer = ask(server, &request).map_err(|error| error.to_string())?;
    let whole = answer.len() > body.len() && answer.ends_with(body);
    let (got, rest) = (answer.len(), answer.len().saturating_sub(body.len()));
    let begun = answer.starts_with(b"HTTP/1.") && answer[..rest].ends_with(b"\r\n\r\n");
    if whole && begun { Ok(()) } else { Err(format!("{got} bytes in answer to /{path}")) }
}

/// As [`check_page`], of the server that answers `give`.
fn check_gift(server: SocketAddr, len: usize) -> Result<(), String> {
    let answer = ask(server, &format!("give {len}\n")).map_err(|error| error.to_string())?;
    let whole = answer == pattern(len);
    if whole { Ok(()) } else { Err(format!("{} of {len} bytes", answer.len())) }
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

/// Who answers short connections.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// nginx with four workers.
    Nginx,
    /// Four children, made once, that accept on one inherited listener.
    Prefork,
    /// A child for each connection.
    Forking,
}

impl Kind {
    fn start(self, stage: &Stage) -> Process {
        let (word, children) = match self {
            Kind::Nginx => return start_nginx(stage, PORT),
            Kind::Prefork => ("prefork", WORKERS),
            Kind::Forking => ("forking", "40"),
        };
        let (address, port) = (service(PORT).ip().to_string(), PORT.to_string());
        let words = [python(), &script("short_server.py"), word, &address, &port, children];
        let mut server = stage.run(&words);
        server.wait_for_output("ready");
        stage.wait_for_listener(service(PORT), &mut server);
        server
    }

    /// How many connections: a fork costs as much as ten answers.
    fn requests(self) -> u64 {
        let requests = setting("HAYPILE_E2E_REQUESTS", 3_000);
        match self {
            Kind::Forking => setting("HAYPILE_E2E_FORKS", requests.div_ceil(10)),
            _ => requests,
        }
    }
}

/// Where the servers of short connections listen.
const PORT: u16 = 8080;

/// Short connections to one kind of server under one plan.
fn short_connections(test: &'static str, kind: Kind, plan: &'static str, servers: usize) {
    on_stage(test, &["nginx", "python3"], move |stage| {
        content::write(&stage.served("page"), 5_000);
        let page = fs::read(stage.served("page")).expect("a page");
        let _service = stage.serve_with(&["--plan", plan]);
        let mut program = kind.start(stage);
        load(stage, &format!("{kind:?} under {plan}"), kind.requests(), |number| match kind {
            Kind::Nginx => check_page(service(PORT), "page", &page),
            Kind::Prefork | Kind::Forking => {
                let len = (number * 997 % 10_000) as usize;
                check_page(service(PORT), &len.to_string(), &pattern(len))
            }
        });
        program.assert_alive();
        assert_all_served(stage, servers);
    });
}

/// All servers live and have worked, a listener is one although every transport server has it, and nothing
/// is left of the connections and of the processes that have served them.
fn assert_all_served(stage: &Stage, servers: usize) {
    let status = stage.ask("status", &[]).expect("status");
    let rows = status["servers"].as_array().expect("rows");
    assert_eq!(rows.len(), servers, "{status}");
    assert!(rows.iter().all(|row| row["restarts"] == 0), "{status}");
    assert_every_transport_served(&status);
    let listeners = stage.ask("ss", &["-l"]).expect("ss")["sockets"].clone();
    let local = service(PORT).to_string();
    let rows = listeners.as_array().into_iter().flatten();
    assert_eq!(rows.filter(|row| row["local"] == local.as_str()).count(), 1, "{listeners}");
    wait_until("the last connection has ended", PATIENCE, || {
        let status = stage.ask("status", &[]).ok()?;
        let rows = status["servers"].as_array()?;
        rows.iter()
            .all(|row| row["connections"].as_u64().is_none_or(|left| left == 0))
            .then_some(())
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
    ($($module:ident: $plan:literal, $servers:literal,)*) => { $(
        mod $module {
            use super::{Kind, short_connections};

            #[test]
            fn nginx_answers_short_connections() {
                let test = concat!(stringify!($module), "_nginx");
                short_connections(test, Kind::Nginx, $plan, $servers);
            }

            #[test]
            fn children_that_share_a_listener_answer_short_connections() {
                let test = concat!(stringify!($module), "_prefork");
                short_connections(test, Kind::Prefork, $plan, $servers);
            }

            #[test]
            fn a_child_for_each_answers_short_connections() {
                let test = concat!(stringify!($module), "_forking");
                short_connections(test, Kind::Forking, $plan, $servers);
            }
        }
    )* };
}

short_connection_tests! {
    one_server: "TS1LS1CM1", 1,
    two_combined_servers: "TS2LS2CM2", 2,
    servers_apart: "TS2+LS1+CM1", 4,
    a_manager_apart: "TS2LS2+CM1", 3,
    four_servers_with_two_managers: "TS4LS4CM2", 4,
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
        let hold = |_| hold(service(8081));
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
                        let right = check_gift(service(8081), 3000).is_ok();
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
        load(stage, "afterwards", 200, |number| check_gift(service(8081), (number * 97) as usize));
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

/// A counter of `haypile status`, of all servers together.
fn counted(stage: &Stage, name: &str) -> u64 {
    let status = stage.ask("status", &[]).expect("status");
    let rows = status["counters"].as_array().expect("counters").clone();
    let row = rows.into_iter().find(|row| row["name"] == name);
    row.and_then(|row| row["count"].as_u64()).unwrap_or_default()
}

/// `accept` and `epoll_wait` say nothing to any server when there is nothing; when there is, the claim
/// is all that accepting says.
#[test]
fn accepting_says_nothing_but_claims() {
    const MISSES: u64 = 500;
    const HITS: u64 = 200;
    on_stage("accepting_says_nothing_but_claims", &["python3"], |stage| {
        let _service = stage.serve_with(&["--plan", "TS2LS2CM2"]);
        let (misses, hits) = (MISSES.to_string(), HITS.to_string());
        let script = script("quiet_acceptor.py");
        let mut program = stage.run(&[python(), &script, "198.18.0.2", "8081", &misses, &hits]);
        program.wait_for_output("ready");
        let before = counted(stage, "requests");
        assert!(before > 0);
        program.signal("USR1");
        program.wait_for_output("missed");
        assert_eq!(counted(stage, "requests"), before, "misses");
        let [acceptors, claims, late] = ["requests_acceptor", "requests_claim", "offers_timed_out"]
            .map(|name| counted(stage, name));
        load(stage, "echoes", HITS, |number| {
            let word = format!("connection {number}");
            let answer = ask(service(8081), &word).map_err(|error| error.to_string())?;
            if answer == word.as_bytes() { Ok(()) } else { Err("another answer".to_owned()) }
        });
        program.wait_for_output("hit");
        wait_until("the last claim is heard", PATIENCE, || {
            (counted(stage, "requests_claim") - claims >= HITS).then_some(())
        });
        let claims = counted(stage, "requests_claim") - claims;
        // Whoever was too late once says again that it is there.
        let late = counted(stage, "offers_timed_out") - late;
        let again = counted(stage, "requests_acceptor") - acceptors;
        assert!(again <= late, "{again} registrations, {late} late claims");
        assert!(claims <= HITS + late, "{claims} claims, {late} late ones");
        stage.say(&format!(
            "{MISSES} misses of accept and epoll_wait: 0 messages; {HITS} hits: {claims} claims, {again} \
             registrations"
        ));
    });
}
