//! The segments of our trust domain that this process has mapped: tables of socket records and
//! arenas of stream memory. Mapped on demand, kept for the life of the process and across `fork`,
//! which stays in the same domain.
//!
//! Used by `entry.rs` to open records and by `stream_io.rs` as the resolver of chunks.

use std::sync::{Arc, OnceLock};

use haypile_shm::limits::{self, slot_table};
use haypile_shm::messages::{ControlReply, ControlRequest};
use haypile_shm::{AppStream, Chunks, Errno, Segment};

use crate::attach::{self, Attachment};

/// Tables a process can map: 8 million sockets.
const TABLES: usize = 64;
/// Arenas a process can map: 256 GiB of stream memory.
const ARENAS: usize = 4096;

static TABLE: [OnceLock<Arc<Segment>>; TABLES] = [const { OnceLock::new() }; TABLES];
static ARENA: [OnceLock<Arc<Segment>>; ARENAS] = [const { OnceLock::new() }; ARENAS];

/// Keeps table 0, which comes with the welcome. A child of the domain has it already.
pub(crate) fn keep_first_table(segment: Segment) {
    let _: Result<(), Arc<Segment>> = TABLE[0].set(Arc::new(segment));
}

/// The table with a number, mapped now if it was not.
fn table(attachment: &Attachment, index: u32) -> Result<Arc<Segment>, Errno> {
    let place = TABLE.get(index as usize).ok_or(Errno::ENOMEM)?;
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

/// Opens the record of a socket.
pub(crate) fn open_stream(
    attachment: &Attachment,
    slot: u32,
    generation: u32,
) -> Result<AppStream, Errno> {
    let table = table(attachment, slot_table(slot))?;
    // The caller's attachment may have been renewed meanwhile.
    let process_id = attach::current()?.process_id();
    AppStream::open(table, slot, generation, process_id).ok_or(Errno::EPROTO)
}

/// The resolver of chunks: maps an arena when it is first met.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Arenas;

impl Chunks for Arenas {
    fn arena(&self, index: u32) -> Option<Arc<Segment>> {
        let place = ARENA.get(index as usize)?;
        match place.get() {
            Some(segment) => Some(Arc::clone(segment)),
            None => map_arena(place, index).ok(),
        }
    }
}

#[cold]
fn map_arena(place: &OnceLock<Arc<Segment>>, index: u32) -> Result<Arc<Segment>, Errno> {
    let attachment = attach::current()?;
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
