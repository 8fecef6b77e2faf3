//! A process's end of a socket: reading and writing its bytes, looking at its state, waiting.
//!
//! Locking. Each direction is taken twice: first a lock among the threads of this process, in
//! private memory, which knows its holder, so that a signal handler that interrupts a copy and
//! comes back here is refused ([`StreamError::WouldDeadlock`]) instead of hung; then the owner word
//! in the shared record, which holds the process id that the service gave, and which the service
//! clears when that process dies. Both are held for the copy alone. Within a process all handles to
//! one socket should be clones of one [`AppStream`]; two that are opened apart still exclude each
//! other by the owner word, only without telling re-entry from contention.

use core::sync::atomic::{AtomicU32, Ordering, fence};
use core::time::Duration;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;

mod records;

pub use records::RecordRead;

use super::layout::{Block, ChunkLine};
use super::service::{OfferState, offer_word};
use super::{chunk_offset_of, piece_len, slot_of};
use crate::arena::Arena;
use crate::handshake::{self, LocalGuard, LocalLock, LockFailure, WaitTicket};
use crate::limits::{
    CHUNK_SIZE, FIFO_BYTES, NO_CHUNK, OWNER_CONTENDED, PROCESS_ID_MAX, SERVICE_OWNER, chunk_arena,
    chunk_offset, slot_offset,
};
use crate::segment::Segment;
use crate::sys::{self, Errno, Waited};

/// Longest wait for another thread or process to finish its copy.
const LOCK_LIMIT: Duration = Duration::from_secs(1);
/// Turns of spinning before a wait for the owner word sleeps.
const OWNER_SPINS: u32 = 200;

/// Why [`AppStream::write_file`] took no more of a file.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum FileStop {
    /// It has no more.
    End,
    /// The kernel does not read it straight into the stream: `EAGAIN` if it would have to wait, else
    /// what preadv2(2) says of the file.
    Refused(Errno),
}

/// Finds the mapping of an arena. Called while a direction is locked: it must not use the same
/// stream. It may map an arena on demand; if it answers `None` the call ends with
/// [`StreamError::Unmapped`], and can be repeated once the arena is mapped.
pub trait Chunks {
    /// The segment of arena `index`.
    fn arena(&self, index: u32) -> Option<Arc<Segment>>;
}

impl<F: Fn(u32) -> Option<Arc<Segment>>> Chunks for F {
    fn arena(&self, index: u32) -> Option<Arc<Segment>> {
        self(index)
    }
}

impl Chunks for Arena {
    fn arena(&self, index: u32) -> Option<Arc<Segment>> {
        self.segment(index).cloned()
    }
}

/// Why a call on a stream did nothing.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum StreamError {
    /// The record has gone to another socket, or to none.
    Stale,
    /// Another thread or process held the direction for longer than a second.
    Contended,
    /// A signal handler interrupted this thread in the middle of a copy of the same direction.
    WouldDeadlock,
    /// This arena is not mapped here.
    Unmapped(u32),
    /// Positions or chunk numbers in the record contradict each other.
    Corrupt,
    /// The connection is with another server by now ([`AppStream::new_place`]); here nothing was done.
    Moved,
    /// The service has held the direction for longer than a second, to move the connection: the call may be
    /// made again as long as the server lives.
    Frozen,
}

impl core::fmt::Display for StreamError {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            StreamError::Stale => out.write_str("the socket is gone"),
            StreamError::Contended => out.write_str("the stream is held by another for too long"),
            StreamError::WouldDeadlock => out.write_str("re-entered from a signal handler"),
            StreamError::Unmapped(arena) => write!(out, "arena {arena} is not mapped"),
            StreamError::Corrupt => out.write_str("the record contradicts itself"),
            StreamError::Moved => out.write_str("the connection is with another server"),
            StreamError::Frozen => out.write_str("the service holds the stream for long"),
        }
    }
}

impl core::error::Error for StreamError {}

/// What a read did.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOutcome {
    /// Bytes copied (or discarded).
    pub bytes: usize,
    /// KICK_RX must be sent.
    pub kick: bool,
    /// Nothing is left and the peer will send no more.
    pub end_of_stream: bool,
}

/// What a write did.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOutcome {
    /// Bytes copied.
    pub bytes: usize,
    /// KICK_TX must be sent.
    pub kick: bool,
    /// Not everything fitted, and WANT_TX must be sent.
    pub want: bool,
    /// There is room beyond what was granted: a WANT_TX will be answered at once, so that it is
    /// worth spinning for a moment.
    pub room_beyond: bool,
}

#[derive(Debug)]
struct Inner {
    table: Arc<Segment>,
    offset: usize,
    slot: u32,
    generation: u32,
    process_id: AtomicU32,
    rx_lock: LocalLock,
    tx_lock: LocalLock,
}

/// A process's end of one socket. Cheap to clone; clones are the same end.
#[derive(Clone, Debug)]
pub struct AppStream {
    inner: Arc<Inner>,
}

impl AppStream {
    /// The end of socket (`slot`, `generation`) in the table that holds the slot. `process_id` is
    /// this process's number as given by the service. `None` if the numbers cannot be right.
    pub fn open(
        table: Arc<Segment>,
        slot: u32,
        generation: u32,
        process_id: u32,
    ) -> Option<AppStream> {
        let offset = slot_offset(slot);
        let _: &Block = table.view(offset)?;
        if generation == 0 || process_id == 0 || process_id > PROCESS_ID_MAX {
            return None;
        }
        let inner = Inner {
            table,
            offset,
            slot,
            generation,
            process_id: AtomicU32::new(process_id),
            rx_lock: LocalLock::new(),
            tx_lock: LocalLock::new(),
        };
        Some(AppStream { inner: Arc::new(inner) })
    }

    /// In a forked child, for each stream it has inherited: forgets the locks of threads that do
    /// not exist here, and takes on the number of the new process.
    pub fn reset_after_fork(&self, process_id: u32) {
        self.inner.process_id.store(process_id.clamp(1, PROCESS_ID_MAX), Ordering::Relaxed);
        self.inner.rx_lock.reset();
        self.inner.tx_lock.reset();
    }

    #[inline]
    fn block(&self) -> &Block {
        // `open` made sure that the record lies inside the table.
        self.inner.table.view(self.inner.offset).expect("a record lies inside its table")
    }

    /// Numbers of the arenas in which its bytes lie now; some may come twice.
    pub fn arenas(&self) -> impl Iterator<Item = u32> {
        let block = self.block();
        let chunks = block.rx_chunks.0.iter().chain(&block.tx_chunks.0);
        chunks
            .map(|chunk| chunk.load(Ordering::Relaxed))
            .filter(|chunk| *chunk != NO_CHUNK)
            .map(chunk_arena)
    }

    /// The slot of the record.
    pub fn slot(&self) -> u32 {
        self.inner.slot
    }

    /// The generation of the record.
    pub fn generation(&self) -> u32 {
        self.inner.generation
    }

    /// Whether the record still belongs to this socket.
    #[inline]
    pub fn is_current(&self) -> bool {
        self.block().service.generation.load(Ordering::Acquire) == self.inner.generation
    }

    // --- state ---------------------------------------------------------------------------------

    /// The status bits ([`super::status`]); `CLOSED` alone once the record belongs to another.
    #[inline]
    pub fn status(&self) -> u32 {
        let status = self.block().service.status.load(Ordering::Acquire);
        if self.is_current() { status } else { super::status::CLOSED }
    }

    /// Where the connection is, once the status says `MOVED`. `None`: what is written there is nonsense.
    pub fn new_place(&self) -> Option<super::NewPlace> {
        self.block().moved.load()
    }

    /// Takes the pending error (a positive errno); 0 if none.
    pub fn take_error(&self) -> i32 {
        if self.has_error() { self.block().service.error.swap(0, Ordering::AcqRel) } else { 0 }
    }

    /// The server that kept this record is gone: its connection has failed with `errno`, unless it
    /// had failed or ended before. Any process that holds the socket may find that out first; blocked
    /// calls of all of them look again.
    pub fn fail(&self, errno: i32) {
        use super::status::{CLOSED, FAILED, FINISHED, MOVED};
        let status = self.block().service.status.load(Ordering::Acquire);
        // One that has moved lives on elsewhere.
        if status & (CLOSED | FAILED | FINISHED | MOVED) == 0 {
            self.end(errno);
        }
    }

    /// The connection has moved from this record and died where it went: it has failed with `errno`, to all
    /// who look for it here.
    pub fn fail_where_moved(&self, errno: i32) {
        use super::status::{FAILED, MOVED};
        let status = self.block().service.status.load(Ordering::Acquire);
        if self.is_current() && status & (MOVED | FAILED) == MOVED {
            self.end(errno);
        }
    }

    fn end(&self, errno: i32) {
        let line = &self.block().service;
        // Fails if another error is pending, which is as good.
        let _: Result<i32, i32> =
            line.error.compare_exchange(0, errno, Ordering::AcqRel, Ordering::Relaxed);
        line.status.fetch_or(super::status::FAILED, Ordering::AcqRel);
        let waiters = &self.block().application.waiters;
        if handshake::notify(&line.wake_sequence, waiters) {
            let _: usize = sys::futex_wake(&line.wake_sequence, u32::MAX);
        }
    }

    /// Whether an error is pending.
    pub fn has_error(&self) -> bool {
        self.is_current() && self.block().service.error.load(Ordering::Acquire) != 0
    }

    /// The socket's own address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.block().address.local.load()
    }

    /// The peer's address.
    pub fn remote_address(&self) -> Option<SocketAddr> {
        self.block().address.remote.load()
    }

    /// Bytes that can be read now.
    #[inline]
    pub fn readable(&self) -> u64 {
        let block = self.block();
        let head = block.application.rx_head.load(Ordering::Acquire);
        let tail = block.service.rx_tail.load(Ordering::Acquire);
        tail.saturating_sub(head).min(FIFO_BYTES as u64)
    }

    /// Bytes that can be written now, as granted.
    #[inline]
    pub fn writable(&self) -> u64 {
        let block = self.block();
        let tail = block.application.tx_tail.load(Ordering::Acquire);
        let limit = block.service.tx_limit.load(Ordering::Acquire);
        limit.saturating_sub(tail).min(FIFO_BYTES as u64)
    }

    /// Bytes that can be written now or after asking for memory (WANT_TX).
    #[inline]
    pub fn tx_room(&self) -> u64 {
        let block = self.block();
        let tail = block.application.tx_tail.load(Ordering::Acquire);
        let room = block.service.tx_room.load(Ordering::Acquire);
        room.saturating_sub(tail).min(FIFO_BYTES as u64).max(self.writable())
    }

    /// Where the stream stands: what has come, what was written, and up to where can be written. While all of
    /// that is the same no byte has come and no room has come free.
    pub fn positions(&self) -> [u64; 3] {
        let block = self.block();
        [
            block.service.rx_tail.load(Ordering::Acquire),
            block.application.tx_tail.load(Ordering::Acquire),
            block.service.tx_room.load(Ordering::Acquire),
        ]
    }

    /// Bytes written that the peer has not acknowledged yet.
    pub fn unacknowledged(&self) -> u64 {
        let block = self.block();
        let head = block.service.tx_head.load(Ordering::Acquire);
        block.application.tx_tail.load(Ordering::Acquire).saturating_sub(head)
    }

    /// Claims an offered connection. False: it was revoked, or claimed by another.
    pub fn claim(&self) -> bool {
        let offered = offer_word(self.inner.generation, OfferState::Offered);
        let claimed = offer_word(self.inner.generation, OfferState::Claimed);
        let word = &self.block().owner.offer;
        word.compare_exchange(offered, claimed, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    // --- reading -------------------------------------------------------------------------------

    /// Copies received bytes into `out` and takes them.
    pub fn read(&self, out: &mut [u8], chunks: &impl Chunks) -> Result<ReadOutcome, StreamError> {
        self.read_vectored(&mut [IoSliceMut::new(out)], chunks)
    }

    /// As [`AppStream::read`], into several buffers in turn.
    pub fn read_vectored(
        &self,
        out: &mut [IoSliceMut<'_>],
        chunks: &impl Chunks,
    ) -> Result<ReadOutcome, StreamError> {
        let _held = self.hold_rx()?;
        let mut span = self.rx_span()?;
        let head = span.head;
        for buffer in out.iter_mut() {
            let done = self.copy_rx(&mut span, buffer, chunks);
            if let Err(error) = done {
                if span.head == head {
                    return Err(error);
                }
                break;
            }
            if span.head == span.tail {
                break;
            }
        }
        Ok(self.finish_read(head, &span))
    }

    /// Copies received bytes into several buffers without taking them, skipping the first `skip`.
    pub fn peek_vectored(
        &self,
        out: &mut [IoSliceMut<'_>],
        skip: u64,
        chunks: &impl Chunks,
    ) -> Result<ReadOutcome, StreamError> {
        let _held = self.hold_rx()?;
        let mut span = self.rx_span()?;
        span.head = span.head.saturating_add(skip).min(span.tail);
        let start = span.head;
        for buffer in out.iter_mut() {
            let done = self.copy_rx(&mut span, buffer, chunks);
            if let Err(error) = done {
                if span.head == start {
                    return Err(error);
                }
                break;
            }
        }
        let bytes = (span.head - start) as usize;
        Ok(ReadOutcome { bytes, kick: false, end_of_stream: bytes == 0 && span.fin })
    }

    /// As [`AppStream::peek_vectored`], into one buffer from the first byte.
    pub fn peek(&self, out: &mut [u8], chunks: &impl Chunks) -> Result<ReadOutcome, StreamError> {
        self.peek_vectored(&mut [IoSliceMut::new(out)], 0, chunks)
    }

    /// Takes up to `most` received bytes without copying them.
    pub fn discard(&self, most: u64) -> Result<ReadOutcome, StreamError> {
        let _held = self.hold_rx()?;
        let mut span = self.rx_span()?;
        let head = span.head;
        span.head += most.min(span.tail - span.head);
        Ok(self.finish_read(head, &span))
    }

    /// The readable span. The status comes first: if it says that the stream has ended, the tail
    /// read after it is the last.
    fn rx_span(&self) -> Result<ReadSpan, StreamError> {
        let block = self.block();
        let status = block.service.status.load(Ordering::Acquire);
        if !self.is_current() {
            return Err(StreamError::Stale);
        }
        // The service marks the record before it lets go of the owner words, one of which is ours now.
        if status & super::status::MOVED != 0 {
            return Err(StreamError::Moved);
        }
        let head = block.application.rx_head.load(Ordering::Relaxed);
        let tail = block.service.rx_tail.load(Ordering::Acquire);
        if tail < head || tail - head > FIFO_BYTES as u64 {
            return Err(StreamError::Corrupt);
        }
        Ok(ReadSpan { head, tail, fin: status & super::status::RX_FIN != 0 })
    }

    fn copy_rx(
        &self,
        span: &mut ReadSpan,
        out: &mut [u8],
        chunks: &impl Chunks,
    ) -> Result<(), StreamError> {
        let mut done = 0;
        while done < out.len() && span.head < span.tail {
            let left = (span.tail - span.head).min((out.len() - done) as u64) as usize;
            let len = piece_len(span.head, left);
            let (segment, at) = find(&self.block().rx_chunks, span.head, chunks)?;
            if !segment.copy_out(at, &mut out[done..done + len]) {
                return Err(StreamError::Corrupt);
            }
            span.head += len as u64;
            done += len;
        }
        Ok(())
    }

    /// Publishes what was taken, and finds out whether the service wants to hear of it.
    fn finish_read(&self, head: u64, span: &ReadSpan) -> ReadOutcome {
        let bytes = (span.head - head) as usize;
        if bytes == 0 {
            let end_of_stream = span.head == span.tail && span.fin;
            return ReadOutcome { bytes, kick: false, end_of_stream };
        }
        let block = self.block();
        block.application.rx_head.store(span.head, Ordering::Release);
        // Against `ServiceStream::observe_rx_head`.
        fence(Ordering::SeqCst);
        let due = span.head >= block.service.rx_kick_at.load(Ordering::Relaxed);
        if due {
            let core = sys::current_core().map_or(0, |core| core.wrapping_add(1));
            block.application.rx_core.store(core, Ordering::Relaxed);
        }
        let kick = due && handshake::raise_kick(&block.application.rx_kick);
        ReadOutcome { bytes, kick, end_of_stream: false }
    }

    // --- writing -------------------------------------------------------------------------------

    /// Copies bytes into the send stream, as many as there is room for.
    pub fn write(&self, data: &[u8], chunks: &impl Chunks) -> Result<WriteOutcome, StreamError> {
        self.write_vectored(&[IoSlice::new(data)], chunks)
    }

    /// As [`AppStream::write`], from several buffers in turn.
    pub fn write_vectored(
        &self,
        data: &[IoSlice<'_>],
        chunks: &impl Chunks,
    ) -> Result<WriteOutcome, StreamError> {
        let _held = self.hold_tx()?;
        let (start, limit) = self.tx_span()?;
        let mut tail = start;
        let mut fitted = true;
        for buffer in data {
            if let Err(error) = self.copy_tx(&mut tail, limit, buffer, &mut fitted, chunks) {
                if tail == start {
                    return Err(error);
                }
                break;
            }
        }
        Ok(self.finish_write(start, tail, fitted))
    }

    /// Writes up to `most` bytes of a file from `position` on, which the kernel reads straight into
    /// the stream, as far as it has them at hand: the direction is not held while a disk works. Also
    /// why it stopped, unless that was for lack of room or all is written.
    pub fn write_file(
        &self,
        file: RawFd,
        position: u64,
        most: usize,
        chunks: &impl Chunks,
    ) -> Result<(WriteOutcome, Option<FileStop>), StreamError> {
        let _held = self.hold_tx()?;
        let (start, limit) = self.tx_span()?;
        let mut tail = start;
        let mut stop = None;
        // Bounded: every turn but the last moves on.
        while stop.is_none() && tail < limit && tail - start < most as u64 {
            let done = (tail - start) as usize;
            let len = piece_len(tail, (limit - tail).min((most - done) as u64) as usize);
            let (segment, at) = match find(&self.block().tx_chunks, tail, chunks) {
                Ok(place) => place,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            match segment.read_file(at, len, file, position.saturating_add(done as u64)) {
                Ok(0) => stop = Some(FileStop::End),
                Ok(bytes) => tail += bytes.min(len) as u64,
                Err(errno) => stop = Some(FileStop::Refused(errno)),
            }
        }
        let fitted = stop.is_some() || tail - start == most as u64;
        Ok((self.finish_write(start, tail, fitted), stop))
    }

    /// Where the application writes next, and up to where it may.
    fn tx_span(&self) -> Result<(u64, u64), StreamError> {
        let block = self.block();
        // Before the generation, as in `rx_span`.
        let status = block.service.status.load(Ordering::Acquire);
        if !self.is_current() {
            return Err(StreamError::Stale);
        }
        if status & super::status::MOVED != 0 {
            return Err(StreamError::Moved);
        }
        let start = block.application.tx_tail.load(Ordering::Relaxed);
        let limit = block.service.tx_limit.load(Ordering::Acquire);
        match limit.saturating_sub(start) > FIFO_BYTES as u64 {
            true => Err(StreamError::Corrupt),
            false => Ok((start, limit)),
        }
    }

    fn copy_tx(
        &self,
        tail: &mut u64,
        limit: u64,
        data: &[u8],
        fitted: &mut bool,
        chunks: &impl Chunks,
    ) -> Result<(), StreamError> {
        let mut done = 0;
        while done < data.len() && *tail < limit {
            let left = (limit - *tail).min((data.len() - done) as u64) as usize;
            let len = piece_len(*tail, left);
            let (segment, at) = find(&self.block().tx_chunks, *tail, chunks)?;
            if !segment.copy_in(at, &data[done..done + len]) {
                return Err(StreamError::Corrupt);
            }
            *tail += len as u64;
            done += len;
        }
        *fitted &= done == data.len();
        Ok(())
    }

    fn finish_write(&self, start: u64, tail: u64, fitted: bool) -> WriteOutcome {
        let block = self.block();
        let bytes = (tail - start) as usize;
        let mut outcome = WriteOutcome { bytes, ..WriteOutcome::default() };
        if bytes > 0 {
            block.application.tx_tail.store(tail, Ordering::Release);
            outcome.kick = handshake::raise_kick(&block.application.tx_kick);
        }
        if !fitted {
            outcome.want = self.want_tx();
            outcome.room_beyond = block.service.tx_room.load(Ordering::Acquire) > tail;
        }
        outcome
    }

    /// Asks for room to write without writing, as poll for writing does. True: WANT_TX must be
    /// sent.
    pub fn want_tx(&self) -> bool {
        handshake::raise_kick(&self.block().application.tx_wanted)
    }

    // --- waiting -------------------------------------------------------------------------------

    /// Announces a blocking wait. Look at the condition once more after this call, then
    /// [`AppStream::wait`].
    pub fn prepare_wait(&self) -> WaitTicket {
        let block = self.block();
        handshake::prepare_wait(&block.service.wake_sequence, &block.application.waiters)
    }

    /// Sleeps until the socket's state changes, a signal handler runs (one without `SA_RESTART`),
    /// or the monotonic clock reaches `deadline_ns`. Look at the condition in any case.
    pub fn wait(&self, ticket: WaitTicket, deadline_ns: u64) -> Waited {
        let word = &self.block().service.wake_sequence;
        sys::futex_wait_until(word, ticket.sequence, deadline_ns)
    }

    /// As [`AppStream::wait`]; ends also when `other` is not `expected` any more.
    pub fn wait_both(
        &self,
        ticket: WaitTicket,
        other: &AtomicU32,
        expected: u32,
        deadline_ns: u64,
    ) -> Waited {
        let word = &self.block().service.wake_sequence;
        sys::futex_wait_both((word, ticket.sequence), (other, expected), deadline_ns)
    }

    /// As [`AppStream::wait`], but any signal handler ends the wait.
    pub fn wait_interruptibly(&self, ticket: WaitTicket, deadline_ns: u64) -> Waited {
        let word = &self.block().service.wake_sequence;
        sys::futex_wait_interruptibly(word, ticket.sequence, deadline_ns)
    }

    // --- locks ---------------------------------------------------------------------------------

    fn hold_rx(&self) -> Result<Held<'_>, StreamError> {
        self.hold(&self.inner.rx_lock, &self.block().owner.rx_owner)
    }

    fn hold_tx(&self) -> Result<Held<'_>, StreamError> {
        self.hold(&self.inner.tx_lock, &self.block().owner.tx_owner)
    }

    #[inline]
    fn hold<'a>(
        &'a self,
        lock: &'a LocalLock,
        owner: &'a AtomicU32,
    ) -> Result<Held<'a>, StreamError> {
        let local = lock.lock(LOCK_LIMIT).map_err(|failure| match failure {
            LockFailure::Reentered => StreamError::WouldDeadlock,
            LockFailure::TimedOut if owner.load(Ordering::Relaxed) == SERVICE_OWNER => {
                StreamError::Frozen
            }
            LockFailure::TimedOut => StreamError::Contended,
        })?;
        let process_id = self.inner.process_id.load(Ordering::Relaxed);
        let taken = owner.compare_exchange(0, process_id, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() {
            take_contended(owner, process_id)?;
        }
        Ok(Held { owner, _local: local })
    }
}

/// What can be read, checked.
struct ReadSpan {
    head: u64,
    tail: u64,
    fin: bool,
}

/// A direction held by this thread. Fields drop in order: the owner word goes free first.
struct Held<'a> {
    owner: &'a AtomicU32,
    _local: LocalGuard<'a>,
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.owner.swap(0, Ordering::Release) & OWNER_CONTENDED != 0 {
            let _: usize = sys::futex_wake(self.owner, u32::MAX);
        }
    }
}

/// Waits for the owner word. It is taken with the contended mark, because others may still sleep.
#[cold]
fn take_contended(owner: &AtomicU32, process_id: u32) -> Result<(), StreamError> {
    let take = |as_value: u32| {
        owner.compare_exchange(0, as_value, Ordering::Acquire, Ordering::Relaxed).is_ok()
    };
    for _ in 0..OWNER_SPINS {
        core::hint::spin_loop();
        if take(process_id) {
            return Ok(());
        }
    }
    let end_ns = sys::clock_monotonic_ns() + LOCK_LIMIT.as_nanos() as u64;
    while sys::clock_monotonic_ns() < end_ns {
        if take(process_id | OWNER_CONTENDED) {
            return Ok(());
        }
        let held = owner.load(Ordering::Relaxed);
        let marked = held | OWNER_CONTENDED;
        if held == 0
            || (held != marked
                && owner
                    .compare_exchange(held, marked, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err())
        {
            continue;
        }
        // The service holds the word only for a moment and marks nothing: look again soon.
        let slice_ms = if held == SERVICE_OWNER { 1 } else { 50 };
        let _: Waited = sys::futex_wait(owner, marked, Some(Duration::from_millis(slice_ms)));
    }
    match owner.load(Ordering::Relaxed) {
        SERVICE_OWNER => Err(StreamError::Frozen),
        _ => Err(StreamError::Contended),
    }
}

/// Where a stream position lies.
#[inline]
fn find(
    line: &ChunkLine,
    position: u64,
    chunks: &impl Chunks,
) -> Result<(Arc<Segment>, usize), StreamError> {
    let chunk = line.0[slot_of(position)].load(Ordering::Relaxed);
    if chunk == NO_CHUNK {
        return Err(StreamError::Corrupt);
    }
    let arena = chunk_arena(chunk);
    let segment = chunks.arena(arena).ok_or(StreamError::Unmapped(arena))?;
    Ok((segment, chunk_offset(chunk) + chunk_offset_of(position)))
}

const _: () = assert!(CHUNK_SIZE <= u32::MAX as usize);
