//! The service's end of a socket: which chunks it has, how far each side is, what the application
//! may do next. Everything decided here is decided on private state; of the shared record only
//! `rx_head`, `tx_tail`, the offer word and the flags are ever read, and checked.

use core::sync::atomic::{AtomicU32, Ordering};
use std::net::SocketAddr;
use std::sync::Arc;

mod carry;
mod records;

pub use carry::{StreamPositions, chunks_for};

use super::layout::Block;
use super::{chunk_floor, chunk_offset_of, piece_len, slot_of};
use crate::arena::Arena;
use crate::handshake;
use crate::limits::{
    CHUNK_SIZE, FIFO_BYTES, FIFO_SLOTS, NO_CHUNK, OWNER_CONTENDED, SERVICE_OWNER, slot_offset,
};
use crate::segment::Segment;
use crate::sys;
use crate::table::Place;

const CHUNK: u64 = CHUNK_SIZE as u64;

/// Least distance between two KICK_RX, in bytes; it also bounds the loop of
/// [`ServiceStream::observe_rx_head`].
const KICK_STEP_MIN: u64 = 1024;

/// Received bytes that come at once are copied past the caches from this many on, if another core
/// reads them.
const PAST_CACHES_MIN: usize = 16 * 1024;

/// What an application wrote into shared memory cannot be right. The service ends the connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Hostile {
    /// `rx_head` went backwards or beyond the bytes received.
    RxHead,
    /// `tx_tail` went backwards or beyond what was granted.
    TxTail,
    /// The offer word holds no state that an application may write.
    Offer,
    /// A datagram's record is not one.
    Record,
}

impl core::fmt::Display for Hostile {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.write_str(match self {
            Hostile::RxHead => "impossible receive position",
            Hostile::TxTail => "impossible send position",
            Hostile::Offer => "impossible offer state",
            Hostile::Record => "impossible datagram",
        })
    }
}

impl core::error::Error for Hostile {}

/// State of an offered connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OfferState {
    /// Not offered.
    None = 0,
    /// Offered to an acceptor, which may claim it.
    Offered = 1,
    /// Claimed by the application.
    Claimed = 2,
    /// Taken back by the service.
    Revoked = 3,
}

pub(super) fn offer_word(generation: u32, state: OfferState) -> u64 {
    u64::from(generation) << 32 | u64::from(state as u32)
}

/// Receive direction, private truth.
#[derive(Debug)]
struct Receive {
    head: u64,
    tail: u64,
    /// End of the furthest byte stored, in order or not.
    stored_end: u64,
    kick_step: u64,
    /// One more than the core of whoever reads, as it says; 0 if it does not.
    reader_core: u32,
    chunks: [u32; FIFO_SLOTS],
}

/// Send direction, private truth.
#[derive(Debug)]
struct Send {
    head: u64,
    /// Datagrams only: up to here they are taken, though their memory is not free yet.
    taken: u64,
    tail: u64,
    limit: u64,
    room: u64,
    /// Bytes granted ahead of the tail; doubles as the application uses them up.
    ahead: u64,
    wanted: bool,
    chunks: [u32; FIFO_SLOTS],
}

/// The service's end of one socket.
#[derive(Debug)]
pub struct ServiceStream {
    table: Arc<Segment>,
    slot: u32,
    generation: u32,
    status: u32,
    /// The bytes are gone; positions in shared memory mean nothing any more.
    released: bool,
    /// Both owner words are ours.
    frozen: bool,
    rx: Receive,
    tx: Send,
}

impl ServiceStream {
    /// Starts a fresh record at `place`: all zero, no chunks, the new generation.
    pub fn new(place: Place) -> ServiceStream {
        let Place { table, slot, generation } = place;
        let stream = ServiceStream {
            table,
            slot,
            generation,
            status: 0,
            released: false,
            frozen: false,
            rx: Receive {
                head: 0,
                tail: 0,
                stored_end: 0,
                kick_step: CHUNK / 2,
                reader_core: 0,
                chunks: [NO_CHUNK; FIFO_SLOTS],
            },
            tx: Send {
                head: 0,
                taken: 0,
                tail: 0,
                limit: 0,
                room: 0,
                ahead: CHUNK,
                wanted: false,
                chunks: [NO_CHUNK; FIFO_SLOTS],
            },
        };
        stream.initialise();
        stream
    }

    fn initialise(&self) {
        let block = self.block();
        block.service.generation.store(0, Ordering::Release);
        let zeroed = self.table.zero(slot_offset(self.slot) + 4, crate::limits::BLOCK_SIZE - 4);
        debug_assert!(zeroed, "a record lies inside its table");
        for slot in 0..FIFO_SLOTS {
            block.rx_chunks.0[slot].store(NO_CHUNK, Ordering::Relaxed);
            block.tx_chunks.0[slot].store(NO_CHUNK, Ordering::Relaxed);
        }
        block.service.rx_kick_at.store(self.rx.kick_step, Ordering::Relaxed);
        block.service.generation.store(self.generation, Ordering::Release);
    }

    #[inline]
    fn block(&self) -> &Block {
        // Slots come from `SocketTable`, whose tables have room for all of theirs.
        self.table.view(slot_offset(self.slot)).expect("a record lies inside its table")
    }

    /// The slot of the record.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// The generation of the record.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    // --- state ---------------------------------------------------------------------------------

    /// Publishes the status bits, after `rx_tail` and the error they speak of.
    pub fn set_status(&mut self, status: u32) {
        self.status = status;
        self.block().service.status.store(status, Ordering::Release);
    }

    /// The status bits as last set.
    pub fn status(&self) -> u32 {
        self.status
    }

    /// Says where the connection is from now on; to be followed by the status `MOVED`.
    pub fn set_new_place(&mut self, place: super::NewPlace) {
        self.block().moved.store(place);
    }

    /// Leaves an error (a positive errno) for the application to take.
    pub fn set_error(&mut self, errno: i32) {
        self.block().service.error.store(errno, Ordering::Release);
    }

    /// Takes the pending error as an application would; 0 if none.
    pub fn take_error(&mut self) -> i32 {
        self.block().service.error.swap(0, Ordering::AcqRel)
    }

    /// Publishes the socket's own address.
    pub fn set_local(&mut self, address: Option<SocketAddr>) {
        self.block().address.local.store(address);
    }

    /// Publishes the peer's address.
    pub fn set_remote(&mut self, address: Option<SocketAddr>) {
        self.block().address.remote.store(address);
    }

    /// Wakes every blocked call on the socket, so that it looks again. Call it once after a batch
    /// of changes; it costs a fence and a load when nobody is blocked.
    pub fn wake(&self) {
        let block = self.block();
        if handshake::notify(&block.service.wake_sequence, &block.application.waiters) {
            let _: usize = sys::futex_wake(&block.service.wake_sequence, u32::MAX);
        }
    }

    // --- offers --------------------------------------------------------------------------------

    /// Offers the connection: whoever gets the message may claim it.
    pub fn offer(&mut self) {
        let word = offer_word(self.generation, OfferState::Offered);
        self.block().owner.offer.store(word, Ordering::Release);
    }

    /// Takes an offer back. `Ok(false)`: it was claimed first.
    pub fn revoke(&mut self) -> Result<bool, Hostile> {
        let offered = offer_word(self.generation, OfferState::Offered);
        let revoked = offer_word(self.generation, OfferState::Revoked);
        let word = &self.block().owner.offer;
        match word.compare_exchange(offered, revoked, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(true),
            Err(found) if found == offer_word(self.generation, OfferState::Claimed) => Ok(false),
            Err(_) => Err(Hostile::Offer),
        }
    }

    /// The state of the offer.
    pub fn offer_state(&self) -> Result<OfferState, Hostile> {
        let found = self.block().owner.offer.load(Ordering::Acquire);
        if found == 0 {
            return Ok(OfferState::None);
        }
        [OfferState::Offered, OfferState::Claimed, OfferState::Revoked]
            .into_iter()
            .find(|state| found == offer_word(self.generation, *state))
            .ok_or(Hostile::Offer)
    }

    // --- receive -------------------------------------------------------------------------------

    /// Stores received bytes at their place, which may lie beyond the in-order end. Returns how
    /// many bytes from the start of `data` are stored (bytes below the in-order end count as
    /// stored): fewer when memory is short or the place is beyond what the FIFO can hold.
    pub fn write_rx(&mut self, position: u64, data: &[u8], arena: &mut Arena) -> usize {
        if self.released {
            return 0;
        }
        let skipped = self.rx.tail.saturating_sub(position).min(data.len() as u64);
        let end = chunk_floor(self.rx.head) + FIFO_BYTES as u64;
        let mut at = position.saturating_add(skipped);
        let mut done = skipped as usize;
        let past_caches = data.len() >= PAST_CACHES_MIN && self.is_read_elsewhere();
        while done < data.len() && at < end {
            let Some(chunk) = self.rx_chunk(at, arena) else { break };
            let len = piece_len(at, data.len() - done);
            if !arena.write(chunk, chunk_offset_of(at), &data[done..done + len], past_caches) {
                break;
            }
            at += len as u64;
            done += len;
        }
        if done > skipped as usize {
            self.rx.stored_end = self.rx.stored_end.max(at);
        }
        done
    }

    /// Whether the application reads on another core, where the lines of the FIFO are then.
    fn is_read_elsewhere(&self) -> bool {
        let reader = self.rx.reader_core;
        reader != 0 && sys::current_core().is_some_and(|core| core.wrapping_add(1) != reader)
    }

    fn rx_chunk(&mut self, position: u64, arena: &mut Arena) -> Option<u32> {
        let slot = slot_of(position);
        if self.rx.chunks[slot] == NO_CHUNK {
            let chunk = arena.allocate()?;
            self.rx.chunks[slot] = chunk;
            self.block().rx_chunks.0[slot].store(chunk, Ordering::Relaxed);
        }
        Some(self.rx.chunks[slot])
    }

    /// Bytes up to `end` are complete: the application may read them. All of them must have been
    /// stored; an `end` below the last one changes nothing.
    pub fn commit_rx(&mut self, end: u64) {
        debug_assert!(end <= self.rx.stored_end.max(self.rx.tail), "committed bytes are stored");
        if end > self.rx.tail {
            self.rx.tail = end.min(self.rx.stored_end);
            self.block().service.rx_tail.store(self.rx.tail, Ordering::Release);
        }
    }

    /// How far the application has read. Frees the chunks it has passed, and arms the next KICK_RX.
    pub fn observe_rx_head(&mut self, arena: &mut Arena) -> Result<u64, Hostile> {
        if self.released {
            return Ok(self.rx.head);
        }
        let block = self.block();
        handshake::take_kick(&block.application.rx_kick);
        let mut head = self.rx.head;
        // Bounded: each further turn needs the application to have read another step, and no head
        // beyond `rx_tail` is accepted.
        loop {
            block.service.rx_kick_at.store(head + self.rx.kick_step, Ordering::Relaxed);
            // Against `AppStream::read`: either it sees the new mark, or we see its new head.
            core::sync::atomic::fence(Ordering::SeqCst);
            let seen = block.application.rx_head.load(Ordering::Acquire);
            if seen < head || seen > self.rx.tail {
                return Err(Hostile::RxHead);
            }
            let passed = seen >= head + self.rx.kick_step;
            head = seen;
            if !passed {
                break;
            }
        }
        self.rx.reader_core = block.application.rx_core.load(Ordering::Relaxed);
        self.free_rx(head, arena);
        Ok(head)
    }

    fn free_rx(&mut self, head: u64, arena: &mut Arena) {
        let mut at = chunk_floor(self.rx.head);
        while at < chunk_floor(head) {
            self.drop_rx_chunk(slot_of(at), arena);
            at += CHUNK;
        }
        self.rx.head = head;
    }

    fn drop_rx_chunk(&mut self, slot: usize, arena: &mut Arena) {
        let chunk = core::mem::replace(&mut self.rx.chunks[slot], NO_CHUNK);
        if chunk != NO_CHUNK {
            self.block().rx_chunks.0[slot].store(NO_CHUNK, Ordering::Relaxed);
            arena.free(chunk);
        }
    }

    /// Sets how many bytes the application reads before it sends KICK_RX (at least 1024; the
    /// default is half a chunk). Something like a third of the receive buffer is right. Once an
    /// application may be reading, [`ServiceStream::observe_rx_head`] has to follow, because it may
    /// have passed the new mark.
    pub fn set_rx_kick_step(&mut self, bytes: u64) {
        self.rx.kick_step = bytes.clamp(KICK_STEP_MIN, FIFO_BYTES as u64);
        let mark = self.rx.head + self.rx.kick_step;
        self.block().service.rx_kick_at.store(mark, Ordering::Relaxed);
    }

    /// How far the application had read when last observed.
    pub fn rx_head(&self) -> u64 {
        self.rx.head
    }

    /// Bytes that wait to be read, as far as the application's position can be believed.
    pub fn rx_waiting(&self) -> u64 {
        let seen = self.block().application.rx_head.load(Ordering::Acquire);
        self.rx.tail - seen.clamp(self.rx.head, self.rx.tail)
    }

    /// Bytes written that [`ServiceStream::observe_tx_tail`] has not seen yet.
    pub fn tx_unheard(&self) -> u64 {
        let seen = self.block().application.tx_tail.load(Ordering::Acquire);
        seen.clamp(self.tx.tail, self.tx.limit.max(self.tx.tail)) - self.tx.tail
    }

    /// Bytes the application may read up to.
    pub fn rx_tail(&self) -> u64 {
        self.rx.tail
    }

    // --- send ----------------------------------------------------------------------------------

    /// How far the application has written. Call it on KICK_TX, before [`ServiceStream::read_tx`].
    pub fn observe_tx_tail(&mut self) -> Result<u64, Hostile> {
        if self.released {
            return Ok(self.tx.tail);
        }
        let block = self.block();
        handshake::take_kick(&block.application.tx_kick);
        let tail = block.application.tx_tail.load(Ordering::Acquire);
        if tail < self.tx.tail || tail > self.tx.limit {
            return Err(Hostile::TxTail);
        }
        self.tx.tail = tail;
        Ok(tail)
    }

    /// Copies written bytes `[position, position + out.len())`. False, and zeros, if any of them is
    /// acknowledged or not written.
    #[must_use]
    pub fn read_tx(&self, position: u64, out: &mut [u8], arena: &Arena) -> bool {
        let end = position.saturating_add(out.len() as u64);
        let known = position >= self.tx.head && end <= self.tx.tail;
        let copied = known && self.copy_tx(position, out, arena);
        if !copied {
            out.fill(0);
        }
        copied
    }

    fn copy_tx(&self, position: u64, out: &mut [u8], arena: &Arena) -> bool {
        let mut done = 0;
        while done < out.len() {
            let at = position + done as u64;
            let len = piece_len(at, out.len() - done);
            let chunk = self.tx.chunks[slot_of(at)];
            if !arena.read(chunk, chunk_offset_of(at), &mut out[done..done + len]) {
                return false;
            }
            done += len;
        }
        true
    }

    /// The peer has acknowledged up to `position`: frees the chunks passed and grants more, so that
    /// up to `send_buffer` bytes can be unacknowledged. True: the application may write again where
    /// it could not, and should hear of it.
    pub fn acked(&mut self, position: u64, send_buffer: u64, arena: &mut Arena) -> bool {
        let position = position.clamp(self.tx.head, self.tx.tail);
        let mut at = chunk_floor(self.tx.head);
        while at < chunk_floor(position) {
            self.drop_tx_chunk(slot_of(at), arena);
            at += CHUNK;
        }
        self.tx.head = position;
        self.block().service.tx_head.store(position, Ordering::Release);
        self.grant_tx(send_buffer, arena)
    }

    /// WANT_TX has come: grants more, now or when there is room. True: the application may write
    /// again, and should hear of it.
    pub fn want_tx(&mut self, send_buffer: u64, arena: &mut Arena) -> Result<bool, Hostile> {
        handshake::take_kick(&self.block().application.tx_wanted);
        let tail = self.observe_tx_tail()?;
        if tail == self.tx.limit && self.tx.limit > 0 {
            self.tx.ahead = (self.tx.ahead * 2).min(FIFO_BYTES as u64);
        }
        self.tx.wanted = true;
        Ok(self.grant_tx(send_buffer, arena))
    }

    /// Publishes how much could be written and grants chunks ahead of the application: first one,
    /// then twice as much whenever it has used up what it had, within `send_buffer` bytes from the
    /// acknowledged edge. True: the application had asked, and may write now. Call it when the
    /// connection starts, too.
    pub fn grant_tx(&mut self, send_buffer: u64, arena: &mut Arena) -> bool {
        if self.released {
            return false;
        }
        self.update_room(send_buffer);
        let target = self.tx.tail.saturating_add(self.tx.ahead).min(self.tx.room);
        // Not for a few bytes at every acknowledgement.
        let gain = target.saturating_sub(self.tx.limit);
        let low = self.tx.limit - self.tx.tail < self.tx.ahead / 2;
        if gain > 0 && (low || self.tx.wanted) {
            self.extend_tx(target, arena);
        }
        let answered = self.tx.wanted && self.tx.limit > self.tx.tail;
        self.tx.wanted &= !answered;
        answered
    }

    /// Publishes how far the application could write. Once it has run out of room, only a third of
    /// the buffer (or an empty one) makes room again: a wake-up for every acknowledgement would
    /// cost more than it brings.
    fn update_room(&mut self, send_buffer: u64) {
        let fifo_end = chunk_floor(self.tx.head) + FIFO_BYTES as u64;
        let room = self.tx.head.saturating_add(send_buffer).min(fifo_end).max(self.tx.limit);
        let full = self.tx.room <= self.tx.tail;
        let enough = room.saturating_sub(self.tx.tail) >= send_buffer.min(FIFO_BYTES as u64) / 3;
        let empty = self.tx.head == self.tx.tail;
        if room != self.tx.room && (!full || enough || empty) {
            self.tx.room = room;
            self.block().service.tx_room.store(room, Ordering::Release);
        }
    }

    /// Backs positions up to `target` with chunks as far as there are any, and publishes the limit.
    fn extend_tx(&mut self, target: u64, arena: &mut Arena) {
        let mut backed = chunk_floor(self.tx.limit);
        while backed < target {
            let slot = slot_of(backed);
            if self.tx.chunks[slot] == NO_CHUNK {
                let Some(chunk) = arena.allocate() else { break };
                self.tx.chunks[slot] = chunk;
                self.block().tx_chunks.0[slot].store(chunk, Ordering::Relaxed);
            }
            backed += CHUNK;
        }
        let limit = target.min(backed);
        if limit > self.tx.limit {
            self.tx.limit = limit;
            self.block().service.tx_limit.store(limit, Ordering::Release);
        }
    }

    fn drop_tx_chunk(&mut self, slot: usize, arena: &mut Arena) {
        let chunk = core::mem::replace(&mut self.tx.chunks[slot], NO_CHUNK);
        if chunk != NO_CHUNK {
            self.block().tx_chunks.0[slot].store(NO_CHUNK, Ordering::Relaxed);
            arena.free(chunk);
        }
    }

    /// Bytes acknowledged.
    pub fn tx_head(&self) -> u64 {
        self.tx.head
    }

    /// Bytes written when last observed.
    pub fn tx_tail(&self) -> u64 {
        self.tx.tail
    }

    /// How many bytes the application may write now, as granted.
    pub fn tx_granted(&self) -> u64 {
        self.tx.limit - self.tx.tail
    }

    /// The application waits for WANT_TX to be answered: memory or the peer is slow.
    pub fn tx_wanted(&self) -> bool {
        self.tx.wanted
    }

    // --- memory and owners ---------------------------------------------------------------------

    /// Takes back the memory of a connection that has nothing under way: the last chunk of an empty
    /// receive direction, and what was granted to an empty send direction nobody is writing to.
    /// Returns how many chunks came free.
    pub fn try_reclaim_idle(&mut self, arena: &mut Arena) -> Result<usize, Hostile> {
        if self.released {
            return Ok(0);
        }
        let before = arena.used_chunks();
        let head = self.observe_rx_head(arena)?;
        if head == self.rx.stored_end {
            for slot in 0..FIFO_SLOTS {
                self.drop_rx_chunk(slot, arena);
            }
        }
        self.reclaim_tx(arena)?;
        Ok((before - arena.used_chunks()) as usize)
    }

    fn reclaim_tx(&mut self, arena: &mut Arena) -> Result<(), Hostile> {
        let idle = self.tx.head == self.tx.tail && !self.tx.wanted;
        if !idle || self.tx.chunks.iter().all(|chunk| *chunk == NO_CHUNK) {
            return Ok(());
        }
        let owner = &self.block().owner.tx_owner;
        let taken =
            owner.compare_exchange(0, SERVICE_OWNER, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !taken {
            return Ok(());
        }
        // While the owner word is ours no application writes; what one had written before the word
        // was free is visible now.
        let tail = self.block().application.tx_tail.load(Ordering::Acquire);
        if tail == self.tx.tail {
            self.tx.limit = tail;
            self.tx.ahead = CHUNK;
            self.block().service.tx_limit.store(tail, Ordering::Release);
            for slot in 0..FIFO_SLOTS {
                self.drop_tx_chunk(slot, arena);
            }
        }
        self.free_owner(&self.block().owner.tx_owner);
        if tail < self.tx.tail { Err(Hostile::TxTail) } else { Ok(()) }
    }

    fn free_owner(&self, word: &AtomicU32) {
        word.store(0, Ordering::Release);
        let _: usize = sys::futex_wake(word, u32::MAX);
    }

    /// Frees the owner words that a dead process holds.
    pub fn clear_owner(&self, process_id: u32) {
        let owner = &self.block().owner;
        for word in [&owner.rx_owner, &owner.tx_owner] {
            for held in [process_id, process_id | OWNER_CONTENDED] {
                let cleared = word.compare_exchange(held, 0, Ordering::AcqRel, Ordering::Relaxed);
                if cleared.is_ok() {
                    let _: usize = sys::futex_wake(word, u32::MAX);
                }
            }
        }
    }

    /// Gives all chunks back. The record stays: its state can still be read, its bytes cannot.
    pub fn release_all(&mut self, arena: &mut Arena) {
        self.released = true;
        for slot in 0..FIFO_SLOTS {
            self.drop_rx_chunk(slot, arena);
            self.drop_tx_chunk(slot, arena);
        }
        self.tx.limit = self.tx.tail;
        self.tx.room = self.tx.tail;
        let line = &self.block().service;
        line.tx_limit.store(self.tx.tail, Ordering::Release);
        line.tx_room.store(self.tx.tail, Ordering::Release);
    }

    /// Ends the use of the record: gives all chunks back, and every handle to it becomes stale.
    /// The caller frees the slot afterwards.
    pub fn retire(mut self, arena: &mut Arena) {
        self.release_all(arena);
        self.block().service.generation.store(0, Ordering::Release);
        // Whoever waits for an owner word finds that the record is no more.
        self.thaw();
        self.wake();
    }

    /// Chunks held by both directions.
    pub fn chunk_count(&self) -> usize {
        self.chunks().filter(|chunk| *chunk != NO_CHUNK).count()
    }

    /// The chunk of every slot of both directions, or `NO_CHUNK`.
    pub(super) fn chunks(&self) -> impl Iterator<Item = u32> + '_ {
        self.rx.chunks.iter().chain(&self.tx.chunks).copied()
    }
}
