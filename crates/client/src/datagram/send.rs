//! Sending datagrams: who takes one, what it must not be, and the wait for room.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use haypile_shm::datagram::record_bytes;
use haypile_shm::messages::RequestBody;
use haypile_shm::stream::{WriteOutcome, status};
use haypile_shm::sys;
use haypile_shm::{CHUNK_SIZE, DatagramHeader, Errno};

use super::control::SendControl;
use super::routes::{self, Route};
use super::{Doubt, World, bind_implicitly};
use crate::addresses::to_service;
use crate::entry::{Phase, Pinned, flag};
use crate::errno::{SERVICE_GONE, TO_KERNEL};
use crate::memory::Record;
use crate::stream_io::{self, Wait};

/// Largest payloads over IPv4 and IPv6: 65535 bytes less the headers that count.
const PAYLOAD_MAX_V4: usize = 65_507;
const PAYLOAD_MAX_V6: usize = 65_527;
/// Bytes of IP and UDP headers.
const HEADERS_V4: usize = 28;
const HEADERS_V6: usize = 48;
/// Most datagrams of one payload (`UDP_SEGMENT`).
const SEGMENTS_MAX: usize = 128;
/// How long the memory that there is may take to be granted, even for a call that does not block.
const GRANT_US: u64 = 100_000;

/// Data that `UDP_CORK` or `MSG_MORE` holds back.
#[derive(Debug)]
pub(crate) struct Cork {
    header: DatagramHeader,
    data: Vec<u8>,
}

/// sendmsg(2) and its family on a UDP socket.
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn send_to(
    fd: RawFd,
    data: &[IoSlice<'_>],
    flags: i32,
    remote: Option<SocketAddr>,
    control: &SendControl,
) -> Result<usize, Errno> {
    let socket = stream_io::connection(fd)?;
    // IPv6 sockets ignore the flag, as on Linux.
    if flags & libc::MSG_OOB != 0 && socket.domain() == libc::AF_INET {
        return Err(Errno::EOPNOTSUPP);
    }
    let len: usize = data.iter().map(|part| part.len()).sum();
    if len > usize::from(u16::MAX) {
        return Err(Errno::EMSGSIZE);
    }
    let blocking = flags & libc::MSG_DONTWAIT == 0 && !socket.has(flag::NONBLOCKING);
    let mut doubt = Doubt::default();
    loop {
        match try_send(&socket, fd, data, flags, remote, control) {
            Err(SERVICE_GONE) if is_lost(&socket) => {
                // As a wait for room: the server may be given some seconds before it is started again.
                let deadline_ns = match socket.send_timeout_us.load(Ordering::Relaxed) {
                    0 => None,
                    us => Some(sys::clock_monotonic_ns().saturating_add(us.saturating_mul(1000))),
                };
                super::come_back(&socket, fd, blocking, deadline_ns)?;
            }
            Err(SERVICE_GONE) if blocking && doubt.waits() => {}
            other => return other,
        }
    }
}

/// Whether the server of a socket has died.
fn is_lost(socket: &Pinned) -> bool {
    socket.stream().is_some_and(|record| super::has_lost_server(socket, &record))
}

/// `SERVICE_GONE` where the server is dead.
fn try_send(
    socket: &Pinned,
    fd: RawFd,
    data: &[IoSlice<'_>],
    flags: i32,
    remote: Option<SocketAddr>,
    control: &SendControl,
) -> Result<usize, Errno> {
    let len: usize = data.iter().map(|part| part.len()).sum();
    let route = choose(socket, fd, remote)?;
    check_source(control)?;
    let Some(stream) = socket.stream() else { return Err(Errno::EAGAIN) };
    check_state(socket, &stream)?;
    let header = DatagramHeader {
        len: len as u16,
        remote: remote.map(to_service),
        local: control.source.map(|ip| SocketAddr::new(ip.to_canonical(), 0)),
        hop_limit: control.hop_limit,
        type_of_service: control.type_of_service,
        segment_size: match control.segment_size {
            Some(size) => size,
            None => socket.datagram.segment.load(Ordering::Relaxed) as u16,
        },
        ..DatagramHeader::default()
    };
    let corks = flags & libc::MSG_MORE != 0 || socket.datagram.corked.load(Ordering::Relaxed);
    if corks || socket.has(flag::MORE) {
        return cork(socket, fd, &stream, &header, data, flags, corks);
    }
    check_size(socket, &stream, &header, route)?;
    write(socket, fd, &stream, &header, data, flags)?;
    Ok(len)
}

/// A source address that the program chooses must be one of ours.
fn check_source(control: &SendControl) -> Result<(), Errno> {
    let Some(source) = control.source else { return Ok(()) };
    match routes::find(source)? {
        Route::Haypile(answer) if answer.local => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

/// Finds out that the datagram is Haypile's, and gives the socket a record if it has none.
fn choose(socket: &Pinned, fd: RawFd, remote: Option<SocketAddr>) -> Result<Option<Route>, Errno> {
    let Some(remote) = remote else {
        return match socket.world() {
            World::Kernel => Err(TO_KERNEL),
            _ if socket.phase() == Phase::Stream => Ok(None),
            _ if socket.has(flag::HALFWAY) => Err(SERVICE_GONE),
            _ => Err(Errno::EDESTADDRREQ),
        };
    };
    if remote.is_ipv6() && socket.domain() == libc::AF_INET {
        return Err(Errno::EAFNOSUPPORT);
    }
    if remote.port() == 0 {
        return Err(Errno::EINVAL);
    }
    if remote.ip().to_canonical().is_ipv4() && socket.datagram.v6only.load(Ordering::Relaxed) {
        return Err(Errno::ENETUNREACH);
    }
    let by_kernel = remote.ip().to_canonical().is_multicast()
        && socket.datagram.multicast_by_kernel.load(Ordering::Relaxed);
    let route = if by_kernel { Route::Kernel } else { routes::find(remote.ip())? };
    let Route::Haypile(answer) = route else {
        if socket.has_record() && !socket.has(flag::DUAL) && !socket.has(flag::KERNEL_PEER) {
            // Bound to an address of ours, or connected: no way leads from there to the kernel.
            return Err(Errno::ENETUNREACH);
        }
        socket.set(flag::KERNEL_NAMED);
        return Err(TO_KERNEL);
    };
    if answer.broadcast && !socket.datagram.broadcast.load(Ordering::Relaxed) {
        return Err(Errno::EACCES);
    }
    if !socket.has_record() {
        bind_implicitly(socket, fd)?;
    }
    Ok(Some(route))
}

fn check_state(socket: &Pinned, stream: &Record) -> Result<(), Errno> {
    match stream.take_error() {
        0 => {}
        // Not of the socket, which lives on.
        _ if stream.memory.is_past() => {}
        errno => return Err(Errno(errno)),
    }
    let state = stream.status();
    if state & status::TX_SHUT != 0 || socket.has(flag::SHUT_WRITE) {
        return Err(Errno::EPIPE);
    }
    if state & status::CLOSED != 0 || stream.memory.is_past() {
        return Err(SERVICE_GONE);
    }
    Ok(())
}

/// What the service would refuse later, when nobody waits for its answer.
fn check_size(
    socket: &Pinned,
    stream: &Record,
    header: &DatagramHeader,
    route: Option<Route>,
) -> Result<(), Errno> {
    let len = usize::from(header.len);
    let destination = header.remote.or_else(|| stream.remote_address()).map(|one| one.ip());
    let v6 = matches!(destination, Some(IpAddr::V6(_)));
    let (most, headers) =
        if v6 { (PAYLOAD_MAX_V6, HEADERS_V6) } else { (PAYLOAD_MAX_V4, HEADERS_V4) };
    if len > most {
        return Err(Errno::EMSGSIZE);
    }
    let segment = usize::from(header.segment_size);
    let whole = matches!(
        socket.datagram.mtu_discover.load(Ordering::Relaxed),
        libc::IP_PMTUDISC_DO | libc::IP_PMTUDISC_PROBE | IP_PMTUDISC_INTERFACE
    );
    // Below the least MTU of IPv6 nothing is too large.
    let piece = if segment > 0 && segment < len { segment } else { len };
    let cut = piece < len;
    if cut && len.div_ceil(segment) > SEGMENTS_MAX {
        return Err(Errno::EINVAL);
    }
    if (!whole && !cut) || piece + headers <= 1280 {
        return Ok(());
    }
    let route = match (route, destination) {
        (Some(route), _) => route,
        (None, Some(destination)) => routes::find(destination)?,
        (None, None) => return Ok(()),
    };
    match route {
        Route::Haypile(answer) if piece + headers > answer.mtu as usize => {
            Err(if cut { Errno::EINVAL } else { Errno::EMSGSIZE })
        }
        _ => Ok(()),
    }
}

/// Named here because libc has it for some targets only.
const IP_PMTUDISC_INTERFACE: i32 = 4;

/// Adds to what is held back, and sends it if nothing more is to come.
fn cork(
    socket: &Pinned,
    fd: RawFd,
    stream: &Record,
    header: &DatagramHeader,
    data: &[IoSlice<'_>],
    flags: i32,
    goes_on: bool,
) -> Result<usize, Errno> {
    let mut place = socket.datagram.cork.lock()?;
    // The first part says where everything goes.
    let held = place.get_or_insert_with(|| Cork { header: *header, data: Vec::new() });
    if held.data.len() + usize::from(header.len) > PAYLOAD_MAX_V6 {
        return Err(Errno::EMSGSIZE);
    }
    for part in data {
        held.data.extend_from_slice(part);
    }
    socket.set(flag::MORE);
    if goes_on {
        return Ok(header.len.into());
    }
    let whole = place.take();
    drop(place);
    socket.clear(flag::MORE);
    if let Some(whole) = whole {
        send_held(socket, fd, stream, whole, flags)?;
    }
    Ok(header.len.into())
}

fn send_held(
    socket: &Pinned,
    fd: RawFd,
    stream: &Record,
    held: Cork,
    flags: i32,
) -> Result<(), Errno> {
    let header = DatagramHeader { len: held.data.len() as u16, ..held.header };
    check_size(socket, stream, &header, None)?;
    write(socket, fd, stream, &header, &[IoSlice::new(&held.data)], flags)
}

/// `UDP_CORK` was taken off: what it held back goes.
pub(crate) fn uncork(socket: &Pinned) -> Result<(), Errno> {
    let held = socket.datagram.cork.lock()?.take();
    socket.clear(flag::MORE);
    let (Some(held), Some(stream)) = (held, socket.stream()) else { return Ok(()) };
    send_held(socket, socket.number(), &stream, held, 0)
}

/// Puts a datagram into the FIFO, waiting for room if the socket may.
fn write(
    socket: &Pinned,
    fd: RawFd,
    stream: &Record,
    header: &DatagramHeader,
    data: &[IoSlice<'_>],
    flags: i32,
) -> Result<(), Errno> {
    let blocking = flags & libc::MSG_DONTWAIT == 0 && !socket.has(flag::NONBLOCKING);
    let need = header.record_bytes() as u64;
    debug_assert_eq!(need as usize, record_bytes(header.len.into()));
    let mut wait: Option<Wait<'_>> = None;
    let mut granted: Option<Wait<'_>> = None;
    loop {
        let outcome = stream
            .write_record(header, data, &*stream.memory)
            .map_err(|error| stream.errno_of(error))?;
        report(socket, stream, &outcome)?;
        if outcome.bytes > 0 {
            return Ok(());
        }
        let waiting = if outcome.room_beyond && !blocking {
            match &mut granted {
                Some(granted) => granted,
                None => granted.insert(Wait::until(socket, fd, GRANT_US)?),
            }
        } else if blocking {
            match &mut wait {
                Some(wait) => wait,
                None => wait.insert(Wait::new(socket, fd, &socket.send_timeout_us)?),
            }
        } else {
            return Err(Errno::EAGAIN);
        };
        let ended = status::CLOSED | status::TX_SHUT;
        waiting.once(stream, || {
            stream.writable() >= need || stream.status() & ended != 0 || stream.has_error()
        })?;
        check_state(socket, stream)?;
    }
}

fn report(socket: &Pinned, stream: &Record, outcome: &WriteOutcome) -> Result<(), Errno> {
    if outcome.kick {
        socket.tell(RequestBody::KickTx)?;
    }
    let left = stream.writable();
    let runs_low = left < CHUNK_SIZE as u64 / 4 && stream.tx_room() > left;
    if outcome.want || outcome.bytes > 0 && runs_low && stream.want_tx() {
        socket.tell(RequestBody::WantTx)?;
    }
    Ok(())
}

/// write(2) and the like: to the connected peer.
pub(crate) fn send(fd: RawFd, data: &[IoSlice<'_>], flags: i32) -> Result<usize, Errno> {
    send_to(fd, data, flags, None, &SendControl::default())
}
