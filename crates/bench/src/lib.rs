//! Experiments that compare Haypile with the kernel's stack on the same work in one run: `haypile bench`.
//!
//! | module | what |
//! |---|---|
//! | [`statistics`], [`schedule`], [`latency`], [`cores`], [`processor_time`], [`machine`] | figures and facts |
//! | [`load`] | the load generator, over the kernel's sockets or over the engine |
//! | [`responder`], [`fleet`] | the built-in servers, ordinary programs |
//! | [`simulation`] | what needs more cores than the machine has, in virtual time |
//! | [`parts`], [`process`], [`stage`] | the processes of an experiment, their ends, the two sides |
//! | [`frame`], [`report`], [`plot`], [`experiments`] | measuring in turn, what is shown, what is measured |
//!
//! Start with [`experiments::run`]. docs/benchmarks.md says what each experiment means and how to read it.
#![forbid(unsafe_code)]

pub mod cache;
pub mod cores;
pub mod experiments;
pub mod fleet;
pub mod frame;
pub mod latency;
pub mod load;
pub mod machine;
pub mod options;
pub mod parts;
pub mod plot;
pub mod process;
pub mod processor_time;
pub mod report;
pub mod responder;
pub mod schedule;
pub mod server_times;
pub mod simulation;
pub mod stage;
pub mod statistics;
