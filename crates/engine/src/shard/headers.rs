//! Writes Ethernet, IPv4 and IPv6 headers and transport checksums.
//!
//! Pure functions over buffers, called by `transmit.rs` and by whoever makes a reply. Layouts come
//! from smoltcp's wire types.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, checksum,
};

use crate::limits::ETHERNET_HEADER;
pub(super) use crate::steering::frames::{ICMP, ICMPV6, TCP, TYPE_ARP, TYPE_IPV4, TYPE_IPV6, UDP};

/// Bytes of an IPv4 header without options.
pub(super) const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub(super) const IPV6_HEADER: usize = 40;
/// Hop limit of packets that are not of a connection.
pub(super) const HOP_LIMIT: u8 = 64;

/// What an IP header says.
#[derive(Copy, Clone, Debug)]
pub(super) struct IpHeader {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Protocol or next header.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TOS byte or traffic class.
    pub type_of_service: u8,
    /// Routers may cut the packet into fragments (IPv4 only).
    pub may_fragment: bool,
}

impl IpHeader {
    /// A header for a packet that belongs to no connection.
    pub(super) fn of_reply(source: IpAddr, destination: IpAddr, protocol: u8) -> IpHeader {
        IpHeader {
            source,
            destination,
            protocol,
            hop_limit: HOP_LIMIT,
            type_of_service: 0,
            may_fragment: true,
        }
    }

    /// Bytes of the header.
    pub(super) fn len(&self) -> usize {
        header_len(self.destination)
    }

    /// Writes the header to the start of `packet`, which holds all of the packet.
    pub(super) fn emit(&self, packet: &mut [u8]) {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.emit_v4(source, destination, packet);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.emit_v6(source, destination, packet);
            }
            _ => unreachable!("both addresses of a packet are of one family"),
        }
    }

    fn emit_v4(&self, source: Ipv4Addr, destination: Ipv4Addr, packet: &mut [u8]) {
        let total_len = packet.len() as u16;
        packet[..IPV4_HEADER].fill(0);
        let mut header = Ipv4Packet::new_unchecked(packet);
        header.set_version(4);
        header.set_header_len(IPV4_HEADER as u8);
        header.set_dscp(self.type_of_service >> 2);
        header.set_ecn(self.type_of_service & 3);
        header.set_total_len(total_len);
        header.set_dont_frag(!self.may_fragment);
        header.set_hop_limit(self.hop_limit);
        header.set_next_header(IpProtocol::from(self.protocol));
        header.set_src_addr(source);
        header.set_dst_addr(destination);
        header.fill_checksum();
    }

    fn emit_v6(&self, source: Ipv6Addr, destination: Ipv6Addr, packet: &mut [u8]) {
        let payload_len = (packet.len() - IPV6_HEADER) as u16;
        packet[..IPV6_HEADER].fill(0);
        let mut header = Ipv6Packet::new_unchecked(packet);
        header.set_version(6);
        header.set_traffic_class(self.type_of_service);
        header.set_payload_len(payload_len);
        header.set_next_header(IpProtocol::from(self.protocol));
        header.set_hop_limit(self.hop_limit);
        header.set_src_addr(source);
        header.set_dst_addr(destination);
    }
}

/// Bytes of a header without options or extensions to this address.
pub(super) fn header_len(destination: IpAddr) -> usize {
    if destination.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

/// Ethernet type of an IP packet, by its version.
pub(super) fn ethernet_type(packet: &[u8]) -> u16 {
    if packet.first().is_some_and(|byte| byte >> 4 == 6) { TYPE_IPV6 } else { TYPE_IPV4 }
}

/// Writes an Ethernet header to the start of `frame`.
pub(super) fn emit_ethernet(source: [u8; 6], destination: [u8; 6], kind: u16, frame: &mut [u8]) {
    let mut header = EthernetFrame::new_unchecked(&mut frame[..ETHERNET_HEADER]);
    header.set_src_addr(EthernetAddress(source));
    header.set_dst_addr(EthernetAddress(destination));
    header.set_ethertype(EthernetProtocol::from(kind));
}

/// The Ethernet group for an IP group or broadcast (RFC 1112 section 6.4, RFC 2464 section 7).
pub(super) fn group_mac(group: IpAddr) -> [u8; 6] {
    match group {
        IpAddr::V4(addr) if addr.is_multicast() => {
            let [_, b, c, d] = addr.octets();
            [0x01, 0x00, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V4(_) => [0xff; 6],
        IpAddr::V6(addr) => {
            let [.., a, b, c, d] = addr.octets();
            [0x33, 0x33, a, b, c, d]
        }
    }
}

/// The complete checksum over pseudo header and transport data (RFC 9293 section 3.1, RFC 8200
/// section 8.1); over data with its checksum in place it is 0 when that is right.
// A row of docs/cost.md.
#[inline(never)]
pub(super) fn transport_checksum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    data: &[u8],
) -> u16 {
    let pseudo = pseudo_checksum(source, destination, protocol, data.len());
    !checksum::combine(&[pseudo, checksum::data(data)])
}

/// The folded sum over the pseudo header, not complemented: what a link that completes checksums
/// wants to find in their place.
pub(super) fn pseudo_checksum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    data_len: usize,
) -> u16 {
    let next_header = IpProtocol::from(protocol);
    let len = data_len as u32;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            checksum::pseudo_header_v4(&source, &destination, next_header, len)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            checksum::pseudo_header_v6(&source, &destination, next_header, len)
        }
        _ => unreachable!("both addresses of a packet are of one family"),
    }
}

/// Reads two bytes in network order at `at`; 0 beyond the end.
pub(super) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |pair| u16::from_be_bytes([pair[0], pair[1]]))
}

/// Reads four bytes in network order at `at`; 0 beyond the end.
pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from(read_u16(bytes, at)) << 16 | u32::from(read_u16(bytes, at + 2))
}

/// Writes two bytes in network order.
pub(super) fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes four bytes in network order.
pub(super) fn write_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_their_ethernet_addresses() {
        let mac = |text: &str| group_mac(text.parse().expect("address"));
        assert_eq!(mac("224.129.2.3"), [1, 0, 0x5e, 1, 2, 3]);
        assert_eq!(mac("255.255.255.255"), [0xff; 6]);
        assert_eq!(mac("ff02::1:ff12:3456"), [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    }

    #[test]
    fn a_checksum_in_place_verifies() {
        let (a, b) = ("10.0.0.1".parse().expect("address"), "10.0.0.2".parse().expect("address"));
        let mut data = [1, 2, 3, 4, 0, 0, 5];
        let sum = transport_checksum(a, b, UDP, &data);
        write_u16(&mut data, 4, sum);
        assert_eq!(transport_checksum(a, b, UDP, &data), 0);
    }
}
