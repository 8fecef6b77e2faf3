//! DHCP on the wire: the client's messages as packets, its probes, and what a lease changes.
//!
//! What to ask for when is decided in the crate's `dhcp.rs`. Called by `udp.rs` and `arp.rs` for
//! messages and by `transmit.rs` for sending.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::Shard;
use super::headers::{
    IPV4_HEADER, IpHeader, TYPE_ARP, TYPE_IPV4, UDP, transport_checksum, write_u16,
};
use crate::counters::Counter;
use crate::dhcp::{Client, Lease, News};
use crate::drop_reason::DropReason;
use crate::packets::Destination;
use crate::time::Instant;

/// Port of servers and of clients.
const SERVER_PORT: u16 = 67;
pub(super) const CLIENT_PORT: u16 = 68;
const UDP_HEADER: usize = 8;
const ARP_LEN: usize = 28;

impl Shard {
    /// Asks for an IPv4 address by DHCP, and keeps it (RFC 2131).
    pub fn start_dhcp(&mut self, now: Instant) {
        self.now = now;
        self.dhcp = Some(Box::new(Client::new(now, self.mac)));
    }

    /// What a DHCP server gave us, if one has.
    pub fn lease(&self) -> Option<&Lease> {
        self.dhcp.as_ref()?.lease()
    }

    pub(super) fn handle_dhcp_timers(&mut self) {
        let Some(client) = &mut self.dhcp else { return };
        if client.next_timeout() <= self.now {
            client.handle_timers(self.now, self.keys.draw());
            self.adopt_lease();
        }
    }

    /// A datagram for the client's port.
    pub(super) fn handle_dhcp(
        &mut self,
        remote: SocketAddr,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let random = self.keys.draw();
        let Some(client) = &mut self.dhcp else { return Err(DropReason::UdpNoPort) };
        if remote.port() != SERVER_PORT || !client.handle_message(self.now, payload, random) {
            return Err(DropReason::DhcpIgnored);
        }
        self.adopt_lease();
        Ok(())
    }

    /// ARP says that somebody has, or wants, an address.
    pub(super) fn find_dhcp_conflict(&mut self, address: Ipv4Addr, mac: [u8; 6]) {
        if mac == self.mac {
            return;
        }
        if let Some(client) = &mut self.dhcp
            && client.handle_conflict(self.now, address)
        {
            self.counters.count(Counter::DuplicateAddresses);
        }
    }

    fn adopt_lease(&mut self) {
        let Some(news) = self.dhcp.as_mut().and_then(|client| client.poll_news()) else { return };
        match news {
            News::Bound(lease) => {
                self.counters.count(Counter::DhcpLeases);
                let Lease { cidr, gateway, name_servers, expires_at, .. } = lease;
                self.network.set_lease(cidr, gateway, &name_servers, expires_at);
            }
            News::Lost => {
                self.counters.count(Counter::DhcpLeasesLost);
                self.network.clear_lease();
            }
        }
        self.adopt_network();
    }

    /// Queues one message or probe; false when there is none.
    pub(super) fn queue_dhcp_message(&mut self) -> bool {
        let Some(client) = &mut self.dhcp else { return false };
        if !self.replies.has_room(1500) {
            return false;
        }
        if let Some(address) = client.poll_probe() {
            self.queue_arp_probe(address);
            return true;
        }
        let Some(message) = client.poll_message() else { return false };
        let header = IpHeader::of_reply(message.source.into(), message.destination.into(), UDP);
        let mut packet = self.buffers.take(IPV4_HEADER + UDP_HEADER + message.payload.len());
        let datagram = &mut packet[IPV4_HEADER..];
        write_u16(datagram, 0, CLIENT_PORT);
        write_u16(datagram, 2, SERVER_PORT);
        let len = datagram.len() as u16;
        write_u16(datagram, 4, len);
        datagram[UDP_HEADER..].copy_from_slice(&message.payload);
        let sum = transport_checksum(header.source, header.destination, UDP, datagram);
        write_u16(datagram, 6, if sum == 0 { 0xffff } else { sum });
        header.emit(&mut packet);
        self.counters.count(Counter::DhcpMessagesSent);
        let destination = match message.destination {
            Ipv4Addr::BROADCAST => Destination::Link([0xff; 6], TYPE_IPV4),
            server => Destination::Routed(IpAddr::V4(server)),
        };
        self.replies.push_back(destination, packet);
        true
    }

    /// An ARP probe (RFC 5227 section 2.1.1).
    fn queue_arp_probe(&mut self, target: Ipv4Addr) {
        let mut body = self.buffers.take(ARP_LEN);
        let probe = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress(self.mac),
            source_protocol_addr: Ipv4Addr::UNSPECIFIED,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        };
        probe.emit(&mut ArpPacket::new_unchecked(&mut body[..]));
        self.counters.count(Counter::DuplicateProbesSent);
        self.replies.push_back(Destination::Link([0xff; 6], TYPE_ARP), body);
    }
}
