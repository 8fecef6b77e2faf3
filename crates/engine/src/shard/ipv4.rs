//! IPv4 in: header checks, impossible addresses, fragments; and fragments out.
//!
//! Called by `receive.rs`; what is for us goes on to `handle_transport`. Read first: RFC 1122
//! section 3.2.1 and RFC 791. Options are skipped, except that source routes are refused.

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::Ipv4Packet;

use super::Shard;
use super::elsewhere::ForwardKind;
use super::groups::IGMP;
use super::headers::{IPV4_HEADER, UDP, write_u16};
use super::receive::{Ingress, IpPacket};
use crate::counters::Counter;
use crate::drop_reason::DropReason;
use crate::reassembly::{DatagramKey, Fragment};
use crate::streams::Streams;

/// Where the header names the protocol.
const PROTOCOL_AT: usize = 9;
/// The group that every host is in (RFC 1112 section 4).
const ALL_SYSTEMS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
/// Kinds of options, RFC 791 section 3.1.
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LOOSE_ROUTE: u8 = 131;
const OPTION_STRICT_ROUTE: u8 = 137;

impl Shard {
    /// An IPv4 packet arrived, perhaps with Ethernet padding behind it.
    pub(super) fn handle_ipv4(
        &mut self,
        ingress: Ingress,
        bytes: &[u8],
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        let packet = Ipv4Packet::new_checked(bytes).map_err(|_| DropReason::Ipv4Malformed)?;
        if packet.version() != 4 {
            return Err(DropReason::Ipv4Malformed);
        }
        if ingress.wire && !packet.verify_checksum() {
            return Err(DropReason::Ipv4BadChecksum);
        }
        let (source, destination) = (packet.src_addr(), packet.dst_addr());
        self.check_ipv4_source(ingress, source, destination)?;
        let group = self.check_ipv4_destination(ingress, destination)?;
        let options = bytes.get(IPV4_HEADER..usize::from(packet.header_len()));
        check_ipv4_options(options.ok_or(DropReason::Ipv4Malformed)?)?;
        if packet.more_frags() || packet.frag_offset() != 0 {
            return self.handle_ipv4_fragment(&packet, bytes, group, streams);
        }
        let packet = IpPacket {
            ingress,
            whole: &bytes[..usize::from(packet.total_len())],
            source: IpAddr::V4(source),
            destination: IpAddr::V4(destination),
            group,
            hop_limit: packet.hop_limit(),
            protocol: packet.next_header().into(),
            protocol_at: PROTOCOL_AT,
            payload: packet.payload(),
        };
        // Of what is sent to all only datagrams are taken (RFC 1122 sections 3.2.2.6, 3.2.2 and
        // 4.2.3.10), and what is said about groups.
        if group && !matches!(packet.protocol, UDP | IGMP) {
            return Err(DropReason::Ipv4Broadcast);
        }
        self.handle_transport(&packet, streams)
    }

    /// RFC 1122 section 3.2.1.3, RFC 6890.
    fn check_ipv4_source(
        &self,
        ingress: Ingress,
        source: Ipv4Addr,
        destination: Ipv4Addr,
    ) -> Result<(), DropReason> {
        if source.is_multicast() || self.routing.is_broadcast(source) {
            return Err(DropReason::Ipv4BroadcastSource);
        }
        // Who has no address yet may only call to all (RFC 1122 section 3.2.1.3 a).
        let calls = destination.is_broadcast() || destination.is_multicast();
        if !ingress.wire || (source.is_unspecified() && calls) {
            return Ok(());
        }
        // The rest of what was kept for later, 240.0.0.0/4, is taken as Linux takes it.
        if source.octets()[0] == 0 || source.is_loopback() {
            return Err(DropReason::Ipv4MartianSource);
        }
        if self.routing.is_ours(IpAddr::V4(source)) {
            return Err(DropReason::Ipv4SelfSource);
        }
        Ok(())
    }

    /// Whether the destination is a group or broadcast address that somebody here may listen to.
    fn check_ipv4_destination(
        &self,
        ingress: Ingress,
        destination: Ipv4Addr,
    ) -> Result<bool, DropReason> {
        if destination.is_multicast() {
            let joined = destination == ALL_SYSTEMS || self.groups.contains(destination.into());
            return if joined { Ok(true) } else { Err(DropReason::Ipv4Broadcast) };
        }
        if self.routing.is_broadcast(destination) {
            return Ok(true);
        }
        // A loopback address never comes from outside (RFC 1122 section 3.2.1.3 g).
        let from_outside = ingress.wire && destination.is_loopback();
        if from_outside || !self.routing.is_ours(IpAddr::V4(destination)) {
            return Err(DropReason::Ipv4NotForUs);
        }
        if ingress.link_group {
            return Err(DropReason::Ipv4UnicastInBroadcast);
        }
        Ok(false)
    }

    fn handle_ipv4_fragment(
        &mut self,
        packet: &Ipv4Packet<&[u8]>,
        bytes: &[u8],
        group: bool,
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        self.counters.count(Counter::FragmentsReceived);
        let fragment = Fragment {
            key: DatagramKey {
                source: IpAddr::V4(packet.src_addr()),
                destination: IpAddr::V4(packet.dst_addr()),
                identification: u32::from(packet.ident()),
                protocol: packet.next_header().into(),
            },
            offset: usize::from(packet.frag_offset()),
            more: packet.more_frags(),
            header: &bytes[..usize::from(packet.header_len())],
            data: packet.payload(),
        };
        let whole = self.reassembly.handle(self.now, &fragment, &mut self.counters)?;
        let Some(mut whole) = whole else { return Ok(()) };
        let total_len = whole.len() as u16;
        let mut header = Ipv4Packet::new_unchecked(&mut whole[..]);
        header.set_total_len(total_len);
        header.clear_flags();
        header.set_frag_offset(0);
        header.fill_checksum();
        // Of what is sent to a group every server has all fragments.
        if !group {
            let Some(ours) = self.forward(ForwardKind::Reassembled, whole) else { return Ok(()) };
            whole = ours;
        }
        self.handle_ipv4(Ingress::REASSEMBLED, &whole, streams)
    }
}

/// RFC 1122 section 3.2.1.8: options that nobody here knows are ignored. Source routes are refused
/// as RFC 7126 section 4.3 recommends: who sends one gets answers to an address of its choice.
fn check_ipv4_options(mut options: &[u8]) -> Result<(), DropReason> {
    while let Some((&kind, rest)) = options.split_first() {
        options = match kind {
            OPTION_END => break,
            OPTION_NOP => rest,
            OPTION_LOOSE_ROUTE | OPTION_STRICT_ROUTE => return Err(DropReason::Ipv4SourceRoute),
            _ => {
                let len = rest.first().copied().map_or(0, usize::from);
                options.get(len..).filter(|_| len >= 2).ok_or(DropReason::Ipv4Malformed)?
            }
        };
    }
    Ok(())
}

/// Writes the next fragment of `packet`, whose header has no options, to `out`. `sent` counts bytes
/// of payload already sent. Returns the fragment's length and the payload in it.
pub(super) fn emit_ipv4_fragment(
    packet: &[u8],
    sent: usize,
    identification: u16,
    mtu: usize,
    out: &mut [u8],
) -> (usize, usize) {
    let payload = &packet[IPV4_HEADER + sent..];
    let room = (mtu - IPV4_HEADER) / 8 * 8;
    let more = payload.len() > room;
    let part = &payload[..payload.len().min(room)];
    let len = IPV4_HEADER + part.len();
    out[..IPV4_HEADER].copy_from_slice(&packet[..IPV4_HEADER]);
    out[IPV4_HEADER..len].copy_from_slice(part);
    write_u16(out, 4, identification);
    let mut header = Ipv4Packet::new_unchecked(&mut out[..len]);
    header.set_total_len(len as u16);
    header.clear_flags();
    header.set_more_frags(more);
    header.set_frag_offset(sent as u16);
    header.fill_checksum();
    (len, part.len())
}
