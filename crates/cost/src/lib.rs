//! One fixed trace through the real server: what the cost table counts (docs/cost.md).
//!
//! [`trace`] has the scenarios: a server over an in-memory link, a made-up peer and a made-up
//! application, fixed seeds, virtual time. [`clock`] times the parts of their turns. The program
//! `haypile-cost` runs one scenario, under valgrind or natively; `cargo xtask cost` makes the table
//! of what it says, and `tests/allocations.rs` counts allocations in the same turns.
#![forbid(unsafe_code)]

pub mod clock;
pub mod trace;
