//! Calls that move bytes: the `send` and `recv` families, `read`, `write` and their vectors,
//! `sendfile`, and the pipe calls that make programs fall back.

use core::ffi::{c_int, c_uint, c_void};
use std::io::{IoSlice, IoSliceMut};

use haypile_client::{self as client, Errno, FileStop};
use libc::{iovec, mmsghdr, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec};

use crate::raw::{finish, raw, settle};
use crate::{datagrams, rights, vectors};

/// Sends, and raises SIGPIPE where the kernel would.
fn send_slices(fd: c_int, data: &[IoSlice<'_>], flags: c_int) -> Result<usize, Errno> {
    let silent = flags & libc::MSG_NOSIGNAL != 0;
    client::send(fd, data, flags).map_err(|errno| match silent {
        true => errno,
        false => raise_pipe(fd, errno),
    })
}

/// Raises SIGPIPE for an error that comes with it.
pub fn raise_pipe(fd: c_int, errno: Errno) -> Errno {
    if errno == Errno::EPIPE && !client::is_datagram(fd) {
        let process = raw!(SYS_getpid);
        let thread = raw!(SYS_gettid);
        raw!(SYS_tgkill, process, thread, libc::SIGPIPE);
    }
    errno
}

/// # Safety
/// `data` is valid for reads of `len` bytes.
unsafe fn send_bytes(
    fd: c_int,
    data: *const c_void,
    len: size_t,
    flags: c_int,
) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    let data = unsafe { vectors::bytes(data.cast(), len) }?;
    send_slices(fd, &[IoSlice::new(data)], flags)
}

/// # Safety
/// `out` is valid for writes of `len` bytes.
unsafe fn receive_bytes(
    fd: c_int,
    out: *mut c_void,
    len: size_t,
    flags: c_int,
) -> Result<usize, Errno> {
    if flags & libc::MSG_TRUNC != 0 && out.is_null() {
        return client::discard(fd, len, flags);
    }
    // SAFETY: the caller's promise.
    let out = unsafe { vectors::bytes_mut(out.cast(), len) }?;
    client::receive(fd, &mut [IoSliceMut::new(out)], flags)
}

/// `recvfrom` on a UDP socket.
///
/// # Safety
/// `out` is valid for writes of `len` bytes; the others are as libc's.
unsafe fn receive_datagram(
    fd: c_int,
    out: *mut c_void,
    len: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    let kernel = move |flags: c_int| raw!(SYS_recvfrom, fd, out, len, flags, address, address_len);
    // SAFETY: the caller's promise.
    let received = unsafe {
        vectors::bytes_mut(out.cast(), len).and_then(|room| {
            let out = &mut [IoSliceMut::new(room)];
            datagrams::receive_from(fd, out, flags, address, address_len, kernel)
        })
    };
    settle(received, || kernel(flags))
}

/// `send(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn send(
    fd: c_int,
    data: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    let kernel = move || raw!(SYS_sendto, fd, data, len, flags, 0, 0);
    if client::is_kernel(fd) {
        return kernel();
    }
    // SAFETY: the application's buffer; there is no address.
    let sent = unsafe {
        open_first(fd, flags, core::ptr::null(), 0)
            .and_then(|flags| send_bytes(fd, data, len, flags))
    };
    settle(sent, kernel)
}

/// `send(2)` under another name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __send(
    fd: c_int,
    data: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the application's buffer.
    unsafe { send(fd, data, len, flags) }
}

/// `sendto(2)`: a connected stream ignores the address, unless the send is to connect it.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendto(
    fd: c_int,
    data: *const c_void,
    len: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_len: socklen_t,
) -> ssize_t {
    let kernel = move || raw!(SYS_sendto, fd, data, len, flags, address, address_len);
    if client::is_kernel(fd) {
        return kernel();
    }
    if client::is_datagram(fd) {
        // SAFETY: the application's buffer and address.
        let sent = unsafe {
            vectors::bytes(data.cast(), len).and_then(|data| {
                datagrams::send_to(fd, &[IoSlice::new(data)], flags, address, address_len)
            })
        };
        return settle(sent, kernel);
    }
    // SAFETY: the application's address and buffer.
    let sent = unsafe {
        open_first(fd, flags, address, address_len)
            .and_then(|flags| send_bytes(fd, data, len, flags))
    };
    settle(sent, kernel)
}

/// What is to be done before a stream sends: with `MSG_FASTOPEN` it connects first. The flags that are left.
///
/// # Safety
/// `address` is valid for reads of `len` bytes, or null.
unsafe fn open_first(
    fd: c_int,
    flags: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> Result<c_int, Errno> {
    // Datagrams know no such flag.
    if flags & libc::MSG_FASTOPEN == 0 || client::is_datagram(fd) {
        return Ok(flags);
    }
    // SAFETY: the caller's promise.
    if unsafe { vectors::family(address, len) } == Some(libc::AF_UNSPEC) {
        return Err(Errno::EOPNOTSUPP);
    }
    // SAFETY: as above.
    let named = (!address.is_null()).then(|| unsafe { vectors::address(address, len) });
    client::connect_to_send(fd, named.transpose()?, flags)?;
    Ok(flags & !libc::MSG_FASTOPEN)
}

/// What messages answer where vectors answer EINVAL: too many buffers.
fn too_long(errno: Errno) -> Errno {
    if errno == Errno::EINVAL { Errno::EMSGSIZE } else { errno }
}

/// `sendmsg(2)`. Descriptors sent over a kernel socket are first told to the service if they are
/// Haypile's.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendmsg(
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> ssize_t {
    let kernel = move || raw!(SYS_sendmsg, fd, message, flags);
    if client::is_kernel(fd) {
        // SAFETY: the application's message.
        unsafe { rights::before_send(message) };
        return kernel();
    }
    if message.is_null() {
        return finish(Err(Errno::EFAULT));
    }
    if client::is_datagram(fd) {
        // SAFETY: the application's message.
        return settle(unsafe { datagrams::send_message(fd, message, flags) }, kernel);
    }
    // SAFETY: the application's message.
    let sent = unsafe {
        vectors::slices((*message).msg_iov, (*message).msg_iovlen).map_err(too_long).and_then(
            |data| {
                let address = (*message).msg_name.cast();
                let flags = open_first(fd, flags, address, (*message).msg_namelen)?;
                send_slices(fd, data, flags)
            },
        )
    };
    settle(sent, kernel)
}

/// `recv(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recv(
    fd: c_int,
    out: *mut c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    let kernel = move || raw!(SYS_recvfrom, fd, out, len, flags, 0, 0);
    if client::is_kernel(fd) {
        return kernel();
    }
    if client::is_datagram(fd) {
        let (address, address_len) = (core::ptr::null_mut(), core::ptr::null_mut());
        // SAFETY: the application's buffer.
        return unsafe { receive_datagram(fd, out, len, flags, address, address_len) };
    }
    // SAFETY: the application's buffer.
    settle(unsafe { receive_bytes(fd, out, len, flags) }, kernel)
}

/// `recv(2)` with a checked buffer size.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recv_chk(
    fd: c_int,
    out: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
) -> ssize_t {
    check_room(len, room);
    // SAFETY: the application's buffer.
    unsafe { recv(fd, out, len, flags) }
}

/// `recvfrom(2)`: a stream gives no address.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvfrom(
    fd: c_int,
    out: *mut c_void,
    len: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    let kernel = move || raw!(SYS_recvfrom, fd, out, len, flags, address, address_len);
    if client::is_kernel(fd) {
        return kernel();
    }
    if client::is_datagram(fd) {
        // SAFETY: the application's buffers.
        return unsafe { receive_datagram(fd, out, len, flags, address, address_len) };
    }
    // SAFETY: the application's buffer.
    let received = unsafe { receive_bytes(fd, out, len, flags) };
    if received.is_ok() && !address.is_null() && !address_len.is_null() {
        // SAFETY: the application's length.
        unsafe { *address_len = 0 };
    }
    settle(received, kernel)
}

/// `recvfrom(2)` with a checked buffer size.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recvfrom_chk(
    fd: c_int,
    out: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    check_room(len, room);
    // SAFETY: the application's buffers.
    unsafe { recvfrom(fd, out, len, flags, address, address_len) }
}

/// `recvmsg(2)`. Descriptors received over a kernel socket are looked at: they may be Haypile's.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    let kernel = move || raw!(SYS_recvmsg, fd, message, flags);
    if client::is_kernel(fd) {
        let result = kernel();
        if result >= 0 {
            // SAFETY: the message that the kernel has just filled.
            unsafe { rights::after_receive(message) };
        }
        return result;
    }
    if message.is_null() {
        return finish(Err(Errno::EFAULT));
    }
    if client::is_datagram(fd) {
        // SAFETY: the application's message.
        return settle(unsafe { datagrams::receive_message(fd, message, flags) }, kernel);
    }
    // SAFETY: the application's message.
    let received = unsafe { vectors::slices_mut((*message).msg_iov, (*message).msg_iovlen) }
        .map_err(too_long)
        .and_then(|out| client::receive(fd, out, flags));
    // SAFETY: the application's message.
    let received = received.and_then(|len| unsafe {
        let (used, truncated) = client::receive_control(fd, datagrams::room(message)?);
        (*message).msg_namelen = 0;
        (*message).msg_controllen = used as _;
        (*message).msg_flags = if truncated { libc::MSG_CTRUNC } else { 0 };
        Ok(len)
    });
    settle(received, kernel)
}

/// `sendmmsg(2)`, on our sockets one `sendmsg` after the other.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    if client::is_kernel(fd) {
        return raw!(SYS_sendmmsg, fd, messages, count, flags) as c_int;
    }
    let mut done = 0;
    while done < count.min(1024) {
        // SAFETY: the application's array of `count` messages.
        let sent = unsafe {
            let entry = messages.add(done as usize);
            let sent = sendmsg(fd, &raw const (*entry).msg_hdr, flags);
            if sent >= 0 {
                (*entry).msg_len = sent as c_uint;
            }
            sent
        };
        if sent < 0 {
            return if done == 0 { -1 } else { done as c_int };
        }
        done += 1;
    }
    done as c_int
}

/// `recvmmsg(2)`, on our sockets one `recvmsg` after the other, the later ones without waiting.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    if client::is_kernel(fd) {
        return raw!(SYS_recvmmsg, fd, messages, count, flags, timeout) as c_int;
    }
    if client::is_datagram(fd) {
        // SAFETY: the application's array of `count` messages.
        return unsafe {
            datagrams::receive_messages(messages, count, flags, timeout, |message, flags| {
                recvmsg(fd, message, flags)
            })
        };
    }
    let mut done = 0;
    while done < count.min(1024) {
        let more = if done > 0 { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: the application's array of `count` messages.
        let received = unsafe {
            let entry = messages.add(done as usize);
            let received =
                recvmsg(fd, &raw mut (*entry).msg_hdr, (flags & !libc::MSG_WAITFORONE) | more);
            if received >= 0 {
                (*entry).msg_len = received as c_uint;
            }
            received
        };
        if received < 0 {
            return if done == 0 { -1 } else { done as c_int };
        }
        done += 1;
        if received == 0 {
            break;
        }
    }
    done as c_int
}

/// `read(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn read(fd: c_int, out: *mut c_void, len: size_t) -> ssize_t {
    let kernel = move || raw!(SYS_read, fd, out, len);
    if client::is_kernel(fd) {
        return kernel();
    }
    if client::is_datagram(fd) {
        // SAFETY: the application's buffer.
        return unsafe { recv(fd, out, len, 0) };
    }
    // SAFETY: the application's buffer.
    settle(unsafe { receive_bytes(fd, out, len, 0) }, kernel)
}

/// `read(2)` under another name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __read(fd: c_int, out: *mut c_void, len: size_t) -> ssize_t {
    // SAFETY: the application's buffer.
    unsafe { read(fd, out, len) }
}

/// `read(2)` with a checked buffer size.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __read_chk(
    fd: c_int,
    out: *mut c_void,
    len: size_t,
    room: size_t,
) -> ssize_t {
    check_room(len, room);
    // SAFETY: the application's buffer.
    unsafe { read(fd, out, len) }
}

/// The check of the `_chk` functions: an overflow ends the program, as with libc.
fn check_room(len: size_t, room: size_t) {
    if len > room {
        std::process::abort();
    }
}

/// `write(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn write(fd: c_int, data: *const c_void, len: size_t) -> ssize_t {
    let kernel = move || raw!(SYS_write, fd, data, len);
    if client::is_kernel(fd) {
        return kernel();
    }
    // SAFETY: the application's buffer.
    settle(unsafe { send_bytes(fd, data, len, 0) }, kernel)
}

/// `write(2)` under another name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __write(fd: c_int, data: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the application's buffer.
    unsafe { write(fd, data, len) }
}

/// # Safety
/// `vector` points to `count` entries valid for writes.
unsafe fn receive_vector(fd: c_int, vector: *const iovec, count: c_int) -> Result<usize, Errno> {
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the caller's promise.
    let out = unsafe { vectors::slices_mut(vector, count) }?;
    if client::is_datagram(fd) {
        let none = core::ptr::null_mut();
        let kernel = |flags: c_int| {
            // SAFETY: all zero is an empty message.
            let mut message: msghdr = unsafe { core::mem::zeroed() };
            message.msg_iov = vector.cast_mut();
            message.msg_iovlen = count as _;
            raw!(SYS_recvmsg, fd, &raw mut message, flags)
        };
        // SAFETY: no address is wanted.
        return unsafe { datagrams::receive_from(fd, out, 0, none, core::ptr::null_mut(), kernel) };
    }
    client::receive(fd, out, 0)
}

/// # Safety
/// `vector` points to `count` entries valid for reads.
unsafe fn send_vector(fd: c_int, vector: *const iovec, count: c_int) -> Result<usize, Errno> {
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the caller's promise.
    let data = unsafe { vectors::slices(vector, count) }?;
    send_slices(fd, data, 0)
}

/// `readv(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn readv(fd: c_int, vector: *const iovec, count: c_int) -> ssize_t {
    let kernel = move || raw!(SYS_readv, fd, vector, count);
    if client::is_kernel(fd) {
        return kernel();
    }
    // SAFETY: the application's vector.
    settle(unsafe { receive_vector(fd, vector, count) }, kernel)
}

/// `writev(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn writev(fd: c_int, vector: *const iovec, count: c_int) -> ssize_t {
    let kernel = move || raw!(SYS_writev, fd, vector, count);
    if client::is_kernel(fd) {
        return kernel();
    }
    // SAFETY: the application's vector.
    settle(unsafe { send_vector(fd, vector, count) }, kernel)
}

macro_rules! positioned {
    ($name:ident, $alias:ident, $number:ident, $ours:ident) => {
        #[doc = concat!("`", stringify!($name), "(2)`: on a socket only with position -1.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(
            fd: c_int,
            vector: *const iovec,
            count: c_int,
            position: off_t,
            flags: c_int,
        ) -> ssize_t {
            // The kernel takes the position in two halves; on 64-bit systems the second is unused.
            let kernel = move || raw!($number, fd, vector, count, position, 0, flags);
            if client::is_kernel(fd) {
                return kernel();
            }
            if position != -1 {
                return finish(Err(Errno::ESPIPE));
            }
            // SAFETY: the application's vector.
            settle(unsafe { $ours(fd, vector, count) }, kernel)
        }

        #[doc = concat!("`", stringify!($name), "(2)` under another name.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $alias(
            fd: c_int,
            vector: *const iovec,
            count: c_int,
            position: off_t,
            flags: c_int,
        ) -> ssize_t {
            // SAFETY: the application's vector.
            unsafe { $name(fd, vector, count, position, flags) }
        }
    };
}
positioned!(preadv2, preadv64v2, SYS_preadv2, receive_vector);
positioned!(pwritev2, pwritev64v2, SYS_pwritev2, send_vector);

/// Bytes of the buffer on the stack for what cannot be read straight into a stream.
const COPY_BYTES: usize = 16 * 1024;

/// Sends a file over one of our sockets.
fn send_file(out: c_int, input: c_int, start: i64, count: usize) -> Result<usize, Errno> {
    let mut done = 0;
    // Bounded: every turn sends something or is the last.
    while done < count {
        let (position, left) = (start + done as i64, count - done);
        let sent = match client::send_file(out, input, position as u64, left) {
            Ok((bytes, None)) => return Ok(done + bytes),
            Ok((bytes, Some(FileStop::End))) => return Ok(done + bytes),
            Ok((0, Some(FileStop::Refused(_)))) => copy_file(out, input, position, left),
            Ok((bytes, Some(FileStop::Refused(_)))) => Ok((bytes, false)),
            Err(errno) => Err(raise_pipe(out, errno)),
        };
        match sent {
            Ok((bytes, true)) => return Ok(done + bytes),
            Ok((bytes, false)) => done += bytes,
            Err(errno) => return if done > 0 { Ok(done) } else { Err(errno) },
        }
    }
    Ok(done)
}

/// Sends a piece of a file by way of a buffer: one that has to be waited for, or is read in no other
/// way. How many bytes, and whether nothing more can be sent.
fn copy_file(out: c_int, input: c_int, start: i64, count: usize) -> Result<(usize, bool), Errno> {
    let mut buffer = [0u8; COPY_BYTES];
    let want = count.min(COPY_BYTES);
    let got = raw!(SYS_pread64, input, buffer.as_mut_ptr(), want, start);
    if got < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        // What cannot be read at a position (a pipe, a folder) is no file: let the caller copy.
        let no_file = matches!(errno, libc::ESPIPE | libc::EISDIR);
        return Err(Errno(if no_file { libc::EINVAL } else { errno }));
    }
    let got = got as usize;
    if got == 0 {
        // The file is shorter: what waited for more goes.
        send_slices(out, &[], 0).ok();
        return Ok((0, true));
    }
    let more = if got < count { libc::MSG_MORE } else { 0 };
    let sent = send_slices(out, &[IoSlice::new(&buffer[..got])], more)?;
    Ok((sent, sent < got))
}

/// `sendfile(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendfile(
    out: c_int,
    input: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    let kernel = move || raw!(SYS_sendfile, out, input, offset, count);
    if client::is_kernel(out) || !client::is_kernel(input) {
        return kernel();
    }
    // SAFETY: the application's offset, if any.
    let given = (!offset.is_null()).then(|| unsafe { *offset });
    let start = match given {
        Some(start) => start,
        None => match raw!(SYS_lseek, input, 0, libc::SEEK_CUR) {
            -1 => {
                let bad = std::io::Error::last_os_error().raw_os_error() == Some(libc::EBADF);
                return finish(Err(if bad { Errno::EBADF } else { Errno::EINVAL }));
            }
            start => start as i64,
        },
    };
    if start < 0 {
        return finish(Err(Errno::EINVAL));
    }
    let sent = send_file(out, input, start, count.min(vectors::CALL_MAX));
    if let Ok(bytes) = sent {
        let end = start + bytes as i64;
        match given {
            // SAFETY: as above.
            Some(_) => unsafe { *offset = end },
            None => {
                raw!(SYS_lseek, input, end, libc::SEEK_SET);
            }
        }
    }
    settle(sent, kernel)
}

/// `sendfile(2)` with large files; the same on 64-bit systems.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendfile64(
    out: c_int,
    input: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    // SAFETY: the application's offset.
    unsafe { sendfile(out, input, offset, count) }
}
