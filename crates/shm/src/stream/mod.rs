//! One socket as the service and its applications share it: a record of 512 bytes in a table, and
//! the bytes of both directions in chunks of arena memory. `layout` says what lies where,
//! `service` holds the private truth, `application` is what a process may do.
//!
//! ```text
//! position p of a direction lies in chunk slot (p / CHUNK_SIZE) % FIFO_SLOTS, at p % CHUNK_SIZE
//!
//! receive:   rx_head ............ rx_tail ......... out-of-order bytes, in place already
//!            application reads    service commits   (the service alone knows of them)
//! send:      tx_head ............ tx_tail ......... tx_limit ......... tx_room
//!            acknowledged         application       chunks granted    grantable when asked for
//! ```
//!
//! Who writes what: the service `rx_tail`, `tx_head`, `tx_limit`, the chunk numbers; the
//! applications `rx_head`, `tx_tail`. Every position is stored with release after the bytes or the
//! chunk numbers it stands for, and loaded with acquire before they are used.

mod address;
mod application;
mod layout;
mod service;

pub use application::{
    AppStream, Chunks, FileStop, ReadOutcome, RecordRead, StreamError, WriteOutcome,
};
pub use service::{Hostile, OfferState, ServiceStream, StreamPositions, chunks_for};

/// Bits of the status word of a record.
pub mod status {
    /// The handshake has completed.
    pub const CONNECTED: u32 = 1 << 0;
    /// `rx_tail` is the end of the stream: the peer sends no more.
    pub const RX_FIN: u32 = 1 << 1;
    /// The connection has failed; the error word has or had the reason.
    pub const FAILED: u32 = 1 << 2;
    /// Both directions are done, or the connection has failed.
    pub const FINISHED: u32 = 1 << 3;
    /// A listener.
    pub const LISTENING: u32 = 1 << 4;
    /// The service has let the socket go: nothing will happen on it any more.
    pub const CLOSED: u32 = 1 << 5;
    /// A connection attempt is under way.
    pub const CONNECTING: u32 = 1 << 6;
    /// The application has shut down its sending direction.
    pub const TX_SHUT: u32 = 1 << 7;
    /// The application has shut down its receiving direction.
    pub const RX_SHUT: u32 = 1 << 8;
    /// Errors of datagrams wait to be taken one by one (`TakeDatagramError`).
    pub const ERRORS: u32 = 1 << 9;
    /// The connection is with another server, under another record: `AppStream::new_place` says
    /// which. Nothing else in this record means anything, unless FAILED is set too.
    pub const MOVED: u32 = 1 << 10;
}

/// Where a connection is that has moved to another server.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct NewPlace {
    /// The transport server.
    pub server: u16,
    /// Its epoch: another server by that number does not have the connection.
    pub epoch: u32,
    /// The slot of its record there, in the same trust domain.
    pub slot: u32,
    /// The generation of its record there, never 0.
    pub generation: u32,
}

impl layout::MovedLine {
    fn store(&self, place: NewPlace) {
        let NewPlace { server, epoch, slot, generation } = place;
        let word = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        self.server.store(word(epoch, u32::from(server)), Ordering::Relaxed);
        self.name.store(word(generation, slot), Ordering::Release);
    }

    /// `None`: nothing that a service writes.
    fn load(&self) -> Option<NewPlace> {
        let name = self.name.load(Ordering::Acquire);
        let server = self.server.load(Ordering::Relaxed);
        let (generation, slot) = ((name >> 32) as u32, name as u32);
        let number = u16::try_from(server as u32).ok()?;
        let place = NewPlace { server: number, epoch: (server >> 32) as u32, slot, generation };
        (generation != 0).then_some(place)
    }
}

use core::sync::atomic::Ordering;

use crate::limits::{CHUNK_SIZE, FIFO_SLOTS};

/// The chunk slot of a stream position.
#[inline]
fn slot_of(position: u64) -> usize {
    (position / CHUNK_SIZE as u64) as usize % FIFO_SLOTS
}

/// The chunk boundary at or below a stream position.
#[inline]
fn chunk_floor(position: u64) -> u64 {
    position - position % CHUNK_SIZE as u64
}

/// Bytes from a stream position to the end of its chunk, at most `most`.
#[inline]
fn piece_len(position: u64, most: usize) -> usize {
    most.min(CHUNK_SIZE - chunk_offset_of(position))
}

/// Where in its chunk a stream position lies.
#[inline]
fn chunk_offset_of(position: u64) -> usize {
    (position % CHUNK_SIZE as u64) as usize
}

#[cfg(all(test, not(loom)))]
mod carry_tests;
#[cfg(all(test, not(loom)))]
mod hostile_tests;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod record_tests;
#[cfg(all(test, not(loom)))]
mod tests;
