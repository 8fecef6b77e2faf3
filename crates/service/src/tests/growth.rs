//! A server that runs hears of others that come and leave.

use haypile_engine::Instant;
use haypile_engine::steering::BUCKETS;

use super::harness::World;
use crate::moving::Selection;
use crate::plan::Plan;
use crate::roles::Roles;
use crate::roster::Roster;
use crate::server::Server;

fn plan(text: &str) -> Plan {
    text.parse().unwrap()
}

#[test]
fn a_lone_server_becomes_one_of_several_and_keeps_what_it_has() {
    let mut world = World::at(Roles::combined(), "", false);
    let server = &mut world.server;
    assert!(server.core.shard.steered().is_none() && server.link.switch().is_none());
    // Another service's servers are none of ours.
    assert!(!server.follow(Roster::of(&plan("TS2LS2CM2"))));
    assert!(server.core.shard.steered().is_none());
    let roster = Roster::of(&Plan::combined()).grown(&plan("TS2LS2CM2")).unwrap();
    assert!(server.follow(roster.clone()));
    let steered = server.core.shard.steered().expect("one of several");
    assert_eq!((steered.server, steered.steering.servers()), (0, 2));
    assert!((0..BUCKETS as u16).all(|bucket| steered.steering.owner_of_flows(bucket) == 0));
    assert!((1..=u16::MAX).all(|port| steered.steering.owner_of_port(port) == 0));
    assert!(server.link.switch().is_some());
    assert!(server.core.rings.roles().talks_to(1) && server.core.managers.manager_of(1) == 1);
    // Once more, and by one more.
    assert!(server.follow(roster.clone()));
    assert!(server.follow(roster.grown(&plan("TS3LS3CM2")).unwrap()));
    assert_eq!(server.core.shard.steered().map(|own| own.steering.servers()), Some(3));
}

#[test]
fn one_that_is_left_alone_still_knows_what_has_moved() {
    let one = Roster::of(&Plan::combined());
    let three = one.grown(&plan("TS3LS3CM3")).unwrap();
    let mut world = World::at(Roles::of(three.clone(), 0).unwrap(), "", false);
    let server = &mut world.server;
    server.core.homes.open(3);
    assert!(server.core.shard.note_move(7, 1, 2), "server 2 has bucket 7");
    let stays = three.shrunk(&Plan::combined()).unwrap().unwrap();
    assert!(server.follow(three.parting(&stays)));
    let homes: Vec<u16> = (0..6).map(|_| server.core.homes.deal([7; 16])).collect();
    assert_eq!(homes, [0; 6], "nobody new goes to those that leave");
    let map = |server: &Server<_>| server.core.shard.steered().map(|own| own.steering.clone());
    let steering = map(server).unwrap();
    assert_eq!((steering.servers(), steering.staying(), steering.owner_of_flows(7)), (3, 1, 2));
    assert_eq!(steering.stand_in_for(2), 0);
    assert!(server.core.begin_moves(Instant::default(), Selection::Bucket(1), 2, 10).is_err());
    // It comes back by a move, and its last server leaves.
    assert!(server.core.shard.note_move(7, 2, 0));
    assert!(server.follow(stays));
    let steering = map(server).unwrap();
    assert_eq!((steering.servers(), steering.version_of_flows(7)), (1, 2));
    assert!((0..BUCKETS as u16).all(|bucket| steering.owner_of_flows(bucket) == 0));
    assert_eq!(server.core.rings.roles().transport_count(), 1);
    // Another comes in the place of the first.
    assert!(server.follow(one.grown(&plan("TS2LS2CM2")).unwrap()));
    assert_eq!(map(server).map(|steering| steering.version_of_flows(7)), Some(2));
}

#[test]
fn a_server_that_comes_later_has_neither_flows_nor_ports() {
    let roster = Roster::of(&Plan::combined()).grown(&plan("TS2LS2CM2")).unwrap();
    let world = World::at(Roles::of(roster, 1).unwrap(), "", false);
    let steered = world.server.core.shard.steered().expect("one of several");
    assert!(!steered.steering.has_flows(1) && !steered.steering.has_ports(1));
    assert_eq!(steered.steering.stand_in_for(1), 0);
}
