//! Descriptors in flight (`SCM_RIGHTS`): our sockets are told to the service before they leave, and
//! sockets that arrive are shown to it, because one of them may be Haypile's.
//!
//! Called by `sendmsg` and `recvmsg` on kernel sockets only.

use core::ffi::c_int;

use haypile_client as client;
use libc::msghdr;

/// Calls `visit` for every descriptor in the ancillary data of a message.
///
/// # Safety
/// `message` is null or a valid message whose ancillary data is valid.
unsafe fn for_each_descriptor(message: *const msghdr, mut visit: impl FnMut(c_int)) {
    // SAFETY: the caller's promise; the CMSG functions stay inside `msg_controllen`.
    unsafe {
        if message.is_null() || (*message).msg_control.is_null() {
            return;
        }
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let (level, kind) = ((*header).cmsg_level, (*header).cmsg_type);
            let payload = ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<c_int>();
                for index in 0..payload / size_of::<c_int>() {
                    visit(data.add(index).read_unaligned());
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
}

/// Before a message leaves.
///
/// # Safety
/// As [`for_each_descriptor`].
#[inline]
pub unsafe fn before_send(message: *const msghdr) {
    // SAFETY: the caller's promise.
    unsafe {
        if message.is_null() || (*message).msg_controllen == 0 {
            return;
        }
        for_each_descriptor(message, |fd| {
            if !client::is_kernel(fd) {
                client::share(fd);
            }
        });
    }
}

/// After a message has arrived.
///
/// # Safety
/// As [`for_each_descriptor`].
#[inline]
pub unsafe fn after_receive(message: *const msghdr) {
    // SAFETY: the caller's promise.
    unsafe {
        if message.is_null() || (*message).msg_controllen == 0 {
            return;
        }
        for_each_descriptor(message, client::adopt);
    }
}
