//! What the service counts beside the engine and the link, and how busy a server is. Read by
//! `report`; written wherever the thing counted happens.

use haypile_engine::Instant;

/// Events of the service. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages of applications, of every kind.
    pub requests: u64,
    /// Of them: that a process accepts.
    pub acceptors: u64,
    /// That a connection was claimed.
    pub claims: u64,
    /// Requests for a socket that was gone.
    pub stale_requests: u64,
    /// Requests that no honest application sends.
    pub malformed_requests: u64,
    /// Records with impossible contents.
    pub hostile_sockets: u64,
    /// Processes dropped for one of those.
    pub hostile_processes: u64,
    /// Attaches refused: version, limits, or the process was gone.
    pub refused_attaches: u64,
    /// Shared sockets whose end only the witness told.
    pub ends_by_witness: u64,
    /// Small writes that waited for a close which did not come.
    pub held_in_vain: u64,
    /// Connections that waited for their peers' first words, which did not come.
    pub silent_in_vain: u64,
    /// Connections that their processes have followed here from another server.
    pub followed: u64,
    /// What was said about connections after they had moved from here, passed on.
    pub late_sent: u64,
    /// The same, of connections that have moved here.
    pub late_heard: u64,
    /// Late notices that are none.
    pub late_nonsense: u64,
    /// Connections lost on the way for lack of memory.
    pub moved_lost: u64,
    /// Connections reset because nobody followed them before the server that knew them went.
    pub strays: u64,
}

impl Counters {
    /// Names, texts and values, for display.
    pub fn rows(&self) -> [(&'static str, &'static str, u64); 17] {
        let Counters {
            requests,
            acceptors,
            claims,
            stale_requests,
            malformed_requests,
            hostile_sockets,
            hostile_processes,
            refused_attaches,
            ends_by_witness,
            held_in_vain,
            silent_in_vain,
            followed,
            late_sent,
            late_heard,
            late_nonsense,
            moved_lost,
            strays,
        } = *self;
        [
            ("requests", "messages of applications", requests),
            ("requests_acceptor", "of them: a process accepts", acceptors),
            ("requests_claim", "of them: a connection was claimed", claims),
            ("stale_requests", "requests for a socket that was gone", stale_requests),
            ("malformed_requests", "requests that no application may send", malformed_requests),
            ("hostile_sockets", "socket records with impossible contents", hostile_sockets),
            ("hostile_processes", "processes dropped for nonsense", hostile_processes),
            ("refused_attaches", "processes refused at attach", refused_attaches),
            ("ends_by_witness", "ends of shared sockets found late", ends_by_witness),
            ("held_in_vain", "small writes that waited for a close in vain", held_in_vain),
            ("silent_in_vain", "connections offered late, and silent still", silent_in_vain),
            ("moved_followed", "connections that processes followed here", followed),
            ("moved_late_sent", "late notices passed on to where a connection is", late_sent),
            ("moved_late_heard", "late notices about connections that have come", late_heard),
            ("moved_late_nonsense", "late notices that are none", late_nonsense),
            (
                "moved_lost",
                "connections lost on the way, for lack of memory or with the server they came from",
                moved_lost,
            ),
            ("moved_strays", "connections reset because nobody followed them", strays),
        ]
    }
}

/// How busy a server is. Fed once a turn.
#[derive(Clone, Debug)]
pub struct Load {
    /// Turns in all.
    pub turns: u64,
    /// Turns in which something moved.
    pub busy_turns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Time in turns in which something moved.
    pub busy_us: u64,
    started: Instant,
    window_start: Instant,
    window_busy_us: u64,
    recent_percent: f64,
}

/// Length of the window for the present load.
const WINDOW_US: u64 = 1_000_000;

impl Load {
    /// Nothing done yet.
    pub fn new(now: Instant) -> Load {
        Load {
            turns: 0,
            busy_turns: 0,
            sleeps: 0,
            busy_us: 0,
            started: now,
            window_start: now,
            window_busy_us: 0,
            recent_percent: 0.0,
        }
    }

    /// A turn from `start` to `end`.
    pub fn turn(&mut self, start: Instant, end: Instant, busy: bool) {
        self.turns += 1;
        if busy {
            self.busy_turns += 1;
            self.busy_us += end.since(start);
            self.window_busy_us += end.since(start);
        }
        self.roll(end);
    }

    fn roll(&mut self, now: Instant) {
        let length = now.since(self.window_start);
        if length >= WINDOW_US {
            self.recent_percent = 100.0 * self.window_busy_us as f64 / length as f64;
            self.window_start = now;
            self.window_busy_us = 0;
        }
    }

    /// Share of the time spent with work in the last second or so, 0 to 100.
    pub fn percent(&self, now: Instant) -> f64 {
        // A server that has slept for long has not rolled its window.
        if now.since(self.window_start) > 2 * WINDOW_US { 0.0 } else { self.recent_percent }
    }

    /// Time since the start.
    pub fn uptime_us(&self, now: Instant) -> u64 {
        now.since(self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_that_of_the_last_second() {
        let at = Instant::from_us;
        let mut load = Load::new(at(0));
        load.turn(at(0), at(250_000), true);
        load.turn(at(250_000), at(1_000_000), false);
        assert_eq!(load.percent(at(1_000_000)), 25.0);
        assert_eq!((load.turns, load.busy_turns, load.busy_us), (2, 1, 250_000));
        assert_eq!(load.percent(at(10_000_000)), 0.0);
        assert_eq!(load.uptime_us(at(10_000_000)), 10_000_000);
    }
}
