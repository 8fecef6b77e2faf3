//! Changes of the plan while the service runs: the supervisor opens what more servers need (queues,
//! attach sockets), starts them, and lets programs come to them when all servers know each other.
//! A part of `Supervisor`; read `servers`, [`crate::roster`] and `docs/decisions/0017`.
//!
//! In this order, so that nobody hears of a server that he does not know: those that run are told who
//! is to come, and say that they have heard it; each new one is introduced to them when it runs; when
//! all new ones run, programs are told how many there are. The listeners that there are are held by
//! each new server from its first moment on, so that none is refused who is sent there.

use crate::control::{self, PlanState};
use crate::error::Error;
use crate::event_loop::now;
use crate::plan::{Component, Plan};
use crate::roster::Roster;
use crate::start::{attach_path_of, bind_attach};
use haypile_shm::sys::Fd;
use serde_json::Value;

use super::orders::{ListenerRecord, Order};
use super::seat::Seat;
use super::servers::tell;
use super::{Supervisor, complain};

/// Servers are being added.
#[derive(Debug)]
pub(super) struct Growth {
    /// Servers that have yet to say that they know the new ones.
    unaware: Vec<usize>,
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
        let order = Order::Grow { roster: Box::new(roster.clone()) };
        self.seats.extend(roster.servers()[before..].iter().copied().map(Seat::new));
        self.roster = roster;
        // One that is just being started does as it is told before it talks to anybody.
        let unaware = (0..before).filter(|server| self.seats[*server].has_begun()).collect();
        self.growth = Some(Growth { unaware });
        for seat in &self.seats[..before] {
            tell(seat, &order, &[]);
        }
        for server in before..self.seats.len() {
            if let Err(error) = self.start_server(server, now()) {
                complain(&error.to_string());
                self.seats[server].fail_to_start(now());
            }
        }
        self.open_when_complete();
    }

    /// Whether every server that runs knows of all others.
    pub(super) fn all_know(&self) -> bool {
        self.growth.as_ref().is_none_or(|growth| growth.unaware.is_empty())
    }

    /// A server knows of the others, or is gone; its successor is told at its start.
    pub(super) fn note_grown(&mut self, server: usize) {
        let Some(growth) = &mut self.growth else { return };
        let before = growth.unaware.len();
        growth.unaware.retain(|other| *other != server);
        if before == 0 || !growth.unaware.is_empty() {
            return;
        }
        for server in 0..self.seats.len() {
            if self.seats[server].is_ready() && !self.seats[server].has_begun() {
                self.join(server);
            }
        }
    }

    /// Programs may come to the new servers when all of them run.
    pub(super) fn open_when_complete(&mut self) {
        if self.growth.is_none() || !self.all_know() || !self.seats.iter().all(Seat::has_begun) {
            return;
        }
        self.growth = None;
        let servers = self.roster.transport_count();
        if servers == self.open {
            return;
        }
        self.open = servers;
        // Whoever is woken finds the number.
        self.epoch.set_servers(servers);
        for seat in self.seats.iter().filter(|seat| seat.spec.transport.is_some()) {
            tell(seat, &Order::Open { servers }, &[]);
        }
    }

    /// The listeners that are open at the servers that programs come to; server 0 knows all.
    pub(super) fn open_listeners(&self) -> impl Iterator<Item = &ListenerRecord> {
        let first = self.seats.iter().filter(|seat| seat.spec.transport == Some(0));
        first.flat_map(|seat| seat.listeners.values())
    }

    /// A listener has come or gone at a server: the new ones hold it, or no more. (What they hold for
    /// longer than they are new is about programs that sleep.)
    pub(super) fn tell_beside(&self, server: usize, listener: &ListenerRecord, open: bool) {
        if self.seats[server].spec.transport != Some(0) {
            return;
        }
        let order = Order::Beside { listener: listener.clone(), open };
        let spread_over = self.roster.spread_over();
        for seat in &self.seats {
            let Some(transport) = seat.spec.transport else { continue };
            let concerned = if open { transport >= self.open } else { transport >= spread_over };
            if concerned {
                tell(seat, &order, &[]);
            }
        }
    }

    /// The plan, and what is waited for.
    pub(super) fn plan_state(&self) -> PlanState {
        let awaits = self.growth.as_ref().map(|growth| {
            let unaware = growth.unaware.first().copied();
            let server = unaware.or(self.seats.iter().position(|seat| !seat.has_begun()));
            let what = if unaware.is_some() { "hear of the new servers" } else { "run" };
            format!("server {} to {what}", server.unwrap_or_default())
        });
        PlanState { plan: self.roster.plan().to_string(), servers: self.seats.len() as u16, awaits }
    }
}
