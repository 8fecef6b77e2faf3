//! What a process gives up before it touches what strangers send: user, groups, capabilities,
//! limits, processors, the right to new privileges. Used by the service's server processes once, at
//! their start, while they have one thread: the calls change the calling thread alone. Also the
//! report of a forbidden system call. Read credentials(7), capabilities(7), seccomp(2).

use core::sync::atomic::{AtomicI32, Ordering};
use std::os::fd::RawFd;

use super::{CORES_MAX, Errno, Fd, Result, syscall4, syscall6};

fn call(number: libc::c_long, a: usize, b: usize, c: usize) -> Result<()> {
    // SAFETY: private; callers in this file pass numbers, or pointers to live memory that the call
    // reads or writes in the size that it expects.
    unsafe { syscall4(number, a, b, c, 0) }.map(drop)
}

fn prctl(option: i32, argument: usize) -> Result<()> {
    // SAFETY: the options used in this file take a number, or a pointer to a name that lives.
    unsafe { syscall6(libc::SYS_prctl as usize, option as usize, argument, 0, 0, 0, 0) }.map(drop)
}

/// Leaves all supplementary groups.
pub fn leave_groups() -> Result<()> {
    call(libc::SYS_setgroups, 0, 0, 0)
}

/// Becomes another group: real, effective and saved.
pub fn set_group(gid: u32) -> Result<()> {
    call(libc::SYS_setresgid, gid as usize, gid as usize, gid as usize)
}

/// Becomes another user: real, effective and saved.
pub fn set_user(uid: u32) -> Result<()> {
    call(libc::SYS_setresuid, uid as usize, uid as usize, uid as usize)
}

/// The user that permission checks see.
pub fn effective_user() -> u32 {
    // SAFETY: touches no memory.
    unsafe { syscall4(libc::SYS_geteuid, 0, 0, 0, 0) }.unwrap_or(0) as u32
}

/// Empties the bounding set: no program executed later can get a capability.
pub fn drop_bounding_set() -> Result<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            // The kernel knows no more.
            Err(Errno::EINVAL) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// Gives every capability up: permitted, effective, inheritable and ambient.
pub fn drop_capabilities() -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    // Fails only where there are no ambient capabilities to clear.
    let _: Result<()> = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as usize);
    let header = [VERSION_3, 0];
    let none = [0u32; 6];
    call(libc::SYS_capset, header.as_ptr() as usize, none.as_ptr() as usize, 0)
}

/// From now on nothing that is executed gets more rights than its starter.
pub fn forbid_new_privileges() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// Whether processes of the same user may look into this one, and whether it may dump its memory.
pub fn set_dumpable(dumpable: bool) -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, usize::from(dumpable))
}

/// The signal that this process gets when the thread that started it ends. Forgotten by the kernel
/// when user or group change, so it is set after them.
pub fn set_parent_death_signal(signal: i32) -> Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as usize)
}

/// The name that shows in `/proc`; 15 bytes of it.
pub fn set_process_name(name: &str) -> Result<()> {
    let mut bytes = [0u8; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    prctl(libc::PR_SET_NAME, bytes.as_ptr() as usize)
}

/// Sets soft and hard limit of a resource (`RLIMIT_*`).
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let at = core::ptr::from_ref(&limit) as usize;
    // SAFETY: the call reads one rlimit64.
    unsafe { syscall4(libc::SYS_prlimit64, 0, resource as usize, at, 0) }.map(drop)
}

/// The processors that this thread may run on, in order.
pub fn allowed_processors() -> Result<Vec<u32>> {
    let mut mask = [0u64; CORES_MAX / 64];
    let at = mask.as_mut_ptr() as usize;
    call(libc::SYS_sched_getaffinity, 0, core::mem::size_of_val(&mask), at)?;
    let is_set = |index: &u32| mask[*index as usize / 64] >> (index % 64) & 1 != 0;
    Ok((0..CORES_MAX as u32).filter(is_set).collect())
}

/// The process that started this one, or whoever has taken its place.
pub fn parent_process() -> i32 {
    // SAFETY: touches no memory.
    unsafe { syscall4(libc::SYS_getppid, 0, 0, 0, 0) }.unwrap_or(0) as i32
}

/// Sends a signal to the process that a pidfd stands for, and to no other.
pub fn signal_process(pidfd: &Fd, signal: i32) -> Result<()> {
    call(libc::SYS_pidfd_send_signal, pidfd.raw() as usize, signal as usize, 0)
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: RawFd) -> Result<()> {
    call(libc::SYS_close_range, first as usize, u32::MAX as usize, 0)
}

/// Makes one system call that no server needs; for the test that a sandbox is there.
pub fn call_something_forbidden() -> Result<()> {
    call(libc::SYS_getcwd, 0, 0, 0)
}

/// Ends the process at once: no handlers, no buffers.
pub fn end_process(status: i32) -> ! {
    loop {
        // SAFETY: touches no memory; ends the process.
        let _: Result<usize> = unsafe { syscall4(libc::SYS_exit_group, status as usize, 0, 0, 0) };
    }
}

/// Exit status of a process that made a forbidden system call.
pub const FORBIDDEN_CALL_STATUS: i32 = 131;
/// First word of the report of a forbidden call; the call's number is the second.
pub const FORBIDDEN_CALL_MARK: u32 = 0x6861_7921;

/// Where the report goes; -1: nowhere.
static REPORT_TO: AtomicI32 = AtomicI32::new(-1);

/// From now on a forbidden system call (a seccomp filter that answers with a trap) ends the process
/// with [`FORBIDDEN_CALL_STATUS`], after eight bytes on the socket `report_to`: mark and number.
pub fn end_on_forbidden_call(report_to: RawFd) -> Result<()> {
    REPORT_TO.store(report_to, Ordering::Relaxed);
    let action = KernelAction {
        handler: on_forbidden_call as *const () as usize,
        flags: (libc::SA_SIGINFO | SA_RESTORER) as u64,
        restorer: RESTORER,
        mask: 0,
    };
    let at = core::ptr::from_ref(&action) as usize;
    // SAFETY: the kernel reads one action, whose size of mask is 8 bytes; the handler makes only
    // system calls and does not return.
    unsafe { syscall4(libc::SYS_rt_sigaction, libc::SIGSYS as usize, at, 0, 8) }.map(drop)
}

/// `struct sigaction` as the kernel has it. The handler never returns, so nothing restores.
#[repr(C)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

#[cfg(target_arch = "x86_64")]
const SA_RESTORER: i32 = 0x0400_0000;
#[cfg(not(target_arch = "x86_64"))]
const SA_RESTORER: i32 = 0;
/// An address that nothing jumps to.
const RESTORER: usize = 0;

extern "C" fn on_forbidden_call(
    _signal: i32,
    information: *const libc::siginfo_t,
    _context: *const core::ffi::c_void,
) -> ! {
    /// Where `si_syscall` lies: after signal, errno and code (padded), and the call's address.
    const NUMBER_OFFSET: usize = 24;
    // SAFETY: the kernel passes a siginfo of 128 bytes; for SIGSYS the number is at this place.
    let number = unsafe { information.cast::<u8>().add(NUMBER_OFFSET).cast::<u32>().read() };
    let mut report = [0u8; 8];
    report[..4].copy_from_slice(&FORBIDDEN_CALL_MARK.to_ne_bytes());
    report[4..].copy_from_slice(&number.to_ne_bytes());
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let _: Result<usize> = super::send(REPORT_TO.load(Ordering::Relaxed), &report, flags);
    end_process(FORBIDDEN_CALL_STATUS)
}
