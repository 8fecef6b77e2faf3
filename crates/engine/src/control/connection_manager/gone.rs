//! What becomes of connections and acceptors when a listener, a process or a server is gone, and of the names
//! that they leave. A part of [`connection_manager`](super); read that first.

use super::super::messages::ToTransport;
use super::super::names::{ConnectionName, ListenerName, ProcessName, ServerNumber};
use super::super::queue::{Acceptor, Source, Taker};
use super::{ConnectionManager, Listener, Pending, Stage, open};

/// Names of connections that are gone which a queue may have beside as many as wait.
const GONE_MAX: usize = 64;

impl ConnectionManager {
    /// A listener goes from one server: the server's connections that nobody has claimed go with it
    /// (the transport server resets them). With the last server, or that of a process, its acceptors
    /// are none any more, and what came to other listeners of the group goes to others.
    pub(super) fn listener_closed(&mut self, listener: ListenerName, server: ServerNumber) {
        let Some((group, last)) = self.leave_listener(listener, server) else { return };
        let homes = self.homes;
        let gone = |taker: Taker| {
            taker.listener == listener && (last || taker.process.home_among(homes) == server)
        };
        self.forget_waiting(|connection, pending| {
            pending.listener == listener && connection.server == server
        });
        self.revoke_where(|connection, pending, to| {
            gone(to) || pending.listener == listener && connection.server == server
        });
        self.forget_if_done(group);
    }

    /// Takes a server off a listener, with the acceptors there. The queue, and whether that was the last server.
    fn leave_listener(
        &mut self,
        listener: ListenerName,
        server: ServerNumber,
    ) -> Option<(ListenerName, bool)> {
        let entry = self.listeners.get_mut(&listener)?;
        entry.servers.retain(|&other| other != server);
        let (group, last, homes) = (entry.group, entry.servers.is_empty(), self.homes);
        let gone = |taker: Taker| {
            taker.listener == listener && (last || taker.process.home_among(homes) == server)
        };
        if let Some(queue) = self.queues.get_mut(&group) {
            open::drop_from(queue, &mut self.open, |acceptor| gone(acceptor.taker));
            queue.listeners -= u32::from(last);
        }
        if last {
            self.listeners.remove(&listener);
        }
        self.may_announce(group);
        Some((group, last))
    }

    /// It accepts nothing any more, and all its offers are to be revoked.
    pub(super) fn process_died(&mut self, process: ProcessName) {
        self.drop_acceptors(|acceptor| acceptor.taker.process == process);
        self.revoke_where(|_, _, to| to.process == process);
    }

    /// Its connections are gone, its listeners, and the processes whose home it is.
    pub(super) fn server_gone(&mut self, server: ServerNumber) {
        let theirs = |connection: &ConnectionName| connection.server == server;
        let mut gone: Vec<_> = self.pending.keys().copied().filter(theirs).collect();
        gone.sort_unstable();
        for connection in gone {
            self.connection_gone(connection);
        }
        let homes = self.homes;
        self.drop_acceptors(|acceptor| acceptor.taker.process.home_among(homes) == server);
        for queue in self.queues.values_mut() {
            for acceptor in &mut queue.acceptors {
                if let Source::Local(estimator) = &mut acceptor.source {
                    estimator.forget_open(server);
                }
            }
        }
        self.open.retain(|_, open| {
            open.set(server, 0);
            open.total() > 0
        });
        let had = |entry: &Listener| entry.servers.contains(&server);
        let names = self.listeners.iter().filter(|(_, entry)| had(entry)).map(|(name, _)| *name);
        let mut names: Vec<ListenerName> = names.collect();
        names.sort_unstable();
        let (mut ended, mut groups) = (Vec::new(), Vec::new());
        for listener in names {
            let Some((group, last)) = self.leave_listener(listener, server) else { continue };
            groups.push(group);
            ended.extend(last.then_some(listener));
        }
        // Once for all listeners: there may be a thousand, and as many connections.
        self.revoke_where(|_, _, to| {
            to.process.home_among(homes) == server || ended.binary_search(&to.listener).is_ok()
        });
        groups.into_iter().for_each(|group| self.forget_if_done(group));
    }

    /// Forgets acceptors of ours.
    pub(super) fn drop_acceptors(&mut self, which: impl Fn(&Acceptor) -> bool) {
        let mut changed = Vec::new();
        for (&group, queue) in &mut self.queues {
            if open::drop_from(queue, &mut self.open, &which) {
                changed.push(group);
            }
        }
        changed.sort_unstable();
        for group in changed {
            self.may_announce(group);
        }
    }

    /// Starts the revocation of all offers for which `which` says so.
    pub(super) fn revoke_where(
        &mut self,
        which: impl Fn(&ConnectionName, &Pending, Taker) -> bool,
    ) {
        for (&connection, pending) in &mut self.pending {
            let Stage::Offered { to, registration } = pending.stage else { continue };
            if which(&connection, pending, to) {
                pending.stage = Stage::Revoking { to, registration, late: false };
                self.actions.push_back(ToTransport::Revoke { connection, process: to.process });
            }
        }
    }

    /// Forgets the waiting connections for which `which` says so.
    pub(super) fn forget_waiting(&mut self, which: impl Fn(&ConnectionName, &Pending) -> bool) {
        let queues = &mut self.queues;
        let mut changed = Vec::new();
        self.pending.retain(|connection, pending| {
            let goes = pending.waits() && which(connection, pending);
            if goes && let Some(queue) = queues.get_mut(&pending.group) {
                queue.waiting_count = queue.waiting_count.saturating_sub(1);
                changed.extend((changed.last() != Some(&pending.group)).then_some(pending.group));
            }
            !goes
        });
        changed.into_iter().for_each(|group| self.forget_gone(group));
    }

    /// Names of connections that are gone stay in the queue until their turn, but no more of them than there are
    /// others: it may be long until the first finds an acceptor.
    pub(super) fn forget_gone(&mut self, group: ListenerName) {
        let Some(queue) = self.queues.get_mut(&group) else { return };
        if queue.waiting.len() > 2 * queue.waiting_count + GONE_MAX {
            let pending = &self.pending;
            let waits = |one: &ConnectionName| pending.get(one).is_some_and(Pending::waits);
            queue.waiting.retain(waits);
        }
    }
}
