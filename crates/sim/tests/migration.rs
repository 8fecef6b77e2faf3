//! Seeded services whose buckets move while their connections transfer. A failure prints its seed; `HAYPILE_SEED=N
//! cargo test -p haypile-sim --test migration` repeats that one, `HAYPILE_SEEDS=COUNT` runs so many.

use haypile_engine::random::Random;
use haypile_sim::migration::{replay_bucket, run_seed};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn connections_do_not_notice_that_they_move() {
    let seeds = match from_environment("HAYPILE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("HAYPILE_SEEDS").unwrap_or(25),
    };
    let (mut complete, mut other, mut followed, mut clean, mut retransmitted) = (0, 0, 0, 0, 0);
    let mut moves = haypile_sim::inside::MoveCounts::default();
    for seed in seeds.clone() {
        let outcome = match run_seed(seed) {
            Ok(outcome) => outcome,
            Err(error) => panic!("{error}\nto repeat: HAYPILE_SEED={seed}"),
        };
        complete += outcome.complete;
        other += outcome.other;
        followed += outcome.followed;
        clean += usize::from(outcome.clean);
        retransmitted += if outcome.clean { outcome.retransmitted } else { 0 };
        moves.begun += outcome.moves.begun;
        moves.arrived += outcome.moves.arrived;
        moves.connections += outcome.moves.connections;
        moves.time_wait += outcome.moves.time_wait;
        moves.held += outcome.moves.held;
        moves.taken_back += outcome.moves.taken_back;
        moves.settled += outcome.moves.settled;
    }
    println!(
        "{complete} ends complete, {other} not, {clean} clean worlds with {retransmitted} segments sent again, \
         {followed} packets sent after their flows, {moves:?}"
    );
    if seeds.end - seeds.start >= 25 {
        assert!(complete > 4 * other, "{complete} complete, {other} not");
        assert!(moves.connections > 500 && moves.time_wait > 100, "{moves:?}");
        assert!(followed > 10 && moves.taken_back > 0, "{followed} {moves:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 14, 159] {
        assert_eq!(run_seed(seed), run_seed(seed), "seed {seed}");
    }
}

#[test]
fn a_bucket_of_anything_is_survived() {
    let mut random = Random::new(4);
    for _ in 0..2_000 {
        let len = random.between(0, 900);
        let few = random.chance(500_000);
        let byte = |random: &mut Random| random.between(0, if few { 2 } else { 255 }) as u8;
        replay_bucket(&(0..len).map(|_| byte(&mut random)).collect::<Vec<u8>>());
    }
}
