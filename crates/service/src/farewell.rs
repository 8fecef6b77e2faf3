//! A last write and the FIN behind it in one segment: one frame less, and one wake-up less for the
//! peer, on every connection that the server side closes.
//!
//! A server that answers and closes does so in two calls, some microseconds apart; a service that
//! polls would send the answer before it hears of the close. So each listener has a [`Habit`]: if
//! its connections are nearly always closed right after a write, a small write waits for the close,
//! for [`HOLD_US`] at most. Sources: none; RFC 9293 section 3.10.4 lets the FIN ride on the last
//! segment. Called by `transport_server` and `server`.

use std::collections::VecDeque;

use haypile_engine::Instant;

use crate::server::Core;
use crate::slab::Key;

/// Longest time that a write waits for the close behind it, in microseconds.
pub const HOLD_US: u64 = 30;
/// A close within this time of the last write was meant with it, in microseconds.
const SOON_US: u64 = 100;
/// Only less than this is held, in bytes: what fills a segment goes out at once.
const SMALL: u64 = 1200;
/// Writes held at a time; further ones go out at once.
const HELD_MAX: usize = 1024;

/// How often a listener's connections are closed right after a write: 0 never, 255 always.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Habit(u8);

impl Habit {
    /// From here on writes are held.
    const HOLDS: u8 = 192;

    /// A connection was closed right after a write.
    pub fn closed_soon(&mut self) {
        self.0 += (u8::MAX - self.0).div_ceil(8);
    }

    /// A connection went on after a write, or was closed late. Weighs more than its opposite: a
    /// needless wait is worse than a frame too many.
    pub fn went_on(&mut self) {
        self.0 -= self.0.div_ceil(3);
    }

    /// Whether a write is likely to be followed by the close.
    pub fn holds(self) -> bool {
        self.0 >= Habit::HOLDS
    }
}

/// Writes that wait for a close, oldest first.
#[derive(Debug, Default)]
pub struct Held(VecDeque<(Instant, Key)>);

impl Held {
    /// When the oldest has waited long enough.
    pub fn due(&self) -> Option<Instant> {
        self.0.front().map(|(due, _)| *due)
    }
}

impl Core {
    /// Whether what was just written up to `tail` waits for the close behind it.
    pub(crate) fn hold(&mut self, now: Instant, key: Key, tail: u64) -> bool {
        let Some(socket) = self.store.sockets.get_mut(key) else { return false };
        let Some(listener) = socket.came_to else { return false };
        let unsent = tail.saturating_sub(socket.progress.tx_acked);
        if unsent > 0 {
            socket.wrote = Some(now);
        }
        let small = (1..SMALL).contains(&unsent);
        if socket.held {
            socket.held = small;
            return small;
        }
        let holds = self.store.sockets.get(listener).is_some_and(|socket| socket.habit.holds());
        if !(holds && small && self.holds_writes) || self.held.0.len() >= HELD_MAX {
            return false;
        }
        if let Some(socket) = self.store.sockets.get_mut(key) {
            socket.held = true;
        }
        self.held.0.push_back((now.plus_us(HOLD_US), key));
        true
    }

    /// The peer has spoken: the last write was no farewell.
    pub(crate) fn heard_after_write(&mut self, key: Key) {
        let wrote = self.store.sockets.get_mut(key).and_then(|socket| socket.wrote.take());
        if wrote.is_some() {
            self.note_habit(key, Habit::went_on);
        }
    }

    /// The application closes, or closes its sending half.
    pub(crate) fn closes_after_write(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        socket.held = false;
        let Some(wrote) = socket.wrote.take() else { return };
        let soon = now.since(wrote) <= SOON_US;
        self.note_habit(key, if soon { Habit::closed_soon } else { Habit::went_on });
    }

    fn note_habit(&mut self, key: Key, note: impl FnOnce(&mut Habit)) {
        let listener = self.store.sockets.get(key).and_then(|socket| socket.came_to);
        if let Some(listener) = listener.and_then(|key| self.store.sockets.get_mut(key)) {
            note(&mut listener.habit);
        }
    }

    /// Lets go what has waited long enough; with `all`, everything. How many went.
    #[inline]
    pub(crate) fn release_held(&mut self, now: Instant, all: bool) -> usize {
        if self.held.0.is_empty() { 0 } else { self.release_all(now, all) }
    }

    #[inline(never)]
    fn release_all(&mut self, now: Instant, all: bool) -> usize {
        let mut released = 0;
        while let Some(&(due, key)) = self.held.0.front()
            && (all || due <= now)
        {
            self.held.0.pop_front();
            if let Some(socket) = self.store.sockets.get_mut(key)
                && std::mem::take(&mut socket.held)
            {
                self.counters.held_in_vain += 1;
                released += 1;
                self.send_written(now, key);
            }
        }
        released
    }

    /// Tells the shard how far the application has written.
    pub(crate) fn send_written(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        if let (Some(stream), Some(id)) = (&socket.stream, socket.id) {
            self.shard.send_ready(now, id, stream.tx_tail());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_habit_takes_a_dozen_closes_and_one_exception_breaks_it() {
        let mut habit = Habit::default();
        let mut closes = 0;
        while !habit.holds() {
            habit.closed_soon();
            closes += 1;
            assert!(closes < 20);
        }
        assert!(closes > 8, "{closes}");
        for _ in 0..1000 {
            habit.closed_soon();
        }
        habit.went_on();
        assert!(!habit.holds());
        for _ in 0..1000 {
            habit.went_on();
        }
        assert_eq!(habit, Habit::default());
    }

    #[test]
    fn one_connection_in_five_that_goes_on_is_enough_to_hold_nothing() {
        let mut habit = Habit::default();
        let mut held = 0;
        for turn in 0..1000 {
            if turn % 5 == 0 {
                habit.went_on()
            } else {
                habit.closed_soon()
            }
            held += u32::from(habit.holds());
        }
        assert!(held < 100, "{held}");
    }
}
