//! Receiving datagrams, from one world or both, and the queue of errors.
//!
//! The kernel's half of a dual socket is read by the caller's own system call, straight into the
//! program's buffers: it comes as a closure. It has its turn when Haypile's queue is empty, and now
//! and then when it is not.

use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use haypile_shm::messages::{DatagramError, OPTION_BYTES, RequestBody};
use haypile_shm::stream::{RecordRead, status};
use haypile_shm::sys;
use haypile_shm::{DatagramHeader, Errno};

use super::{Doubt, World};
use crate::addresses::{to_application, to_service};
use crate::attach::Attachment;
use crate::entry::{Pinned, flag};
use crate::errno::{SERVICE_GONE, TO_KERNEL};
use crate::memory::Record;
use crate::poll::until_readable;
use crate::sleep::Sleeper;
use crate::stream_io::{self, Wait};

/// One receive in so many looks at the kernel's half first.
const KERNEL_TURN: u32 = 16;

/// The kernel's receive on the same descriptor and buffers, with these flags.
pub type KernelReceive<'a> = &'a mut dyn FnMut(i32) -> Result<usize, Errno>;

/// What a receive gave.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The kernel has received, and filled in what the caller wanted to know.
    Kernel(usize),
    /// Nothing, because reading was shut down.
    End,
    /// A datagram.
    Datagram(Arrival),
    /// An error from the error queue.
    Error(Failure),
}

/// A datagram from Haypile.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Who sent it, as the socket shows addresses.
    pub remote: Option<SocketAddr>,
    /// Bytes copied.
    pub copied: usize,
    /// Bytes it has.
    pub len: usize,
    pub(crate) header: DatagramHeader,
    pub(crate) wants: u32,
    pub(crate) domain: i32,
}

/// An entry of the error queue.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Where the datagram went, as the socket shows addresses.
    pub remote: SocketAddr,
    /// Bytes of the datagram's payload that were copied.
    pub copied: usize,
    pub(crate) error: DatagramError,
    pub(crate) domain: i32,
}

/// recvmsg(2) and its family on a UDP socket. `sleeper` is how a wait for both worlds sleeps.
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn receive_from(
    fd: RawFd,
    out: &mut [IoSliceMut<'_>],
    flags: i32,
    kernel: KernelReceive<'_>,
    sleeper: &mut dyn Sleeper,
) -> Result<Received, Errno> {
    let socket = stream_io::connection(fd)?;
    if socket.world() == World::Kernel {
        return Err(TO_KERNEL);
    }
    if flags & libc::MSG_ERRQUEUE != 0 {
        return take_error(&socket, out);
    }
    let blocking = flags & libc::MSG_DONTWAIT == 0 && !socket.has(flag::NONBLOCKING);
    let deadline_ns = match socket.receive_timeout_us.load(Ordering::Relaxed) {
        0 => None,
        limit_us => blocking.then(|| sys::clock_monotonic_ns().saturating_add(limit_us * 1000)),
    };
    let mut wait: Option<Wait<'_>> = None;
    let mut doubt = Doubt::default();
    loop {
        let Some(stream) = socket.stream() else { return Err(Errno::EAGAIN) };
        // Without a peer it would hear everybody.
        let halfway = socket.has(flag::HALFWAY);
        let lost = halfway
            || match look(&socket, &stream, out, flags, blocking, kernel) {
                Ok(Some(received)) => return Ok(received),
                Ok(None) => stream.memory.is_past(),
                Err(SERVICE_GONE) if super::has_lost_server(&socket, &stream) => true,
                Err(SERVICE_GONE) if blocking && doubt.waits() => continue,
                Err(errno) => return Err(errno),
            };
        if lost {
            drop(stream);
            wait = None;
            super::come_back(&socket, fd, blocking, deadline_ns)?;
            if socket.world() == World::Kernel {
                // The service has its address no more.
                return Err(TO_KERNEL);
            }
            continue;
        }
        if !blocking {
            return Err(Errno::EAGAIN);
        }
        if socket.world() == World::Both {
            drop(stream);
            until_readable(fd, deadline_ns, sleeper)?;
            continue;
        }
        let waiting = match &mut wait {
            Some(wait) => wait,
            None => wait.insert(Wait::new(&socket, fd, &socket.receive_timeout_us)?),
        };
        let ended = status::CLOSED | status::RX_SHUT;
        waiting.once(&stream, || {
            stream.readable() > 0 || stream.has_error() || stream.status() & ended != 0
        })?;
    }
}

/// One look at everything: an error first, then data, then the end, as on Linux.
fn look(
    socket: &Pinned,
    stream: &Record,
    out: &mut [IoSliceMut<'_>],
    flags: i32,
    blocking: bool,
    kernel: KernelReceive<'_>,
) -> Result<Option<Received>, Errno> {
    match stream.take_error() {
        0 => {}
        // Not of the socket, which lives on.
        _ if stream.memory.is_past() => {}
        errno => return Err(Errno(errno)),
    }
    let both = socket.world() == World::Both;
    let mut by_kernel = || match kernel(flags | libc::MSG_DONTWAIT) {
        Ok(bytes) => Ok(Some(Received::Kernel(bytes))),
        Err(Errno::EAGAIN) => Ok(None),
        Err(errno) => Err(errno),
    };
    let turn = socket.datagram.turn.fetch_add(1, Ordering::Relaxed);
    if both
        && turn.is_multiple_of(KERNEL_TURN)
        && let Some(received) = by_kernel()?
    {
        return Ok(Some(received));
    }
    // The state comes first: what is missing after it was ended is missing for ever.
    let state = stream.status();
    let read = if flags & libc::MSG_PEEK != 0 {
        stream.peek_record(out, &*stream.memory)
    } else {
        stream.read_record(out, &*stream.memory)
    };
    if let Some(read) = read.map_err(|error| stream.errno_of(error))? {
        return arrival(socket, &read).map(Some);
    }
    if state & status::CLOSED != 0 {
        return Err(SERVICE_GONE);
    }
    if both && let Some(received) = by_kernel()? {
        return Ok(Some(received));
    }
    let shut = state & status::RX_SHUT != 0 || socket.has(flag::SHUT_READ);
    Ok((shut && blocking).then_some(Received::End))
}

fn arrival(socket: &Pinned, read: &RecordRead) -> Result<Received, Errno> {
    if read.kick {
        match socket.tell(RequestBody::KickRx) {
            // What was read is the program's all the same.
            Err(SERVICE_GONE) => {}
            told => told?,
        }
    }
    let (domain, header) = (socket.domain(), read.header);
    Ok(Received::Datagram(Arrival {
        remote: header.remote.map(|remote| to_application(remote, domain)),
        copied: read.copied,
        len: header.len.into(),
        header,
        wants: socket.datagram.wants.load(Ordering::Relaxed),
        domain,
    }))
}

/// `MSG_ERRQUEUE`
fn take_error(socket: &Pinned, out: &mut [IoSliceMut<'_>]) -> Result<Received, Errno> {
    let queued = socket.stream().is_some_and(|one| one.status() & status::ERRORS != 0);
    let empty = if socket.world() == World::Both { TO_KERNEL } else { Errno::EAGAIN };
    if !queued {
        return Err(empty);
    }
    let (slot, generation) = socket.name();
    let attachment = socket.attachment()?;
    let reply = match attachment.ask_option(slot, generation, RequestBody::TakeDatagramError) {
        Err(Errno::EAGAIN) => return Err(empty),
        other => other?,
    };
    let error = DatagramError::decode(reply.bytes()).map_err(|_| Errno::EPROTO)?;
    let domain = socket.domain();
    let remote = to_application(to_service(error.remote), domain);
    let copied = take_payload(&attachment, (slot, generation), &error, out)?;
    Ok(Received::Error(Failure { remote, copied, error, domain }))
}

/// What an error quotes of the datagram, as much as there is room for: bytes copied. None if
/// another thread has taken an error since.
fn take_payload(
    attachment: &Attachment,
    (slot, generation): (u32, u32),
    error: &DatagramError,
    out: &mut [IoSliceMut<'_>],
) -> Result<usize, Errno> {
    let wanted = out.iter().map(|slice| slice.len()).sum::<usize>().min(error.payload_len.into());
    let mut payload = Vec::with_capacity(wanted);
    for part in 0..wanted.div_ceil(OPTION_BYTES) as u16 {
        let body = RequestBody::DatagramErrorPayload { serial: error.serial, part };
        match attachment.ask_option(slot, generation, body) {
            Ok(reply) => payload.extend_from_slice(reply.bytes()),
            Err(Errno::EAGAIN) => return Ok(0),
            Err(errno) => return Err(errno),
        }
    }
    let mut left = &payload[..payload.len().min(wanted)];
    for slice in out {
        let (now, later) = left.split_at(left.len().min(slice.len()));
        slice[..now.len()].copy_from_slice(now);
        left = later;
    }
    Ok(payload.len().min(wanted))
}

/// `FIONREAD`: bytes of the next datagram.
pub(crate) fn next_len(socket: &Pinned) -> Result<usize, Errno> {
    if socket.world() == World::Kernel {
        return Err(TO_KERNEL);
    }
    let next = match socket.stream() {
        Some(stream) => {
            stream.peek_record(&mut [], &*stream.memory).map_err(|error| stream.errno_of(error))?
        }
        None => None,
    };
    match next {
        Some(next) => Ok(next.header.len.into()),
        None if socket.world() == World::Both => Err(TO_KERNEL),
        None => Ok(0),
    }
}
