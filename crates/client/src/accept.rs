//! Accepting: offers of connections come on a ring, one word of the record decides by
//! compare-and-swap who has it, and neither the hit nor the miss of an accept waits for anybody.
//!
//! `Offers` sorts what came by listener. A process registers as an acceptor on its first accept or
//! wait, and again when an offer turns out to be revoked: it was too slow once, so the service has
//! taken it off its list. A dual listener asks its kernel half too. Read `socket.rs` first.
//!
//! With several servers the registration is said to the home alone, and offers come from all: an
//! accept looks at the rings of all servers, at another one first each time.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering::Relaxed;

use haypile_shm::messages::{Offer, RequestBody};
use haypile_shm::spin::Spinner;
use haypile_shm::stream::status;
use haypile_shm::sys::{self, Waited};
use haypile_shm::{Consumer, Errno};

use crate::addresses::{to_application, unspecified};
use crate::attach::{self, Attachment, Current, Fate};
use crate::entry::{self, Phase, Pinned, Socket, flag};
use crate::errno::SERVICE_GONE;
use crate::memory::Record;
use crate::places::StreamRef;
use crate::poll::until_readable;
use crate::sleep::{Plain, Sleeper};
use crate::{memory, placeholder, socket};

/// Longest sleep before the life of the service is looked at again.
const SLICE_NS: u64 = 1_000_000_000;
/// The same where the sleep does not end by itself when the server dies.
const SHORT_SLICE_NS: u64 = 50_000_000;
/// The same while a server is dead and another is expected.
const AWAITING_NS: u64 = 5_000_000;

/// Offers that have come, by listener.
#[derive(Debug)]
pub(crate) struct Offers {
    ring: Consumer,
    queues: Vec<Queue>,
}

#[derive(Debug)]
struct Queue {
    listener: (u32, u32),
    connections: VecDeque<(u32, u32)>,
}

impl Offers {
    pub(crate) fn new(ring: Consumer) -> Offers {
        Offers { ring, queues: Vec::new() }
    }

    fn queue(&mut self, listener: (u32, u32)) -> Option<&mut Queue> {
        self.queues.iter_mut().find(|queue| queue.listener == listener)
    }

    /// From now on offers to this listener are kept.
    fn open(&mut self, listener: (u32, u32)) {
        if self.queue(listener).is_none() {
            // Listeners that are gone have the same slot and another generation.
            self.queues.retain(|queue| queue.listener.0 != listener.0);
            self.queues.push(Queue { listener, connections: VecDeque::new() });
        }
    }

    /// Takes what the ring holds.
    fn drain(&mut self) {
        let mut messages = [[0u64; 8]; 32];
        loop {
            let count = self.ring.pop_burst(&mut messages);
            for message in &messages[..count] {
                if let Ok(offer) = Offer::decode(message)
                    && let Some(queue) = self.queue((offer.listener, offer.listener_generation))
                {
                    queue.connections.push_back((offer.slot, offer.generation));
                }
            }
            if count < messages.len() {
                return;
            }
        }
    }

    fn pop(&mut self, listener: (u32, u32)) -> Option<(u32, u32)> {
        self.drain();
        self.queue(listener)?.connections.pop_front()
    }

    fn put_back(&mut self, listener: (u32, u32), connection: (u32, u32)) {
        if let Some(queue) = self.queue(listener) {
            queue.connections.push_front(connection);
        }
    }

    /// Offers to this listener are void.
    fn close(&mut self, listener: (u32, u32)) {
        self.drain();
        self.queues.retain(|queue| queue.listener != listener);
    }

    fn holds(&mut self, listener: (u32, u32)) -> bool {
        self.drain();
        self.queue(listener).is_some_and(|queue| !queue.connections.is_empty())
    }
}

/// Whether an offer for a listener is at hand. It may be revoked by the time it is claimed.
pub(crate) fn has_offer(listener: &Socket) -> bool {
    if listener.has(flag::EVERYWHERE) {
        return attach::all_from_home().filter_map(attach::existing).any(|at| holds(&at, listener));
    }
    attach::of(listener.server()).is_ok_and(|attachment| holds(&attachment, listener))
}

fn holds(attachment: &Attachment, listener: &Socket) -> bool {
    let Some(name) = listener.name_in(attachment) else { return false };
    attachment.offers().lock().is_ok_and(|mut offers| offers.holds(name))
}

/// Whether a listener listens no more: shutdown(2) was called on it, perhaps by another process that has it.
pub(crate) fn has_ended(listener: &Socket) -> bool {
    if listener.phase() != Phase::Listening {
        return true;
    }
    let Some(first) = attach::existing(listener.server()) else { return false };
    let is_shut = |record: StreamRef<'_>| record.status() & status::RX_SHUT != 0;
    // What the record at a dead server says is past.
    let ended = listener.name_in(&first).is_some()
        && listener.stream().is_some_and(is_shut)
        && !first.is_gone();
    if ended {
        end(listener);
        forget_offers(listener);
    }
    ended
}

/// A listener is a bound socket from now on.
pub(crate) fn end(listener: &Socket) {
    listener.set_acceptor(0);
    listener.set_phase(Phase::Bound);
}

/// What was offered of a listener that has ended at its servers is void.
pub(crate) fn forget_offers(listener: &Socket) {
    for attachment in attach::all_from_home().filter_map(attach::existing) {
        if let Some(name) = listener.name_in(&attachment)
            && let Ok(mut offers) = attachment.offers().lock()
        {
            offers.close(name);
        }
    }
}

/// What has become of the servers of a listener: the best of their fates. Whoever asks is attached
/// to those that have come back.
fn fate(home: &Attachment, listener: &Socket) -> Fate {
    if !listener.has(flag::EVERYWHERE) {
        return home.fate();
    }
    let mut best = Fate::Over;
    // All of them, so that all are attached to again.
    for server in attach::all_from_home() {
        let fate = attach::of(server).map_or(Fate::Over, |attachment| attachment.fate());
        best = match (best, fate) {
            (Fate::Alive, _) | (_, Fate::Alive) => Fate::Alive,
            (Fate::Over, Fate::Over) => Fate::Over,
            _ => Fate::Awaited,
        };
    }
    best
}

/// Whether no server will ever offer a connection of this listener.
pub(crate) fn is_over(listener: &Socket) -> bool {
    attach::current().is_ok_and(|home| fate(&home, listener) == Fate::Over)
}

/// Registers as an acceptor of a listener, if this process is not. What already waits is offered
/// before this returns: a program may look only once.
pub(crate) fn register(listener: &Socket) -> Result<(), Errno> {
    if listener.acceptor() == attach::present_serial() {
        return Ok(());
    }
    if listener.has(flag::EVERYWHERE) {
        // Whoever is chosen as an acceptor must be within reach of every server.
        attach::all()?;
        listener.for_each_name(|attachment, name| {
            if let Ok(mut offers) = attachment.offers().lock() {
                offers.open(name);
            }
        });
    }
    let attachment = attach::current()?;
    // None: its server is dead, and the next one does not know it yet.
    let Some((slot, generation)) = listener.name_in(&attachment) else { return Ok(()) };
    attachment.offers().lock()?.open((slot, generation));
    if listener.set_acceptor(attachment.serial()) != attachment.serial() {
        let told = attachment.tell(slot, generation, RequestBody::Acceptor);
        // An option that nobody has: the answer comes after the offers, as rings keep their order.
        let barrier = RequestBody::GetOption { option: 0 };
        let answer = told.and_then(|()| attachment.ask_option(slot, generation, barrier));
        if answer.err() == Some(SERVICE_GONE) && !attachment.is_awaited() {
            return Err(SERVICE_GONE);
        }
    }
    Ok(())
}

/// accept4(2): the new descriptor and the peer's address. Signal handlers end a wait on a dual
/// listener whatever their flags are.
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn accept(fd: RawFd, flags: i32) -> Result<(RawFd, SocketAddr), Errno> {
    accept_sleeping(fd, flags, &mut Plain)
}

/// As [`accept`], with a sleep for dual listeners that knows which signal handlers end it.
///
/// # Errors
/// As [`accept`].
pub fn accept_sleeping(
    fd: RawFd,
    flags: i32,
    sleeper: &mut dyn Sleeper,
) -> Result<(RawFd, SocketAddr), Errno> {
    let listener = entry::ours(fd)?;
    if listener.has(flag::DATAGRAM) {
        return Err(Errno::EOPNOTSUPP);
    }
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let deadline_ns = match listener.receive_timeout_us.load(Relaxed) {
        0 => None,
        limit_us => Some(sys::clock_monotonic_ns().saturating_add(limit_us * 1000)),
    };
    loop {
        attach::follow_changes();
        let attachment = match attach::current() {
            Err(errno) if attach::is_awaited_by_child(errno) => {
                let over = deadline_ns.is_some_and(|at| sys::clock_monotonic_ns() >= at);
                if listener.has(flag::NONBLOCKING) || over {
                    return Err(Errno::EAGAIN);
                }
                wait_for_server(&listener, fd)?;
                continue;
            }
            attachment => attachment?,
        };
        if has_ended(&listener) {
            return Err(Errno::EINVAL);
        }
        let fate = fate(&attachment, &listener);
        let awaited = matches!(fate, Fate::Awaited | Fate::Replaced);
        if fate == Fate::Over || !awaited && !listener.has_record() {
            // Said once; after that a dual listener goes on with the kernel alone.
            if listener.set(flag::GONE_TOLD) || !listener.has(flag::DUAL) {
                return Err(SERVICE_GONE);
            }
        } else if !awaited {
            register(&listener)?;
        }
        if let Some(accepted) = accept_now(&attachment, &listener, fd, flags)? {
            return Ok(accepted);
        }
        if listener.has(flag::NONBLOCKING) {
            return Err(Errno::EAGAIN);
        }
        if awaited && !listener.has(flag::DUAL) {
            drop(attachment);
            wait_for_server(&listener, fd)?;
        } else {
            wait(attachment, &listener, fd, deadline_ns, sleeper)?;
        }
    }
}

type Accepted = (RawFd, SocketAddr);

/// One look at both worlds.
fn accept_now(
    attachment: &Attachment,
    listener: &Pinned,
    fd: RawFd,
    flags: i32,
) -> Result<Option<Accepted>, Errno> {
    let claimed = match listener.has(flag::EVERYWHERE) {
        true => claim_anywhere(listener, flags)?,
        false => claim_of_living(attachment, listener, flags)?,
    };
    if claimed.is_some() {
        return Ok(claimed);
    }
    if listener.has(flag::DUAL) { accept_kernel(listener, fd, flags) } else { Ok(None) }
}

/// Claims an offer of any server: of the home first, and of the next one first after each success, so
/// that none is kept waiting by the others.
fn claim_anywhere(listener: &Pinned, flags: i32) -> Result<Option<Accepted>, Errno> {
    let servers = attach::all_from_home();
    let count = servers.clone().count();
    let turn = listener.turn.load(Relaxed) as usize % count.max(1);
    for server in servers.cycle().skip(turn).take(count) {
        let Some(attachment) = attach::existing(server) else { continue };
        if let Some(accepted) = claim_of_living(&attachment, listener, flags)? {
            listener.turn.fetch_add(1, Relaxed);
            return Ok(Some(accepted));
        }
    }
    Ok(None)
}

/// Claims an offer of a server that lives; the death of one in the middle of it is no error of the
/// listener's.
fn claim_of_living(
    attachment: &Attachment,
    listener: &Pinned,
    flags: i32,
) -> Result<Option<Accepted>, Errno> {
    if attachment.is_gone() {
        return Ok(None);
    }
    match claim(attachment, listener, flags) {
        Err(SERVICE_GONE) if attachment.is_awaited() => Ok(None),
        other => other,
    }
}

/// Claims an offer. The descriptor comes first, because a claim cannot be taken back for want of
/// one; an offer that finds none stays where it is.
fn claim(
    attachment: &Attachment,
    listener: &Pinned,
    flags: i32,
) -> Result<Option<Accepted>, Errno> {
    let Some(name) = listener.name_in(attachment) else { return Ok(None) };
    let mut number = None;
    let outcome = loop {
        let Some(connection) = attachment.offers().lock()?.pop(name) else { break Ok(None) };
        let fd = match number {
            Some(fd) => fd,
            None => {
                let close_on_exec = flags & libc::SOCK_CLOEXEC != 0;
                match placeholder::duplicate_template(listener.domain(), close_on_exec) {
                    Ok(fd) => *number.insert(fd),
                    Err(errno) => {
                        attachment.offers().lock()?.put_back(name, connection);
                        break Err(errno);
                    }
                }
            }
        };
        let stream = match memory::open_stream(attachment, connection.0, connection.1) {
            Ok(stream) => stream,
            Err(errno) => break Err(errno),
        };
        if !stream.claim() {
            // Revoked: we are on the list no more.
            listener.set_acceptor(0);
            register(listener)?;
            continue;
        }
        number = None;
        break enter(attachment, listener, fd, stream, flags).map(Some);
    };
    if let Some(unused) = number {
        let _: Result<(), Errno> = sys::close(unused);
    }
    outcome
}

/// A claimed connection becomes a socket of the application.
fn enter(
    attachment: &Attachment,
    listener: &Pinned,
    fd: RawFd,
    stream: Record,
    flags: i32,
) -> Result<Accepted, Errno> {
    let (slot, generation) = (stream.slot(), stream.generation());
    let remote = stream.remote_address();
    let entered = entry::make(listener.domain()).and_then(|socket| {
        socket::forget_number(fd);
        socket.set(flag::TEMPLATE);
        socket.put(flag::NONBLOCKING, flags & libc::SOCK_NONBLOCK != 0);
        socket.stored.inherit(&listener.stored);
        socket.receive_low.store(listener.receive_low.load(Relaxed), Relaxed);
        socket.receive_timeout_us.store(listener.receive_timeout_us.load(Relaxed), Relaxed);
        socket.send_timeout_us.store(listener.send_timeout_us.load(Relaxed), Relaxed);
        socket.set_record(stream)?;
        socket.set_phase(Phase::Stream);
        if !entry::enter(fd, &socket) {
            socket.forget_record();
            return Err(Errno::ENFILE);
        }
        match attachment.tell(slot, generation, RequestBody::Claim) {
            // It is ours and has failed already, which its first use says.
            Err(SERVICE_GONE) => {}
            told => told?,
        }
        placeholder::born(&socket);
        Ok(())
    });
    if let Err(errno) = entered {
        let _: Result<(), Errno> = attachment.tell(slot, generation, RequestBody::Refuse);
        // Who refuses is on the list no more: the next accept says anew that it is there.
        listener.set_acceptor(0);
        let _: Result<(), Errno> = sys::close(fd);
        return Err(errno);
    }
    let unknown = || unspecified(listener.domain());
    let remote = remote.map_or_else(unknown, |remote| to_application(remote, listener.domain()));
    Ok((fd, remote))
}

/// The kernel's half of a dual listener. Programs that wait are told by their waits when it is
/// worth asking; for the others every accept asks.
fn accept_kernel(listener: &Pinned, fd: RawFd, flags: i32) -> Result<Option<Accepted>, Errno> {
    if listener.has(flag::WATCHED) && !listener.has(flag::KERNEL_READY) {
        return Ok(None);
    }
    match sys::accept4(fd, flags) {
        Ok((new, remote)) => {
            let new = new.into_raw();
            socket::forget_number(new);
            Ok(Some((new, remote.unwrap_or_else(|| unspecified(listener.domain())))))
        }
        Err(Errno::EAGAIN) => {
            listener.clear(flag::KERNEL_READY);
            Ok(None)
        }
        Err(errno) => Err(errno),
    }
}

/// A blocking accept: spins for a moment, then sleeps. Every return means: look again.
fn wait(
    attachment: Current,
    listener: &Pinned,
    fd: RawFd,
    deadline_ns: Option<u64>,
    sleeper: &mut dyn Sleeper,
) -> Result<(), Errno> {
    let everywhere = listener.has(flag::EVERYWHERE);
    // No sleep on several words ends as it must where there is a time limit.
    if listener.has(flag::DUAL) || everywhere && deadline_ns.is_some() {
        return until_readable(fd, deadline_ns, sleeper);
    }
    let started_ns = sys::clock_monotonic_ns();
    if let Some(patience_ns) = attachment.patience_ns(&listener.gaps)
        && Spinner::new(started_ns, patience_ns).until(|| has_offer(listener))
    {
        listener.gaps.note(sys::clock_monotonic_ns() - started_ns);
        return Ok(());
    }
    if everywhere {
        drop(attachment);
        let outcome = wait_everywhere(listener, fd);
        listener.gaps.note(sys::clock_monotonic_ns() - started_ns);
        return outcome;
    }
    let channel = attachment.channel();
    loop {
        let ticket = channel.prepare_offer_wait();
        let now_ns = sys::clock_monotonic_ns();
        let more_servers = attach::has_changed() || listener.has(flag::EVERYWHERE);
        if has_offer(listener) || has_ended(listener) || more_servers {
            listener.gaps.note(now_ns - started_ns);
            return Ok(());
        }
        // With a time limit every handler ends the call (signal(7)).
        let waited = match deadline_ns {
            None => {
                let word = attachment.memory().now().word();
                let until_ns = now_ns + SLICE_NS;
                channel.wait_offers_both(ticket, word, attachment.epoch(), until_ns)
            }
            Some(deadline_ns) if now_ns >= deadline_ns => return Err(Errno::EAGAIN),
            Some(deadline_ns) => {
                let until_ns = deadline_ns.min(now_ns + SHORT_SLICE_NS);
                channel.wait_offers_interruptibly(ticket, until_ns)
            }
        };
        if waited == Waited::Interrupted {
            return Err(Errno::EINTR);
        }
        if !listener.is_behind(fd) {
            return Err(Errno::EBADF);
        }
        if !attachment.is_alive() || attachment.is_lost() {
            // Offers come over the next one, if there is one.
            return Ok(());
        }
    }
}

/// Sleeps until an offer of any server comes, or one of them dies.
fn wait_everywhere(listener: &Pinned, fd: RawFd) -> Result<(), Errno> {
    let present: Vec<Current> =
        attach::all_from_home().filter_map(attach::existing).filter(|at| !at.is_gone()).collect();
    let tickets: Vec<_> = present.iter().map(|at| at.channel().prepare_offer_wait()).collect();
    if has_offer(listener) || has_ended(listener) || attach::has_changed() {
        return Ok(());
    }
    let words: Vec<_> = present
        .iter()
        .zip(&tickets)
        .flat_map(|(at, ticket)| {
            let epoch = (at.memory().now().word(), at.epoch());
            [at.channel().offer_word(*ticket), epoch]
        })
        .collect();
    // Nobody says when the place of a dead server is taken.
    let all = present.len() >= usize::from(attach::servers());
    let slice_ns = if all { SLICE_NS } else { AWAITING_NS };
    let waited = sys::futex_wait_any(&words, sys::clock_monotonic_ns() + slice_ns);
    if waited == Waited::Interrupted {
        return Err(Errno::EINTR);
    }
    if waited == Waited::TimedOut {
        for attachment in &present {
            // One that is not is passed by from now on.
            let _: bool = attachment.is_alive();
        }
    }
    if listener.is_behind(fd) { Ok(()) } else { Err(Errno::EBADF) }
}

/// Waits a moment for the server that is to come.
fn wait_for_server(listener: &Pinned, fd: RawFd) -> Result<(), Errno> {
    attach::sleep_ms(2);
    if listener.is_behind(fd) { Ok(()) } else { Err(Errno::EBADF) }
}
