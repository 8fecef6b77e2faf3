//! Raw system calls, by `syscall`/`svc` and never by libc's functions: this code also runs inside
//! interposed processes, where libc's names lead back into the shim. Every wrapper is safe except
//! [`syscall6`]. Constants come from the `libc` crate.
//!
//! Functions take plain descriptor numbers, because the shim deals in numbers that belong to the
//! application; descriptors of our own are held in [`Fd`].

pub mod fd;
pub mod futex;
pub mod poll;
pub mod privilege;
pub mod process;
pub mod socket;

pub use fd::*;
pub use poll::*;
pub use process::*;
pub use socket::*;

pub use futex::{
    Waited, wait as futex_wait, wait_any as futex_wait_any, wait_both as futex_wait_both,
    wait_interruptibly as futex_wait_interruptibly, wait_until as futex_wait_until,
    wake as futex_wake,
};

/// An error number of the kernel.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

/// Result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`")]
                pub const $name: Errno = Errno(libc::$name);
            )*

            /// The symbolic name, or `None` for numbers that nothing here uses.
            pub fn name(self) -> Option<&'static str> {
                $(if self == Errno::$name { return Some(stringify!($name)); })*
                None
            }
        }
    };
}

errnos! {
    EPERM ENOENT EINTR EIO EBADF EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST EINVAL ENFILE EMFILE
    ENOTTY ENOSPC ESPIPE EPIPE ERANGE EDEADLK ENOSYS EPROTO EOVERFLOW ENOTSOCK EDESTADDRREQ
    EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EAFNOSUPPORT
    EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN
    ENOTCONN ESHUTDOWN ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ECANCELED
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, out)
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => out.write_str(name),
            None => write!(out, "errno {}", self.0),
        }
    }
}

impl core::error::Error for Errno {}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        std::io::Error::from_raw_os_error(errno.0)
    }
}

/// Makes a system call.
///
/// # Safety
/// As the call itself: pointers and lengths must fit it, and memory that Rust knows about may only
/// be changed as its types allow.
#[inline]
pub unsafe fn syscall6(
    number: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> Result<usize> {
    let value: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel keeps all registers but rax, rcx and r11; memory effects are the caller's
    // promise, and the block is not marked as free of them.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => value,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel keeps all registers but x0; memory effects are the caller's promise.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => value,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            in("x5") f,
            options(nostack),
        );
    }
    if (-4095..0).contains(&value) { Err(Errno(-value as i32)) } else { Ok(value as usize) }
}

/// As [`syscall6`], for up to four arguments.
///
/// # Safety
/// As [`syscall6`].
#[inline]
pub(crate) unsafe fn syscall4(
    number: libc::c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe { syscall6(number as usize, a, b, c, d, 0, 0) }
}

#[cfg(all(test, not(loom)))]
mod tests;
