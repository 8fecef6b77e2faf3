//! IPv6 in: header checks, impossible addresses, extension headers, fragments; and fragments out.
//!
//! Called by `receive.rs`; what is for us goes on to `handle_transport`. Read first: RFC 8200
//! sections 3 and 4.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{
    IpProtocol, Ipv6ExtHeader, Ipv6FragmentHeader, Ipv6OptionFailureType, Ipv6OptionRepr,
    Ipv6OptionsIterator, Ipv6Packet,
};

use super::Shard;
use super::elsewhere::ForwardKind;
use super::headers::{IPV6_HEADER, write_u16, write_u32};
use super::icmp_errors::IcmpCause;
use super::receive::{Ingress, IpPacket};
use crate::counters::Counter;
use crate::drop_reason::DropReason;
use crate::reassembly::{DatagramKey, Fragment};
use crate::streams::Streams;
use crate::tcp::segment::HEADER_LEN as TCP_HEADER;

/// Where the fixed header names the next one.
const NEXT_HEADER_AT: usize = 6;
/// Bytes of a fragment header.
const FRAGMENT_HEADER: usize = 8;
/// Bytes of a UDP or ICMPv6 header.
const SHORT_HEADER: usize = 8;
/// Extension headers that are looked at in one packet.
const EXTENSIONS_MAX: usize = 8;
/// Next header number of the fragment header.
const FRAGMENT: u8 = 44;

/// How far the headers of a packet have been read.
#[derive(Copy, Clone, Debug)]
struct Position {
    /// Kind of the next header.
    next: u8,
    /// Where it was named.
    named_at: usize,
    /// Where it starts.
    at: usize,
}

impl Shard {
    /// An IPv6 packet arrived, perhaps with Ethernet padding behind it.
    pub(super) fn handle_ipv6(
        &mut self,
        ingress: Ingress,
        bytes: &[u8],
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        let header = Ipv6Packet::new_checked(bytes).map_err(|_| DropReason::Ipv6Malformed)?;
        if header.version() != 6 {
            return Err(DropReason::Ipv6Malformed);
        }
        let (source, destination) = (header.src_addr(), header.dst_addr());
        self.check_ipv6_source(ingress, source)?;
        self.check_ipv6_destination(ingress, destination)?;
        let mut packet = IpPacket {
            ingress,
            whole: &bytes[..header.total_len()],
            source: IpAddr::V6(source),
            destination: IpAddr::V6(destination),
            group: destination.is_multicast(),
            hop_limit: header.hop_limit(),
            protocol: header.next_header().into(),
            protocol_at: NEXT_HEADER_AT,
            payload: header.payload(),
        };
        let position = self.skip_extensions(&packet)?;
        packet.protocol = position.next;
        packet.protocol_at = position.named_at;
        packet.payload = packet.whole.get(position.at..).unwrap_or_default();
        if position.next == FRAGMENT {
            return self.handle_ipv6_fragment(&packet, position, streams);
        }
        if source.is_unspecified() && position.next != super::headers::ICMPV6 {
            return Err(DropReason::Ipv6MartianSource);
        }
        self.handle_transport(&packet, streams)
    }

    fn check_ipv6_source(&self, ingress: Ingress, source: Ipv6Addr) -> Result<(), DropReason> {
        if source.is_multicast() || source.to_ipv4_mapped().is_some() {
            return Err(DropReason::Ipv6MartianSource);
        }
        if ingress.wire && source.is_loopback() {
            return Err(DropReason::Ipv6MartianSource);
        }
        if ingress.wire && self.routing.is_ours(IpAddr::V6(source)) {
            return Err(DropReason::Ipv6SelfSource);
        }
        Ok(())
    }

    fn check_ipv6_destination(
        &self,
        ingress: Ingress,
        destination: Ipv6Addr,
    ) -> Result<(), DropReason> {
        let impossible = destination.is_unspecified() || destination.to_ipv4_mapped().is_some();
        if impossible || (ingress.wire && destination.is_loopback()) {
            return Err(DropReason::Ipv6MartianDestination);
        }
        if destination.is_multicast() {
            let group = IpAddr::V6(destination);
            let ours = self.routing.is_our_group(destination) || self.groups.contains(group);
            return if ours { Ok(()) } else { Err(DropReason::Ipv6NotForUs) };
        }
        if !self.routing.is_ours(IpAddr::V6(destination)) {
            return Err(DropReason::Ipv6NotForUs);
        }
        if ingress.link_group {
            return Err(DropReason::Ipv6UnicastInMulticast);
        }
        Ok(())
    }

    /// Reads extension headers up to a transport header or a fragment header that counts.
    fn skip_extensions(&mut self, packet: &IpPacket<'_>) -> Result<Position, DropReason> {
        let mut position =
            Position { next: packet.protocol, named_at: NEXT_HEADER_AT, at: IPV6_HEADER };
        for _ in 0..EXTENSIONS_MAX {
            let rest = packet.whole.get(position.at..).unwrap_or_default();
            let len = match IpProtocol::from(position.next) {
                // Only right behind the fixed header (RFC 8200 section 4.1).
                IpProtocol::HopByHop if position.at != IPV6_HEADER => {
                    self.send_error(packet, IcmpCause::UnknownNextHeader(position.named_at));
                    return Err(DropReason::Ipv6BadExtension);
                }
                IpProtocol::HopByHop | IpProtocol::Ipv6Opts => {
                    self.check_options(packet, position.at)?
                }
                IpProtocol::Ipv6Route => self.check_routing(packet, position.at)?,
                IpProtocol::Ipv6Frag => {
                    let header = fragment_header(rest)?;
                    if header.more_frags() || header.frag_offset() != 0 {
                        return Ok(position);
                    }
                    // RFC 6946: a fragment that is the whole datagram meets no others.
                    FRAGMENT_HEADER
                }
                IpProtocol::Ipv6NoNxt => return Err(DropReason::Ipv6NoNextHeader),
                _ => return Ok(position),
            };
            position = Position {
                next: rest.first().copied().unwrap_or_default(),
                named_at: position.at,
                at: position.at + len,
            };
        }
        Err(DropReason::Ipv6TooManyExtensions)
    }

    /// Looks at hop-by-hop or destination options (RFC 8200 section 4.2); gives their length.
    fn check_options(&mut self, packet: &IpPacket<'_>, at: usize) -> Result<usize, DropReason> {
        let header = Ipv6ExtHeader::new_checked(&packet.whole[at..])
            .map_err(|_| DropReason::Ipv6BadExtension)?;
        let options = header.payload();
        let mut option_at = at + 2;
        for option in Ipv6OptionsIterator::new(options) {
            let option = option.map_err(|_| DropReason::Ipv6BadExtension)?;
            if let Ipv6OptionRepr::Unknown { type_, .. } = option {
                let answer = match Ipv6OptionFailureType::from(type_) {
                    Ipv6OptionFailureType::Skip => None,
                    Ipv6OptionFailureType::Discard => Some(None),
                    Ipv6OptionFailureType::DiscardSendAll => {
                        Some(Some(IcmpCause::UnknownOption { at: option_at, even_to_group: true }))
                    }
                    Ipv6OptionFailureType::DiscardSendUnicast => {
                        Some(Some(IcmpCause::UnknownOption { at: option_at, even_to_group: false }))
                    }
                };
                if let Some(cause) = answer {
                    if let Some(cause) = cause {
                        self.send_error(packet, cause);
                    }
                    return Err(DropReason::Ipv6UnknownOption);
                }
            }
            option_at += option.buffer_len();
        }
        Ok((usize::from(header.header_len()) + 1) * 8)
    }

    /// We are no router: a routing header must be used up (RFC 8200 section 4.4, RFC 5095).
    fn check_routing(&mut self, packet: &IpPacket<'_>, at: usize) -> Result<usize, DropReason> {
        let header = Ipv6ExtHeader::new_checked(&packet.whole[at..])
            .map_err(|_| DropReason::Ipv6BadExtension)?;
        if packet.whole[at + 3] != 0 {
            self.send_error(packet, IcmpCause::BadField(at + 2));
            return Err(DropReason::Ipv6RoutingHeader);
        }
        Ok((usize::from(header.header_len()) + 1) * 8)
    }

    fn handle_ipv6_fragment(
        &mut self,
        packet: &IpPacket<'_>,
        position: Position,
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        self.counters.count(Counter::FragmentsReceived);
        if packet.ingress.reassembled {
            return Err(DropReason::Ipv6BadExtension);
        }
        let header = fragment_header(packet.payload)?;
        let data = packet.payload.get(FRAGMENT_HEADER..).unwrap_or_default();
        if header.more_frags() && !data.len().is_multiple_of(8) {
            self.send_error(packet, IcmpCause::BadField(4));
            return Err(DropReason::FragmentMalformed);
        }
        if header.frag_offset() == 0 && !reaches_transport(packet.payload[0], data) {
            self.send_error(packet, IcmpCause::IncompleteChain);
            return Err(DropReason::Ipv6IncompleteChain);
        }
        // The headers of the whole: without the fragment header, and with its next header named.
        let mut headers = packet.whole[..position.at].to_vec();
        headers[position.named_at] = packet.payload[0];
        let fragment = Fragment {
            key: DatagramKey {
                source: packet.source,
                destination: packet.destination,
                identification: header.ident(),
                protocol: 0,
            },
            offset: usize::from(header.frag_offset()) * 8,
            more: header.more_frags(),
            header: &headers,
            data,
        };
        let whole = self.reassembly.handle(self.now, &fragment, &mut self.counters)?;
        let Some(mut whole) = whole else { return Ok(()) };
        let payload_len = (whole.len() - IPV6_HEADER) as u16;
        write_u16(&mut whole, 4, payload_len);
        // Of what is sent to a group every server has all fragments.
        if !packet.group {
            let Some(ours) = self.forward(ForwardKind::Reassembled, whole) else { return Ok(()) };
            whole = ours;
        }
        self.handle_ipv6(Ingress::REASSEMBLED, &whole, streams)
    }
}

/// Whether the first fragment holds all headers (RFC 8200 section 4.5, RFC 7112): those in front of the transport's,
/// and that. `next` names the first in `data`.
fn reaches_transport(mut next: u8, mut data: &[u8]) -> bool {
    for _ in 0..EXTENSIONS_MAX {
        let len = match IpProtocol::from(next) {
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {
                data.get(1).map(|units| (usize::from(*units) + 1) * 8)
            }
            IpProtocol::Ipv6Frag => Some(FRAGMENT_HEADER),
            IpProtocol::Tcp => return data.len() >= TCP_HEADER,
            IpProtocol::Udp | IpProtocol::Icmpv6 => return data.len() >= SHORT_HEADER,
            _ => return true,
        };
        let Some(rest) = len.and_then(|len| data.get(len..)) else { return false };
        (next, data) = (data[0], rest);
    }
    // Too many: the whole is dropped for that.
    true
}

/// The fields of a fragment header; smoltcp's view starts behind the two bytes that all extension
/// headers share.
fn fragment_header(bytes: &[u8]) -> Result<Ipv6FragmentHeader<&[u8]>, DropReason> {
    let fields = bytes.get(2..).ok_or(DropReason::Ipv6BadExtension)?;
    Ipv6FragmentHeader::new_checked(fields).map_err(|_| DropReason::Ipv6BadExtension)
}

/// Writes the next fragment of `packet`, which has no extension headers, to `out`. `sent` counts
/// bytes of payload already sent. Returns the fragment's length and the payload in it.
pub(super) fn emit_ipv6_fragment(
    packet: &[u8],
    sent: usize,
    identification: u32,
    mtu: usize,
    out: &mut [u8],
) -> (usize, usize) {
    let headers = IPV6_HEADER + FRAGMENT_HEADER;
    let payload = &packet[IPV6_HEADER + sent..];
    let room = (mtu - headers) / 8 * 8;
    let more = payload.len() > room;
    let part = &payload[..payload.len().min(room)];
    let len = headers + part.len();
    out[..IPV6_HEADER].copy_from_slice(&packet[..IPV6_HEADER]);
    out[IPV6_HEADER] = packet[NEXT_HEADER_AT];
    out[IPV6_HEADER + 1] = 0;
    write_u16(out, IPV6_HEADER + 2, sent as u16 & !7 | u16::from(more));
    write_u32(out, IPV6_HEADER + 4, identification);
    out[headers..len].copy_from_slice(part);
    out[NEXT_HEADER_AT] = FRAGMENT;
    write_u16(out, 4, (len - IPV6_HEADER) as u16);
    (len, part.len())
}
