//! Changes of the plan while the service runs: the supervisor opens what more servers need (queues,
//! attach sockets), starts them, and lets programs come to them when all servers know each other.
//! A part of `Supervisor`; read `servers`, [`crate::roster`] and `docs/decisions/0017`. How servers leave
//! is in `shrinking`.
//!
//! In this order, so that nobody hears of a server that he does not know: those that run are told who
//! is to come, and say that they have heard it; each new one is introduced to them when it runs; when
//! all new ones run, programs are told how many there are. The listeners that there are are held by
//! each new server from its first moment on, so that none is refused who is sent there.

use haypile_engine::Instant;
use haypile_shm::sys::Fd;
use serde_json::Value;

use super::orders::{ListenerRecord, Order};
use super::seat::{Listeners, Seat};
use super::servers::tell;
use super::{Supervisor, complain};
use crate::control::{self, PlanState};
use crate::error::Error;
use crate::event_loop::now;
use crate::plan::{Component, Plan};
use crate::roster::Roster;
use crate::start::{attach_path_of, bind_attach};

/// Servers are being added, or leave.
#[derive(Debug)]
pub(super) struct Growth {
    pub(super) phase: Phase,
    /// Servers that are waited for.
    pub(super) awaited: Vec<usize>,
    /// The first new transport server.
    first: u16,
    /// Buckets that have moved.
    pub(super) moved: usize,
    /// Who has not done its part by then is stopped or stuck, and keeps nobody from going on: what
    /// it is told comes in order.
    pub(super) until: Instant,
    /// Where servers leave: those that stay.
    pub(super) stays: Option<Roster>,
}

/// Time for servers that run to hear of others, in microseconds.
pub(super) const KNOWING_US: u64 = 5_000_000;

/// How far it is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Those that run are told of the new ones, and then these are to run.
    Knowing,
    /// Programs open their listeners at the new ones.
    Opening,
    /// Those that ran hand buckets over.
    Sharing,
    /// Those that leave hand over all that they have.
    Parting,
    /// All hear that what is left of theirs is others' now.
    Folding,
    /// They end.
    Leaving,
}

impl Growth {
    pub(super) fn new(
        phase: Phase,
        awaited: Vec<usize>,
        first: u16,
        until: Instant,
        stays: Option<Roster>,
    ) -> Growth {
        Growth { phase, awaited, first, moved: 0, until, stays }
    }
}

impl Supervisor {
    /// Begins to change the plan.
    pub(super) fn set_plan(&mut self, text: &str) -> Value {
        match self.begin_growth(text) {
            Ok(()) => control::acceptance(self.plan_state()),
            Err(error) => control::refusal(&error.to_string()),
        }
    }

    fn begin_growth(&mut self, text: &str) -> Result<(), Error> {
        let plan: Plan = text.parse()?;
        let busy = |why: &str| {
            let what = format_args!("change the plan to {plan}");
            Error::new(what, why, "try again when that is over")
        };
        if self.ending.is_some() {
            return Err(busy("the service ends"));
        }
        if self.growth.is_some() {
            return Err(busy("it is being changed already"));
        }
        if let Some(stays) = self.roster.shrunk(&plan) {
            self.begin_to_shrink(stays?);
            return Ok(());
        }
        let roster = self.roster.grown(&plan)?;
        if roster.servers().len() > self.seats.len() {
            self.open_for(&plan)?;
        }
        self.parts.config.plan = plan;
        self.grow_to(roster);
        Ok(())
    }

    /// Opens what the servers of a larger plan need; all of it or nothing.
    fn open_for(&mut self, plan: &Plan) -> Result<(), Error> {
        let first = self.parts.attach.len() as u16;
        let opened = self.open_attach_sockets(plan).and_then(|attach| {
            let (config, secret) = (&self.parts.config, &self.parts.secret);
            self.parts.link.add_queues(config, secret, plan.count(Component::Link))?;
            Ok(attach)
        });
        if opened.is_err() {
            for transport in first..plan.count(Component::Transport) {
                drop(std::fs::remove_file(attach_path_of(&self.parts.config, transport)));
            }
        }
        self.parts.attach.extend(opened?);
        Ok(())
    }

    fn open_attach_sockets(&self, plan: &Plan) -> Result<Vec<Fd>, Error> {
        let new = self.parts.attach.len() as u16..plan.count(Component::Transport);
        new.map(|one| bind_attach(&attach_path_of(&self.parts.config, one))).collect()
    }

    /// Tells those that run, and starts the others.
    fn grow_to(&mut self, roster: Roster) {
        let before = self.seats.len();
        let order = Order::Servers { roster: Box::new(roster.clone()) };
        let listeners = self.open_listeners();
        for spec in &roster.servers()[before..] {
            let mut seat = Seat::new(*spec);
            seat.listeners = spec.transport.map(|_| listeners.clone()).unwrap_or_default();
            self.seats.push(seat);
        }
        self.roster = roster;
        // One that is just being started does as it is told before it talks to anybody.
        let awaited = (0..before).filter(|server| self.seats[*server].has_begun()).collect();
        let first = self.open;
        let until = now().plus_us(KNOWING_US);
        self.growth = Some(Growth::new(Phase::Knowing, awaited, first, until, None));
        for seat in &self.seats[..before] {
            tell(seat, &order, &[]);
        }
        for server in before..self.seats.len() {
            if let Err(error) = self.start_server(server, now()) {
                complain(&error.to_string());
                self.seats[server].fail_to_start(now());
            }
        }
        self.go_on();
    }

    /// Whether every server that runs knows of all others.
    pub(super) fn all_know(&self) -> bool {
        let unaware =
            |growth: &Growth| growth.phase == Phase::Knowing && !growth.awaited.is_empty();
        !self.growth.as_ref().is_some_and(unaware)
    }

    /// A server has done its part of a phase.
    pub(super) fn note_done(&mut self, server: usize, phase: Phase) {
        if let Some(growth) = self.growth.as_mut().filter(|growth| growth.phase == phase) {
            growth.awaited.retain(|other| *other != server);
            self.go_on();
        }
    }

    /// A server knows who there is.
    pub(super) fn note_known(&mut self, server: usize) {
        let phase = self.growth.as_ref().map(|growth| growth.phase);
        if let Some(phase @ (Phase::Knowing | Phase::Folding)) = phase {
            self.note_done(server, phase);
        }
    }

    /// A server is gone: nobody waits for it, but for the successor of one that has buckets to give away. That is
    /// told everything at its start.
    pub(super) fn go_on_without(&mut self, server: usize) {
        if let Some(growth) = self.growth.as_mut().filter(|one| one.phase != Phase::Parting) {
            growth.awaited.retain(|other| *other != server);
            self.go_on();
        }
    }

    /// When to look whether somebody is waited for in vain.
    pub(super) fn growth_due(&self) -> Option<Instant> {
        let growth = self.growth.as_ref().filter(|growth| !growth.awaited.is_empty())?;
        let waits = matches!(growth.phase, Phase::Opening | Phase::Sharing);
        (!waits).then_some(growth.until)
    }

    /// Goes on without those that were given time enough.
    pub(super) fn look_at_growth(&mut self, now: Instant) {
        if self.growth_due().is_some_and(|due| due <= now)
            && let Some(growth) = &mut self.growth
        {
            let (phase, late) = (growth.phase, std::mem::take(&mut growth.awaited));
            for server in late {
                complain(&format!("server {server} does not hear; going on without it"));
                if phase == Phase::Leaving {
                    self.seats[server].life.iter().for_each(|life| life.kill());
                    self.leave_to_its_end(server);
                }
            }
            self.go_on();
        }
    }

    /// A server has begun, for the first time or again.
    pub(super) fn go_on_with(&mut self, server: usize) {
        if self.growth.as_ref().is_some_and(|growth| growth.stays.is_some()) {
            return self.part_again(server);
        }
        let Some(growth) = &mut self.growth else { return };
        let (phase, first) = (growth.phase, growth.first);
        let gives = self.seats[server].spec.transport.is_some_and(|one| one < first);
        if phase == Phase::Sharing && gives {
            // What its earlier life had moved the others know.
            growth.awaited.push(server);
            tell(&self.seats[server], &Order::Share { first }, &[]);
        }
        self.go_on();
    }

    /// Begins the next phase if nobody is waited for in this one.
    pub(super) fn go_on(&mut self) {
        let Some(growth) = self.growth.as_ref().filter(|growth| growth.awaited.is_empty()) else {
            return;
        };
        let shrinks = growth.stays.is_some();
        match growth.phase {
            Phase::Knowing => {
                let joins = |seat: &Seat| seat.is_ready() && !seat.has_begun();
                if let Some(server) = self.seats.iter().position(joins) {
                    // Comes back here.
                    self.join(server);
                } else if shrinks {
                    self.begin_to_part();
                } else if self.seats.iter().all(Seat::has_begun) {
                    self.open_to_programs();
                }
            }
            Phase::Opening => self.share_buckets(),
            Phase::Sharing => self.growth = None,
            Phase::Parting => self.fold(),
            Phase::Folding => self.dismiss(),
            Phase::Leaving => self.close_up(),
        }
    }

    /// Programs may come to the new servers.
    fn open_to_programs(&mut self) {
        let servers = self.roster.transport_count();
        if servers == self.open {
            self.growth = None;
            return;
        }
        self.open = servers;
        // Whoever is woken finds the number.
        self.epoch.set_servers(servers);
        self.begin_phase(Phase::Opening, u16::MAX, &Order::Open { servers });
    }

    /// Those that have buckets give the new ones their share.
    fn share_buckets(&mut self) {
        let first = self.growth.as_ref().map_or(u16::MAX, |growth| growth.first);
        self.begin_phase(Phase::Sharing, first, &Order::Share { first });
    }

    /// Orders the same of every transport server below `end`, and waits for all.
    fn begin_phase(&mut self, phase: Phase, end: u16, order: &Order) {
        let ordered = |seat: &&Seat| {
            seat.has_begun() && seat.spec.transport.is_some_and(|transport| transport < end)
        };
        let seats: Vec<&Seat> = self.seats.iter().filter(ordered).collect();
        seats.iter().for_each(|seat| tell(seat, order, &[]));
        if let Some(growth) = &mut self.growth {
            growth.phase = phase;
            growth.awaited = seats.iter().map(|seat| usize::from(seat.number())).collect();
        }
    }

    /// Buckets have moved: their frames come on the queue of their server's link server.
    pub(super) fn note_moved(&mut self, to: u16, buckets: &[u16]) {
        if let Some(link) = self.roster.link_of(to) {
            self.parts.link.steer(buckets, link);
        }
        if let Some(growth) = &mut self.growth {
            growth.moved += buckets.len();
        }
    }

    /// The listeners that are open at the servers that programs come to; server 0 knows all.
    fn open_listeners(&self) -> Listeners {
        let first = self.seats.iter().find(|seat| seat.spec.transport == Some(0));
        first.map(|seat| seat.listeners.clone()).unwrap_or_default()
    }

    /// A listener has come or gone at a server: the new ones hold it, or no more. (What they hold for
    /// longer than they are new is about programs that sleep.)
    pub(super) fn tell_beside(&mut self, server: usize, listener: &ListenerRecord, open: bool) {
        if self.seats[server].spec.transport != Some(0) {
            return;
        }
        let order = Order::Beside { listener: listener.clone(), open };
        let since = if open { self.open } else { self.roster.spread_over() };
        for seat in &mut self.seats {
            if seat.spec.transport.is_none_or(|transport| transport < since) {
                continue;
            }
            if open {
                let name = (listener.domain, listener.cookie);
                seat.listeners.insert(name, listener.clone());
            }
            tell(seat, &order, &[]);
        }
    }

    /// The plan, and what is waited for.
    pub(super) fn plan_state(&self) -> PlanState {
        let awaits = self.growth.as_ref().map(|growth| {
            let server = match growth.awaited.first() {
                Some(server) => *server,
                None => self.seats.iter().position(|seat| !seat.has_begun()).unwrap_or_default(),
            };
            match growth.phase {
                Phase::Knowing if growth.awaited.is_empty() => format!("server {server} to run"),
                Phase::Knowing => format!("server {server} to hear of the new ones"),
                Phase::Opening => format!("programs to open their listeners at server {server}"),
                Phase::Sharing | Phase::Parting => {
                    format!("server {server} to hand over buckets, {} are", growth.moved)
                }
                Phase::Folding => format!("server {server} to hear who stays"),
                Phase::Leaving => format!("server {server} to end"),
            }
        });
        PlanState { plan: self.roster.plan().to_string(), servers: self.seats.len() as u16, awaits }
    }
}
