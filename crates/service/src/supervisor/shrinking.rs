//! Servers that leave while the service runs. A part of `Supervisor`; read `growth`, which has the phases, and
//! `docs/decisions/0018`.
//!
//! In this order, so that nothing is ever with nobody: all hear who is to leave, and programs make their homes
//! elsewhere; those that leave hand over their buckets and wait for programs to follow; all hear that what never
//! moves (UDP ports, fragments) is others' now; their queues go; they end; and all forget them. One that dies before
//! it has given all away is started again for that.

use super::growth::{Growth, KNOWING_US, Phase};
use super::orders::Order;
use super::servers::tell;
use super::{Supervisor, complain};
use crate::event_loop::now;
use crate::plan::Component;
use crate::roster::Roster;
use crate::start::attach_path_of;

/// Time for servers to give everything away, and for programs to follow, in microseconds.
const PARTING_US: u64 = 30_000_000;
/// Time beyond that to say that it is over.
const LAST_WORDS_US: u64 = 5_000_000;

impl Supervisor {
    /// All but these servers are to leave.
    pub(super) fn begin_to_shrink(&mut self, stays: Roster) {
        self.roster = self.roster.parting(&stays);
        self.parts.config.plan = stays.plan().clone();
        // Nobody new comes to those that leave; who is there looks elsewhere once all know where.
        self.open = stays.staying();
        self.parts.link.withdraw(stays.plan().count(Component::Link));
        let (first, until) = (self.open, now().plus_us(KNOWING_US));
        self.growth = Some(Growth::new(Phase::Knowing, Vec::new(), first, until, Some(stays)));
        self.tell_roster(Phase::Knowing);
    }

    /// Tells every server who there is, and waits until all know.
    fn tell_roster(&mut self, phase: Phase) {
        let order = Order::Servers { roster: Box::new(self.roster.clone()) };
        // One that is just being started does as it is told before it talks to anybody.
        self.seats.iter().for_each(|seat| tell(seat, &order, &[]));
        let begun = |server: &usize| self.seats[*server].has_begun();
        let awaited: Vec<usize> = (0..self.seats.len()).filter(begun).collect();
        self.begin_to_wait(phase, awaited, KNOWING_US);
    }

    fn begin_to_wait(&mut self, phase: Phase, awaited: Vec<usize>, time_us: u64) {
        if let Some(growth) = &mut self.growth {
            (growth.phase, growth.awaited) = (phase, awaited);
            growth.until = now().plus_us(time_us);
        }
        self.go_on();
    }

    /// The seats of those that leave.
    fn leaving(&self) -> std::ops::Range<usize> {
        let stays = self.growth.as_ref().and_then(|growth| growth.stays.as_ref());
        stays.map_or(self.seats.len(), |stays| stays.servers().len())..self.seats.len()
    }

    /// Whether a server has done all that it had to, and may end.
    pub(super) fn is_dismissed(&self, server: usize) -> bool {
        let leaves = self.growth.as_ref().is_some_and(|growth| growth.phase == Phase::Leaving);
        leaves && self.leaving().contains(&server)
    }

    /// Programs make their homes elsewhere, and servers that leave give their buckets away.
    pub(super) fn begin_to_part(&mut self) {
        let open = self.open;
        // Whoever is woken finds the number.
        self.epoch.set_servers(open);
        for seat in self.seats.iter().filter(|seat| seat.spec.transport.is_some()) {
            tell(seat, &Order::Open { servers: open }, &[]);
        }
        let gives = |server: &usize| self.seats[*server].spec.transport.is_some();
        let awaited: Vec<usize> = self.leaving().filter(gives).collect();
        for server in &awaited {
            self.tell_to_part(*server, PARTING_US);
        }
        self.begin_to_wait(Phase::Parting, awaited, PARTING_US + LAST_WORDS_US);
    }

    fn tell_to_part(&self, server: usize, patience_us: u64) {
        let seat = &self.seats[server];
        if seat.has_begun() {
            tell(seat, &Order::Part { patience_us }, &[]);
        }
    }

    /// A server has begun again while others leave, or it.
    pub(super) fn part_again(&mut self, server: usize) {
        let Some(growth) = &self.growth else { return };
        if growth.phase == Phase::Parting && growth.awaited.contains(&server) {
            let left_us = growth.until.since(now()).saturating_sub(LAST_WORDS_US);
            self.tell_to_part(server, left_us);
        }
        self.go_on();
    }

    /// A server has given away what it could.
    pub(super) fn note_parted(&mut self, server: usize, buckets: u16, stubs: u32) {
        if buckets > 0 {
            complain(&format!(
                "server {server} leaves with {buckets} buckets that it could not hand over: their \
                 connections end"
            ));
        }
        if stubs > 0 {
            complain(&format!(
                "server {server} leaves before programs have followed {stubs} connections: they have \
                 60 s, and those that had only passed through it end"
            ));
        }
        self.note_done(server, Phase::Parting);
    }

    /// What never moves is others' from now on.
    pub(super) fn fold(&mut self) {
        self.roster = self.roster.folded();
        self.tell_roster(Phase::Folding);
    }

    /// Those that leave are needed no more.
    pub(super) fn dismiss(&mut self) {
        self.parts.link.drop_queues(self.parts.config.plan.count(Component::Link));
        let leaving = self.leaving();
        let lives = |server: &usize| self.seats[*server].life.is_some();
        let awaited: Vec<usize> = leaving.clone().filter(lives).collect();
        for server in leaving {
            self.leave_to_its_end(server);
            tell(&self.seats[server], &Order::Leave {}, &[]);
        }
        self.begin_to_wait(Phase::Leaving, awaited, LAST_WORDS_US);
    }

    /// A server is not started again.
    pub(super) fn leave_to_its_end(&mut self, server: usize) {
        self.seats[server].restart_at = None;
    }

    /// All that were to leave have left: nothing of them stays.
    pub(super) fn close_up(&mut self) {
        let Some(stays) = self.growth.take().and_then(|growth| growth.stays) else { return };
        let transports = usize::from(stays.transport_count());
        for transport in transports..self.parts.attach.len() {
            drop(std::fs::remove_file(attach_path_of(&self.parts.config, transport as u16)));
        }
        self.parts.attach.truncate(transports);
        self.seats.truncate(stays.servers().len());
        self.roster = stays;
        let order = Order::Servers { roster: Box::new(self.roster.clone()) };
        // Programs give up what they have had there.
        self.epoch.set_servers(self.open);
        for seat in &self.seats {
            tell(seat, &order, &[]);
            if seat.spec.transport.is_some() {
                tell(seat, &Order::Open { servers: self.open }, &[]);
            }
        }
    }
}
