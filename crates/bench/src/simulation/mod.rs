//! Servers, web servers and their messages in virtual time: what needs more cores than the machine
//! has. Connections arrive, servers and workers take time for what they do, messages are under way
//! for a while; who gets which connection is decided by the engine's real connection managers and
//! balancers ([`haypile_engine::control`]). The kernel beside it is a model, and called so.
//!
//! | module | what |
//! |---|---|
//! | [`costs`] | how long everything takes, from a file of measured costs |
//! | [`shape`] | which server has which components: the paper's notation |
//! | [`workload`] | arrivals, service times, and the delays of the paper's figure 6a |
//! | [`world`] | the event loop: stations, workers, connections |
//! | [`transport`] | what servers do with a message, between the wire, the managers and the workers |
//! | [`linux`] | models of the kernel's accept queues |
//! | [`outcome`] | what is counted |
//!
//! Everything repeats from its seed. Called by the experiments `balance`, `schemes`, `accept` and
//! `configs`; start with [`world::World::run`].

pub mod control;
pub mod costs;
pub mod linux;
pub mod outcome;
pub mod shape;
pub mod transport;
pub mod workload;
pub mod world;

#[cfg(test)]
mod tests;
