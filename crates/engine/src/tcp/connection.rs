//! One TCP connection: its state, and the commands of its owner.
//!
//! (Signatures; the state machine follows.)

use super::seam::{Disposition, IcmpError, Setup, State, TcpCounters, TcpInfo, TimerOutcome};
use super::segment::{Outgoing, Segment, SeqNumber};
use super::time_wait::TimeWait;
use crate::{Close, Instant, Progress, SocketId, SocketOption, Streams};

/// One TCP connection.
#[derive(Debug)]
pub struct Connection {
    state: State,
}

impl Connection {
    /// Starts an active open; the SYN comes out of [`Connection::poll_segment`].
    pub fn open_active(_now: Instant, _setup: Setup<'_>) -> Connection {
        Connection { state: State::SynSent }
    }

    /// Starts a passive open from a SYN that the listener admitted; the SYN-ACK comes out of
    /// [`Connection::poll_segment`]. Payload of the SYN is not taken.
    pub fn open_passive(_now: Instant, _setup: Setup<'_>, _syn: &Segment<'_>) -> Connection {
        Connection { state: State::SynReceived }
    }

    /// Takes a segment of this connection.
    pub fn handle_segment(
        &mut self,
        _now: Instant,
        _id: SocketId,
        _segment: &Segment<'_>,
        _streams: &mut impl Streams,
        _counters: &mut TcpCounters,
    ) -> Disposition {
        Disposition::Continue
    }

    /// Runs every timer that is due.
    pub fn handle_timers(&mut self, _now: Instant, _counters: &mut TcpCounters) -> TimerOutcome {
        TimerOutcome::Continue
    }

    /// The next segment to send, until `None`. Its payload must be read from the stream before the
    /// connection sees another acknowledgement.
    pub fn poll_segment(&mut self, _now: Instant, _counters: &mut TcpCounters) -> Option<Outgoing> {
        None
    }

    /// When [`Connection::handle_timers`] wants to run next.
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// True when [`Connection::poll_segment`] may have something. Cheap; may be true in vain.
    pub fn wants_transmit(&self, _now: Instant) -> bool {
        false
    }

    /// What the application should know.
    pub fn progress(&self) -> Progress {
        Progress::default()
    }

    /// True when [`Connection::progress`] has changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        false
    }

    /// The application has written up to stream position `tail`; lower values are ignored, higher
    /// ones clamped to the send buffer.
    pub fn send_ready(&mut self, _now: Instant, _tail: u64) {}

    /// The application has read up to stream position `position`.
    pub fn receive_consumed(&mut self, _now: Instant, _position: u64) {}

    /// No more data will be sent: FIN after what is there.
    pub fn shutdown_send(&mut self, _now: Instant) {}

    /// Data received from now on is acknowledged and discarded.
    pub fn shutdown_receive(&mut self, _now: Instant) {}

    /// The owner lets go. Returns a RST to send when there is one; look at
    /// [`Connection::state`] to see whether it is over already.
    pub fn close(&mut self, _now: Instant, _how: Close) -> Option<Outgoing> {
        None
    }

    /// Changes one option.
    pub fn set_option(&mut self, _now: Instant, _option: SocketOption) {}

    /// Inner numbers for display.
    pub fn info(&self, _now: Instant) -> TcpInfo {
        unimplemented!()
    }

    /// State.
    pub fn state(&self) -> State {
        self.state
    }

    /// The record that answers for this connection in TIME-WAIT.
    pub fn time_wait_record(&self) -> TimeWait {
        unimplemented!()
    }

    /// An ICMP error that quotes a segment of ours with this sequence number.
    pub fn handle_icmp(
        &mut self,
        _now: Instant,
        _error: IcmpError,
        _quoted_seq: SeqNumber,
        _counters: &mut TcpCounters,
    ) {
    }
}
