//! UDP sockets of applications: between two of them, with a peer on the link, and with one that writes
//! nonsense.

use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::{
    DatagramError, NOT_OURS, OptionReply, RequestBody, RouteAnswer, ready,
};
use haypile_shm::stream::status;

use super::harness::World;
use crate::listing::Listing;
use crate::options::number;
use crate::report::{SocketChoice, SocketRow, Sockets};

const OURS: &str = "198.18.0.1";

fn at(port: u16) -> String {
    format!("{OURS}:{port}")
}

#[test]
fn datagrams_pass_between_applications() {
    let mut world = World::new();
    let (one, other) = (world.app(), world.app_in([9; 16]));
    let server = one.bind_datagram(&mut world, "0.0.0.0:53").unwrap();
    let mut watcher = one.watcher(&mut world, 0);
    one.watch(&mut world, &watcher, &server, ready::IN);
    let client = other.bind_datagram(&mut world, &at(0)).unwrap();
    let name = client.stream.local_address().unwrap();
    for text in [&b"first"[..], b"", &[7; 9000]] {
        assert!(other.send_to(&mut world, &client, Some(&at(53)), text));
    }
    assert_eq!(watcher.next().map(|ready| ready.bits), Some(ready::IN));
    for text in [&b"first"[..], b"", &[7; 9000]] {
        let (header, bytes) = one.receive(&mut world, &server).unwrap();
        assert_eq!(bytes, text);
        assert_eq!(header.remote, Some(name));
        assert_eq!(header.local, Some(at(53).parse().unwrap()));
    }
    assert!(one.receive(&mut world, &server).is_none());
    assert!(one.send_to(&mut world, &server, Some(&name.to_string()), b"answer"));
    assert_eq!(other.receive(&mut world, &client).unwrap().1, b"answer");
    let choice = SocketChoice { listening: true, udp: true, ..SocketChoice::default() };
    let rows = listed(&world, &choice);
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row.protocol == "udp" && row.state == "UNCONN"));
    let choice = SocketChoice { all: true, tcp: true, ..SocketChoice::default() };
    assert_eq!(listed(&world, &choice), []);
}

/// What somebody hears who asks for sockets.
fn listed(world: &World, choice: &SocketChoice) -> Vec<SocketRow> {
    let (core, mut text) = (&world.server.core, Vec::new());
    let mut listing = Listing::new(core, choice);
    while !listing.write_some(core, &mut text) {}
    assert_eq!(text.pop(), Some(b'\n'));
    serde_json::from_slice::<Sockets>(&text).unwrap().sockets
}

#[test]
fn many_sockets_are_told_of_a_few_at_a_time() {
    let mut world = World::new();
    let app = world.app();
    for port in 1000..1100 {
        app.bind_datagram(&mut world, &at(port)).unwrap();
    }
    let choice = SocketChoice { listening: true, udp: true, ..SocketChoice::default() };
    let mut locals: Vec<String> =
        listed(&world, &choice).into_iter().map(|row| row.local).collect();
    locals.sort_unstable();
    assert_eq!(locals, (1000..1100).map(at).collect::<Vec<_>>());
    let (mut listing, mut text) = (Listing::new(&world.server.core, &choice), Vec::new());
    assert!(!listing.write_some(&world.server.core, &mut text));
    assert!(text.len() < 10_000, "{}", text.len());
}

#[test]
fn names_are_refused_as_by_the_kernel() {
    let mut world = World::new();
    let app = world.app();
    assert_eq!(app.bind_datagram(&mut world, "127.0.0.1:53").err(), Some(NOT_OURS));
    assert_eq!(app.bind_datagram(&mut world, "10.0.0.1:53").err(), Some(NOT_OURS));
    let first = app.bind_datagram(&mut world, &at(53)).unwrap();
    assert_eq!(app.bind_datagram(&mut world, &at(53)).err(), Some(libc::EADDRINUSE));
    assert_eq!(app.bind_datagram(&mut world, "0.0.0.0:53").err(), Some(libc::EADDRINUSE));
    let broadcast =
        RequestBody::ConnectDatagram { remote: Some("198.18.0.255:9".parse().unwrap()) };
    assert_eq!(app.ask(&mut world, (NO_SLOT, 0), broadcast).err(), Some(libc::EACCES));
    assert_eq!(world.server.core.shard.datagram_socket_count(), 1);
    // TCP ports are others.
    assert!(app.bind(&mut world, &at(53)).is_ok());
    app.tell(&mut world, &first, RequestBody::Close { abort: false });
    let again = app.bind_datagram(&mut world, &at(53)).unwrap();
    let route = |remote: &str| RequestBody::Route { remote: remote.parse().unwrap() };
    let reply = |payload| OptionReply::decode(&payload).unwrap();
    let answer = reply(app.call(&mut world, (NO_SLOT, 0), route("198.18.0.9")));
    let answer = RouteAnswer::decode(answer.bytes()).unwrap();
    assert!(answer.mtu >= 1280 && !answer.local && !answer.broadcast);
    let answer = reply(app.call(&mut world, (NO_SLOT, 0), route(OURS)));
    assert!(RouteAnswer::decode(answer.bytes()).unwrap().local);
    assert_eq!(reply(app.call(&mut world, (NO_SLOT, 0), route("10.9.9.9"))).errno, NOT_OURS);
    app.tell(&mut world, &again, RequestBody::Close { abort: false });
    assert_eq!(world.server.core.shard.datagram_socket_count(), 0);
}

#[test]
fn a_full_socket_loses_its_own_datagrams_and_counts_them() {
    let mut world = World::new();
    let app = world.app();
    let slow = app.bind_datagram(&mut world, &at(1)).unwrap();
    let quick = app.bind_datagram(&mut world, &at(2)).unwrap();
    let sender = app.bind_datagram(&mut world, &at(3)).unwrap();
    let option = number(libc::SOL_SOCKET, libc::SO_RCVBUF);
    app.tell(&mut world, &slow, RequestBody::SetOption { option, value: 10_000 });
    for _ in 0..50 {
        assert!(app.send_to(&mut world, &sender, Some(&at(1)), &[1; 936]));
        assert!(app.send_to(&mut world, &sender, Some(&at(2)), &[2; 936]));
        assert!(app.receive(&mut world, &quick).is_some());
    }
    let mut kept = 0;
    while let Some((header, _)) = app.receive(&mut world, &slow) {
        assert_eq!(header.drops, 0);
        kept += 1;
    }
    assert_eq!(kept, 10);
    assert!(app.send_to(&mut world, &sender, Some(&at(1)), b"after"));
    assert_eq!(app.receive(&mut world, &slow).unwrap().0.drops, 40);
}

#[test]
fn a_refusal_reaches_the_connected_socket_and_the_error_queue() {
    let mut world = World::new();
    let app = world.app();
    let remote = Some("198.18.0.2:9".parse().unwrap());
    let body = RequestBody::ConnectDatagram { remote };
    let (socket, _) = app.ask(&mut world, (NO_SLOT, 0), body).unwrap();
    assert_ne!(socket.stream.status() & status::CONNECTED, 0);
    assert_eq!(socket.stream.remote_address(), remote);
    let option = number(libc::IPPROTO_IP, libc::IP_RECVERR);
    app.tell(&mut world, &socket, RequestBody::SetOption { option, value: 1 });
    assert!(app.send_to(&mut world, &socket, None, b"anybody?"));
    world.look_until(|_| socket.stream.has_error());
    assert_ne!(socket.stream.status() & status::ERRORS, 0);
    let taken = app.ask_option(&mut world, &socket, RequestBody::TakeDatagramError).unwrap();
    let error = DatagramError::decode(&taken).unwrap();
    assert_eq!((i32::from(error.errno), error.kind, error.code), (libc::ECONNREFUSED, 3, 3));
    assert_eq!(Some(error.remote), remote);
    assert_eq!((socket.stream.status() & status::ERRORS, socket.stream.take_error()), (0, 0));
    let again = app.ask_option(&mut world, &socket, RequestBody::TakeDatagramError);
    assert_eq!(again, Err(libc::EAGAIN));
}

#[test]
fn nonsense_in_a_fifo_ends_its_own_socket() {
    let mut world = World::new();
    let (bad, good) = (world.app(), world.app_in([9; 16]));
    let wrong = bad.bind_datagram(&mut world, &at(1)).unwrap();
    let right = good.bind_datagram(&mut world, &at(2)).unwrap();
    bad.write(&mut world, &wrong, &[0xff; 200]);
    assert_eq!(world.server.core.counters.hostile_sockets, 1);
    assert_eq!(world.server.core.shard.datagram_socket_count(), 1);
    assert!(good.send_to(&mut world, &right, Some(&at(2)), b"alive"));
    assert_eq!(good.receive(&mut world, &right).unwrap().1, b"alive");
}

#[test]
fn what_was_written_before_the_close_is_sent() {
    let mut world = World::new();
    let app = world.app();
    let server = app.bind_datagram(&mut world, &at(53)).unwrap();
    let client = app.bind_datagram(&mut world, &at(0)).unwrap();
    assert!(app.send_to(&mut world, &client, Some(&at(53)), b"warm"));
    app.receive(&mut world, &server).unwrap();
    let header = haypile_shm::DatagramHeader {
        len: 4,
        remote: Some(at(53).parse().unwrap()),
        ..Default::default()
    };
    app.write_silently(&client, &header, b"last");
    app.tell(&mut world, &client, RequestBody::Close { abort: false });
    assert_eq!(app.receive(&mut world, &server).unwrap().1, b"last");
    assert_eq!(world.server.core.shard.datagram_socket_count(), 1);
}
