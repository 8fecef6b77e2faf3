//! Replays every input that fuzzing what servers say to each other has found worth keeping
//! (`corpus/baggage.hex`: sockets that move; `corpus/records.hex`: all else). See fuzz/README.md for how
//! to add to them.

use haypile_service::aside;
use haypile_service::freight::baggage::{Baggage, LateNotice, Receipt, fuzz_decode};

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
    let inputs: Vec<_> = include_str!("corpus/baggage.hex").lines().filter_map(decode).collect();
    assert!(inputs.len() > 10, "the corpus has only {} inputs", inputs.len());
    // Some of each kind are what they should be.
    let held = |input: &&Vec<u8>| matches!(Baggage::decode(input), Ok(Baggage::Held(_)));
    assert!(inputs.iter().any(|input| held(&input)));
    assert!(inputs.iter().any(|input| Receipt::decode(input).is_ok()));
    assert!(inputs.iter().any(|input| LateNotice::decode(input).is_ok()));
    for input in inputs {
        fuzz_decode(&input);
    }
}

#[test]
fn the_corpus_of_records_is_survived() {
    let inputs: Vec<_> = include_str!("corpus/records.hex").lines().filter_map(decode).collect();
    assert!(inputs.len() > 10, "the corpus has only {} inputs", inputs.len());
    for input in inputs {
        aside::fuzz_decode(&input);
    }
}
