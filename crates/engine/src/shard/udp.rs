//! UDP in: checksum, the socket or sockets that a datagram is for, delivery.
//!
//! Called by `receive.rs`. Which socket is decided in `datagram_table.rs`; opening and the like is in
//! `udp_commands.rs`, sending in `udp_send.rs`, errors about what we sent in `udp_errors.rs`. Read
//! first: RFC 768, RFC 1122 section 4.1, RFC 8200 section 8.1.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::UdpPacket;

use super::Shard;
use super::dhcp::CLIENT_PORT;
use super::icmp_errors::IcmpCause;
use super::receive::IpPacket;
use crate::counters::Counter;
use crate::datagram::{Datagram, DatagramOptions};
use crate::datagram_table::Place;
use crate::drop_reason::DropReason;
use crate::socket_id::SocketId;
use crate::streams::Streams;

/// A UDP socket.
#[derive(Debug)]
pub(super) struct DatagramSocket {
    /// Address and port as it was opened.
    pub bound: SocketAddr,
    /// Address and port now: a connected socket has one address.
    pub local: SocketAddr,
    /// The peer of a connected socket.
    pub remote: Option<SocketAddr>,
    /// Its options.
    pub options: DatagramOptions,
    /// Groups it has joined.
    pub groups: Vec<IpAddr>,
    /// Bytes of its datagrams that wait to be sent.
    pub queued_bytes: usize,
}

impl DatagramSocket {
    /// What the table of sockets has to know.
    pub(super) fn place(&self, id: SocketId) -> Place {
        Place {
            id,
            local: self.local,
            remote: self.remote,
            v6only: self.options.v6only,
            reuse_address: self.options.reuse_address,
            reuse_port: self.options.reuse_port,
        }
    }

    /// Whether datagrams to a group that this host is in are for this socket.
    fn takes_group(&self, group: IpAddr) -> bool {
        self.options.multicast_all || self.groups.contains(&group)
    }
}

impl Shard {
    /// A UDP datagram for one of our addresses or groups.
    pub(super) fn handle_udp(
        &mut self,
        packet: &IpPacket<'_>,
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        let header =
            UdpPacket::new_checked(packet.payload).map_err(|_| DropReason::UdpMalformed)?;
        check_sum(&header, packet)?;
        if header.dst_port() == 0 {
            return Err(DropReason::UdpPortZero);
        }
        self.counters.count(Counter::UdpDatagramsReceived);
        if header.dst_port() == CLIENT_PORT && self.dhcp.is_some() && packet.source.is_ipv4() {
            let remote = SocketAddr::new(packet.source, header.src_port());
            return self.handle_dhcp(remote, header.payload());
        }
        let datagram = Datagram {
            remote: SocketAddr::new(packet.source, header.src_port()),
            local: SocketAddr::new(packet.destination, header.dst_port()),
            hop_limit: packet.hop_limit,
            type_of_service: type_of_service(packet),
        };
        if packet.group {
            return self.deliver_to_group(&datagram, header.payload(), streams);
        }
        let Some(id) = self.datagrams.lookup(datagram.local, datagram.remote) else {
            if self.port_owner(datagram.local.port()).is_some() {
                return Err(DropReason::UdpElsewhere);
            }
            self.send_error(packet, IcmpCause::PortUnreachable);
            return Err(DropReason::UdpNoPort);
        };
        if self.resolver.owns(id) {
            return self.handle_name_answer(id, header.payload());
        }
        if self.deliver(id, &datagram, header.payload(), streams) {
            Ok(())
        } else {
            Err(DropReason::UdpReceiveFull)
        }
    }

    /// Every socket that matches gets a copy of what is sent to a group or by broadcast.
    fn deliver_to_group(
        &mut self,
        datagram: &Datagram,
        payload: &[u8],
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        let mut matches = std::mem::take(&mut self.matches);
        matches.clear();
        self.datagrams.lookup_all(datagram.local, datagram.remote, &mut matches);
        let group = datagram.local.ip();
        if group.is_multicast() {
            let takes = |id: &SocketId| {
                let socket = self.sockets.get(*id).and_then(|socket| socket.datagram());
                socket.is_some_and(|socket| socket.takes_group(group))
            };
            matches.retain(takes);
        }
        let verdict = match matches.is_empty() {
            true => Err(DropReason::UdpNoPort),
            false => Err(DropReason::UdpReceiveFull),
        };
        let taken =
            matches.iter().filter(|id| self.deliver(**id, datagram, payload, streams)).count();
        self.matches = matches;
        if taken > 0 { Ok(()) } else { verdict }
    }

    fn deliver(
        &mut self,
        id: SocketId,
        datagram: &Datagram,
        payload: &[u8],
        streams: &mut impl Streams,
    ) -> bool {
        let taken = streams.write_datagram(id, datagram, payload);
        self.counters.count(match taken {
            true => Counter::UdpDatagramsDelivered,
            false => Counter::UdpReceiveDropped,
        });
        taken
    }
}

/// Checks the checksum of a datagram from outside. IPv6 has no way to leave it out (RFC 8200
/// section 8.1; the exception of RFC 6936 is for tunnels).
fn check_sum(header: &UdpPacket<&[u8]>, packet: &IpPacket<'_>) -> Result<(), DropReason> {
    if !packet.ingress.wire {
        return Ok(());
    }
    if header.checksum() == 0 {
        return if packet.source.is_ipv6() { Err(DropReason::UdpBadChecksum) } else { Ok(()) };
    }
    let (source, destination) = (packet.source.into(), packet.destination.into());
    if packet.ingress.checksum_valid || header.verify_checksum(&source, &destination) {
        Ok(())
    } else {
        Err(DropReason::UdpBadChecksum)
    }
}

/// TOS byte or traffic class.
fn type_of_service(packet: &IpPacket<'_>) -> u8 {
    match (packet.source, packet.whole) {
        (IpAddr::V4(_), [_, class, ..]) => *class,
        (IpAddr::V6(_), [first, second, ..]) => first << 4 | second >> 4,
        _ => 0,
    }
}
