//! Bytes and readiness: credit, windows, coalescing, backlog, shutdown, idle memory.

use haypile_shm::messages::{RequestBody, Shutdown, ready};
use haypile_shm::stream::status;

use super::harness::{App, Sock, World};
use haypile_engine::SocketId;

/// A world with one connection from the peer.
fn connected() -> (World, App, Sock, SocketId) {
    let mut world = World::new();
    let mut app = world.app();
    app.listen(&mut world, 80);
    let peer = world.dial(80);
    let socket = app.accept(&mut world).unwrap();
    (world, app, socket, peer)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|number| (number.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect()
}

#[test]
fn a_long_send_is_granted_memory_as_it_goes() {
    let (mut world, app, socket, peer) = connected();
    let data = pattern(3_000_000);
    let mut done = 0;
    for _ in 0..10_000 {
        done += app.write(&mut world, &socket, &data[done..]);
        world.peer_received(peer);
        world.run_for(1000);
        if done == data.len() {
            break;
        }
    }
    world.run_for(1_000_000);
    assert_eq!(done, data.len());
    assert!(world.peer_received(peer) == data);
}

#[test]
fn a_long_receive_opens_the_window_as_it_is_read() {
    let (mut world, app, socket, peer) = connected();
    let data = pattern(3_000_000);
    world.peer_sends(peer, &data);
    let mut received = Vec::new();
    for _ in 0..10_000 {
        received.extend(app.read(&mut world, &socket, 50_000));
        world.run_for(1000);
        if received.len() == data.len() {
            break;
        }
    }
    assert!(received == data, "{} of {}", received.len(), data.len());
}

#[test]
fn a_reader_that_stops_stops_the_sender_and_nothing_is_lost() {
    let (mut world, app, socket, peer) = connected();
    let data = pattern(2_000_000);
    world.peer_sends(peer, &data);
    world.run_for(5_000_000);
    assert!(socket.stream.readable() >= 100_000);
    assert!(socket.stream.readable() < 1_100_000);
    let mut received = Vec::new();
    for _ in 0..10_000 {
        received.extend(app.read(&mut world, &socket, 10_000));
        world.run_for(10_000);
        if received.len() == data.len() {
            break;
        }
    }
    assert!(received == data);
}

#[test]
fn readiness_is_told_once_until_it_was_looked_at() {
    let (mut world, app, socket, peer) = connected();
    let mut watcher = app.watcher(&mut world, 0);
    app.watch(&mut world, &watcher, &socket, ready::IN);
    assert_eq!(watcher.next(), None);
    watcher.ring.prepare_sleep();
    for _ in 0..10 {
        world.peer_sends(peer, b"again");
    }
    assert!(watcher.rung());
    assert!(!watcher.rung());
    assert_eq!(watcher.next().unwrap().bits, ready::IN);
    assert_eq!(watcher.next(), None);
    // The peer's Nagle holds small writes until what it sent is acknowledged.
    world.run_for(1_000);
    world.peer_sends(peer, b"more");
    assert_eq!(watcher.next().unwrap().slot, socket.slot);
    // What is there already is told at the registration.
    let mut other = app.watcher(&mut world, 1);
    app.watch(&mut world, &other, &socket, ready::IN | ready::OUT);
    assert_eq!(other.next().unwrap().bits, ready::IN | ready::OUT | ready::ANSWER);
    app.tell(&mut world, &socket, RequestBody::Unwatch { watcher: 1 });
    world.peer_sends(peer, b"more");
    assert_eq!(other.next(), None);
}

#[test]
fn a_one_shot_registration_speaks_once() {
    let (mut world, app, socket, peer) = connected();
    let mut watcher = app.watcher(&mut world, 0);
    let body = RequestBody::Watch { watcher: 0, mask: ready::IN, one_shot: true };
    app.tell(&mut world, &socket, body);
    world.peer_sends(peer, b"a");
    assert!(watcher.next().is_some());
    world.peer_sends(peer, b"b");
    assert_eq!(watcher.next(), None);
    app.tell(&mut world, &socket, body);
    assert!(watcher.next().is_some());
}

#[test]
fn room_to_write_is_told_when_it_comes_back() {
    let (mut world, app, socket, peer) = connected();
    let mut watcher = app.watcher(&mut world, 0);
    let data = vec![7; 2_000_000];
    let mut done = 0;
    for _ in 0..100 {
        done += app.write(&mut world, &socket, &data);
    }
    assert!(done < 2_000_000, "the peer reads nothing");
    app.watch(&mut world, &watcher, &socket, ready::OUT);
    assert_eq!(watcher.next(), None);
    for _ in 0..50 {
        world.peer_received(peer);
        world.run_for(50_000);
    }
    assert_eq!(watcher.next().unwrap().bits & ready::OUT, ready::OUT);
    // The memory granted may have been taken back meanwhile; the room is there, and asking brings it.
    assert!(socket.stream.tx_room() >= 8);
    let written = app.write(&mut world, &socket, b"on we go");
    assert_eq!(written + app.write(&mut world, &socket, &b"on we go"[written..]), 8);
}

#[test]
fn more_events_than_the_ring_holds_wait_in_the_backlog() {
    let mut world = World::new();
    let mut app = world.app();
    let listener = app.bind(&mut world, "0.0.0.0:80").unwrap();
    app.listen_on(&mut world, &listener, 1000).unwrap();
    app.tell(&mut world, &listener, RequestBody::Acceptor);
    let mut watcher = app.watcher(&mut world, 0);
    let mut pairs = Vec::new();
    for _ in 0..400 {
        let peer = world.dial(80);
        let socket = app.accept(&mut world).unwrap();
        app.watch(&mut world, &watcher, &socket, ready::IN);
        pairs.push((socket, peer));
    }
    assert_eq!(watcher.next(), None);
    for (_, peer) in &pairs {
        world.peer_sends(*peer, b"x");
    }
    let mut seen = std::collections::HashSet::new();
    for _ in 0..10 {
        while let Some(event) = watcher.next() {
            seen.insert(event.slot);
        }
        if watcher.ring.take_backlog() {
            app.tell(&mut world, &pairs[0].0, RequestBody::Drained { watcher: 0 });
        }
    }
    assert_eq!(seen.len(), 400);
}

/// Entries that need no message any more must not use up a turn: nobody would ask for the rest.
#[test]
fn a_long_backlog_is_told_to_its_end() {
    let mut world = World::new();
    let mut app = world.app();
    let listener = app.bind(&mut world, "0.0.0.0:80").unwrap();
    app.listen_on(&mut world, &listener, 1000).unwrap();
    app.tell(&mut world, &listener, RequestBody::Acceptor);
    let mut watcher = app.watcher(&mut world, 0);
    let mut pairs = Vec::new();
    for _ in 0..900 {
        let peer = world.dial(80);
        let socket = app.accept(&mut world).unwrap();
        app.watch(&mut world, &watcher, &socket, ready::IN);
        pairs.push((socket, peer));
    }
    for (_, peer) in &pairs {
        world.peer_sends(*peer, b"x");
    }
    // The ring holds the first 256; the next ones stop listening while they are in the backlog.
    for (socket, _) in &pairs[256..700] {
        app.tell(&mut world, socket, RequestBody::Unwatch { watcher: 0 });
    }
    let mut seen = std::collections::HashSet::new();
    for _ in 0..10 {
        while let Some(event) = watcher.next() {
            seen.insert(event.slot);
        }
        if watcher.ring.take_backlog() {
            app.tell(&mut world, &pairs[0].0, RequestBody::Drained { watcher: 0 });
        }
    }
    assert_eq!(seen.len(), 900 - (700 - 256));
}

#[test]
fn half_closes_are_seen_on_both_sides() {
    let (mut world, app, socket, peer) = connected();
    let mut watcher = app.watcher(&mut world, 0);
    app.watch(&mut world, &watcher, &socket, ready::IN | ready::RDHUP);
    app.tell(&mut world, &socket, RequestBody::Shutdown { how: Shutdown::Write });
    assert!(world.peer.progress(peer).rx_fin);
    assert_ne!(socket.stream.status() & status::TX_SHUT, 0);
    world.peer_sends(peer, b"last words");
    let now = world.now;
    world.peer.shard.shutdown_send(now, peer);
    world.settle();
    let mut bits = 0;
    while let Some(event) = watcher.next() {
        bits |= event.bits;
    }
    // The first event is coalesced; whoever looks sees everything.
    assert_ne!(bits & ready::IN, 0);
    assert_ne!(socket.stream.status() & status::RX_FIN, 0);
    assert_eq!(app.read(&mut world, &socket, 100), b"last words");
}

#[test]
fn unread_bytes_at_the_close_mean_a_reset() {
    let (mut world, app, socket, peer) = connected();
    world.peer_sends(peer, b"unread");
    app.tell(&mut world, &socket, RequestBody::Close { abort: false });
    assert!(world.peer.progress(peer).error.is_some());
    let (mut world, app, socket, peer) = connected();
    app.tell(&mut world, &socket, RequestBody::Close { abort: true });
    assert!(world.peer.progress(peer).error.is_some());
}

#[test]
fn an_idle_connection_holds_no_memory_and_wakes_up_again() {
    let (mut world, app, socket, peer) = connected();
    world.peer_sends(peer, b"ping");
    app.read(&mut world, &socket, 10);
    app.write(&mut world, &socket, b"pong");
    world.run_for(5_000_000);
    let domain = world.server.core.store.domains.iter().next().unwrap().1;
    assert_eq!(domain.arena.used_chunks(), 0);
    assert_eq!(socket.stream.writable(), 0);
    assert!(socket.stream.tx_room() > 0);
    assert_eq!(app.write(&mut world, &socket, b"pong"), 0);
    assert_eq!(app.write(&mut world, &socket, b"pong"), 4);
    assert_eq!(world.peer_received(peer), b"pongpong");
    world.peer_sends(peer, b"ping");
    assert_eq!(app.read(&mut world, &socket, 10), b"ping");
}
