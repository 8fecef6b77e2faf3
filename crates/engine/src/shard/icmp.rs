//! ICMP and ICMPv6 in: echo requests are answered, errors about our segments go to their
//! connections, neighbour discovery goes to `ndp.rs`.
//!
//! Errors about datagrams go to `udp_errors.rs`. Called by `receive.rs`. Read first: RFC 792, RFC
//! 1122 section 3.2.2, RFC 4443; for errors about TCP, RFC 5927 and RFC 1191. Errors that we send are
//! in `icmp_errors.rs`.

use std::net::IpAddr;

use smoltcp::wire::{Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, checksum};

use super::Shard;
use super::groups::is_mld;
use super::headers::{
    ICMP, ICMPV6, IPV4_HEADER, IPV6_HEADER, IpHeader, TCP, read_u16, read_u32, transport_checksum,
    write_u16,
};
use super::receive::IpPacket;
use super::udp_errors::quoted_datagram;
use crate::counters::Counter;
use crate::drop_reason::DropReason;
use crate::flow_table::{FlowKey, FlowOwner};
use crate::packets::Destination;
use crate::tcp::segment::HEADER_LEN as TCP_HEADER;
use crate::tcp::{IcmpError, SeqNumber, Unreachable};

/// Next header number of the fragment header.
const FRAGMENT_V6: u8 = 44;
/// Bytes of an ICMP header with its second word.
const ICMP_HEADER: usize = 8;
/// Least MTU believed of a router for IPv4 (Linux's `min_pmtu`), for IPv6 (RFC 8201 section 4).
const MTU_MIN_V4: u32 = 552;
const MTU_MIN_V6: u32 = 1280;

impl Shard {
    /// An ICMP message for one of our IPv4 addresses.
    pub(super) fn handle_icmp(&mut self, packet: &IpPacket<'_>) -> Result<(), DropReason> {
        let message =
            Icmpv4Packet::new_checked(packet.payload).map_err(|_| DropReason::IcmpMalformed)?;
        if packet.payload.len() < ICMP_HEADER {
            return Err(DropReason::IcmpMalformed);
        }
        if !packet.ingress.checksum_valid && checksum::data(packet.payload) != 0xffff {
            return Err(DropReason::IcmpBadChecksum);
        }
        match message.msg_type() {
            Icmpv4Message::EchoRequest => self.handle_echo_request(packet, 0),
            Icmpv4Message::DstUnreachable => {
                let mtu = u32::from(read_u16(packet.payload, 6));
                let error = unreachable_v4(message.msg_code(), mtu, self.mtu);
                self.handle_icmp_error(packet, error)
            }
            // As on Linux nobody is told that fragments got lost (code 1): others may come through.
            Icmpv4Message::TimeExceeded if message.msg_code() == 0 => {
                let error = IcmpError::Unreachable(Unreachable::Host);
                self.handle_icmp_error(packet, Some(error))
            }
            Icmpv4Message::ParamProblem => {
                let error = IcmpError::Unreachable(Unreachable::Header);
                self.handle_icmp_error(packet, Some(error))
            }
            _ => Err(DropReason::IcmpUnknownType),
        }
    }

    /// An ICMPv6 message for one of our IPv6 addresses or groups.
    pub(super) fn handle_icmpv6(&mut self, packet: &IpPacket<'_>) -> Result<(), DropReason> {
        if packet.payload.len() < ICMP_HEADER {
            return Err(DropReason::IcmpMalformed);
        }
        let (source, destination) = (packet.source, packet.destination);
        if !packet.ingress.checksum_valid
            && transport_checksum(source, destination, ICMPV6, packet.payload) != 0
        {
            return Err(DropReason::IcmpBadChecksum);
        }
        // smoltcp knows the messages of MLDv2 alone.
        if is_mld(packet.payload[0]) {
            return self.handle_mld(packet);
        }
        let message =
            Icmpv6Packet::new_checked(packet.payload).map_err(|_| DropReason::IcmpMalformed)?;
        let mtu = read_u32(packet.payload, 4);
        match message.msg_type() {
            Icmpv6Message::EchoRequest => self.handle_echo_request(packet, 129),
            Icmpv6Message::NeighborSolicit => self.handle_solicitation(packet),
            Icmpv6Message::RouterAdvert => self.handle_router_advertisement(packet),
            // Routes come from advertisements alone: a redirect is too easily forged.
            Icmpv6Message::Redirect => Err(DropReason::NdpNotWanted),
            Icmpv6Message::NeighborAdvert => self.handle_advertisement(packet),
            Icmpv6Message::DstUnreachable => {
                self.handle_icmp_error(packet, unreachable_v6(message.msg_code()))
            }
            // RFC 8201 section 4: what is below the least MTU of IPv6 is no news of a path.
            Icmpv6Message::PktTooBig if mtu < MTU_MIN_V6 => Err(DropReason::IcmpMtuTooSmall),
            Icmpv6Message::PktTooBig => {
                let error = packet_too_big(mtu, MTU_MIN_V6, self.mtu, IPV6_HEADER);
                self.handle_icmp_error(packet, Some(error))
            }
            Icmpv6Message::TimeExceeded => {
                let error = IcmpError::Unreachable(Unreachable::Host);
                self.handle_icmp_error(packet, Some(error))
            }
            Icmpv6Message::ParamProblem => {
                let error = IcmpError::Unreachable(Unreachable::Header);
                self.handle_icmp_error(packet, Some(error))
            }
            _ => Err(DropReason::IcmpUnknownType),
        }
    }

    /// Answers an echo request with its own data (RFC 1122 section 3.2.2.6, RFC 4443 section 4.2).
    fn handle_echo_request(
        &mut self,
        packet: &IpPacket<'_>,
        reply_type: u8,
    ) -> Result<(), DropReason> {
        if !self.is_speaker() {
            return Err(DropReason::SpeakerOnly);
        }
        self.counters.count(Counter::EchoRequestsReceived);
        if packet.source.is_unspecified() {
            return Err(DropReason::IcmpMalformed);
        }
        if !self.echo_limit.admit(self.now) {
            return Err(DropReason::IcmpEchoLimited);
        }
        let source = if packet.group {
            self.routing.source_for(packet.source).ok_or(DropReason::IcmpMalformed)?
        } else {
            packet.destination
        };
        let protocol = packet.protocol;
        let header = IpHeader::of_reply(source, packet.source, protocol);
        let len = header.len() + packet.payload.len();
        if !self.replies.has_room(len) {
            self.counters.count(Counter::RepliesDropped);
            return Err(DropReason::ReplyQueueFull);
        }
        let mut reply = self.buffers.take(len);
        let body = &mut reply[header.len()..];
        body.copy_from_slice(packet.payload);
        body[0] = reply_type;
        fill_icmp_checksum(&header, body);
        header.emit(&mut reply);
        self.counters.count(Counter::EchoRepliesSent);
        self.replies.push_back(Destination::Routed(packet.source), reply);
        Ok(())
    }

    /// Brings an error to the connection whose segment it quotes.
    fn handle_icmp_error(
        &mut self,
        packet: &IpPacket<'_>,
        error: Option<IcmpError>,
    ) -> Result<(), DropReason> {
        self.counters.count(Counter::IcmpErrorsReceived);
        if let Some(datagram) = quoted_datagram(&packet.payload[ICMP_HEADER..]) {
            return self.handle_datagram_error(packet, &datagram);
        }
        let error = error.ok_or(DropReason::IcmpUnknownType)?;
        let quote = &packet.payload[ICMP_HEADER..];
        let (key, seq) = quoted_segment(quote).ok_or(DropReason::IcmpErrorUnmatched)?;
        if self.report_to_connection(&key, error, seq) {
            return Ok(());
        }
        match self.follow_flow(packet, &key) {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => Err(DropReason::IcmpErrorUnmatched),
        }
    }

    /// Tells the connection of a flow that its segment failed; false without a connection.
    pub(super) fn report_to_connection(
        &mut self,
        key: &FlowKey,
        error: IcmpError,
        seq: SeqNumber,
    ) -> bool {
        let Some(FlowOwner::Connection(id)) = self.flows.lookup(key) else { return false };
        let Some(entry) = self.sockets.get_mut(id).and_then(|socket| socket.connection_mut())
        else {
            return false;
        };
        entry.connection.handle_icmp(self.now, error, seq, &mut self.counters.tcp);
        self.settle(id);
        true
    }
}

/// Fills the checksum of an ICMP or ICMPv6 message.
pub(super) fn fill_icmp_checksum(header: &IpHeader, body: &mut [u8]) {
    write_u16(body, 2, 0);
    let sum = if header.protocol == ICMP {
        !checksum::data(body)
    } else {
        transport_checksum(header.source, header.destination, ICMPV6, body)
    };
    write_u16(body, 2, sum);
}

/// The start of a packet of ours.
#[derive(Copy, Clone, Debug)]
pub(super) struct Quote<'a> {
    /// Transport protocol.
    pub protocol: u8,
    /// Where it came from.
    pub local: std::net::SocketAddr,
    /// Where it went.
    pub remote: std::net::SocketAddr,
    /// The first eight bytes of the transport header (RFC 792 promises no more).
    pub transport: &'a [u8],
    /// What is quoted behind them.
    pub rest: &'a [u8],
}

/// Takes the start of a packet of ours apart; `None` for later fragments and what is no packet.
pub(super) fn quoted(packet: &[u8]) -> Option<Quote<'_>> {
    let version = packet.first()? >> 4;
    let (header_len, protocol_at) = match version {
        4 => (usize::from(packet[0] & 0xf) * 4, 9),
        6 => (IPV6_HEADER, 6),
        _ => return None,
    };
    let (mut at, mut protocol) = (header_len, *packet.get(protocol_at)?);
    let later = match version {
        4 => read_u16(packet, 6) & 0x1fff != 0,
        // What we send in fragments has a fragment header and no other.
        _ if protocol == FRAGMENT_V6 => {
            protocol = *packet.get(at)?;
            at += 8;
            read_u16(packet, at - 6) & !7 != 0
        }
        _ => false,
    };
    let transport = packet.get(at..at + 8)?;
    if header_len < IPV4_HEADER || later {
        return None;
    }
    let (source, destination) = if version == 4 {
        (address_v4(packet, 12), address_v4(packet, 16))
    } else {
        (address_v6(packet, 8)?, address_v6(packet, 24)?)
    };
    Some(Quote {
        protocol,
        local: std::net::SocketAddr::new(source, read_u16(transport, 0)),
        remote: std::net::SocketAddr::new(destination, read_u16(transport, 2)),
        transport,
        rest: packet.get(at + 8..)?,
    })
}

/// The flow, as we see it, and the sequence number of a TCP segment of ours, from the start of its
/// packet.
pub(super) fn quoted_segment(packet: &[u8]) -> Option<(FlowKey, SeqNumber)> {
    let Quote { protocol, local, remote, transport, .. } = quoted(packet)?;
    let seq = SeqNumber::new(read_u32(transport, 4));
    (protocol == TCP).then_some((FlowKey::new(local, remote), seq))
}

fn address_v4(packet: &[u8], at: usize) -> IpAddr {
    IpAddr::V4(read_u32(packet, at).into())
}

fn address_v6(packet: &[u8], at: usize) -> Option<IpAddr> {
    let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
    Some(IpAddr::from(bytes))
}

/// What an IPv4 destination unreachable means (RFC 792, RFC 1122 section 3.2.2.1).
fn unreachable_v4(code: u8, mtu: u32, link_mtu: usize) -> Option<IcmpError> {
    Some(match code {
        0 | 6 | 9 | 11 => IcmpError::Unreachable(Unreachable::Network),
        1 | 5 | 7 | 8 | 10 | 12..=15 => IcmpError::Unreachable(Unreachable::Host),
        2 => IcmpError::Unreachable(Unreachable::Protocol),
        3 => IcmpError::Unreachable(Unreachable::Port),
        4 => packet_too_big(mtu, MTU_MIN_V4, link_mtu, IPV4_HEADER),
        _ => return None,
    })
}

/// What an IPv6 destination unreachable means (RFC 4443 section 3.1).
fn unreachable_v6(code: u8) -> Option<IcmpError> {
    Some(match code {
        0 => IcmpError::Unreachable(Unreachable::Network),
        1 | 5 | 6 => IcmpError::Unreachable(Unreachable::Denied),
        2 | 3 => IcmpError::Unreachable(Unreachable::Host),
        4 => IcmpError::Unreachable(Unreachable::Port),
        _ => return None,
    })
}

/// What a reported MTU leaves for TCP payload; never more than the link's (RFC 8201 section 4).
fn packet_too_big(mtu: u32, least: u32, link_mtu: usize, ip_header: usize) -> IcmpError {
    let mtu = mtu.clamp(least, link_mtu as u32) as usize;
    IcmpError::PacketTooBig { mss: (mtu - ip_header - TCP_HEADER) as u16 }
}
