//! Which descriptor numbers are ours: one static word per number. A number that is not ours costs
//! one load and one compare, takes no lock, allocates nothing and leaves `errno` alone, so that
//! every call may ask, before any constructor and in signal handlers too.
//!
//! Asked first by every function of the shim. Written by `socket.rs`, `epoll.rs` and `attach.rs`.
//! The table is private memory: a forked child has its own copy.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers at or above this are always the kernel's. The kernel's own default ceiling
/// (`fs.nr_open`) is the same.
pub const TABLE_NUMBERS: usize = 1 << 20;

const KIND_SHIFT: u32 = 30;
const INDEX_MASK: u32 = (1 << KIND_SHIFT) - 1;
const SOCKET: u32 = 1;
const EPOLL: u32 = 2;
const INTERNAL: u32 = 3;

static TABLE: [AtomicU32; TABLE_NUMBERS] = [const { AtomicU32::new(0) }; TABLE_NUMBERS];

/// What a descriptor number stands for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The kernel alone: hand the call on.
    Kernel,
    /// A stream socket we watch over, with its number in the socket slab.
    Socket(u32),
    /// An epoll object, with its number in the epoll slab.
    Epoll(u32),
    /// A descriptor of this library, which the application must not touch.
    Internal,
}

fn cell(fd: RawFd) -> Option<&'static AtomicU32> {
    // Negative numbers become huge ones.
    TABLE.get(fd as u32 as usize)
}

fn decode(word: u32) -> Owner {
    match word >> KIND_SHIFT {
        SOCKET => Owner::Socket(word & INDEX_MASK),
        EPOLL => Owner::Epoll(word & INDEX_MASK),
        INTERNAL => Owner::Internal,
        _ => Owner::Kernel,
    }
}

fn encode(owner: Owner) -> u32 {
    match owner {
        Owner::Kernel => 0,
        Owner::Socket(index) => SOCKET << KIND_SHIFT | index & INDEX_MASK,
        Owner::Epoll(index) => EPOLL << KIND_SHIFT | index & INDEX_MASK,
        Owner::Internal => INTERNAL << KIND_SHIFT,
    }
}

/// True if the number is the kernel's alone. This is the first line of every interposed call.
#[inline]
pub fn is_kernel(fd: RawFd) -> bool {
    match cell(fd) {
        Some(word) => word.load(Ordering::Acquire) == 0,
        None => true,
    }
}

/// What the number stands for.
#[inline]
pub fn owner(fd: RawFd) -> Owner {
    cell(fd).map_or(Owner::Kernel, |word| decode(word.load(Ordering::Acquire)))
}

/// Enters a number. False if it is beyond the table: then it cannot be ours.
pub(crate) fn set(fd: RawFd, owner: Owner) -> bool {
    match cell(fd) {
        Some(word) => {
            word.store(encode(owner), Ordering::Release);
            true
        }
        None => false,
    }
}

/// Takes a number out and returns what it stood for. Do this before the kernel's close: from then
/// on another thread may be given the same number.
pub(crate) fn take(fd: RawFd) -> Owner {
    cell(fd).map_or(Owner::Kernel, |word| decode(word.swap(0, Ordering::AcqRel)))
}

/// As [`take`], only if the number still stands for `owner`.
pub(crate) fn take_if(fd: RawFd, owner: Owner) -> bool {
    cell(fd).is_some_and(|word| {
        word.compare_exchange(encode(owner), 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    })
}

/// Calls `visit` for every number in `first..=last` that is not the kernel's, in order.
pub(crate) fn for_each_in(first: u32, last: u32, mut visit: impl FnMut(RawFd, Owner)) {
    let end = (last as usize).saturating_add(1).min(highest().saturating_add(1));
    let start = (first as usize).min(end);
    for (fd, word) in TABLE[..end].iter().enumerate().skip(start) {
        let word = word.load(Ordering::Acquire);
        if word != 0 {
            visit(fd as RawFd, decode(word));
        }
    }
}

/// No number above this was ever entered, so that walks do not touch the whole table.
static HIGHEST: AtomicU32 = AtomicU32::new(0);

fn highest() -> usize {
    (HIGHEST.load(Ordering::Relaxed) as usize).min(TABLE_NUMBERS - 1)
}

/// Enters a number and remembers how far walks must go.
pub(crate) fn enter(fd: RawFd, owner: Owner) -> bool {
    if fd >= 0 && (fd as usize) < TABLE_NUMBERS {
        HIGHEST.fetch_max(fd as u32, Ordering::Relaxed);
    }
    set(fd, owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_the_kernels() {
        for fd in [-1, -100, TABLE_NUMBERS as RawFd, RawFd::MAX] {
            assert!(is_kernel(fd));
            assert!(!enter(fd, Owner::Internal));
            assert_eq!(take(fd), Owner::Kernel);
        }
    }

    #[test]
    fn entries_come_back_as_entered() {
        let fd = 900_001;
        for entry in [Owner::Socket(7), Owner::Epoll(0), Owner::Internal] {
            assert!(enter(fd, entry));
            assert!(!is_kernel(fd));
            assert_eq!(owner(fd), entry);
            let mut seen = Vec::new();
            for_each_in(900_000, u32::MAX, |fd, owner| seen.push((fd, owner)));
            assert_eq!(seen, [(fd, entry)]);
            assert!(!take_if(fd, Owner::Socket(8)));
            assert!(take_if(fd, entry));
            assert!(is_kernel(fd));
        }
    }
}
