//! What the slab of sockets holds: listeners, UDP sockets, and connections with what the shard knows
//! of them.
//!
//! A connection's own state is in `tcp/`; here is whose it is, where its packets go, and whether
//! its flow still exists.

use super::udp::DatagramSocket;
use crate::flow_table::FlowKey;
use crate::listeners::Listener;
use crate::routing::NextHop;
use crate::socket_id::SocketId;
use crate::tcp::Connection;
use crate::time::Instant;

/// One socket. Nearly all are connections, so that a box would only add a hop.
#[derive(Debug)]
#[expect(clippy::large_enum_variant)]
pub(super) enum Socket {
    /// A listener.
    Listener(Box<Listener>),
    /// A connection.
    Connection(Entry),
    /// A UDP socket.
    Datagram(Box<DatagramSocket>),
}

/// Whose a connection is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// A listener's, in SYN-RECEIVED: nobody outside knows of it.
    HalfOpen(SocketId),
    /// A listener's, established: announced, and not claimed.
    Unclaimed(SocketId),
    /// Somebody's: claimed, or opened by us.
    Owned,
    /// Nobody's: closed by its owner, and not finished.
    Orphan,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its state machine.
    pub connection: Connection,
    /// Addresses and ports.
    pub key: FlowKey,
    /// Where its packets go.
    pub next_hop: NextHop,
    /// Whose it is.
    pub stage: Stage,
    /// The flow is over or has become a TIME-WAIT record; the entry waits for its owner's `close`.
    pub gone: bool,
    /// The neighbour whose address it waits for.
    pub parked: Option<SocketId>,
    /// Its neighbour did not answer: the next segment fails.
    pub unreachable: bool,
    /// Segments sent in its present turn.
    pub turn: u32,
    /// A progress event is queued.
    pub event_queued: bool,
    /// When it was opened.
    pub opened_at: Instant,
    /// Seconds to wait for data before it is accepted.
    pub defer_accept_s: u32,
    /// Traffic class of its packets.
    pub type_of_service: u8,
    /// Hop limit of its packets.
    pub hop_limit: u8,
}

impl Socket {
    /// The connection, if it is one.
    pub(super) fn connection(&self) -> Option<&Entry> {
        match self {
            Socket::Connection(entry) => Some(entry),
            Socket::Listener(_) | Socket::Datagram(_) => None,
        }
    }

    /// The connection, to change.
    pub(super) fn connection_mut(&mut self) -> Option<&mut Entry> {
        match self {
            Socket::Connection(entry) => Some(entry),
            Socket::Listener(_) | Socket::Datagram(_) => None,
        }
    }

    /// The listener, to change.
    pub(super) fn listener_mut(&mut self) -> Option<&mut Listener> {
        match self {
            Socket::Listener(listener) => Some(listener),
            Socket::Connection(_) | Socket::Datagram(_) => None,
        }
    }

    /// The UDP socket, if it is one.
    pub(super) fn datagram(&self) -> Option<&DatagramSocket> {
        match self {
            Socket::Datagram(socket) => Some(socket),
            Socket::Listener(_) | Socket::Connection(_) => None,
        }
    }

    /// The UDP socket, to change.
    pub(super) fn datagram_mut(&mut self) -> Option<&mut DatagramSocket> {
        match self {
            Socket::Datagram(socket) => Some(socket),
            Socket::Listener(_) | Socket::Connection(_) => None,
        }
    }
}
