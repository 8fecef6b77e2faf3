//! Whole servers of a plan, with real rings and a wire: buckets without connections move, and the packets of the
//! neighbour follow them. (Connections with their streams are in `freight`'s tests.)

use std::net::SocketAddr;

use haypile_engine::random::Random;
use haypile_engine::{Counter, SocketOptions};
use haypile_link::wire::{self, Wire, WireConfig};

use super::*;
use crate::config::{Config, Flags};
use crate::harness::{PEER, Peer, SERVER};
use crate::server::{Foundation, Server};
use crate::testing::peer_pair;

/// A neighbour's port, and where its SYN goes.
const CLOSED: u16 = 81;

struct Service {
    plan: &'static str,
    servers: Vec<Server<Wire>>,
    /// Those that do not run.
    dead: Vec<usize>,
    outside: Peer,
    now: Instant,
    /// Of what happens to it, if that is random.
    seed: u64,
}

fn absent() -> Wire {
    Wire::alone(&WireConfig { mtu: 1500, mac: [2, 0, 0, 0, 0, 1], superframes: false }).unwrap()
}

fn server(plan: &str, number: u16, port: Wire, now: Instant) -> Server<Wire> {
    let directory = tempfile::tempdir().unwrap();
    let text = format!("addresses = [\"{SERVER}/24\"]");
    let config = Config::from_text(&text, &Flags::default(), directory.path()).unwrap();
    let roles = Roles::new(&plan.parse().unwrap(), number);
    let foundation =
        Foundation { roles, secret: [5; 32], seed: 11, ..Foundation::alone().unwrap() };
    Server::with(&config, port, now, foundation).unwrap()
}

impl Service {
    /// The first link server has the wire.
    fn new(plan: &'static str) -> Service {
        let now = Instant::from_us(1_000_000);
        let macs = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
        let (port, other) = wire::pair(1500, macs, wire::WIRE_LINES, false).unwrap();
        let mut port = Some(port);
        let specs = plan.parse::<crate::plan::Plan>().unwrap().servers();
        let servers = specs.iter().map(|spec| {
            let port = if spec.link == Some(0) { port.take() } else { None };
            server(plan, spec.number, port.unwrap_or_else(absent), now)
        });
        let servers = servers.collect();
        let outside = Peer::new(other, now);
        let mut service = Service { plan, servers, dead: Vec::new(), outside, now, seed: 0 };
        for one in 0..service.servers.len() {
            for other in 0..one {
                service.introduce(other, one);
            }
        }
        service.settle();
        service
    }

    fn introduce(&mut self, one: usize, other: usize) {
        let roles = self.servers[one].core.rings.roles();
        if !roles.talks_to(other as u16) {
            return;
        }
        let mut pair = peer_pair(roles.shares_frames_with(other as u16));
        let (ends, bell) = pair.first.take().unwrap();
        self.servers[one].greet_peer(self.now, other as u16, ends, bell);
        let (ends, bell) = pair.second.take().unwrap();
        self.servers[other].greet_peer(self.now, one as u16, ends, bell);
    }

    fn kill(&mut self, process: usize) {
        self.dead.push(process);
        for other in 0..self.servers.len() {
            if other != process {
                self.servers[other].leave_peer(self.now, process as u16);
            }
        }
    }

    /// Starts a server again that has no link.
    fn revive(&mut self, process: usize) {
        self.dead.retain(|dead| *dead != process);
        self.servers[process] = server(self.plan, process as u16, absent(), self.now);
        for other in 0..self.servers.len() {
            if other != process && !self.dead.contains(&other) {
                self.introduce(process.min(other), process.max(other));
            }
        }
    }

    fn turn(&mut self) -> bool {
        let mut moved = self.outside.step(self.now);
        for (number, server) in self.servers.iter_mut().enumerate() {
            if !self.dead.contains(&number) {
                moved |= !server.step(self.now).unwrap().is_none();
            }
        }
        moved
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            self.now = self.now.plus_us(20);
            if !self.turn() {
                return;
            }
        }
        panic!("the servers never come to rest");
    }

    fn run_for(&mut self, us: u64) {
        let end = self.now.plus_us(us);
        while self.now < end {
            self.turn();
            self.now = self.now.plus_us(100);
        }
        self.settle();
    }

    /// Asks every transport server, as the supervisor does; what became of each bucket.
    fn steer(
        &mut self,
        what: Selection,
        to: u16,
        patience_ms: u64,
    ) -> Result<Vec<MoveRow>, String> {
        let mut jobs = Vec::new();
        for (number, server) in self.servers.iter_mut().enumerate() {
            if server.core.rings.roles().transport().is_some() && !self.dead.contains(&number) {
                jobs.extend(
                    server
                        .core
                        .begin_moves(self.now, what, to, patience_ms)?
                        .map(|job| (number, job)),
                );
            }
        }
        let mut rows = Vec::new();
        for (number, job) in jobs {
            let until = self.now.plus_us(patience_ms * 1000 + 1000);
            rows.extend(loop {
                if let Some(rows) = self.servers[number].core.moving.take_done(job) {
                    break rows;
                }
                assert!(self.now <= until, "no answer in time");
                self.turn();
                self.now = self.now.plus_us(20);
            });
        }
        self.settle();
        Ok(rows)
    }

    /// The neighbour sends SYNs to a port that nobody listens on; the resets that each server answers with.
    fn resets(&mut self, count: usize) -> Vec<u64> {
        let resets = |servers: &[Server<Wire>]| -> Vec<u64> {
            let of = |one: &Server<Wire>| one.core.shard.counters().get(Counter::TcpResetsSent);
            servers.iter().map(of).collect()
        };
        let before = resets(&self.servers);
        let remote: SocketAddr = format!("{SERVER}:{CLOSED}").parse().unwrap();
        for _ in 0..count {
            self.outside.shard.connect(self.now, None, remote, SocketOptions::default()).unwrap();
        }
        self.settle();
        resets(&self.servers).iter().zip(before).map(|(now, before)| now - before).collect()
    }

    /// Everybody's map, and that nothing is on its way.
    fn owners(&self) -> Vec<u16> {
        let alive = |number: &usize| !self.dead.contains(number);
        let maps: Vec<Vec<u16>> = (0..self.servers.len())
            .filter(alive)
            .filter_map(|number| {
                let server = &self.servers[number];
                assert!(server.core.moving.is_idle(), "server {number}");
                let steered = server
                    .core
                    .shard
                    .steered()
                    .filter(|_| server.core.rings.roles().transport().is_some());
                let switch = server.link.switch();
                let map = steered.map(|steered| &*steered.steering);
                let map = map.or_else(|| switch.map(|switch| switch.steering()))?;
                Some((0..BUCKETS as u16).map(|bucket| map.owner_of_flows(bucket)).collect())
            })
            .collect();
        let differ = |bucket: &usize| maps.iter().any(|map| map[*bucket] != maps[0][*bucket]);
        let differing: Vec<(usize, Vec<u16>)> = (0..BUCKETS)
            .filter(differ)
            .map(|bucket| (bucket, maps.iter().map(|map| map[bucket]).collect()))
            .collect();
        assert!(differing.is_empty(), "seed {}: maps differ: {differing:?}", self.seed);
        maps[0].clone()
    }

    fn counters(&self, process: usize) -> MoveCounters {
        self.servers[process].core.moving.counters()
    }
}

#[test]
fn a_turn_tries_fewer_buckets_the_more_flows_there_are_but_one_at_least() {
    assert_eq!([0, 1, 100].map(trials_at_once), [WISHES_AT_ONCE; 3]);
    for flows in (0..=1 << 20).step_by(1000) {
        let trials = trials_at_once(flows);
        assert!(trials == 1 || trials * flows <= FLOWS_AT_ONCE, "{trials} of {flows}");
        assert!((1..=WISHES_AT_ONCE).contains(&trials));
    }
    assert_eq!(trials_at_once(usize::MAX), 1);
}

#[test]
fn all_buckets_of_a_server_go_to_another_and_packets_with_them() {
    for plan in ["TS2LS2CM2", "TS2+LS1+CM1", "TS3LS1CM3", "LS1CM1+TS3"] {
        let mut service = Service::new(plan);
        let transports: Vec<usize> = service.servers[0]
            .core
            .rings
            .roles()
            .servers()
            .iter()
            .filter(|one| one.transport.is_some())
            .map(|one| usize::from(one.number))
            .collect();
        let before = service.resets(40);
        assert_eq!(before.iter().sum::<u64>(), 40, "{plan}");
        assert!(transports.iter().all(|process| before[*process] > 0), "{plan} {before:?}");
        let had = service.owners().iter().filter(|owner| **owner == 1).count();
        let rows = service.steer(Selection::AllOf(1), 0, 60_000).unwrap();
        assert_eq!(rows.len(), had, "{plan}");
        assert!(rows.iter().all(|row| row.moved && row.from == 1 && row.to == 0), "{rows:?}");
        assert!(!service.owners().contains(&1), "{plan}");
        let after = service.resets(40);
        assert_eq!((after.iter().sum::<u64>(), after[transports[1]]), (40, 0), "{plan} {after:?}");
        // And back, one of them twice.
        let rows = service.steer(Selection::Bucket(rows[0].bucket), 1, 1000).unwrap();
        assert!(rows[0].moved, "{rows:?}");
        let rows = service.steer(Selection::Bucket(rows[0].bucket), 0, 1000).unwrap();
        assert!(rows[0].moved && !service.owners().contains(&1), "{rows:?}");
        let [from, to] = [service.counters(transports[1]), service.counters(transports[0])];
        let all = had as u64 + 1;
        assert_eq!((from.given, from.taken, from.settled), (all, all, all + 1));
        assert_eq!((from.arrived, to.arrived, to.taken, to.settled), (1, all, 1, all + 1));
        assert_eq!((from.nonsense, to.nonsense, from.busy), (0, 0, 0));
    }
}

#[test]
fn a_server_that_is_not_there_is_waited_for_as_long_as_patience_lasts() {
    let mut service = Service::new("TS3LS1CM3");
    service.kill(2);
    let rows = service.steer(Selection::Bucket(0), 2, 50).unwrap();
    assert!(!rows[0].moved && rows[0].why.as_ref().unwrap().contains("does not run"), "{rows:?}");
    let now = service.now;
    let job = service.servers[0].core.begin_moves(now, Selection::Bucket(0), 2, 1000);
    let job = job.unwrap().unwrap();
    service.run_for(20_000);
    assert_eq!(service.servers[0].core.moving.take_done(job), None);
    service.revive(2);
    service.run_for(20_000);
    let rows = service.servers[0].core.moving.take_done(job).unwrap();
    assert!(rows[0].moved, "{rows:?}");
    assert_eq!(service.owners()[0], 2);
    // What it has by a move it has after its death as well, though it knows of none then.
    service.kill(2);
    service.run_for(1000);
    service.revive(2);
    service.settle();
    assert_eq!(service.owners()[0], 2);
    let rows = service.steer(Selection::Bucket(0), 1, 1000).unwrap();
    assert!(rows[0].moved && rows[0].from == 2, "{rows:?}");
}

#[test]
fn a_server_takes_no_frame_before_it_has_heard_what_has_moved() {
    let mut service = Service::new("TS3LS1CM3");
    let bucket = service.owners().iter().position(|owner| *owner == 2).unwrap() as u16;
    assert!(service.steer(Selection::Bucket(bucket), 1, 1000).unwrap()[0].moved);
    service.kill(2);
    service.settle();
    for silent in [false, true] {
        service.revive(2);
        for _ in 0..10 {
            let now = service.now;
            let reborn = &mut service.servers[2];
            assert!(!reborn.core.serves(now) && !reborn.core.moving.is_idle());
            reborn.step(now).unwrap();
        }
        // One that says nothing is not waited for without end.
        match silent {
            true => service.now = service.now.plus_us(1_000_000),
            false => service.settle(),
        }
        let now = service.now;
        assert!(service.servers[2].core.serves(now));
        service.settle();
        assert_eq!(service.owners()[usize::from(bucket)], 1);
        service.kill(2);
    }
}

#[test]
fn what_a_server_has_not_taken_before_its_death_comes_back() {
    let mut service = Service::new("TS3LS1CM3");
    let now = service.now;
    let job = service.servers[0].core.begin_moves(now, Selection::AllOf(0), 2, 1000);
    let job = job.unwrap().unwrap();
    // Some are there, some on the way, some have yet to go.
    for _ in 0..10 {
        service.turn();
    }
    // What it says last is heard, what is on its way to it is not.
    service.servers[2].step(service.now).unwrap();
    service.kill(2);
    service.run_for(2_000_000);
    let rows = service.servers[0].core.moving.take_done(job).unwrap();
    let moved = rows.iter().filter(|row| row.moved).count();
    assert!(moved > 0 && moved < rows.len(), "{moved} of {}", rows.len());
    let counters = service.counters(0);
    assert_eq!(counters.given, counters.taken + counters.taken_back, "{counters:?}");
    service.revive(2);
    service.settle();
    let owners = service.owners();
    for row in rows {
        assert_eq!(owners[usize::from(row.bucket)], if row.moved { 2 } else { 0 }, "{row:?}");
    }
    assert_eq!(service.resets(40).iter().sum::<u64>(), 40);
}

#[test]
fn impossible_wishes_are_refused_in_one_line() {
    let mut service = Service::new("TS2LS1CM2");
    let connection = Selection::Connection {
        local: format!("{SERVER}:80").parse().unwrap(),
        remote: format!("{PEER}:4000").parse().unwrap(),
    };
    for (what, to, patience_ms, why) in [
        (Selection::Bucket(4096), 0, 10, "0 to 4095"),
        (Selection::Bucket(0), 2, 10, "0 to 1"),
        (Selection::AllOf(2), 1, 10, "0 to 1"),
        (Selection::AllOf(1), 1, 10, "already"),
        (Selection::Bucket(0), 1, PATIENCE_MAX_MS + 1, "patience"),
        (connection, 0, 10, "no connection"),
    ] {
        let refused = service.steer(what, to, patience_ms).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    let rows = service.steer(Selection::Bucket(0), 0, 10).unwrap();
    assert_eq!((rows[0].moved, rows[0].why.as_deref()), (false, Some("it is there already")));
    let mut alone = Service::new("TS1LS1CM1");
    let refused = alone.steer(Selection::Bucket(0), 0, 10).unwrap_err();
    assert!(refused.contains("one transport server"), "{refused}");
    let report = alone.servers[0].core.steer_report();
    assert_eq!(report.servers[0].buckets, BUCKETS);
    let report = service.servers[1].core.steer_report();
    assert_eq!((report.servers[0].server, report.servers[0].buckets), (1, BUCKETS / 2));
}

#[test]
fn nonsense_between_the_frames_is_counted() {
    let mut service = Service::new("TS2LS1CM2");
    let now = service.now;
    let (shard, mut desk) = service.servers[0].core.inward();
    let from = Sayer { process: 1, server: Some(1) };
    let link = Sayer { process: 1, server: None };
    let taken = MoveMessage::Taken { bucket: 1, version: 1 }.encode(&[]);
    for (from, what, bytes) in [
        (from, Aside::Move, &[9; 11][..]),
        (from, Aside::Move, &taken),
        (link, Aside::Move, &taken),
        (link, Aside::Notice, &[1]),
        (from, Aside::Switched, &[1, 2, 3]),
        (from, Aside::Switched, &[0, 0x10, 1, 0, 0, 0]),
    ] {
        assert!(!desk.handle_aside(now, from, what, bytes, shard), "{what:?} {bytes:?}");
    }
    assert_eq!(service.counters(0).nonsense, 6);
}

/// Servers die and come again at any moment while buckets move: whoever lives ends with the same map as all others,
/// no bucket is nobody's, and every packet finds one who answers.
#[test]
fn maps_agree_whoever_dies_when() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let plan = ["TS3LS1CM3", "TS2+LS1+CM1", "TS4LS1CM2"][(seed % 3) as usize];
        let mut service = Service { seed, ..Service::new(plan) };
        let specs = service.servers[0].core.rings.roles().servers().to_vec();
        let transports: Vec<usize> =
            (0..specs.len()).filter(|at| specs[*at].transport.is_some()).collect();
        let servers = transports.len() as u64;
        // Whoever has the wire lives: the neighbour could not be heard without it.
        let mortal: Vec<usize> = (0..specs.len()).filter(|at| specs[*at].link.is_none()).collect();
        // Some buckets move again and again, so that one move meets the next.
        let buckets: Vec<u16> = (0..6).map(|_| random.between(0, 4095) as u16).collect();
        for _ in 0..60 {
            let giver = transports[random.between(0, servers - 1) as usize];
            let to = random.between(0, servers - 1) as u16;
            let bucket = buckets[random.between(0, 5) as usize];
            let what = match random.chance(20_000) {
                true => Selection::AllOf(specs[giver].transport.unwrap()),
                false => Selection::Bucket(bucket),
            };
            let now = service.now;
            if !service.dead.contains(&giver) {
                // What is impossible is refused.
                drop(service.servers[giver].core.begin_moves(now, what, to, 200));
            }
            for _ in 0..random.between(0, 8) {
                let order = random.between(0, 1) == 0;
                for at in 0..service.servers.len() {
                    let at = if order { at } else { service.servers.len() - 1 - at };
                    if !service.dead.contains(&at) && random.chance(700_000) {
                        service.servers[at].step(service.now).unwrap();
                    }
                }
                service.now = service.now.plus_us(random.between(1, 300));
            }
            let victim = mortal[random.between(0, mortal.len() as u64 - 1) as usize];
            match service.dead.contains(&victim) {
                true => service.revive(victim),
                false if random.chance(150_000) => service.kill(victim),
                false => {}
            }
        }
        while let Some(dead) = service.dead.first().copied() {
            service.revive(dead);
        }
        service.run_for(400_000);
        let owners = service.owners();
        for process in &transports {
            let report = service.servers[*process].core.steer_report();
            let server = report.servers[0].server;
            let buckets = owners.iter().filter(|owner| **owner == server).count();
            assert_eq!(report.servers[0].buckets, buckets, "seed {seed}");
        }
        assert_eq!(service.resets(60).iter().sum::<u64>(), 60, "seed {seed}");
    }
}
