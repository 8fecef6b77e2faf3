//! Thin safe wrappers over packet(7) sockets: options, binding, bursts of frames. Called by
//! `packet.rs`; [`receive`] and [`send`] run once a burst.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use haypile_shm::pool::{Frame, FramePool};

use super::check;

/// Frames that one call moves at most.
pub(crate) const BURST_MAX: usize = 32;
/// Every Ethernet type, in network byte order.
const ALL_TYPES: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Room for one control message with a `tpacket_auxdata`, in 8-byte words.
const CONTROL_WORDS: usize = 6;
/// The part of a VLAN tag that names the VLAN; the rest is a priority.
const VLAN_BITS: u16 = 0x0fff;
/// Length of a `tpacket_auxdata`, in bytes.
const AUXILIARY_LEN: usize = mem::size_of::<libc::tpacket_auxdata>();

const _: () = assert!(mem::size_of::<libc::cmsghdr>() + AUXILIARY_LEN <= CONTROL_WORDS * 8);

/// What is known of a received message.
#[derive(Copy, Clone, Default, Debug)]
pub(crate) struct Received {
    /// Bytes written to the chunk.
    pub(crate) len: usize,
    /// It was longer than the chunk.
    pub(crate) is_cut: bool,
    /// The kernel has taken a VLAN tag out of it, which named a VLAN and not a priority alone.
    pub(crate) is_of_vlan: bool,
}

/// A raw packet socket in the calling thread's network namespace, non-blocking, that receives
/// nothing until it is bound.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let raw = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: `raw` was just returned by socket(2) and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Sets an option that is a number.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = mem::size_of_val(&value) as libc::socklen_t;
    let at = (&raw const value).cast();
    // SAFETY: pointer and length describe `value`, which lives until the call returns.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, at, len) }).map(drop)
}

/// Reads an option that is a number.
pub(crate) fn option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = mem::size_of_val(&value) as libc::socklen_t;
    let at = (&raw mut value).cast();
    // SAFETY: `value` and `len` are valid for writes of the size given in `len`.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, at, &mut len) })?;
    Ok(value)
}

/// From now on every frame of the interface is received.
pub(crate) fn bind(socket: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    // SAFETY: `sockaddr_ll` is plain integers: all zeros is a valid value of it.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = ALL_TYPES;
    address.sll_ifindex = interface as libc::c_int;
    let len = mem::size_of_val(&address) as libc::socklen_t;
    let at = (&raw const address).cast();
    // SAFETY: pointer and length describe `address`, which lives until the call returns.
    check(unsafe { libc::bind(socket.as_raw_fd(), at, len) }).map(drop)
}

/// The interface that the socket is bound to; 0 = none.
pub(crate) fn bound_to(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: `sockaddr_ll` is plain integers: all zeros is a valid value of it.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    let mut len = mem::size_of_val(&address) as libc::socklen_t;
    let at = (&raw mut address).cast();
    // SAFETY: `address` and `len` are valid for writes of the size given in `len`.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), at, &mut len) })?;
    match libc::c_int::from(address.sll_family) {
        libc::AF_PACKET => Ok(address.sll_ifindex as u32),
        _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    }
}

/// Has the interface take frames for other addresses than its own, for as long as the socket lives.
pub(crate) fn be_promiscuous(socket: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    // SAFETY: `packet_mreq` is plain integers: all zeros is a valid value of it.
    let mut request: libc::packet_mreq = unsafe { mem::zeroed() };
    request.mr_ifindex = interface as libc::c_int;
    request.mr_type = libc::PACKET_MR_PROMISC as libc::c_ushort;
    let len = mem::size_of_val(&request) as libc::socklen_t;
    let (level, option) = (libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP);
    let at = (&raw const request).cast();
    // SAFETY: pointer and length describe `request`, which lives until the call returns.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, at, len) }).map(drop)
}

/// Frames that the socket had no room for since the last call.
pub(crate) fn drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = mem::size_of_val(&statistics) as libc::socklen_t;
    let (level, option) = (libc::SOL_PACKET, libc::PACKET_STATISTICS);
    let at = (&raw mut statistics).cast();
    // SAFETY: `statistics` and `len` are valid for writes of the size given in `len`.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, at, &mut len) })?;
    Ok(statistics.tp_drops)
}

/// Receives a message into each of the first [`BURST_MAX`] frames, `offset` bytes into its chunk,
/// until no more wait; returns how many came.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    pool: &mut FramePool,
    frames: &mut [Frame],
    offset: usize,
    out: &mut [Received; BURST_MAX],
) -> io::Result<usize> {
    // SAFETY: both are plain integers and nullable pointers: all zeros is a valid value of them.
    let mut vectors: [libc::iovec; BURST_MAX] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut messages: [libc::mmsghdr; BURST_MAX] = unsafe { mem::zeroed() };
    let mut controls = [[0u64; CONTROL_WORDS]; BURST_MAX];
    let count = frames.len().min(BURST_MAX);
    for (index, frame) in frames.iter_mut().take(count).enumerate() {
        let buffer = pool.bytes_mut(frame).get_mut(offset..).unwrap_or_default();
        vectors[index].iov_base = buffer.as_mut_ptr().cast();
        vectors[index].iov_len = buffer.len();
        let header = &mut messages[index].msg_hdr;
        header.msg_iov = &mut vectors[index];
        header.msg_iovlen = 1;
        header.msg_control = controls[index].as_mut_ptr().cast();
        header.msg_controllen = (CONTROL_WORDS * 8) as _;
    }
    let flags = libc::MSG_DONTWAIT as _;
    let at = messages.as_mut_ptr();
    // SAFETY: the messages name, each with its length, one chunk that the caller owns and lends us
    // (the frames are distinct, so the chunks are) and one control buffer; all live until the call
    // returns, and nothing else looks at them meanwhile. No time-out is passed.
    let received = check(unsafe {
        libc::recvmmsg(socket.as_raw_fd(), at, count as u32, flags, std::ptr::null_mut())
    })? as usize;
    for index in 0..received.min(count) {
        let header = &messages[index].msg_hdr;
        out[index] = Received {
            len: messages[index].msg_len as usize,
            is_cut: header.msg_flags & libc::MSG_TRUNC != 0,
            is_of_vlan: vlan(&controls[index], header.msg_controllen as usize) != 0,
        };
    }
    Ok(received)
}

/// The VLAN of a frame by the `tpacket_auxdata` that is its only control message; 0 without a tag, and for one that
/// names a priority alone.
fn vlan(words: &[u64; CONTROL_WORDS], len: usize) -> u16 {
    // A cmsghdr is a length, a level and a type; the data follow, whose first word is the status.
    let header_len = mem::size_of::<libc::cmsghdr>();
    let mut bytes = [0u8; CONTROL_WORDS * 8];
    for (target, word) in bytes.chunks_exact_mut(8).zip(words) {
        target.copy_from_slice(&word.to_ne_bytes());
    }
    let word = |at: usize| {
        let part = bytes.get(at..at + 4).unwrap_or_default();
        part.try_into().map_or(0, u32::from_ne_bytes)
    };
    let (level, kind) = (word(header_len - 8), word(header_len - 4));
    let is_ours = level == libc::SOL_PACKET as u32 && kind == libc::PACKET_AUXDATA as u32;
    let tag_at = header_len + mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tci);
    let tag = bytes.get(tag_at..tag_at + 2).unwrap_or_default();
    let tag = tag.try_into().map_or(0, u16::from_ne_bytes);
    let has_tag = word(header_len) & libc::TP_STATUS_VLAN_VALID != 0;
    if len >= header_len + AUXILIARY_LEN && is_ours && has_tag { tag & VLAN_BITS } else { 0 }
}

/// Sends the given messages, [`BURST_MAX`] at most; returns how many were taken. An error is that of
/// the first one.
pub(crate) fn send(socket: BorrowedFd<'_>, frames: &[&[u8]]) -> io::Result<usize> {
    // SAFETY: both are plain integers and nullable pointers: all zeros is a valid value of them.
    let mut vectors: [libc::iovec; BURST_MAX] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut messages: [libc::mmsghdr; BURST_MAX] = unsafe { mem::zeroed() };
    let count = frames.len().min(BURST_MAX);
    for (index, bytes) in frames.iter().take(count).enumerate() {
        vectors[index].iov_base = bytes.as_ptr().cast_mut().cast();
        vectors[index].iov_len = bytes.len();
        messages[index].msg_hdr.msg_iov = &mut vectors[index];
        messages[index].msg_hdr.msg_iovlen = 1;
    }
    let flags = libc::MSG_DONTWAIT as _;
    // SAFETY: the messages name, each with its length, one slice that is only read and lives until
    // the call returns.
    let sent = check(unsafe {
        libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count as u32, flags)
    })?;
    Ok(sent as usize)
}
