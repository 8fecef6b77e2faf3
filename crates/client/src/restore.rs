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
use crate::entry::{self, Phase, Pinned, SOCKETS, flag};
use crate::{accept, datagram, everywhere, options, placeholder};

/// Attempts to have a port that a sibling of ours may be opening at the same moment.
pub(crate) const TRIES: u32 = 3;

/// All sockets of the process.
pub(crate) fn all(attachment: &Attachment) {
    let mut sockets = Vec::new();
    SOCKETS.for_each(|index, _| sockets.push(index));
    for socket in sockets.into_iter().filter_map(entry::pin) {
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
}

/// One socket whose server is gone.
pub(crate) fn one(attachment: &Attachment, socket: &Pinned) {
    let listens = socket.phase() == Phase::Listening;
    if socket.has(flag::DATAGRAM) {
        // What does not come back now does so when it is next used.
        let _: Result<(), Errno> = datagrams(attachment, socket);
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
    for _ in 0..TRIES {
        let found = if listens { ask(attachment, socket) } else { Err(Errno::ENOENT) };
        if found.is_ok() || open(attachment, socket, listens).is_ok() {
            return;
        }
    }
    socket.forget_name();
}

/// A UDP socket that did not come back when this process attached.
///
/// # Errors
/// `EAGAIN` while another thread is at it; why it could not be opened.
pub(crate) fn late(attachment: &Attachment, socket: &Pinned) -> Result<(), Errno> {
    let _one = attach::hold()?;
    if !socket.is_behind_times(attachment) {
        return Ok(());
    }
    datagrams(attachment, socket)
}

/// A UDP socket: one that several processes have is opened by the first of them, and the others are
/// shown it by its placeholder.
fn datagrams(attachment: &Attachment, socket: &Pinned) -> Result<(), Errno> {
    let shared = socket.has(flag::SHARED);
    let mut outcome = Err(Errno::EAGAIN);
    for _ in 0..TRIES {
        if shared && adopt(attachment, socket).is_ok() {
            return Ok(());
        }
        outcome = datagram::reopen(socket);
        if outcome != Err(Errno::EADDRINUSE) || !shared {
            break;
        }
        attach::sleep_ms(2);
    }
    if outcome.is_ok() && socket.clear(flag::SHARED) {
        placeholder::share(socket)?;
    }
    outcome
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
