//! Placeholders: the real kernel sockets that hold our sockets' descriptor numbers.
//!
//! A socket that the application made has a kernel socket of its own. Accepted connections need
//! one 100,000 times a second, so they are duplicates of one *template* a family, kept at a high
//! number: one system call to make, one to close, no second descriptor each. A duplicate has no
//! identity of its own; before it can be seen by another process (`fork`, `exec`, `SCM_RIGHTS`) or
//! be duplicated by the application, it is *materialised*: a kernel socket of its own takes its
//! number, and its cookie is told to the service. See decision 5 and `docs/decisions/0005`.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use haypile_shm::Errno;
use haypile_shm::messages::{ControlRequest, RequestBody};
use haypile_shm::sys::{self, Fd};

use crate::attach::Attachment;
use crate::descriptors::{self, Owner};
use crate::entry::{self, Phase, Pinned, Socket, flag};
use crate::internal::Internal;
use crate::lock::Lock;
use crate::{everywhere, options, socket};

#[derive(Debug)]
struct Templates {
    v4: Option<Internal>,
    v6: Option<Internal>,
}

static TEMPLATES: Lock<Templates> = Lock::new(Templates { v4: None, v6: None });

/// The templates may have been closed behind our back, and their numbers be another's by now.
pub(crate) fn forget_templates() {
    if let Ok(mut templates) = TEMPLATES.lock() {
        (templates.v4, templates.v6) = (None, None);
    }
}

/// The servers, one bit each, to which a connection was shown: its last copy could otherwise be closed
/// before the server begins to listen for that.
static STREAM_SHOWN: AtomicU64 = AtomicU64::new(0);
const _: () = assert!(haypile_shm::epoch::EPOCH_SERVERS <= 64, "one bit each");
/// Spawns under way: descriptors made meanwhile are born shared.
static SPAWNING: AtomicU32 = AtomicU32::new(0);

/// A kernel socket to hold a number, made the slow way.
fn make(domain: i32) -> Result<Fd, Errno> {
    sys::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP)
}

/// The descriptor of a new accepted connection: a duplicate of the template, at the lowest free
/// number.
pub(crate) fn duplicate_template(domain: i32, close_on_exec: bool) -> Result<RawFd, Errno> {
    let mut templates = TEMPLATES.lock()?;
    let place = if domain == libc::AF_INET6 { &mut templates.v6 } else { &mut templates.v4 };
    if let Some(template) = place {
        match sys::dup_lowest(template.raw(), close_on_exec) {
            // Closed behind our back: make another.
            Err(Errno::EBADF) => *place = None,
            other => return other,
        }
    }
    let template = Internal::new(make(domain)?);
    let made = sys::dup_lowest(template.raw(), close_on_exec);
    *place = Some(template);
    made
}

/// Gives a socket a kernel socket of its own in the place of the duplicate.
pub(crate) fn materialise(pinned: &Pinned) -> Result<(), Errno> {
    if !pinned.has(flag::TEMPLATE) {
        return Ok(());
    }
    let fd = pinned.number();
    let own = make(pinned.domain())?;
    let flags = sys::fcntl_getfd(fd)?;
    let close_on_exec = if flags & libc::FD_CLOEXEC != 0 { libc::O_CLOEXEC } else { 0 };
    if pinned.has(flag::NONBLOCKING) {
        let flags = sys::fcntl_getfl(own.raw())?;
        sys::fcntl_setfl(own.raw(), flags | libc::O_NONBLOCK)?;
    }
    options::write_linger(pinned, own.raw());
    // Closing a duplicate takes the same lock, so that the number cannot become another's between
    // the look and the replacement.
    let _numbers = TEMPLATES.lock()?;
    if !pinned.is_behind(fd) {
        return Err(Errno::EBADF);
    }
    sys::dup3(own.raw(), fd, close_on_exec)?;
    pinned.clear(flag::TEMPLATE);
    Ok(())
}

/// Takes the descriptor of a socket out of the table and closes it. `EBADF`: another thread was
/// faster.
pub(crate) fn close_number(fd: RawFd, index: u32) -> Result<(), Errno> {
    let templates = TEMPLATES.lock();
    let known = descriptors::take_if(fd, Owner::Socket(index));
    let closed = if known { sys::close(fd) } else { Err(Errno::EBADF) };
    drop(templates);
    if known {
        entry::leave(index, fd);
    }
    closed
}

/// Marks a socket as one that other processes may hold: from now on only the end of its
/// placeholder ends it. Of a connection the service hears that by itself; of anything else it wants
/// to see the placeholder.
pub(crate) fn share(pinned: &Pinned) -> Result<(), Errno> {
    if pinned.has(flag::SHARED) || !pinned.has_record() {
        return Ok(());
    }
    materialise(pinned)?;
    if pinned.is_moved() {
        drop(pinned.present());
    }
    let cookie = sys::so_cookie(pinned.number())?;
    let stream = pinned.phase() == Phase::Stream && !pinned.has(flag::DATAGRAM);
    let mut outcome = Ok(());
    pinned.for_each_name(|attachment, (slot, generation)| {
        let told = attachment.tell(slot, generation, RequestBody::Shared { cookie });
        outcome = outcome.and(told);
        // The answer for the first connection says that the server listens for the ends of all.
        let bit = 1 << (attachment.server() % 64);
        if !stream || STREAM_SHOWN.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
            // Without the sight of it the server lets the socket end with the last process.
            let _: Result<_, Errno> =
                everywhere::ask(attachment, &ControlRequest::Adopt, pinned.number());
        }
    });
    outcome?;
    pinned.set(flag::SHARED);
    Ok(())
}

/// A connection that others may hold is at a server that has not been shown one yet: it is asked to listen for
/// the ends of those. (Which one it is it knows from the server before it.)
pub(crate) fn show_connection(socket: &Socket, attachment: &Attachment) {
    let bit = 1 << (attachment.server() % 64);
    if STREAM_SHOWN.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
        let _: Result<_, Errno> =
            everywhere::ask(attachment, &ControlRequest::Adopt, socket.number());
    }
}

/// Marks every socket as shared over an attachment whose wake socket is lost: the messages go into
/// its ring, and nobody is rung.
pub(crate) fn share_all(attachment: &Attachment) {
    descriptors::for_each_in(0, u32::MAX, |_, owner| {
        let Owner::Socket(index) = owner else { return };
        let Some(pinned) = entry::pin(index) else { return };
        if pinned.has(flag::SHARED) || !pinned.has_record() || materialise(&pinned).is_err() {
            return;
        }
        if let Ok(cookie) = sys::so_cookie(pinned.number()) {
            let Some((slot, generation)) = pinned.name_in(attachment) else { return };
            attachment.leave(slot, generation, RequestBody::Shared { cookie });
            // A listener is to be marked at the other servers too.
            if !pinned.has(flag::EVERYWHERE) {
                pinned.set(flag::SHARED);
            }
        }
    });
}

/// To be called for every socket that has just got its record and its number.
pub(crate) fn born(pinned: &Pinned) {
    if SPAWNING.load(Ordering::SeqCst) != 0 {
        let _: Result<(), Errno> = share(pinned);
    }
}

/// Marks what another process may get: every socket, or only those that survive `exec`. Sockets
/// born until [`end_spawn`] are marked at birth.
pub(crate) fn begin_spawn(all: bool) {
    SPAWNING.fetch_add(1, Ordering::SeqCst);
    // Whoever makes a descriptor now has seen the count, or is in the table already.
    drop(TEMPLATES.lock());
    descriptors::for_each_in(0, u32::MAX, |fd, owner| {
        let Owner::Socket(index) = owner else { return };
        let survives = || sys::fcntl_getfd(fd).is_ok_and(|flags| flags & libc::FD_CLOEXEC == 0);
        if let Some(pinned) = entry::pin(index)
            && pinned.has_record()
            && !pinned.has(flag::SHARED)
            && (all || survives())
        {
            // What cannot be marked (no descriptor left, a closed number) stays ours alone: the
            // other process then loses it with us.
            let _: Result<(), Errno> = share(&pinned);
            if let Some(record) = pinned.stream().filter(|_| pinned.phase() == Phase::Stream) {
                record.memory.map_for_child(&record);
            }
        }
    });
}

/// The other process is made.
pub(crate) fn end_spawn() {
    SPAWNING.fetch_sub(1, Ordering::SeqCst);
}

/// In a forked child: no spawn of its own is under way.
pub(crate) fn forget_spawns() {
    SPAWNING.store(0, Ordering::SeqCst);
}

pub(crate) fn hold_for_fork() {
    TEMPLATES.hold_for_fork();
}

pub(crate) fn release_after_fork() {
    TEMPLATES.release_after_fork();
}

/// Before a descriptor is sent away, or on another occasion where it gets a second holder.
pub fn share_descriptor(fd: RawFd) {
    if let Ok(pinned) = entry::ours(fd) {
        let _: Result<(), Errno> = share(&pinned);
    }
}

/// A descriptor has come from another process or through `exec`: if it is a placeholder of our
/// domain, it becomes ours.
pub fn adopt(fd: RawFd) {
    descriptors::take(fd);
    let kind = sys::so_type(fd);
    let datagram = kind == Ok(libc::SOCK_DGRAM) && sys::so_protocol(fd) == Ok(libc::IPPROTO_UDP);
    if kind != Ok(libc::SOCK_STREAM) && !datagram {
        return;
    }
    let Ok(domain @ (libc::AF_INET | libc::AF_INET6)) = sys::so_domain(fd) else { return };
    // A socket that the kernel has connected is the kernel's.
    if !datagram && sys::getpeername(fd).is_ok() {
        return;
    }
    let _: Result<(), Errno> = socket::adopt(fd, domain);
}
