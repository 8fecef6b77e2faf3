//! The segments of our trust domain that this process has mapped: tables of socket records and
//! arenas of stream memory. Mapped on demand, kept for the life of the process and across `fork`,
//! which stays in the same domain.
//!
//! Used by `entry.rs` to open records and by `stream_io.rs` as the resolver of chunks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use haypile_shm::limits::{self, slot_table};
use haypile_shm::messages::{ControlReply, ControlRequest};
use haypile_shm::{AppStream, Chunks, EpochReader, Errno, Segment, StreamError};

use crate::attach::{self, Attachment};
use crate::entry::FullName;
use crate::errno::{SERVICE_GONE, of_stream};
use crate::following::is_moved;

/// Tables a process can map: 8 million sockets.
const TABLES: usize = 64;
/// Tables, and arenas, that a process maps before it needs them: 256 MiB of stream memory.
const AHEAD: u32 = 4;
/// Arenas a process can map: 256 GiB of stream memory.
const ARENAS: usize = 4096;

/// The segments of one life of the service. What a record of an earlier life needs stays mapped until
/// the last such record goes.
#[derive(Debug)]
pub(crate) struct Memory {
    /// The server that made them, and its epoch.
    life: u64,
    /// The present epoch.
    now: EpochReader,
    /// There will be no other server, although the epoch may not say so.
    over: AtomicBool,
    tables: Box<[OnceLock<Arc<Segment>>]>,
    arenas: Box<[OnceLock<Arc<Segment>>]>,
}

/// A server and its epoch in one word, so that one comparison tells whether a name means anything.
pub(crate) fn life(server: u16, epoch: u32) -> u64 {
    u64::from(server) << 32 | u64::from(epoch)
}

/// The server of such a word.
#[inline]
pub(crate) fn server_of(life: u64) -> u16 {
    (life >> 32) as u16
}

fn places(count: usize) -> Box<[OnceLock<Arc<Segment>>]> {
    (0..count).map(|_| OnceLock::new()).collect()
}

impl Memory {
    /// The memory of the server of `epoch`, with table 0, which comes with the welcome.
    pub(crate) fn new(server: u16, epoch: u32, now: EpochReader, table: Segment) -> Memory {
        let memory = Memory {
            life: life(server, epoch),
            now,
            over: AtomicBool::new(false),
            tables: places(TABLES),
            arenas: places(ARENAS),
        };
        let _: Result<(), Arc<Segment>> = memory.tables[0].set(Arc::new(table));
        memory
    }

    /// The epoch of the server.
    pub(crate) fn epoch(&self) -> u32 {
        self.life as u32
    }

    /// The server.
    pub(crate) fn server(&self) -> u16 {
        server_of(self.life)
    }

    /// Which server, and which life of it.
    #[inline]
    pub(crate) fn life(&self) -> u64 {
        self.life
    }

    /// Where the present epoch stands.
    pub(crate) fn now(&self) -> &EpochReader {
        &self.now
    }

    /// Whether the server that made it is gone.
    #[inline]
    pub(crate) fn is_past(&self) -> bool {
        self.now.get() != self.epoch() || self.is_over()
    }

    /// Whether there will be no other server.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// There will be no other server.
    pub(crate) fn set_over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// The table with a number, mapped now if it was not.
    fn table(&self, attachment: &Attachment, index: u32) -> Result<Arc<Segment>, Errno> {
        let place = self.tables.get(index as usize).ok_or(Errno::ENOMEM)?;
        if let Some(segment) = place.get() {
            return Ok(Arc::clone(segment));
        }
        let request = ControlRequest::MapTable { index };
        let (reply, [fd, ..]) = attachment.ask(
            &request,
            &[],
            |reply| matches!(reply, ControlReply::TableMapped { index: of, .. } if *of == index),
        )?;
        if let ControlReply::TableMapped { errno, .. } = reply
            && errno != 0
        {
            return Err(Errno(errno));
        }
        let segment = Segment::from_fd(fd.ok_or(Errno::EPROTO)?, limits::TABLE_SIZE, false)?;
        let _: Result<(), Arc<Segment>> = place.set(Arc::new(segment));
        place.get().cloned().ok_or(Errno::ENOMEM)
    }

    /// Maps what the bytes of a connection lie in, or will lie in before anything else does, so that a
    /// child that is about to be made finds it mapped.
    pub(crate) fn map_for_child(&self, stream: &AppStream) {
        for index in stream.arenas().chain([0]) {
            let _: Option<Arc<Segment>> = self.arena(index);
        }
    }

    /// Maps what connections may lie in that are to come, for a time when nothing can be mapped.
    pub(crate) fn map_ahead(&self, attachment: &Attachment) {
        let tables = (0..AHEAD).map_while(|index| self.table(attachment, index).ok());
        let arenas = (0..AHEAD).map_while(|index| self.arena(index));
        let _: usize = tables.count() + arenas.count();
    }

    #[cold]
    fn map_arena(&self, place: &OnceLock<Arc<Segment>>, index: u32) -> Result<Arc<Segment>, Errno> {
        let attachment = attach::of(self.server())?;
        if attachment.life() != self.life {
            // Nobody has it any more.
            return Err(Errno::ENOENT);
        }
        let request = ControlRequest::MapArena { index };
        let (reply, [fd, ..]) = attachment.ask(
            &request,
            &[],
            |reply| matches!(reply, ControlReply::ArenaMapped { index: of, .. } if *of == index),
        )?;
        if let ControlReply::ArenaMapped { errno, .. } = reply
            && errno != 0
        {
            return Err(Errno(errno));
        }
        let segment = Segment::from_fd(fd.ok_or(Errno::EPROTO)?, limits::ARENA_SIZE, false)?;
        let _: Result<(), Arc<Segment>> = place.set(Arc::new(segment));
        place.get().cloned().ok_or(Errno::ENOMEM)
    }
}

/// The resolver of chunks: maps an arena when it is first met.
impl Chunks for Memory {
    fn arena(&self, index: u32) -> Option<Arc<Segment>> {
        let place = self.arenas.get(index as usize)?;
        match place.get() {
            Some(segment) => Some(Arc::clone(segment)),
            None => self.map_arena(place, index).ok(),
        }
    }
}

/// Opens the record of a socket.
pub(crate) fn open_stream(
    attachment: &Attachment,
    slot: u32,
    generation: u32,
) -> Result<Record, Errno> {
    let memory = Arc::clone(attachment.memory());
    let table = memory.table(attachment, slot_table(slot))?;
    let stream = AppStream::open(table, slot, generation, attachment.process_id());
    Ok(Record { stream: stream.ok_or(Errno::EPROTO)?, memory })
}

/// A socket's record, with the memory that its bytes are in.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) stream: AppStream,
    pub(crate) memory: Arc<Memory>,
}

impl Record {
    /// Which record it is.
    pub(crate) fn name(&self) -> FullName {
        let (slot, generation) = (self.slot(), self.generation());
        FullName { life: self.memory.life(), slot, generation }
    }

    /// Why a call on the stream did nothing. Memory that cannot be mapped any more went with its
    /// server.
    pub(crate) fn errno_of(&self, error: StreamError) -> Errno {
        match error {
            StreamError::Unmapped(_) if self.is_dead() || self.is_cut_off() => SERVICE_GONE,
            error => of_stream(error),
        }
    }

    /// Whether the server that kept it answers no more, which is seen a moment before it is said.
    fn is_cut_off(&self) -> bool {
        let gone = attach::existing(self.memory.server()).is_none_or(|attachment| {
            attachment.life() != self.memory.life() || attachment.is_gone()
        });
        if gone {
            self.stream.fail(SERVICE_GONE.0);
        }
        gone
    }

    /// Whether the server that kept it is gone; its connection has then failed, and says so. One that has
    /// moved to another server before lives on.
    pub(crate) fn is_dead(&self) -> bool {
        let dead = self.memory.is_past();
        if dead {
            self.stream.fail(SERVICE_GONE.0);
        }
        dead && !is_moved(self.stream.status())
    }
}

impl std::ops::Deref for Record {
    type Target = AppStream;
    fn deref(&self) -> &AppStream {
        &self.stream
    }
}
