//! Sockets: making, naming, options, messages with descriptors, Unix paths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;

use super::{Errno, Fd, Result, syscall6};

/// Bytes of the largest address here, `sockaddr_un`.
pub const ADDRESS_BYTES: usize = core::mem::size_of::<libc::sockaddr_un>();
/// Descriptors that one received message may carry.
pub const MESSAGE_FDS: usize = 8;

const CONTROL_HEADER: usize = core::mem::size_of::<libc::cmsghdr>();
const CONTROL_BYTES: usize = CONTROL_HEADER + MESSAGE_FDS * 4;

/// Space for ancillary data, aligned as the kernel wants it.
#[repr(C, align(8))]
struct ControlBuffer([u8; CONTROL_BYTES]);

fn call(number: libc::c_long, fd: RawFd, b: usize, c: usize, d: usize) -> Result<usize> {
    // SAFETY: private; each caller passes pointers to live memory of the length it names.
    unsafe { syscall6(number as usize, fd as usize, b, c, d, 0, 0) }
}

/// A new socket.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<Fd> {
    call(libc::SYS_socket, domain, kind as usize, protocol as usize, 0)
        .map(|fd| Fd::from_raw(fd as RawFd))
}

fn socketpair(kind: i32) -> Result<(Fd, Fd)> {
    let mut fds = [-1i32; 2];
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    call(libc::SYS_socketpair, libc::AF_UNIX, kind as usize, 0, fds.as_mut_ptr() as usize)?;
    Ok((Fd::from_raw(fds[0]), Fd::from_raw(fds[1])))
}

/// A pair of connected `SOCK_SEQPACKET` sockets, non-blocking, close-on-exec.
pub fn socketpair_seqpacket() -> Result<(Fd, Fd)> {
    socketpair(libc::SOCK_SEQPACKET)
}

/// A pair of connected `SOCK_STREAM` sockets, non-blocking, close-on-exec.
pub fn socketpair_stream() -> Result<(Fd, Fd)> {
    socketpair(libc::SOCK_STREAM)
}

/// Sends bytes; `flags` are `MSG_*`.
pub fn send(fd: RawFd, data: &[u8], flags: i32) -> Result<usize> {
    call(libc::SYS_sendto, fd, data.as_ptr() as usize, data.len(), flags as usize)
}

/// Receives bytes; `flags` are `MSG_*`.
pub fn recv(fd: RawFd, out: &mut [u8], flags: i32) -> Result<usize> {
    call(libc::SYS_recvfrom, fd, out.as_mut_ptr() as usize, out.len(), flags as usize)
}

fn message_header(vector: &mut libc::iovec, control: *mut u8, control_len: usize) -> libc::msghdr {
    // SAFETY: `msghdr` is integers and pointers; all zero is a valid value of it.
    let mut header: libc::msghdr = unsafe { core::mem::zeroed() };
    header.msg_iov = core::ptr::from_mut(vector);
    header.msg_iovlen = 1;
    header.msg_control = control.cast();
    header.msg_controllen = control_len as _;
    header
}

/// Sends one message with up to [`MESSAGE_FDS`] descriptors (`SCM_RIGHTS`), never raising SIGPIPE.
/// `flags` are further `MSG_*`.
pub fn send_fds(fd: RawFd, data: &[u8], fds: &[RawFd], flags: i32) -> Result<usize> {
    if fds.len() > MESSAGE_FDS {
        return Err(Errno::EINVAL);
    }
    let mut control = ControlBuffer([0; CONTROL_BYTES]);
    let len = CONTROL_HEADER + fds.len() * 4;
    control.0[..8].copy_from_slice(&(len as u64).to_ne_bytes());
    control.0[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.0[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    for (index, fd) in fds.iter().enumerate() {
        let at = CONTROL_HEADER + index * 4;
        control.0[at..at + 4].copy_from_slice(&fd.to_ne_bytes());
    }
    let mut vector = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let control_len = if fds.is_empty() { 0 } else { len };
    let header = message_header(&mut vector, control.0.as_mut_ptr(), control_len);
    call(
        libc::SYS_sendmsg,
        fd,
        core::ptr::from_ref(&header) as usize,
        (flags | libc::MSG_NOSIGNAL) as usize,
        0,
    )
}

/// What [`recv_fds`] received.
#[derive(Debug)]
pub struct ReceivedFds {
    /// Bytes of the message.
    pub len: usize,
    /// Descriptors that came with it, close-on-exec, in order.
    pub fds: [Option<Fd>; MESSAGE_FDS],
    /// The message or its descriptors were longer than there was room for.
    pub truncated: bool,
}

/// Receives one message and its descriptors. `flags` are further `MSG_*`. A length of 0 on a
/// connected socket means that the other end is gone.
pub fn recv_fds(fd: RawFd, out: &mut [u8], flags: i32) -> Result<ReceivedFds> {
    let mut control = ControlBuffer([0; CONTROL_BYTES]);
    let mut vector = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
    let mut header = message_header(&mut vector, control.0.as_mut_ptr(), CONTROL_BYTES);
    let flags = (flags | libc::MSG_CMSG_CLOEXEC) as usize;
    let len = call(libc::SYS_recvmsg, fd, core::ptr::from_mut(&mut header) as usize, flags, 0)?;
    let filled = header.msg_controllen.min(CONTROL_BYTES);
    Ok(ReceivedFds {
        len,
        fds: control_fds(&control.0[..filled]),
        truncated: header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
    })
}

/// Takes every descriptor out of ancillary data, so that none leaks.
fn control_fds(control: &[u8]) -> [Option<Fd>; MESSAGE_FDS] {
    let mut fds = [const { None }; MESSAGE_FDS];
    let mut places = fds.iter_mut();
    let mut rest = control;
    while rest.len() >= CONTROL_HEADER {
        let word =
            |at: usize| i32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let len = (word(0) as u32 as usize).clamp(CONTROL_HEADER, rest.len());
        if word(8) == libc::SOL_SOCKET && word(12) == libc::SCM_RIGHTS {
            for bytes in rest[CONTROL_HEADER..len].chunks_exact(4) {
                let fd = Fd::from_raw(i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
                if let Some(place) = places.next() {
                    *place = Some(fd);
                }
            }
        }
        rest = &rest[len.next_multiple_of(8).min(rest.len())..];
    }
    fds
}

/// Memory, in bytes, that messages sent on a Unix socket take until the other end has received them.
pub fn unreceived(fd: RawFd) -> Result<usize> {
    let mut bytes = 0i32;
    call(libc::SYS_ioctl, fd, libc::TIOCOUTQ as usize, (&raw mut bytes) as usize, 0)?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Sets an option given as bytes.
pub fn setsockopt(fd: RawFd, level: i32, name: i32, value: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads `value.len()` bytes.
    unsafe {
        syscall6(
            libc::SYS_setsockopt as usize,
            fd as usize,
            level as usize,
            name as usize,
            value.as_ptr() as usize,
            value.len(),
            0,
        )
    }
    .map(drop)
}

/// Reads an option into `value`; returns its length.
pub fn getsockopt(fd: RawFd, level: i32, name: i32, value: &mut [u8]) -> Result<usize> {
    let mut len = value.len() as u32;
    // SAFETY: the kernel writes at most `len` bytes to `value`, and one u32 to `len`.
    unsafe {
        syscall6(
            libc::SYS_getsockopt as usize,
            fd as usize,
            level as usize,
            name as usize,
            value.as_mut_ptr() as usize,
            core::ptr::from_mut(&mut len) as usize,
            0,
        )
    }?;
    Ok((len as usize).min(value.len()))
}

fn integer_option(fd: RawFd, name: i32) -> Result<i32> {
    let mut value = [0u8; 4];
    getsockopt(fd, libc::SOL_SOCKET, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// `SO_COOKIE`: the socket's number in its kernel, the same for every duplicate.
pub fn so_cookie(fd: RawFd) -> Result<u64> {
    let mut value = [0u8; 8];
    getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

/// `SO_NETNS_COOKIE`: the number of the network namespace that the socket was made in (for an
/// accepted Unix socket: its client's).
pub fn network_namespace(fd: RawFd) -> Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let mut value = [0u8; 8];
    getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

/// `SO_DOMAIN`.
pub fn so_domain(fd: RawFd) -> Result<i32> {
    integer_option(fd, libc::SO_DOMAIN)
}

/// `SO_TYPE`.
pub fn so_type(fd: RawFd) -> Result<i32> {
    integer_option(fd, libc::SO_TYPE)
}

/// `SO_PROTOCOL`.
pub fn so_protocol(fd: RawFd) -> Result<i32> {
    integer_option(fd, libc::SO_PROTOCOL)
}

/// Process, user and group of the other end of a Unix socket, as they were when it connected.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id, in the namespace of the reader.
    pub pid: i32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// `SO_PEERCRED`.
pub fn peer_credentials(fd: RawFd) -> Result<PeerCredentials> {
    let mut value = [0u8; 12];
    getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut value)?;
    let word = |at: usize| [value[at], value[at + 1], value[at + 2], value[at + 3]];
    Ok(PeerCredentials {
        pid: i32::from_ne_bytes(word(0)),
        uid: u32::from_ne_bytes(word(4)),
        gid: u32::from_ne_bytes(word(8)),
    })
}

/// Lays an IP address out as `sockaddr_in` or `sockaddr_in6`; returns its length.
pub fn encode_address(address: &SocketAddr, out: &mut [u8; ADDRESS_BYTES]) -> usize {
    out.fill(0);
    out[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            out[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            out[4..8].copy_from_slice(&v4.ip().octets());
            16
        }
        SocketAddr::V6(v6) => {
            out[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            out[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
            out[8..24].copy_from_slice(&v6.ip().octets());
            out[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            28
        }
    }
}

/// Reads a `sockaddr_in` or `sockaddr_in6`; `None` for other families and short ones. Flow
/// information and scope are dropped.
pub fn decode_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let ip: IpAddr = match family {
        libc::AF_INET => {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Ipv4Addr::from(octets).into()
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn with_address(number: libc::c_long, fd: RawFd, address: &SocketAddr) -> Result<()> {
    let mut bytes = [0; ADDRESS_BYTES];
    let len = encode_address(address, &mut bytes);
    call(number, fd, bytes.as_ptr() as usize, len, 0).map(drop)
}

/// Binds to an IP address.
pub fn bind(fd: RawFd, address: &SocketAddr) -> Result<()> {
    with_address(libc::SYS_bind, fd, address)
}

/// Connects to an IP address.
pub fn connect(fd: RawFd, address: &SocketAddr) -> Result<()> {
    with_address(libc::SYS_connect, fd, address)
}

/// Dissolves the association of a datagram socket (`AF_UNSPEC`).
pub fn disconnect(fd: RawFd) -> Result<()> {
    let nothing = [0u8; 16];
    call(libc::SYS_connect, fd, nothing.as_ptr() as usize, nothing.len(), 0).map(drop)
}

/// Listens.
pub fn listen(fd: RawFd, backlog: i32) -> Result<()> {
    call(libc::SYS_listen, fd, backlog as usize, 0, 0).map(drop)
}

/// Accepts a connection; `flags` are `SOCK_*`. The address is `None` for other families than IP.
pub fn accept4(fd: RawFd, flags: i32) -> Result<(Fd, Option<SocketAddr>)> {
    let mut bytes = [0u8; ADDRESS_BYTES];
    let mut len = ADDRESS_BYTES as u32;
    let new = call(
        libc::SYS_accept4,
        fd,
        bytes.as_mut_ptr() as usize,
        core::ptr::from_mut(&mut len) as usize,
        flags as usize,
    )?;
    let filled = (len as usize).min(ADDRESS_BYTES);
    Ok((Fd::from_raw(new as RawFd), decode_address(&bytes[..filled])))
}

/// Shuts a direction down (`SHUT_*`).
pub fn shutdown(fd: RawFd, how: i32) -> Result<()> {
    call(libc::SYS_shutdown, fd, how as usize, 0, 0).map(drop)
}

fn name_of(number: libc::c_long, fd: RawFd) -> Result<Option<SocketAddr>> {
    let mut bytes = [0u8; ADDRESS_BYTES];
    let mut len = ADDRESS_BYTES as u32;
    let (address, len_at) = (bytes.as_mut_ptr() as usize, core::ptr::from_mut(&mut len) as usize);
    call(number, fd, address, len_at, 0)?;
    Ok(decode_address(&bytes[..(len as usize).min(ADDRESS_BYTES)]))
}

/// The socket's own IP address; `None` for other families.
pub fn getsockname(fd: RawFd) -> Result<Option<SocketAddr>> {
    name_of(libc::SYS_getsockname, fd)
}

/// The IP address of the other end; `None` for other families.
pub fn getpeername(fd: RawFd) -> Result<Option<SocketAddr>> {
    name_of(libc::SYS_getpeername, fd)
}

fn unix_address(path: &[u8], out: &mut [u8; ADDRESS_BYTES]) -> Result<usize> {
    // One byte stays 0, to end the path.
    if path.is_empty() || path.len() > ADDRESS_BYTES - 3 {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    out.fill(0);
    out[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
    out[2..2 + path.len()].copy_from_slice(path);
    // Abstract names (leading 0) have no end mark.
    Ok(2 + path.len() + usize::from(path[0] != 0))
}

/// Binds a Unix socket to a path (a leading 0 byte: an abstract name).
pub fn unix_bind(fd: RawFd, path: &[u8]) -> Result<()> {
    let mut bytes = [0; ADDRESS_BYTES];
    let len = unix_address(path, &mut bytes)?;
    call(libc::SYS_bind, fd, bytes.as_ptr() as usize, len, 0).map(drop)
}

/// Connects a Unix socket to a path (a leading 0 byte: an abstract name).
pub fn unix_connect(fd: RawFd, path: &[u8]) -> Result<()> {
    let mut bytes = [0; ADDRESS_BYTES];
    let len = unix_address(path, &mut bytes)?;
    call(libc::SYS_connect, fd, bytes.as_ptr() as usize, len, 0).map(drop)
}

/// A non-blocking `SOCK_SEQPACKET` listener at a path; mode and directory are the caller's care.
pub fn unix_listen_seqpacket(path: &[u8], backlog: i32) -> Result<Fd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let fd = socket(libc::AF_UNIX, kind, 0)?;
    unix_bind(fd.raw(), path)?;
    listen(fd.raw(), backlog)?;
    Ok(fd)
}

/// A blocking `SOCK_SEQPACKET` connection to a path.
pub fn unix_connect_seqpacket(path: &[u8]) -> Result<Fd> {
    let fd = socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0)?;
    unix_connect(fd.raw(), path)?;
    Ok(fd)
}

/// A non-blocking `SOCK_DGRAM` socket at a path, which takes datagrams from everyone who may write there.
pub fn unix_bind_datagram(path: &[u8]) -> Result<Fd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let fd = socket(libc::AF_UNIX, kind, 0)?;
    unix_bind(fd.raw(), path)?;
    Ok(fd)
}

/// A blocking `SOCK_DGRAM` socket whose datagrams go to the one at a path, also when the path leads there no more.
pub fn unix_connect_datagram(path: &[u8]) -> Result<Fd> {
    let fd = socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)?;
    unix_connect(fd.raw(), path)?;
    Ok(fd)
}

/// Whether a `SOCK_SEQPACKET` listener is at a path, without waiting for room in its queue.
///
/// # Errors
/// `ECONNREFUSED` and `ENOENT` when none is; others when it cannot be told.
pub fn unix_reach_seqpacket(path: &[u8]) -> Result<()> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let fd = socket(libc::AF_UNIX, kind, 0)?;
    match unix_connect(fd.raw(), path) {
        Err(Errno::EAGAIN) => Ok(()),
        reached => reached,
    }
}
