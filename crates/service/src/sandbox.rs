//! How a server is confined before it looks at a single frame or request: a processor of its own, a
//! user without rights, no capabilities, no way to new privileges, and a filter that knows the few
//! system calls of the event loop. Everything else ends the server, which its supervisor then
//! starts anew.
//!
//! [`Cell`] is what the supervisor orders, [`Confinement`] what came of it: where the system does
//! not let us give something up, that is named and shown by `haypile status`. Called by
//! `server_process`; read `haypile_shm::sys::privilege` for the calls.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use haypile_shm::sys::privilege;
use haypile_shm::{Errno, sys};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How a server is to be confined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// User and group to become; `None`: stay who we are.
    pub user: Option<(u32, u32)>,
    /// The processor to run on; `None`: any.
    pub core: Option<u32>,
    /// Forbid the system calls that a server does not need.
    pub filter: bool,
}

/// How a server is confined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confinement {
    /// Its process.
    pub pid: i32,
    /// The processor it is tied to.
    pub core: Option<u32>,
    /// The user it is.
    pub user: u32,
    /// System calls that it may make; 0: all, there is no filter.
    pub calls: u32,
    /// What could not be given up, and why.
    pub kept: Vec<String>,
}

impl Confinement {
    /// In words, for a person.
    pub fn describe(&self) -> String {
        let filter = match self.calls {
            0 => "off".to_string(),
            calls => format!("on ({calls} system calls)"),
        };
        let kept = self.kept.iter().map(|kept| format!("; {kept}"));
        format!("{filter}{}", kept.collect::<String>())
    }
}

/// User and group of a name, from the system's list; a number stands for itself.
///
/// # Errors
/// When there is no such user.
pub fn find_user(name: &str) -> Result<(u32, u32), Error> {
    if let Ok(number) = name.parse() {
        return Ok((number, number));
    }
    let list = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ids = list.lines().find_map(|line| ids_of(line, name));
    match ids {
        Some(ids) => Ok(ids),
        // Every Linux has this number, not every one a name for it.
        None if name == crate::config::USER_DEFAULT => Ok((65_534, 65_534)),
        None => Err(Error::new(
            format_args!("use the user {name}"),
            "there is no such user in /etc/passwd",
            "name another one, or a number, with --user",
        )),
    }
}

/// A line of passwd(5): name, password, user, group, ...
fn ids_of(line: &str, name: &str) -> Option<(u32, u32)> {
    let mut fields = line.split(':');
    (fields.next()? == name).then_some(())?;
    let user = fields.nth(1)?.parse().ok()?;
    Some((user, fields.next()?.parse().ok()?))
}

/// The processor of a server: the one it is given, or one of those allowed, spread by `spread`.
pub fn choose_core(given: &[u32], server: u32, spread: u32) -> Option<u32> {
    let given_here = given.get(server as usize % given.len().max(1)).copied();
    given_here.or_else(|| {
        let allowed = privilege::allowed_processors().unwrap_or_default();
        // With few of them the scheduler knows better.
        if allowed.len() < FEW_CORES {
            return None;
        }
        allowed.get((spread as usize).wrapping_add(server as usize) % allowed.len()).copied()
    })
}

/// Below so many processors a server is not tied to one.
pub const FEW_CORES: usize = 4;

/// Gives up everything that a server does not need. The process has one thread. `channel` is told
/// of forbidden system calls.
pub fn confine(cell: &Cell, channel: RawFd) -> Confinement {
    let mut kept = Vec::new();
    let mut note = |what: &str, outcome: Result<(), Errno>| match outcome {
        Ok(()) => true,
        Err(errno) => {
            kept.push(format!("{what}: {errno}"));
            false
        }
    };
    let core = cell.core.filter(|core| {
        note(&format!("not tied to processor {core}"), sys::set_affinity(&[*core as usize]))
    });
    note("core dumps", privilege::set_limit(libc::RLIMIT_CORE, 0, 0));
    if let Some((user, group)) = cell.user {
        note("bounding set kept", privilege::drop_bounding_set());
        note("groups kept", privilege::leave_groups());
        note("group kept", privilege::set_group(group));
        note("user kept", privilege::set_user(user));
    }
    note("capabilities kept", privilege::drop_capabilities());
    note("may be looked into", privilege::set_dumpable(false));
    note("new privileges possible", privilege::forbid_new_privileges());
    // After the change of user, which makes the kernel forget it.
    note("outlives its supervisor", privilege::set_parent_death_signal(libc::SIGKILL));
    let (pid, user, mut calls) = (sys::getpid(), privilege::effective_user(), 0);
    if cell.filter {
        note("forbidden calls unreported", privilege::end_on_forbidden_call(channel));
        match install_filter() {
            Ok(allowed) => calls = allowed,
            Err(why) => kept.push(format!("no filter of system calls: {why}")),
        }
    } else {
        kept.push("switched off".to_string());
    }
    Confinement { pid, core, user, calls, kept }
}

/// Calls without a condition on their arguments, each for what.
const ALWAYS: &[i64] = &[
    // The turn: frames, rings of doorbells, control connections, the channel.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    // A packet link, which also looks whether its interface is still there.
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_getsockname,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_ppoll,
    // A link with faults, which delays frames.
    libc::SYS_timerfd_settime,
    // Processes that attach: who they are, their memory, their doorbells.
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_pidfd_open,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_getrandom,
    libc::SYS_close,
    // The witness.
    libc::SYS_lseek,
    libc::SYS_pread64,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // The thread that writes a capture, and the end, clean or not.
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Calls of one architecture alone.
#[cfg(target_arch = "x86_64")]
const ALWAYS_HERE: &[i64] = &[libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const ALWAYS_HERE: &[i64] = &[];

/// What may be done to a descriptor: flags, seals of memory files, copies.
const FCNTL: [i32; 6] = [
    libc::F_GETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
    libc::F_DUPFD_CLOEXEC,
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The rules: an argument that is named must be as said.
fn rules() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules =
        ALWAYS.iter().chain(ALWAYS_HERE).map(|call| (*call, Vec::new())).collect();
    let mut when = |call: i64, argument: u8, operator: SeccompCmpOp, value: u64| {
        let length = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(argument, length, operator, value)?;
        rules.entry(call).or_default().push(SeccompRule::new(vec![condition])?);
        Ok::<(), seccompiler::BackendError>(())
    };
    // No memory that can be executed.
    let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    when(libc::SYS_mmap, 2, executable.clone(), 0)?;
    when(libc::SYS_mprotect, 2, executable, 0)?;
    when(libc::SYS_socketpair, 0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?;
    when(libc::SYS_prctl, 0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?;
    for command in FCNTL {
        when(libc::SYS_fcntl, 1, SeccompCmpOp::Eq, command as u64)?;
    }
    // libc's own two signals, when the first thread is made; a crash, which is not to be hidden.
    for signal in [32, 33, libc::SIGSEGV as u64, libc::SIGBUS as u64] {
        when(libc::SYS_rt_sigaction, 0, SeccompCmpOp::Eq, signal)?;
    }
    // Threads, and no processes.
    let thread = (libc::CLONE_THREAD | libc::CLONE_VM) as u64;
    when(libc::SYS_clone, 0, SeccompCmpOp::MaskedEq(thread), thread)?;
    Ok(rules)
}

/// The filters. The arguments of clone3 cannot be looked at, so it is answered as by a kernel that
/// does not have it, and libc uses clone.
fn programs() -> Result<(Vec<BpfProgram>, u32), seccompiler::BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let rules = rules()?;
    let calls = rules.len() as u32 - 1;
    let main = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, architecture)?;
    let absent: Rules = [(libc::SYS_clone3, Vec::new())].into();
    let not_there = SeccompAction::Errno(libc::ENOSYS as u32);
    let absent = SeccompFilter::new(absent, SeccompAction::Allow, not_there, architecture)?;
    Ok((vec![absent.try_into()?, main.try_into()?], calls))
}

/// Filters from now on; how many calls are allowed.
fn install_filter() -> Result<u32, String> {
    let (programs, calls) = programs().map_err(|error| error.to_string())?;
    for program in &programs {
        seccompiler::apply_filter(program).map_err(|error| error.to_string())?;
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(find_user("1234").unwrap(), (1234, 1234));
        assert_eq!(find_user("root").unwrap(), (0, 0));
        assert_eq!(ids_of("daemon:x:1:2:daemon:/:/bin/sh", "daemon"), Some((1, 2)));
        for line in ["daemon", "daemon:x", "daemon:x:a:b", "daemons:x:1:2", ""] {
            assert_eq!(ids_of(line, "daemon"), None, "{line}");
        }
        let error = find_user("no such user").unwrap_err().to_string();
        assert!(error.contains("--user"), "{error}");
    }

    #[test]
    fn the_filter_compiles_for_this_machine_and_is_short() {
        let (programs, calls) = programs().unwrap();
        assert_eq!(programs.len(), 2);
        assert!((30..60).contains(&calls), "{calls}");
        let allowed = rules().unwrap();
        for call in [libc::SYS_openat, libc::SYS_execve, libc::SYS_ptrace, libc::SYS_socket] {
            assert!(!allowed.contains_key(&call), "{call}");
        }
    }

    #[test]
    fn cores_are_those_given_in_turn() {
        assert_eq!(choose_core(&[3, 5], 0, 9), Some(3));
        assert_eq!(choose_core(&[3, 5], 3, 9), Some(5));
        let allowed = privilege::allowed_processors().unwrap();
        let chosen = choose_core(&[], 0, 12_345);
        assert_eq!(chosen.is_some(), allowed.len() >= FEW_CORES);
        assert!(chosen.is_none_or(|core| allowed.contains(&core)));
    }

    #[test]
    fn what_was_kept_is_named() {
        let mut confinement = Confinement { calls: 40, ..Confinement::default() };
        assert_eq!(confinement.describe(), "on (40 system calls)");
        confinement.kept.push("user kept: EPERM".into());
        assert_eq!(confinement.describe(), "on (40 system calls); user kept: EPERM");
    }
}
