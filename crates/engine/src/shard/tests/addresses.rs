//! Frames that must be dropped, each under its own reason.

use super::harness::*;
use crate::*;

const US: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn check(host: &mut Host, bytes: &[u8], reason: DropReason) {
    let before = host.dropped(reason);
    assert!(host.exchange(START, bytes).is_empty(), "{reason:?} was answered");
    assert_eq!(host.dropped(reason), before + 1, "{reason:?}");
}

#[test]
fn ethernet() {
    let mut host = Host::new(config(1));
    let good = frame(US, &packet("198.18.0.9", "198.18.0.1", 1, &[0; 8]));
    check(&mut host, &good[..13], DropReason::FrameTruncated);
    check(&mut host, &[], DropReason::FrameTruncated);
    check(&mut host, &[0; 1515], DropReason::FrameOversized);
    check(&mut host, &frame([2, 0, 0, 0, 0, 7], &good[14..]), DropReason::EthernetNotForUs);
    let mut bad = good.clone();
    bad[6] |= 1;
    check(&mut host, &bad, DropReason::EthernetBadSource);
    let mut bad = good;
    bad[12] = 0x99;
    check(&mut host, &bad, DropReason::EthernetUnknownType);
}

#[test]
fn ipv4() {
    let mut host = Host::new(config(1));
    let make = |source: &str, destination: &str| packet(source, destination, 6, &[0; 20]);
    let ours = "198.18.0.1";
    for (source, destination, reason) in [
        ("127.0.0.1", ours, DropReason::Ipv4MartianSource),
        ("0.1.2.3", ours, DropReason::Ipv4MartianSource),
        ("255.255.255.255", ours, DropReason::Ipv4BroadcastSource),
        ("255.255.255.255", ours, DropReason::Ipv4BroadcastSource),
        ("198.18.0.255", ours, DropReason::Ipv4BroadcastSource),
        ("224.0.0.5", ours, DropReason::Ipv4BroadcastSource),
        (ours, ours, DropReason::Ipv4SelfSource),
        ("198.18.0.9", "198.18.0.2", DropReason::Ipv4NotForUs),
        ("198.18.0.9", "127.0.0.1", DropReason::Ipv4NotForUs),
        ("198.18.0.9", "198.18.0.255", DropReason::Ipv4Broadcast),
        ("198.18.0.9", "224.0.0.1", DropReason::Ipv4Broadcast),
    ] {
        check(&mut host, &frame(US, &make(source, destination)), reason);
    }
    let group = [0xff; 6];
    let good = make("198.18.0.9", ours);
    check(&mut host, &frame(group, &good), DropReason::Ipv4UnicastInBroadcast);
    let mut bad = good.clone();
    bad[10] ^= 1;
    check(&mut host, &frame(US, &bad), DropReason::Ipv4BadChecksum);
    let mut bad = frame(US, &good);
    bad[14] = 0x55;
    check(&mut host, &bad, DropReason::Ipv4Malformed);
    check(&mut host, &frame(US, &good)[..40], DropReason::Ipv4Malformed);
    let mut bad = frame(US, &good);
    bad[14] = 0x44;
    check(&mut host, &bad, DropReason::Ipv4Malformed);
}

/// An echo request with these IPv4 options, a multiple of four bytes.
fn with_options(options: &[u8]) -> Vec<u8> {
    let plain = packet("198.18.0.9", "198.18.0.1", 1, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    let mut bytes = [&plain[..20], options, &plain[20..]].concat();
    bytes[0] = 0x40 | (5 + options.len() / 4) as u8;
    bytes[3] += options.len() as u8;
    let len = 20 + options.len();
    smoltcp::wire::Ipv4Packet::new_unchecked(&mut bytes[..len]).fill_checksum();
    frame(US, &bytes)
}

#[test]
fn ipv4_options() {
    let mut host = Host::new(config(1));
    for malformed in [[7, 0, 0, 0], [7, 1, 0, 0], [7, 5, 4, 0], [1, 1, 1, 7]] {
        check(&mut host, &with_options(&malformed), DropReason::Ipv4Malformed);
    }
    for kind in [131, 137] {
        let route = [1, kind, 7, 8, 198, 18, 0, 5];
        check(&mut host, &with_options(&route), DropReason::Ipv4SourceRoute);
    }
    // Record route, router alert, an option that nobody knows, and what follows the end.
    for harmless in [[7, 4, 4, 0], [148, 4, 0, 0], [0x55, 3, 9, 1], [0, 137, 7, 4]] {
        let received = host.count(Counter::EchoRequestsReceived);
        host.exchange(START, &with_options(&harmless));
        assert_eq!(host.count(Counter::EchoRequestsReceived), received + 1, "{harmless:?}");
    }
}

#[test]
fn ipv6() {
    let mut host = Host::new(config(1));
    let make = |source: &str, destination: &str| packet(source, destination, 6, &[0; 20]);
    let ours = "2001:db8::1";
    for (source, destination, reason) in [
        ("::1", ours, DropReason::Ipv6MartianSource),
        ("::", ours, DropReason::Ipv6MartianSource),
        ("::ffff:10.0.0.1", ours, DropReason::Ipv6MartianSource),
        ("ff02::1", ours, DropReason::Ipv6MartianSource),
        (ours, ours, DropReason::Ipv6SelfSource),
        ("2001:db8::9", "::1", DropReason::Ipv6MartianDestination),
        ("2001:db8::9", "::ffff:198.18.0.1", DropReason::Ipv6MartianDestination),
        ("2001:db8::9", "2001:db8::7", DropReason::Ipv6NotForUs),
        ("2001:db8::9", "ff02::2", DropReason::Ipv6NotForUs),
        ("2001:db8::9", "ff02::1", DropReason::TcpNotUnicast),
    ] {
        check(&mut host, &frame(US, &make(source, destination)), reason);
    }
    let good = make("2001:db8::9", ours);
    let group = [0x33, 0x33, 0, 0, 0, 1];
    check(&mut host, &frame(group, &good), DropReason::Ipv6UnicastInMulticast);
    check(&mut host, &frame(US, &good)[..50], DropReason::Ipv6Malformed);
    let mut bad = frame(US, &good);
    bad[14] = 0x45;
    check(&mut host, &bad, DropReason::Ipv6Malformed);
}

#[test]
fn ipv6_extensions() {
    let mut host = Host::new(config(1));
    let make =
        |next: u8, payload: &[u8]| frame(US, &packet("2001:db8::9", "2001:db8::1", next, payload));
    check(&mut host, &make(59, &[]), DropReason::Ipv6NoNextHeader);
    check(&mut host, &make(60, &[6, 9, 0, 0, 0, 0, 0, 0]), DropReason::Ipv6BadExtension);
    check(&mut host, &make(60, &[6]), DropReason::Ipv6BadExtension);
    // Option 0x5e: discard without a word.
    check(&mut host, &make(0, &[6, 0, 0x5e, 0, 1, 2, 0, 0]), DropReason::Ipv6UnknownOption);
    let chain: Vec<u8> = (0..9).flat_map(|_| [60, 0, 1, 4, 0, 0, 0, 0]).collect();
    check(&mut host, &make(60, &chain), DropReason::Ipv6TooManyExtensions);
    // A used-up routing header and padding are no obstacle to a segment of nonsense.
    let mut payload = vec![43, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0];
    payload.extend([0; 10]);
    check(&mut host, &make(60, &payload), DropReason::TcpBadChecksum);
}

#[test]
fn tcp() {
    let mut host = Host::new(config(1));
    let valid = RxMeta { checksum_valid: true, ..RxMeta::default() };
    let mut give = |segment: &[u8], meta: RxMeta, reason: DropReason| {
        let bytes = frame(US, &packet("198.18.0.9", "198.18.0.1", 6, segment));
        let before = host.dropped(reason);
        host.shard.handle_frame(START, &bytes, meta, &mut host.memory);
        assert_eq!(host.dropped(reason), before + 1, "{reason:?}");
    };
    let segment = |ports: [u8; 4], flags: u8| {
        let mut segment = vec![0; 20];
        segment[..4].copy_from_slice(&ports);
        segment[12] = 0x50;
        segment[13] = flags;
        segment
    };
    give(&segment([0, 1, 0, 80], 2), RxMeta::default(), DropReason::TcpBadChecksum);
    give(&[0; 8], valid, DropReason::TcpMalformed);
    give(&segment([0, 0, 0, 80], 2), valid, DropReason::TcpPortZero);
    give(&segment([0, 1, 0, 80], 4), valid, DropReason::TcpNoFlowReset);
    give(&segment([0, 1, 0, 80], 2), valid, DropReason::TcpNoFlow);
    let _ = host.drain(START);
    assert_eq!(host.count(Counter::TcpResetsSent), 1);
    let _ = host.shard.listen(at("198.18.0.1:80"), ListenOptions::default()).expect("free");
    let mut give = |flags: u8, reason: DropReason| {
        let packet = packet("198.18.0.9", "198.18.0.1", 6, &segment([0, 1, 0, 80], flags));
        host.shard.handle_frame(START, &frame(US, &packet), valid, &mut host.memory);
        assert_eq!(host.dropped(reason), 1 + u64::from(reason == DropReason::TcpNoFlow));
    };
    give(3, DropReason::TcpSynMalformed);
    give(0x10, DropReason::TcpNoFlow);
}

#[test]
fn a_syn_without_a_way_back_is_dropped() {
    let mut host = Host::new(config(1));
    let _ = host.shard.listen(at("198.18.0.1:80"), ListenOptions::default()).expect("free");
    let mut syn = vec![0; 20];
    syn[..4].copy_from_slice(&[0, 1, 0, 80]);
    syn[12..14].copy_from_slice(&[0x50, 2]);
    let bytes = frame(US, &packet("8.8.8.8", "198.18.0.1", 6, &syn));
    let valid = RxMeta { checksum_valid: true, ..RxMeta::default() };
    host.shard.handle_frame(START, &bytes, valid, &mut host.memory);
    assert_eq!(host.dropped(DropReason::TcpNoRoute), 1);
    assert_eq!(host.shard.connection_count(), 0);
}
