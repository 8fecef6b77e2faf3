//! What servers say to each other: moves of buckets, who steers by what, news of the network, messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| haypile_service::aside::fuzz_decode(input));
