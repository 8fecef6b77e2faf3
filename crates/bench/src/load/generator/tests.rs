//! The generator over a made-up server with a clock of its own: what it must measure is known exactly.

use std::collections::VecDeque;
use std::io;

use super::{Outcome, Pace, Spec, Work, run};
use crate::load::conversation::{ECHO, patterned};
use crate::load::{Carrier, Received};
use crate::schedule::Spread;

/// One server that answers one request after the other, each after exactly `service_ns`; it stops for a while once, if
/// told so. Time passes only in `wait`.
struct World {
    now_ns: u64,
    service_ns: u64,
    free_at_ns: u64,
    /// From when, and until when, the server works on nothing.
    stall: Option<(u64, u64)>,
    sessions: Vec<Connection>,
    opened: usize,
    /// When each session has something new, in order.
    news: VecDeque<(u64, usize)>,
    refuse: bool,
}

#[derive(Default)]
struct Connection {
    connected: bool,
    asked: Vec<u8>,
    answers: VecDeque<(u64, Vec<u8>)>,
    ends_at_ns: Option<u64>,
}

impl World {
    fn new(sessions: usize, service_ns: u64) -> World {
        World {
            now_ns: 1_000_000,
            service_ns,
            free_at_ns: 0,
            stall: None,
            sessions: (0..sessions).map(|_| Connection::default()).collect(),
            opened: 0,
            news: VecDeque::new(),
            refuse: false,
        }
    }

    fn tell(&mut self, at_ns: u64, session: usize) {
        let place = self.news.partition_point(|(other_ns, _)| *other_ns <= at_ns);
        self.news.insert(place, (at_ns, session));
    }

    /// When a request that comes now is answered.
    fn serve(&mut self) -> u64 {
        let mut start_ns = self.now_ns.max(self.free_at_ns);
        if let Some((from_ns, to_ns)) = self.stall
            && (from_ns..to_ns).contains(&start_ns)
        {
            start_ns = to_ns;
        }
        self.free_at_ns = start_ns + self.service_ns;
        self.free_at_ns
    }

    /// The answer to what was asked, if a whole request has come, and whether the server then closes.
    fn answer(asked: &mut Vec<u8>) -> Option<(Vec<u8>, bool)> {
        if asked.starts_with(b"GET ") {
            let end = asked.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
            let request = String::from_utf8(asked.drain(..end).collect()).expect("a text");
            let bytes: usize = request[5..].split(' ').next()?.parse().ok()?;
            let mut answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").into_bytes();
            answer.extend(patterned(bytes));
            return Some((answer, request.contains("close")));
        }
        if asked.starts_with(ECHO) {
            asked.drain(..ECHO.len());
        }
        (!asked.is_empty()).then(|| (std::mem::take(asked), false))
    }
}

impl Carrier for World {
    fn now_ns(&mut self) -> u64 {
        self.now_ns
    }

    fn open(&mut self, session: usize) -> io::Result<()> {
        if self.refuse {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.sessions[session] = Connection { connected: true, ..Connection::default() };
        self.opened += 1;
        self.tell(self.now_ns, session);
        Ok(())
    }

    fn send(&mut self, session: usize, bytes: &[u8]) -> io::Result<usize> {
        assert!(self.sessions[session].connected, "sent before a connection was opened");
        self.sessions[session].asked.extend_from_slice(bytes);
        let mut asked = std::mem::take(&mut self.sessions[session].asked);
        if let Some((answer, closes)) = World::answer(&mut asked) {
            let at_ns = self.serve();
            self.sessions[session].answers.push_back((at_ns, answer));
            self.sessions[session].ends_at_ns = closes.then_some(at_ns);
            self.tell(at_ns, session);
        }
        self.sessions[session].asked = asked;
        Ok(bytes.len())
    }

    fn receive(&mut self, session: usize, out: &mut [u8]) -> io::Result<Received> {
        let now_ns = self.now_ns;
        let connection = &mut self.sessions[session];
        if let Some((_, answer)) = connection.answers.pop_front_if(|(at_ns, _)| *at_ns <= now_ns) {
            out[..answer.len()].copy_from_slice(&answer);
            return Ok(Received::Bytes(answer.len()));
        }
        let ended = connection.ends_at_ns.is_some_and(|at_ns| at_ns <= now_ns);
        Ok(if ended { Received::End } else { Received::Nothing })
    }

    fn close(&mut self, session: usize) {
        self.sessions[session] = Connection::default();
    }

    fn end(&mut self) {
        self.sessions.iter_mut().for_each(|session| *session = Connection::default());
    }

    fn wait(&mut self, until_ns: u64, events: &mut Vec<usize>) -> io::Result<()> {
        let next_ns = self.news.front().map_or(u64::MAX, |(at_ns, _)| *at_ns);
        self.now_ns = self.now_ns.max(next_ns.min(until_ns));
        while let Some((_, session)) = self.news.pop_front_if(|(at_ns, _)| *at_ns <= self.now_ns) {
            events.push(session);
        }
        Ok(())
    }
}

fn spec(work: Work, pace: Pace, connections: usize) -> Spec {
    Spec {
        target: "192.0.2.1:80".parse().expect("an address"),
        work,
        pace,
        connections,
        warmup_s: 0.1,
        duration_s: 1.0,
        polling: false,
        body_bytes: 100,
    }
}

fn measure(spec: &Spec, world: &mut World) -> Outcome {
    let outcome = run(spec, world, &mut ()).expect("answers");
    assert_eq!((outcome.failed, outcome.errors.len()), (0, 0), "{:?}", outcome.errors);
    outcome
}

fn near(found: f64, wanted: f64, share: f64) {
    assert!((found / wanted - 1.0).abs() <= share, "{found}, not {wanted}");
}

/// One session and a service time of 100 us: 10,000 answers a second, every latency 100 us.
#[test]
fn one_session_sees_the_service_time() {
    for work in [Work::Short, Work::KeepAlive, Work::Echo(64)] {
        let mut world = World::new(1, 100_000);
        let outcome = measure(&spec(work.clone(), Pace::Closed, 1), &mut world);
        near(outcome.rate(), 10_000.0, 0.001);
        let latencies = outcome.histogram();
        for share in [0.01, 0.5, 0.99, 1.0] {
            near(latencies.quantile_ns(share) as f64, 100_000.0, 0.001);
        }
        assert_eq!(latencies.count(), outcome.completed);
        let connections = if work == Work::Short { 11_000 } else { 1 };
        assert!(world.opened.abs_diff(connections) <= 1, "{work:?}: {}", world.opened);
    }
}

/// A closed loop of 16 around one server of known service time: capacity 1/d, and by Little's law a latency of 16 d.
#[test]
fn a_closed_loop_reaches_the_capacity() {
    let outcome = measure(&spec(Work::KeepAlive, Pace::Closed, 16), &mut World::new(16, 50_000));
    near(outcome.rate(), 20_000.0, 0.001);
    near(outcome.histogram().quantile_ns(0.5) as f64, 16.0 * 50_000.0, 0.001);
}

/// M/D/1 at half its capacity: the mean wait is load / (2 (1 - load)) service times (Pollaczek and Khinchine).
#[test]
fn an_open_loop_sees_the_queue_of_a_known_server() {
    let pace = Pace::Open { rate: 10_000.0, spread: Spread::Poisson, seed: 3 };
    let spec = Spec { duration_s: 30.0, ..spec(Work::Echo(64), pace, 64) };
    let outcome = measure(&spec, &mut World::new(64, 50_000));
    near(outcome.rate(), 10_000.0, 0.01);
    near(outcome.histogram().mean_ns(), 50_000.0 * 1.5, 0.02);
}

/// A server that stops for 100 ms: each of the 1000 requests that were due meanwhile counts from when it was due, so
/// that a tenth of the second's latencies spread evenly up to 100 ms; a closed loop would have seen one.
#[test]
fn a_stall_is_seen_by_all_that_were_due() {
    let pace = Pace::Open { rate: 10_000.0, spread: Spread::Even, seed: 0 };
    let mut world = World::new(4, 1000);
    world.stall = Some((501_000_000, 601_000_000));
    let latencies = measure(&spec(Work::Echo(64), pace, 4), &mut world).histogram();
    near(latencies.count() as f64, 10_000.0, 0.01);
    near(latencies.quantile_ns(1.0) as f64, 100_000_000.0, 0.01);
    near(latencies.quantile_ns(0.95) as f64, 50_000_000.0, 0.05);
    near(latencies.quantile_ns(0.5) as f64, 1000.0, 0.01);
}

/// Beyond the capacity an open loop ends with a backlog instead of slowing down.
#[test]
fn overload_leaves_a_backlog() {
    let pace = Pace::Open { rate: 40_000.0, spread: Spread::Even, seed: 0 };
    let outcome = measure(&spec(Work::Echo(64), pace, 8), &mut World::new(8, 50_000));
    near(outcome.rate(), 20_000.0, 0.01);
    near(outcome.backlog as f64, 1.1 * 20_000.0, 0.01);
}

#[test]
fn quiet_lies_between_requests() {
    let pace = Pace::AfterQuiet(10_000);
    let outcome = measure(&spec(Work::Echo(64), pace, 1), &mut World::new(1, 100_000));
    near(outcome.rate(), 1e9 / 10_100_000.0, 0.02);
    near(outcome.histogram().quantile_ns(1.0) as f64, 100_000.0, 0.001);
}

#[test]
fn a_dead_server_is_an_error_in_bounded_time() {
    let mut world = World::new(2, 1000);
    world.refuse = true;
    let error =
        run(&spec(Work::Short, Pace::Closed, 2), &mut world, &mut ()).expect_err("no answer");
    assert!(error.to_string().contains("nothing was answered"), "{error}");
    assert!(world.now_ns < 3_000_000_000);
}
