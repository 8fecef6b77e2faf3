//! Replays every input that fuzzing the message decoders has found worth keeping (`corpus/messages.hex`). See
//! fuzz/README.md for how to add to them.

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
    let inputs: Vec<_> = include_str!("corpus/messages.hex").lines().filter_map(decode).collect();
    assert!(inputs.len() > 10, "the corpus has only {} inputs", inputs.len());
    for input in inputs {
        haypile_shm::messages::fuzz_decode(&input);
    }
}
