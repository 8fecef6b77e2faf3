//! A bucket from another server, which may be anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| haypile_sim::migration::replay_bucket(input));
