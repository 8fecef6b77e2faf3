//! Descriptors of our own inside the application: moved to high numbers, close-on-exec, entered in
//! the descriptor table so that the application can neither close them nor land on them.
//!
//! Used by `attach.rs`, `watchers.rs`, `epoll.rs` and `placeholder.rs`. High means just below the
//! limit of open descriptors, and not above 16384, because a forked process copies the kernel's
//! table up to its highest number.
//!
//! A program may close them nevertheless, by system calls of its own, and the number may then
//! become another file's. They are all sockets, so the kernel's cookie tells: it is compared before
//! anything is sent, received or closed.

use std::os::fd::RawFd;

use haypile_shm::sys::{self, Fd};
use haypile_shm::{Doorbell, Errno};

use crate::descriptors::{self, Owner};

/// Numbers kept for ourselves below the limit.
const ROOM: u64 = 256;
const HIGHEST: u64 = 16 * 1024;

/// The number from which on our own descriptors are placed.
fn floor() -> RawFd {
    let soft = sys::rlimit_nofile().map_or(1024, |(soft, _)| soft).min(HIGHEST);
    soft.saturating_sub(ROOM).max(soft / 2) as RawFd
}

/// A descriptor of our own.
#[derive(Debug)]
pub(crate) struct Internal {
    fd: Option<Fd>,
    cookie: Option<u64>,
}

impl Internal {
    /// Takes a descriptor over and moves it up. Where there is no room above it stays where it is.
    pub(crate) fn new(fd: Fd) -> Internal {
        let moved = fd.try_clone_at_least(floor()).unwrap_or(fd);
        descriptors::enter(moved.raw(), Owner::Internal);
        let cookie = sys::so_cookie(moved.raw()).ok();
        Internal { fd: Some(moved), cookie }
    }

    /// The number; -1 never occurs while the value lives.
    pub(crate) fn raw(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, Fd::raw)
    }

    /// Whether the number still stands for what was taken over.
    pub(crate) fn is_ours(&self) -> bool {
        let fd = self.raw();
        descriptors::owner(fd) == Owner::Internal && sys::so_cookie(fd).ok() == self.cookie
    }
}

impl Drop for Internal {
    fn drop(&mut self) {
        // If the number is not ours any more, somebody closed it behind our back and it may be
        // another's by now.
        let ours = self.is_ours();
        if let Some(fd) = self.fd.take()
            && !(descriptors::take_if(fd.raw(), Owner::Internal) && ours)
        {
            let _: RawFd = fd.into_raw();
        }
    }
}

/// Moves a descriptor up that will live as long as the process.
pub(crate) fn keep(fd: Fd) -> Fd {
    let mut kept = Internal::new(fd);
    kept.fd.take().unwrap_or(Fd::from_raw(-1))
}

/// Closes a doorbell that was kept, unless somebody has closed it behind our back.
pub(crate) fn give_up(bell: Doorbell) {
    let ours = bell.is_ours();
    let fd = bell.into_fd();
    if !(descriptors::take_if(fd.raw(), Owner::Internal) && ours) {
        let _: RawFd = fd.into_raw();
    }
}

/// Our end of a doorbell.
#[derive(Debug)]
pub(crate) struct Bell {
    bell: Option<Doorbell>,
}

impl Bell {
    /// A pair: our end, and the one to send away.
    pub(crate) fn pair() -> Result<(Bell, Fd), Errno> {
        let (ours, theirs) = Doorbell::pair()?;
        Ok((Bell { bell: Some(Doorbell::guarded(keep(ours.into_fd()))) }, theirs.into_fd()))
    }

    /// The number, for a poll or epoll set.
    pub(crate) fn raw(&self) -> RawFd {
        self.bell.as_ref().map_or(-1, Doorbell::raw)
    }

    /// Whether the number still stands for the bell.
    pub(crate) fn is_ours(&self) -> bool {
        self.bell.as_ref().is_some_and(Doorbell::is_ours)
    }

    /// Takes the rings that have arrived. False: the service is gone.
    pub(crate) fn drain(&self) -> bool {
        self.bell.as_ref().is_some_and(|bell| bell.drain().unwrap_or(false))
    }

    /// As `drain`, right after the kernel has said of this bell that it rings: as long as nobody holds a
    /// copy, it knows of none whose number was closed.
    pub(crate) fn drain_rung(&self) -> bool {
        self.bell.as_ref().is_some_and(|bell| bell.drain_known().unwrap_or(false))
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        if let Some(bell) = self.bell.take() {
            give_up(bell);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_descriptors_are_high_and_entered() {
        let (left, _right) = sys::socketpair_stream().unwrap();
        let low = left.raw();
        let own = Internal::new(left);
        let number = own.raw();
        assert!(number > low);
        assert_eq!(descriptors::owner(number), Owner::Internal);
        assert!(sys::fcntl_getfd(number).unwrap() & libc::FD_CLOEXEC != 0);
        assert_eq!(sys::fcntl_getfd(low), Err(Errno::EBADF));
        drop(own);
        assert!(descriptors::is_kernel(number));
        assert_eq!(sys::fcntl_getfd(number), Err(Errno::EBADF));
    }
}
