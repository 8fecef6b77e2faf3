//! Plans as their servers see them, what is said of frames that cross, and whole services of several
//! servers, with real rings and a wire, as a neighbour sees them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use haypile_engine::{
    Cidr, Counter, Datagram, DatagramOptions, Event, Limits, ListenOptions, Offloads, SendTo,
    ShardConfig, SocketId, SocketOptions, Streams,
};
use haypile_link::wire::{self, Wire, WireConfig};
use proptest::prelude::*;

use super::*;
use crate::plan::{Component, Plan};
use crate::roster::Roster;
use crate::testing::peer_pair;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MAC_OUTSIDE: [u8; 6] = [2, 0, 0, 0, 0, 9];
const MTU: u16 = 1500;
const PORT: u16 = 80;

#[test]
fn members_follow_from_the_plan() {
    let of = |plan: &str, number| Members::of(&Roles::new(&plan.parse().unwrap(), number));
    assert_eq!(of("TS1LS1CM1", 0), None);
    assert_eq!(of("TS2+LS1+CM1", 3), None, "a manager alone");
    let both = of("TS2LS2CM1", 1).unwrap();
    assert_eq!((both.own, both.has_link, both.sends_over), (Some(1), true, None));
    assert_eq!(both.transports, [0, 1]);
    let guest = of("TS2LS1CM2", 1).unwrap();
    assert_eq!((guest.own, guest.has_link, guest.sends_over), (Some(1), false, Some(0)));
    let link = of("LS2+TS3+CM1", 1).unwrap();
    assert_eq!((link.own, link.has_link, link.sends_over), (None, true, None));
    assert_eq!(link.transports, [2, 3, 4]);
    assert_eq!(of("LS2+TS3+CM1", 3).unwrap().sends_over, Some(1));
    assert!(of("TS1+LS1CM1", 0).is_some(), "one transport server, but no link of its own");
}

proptest! {
    #[test]
    fn what_is_said_of_a_frame_survives(
        segment_size in any::<u16>(), valid in any::<bool>(), start in any::<u16>(),
        offset in any::<u16>(), unfinished in any::<bool>(), tag in any::<u64>(),
    ) {
        let checksum = unfinished.then_some(PartialChecksum { start, offset });
        for what in [
            Crossing::Received(RxMeta { checksum_valid: valid, segment_size }),
            Crossing::ToSend { checksum, segment_size },
            Crossing::Packet(ForwardKind::Reassembled),
            Crossing::Packet(ForwardKind::Own),
            Crossing::Packet(ForwardKind::Moved { wire: valid, times: offset as u8, segment_size }),
            Crossing::Network,
            Crossing::Groups,
            Crossing::Aside(Aside::Move),
            Crossing::Aside(Aside::Notice),
            Crossing::Aside(Aside::Switched),
        ] {
            prop_assert_eq!(Crossing::decode(what.encode()), Some(what));
        }
        if let Some(what) = Crossing::decode(tag) {
            prop_assert_eq!(Crossing::decode(what.encode()), Some(what));
        }
    }

    #[test]
    fn groups_survive_their_bytes(groups in prop::collection::vec(any::<IpAddr>(), 0..300)) {
        prop_assert_eq!(decode_groups(&encode_groups(&groups)), Some(groups));
    }

    #[test]
    fn nonsense_is_no_list_of_groups(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        if let Some(groups) = decode_groups(&bytes) {
            prop_assert_eq!(groups.len() * GROUP_LEN, bytes.len());
        }
    }
}

/// Streams that remember datagrams and count bytes.
#[derive(Default)]
struct Memory {
    datagrams: Vec<(SocketId, Datagram, usize)>,
    received: u64,
}

impl Streams for Memory {
    fn write(&mut self, _: SocketId, _: u64, data: &[u8]) -> usize {
        self.received += data.len() as u64;
        data.len()
    }

    fn read(&mut self, _: SocketId, _: u64, out: &mut [u8]) {
        out.fill(7);
    }

    fn write_datagram(&mut self, id: SocketId, datagram: &Datagram, payload: &[u8]) -> bool {
        self.datagrams.push((id, *datagram, payload.len()));
        true
    }
}

impl Inward for Memory {}

/// A shard with its link server.
struct Member {
    link: LinkServer<Wire>,
    shard: Shard,
    memory: Memory,
    events: Vec<Event>,
}

/// All servers of a plan, and a neighbour at the other end of their wire.
struct Service {
    servers: Vec<Member>,
    outside: Member,
    steering: Arc<Steering>,
    now: Instant,
}

fn shard(address: &str, mac: [u8; 6], steered: Option<Steered>, offloads: Offloads) -> Shard {
    let config = ShardConfig {
        mac,
        mtu: MTU,
        addresses: vec![Cidr::new(address.parse().unwrap(), 24)],
        routes: Vec::new(),
        limits: Limits::default(),
        secret: [mac[5]; 32],
        seed: 7,
        offloads,
        steered,
    };
    Shard::new(config, Instant::from_us(1_000_000)).unwrap()
}

fn absent() -> Wire {
    Wire::alone(&WireConfig { mtu: MTU, mac: MAC, superframes: true }).unwrap()
}

impl Member {
    fn new(port: Wire, shard: Shard) -> Member {
        let link = LinkServer::new(port).unwrap();
        Member { link, shard, memory: Memory::default(), events: Vec::new() }
    }

    fn turn(&mut self, now: Instant) -> usize {
        let Member { link, shard, memory, events } = self;
        let mut work = link.receive(now, shard, memory).unwrap();
        if shard.poll_timeout().is_some_and(|due| due <= now) {
            shard.handle_timers(now, memory);
        }
        while let Some(event) = shard.poll_event() {
            if let Event::Progress { id, progress } = event {
                shard.receive_consumed(now, id, progress.rx_end);
            }
            events.push(event);
        }
        work += link.transmit(now, shard, memory).unwrap();
        link.finish_turn(shard, &mut Outward::default());
        work
    }

    fn accepted(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Accepted { .. })).count()
    }

    fn count(&self, counter: Counter) -> u64 {
        self.shard.counters().get(counter)
    }
}

impl Service {
    fn new(plan: &str, rule: Rule) -> Service {
        let plan: Plan = plan.parse().unwrap();
        let steering = Steering::new(0xfeed_f00d, rule, plan.count(Component::Transport));
        let steering = Arc::new(steering);
        let (mut ours, theirs) = {
            let (one, other) = wire::pair(MTU, [MAC, MAC_OUTSIDE], 1 << 12, true).unwrap();
            (Some(one), other)
        };
        let offloads = Offloads { tx_checksum: true, tx_segmentation: 65_535 };
        let specs = plan.servers();
        let mut servers: Vec<Member> = Vec::new();
        for spec in &specs {
            let server = spec.transport.unwrap_or_default();
            let steered = Some(Steered { server, steering: Arc::clone(&steering) });
            let first_link = if spec.link == Some(0) { ours.take() } else { None };
            let port = first_link.unwrap_or_else(absent);
            let mut member = Member::new(port, shard("198.18.0.1", MAC, steered, offloads));
            if let Some(members) = Members::of(&Roles::new(&plan, spec.number)) {
                member.link.set_switch(Switch::new(members, Arc::clone(&steering)));
            }
            servers.push(member);
        }
        for one in 0..servers.len() {
            for other in one + 1..servers.len() {
                let mut pair = peer_pair(true);
                let (end, bell) = pair.first.take().unwrap();
                servers[one].link.peers.join(other as u16, end.1.unwrap(), bell);
                let (end, bell) = pair.second.take().unwrap();
                servers[other].link.peers.join(one as u16, end.1.unwrap(), bell);
            }
        }
        let outside = Member::new(theirs, shard("198.18.0.9", MAC_OUTSIDE, None, offloads));
        Service { servers, outside, steering, now: Instant::from_us(1_000_000) }
    }

    /// Until nothing moves.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            self.now = self.now.plus_us(20);
            let mut work = self.outside.turn(self.now);
            for server in &mut self.servers {
                work += server.turn(self.now);
            }
            if work == 0 {
                return;
            }
        }
        panic!("the servers never come to rest");
    }

    /// The process that runs a transport server.
    fn process_of(&self, server: ServerNumber) -> usize {
        let switch = self.servers.iter().find_map(|member| member.link.switch()).unwrap();
        usize::from(switch.members().transports[usize::from(server)])
    }

    fn transports(&self) -> Vec<usize> {
        (0..self.steering.servers()).map(|server| self.process_of(server)).collect()
    }

    fn all(&self, counter: Counter) -> u64 {
        self.servers.iter().map(|server| server.count(counter)).sum()
    }

    fn switched(&self, of: fn(SwitchCounters) -> u64) -> u64 {
        let switches = self.servers.iter().filter_map(|server| server.link.switch());
        switches.map(|switch| of(switch.counters())).sum()
    }
}

const PLANS: [&str; 5] = ["TS2+LS1+CM1", "TS3LS1CM3", "TS4LS1CM2", "TS1+LS1+CM1", "LS1CM1+TS3"];

#[test]
fn connections_come_to_their_owners_whatever_the_plan() {
    for plan in PLANS {
        for rule in [Rule::Hash, Rule::Low12] {
            let mut service = Service::new(plan, rule);
            for process in service.transports() {
                let local: SocketAddr = format!("0.0.0.0:{PORT}").parse().unwrap();
                service.servers[process].shard.listen(local, ListenOptions::default()).unwrap();
            }
            let remote: SocketAddr = format!("198.18.0.1:{PORT}").parse().unwrap();
            let mut expected = vec![0; service.servers.len()];
            let mut ids = Vec::new();
            for _ in 0..40 {
                let connected = service.outside.shard.connect(
                    service.now,
                    None,
                    remote,
                    SocketOptions::default(),
                );
                let id = connected.unwrap();
                let local = service.outside.shard.local_address(id).unwrap();
                let owner = service.steering.owner_of_flow(remote, local);
                expected[service.process_of(owner)] += 1;
                ids.push(id);
            }
            service.settle();
            let accepted: Vec<usize> = service.servers.iter().map(Member::accepted).collect();
            assert_eq!(accepted, expected, "{plan} {rule:?}");
            assert_eq!(service.all(Counter::ArpRepliesSent), 1, "{plan}: one answer");
            // Superframes both through the rings and over the wire.
            for id in &ids {
                service.outside.shard.send_ready(service.now, *id, 50_000);
            }
            service.settle();
            let received: u64 = service.servers.iter().map(|server| server.memory.received).sum();
            assert_eq!(received, 40 * 50_000, "{plan}");
            assert_eq!(service.switched(|counters| counters.misdirected), 0);
            assert_eq!(service.switched(|counters| counters.dropped), 0);
        }
    }
}

#[test]
fn connections_of_every_server_come_back_to_it() {
    for plan in PLANS {
        let mut service = Service::new(plan, Rule::Hash);
        let local: SocketAddr = "0.0.0.0:7".parse().unwrap();
        service.outside.shard.listen(local, ListenOptions::default()).unwrap();
        let remote: SocketAddr = "198.18.0.9:7".parse().unwrap();
        for process in service.transports() {
            let server = &mut service.servers[process];
            for _ in 0..10 {
                let id = server.shard.connect(service.now, None, remote, SocketOptions::default());
                server.shard.send_ready(service.now, id.unwrap(), 20_000);
            }
        }
        service.settle();
        let count = 10 * service.transports().len();
        assert_eq!(service.outside.accepted(), count, "{plan}");
        assert_eq!(service.outside.memory.received, 20_000 * count as u64, "{plan}");
    }
}

#[test]
fn datagrams_fragments_and_errors_find_the_home_of_their_port() {
    for plan in PLANS {
        let mut service = Service::new(plan, Rule::Hash);
        let mut sockets = Vec::new();
        for process in service.transports() {
            let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
            let shard = &mut service.servers[process].shard;
            let id = shard.open_datagram(any, DatagramOptions::default()).unwrap();
            sockets.push((process, id, shard.local_address(id).unwrap().port()));
        }
        let from: SocketAddr = "0.0.0.0:5000".parse().unwrap();
        let options = DatagramOptions::default();
        let sender = service.outside.shard.open_datagram(from, options).unwrap();
        for (_, _, port) in &sockets {
            for len in [100, 9000] {
                let remote: SocketAddr = format!("198.18.0.1:{port}").parse().unwrap();
                let to = SendTo { remote: Some(remote), ..SendTo::default() };
                let payload = vec![1; len];
                let shard = &mut service.outside.shard;
                shard.send_datagram(service.now, sender, &to, &payload).unwrap();
            }
        }
        service.settle();
        for (process, id, port) in &sockets {
            let memory = &service.servers[*process].memory;
            let mut lens: Vec<usize> = memory
                .datagrams
                .iter()
                .filter(|(owner, datagram, _)| owner == id && datagram.local.port() == *port)
                .map(|(.., len)| *len)
                .collect();
            lens.sort_unstable();
            assert_eq!(lens, [100, 9000], "{plan}: port {port}");
        }
        // A port that nobody has there: each server hears of its own.
        for (process, id, _) in &sockets {
            let to = "198.18.0.9:9".parse().unwrap();
            let shard = &mut service.servers[*process].shard;
            shard.connect_datagram(*id, Some(to)).unwrap();
            shard.send_datagram(service.now, *id, &SendTo::default(), b"x").unwrap();
        }
        service.settle();
        for (process, id, _) in &sockets {
            let mut events = service.servers[*process].events.iter();
            let told = events
                .any(|event| matches!(event, Event::DatagramError { id: of, .. } if of == id));
            assert!(told, "{plan}: process {process}");
        }
        // To our own address, from each server to each.
        for (process, id, _) in &sockets {
            let shard = &mut service.servers[*process].shard;
            shard.connect_datagram(*id, None).unwrap();
            for (_, _, port) in &sockets {
                let remote: SocketAddr = format!("198.18.0.1:{port}").parse().unwrap();
                let to = SendTo { remote: Some(remote), ..SendTo::default() };
                shard.send_datagram(service.now, *id, &to, b"to ourselves").unwrap();
            }
        }
        service.settle();
        let near: usize = service
            .servers
            .iter()
            .map(|server| server.memory.datagrams.iter().filter(|one| one.2 == 12).count())
            .sum();
        assert_eq!(near, sockets.len() * sockets.len(), "{plan}");
        assert_eq!(service.switched(|counters| counters.misdirected), 0);
    }
}

#[test]
fn the_speaker_tells_and_is_told() {
    let mut service = Service::new("TS3LS1CM3", Rule::Hash);
    service.servers[0].shard.start_slaac(service.now);
    let group: IpAddr = "239.1.2.3".parse().unwrap();
    let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let member = &mut service.servers[2].shard;
    let id = member.open_datagram(any, DatagramOptions::default()).unwrap();
    member.join_group(service.now, id, group, "0.0.0.0".parse().unwrap()).unwrap();
    for _ in 0..5 {
        service.now = service.now.plus_us(1_000_000);
        service.settle();
    }
    for server in &service.servers {
        let used = server.shard.addresses().filter(|one| one.cidr.addr.is_ipv6());
        assert_eq!(used.count(), 1, "the speaker's link-local address");
    }
    assert!(service.servers[0].count(Counter::GroupReportsSent) >= 1);
    assert_eq!(service.servers[2].count(Counter::GroupReportsSent), 0);
    let port = service.servers[2].shard.local_address(id).unwrap().port();
    let sender = service.outside.shard.open_datagram(any, DatagramOptions::default()).unwrap();
    let to = SendTo { remote: Some(SocketAddr::new(group, port)), ..SendTo::default() };
    for len in [30, 4000] {
        let payload = vec![0; len];
        service.outside.shard.send_datagram(service.now, sender, &to, &payload).unwrap();
    }
    service.settle();
    let mut lens: Vec<usize> =
        service.servers[2].memory.datagrams.iter().map(|datagram| datagram.2).collect();
    lens.sort_unstable();
    assert_eq!(lens, [30, 4000]);
}

#[test]
fn a_full_ring_is_a_counted_drop() {
    let mut service = Service::new("TS2LS1CM1", Rule::Hash);
    let home = (2000..).find(|port| service.steering.owner_of_port(*port) == 1).unwrap();
    let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let sender = service.outside.shard.open_datagram(any, DatagramOptions::default()).unwrap();
    let remote: SocketAddr = format!("198.18.0.1:{home}").parse().unwrap();
    let to = SendTo { remote: Some(remote), ..SendTo::default() };
    service.settle();
    // Server 1 takes nothing.
    for _ in 0..3000 {
        service.now = service.now.plus_us(10);
        let payload = [0; 1400];
        let _: Result<(), _> =
            service.outside.shard.send_datagram(service.now, sender, &to, &payload);
        service.outside.turn(service.now);
        service.servers[0].turn(service.now);
    }
    let dropped = service.servers[0].link.switch().unwrap().counters().dropped;
    assert!(dropped > 1000, "{dropped}");
    service.settle();
    let taken = service.servers[1].link.switch().unwrap().counters().taken;
    let forwarded = service.servers[0].link.switch().unwrap().counters().forwarded;
    assert_eq!(taken, forwarded, "what was not dropped has come");
}

#[test]
fn what_a_server_gets_follows_from_its_plan() {
    let of = |plan: &str, number| {
        let roles = Roles::new(&plan.parse().unwrap(), number);
        let Switching { steered, switch } = Switching::of(&roles, Rule::Hash, &[3; 32]);
        (steered.map(|steered| steered.server), switch.is_some())
    };
    assert_eq!(of("TS1LS1CM1", 0), (None, false));
    assert_eq!(of("TS2LS2CM2", 1), (Some(1), true));
    assert_eq!(of("TS2+LS1+CM1", 2), (None, true));
    assert_eq!(of("TS2+LS1+CM1", 3), (None, false));
    assert_eq!(of("TS1+LS1+CM1", 0), (None, true), "all is its own, but another has the link");
    let plan = "TS4LS4CM4".parse().unwrap();
    let steering = steering_of(&Roster::of(&plan), Rule::Low12, &[3; 32]);
    assert_eq!((steering.servers(), steering.rule()), (4, Rule::Low12));
}
