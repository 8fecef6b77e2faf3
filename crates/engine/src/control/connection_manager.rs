//! The connection manager: listeners, acceptors, and the speculative accept handshake.
//!
//! A pure state machine. It owns which process is offered which connection; it touches no memory
//! and sends nothing: it is told by `handle`, `poll_action` says what the transport servers shall
//! do, and they report back. One compare-and-swap on the offer word of a connection decides between
//! claim and revocation, so a connection is never lost and never given twice, whatever dies when;
//! this file only follows those decisions. Driven by the service between bursts.
//!
//! ```text
//!   arrived ---> Waiting --offer--> Offered --claimed--> (the process's; forgotten here)
//!                   ^                  | time-out while another acceptor waits,
//!                   |                  | process dead, listener closed
//!                   +---- revoked -- Revoking --claimed--> (it was faster: the process's)
//! ```

use std::collections::VecDeque;

use super::OwnMap;
use super::messages::{BetweenManagers, ToManager, ToTransport};
use super::names::{ConnectionName, ListenerName, ProcessName, ServerNumber};
use crate::time::Instant;

/// A process attached to a server, as numbered there.
pub type ProcessId = u32;

/// Who takes a connection: a process by one of its listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taker {
    listener: ListenerName,
    process: ProcessName,
}

/// Where a connection is on its way to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Offered {
        to: Taker,
        registration: u64,
        serial: u64,
    },
    /// `late`: it was not claimed in time.
    Revoking {
        to: Taker,
        registration: u64,
        late: bool,
    },
}

struct Pending {
    /// The listener it came to.
    listener: ListenerName,
    group: ListenerName,
    stage: Stage,
}

struct Acceptor {
    taker: Taker,
    outstanding: u32,
    /// Which registration this is: what is late to tell of an earlier one does not concern it.
    registration: u64,
    /// An offer could not be delivered. Cleared by a claim, a registration or time: nobody says
    /// when there is memory again.
    saturated: bool,
    /// It has not claimed in time, and its offer is being taken back.
    late: bool,
}

/// The accept queue of one listener, or of a group of them.
#[derive(Default)]
struct Queue {
    acceptors: Vec<Acceptor>,
    /// Where the round robin among equals goes on.
    next: usize,
    /// Waiting connections, oldest first; names of connections that are gone stay until their turn.
    waiting: VecDeque<ConnectionName>,
    /// How many of `waiting` still wait.
    waiting_count: usize,
    /// Offers that are out; a queue without listeners is forgotten when it is zero.
    offered: u32,
    /// Listeners of the group.
    listeners: u32,
}

/// A listener of the group.
struct Listener {
    group: ListenerName,
    /// The transport servers that have it.
    servers: Vec<ServerNumber>,
}

/// The state of all listeners of one connection manager.
pub struct ConnectionManager {
    listeners: OwnMap<ListenerName, Listener>,
    queues: OwnMap<ListenerName, Queue>,
    pending: OwnMap<ConnectionName, Pending>,
    /// Offers by age: when to look at them again.
    deadlines: VecDeque<(Instant, ConnectionName, u64)>,
    /// Saturated acceptors: when to try them again.
    retries: VecDeque<(Instant, ListenerName, Taker)>,
    actions: VecDeque<ToTransport>,
    /// Queues whose waiting connections may find an acceptor.
    to_assign: VecDeque<ListenerName>,
    claim_timeout_us: u64,
    serial: u64,
    counters: ManagerCounters,
}

/// What the connection manager has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ManagerCounters {
    /// Connections that came to a listener.
    pub arrived: u64,
    /// Offers sent to acceptors.
    pub offered: u64,
    /// Connections claimed.
    pub claimed: u64,
    /// Offers taken back, for whatever reason.
    pub revoked: u64,
    /// Offers that were not claimed in time.
    pub timed_out: u64,
    /// Offers that the process could not use (no descriptor left) or take (ring full).
    pub refused: u64,
}

/// Offers one acceptor may have out at a time; the others wait for a claim.
pub const OUTSTANDING_MAX: u32 = 128;

impl ConnectionManager {
    /// An empty manager; offers are reconsidered after `claim_timeout_us`.
    pub fn new(claim_timeout_us: u64) -> Self {
        ConnectionManager {
            listeners: OwnMap::default(),
            queues: OwnMap::default(),
            pending: OwnMap::default(),
            deadlines: VecDeque::new(),
            retries: VecDeque::new(),
            actions: VecDeque::new(),
            to_assign: VecDeque::new(),
            claim_timeout_us,
            serial: 0,
            counters: ManagerCounters::default(),
        }
    }

    /// What has been done so far.
    pub fn counters(&self) -> ManagerCounters {
        self.counters
    }

    /// What a transport server says. Afterwards `poll_action` may have something to do.
    pub fn handle(&mut self, now: Instant, message: ToManager) {
        match message {
            ToManager::ListenerOpened { listener, group, server } => {
                self.listener_opened(listener, group, server);
            }
            ToManager::ListenerClosed { listener, server } => {
                self.listener_closed(listener, server)
            }
            ToManager::Acceptor { listener, process } => {
                self.acceptor(Taker { listener, process });
            }
            ToManager::NotAcceptor { listener, process } => {
                self.not_acceptor(Taker { listener, process });
            }
            ToManager::Arrived { listener, connection } => self.arrived(listener, connection),
            ToManager::Claimed { connection } => self.claimed(connection),
            ToManager::Revoked { connection } => self.revoked(connection),
            ToManager::Refused { connection } => self.refused(connection),
            ToManager::OfferFailed { connection } => self.offer_failed(now, connection),
            ToManager::Gone { connection } => self.connection_gone(connection),
            ToManager::Served { .. } => {}
            ToManager::ProcessDied { process } => self.process_died(process),
            ToManager::ServerGone { server } => self.server_gone(server),
        }
    }

    /// What the connection manager of another server says about its applications.
    pub fn handle_offer(&mut self, _now: Instant, _from: ServerNumber, _offer: BetweenManagers) {}

    /// What the other connection managers are to be told. Call until it answers `None`.
    pub fn poll_offer(&mut self, _now: Instant) -> Option<BetweenManagers> {
        None
    }

    /// Connections that nobody has claimed, and listeners, are none.
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.queues.is_empty() && self.pending.is_empty()
    }

    fn listener_opened(
        &mut self,
        listener: ListenerName,
        group: ListenerName,
        server: ServerNumber,
    ) {
        let queues = &mut self.queues;
        let entry = self.listeners.entry(listener).or_insert_with(|| {
            queues.entry(group).or_default().listeners += 1;
            Listener { group, servers: Vec::new() }
        });
        if !entry.servers.contains(&server) {
            entry.servers.push(server);
        }
    }

    /// A listener goes from one server: the server's connections that nobody has claimed go with it
    /// (the transport server resets them). With the last server, or that of a process, its acceptors
    /// are none any more, and what came to other listeners of the group goes to others.
    fn listener_closed(&mut self, listener: ListenerName, server: ServerNumber) {
        let Some(entry) = self.listeners.get_mut(&listener) else { return };
        entry.servers.retain(|&other| other != server);
        let (group, last) = (entry.group, entry.servers.is_empty());
        let gone =
            |taker: Taker| taker.listener == listener && (last || taker.process.home() == server);
        if let Some(queue) = self.queues.get_mut(&group) {
            queue.acceptors.retain(|acceptor| !gone(acceptor.taker));
            queue.listeners -= u32::from(last);
        }
        if last {
            self.listeners.remove(&listener);
        }
        self.forget_waiting(|connection, pending| {
            pending.listener == listener && connection.server == server
        });
        self.revoke_where(|connection, pending, to| {
            gone(to) || pending.listener == listener && connection.server == server
        });
        self.forget_if_done(group);
    }

    fn arrived(&mut self, listener: ListenerName, connection: ConnectionName) {
        let Some(group) = self.group_of(listener) else { return };
        let Some(queue) = self.queues.get_mut(&group) else { return };
        self.counters.arrived += 1;
        queue.waiting.push_back(connection);
        queue.waiting_count += 1;
        self.pending.insert(connection, Pending { listener, group, stage: Stage::Waiting });
        self.to_assign.push_back(group);
    }

    fn connection_gone(&mut self, connection: ConnectionName) {
        let Some(pending) = self.pending.remove(&connection) else { return };
        match pending.stage {
            Stage::Waiting => {
                if let Some(queue) = self.queues.get_mut(&pending.group) {
                    queue.waiting_count = queue.waiting_count.saturating_sub(1);
                }
            }
            Stage::Offered { to, .. } | Stage::Revoking { to, .. } => {
                self.offer_ended(pending.group, to);
            }
        }
    }

    fn acceptor(&mut self, taker: Taker) {
        let Some(group) = self.group_of(taker.listener) else { return };
        let Some(queue) = self.queues.get_mut(&group) else { return };
        self.serial += 1;
        let registration = self.serial;
        let known = queue.acceptors.iter_mut().find(|acceptor| acceptor.taker == taker);
        if let Some(acceptor) = known {
            (acceptor.registration, acceptor.saturated, acceptor.late) =
                (registration, false, false);
        } else {
            // An offer that timed out may still be on its way back from this process.
            let out = self.pending.values().filter(|pending| pending.taker() == Some(taker));
            let outstanding = out.count() as u32;
            let (saturated, late) = (false, false);
            queue.acceptors.push(Acceptor { taker, outstanding, registration, saturated, late });
        }
        self.to_assign.push_back(group);
    }

    /// What was offered already stays offered.
    fn not_acceptor(&mut self, taker: Taker) {
        let Some(group) = self.group_of(taker.listener) else { return };
        if let Some(queue) = self.queues.get_mut(&group) {
            queue.acceptors.retain(|acceptor| acceptor.taker != taker);
        }
    }

    fn claimed(&mut self, connection: ConnectionName) {
        let Some(pending) = self.pending.remove(&connection) else { return };
        self.counters.claimed += 1;
        match pending.stage {
            Stage::Waiting => {
                if let Some(queue) = self.queues.get_mut(&pending.group) {
                    queue.waiting_count = queue.waiting_count.saturating_sub(1);
                }
            }
            Stage::Offered { to, .. } | Stage::Revoking { to, .. } => {
                if let Some(acceptor) = self.find_acceptor(pending.group, to) {
                    acceptor.saturated = false;
                }
                self.offer_ended(pending.group, to);
            }
        }
    }

    /// Back to the queue. A process that was too slow comes off the list here and not when its time
    /// was up: if it claims after that and before the revocation, it never learns that there was one,
    /// and would not register again.
    fn revoked(&mut self, connection: ConnectionName) {
        self.counters.revoked += 1;
        let stage = self.pending.get(&connection).map(|pending| pending.stage);
        if let Some(Stage::Revoking { to, registration, late: true }) = stage {
            self.drop_acceptor(connection, to, registration);
        }
        self.return_to_queue(connection);
    }

    fn refused(&mut self, connection: ConnectionName) {
        self.counters.refused += 1;
        let stage = self.pending.get(&connection).map(|pending| pending.stage);
        if let Some(
            Stage::Offered { to, registration, .. } | Stage::Revoking { to, registration, .. },
        ) = stage
        {
            self.drop_acceptor(connection, to, registration);
        }
        self.return_to_queue(connection);
    }

    /// Takes a process off the list, unless it has registered again since it was offered
    /// `connection`: then it may not know that it has to once more. (Its registration comes from
    /// its home, the end of the offer from the connection's server: in any order.)
    fn drop_acceptor(&mut self, connection: ConnectionName, taker: Taker, registration: u64) {
        let Some((group, _)) = self.offer_of(connection) else { return };
        if let Some(queue) = self.queues.get_mut(&group) {
            let same = |acceptor: &Acceptor| {
                acceptor.taker == taker && acceptor.registration == registration
            };
            queue.acceptors.retain(|acceptor| !same(acceptor));
        }
    }

    /// The process gets no more until it claims one or registers again, or some time has passed.
    fn offer_failed(&mut self, now: Instant, connection: ConnectionName) {
        self.counters.refused += 1;
        if let Some((group, to)) = self.offer_of(connection)
            && let Some(acceptor) = self.find_acceptor(group, to)
            && !acceptor.saturated
        {
            acceptor.saturated = true;
            self.retries.push_back((now.plus_us(self.claim_timeout_us), group, to));
        }
        self.return_to_queue(connection);
    }

    /// It accepts nothing any more, and all its offers are to be revoked.
    fn process_died(&mut self, process: ProcessName) {
        for queue in self.queues.values_mut() {
            queue.acceptors.retain(|acceptor| acceptor.taker.process != process);
        }
        self.revoke_where(|_, _, to| to.process == process);
    }

    /// Its connections are gone, its listeners, and the processes whose home it is.
    fn server_gone(&mut self, server: ServerNumber) {
        let theirs = |connection: &ConnectionName| connection.server == server;
        let mut gone: Vec<_> = self.pending.keys().copied().filter(theirs).collect();
        gone.sort_unstable();
        for connection in gone {
            self.connection_gone(connection);
        }
        for queue in self.queues.values_mut() {
            queue.acceptors.retain(|acceptor| acceptor.taker.process.home() != server);
        }
        self.revoke_where(|_, _, to| to.process.home() == server);
        let had = |entry: &Listener| entry.servers.contains(&server);
        let names = self.listeners.iter().filter(|(_, entry)| had(entry)).map(|(name, _)| *name);
        let names: Vec<_> = names.collect();
        for listener in names {
            self.listener_closed(listener, server);
        }
    }

    /// Revokes offers that were not claimed in time, if somebody else would take them, and tries
    /// those again that could take no more. At most 64 of each a call.
    pub fn handle_timers(&mut self, now: Instant) {
        for _ in 0..64 {
            let Some(&(due, group, taker)) = self.retries.front() else { break };
            if due > now {
                break;
            }
            self.retries.pop_front();
            if let Some(acceptor) = self.find_acceptor(group, taker) {
                acceptor.saturated = false;
                self.to_assign.push_back(group);
            }
        }
        for _ in 0..64 {
            let Some(&(due, connection, serial)) = self.deadlines.front() else { return };
            if due > now {
                return;
            }
            self.deadlines.pop_front();
            self.reconsider(now, connection, serial);
        }
    }

    /// When `handle_timers` has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.deadlines.front().map(|&(due, _, _)| due);
        let retry = self.retries.front().map(|&(due, _, _)| due);
        deadline.into_iter().chain(retry).min()
    }

    /// What to do next; assigns waiting connections on the way. Call until it answers `None`.
    pub fn poll_action(&mut self, now: Instant) -> Option<ToTransport> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            let group = *self.to_assign.front()?;
            if !self.assign_one(now, group) {
                self.to_assign.pop_front();
            }
        }
    }

    /// Connections of a queue that no process has been offered.
    pub fn waiting(&self, group: ListenerName) -> usize {
        self.queues.get(&group).map_or(0, |queue| queue.waiting_count)
    }

    /// The processes that accept from a queue now.
    pub fn acceptors(&self, group: ListenerName) -> impl Iterator<Item = ProcessName> + '_ {
        let queue = self.queues.get(&group).into_iter();
        queue.flat_map(|queue| queue.acceptors.iter().map(|acceptor| acceptor.taker.process))
    }

    /// Gives the oldest waiting connection to the acceptor with the fewest outstanding offers,
    /// round robin among equals. False when there is nothing to give or nobody to give it to.
    fn assign_one(&mut self, now: Instant, group: ListenerName) -> bool {
        let Some(queue) = self.queues.get_mut(&group) else { return false };
        let Some(index) = queue.choose_acceptor() else { return false };
        let Some(connection) = queue.waiting.pop_front() else { return false };
        let Some(pending) = self.pending.get_mut(&connection) else { return true };
        if pending.stage != Stage::Waiting {
            return true;
        }
        queue.waiting_count = queue.waiting_count.saturating_sub(1);
        queue.next = index + 1;
        queue.offered += 1;
        let acceptor = &mut queue.acceptors[index];
        acceptor.outstanding += 1;
        let (to, registration) = (acceptor.taker, acceptor.registration);
        self.serial += 1;
        pending.stage = Stage::Offered { to, registration, serial: self.serial };
        self.deadlines.push_back((now.plus_us(self.claim_timeout_us), connection, self.serial));
        self.counters.offered += 1;
        let Taker { listener, process } = to;
        self.actions.push_back(ToTransport::Offer { listener, connection, process });
        true
    }

    /// An offer has been out for the claim time-out. With nobody else to take it, it stays where
    /// it is: taking it from the only acceptor would help no one.
    fn reconsider(&mut self, now: Instant, connection: ConnectionName, serial: u64) {
        let Some(pending) = self.pending.get_mut(&connection) else { return };
        let Stage::Offered { to, registration, serial: current } = pending.stage else { return };
        let Some(queue) = self.queues.get_mut(&pending.group) else { return };
        if current != serial {
            return;
        }
        if !queue.acceptors.iter().any(|other| other.taker != to && other.can_take()) {
            self.deadlines.push_back((now.plus_us(self.claim_timeout_us), connection, serial));
            return;
        }
        // The paper drops a slow acceptor from the list; it registers again when it comes back.
        if let Some(acceptor) = queue.acceptors.iter_mut().find(|acceptor| acceptor.taker == to) {
            acceptor.late = true;
        }
        pending.stage = Stage::Revoking { to, registration, late: true };
        self.counters.timed_out += 1;
        self.actions.push_back(ToTransport::Revoke { connection, process: to.process });
    }

    /// Starts the revocation of all offers for which `which` says so.
    fn revoke_where(&mut self, which: impl Fn(&ConnectionName, &Pending, Taker) -> bool) {
        for (&connection, pending) in &mut self.pending {
            let Stage::Offered { to, registration, .. } = pending.stage else { continue };
            if which(&connection, pending, to) {
                pending.stage = Stage::Revoking { to, registration, late: false };
                self.actions.push_back(ToTransport::Revoke { connection, process: to.process });
            }
        }
    }

    /// Forgets the waiting connections for which `which` says so.
    fn forget_waiting(&mut self, which: impl Fn(&ConnectionName, &Pending) -> bool) {
        let queues = &mut self.queues;
        self.pending.retain(|connection, pending| {
            let goes = pending.stage == Stage::Waiting && which(connection, pending);
            if goes && let Some(queue) = queues.get_mut(&pending.group) {
                queue.waiting_count = queue.waiting_count.saturating_sub(1);
            }
            !goes
        });
    }

    /// Back to the front of its queue, as it has waited longer than the others; forgotten if its
    /// server has closed the listener, which resets it.
    fn return_to_queue(&mut self, connection: ConnectionName) {
        let Some((group, to)) = self.offer_of(connection) else { return };
        let Some(pending) = self.pending.get_mut(&connection) else { return };
        let listener = pending.listener;
        let open = |entry: &Listener| entry.servers.contains(&connection.server);
        if self.listeners.get(&listener).is_some_and(open) {
            pending.stage = Stage::Waiting;
            if let Some(queue) = self.queues.get_mut(&group) {
                queue.waiting.push_front(connection);
                queue.waiting_count += 1;
            }
        } else {
            self.pending.remove(&connection);
        }
        self.offer_ended(group, to);
    }

    fn offer_ended(&mut self, group: ListenerName, to: Taker) {
        let Some(queue) = self.queues.get_mut(&group) else { return };
        queue.offered = queue.offered.saturating_sub(1);
        if let Some(acceptor) = queue.acceptors.iter_mut().find(|acceptor| acceptor.taker == to) {
            acceptor.outstanding = acceptor.outstanding.saturating_sub(1);
            // However it ended, if that did not take it off the list.
            acceptor.late = false;
        }
        if !queue.waiting.is_empty() {
            self.to_assign.push_back(group);
        }
        self.forget_if_done(group);
    }

    fn forget_if_done(&mut self, group: ListenerName) {
        if self.queues.get(&group).is_some_and(|queue| queue.listeners == 0 && queue.offered == 0) {
            self.queues.remove(&group);
        }
    }

    fn group_of(&self, listener: ListenerName) -> Option<ListenerName> {
        Some(self.listeners.get(&listener)?.group)
    }

    fn offer_of(&self, connection: ConnectionName) -> Option<(ListenerName, Taker)> {
        let pending = self.pending.get(&connection)?;
        Some((pending.group, pending.taker()?))
    }

    fn find_acceptor(&mut self, group: ListenerName, taker: Taker) -> Option<&mut Acceptor> {
        let queue = self.queues.get_mut(&group)?;
        queue.acceptors.iter_mut().find(|acceptor| acceptor.taker == taker)
    }
}

impl Pending {
    fn taker(&self) -> Option<Taker> {
        match self.stage {
            Stage::Waiting => None,
            Stage::Offered { to, .. } | Stage::Revoking { to, .. } => Some(to),
        }
    }
}

impl Acceptor {
    fn can_take(&self) -> bool {
        !self.saturated && !self.late && self.outstanding < OUTSTANDING_MAX
    }
}

impl Queue {
    fn choose_acceptor(&self) -> Option<usize> {
        let count = self.acceptors.len();
        (0..count)
            .map(|step| (self.next + step) % count)
            .filter(|&index| self.acceptors[index].can_take())
            .min_by_key(|&index| self.acceptors[index].outstanding)
    }
}

#[cfg(test)]
mod tests;
