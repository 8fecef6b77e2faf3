//! The service's end of a channel. Whatever the application writes, nothing here panics; a ring
//! whose positions cannot be right shows in [`ServiceChannel::is_corrupt`], and the service then
//! drops the process.

use core::sync::atomic::Ordering;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::{
    CHANNEL_SIZE, OFFER_WORDS_AT, OFFERS_AT, OfferWords, REPLIES_AT, REPLY_BYTES, REQUESTS_AT,
    ReplyLayout, reply_state, watcher_at,
};
use crate::doorbell::Doorbell;
use crate::handshake;
use crate::limits::{OFFER_RING, REPLY_CELLS, REQUEST_RING, WATCHER_RING, WATCHERS};
use crate::messages::{Message, Offer, Ready, ReplyPayload};
use crate::ring::{Consumer, Producer, SharedRing};
use crate::segment::Segment;
use crate::sys::{self, Errno, Result};

/// The service's end of the channel of one process.
#[derive(Debug)]
pub struct ServiceChannel {
    segment: Arc<Segment>,
    requests: Consumer,
    offers: Producer,
    watchers: Vec<WatcherPlace>,
}

/// A watcher's number.
#[derive(Debug, Default)]
struct WatcherPlace {
    /// The watcher that has the number.
    watcher: Option<ServiceWatcher>,
    /// Where the ring stopped when the last one ended.
    position: u32,
}

/// The service's end of one watcher.
#[derive(Debug)]
pub struct ServiceWatcher {
    ring: Producer,
    doorbell: Doorbell,
}

fn ring(segment: &Arc<Segment>, offset: usize, capacity: u32) -> SharedRing {
    // All offsets and capacities are those of the layout, which the segment was sized for.
    SharedRing::new(Arc::clone(segment), offset, capacity).expect("the ring is in the layout")
}

impl ServiceChannel {
    /// Makes the segment; everything in it is empty.
    pub fn create() -> Result<ServiceChannel> {
        let segment = Arc::new(Segment::create("haypile-channel", CHANNEL_SIZE)?);
        Ok(ServiceChannel {
            requests: Consumer::new(ring(&segment, REQUESTS_AT, REQUEST_RING)),
            offers: Producer::new(ring(&segment, OFFERS_AT, OFFER_RING)),
            watchers: Vec::new(),
            segment,
        })
    }

    /// The descriptor to send to the application. Owned by `self`.
    pub fn fd(&self) -> RawFd {
        // `create` keeps the descriptor.
        self.segment.fd().unwrap_or(-1)
    }

    /// The next request, not decoded yet.
    pub fn next_request(&mut self) -> Option<Message> {
        self.requests.pop()
    }

    /// Takes up to `out.len()` requests; returns how many.
    pub fn next_requests(&mut self, out: &mut [Message]) -> usize {
        self.requests.pop_burst(out)
    }

    /// Whether there is a request: the last look before the service sleeps.
    pub fn has_requests(&mut self) -> bool {
        !self.requests.is_empty()
    }

    /// Sends an offer. False: the ring is full. [`ServiceChannel::wake_acceptors`] follows.
    pub fn push_offer(&mut self, offer: &Offer) -> bool {
        self.offers.push(&offer.encode())
    }

    /// The ring of offers, for its backlog mark and positions.
    pub fn offers(&mut self) -> &mut Producer {
        &mut self.offers
    }

    /// Wakes blocked accepts after a batch of offers.
    pub fn wake_acceptors(&self) {
        let Some(words) = self.segment.view::<OfferWords>(OFFER_WORDS_AT) else { return };
        if handshake::notify(&words.sequence, &words.waiters) {
            let _: usize = sys::futex_wake(&words.sequence, u32::MAX);
        }
    }

    /// Answers a request. False: there is no such cell, or nobody waits for it.
    pub fn complete(&self, cell: u32, payload: &ReplyPayload) -> bool {
        if cell as usize >= REPLY_CELLS {
            return false;
        }
        let offset = REPLIES_AT + cell as usize * REPLY_BYTES;
        let Some(cell) = self.segment.view::<ReplyLayout>(offset) else { return false };
        for (word, value) in cell.payload.iter().zip(payload) {
            word.store(*value, Ordering::Relaxed);
        }
        let finish = |from: u32| {
            let (done, fail) = (reply_state::DONE, Ordering::Relaxed);
            cell.state.compare_exchange(from, done, Ordering::AcqRel, fail).is_ok()
        };
        if finish(reply_state::PENDING) {
            return true;
        }
        // The caller may have gone to sleep in between.
        let slept = finish(reply_state::SLEEPING);
        if slept {
            let _: usize = sys::futex_wake(&cell.state, 1);
        }
        slept
    }

    /// Starts watcher `watcher`, whose ring is emptied; `doorbell` rings the application. `EINVAL`
    /// for a number out of range, `EEXIST` for one in use.
    pub fn open_watcher(&mut self, watcher: u32, doorbell: Doorbell) -> Result<()> {
        let index = watcher as usize;
        if index >= WATCHERS {
            return Err(Errno::EINVAL);
        }
        if self.watchers.len() <= index {
            self.watchers.resize_with(index + 1, WatcherPlace::default);
        }
        let place = &mut self.watchers[index];
        if place.watcher.is_some() {
            return Err(Errno::EEXIST);
        }
        let memory = ring(&self.segment, watcher_at(watcher), WATCHER_RING);
        memory.clear_sleep();
        let ring = Producer::restart(memory, place.position);
        place.watcher = Some(ServiceWatcher { ring, doorbell });
        Ok(())
    }

    /// Ends watcher `watcher`. False: there was none.
    pub fn close_watcher(&mut self, watcher: u32) -> bool {
        let Some(place) = self.watchers.get_mut(watcher as usize) else { return false };
        let ended = place.watcher.take();
        place.position = ended.as_ref().map_or(place.position, |ended| ended.ring.position());
        ended.is_some()
    }

    /// A watcher; `None` if there is none of that number.
    pub fn watcher(&mut self, watcher: u32) -> Option<&mut ServiceWatcher> {
        self.watchers.get_mut(watcher as usize)?.watcher.as_mut()
    }

    fn open_watchers(&self) -> impl Iterator<Item = &ServiceWatcher> {
        self.watchers.iter().filter_map(|place| place.watcher.as_ref())
    }

    /// The application has written what cannot be right into one of the rings.
    pub fn is_corrupt(&self) -> bool {
        self.requests.is_corrupt()
            || self.offers.is_corrupt()
            || self.open_watchers().any(|watcher| watcher.ring.is_corrupt())
    }
}

impl ServiceWatcher {
    /// Sends an event and returns its position, to ask about with
    /// [`ServiceWatcher::is_pending`]. `None`: the ring is full.
    pub fn push(&mut self, ready: &Ready) -> Option<u32> {
        let position = self.ring.position();
        self.ring.push(&ready.encode()).then_some(position)
    }

    /// Whether the event sent at `position` is still queued, so that the application will look at
    /// the socket's present state when it takes it: no second event is needed.
    pub fn is_pending(&mut self, position: u32) -> bool {
        self.ring.is_pending(position)
    }

    /// Marks that events wait because the ring is full. False: there is room again.
    pub fn mark_backlog(&mut self) -> bool {
        self.ring.mark_backlog()
    }

    /// Room in the ring.
    pub fn free(&mut self) -> u32 {
        self.ring.free()
    }

    /// Rings the application if it sleeps; once after a batch of events. An error means that the
    /// other end of the doorbell is gone.
    pub fn wake(&self) -> Result<()> {
        if self.ring.must_wake() { self.doorbell.ring() } else { Ok(()) }
    }
}
