//! A doorbell: one end of a non-blocking socket pair. Ringing wakes whoever sleeps in poll or epoll
//! on the other end, across processes. Used from the application to the service (wake socket) and
//! from the service to an application's watcher.
//!
//! A socket pair and not something cheaper: the other side can fill an eventfd so that a writer blocks, and can hold
//! a pipe's lock for as long as it likes, by a write from memory that it has made slow; a futex wakes nobody
//! who sleeps in epoll. Here a full queue means that the ring is heard already, and a closed end is heard, too.

use std::os::fd::RawFd;

use crate::sys::{self, Errno, Fd, Result};

/// One end of a doorbell.
#[derive(Debug)]
pub struct Doorbell {
    fd: Fd,
    /// The kernel's name of the socket, where the number may become another's.
    cookie: Option<u64>,
}

impl Doorbell {
    /// Two connected ends, non-blocking and close-on-exec. Both can ring the other.
    pub fn pair() -> Result<(Doorbell, Doorbell)> {
        let (left, right) = sys::socketpair_stream()?;
        Ok((Doorbell::from_fd(left), Doorbell::from_fd(right)))
    }

    /// An end received from another process. Ringing never blocks, whatever the flags of the
    /// descriptor are.
    pub fn from_fd(fd: impl Into<Fd>) -> Doorbell {
        Doorbell { fd: fd.into(), cookie: None }
    }

    /// As [`Doorbell::from_fd`], in a process whose program may close our descriptors behind our
    /// back: before each use the number is checked to stand for the same socket still.
    pub fn guarded(fd: impl Into<Fd>) -> Doorbell {
        let fd = fd.into();
        let cookie = sys::so_cookie(fd.raw()).ok();
        Doorbell { fd, cookie }
    }

    /// Whether the number still stands for the socket that was given.
    pub fn is_ours(&self) -> bool {
        self.cookie.is_none_or(|cookie| sys::so_cookie(self.fd.raw()) == Ok(cookie))
    }

    /// Rings the other end: one byte. A full queue is success. An error means that the other end is
    /// gone (`EPIPE`, `ECONNRESET`) or the descriptor is no longer ours (`EBADF`, `ENOTSOCK`).
    pub fn ring(&self) -> Result<()> {
        if !self.is_ours() {
            return Err(Errno::EBADF);
        }
        match sys::send(self.fd.raw(), &[1], libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Takes the rings that have arrived. `Ok(false)`: the other end is closed. Bounded: leaves
    /// some for the next time if the other side rings without end.
    pub fn drain(&self) -> Result<bool> {
        if !self.is_ours() {
            return Err(Errno::EBADF);
        }
        self.drain_known()
    }

    /// As [`Doorbell::drain`], for a caller who knows that the number stands for it still.
    pub fn drain_known(&self) -> Result<bool> {
        let mut bytes = [0u8; 64];
        for _ in 0..16 {
            match sys::recv(self.fd.raw(), &mut bytes, libc::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(false),
                Ok(len) if len < bytes.len() => return Ok(true),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(true),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }

    /// The descriptor number, for a poll or epoll set.
    pub fn raw(&self) -> RawFd {
        self.fd.raw()
    }

    /// Gives the descriptor up, to send it to the other process.
    pub fn into_fd(self) -> Fd {
        self.fd
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
