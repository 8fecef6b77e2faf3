//! Names looked up by one shard at a made-up server on another.

use super::harness::*;
use crate::resolver::{RecordKind, ResolveError};
use crate::*;

/// Answers every question for A with 10.0.0.9, from the server's socket.
fn serve(pair: &mut Pair, socket: SocketId) {
    for (question, payload) in pair.hosts[1].take_datagrams(socket) {
        let end = payload.len() - 11;
        let mut answer = payload[..end].to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[6..8].copy_from_slice(&[0, 1]);
        answer[10..12].fill(0);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 9]);
        let to = SendTo { remote: Some(question.remote), ..SendTo::default() };
        let now = pair.now;
        pair.hosts[1].shard.send_datagram(now, socket, &to, &answer).expect("sent");
    }
}

#[test]
fn a_name_is_found_and_kept() {
    let mut pair = Pair::new();
    let server = pair.hosts[1].open("[::]:53");
    let now = pair.now;
    let asked = pair.hosts[0].shard.look_up(now, "pile.test", RecordKind::A, &[ip("198.18.0.2")]);
    let id = asked.expect("asked");
    pair.run(10_000);
    serve(&mut pair, server);
    pair.run(10_000);
    assert!(pair.hosts[0].events.contains(&Event::Resolved { id }));
    let answer = pair.hosts[0].shard.take_answer(id).expect("an outcome").expect("found");
    assert_eq!(answer.addresses, [ip("10.0.0.9")]);
    assert_eq!(pair.hosts[0].shard.datagram_socket_count(), 0, "its socket is closed");
    assert!(pair.hosts[0].memory.datagrams.is_empty());
    let now = pair.now;
    let again = pair.hosts[0].shard.look_up(now, "PILE.test.", RecordKind::A, &[]);
    let id = again.expect("in the cache");
    assert!(pair.hosts[0].shard.take_answer(id).expect("at once").is_ok());
    assert_eq!(pair.hosts[0].count(Counter::DnsQueriesSent), 1);
}

#[test]
fn refused_and_silent_servers_are_given_up() {
    let mut pair = Pair::new();
    let now = pair.now;
    // Nobody has port 53 there: the error comes back at once, and a second server is silent.
    let servers = [ip("198.18.0.2"), ip("198.18.0.77")];
    let id = pair.hosts[0].shard.look_up(now, "pile.test", RecordKind::Aaaa, &servers);
    let id = id.expect("asked");
    pair.run(20_000_000);
    let outcome = pair.hosts[0].shard.take_answer(id).expect("an outcome");
    assert_eq!(outcome, Err(ResolveError::TimedOut));
    assert_eq!(pair.hosts[0].count(Counter::DnsQueriesSent), 4);
    assert_eq!(pair.hosts[0].shard.datagram_socket_count(), 0);
    assert_eq!(pair.hosts[0].datagram_errors(), []);
}

#[test]
fn a_forged_answer_is_not_believed() {
    let mut pair = Pair::new();
    let server = pair.hosts[1].open("0.0.0.0:53");
    let other = pair.hosts[1].open("0.0.0.0:54");
    let now = pair.now;
    let asked = pair.hosts[0].shard.look_up(now, "pile.test", RecordKind::A, &[ip("198.18.0.2")]);
    let id = asked.expect("asked");
    pair.run(10_000);
    let (question, mut payload) = pair.hosts[1].take_datagrams(server).remove(0);
    let to = SendTo { remote: Some(question.remote), ..SendTo::default() };
    payload[2] |= 0x80;
    let now = pair.now;
    pair.hosts[1].shard.send_datagram(now, other, &to, &payload).expect("sent");
    payload[0] ^= 1;
    pair.hosts[1].shard.send_datagram(now, server, &to, &payload).expect("sent");
    pair.run(10_000);
    assert_eq!(pair.hosts[0].dropped(DropReason::UdpNoPort), 1);
    assert_eq!(pair.hosts[0].dropped(DropReason::DnsIgnored), 1);
    assert_eq!(pair.hosts[0].shard.take_answer(id), None);
}
