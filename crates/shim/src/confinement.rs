//! Calls by which programs lock themselves in: `prctl`, `setrlimit` and `prlimit`, and seccomp by
//! `syscall`. The library gets ready first, and a filter of system calls gets its allowances in front
//! (client, `confinement.rs`). The limits that the kernel keeps are the program's, but for the address
//! space, of which the service's memory takes none.

use core::ffi::{c_int, c_uint, c_ulong};
use core::sync::atomic::{AtomicU64, Ordering};

use haypile_client as client;
use haypile_client::Errno;
use haypile_shm::sys::{self, PollFd};
use libc::{pid_t, rlimit, sigset_t, sock_filter, sock_fprog, timespec};

use crate::raw::raw;
use crate::wait::{SIGNAL_SET_BYTES, last_error};

/// Most steps of a filter that the kernel takes.
const STEPS_MAX: usize = 4096;

/// How many descriptors the program has last said that it may have: once locked in it may not ask.
static DESCRIPTORS: AtomicU64 = AtomicU64::new(u64::MAX);

/// The limits of the address space that the program has last set.
static GIVEN: [AtomicU64; 2] = [const { AtomicU64::new(u64::MAX) }; 2];

/// Whether the kernel refuses to poll so many descriptors.
pub fn has_no_room_to_poll(count: usize) -> bool {
    count as u64 > DESCRIPTORS.load(Ordering::Relaxed)
}

/// A poll by pselect(2), for which the number of descriptors is not limited.
///
/// # Errors
/// The errno of the call.
pub fn select(
    fds: &mut [PollFd],
    time: Option<&mut timespec>,
    mask: *const sigset_t,
) -> Result<usize, Errno> {
    const BITS: usize = usize::BITS as usize;
    const READ: i16 = libc::POLLIN | libc::POLLRDNORM | libc::POLLRDHUP;
    const KINDS: [i16; 3] = [READ, libc::POLLOUT | libc::POLLWRNORM, libc::POLLPRI];
    let count = fds.iter().map(|entry| entry.fd + 1).max().unwrap_or(0).max(0) as usize;
    let mut sets = KINDS.map(|_| vec![0usize; count.div_ceil(BITS)]);
    for entry in fds.iter().filter(|entry| entry.fd >= 0) {
        let fd = entry.fd as usize;
        for (set, kind) in sets.iter_mut().zip(KINDS) {
            set[fd / BITS] |= usize::from(entry.events & kind != 0) << (fd % BITS);
        }
    }
    let time = time.map_or(core::ptr::null_mut(), core::ptr::from_mut);
    let signals = [mask as usize, SIGNAL_SET_BYTES];
    let [read, write, except] = sets.each_mut().map(|set| set.as_mut_ptr());
    let selected = raw!(SYS_pselect6, count, read, write, except, time, signals.as_ptr());
    if selected < 0 {
        return Err(last_error());
    }
    let mut ready = 0;
    for entry in fds {
        entry.revents = 0;
        let Ok(fd) = usize::try_from(entry.fd) else { continue };
        for (set, kind) in sets.iter().zip(KINDS) {
            if set[fd / BITS] >> (fd % BITS) & 1 == 1 {
                entry.revents |= entry.events & kind;
            }
        }
        ready += usize::from(entry.revents != 0);
    }
    Ok(ready)
}

/// The program's filter behind our allowances; none where that would be too long.
///
/// # Safety
/// `filter` is null, or points to a filter as seccomp(2) takes it.
unsafe fn extended(filter: *const sock_fprog) -> Option<Vec<sock_filter>> {
    if filter.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let given = unsafe { filter.read_unaligned() };
    let mut steps = client::confinement::allowances();
    let len = usize::from(given.len);
    if steps.is_empty() || given.filter.is_null() || len == 0 || steps.len() + len > STEPS_MAX {
        return None;
    }
    // SAFETY: the caller's promise.
    steps.extend_from_slice(unsafe { core::slice::from_raw_parts(given.filter, len) });
    Some(steps)
}

/// A program for the kernel that lives as long as the call.
fn as_program(steps: &mut [sock_filter]) -> sock_fprog {
    sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() }
}

/// `prctl(2)`. Variadic in C, with at most four arguments of a word after the first.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn prctl(
    option: c_int,
    a: c_ulong,
    b: c_ulong,
    c: c_ulong,
    d: c_ulong,
) -> c_int {
    let filters = option == libc::PR_SET_SECCOMP && a == c_ulong::from(libc::SECCOMP_MODE_FILTER);
    if filters || option == libc::PR_SET_NO_NEW_PRIVS {
        client::confinement::get_ready();
    }
    if filters {
        // SAFETY: the application's filter.
        if let Some(mut steps) = unsafe { extended(b as *const sock_fprog) } {
            let program = as_program(&mut steps);
            return raw!(SYS_prctl, option, a, &raw const program, c, d) as c_int;
        }
    }
    raw!(SYS_prctl, option, a, b, c, d) as c_int
}

/// seccomp(2), which libc has no function for.
///
/// # Safety
/// As the system call.
pub unsafe fn seccomp(operation: c_uint, flags: c_uint, argument: usize) -> isize {
    if operation == libc::SECCOMP_SET_MODE_FILTER {
        client::confinement::get_ready();
        // SAFETY: the application's filter.
        if let Some(mut steps) = unsafe { extended(argument as *const sock_fprog) } {
            let program = as_program(&mut steps);
            return raw!(SYS_seccomp, operation, flags, &raw const program);
        }
    }
    raw!(SYS_seccomp, operation, flags, argument)
}

/// `prlimit(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn prlimit(
    process: pid_t,
    resource: c_uint,
    new: *const rlimit,
    old: *mut rlimit,
) -> c_int {
    // Another process's limits are changed as they are: it may have nothing to do with us.
    if process != 0 || new.is_null() {
        let done = raw!(SYS_prlimit64, process, resource, new, old) as c_int;
        // SAFETY: the application's pointer, which the kernel has just written to.
        unsafe { show_as_set(resource, old, done) };
        return done;
    }
    // SAFETY: the application's pointer.
    let mut limit = unsafe { new.read_unaligned() };
    if resource == libc::RLIMIT_NOFILE
        && sys::rlimit_nofile().is_ok_and(|(present, _)| limit.rlim_cur < present)
    {
        client::confinement::get_ready();
    }
    if resource == libc::RLIMIT_AS {
        let more = client::confinement::address_space();
        for (value, given) in [&mut limit.rlim_cur, &mut limit.rlim_max].into_iter().zip(&GIVEN) {
            given.store(*value, Ordering::Relaxed);
            // Without a limit it is the largest number, and stays that.
            *value = value.saturating_add(more);
        }
    }
    let set = raw!(SYS_prlimit64, process, resource, &raw const limit, old) as c_int;
    // SAFETY: the application's pointer, which the kernel has just written to.
    unsafe { show_as_set(resource, old, set) };
    if set == 0 && resource == libc::RLIMIT_NOFILE {
        DESCRIPTORS.store(limit.rlim_cur, Ordering::Relaxed);
    }
    if set < 0 && resource == libc::RLIMIT_AS {
        // More than this process may have.
        return raw!(SYS_prlimit64, process, resource, new, old) as c_int;
    }
    set
}

/// What the kernel has said of a limit, after a call that ended with `done`, becomes what the program has set.
///
/// # Safety
/// `limit` is null or may be written to.
unsafe fn show_as_set(resource: c_uint, limit: *mut rlimit, done: c_int) {
    if done != 0 || resource != libc::RLIMIT_AS || limit.is_null() {
        return;
    }
    // SAFETY: by contract.
    let mut told = unsafe { limit.read_unaligned() };
    for value in [&mut told.rlim_cur, &mut told.rlim_max] {
        let last = || GIVEN.iter().map(|given| given.load(Ordering::Relaxed));
        *value = client::confinement::unraised(*value, last());
    }
    // SAFETY: by contract.
    unsafe { limit.write_unaligned(told) };
}

/// `getrlimit(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getrlimit(resource: c_uint, limit: *mut rlimit) -> c_int {
    // SAFETY: the application's pointer.
    unsafe { prlimit(0, resource, core::ptr::null(), limit) }
}

/// `getrlimit(2)` under another name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getrlimit64(resource: c_uint, limit: *mut rlimit) -> c_int {
    // SAFETY: the application's pointer.
    unsafe { getrlimit(resource, limit) }
}

/// `prlimit(2)` under another name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn prlimit64(
    process: pid_t,
    resource: c_uint,
    new: *const rlimit,
    old: *mut rlimit,
) -> c_int {
    // SAFETY: the application's pointers.
    unsafe { prlimit(process, resource, new, old) }
}

/// `setrlimit(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setrlimit(resource: c_uint, new: *const rlimit) -> c_int {
    if new.is_null() {
        return raw!(SYS_setrlimit, resource, new) as c_int;
    }
    // SAFETY: the application's pointer.
    unsafe { prlimit(0, resource, new, core::ptr::null_mut()) }
}

/// `setrlimit(2)` under another name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setrlimit64(resource: c_uint, new: *const rlimit) -> c_int {
    // SAFETY: the application's pointer.
    unsafe { setrlimit(resource, new) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_select_says_what_a_poll_would() {
        let (left, right) = sys::socketpair_stream().unwrap();
        let entry = |fd, events| PollFd { fd, events, revents: 0 };
        let mut fds = [entry(left.raw(), libc::POLLIN), entry(-1, libc::POLLIN)];
        let mut soon = timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        assert_eq!(select(&mut fds, Some(&mut soon), core::ptr::null()), Ok(0));
        sys::send(right.raw(), b"x", 0).unwrap();
        let mut fds = [
            entry(left.raw(), libc::POLLIN | libc::POLLOUT),
            entry(right.raw(), libc::POLLIN),
            entry(right.raw(), libc::POLLOUT),
        ];
        assert_eq!(select(&mut fds, None, core::ptr::null()), Ok(2));
        let events = fds.map(|entry| entry.revents);
        assert_eq!(events, [libc::POLLIN | libc::POLLOUT, 0, libc::POLLOUT]);
    }
}
