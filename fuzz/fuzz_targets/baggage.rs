//! What a server says of sockets that move to another one.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| haypile_service::freight::baggage::fuzz_decode(input));
