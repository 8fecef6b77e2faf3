//! What this process knows of one socket of the application: which phase it is in, where its
//! record lies, and what was set on it. Words are atomic, because threads and signal handlers meet
//! here; nothing is locked on the way to reading and writing.
//!
//! Descriptors that are duplicates of each other share an entry. The entry is pinned while a call
//! uses it, and goes back to the slab when the last descriptor and the last pin are gone. A thread
//! that leaves a blocking call by a long jump keeps its pin: the entry is then never reused, which
//! costs memory and nothing else. Read `socket.rs` for what the phases mean.

use std::os::fd::RawFd;
use std::sync::RwLock;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use haypile_shm::Errno;
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::RequestBody;
use haypile_shm::spin::Gaps;
use haypile_shm::stream::status;
use haypile_shm::sys;

use crate::attach;
use crate::descriptors::{self, Owner};
use crate::errno::TO_KERNEL;
use crate::everywhere::{self, Records};
use crate::memory::{self, Record};
use crate::options::Stored;
use crate::places::{Place, StreamRef};
use crate::slab::{Entry, Slab};
use crate::{datagram, epoll};

/// How far a socket has come.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Phase {
    /// Made, and nothing decided.
    Fresh = 0,
    /// Bound in the service (and in the kernel, if dual).
    Bound = 1,
    /// Listening in the service (and in the kernel, if dual).
    Listening = 2,
    /// A connection, or an attempt at one: the record says which.
    Stream = 3,
    /// The kernel's alone.
    Kernel = 4,
}

/// Bits about a socket.
pub(crate) mod flag {
    /// `O_NONBLOCK`
    pub const NONBLOCKING: u32 = 1 << 0;
    /// Other processes may hold it too: its end is the kernel's to tell.
    pub const SHARED: u32 = 1 << 1;
    /// The placeholder is bound in the kernel as well.
    pub const DUAL: u32 = 1 << 2;
    /// The placeholder is a duplicate of the template and has no identity of its own.
    pub const TEMPLATE: u32 = 1 << 3;
    /// The kernel may hold a connection for this dual listener.
    pub const KERNEL_READY: u32 = 1 << 5;
    /// A wait has looked at this dual listener, so that `KERNEL_READY` can be believed.
    pub const WATCHED: u32 = 1 << 6;
    /// `SHUT_RD` was called here.
    pub const SHUT_READ: u32 = 1 << 7;
    /// `SHUT_WR` was called here.
    pub const SHUT_WRITE: u32 = 1 << 8;
    /// `connect` has reported success.
    pub const CONNECT_REPORTED: u32 = 1 << 9;
    /// More epoll sets hold it than there are places to note them.
    pub const MANY_EPOLLS: u32 = 1 << 10;
    /// An accept has said that the service is gone: waits say it no more, so that an event loop
    /// does not turn for ever on a listener that cannot be helped.
    pub const GONE_TOLD: u32 = 1 << 11;
    /// The last send had `MSG_MORE`, and the service has been told.
    pub const MORE: u32 = 1 << 12;
    /// A UDP socket.
    pub const DATAGRAM: u32 = 1 << 13;
    /// UDP: connected to a peer of the kernel's.
    pub const KERNEL_PEER: u32 = 1 << 14;
    /// UDP: it has sent by the kernel, which may have given it a port.
    pub const KERNEL_NAMED: u32 = 1 << 15;
    /// UDP: the application has bound it.
    pub const EXPLICIT: u32 = 1 << 16;
    /// A listener with records at several servers (`everywhere.rs`).
    pub const EVERYWHERE: u32 = 1 << 17;
    /// UDP: its server is gone and it could not be opened at another one: the next call tells why.
    pub const UNOPENED: u32 = 1 << 18;
    /// UDP: it was bound at another server than before and has yet to be connected there.
    pub const HALFWAY: u32 = 1 << 19;
}

/// One socket.
#[derive(Debug)]
pub(crate) struct Socket {
    uses: AtomicU32,
    /// Descriptor numbers that stand for it in this process.
    descriptors: AtomicU32,
    /// One of those numbers.
    number: AtomicI32,
    /// `AF_INET` or `AF_INET6`.
    domain: AtomicI32,
    phase: AtomicU32,
    flags: AtomicU32,
    slot: AtomicU32,
    generation: AtomicU32,
    /// Odd while `life`, `slot` and `generation` are being changed.
    naming: AtomicU32,
    /// As given to listen(2).
    backlog: AtomicU32,
    /// The attachment over which we are registered as an acceptor of this listener; 0: none.
    acceptor_in: AtomicU32,
    /// Connections accepted, so that all servers have their turn.
    pub(crate) turn: AtomicU32,
    pub(crate) receive_timeout_us: AtomicU64,
    pub(crate) send_timeout_us: AtomicU64,
    /// `SO_RCVLOWAT`: so many bytes make the socket readable, at least 1.
    pub(crate) receive_low: AtomicU32,
    /// How long blocking calls wait.
    pub(crate) gaps: Gaps,
    pub(crate) stored: Stored,
    pub(crate) datagram: datagram::State,
    /// Epoll sets that hold it, by number plus one.
    epolls: [AtomicU32; 2],
    /// The server that keeps the record, and which life of it.
    life: AtomicU64,
    record: Place,
    /// A listener's records at further servers.
    further: RwLock<Option<Records>>,
}

impl Default for Socket {
    fn default() -> Self {
        Socket {
            uses: AtomicU32::new(0),
            descriptors: AtomicU32::new(0),
            number: AtomicI32::new(-1),
            domain: AtomicI32::new(0),
            phase: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            slot: AtomicU32::new(NO_SLOT),
            generation: AtomicU32::new(0),
            naming: AtomicU32::new(0),
            backlog: AtomicU32::new(0),
            acceptor_in: AtomicU32::new(0),
            turn: AtomicU32::new(0),
            receive_timeout_us: AtomicU64::new(0),
            send_timeout_us: AtomicU64::new(0),
            receive_low: AtomicU32::new(1),
            gaps: Gaps::new(),
            stored: Stored::default(),
            datagram: datagram::State::default(),
            epolls: [const { AtomicU32::new(0) }; 2],
            life: AtomicU64::new(0),
            record: Place::default(),
            further: RwLock::new(None),
        }
    }
}

impl Entry for Socket {
    fn uses(&self) -> &AtomicU32 {
        &self.uses
    }
}

/// All sockets of this process.
pub(crate) static SOCKETS: Slab<Socket> = Slab::new();

impl Socket {
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Fresh,
            1 => Phase::Bound,
            2 => Phase::Listening,
            3 => Phase::Stream,
            _ => Phase::Kernel,
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u32, Ordering::Release);
    }

    /// Whether a flag is set.
    #[inline]
    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }

    /// Sets a flag; true if it was not set.
    pub(crate) fn set(&self, flag: u32) -> bool {
        self.flags.fetch_or(flag, Ordering::AcqRel) & flag == 0
    }

    /// Clears a flag; true if it was set.
    pub(crate) fn clear(&self, flag: u32) -> bool {
        self.flags.fetch_and(!flag, Ordering::AcqRel) & flag != 0
    }

    /// Sets or clears a flag.
    pub(crate) fn put(&self, flag: u32, on: bool) {
        let _: bool = if on { self.set(flag) } else { self.clear(flag) };
    }

    pub(crate) fn domain(&self) -> i32 {
        self.domain.load(Ordering::Relaxed)
    }

    /// One of the descriptor numbers.
    pub(crate) fn number(&self) -> RawFd {
        self.number.load(Ordering::Acquire)
    }

    /// How many descriptor numbers stand for it.
    pub(crate) fn descriptors(&self) -> u32 {
        self.descriptors.load(Ordering::Acquire)
    }

    /// Slot and generation of the record; `NO_SLOT` before there is one.
    pub(crate) fn name(&self) -> (u32, u32) {
        (self.slot.load(Ordering::Acquire), self.generation.load(Ordering::Acquire))
    }

    /// As given to listen(2).
    pub(crate) fn backlog(&self) -> u32 {
        self.backlog.load(Ordering::Relaxed)
    }

    /// Keeps what was given to listen(2).
    pub(crate) fn set_backlog(&self, backlog: u32) {
        self.backlog.store(backlog, Ordering::Relaxed);
    }

    /// The attachment over which we are registered as an acceptor; 0: none.
    pub(crate) fn acceptor(&self) -> u32 {
        self.acceptor_in.load(Ordering::Acquire)
    }

    /// Notes that we are registered as an acceptor over an attachment (0: over none); what was
    /// noted before.
    pub(crate) fn set_acceptor(&self, serial: u32) -> u32 {
        self.acceptor_in.swap(serial, Ordering::AcqRel)
    }

    pub(crate) fn has_record(&self) -> bool {
        self.slot.load(Ordering::Acquire) != NO_SLOT
    }

    /// Ties the socket to a record.
    pub(crate) fn open_record(
        &self,
        attachment: &attach::Attachment,
        slot: u32,
        generation: u32,
    ) -> Result<(), Errno> {
        self.set_record(memory::open_stream(attachment, slot, generation)?)
    }

    /// Ties the socket to a record that is open already.
    pub(crate) fn set_record(&self, record: Record) -> Result<(), Errno> {
        let name = record.name();
        self.record.put(record)?;
        self.naming.fetch_add(1, Ordering::AcqRel);
        self.life.store(name.life, Ordering::Release);
        self.generation.store(name.generation, Ordering::Release);
        self.slot.store(name.slot, Ordering::Release);
        self.naming.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Gives a record up that came to nothing.
    pub(crate) fn forget_record(&self) {
        self.slot.store(NO_SLOT, Ordering::Release);
        let _: bool = self.record.clear();
    }

    /// The record.
    #[inline]
    pub(crate) fn stream(&self) -> Option<StreamRef<'_>> {
        self.record.open()
    }

    /// The server that keeps the record, which life of it, and the name there, as of one moment.
    pub(crate) fn full_name(&self) -> FullName {
        // Bounded: a signal handler may have interrupted whoever changes it.
        for turn in 0..1000 {
            let before = self.naming.load(Ordering::Acquire);
            let name = FullName {
                life: self.life.load(Ordering::Acquire),
                slot: self.slot.load(Ordering::Acquire),
                generation: self.generation.load(Ordering::Acquire),
            };
            if before.is_multiple_of(2) && self.naming.load(Ordering::Acquire) == before {
                return name;
            }
            if turn > 10 {
                std::thread::yield_now();
            }
        }
        FullName { life: 0, slot: NO_SLOT, generation: 0 }
    }

    /// In a forked child: whoever was changing the name is not here.
    pub(crate) fn end_naming(&self) {
        if !self.naming.load(Ordering::Relaxed).is_multiple_of(2) {
            self.naming.fetch_add(1, Ordering::Release);
        }
    }

    /// The name of the record with the server of this attachment; `None` if there is none: another
    /// server, dead by now, may have known the socket.
    pub(crate) fn name_in(&self, attachment: &attach::Attachment) -> Option<(u32, u32)> {
        let name = self.full_name();
        if name.life != attachment.life() {
            let further = self.has(flag::EVERYWHERE);
            return further.then(|| self.further_name_in(attachment)).flatten();
        }
        (name.slot != NO_SLOT).then_some((name.slot, name.generation))
    }

    /// The server that keeps the record, the first one of a listener.
    #[inline]
    pub(crate) fn server(&self) -> u16 {
        memory::server_of(self.life.load(Ordering::Acquire))
    }

    /// The attachment to the server that keeps the record; to the home if there is none yet.
    pub(crate) fn attachment(&self) -> Result<attach::Current, Errno> {
        match self.has_record() {
            true if self.phase() == Phase::Stream => attach::near(self.server()),
            true => attach::of(self.server()),
            false => attach::current(),
        }
    }

    /// Whether the record was kept by an earlier life of this attachment's server.
    pub(crate) fn is_behind_times(&self, attachment: &attach::Attachment) -> bool {
        let life = self.life.load(Ordering::Acquire);
        self.has_record()
            && memory::server_of(life) == attachment.server()
            && life != attachment.life()
    }

    /// A listener's records at further servers.
    pub(crate) fn further(&self) -> Option<Records> {
        self.further.try_read().ok()?.clone()
    }

    /// From now on there may be records at further servers.
    pub(crate) fn go_everywhere(&self) -> Result<(), Errno> {
        let Ok(mut place) = self.further.try_write() else { return Err(Errno::EAGAIN) };
        *place = Some(everywhere::records());
        drop(place);
        self.set(flag::EVERYWHERE);
        Ok(())
    }

    /// The server that kept the record is gone, and the socket with it; what was received can still
    /// be read.
    pub(crate) fn forget_name(&self) {
        self.slot.store(NO_SLOT, Ordering::Release);
    }

    /// Sends a request about this socket; nowhere if its server is gone. Of a listener to every
    /// server.
    pub(crate) fn tell(&self, body: RequestBody) -> Result<(), Errno> {
        if self.has(flag::EVERYWHERE) {
            return self.tell_everywhere(body);
        }
        if self.phase() == Phase::Stream {
            return self.tell_of_connection(body);
        }
        let attachment = self.attachment()?;
        match self.name_in(&attachment) {
            Some((slot, generation)) => attachment.tell(slot, generation, body),
            None => Ok(()),
        }
    }

    /// Sends a request about this socket to the home of the process alone.
    pub(crate) fn tell_home(&self, body: RequestBody) -> Result<(), Errno> {
        let attachment = attach::current()?;
        match self.name_in(&attachment) {
            Some((slot, generation)) => attachment.tell(slot, generation, body),
            None => Ok(()),
        }
    }

    /// Notes that an epoll set holds the socket.
    pub(crate) fn note_epoll(&self, epoll: u32) {
        if self.epolls.iter().any(|place| place.load(Ordering::Acquire) == epoll + 1) {
            return;
        }
        let noted = self.epolls.iter().any(|place| {
            place.compare_exchange(0, epoll + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        if !noted {
            self.set(flag::MANY_EPOLLS);
        }
    }

    /// An epoll set holds the socket no more.
    pub(crate) fn forget_epoll(&self, epoll: u32) {
        for place in &self.epolls {
            let _: Result<u32, u32> =
                place.compare_exchange(epoll + 1, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Calls `visit` with every epoll set that may hold the socket.
    pub(crate) fn for_each_epoll(&self, mut visit: impl FnMut(u32)) {
        if self.has(flag::MANY_EPOLLS) {
            epoll::for_each(visit);
            return;
        }
        for place in &self.epolls {
            let noted = place.load(Ordering::Acquire);
            if noted != 0 {
                visit(noted - 1);
            }
        }
    }

    fn reset(&self, domain: i32) {
        self.descriptors.store(0, Ordering::Relaxed);
        self.number.store(-1, Ordering::Relaxed);
        self.domain.store(domain, Ordering::Relaxed);
        self.phase.store(Phase::Fresh as u32, Ordering::Relaxed);
        self.flags.store(0, Ordering::Relaxed);
        self.slot.store(NO_SLOT, Ordering::Relaxed);
        self.generation.store(0, Ordering::Relaxed);
        self.life.store(0, Ordering::Relaxed);
        self.acceptor_in.store(0, Ordering::Relaxed);
        self.turn.store(0, Ordering::Relaxed);
        self.receive_timeout_us.store(0, Ordering::Relaxed);
        self.send_timeout_us.store(0, Ordering::Relaxed);
        self.receive_low.store(1, Ordering::Relaxed);
        self.stored.reset();
        self.datagram.reset();
        for place in &self.epolls {
            place.store(0, Ordering::Relaxed);
        }
    }
}

/// Which record a socket has.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct FullName {
    /// The server that keeps it, and which life of it.
    pub(crate) life: u64,
    /// `NO_SLOT`: none.
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// A socket that cannot go away while this lives.
#[derive(Debug)]
pub(crate) struct Pinned {
    index: u32,
    socket: &'static Socket,
}

impl std::ops::Deref for Pinned {
    type Target = Socket;
    fn deref(&self) -> &Socket {
        self.socket
    }
}

impl Pinned {
    /// The number in the slab.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Whether the descriptor still stands for this socket; asked after every sleep.
    pub(crate) fn is_behind(&self, fd: RawFd) -> bool {
        descriptors::owner(fd) == Owner::Socket(self.index)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if SOCKETS.unpin(self.index) {
            tidy(self.index, self.socket);
        }
    }
}

/// The last user has gone: the entry can be used again, unless a reader was left behind in it.
fn tidy(index: u32, socket: &Socket) {
    if socket.record.clear() {
        if let Ok(mut further) = socket.further.try_write() {
            *further = None;
        }
        SOCKETS.put(index);
    }
}

/// A new socket, pinned, without a descriptor.
pub(crate) fn make(domain: i32) -> Result<Pinned, Errno> {
    let (index, socket) = SOCKETS.take()?;
    socket.reset(domain);
    Ok(Pinned { index, socket })
}

/// Pins a socket by its number in the slab.
pub(crate) fn pin(index: u32) -> Option<Pinned> {
    SOCKETS.pin(index).map(|socket| Pinned { index, socket })
}

/// The socket behind a descriptor, whatever its phase.
///
/// # Errors
/// [`TO_KERNEL`] if the number is the kernel's, `EBADF` for our own, `ENOTSOCK` for an epoll set.
pub(crate) fn behind(fd: RawFd) -> Result<Pinned, Errno> {
    loop {
        match descriptors::owner(fd) {
            Owner::Kernel => return Err(TO_KERNEL),
            Owner::Internal => return Err(Errno::EBADF),
            Owner::Epoll(_) => return Err(Errno::ENOTSOCK),
            Owner::Socket(index) => {
                // Pinned first, then looked at again: it may have been closed and reused.
                if let Some(pinned) = pin(index)
                    && pinned.is_behind(fd)
                {
                    return Ok(pinned);
                }
            }
        }
    }
}

/// The socket behind a descriptor, if it is not the kernel's alone.
pub(crate) fn ours(fd: RawFd) -> Result<Pinned, Errno> {
    let pinned = behind(fd)?;
    if pinned.phase() == Phase::Kernel { Err(TO_KERNEL) } else { Ok(pinned) }
}

/// Enters a descriptor number for a socket. False if it is beyond the table.
pub(crate) fn enter(fd: RawFd, pinned: &Pinned) -> bool {
    // The count of uses includes the descriptors.
    pinned.descriptors.fetch_add(1, Ordering::AcqRel);
    pinned.uses.fetch_add(1, Ordering::AcqRel);
    pinned.number.store(fd, Ordering::Release);
    if descriptors::enter(fd, Owner::Socket(pinned.index)) {
        return true;
    }
    pinned.descriptors.fetch_sub(1, Ordering::AcqRel);
    pinned.uses.fetch_sub(1, Ordering::AcqRel);
    false
}

/// A descriptor number that stood for the socket is out of the table and about to be closed.
pub(crate) fn leave(index: u32, fd: RawFd) {
    let Some(pinned) = pin(index) else { return };
    if pinned.descriptors.fetch_sub(1, Ordering::AcqRel) == 1 {
        end(&pinned);
    } else if pinned.number() == fd {
        find_other_number(&pinned);
    }
    pinned.uses.fetch_sub(1, Ordering::AcqRel);
}

fn find_other_number(pinned: &Pinned) {
    descriptors::for_each_in(0, u32::MAX, |fd, owner| {
        if owner == Owner::Socket(pinned.index) {
            pinned.number.store(fd, Ordering::Release);
        }
    });
}

/// The last descriptor of this process is gone.
fn end(pinned: &Pinned) {
    pinned.for_each_epoll(|epoll| epoll::drop_socket(epoll, pinned.index));
    if !pinned.has_record() {
        return;
    }
    if pinned.has(flag::SHARED) {
        // A child that has yet to attach has nothing to take back: the acceptor is its parent.
        let acceptor = pinned.set_acceptor(0);
        if acceptor != 0 && acceptor == attach::present_serial() {
            let _: Result<(), Errno> = pinned.tell_home(RequestBody::NotAcceptor);
        }
        return;
    }
    if pinned.has(flag::DATAGRAM) {
        let _: Result<(), Errno> = pinned.tell(RequestBody::Close { abort: false });
        return;
    }
    pinned.leave_dead_server();
    let abort = pinned.stored.linger_s() == Some(0);
    if let Some(limit_s) = pinned.stored.linger_s().filter(|limit_s| *limit_s > 0) {
        linger(pinned, limit_s);
    }
    let _: Result<(), Errno> = pinned.tell(RequestBody::Close { abort });
}

/// `SO_LINGER` with a time: close waits until everything is acknowledged, or a signal handler runs;
/// as on Linux also if the socket does not block. Unread bytes mean a reset, for which nobody
/// waits. (Of a shared socket nobody here knows which close is the last: that one does not wait.)
fn linger(pinned: &Pinned, limit_s: u32) {
    let lingers = |stream: &Record| stream.readable() == 0 && stream.unacknowledged() > 0;
    if !pinned.observe(lingers).unwrap_or(false) {
        return;
    }
    let how = haypile_shm::messages::Shutdown::Write;
    let _: Result<(), Errno> = pinned.tell(RequestBody::Shutdown { how });
    let deadline_ns = sys::clock_monotonic_ns() + u64::from(limit_s) * 1_000_000_000;
    let ended = status::FINISHED | status::CLOSED | status::FAILED;
    let slice_ns = 1_000_000_000;
    loop {
        // One that moves meanwhile is waited for where it goes.
        let Some(stream) = pinned.present() else { return };
        let ticket = stream.prepare_wait();
        let now_ns = sys::clock_monotonic_ns();
        let alive = !stream.is_dead();
        let state = stream.status();
        if state & (status::MOVED | status::FAILED) == status::MOVED && now_ns < deadline_ns {
            continue;
        }
        if stream.unacknowledged() == 0 || state & ended != 0 || now_ns >= deadline_ns || !alive {
            return;
        }
        let until_ns = deadline_ns.min(now_ns + slice_ns);
        if stream.wait(ticket, until_ns) == sys::Waited::Interrupted {
            return;
        }
    }
}
