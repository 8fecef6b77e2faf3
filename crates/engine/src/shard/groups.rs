//! IGMP and MLD in and out: queries of routers, reports of other hosts, and our own messages.
//!
//! Called by `ipv4.rs` and `icmp.rs` for messages and by `transmit.rs` for sending; what to say when is
//! decided in the crate's `groups.rs`. Read first: RFC 2236 section 2, RFC 2710 section 3.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{Ipv4Packet, checksum};

use super::Shard;
use super::headers::{
    ICMPV6, IPV4_HEADER, IPV6_HEADER, IpHeader, TYPE_IPV4, TYPE_IPV6, group_mac, read_u16,
    read_u32, write_u16, write_u32,
};
use super::receive::IpPacket;
use crate::counters::Counter;
use crate::drop_reason::DropReason;
use crate::groups::Message;
use crate::packets::Destination;

/// Protocol number of IGMP.
pub(super) const IGMP: u8 = 2;
const IGMP_LEN: usize = 8;
const IGMP_QUERY: u8 = 0x11;
const IGMP_REPORT_V1: u8 = 0x12;
const IGMP_REPORT_V2: u8 = 0x16;
const IGMP_LEAVE: u8 = 0x17;
const MLD_LEN: usize = 24;
const MLD_QUERY: u8 = 130;
const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
/// Router alert: RFC 2113 as an IPv4 option, RFC 2711 as an IPv6 hop-by-hop header.
const ROUTER_ALERT_V4: [u8; 4] = [148, 4, 0, 0];
const ROUTER_ALERT_V6: [u8; 8] = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
/// An IGMPv1 router gives no time: ten seconds (RFC 2236 section 4).
const QUERY_V1_US: u64 = 10_000_000;
const ALL_ROUTERS_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 2);
const ALL_ROUTERS_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Whether an ICMPv6 message is about groups.
pub(super) fn is_mld(kind: u8) -> bool {
    matches!(kind, MLD_QUERY | MLD_REPORT | MLD_DONE)
}

impl Shard {
    /// An IGMP message.
    pub(super) fn handle_igmp(&mut self, packet: &IpPacket<'_>) -> Result<(), DropReason> {
        let body = packet.payload;
        if body.len() < IGMP_LEN || checksum::data(body) != 0xffff {
            return Err(DropReason::GroupMalformed);
        }
        let group = Ipv4Addr::from(read_u32(body, 4));
        let asked = (!group.is_unspecified()).then_some(IpAddr::V4(group));
        if asked.is_some_and(|group| !group.is_multicast()) {
            return Err(DropReason::GroupMalformed);
        }
        match body[0] {
            IGMP_QUERY => {
                let within_us = match body[1] {
                    0 => QUERY_V1_US,
                    tenths => response_time(u32::from(tenths), 8, body.len() > IGMP_LEN) * 100_000,
                };
                let random = self.keys.draw();
                self.groups.handle_query(self.now, asked, true, within_us, random);
                Ok(())
            }
            IGMP_REPORT_V1 | IGMP_REPORT_V2
                if asked.is_some_and(|group| self.groups.handle_report(group)) =>
            {
                Ok(())
            }
            _ => Err(DropReason::GroupIgnored),
        }
    }

    /// An MLD message, its checksum already verified.
    pub(super) fn handle_mld(&mut self, packet: &IpPacket<'_>) -> Result<(), DropReason> {
        let body = packet.payload;
        let link_local = match packet.source {
            IpAddr::V6(source) => source.is_unicast_link_local(),
            IpAddr::V4(_) => false,
        };
        if packet.hop_limit != 1 || !link_local {
            return Err(DropReason::GroupNotLocal);
        }
        let group: Option<[u8; 16]> = body.get(8..MLD_LEN).and_then(|bytes| bytes.try_into().ok());
        let group = Ipv6Addr::from(group.ok_or(DropReason::GroupMalformed)?);
        let asked = (!group.is_unspecified()).then_some(IpAddr::V6(group));
        if asked.is_some_and(|group| !group.is_multicast()) {
            return Err(DropReason::GroupMalformed);
        }
        match body[0] {
            MLD_QUERY => {
                let code = u32::from(read_u16(body, 4));
                let within_us = response_time(code, 16, body.len() > MLD_LEN) * 1000;
                let random = self.keys.draw();
                self.groups.handle_query(self.now, asked, false, within_us, random);
                Ok(())
            }
            MLD_REPORT if asked.is_some_and(|group| self.groups.handle_report(group)) => Ok(()),
            _ => Err(DropReason::GroupIgnored),
        }
    }

    /// Queues one message about our groups; false when there is none, or no room for it now.
    pub(super) fn queue_group_message(&mut self) -> bool {
        if !self.replies.has_room(IPV6_HEADER + ROUTER_ALERT_V6.len() + MLD_LEN) {
            return false;
        }
        let Some(message) = self.groups.poll_message() else { return false };
        if !self.is_speaker() {
            // The speaker reports for us.
            return true;
        }
        let (report, group) = match message {
            Message::Report(group) => (true, group),
            Message::Leave(group) => (false, group),
        };
        let queued = match group {
            IpAddr::V4(group) => self.queue_igmp(report, group),
            IpAddr::V6(group) => self.queue_mld(report, group),
        };
        if queued.is_some() {
            self.counters.count(match report {
                true => Counter::GroupReportsSent,
                false => Counter::GroupLeavesSent,
            });
        }
        true
    }

    fn queue_igmp(&mut self, report: bool, group: Ipv4Addr) -> Option<()> {
        let destination = if report { group } else { ALL_ROUTERS_V4 };
        let source = self.routing.source_for(IpAddr::V4(destination))?;
        let options = IPV4_HEADER + ROUTER_ALERT_V4.len();
        let mut bytes = self.buffers.take(options + IGMP_LEN);
        let header = IpHeader {
            hop_limit: 1,
            type_of_service: 0xc0,
            ..IpHeader::of_reply(source, IpAddr::V4(destination), IGMP)
        };
        header.emit(&mut bytes);
        bytes[IPV4_HEADER..options].copy_from_slice(&ROUTER_ALERT_V4);
        let mut ip = Ipv4Packet::new_unchecked(&mut bytes[..]);
        ip.set_header_len(options as u8);
        ip.fill_checksum();
        let body = &mut bytes[options..];
        body[0] = if report { IGMP_REPORT_V2 } else { IGMP_LEAVE };
        write_u32(body, 4, group.into());
        let sum = !checksum::data(body);
        write_u16(body, 2, sum);
        let mac = group_mac(IpAddr::V4(destination));
        self.replies.push_back(Destination::Link(mac, TYPE_IPV4), bytes);
        Some(())
    }

    fn queue_mld(&mut self, report: bool, group: Ipv6Addr) -> Option<()> {
        let destination = if report { group } else { ALL_ROUTERS_V6 };
        // RFC 3590: from a link-local address, or the unspecified one while there is none.
        let source = self.routing.link_local().unwrap_or(Ipv6Addr::UNSPECIFIED);
        let at = IPV6_HEADER + ROUTER_ALERT_V6.len();
        let mut bytes = self.buffers.take(at + MLD_LEN);
        let header = IpHeader {
            hop_limit: 1,
            ..IpHeader::of_reply(IpAddr::V6(source), IpAddr::V6(destination), ICMPV6)
        };
        let body = &mut bytes[at..];
        body[0] = if report { MLD_REPORT } else { MLD_DONE };
        body[8..MLD_LEN].copy_from_slice(&group.octets());
        super::icmp::fill_icmp_checksum(&header, body);
        IpHeader { protocol: 0, ..header }.emit(&mut bytes);
        bytes[IPV6_HEADER..at].copy_from_slice(&ROUTER_ALERT_V6);
        let mac = group_mac(IpAddr::V6(destination));
        self.replies.push_back(Destination::Link(mac, TYPE_IPV6), bytes);
        Some(())
    }
}

/// A response time as written by version 1 and 2 routers (IGMP) or 1 (MLD), or by later ones, who
/// may mean a small floating-point number (RFC 3376 section 4.1.1, RFC 3810 section 5.1.3).
fn response_time(code: u32, bits: u32, later_version: bool) -> u64 {
    let top = 1 << (bits - 1);
    if !later_version || code < top {
        return u64::from(code);
    }
    let mantissa_bits = if bits == 8 { 4 } else { 12 };
    let mantissa = code & ((1 << mantissa_bits) - 1) | 1 << mantissa_bits;
    u64::from(mantissa) << ((code >> mantissa_bits & 7) + 3)
}
