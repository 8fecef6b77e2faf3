//! When the connection manager hears of a new connection: at once, or with the peer's first words.
//!
//! A process that serves one connection after the other and takes a silent one waits in its `recv`, and what came
//! later waits with it. With several servers that need not even be what came later: a server that had no processor
//! for some milliseconds tells of its connections after the others. So each listener has its [`Openings`]: if its
//! peers always speak first, a connection is offered when something was said on it, or after [`SILENCE_US`].
//! Who is offered it finds its first bytes there, and sleeps once and not twice. Sources: none; `TCP_DEFER_ACCEPT`
//! is the same at a program's wish. Called by `transport_server` and `server`; the counterpart at a connection's
//! end is `farewell`.

use std::collections::VecDeque;
use std::num::NonZeroU64;

use haypile_engine::Instant;
use haypile_engine::control::messages::ToManager;
use haypile_shm::sys::cycle_counter;

use crate::server::Core;
use crate::slab::Key;
use crate::sockets::Accepting;

/// Longest time that a connection waits for its peer's first words, in microseconds: long beside the time
/// that a server may be without a processor, short beside what a person notices.
pub const SILENCE_US: u64 = 50_000;
/// Connections that may wait so at a time; further ones are offered at once.
const SILENT_MAX: usize = 1 << 16;

/// How the connections of a listener begin.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Openings {
    /// So many peers have spoken first, in a row.
    in_a_row: u16,
    /// So many have to before one is waited for.
    needed: u16,
}

impl Default for Openings {
    fn default() -> Openings {
        Openings { in_a_row: 0, needed: Openings::NEEDED_MIN }
    }
}

impl Openings {
    const NEEDED_MIN: u16 = 32;
    const NEEDED_MAX: u16 = 4096;

    /// A peer has spoken first.
    pub fn peer_spoke(&mut self) {
        self.in_a_row = self.in_a_row.saturating_add(1).min(Openings::NEEDED_MAX);
    }

    /// One did not. Where that happens now and then, few are made to wait for it.
    pub fn peer_was_silent(&mut self) {
        if self.waits() {
            self.needed = (self.needed * 2).min(Openings::NEEDED_MAX);
        }
        self.in_a_row = 0;
    }

    /// Whether a peer that says nothing yet is likely to speak soon.
    pub fn waits(self) -> bool {
        self.in_a_row >= self.needed
    }
}

/// Connections that the connection manager has not heard of, and some that it has, oldest first.
#[derive(Debug, Default)]
pub struct Silent(VecDeque<(Instant, Key)>);

impl Silent {
    /// When the oldest has been silent for long enough.
    pub fn due(&self) -> Option<Instant> {
        self.0.front().map(|(due, _)| *due)
    }
}

impl Core {
    fn accepting_of(&mut self, key: Key) -> Option<&mut Accepting> {
        self.store.sockets.get_mut(key)?.accepting.as_mut()
    }

    /// A connection is there: its connection manager hears of it now, or later.
    pub(crate) fn has_come(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        let silent = self.store.unclaimed_of(key).is_some_and(<[u8]>::is_empty);
        let waits = socket
            .came_to
            .and_then(|listener| self.store.sockets.get(listener))
            .is_some_and(|listener| listener.openings.waits());
        if !(silent && waits) || self.silent.0.len() >= SILENT_MAX {
            return self.tell_of(now, key);
        }
        if let Some(accepting) = self.accepting_of(key) {
            accepting.silent = true;
            self.silent.0.push_back((now.plus_us(SILENCE_US), key));
        }
    }

    /// The connection manager hears of a connection that waits for a process.
    pub(crate) fn tell_of(&mut self, now: Instant, key: Key) {
        let Some(accepting) = self.accepting_of(key) else { return };
        (accepting.silent, accepting.came) = (false, NonZeroU64::new(cycle_counter()));
        let Some(socket) = self.store.sockets.get(key) else { return };
        let listener =
            socket.came_to.and_then(|listener| self.store.sockets.get(listener)?.listener);
        if let Some((listener, id)) = listener.zip(socket.id) {
            let connection = self.connection_name(id);
            self.tell_own_manager(now, ToManager::Arrived { listener, connection });
        }
    }

    /// The peer of a connection has said its first words, or (`false`) has ended it before.
    pub(crate) fn hear_first(&mut self, key: Key, spoke: bool) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        let silent = socket.accepting.as_ref().is_some_and(|accepting| accepting.silent);
        let answers = socket.wrote.is_some();
        if spoke
            && let Some(listener) = socket.came_to
            && let Some(listener) = self.store.sockets.get_mut(listener)
        {
            match answers {
                true => listener.openings.peer_was_silent(),
                false => listener.openings.peer_spoke(),
            }
        }
        if silent {
            self.tell_of(self.now, key);
        }
    }

    /// Tells of those that have been silent for long enough. How many.
    #[inline]
    pub(crate) fn welcome_silent(&mut self, now: Instant) -> usize {
        if self.silent.0.is_empty() { 0 } else { self.welcome_all(now) }
    }

    #[inline(never)]
    fn welcome_all(&mut self, now: Instant) -> usize {
        let mut told = 0;
        while let Some(&(due, key)) = self.silent.0.front() {
            let silent = self.accepting_of(key).is_some_and(|accepting| accepting.silent);
            if silent && due > now {
                break;
            }
            self.silent.0.pop_front();
            if !silent {
                continue;
            }
            let listener = self.store.sockets.get(key).and_then(|socket| socket.came_to);
            if let Some(listener) = listener.and_then(|key| self.store.sockets.get_mut(key)) {
                listener.openings.peer_was_silent();
            }
            self.counters.silent_in_vain += 1;
            self.tell_of(now, key);
            told += 1;
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_believed_after_a_while_and_later_after_each_exception() {
        let mut openings = Openings::default();
        let lessons = |openings: &mut Openings| {
            let mut lessons = 0;
            while !openings.waits() {
                openings.peer_spoke();
                lessons += 1;
                assert!(lessons <= Openings::NEEDED_MAX);
            }
            lessons
        };
        let mut before = lessons(&mut openings);
        assert_eq!(before, Openings::NEEDED_MIN);
        for _ in 0..20 {
            openings.peer_was_silent();
            assert!(!openings.waits());
            // Those that had to wait with it are no exceptions of their own.
            openings.peer_was_silent();
            let now = lessons(&mut openings);
            assert_eq!(now, (before * 2).min(Openings::NEEDED_MAX));
            before = now;
        }
        for _ in 0..100_000 {
            openings.peer_spoke();
        }
        assert!(openings.waits());
    }
}
