//! Whole shards: one alone with hand-made frames, and two on a wire.

mod addresses;
mod autoconfiguration;
mod connections;
mod cookies;
mod datagrams;
mod fragments;
mod harness;
mod icmp;
mod migration;
mod multicast;
mod names;
mod neighbours;
mod oracle;
mod random_frames;
mod steered;
mod tracing;
