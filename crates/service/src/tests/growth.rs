//! A server that runs hears of others that come.

use haypile_engine::steering::BUCKETS;

use super::harness::World;
use crate::plan::Plan;
use crate::roles::Roles;
use crate::roster::Roster;

fn plan(text: &str) -> Plan {
    text.parse().unwrap()
}

#[test]
fn a_lone_server_becomes_one_of_several_and_keeps_what_it_has() {
    let mut world = World::at(Roles::combined(), "", false);
    let server = &mut world.server;
    assert!(server.core.shard.steered().is_none() && server.link.switch().is_none());
    // Another service's servers are none of ours.
    assert!(!server.grow(Roster::of(&plan("TS2LS2CM2"))));
    assert!(server.core.shard.steered().is_none());
    let roster = Roster::of(&Plan::combined()).grown(&plan("TS2LS2CM2")).unwrap();
    assert!(server.grow(roster.clone()));
    let steered = server.core.shard.steered().expect("one of several");
    assert_eq!((steered.server, steered.steering.servers()), (0, 2));
    assert!((0..BUCKETS as u16).all(|bucket| steered.steering.owner_of_flows(bucket) == 0));
    assert!((1..=u16::MAX).all(|port| steered.steering.owner_of_port(port) == 0));
    assert!(server.link.switch().is_some());
    assert!(server.core.rings.roles().talks_to(1) && server.core.managers.manager_of(1) == 1);
    // Once more, and by one more.
    assert!(server.grow(roster.clone()));
    assert!(server.grow(roster.grown(&plan("TS3LS3CM2")).unwrap()));
    assert_eq!(server.core.shard.steered().map(|own| own.steering.servers()), Some(3));
    assert!(!server.grow(roster), "nobody is forgotten");
}

#[test]
fn a_server_that_comes_later_has_neither_flows_nor_ports() {
    let roster = Roster::of(&Plan::combined()).grown(&plan("TS2LS2CM2")).unwrap();
    let world = World::at(Roles::of(roster, 1).unwrap(), "", false);
    let steered = world.server.core.shard.steered().expect("one of several");
    assert!(!steered.steering.has_flows(1) && !steered.steering.has_ports(1));
    assert_eq!(steered.steering.stand_in_for(1), 0);
}
