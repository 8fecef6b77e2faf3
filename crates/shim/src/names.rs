//! Calls that make, name and end connections: `socket` to `shutdown`, and their aliases.

use core::ffi::c_int;

use haypile_client as client;
use libc::{sockaddr, socklen_t};

use crate::raw::{raw, settle_int, unit};
use crate::signals::Sleeps;
use crate::{stdio, vectors};

/// `socket(2)`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    let made = client::socket(domain, kind, protocol).map(|fd| fd as usize);
    stdio::made(settle_int(made, || raw!(SYS_socket, domain, kind, protocol)))
}

/// `bind(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    let kernel = move || raw!(SYS_bind, fd, address, len);
    if client::is_kernel(fd) {
        return kernel() as c_int;
    }
    // SAFETY: the application's address.
    match unsafe { vectors::address(address, len) } {
        Ok(given) => settle_int(unit(client::bind(fd, given)), kernel),
        // The kernel knows best what is wrong with it.
        Err(_) => kernel() as c_int,
    }
}

/// `listen(2)`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn listen(fd: c_int, backlog: c_int) -> c_int {
    let kernel = move || raw!(SYS_listen, fd, backlog);
    if client::is_kernel(fd) {
        return kernel() as c_int;
    }
    settle_int(unit(client::listen(fd, backlog)), kernel)
}

/// `accept(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the application's pointers.
    unsafe { accept4(fd, address, len, 0) }
}

/// `accept4(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept4(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    let kernel = move || raw!(SYS_accept4, fd, address, len, flags);
    if client::is_kernel(fd) {
        return kernel() as c_int;
    }
    let mut sleeps = Sleeps::new(core::ptr::null());
    let accepted = client::accept_sleeping(fd, flags, &mut sleeps).and_then(|(new, peer)| {
        // SAFETY: the application's pointers.
        match unsafe { vectors::give_address(&peer, address, len) } {
            Ok(()) => Ok(new as usize),
            Err(errno) => {
                let _ = client::close(new);
                Err(errno)
            }
        }
    });
    drop(sleeps);
    stdio::made(settle_int(accepted, kernel))
}

/// `connect(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn connect(
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    let kernel = move || raw!(SYS_connect, fd, address, len);
    if client::is_kernel(fd) {
        return kernel() as c_int;
    }
    // SAFETY: the application's address.
    let given = unsafe { vectors::address(address, len) };
    // SAFETY: as above.
    let unspecified = unsafe { vectors::family(address, len) } == Some(libc::AF_UNSPEC);
    let result = match given {
        Ok(remote) => client::connect(fd, remote),
        Err(_) if unspecified => client::disconnect(fd),
        Err(errno) => Err(errno),
    };
    settle_int(unit(result), kernel)
}

/// `connect(2)` under another name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __connect(
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    // SAFETY: the application's pointers.
    unsafe { connect(fd, address, len) }
}

/// `getsockname(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getsockname(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    let kernel = move || raw!(SYS_getsockname, fd, address, len);
    if client::is_kernel(fd) {
        return kernel() as c_int;
    }
    // SAFETY: the application's pointers.
    let given = client::local_address(fd)
        .and_then(|name| unsafe { vectors::give_address(&name, address, len) });
    settle_int(unit(given), kernel)
}

/// `getpeername(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getpeername(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    let kernel = move || raw!(SYS_getpeername, fd, address, len);
    if client::is_kernel(fd) {
        return kernel() as c_int;
    }
    // SAFETY: the application's pointers.
    let given = client::remote_address(fd)
        .and_then(|name| unsafe { vectors::give_address(&name, address, len) });
    settle_int(unit(given), kernel)
}

/// `shutdown(2)`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn shutdown(fd: c_int, how: c_int) -> c_int {
    let kernel = move || raw!(SYS_shutdown, fd, how);
    if client::is_kernel(fd) {
        return kernel() as c_int;
    }
    settle_int(unit(client::shutdown(fd, how)), kernel)
}
