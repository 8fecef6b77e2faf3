//! Life and death of processes and shared sockets.
//!
//! A process ends when its pidfd says so (or when it executes another program); a shared socket
//! ends when the kernel says that its placeholder is gone. Both are noted first, then every ring is
//! drained once more, then they are applied, because what a process said about a socket was said
//! before its end (docs/decisions/0005). Called by `server` in that order.

use haypile_engine::Instant;
use haypile_shm::Errno;
use haypile_shm::messages::SocketKind;

use crate::freight::baggage::Said;
use crate::poller::{Poller, Token};
use crate::server::Core;
use crate::slab::Key;
use haypile_engine::control::connection_manager::ProcessId;

/// How often the witness is asked which placeholders live while the multicast tells their ends too.
const WITNESS_INTERVAL_US: u64 = 5_000_000;
/// The same while nobody else tells their ends.
const LONE_WITNESS_INTERVAL_US: u64 = 250_000;
/// Turns of a dead process's ring: it cannot hold more than a ring full.
const LAST_WORDS: usize = 16;

impl Core {
    /// The process has executed another program: it is a new process to the service.
    pub(crate) fn note_exec(&mut self, id: ProcessId) {
        if !self.deaths.contains(&id) {
            self.deaths.push(id);
        }
    }

    /// The pidfd of a process says that it has ended.
    pub(crate) fn note_death(&mut self, id: ProcessId, poller: &Poller) {
        if let Some(process) = self.processes.get(id) {
            // It stays readable; once is enough.
            poller.remove(process.pidfd.raw());
            self.note_exec(id);
        }
    }

    /// A process rings because the service slept: its request is found in its ring. The ring of the bell is
    /// taken when the answer is gone: before the next sleep, or when the service hears it again.
    pub(crate) fn heard(&mut self, process: ProcessId, poller: &Poller) {
        if !self.processes.put_off(process) {
            self.quiet_bell(process, poller);
        }
    }

    /// Takes the rings that were put off: before each sleep.
    pub(crate) fn quiet_bells(&mut self, poller: &Poller) {
        while let Some(process) = self.processes.next_rung() {
            self.quiet_bell(process, poller);
        }
    }

    /// A doorbell that is closed from the other side is no more listened to.
    fn quiet_bell(&self, process: ProcessId, poller: &Poller) {
        if let Some(process) = self.processes.get(process)
            && !matches!(process.wake.drain(), Ok(true))
        {
            poller.remove(process.wake.raw());
        }
    }

    /// Applies what was noted, after the rings were drained.
    pub(crate) fn apply_ends(&mut self, now: Instant) {
        for cookie in std::mem::take(&mut self.destroyed) {
            self.placeholder_gone(now, cookie);
        }
        for id in std::mem::take(&mut self.deaths) {
            for _ in 0..LAST_WORDS {
                if self.handle_requests_of(now, id) == 0 {
                    break;
                }
            }
            self.end_process(now, id, false);
        }
        if self.diag.take_overrun() || self.is_witness_due(now) {
            self.witness_asked = now;
            self.ask_witness(now);
        }
    }

    /// When the witness is to be asked next for its own sake.
    pub(crate) fn witness_due(&self) -> Option<Instant> {
        let observes = !self.observed.is_empty();
        let interval_us =
            if self.diag.listens() { WITNESS_INTERVAL_US } else { LONE_WITNESS_INTERVAL_US };
        observes.then(|| self.witness_asked.plus_us(interval_us))
    }

    /// Whether the witness is to be asked for its own sake.
    pub(crate) fn is_witness_due(&self, now: Instant) -> bool {
        self.witness_due().is_some_and(|due| due <= now)
    }

    /// The kernel has destroyed a socket; most are not ours.
    fn placeholder_gone(&mut self, now: Instant, cookie: u64) {
        for key in self.store.by_cookie(cookie).to_vec() {
            self.close_socket(now, key, false);
        }
        self.observed.remove(&cookie);
    }

    /// Finds placeholders whose end nobody told.
    pub(crate) fn ask_witness(&mut self, now: Instant) {
        if self.observed.is_empty() {
            return;
        }
        let Ok(living) = self.diag.living() else { return };
        let gone: Vec<u64> =
            self.observed.iter().filter(|cookie| !living.contains(cookie)).copied().collect();
        for cookie in gone {
            self.counters.ends_by_witness += 1;
            self.placeholder_gone(now, cookie);
        }
    }

    /// SHARED: from now on only the end of the placeholder ends the socket.
    ///
    /// The multicast taxes every socket of the namespace (4 to 5 us at its end, docs/decisions/0005),
    /// so only connections, whose peer waits for the end, are worth it. Other sockets come with their
    /// placeholder (ADOPT) and are left to the witness.
    pub(crate) fn share(&mut self, process: ProcessId, key: Key, cookie: u64) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        // The kernel numbers sockets from 1.
        if cookie == 0 || socket.cookie == Some(cookie) && socket.shared || socket.closed {
            return;
        }
        socket.shared = true;
        let owner = socket.owner;
        if let Some(owner) = owner.and_then(|owner| self.processes.get_mut(owner)) {
            owner.sockets.remove(&key);
        }
        self.hear_end_of(process, key);
        self.store.set_cookie(key, cookie);
        self.note_listening(key);
        self.pass_on(process, key, Said::Shared(cookie));
    }

    /// Sees to it that the end of the placeholder of a shared socket, which `process` has, is heard.
    pub(crate) fn hear_end_of(&mut self, process: ProcessId, key: Key) {
        let place = self.processes.get(process).map(|process| (process.pid, process.namespace));
        let Some(socket) = self.store.sockets.get(key) else { return };
        let urgent = socket.kind == SocketKind::Connection;
        let mut heard = false;
        if let Some((pid, Some(namespace))) = place.filter(|_| urgent) {
            self.new_diag.extend(self.diag.listen_for(pid, namespace));
            heard = self.diag.hears(namespace);
        }
        // Of what has come from another server, that one tells the end.
        let told = socket.came.as_ref().is_some_and(|came| came.from.is_some());
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        if let Some(domain) = domain {
            domain.shared.insert(key);
            domain.unheard |= !(heard || told);
        }
    }

    /// Registers descriptors of the kernel's notices that were opened since the last call.
    #[inline]
    pub(crate) fn watch_new_diag(&mut self, poller: &Poller) {
        if !self.new_diag.is_empty() {
            self.watch_all_new_diag(poller);
        }
    }

    #[cold]
    fn watch_all_new_diag(&mut self, poller: &Poller) {
        for fd in std::mem::take(&mut self.new_diag) {
            // Without it the notices are read at the witness's pace.
            let _: Result<(), Errno> = poller.add(fd, Token::Diag);
        }
    }

    /// Ends a process: what it held alone is closed, what it was offered goes to others, what it
    /// locked is free. `abort`: it wrote nonsense, and its connections are reset.
    pub(crate) fn end_process(&mut self, now: Instant, id: ProcessId, abort: bool) {
        if self.processes.get(id).is_none() {
            return;
        }
        self.process_died(now, id);
        let Some(process) = self.processes.remove(id) else { return };
        let mut alone: Vec<Key> = process.sockets.into_iter().collect();
        alone.sort_unstable();
        for key in alone {
            self.close_socket(now, key, abort);
        }
        self.forget_owner(process.domain, id);
        let connections = self.processes.connections.keys();
        for key in connections {
            if let Some(connection) = self.processes.connections.get_mut(key)
                && connection.process == Some(id)
            {
                // Children that inherited the connection may still attach over it.
                connection.process = None;
            }
        }
        self.leave_domain(now, process.domain);
    }

    /// A dead process may have died in the middle of a copy; its number will be another's.
    fn forget_owner(&mut self, domain: Key, id: ProcessId) {
        let Some(domain) = self.store.domains.get(domain) else { return };
        for key in &domain.shared {
            let Some(socket) = self.store.sockets.get_mut(*key) else { continue };
            if let Some(stream) = &socket.stream {
                stream.clear_owner(id);
            }
            if socket.owner == Some(id) {
                socket.owner = None;
            }
        }
    }

    fn leave_domain(&mut self, now: Instant, domain_key: Key) {
        let Some(domain) = self.store.domains.get_mut(domain_key) else { return };
        domain.processes -= 1;
        // With nobody left in the domain, a shared socket lives on only while the kernel's word of
        // its end can still come.
        if domain.processes == 0 && domain.unheard {
            for key in domain.shared.clone() {
                let Some(socket) = self.store.sockets.get(key) else { continue };
                let cookie = socket.cookie;
                if socket.came.as_ref().is_some_and(|came| came.from.is_some()) {
                    continue;
                }
                if cookie.is_none_or(|cookie| !self.observed.contains(&cookie)) {
                    self.close_socket(now, key, false);
                }
            }
        }
        self.store.domains.remove_if_unused(domain_key);
    }

    /// Whether anybody still uses the service: processes, or sockets that wait for one.
    pub fn is_used(&self) -> bool {
        !self.processes.is_empty()
            || self.store.domains.iter().any(|(_, domain)| !domain.shared.is_empty())
    }
}
