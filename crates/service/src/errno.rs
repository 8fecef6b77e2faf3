//! The one table from the engine's errors to errno. Called wherever an application gets an answer.

use haypile_engine::control::names::ServerNumber;
use haypile_engine::{ConnectError, ListenError, SocketError};
use haypile_shm::messages::SocketReply;

/// Errno of what ended a connection (`SO_ERROR`).
pub fn of_socket_error(error: SocketError) -> i32 {
    match error {
        SocketError::ConnectionRefused => libc::ECONNREFUSED,
        SocketError::ConnectionReset => libc::ECONNRESET,
        SocketError::TimedOut => libc::ETIMEDOUT,
        SocketError::HostUnreachable => libc::EHOSTUNREACH,
        SocketError::NetworkUnreachable => libc::ENETUNREACH,
        SocketError::MessageTooLong => libc::EMSGSIZE,
        SocketError::PermissionDenied => libc::EACCES,
        SocketError::ProtocolError => libc::EPROTO,
        SocketError::ProtocolUnreachable => libc::ENOPROTOOPT,
        _ => libc::EPIPE,
    }
}

/// Why a request was refused.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// An errno, or `haypile_shm::messages::NOT_OURS`.
    Errno(i32),
    /// Another server has the flow or the port: the application is to ask there.
    Elsewhere(ServerNumber),
}

impl From<i32> for Refusal {
    fn from(errno: i32) -> Refusal {
        Refusal::Errno(errno)
    }
}

impl Refusal {
    /// As an errno, for those who cannot ask elsewhere.
    pub fn errno(self) -> i32 {
        match self {
            Refusal::Errno(errno) => errno,
            Refusal::Elsewhere(_) => libc::EADDRNOTAVAIL,
        }
    }

    /// The answer to an application, where nothing was opened.
    pub fn reply(self) -> SocketReply {
        match self {
            Refusal::Errno(errno) => SocketReply::failure(errno),
            Refusal::Elsewhere(server) => SocketReply::elsewhere(server),
        }
    }
}

/// Why a listen(2), or the bind(2) of a UDP socket, is refused.
pub fn of_listen_error(error: ListenError) -> Refusal {
    Refusal::Errno(match error {
        ListenError::AddressInUse => libc::EADDRINUSE,
        ListenError::AddressNotAvailable => libc::EADDRNOTAVAIL,
        ListenError::NoPort => libc::EINVAL,
        ListenError::TooManySockets => libc::ENOBUFS,
        ListenError::Elsewhere(server) => return Refusal::Elsewhere(server),
    })
}

/// Why a connect(2) is refused.
pub fn of_connect_error(error: ConnectError) -> Refusal {
    Refusal::Errno(match error {
        ConnectError::AddressInUse
        | ConnectError::AddressNotAvailable
        | ConnectError::NoPortLeft => libc::EADDRNOTAVAIL,
        ConnectError::NetworkUnreachable => libc::ENETUNREACH,
        ConnectError::BadRemote => libc::EINVAL,
        ConnectError::FamilyMismatch => libc::EAFNOSUPPORT,
        ConnectError::TooManySockets => libc::ENOBUFS,
        ConnectError::BroadcastRefused => libc::EACCES,
        ConnectError::Elsewhere(server) => return Refusal::Elsewhere(server),
    })
}
