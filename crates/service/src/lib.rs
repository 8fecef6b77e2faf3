//! The daemon's parts: configuration and plan, one short file for each server, processes and trust
//! domains, control socket, event loop.
//!
//! Read in this order: [`server`] (what one turn does), [`link_server`] (frames in and out),
//! [`transport_server`] (connections and what applications see of them), [`haypile_engine::control`]
//! and [`accepting`] (from an established connection to the process that gets it), [`requests`]
//! (what applications ask), [`life`] (death of processes and sockets), [`event_loop`].
#![forbid(unsafe_code)]

pub mod accepting;
pub mod aside;
pub mod attach;
pub mod balance;
pub mod config;
pub mod control;
pub mod conversation;
pub mod datagrams;
pub mod diag;
pub mod domains;
pub mod errno;
pub mod error;
pub mod event_loop;
pub mod farewell;
pub mod frame_peers;
pub mod freight;
pub mod homes;
pub mod inherited;
pub mod life;
pub mod link_server;
pub mod links;
pub mod listing;
pub mod managers;
pub mod moving;
pub mod obituary;
pub mod open;
pub mod options;
pub mod plan;
pub mod poller;
pub mod ports;
pub mod processes;
pub mod readiness;
pub mod report;
pub mod requests;
pub mod resolve;
pub mod rings;
pub mod roles;
pub mod roster;
pub mod sandbox;
pub mod server;
pub mod server_process;
pub mod sharing;
pub mod slab;
pub mod sockets;
pub mod start;
pub mod stats;
pub mod supervisor;
pub mod switch;
pub mod times;
pub mod trace;
pub mod transport_server;
pub mod welcome;

#[cfg(any(test, feature = "harness"))]
#[path = "tests/harness.rs"]
pub mod harness;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
