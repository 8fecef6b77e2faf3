//! Which error number the application sees for which failure of ours: one table.
//!
//! Used by every module; the service's own replies carry error numbers already.

use haypile_shm::Errno;
use haypile_shm::channel::{CallError, SendError};
use haypile_shm::stream::StreamError;

/// The answer of a call that the kernel must do instead. Not an error number of any system, so
/// that it can travel in the same `Result` as they do.
pub const TO_KERNEL: Errno = Errno(i32::MIN);

/// The service is gone and the socket with it.
pub(crate) const SERVICE_GONE: Errno = Errno::ECONNRESET;

/// A request that got no reply.
pub(crate) fn of_call(error: CallError) -> Errno {
    match error {
        CallError::NoCell => Errno::ENOBUFS,
        CallError::Gone => SERVICE_GONE,
        CallError::Send(error) => of_send(error),
    }
}

/// A request that was not sent.
pub(crate) fn of_send(error: SendError) -> Errno {
    match error {
        SendError::Full => Errno::ENOBUFS,
        SendError::Gone | SendError::Corrupt => SERVICE_GONE,
        SendError::WouldDeadlock => Errno::EAGAIN,
    }
}

/// A call on a stream that did nothing.
pub(crate) fn of_stream(error: StreamError) -> Errno {
    match error {
        StreamError::Stale | StreamError::Corrupt => SERVICE_GONE,
        StreamError::Contended | StreamError::WouldDeadlock => Errno::EAGAIN,
        // The callers look again.
        StreamError::Moved | StreamError::Frozen => Errno::EAGAIN,
        StreamError::Unmapped(_) => Errno::ENOMEM,
    }
}
