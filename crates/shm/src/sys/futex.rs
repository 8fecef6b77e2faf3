//! Sleeping on a word of shared memory. Both waits are interruptible by signals.

use core::sync::atomic::AtomicU32;
use core::time::Duration;

use super::{Errno, process::clock_monotonic_ns, syscall4, syscall6};

/// Why a futex wait came back.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Woken, or spuriously.
    Woken,
    /// The word had another value already.
    Changed,
    /// A signal handler ran.
    Interrupted,
    /// The time is over.
    TimedOut,
}

fn outcome(result: super::Result<usize>) -> Waited {
    match result {
        Ok(_) => Waited::Woken,
        Err(Errno::EINTR) => Waited::Interrupted,
        Err(Errno::ETIMEDOUT) => Waited::TimedOut,
        // EAGAIN, and whatever a kernel may refuse: the caller looks again.
        Err(_) => Waited::Changed,
    }
}

/// Sleeps while `word` is `expected`, at most `timeout`. With a time-out, any signal handler ends
/// the wait; without one, handlers installed with `SA_RESTART` do not.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Waited {
    let time = timeout.map(timespec);
    let pointer = time.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: the word and the time outlive the call; the kernel only reads them.
    outcome(unsafe {
        syscall4(
            libc::SYS_futex,
            word.as_ptr() as usize,
            libc::FUTEX_WAIT as usize,
            expected as usize,
            pointer as usize,
        )
    })
}

/// One entry of `futex_waitv(2)`.
#[repr(C)]
struct WaitEntry {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

/// Sleeps while `word` is `expected`, until `deadline_ns` on the monotonic clock. Unlike [`wait`]
/// with a time-out it goes on after handlers installed with `SA_RESTART`, like the kernel's own
/// blocking calls: this is the wait for blocking socket calls.
pub fn wait_until(word: &AtomicU32, expected: u32, deadline_ns: u64) -> Waited {
    match wait_on(&[(word, expected)], deadline_ns) {
        Err(Errno::ENOSYS | Errno::EPERM) => wait_interruptibly(word, expected, deadline_ns),
        other => outcome(other),
    }
}

/// As [`wait_until`], for two words: sleeps while both are as expected.
pub fn wait_both(first: (&AtomicU32, u32), second: (&AtomicU32, u32), deadline_ns: u64) -> Waited {
    /// Where the call is forbidden, the second word is looked at so often.
    const SLICE_NS: u64 = 50_000_000;
    match wait_on(&[first, second], deadline_ns) {
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let until_ns = deadline_ns.min(clock_monotonic_ns() + SLICE_NS);
            wait_interruptibly(first.0, first.1, until_ns)
        }
        other => outcome(other),
    }
}

/// Most words that the kernel lets one sleep on.
pub const WORDS_MAX: usize = 128;

/// As [`wait_until`], for up to [`WORDS_MAX`] words: sleeps while all are as expected. More are not
/// looked at; of none this is a sleep until the deadline.
pub fn wait_any(words: &[(&AtomicU32, u32)], deadline_ns: u64) -> Waited {
    /// Where the call is forbidden, the other words are looked at so often.
    const SLICE_NS: u64 = 2_000_000;
    let words = &words[..words.len().min(WORDS_MAX)];
    let Some(first) = words.first() else {
        let never = AtomicU32::new(0);
        return wait_until(&never, 0, deadline_ns);
    };
    match wait_on(words, deadline_ns) {
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let until_ns = deadline_ns.min(clock_monotonic_ns() + SLICE_NS);
            wait_interruptibly(first.0, first.1, until_ns)
        }
        other => outcome(other),
    }
}

/// futex_waitv(2).
fn wait_on(words: &[(&AtomicU32, u32)], deadline_ns: u64) -> super::Result<usize> {
    match words.len() {
        // Most sleeps; the room for all is 3 KiB.
        ..=2 => wait_in::<2>(words, deadline_ns),
        _ => wait_in::<WORDS_MAX>(words, deadline_ns),
    }
}

fn wait_in<const ROOM: usize>(
    words: &[(&AtomicU32, u32)],
    deadline_ns: u64,
) -> super::Result<usize> {
    const FUTEX_32: u32 = 2;
    const NONE: WaitEntry = WaitEntry { value: 0, address: 0, flags: 0, reserved: 0 };
    let mut entries = [NONE; ROOM];
    for (entry, (word, expected)) in entries.iter_mut().zip(words) {
        let (value, address) = (u64::from(*expected), word.as_ptr() as u64);
        *entry = WaitEntry { value, address, flags: FUTEX_32, reserved: 0 };
    }
    let time = timespec(Duration::from_nanos(deadline_ns));
    // SAFETY: entries, words and time outlive the call; the kernel only reads them, and no more
    // entries than there are.
    unsafe {
        syscall6(
            libc::SYS_futex_waitv as usize,
            entries.as_ptr() as usize,
            words.len().min(ROOM),
            0,
            core::ptr::from_ref(&time) as usize,
            libc::CLOCK_MONOTONIC as usize,
            0,
        )
    }
}

/// As [`wait_until`], but every signal handler ends the wait, as with blocking socket calls that have
/// a time limit.
pub fn wait_interruptibly(word: &AtomicU32, expected: u32, deadline_ns: u64) -> Waited {
    let left = deadline_ns.saturating_sub(clock_monotonic_ns());
    wait(word, expected, Some(Duration::from_nanos(left)))
}

/// Wakes up to `count` sleepers; returns how many there were.
pub fn wake(word: &AtomicU32, count: u32) -> usize {
    let count = count.min(i32::MAX as u32) as usize;
    // SAFETY: the kernel uses the address as a key only.
    unsafe {
        syscall4(libc::SYS_futex, word.as_ptr() as usize, libc::FUTEX_WAKE as usize, count, 0)
    }
    .unwrap_or(0)
}

/// The kernel's 64-bit time.
pub(super) fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}
