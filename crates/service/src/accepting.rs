//! Accepting: carries out what the connection manager decides, on the offer words of connections.
//!
//! The transport server's half of the speculative accept handshake. Called by `server` once a turn
//! (`run_manager`), by `requests` for CLAIM and REFUSE, and through `conversation` for what other servers
//! say. Read `haypile_engine::control::connection_manager` first.

use haypile_engine::control::connection_manager::ProcessId;
use haypile_engine::control::messages::{ToManager, ToTransport};
use haypile_engine::control::names::{ConnectionName, ListenerName, ProcessName};
use haypile_engine::{Close, Instant, SocketId};
use haypile_shm::messages::{Offer, SocketKind, ready};
use haypile_shm::sys::cycle_counter;

use crate::server::Core;
use crate::slab::Key;
use crate::sockets::{Offered, Served};
use crate::times;

/// What other managers are told of applications in one turn, at most: a new one hears of every listener, and each of
/// them hears it.
pub(crate) const OFFERS_AT_ONCE: usize = 64;

impl Core {
    /// Carries out everything the connection manager wants done now, bounded by the connections that
    /// wait, and tells other managers some of what there is to say.
    // A row of docs/cost.md.
    #[inline(never)]
    pub(crate) fn run_manager(&mut self, now: Instant) {
        if self.manager.is_quiet(now) {
            return;
        }
        let began = cycle_counter();
        self.manager.handle_timers(now);
        while let Some(action) = self.manager.poll_action(now) {
            let (ToTransport::Offer { connection, .. } | ToTransport::Revoke { connection, .. }) =
                action;
            if connection.server == self.managers.server() {
                self.carry_out(now, action);
            } else {
                self.managers.to_transport(connection.server, action);
            }
        }
        if self.manager.may_have_offers(now) {
            let began = cycle_counter();
            for _ in 0..OFFERS_AT_ONCE {
                let Some(offer) = self.manager.poll_offer(now) else { break };
                self.managers.to_managers(offer);
            }
            self.times.offers += times::since(began);
        }
        self.times.manager += times::since(began);
    }

    /// Does what a connection manager wants done with a connection of ours, and tells it how it
    /// went.
    pub(crate) fn carry_out(&mut self, now: Instant, action: ToTransport) {
        match action {
            ToTransport::Offer { listener, connection, process } => {
                if !self.offer(now, listener, connection.id, process) {
                    self.tell_own_manager(now, ToManager::OfferFailed { connection });
                }
            }
            ToTransport::Revoke { connection, process } => self.revoke(now, connection, process),
        }
    }

    /// What every server calls a connection of ours.
    pub(crate) fn connection_name(&self, id: SocketId) -> ConnectionName {
        ConnectionName { server: self.managers.server(), id }
    }

    /// CONNECTION-AVAILABLE: the connection's bytes go to the acceptor's domain, then the message.
    fn offer(
        &mut self,
        now: Instant,
        listener: ListenerName,
        connection: SocketId,
        process: ProcessName,
    ) -> bool {
        let (Some(&by), Some(key), Some(process)) = (
            self.store.listeners.get(&listener),
            self.store.key_of(connection),
            self.processes.named(process),
        ) else {
            return false;
        };
        let domain = self.processes.get(process).map(|process| process.domain);
        let Some(listener) = self.store.sockets.get(by) else { return false };
        // A process by that number may be another than the one meant, which has died.
        let Some(domain) = domain.filter(|domain| listener.domain == Some(*domain)) else {
            return false;
        };
        let Some((listener_slot, listener_generation)) = listener.name() else { return false };
        let unclaimed = |key| {
            let socket = self.store.sockets.get(key);
            socket.and_then(|socket| socket.accepting.as_ref()).is_some_and(|a| a.offered.is_none())
        };
        if !unclaimed(key) || !self.store.place_in_domain(key, domain) {
            return false;
        }
        let Some(socket) = self.store.sockets.get_mut(key) else { return false };
        let Some(stream) = &mut socket.stream else { return false };
        stream.offer();
        let message = Offer {
            listener: listener_slot,
            listener_generation,
            slot: stream.slot(),
            generation: stream.generation(),
        };
        if !self.processes.push_offer(process, by, &message) {
            self.store.leave_domain(key);
            return false;
        }
        if let Some(accepting) = &mut socket.accepting {
            accepting.offered = Some(Offered { process, by, since: now });
            if let Some(came) = accepting.came.take() {
                self.times.assigning += times::since(came.get());
                self.times.assigned += 1;
            }
        }
        self.announce_to(by, Some(process), ready::IN);
        true
    }

    /// Takes an offer back, unless the application was faster. The end of an offer is said once: if
    /// it had ended before the manager's wish came (the process died here, or could not be reached),
    /// the connection waits again at the manager, or is offered to another by now.
    fn revoke(&mut self, now: Instant, connection: ConnectionName, process: ProcessName) {
        let key = self.store.key_of(connection.id);
        let accepting = key
            .and_then(|key| self.store.sockets.get(key))
            .and_then(|socket| socket.accepting.as_ref())
            .map(|accepting| (accepting.listener, accepting.offered));
        let (Some(key), Some((came_to, offered))) = (key, accepting) else {
            return self.tell_own_manager(now, ToManager::Gone { connection });
        };
        let holder = offered.and_then(|offered| self.processes.get(offered.process));
        if holder.map(|holder| holder.name) != Some(process) {
            return;
        }
        if self.take_back(now, key) {
            self.tell_own_manager(now, ToManager::Revoked { connection });
            self.end_if_listener_is_gone(now, came_to, connection.id);
        }
    }

    /// Ends the offer of a connection that nobody has claimed. True: it is nobody's; false: the
    /// application was faster.
    pub(crate) fn take_back(&mut self, now: Instant, key: Key) -> bool {
        let Some(socket) = self.store.sockets.get_mut(key) else { return true };
        let offered = socket.accepting.as_ref().and_then(|accepting| accepting.offered);
        let Some(Offered { process, .. }) = offered else { return true };
        match socket.stream.as_mut().map(|stream| stream.revoke()) {
            Some(Ok(false)) => {
                self.settle_claim(now, key, process);
                return false;
            }
            Some(Err(_)) => self.processes.mark_hostile(process),
            Some(Ok(true)) | None => {}
        }
        self.withdraw(key);
        true
    }

    /// A connection goes back to nobody: its record in the domain is void, its bytes are private.
    fn withdraw(&mut self, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        if let Some(accepting) = &mut socket.accepting
            && let Some(Offered { process, by, .. }) = accepting.offered.take()
        {
            self.processes.offer_settled(process, by);
        }
        self.store.leave_domain(key);
    }

    /// Nobody will ever take a connection whose listener is gone.
    fn end_if_listener_is_gone(&mut self, now: Instant, listener: Key, id: SocketId) {
        if self.store.sockets.get(listener).is_none() {
            self.shard.close(now, id, Close::Abort);
        }
    }

    /// The connection belongs to `process` from now on.
    fn settle_claim(&mut self, now: Instant, key: Key, process: ProcessId) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        let id = socket.id;
        let offered = socket.accepting.as_ref().and_then(|accepting| accepting.offered);
        let mut served = None;
        if let Some(Offered { by, since, .. }) = offered {
            self.processes.offer_settled(process, by);
            let listener = self.store.sockets.get(by).and_then(|socket| socket.listener);
            let name = self.processes.get(process).map(|process| process.name);
            let named = listener.zip(name);
            served = named.map(|(listener, process)| Served { process, listener, since });
        }
        self.store.claimed(key, process, served);
        if let Some(process) = self.processes.get_mut(process) {
            process.sockets.insert(key);
        }
        let counts = served.is_some_and(|served| self.has_our_manager(served.process));
        if let Some(served) = served.filter(|_| !counts) {
            self.store.open.note(&served);
        }
        if let Some(id) = id {
            let connection = self.connection_name(id);
            self.tell_own_manager(now, ToManager::Claimed { connection, counts });
            self.shard.claimed(id);
        }
        self.touch(key);
    }

    /// The connection manager that hears of our connections is that of a process's home.
    fn has_our_manager(&self, process: ProcessName) -> bool {
        let manager_of = |server| self.managers.manager_of(server);
        manager_of(self.rings.roles().home_of(process)) == manager_of(self.managers.server())
    }

    /// The connection that a CLAIM or REFUSE of `process` is about, if its offer word says claimed
    /// and it was offered to that process. Another state is a lie.
    fn claimed_by(&mut self, process: ProcessId, key: Key) -> bool {
        use haypile_shm::stream::OfferState;
        let Some(socket) = self.store.sockets.get(key) else { return false };
        let Some(accepting) = &socket.accepting else { return false };
        let state = socket.stream.as_ref().map(|stream| stream.offer_state());
        let offered = accepting.offered.is_some_and(|offered| offered.process == process);
        if offered && state == Some(Ok(OfferState::Claimed)) {
            return true;
        }
        self.processes.mark_hostile(process);
        false
    }

    /// CLAIM. (One that comes after the connection was found claimed already says nothing new.)
    pub(crate) fn claim(&mut self, now: Instant, process: ProcessId, key: Key) {
        let pending = self.store.sockets.get(key).is_some_and(|socket| socket.accepting.is_some());
        if pending && self.claimed_by(process, key) {
            self.settle_claim(now, key, process);
        }
    }

    /// REFUSE: claimed, but the process has no descriptor for it. Somebody else shall have it.
    pub(crate) fn refuse(&mut self, now: Instant, process: ProcessId, key: Key) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        let Some(id) = socket.id else { return };
        let Some(came_to) = socket.accepting.as_ref().map(|accepting| accepting.listener) else {
            // Found claimed already, for a time-out or the like: its private copy is gone.
            if socket.owner == Some(process) && !socket.shared {
                self.close_socket(now, key, true);
            }
            return;
        };
        if self.claimed_by(process, key) {
            self.withdraw(key);
            let connection = self.connection_name(id);
            self.tell_own_manager(now, ToManager::Refused { connection });
            self.end_if_listener_is_gone(now, came_to, id);
        }
    }

    /// A claimed connection is closed: its service time goes to the manager of the process's home.
    pub(crate) fn tell_served(&mut self, now: Instant, served: Served) {
        let Served { process, listener, since } = served;
        let service_time_us = now.since(since).min(u64::from(u32::MAX)) as u32;
        let server = self.managers.server();
        let message = ToManager::Served { listener, process, service_time_us, server };
        self.tell_manager(now, self.rings.roles().home_of(process), message);
    }

    // --- listeners and acceptors ---------------------------------------------------------------

    /// A listener is there; `cookie` is that of its placeholder, 0 if it is not known.
    pub(crate) fn listener_opened(&mut self, now: Instant, key: Key, cookie: u64) {
        let server = self.managers.server();
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let domain = socket.domain.and_then(|domain| self.store.domains.get(domain));
        let Some(token) = domain.map(|domain| domain.token) else { return };
        let names = &self.listener_names;
        let listener = match cookie {
            0 => names.of_number(&token, server, key.number()),
            cookie => names.of_cookie(&token, cookie),
        };
        socket.listener = Some(listener);
        let group = self.group_of(key).unwrap_or(listener);
        self.store.listeners.insert(listener, key);
        self.tell_own_manager(now, ToManager::ListenerOpened { listener, group, server });
    }

    fn is_home_of(&self, process: ProcessName) -> bool {
        self.rings.roles().home_of(process) == self.managers.server()
    }

    /// A process accepts from a listener from now on. Only its home speaks for it.
    pub(crate) fn accepts(&mut self, process: ProcessId, key: Key) {
        let Some(listener) = self.store.sockets.get(key).and_then(|socket| socket.listener) else {
            return;
        };
        let Some(entry) = self.processes.get_mut(process) else { return };
        entry.accepts.insert(key);
        let process = entry.name;
        if !self.is_home_of(process) {
            return;
        }
        self.tell_own_manager(self.now, ToManager::Acceptor { listener, process });
    }

    /// The opposite of `accepts`.
    pub(crate) fn accepts_no_more(&mut self, process: ProcessId, key: Key) {
        let Some(listener) = self.store.sockets.get(key).and_then(|socket| socket.listener) else {
            return;
        };
        let Some(entry) = self.processes.get_mut(process) else { return };
        entry.accepts.remove(&key);
        let process = entry.name;
        if !self.is_home_of(process) {
            return;
        }
        self.tell_own_manager(self.now, ToManager::NotAcceptor { listener, process });
    }

    /// A process is dead. What it was offered here is taken back at once; its home tells the
    /// connection manager.
    pub(crate) fn process_died(&mut self, now: Instant, id: ProcessId) {
        let Some(process) = self.processes.get(id).map(|process| process.name) else { return };
        if self.is_home_of(process) {
            self.tell_own_manager(now, ToManager::ProcessDied { process });
        }
        self.run_manager(now);
        let Some(entry) = self.processes.get(id) else { return };
        if entry.offers.is_empty() {
            return;
        }
        // Its connection manager is another server's, and cannot have said so yet.
        let to_it = |key: &Key| {
            let socket = self.store.sockets.get(*key);
            let accepting = socket.and_then(|socket| socket.accepting.as_ref());
            let offered = accepting.and_then(|accepting| accepting.offered);
            offered.is_some_and(|offered| offered.process == id)
        };
        let keys: Vec<Key> = self.store.sockets.keys().into_iter().filter(to_it).collect();
        for key in keys {
            self.return_to_manager(now, key);
        }
    }

    /// Takes the offer of a connection back without having been asked.
    fn return_to_manager(&mut self, now: Instant, key: Key) {
        let Some(id) = self.store.sockets.get(key).and_then(|socket| socket.id) else { return };
        if self.take_back(now, key) {
            let connection = self.connection_name(id);
            self.tell_own_manager(now, ToManager::Revoked { connection });
        }
    }

    /// Ends a listener.
    pub(crate) fn close_listener(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        let (owner, binding) = (socket.owner, socket.binding);
        self.end_listening(now, key);
        if let Some(binding) = binding {
            self.ports.release(key, binding.address.port());
        }
        if let Some(process) = owner.and_then(|owner| self.processes.get_mut(owner)) {
            process.sockets.remove(&key);
        }
        self.processes.forget_listener(key);
        self.store.remove(key);
    }

    /// A listener becomes a socket that is bound, as it was before; whoever waits on it hears so. It may listen
    /// again.
    pub(crate) fn listen_no_more(&mut self, now: Instant, key: Key) {
        self.end_listening(now, key);
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        (socket.kind, socket.id, socket.listener) = (SocketKind::Plain, None, None);
        socket.rx_shut = true;
        socket.publish_status();
        let bits = socket.ready_bits();
        if let Some(binding) = socket.binding {
            self.ports.listen_no_more(key, binding.address.port());
        }
        self.announce(key, bits);
        self.processes.wake_acceptors_of(key);
        self.processes.forget_listener(key);
    }

    /// Offers are revoked, unclaimed connections reset (by the shard), and nobody is answered any more.
    fn end_listening(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        debug_assert_eq!(socket.kind, SocketKind::Listener);
        let (id, name) = (socket.id, socket.listener);
        self.note_not_listening(key);
        if let Some(id) = id {
            // Whoever has claimed one already keeps it, although nobody has said so yet.
            for unclaimed in self.shard.unclaimed(id) {
                if let Some(key) = self.store.key_of(unclaimed) {
                    self.take_back(now, key);
                }
            }
            if let Some(listener) = name {
                if self.store.listeners.get(&listener) == Some(&key) {
                    self.store.listeners.remove(&listener);
                }
                let server = self.managers.server();
                self.tell_own_manager(now, ToManager::ListenerClosed { listener, server });
            }
            self.run_manager(now);
            self.shard.close(now, id, Close::Graceful);
        }
    }

    /// Our connection manager was started again and knows nothing: it is told everything. Offers
    /// that are out are taken back, since it does not know of them.
    pub fn tell_everything_anew(&mut self, now: Instant) {
        let server = self.managers.server();
        self.tell_own_manager(now, ToManager::ServerGone { server });
        let mut listeners: Vec<(ListenerName, Key)> =
            self.store.listeners.iter().map(|(name, key)| (*name, *key)).collect();
        listeners.sort_unstable();
        for &(listener, key) in &listeners {
            let group = self.group_of(key).unwrap_or(listener);
            self.tell_own_manager(now, ToManager::ListenerOpened { listener, group, server });
        }
        for id in 1..=self.processes.highest() {
            let Some(process) = self.processes.get(id) else { continue };
            let keys: Vec<Key> = process.accepts.iter().copied().collect();
            for key in keys {
                self.accepts(id, key);
            }
        }
        for (_, key) in listeners {
            let id = self.store.sockets.get(key).and_then(|socket| socket.id);
            for unclaimed in id.map(|id| self.shard.unclaimed(id)).unwrap_or_default() {
                let Some(key) = self.store.key_of(unclaimed) else { continue };
                let known = self.store.sockets.get(key).is_some_and(|s| s.came_to.is_some());
                if known && self.take_back(now, key) {
                    self.tell_of(now, key);
                }
            }
        }
    }

    /// The accept queue of a listener.
    fn group_of(&self, key: Key) -> Option<ListenerName> {
        let socket = self.store.sockets.get(key)?;
        let token = self.store.domains.get(socket.domain?)?.token;
        let shared = socket.binding.filter(|binding| binding.reuse_port);
        match shared {
            Some(binding) => Some(self.listener_names.of_group(&token, binding.address)),
            None => socket.listener,
        }
    }
}
