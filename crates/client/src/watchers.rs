//! Watchers: the service's way to tell this process that sockets changed. Each has a ring of READY
//! messages and a doorbell that is rung when its owner sleeps. An epoll set has one; calls to poll
//! borrow some from a pool, one for each server that their sockets are at. At most 128 a process
//! and server.
//!
//! Used by `epoll.rs` and `poll.rs`.

use haypile_shm::epoch::EPOCH_SERVERS;
use haypile_shm::limits::WATCHERS;
use haypile_shm::messages::{ControlReply, ControlRequest, Ready, RequestBody};
use haypile_shm::{Consumer, Errno};

use crate::attach::{self, Attachment};
use crate::internal::Bell;
use crate::lock::Lock;

/// One bit a watcher number in use, for each server.
static TAKEN: [Lock<u128>; SERVERS] = [const { Lock::new(0) }; SERVERS];
const SERVERS: usize = EPOCH_SERVERS as usize;
const _: () = assert!(WATCHERS == 128, "one bit each");

/// Messages taken at a time: few, because their room is written first, and cold after a rest.
const BURST: usize = 8;

/// A watcher of this process.
#[derive(Debug)]
pub(crate) struct Watcher {
    number: u32,
    server: u16,
    serial: u32,
    ring: Consumer,
    bell: Bell,
}

impl Watcher {
    /// A new watcher. `ENOSPC` when all numbers are in use.
    pub(crate) fn new(attachment: &Attachment) -> Result<Watcher, Errno> {
        let number = {
            let mut taken = taken(attachment.server()).lock()?;
            let number = taken.trailing_ones();
            if number as usize >= WATCHERS {
                return Err(Errno::ENOSPC);
            }
            *taken |= 1 << number;
            number
        };
        Watcher::start(attachment, number).inspect_err(|_| release(attachment.server(), number))
    }

    fn start(attachment: &Attachment, number: u32) -> Result<Watcher, Errno> {
        let (bell, theirs) = Bell::pair()?;
        let request = ControlRequest::NewWatcher { watcher: number };
        let (reply, _) = attachment.ask(&request, &[theirs.raw()], |reply| {
            matches!(reply, ControlReply::WatcherMade { watcher, .. } if *watcher == number)
        })?;
        if let ControlReply::WatcherMade { errno, .. } = reply
            && errno != 0
        {
            return Err(Errno(errno));
        }
        let ring = attachment.channel().watcher(number).ok_or(Errno::EPROTO)?;
        let (server, serial) = (attachment.server(), attachment.serial());
        Ok(Watcher { number, server, serial, ring, bell })
    }

    /// The number, for WATCH.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Which server reports to it.
    pub(crate) fn server(&self) -> u16 {
        self.server
    }

    /// Whether it was made over this attachment, and not by the process this one was forked from, or
    /// with a server that is gone.
    pub(crate) fn belongs_to(&self, attachment: &Attachment) -> bool {
        self.serial == attachment.serial()
    }

    /// The doorbell's number, for a poll or epoll set.
    pub(crate) fn bell(&self) -> i32 {
        self.bell.raw()
    }

    /// Whether the doorbell's number still stands for it.
    pub(crate) fn has_bell(&self) -> bool {
        self.bell.is_ours()
    }

    /// Takes the rings of the doorbell. False: the service is gone.
    pub(crate) fn quiet_bell(&self) -> bool {
        self.bell.drain()
    }

    /// As `quiet_bell`, where the kernel has just said that this bell rings and no other process has it.
    pub(crate) fn quiet_rung_bell(&self) -> bool {
        self.bell.drain_rung()
    }

    /// Takes all messages. What they are about may be looked at afterwards.
    pub(crate) fn drain(&mut self, attachment: &Attachment, mut visit: impl FnMut(Ready)) {
        let mut messages = [[0u64; 8]; BURST];
        loop {
            let count = self.ring.pop_burst_fenced(&mut messages);
            for message in &messages[..count] {
                if let Ok(ready) = Ready::decode(message) {
                    visit(ready);
                }
            }
            if count == messages.len() {
                continue;
            }
            if !self.ring.take_backlog() {
                return;
            }
            // More comes by itself, with a ring of the bell if we sleep by then.
            let body = RequestBody::Drained { watcher: self.number };
            let _: Result<(), Errno> = attachment.tell(haypile_shm::NO_SLOT, 0, body);
            return;
        }
    }

    /// Whether there is nothing to take.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.ring.is_empty()
    }

    /// Announces sleep: look once more after this.
    pub(crate) fn prepare_sleep(&self) {
        self.ring.prepare_sleep();
    }

    /// Takes the announcement back.
    pub(crate) fn awake(&self) {
        self.ring.awake();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // A forked child drops its parent's watchers: they go on living there.
        if let Some(attachment) = attach::existing(self.server)
            && self.belongs_to(&attachment)
        {
            attachment.announce(&ControlRequest::DropWatcher { watcher: self.number });
            release(self.server, self.number);
        }
    }
}

fn taken(server: u16) -> &'static Lock<u128> {
    &TAKEN[usize::from(server) % SERVERS]
}

fn release(server: u16, number: u32) {
    if let Ok(mut taken) = taken(server).lock() {
        *taken &= !(1 << number);
    }
}

/// In a forked child, or over a new attachment: none of the numbers is in use.
pub(crate) fn forget_all(server: u16) {
    if let Ok(mut taken) = taken(server).lock() {
        *taken = 0;
    }
}

pub(crate) fn hold_for_fork() {
    TAKEN.iter().for_each(Lock::hold_for_fork);
}

pub(crate) fn release_after_fork() {
    TAKEN.iter().for_each(Lock::release_after_fork);
}
