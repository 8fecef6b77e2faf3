//! Programs that lock themselves in: a filter of system calls (seccomp), no more descriptors, or a
//! bounded address space. sshd and vsftpd do so in a child, before it uses the connection that it has
//! inherited; what this library asks of the kernel for that connection would end the child.
//!
//! Two things help. [`get_ready`] attaches to the servers while that is still allowed. [`allowances`] is
//! put in front of the program's own filter and lets pass what calls on sockets that are there need, and
//! no more: waits on words of memory, questions that change nothing, and messages on descriptors of this
//! library. All else is decided by the program's filter. Called by the shim's `confinement.rs`.

use std::os::fd::RawFd;

use libc::sock_filter;

use crate::attach;
use crate::descriptors::{self, Owner};
use crate::{entry, poll};

/// Most descriptors of ours that a filter names; a process has a handful.
const NAMED_MAX: usize = 64;

/// Attaches to all servers now, if this process has sockets with records that it may use later.
pub fn get_ready() {
    if !attach::is_attached() {
        return;
    }
    let mut needed = false;
    descriptors::for_each_in(0, u32::MAX, |_, owner| {
        if let Owner::Socket(index) = owner
            && let Some(socket) = entry::pin(index)
            && socket.has_record()
        {
            needed = true;
            drop(attach::near(socket.server()));
            if socket.is_moved() {
                drop(socket.present());
            }
        }
    });
    if needed {
        // For those that move later. What goes wrong now goes wrong again, with an error, then.
        let _: Result<(), haypile_shm::Errno> = attach::all();
        for attachment in attach::all_from_home().filter_map(attach::existing) {
            attachment.memory().map_ahead(&attachment);
        }
        poll::get_ready();
    }
}

/// Address space, in bytes, that a program's limit is to be raised by: what is mapped of the service's
/// memory is sparse, and none of the program's use of memory.
pub fn address_space() -> u64 {
    if attach::is_attached() { MORE } else { 0 }
}

/// An arena of each size and server, many times over; and a little that is no multiple of anything, by which a limit
/// is known that was raised, also in a program that another one has executed.
const MORE: u64 = (64 << 30) + 679;
/// Limits that programs set are multiples of this.
const UNIT: u64 = 1024;

/// What a program has set that has the limit `limit`, which may have been raised; `last` is what this process has
/// set itself.
pub fn unraised(limit: u64, mut last: impl Iterator<Item = u64>) -> u64 {
    match limit.checked_sub(MORE) {
        Some(given) if given.is_multiple_of(UNIT) || last.any(|one| one == given) => given,
        _ => limit,
    }
}

/// The beginning of a filter: allows this library's own calls, goes on behind its end with all others.
/// Empty in a process that is not attached.
pub fn allowances() -> Vec<sock_filter> {
    if !attach::is_attached() {
        return Vec::new();
    }
    let mut own = Vec::new();
    descriptors::for_each_in(0, u32::MAX, |fd, owner| {
        if owner == Owner::Internal && own.len() < NAMED_MAX {
            own.push(fd);
        }
    });
    program(&own)
}

/// Where the kernel's `seccomp_data` has the number of the call and the architecture.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

/// The lower half of an argument.
const fn argument_at(index: u32) -> u32 {
    16 + 8 * index + if cfg!(target_endian = "big") { 4 } else { 0 }
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

const ALLOW: sock_filter = step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);

/// Allowed with any arguments: they wait, or tell the time.
const HARMLESS: [libc::c_long; 6] = [
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
];

/// Allowed on descriptors of ours.
const ON_OUR_OWN: [libc::c_long; 5] = [
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_epoll_pwait,
];

fn program(own: &[RawFd]) -> Vec<sock_filter> {
    let mut rules = Vec::new();
    for number in HARMLESS {
        rule(&mut rules, number, &[ALLOW]);
    }
    // Whose a descriptor is: our numbers may have been closed behind our back.
    rule(&mut rules, libc::SYS_getsockopt, &both(libc::SOL_SOCKET, libc::SO_COOKIE));
    // What handlers there are, for waits that some signals end.
    let asks = [
        step(LOAD, 0, 0, argument_at(1)),
        step(IF_EQUAL, 0, 3, 0),
        step(LOAD, 0, 0, argument_at(1) ^ 4),
        step(IF_EQUAL, 0, 1, 0),
        ALLOW,
    ];
    rule(&mut rules, libc::SYS_rt_sigaction, &asks);
    for number in ON_OUR_OWN {
        rule(&mut rules, number, &one_of(own));
    }
    let mut program = vec![
        step(LOAD, 0, 0, ARCHITECTURE_AT),
        step(IF_EQUAL, 1, 0, ARCHITECTURE),
        step(JUMP, 0, 0, rules.len() as u32),
    ];
    program.append(&mut rules);
    program
}

/// A call by its number; `then` ends with [`ALLOW`] and otherwise goes on behind it.
fn rule(rules: &mut Vec<sock_filter>, number: libc::c_long, then: &[sock_filter]) {
    rules.push(step(LOAD, 0, 0, NUMBER_AT));
    rules.push(step(IF_EQUAL, 0, then.len() as u8, number as u32));
    rules.extend_from_slice(then);
}

/// The second and third argument are these.
fn both(second: i32, third: i32) -> [sock_filter; 5] {
    [
        step(LOAD, 0, 0, argument_at(1)),
        step(IF_EQUAL, 0, 3, second as u32),
        step(LOAD, 0, 0, argument_at(2)),
        step(IF_EQUAL, 0, 1, third as u32),
        ALLOW,
    ]
}

/// The first argument is one of these.
fn one_of(fds: &[RawFd]) -> Vec<sock_filter> {
    let mut steps = vec![step(LOAD, 0, 0, argument_at(0))];
    for (at, fd) in fds.iter().enumerate() {
        steps.push(step(IF_EQUAL, (fds.len() - at) as u8, 0, *fd as u32));
    }
    steps.push(step(JUMP, 0, 0, 1));
    steps.push(ALLOW);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: u32 = 7;

    /// What a filter of a program that allows nothing says behind ours.
    fn run(program: &[sock_filter], number: libc::c_long, arguments: [u64; 3]) -> u32 {
        let mut program = program.to_vec();
        program.push(step(RETURN, 0, 0, REFUSED));
        let mut data = [0u8; 64];
        data[..4].copy_from_slice(&(number as u32).to_ne_bytes());
        data[4..8].copy_from_slice(&ARCHITECTURE.to_ne_bytes());
        for (index, value) in arguments.iter().enumerate() {
            data[16 + 8 * index..24 + 8 * index].copy_from_slice(&value.to_ne_bytes());
        }
        let (mut at, mut register) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            match step.code {
                LOAD => {
                    let word = &data[step.k as usize..][..4];
                    register = u32::from_ne_bytes(word.try_into().unwrap());
                }
                IF_EQUAL => at += usize::from(if register == step.k { step.jt } else { step.jf }),
                JUMP => at += step.k as usize,
                RETURN => return step.k,
                other => panic!("step {other}"),
            }
        }
    }

    #[test]
    fn what_the_library_needs_passes_and_nothing_else() {
        let own = [16_128, 16_130, 16_131];
        let program = program(&own);
        let allowed = |number, arguments| match run(&program, number, arguments) {
            libc::SECCOMP_RET_ALLOW => true,
            REFUSED => false,
            other => panic!("{other}"),
        };
        assert!(allowed(libc::SYS_futex, [1, 2, 3]) && allowed(libc::SYS_futex_waitv, [0; 3]));
        for number in ON_OUR_OWN {
            for fd in own {
                assert!(allowed(number, [fd as u64, 9, 9]), "{number} {fd}");
            }
            assert!(!allowed(number, [3, 9, 9]) && !allowed(number, [16_129, 0, 0]), "{number}");
        }
        let cookie = [3, libc::SOL_SOCKET as u64, libc::SO_COOKIE as u64];
        assert!(allowed(libc::SYS_getsockopt, cookie));
        assert!(!allowed(libc::SYS_getsockopt, [3, libc::SOL_SOCKET as u64, 1]));
        assert!(!allowed(libc::SYS_getsockopt, [3, 1 + libc::SOL_SOCKET as u64, 57]));
        assert!(allowed(libc::SYS_rt_sigaction, [2, 0, 8]));
        assert!(!allowed(libc::SYS_rt_sigaction, [2, 1 << 40, 8]));
        for number in [libc::SYS_openat, libc::SYS_socket, libc::SYS_execve, libc::SYS_setsockopt] {
            assert!(!allowed(number, [16_128, 0, 0]), "{number}");
        }
    }

    #[test]
    fn another_architecture_and_no_descriptors_are_the_programs_business() {
        let empty = program(&[]);
        assert_eq!(run(&empty, libc::SYS_sendto, [0; 3]), REFUSED);
        let mut other = program(&[3]);
        other[1].k ^= 1;
        assert_eq!(run(&other, libc::SYS_futex, [0; 3]), REFUSED);
        let full: Vec<RawFd> = (0..NAMED_MAX as RawFd).collect();
        assert!(program(&full).len() < 1000);
        assert_eq!(run(&program(&full), libc::SYS_recvmsg, [63, 0, 0]), libc::SECCOMP_RET_ALLOW);
    }
}
