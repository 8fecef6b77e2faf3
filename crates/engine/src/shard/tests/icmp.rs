//! Echo, errors sent and errors received.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Ipv6Address, UdpPacket, checksum,
};

use super::harness::*;
use crate::shard::headers::transport_checksum;
use crate::*;

const US: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Teaches the host where host 9 is, so that replies need not wait.
fn introduce(host: &mut Host) {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 198, 18, 0, 9];
    body.extend([0, 0, 0, 0, 0, 0, 198, 18, 0, 1]);
    assert_eq!(host.exchange(START, &arp_frame([0xff; 6], &body)).len(), 1);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(v6("2001:db8::1").octets());
    message.extend([1, 1, 2, 0, 0, 0, 0, 9]);
    let mut packet = icmpv6("2001:db8::9", "2001:db8::1", message);
    packet[7] = 255;
    assert_eq!(host.exchange(START, &frame(US, &packet)).len(), 1);
}

fn v6(text: &str) -> Ipv6Address {
    text.parse().expect("address")
}

fn icmpv4(source: &str, destination: &str, mut message: Vec<u8>) -> Vec<u8> {
    let sum = !checksum::data(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(source, destination, 1, &message)
}

fn icmpv6(source: &str, destination: &str, mut message: Vec<u8>) -> Vec<u8> {
    let sum = transport_checksum(ip(source), ip(destination), 58, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(source, destination, 58, &message)
}

fn echo(kind: u8, len: usize) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1];
    message.extend((0..len).map(|n| n as u8));
    message
}

#[test]
fn an_echo_request_comes_back() {
    let mut host = Host::new(config(1));
    introduce(&mut host);
    let request = icmpv4("198.18.0.9", "198.18.0.1", echo(8, 56));
    let frames = host.exchange(START, &frame(US, &request));
    assert_eq!(frames.len(), 1);
    let reply = Icmpv4Packet::new_checked(&frames[0][34..]).expect("icmp");
    let repr = Icmpv4Repr::parse(&reply, &ChecksumCapabilities::default()).expect("echo reply");
    let data: Vec<u8> = (0..56).collect();
    assert_eq!(repr, Icmpv4Repr::EchoReply { ident: 0x1234, seq_no: 1, data: &data });
    let request = icmpv6("2001:db8::9", "2001:db8::1", echo(128, 56));
    let frames = host.exchange(START, &frame(US, &request));
    let reply = Icmpv6Packet::new_checked(&frames[0][54..]).expect("icmp");
    assert!(reply.verify_checksum(&v6("2001:db8::1"), &v6("2001:db8::9")));
    assert_eq!(reply.msg_type(), smoltcp::wire::Icmpv6Message::EchoReply);
    assert_eq!(host.count(Counter::EchoRepliesSent), 2);
}

#[test]
fn a_multicast_echo_is_answered_from_our_own_address() {
    let mut host = Host::new(config(1));
    introduce(&mut host);
    let request = icmpv6("2001:db8::9", "ff02::1", echo(128, 4));
    let frames = host.exchange(START, &frame([0x33, 0x33, 0, 0, 0, 1], &request));
    assert_eq!(frames[0][22..38], v6("2001:db8::1").octets());
}

#[test]
fn echo_requests_are_limited() {
    let mut config = config(1);
    config.limits.echo_replies_per_second = 3;
    let mut host = Host::new(config);
    introduce(&mut host);
    let request = frame(US, &icmpv4("198.18.0.9", "198.18.0.1", echo(8, 8)));
    let answered: usize = (0..10).map(|_| host.exchange(START, &request).len()).sum();
    assert_eq!(answered, 3);
    assert_eq!(host.dropped(DropReason::IcmpEchoLimited), 7);
}

#[test]
fn bad_icmp_is_dropped_by_reason() {
    let mut host = Host::new(config(1));
    introduce(&mut host);
    let mut check = |packet: &[u8], reason: DropReason| {
        assert!(host.exchange(START, &frame(US, packet)).is_empty());
        assert_eq!(host.dropped(reason), 1, "{reason:?}");
    };
    check(&packet("198.18.0.9", "198.18.0.1", 1, &echo(8, 8)), DropReason::IcmpBadChecksum);
    check(&packet("198.18.0.9", "198.18.0.1", 1, &[8, 0]), DropReason::IcmpMalformed);
    check(&icmpv4("198.18.0.9", "198.18.0.1", echo(99, 8)), DropReason::IcmpUnknownType);
    let error = icmpv4("198.18.0.9", "198.18.0.1", echo(3, 28));
    check(&error, DropReason::IcmpErrorUnmatched);
}

fn udp(source: &str, destination: &str) -> Vec<u8> {
    let mut datagram = vec![0; 20];
    let mut header = UdpPacket::new_unchecked(&mut datagram[..]);
    header.set_src_port(1000);
    header.set_dst_port(53);
    header.set_len(20);
    header.fill_checksum(&ip(source).into(), &ip(destination).into());
    packet(source, destination, 17, &datagram)
}

#[test]
fn an_unused_port_is_told() {
    let mut host = Host::new(config(1));
    introduce(&mut host);
    let request = udp("198.18.0.9", "198.18.0.1");
    let frames = host.exchange(START, &frame(US, &request));
    let reply = Icmpv4Packet::new_checked(&frames[0][34..]).expect("icmp");
    assert!(reply.verify_checksum());
    assert_eq!(Icmpv4DstUnreachable::from(reply.msg_code()), Icmpv4DstUnreachable::PortUnreachable);
    assert_eq!(frames[0][42..42 + request.len()], request);
    let request = udp("2001:db8::9", "2001:db8::1");
    let frames = host.exchange(START, &frame(US, &request));
    let reply = Icmpv6Packet::new_checked(&frames[0][54..]).expect("icmp");
    assert!(reply.verify_checksum(&v6("2001:db8::1"), &v6("2001:db8::9")));
    assert_eq!((frames[0][54], frames[0][55]), (1, 4));
    assert_eq!(host.dropped(DropReason::UdpNoPort), 2);
}

#[test]
fn bad_datagrams_get_no_answer() {
    let mut host = Host::new(config(1));
    introduce(&mut host);
    let mut bad = udp("198.18.0.9", "198.18.0.1");
    bad[27] ^= 1;
    assert!(host.exchange(START, &frame(US, &bad)).is_empty());
    let mut unsummed = udp("2001:db8::9", "2001:db8::1");
    unsummed[46..48].fill(0);
    assert!(host.exchange(START, &frame(US, &unsummed)).is_empty());
    assert_eq!(host.dropped(DropReason::UdpBadChecksum), 2);
    let short = packet("198.18.0.9", "198.18.0.1", 17, &[0; 4]);
    assert!(host.exchange(START, &frame(US, &short)).is_empty());
    assert_eq!(host.dropped(DropReason::UdpMalformed), 1);
}

#[test]
fn an_unknown_protocol_is_told() {
    let mut host = Host::new(config(1));
    introduce(&mut host);
    let request = packet("198.18.0.9", "198.18.0.1", 132, &[1; 30]);
    let frames = host.exchange(START, &frame(US, &request));
    assert_eq!((frames[0][34], frames[0][35]), (3, 2));
    let request = packet("2001:db8::9", "2001:db8::1", 132, &[1; 30]);
    let frames = host.exchange(START, &frame(US, &request));
    assert_eq!(frames[0][54..62], [4, 1, frames[0][56], frames[0][57], 0, 0, 0, 6]);
    assert_eq!(host.dropped(DropReason::ProtocolUnknown), 2);
}

#[test]
fn options_and_routing_headers_are_told_where_asked() {
    let mut host = Host::new(config(1));
    introduce(&mut host);
    let mut give = |destination: &str, next: u8, payload: &[u8]| {
        let packet = packet("2001:db8::9", destination, next, payload);
        let to = if destination.starts_with("ff") { [0x33, 0x33, 0, 0, 0, 1] } else { US };
        let frames = host.exchange(START, &frame(to, &packet));
        frames.first().map(|frame| (frame[54], frame[55], frame[61]))
    };
    let ours = "2001:db8::1";
    assert_eq!(give(ours, 60, &[6, 0, 0x9e, 0, 1, 2, 0, 0]), Some((4, 2, 42)));
    assert_eq!(give("ff02::1", 60, &[6, 0, 1, 0, 0x9e, 0, 0, 0]), Some((4, 2, 44)));
    assert_eq!(give("ff02::1", 60, &[6, 0, 0xde, 0, 1, 2, 0, 0]), None);
    assert_eq!(give(ours, 60, &[6, 0, 0xde, 0, 1, 2, 0, 0]), Some((4, 2, 42)));
    assert_eq!(give(ours, 43, &[6, 0, 0, 3, 0, 0, 0, 0]), Some((4, 0, 42)));
    let late = [0, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0];
    assert_eq!(give(ours, 60, &late), Some((4, 1, 40)));
    assert_eq!(host.dropped(DropReason::Ipv6RoutingHeader), 1);
}

#[test]
fn errors_are_never_answered_and_limited() {
    let mut config = config(1);
    config.limits.icmp_errors_per_second = 1;
    config.limits.icmp_errors_burst = 5;
    let mut host = Host::new(config);
    introduce(&mut host);
    let request = frame(US, &udp("198.18.0.9", "198.18.0.1"));
    let answered: usize = (0..10).map(|_| host.exchange(START, &request).len()).sum();
    assert_eq!(answered, 5);
    assert_eq!(host.count(Counter::IcmpErrorsLimited), 5);
    // An error about a packet that was never ours is itself no reason for an error.
    let error = icmpv6("2001:db8::9", "2001:db8::1", echo(1, 60));
    let later = START.plus_us(60_000_000);
    let sent = host.count(Counter::IcmpErrorsSent);
    let _ = host.exchange(later, &frame(US, &error));
    assert_eq!(host.count(Counter::IcmpErrorsSent), sent);
    assert_eq!(host.dropped(DropReason::IcmpErrorUnmatched), 1);
}

/// The start of the SYN that host 1 sends to `to`, and the connection.
fn syn_to(host: &mut Host, to: &str) -> (SocketId, Vec<u8>) {
    introduce(host);
    let options = SocketOptions::default();
    let id = host.shard.connect(START, None, at(to), options).expect("connect");
    let frames = host.drain(START);
    (id, frames[0][14..].to_vec())
}

#[test]
fn an_unreachable_port_refuses_a_connection() {
    let mut host = Host::new(config(1));
    let (id, syn) = syn_to(&mut host, "198.18.0.9:80");
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    message.extend(&syn[..28]);
    let error = icmpv4("198.18.0.9", "198.18.0.1", message);
    let _ = host.exchange(START, &frame(US, &error));
    assert_eq!(host.progress(id).error, Some(SocketError::ConnectionRefused));
    assert_eq!(host.count(Counter::IcmpErrorsReceived), 1);
}

#[test]
fn an_error_about_something_never_sent_is_ignored() {
    let mut host = Host::new(config(1));
    let (id, mut syn) = syn_to(&mut host, "[2001:db8::9]:80");
    syn[44] ^= 0x40;
    let mut message = vec![1, 4, 0, 0, 0, 0, 0, 0];
    message.extend(&syn[..48]);
    let error = icmpv6("2001:db8::9", "2001:db8::1", message);
    let _ = host.exchange(START, &frame(US, &error));
    assert_eq!(host.progress(id).error, None);
    assert_eq!(host.shard.counters().tcp.drop_bad_icmp, 1);
}

#[test]
fn a_smaller_path_mtu_makes_smaller_segments() {
    for (to, header, kind) in [("198.18.0.2:80", 20, 3), ("[2001:db8::2]:80", 40, 2)] {
        let mut pair = Pair::new();
        let (client, _, _) = pair.connect(to);
        let now = pair.now;
        pair.hosts[0].send(now, client, &[7; 20_000]);
        let frames = pair.hosts[0].drain(now);
        let full = frames.iter().find(|frame| frame.len() == 1514).expect("a full segment");
        let mut message = vec![kind, if kind == 3 { 4 } else { 0 }, 0, 0, 0, 0];
        message.extend(1300_u16.to_be_bytes());
        message.extend(&full[14..14 + header + 8]);
        let router = frame(
            US,
            &if kind == 3 {
                icmpv4("198.18.0.2", "198.18.0.1", message)
            } else {
                icmpv6("2001:db8::2", "2001:db8::1", message)
            },
        );
        let _ = pair.hosts[0].exchange(now, &router);
        let info = pair.hosts[0].shard.tcp_info(client).expect("info");
        assert!(usize::from(info.send_mss) <= 1300 - header - 20, "{to} {}", info.send_mss);
        pair.lose = Box::new(|receiver, frame| receiver == 1 && frame.len() > 1314);
        pair.run(20_000_000);
        let server = pair.hosts[1].accepted()[0];
        assert_eq!(pair.hosts[1].progress(server).rx_end, 20_000, "{to}");
    }
}

/// The packet of an error about `quoted` for host 1.
fn error_about(quoted: &[u8], kind: u8, code: u8, word: u32) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(word.to_be_bytes());
    message.extend(quoted);
    match quoted[0] >> 4 {
        4 => icmpv4("198.18.0.9", "198.18.0.1", message),
        _ => icmpv6("2001:db8::9", "2001:db8::1", message),
    }
}

#[test]
fn each_error_fails_an_opening_for_its_own_reason() {
    use SocketError::*;
    let cases = [
        (4, 3, 0, Some(NetworkUnreachable)),
        (4, 3, 1, Some(HostUnreachable)),
        (4, 3, 2, Some(ProtocolUnreachable)),
        (4, 3, 3, Some(ConnectionRefused)),
        (4, 3, 9, Some(NetworkUnreachable)),
        (4, 3, 13, Some(HostUnreachable)),
        (4, 11, 0, Some(HostUnreachable)),
        (4, 11, 1, None),
        (4, 12, 0, Some(ProtocolError)),
        (6, 1, 0, Some(NetworkUnreachable)),
        (6, 1, 1, Some(PermissionDenied)),
        (6, 1, 3, Some(HostUnreachable)),
        (6, 1, 4, Some(ConnectionRefused)),
        (6, 3, 0, Some(HostUnreachable)),
        (6, 4, 1, Some(ProtocolError)),
    ];
    for (family, kind, code, expected) in cases {
        let mut host = Host::new(config(1));
        let to = if family == 4 { "198.18.0.9:80" } else { "[2001:db8::9]:80" };
        let (id, syn) = syn_to(&mut host, to);
        let error = error_about(&syn, kind, code, 0);
        let _ = host.exchange(START, &frame(US, &error));
        assert_eq!(host.progress(id).error, expected, "IPv{family} type {kind} code {code}");
    }
}

#[test]
fn an_mtu_below_the_least_of_ipv6_is_no_news() {
    let mut host = Host::new(config(1));
    let (id, syn) = syn_to(&mut host, "[2001:db8::9]:80");
    let before = host.shard.tcp_info(id).expect("info").send_mss;
    for mtu in [0, 68, 1279] {
        let _ = host.exchange(START, &frame(US, &error_about(&syn, 2, 0, mtu)));
    }
    assert_eq!(host.dropped(DropReason::IcmpMtuTooSmall), 3);
    assert_eq!(host.shard.tcp_info(id).expect("info").send_mss, before);
}

#[test]
fn a_first_fragment_holds_all_headers() {
    let mut host = Host::new(config(1));
    introduce(&mut host);
    let mut identification = 0;
    let mut give = |next: u8, data: &[u8]| {
        identification += 1;
        let payload = [&[next, 0, 0, 1, 0, 0, 0, identification], data].concat();
        let packet = packet("2001:db8::9", "2001:db8::1", 44, &payload);
        let frames = host.exchange(START, &frame(US, &packet));
        frames.first().map(|frame| (frame[54], frame[55], frame[61]))
    };
    let incomplete = Some((4, 3, 0));
    let options = [17, 0, 1, 4, 0, 0, 0, 0];
    let too_long = [17, 9, 1, 4, 0, 0, 0, 0];
    assert_eq!(give(6, &[0; 16]), incomplete, "a part of a TCP header");
    assert_eq!(give(60, &options), incomplete, "options alone");
    assert_eq!(give(60, &too_long), incomplete, "a part of the options");
    assert_eq!(give(6, &[0; 24]), None);
    assert_eq!(give(17, &[0; 8]), None);
    assert_eq!(give(60, &[options, [0; 8]].concat()), None);
    assert_eq!(give(200, &[0; 8]), None, "who knows how long it is");
    assert_eq!(host.dropped(DropReason::Ipv6IncompleteChain), 3);
}

#[test]
fn a_tag_that_names_a_priority_alone_is_as_none() {
    let mut host = Host::new(config(1));
    introduce(&mut host);
    let mut give = |tag: u16, len: usize| {
        let request = icmpv4("198.18.0.9", "198.18.0.1", echo(8, len));
        let mut bytes = frame(US, &request);
        let tag = tag.to_be_bytes();
        let _ = bytes.splice(12..12, [0x81, 0, tag[0], tag[1]]);
        host.exchange(START, &bytes).len()
    };
    assert_eq!(give(0xe000, 56), 1);
    assert_eq!(give(0, 1500 - 28), 1, "the tag is none of the MTU's business");
    assert_eq!(give(0, 1500 - 27), 0);
    assert_eq!((give(5, 56), give(0xe005, 56)), (0, 0));
    assert_eq!(host.dropped(DropReason::EthernetOtherVlan), 2);
    assert_eq!(host.dropped(DropReason::FrameOversized), 1);
}
