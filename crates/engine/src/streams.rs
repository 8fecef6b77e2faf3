//! Where the bytes of connections live, and what comes along with a frame.
//!
//! [`Streams`] is the only generic on the data path: a FIFO in shared memory in the service, a
//! vector in the simulator and in tests.

use crate::socket_id::SocketId;

/// The memory of both directions of all connections. Positions count bytes from the first data
/// byte of a direction.
pub trait Streams {
    /// Stores received bytes at `position`, in their final place, which may lie beyond the in-order
    /// edge. Returns how many from the start of `data` were stored; the rest counts as not received.
    fn write(&mut self, id: SocketId, position: u64, data: &[u8]) -> usize;

    /// Copies bytes `position..position + out.len()` of the send stream. Asked only for bytes not
    /// yet acknowledged and below the tail given to [`crate::Shard::send_ready`].
    fn read(&mut self, id: SocketId, position: u64, out: &mut [u8]);
}

/// What the link knows about a received frame.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct RxMeta {
    /// The transport checksum was verified by the link, or there is none to verify (virtio-net).
    pub checksum_valid: bool,
}

/// What the link has to know about a frame to send.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TxMeta {
    /// Bytes of the Ethernet frame, from the start of the buffer; no frame check sequence.
    pub len: usize,
}
