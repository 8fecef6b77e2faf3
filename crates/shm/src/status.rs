//! The status segment: a few words about the service as a whole, which every application maps
//! read-only: whether the service sleeps, and the core it runs on.

use core::sync::atomic::{AtomicU32, Ordering};
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::limits::PROTOCOL_VERSION;
use crate::segment::{Segment, SharedLayout};
use crate::sleep::SleepCount;
use crate::sys::{Errno, Fd, Result};

/// Bytes of the status segment.
pub const STATUS_SIZE: usize = 4096;

#[repr(C)]
struct StatusLayout {
    sleeps: AtomicU32,
    version: AtomicU32,
    /// Number of the core that the service ran on last, plus one; 0: unknown.
    core: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only.
unsafe impl SharedLayout for StatusLayout {}

/// The service's side.
#[derive(Debug)]
pub struct ServiceStatus {
    segment: Segment,
}

impl ServiceStatus {
    /// Makes the segment; the service is awake.
    pub fn create() -> Result<ServiceStatus> {
        let segment = Segment::create_for_readers("haypile-status", STATUS_SIZE)?;
        let status = ServiceStatus { segment };
        status.layout().version.store(PROTOCOL_VERSION, Ordering::Relaxed);
        Ok(status)
    }

    fn layout(&self) -> &StatusLayout {
        // `create` made the segment larger than the layout.
        self.segment.view(0).expect("the status segment holds its layout")
    }

    /// The descriptor to send to applications: it can be mapped for reading only. Owned by `self`.
    pub fn fd(&self) -> RawFd {
        // `create` keeps the descriptor.
        self.segment.fd().unwrap_or(-1)
    }

    /// Says which core the service runs on, as far as known.
    pub fn set_core(&self, core: Option<u32>) {
        self.layout().core.store(core.map_or(0, |core| core.wrapping_add(1)), Ordering::Relaxed);
    }

    /// Announces sleep. Look at every request ring once more after this, then sleep.
    pub fn prepare_sleep(&self) {
        SleepCount::new(&self.layout().sleeps).prepare_sleep();
    }

    /// Takes the announcement back; also after a sleep.
    pub fn awake(&self) {
        SleepCount::new(&self.layout().sleeps).awake();
    }
}

/// An application's side.
#[derive(Clone, Debug)]
pub struct AppStatus {
    segment: Arc<Segment>,
}

impl AppStatus {
    /// Maps the segment; the descriptor is closed.
    pub fn open(fd: impl Into<Fd>) -> Result<AppStatus> {
        let segment = Segment::from_fd_read_only(fd, STATUS_SIZE)?;
        let status = AppStatus { segment: Arc::new(segment) };
        match status.layout().version.load(Ordering::Relaxed) {
            PROTOCOL_VERSION => Ok(status),
            _ => Err(Errno::EPROTO),
        }
    }

    fn layout(&self) -> &StatusLayout {
        // `open` checked the size.
        self.segment.view(0).expect("the status segment holds its layout")
    }

    /// Whether the service ran on this core when it last said so.
    pub fn is_on_core(&self, core: u32) -> bool {
        self.layout().core.load(Ordering::Relaxed) == core.wrapping_add(1)
    }

    /// After a request was published: true if the service must be rung. `rung` belongs to the
    /// bell: the sleep of the service for which it was rung last, 0 at first.
    pub fn must_wake(&self, rung: &AtomicU32) -> bool {
        SleepCount::new(&self.layout().sleeps).must_wake(rung)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
