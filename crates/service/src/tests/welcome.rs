//! Connections that are offered with their peers' first words.

use haypile_engine::SocketId;
use haypile_shm::messages::RequestBody;

use super::harness::{App, Sock, World};
use crate::welcome::SILENCE_US;

/// Connections until the listener's openings are known.
const LESSONS: usize = 40;

fn listening() -> (World, App, Sock) {
    let mut world = World::new();
    let app = world.app();
    let listener = app.listen(&mut world, 80);
    (world, app, listener)
}

/// A connection whose peer has spoken first.
fn asked(world: &mut World, app: &mut App) -> (Sock, SocketId) {
    let peer = world.dial(80);
    world.peer_sends(peer, b"GET /");
    let socket = app.accept(world).unwrap();
    assert_eq!(app.read(world, &socket, 100), b"GET /");
    (socket, peer)
}

fn end(world: &mut World, app: &App, (socket, peer): (Sock, SocketId)) {
    app.tell(world, &socket, RequestBody::Close { abort: false });
    world.peer.close(world.now, peer);
    world.settle();
}

fn learn(world: &mut World, app: &mut App, lessons: usize) {
    for _ in 0..lessons {
        let connection = asked(world, app);
        end(world, app, connection);
    }
}

fn in_vain(world: &World) -> u64 {
    world.server.core.counters.silent_in_vain
}

#[test]
fn who_speaks_is_accepted_before_who_came_earlier_and_is_silent() {
    let (mut world, mut app, _listener) = listening();
    learn(&mut world, &mut app, LESSONS);
    let silent = world.dial(80);
    assert!(app.accept(&mut world).is_none());
    let speaking = asked(&mut world, &mut app);
    end(&mut world, &app, speaking);
    world.run_for(SILENCE_US - 1);
    assert!(app.accept(&mut world).is_none());
    world.run_for(1);
    let late = app.accept(&mut world).expect("silent for long enough");
    assert_eq!(in_vain(&world), 1);
    world.peer_sends(silent, b"at last");
    assert_eq!(app.read(&mut world, &late, 100), b"at last");
}

#[test]
fn words_that_come_later_end_the_wait() {
    let (mut world, mut app, _listener) = listening();
    learn(&mut world, &mut app, LESSONS);
    let peer = world.dial(80);
    world.run_for(SILENCE_US / 2);
    assert!(app.accept(&mut world).is_none());
    world.peer_sends(peer, b"GET /");
    let socket = app.accept(&mut world).expect("it has spoken");
    assert_eq!(app.read(&mut world, &socket, 100), b"GET /");
    world.run_for(SILENCE_US);
    assert!(app.accept(&mut world).is_none(), "offered twice");
    assert_eq!(in_vain(&world), 0);
}

#[test]
fn a_connection_that_ends_in_silence_is_accepted_at_once() {
    let (mut world, mut app, _listener) = listening();
    learn(&mut world, &mut app, LESSONS);
    let peer = world.dial(80);
    assert!(app.accept(&mut world).is_none());
    world.peer.close(world.now, peer);
    world.settle();
    let socket = app.accept(&mut world).expect("it has ended");
    assert_eq!(app.read(&mut world, &socket, 100), b"");
    assert_eq!(in_vain(&world), 0);
}

#[test]
fn before_a_listener_is_known_and_after_an_exception_nobody_waits() {
    let (mut world, mut app, _listener) = listening();
    for _ in 0..3 {
        let peer = world.dial(80);
        let socket = app.accept(&mut world).expect("at once");
        end(&mut world, &app, (socket, peer));
    }
    learn(&mut world, &mut app, LESSONS);
    let _silent = world.dial(80);
    world.run_for(SILENCE_US);
    assert!(app.accept(&mut world).is_some());
    let _next = world.dial(80);
    assert!(app.accept(&mut world).is_some(), "the exception is remembered");
    // It takes more than before to believe it again.
    learn(&mut world, &mut app, LESSONS);
    let _third = world.dial(80);
    assert!(app.accept(&mut world).is_some());
    learn(&mut world, &mut app, 2 * LESSONS);
    let _fourth = world.dial(80);
    assert!(app.accept(&mut world).is_none());
}

#[test]
fn who_greets_its_peers_never_waits_for_them() {
    let (mut world, mut app, _listener) = listening();
    for _ in 0..3 * LESSONS {
        let peer = world.dial(80);
        let socket = app.accept(&mut world).expect("at once");
        app.write(&mut world, &socket, b"220 ready");
        assert_eq!(world.peer_received(peer), b"220 ready");
        world.peer_sends(peer, b"HELO");
        assert_eq!(app.read(&mut world, &socket, 100), b"HELO");
        end(&mut world, &app, (socket, peer));
    }
    assert_eq!(in_vain(&world), 0);
}

#[test]
fn a_listener_that_closes_takes_the_silent_with_it() {
    let (mut world, mut app, listener) = listening();
    learn(&mut world, &mut app, LESSONS);
    let peers = [world.dial(80), world.dial(80)];
    assert!(app.accept(&mut world).is_none());
    app.tell(&mut world, &listener, RequestBody::Close { abort: false });
    world.settle();
    for peer in peers {
        assert!(world.peer.progress(peer).error.is_some(), "reset");
    }
    world.run_for(2 * SILENCE_US);
    assert_eq!(in_vain(&world), 0);
}
