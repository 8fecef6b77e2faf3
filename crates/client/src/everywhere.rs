//! Listeners are open at every transport server: each has a record of its own for them, because
//! servers share nothing. The first record, which the socket keeps itself, is like any other
//! socket's; here are the others, and how they are opened.
//!
//! Servers that come while the program runs get its listeners in its next call that waits or accepts
//! ([`follow`]); each call that could have been waiting is woken for it. A listener whose first record is with a
//! server that leaves gets that of another for its first.
//!
//! Server 0 decides whose a port is, and the others follow; a refusal undoes everything. A server
//! that is dead at the time opens the listener when it is attached to again (`restore.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use haypile_shm::Errno;
use haypile_shm::epoch::EPOCH_SERVERS;
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::{ControlReply, ControlRequest, RequestBody, SocketKind, SocketReply};
use haypile_shm::sys;

use crate::addresses::{to_service, unspecified};
use crate::attach::{self, Attachment};
use crate::entry::{self, Phase, Pinned, SOCKETS, Socket, flag};
use crate::errno::SERVICE_GONE;
use crate::restore::Patience;
use crate::{accept, epoll, options};

/// The record of a listener at one server.
#[derive(Debug)]
pub(crate) struct Further {
    /// Which server, and which life of it.
    life: AtomicU64,
    slot: AtomicU32,
    generation: AtomicU32,
}

impl Further {
    fn none() -> Further {
        Further {
            life: AtomicU64::new(0),
            slot: AtomicU32::new(NO_SLOT),
            generation: AtomicU32::new(0),
        }
    }

    fn set(&self, attachment: &Attachment, slot: u32, generation: u32) {
        // Nobody may take the new name for one of another life.
        self.slot.store(NO_SLOT, Ordering::Release);
        self.life.store(attachment.life(), Ordering::Release);
        self.generation.store(generation, Ordering::Release);
        self.slot.store(slot, Ordering::Release);
    }

    fn name_in(&self, attachment: &Attachment) -> Option<(u32, u32)> {
        let before = self.life.load(Ordering::Acquire);
        let slot = self.slot.load(Ordering::Acquire);
        let generation = self.generation.load(Ordering::Acquire);
        let same = before == attachment.life() && self.life.load(Ordering::Acquire) == before;
        (slot != NO_SLOT && same).then_some((slot, generation))
    }
}

/// The further records of a listener, by server.
pub(crate) type Records = Arc<[Further]>;

/// Room for the records of a listener at every server that there may ever be.
pub(crate) fn records() -> Records {
    (0..EPOCH_SERVERS).map(|_| Further::none()).collect()
}

impl Socket {
    /// The name of a listener with a server that does not keep its first record.
    #[cold]
    pub(crate) fn further_name_in(&self, attachment: &Attachment) -> Option<(u32, u32)> {
        let records = self.further()?;
        records.get(usize::from(attachment.server()))?.name_in(attachment)
    }

    /// Notes the record of a listener at a further server.
    pub(crate) fn set_further(&self, attachment: &Attachment, slot: u32, generation: u32) {
        if let Some(records) = self.further()
            && let Some(record) = records.get(usize::from(attachment.server()))
        {
            record.set(attachment, slot, generation);
        }
    }

    /// Calls `visit` with every present attachment to a server that knows the socket, and its name
    /// there.
    pub(crate) fn for_each_name(&self, mut visit: impl FnMut(&Attachment, (u32, u32))) {
        let mut look = |attachment: &Attachment| {
            if let Some(name) = self.name_in(attachment) {
                visit(attachment, name);
            }
        };
        if !self.has(flag::EVERYWHERE) {
            // Again where it has moved meanwhile.
            for _ in 0..4 {
                let before = self.full_name();
                if self.has_record()
                    && let Ok(attachment) = attach::of(self.server())
                {
                    look(&attachment);
                }
                if self.full_name() == before {
                    break;
                }
            }
            return;
        }
        for server in attach::all_from_home() {
            if let Ok(attachment) = attach::of(server) {
                look(&attachment);
            }
        }
    }

    /// Sends a request about a listener to every server.
    #[cold]
    pub(crate) fn tell_everywhere(&self, body: RequestBody) -> Result<(), Errno> {
        let mut outcome = Ok(());
        self.for_each_name(|attachment, (slot, generation)| {
            if attachment.is_gone() {
                // Its successor is told everything.
                return;
            }
            outcome = outcome.and(attachment.tell(slot, generation, body));
        });
        outcome
    }
}

/// Every server at which a socket is, or would have to be, other than that of its first record.
fn others(socket: &Socket) -> impl Iterator<Item = u16> {
    let first = socket.server();
    (0..attach::servers()).filter(move |server| *server != first)
}

/// Opens a listener at every server but the first, which has it already; [`answer`] follows.
///
/// # Errors
/// The refusal of one of them; then it is open at none of them.
pub(crate) fn open(socket: &Socket, listen: RequestBody) -> Result<(), Errno> {
    if attach::servers() <= 1 {
        return Ok(());
    }
    if socket.has(flag::EVERYWHERE) {
        return change(socket, listen);
    }
    socket.go_everywhere()?;
    for server in others(socket) {
        let attachment = match attach::present_of(server) {
            Ok(attachment) if !attachment.is_gone() => attachment,
            // It will be asked when it is back.
            _ => continue,
        };
        if let Err(errno) = open_soon_at(&attachment, socket, listen) {
            if errno == SERVICE_GONE && attachment.is_gone() {
                continue;
            }
            undo(socket);
            return Err(errno);
        }
    }
    Ok(())
}

/// Opens a listener where it could not be opened before because the server was dead.
pub(crate) fn complete(socket: &Socket) {
    if !socket.has(flag::EVERYWHERE) {
        return;
    }
    for attachment in others(socket).filter_map(attach::existing) {
        if !attachment.is_gone() && socket.name_in(&attachment).is_none() {
            restore(&attachment, socket);
        }
    }
}

/// Servers have come, or leave: opens all listeners of the process where they are to be. False: to be tried again.
pub(crate) fn follow() -> bool {
    let mut sockets = Vec::new();
    SOCKETS.for_each(|index, _| sockets.push(index));
    let mut listeners: Vec<Pinned> = sockets.into_iter().filter_map(entry::pin).collect();
    listeners.retain(|socket| socket.phase() == Phase::Listening);
    if listeners.is_empty() {
        return true;
    }
    let single = |socket: &&Pinned| !socket.has(flag::EVERYWHERE);
    // Fails while another thread looks, which is over by the next call.
    if listeners.iter().filter(single).any(|socket| socket.go_everywhere().is_err()) {
        return false;
    }
    // One that cannot be reached now is asked when it can be.
    let _: Result<(), Errno> = attach::all();
    for socket in &listeners {
        complete(socket);
        lead_from_home(socket);
        if socket.set_acceptor(0) != 0 {
            let _: Result<(), Errno> = accept::register(socket);
        }
        socket.for_each_epoll(|epoll| epoll::socket_changed(epoll, socket.index()));
    }
    true
}

/// A listener whose first record is with a server that is to leave: the one at the home becomes the first.
fn lead_from_home(socket: &Pinned) {
    let first = socket.server();
    if first < attach::servers() || !socket.has_record() {
        return;
    }
    let Ok(home) = attach::current() else { return };
    let Some((slot, generation)) = socket.further_name_in(&home) else { return };
    let before =
        attach::existing(first).and_then(|old| socket.name_in(&old).map(|name| (old, name)));
    if socket.open_record(&home, slot, generation).is_ok()
        && let Some((old, (slot, generation))) = before
    {
        // It goes on offering connections until it is gone.
        socket.set_further(&old, slot, generation);
    }
}

/// Has a listener that was begun answer at all its servers from now on. One that dies meanwhile is
/// told everything when it is back.
pub(crate) fn answer(socket: &Socket, listen: RequestBody) {
    socket.for_each_name(|attachment, (slot, generation)| {
        let _: Result<SocketReply, Errno> = attachment.ask_socket(slot, generation, listen);
    });
}

/// Another backlog, for a listener that is open everywhere.
fn change(socket: &Socket, listen: RequestBody) -> Result<(), Errno> {
    for server in others(socket) {
        let Ok(attachment) = attach::present_of(server) else { continue };
        if let Some((slot, generation)) = socket.name_in(&attachment) {
            match attachment.ask_socket(slot, generation, listen) {
                // The next one is told with everything else.
                Err(SERVICE_GONE) => {}
                reply => refusal(reply?)?,
            }
        }
    }
    Ok(())
}

/// As [`open_at`], at a server that may not have heard yet that the last one to have the port is gone: server 0
/// has, or it would not have been given.
fn open_soon_at(
    attachment: &Attachment,
    socket: &Socket,
    listen: RequestBody,
) -> Result<(), Errno> {
    /// A fifth of a second.
    const TRIES: u32 = 100;
    for _ in 1..TRIES {
        match open_at(attachment, socket, listen) {
            Err(Errno::EADDRINUSE) => attach::sleep_ms(2),
            other => return other,
        }
    }
    open_at(attachment, socket, listen)
}

/// Binds and listens at one more server.
pub(crate) fn open_at(
    attachment: &Attachment,
    socket: &Socket,
    listen: RequestBody,
) -> Result<(), Errno> {
    let bound = attachment.ask_socket(NO_SLOT, 0, bind_again(socket))?;
    let (slot, generation) = (bound.slot, bound.generation);
    refusal(bound)?;
    socket.set_further(attachment, slot, generation);
    options::replay(socket);
    let outcome = attachment.ask_socket(slot, generation, listen).and_then(refusal);
    if outcome.is_err() {
        close_at(attachment, socket, slot, generation);
    }
    outcome
}

/// The request that binds a socket to the address that it has.
pub(crate) fn bind_again(socket: &Socket) -> RequestBody {
    let local = socket.stream().and_then(|record| record.local_address());
    RequestBody::Bind {
        address: local.unwrap_or_else(|| to_service(unspecified(socket.domain()))),
        reuse_address: socket.stored.reuse_address(),
        reuse_port: socket.stored.reuse_port(),
        v6only: socket.stored.v6only(),
    }
}

/// The request that makes a listener of a socket.
pub(crate) fn listen_again(socket: &Socket, backlog: u32) -> RequestBody {
    RequestBody::Listen {
        backlog,
        v6only: socket.stored.v6only(),
        reuse_port: socket.stored.reuse_port(),
        // A listener's placeholder is never a duplicate of the template.
        cookie: sys::so_cookie(socket.number()).unwrap_or(0),
        opening: false,
    }
}

/// The first word of a listener that is to be opened at several servers: none answers before all can,
/// or who has been answered by one could be refused by the next. A member of a group begins at once:
/// the group may be answering already, and SYNs that fall to a silent member would be late.
pub(crate) fn begin(socket: &Socket, listen: RequestBody) -> RequestBody {
    let first = attach::servers() > 1 && !socket.has(flag::EVERYWHERE);
    match listen {
        RequestBody::Listen { backlog, v6only, reuse_port: false, cookie, .. } if first => {
            RequestBody::Listen { backlog, v6only, reuse_port: false, cookie, opening: true }
        }
        other => other,
    }
}

fn refusal(reply: SocketReply) -> Result<(), Errno> {
    if reply.errno == 0 { Ok(()) } else { Err(Errno(reply.errno)) }
}

fn close_at(attachment: &Attachment, socket: &Socket, slot: u32, generation: u32) {
    let close = RequestBody::Close { abort: true };
    let _: Result<(), Errno> = attachment.tell(slot, generation, close);
    socket.set_further(attachment, NO_SLOT, 0);
}

/// Closes what was opened at further servers.
fn undo(socket: &Socket) {
    for server in others(socket) {
        if let Some(attachment) = attach::existing(server)
            && let Some((slot, generation)) = socket.name_in(&attachment)
        {
            close_at(&attachment, socket, slot, generation);
        }
    }
    socket.clear(flag::EVERYWHERE);
}

/// The server of an attachment is another one, or has come later than the others: the listener is
/// opened there, if it was not held.
pub(crate) fn restore(attachment: &Attachment, socket: &Socket) {
    let request = ControlRequest::Restore { shared: socket.has(flag::SHARED) };
    let placeholder = socket.number();
    let mut patience = Patience::new(socket);
    loop {
        let held = ask(attachment, &request, placeholder);
        if let Ok((slot, generation, SocketKind::Listener)) = held {
            return socket.set_further(attachment, slot, generation);
        }
        let opened = open_at(attachment, socket, listen_again(socket, socket.backlog()));
        let Err(errno) = opened else {
            if socket.has(flag::SHARED)
                && let Some(name) = socket.name_in(attachment)
            {
                let _: Result<(), Errno> = show(attachment, name, placeholder);
            }
            return;
        };
        if attachment.is_gone() || !patience.is_left(errno) {
            break;
        }
    }
    socket.set_further(attachment, NO_SLOT, 0);
}

/// Tells a server that others may hold the socket, and shows it the placeholder.
pub(crate) fn show(
    attachment: &Attachment,
    (slot, generation): (u32, u32),
    placeholder: i32,
) -> Result<(), Errno> {
    let cookie = sys::so_cookie(placeholder)?;
    attachment.tell(slot, generation, RequestBody::Shared { cookie })?;
    // Without the sight of it the service lets the socket end with the last process.
    ask(attachment, &ControlRequest::Adopt, placeholder).map(drop)
}

/// A listener that came from another process or through `exec`: asks the other servers for their
/// records of it.
pub(crate) fn adopt(socket: &Socket, placeholder: i32) -> Result<(), Errno> {
    if attach::servers() <= 1 {
        return Ok(());
    }
    socket.go_everywhere()?;
    for server in others(socket) {
        let Ok(attachment) = attach::of(server) else { continue };
        let found = ask(&attachment, &ControlRequest::Adopt, placeholder);
        if let Ok((slot, generation, SocketKind::Listener)) = found {
            socket.set_further(&attachment, slot, generation);
        }
    }
    Ok(())
}

/// Asks a server what a placeholder stands for: slot, generation and kind.
pub(crate) fn ask(
    attachment: &Attachment,
    request: &ControlRequest,
    placeholder: i32,
) -> Result<(u32, u32, SocketKind), Errno> {
    let is_answer = |reply: &ControlReply| matches!(reply, ControlReply::Adopted { .. });
    let (reply, _) = attachment.ask(request, &[placeholder], is_answer)?;
    match reply {
        ControlReply::Adopted { errno: 0, slot, generation, kind } => Ok((slot, generation, kind)),
        ControlReply::Adopted { errno, .. } => Err(Errno(errno)),
        _ => Err(SERVICE_GONE),
    }
}
