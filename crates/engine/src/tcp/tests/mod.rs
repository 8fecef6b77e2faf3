//! Tests of the connection, written as scripts over a [`Pair`]: two hosts, a wire with scripted
//! faults, and virtual time. Every segment passes through the header codec on its way.

mod carry;
mod closing;
mod flow;
mod handshake;
mod misbehaviour;
mod pair;
mod repair;
mod sack;
mod soak;
mod superframe;
