//! A host without an address and a made-up DHCP server, over good and bad paths.

use haypile_engine::{Counter, Limits, Offloads, Shard, ShardConfig};
use haypile_sim::dhcp::Server;
use haypile_sim::fault::FaultPlan;
use haypile_sim::host::Host;
use haypile_sim::scenario::build_host;
use haypile_sim::world::World;
use std::net::{IpAddr, Ipv4Addr};

const SECOND: u64 = 1_000_000;
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const OFFERED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 77);

/// Host 0 is the server, host 1 the client.
struct Stage {
    world: World,
    server: Server,
}

fn clean() -> FaultPlan {
    FaultPlan {
        loss_ppm: 0,
        duplicate_ppm: 0,
        reorder_ppm: 0,
        reorder_us: 1,
        corrupt_ppm: 0,
        delay_us: 500,
        jitter_us: 0,
        rate_bytes_per_s: 0,
        queue_frames: 100,
    }
}

fn stage(seed: u64, plan: FaultPlan) -> Stage {
    let mut world = World::new(seed);
    let mut host = build_host(0, 1500, seed);
    let server = Server::new(&mut host, SERVER, OFFERED).expect("port 67 is free");
    world.add(host, plan.clone());
    let mac = [2, 0, 0, 0, 0, 2];
    let config = ShardConfig {
        mac,
        mtu: 1500,
        addresses: Vec::new(),
        routes: Vec::new(),
        limits: Limits::default(),
        secret: [seed as u8; 32],
        seed,
        offloads: Offloads::default(),
        steered: None,
    };
    let mut shard = Shard::new(config, world.now()).expect("a shard without an address");
    shard.start_dhcp(world.now());
    world.add(Host::new(shard, mac, 1514), plan);
    Stage { world, server }
}

impl Stage {
    fn run(&mut self, us: u64) {
        let end = self.world.now().plus_us(us);
        while self.world.now() < end {
            let step = end.since(self.world.now()).min(SECOND / 20);
            self.world.run_for(step).expect("nothing goes wrong");
            let now = self.world.now();
            self.server.run(now, &mut self.world.hosts[0]).expect("a sound client");
        }
    }

    fn client(&self) -> &Shard {
        &self.world.hosts[1].shard
    }

    fn has_address(&self) -> bool {
        self.client().owns_address(IpAddr::V4(OFFERED))
    }
}

#[test]
fn a_lease_gives_address_gateway_and_name_servers() {
    let mut stage = stage(1, clean());
    stage.run(2 * SECOND);
    assert!(stage.has_address());
    let lease = stage.client().lease().expect("a lease");
    assert_eq!(lease.cidr.to_string(), "198.18.0.77/24");
    assert_eq!(lease.server, SERVER);
    assert_eq!(lease.expires_at.since(lease.renew_at), 1800 * SECOND);
    assert_eq!(stage.client().gateways().collect::<Vec<_>>(), [IpAddr::V4(SERVER)]);
    let servers: Vec<IpAddr> = stage.client().name_servers().collect();
    assert_eq!(servers, [IpAddr::V4(SERVER), [198, 18, 0, 53].into()]);
    assert!(stage.client().routes_to([8, 8, 8, 8].into()));
}

#[test]
fn lost_messages_are_repeated() {
    for seed in 0..30 {
        let plan = FaultPlan {
            loss_ppm: 300_000,
            duplicate_ppm: 100_000,
            corrupt_ppm: 20_000,
            delay_us: 20_000,
            ..clean()
        };
        let mut stage = stage(seed, plan);
        let mut waited = 0;
        while !stage.has_address() {
            stage.run(5 * SECOND);
            waited += 5;
            assert!(waited < 1200, "seed {seed}: no lease in {waited} s");
        }
    }
}

#[test]
fn a_lease_is_renewed_rebound_and_ends() {
    let mut stage = stage(3, clean());
    stage.server.lease_s = 600;
    stage.run(2 * SECOND);
    let first = stage.client().lease().expect("a lease").expires_at;
    // Half of it later it is prolonged by its server.
    stage.run(310 * SECOND);
    let second = stage.client().lease().expect("a lease").expires_at;
    assert!(second > first);
    assert_eq!(stage.server.acknowledged, 2);
    // A silent server: it is asked again and again, at last everybody; then the lease is over.
    stage.server.silent = true;
    let left = second.since(stage.world.now());
    stage.run(left - 10 * SECOND);
    assert!(stage.has_address());
    stage.run(20 * SECOND);
    assert!(!stage.has_address());
    assert!(stage.client().lease().is_none());
    assert_eq!(stage.client().counters().get(Counter::DhcpLeasesLost), 1);
    assert_eq!(stage.client().gateways().count(), 0);
    stage.server.silent = false;
    stage.run(90 * SECOND);
    assert!(stage.has_address(), "a new one is found");
}

#[test]
fn a_refused_renewal_ends_the_lease_at_once() {
    let mut stage = stage(4, clean());
    stage.server.lease_s = 600;
    stage.run(2 * SECOND);
    assert!(stage.has_address());
    stage.server.address = Ipv4Addr::new(198, 18, 0, 78);
    stage.run(310 * SECOND);
    assert!(!stage.has_address());
    assert!(stage.client().owns_address([198, 18, 0, 78].into()));
    stage.server.refuses = true;
    stage.run(310 * SECOND);
    assert!(stage.client().lease().is_none());
}

#[test]
fn an_address_that_somebody_has_is_declined() {
    let mut stage = stage(5, clean());
    // The server offers its own address.
    stage.server.address = SERVER;
    stage.run(5 * SECOND);
    assert_eq!(stage.server.declined, 1);
    assert!(stage.client().lease().is_none());
    assert_eq!(stage.client().counters().get(Counter::DuplicateAddresses), 1);
    stage.server.address = OFFERED;
    stage.run(20 * SECOND);
    assert!(stage.has_address());
}
