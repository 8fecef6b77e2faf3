//! Deterministic simulation of whole hosts: real `haypile-engine` shards in virtual time, joined by a
//! switch whose ports lose, duplicate, reorder, corrupt and delay frames by seed. Only tests and
//! experiments use this crate.
//! Read [`world`] first (how time moves), then [`application`] (what the simulated programs do and check).
#![forbid(unsafe_code)]

pub mod application;
pub mod datagrams;
pub mod dhcp;
pub mod fault;
pub mod host;
pub mod inside;
pub mod memory;
pub mod migration;
pub mod model;
pub mod offload;
pub mod replay;
pub mod scenario;
pub mod steered;
pub mod world;

pub use fault::FaultPlan;
pub use scenario::{Outcome, Scenario};
pub use world::World;
