//! Accepting: carries out what the connection manager decides, on the offer words of connections.
//!
//! The transport server's half of the speculative accept handshake. Called by `server` once a turn
//! (`run_manager`) and by `requests` for CLAIM and REFUSE. Read `connection_manager` first.

use haypile_engine::{Close, Instant, SocketId};
use haypile_shm::messages::{Offer, SocketKind, ready};

use crate::server::Core;
use crate::slab::Key;
use haypile_engine::control::connection_manager::{Action, ProcessId};

impl Core {
    /// Carries out everything the connection manager wants done now. Bounded by the connections
    /// that wait.
    // A row of docs/cost.md.
    #[inline(never)]
    pub(crate) fn run_manager(&mut self, now: Instant) {
        self.manager.handle_timers(now);
        while let Some(action) = self.manager.poll_action(now) {
            match action {
                Action::Offer { listener, connection, process } => {
                    if !self.offer(listener, connection, process) {
                        self.manager.offer_failed(connection);
                    }
                }
                Action::Revoke { connection, process } => self.revoke(now, connection, process),
            }
        }
    }

    /// CONNECTION-AVAILABLE: the connection's bytes go to the acceptor's domain, then the message.
    fn offer(&mut self, listener: SocketId, connection: SocketId, process: ProcessId) -> bool {
        let (Some(listener_key), Some(key)) =
            (self.store.key_of(listener), self.store.key_of(connection))
        else {
            return false;
        };
        let Some(domain) = self.processes.get(process).map(|process| process.domain) else {
            return false;
        };
        let name = self.store.sockets.get(listener_key).and_then(|socket| socket.name());
        let Some((listener_slot, listener_generation)) = name else { return false };
        if !self.store.place_in_domain(key, domain) {
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
        if !self.processes.push_offer(process, listener_key, &message) {
            self.store.leave_domain(key);
            return false;
        }
        if let Some(accepting) = &mut socket.accepting {
            accepting.offered_to = Some(process);
        }
        self.announce_to(listener_key, Some(process), ready::IN);
        true
    }

    /// Takes an offer back, unless the application was faster.
    fn revoke(&mut self, now: Instant, connection: SocketId, process: ProcessId) {
        let Some(key) = self.store.key_of(connection) else { return };
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let outcome = socket.stream.as_mut().map(|stream| stream.revoke());
        match outcome {
            Some(Ok(false)) => self.settle_claim(key, process),
            other => {
                if matches!(other, Some(Err(_))) {
                    self.processes.mark_hostile(process);
                }
                self.withdraw(key);
                if !self.manager.revoked(connection) {
                    self.shard.close(now, connection, Close::Abort);
                }
            }
        }
    }

    /// A connection goes back to nobody: its record in the domain is void, its bytes are private.
    fn withdraw(&mut self, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        if let Some(accepting) = &mut socket.accepting
            && let Some(process) = accepting.offered_to.take()
        {
            self.processes.offer_settled(process, accepting.listener);
        }
        self.store.leave_domain(key);
    }

    /// The connection belongs to `process` from now on.
    fn settle_claim(&mut self, key: Key, process: ProcessId) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        let (id, accepting) = (socket.id, &socket.accepting);
        if let Some(accepting) = accepting {
            self.processes.offer_settled(process, accepting.listener);
        }
        self.store.claimed(key, process);
        if let Some(process) = self.processes.get_mut(process) {
            process.sockets.insert(key);
        }
        if let Some(id) = id {
            self.manager.claimed(id);
            self.shard.claimed(id);
        }
        self.touch(key);
    }

    /// The connection that a CLAIM or REFUSE of `process` is about, if its offer word says claimed
    /// and it was offered to that process. Another state is a lie.
    fn claimed_by(&mut self, process: ProcessId, key: Key) -> bool {
        use haypile_shm::stream::OfferState;
        let Some(socket) = self.store.sockets.get(key) else { return false };
        let Some(accepting) = &socket.accepting else { return false };
        let state = socket.stream.as_ref().map(|stream| stream.offer_state());
        if accepting.offered_to == Some(process) && state == Some(Ok(OfferState::Claimed)) {
            return true;
        }
        self.processes.mark_hostile(process);
        false
    }

    /// CLAIM. (One that comes after the connection was found claimed already says nothing new.)
    pub(crate) fn claim(&mut self, process: ProcessId, key: Key) {
        let pending = self.store.sockets.get(key).is_some_and(|socket| socket.accepting.is_some());
        if pending && self.claimed_by(process, key) {
            self.settle_claim(key, process);
        }
    }

    /// REFUSE: claimed, but the process has no descriptor for it. Somebody else shall have it.
    pub(crate) fn refuse(&mut self, now: Instant, process: ProcessId, key: Key) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        let Some(id) = socket.id else { return };
        if socket.accepting.is_none() {
            // Found claimed already, for a time-out or the like: its private copy is gone.
            if socket.owner == Some(process) && !socket.shared {
                self.close_socket(now, key, true);
            }
            return;
        }
        if self.claimed_by(process, key) {
            self.withdraw(key);
            if !self.manager.refused(id) {
                self.shard.close(now, id, Close::Abort);
            }
        }
    }

    /// Ends a listener: offers are revoked, unclaimed connections reset (by the shard).
    pub(crate) fn close_listener(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        debug_assert_eq!(socket.kind, SocketKind::Listener);
        let (id, owner, binding) = (socket.id, socket.owner, socket.binding);
        self.note_not_listening(key);
        if let Some(id) = id {
            self.manager.listener_closed(id);
            self.run_manager(now);
            self.shard.close(now, id, Close::Graceful);
        }
        if let Some(binding) = binding {
            self.ports.release(key, binding.address.port());
        }
        if let Some(process) = owner.and_then(|owner| self.processes.get_mut(owner)) {
            process.sockets.remove(&key);
        }
        self.store.remove(key);
    }
}
