//! One registration of an epoll set, and what the last event of an edge-triggered one was given out for. Used by
//! `interest.rs`.

use std::os::fd::RawFd;

use super::EDGE;
use crate::entry::{self, Phase};
use crate::epoll::posts::Name;

/// One registration.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) fd: RawFd,
    pub(super) socket: u32,
    pub(super) events: u32,
    pub(super) data: u64,
    /// The record of its socket, the first one of a listener.
    pub(super) name: Option<Name>,
    /// False after a one-shot event, until modified.
    pub(super) armed: bool,
    /// On the ready list.
    pub(super) queued: bool,
    /// On the ready list although nothing has happened: an answer to WATCH or DRAINED came.
    pub(super) by_answer: bool,
    /// What an edge-triggered event was given out for.
    pub(super) given: Option<Sight>,
    /// False once removed, while still on the ready list.
    pub(super) live: bool,
    /// The placeholder of a dual socket is in the kernel's set for it.
    pub(super) in_kernel: bool,
    /// What the kernel has reported of the placeholder.
    pub(super) kernel_ready: u32,
    /// Next registration of the same socket in this set.
    pub(super) next: u32,
}

impl Registration {
    /// Whether an edge-triggered event would say again what the last one said; notes it if not. The service
    /// answers a registration with what it finds, which the program may have been given by then.
    pub(super) fn is_told(&mut self, bits: u32) -> bool {
        if self.events & EDGE == 0 {
            return false;
        }
        let sight = Sight::of(self.socket, bits);
        let told = self.by_answer && sight.is_some() && sight == self.given;
        self.given = sight;
        told
    }
}

/// What a socket that carries data looks like: while two are the same nothing has happened between them.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    bits: u32,
    positions: [u64; 3],
}

impl Sight {
    /// `None` for what may happen again and look the same: errors, urgent data, connections to accept.
    fn of(socket: u32, bits: u32) -> Option<Sight> {
        const ANEW: u32 = (libc::EPOLLERR | libc::EPOLLPRI) as u32;
        let socket = entry::pin(socket)?;
        if bits & ANEW != 0 || socket.phase() == Phase::Listening {
            return None;
        }
        Some(Sight { bits, positions: socket.stream()?.positions() })
    }
}
