//! Control: listeners, acceptors, offers and balancing as pure state machines, without packets,
//! memory or system calls. What they are told and what they want done are values, so that one
//! program can hold both sides, or messages can carry them between servers.
//!
//! Read [`names`], then [`messages`], then [`connection_manager`]; [`balancer`] and [`estimator`] for who
//! gets the next connection. Driven by the service, and by
//! `sim` in virtual time. Source: the PIKA paper, sections 3.2 and 3.3.

mod announcing;
pub mod balancer;
pub mod connection_manager;
pub mod estimator;
pub mod messages;
pub mod names;
pub mod proofs;
mod queue;
pub mod summary;

pub use announcing::ANNOUNCE_EACH_US;

/// A map whose keys nobody outside can choose.
type OwnMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::FixedState>;
