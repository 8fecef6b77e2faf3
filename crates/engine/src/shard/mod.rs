//! One core's network: everything between Ethernet frames and the streams of connections.
//!
//! The service makes one [`Shard`] per core and drives it: frames in by [`Shard::handle_frame`],
//! time by [`Shard::handle_timers`], frames out by [`Shard::poll_transmit`], news by
//! [`Shard::poll_event`], and the commands of applications in between. Read next: `receive.rs` (the
//! way in), `tcp.rs` (where a SYN becomes a connection), `udp.rs`, `lifecycle.rs`, `transmit.rs` (the
//! way out).

mod arp;
mod commands;
mod cookies;
mod dhcp;
mod elsewhere;
mod entry;
mod groups;
mod headers;
mod icmp;
mod icmp_errors;
mod ipv4;
mod ipv6;
pub mod knock;
mod lifecycle;
mod migration;
mod ndp;
mod network;
mod receive;
mod resolver;
mod tcp;
mod timers;
mod tracing;
mod transmit;
mod udp;
mod udp_commands;
mod udp_errors;
mod udp_send;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

pub use self::elsewhere::{Forward, ForwardKind, Steered};
use self::entry::{Entry, Socket};
use self::lifecycle::QueuedEvent;
use self::migration::Arriving;
use self::udp::DatagramSocket;
use crate::config::{Offloads, ShardConfig};
use crate::control::names::ServerNumber;
use crate::counters::Counters;
use crate::datagram_table::DatagramTable;
use crate::error::ConfigError;
use crate::flow_table::FlowTable;
use crate::groups::Groups;
use crate::keys::Keys;
use crate::limits::Limits;
use crate::listeners::{Listener, Listeners};
use crate::lists::{Links, List};
use crate::neighbours::Neighbours;
use crate::network::Network;
use crate::packets::{Buffers, DatagramQueue, ReplyQueue};
use crate::path_mtu::PathMtus;
use crate::ports::Ports;
use crate::rate_limit::RateLimit;
use crate::reassembly::Reassembly;
use crate::resolver::Resolver;
use crate::routing::Routing;
use crate::slab::Slab;
use crate::socket_id::SocketId;
use crate::tcp::State;
use crate::time::Instant;
use crate::time_wait_table::{TimeWaitTable, Waiting};
use crate::timer_wheel::TimerWheel;
use crate::trace::Trace;

/// What a socket is doing, for display.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum SocketState {
    /// A listener.
    Listen,
    /// A connection, or a TIME-WAIT record.
    Tcp(State),
    /// A UDP socket.
    Datagram,
}

/// One line of a listing of sockets.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SocketSummary {
    /// Its name; a TIME-WAIT record has none.
    pub id: Option<SocketId>,
    /// What it is doing.
    pub state: SocketState,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's; none for a listener or an unconnected UDP socket.
    pub remote: Option<SocketAddr>,
    /// Bytes received and not consumed; for a listener the connections that wait for `accept`; 0
    /// for a UDP socket, whose memory the shard does not know.
    pub receive_queue: u64,
    /// Bytes not yet acknowledged, sent or not; for a listener its backlog, for a UDP socket bytes
    /// of packets not yet sent.
    pub send_queue: u64,
    /// When its next timer is due.
    pub timeout: Option<Instant>,
}

/// One core's network. Single-threaded, and driven in this order, again and again:
///
/// 1. [`Shard::handle_frame`] for each frame that arrived, commands for each wish of an
///    application, [`Shard::handle_timers`] once [`Shard::poll_timeout`] is reached;
/// 2. [`Shard::poll_transmit`] until it has no frame left;
/// 3. [`Shard::poll_event`] until it has no event left.
///
/// `now` may stand still from call to call, but must not go back.
#[derive(Debug)]
pub struct Shard {
    mac: [u8; 6],
    mtu: usize,
    offloads: Offloads,
    limits: Limits,
    /// Time of the last call.
    now: Instant,
    counters: Counters,
    network: Network,
    /// The tables made from `network`.
    routing: Routing,
    network_event_queued: bool,
    resolver: Resolver,
    dhcp: Option<Box<crate::dhcp::Client>>,
    keys: Keys,
    neighbours: Neighbours,
    reassembly: Reassembly,
    sockets: Slab<Socket>,
    flows: FlowTable,
    listeners: Listeners,
    listener_count: usize,
    datagrams: DatagramTable,
    datagram_count: usize,
    /// Reused for each datagram to a group.
    matches: Vec<SocketId>,
    /// Datagrams of UDP sockets that wait to be sent.
    outgoing: DatagramQueue,
    /// The last frame was a datagram: connections are next.
    datagram_sent: bool,
    groups: Groups,
    path_mtus: PathMtus,
    ports: Ports,
    time_wait: TimeWaitTable,
    /// Connections in SYN-RECEIVED.
    half_open: u32,
    /// Until then a SYN cookie of ours may come back.
    cookies_until: Instant,
    /// Places of connections in their listeners' queues.
    queue_links: Links,
    /// Connections that have something to send, in order of their turns.
    ready: List,
    /// Places in the ready list, or in the list of those that wait for a neighbour.
    ready_links: Links,
    /// One timer for each connection.
    wheel: TimerWheel,
    /// Reused by each call of `handle_timers`.
    due: Vec<u32>,
    events: VecDeque<QueuedEvent>,
    replies: ReplyQueue,
    /// IP packets to ourselves.
    loopback: VecDeque<Vec<u8>>,
    buffers: Buffers,
    /// Of the last packet that was sent in fragments.
    identification: u32,
    error_limit: RateLimit,
    echo_limit: RateLimit,
    /// `poll_transmit` gave up its turn with work left.
    unfinished: bool,
    /// The event trace, while it is on.
    trace: Option<Box<Trace>>,
    /// Which server we are, where there are several.
    steered: Option<Steered>,
    /// Packets for other servers.
    forwards: VecDeque<Forward>,
    /// Buckets that are on their way to us.
    arriving: Arriving,
    /// The speaker has news for the others.
    network_update_due: bool,
    /// Groups of other servers, at the speaker.
    foreign_groups: BTreeMap<ServerNumber, Vec<IpAddr>>,
}

impl Shard {
    /// Makes a shard. Its tables grow as they fill.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: ShardConfig, now: Instant) -> Result<Shard, ConfigError> {
        config.validate()?;
        let ShardConfig { mac, mtu, addresses, routes, limits, secret, seed, offloads, steered } =
            config;
        let servers = steered.as_ref().map_or(1, |steered| steered.steering.servers());
        let network = Network::new(&addresses, &routes);
        Ok(Shard {
            mac,
            mtu: usize::from(mtu),
            offloads,
            now,
            counters: Counters::new(),
            routing: network.routing(),
            network,
            network_event_queued: false,
            resolver: Resolver::default(),
            dhcp: None,
            keys: Keys::new(&secret),
            neighbours: Neighbours::new(now, seed, &limits),
            reassembly: Reassembly::new(
                seed,
                limits.reassembly_contexts as usize,
                limits.reassembly_contexts_per_source as usize,
                limits.reassembly_bytes,
            ),
            sockets: Slab::new(limits.connections as usize),
            flows: FlowTable::new(seed),
            listeners: Listeners::new(seed),
            listener_count: 0,
            datagrams: DatagramTable::new(seed),
            datagram_count: 0,
            matches: Vec::new(),
            outgoing: DatagramQueue::new(limits.datagrams as usize, limits.datagram_bytes),
            datagram_sent: false,
            groups: Groups::new(seed, limits.groups as usize * usize::from(servers)),
            path_mtus: PathMtus::new(seed, limits.path_mtus as usize),
            ports: Ports::new(seed),
            time_wait: TimeWaitTable::new(limits.time_wait as usize, 2 * limits.msl_us),
            half_open: 0,
            cookies_until: Instant::default(),
            queue_links: Links::default(),
            ready: List::new(),
            ready_links: Links::default(),
            wheel: TimerWheel::new(now),
            due: Vec::new(),
            events: VecDeque::new(),
            replies: ReplyQueue::new(limits.replies as usize, limits.reply_bytes),
            loopback: VecDeque::new(),
            buffers: Buffers::default(),
            identification: seed as u32,
            error_limit: RateLimit::new(
                now,
                limits.icmp_errors_per_second,
                limits.icmp_errors_burst,
            ),
            echo_limit: RateLimit::new(
                now,
                limits.echo_replies_per_second,
                limits.echo_replies_per_second,
            ),
            unfinished: false,
            trace: None,
            steered,
            forwards: VecDeque::new(),
            arriving: Arriving::default(),
            network_update_due: false,
            foreign_groups: BTreeMap::new(),
            limits,
        })
    }

    /// Our address and port of a socket.
    pub fn local_address(&self, id: SocketId) -> Option<SocketAddr> {
        match self.sockets.get(id)? {
            Socket::Listener(listener) => Some(listener.local),
            Socket::Connection(entry) => Some(entry.key.local()),
            Socket::Datagram(socket) => Some(socket.local),
        }
    }

    /// The peer's address and port of a connection or a connected UDP socket.
    pub fn remote_address(&self, id: SocketId) -> Option<SocketAddr> {
        match self.sockets.get(id)? {
            Socket::Listener(_) => None,
            Socket::Connection(entry) => Some(entry.key.remote()),
            Socket::Datagram(socket) => socket.remote,
        }
    }

    /// Whether an address is ours.
    pub fn owns_address(&self, addr: IpAddr) -> bool {
        self.routing.is_ours(addr)
    }

    /// Whether an address is a broadcast address: of one of our networks, or of all.
    pub fn is_broadcast(&self, addr: IpAddr) -> bool {
        matches!(addr, IpAddr::V4(v4) if self.routing.is_broadcast(v4))
    }

    /// Whether an address is ours or can be reached by a route.
    pub fn routes_to(&self, addr: IpAddr) -> bool {
        self.routing.next_hop(addr).is_some()
    }

    /// The address of ours that a connection to `remote` would come from.
    pub fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
        self.routing.source_for(remote)
    }

    /// Everything counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections, half-open, closing and finished but unclosed ones included; neither listeners
    /// nor UDP sockets nor TIME-WAIT records.
    pub fn connection_count(&self) -> usize {
        self.sockets.len() - self.listener_count - self.datagram_count
    }

    /// UDP sockets.
    pub fn datagram_socket_count(&self) -> usize {
        self.datagram_count
    }

    /// Whether nothing is left to send: no queued reply, no connection with data or a FIN that the
    /// peer has not acknowledged. Looks at every connection: for shutting down.
    pub fn is_quiet(&self) -> bool {
        let quiet = |entry: &Entry| entry.gone || !entry.connection.has_unfinished_data();
        self.replies.is_empty()
            && self.forwards.is_empty()
            && self.loopback.is_empty()
            && self.outgoing.is_empty()
            && self.ready.is_empty()
            && self.sockets.iter().filter_map(|(_, socket)| socket.connection()).all(quiet)
    }

    /// All sockets and TIME-WAIT records, for listings: it looks at every place.
    pub fn sockets(&self) -> impl Iterator<Item = SocketSummary> + '_ {
        let sockets = self.sockets.iter().map(|(id, socket)| match socket {
            Socket::Listener(listener) => summary_of_listener(id, listener),
            Socket::Connection(entry) => self.summary_of_connection(id, entry),
            Socket::Datagram(socket) => summary_of_datagram(id, socket),
        });
        sockets.chain(self.time_wait.iter().map(summary_of_waiting))
    }

    fn summary_of_connection(&self, id: SocketId, entry: &Entry) -> SocketSummary {
        let info = entry.connection.info(self.now);
        SocketSummary {
            id: Some(id),
            state: SocketState::Tcp(if entry.gone { State::Closed } else { info.state }),
            local: entry.key.local(),
            remote: Some(entry.key.remote()),
            receive_queue: info.receive_queue,
            send_queue: info.unacknowledged + info.not_sent,
            timeout: self.wheel.deadline(id.index()),
        }
    }
}

fn summary_of_listener(id: SocketId, listener: &Listener) -> SocketSummary {
    SocketSummary {
        id: Some(id),
        state: SocketState::Listen,
        local: listener.local,
        remote: None,
        receive_queue: u64::from(listener.accept_queue.len()),
        send_queue: u64::from(listener.backlog),
        timeout: None,
    }
}

fn summary_of_datagram(id: SocketId, socket: &DatagramSocket) -> SocketSummary {
    SocketSummary {
        id: Some(id),
        state: SocketState::Datagram,
        local: socket.local,
        remote: socket.remote,
        receive_queue: 0,
        send_queue: socket.queued_bytes as u64,
        timeout: None,
    }
}

fn summary_of_waiting(waiting: &Waiting) -> SocketSummary {
    SocketSummary {
        id: None,
        state: SocketState::Tcp(State::TimeWait),
        local: waiting.key.local(),
        remote: Some(waiting.key.remote()),
        receive_queue: 0,
        send_queue: 0,
        timeout: Some(waiting.expires),
    }
}

#[cfg(test)]
mod tests;
