//! What becomes of this process's sockets at a server that has died, when there is another: listeners
//! and bound sockets are opened again, connections have failed.
//!
//! A listener was held by the new server meanwhile and is asked for by its placeholder; one that the
//! server does not hold is made anew. Called by `attach.rs` with the lock of attaching held.
//! Read docs/decisions/0008.

use haypile_shm::Errno;
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::{ControlRequest, RequestBody, SocketKind};

use crate::attach::{self, Attachment};
use crate::entry::{self, Phase, Pinned, SOCKETS, Socket, flag};
use crate::{accept, datagram, everywhere, options, placeholder};

/// All sockets of the process.
pub(crate) fn all(attachment: &Attachment) {
    let mut sockets = Vec::new();
    SOCKETS.for_each(|index, _| sockets.push(index));
    for socket in sockets.into_iter().filter_map(entry::pin) {
        if attachment.is_gone() {
            // The server has died, too: the one after it is asked for the rest.
            return;
        }
        let further = socket.has(flag::EVERYWHERE) && attachment.server() != socket.server();
        let listens = socket.phase() == Phase::Listening;
        if further && listens && socket.name_in(attachment).is_none() {
            everywhere::restore(attachment, &socket);
        } else if !further && socket.is_behind_times(attachment) {
            one(attachment, &socket);
        } else {
            continue;
        }
        if socket.has(flag::EVERYWHERE) && socket.set_acceptor(0) != 0 {
            // The home may have taken this process off its list for want of a way to it.
            let _: Result<(), Errno> = accept::register(&socket);
        }
    }
    // What it holds beyond these was closed meanwhile.
    attachment.announce(&ControlRequest::Restored);
}

/// One socket whose server is gone.
pub(crate) fn one(attachment: &Attachment, socket: &Pinned) {
    let listens = socket.phase() == Phase::Listening;
    if socket.has(flag::DATAGRAM) {
        // What does not come back now does so when it is next used.
        let _: Result<(), Errno> = datagrams(attachment, socket);
        return;
    }
    if socket.is_moved() {
        // It lives on at another server, where it is looked for when it is next used.
        return;
    }
    if !(listens || socket.phase() == Phase::Bound) {
        // The record says that the connection has failed.
        if let Some(record) = socket.stream() {
            record.is_dead();
        }
        socket.forget_name();
        return;
    }
    let mut patience = Patience::new(socket);
    loop {
        let found = if listens { ask(attachment, socket) } else { Err(Errno::ENOENT) };
        let Err(errno) = found.or_else(|_| open(attachment, socket, listens)) else { return };
        if attachment.is_gone() {
            // It has died, too: the one after it is asked.
            return;
        }
        if !patience.is_left(errno) {
            return socket.forget_name();
        }
    }
}

/// How often it is tried to have a port that a sibling may be opening at the same moment: until the
/// sibling has shown what it has opened.
#[derive(Debug)]
pub(crate) struct Patience {
    tries: u32,
    shared: bool,
}

impl Patience {
    pub(crate) fn new(socket: &Socket) -> Patience {
        Patience { tries: 0, shared: socket.has(flag::SHARED) }
    }

    /// After a failure: whether to try again, after a moment where it is worth one.
    pub(crate) fn is_left(&mut self, errno: Errno) -> bool {
        /// Attempts of a process that is alone.
        const ALONE: u32 = 3;
        /// Attempts beside a sibling: half a second.
        const BESIDE: u32 = 250;
        self.tries += 1;
        if !self.shared || errno != Errno::EADDRINUSE {
            return self.tries < ALONE;
        }
        attach::sleep_ms(2);
        self.tries < BESIDE
    }
}

/// A UDP socket that did not come back when this process attached.
///
/// # Errors
/// `EAGAIN` while another thread is at it; why it could not be opened.
pub(crate) fn late(attachment: &Attachment, socket: &Pinned) -> Result<(), Errno> {
    let _one = attach::hold()?;
    if !socket.is_behind_times(attachment) && !socket.has(flag::HALFWAY) {
        return Ok(());
    }
    datagrams(attachment, socket)
}

/// A UDP socket whose server has left the service: it is opened at another.
///
/// # Errors
/// As [`late`].
pub(crate) fn elsewhere(socket: &Pinned) -> Result<(), Errno> {
    // Whoever is sent on to one of them cannot attach to it with the lock held.
    attach::all()?;
    let home = attach::present()?;
    let _one = attach::hold()?;
    if !attach::has_left(socket.server()) {
        return Ok(());
    }
    datagrams(&home, socket)
}

/// A UDP socket: one that several processes have is opened by the first of them, and the others are
/// shown it by its placeholder.
fn datagrams(attachment: &Attachment, socket: &Pinned) -> Result<(), Errno> {
    let shared = socket.has(flag::SHARED);
    let mut patience = Patience::new(socket);
    loop {
        if shared && adopt_anywhere(attachment, socket).is_ok() {
            return Ok(());
        }
        match datagram::reopen(socket) {
            Ok(()) => break,
            Err(Errno::EADDRINUSE) if patience.is_left(Errno::EADDRINUSE) => {}
            Err(errno) => return Err(errno),
        }
    }
    if socket.clear(flag::SHARED) {
        placeholder::share(socket)?;
    }
    Ok(())
}

/// The socket that a sibling has opened: at the same server, or at any where that one has left.
fn adopt_anywhere(attachment: &Attachment, socket: &Pinned) -> Result<(), Errno> {
    let here = adopt(attachment, socket);
    if here.is_ok() || !attach::has_left(socket.server()) {
        return here;
    }
    let others = attach::all_from_home().filter(|server| *server != attachment.server());
    let mut others = others.filter_map(attach::existing).filter(|other| !other.is_gone());
    if others.any(|other| adopt(&other, socket).is_ok()) { Ok(()) } else { here }
}

/// The socket that a sibling has opened.
fn adopt(attachment: &Attachment, socket: &Pinned) -> Result<(), Errno> {
    match everywhere::ask(attachment, &ControlRequest::Adopt, socket.number())? {
        (slot, generation, SocketKind::Datagram) => {
            socket.open_record(attachment, slot, generation)
        }
        _ => Err(Errno::ENOENT),
    }
}

/// The listener that the server has held for the placeholder.
fn ask(attachment: &Attachment, socket: &Pinned) -> Result<(), Errno> {
    let request = ControlRequest::Restore { shared: socket.has(flag::SHARED) };
    match everywhere::ask(attachment, &request, socket.number())? {
        (slot, generation, SocketKind::Listener) => {
            socket.open_record(attachment, slot, generation)
        }
        _ => Err(Errno::ENOENT),
    }
}

/// Binds anew, and listens.
fn open(attachment: &Attachment, socket: &Pinned, listens: bool) -> Result<(), Errno> {
    let bound = attachment.ask_socket(NO_SLOT, 0, everywhere::bind_again(socket))?;
    if bound.errno != 0 {
        return Err(Errno(bound.errno));
    }
    let (slot, generation) = (bound.slot, bound.generation);
    socket.open_record(attachment, slot, generation)?;
    options::replay(socket);
    if listens {
        let listen = everywhere::listen_again(socket, socket.backlog());
        let answer = attachment.ask_socket(slot, generation, listen)?;
        if answer.errno != 0 {
            let _: Result<(), Errno> =
                attachment.tell(slot, generation, RequestBody::Close { abort: true });
            return Err(Errno(answer.errno));
        }
    }
    if socket.has(flag::SHARED) {
        // The server is told, and shown the placeholder, as by a fork.
        everywhere::show(attachment, (slot, generation), socket.number())?;
    }
    Ok(())
}
