//! One shard of several: what it owns, what it hands over, what it leaves to the speaker.

use std::net::SocketAddr;
use std::sync::Arc;

use super::harness::*;
use crate::shard::headers::{ICMP, UDP, write_u16};
use crate::steering::{Rule, Steering};
use crate::*;

const SERVERS: u16 = 4;
const ALL: [u8; 6] = [0xff; 6];

fn steering(rule: Rule) -> Arc<Steering> {
    Arc::new(Steering::new(0x1234_5678_9abc_def1, rule, SERVERS))
}

fn server_with(server: u16, rule: Rule) -> Host {
    let steered = Some(Steered { server, steering: steering(rule) });
    let mut host = Host::new(ShardConfig { steered, ..config(1) });
    assert!(host.drain(START).is_empty());
    host
}

fn server(number: u16) -> Host {
    server_with(number, Rule::Hash)
}

/// An ARP message of host 9.
fn arp(request: bool, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, if request { 1 } else { 2 }];
    body.extend([2, 0, 0, 0, 0, 9]);
    body.extend(sender);
    body.extend([0; 6]);
    body.extend(target);
    arp_frame(ALL, &body)
}

fn datagram(source: u16, destination: u16, len: usize) -> Vec<u8> {
    let mut body = vec![0; 8 + len];
    write_u16(&mut body, 0, source);
    write_u16(&mut body, 2, destination);
    write_u16(&mut body, 4, 8 + len as u16);
    packet("198.18.0.9", "198.18.0.1", UDP, &body)
}

fn port_of(server: u16) -> u16 {
    let steering = steering(Rule::Hash);
    (1024..).find(|port| steering.owner_of_port(*port) == server).unwrap()
}

#[test]
fn only_the_speaker_answers_but_all_learn() {
    let (us, peer, other) = ([198, 18, 0, 1], [198, 18, 0, 9], [198, 18, 0, 77]);
    for number in 0..SERVERS {
        let mut host = server(number);
        let is_speaker = number == 0;
        let answers = host.exchange(START, &arp(true, peer, us));
        assert_eq!(answers.len(), usize::from(is_speaker), "server {number}");
        // Learned: what goes there asks nobody.
        let id = host.open("198.18.0.1:0");
        host.send_to(START, id, "198.18.0.9:7", b"x").unwrap();
        let sent = host.drain(START);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0][..6], [2, 0, 0, 0, 0, 9]);
        let ping = packet("198.18.0.9", "198.18.0.1", ICMP, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
        let answers = host.exchange(START, &frame([2, 0, 0, 0, 0, 1], &ping));
        assert_eq!(answers.len(), usize::from(is_speaker));
        assert_eq!(host.dropped(DropReason::SpeakerOnly), u64::from(!is_speaker));
        // What another server asked for.
        assert!(host.exchange(START, &arp(false, other, us)).is_empty());
        assert_eq!(host.dropped(DropReason::CopyForOthers), u64::from(!is_speaker));
        let probes = host.exchange(START, &arp(true, [0; 4], us));
        assert_eq!(probes.len(), usize::from(is_speaker), "an address probe");
    }
}

#[test]
fn chosen_ports_steer_home_after_few_tries() {
    let steering = steering(Rule::Hash);
    for number in 0..SERVERS {
        let mut host = server(number);
        for _ in 0..50 {
            let id = host
                .shard
                .connect(START, None, at("198.18.0.9:80"), SocketOptions::default())
                .unwrap();
            let local = host.shard.local_address(id).unwrap();
            assert_eq!(steering.owner_of_flow(local, at("198.18.0.9:80")), number);
            let id = host.open("0.0.0.0:0");
            let local = host.shard.local_address(id).unwrap();
            assert_eq!(steering.owner_of_port(local.port()), number);
        }
    }
}

#[test]
fn what_is_at_home_elsewhere_is_said_to_be() {
    let mut host = server(1);
    let port = port_of(3);
    let local = SocketAddr::new(ip("0.0.0.0"), port);
    let refused = host.shard.open_datagram(local, DatagramOptions::default());
    assert_eq!(refused, Err(ListenError::Elsewhere(3)));
    let remote = at("198.18.0.9:80");
    let steering = steering(Rule::Hash);
    for port in 2000..2100 {
        let local = SocketAddr::new(ip("198.18.0.1"), port);
        let owner = steering.owner_of_flow(local, remote);
        let result = host.shard.connect(START, Some(local), remote, SocketOptions::default());
        match owner {
            1 => assert!(result.is_ok()),
            owner => assert_eq!(result, Err(ConnectError::Elsewhere(owner))),
        }
    }
}

#[test]
fn the_peers_port_alone_says_where_to_connect() {
    let mut host = server_with(2, Rule::Low12);
    let owner = steering(Rule::Low12).owner_of(443);
    assert_ne!(owner, 2);
    let connect = |host: &mut Host, remote: &str| {
        host.shard.connect(START, None, at(remote), SocketOptions::default())
    };
    assert_eq!(connect(&mut host, "198.18.0.9:443"), Err(ConnectError::Elsewhere(owner)));
    let ours = (1..4096).find(|port| steering(Rule::Low12).owner_of(*port) == 2).unwrap();
    assert!(connect(&mut host, &format!("198.18.0.9:{ours}")).is_ok());
}

#[test]
fn strays_are_neither_answered_nor_admitted() {
    let mut host = server(1);
    let _ = host.exchange(START, &arp(true, [198, 18, 0, 9], [198, 18, 0, 1]));
    let _: SocketId = host.shard.listen(at("0.0.0.0:80"), ListenOptions::default()).unwrap();
    let steering = steering(Rule::Hash);
    let (mut ours, mut others) = (0, 0);
    for port in 5000..5100u16 {
        let remote = SocketAddr::new(ip("198.18.0.9"), port);
        let mut syn = vec![0; 20];
        write_u16(&mut syn, 0, port);
        write_u16(&mut syn, 2, 80);
        syn[12] = 0x50;
        syn[13] = 2;
        let frame = frame([2, 0, 0, 0, 0, 1], &packet("198.18.0.9", "198.18.0.1", 6, &syn));
        let meta = RxMeta { checksum_valid: true, segment_size: 0 };
        host.shard.handle_frame(START, &frame, meta, &mut host.memory);
        let answers = host.drain(START).len();
        match steering.owner_of_flow(at("198.18.0.1:80"), remote) {
            1 => {
                ours += 1;
                assert_eq!(answers, 1);
            }
            _ => {
                others += 1;
                assert_eq!(answers, 0);
            }
        }
    }
    assert!(ours > 5 && others > 5);
    assert_eq!(host.dropped(DropReason::TcpElsewhere), others);
    let stray = frame([2, 0, 0, 0, 0, 1], &datagram(5, port_of(2), 3));
    assert!(host.exchange(START, &stray).is_empty());
    assert_eq!(host.dropped(DropReason::UdpElsewhere), 1);
}

#[test]
fn what_was_put_together_goes_to_its_owner() {
    let (mut one, mut other) = (server(1), server(2));
    let port = port_of(2);
    let id = other.open(&format!("0.0.0.0:{port}"));
    let whole = datagram(5, port, 3000);
    for (offset, end, more) in [(0, 1480, true), (1480, 2960, true), (2960, 3008, false)] {
        let mut part = packet("198.18.0.9", "198.18.0.1", UDP, &whole[20 + offset..20 + end]);
        write_u16(&mut part, 6, (offset as u16 / 8) | (u16::from(more) << 13));
        write_u16(&mut part, 10, 0);
        let sum = part[..20].chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])));
        let sum: u32 = sum.sum();
        write_u16(&mut part, 10, !((sum & 0xffff) + (sum >> 16)) as u16);
        assert!(one.exchange(START, &frame([2, 0, 0, 0, 0, 1], &part)).is_empty());
    }
    let forward = one.shard.poll_forward().expect("a packet for server 2");
    assert_eq!((forward.to, forward.kind), (2, ForwardKind::Reassembled));
    assert!(one.shard.poll_forward().is_none());
    other.shard.handle_forwarded(START, forward.kind, &forward.packet, &mut other.memory);
    assert!(other.drain(START).is_empty());
    let got = other.take_datagrams(id);
    assert_eq!((got.len(), got[0].1.len()), (1, 3000));
    assert_eq!(other.count(Counter::PacketsTakenOver), 1);
    assert_eq!(one.count(Counter::PacketsForwarded), 1);
    one.shard.recycle(forward.packet);
}

#[test]
fn datagrams_to_ourselves_reach_the_home_of_their_port() {
    let (mut one, mut other) = (server(1), server(3));
    let port = port_of(3);
    let receiver = other.open(&format!("0.0.0.0:{port}"));
    let sender = one.open("0.0.0.0:0");
    one.send_to(START, sender, &format!("198.18.0.1:{port}"), b"near").unwrap();
    assert!(one.drain(START).is_empty());
    let forward = one.shard.poll_forward().expect("a packet");
    assert_eq!((forward.to, forward.kind), (3, ForwardKind::Own));
    other.shard.handle_forwarded(START, forward.kind, &forward.packet, &mut other.memory);
    let _ = other.drain(START);
    assert_eq!(other.take_datagrams(receiver)[0].1, b"near");
    // Nobody takes them over: they do not pile up for ever.
    for _ in 0..2000 {
        let _: Result<(), SendError> =
            one.send_to(START, sender, &format!("198.18.0.1:{port}"), b"more");
    }
    assert_eq!(one.count(Counter::ForwardsDropped), 2000 - 1024);
}

#[test]
fn the_speaker_reports_the_groups_of_all() {
    let (mut speaker, mut other) = (server(0), server(2));
    let group = ip("239.1.2.3");
    let id = other.open(&format!("0.0.0.0:{}", port_of(2)));
    other.shard.join_group(START, id, group, ip("0.0.0.0")).unwrap();
    assert!(other.drain(START).is_empty(), "a server that is not the speaker reports nothing");
    let groups = other.shard.poll_memberships().expect("news");
    assert_eq!(groups, [group]);
    assert_eq!(other.shard.poll_memberships(), None);
    speaker.shard.set_memberships(START, 2, &groups);
    assert_eq!(speaker.drain(START).len(), 1, "a report");
    speaker.shard.set_memberships(START, 2, &groups);
    assert!(speaker.drain(START).is_empty(), "nothing new");
    other.shard.leave_group(START, id, group, ip("0.0.0.0")).unwrap();
    speaker.shard.set_memberships(START, 2, &other.shard.poll_memberships().expect("news"));
    assert_eq!(speaker.drain(START).len(), 1, "a leave message");
    let many: Vec<_> = (0..2000u16)
        .map(|at| std::net::IpAddr::from([239, 2, (at >> 8) as u8, at as u8]))
        .collect();
    speaker.shard.set_memberships(START, 3, &many);
    assert_eq!(speaker.count(Counter::GroupsRefused), 2000 - 256 * u64::from(SERVERS));
}

#[test]
fn what_the_speaker_learns_the_others_follow() {
    let steered = |server| Some(Steered { server, steering: steering(Rule::Hash) });
    let bare =
        |server| ShardConfig { addresses: Vec::new(), steered: steered(server), ..config(1) };
    let (mut speaker, mut other) = (Host::new(bare(0)), Host::new(bare(1)));
    speaker.shard.start_slaac(START);
    let mut now = START;
    for _ in 0..40 {
        now = now.plus_us(100_000);
        speaker.shard.handle_timers(now, &mut speaker.memory);
        let _ = speaker.drain(now);
    }
    let update = speaker.shard.poll_network_update().expect("a link-local address");
    let update = NetworkUpdate::decode(&update.encode()).expect("a whole update");
    other.shard.adopt_network_update(now, &update);
    let addresses = |host: &Host| -> Vec<_> {
        let used = host.shard.addresses().filter(|one| one.state == AddressState::Preferred);
        used.map(|one| one.cidr).collect()
    };
    assert_eq!(addresses(&speaker), addresses(&other));
    assert_eq!(addresses(&other).len(), 1);
    assert_eq!(other.shard.poll_network_update(), None, "only the speaker tells");
}

#[test]
fn who_has_given_every_bucket_away_sends_connections_to_others() {
    let mut host = server(0);
    let options = SocketOptions::default();
    for bucket in 0..crate::steering::BUCKETS as u16 {
        if steering(Rule::Hash).owner_of_flows(bucket) == 0 {
            assert!(
                host.shard.connect(START, None, at("198.18.0.9:1"), options).is_ok(),
                "{bucket}"
            );
            assert!(host.shard.note_move(bucket, 1, 1 + bucket % 3));
        }
    }
    let mut owners = std::collections::BTreeSet::new();
    for port in 2..200 {
        let remote = at(&format!("198.18.0.9:{port}"));
        match host.shard.connect(START, None, remote, options) {
            Err(ConnectError::Elsewhere(owner)) => owners.insert(owner),
            other => panic!("{other:?} for {remote}"),
        };
    }
    assert_eq!(owners, (1..SERVERS).collect(), "all of the others");
}

#[test]
fn who_is_out_of_ports_for_few_buckets_sends_connections_to_whoever_has_most() {
    let mut host = server(0);
    let (options, remote) = (SocketOptions::default(), at("198.18.0.9:1"));
    let ours = |bucket: &u16| steering(Rule::Hash).owner_of_flows(*bucket) == 0;
    let (mine, others): (Vec<u16>, Vec<u16>) =
        (0..crate::steering::BUCKETS as u16).partition(|bucket| ours(bucket));
    // Three of its buckets stay, and of the others' server 2 has most.
    for bucket in &mine[3..] {
        assert!(host.shard.note_move(*bucket, 1, 1));
    }
    for bucket in &others {
        assert!(host.shard.note_move(*bucket, 1, if bucket % 8 == 0 { 3 } else { 2 }));
    }
    let mut connected = 0;
    let refused = loop {
        match host.shard.connect(START, None, remote, options) {
            Ok(_) => connected += 1,
            Err(error) => break error,
        }
    };
    assert!((1..100).contains(&connected), "{connected} ports of three buckets");
    assert_eq!(refused, ConnectError::Elsewhere(2));
    // Whoever has most has the last word.
    let mut alone = server(0);
    for bucket in others.iter().filter(|bucket| *bucket % 2 == 0) {
        assert!(alone.shard.note_move(*bucket, 1, 0));
    }
    let refused = loop {
        match alone.shard.connect(START, None, remote, options) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(refused, ConnectError::NoPortLeft);
}
