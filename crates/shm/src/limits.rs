//! Every size and count of the shared layouts, with the relations between them checked at compile
//! time. Changing any of them changes the layout: raise `PROTOCOL_VERSION` with it.

/// Version of all shared layouts and messages; both sides compare it at attach.
pub const PROTOCOL_VERSION: u32 = 7;

/// Version of the program that this was built for: 16 bits each of major, minor and patch, from the
/// highest down. Compared at attach as well.
pub const BUILD_VERSION: u64 = number(env!("CARGO_PKG_VERSION_MAJOR")) << 32
    | number(env!("CARGO_PKG_VERSION_MINOR")) << 16
    | number(env!("CARGO_PKG_VERSION_PATCH"));

/// A decimal number.
const fn number(text: &str) -> u64 {
    let (bytes, mut at, mut value) = (text.as_bytes(), 0, 0);
    while at < bytes.len() {
        value = value * 10 + (bytes[at] - b'0') as u64;
        at += 1;
    }
    value
}

/// A build version in words.
pub fn build_text(version: u64) -> String {
    format!("{}.{}.{}", version >> 32, version >> 16 & 0xffff, version & 0xffff)
}

/// Bytes of one chunk of stream memory.
pub const CHUNK_SIZE: usize = 64 * 1024;
/// Chunks that one direction of a stream can hold at a time.
pub const FIFO_SLOTS: usize = 16;
/// Bytes that one direction of a stream can hold when it starts at a chunk boundary.
pub const FIFO_BYTES: usize = CHUNK_SIZE * FIFO_SLOTS;
/// Bytes that one direction of a stream can always hold, wherever in a chunk it starts. Receive
/// windows and send buffers must not be larger.
pub const FIFO_USABLE: usize = CHUNK_SIZE * (FIFO_SLOTS - 1);

/// Bytes of one arena segment.
pub const ARENA_SIZE: usize = 64 * 1024 * 1024;
/// Chunks in one arena segment.
pub const ARENA_CHUNKS: u32 = (ARENA_SIZE / CHUNK_SIZE) as u32;
/// Arenas a trust domain may have at most (the chunk number has 22 bits for the arena).
pub const ARENAS_MAX: u32 = u32::MAX / ARENA_CHUNKS;
/// No chunk.
pub const NO_CHUNK: u32 = u32::MAX;

/// Bytes of the shared record of one socket.
pub const BLOCK_SIZE: usize = 512;
/// Bytes of one table of socket records.
pub const TABLE_SIZE: usize = 64 * 1024 * 1024;
/// Records in one table.
pub const TABLE_BLOCKS: u32 = (TABLE_SIZE / BLOCK_SIZE) as u32;
/// Tables a trust domain may have at most.
pub const TABLES_MAX: u32 = u32::MAX / TABLE_BLOCKS;
/// No slot.
pub const NO_SLOT: u32 = u32::MAX;

/// Watchers (epoll objects, poll sets) one process may have.
pub const WATCHERS: usize = 128;
/// Messages in the ring of requests, application to service.
pub const REQUEST_RING: u32 = 512;
/// Messages in the ring of one watcher, service to application.
pub const WATCHER_RING: u32 = 256;
/// Messages in the ring of offers, service to application.
pub const OFFER_RING: u32 = 256;
/// Reply cells of one process.
pub const REPLY_CELLS: usize = 64;
/// No reply wanted.
pub const NO_REPLY: u32 = u32::MAX;

/// Set in an owner word while somebody sleeps until it is free.
pub const OWNER_CONTENDED: u32 = 1 << 31;
/// Owner word value of the service itself.
pub const SERVICE_OWNER: u32 = u32::MAX;
/// Greatest process number the service may give out (they start at 1).
pub const PROCESS_ID_MAX: u32 = OWNER_CONTENDED - 2;

const _: () = {
    assert!(CHUNK_SIZE.is_power_of_two() && FIFO_SLOTS.is_power_of_two());
    assert!(ARENA_CHUNKS == 1 << 10 && TABLE_BLOCKS == 1 << 17);
    assert!(REQUEST_RING.is_power_of_two() && WATCHER_RING.is_power_of_two());
    assert!(OFFER_RING.is_power_of_two());
    assert!(ARENAS_MAX as u64 * (ARENA_CHUNKS as u64) < NO_CHUNK as u64);
    assert!(TABLES_MAX as u64 * (TABLE_BLOCKS as u64) < NO_SLOT as u64);
    assert!(PROCESS_ID_MAX | OWNER_CONTENDED != SERVICE_OWNER);
};

/// The arena that holds a chunk.
pub const fn chunk_arena(chunk: u32) -> u32 {
    chunk / ARENA_CHUNKS
}

/// Where in its arena a chunk starts, in bytes.
pub const fn chunk_offset(chunk: u32) -> usize {
    (chunk % ARENA_CHUNKS) as usize * CHUNK_SIZE
}

/// The table that holds a slot.
pub const fn slot_table(slot: u32) -> u32 {
    slot / TABLE_BLOCKS
}

/// Where in its table the record of a slot starts, in bytes.
pub const fn slot_offset(slot: u32) -> usize {
    (slot % TABLE_BLOCKS) as usize * BLOCK_SIZE
}
