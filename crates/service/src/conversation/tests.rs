//! Servers that hear each other's words, the right ones and the wrong ones.

use haypile_engine::SocketId;
use haypile_engine::control::names::{ConnectionName, ListenerName, ProcessName};

use super::*;
use crate::harness::World;
use crate::roles::Roles;
use crate::testing::peer_pair;

fn world(plan: &str, own: u16) -> World {
    World::at(Roles::new(&plan.parse().unwrap(), own), "", false)
}

/// Two servers of a plan that know each other.
fn introduced(plan: &str, one: u16, other: u16) -> (World, World, crate::testing::PeerPair) {
    let mut pair = peer_pair(false);
    let (mut first, mut second) = (world(plan, one), world(plan, other));
    let (end, bell) = pair.first.take().unwrap();
    first.server.core.rings.join(other, end.0, bell);
    let (end, bell) = pair.second.take().unwrap();
    second.server.core.rings.join(one, end.0, bell);
    (first, second, pair)
}

#[test]
fn every_kind_has_its_place() {
    let connection = ConnectionName { server: 1, id: SocketId::new(2, 3) };
    let (listener, process) = (ListenerName(4), ProcessName::new(1, 5));
    let messages = [
        Incoming::ToManager(ToManager::ListenerOpened { listener, group: listener, server: 1 }),
        Incoming::ToManager(ToManager::Served { listener, process, service_time_us: 1, server: 1 }),
        Incoming::ToManager(ToManager::ServerGone { server: 1 }),
        Incoming::ToTransport(ToTransport::Revoke { connection, process }),
        Incoming::BetweenManagers(BetweenManagers::Nobody { group: listener }),
    ];
    for message in messages {
        let line = message.encode();
        let kind = haypile_shm::messages::ServerMessage::decode(&line).unwrap().kind;
        assert_eq!(KINDS[place_of(&message)].0, kind, "{message:?}");
    }
}

#[test]
fn a_manager_hears_a_transport_server_and_answers() {
    let (mut transport, mut manager, _pair) = introduced("TS1LS1+CM1", 0, 1);
    let listener = ListenerName(7);
    let connection = ConnectionName { server: 0, id: SocketId::new(2, 3) };
    let process = ProcessName::new(0, 5);
    let said = [
        ToManager::ListenerOpened { listener, group: listener, server: 0 },
        ToManager::Acceptor { listener, process },
        ToManager::Arrived { listener, connection },
    ];
    let now = transport.now;
    for message in said {
        transport.server.core.tell_own_manager(now, message);
    }
    transport.server.core.speak_to_peers();
    assert_eq!(manager.server.core.hear_peers(now), 3);
    manager.server.core.run_manager(now);
    manager.server.core.speak_to_peers();
    assert_eq!(manager.server.core.conversation.said[13], 1);
    assert_eq!(transport.server.core.hear_peers(now), 1);
    // The connection is none that exists, which the manager is told.
    transport.server.core.speak_to_peers();
    assert_eq!(manager.server.core.hear_peers(now), 1);
    let rows: Vec<(String, u64)> = manager.server.core.conversation.rows().collect();
    assert!(rows.contains(&("heard_offer_failed".into(), 1)), "{rows:?}");
}

#[test]
fn nobody_speaks_for_another() {
    let (mut transport, mut manager, _pair) = introduced("TS2LS2+CM1", 0, 2);
    let listener = ListenerName(7);
    let foreign = ConnectionName { server: 1, id: SocketId::new(2, 3) };
    let lies = [
        Incoming::ToManager(ToManager::ServerGone { server: 1 }),
        Incoming::ToManager(ToManager::Claimed { connection: foreign, counts: true }),
        Incoming::ToManager(ToManager::ProcessDied { process: ProcessName::new(1, 5) }),
        Incoming::BetweenManagers(BetweenManagers::Nobody { group: listener }),
        Incoming::ToTransport(ToTransport::Revoke {
            connection: foreign,
            process: ProcessName::new(0, 1),
        }),
    ];
    let now = transport.now;
    for lie in lies {
        transport.server.core.rings.push_message(2, &lie.encode());
    }
    transport.server.core.rings.push_message(2, &[u64::MAX; 8]);
    transport.server.core.rings.flush();
    assert_eq!(manager.server.core.hear_peers(now), 6);
    assert_eq!(manager.server.core.conversation.nonsense, 6);
    assert_eq!(manager.server.core.conversation.heard.iter().sum::<u64>(), 0);
}

#[test]
fn a_peer_is_joined_only_by_whom_it_concerns() {
    let mut world = world("TS1LS1+CM1", 0);
    let now = world.now;
    let fd = || crate::server::Era::fd(&world.server.core.era);
    let copy = |raw| {
        let fd = Fd::from_raw(raw);
        let copy = fd.try_clone_at_least(0).unwrap();
        let _: i32 = fd.into_raw();
        copy
    };
    let given = || [copy(fd()), copy(fd()), copy(fd())];
    let (wrong, stranger, frames) = (given(), given(), given());
    let server = &mut world.server;
    assert!(server.join_peer(now, 1, false, wrong).is_err());
    assert_eq!(server.join_peer(now, 9, false, stranger), Err(Errno::EPROTO));
    assert_eq!(server.join_peer(now, 1, true, frames), Err(Errno::EPROTO));
    assert!(server.core.rings.present().is_empty());
}
