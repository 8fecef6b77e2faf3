//! TCP: one [`Connection`] is one connection's state machine, RFC 9293.
//!
//! The shard calls it: segments in by [`Connection::handle_segment`], timers by
//! [`Connection::handle_timers`], segments out by [`Connection::poll_segment`]. Read first: the
//! types of the seam in `seam.rs`, then `connection.rs` (state), `receive.rs` (the numbered steps of
//! RFC 9293 section 3.10.7.4) and `transmit.rs` (what is sent next).

mod assembler;
mod carry;
mod close;
mod congestion;
pub mod connection;
mod handshake;
mod icmp;
mod loss;
mod receive;
mod rtt;
mod sack;
mod scoreboard;
pub mod seam;
pub mod segment;
mod sequence_space;
mod superframe;
mod tail_probe;
pub mod time_wait;
mod timers;
mod transmit;
mod window;

pub use congestion::CongestionControl;
pub use connection::Connection;
pub(crate) use connection::timestamp_at;
pub(crate) use handshake::mss_of_syn;
pub use seam::{
    Disposition, IcmpError, Setup, State, TcpCounters, TcpInfo, TcpLimits, TimerOutcome,
    Unreachable, Vitals,
};
pub use segment::{Flags, Malformed, Options, Outgoing, Segment, SeqNumber, Timestamps};
pub use time_wait::{TimeWait, TimeWaitAnswer};

#[cfg(test)]
mod tests;
