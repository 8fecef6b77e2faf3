//! Real programs by name, in one table: each as server, as client, or both on one link, its contents compared
//! byte by byte or its own count of failures read.
//!
//! ```text
//! cargo test --profile checks -p haypile --test programs -- --nocapture real_programs
//! ```
//! `HAYPILE_E2E_ONLY=nginx,iperf3` runs some of them, `HAYPILE_E2E_TOGETHER=3` so many at the same time. A
//! program that is not installed is said to be skipped.
//! Each case is one function in a file below; what it may use of its world is in `world.rs`.

mod messages;
mod names;
mod shells;
mod stores;
mod transfers;
mod web;
mod world;

use crate::support::stage::{Stage, on_stage};
use crate::support::{content, find_program, setting};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use world::{Link, Role, World};

/// One program: what must be installed, where it may run, and what is done with it. The function
/// panics when the program fails, and returns a figure for the table.
struct Case {
    program: &'static str,
    needs: &'static [&'static str],
    roles: &'static [Role],
    run: fn(&World<'_>) -> String,
}

/// A program that is of use as a server only, or as a client only, is also tried against itself or
/// its partner on the same service.
const SERVER: &[Role] = &[Role::Server, Role::Both];
const CLIENT: &[Role] = &[Role::Client, Role::Both];
const EVERY: &[Role] = &[Role::Server, Role::Client, Role::Both];

const fn case(
    program: &'static str,
    needs: &'static [&'static str],
    roles: &'static [Role],
    run: fn(&World<'_>) -> String,
) -> Case {
    Case { program, needs, roles, run }
}

const CASES: &[Case] = &[
    case("redis", &["redis-server", "redis-benchmark", "redis-cli"], EVERY, stores::redis),
    case("memcached", &["memcached", "python3"], EVERY, stores::memcached),
    case("memccapable", &["memcached", "memccapable"], EVERY, stores::memccapable),
    case(
        "postgres",
        &["postgres", "initdb", "pgbench", "psql", "setpriv"],
        EVERY,
        stores::postgres,
    ),
    case("iperf3", &["iperf3"], EVERY, transfers::iperf3),
    case("iperf3 -R", &["iperf3"], EVERY, transfers::iperf3_reverse),
    case("iperf3 -P 4", &["iperf3"], EVERY, transfers::iperf3_parallel),
    case("iperf3 -Z", &["iperf3"], EVERY, transfers::iperf3_sendfile),
    case("rsync", &["rsync"], EVERY, transfers::rsync),
    case("iperf3 -u", &["iperf3"], EVERY, transfers::iperf3_datagrams),
    case("nuttcp", &["nuttcp"], EVERY, transfers::nuttcp),
    case("git", &["git"], EVERY, transfers::git),
    case("nginx", &["nginx", "curl"], SERVER, web::nginx),
    case("lighttpd", &["lighttpd", "curl"], SERVER, web::lighttpd),
    case("haproxy", &["haproxy", "python3", "curl"], SERVER, web::haproxy),
    case("http.server", &["python3", "curl"], SERVER, web::python_threads),
    case("node", &["node", "curl"], SERVER, web::node_server),
    case("node", &["node", "nginx"], CLIENT, web::node_client),
    case("java", &["java"], EVERY, web::java),
    case("curl", &["curl", "python3"], CLIENT, web::curl),
    case("wget", &["wget", "nginx"], CLIENT, web::wget),
    case("ab", &["ab", "nginx"], CLIENT, web::ab),
    case("wrk", &["wrk", "nginx"], CLIENT, web::wrk),
    case("openssl", &["openssl"], EVERY, messages::openssl),
    case("asyncio", &["python3"], EVERY, messages::asyncio),
    case("asyncio TLS", &["python3", "openssl"], EVERY, messages::asyncio_tls),
    case("perl", &["perl", "socat"], SERVER, shells::perl),
    case("socat", &["socat"], EVERY, shells::socat),
    case("nc", &["nc"], EVERY, shells::nc),
    case("ssh", &["ssh", "sshd", "ssh-keygen"], EVERY, shells::ssh),
    case("vsftpd", &["vsftpd", "curl"], EVERY, shells::vsftpd),
    case("dnsmasq, dig", &["dnsmasq", "dig"], EVERY, names::dnsmasq),
];

/// Bytes of the file that programs move.
const PAGE_BYTES: u64 = 6 << 20;

/// Bytes of the file `small` that load generators ask for.
const SMALL_BYTES: u64 = 20_000;

/// Cases that run at the same time, at most: as many as keep a small machine busy without hiding
/// time-outs. One needs two cores, or datagrams sent at a fixed rate measure the others' load.
const TOGETHER_MAX: usize = 3;

/// How one case ended.
enum Outcome {
    Passed(String),
    Failed(String),
    Skipped(&'static str),
}

struct Line {
    program: &'static str,
    role: Role,
    link: Link,
    seconds: f64,
    outcome: Outcome,
}

impl Line {
    fn text(&self) -> String {
        let (word, what) = match &self.outcome {
            Outcome::Passed(figure) => ("pass", figure.clone()),
            Outcome::Failed(why) => ("FAIL", why.lines().next().unwrap_or_default().to_string()),
            Outcome::Skipped(missing) => ("skipped", format!("not installed: {missing}")),
        };
        let (role, link) = (self.role.name(), self.link.name());
        format!(
            "{:<18} {role:<14} {link:<5} {word:<8} {:>5.1} s  {what}",
            self.program, self.seconds
        )
    }
}

/// The words of `HAYPILE_E2E_ONLY`, if it is set.
fn is_wanted(case: &Case) -> bool {
    let Ok(only) = std::env::var("HAYPILE_E2E_ONLY") else { return true };
    only.split(',').any(|word| case.program.contains(word))
}

fn run_case(stage: &Stage, link: Link, case: &Case, role: Role, number: usize) -> Line {
    let started = Instant::now();
    let missing = case.needs.iter().find(|program| find_program(program).is_none());
    let outcome = match missing {
        Some(missing) => Outcome::Skipped(missing),
        None => {
            let world = World::new(stage, link, role, number);
            match catch_unwind(AssertUnwindSafe(|| (case.run)(&world))) {
                Ok(figure) => Outcome::Passed(figure),
                Err(payload) => Outcome::Failed(in_words(payload.as_ref())),
            }
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    Line { program: case.program, role, link, seconds, outcome }
}

fn in_words(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_string()));
    text.unwrap_or_else(|| "panicked".to_string())
}

/// Every wanted case in each role that the link has room for, some at the same time.
fn run_all(stage: &Stage, link: Link) -> Vec<Line> {
    let jobs: Vec<(&Case, Role)> = CASES
        .iter()
        .filter(|case| is_wanted(case) && (link == Link::Tap || case.roles.contains(&Role::Both)))
        .flat_map(|case| link.roles(case.roles).iter().map(move |role| (case, *role)))
        .collect();
    let (next, lines) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let together = setting("HAYPILE_E2E_TOGETHER", (cores / 2).clamp(1, TOGETHER_MAX) as u64);
    std::thread::scope(|scope| {
        for _ in 0..together {
            scope.spawn(|| {
                while let Some((number, (case, role))) = take(&next, &jobs) {
                    let line = run_case(stage, link, case, *role, number);
                    stage.say(&line.text());
                    lines.lock().expect("the table").push((number, line));
                }
            });
        }
    });
    let mut lines = lines.into_inner().expect("the table");
    lines.sort_by_key(|(number, _)| *number);
    lines.into_iter().map(|(_, line)| line).collect()
}

fn take<'a, T>(next: &AtomicUsize, jobs: &'a [T]) -> Option<(usize, &'a T)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    jobs.get(number).map(|job| (number, job))
}

fn report(stage: &Stage, lines: &[Line]) {
    stage.say("program            role           link  result     time  figure");
    for line in lines {
        stage.say(&line.text());
    }
    let count =
        |wanted: fn(&Outcome) -> bool| lines.iter().filter(|line| wanted(&line.outcome)).count();
    let passed = count(|outcome| matches!(outcome, Outcome::Passed(_)));
    let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    stage.say(&format!("{passed} passed, {skipped} skipped, of {}", lines.len()));
    let failed: Vec<String> = lines
        .iter()
        .filter_map(|line| match &line.outcome {
            Outcome::Failed(why) => Some(format!("{} ({}): {why}", line.program, line.role.name())),
            _ => None,
        })
        .collect();
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

/// So many log-ins by ssh, one after the other, at a server on the service; a page goes through each and comes back.
pub fn log_ins(stage: &Stage, count: usize) {
    content::write(&stage.served("page"), PAGE_BYTES);
    shells::log_in(&World::new(stage, Link::Tap, Role::Server, 0), count);
}

#[test]
fn real_programs_over_wire() {
    on_stage("real_programs_over_wire", &[], |stage| {
        content::write(&stage.served("page"), PAGE_BYTES);
        content::write(&stage.served("small"), SMALL_BYTES);
        let _services = world::join(stage);
        report(stage, &run_all(stage, Link::Wire));
    });
}

#[test]
fn real_programs_over_tap() {
    on_stage("real_programs_over_tap", &[], |stage| {
        content::write(&stage.served("page"), PAGE_BYTES);
        content::write(&stage.served("small"), SMALL_BYTES);
        let _service = stage.serve();
        report(stage, &run_all(stage, Link::Tap));
    });
}
