//! ARP and neighbour discovery as seen on the wire.

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv6Packet, Ipv4Address, Ipv6Address,
    NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};

use super::harness::*;
use crate::shard::headers::transport_checksum;
use crate::*;

const US: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEM: [u8; 6] = [2, 0, 0, 0, 0, 9];
const BROADCAST: [u8; 6] = [0xff; 6];

fn arp(request: bool, sender: &str, target: &str) -> Vec<u8> {
    let v4 = |text: &str| text.parse::<Ipv4Address>().expect("address");
    let repr = ArpRepr::EthernetIpv4 {
        operation: if request { ArpOperation::Request } else { ArpOperation::Reply },
        source_hardware_addr: EthernetAddress(THEM),
        source_protocol_addr: v4(sender),
        target_hardware_addr: EthernetAddress(US),
        target_protocol_addr: v4(target),
    };
    let mut body = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut body[..]));
    body
}

fn v6(text: &str) -> Ipv6Address {
    text.parse().expect("address")
}

fn ndp(source: &str, destination: &str, repr: NdiscRepr<'_>) -> Vec<u8> {
    let mut body = vec![0; repr.buffer_len()];
    let mut message = Icmpv6Packet::new_unchecked(&mut body[..]);
    repr.emit(&mut message);
    message.fill_checksum(&v6(source), &v6(destination));
    let mut packet = packet(source, destination, 58, &body);
    packet[7] = 255;
    packet
}

fn solicitation(target: &str) -> NdiscRepr<'static> {
    NdiscRepr::NeighborSolicit {
        target_addr: v6(target),
        lladdr: Some(RawHardwareAddress::from_bytes(&THEM)),
    }
}

#[test]
fn arp_requests_for_us_are_answered() {
    let mut host = Host::new(config(1));
    let request = arp_frame(BROADCAST, &arp(true, "198.18.0.9", "198.18.0.1"));
    let frames = host.exchange(START, &request);
    assert_eq!(frames.len(), 1);
    let reply = ArpRepr::parse(&ArpPacket::new_checked(&frames[0][14..]).expect("arp"));
    let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, .. } = reply.expect("repr") else {
        panic!("not Ethernet");
    };
    assert_eq!((operation, source_hardware_addr), (ArpOperation::Reply, EthernetAddress(US)));
    assert_eq!(frames[0][..6], THEM);
    assert!(
        host.exchange(START, &arp_frame(BROADCAST, &arp(true, "198.18.0.9", "198.18.0.7")))
            .is_empty()
    );
    assert_eq!(host.dropped(DropReason::ArpNotForUs), 1);
    let probe = arp_frame(BROADCAST, &arp(true, "0.0.0.0", "198.18.0.1"));
    assert_eq!(host.exchange(START, &probe).len(), 1);
}

#[test]
fn arp_requests_with_an_address_from_elsewhere_are_answered_but_not_believed() {
    let mut host = Host::new(config(1));
    let request = arp_frame(BROADCAST, &arp(true, "8.8.8.8", "198.18.0.1"));
    let frames = host.exchange(START, &request);
    assert_eq!((frames.len(), &frames[0][..6]), (1, &THEM[..]));
    for (asks, target) in [(true, "198.18.0.7"), (true, "8.8.8.8"), (false, "198.18.0.1")] {
        let message = arp_frame(BROADCAST, &arp(asks, "8.8.8.8", target));
        assert!(host.exchange(START, &message).is_empty());
    }
    assert_eq!(host.dropped(DropReason::ArpBadSender), 3);
}

#[test]
fn impossible_arp_is_dropped_by_reason() {
    let mut host = Host::new(config(1));
    for sender in ["198.18.0.1", "198.18.0.255", "224.0.0.1", "127.0.0.1"] {
        let _ = host.exchange(START, &arp_frame(BROADCAST, &arp(true, sender, "198.18.0.1")));
    }
    assert_eq!(host.dropped(DropReason::ArpBadSender), 4);
    let _ = host.exchange(START, &arp_frame(US, &arp(false, "198.18.0.9", "198.18.0.1")));
    let _ = host.exchange(START, &arp_frame(BROADCAST, &arp(true, "198.18.0.9", "198.18.0.9")));
    assert_eq!(host.dropped(DropReason::ArpUnsolicited), 2);
    let _ = host.exchange(START, &arp_frame(US, &[0; 28]));
    let _ = host.exchange(START, &arp_frame(US, &[0; 4]));
    assert_eq!(host.dropped(DropReason::ArpMalformed), 2);
    assert_eq!(host.count(Counter::FramesSent), 0);
}

#[test]
fn solicitations_for_us_are_answered() {
    let mut host = Host::new(config(1));
    let group = [0x33, 0x33, 0xff, 0, 0, 1];
    let packet = ndp("2001:db8::9", "ff02::1:ff00:1", solicitation("2001:db8::1"));
    let frames = host.exchange(START, &frame(group, &packet));
    assert_eq!(frames.len(), 1);
    let reply = Icmpv6Packet::new_checked(&frames[0][54..]).expect("icmp");
    assert!(reply.verify_checksum(&v6("2001:db8::1"), &v6("2001:db8::9")));
    let NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } =
        NdiscRepr::parse(&reply).expect("advertisement")
    else {
        panic!("no advertisement");
    };
    assert_eq!(flags, NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE);
    assert_eq!(target_addr, v6("2001:db8::1"));
    assert_eq!(lladdr, Some(RawHardwareAddress::from_bytes(&US)));
    assert_eq!(frames[0][21], 255, "hop limit");
}

#[test]
fn who_asks_with_an_address_from_elsewhere_is_answered_and_not_remembered() {
    let mut host = Host::new(config(1));
    let question = ndp("2001:db9::9", "2001:db8::1", solicitation("2001:db8::1"));
    let frames = host.exchange(START, &frame(US, &question));
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0][..6], THEM);
    assert_eq!((frames[0][54], frames[0][21]), (136, 255));
    assert_eq!(frames[0][38..54], v6("2001:db9::9").octets());
    let mut nameless = vec![135, 0, 0, 0, 0, 0, 0, 0];
    nameless.extend(v6("2001:db8::1").octets());
    let (from, to) = ("2001:db9::9", "2001:db8::1");
    let sum = transport_checksum(ip(from), ip(to), 58, &nameless);
    nameless[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut question = packet(from, to, 58, &nameless);
    question[7] = 255;
    assert!(host.exchange(START, &frame(US, &question)).is_empty());
    assert_eq!(host.dropped(DropReason::NdpBadSource), 1);
}

#[test]
fn impossible_neighbour_discovery_is_dropped_by_reason() {
    let mut host = Host::new(config(1));
    let mut give = |packet: &[u8]| assert!(host.exchange(START, &frame(US, packet)).is_empty());
    let mut far = ndp("2001:db8::9", "2001:db8::1", solicitation("2001:db8::1"));
    far[7] = 254;
    give(&far);
    give(&ndp("2001:db8::9", "2001:db8::1", solicitation("2001:db8::7")));
    give(&ndp("2001:db8::9", "2001:db8::1", solicitation("ff02::1")));
    let advert = |target: &str| NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::SOLICITED,
        target_addr: v6(target),
        lladdr: Some(RawHardwareAddress::from_bytes(&THEM)),
    };
    give(&ndp("2001:db8::9", "2001:db8::1", advert("2001:db8::9")));
    give(&ndp("2001:db8::9", "2001:db8::1", advert("2001:db8::1")));
    assert_eq!(host.dropped(DropReason::NdpBadHopLimit), 1);
    assert_eq!(host.dropped(DropReason::NdpNotForUs), 1);
    assert_eq!(host.dropped(DropReason::NdpBadSource), 1);
    assert_eq!(host.dropped(DropReason::NdpMalformed), 1);
    assert_eq!(host.dropped(DropReason::NdpUnsolicited), 1);
}

#[test]
fn a_silent_neighbour_makes_connections_fail() {
    for to in ["198.18.0.77:80", "[2001:db8::77]:80"] {
        let mut pair = Pair::new();
        let now = pair.now;
        let shard = &mut pair.hosts[0].shard;
        // More than fit into the neighbour's queue: the others wait for it as connections.
        let clients: Vec<SocketId> = (0..20)
            .map(|_| shard.connect(now, None, at(to), SocketOptions::default()).expect("connect"))
            .collect();
        pair.run(10_000_000);
        let asked = pair.hosts[0].count(Counter::ArpRequestsSent)
            + pair.hosts[0].count(Counter::NeighbourSolicitationsSent);
        assert!((3..=9).contains(&asked), "{asked}");
        pair.run(200_000_000);
        for client in clients {
            let progress = pair.hosts[0].progress(client);
            let unreachable = progress.error == Some(SocketError::HostUnreachable);
            assert!(progress.finished && unreachable, "{to} {progress:?}");
        }
    }
}

#[test]
fn many_connections_wait_for_one_neighbour_and_all_go_on() {
    let mut pair = Pair::new();
    let _ = pair.hosts[1].shard.listen(at("198.18.0.2:80"), ListenOptions::default());
    let now = pair.now;
    for _ in 0..50 {
        let shard = &mut pair.hosts[0].shard;
        let to = at("198.18.0.2:80");
        let _ = shard.connect(now, None, to, SocketOptions::default()).expect("connect");
    }
    pair.run(20_000);
    assert_eq!(pair.hosts[1].accepted().len(), 50);
    assert_eq!(pair.hosts[0].count(Counter::ArpRequestsSent), 1);
}

#[test]
fn traffic_spares_the_probe() {
    let mut pair = Pair::new();
    let (client, server, _) = pair.connect("198.18.0.2:80");
    let before = pair.hosts[0].count(Counter::ArpRequestsSent);
    for _ in 0..60 {
        let now = pair.now;
        pair.hosts[0].send(now, client, &[1; 100]);
        pair.hosts[1].send(now, server, &[1; 100]);
        pair.run(2_000_000);
    }
    assert_eq!(pair.hosts[0].count(Counter::ArpRequestsSent), before);
}

#[test]
fn a_parked_connection_can_be_closed() {
    let mut pair = Pair::new();
    let now = pair.now;
    let to = at("198.18.0.77:80");
    let shard = &mut pair.hosts[0].shard;
    let clients: Vec<SocketId> = (0..20)
        .map(|_| shard.connect(now, None, to, SocketOptions::default()).expect("connect"))
        .collect();
    pair.run(1_000);
    for id in clients {
        let now = pair.now;
        pair.hosts[0].shard.close(now, id, Close::Abort);
    }
    pair.run(10_000_000);
    assert_eq!(pair.hosts[0].shard.connection_count(), 0);
}
