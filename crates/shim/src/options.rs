//! `getsockopt`, `setsockopt`, `ioctl`, `fcntl` and the small questions about a socket.

use core::ffi::{c_int, c_ulong, c_void};

use haypile_client::{self as client, Errno};
use libc::socklen_t;

use crate::raw::{finish, raw, settle_int, unit};
use crate::{stdio, vectors};

/// `setsockopt(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    let kernel = move || raw!(SYS_setsockopt, fd, level, name, value, len);
    if client::is_kernel(fd) {
        return kernel() as c_int;
    }
    if len > c_int::MAX as socklen_t {
        return finish(Err(Errno::EINVAL)) as c_int;
    }
    // SAFETY: the application's value.
    let set = unsafe { vectors::bytes(value.cast(), len as usize) }
        .and_then(|value| client::setsockopt(fd, level, name, value));
    settle_int(unit(set), kernel)
}

/// `getsockopt(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    let kernel = move || raw!(SYS_getsockopt, fd, level, name, value, len);
    if client::is_kernel(fd) {
        return kernel() as c_int;
    }
    if len.is_null() {
        return finish(Err(Errno::EFAULT)) as c_int;
    }
    // SAFETY: the application's length and value.
    let got = unsafe {
        if *len > c_int::MAX as socklen_t {
            return finish(Err(Errno::EINVAL)) as c_int;
        }
        vectors::bytes_mut(value.cast(), *len as usize)
            .and_then(|value| client::getsockopt(fd, level, name, value))
            .map(|used| {
                *len = used as socklen_t;
                0
            })
    };
    settle_int(got, kernel)
}

/// `ioctl(2)`: the requests about bytes waiting and blocking are ours, all others go to the kernel,
/// which knows the placeholder.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int {
    let kernel = move || raw!(SYS_ioctl, fd, request, argument);
    if client::is_kernel(fd) {
        return kernel() as c_int;
    }
    let pointer = argument as *mut c_int;
    let needs_pointer = matches!(request, libc::FIONBIO | libc::FIONREAD | libc::TIOCOUTQ);
    if needs_pointer && pointer.is_null() {
        return finish(Err(Errno::EFAULT)) as c_int;
    }
    let result = match request {
        // SAFETY: the application's pointer to an int, not null.
        libc::FIONBIO => unit(client::set_nonblocking(fd, unsafe { *pointer } != 0)),
        libc::FIONREAD => client::readable_bytes(fd).map(|bytes| {
            // SAFETY: as above.
            unsafe { *pointer = bytes.min(c_int::MAX as usize) as c_int };
            0
        }),
        libc::TIOCOUTQ => client::unsent_bytes(fd).map(|bytes| {
            // SAFETY: as above.
            unsafe { *pointer = bytes.min(c_int::MAX as usize) as c_int };
            0
        }),
        // How much of that is unsent the service does not tell; the placeholder says 0.
        SIOCOUTQNSD => client::unsent_bytes(fd).and(Err(client::TO_KERNEL)),
        _ => Err(client::TO_KERNEL),
    };
    settle_int(result, kernel)
}

/// `SIOCOUTQNSD` of linux/sockios.h.
const SIOCOUTQNSD: c_ulong = 0x894b;

/// `fcntl(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    let kernel = move || raw!(SYS_fcntl, fd, command, argument);
    if client::is_kernel(fd) {
        let result = kernel() as c_int;
        if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
            client::forget_number(result);
        }
        return result;
    }
    let result = match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
            let close_on_exec = command == libc::F_DUPFD_CLOEXEC;
            client::duplicate(fd, argument as c_int, close_on_exec)
                .map(|new| stdio::made(new) as usize)
        }
        libc::F_GETFL => client::status_flags(fd).map(|flags| flags as usize),
        libc::F_SETFL => unit(client::set_status_flags(fd, argument as c_int)),
        _ if client::is_internal(fd) => Err(Errno::EBADF),
        _ => Err(client::TO_KERNEL),
    };
    settle_int(result, kernel)
}

/// `fcntl(2)` with large files; the same on 64-bit systems.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the application's argument.
    unsafe { fcntl(fd, command, argument) }
}

/// `fcntl(2)` under another name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the application's argument.
    unsafe { fcntl(fd, command, argument) }
}

/// `SIOCATMARK` of linux/sockios.h.
const SIOCATMARK: usize = 0x8905;

/// `sockatmark(3)`: there is no urgent data, so never at the mark.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sockatmark(fd: c_int) -> c_int {
    if client::is_kernel(fd) {
        let mut mark: c_int = 0;
        let result = raw!(SYS_ioctl, fd, SIOCATMARK, &raw mut mark);
        return if result == -1 { -1 } else { mark };
    }
    0
}
