//! Homes and names of processes, where there are several transport servers.

use haypile_shm::messages::{ControlReply, ControlRequest};
use haypile_shm::{Errno, control};

use super::harness::World;
use crate::roles::Roles;

fn world(server: u16) -> World {
    World::at(Roles::new(&"TS2LS2CM2".parse().unwrap(), server), "", false)
}

/// A process that lives as long as the test.
fn own_pid() -> i32 {
    std::process::id() as i32
}

fn welcome(reply: ControlReply) -> (u16, u64, u64) {
    match reply {
        ControlReply::Welcome { server, servers: 2, name, proof, .. } => (server, name, proof),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_second_process_is_sent_to_the_other_server_and_may_stay() {
    let mut world = world(0);
    let mut sent = Vec::new();
    for _ in 0..4 {
        let control = world.connect_control();
        match world.greet(&control, own_pid(), 0, 0) {
            ControlReply::Home { server: 1, servers: 2 } => sent.push(control),
            reply => assert_eq!(welcome(reply).0, 0),
        }
    }
    assert_eq!(sent.len(), 2);
    let reply = world.greet(&sent[0], own_pid(), 0, 0);
    let (server, name, _) = welcome(reply);
    assert_eq!((server, name >> 32), (0, 0));
}

#[test]
fn a_name_is_good_in_the_other_server_with_its_proof_alone() {
    let (mut home, mut other) = (world(1), world(0));
    let control = home.connect_control();
    let (server, name, proof) = welcome(home.greet(&control, own_pid(), 0, 0));
    assert_eq!((server, name >> 32), (1, 1));
    let stranger = other.connect_control();
    let refused = other.greet(&stranger, own_pid(), name, proof ^ 1);
    assert!(matches!(refused, ControlReply::Refused { errno: libc::EACCES, .. }), "{refused:?}");
    let thief = other.connect_control();
    let refused = other.greet(&thief, 1, name, proof);
    assert!(matches!(refused, ControlReply::Refused { errno: libc::EACCES, .. }), "{refused:?}");
    assert!(other.server.core.processes.is_empty());
    let guest = other.connect_control();
    assert_eq!(welcome(other.greet(&guest, own_pid(), name, proof)), (0, name, proof));
    let word = haypile_engine::control::names::ProcessName::from_word(name);
    assert!(other.server.core.processes.named(word).is_some());
    // Its home gives the same name back to it after a death.
    let mut again = world(1);
    let control = again.connect_control();
    assert_eq!(welcome(again.greet(&control, own_pid(), name, proof)), (1, name, proof));
}

#[test]
fn another_program_in_a_process_ends_what_it_was_here() {
    let (mut home, mut other) = (world(1), world(0));
    let control = home.connect_control();
    let (_, name, proof) = welcome(home.greet(&control, own_pid(), 0, 0));
    let guest = other.connect_control();
    welcome(other.greet(&guest, own_pid(), name, proof));
    for (now, left) in [(name, 1), (name + 1, 0)] {
        let news = other.connect_control();
        other.next_is(own_pid());
        let message = ControlRequest::NewProgram { name: now }.encode();
        control::send(news.raw(), &message, &[]).unwrap();
        other.settle();
        assert_eq!(other.server.core.processes.len(), left);
    }
    // It knows nobody, and says so by the end of the connection.
    let nobody = other.connect_control();
    let message = ControlRequest::NewProgram { name }.encode();
    control::send(nobody.raw(), &message, &[]).unwrap();
    other.settle();
    assert_eq!(control::receive(nobody.raw()).err(), Some(Errno::EPIPE));
}
