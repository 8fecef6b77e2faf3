//! Replays every input that fuzzing has found worth keeping (`corpus/frames.hex`), and a few thousand random ones,
//! against the engine. See fuzz/README.md for how to add to them.

use haypile_engine::Counter;
use haypile_engine::random::Random;
use haypile_sim::replay::{play, replay};

/// The bytes of a line of hexadecimal digits; comments and empty lines give nothing.
fn decode(line: &str) -> Option<Vec<u8>> {
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let digits = |at: usize| u8::from_str_radix(&line[at..at + 2], 16);
    Some((0..line.len()).step_by(2).map(|at| digits(at).expect("two digits a byte")).collect())
}

#[test]
fn the_corpus_is_survived() {
    let inputs: Vec<_> = include_str!("corpus/frames.hex").lines().filter_map(decode).collect();
    assert!(inputs.len() > 100, "the corpus has only {} inputs", inputs.len());
    let reached = [
        Counter::TcpPassiveOpens,
        Counter::UdpDatagramsDelivered,
        Counter::UdpDatagramsSent,
        Counter::UdpErrorsReported,
        Counter::PathMtusLearned,
        Counter::GroupsJoined,
    ];
    let mut counts = [0; 6];
    for input in inputs {
        let counters = play(&input);
        for (count, counter) in counts.iter_mut().zip(reached) {
            *count += counters.get(counter);
        }
    }
    assert!(counts.iter().all(|count| *count > 0), "{counts:?} of {reached:?}");
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
