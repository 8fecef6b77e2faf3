//! Memory for frames: equal chunks, page-aligned, in one private mapping of one server. The mapping
//! can be registered as an AF_XDP UMEM as it stands. Called by links and the service.
//!
//! Whoever holds a [`Frame`] owns that chunk; it is neither `Clone` nor `Copy`. A frame must go
//! back to the pool it came from.

use crate::sys::{self, Result};

/// A chunk that holds an IP packet of 64 KiB with what surrounds it, in bytes. An odd number of
/// pages, so that the starts of the chunks do not all fall into the same sets of a cache.
pub const SUPERFRAME_SIZE: usize = 17 * 4096;

/// The right to one chunk of a pool.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    index: u32,
}

impl Frame {
    /// Which chunk of the pool.
    pub fn index(&self) -> u32 {
        self.index
    }
}

/// A pool of frames with one owner.
#[derive(Debug)]
pub struct FramePool {
    base: *mut u8,
    frame_size: usize,
    count: u32,
    free: Vec<u32>,
}

// SAFETY: the mapping belongs to the pool alone and is reached only through `&self`/`&mut self`.
unsafe impl Send for FramePool {}

impl FramePool {
    /// A pool of `count` frames of `frame_size` bytes: 2048, 4096 or [`SUPERFRAME_SIZE`]. `EINVAL`
    /// for other sizes.
    pub fn new(count: u32, frame_size: usize) -> Result<FramePool> {
        if !matches!(frame_size, 2048 | 4096 | SUPERFRAME_SIZE) || count == 0 {
            return Err(sys::Errno::EINVAL);
        }
        let len = count as usize * frame_size;
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as usize;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as usize;
        // SAFETY: a new private mapping at an address the kernel picks disturbs no other memory.
        let base = unsafe {
            sys::syscall6(libc::SYS_mmap as usize, 0, len, protection, flags, usize::MAX, 0)
        }?;
        // Popped from the end: low frames first.
        let free = (0..count).rev().collect();
        Ok(FramePool { base: base as *mut u8, frame_size, count, free })
    }

    /// Takes a frame, the one given back last; `None` if all are out. Its bytes are what the last
    /// owner left.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        self.free.pop().map(|index| Frame { index })
    }

    /// Gives a frame back. One that cannot be of this pool is dropped.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        if frame.index < self.count && self.free.len() < self.count as usize {
            self.free.push(frame.index);
        }
    }

    /// Reads a frame; all `frame_size` bytes.
    #[inline]
    pub fn bytes(&self, frame: &Frame) -> &[u8] {
        let (start, len) = self.span(frame);
        // SAFETY: inside the mapping, which is initialised (zero pages); writers need `&mut self`.
        unsafe { core::slice::from_raw_parts(self.base.add(start), len) }
    }

    /// Writes a frame; all `frame_size` bytes.
    #[inline]
    pub fn bytes_mut(&mut self, frame: &mut Frame) -> &mut [u8] {
        let (start, len) = self.span(frame);
        // SAFETY: inside the mapping; `&mut self` excludes every other access through the pool.
        unsafe { core::slice::from_raw_parts_mut(self.base.add(start), len) }
    }

    /// Start and length of a frame; empty for one of a larger pool.
    #[inline]
    fn span(&self, frame: &Frame) -> (usize, usize) {
        if frame.index < self.count {
            (frame.index as usize * self.frame_size, self.frame_size)
        } else {
            (0, 0)
        }
    }

    /// Bytes of a frame.
    pub fn frame_size(&self) -> usize {
        self.frame_size
    }

    /// Frames in all.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Frames that can be taken now.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Address of the mapping, to register it with the kernel.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Bytes of the mapping.
    pub fn mapped_len(&self) -> usize {
        self.count as usize * self.frame_size
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no slice of it outlives `self`.
        let _: Result<usize> =
            unsafe { sys::syscall4(libc::SYS_munmap, self.base as usize, self.mapped_len(), 0, 0) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
