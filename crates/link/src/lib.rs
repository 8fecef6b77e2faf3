//! Haypile's ports: what carries Ethernet frames between the service and a network, and the calls
//! that set such links up. Used by the service (its port), by the `haypile` binary (namespaces and
//! addresses of the demo) and by tests. Start with `port.rs`, then `tap.rs`.
//!
//! | module | what |
//! |---|---|
//! | [`port`] | the [`port::Port`] trait: bursts of frames in and out, features, counters |
//! | [`tap`] | an Ethernet interface of the kernel whose other end is this process |
//! | [`packet`] | a packet socket on a veth pair of its own, or on an interface that is there |
//! | [`steering`] | which queue of a TAP a flow comes on, here and in the kernel |
//! | [`offload`] | finishing checksums and cutting superframes in software |
//! | [`wire`] | two ports joined by shared memory, in one process or between two |
//! | [`capture`] | a decorator that writes what passes to a pcapng file |
//! | [`fault`] | a decorator that makes a bad path: loss, delay, rate and the like |
//! | [`join`] | two ports joined over a bad path |
//! | [`netlink`], [`netns`] | interfaces, addresses, routes; network namespaces |
//! | [`capabilities`] | what a process without root may do, and hand on |
//! | [`host_cores`] | where the host does its half of the work for an interface |
//! | [`address_plan`] | which free addresses a private service takes |
//!
//! All `unsafe` code of the crate is in `sys.rs`.

#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod address_plan;
pub mod capabilities;
pub mod capture;
mod error;
pub mod fault;
pub mod host_cores;
pub mod join;
pub mod netlink;
pub mod netns;
pub mod offload;
pub mod packet;
pub mod port;
pub mod steering;
#[allow(unsafe_code)]
mod sys;
pub mod tap;
mod virtio;
pub mod wire;

pub use error::LinkError;
