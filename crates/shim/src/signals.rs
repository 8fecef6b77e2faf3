//! A sleep in poll(2) that signal handlers end, or do not end, as they would a blocking accept(2):
//! handlers installed with `SA_RESTART` run and the sleep goes on. Poll itself is ended by any
//! handler and does not say by whose.
//!
//! Used by `accept` on listeners that wait for the kernel and for Haypile at a time. Where all
//! handlers are of one kind, that kind decides. Where there are both, the signals whose handlers
//! restart are blocked for the time of the sleep and a signalfd (signalfd(2)) ends it instead; they
//! are delivered when it is over, and the sleep starts again.

use std::time::Duration;

use haypile_client::Errno;
use haypile_shm::sys::PollFd;

use crate::raw::raw;
use crate::wait::kernel_poll;

/// Bytes of a kernel signal set, and a set as a word.
const SET_BYTES: usize = 8;
/// Signals that a program brings on itself; their handlers end no sleep.
const OWN_FAULTS: u64 = set_of(&[
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
]);
const HIGHEST: i32 = 64;

const fn set_of(signals: &[i32]) -> u64 {
    let mut set = 0;
    let mut at = 0;
    while at < signals.len() {
        set |= 1 << (signals[at] - 1);
        at += 1;
    }
    set
}

/// The signals that have handlers, by kind.
struct Handlers {
    restarting: u64,
    interrupting: u64,
}

impl Handlers {
    fn present() -> Handlers {
        let mut handlers = Handlers { restarting: 0, interrupting: 0 };
        for signal in 1..=HIGHEST {
            let bit = set_of(&[signal]);
            if bit & OWN_FAULTS != 0 {
                continue;
            }
            // The kernel's struct: handler, flags, restorer, mask.
            let mut action = [0usize; 4];
            let asked = raw!(SYS_rt_sigaction, signal, 0, action.as_mut_ptr(), SET_BYTES);
            let [handler, flags, ..] = action;
            if asked == -1 || handler == libc::SIG_DFL || handler == libc::SIG_IGN {
                continue;
            }
            match flags & libc::SA_RESTART as usize {
                0 => handlers.interrupting |= bit,
                _ => handlers.restarting |= bit,
            }
        }
        handlers
    }
}

/// The sleep; `EINTR` only by a handler without `SA_RESTART`.
pub fn sleep(fds: &mut [PollFd], timeout: Option<Duration>) -> Result<usize, Errno> {
    loop {
        let handlers = Handlers::present();
        match (handlers.restarting, handlers.interrupting) {
            (0, _) => return kernel_poll(fds, timeout, core::ptr::null()),
            (_, 0) => match kernel_poll(fds, timeout, core::ptr::null()) {
                Err(Errno::EINTR) => {}
                other => return other,
            },
            (restarting, _) => {
                if let Some(ready) = sleep_blocking(fds, timeout, restarting)? {
                    return Ok(ready);
                }
            }
        }
    }
}

/// Sleeps with some signals blocked. `None`: one of them has come.
fn sleep_blocking(
    fds: &mut [PollFd],
    timeout: Option<Duration>,
    restarting: u64,
) -> Result<Option<usize>, Errno> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    let arrivals = raw!(SYS_signalfd4, -1isize, &raw const restarting, SET_BYTES, flags) as i32;
    if arrivals < 0 {
        // No descriptor left: any handler ends the sleep.
        return kernel_poll(fds, timeout, core::ptr::null()).map(Some);
    }
    let mut mask = 0u64;
    raw!(SYS_rt_sigprocmask, libc::SIG_BLOCK, 0, &raw mut mask, SET_BYTES);
    // Signals that the program itself has blocked stay pending, with no end of the sleep.
    let restarting = restarting & !mask;
    raw!(SYS_signalfd4, arrivals, &raw const restarting, SET_BYTES, flags);
    mask |= restarting;
    let mut all = fds.to_vec();
    all.push(PollFd { fd: arrivals, events: libc::POLLIN, revents: 0 });
    let slept = kernel_poll(&mut all, timeout, (&raw const mask).cast());
    raw!(SYS_close, arrivals);
    for (entry, slept) in fds.iter_mut().zip(&all) {
        entry.revents = slept.revents;
    }
    let ready = slept?;
    let others = fds.iter().filter(|entry| entry.revents != 0).count();
    Ok((ready == 0 || others > 0).then_some(others))
}
