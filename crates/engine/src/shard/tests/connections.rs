//! Two shards on a wire: opening, transfer, every way to close, refusal, backlog, TIME-WAIT.

use super::harness::*;
use crate::tcp::Segment;
use crate::*;

const V4: &str = "198.18.0.2:80";
const V6: &str = "[2001:db8::2]:80";
const SECOND_US: u64 = 1_000_000;

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Sends `data` from one host in portions that fit its send buffer, until the other has it.
pub fn transfer(pair: &mut Pair, from: usize, ids: (SocketId, SocketId), data: &[u8]) {
    let (sender, receiver) = ids;
    let start = pair.hosts[1 - from].memory.received.get(&receiver).map_or(0, Vec::len);
    let mut given = 0;
    for _ in 0..10_000 {
        let host = &mut pair.hosts[from];
        let acked = host.progress(sender).tx_acked as usize;
        let written = host.memory.sent.get(&sender).map_or(0, Vec::len);
        let room = 65_536_usize.saturating_sub(written - acked);
        let portion = &data[given..data.len().min(given + room)];
        if !portion.is_empty() {
            given += portion.len();
            let now = pair.now;
            pair.hosts[from].send(now, sender, portion);
        }
        pair.run(5_000);
        let received = pair.hosts[1 - from].progress(receiver).rx_end as usize;
        if received == start + data.len() {
            let stream = &pair.hosts[1 - from].memory.received[&receiver];
            assert_eq!(stream[start..], *data);
            return;
        }
    }
    panic!("the transfer does not end");
}

fn close_in_order(to: &str) {
    let mut pair = Pair::new();
    let (client, server, _) = pair.connect(to);
    transfer(&mut pair, 0, (client, server), &pattern(300_000));
    transfer(&mut pair, 1, (server, client), &pattern(200_000));
    let now = pair.now;
    pair.hosts[0].shard.close(now, client, Close::Graceful);
    pair.run(100_000);
    assert!(pair.hosts[1].progress(server).rx_fin);
    assert!(!pair.hosts[1].progress(server).finished);
    let now = pair.now;
    pair.hosts[1].shard.close(now, server, Close::Graceful);
    pair.run(100_000);
    assert!(pair.hosts[0].released(client), "moved to TIME-WAIT");
    assert!(pair.hosts[1].released(server));
    assert_eq!(pair.hosts[0].count(Counter::TcpTimeWaitEntered), 1);
    let states: Vec<SocketState> = pair.hosts[0].shard.sockets().map(|s| s.state).collect();
    assert_eq!(states, [SocketState::Tcp(State::TimeWait)]);
    assert_eq!(pair.hosts[1].shard.connection_count(), 0);
    assert!(pair.hosts.iter().all(|host| host.shard.is_quiet()));
    pair.run(70 * SECOND_US);
    assert_eq!(pair.hosts[0].shard.sockets().count(), 0);
    assert_eq!(pair.hosts[0].shard.poll_timeout(), None);
}

#[test]
fn a_connection_opens_carries_and_closes_over_ipv4() {
    close_in_order(V4);
}

#[test]
fn a_connection_opens_carries_and_closes_over_ipv6() {
    close_in_order(V6);
}

#[test]
fn events_come_in_order() {
    let mut pair = Pair::new();
    let (client, server, listener) = pair.connect(V4);
    let accepted = pair.hosts[1].events.iter().position(|event| {
        matches!(event, Event::Accepted { listener: l, id, local, remote }
            if *l == listener && *id == server && *local == at(V4)
            && remote.ip() == ip("198.18.0.1"))
    });
    let progress = pair.hosts[1]
        .events
        .iter()
        .position(|event| matches!(event, Event::Progress { id, .. } if *id == server));
    assert!(accepted.expect("accepted") < progress.expect("progress"));
    let local = pair.hosts[0].shard.local_address(client).expect("local address");
    assert_eq!(Some(local), pair.hosts[1].shard.remote_address(server));
    assert_eq!(pair.hosts[0].shard.remote_address(client), Some(at(V4)));
    assert!((32_768..61_000).contains(&local.port()));
    let info = pair.hosts[0].shard.tcp_info(client).expect("info");
    assert_eq!(info.state, State::Established);
}

#[test]
fn both_sides_may_close_at_once() {
    for to in [V4, V6] {
        let mut pair = Pair::new();
        let (client, server, _) = pair.connect(to);
        let now = pair.now;
        pair.hosts[0].shard.close(now, client, Close::Graceful);
        pair.hosts[1].shard.close(now, server, Close::Graceful);
        pair.run(SECOND_US);
        assert!(pair.hosts[0].released(client) && pair.hosts[1].released(server));
        for host in &pair.hosts {
            assert_eq!(host.count(Counter::TcpTimeWaitEntered), 1, "{to}");
            assert_eq!(host.shard.connection_count(), 0);
        }
    }
}

#[test]
fn a_half_closed_connection_still_carries_the_other_way() {
    let mut pair = Pair::new();
    let (client, server, _) = pair.connect(V4);
    let now = pair.now;
    pair.hosts[0].shard.shutdown_send(now, client);
    pair.run(50_000);
    assert!(pair.hosts[1].progress(server).rx_fin);
    transfer(&mut pair, 1, (server, client), &pattern(100_000));
    let now = pair.now;
    pair.hosts[1].shard.shutdown_send(now, server);
    pair.run(SECOND_US);
    assert!(pair.hosts[0].progress(client).finished && pair.hosts[1].progress(server).finished);
    assert!(!pair.hosts[0].released(client), "the owner has not closed it");
    let now = pair.now;
    pair.hosts[0].shard.receive_consumed(now, client, 100_000);
    pair.hosts[0].shard.close(now, client, Close::Graceful);
    pair.hosts[1].shard.close(now, server, Close::Graceful);
    pair.run(1_000);
    assert!(pair.hosts[0].released(client) && pair.hosts[1].released(server));
}

#[test]
fn a_port_without_listener_refuses() {
    for to in [V4, V6] {
        let mut pair = Pair::new();
        let now = pair.now;
        let options = SocketOptions::default();
        let client = pair.hosts[0].shard.connect(now, None, at(to), options).expect("connect");
        pair.run(10_000);
        let progress = pair.hosts[0].progress(client);
        assert_eq!(progress.error, Some(SocketError::ConnectionRefused));
        assert!(progress.finished && !progress.connected);
        assert_eq!(pair.hosts[1].count(Counter::TcpResetsSent), 1);
        assert_eq!(pair.hosts[1].dropped(DropReason::TcpNoFlow), 1);
        assert!(!pair.hosts[0].released(client));
        let now = pair.now;
        pair.hosts[0].shard.close(now, client, Close::Graceful);
        pair.run(1_000);
        assert!(pair.hosts[0].released(client));
        assert_eq!(pair.hosts[0].shard.connection_count(), 0);
    }
}

#[test]
fn an_abort_resets_the_peer() {
    let mut pair = Pair::new();
    let (client, server, _) = pair.connect(V4);
    let now = pair.now;
    pair.hosts[0].shard.close(now, client, Close::Abort);
    pair.run(10_000);
    assert!(pair.hosts[0].released(client));
    let progress = pair.hosts[1].progress(server);
    assert_eq!(progress.error, Some(SocketError::ConnectionReset));
    assert!(progress.finished);
    assert_eq!(pair.hosts[0].shard.sockets().count(), 0);
}

/// A server died, and another at its place knocks: whoever waits there hears that the connection is gone.
#[test]
fn a_knock_ends_a_connection_whose_server_has_died() {
    for to in [V4, V6] {
        let mut pair = Pair::new();
        let (client, server, _) = pair.connect(to);
        transfer(&mut pair, 0, (client, server), &pattern(10_000));
        let local = pair.hosts[0].shard.local_address(client).expect("an address");
        let now = pair.now;
        // While it lives it is asked nothing.
        assert_eq!(pair.hosts[1].shard.knock(now, at(to), local), Knocked::Needless);
        pair.hosts[1] = Host::new(config(2));
        pair.run(120 * SECOND_US);
        assert_eq!(pair.hosts[0].progress(client).error, None, "nobody has told it");
        let now = pair.now;
        assert_eq!(pair.hosts[1].shard.knock(now, at(to), local), Knocked::Sent);
        pair.run(100_000);
        assert_eq!(pair.hosts[0].progress(client).error, Some(SocketError::ConnectionReset));
        // And a peer that is gone as well says no more than that.
        let now = pair.now;
        pair.hosts[0].shard.close(now, client, Close::Graceful);
        assert_eq!(pair.hosts[1].shard.knock(now, at(to), local), Knocked::Sent);
        pair.run(100_000);
        assert_eq!(pair.hosts[1].dropped(DropReason::TcpNoFlowReset), 1);
        assert_eq!(pair.hosts[1].count(Counter::TcpKnocks), 2);
    }
}

#[test]
fn a_knock_does_a_living_connection_no_harm() {
    let mut pair = Pair::new();
    let (client, server, _) = pair.connect(V4);
    let local = pair.hosts[0].shard.local_address(client).expect("an address");
    // Another server of ours, which does not have the flow; the answers come to the one that has.
    let mut other = Host::new(config(2));
    for round in 0..20 {
        transfer(&mut pair, 0, (client, server), &pattern(20_000));
        let now = pair.now;
        assert_eq!(other.shard.knock(now, at(V4), local), Knocked::Sent);
        for question in other.drain(now) {
            let mac = pair.hosts[0].shard.mac;
            let question = [&mac[..], &question[6..]].concat();
            for answer in pair.hosts[0].exchange(now, &question) {
                assert_eq!(pair.hosts[1].exchange(now, &answer), [[0; 0]; 0], "{round}");
            }
        }
        transfer(&mut pair, 1, (server, client), &pattern(20_000));
    }
    assert!(pair.hosts.iter().all(|host| host.count(Counter::TcpResets) == 0));
}

/// Linux gives no answer to an acknowledgement that is old by its timestamp and by its number.
#[test]
fn a_knock_goes_by_the_clock_of_the_connection_that_it_asks_about() {
    for to in [V4, V6] {
        let mut pair = Pair::new();
        let (client, server, _) = pair.connect(to);
        transfer(&mut pair, 0, (client, server), &pattern(1000));
        let local = pair.hosts[0].shard.local_address(client).expect("an address");
        let (now, later) = (pair.now, pair.now.plus_us(7_000));
        pair.hosts[1].send(now, server, b"!");
        let last = timestamps_of(&pair.hosts[1].drain(now));
        let mut next = Host::new(config(2));
        assert_eq!(next.shard.knock(later, at(to), local), Knocked::Sent);
        // It has to find the neighbour first.
        let mut question = Vec::new();
        for asked in next.drain(later) {
            for answer in pair.hosts[0].exchange(later, &asked) {
                question.extend(timestamps_of(&next.exchange(later, &answer)));
            }
        }
        assert_eq!(question, [last[0].wrapping_add(7)]);
    }
}

/// TSval of all TCP segments.
fn timestamps_of(frames: &[Vec<u8>]) -> Vec<u32> {
    let value = |frame: &Vec<u8>| {
        let ip = frame.get(14..)?;
        let (protocol, len) = if ip[0] >> 4 == 4 { (ip[9], 20) } else { (ip[6], 40) };
        let segment = Segment::parse(ip.get(len..)?).ok().filter(|_| protocol == 6)?;
        segment.options.timestamps.map(|timestamps| timestamps.value)
    };
    frames.iter().filter_map(value).collect()
}

#[test]
fn nobody_is_asked_for_an_address_that_is_not_ours() {
    let mut host = Host::new(config(1));
    let (now, peer) = (Instant::default(), at("198.18.0.9:80"));
    assert_eq!(host.shard.knock(now, at("198.18.0.7:80"), peer), Knocked::Needless);
    let ours = at("198.18.0.1:80");
    while host.shard.knock(now, ours, peer) == Knocked::Sent {}
    assert_eq!(host.shard.knock(now, ours, peer), Knocked::NoRoom);
}

#[test]
fn a_full_backlog_holds_new_connections_off_until_one_is_claimed() {
    let mut pair = Pair::new();
    let options = ListenOptions { backlog: 1, ..ListenOptions::default() };
    let listener = pair.hosts[1].shard.listen(at(V4), options).expect("free port");
    let mut clients = Vec::new();
    for _ in 0..4 {
        let now = pair.now;
        let shard = &mut pair.hosts[0].shard;
        clients.push(shard.connect(now, None, at(V4), SocketOptions::default()).expect("connect"));
        pair.run(1_000);
    }
    assert_eq!(pair.hosts[1].accepted().len(), 2, "backlog plus one, as on Linux");
    assert!(pair.hosts[1].count(Counter::TcpListenOverflows) >= 2);
    assert!(pair.hosts[1].dropped(DropReason::TcpListenerFull) >= 2);
    let accepted = pair.hosts[1].accepted();
    for id in accepted {
        pair.hosts[1].shard.claimed(id);
    }
    pair.run(10 * SECOND_US);
    assert_eq!(pair.hosts[1].accepted().len(), 4);
    assert!(clients.iter().all(|id| pair.hosts[0].progress(*id).connected));
    let line = pair.hosts[1].shard.sockets().find(|line| line.id == Some(listener));
    assert_eq!(line.expect("listener").receive_queue, 2);
}

#[test]
fn a_listener_that_is_being_opened_neither_answers_nor_refuses() {
    let mut pair = Pair::new();
    let listener = pair.hosts[1].shard.listen(at(V4), ListenOptions::default()).expect("free port");
    pair.hosts[1].shard.set_opening(listener, true);
    let now = pair.now;
    let shard = &mut pair.hosts[0].shard;
    let client = shard.connect(now, None, at(V4), SocketOptions::default()).expect("connect");
    pair.run(100_000);
    assert_eq!(pair.hosts[1].dropped(DropReason::TcpListenerOpening), 1);
    assert_eq!(pair.hosts[0].progress(client).error, None);
    pair.hosts[1].shard.set_opening(listener, false);
    pair.run(5 * SECOND_US);
    assert!(pair.hosts[0].progress(client).connected);
    assert_eq!(pair.hosts[1].accepted().len(), 1);
}

#[test]
fn the_last_ack_waits_while_the_accept_queue_is_full() {
    let mut pair = Pair::new();
    let options = ListenOptions { backlog: 0, ..ListenOptions::default() };
    let _ = pair.hosts[1].shard.listen(at(V4), options).expect("free port");
    let now = pair.now;
    // Both SYNs arrive before either handshake is complete.
    for _ in 0..2 {
        let shard = &mut pair.hosts[0].shard;
        let _ = shard.connect(now, None, at(V4), SocketOptions::default()).expect("connect");
    }
    pair.run(500_000);
    assert_eq!(pair.hosts[1].accepted().len(), 1);
    assert!(pair.hosts[1].dropped(DropReason::TcpListenerFull) >= 1);
    let first = pair.hosts[1].accepted()[0];
    pair.hosts[1].shard.claimed(first);
    pair.run(10 * SECOND_US);
    assert_eq!(pair.hosts[1].accepted().len(), 2);
}

#[test]
fn closing_a_listener_resets_who_was_not_claimed() {
    let mut pair = Pair::new();
    let options = ListenOptions::default();
    let listener = pair.hosts[1].shard.listen(at(V4), options).expect("free port");
    let now = pair.now;
    let shard = &mut pair.hosts[0].shard;
    let client = shard.connect(now, None, at(V4), SocketOptions::default()).expect("connect");
    pair.run(1_000);
    let server = pair.hosts[1].accepted()[0];
    let now = pair.now;
    pair.hosts[1].shard.close(now, listener, Close::Graceful);
    pair.run(1_000);
    assert!(pair.hosts[1].released(server));
    assert_eq!(pair.hosts[0].progress(client).error, Some(SocketError::ConnectionReset));
    assert_eq!(pair.hosts[1].shard.sockets().count(), 0);
    assert!(pair.hosts[1].shard.listen(at(V4), options).is_ok());
}

#[test]
fn a_reset_connection_stays_in_the_accept_queue() {
    let mut pair = Pair::new();
    let _ = pair.hosts[1].shard.listen(at(V4), ListenOptions::default()).expect("free port");
    let now = pair.now;
    let shard = &mut pair.hosts[0].shard;
    let client = shard.connect(now, None, at(V4), SocketOptions::default()).expect("connect");
    pair.run(1_000);
    let now = pair.now;
    pair.hosts[0].shard.close(now, client, Close::Abort);
    pair.run(1_000);
    let server = pair.hosts[1].accepted()[0];
    assert!(!pair.hosts[1].released(server));
    assert_eq!(pair.hosts[1].progress(server).error, Some(SocketError::ConnectionReset));
    let now = pair.now;
    pair.hosts[1].shard.claimed(server);
    pair.hosts[1].shard.close(now, server, Close::Graceful);
    pair.run(1_000);
    assert!(pair.hosts[1].released(server));
}

/// Leaves a TIME-WAIT record on `keeper` for a flow whose client port is 40000.
fn with_time_wait(pair: &mut Pair, to: &str, keeper: usize) -> SocketId {
    let options = ListenOptions::default();
    let listener = pair.hosts[1].shard.listen(at(to), options).expect("free port");
    let (client, server) = from_port_40000(pair, to);
    let ids = [client, server];
    let now = pair.now;
    pair.hosts[keeper].shard.close(now, ids[keeper], Close::Graceful);
    pair.run(10_000);
    let now = pair.now;
    pair.hosts[1 - keeper].shard.close(now, ids[1 - keeper], Close::Graceful);
    pair.run(10_000);
    assert_eq!(pair.hosts[keeper].count(Counter::TcpTimeWaitEntered), 1);
    listener
}

fn from_port_40000(pair: &mut Pair, to: &str) -> (SocketId, SocketId) {
    let source = pair.hosts[0].shard.source_for(at(to).ip()).expect("source");
    let local = std::net::SocketAddr::new(source, 40_000);
    let now = pair.now;
    let shard = &mut pair.hosts[0].shard;
    let client =
        shard.connect(now, Some(local), at(to), SocketOptions::default()).expect("connect");
    pair.run(1_000);
    let server = *pair.hosts[1].accepted().last().expect("accepted");
    pair.hosts[1].shard.claimed(server);
    (client, server)
}

#[test]
fn a_newer_syn_takes_a_time_wait_record_over() {
    for to in [V4, V6] {
        let mut pair = Pair::new();
        let _ = with_time_wait(&mut pair, to, 1);
        pair.run(SECOND_US);
        let (client, server) = from_port_40000(&mut pair, to);
        assert!(pair.hosts[0].progress(client).connected, "{to}");
        assert_eq!(pair.hosts[1].count(Counter::TcpTimeWaitReused), 1);
        transfer(&mut pair, 0, (client, server), &pattern(50_000));
        let waiting = pair.hosts[1].shard.sockets().filter(|line| line.id.is_none()).count();
        assert_eq!(waiting, 0);
    }
}

#[test]
fn a_newer_syn_is_refused_once_nobody_listens() {
    let mut pair = Pair::new();
    let listener = with_time_wait(&mut pair, V4, 1);
    pair.run(SECOND_US);
    let now = pair.now;
    pair.hosts[1].shard.close(now, listener, Close::Graceful);
    let local = Some(at("198.18.0.1:40000"));
    let shard = &mut pair.hosts[0].shard;
    let client = shard.connect(now, local, at(V4), SocketOptions::default()).expect("connect");
    pair.run(1_000);
    let error = pair.hosts[0].progress(client).error;
    assert_eq!(error, Some(SocketError::ConnectionRefused));
}

#[test]
fn our_own_time_wait_record_gives_way_after_a_second() {
    let mut pair = Pair::new();
    let _ = with_time_wait(&mut pair, V4, 0);
    let local = Some(at("198.18.0.1:40000"));
    let now = pair.now;
    let shard = &mut pair.hosts[0].shard;
    let early = shard.connect(now, local, at(V4), SocketOptions::default());
    assert_eq!(early, Err(ConnectError::AddressInUse));
    pair.run(2 * SECOND_US);
    let (client, server) = from_port_40000(&mut pair, V4);
    transfer(&mut pair, 0, (client, server), &pattern(50_000));
    assert_eq!(pair.hosts[0].count(Counter::TcpTimeWaitReused), 1);
}

#[test]
fn time_wait_records_are_bounded() {
    let mut first = config(1);
    first.limits.time_wait = 2;
    let mut pair = Pair::with(first, config(2));
    let _ = pair.hosts[1].shard.listen(at(V4), ListenOptions::default()).expect("free port");
    for _ in 0..5 {
        let (client, server) = pair.connect_to(V4);
        let now = pair.now;
        pair.hosts[0].shard.close(now, client, Close::Graceful);
        pair.run(1_000);
        let now = pair.now;
        pair.hosts[1].shard.close(now, server, Close::Graceful);
        pair.run(1_000);
    }
    assert_eq!(pair.hosts[0].count(Counter::TcpTimeWaitEvicted), 3);
    assert_eq!(pair.hosts[0].shard.sockets().count(), 2);
}

#[test]
fn losses_are_repaired() {
    let mut pair = Pair::new();
    let (client, server, _) = pair.connect(V6);
    let mut count = 0_u32;
    pair.lose = Box::new(move |_, _| {
        count += 1;
        count.is_multiple_of(23)
    });
    transfer(&mut pair, 0, (client, server), &pattern(400_000));
    assert!(pair.hosts[0].shard.counters().tcp.retransmitted_segments > 0);
}

#[test]
fn a_flood_of_syns_leaves_the_half_open_connections_alone() {
    let mut second = config(2);
    second.limits.half_open = 4;
    let mut pair = Pair::with(config(1), second);
    let _ = pair.hosts[1].shard.listen(at(V4), ListenOptions::default()).expect("free port");
    pair.lose = Box::new(|receiver, frame| receiver == 0 && frame[12..14] == [8, 0]);
    let now = pair.now;
    for _ in 0..10 {
        let shard = &mut pair.hosts[0].shard;
        let _ = shard.connect(now, None, at(V4), SocketOptions::default()).expect("connect");
    }
    pair.run(10_000);
    assert_eq!(pair.hosts[1].shard.connection_count(), 4);
    assert_eq!(pair.hosts[1].count(Counter::TcpHalfOpenEvicted), 0);
    assert_eq!(pair.hosts[1].count(Counter::TcpCookiesSent), 6);
    assert!(pair.hosts[1].accepted().is_empty());
    pair.run(200 * SECOND_US);
    assert_eq!(pair.hosts[1].shard.connection_count(), 0, "SYN-ACKs are given up");
    assert!(pair.hosts[1].count(Counter::TcpHalfOpenTimeouts) >= 4);
}

#[test]
fn a_deferred_accept_waits_for_data() {
    let mut pair = Pair::new();
    let mut options = ListenOptions::default();
    options.template.set(SocketOption::DeferAccept(5));
    let _ = pair.hosts[1].shard.listen(at(V4), options).expect("free port");
    let now = pair.now;
    let shard = &mut pair.hosts[0].shard;
    let client = shard.connect(now, None, at(V4), SocketOptions::default()).expect("connect");
    pair.run(100_000);
    assert!(pair.hosts[0].progress(client).connected);
    assert!(pair.hosts[1].accepted().is_empty());
    assert!(pair.hosts[1].dropped(DropReason::TcpDeferred) >= 1);
    let now = pair.now;
    pair.hosts[0].send(now, client, b"GET");
    pair.run(100_000);
    let server = pair.hosts[1].accepted()[0];
    assert_eq!(pair.hosts[1].memory.received[&server], b"GET");
}

#[test]
fn listeners_that_share_a_port_share_the_connections() {
    let mut pair = Pair::new();
    let options = ListenOptions { reuse_port: true, ..ListenOptions::default() };
    let listeners: Vec<SocketId> = (0..2)
        .map(|_| pair.hosts[1].shard.listen(at("0.0.0.0:80"), options).expect("shared"))
        .collect();
    for _ in 0..32 {
        let now = pair.now;
        let shard = &mut pair.hosts[0].shard;
        let _ = shard.connect(now, None, at(V4), SocketOptions::default()).expect("connect");
    }
    pair.run(50_000);
    let share = |listener: SocketId| {
        let of =
            |event: &&Event| matches!(event, Event::Accepted { listener: l, .. } if *l == listener);
        pair.hosts[1].events.iter().filter(of).count()
    };
    assert_eq!(share(listeners[0]) + share(listeners[1]), 32);
    assert!(share(listeners[0]) > 4 && share(listeners[1]) > 4);
}

#[test]
fn an_ipv6_listener_takes_ipv4_too() {
    let mut pair = Pair::new();
    let _ = pair.hosts[1].shard.listen(at("[::]:80"), ListenOptions::default()).expect("free");
    let (_, server) = pair.connect_to(V4);
    assert_eq!(pair.hosts[1].shard.local_address(server), Some(at(V4)));
    let (_, server) = pair.connect_to(V6);
    assert_eq!(pair.hosts[1].shard.local_address(server), Some(at(V6)));
}

#[test]
fn a_shard_talks_to_itself_unseen() {
    for to in ["198.18.0.1:80", "[2001:db8::1]:80"] {
        let mut host = Host::new(config(1));
        let _ = host.shard.listen(at(to), ListenOptions::default()).expect("free port");
        let options = SocketOptions::default();
        let client = host.shard.connect(START, None, at(to), options).expect("connect");
        assert!(host.drain(START).is_empty());
        let server = host.accepted()[0];
        host.shard.claimed(server);
        let data = pattern(60_000);
        host.send(START, client, &data);
        let mut now = START;
        for _ in 0..1000 {
            assert!(host.drain(now).is_empty());
            if host.progress(server).rx_end == data.len() as u64 {
                break;
            }
            now = host.shard.poll_timeout().expect("something to wait for").max(now);
            host.shard.handle_timers(now, &mut host.memory);
        }
        assert_eq!(host.memory.received[&server], data);
        host.shard.close(now, client, Close::Graceful);
        host.shard.close(now, server, Close::Graceful);
        assert!(host.drain(now).is_empty());
        assert!(host.released(client) && host.released(server));
        let refused = host.shard.connect(now, None, at("198.18.0.1:81"), options).expect("connect");
        assert!(host.drain(now).is_empty());
        assert_eq!(host.progress(refused).error, Some(SocketError::ConnectionRefused));
        assert_eq!(host.count(Counter::FramesSent), 0);
    }
}

#[test]
fn connect_and_listen_refuse_the_impossible() {
    let mut host = Host::new(config(1));
    let options = SocketOptions::default();
    let mut connect = |local: Option<&str>, remote: &str| {
        host.shard.connect(START, local.map(at), at(remote), options).expect_err("impossible")
    };
    assert_eq!(connect(None, "198.18.0.2:0"), ConnectError::BadRemote);
    assert_eq!(connect(None, "198.18.0.255:80"), ConnectError::BadRemote);
    assert_eq!(connect(None, "224.0.0.1:80"), ConnectError::BadRemote);
    assert_eq!(connect(None, "[::]:80"), ConnectError::BadRemote);
    assert_eq!(connect(None, "8.8.8.8:80"), ConnectError::NetworkUnreachable);
    assert_eq!(connect(Some("[::]:0"), "198.18.0.2:80"), ConnectError::FamilyMismatch);
    let foreign = Some("10.0.0.1:0");
    assert_eq!(connect(foreign, "198.18.0.2:80"), ConnectError::AddressNotAvailable);
    let mut listen = |local: &str| host.shard.listen(at(local), ListenOptions::default());
    assert_eq!(listen("198.18.0.1:0"), Err(ListenError::NoPort));
    assert_eq!(listen("198.18.0.2:80"), Err(ListenError::AddressNotAvailable));
    assert!(listen("198.18.0.1:80").is_ok());
    assert_eq!(listen("0.0.0.0:80"), Err(ListenError::AddressInUse));
}

#[test]
fn sockets_are_limited() {
    let mut first = config(1);
    first.limits.connections = 2;
    first.limits.half_open = 2;
    let mut host = Host::new(first);
    let options = SocketOptions::default();
    for _ in 0..2 {
        assert!(host.shard.connect(START, None, at(V4), options).is_ok());
    }
    let third = host.shard.connect(START, None, at(V4), options);
    assert_eq!(third, Err(ConnectError::TooManySockets));
    let listener = host.shard.listen(at("198.18.0.1:80"), ListenOptions::default());
    assert_eq!(listener, Err(ListenError::TooManySockets));
}

#[test]
fn old_names_are_harmless() {
    let mut pair = Pair::new();
    let (client, server, listener) = pair.connect(V4);
    let now = pair.now;
    pair.hosts[0].shard.close(now, client, Close::Abort);
    let shard = &mut pair.hosts[0].shard;
    for id in [client, server, listener, SocketId::new(77, 0), SocketId::new(u32::MAX, 9)] {
        if shard.local_address(id).is_some() {
            continue;
        }
        shard.send_ready(now, id, 100);
        shard.receive_consumed(now, id, 100);
        shard.shutdown_send(now, id);
        shard.shutdown_receive(now, id);
        shard.set_option(now, id, SocketOption::NoDelay(true));
        shard.claimed(id);
        shard.set_backlog(id, 5);
        shard.close(now, id, Close::Graceful);
        assert_eq!(shard.tcp_info(id), None);
    }
    pair.run(10_000);
}

#[test]
fn a_late_segment_for_a_closed_flow_is_reset() {
    let mut pair = Pair::new();
    let (client, server, _) = pair.connect(V4);
    let now = pair.now;
    pair.hosts[1].shard.close(now, server, Close::Graceful);
    pair.hosts[0].send(now, client, b"late");
    pair.run(100_000);
    assert!(pair.hosts[0].progress(client).finished);
    // Its FIN had arrived before, so this is EPIPE and not ECONNRESET, as on Linux.
    assert_eq!(pair.hosts[0].progress(client).error, Some(SocketError::BrokenPipe));
    assert!(pair.hosts[1].released(server));
}

/// The source port of a TCP over IPv4 frame without options in its IP header.
fn source_port(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]])
}

#[test]
fn connections_send_in_turns() {
    let mut pair = Pair::new();
    let (first, _, _) = pair.connect(V4);
    let (second, _) = pair.connect_to(V4);
    // Opens both congestion windows.
    for id in [first, second] {
        for _ in 0..3 {
            let now = pair.now;
            pair.hosts[0].send(now, id, &pattern(100_000));
            pair.run(100_000);
        }
    }
    let now = pair.now;
    pair.hosts[0].send(now, first, &pattern(50_000));
    pair.hosts[0].send(now, second, &pattern(50_000));
    let frames = pair.hosts[0].drain(now);
    let port_of = |id| pair.hosts[0].shard.local_address(id).expect("address").port();
    let (first, second) = (port_of(first), port_of(second));
    let ports: Vec<u16> = frames.iter().map(|frame| source_port(frame)).collect();
    assert!(ports.len() > 40);
    let turn = limits::SEGMENTS_PER_TURN as usize;
    assert!(ports[..turn].iter().all(|port| *port == first));
    assert!(ports[turn..2 * turn].iter().all(|port| *port == second));
    assert_eq!(ports[2 * turn], first);
}

#[test]
fn one_call_takes_a_bounded_number_of_steps() {
    let mut host = Host::new(config(1));
    // Every connection to nobody takes a step and gives no frame.
    for _ in 0..1000 {
        let options = SocketOptions::default();
        let _ = host.shard.connect(START, None, at("198.18.0.77:80"), options).expect("connect");
    }
    let mut out = vec![0; 1514];
    assert!(host.shard.poll_transmit(START, &mut out, &mut host.memory).is_some(), "a request");
    let mut calls = 0;
    while host.shard.poll_transmit(START, &mut out, &mut host.memory).is_none() {
        calls += 1;
        if host.shard.poll_timeout() != Some(START) {
            break;
        }
    }
    assert!((2..20).contains(&calls), "{calls}");
}

#[test]
fn streams_that_are_not_read_close_the_window() {
    let mut pair = Pair::new();
    let (client, server, _) = pair.connect(V4);
    pair.hosts[1].lazy = true;
    for _ in 0..20 {
        let now = pair.now;
        pair.hosts[0].send(now, client, &pattern(100_000));
        pair.run(500_000);
    }
    let received = pair.hosts[1].progress(server).rx_end;
    assert!(received <= u64::from(limits::RECEIVE_BUFFER_MAX), "{received}");
    let now = pair.now;
    pair.hosts[1].shard.receive_consumed(now, server, received);
    pair.hosts[1].lazy = false;
    pair.run(30 * SECOND_US);
    assert!(pair.hosts[1].progress(server).rx_end > received);
}

#[test]
fn ports_run_out_and_come_back() {
    let mut host = Host::new(config(1));
    let remote = at("198.18.0.1:9");
    let ports = usize::from(limits::EPHEMERAL_LAST - limits::EPHEMERAL_FIRST) + 1;
    let options = SocketOptions::default();
    let mut ids = Vec::new();
    for _ in 0..ports {
        ids.push(host.shard.connect(START, None, remote, options).expect("a port is left"));
    }
    let none = host.shard.connect(START, None, remote, options);
    assert_eq!(none, Err(ConnectError::NoPortLeft));
    assert!(host.shard.connect(START, None, at("198.18.0.1:10"), options).is_ok());
    let freed = host.shard.local_address(ids[777]).expect("address");
    host.shard.close(START, ids[777], Close::Abort);
    let again = host.shard.connect(START, None, remote, options).expect("one is free");
    assert_eq!(host.shard.local_address(again), Some(freed));
}
