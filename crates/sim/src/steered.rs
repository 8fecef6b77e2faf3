//! A service of several servers behind one Ethernet address, from one seed: TCP both ways and to ourselves, datagrams
//! of all sizes, errors, pings and bad paths. The promise: everything is where its owner is, every byte of every stream
//! arrives in order or its connection fails, datagrams arrive as they were sent, and nobody but the speaker answers for
//! all. Called by `tests/steered.rs`.

use crate::application::{Script, Verdict};
use crate::host::Host;
use crate::scenario::{
    Scenario, build_host, build_service, host_address, nothing_left, socket_options,
};
use crate::world::World;
use haypile_engine::random::Random;
use haypile_engine::steering::{Rule, Steering};
use haypile_engine::{
    Close, ConnectError, Counter, DatagramOptions, DropReason, ListenError, ListenOptions, SendTo,
    SocketId,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// How a run came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Ends of connections that completed.
    pub complete: usize,
    /// Ends that failed or left.
    pub other: usize,
    /// Datagrams that arrived at servers of the service, and outside.
    pub datagrams: usize,
    /// Packets that servers handed to each other.
    pub handed: u64,
    /// Errors about datagrams that the servers' sockets were told.
    pub errors: u64,
    /// The paths were good.
    pub clean: bool,
}

/// Where each part of the world is.
struct Layout {
    servers: u16,
    steering: Arc<Steering>,
    service: SocketAddr,
    outside: SocketAddr,
    /// The place of the host outside.
    stranger: usize,
}

/// A UDP socket of the world.
struct Endpoint {
    host: usize,
    id: SocketId,
    address: SocketAddr,
}

const PORT: u16 = 80;
const CLOSED_PORT: u16 = 9;
const RUN_LIMIT_US: u64 = 3_600_000_000;

/// Draws a world from `seed`, runs it and checks the promise.
///
/// # Errors
/// What was broken, with the seed.
pub fn run_seed(seed: u64) -> Result<Outcome, String> {
    let mut random = Random::new(seed);
    let mut scenario = Scenario::draw(&mut random);
    if seed.is_multiple_of(3) {
        scenario.plan = crate::FaultPlan { delay_us: scenario.plan.delay_us, ..Default::default() };
    }
    run(&scenario, seed, &mut random)
        .map_err(|error| format!("seed {seed}: {error}\nscenario: {scenario:#?}"))
}

fn run(scenario: &Scenario, seed: u64, random: &mut Random) -> Result<Outcome, String> {
    let rule = if random.chance(300_000) { Rule::Low12 } else { Rule::Hash };
    let servers = random.between(2, 5) as u16;
    let clean = is_clean(scenario);
    let mut world = World::new(seed ^ 0x57EE);
    let (members, steering) = build_service(0, scenario.mtu, seed, servers, rule);
    let loss_ppm = if clean { 0 } else { scenario.plan.loss_ppm };
    world.add_service(members, Arc::clone(&steering), &scenario.plan, loss_ppm);
    let stranger = world.add(build_host(1, scenario.mtu, seed), scenario.plan.clone());
    let address = |number| SocketAddr::new(host_address(number, scenario.ipv6), PORT);
    let (service, outside) = (address(0), address(1));
    let layout = Layout { servers, steering, service, outside, stranger };
    listen(&mut world, &layout)?;
    for _ in 0..scenario.connections {
        connect_in(scenario, &mut world, &layout, random)?;
        connect_out(scenario, &mut world, &layout, random, outside, stranger)?;
    }
    connect_out(scenario, &mut world, &layout, random, service, stranger)?;
    let endpoints = open_sockets(&mut world, &layout)?;
    let sent = exchange_datagrams(&mut world, &endpoints, random, clean)?;
    let closed = provoke_errors(&mut world, &layout, &endpoints, random)?;
    let pings = ping(&mut world, &layout);
    world.run_until(RUN_LIMIT_US, |world| world.hosts.iter().all(|host| host.running() == 0))?;
    world.run_for(120_000_000)?;
    let mut outcome = judge(&world, &layout, clean, closed, pings)?;
    outcome.datagrams = check_datagrams(&world, &endpoints, sent, scenario, clean)?;
    for endpoint in &endpoints {
        let now = world.now();
        world.hosts[endpoint.host].shard.close(now, endpoint.id, Close::Graceful);
    }
    world.run_until(RUN_LIMIT_US, nothing_left)?;
    Ok(outcome)
}

fn is_clean(scenario: &Scenario) -> bool {
    let plan = &scenario.plan;
    let faults = plan.loss_ppm + plan.duplicate_ppm + plan.corrupt_ppm + plan.reorder_ppm;
    faults == 0 && plan.rate_bytes_per_s == 0 && plan.jitter_us == 0
}

/// Every server listens, as every server of a service does, and so does the host outside.
fn listen(world: &mut World, layout: &Layout) -> Result<(), String> {
    for place in 0..=layout.stranger {
        let template = socket_options();
        let options = ListenOptions { backlog: 64, template, ..ListenOptions::default() };
        let local = if place == layout.stranger { layout.outside } else { layout.service };
        let listening = world.hosts[place].shard.listen(local, options);
        listening.map_err(|error| format!("listen: {error:?}"))?;
    }
    Ok(())
}

/// From outside to the service: whoever owns the flow accepts it, or `Host` complains.
fn connect_in(
    scenario: &Scenario,
    world: &mut World,
    layout: &Layout,
    random: &mut Random,
) -> Result<(), String> {
    let (there, here) = (scenario.draw_script(random), scenario.draw_script(random));
    let now = world.now();
    let client = &mut world.hosts[layout.stranger];
    let opened = client.shard.connect(now, None, layout.service, socket_options());
    let id = opened.map_err(|error| format!("connect: {error:?}"))?;
    let local = client.shard.local_address(id).ok_or("a connection without an address")?;
    client.start(id, local, layout.service, here);
    let owner = layout.steering.owner_of_flow(layout.service, local);
    world.hosts[usize::from(owner)].on_accept(there);
    Ok(())
}

/// From some server to the host outside, or to the service itself. One that owns no flow to there says who does.
fn connect_out(
    scenario: &Scenario,
    world: &mut World,
    layout: &Layout,
    random: &mut Random,
    remote: SocketAddr,
    stranger: usize,
) -> Result<(), String> {
    let (there, here): (Script, Script) =
        (scenario.draw_script(random), scenario.draw_script(random));
    let now = world.now();
    let wished = random.between(0, u64::from(layout.servers) - 1) as usize;
    let open = |host: &mut Host| host.shard.connect(now, None, remote, socket_options());
    let (place, id) = match open(&mut world.hosts[wished]) {
        Ok(id) => (wished, id),
        Err(ConnectError::Elsewhere(owner)) => {
            let place = usize::from(owner);
            let id =
                open(&mut world.hosts[place]).map_err(|error| format!("sent on: {error:?}"))?;
            (place, id)
        }
        Err(error) => return Err(format!("connect out: {error:?}")),
    };
    let client = &mut world.hosts[place];
    let local = client.shard.local_address(id).ok_or("a connection without an address")?;
    if usize::from(layout.steering.owner_of_flow(local, remote)) != place {
        return Err(format!("{local} to {remote} does not come back to server {place}"));
    }
    client.start(id, local, remote, here);
    let accepting = match remote == layout.service {
        true => usize::from(layout.steering.owner_of_flow(remote, local)),
        false => stranger,
    };
    world.hosts[accepting].on_accept(there);
    Ok(())
}

/// A UDP socket at each server and outside, at ports that each chooses.
fn open_sockets(world: &mut World, layout: &Layout) -> Result<Vec<Endpoint>, String> {
    let mut endpoints = Vec::new();
    for place in 0..=layout.stranger {
        let own = if place == layout.stranger { layout.outside } else { layout.service };
        let shard = &mut world.hosts[place].shard;
        let id = shard
            .open_datagram(SocketAddr::new(own.ip(), 0), DatagramOptions::default())
            .map_err(|error| format!("open: {error:?}"))?;
        let address = shard.local_address(id).ok_or("a socket without an address")?;
        endpoints.push(Endpoint { host: place, id, address });
    }
    let port = endpoints[1].address.port();
    let taken = SocketAddr::new(layout.service.ip(), port);
    match world.hosts[0].shard.open_datagram(taken, DatagramOptions::default()) {
        Err(ListenError::Elsewhere(1)) => Ok(endpoints),
        other => Err(format!("port {port} at server 0: {other:?}")),
    }
}

/// What was sent: where from, where to, how long, and how often it has arrived.
type Sent = BTreeMap<u32, (SocketAddr, SocketAddr, usize, usize)>;

fn exchange_datagrams(
    world: &mut World,
    endpoints: &[Endpoint],
    random: &mut Random,
    clean: bool,
) -> Result<Sent, String> {
    let mut sent = Sent::new();
    for number in 0..random.between(1, 30) as u32 {
        let from = &endpoints[random.between(0, endpoints.len() as u64 - 1) as usize];
        let to = &endpoints[random.between(0, endpoints.len() as u64 - 1) as usize];
        let len =
            [random.between(4, 100), random.between(4, 20_000)][random.between(0, 1) as usize];
        let mut payload = vec![number as u8; len as usize];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        let wish = SendTo { remote: Some(to.address), ..SendTo::default() };
        let now = world.now();
        let shard = &mut world.hosts[from.host].shard;
        if shard.send_datagram(now, from.id, &wish, &payload).is_ok() {
            sent.insert(number, (from.address, to.address, payload.len(), 0));
        }
        world.run_for(if clean { 200_000 } else { random.between(0, 50_000) })?;
    }
    Ok(sent)
}

fn check_datagrams(
    world: &World,
    endpoints: &[Endpoint],
    mut sent: Sent,
    scenario: &Scenario,
    clean: bool,
) -> Result<usize, String> {
    let mut count = 0;
    for (place, host) in world.hosts.iter().enumerate() {
        for received in &host.memory.datagrams {
            let number =
                received.payload.first_chunk::<4>().ok_or("a datagram that nobody sent")?;
            let number = u32::from_be_bytes(*number);
            let (from, to, len, arrived) =
                sent.get_mut(&number).ok_or("a datagram that nobody sent")?;
            let endpoint = &endpoints[place];
            let right = endpoint.id == received.id
                && (*from, *to) == (received.datagram.remote, received.datagram.local)
                && endpoint.address == *to
                && *len == received.payload.len()
                && received.payload[4..].iter().all(|byte| *byte == number as u8);
            if !right {
                return Err(format!("datagram {number} arrived wrong at host {place}"));
            }
            *arrived += 1;
            count += 1;
        }
    }
    for (number, (from, to, _, arrived)) in &sent {
        let one = *arrived == 1 || (!clean && *arrived == 0);
        if !one && scenario.plan.duplicate_ppm == 0 {
            return Err(format!("datagram {number} {from} to {to} arrived {arrived} times"));
        }
    }
    Ok(count)
}

/// Datagrams from every server to a port that nobody has outside, and from there to one that no server has.
fn provoke_errors(
    world: &mut World,
    layout: &Layout,
    endpoints: &[Endpoint],
    random: &mut Random,
) -> Result<u64, String> {
    for endpoint in endpoints {
        let ip = match endpoint.host == layout.stranger {
            true => layout.service.ip(),
            false => layout.outside.ip(),
        };
        let remote = SocketAddr::new(ip, CLOSED_PORT);
        let now = world.now();
        let shard = &mut world.hosts[endpoint.host].shard;
        shard
            .connect_datagram(endpoint.id, Some(remote))
            .map_err(|error| format!("connect a datagram socket: {error:?}"))?;
        shard
            .send_datagram(now, endpoint.id, &SendTo::default(), b"nobody")
            .map_err(|error| format!("send to nobody: {error}"))?;
        world.run_for(random.between(0, 50_000))?;
    }
    world.run_for(30_000_000)?;
    Ok(endpoints.len() as u64)
}

/// Echo requests from outside, as frames; how many.
fn ping(world: &mut World, layout: &Layout) -> u64 {
    let (SocketAddr::V4(service), SocketAddr::V4(outside)) = (layout.service, layout.outside)
    else {
        return 0;
    };
    let (to, from) = (world.hosts[0].mac, world.hosts[layout.stranger].mac);
    let count = 5;
    for _ in 0..count {
        let mut frame = [to, from].concat();
        frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0]);
        frame.extend(outside.ip().octets());
        frame.extend(service.ip().octets());
        let sum: u32 =
            frame[14..34].chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend([8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
        world.inject(layout.stranger, frame);
    }
    count
}

fn judge(
    world: &World,
    layout: &Layout,
    clean: bool,
    closed: u64,
    pings: u64,
) -> Result<Outcome, String> {
    let mut outcome = Outcome { clean, ..Outcome::default() };
    for program in world.hosts.iter().flat_map(|host| host.finished()) {
        match program.verdict() {
            Some(Verdict::Complete) => outcome.complete += 1,
            Some(Verdict::Failed | Verdict::Left) | None => outcome.other += 1,
        }
    }
    let answers = [
        Counter::ArpRepliesSent,
        Counter::NeighbourAdvertisementsSent,
        Counter::EchoRepliesSent,
        Counter::GroupReportsSent,
    ];
    let members = &world.hosts[..layout.stranger];
    for (server, host) in members.iter().enumerate() {
        let counters = host.shard.counters();
        for answer in answers {
            if server > 0 && counters.get(answer) > 0 {
                return Err(format!("server {server} is not the speaker: {}", answer.name()));
            }
        }
        // Damaged frames may go astray, but are known by their checksums.
        for reason in [DropReason::TcpElsewhere, DropReason::UdpElsewhere, DropReason::SpeakerOnly]
        {
            if counters.dropped(reason) > 0 {
                return Err(format!("server {server} has dropped: {}", reason.text()));
            }
        }
        outcome.handed += counters.get(Counter::PacketsTakenOver);
        outcome.errors += counters.get(Counter::UdpErrorsReported);
    }
    let speaker = members[0].shard.counters();
    let asked = world.hosts[layout.stranger].shard.counters();
    if clean {
        let told = outcome.errors + asked.get(Counter::UdpErrorsReported);
        if told != closed {
            return Err(format!("{told} errors were told of {closed} datagrams to nobody"));
        }
        if speaker.get(Counter::EchoRepliesSent) != pings {
            return Err(format!("{pings} pings: {}", speaker.get(Counter::EchoRepliesSent)));
        }
        let pairs = [
            (Counter::ArpRequestsSent, Counter::ArpRepliesSent),
            (Counter::NeighbourSolicitationsSent, Counter::NeighbourAdvertisementsSent),
        ];
        for (question, answer) in pairs {
            if speaker.get(answer) > asked.get(question) {
                return Err(format!("more answers than questions: {}", answer.name()));
            }
        }
    }
    Ok(outcome)
}
