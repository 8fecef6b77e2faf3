//! The timers of a connection: retransmission, persist, delayed acknowledgement, keep-alive, and
//! the end of FIN-WAIT-2.
//!
//! [`Timers`] holds the deadlines; [`Connection::handle_timers`] runs what is due. The user time-out
//! (RFC 5482) has no timer of its own: it bounds the retransmission, persist and keep-alive timers.

use super::connection::{AckNeed, Connection, Probe};
use super::seam::{State, TcpCounters, TimerOutcome};
use crate::carry::carried;
use crate::{Instant, SocketError};

/// The timers a connection has.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Timer {
    /// RFC 6298: something is in flight.
    Retransmission,
    /// Nothing is in flight and something waits for the window, or for more to fill a segment (RFC
    /// 9293 section 3.8.6.1); or else PTO, when the end of the flight is probed for (RFC 8985).
    Persist,
    /// RFC 9293 section 3.8.6.3.
    DelayedAck,
    /// RFC 9293 section 3.8.4.
    KeepAlive,
    /// An orphan waits for the peer's FIN.
    FinWait2,
}

const TIMERS: usize = 5;
const NEVER: Instant = Instant::from_us(u64::MAX);

/// Deadlines by timer.
#[derive(Debug)]
pub(super) struct Timers {
    deadlines: [Instant; TIMERS],
}

impl Timers {
    /// None armed.
    pub(super) fn new() -> Timers {
        Timers { deadlines: [NEVER; TIMERS] }
    }

    /// Arms or moves a timer.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.deadlines[timer as usize] = at;
    }

    /// Disarms a timer.
    pub(super) fn stop(&mut self, timer: Timer) {
        self.deadlines[timer as usize] = NEVER;
    }

    /// Disarms all.
    pub(super) fn clear(&mut self) {
        self.deadlines = [NEVER; TIMERS];
    }

    /// The deadline of a timer, if armed.
    pub(super) fn deadline(&self, timer: Timer) -> Option<Instant> {
        Some(self.deadlines[timer as usize]).filter(|&at| at != NEVER)
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.deadlines.iter().copied().min().filter(|&at| at != NEVER)
    }

    /// Disarms a timer that is due and says whether it was.
    fn take_due(&mut self, timer: Timer, now: Instant) -> bool {
        let due = self.deadlines[timer as usize] <= now && now != NEVER;
        if due {
            self.stop(timer);
        }
        due
    }
}

impl Connection {
    /// Runs every timer that is due.
    pub fn handle_timers(&mut self, now: Instant, counters: &mut TcpCounters) -> TimerOutcome {
        if self.timers.take_due(Timer::DelayedAck, now) && self.ack == AckNeed::Delayed {
            counters.delayed_acks_sent += 1;
            self.ack = AckNeed::Now;
            // No answer came in time: this is no conversation (Linux).
            self.ping_pong = false;
        }
        if self.timers.take_due(Timer::FinWait2, now) && self.state == State::FinWait2 {
            // As on Linux the orphan disappears without a word; what still comes finds no flow.
            self.finish(State::Closed, None);
            return TimerOutcome::Closed(None);
        }
        if self.timers.take_due(Timer::Retransmission, now)
            && self.in_flight() > 0
            && let Some(outcome) = self.handle_retransmission_timeout(now, counters)
        {
            return outcome;
        }
        if self.timers.take_due(Timer::Persist, now)
            && let Some(outcome) = self.handle_persist_timeout(now, counters)
        {
            return outcome;
        }
        if self.timers.take_due(Timer::KeepAlive, now)
            && let Some(outcome) = self.handle_keep_alive_timeout(now, counters)
        {
            return outcome;
        }
        TimerOutcome::Continue
    }

    /// RFC 6298 section 5.4 to 5.7.
    fn handle_retransmission_timeout(
        &mut self,
        now: Instant,
        counters: &mut TcpCounters,
    ) -> Option<TimerOutcome> {
        if self.has_waited_too_long(now) {
            return Some(self.give_up(counters));
        }
        counters.retransmission_timeouts += 1;
        self.rtt.abandon_timing();
        if matches!(self.state, State::SynSent | State::SynReceived) {
            self.syn_due = true;
        } else {
            self.start_loss_recovery();
        }
        self.loss.backoff = (self.loss.backoff + 1).min(63);
        self.timers.set(Timer::Retransmission, self.retransmission_deadline(now));
        None
    }

    /// When to retransmit next: the time-out, but no later than the user time-out (RFC 5482).
    pub(super) fn retransmission_deadline(&self, now: Instant) -> Instant {
        let deadline = now.plus_us(self.rto_us());
        match self.user_timeout_us() {
            Some(user_us) => deadline.min(self.waiting_since.plus_us(user_us)).max(now.plus_us(1)),
            None => deadline,
        }
    }

    /// The user time-out has changed: it may come before the armed timer.
    pub(super) fn clamp_retransmission_timer(&mut self, now: Instant) {
        if let (Some(user_us), Some(deadline)) =
            (self.user_timeout_us(), self.timers.deadline(Timer::Retransmission))
        {
            let latest = self.waiting_since.plus_us(user_us).max(now);
            self.timers.set(Timer::Retransmission, deadline.min(latest));
        }
    }

    /// TCP_USER_TIMEOUT, if set.
    fn user_timeout_us(&self) -> Option<u64> {
        let user_ms = self.options.user_timeout_ms;
        (user_ms > 0).then_some(u64::from(user_ms) * 1000)
    }

    /// RFC 9293 section 3.8.3: has what is in flight waited for longer than we bear?
    fn has_waited_too_long(&self, now: Instant) -> bool {
        let waited_us = now.since(self.waiting_since);
        // A peer that took its window back may answer without taking anything: what we send again
        // is then a window probe, and those go on while they are answered (section 3.8.6.1).
        let silent_us = if self.send.window == 0 && !self.orphaned {
            now.since(self.heard_at.max(self.waiting_since))
        } else {
            waited_us
        };
        if let Some(user_us) = self.user_timeout_us()
            && waited_us >= user_us
        {
            return true;
        }
        match self.state {
            State::SynSent => self.loss.backoff >= self.parameters.syn_retries,
            State::SynReceived => self.loss.backoff >= self.parameters.synack_retries,
            _ if self.user_timeout_us().is_some() => false,
            _ => self.loss.backoff > 0 && silent_us >= self.patience_us(),
        }
    }

    /// How long data may go unanswered, by retry count.
    fn patience_us(&self) -> u64 {
        let retries =
            if self.orphaned { self.parameters.orphan_retries } else { self.parameters.retries };
        self.parameters.retry_time_us(retries)
    }

    /// Ends the connection for lack of an answer; no RST, as the peer cannot be reached.
    fn give_up(&mut self, counters: &mut TcpCounters) -> TimerOutcome {
        if self.connected {
            counters.timed_out += 1;
        }
        let error = self.soft_error.unwrap_or(SocketError::TimedOut);
        self.finish(State::Closed, Some(error));
        TimerOutcome::Closed(None)
    }

    /// When something waits, cannot go out, and nothing is in flight, no acknowledgement will come by
    /// itself: arms the persist timer unless it runs. Called after everything that may lead there.
    pub(super) fn arm_persist(&mut self, now: Instant) {
        let waits = self.connected && self.in_flight() == 0 && self.has_unsent();
        let armed = self.timers.deadline(Timer::Persist).is_some();
        if !waits || armed || self.is_over() || self.probe != Probe::None || self.can_send_new() {
            return;
        }
        if self.probe_backoff == 0 {
            self.waiting_since = now;
        }
        let interval_us = u64::from(self.rtt.rto_us) << self.probe_backoff.min(31);
        let interval_us = interval_us.min(u64::from(self.parameters.rto_max_us));
        let mut deadline = now.plus_us(interval_us);
        if let Some(user_us) = self.user_timeout_us() {
            deadline = deadline.min(self.waiting_since.plus_us(user_us)).max(now.plus_us(1));
        }
        self.timers.set(Timer::Persist, deadline);
    }

    /// The window opened, or what waited was sent: the next wait starts from the short end.
    pub(super) fn stop_persist(&mut self) {
        self.timers.stop(Timer::Persist);
        self.probe_backoff = 0;
        if self.probe == Probe::Window {
            self.probe = Probe::None;
        }
    }

    /// RFC 9293 section 3.8.6.1: probes go on for ever while the peer answers them; but not for an
    /// orphan, or a peer could fill the host with connections that nobody owns (Linux's rule: not
    /// beyond the longest interval).
    fn handle_persist_timeout(
        &mut self,
        now: Instant,
        counters: &mut TcpCounters,
    ) -> Option<TimerOutcome> {
        if self.in_flight() > 0 {
            self.handle_tail_probe_timeout();
            return None;
        }
        if !self.has_unsent() {
            return None;
        }
        let user_ran_out = self.user_timeout_us().is_some_and(|user_us| {
            self.probe_backoff > 0 && now.since(self.waiting_since) >= user_us
        });
        let limit =
            if self.orphaned { self.parameters.orphan_retries } else { self.parameters.retries };
        let interval_us = u64::from(self.rtt.rto_us) << self.probe_backoff.min(31);
        let slowest = interval_us >= u64::from(self.parameters.rto_max_us);
        let abandoned = self.orphaned && slowest && self.probe_backoff >= limit;
        if user_ran_out || abandoned || self.probes_unanswered >= limit {
            return Some(self.give_up(counters));
        }
        self.probe = Probe::Window;
        None
    }

    /// RFC 9293 section 3.8.4: asks a silent peer, and after enough silence resets.
    fn handle_keep_alive_timeout(
        &mut self,
        now: Instant,
        counters: &mut TcpCounters,
    ) -> Option<TimerOutcome> {
        if !self.options.keep_alive || self.is_over() {
            return None;
        }
        let idle_us = u64::from(self.options.keep_idle_s) * 1_000_000;
        let silent_us = now.since(self.heard_at);
        if self.in_flight() > 0 || self.has_unsent() {
            // Data in flight asks the same question by itself.
            self.timers.set(Timer::KeepAlive, now.plus_us(idle_us));
            return None;
        }
        if silent_us < idle_us {
            self.timers.set(Timer::KeepAlive, now.plus_us(idle_us - silent_us));
            return None;
        }
        let ran_out = match self.user_timeout_us() {
            Some(user_us) => self.probes_unanswered > 0 && silent_us >= user_us,
            None => u32::from(self.probes_unanswered) >= self.options.keep_count,
        };
        if ran_out {
            let reset = self.reset_segment(now);
            let _: TimerOutcome = self.give_up(counters);
            return Some(TimerOutcome::Closed(Some(reset)));
        }
        self.probe = Probe::KeepAlive;
        let interval_us = u64::from(self.options.keep_interval_s) * 1_000_000;
        self.timers.set(Timer::KeepAlive, now.plus_us(interval_us));
        None
    }
}

carried!(struct Timers { deadlines });
