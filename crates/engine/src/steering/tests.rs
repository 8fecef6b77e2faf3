//! What the function promises: both directions agree, errors follow what they quote, shares are even.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const KEY: u64 = 0x1234_5678_9abc_def0;

fn steering(rule: Rule, servers: u16) -> Steering {
    Steering::new(KEY, rule, servers)
}

fn rules() -> impl Strategy<Value = Rule> {
    prop_oneof![Just(Rule::Hash), Just(Rule::Low12)]
}

/// Two of the same family.
fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    let v4 = any::<([u8; 4], [u8; 4])>().prop_map(|(one, other)| (one.into(), other.into()));
    let v6 = any::<([u8; 16], [u8; 16])>().prop_map(|(one, other)| (one.into(), other.into()));
    prop_oneof![v4, v6]
}

/// An IP packet with extension headers of these kinds, if it is IPv6.
fn packet(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    extensions: &[u8],
    body: &[u8],
) -> Vec<u8> {
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        (source, destination) => {
            let first = extensions.first().copied().unwrap_or(protocol);
            packet.extend([0x60, 0, 0, 0, 0, 0, first, 64]);
            packet.extend(octets_v6(source));
            packet.extend(octets_v6(destination));
            let next = extensions.iter().skip(1).copied().chain([protocol]);
            for (kind, next) in extensions.iter().zip(next) {
                // A fragment header of a whole datagram, or options of 8 or 16 bytes.
                let len = if *kind == FRAGMENT { 0 } else { kind / 43 % 2 };
                packet.extend([next, len, 0, 0, 0, 0, 0, 0]);
                packet.extend(std::iter::repeat_n(0, 8 * usize::from(len)));
            }
        }
    }
    packet.extend(body);
    packet
}

fn frame(packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { TYPE_IPV4 } else { TYPE_IPV6 };
    let mut frame = vec![2; 12];
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    let mut body = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    body.extend([0; 16]);
    body
}

fn error(about: &[u8]) -> Vec<u8> {
    // Unreachable for IPv4, time exceeded for IPv6.
    [&[3, 0, 0, 0, 0, 0, 0, 0], about].concat()
}

fn fragment(mut packet: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        let bits = offset | u16::from(more) << 13;
        packet[6..8].copy_from_slice(&bits.to_be_bytes());
    } else {
        let bits = offset << 3 | u16::from(more);
        packet[42..44].copy_from_slice(&bits.to_be_bytes());
    }
    packet
}

proptest! {
    #[test]
    fn a_flow_has_one_server_in_frames_and_in_the_shard(
        rule in rules(), (peer, us) in addresses(), (peer_port, our_port) in any::<(u16, u16)>(),
        extensions in prop::collection::vec(prop::sample::select(vec![0, 43, 44, 60]), 0..8),
        servers in 1u16..20,
    ) {
        let steering = steering(rule, servers);
        let body = ports(peer_port, our_port);
        let tcp = packet(peer, us, TCP, &extensions, &body);
        let (local, remote) = (SocketAddr::new(us, our_port), SocketAddr::new(peer, peer_port));
        let owner = steering.owner_of_flow(local, remote);
        prop_assert!(owner < servers);
        prop_assert_eq!(steering.destination(&frame(&tcp)), Destination::Server(owner));
        prop_assert_eq!(steering.destination_of_packet(&tcp), Destination::Server(owner));
        prop_assert_eq!(steering.queue(&frame(&tcp)), owner);
        if rule == Rule::Hash {
            prop_assert_eq!(steering.owner_of_flow(remote, local), owner);
        }
        let udp = packet(peer, us, UDP, &extensions, &body);
        let home = steering.owner_of_port(our_port);
        prop_assert_eq!(steering.destination(&frame(&udp)), Destination::Server(home));
    }

    #[test]
    fn errors_follow_what_they_quote(
        rule in rules(), (router, us) in addresses(), peer in any::<u16>(), ours in any::<u16>(),
        servers in 1u16..20,
        in_fragment in any::<bool>(),
    ) {
        let steering = steering(rule, servers);
        let far: IpAddr = match us {
            IpAddr::V4(_) => "192.0.2.7".parse().unwrap(),
            IpAddr::V6(_) => "2001:db8::7".parse().unwrap(),
        };
        let icmp = if us.is_ipv4() { ICMP } else { ICMPV6 };
        let extensions: &[u8] = if in_fragment { &[FRAGMENT] } else { &[] };
        for protocol in [TCP, UDP] {
            let mut sent = packet(us, far, protocol, extensions, &ports(ours, peer));
            if in_fragment {
                sent = fragment(sent, 0, true);
            }
            let about = packet(router, us, icmp, &[], &error(&sent));
            let owner = match protocol {
                TCP => steering.owner_of_flow(SocketAddr::new(us, ours), SocketAddr::new(far, peer)),
                _ => steering.owner_of_port(ours),
            };
            prop_assert_eq!(steering.destination(&frame(&about)), Destination::Server(owner));
        }
    }

    #[test]
    fn fragments_go_by_addresses(
        rule in rules(), (peer, us) in addresses(), bodies in any::<[(u16, u16); 2]>(), offset in 1u16..0x1fff,
    ) {
        let steering = steering(rule, 7);
        let of = |(source, destination), offset, more| {
            fragment(packet(peer, us, UDP, &[FRAGMENT], &ports(source, destination)), offset, more)
        };
        let first = steering.destination(&frame(&of(bodies[0], 0, true)));
        let later = steering.destination(&frame(&of(bodies[1], offset, true)));
        let last = steering.destination(&frame(&of(bodies[1], offset, false)));
        prop_assert_eq!(first, later);
        prop_assert_eq!(first, last);
        prop_assert!(matches!(first, Destination::Server(_)));
        let mut to_group = frame(&of(bodies[0], offset, true));
        to_group[0] |= 1;
        prop_assert_eq!(steering.destination(&to_group), Destination::Everyone);
    }

    #[test]
    fn nonsense_has_a_destination(
        rule in rules(), bytes in prop::collection::vec(any::<u8>(), 0..120), servers in 1u16..9,
    ) {
        let steering = steering(rule, servers);
        prop_assert!(steering.queue(&bytes) < servers);
        let destinations = [steering.destination(&bytes), steering.destination_of_packet(&bytes)];
        for destination in destinations {
            if let Destination::Server(server) = destination {
                prop_assert!(server < servers);
            }
        }
    }

    #[test]
    fn what_is_cut_short_has_a_destination(
        rule in rules(), (peer, us) in addresses(), len in 0usize..140, quoting in any::<bool>(),
    ) {
        let inner = packet(us, peer, TCP, &[], &ports(1, 2));
        let icmp = if us.is_ipv4() { ICMP } else { ICMPV6 };
        let body = if quoting { error(&inner) } else { ports(3, 4) };
        let protocol = if quoting { icmp } else { TCP };
        let mut whole = frame(&packet(peer, us, protocol, &[0, 60], &body));
        whole.truncate(len);
        let steering = steering(rule, 5);
        if steering.bucket(&whole).is_none() {
            prop_assert_eq!(steering.destination(&whole), Destination::Server(SPEAKER));
        }
    }
}

#[test]
fn all_hear_of_neighbours_and_the_speaker_of_the_rest() {
    let steering = steering(Rule::Hash, 4);
    let speaker = Destination::Server(SPEAKER);
    let mut arp = vec![0xff; 12];
    arp.extend(TYPE_ARP.to_be_bytes());
    arp.extend([0; 28]);
    assert_eq!(steering.destination(&arp), Destination::Everyone);
    let v6: [IpAddr; 2] = ["fe80::1".parse().unwrap(), "fe80::2".parse().unwrap()];
    let v4: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
    let of = |[source, destination]: [IpAddr; 2], protocol, first: u8| {
        let body = [&[first][..], &[0; 40]].concat();
        steering.destination(&frame(&packet(source, destination, protocol, &[], &body)))
    };
    for kind in [134, 135, 136] {
        assert_eq!(of(v6, ICMPV6, kind), Destination::Everyone, "{kind}");
    }
    for kind in [128, 129, 130, 131, 133, 137] {
        assert_eq!(of(v6, ICMPV6, kind), speaker, "{kind}");
    }
    assert_eq!(of(v4, ICMP, 8), speaker, "an echo request");
    assert_eq!(of(v4, 2, 0x11), speaker, "a group query");
    assert_eq!(of(v4, 132, 0), speaker, "a transport that nobody here has");
    let dhcp = packet(v4[0], v4[1], UDP, &[], &ports(67, 68));
    assert_eq!(steering.destination(&frame(&dhcp)), speaker);
    assert_eq!(steering.owner_of_port(68), SPEAKER);
}

#[test]
fn low12_is_the_peers_port() {
    let steering = steering(Rule::Low12, 4096);
    let (us, peer): (SocketAddr, SocketAddr) =
        ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:45678".parse().unwrap());
    assert_eq!(steering.owner_of_flow(us, peer), 45_678 & 0xfff);
    assert_eq!(steering.owner_of_port(5353), 5353 & 0xfff);
    assert!(!steering.depends_on_local_port());
}

#[test]
fn servers_own_equal_runs_until_buckets_move() {
    for servers in [1, 2, 3, 7, 256] {
        let steering = steering(Rule::Hash, servers);
        let mut owned: HashMap<u16, u32> = HashMap::new();
        for owner in steering.owners() {
            *owned.entry(*owner).or_default() += 1;
        }
        assert_eq!(owned.len(), usize::from(servers));
        let (least, most) = (owned.values().min().unwrap(), owned.values().max().unwrap());
        assert!(most - least <= 1, "{servers} servers: {least} to {most}");
    }
    let mut steering = steering(Rule::Hash, 2);
    assert_eq!((steering.owner_of(5), steering.owner_of(4000)), (0, 1));
    steering.move_bucket(5, 1);
    assert_eq!(steering.owner_of(5), 1);
    let queues = steering.renumbered(|_, server| server / 2);
    assert_eq!((queues.servers(), queues.owner_of(4000)), (1, 0));
}

/// Flows from the ports of one client to one server, and UDP ports, spread within 15 % of even.
#[test]
fn shares_are_even() {
    let us: SocketAddr = "198.18.0.2:80".parse().unwrap();
    for key in 1..20u64 {
        let steering = Steering::new(key.wrapping_mul(MULTIPLIER), Rule::Hash, 4);
        let (mut flows, mut homes) = ([0u32; 4], [0u32; 4]);
        for port in 32_768..60_999u16 {
            let peer = SocketAddr::new("198.18.0.1".parse().unwrap(), port);
            flows[usize::from(steering.owner_of_flow(us, peer))] += 1;
            homes[usize::from(steering.owner_of_port(port))] += 1;
        }
        let even = (60_999 - 32_768) / 4;
        for count in flows.iter().chain(&homes) {
            assert!(count.abs_diff(even) < even * 15 / 100, "{key}: {flows:?} {homes:?}");
        }
    }
}

#[test]
fn the_key_is_the_services_secret() {
    assert_ne!(Steering::key_of(&[1; 32]), Steering::key_of(&[2; 32]));
    let text = format!("{:?}", steering(Rule::Hash, 2));
    assert!(!text.contains(&KEY.to_string()), "{text}");
}

#[test]
fn flows_move_and_the_rest_of_their_bucket_stays() {
    let mut steering = Steering::new(KEY, Rule::Hash, 3);
    let (local, remote) = ("198.18.0.1:80".parse().unwrap(), "198.18.0.9:4000".parse().unwrap());
    let bucket = steering.bucket_of_flow(local, remote);
    let home = steering.owner_of(bucket);
    let (away, further) = ((home + 1) % 3, (home + 2) % 3);
    assert_eq!(
        (steering.owner_of_flow(local, remote), steering.version_of_flows(bucket)),
        (home, 0)
    );
    assert!(steering.move_flows(bucket, 2, away));
    assert!(!steering.move_flows(bucket, 1, further), "older news");
    assert!(!steering.move_flows(bucket, 2, further), "the same again");
    assert!(!steering.move_flows(bucket, 3, 3), "nobody has that number");
    assert_eq!(steering.owner_of_flow(local, remote), away);
    assert_eq!((steering.owner_of(bucket), steering.version_of_flows(bucket)), (home, 2));
    assert_eq!(steering.moves().collect::<Vec<_>>(), [(bucket, 2, away)]);
    let others = (0..BUCKETS as u16).filter(|other| *other != bucket);
    assert!(others.into_iter().all(|one| steering.owner_of_flows(one) == steering.owner_of(one)));
    assert!(steering.move_flows(bucket, 3, home));
    assert_eq!(steering.owner_of_flow(local, remote), home);
}

#[test]
fn what_never_moved_is_folded_onto_those_that_stay() {
    let mut steering = Steering::new(KEY, Rule::Hash, 4);
    let of_the_last = (0..BUCKETS as u16).find(|bucket| steering.owner_of(*bucket) == 3).unwrap();
    assert!(steering.move_flows(of_the_last, 1, 0));
    steering.set_servers(4, 2);
    assert_eq!((steering.stand_in_for(3), steering.staying()), (1, 2));
    assert_eq!(steering.owner_of(of_the_last), 3, "they have their ports until all is given away");
    let parting = steering.clone();
    steering.fold(2);
    for bucket in 0..BUCKETS as u16 {
        assert_eq!(steering.owner_of(bucket), parting.owner_of(bucket) % 2);
    }
    assert_eq!((steering.owner_of(of_the_last), steering.owner_of_flows(of_the_last)), (1, 0));
    assert!(steering.has_ports(1) && !steering.has_ports(2));
    // Whoever hears of it later ends with the same map.
    let mut other = parting.clone();
    steering.set_servers(2, 2);
    other.follow(&steering);
    assert!(other == steering);
    other.follow(&parting);
    assert_eq!((other.servers(), other.owners()), (4, steering.owners()), "nothing is unfolded");
}
