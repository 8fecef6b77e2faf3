//! The application's side of Haypile: sockets, epoll and poll with the meaning the kernel gives
//! them, over the memory and messages that an application shares with the service. The preload
//! library turns libc's functions into these; Rust programs may call them directly.
//!
//! Read in this order: `descriptors` (whose number is this), `entry` (what is known of a socket),
//! `socket` (who decides whose it is), `accept`, `stream_io`, then `epoll` and `poll`; `attach`
//! and `fork` for the life of a process.
//!
//! Rules. Functions take descriptor numbers and answer with error numbers; [`TO_KERNEL`] means that
//! the call is the kernel's to make. Everything that is not ours is found out by one load. No
//! function of `std` that reads or writes descriptors is used, because inside an application those
//! lead back here: system calls are made by `haypile_shm::sys`. Locks are held for a copy, never
//! across a wait on another thread; a signal handler that interrupts one of our own calls in the
//! middle gets EAGAIN from those that need the same lock (`lock.rs`).

#![forbid(unsafe_code)]

mod accept;
mod addresses;
mod attach;
pub mod confinement;
mod datagram;
mod descriptors;
mod entry;
mod epoll;
mod errno;
mod everywhere;
mod following;
mod fork;
mod internal;
mod lock;
mod memory;
mod options;
mod placeholder;
mod places;
mod poll;
mod readiness;
mod restore;
mod slab;
mod sleep;
mod socket;
mod stream_io;
mod watchers;

pub use accept::{accept, accept_sleeping};
pub use attach::{AttachError, DomainToken, attach, domain, is_attached};
pub use datagram::control::SendControl;
pub use datagram::is_datagram;
pub use datagram::receive::{Arrival, Failure, KernelReceive, Received, receive_from};
pub use datagram::routes::own_addresses;
pub use datagram::send::send_to;
pub use descriptors::{Owner, TABLE_NUMBERS, is_kernel, owner};
pub use epoll::{epoll_ctl, epoll_made, epoll_wait};
pub use errno::TO_KERNEL;
pub use fork::{
    adopt_inherited, after_fork_in_child, after_fork_in_parent, after_spawn, before_exec,
    before_fork, before_spawn, set_wiped_word,
};
pub use haypile_shm::Errno;
pub use haypile_shm::stream::FileStop;
pub use options::{getsockopt, setsockopt};
pub use placeholder::{adopt, share_descriptor as share};
pub use poll::{any_ours, poll};
pub use sleep::{Plain, Sleeper};
pub use socket::{
    CloseRange, bind, close, close_range, connect, connect_to_send, disconnect, duplicate,
    duplicate_to, forget_number, listen, local_address, remote_address, set_nonblocking,
    set_status_flags, shutdown, socket, status_flags,
};
pub use stream_io::{
    discard, readable_bytes, receive, receive_control, send, send_file, unsent_bytes,
};

use std::os::fd::RawFd;

/// Whether a number is a descriptor of this library.
pub fn is_internal(fd: RawFd) -> bool {
    owner(fd) == Owner::Internal
}

/// Whether a number stands for a socket that the kernel cannot move bytes of.
pub fn is_haypile(fd: RawFd) -> bool {
    !is_kernel(fd) && entry::ours(fd).is_ok_and(|socket| socket.has_record())
}
