//! A process's end of its channel.

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::sync::Arc;

use super::sender::{RequestSender, SendError};
use super::{
    CHANNEL_SIZE, OFFER_WORDS_AT, OFFERS_AT, OfferWords, REPLIES_AT, REPLY_BYTES, REQUESTS_AT,
    ReplyLayout, reply_state, watcher_at,
};
use crate::doorbell::Doorbell;
use crate::handshake::{self, WaitTicket};
use crate::limits::{OFFER_RING, REPLY_CELLS, REQUEST_RING, WATCHER_RING, WATCHERS};
use crate::messages::{ReplyPayload, Request};
use crate::ring::{Consumer, Producer, SharedRing};
use crate::segment::Segment;
use crate::status::AppStatus;
use crate::sys::{self, Fd, Result, Waited};

/// How long one sleep for a reply lasts before the caller's `alive` is asked.
const REPLY_SLICE: Duration = Duration::from_millis(50);

/// A process's end of its channel.
#[derive(Debug)]
pub struct AppChannel {
    segment: Arc<Segment>,
    sender: RequestSender,
    next_cell: AtomicU32,
}

/// Why a call got no reply.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The request could not be sent.
    Send(SendError),
    /// All reply cells are in use; try again.
    NoCell,
    /// The service is gone.
    Gone,
}

impl core::fmt::Display for CallError {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            CallError::Send(error) => error.fmt(out),
            CallError::NoCell => out.write_str("too many calls at a time"),
            CallError::Gone => out.write_str("the service is gone"),
        }
    }
}

impl core::error::Error for CallError {}

impl AppChannel {
    /// Maps a channel from the descriptors received at attach: the channel, the status segment
    /// (mapped by [`AppStatus::open`]) and the wake socket.
    pub fn open(channel: impl Into<Fd>, status: AppStatus, wake: Doorbell) -> Result<AppChannel> {
        let segment = Arc::new(Segment::from_fd(channel, CHANNEL_SIZE, false)?);
        let requests = ring(&segment, REQUESTS_AT, REQUEST_RING);
        let sender = RequestSender::new(Producer::new(requests), status, wake);
        Ok(AppChannel { segment, sender, next_cell: AtomicU32::new(0) })
    }

    /// The sending end of the request ring.
    pub fn sender(&self) -> &RequestSender {
        &self.sender
    }

    /// The receiving end of the offers ring. Make it once.
    pub fn offers(&self) -> Consumer {
        Consumer::resume(ring(&self.segment, OFFERS_AT, OFFER_RING))
    }

    /// The receiving end of a watcher's ring, after the service has said that it is made. Make it
    /// once for each watcher. `None` for a number out of range.
    pub fn watcher(&self, watcher: u32) -> Option<Consumer> {
        let known = (watcher as usize) < WATCHERS;
        known.then(|| Consumer::resume(ring(&self.segment, watcher_at(watcher), WATCHER_RING)))
    }

    /// Takes a reply cell; `None` if all are in use.
    pub fn allocate_reply(&self) -> Option<ReplyCell> {
        let start = self.next_cell.fetch_add(1, Ordering::Relaxed);
        for step in 0..REPLY_CELLS as u32 {
            let index = start.wrapping_add(step) % REPLY_CELLS as u32;
            let cell = ReplyCell { segment: Arc::clone(&self.segment), index };
            let (free, pending) = (reply_state::FREE, reply_state::PENDING);
            let state = &cell.layout().state;
            let taken = state.compare_exchange(free, pending, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_ok() {
                return Some(cell);
            }
        }
        None
    }

    /// Sends a request and waits for its reply, spinning for `spin_us` first. `alive` is asked now
    /// and then whether the service still lives. Signals do not end the wait.
    pub fn call(
        &self,
        request: Request,
        spin_us: u32,
        alive: impl FnMut() -> bool,
    ) -> core::result::Result<ReplyPayload, CallError> {
        let cell = self.allocate_reply().ok_or(CallError::NoCell)?;
        let message = request.with_reply(cell.index()).encode();
        if let Err(error) = self.sender.send_now(&message) {
            cell.cancel();
            return Err(CallError::Send(error));
        }
        cell.wait(spin_us, alive).ok_or(CallError::Gone)
    }

    /// Announces a blocking accept. Look for offers once more after this call, then
    /// [`AppChannel::wait_offers`].
    pub fn prepare_offer_wait(&self) -> WaitTicket {
        let words = self.offer_words();
        handshake::prepare_wait(&words.sequence, &words.waiters)
    }

    /// Sleeps until offers come, a signal handler runs (one without `SA_RESTART`), or the monotonic
    /// clock reaches `deadline_ns`.
    pub fn wait_offers(&self, ticket: WaitTicket, deadline_ns: u64) -> Waited {
        sys::futex_wait_until(&self.offer_words().sequence, ticket.sequence, deadline_ns)
    }

    /// As [`AppChannel::wait_offers`]; ends also when `other` is not `expected` any more.
    pub fn wait_offers_both(
        &self,
        ticket: WaitTicket,
        other: &AtomicU32,
        expected: u32,
        deadline_ns: u64,
    ) -> Waited {
        let word = &self.offer_words().sequence;
        sys::futex_wait_both((word, ticket.sequence), (other, expected), deadline_ns)
    }

    /// The word that an announced accept sleeps on, and what is expected of it, for a sleep on
    /// several.
    pub fn offer_word(&self, ticket: WaitTicket) -> (&AtomicU32, u32) {
        (&self.offer_words().sequence, ticket.sequence)
    }

    /// As [`AppChannel::wait_offers`], but any signal handler ends the wait.
    pub fn wait_offers_interruptibly(&self, ticket: WaitTicket, deadline_ns: u64) -> Waited {
        let word = &self.offer_words().sequence;
        sys::futex_wait_interruptibly(word, ticket.sequence, deadline_ns)
    }

    /// Wakes the other threads of this process that wait for offers: for the thread that has taken
    /// an offer meant for one of them.
    pub fn wake_offer_waiters(&self) {
        let words = self.offer_words();
        if handshake::notify(&words.sequence, &words.waiters) {
            let _: usize = sys::futex_wake(&words.sequence, u32::MAX);
        }
    }

    /// Gives the wake socket up; nothing is sent any more.
    pub fn into_wake(self) -> Doorbell {
        self.sender.into_wake()
    }

    fn offer_words(&self) -> &OfferWords {
        // `open` checked the size of the segment.
        self.segment.view(OFFER_WORDS_AT).expect("the words are in the layout")
    }
}

/// The place for the reply to one request, taken by [`AppChannel::allocate_reply`]. It must end in
/// [`ReplyCell::wait`] once its request is sent, or in [`ReplyCell::cancel`] if it never is;
/// dropped otherwise, the cell stays taken.
#[derive(Debug)]
pub struct ReplyCell {
    segment: Arc<Segment>,
    index: u32,
}

impl ReplyCell {
    /// The number to name in the request.
    pub fn index(&self) -> u32 {
        self.index
    }

    fn layout(&self) -> &ReplyLayout {
        let offset = REPLIES_AT + self.index as usize * REPLY_BYTES;
        // The index is below `REPLY_CELLS`, and the size of the segment was checked.
        self.segment.view(offset).expect("the cell is in the layout")
    }

    /// Waits for the reply: spins for `spin_us`, then sleeps. `None` once `alive`, asked every 50
    /// milliseconds, says that there is no service to answer; the cell then stays taken.
    pub fn wait(self, spin_us: u32, mut alive: impl FnMut() -> bool) -> Option<ReplyPayload> {
        let state = &self.layout().state;
        let spin_end_ns = sys::clock_monotonic_ns() + u64::from(spin_us) * 1000;
        loop {
            if state.load(Ordering::Acquire) == reply_state::DONE {
                return Some(self.take());
            }
            if sys::clock_monotonic_ns() >= spin_end_ns {
                break;
            }
            core::hint::spin_loop();
        }
        let (pending, sleeping) = (reply_state::PENDING, reply_state::SLEEPING);
        // Fails if the reply has come just now.
        let _: core::result::Result<u32, u32> =
            state.compare_exchange(pending, sleeping, Ordering::AcqRel, Ordering::Acquire);
        while state.load(Ordering::Acquire) != reply_state::DONE {
            let waited = sys::futex_wait(state, sleeping, Some(REPLY_SLICE));
            if waited == Waited::TimedOut && !alive() {
                return None;
            }
        }
        Some(self.take())
    }

    fn take(self) -> ReplyPayload {
        let cell = self.layout();
        let payload = core::array::from_fn(|index| cell.payload[index].load(Ordering::Relaxed));
        cell.state.store(reply_state::FREE, Ordering::Release);
        payload
    }

    /// Gives the cell back; its request was not sent.
    pub fn cancel(self) {
        self.layout().state.store(reply_state::FREE, Ordering::Release);
    }
}

fn ring(segment: &Arc<Segment>, offset: usize, capacity: u32) -> SharedRing {
    // All offsets and capacities are those of the layout, which the segment was sized for.
    SharedRing::new(Arc::clone(segment), offset, capacity).expect("the ring is in the layout")
}
