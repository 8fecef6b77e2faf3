//! Thousands of random walks through the accept handshake: the real connection manager among
//! modelled transport servers and processes, and the abstract one in worlds too large to look at
//! whole. A failure prints its seed; `HAYPILE_SEED=N` repeats that one, `HAYPILE_SEEDS=COUNT` walks
//! so many. See `docs/models.md`.

use haypile_sim::model::manager::{AnyManager, Manager};
use haypile_sim::model::real::RealManager;
use haypile_sim::model::walk::{Walked, walk};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

fn walk_all<M: Manager>(managers: u8, count: u64) {
    let seeds = match from_environment("HAYPILE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("HAYPILE_SEEDS").unwrap_or(count),
    };
    let mut sum = Walked::default();
    for seed in seeds.clone() {
        match walk::<M>(seed, managers) {
            Ok(walked) => {
                sum.steps += walked.steps;
                sum.given += walked.given;
                sum.died += walked.died;
            }
            Err(error) => panic!("{error}\n{managers} managers; to repeat: HAYPILE_SEED={seed}"),
        }
    }
    println!("{managers} managers, {seeds:?}: {sum:?}");
    if seeds.end - seeds.start > 100 {
        assert!(u64::from(sum.given) > count / 4 && u64::from(sum.died) > count / 4, "{sum:?}");
    }
}

#[test]
fn the_real_manager_loses_nothing_and_gives_nothing_twice() {
    for managers in 1..=3 {
        walk_all::<RealManager>(managers, 20_000);
    }
}

#[test]
fn nor_does_any_other_that_keeps_the_rules() {
    for managers in 1..=3 {
        walk_all::<AnyManager>(managers, 10_000);
    }
}
