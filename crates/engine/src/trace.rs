//! The event trace: a ring of fixed-size records of what happened to connections, the oldest
//! overwritten first. Written by the shard where segments come and go (`shard/tcp.rs`,
//! `shard/transmit.rs`, `shard/timers.rs`, `shard/lifecycle.rs`), read by its owner by number. All
//! memory is taken when it is switched on; a record costs a copy of two cache lines, and nothing
//! while it is off.

use std::net::SocketAddr;

use crate::drop_reason::DropReason;
use crate::flow_table::FlowKey;
use crate::socket_id::SocketId;
use crate::tcp::{Flags, State, Vitals};
use crate::time::Instant;

/// What happened.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum TraceKind {
    /// A segment arrived.
    Received,
    /// A segment was handed out for the first time, or carries no data.
    Sent,
    /// Something was sent again.
    SentAgain(Reason),
    /// A timer of the connection went.
    Timer,
    /// The connection has no flow any more: closed, reset, timed out, or left to TIME-WAIT.
    Ended,
    /// A segment was dropped before its connection, or without one.
    Dropped(DropReason),
}

/// Why something was sent again.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The retransmission timer went (RFC 6298).
    Timeout,
    /// Loss was noticed from acknowledgements (RFC 5681, 6675).
    Recovery,
    /// A probe of the tail, or a segment of the handshake.
    Probe,
}

/// The fields of a segment's header, as on the wire.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct TracedSegment {
    /// Control bits.
    pub flags: Flags,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Bytes of payload; of a superframe, all of them.
    pub len: u32,
    /// Window, not scaled.
    pub window: u16,
}

/// One event. State and figures are those after it; without a connection they are those of a closed
/// one.
#[derive(Copy, Clone, Debug)]
pub struct TraceRecord {
    /// When.
    pub at: Instant,
    /// The connection; `None` when the segment belonged to none.
    pub id: Option<SocketId>,
    key: FlowKey,
    /// What.
    pub kind: TraceKind,
    /// The segment it is about, all zero when about none.
    pub segment: TracedSegment,
    /// The connection afterwards.
    pub vitals: Vitals,
}

impl TraceRecord {
    pub(crate) fn new(
        at: Instant,
        id: Option<SocketId>,
        key: FlowKey,
        kind: TraceKind,
        segment: TracedSegment,
        vitals: Vitals,
    ) -> TraceRecord {
        TraceRecord { at, id, key, kind, segment, vitals }
    }

    /// Our address and port.
    pub fn local(&self) -> SocketAddr {
        self.key.local()
    }

    /// The peer's address and port.
    pub fn remote(&self) -> SocketAddr {
        self.key.remote()
    }
}

const _: () = assert!(core::mem::size_of::<TraceRecord>() <= 128);

/// The ring.
#[derive(Debug)]
pub(crate) struct Trace {
    records: Vec<TraceRecord>,
    capacity: usize,
    /// Number of the next record; all numbers before it were written.
    next: u64,
}

impl Trace {
    /// A ring of `capacity` records, which is not 0.
    pub(crate) fn new(capacity: usize) -> Trace {
        Trace { records: Vec::with_capacity(capacity), capacity, next: 0 }
    }

    #[inline]
    pub(crate) fn push(&mut self, record: TraceRecord) {
        let place = (self.next % self.capacity as u64) as usize;
        match self.records.get_mut(place) {
            Some(old) => *old = record,
            // Within the capacity: does not allocate.
            None => self.records.push(record),
        }
        self.next += 1;
    }

    /// Number of the next record.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The records from number `since` on that are still there, with their numbers.
    pub(crate) fn since(&self, since: u64) -> impl Iterator<Item = (u64, &TraceRecord)> {
        let oldest = self.next - self.records.len() as u64;
        (since.max(oldest)..self.next)
            .map(|number| (number, &self.records[(number % self.capacity as u64) as usize]))
    }
}

/// Why a segment was sent again, from the connection as it was before.
pub(crate) fn reason(before: &Vitals) -> Reason {
    match before.congestion_state {
        _ if before.state == State::SynSent || before.state == State::SynReceived => {
            if before.backoff > 0 { Reason::Timeout } else { Reason::Probe }
        }
        4 => Reason::Timeout,
        3 => Reason::Recovery,
        _ if before.backoff > 0 => Reason::Timeout,
        _ => Reason::Probe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(us: u64) -> TraceRecord {
        let address: SocketAddr = "[::]:1".parse().unwrap();
        TraceRecord::new(
            Instant::from_us(us),
            None,
            FlowKey::new(address, address),
            TraceKind::Timer,
            TracedSegment::default(),
            Vitals::default(),
        )
    }

    #[test]
    fn the_oldest_are_overwritten_and_numbers_go_on() {
        let mut trace = Trace::new(4);
        let numbers = |trace: &Trace, since| -> Vec<(u64, u64)> {
            trace.since(since).map(|(number, record)| (number, record.at.us())).collect()
        };
        assert!(numbers(&trace, 0).is_empty());
        for us in 0..6 {
            trace.push(record(us));
        }
        assert_eq!(numbers(&trace, 0), [(2, 2), (3, 3), (4, 4), (5, 5)]);
        assert_eq!(numbers(&trace, 4), [(4, 4), (5, 5)]);
        assert!(numbers(&trace, 6).is_empty() && numbers(&trace, u64::MAX).is_empty());
        assert_eq!((trace.next(), trace.records.capacity()), (6, 4));
    }
}
