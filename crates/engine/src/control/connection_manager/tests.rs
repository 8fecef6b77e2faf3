//! Tests of the accept handshake: every phase of claim, revocation, refusal and death, and a random
//! walk that checks that no connection is lost or given twice.

use std::collections::HashMap;

use super::*;
use crate::socket_id::SocketId;
use std::collections::HashSet;

const LISTENER: ListenerName = ListenerName(1);
const OTHER: ListenerName = ListenerName(2);
const TIMEOUT_US: u64 = 200_000;

fn connection(number: u32) -> ConnectionName {
    ConnectionName { server: 0, id: SocketId::new(100 + number, 1) }
}

fn process(number: u32) -> ProcessName {
    ProcessName::new(0, number)
}

/// The messages, as a transport server sends them.
impl ConnectionManager {
    fn opens(&mut self, listener: ListenerName) {
        self.handle(at(0), ToManager::ListenerOpened { listener, group: listener, server: 0 });
    }

    fn closes(&mut self, listener: ListenerName) {
        self.handle(at(0), ToManager::ListenerClosed { listener, server: 0 });
    }

    fn accepts(&mut self, number: ProcessId, listener: ListenerName) {
        self.handle(at(0), ToManager::Acceptor { listener, process: process(number) });
    }

    fn accepts_no_more(&mut self, number: ProcessId, listener: ListenerName) {
        self.handle(at(0), ToManager::NotAcceptor { listener, process: process(number) });
    }

    fn arrives(&mut self, listener: ListenerName, connection: ConnectionName) {
        self.handle(at(0), ToManager::Arrived { listener, connection });
    }

    fn is_claimed(&mut self, connection: ConnectionName) {
        self.handle(at(0), ToManager::Claimed { connection, counts: true });
    }

    fn is_revoked(&mut self, connection: ConnectionName) {
        self.handle(at(0), ToManager::Revoked { connection });
    }

    fn is_refused(&mut self, connection: ConnectionName) {
        self.handle(at(0), ToManager::Refused { connection });
    }

    fn is_served(&mut self, number: ProcessId) {
        self.is_served_in(number, 100);
    }

    fn is_served_in(&mut self, number: ProcessId, service_time_us: u32) {
        let (listener, process) = (LISTENER, process(number));
        let served = ToManager::Served { listener, process, service_time_us, server: 0 };
        self.handle(at(0), served);
    }

    fn dies(&mut self, number: ProcessId) {
        self.handle(at(0), ToManager::ProcessDied { process: process(number) });
    }
}

fn at(us: u64) -> Instant {
    Instant::from_us(us)
}

fn manager() -> ConnectionManager {
    let mut manager = ConnectionManager::new(TIMEOUT_US, Balance::default(), 7);
    manager.opens(LISTENER);
    manager
}

fn manager_of(acceptors: &[ProcessId]) -> ConnectionManager {
    let mut manager = manager();
    for number in acceptors {
        manager.accepts(*number, LISTENER);
    }
    manager
}

/// Connection 1 is offered to the first acceptor.
fn one_offered(acceptors: &[ProcessId]) -> ConnectionManager {
    let mut manager = manager_of(acceptors);
    manager.arrives(LISTENER, connection(1));
    assert_eq!(actions(&mut manager, at(0)), [offer(1, acceptors[0])]);
    manager
}

/// Processes 1 and 2 accept; the first has not claimed connection 1 in time.
fn one_timed_out() -> ConnectionManager {
    let mut manager = one_offered(&[1, 2]);
    assert_eq!(at_time_out(&mut manager), [revoke(1, 1)]);
    manager
}

fn at_time_out(manager: &mut ConnectionManager) -> Vec<ToTransport> {
    manager.handle_timers(at(TIMEOUT_US));
    actions(manager, at(TIMEOUT_US))
}

fn actions(manager: &mut ConnectionManager, now: Instant) -> Vec<ToTransport> {
    std::iter::from_fn(|| manager.poll_action(now)).collect()
}

fn offer(number: u32, to: ProcessId) -> ToTransport {
    let (connection, process) = (connection(number), process(to));
    ToTransport::Offer { listener: LISTENER, connection, process }
}

fn revoke(number: u32, from: ProcessId) -> ToTransport {
    ToTransport::Revoke { connection: connection(number), process: process(from) }
}

#[test]
fn a_connection_waits_for_its_first_acceptor() {
    let mut manager = manager();
    manager.arrives(LISTENER, connection(1));
    assert_eq!(actions(&mut manager, at(0)), []);
    assert_eq!(manager.waiting(LISTENER), 1);
    manager.accepts(7, LISTENER);
    assert_eq!(actions(&mut manager, at(0)), [offer(1, 7)]);
    manager.is_claimed(connection(1));
    manager.is_claimed(connection(1));
    assert_eq!(manager.counters().claimed, 1);
    assert_eq!(manager.waiting(LISTENER), 0);
}

#[test]
fn equals_take_turns_and_the_least_loaded_goes_first() {
    let mut manager = manager_of(&[1, 2, 3]);
    for number in 0..4 {
        manager.arrives(LISTENER, connection(number));
    }
    let expected = [offer(0, 1), offer(1, 2), offer(2, 3), offer(3, 1)];
    assert_eq!(actions(&mut manager, at(0)), expected);
    manager.is_claimed(connection(1));
    manager.arrives(LISTENER, connection(5));
    assert_eq!(actions(&mut manager, at(0)), [offer(5, 2)]);
}

#[test]
fn who_serves_one_after_the_other_is_busy_with_it() {
    let mut manager = manager_of(&[1, 2]);
    for number in 0..2 {
        manager.arrives(LISTENER, connection(number));
    }
    assert_eq!(actions(&mut manager, at(0)), [offer(0, 1), offer(1, 2)]);
    manager.is_claimed(connection(0));
    manager.is_claimed(connection(1));
    manager.is_served(2);
    // It would be the turn of the first.
    manager.arrives(LISTENER, connection(2));
    assert_eq!(actions(&mut manager, at(0)), [offer(2, 2)]);
}

#[test]
fn nobody_gets_more_for_being_idle_while_a_busy_one_would_sooner_be_done() {
    let mut manager = manager_of(&[1, 2]);
    for number in 0..2 {
        manager.arrives(LISTENER, connection(number));
    }
    assert_eq!(actions(&mut manager, at(0)), [offer(0, 1), offer(1, 2)]);
    manager.is_claimed(connection(0));
    manager.is_claimed(connection(1));
    manager.is_served(1);
    manager.is_served_in(2, 4_000);
    // The fast one has always one connection, and the slow one waits.
    let mut offered = Vec::new();
    for number in 2..22 {
        manager.arrives(LISTENER, connection(number));
        offered.extend(actions(&mut manager, at(0)));
        if number > 2 {
            manager.is_served(1);
        }
        manager.is_claimed(connection(number));
    }
    let expected: Vec<_> = (2..22).map(|number| offer(number, 1)).collect();
    assert_eq!(offered, expected);
}

#[test]
fn who_was_seen_with_several_is_not_asked_how_many_it_has() {
    let mut manager = manager_of(&[1]);
    for number in 0..3 {
        manager.arrives(LISTENER, connection(number));
    }
    actions(&mut manager, at(0));
    (0..3).for_each(|number| manager.is_claimed(connection(number)));
    manager.accepts(2, LISTENER);
    manager.arrives(LISTENER, connection(3));
    assert_eq!(actions(&mut manager, at(0)), [offer(3, 2)]);
    manager.is_claimed(connection(3));
    manager.is_served(2);
    // Both have claimed what they were offered: the first is next, though it has three.
    manager.arrives(LISTENER, connection(4));
    assert_eq!(actions(&mut manager, at(0)), [offer(4, 1)]);
}

#[test]
fn what_waits_behind_one_connection_is_not_moved_behind_another() {
    let mut manager = manager_of(&[1, 2]);
    for number in 0..2 {
        manager.arrives(LISTENER, connection(number));
    }
    actions(&mut manager, at(0));
    manager.is_claimed(connection(0));
    manager.is_claimed(connection(1));
    assert_eq!(at_time_out(&mut manager), []);
    manager.arrives(LISTENER, connection(2));
    assert_eq!(actions(&mut manager, at(TIMEOUT_US)), [offer(2, 1)]);
    // Longer than its claims take, but the other is no sooner done.
    let later = at(TIMEOUT_US + TIMEOUT_US / 2);
    manager.handle_timers(later);
    assert_eq!(actions(&mut manager, later), []);
    manager.is_served(2);
    let later = at(2 * TIMEOUT_US - 1);
    manager.handle_timers(later);
    assert_eq!(actions(&mut manager, later), [revoke(2, 1)]);
}

#[test]
fn what_was_taken_back_keeps_its_place() {
    let mut manager = manager_of(&[1]);
    for number in 0..3 {
        manager.arrives(LISTENER, connection(number));
    }
    actions(&mut manager, at(0));
    manager.accepts(2, LISTENER);
    assert_eq!(at_time_out(&mut manager), [revoke(0, 1), revoke(1, 1), revoke(2, 1)]);
    manager.arrives(LISTENER, connection(3));
    // The answers of several servers come in any order.
    for number in [1, 0, 2] {
        manager.is_revoked(connection(number));
    }
    let expected = [offer(0, 2), offer(1, 2), offer(2, 2), offer(3, 2)];
    assert_eq!(actions(&mut manager, at(TIMEOUT_US)), expected);
}

#[test]
fn an_unclaimed_offer_goes_to_another_acceptor_and_the_slow_one_is_dropped() {
    let mut manager = one_offered(&[1, 2]);
    manager.handle_timers(at(TIMEOUT_US - 1));
    assert_eq!(actions(&mut manager, at(TIMEOUT_US - 1)), []);
    assert_eq!(manager.poll_timeout(), Some(at(TIMEOUT_US)));
    assert_eq!(at_time_out(&mut manager), [revoke(1, 1)]);
    manager.is_revoked(connection(1));
    assert_eq!(actions(&mut manager, at(TIMEOUT_US)), [offer(1, 2)]);
    assert_eq!(manager.acceptors(LISTENER).collect::<Vec<_>>(), [process(2)]);
}

#[test]
fn a_claim_that_beats_the_revocation_wins() {
    let mut manager = one_timed_out();
    manager.is_claimed(connection(1));
    assert_eq!(actions(&mut manager, at(TIMEOUT_US)), []);
    assert_eq!(manager.counters().claimed, 1);
}

#[test]
fn who_claims_between_time_out_and_revocation_stays_on_the_list() {
    let mut manager = one_timed_out();
    // Nothing more is for the slow one while it is not known how that ends.
    manager.arrives(LISTENER, connection(2));
    manager.arrives(LISTENER, connection(3));
    assert_eq!(actions(&mut manager, at(TIMEOUT_US)), [offer(2, 2), offer(3, 2)]);
    manager.is_claimed(connection(1));
    manager.arrives(LISTENER, connection(4));
    assert_eq!(actions(&mut manager, at(TIMEOUT_US)), [offer(4, 1)]);
}

#[test]
fn a_registration_outlives_what_an_earlier_one_was_offered() {
    // The home of process 1 and the server of the connection are two: news cross.
    for news in [
        ToManager::Revoked { connection: connection(1) },
        ToManager::Refused { connection: connection(1) },
    ] {
        let mut manager = one_timed_out();
        manager.accepts(1, LISTENER);
        manager.handle(at(TIMEOUT_US), news);
        let acceptors: Vec<_> = manager.acceptors(LISTENER).collect();
        assert_eq!(acceptors, [process(1), process(2)]);
    }
}

#[test]
fn who_never_heard_of_the_offer_that_timed_out_stays_on_the_list() {
    let ends = [
        ToManager::OfferFailed { connection: connection(1) },
        ToManager::Gone { connection: connection(1) },
    ];
    for end in ends {
        let mut manager = one_timed_out();
        manager.handle(at(TIMEOUT_US), end);
        manager.dies(2);
        manager.handle_timers(at(3 * TIMEOUT_US));
        actions(&mut manager, at(3 * TIMEOUT_US));
        manager.arrives(LISTENER, connection(2));
        manager.handle_timers(at(9 * TIMEOUT_US));
        assert!(actions(&mut manager, at(9 * TIMEOUT_US)).contains(&offer(2, 1)));
    }
}

#[test]
fn who_could_not_be_reached_is_tried_again_after_a_while() {
    let mut manager = one_offered(&[1]);
    manager.handle(at(5), ToManager::OfferFailed { connection: connection(1) });
    assert_eq!(actions(&mut manager, at(5)), []);
    // The deadline of the offer itself comes first, and concerns nobody any more.
    assert_eq!(at_time_out(&mut manager), []);
    assert_eq!(manager.poll_timeout(), Some(at(TIMEOUT_US + 5)));
    manager.handle_timers(at(TIMEOUT_US + 5));
    assert_eq!(actions(&mut manager, at(TIMEOUT_US + 5)), [offer(1, 1)]);
}

#[test]
fn the_only_acceptor_keeps_its_offers() {
    let mut manager = one_offered(&[1]);
    assert_eq!(at_time_out(&mut manager), []);
    manager.accepts(2, LISTENER);
    manager.handle_timers(at(2 * TIMEOUT_US));
    assert_eq!(actions(&mut manager, at(2 * TIMEOUT_US)), [revoke(1, 1)]);
}

#[test]
fn a_refused_connection_waits_for_somebody_who_can() {
    let mut manager = one_offered(&[1]);
    manager.is_refused(connection(1));
    assert_eq!(actions(&mut manager, at(0)), []);
    manager.accepts(1, LISTENER);
    assert_eq!(actions(&mut manager, at(0)), [offer(1, 1)]);
}

#[test]
fn a_full_acceptor_gets_more_after_its_next_claim() {
    let mut manager = manager_of(&[1]);
    manager.arrives(LISTENER, connection(1));
    manager.arrives(LISTENER, connection(2));
    assert_eq!(actions(&mut manager, at(0)), [offer(1, 1), offer(2, 1)]);
    manager.handle(at(0), ToManager::OfferFailed { connection: connection(2) });
    assert_eq!(actions(&mut manager, at(0)), []);
    manager.is_claimed(connection(1));
    assert_eq!(actions(&mut manager, at(0)), [offer(2, 1)]);
}

#[test]
fn no_acceptor_holds_more_than_its_share() {
    let mut manager = manager_of(&[1]);
    for number in 0..OUTSTANDING_MAX + 5 {
        manager.arrives(LISTENER, connection(number));
    }
    assert_eq!(actions(&mut manager, at(0)).len(), OUTSTANDING_MAX as usize);
    assert_eq!(manager.waiting(LISTENER), 5);
    manager.is_claimed(connection(0));
    assert_eq!(actions(&mut manager, at(0)).len(), 1);
}

#[test]
fn offers_of_a_dead_process_go_to_the_living() {
    let mut manager = manager_of(&[1, 2]);
    for number in 0..2 {
        manager.arrives(LISTENER, connection(number));
    }
    assert_eq!(actions(&mut manager, at(0)), [offer(0, 1), offer(1, 2)]);
    manager.dies(1);
    assert_eq!(actions(&mut manager, at(0)), [revoke(0, 1)]);
    manager.is_revoked(connection(0));
    assert_eq!(actions(&mut manager, at(0)), [offer(0, 2)]);
}

#[test]
fn a_process_that_dies_while_it_is_being_revoked_is_asked_once() {
    let mut manager = manager_of(&[1, 2]);
    manager.arrives(LISTENER, connection(0));
    actions(&mut manager, at(0));
    assert_eq!(at_time_out(&mut manager), [revoke(0, 1)]);
    manager.dies(1);
    assert_eq!(actions(&mut manager, at(TIMEOUT_US)), []);
    manager.is_revoked(connection(0));
    assert_eq!(actions(&mut manager, at(TIMEOUT_US)), [offer(0, 2)]);
}

#[test]
fn a_closed_listener_takes_its_offers_back_and_forgets_the_rest() {
    let mut manager = manager_of(&[1]);
    manager.arrives(LISTENER, connection(0));
    actions(&mut manager, at(0));
    manager.accepts_no_more(1, LISTENER);
    manager.arrives(LISTENER, connection(1));
    manager.closes(LISTENER);
    assert_eq!(actions(&mut manager, at(0)), [revoke(0, 1)]);
    manager.is_revoked(connection(0));
    assert_eq!(manager.waiting(LISTENER), 0);
    assert!(manager.is_empty());
    manager.accepts(1, LISTENER);
    manager.arrives(LISTENER, connection(2));
    assert!(manager.is_empty());
}

#[test]
fn a_connection_that_is_gone_is_offered_to_nobody() {
    let mut manager = manager();
    manager.arrives(LISTENER, connection(0));
    manager.arrives(LISTENER, connection(1));
    manager.handle(at(0), ToManager::Gone { connection: connection(0) });
    assert_eq!(manager.waiting(LISTENER), 1);
    manager.accepts(1, LISTENER);
    assert_eq!(actions(&mut manager, at(0)), [offer(1, 1)]);
    manager.handle(at(0), ToManager::Gone { connection: connection(1) });
    assert_eq!(at_time_out(&mut manager), []);
}

/// The transport server and the applications as seen from the manager: offer words, decided once.
#[derive(Default)]
struct World {
    /// Connections offered, with the process; removed by the claim or the revocation.
    offered: HashMap<ConnectionName, ProcessName>,
    owners: HashMap<ConnectionName, ProcessName>,
    alive: HashSet<ProcessName>,
}

impl World {
    fn carry_out(&mut self, manager: &mut ConnectionManager, now: Instant) {
        while let Some(action) = manager.poll_action(now) {
            match action {
                ToTransport::Offer { connection, process, .. } => {
                    assert!(self.alive.contains(&process), "offered to the dead");
                    assert!(!self.owners.contains_key(&connection), "given twice");
                    assert_eq!(self.offered.insert(connection, process), None, "offered twice");
                }
                ToTransport::Revoke { connection, process } => {
                    // The word says OFFERED still (revoked) or CLAIMED (the process was faster).
                    if self.offered.remove(&connection) == Some(process) {
                        manager.is_revoked(connection);
                    } else {
                        assert_eq!(self.owners.get(&connection), Some(&process));
                        manager.is_claimed(connection);
                    }
                }
            }
        }
    }
}

#[test]
fn whatever_happens_every_connection_has_one_owner_in_the_end() {
    for seed in 1..=200u64 {
        walk(seed);
    }
}

fn walk(seed: u64) {
    let mut state = seed;
    let mut random = move |bound: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut manager = ConnectionManager::new(TIMEOUT_US, Balance::default(), 7);
    manager.opens(LISTENER);
    manager.opens(OTHER);
    let mut world = World::default();
    let (mut now, mut arrived, mut claims_in_flight) = (at(0), 0, VecDeque::new());
    for number in 1..=4 {
        world.alive.insert(process(number));
    }
    for _ in 0..400 {
        now = now.plus_us(random(30_000));
        let number = 1 + random(4) as ProcessId;
        let listener = if random(4) == 0 { OTHER } else { LISTENER };
        let oldest_offer = world.offered.iter().map(|(c, p)| (*c, *p)).min();
        match random(9) {
            0 | 1 => {
                manager.arrives(listener, connection(arrived));
                arrived += 1;
            }
            2 | 3 if world.alive.contains(&process(number)) => manager.accepts(number, listener),
            4 => manager.accepts_no_more(number, listener),
            5 | 6 => {
                // The application swaps the offer word; its message arrives later, or never.
                if let Some((connection, process)) = oldest_offer {
                    world.offered.remove(&connection);
                    world.owners.insert(connection, process);
                    claims_in_flight.push_back(connection);
                }
            }
            7 => {
                if let Some((connection, _)) = oldest_offer {
                    world.offered.remove(&connection);
                    manager.is_refused(connection);
                }
            }
            _ if random(20) == 0 && world.alive.len() > 1 => {
                world.alive.remove(&process(number));
                manager.dies(number);
            }
            _ => {
                if let Some(connection) = claims_in_flight.pop_front() {
                    manager.is_claimed(connection);
                }
            }
        }
        manager.handle_timers(now);
        world.carry_out(&mut manager, now);
    }
    finish(&mut manager, &mut world, now);
    assert_eq!(world.owners.len(), arrived as usize, "seed {seed}: a connection was lost");
}

/// Lets one living process accept until nothing is left.
fn finish(manager: &mut ConnectionManager, world: &mut World, mut now: Instant) {
    let survivor = *world.alive.iter().min().expect("one process is alive");
    for _ in 0..1000 {
        manager.accepts(survivor.number(), LISTENER);
        manager.accepts(survivor.number(), OTHER);
        now = now.plus_us(TIMEOUT_US);
        manager.handle_timers(now);
        world.carry_out(manager, now);
        let claimable: Vec<_> =
            world.offered.iter().filter(|(_, p)| **p == survivor).map(|(c, _)| *c).collect();
        for connection in claimable {
            world.offered.remove(&connection);
            world.owners.insert(connection, survivor);
            manager.is_claimed(connection);
        }
        if world.offered.is_empty() && manager.waiting(LISTENER) + manager.waiting(OTHER) == 0 {
            return;
        }
    }
}

#[test]
fn who_is_at_home_elsewhere_by_now_registers_there() {
    let at_home_in_the_last = ProcessName::new(3, 1);
    let accept = ToManager::Acceptor { listener: LISTENER, process: at_home_in_the_last };
    let mut manager = manager_of(&[1]);
    manager.set_homes(4);
    manager.handle(at(0), accept);
    manager.arrives(LISTENER, connection(1));
    manager.arrives(LISTENER, connection(2));
    let offered: Vec<ToTransport> = actions(&mut manager, at(0));
    let (listener, second) = (LISTENER, connection(2));
    let to_it = ToTransport::Offer { listener, connection: second, process: at_home_in_the_last };
    assert_eq!(offered, [offer(1, 1), to_it]);
    // Server 3 leaves: its home is server 1 now, and another manager's to speak of.
    manager.set_homes(2);
    manager.handle(at(0), ToManager::Claimed { connection: second, counts: true });
    manager.is_claimed(connection(1));
    manager.arrives(LISTENER, connection(3));
    manager.arrives(LISTENER, connection(4));
    assert_eq!(actions(&mut manager, at(0)), [offer(3, 1), offer(4, 1)]);
    // The end of its first home is no end of its own.
    manager.handle(at(0), accept);
    manager.handle(at(0), ToManager::ServerGone { server: 3 });
    manager.arrives(LISTENER, connection(5));
    let next =
        ToTransport::Offer { listener, connection: connection(5), process: at_home_in_the_last };
    assert_eq!(actions(&mut manager, at(0)), [next]);
}

/// Connections that the acceptor at home at server 0 has, as the manager knows.
fn open_of(manager: &mut ConnectionManager) -> u32 {
    let queues = manager.summaries(at(0));
    let acceptors = queues.iter().flat_map(|queue| &queue.acceptors);
    acceptors.filter(|one| one.offered_by.is_none()).map(|one| one.open).sum()
}

#[test]
fn an_application_has_what_it_has_wherever_that_has_gone() {
    let (listener, process, service_time_us) = (LISTENER, process(1), 5);
    let open = |open, server| ToManager::Open { listener, process, open, server };
    let served = |server| ToManager::Served { listener, process, service_time_us, server };
    let mut manager = manager_of(&[1]);
    for number in 0..4 {
        manager.arrives(LISTENER, connection(number));
        actions(&mut manager, at(0));
        manager.is_claimed(connection(number));
    }
    // Another manager gave it three at server 1.
    manager.handle(at(0), open(3, 1));
    assert_eq!(open_of(&mut manager), 7);
    // Two move from server 0 to server 2, of which nobody has heard before; one closes there.
    manager.handle(at(0), open(2, 2));
    manager.handle(at(0), served(2));
    manager.handle(at(0), open(2, 0));
    assert_eq!(open_of(&mut manager), 6);
    // What it had is known when it comes back, with what came meanwhile.
    manager.dies(1);
    assert_eq!(open_of(&mut manager), 0);
    manager.handle(at(0), served(0));
    manager.handle(at(0), open(4, 1));
    manager.accepts(1, LISTENER);
    assert_eq!(open_of(&mut manager), 6);
    // Those of a server that dies are gone, and no others.
    manager.handle(at(0), ToManager::ServerGone { server: 1 });
    assert_eq!(open_of(&mut manager), 2);
    manager.handle(at(0), served(0));
    manager.handle(at(0), served(2));
    assert_eq!(open_of(&mut manager), 0);
}
