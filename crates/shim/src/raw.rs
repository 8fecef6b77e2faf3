//! System calls as libc makes them: the result or -1, and `errno`. And the other direction: the
//! client's results turned into libc's.
//!
//! Every other file of this crate uses these few functions and nothing else to end a call.

use core::ffi::{c_int, c_long};

use haypile_client::{Errno, TO_KERNEL};

/// Sets the calling thread's `errno`.
pub fn set_errno(errno: Errno) {
    // SAFETY: libc's pointer to the errno of this thread is always valid.
    unsafe { *libc::__errno_location() = errno.0 };
}

/// Ends a call: the value, or -1 and `errno`.
#[inline]
pub fn finish(result: Result<usize, Errno>) -> isize {
    match result {
        Ok(value) => value as isize,
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

/// A system call with libc's way of reporting.
///
/// # Safety
/// As the call itself.
#[inline]
pub unsafe fn call(number: c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller's promise.
    finish(unsafe { haypile_shm::sys::syscall6(number as usize, a, b, c, d, e, f) })
}

/// A system call on behalf of the application, with its own arguments: `raw!(SYS_x, a, b, ...)`.
/// The pointers are the application's business, exactly as with libc's function.
macro_rules! raw {
    ($number:ident $(, $argument:expr)* $(,)?) => {{
        let given = [$($argument as usize),*];
        let mut arguments = [0usize; 6];
        arguments[..given.len()].copy_from_slice(&given);
        // SAFETY: the application's own call, handed on unchanged.
        unsafe { $crate::raw::call(libc::$number, arguments) }
    }};
}
pub(crate) use raw;

/// Ends a call that the client has looked at: its value, its error, or `kernel()` where it says
/// that the kernel must do it.
#[inline]
pub fn settle(result: Result<usize, Errno>, kernel: impl FnOnce() -> isize) -> isize {
    match result {
        Err(TO_KERNEL) => kernel(),
        other => finish(other),
    }
}

/// As [`settle`], for functions that return `int`.
#[inline]
pub fn settle_int(result: Result<usize, Errno>, kernel: impl FnOnce() -> isize) -> c_int {
    settle(result, kernel) as c_int
}

/// Ends a call that needs no value.
#[inline]
pub fn unit(result: Result<(), Errno>) -> Result<usize, Errno> {
    result.map(|()| 0)
}
