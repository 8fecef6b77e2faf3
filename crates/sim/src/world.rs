//! The simulated world: hosts on one Ethernet switch whose ports follow fault plans, and a virtual clock that jumps
//! to the next thing that happens. Everything is decided by the seed. [`crate::scenario`] builds worlds.

use crate::fault::{FaultPlan, Path};
use crate::host::Host;
use crate::inside::Inside;
use haypile_engine::random::Random;
use haypile_engine::steering::{Destination, SPEAKER, Steering};
use haypile_engine::{Forward, Instant};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

/// A frame on its way: time, tie-breaker, receiving host, bytes.
type InFlight = Reverse<(u64, u64, usize, Vec<u8>)>;

/// Several hosts of the list that are the servers of one service: one port on the switch, one Ethernet address.
struct Service {
    /// Their places, in the order of their numbers.
    members: Range<usize>,
    steering: Arc<Steering>,
    /// A packet that one hands to another is lost.
    handing_loss_ppm: u32,
    /// Where its buckets move: what is between those who steer and the servers.
    inside: Option<Inside>,
}

/// Rounds in which members hand packets to each other at one moment.
const HANDING_ROUNDS: usize = 100_000;

/// Hosts, paths and the clock.
pub struct World {
    /// The hosts; a host's place in the list is its port on the switch.
    pub hosts: Vec<Host>,
    paths: Vec<Path>,
    services: Vec<Service>,
    in_flight: BinaryHeap<InFlight>,
    sent: u64,
    now_us: u64,
    random: Random,
}

impl World {
    /// An empty world whose chances follow `seed`.
    pub fn new(seed: u64) -> World {
        World {
            hosts: Vec::new(),
            paths: Vec::new(),
            services: Vec::new(),
            in_flight: BinaryHeap::new(),
            sent: 0,
            now_us: 1_000_000,
            random: Random::new(seed),
        }
    }

    /// Adds a host whose outgoing frames suffer `plan`; returns its place.
    pub fn add(&mut self, host: Host, plan: FaultPlan) -> usize {
        self.hosts.push(host);
        self.paths.push(Path::new(plan));
        self.hosts.len() - 1
    }

    /// Adds the servers of a service, in the order of their numbers, with one Ethernet address; `plan` is as for
    /// [`World::add`], and packets that they hand to each other are lost with this chance. Returns the first's
    /// place.
    pub fn add_service(
        &mut self,
        members: Vec<Host>,
        steering: Arc<Steering>,
        plan: &FaultPlan,
        handing_loss_ppm: u32,
    ) -> usize {
        let first = self.hosts.len();
        for member in members {
            self.add(member, plan.clone());
        }
        let members = first..self.hosts.len();
        self.services.push(Service { members, steering, handing_loss_ppm, inside: None });
        first
    }

    /// Lets the buckets of the last service move; `make` is given its members and who owns what.
    pub fn let_buckets_move(&mut self, make: impl FnOnce(Range<usize>, &Steering) -> Inside) {
        if let Some(service) = self.services.last_mut() {
            service.inside = Some(make(service.members.clone(), &service.steering));
        }
    }

    /// The inside of the last service, where its buckets move.
    pub fn inside(&self) -> Option<&Inside> {
        self.services.last()?.inside.as_ref()
    }

    /// Begins to move a bucket of the last service; false when it is not to be had now.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn move_bucket(&mut self, bucket: u16, to: u16) -> Result<bool, String> {
        let now = self.now();
        let World { services, hosts, .. } = self;
        match services.last_mut().and_then(|service| service.inside.as_mut()) {
            Some(inside) => inside.move_bucket(now, hosts, bucket, to),
            None => Ok(false),
        }
    }

    /// Puts a frame on the switch as if the host at place `sender` had sent it.
    pub fn inject(&mut self, sender: usize, frame: Vec<u8>) {
        self.forward(sender, frame);
    }

    /// The virtual time.
    pub fn now(&self) -> Instant {
        Instant::from_us(self.now_us)
    }

    /// Replaces the fault plan of a host's outgoing path.
    pub fn set_plan(&mut self, host: usize, plan: FaultPlan) {
        self.paths[host] = Path::new(plan);
    }

    /// Runs until `done` says so or nothing is left to happen.
    ///
    /// # Errors
    /// What a program found wrong, or that the world is not done after `limit_us` of virtual time.
    pub fn run_until(
        &mut self,
        limit_us: u64,
        done: impl Fn(&World) -> bool,
    ) -> Result<(), String> {
        let end_us = self.now_us + limit_us;
        loop {
            self.turn()?;
            if done(self) {
                return Ok(());
            }
            match self.next_us() {
                Some(next_us) if next_us <= end_us => self.now_us = next_us.max(self.now_us),
                Some(_) => return Err(format!("not done after {limit_us} us:\n{}", self.dump())),
                None => return Err(format!("stuck, nothing is left to happen:\n{}", self.dump())),
            }
        }
    }

    /// Runs for `us` microseconds.
    ///
    /// # Errors
    /// What a program found wrong.
    pub fn run_for(&mut self, us: u64) -> Result<(), String> {
        let end_us = self.now_us + us;
        loop {
            self.turn()?;
            match self.next_us() {
                Some(next_us) if next_us <= end_us => self.now_us = next_us.max(self.now_us),
                _ => {
                    self.now_us = end_us;
                    return Ok(());
                }
            }
        }
    }

    /// Every socket and every running program, for the report of a failure.
    fn dump(&self) -> String {
        let mut text = String::new();
        for (number, host) in self.hosts.iter().enumerate() {
            for socket in host.shard.sockets() {
                text += &format!("host {number}: {socket:?}\n");
            }
            for program in host.programs() {
                text += &format!("host {number}: {program:?}\n");
            }
        }
        text
    }

    fn next_us(&self) -> Option<u64> {
        let arrival = self.in_flight.peek().map(|Reverse((at_us, ..))| *at_us);
        let host = self.hosts.iter().filter_map(Host::wakes_at).min();
        let insides = self.services.iter().filter_map(|service| service.inside.as_ref());
        let inside = insides.filter_map(Inside::next_us).min();
        [arrival, host, inside].into_iter().flatten().min()
    }

    fn turn(&mut self) -> Result<(), String> {
        let now = self.now();
        let mut arrived = vec![Vec::new(); self.hosts.len()];
        while let Some(Reverse((at_us, ..))) = self.in_flight.peek() {
            if *at_us > self.now_us {
                break;
            }
            if let Some(Reverse((_, _, host, frame))) = self.in_flight.pop() {
                self.receive(host, frame, &mut arrived);
            }
        }
        for (host, frames) in self.hosts.iter_mut().zip(arrived) {
            host.handle_frames(now, frames);
        }
        for host in 0..self.hosts.len() {
            self.turn_of(host)?;
        }
        for _ in 0..HANDING_ROUNDS {
            let woken = self.hand_over()?;
            if woken.is_empty() {
                return Ok(());
            }
            for host in woken {
                self.turn_of(host)?;
            }
        }
        Err("servers hand packets to each other for ever".into())
    }

    fn turn_of(&mut self, host: usize) -> Result<(), String> {
        let (now, mut frames) = (self.now(), Vec::new());
        self.hosts[host].turn(now, &mut self.random, &mut frames)?;
        for frame in frames {
            self.forward(host, frame);
        }
        Ok(())
    }

    /// A frame has arrived at a port: at a host, or at a service, whose steering says whose it is.
    fn receive(&mut self, host: usize, frame: Vec<u8>, arrived: &mut [Vec<Vec<u8>>]) {
        let now = self.now();
        let Some(service) = self.services.iter_mut().find(|one| one.members.contains(&host)) else {
            return arrived[host].push(frame);
        };
        if let Some(inside) = &mut service.inside {
            return inside.receive(now, &self.hosts, &frame);
        }
        match service.steering.destination(&frame) {
            Destination::Server(server) => {
                arrived[service.members.start + usize::from(server)].push(frame);
            }
            Destination::Everyone => {
                service.members.clone().for_each(|member| arrived[member].push(frame.clone()));
            }
        }
    }

    /// Carries what members of services have for each other; who has got something.
    fn hand_over(&mut self) -> Result<Vec<usize>, String> {
        let (now, mut woken) = (self.now(), Vec::new());
        for at in 0..self.services.len() {
            let Service { members, handing_loss_ppm, .. } = &self.services[at];
            let (members, loss_ppm) = (members.clone(), *handing_loss_ppm);
            let speaker = members.start + usize::from(SPEAKER);
            if let Some(inside) = &mut self.services[at].inside {
                woken.extend(inside.deliver(now, &mut self.hosts)?);
            }
            for member in members.clone() {
                if let Some(inside) = &mut self.services[at].inside {
                    let server = (member - members.start) as u16;
                    inside.collect(now, &mut self.hosts, server);
                }
                while let Some(Forward { to, kind, packet }) =
                    self.hosts[member].shard.poll_forward()
                {
                    let place = members.start + usize::from(to);
                    if !self.random.chance(loss_ppm) {
                        let Host { shard, memory, .. } = &mut self.hosts[place];
                        shard.handle_forwarded(now, kind, &packet, memory);
                        woken.push(place);
                    }
                    self.hosts[member].shard.recycle(packet);
                }
                if let Some(groups) = self.hosts[member].shard.poll_memberships() {
                    let server = (member - members.start) as u16;
                    self.hosts[speaker].shard.set_memberships(now, server, &groups);
                    woken.push(speaker);
                }
            }
            if let Some(update) = self.hosts[speaker].shard.poll_network_update() {
                for member in members.filter(|member| *member != speaker) {
                    self.hosts[member].shard.adopt_network_update(now, &update);
                    woken.push(member);
                }
            }
        }
        // What is on a way of no length has arrived already.
        let waits = |service: &Service| {
            service.inside.as_ref().and_then(Inside::next_us).is_some_and(|at| at <= now.us())
        };
        if woken.is_empty() && self.services.iter().any(waits) {
            return self.hand_over();
        }
        woken.sort_unstable();
        woken.dedup();
        Ok(woken)
    }

    /// The port of the switch that a host is at: servers of a service share one.
    fn port_of(&self, host: usize) -> usize {
        let service = self.services.iter().find(|one| one.members.contains(&host));
        service.map_or(host, |service| service.members.start)
    }

    /// The switch: unicast goes to the host that has the address, everything else to all others.
    fn forward(&mut self, sender: usize, frame: Vec<u8>) {
        let Some(destination) = frame.get(..6) else { return };
        let group = destination[0] & 1 == 1;
        for receiver in 0..self.hosts.len() {
            let port = self.port_of(receiver);
            let elsewhere = port == receiver && port != self.port_of(sender);
            if !elsewhere || !(group || self.hosts[receiver].mac == *destination) {
                continue;
            }
            let arrivals = self.paths[sender].send(self.now_us, &frame, &mut self.random);
            for arrival in arrivals.into_iter().flatten() {
                let mut copy = frame.clone();
                if let Some(bit) = arrival.flip_bit {
                    copy[bit / 8] ^= 1 << (bit % 8);
                }
                self.sent += 1;
                self.in_flight.push(Reverse((arrival.at_us, self.sent, receiver, copy)));
            }
        }
    }
}
