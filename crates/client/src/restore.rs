//! What becomes of this process's sockets when their server has died and there is another: listeners
//! and bound sockets are opened again, connections have failed.
//!
//! A listener was held by the new server meanwhile and is asked for by its placeholder; one that the
//! server does not hold is made anew. Called by `attach.rs` with the lock of attaching held.
//! Read docs/decisions/0008.

use haypile_shm::Errno;
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::{ControlReply, ControlRequest, RequestBody, SocketKind};
use haypile_shm::sys;

use crate::addresses::{to_service, unspecified};
use crate::attach::Attachment;
use crate::entry::{self, Phase, Pinned, SOCKETS, flag};
use crate::{datagram, options, placeholder};

/// Attempts to have a port that a sibling of ours may be opening at the same moment.
const TRIES: u32 = 3;

/// All sockets of the process.
pub(crate) fn all(attachment: &Attachment) {
    let mut sockets = Vec::new();
    SOCKETS.for_each(|index, _| sockets.push(index));
    for socket in sockets.into_iter().filter_map(entry::pin) {
        if socket.is_behind_times(attachment) {
            one(attachment, &socket);
        }
    }
}

/// One socket whose server is gone.
pub(crate) fn one(attachment: &Attachment, socket: &Pinned) {
    let listens = socket.phase() == Phase::Listening;
    if socket.has(flag::DATAGRAM) {
        if datagram::reopen(socket).is_err() {
            socket.forget_name();
        }
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

/// The listener that the server has held for the placeholder.
fn ask(attachment: &Attachment, socket: &Pinned) -> Result<(), Errno> {
    let request = ControlRequest::Restore { shared: socket.has(flag::SHARED) };
    let is_answer = |reply: &ControlReply| matches!(reply, ControlReply::Adopted { .. });
    let (reply, _) = attachment.ask(&request, &[socket.number()], is_answer)?;
    match reply {
        ControlReply::Adopted { errno: 0, slot, generation, kind: SocketKind::Listener } => {
            socket.open_record(attachment, slot, generation)
        }
        _ => Err(Errno::ENOENT),
    }
}

/// Binds anew, and listens.
fn open(attachment: &Attachment, socket: &Pinned, listens: bool) -> Result<(), Errno> {
    let local = socket.stream().and_then(|record| record.local_address());
    let bind = RequestBody::Bind {
        address: local.unwrap_or_else(|| to_service(unspecified(socket.domain()))),
        reuse_address: socket.stored.reuse_address(),
        reuse_port: socket.stored.reuse_port(),
        v6only: socket.stored.v6only(),
    };
    let bound = attachment.ask_socket(NO_SLOT, 0, bind)?;
    if bound.errno != 0 {
        return Err(Errno(bound.errno));
    }
    let (slot, generation) = (bound.slot, bound.generation);
    socket.open_record(attachment, slot, generation)?;
    options::replay(socket);
    let cookie = sys::so_cookie(socket.number())?;
    if listens {
        let listen = RequestBody::Listen {
            backlog: socket.backlog(),
            v6only: socket.stored.v6only(),
            reuse_port: socket.stored.reuse_port(),
            cookie,
        };
        let answer = attachment.ask_socket(slot, generation, listen)?;
        if answer.errno != 0 {
            let _: Result<(), Errno> =
                attachment.tell(slot, generation, RequestBody::Close { abort: true });
            return Err(Errno(answer.errno));
        }
    }
    if socket.clear(flag::SHARED) {
        // The server is told, and shown the placeholder, as by a fork.
        placeholder::share(socket)?;
    }
    Ok(())
}
