//! Duplicate address detection and stateless address autoconfiguration as seen on the wire.

use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Ipv6Address, NdiscPrefixInfoFlags, NdiscPrefixInformation,
    NdiscRepr, NdiscRouterFlags, RawHardwareAddress,
};

use super::harness::*;
use crate::*;

const US: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ROUTER: &str = "fe80::9";
const OURS: &str = "2001:db8:77::ff:fe00:1";

fn v6(text: &str) -> Ipv6Address {
    text.parse().expect("address")
}

fn empty() -> Host {
    let mut config = config(1);
    config.addresses.clear();
    Host::new(config)
}

fn ndp(source: &str, destination: &str, body: &mut [u8]) -> Vec<u8> {
    Icmpv6Packet::new_unchecked(&mut *body).fill_checksum(&v6(source), &v6(destination));
    let mut packet = packet(source, destination, 58, body);
    packet[7] = 255;
    let to = match ip(destination).is_multicast() {
        true => {
            let octets = v6(destination).octets();
            [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
        }
        false => US,
    };
    frame(to, &packet)
}

/// A router advertisement with a prefix, an MTU and a name server.
fn advertisement(router_s: u64, valid_s: u64, preferred_s: u64) -> Vec<u8> {
    let repr = NdiscRepr::RouterAdvert {
        hop_limit: 61,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: smoltcp::time::Duration::from_secs(router_s),
        reachable_time: smoltcp::time::Duration::ZERO,
        retrans_time: smoltcp::time::Duration::ZERO,
        lladdr: Some(RawHardwareAddress::from(EthernetAddress([2, 0, 0, 0, 0, 9]))),
        mtu: Some(1400),
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: smoltcp::time::Duration::from_secs(valid_s),
            preferred_lifetime: smoltcp::time::Duration::from_secs(preferred_s),
            prefix: v6("2001:db8:77::"),
        }),
    };
    let mut body = vec![0; repr.buffer_len()];
    repr.emit(&mut Icmpv6Packet::new_unchecked(&mut body[..]));
    body.extend([25, 3, 0, 0, 0, 0, 0x0e, 0x10]);
    body.extend(v6("2001:db8:77::53").octets());
    ndp(ROUTER, "ff02::1", &mut body)
}

fn solicitation(source: &str, destination: &str, target: &str) -> Vec<u8> {
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend(v6(target).octets());
    ndp(source, destination, &mut body)
}

/// Runs the host's timers for so long; what it sends.
fn wait(host: &mut Host, now: &mut Instant, us: u64) -> Vec<Vec<u8>> {
    let end = now.plus_us(us);
    let mut frames = host.drain(*now);
    while let Some(next) = host.shard.poll_timeout().filter(|next| *next <= end) {
        *now = next.max(*now);
        host.shard.handle_timers(*now, &mut host.memory);
        frames.extend(host.drain(*now));
    }
    *now = end;
    frames
}

/// ICMPv6 type, and target or nothing.
fn kinds(frames: &[Vec<u8>]) -> Vec<u8> {
    let icmp = |frame: &Vec<u8>| if frame[20] == 58 { frame[54] } else { frame[62] };
    frames.iter().map(icmp).collect()
}

fn state_of(host: &Host, addr: &str) -> Option<AddressState> {
    host.shard.addresses().find(|one| one.cidr.addr == ip(addr)).map(|one| one.state)
}

/// A host that has its link-local address and has asked for routers.
fn linked() -> (Host, Instant) {
    let (mut host, mut now) = (empty(), START);
    host.shard.start_slaac(now);
    let frames = wait(&mut host, &mut now, 3_100_000);
    assert!(kinds(&frames).contains(&133), "a router solicitation");
    (host, now)
}

#[test]
fn a_host_finds_address_router_and_name_server() {
    let (mut host, mut now) = (empty(), START);
    host.shard.start_slaac(now);
    assert_eq!(state_of(&host, "fe80::ff:fe00:1"), Some(AddressState::Tentative));
    assert!(!host.shard.owns_address(ip("fe80::ff:fe00:1")));
    let frames = wait(&mut host, &mut now, 3_100_000);
    // Reports of the solicited-node group, one probe, and a router solicitation.
    let probe = frames.iter().find(|frame| frame[54] == 135).expect("a probe");
    assert_eq!(probe[22..38], [0; 16], "from nobody");
    assert_eq!(probe[38..54], v6("ff02::1:ff00:1").octets());
    assert_eq!(probe[62..78], v6("fe80::ff:fe00:1").octets());
    assert_eq!(probe[21], 255);
    assert!(kinds(&frames).contains(&131), "an MLD report");
    let asked = frames.iter().find(|frame| frame[54] == 133).expect("a router solicitation");
    assert_eq!(asked[22..38], v6("fe80::ff:fe00:1").octets());
    assert_eq!(state_of(&host, "fe80::ff:fe00:1"), Some(AddressState::Preferred));
    let _ = host.exchange(now, &advertisement(1800, 86_400, 14_400));
    assert_eq!(state_of(&host, OURS), Some(AddressState::Tentative));
    let _ = wait(&mut host, &mut now, 1_100_000);
    assert_eq!(state_of(&host, OURS), Some(AddressState::Preferred));
    assert!(host.events.contains(&Event::NetworkChanged));
    assert_eq!(host.shard.source_for(ip("2001:db8:1::1")), Some(ip(OURS)));
    assert_eq!(host.shard.gateways().collect::<Vec<_>>(), [ip(ROUTER)]);
    assert_eq!(host.shard.name_servers().collect::<Vec<_>>(), [ip("2001:db8:77::53")]);
    assert_eq!(host.shard.path_mtu(ip("2001:db8:1::1")), 1400);
    assert_eq!(host.count(Counter::RouterAdvertisements), 1);
    // It solicits no more, and is there for others.
    assert!(!kinds(&wait(&mut host, &mut now, 20_000_000)).contains(&133));
    let reply = host.exchange(now, &solicitation(ROUTER, "ff02::1:ff00:1", OURS));
    assert_eq!(kinds(&reply), [136]);
}

#[test]
fn solicitations_end_without_a_router() {
    let (mut host, mut now) = (empty(), START);
    host.shard.start_slaac(now);
    let frames = wait(&mut host, &mut now, 60_000_000);
    assert_eq!(kinds(&frames).iter().filter(|kind| **kind == 133).count(), 3);
    assert_eq!(host.count(Counter::RouterSolicitationsSent), 3);
}

#[test]
fn what_is_learned_ends_with_its_lifetime() {
    let (mut host, mut now) = linked();
    let _ = host.exchange(now, &advertisement(30, 10_000, 60));
    let _ = wait(&mut host, &mut now, 31_000_000);
    assert_eq!(host.shard.gateways().count(), 0);
    assert!(!host.shard.routes_to(ip("2001:db8:1::1")));
    let _ = wait(&mut host, &mut now, 60_000_000);
    assert_eq!(state_of(&host, OURS), Some(AddressState::Deprecated));
    // A router cannot take it away at once, but it can within two hours (RFC 4862 5.5.3 e).
    let _ = host.exchange(now, &advertisement(30, 0, 0));
    assert_eq!(state_of(&host, OURS), Some(AddressState::Deprecated));
    let _ = wait(&mut host, &mut now, 7_190_000_000);
    assert!(host.shard.owns_address(ip(OURS)));
    let _ = wait(&mut host, &mut now, 20_000_000);
    assert_eq!(state_of(&host, OURS), None);
    assert!(!host.shard.owns_address(ip(OURS)));
}

#[test]
fn an_address_that_somebody_has_is_not_used() {
    let advert = |target: &str| {
        let mut body = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
        body.extend(v6(target).octets());
        ndp("2001:db8:77::9", "ff02::1", &mut body)
    };
    let probe = |target: &str| solicitation("::", "ff02::1:ff00:1", target);
    for claim in [advert(OURS), probe(OURS)] {
        let (mut host, mut now) = linked();
        let _ = host.exchange(now, &advertisement(1800, 86_400, 14_400));
        let before = host.count(Counter::NeighbourAdvertisementsSent);
        let asked = host.exchange(now, &solicitation(ROUTER, "ff02::1:ff00:1", OURS));
        assert!(asked.is_empty(), "a tentative address is not answered for");
        let _ = host.exchange(now, &claim);
        let _ = wait(&mut host, &mut now, 5_000_000);
        assert_eq!(state_of(&host, OURS), Some(AddressState::Duplicate));
        assert!(!host.shard.owns_address(ip(OURS)));
        assert_eq!(host.count(Counter::DuplicateAddresses), 1);
        assert_eq!(host.count(Counter::NeighbourAdvertisementsSent), before);
        assert_eq!(state_of(&host, "fe80::ff:fe00:1"), Some(AddressState::Preferred));
    }
}

#[test]
fn configured_addresses_can_be_probed_too() {
    let (mut host, mut now) = (Host::new(config(1)), START);
    host.shard.detect_duplicates(now);
    assert!(host.shard.owns_address(ip("198.18.0.1")));
    assert!(!host.shard.owns_address(ip("2001:db8::1")));
    let frames = wait(&mut host, &mut now, 1_100_000);
    assert_eq!(kinds(&frames).iter().filter(|kind| **kind == 135).count(), 2);
    assert!(host.shard.owns_address(ip("2001:db8::1")));
}

#[test]
fn bad_advertisements_are_dropped_by_reason() {
    let (mut host, now) = linked();
    let good = advertisement(1800, 86_400, 14_400);
    let mut far = good.clone();
    far[21] = 254;
    let _ = host.exchange(now, &far);
    assert_eq!(host.dropped(DropReason::NdpBadHopLimit), 1);
    let body = good[54..].to_vec();
    let _ = host.exchange(now, &ndp("2001:db8::9", "ff02::1", &mut body.clone()));
    assert_eq!(host.dropped(DropReason::NdpBadSource), 1);
    let _ = host.exchange(now, &ndp(ROUTER, "ff02::1", &mut body[..20].to_vec()));
    assert_eq!(host.dropped(DropReason::IcmpMalformed) + host.dropped(DropReason::NdpMalformed), 1);
    let mut other = Host::new(config(1));
    let _ = other.exchange(now, &good);
    assert_eq!(other.dropped(DropReason::NdpNotWanted), 1);
    assert_eq!(host.shard.gateways().count(), 0);
}
