//! The way to the servers for a process that has lost the path to their attach sockets: it has changed
//! its root, its mount namespace or its user. A datagram socket, connected to the supervisor's door
//! when the program attached, leads there whatever becomes of the path. What is sent through it is one
//! end of a socket pair, which the supervisor hands on. Called by `ties.rs`; decision 0023.
//!
//! A forked child has its parent's socket: every datagram is whole, so they share it.

use haypile_shm::messages::ControlRequest;
use haypile_shm::sys::{self, Fd};
use haypile_shm::{Errno, control};

use super::ties;
use crate::errno::SERVICE_GONE;
use crate::internal::Internal;
use crate::lock::Lock;

/// The socket; none before the program has attached, or at a supervisor without a door.
static DOOR: Lock<Option<Internal>> = Lock::new(None);

/// Longest wait for room in the supervisor's queue, in seconds.
const ROOM_LIMIT_S: i64 = 1;

/// Connects to the door that lies beside the attach socket `path`, unless that is done.
pub(super) fn find(path: &[u8]) {
    let Ok(mut door) = DOOR.lock() else { return };
    if door.as_ref().is_some_and(Internal::is_ours) {
        return;
    }
    let Ok(socket) = sys::unix_connect_datagram(&control::door_path(path)) else { return };
    let limit = [ROOM_LIMIT_S.to_ne_bytes(), 0i64.to_ne_bytes()].concat();
    if sys::setsockopt(socket.raw(), libc::SOL_SOCKET, libc::SO_SNDTIMEO, &limit).is_ok() {
        *door = Some(Internal::new(socket));
    }
}

fn say(server: u16, fds: &[i32]) -> Result<(), Errno> {
    let door = DOOR.lock()?;
    let socket = door.as_ref().filter(|socket| socket.is_ours()).ok_or(Errno::ENOENT)?;
    control::send(socket.raw(), &ControlRequest::Enter { server }.encode(), fds)
}

/// A fresh control connection by the path, or where that leads there no more through the supervisor's
/// door.
pub(super) fn call(server: u16) -> Result<Fd, Errno> {
    let called = sys::unix_connect_seqpacket(&ties::path(server).ok_or(SERVICE_GONE)?);
    called.or_else(|errno| enter(server).map_err(|_| errno))
}

/// Whether the supervisor holds the attach socket of a server.
///
/// # Errors
/// `ECONNREFUSED` and `ENOENT` when there is none; others when it cannot be told.
pub(super) fn reach_supervisor(server: u16) -> Result<(), Errno> {
    let reached = sys::unix_reach_seqpacket(&ties::path(server).ok_or(Errno::ENOENT)?);
    match reached {
        Ok(()) | Err(Errno::ECONNREFUSED) => reached,
        // It may be there, and out of sight.
        Err(errno) => match knock() {
            Err(Errno::ENOENT) => Err(errno),
            knocked => knocked,
        },
    }
}

/// A fresh control connection to a transport server. It ends at once if that does not run.
///
/// # Errors
/// `ENOENT` without a door, `ECONNREFUSED` without a supervisor.
fn enter(server: u16) -> Result<Fd, Errno> {
    let (ours, theirs) = sys::socketpair_seqpacket()?;
    say(server, &[theirs.raw()])?;
    Ok(ours)
}

/// Whether the supervisor is there.
///
/// # Errors
/// As [`enter`].
fn knock() -> Result<(), Errno> {
    match say(0, &[]) {
        // It has no room, because it is busy or stopped.
        Err(Errno::EAGAIN) => Ok(()),
        // It was found gone before.
        Err(Errno::ENOTCONN) => Err(Errno::ECONNREFUSED),
        said => said,
    }
}

/// Before a fork.
pub(super) fn hold_for_fork() {
    DOOR.hold_for_fork();
}

/// After a fork, on both sides.
pub(super) fn release_after_fork() {
    DOOR.release_after_fork();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_door_is_found_by_its_path_and_reached_without_it() {
        let mut path = std::env::temp_dir().join(format!("haypile-door-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        path.push(control::DOOR_SOCKET);
        let bytes = path.as_os_str().as_encoded_bytes();
        assert_eq!((enter(2).err(), knock().err()), (Some(Errno::ENOENT), Some(Errno::ENOENT)));
        find(bytes);
        assert_eq!(knock(), Err(Errno::ENOENT), "nobody is there");
        let door = sys::unix_bind_datagram(bytes).unwrap();
        find(bytes);
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
        let heard = || {
            let received = control::receive(door.raw()).unwrap();
            let [first, ..] = received.fds;
            (ControlRequest::decode(&received.message), first)
        };
        assert_eq!(knock(), Ok(()));
        assert!(matches!(heard(), (Ok(ControlRequest::Enter { .. }), None)));
        let ours = enter(2).unwrap();
        let (request, theirs) = heard();
        assert_eq!(request, Ok(ControlRequest::Enter { server: 2 }));
        sys::send(theirs.unwrap().raw(), b"welcome", 0).unwrap();
        assert_eq!(sys::recv(ours.raw(), &mut [0; 9], 0), Ok(7));
        drop(door);
        assert!(enter(2).is_err());
        for _ in 0..2 {
            assert_eq!(knock(), Err(Errno::ECONNREFUSED));
        }
    }
}
