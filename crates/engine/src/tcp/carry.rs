//! A connection on its way to another server: all of its variables, and the check that they fit each other.
//!
//! The fields are listed beside their types (`carried!`). Bytes of the streams do not cross with them: they stay
//! where they lie, or are brought there by whoever calls. Called by [`crate::migration`] by way of the shard.

use super::connection::{Connection, OFFSET_MAX};
use super::seam::{Parameters, State};
use super::segment::WINDOW_SCALE_MAX;
use super::sequence_space::{FIRST_DATA, SYN_OFFSET};
use crate::carry::{Carry, Reader, Refusal, Writer, demand};
use crate::limits::RECEIVE_BUFFER_MAX;
use crate::{SocketOption, SocketOptions};

/// More than can be in flight, or offered, at once (RFC 7323 section 2.3).
const WINDOW_MAX: u64 = 1 << 30;
/// Doublings of a timer, and probes in a row.
const BACKOFF_MAX: u8 = 63;
/// Retries that a time is computed from.
const RETRIES_MAX: u8 = 127;

impl Connection {
    /// Writes everything another server needs to go on with this connection.
    pub fn export(&self, out: &mut Writer) {
        debug_assert_eq!(self.check(), Ok(()), "whoever gets it will refuse it");
        self.write(out);
    }

    /// Makes the connection anew from what [`Connection::export`] wrote.
    ///
    /// # Errors
    /// See [`Refusal`]: whatever is taken cannot make a connection go wrong.
    pub fn import(input: &mut Reader<'_>) -> Result<Connection, Refusal> {
        let connection = Connection::read(input)?;
        connection.check()?;
        Ok(connection)
    }

    /// The connection runs over IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// The connection was opened by the peer.
    pub fn is_passive(&self) -> bool {
        self.passive
    }

    fn check(&self) -> Result<(), Refusal> {
        let opening = matches!(self.state, State::SynSent | State::SynReceived);
        demand(!self.is_over(), "a connection that is over")?;
        demand(self.connected != opening, "connected or not")?;
        self.check_send_space()?;
        self.check_receive_space()?;
        self.congestion.check()?;
        if let Some(board) = &self.loss.board {
            board.check(self.send.una, self.send.nxt)?;
        }
        let backoff = self.loss.backoff.max(self.probe_backoff);
        demand(backoff <= BACKOFF_MAX, "doublings of a timer")?;
        demand(self.loss.recover <= OFFSET_MAX, "recovery point")?;
        self.parameters.check()?;
        self.options.check()?;
        demand((1..=self.parameters.rto_max_us).contains(&self.rtt.rto_us), "time-out")
    }

    fn check_send_space(&self) -> Result<(), Refusal> {
        let send = &self.send;
        let first = if self.connected { FIRST_DATA } else { SYN_OFFSET };
        let end = send.tail + u64::from(self.fin_queued);
        demand((FIRST_DATA..OFFSET_MAX).contains(&send.tail), "end of what was written")?;
        demand(first <= send.una && send.una <= send.nxt && send.nxt <= end, "SND.UNA, SND.NXT")?;
        let unopened = !self.connected && (send.una > SYN_OFFSET || send.nxt > FIRST_DATA);
        demand(!unopened, "data before the handshake")?;
        demand(send.nxt - send.una <= 2 * WINDOW_MAX, "bytes in flight")?;
        let windows = send.window.max(send.window_max);
        demand(u64::from(windows) <= WINDOW_MAX && send.shift <= WINDOW_SCALE_MAX, "SND.WND")?;
        demand(send.mss > 0, "segment size")
    }

    fn check_receive_space(&self) -> Result<(), Refusal> {
        let receive = &self.receive;
        let received = receive.nxt.min(receive.fin_at).min(receive.discard_from).max(FIRST_DATA);
        let ordered = SYN_OFFSET <= receive.acked
            && receive.acked <= receive.nxt
            && receive.nxt <= receive.edge
            && receive.nxt < OFFSET_MAX;
        demand(ordered, "RCV.NXT")?;
        let heard = self.state == State::SynSent || receive.nxt >= FIRST_DATA;
        demand(heard, "nothing heard")?;
        demand(receive.edge - receive.nxt <= WINDOW_MAX, "RCV.WND")?;
        demand((FIRST_DATA..=received).contains(&receive.consumed), "what was read")?;
        demand(receive.measured_from <= receive.consumed, "what was read before")?;
        let known = |offset: u64| offset == u64::MAX || (FIRST_DATA..OFFSET_MAX).contains(&offset);
        demand(known(receive.fin_at) && known(receive.discard_from), "the peer's end")?;
        demand(receive.fin_at.saturating_add(1) >= receive.nxt, "data beyond the peer's end")?;
        receive.out_of_order.check(receive.nxt, receive.nxt + WINDOW_MAX)?;
        let buffer = (1..=RECEIVE_BUFFER_MAX).contains(&receive.buffer);
        demand(buffer && receive.shift <= WINDOW_SCALE_MAX, "receive buffer")?;
        demand(receive.mss_announced > 0, "segment size announced")
    }
}

impl Parameters {
    fn check(&self) -> Result<(), Refusal> {
        let times = [
            self.rto_initial_us,
            self.rto_min_us,
            self.rto_max_us,
            self.delayed_ack_us,
            self.fin_wait_2_ms,
        ];
        demand(times.iter().all(|time| *time > 0), "a time-out of nothing")?;
        let buffers = self.receive_buffer_max.max(self.send_buffer_max);
        demand(buffers <= WINDOW_MAX as u32, "buffer limits")?;
        let retries = [self.syn_retries, self.synack_retries, self.retries, self.orphan_retries];
        demand(retries.iter().all(|count| *count <= RETRIES_MAX), "retries")
    }
}

impl SocketOptions {
    /// That every option lies in its range.
    ///
    /// # Errors
    /// [`Refusal::Impossible`].
    pub fn check(&self) -> Result<(), Refusal> {
        let mut brought = *self;
        for option in [
            SocketOption::KeepIdle(self.keep_idle_s),
            SocketOption::KeepInterval(self.keep_interval_s),
            SocketOption::KeepCount(self.keep_count),
            SocketOption::HopLimit(self.hop_limit),
            SocketOption::SynCount(self.syn_count),
        ] {
            brought.set(option);
        }
        demand(brought == *self, "socket options")
    }
}
