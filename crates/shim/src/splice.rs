//! Calls that move bytes between pipes and sockets: `splice`, `tee`, `vmsplice`. A connection of Haypile's
//! has no pages that a pipe could take over, so its bytes are copied: from the pipe straight into the
//! stream, by the kernel, and to the pipe from a buffer. Read [data.rs](data.rs) first.
//!
//! Nothing is taken from one end that the other has no room for: what goes to a connection is read from
//! the pipe as room is found, what goes to a pipe is looked at, written, and then taken.

use core::ffi::{c_int, c_uint};
use std::io::IoSliceMut;

use haypile_client::{self as client, Errno, FileStop};
use libc::{iovec, size_t, ssize_t};

use crate::data::raise_pipe;
use crate::raw::{finish, raw, settle};
use crate::vectors;

/// Most bytes of one call to a pipe, by way of a buffer on the stack.
const TO_PIPE_BYTES: usize = 16 * 1024;
/// The position of preadv2(2) that stands for a plain read.
const PLAIN: u64 = u64::MAX;

/// One end of a call.
#[derive(Copy, Clone, PartialEq, Eq)]
enum End {
    /// A connection of Haypile's.
    Connection,
    /// A UDP socket of Haypile's.
    Datagrams,
    Kernel,
}

fn end(fd: c_int) -> End {
    match client::is_haypile(fd) {
        false => End::Kernel,
        true if client::is_datagram(fd) => End::Datagrams,
        true => End::Connection,
    }
}

fn last_error() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Waits for a pipe, or fails with `EAGAIN` if the call must not.
fn wait_for(pipe: c_int, events: i16, flags: c_uint) -> Result<(), Errno> {
    let is_nonblocking = raw!(SYS_fcntl, pipe, libc::F_GETFL) as c_int & libc::O_NONBLOCK != 0;
    if is_nonblocking || flags & libc::SPLICE_F_NONBLOCK != 0 {
        return Err(Errno::EAGAIN);
    }
    let mut one = libc::pollfd { fd: pipe, events, revents: 0 };
    match raw!(SYS_ppoll, &raw mut one, 1, 0, 0, 0) {
        -1 => Err(last_error()),
        _ => Ok(()),
    }
}

fn to_connection(pipe: c_int, fd: c_int, len: usize, flags: c_uint) -> Result<usize, Errno> {
    loop {
        let sent = client::send_file(fd, pipe, PLAIN, len.min(vectors::CALL_MAX));
        match sent.map_err(|errno| raise_pipe(fd, errno))? {
            (0, Some(FileStop::Refused(Errno::EAGAIN))) => wait_for(pipe, libc::POLLIN, flags)?,
            // A kernel that cannot say whether a pipe would make it wait (before 6.4).
            (0, Some(FileStop::Refused(_))) => return Err(Errno::EINVAL),
            (bytes, _) => return Ok(bytes),
        }
    }
}

fn from_connection(fd: c_int, pipe: c_int, len: usize, flags: c_uint) -> Result<usize, Errno> {
    let mut buffer = [0u8; TO_PIPE_BYTES];
    loop {
        let room = &mut buffer[..len.min(TO_PIPE_BYTES)];
        let seen = client::receive(fd, &mut [IoSliceMut::new(room)], libc::MSG_PEEK)?;
        if seen == 0 {
            return Ok(0);
        }
        let part = iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: seen };
        match raw!(SYS_pwritev2, pipe, &raw const part, 1, PLAIN, 0, libc::RWF_NOWAIT) {
            -1 => match last_error() {
                Errno::EAGAIN => wait_for(pipe, libc::POLLOUT, flags)?,
                Errno(libc::EOPNOTSUPP) => return Err(Errno::EINVAL),
                errno => return Err(errno),
            },
            written => return client::discard(fd, written as usize, libc::MSG_DONTWAIT),
        }
    }
}

/// `splice(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn splice(
    input: c_int,
    input_offset: *mut i64,
    output: c_int,
    output_offset: *mut i64,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    let kernel = || raw!(SYS_splice, input, input_offset, output, output_offset, len, flags);
    let ends = (end(input), end(output));
    if ends == (End::Kernel, End::Kernel) {
        return kernel();
    }
    let pipe = if ends.0 == End::Kernel { input } else { output };
    let is_pipe = raw!(SYS_fcntl, pipe, libc::F_GETPIPE_SZ) >= 0;
    if !is_pipe && raw!(SYS_fcntl, pipe, libc::F_GETFD) < 0 {
        return finish(Err(Errno::EBADF));
    }
    if !is_pipe || !input_offset.is_null() || !output_offset.is_null() {
        return finish(Err(Errno::EINVAL));
    }
    let moved = match ends {
        _ if len == 0 => Ok(0),
        (End::Kernel, End::Connection) => to_connection(input, output, len, flags),
        (End::Connection, End::Kernel) => from_connection(input, output, len, flags),
        _ => Err(Errno::EINVAL),
    };
    settle(moved, kernel)
}

/// `tee(2)`: from pipe to pipe only.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tee(input: c_int, output: c_int, len: size_t, flags: c_uint) -> ssize_t {
    if end(input) != End::Kernel || end(output) != End::Kernel {
        return finish(Err(Errno::EINVAL));
    }
    raw!(SYS_tee, input, output, len, flags)
}

/// `vmsplice(2)` on a socket is an error of the kernel's; handed on.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vmsplice(
    fd: i32,
    vector: *const libc::iovec,
    count: usize,
    flags: u32,
) -> isize {
    raw!(SYS_vmsplice, fd, vector, count, flags)
}
