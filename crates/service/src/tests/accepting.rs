//! From a SYN to a process: claim, time-out, refusal, and death in every phase.

use haypile_shm::messages::{RequestBody, Shutdown, ready};
use haypile_shm::stream::status;

use super::harness::World;
use crate::accepting::OFFERS_AT_ONCE;

#[test]
fn a_connection_is_offered_claimed_and_carries_bytes_both_ways() {
    let mut world = World::new();
    let mut app = world.app();
    let listener = app.listen(&mut world, 80);
    let peer = world.dial(80);
    world.peer_sends(peer, b"hello");
    let socket = app.accept(&mut world).unwrap();
    assert_eq!(socket.stream.local_address(), Some("198.18.0.1:80".parse().unwrap()));
    assert_eq!(socket.stream.remote_address().unwrap().ip().to_string(), "198.18.0.2");
    assert_eq!(app.read(&mut world, &socket, 100), b"hello");
    assert_eq!(app.write(&mut world, &socket, b"and hello"), 9);
    assert_eq!(world.peer_received(peer), b"and hello");
    app.tell(&mut world, &socket, RequestBody::Close { abort: false });
    assert!(world.peer.progress(peer).rx_fin);
    app.tell(&mut world, &listener, RequestBody::Close { abort: false });
    let now = world.now;
    world.peer.close(now, peer);
    world.run_for(1_000_000);
    assert_eq!(world.server.core.store.sockets.len(), 0);
    assert_eq!(world.server.core.store.unclaimed_bytes(), 0);
}

#[test]
fn bytes_that_came_before_the_acceptor_are_there_at_the_claim() {
    let mut world = World::new();
    let mut app = world.app();
    let listener = app.bind(&mut world, "198.18.0.1:80").unwrap();
    app.listen_on(&mut world, &listener, 10).unwrap();
    let peer = world.dial(80);
    let request: Vec<u8> = (0..100_000u32).map(|number| number as u8).collect();
    world.peer_sends(peer, &request);
    assert!(app.next_offer().is_none());
    assert_eq!(world.server.core.store.unclaimed_bytes(), 100_000);
    app.tell(&mut world, &listener, RequestBody::Acceptor);
    let socket = app.accept(&mut world).unwrap();
    assert_eq!(world.server.core.store.unclaimed_bytes(), 0);
    assert_eq!(app.read(&mut world, &socket, 200_000), request);
}

#[test]
fn an_unclaimed_connection_moves_to_another_process_with_its_bytes() {
    let mut world = World::new();
    let mut slow = world.app();
    let mut quick = slow.fork(&mut world);
    let listener = slow.listen(&mut world, 80);
    quick.tell(&mut world, &listener, RequestBody::Acceptor);
    let peer = world.dial(80);
    world.peer_sends(peer, b"to whom it may concern");
    let offered = slow.next_offer().unwrap();
    assert!(quick.next_offer().is_none());
    world.run_for(250_000);
    let socket = quick.accept(&mut world).unwrap();
    assert_eq!(quick.read(&mut world, &socket, 100), b"to whom it may concern");
    // The late claimer is told so, and nothing of it reaches the connection.
    assert!(!offered.stream.claim());
    assert_eq!(world.server.core.manager.counters().timed_out, 1);
    // It comes back by registering again.
    slow.tell(&mut world, &listener, RequestBody::Acceptor);
    world.dial(80);
    world.dial(80);
    assert!(slow.accept(&mut world).is_some());
}

#[test]
fn an_unclaimed_connection_moves_to_another_domain_with_its_bytes() {
    let mut world = World::new();
    let (mut slow, mut quick) = (world.app(), world.app());
    let (first, _) = slow.bind_with(&mut world, "0.0.0.0:80", true).unwrap();
    let body = RequestBody::Listen {
        backlog: 5,
        v6only: false,
        reuse_port: true,
        cookie: 0,
        opening: false,
    };
    slow.ask(&mut world, (first.slot, first.generation), body).unwrap();
    slow.tell(&mut world, &first, RequestBody::Acceptor);
    let peer = world.dial(80);
    world.peer_sends(peer, b"private");
    let offered = slow.next_offer().unwrap();
    assert_eq!(slow.read(&mut world, &offered, 10), b"private");
    slow.tell(&mut world, &first, RequestBody::Close { abort: false });
    // Reset with its listener, as on Linux: other domains have listeners of their own.
    assert!(!offered.stream.claim());
    assert!(world.peer.progress(peer).error.is_some());
    assert!(quick.next_offer().is_none());
}

#[test]
fn a_refused_connection_waits_until_somebody_can() {
    let mut world = World::new();
    let mut app = world.app();
    let listener = app.listen(&mut world, 80);
    let peer = world.dial(80);
    world.peer_sends(peer, b"x");
    let socket = app.next_offer().unwrap();
    assert!(socket.stream.claim());
    app.tell(&mut world, &socket, RequestBody::Refuse);
    assert!(app.next_offer().is_none());
    assert!(world.peer.progress(peer).error.is_none());
    app.tell(&mut world, &listener, RequestBody::Acceptor);
    let socket = app.accept(&mut world).unwrap();
    assert_eq!(app.read(&mut world, &socket, 10), b"x");
}

#[test]
fn death_in_every_phase_loses_no_connection() {
    // 0: before any offer, 1: offered, 2: claimed by the word alone, 3: claimed and said.
    for phase in 0..4 {
        let mut world = World::new();
        let mut parent = world.app();
        let mut victim = parent.fork(&mut world);
        let listener = parent.bind(&mut world, "0.0.0.0:80").unwrap();
        parent.listen_on(&mut world, &listener, 10).unwrap();
        // Listeners of several processes are shared.
        let placeholder = haypile_shm::sys::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let cookie = haypile_shm::sys::so_cookie(placeholder.raw()).unwrap();
        parent.tell(&mut world, &listener, RequestBody::Shared { cookie });
        victim.tell(&mut world, &listener, RequestBody::Acceptor);
        let mut peer = None;
        if phase > 0 {
            peer = Some(world.dial(80));
            let socket = victim.next_offer().unwrap();
            if phase > 1 {
                assert!(socket.stream.claim());
            }
            if phase > 2 {
                victim.tell(&mut world, &socket, RequestBody::Claim);
            }
        }
        victim.die(&mut world);
        parent.tell(&mut world, &listener, RequestBody::Acceptor);
        match (phase, peer) {
            (1, Some(_)) => assert!(parent.accept(&mut world).is_some(), "given to the living"),
            (2 | 3, Some(peer)) => {
                assert!(parent.accept(&mut world).is_none(), "not given twice");
                assert!(world.peer.progress(peer).rx_fin, "closed with its process");
            }
            _ => assert!(parent.accept(&mut world).is_none()),
        }
        world.dial(80);
        assert!(parent.accept(&mut world).is_some(), "phase {phase}: the listener lives");
    }
}

#[test]
fn closing_the_listener_resets_what_nobody_claimed() {
    let mut world = World::new();
    let mut app = world.app();
    let listener = app.bind(&mut world, "0.0.0.0:80").unwrap();
    app.listen_on(&mut world, &listener, 10).unwrap();
    let waiting = world.dial(80);
    app.tell(&mut world, &listener, RequestBody::Acceptor);
    let offered = app.next_offer().unwrap();
    app.tell(&mut world, &listener, RequestBody::NotAcceptor);
    let unassigned = world.dial(80);
    app.tell(&mut world, &listener, RequestBody::Close { abort: false });
    assert!(world.peer.progress(waiting).error.is_some());
    assert!(world.peer.progress(unassigned).error.is_some());
    assert!(!offered.stream.claim());
    assert_eq!(world.server.core.store.sockets.len(), 0);
    // The port is free again.
    app.listen(&mut world, 80);
}

#[test]
fn a_listener_that_is_shut_down_stays_bound_and_listens_again() {
    let mut world = World::new();
    let mut app = world.app();
    let mut child = app.fork(&mut world);
    let listener = app.bind(&mut world, "0.0.0.0:80").unwrap();
    app.listen_on(&mut world, &listener, 10).unwrap();
    let unassigned = world.dial(80);
    for process in [&app, &child] {
        process.tell(&mut world, &listener, RequestBody::Acceptor);
    }
    let waiting = world.dial(80);
    let offered = [app.next_offer(), child.next_offer()];
    assert!(offered.iter().any(Option::is_some));
    let how = Shutdown::Write;
    app.tell(&mut world, &listener, RequestBody::Shutdown { how });
    assert!(world.peer.progress(waiting).error.is_none(), "no half of a listener is closed alone");
    assert!(listener.stream.status() & status::LISTENING != 0);
    for how in [Shutdown::Read, Shutdown::Both] {
        app.tell(&mut world, &listener, RequestBody::Shutdown { how });
    }
    for peer in [waiting, unassigned] {
        assert!(world.peer.progress(peer).error.is_some());
    }
    let bits = status::LISTENING | status::RX_SHUT;
    assert_eq!(listener.stream.status() & bits, status::RX_SHUT);
    let refused = world.dial(80);
    assert!(world.peer.progress(refused).error.is_some());
    assert!(offered.into_iter().flatten().all(|stale| !stale.stream.claim()));
    // Whoever has it may have it listen again.
    child.listen_on(&mut world, &listener, 10).unwrap();
    assert_eq!(listener.stream.status() & bits, status::LISTENING);
    app.tell(&mut world, &listener, RequestBody::Acceptor);
    let peer = world.dial(80);
    world.peer_sends(peer, b"again");
    let socket = app.accept(&mut world).unwrap();
    assert_eq!(app.read(&mut world, &socket, 100), b"again");
    // It may be let go while it is shut, too.
    app.tell(&mut world, &listener, RequestBody::Shutdown { how: Shutdown::Read });
    app.tell(&mut world, &listener, RequestBody::Close { abort: false });
    app.listen(&mut world, 80);
}

#[test]
fn a_claim_that_races_with_the_close_of_the_listener_keeps_its_connection() {
    let mut world = World::new();
    let mut app = world.app();
    let listener = app.listen(&mut world, 80);
    let peer = world.dial(80);
    let socket = app.next_offer().unwrap();
    app.say(&listener, RequestBody::Close { abort: false });
    assert!(socket.stream.claim());
    app.tell(&mut world, &socket, RequestBody::Claim);
    assert!(world.peer.progress(peer).error.is_none());
    assert_eq!(app.write(&mut world, &socket, b"still here"), 10);
    assert_eq!(world.peer_received(peer), b"still here");
}

#[test]
fn a_connection_reset_while_it_waits_is_accepted_with_its_error() {
    let mut world = World::new();
    let mut app = world.app();
    let listener = app.bind(&mut world, "0.0.0.0:80").unwrap();
    app.listen_on(&mut world, &listener, 10).unwrap();
    let peer = world.dial(80);
    let now = world.now;
    world.peer.shard.close(now, peer, haypile_engine::Close::Abort);
    world.settle();
    app.tell(&mut world, &listener, RequestBody::Acceptor);
    let socket = app.accept(&mut world).unwrap();
    assert_eq!(socket.stream.take_error(), libc::ECONNRESET);
}

#[test]
fn offers_make_a_listener_readable_for_the_process_that_has_them() {
    let mut world = World::new();
    let mut app = world.app();
    let mut watcher = app.watcher(&mut world, 3);
    let listener = app.bind(&mut world, "0.0.0.0:80").unwrap();
    app.listen_on(&mut world, &listener, 10).unwrap();
    // Waiting on a listener makes an acceptor.
    app.watch(&mut world, &watcher, &listener, ready::IN);
    assert_eq!(watcher.next(), None);
    world.dial(80);
    let event = watcher.next().unwrap();
    assert_eq!((event.slot, event.bits), (listener.slot, ready::IN));
    assert!(app.accept(&mut world).is_some());
    assert_eq!(watcher.next(), None);
}

#[test]
fn more_connections_than_the_ring_holds_all_arrive() {
    let mut world = World::new();
    let mut app = world.app();
    let listener = app.bind(&mut world, "0.0.0.0:80").unwrap();
    app.listen_on(&mut world, &listener, 1000).unwrap();
    app.tell(&mut world, &listener, RequestBody::Acceptor);
    for _ in 0..600 {
        world.dial(80);
    }
    let mut sockets = Vec::new();
    while let Some(socket) = app.accept(&mut world) {
        sockets.push(socket);
    }
    assert_eq!(sockets.len(), 600);
}

#[test]
fn service_times_are_measured_and_shown() {
    let mut world = World::new();
    let mut app = world.app();
    let listener = app.listen(&mut world, 80);
    for _ in 0..3 {
        let peer = world.dial(80);
        let socket = app.accept(&mut world).unwrap();
        world.run_for(30_000);
        app.tell(&mut world, &socket, RequestBody::Close { abort: false });
        let now = world.now;
        world.peer.close(now, peer);
        world.run_for(1_000_000);
    }
    let now = world.now;
    let unchanged = crate::config::BalanceChange::default();
    let report = world.server.core.balance(now, &unchanged, 0).unwrap();
    let [manager] = &report.managers[..] else { panic!("{report:?}") };
    assert_eq!((manager.local, manager.remote, manager.offers_sent), (3, 0, 0));
    let [queue] = &manager.queues[..] else { panic!("{report:?}") };
    assert_eq!(queue.queue, "0.0.0.0:80");
    let [acceptor] = &queue.acceptors[..] else { panic!("{report:?}") };
    assert_eq!((acceptor.assigned, acceptor.open, acceptor.unclaimed), (3, 0, 0));
    assert!(acceptor.ready && acceptor.offered_by.is_none());
    let estimate = acceptor.estimate_us.unwrap();
    assert!((30_000..40_000).contains(&estimate), "{estimate}");
    // Rules change while it runs, and wrong ones do not.
    let mut change = crate::config::BalanceChange {
        scheme: Some("filtered".into()),
        tariff: Some(4.0),
        ..unchanged
    };
    let report = world.server.core.balance(now, &change, 0).unwrap();
    assert_eq!(report.managers[0].balance.scheme.as_deref(), Some("filtered"));
    assert_eq!(report.managers[0].balance.tariff, Some(4.0));
    change.tariff = Some(0.0);
    assert!(
        world.server.core.balance(now, &change, 0).unwrap_err().to_string().contains("1 to 1000")
    );
    app.tell(&mut world, &listener, RequestBody::Close { abort: false });
    assert!(world.server.core.manager.is_empty());
}

#[test]
fn sockets_that_share_an_address_are_one_accept_queue() {
    let mut world = World::new();
    let mut first = world.app();
    let mut second = first.fork(&mut world);
    let mut listeners = Vec::new();
    for (app, cookie) in [(&mut first, 101), (&mut second, 102)] {
        let (listener, _) = app.bind_with(&mut world, "0.0.0.0:80", true).unwrap();
        let body = RequestBody::Listen {
            backlog: 50,
            v6only: false,
            reuse_port: true,
            cookie,
            opening: false,
        };
        app.ask(&mut world, (listener.slot, listener.generation), body).unwrap();
        app.tell(&mut world, &listener, RequestBody::Acceptor);
        listeners.push(listener);
    }
    // The hash of the flow sends them anywhere; they are dealt out in turn all the same.
    for _ in 0..10 {
        world.dial(80);
    }
    let mut taken = [0; 2];
    for (app, count) in [&mut first, &mut second].into_iter().zip(&mut taken) {
        while app.accept(&mut world).is_some() {
            *count += 1;
        }
    }
    assert_eq!(taken, [5, 5]);
    // One socket goes: the other gets everything that comes to it.
    second.tell(&mut world, &listeners[1], RequestBody::Close { abort: false });
    for _ in 0..4 {
        world.dial(80);
    }
    let mut more = 0;
    while first.accept(&mut world).is_some() {
        more += 1;
    }
    assert_eq!(more, 4);
}

#[test]
fn a_process_that_opens_one_listener_after_the_other_leaves_nothing_of_them() {
    let mut world = World::new();
    let app = world.app();
    let other = app.fork(&mut world);
    for _ in 0..20 {
        let listener = app.listen(&mut world, 80);
        other.tell(&mut world, &listener, RequestBody::Acceptor);
        app.tell(&mut world, &listener, RequestBody::Close { abort: false });
    }
    let accepts = world.server.core.processes.iter().map(|(_, process)| process.accepts.len());
    assert_eq!(accepts.collect::<Vec<_>>(), [0, 0]);
    assert!(world.server.core.manager.is_empty());
}

#[test]
fn a_new_manager_hears_of_many_listeners_over_some_turns() {
    const LISTENERS: usize = 3 * OFFERS_AT_ONCE / 2;
    let mut world = World::new();
    let app = world.app();
    for port in 0..LISTENERS as u16 {
        app.listen(&mut world, 1000 + port);
    }
    let (now, core) = (world.now, &mut world.server.core);
    core.manager.set_peers(true);
    for expected in [OFFERS_AT_ONCE, LISTENERS, LISTENERS] {
        core.run_manager(now);
        assert_eq!(core.managers.waiting(), expected);
        assert_eq!(core.manager.is_quiet(now), expected == LISTENERS);
    }
}
