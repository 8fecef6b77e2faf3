//! Calls on descriptors as such: closing them, one or many, and making duplicates.

use core::ffi::{c_int, c_uint};

use haypile_client as client;

use crate::raw::{finish, raw, settle_int, unit};
use crate::stdio;

/// `close(2)`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn close(fd: c_int) -> c_int {
    if client::is_kernel(fd) {
        return raw!(SYS_close, fd) as c_int;
    }
    settle_int(unit(client::close(fd)), || raw!(SYS_close, fd))
}

/// `close(2)` under another name.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn __close(fd: c_int) -> c_int {
    close(fd)
}

/// `close_range(2)`: our own descriptors inside the range stay open.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let result = client::close_range(
        first,
        last,
        flags as u32,
        &mut |first, last, flags| match raw!(SYS_close_range, first, last, flags) {
            -1 => Err(client::Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))),
            _ => Ok(()),
        },
    );
    finish(unit(result)) as c_int
}

/// `closefrom(3)`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn closefrom(first: c_int) {
    close_range(first.max(0) as c_uint, c_uint::MAX, 0);
}

/// `dup(2)`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn dup(fd: c_int) -> c_int {
    let kernel = move || raw!(SYS_dup, fd);
    if client::is_kernel(fd) {
        let new = kernel() as c_int;
        client::forget_number(new);
        return new;
    }
    stdio::made(settle_int(client::duplicate(fd, 0, false).map(|fd| fd as usize), kernel))
}

/// `dup2(2)`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn dup2(old: c_int, new: c_int) -> c_int {
    if old == new {
        // Checks `old` and does nothing else.
        return if raw!(SYS_fcntl, old, libc::F_GETFD) == -1 { -1 } else { new };
    }
    duplicate_to(old, new, 0)
}

/// `dup2(2)` under another name.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn __dup2(old: c_int, new: c_int) -> c_int {
    dup2(old, new)
}

/// `dup3(2)`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    duplicate_to(old, new, flags)
}

fn duplicate_to(old: c_int, new: c_int, flags: c_int) -> c_int {
    let kernel = move || raw!(SYS_dup3, old, new, flags);
    if client::is_kernel(old) && client::is_kernel(new) {
        return kernel() as c_int;
    }
    stdio::made(settle_int(client::duplicate_to(old, new, flags).map(|fd| fd as usize), kernel))
}
