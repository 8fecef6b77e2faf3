//! Whole shards: one alone with hand-made frames, and two on a wire.

mod addresses;
mod connections;
mod fragments;
mod harness;
mod icmp;
mod neighbours;
mod random_frames;
