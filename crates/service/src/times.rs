//! Where the time of a server goes beside TCP/IP: the connection manager, messages between servers,
//! what managers tell each other of their applications, and how long a connection waits for its
//! offer (PIKA paper, section 5.4: T_CM and T_msg; table 3: updates). T_busy is in `stats::Load`.
//!
//! Owned by `server::Core`. Each place reads the processor's counter before and after, and only if it
//! has something to do; `report` and `balance` turn the sums into microseconds.

use haypile_engine::Instant;
use haypile_shm::sys::cycle_counter;
use serde::{Deserialize, Serialize};

/// Sums since the start, in cycles of the processor's counter.
#[derive(Clone, Debug)]
pub struct Times {
    started: Instant,
    started_cycles: u64,
    /// In the connection manager, announcements included.
    pub manager: u64,
    /// Taking, handling and sending messages of other servers.
    pub messages: u64,
    /// For other managers alone: looking whether there is something to say, saying it, hearing it.
    pub offers: u64,
    /// From the handshake of connections to their first offer.
    pub assigning: u64,
    /// So many connections.
    pub assigned: u64,
}

/// The same for people and programs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimesRow {
    /// Microseconds since the start of the server.
    pub uptime_us: u64,
    /// In turns in which something moved.
    pub busy_us: u64,
    /// In the connection manager.
    pub manager_us: f64,
    /// With messages of other servers.
    pub messages_us: f64,
    /// With what connection managers tell each other.
    pub offers_us: f64,
    /// From the handshake of connections to their offer, in all.
    pub assigning_us: f64,
    /// So many connections.
    pub assigned: u64,
}

impl Times {
    /// Nothing yet.
    pub fn new(now: Instant) -> Times {
        Times {
            started: now,
            started_cycles: cycle_counter(),
            manager: 0,
            messages: 0,
            offers: 0,
            assigning: 0,
            assigned: 0,
        }
    }

    /// The sums in microseconds; `busy_us` is that of the load.
    pub fn row(&self, now: Instant, busy_us: u64) -> TimesRow {
        let uptime_us = now.since(self.started);
        let cycles = cycle_counter().wrapping_sub(self.started_cycles).max(1);
        let us = |sum: u64| sum as f64 * uptime_us as f64 / cycles as f64;
        TimesRow {
            uptime_us,
            busy_us,
            manager_us: us(self.manager),
            messages_us: us(self.messages),
            offers_us: us(self.offers),
            assigning_us: us(self.assigning),
            assigned: self.assigned,
        }
    }
}

/// Cycles since an earlier look at the counter; 0 if that was on a core whose counter is ahead.
#[inline]
pub fn since(cycles: u64) -> u64 {
    cycle_counter().saturating_sub(cycles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_told_in_microseconds() {
        let at = Instant::from_us;
        let mut times = Times::new(at(5));
        let before = cycle_counter();
        while since(before) < 1_000_000 {}
        times.manager = since(before);
        times.assigned = 3;
        let row = times.row(at(1_000_005), 7);
        assert_eq!((row.uptime_us, row.busy_us, row.assigned), (1_000_000, 7, 3));
        // Nearly all of the time that the counter saw, which the clock calls a second.
        assert!((100_000.0..=1_000_000.0).contains(&row.manager_us), "{row:?}");
        assert_eq!((row.messages_us, row.offers_us), (0.0, 0.0));
        assert_eq!(since(u64::MAX), 0);
    }
}
