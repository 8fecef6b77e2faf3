//! Addresses, connects, options.

use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::{NOT_OURS, RequestBody, ready};
use haypile_shm::stream::status;

use super::harness::{PEER, World};
use crate::options::number;

#[test]
fn addresses_of_others_are_the_kernels() {
    let mut world = World::new();
    let app = world.app();
    assert_eq!(app.bind(&mut world, "127.0.0.1:80").err(), Some(NOT_OURS));
    assert_eq!(app.bind(&mut world, "10.1.2.3:80").err(), Some(NOT_OURS));
    assert_eq!(app.connect(&mut world, "127.0.0.1", 80).err(), Some(NOT_OURS));
    assert_eq!(app.connect(&mut world, "10.1.2.3", 80).err(), Some(NOT_OURS));
    assert_eq!(world.server.core.store.sockets.len(), 0);
    for address in ["198.18.0.1:80", "[2001:2::1]:80", "[::ffff:198.18.0.1]:81"] {
        assert!(app.bind(&mut world, address).is_ok(), "{address}");
    }
}

#[test]
fn ports_are_chosen_and_guarded() {
    let mut world = World::new();
    let app = world.app();
    let (first, reply) = app.bind_with(&mut world, "0.0.0.0:0", false).unwrap();
    let port = reply.local.unwrap().port();
    assert!(port >= 32768);
    assert_eq!(first.stream.local_address(), reply.local);
    app.listen_on(&mut world, &first, 1).unwrap();
    assert_eq!(app.bind(&mut world, &format!("0.0.0.0:{port}")).err(), Some(libc::EADDRINUSE));
    // Listening again changes the backlog.
    app.listen_on(&mut world, &first, 50).unwrap();
    app.tell(&mut world, &first, RequestBody::Close { abort: false });
    assert!(app.bind(&mut world, &format!("0.0.0.0:{port}")).is_ok());
}

#[test]
fn a_connect_ends_in_a_connection() {
    let mut world = World::new();
    let app = world.app();
    world.peer_listens(7);
    let mut watcher = app.watcher(&mut world, 0);
    let socket = app.connect(&mut world, PEER, 7).unwrap();
    app.watch(&mut world, &watcher, &socket, ready::OUT);
    assert_eq!(watcher.next().unwrap().bits & ready::OUT, ready::OUT);
    assert_ne!(socket.stream.status() & status::CONNECTED, 0);
    assert_eq!(socket.stream.remote_address(), Some("198.18.0.2:7".parse().unwrap()));
    let peer = world.peer.accepted[0];
    assert_eq!(app.write(&mut world, &socket, b"hi"), 2);
    assert_eq!(world.peer_received(peer), b"hi");
    world.peer_sends(peer, b"ho");
    assert_eq!(app.read(&mut world, &socket, 10), b"ho");
    let again = RequestBody::Connect { remote: "198.18.0.2:8".parse().unwrap() };
    let name = (socket.slot, socket.generation);
    assert_eq!(app.ask(&mut world, name, again).err(), Some(libc::EISCONN));
}

/// The shard gives the place of a closed connection to the next one before it is heard that the first is
/// released.
#[test]
fn a_connection_closed_in_the_turn_of_the_next_connect_is_forgotten() {
    let mut world = World::new();
    let app = world.app();
    world.peer_listens(7);
    for _ in 0..10 {
        let refused = app.connect(&mut world, PEER, 9).unwrap();
        app.say(&refused, RequestBody::Close { abort: false });
        let next = app.connect(&mut world, PEER, 7).unwrap();
        assert_eq!(world.server.core.store.sockets.len(), 1);
        app.tell(&mut world, &next, RequestBody::Close { abort: true });
        assert_eq!(world.server.core.store.sockets.len(), 0);
    }
}

#[test]
fn a_refused_connect_leaves_its_error_and_may_be_repeated() {
    let mut world = World::new();
    let app = world.app();
    let socket = app.connect(&mut world, PEER, 9).unwrap();
    assert_eq!(socket.stream.take_error(), libc::ECONNREFUSED);
    assert_ne!(socket.stream.status() & status::FAILED, 0);
    world.peer_listens(9);
    let again = RequestBody::Connect { remote: "198.18.0.2:9".parse().unwrap() };
    app.ask(&mut world, (socket.slot, socket.generation), again).unwrap();
    world.settle();
    assert_ne!(socket.stream.status() & status::CONNECTED, 0);
}

#[test]
fn connections_to_the_services_own_addresses_turn_round_inside() {
    let mut world = World::new();
    let mut app = world.app();
    app.listen(&mut world, 80);
    let client = app.connect(&mut world, "198.18.0.1", 80).unwrap();
    let server = app.accept(&mut world).unwrap();
    assert_eq!(app.write(&mut world, &client, b"round"), 5);
    world.run_for(1000);
    assert_eq!(app.read(&mut world, &server, 10), b"round");
}

#[test]
fn options_are_kept_inherited_and_told() {
    let mut world = World::new();
    let mut app = world.app();
    let nodelay = number(libc::IPPROTO_TCP, libc::TCP_NODELAY);
    let buffer = number(libc::SOL_SOCKET, libc::SO_RCVBUF);
    let (listener, _) = app.ask(&mut world, (NO_SLOT, 0), RequestBody::Open { v6: false }).unwrap();
    let name = (listener.slot, listener.generation);
    let set = RequestBody::SetOption { option: buffer, value: 50_000 };
    app.ask(&mut world, name, set).unwrap();
    let set = RequestBody::SetOption { option: nodelay, value: 1 };
    app.ask(&mut world, name, set).unwrap();
    let bad = RequestBody::SetOption { option: 0xffff, value: 1 };
    assert_eq!(app.ask(&mut world, name, bad).err(), Some(libc::ENOPROTOOPT));
    let address = "0.0.0.0:80".parse().unwrap();
    let bind =
        RequestBody::Bind { address, reuse_address: false, reuse_port: false, v6only: false };
    app.ask(&mut world, name, bind).unwrap();
    app.listen_on(&mut world, &listener, 5).unwrap();
    app.tell(&mut world, &listener, RequestBody::Acceptor);
    world.dial(80);
    let socket = app.accept(&mut world).unwrap();
    for (option, expected) in [(nodelay, 1i32), (buffer, 100_000)] {
        let value = app.ask_option(&mut world, &socket, RequestBody::GetOption { option });
        assert_eq!(value, Ok(expected.to_ne_bytes().to_vec()));
    }
    let info = app.ask_option(&mut world, &socket, RequestBody::TcpInfo { part: 0 }).unwrap();
    assert_eq!((info.len(), info[0]), (48, 1), "established");
    let end = app.ask_option(&mut world, &socket, RequestBody::TcpInfo { part: 99 });
    assert_eq!(end, Ok(Vec::new()));
}

#[test]
fn the_quota_of_a_domain_is_its_own() {
    let mut world = World::with("[limits]\nsockets_per_domain = 16\n");
    let (one, other) = (world.app(), world.app());
    for _ in 0..16 {
        one.bind(&mut world, "0.0.0.0:0").unwrap();
    }
    assert_eq!(one.bind(&mut world, "0.0.0.0:0").err(), Some(libc::ENOBUFS));
    assert!(other.bind(&mut world, "0.0.0.0:0").is_ok());
}
