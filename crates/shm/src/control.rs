//! The control connection of a process: a `SOCK_SEQPACKET` socket on which every datagram is one
//! message, some with descriptors. Used by the service for each process, and by the client.

use std::os::fd::RawFd;

use crate::messages::Message;
use crate::sys::{self, Errno, Fd, MESSAGE_FDS, Result};

/// Environment variable with the path of the socket to attach to.
pub const ATTACH_VARIABLE: &str = "HAYPILE_ATTACH";
/// Environment variable with the token of the trust domain, in hexadecimal.
pub const DOMAIN_VARIABLE: &str = "HAYPILE_DOMAIN";

/// The path of the attach socket of a transport server: `path` is that of server 0, `attach.sock`;
/// beside it lies `attach-1.sock`, and so on.
pub fn attach_path(path: &[u8], server: u16) -> Vec<u8> {
    const ENDING: &[u8] = b".sock";
    if server == 0 {
        return path.to_vec();
    }
    let (stem, ending) = match path.strip_suffix(ENDING) {
        Some(stem) => (stem, ENDING),
        None => (path, &b""[..]),
    };
    [stem, format!("-{server}").as_bytes(), ending].concat()
}

/// The path of the supervisor's door, for processes that a path does not lead to a server any more: it lies beside the
/// attach socket of server 0, at `path`.
pub fn door_path(path: &[u8]) -> Vec<u8> {
    let directory = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    [&path[..directory], DOOR_SOCKET.as_bytes()].concat()
}

/// File name of the door in the control directory.
pub const DOOR_SOCKET: &str = "door.sock";

/// A message that came in.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub message: Message,
    /// Descriptors that came with it, in order, close-on-exec. The receiver takes what the message
    /// says it should have, the rest is closed on drop.
    pub fds: [Option<Fd>; MESSAGE_FDS],
}

/// Sends a message with descriptors, which stay open here. Waits or not as the socket is set.
/// `EPIPE`: the other end is gone.
pub fn send(socket: RawFd, message: &Message, fds: &[RawFd]) -> Result<()> {
    let mut bytes = [0u8; 64];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(message) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    loop {
        match sys::send_fds(socket, &bytes, fds, 0) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Receives a message. Waits or not as the socket is set (`EAGAIN`). `EPIPE`: the other end is
/// gone. `EPROTO`: it was not 64 bytes long, or carried too many descriptors.
pub fn receive(socket: RawFd) -> Result<Received> {
    let mut bytes = [0u8; 64];
    let received = loop {
        match sys::recv_fds(socket, &mut bytes, 0) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Err(Errno::EPIPE),
            other => break other?,
        }
    };
    if received.len == 0 {
        return Err(Errno::EPIPE);
    }
    if received.len != bytes.len() || received.truncated {
        return Err(Errno::EPROTO);
    }
    let mut message: Message = [0; 8];
    for (word, chunk) in message.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut whole = [0; 8];
        whole.copy_from_slice(chunk);
        *word = u64::from_ne_bytes(whole);
    }
    Ok(Received { message, fds: received.fds })
}

#[cfg(all(test, not(loom)))]
mod tests;
