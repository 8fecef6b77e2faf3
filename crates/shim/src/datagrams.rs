//! The send and recv families on UDP sockets: addresses, control data and message flags between libc's
//! structures and the client. Called by `data.rs`, which has the symbols.

use core::ffi::{c_int, c_uint};
use std::io::{IoSlice, IoSliceMut};

use haypile_client::{self as client, Errno, Received, SendControl};
use libc::{mmsghdr, msghdr, sockaddr, socklen_t, timespec};

use crate::raw::raw;
use crate::signals::Sleeps;
use crate::vectors;

/// Where a message goes; `None`: to the connected peer.
///
/// # Safety
/// `address` is valid for reads of `len` bytes, or null.
unsafe fn destination(
    address: *const sockaddr,
    len: socklen_t,
) -> Result<Option<std::net::SocketAddr>, Errno> {
    if address.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe {
        match vectors::address(address, len) {
            Ok(remote) => Ok(Some(remote)),
            // As ever without an address, where the family says so.
            Err(Errno::EAFNOSUPPORT)
                if vectors::family(address, len) == Some(libc::AF_UNSPEC) && len >= 16 =>
            {
                Err(client::TO_KERNEL)
            }
            Err(errno) => Err(errno),
        }
    }
}

/// `sendto` and its like.
///
/// # Safety
/// `address` is valid for reads of `len` bytes, or null.
pub unsafe fn send_to(
    fd: c_int,
    data: &[IoSlice<'_>],
    flags: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    let remote = unsafe { destination(address, len) }?;
    client::send_to(fd, data, flags, remote, &SendControl::default())
}

/// `sendmsg`.
///
/// # Safety
/// `message` is a valid message.
pub unsafe fn send_message(
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    unsafe {
        let message = &*message;
        let data = vectors::slices(message.msg_iov, message.msg_iovlen)?;
        let name = if message.msg_namelen == 0 { core::ptr::null() } else { message.msg_name };
        let remote = destination(name.cast(), message.msg_namelen)?;
        let control = match message.msg_control.is_null() {
            true => SendControl::default(),
            false => {
                let len = message.msg_controllen;
                SendControl::parse(vectors::bytes(message.msg_control.cast(), len)?)?
            }
        };
        client::send_to(fd, data, flags, remote, &control)
    }
}

/// Bytes that a receive says it gave: with `MSG_TRUNC` all that there were.
fn told(received: &Received, flags: c_int) -> usize {
    match received {
        Received::Kernel(bytes) => *bytes,
        Received::End => 0,
        Received::Error(failure) => failure.copied,
        Received::Datagram(arrival) if flags & libc::MSG_TRUNC != 0 => arrival.len,
        Received::Datagram(arrival) => arrival.copied,
    }
}

/// `recvfrom` and its like; `kernel` is the kernel's, on the same arguments with these flags.
///
/// # Safety
/// `address` and `address_len` are as libc's.
pub unsafe fn receive_from(
    fd: c_int,
    out: &mut [IoSliceMut<'_>],
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
    mut kernel: impl FnMut(c_int) -> isize,
) -> Result<usize, Errno> {
    let mut sleeps = Sleeps::new(core::ptr::null());
    let mut by_kernel = |flags| settled(kernel(flags));
    let received = client::receive_from(fd, out, flags, &mut by_kernel, &mut sleeps)?;
    let remote = match &received {
        Received::Datagram(arrival) => arrival.remote,
        Received::Error(failure) => Some(failure.remote),
        Received::Kernel(_) | Received::End => None,
    };
    // SAFETY: the caller's promise.
    unsafe {
        match remote {
            Some(remote) => vectors::give_address(&remote, address, address_len)?,
            None if matches!(received, Received::End) && !address_len.is_null() => {
                *address_len = 0;
            }
            None => {}
        }
    }
    Ok(told(&received, flags))
}

/// A system call's result as the client wants it.
fn settled(result: isize) -> Result<usize, Errno> {
    match usize::try_from(result) {
        Ok(bytes) => Ok(bytes),
        Err(_) => {
            let errno = std::io::Error::last_os_error().raw_os_error();
            Err(Errno(errno.unwrap_or(libc::EIO)))
        }
    }
}

/// `recvmsg`.
///
/// # Safety
/// `message` is a valid message.
pub unsafe fn receive_message(
    fd: c_int,
    message: *mut msghdr,
    flags: c_int,
) -> Result<usize, Errno> {
    let mut sleeps = Sleeps::new(core::ptr::null());
    let mut by_kernel = |flags: c_int| settled(raw!(SYS_recvmsg, fd, message, flags));
    // SAFETY: the caller's promise.
    unsafe {
        let out = vectors::slices_mut((*message).msg_iov, (*message).msg_iovlen)?;
        let received = client::receive_from(fd, out, flags, &mut by_kernel, &mut sleeps)?;
        let cut = |truncated: bool| if truncated { libc::MSG_CTRUNC } else { 0 };
        match &received {
            Received::Kernel(_) => {}
            Received::End => finish(message, None, 0, 0)?,
            Received::Datagram(arrival) => {
                let (used, truncated) = arrival.control(room(message)?);
                let short = if arrival.copied < arrival.len { libc::MSG_TRUNC } else { 0 };
                finish(message, arrival.remote, used, short | cut(truncated))?;
            }
            Received::Error(failure) => {
                let (used, truncated) = failure.control(room(message)?);
                let short = if failure.is_short() { libc::MSG_TRUNC } else { 0 };
                let flags = libc::MSG_ERRQUEUE | short | cut(truncated);
                finish(message, Some(failure.remote), used, flags)?;
            }
        }
        Ok(told(&received, flags))
    }
}

/// The room for control data.
///
/// # Safety
/// `message` is a valid message.
pub unsafe fn room<'a>(message: *mut msghdr) -> Result<&'a mut [u8], Errno> {
    // SAFETY: the caller's promise.
    unsafe {
        match (*message).msg_control.is_null() {
            true => Ok(&mut []),
            false => {
                let len = (*message).msg_controllen;
                vectors::bytes_mut((*message).msg_control.cast(), len)
            }
        }
    }
}

/// Fills in what a receive says of a message.
///
/// # Safety
/// `message` is a valid message.
unsafe fn finish(
    message: *mut msghdr,
    remote: Option<std::net::SocketAddr>,
    control: usize,
    flags: c_int,
) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe {
        match remote {
            Some(remote) if !(*message).msg_name.is_null() => {
                let mut len = (*message).msg_namelen;
                vectors::give_address(&remote, (*message).msg_name.cast(), &mut len)?;
                (*message).msg_namelen = len;
            }
            _ => (*message).msg_namelen = 0,
        }
        (*message).msg_controllen = control as _;
        (*message).msg_flags = flags;
    }
    Ok(())
}

/// Messages that one call moves at most (`UIO_MAXIOV`).
const MESSAGES_MAX: c_uint = 1024;

/// `recvmmsg`: waits for all messages, for one with `MSG_WAITFORONE`, and looks at the time after
/// each.
///
/// # Safety
/// As libc's.
pub unsafe fn receive_messages(
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
    mut receive: impl FnMut(*mut msghdr, c_int) -> isize,
) -> c_int {
    // SAFETY: the caller's promise.
    let end_ns = (!timeout.is_null()).then(|| unsafe {
        let time = *timeout;
        let given = (time.tv_sec as u64).saturating_mul(1_000_000_000) + time.tv_nsec as u64;
        haypile_shm::sys::clock_monotonic_ns().saturating_add(given)
    });
    let mut done = 0;
    let mut present = flags & !libc::MSG_WAITFORONE;
    while done < count.min(MESSAGES_MAX) {
        // SAFETY: the caller's promise: an array of `count` messages.
        let received = unsafe {
            let entry = messages.add(done as usize);
            let received = receive(&raw mut (*entry).msg_hdr, present);
            if received >= 0 {
                (*entry).msg_len = received as c_uint;
            }
            received
        };
        if received < 0 {
            return if done == 0 { -1 } else { done as c_int };
        }
        done += 1;
        if flags & libc::MSG_WAITFORONE != 0 {
            present |= libc::MSG_DONTWAIT;
        }
        if end_ns.is_some_and(|end_ns| haypile_shm::sys::clock_monotonic_ns() >= end_ns) {
            break;
        }
    }
    done as c_int
}
