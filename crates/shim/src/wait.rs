//! Calls that wait: the `poll`, `select` and `epoll` families. What our sockets are ready for is
//! decided in the client crate; the sleep itself is a kernel call made here, with the signal mask
//! that the application gave.

use core::ffi::{c_int, c_ulong};
use core::time::Duration;

use haypile_client::{self as client, Errno};
use haypile_shm::sys::{EpollEvent, PollFd};
use libc::{epoll_event, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};

use crate::confinement;
use crate::raw::{finish, raw, set_errno, settle_int, unit};
use crate::signals::Sleeps;

/// Bytes of a kernel signal set.
pub const SIGNAL_SET_BYTES: usize = 8;

/// The calling thread's `errno`.
pub fn last_error() -> Errno {
    // SAFETY: libc's pointer to the errno of this thread is always valid.
    Errno(unsafe { *libc::__errno_location() })
}

fn counted(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| last_error())
}

fn kernel_time(time: Duration) -> timespec {
    timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// The kernel's ppoll with a signal mask.
pub fn kernel_poll(
    fds: &mut [PollFd],
    timeout: Option<Duration>,
    mask: *const sigset_t,
) -> Result<usize, Errno> {
    let mut time = timeout.map(kernel_time);
    let pointer = time.as_mut().map_or(core::ptr::null_mut(), core::ptr::from_mut);
    let polled = raw!(SYS_ppoll, fds.as_mut_ptr(), fds.len(), pointer, mask, SIGNAL_SET_BYTES);
    match counted(polled) {
        // A poll may name no more descriptors than the process may have, and ours come on top.
        Err(Errno::EINVAL) if confinement::has_no_room_to_poll(fds.len()) => {
            let mut time = timeout.map(kernel_time);
            confinement::select(fds, time.as_mut(), mask)
        }
        other => other,
    }
}

/// The kernel's epoll_pwait with a signal mask.
pub fn kernel_epoll_wait(
    epoll: c_int,
    out: &mut [EpollEvent],
    timeout_ms: c_int,
    mask: *const sigset_t,
) -> Result<usize, Errno> {
    let (events, most) = (out.as_mut_ptr(), out.len().min(c_int::MAX as usize));
    counted(raw!(SYS_epoll_pwait, epoll, events, most, timeout_ms, mask, SIGNAL_SET_BYTES))
}

/// A poll over a set with some of our sockets.
fn poll_ours(
    fds: &mut [PollFd],
    timeout: Option<Duration>,
    mask: *const sigset_t,
) -> Result<usize, Errno> {
    client::poll(fds, timeout, &mut Sleeps::new(mask))
}

/// A timespec of the application; `EINVAL` as the kernel says it.
///
/// # Safety
/// `time` is null or valid.
unsafe fn duration(time: *const timespec) -> Result<Option<Duration>, Errno> {
    if time.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let time = unsafe { *time };
    let seconds = u64::try_from(time.tv_sec).map_err(|_| Errno::EINVAL)?;
    let nanoseconds = u32::try_from(time.tv_nsec).map_err(|_| Errno::EINVAL)?;
    if nanoseconds >= 1_000_000_000 {
        return Err(Errno::EINVAL);
    }
    Ok(Some(Duration::new(seconds, nanoseconds)))
}

/// The application's array; `None` if it is none (null, or too long to be one).
///
/// # Safety
/// `fds` is null or valid for `count` entries.
unsafe fn poll_array<'a>(fds: *mut pollfd, count: nfds_t) -> Option<&'a mut [PollFd]> {
    if fds.is_null() || count == 0 || count > 1 << 20 {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { core::slice::from_raw_parts_mut(fds, count as usize) })
}

/// `poll(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
    let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
    let kernel = || {
        let mut time = timeout.map(kernel_time);
        let pointer = time.as_mut().map_or(core::ptr::null_mut(), core::ptr::from_mut);
        raw!(SYS_ppoll, fds, count, pointer, 0, SIGNAL_SET_BYTES)
    };
    // SAFETY: the application's array.
    match unsafe { poll_array(fds, count) } {
        Some(array) if client::any_ours(array) => {
            settle_int(poll_ours(array, timeout, core::ptr::null()), kernel)
        }
        _ => kernel() as c_int,
    }
}

/// `poll(2)` under another name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __poll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout_ms: c_int,
) -> c_int {
    // SAFETY: the application's array.
    unsafe { poll(fds, count, timeout_ms) }
}

/// `poll(2)` with a checked array size.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __poll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout_ms: c_int,
    room: size_t,
) -> c_int {
    if room / size_of::<pollfd>() < count as usize {
        std::process::abort();
    }
    // SAFETY: the application's array.
    unsafe { poll(fds, count, timeout_ms) }
}

/// `ppoll(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ppoll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    let kernel = || {
        // The kernel writes the time left, libc's function does not.
        // SAFETY: the application's time.
        let mut time = (!timeout.is_null()).then(|| unsafe { *timeout });
        let pointer = time.as_mut().map_or(core::ptr::null_mut(), core::ptr::from_mut);
        raw!(SYS_ppoll, fds, count, pointer, mask, SIGNAL_SET_BYTES)
    };
    // SAFETY: the application's array.
    match unsafe { poll_array(fds, count) } {
        Some(array) if client::any_ours(array) => {
            // SAFETY: the application's time.
            let timeout = unsafe { duration(timeout) };
            settle_int(timeout.and_then(|timeout| poll_ours(array, timeout, mask)), kernel)
        }
        _ => kernel() as c_int,
    }
}

/// `ppoll(2)` with a checked array size.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __ppoll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    room: size_t,
) -> c_int {
    if room / size_of::<pollfd>() < count as usize {
        std::process::abort();
    }
    // SAFETY: the application's array.
    unsafe { ppoll(fds, count, timeout, mask) }
}

/// The three sets of a select call as words of bits.
struct Sets {
    words: [*mut c_ulong; 3],
    count: usize,
}

/// What a descriptor in the read, write and exception set waits for, and what counts as it.
const WAITS: [(i16, i16); 3] = [
    (libc::POLLIN, libc::POLLIN | libc::POLLHUP | libc::POLLERR),
    (libc::POLLOUT, libc::POLLOUT | libc::POLLERR),
    (libc::POLLPRI, libc::POLLPRI),
];

impl Sets {
    fn bit(fd: usize) -> (usize, c_ulong) {
        (fd / c_ulong::BITS as usize, 1 << (fd % c_ulong::BITS as usize))
    }

    fn holds(&self, set: usize, fd: usize) -> bool {
        let (word, bit) = Sets::bit(fd);
        let words = self.words[set];
        // SAFETY: the application's sets hold `count` bits.
        !words.is_null() && unsafe { *words.add(word) } & bit != 0
    }

    fn clear(&self) {
        for words in self.words.into_iter().filter(|words| !words.is_null()) {
            for word in 0..self.count.div_ceil(c_ulong::BITS as usize) {
                // SAFETY: as above.
                unsafe { *words.add(word) = 0 };
            }
        }
    }

    fn add(&self, set: usize, fd: usize) {
        let (word, bit) = Sets::bit(fd);
        // SAFETY: as above; called only for sets that held the bit.
        unsafe { *self.words[set].add(word) |= bit };
    }

    fn wanted(&self, fd: usize) -> i16 {
        let set = |set: usize| if self.holds(set, fd) { WAITS[set].0 } else { 0 };
        set(0) | set(1) | set(2)
    }

    fn any_ours(&self) -> bool {
        (0..self.count).any(|fd| !client::is_kernel(fd as c_int) && self.wanted(fd) != 0)
    }
}

/// select over a set with some of our sockets: as poll, and back into bits.
fn select_ours(
    sets: &Sets,
    timeout: Option<Duration>,
    mask: *const sigset_t,
) -> Result<usize, Errno> {
    let mut fds = Vec::with_capacity(16);
    for fd in 0..sets.count {
        let events = sets.wanted(fd);
        if events != 0 {
            fds.push(PollFd { fd: fd as c_int, events, revents: 0 });
        }
    }
    poll_ours(&mut fds, timeout, mask)?;
    if fds.iter().any(|entry| entry.revents & libc::POLLNVAL != 0) {
        return Err(Errno::EBADF);
    }
    let wanted: Vec<[bool; 3]> = fds
        .iter()
        .map(|entry| core::array::from_fn(|set| sets.holds(set, entry.fd as usize)))
        .collect();
    sets.clear();
    let mut ready = 0;
    for (entry, wanted) in fds.iter().zip(wanted) {
        for (set, (_, counts)) in WAITS.iter().enumerate() {
            if wanted[set] && entry.revents & counts != 0 {
                sets.add(set, entry.fd as usize);
                ready += 1;
            }
        }
    }
    Ok(ready)
}

fn sets(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set) -> Sets {
    Sets {
        words: [read.cast(), write.cast(), except.cast()],
        count: usize::try_from(count).unwrap_or(0),
    }
}

/// `select(2)`: writes the time left, as Linux does.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    let sets = sets(count, read, write, except);
    // SAFETY: the application's time.
    let limit = (!timeout.is_null()).then(|| unsafe { *timeout });
    let mut time = limit.map(|limit| {
        let extra = limit.tv_usec.div_euclid(1_000_000);
        timespec {
            tv_sec: limit.tv_sec.saturating_add(extra),
            tv_nsec: limit.tv_usec.rem_euclid(1_000_000) * 1000,
        }
    });
    if time.as_ref().is_some_and(|time| time.tv_sec < 0) {
        return finish(Err(Errno::EINVAL)) as c_int;
    }
    let result = if sets.any_ours() {
        let started = haypile_shm::sys::clock_monotonic_ns();
        let limit = time.map(|time| Duration::new(time.tv_sec as u64, time.tv_nsec as u32));
        let ready = select_ours(&sets, limit, core::ptr::null());
        if let (Some(time), Some(limit)) = (&mut time, limit) {
            let spent = haypile_shm::sys::clock_monotonic_ns().saturating_sub(started);
            *time = kernel_time(limit.saturating_sub(Duration::from_nanos(spent)));
        }
        finish(ready) as c_int
    } else {
        let pointer = time.as_mut().map_or(core::ptr::null_mut(), core::ptr::from_mut);
        raw!(SYS_pselect6, count, read, write, except, pointer, 0) as c_int
    };
    if let Some(left) = time {
        // SAFETY: the application's time, not null.
        unsafe {
            *timeout = timeval { tv_sec: left.tv_sec, tv_usec: left.tv_nsec / 1000 };
        }
    }
    result
}

/// `select(2)` under another name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    // SAFETY: the application's sets.
    unsafe { select(count, read, write, except, timeout) }
}

/// `pselect(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pselect(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    let sets = sets(count, read, write, except);
    if sets.any_ours() {
        // SAFETY: the application's time.
        let ready =
            unsafe { duration(timeout) }.and_then(|timeout| select_ours(&sets, timeout, mask));
        return finish(ready) as c_int;
    }
    // SAFETY: the application's time; the kernel writes the time left, libc's function does not.
    let mut time = (!timeout.is_null()).then(|| unsafe { *timeout });
    let pointer = time.as_mut().map_or(core::ptr::null_mut(), core::ptr::from_mut);
    let mask_and_len = [mask as usize, SIGNAL_SET_BYTES];
    raw!(SYS_pselect6, count, read, write, except, pointer, mask_and_len.as_ptr()) as c_int
}

/// `epoll_create(2)`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn epoll_create(size: c_int) -> c_int {
    if size <= 0 {
        return finish(Err(Errno::EINVAL)) as c_int;
    }
    epoll_create1(0)
}

/// `epoll_create1(2)`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn epoll_create1(flags: c_int) -> c_int {
    let new = raw!(SYS_epoll_create1, flags) as c_int;
    if new >= 0 {
        client::epoll_made(new);
    }
    new
}

/// `epoll_ctl(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_ctl(
    epoll: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    let kernel = move || raw!(SYS_epoll_ctl, epoll, operation, fd, event);
    if client::is_kernel(epoll) {
        return kernel() as c_int;
    }
    if event.is_null() && operation != libc::EPOLL_CTL_DEL {
        return finish(Err(Errno::EFAULT)) as c_int;
    }
    // SAFETY: the application's event; its alignment is not assumed.
    let event = (!event.is_null()).then(|| unsafe { event.read_unaligned() });
    settle_int(unit(client::epoll_ctl(epoll, operation, fd, event)), kernel)
}

/// # Safety
/// `events` is valid for writes of `most` entries.
unsafe fn epoll_wait_masked(
    epoll: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout_ms: c_int,
    mask: *const sigset_t,
) -> c_int {
    let kernel = || raw!(SYS_epoll_pwait, epoll, events, most, timeout_ms, mask, SIGNAL_SET_BYTES);
    if client::is_kernel(epoll) || most <= 0 || events.is_null() {
        return kernel() as c_int;
    }
    // SAFETY: the caller's promise. On x86-64 the type is packed, elsewhere libc's users align it.
    let array = unsafe { core::slice::from_raw_parts_mut(events, most as usize) };
    let ready = client::epoll_wait(epoll, array, timeout_ms, &mut Sleeps::new(mask));
    settle_int(ready, kernel)
}

/// `epoll_wait(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_wait(
    epoll: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout_ms: c_int,
) -> c_int {
    // SAFETY: the application's array.
    unsafe { epoll_wait_masked(epoll, events, most, timeout_ms, core::ptr::null()) }
}

/// `epoll_pwait(2)`.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait(
    epoll: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout_ms: c_int,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the application's array and mask.
    unsafe { epoll_wait_masked(epoll, events, most, timeout_ms, mask) }
}

/// `epoll_pwait2(2)`: on our sets the time is rounded up to milliseconds.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait2(
    epoll: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    if client::is_kernel(epoll) {
        return raw!(SYS_epoll_pwait2, epoll, events, most, timeout, mask, SIGNAL_SET_BYTES)
            as c_int;
    }
    // SAFETY: the application's time.
    let timeout_ms = match unsafe { duration(timeout) } {
        Ok(None) => -1,
        Ok(Some(time)) => {
            c_int::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX)
        }
        Err(errno) => {
            set_errno(errno);
            return -1;
        }
    };
    // SAFETY: the application's array and mask.
    unsafe { epoll_wait_masked(epoll, events, most, timeout_ms, mask) }
}
