//! Stream memory of one trust domain: segments of 64 MiB, handed out in chunks of 64 KiB. Owned by
//! the service, which keeps every list privately; applications only map the segments. Read `stream`
//! for how chunks are used.
//!
//! The chunk freed last is handed out first, because it is hot. Chunks at the bottom of the stack
//! that nobody has needed since the last [`Arena::trim`] give their memory back to the system.

use std::sync::Arc;

use crate::limits::{ARENA_CHUNKS, ARENA_SIZE, ARENAS_MAX, CHUNK_SIZE, chunk_arena, chunk_offset};
use crate::segment::Segment;
use crate::sys::Result;

/// All stream memory of one trust domain, with its allocator.
#[derive(Debug)]
pub struct Arena {
    segments: Vec<Arc<Segment>>,
    /// One bit a chunk: handed out.
    taken: Vec<u64>,
    free: Vec<u32>,
    /// Entries at the bottom of `free` whose memory has been given back.
    returned: usize,
    /// Least length of `free` since the last trim.
    low_water: usize,
    /// Chunks handed out for the first time so far.
    started: u32,
    used: u32,
    quota: u32,
}

impl Arena {
    /// No memory yet; at most `quota_bytes` (rounded down to chunks) will be handed out at a time.
    pub fn new(quota_bytes: u64) -> Arena {
        let most = u64::from(ARENAS_MAX) * u64::from(ARENA_CHUNKS);
        Arena {
            segments: Vec::new(),
            taken: Vec::new(),
            free: Vec::new(),
            returned: 0,
            low_water: 0,
            started: 0,
            used: 0,
            quota: (quota_bytes / CHUNK_SIZE as u64).min(most) as u32,
        }
    }

    /// Takes a chunk; `None` when the quota is used up or the system gives no more memory.
    pub fn allocate(&mut self) -> Option<u32> {
        if self.used >= self.quota {
            return None;
        }
        let chunk = match self.free.pop() {
            Some(chunk) => chunk,
            None => self.start_chunk()?,
        };
        self.returned = self.returned.min(self.free.len());
        self.low_water = self.low_water.min(self.free.len());
        self.used += 1;
        let (word, bit) = Arena::bit(chunk);
        self.taken[word] |= bit;
        Some(chunk)
    }

    fn start_chunk(&mut self) -> Option<u32> {
        let chunk = self.started;
        if chunk_arena(chunk) as usize == self.segments.len() {
            self.add_segment()?;
        }
        self.started += 1;
        Some(chunk)
    }

    fn add_segment(&mut self) -> Option<()> {
        let segment = Segment::create("haypile-arena", ARENA_SIZE).ok()?;
        self.segments.push(Arc::new(segment));
        self.taken.resize(self.taken.len() + ARENA_CHUNKS as usize / 64, 0);
        Some(())
    }

    fn bit(chunk: u32) -> (usize, u64) {
        ((chunk / 64) as usize, 1 << (chunk % 64))
    }

    /// Gives a chunk back.
    ///
    /// # Panics
    /// If it is not handed out: the caller's own books are wrong.
    pub fn free(&mut self, chunk: u32) {
        let (word, bit) = Arena::bit(chunk);
        assert!(self.taken[word] & bit != 0, "chunk {chunk} freed twice");
        self.taken[word] &= !bit;
        self.used -= 1;
        self.free.push(chunk);
    }

    /// Gives back to the system the memory of up to `most` chunks that have been free ever since
    /// the last call. Call it now and then. Returns how many.
    pub fn trim(&mut self, most: usize) -> usize {
        let end = self.low_water.min(self.returned.saturating_add(most));
        let mut done = 0;
        for place in self.returned..end {
            let chunk = self.free[place];
            let segment = &self.segments[chunk_arena(chunk) as usize];
            // A failure costs memory, nothing else; it counts as done, not to be tried for ever.
            let _: Result<()> = segment.punch_hole(chunk_offset(chunk), CHUNK_SIZE);
            done += 1;
        }
        self.returned = self.returned.max(end);
        self.low_water = self.free.len();
        done
    }

    /// The segment of an arena number, to send its descriptor to an application.
    pub fn segment(&self, index: u32) -> Option<&Arc<Segment>> {
        self.segments.get(index as usize)
    }

    /// As [`Arena::segment`]; the one that will be needed next is made now, if the quota reaches so far: an application
    /// may have no other time to map it.
    pub fn segment_ahead(&mut self, index: u32) -> Option<&Arc<Segment>> {
        let is_next = index as usize == self.segments.len();
        if is_next && u64::from(index) * u64::from(ARENA_CHUNKS) < u64::from(self.quota) {
            self.add_segment()?;
        }
        self.segment(index)
    }

    /// Copies `data` into a chunk, if wanted past the caches ([`Segment::copy_in_past_caches`]).
    /// False if it does not fit inside the chunk.
    #[inline]
    pub(crate) fn write(&self, chunk: u32, offset: usize, data: &[u8], past_caches: bool) -> bool {
        if offset + data.len() > CHUNK_SIZE {
            return false;
        }
        let Some(segment) = self.segment(chunk_arena(chunk)) else { return false };
        let at = chunk_offset(chunk) + offset;
        match past_caches {
            true => segment.copy_in_past_caches(at, data),
            false => segment.copy_in(at, data),
        }
    }

    /// Copies from a chunk. False if it does not fit inside the chunk.
    #[inline]
    pub(crate) fn read(&self, chunk: u32, offset: usize, out: &mut [u8]) -> bool {
        offset + out.len() <= CHUNK_SIZE
            && self
                .segment(chunk_arena(chunk))
                .is_some_and(|segment| segment.copy_out(chunk_offset(chunk) + offset, out))
    }

    /// Arena segments made so far.
    pub fn segments(&self) -> u32 {
        self.segments.len() as u32
    }

    /// Chunks handed out.
    pub fn used_chunks(&self) -> u32 {
        self.used
    }

    /// Chunks that may be handed out at a time.
    pub fn quota_chunks(&self) -> u32 {
        self.quota
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
