//! A piece of memory shared between processes: a sealed memory file, mapped once. Made by the
//! service, mapped by applications from the descriptor they are sent. Everything else in this crate
//! lives inside a segment.
//!
//! The seals (no shrinking, no growing, no more seals) are what makes touching the mapping safe: no
//! other holder of the file can take pages away below us. Never huge pages: holes are punched.

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};
use std::os::fd::RawFd;

use crate::sys::{self, Errno, Fd, Result};

mod streaming;

const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Mapped shared memory. Every access is bounds-checked and panic-free.
#[derive(Debug)]
pub struct Segment {
    base: *mut u8,
    len: usize,
    writable: bool,
    fd: Option<Fd>,
}

// SAFETY: the mapping is reached only by atomics and raw copies, from any thread; the base address
// and length never change.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

/// The types that [`Segment::view`] may hand out references to.
///
/// # Safety
/// The type is `repr(C)`, made of atomics (and arrays of them) only, valid for every bit pattern.
pub(crate) unsafe trait SharedLayout {}

// SAFETY: atomics are valid for every bit pattern and may be changed by others at any time.
unsafe impl SharedLayout for AtomicU32 {}
// SAFETY: as above.
unsafe impl SharedLayout for AtomicU64 {}
// SAFETY: as above.
unsafe impl SharedLayout for AtomicI32 {}

impl Segment {
    /// Makes, sizes, seals and maps a memory file of `len` bytes; `name` shows in `/proc`. The
    /// memory is zero and takes room only as it is touched.
    pub fn create(name: &str, len: usize) -> Result<Segment> {
        let segment = Segment::map(memory_file(name, len)?, len, true, true)?;
        segment.seal(SEALS)?;
        Ok(segment)
    }

    /// As [`Segment::create`], but nobody who receives the descriptor can ever map it for writing
    /// or write to the file: only this mapping can.
    pub fn create_for_readers(name: &str, len: usize) -> Result<Segment> {
        let segment = Segment::map(memory_file(name, len)?, len, true, true)?;
        segment.seal(SEALS | libc::F_SEAL_FUTURE_WRITE)?;
        Ok(segment)
    }

    fn seal(&self, seals: i32) -> Result<()> {
        sys::add_seals(self.fd().ok_or(Errno::EBADF)?, seals)
    }

    /// Maps a segment that another process made. Refuses (`EINVAL`) a file of another size than
    /// `expected_len` or without the seals. `keep_fd` keeps the descriptor, to pass it on;
    /// otherwise it is closed once mapped.
    pub fn from_fd(fd: impl Into<Fd>, expected_len: usize, keep_fd: bool) -> Result<Segment> {
        Segment::check_and_map(fd.into(), expected_len, true, keep_fd)
    }

    /// As [`Segment::from_fd`], mapped without the right to write; the descriptor is closed.
    pub fn from_fd_read_only(fd: impl Into<Fd>, expected_len: usize) -> Result<Segment> {
        Segment::check_and_map(fd.into(), expected_len, false, false)
    }

    fn check_and_map(fd: Fd, len: usize, writable: bool, keep_fd: bool) -> Result<Segment> {
        let seals = sys::get_seals(fd.raw())?;
        if seals & SEALS != SEALS || sys::file_size(fd.raw())? != len {
            return Err(Errno::EINVAL);
        }
        Segment::map(fd, len, writable, keep_fd)
    }

    fn map(fd: Fd, len: usize, writable: bool, keep_fd: bool) -> Result<Segment> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping at an address the kernel picks disturbs no other memory.
        let base = unsafe {
            sys::syscall6(
                libc::SYS_mmap as usize,
                0,
                len,
                protection as usize,
                (libc::MAP_SHARED | libc::MAP_NORESERVE) as usize,
                fd.raw() as usize,
                0,
            )
        }?;
        Ok(Segment { base: base as *mut u8, len, writable, fd: keep_fd.then_some(fd) })
    }

    /// The descriptor, if it was kept.
    pub fn fd(&self) -> Option<RawFd> {
        self.fd.as_ref().map(Fd::raw)
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    fn fits(&self, offset: usize, len: usize) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// A layout of atomics at `offset`; `None` if it would reach past the end or is not aligned.
    pub(crate) fn view<T: SharedLayout>(&self, offset: usize) -> Option<&T> {
        let aligned = offset.is_multiple_of(core::mem::align_of::<T>());
        if !aligned || !self.fits(offset, core::mem::size_of::<T>()) {
            return None;
        }
        // SAFETY: inside the mapping, which lives as long as `self`; aligned, as the base is
        // page-aligned; `SharedLayout` types are valid whatever the bytes are and whoever changes
        // them.
        Some(unsafe { &*self.base.add(offset).cast::<T>() })
    }

    /// As [`Segment::view`], for what is looked at in every turn.
    ///
    /// # Safety
    /// `offset` is a multiple of `T`'s alignment, and all of a `T` there lies inside the segment.
    #[inline]
    pub(crate) unsafe fn view_unchecked<T: SharedLayout>(&self, offset: usize) -> &T {
        debug_assert!(self.view::<T>(offset).is_some());
        // SAFETY: the caller says what `view` looks up; the rest is as there.
        unsafe { &*self.base.add(offset).cast::<T>() }
    }

    /// The word at `offset` (a multiple of 4); `None` out of range.
    pub fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
        self.view(offset)
    }

    /// The word at `offset` (a multiple of 8); `None` out of range.
    pub fn atomic_u64(&self, offset: usize) -> Option<&AtomicU64> {
        self.view(offset)
    }

    /// Copies `data` to `offset`. False, and nothing done, out of range or if mapped read-only.
    #[must_use]
    pub fn copy_in(&self, offset: usize, data: &[u8]) -> bool {
        if !self.writable || !self.fits(offset, data.len()) {
            return false;
        }
        // SAFETY: the target is inside our mapping, the source is a live slice, and they are apart.
        unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), self.base.add(offset), data.len()) };
        true
    }

    /// As [`Segment::copy_in`], past the caches: for many bytes that another core reads next and
    /// held before. An ordinary copy has to fetch every line from that core first, only to write
    /// over it. All is in place for others when this returns.
    #[must_use]
    pub fn copy_in_past_caches(&self, offset: usize, data: &[u8]) -> bool {
        if !self.writable || !self.fits(offset, data.len()) {
            return false;
        }
        // SAFETY: the target is inside our mapping, the source is a live slice, and they are apart.
        unsafe { streaming::copy(data.as_ptr(), self.base.add(offset), data.len()) };
        true
    }

    /// Copies from `offset` into `out`. False, and nothing done, out of range. Others may write
    /// meanwhile: the bytes are whatever was there, and may be checked only after the copy.
    #[must_use]
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) -> bool {
        if !self.fits(offset, out.len()) {
            return false;
        }
        // SAFETY: the source is inside our mapping, the target is a live slice, and they are apart.
        unsafe {
            core::ptr::copy_nonoverlapping(self.base.add(offset), out.as_mut_ptr(), out.len());
        }
        true
    }

    /// Lets the kernel read `len` bytes of a file from `position` on to `offset`, as far as it has
    /// them at hand (`RWF_NOWAIT`). `EINVAL` out of range or if mapped read-only; else as
    /// preadv2(2), `EAGAIN` where it would have to wait.
    pub fn read_file(
        &self,
        offset: usize,
        len: usize,
        file: RawFd,
        position: u64,
    ) -> Result<usize> {
        if !self.writable || !self.fits(offset, len) {
            return Err(Errno::EINVAL);
        }
        // SAFETY: inside the mapping.
        let base = unsafe { self.base.add(offset) };
        let place = libc::iovec { iov_base: base.cast(), iov_len: len };
        // SAFETY: the vector holds one span, inside our mapping, which the kernel writes.
        unsafe {
            sys::syscall6(
                libc::SYS_preadv2 as usize,
                file as usize,
                &raw const place as usize,
                1,
                position as usize,
                0,
                libc::RWF_NOWAIT as usize,
            )
        }
    }

    /// Sets `len` bytes at `offset` to zero. False, and nothing done, out of range or if mapped
    /// read-only.
    #[must_use]
    pub fn zero(&self, offset: usize, len: usize) -> bool {
        if !self.writable || !self.fits(offset, len) {
            return false;
        }
        // SAFETY: inside our writable mapping.
        unsafe { core::ptr::write_bytes(self.base.add(offset), 0, len) };
        true
    }

    /// Gives the memory of whole pages back to the system; they read as zero afterwards.
    pub fn punch_hole(&self, offset: usize, len: usize) -> Result<()> {
        if !self.writable || !self.fits(offset, len) {
            return Err(Errno::EINVAL);
        }
        // SAFETY: inside our shared mapping; `MADV_REMOVE` frees the pages of the file, after
        // which they read as zero, which no holder of plain references can observe: there are none.
        unsafe {
            sys::syscall4(
                libc::SYS_madvise,
                self.base as usize + offset,
                len,
                libc::MADV_REMOVE as usize,
                0,
            )
        }
        .map(drop)
    }
}

fn memory_file(name: &str, len: usize) -> Result<Fd> {
    let mut label = [0u8; 64];
    let used = name.len().min(label.len() - 1);
    label[..used].copy_from_slice(&name.as_bytes()[..used]);
    let flags = (libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) as usize;
    // SAFETY: the label ends with a 0 byte.
    let fd =
        unsafe { sys::syscall4(libc::SYS_memfd_create, label.as_ptr() as usize, flags, 0, 0) }?;
    let fd = Fd::from_raw(fd as RawFd);
    // SAFETY: touches no memory.
    unsafe { sys::syscall4(libc::SYS_ftruncate, fd.raw() as usize, len, 0, 0) }?;
    Ok(fd)
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it outlives `self`.
        let _: Result<usize> =
            unsafe { sys::syscall4(libc::SYS_munmap, self.base as usize, self.len, 0, 0) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
