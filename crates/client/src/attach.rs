//! The tie between this process and a server: the control connection, the channel, and what
//! is known of the server's life. Read `attach/ties.rs` next (how many there are, and how they are
//! made), then `fork.rs`.
//!
//! A process attaches in the shim's constructor; a child when it first needs the service, because it
//! cannot use its parent's channel; and any process again when it finds that its program has closed
//! descriptors of ours by system calls of its own, or that the server has died and there is another
//! (docs/decisions/0008). Threads may be in the middle of using the attachment before: each lives in
//! a place of its own, is borrowed by a lock that nobody ever waits for, and goes, with its memory
//! and descriptors, when the last borrower has left it.

mod door;
mod greeting;
mod ties;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use haypile_shm::channel::Sent;
use haypile_shm::messages::{
    ControlReply, ControlRequest, DOMAIN_TOKEN_BYTES, OptionReply, Request, RequestBody,
    SocketReply,
};
use haypile_shm::spin::Gaps;
use haypile_shm::sys::{self, Fd, MESSAGE_FDS};
use haypile_shm::{AppChannel, Errno, control, epoch};

use crate::accept::Offers;
use crate::errno::{SERVICE_GONE, of_call, of_send};
use crate::internal::{self, Internal};
use crate::lock::Lock;
use crate::memory::Memory;

pub use greeting::AttachError;
use greeting::Identity;
pub(crate) use ties::{
    Current, all, all_from_home, current, epoch_of, existing, follow_changes, goes_on_without,
    has_changed, has_left, hear_of_changes, hold, hold_for_fork, home, is_attaching,
    is_awaited_by_child, is_between, is_forked_from, is_gone, leaves, near, of, present,
    present_of, present_serial, release_after_fork, servers, set_forked, successor,
};
pub use ties::{attach, domain, is_attached};

/// The token of a trust domain.
pub type DomainToken = [u8; DOMAIN_TOKEN_BYTES];

/// Descriptors that come with a reply.
pub(crate) type ReplyFds = [Option<Fd>; MESSAGE_FDS];

/// One process's tie to one server.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// Which of all attachments of this process.
    serial: u32,
    /// Which transport server it is to.
    server: u16,
    /// The name of the process, as the server knows it.
    identity: Identity,
    control: Lock<Internal>,
    /// Taken when the attachment goes.
    channel: Option<AppChannel>,
    offers: Lock<Offers>,
    memory: Arc<Memory>,
    process_id: u32,
    spin_us: u32,
    domain: DomainToken,
    /// The server's end of something is closed.
    gone: AtomicBool,
    /// When that was found, in milliseconds of the monotonic clock.
    gone_ms: AtomicU64,
    /// When the server's life was last looked at.
    looked_ms: AtomicU64,
    /// The supervisor held the attach socket when that was last looked at.
    reached: AtomicBool,
    /// When the service was last tried, and how often.
    tried_ms: AtomicU64,
    tries: AtomicU32,
    /// The program has closed descriptors of ours: a new attachment is to take the place of this.
    lost: AtomicBool,
}

/// What has become of the server of an attachment.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It lives.
    Alive,
    /// It is dead, and there is another.
    Replaced,
    /// It is dead, and another is expected.
    Awaited,
    /// It is dead, and there will be no other.
    Over,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.take() {
            internal::give_up(channel.into_wake());
        }
    }
}

impl Attachment {
    /// The number of this process in owner words.
    pub(crate) fn process_id(&self) -> u32 {
        self.process_id
    }

    /// How long a blocking call spins for its first, whether waits like it are short or not, in
    /// microseconds; 0 where spinning makes no sense.
    pub(crate) fn spin_us(&self) -> u32 {
        self.spin_us
    }

    /// How long a blocking call spins before it sleeps, in nanoseconds, by how long waits like it
    /// take; `None` where spinning makes no sense: nobody else runs, or the service is to run here.
    pub(crate) fn patience_ns(&self, gaps: &Gaps) -> Option<u64> {
        let spins = self.spin_us > 0 && !self.channel().sender().is_beside_service();
        spins.then(|| gaps.patience_ns(u64::from(self.spin_us) * 1000))
    }

    /// The channel.
    pub(crate) fn channel(&self) -> &AppChannel {
        // Taken by drop alone.
        self.channel.as_ref().expect("a channel")
    }

    /// Which of all attachments of this process.
    pub(crate) fn serial(&self) -> u32 {
        self.serial
    }

    /// A number of this process that no other has with which it may share an epoll object.
    pub(crate) fn process_mark(&self) -> u32 {
        self.identity.name as u32
    }

    /// Which transport server it is to.
    pub(crate) fn server(&self) -> u16 {
        self.server
    }

    /// The epoch of the server.
    pub(crate) fn epoch(&self) -> u32 {
        self.memory.epoch()
    }

    /// Which server, and which life of it.
    #[inline]
    pub(crate) fn life(&self) -> u64 {
        self.memory.life()
    }

    /// The memory that the server has given.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// What has become of the server.
    pub(crate) fn fate(&self) -> Fate {
        let epoch = self.memory.now().get();
        if epoch == self.epoch() && !self.gone.load(Ordering::Acquire) {
            return Fate::Alive;
        }
        if self.memory.is_over() {
            return Fate::Over;
        }
        self.note_gone();
        let fate = self.fate_in(epoch);
        if fate == Fate::Over && !self.leaves() {
            self.memory.set_over();
        }
        fate
    }

    /// Whether the server is none of those that programs come to: it has left, but may come again.
    fn leaves(&self) -> bool {
        (1..=self.server).contains(&self.memory.now().servers())
    }

    /// What the epoch means to whose server is dead.
    fn fate_in(&self, epoch: u32) -> Fate {
        /// Time for the supervisor to find a server dead, when nobody can tell whether it lives.
        const DEATH_MS: u64 = 2_000;
        /// And when it can be reached: it may be stopped, or have much to do.
        const LATE_DEATH_MS: u64 = 30_000;
        /// Until it is asked whether it lives: one that does has found it dead long before, and the
        /// next server is there soon after that.
        const NOTICE_MS: u64 = 50;
        const RESTART_MS: u64 = 500;
        /// Attempts to attach to a server that is said to be there.
        const TRIES: u32 = 50;
        if epoch == epoch::ENDED || self.leaves() {
            // It has left, if not the service.
            return Fate::Over;
        }
        if epoch == self.epoch() {
            let gone = self.is_supervisor_gone(NOTICE_MS);
            let reached = self.reached.load(Ordering::Relaxed);
            let limit_ms = if reached { LATE_DEATH_MS } else { DEATH_MS };
            let since_ms = now_ms().saturating_sub(self.gone_ms.load(Ordering::Relaxed));
            return if gone || since_ms >= limit_ms { Fate::Over } else { Fate::Awaited };
        }
        if epoch::is_up(epoch) {
            let tried = self.tries.load(Ordering::Relaxed) >= TRIES;
            return if tried { Fate::Over } else { Fate::Replaced };
        }
        if self.is_supervisor_gone(RESTART_MS) { Fate::Over } else { Fate::Awaited }
    }

    /// While no server runs, its supervisor holds the attach socket; a look twice a second, the first one
    /// after `grace_ms`.
    fn is_supervisor_gone(&self, grace_ms: u64) -> bool {
        const INTERVAL_MS: u64 = 500;
        let (now_ms, tried_ms) = (now_ms(), self.tried_ms.load(Ordering::Relaxed));
        let gone_ms = self.gone_ms.load(Ordering::Relaxed);
        if now_ms < (gone_ms + grace_ms).max(tried_ms + INTERVAL_MS) {
            return false;
        }
        self.tried_ms.store(now_ms, Ordering::Relaxed);
        let reached = door::reach_supervisor(self.server);
        self.reached.store(reached.is_ok(), Ordering::Relaxed);
        matches!(reached, Err(Errno::ECONNREFUSED | Errno::ENOENT))
    }

    /// Whether it is time for another attempt to attach to the next server.
    fn may_try(&self) -> bool {
        let now_ms = now_ms();
        let tries = self.tries.load(Ordering::Relaxed);
        let due = tries == 0 || now_ms >= self.tried_ms.load(Ordering::Relaxed) + 20;
        if due {
            self.tried_ms.store(now_ms, Ordering::Relaxed);
            self.tries.fetch_add(1, Ordering::Relaxed);
        }
        due
    }

    /// Whether a call failed because the server has left the service: another is to be asked.
    pub(crate) fn has_left(&self, errno: Errno) -> bool {
        errno == SERVICE_GONE && has_left(self.server)
    }

    /// Whether the server is dead and its successor is expected.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self.fate(), Fate::Awaited | Fate::Replaced)
    }

    /// Offered connections.
    pub(crate) fn offers(&self) -> &Lock<Offers> {
        &self.offers
    }

    /// A request on the control connection and its answer, with the descriptors that came.
    pub(crate) fn ask(
        &self,
        request: &ControlRequest,
        fds: &[i32],
        is_answer: impl Fn(&ControlReply) -> bool,
    ) -> Result<(ControlReply, ReplyFds), Errno> {
        let control = self.control.lock()?;
        if !control.is_ours() {
            self.note_lost();
            return Err(SERVICE_GONE);
        }
        let sent = control::send(control.raw(), &request.encode(), fds);
        sent.map_err(|errno| self.note_end(errno))?;
        // Bounded: an answer that a caller gave up waiting for may come before ours.
        for _ in 0..16 {
            let received = control::receive(control.raw()).map_err(|errno| self.note_end(errno))?;
            match ControlReply::decode(&received.message) {
                Ok(reply) if is_answer(&reply) => return Ok((reply, received.fds)),
                _ => {}
            }
        }
        Err(Errno::EPROTO)
    }

    /// Tells the service something on the control connection.
    pub(crate) fn announce(&self, request: &ControlRequest) {
        if let Ok(control) = self.control.lock()
            && control.is_ours()
        {
            let _: Result<(), Errno> = control::send(control.raw(), &request.encode(), &[]);
        }
    }

    fn note_end(&self, errno: Errno) -> Errno {
        match errno {
            Errno::EPIPE | Errno::ECONNRESET => {
                self.note_gone();
                SERVICE_GONE
            }
            Errno::EAGAIN => Errno::ETIMEDOUT,
            other => other,
        }
    }

    /// The service has closed its end of something.
    pub(crate) fn note_gone(&self) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            self.gone_ms.store(now_ms(), Ordering::Relaxed);
        }
    }

    /// The program has closed a descriptor that this attachment needs.
    pub(crate) fn note_lost(&self) {
        if !self.is_gone() {
            self.lost.store(true, Ordering::Release);
        }
    }

    /// Whether another attachment takes the place of this.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Whether the server is known to have gone: two loads.
    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire) || self.memory.is_past()
    }

    /// Whether the service lives: looks at the control connection, at most once a millisecond.
    pub(crate) fn is_alive(&self) -> bool {
        if self.is_gone() {
            return false;
        }
        let now_ms = sys::clock_monotonic_us() / 1000;
        if self.looked_ms.swap(now_ms, Ordering::Relaxed) == now_ms {
            return true;
        }
        let Ok(control) = self.control.lock() else { return true };
        if !control.is_ours() {
            self.note_lost();
            return true;
        }
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        match sys::recv(control.raw(), &mut [0u8; 8], flags) {
            Ok(0) | Err(Errno::ECONNRESET | Errno::EPIPE) => {
                self.note_gone();
                false
            }
            _ => true,
        }
    }

    /// Sends a request that needs no answer. Waits while the ring is full.
    pub(crate) fn tell(&self, slot: u32, generation: u32, body: RequestBody) -> Result<(), Errno> {
        let message = Request::about(slot, generation, body).encode();
        match self.channel().sender().send_patiently(&message, || self.is_alive()) {
            Ok(Sent::Now | Sent::Deferred) => Ok(()),
            Err(_) if !self.channel().sender().has_wake_socket() => {
                // The message lies in the ring, which is read when we attach anew.
                self.note_lost();
                of(self.server).map(drop)
            }
            Err(error) => Err(self.note_send(of_send(error))),
        }
    }

    /// Leaves a request in the ring; whether the service is awake to see it does not matter.
    pub(crate) fn leave(&self, slot: u32, generation: u32, body: RequestBody) {
        let message = Request::about(slot, generation, body).encode();
        let _: Result<(), haypile_shm::channel::SendError> =
            self.channel().sender().send_now(&message);
    }

    /// Sends a request and waits for its answer.
    fn call(&self, slot: u32, generation: u32, body: RequestBody) -> Result<[u64; 7], Errno> {
        if self.is_gone() {
            return Err(SERVICE_GONE);
        }
        if !self.channel().sender().has_wake_socket() {
            self.note_lost();
        }
        if self.is_lost() {
            // A fresh one has its descriptors.
            return of(self.server)?.call(slot, generation, body);
        }
        let request = Request::about(slot, generation, body);
        // A sleeping service is woken within some 30 us; a little longer than that is worth it.
        let beside = self.spin_us == 0 || self.channel().sender().is_beside_service();
        let spin_us = if beside { 0 } else { self.spin_us.max(50) };
        for _ in 0..200 {
            match self.channel().call(request, spin_us, || self.is_alive()) {
                Ok(payload) => return Ok(payload),
                Err(haypile_shm::channel::CallError::NoCell) => sleep_ms(1),
                Err(error) => return Err(self.note_send(of_call(error))),
            }
        }
        Err(Errno::ENOBUFS)
    }

    fn note_send(&self, errno: Errno) -> Errno {
        if errno == SERVICE_GONE {
            self.note_gone();
        }
        errno
    }

    /// A request about a socket, and the service's answer whatever it is.
    pub(crate) fn ask_socket(
        &self,
        slot: u32,
        generation: u32,
        body: RequestBody,
    ) -> Result<SocketReply, Errno> {
        let payload = self.call(slot, generation, body)?;
        SocketReply::decode(&payload).map_err(|_| Errno::EPROTO)
    }

    /// A question about an option.
    pub(crate) fn ask_option(
        &self,
        slot: u32,
        generation: u32,
        body: RequestBody,
    ) -> Result<OptionReply, Errno> {
        let payload = self.call(slot, generation, body)?;
        let reply = OptionReply::decode(&payload).map_err(|_| Errno::EPROTO)?;
        if reply.errno == 0 { Ok(reply) } else { Err(Errno(reply.errno)) }
    }
}

fn now_ms() -> u64 {
    sys::clock_monotonic_us() / 1000
}

/// Sleeps without a descriptor, for the few places that wait for another thread's turn.
pub(crate) fn sleep_ms(time_ms: u64) {
    let never = AtomicU32::new(0);
    let _: sys::Waited = sys::futex_wait(&never, 0, Some(Duration::from_millis(time_ms)));
}
