//! What another transport server has is answered with that server's number, and leaves nothing behind here.

use std::net::SocketAddr;

use haypile_engine::steering::{Rule, Steering};
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::{ELSEWHERE, RequestBody, SocketReply};

use super::harness::{App, PEER, SERVER, Sock, World};
use crate::plan::Plan;
use crate::roles::Roles;
use crate::roster::Roster;
use crate::switch::steering_of;

const OWN: u16 = 1;

fn world(settings: &str) -> (World, Steering) {
    let plan: Plan = "TS4LS4CM1".parse().unwrap();
    let rule = if settings.contains("low12") { Rule::Low12 } else { Rule::Hash };
    // The secret of every world.
    let steering = steering_of(&Roster::of(&plan), rule, &[5; 32]);
    (World::at(Roles::new(&plan, OWN), settings, false), steering)
}

fn answer(app: &App, world: &mut World, name: (u32, u32), body: RequestBody) -> SocketReply {
    SocketReply::decode(&app.call(world, name, body)).unwrap()
}

fn sockets(world: &World) -> usize {
    world.server.core.store.sockets.keys().len()
}

#[test]
fn a_udp_port_is_bound_at_its_home() {
    let (mut world, steering) = world("");
    let app = world.app();
    let before = sockets(&world);
    let mut kept: Vec<Sock> = Vec::new();
    for port in 5000..5040 {
        let body = RequestBody::BindDatagram {
            address: SocketAddr::new(SERVER.parse().unwrap(), port),
            reuse_address: false,
            reuse_port: false,
            v6only: false,
        };
        match steering.owner_of_port(port) {
            OWN => kept.push(app.ask(&mut world, (NO_SLOT, 0), body).unwrap().0),
            owner => {
                let reply = answer(&app, &mut world, (NO_SLOT, 0), body);
                assert_eq!((reply.errno, reply.slot), (ELSEWHERE, u32::from(owner)));
            }
        }
    }
    assert!(kept.len() > 2 && kept.len() < 30);
    assert_eq!(sockets(&world), before + kept.len(), "what was refused is gone");
    let any = app.bind_datagram(&mut world, "0.0.0.0:0").unwrap();
    let local = world.server.core.shard.sockets().filter(|one| one.local.ip().is_unspecified());
    assert!(local.into_iter().all(|one| steering.owner_of_port(one.local.port()) == OWN));
    drop(any);
}

#[test]
fn a_connection_from_a_bound_port_is_made_by_the_owner_of_its_flow() {
    let (mut world, steering) = world("");
    let app = world.app();
    let remote = SocketAddr::new(PEER.parse().unwrap(), 80);
    let (mut here, mut there) = (0, 0);
    for port in 6000..6040 {
        let local = SocketAddr::new(SERVER.parse().unwrap(), port);
        let socket = app.bind(&mut world, &local.to_string()).unwrap();
        let name = (socket.slot, socket.generation);
        let reply = answer(&app, &mut world, name, RequestBody::Connect { remote });
        match steering.owner_of_flow(local, remote) {
            OWN => {
                assert_eq!(reply.errno, 0);
                here += 1;
            }
            owner => {
                assert_eq!((reply.errno, reply.slot), (ELSEWHERE, u32::from(owner)));
                there += 1;
            }
        }
    }
    assert!(here > 2 && there > 2);
    for _ in 0..20 {
        app.connect(&mut world, PEER, 80).unwrap();
    }
}

#[test]
fn by_the_peers_port_alone_some_server_has_all_flows_to_it() {
    let (mut world, steering) = world("steer = \"low12\"\n");
    let app = world.app();
    let before = sockets(&world);
    for port in [1, 80, 443, 2000, 4095] {
        let remote = SocketAddr::new(PEER.parse().unwrap(), port);
        let reply = answer(&app, &mut world, (NO_SLOT, 0), RequestBody::Connect { remote });
        match steering.owner_of_flow(SocketAddr::new(SERVER.parse().unwrap(), 0), remote) {
            OWN => assert_eq!(reply.errno, 0),
            owner => assert_eq!((reply.errno, reply.slot), (ELSEWHERE, u32::from(owner))),
        }
    }
    assert!(sockets(&world) <= before + 2);
}
