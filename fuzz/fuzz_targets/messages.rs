//! Every decoder of messages between applications and the service.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| haypile_shm::messages::fuzz_decode(input));
