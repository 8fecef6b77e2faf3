//! A thousand seeded services of several servers. A failure prints its seed; `HAYPILE_SEED=N cargo test -p haypile-sim
//! --test steered` repeats that one, `HAYPILE_SEEDS=COUNT` runs so many.

use haypile_sim::steered::run_seed;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn everything_comes_to_the_server_that_owns_it() {
    let seeds = match from_environment("HAYPILE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("HAYPILE_SEEDS").unwrap_or(300),
    };
    let (mut complete, mut other, mut datagrams, mut handed, mut errors, mut clean) =
        (0, 0, 0, 0, 0, 0);
    for seed in seeds.clone() {
        match run_seed(seed) {
            Ok(outcome) => {
                complete += outcome.complete;
                other += outcome.other;
                datagrams += outcome.datagrams;
                handed += outcome.handed;
                errors += outcome.errors;
                clean += usize::from(outcome.clean);
            }
            Err(error) => panic!("{error}\nto repeat: HAYPILE_SEED={seed}"),
        }
    }
    println!(
        "{complete} ends complete, {other} not, {datagrams} datagrams, {handed} packets handed over, \
         {errors} errors, {clean} clean worlds"
    );
    if seeds.end - seeds.start > 100 {
        assert!(complete > 4 * other, "{complete} complete, {other} not");
        assert!(datagrams > 1000 && handed > 300 && errors > 100 && clean > 30);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 14, 159] {
        assert_eq!(run_seed(seed), run_seed(seed), "seed {seed}");
    }
}
