//! A service whose buckets move from server to server while connections transfer, from one seed: TCP both ways and
//! to ourselves, bad paths, late `accept`, servers that refuse. The promise: every byte of every stream arrives
//! once and in order or its connection fails, on good paths nothing fails and nothing is reset, no flow is ever
//! with two servers, and in the end all agree who has what. Called by `tests/migration.rs`.

use crate::application::{Application, Script, Verdict};
use crate::fault::FaultPlan;
use crate::inside::{Inside, MoveCounts};
use crate::scenario::{
    Scenario, build_host, build_service, host_address, nothing_left, socket_options,
};
use crate::world::World;
use haypile_engine::random::Random;
use haypile_engine::steering::{BUCKETS, Rule, Steering};
use haypile_engine::{
    ConnectError, Counter, DropReason, Freight, Instant, ListenOptions, Positions, SocketId,
    SocketState, State, Streams,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// How a run came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Ends of connections that completed.
    pub complete: usize,
    /// Ends that failed or left.
    pub other: usize,
    /// What moved.
    pub moves: MoveCounts,
    /// Packets that were sent after their flows.
    pub followed: u64,
    /// The paths were good.
    pub clean: bool,
    /// Segments that were sent again.
    pub retransmitted: u64,
}

/// What moves, and how often.
#[derive(Clone, Debug)]
struct Plan {
    servers: u16,
    /// Who steer and are no servers.
    other_steerers: u16,
    rule: Rule,
    /// The longest pause between two moves, in microseconds.
    pause_us: u64,
    /// At some time all flows leave the last server, and many empty buckets move.
    shrink: bool,
    clean: bool,
    delay_us: u64,
    refusal_ppm: u32,
    claim_after_us: u64,
}

const PORT: u16 = 80;
const RUN_LIMIT_US: u64 = 3_600_000_000;
/// Moves of one run.
const MOVES_MAX: usize = 400;

impl Plan {
    fn draw(random: &mut Random, clean: bool) -> Plan {
        Plan {
            servers: random.between(2, 4) as u16,
            other_steerers: random.between(0, 2) as u16,
            rule: if random.chance(200_000) { Rule::Low12 } else { Rule::Hash },
            pause_us: [100, 3_000, 50_000, 1_000_000][random.between(0, 3) as usize],
            shrink: random.chance(150_000),
            clean,
            delay_us: [0, 30, 2_000][random.between(0, 2) as usize],
            refusal_ppm: if random.chance(300_000) { 150_000 } else { 0 },
            claim_after_us: [0, 0, 500, 100_000][random.between(0, 3) as usize],
        }
    }
}

/// Draws a world from `seed`, runs it and checks the promise.
///
/// # Errors
/// What was broken, with the seed.
pub fn run_seed(seed: u64) -> Result<Outcome, String> {
    let mut random = Random::new(seed ^ 0x4D0_7E5);
    let mut scenario = Scenario::draw(&mut random);
    let clean = seed.is_multiple_of(3);
    if clean {
        scenario.plan = FaultPlan { delay_us: scenario.plan.delay_us, ..FaultPlan::default() };
    }
    let plan = Plan::draw(&mut random, clean);
    run(&scenario, &plan, seed, &mut random)
        .map_err(|error| format!("seed {seed}: {error}\nscenario: {scenario:#?}\n{plan:#?}"))
}

/// Where each part of the world is.
struct Layout {
    steering: Arc<Steering>,
    service: SocketAddr,
    outside: SocketAddr,
    stranger: usize,
}

fn run(
    scenario: &Scenario,
    plan: &Plan,
    seed: u64,
    random: &mut Random,
) -> Result<Outcome, String> {
    let mut world = World::new(seed ^ 0x3077E);
    let (members, steering) = build_service(0, scenario.mtu, seed, plan.servers, plan.rule);
    let loss_ppm = if plan.clean { 0 } else { scenario.plan.loss_ppm };
    world.add_service(members, Arc::clone(&steering), &scenario.plan, loss_ppm);
    world.let_buckets_move(|members, steering| {
        let mut inside = Inside::new(members, steering, plan.other_steerers, seed);
        inside.delay_us = plan.delay_us;
        inside.loss_ppm = loss_ppm;
        inside.refusal_ppm = plan.refusal_ppm;
        inside
    });
    let stranger = world.add(build_host(1, scenario.mtu, seed), scenario.plan.clone());
    let address = |number| SocketAddr::new(host_address(number, scenario.ipv6), PORT);
    let layout = Layout { steering, service: address(0), outside: address(1), stranger };
    listen(&mut world, &layout, plan)?;
    let mut buckets = BTreeSet::new();
    for _ in 0..scenario.connections {
        buckets.insert(connect_in(scenario, plan, &mut world, &layout, random)?);
        buckets.insert(connect_out(scenario, plan, &mut world, &layout, random, layout.outside)?);
    }
    buckets.insert(connect_out(scenario, plan, &mut world, &layout, random, layout.service)?);
    let buckets: Vec<u16> = buckets.into_iter().collect();
    move_about(&mut world, plan, &buckets, random)?;
    world.run_until(RUN_LIMIT_US, |world| world.hosts.iter().all(|host| host.running() == 0))?;
    world.run_until(RUN_LIMIT_US, |world| {
        world.inside().is_some_and(|inside| inside.is_settled(&world.hosts))
    })?;
    // TIME-WAIT records move too.
    for bucket in &buckets {
        world.move_bucket(*bucket, random.between(0, u64::from(plan.servers) - 1) as u16)?;
        world.run_for(random.between(0, 5_000))?;
    }
    world.run_until(RUN_LIMIT_US, nothing_left)?;
    world.run_for(10 * plan.delay_us + 1)?;
    if !world.inside().is_some_and(|inside| inside.is_settled(&world.hosts)) {
        return Err("the last moves are not settled".into());
    }
    judge(&world, &layout, plan)
}

fn listen(world: &mut World, layout: &Layout, plan: &Plan) -> Result<(), String> {
    for place in 0..=layout.stranger {
        let options =
            ListenOptions { backlog: 64, template: socket_options(), ..ListenOptions::default() };
        let local = if place == layout.stranger { layout.outside } else { layout.service };
        let listening = world.hosts[place].shard.listen(local, options);
        listening.map_err(|error| format!("listen: {error:?}"))?;
        world.hosts[place].claim_after_us = plan.claim_after_us;
    }
    Ok(())
}

/// On good paths all is meant to end well.
fn draw_script(scenario: &Scenario, plan: &Plan, random: &mut Random) -> Script {
    let script = scenario.draw_script(random);
    match plan.clean {
        true => Script { abort_after: None, close_early: false, ..script },
        false => script,
    }
}

/// Whichever server has the flow when it is accepted follows the script.
fn expect_at_service(world: &mut World, layout: &Layout, peer: SocketAddr, script: &Script) {
    for member in &mut world.hosts[..layout.stranger] {
        member.scripts_of_peers.insert(peer, script.clone());
    }
}

fn connect_in(
    scenario: &Scenario,
    plan: &Plan,
    world: &mut World,
    layout: &Layout,
    random: &mut Random,
) -> Result<u16, String> {
    let (there, here) = (draw_script(scenario, plan, random), draw_script(scenario, plan, random));
    let now = world.now();
    let client = &mut world.hosts[layout.stranger];
    let opened = client.shard.connect(now, None, layout.service, socket_options());
    let id = opened.map_err(|error| format!("connect: {error:?}"))?;
    let local = client.shard.local_address(id).ok_or("a connection without an address")?;
    client.start(id, local, layout.service, here);
    expect_at_service(world, layout, local, &there);
    Ok(layout.steering.bucket_of_flow(layout.service, local))
}

fn connect_out(
    scenario: &Scenario,
    plan: &Plan,
    world: &mut World,
    layout: &Layout,
    random: &mut Random,
    remote: SocketAddr,
) -> Result<u16, String> {
    let (there, here) = (draw_script(scenario, plan, random), draw_script(scenario, plan, random));
    let now = world.now();
    let wished = random.between(0, u64::from(plan.servers) - 1) as usize;
    let mut open =
        |place: usize| world.hosts[place].shard.connect(now, None, remote, socket_options());
    let (place, opened) = match open(wished) {
        Err(ConnectError::Elsewhere(owner)) => (usize::from(owner), open(usize::from(owner))),
        opened => (wished, opened),
    };
    let id = opened.map_err(|error| format!("connect out: {error:?}"))?;
    let client = &mut world.hosts[place];
    let local = client.shard.local_address(id).ok_or("a connection without an address")?;
    client.start(id, local, remote, here);
    match remote == layout.service {
        true => expect_at_service(world, layout, local, &there),
        false => {
            world.hosts[layout.stranger].scripts_of_peers.insert(local, there);
        }
    }
    Ok(layout.steering.bucket_of_flow(local, remote))
}

/// Moves buckets, those with flows mostly, while the programs run.
fn move_about(
    world: &mut World,
    plan: &Plan,
    buckets: &[u16],
    random: &mut Random,
) -> Result<(), String> {
    let last = plan.servers - 1;
    for count in 0..MOVES_MAX {
        if world.hosts.iter().all(|host| host.running() == 0) && count > 10 {
            return Ok(());
        }
        let bucket = match random.chance(900_000) {
            true => buckets[random.between(0, buckets.len() as u64 - 1) as usize],
            false => random.between(0, BUCKETS as u64 - 1) as u16,
        };
        world.move_bucket(bucket, random.between(0, u64::from(last)) as u16)?;
        if plan.shrink && count == 5 {
            let some = (0..BUCKETS as u16).step_by(61);
            for bucket in some.chain(buckets.iter().copied()) {
                world.move_bucket(bucket, random.between(0, u64::from(last) - 1) as u16)?;
            }
        }
        check_owners(world)?;
        world.run_for(random.between(0, plan.pause_us))?;
        check_owners(world)?;
    }
    Ok(())
}

/// No flow is with two servers, in whatever state.
fn check_owners(world: &World) -> Result<(), String> {
    let Some(inside) = world.inside() else { return Ok(()) };
    let mut flows: BTreeMap<(SocketAddr, SocketAddr), usize> = BTreeMap::new();
    for member in inside.members() {
        for socket in world.hosts[member].shard.sockets() {
            let (SocketState::Tcp(state), Some(remote)) = (socket.state, socket.remote) else {
                continue;
            };
            if state == State::Closed {
                continue;
            }
            if let Some(other) = flows.insert((socket.local, remote), member) {
                let flow = (socket.local, remote);
                return Err(format!("{flow:?} is with hosts {other} and {member}"));
            }
        }
    }
    Ok(())
}

fn judge(world: &World, layout: &Layout, plan: &Plan) -> Result<Outcome, String> {
    let mut outcome = Outcome { clean: plan.clean, ..Outcome::default() };
    outcome.moves = world.inside().map(|inside| inside.counts).unwrap_or_default();
    for host in &world.hosts {
        outcome.retransmitted += host.shard.counters().tcp.retransmitted_segments;
    }
    for member in &world.hosts[..layout.stranger] {
        let counters = member.shard.counters();
        outcome.followed += counters.get(Counter::PacketsSentAfterFlows);
        let elsewhere = counters.dropped(DropReason::TcpElsewhere);
        if elsewhere > 0 {
            return Err(format!("{elsewhere} segments were given up as somebody else's"));
        }
    }
    let ends: Vec<&Application> = world.hosts.iter().flat_map(|host| host.finished()).collect();
    let mut seen = BTreeSet::new();
    for end in &ends {
        if !seen.insert((end.local(), end.remote())) {
            return Err(format!("two programs for {} and {}", end.local(), end.remote()));
        }
        match end.verdict() {
            Some(Verdict::Complete) => outcome.complete += 1,
            _ => outcome.other += 1,
        }
        let peer = ends.iter().find(|p| p.remote() == end.local() && p.local() == end.remote());
        let differs = peer.is_some_and(|peer| end.bytes_read() != peer.bytes_written());
        if end.verdict() == Some(Verdict::Complete) && differs {
            return Err(format!("{} <- {}: not all was read", end.local(), end.remote()));
        }
    }
    if plan.clean {
        check_clean(world, &ends, outcome.other)?;
    }
    Ok(outcome)
}

/// On good paths moves are not noticed.
fn check_clean(world: &World, ends: &[&Application], other: usize) -> Result<(), String> {
    if other > 0 {
        let bad: Vec<_> =
            ends.iter().filter(|end| end.verdict() != Some(Verdict::Complete)).collect();
        return Err(format!("{other} ends did not complete: {bad:#?}"));
    }
    for (place, host) in world.hosts.iter().enumerate() {
        let counters = host.shard.counters();
        for counter in [
            // A late duplicate may find its flow over, and is answered; no connection may hear of it.
            Counter::TcpResets,
            Counter::HeldDropped,
            Counter::ForwardsDropped,
            Counter::TcpCookiesRefused,
        ] {
            if counters.get(counter) > 0 {
                return Err(format!("host {place}: {}", counter.text()));
            }
        }
    }
    Ok(())
}

/// Streams that take everything, wherever their bytes are said to lie.
struct Anywhere;

impl Streams for Anywhere {
    fn write(&mut self, _id: SocketId, _position: u64, data: &[u8]) -> usize {
        data.len()
    }

    fn read(&mut self, _id: SocketId, _position: u64, out: &mut [u8]) {
        out.fill(0);
    }
}

impl Freight for Anywhere {
    fn pack(&mut self, _id: SocketId, _out: &mut Vec<u8>) {}

    fn check(&mut self, _baggage: &mut dyn Iterator<Item = &[u8]>) -> bool {
        true
    }

    fn unpack(&mut self, _id: SocketId, baggage: &[u8]) -> Positions {
        Positions { written: baggage.len() as u64, read: 0 }
    }

    fn receipt(&mut self) -> Option<Vec<u8>> {
        None
    }

    fn deliver(&mut self, _from: u16, _receipt: &[u8]) {}
}

/// For fuzzing: a server takes a bucket that is `input` behind a proper start, and goes on with whatever that gave.
pub fn replay_bucket(input: &[u8]) {
    let (mut members, _) = build_service(0, 1500, 1, 2, Rule::Low12);
    let Some(shard) = members.last_mut().map(|host| &mut host.shard) else { return };
    let (number, rest) = input.split_at(input.len().min(2));
    let bucket = number.iter().fold(0, |sum, byte| sum << 8 | u16::from(*byte)) % BUCKETS as u16;
    shard.expect_bucket(bucket, 1);
    let mut now = Instant::from_us(1_000_000);
    let mut bytes = haypile_engine::migration::VERSION.to_le_bytes().to_vec();
    bytes.extend(bucket.to_le_bytes());
    bytes.extend(now.us().to_le_bytes());
    bytes.extend(rest);
    if shard.import_bucket(now, bucket, &bytes, &mut Anywhere).is_err() {
        return;
    }
    let mut frame = vec![0; 1514];
    for _ in 0..200 {
        while shard.poll_transmit(now, &mut frame, &mut Anywhere).is_some() {}
        while shard.poll_event().is_some() {}
        let Some(timeout) = shard.poll_timeout() else { return };
        now = timeout.max(now).plus_us(1);
        shard.handle_timers(now, &mut Anywhere);
    }
}
