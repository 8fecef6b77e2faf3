//! UDP between two shards, and with hand-made packets: delivery, sizes, errors, options.

use super::harness::*;
use crate::*;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn exchange(local: &str, remote: &str, len: usize) -> (Pair, SocketId, SocketId) {
    let mut pair = Pair::new();
    let client = pair.hosts[0].open(local);
    let server = pair.hosts[1].open(remote);
    let now = pair.now;
    pair.hosts[0].send_to(now, client, remote, &pattern(len)).expect("sent");
    pair.run(1_000_000);
    (pair, client, server)
}

#[test]
fn datagrams_of_all_sizes_arrive_as_they_were() {
    let v4 = ("198.18.0.1:5000", "198.18.0.2:6000", 65_507);
    let v6 = ("[2001:db8::1]:5000", "[2001:db8::2]:6000", 65_527);
    for (local, remote, largest) in [v4, v6] {
        for len in [0, 1, 2, 100, 1451, 1452, 1453, 1472, 1473, 9000, largest] {
            let (mut pair, _, server) = exchange(local, remote, len);
            let got = pair.hosts[1].take_datagrams(server);
            assert_eq!(got.len(), 1, "{remote} {len}");
            assert_eq!(got[0].1, pattern(len), "{remote} {len}");
            assert_eq!((got[0].0.remote, got[0].0.local), (at(local), at(remote)));
            assert_eq!(got[0].0.hop_limit, 64);
        }
        let (mut pair, client, _) = exchange(local, remote, 0);
        let now = pair.now;
        let error = pair.hosts[0].send_to(now, client, remote, &pattern(largest + 1));
        assert_eq!(error, Err(SendError::MessageTooLong { mtu: 1500 }));
    }
}

#[test]
fn an_answer_comes_back_to_a_wildcard_socket_of_the_other_family() {
    let mut pair = Pair::new();
    let client = pair.hosts[0].open("0.0.0.0:0");
    let server = pair.hosts[1].open("[::]:53");
    let port = pair.hosts[0].shard.local_address(client).expect("open").port();
    assert!((32_768..=60_999).contains(&port));
    let now = pair.now;
    pair.hosts[0].send_to(now, client, "198.18.0.2:53", b"question").expect("sent");
    pair.run(1_000_000);
    let (question, _) = pair.hosts[1].take_datagrams(server).remove(0);
    assert_eq!(question.remote.port(), port);
    let now = pair.now;
    let answer = SendTo {
        remote: Some(question.remote),
        source: Some(question.local.ip()),
        type_of_service: Some(0xb8),
        hop_limit: Some(7),
        segment_size: 0,
    };
    pair.hosts[1].shard.send_datagram(now, server, &answer, b"answer").expect("sent");
    pair.run(1_000_000);
    let (answer, payload) = pair.hosts[0].take_datagrams(client).remove(0);
    assert_eq!((answer.type_of_service, answer.hop_limit, &payload[..]), (0xb8, 7, &b"answer"[..]));
}

#[test]
fn a_connected_socket_hears_its_peer_alone() {
    let mut pair = Pair::new();
    let client = pair.hosts[0].open("0.0.0.0:5000");
    let (peer, other) = (pair.hosts[1].open("0.0.0.0:53"), pair.hosts[1].open("0.0.0.0:54"));
    let connected = pair.hosts[0].shard.connect_datagram(client, Some(at("198.18.0.2:53")));
    assert_eq!(connected, Ok(()));
    assert_eq!(pair.hosts[0].shard.local_address(client), Some(at("198.18.0.1:5000")));
    for socket in [peer, other] {
        let now = pair.now;
        pair.hosts[1].send_to(now, socket, "198.18.0.1:5000", b"hello").expect("sent");
        pair.run(1_000_000);
    }
    let got = pair.hosts[0].take_datagrams(client);
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].0.remote, at("198.18.0.2:53"));
    assert_eq!(pair.hosts[0].dropped(DropReason::UdpNoPort), 1);
    let now = pair.now;
    pair.hosts[0].shard.send_datagram(now, client, &SendTo::default(), b"x").expect("sent");
    assert_eq!(pair.hosts[0].shard.connect_datagram(client, None), Ok(()));
    assert_eq!(pair.hosts[0].shard.local_address(client), Some(at("0.0.0.0:5000")));
    let lost = pair.hosts[0].shard.send_datagram(now, client, &SendTo::default(), b"x");
    assert_eq!(lost, Err(SendError::NotConnected));
}

#[test]
fn a_refused_datagram_is_told_to_whom_it_concerns() {
    for (remote, kind) in [("198.18.0.2:9", 3), ("[2001:db8::2]:9", 1)] {
        let mut pair = Pair::new();
        let ids: Vec<SocketId> =
            (0..3).map(|n| pair.hosts[0].open(&format!("[::]:{}", 5000 + n))).collect();
        let connected = pair.hosts[0].shard.connect_datagram(ids[0], Some(at(remote)));
        assert_eq!(connected, Ok(()));
        pair.hosts[0].shard.set_datagram_option(ids[1], DatagramOption::ReceiveErrors(true));
        for id in &ids {
            let now = pair.now;
            pair.hosts[0].send_to(now, *id, remote, &pattern(3000)).expect("sent");
            pair.run(1_000_000);
        }
        let code = if kind == 3 { 3 } else { 4 };
        let refused = |id| (id, SocketError::ConnectionRefused, kind, code, 0);
        let told = pair.hosts[0].datagram_errors();
        assert_eq!(told, [refused(ids[0]), refused(ids[1])], "{remote}");
        assert_eq!(pair.hosts[0].count(Counter::UdpErrorsReported), 2);
        // The start of the datagram, for the one that asked.
        let quoted = pair.hosts[0].quoted_payloads();
        assert!(quoted[0].is_empty());
        assert!(!quoted[1].is_empty() && pattern(3000).starts_with(&quoted[1]), "{quoted:?}");
    }
}

#[test]
fn a_silent_neighbour_is_told_where_asked() {
    let mut pair = Pair::new();
    let (asks, silent) = (pair.hosts[0].open("0.0.0.0:0"), pair.hosts[0].open("0.0.0.0:0"));
    pair.hosts[0].shard.set_datagram_option(asks, DatagramOption::ReceiveErrors(true));
    for id in [asks, silent] {
        let now = pair.now;
        pair.hosts[0].send_to(now, id, "198.18.0.77:9", b"anybody?").expect("sent");
    }
    pair.run(10_000_000);
    let told = pair.hosts[0].datagram_errors();
    assert_eq!(told, [(asks, SocketError::HostUnreachable, 3, 1, 0)]);
}

#[test]
fn datagrams_to_ourselves_turn_round_inside() {
    for (local, to) in [("0.0.0.0:7", "198.18.0.1:7"), ("[::]:7", "[2001:db8::1]:7")] {
        let mut host = Host::new(config(1));
        let id = host.open(local);
        host.send_to(START, id, to, &pattern(60_000)).expect("sent");
        host.send_to(START, id, &to.replace(":7", ":8").replace("db8::8", "db8::1"), b"")
            .expect("sent");
        assert!(host.drain(START).is_empty());
        let got = host.take_datagrams(id);
        assert_eq!((got.len(), got[0].1.len()), (1, 60_000));
        assert_eq!(got[0].0.remote, at(to));
        assert_eq!(host.dropped(DropReason::UdpNoPort), 1);
    }
}

#[test]
fn broadcasts_need_permission_and_reach_every_listener() {
    let mut pair = Pair::new();
    let sender = pair.hosts[0].open("0.0.0.0:67");
    let shared = DatagramOptions { reuse_address: true, ..DatagramOptions::default() };
    let mut open =
        |local: &str| pair.hosts[1].shard.open_datagram(at(local), shared).expect("open");
    let listeners = [open("0.0.0.0:68"), open("198.18.0.255:68"), open("[::]:68")];
    let _elsewhere = open("198.18.0.2:68");
    let now = pair.now;
    let refused = pair.hosts[0].send_to(now, sender, "198.18.0.255:68", b"all");
    assert_eq!(refused, Err(SendError::BroadcastRefused));
    let refused = pair.hosts[0].shard.connect_datagram(sender, Some(at("198.18.0.255:68")));
    assert_eq!(refused, Err(ConnectError::BroadcastRefused));
    pair.hosts[0].shard.set_datagram_option(sender, DatagramOption::Broadcast(true));
    pair.hosts[0].send_to(now, sender, "198.18.0.255:68", b"all").expect("sent");
    pair.run(1_000_000);
    for id in listeners {
        assert_eq!(pair.hosts[1].take_datagrams(id).len(), 1);
    }
    assert!(pair.hosts[1].memory.datagrams.is_empty());
    assert_eq!(pair.hosts[1].count(Counter::UdpDatagramsDelivered), 3);
    assert_eq!(pair.hosts[0].dropped(DropReason::UdpNoPort), 1, "its own copy");
}

#[test]
fn one_call_can_be_cut_into_many_datagrams() {
    let (mut pair, client, server) = exchange("0.0.0.0:5000", "198.18.0.2:6000", 1);
    let _ = pair.hosts[1].take_datagrams(server);
    let to =
        SendTo { remote: Some(at("198.18.0.2:6000")), segment_size: 1000, ..SendTo::default() };
    let now = pair.now;
    pair.hosts[0].shard.send_datagram(now, client, &to, &pattern(20_500)).expect("sent");
    pair.run(1_000_000);
    let got = pair.hosts[1].take_datagrams(server);
    let sizes: Vec<usize> = got.iter().map(|(_, payload)| payload.len()).collect();
    assert_eq!(sizes, [&[1000; 20][..], &[500]].concat());
    let whole: Vec<u8> = got.into_iter().flat_map(|(_, payload)| payload).collect();
    assert_eq!(whole, pattern(20_500));
    let mut refused = |segment_size, len| {
        let to = SendTo { segment_size, ..to };
        pair.hosts[0].shard.send_datagram(now, client, &to, &pattern(len))
    };
    assert_eq!(refused(1473, 2000), Err(SendError::BadSegmentSize));
    assert_eq!(refused(10, 1290), Err(SendError::BadSegmentSize));
}

#[test]
fn what_may_not_be_sent_is_refused() {
    let mut host = Host::new(config(1));
    let id = host.open("198.18.0.1:0");
    let narrow = host.open("[2001:db8::1]:0");
    let mut send = |id, to: &str| host.send_to(START, id, to, b"x");
    assert_eq!(send(id, "198.18.0.2:0"), Err(SendError::BadRemote));
    assert_eq!(send(id, "0.0.0.0:5"), Err(SendError::BadRemote));
    assert_eq!(send(id, "8.8.8.8:5"), Err(SendError::NoRoute));
    assert_eq!(send(id, "[2001:db8::2]:5"), Err(SendError::FamilyMismatch));
    assert_eq!(send(narrow, "198.18.0.2:5"), Err(SendError::FamilyMismatch));
    assert_eq!(send(SocketId::new(9, 9), "198.18.0.2:5"), Err(SendError::NoSocket));
    let strange = SendTo {
        remote: Some(at("198.18.0.2:5")),
        source: Some(ip("198.18.0.3")),
        ..SendTo::default()
    };
    let refused = host.shard.send_datagram(START, id, &strange, b"x");
    assert_eq!(refused, Err(SendError::AddressNotOurs));
    let elsewhere = host.shard.open_datagram(at("198.18.0.3:5"), DatagramOptions::default());
    assert_eq!(elsewhere, Err(ListenError::AddressNotAvailable));
    assert_eq!(host.count(Counter::UdpSendRefused), 7);
    assert_eq!(host.count(Counter::UdpDatagramsSent), 0);
}

#[test]
fn a_full_queue_makes_its_sender_wait_and_no_other() {
    let mut host = Host::new(config(1));
    let (greedy, modest) = (host.open("0.0.0.0:0"), host.open("0.0.0.0:0"));
    let mut sent = 0;
    while host.send_to(START, greedy, "198.18.0.2:9", &pattern(1000)).is_ok() {
        sent += 1;
        assert!(sent < 1000, "no end of room");
    }
    assert!(sent > 100);
    let busy = host.send_to(START, greedy, "198.18.0.2:9", &pattern(1000));
    assert_eq!(busy, Err(SendError::Busy));
    assert_eq!(host.send_to(START, modest, "198.18.0.2:9", b"x"), Ok(()));
    let _ = host.drain(START);
    assert_eq!(host.send_to(START, greedy, "198.18.0.2:9", b"x"), Ok(()));
    let queued =
        |host: &Host| host.shard.sockets().find(|s| s.id == Some(greedy)).map(|s| s.send_queue);
    assert_eq!(queued(&host), Some(29));
    let _ = host.drain(START);
    assert_eq!(queued(&host), Some(0));
}

#[test]
fn what_finds_no_memory_is_counted() {
    let (mut pair, client, server) = exchange("0.0.0.0:5000", "198.18.0.2:6000", 1);
    pair.hosts[1].memory.full = true;
    let now = pair.now;
    pair.hosts[0].send_to(now, client, "198.18.0.2:6000", b"too much").expect("sent");
    pair.run(1_000_000);
    assert_eq!(pair.hosts[1].take_datagrams(server).len(), 1);
    assert_eq!(pair.hosts[1].dropped(DropReason::UdpReceiveFull), 1);
    assert_eq!(pair.hosts[1].count(Counter::UdpReceiveDropped), 1);
    assert_eq!(pair.hosts[0].datagram_errors(), []);
}

/// A router's message that a datagram of ours was too large.
fn too_big(quote: &[u8], mtu: u16) -> Vec<u8> {
    let v6 = quote[0] >> 4 == 6;
    let mut message = vec![if v6 { 2 } else { 3 }, if v6 { 0 } else { 4 }, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(&quote[..quote.len().min(200)]);
    let (from, to, protocol) = match v6 {
        true => ("2001:db8::9", "2001:db8::1", 58),
        false => ("198.18.0.9", "198.18.0.1", 1),
    };
    let sum = match v6 {
        true => crate::shard::headers::transport_checksum(ip(from), ip(to), 58, &message),
        false => !smoltcp::wire::checksum::data(&message),
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    frame([2, 0, 0, 0, 0, 1], &packet(from, to, protocol, &message))
}

#[test]
fn a_smaller_path_is_learned_and_obeyed() {
    for (remote, header) in [("198.18.0.2:6000", 20), ("[2001:db8::2]:6000", 40)] {
        let (mut pair, _, server) = exchange("[::]:4000", remote, 100);
        let _ = pair.hosts[1].take_datagrams(server);
        let now = pair.now;
        let options = |dont_fragment| DatagramOptions { dont_fragment, ..Default::default() };
        let mut open = |mode| {
            let shard = &mut pair.hosts[0].shard;
            shard.open_datagram(at("[::]:0"), options(mode)).expect("open")
        };
        let (want, exact, probe) = (open(PathMtu::Want), open(PathMtu::Do), open(PathMtu::Probe));
        let connected = pair.hosts[0].shard.connect_datagram(exact, Some(at(remote)));
        assert_eq!(connected, Ok(()));
        pair.hosts[0].send_to(now, exact, remote, &pattern(1400)).expect("sent");
        let sent = pair.hosts[0].drain(now);
        if header == 20 {
            assert_eq!(sent[0][20] & 0x40, 0x40, "don't fragment");
        }
        let _ = pair.hosts[0].exchange(now, &too_big(&sent[0][14..], 1300));
        assert_eq!(pair.hosts[0].shard.path_mtu(at(remote).ip()), 1300);
        let (kind, code) = if header == 20 { (3, 4) } else { (2, 0) };
        let told = pair.hosts[0].datagram_errors();
        assert_eq!(told, [(exact, SocketError::MessageTooLong, kind, code, 1300)]);
        let refused = pair.hosts[0].send_to(now, exact, remote, &pattern(1400));
        assert_eq!(refused, Err(SendError::MessageTooLong { mtu: 1300 }));
        pair.hosts[0].send_to(now, want, remote, &pattern(1400)).expect("in fragments");
        let cut = pair.hosts[0].drain(now);
        assert_eq!(cut.len(), 2);
        assert!(cut.iter().all(|frame| frame.len() <= 1314));
        for frame in &cut {
            let _ = pair.hosts[1].exchange(now, frame);
        }
        assert_eq!(pair.hosts[1].take_datagrams(server)[0].1, pattern(1400));
        pair.hosts[0].send_to(now, probe, remote, &pattern(1400)).expect("sent");
        assert_eq!(pair.hosts[0].drain(now).len(), 1);
        let later = now.plus_us(601_000_000);
        assert_eq!(pair.hosts[0].send_to(later, exact, remote, &pattern(1400)), Ok(()));
    }
}

#[test]
fn an_error_that_quotes_no_socket_changes_nothing() {
    let mut host = Host::new(config(1));
    let _ = host.open("0.0.0.0:5000");
    let mut quote = packet("198.18.0.1", "198.18.0.2", 17, &[0x13, 0x89, 0, 9, 0, 8, 0, 0]);
    let _ = host.exchange(START, &too_big(&quote, 600));
    assert_eq!(host.dropped(DropReason::IcmpErrorUnmatched), 1);
    assert_eq!(host.shard.path_mtu(ip("198.18.0.2")), 1500);
    quote[21] = 0x88;
    let _ = host.exchange(START, &too_big(&quote, 600));
    assert_eq!(host.shard.path_mtu(ip("198.18.0.2")), 600);
}

#[test]
fn datagrams_and_connections_share_the_wire() {
    let mut pair = Pair::new();
    let (client, _, _) = pair.connect("198.18.0.2:80");
    let id = pair.hosts[0].open("0.0.0.0:0");
    let now = pair.now;
    pair.hosts[0].send(now, client, &[7; 14_000]);
    for _ in 0..10 {
        pair.hosts[0].send_to(now, id, "198.18.0.2:9", &pattern(500)).expect("sent");
    }
    let frames = pair.hosts[0].drain(now);
    let kinds: Vec<u8> = frames.iter().take(10).map(|frame| frame[23]).collect();
    assert_eq!(kinds, [17, 6, 17, 6, 17, 6, 17, 6, 17, 6]);
}

#[test]
fn sockets_come_and_go() {
    let mut host = Host::new(config(1));
    let before = host.shard.connection_count();
    let first = host.open("0.0.0.0:53");
    let second = host.shard.open_datagram(at("198.18.0.1:53"), DatagramOptions::default());
    assert_eq!(second, Err(ListenError::AddressInUse));
    assert_eq!(host.shard.connection_count(), before);
    assert_eq!(host.shard.datagram_socket_count(), 1);
    host.shard.close(START, first, Close::Graceful);
    assert_eq!(host.shard.datagram_socket_count(), 0);
    assert_eq!(host.shard.poll_event(), None);
    let _ = host.open("198.18.0.1:53");
    let listener = host.shard.listen(at("0.0.0.0:53"), ListenOptions::default());
    assert!(listener.is_ok(), "TCP has ports of its own");
}

#[test]
fn a_checksum_that_the_link_finishes_is_the_one_of_ours() {
    let frames = |offloads: Offloads, remote: &str, len: usize| {
        let mut host = Host::new(ShardConfig { offloads, ..config(1) });
        let local = if remote.starts_with('[') { "[2001:db8::1]:5000" } else { "198.18.0.1:5000" };
        let socket = host.open(local);
        // What comes with the start of a shard goes first.
        host.drain(START);
        host.send_to(START, socket, remote, &pattern(len)).expect("sent");
        let mut frames = Vec::new();
        let mut out = vec![0; 1514];
        while let Some(meta) = host.shard.poll_transmit(START, &mut out, &mut host.memory) {
            let mut frame = out[..meta.len].to_vec();
            if let Some(PartialChecksum { start, offset }) = meta.checksum {
                let (start, at) = (usize::from(start), usize::from(start + offset));
                let pairs = frame[start..].chunks(2);
                let mut sum: u32 =
                    pairs.map(|p| u32::from(p[0]) << 8 | u32::from(*p.get(1).unwrap_or(&0))).sum();
                while sum > 0xffff {
                    sum = (sum & 0xffff) + (sum >> 16);
                }
                let sum = if sum == 0xffff { sum } else { !sum & 0xffff };
                frame[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
            }
            frames.push((frame, meta.checksum.is_some()));
        }
        frames
    };
    let link = Offloads { tx_checksum: true, ..Offloads::default() };
    for remote in ["239.1.2.3:9", "[ff05::7]:9"] {
        for len in [0, 1, 2, 1000, 1452, 4000] {
            let (ours, its) = (frames(Offloads::default(), remote, len), frames(link, remote, len));
            let bytes = |list: &[(Vec<u8>, bool)]| -> Vec<Vec<u8>> {
                list.iter().map(|(frame, _)| frame.clone()).collect()
            };
            assert_eq!(bytes(&ours), bytes(&its), "{remote} {len}");
            assert!(!ours.is_empty() && ours.iter().all(|(_, left)| !left));
            let whole = its.len() == 1;
            assert!(its.iter().all(|(_, left)| *left == whole), "fragments cannot be finished");
        }
    }
}
