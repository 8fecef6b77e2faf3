//! What stays behind in a connection manager that runs for months: names of connections, acceptors and queues that
//! are gone, and what it has to say when it has much of it.

use super::super::announcing::{ANNOUNCE_MIN_US, ANNOUNCE_SLOW_US};
use super::super::messages::BetweenManagers;
use super::*;
use crate::socket_id::SocketId;

const GROUP: ListenerName = ListenerName(80);
const TIMEOUT_US: u64 = 200_000;
const OURS: ProcessName = ProcessName::new(0, 1);
const THEIRS: ProcessName = ProcessName::new(1, 1);

fn start() -> Instant {
    Instant::from_us(1_000_000)
}

fn connection(number: u32) -> ConnectionName {
    ConnectionName { server: 0, id: SocketId::new(number, 1) }
}

/// A manager of two, with a listener.
fn manager() -> ConnectionManager {
    let mut manager = ConnectionManager::new(TIMEOUT_US, Balance::default(), 7);
    manager.set_peers(true);
    opens(&mut manager, GROUP);
    manager
}

fn opens(manager: &mut ConnectionManager, listener: ListenerName) {
    let opened = ToManager::ListenerOpened { listener, group: listener, server: 0 };
    manager.handle(start(), opened);
}

fn arrives(manager: &mut ConnectionManager, number: u32) {
    let arrived = ToManager::Arrived { listener: GROUP, connection: connection(number) };
    manager.handle(start(), arrived);
}

fn best(process: ProcessName, service_time_us: u32) -> BetweenManagers {
    BetweenManagers::Best { group: GROUP, listener: GROUP, process, service_time_us }
}

fn actions(manager: &mut ConnectionManager, now: Instant) -> Vec<ToTransport> {
    manager.handle_timers(now);
    std::iter::from_fn(|| manager.poll_action(now)).collect()
}

fn words(manager: &mut ConnectionManager, now: Instant) -> Vec<BetweenManagers> {
    std::iter::from_fn(|| manager.poll_offer(now)).collect()
}

#[test]
fn connections_that_leave_behind_one_that_waits_leave_nothing() {
    let mut manager = manager();
    arrives(&mut manager, 0);
    arrives(&mut manager, 1);
    for number in 2..100_000 {
        arrives(&mut manager, number);
        manager.handle(start(), ToManager::Gone { connection: connection(number) });
        assert_eq!(actions(&mut manager, start()), []);
    }
    assert_eq!(manager.waiting(GROUP), 2);
    let kept = manager.queues[&GROUP].waiting.len();
    assert!(kept < 200, "{kept}");
    // They still come in their order.
    manager.handle(start(), ToManager::Acceptor { listener: GROUP, process: OURS });
    let expected = [0, 1].map(|number| ToTransport::Offer {
        listener: GROUP,
        connection: connection(number),
        process: OURS,
    });
    assert_eq!(actions(&mut manager, start()), expected);
}

#[test]
fn who_never_claims_its_oldest_offer_costs_no_memory_for_the_others() {
    let mut manager = manager();
    manager.handle(start(), ToManager::Acceptor { listener: GROUP, process: OURS });
    arrives(&mut manager, 0);
    for number in 1..100_000 {
        arrives(&mut manager, number);
        assert_eq!(actions(&mut manager, start()).len(), if number == 1 { 2 } else { 1 });
        let (connection, process) = (connection(number), OURS);
        manager.handle(start(), ToManager::Claimed { connection, counts: true });
        let served = ToManager::Served { listener: GROUP, process, service_time_us: 10, server: 0 };
        manager.handle(start(), served);
    }
    let kept = manager.queues[&GROUP].acceptors[0].offers.len();
    assert!(kept < 500, "{kept}");
    // The oldest is still watched.
    let other = ProcessName::new(0, 2);
    manager.handle(start(), ToManager::Acceptor { listener: GROUP, process: other });
    let revoke = ToTransport::Revoke { connection: connection(0), process: OURS };
    assert_eq!(actions(&mut manager, start().plus_us(TIMEOUT_US)), [revoke]);
}

#[test]
fn a_queue_ends_with_its_last_offer_whoever_it_was_made_to() {
    let mut manager = manager();
    manager.handle_offer(start(), 1, best(THEIRS, 0));
    arrives(&mut manager, 1);
    assert_eq!(actions(&mut manager, start()).len(), 1);
    // The other manager's application goes, then the listener, and the claim was faster than both.
    manager.handle_offer(start(), 1, BetweenManagers::Nobody { group: GROUP });
    manager.handle(start(), ToManager::ListenerClosed { listener: GROUP, server: 0 });
    let connection = connection(1);
    manager.handle(start(), ToManager::Claimed { connection, counts: true });
    assert!(manager.is_empty(), "{:?}", manager.queues);
}

#[test]
fn what_others_offer_outlives_our_servers() {
    let mut manager = manager();
    manager.handle_offer(start(), 1, best(THEIRS, 1_000));
    // Our only server dies, and the next one has the listener again. The other manager has nothing new to say.
    manager.handle(start(), ToManager::ServerGone { server: 0 });
    opens(&mut manager, GROUP);
    arrives(&mut manager, 1);
    let (connection, process) = (connection(1), THEIRS);
    let offer = ToTransport::Offer { listener: GROUP, connection, process };
    assert_eq!(actions(&mut manager, start()), [offer]);
    // So does what is said before we hear that its home is gone.
    manager.handle(start(), ToManager::ServerGone { server: THEIRS.home() });
    assert_eq!(manager.acceptors(GROUP).collect::<Vec<_>>(), [THEIRS]);
}

#[test]
fn what_many_queues_have_to_say_later_wakes_nobody_before_and_is_not_forgotten() {
    let mut manager = ConnectionManager::new(TIMEOUT_US, Balance::default(), 7);
    manager.set_peers(true);
    let listeners: Vec<ListenerName> = (0..100).map(ListenerName).collect();
    let served = |manager: &mut ConnectionManager, now: Instant, service_time_us| {
        for &listener in &listeners {
            let (process, server) = (OURS, 0);
            let served = ToManager::Served { listener, process, service_time_us, server };
            manager.handle(now, served);
        }
    };
    for &listener in &listeners {
        opens(&mut manager, listener);
        manager.handle(start(), ToManager::Acceptor { listener, process: OURS });
    }
    assert_eq!(actions(&mut manager, start()), []);
    assert_eq!(words(&mut manager, start()).len(), 100);
    served(&mut manager, start().plus_us(1_000), 1_000);
    assert_eq!(words(&mut manager, start().plus_us(1_000)).len(), 100);
    // Each is a little slower now: worth a word, but not so soon.
    let slower = start().plus_us(2_000);
    (0..20).for_each(|_| served(&mut manager, slower, 1_100));
    for _ in 0..100 {
        assert_eq!(words(&mut manager, slower), []);
    }
    assert!(manager.is_quiet(slower));
    let due = start().plus_us(1_000 + ANNOUNCE_SLOW_US);
    assert_eq!(manager.poll_timeout(), Some(due));
    assert_eq!(words(&mut manager, due).len(), 100);
    assert_eq!(manager.poll_timeout(), None);
    // Whoever hears some of it asks for the rest.
    for &listener in &listeners {
        manager.handle(due, ToManager::ListenerClosed { listener, server: 0 });
    }
    assert!(manager.poll_offer(due).is_some());
    assert!(manager.poll_timeout().is_some_and(|next| next <= due));
    assert_eq!((words(&mut manager, due).len(), manager.poll_timeout()), (99, None));
}

#[test]
fn news_do_not_wait_for_trifles() {
    let mut manager = manager();
    manager.handle(start(), ToManager::Acceptor { listener: GROUP, process: OURS });
    let served = |manager: &mut ConnectionManager, now: Instant, service_time_us| {
        let (listener, process, server) = (GROUP, OURS, 0);
        manager.handle(now, ToManager::Served { listener, process, service_time_us, server });
    };
    served(&mut manager, start(), 1_000);
    assert_eq!(words(&mut manager, start()), [best(OURS, 1_000)]);
    let slower = start().plus_us(1_000);
    (0..20).for_each(|_| served(&mut manager, slower, 1_100));
    assert_eq!(words(&mut manager, slower), []);
    // Long before that is said the application is dead.
    let dead = slower.plus_us(1_000);
    manager.handle(dead, ToManager::ProcessDied { process: OURS });
    assert!(dead.since(start()) > ANNOUNCE_MIN_US && dead.since(start()) < ANNOUNCE_SLOW_US);
    assert_eq!(words(&mut manager, dead), [BetweenManagers::Nobody { group: GROUP }]);
}

#[test]
fn others_hear_of_one_that_may_take_something_again() {
    let mut manager = manager();
    manager.handle(start(), ToManager::Acceptor { listener: GROUP, process: OURS });
    manager.handle_offer(start(), 1, best(THEIRS, 0));
    assert_eq!(words(&mut manager, start()), [best(OURS, 0)]);
    arrives(&mut manager, 1);
    assert_eq!(actions(&mut manager, start()).len(), 1);
    // It is late; while its offer is taken back it gets nothing from anybody.
    let mut now = start().plus_us(TIMEOUT_US);
    let revoke = ToTransport::Revoke { connection: connection(1), process: OURS };
    assert_eq!(actions(&mut manager, now), [revoke]);
    assert_eq!(words(&mut manager, now), [BetweenManagers::Nobody { group: GROUP }]);
    // The connection ends by itself, and the process has missed nothing.
    now = now.plus_us(ANNOUNCE_MIN_US);
    manager.handle(now, ToManager::Gone { connection: connection(1) });
    assert_eq!(words(&mut manager, now), [best(OURS, 0)]);
    // The same of one that could not be reached, after a while.
    arrives(&mut manager, 2);
    assert_eq!(actions(&mut manager, now).len(), 1);
    manager.handle(now, ToManager::OfferFailed { connection: connection(2) });
    manager.announce_anew();
    now = now.plus_us(ANNOUNCE_MIN_US);
    assert_eq!(words(&mut manager, now), [BetweenManagers::Nobody { group: GROUP }]);
    now = now.plus_us(TIMEOUT_US);
    actions(&mut manager, now);
    assert_eq!(words(&mut manager, now), [best(OURS, 0)]);
}

#[test]
fn who_cannot_be_reached_is_another_managers_to_replace() {
    let mut manager = manager();
    manager.handle_offer(start(), 1, best(THEIRS, 0));
    arrives(&mut manager, 1);
    assert_eq!(actions(&mut manager, start()).len(), 1);
    assert_eq!(words(&mut manager, start()), []);
    manager.handle(start(), ToManager::OfferFailed { connection: connection(1) });
    let busy = BetweenManagers::Busy { group: GROUP, listener: GROUP, process: THEIRS };
    assert_eq!(words(&mut manager, start()), [busy]);
}

#[test]
fn who_has_no_descriptor_left_is_another_managers_to_replace_and_tried_again() {
    let mut manager = manager();
    manager.handle_offer(start(), 1, best(THEIRS, 0));
    arrives(&mut manager, 1);
    assert_eq!(actions(&mut manager, start()).len(), 1);
    manager.handle(start(), ToManager::Refused { connection: connection(1) });
    let busy = BetweenManagers::Busy { group: GROUP, listener: GROUP, process: THEIRS };
    assert_eq!(words(&mut manager, start()), [busy]);
    assert_eq!(actions(&mut manager, start()), []);
    // Its manager knows nobody else, and has nothing new to say.
    let due = manager.poll_timeout().unwrap();
    assert!(due.since(start()) <= TIMEOUT_US, "{} us", due.since(start()));
    assert_eq!(actions(&mut manager, due).len(), 1);
}

#[test]
fn who_was_late_with_several_offers_was_late_once() {
    let mut manager = manager();
    manager.handle_offer(start(), 1, best(THEIRS, 1_000));
    (0..10).for_each(|number| arrives(&mut manager, number));
    assert_eq!(actions(&mut manager, start()).len(), 10);
    let other = ProcessName::new(0, 2);
    manager.handle(start(), ToManager::Acceptor { listener: GROUP, process: other });
    let late = start().plus_us(TIMEOUT_US);
    assert_eq!(actions(&mut manager, late).len(), 10);
    for number in 0..10 {
        manager.handle(late, ToManager::Revoked { connection: connection(number) });
    }
    manager.handle(late, ToManager::ProcessDied { process: other });
    assert_eq!((actions(&mut manager, late), words(&mut manager, late)), (vec![], vec![]));
    // All wait for the only one that is left, and it has rested long enough soon.
    let due = manager.poll_timeout().unwrap();
    assert!(due.since(late) <= 20_000, "{} us", due.since(late));
    assert_eq!(manager.retries.len(), 1);
    let offered = actions(&mut manager, due);
    let to_them = |one: &&ToTransport| matches!(one, ToTransport::Offer { process: THEIRS, .. });
    assert_eq!(offered.iter().filter(to_them).count(), 10);
}

#[test]
fn a_process_that_comes_home_is_nobody_elses() {
    let mut manager = manager();
    manager.handle_offer(start(), 1, best(THEIRS, 1_000));
    let process = THEIRS;
    let claimed = ToManager::Open { listener: GROUP, process, open: 3, server: 0 };
    manager.handle(start(), claimed);
    // Its home is another now, of which the old one has not heard yet.
    manager.handle(start(), ToManager::Acceptor { listener: GROUP, process });
    manager.handle_offer(start(), 1, best(THEIRS, 1_000));
    manager.handle_offer(start(), 1, BetweenManagers::Nobody { group: GROUP });
    manager.manager_gone(1);
    assert_eq!(manager.acceptors(GROUP).collect::<Vec<_>>(), [THEIRS]);
    let summary = manager.summaries(start()).pop().unwrap();
    assert_eq!((summary.acceptors[0].offered_by, summary.acceptors[0].open), (None, 3));
    arrives(&mut manager, 1);
    assert_eq!(actions(&mut manager, start()).len(), 1);
}

#[test]
fn an_application_that_two_managers_offer_is_the_last_ones() {
    let mut manager = manager();
    manager.handle_offer(start(), 1, best(THEIRS, 1_000));
    // It has moved from the first to the second, and the first says so later.
    manager.handle_offer(start(), 2, best(THEIRS, 1_000));
    manager.handle_offer(start(), 1, BetweenManagers::Nobody { group: GROUP });
    assert_eq!(manager.acceptors(GROUP).collect::<Vec<_>>(), [THEIRS]);
    manager.handle_offer(start(), 2, BetweenManagers::Nobody { group: GROUP });
    assert_eq!(manager.acceptors(GROUP).count(), 0);
}
