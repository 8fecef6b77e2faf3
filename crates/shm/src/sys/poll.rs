//! Waiting for descriptors: epoll and ppoll. `pwait` forms take no signal mask here.

use core::time::Duration;
use std::os::fd::RawFd;

use super::{Fd, Result, futex::timespec, syscall6};

/// One event of an epoll set; the layout is the kernel's (packed on x86-64).
pub type EpollEvent = libc::epoll_event;
/// One entry of a poll call.
pub type PollFd = libc::pollfd;

/// A new epoll set, close-on-exec.
pub fn epoll_create() -> Result<Fd> {
    // SAFETY: touches no memory.
    unsafe {
        syscall6(libc::SYS_epoll_create1 as usize, libc::EPOLL_CLOEXEC as usize, 0, 0, 0, 0, 0)
    }
    .map(|fd| Fd::from_raw(fd as RawFd))
}

/// Adds, changes or removes (`EPOLL_CTL_*`) `fd` in a set.
pub fn epoll_ctl(epoll: RawFd, operation: i32, fd: RawFd, events: u32, data: u64) -> Result<()> {
    let mut event = EpollEvent { events, u64: data };
    // SAFETY: the kernel reads one event.
    unsafe {
        syscall6(
            libc::SYS_epoll_ctl as usize,
            epoll as usize,
            operation as usize,
            fd as usize,
            core::ptr::from_mut(&mut event) as usize,
            0,
            0,
        )
    }
    .map(drop)
}

/// Waits for events; `timeout_ms` as `epoll_wait(2)` (-1: for ever). Returns how many entries of
/// `events` were filled.
pub fn epoll_wait(epoll: RawFd, events: &mut [EpollEvent], timeout_ms: i32) -> Result<usize> {
    // SAFETY: the kernel writes at most `events.len()` entries; no signal mask is given.
    unsafe {
        syscall6(
            libc::SYS_epoll_pwait as usize,
            epoll as usize,
            events.as_mut_ptr() as usize,
            events.len().min(i32::MAX as usize),
            timeout_ms as usize,
            0,
            8,
        )
    }
}

/// Waits for descriptors, at most `timeout` (`None`: for ever). Returns how many are ready.
pub fn ppoll(fds: &mut [PollFd], timeout: Option<Duration>) -> Result<usize> {
    let mut time = timeout.map(timespec);
    let pointer = time.as_mut().map_or(core::ptr::null_mut(), core::ptr::from_mut);
    // SAFETY: the kernel writes `revents` of the entries and the time left; both are ours.
    unsafe {
        syscall6(
            libc::SYS_ppoll as usize,
            fds.as_mut_ptr() as usize,
            fds.len(),
            pointer as usize,
            0,
            8,
            0,
        )
    }
}
