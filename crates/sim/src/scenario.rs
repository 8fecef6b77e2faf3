//! A whole run from one seed: hosts, faults and connections are drawn from it, the run is made, and the promise is
//! checked: every byte of every stream arrives once and in order, or the connection reports an error; no connection
//! leaks. The seeds of CI and single seeds to be repeated both come through [`run_seed`].

use crate::application::{Script, Verdict};
use crate::fault::FaultPlan;
use crate::host::Host;
use crate::world::World;
use haypile_engine::random::Random;
use haypile_engine::steering::{Rule, Steering};
use haypile_engine::{
    Cidr, Limits, ListenOptions, Offloads, Route, Shard, ShardConfig, SocketOptions, SocketState,
    Steered,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// What is drawn from a seed.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Hosts on the switch; the first one listens.
    pub hosts: usize,
    /// Connections in all.
    pub connections: usize,
    /// Largest number of bytes one end sends.
    pub bytes_max: u64,
    /// IPv6 instead of IPv4.
    pub ipv6: bool,
    /// IP MTU.
    pub mtu: u16,
    /// What every path does.
    pub plan: FaultPlan,
    /// One write in so many is cut short by a host short of memory.
    pub short_write_every: Option<u64>,
    /// Every host's link finishes checksums, cuts superframes and merges segments.
    pub offload: bool,
}

/// How a run came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Ends of connections that completed.
    pub complete: usize,
    /// Ends that reported an error.
    pub failed: usize,
    /// Ends that left early, as their script says.
    pub left: usize,
    /// Virtual time until the last program was over, in microseconds.
    pub took_us: u64,
    /// Superframes sent and received.
    pub superframes: (u64, u64),
}

const PORT: u16 = 80;
const RUN_LIMIT_US: u64 = 3_600_000_000;
/// Longer than TIME-WAIT, the orphan retransmissions and FIN-WAIT-2 together.
const SETTLE_LIMIT_US: u64 = 3_600_000_000;

impl Scenario {
    /// Draws a scenario: clean paths now and then, usually some of every fault, now and then a terrible path.
    pub fn draw(random: &mut Random) -> Scenario {
        let severity = random.between(0, 5) as u32;
        let share =
            |random: &mut Random, most: u32| random.between(0, u64::from(most * severity)) as u32;
        let plan = FaultPlan {
            loss_ppm: share(random, 20_000),
            duplicate_ppm: share(random, 10_000),
            reorder_ppm: share(random, 30_000),
            reorder_us: random.between(1, 50_000),
            corrupt_ppm: share(random, 5_000),
            delay_us: random.between(0, 40_000),
            jitter_us: random.between(0, 2_000) * u64::from(severity),
            rate_bytes_per_s: [0, 0, 100_000, 10_000_000][random.between(0, 3) as usize],
            queue_frames: random.between(10, 200),
        };
        Scenario {
            hosts: random.between(2, 4) as usize,
            connections: random.between(1, 12) as usize,
            bytes_max: [0, 1, 3_000, 100_000, 300_000][random.between(0, 4) as usize],
            ipv6: random.chance(500_000),
            mtu: [1280, 1500, 1500, 9000][random.between(0, 3) as usize],
            plan,
            short_write_every: random.chance(200_000).then(|| random.between(3, 40)),
            offload: false,
        }
    }

    fn offloads(&self) -> Offloads {
        match self.offload {
            true => Offloads { tx_checksum: true, tx_segmentation: 65_535 },
            false => Offloads::default(),
        }
    }

    pub(crate) fn draw_script(&self, random: &mut Random) -> Script {
        let abort = random.chance(60_000);
        Script {
            send_bytes: random.between(0, self.bytes_max),
            pause_us: [0, 100, 20_000][random.between(0, 2) as usize],
            gulp_bytes: [100, 5_000, 100_000][random.between(0, 2) as usize]
                .max(1 + self.bytes_max / 200),
            abort_after: abort.then(|| random.between(0, self.bytes_max)),
            answer_after: 0,
            close_last: false,
            close_early: random.chance(60_000),
        }
    }
}

/// The address of host `number`.
pub fn host_address(number: usize, ipv6: bool) -> IpAddr {
    let last = number as u16 + 1;
    if ipv6 {
        IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, last))
    } else {
        IpAddr::V4(Ipv4Addr::new(198, 18, 0, last as u8))
    }
}

/// A host with both addresses of `number` and default limits.
///
/// # Panics
/// When the configuration is refused, which would be a mistake of this function.
pub fn build_host(number: usize, mtu: u16, seed: u64) -> Host {
    build_host_with(number, mtu, seed, Offloads::default())
}

/// As [`build_host`], with limits of its own.
///
/// # Panics
/// As [`build_host`].
pub fn build_limited_host(number: usize, mtu: u16, seed: u64, limits: Limits) -> Host {
    build(number, mtu, seed, limits, Offloads::default(), None)
}

/// The servers of a service that has the addresses of host `number`, and who owns what among them.
///
/// # Panics
/// As [`build_host`].
pub fn build_service(
    number: usize,
    mtu: u16,
    seed: u64,
    servers: u16,
    rule: Rule,
) -> (Vec<Host>, Arc<Steering>) {
    let steering = Arc::new(Steering::new(seed, rule, servers));
    let member = |server| {
        let steered = Some(Steered { server, steering: Arc::clone(&steering) });
        build(number, mtu, seed, Limits::default(), Offloads::default(), steered)
    };
    ((0..servers).map(member).collect(), Arc::clone(&steering))
}

/// The same with a link that does some of its work.
fn build_host_with(number: usize, mtu: u16, seed: u64, offloads: Offloads) -> Host {
    build(number, mtu, seed, Limits::default(), offloads, None)
}

fn build(
    number: usize,
    mtu: u16,
    seed: u64,
    limits: Limits,
    offloads: Offloads,
    steered: Option<Steered>,
) -> Host {
    let mac = [2, 0, 0, 0, 0, number as u8 + 1];
    let addresses = vec![
        Cidr { addr: host_address(number, false), prefix_len: 24 },
        Cidr { addr: host_address(number, true), prefix_len: 64 },
    ];
    // One secret for all servers of a service, and tables of its own for each.
    let mut secret = [0; 32];
    let mut random = Random::new(seed ^ (number as u64) << 32);
    secret.fill_with(|| random.next_u64() as u8);
    let server = steered.as_ref().map_or(0, |steered| u64::from(steered.server));
    let config = ShardConfig {
        mac,
        mtu,
        addresses,
        routes: Vec::<Route>::new(),
        limits,
        secret,
        seed: random.next_u64() ^ server << 48,
        offloads,
        steered,
    };
    let start = haypile_engine::Instant::from_us(1_000_000);
    let shard = Shard::new(config, start).expect("a host of the simulation is well configured");
    Host::new(shard, mac, usize::from(mtu).max(offloads.tx_segmentation as usize) + 14)
}

/// Draws a scenario from `seed`, runs it and checks the promise.
///
/// # Errors
/// What was broken, with the seed and the scenario, so that it can be repeated.
pub fn run_seed(seed: u64) -> Result<Outcome, String> {
    let mut random = Random::new(seed);
    let mut scenario = Scenario::draw(&mut random);
    scenario.offload = seed % 2 == 1;
    run(&scenario, seed, &mut random)
        .map_err(|error| format!("seed {seed}: {error}\nscenario: {scenario:#?}"))
}

/// Runs one scenario. See [`run_seed`].
///
/// # Errors
/// What was broken.
pub fn run(scenario: &Scenario, seed: u64, random: &mut Random) -> Result<Outcome, String> {
    let mut world = World::new(seed ^ 0xA5A5);
    for number in 0..scenario.hosts {
        let mut host = build_host_with(number, scenario.mtu, seed, scenario.offloads());
        host.merges = scenario.offload;
        host.memory.short_write_every = scenario.short_write_every;
        world.add(host, scenario.plan.clone());
    }
    open_connections(scenario, &mut world, random)?;
    world.run_until(RUN_LIMIT_US, |world| world.hosts.iter().skip(1).all(|h| h.running() == 0))?;
    let took_us = world.now().us() - 1_000_000;
    world.run_until(SETTLE_LIMIT_US, nothing_left)?;
    let outcome = judge(&world, took_us);
    check_agreement(&world)?;
    Ok(outcome)
}

fn open_connections(
    scenario: &Scenario,
    world: &mut World,
    random: &mut Random,
) -> Result<(), String> {
    let server = SocketAddr::new(host_address(0, scenario.ipv6), PORT);
    let template = socket_options();
    let options = ListenOptions { backlog: 64, template, ..ListenOptions::default() };
    let listening = world.hosts[0].shard.listen(server, options);
    listening.map_err(|error| format!("listen: {error:?}"))?;
    for number in 0..scenario.connections {
        let (there, here) = (scenario.draw_script(random), scenario.draw_script(random));
        let now = world.now();
        world.hosts[0].on_accept(there);
        let client = &mut world.hosts[1 + number % (scenario.hosts - 1)];
        let opened = client.shard.connect(now, None, server, socket_options());
        let id = opened.map_err(|error| format!("connect: {error:?}"))?;
        let local = client.shard.local_address(id).ok_or("a connection without an address")?;
        client.start(id, local, server, here);
    }
    Ok(())
}

/// Keep-alive is on: an end whose peer's RST was lost would otherwise wait for ever, as TCP allows.
pub(crate) fn socket_options() -> SocketOptions {
    SocketOptions { keep_alive: true, keep_idle_s: 120, ..SocketOptions::default() }
}

/// True when nothing but listeners is left on any host.
pub fn nothing_left(world: &World) -> bool {
    world.hosts.iter().all(|host| {
        host.running() == 0
            && host.shard.sockets().all(|socket| socket.state == SocketState::Listen)
    })
}

fn judge(world: &World, took_us: u64) -> Outcome {
    let count = |of: fn(&Host) -> u64| world.hosts.iter().map(of).sum();
    let superframes = (count(|host| host.cut), count(|host| host.merged));
    let mut outcome = Outcome { took_us, superframes, ..Outcome::default() };
    for program in world.hosts.iter().flat_map(|host| host.finished()) {
        match program.verdict() {
            Some(Verdict::Complete) => outcome.complete += 1,
            Some(Verdict::Failed) => outcome.failed += 1,
            Some(Verdict::Left) | None => outcome.left += 1,
        }
    }
    outcome
}

/// An end that completed has read the peer's stream to the end that the peer meant; the bytes were checked as they
/// were read, so the lengths are what is left to compare.
fn check_agreement(world: &World) -> Result<(), String> {
    let ends: Vec<_> = world.hosts.iter().flat_map(|host| host.finished()).collect();
    for end in &ends {
        let peer = ends.iter().find(|p| p.remote() == end.local() && p.local() == end.remote());
        let Some(peer) = peer else { continue };
        if end.verdict() == Some(Verdict::Complete) && end.bytes_read() != peer.bytes_written() {
            return Err(format!(
                "{} <- {}: complete with {} bytes read of {} written",
                end.local(),
                end.remote(),
                end.bytes_read(),
                peer.bytes_written()
            ));
        }
    }
    Ok(())
}
