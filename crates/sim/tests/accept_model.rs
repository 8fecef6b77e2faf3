//! Every state of small worlds of the accept handshake, and what becomes of it without each of its
//! rules. `HAYPILE_MODEL=large` looks at larger worlds (minutes, gigabytes). See `docs/models.md`.

use haypile_sim::model::manager::AnyManager;
use haypile_sim::model::{Budget, Design, Shape, explore};

/// More states than any world of the normal run has.
const LIMIT: usize = 1_000_000;
const LARGE_LIMIT: usize = 12_000_000;

const NOTHING: Budget = Shape::new(1, 1, 1, 1).budget;
/// As `NOTHING`, and time runs out only when no message is under way.
const CALM: Budget = Budget { early_timers: 0, ..NOTHING };

const fn world(sizes: [u8; 4], combined: bool, budget: Budget) -> Shape {
    let [transports, managers, processes, connections] = sizes;
    let shape = Shape::new(transports, managers, processes, connections);
    Shape { combined, budget, ..shape }
}

/// Looks at all states of the worlds, several at a time.
fn all_sound(worlds: &[(&str, Shape)], limit: usize) -> usize {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let total = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some((name, shape)) = worlds.get(turn) else { return };
                    let states = sound(name, shape, limit);
                    total.fetch_add(states, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    total.into_inner()
}

fn sound(name: &str, shape: &Shape, limit: usize) -> usize {
    let start = std::time::Instant::now();
    match explore::<AnyManager>(shape, limit) {
        Ok(report) => {
            println!("{name}: {report:?}, {} ms", start.elapsed().as_millis());
            assert!(!report.cut, "{name}: more than {limit} states");
            report.states
        }
        Err(failure) => panic!("{name}: {failure}"),
    }
}

const SMALL: &[(&str, Shape)] = &[
    ("one server, two processes, two connections", world([1, 1, 2, 2], true, CALM)),
    ("one of each apart", world([1, 1, 2, 1], false, Budget { early_timers: 2, ..NOTHING })),
    ("two servers", world([2, 2, 2, 1], false, Budget { early_timers: 2, ..NOTHING })),
    ("a death", world([2, 2, 2, 1], false, Budget { deaths: 1, ..NOTHING })),
    ("three processes", world([2, 2, 3, 1], true, Budget { deaths: 1, ..CALM })),
    ("a refusal", world([2, 2, 2, 1], false, Budget { refusals: 2, ..NOTHING })),
    ("no memory", world([2, 2, 2, 1], false, Budget { failures: 2, ..NOTHING })),
    ("a reset", world([2, 2, 2, 1], false, Budget { resets: 1, ..NOTHING })),
    ("a close", world([2, 2, 2, 1], false, Budget { closes: 1, ..NOTHING })),
    ("a new listener", world([2, 2, 2, 1], true, Budget { closes: 1, reopens: 1, ..NOTHING })),
    ("a manager dies", world([2, 2, 2, 1], false, Budget { manager_deaths: 1, ..NOTHING })),
    ("the only manager dies", world([2, 1, 2, 1], false, Budget { manager_deaths: 2, ..NOTHING })),
    ("a server dies", world([2, 2, 2, 1], false, Budget { server_deaths: 1, ..NOTHING })),
    ("a whole server dies", world([2, 2, 2, 1], true, Budget { server_deaths: 1, ..NOTHING })),
    ("a bucket moves", world([2, 2, 2, 1], true, Budget { moves: 1, packets: 1, ..NOTHING })),
];

#[test]
fn in_every_state_each_connection_has_one_owner_at_most_and_one_in_the_end() {
    let total = all_sound(SMALL, LIMIT);
    println!("{total} states");
    assert!(total > 300_000, "{total} states: the worlds have become too small to mean much");
}

const LARGE: &[(&str, Shape)] = &[
    ("one server, two connections", world([1, 1, 2, 2], true, NOTHING)),
    ("two deaths", world([2, 2, 3, 1], true, Budget { deaths: 2, ..NOTHING })),
    ("apart, two connections", world([1, 1, 2, 2], false, NOTHING)),
    ("two servers, two connections", world([2, 2, 2, 2], true, NOTHING)),
    ("three processes, two connections", world([1, 1, 3, 2], true, NOTHING)),
    ("two connections and a death", world([1, 1, 2, 2], true, Budget { deaths: 1, ..NOTHING })),
    (
        "moves and a death",
        world([2, 2, 2, 1], true, Budget { moves: 1, packets: 1, deaths: 1, ..NOTHING }),
    ),
    (
        "server and process die",
        world([2, 2, 2, 1], true, Budget { server_deaths: 1, deaths: 1, ..NOTHING }),
    ),
    (
        "close, reopen and a death",
        world([2, 2, 2, 1], true, Budget { closes: 1, reopens: 1, deaths: 1, ..NOTHING }),
    ),
    (
        "manager and process die",
        world([2, 2, 2, 1], false, Budget { manager_deaths: 1, deaths: 1, ..NOTHING }),
    ),
];

#[test]
fn larger_worlds_are_sound_too() {
    if std::env::var("HAYPILE_MODEL").is_ok_and(|size| size == "large") {
        println!("{} states", all_sound(LARGE, LARGE_LIMIT));
    }
}

fn without(shape: Shape, broken: impl FnOnce(&mut Design)) -> Shape {
    let mut design = Design::SOUND;
    broken(&mut design);
    assert_ne!(design, Design::SOUND);
    Shape { design, ..shape }
}

/// Worlds with a rule less, and what must be found out about them.
fn broken_worlds() -> Vec<(&'static str, Shape)> {
    let one = |budget| world([1, 1, 1, 1], false, budget);
    let pair = |budget| world([1, 1, 2, 1], false, budget);
    let two = |budget| world([2, 2, 2, 1], false, budget);
    let deaths = Budget { deaths: 1, ..NOTHING };
    let closes = Budget { closes: 1, ..NOTHING };
    let failures = Budget { failures: 1, ..NOTHING };
    let refusals = Budget { refusals: 1, ..NOTHING };
    let manager_deaths = Budget { manager_deaths: 1, ..NOTHING };
    let moves = Budget { moves: 1, packets: 1, ..NOTHING };
    let lost_news = world([2, 1, 2, 2], true, Budget { server_deaths: 1, ..NOTHING });
    let two_connections = world([1, 1, 2, 2], true, NOTHING);
    vec![
        ("what it has not got", without(pair(NOTHING), |d| d.revoke_asks_the_word = false)),
        ("while it is not waiting", without(two(deaths), |d| d.offers_end_once = false)),
        ("waits while", without(one(failures), |d| d.failed_offer_returns = false)),
        ("waits while", without(one(refusals), |d| d.refused_returns = false)),
        ("waits while", without(one(manager_deaths), |d| d.resync = false)),
        ("while it is not waiting", without(one(manager_deaths), |d| d.resync_revokes = false)),
        ("waits while", without(two(manager_deaths), |d| d.best_said_anew = false)),
        ("is reset while", without(one(closes), |d| d.close_asks_the_word = false)),
        ("outlives process", without(two(deaths), |d| d.death_is_everybodys = false)),
        ("waits while", without(pair(NOTHING), |d| d.late_claimer_registers = false)),
        ("waits while", without(one(refusals), |d| d.refuser_registers = false)),
        ("waits while", without(one(failures), |d| d.full_ones_are_tried_again = false)),
        ("waits while", without(lost_news, |d| d.attach_registers = false)),
        (
            "waits while",
            without(world([2, 2, 3, 2], true, NOTHING), |d| d.home_hears_of_time_outs = false),
        ),
        ("waits while", without(two_connections, |d| d.dropped_when_revoked = false)),
        ("waits while", without(two(NOTHING), |d| d.time_outs_name_the_registration = false)),
        (
            "waits while",
            without(two(manager_deaths), |d| d.registrations_end_with_their_manager = false),
        ),
        ("already", without(two(moves), |d| d.move_asks_the_word = false)),
        ("which lives", without(two(moves), |d| d.map_follows_the_bucket = false)),
        ("which lives", without(two(moves), |d| d.old_owner_forwards = false)),
    ]
}

#[test]
fn each_rule_is_missed_when_it_is_gone() {
    for (sentence, shape) in broken_worlds() {
        match explore::<AnyManager>(&shape, LIMIT) {
            Ok(report) => panic!("nobody misses a rule: {:?}, {report:?}", shape.design),
            Err(failure) => {
                println!("{failure}");
                assert!(failure.sentence.contains(sentence), "expected '{sentence}': {failure}");
            }
        }
    }
}
