//! Making, naming, connecting and closing sockets. `bind` and `connect` decide whose a socket is:
//! the service's addresses and routes are Haypile's, everything else stays the kernel's.
//!
//! ```text
//! Fresh --bind--> Bound --listen--> Listening        Fresh, Bound --connect--> Stream
//!   any of them --the service says "not ours"--> Kernel (and out of the table)
//! ```
//! A wildcard address binds both: the socket is *dual*, its placeholder is bound and listens in the
//! kernel too, and the port is taken in both worlds. Read `accept.rs` and `stream_io.rs` next.

use std::net::SocketAddr;
use std::os::fd::RawFd;

use haypile_shm::Errno;
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::{
    ControlRequest, ELSEWHERE, NOT_OURS, RequestBody, Shutdown, SocketKind, SocketReply,
};
use haypile_shm::stream::status;
use haypile_shm::sys;

use crate::addresses::{is_wildcard, to_application, to_service, unspecified};
use crate::attach::{self, Attachment};
use crate::datagram::{self, World};
use crate::descriptors::{self, Owner};
use crate::entry::{self, Phase, Pinned, flag};
use crate::errno::{SERVICE_GONE, TO_KERNEL};
use crate::memory::Record;
use crate::{accept, epoll, everywhere, options, placeholder, stream_io};

/// Ports tried when the service chooses one that the kernel has given away already.
const PORT_TRIES: u32 = 32;

/// socket(2).
///
/// # Errors
/// `TO_KERNEL` without a service, or the kernel's errno.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<RawFd, Errno> {
    if !attach::is_attached() {
        return Err(TO_KERNEL);
    }
    let base = kind & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    // Over one path, which RFC 8684 goes back to when the other side has no more, MPTCP is TCP.
    let protocol = match protocol {
        libc::IPPROTO_MPTCP if base == libc::SOCK_STREAM => libc::IPPROTO_TCP,
        protocol => protocol,
    };
    let made = sys::socket(domain, kind, protocol)?;
    let fd = made.into_raw();
    forget_number(fd);
    let stream = base == libc::SOCK_STREAM && matches!(protocol, 0 | libc::IPPROTO_TCP);
    let datagram = base == libc::SOCK_DGRAM && matches!(protocol, 0 | libc::IPPROTO_UDP);
    if (stream || datagram) && matches!(domain, libc::AF_INET | libc::AF_INET6) {
        // Without an entry it is a kernel socket, which is better than none.
        if let Ok(pinned) = entry::make(domain) {
            pinned.put(flag::NONBLOCKING, kind & libc::SOCK_NONBLOCK != 0);
            pinned.put(flag::DATAGRAM, datagram);
            entry::enter(fd, &pinned);
        }
    }
    Ok(fd)
}

/// A number has just been given to something else by the kernel: whatever we knew of it is old,
/// because it was closed by a way that we do not see.
pub fn forget_number(fd: RawFd) {
    match descriptors::take(fd) {
        Owner::Socket(index) => entry::leave(index, fd),
        Owner::Epoll(index) => epoll::leave(index),
        Owner::Kernel | Owner::Internal => {}
    }
}

/// bind(2).
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn bind(fd: RawFd, address: SocketAddr) -> Result<(), Errno> {
    let socket = entry::ours(fd)?;
    if socket.phase() != Phase::Fresh {
        return Err(Errno::EINVAL);
    }
    if address.is_ipv6() && socket.domain() == libc::AF_INET {
        return Err(Errno::EAFNOSUPPORT);
    }
    if address.is_ipv4() && socket.domain() == libc::AF_INET6 {
        return Err(Errno::EINVAL);
    }
    if socket.has(flag::DATAGRAM) {
        return datagram::bind(&socket, fd, address);
    }
    bind_to(&socket, fd, address)
}

fn bind_to(socket: &Pinned, fd: RawFd, address: SocketAddr) -> Result<(), Errno> {
    // Server 0 knows all listeners, wherever the home of their programs is.
    let mut attachment = attach::present_of(0)?;
    let mut redirects = Redirects::new();
    for _ in 0..PORT_TRIES {
        let body = RequestBody::Bind {
            address: to_service(address),
            reuse_address: socket.stored.reuse_address(),
            reuse_port: socket.stored.reuse_port(),
            v6only: socket.stored.v6only(),
        };
        let reply = match attachment.ask_socket(NO_SLOT, 0, body) {
            Ok(reply) => reply,
            Err(errno) => {
                attachment = attach::successor(&attachment, errno)?;
                continue;
            }
        };
        match reply.errno {
            0 => {}
            NOT_OURS => return become_kernel(socket, fd),
            ELSEWHERE => {
                attachment = redirects.follow(&reply)?;
                continue;
            }
            errno => return Err(Errno(errno)),
        }
        let opened = socket.open_record(&attachment, reply.slot, reply.generation);
        let both = opened.and_then(|()| {
            let port = reply.local.map_or(address.port(), |local| local.port());
            bind_placeholder(socket, fd, SocketAddr::new(address.ip(), port))
        });
        match both {
            Ok(()) => {
                options::replay(socket);
                if address.is_ipv6() && address.ip() == address.ip().to_canonical() {
                    // As on Linux: a name of its own binds the socket to the family.
                    socket.stored.note_v6only(!address.ip().is_unspecified());
                }
                socket.set_phase(Phase::Bound);
                placeholder::born(socket);
                return Ok(());
            }
            Err(errno) => {
                drop_record(&attachment, socket, reply.slot, reply.generation);
                if errno != Errno::EADDRINUSE || address.port() != 0 {
                    return Err(errno);
                }
            }
        }
    }
    Err(Errno::EADDRINUSE)
}

/// The kernel's half of a wildcard bind.
fn bind_placeholder(socket: &Pinned, fd: RawFd, address: SocketAddr) -> Result<(), Errno> {
    if is_wildcard(&address) {
        sys::bind(fd, &address)?;
        socket.set(flag::DUAL);
    }
    Ok(())
}

/// Follows answers that say which other server is to be asked, so many times and no more.
pub(crate) struct Redirects(u32);

impl Redirects {
    pub(crate) fn new() -> Redirects {
        Redirects(4)
    }

    /// The attachment to the server that an answer names.
    ///
    /// # Errors
    /// `EHOSTUNREACH` where servers send us to and fro; as [`attach::present_of`].
    pub(crate) fn follow(&mut self, reply: &SocketReply) -> Result<attach::Current, Errno> {
        self.0 = self.0.checked_sub(1).ok_or(Errno::EHOSTUNREACH)?;
        let server = u16::try_from(reply.slot).map_err(|_| Errno::EPROTO)?;
        attach::present_of(server)
    }
}

/// Gives a record up, in the service too.
pub(crate) fn drop_record(attachment: &Attachment, socket: &Pinned, slot: u32, generation: u32) {
    let close = RequestBody::Close { abort: true };
    let _: Result<(), Errno> = attachment.tell(slot, generation, close);
    socket.forget_record();
}

/// The socket is the kernel's from now on; the caller's call is the kernel's to make.
pub(crate) fn become_kernel(socket: &Pinned, fd: RawFd) -> Result<(), Errno> {
    if let Some((slot, generation)) = socket.has_record().then(|| socket.name()) {
        drop_record(&*socket.attachment()?, socket, slot, generation);
    }
    socket.set_phase(Phase::Kernel);
    socket.for_each_epoll(|epoll| epoll::hand_to_kernel(epoll, socket.index()));
    // With one descriptor, its number is the kernel's again; duplicates are told apart by phase.
    if socket.descriptors() == 1 && descriptors::take_if(fd, Owner::Socket(socket.index())) {
        entry::leave(socket.index(), fd);
    }
    Err(TO_KERNEL)
}

/// listen(2).
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn listen(fd: RawFd, backlog: i32) -> Result<(), Errno> {
    let socket = entry::ours(fd)?;
    if socket.has(flag::DATAGRAM) {
        return Err(Errno::EOPNOTSUPP);
    }
    match socket.phase() {
        Phase::Fresh => bind_to(&socket, fd, unspecified(socket.domain()))?,
        Phase::Bound | Phase::Listening => {}
        Phase::Stream | Phase::Kernel => return Err(Errno::EINVAL),
    }
    attach::follow_changes();
    // Linux reads the number as unsigned and holds it to net.core.somaxconn, 4096.
    let limit = (backlog as u32).min(4096);
    let listen = everywhere::listen_again(&socket, limit);
    let first = everywhere::begin(&socket, listen);
    let mut attachment = attach::present_of(socket.server())?;
    let (slot, generation) = loop {
        let (slot, generation) = socket.name_in(&attachment).ok_or(SERVICE_GONE)?;
        match attachment.ask_socket(slot, generation, first) {
            Ok(reply) if reply.errno == 0 => break (slot, generation),
            Ok(reply) => return Err(Errno(reply.errno)),
            // The socket is bound at the next one, too.
            Err(errno) => attachment = attach::successor(&attachment, errno)?,
        }
    };
    if let Err(errno) = everywhere::open(&socket, first) {
        unlisten(&attachment, &socket, slot, generation);
        return Err(errno);
    }
    if first != listen {
        everywhere::answer(&socket, listen);
    }
    socket.set_backlog(limit);
    if socket.has(flag::DUAL) {
        sys::listen(fd, backlog)?;
        // So that an accept never blocks on the kernel's half when another process was faster.
        let flags = sys::fcntl_getfl(fd)?;
        sys::fcntl_setfl(fd, flags | libc::O_NONBLOCK)?;
    }
    if socket.phase() != Phase::Listening {
        socket.set_phase(Phase::Listening);
        everywhere::complete(&socket);
        // More servers may have come meanwhile.
        attach::follow_changes();
        socket.for_each_epoll(|epoll| epoll::socket_changed(epoll, socket.index()));
    }
    Ok(())
}

/// Another server has refused to listen: the socket is bound again, as it was.
fn unlisten(attachment: &Attachment, socket: &Pinned, slot: u32, generation: u32) {
    if socket.phase() == Phase::Listening {
        return;
    }
    let close = RequestBody::Close { abort: true };
    let _: Result<(), Errno> = attachment.tell(slot, generation, close);
    let bound = attachment.ask_socket(NO_SLOT, 0, everywhere::bind_again(socket));
    match bound {
        Ok(bound) if bound.errno == 0 => {
            let _: Result<(), Errno> = socket.open_record(attachment, bound.slot, bound.generation);
            options::replay(socket);
        }
        // Somebody has been faster: the next call says so.
        _ => socket.forget_name(),
    }
}

/// connect(2).
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn connect(fd: RawFd, remote: SocketAddr) -> Result<(), Errno> {
    connect_with(fd, Some(remote), true)
}

/// The connect in a send of a stream with `MSG_FASTOPEN` (tcp(7)), as the kernel does it without a cookie of the
/// peer, for which Haypile does not ask: the data comes behind the handshake. `flags` are those of the send, which
/// may have named nobody.
///
/// # Errors
/// As [`connect`]; `EINPROGRESS` where the send must not wait, `EINVAL` where nobody was named.
pub fn connect_to_send(fd: RawFd, remote: Option<SocketAddr>, flags: i32) -> Result<(), Errno> {
    connect_with(fd, remote, flags & libc::MSG_DONTWAIT == 0)
}

fn connect_with(fd: RawFd, remote: Option<SocketAddr>, waits: bool) -> Result<(), Errno> {
    let socket = entry::ours(fd)?;
    if let Some(remote) = remote.filter(|_| socket.has(flag::DATAGRAM)) {
        return datagram::connect(&socket, fd, remote);
    }
    match socket.phase() {
        Phase::Fresh | Phase::Bound => {}
        Phase::Stream => return connect_again(&socket),
        Phase::Listening => return Err(Errno::EISCONN),
        Phase::Kernel => return Err(TO_KERNEL),
    }
    let remote = remote.ok_or(Errno::EINVAL)?;
    if remote.is_ipv6() && socket.domain() == libc::AF_INET {
        return Err(Errno::EAFNOSUPPORT);
    }
    attach::follow_changes();
    start_connecting(&socket, fd, remote)?;
    if !waits || socket.has(flag::NONBLOCKING) {
        return Err(Errno::EINPROGRESS);
    }
    stream_io::wait_connected(&socket, fd)
}

/// The first half of a connect: when it returns, a SYN is on its way.
fn start_connecting(socket: &Pinned, fd: RawFd, remote: SocketAddr) -> Result<(), Errno> {
    let bound = socket.has_record();
    let mut attachment =
        if bound { attach::present_of(socket.server())? } else { attach::present()? };
    let mut redirects = Redirects::new();
    loop {
        let early = !bound && socket.stored.any_early();
        if early {
            let v6 = to_service(remote).is_ipv6();
            let reply = match attachment.ask_socket(NO_SLOT, 0, RequestBody::Open { v6 }) {
                Err(errno) if attachment.has_left(errno) => {
                    attachment = attach::present()?;
                    continue;
                }
                reply => reply?,
            };
            if reply.errno != 0 {
                return Err(Errno(reply.errno));
            }
            socket.open_record(&attachment, reply.slot, reply.generation)?;
            options::replay(socket);
        }
        let (slot, generation) = socket.name_in(&attachment).unwrap_or((NO_SLOT, 0));
        let body = RequestBody::Connect { remote: to_service(remote) };
        let reply = match attachment.ask_socket(slot, generation, body) {
            Err(errno) if !bound && attachment.has_left(errno) => {
                socket.forget_record();
                attachment = attach::present()?;
                continue;
            }
            reply => reply?,
        };
        match reply.errno {
            0 if slot == NO_SLOT => {
                socket.open_record(&attachment, reply.slot, reply.generation)?;
                options::replay(socket);
                break;
            }
            0 => break,
            NOT_OURS => return become_kernel(socket, fd),
            ELSEWHERE => {
                let next = redirects.follow(&reply)?;
                if bound {
                    move_to(&next, socket)?;
                } else if early {
                    drop_record(&attachment, socket, slot, generation);
                }
                attachment = next;
            }
            errno => {
                if early {
                    drop_record(&attachment, socket, slot, generation);
                }
                return Err(Errno(errno));
            }
        }
    }
    // A shutdown before the connect is forgotten.
    socket.clear(flag::SHUT_READ | flag::SHUT_WRITE);
    socket.set_phase(Phase::Stream);
    placeholder::born(socket);
    socket.for_each_epoll(|epoll| epoll::socket_changed(epoll, socket.index()));
    Ok(())
}

/// A bound socket goes to another server: it is bound there before it is given up where it was.
pub(crate) fn move_to(next: &Attachment, socket: &Pinned) -> Result<(), Errno> {
    let before = (socket.attachment()?, socket.name());
    let bound = next.ask_socket(NO_SLOT, 0, everywhere::bind_again(socket))?;
    if bound.errno != 0 {
        return Err(Errno(bound.errno));
    }
    socket.open_record(next, bound.slot, bound.generation)?;
    options::replay(socket);
    let (attachment, (slot, generation)) = before;
    let close = RequestBody::Close { abort: true };
    let _: Result<(), Errno> = attachment.tell(slot, generation, close);
    if socket.has(flag::SHARED) {
        everywhere::show(next, socket.name(), socket.number())?;
    }
    Ok(())
}

/// connect on a socket that has a connection, or had one.
fn connect_again(socket: &Pinned) -> Result<(), Errno> {
    let Some(stream) = socket.present() else { return Err(Errno::EISCONN) };
    let state = stream.status();
    if state & (status::FAILED | status::CLOSED) != 0 {
        return Err(match stream.take_error() {
            0 => Errno::ECONNABORTED,
            errno => Errno(errno),
        });
    }
    if state & status::CONNECTED == 0 {
        return Err(Errno::EALREADY);
    }
    // The first one to ask after a connect in the background hears of its success.
    if socket.set(flag::CONNECT_REPORTED) { Ok(()) } else { Err(Errno::EISCONN) }
}

/// connect(2) with `AF_UNSPEC`, which undoes a connect.
///
/// # Errors
/// `TO_KERNEL`, or `EOPNOTSUPP`: a connection of Haypile's cannot become another one. (A UDP socket
/// can.)
pub fn disconnect(fd: RawFd) -> Result<(), Errno> {
    let socket = entry::ours(fd)?;
    if socket.has(flag::DATAGRAM) {
        return datagram::disconnect(&socket, fd);
    }
    match socket.phase() {
        Phase::Fresh => Err(TO_KERNEL),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// The names of a UDP socket that has sent or connected by the kernel alone are the kernel's.
fn by_kernel(socket: &Pinned) -> Result<(), Errno> {
    let kernels = socket.has(flag::DATAGRAM) && socket.world() == World::Kernel;
    if kernels { Err(TO_KERNEL) } else { Ok(()) }
}

/// getsockname(2).
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn local_address(fd: RawFd) -> Result<SocketAddr, Errno> {
    let socket = entry::ours(fd)?;
    by_kernel(&socket)?;
    let known = socket.observe(|stream| stream.local_address()).flatten();
    match known {
        // A wildcard keeps the family of the socket.
        Some(address) if address.ip().is_unspecified() => {
            Ok(SocketAddr::new(unspecified(socket.domain()).ip(), address.port()))
        }
        Some(address) => Ok(to_application(address, socket.domain())),
        None => Ok(unspecified(socket.domain())),
    }
}

/// getpeername(2).
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn remote_address(fd: RawFd) -> Result<SocketAddr, Errno> {
    let socket = entry::ours(fd)?;
    by_kernel(&socket)?;
    let remote = socket.observe(|stream| {
        let state = stream.status() & (status::CONNECTED | status::CLOSED | status::FAILED);
        if state == status::CONNECTED { stream.remote_address() } else { None }
    });
    let remote = remote.flatten().ok_or(Errno::ENOTCONN)?;
    Ok(to_application(remote, socket.domain()))
}

/// shutdown(2).
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn shutdown(fd: RawFd, how: i32) -> Result<(), Errno> {
    let socket = entry::ours(fd)?;
    let (direction, flags) = match how {
        libc::SHUT_RD => (Shutdown::Read, flag::SHUT_READ),
        libc::SHUT_WR => (Shutdown::Write, flag::SHUT_WRITE),
        libc::SHUT_RDWR => (Shutdown::Both, flag::SHUT_READ | flag::SHUT_WRITE),
        _ => return Err(Errno::EINVAL),
    };
    if socket.has(flag::DATAGRAM) {
        return datagram::shutdown(&socket, fd, how, flags, direction);
    }
    if socket.phase() == Phase::Listening {
        if how != libc::SHUT_WR {
            listen_no_more(&socket, fd, direction);
        }
        return Ok(());
    }
    let is_open = |stream: &Record| stream.status() & (status::FAILED | status::CLOSED) == 0;
    let connected = options::is_connected(&socket) && socket.observe(is_open).unwrap_or(false);
    socket.set(flags);
    if !connected {
        // As on Linux: an error, and poll sees it nevertheless.
        return Err(Errno::ENOTCONN);
    }
    socket.tell(RequestBody::Shutdown { how: direction })
}

/// A listener becomes a socket that is bound, in every process that has it: connections that wait are reset, and
/// nobody is answered when this returns. It may listen again.
fn listen_no_more(listener: &Pinned, fd: RawFd, how: Shutdown) {
    accept::end(listener);
    if listener.has(flag::DUAL) {
        let _: Result<(), Errno> = sys::shutdown(fd, how as i32);
    }
    listener.for_each_name(|attachment, (slot, generation)| {
        let told = attachment.tell(slot, generation, RequestBody::Shutdown { how });
        // An option that nobody has: its answer says that the server is so far.
        let barrier = RequestBody::GetOption { option: 0 };
        let _: Result<_, Errno> =
            told.and_then(|()| attachment.ask_option(slot, generation, barrier));
        attachment.channel().wake_offer_waiters();
    });
    accept::forget_offers(listener);
    listener.for_each_epoll(|epoll| epoll::socket_changed(epoll, listener.index()));
}

/// close(2) of a number that is not the kernel's.
///
/// # Errors
/// `TO_KERNEL` if it is the kernel's, `EBADF` for a descriptor of this library.
pub fn close(fd: RawFd) -> Result<(), Errno> {
    match descriptors::owner(fd) {
        Owner::Kernel => Err(TO_KERNEL),
        Owner::Internal => Err(Errno::EBADF),
        Owner::Socket(index) => placeholder::close_number(fd, index),
        Owner::Epoll(index) => {
            if !descriptors::take_if(fd, Owner::Epoll(index)) {
                return Err(Errno::EBADF);
            }
            epoll::leave(index);
            sys::close(fd)
        }
    }
}

/// Range of numbers, both ends included, and flags: the kernel's close_range.
pub type CloseRange<'a> = &'a mut dyn FnMut(u32, u32, u32) -> Result<(), Errno>;

/// close_range(2). `kernel` closes a range in the kernel; it is called for the stretches between
/// our own descriptors.
///
/// # Errors
/// The kernel's.
pub fn close_range(first: u32, last: u32, flags: u32, kernel: CloseRange<'_>) -> Result<(), Errno> {
    // Marking for close-on-exec harms none of ours: they are so already.
    if flags & libc::CLOSE_RANGE_CLOEXEC != 0 || first > last {
        return kernel(first, last, flags);
    }
    let mut start = first;
    let mut outcome = Ok(());
    descriptors::for_each_in(first, last, |fd, owner| match owner {
        Owner::Internal => {
            if start < fd as u32 {
                outcome = outcome.and(kernel(start, fd as u32 - 1, flags));
            }
            start = fd as u32 + 1;
        }
        Owner::Socket(_) | Owner::Epoll(_) => forget_number(fd),
        Owner::Kernel => {}
    });
    if start <= last { outcome.and(kernel(start, last, flags)) } else { outcome }
}

/// dup(2), or fcntl(2) `F_DUPFD`, of a number that is not the kernel's.
///
/// # Errors
/// `TO_KERNEL` if it is, or the errno.
pub fn duplicate(fd: RawFd, minimum: RawFd, close_on_exec: bool) -> Result<RawFd, Errno> {
    match descriptors::owner(fd) {
        Owner::Kernel => Err(TO_KERNEL),
        Owner::Internal => Err(Errno::EBADF),
        Owner::Epoll(index) => {
            let new = duplicate_number(fd, minimum, close_on_exec)?;
            epoll::enter(new, index);
            Ok(new)
        }
        Owner::Socket(_) => {
            let socket = entry::behind(fd)?;
            placeholder::materialise(&socket)?;
            let new = duplicate_number(fd, minimum, close_on_exec)?;
            entry::enter(new, &socket);
            Ok(new)
        }
    }
}

fn duplicate_number(fd: RawFd, minimum: RawFd, close_on_exec: bool) -> Result<RawFd, Errno> {
    let new = if minimum == 0 {
        sys::dup_lowest(fd, close_on_exec)?
    } else if minimum < 0 {
        return Err(Errno::EINVAL);
    } else {
        let new = sys::dup_at_least(fd, minimum)?.into_raw();
        if !close_on_exec {
            sys::fcntl_setfd(new, 0)?;
        }
        new
    };
    forget_number(new);
    Ok(new)
}

/// dup3(2) (and dup2(2), of two different numbers) where at least one is not the kernel's.
///
/// # Errors
/// `EBUSY` if the target is a descriptor of this library: the kernel, too, says so when the number
/// is about to be somebody else's. Else the kernel's errno.
pub fn duplicate_to(old: RawFd, new: RawFd, flags: i32) -> Result<RawFd, Errno> {
    if old == new || flags & !libc::O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let from = descriptors::owner(old);
    if from == Owner::Internal {
        return Err(Errno::EBADF);
    }
    if descriptors::owner(new) == Owner::Internal {
        return Err(Errno::EBUSY);
    }
    let source = match from {
        Owner::Socket(_) => {
            let socket = entry::behind(old)?;
            placeholder::materialise(&socket)?;
            Some(socket)
        }
        _ => {
            // So that an invalid `old` leaves `new` alone.
            sys::fcntl_getfd(old)?;
            None
        }
    };
    forget_number(new);
    let made = sys::dup3(old, new, flags)?;
    match (source, from) {
        (Some(socket), _) => drop(entry::enter(made, &socket)),
        (None, Owner::Epoll(index)) => epoll::enter(made, index),
        _ => {}
    }
    Ok(made)
}

/// fcntl(2) `F_GETFL`.
///
/// # Errors
/// `TO_KERNEL`, or the errno.
pub fn status_flags(fd: RawFd) -> Result<i32, Errno> {
    let socket = entry::ours(fd)?;
    let flags = sys::fcntl_getfl(fd)? & !libc::O_NONBLOCK;
    Ok(if socket.has(flag::NONBLOCKING) { flags | libc::O_NONBLOCK } else { flags })
}

/// fcntl(2) `F_SETFL`: only `O_NONBLOCK` matters to a socket.
///
/// # Errors
/// `TO_KERNEL`, or the errno.
pub fn set_status_flags(fd: RawFd, flags: i32) -> Result<(), Errno> {
    set_nonblocking(fd, flags & libc::O_NONBLOCK != 0)
}

/// `FIONBIO`, and fcntl(2) `F_SETFL`.
///
/// # Errors
/// `TO_KERNEL`, or the errno.
pub fn set_nonblocking(fd: RawFd, on: bool) -> Result<(), Errno> {
    let socket = entry::ours(fd)?;
    socket.put(flag::NONBLOCKING, on);
    // The placeholder keeps it for whoever gets the socket next. A duplicate of the template would
    // set it for all, and a dual listener's must stay non-blocking.
    let listening = socket.phase() == Phase::Listening && socket.has(flag::DUAL);
    if !socket.has(flag::TEMPLATE) && !listening {
        let flags = sys::fcntl_getfl(fd)? & !libc::O_NONBLOCK;
        sys::fcntl_setfl(fd, if on { flags | libc::O_NONBLOCK } else { flags })?;
    }
    Ok(())
}

/// The server that knows a placeholder, and what it says of it. A connection may be on its way from one server to
/// another, and then neither knows of it: all are asked again, for a quarter of a second in all.
fn find_owner(fd: RawFd) -> Result<(attach::Current, (u32, u32, SocketKind)), Errno> {
    const ROUNDS: u32 = 8;
    for round in 1..ROUNDS {
        match ask_all(fd) {
            Err(TO_KERNEL) if may_be_on_its_way(fd) => attach::sleep_ms(1 << round),
            other => return other,
        }
    }
    ask_all(fd)
}

/// Listeners and UDP sockets stay where they are, and with one server everything does.
fn may_be_on_its_way(fd: RawFd) -> bool {
    !listens(fd) && attach::all_from_home().count() > 1 && sys::so_type(fd) == Ok(libc::SOCK_STREAM)
}

/// Whether a placeholder listens as well, for both worlds.
fn listens(fd: RawFd) -> bool {
    let mut listening = [0; 4];
    let asked = sys::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, &mut listening);
    asked.is_ok() && listening != [0; 4]
}

/// Asks one server after the other, the home first.
fn ask_all(fd: RawFd) -> Result<(attach::Current, (u32, u32, SocketKind)), Errno> {
    drop(attach::current()?);
    // Servers may have come while this process only waited for descriptors.
    attach::hear_of_changes();
    for server in attach::all_from_home() {
        let Ok(attachment) = attach::of(server) else { continue };
        match everywhere::ask(&attachment, &ControlRequest::Adopt, fd) {
            Ok(found) => return Ok((attachment, found)),
            Err(Errno::ENOENT) => {}
            Err(errno) if attach::servers() == 1 => return Err(errno),
            Err(_) => {}
        }
    }
    Err(TO_KERNEL)
}

/// Asks the service what a placeholder from elsewhere stands for, and enters it.
pub(crate) fn adopt(fd: RawFd, domain: i32) -> Result<(), Errno> {
    let (attachment, (slot, generation, kind)) = find_owner(fd)?;
    let socket = entry::make(domain)?;
    socket.open_record(&attachment, slot, generation)?;
    if kind == SocketKind::Listener {
        everywhere::adopt(&socket, fd)?;
    }
    socket.set(flag::SHARED);
    socket.put(flag::NONBLOCKING, sys::fcntl_getfl(fd)? & libc::O_NONBLOCK != 0);
    if kind == SocketKind::Datagram {
        datagram::adopted(&socket, fd);
        entry::enter(fd, &socket);
        return Ok(());
    }
    options::read_linger(&socket, fd);
    let dual = match kind {
        SocketKind::Connection | SocketKind::Datagram => false,
        SocketKind::Listener => listens(fd),
        SocketKind::Plain => {
            sys::getsockname(fd)?.is_some_and(|name| is_wildcard(&name) && name.port() != 0)
        }
    };
    socket.put(flag::DUAL, dual);
    if dual && kind == SocketKind::Listener {
        // What the application had set is not known any more: a listener blocks unless told.
        socket.clear(flag::NONBLOCKING);
    }
    socket.set_phase(match kind {
        SocketKind::Plain | SocketKind::Datagram => Phase::Bound,
        SocketKind::Connection => Phase::Stream,
        SocketKind::Listener => Phase::Listening,
    });
    entry::enter(fd, &socket);
    Ok(())
}
