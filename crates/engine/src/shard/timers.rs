//! Time passes: connections, TIME-WAIT records, neighbours and fragments that are due.
//!
//! Called by the owner of the shard when [`Shard::poll_timeout`] says so, or more often.

use super::Shard;
use super::entry::{Socket, Stage};
use crate::counters::Counter;
use crate::flow_table::FlowOwner;
use crate::limits::{LOOPBACK_PER_CALL, TIMERS_PER_CALL};
use crate::socket_id::SocketId;
use crate::streams::Streams;
use crate::tcp::TimerOutcome;
use crate::time::Instant;
use crate::trace::TraceKind;

impl Shard {
    /// Handles what is due, a bounded part of it: while more is left, [`Shard::poll_timeout`] stays
    /// at or before `now`. Call [`Shard::poll_transmit`] afterwards.
    pub fn handle_timers(&mut self, now: Instant, streams: &mut impl Streams) {
        self.now = now;
        let mut due = std::mem::take(&mut self.due);
        let _: bool = self.wheel.expire(now, TIMERS_PER_CALL, &mut due);
        for index in due.drain(..) {
            if let Some(id) = self.sockets.id_at(index) {
                self.handle_connection_timer(id);
            }
        }
        self.due = due;
        for _ in 0..TIMERS_PER_CALL {
            let Some((name, waiting)) = self.time_wait.pop_expired(now) else { break };
            self.flows.remove(&waiting.key, FlowOwner::TimeWait(name));
        }
        for _ in 0..TIMERS_PER_CALL {
            let Some(expired) = self.reassembly.pop_expired(now) else { break };
            self.send_reassembly_timeout(expired);
        }
        self.neighbours.handle_timers(now, TIMERS_PER_CALL, &mut self.counters);
        self.release_neighbours();
        self.groups.handle_timers(now);
        self.handle_network_timers();
        self.handle_dhcp_timers();
        self.handle_resolver_timers();
        for _ in 0..LOOPBACK_PER_CALL {
            if !self.handle_next_own_packet(streams) {
                break;
            }
        }
    }

    /// When [`Shard::handle_timers`] wants to be called next; possibly earlier than anything is
    /// due, never much later (timers have a grain of 256 us). `None`: not before something arrives.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.unfinished {
            return Some(self.now);
        }
        let timeouts = [
            self.wheel.next_timeout(),
            self.time_wait.next_timeout(),
            self.reassembly.next_timeout(),
            self.neighbours.next_timeout(),
            self.groups.next_timeout(),
            self.network.next_timeout(),
            self.resolver.next_timeout(),
            self.dhcp.as_ref().map(|client| client.next_timeout()),
        ];
        timeouts.into_iter().flatten().min()
    }

    fn handle_connection_timer(&mut self, id: SocketId) {
        let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut) else { return };
        let half_open = matches!(entry.stage, Stage::HalfOpen(_));
        let outcome = entry.connection.handle_timers(self.now, &mut self.counters.tcp);
        self.trace_event(id, TraceKind::Timer);
        match outcome {
            TimerOutcome::Continue => {}
            TimerOutcome::Closed(reset) => {
                if half_open {
                    self.counters.count(Counter::TcpHalfOpenTimeouts);
                }
                if let Some(reset) = reset {
                    self.reply_for(id, &reset);
                }
                self.conclude(id);
            }
        }
        self.settle(id);
    }
}
