//! To whom this server speaks of accepting: its own connection manager and transport server by a
//! call, those of other servers by messages that wait here until somebody puts them on rings.
//!
//! Called by `accepting` and `transport_server`; `conversation`, which has rings, takes the
//! messages with [`Managers::poll_outgoing`] and brings those that arrive to [`Core::from_manager`],
//! [`Core::for_manager`] and [`Core::between_managers`]. Read `haypile_engine::control::messages`.

pub mod wire;

use std::collections::VecDeque;

use haypile_engine::Instant;
use haypile_engine::control::messages::{BetweenManagers, ToManager, ToTransport};
use haypile_engine::control::names::ServerNumber;

use crate::roles::Roles;
use crate::server::Core;

/// A message for another server.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// To the connection manager of this number.
    ToManager(ServerNumber, ToManager),
    /// To the transport server of this number.
    ToTransport(ServerNumber, ToTransport),
    /// To all other connection managers.
    ToManagers(BetweenManagers),
}

/// Where this server stands among the others.
#[derive(Debug)]
pub struct Managers {
    server: ServerNumber,
    manager: Option<ServerNumber>,
    /// The connection manager of each transport server.
    managers: Vec<ServerNumber>,
    /// The connection manager of our transport server is in this server.
    own: bool,
    outgoing: VecDeque<Outgoing>,
}

impl Managers {
    /// Server `server`, which is its own connection manager and speaks to nobody else.
    pub fn alone(server: ServerNumber) -> Managers {
        let (managers, outgoing) = (vec![0; usize::from(server) + 1], VecDeque::new());
        Managers { server, manager: Some(0), managers, own: true, outgoing }
    }

    /// One server of several. (One that owns no flows has a number here that is nobody's.)
    pub fn of(roles: &Roles) -> Managers {
        let managers = (0..roles.transport_count()).map(|one| roles.manager_of(one));
        let managers: Vec<ServerNumber> = managers.collect();
        let server = roles.transport().unwrap_or(ServerNumber::MAX);
        let ours = managers.get(usize::from(server)).copied();
        let own = ours.is_some() && ours == roles.manager();
        Managers { server, manager: roles.manager(), managers, own, outgoing: VecDeque::new() }
    }

    /// There are other servers from now on.
    pub fn follow(&mut self, roles: &Roles) {
        let outgoing = std::mem::take(&mut self.outgoing);
        *self = Managers { outgoing, ..Managers::of(roles) };
    }

    /// Our number among the transport servers.
    pub fn server(&self) -> ServerNumber {
        self.server
    }

    /// Our number among the connection managers, if we are one.
    pub fn manager(&self) -> Option<ServerNumber> {
        self.manager
    }

    /// The connection manager of a transport server; of one that is not in the plan, the first.
    pub fn manager_of(&self, server: ServerNumber) -> ServerNumber {
        self.managers.get(usize::from(server)).copied().unwrap_or(0)
    }

    /// A message to the connection manager of another server.
    pub fn to_manager(&mut self, manager: ServerNumber, message: ToManager) {
        self.outgoing.push_back(Outgoing::ToManager(manager, message));
    }

    /// A message to another transport server.
    pub fn to_transport(&mut self, server: ServerNumber, message: ToTransport) {
        self.outgoing.push_back(Outgoing::ToTransport(server, message));
    }

    /// A message to all other connection managers.
    pub fn to_managers(&mut self, message: BetweenManagers) {
        self.outgoing.push_back(Outgoing::ToManagers(message));
    }

    /// The oldest message that has not been sent yet.
    pub fn poll_outgoing(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    /// Messages that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.outgoing.len()
    }
}

impl Core {
    /// Tells the connection manager of transport server `server`: by a call if it is ours.
    pub(crate) fn tell_manager(&mut self, now: Instant, server: ServerNumber, message: ToManager) {
        let manager = self.managers.manager_of(server);
        if self.managers.manager == Some(manager) {
            self.manager.handle(now, message);
        } else {
            self.managers.to_manager(manager, message);
        }
    }

    /// Tells our own transport server's connection manager.
    pub(crate) fn tell_own_manager(&mut self, now: Instant, message: ToManager) {
        if self.managers.own {
            self.manager.handle(now, message);
        } else {
            self.tell_manager(now, self.managers.server, message);
        }
    }

    /// A message of our transport server's connection manager that is in another server.
    pub fn from_manager(&mut self, now: Instant, message: ToTransport) {
        self.carry_out(now, message);
    }

    /// A message of another transport server, about what is its own, to the connection manager in this
    /// server. The answers go out with the next turn.
    pub fn for_manager(&mut self, now: Instant, message: ToManager) {
        self.manager.handle(now, message);
    }

    /// A message of connection manager `from` to ours.
    pub fn between_managers(&mut self, now: Instant, from: ServerNumber, message: BetweenManagers) {
        self.manager.handle_offer(now, from, message);
    }
}
