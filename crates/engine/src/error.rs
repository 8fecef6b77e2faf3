//! Errors of the commands, and the error a socket carries.
//!
//! Only a local caller sees these. What a peer does wrong is a [`crate::DropReason`], never an
//! error. The service maps each of these to one errno.

use std::fmt;

use crate::carry::carried;
use crate::control::names::ServerNumber;

/// Why a [`crate::ShardConfig`] cannot be used.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// The MTU is below 1280 (RFC 8200 section 5).
    MtuTooSmall(u16),
    /// An address is unspecified, multicast, broadcast or v4-mapped.
    BadAddress(crate::Cidr),
    /// The prefix is longer than the address.
    BadPrefix(crate::Cidr),
    /// The Ethernet address is zero or has the group bit.
    BadMac([u8; 6]),
    /// A route's gateway has another family than its destination.
    BadGateway(crate::Cidr),
    /// A limit is zero or contradicts another; the text names it.
    BadLimit(&'static str),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::MtuTooSmall(mtu) => {
                write!(f, "MTU {mtu} is too small: IPv6 needs at least 1280")
            }
            ConfigError::BadAddress(cidr) => write!(f, "{cidr} is not a usable host address"),
            ConfigError::BadPrefix(cidr) => {
                write!(f, "prefix of {cidr} is longer than the address")
            }
            ConfigError::BadMac(mac) => {
                write!(f, "{mac:02x?} is not a unicast Ethernet address")
            }
            ConfigError::BadGateway(cidr) => {
                write!(f, "gateway of route {cidr} has the wrong address family")
            }
            ConfigError::BadLimit(what) => write!(f, "impossible limit: {what}"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Why a text is not an address with prefix length.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ParseCidrError;

impl fmt::Display for ParseCidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected ADDRESS/PREFIX, such as 198.18.0.2/24")
    }
}

impl std::error::Error for ParseCidrError {}

/// Why [`crate::Shard::listen`] refused.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ListenError {
    /// Another listener has the address and port, and not both allow sharing (EADDRINUSE).
    AddressInUse,
    /// The address is not one of ours (EADDRNOTAVAIL).
    AddressNotAvailable,
    /// Port 0: the caller chooses ports (EINVAL).
    NoPort,
    /// The limit of sockets is reached (ENOBUFS).
    TooManySockets,
    /// The UDP port is at home in another server: ask there.
    Elsewhere(ServerNumber),
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ListenError::AddressInUse => "address already in use",
            ListenError::AddressNotAvailable => "not an address of this service",
            ListenError::NoPort => "a listener needs a port",
            ListenError::TooManySockets => "no room for another socket",
            ListenError::Elsewhere(_) => "another server is the port's home",
        })
    }
}

impl std::error::Error for ListenError {}

/// Why [`crate::Shard::connect`] refused.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ConnectError {
    /// The flow exists already (EADDRINUSE, or EADDRNOTAVAIL as Linux says for a chosen port).
    AddressInUse,
    /// The local address is not one of ours (EADDRNOTAVAIL).
    AddressNotAvailable,
    /// Every port of the ephemeral range is taken towards this peer (EADDRNOTAVAIL).
    NoPortLeft,
    /// No route, or no source address of that family (ENETUNREACH).
    NetworkUnreachable,
    /// The remote address cannot be connected to: port 0, unspecified, multicast, broadcast
    /// (EINVAL, ENETUNREACH).
    BadRemote,
    /// Local and remote address have different families (EAFNOSUPPORT).
    FamilyMismatch,
    /// The limit of sockets is reached (ENOBUFS).
    TooManySockets,
    /// A broadcast address, and the UDP socket has no permission for it (EACCES).
    BroadcastRefused,
    /// Another server owns the flow: ask there.
    Elsewhere(ServerNumber),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConnectError::AddressInUse => "a connection with these addresses exists",
            ConnectError::AddressNotAvailable => "not an address of this service",
            ConnectError::NoPortLeft => "no local port is left towards this peer",
            ConnectError::NetworkUnreachable => "no route to this network",
            ConnectError::BadRemote => "cannot connect to this address",
            ConnectError::FamilyMismatch => "local and remote address have different families",
            ConnectError::TooManySockets => "no room for another socket",
            ConnectError::BroadcastRefused => "the socket may not send to broadcast addresses",
            ConnectError::Elsewhere(_) => "another server owns the flow",
        })
    }
}

impl std::error::Error for ConnectError {}

/// Why a datagram was not sent.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum SendError {
    /// Larger than any datagram can be, or than the path allows without fragments (EMSGSIZE).
    MessageTooLong {
        /// The IP MTU of the path in bytes.
        mtu: u32,
    },
    /// No route, or no source address of that family (ENETUNREACH).
    NoRoute,
    /// No destination is given, and the socket is not connected (EDESTADDRREQ).
    NotConnected,
    /// The source address is not one of ours (EADDRNOTAVAIL, EINVAL for IP_PKTINFO).
    AddressNotOurs,
    /// A broadcast address, and the socket has no permission for it (EACCES).
    BroadcastRefused,
    /// The destination is port 0 or the unspecified address (EINVAL).
    BadRemote,
    /// The destination has another family than the socket (EAFNOSUPPORT).
    FamilyMismatch,
    /// Segments that do not fit the path MTU, or too many of them (EINVAL).
    BadSegmentSize,
    /// The id names no UDP socket (EBADF).
    NoSocket,
    /// The queue is full: try again after `poll_transmit` (EAGAIN).
    Busy,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::MessageTooLong { mtu } => {
                return write!(f, "too long for a path MTU of {mtu}");
            }
            SendError::NoRoute => "no route to this network",
            SendError::NotConnected => "no destination is given and the socket is not connected",
            SendError::AddressNotOurs => "not an address of this service",
            SendError::BroadcastRefused => "the socket may not send to broadcast addresses",
            SendError::BadRemote => "cannot send to this address",
            SendError::FamilyMismatch => "the socket is of another address family",
            SendError::BadSegmentSize => "segments do not fit the path or are too many",
            SendError::NoSocket => "no such UDP socket",
            SendError::Busy => "the send queue is full",
        })
    }
}

impl std::error::Error for SendError {}

/// Why joining or leaving a multicast group was refused.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum GroupError {
    /// The address is not a multicast address, or of another family than the socket (EINVAL).
    NotMulticast,
    /// No interface has that address (ENODEV).
    NoInterface,
    /// The socket is a member already (EADDRINUSE).
    AlreadyMember,
    /// The socket is no member (EADDRNOTAVAIL).
    NotMember,
    /// Too many groups (ENOBUFS).
    TooManyGroups,
    /// The id names no UDP socket (EBADF).
    NoSocket,
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GroupError::NotMulticast => "not a multicast address of the socket's family",
            GroupError::NoInterface => "no interface has this address",
            GroupError::AlreadyMember => "the socket is in the group already",
            GroupError::NotMember => "the socket is not in the group",
            GroupError::TooManyGroups => "no room for another group",
            GroupError::NoSocket => "no such UDP socket",
        })
    }
}

impl std::error::Error for GroupError {}

/// What went wrong with a connection; sticky once set, shown in [`crate::Progress`]. For a UDP
/// socket what an ICMP error says, shown in [`crate::Event::DatagramError`].
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum SocketError {
    /// The peer sent a reset on a synchronised connection (ECONNRESET).
    ConnectionReset,
    /// The peer answered our SYN with a reset (ECONNREFUSED).
    ConnectionRefused,
    /// The connection was aborted on our side (ECONNABORTED).
    ConnectionAborted,
    /// No answer within the retransmission, keep-alive or user time-out (ETIMEDOUT).
    TimedOut,
    /// The neighbour or a router says that the host cannot be reached (EHOSTUNREACH).
    HostUnreachable,
    /// A router says that the network cannot be reached (ENETUNREACH).
    NetworkUnreachable,
    /// The peer's host has no TCP (ENOPROTOOPT).
    ProtocolUnreachable,
    /// Writing after our side was shut down, or after a reset that was already reported (EPIPE).
    BrokenPipe,
    /// Memory for the connection could not be had (ENOBUFS).
    NoMemory,
    /// A datagram was too large for its path (EMSGSIZE).
    MessageTooLong,
    /// A router or the peer's host does not let the datagram through (EACCES).
    PermissionDenied,
    /// The peer or a router complains about a header (EPROTO).
    ProtocolError,
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SocketError::ConnectionReset => "connection reset by peer",
            SocketError::ConnectionRefused => "connection refused",
            SocketError::ConnectionAborted => "connection aborted",
            SocketError::TimedOut => "connection timed out",
            SocketError::HostUnreachable => "no route to host",
            SocketError::NetworkUnreachable => "network is unreachable",
            SocketError::ProtocolUnreachable => "protocol not available at the peer",
            SocketError::BrokenPipe => "broken pipe",
            SocketError::NoMemory => "no memory for the connection",
            SocketError::MessageTooLong => "message too long for its path",
            SocketError::PermissionDenied => "prohibited on the way or by the peer",
            SocketError::ProtocolError => "protocol error",
        })
    }
}

impl std::error::Error for SocketError {}

carried!(
    enum SocketError {
        ConnectionReset = 0,
        ConnectionRefused = 1,
        ConnectionAborted = 2,
        TimedOut = 3,
        HostUnreachable = 4,
        NetworkUnreachable = 5,
        ProtocolUnreachable = 6,
        BrokenPipe = 7,
        NoMemory = 8,
        MessageTooLong = 9,
        PermissionDenied = 10,
        ProtocolError = 11,
    }
);
