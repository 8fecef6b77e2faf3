//! The epoch segment: a word for each server that outlives it, which applications map read-only. An
//! application that finds another number than the one it attached under knows, by one load, that
//! the server it spoke to is gone; a change wakes everyone who sleeps on the word.
//!
//! Beside the first word stands how many transport servers programs may come to, which changes while
//! the service runs, and how often it has.
//!
//! The words are written by the supervisor alone: even while a server runs, odd while none does, the
//! largest number once there will never be another one. Used by the service at attach and by the
//! client; read `docs/decisions/0008` for what follows a change.

use core::sync::atomic::{AtomicU32, Ordering};
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::segment::Segment;
use crate::sys::{self, Fd, Result};

/// Bytes of the segment.
pub const EPOCH_SIZE: usize = 4096;
/// Words in it, a cache line each: most transport servers of a service.
pub const EPOCH_SERVERS: u16 = (EPOCH_SIZE / WORD_STEP) as u16;
const WORD_STEP: usize = 64;
/// Where the number of transport servers stands: beside the first word.
const COUNT_AT: usize = 4;
/// There will never be another server.
pub const ENDED: u32 = u32::MAX;

/// Whether a server runs in this epoch.
pub const fn is_up(epoch: u32) -> bool {
    epoch.is_multiple_of(2)
}

/// Whether no server runs in this epoch, but another one is to come.
pub const fn is_between(epoch: u32) -> bool {
    !is_up(epoch) && epoch != ENDED
}

/// The epoch of the next server, after `epoch`.
pub const fn next_up(epoch: u32) -> u32 {
    // Far below ENDED, which is odd.
    match epoch {
        0xffff_fff0.. => 2,
        epoch => (epoch | 1) + 1,
    }
}

/// The supervisor's side, for one server.
#[derive(Clone, Debug)]
pub struct EpochWriter {
    segment: Arc<Segment>,
    at: usize,
}

impl EpochWriter {
    /// Makes the segment; no server runs yet. This is server 0's word.
    ///
    /// # Errors
    /// When the system gives no memory or descriptors.
    pub fn create() -> Result<EpochWriter> {
        let segment = Arc::new(Segment::create_for_readers("haypile-epoch", EPOCH_SIZE)?);
        let writer = EpochWriter { segment, at: 0 };
        for server in 0..EPOCH_SERVERS {
            writer.of(server).word().store(1, Ordering::Release);
        }
        Ok(writer)
    }

    /// The word of another server, in the same segment.
    ///
    /// # Panics
    /// When there is none: `server` must be below [`EPOCH_SERVERS`].
    pub fn of(&self, server: u16) -> EpochWriter {
        assert!(server < EPOCH_SERVERS, "server {server} has no epoch");
        EpochWriter { segment: Arc::clone(&self.segment), at: usize::from(server) * WORD_STEP }
    }

    fn word(&self) -> &AtomicU32 {
        // `of` checked the place.
        self.segment.atomic_u32(self.at).expect("the segment holds its word")
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

    /// Programs may come to so many transport servers, now if not before: they are to look which. Nobody is woken.
    pub fn set_servers(&self, servers: u16) {
        if let Some(word) = self.segment.atomic_u32(COUNT_AT) {
            let changes = (word.load(Ordering::Relaxed) & !0xffff).wrapping_add(1 << 16);
            word.store(changes | u32::from(servers), Ordering::Release);
        }
    }

    /// A new epoch, which everyone who sleeps on the word hears of.
    pub fn set(&self, epoch: u32) {
        self.word().store(epoch, Ordering::Release);
        let _: usize = sys::futex_wake(self.word(), u32::MAX);
    }
}

/// An application's side, for one server.
#[derive(Clone, Debug)]
pub struct EpochReader {
    segment: Arc<Segment>,
    at: usize,
}

impl EpochReader {
    /// Maps the segment, for the word of `server`; the descriptor is closed.
    ///
    /// # Errors
    /// When it is no such segment, or has no word for this server.
    pub fn open(fd: impl Into<Fd>, server: u16) -> Result<EpochReader> {
        let segment = Segment::from_fd_read_only(fd, EPOCH_SIZE)?;
        if server >= EPOCH_SERVERS {
            return Err(sys::Errno::EPROTO);
        }
        Ok(EpochReader { segment: Arc::new(segment), at: usize::from(server) * WORD_STEP })
    }

    /// The word of another server, in the same segment; `None` if there is none.
    pub fn of(&self, server: u16) -> Option<EpochReader> {
        let at = usize::from(server) * WORD_STEP;
        (server < EPOCH_SERVERS).then(|| EpochReader { segment: Arc::clone(&self.segment), at })
    }

    /// How many transport servers programs may come to; 0 where nobody says.
    #[inline]
    pub fn servers(&self) -> u16 {
        self.segment.atomic_u32(COUNT_AT).map_or(0, |word| word.load(Ordering::Acquire) as u16)
    }

    /// What differs when [`EpochReader::servers`] may, or one of them has left; 0 where nobody says.
    #[inline]
    pub fn changes(&self) -> u32 {
        self.segment.atomic_u32(COUNT_AT).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The word, to sleep on.
    pub fn word(&self) -> &AtomicU32 {
        // `open` checked size and place.
        self.segment.atomic_u32(self.at).expect("the segment holds its word")
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
        let first = EpochWriter::create().unwrap();
        let writer = first.of(EPOCH_SERVERS - 1);
        let fd = Fd::from_raw(writer.fd());
        let copy = || fd.try_clone_at_least(0).unwrap();
        assert!(EpochReader::open(copy(), EPOCH_SERVERS).is_err());
        let reader = EpochReader::open(copy(), EPOCH_SERVERS - 1).unwrap();
        let other = EpochReader::open(copy(), 0).unwrap();
        let _: RawFd = fd.into_raw();
        assert_eq!(reader.get(), 1);
        writer.set(2);
        assert_eq!((reader.get(), other.get()), (2, 1));
        assert_eq!(other.of(EPOCH_SERVERS - 1).map(|one| one.get()), Some(2));
        assert!(other.of(EPOCH_SERVERS).is_none());
        assert!(is_between(1) && !is_between(2) && !is_between(ENDED));
        let sleeper = std::thread::spawn(move || {
            let deadline_ns = sys::clock_monotonic_ns() + 20_000_000_000;
            while reader.get() == 2 {
                sys::futex_wait_until(reader.word(), 2, deadline_ns);
            }
            sys::clock_monotonic_ns() < deadline_ns
        });
        assert_eq!(other.servers(), 0);
        writer.set_servers(EPOCH_SERVERS);
        assert_eq!((other.servers(), other.get()), (EPOCH_SERVERS, 1));
        let before = other.changes();
        writer.set_servers(EPOCH_SERVERS);
        assert!(other.changes() != before && other.servers() == EPOCH_SERVERS);
        writer.set(3);
        assert!(sleeper.join().unwrap());
    }
}
