//! The one table from the engine's errors to errno. Called wherever an application gets an answer.

use haypile_engine::{ConnectError, ListenError, SocketError};

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

/// Errno of a refused listen(2).
pub fn of_listen_error(error: ListenError) -> i32 {
    match error {
        ListenError::AddressInUse => libc::EADDRINUSE,
        ListenError::AddressNotAvailable => libc::EADDRNOTAVAIL,
        ListenError::NoPort => libc::EINVAL,
        ListenError::TooManySockets => libc::ENOBUFS,
        // Answered with the server before it comes to this; nobody else knows the port.
        ListenError::Elsewhere(_) => libc::EADDRINUSE,
    }
}

/// Errno of a refused connect(2).
pub fn of_connect_error(error: ConnectError) -> i32 {
    match error {
        ConnectError::AddressInUse
        | ConnectError::AddressNotAvailable
        | ConnectError::NoPortLeft => libc::EADDRNOTAVAIL,
        ConnectError::NetworkUnreachable => libc::ENETUNREACH,
        ConnectError::BadRemote => libc::EINVAL,
        ConnectError::FamilyMismatch => libc::EAFNOSUPPORT,
        ConnectError::TooManySockets => libc::ENOBUFS,
        ConnectError::BroadcastRefused => libc::EACCES,
        // As above.
        ConnectError::Elsewhere(_) => libc::EADDRNOTAVAIL,
    }
}
