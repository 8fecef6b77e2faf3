//! Closing: FIN in both directions, half close, abort, and what a reset looks like.
//!
//! Owns RFC 9293 sections 3.6, 3.10.4 (CLOSE) and 3.10.5 (ABORT). As on Linux the state changes
//! when the application closes, not when the FIN goes out: FIN-WAIT-1 and LAST-ACK include the time
//! in which data waits before the FIN.

use super::connection::{AckNeed, Connection};
use super::seam::{Disposition, State, TcpCounters};
use super::segment::{Flags, Outgoing};
use super::sequence_space::FIRST_DATA;
use super::timers::Timer;
use crate::{Close, Instant, SocketError};

impl Connection {
    /// No more data will be sent: FIN after what is there.
    pub fn shutdown_send(&mut self, now: Instant) {
        if self.fin_queued || self.is_over() {
            return;
        }
        if self.in_flight() == 0 && !self.has_unsent() {
            self.waiting_since = now;
        }
        self.send.tail = self.send.tail.max(FIRST_DATA);
        self.fin_queued = true;
        self.state = match self.state {
            State::Established => State::FinWait1,
            State::CloseWait => State::LastAck,
            other => other,
        };
        self.arm_persist(now);
    }

    /// Data received from now on is acknowledged and discarded, as is what was not read yet; once nothing more is sent
    /// either, what comes is answered with a reset.
    pub fn shutdown_receive(&mut self, _now: Instant) {
        if self.receive.discard_from == u64::MAX {
            let end = self.receive.nxt.min(self.receive.fin_at).max(FIRST_DATA);
            self.receive.discard_from = end;
            // Only what was thrown away makes room: otherwise there is nothing to tell.
            if self.receive.consumed < end {
                self.receive.consumed = end;
                self.offer_wider_window();
            }
        }
    }

    /// The owner lets go. Returns a RST to send when there is one; [`Connection::state`] tells
    /// whether it is over already.
    #[must_use]
    pub fn close(&mut self, now: Instant, how: Close) -> Option<Outgoing> {
        let unread =
            self.progress().rx_end > super::sequence_space::position(self.receive.consumed);
        self.orphaned = true;
        match self.state {
            State::Closed | State::TimeWait => None,
            State::SynSent => {
                self.finish(State::Closed, Some(SocketError::ConnectionAborted));
                None
            }
            // RFC 1122 section 4.2.2.13: closing over unread data tells the peer that it is lost.
            _ if how == Close::Abort || unread => self.abort(now),
            _ => {
                self.shutdown_send(now);
                if self.state == State::FinWait2 {
                    self.arm_fin_wait_2(now);
                }
                None
            }
        }
    }

    /// RFC 9293 section 3.10.5: no reset where the peer has closed and we have said all.
    fn abort(&mut self, now: Instant) -> Option<Outgoing> {
        let silent = matches!(self.state, State::Closing | State::LastAck);
        let reset = (!silent).then(|| self.reset_segment(now));
        self.finish(State::Closed, Some(SocketError::ConnectionAborted));
        reset
    }

    /// A reset that the peer will accept: at SND.NXT, or at the window's end if that comes first.
    pub(super) fn reset_segment(&self, now: Instant) -> Outgoing {
        let window_end = self.send.una + u64::from(self.send.window);
        Outgoing {
            seq: self.send.space.wire(self.send.nxt.min(window_end.max(self.send.una))),
            ack: self.receive.space.wire(self.receive.nxt),
            flags: Flags::RST | Flags::ACK,
            options: self.timestamp_options(now),
            ..Outgoing::default()
        }
    }

    /// Whether the owner has let go, or has shut both directions down: then data is answered with a reset, as on Linux
    /// (RFC 1122 section 4.2.2.13).
    pub(super) fn is_read_by_nobody(&self) -> bool {
        self.orphaned || self.fin_queued && self.receive.discard_from != u64::MAX
    }

    /// Data came that nobody will read: the peer gets a reset at the number it expects next, which is what it
    /// acknowledges. An owner that has shut both directions down hears of a reset too.
    pub(super) fn abort_for_late_data(&mut self, now: Instant) -> Disposition {
        let mut reset = self.reset_segment(now);
        reset.seq = self.send.space.wire(self.send.una);
        let error = match self.orphaned {
            true => SocketError::ConnectionAborted,
            false => SocketError::ConnectionReset,
        };
        self.finish(State::Closed, Some(error));
        Disposition::Aborted(reset)
    }

    /// Our FIN is acknowledged.
    pub(super) fn handle_fin_acknowledged(&mut self, now: Instant) -> Option<Disposition> {
        match self.state {
            State::FinWait1 => {
                self.state = State::FinWait2;
                if self.orphaned {
                    self.arm_fin_wait_2(now);
                }
                None
            }
            State::Closing => {
                self.finish(State::TimeWait, None);
                Some(Disposition::EnterTimeWait(None))
            }
            State::LastAck => {
                self.finish(State::Closed, None);
                Some(Disposition::Closed)
            }
            _ => None,
        }
    }

    /// Eighth step: the peer's FIN is next in order.
    pub(super) fn take_fin(&mut self, now: Instant, counters: &mut TcpCounters) -> Disposition {
        self.receive.nxt += 1;
        // A FIN just behind the window is taken; it needs no room.
        self.receive.edge = self.receive.edge.max(self.receive.nxt);
        self.receive.out_of_order.clear();
        self.ack = AckNeed::Now;
        self.changed = true;
        match self.state {
            State::Established => self.state = State::CloseWait,
            State::FinWait1 => self.state = State::Closing,
            State::FinWait2 => {
                let reply = self.header(now, self.send.nxt, Flags::ACK, 0, counters);
                self.finish(State::TimeWait, None);
                return Disposition::EnterTimeWait(Some(reply));
            }
            _ => {}
        }
        Disposition::Continue
    }

    /// An orphan does not wait for the peer's FIN for ever.
    fn arm_fin_wait_2(&mut self, now: Instant) {
        let wait_us = u64::from(self.parameters.fin_wait_2_ms) * 1000;
        self.timers.set(Timer::FinWait2, now.plus_us(wait_us));
    }
}
