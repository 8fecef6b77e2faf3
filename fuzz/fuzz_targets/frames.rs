//! Frames, packets, segments, time and commands against one shard.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| haypile_sim::replay::replay(input));
