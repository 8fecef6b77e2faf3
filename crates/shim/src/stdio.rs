//! Streams of the C library (`FILE`) over our sockets. Libc reads and writes below a stream by calls of its
//! own that pass us by, so a stream over one of our sockets is made by `fopencookie`, with our functions
//! underneath: by `fdopen`, and for `stdin`, `stdout` and `stderr` of a program that finds a socket there
//! when it starts (as the children of inetd do) or puts one there by `dup2` or another call.
//!
//! The functions underneath take whatever the number stands for at the time: a stream stays right when its
//! socket turns out to be the kernel's. Called by `start.rs`, `files.rs` and `process.rs`.

use core::ffi::{c_char, c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use haypile_client::{self as client, Errno, Owner};
use libc::{FILE, off64_t, size_t, ssize_t};

use crate::process::Behind;
use crate::raw::set_errno;
use crate::{data, files};

/// `cookie_io_functions_t` of stdio.h.
#[repr(C)]
struct Functions {
    read: unsafe extern "C" fn(*mut c_void, *mut c_char, size_t) -> ssize_t,
    write: unsafe extern "C" fn(*mut c_void, *const c_char, size_t) -> ssize_t,
    seek: unsafe extern "C" fn(*mut c_void, *mut off64_t, c_int) -> c_int,
    close: unsafe extern "C" fn(*mut c_void) -> c_int,
}

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: Functions) -> *mut FILE;
    fn __fpending(file: *mut FILE) -> size_t;
    static mut stdin: *mut FILE;
    static mut stdout: *mut FILE;
    static mut stderr: *mut FILE;
}

/// The cookie is the number.
fn number(cookie: *mut c_void) -> c_int {
    cookie.addr() as c_int
}

unsafe extern "C" fn read_below(cookie: *mut c_void, out: *mut c_char, len: size_t) -> ssize_t {
    // SAFETY: the stream's own buffer.
    unsafe { data::read(number(cookie), out.cast(), len) }
}

/// Writes everything, as a stream's own function does; how much was written before an error.
unsafe extern "C" fn write_below(cookie: *mut c_void, from: *const c_char, len: size_t) -> ssize_t {
    let mut done = 0;
    while done < len {
        // SAFETY: the stream's own buffer, of `len` bytes.
        let wrote = unsafe { data::write(number(cookie), from.add(done).cast(), len - done) };
        if wrote <= 0 {
            break;
        }
        done += wrote as usize;
    }
    done as ssize_t
}

/// No place to seek to, which streams bear.
unsafe extern "C" fn seek_below(_: *mut c_void, _: *mut off64_t, _: c_int) -> c_int {
    set_errno(Errno::ESPIPE);
    -1
}

unsafe extern "C" fn close_below(cookie: *mut c_void) -> c_int {
    let fd = number(cookie);
    unmark(fd);
    if let Some(place) = STANDARD.get(fd as usize) {
        // The stream goes with this call.
        place.store(null_mut(), Ordering::Release);
    }
    files::close(fd)
}

/// Where `FILE` keeps what we read or set of it: the layout of bits/types/struct_FILE.h, which is part of
/// libc's binary interface on 64-bit systems.
mod layout {
    pub const READ_AT: usize = 8;
    pub const READ_END: usize = 16;
    pub const NUMBER: usize = 112;
    /// The number of a stream that `fopencookie` has made.
    pub const NO_NUMBER: core::ffi::c_int = -2;
}

/// A stream over a number.
///
/// # Safety
/// `mode` is a string.
unsafe fn open(fd: c_int, mode: *const c_char) -> *mut FILE {
    let functions =
        Functions { read: read_below, write: write_below, seek: seek_below, close: close_below };
    let cookie = core::ptr::without_provenance_mut(fd as usize);
    // SAFETY: the caller's promise; the functions have libc's types.
    let file = unsafe { fopencookie(cookie, mode, functions) };
    if !file.is_null() {
        // SAFETY: the number's place in a valid FILE; so that fileno(3) knows it.
        unsafe {
            let number = file.byte_add(layout::NUMBER).cast::<c_int>();
            if *number == layout::NO_NUMBER {
                *number = fd;
            }
        }
    }
    file
}

/// Numbers over which a stream of ours was made: closing that closes the number through us.
static MARKED: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

fn mark_of(fd: c_int) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((MARKED.get(fd / 64)?, 1 << (fd % 64)))
}

fn unmark(fd: c_int) {
    if let Some((word, bit)) = mark_of(fd) {
        word.fetch_and(!bit, Ordering::AcqRel);
    }
}

/// Whether streams over this number are ours.
pub fn is_ours(fd: c_int) -> bool {
    mark_of(fd).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
}

pub static OPEN_NUMBER: Behind = Behind::new(c"fdopen");

/// `fdopen(3)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    if !client::is_kernel(fd) {
        match client::owner(fd) {
            Owner::Internal => {
                set_errno(Errno::EBADF);
                return null_mut();
            }
            Owner::Socket(_) => {
                let Some((word, bit)) = mark_of(fd) else {
                    set_errno(Errno::EMFILE);
                    return null_mut();
                };
                // SAFETY: the application's mode.
                let file = unsafe { open(fd, mode) };
                if !file.is_null() {
                    word.fetch_or(bit, Ordering::AcqRel);
                }
                return file;
            }
            Owner::Epoll(_) | Owner::Kernel => {}
        }
    }
    let address = OPEN_NUMBER.address();
    if address == 0 {
        set_errno(Errno::ENOSYS);
        return null_mut();
    }
    // SAFETY: libc's function of this name has this type.
    let function: unsafe extern "C" fn(c_int, *const c_char) -> *mut FILE =
        unsafe { core::mem::transmute(address) };
    // SAFETY: the application's own call.
    unsafe { function(fd, mode) }
}

/// Streams kept ready to stand for `stdin`, `stdout` and `stderr`: `dup2` may not allocate.
static STANDARD: [AtomicPtr<FILE>; 3] = [const { AtomicPtr::new(null_mut()) }; 3];

/// Makes them, and puts them in place of those that start with one of our sockets underneath. Called by
/// the constructor.
pub fn prepare() {
    for (fd, mode) in [(0, c"r"), (1, c"w"), (2, c"w")] {
        // SAFETY: a constant mode; a fresh stream may be made unbuffered.
        unsafe {
            let file = open(fd, mode.as_ptr());
            if fd == 2 && !file.is_null() {
                libc::setvbuf(file, null_mut(), libc::_IONBF, 0);
            }
            STANDARD[fd as usize].store(file, Ordering::Release);
        }
        number_changed(fd);
    }
}

/// For calls that make a descriptor: gives their result back.
#[inline]
pub fn made(fd: c_int) -> c_int {
    if (0..=2).contains(&fd) {
        number_changed(fd);
    }
    fd
}

/// A number stands for something else now: if it is a standard one and ours, its stream must be too. One
/// that holds bytes already stays as it is, because they would be lost.
fn number_changed(fd: c_int) {
    let Some(place) = STANDARD.get(fd as usize) else { return };
    let ours = place.load(Ordering::Acquire);
    if ours.is_null() || !matches!(client::owner(fd), Owner::Socket(_)) {
        return;
    }
    // SAFETY: libc's own variables, set as its manual allows; the streams in them are valid or null.
    unsafe {
        let variable = match fd {
            0 => &raw mut stdin,
            1 => &raw mut stdout,
            _ => &raw mut stderr,
        };
        let present = *variable;
        if present != ours && (present.is_null() || !holds_bytes(present)) {
            *variable = ours;
        }
    }
    if let Some((word, bit)) = mark_of(fd) {
        word.fetch_or(bit, Ordering::AcqRel);
    }
}

/// Whether a stream has read ahead, or has not yet written everything.
///
/// # Safety
/// `file` is a valid stream.
unsafe fn holds_bytes(file: *mut FILE) -> bool {
    // SAFETY: the caller's promise; the places are part of the layout above.
    unsafe {
        let read_at = *file.byte_add(layout::READ_AT).cast::<usize>();
        let read_end = *file.byte_add(layout::READ_END).cast::<usize>();
        __fpending(file) > 0 || read_at < read_end
    }
}
