//! UDP sockets: whose they are, binding, connecting, and what they are ready for. Sending is in
//! `datagram/send.rs`, receiving in `datagram/receive.rs`, options and control data beside them.
//!
//! ```text
//! Fresh   no record: the kernel's, until it is bound or has something to send to Haypile
//! Bound   a record; with a wildcard address the placeholder is bound to the same port too (dual)
//! Stream  connected to a peer that Haypile reaches
//! Kernel  bound to an address or a device of the kernel's: out of the table
//! ```
//! A socket connected to a peer of the kernel's keeps its phase and bears `KERNEL_PEER`: connect(2)
//! with `AF_UNSPEC` gives it back. [`World`] says which of the two worlds it receives from.

pub(crate) mod control;
pub(crate) mod options;
pub(crate) mod receive;
pub(crate) mod routes;
pub(crate) mod send;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use haypile_shm::Errno;
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::ready::{ERR, HUP, IN, OUT, RDHUP};
use haypile_shm::messages::{ELSEWHERE, NOT_OURS, RequestBody};
use haypile_shm::stream::status;
use haypile_shm::sys;

use crate::addresses::{is_wildcard, to_service, unspecified};
use crate::attach::{self, Fate};
use crate::descriptors::{self, Owner};
use crate::entry::{self, Phase, Pinned, Socket, flag};
use crate::errno::{SERVICE_GONE, TO_KERNEL};
use crate::lock::Lock;
use crate::memory::Record;
use crate::places::StreamRef;
use crate::{epoll, placeholder, restore, socket};
pub(crate) use routes::{hold_for_fork, release_after_fork};

use routes::Route;

/// Ports tried when the service chooses one that the kernel has given away already.
const PORT_TRIES: u32 = 32;
/// `EPOLLWRBAND`, which only datagram sockets have.
const WRBAND: u32 = 0x200;

/// What only UDP sockets have.
#[derive(Debug)]
pub(crate) struct State {
    /// Options that were set (`options`), to be told to the service with the record.
    set: AtomicU32,
    /// Control data wanted with what is received (`control`).
    wants: AtomicU32,
    /// `UDP_SEGMENT`
    segment: AtomicU32,
    /// `IP_MTU_DISCOVER`, `IPV6_MTU_DISCOVER`
    mtu_discover: AtomicI32,
    broadcast: AtomicBool,
    /// `IPV6_V6ONLY`
    v6only: AtomicBool,
    /// `UDP_CORK`
    corked: AtomicBool,
    /// Multicast goes out by an interface of the kernel's.
    multicast_by_kernel: AtomicBool,
    /// Receives, so that both worlds have their turn.
    turn: AtomicU32,
    /// What `UDP_CORK` or `MSG_MORE` holds back.
    cork: Lock<Option<send::Cork>>,
    /// Groups joined before there was a record: group and interface.
    groups: Lock<Vec<(IpAddr, IpAddr)>>,
    /// What the record of a dead server said, until it is done again on another.
    names: Lock<Option<Names>>,
}

/// Own address and peer, as a record says them.
type Names = (Option<SocketAddr>, Option<SocketAddr>);

impl Default for State {
    fn default() -> State {
        State {
            set: AtomicU32::new(0),
            wants: AtomicU32::new(0),
            segment: AtomicU32::new(0),
            mtu_discover: AtomicI32::new(libc::IP_PMTUDISC_WANT),
            broadcast: AtomicBool::new(false),
            v6only: AtomicBool::new(false),
            corked: AtomicBool::new(false),
            multicast_by_kernel: AtomicBool::new(false),
            turn: AtomicU32::new(0),
            cork: Lock::new(None),
            groups: Lock::new(Vec::new()),
            names: Lock::new(None),
        }
    }
}

impl State {
    pub(crate) fn reset(&self) {
        self.set.store(0, Ordering::Relaxed);
        self.wants.store(0, Ordering::Relaxed);
        self.segment.store(0, Ordering::Relaxed);
        self.mtu_discover.store(libc::IP_PMTUDISC_WANT, Ordering::Relaxed);
        for flag in [&self.broadcast, &self.v6only, &self.corked, &self.multicast_by_kernel] {
            flag.store(false, Ordering::Relaxed);
        }
        if let Ok(mut cork) = self.cork.lock() {
            *cork = None;
        }
        if let Ok(mut groups) = self.groups.lock() {
            groups.clear();
        }
        self.keep_names(None);
    }

    fn keep_names(&self, names: Option<Names>) {
        if let Ok(mut place) = self.names.lock() {
            *place = names;
        }
    }
}

/// Where a UDP socket receives from.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum World {
    /// The kernel alone.
    Kernel,
    /// Haypile alone.
    Haypile,
    /// Both.
    Both,
}

impl Socket {
    /// Where a UDP socket receives from.
    pub(crate) fn world(&self) -> World {
        match self.phase() {
            _ if self.has(flag::KERNEL_PEER) || !self.has_record() => World::Kernel,
            Phase::Bound if self.has(flag::DUAL) => World::Both,
            Phase::Kernel => World::Kernel,
            _ => World::Haypile,
        }
    }
}

/// Whether a number stands for a UDP socket that we watch over.
pub fn is_datagram(fd: RawFd) -> bool {
    match descriptors::owner(fd) {
        Owner::Socket(index) => {
            entry::SOCKETS.get(index).is_some_and(|socket| socket.has(flag::DATAGRAM))
        }
        _ => false,
    }
}

/// Forgets what was prepared for a socket that came to nothing.
fn drop_record(socket: &Pinned) {
    let (slot, generation) = socket.name();
    if let Ok(attachment) = socket.attachment()
        && slot != NO_SLOT
    {
        socket::drop_record(&attachment, socket, slot, generation);
    }
}

/// The record of a socket has come or gone, or its world has changed.
fn announce(socket: &Pinned) {
    socket.for_each_epoll(|epoll| epoll::socket_changed(epoll, socket.index()));
}

/// A record has been opened: everything the service must know of the socket.
fn opened(socket: &Pinned, phase: Phase) {
    options::replay(socket);
    socket.set_phase(phase);
    placeholder::born(socket);
    announce(socket);
}

// --- bind --------------------------------------------------------------------------------------

/// bind(2).
pub(crate) fn bind(socket: &Pinned, fd: RawFd, address: SocketAddr) -> Result<(), Errno> {
    // A socket that the kernel has named or connected cannot be bound: the kernel says so.
    if socket.has(flag::KERNEL_PEER) || socket.has(flag::KERNEL_NAMED) {
        return Err(TO_KERNEL);
    }
    attach::follow_changes();
    bind_to(socket, fd, address, true)?;
    socket.set(flag::EXPLICIT);
    Ok(())
}

/// Whether a bind to this address concerns both worlds.
fn is_dual(address: &SocketAddr) -> bool {
    is_wildcard(address) || address.ip().to_canonical().is_multicast()
}

/// Binds in the service and, with a dual address and `both`, in the kernel.
fn bind_to(socket: &Pinned, fd: RawFd, address: SocketAddr, both: bool) -> Result<(), Errno> {
    bind_at(attach::present()?, socket, fd, address, both)
}

/// As [`bind_to`], asking this server first.
fn bind_at(
    mut attachment: attach::Current,
    socket: &Pinned,
    fd: RawFd,
    address: SocketAddr,
    both: bool,
) -> Result<(), Errno> {
    let mut redirects = socket::Redirects::new();
    for _ in 0..PORT_TRIES {
        let body = bind_request(fd, socket, to_service(address));
        let reply = match attachment.ask_socket(NO_SLOT, 0, body) {
            Ok(reply) => reply,
            Err(errno) => {
                attachment = attach::successor(&attachment, errno)?;
                continue;
            }
        };
        match reply.errno {
            0 => {}
            NOT_OURS => return bind_by_kernel(socket, fd, &address),
            ELSEWHERE => {
                attachment = redirects.follow(&reply)?;
                continue;
            }
            errno => return Err(Errno(errno)),
        }
        if let Err(errno) = socket.open_record(&attachment, reply.slot, reply.generation) {
            // Nobody else knows of it.
            let close = RequestBody::Close { abort: true };
            let _: Result<(), Errno> = attachment.tell(reply.slot, reply.generation, close);
            return Err(errno);
        }
        let port = reply.local.map_or(address.port(), |local| local.port());
        let bound = match both && is_dual(&address) {
            true => sys::bind(fd, &SocketAddr::new(address.ip(), port)),
            false => Ok(()),
        };
        match bound {
            Ok(()) => {
                socket.put(flag::DUAL, is_dual(&address));
                opened(socket, Phase::Bound);
                return Ok(());
            }
            Err(errno) => {
                drop_record(socket);
                if errno != Errno::EADDRINUSE || address.port() != 0 {
                    return Err(errno);
                }
            }
        }
    }
    Err(Errno::EADDRINUSE)
}

/// The request that binds a socket, with the options that its placeholder has.
fn bind_request(fd: RawFd, socket: &Socket, address: SocketAddr) -> RequestBody {
    RequestBody::BindDatagram {
        address,
        reuse_address: options::is_on(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR),
        reuse_port: options::is_on(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT),
        v6only: socket.domain() == libc::AF_INET6
            && options::is_on(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    }
}

/// Binds to an address of the kernel's: the socket is the kernel's if that succeeds.
fn bind_by_kernel(socket: &Pinned, fd: RawFd, address: &SocketAddr) -> Result<(), Errno> {
    // Only the caller knows the interface of a link-local address.
    let scoped = matches!(address.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local());
    if !scoped {
        sys::bind(fd, address)?;
    }
    match socket::become_kernel(socket, fd) {
        Err(TO_KERNEL) if !scoped => Ok(()),
        other => other,
    }
}

// --- another server ----------------------------------------------------------------------------

/// The server is another: binds and connects to where the record of the dead one says. Where it
/// cannot be bound the record stays that of the dead server, so that it can be tried again.
///
/// # Errors
/// The service's; `EAGAIN` while a thread looks at the old record.
pub(crate) fn reopen(socket: &Pinned) -> Result<(), Errno> {
    let fd = socket.number();
    let attachment = match attach::has_left(socket.server()) {
        true => attach::present()?,
        false => socket.attachment()?,
    };
    let kept = socket.datagram.names.lock()?.take();
    let of_record = || socket.stream().map(|old| (old.local_address(), old.remote_address()));
    let names = kept.or_else(of_record).unwrap_or_default();
    socket.datagram.keep_names(Some(names));
    let (local, remote) = names;
    let bound = socket.has(flag::HALFWAY) && !is_past(socket);
    // Nobody takes it for one that has no peer meanwhile, nor if the server of its peer dies before it is connected.
    socket.put(flag::HALFWAY, remote.is_some());
    if let Some(local) = local.filter(|local| local.port() != 0 && !bound) {
        // The kernel's half, if there is one, has kept its name.
        bind_at(attachment, socket, fd, local, false)?;
    }
    if let Some(remote) = remote {
        connect_by_service(socket, fd, remote)?;
    }
    socket.datagram.keep_names(None);
    Ok(())
}

/// Whether the record of a socket is one of a server that has died or left.
fn is_past(socket: &Socket) -> bool {
    socket.stream().is_none_or(|record| is_of_lost_server(socket, &record))
}

/// A call has found the server of the socket's record dead: waits until the socket is open on
/// another, for which the call must not hold its record. `deadline_ns`: of the call, if it has one.
///
/// # Errors
/// `ECONNRESET` when there will be no other; `EAGAIN` when the call does not block or its time is
/// over; `EBADF` when the descriptor was closed; why it could not be opened.
pub(crate) fn come_back(
    socket: &Pinned,
    fd: RawFd,
    blocking: bool,
    deadline_ns: Option<u64>,
) -> Result<(), Errno> {
    while !is_back(socket)? {
        if !blocking || deadline_ns.is_some_and(|at| sys::clock_monotonic_ns() >= at) {
            return Err(Errno::EAGAIN);
        }
        attach::sleep_ms(2);
        if !socket.is_behind(fd) {
            return Err(Errno::EBADF);
        }
    }
    Ok(())
}

/// Patience with a failure by the end of a server of which nothing is known yet: whoever ends says so in several
/// places, one after the other.
#[derive(Default)]
pub(crate) struct Doubt {
    looks: u32,
}

impl Doubt {
    /// After such a failure: waits a moment, and says whether to look again; no more after half a second.
    pub(crate) fn waits(&mut self) -> bool {
        const LOOKS: u32 = 250;
        self.looks += 1;
        if self.looks <= LOOKS {
            attach::sleep_ms(2);
        }
        self.looks <= LOOKS
    }
}

/// Before a wait looks at a socket: one that has not come back with the others, although there is
/// another server, does so now. Else the wait would report something to read, by which a read that
/// blocks would find nothing. What goes wrong here is the read's to tell. False: it has to be tried again.
/// Not to be called with a lock held.
pub(crate) fn bring_back(socket: &Pinned) -> bool {
    if !is_stranded(socket) {
        return true;
    }
    is_back(socket).unwrap_or_else(|_| {
        socket.set(flag::UNOPENED);
        true
    })
}

/// Whether the server of a socket has died or left, or is about to leave and has closed it: the socket is to be
/// opened at the next server, or at another.
pub(crate) fn is_stranded(socket: &Socket) -> bool {
    let lost = |record: StreamRef<'_>| has_lost_server(socket, &record);
    socket.stream().is_some_and(lost)
}

/// Whether a record was closed by a server that leaves the service: the socket is opened at another once that is gone.
fn is_left_behind(socket: &Socket, record: &Record) -> bool {
    record.status() & status::CLOSED != 0 && attach::leaves(socket.server())
}

/// Whether a call that failed with [`SERVICE_GONE`] did so by the death of the server that keeps the
/// record. The epoch says so a moment later than the server's end of a channel.
fn has_lost_server(socket: &Socket, record: &Record) -> bool {
    socket.has(flag::HALFWAY) || is_of_lost_server(socket, record)
}

fn is_of_lost_server(socket: &Socket, record: &Record) -> bool {
    let is_dying = |server| {
        attach::existing(server)
            .is_some_and(|now| now.life() != record.memory.life() || now.is_gone())
    };
    let server = socket.server();
    record.memory.is_past()
        || is_left_behind(socket, record)
        || is_dying(server)
        || attach::has_left(server)
}

/// Opens a socket at the server that has come after its own, or at another where that has left, once there is one.
fn is_back(socket: &Pinned) -> Result<bool, Errno> {
    let back = match try_to_come_back(socket) {
        // The next server has died over it, too, or another that had a part in it.
        Err(SERVICE_GONE) if !is_over(socket.server()) => Ok(false),
        other => other,
    };
    if back == Ok(true) {
        socket.clear(flag::UNOPENED);
    }
    back
}

/// Whether nothing comes after a server.
fn is_over(server: u16) -> bool {
    attach::existing(server).is_none_or(|attachment| attachment.fate() == Fate::Over)
}

fn try_to_come_back(socket: &Pinned) -> Result<bool, Errno> {
    let server = socket.server();
    if attach::has_left(server) {
        return match restore::elsewhere(socket) {
            Ok(()) => Ok(true),
            Err(Errno::EAGAIN) => Ok(!attach::has_left(socket.server())),
            // One of those that stay has died over it.
            Err(SERVICE_GONE) if attach::goes_on_without(server) => Ok(false),
            Err(errno) => Err(errno),
        };
    }
    if socket.stream().is_some_and(|record| is_left_behind(socket, &record)) {
        // Its server is about to end.
        return Ok(false);
    }
    let attachment = match attach::of(server) {
        // A child that has yet to attach can do so only when the server is back.
        Err(_) if attach::is_between(server) => return Ok(false),
        other => other?,
    };
    match attachment.fate() {
        Fate::Over => return Err(SERVICE_GONE),
        Fate::Awaited | Fate::Replaced => return Ok(false),
        Fate::Alive => {}
    }
    let outcome = restore::late(&attachment, socket);
    if attachment.fate() != Fate::Alive {
        return Ok(false);
    }
    match outcome {
        Ok(()) => Ok(true),
        // The server of its peer will be back as well, or there will be another.
        Err(Errno::EAGAIN | SERVICE_GONE) if socket.has(flag::HALFWAY) => Ok(false),
        Err(Errno::EAGAIN) => Ok(!socket.is_behind_times(&attachment)),
        Err(errno) => Err(errno),
    }
}

/// A socket that sends before it was bound gets a port, the same in both worlds if possible.
fn bind_implicitly(socket: &Pinned, fd: RawFd) -> Result<(), Errno> {
    let anywhere = unspecified(socket.domain());
    let named = sys::getsockname(fd)?.map_or(0, |name| name.port());
    if named == 0 {
        return bind_to(socket, fd, anywhere, true);
    }
    // The kernel has given it a port already.
    let same = SocketAddr::new(anywhere.ip(), named);
    match bind_to(socket, fd, same, false) {
        Err(Errno::EADDRINUSE) => bind_to(socket, fd, anywhere, false),
        other => other,
    }
}

// --- connect -----------------------------------------------------------------------------------

/// connect(2).
pub(crate) fn connect(socket: &Pinned, fd: RawFd, remote: SocketAddr) -> Result<(), Errno> {
    if remote.is_ipv6() && socket.domain() == libc::AF_INET {
        return Err(Errno::EAFNOSUPPORT);
    }
    attach::follow_changes();
    match routes::find(remote.ip())? {
        Route::Kernel => connect_by_kernel(socket, fd, remote),
        Route::Haypile(answer) => {
            if answer.broadcast && !socket.datagram.broadcast.load(Ordering::Relaxed) {
                return Err(Errno::EACCES);
            }
            connect_by_service(socket, fd, remote)
        }
    }
}

fn connect_by_kernel(socket: &Pinned, fd: RawFd, remote: SocketAddr) -> Result<(), Errno> {
    if socket.phase() == Phase::Stream {
        dissolve(socket)?;
    }
    if socket.phase() != Phase::Bound {
        // Without a record nothing is lost if the kernel refuses.
        socket.set(flag::KERNEL_PEER);
        return Err(TO_KERNEL);
    }
    if !socket.has(flag::DUAL) {
        return Err(Errno::ENETUNREACH);
    }
    sys::connect(fd, &remote)?;
    socket.set(flag::KERNEL_PEER);
    announce(socket);
    Ok(())
}

fn connect_by_service(socket: &Pinned, fd: RawFd, remote: SocketAddr) -> Result<(), Errno> {
    if socket.clear(flag::KERNEL_PEER) {
        sys::disconnect(fd)?;
    }
    let mut attachment = socket.attachment()?;
    let mut redirects = socket::Redirects::new();
    let (slot, reply) = loop {
        let (slot, generation) = if socket.has_record() { socket.name() } else { (NO_SLOT, 0) };
        let body = RequestBody::ConnectDatagram { remote: Some(to_service(remote)) };
        let reply = attachment.ask_socket(slot, generation, body)?;
        match reply.errno {
            0 => break (slot, reply),
            NOT_OURS => return Err(Errno::ENETUNREACH),
            ELSEWHERE => {
                let next = redirects.follow(&reply)?;
                if slot != NO_SLOT {
                    move_to(&next, socket)?;
                }
                attachment = next;
            }
            errno => return Err(Errno(errno)),
        }
    };
    if slot == NO_SLOT {
        socket.open_record(&attachment, reply.slot, reply.generation)?;
        socket.clear(flag::HALFWAY);
        opened(socket, Phase::Stream);
    } else {
        socket.set_phase(Phase::Stream);
        socket.clear(flag::HALFWAY);
        announce(socket);
    }
    Ok(())
}

/// A bound socket goes to another server, before it is connected there.
fn move_to(next: &attach::Attachment, socket: &Pinned) -> Result<(), Errno> {
    let local = socket.stream().and_then(|record| record.local_address());
    let body = bind_request(socket.number(), socket, local.ok_or(Errno::EINVAL)?);
    let before = (socket.attachment()?, socket.name());
    let bound = next.ask_socket(NO_SLOT, 0, body)?;
    if bound.errno != 0 {
        return Err(Errno(bound.errno));
    }
    socket.open_record(next, bound.slot, bound.generation)?;
    options::replay(socket);
    let (attachment, (slot, generation)) = before;
    let close = RequestBody::Close { abort: false };
    let _: Result<(), Errno> = attachment.tell(slot, generation, close);
    Ok(())
}

/// connect(2) with `AF_UNSPEC`.
pub(crate) fn disconnect(socket: &Pinned, fd: RawFd) -> Result<(), Errno> {
    if socket.clear(flag::KERNEL_PEER) {
        sys::disconnect(fd)?;
        announce(socket);
        return Ok(());
    }
    match socket.phase() {
        Phase::Stream => dissolve(socket),
        Phase::Bound => {
            if socket.clear(flag::HALFWAY) {
                socket.datagram.keep_names(None);
                announce(socket);
            }
            Ok(())
        }
        _ => Err(TO_KERNEL),
    }
}

/// Makes an unconnected socket of one that is connected over Haypile: a bound one if it was bound,
/// else one without a name.
fn dissolve(socket: &Pinned) -> Result<(), Errno> {
    if !socket.has(flag::EXPLICIT) && !socket.has(flag::DUAL) {
        drop_record(socket);
        socket.set_phase(Phase::Fresh);
        announce(socket);
        return Ok(());
    }
    let (slot, generation) = socket.name();
    let body = RequestBody::ConnectDatagram { remote: None };
    let reply = socket.attachment()?.ask_socket(slot, generation, body)?;
    if reply.errno != 0 {
        return Err(Errno(reply.errno));
    }
    socket.set_phase(Phase::Bound);
    announce(socket);
    Ok(())
}

/// shutdown(2): an error on a socket without a peer, which poll and waiting calls see nevertheless.
pub(crate) fn shutdown(
    socket: &Pinned,
    fd: RawFd,
    how: i32,
    flags: u32,
    direction: haypile_shm::messages::Shutdown,
) -> Result<(), Errno> {
    match socket.world() {
        World::Kernel => return Err(TO_KERNEL),
        World::Both => drop(sys::shutdown(fd, how)),
        World::Haypile => {}
    }
    socket.set(flags);
    socket.tell(RequestBody::Shutdown { how: direction })?;
    if socket.phase() == Phase::Stream { Ok(()) } else { Err(Errno::ENOTCONN) }
}

// --- readiness ---------------------------------------------------------------------------------

/// What the Haypile half of a UDP socket is ready for; whoever finds no room has asked for it.
pub(crate) fn readiness(socket: &Socket, wanted: u32) -> u32 {
    if socket.world() == World::Kernel {
        return 0;
    }
    let Some(stream) = socket.stream() else { return IN | OUT | ERR | HUP | RDHUP };
    let state = stream.status();
    // What goes wrong with a return is told by the read that follows.
    let told = if socket.has(flag::UNOPENED) { IN } else { 0 };
    if is_left_behind(socket, &stream) || socket.has(flag::HALFWAY) {
        return told;
    }
    if state & status::CLOSED != 0 {
        return IN | OUT | ERR | HUP | RDHUP;
    }
    if stream.memory.is_past() {
        if stream.readable() > 0 {
            return IN;
        }
        drop(stream);
        // It comes back with the attachment to the next server, perhaps with this very look, or else before the
        // next one (`bring_back`).
        let attached = attach::of(socket.server()).is_ok_and(|attachment| !attachment.is_gone());
        let is_back = || socket.stream().is_some_and(|now| !now.memory.is_past());
        return if attached && is_back() { readiness(socket, wanted) } else { told };
    }
    let mut bits = 0;
    if stream.has_error() || state & status::ERRORS != 0 {
        bits |= ERR;
    }
    let read_end = state & status::RX_SHUT != 0 || socket.has(flag::SHUT_READ);
    let write_end = state & status::TX_SHUT != 0 || socket.has(flag::SHUT_WRITE);
    if read_end {
        bits |= IN | RDHUP;
    }
    if stream.readable() > 0 {
        bits |= IN;
    }
    if read_end && write_end {
        bits |= HUP;
    }
    if stream.has_record_room() {
        bits |= OUT | WRBAND;
    } else if wanted & (OUT | WRBAND) != 0 && stream.want_tx() {
        // A service that is gone shows in the next look.
        let _: Result<(), Errno> = socket.tell(RequestBody::WantTx);
    }
    bits
}

/// What the kernel's half of a UDP socket is asked for in a wait, of what is `wanted`; `None`: there
/// is no such half, or it is left out of waits.
pub(crate) fn kernel_wish(socket: &Socket, wanted: u32) -> Option<u32> {
    const INCOMING: u32 = (libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLRDNORM) as u32;
    match socket.world() {
        World::Kernel => Some(wanted),
        World::Both => Some(wanted & INCOMING),
        World::Haypile => None,
    }
}

/// A UDP placeholder of our domain from another process or through `exec`.
pub(crate) fn adopted(socket: &Pinned, fd: RawFd) {
    socket.set(flag::DATAGRAM);
    let connected = socket.stream().is_some_and(|one| one.status() & status::CONNECTED != 0);
    let name = sys::getsockname(fd).ok().flatten();
    socket.put(flag::DUAL, name.is_some_and(|name| name.port() != 0));
    socket.put(flag::KERNEL_PEER, sys::getpeername(fd).is_ok());
    socket.set(flag::EXPLICIT);
    socket.set_phase(if connected { Phase::Stream } else { Phase::Bound });
    options::read_back(socket, fd);
}
