//! How the threads of a process share its request ring: a lock held for the copy of a message
//! alone, never across a wait.
//!
//! A signal handler may interrupt the holder in the middle of its copy and want to send, too. The
//! lock knows its holder, so the handler's message goes into a small array instead, which the
//! holder empties before it unlocks, and looks at once more after it has unlocked. Only the
//! holder's own thread ever touches that array, so program order is all the order it needs.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use crate::doorbell::Doorbell;
use crate::handshake::{LocalLock, LockFailure};
use crate::messages::Message;
use crate::ring::Producer;
use crate::spin;
use crate::status::AppStatus;
use crate::sys;

/// Messages that signal handlers may leave with the thread they interrupt.
pub const DEFERRED_MAX: usize = 16;

/// So many messages that a service on the caller's core has not taken are worth two switches.
const TURN_AFTER: u32 = 16;

/// Longest wait for another thread to finish its copy.
const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// What became of a message.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is in the ring, and the service is awake or rung.
    Now,
    /// This is a signal handler; the thread it interrupted sends the message when it goes on. Do
    /// not wait for an answer to it.
    Deferred,
}

/// Why a message was not sent.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The ring is full: the service is behind.
    Full,
    /// The service is gone, or the channel was abandoned after a fork.
    Gone,
    /// The ring's positions cannot be right.
    Corrupt,
    /// This is a signal handler, and the thread it interrupted is in the middle of sending.
    WouldDeadlock,
}

impl core::fmt::Display for SendError {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.write_str(match self {
            SendError::Full => "the request ring is full",
            SendError::Gone => "the service is gone",
            SendError::Corrupt => "the request ring contradicts itself",
            SendError::WouldDeadlock => "re-entered from a signal handler",
        })
    }
}

impl core::error::Error for SendError {}

/// The sending end of the request ring, shared by the threads of a process.
#[derive(Debug)]
pub struct RequestSender {
    lock: LocalLock,
    producer: UnsafeCell<Producer>,
    deferred: [[AtomicU64; 8]; DEFERRED_MAX],
    /// Messages in `deferred`.
    deferred_count: AtomicU32,
    /// Those of them that are sent already.
    deferred_sent: AtomicU32,
    abandoned: AtomicBool,
    status: AppStatus,
    wake: Doorbell,
    /// The sleep of the service for which `wake` was rung last.
    rung: AtomicU32,
}

// SAFETY: the producer is reached only while `lock` is held, which excludes other threads, and a
// second hold by the same thread is refused.
unsafe impl Sync for RequestSender {}

impl RequestSender {
    pub(super) fn new(producer: Producer, status: AppStatus, wake: Doorbell) -> RequestSender {
        RequestSender {
            lock: LocalLock::new(),
            producer: UnsafeCell::new(producer),
            deferred: [const { [const { AtomicU64::new(0) }; 8] }; DEFERRED_MAX],
            deferred_count: AtomicU32::new(0),
            deferred_sent: AtomicU32::new(0),
            abandoned: AtomicBool::new(false),
            status,
            wake,
            rung: AtomicU32::new(0),
        }
    }

    /// Sends a message that needs no answer; from a signal handler perhaps later.
    pub fn send(&self, message: &Message) -> Result<Sent, SendError> {
        match self.send_now(message) {
            Err(SendError::WouldDeadlock) => self.defer(message),
            other => other.map(|()| Sent::Now),
        }
    }

    /// As [`RequestSender::send`], but waits while the ring is full, for as long as `alive` says
    /// that the service lives (asked about every millisecond).
    pub fn send_patiently(
        &self,
        message: &Message,
        mut alive: impl FnMut() -> bool,
    ) -> Result<Sent, SendError> {
        let mut turns = 0u32;
        loop {
            match self.send(message) {
                Err(SendError::Full) if turns < 64 => sys::sched_yield(),
                Err(SendError::Full) => {
                    if !alive() {
                        return Err(SendError::Gone);
                    }
                    pause(Duration::from_millis(1));
                }
                other => return other,
            }
            turns = turns.saturating_add(1);
        }
    }

    /// Whether the service runs on the caller's core, as far as known: then it does nothing while the
    /// caller spins.
    pub fn is_beside_service(&self) -> bool {
        sys::current_core().is_some_and(|core| self.status.is_on_core(core))
    }

    /// Whether the wake socket's number still stands for it.
    pub fn has_wake_socket(&self) -> bool {
        self.wake.is_ours()
    }

    /// Sends a message now or not at all.
    pub fn send_now(&self, message: &Message) -> Result<(), SendError> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(SendError::Gone);
        }
        let queued = self.push(Some(message))?;
        // A handler may have come between the last look at its messages and the unlocking. If
        // another thread holds the lock by now, it took it after that and sees them.
        while self.deferred_count.load(Ordering::Relaxed) != 0 {
            if self.push(None).is_err() {
                break;
            }
        }
        self.ring_if_asleep()?;
        if is_worth_a_turn(queued) && self.is_beside_service() {
            spin::offer();
        }
        Ok(())
    }

    /// Rings the service if it sleeps.
    fn ring_if_asleep(&self) -> Result<(), SendError> {
        if self.status.must_wake(&self.rung) && self.wake.ring().is_err() {
            return Err(SendError::Gone);
        }
        Ok(())
    }

    /// How many messages the service has not taken yet, if it runs on the caller's core; else 0,
    /// because looking would take the line from the service.
    fn push(&self, message: Option<&Message>) -> Result<u32, SendError> {
        let beside = self.is_beside_service();
        let _held = self.lock.lock(LOCK_LIMIT).map_err(|failure| match failure {
            LockFailure::Reentered => SendError::WouldDeadlock,
            LockFailure::TimedOut => SendError::Full,
        })?;
        // SAFETY: the lock is held, and not twice: this is the only reference.
        let producer = unsafe { &mut *self.producer.get() };
        let pushed = message.is_none_or(|message| producer.push(message));
        let flushed = self.flush_deferred(producer);
        let queued = if beside { producer.queued() } else { 0 };
        if producer.is_corrupt() {
            Err(SendError::Corrupt)
        } else if pushed && (message.is_some() || flushed) {
            Ok(queued)
        } else {
            Err(SendError::Full)
        }
    }

    /// Sends what signal handlers left; only by the holder of the lock. False: the ring is full,
    /// and the rest waits for the next sender.
    fn flush_deferred(&self, producer: &mut Producer) -> bool {
        loop {
            let sent = self.deferred_sent.load(Ordering::Relaxed);
            let count = self.deferred_count.load(Ordering::Relaxed);
            if sent == count {
                if count == 0 {
                    return true;
                }
                // All sent: start over, unless another handler has come just now. The lower word
                // goes first, so that a handler never sees it above the count.
                self.deferred_sent.store(0, Ordering::Relaxed);
                let emptied = self.deferred_count.compare_exchange(
                    count,
                    0,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                if emptied.is_err() {
                    self.deferred_sent.store(sent, Ordering::Relaxed);
                }
                continue;
            }
            let words = &self.deferred[sent as usize % DEFERRED_MAX];
            let message = core::array::from_fn(|index| words[index].load(Ordering::Relaxed));
            if !producer.push(&message) {
                return false;
            }
            self.deferred_sent.store(sent + 1, Ordering::Relaxed);
        }
    }

    /// Leaves a message with the thread that this handler interrupted. Handlers nest, and each
    /// finishes before the one it interrupted goes on.
    fn defer(&self, message: &Message) -> Result<Sent, SendError> {
        let place = self.deferred_count.fetch_add(1, Ordering::Relaxed);
        if place as usize >= DEFERRED_MAX {
            let _: u32 = self.deferred_count.fetch_sub(1, Ordering::Relaxed);
            return Err(SendError::WouldDeadlock);
        }
        for (word, value) in self.deferred[place as usize].iter().zip(message) {
            word.store(*value, Ordering::Relaxed);
        }
        Ok(Sent::Deferred)
    }

    /// Gives the wake socket up.
    pub(super) fn into_wake(self) -> Doorbell {
        self.wake
    }

    /// Every later send fails with `Gone`. For a forked child, before it makes a channel of its
    /// own: this one is its parent's.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

/// Whether the service is given the core for so many messages: so that its work and that of whoever
/// waits for it elsewhere goes on while the program does more.
fn is_worth_a_turn(queued: u32) -> bool {
    queued > 0 && queued.is_multiple_of(TURN_AFTER)
}

/// Sleeps for a time without being woken.
pub(super) fn pause(time: Duration) {
    let never = AtomicU32::new(0);
    let _: sys::Waited = sys::futex_wait(&never, 0, Some(time));
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_service_gets_a_turn_for_many_messages_alone() {
        let worth: Vec<u32> = (0..=48).filter(|queued| is_worth_a_turn(*queued)).collect();
        assert_eq!(worth, [TURN_AFTER, 2 * TURN_AFTER, 3 * TURN_AFTER]);
    }
}
