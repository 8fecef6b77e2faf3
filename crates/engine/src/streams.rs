//! Where the bytes of connections live, and what comes along with a frame.
//!
//! [`Streams`] is the only generic on the data path: a FIFO in shared memory in the service, a
//! vector in the simulator and in tests.

use crate::datagram::Datagram;
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

    /// Takes a datagram for a UDP socket. False when there is no room: the datagram is dropped and
    /// counted. Who opens no UDP sockets need not implement it.
    fn write_datagram(&mut self, id: SocketId, datagram: &Datagram, payload: &[u8]) -> bool {
        let _ = (id, datagram, payload);
        false
    }
}

/// What the link knows about a received frame.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct RxMeta {
    /// The transport checksum was verified by the link, or there is none to verify (virtio-net).
    pub checksum_valid: bool,
    /// 0 = an ordinary frame; else the link has merged TCP segments of a flow, which all but the
    /// last carried this many bytes of payload, into one IP packet of at most 65535 bytes.
    pub segment_size: u16,
}

/// A transport checksum of which the link has to compute the rest: the field holds the folded sum
/// of the pseudo header, not complemented (virtio 1.2 section 5.1.6.2).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct PartialChecksum {
    /// Where the summed bytes start, in bytes from the start of the frame; they end with the packet.
    pub start: u16,
    /// Where the checksum lies, in bytes from `start`.
    pub offset: u16,
}

/// What the link has to know about a frame to send.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct TxMeta {
    /// Bytes of the Ethernet frame, from the start of the buffer; no frame check sequence.
    pub len: usize,
    /// What the link has to finish; `None` when the frame is complete. Only with
    /// [`crate::Offloads::tx_checksum`].
    pub checksum: Option<PartialChecksum>,
    /// 0 = one frame; else the link cuts the packet, which has one TCP header, into segments of
    /// this many bytes of payload and one shorter. Only with [`crate::Offloads::tx_segmentation`],
    /// and then `checksum` is given.
    pub segment_size: u16,
}
