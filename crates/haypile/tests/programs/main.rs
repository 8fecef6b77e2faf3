//! Unmodified programs on Haypile, end to end: every test makes a network namespace of its own, starts the
//! `haypile` binary and real programs in it, and checks afterwards that nothing of them is left.
//! Run by `cargo test` as root; without the right to make a namespace, or without a program that a test
//! needs, the test says `skipped: why` and passes. Read `support/stage.rs` first.
//!
//! The acceptance run raises the sizes: `HAYPILE_E2E_BIG` (bytes of the big file), `HAYPILE_E2E_REQUESTS`,
//! `HAYPILE_E2E_FORKS`, `HAYPILE_E2E_KILLS`, `HAYPILE_E2E_IDLE` (seconds), `HAYPILE_E2E_SEED`.
#![forbid(unsafe_code)]

mod autoconfiguration;
mod bench;
mod clients;
mod command_line;
mod datagrams;
mod death;
mod figures;
mod following;
mod growth;
mod guardian;
mod hostile;
mod jailed;
mod join;
mod kills_under_load;
mod kinds_of_servers;
mod load;
mod many_servers;
mod moves;
mod other_programs;
mod packet_port;
mod reach;
mod real_programs;
mod restart;
mod scribble;
mod semantics;
mod support;
mod transfer;
mod wire;
mod without_root;
