//! The epoch segment: one word that outlives every server, which applications map read-only. An
//! application that finds another number than the one it attached under knows, by one load, that
//! the server it spoke to is gone; a change wakes everyone who sleeps on the word.
//!
//! The word is written by the supervisor alone: even while a server runs, odd while none does, the
//! largest number once there will never be another one. Used by the service at attach and by the
//! client; read `docs/decisions/0008` for what follows a change.

use core::sync::atomic::{AtomicU32, Ordering};
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::segment::Segment;
use crate::sys::{self, Fd, Result};

/// Bytes of the segment.
pub const EPOCH_SIZE: usize = 4096;
/// There will never be another server.
pub const ENDED: u32 = u32::MAX;

/// Whether a server runs in this epoch.
pub const fn is_up(epoch: u32) -> bool {
    epoch.is_multiple_of(2)
}

/// The epoch of the next server, after `epoch`.
pub const fn next_up(epoch: u32) -> u32 {
    // Far below ENDED, which is odd.
    match epoch {
        0xffff_fff0.. => 2,
        epoch => (epoch | 1) + 1,
    }
}

/// The supervisor's side.
#[derive(Debug)]
pub struct EpochWriter {
    segment: Segment,
}

impl EpochWriter {
    /// Makes the segment; no server runs yet.
    ///
    /// # Errors
    /// When the system gives no memory or descriptors.
    pub fn create() -> Result<EpochWriter> {
        let segment = Segment::create_for_readers("haypile-epoch", EPOCH_SIZE)?;
        let writer = EpochWriter { segment };
        writer.word().store(1, Ordering::Release);
        Ok(writer)
    }

    fn word(&self) -> &AtomicU32 {
        // `create` made the segment larger than a word.
        self.segment.atomic_u32(0).expect("the segment holds its word")
    }

    /// The descriptor to send to applications: it can be mapped for reading only. Owned by `self`.
    pub fn fd(&self) -> RawFd {
        // `create` keeps the descriptor.
        self.segment.fd().unwrap_or(-1)
    }

    /// The present epoch.
    pub fn get(&self) -> u32 {
        self.word().load(Ordering::Relaxed)
    }

    /// A new epoch, which everyone who sleeps on the word hears of.
    pub fn set(&self, epoch: u32) {
        self.word().store(epoch, Ordering::Release);
        let _: usize = sys::futex_wake(self.word(), u32::MAX);
    }
}

/// An application's side.
#[derive(Clone, Debug)]
pub struct EpochReader {
    segment: Arc<Segment>,
}

impl EpochReader {
    /// Maps the segment; the descriptor is closed.
    ///
    /// # Errors
    /// When it is no such segment.
    pub fn open(fd: impl Into<Fd>) -> Result<EpochReader> {
        let segment = Segment::from_fd_read_only(fd, EPOCH_SIZE)?;
        Ok(EpochReader { segment: Arc::new(segment) })
    }

    /// The word, to sleep on.
    pub fn word(&self) -> &AtomicU32 {
        // `open` checked the size.
        self.segment.atomic_u32(0).expect("the segment holds its word")
    }

    /// The present epoch.
    #[inline]
    pub fn get(&self) -> u32 {
        self.word().load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn epochs_of_servers_are_even_and_follow_each_other() {
        assert!(!is_up(1) && !is_up(ENDED));
        let mut epoch = 1;
        for _ in 0..100 {
            let next = next_up(epoch);
            assert!(is_up(next) && next > epoch);
            epoch = next | 1;
        }
        assert_eq!(next_up(0xffff_fffd), 2);
        assert_eq!(next_up(4), 6);
    }

    #[test]
    fn a_change_wakes_a_sleeper_who_can_only_read() {
        let writer = EpochWriter::create().unwrap();
        let fd = Fd::from_raw(writer.fd());
        let copy = fd.try_clone_at_least(0).unwrap();
        let _: RawFd = fd.into_raw();
        let reader = EpochReader::open(copy).unwrap();
        assert_eq!(reader.get(), 1);
        writer.set(2);
        assert_eq!(reader.get(), 2);
        let sleeper = std::thread::spawn(move || {
            let deadline_ns = sys::clock_monotonic_ns() + 20_000_000_000;
            while reader.get() == 2 {
                sys::futex_wait_until(reader.word(), 2, deadline_ns);
            }
            sys::clock_monotonic_ns() < deadline_ns
        });
        writer.set(3);
        assert!(sleeper.join().unwrap());
    }
}
