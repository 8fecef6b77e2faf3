//! Listeners across the death of a server: what the supervisor is told of them, and how a new
//! server holds those of the one before until their applications come back.
//!
//! A held listener works: handshakes complete and connections queue. Its application names it by
//! its placeholder (RESTORE, or ADOPT by the second process of several); what nobody has named in
//! time is closed, and what a process that has come back has not named, at once. Called by
//! `server_process` at the start, by `attach`, and by `requests` whenever a listener comes, changes
//! or goes. Read `docs/decisions/0008`.

use std::collections::HashMap;

use haypile_engine::Instant;
use haypile_shm::messages::{ControlReply, SocketKind};
use haypile_shm::sys::{self, Fd};

use crate::options;
use crate::ports::Binding;
use crate::server::Core;
use crate::slab::Key;
use crate::supervisor::orders::ListenerRecord;
use haypile_engine::control::connection_manager::ProcessId;

/// How long a listener is held for its application.
pub const PATIENCE_US: u64 = 10_000_000;

/// Listeners that wait for their applications.
#[derive(Debug, Default)]
pub struct Inherited {
    held: HashMap<Key, Held>,
}

#[derive(Copy, Clone, Debug)]
struct Held {
    /// `None`: until it is closed at the other servers.
    until: Option<Instant>,
    /// As in [`ListenerRecord::owner`].
    owner: u64,
}

/// What the supervisor is to be told.
#[derive(Debug)]
pub enum Notice {
    /// A listener is there, or has changed.
    Listening(ListenerRecord),
    /// A listener is gone: domain and cookie.
    NotListening([u8; 16], u64),
    /// A process has attached.
    Attached(Fd),
}

impl Inherited {
    /// The listener is no more held; whether it was.
    pub fn take(&mut self, key: Key) -> bool {
        self.held.remove(&key).is_some()
    }

    /// Listeners held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// When the first one has been held for too long.
    pub fn due(&self) -> Option<Instant> {
        self.held.values().filter_map(|held| held.until).min()
    }
}

impl Core {
    /// A listener of the server before this one. False: it cannot be held (its address is no more
    /// ours, or a limit is reached); its application will be told when it comes back.
    pub fn hold_listener(&mut self, now: Instant, record: &ListenerRecord) -> bool {
        let limits = &self.limits;
        let (sockets, memory) = (limits.sockets_per_domain, limits.memory_per_domain);
        let domain = self.store.domains.join(record.domain, sockets, memory);
        let Some(key) = self.store.open(domain, 0, now) else { return false };
        if let Some(socket) = self.store.sockets.get_mut(key) {
            socket.owner = None;
            for (option, value) in &record.options {
                if let Ok(parsed) = options::parse(*option, *value) {
                    socket.options.set(parsed);
                }
            }
        }
        let binding = Binding {
            address: record.address,
            reuse_address: record.reuse_address,
            reuse_port: record.reuse_port,
            v6_only: record.v6only,
        };
        self.store.set_cookie(key, record.cookie);
        let listens = self.bind(now, key, binding).and_then(|()| {
            let ListenerRecord { backlog, v6only, reuse_port, cookie, .. } = *record;
            self.listen(now, key, backlog, v6only, reuse_port, cookie)
        });
        if listens.is_err() {
            self.forget(key);
            self.note_gone(record.domain, record.cookie);
            return false;
        }
        let held = Held { until: Some(now.plus_us(PATIENCE_US)), owner: record.owner };
        self.inherited.held.insert(key, held);
        true
    }

    /// As [`Core::hold_listener`], of one that is open at the servers that there were before this one: its
    /// application lives, and may take its time.
    pub fn hold_beside(&mut self, now: Instant, record: &ListenerRecord) -> bool {
        let holds = self.hold_listener(now, record);
        if holds {
            let name = (record.domain, record.cookie);
            for key in self.held_as(name) {
                if let Some(held) = self.inherited.held.get_mut(&key) {
                    held.until = None;
                }
            }
        }
        holds
    }

    /// The listener was closed at the other servers: nobody will ask for it here.
    pub fn hold_no_more(&mut self, now: Instant, domain: [u8; 16], cookie: u64) {
        let keys = self.held_as((domain, cookie));
        self.give_up(now, keys);
    }

    fn held_as(&self, (domain, cookie): ([u8; 16], u64)) -> Vec<Key> {
        let is_it = |key: &&Key| {
            let socket = self.store.sockets.get(**key);
            socket.is_some_and(|socket| {
                let home = socket.domain.and_then(|domain| self.store.domains.get(domain));
                socket.cookie == Some(cookie) && home.is_some_and(|home| home.token == domain)
            })
        };
        self.inherited.held.keys().filter(is_it).copied().collect()
    }

    /// RESTORE of a listener that one process alone has: it is that process's again.
    pub(crate) fn restore(&mut self, id: ProcessId, placeholder: &Fd) -> Option<ControlReply> {
        let cookie = sys::so_cookie(placeholder.raw()).ok()?;
        let domain = self.processes.get(id)?.domain;
        let key = self.store.by_cookie_in(cookie, domain)?;
        if !self.inherited.take(key) {
            return None;
        }
        let socket = self.store.sockets.get_mut(key)?;
        socket.owner = Some(id);
        let (slot, generation) = socket.name()?;
        self.processes.get_mut(id)?.sockets.insert(key);
        Some(ControlReply::Adopted { errno: 0, slot, generation, kind: SocketKind::Listener })
    }

    /// Closes what was held for too long.
    pub(crate) fn end_inherited(&mut self, now: Instant) {
        let over = self
            .inherited
            .held
            .iter()
            .filter(|(_, held)| held.until.is_some_and(|until| until <= now));
        let over: Vec<Key> = over.map(|(key, _)| *key).collect();
        self.give_up(now, over);
    }

    /// RESTORED: a process has named all listeners that it has. What is still held of those that
    /// were its alone it has closed while nobody was there to be told: connections that wait there
    /// would wait for nobody.
    pub(crate) fn end_inherited_of(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(id) else { return };
        let (name, domain) = (process.name.word(), process.domain);
        let its_own = |key: &Key| {
            self.store.sockets.get(*key).is_some_and(|socket| socket.domain == Some(domain))
        };
        let held = self.inherited.held.iter().filter(|(_, held)| held.owner == name);
        let keys: Vec<Key> = held.map(|(key, _)| *key).filter(its_own).collect();
        self.give_up(self.now, keys);
    }

    /// An application of the same domain wants the port: it has not come back for the listener that
    /// is held there, but has made another.
    pub(crate) fn yield_inherited(&mut self, now: Instant, domain: Option<Key>, port: u16) -> bool {
        let in_the_way = |key: &&Key| {
            self.store.sockets.get(**key).is_some_and(|socket| {
                let bound = socket.binding.is_some_and(|bound| bound.address.port() == port);
                bound && socket.domain == domain
            })
        };
        let keys: Vec<Key> = self.inherited.held.keys().filter(in_the_way).copied().collect();
        let any = !keys.is_empty();
        self.give_up(now, keys);
        any
    }

    fn give_up(&mut self, now: Instant, keys: Vec<Key>) {
        for key in keys {
            self.inherited.take(key);
            self.close_socket(now, key, false);
        }
    }

    /// A listener is there, or its backlog or options have changed.
    pub(crate) fn note_listening(&mut self, key: Key) {
        if !self.tells {
            return;
        }
        let Some(socket) = self.store.sockets.get(key) else { return };
        let domain = socket.domain.and_then(|domain| self.store.domains.get(domain));
        let (Some(domain), Some(cookie), Some(binding), Some(id)) =
            (domain, socket.cookie, socket.binding, socket.id)
        else {
            return;
        };
        if socket.kind != SocketKind::Listener {
            return;
        }
        let owner = socket.owner.filter(|_| !socket.shared);
        let owner = owner.and_then(|owner| self.processes.get(owner));
        self.notices.push(Notice::Listening(ListenerRecord {
            domain: domain.token,
            cookie,
            owner: owner.map_or(0, |process| process.name.word()),
            address: binding.address,
            backlog: self.shard.backlog(id).unwrap_or_default(),
            v6only: binding.v6_only,
            reuse_address: binding.reuse_address,
            reuse_port: binding.reuse_port,
            options: options::changed(&socket.options),
        }));
    }

    /// A listener is about to go.
    pub(crate) fn note_not_listening(&mut self, key: Key) {
        self.inherited.take(key);
        let Some(socket) = self.store.sockets.get(key) else { return };
        let domain = socket.domain.and_then(|domain| self.store.domains.get(domain));
        if let (Some(domain), Some(cookie)) = (domain, socket.cookie) {
            self.note_gone(domain.token, cookie);
        }
    }

    fn note_gone(&mut self, domain: [u8; 16], cookie: u64) {
        if self.tells {
            self.notices.push(Notice::NotListening(domain, cookie));
        }
    }

    /// The supervisor of a private service wants to know who uses it.
    pub(crate) fn tell_of_process(&mut self, id: ProcessId) {
        if !self.tells_processes {
            return;
        }
        let Some(process) = self.processes.get(id) else { return };
        if let Ok(copy) = process.pidfd.try_clone_at_least(0) {
            self.notices.push(Notice::Attached(copy));
        }
    }
}
