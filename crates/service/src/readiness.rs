//! Readiness: from "something changed on a socket" to one READY in each ring that asked for it.
//!
//! Owns the rules of coalescing and backlog (docs/decisions/0004). Called by the transport server
//! and by accepting whenever a socket's state has been published, and by requests for WATCH,
//! UNWATCH and DRAINED. The rings themselves are in `processes`.

use haypile_shm::messages::{Ready, SocketKind, ready};

use crate::processes::Told;
use crate::server::Core;
use crate::slab::Key;
use crate::sockets::Watch;
use haypile_engine::control::connection_manager::ProcessId;

/// What every watcher hears of, asked for or not (epoll_ctl(2)).
const ALWAYS: u32 = ready::ERR | ready::HUP;
/// Registrations of one socket; an application that wants more has gone astray.
const WATCHES_MAX: usize = 1024;

impl Core {
    /// Wakes blocked calls on a socket and tells its watchers that `bits` have come up.
    pub(crate) fn announce(&mut self, key: Key, bits: u32) {
        self.announce_to(key, None, bits);
    }

    /// As `announce`, to the watchers of one process only if `process` is given.
    // A row of docs/cost.md.
    #[inline(never)]
    pub(crate) fn announce_to(&mut self, key: Key, process: Option<ProcessId>, bits: u32) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let Some(stream) = &socket.stream else { return };
        stream.wake();
        let message = Ready { slot: stream.slot(), generation: stream.generation(), bits };
        let mut stale = false;
        for watch in &mut socket.watches {
            let meant = process.is_none_or(|process| process == watch.process);
            if !meant || !watch.armed || bits & (watch.mask | ALWAYS) == 0 {
                continue;
            }
            match self.processes.tell(watch, key, &message) {
                Told::Yes => watch.armed = !watch.one_shot,
                Told::NoWatcher => stale = true,
            }
        }
        if stale {
            let processes = &mut self.processes;
            socket.watches.retain(|watch| {
                processes.watcher_serial(watch.process, watch.watcher) == Some(watch.serial)
            });
        }
    }

    /// WATCH: a registration, new or changed. What is ready already is told at once.
    pub(crate) fn watch(
        &mut self,
        process: ProcessId,
        key: Key,
        watcher: u32,
        mask: u32,
        one_shot: bool,
    ) {
        if self.processes.watcher_serial(process, watcher).is_none() {
            return;
        }
        if mask & ready::OUT != 0 {
            // Whoever waits to write wants memory to write to.
            self.want_tx(key);
        }
        self.register_watch(process, key, watcher, mask, one_shot);
        let Some(socket) = self.store.sockets.get(key) else { return };
        if socket.kind == SocketKind::Listener && mask & ready::IN != 0 {
            // Whoever waits on a listener accepts from it.
            self.accepts(process, key);
        }
        self.answer(key, process);
    }

    /// Tells a process what is ready already, if anything is.
    fn answer(&mut self, key: Key, process: ProcessId) {
        let bits = self.ready_bits(key, process);
        if bits != 0 {
            self.announce_to(key, Some(process), bits | ready::ANSWER);
        }
    }

    /// Notes a registration, and no more.
    pub(crate) fn register_watch(
        &mut self,
        process: ProcessId,
        key: Key,
        watcher: u32,
        mask: u32,
        one_shot: bool,
    ) {
        let Some(serial) = self.processes.watcher_serial(process, watcher) else { return };
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let same = |watch: &&mut Watch| {
            watch.process == process && watch.watcher == watcher && watch.serial == serial
        };
        if let Some(watch) = socket.watches.iter_mut().find(same) {
            watch.mask = mask;
            watch.one_shot = one_shot;
            watch.armed = true;
        } else if socket.watches.len() < WATCHES_MAX {
            socket.watches.push(Watch {
                process,
                watcher,
                serial,
                mask,
                one_shot,
                armed: true,
                last: None,
                backlogged: false,
            });
        }
    }

    /// UNWATCH.
    pub(crate) fn unwatch(&mut self, process: ProcessId, key: Key, watcher: u32) {
        if let Some(socket) = self.store.sockets.get_mut(key) {
            socket.watches.retain(|watch| watch.process != process || watch.watcher != watcher);
        }
    }

    /// DRAINED: the watcher's ring has room again for what waits in its backlog. Nothing may stay
    /// there unless the ring is full and marked again, because nobody would ask for the rest. What
    /// joins the backlog meanwhile has found the ring full and has marked it.
    pub(crate) fn drained(&mut self, process: ProcessId, watcher: u32) {
        for _ in 0..self.processes.backlog_len(process, watcher) {
            let Some(key) = self.processes.next_backlogged(process, watcher) else { return };
            let Some(socket) = self.store.sockets.get_mut(key) else { continue };
            for watch in &mut socket.watches {
                if watch.process == process && watch.watcher == watcher {
                    watch.backlogged = false;
                    // Said, for a one-shot registration, but not heard yet.
                    watch.armed = true;
                }
            }
            self.answer(key, process);
        }
    }

    /// What poll(2) would say of a socket to a process now.
    pub(crate) fn ready_bits(&mut self, key: Key, process: ProcessId) -> u32 {
        let Some(socket) = self.store.sockets.get(key) else { return 0 };
        if socket.kind == SocketKind::Listener {
            return if self.processes.has_offer(process, key) { ready::IN } else { 0 };
        }
        socket.ready_bits()
    }
}
