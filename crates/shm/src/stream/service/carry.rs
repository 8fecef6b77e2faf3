//! A stream that goes to another server of the same service: held still, its bytes taken out, and put back into a
//! record of that server's. What becomes of the old record is the caller's business ([`ServiceStream::set_new_place`],
//! then the status `MOVED`). Called by the service's `freight`.
//!
//! While a stream is frozen, both owner words are the service's, so that no application reads or writes: engine,
//! private state and record agree. Applications that want to wait, and nobody waits long: the words are never waited
//! for here, and a move takes well below a millisecond.

use core::sync::atomic::Ordering;

use super::{CHUNK, Hostile, ServiceStream};
use crate::arena::Arena;
use crate::limits::{FIFO_BYTES, NO_CHUNK, SERVICE_OWNER};
use crate::stream::{chunk_floor, chunk_offset_of, piece_len, slot_of};
use crate::table::Place;

/// How far both directions of a stream are, in bytes from its start.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamPositions {
    /// The application has read up to here.
    pub rx_head: u64,
    /// It may read up to here.
    pub rx_tail: u64,
    /// Bytes have come up to here, with gaps perhaps.
    pub rx_end: u64,
    /// The peer has acknowledged up to here.
    pub tx_head: u64,
    /// The application has written up to here.
    pub tx_tail: u64,
}

/// No stream is as long as this.
const POSITION_MAX: u64 = 1 << 62;

impl StreamPositions {
    /// Whether a stream can be there: everything in order, and no more than a FIFO holds.
    pub fn is_possible(&self) -> bool {
        let StreamPositions { rx_head, rx_tail, rx_end, tx_head, tx_tail } = *self;
        let fits = |head: u64, end: u64| end - chunk_floor(head) <= FIFO_BYTES as u64;
        rx_head <= rx_tail
            && rx_tail <= rx_end
            && rx_end < POSITION_MAX
            && fits(rx_head, rx_end)
            && tx_head <= tx_tail
            && tx_tail < POSITION_MAX
            && fits(tx_head, tx_tail)
    }
}

/// Chunks of stream memory that `bytes` bytes from a position of a direction on take.
pub fn chunks_for(position: u64, bytes: usize) -> u64 {
    match position.saturating_add(bytes as u64) {
        end if end == position => 0,
        end => (chunk_floor(end - 1) - chunk_floor(position)) / CHUNK + 1,
    }
}

impl ServiceStream {
    /// Takes both directions, so that no application reads or writes until [`ServiceStream::thaw`], and observes how
    /// far it has come. False, and nothing has changed: somebody is in the middle of a copy.
    ///
    /// # Errors
    /// [`Hostile`]; nothing is held then.
    pub fn freeze(&mut self, arena: &mut Arena) -> Result<bool, Hostile> {
        if self.frozen {
            return Ok(true);
        }
        let owner = &self.block().owner;
        let take = |word: &core::sync::atomic::AtomicU32| {
            word.compare_exchange(0, SERVICE_OWNER, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        if !take(&owner.rx_owner) {
            return Ok(false);
        }
        if !take(&owner.tx_owner) {
            self.free_owner(&owner.rx_owner);
            return Ok(false);
        }
        self.frozen = true;
        let observed = self.observe_rx_head(arena).and_then(|_| self.observe_tx_tail());
        if let Err(hostile) = observed {
            self.thaw();
            return Err(hostile);
        }
        Ok(true)
    }

    /// Lets applications read and write again, or find that the connection has moved.
    pub fn thaw(&mut self) {
        if core::mem::replace(&mut self.frozen, false) {
            self.free_owner(&self.block().owner.rx_owner);
            self.free_owner(&self.block().owner.tx_owner);
        }
    }

    /// Whether no application can read or write now.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// How far it is, as last observed.
    pub fn positions(&self) -> StreamPositions {
        StreamPositions {
            rx_head: self.rx.head,
            rx_tail: self.rx.tail,
            rx_end: self.rx.stored_end,
            tx_head: self.tx.head,
            tx_tail: self.tx.tail,
        }
    }

    /// The pending error, which stays; 0 if none.
    pub fn pending_error(&self) -> i32 {
        self.block().service.error.load(Ordering::Acquire)
    }

    /// Where received bytes lie that were not read: position and length of runs, in order. Gaps within a chunk are not
    /// known here, and are part of a run.
    pub fn rx_runs(&self) -> Vec<(u64, usize)> {
        let mut runs: Vec<(u64, usize)> = Vec::new();
        let mut at = self.rx.head;
        while at < self.rx.stored_end {
            let len = piece_len(at, (self.rx.stored_end - at) as usize);
            if self.rx.chunks[slot_of(at)] != NO_CHUNK {
                match runs.last_mut() {
                    Some((start, length)) if *start + *length as u64 == at => *length += len,
                    _ => runs.push((at, len)),
                }
            }
            at += len as u64;
        }
        runs
    }

    /// Copies the bytes of a run. False if they are not there.
    #[must_use]
    pub fn copy_run(&self, position: u64, out: &mut [u8], arena: &Arena) -> bool {
        let mut done = 0;
        while done < out.len() {
            let at = position + done as u64;
            let len = piece_len(at, out.len() - done);
            let chunk = self.rx.chunks[slot_of(at)];
            if !arena.read(chunk, chunk_offset_of(at), &mut out[done..done + len]) {
                return false;
            }
            done += len;
        }
        true
    }

    /// Goes on at `place` with a stream that was elsewhere; its bytes are brought by [`ServiceStream::write_rx`] and
    /// [`ServiceStream::restore_tx`], and shown by [`ServiceStream::commit_rx`]. Positions that are not possible are
    /// taken for the start.
    pub fn resume(place: Place, positions: &StreamPositions) -> ServiceStream {
        let mut stream = ServiceStream::new(place);
        let at = if positions.is_possible() { *positions } else { StreamPositions::default() };
        (stream.rx.head, stream.rx.tail, stream.rx.stored_end) =
            (at.rx_head, at.rx_head, at.rx_head);
        (stream.tx.head, stream.tx.taken) = (at.tx_head, at.tx_head);
        (stream.tx.tail, stream.tx.limit, stream.tx.room) = (at.tx_tail, at.tx_tail, at.tx_tail);
        let block = stream.block();
        block.application.rx_head.store(at.rx_head, Ordering::Relaxed);
        block.application.tx_tail.store(at.tx_tail, Ordering::Relaxed);
        let line = &block.service;
        line.rx_kick_at.store(at.rx_head + stream.rx.kick_step, Ordering::Relaxed);
        line.tx_head.store(at.tx_head, Ordering::Relaxed);
        line.tx_limit.store(at.tx_tail, Ordering::Relaxed);
        line.tx_room.store(at.tx_tail, Ordering::Relaxed);
        line.rx_tail.store(at.rx_head, Ordering::Release);
        stream
    }

    /// Brings what was written and is not acknowledged: all of it, from the head on. False: memory is short.
    #[must_use]
    pub fn restore_tx(&mut self, data: &[u8], arena: &mut Arena) -> bool {
        debug_assert_eq!(data.len() as u64, self.tx.tail - self.tx.head);
        let mut done = 0;
        while done < data.len() {
            let at = self.tx.head + done as u64;
            let slot = slot_of(at);
            if self.tx.chunks[slot] == NO_CHUNK {
                let Some(chunk) = arena.allocate() else { return false };
                self.tx.chunks[slot] = chunk;
                self.block().tx_chunks.0[slot].store(chunk, Ordering::Relaxed);
            }
            let len = piece_len(at, data.len() - done);
            let part = &data[done..done + len];
            if !arena.write(self.tx.chunks[slot], chunk_offset_of(at), part, false) {
                return false;
            }
            done += len;
        }
        true
    }
}
