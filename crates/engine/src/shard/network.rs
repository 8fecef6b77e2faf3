//! Automatic configuration on the wire: duplicate address detection, router solicitations and
//! advertisements; and the commands that start it.
//!
//! What is known and for how long is in the crate's `network.rs`. Called by `ndp.rs` and `icmp.rs` for
//! messages, by `transmit.rs` for sending. Read first: RFC 4861 sections 4.1, 4.2 and 6, RFC 4862.

use std::net::{IpAddr, Ipv6Addr};

use super::Shard;
use super::headers::{
    ICMPV6, IPV6_HEADER, IpHeader, TYPE_IPV6, group_mac, read_u16, read_u32, write_u16,
};
use super::icmp::fill_icmp_checksum;
use super::lifecycle::QueuedEvent;
use super::receive::IpPacket;
use crate::config::Cidr;
use crate::counters::Counter;
use crate::drop_reason::DropReason;
use crate::event::Event;
use crate::limits::MTU_MIN;
use crate::network::{AddressSummary, AdvertisedPrefix, Membership, NetworkMessage};
use crate::packets::Destination;
use crate::routing::solicited_node;
use crate::time::Instant;

const SOLICITATION: u8 = 135;
const ROUTER_SOLICITATION: u8 = 133;
/// Bytes of messages before their options.
const SOLICITATION_LEN: usize = 24;
const ROUTER_SOLICITATION_LEN: usize = 8;
const ADVERTISEMENT_LEN: usize = 16;
const LINK_ADDRESS_OPTION: usize = 8;
const OPTION_SOURCE: u8 = 1;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_NAME_SERVERS: u8 = 25;
const HOP_LIMIT: u8 = 255;
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

impl Shard {
    /// Puts the configured IPv6 addresses through duplicate address detection: until it has passed,
    /// a second at least, they are neither used nor answered (RFC 4862 section 5.4).
    pub fn detect_duplicates(&mut self, now: Instant) {
        self.now = now;
        self.network.detect_duplicates(now);
        self.adopt_network();
    }

    /// Makes a link-local address and takes addresses, routers and name servers from router
    /// advertisements (RFC 4862, RFC 8106).
    pub fn start_slaac(&mut self, now: Instant) {
        self.now = now;
        let random = self.keys.draw();
        self.network.start_slaac(now, self.mac, random);
        self.adopt_network();
    }

    /// All our addresses, those not in use included.
    pub fn addresses(&self) -> impl Iterator<Item = AddressSummary> + '_ {
        self.network.summaries()
    }

    /// Name servers learned from DHCP and router advertisements.
    pub fn name_servers(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.network.name_servers()
    }

    /// Default routers, configured and learned.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.network.gateways()
    }

    /// The MTU of the link for packets to an address.
    pub(super) fn link_mtu(&self, remote: IpAddr) -> usize {
        match self.network.mtu_v6 {
            Some(mtu) if remote.is_ipv6() => mtu.min(self.mtu),
            _ => self.mtu,
        }
    }

    pub(super) fn handle_network_timers(&mut self) {
        if self.network.next_timeout().is_some_and(|timeout| timeout <= self.now) {
            let random = self.keys.draw();
            self.network.handle_timers(self.now, random);
            self.adopt_network();
        }
    }

    /// Takes over what changed: routes, groups, and the news for the owner.
    pub(super) fn adopt_network(&mut self) {
        while let Some(membership) = self.network.poll_membership() {
            match membership {
                Membership::Join(addr) => {
                    let random = self.keys.draw();
                    let group = IpAddr::V6(solicited_node(addr));
                    if self.groups.join(self.now, group, random) == Some(true) {
                        self.counters.count(Counter::GroupsJoined);
                    }
                }
                Membership::Leave(addr) => self.groups.leave(IpAddr::V6(solicited_node(addr))),
            }
        }
        if let Some(routing) = self.network.take_routing() {
            self.routing = routing;
            self.network_update_due = self.steered.is_some() && self.is_speaker();
            if !self.network_event_queued {
                self.network_event_queued = true;
                self.events.push_back(QueuedEvent::Ready(Event::NetworkChanged));
            }
        }
    }

    /// Somebody else claims an address that we are probing, or probes it too.
    pub(super) fn find_duplicate(&mut self, addr: Ipv6Addr) -> bool {
        if !self.network.is_tentative(addr) {
            return false;
        }
        self.counters.count(Counter::DuplicateAddresses);
        self.network.mark_duplicate(addr);
        self.adopt_network();
        true
    }

    /// A router advertisement (RFC 4861 section 6.1.2 and 6.3.4).
    pub(super) fn handle_router_advertisement(
        &mut self,
        packet: &IpPacket<'_>,
    ) -> Result<(), DropReason> {
        let IpAddr::V6(router) = packet.source else { return Err(DropReason::NdpMalformed) };
        let body = packet.payload;
        if packet.hop_limit != HOP_LIMIT {
            return Err(DropReason::NdpBadHopLimit);
        }
        if !router.is_unicast_link_local() {
            return Err(DropReason::NdpBadSource);
        }
        if body.len() < ADVERTISEMENT_LEN || body[1] != 0 {
            return Err(DropReason::NdpMalformed);
        }
        let options = &body[ADVERTISEMENT_LEN..];
        if !options_are_sound(options) {
            return Err(DropReason::NdpMalformed);
        }
        if !self.is_speaker() {
            return self.note_router(packet.source, options);
        }
        if !self.network.takes_advertisements() {
            return Err(DropReason::NdpNotWanted);
        }
        self.counters.count(Counter::RouterAdvertisements);
        if body[4] != 0 {
            self.network.hop_limit_v6 = Some(body[4]);
        }
        self.network.hear_router(self.now, router, read_u16(body, 6));
        for option in iterate(options) {
            self.hear_option(packet.source, option);
        }
        self.adopt_network();
        Ok(())
    }

    /// Where a router is, when we know it already; the rest is told by the speaker.
    fn note_router(&mut self, router: IpAddr, options: &[u8]) -> Result<(), DropReason> {
        let macs = iterate(options).filter(|option| option[0] == OPTION_SOURCE);
        let Some(mac) = macs.filter_map(link_address).last() else {
            return Err(DropReason::CopyForOthers);
        };
        let known = self.neighbours.hear_announcement(self.now, router, mac, &mut self.counters);
        self.release_neighbours();
        if known { Ok(()) } else { Err(DropReason::CopyForOthers) }
    }

    fn hear_option(&mut self, router: IpAddr, option: &[u8]) {
        match (option[0], option.len()) {
            (OPTION_SOURCE, LINK_ADDRESS_OPTION) => {
                if let Some(mac) = link_address(option) {
                    self.neighbours.hear_request(self.now, router, mac, &mut self.counters);
                    self.release_neighbours();
                }
            }
            (OPTION_PREFIX, 32) => {
                let Some(network) = address(option, 16) else { return };
                let prefix = AdvertisedPrefix {
                    cidr: masked(network, option[2]),
                    on_link: option[3] & 0x80 != 0,
                    autonomous: option[3] & 0x40 != 0,
                    valid_s: read_u32(option, 4),
                    preferred_s: read_u32(option, 8),
                };
                self.network.hear_prefix(self.now, &prefix, self.mac);
            }
            (OPTION_MTU, 8) => {
                let mtu = read_u32(option, 4) as usize;
                if mtu >= usize::from(MTU_MIN) && mtu <= self.mtu {
                    self.network.mtu_v6 = Some(mtu);
                }
            }
            (OPTION_NAME_SERVERS, 24..) => {
                let lifetime_s = read_u32(option, 4);
                for at in (8..option.len()).step_by(16) {
                    if let Some(server) = address(option, at) {
                        self.network.hear_name_server(self.now, server, lifetime_s);
                    }
                }
            }
            _ => {}
        }
    }

    /// Queues one message of automatic configuration; false when there is none.
    pub(super) fn queue_network_message(&mut self) -> bool {
        let room = IPV6_HEADER + SOLICITATION_LEN + LINK_ADDRESS_OPTION;
        if !self.replies.has_room(room) {
            return false;
        }
        match self.network.poll_message() {
            None => return false,
            Some(NetworkMessage::Probe(target)) => self.queue_probe(target),
            Some(NetworkMessage::RouterSolicitation) => self.queue_router_solicitation(),
        }
        true
    }

    fn queue_probe(&mut self, target: Ipv6Addr) {
        let mut packet = self.buffers.take(IPV6_HEADER + SOLICITATION_LEN);
        let body = &mut packet[IPV6_HEADER..];
        write_u16(body, 0, u16::from(SOLICITATION) << 8);
        body[8..SOLICITATION_LEN].copy_from_slice(&target.octets());
        self.counters.count(Counter::DuplicateProbesSent);
        self.queue_discovery(Ipv6Addr::UNSPECIFIED, solicited_node(target), packet);
    }

    fn queue_router_solicitation(&mut self) {
        let source = self.routing.link_local();
        let option = if source.is_some() { LINK_ADDRESS_OPTION } else { 0 };
        let mut packet = self.buffers.take(IPV6_HEADER + ROUTER_SOLICITATION_LEN + option);
        let body = &mut packet[IPV6_HEADER..];
        write_u16(body, 0, u16::from(ROUTER_SOLICITATION) << 8);
        if option > 0 {
            write_u16(body, ROUTER_SOLICITATION_LEN, 0x0101);
            body[ROUTER_SOLICITATION_LEN + 2..].copy_from_slice(&self.mac);
        }
        self.counters.count(Counter::RouterSolicitationsSent);
        self.queue_discovery(source.unwrap_or(Ipv6Addr::UNSPECIFIED), ALL_ROUTERS, packet);
    }

    fn queue_discovery(&mut self, source: Ipv6Addr, destination: Ipv6Addr, mut packet: Vec<u8>) {
        let destination = IpAddr::V6(destination);
        let header = IpHeader {
            hop_limit: HOP_LIMIT,
            ..IpHeader::of_reply(IpAddr::V6(source), destination, ICMPV6)
        };
        fill_icmp_checksum(&header, &mut packet[IPV6_HEADER..]);
        header.emit(&mut packet);
        self.replies.push_back(Destination::Link(group_mac(destination), TYPE_IPV6), packet);
    }
}

/// Whether options fill their place exactly, none of them empty.
fn options_are_sound(options: &[u8]) -> bool {
    iterate(options).map(<[u8]>::len).sum::<usize>() == options.len()
}

/// The options one by one, up to the first that is malformed.
fn iterate(mut options: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = usize::from(*options.get(1)?) * 8;
        let option = options.get(..len).filter(|option| !option.is_empty())?;
        options = &options[len..];
        Some(option)
    })
}

/// The Ethernet address of an option, if it can be one.
fn link_address(option: &[u8]) -> Option<[u8; 6]> {
    let mac: [u8; 6] = option.get(2..LINK_ADDRESS_OPTION)?.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

fn address(option: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = option.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets))
}

/// A prefix without the bits behind it.
fn masked(network: Ipv6Addr, prefix_len: u8) -> Cidr {
    let prefix_len = prefix_len.min(128);
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix_len)).unwrap_or(0);
    Cidr::new(IpAddr::V6(Ipv6Addr::from(u128::from(network) & mask)), prefix_len)
}
