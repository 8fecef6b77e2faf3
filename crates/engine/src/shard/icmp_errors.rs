//! ICMP and ICMPv6 errors that we send, and when we must not.
//!
//! Called wherever a packet for us cannot be taken. Read first: RFC 1122 section 3.2.2, RFC 1812
//! section 4.3.2, RFC 4443 section 2.4.

use std::net::IpAddr;

use super::Shard;
use super::headers::{ICMP, ICMPV6, IpHeader, write_u16, write_u32};
use super::icmp::fill_icmp_checksum;
use super::receive::IpPacket;
use crate::counters::Counter;
use crate::packets::Destination;
use crate::reassembly::Expired;

/// Bytes of an error before the packet it quotes.
const ERROR_HEADER: usize = 8;
/// Largest error for IPv4 (RFC 1812 section 4.3.2.3) and for IPv6 (RFC 4443 section 2.4 c).
const ERROR_MAX_V4: usize = 576;
const ERROR_MAX_V6: usize = 1280;

/// Why a packet cannot be taken; positions are bytes from its start.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum IcmpCause {
    /// Nobody has the port.
    PortUnreachable,
    /// Nobody has the transport protocol.
    ProtocolUnreachable,
    /// IPv6: the header named there has no meaning at its place.
    UnknownNextHeader(usize),
    /// IPv6: an option that must be known.
    UnknownOption {
        /// Where it is.
        at: usize,
        /// The option asks for an answer even to a group address.
        even_to_group: bool,
    },
    /// IPv6: a field has an impossible value.
    BadField(usize),
    /// IPv6: the first fragment does not hold all headers.
    IncompleteChain,
    /// Not all fragments came in time.
    ReassemblyTimeout,
}

impl IcmpCause {
    /// Type, code and second word for IPv4.
    fn v4(self) -> Option<(u8, u8, u32)> {
        match self {
            IcmpCause::PortUnreachable => Some((3, 3, 0)),
            IcmpCause::ProtocolUnreachable => Some((3, 2, 0)),
            IcmpCause::ReassemblyTimeout => Some((11, 1, 0)),
            IcmpCause::UnknownNextHeader(_)
            | IcmpCause::IncompleteChain
            | IcmpCause::UnknownOption { .. }
            | IcmpCause::BadField(_) => None,
        }
    }

    /// Type, code and second word for IPv6; `protocol_at` is where the transport is named.
    fn v6(self, protocol_at: usize) -> (u8, u8, u32) {
        match self {
            IcmpCause::PortUnreachable => (1, 4, 0),
            // RFC 4443 section 3.4: an unknown transport is an unknown next header.
            IcmpCause::ProtocolUnreachable => (4, 1, protocol_at as u32),
            IcmpCause::UnknownNextHeader(at) => (4, 1, at as u32),
            IcmpCause::UnknownOption { at, .. } => (4, 2, at as u32),
            IcmpCause::BadField(at) => (4, 0, at as u32),
            IcmpCause::IncompleteChain => (4, 3, 0),
            IcmpCause::ReassemblyTimeout => (3, 1, 0),
        }
    }
}

impl Shard {
    /// Queues an error about `packet`, unless rules or rate forbid it.
    pub(super) fn send_error(&mut self, packet: &IpPacket<'_>, cause: IcmpCause) {
        let even_to_group = matches!(cause, IcmpCause::UnknownOption { even_to_group: true, .. });
        let group = packet.group || packet.ingress.link_group;
        if (group && !even_to_group) || packet.source.is_unspecified() || is_error(packet) {
            return;
        }
        let source = if packet.group { None } else { Some(packet.destination) };
        let Some(source) = source.or_else(|| self.routing.source_for(packet.source)) else {
            return;
        };
        self.queue_error(source, packet.source, cause, packet.protocol_at, packet.whole);
    }

    /// Queues the error that fragments did not all come, if the first did (RFC 792, RFC 8200 4.5).
    pub(super) fn send_reassembly_timeout(&mut self, expired: Expired) {
        self.counters.count(Counter::ReassemblyTimeouts);
        let Some(quote) = expired.quote else { return };
        let Some(source) = self.routing.source_for(expired.source) else { return };
        let cause = IcmpCause::ReassemblyTimeout;
        self.queue_error(source, expired.source, cause, 0, &quote);
    }

    fn queue_error(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        cause: IcmpCause,
        protocol_at: usize,
        quote: &[u8],
    ) {
        let v4 = destination.is_ipv4();
        let words = if v4 { cause.v4() } else { Some(cause.v6(protocol_at)) };
        let Some((kind, code, second_word)) = words else { return };
        if !self.error_limit.admit(self.now) {
            self.counters.count(Counter::IcmpErrorsLimited);
            return;
        }
        let protocol = if v4 { ICMP } else { ICMPV6 };
        let header = IpHeader::of_reply(source, destination, protocol);
        let largest = if v4 { ERROR_MAX_V4 } else { ERROR_MAX_V6 };
        let quoted = quote.len().min(largest - header.len() - ERROR_HEADER);
        let len = header.len() + ERROR_HEADER + quoted;
        if !self.replies.has_room(len) {
            self.counters.count(Counter::RepliesDropped);
            return;
        }
        let mut error = self.buffers.take(len);
        let body = &mut error[header.len()..];
        write_u16(body, 0, u16::from(kind) << 8 | u16::from(code));
        write_u32(body, 4, second_word);
        body[ERROR_HEADER..].copy_from_slice(&quote[..quoted]);
        fill_icmp_checksum(&header, body);
        header.emit(&mut error);
        self.counters.count(Counter::IcmpErrorsSent);
        self.replies.push_back(Destination::Routed(destination), error);
    }
}

/// Whether a packet is itself an ICMP error, or a redirect: never answered with an error.
fn is_error(packet: &IpPacket<'_>) -> bool {
    let kind = packet.payload.first().copied();
    match (packet.protocol, packet.source) {
        (ICMP, IpAddr::V4(_)) => !matches!(kind, Some(0 | 8 | 9 | 10 | 13..=18)),
        (ICMPV6, IpAddr::V6(_)) => kind.is_none_or(|kind| kind < 128 || kind == 137),
        _ => false,
    }
}
