//! Replays every file that fuzzing has found worth keeping, and a few thousand random inputs, against the engine.
//! `corpus/frames` holds the files; a crash found later joins them with a sentence in `corpus/README.md`.

use haypile_sim::random::Random;
use haypile_sim::replay::replay;
use std::fs;
use std::path::PathBuf;

#[test]
fn the_corpus_is_survived() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/frames");
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is part of the repository").flatten() {
        replay(&fs::read(entry.path()).expect("a corpus file can be read"));
        count += 1;
    }
    assert!(count > 0, "no corpus in {}", folder.display());
}

#[test]
fn random_input_is_survived() {
    let mut random = Random::new(20_261_121);
    for _ in 0..3_000 {
        let len = random.between(1, 600);
        let input: Vec<u8> = (0..len).map(|_| random.next_u64() as u8).collect();
        replay(&input);
    }
}
