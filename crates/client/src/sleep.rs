//! How calls that wait sleep in the kernel. The calls decide when; the shim says how, because signals
//! and their handlers are its part. Sleeps on words of shared memory are not among these: futexes know no
//! signal masks.

use std::os::fd::RawFd;
use std::time::Duration;

use haypile_shm::Errno;
use haypile_shm::sys::{self, EpollEvent, PollFd};

/// The sleeps of one call.
pub trait Sleeper {
    /// From here to the end of the call handlers run in sleeps only: one that ran between two of them, or while
    /// a server is asked, would end none.
    fn hold(&mut self);

    /// Sleeps in ppoll(2); any handler ends it.
    ///
    /// # Errors
    /// The errno, `EINTR` above all.
    fn poll(&mut self, fds: &mut [PollFd], timeout: Option<Duration>) -> Result<usize, Errno>;

    /// As [`Sleeper::poll`]; handlers installed with `SA_RESTART` do not end it (signal(7)).
    ///
    /// # Errors
    /// As [`Sleeper::poll`].
    fn poll_restarting(
        &mut self,
        fds: &mut [PollFd],
        timeout: Option<Duration>,
    ) -> Result<usize, Errno>;

    /// Sleeps in the kernel's half of a set; any handler ends it.
    ///
    /// # Errors
    /// The errno, `EINTR` above all.
    fn epoll_wait(
        &mut self,
        epoll: RawFd,
        out: &mut [EpollEvent],
        timeout_ms: i32,
    ) -> Result<usize, Errno>;
}

/// The kernel's sleeps as they are: any handler ends one, and none is held back.
#[derive(Debug)]
pub struct Plain;

impl Sleeper for Plain {
    fn hold(&mut self) {}

    fn poll(&mut self, fds: &mut [PollFd], timeout: Option<Duration>) -> Result<usize, Errno> {
        sys::ppoll(fds, timeout)
    }

    fn poll_restarting(
        &mut self,
        fds: &mut [PollFd],
        timeout: Option<Duration>,
    ) -> Result<usize, Errno> {
        sys::ppoll(fds, timeout)
    }

    fn epoll_wait(
        &mut self,
        epoll: RawFd,
        out: &mut [EpollEvent],
        timeout_ms: i32,
    ) -> Result<usize, Errno> {
        sys::epoll_wait(epoll, out, timeout_ms)
    }
}

/// The sleeps of a blocking call without a time limit: polls that go on after handlers with
/// `SA_RESTART`.
pub(crate) struct Restarting<'a>(pub &'a mut dyn Sleeper);

impl Sleeper for Restarting<'_> {
    fn hold(&mut self) {
        self.0.hold();
    }

    fn poll(&mut self, fds: &mut [PollFd], timeout: Option<Duration>) -> Result<usize, Errno> {
        self.0.poll_restarting(fds, timeout)
    }

    fn poll_restarting(
        &mut self,
        fds: &mut [PollFd],
        timeout: Option<Duration>,
    ) -> Result<usize, Errno> {
        self.0.poll_restarting(fds, timeout)
    }

    fn epoll_wait(
        &mut self,
        epoll: RawFd,
        out: &mut [EpollEvent],
        timeout_ms: i32,
    ) -> Result<usize, Errno> {
        self.0.epoll_wait(epoll, out, timeout_ms)
    }
}
