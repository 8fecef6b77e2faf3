//! The library that programs are started with (`LD_PRELOAD`): one function per libc symbol, which
//! asks the descriptor table whose number it is and hands the call to the kernel or to the client
//! crate. No policy of its own.
//!
//! Rules, each bought by a program that breaks without it:
//! * A call on a kernel descriptor is one load, one compare and a raw system call: no lock, no
//!   allocation, no `dlsym`, and it works before any constructor and in signal handlers.
//! * `std` is used for memory and synchronisation only, never for input and output, whose functions
//!   would come back here. Lower crates make raw system calls.
//! * Variadic functions are defined with fixed register arguments, which is the same calling
//!   convention on x86-64 and AArch64 Linux for integers and pointers; those with any number of
//!   arguments are in `variadic.rs`.
//! * `extern "C-unwind"`, so that `pthread_cancel` and long jumps may pass through.
//! * Libc's cancellation points are no cancellation points here.
//!
//! Read `raw.rs` first, then `start.rs`, then any of the tables of calls.

mod confinement;
mod data;
mod datagrams;
mod escape;
mod files;
mod interfaces;
mod names;
mod options;
mod process;
mod raw;
mod rights;
mod signals;
mod splice;
mod start;
mod stdio;
mod variadic;
mod vectors;
mod wait;
