//! What Haypile's processes share: memory segments, message rings, byte streams, doorbells, and the
//! layout of every message between an application and the service. Knows no network protocol.
//!
//! Read in this order: `segment` (memory), `ring` and `sleep` (messages), `stream` (the record and
//! the bytes of one socket), `channel` (what one process and the service share), `messages`.
//!
//! Trust: the service does not trust applications. Whatever lies in shared memory is read once,
//! copied, and checked on the copy. Shared memory is reached only by atomics and by raw copies,
//! never by references to plain data. Applications trust the service, but never panic over it.

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("haypile-shm makes raw system calls and knows only x86_64 and aarch64");
#[cfg(not(target_endian = "little"))]
compile_error!("the shared layouts are little-endian");

pub mod arena;
pub mod channel;
pub mod control;
pub mod datagram;
pub mod dialogue;
pub mod doorbell;
pub mod epoch;
pub mod handshake;
pub mod ledger;
pub mod limits;
pub mod messages;
pub mod peer;
pub mod pool;
pub mod record_ring;
pub mod ring;
pub mod segment;
pub mod sleep;
pub mod spin;
pub mod status;
pub mod stream;
pub mod sync;
pub mod sys;
pub mod table;

pub use arena::Arena;
pub use channel::{AppChannel, ReplyCell, RequestSender, SendError, Sent, ServiceChannel};
pub use datagram::DatagramHeader;
pub use dialogue::Dialogue;
pub use doorbell::Doorbell;
pub use epoch::{EpochReader, EpochWriter};
pub use ledger::{Ledger, LedgerFlow, LedgerSegment};
pub use limits::{
    ARENA_SIZE, BLOCK_SIZE, BUILD_VERSION, CHUNK_SIZE, FIFO_SLOTS, NO_CHUNK, NO_REPLY, NO_SLOT,
    PROTOCOL_VERSION, TABLE_SIZE, WATCHERS,
};
pub use messages::Message;
pub use pool::{Frame, FramePool};
pub use record_ring::{RecordConsumer, RecordProducer, SharedRecords};
pub use ring::{Consumer, Producer};
pub use segment::Segment;
pub use status::{AppStatus, ServiceStatus};
pub use stream::{AppStream, Chunks, Hostile, ServiceStream, StreamError};
pub use sys::{Errno, Fd};
pub use table::{Place, SocketTable};
