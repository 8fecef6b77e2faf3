//! Death of processes, shared sockets, adoption, the end of the service.

use haypile_shm::messages::RequestBody;
use haypile_shm::sys;

use super::harness::{App, Sock, World};
use crate::poller::Token;

fn placeholder() -> (sys::Fd, u64) {
    let fd = sys::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0).unwrap();
    let cookie = sys::so_cookie(fd.raw()).unwrap();
    (fd, cookie)
}

fn connected(world: &mut World) -> (App, Sock, haypile_engine::SocketId) {
    let mut app = world.app();
    app.listen(world, 80);
    let peer = world.dial(80);
    let socket = app.accept(world).unwrap();
    (app, socket, peer)
}

#[test]
fn a_killed_process_closes_what_it_held_and_delivers_what_it_wrote() {
    let mut world = World::new();
    let (app, socket, peer) = connected(&mut world);
    app.write(&mut world, &socket, b"my last words");
    app.die(&mut world);
    assert_eq!(world.peer_received(peer), b"my last words");
    assert!(world.peer.progress(peer).rx_fin);
    let now = world.now;
    world.peer.close(now, peer);
    world.run_for(1_000_000);
    assert_eq!(world.server.core.store.sockets.len(), 0);
    assert_eq!(world.server.core.store.domains.iter().count(), 0);
}

#[test]
fn what_was_said_just_before_the_death_counts() {
    let mut world = World::new();
    let (mut app, socket, peer) = connected(&mut world);
    let (fd, cookie) = placeholder();
    // Said, and dead before the service has taken it from the ring.
    app.say(&socket, RequestBody::Shared { cookie });
    app.kill();
    let id = app.process_id;
    world.look_until(|world| world.server.core.processes.get(id).is_none());
    assert!(!world.peer.progress(peer).rx_fin, "somebody may hold it still");
    drop(fd);
    world.look_until(|world| world.peer.progress(peer).rx_fin);
}

#[test]
fn an_end_is_heard_that_comes_before_the_word_that_the_socket_is_shared() {
    let mut world = World::new();
    let (mut app, first, _) = connected(&mut world);
    let (_fd, cookie) = placeholder();
    // From here on the kernel tells the ends.
    app.tell(&mut world, &first, RequestBody::Shared { cookie });
    let peer = world.dial(80);
    let socket = app.accept(&mut world).unwrap();
    let (fd, cookie) = placeholder();
    // The service gets no processor meanwhile, and the kernel's word is read first.
    app.say(&socket, RequestBody::Shared { cookie });
    drop(fd);
    let start = std::time::Instant::now();
    while !world.server.core.destroyed.contains(&cookie) {
        assert!(start.elapsed().as_secs() < 60, "the kernel never said so");
        world.look();
    }
    world.look_until(|world| world.peer.progress(peer).rx_fin);
}

#[test]
fn a_shared_socket_lives_as_long_as_its_placeholder() {
    let mut world = World::new();
    let (parent, socket, peer) = connected(&mut world);
    let (fd, cookie) = placeholder();
    parent.tell(&mut world, &socket, RequestBody::Shared { cookie });
    let child = parent.fork(&mut world);
    // A CLOSE counts for nothing now, and neither does the death of the process that made it.
    parent.tell(&mut world, &socket, RequestBody::Close { abort: false });
    parent.die(&mut world);
    assert!(!world.peer.progress(peer).rx_fin);
    assert_eq!(child.write(&mut world, &socket, b"from the child"), 14);
    assert_eq!(world.peer_received(peer), b"from the child");
    let copy = sys::dup_at_least(fd.raw(), 0).unwrap();
    drop(fd);
    world.run_for(100_000);
    assert!(!world.peer.progress(peer).rx_fin);
    drop(copy);
    world.look_until(|world| world.peer.progress(peer).rx_fin);
}

#[test]
fn adoption_finds_the_socket_of_a_placeholder() {
    let mut world = World::new();
    let (parent, socket, peer) = connected(&mut world);
    let (fd, cookie) = placeholder();
    let (stranger, _) = placeholder();
    // Not drained yet when the question comes: the answer waits for it.
    parent.say(&socket, RequestBody::Shared { cookie });
    let child = parent.fork(&mut world);
    let adopted = child.adopt(&mut world, fd.raw()).unwrap();
    assert_eq!((adopted.slot, adopted.generation), (socket.slot, socket.generation));
    assert_eq!(child.adopt(&mut world, stranger.raw()).err(), Some(libc::ENOENT));
    assert_eq!(child.write(&mut world, &adopted, b"ok"), 2);
    assert_eq!(world.peer_received(peer), b"ok");
    // Another domain's placeholder is none of its business.
    let other = world.app();
    assert_eq!(other.adopt(&mut world, fd.raw()).err(), Some(libc::ENOENT));
}

#[test]
fn the_witness_tells_what_the_multicast_did_not() {
    let mut world = World::new();
    let (parent, socket, peer) = connected(&mut world);
    let (fd, cookie) = placeholder();
    parent.tell(&mut world, &socket, RequestBody::Shared { cookie });
    parent.adopt(&mut world, fd.raw()).unwrap();
    drop(fd);
    // Nobody reads the multicast: only steps, no looks.
    world.now = world.now.plus_us(10_000_000);
    let now = world.now;
    world.server.step(now).unwrap();
    assert_eq!(world.server.core.counters.ends_by_witness, 1);
    world.settle();
    assert!(world.peer.progress(peer).rx_fin);
}

#[test]
fn a_lock_held_by_the_dead_is_free_again() {
    use haypile_shm::limits::slot_offset;
    use std::sync::atomic::Ordering;
    let mut world = World::new();
    let (parent, socket, _) = connected(&mut world);
    let (_fd, cookie) = placeholder();
    parent.tell(&mut world, &socket, RequestBody::Shared { cookie });
    let child = parent.fork(&mut world);
    // The child dies in the middle of a write: the owner word holds its number.
    let domain = parent.domain;
    let table = {
        let core = &mut world.server.core;
        let key = core.store.domains.join(domain, 1, 1);
        core.store.domains.get_mut(key).unwrap().table.segment(0).unwrap().clone()
    };
    let word = table.atomic_u32(slot_offset(socket.slot) + 132).unwrap();
    word.store(child.process_id, Ordering::Relaxed);
    child.die(&mut world);
    assert_eq!(word.load(Ordering::Relaxed), 0);
    assert_eq!(parent.write(&mut world, &socket, b"free"), 4);
}

#[test]
fn the_same_process_again_is_another_program() {
    let mut world = World::new();
    let (app, _socket, peer) = connected(&mut world);
    let pid = world.server.core.processes.get(app.process_id).unwrap().pid;
    // Another HELLO from the same process id: the image was replaced by exec.
    let again = world.app_of(pid);
    assert!(world.peer.progress(peer).rx_fin, "never shared: closed on exec");
    assert!(world.server.core.processes.len() == 1);
    drop(again);
}

#[test]
fn a_version_that_differs_is_told() {
    use haypile_shm::control;
    use haypile_shm::messages::{ControlReply, ControlRequest};
    let mut world = World::new();
    let (version, build) = (haypile_shm::PROTOCOL_VERSION, haypile_shm::BUILD_VERSION);
    for (theirs, their_build) in [(999, build), (version, build + 1)] {
        let fd = world.connect_control();
        let hello = ControlRequest::Hello {
            version: theirs,
            build: their_build,
            program: [0; 16],
            domain: [0; 16],
            name: 0,
            proof: 0,
        };
        control::send(fd.raw(), &hello.encode(), &[]).unwrap();
        world.settle();
        let reply = ControlReply::decode(&control::receive(fd.raw()).unwrap().message).unwrap();
        let told = ControlReply::Refused { errno: libc::EPROTO, version, build };
        assert_eq!(reply, told);
    }
    assert_eq!(world.server.core.counters.refused_attaches, 2);
}

#[test]
fn the_end_of_the_service_closes_everything() {
    let mut world = World::new();
    let (app, socket, peer) = connected(&mut world);
    let listener = app.listen(&mut world, 81);
    let now = world.now;
    world.server.core.close_everything(now);
    world.settle();
    assert!(world.peer.progress(peer).rx_fin);
    use haypile_shm::stream::status::CLOSED;
    assert_ne!(socket.stream.status() & CLOSED, 0);
    assert_ne!(listener.stream.status() & CLOSED, 0);
    assert!(world.server.core.shard.is_quiet());
}

#[test]
fn a_ring_waits_for_the_next_sleep_or_to_be_heard_again() {
    let mut world = World::new();
    let (app, socket, _) = connected(&mut world);
    let id = app.process_id;
    let hears = |world: &World| {
        let mut tokens = Vec::new();
        world.server.poller.wait(0, &mut tokens);
        tokens.contains(&Token::Wake(id))
    };
    for again in [false, true] {
        world.server.core.status.prepare_sleep();
        app.say(&socket, RequestBody::KickRx);
        world.server.core.status.awake();
        assert!(hears(&world));
        let server = &mut world.server;
        server.core.heard(id, &server.poller);
        assert!(hears(&world), "its request comes first");
        let server = &mut world.server;
        match again {
            true => server.core.heard(id, &server.poller),
            false => server.core.quiet_bells(&server.poller),
        }
        assert!(!hears(&world));
        world.turn();
    }
    // Once taken there is nothing left to take.
    world.server.core.quiet_bells(&world.server.poller);
}
