//! Buffers of the application as Rust slices: single buffers, `iovec` arrays, addresses.
//!
//! All unsafe reading of application memory is here. Pointers into the first page or the kernel's
//! half answer EFAULT. Any other bad pointer faults, where the kernel would answer EFAULT: finding
//! that out beforehand takes a system call each time.

use core::ffi::c_int;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;

use haypile_client::Errno;
use haypile_shm::sys::{ADDRESS_BYTES, decode_address, encode_address};

/// Most entries of an `iovec` array (`UIO_MAXIOV`).
const VECTOR_MAX: usize = 1024;
/// Most bytes of one call (the kernel's `MAX_RW_COUNT`).
pub const CALL_MAX: usize = 0x7fff_f000;

/// The first page is never mapped (`vm.mmap_min_addr`).
const FIRST_ADDRESS: usize = 4096;

/// Whether a program can have memory there at all.
fn is_possible(data: *const u8, len: usize) -> bool {
    let end = data.addr().checked_add(len);
    data.addr() >= FIRST_ADDRESS && end.is_some_and(|end| end <= isize::MAX as usize)
}

/// Bytes to send.
///
/// # Safety
/// `data` is valid for reads of `len` bytes for as long as the call runs, or null.
pub unsafe fn bytes<'a>(data: *const u8, len: usize) -> Result<&'a [u8], Errno> {
    if len == 0 {
        return Ok(&[]);
    }
    let len = len.min(CALL_MAX);
    if !is_possible(data, len) {
        return Err(Errno::EFAULT);
    }
    // SAFETY: the caller's promise; the length is held below isize::MAX.
    Ok(unsafe { core::slice::from_raw_parts(data, len) })
}

/// Room to receive into.
///
/// # Safety
/// `data` is valid for writes of `len` bytes for as long as the call runs, or null.
pub unsafe fn bytes_mut<'a>(data: *mut u8, len: usize) -> Result<&'a mut [u8], Errno> {
    if len == 0 {
        return Ok(&mut []);
    }
    let len = len.min(CALL_MAX);
    if !is_possible(data, len) {
        return Err(Errno::EFAULT);
    }
    // SAFETY: the caller's promise; the length is held below isize::MAX.
    Ok(unsafe { core::slice::from_raw_parts_mut(data, len) })
}

fn vector_len(count: usize) -> Result<usize, Errno> {
    if count > VECTOR_MAX { Err(Errno::EINVAL) } else { Ok(count) }
}

/// Fails if an entry claims more bytes than there can be (readv(2)).
///
/// # Safety
/// `vector` points to `count` entries.
unsafe fn check_lengths(vector: *const libc::iovec, count: usize) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    let fits = (0..count).all(|at| unsafe { (*vector.add(at)).iov_len } <= isize::MAX as usize);
    if fits { Ok(()) } else { Err(Errno::EINVAL) }
}

/// An `iovec` array to send from.
///
/// # Safety
/// `vector` points to `count` entries, each valid for reads.
pub unsafe fn slices<'a>(
    vector: *const libc::iovec,
    count: usize,
) -> Result<&'a [IoSlice<'a>], Errno> {
    match vector_len(count)? {
        0 => Ok(&[]),
        _ if vector.is_null() => Err(Errno::EFAULT),
        // SAFETY: the caller's promise; `IoSlice` has the layout of `iovec` on Unix.
        count => unsafe {
            check_lengths(vector, count)?;
            Ok(core::slice::from_raw_parts(vector.cast(), count))
        },
    }
}

/// An `iovec` array to receive into.
///
/// # Safety
/// `vector` points to `count` entries, each valid for writes and apart from the others.
pub unsafe fn slices_mut<'a>(
    vector: *const libc::iovec,
    count: usize,
) -> Result<&'a mut [IoSliceMut<'a>], Errno> {
    match vector_len(count)? {
        0 => Ok(&mut []),
        _ if vector.is_null() => Err(Errno::EFAULT),
        // SAFETY: the caller's promise; `IoSliceMut` has the layout of `iovec` on Unix. The
        // entries themselves are not written.
        count => unsafe {
            check_lengths(vector, count)?;
            Ok(core::slice::from_raw_parts_mut(vector.cast_mut().cast(), count))
        },
    }
}

/// The address family that the application names; `None` if there is no address.
///
/// # Safety
/// `address` is valid for reads of `len` bytes, or null.
pub unsafe fn family(address: *const libc::sockaddr, len: libc::socklen_t) -> Option<c_int> {
    if address.is_null() || (len as usize) < 2 {
        return None;
    }
    // SAFETY: two bytes are readable; alignment is not assumed.
    Some(c_int::from(unsafe { address.cast::<u16>().read_unaligned() }))
}

/// An IP address given by the application.
///
/// # Safety
/// `address` is valid for reads of `len` bytes, or null.
pub unsafe fn address(
    address: *const libc::sockaddr,
    len: libc::socklen_t,
) -> Result<SocketAddr, Errno> {
    if address.is_null() {
        return Err(Errno::EFAULT);
    }
    // SAFETY: the caller's promise.
    let given = unsafe { bytes(address.cast(), (len as usize).min(ADDRESS_BYTES)) }?;
    let short = match given.get(..2).map(|family| u16::from_ne_bytes([family[0], family[1]])) {
        Some(family) if i32::from(family) == libc::AF_INET => given.len() < 16,
        Some(family) if i32::from(family) == libc::AF_INET6 => given.len() < 24,
        Some(_) => return Err(Errno::EAFNOSUPPORT),
        None => true,
    };
    if short {
        return Err(Errno::EINVAL);
    }
    decode_address(given).ok_or(Errno::EINVAL)
}

/// Gives an address back as `accept`, `getsockname` and `getpeername` do: as much as there is room
/// for, and the whole length.
///
/// # Safety
/// `len` is valid or null; `out` is valid for writes of `*len` bytes, or null.
pub unsafe fn give_address(
    value: &SocketAddr,
    out: *mut libc::sockaddr,
    len: *mut libc::socklen_t,
) -> Result<(), Errno> {
    if out.is_null() {
        return Ok(());
    }
    if len.is_null() {
        return Err(Errno::EFAULT);
    }
    let mut encoded = [0u8; ADDRESS_BYTES];
    let whole = encode_address(value, &mut encoded);
    // SAFETY: the caller's promise.
    unsafe {
        let room = *len as usize;
        if room > i32::MAX as usize {
            return Err(Errno::EINVAL);
        }
        core::ptr::copy_nonoverlapping(encoded.as_ptr(), out.cast::<u8>(), room.min(whole));
        *len = whole as libc::socklen_t;
    }
    Ok(())
}
