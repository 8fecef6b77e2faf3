//! The way in: frame, Ethernet, IP, transport. Each step hands on or says why not.
//!
//! [`Shard::handle_frame`] is the start; follow it to `arp.rs`, `ipv4.rs`, `ipv6.rs`, and from there
//! to `icmp.rs`, `ndp.rs`, `udp.rs` and `tcp.rs`. Nothing is sent from here: replies are queued and come out of
//! `poll_transmit`. Every frame is counted once, as accepted or under one [`DropReason`].

use std::net::IpAddr;

use smoltcp::wire::{EthernetFrame, EthernetProtocol};

use super::Shard;
use super::groups::IGMP;
use super::headers::{ICMP, ICMPV6, TCP, UDP};
use super::icmp_errors::IcmpCause;
use crate::counters::Counter;
use crate::drop_reason::DropReason;
use crate::limits::{DATAGRAM_MAX, ETHERNET_HEADER};
use crate::steering::frames::{TYPES_VLAN, VLAN_TAG_LEN};
use crate::streams::{RxMeta, Streams};
use crate::time::Instant;

/// Ethernet type of a VLAN tag.
const TYPE_VLAN: u16 = TYPES_VLAN[0];

/// Whether a frame that is too long is so for its VLAN tag alone.
#[cold]
fn is_tagged(frame: &[u8], packet_max: usize) -> bool {
    let kind = frame.get(12..14).and_then(|kind| kind.first_chunk::<2>());
    kind.is_some_and(|kind| u16::from_be_bytes(*kind) == TYPE_VLAN)
        && frame.len() <= packet_max + ETHERNET_HEADER + VLAN_TAG_LEN
}

/// How a packet came to us.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Ingress {
    /// From outside; a packet of our own to ourselves otherwise.
    pub wire: bool,
    /// The frame was addressed to a group.
    pub link_group: bool,
    /// The transport checksum need not be verified.
    pub checksum_valid: bool,
    /// The packet was put together from fragments.
    pub reassembled: bool,
    /// Payload of each TCP segment that the link has merged into the packet; 0 = an ordinary one.
    pub segment_size: u16,
    /// How often it was sent after a flow that has moved.
    pub forwarded: u8,
}

impl Ingress {
    /// A packet of ours to ourselves.
    pub const OWN: Ingress = Ingress {
        wire: false,
        link_group: false,
        checksum_valid: true,
        reassembled: false,
        segment_size: 0,
        forwarded: 0,
    };

    /// A packet whose fragments came from outside.
    pub const REASSEMBLED: Ingress = Ingress {
        wire: true,
        link_group: false,
        checksum_valid: false,
        reassembled: true,
        segment_size: 0,
        forwarded: 0,
    };
}

/// An IP packet that is for us.
#[derive(Copy, Clone, Debug)]
pub(super) struct IpPacket<'a> {
    /// How it came.
    pub ingress: Ingress,
    /// Header and payload, to quote in errors.
    pub whole: &'a [u8],
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The destination is a multicast or broadcast address.
    pub group: bool,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Transport protocol.
    pub protocol: u8,
    /// Where in `whole` the protocol is named.
    pub protocol_at: usize,
    /// What follows the headers.
    pub payload: &'a [u8],
}

impl Shard {
    /// A frame arrived: Ethernet without frame check sequence. Replies and data come out of
    /// [`Shard::poll_transmit`], news out of [`Shard::poll_event`].
    // A row of docs/cost.md; a call is half a dozen of its thousand instructions.
    #[inline(never)]
    pub fn handle_frame(
        &mut self,
        now: Instant,
        frame: &[u8],
        meta: RxMeta,
        streams: &mut impl Streams,
    ) {
        self.now = now;
        self.counters.count(Counter::FramesReceived);
        self.counters.add(Counter::BytesReceived, frame.len() as u64);
        let verdict = self.handle_ethernet(frame, meta, streams);
        self.tally(verdict);
    }

    /// A packet of ours to ourselves.
    pub(super) fn handle_own_packet(&mut self, packet: &[u8], streams: &mut impl Streams) {
        self.counters.count(Counter::LoopbackPackets);
        let verdict = self.handle_ip(Ingress::OWN, packet, streams);
        self.tally(verdict);
    }

    pub(super) fn tally(&mut self, verdict: Result<(), DropReason>) {
        match verdict {
            Ok(()) => self.counters.count(Counter::FramesAccepted),
            Err(reason) => self.counters.drop_frame(reason),
        }
    }

    fn handle_ethernet(
        &mut self,
        frame: &[u8],
        meta: RxMeta,
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        // A batch of merged segments is one packet, bounded by its length field alone.
        let packet_max = if meta.segment_size == 0 { self.mtu } else { DATAGRAM_MAX };
        if frame.len() > packet_max + ETHERNET_HEADER && !is_tagged(frame, packet_max) {
            return Err(DropReason::FrameOversized);
        }
        let frame = EthernetFrame::new_checked(frame).map_err(|_| DropReason::FrameTruncated)?;
        let destination = frame.dst_addr();
        if !destination.is_multicast() && destination.0 != self.mac {
            return Err(DropReason::EthernetNotForUs);
        }
        if frame.src_addr().is_multicast() {
            return Err(DropReason::EthernetBadSource);
        }
        let ingress = Ingress {
            wire: true,
            link_group: destination.is_multicast(),
            checksum_valid: meta.checksum_valid,
            reassembled: false,
            segment_size: meta.segment_size,
            forwarded: 0,
        };
        match frame.ethertype() {
            EthernetProtocol::Arp => self.handle_arp(frame.payload()),
            EthernetProtocol::Ipv4 => self.handle_ipv4(ingress, frame.payload(), streams),
            EthernetProtocol::Ipv6 => self.handle_ipv6(ingress, frame.payload(), streams),
            EthernetProtocol::Unknown(TYPE_VLAN) => {
                self.handle_tagged(ingress, frame.payload(), streams)
            }
            EthernetProtocol::Unknown(_) => Err(DropReason::EthernetUnknownType),
        }
    }

    /// What follows the type of a VLAN tag. One that names no VLAN but a priority alone is as none (IEEE 802.1Q
    /// section 6.9.1: VLAN identifier 0).
    #[cold]
    fn handle_tagged(
        &mut self,
        ingress: Ingress,
        tagged: &[u8],
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        let (tag, payload) = tagged.split_first_chunk::<4>().ok_or(DropReason::FrameTruncated)?;
        let vlan = u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff;
        if vlan != 0 {
            return Err(DropReason::EthernetOtherVlan);
        }
        match EthernetProtocol::from(u16::from_be_bytes([tag[2], tag[3]])) {
            EthernetProtocol::Arp => self.handle_arp(payload),
            EthernetProtocol::Ipv4 => self.handle_ipv4(ingress, payload, streams),
            EthernetProtocol::Ipv6 => self.handle_ipv6(ingress, payload, streams),
            EthernetProtocol::Unknown(_) => Err(DropReason::EthernetUnknownType),
        }
    }

    pub(super) fn handle_ip(
        &mut self,
        ingress: Ingress,
        packet: &[u8],
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        match packet.first().map(|byte| byte >> 4) {
            Some(6) => self.handle_ipv6(ingress, packet, streams),
            _ => self.handle_ipv4(ingress, packet, streams),
        }
    }

    /// Hands a packet to its transport protocol.
    pub(super) fn handle_transport(
        &mut self,
        packet: &IpPacket<'_>,
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        match (packet.protocol, packet.source) {
            (TCP, _) => self.handle_tcp(packet, streams),
            (ICMP, IpAddr::V4(_)) => self.handle_icmp(packet),
            (ICMPV6, IpAddr::V6(_)) => self.handle_icmpv6(packet),
            (UDP, _) => self.handle_udp(packet, streams),
            (IGMP, IpAddr::V4(_)) => self.handle_igmp(packet),
            _ => {
                self.send_error(packet, IcmpCause::ProtocolUnreachable);
                Err(DropReason::ProtocolUnknown)
            }
        }
    }
}
