//! Listeners that a server holds for the programs of the one before.

use std::net::TcpListener;
use std::os::fd::AsRawFd;

use haypile_shm::control;
use haypile_shm::messages::{ControlReply, ControlRequest, SocketKind};
use haypile_shm::sys;

use super::harness::{App, World};
use crate::inherited::{Notice, PATIENCE_US};
use crate::supervisor::orders::ListenerRecord;

const DOMAIN: [u8; 16] = [5; 16];

fn record(cookie: u64, port: u16) -> ListenerRecord {
    ListenerRecord {
        domain: DOMAIN,
        cookie,
        owner: 0,
        address: format!("0.0.0.0:{port}").parse().unwrap(),
        backlog: 7,
        v6only: false,
        reuse_address: true,
        reuse_port: false,
        options: Vec::new(),
    }
}

/// RESTORE of a placeholder.
fn restore(world: &mut World, app: &App, placeholder: i32, shared: bool) -> ControlReply {
    let message = ControlRequest::Restore { shared }.encode();
    control::send(app.control.raw(), &message, &[placeholder]).unwrap();
    world.settle();
    ControlReply::decode(&control::receive(app.control.raw()).unwrap().message).unwrap()
}

#[test]
fn a_held_listener_takes_connections_until_its_program_is_back() {
    for shared in [false, true] {
        let mut world = World::new();
        let placeholder = TcpListener::bind("127.0.0.1:0").unwrap();
        let cookie = sys::so_cookie(placeholder.as_raw_fd()).unwrap();
        let now = world.now;
        assert!(world.server.core.hold_listener(now, &record(cookie, 80)));
        let peer = world.dial(80);
        assert!(world.peer.progress(peer).connected, "shared {shared}");
        // A program of another domain does not get it.
        let stranger = world.app_in([6; 16]);
        let reply = restore(&mut world, &stranger, placeholder.as_raw_fd(), shared);
        assert!(matches!(reply, ControlReply::Adopted { errno: libc::ENOENT, .. }), "{reply:?}");
        let app = world.app_in(DOMAIN);
        let reply = restore(&mut world, &app, placeholder.as_raw_fd(), shared);
        let ControlReply::Adopted { errno: 0, kind: SocketKind::Listener, .. } = reply else {
            panic!("{reply:?}")
        };
        // It is nobody's to give up any more.
        world.run_for(2 * PATIENCE_US);
        let other = world.dial(80);
        assert!(world.peer.progress(other).connected, "shared {shared}");
    }
}

#[test]
fn a_listener_that_nobody_asks_for_is_closed() {
    let mut world = World::new();
    world.server.core.tells = true;
    let now = world.now;
    assert!(world.server.core.hold_listener(now, &record(77, 80)));
    let peer = world.dial(80);
    assert!(world.peer.progress(peer).connected);
    world.run_for(PATIENCE_US + 1_000_000);
    assert!(world.peer.progress(peer).error.is_some(), "reset");
    let gone = |notice: &Notice| matches!(notice, Notice::NotListening(DOMAIN, 77));
    assert!(world.server.core.notices.iter().any(gone), "{:?}", world.server.core.notices);
    // The port is free.
    let app = world.app();
    app.listen(&mut world, 80);
}

#[test]
fn a_held_listener_gives_way_to_a_new_one_of_its_domain() {
    let mut world = World::new();
    let now = world.now;
    assert!(world.server.core.hold_listener(now, &record(77, 80)));
    let stranger = world.app_in([6; 16]);
    assert_eq!(stranger.bind(&mut world, "0.0.0.0:80").err(), Some(libc::EADDRINUSE));
    let app = world.app_in(DOMAIN);
    app.listen(&mut world, 80);
    assert!(world.server.core.inherited.is_empty());
}

#[test]
fn a_listener_that_its_program_closed_meanwhile_is_closed_when_that_is_back() {
    let mut world = World::new();
    let now = world.now;
    let control = world.connect_control();
    let ControlReply::Welcome { name, .. } = world.greet(&control, 4, 0, 0) else { panic!() };
    let placeholder = TcpListener::bind("127.0.0.1:0").unwrap();
    let cookie = sys::so_cookie(placeholder.as_raw_fd()).unwrap();
    let of = |owner, cookie, port| {
        let domain = [3; 16];
        ListenerRecord { owner, domain, ..record(cookie, port) }
    };
    for held in [of(name, cookie, 80), of(name, 77, 81), of(name + 1, 78, 82), of(0, 79, 83)] {
        assert!(world.server.core.hold_listener(now, &held));
    }
    let stranger = ListenerRecord { domain: DOMAIN, ..of(name, 80, 84) };
    assert!(world.server.core.hold_listener(now, &stranger));
    let peers: Vec<_> = (80..85).map(|port| world.dial(port)).collect();
    let shared = ControlRequest::Restore { shared: false }.encode();
    control::send(control.raw(), &shared, &[placeholder.as_raw_fd()]).unwrap();
    world.settle();
    control::send(control.raw(), &ControlRequest::Restored.encode(), &[]).unwrap();
    world.settle();
    // That which it has not asked for is closed, with whoever waits there; what may be others' is not.
    let ended: Vec<bool> =
        peers.iter().map(|peer| world.peer.progress(*peer).error.is_some()).collect();
    assert_eq!(ended, [false, true, false, false, false]);
    assert_eq!(world.server.core.inherited.len(), 3);
}
