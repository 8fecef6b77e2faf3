//! Several connection managers with an application each, in virtual time: local shares, estimates,
//! what is announced, and what a stopped application costs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::super::announcing::{ANNOUNCE_EACH_US, ANNOUNCE_MIN_US};
use super::super::balancer::Scheme;
use super::super::estimator::{CLAIM_PATIENCE_MIN_US, EstimatorKind};
use super::super::messages::BetweenManagers;
use super::*;
use crate::socket_id::SocketId;

const GROUP: ListenerName = ListenerName(80);

/// What happens later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Later {
    /// A connection is claimed, by the process of a home.
    Claims(ConnectionName, ProcessName),
    /// It closes, that long after it was offered.
    Closes(ConnectionName, ProcessName, u32),
}

/// Managers, a transport server and an application with each.
struct World {
    managers: Vec<ConnectionManager>,
    /// How long each application serves, by the home; `None`: it is stopped.
    delays: Vec<Option<u32>>,
    /// Part of a delay that is chance.
    noise: f64,
    /// Part of the connections that take thirty times as long.
    long: f64,
    random: Random,
    now: Instant,
    later: BinaryHeap<Reverse<(Instant, Later)>>,
    next: u32,
    /// Connections that each application has claimed.
    claimed: Vec<u32>,
}

impl World {
    fn new(count: u16, balance: Balance) -> World {
        let mut managers: Vec<_> =
            (0..count).map(|n| ConnectionManager::new(200_000, balance, u64::from(n))).collect();
        let now = Instant::from_us(1_000_000);
        for (manager, server) in managers.iter_mut().zip(0..) {
            manager.set_peers(true);
            let opened = ToManager::ListenerOpened { listener: GROUP, group: GROUP, server };
            manager.handle(now, opened);
            let process = ProcessName::new(server, 1);
            manager.handle(now, ToManager::Acceptor { listener: GROUP, process });
        }
        World {
            managers,
            delays: vec![Some(1000); usize::from(count)],
            noise: 0.0,
            long: 0.0,
            random: Random::new(99),
            now,
            later: BinaryHeap::new(),
            next: 0,
            claimed: vec![0; usize::from(count)],
        }
    }

    fn delay(&mut self, home: usize) -> Option<u32> {
        let long = if self.random.fraction() < self.long { 30.0 } else { 1.0 };
        let delay = f64::from(self.delays[home]?) * long;
        // An exponential part, as queues have it.
        let chance = -(1.0 - self.random.fraction()).ln();
        Some((delay * (1.0 - self.noise + self.noise * chance)) as u32 + 1)
    }

    /// Carries out what the managers want and delivers what they say, until they are content.
    fn settle(&mut self) {
        let mut content = false;
        while !content {
            content = true;
            for index in 0..self.managers.len() {
                self.managers[index].handle_timers(self.now);
                while let Some(action) = self.managers[index].poll_action(self.now) {
                    content = false;
                    self.carry_out(index, action);
                }
                while let Some(offer) = self.managers[index].poll_offer(self.now) {
                    content = false;
                    for (other, manager) in self.managers.iter_mut().enumerate() {
                        if other != index {
                            manager.handle_offer(self.now, index as ServerNumber, offer);
                        }
                    }
                }
            }
        }
    }

    fn carry_out(&mut self, index: usize, action: ToTransport) {
        match action {
            ToTransport::Offer { connection, process, .. } => {
                if let Some(delay) = self.delay(usize::from(process.home())) {
                    let claims = Later::Claims(connection, process);
                    self.later.push(Reverse((self.now.plus_us(20), claims)));
                    let closes = Later::Closes(connection, process, delay);
                    self.later.push(Reverse((self.now.plus_us(u64::from(delay) + 20), closes)));
                }
            }
            ToTransport::Revoke { connection, .. } => {
                self.managers[index].handle(self.now, ToManager::Revoked { connection });
            }
        }
    }

    fn run_until(&mut self, until: Instant) {
        self.settle();
        while let Some(&Reverse((due, later))) = self.later.peek().filter(|next| next.0.0 <= until)
        {
            self.now = due;
            self.later.pop();
            match later {
                Later::Claims(connection, process) => {
                    let manager = &mut self.managers[usize::from(connection.server)];
                    manager.handle(self.now, ToManager::Claimed { connection, counts: true });
                    self.claimed[usize::from(process.home())] += 1;
                }
                Later::Closes(connection, process, service_time_us) => {
                    let (listener, server) = (GROUP, connection.server);
                    let served = ToManager::Served { listener, process, service_time_us, server };
                    self.managers[usize::from(process.home())].handle(self.now, served);
                }
            }
            self.settle();
        }
        self.now = until;
        self.settle();
    }

    /// Connections come to every manager in turn, `interval_us` apart at each.
    fn load(&mut self, each: u32, interval_us: u64) {
        let step = interval_us / self.managers.len() as u64;
        for _ in 0..each {
            for server in 0..self.managers.len() as ServerNumber {
                self.next += 1;
                let connection = ConnectionName { server, id: SocketId::new(self.next, 1) };
                let arrived = ToManager::Arrived { listener: GROUP, connection };
                self.managers[usize::from(server)].handle(self.now, arrived);
                self.run_until(self.now.plus_us(step));
            }
        }
    }

    /// The local share of manager 0 over `each` connections.
    fn local_share(&mut self, each: u32) -> f64 {
        let before = self.managers[0].counters();
        self.load(each, 5_000);
        let after = self.managers[0].counters();
        let (local, remote) = (after.local - before.local, after.remote - before.remote);
        local as f64 / (local + remote) as f64
    }
}

fn slow_local(scheme: Scheme, managers: u16) -> f64 {
    let mut world = World::new(managers, Balance { scheme, ..Balance::default() });
    world.delays[0] = Some(3000);
    world.noise = 0.1;
    world.load(200, 5_000);
    world.local_share(5_000)
}

fn uniform(scheme: Scheme, managers: u16) -> f64 {
    let mut world = World::new(managers, Balance { scheme, ..Balance::default() });
    world.noise = 0.1;
    world.load(200, 5_000);
    world.local_share(5_000)
}

#[test]
fn a_slow_local_application_keeps_the_share_of_the_scheme() {
    let managers = [2, 4, 8];
    let tournament = managers.map(|count| slow_local(Scheme::Tournament, count));
    let filtered = managers.map(|count| slow_local(Scheme::Filtered, count));
    println!("local three times slower, 2, 4, 8 managers: tournament {tournament:.3?}");
    println!("local three times slower, 2, 4, 8 managers: filtered   {filtered:.3?}");
    for share in tournament {
        assert!((share - 0.40).abs() < 0.05, "{tournament:?}");
    }
    for (share, expected) in filtered.into_iter().zip([0.40, 0.18, 0.09]) {
        assert!((share - expected).abs() < 0.05, "{filtered:?}");
    }
}

#[test]
fn uniform_load_stays_local_but_unfiltered() {
    let managers = [2, 4, 8];
    let unfiltered = managers.map(|count| uniform(Scheme::Unfiltered, count));
    println!("uniform, 2, 4, 8 managers: unfiltered {unfiltered:.3?}");
    for (share, expected) in unfiltered.into_iter().zip([0.67, 0.40, 0.22]) {
        assert!((share - expected).abs() < 0.05, "{unfiltered:?}");
    }
    for scheme in [Scheme::Filtered, Scheme::Tournament, Scheme::Naive] {
        let shares = managers.map(|count| uniform(scheme, count));
        println!("uniform, 2, 4, 8 managers: {} {shares:.3?}", scheme.name());
        assert_eq!(shares, [1.0; 3], "{}", scheme.name());
    }
}

/// Updates a second of all managers together, while nothing changes but by chance.
fn updates_a_second(managers: u16, estimator: EstimatorKind, noise: f64, long: f64) -> u64 {
    let mut world = World::new(managers, Balance { estimator, ..Balance::default() });
    (world.noise, world.long) = (noise, long);
    world.load(200, 2_000);
    let announced = |world: &World| -> u64 {
        world.managers.iter().map(|manager| manager.counters().announced).sum()
    };
    let before = announced(&world);
    world.load(1_000, 2_000);
    let a_second = (announced(&world) - before) / 2;
    println!(
        "{managers} managers, {}, noise {noise}, {long} long: {a_second} updates a second",
        estimator.name()
    );
    a_second
}

#[test]
fn announcements_stay_within_the_papers_table() {
    // Updates a second that every manager is told, all of them together (table 3 of the paper).
    for (managers, table) in [(2, 21), (4, 63), (8, 147), (16, 315)] {
        for estimator in EstimatorKind::ALL {
            for noise in [0.0, 0.3, 1.0] {
                let a_second = updates_a_second(managers, estimator, noise, 0.0);
                assert!(a_second <= table, "{managers} managers, {estimator:?}: {a_second}");
            }
        }
    }
}

#[test]
fn nothing_is_announced_while_nothing_changes() {
    for estimator in EstimatorKind::ALL {
        let a_second = updates_a_second(4, estimator, 0.0, 0.0);
        assert!(a_second <= 4, "{estimator:?}: {a_second}");
    }
}

#[test]
fn applications_with_some_long_connections_do_not_make_managers_talk() {
    // Whatever they do: 20 a second of each.
    for estimator in EstimatorKind::ALL {
        let a_second = updates_a_second(4, estimator, 0.3, 0.1);
        assert!(a_second <= 4 * 24, "{estimator:?}: {a_second}");
    }
}

#[test]
fn a_change_of_speed_is_told_at_once() {
    let mut world = World::new(2, Balance::default());
    world.load(300, 5_000);
    world.delays[0] = Some(10_000);
    world.load(140, 20_000);
    let told = world.managers[1].summaries(world.now);
    let offer = told[0].acceptors.iter().find(|one| one.offered_by == Some(0)).unwrap();
    let cost = offer.cost_us.unwrap();
    assert!((9_000..11_500).contains(&cost), "{cost}");
}

#[test]
fn a_manager_without_applications_passes_connections_on() {
    for scheme in Scheme::ALL {
        let mut world = World::new(3, Balance { scheme, ..Balance::default() });
        let process = ProcessName::new(0, 1);
        let (now, gone) = (world.now, ToManager::NotAcceptor { listener: GROUP, process });
        world.managers[0].handle(now, gone);
        world.load(200, 5_000);
        assert_eq!(world.claimed[0], 0, "{}", scheme.name());
        assert_eq!(world.claimed[1] + world.claimed[2], 600, "{}", scheme.name());
        let counters = world.managers[0].counters();
        assert_eq!((counters.local, counters.remote), (0, 200), "{}", scheme.name());
    }
}

#[test]
fn a_stopped_application_costs_little() {
    let mut world = World::new(2, Balance::default());
    world.load(200, 5_000);
    world.delays[0] = None;
    let before = world.claimed[1];
    world.load(10, 5_000);
    world.run_until(world.now.plus_us(5 * CLAIM_PATIENCE_MIN_US));
    // Everything has moved to the other one, long before the claim time-out.
    assert_eq!(world.claimed[1] - before, 20);
    assert!(world.managers[0].counters().timed_out <= 2, "{:?}", world.managers[0].counters());
    assert_eq!(world.managers[0].acceptors(GROUP).collect::<Vec<_>>(), [ProcessName::new(1, 1)]);
    // It comes back by registering again, and is local again.
    world.delays[0] = Some(1000);
    let process = ProcessName::new(0, 1);
    let now = world.now;
    world.managers[0].handle(now, ToManager::Acceptor { listener: GROUP, process });
    let claimed = world.claimed[0];
    world.load(20, 5_000);
    assert!(world.claimed[0] - claimed >= 15, "{}", world.claimed[0] - claimed);
}

#[test]
fn offers_of_managers_and_servers_that_are_gone_are_forgotten() {
    let mut world = World::new(3, Balance::default());
    world.load(50, 5_000);
    let count = |world: &World| world.managers[0].acceptors(GROUP).count();
    assert_eq!(count(&world), 3);
    world.managers[0].manager_gone(2);
    assert_eq!(count(&world), 2);
    // All hear of a server that is gone; its manager says what that means for its applications.
    for manager in &mut world.managers {
        manager.handle(world.now, ToManager::ServerGone { server: 1 });
    }
    world.now = world.now.plus_us(ANNOUNCE_EACH_US);
    world.settle();
    assert_eq!(count(&world), 1);
    // The others say it again to whoever is new.
    world.managers[2].announce_anew();
    world.settle();
    assert_eq!(count(&world), 2);
    // A queue that ends is taken back everywhere, as soon as anything may be said again.
    world.now = world.now.plus_us(ANNOUNCE_EACH_US);
    let now = world.now;
    world.managers[2].handle(now, ToManager::ListenerClosed { listener: GROUP, server: 2 });
    world.settle();
    assert_eq!(count(&world), 1);
}

#[test]
fn an_offer_may_come_before_its_queue_is_known() {
    let mut manager = ConnectionManager::new(200_000, Balance::default(), 1);
    manager.set_peers(true);
    let now = Instant::from_us(5);
    let (group, listener, process) = (GROUP, GROUP, ProcessName::new(1, 4));
    let best = BetweenManagers::Best { group, listener, process, service_time_us: 0 };
    manager.handle_offer(now, 1, best);
    manager.handle(now, ToManager::ListenerOpened { listener, group, server: 0 });
    let connection = ConnectionName { server: 0, id: SocketId::new(1, 1) };
    manager.handle(now, ToManager::Arrived { listener, connection });
    let expected = ToTransport::Offer { listener, connection, process };
    assert_eq!(manager.poll_action(now), Some(expected));
    manager.handle(now, ToManager::Claimed { connection, counts: true });
    manager.handle(now, ToManager::ListenerClosed { listener, server: 0 });
    manager.handle_offer(now, 1, BetweenManagers::Nobody { group });
    assert!(manager.is_empty());
}

/// Whether the next connection leaves a manager whose one application takes `own_us` and has one already, with
/// `more` offers behind it, for that of another manager, which takes `their_us`.
fn leaves(scheme: Scheme, [own_us, their_us]: [u32; 2], more: u32) -> bool {
    let balance = Balance { scheme, ..Balance::default() };
    let mut manager = ConnectionManager::new(200_000, balance, 5);
    let (listener, group, now) = (GROUP, GROUP, Instant::from_us(1));
    let (ours, theirs) = (ProcessName::new(0, 1), ProcessName::new(1, 1));
    manager.set_peers(true);
    manager.handle(now, ToManager::ListenerOpened { listener, group, server: 0 });
    manager.handle(now, ToManager::Acceptor { listener, process: ours });
    let arrives = |number: u32, manager: &mut ConnectionManager| {
        let connection = ConnectionName { server: 0, id: SocketId::new(number, 1) };
        manager.handle(now, ToManager::Arrived { listener, connection });
        let Some(ToTransport::Offer { process, .. }) = manager.poll_action(now) else {
            panic!("an offer")
        };
        (connection, process)
    };
    for number in 0..2 {
        let (connection, process) = arrives(number, &mut manager);
        assert_eq!(process, ours);
        manager.handle(now, ToManager::Claimed { connection, counts: true });
        let served = ToManager::Served { listener, process, service_time_us: own_us, server: 0 };
        manager.handle(now, served);
    }
    let (busy, _) = arrives(2, &mut manager);
    manager.handle(now, ToManager::Claimed { connection: busy, counts: true });
    for number in 0..more {
        arrives(3 + number, &mut manager);
    }
    let best =
        BetweenManagers::Best { group, listener, process: theirs, service_time_us: their_us };
    manager.handle_offer(now, 1, best);
    arrives(9, &mut manager).1 == theirs
}

#[test]
fn what_would_wait_for_long_goes_to_an_application_of_another_manager() {
    let tournament = Scheme::Tournament;
    assert!(leaves(tournament, [1000, 1000], 0));
    assert!(leaves(tournament, [1000, 1400], 0));
    // Half of what it waits for is over, on average: the way there must be shorter.
    assert!(!leaves(tournament, [1000, 1600], 0));
    assert!(!leaves(tournament, [50, 50], 0), "to wait for so little is shorter than the way");
    assert!(!leaves(tournament, [1000, 1000], 1), "where they queue, others are no better off");
    for scheme in [Scheme::Naive, Scheme::Filtered] {
        assert!(!leaves(scheme, [1000, 1000], 0), "{scheme:?}: as in the paper");
    }
}

/// Local applications of one manager, served at once: how many connections each gets.
fn local_counts(kind: EstimatorKind, delays: [u32; 3], connections: u32) -> [u32; 3] {
    let balance = Balance { estimator: kind, ..Balance::default() };
    let mut manager = ConnectionManager::new(200_000, balance, 3);
    let (listener, server) = (GROUP, 0);
    let mut now = Instant::from_us(1);
    manager.handle(now, ToManager::ListenerOpened { listener, group: listener, server });
    for number in 1..=3 {
        let process = ProcessName::new(0, number);
        manager.handle(now, ToManager::Acceptor { listener, process });
    }
    let mut counts = [0; 3];
    let mut closes: BinaryHeap<Reverse<(Instant, ProcessName, u32)>> = BinaryHeap::new();
    for number in 0..connections {
        now = now.plus_us(500);
        while let Some(&Reverse((due, process, service_time_us))) = closes.peek()
            && due <= now
        {
            closes.pop();
            manager.handle(due, ToManager::Served { listener, process, service_time_us, server });
        }
        let connection = ConnectionName { server, id: SocketId::new(number, 1) };
        manager.handle(now, ToManager::Arrived { listener, connection });
        let Some(ToTransport::Offer { process, .. }) = manager.poll_action(now) else {
            panic!("not offered");
        };
        manager.handle(now, ToManager::Claimed { connection, counts: true });
        let place = process.number() as usize - 1;
        counts[place] += 1;
        let delay = delays[place];
        closes.push(Reverse((now.plus_us(u64::from(delay)), process, delay)));
    }
    counts
}

#[test]
fn every_estimator_gives_the_slow_less_and_equals_the_same() {
    for kind in EstimatorKind::ALL {
        let equal = local_counts(kind, [1000; 3], 3000);
        assert!(equal.iter().all(|count| (900..1100).contains(count)), "{kind:?}: {equal:?}");
        let slow = local_counts(kind, [1000, 1000, 4000], 3000);
        println!("{}: {slow:?} connections for delays 1, 1, 4 ms", kind.name());
        assert!(slow[2] < slow[0] * 6 / 10 && slow[2] < slow[1] * 6 / 10, "{kind:?}: {slow:?}");
        let long = local_counts(kind, [1000, 1000, 4000], 20_000)[2];
        assert!(long > slow[2] + 5, "{kind:?}: {slow:?}, then {long}: it is still tried");
    }
    // 1/s, exactly: 4 to 4 to 1.
    let slow = local_counts(EstimatorKind::Median, [1000, 1000, 4000], 9000);
    assert!((950..1050).contains(&slow[2]), "{slow:?}");
}

#[test]
fn a_group_is_one_queue_and_each_member_is_offered_by_its_own_listener() {
    let mut manager = ConnectionManager::new(200_000, Balance::default(), 3);
    let now = Instant::from_us(1);
    let members = [ListenerName(1), ListenerName(2)];
    for (listener, number) in members.into_iter().zip(1..) {
        manager.handle(now, ToManager::ListenerOpened { listener, group: GROUP, server: 0 });
        let process = ProcessName::new(0, number);
        manager.handle(now, ToManager::Acceptor { listener, process });
    }
    // All come to the first; they are shared.
    let mut offered = Vec::new();
    for number in 0..4 {
        let connection = ConnectionName { server: 0, id: SocketId::new(number, 1) };
        manager.handle(now, ToManager::Arrived { listener: members[0], connection });
        if let Some(ToTransport::Offer { listener, process, .. }) = manager.poll_action(now) {
            assert_eq!(listener, members[process.number() as usize - 1]);
            offered.push(process.number());
        }
    }
    assert_eq!(offered, [1, 2, 1, 2]);
    // The second goes: what it was offered goes to the first.
    let closed = ToManager::ListenerClosed { listener: members[1], server: 0 };
    manager.handle(now, closed);
    let mut moved = 0;
    while let Some(action) = manager.poll_action(now) {
        match action {
            ToTransport::Revoke { connection, process } => {
                assert_eq!(process.number(), 2);
                manager.handle(now, ToManager::Revoked { connection });
            }
            ToTransport::Offer { listener, .. } => {
                assert_eq!(listener, members[0]);
                moved += 1;
            }
        }
    }
    assert_eq!(moved, 2);
}

#[test]
fn nothing_is_announced_without_others_and_not_more_often_than_allowed() {
    let mut manager = ConnectionManager::new(200_000, Balance::default(), 3);
    let now = Instant::from_us(1000);
    let (listener, server, process) = (GROUP, 0, ProcessName::new(0, 1));
    manager.handle(now, ToManager::ListenerOpened { listener, group: GROUP, server });
    manager.handle(now, ToManager::Acceptor { listener, process });
    assert_eq!(manager.poll_offer(now), None);
    manager.set_peers(true);
    assert!(matches!(manager.poll_offer(now), Some(BetweenManagers::Best { .. })));
    assert_eq!(manager.poll_offer(now), None);
    let served = |time| ToManager::Served { listener, process, service_time_us: time, server };
    manager.handle(now.plus_us(1), served(100));
    assert_eq!(manager.poll_offer(now.plus_us(1)), None);
    assert_eq!(manager.poll_timeout(), Some(now.plus_us(ANNOUNCE_MIN_US)));
    let later = now.plus_us(ANNOUNCE_MIN_US);
    assert!(matches!(
        manager.poll_offer(later),
        Some(BetweenManagers::Best { service_time_us: 100, .. })
    ));
    manager.handle(later, ToManager::ProcessDied { process });
    let later = later.plus_us(ANNOUNCE_MIN_US);
    assert_eq!(manager.poll_offer(later), Some(BetweenManagers::Nobody { group: GROUP }));
}

/// What a manager says and does, as far as it goes at this moment, heard by the other one.
fn talk(managers: &mut [ConnectionManager; 2], now: Instant) -> Vec<ToTransport> {
    let mut actions = Vec::new();
    for _ in 0..10 {
        for from in 0..2 {
            managers[from].handle_timers(now);
            while let Some(action) = managers[from].poll_action(now) {
                actions.push(action);
            }
            while let Some(offer) = managers[from].poll_offer(now) {
                managers[1 - from].handle_offer(now, from as u16, offer);
            }
        }
    }
    actions
}

/// All applications have their home with one manager, and the one that it told the other of does not claim: only
/// the first manager knows of those that would.
#[test]
fn a_manager_that_knows_one_application_of_another_asks_for_the_next() {
    let [mut home, mut other] =
        [0, 1].map(|seed| ConnectionManager::new(200_000, Balance::default(), seed));
    let mut now = Instant::from_us(1_000_000);
    for (manager, server) in [&mut home, &mut other].into_iter().zip(0..) {
        manager.set_peers(true);
        manager.handle(now, ToManager::ListenerOpened { listener: GROUP, group: GROUP, server });
    }
    for number in 1..4 {
        let process = ProcessName::new(0, number);
        home.handle(now, ToManager::Acceptor { listener: GROUP, process });
    }
    let mut managers = [home, other];
    assert_eq!(talk(&mut managers, now), []);
    let connection = ConnectionName { server: 1, id: SocketId::new(7, 1) };
    managers[1].handle(now, ToManager::Arrived { listener: GROUP, connection });
    let mut tried = Vec::new();
    // The first and the second are stuck; each is found out, and the connection is for the third.
    for _ in 0..3000 {
        for action in talk(&mut managers, now) {
            match action {
                ToTransport::Offer { process, .. } if tried.contains(&process) => {}
                ToTransport::Offer { process, .. } => tried.push(process),
                ToTransport::Revoke { connection, .. } => {
                    managers[1].handle(now, ToManager::Revoked { connection });
                }
            }
        }
        if tried.len() == 3 {
            break;
        }
        now = now.plus_us(500);
    }
    assert_eq!(tried.len(), 3, "{tried:?}");
    managers[1].handle(now, ToManager::Claimed { connection, counts: true });
    assert_eq!(talk(&mut managers, now), []);
}

#[test]
fn the_only_application_of_all_keeps_what_it_was_given() {
    let mut managers = [0, 1].map(|seed| ConnectionManager::new(200_000, Balance::default(), seed));
    let mut now = Instant::from_us(1_000_000);
    for (manager, server) in managers.iter_mut().zip(0..) {
        manager.set_peers(true);
        manager.handle(now, ToManager::ListenerOpened { listener: GROUP, group: GROUP, server });
    }
    let process = ProcessName::new(0, 1);
    managers[0].handle(now, ToManager::Acceptor { listener: GROUP, process });
    talk(&mut managers, now);
    let connection = ConnectionName { server: 1, id: SocketId::new(7, 1) };
    managers[1].handle(now, ToManager::Arrived { listener: GROUP, connection });
    let offer = ToTransport::Offer { listener: GROUP, connection, process };
    assert_eq!(talk(&mut managers, now), [offer]);
    let said = managers[1].counters().announced + managers[0].counters().heard;
    for _ in 0..20_000 {
        now = now.plus_us(500);
        assert_eq!(talk(&mut managers, now), []);
    }
    // It is asked about less and less often.
    assert!(managers[0].counters().heard < said + 30, "{:?}", managers[0].counters());
}
