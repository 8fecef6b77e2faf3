//! What lies where in the shared record of a socket. Lines of 64 bytes, grouped by writer so that
//! the service and an application do not fight for one.

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};

use super::address::SharedAddress;
use crate::limits::{BLOCK_SIZE, FIFO_SLOTS};
use crate::segment::SharedLayout;

/// Line 0: written by the service (the application swaps `error` to 0).
#[repr(C, align(64))]
pub(super) struct ServiceLine {
    /// Which use of the slot this is; 0 between uses.
    pub generation: AtomicU32,
    /// Bits of [`super::status`].
    pub status: AtomicU32,
    /// Pending `SO_ERROR`.
    pub error: AtomicI32,
    /// Futex word of blocked calls; see `handshake::prepare_wait`.
    pub wake_sequence: AtomicU32,
    /// In-order bytes received.
    pub rx_tail: AtomicU64,
    /// Bytes acknowledged by the peer.
    pub tx_head: AtomicU64,
    /// The application may write up to here.
    pub tx_limit: AtomicU64,
    /// KICK_RX is wanted once `rx_head` has come here.
    pub rx_kick_at: AtomicU64,
    /// The application could write up to here if it asked for memory.
    pub tx_room: AtomicU64,
}

/// Line 1: written by applications.
#[repr(C, align(64))]
pub(super) struct ApplicationLine {
    /// Bytes read.
    pub rx_head: AtomicU64,
    /// Bytes written.
    pub tx_tail: AtomicU64,
    /// A KICK_TX is on its way.
    pub tx_kick: AtomicU32,
    /// A KICK_RX is on its way.
    pub rx_kick: AtomicU32,
    /// Somebody sleeps on `wake_sequence`, or is about to.
    pub waiters: AtomicU32,
    /// A WANT_TX is on its way.
    pub tx_wanted: AtomicU32,
    /// One more than the core that last asked for a KICK_RX; 0 while nobody has.
    pub rx_core: AtomicU32,
}

/// Line 2: taken and given back by both sides.
#[repr(C, align(64))]
pub(super) struct OwnerLine {
    /// Process that reads: 0, or its id, with `OWNER_CONTENDED` if somebody sleeps for it.
    pub rx_owner: AtomicU32,
    /// Process that writes, likewise, or `SERVICE_OWNER`.
    pub tx_owner: AtomicU32,
    /// Low half: state of the offer; high half: generation.
    pub offer: AtomicU64,
}

/// Line 3: written by the service.
#[repr(C, align(64))]
pub(super) struct AddressLine {
    pub local: SharedAddress,
    pub remote: SharedAddress,
}

/// Lines 4 and 5: written by the service, never read back by it.
#[repr(C, align(64))]
pub(super) struct ChunkLine(pub [AtomicU32; FIFO_SLOTS]);

/// Line 6: written by the service when it marks the record `MOVED`.
#[repr(C, align(64))]
pub(super) struct MovedLine {
    /// High half: the epoch of the server that has the connection now; low half: its number.
    pub server: AtomicU64,
    /// High half: the generation of the record there; low half: its slot.
    pub name: AtomicU64,
}

/// The whole record.
#[repr(C, align(64))]
pub(super) struct Block {
    pub service: ServiceLine,
    pub application: ApplicationLine,
    pub owner: OwnerLine,
    pub address: AddressLine,
    pub rx_chunks: ChunkLine,
    pub tx_chunks: ChunkLine,
    pub moved: MovedLine,
    reserved: [AtomicU64; 8],
}

// SAFETY: `repr(C)`, atomics only.
unsafe impl SharedLayout for Block {}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Block>() == BLOCK_SIZE);
    assert!(offset_of!(Block, application) == 64);
    assert!(offset_of!(Block, owner) == 128);
    assert!(offset_of!(Block, address) == 192);
    assert!(offset_of!(Block, rx_chunks) == 256);
    assert!(offset_of!(Block, tx_chunks) == 320);
    assert!(offset_of!(Block, moved) == 384);
    assert!(size_of::<SharedAddress>() == 20);
};
