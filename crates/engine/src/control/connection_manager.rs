//! The connection manager: listeners, acceptors, and the speculative accept handshake.
//!
//! A pure state machine. It owns which process is offered which connection; it touches no memory
//! and sends nothing: `poll_action` says what the transport server shall do, and the transport
//! server reports back. Called by `server` between bursts. One compare-and-swap on the offer word
//! of a connection (`transport_server`) decides between claim and revocation, so a connection is
//! never lost and never given twice, whatever dies when; this file only follows those decisions.
//!
//! ```text
//!   arrived ---> Waiting --offer--> Offered --claimed--> (the process's; forgotten here)
//!                   ^                  | time-out while another acceptor waits,
//!                   |                  | process dead, listener closed
//!                   +---- revoked -- Revoking --claimed--> (it was faster: the process's)
//! ```

use std::collections::VecDeque;

use super::OwnMap;
use crate::socket_id::SocketId;
use crate::time::Instant;

/// A process attached to the service, as numbered by `processes`.
pub type ProcessId = u32;

/// What the connection manager wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send CONNECTION-AVAILABLE for `connection` to `process`; report `offer_failed` if that
    /// cannot be done now.
    Offer {
        /// The listener the connection came to.
        listener: SocketId,
        /// The established connection.
        connection: SocketId,
        /// The acceptor chosen for it.
        process: ProcessId,
    },
    /// Take the offer of `connection` back; report `revoked` or, if the process was faster,
    /// `claimed`.
    Revoke {
        /// The connection offered.
        connection: SocketId,
        /// The process that has not claimed it.
        process: ProcessId,
    },
}

/// Where a connection is on its way to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Offered { process: ProcessId, serial: u64 },
    Revoking { process: ProcessId },
}

struct Pending {
    listener: SocketId,
    stage: Stage,
}

struct Acceptor {
    process: ProcessId,
    outstanding: u32,
    /// The process took no more offers; cleared when it claims one or registers again.
    saturated: bool,
}

#[derive(Default)]
struct Listener {
    acceptors: Vec<Acceptor>,
    /// Where the round robin among equals goes on.
    next: usize,
    /// Waiting connections, oldest first; ids of connections that are gone stay until their turn.
    waiting: VecDeque<SocketId>,
    /// How many of `waiting` still wait.
    waiting_count: usize,
    /// Offers of this listener that are out; a closed listener is forgotten when it is zero.
    offered: u32,
    closed: bool,
}

/// The state of all listeners of one connection manager.
pub struct ConnectionManager {
    listeners: OwnMap<SocketId, Listener>,
    pending: OwnMap<SocketId, Pending>,
    /// Offers by age: when to look at them again.
    deadlines: VecDeque<(Instant, SocketId, u64)>,
    actions: VecDeque<Action>,
    /// Listeners whose waiting connections may find an acceptor.
    to_assign: VecDeque<SocketId>,
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
            pending: OwnMap::default(),
            deadlines: VecDeque::new(),
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

    /// A listener exists from now on.
    pub fn listener_opened(&mut self, listener: SocketId) {
        self.listeners.entry(listener).or_default();
    }

    /// A listener goes: its offers are to be revoked, its waiting connections are forgotten (the
    /// transport server resets whatever is still unclaimed after the revocations).
    pub fn listener_closed(&mut self, listener: SocketId) {
        let Some(entry) = self.listeners.get_mut(&listener) else { return };
        entry.closed = true;
        entry.acceptors.clear();
        entry.waiting_count = 0;
        for connection in std::mem::take(&mut entry.waiting) {
            self.pending.remove(&connection);
        }
        self.revoke_where(|pending, _| pending.listener == listener);
        self.forget_if_done(listener);
    }

    /// A connection of `listener` completed its handshake.
    pub fn arrived(&mut self, listener: SocketId, connection: SocketId) {
        let Some(entry) = self.listeners.get_mut(&listener).filter(|entry| !entry.closed) else {
            return;
        };
        self.counters.arrived += 1;
        entry.waiting.push_back(connection);
        entry.waiting_count += 1;
        self.pending.insert(connection, Pending { listener, stage: Stage::Waiting });
        self.to_assign.push_back(listener);
    }

    /// The transport server has forgotten a connection (reset by the peer before it was claimed).
    pub fn connection_gone(&mut self, connection: SocketId) {
        let Some(pending) = self.pending.remove(&connection) else { return };
        if pending.stage == Stage::Waiting {
            if let Some(entry) = self.listeners.get_mut(&pending.listener) {
                entry.waiting_count = entry.waiting_count.saturating_sub(1);
            }
        } else {
            self.offer_ended(&pending);
        }
    }

    /// ACCEPT-CONNECTION: `process` accepts from `listener` from now on.
    pub fn acceptor(&mut self, process: ProcessId, listener: SocketId) {
        let Some(entry) = self.listeners.get_mut(&listener).filter(|entry| !entry.closed) else {
            return;
        };
        match entry.acceptors.iter_mut().find(|acceptor| acceptor.process == process) {
            Some(acceptor) => acceptor.saturated = false,
            None => {
                // An offer that timed out may still be on its way back from this process.
                let outstanding =
                    self.pending.values().filter(|p| p.offered_to(process, listener)).count();
                entry.acceptors.push(Acceptor {
                    process,
                    outstanding: outstanding as u32,
                    saturated: false,
                });
            }
        }
        self.to_assign.push_back(listener);
    }

    /// The opposite of `acceptor`; what was offered already stays offered.
    pub fn not_acceptor(&mut self, process: ProcessId, listener: SocketId) {
        if let Some(entry) = self.listeners.get_mut(&listener) {
            entry.acceptors.retain(|acceptor| acceptor.process != process);
        }
    }

    /// CLAIM-CONNECTION, or a revocation that came too late. True if the connection was pending.
    pub fn claimed(&mut self, connection: SocketId) -> bool {
        let Some(pending) = self.pending.remove(&connection) else { return false };
        self.counters.claimed += 1;
        if let Some(process) = pending.process() {
            if let Some(acceptor) = self.find_acceptor(pending.listener, process) {
                acceptor.saturated = false;
            }
            self.offer_ended(&pending);
        }
        true
    }

    /// The offer of `connection` has been taken back: it waits for another acceptor. False if its
    /// listener is closed, and so nobody will ever take it.
    pub fn revoked(&mut self, connection: SocketId) -> bool {
        self.counters.revoked += 1;
        self.return_to_queue(connection)
    }

    /// The process cannot make a descriptor for a connection it was offered. The offer word has
    /// been settled; the process has to register again before it is offered more.
    pub fn refused(&mut self, connection: SocketId) -> bool {
        self.counters.refused += 1;
        if let Some((listener, process)) = self.offer_of(connection) {
            self.not_acceptor(process, listener);
        }
        self.return_to_queue(connection)
    }

    /// The offer could not be delivered (ring full, no memory): the process gets no more until it
    /// claims one or registers again.
    pub fn offer_failed(&mut self, connection: SocketId) -> bool {
        self.counters.refused += 1;
        if let Some((listener, process)) = self.offer_of(connection)
            && let Some(acceptor) = self.find_acceptor(listener, process)
        {
            acceptor.saturated = true;
        }
        self.return_to_queue(connection)
    }

    /// A process is dead: it accepts nothing any more, and all its offers are to be revoked.
    pub fn process_died(&mut self, process: ProcessId) {
        for entry in self.listeners.values_mut() {
            entry.acceptors.retain(|acceptor| acceptor.process != process);
        }
        self.revoke_where(|_, offered_to| offered_to == process);
    }

    /// Revokes offers that were not claimed in time, if somebody else would take them. At most 64
    /// a call.
    pub fn handle_timers(&mut self, now: Instant) {
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
        self.deadlines.front().map(|&(due, _, _)| due)
    }

    /// What to do next; assigns waiting connections on the way. Call until it answers `None`.
    pub fn poll_action(&mut self, now: Instant) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            let listener = *self.to_assign.front()?;
            if !self.assign_one(now, listener) {
                self.to_assign.pop_front();
            }
        }
    }

    /// Connections of `listener` that no process has been offered.
    pub fn waiting(&self, listener: SocketId) -> usize {
        self.listeners.get(&listener).map_or(0, |entry| entry.waiting_count)
    }

    /// The processes that accept from `listener` now.
    pub fn acceptors(&self, listener: SocketId) -> impl Iterator<Item = ProcessId> + '_ {
        self.listeners
            .get(&listener)
            .into_iter()
            .flat_map(|entry| entry.acceptors.iter().map(|acceptor| acceptor.process))
    }

    /// Gives the oldest waiting connection to the acceptor with the fewest outstanding offers,
    /// round robin among equals. False when there is nothing to give or nobody to give it to.
    fn assign_one(&mut self, now: Instant, listener: SocketId) -> bool {
        let Some(entry) = self.listeners.get_mut(&listener) else { return false };
        let Some(index) = entry.choose_acceptor() else { return false };
        let Some(connection) = entry.waiting.pop_front() else { return false };
        if !self.pending.get(&connection).is_some_and(|pending| pending.stage == Stage::Waiting) {
            return true;
        }
        entry.waiting_count = entry.waiting_count.saturating_sub(1);
        entry.next = index + 1;
        entry.offered += 1;
        let acceptor = &mut entry.acceptors[index];
        acceptor.outstanding += 1;
        let process = acceptor.process;
        self.serial += 1;
        let stage = Stage::Offered { process, serial: self.serial };
        self.pending.insert(connection, Pending { listener, stage });
        self.deadlines.push_back((now.plus_us(self.claim_timeout_us), connection, self.serial));
        self.counters.offered += 1;
        self.actions.push_back(Action::Offer { listener, connection, process });
        true
    }

    /// An offer has been out for the claim time-out. With nobody else to take it, it stays where
    /// it is: taking it from the only acceptor would help no one.
    fn reconsider(&mut self, now: Instant, connection: SocketId, serial: u64) {
        let Some(pending) = self.pending.get_mut(&connection) else { return };
        let Stage::Offered { process, serial: current } = pending.stage else { return };
        let Some(entry) = self.listeners.get_mut(&pending.listener) else { return };
        if current != serial {
            return;
        }
        if !entry.acceptors.iter().any(|other| other.process != process && other.can_take()) {
            self.deadlines.push_back((now.plus_us(self.claim_timeout_us), connection, serial));
            return;
        }
        // The paper drops a slow acceptor from the list; it registers again when it comes back.
        entry.acceptors.retain(|acceptor| acceptor.process != process);
        pending.stage = Stage::Revoking { process };
        self.counters.timed_out += 1;
        self.actions.push_back(Action::Revoke { connection, process });
    }

    /// Starts the revocation of all offers for which `which` says so.
    fn revoke_where(&mut self, which: impl Fn(&Pending, ProcessId) -> bool) {
        for (&connection, pending) in &mut self.pending {
            let Stage::Offered { process, .. } = pending.stage else { continue };
            if which(pending, process) {
                pending.stage = Stage::Revoking { process };
                self.actions.push_back(Action::Revoke { connection, process });
            }
        }
    }

    /// Back to the front of its queue: it has waited longer than the others.
    fn return_to_queue(&mut self, connection: SocketId) -> bool {
        let Some(pending) = self.pending.remove(&connection) else { return false };
        if pending.process().is_none() {
            self.pending.insert(connection, pending);
            return true;
        }
        let listener = pending.listener;
        self.offer_ended(&pending);
        let Some(entry) = self.listeners.get_mut(&listener).filter(|entry| !entry.closed) else {
            return false;
        };
        entry.waiting.push_front(connection);
        entry.waiting_count += 1;
        self.pending.insert(connection, Pending { listener, stage: Stage::Waiting });
        self.to_assign.push_back(listener);
        true
    }

    fn offer_ended(&mut self, pending: &Pending) {
        let Some(process) = pending.process() else { return };
        if let Some(acceptor) = self.find_acceptor(pending.listener, process) {
            acceptor.outstanding = acceptor.outstanding.saturating_sub(1);
        }
        if let Some(entry) = self.listeners.get_mut(&pending.listener) {
            entry.offered = entry.offered.saturating_sub(1);
            if !entry.waiting.is_empty() {
                self.to_assign.push_back(pending.listener);
            }
        }
        self.forget_if_done(pending.listener);
    }

    fn forget_if_done(&mut self, listener: SocketId) {
        if self.listeners.get(&listener).is_some_and(|entry| entry.closed && entry.offered == 0) {
            self.listeners.remove(&listener);
        }
    }

    fn offer_of(&self, connection: SocketId) -> Option<(SocketId, ProcessId)> {
        let pending = self.pending.get(&connection)?;
        Some((pending.listener, pending.process()?))
    }

    fn find_acceptor(&mut self, listener: SocketId, process: ProcessId) -> Option<&mut Acceptor> {
        let entry = self.listeners.get_mut(&listener)?;
        entry.acceptors.iter_mut().find(|acceptor| acceptor.process == process)
    }
}

impl Pending {
    fn process(&self) -> Option<ProcessId> {
        match self.stage {
            Stage::Waiting => None,
            Stage::Offered { process, .. } | Stage::Revoking { process } => Some(process),
        }
    }

    fn offered_to(&self, process: ProcessId, listener: SocketId) -> bool {
        self.listener == listener && self.process() == Some(process)
    }
}

impl Acceptor {
    fn can_take(&self) -> bool {
        !self.saturated && self.outstanding < OUTSTANDING_MAX
    }
}

impl Listener {
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
