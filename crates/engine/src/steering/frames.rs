//! Owns what of frames steering knows: types, protocols, bits and lengths, for the function and for the kernel's
//! program that the link crate writes of it. Sources: IEEE 802.3 and 802.1Q, RFC 791, 792, 4443, 4861, 8200.

/// Bytes before the IP header, without tags.
pub const ETHERNET_HEADER_LEN: usize = 14;
/// Bytes of a VLAN tag.
pub const VLAN_TAG_LEN: usize = 4;
/// VLAN tags that are skipped.
pub const TAGS_MAX: usize = 2;
/// Ethernet type of IPv4.
pub const TYPE_IPV4: u16 = 0x0800;
/// Ethernet type of ARP.
pub const TYPE_ARP: u16 = 0x0806;
/// Ethernet type of IPv6.
pub const TYPE_IPV6: u16 = 0x86dd;
/// Ethernet types of VLAN tags: of customers and of providers.
pub const TYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];
/// Bytes of the fixed IPv6 header.
pub const IPV6_HEADER_LEN: usize = 40;
/// Bytes of an ICMP or ICMPv6 error before the packet that it quotes.
pub const ICMP_HEADER_LEN: usize = 8;
/// Bytes of IPv6's fragment header.
pub const FRAGMENT_HEADER_LEN: usize = 8;
/// IP protocol.
pub const ICMP: u8 = 1;
/// IP protocol.
pub const TCP: u8 = 6;
/// IP protocol.
pub const UDP: u8 = 17;
/// Next header: a fragment header.
pub const FRAGMENT: u8 = 44;
/// Next header.
pub const ICMPV6: u8 = 58;
/// Next headers: hop-by-hop options, routing, destination options.
pub const EXTENSIONS: [u8; 3] = [0, 43, 60];
/// IPv6 extension headers that are looked at.
pub const EXTENSIONS_MAX: usize = 8;
/// Types of ICMP errors: unreachable, time exceeded, parameter problem.
pub const ERRORS_V4: [u8; 3] = [3, 11, 12];
/// Types of ICMPv6 without this bit are errors.
pub const NO_ERROR_V6: u8 = 0x80;
/// Types of ICMPv6: router advertisement, neighbour solicitation and advertisement.
pub const DISCOVERY: [u8; 3] = [134, 135, 136];
/// IPv4: more fragments, or an offset.
pub const FRAGMENT_BITS_V4: u16 = 0x3fff;
/// IPv4: the offset alone.
pub const OFFSET_BITS_V4: u16 = 0x1fff;
/// IPv6: more fragments, or an offset.
pub const FRAGMENT_BITS_V6: u16 = 0xfff9;
/// IPv6: the offset alone.
pub const OFFSET_BITS_V6: u16 = 0xfff8;
