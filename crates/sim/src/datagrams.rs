//! UDP from one seed: hosts with sockets of all kinds send each other datagrams of all sizes over
//! bad paths. The promise: what arrives is exactly what somebody sent to that socket, and on good
//! paths everything arrives once. Called by `tests/datagrams.rs`.

use crate::fault::FaultPlan;
use crate::memory::Received;
use crate::scenario::{Scenario, build_host, host_address};
use crate::world::World;
use haypile_engine::random::Random;
use haypile_engine::{Close, DatagramOptions, PathMtu, SendError, SendTo, SocketId};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How a run came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Datagrams that the shards took.
    pub sent: usize,
    /// Datagrams that arrived, copies included.
    pub received: usize,
    /// The path was good, so that all had to arrive.
    pub clean: bool,
}

/// One datagram on its way.
struct Sent {
    to_host: usize,
    from: SocketAddr,
    to: SocketAddr,
    payload: Vec<u8>,
    arrived: usize,
}

struct Endpoint {
    host: usize,
    id: SocketId,
    port: u16,
    ipv6: bool,
}

const LONGEST: u64 = 20_000;

/// Draws a world from `seed`, runs it and checks the promise.
///
/// # Errors
/// What was broken, with the seed.
pub fn run_seed(seed: u64) -> Result<Outcome, String> {
    let mut random = Random::new(seed);
    let scenario = Scenario::draw(&mut random);
    run(&scenario, seed, &mut random)
        .map_err(|error| format!("seed {seed}: {error}\nscenario: {scenario:#?}"))
}

fn run(scenario: &Scenario, seed: u64, random: &mut Random) -> Result<Outcome, String> {
    let mut world = World::new(seed ^ 0x5A5A);
    for number in 0..scenario.hosts {
        let host = build_host(number, scenario.mtu, seed);
        world.add(host, scenario.plan.clone());
    }
    let clean = is_clean(&scenario.plan);
    let endpoints = open_endpoints(scenario, &mut world, random)?;
    let mut sent: BTreeMap<u32, Sent> = BTreeMap::new();
    for number in 0..random.between(1, 60) as u32 {
        let from = &endpoints[random.between(0, endpoints.len() as u64 - 1) as usize];
        let to = &endpoints[random.between(0, endpoints.len() as u64 - 1) as usize];
        if let Some(datagram) = send(number, from, to, &mut world, random)? {
            sent.insert(number, datagram);
        }
        // On good paths every neighbour has answered before the next datagram waits for it.
        let pause_us = if clean { 200_000 } else { random.between(0, 100_000) };
        world.run_for(pause_us)?;
    }
    world.run_for(120_000_000)?;
    let mut outcome = Outcome { sent: sent.len(), received: 0, clean };
    for (host, received) in world
        .hosts
        .iter()
        .enumerate()
        .flat_map(|(n, h)| h.memory.datagrams.iter().map(move |d| (n, d)))
    {
        check(host, received, &endpoints, &mut sent)?;
        outcome.received += 1;
    }
    judge(&outcome, &sent, scenario)?;
    for endpoint in &endpoints {
        let now = world.now();
        world.hosts[endpoint.host].shard.close(now, endpoint.id, Close::Graceful);
    }
    let left = world.hosts.iter().map(|host| host.shard.sockets().count()).sum::<usize>();
    if left == 0 { Ok(outcome) } else { Err(format!("{left} sockets are left")) }
}

fn is_clean(plan: &FaultPlan) -> bool {
    let faults = plan.loss_ppm + plan.duplicate_ppm + plan.corrupt_ppm + plan.reorder_ppm;
    faults == 0 && plan.rate_bytes_per_s == 0
}

fn open_endpoints(
    scenario: &Scenario,
    world: &mut World,
    random: &mut Random,
) -> Result<Vec<Endpoint>, String> {
    let mut endpoints = Vec::new();
    for host in 0..scenario.hosts {
        for number in 0..random.between(1, 3) as u16 {
            let ipv6 = random.chance(500_000);
            let any = match ipv6 {
                true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            };
            let exact = random.chance(500_000);
            let addr = if exact { host_address(host, ipv6) } else { any };
            let port = if random.chance(300_000) { 0 } else { 1000 + number };
            let modes = [PathMtu::Dont, PathMtu::Want, PathMtu::Omit];
            let options = DatagramOptions {
                dont_fragment: modes[random.between(0, 2) as usize],
                v6only: random.chance(300_000),
                ..DatagramOptions::default()
            };
            let shard = &mut world.hosts[host].shard;
            let id = shard
                .open_datagram(SocketAddr::new(addr, port), options)
                .map_err(|error| format!("open: {error:?}"))?;
            let local = shard.local_address(id).ok_or("a socket without an address")?;
            endpoints.push(Endpoint { host, id, port: local.port(), ipv6 });
        }
    }
    Ok(endpoints)
}

/// Sends one datagram; `None` when the sockets are of different families or the queue was full.
fn send(
    number: u32,
    from: &Endpoint,
    to: &Endpoint,
    world: &mut World,
    random: &mut Random,
) -> Result<Option<Sent>, String> {
    if from.ipv6 != to.ipv6 {
        return Ok(None);
    }
    let remote = SocketAddr::new(host_address(to.host, to.ipv6), to.port);
    let len = [random.between(0, 100), random.between(0, 1500), random.between(0, LONGEST)]
        [random.between(0, 2) as usize];
    let mut payload = number.to_be_bytes().to_vec();
    payload.extend((0..len).map(|_| random.next_u64() as u8));
    let wish = SendTo { remote: Some(remote), ..SendTo::default() };
    let now = world.now();
    match world.hosts[from.host].shard.send_datagram(now, from.id, &wish, &payload) {
        Ok(()) => Ok(Some(Sent {
            to_host: to.host,
            from: SocketAddr::new(host_address(from.host, from.ipv6), from.port),
            to: remote,
            payload,
            arrived: 0,
        })),
        Err(SendError::Busy) => Ok(None),
        Err(error) => Err(format!("send {} bytes to {remote}: {error}", payload.len())),
    }
}

/// One datagram that arrived must be one that was sent there.
fn check(
    host: usize,
    received: &Received,
    endpoints: &[Endpoint],
    sent: &mut BTreeMap<u32, Sent>,
) -> Result<(), String> {
    let Received { id, datagram, payload } = received;
    let number: Option<[u8; 4]> = payload.get(..4).and_then(|bytes| bytes.try_into().ok());
    let number = u32::from_be_bytes(number.ok_or("a datagram that nobody sent")?);
    let original = sent.get_mut(&number).ok_or("a datagram that nobody sent")?;
    let mut sockets = endpoints.iter().filter(|endpoint| endpoint.host == host);
    let right = sockets.any(|socket| socket.id == *id && socket.port == original.to.port());
    let same = (original.from, original.to) == (datagram.remote, datagram.local);
    if !right || !same || original.to_host != host || original.payload != *payload {
        return Err(format!("datagram {number} arrived wrong: {datagram:?} at host {host} {id:?}"));
    }
    original.arrived += 1;
    Ok(())
}

fn judge(outcome: &Outcome, sent: &BTreeMap<u32, Sent>, scenario: &Scenario) -> Result<(), String> {
    for (number, datagram) in sent {
        if outcome.clean && datagram.arrived != 1 {
            return Err(format!("datagram {number} arrived {} times", datagram.arrived));
        }
        if scenario.plan.duplicate_ppm == 0 && datagram.arrived > 1 {
            return Err(format!("datagram {number} came {} times of itself", datagram.arrived));
        }
    }
    Ok(())
}
