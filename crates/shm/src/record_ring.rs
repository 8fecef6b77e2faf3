//! A ring of records of different lengths in shared memory: one producer, one consumer, either of
//! which may be the untrusted side. Used by the link `wire` for frames, a ring a direction. Read
//! `ring` first: positions, caching and corruption work the same way.
//!
//! ```text
//! line 0, written by the producer:  position u32, room flag u32 (the consumer swaps it to 0)
//! line 1, written by the consumer:  position u32, sleep flag u32 (the producer swaps it to 0),
//!                                   core u32 (one more than the core it runs on; 0 = not told)
//! line 2...                         the records
//! ```
//!
//! A record is a header of 16 bytes (length, tag) and its bytes, on whole cache lines that lie
//! behind each other: one that would reach beyond the end of the ring is preceded by a gap up to
//! there, and starts at the beginning. Positions count lines, run freely and wrap. The tag is the
//! caller's.
//!
//! Indices are published in batches: [`RecordProducer::push`] only writes, and publishes by itself
//! once 32 KiB wait, so that the other side works meanwhile; [`RecordProducer::publish`] is the end
//! of a burst. The consumer does the same with what it has taken.
//!
//! No wake-up is lost in either direction by the argument of `sleep`: the consumer announces its
//! sleep, fences and looks for records, the producer publishes records, fences and looks for the
//! announcement; and likewise with room in the place of records for a producer that waits. The loom
//! models in `record_ring/loom_tests.rs` check it.
//!
//! A length or position that cannot be right makes this end corrupt: it gives nothing more, and the
//! caller drops the peer.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use crate::segment::{Segment, SharedLayout};
use crate::sleep::SleepFlag;
use crate::sync::Word;
use crate::sys;

/// Bytes of a cache line, the unit of positions.
pub const LINE: usize = 64;
/// Bytes of a ring before its first record.
pub const RECORD_RING_HEADER: usize = 2 * LINE;
/// Bytes of a record before its content.
pub const RECORD_HEADER: usize = 16;
/// Lines that wait unpublished at most, in both directions.
const BATCH_LINES: u32 = 512;
/// Length of a gap before the end of the ring, in place of a record's.
const GAP: u32 = u32::MAX;

/// A content is copied past the caches from this many bytes on, if another core takes it.
const PAST_CACHES_MIN: usize = 16 * 1024;

/// One more than the core that the caller runs on; 0 if it cannot be told.
fn core_number() -> u32 {
    sys::current_core().map_or(0, |core| core.wrapping_add(1))
}

/// Bytes of a ring of `lines` cache lines.
pub const fn record_ring_size(lines: u32) -> usize {
    RECORD_RING_HEADER + lines as usize * LINE
}

/// Lines that a record of `len` bytes takes.
const fn lines_of(len: u32) -> u32 {
    // Lengths are checked against the ring before.
    (RECORD_HEADER as u32 + len).div_ceil(LINE as u32)
}

/// The header of a record.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// Bytes of the content.
    pub len: u32,
    /// Whatever the producer says of it. Not checked here.
    pub tag: u64,
}

/// What became of a record.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Push {
    /// Written; seen by the consumer when published.
    Written,
    /// No room for now, or the ring is corrupt.
    Full,
    /// Longer than any record of this ring.
    TooLong,
}

/// What the ring logic needs of the memory that a ring lies in: shared memory in the product,
/// loom's in the models.
pub trait RecordMemory {
    /// The atomic words of that memory.
    type Word: Word;
    /// Lines of the ring; a power of two.
    fn lines(&self) -> u32;
    /// The producer's position.
    fn producer_position(&self) -> &Self::Word;
    /// Whether the producer sleeps until there is room.
    fn room_flag(&self) -> &Self::Word;
    /// The consumer's position.
    fn consumer_position(&self) -> &Self::Word;
    /// Whether the consumer sleeps until there is a record.
    fn sleep_flag(&self) -> &Self::Word;
    /// Where the consumer says on which core it runs, if it can.
    fn consumer_core(&self) -> Option<&Self::Word>;
    /// Writes a record from this line on, if wanted past the caches.
    fn write(&self, line: u32, header: Record, content: &[u8], past_caches: bool);
    /// Reads a header.
    fn read_header(&self, line: u32) -> Record;
    /// Copies the content of the record at this line.
    fn read_content(&self, line: u32, out: &mut [u8]);
}

#[repr(C, align(64))]
struct HeaderLayout {
    producer_position: AtomicU32,
    room: AtomicU32,
    _producer_rest: [AtomicU64; 7],
    consumer_position: AtomicU32,
    sleeping: AtomicU32,
    consumer_core: AtomicU32,
    _core_rest: AtomicU32,
    _consumer_rest: [AtomicU64; 6],
}

const _: () = {
    assert!(core::mem::size_of::<HeaderLayout>() == RECORD_RING_HEADER);
    assert!(core::mem::offset_of!(HeaderLayout, consumer_position) == LINE);
};

// SAFETY: `repr(C)`, atomics only.
unsafe impl SharedLayout for HeaderLayout {}

#[repr(C, align(64))]
struct LineLayout([AtomicU64; 8]);

// SAFETY: `repr(C)`, atomics only.
unsafe impl SharedLayout for LineLayout {}

/// A ring of records in a [`Segment`].
#[derive(Clone, Debug)]
pub struct SharedRecords {
    segment: Arc<Segment>,
    offset: usize,
    lines: u32,
}

impl SharedRecords {
    /// The ring of `lines` cache lines (a power of two, 2 at least) at `offset` (a multiple of 64);
    /// `None` if it does not lie wholly inside the segment.
    pub fn new(segment: Arc<Segment>, offset: usize, lines: u32) -> Option<SharedRecords> {
        let end = offset.checked_add(record_ring_size(lines))?;
        let fits = end <= segment.len() && offset.is_multiple_of(LINE);
        let shape = lines.is_power_of_two() && (2..=1 << 24).contains(&lines);
        (fits && shape).then_some(SharedRecords { segment, offset, lines })
    }

    #[inline]
    fn header(&self) -> &HeaderLayout {
        // `new` checked that the whole ring fits.
        self.segment.view(self.offset).expect("the ring lies inside its segment")
    }

    #[inline]
    fn offset_of(&self, line: u32) -> usize {
        self.offset + RECORD_RING_HEADER + (line & (self.lines - 1)) as usize * LINE
    }

    #[inline]
    fn line(&self, line: u32) -> &LineLayout {
        // `new` checked that the whole ring fits.
        self.segment.view(self.offset_of(line)).expect("the ring lies inside its segment")
    }
}

impl RecordMemory for SharedRecords {
    type Word = AtomicU32;

    #[inline]
    fn lines(&self) -> u32 {
        self.lines
    }
    #[inline]
    fn producer_position(&self) -> &AtomicU32 {
        &self.header().producer_position
    }
    #[inline]
    fn room_flag(&self) -> &AtomicU32 {
        &self.header().room
    }
    #[inline]
    fn consumer_position(&self) -> &AtomicU32 {
        &self.header().consumer_position
    }
    #[inline]
    fn sleep_flag(&self) -> &AtomicU32 {
        &self.header().sleeping
    }
    #[inline]
    fn consumer_core(&self) -> Option<&AtomicU32> {
        Some(&self.header().consumer_core)
    }
    #[inline]
    fn write(&self, line: u32, header: Record, content: &[u8], past_caches: bool) {
        let words = &self.line(line).0;
        words[0].store(u64::from(header.len), Ordering::Relaxed);
        words[1].store(header.tag, Ordering::Relaxed);
        // False only for content beyond the segment, which the ring logic rules out.
        let at = self.offset_of(line) + RECORD_HEADER;
        let _: bool = match past_caches {
            true => self.segment.copy_in_past_caches(at, content),
            false => self.segment.copy_in(at, content),
        };
    }
    #[inline]
    fn read_header(&self, line: u32) -> Record {
        let words = &self.line(line).0;
        let len = words[0].load(Ordering::Relaxed) as u32;
        Record { len, tag: words[1].load(Ordering::Relaxed) }
    }
    #[inline]
    fn read_content(&self, line: u32, out: &mut [u8]) {
        // As in `write`.
        let _: bool = self.segment.copy_out(self.offset_of(line) + RECORD_HEADER, out);
    }
}

/// The longest content, in bytes, that a ring of `lines` can carry wherever it starts: half a ring.
pub const fn record_max(lines: u32) -> usize {
    lines as usize / 2 * LINE - RECORD_HEADER
}

/// The sending end.
#[derive(Debug)]
pub struct RecordProducer<M: RecordMemory = SharedRecords> {
    memory: M,
    /// Where the next record goes.
    position: u32,
    /// Up to where the consumer may read.
    published: u32,
    /// Up to where the consumer has taken, as far as looked up.
    consumed: u32,
    corrupt: bool,
}

impl<M: RecordMemory> RecordProducer<M> {
    /// The sending end of a ring that nothing has been sent on (zeroed memory).
    pub fn new(memory: M) -> Self {
        RecordProducer { memory, position: 0, published: 0, consumed: 0, corrupt: false }
    }

    /// Writes a record behind the others; [`RecordProducer::publish`] ends the burst.
    #[inline]
    pub fn push(&mut self, tag: u64, content: &[u8]) -> Push {
        let lines = self.memory.lines();
        if content.len() > record_max(lines) {
            return Push::TooLong;
        }
        let header = Record { len: content.len() as u32, tag };
        let wanted = lines_of(header.len);
        let to_end = lines - (self.position & (lines - 1));
        let gap = if wanted > to_end { to_end } else { 0 };
        if self.free() < gap + wanted && !self.refresh_for(gap + wanted) {
            return Push::Full;
        }
        if gap > 0 {
            self.memory.write(self.position, Record { len: GAP, tag: 0 }, &[], false);
            self.position = self.position.wrapping_add(gap);
        }
        let past_caches = content.len() >= PAST_CACHES_MIN && self.is_read_elsewhere();
        self.memory.write(self.position, header, content, past_caches);
        self.position = self.position.wrapping_add(wanted);
        if self.position.wrapping_sub(self.published) >= BATCH_LINES {
            self.store_position();
        }
        Push::Written
    }

    /// Whether the consumer runs on another core, where the lines of the ring are then.
    fn is_read_elsewhere(&self) -> bool {
        let reader = self.memory.consumer_core().map_or(0, |core| core.load(Ordering::Relaxed));
        reader != 0 && reader != core_number()
    }

    /// Lets the consumer see everything written. True: it sleeps and must be rung.
    #[inline]
    #[must_use]
    pub fn publish(&mut self) -> bool {
        self.store_position();
        SleepFlag::new(self.memory.sleep_flag()).must_wake()
    }

    #[inline]
    fn store_position(&mut self) {
        self.published = self.position;
        self.memory.producer_position().store(self.position, Ordering::Release);
    }

    #[inline]
    fn free(&self) -> u32 {
        self.memory.lines() - self.position.wrapping_sub(self.consumed)
    }

    /// Looks how far the consumer is; whether `wanted` lines are free now.
    fn refresh_for(&mut self, wanted: u32) -> bool {
        let consumed = self.memory.consumer_position().load(Ordering::Acquire);
        // The consumer may only move forwards, and not past what it was shown.
        if consumed.wrapping_sub(self.consumed) > self.published.wrapping_sub(self.consumed) {
            self.corrupt = true;
        } else {
            self.consumed = consumed;
        }
        !self.corrupt && self.free() >= wanted
    }

    /// Announces that this end sleeps until there is room for a record of `len` bytes. False: there
    /// is already, do not sleep.
    #[must_use]
    pub fn prepare_sleep(&mut self, len: usize) -> bool {
        SleepFlag::new(self.memory.room_flag()).prepare_sleep();
        // Twice the record: wherever the ring ends, it fits.
        let wanted = lines_of(len.min(record_max(self.memory.lines())) as u32) * 2 - 1;
        !self.refresh_for(wanted) && !self.corrupt
    }

    /// Takes the announcement back; also after a sleep.
    pub fn awake(&mut self) {
        SleepFlag::new(self.memory.room_flag()).awake();
    }

    /// The consumer has written an impossible position.
    pub fn is_corrupt(&self) -> bool {
        self.corrupt
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct RecordConsumer<M: RecordMemory = SharedRecords> {
    memory: M,
    /// The next record.
    position: u32,
    /// What the producer can see.
    released: u32,
    /// Up to where it was looked whether the producer waits.
    looked: u32,
    /// Up to where records are known to be.
    produced: u32,
    corrupt: bool,
}

impl<M: RecordMemory> RecordConsumer<M> {
    /// The receiving end of a ring that nothing has been taken from (zeroed memory).
    pub fn new(memory: M) -> Self {
        RecordConsumer { memory, position: 0, released: 0, looked: 0, produced: 0, corrupt: false }
    }

    /// The next record, its length checked; `None`: nothing is there, or the ring is corrupt. Take
    /// its content with [`RecordConsumer::take`].
    #[inline]
    pub fn front(&mut self) -> Option<Record> {
        // A gap, and the record behind it.
        for _ in 0..2 {
            if self.is_empty() {
                return None;
            }
            let header = self.memory.read_header(self.position);
            let lines = self.memory.lines();
            let to_end = lines - (self.position & (lines - 1));
            let known = self.produced.wrapping_sub(self.position);
            if header.len == GAP && to_end <= known {
                self.position = self.position.wrapping_add(to_end);
                continue;
            }
            let fits = header.len as usize <= record_max(lines)
                && lines_of(header.len) <= known.min(to_end);
            if !fits {
                break;
            }
            return Some(header);
        }
        self.corrupt = true;
        None
    }

    /// Copies the start of the record that [`RecordConsumer::front`] gave, as much as `out` holds,
    /// and goes on to the next one.
    #[inline]
    pub fn take(&mut self, record: Record, out: &mut [u8]) {
        let len = out.len().min(record.len as usize);
        self.memory.read_content(self.position, &mut out[..len]);
        self.position = self.position.wrapping_add(lines_of(record.len));
        if self.position.wrapping_sub(self.released) >= BATCH_LINES {
            self.store_position();
        }
    }

    /// Gives the room of everything taken back. True: the producer waits for it and must be rung.
    #[inline]
    #[must_use]
    pub fn release(&mut self) -> bool {
        if self.position == self.looked {
            return false;
        }
        self.looked = self.position;
        if let Some(core) = self.memory.consumer_core() {
            core.store(core_number(), Ordering::Relaxed);
        }
        self.store_position();
        SleepFlag::new(self.memory.room_flag()).must_wake()
    }

    #[inline]
    fn store_position(&mut self) {
        self.released = self.position;
        self.memory.consumer_position().store(self.position, Ordering::Release);
    }

    /// Whether there is nothing to take. Costs one load of a shared word.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        if self.produced == self.position && !self.corrupt {
            let produced = self.memory.producer_position().load(Ordering::Acquire);
            if produced.wrapping_sub(self.position) > self.memory.lines() {
                self.corrupt = true;
            } else {
                self.produced = produced;
            }
        }
        self.produced == self.position || self.corrupt
    }

    /// Announces that this end sleeps until there is a record. False: there is one (or the ring is
    /// corrupt), do not sleep.
    #[must_use]
    pub fn prepare_sleep(&mut self) -> bool {
        SleepFlag::new(self.memory.sleep_flag()).prepare_sleep();
        self.is_empty() && !self.corrupt
    }

    /// Takes the announcement back; also after a sleep.
    pub fn awake(&mut self) {
        SleepFlag::new(self.memory.sleep_flag()).awake();
    }

    /// The producer has written an impossible position or length.
    pub fn is_corrupt(&self) -> bool {
        self.corrupt
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
