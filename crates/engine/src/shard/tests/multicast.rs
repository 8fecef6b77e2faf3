//! Groups: who gets what is sent there, and what routers are told.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IgmpPacket, IgmpRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet, checksum};

use super::harness::*;
use crate::*;

const V4: (&str, &str) = ("239.1.2.3", "0.0.0.0");
const V6: (&str, &str) = ("ff05::1:3", "::");

fn join(host: &mut Host, now: Instant, id: SocketId, group: &str) -> Result<(), GroupError> {
    host.shard.join_group(now, id, ip(group), ip("0.0.0.0"))
}

#[test]
fn members_get_what_is_sent_to_a_group() {
    for (group, any) in [V4, V6] {
        let bracketed = if group.contains(':') { format!("[{group}]") } else { group.into() };
        let any = if any == "::" { "[::]" } else { any };
        let mut pair = Pair::new();
        let sender = pair.hosts[0].open(&format!("{any}:0"));
        let shared = DatagramOptions { reuse_address: true, ..DatagramOptions::default() };
        let strict = DatagramOptions { multicast_all: false, ..shared };
        let mut open = |local: String, options| {
            pair.hosts[1].shard.open_datagram(at(&local), options).expect("open")
        };
        let member = open(format!("{any}:5353"), shared);
        let bystander = open(format!("{any}:5353"), shared);
        let stranger = open(format!("{any}:5353"), strict);
        let bound = open(format!("{bracketed}:5353"), shared);
        let now = pair.now;
        let to = format!("{bracketed}:5353");
        pair.hosts[0].send_to(now, sender, &to, b"nobody").expect("sent");
        pair.run(1_000);
        assert!(pair.hosts[1].memory.datagrams.is_empty(), "nobody has joined {group}");
        assert_eq!(join(&mut pair.hosts[1], now, member, group), Ok(()));
        assert_eq!(join(&mut pair.hosts[1], now, member, group), Err(GroupError::AlreadyMember));
        let now = pair.now;
        let large: Vec<u8> = (0..4000).map(|n| n as u8).collect();
        pair.hosts[0].send_to(now, sender, &to, &large).expect("sent");
        pair.run(1_000);
        let mut got = |id| pair.hosts[1].take_datagrams(id);
        let copy = got(member);
        assert_eq!((copy.len(), &copy[0].1), (1, &large), "{group}");
        assert_eq!((copy[0].0.hop_limit, copy[0].0.local), (1, at(&to)));
        assert_eq!(got(bystander).len(), 1);
        assert_eq!(got(bound).len(), 1);
        assert_eq!(got(stranger).len(), 0);
        let now = pair.now;
        pair.hosts[1].shard.close(now, member, Close::Graceful);
        pair.hosts[0].send_to(now, sender, &to, b"nobody").expect("sent");
        pair.run(1_000);
        assert!(pair.hosts[1].memory.datagrams.is_empty(), "the last has left {group}");
        assert_eq!(pair.hosts[0].datagram_errors(), []);
        assert_eq!(pair.hosts[1].count(Counter::IcmpErrorsSent), 0);
    }
}

#[test]
fn our_own_members_get_a_copy_unless_it_is_not_wanted() {
    let mut host = Host::new(config(1));
    let id = host.open("0.0.0.0:5353");
    assert_eq!(join(&mut host, START, id, "239.1.2.3"), Ok(()));
    let _ = host.drain(START);
    host.send_to(START, id, "239.1.2.3:5353", b"all").expect("sent");
    assert_eq!(host.drain(START).len(), 1);
    assert_eq!(host.take_datagrams(id).len(), 1);
    host.shard.set_datagram_option(id, DatagramOption::MulticastHopLimit(0));
    host.send_to(START, id, "239.1.2.3:5353", b"us").expect("sent");
    assert_eq!(host.drain(START).len(), 0);
    assert_eq!(host.take_datagrams(id).len(), 1);
    host.shard.set_datagram_option(id, DatagramOption::MulticastLoop(false));
    host.shard.set_datagram_option(id, DatagramOption::MulticastHopLimit(9));
    host.send_to(START, id, "239.1.2.3:5353", b"them").expect("sent");
    let frames = host.drain(START);
    assert_eq!((&frames[0][..6], frames[0][22]), (&[1, 0, 0x5e, 1, 2, 3][..], 9));
    assert_eq!(host.take_datagrams(id).len(), 0);
}

#[test]
fn wrong_groups_are_refused() {
    let mut host = Host::new(config(1));
    let (v4, v6) = (host.open("0.0.0.0:1"), host.open("[::]:2"));
    assert_eq!(join(&mut host, START, v4, "198.18.0.9"), Err(GroupError::NotMulticast));
    assert_eq!(join(&mut host, START, v4, "ff05::9"), Err(GroupError::NotMulticast));
    let elsewhere = host.shard.join_group(START, v6, ip("ff05::9"), ip("2001:db8::77"));
    assert_eq!(elsewhere, Err(GroupError::NoInterface));
    let group = ip("239.0.0.1");
    assert_eq!(host.shard.leave_group(START, v4, group, ip("0.0.0.0")), Err(GroupError::NotMember));
    for last in 1..=20 {
        assert_eq!(join(&mut host, START, v4, &format!("239.0.0.{last}")), Ok(()));
    }
    assert_eq!(join(&mut host, START, v4, "239.0.0.21"), Err(GroupError::TooManyGroups));
    assert_eq!(join(&mut host, START, SocketId::new(9, 9), "239.0.0.1"), Err(GroupError::NoSocket));
}

#[test]
fn routers_hear_of_ipv4_groups() {
    let mut host = Host::new(config(1));
    let id = host.open("0.0.0.0:5353");
    assert_eq!(join(&mut host, START, id, "239.1.2.3"), Ok(()));
    let frames = host.drain(START);
    let ip_packet = Ipv4Packet::new_checked(&frames[0][14..]).expect("IPv4");
    assert_eq!((ip_packet.header_len(), ip_packet.hop_limit()), (24, 1));
    let repr = Ipv4Repr::parse(&ip_packet, &ChecksumCapabilities::default()).expect("checksum");
    assert_eq!(repr.dst_addr, "239.1.2.3".parse::<std::net::Ipv4Addr>().expect("group"));
    let message = IgmpPacket::new_checked(ip_packet.payload()).expect("IGMP");
    assert!(message.verify_checksum());
    let expected = IgmpRepr::MembershipReport {
        group_addr: repr.dst_addr,
        version: smoltcp::wire::IgmpVersion::Version2,
    };
    assert_eq!(IgmpRepr::parse(&message), Ok(expected));
    // The second report, and then the answer to a query within its second.
    let mut now = START;
    while let Some(next) = host.shard.poll_timeout() {
        now = next;
        host.shard.handle_timers(now, &mut host.memory);
    }
    assert_eq!(host.drain(now).len(), 1);
    let query = |group: [u8; 4]| {
        let mut body = vec![0x11, 10, 0, 0];
        body.extend(group);
        let sum = !checksum::data(&body);
        body[2..4].copy_from_slice(&sum.to_be_bytes());
        frame([1, 0, 0x5e, 0, 0, 1], &packet("198.18.0.9", "224.0.0.1", 2, &body))
    };
    assert!(host.exchange(now, &query([0; 4])).is_empty());
    let due = host.shard.poll_timeout().expect("an answer");
    assert!(due.since(now) < 1_000_300);
    let later = now.plus_us(1_000_300);
    host.shard.handle_timers(later, &mut host.memory);
    assert_eq!(host.drain(later).len(), 1);
    assert!(host.exchange(later, &query([10, 0, 0, 1])).is_empty());
    assert_eq!(host.dropped(DropReason::GroupMalformed), 1);
    let left = host.shard.leave_group(later, id, ip("239.1.2.3"), ip("198.18.0.1"));
    assert_eq!(left, Ok(()));
    let frames = host.drain(later);
    assert_eq!((frames[0][38], &frames[0][30..34]), (0x17, &[224, 0, 0, 2][..]));
    assert_eq!(host.count(Counter::GroupReportsSent), 3);
    assert_eq!(host.count(Counter::GroupLeavesSent), 1);
}

#[test]
fn routers_hear_of_ipv6_groups() {
    let mut host = Host::new(config(1));
    let id = host.open("[::]:5353");
    assert_eq!(join(&mut host, START, id, "ff05::1:3"), Ok(()));
    let frames = host.drain(START);
    let ip_packet = Ipv6Packet::new_checked(&frames[0][14..]).expect("IPv6");
    assert_eq!(ip_packet.hop_limit(), 1);
    assert!(ip_packet.src_addr().is_unicast_link_local());
    let body = &ip_packet.payload()[8..];
    let (source, destination) = (ip_packet.src_addr().into(), ip_packet.dst_addr().into());
    assert_eq!(crate::shard::headers::transport_checksum(source, destination, 58, body), 0);
    assert_eq!((body[0], body.len()), (131, 24));
    // Another host reports the group: our second report is not needed, nor a word at the end.
    let mut report = vec![0; 24];
    report[0] = 131;
    report[8..24].copy_from_slice(&ip_packet.dst_addr().octets());
    let from = ip("fe80::9");
    let sum = crate::shard::headers::transport_checksum(from, destination, 58, &report);
    report[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = packet("fe80::9", "ff05::1:3", 58, &report);
    packet[7] = 1;
    let group = [0x33, 0x33, 0, 1, 0, 3];
    assert!(host.exchange(START, &frame(group, &packet)).is_empty());
    packet[7] = 64;
    assert!(host.exchange(START, &frame(group, &packet)).is_empty());
    assert_eq!(host.dropped(DropReason::GroupNotLocal), 1);
    let later = START.plus_us(20_000_000);
    host.shard.handle_timers(later, &mut host.memory);
    assert!(host.drain(later).is_empty());
    host.shard.close(later, id, Close::Graceful);
    assert!(host.drain(later).is_empty());
}
