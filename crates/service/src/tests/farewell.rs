//! Last writes that wait for the close behind them.

use haypile_engine::SocketId;
use haypile_link::port::Port as _;
use haypile_shm::messages::RequestBody;

use super::harness::{App, Sock, World};
use crate::farewell::HOLD_US;

/// Connections until the listener's habit is known.
const LESSONS: usize = 16;

fn polling_world() -> (World, App) {
    let mut world = World::new();
    world.server.core.holds_writes = true;
    let app = world.app();
    app.listen(&mut world, 80);
    (world, app)
}

/// A connection whose request has been read.
fn asked(world: &mut World, app: &mut App) -> (Sock, SocketId) {
    let peer = world.dial(80);
    let socket = app.accept(world).unwrap();
    world.peer_sends(peer, b"GET /");
    assert_eq!(app.read(world, &socket, 100), b"GET /");
    (socket, peer)
}

fn answer_and_close(world: &mut World, app: &mut App) -> Vec<u8> {
    let (socket, peer) = asked(world, app);
    app.write(world, &socket, b"answer");
    app.tell(world, &socket, RequestBody::Close { abort: false });
    let answer = world.peer_received(peer);
    assert!(world.peer.progress(peer).rx_fin);
    world.peer.close(world.now, peer);
    world.settle();
    answer
}

fn learn(world: &mut World, app: &mut App) {
    for _ in 0..LESSONS {
        assert_eq!(answer_and_close(world, app), b"answer");
    }
}

fn frames_sent(world: &World) -> u64 {
    world.server.link.port().counters().tx_frames
}

#[test]
fn the_answer_leaves_with_the_fin_once_the_habit_is_known() {
    let (mut world, mut app) = polling_world();
    let before = frames_sent(&world);
    answer_and_close(&mut world, &mut app);
    let first = frames_sent(&world) - before;
    learn(&mut world, &mut app);
    let before = frames_sent(&world);
    answer_and_close(&mut world, &mut app);
    assert!(frames_sent(&world) - before < first, "a frame less than the first time");
    assert_eq!(world.server.core.counters.held_in_vain, 0);
}

#[test]
fn a_write_without_a_close_leaves_after_a_moment() {
    let (mut world, mut app) = polling_world();
    learn(&mut world, &mut app);
    let (socket, peer) = asked(&mut world, &mut app);
    app.write(&mut world, &socket, b"more to come");
    assert_eq!(world.peer_received(peer), b"");
    world.run_for(HOLD_US);
    assert_eq!(world.peer_received(peer), b"more to come");
    // It went on: the next connection is not kept waiting.
    world.peer_sends(peer, b"GET /");
    let (socket, peer) = asked(&mut world, &mut app);
    app.write(&mut world, &socket, b"at once");
    assert_eq!(world.peer_received(peer), b"at once");
}

#[test]
fn what_fills_a_segment_does_not_wait() {
    let (mut world, mut app) = polling_world();
    learn(&mut world, &mut app);
    let (socket, peer) = asked(&mut world, &mut app);
    app.write(&mut world, &socket, &[7; 4000]);
    assert_eq!(world.peer_received(peer).len(), 4000);
}

#[test]
fn a_service_about_to_sleep_lets_everything_go() {
    let (mut world, mut app) = polling_world();
    learn(&mut world, &mut app);
    let (socket, peer) = asked(&mut world, &mut app);
    app.write(&mut world, &socket, b"now");
    let now = world.now;
    assert_eq!(world.server.core.release_held(now, true), 1);
    world.settle();
    assert_eq!(world.peer_received(peer), b"now");
}
