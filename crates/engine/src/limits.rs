//! All sizes and times of a shard in one file, with compile-time checks of their relations.
//!
//! Who pays, and what gives way first: half-open connections (SYNs beyond their limit are answered
//! with a cookie, and nothing is kept of them), TIME-WAIT
//! records (the oldest is forgotten), neighbours (the longest unused is forgotten), fragments (the
//! oldest datagram is dropped), queued replies (the newest is dropped), datagrams to send (their
//! sender has to wait). An established connection
//! is never given up for a new one. The TCP engine takes [`TcpLimits`] by reference.

use crate::tcp::TcpLimits;

/// Largest window of one direction, bytes: what a FIFO of 16 chunks of 64 KiB holds at any
/// alignment of its head.
pub const RECEIVE_BUFFER_MAX: u32 = 15 * 64 * 1024;
/// Receive buffer a connection starts with, bytes.
pub const RECEIVE_BUFFER_DEFAULT: u32 = 256 * 1024;
/// Smallest receive buffer, bytes.
pub const RECEIVE_BUFFER_MIN: u32 = 4096;
/// Largest send buffer, bytes.
pub const SEND_BUFFER_MAX: u32 = 15 * 64 * 1024;
/// Send buffer a connection starts with, bytes.
pub const SEND_BUFFER_DEFAULT: u32 = 256 * 1024;
/// Smallest send buffer, bytes.
pub const SEND_BUFFER_MIN: u32 = 4096;
/// Largest backlog of a listener; a larger wish is cut to it (Linux's `somaxconn`).
pub const BACKLOG_MAX: u32 = 65_535;
/// Smallest IP MTU (RFC 8200 section 5).
pub const MTU_MIN: u16 = 1280;
/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Largest IP datagram that is reassembled or sent in fragments, header included.
pub const DATAGRAM_MAX: usize = 65_535;

/// Timers that expire in one call of `handle_timers`, so that a turn stays bounded.
pub const TIMERS_PER_CALL: usize = 256;
/// Packets of our own to ourselves that are handled in one call of `poll_transmit`.
pub const LOOPBACK_PER_CALL: usize = 64;
/// Steps that one call of `poll_transmit` takes at most before it gives up the turn.
pub const STEPS_PER_TRANSMIT: usize = 256;
/// Segments that a connection may send before the next one has its turn.
pub const SEGMENTS_PER_TURN: u32 = 16;

/// First port that is chosen for outgoing connections (Linux's default range).
pub const EPHEMERAL_FIRST: u16 = 32_768;
/// Last port that is chosen for outgoing connections.
pub const EPHEMERAL_LAST: u16 = 60_999;

const _: () = assert!(RECEIVE_BUFFER_MIN <= RECEIVE_BUFFER_DEFAULT);
const _: () = assert!(RECEIVE_BUFFER_DEFAULT <= RECEIVE_BUFFER_MAX);
const _: () = assert!(SEND_BUFFER_MIN <= SEND_BUFFER_DEFAULT);
const _: () = assert!(SEND_BUFFER_DEFAULT <= SEND_BUFFER_MAX);
const _: () = assert!(RECEIVE_BUFFER_MAX < 1 << 30, "RFC 7323 section 2.3");
const _: () = assert!(EPHEMERAL_FIRST < EPHEMERAL_LAST);
const _: () = assert!(EPHEMERAL_FIRST >= 1024);
const _: () = assert!(LOOPBACK_PER_CALL <= STEPS_PER_TRANSMIT);

/// Brings a wish for a receive buffer into its range.
pub fn clamp_receive_buffer(bytes: u32) -> u32 {
    bytes.clamp(RECEIVE_BUFFER_MIN, RECEIVE_BUFFER_MAX)
}

/// Brings a wish for a send buffer into its range.
pub fn clamp_send_buffer(bytes: u32) -> u32 {
    bytes.clamp(SEND_BUFFER_MIN, SEND_BUFFER_MAX)
}

/// How much a shard may hold. The defaults are for one core of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Sockets: listeners and connections, half-open ones included. At most 2^24.
    pub connections: u32,
    /// Half-open connections of the whole shard.
    pub half_open: u32,
    /// Half-open connections a listener may have if its backlog is smaller. More than clients open
    /// at once in earnest, because a cookie keeps less than a half-open connection does.
    pub half_open_per_listener: u32,
    /// TIME-WAIT records.
    pub time_wait: u32,
    /// Neighbours whose Ethernet address is known or asked for.
    pub neighbours: u32,
    /// Packets that wait for one neighbour's address.
    pub packets_per_neighbour: u32,
    /// Neighbours that are begun to be asked for in a second.
    pub neighbour_requests_per_second: u32,
    /// Datagrams in reassembly.
    pub reassembly_contexts: u32,
    /// Datagrams in reassembly from one source; the oldest makes room for the next.
    pub reassembly_contexts_per_source: u32,
    /// Bytes held by all datagrams in reassembly.
    pub reassembly_bytes: usize,
    /// Replies (RST, ICMP, ARP, NDP, challenge ACK) that wait for `poll_transmit`.
    pub replies: u32,
    /// Bytes of replies that wait for `poll_transmit`.
    pub reply_bytes: usize,
    /// Datagrams of UDP sockets that wait for `poll_transmit`.
    pub datagrams: u32,
    /// Bytes of datagrams that wait for `poll_transmit`.
    pub datagram_bytes: usize,
    /// Bytes of one UDP socket's datagrams that wait for `poll_transmit`.
    pub datagram_bytes_per_socket: usize,
    /// Destinations whose path MTU is remembered for datagrams.
    pub path_mtus: u32,
    /// Multicast groups that sockets may join, all together.
    pub groups: u32,
    /// Groups that one socket may join (Linux's `igmp_max_memberships`).
    pub groups_per_socket: u32,
    /// Packets to ourselves that wait to be handled.
    pub loopback_packets: u32,
    /// ICMP errors a second for the whole shard (RFC 4443 section 2.4 f, RFC 1812 4.3.2.8).
    pub icmp_errors_per_second: u32,
    /// ICMP errors that may go out at once after a pause.
    pub icmp_errors_burst: u32,
    /// Echo replies a second for the whole shard.
    pub echo_replies_per_second: u32,
    /// Maximum segment lifetime; TIME-WAIT lasts twice as long (RFC 9293 section 3.4.2).
    pub msl_us: u64,
    /// Limits of one connection.
    pub tcp: TcpLimits,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1_000_000,
            half_open: 65_536,
            half_open_per_listener: 16_384,
            time_wait: 262_144,
            neighbours: 1024,
            packets_per_neighbour: 8,
            neighbour_requests_per_second: 200,
            reassembly_contexts: 256,
            reassembly_contexts_per_source: 64,
            reassembly_bytes: 4 << 20,
            replies: 1024,
            reply_bytes: 1 << 20,
            datagrams: 4096,
            datagram_bytes: 8 << 20,
            datagram_bytes_per_socket: 212_992,
            path_mtus: 1024,
            groups: 256,
            groups_per_socket: 20,
            loopback_packets: 1024,
            icmp_errors_per_second: 1000,
            icmp_errors_burst: 50,
            echo_replies_per_second: 10_000,
            msl_us: 30_000_000,
            tcp: TcpLimits {
                receive_buffer_max: RECEIVE_BUFFER_MAX,
                send_buffer_max: SEND_BUFFER_MAX,
                ..TcpLimits::default()
            },
        }
    }
}
