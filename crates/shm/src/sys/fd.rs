//! Descriptors: the owned [`Fd`], duplicates, flags, plain reads and writes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use super::{Result, syscall4};

/// A descriptor of our own, closed by a raw system call when dropped. (`std`'s `OwnedFd` closes
/// through libc's `close`, which inside an interposed process is the shim's.)
#[derive(Debug)]
pub struct Fd(RawFd);

impl Fd {
    /// Takes ownership of a descriptor number. The caller must not use or close it otherwise.
    pub fn from_raw(fd: RawFd) -> Fd {
        Fd(fd)
    }

    /// The number.
    pub fn raw(&self) -> RawFd {
        self.0
    }

    /// Gives the number up without closing it.
    pub fn into_raw(self) -> RawFd {
        let fd = self.0;
        std::mem::forget(self);
        fd
    }

    /// Another descriptor of the same file, at or above `minimum`, close-on-exec.
    pub fn try_clone_at_least(&self, minimum: RawFd) -> Result<Fd> {
        dup_at_least(self.0, minimum)
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        let _: Result<()> = close(self.0);
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Fd {
        Fd(fd.into_raw_fd())
    }
}

impl From<Fd> for OwnedFd {
    fn from(fd: Fd) -> OwnedFd {
        // SAFETY: `into_raw` gives up ownership of an open descriptor.
        unsafe { OwnedFd::from_raw_fd(fd.into_raw()) }
    }
}

/// Closes a descriptor number.
pub fn close(fd: RawFd) -> Result<()> {
    // SAFETY: touches no memory.
    unsafe { syscall4(libc::SYS_close, fd as usize, 0, 0, 0) }.map(drop)
}

fn fcntl(fd: RawFd, command: i32, argument: usize) -> Result<usize> {
    // SAFETY: all commands used in this file take an integer.
    unsafe { syscall4(libc::SYS_fcntl, fd as usize, command as usize, argument, 0) }
}

/// A duplicate at or above `minimum`, close-on-exec.
pub fn dup_at_least(fd: RawFd, minimum: RawFd) -> Result<Fd> {
    fcntl(fd, libc::F_DUPFD_CLOEXEC, minimum as usize).map(|new| Fd(new as RawFd))
}

/// A duplicate at the lowest free number, as an application expects of a new descriptor.
pub fn dup_lowest(fd: RawFd, close_on_exec: bool) -> Result<RawFd> {
    let command = if close_on_exec { libc::F_DUPFD_CLOEXEC } else { libc::F_DUPFD };
    fcntl(fd, command, 0).map(|new| new as RawFd)
}

/// A duplicate at the number `target`, which is closed first if open (`flags`: 0 or `O_CLOEXEC`).
pub fn dup3(fd: RawFd, target: RawFd, flags: i32) -> Result<RawFd> {
    // SAFETY: touches no memory.
    unsafe { syscall4(libc::SYS_dup3, fd as usize, target as usize, flags as usize, 0) }
        .map(|new| new as RawFd)
}

/// File status flags (`O_NONBLOCK`...).
pub fn fcntl_getfl(fd: RawFd) -> Result<i32> {
    fcntl(fd, libc::F_GETFL, 0).map(|flags| flags as i32)
}

/// Sets the file status flags.
pub fn fcntl_setfl(fd: RawFd, flags: i32) -> Result<()> {
    fcntl(fd, libc::F_SETFL, flags as usize).map(drop)
}

/// Descriptor flags (`FD_CLOEXEC`).
pub fn fcntl_getfd(fd: RawFd) -> Result<i32> {
    fcntl(fd, libc::F_GETFD, 0).map(|flags| flags as i32)
}

/// Sets the descriptor flags.
pub fn fcntl_setfd(fd: RawFd, flags: i32) -> Result<()> {
    fcntl(fd, libc::F_SETFD, flags as usize).map(drop)
}

/// Seals of a memory file (`F_SEAL_*`).
pub(crate) fn get_seals(fd: RawFd) -> Result<i32> {
    fcntl(fd, libc::F_GET_SEALS, 0).map(|seals| seals as i32)
}

/// Adds seals to a memory file.
pub(crate) fn add_seals(fd: RawFd, seals: i32) -> Result<()> {
    fcntl(fd, libc::F_ADD_SEALS, seals as usize).map(drop)
}

/// Reads bytes.
pub fn read(fd: RawFd, out: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most `out.len()` bytes into `out`.
    unsafe { syscall4(libc::SYS_read, fd as usize, out.as_mut_ptr() as usize, out.len(), 0) }
}

/// Writes bytes.
pub fn write(fd: RawFd, data: &[u8]) -> Result<usize> {
    // SAFETY: the kernel only reads `data`.
    unsafe { syscall4(libc::SYS_write, fd as usize, data.as_ptr() as usize, data.len(), 0) }
}

/// Size of a file in bytes, by seeking to its end (for memory files, whose position nobody uses).
pub(crate) fn file_size(fd: RawFd) -> Result<usize> {
    // SAFETY: touches no memory.
    unsafe { syscall4(libc::SYS_lseek, fd as usize, 0, libc::SEEK_END as usize, 0) }
}
