//! What signals do to the calls that wait.
//!
//! [`Sleeps`] keeps the signals of a thread for its sleeps. A bell may wake a sleeper for nothing, and
//! a handler that ran between two sleeps would end neither; the call would go on waiting where the
//! kernel's gives `EINTR`. So once a call is about to sleep, handlers run in sleeps only until it ends.
//!
//! Its restarting poll is ended by handlers as a blocking accept(2) is: those installed with
//! `SA_RESTART` run and the sleep goes on. Poll itself is ended by any handler and does not say by
//! whose. Used on descriptors that wait for the kernel and for Haypile at a time. Where all handlers
//! are of one kind, that kind decides. Where there are both, the signals whose handlers restart are
//! blocked for the time of the sleep and a signalfd (signalfd(2)) ends it instead; they are delivered
//! when it is over, and the sleep starts again.

use std::os::fd::RawFd;
use std::time::Duration;

use haypile_client::{Errno, Sleeper};
use haypile_shm::sys::{EpollEvent, PollFd};
use libc::sigset_t;

use crate::raw::raw;
use crate::wait::{kernel_epoll_wait, kernel_poll};

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
/// The two that the C library keeps for itself: threads are cancelled and change their user by them,
/// and who sends the latter waits for its handlers.
const OF_LIBRARY: u64 = set_of(&[32, 33]);

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

/// The sleeps of one call of the application. Its signals can be held back to the end of the call.
#[derive(Debug)]
pub struct Sleeps {
    /// The mask that the call was given, or null.
    given: *const sigset_t,
    /// The thread's mask as it was, once they are held back.
    outside: Option<u64>,
}

impl Sleeps {
    /// The sleeps of a call with a signal mask, or without one (null).
    pub fn new(given: *const sigset_t) -> Sleeps {
        Sleeps { given, outside: None }
    }

    /// Holds the signals back; the thread's mask as it was.
    fn outside(&mut self) -> u64 {
        *self.outside.get_or_insert_with(|| {
            let (held, mut outside) = (!(OWN_FAULTS | OF_LIBRARY), 0u64);
            let (held, old) = (&raw const held, &raw mut outside);
            raw!(SYS_rt_sigprocmask, libc::SIG_BLOCK, held, old, SET_BYTES);
            outside
        })
    }

    /// The mask to sleep with.
    fn mask(&self) -> *const sigset_t {
        match &self.outside {
            Some(outside) if self.given.is_null() => core::ptr::from_ref(outside).cast(),
            _ => self.given,
        }
    }
}

impl Drop for Sleeps {
    fn drop(&mut self) {
        if let Some(outside) = &self.outside {
            raw!(SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const *outside, 0, SET_BYTES);
        }
    }
}

impl Sleeper for Sleeps {
    fn hold(&mut self) {
        self.outside();
    }

    fn poll(&mut self, fds: &mut [PollFd], timeout: Option<Duration>) -> Result<usize, Errno> {
        kernel_poll(fds, timeout, self.mask())
    }

    fn poll_restarting(
        &mut self,
        fds: &mut [PollFd],
        timeout: Option<Duration>,
    ) -> Result<usize, Errno> {
        let outside = self.outside();
        loop {
            let handlers = Handlers::present();
            match (handlers.restarting, handlers.interrupting) {
                (0, _) => return self.poll(fds, timeout),
                (_, 0) => match self.poll(fds, timeout) {
                    Err(Errno::EINTR) => {}
                    other => return other,
                },
                (restarting, _) => {
                    if let Some(ready) = sleep_blocking(fds, timeout, restarting, outside)? {
                        return Ok(ready);
                    }
                }
            }
        }
    }

    fn epoll_wait(
        &mut self,
        epoll: RawFd,
        out: &mut [EpollEvent],
        timeout_ms: i32,
    ) -> Result<usize, Errno> {
        kernel_epoll_wait(epoll, out, timeout_ms, self.mask())
    }
}

/// Sleeps with the signals of a mask blocked, and some more. `None`: one of these has come.
fn sleep_blocking(
    fds: &mut [PollFd],
    timeout: Option<Duration>,
    restarting: u64,
    mask: u64,
) -> Result<Option<usize>, Errno> {
    // Signals that the program itself has blocked stay pending, with no end of the sleep.
    let restarting = restarting & !mask;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    let arrivals = raw!(SYS_signalfd4, -1isize, &raw const restarting, SET_BYTES, flags) as i32;
    if arrivals < 0 {
        // No descriptor left: any handler ends the sleep.
        return kernel_poll(fds, timeout, (&raw const mask).cast()).map(Some);
    }
    let blocked = mask | restarting;
    let mut all = fds.to_vec();
    all.push(PollFd { fd: arrivals, events: libc::POLLIN, revents: 0 });
    let slept = kernel_poll(&mut all, timeout, (&raw const blocked).cast());
    raw!(SYS_close, arrivals);
    for (entry, slept) in fds.iter_mut().zip(&all) {
        entry.revents = slept.revents;
    }
    let ready = slept?;
    if all.last().is_some_and(|arrivals| arrivals.revents != 0) {
        // Their handlers run here.
        raw!(SYS_rt_sigprocmask, libc::SIG_UNBLOCK, &raw const restarting, 0, SET_BYTES);
        raw!(SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const restarting, 0, SET_BYTES);
    }
    let others = fds.iter().filter(|entry| entry.revents != 0).count();
    Ok((ready == 0 || others > 0).then_some(others))
}
