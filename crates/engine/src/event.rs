//! What a shard tells its owner: connections accepted, their progress, names forgotten.
//!
//! Drained with [`crate::Shard::poll_event`] after each burst. Progress is coalesced: it describes
//! a connection at the moment it is taken, and at most one is queued per connection.

use std::net::{IpAddr, SocketAddr};

use crate::error::SocketError;
use crate::resolver::QueryId;
use crate::socket_id::SocketId;

/// Most bytes of a datagram's payload that a [`DatagramReport`] quotes: an ICMPv6 error is at
/// most 1280 bytes long (RFC 4443 section 2.4 (c)), of which 48 and 48 are headers.
pub const QUOTED_MAX: usize = 1184;

/// One thing the owner of a shard has to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The handshake completed on a listener and nobody holds the connection yet. Always comes
    /// before any [`Event::Progress`] of that id.
    Accepted {
        /// The listener that the connection arrived on.
        listener: SocketId,
        /// The new connection.
        id: SocketId,
        /// Our address and port.
        local: SocketAddr,
        /// The peer's address and port.
        remote: SocketAddr,
    },
    /// The state of a connection as of now.
    Progress {
        /// The connection.
        id: SocketId,
        /// Its state.
        progress: Progress,
    },
    /// The shard has forgotten the id; nothing comes for it again. Comes only after `close` of the
    /// connection, or after `close` of its listener when nobody had claimed it. Until then an id
    /// stays valid, whatever happened to the connection.
    Released {
        /// The forgotten connection.
        id: SocketId,
    },
    /// Addresses, routers or name servers have changed: ask [`crate::Shard::addresses`] and the like.
    NetworkChanged,
    /// A name was looked up, or cannot be: [`crate::Shard::take_answer`] has the outcome.
    Resolved {
        /// Which question.
        id: QueryId,
    },
    /// An ICMP error about a datagram of a UDP socket. A connected socket hears of errors that are
    /// final, one with `receive_errors` of all, as on Linux.
    DatagramError {
        /// The socket.
        id: SocketId,
        /// What it means.
        error: SocketError,
        /// The rest, in a box: it would make every event longer.
        report: Box<DatagramReport>,
    },
}

/// An ICMP error about a datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatagramReport {
    /// Where the datagram was sent to.
    pub remote: SocketAddr,
    /// Type of the ICMP or ICMPv6 message.
    pub icmp_type: u8,
    /// Its code.
    pub icmp_code: u8,
    /// The IP MTU that the message reports, in bytes; 0 if it reports none.
    pub mtu: u32,
    /// Who sent the message; `None` when we found out ourselves.
    pub offender: Option<IpAddr>,
    /// What the message quotes of the datagram's payload, at most [`QUOTED_MAX`] bytes; empty
    /// unless the socket has `receive_errors`.
    pub payload: Box<[u8]>,
}

/// How far a connection has come. Positions count bytes from the first data byte of a direction.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// The handshake is complete (stays true afterwards).
    pub connected: bool,
    /// Bytes received in order, so readable up to here.
    pub rx_end: u64,
    /// The peer has sent its FIN and everything before it has arrived.
    pub rx_fin: bool,
    /// Bytes the peer has acknowledged: their memory may be used again.
    pub tx_acked: u64,
    /// Bytes that are worth keeping unacknowledged, as of the last acknowledgement: twice the
    /// congestion window, as on Linux (`tcp_sndbuf_expand`), so that one may be filled while the
    /// other is on its way. 0 before the handshake.
    pub tx_wish: u32,
    /// What ended the connection, if something did.
    pub error: Option<SocketError>,
    /// Both directions are done, or the connection failed: nothing will change any more.
    pub finished: bool,
}
