//! What the servers of a plan say to each other about accepting, and of flows that have moved: from `managers`,
//! which knows whom to tell, and `moving` to the rings, and from the rings to the connection manager or server
//! that is told.
//! Also how servers come to know each other: rings are joined when the supervisor says that another
//! server is there, and left when it says that it is gone.
//!
//! Called by `server` once a turn and by `event_loop`; read `managers`, `rings`, and
//! `supervisor::servers` for when servers are introduced. Nobody says anything in another's name:
//! what a server says of connections, processes and listeners that are not its own is dropped and
//! counted.
//!
//! After a restart: a manager that was started again knows nothing, so each of its transport servers
//! tells it everything anew; a transport server that is gone took its connections with it, which
//! managers are told here.

use std::rc::Rc;

use haypile_engine::Instant;
use haypile_engine::control::messages::{BetweenManagers, ToManager, ToTransport};
use haypile_engine::control::names::ServerNumber;
use haypile_link::port::Port;
use haypile_shm::Dialogue;
use haypile_shm::messages::ServerMessageKind;
use haypile_shm::peer::{self, FrameEnd, PeerBell, PeerSide};
use haypile_shm::sys::cycle_counter;
use haypile_shm::{Errno, Fd, Message};

use crate::managers::Outgoing;
use crate::managers::wire::Incoming;
use crate::roles::{ProcessNumber, Roles};
use crate::server::{Core, Server};
use crate::times;

/// Messages of one peer heard in one turn.
const HEARD_AT_ONCE: usize = 64;

/// Messages among servers, by kind.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Conversation {
    said: [u64; KINDS.len()],
    heard: [u64; KINDS.len()],
    /// Messages that no server of this version says, or not about others.
    nonsense: u64,
}

/// Every kind, with its name in `haypile status`.
const KINDS: [(ServerMessageKind, &str); 21] = [
    (ServerMessageKind::ListenerOpened, "listener_opened"),
    (ServerMessageKind::ListenerClosed, "listener_closed"),
    (ServerMessageKind::Acceptor, "acceptor"),
    (ServerMessageKind::NotAcceptor, "not_acceptor"),
    (ServerMessageKind::Arrived, "arrived"),
    (ServerMessageKind::Claimed, "claimed"),
    (ServerMessageKind::Revoked, "revoked"),
    (ServerMessageKind::Refused, "refused"),
    (ServerMessageKind::OfferFailed, "offer_failed"),
    (ServerMessageKind::Gone, "gone"),
    (ServerMessageKind::Served, "served"),
    (ServerMessageKind::ProcessDied, "process_died"),
    (ServerMessageKind::ServerGone, "server_gone"),
    (ServerMessageKind::Offer, "offer"),
    (ServerMessageKind::Revoke, "revoke"),
    (ServerMessageKind::Best, "best"),
    (ServerMessageKind::Nobody, "nobody"),
    (ServerMessageKind::FlowsMoved, "flows_moved"),
    (ServerMessageKind::MovesTold, "moves_told"),
    (ServerMessageKind::Busy, "busy"),
    (ServerMessageKind::Open, "open"),
];

/// The place of a message's kind in [`KINDS`].
fn place_of(message: &Incoming) -> usize {
    match message {
        Incoming::ToManager(message) => match message {
            ToManager::ListenerOpened { .. } => 0,
            ToManager::ListenerClosed { .. } => 1,
            ToManager::Acceptor { .. } => 2,
            ToManager::NotAcceptor { .. } => 3,
            ToManager::Arrived { .. } => 4,
            ToManager::Claimed { .. } => 5,
            ToManager::Revoked { .. } => 6,
            ToManager::Refused { .. } => 7,
            ToManager::OfferFailed { .. } => 8,
            ToManager::Gone { .. } => 9,
            ToManager::Served { .. } => 10,
            ToManager::ProcessDied { .. } => 11,
            ToManager::ServerGone { .. } => 12,
            ToManager::Open { .. } => 20,
        },
        Incoming::ToTransport(ToTransport::Offer { .. }) => 13,
        Incoming::ToTransport(ToTransport::Revoke { .. }) => 14,
        Incoming::BetweenManagers(BetweenManagers::Best { .. }) => 15,
        Incoming::BetweenManagers(BetweenManagers::Nobody { .. }) => 16,
        Incoming::FlowsMoved(_) => 17,
        Incoming::MovesTold => 18,
        Incoming::BetweenManagers(BetweenManagers::Busy { .. }) => 19,
    }
}

impl Conversation {
    /// Names and counts of what was said and heard; only what was.
    pub fn rows(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let rows = |what: &'static str, counts: &[u64; KINDS.len()]| {
            let named = KINDS.iter().zip(*counts);
            named.map(move |((_, name), count)| (format!("{what}_{name}"), count)).collect()
        };
        let said: Vec<(String, u64)> = rows("said", &self.said);
        let heard: Vec<(String, u64)> = rows("heard", &self.heard);
        let nonsense = ("peer_nonsense".to_string(), self.nonsense);
        said.into_iter().chain(heard).chain([nonsense]).filter(|(_, count)| *count > 0)
    }
}

/// Whether transport server `from` may say this: of its own connections, processes and listeners.
fn is_its_own(roles: &Roles, from: ServerNumber, message: &ToManager) -> bool {
    match *message {
        ToManager::ListenerOpened { server, .. }
        | ToManager::ListenerClosed { server, .. }
        | ToManager::ServerGone { server }
        | ToManager::Served { server, .. }
        | ToManager::Open { server, .. } => server == from,
        ToManager::Acceptor { process, .. }
        | ToManager::NotAcceptor { process, .. }
        | ToManager::ProcessDied { process } => roles.home_of(process) == from,
        ToManager::Arrived { connection, .. }
        | ToManager::Claimed { connection, .. }
        | ToManager::Revoked { connection }
        | ToManager::Refused { connection }
        | ToManager::OfferFailed { connection }
        | ToManager::Gone { connection } => connection.server == from,
    }
}

impl Core {
    /// Hears what other servers have said, a burst of each; how many messages.
    #[inline]
    pub(crate) fn hear_peers(&mut self, now: Instant) -> usize {
        if self.rings.present().is_empty() {
            return 0;
        }
        self.hear_all(now)
    }

    fn hear_all(&mut self, now: Instant) -> usize {
        let began = cycle_counter();
        let mut count = 0;
        let mut room: [Message; HEARD_AT_ONCE] = [[0; 8]; HEARD_AT_ONCE];
        for place in 0..self.rings.present().len() {
            // A peer that wrote nonsense into its ring is left in this loop.
            let Some(peer) = self.rings.present().get(place).copied() else { break };
            let heard = self.rings.pop_messages(peer, &mut room);
            for message in &room[..heard] {
                self.hear(now, peer, message);
            }
            count += heard;
        }
        while let Some(peer) = self.rings.take_overrun() {
            self.say_everything_to(now, peer);
        }
        if count > 0 {
            self.times.messages += times::since(began);
        }
        count
    }

    fn hear(&mut self, now: Instant, peer: ProcessNumber, message: &Message) {
        let began = cycle_counter();
        let Ok(message) = Incoming::decode(message) else {
            self.conversation.nonsense += 1;
            return;
        };
        if !may_say(self.rings.roles(), peer, &message) {
            self.conversation.nonsense += 1;
            return;
        }
        self.conversation.heard[place_of(&message)] += 1;
        let from = self.rings.roles().servers()[usize::from(peer)];
        match message {
            Incoming::ToManager(message) => {
                self.for_manager(now, message);
            }
            Incoming::ToTransport(message) => self.from_manager(now, message),
            Incoming::BetweenManagers(message) => {
                self.between_managers(now, from.manager.unwrap_or_default(), message);
                self.times.offers += times::since(began);
            }
            Incoming::FlowsMoved(moved) => self.hear_of_move(peer, moved),
            Incoming::MovesTold => self.hear_all_of(peer),
        }
    }

    /// Puts what is to be said on rings, and wakes who sleeps.
    #[inline]
    pub(crate) fn speak_to_peers(&mut self) {
        if self.managers.waiting() == 0 {
            return self.rings.flush();
        }
        let began = cycle_counter();
        self.say_all();
        self.rings.flush();
        self.times.messages += times::since(began);
    }

    fn say_all(&mut self) {
        while let Some(message) = self.managers.poll_outgoing() {
            match message {
                Outgoing::ToManager(manager, message) => {
                    let process = self.rings.roles().process_of_manager(manager);
                    self.say(process, &Incoming::ToManager(message));
                }
                Outgoing::ToTransport(server, message) => {
                    let process = self.rings.roles().process_of_transport(server);
                    self.say(process, &Incoming::ToTransport(message));
                }
                Outgoing::ToManagers(message) => {
                    let began = cycle_counter();
                    for manager in 0..self.rings.roles().manager_count() {
                        let process = self.rings.roles().process_of_manager(manager);
                        let other = process != Some(self.rings.roles().own().number);
                        self.say(process.filter(|_| other), &Incoming::BetweenManagers(message));
                    }
                    self.times.offers += times::since(began);
                }
            }
        }
    }

    /// Says something to the server in a process, if there is one.
    pub(crate) fn say(&mut self, process: Option<ProcessNumber>, message: &Incoming) {
        if let Some(process) = process {
            self.conversation.said[place_of(message)] += 1;
            self.rings.push_message(process, &message.encode());
        }
    }

    /// A peer has missed something, or is new: it hears everything that we have to say to it.
    fn say_everything_to(&mut self, now: Instant, peer: ProcessNumber) {
        let roles = self.rings.roles();
        let own_manager = roles.transport().map(|server| roles.manager_of(server));
        if own_manager.is_some_and(|manager| roles.process_of_manager(manager) == Some(peer)) {
            self.tell_everything_anew(now);
        }
        let roles = self.rings.roles();
        let manages =
            roles.servers().get(usize::from(peer)).is_some_and(|spec| spec.manager.is_some());
        if manages && roles.manager().is_some() {
            self.manager.announce_anew();
        }
        self.store.open.tell_anew();
        self.tell_moves_anew(peer);
    }
}

/// Whether a peer may say this to us at all.
fn may_say(roles: &Roles, peer: ProcessNumber, message: &Incoming) -> bool {
    let Some(from) = roles.servers().get(usize::from(peer)) else { return false };
    match message {
        Incoming::ToManager(message) => {
            roles.manager().is_some()
                && from.transport.is_some_and(|server| is_its_own(roles, server, message))
        }
        Incoming::ToTransport(message) => {
            let (ToTransport::Offer { connection, .. } | ToTransport::Revoke { connection, .. }) =
                message;
            let ours = roles.transport().filter(|server| *server == connection.server);
            ours.is_some_and(|server| from.manager == Some(roles.manager_of(server)))
        }
        Incoming::BetweenManagers(_) => roles.manager().is_some() && from.manager.is_some(),
        Incoming::FlowsMoved(moved) => {
            moved.server < roles.transport_count() && may_say(roles, peer, &Incoming::MovesTold)
        }
        Incoming::MovesTold => {
            let steers = roles.transport().is_some() || roles.link().is_some();
            steers && (from.transport.is_some() || from.link.is_some())
        }
    }
}

impl<P: Port> Server<P> {
    /// Another server is there, for the first time or again: `given` are the segment of both, its
    /// status segment, and its doorbell.
    ///
    /// # Errors
    /// When they are not what they should be, or this server and that one have nothing to say to
    /// each other. The peer is absent then.
    pub fn join_peer(
        &mut self,
        now: Instant,
        server: ProcessNumber,
        frames: bool,
        given: [Fd; 3],
    ) -> Result<(), Errno> {
        self.leave_peer(now, server);
        let roles = self.core.rings.roles();
        if !roles.talks_to(server) || roles.shares_frames_with(server) != frames {
            return Err(Errno::EPROTO);
        }
        let side = match roles.own().number < server {
            true => PeerSide::First,
            false => PeerSide::Second,
        };
        let [segment, status, bell] = given;
        let (messages, frames) = peer::open(segment, side, frames)?;
        let bell = Rc::new(PeerBell::new(status, bell)?);
        self.greet_peer(now, server, (messages, frames), bell);
        Ok(())
    }

    /// Begins to talk to a peer that is there.
    pub(crate) fn greet_peer(
        &mut self,
        now: Instant,
        server: ProcessNumber,
        (messages, frames): (Dialogue, Option<FrameEnd>),
        bell: Rc<PeerBell>,
    ) {
        self.core.rings.join(server, messages, Rc::clone(&bell));
        if let Some(frames) = frames {
            self.link.peers.join(server, frames, bell);
        }
        self.core.say_everything_to(now, server);
    }

    /// Another server is gone, with everything that it said and was not heard, but for what it said of moves.
    pub fn leave_peer(&mut self, now: Instant, server: ProcessNumber) {
        // Whether it had taken a bucket that we gave is in the last that it said.
        let (shard, mut inward) = self.core.inward();
        self.link.hear_out(server, now, shard, &mut inward);
        self.link.leave_peer(server);
        self.core.hear_last_words(server);
        if !self.core.rings.leave(server) {
            return;
        }
        self.core.moves_without(now, server);
        let roles = self.core.rings.roles();
        let Some(gone) = roles.servers().get(usize::from(server)).copied() else { return };
        if let Some(server) = gone.transport {
            self.core.stubs_are_gone(now, server);
        }
        let roles = self.core.rings.roles();
        if roles.manager().is_none() {
            return;
        }
        if let Some(server) = gone.transport {
            self.core.for_manager(now, ToManager::ServerGone { server });
        }
        if let Some(manager) = gone.manager {
            self.core.manager.manager_gone(manager);
        }
    }
}

#[cfg(test)]
mod tests;
