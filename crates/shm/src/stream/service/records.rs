//! Datagrams over the stream record: whole records in and out of the FIFOs. A socket uses either
//! these functions or those for bytes, never both.
//!
//! Incoming records are stored behind the published end and become visible together
//! ([`ServiceStream::publish_records`]), so that a burst costs one wake-up. Outgoing records are
//! taken one by one and settled together. Read `datagram` first.

use super::{CHUNK, Hostile, ServiceStream, chunk_floor};
use crate::arena::Arena;
use crate::datagram::{DatagramHeader, RECORD_HEADER, RECORD_MAX};
use crate::handshake;
use crate::limits::FIFO_BYTES;

/// Bytes granted ahead to somebody who asks: a record of any size wherever it starts.
const AHEAD_MIN: u64 = 2 * CHUNK;
const _: () = assert!(RECORD_MAX as u64 + CHUNK <= AHEAD_MIN + 64);

impl ServiceStream {
    /// Stores a received datagram. False, and nothing stored: it would bring the bytes that wait to
    /// be read above `limit` (a single one may), or there is no memory.
    pub fn push_record(
        &mut self,
        header: &DatagramHeader,
        payload: &[u8],
        limit: u64,
        arena: &mut Arena,
    ) -> Result<bool, Hostile> {
        debug_assert_eq!(usize::from(header.len), payload.len());
        let start = self.rx.stored_end.max(self.rx.tail);
        let bytes = header.record_bytes() as u64;
        let waiting = start - self.rx.head;
        // What has been read meanwhile makes room and frees chunks; not worth a look every time.
        if waiting + bytes > limit || waiting > CHUNK {
            self.observe_rx_head(arena)?;
        }
        let waiting = start - self.rx.head;
        if self.released || (waiting > 0 && waiting + bytes > limit) {
            return Ok(false);
        }
        let stored = self.write_rx(start, &header.encode(), arena) == RECORD_HEADER
            && self.write_rx(start + RECORD_HEADER as u64, payload, arena) == payload.len();
        self.rx.stored_end = if stored { start + bytes } else { start };
        Ok(stored)
    }

    /// Lets the application see what [`ServiceStream::push_record`] has stored. True: there was
    /// something.
    pub fn publish_records(&mut self) -> bool {
        let new = self.rx.stored_end > self.rx.tail;
        self.commit_rx(self.rx.stored_end);
        new
    }

    /// The oldest record written and not yet taken, its payload copied to the front of `payload`
    /// (at least `RECORD_PAYLOAD_MAX` bytes). Call [`ServiceStream::observe_tx_tail`] before.
    pub fn peek_record(
        &self,
        payload: &mut [u8],
        arena: &Arena,
    ) -> Result<Option<DatagramHeader>, Hostile> {
        let at = self.tx.taken;
        let written = self.tx.tail - at;
        if written == 0 || self.released {
            return Ok(None);
        }
        let mut bytes = [0; RECORD_HEADER];
        if written < RECORD_HEADER as u64 || !self.copy_tx(at, &mut bytes, arena) {
            return Err(Hostile::Record);
        }
        let header = DatagramHeader::decode(&bytes).map_err(|_| Hostile::Record)?;
        if header.record_bytes() as u64 > written {
            return Err(Hostile::Record);
        }
        let out = payload.get_mut(..usize::from(header.len)).ok_or(Hostile::Record)?;
        if !self.copy_tx(at + RECORD_HEADER as u64, out, arena) {
            return Err(Hostile::Record);
        }
        Ok(Some(header))
    }

    /// Takes the record that was looked at.
    pub fn take_record(&mut self, header: &DatagramHeader) {
        self.tx.taken = (self.tx.taken + header.record_bytes() as u64).min(self.tx.tail);
    }

    /// After a number of records has been taken, and at the start: frees their chunks, and grants
    /// more so that up to `send_buffer` bytes, or one record of any size, can wait. True: the
    /// application had asked, and may write now.
    pub fn settle_records(&mut self, send_buffer: u64, arena: &mut Arena) -> bool {
        if self.released {
            return false;
        }
        let mut at = chunk_floor(self.tx.head);
        while at < chunk_floor(self.tx.taken) {
            self.drop_tx_chunk(super::slot_of(at), arena);
            at += CHUNK;
        }
        self.tx.head = self.tx.taken;
        let fifo_end = chunk_floor(self.tx.head) + FIFO_BYTES as u64;
        let room = self.tx.head.saturating_add(send_buffer.max(RECORD_MAX as u64));
        let room = room.min(fifo_end).max(self.tx.limit);
        let line = &self.block().service;
        line.tx_head.store(self.tx.head, core::sync::atomic::Ordering::Release);
        if room != self.tx.room {
            self.tx.room = room;
            self.block().service.tx_room.store(room, core::sync::atomic::Ordering::Release);
        }
        let target = self.tx.tail.saturating_add(self.tx.ahead).min(room);
        let low = self.tx.limit - self.tx.tail < self.tx.ahead / 2;
        if target > self.tx.limit && (low || self.tx.wanted) {
            self.extend_tx(target, arena);
        }
        let answered = self.tx.wanted && self.tx.limit - self.tx.tail >= RECORD_MAX as u64;
        self.tx.wanted &= !answered;
        answered
    }

    /// WANT_TX has come for a socket of records. True: as [`ServiceStream::settle_records`].
    pub fn want_records(&mut self, send_buffer: u64, arena: &mut Arena) -> Result<bool, Hostile> {
        handshake::take_kick(&self.block().application.tx_wanted);
        self.observe_tx_tail()?;
        self.tx.ahead = (self.tx.ahead * 2).clamp(AHEAD_MIN, FIFO_BYTES as u64);
        self.tx.wanted = true;
        Ok(self.settle_records(send_buffer, arena))
    }

    /// Bytes of records written and not yet taken, as last observed.
    pub fn untaken(&self) -> u64 {
        self.tx.tail - self.tx.taken
    }

    /// Whether a record of any size could be written now or after asking.
    pub fn has_record_room(&self) -> bool {
        self.tx.room.saturating_sub(self.tx.tail) >= RECORD_MAX as u64
    }
}
