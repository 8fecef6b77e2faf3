//! Hundreds of seeded worlds of datagrams. A failure prints its seed; `HAYPILE_SEED=N cargo test -p
//! haypile-sim --test datagrams` repeats that one.

use haypile_sim::datagrams::run_seed;

#[test]
fn what_arrives_was_sent_and_good_paths_lose_nothing() {
    let one: Option<u64> = std::env::var("HAYPILE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(0..400, |seed| seed..seed + 1);
    let (mut sent, mut received, mut clean) = (0, 0, 0);
    for seed in seeds.clone() {
        match run_seed(seed) {
            Ok(outcome) => {
                sent += outcome.sent;
                received += outcome.received;
                clean += usize::from(outcome.clean);
            }
            Err(error) => panic!("{error}\nto repeat: HAYPILE_SEED={seed}"),
        }
    }
    if seeds.end - seeds.start > 100 {
        assert!(sent > 1000 && received > sent / 2 && clean > 10, "{sent} {received} {clean}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 14, 159] {
        assert_eq!(run_seed(seed), run_seed(seed), "seed {seed}");
    }
}
