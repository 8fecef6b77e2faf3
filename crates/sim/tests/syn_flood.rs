//! A flood of SYNs from made-up addresses at a server that others use: they get in and every byte arrives, and nothing
//! grows with the flood. A failure prints its seed.

use haypile_engine::random::Random;
use haypile_engine::{Counter, Limits, ListenOptions, SocketOptions};
use haypile_sim::application::{Script, Verdict};
use haypile_sim::fault::FaultPlan;
use haypile_sim::host::Host;
use haypile_sim::scenario::{build_host, build_limited_host, host_address, nothing_left};
use haypile_sim::world::World;
use std::net::{IpAddr, SocketAddr};

const HALF_OPEN: u32 = 64;
const CLIENTS: usize = 12;
const PORT: u16 = 80;
const SERVER: usize = 0;
const CLIENT: usize = 1;
const ATTACKER: usize = 2;
/// How often the attacker strikes, in microseconds, with how many frames.
const TICK_US: u64 = 1_000;
const SYNS_PER_TICK: u64 = 20;

/// The sum of 16-bit words that checksums are made of.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| b.into())).sum()
}

fn checksum(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!(sum as u16)).to_be_bytes()
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// A frame to the server with a SYN, or an ACK of nothing, from an address on its network that nobody has.
fn made_up_frame(random: &mut Random, ipv6: bool, flags: u8) -> Vec<u8> {
    let mut source = octets(host_address(0, ipv6));
    *source.last_mut().expect("octets") = random.between(50, 250) as u8;
    if ipv6 {
        source[12..15].copy_from_slice(&random.next_u64().to_be_bytes()[..3]);
    }
    let addresses = [source, octets(host_address(SERVER, ipv6))].concat();
    let mut tcp = random.between(1024, 65_535).to_be_bytes()[6..].to_vec();
    tcp.extend(PORT.to_be_bytes());
    tcp.extend(random.next_u64().to_be_bytes());
    tcp.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    let of_tcp = checksum(sum(&addresses) + 6 + tcp.len() as u32 + sum(&tcp));
    tcp[16..18].copy_from_slice(&of_tcp);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 3];
    let len = tcp.len() as u8;
    if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, len, 6, 64]);
        frame.extend(addresses);
    } else {
        let mut header = vec![0x45, 0, 0, 20 + len, 0, 0, 0x40, 0, 64, 6, 0, 0];
        header.extend(addresses);
        let of_header = checksum(sum(&header));
        header[10..12].copy_from_slice(&of_header);
        frame.extend([8, 0]);
        frame.extend(header);
    }
    frame.extend(tcp);
    frame
}

fn strike(world: &mut World, random: &mut Random, ipv6: bool, frames: u64) {
    for _ in 0..frames {
        let flags = if random.chance(800_000) { 0x02 } else { 0x10 };
        let frame = made_up_frame(random, ipv6, flags);
        world.inject(ATTACKER, frame);
    }
}

fn world(seed: u64, plan: &FaultPlan) -> World {
    let mut world = World::new(seed);
    let limits = Limits { half_open: HALF_OPEN, ..Limits::default() };
    world.add(build_limited_host(SERVER, 1500, seed, limits), plan.clone());
    world.add(build_host(CLIENT, 1500, seed), plan.clone());
    world.add(build_host(ATTACKER, 1500, seed), FaultPlan::default());
    world
}

fn script(random: &mut Random) -> Script {
    Script {
        send_bytes: random.between(0, 200_000),
        pause_us: 500,
        gulp_bytes: 50_000,
        abort_after: None,
        answer_after: 0,
        close_last: false,
        close_early: false,
    }
}

fn connect(world: &mut World, random: &mut Random, ipv6: bool) {
    let server = SocketAddr::new(host_address(SERVER, ipv6), PORT);
    let (there, here) = (script(random), script(random));
    world.hosts[SERVER].on_accept(there);
    let now = world.now();
    let client = &mut world.hosts[CLIENT];
    let id = client.shard.connect(now, None, server, SocketOptions::default()).expect("connect");
    let local = client.shard.local_address(id).expect("an address");
    client.start(id, local, server, here);
}

fn count(host: &Host, counter: Counter) -> u64 {
    host.shard.counters().get(counter)
}

/// Clients come while the flood goes on, and transfer; returns how many ends completed.
fn run(seed: u64, ipv6: bool, plan: &FaultPlan) -> Result<usize, String> {
    let mut random = Random::new(seed);
    let mut world = world(seed, plan);
    let server = SocketAddr::new(host_address(SERVER, ipv6), PORT);
    world.hosts[SERVER].shard.listen(server, ListenOptions::default()).expect("listen");
    strike(&mut world, &mut random, ipv6, 3 * u64::from(HALF_OPEN));
    world.run_for(100_000)?;
    assert_eq!(world.hosts[SERVER].shard.connection_count(), HALF_OPEN as usize);
    for tick in 0..60_000 {
        if tick < 5 * CLIENTS && tick % 5 == 0 {
            connect(&mut world, &mut random, ipv6);
        }
        strike(&mut world, &mut random, ipv6, SYNS_PER_TICK);
        world.run_for(TICK_US)?;
        let open = world.hosts[SERVER].shard.connection_count();
        assert!(open <= HALF_OPEN as usize + CLIENTS, "seed {seed}: {open} connections");
        if tick > 5 * CLIENTS && world.hosts.iter().all(|host| host.running() == 0) {
            break;
        }
    }
    let host = &world.hosts[SERVER];
    assert!(count(host, Counter::TcpCookiesSent) > 500, "seed {seed}");
    assert!(count(host, Counter::TcpCookiesRefused) > 100, "seed {seed}");
    // Of as many ACKs of nothing as were sent, one in 2^28 may be taken.
    assert!(count(host, Counter::TcpCookiesValid) <= CLIENTS as u64, "seed {seed}");
    world.run_until(1_000_000_000, nothing_left)?;
    let ends = world.hosts.iter().flat_map(|host| host.finished());
    Ok(ends.filter(|end| end.verdict() == Some(Verdict::Complete)).count())
}

#[test]
fn clients_get_in_and_transfer_during_a_flood() {
    let plan = FaultPlan { delay_us: 2_000, jitter_us: 500, ..FaultPlan::default() };
    for seed in 0..6 {
        let complete = run(seed, seed % 2 == 1, &plan);
        assert_eq!(complete, Ok(2 * CLIENTS), "seed {seed}");
    }
}

/// The last ACK of a handshake, and data behind it, are lost or overtaken: what comes before them is not reset.
#[test]
fn losses_during_a_flood_spoil_nothing() {
    let plan = FaultPlan {
        delay_us: 2_000,
        loss_ppm: 30_000,
        duplicate_ppm: 10_000,
        reorder_ppm: 20_000,
        reorder_us: 5_000,
        ..FaultPlan::default()
    };
    for seed in 100..106 {
        let complete = run(seed, seed % 2 == 1, &plan);
        assert_eq!(complete, Ok(2 * CLIENTS), "seed {seed}");
    }
}
