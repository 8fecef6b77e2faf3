//! The simulated world: hosts on one Ethernet switch whose ports follow fault plans, and a virtual clock that jumps to
//! the next thing that happens. Everything is decided by the seed. [`crate::scenario`] builds worlds.

use crate::fault::{FaultPlan, Path};
use crate::host::Host;
use crate::random::Random;
use haypile_engine::Instant;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A frame on its way: time, tie-breaker, receiving host, bytes.
type InFlight = Reverse<(u64, u64, usize, Vec<u8>)>;

/// Hosts, paths and the clock.
pub struct World {
    /// The hosts; a host's place in the list is its port on the switch.
    pub hosts: Vec<Host>,
    paths: Vec<Path>,
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
        [arrival, host].into_iter().flatten().min()
    }

    fn turn(&mut self) -> Result<(), String> {
        let now = self.now();
        let mut arrived = vec![Vec::new(); self.hosts.len()];
        while let Some(Reverse((at_us, ..))) = self.in_flight.peek() {
            if *at_us > self.now_us {
                break;
            }
            if let Some(Reverse((_, _, host, frame))) = self.in_flight.pop() {
                arrived[host].push(frame);
            }
        }
        for (host, frames) in self.hosts.iter_mut().zip(arrived) {
            host.handle_frames(now, frames);
        }
        let mut frames = Vec::new();
        for sender in 0..self.hosts.len() {
            self.hosts[sender].turn(now, &mut self.random, &mut frames)?;
            for frame in frames.drain(..) {
                self.forward(sender, frame);
            }
        }
        Ok(())
    }

    /// The switch: unicast goes to the host that has the address, everything else to all others.
    fn forward(&mut self, sender: usize, frame: Vec<u8>) {
        let Some(destination) = frame.get(..6) else { return };
        let group = destination[0] & 1 == 1;
        for receiver in 0..self.hosts.len() {
            if receiver == sender || !(group || self.hosts[receiver].mac == *destination) {
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
