//! Hundreds of seeded worlds. A failure prints its seed; `HAYPILE_SEED=N cargo test -p haypile-sim
//! --test seeds` repeats that one, `HAYPILE_SEEDS=COUNT` runs so many.

use haypile_sim::scenario::run_seed;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn every_byte_arrives_once_in_order_or_an_error_is_reported() {
    let seeds = match from_environment("HAYPILE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("HAYPILE_SEEDS").unwrap_or(400),
    };
    let (mut complete, mut failed) = (0, 0);
    let (mut cut, mut merged) = (0, 0);
    for seed in seeds.clone() {
        match run_seed(seed) {
            Ok(outcome) => {
                complete += outcome.complete;
                failed += outcome.failed;
                cut += outcome.superframes.0;
                merged += outcome.superframes.1;
            }
            Err(error) => panic!("{error}\nto repeat: HAYPILE_SEED={seed}"),
        }
    }
    if seeds.end - seeds.start > 100 {
        assert!(complete > 10 * failed.max(1), "{complete} complete, {failed} failed");
        assert!(cut > 1000 && merged > 100, "{cut} superframes sent, {merged} received");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 14, 159] {
        assert_eq!(run_seed(seed), run_seed(seed), "seed {seed}");
    }
}
