//! The way out: every frame comes from [`Shard::poll_transmit`].
//!
//! In this order: packets of ours to ourselves (handled here, never sent), requests to neighbours,
//! replies, and datagrams in turn with connections, each with a few segments. Segments are written straight into
//! the caller's frame; replies wait in a bounded queue. What has to wait for a neighbour's address
//! is kept with the neighbour.

use std::net::IpAddr;

use super::Shard;
use super::elsewhere::ForwardKind;
use super::entry::{Entry, Socket};
use super::headers::{
    IpHeader, TCP, TYPE_ARP, TYPE_IPV6, emit_ethernet, ethernet_type, group_mac, header_len,
    pseudo_checksum, transport_checksum, write_u16,
};
use super::icmp::quoted_segment;
use super::ipv4::emit_ipv4_fragment;
use super::ipv6::emit_ipv6_fragment;
use super::udp_errors::quoted_datagram;
use crate::config::Offloads;
use crate::counters::Counter;
use crate::flow_table::FlowKey;
use crate::limits::{ETHERNET_HEADER, SEGMENTS_PER_TURN, STEPS_PER_TRANSMIT};
use crate::neighbours::{Request, Resolution};
use crate::packets::{Destination, Reply};
use crate::routing::NextHop;
use crate::socket_id::SocketId;
use crate::streams::{PartialChecksum, Streams, TxMeta};
use crate::tcp::segment::HEADER_LEN_MAX;
use crate::tcp::{Flags, IcmpError, Outgoing, Unreachable};
use crate::time::Instant;

/// Where the checksum lies in a TCP header.
const TCP_CHECKSUM_AT: usize = 16;

/// What one step of sending did.
pub(super) enum Step {
    /// A complete frame of this length is in the caller's buffer.
    Frame(usize),
    /// A frame of which the link has to finish something.
    Unfinished(TxMeta),
    /// Something that needs no frame; there may be more.
    Again,
    /// Nothing is left.
    Idle,
}

impl Shard {
    /// Writes the next frame to `out`, which must hold the MTU, or the largest packet that the link
    /// cuts ([`Offloads::tx_segmentation`]) if that is more, plus 14 bytes. Call it until it gives
    /// `None`. One call takes a bounded number of steps; if that was not enough,
    /// [`Shard::poll_timeout`] asks to be called again at once.
    ///
    /// # Panics
    /// If `out` is too short.
    // A row of docs/cost.md.
    #[inline(never)]
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        out: &mut [u8],
        streams: &mut impl Streams,
    ) -> Option<TxMeta> {
        let packet_max = self.mtu.max(self.offloads.tx_segmentation as usize);
        assert!(out.len() >= packet_max + ETHERNET_HEADER, "frame buffer is shorter than a packet");
        self.now = now;
        self.unfinished = false;
        for _ in 0..STEPS_PER_TRANSMIT {
            match self.transmit_step(out, streams) {
                Step::Frame(len) => return Some(self.sent(TxMeta { len, ..TxMeta::default() })),
                Step::Unfinished(meta) => return Some(self.sent(meta)),
                Step::Again => {}
                Step::Idle => return None,
            }
        }
        self.unfinished = true;
        None
    }

    fn sent(&mut self, meta: TxMeta) -> TxMeta {
        self.counters.count(Counter::FramesSent);
        self.counters.add(Counter::BytesSent, meta.len as u64);
        meta
    }

    fn transmit_step(&mut self, out: &mut [u8], streams: &mut impl Streams) -> Step {
        if self.handle_next_own_packet(streams) {
            return Step::Again;
        }
        if let Some(request) = self.neighbours.poll_request() {
            return self.transmit_request(&request, out);
        }
        if let Some(reply) = self.replies.pop_front() {
            return self.transmit_reply(reply, out);
        }
        if self.queue_dhcp_message() || self.queue_network_message() || self.queue_group_message() {
            return Step::Again;
        }
        // Datagrams and connections take turns, frame by frame.
        let datagram_next = !self.datagram_sent || self.ready.is_empty();
        if datagram_next && !self.outgoing.is_empty() {
            self.datagram_sent = true;
            return self.transmit_datagram(out);
        }
        self.datagram_sent = false;
        match self.ready.first().and_then(|index| self.sockets.id_at(index)) {
            Some(id) => self.transmit_connection(id, out, streams),
            None => Step::Idle,
        }
    }

    /// Handles one packet of ours to ourselves; false when there is none.
    pub(super) fn handle_next_own_packet(&mut self, streams: &mut impl Streams) -> bool {
        let Some(packet) = self.loopback.pop_front() else { return false };
        self.handle_own_packet(&packet, streams);
        self.buffers.give(packet);
        true
    }

    fn transmit_request(&mut self, request: &Request, out: &mut [u8]) -> Step {
        let body = &mut out[ETHERNET_HEADER..];
        let (emitted, kind) = match request.addr {
            IpAddr::V4(target) => (self.emit_arp_request(request, target, body), TYPE_ARP),
            IpAddr::V6(target) => (self.emit_solicitation(request, target, body), TYPE_IPV6),
        };
        let Some((destination, len)) = emitted else { return Step::Again };
        emit_ethernet(self.mac, destination, kind, out);
        Step::Frame(ETHERNET_HEADER + len)
    }

    fn transmit_reply(&mut self, mut reply: Reply, out: &mut [u8]) -> Step {
        let addr = match reply.destination {
            Destination::Link(mac, kind) => return self.emit_reply(mac, kind, reply, out),
            Destination::Routed(addr) => addr,
        };
        let hop = match self.routing.next_hop(addr) {
            None => {
                self.counters.count(Counter::NoRouteDropped);
                self.buffers.give(reply.bytes);
                return Step::Again;
            }
            Some(NextHop::Ourselves) => {
                self.loop_back(reply.bytes);
                return Step::Again;
            }
            Some(NextHop::Neighbour(hop)) => hop,
        };
        match self.resolve(hop) {
            Resolution::Known(mac) => {
                let kind = ethernet_type(&reply.bytes);
                reply.destination = Destination::Link(mac, kind);
                self.emit_reply(mac, kind, reply, out)
            }
            Resolution::Asked(name) => {
                if let Err(packet) = self.neighbours.enqueue(name, reply.bytes) {
                    self.counters.count(Counter::NeighbourQueueDropped);
                    self.buffers.give(packet);
                }
                Step::Again
            }
            Resolution::Refused => {
                self.counters.count(Counter::NeighbourQueueDropped);
                self.buffers.give(reply.bytes);
                Step::Again
            }
        }
    }

    /// Writes a reply, or its next fragment.
    fn emit_reply(&mut self, mac: [u8; 6], kind: u16, mut reply: Reply, out: &mut [u8]) -> Step {
        emit_ethernet(self.mac, mac, kind, out);
        let body = &mut out[ETHERNET_HEADER..];
        if reply.bytes.len() <= self.mtu {
            let len = reply.bytes.len();
            body[..len].copy_from_slice(&reply.bytes);
            self.buffers.give(reply.bytes);
            return Step::Frame(ETHERNET_HEADER + len);
        }
        if reply.sent == 0 {
            self.identification = self.identification.wrapping_add(1);
        }
        let id = self.identification;
        let (len, payload) = if kind == TYPE_IPV6 {
            emit_ipv6_fragment(&reply.bytes, reply.sent, id, self.mtu, body)
        } else {
            emit_ipv4_fragment(&reply.bytes, reply.sent, id as u16, self.mtu, body)
        };
        self.counters.count(Counter::FragmentsSent);
        reply.sent += payload;
        let header = if kind == TYPE_IPV6 {
            super::headers::IPV6_HEADER
        } else {
            super::headers::IPV4_HEADER
        };
        if header + reply.sent < reply.bytes.len() {
            self.replies.push_front(reply);
        } else {
            self.buffers.give(reply.bytes);
        }
        Step::Frame(ETHERNET_HEADER + len)
    }

    /// Where a neighbour is, or what to wait for.
    pub(super) fn resolve(&mut self, hop: IpAddr) -> Resolution {
        let group = match hop {
            IpAddr::V4(addr) => addr.is_multicast() || self.routing.is_broadcast(addr),
            IpAddr::V6(addr) => addr.is_multicast(),
        };
        if group {
            return Resolution::Known(group_mac(hop));
        }
        let resolution = self.neighbours.resolve(self.now, hop, &mut self.counters);
        self.release_neighbours();
        resolution
    }

    /// One segment of the connection whose turn it is.
    fn transmit_connection(
        &mut self,
        id: SocketId,
        out: &mut [u8],
        streams: &mut impl Streams,
    ) -> Step {
        let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut) else {
            return Step::Idle;
        };
        let NextHop::Neighbour(hop) = entry.next_hop else {
            return self.transmit_to_ourselves(id, streams);
        };
        if std::mem::take(&mut entry.unreachable) {
            return self.fail_segment(id);
        }
        match self.resolve(hop) {
            Resolution::Known(mac) => {
                let packet_max = self.offloads.tx_segmentation;
                let Some((outgoing, key, header)) = self.next_segment(id, packet_max) else {
                    return Step::Again;
                };
                let packet = &mut out[ETHERNET_HEADER..];
                let work = ChecksumWork::of(self.offloads);
                let len = emit_segment(&header, &key, &outgoing, work, packet, |payload| {
                    streams.read(id, outgoing.payload_position, payload);
                });
                let kind = ethernet_type(packet);
                emit_ethernet(self.mac, mac, kind, out);
                let start = (ETHERNET_HEADER + header.len()) as u16;
                Step::Unfinished(TxMeta {
                    len: ETHERNET_HEADER + len,
                    checksum: work.left_at(start),
                    segment_size: outgoing.segment_size,
                })
            }
            Resolution::Asked(neighbour) if self.neighbours.has_room(neighbour) => {
                if let Some(packet) = self.segment_packet(id, streams)
                    && let Err(packet) = self.neighbours.enqueue(neighbour, packet)
                {
                    self.counters.count(Counter::NeighbourQueueDropped);
                    self.buffers.give(packet);
                }
                Step::Again
            }
            Resolution::Asked(neighbour) => {
                self.park(id, neighbour);
                Step::Again
            }
            Resolution::Refused => {
                // Lost, as on a full wire; the retransmission timer tries again.
                if let Some(packet) = self.segment_packet(id, streams) {
                    self.counters.count(Counter::NeighbourQueueDropped);
                    self.buffers.give(packet);
                }
                Step::Again
            }
        }
    }

    fn transmit_to_ourselves(&mut self, id: SocketId, streams: &mut impl Streams) -> Step {
        if let Some(packet) = self.segment_packet(id, streams) {
            self.loop_back(packet);
        }
        Step::Again
    }

    /// Queues a packet to ourselves.
    pub(super) fn loop_back(&mut self, packet: Vec<u8>) {
        let Some(packet) = self.forward(ForwardKind::Own, packet) else { return };
        if self.loopback.len() < self.limits.loopback_packets as usize {
            self.loopback.push_back(packet);
        } else {
            self.counters.count(Counter::LoopbackDropped);
            self.buffers.give(packet);
        }
    }

    /// A connection whose neighbour's queue is full waits with it.
    fn park(&mut self, id: SocketId, neighbour: SocketId) {
        self.ready_links.remove(&mut self.ready, id.index());
        let Some(waiting) = self.neighbours.waiting(neighbour) else { return };
        self.ready_links.push_back(waiting, id.index());
        if let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut) {
            entry.parked = Some(neighbour);
        }
    }

    /// The neighbour did not answer: the connection learns it by the fate of its next segment.
    fn fail_segment(&mut self, id: SocketId) -> Step {
        if let Some((outgoing, key, _)) = self.next_segment(id, 0) {
            self.counters.count(Counter::NeighbourFailedDropped);
            let error = IcmpError::Unreachable(Unreachable::Host);
            let _: bool = self.report_to_connection(&key, error, outgoing.seq);
        }
        Step::Again
    }

    /// A packet that waited for a neighbour goes out, or its connection learns that it failed.
    pub(super) fn release_packet(&mut self, mac: Option<[u8; 6]>, packet: Vec<u8>) {
        if let Some(mac) = mac {
            let kind = ethernet_type(&packet);
            self.replies.push_back(Destination::Link(mac, kind), packet);
            return;
        }
        self.counters.count(Counter::NeighbourFailedDropped);
        if let Some((key, seq)) = quoted_segment(&packet) {
            let error = IcmpError::Unreachable(Unreachable::Host);
            let _: bool = self.report_to_connection(&key, error, seq);
        } else if let Some(datagram) = quoted_datagram(&packet) {
            self.report_silent_neighbour(&datagram);
        }
        self.buffers.give(packet);
    }

    /// Takes the next segment from a connection, or several in a packet of at most `packet_max`
    /// bytes; and the connection out of the ready list, or to its end, when it has none or has had
    /// its turn.
    fn next_segment(
        &mut self,
        id: SocketId,
        packet_max: u32,
    ) -> Option<(Outgoing, FlowKey, IpHeader)> {
        let entry = self.sockets.get_mut(id).and_then(Socket::connection_mut)?;
        let headers = header_len(entry.key.remote().ip()) + HEADER_LEN_MAX;
        let payload_max = packet_max.saturating_sub(headers as u32);
        let counters = &mut self.counters.tcp;
        let before = self.trace.as_ref().map(|_| entry.connection.vitals());
        let outgoing = entry.connection.poll_superframe(self.now, payload_max, counters);
        let segments = outgoing.as_ref().map_or(1, Outgoing::count);
        entry.turn = entry.turn.saturating_add(segments);
        if outgoing.is_none() || entry.turn >= SEGMENTS_PER_TURN {
            entry.turn = 0;
            self.ready_links.remove(&mut self.ready, id.index());
        }
        let found = outgoing.map(|outgoing| (outgoing, entry.key, header_of(entry)));
        if let Some((outgoing, ..)) = &found {
            self.trace_sent(id, before, outgoing);
            self.counters.add(Counter::TcpSegmentsSent, u64::from(segments));
            self.settle(id);
        } else {
            self.rearm(id);
        }
        found
    }

    /// The next segment as an IP packet in a buffer of its own.
    fn segment_packet(&mut self, id: SocketId, streams: &mut impl Streams) -> Option<Vec<u8>> {
        let (outgoing, key, header) = self.next_segment(id, 0)?;
        let len = header.len() + outgoing.header_len() + outgoing.payload_len;
        let mut packet = self.buffers.take(len);
        let _: usize =
            emit_segment(&header, &key, &outgoing, ChecksumWork::Whole, &mut packet, |payload| {
                streams.read(id, outgoing.payload_position, payload);
            });
        Some(packet)
    }

    /// A connection that had nothing to send: only its timer may have changed. It does not go back
    /// to the ready list, even if it thinks otherwise, so that no connection can spin.
    fn rearm(&mut self, id: SocketId) {
        let Some(entry) = self.sockets.get(id).and_then(Socket::connection) else { return };
        match entry.connection.next_timeout() {
            Some(timeout) if !entry.gone => self.wheel.schedule(id.index(), timeout),
            _ => self.wheel.cancel(id.index()),
        }
    }

    /// Queues a segment that a connection answers with, apart from its order of sending.
    pub(super) fn reply_for(&mut self, id: SocketId, reply: &Outgoing) {
        let Some(entry) = self.sockets.get(id).and_then(Socket::connection) else { return };
        let (key, header) = (entry.key, header_of(entry));
        self.trace_sent(id, None, reply);
        self.reply_segment(&key, reply, header.type_of_service, header.hop_limit);
    }

    /// Queues a segment without payload that no connection sends in order: RST and the like.
    pub(super) fn reply_segment(
        &mut self,
        key: &FlowKey,
        reply: &Outgoing,
        type_of_service: u8,
        hop_limit: u8,
    ) -> bool {
        let (local, remote) = (key.local(), key.remote());
        let header = IpHeader {
            hop_limit,
            type_of_service,
            may_fragment: false,
            ..IpHeader::of_reply(local.ip(), remote.ip(), TCP)
        };
        let len = header_len(remote.ip()) + reply.header_len();
        if !self.replies.has_room(len) {
            self.counters.count(Counter::RepliesDropped);
            return false;
        }
        let mut packet = self.buffers.take(len);
        let reply = Outgoing { payload_len: 0, ..*reply };
        let _: usize = emit_segment(&header, key, &reply, ChecksumWork::Whole, &mut packet, |_| {});
        self.counters.count(Counter::TcpSegmentsSent);
        if reply.flags.contains(Flags::RST) {
            self.counters.count(Counter::TcpResetsSent);
        }
        self.replies.push_back(Destination::Routed(remote.ip()), packet);
        true
    }
}

/// How much of a checksum is ours to compute.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum ChecksumWork {
    /// All of it.
    Whole,
    /// The link does the rest.
    PseudoHeader,
}

impl ChecksumWork {
    fn of(offloads: Offloads) -> ChecksumWork {
        if offloads.tx_checksum { ChecksumWork::PseudoHeader } else { ChecksumWork::Whole }
    }

    /// What is left for the link in a TCP segment that starts at `start` of the frame.
    fn left_at(self, start: u16) -> Option<PartialChecksum> {
        let offset = TCP_CHECKSUM_AT as u16;
        (self == ChecksumWork::PseudoHeader).then_some(PartialChecksum { start, offset })
    }
}

/// The IP header of a connection's packets. Path MTU discovery is on: routers must not cut them.
fn header_of(entry: &Entry) -> IpHeader {
    IpHeader {
        source: entry.key.local().ip(),
        destination: entry.key.remote().ip(),
        protocol: TCP,
        hop_limit: entry.hop_limit,
        type_of_service: entry.type_of_service,
        may_fragment: false,
    }
}

/// Writes a segment with its IP header to the start of `out`; gives the packet's length.
fn emit_segment(
    header: &IpHeader,
    key: &FlowKey,
    outgoing: &Outgoing,
    work: ChecksumWork,
    out: &mut [u8],
    fill_payload: impl FnOnce(&mut [u8]),
) -> usize {
    let at = header.len();
    let (local, remote) = (key.local(), key.remote());
    let len = outgoing.emit(local.port(), remote.port(), &mut out[at..], fill_payload);
    let packet = &mut out[..at + len];
    let (source, destination) = (header.source, header.destination);
    let sum = match work {
        ChecksumWork::Whole => transport_checksum(source, destination, TCP, &packet[at..]),
        ChecksumWork::PseudoHeader => pseudo_checksum(source, destination, TCP, len),
    };
    write_u16(packet, at + TCP_CHECKSUM_AT, sum);
    header.emit(packet);
    at + len
}
