//! How many TCP segments conversations take: a ratchet. Every segment costs both hosts; what is here may go down.

use haypile_engine::{Counter, ListenOptions, SocketOptions};
use haypile_sim::application::Script;
use haypile_sim::fault::FaultPlan;
use haypile_sim::scenario::{build_host, host_address, nothing_left};
use haypile_sim::world::World;
use std::net::SocketAddr;

/// Segments sent by a client and a server, from the SYN to the end of both sides.
fn segments(client: Script, server: Script) -> (u64, u64) {
    let mut world = World::new(7);
    let path = FaultPlan { delay_us: 50, ..FaultPlan::default() };
    for number in 0..2 {
        world.add(build_host(number, 1500, 1), path.clone());
    }
    let address = SocketAddr::new(host_address(0, false), 80);
    world.hosts[0].shard.listen(address, ListenOptions::default()).expect("listen");
    world.hosts[0].on_accept(server);
    let now = world.now();
    let host = &mut world.hosts[1];
    let id = host.shard.connect(now, None, address, SocketOptions::default()).expect("connect");
    let local = host.shard.local_address(id).expect("an address");
    host.start(id, local, address, client);
    let over = |world: &World| {
        let mut hosts = world.hosts.iter();
        hosts.all(|host| host.running() == 0 && !host.finished().is_empty())
    };
    world.run_until(10_000_000, over).expect("both ends finish");
    world.run_until(1_000_000_000, nothing_left).expect("nothing is left open");
    let sent = |world: &World, host: usize| {
        world.hosts[host].shard.counters().get(Counter::TcpSegmentsSent)
    };
    (sent(&world, 1), sent(&world, 0))
}

const QUIET: Script = Script {
    send_bytes: 0,
    pause_us: 0,
    gulp_bytes: 1 << 20,
    abort_after: None,
    answer_after: 0,
    close_last: false,
    close_early: false,
};

#[test]
fn a_short_request_with_close() {
    let client = Script { send_bytes: 100, close_last: true, ..QUIET };
    let server = Script { send_bytes: 800, answer_after: 100, ..QUIET };
    // Client: SYN; request with the handshake's ACK; FIN with the ACK of answer and FIN. Server: SYN-ACK; answer with
    // FIN and the request's ACK; ACK of the FIN.
    assert_eq!(segments(client, server), (3, 3));
}

#[test]
fn a_large_answer() {
    let client = Script { send_bytes: 100, close_last: true, ..QUIET };
    let server = Script { send_bytes: 100_000, answer_after: 100, ..QUIET };
    let (asked, answered) = segments(client, server);
    // 70 segments of data, SYN-ACK, and the last ACK.
    assert_eq!(answered, 72);
    // SYN, request, an acknowledgement for each burst, FIN.
    assert_eq!(asked, 5);
}
