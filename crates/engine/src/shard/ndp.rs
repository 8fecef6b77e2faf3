//! Neighbour discovery in and out: RFC 4861 solicitations and advertisements.
//!
//! Called by `icmp.rs` for messages and by `transmit.rs` for requests. What is learned is decided in
//! `neighbours.rs`. Duplicate address detection and router discovery are in `network.rs` beside.

use std::net::{IpAddr, Ipv6Addr};

use super::Shard;
use super::headers::{ICMPV6, IPV6_HEADER, IpHeader, TYPE_IPV6, group_mac, write_u16};
use super::icmp::fill_icmp_checksum;
use super::receive::IpPacket;
use crate::counters::Counter;
use crate::drop_reason::DropReason;
use crate::neighbours::{Answer, Request};
use crate::packets::Destination;
use crate::routing::solicited_node;

/// Bytes of a solicitation or advertisement before its options.
const MESSAGE: usize = 24;
/// Bytes of an option that carries an Ethernet address.
const ADDRESS_OPTION: usize = 8;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;
/// What every such packet carries, so that none from beyond a router is believed.
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A solicitation or advertisement taken apart.
#[derive(Copy, Clone, Debug)]
struct Message {
    flags: u8,
    target: Ipv6Addr,
    mac: Option<[u8; 6]>,
}

impl Shard {
    /// A neighbour solicitation (RFC 4861 section 7.1.1 and 7.2.3).
    pub(super) fn handle_solicitation(&mut self, packet: &IpPacket<'_>) -> Result<(), DropReason> {
        let message = check(packet, OPTION_SOURCE)?;
        let probe = packet.source.is_unspecified();
        let (IpAddr::V6(destination), IpAddr::V6(source)) = (packet.destination, packet.source)
        else {
            return Err(DropReason::NdpMalformed);
        };
        if probe && (destination != solicited_node(message.target) || message.mac.is_some()) {
            return Err(DropReason::NdpMalformed);
        }
        if probe && self.find_duplicate(message.target) {
            return Ok(());
        }
        if !self.routing.is_ours(IpAddr::V6(message.target)) {
            return Err(self.useless_copy(DropReason::NdpNotForUs));
        }
        if !probe && !self.routing.is_on_link(packet.source) {
            // Who asks with an address of another network of its own is answered, but not remembered.
            let mac = message.mac.ok_or(DropReason::NdpBadSource)?;
            if !self.is_speaker() {
                return Err(DropReason::SpeakerOnly);
            }
            return self.queue_advertisement(message.target, source, Some(mac), true);
        }
        if let Some(mac) = message.mac {
            self.neighbours.hear_request(self.now, packet.source, mac, &mut self.counters);
            self.release_neighbours();
        }
        if !self.is_speaker() {
            return if message.mac.is_some() { Ok(()) } else { Err(DropReason::SpeakerOnly) };
        }
        let to = if probe { ALL_NODES } else { source };
        self.queue_advertisement(message.target, to, None, !probe)
    }

    /// A neighbour advertisement (RFC 4861 section 7.1.2 and 7.2.5).
    pub(super) fn handle_advertisement(&mut self, packet: &IpPacket<'_>) -> Result<(), DropReason> {
        let message = check(packet, OPTION_TARGET)?;
        let solicited = message.flags & FLAG_SOLICITED != 0;
        if packet.group && solicited {
            return Err(DropReason::NdpMalformed);
        }
        if self.find_duplicate(message.target) {
            return Ok(());
        }
        let target = IpAddr::V6(message.target);
        if self.routing.is_ours(target) || !self.routing.is_on_link(target) {
            return Err(DropReason::NdpBadSource);
        }
        let replace = message.flags & FLAG_OVERRIDE != 0;
        let answer = Answer { mac: message.mac, solicited, replace };
        let known = self.neighbours.hear_answer(self.now, target, answer, &mut self.counters);
        self.release_neighbours();
        if known { Ok(()) } else { Err(self.useless_copy(DropReason::NdpUnsolicited)) }
    }

    /// To `mac`, or to wherever packets to `destination` go.
    fn queue_advertisement(
        &mut self,
        target: Ipv6Addr,
        destination: Ipv6Addr,
        mac: Option<[u8; 6]>,
        solicited: bool,
    ) -> Result<(), DropReason> {
        let len = IPV6_HEADER + MESSAGE + ADDRESS_OPTION;
        if !self.replies.has_room(len) {
            self.counters.count(Counter::RepliesDropped);
            return Err(DropReason::ReplyQueueFull);
        }
        let mut packet = self.buffers.take(len);
        let flags = FLAG_OVERRIDE | if solicited { FLAG_SOLICITED } else { 0 };
        let message = Message { flags, target, mac: Some(self.mac) };
        emit(ADVERTISEMENT, OPTION_TARGET, &message, target, destination, &mut packet);
        self.counters.count(Counter::NeighbourAdvertisementsSent);
        let to = match mac {
            Some(mac) => Destination::Link(mac, TYPE_IPV6),
            None => Destination::Routed(IpAddr::V6(destination)),
        };
        self.replies.push_back(to, packet);
        Ok(())
    }

    /// Writes a solicitation as an IP packet; gives where to send it, and its length.
    pub(super) fn emit_solicitation(
        &mut self,
        request: &Request,
        target: Ipv6Addr,
        packet: &mut [u8],
    ) -> Option<([u8; 6], usize)> {
        let Some(IpAddr::V6(source)) = self.routing.source_for(request.addr) else { return None };
        let len = IPV6_HEADER + MESSAGE + ADDRESS_OPTION;
        let destination = if request.probe.is_some() { target } else { solicited_node(target) };
        let message = Message { flags: 0, target, mac: Some(self.mac) };
        emit(SOLICITATION, OPTION_SOURCE, &message, source, destination, &mut packet[..len]);
        self.counters.count(Counter::NeighbourSolicitationsSent);
        Some((request.probe.unwrap_or(group_mac(IpAddr::V6(destination))), len))
    }
}

/// Checks what is common to both messages and takes them apart.
fn check(packet: &IpPacket<'_>, option_kind: u8) -> Result<Message, DropReason> {
    if packet.hop_limit != HOP_LIMIT {
        return Err(DropReason::NdpBadHopLimit);
    }
    let body = packet.payload;
    let target: [u8; 16] = body
        .get(8..MESSAGE)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(DropReason::NdpMalformed)?;
    let target = Ipv6Addr::from(target);
    if body[1] != 0 || target.is_multicast() {
        return Err(DropReason::NdpMalformed);
    }
    let mac = find_mac(&body[MESSAGE..], option_kind).ok_or(DropReason::NdpMalformed)?;
    Ok(Message { flags: body[4], target, mac })
}

/// Looks for an Ethernet address among options; `None` when they are malformed.
fn find_mac(mut options: &[u8], wanted: u8) -> Option<Option<[u8; 6]>> {
    let mut found = None;
    while let [kind, len, ..] = *options {
        let len = usize::from(len) * 8;
        let option = options.get(..len).filter(|option| !option.is_empty())?;
        if kind == wanted && len == ADDRESS_OPTION {
            let mac: [u8; 6] = option[2..].try_into().ok()?;
            if mac[0] & 1 != 0 || mac == [0; 6] {
                return None;
            }
            found = Some(mac);
        }
        options = &options[len..];
    }
    if options.is_empty() { Some(found) } else { None }
}

/// Writes a message with its Ethernet address option as a complete packet.
fn emit(
    kind: u8,
    option_kind: u8,
    message: &Message,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    packet: &mut [u8],
) {
    let header = IpHeader {
        hop_limit: HOP_LIMIT,
        ..IpHeader::of_reply(IpAddr::V6(source), IpAddr::V6(destination), ICMPV6)
    };
    let body = &mut packet[IPV6_HEADER..];
    body.fill(0);
    write_u16(body, 0, u16::from(kind) << 8);
    body[4] = message.flags;
    body[8..MESSAGE].copy_from_slice(&message.target.octets());
    write_u16(body, MESSAGE, u16::from(option_kind) << 8 | 1);
    body[MESSAGE + 2..MESSAGE + ADDRESS_OPTION].copy_from_slice(&message.mac.unwrap_or_default());
    fill_icmp_checksum(&header, body);
    header.emit(packet);
}
