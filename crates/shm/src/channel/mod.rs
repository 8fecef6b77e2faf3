//! What one process and the service share besides sockets: a ring of requests, cells for their
//! replies, a ring of offers, and a ring of events for each watcher. One segment, made by the
//! service at attach. `service` and `application` are the two ends; `sender` is how the threads of
//! a process share the request ring.
//!
//! ```text
//! 0                requests ring   application -> service
//! OFFERS_AT        offers ring     service -> application
//! OFFER_WORDS_AT   futex words of blocked accepts
//! REPLIES_AT       reply cells     64 bytes each: state u32 (futex), 4 unused, 56 of payload
//! WATCHERS_AT      watcher rings   service -> application
//! ```

mod application;
mod sender;
mod service;

use core::sync::atomic::{AtomicU32, AtomicU64};

pub use application::{AppChannel, CallError, ReplyCell};
pub use sender::{DEFERRED_MAX, RequestSender, SendError, Sent};
pub use service::{ServiceChannel, ServiceWatcher};

use crate::limits::{OFFER_RING, REPLY_CELLS, REQUEST_RING, WATCHER_RING, WATCHERS};
use crate::ring::ring_size;
use crate::segment::SharedLayout;

/// Where the requests ring starts.
pub const REQUESTS_AT: usize = 0;
/// Where the offers ring starts.
pub const OFFERS_AT: usize = REQUESTS_AT + ring_size(REQUEST_RING);
/// Where the futex words of blocked accepts are.
pub const OFFER_WORDS_AT: usize = OFFERS_AT + ring_size(OFFER_RING);
/// Where the reply cells start.
pub const REPLIES_AT: usize = OFFER_WORDS_AT + 64;
/// Bytes of a reply cell.
pub const REPLY_BYTES: usize = 64;
/// Where the watcher rings start.
pub const WATCHERS_AT: usize = REPLIES_AT + REPLY_CELLS * REPLY_BYTES;
/// Bytes of the channel segment.
pub const CHANNEL_SIZE: usize =
    (WATCHERS_AT + WATCHERS * ring_size(WATCHER_RING)).next_multiple_of(4096);

const _: () = {
    assert!(OFFERS_AT.is_multiple_of(64) && OFFER_WORDS_AT.is_multiple_of(64));
    assert!(REPLIES_AT.is_multiple_of(64) && WATCHERS_AT.is_multiple_of(64));
    assert!(core::mem::size_of::<ReplyLayout>() == REPLY_BYTES);
};

/// Where a watcher's ring starts.
const fn watcher_at(watcher: u32) -> usize {
    WATCHERS_AT + watcher as usize * ring_size(WATCHER_RING)
}

/// Futex words of blocked accepts; see `handshake::prepare_wait`.
#[repr(C, align(64))]
struct OfferWords {
    sequence: AtomicU32,
    waiters: AtomicU32,
}

// SAFETY: `repr(C)`, atomics only.
unsafe impl SharedLayout for OfferWords {}

/// A reply cell.
#[repr(C, align(64))]
struct ReplyLayout {
    state: AtomicU32,
    _unused: AtomicU32,
    payload: [AtomicU64; 7],
}

// SAFETY: `repr(C)`, atomics only.
unsafe impl SharedLayout for ReplyLayout {}

/// Reply cell states.
mod reply_state {
    /// Nobody's.
    pub const FREE: u32 = 0;
    /// A request names it.
    pub const PENDING: u32 = 1;
    /// As pending, and the caller sleeps on it.
    pub const SLEEPING: u32 = 2;
    /// The payload is there.
    pub const DONE: u32 = 3;
}

#[cfg(all(test, not(loom)))]
mod tests;
