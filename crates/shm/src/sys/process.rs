//! Processes, threads, time and limits.

use std::os::fd::RawFd;

use super::{Fd, Result, syscall4};

/// The process id as the kernel knows it.
pub fn getpid() -> i32 {
    // SAFETY: touches no memory.
    unsafe { syscall4(libc::SYS_getpid, 0, 0, 0, 0) }.unwrap_or(0) as i32
}

/// The thread id as the kernel knows it.
pub fn gettid() -> i32 {
    // SAFETY: touches no memory.
    unsafe { syscall4(libc::SYS_gettid, 0, 0, 0, 0) }.unwrap_or(0) as i32
}

/// A descriptor that becomes readable when process `pid` ends.
pub fn pidfd_open(pid: i32) -> Result<Fd> {
    // SAFETY: touches no memory.
    unsafe { syscall4(libc::SYS_pidfd_open, pid as usize, 0, 0, 0) }
        .map(|fd| Fd::from_raw(fd as RawFd))
}

/// Sends `signal` to every process of the group that process `leader` leads. Never to our own group
/// or to everyone: a `leader` of 0 or 1 is refused with `EINVAL`.
pub fn kill_group(leader: u32, signal: i32) -> Result<()> {
    let group =
        i32::try_from(leader).ok().filter(|group| *group > 1).ok_or(super::Errno::EINVAL)?;
    // SAFETY: touches no memory.
    unsafe { syscall4(libc::SYS_kill, -group as isize as usize, signal as usize, 0, 0) }.map(drop)
}

/// Fills `out` with bytes that nobody can guess.
pub fn random_bytes(out: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < out.len() {
        let rest = &mut out[done..];
        // SAFETY: the kernel writes at most `rest.len()` bytes into `rest`.
        let filled =
            unsafe { syscall4(libc::SYS_getrandom, rest.as_mut_ptr() as usize, rest.len(), 0, 0) };
        match filled {
            Ok(len) => done += len,
            Err(super::Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The name of the calling thread; of a program's first one, the program's.
pub fn thread_name() -> [u8; 16] {
    let mut name = [0u8; 16];
    // SAFETY: the call writes up to 16 bytes.
    let _: Result<usize> = unsafe {
        syscall4(libc::SYS_prctl, libc::PR_GET_NAME as usize, name.as_mut_ptr() as usize, 0, 0)
    };
    name
}

/// Starts a session of our own, away from the terminal and its signals. `EPERM` for the leader of a
/// process group.
pub fn setsid() -> Result<()> {
    // SAFETY: touches no memory.
    unsafe { syscall4(libc::SYS_setsid, 0, 0, 0, 0) }.map(drop)
}

/// Gives freed memory back to the system, as far as the allocator knows how. It may take a millisecond: not for those
/// who carry data.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator's own; it touches only what is free.
    let _: i32 = unsafe { libc::malloc_trim(0) };
}

/// The core that the caller runs on, as of now; `None` if the system does not say.
pub fn current_core() -> Option<u32> {
    // SAFETY: touches no memory of ours.
    u32::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// Processors that run, whether the caller may use them or not; at least 1.
pub fn processors_online() -> usize {
    // SAFETY: touches no memory of ours.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(count).map_or(1, |count| count.max(1))
}

/// Nanoseconds on the monotonic clock, by the vdso (libc's `clock_gettime`, which nobody
/// interposes).
pub fn clock_monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds since 1970.
pub fn clock_realtime_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Microseconds on the monotonic clock.
pub fn clock_monotonic_us() -> u64 {
    clock_monotonic_ns() / 1000
}

/// Soft and hard limit of open descriptors.
pub fn rlimit_nofile() -> Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    prlimit_nofile(core::ptr::null(), &mut limit)?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Sets the soft and hard limit of open descriptors.
pub fn set_rlimit_nofile(soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    prlimit_nofile(&limit, core::ptr::null_mut())
}

fn prlimit_nofile(new: *const libc::rlimit64, old: *mut libc::rlimit64) -> Result<()> {
    // SAFETY: both pointers are null or point to one rlimit64 of a caller in this file.
    unsafe {
        syscall4(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE as usize, new as usize, old as usize)
    }
    .map(drop)
}

/// Gives the rest of this time slice to another thread.
pub fn sched_yield() {
    // SAFETY: touches no memory.
    let _: Result<usize> = unsafe { syscall4(libc::SYS_sched_yield, 0, 0, 0, 0) };
}

/// Largest number of a core, plus one, that [`set_affinity`] can name.
pub const CORES_MAX: usize = 1024;

/// Keeps the calling thread, and threads and processes that it starts later, on these cores. `EINVAL` when none of them
/// may be used or a number is not below [`CORES_MAX`].
pub fn set_affinity(cores: &[usize]) -> Result<()> {
    let mut mask = [0_u64; CORES_MAX / 64];
    for core in cores {
        *mask.get_mut(core / 64).ok_or(super::Errno::EINVAL)? |= 1 << (core % 64);
    }
    let size = core::mem::size_of_val(&mask);
    // SAFETY: the call reads `size` bytes from `mask`, which lives until it returns.
    unsafe { syscall4(libc::SYS_sched_setaffinity, 0, size, mask.as_ptr() as usize, 0) }.map(drop)
}

/// The processor's own counter, for costs in cycles: the time stamp counter on x86-64, the virtual counter on arm64. It
/// runs at a constant rate that is not the core's clock.
#[inline]
pub fn cycle_counter() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has this instruction, and it touches no memory.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(target_arch = "aarch64")]
    {
        let value: u64;
        // SAFETY: the virtual counter can be read in user mode on Linux, and reading it touches no memory.
        unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) value, options(nomem, nostack)) };
        value
    }
}
