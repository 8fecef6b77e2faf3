//! Servers that come and leave while the service runs: `haypile plan set` under load, what programs that run
//! already notice of it, and what is left afterwards.

use crate::support::held::{echo, hold, start_prefork};
use crate::support::process::{Finished, Process, send_signal};
use crate::support::stage::{Stage, on_stage, service};
use crate::support::{PATIENCE, content, inspect, nginx, python, script, wait_until};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SILENCE: Duration = Duration::from_secs(60);

/// `haypile plan set`.
pub fn set_plan(stage: &Stage, plan: &str) -> Finished {
    start_set_plan(stage, plan).finish(PATIENCE)
}

/// The same, under way.
pub fn start_set_plan(stage: &Stage, plan: &str) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_haypile"));
    command.args(["plan", "set", "--control-dir"]).arg(stage.control()).arg(plan);
    stage.start_command("plan-set", command)
}

fn rows(stage: &Stage) -> Vec<Value> {
    let status = stage.ask("status", &[]).expect("status");
    status["servers"].as_array().expect("servers").clone()
}

/// Buckets of each transport server.
fn buckets(stage: &Stage) -> Vec<u64> {
    let report = stage.ask("steer", &[]).expect("steer");
    let rows = report["servers"].as_array().expect("servers");
    rows.iter().map(|row| row["buckets"].as_u64().unwrap_or_default()).collect()
}

/// Short requests by several clients for as long as `act` takes; how many were answered in full.
fn under_load<T>(
    one: impl Fn(u64) -> Result<(), String> + Sync,
    act: impl FnOnce() -> T,
) -> (u64, T) {
    under_load_and(200, one, act)
}

/// The same, and for so many more requests.
fn under_load_and<T>(
    more: u64,
    one: impl Fn(u64) -> Result<(), String> + Sync,
    act: impl FnOnce() -> T,
) -> (u64, T) {
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let outcome = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        one(served.load(Ordering::Relaxed))?;
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<(), String>(())
                })
            })
            .collect();
        let outcome = act();
        let enough = served.load(Ordering::Relaxed) + more;
        wait_until("requests go on", PATIENCE, || {
            let over = clients.iter().any(|client| client.is_finished());
            (over || served.load(Ordering::Relaxed) >= enough).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no client panics").expect("a request");
        }
        outcome
    });
    (served.into_inner(), outcome)
}

/// A change of the plan, after which so many servers run.
fn change_plan(stage: &Stage, plan: &str, servers: usize) {
    let started = Instant::now();
    let done = set_plan(stage, plan).expect_success(plan);
    stage.say(&format!("{}: {:?}", done.out.trim(), started.elapsed()));
    assert_eq!(rows(stage).len(), servers);
}

/// One short request, by HTTP.
fn get(address: SocketAddr, page: &[u8]) -> Result<(), String> {
    let mut stream = TcpStream::connect_timeout(&address, SILENCE).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(SILENCE)).map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let asked = stream.write_all(b"GET /page HTTP/1.0\r\n\r\n");
    asked.and_then(|()| stream.read_to_end(&mut answer)).map_err(|e| e.to_string())?;
    if answer.ends_with(page) { Ok(()) } else { Err(format!("{} bytes", answer.len())) }
}

fn start_nginx(stage: &Stage) -> (SocketAddr, Process) {
    let address = service(8080);
    let words = nginx::command(stage, "nginx", &[&address.to_string()]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut nginx = stage.run(&words);
    stage.wait_for_listener(address, &mut nginx);
    (address, nginx)
}

#[test]
fn nginx_goes_on_while_servers_leave() {
    on_stage("nginx_goes_on_while_servers_leave", &["nginx"], |stage| {
        content::write(&stage.served("page"), 5_000);
        let page = fs::read(stage.served("page")).expect("a page");
        let service_process = stage.serve();
        let (address, mut nginx) = start_nginx(stage);
        let files = stage.control_files();
        let plans = [("TS4LS4CM4", 4), ("TS1LS1CM1", 1), ("TS2LS2CM2", 2), ("TS1LS1CM1", 1)];
        let (served, ()) = under_load(
            |_| get(address, &page),
            || {
                for (plan, servers) in plans {
                    change_plan(stage, plan, servers);
                }
            },
        );
        stage.say(&format!("{served} requests while servers came and left"));
        assert_eq!(buckets(stage), [4096]);
        nginx.assert_alive();
        // Nothing of those that have left is left.
        assert_eq!(stage.control_files(), files);
        let servers = inspect::children_of(service_process.pid()).into_iter();
        let servers = servers.filter(|pid| inspect::program_of(*pid).starts_with("haypile-srv"));
        assert_eq!(servers.count(), 1);
        let (served, ()) =
            under_load(|_| get(address, &page), || change_plan(stage, "TS3LS3CM3", 3));
        stage.say(&format!("{served} more; buckets {:?}", buckets(stage)));
        let said = service_process.err();
        assert!(!said.contains("leaves with") && !said.contains("leaves before"), "{said}");
    });
}

#[test]
fn what_servers_had_that_leave_goes_on_at_others() {
    let test = "what_servers_had_that_leave_goes_on_at_others";
    on_stage(test, &["python3"], |stage| {
        // Those that leave were there at the start: they have UDP ports.
        let _service = stage.serve_with(&["--plan", "TS3LS3CM3"]);
        let mut program = start_prefork(stage, 8081, "4");
        let ports: Vec<String> = (8200..8212).map(|port| port.to_string()).collect();
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        let echoing = script("udp_ports.py");
        let words = [&[python(), &echoing, "198.18.0.2"], &ports[..]].concat();
        let mut datagrams = stage.run(&words);
        datagrams.wait_for_output("ready");
        let hold = |_| hold(service(8081));
        let mut held: Vec<TcpStream> = (0..60).map(hold).collect();
        for (plan, servers) in [("TS2LS2CM2", 2), ("TS1LS1CM1", 1), ("TS3LS3CM3", 3)] {
            change_plan(stage, plan, servers);
            assert!(held.iter_mut().all(echo), "{plan}: a connection that was there before");
            let mut more: Vec<TcpStream> = (0..20).map(hold).collect();
            assert!(more.iter_mut().all(echo), "{plan}");
            for port in 8200..8212 {
                wait_until(&format!("{plan}: port {port} answers"), PATIENCE, || {
                    asks_by_datagram(service(port)).then_some(())
                });
            }
        }
        program.assert_alive();
        datagrams.assert_alive();
        assert_eq!(held.len(), 60);
    });
}

/// Whether a datagram, longer than a packet, comes back.
fn asks_by_datagram(address: SocketAddr) -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
    socket.connect(address).expect("connect");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set a limit");
    let (block, mut heard) = ([7; 3000], [0; 4000]);
    // A port that has no socket at this moment says so.
    socket.send(&block).is_ok() && socket.recv(&mut heard).is_ok_and(|len| heard[..len] == block)
}

/// Many connections at once, then a short request on each.
fn get_many(address: SocketAddr) -> Result<(), String> {
    const AT_ONCE: usize = 20;
    let said = |error: std::io::Error| error.to_string();
    let connect = |_| TcpStream::connect_timeout(&address, SILENCE);
    let mut streams: Vec<_> = (0..AT_ONCE).map(connect).collect::<Result<_, _>>().map_err(said)?;
    for stream in &mut streams {
        stream.set_read_timeout(Some(SILENCE)).map_err(said)?;
        stream.write_all(b"GET /5000 HTTP/1.0\r\n\r\n").map_err(said)?;
    }
    for mut stream in streams {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map_err(said)?;
        if answer.len() < 5000 {
            return Err(format!("{} bytes", answer.len()));
        }
    }
    Ok(())
}

/// Connections that change hands by `kind` while servers come and leave: whoever gets one has said nothing to the
/// server that has it, and may not know that there is such a server.
fn connections_change_hands(test: &'static str, kind: &'static str, children: &'static str) {
    on_stage(test, &["python3"], move |stage| {
        let _service = stage.serve();
        let (address, port) = (service(8080), "8080");
        let words = [python(), &script("short_server.py"), kind, "198.18.0.2", port, children];
        let mut program = stage.run(&words);
        program.wait_for_output("ready");
        stage.wait_for_listener(address, &mut program);
        let plans = ["TS2LS2CM2", "TS4LS4CM2"].into_iter().cycle().take(16);
        let change = || {
            for plan in plans {
                set_plan(stage, plan).expect_success(plan);
            }
        };
        let (served, ()) = under_load_and(10, |_| get_many(address), change);
        stage.say(&format!("{served} times many requests while servers came and left"));
        assert_eq!(lost_buckets(stage), 0);
        program.assert_alive();
    });
}

#[test]
fn children_have_connections_of_servers_that_leave() {
    let test = "children_have_connections_of_servers_that_leave";
    connections_change_hands(test, "forking", "400");
}

#[test]
fn descriptors_are_passed_of_servers_that_come() {
    connections_change_hands("descriptors_are_passed_of_servers_that_come", "passing", "4");
}

/// Buckets that could not be moved and could not be put back either: all of their connections are gone.
fn lost_buckets(stage: &Stage) -> u64 {
    let report = stage.ask("steer", &[]).expect("steer");
    let rows = report["servers"].as_array().expect("servers");
    rows.iter().map(|row| row["counters"]["lost"].as_u64().expect("a count")).sum()
}

/// Half-closed connections of which the children that had them are gone, and so their placeholders.
#[test]
fn what_ended_children_leave_moves_on() {
    const HELD: usize = 60;
    on_stage("what_ended_children_leave_moves_on", &["python3"], |stage| {
        let _service = stage.serve();
        let (address, port) = (service(8080), "8080");
        let words = [python(), &script("short_server.py"), "forking", "198.18.0.2", port, "100"];
        let mut program = stage.run(&words);
        program.wait_for_output("ready");
        stage.wait_for_listener(address, &mut program);
        let held: Vec<TcpStream> = (0..HELD)
            .map(|_| {
                let mut stream = TcpStream::connect_timeout(&address, SILENCE).expect("connect");
                stream.set_read_timeout(Some(SILENCE)).expect("set a limit");
                stream.write_all(b"GET /5000 HTTP/1.0\r\n\r\n").expect("ask");
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).expect("an answer and its end");
                assert!(answer.len() > 5000);
                stream
            })
            .collect();
        let ports: Vec<u16> =
            held.iter().map(|stream| stream.local_addr().expect("bound").port()).collect();
        let half_closed = || {
            let its = |row: &Value| {
                let remote = row["remote"].as_str().and_then(|text| text.parse().ok());
                let port = remote.map(|remote: SocketAddr| remote.port());
                inspect::state(row).starts_with("FIN-WAIT")
                    && port.is_some_and(|one| ports.contains(&one))
            };
            inspect::sockets(stage).iter().filter(|row| its(row)).count()
        };
        for plan in ["TS2LS2CM2", "TS4LS4CM2", "TS2LS2CM2", "TS4LS4CM2", "TS1LS1CM1"] {
            set_plan(stage, plan).expect_success(plan);
            assert_eq!((half_closed(), lost_buckets(stage)), (HELD, 0), "{plan}");
        }
        drop(held);
        wait_until("they end", PATIENCE, || (half_closed() == 0).then_some(()));
        let status = stage.ask("status", &[]).expect("status");
        let drops = status["drops"].as_array().expect("drops").iter();
        let unknown: Vec<&Value> = drops.filter(|row| row["name"] == "TcpNoFlow").collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        program.assert_alive();
    });
}

#[test]
fn nginx_goes_on_while_servers_come() {
    on_stage("nginx_goes_on_while_servers_come", &["nginx"], |stage| {
        content::write(&stage.served("page"), 5_000);
        let page = fs::read(stage.served("page")).expect("a page");
        let _service = stage.serve();
        let (address, mut nginx) = start_nginx(stage);
        let get = |_| get(address, &page);
        let (served, ()) = under_load(get, || {
            for (plan, servers) in [("TS2LS2CM2", 2), ("TS4LS4CM4", 4)] {
                change_plan(stage, plan, servers);
            }
        });
        stage.say(&format!("{served} requests while the plan grew"));
        let buckets = buckets(stage);
        stage.say(&format!("buckets {buckets:?}"));
        assert!(buckets.iter().all(|count| *count > 900), "{buckets:?}");
        let frames: Vec<u64> =
            rows(stage).iter().map(|row| row["rx_frames"].as_u64().unwrap_or_default()).collect();
        stage.say(&format!("frames {frames:?}"));
        let (served, ()) = under_load(get, || {});
        let after: Vec<u64> =
            rows(stage).iter().map(|row| row["rx_frames"].as_u64().unwrap_or_default()).collect();
        stage.say(&format!("frames {after:?} after {served} more"));
        assert!(after.iter().zip(&frames).all(|(after, before)| after > before));
        nginx.assert_alive();
    });
}

#[test]
fn connections_live_on_while_servers_come_and_end_with_them() {
    let test = "connections_live_on_while_servers_come_and_end_with_them";
    on_stage(test, &["python3"], |stage| {
        let _service = stage.serve();
        let mut program = start_prefork(stage, 8081, "4");
        let hold = |_| hold(service(8081));
        let mut held: Vec<TcpStream> = (0..40).map(hold).collect();
        set_plan(stage, "TS2LS2CM2").expect_success("plan set");
        stage.say(&format!("buckets {:?}", buckets(stage)));
        for _ in 0..3 {
            assert!(held.iter_mut().all(echo), "a connection that was there before");
        }
        held.extend((0..40).map(hold));
        let of_the_new = rows(stage)[1]["connections"].as_u64().unwrap_or_default();
        assert!(of_the_new > 0 && of_the_new < 80, "{of_the_new}");
        // The one that came dies like any other: its connections end, no other does.
        let victim = rows(stage)[1]["pid"].as_u64().expect("a process");
        send_signal("KILL", &victim.to_string());
        wait_until("another server takes its place", PATIENCE, || {
            let status = stage.ask("status", &[]).ok()?;
            let pid = status["servers"][1]["pid"].as_u64().unwrap_or_default();
            (pid != 0 && pid != victim).then_some(())
        });
        let alive = held.iter_mut().filter_map(|stream| echo(stream).then_some(())).count() as u64;
        stage.say(&format!("{alive} of 80 live on, {of_the_new} were the dead one's"));
        assert!(alive < 80 && alive >= 80 - of_the_new, "{alive} and {of_the_new}");
        let mut again: Vec<TcpStream> = (0..40).map(hold).collect();
        assert!(again.iter_mut().all(echo));
        program.assert_alive();
    });
}

#[test]
fn plans_that_cannot_be_reached_are_refused_in_one_line() {
    on_stage("plans_that_cannot_be_reached_are_refused_in_one_line", &[], |stage| {
        let _service = stage.serve_with(&["--plan", "TS2+LS1+CM1"]);
        for (plan, why) in [
            ("TS1+LS1+CM1", "server 1 would leave before server 2"),
            ("TS2LS1+CM1", "would have to be something else"),
            ("TS65+LS1+CM1", "TS65 is more"),
            ("TS3", "LS is missing"),
        ] {
            let refused = set_plan(stage, plan);
            assert!(!refused.status.success(), "{plan}");
            let said = refused.err.trim();
            assert!(said.contains(why) && said.lines().count() == 1, "{plan}: {said}");
        }
        assert_eq!(rows(stage).len(), 4);
        set_plan(stage, "TS2+LS1+CM1").expect_success("the plan that it has");
        // Servers apart: each kind may grow.
        set_plan(stage, "TS3+LS2+CM2").expect_success("one more of each");
        assert_eq!(rows(stage).len(), 7);
        let buckets = buckets(stage);
        assert!(buckets.iter().all(|count| *count > 1300), "{buckets:?}");
    });
}

#[test]
fn a_server_that_is_stopped_keeps_no_other_from_coming() {
    on_stage("a_server_that_is_stopped_keeps_no_other_from_coming", &[], |stage| {
        let _service = stage.serve_with(&["--plan", "TS2+LS1+CM1"]);
        // A connection manager: nobody needs it for anything else.
        let stopped = rows(stage)[3]["pid"].as_u64().expect("a process").to_string();
        send_signal("STOP", &stopped);
        set_plan(stage, "TS3+LS1+CM1").expect_success("plan set");
        send_signal("CONT", &stopped);
        wait_until("all servers answer", PATIENCE, || {
            let status = stage.ask("status", &[]).ok()?;
            let rows = status["servers"].as_array()?;
            (rows.len() == 5 && rows.iter().all(|row| row["restarts"] == 0)).then_some(())
        });
    });
}
