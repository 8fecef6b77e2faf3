//! UDP out: checks, headers, segments, what goes to ourselves, and the queue that waits for frames.
//!
//! [`Shard::send_datagram`] makes the packets, `poll_transmit` asks [`Shard::transmit_datagram`] for
//! the next one. Large packets leave as fragments of their path's MTU.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::checksum;

use super::Shard;
use super::entry::Socket;
use super::headers::{
    IPV4_HEADER, IPV6_HEADER, IpHeader, TYPE_IPV6, UDP, emit_ethernet, ethernet_type, header_len,
    pseudo_checksum, write_u16,
};
use super::ipv4::emit_ipv4_fragment;
use super::ipv6::emit_ipv6_fragment;
use super::transmit::Step;
use super::udp_commands::family_fits;
use crate::counters::Counter;
use crate::datagram::{PathMtu, SendTo};
use crate::error::SendError;
use crate::limits::{DATAGRAM_MAX, ETHERNET_HEADER};
use crate::neighbours::Resolution;
use crate::packets::OutgoingDatagram;
use crate::routing::NextHop;
use crate::socket_id::SocketId;
use crate::streams::{PartialChecksum, TxMeta};
use crate::time::Instant;

/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;
/// Where the checksum lies in it.
const UDP_CHECKSUM_AT: usize = 6;
/// Datagrams that one call may be cut into (Linux's `UDP_MAX_SEGMENTS`).
const SEGMENTS_MAX: usize = 128;

/// Where a datagram goes, and how.
#[derive(Copy, Clone, Debug)]
struct Plan {
    id: SocketId,
    source: SocketAddr,
    remote: SocketAddr,
    hop: NextHop,
    header: IpHeader,
    /// A broadcast or multicast address.
    group: bool,
    /// Members on this host get a copy.
    looped: bool,
    /// Of the path, or the link where that alone counts.
    mtu: usize,
    may_cut: bool,
    cut_by_routers: bool,
}

impl Shard {
    /// Sends a datagram, or several of `segment_size` bytes each and the rest in a last one.
    /// Everything is taken or nothing.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_datagram(
        &mut self,
        now: Instant,
        id: SocketId,
        to: &SendTo,
        payload: &[u8],
    ) -> Result<(), SendError> {
        self.now = now;
        let result = self.try_send_datagram(id, to, payload);
        match result {
            Ok(()) => {}
            Err(SendError::Busy) => self.counters.count(Counter::UdpSendBusy),
            Err(_) => self.counters.count(Counter::UdpSendRefused),
        }
        result
    }

    /// The IP MTU towards an address in bytes, as far as it is known (IP_MTU).
    pub fn path_mtu(&self, remote: IpAddr) -> usize {
        let link = self.link_mtu(remote.to_canonical());
        self.path_mtus.of(self.now, remote.to_canonical()).unwrap_or(link).min(link)
    }

    fn try_send_datagram(
        &mut self,
        id: SocketId,
        to: &SendTo,
        payload: &[u8],
    ) -> Result<(), SendError> {
        let plan = self.plan_datagram(id, to)?;
        let headers = plan.header.len() + UDP_HEADER;
        let segment = match usize::from(to.segment_size) {
            0 => payload.len(),
            size => size.min(payload.len()),
        };
        let count = payload.len().div_ceil(segment.max(1)).max(1);
        if count > 1 && (count > SEGMENTS_MAX || headers + segment > plan.mtu) {
            return Err(SendError::BadSegmentSize);
        }
        // What the length fields of both headers can say.
        let largest =
            DATAGRAM_MAX - UDP_HEADER - if plan.remote.is_ipv4() { IPV4_HEADER } else { 0 };
        let cut = headers + segment > plan.mtu && plan.hop != NextHop::Ourselves;
        if segment > largest || (cut && !plan.may_cut) {
            return Err(SendError::MessageTooLong { mtu: plan.mtu as u32 });
        }
        self.check_room(&plan, count, payload.len() + count * headers)?;
        if segment == 0 {
            self.queue_datagram(&plan, payload);
            return Ok(());
        }
        for part in payload.chunks(segment) {
            self.queue_datagram(&plan, part);
        }
        Ok(())
    }

    /// Decides everything that does not depend on the payload.
    fn plan_datagram(&self, id: SocketId, to: &SendTo) -> Result<Plan, SendError> {
        let socket = self.sockets.get(id).and_then(Socket::datagram).ok_or(SendError::NoSocket)?;
        let options = &socket.options;
        let remote = to.remote.or(socket.remote).ok_or(SendError::NotConnected)?;
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        if remote.port() == 0 || remote.ip().is_unspecified() {
            return Err(SendError::BadRemote);
        }
        if !family_fits(socket.bound, options.v6only, remote.ip()) {
            return Err(SendError::FamilyMismatch);
        }
        let broadcast = match remote.ip() {
            IpAddr::V4(addr) => self.routing.is_broadcast(addr),
            IpAddr::V6(_) => false,
        };
        if broadcast && !options.broadcast {
            return Err(SendError::BroadcastRefused);
        }
        let hop = self.routing.next_hop(remote.ip()).ok_or(SendError::NoRoute)?;
        let source = self.source_of_datagram(socket.local.ip(), to.source, remote.ip())?;
        let multicast = remote.ip().is_multicast();
        let default_hops = if multicast { options.multicast_hop_limit } else { options.hop_limit };
        let (mtu, may_cut, cut_by_routers) = self.rules_of_path(options.dont_fragment, remote.ip());
        // Members may be at the home of the port, which knows.
        let known = self.groups.contains(remote.ip()) || self.port_owner(remote.port()).is_some();
        let member = multicast && options.multicast_loop && known;
        Ok(Plan {
            id,
            source: SocketAddr::new(source, socket.local.port()),
            remote,
            hop,
            header: IpHeader {
                hop_limit: to.hop_limit.unwrap_or(default_hops).max(u8::from(!multicast)),
                type_of_service: to.type_of_service.unwrap_or(options.type_of_service),
                ..IpHeader::of_reply(source, remote.ip(), UDP)
            },
            group: multicast || broadcast,
            looped: member || broadcast,
            mtu,
            may_cut,
            cut_by_routers,
        })
    }

    fn source_of_datagram(
        &self,
        own: IpAddr,
        wish: Option<IpAddr>,
        remote: IpAddr,
    ) -> Result<IpAddr, SendError> {
        if let Some(wish) = wish.map(|wish| wish.to_canonical()).filter(|ip| !ip.is_unspecified()) {
            let fits = wish.is_ipv4() == remote.is_ipv4() && self.routing.is_ours(wish);
            return if fits { Ok(wish) } else { Err(SendError::AddressNotOurs) };
        }
        if self.is_source(own) {
            return Ok(own);
        }
        self.routing.source_for(remote).ok_or(SendError::NoRoute)
    }

    /// The MTU that counts, whether we may cut, and whether routers may (IP_MTU_DISCOVER).
    fn rules_of_path(&self, mode: PathMtu, remote: IpAddr) -> (usize, bool, bool) {
        let path = self.path_mtu(remote);
        match mode {
            PathMtu::Dont => (path, true, true),
            PathMtu::Want => (path, true, false),
            PathMtu::Do => (path, false, false),
            PathMtu::Probe => (self.link_mtu(remote), false, false),
            PathMtu::Interface => (self.link_mtu(remote), false, true),
            PathMtu::Omit => (self.link_mtu(remote), true, true),
        }
    }

    fn check_room(&self, plan: &Plan, count: usize, bytes: usize) -> Result<(), SendError> {
        let queued = match self.sockets.get(plan.id).and_then(Socket::datagram) {
            Some(socket) => socket.queued_bytes,
            None => 0,
        };
        let own_room = queued == 0 || queued + bytes <= self.limits.datagram_bytes_per_socket;
        let loops = plan.looped || plan.hop == NextHop::Ourselves;
        let loop_room = self.loopback.len() + count <= self.limits.loopback_packets as usize;
        if own_room && (!loops || loop_room) && self.outgoing.has_room(count, bytes) {
            Ok(())
        } else {
            Err(SendError::Busy)
        }
    }

    /// Makes one packet and queues it.
    fn queue_datagram(&mut self, plan: &Plan, payload: &[u8]) {
        self.counters.count(Counter::UdpDatagramsSent);
        let at = plan.header.len();
        let len = at + UDP_HEADER + payload.len();
        let mut packet = self.buffers.take(len);
        let datagram = &mut packet[at..];
        write_u16(datagram, 0, plan.source.port());
        write_u16(datagram, 2, plan.remote.port());
        write_u16(datagram, 4, (UDP_HEADER + payload.len()) as u16);
        datagram[UDP_HEADER..].copy_from_slice(payload);
        let to_ourselves = plan.hop == NextHop::Ourselves;
        if !to_ourselves {
            let (source, destination) = (plan.source.ip(), plan.remote.ip());
            // The rest is done when it leaves, by the link if that can.
            let pseudo = pseudo_checksum(source, destination, UDP, datagram.len());
            write_u16(datagram, UDP_CHECKSUM_AT, pseudo);
        }
        let may_fragment = plan.cut_by_routers || len > plan.mtu;
        IpHeader { may_fragment, ..plan.header }.emit(&mut packet);
        if to_ourselves {
            self.loop_back(packet);
            return;
        }
        if plan.looped {
            let mut copy = self.buffers.take(len);
            copy.copy_from_slice(&packet);
            self.loop_back(copy);
        }
        if plan.group && plan.header.hop_limit == 0 {
            self.buffers.give(packet);
            return;
        }
        if len > plan.mtu {
            self.identification = self.identification.wrapping_add(1);
        }
        if let Some(socket) = self.sockets.get_mut(plan.id).and_then(Socket::datagram_mut) {
            socket.queued_bytes += len;
        }
        self.outgoing.push_back(OutgoingDatagram {
            owner: plan.id,
            destination: plan.remote.ip(),
            bytes: packet,
            mtu: plan.mtu,
            sent: 0,
            identification: self.identification,
        });
    }

    /// Writes the next datagram, or the next fragment of one, after the place of the Ethernet header.
    pub(super) fn transmit_datagram(&mut self, out: &mut [u8]) -> Step {
        let Some(datagram) = self.outgoing.pop_front() else { return Step::Idle };
        let hop = match self.routing.next_hop(datagram.destination) {
            Some(NextHop::Neighbour(hop)) => hop,
            // An address that became ours meanwhile.
            Some(NextHop::Ourselves) => {
                self.account_sent(&datagram);
                self.loop_back(datagram.bytes);
                return Step::Again;
            }
            None => {
                self.counters.count(Counter::NoRouteDropped);
                return self.discard_datagram(datagram);
            }
        };
        match self.resolve(hop) {
            Resolution::Known(mac) => self.emit_datagram(mac, datagram, out),
            Resolution::Asked(neighbour) => {
                let mut datagram = datagram;
                self.account_sent(&datagram);
                finish_checksum(&mut datagram);
                if let Err(packet) = self.neighbours.enqueue(neighbour, datagram.bytes) {
                    self.counters.count(Counter::NeighbourQueueDropped);
                    self.buffers.give(packet);
                }
                Step::Again
            }
            Resolution::Refused => {
                self.counters.count(Counter::NeighbourQueueDropped);
                self.discard_datagram(datagram)
            }
        }
    }

    fn emit_datagram(
        &mut self,
        mac: [u8; 6],
        mut datagram: OutgoingDatagram,
        out: &mut [u8],
    ) -> Step {
        let kind = ethernet_type(&datagram.bytes);
        emit_ethernet(self.mac, mac, kind, out);
        let body = &mut out[ETHERNET_HEADER..];
        let is_whole = datagram.bytes.len() <= datagram.mtu;
        let offloads = is_whole && self.offloads.tx_checksum;
        if !offloads {
            finish_checksum(&mut datagram);
        }
        if is_whole {
            let len = datagram.bytes.len();
            body[..len].copy_from_slice(&datagram.bytes);
            let checksum = offloads.then_some(PartialChecksum {
                start: (ETHERNET_HEADER + header_len(datagram.destination)) as u16,
                offset: UDP_CHECKSUM_AT as u16,
            });
            let _: Step = self.discard_datagram(datagram);
            let len = ETHERNET_HEADER + len;
            return Step::Unfinished(TxMeta { len, checksum, segment_size: 0 });
        }
        let OutgoingDatagram { bytes, sent, identification, mtu, .. } = &datagram;
        let (len, payload) = if kind == TYPE_IPV6 {
            emit_ipv6_fragment(bytes, *sent, *identification, *mtu, body)
        } else {
            emit_ipv4_fragment(bytes, *sent, *identification as u16, *mtu, body)
        };
        self.counters.count(Counter::FragmentsSent);
        datagram.sent += payload;
        let header = if kind == TYPE_IPV6 { IPV6_HEADER } else { IPV4_HEADER };
        if header + datagram.sent < datagram.bytes.len() {
            self.outgoing.push_front(datagram);
        } else {
            let _: Step = self.discard_datagram(datagram);
        }
        Step::Frame(ETHERNET_HEADER + len)
    }

    /// A datagram has left its queue, one way or another.
    fn discard_datagram(&mut self, datagram: OutgoingDatagram) -> Step {
        self.account_sent(&datagram);
        self.buffers.give(datagram.bytes);
        Step::Again
    }

    fn account_sent(&mut self, datagram: &OutgoingDatagram) {
        let owner = self.sockets.get_mut(datagram.owner).and_then(Socket::datagram_mut);
        if let Some(socket) = owner {
            socket.queued_bytes = socket.queued_bytes.saturating_sub(datagram.bytes.len());
        }
    }
}

/// Makes the checksum of a datagram that holds the sum over its pseudo header whole; one of which
/// fragments have left has it already.
fn finish_checksum(datagram: &mut OutgoingDatagram) {
    if datagram.sent > 0 {
        return;
    }
    let Some(bytes) = datagram.bytes.get_mut(header_len(datagram.destination)..) else { return };
    let sum = !checksum::data(bytes);
    // 0 would say that there is none (RFC 768).
    write_u16(bytes, UDP_CHECKSUM_AT, if sum == 0 { 0xffff } else { sum });
}
