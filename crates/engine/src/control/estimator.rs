//! How fast an application serves: from the service times of its connections to one number, its
//! *cost*, by which connection managers compare applications.
//!
//! Owned by each acceptor of [`connection_manager`](super::connection_manager). Three estimators,
//! selectable: the PIKA paper's moving median (section 5.3), the connections that it has at the moment, and
//! a peak-sensitive moving average times these connections. A service time is the time from a
//! connection's offer to its close.
//!
//! **Long-lived connections** close seldom, so a median alone would say for hours what it said
//! before they came. The first connection that was claimed since the last close counts with its
//! age once that is clearly more than the median ([`CLEARLY`] times, which chance seldom makes), and
//! at most [`AGE_MAX`] times: one idle connection must not look like a dead application. A silence
//! that was so long counts on when it is over, until a close comes sooner: the median of an
//! application that has become forty times slower says so only after 65 connections, forty times later.

use std::str::FromStr;

use super::names::ServerNumber;
use crate::time::Instant;

/// Service times that the median is of.
pub const WINDOW: usize = 128;
/// Time between two looks at the median.
pub const SAMPLE_INTERVAL_US: u64 = 500;
/// How many times the median an age must be to count.
pub const CLEARLY: u32 = 8;
/// The most an age counts, in medians.
pub const AGE_MAX: u32 = 32;
/// What one connection counts by [`EstimatorKind::Outstanding`], as if in microseconds.
pub const CONNECTION_US: u32 = 1000;
/// Time in which the moving average forgets all but 1/e of what it has seen.
const DECAY_US: f64 = 1_000_000.0;

/// Which estimator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EstimatorKind {
    /// The median of the last 128 service times, looked at every 500 us.
    #[default]
    Median,
    /// The connections that the application has been offered or has.
    Outstanding,
    /// A moving average that follows a rise at once and a fall within a second, times one more than
    /// the connections that the application has; the better of two is chosen.
    PeakEwma,
}

impl EstimatorKind {
    /// All of them.
    pub const ALL: [EstimatorKind; 3] =
        [EstimatorKind::Median, EstimatorKind::Outstanding, EstimatorKind::PeakEwma];

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            EstimatorKind::Median => "median",
            EstimatorKind::Outstanding => "outstanding",
            EstimatorKind::PeakEwma => "peak-ewma",
        }
    }
}

impl FromStr for EstimatorKind {
    type Err = ();

    fn from_str(text: &str) -> Result<EstimatorKind, ()> {
        EstimatorKind::ALL.into_iter().find(|kind| kind.name() == text).ok_or(())
    }
}

/// What is known of one application's speed.
#[derive(Debug, Default)]
pub struct Estimator {
    window: Window,
    median_us: u32,
    looked: Instant,
    average_us: f64,
    heard: Instant,
    /// The first claim since the last close.
    silent_since: Option<Instant>,
    /// How long it was silent before the last close, if that was clearly more than the median.
    silence_us: u64,
    /// What it has.
    pub open: OpenConnections,
}

/// Connections that an application has claimed and not closed, by the transport server where they
/// are: each server says so of its own, wherever they came.
#[derive(Debug, Default)]
pub struct OpenConnections {
    total: u32,
    at: Vec<(ServerNumber, u32)>,
}

impl OpenConnections {
    /// All of them.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// There are so many at `server` now.
    pub fn set(&mut self, server: ServerNumber, count: u32) {
        let before = std::mem::replace(self.of(server), count);
        self.total = self.total.saturating_sub(before).saturating_add(count);
    }

    /// One more at `server`; how many there are there now.
    pub fn add(&mut self, server: ServerNumber) -> u32 {
        let count = self.of(server).saturating_add(1);
        self.set(server, count);
        count
    }

    /// One less.
    pub fn subtract(&mut self, server: ServerNumber) {
        let count = *self.of(server);
        self.set(server, count.saturating_sub(1));
    }

    fn of(&mut self, server: ServerNumber) -> &mut u32 {
        let place = match self.at.iter().position(|(other, _)| *other == server) {
            Some(place) => place,
            None => {
                self.at.push((server, 0));
                self.at.len() - 1
            }
        };
        &mut self.at[place].1
    }
}

impl Estimator {
    /// Connections claimed and not closed.
    pub fn open(&self) -> u32 {
        self.open.total()
    }

    /// Whether any connection has closed.
    pub fn is_known(&self) -> bool {
        !self.window.is_empty()
    }

    /// A connection is claimed. (Whether it is one more in `open` its server says.)
    pub fn claimed(&mut self, now: Instant) {
        if self.silent_since.is_none() {
            self.silent_since = Some(now);
        }
    }

    /// A connection of transport server `server` has closed. True: nothing was known before, or a
    /// silence has begun or ceased to count, so that the cost is another at once.
    pub fn served(&mut self, now: Instant, service_time_us: u32, server: ServerNumber) -> bool {
        self.open.subtract(server);
        let silence_us = self.silent_since.take().map_or(0, |since| now.since(since));
        let silence_us = silence_us.min(u64::from(service_time_us));
        let first = self.window.is_empty();
        let counts = !first && silence_us >= self.clearly_us();
        let counts_us = if counts { silence_us } else { 0 };
        let before_us = std::mem::replace(&mut self.silence_us, counts_us);
        self.window.push(service_time_us);
        if first {
            self.look(now);
        }
        let sample = f64::from(service_time_us);
        let keep = (-(now.since(self.heard) as f64) / DECAY_US).exp();
        self.average_us = if first || sample > self.average_us {
            sample
        } else {
            self.average_us * keep + sample * (1.0 - keep)
        };
        self.heard = now;
        first || (before_us > 0) != (counts_us > 0)
    }

    fn clearly_us(&self) -> u64 {
        u64::from(self.median_us.max(1)) * u64::from(CLEARLY)
    }

    /// A transport server is dead: what was claimed there will not be heard of again.
    pub fn forget_open(&mut self, server: ServerNumber) {
        self.open.set(server, 0);
        self.silent_since = None;
        self.silence_us = 0;
    }

    /// The cost in microseconds, at least 1; `None` while no connection has closed. `unclaimed`:
    /// offers that the application has not answered.
    pub fn cost_us(&mut self, kind: EstimatorKind, now: Instant, unclaimed: u32) -> Option<u32> {
        let connections = self.open.total().saturating_add(unclaimed);
        match kind {
            EstimatorKind::Outstanding => {
                Some(connections.saturating_add(1).saturating_mul(CONNECTION_US))
            }
            _ if self.window.is_empty() => None,
            EstimatorKind::Median => Some(self.median_or_age(now)),
            EstimatorKind::PeakEwma => {
                // Whoever has nothing to do is forgiven with time, so that it is tried again.
                let idle_us = if connections == 0 { now.since(self.heard) } else { 0 };
                let average = self.average_us * (-(idle_us as f64) / DECAY_US).exp();
                let cost = average.max(1.0) * (f64::from(connections) + 1.0);
                Some(cost.min(f64::from(u32::MAX)) as u32)
            }
        }
    }

    fn median_or_age(&mut self, now: Instant) -> u32 {
        if now.since(self.looked) >= SAMPLE_INTERVAL_US {
            self.look(now);
        }
        let median = self.median_us.max(1);
        let age = self.silent_since.map_or(0, |since| now.since(since)).max(self.silence_us);
        if age < self.clearly_us() {
            return median;
        }
        age.min(u64::from(median.saturating_mul(AGE_MAX))) as u32
    }

    fn look(&mut self, now: Instant) {
        self.median_us = self.window.median();
        self.looked = now;
    }
}

/// The last service times, in the order in which they came and by size.
#[derive(Debug, Default)]
struct Window {
    in_order: Vec<u32>,
    oldest: usize,
    sorted: Vec<u32>,
}

impl Window {
    fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    fn push(&mut self, value: u32) {
        if self.in_order.len() < WINDOW {
            self.in_order.push(value);
        } else {
            let old = std::mem::replace(&mut self.in_order[self.oldest], value);
            self.oldest = (self.oldest + 1) % WINDOW;
            let place = self.sorted.partition_point(|&other| other < old);
            self.sorted.remove(place);
        }
        let place = self.sorted.partition_point(|&other| other < value);
        self.sorted.insert(place, value);
    }

    /// The median, rounded down; 0 of nothing.
    fn median(&self) -> u32 {
        let (low, high) = (self.sorted.len().saturating_sub(1) / 2, self.sorted.len() / 2);
        let value = |place: usize| u64::from(self.sorted.get(place).copied().unwrap_or(0));
        ((value(low) + value(high)) / 2) as u32
    }
}

/// How long a process takes to claim what it is offered, and from that how long to wait for it: the
/// mean and four deviations, as RFC 6298 has it for acknowledgements.
#[derive(Debug, Default)]
pub struct ClaimTimes {
    mean_us: u64,
    deviation_us: u64,
    measured: bool,
}

/// The least time that a process is given to claim: less than a scheduler's slice would call every
/// process slow that shares a processor.
pub const CLAIM_PATIENCE_MIN_US: u64 = 2_000;

impl ClaimTimes {
    /// An offer was claimed after so long, or was found unclaimed and its process came back then.
    pub fn add(&mut self, time_us: u64) {
        let time_us = time_us.min(1 << 40);
        if self.measured {
            self.deviation_us = (self.deviation_us * 3 + self.mean_us.abs_diff(time_us)) / 4;
            self.mean_us = (self.mean_us * 7 + time_us) / 8;
        } else {
            (self.mean_us, self.deviation_us, self.measured) = (time_us, time_us / 2, true);
        }
    }

    /// How long to wait for a claim, at most `longest_us`, which is for those not measured yet.
    pub fn patience_us(&self, longest_us: u64) -> u64 {
        if !self.measured {
            return longest_us;
        }
        let patience = self.mean_us + 4 * self.deviation_us;
        patience.max(CLAIM_PATIENCE_MIN_US).min(longest_us)
    }
}

#[cfg(test)]
mod tests;
