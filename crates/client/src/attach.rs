//! The tie between this process and the service: the control connection, the channel, and what
//! becomes of both in a forked child. Read `fork.rs` next.
//!
//! A process attaches in the shim's constructor; a child when it first needs the service, because it
//! cannot use its parent's channel; and any process again when it finds that its program has closed
//! descriptors of ours by system calls of its own, or that the server has died and there is another
//! (docs/decisions/0008). Threads may be in the middle of using the attachment before: each lives in
//! a place of its own, is borrowed by a lock that nobody ever waits for, and goes, with its memory
//! and descriptors, when the last borrower has left it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard};
use std::time::Duration;

use haypile_shm::channel::Sent;
use haypile_shm::limits::{BUILD_VERSION, PROTOCOL_VERSION, TABLE_SIZE, build_text};
use haypile_shm::messages::{
    ControlReply, ControlRequest, DOMAIN_TOKEN_BYTES, OptionReply, Request, RequestBody,
    SocketReply,
};
use haypile_shm::spin::Gaps;
use haypile_shm::sys::{self, Fd, MESSAGE_FDS};
use haypile_shm::{AppChannel, AppStatus, Doorbell, EpochReader, Errno, Segment, control, epoch};

use crate::accept::Offers;
use crate::errno::{SERVICE_GONE, TO_KERNEL, of_call, of_send};
use crate::internal::{self, Internal};
use crate::lock::Lock;
use crate::memory::Memory;
use crate::placeholder;

/// Longest wait for an answer on the control connection, in seconds. The service answers within a
/// turn; longer means that it is stopped, and the caller should hear so.
const CONTROL_LIMIT_S: i64 = 10;

/// The token of a trust domain.
pub type DomainToken = [u8; DOMAIN_TOKEN_BYTES];

/// Descriptors that come with a reply.
pub(crate) type ReplyFds = [Option<Fd>; MESSAGE_FDS];

/// Not tried yet, or no service: everything goes to the kernel.
const INERT: u32 = 0;
/// The current link of the chain works.
const ATTACHED: u32 = 1;
/// This is a forked child that has not needed the service yet.
const FORKED: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(INERT);
/// Places for attachments: the present one, and those that somebody still uses.
const PLACES: usize = 64;
static ATTACHMENTS: [RwLock<Option<Attachment>>; PLACES] = [const { RwLock::new(None) }; PLACES];
/// The place of the present attachment.
static AT: AtomicU32 = AtomicU32::new(u32::MAX);
/// Attachments made so far by this process.
static SERIAL: AtomicU32 = AtomicU32::new(0);
/// The serial of the present attachment; the largest number in a child that has none yet.
static PRESENT: AtomicU32 = AtomicU32::new(u32::MAX);
/// Where the service is.
static PATH: OnceLock<Vec<u8>> = OnceLock::new();
/// Serialises children's threads that attach at the same time.
static ATTACHING: Lock<()> = Lock::new(());

/// One process's tie to the service.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// Which of all attachments of this process.
    serial: u32,
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
    /// When the service was last tried, and how often.
    tried_ms: AtomicU64,
    tries: AtomicU32,
    /// The program has closed descriptors of ours: a new attachment is to take the place of this.
    lost: AtomicBool,
}

/// The present attachment, borrowed.
pub(crate) struct Current(RwLockReadGuard<'static, Option<Attachment>>);

impl std::ops::Deref for Current {
    type Target = Attachment;
    fn deref(&self) -> &Attachment {
        // `link` gives out none that is empty.
        self.0.as_ref().expect("an attachment")
    }
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

/// Why a process could not attach: for the one line that the shim prints.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// There is nobody at the path, or we may not connect.
    Unreachable(Errno),
    /// The service is of another version.
    Version {
        /// Its protocol.
        protocol: u32,
        /// Its program.
        build: u64,
    },
    /// The service refused, or answered nonsense.
    Refused(Errno),
}

impl core::fmt::Display for AttachError {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            AttachError::Unreachable(errno) => write!(out, "cannot reach the service ({errno})"),
            AttachError::Version { protocol, build } => write!(
                out,
                "the service is haypile {} with protocol {protocol}, this library {} with \
                 protocol {PROTOCOL_VERSION}; start both from one build",
                build_text(*build),
                build_text(BUILD_VERSION),
            ),
            AttachError::Refused(errno) => write!(out, "the service refused ({errno})"),
        }
    }
}

impl core::error::Error for AttachError {}

/// Attaches this process to the service at a path. `domain` is the token of the trust domain to
/// join, from the environment; zero: a new one. Once attached it does nothing.
///
/// # Errors
/// When there is no service, or it refuses; the library then leaves everything to the kernel.
pub fn attach(path: &[u8], domain: DomainToken) -> Result<(), AttachError> {
    if STATE.load(Ordering::Acquire) != INERT {
        return Ok(());
    }
    let control = sys::unix_connect_seqpacket(path).map_err(AttachError::Unreachable)?;
    let attachment = shake_hands(control, domain, None)?;
    let _: Result<(), Vec<u8>> = PATH.set(path.to_vec());
    publish(attachment);
    STATE.store(ATTACHED, Ordering::Release);
    Ok(())
}

/// HELLO and WELCOME on a fresh control connection. `before`: the memory of an attachment in the
/// same domain, which is still right if the server is the same.
fn shake_hands(
    control: Fd,
    domain: DomainToken,
    before: Option<&Arc<Memory>>,
) -> Result<Attachment, AttachError> {
    let refused = AttachError::Refused;
    // The socket may not block for ever, whatever the service does.
    let limit = [CONTROL_LIMIT_S.to_ne_bytes(), 0i64.to_ne_bytes()].concat();
    sys::setsockopt(control.raw(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit).map_err(refused)?;
    let flags = sys::fcntl_getfl(control.raw()).map_err(refused)?;
    sys::fcntl_setfl(control.raw(), flags & !libc::O_NONBLOCK).map_err(refused)?;
    let control = Internal::new(control);
    let (version, build, program) = (PROTOCOL_VERSION, BUILD_VERSION, sys::thread_name());
    let hello = ControlRequest::Hello { version, build, program, domain, name: 0, proof: 0 };
    let greet = || {
        control::send(control.raw(), &hello.encode(), &[]).map_err(refused)?;
        let received = control::receive(control.raw()).map_err(refused)?;
        let reply = ControlReply::decode(&received.message).map_err(|_| refused(Errno::EPROTO))?;
        Ok((reply, received.fds))
    };
    let (mut reply, mut fds) = greet()?;
    if matches!(reply, ControlReply::Home { .. }) {
        (reply, fds) = greet()?;
    }
    let (epoch, process_id, spin_us, domain) = match reply {
        ControlReply::Welcome { epoch, process_id, spin_us, domain, .. } => {
            (epoch, process_id, spin_us, domain)
        }
        ControlReply::Refused { errno: libc::EPROTO, version, build } => {
            return Err(AttachError::Version { protocol: version, build });
        }
        ControlReply::Refused { errno, .. } => return Err(refused(Errno(errno))),
        _ => return Err(refused(Errno::EPROTO)),
    };
    let (channel, memory) = map_welcome(fds, epoch, before).map_err(refused)?;
    let offers = Lock::new(Offers::new(channel.offers()));
    // One processor: whoever spins keeps the other side from working.
    let spin_us = if processors() > 1 { spin_us.min(1000) } else { 0 };
    Ok(Attachment {
        serial: SERIAL.fetch_add(1, Ordering::Relaxed) + 1,
        control: Lock::new(control),
        channel: Some(channel),
        offers,
        memory,
        process_id,
        spin_us,
        domain,
        gone: AtomicBool::new(false),
        gone_ms: AtomicU64::new(0),
        tried_ms: AtomicU64::new(0),
        tries: AtomicU32::new(0),
        lost: AtomicBool::new(false),
    })
}

fn processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Channel, status, table 0, wake socket and epoch.
fn map_welcome(
    fds: ReplyFds,
    epoch: u32,
    before: Option<&Arc<Memory>>,
) -> Result<(AppChannel, Arc<Memory>), Errno> {
    let [Some(channel), Some(status), Some(table), Some(wake), Some(now), ..] = fds else {
        return Err(Errno::EPROTO);
    };
    let memory = match before.filter(|before| before.epoch() == epoch) {
        Some(before) => Arc::clone(before),
        None => {
            let table = Segment::from_fd(table, TABLE_SIZE, false)?;
            Arc::new(Memory::new(epoch, EpochReader::open(now, 0)?, table))
        }
    };
    let wake = Doorbell::guarded(internal::keep(wake));
    Ok((AppChannel::open(channel, AppStatus::open(status)?, wake)?, memory))
}

/// Makes an attachment the present one. Those that nobody uses any more go.
fn publish(attachment: Attachment) {
    let present = AT.load(Ordering::Acquire) as usize;
    let mut spare = Some(attachment);
    for (index, place) in ATTACHMENTS.iter().enumerate() {
        if index == present {
            continue;
        }
        let Ok(mut place) = place.try_write() else { continue };
        if let Some(attachment) = spare.take() {
            let serial = attachment.serial;
            let old = place.replace(attachment);
            drop(place);
            AT.store(index as u32, Ordering::Release);
            PRESENT.store(serial, Ordering::Release);
            drop(old);
        }
    }
    retire();
}

/// Drops attachments of the past that nobody uses any more.
fn retire() {
    for (index, place) in ATTACHMENTS.iter().enumerate() {
        if index != AT.load(Ordering::Acquire) as usize
            && let Ok(mut place) = place.try_write()
        {
            let old = place.take();
            drop(place);
            drop(old);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.take() {
            internal::give_up(channel.into_wake());
        }
    }
}

/// Whether calls may concern the service at all.
#[inline]
pub fn is_attached() -> bool {
    STATE.load(Ordering::Acquire) != INERT
}

/// The token of our trust domain, to hand on by the environment.
pub fn domain() -> Option<DomainToken> {
    is_attached().then(|| link().map(|attachment| attachment.domain)).flatten()
}

/// The attachment of this process, or of the ancestor that attached last.
fn link() -> Option<Current> {
    // Fails only while the place is being given to another one, and then there is a new place.
    for _ in 0..1000 {
        let at = AT.load(Ordering::Acquire) as usize;
        if let Ok(place) = ATTACHMENTS.get(at)?.try_read()
            && place.is_some()
        {
            return Some(Current(place));
        }
        std::hint::spin_loop();
    }
    None
}

/// This process's attachment. A forked child makes it here, and so does a process whose server has
/// died once there is another; until then it gets the dead one.
///
/// # Errors
/// [`TO_KERNEL`] without a service; `ECONNRESET` when it has gone.
pub(crate) fn current() -> Result<Current, Errno> {
    crate::fork::notice_unseen();
    match STATE.load(Ordering::Acquire) {
        ATTACHED => {
            let attachment = link().ok_or(TO_KERNEL)?;
            if attachment.is_gone() {
                renew(attachment)
            } else if attachment.is_lost() {
                drop(attachment);
                attach_again()
            } else {
                Ok(attachment)
            }
        }
        FORKED => attach_child(),
        _ => Err(TO_KERNEL),
    }
}

/// As [`current`], for calls that open something: waits for another server, if one is expected.
pub(crate) fn present() -> Result<Current, Errno> {
    /// Longest wait, in microseconds: a program that is told of an error tries again by itself.
    const PATIENCE_US: u64 = 2_000_000;
    let until_us = sys::clock_monotonic_us() + PATIENCE_US;
    loop {
        let attachment = current()?;
        let hopeless = matches!(attachment.fate(), Fate::Alive | Fate::Over);
        if hopeless || sys::clock_monotonic_us() >= until_us {
            return Ok(attachment);
        }
        drop(attachment);
        sleep_ms(2);
    }
}

/// The server is dead: attaches to its successor, once there is one.
#[cold]
fn renew(old: Current) -> Result<Current, Errno> {
    if old.fate() != Fate::Replaced || !old.may_try() {
        return Ok(old);
    }
    drop(old);
    {
        let Ok(_one) = ATTACHING.lock() else { return link().ok_or(TO_KERNEL) };
        let old = link().ok_or(TO_KERNEL)?;
        // Another thread may have been faster.
        if old.fate() != Fate::Replaced {
            return Ok(old);
        }
        let control = PATH.get().and_then(|path| sys::unix_connect_seqpacket(path).ok());
        let new = control.and_then(|control| shake_hands(control, old.domain, None).ok());
        // In another domain our listeners would not be found.
        let Some(new) = new.filter(|new| new.domain == old.domain) else { return Ok(old) };
        drop(old);
        publish(new);
        crate::restore::all(&*link().ok_or(TO_KERNEL)?);
    }
    crate::fork::attached_again();
    retire();
    link().ok_or(TO_KERNEL)
}

/// The serial of the present attachment, without a look at it.
#[inline]
pub(crate) fn present_serial() -> u32 {
    PRESENT.load(Ordering::Acquire)
}

/// Whether the server is dead.
pub(crate) fn is_gone() -> bool {
    link().is_some_and(|attachment| attachment.is_gone())
}

/// Whether this process is a child that has yet to attach.
#[inline]
pub(crate) fn is_forked() -> bool {
    STATE.load(Ordering::Relaxed) == FORKED
}

/// In a forked child: the channel is the parent's from now on.
pub(crate) fn set_forked() {
    if STATE.load(Ordering::Acquire) == ATTACHED {
        if let Some(attachment) = link() {
            attachment.channel().sender().abandon();
        }
        PRESENT.store(u32::MAX, Ordering::Release);
        STATE.store(FORKED, Ordering::Release);
    }
}

/// ATTACH_CHILD over the parent's connection, then HELLO over our own; where the parent's server is
/// dead, as any process.
#[cold]
fn attach_child() -> Result<Current, Errno> {
    let behind_times = {
        let _one = ATTACHING.lock()?;
        if !is_forked() {
            return link().ok_or(TO_KERNEL);
        }
        let parent = link().ok_or(TO_KERNEL)?;
        let (ours, theirs) = sys::socketpair_seqpacket()?;
        let sent = {
            let control = parent.control.lock()?;
            let message = ControlRequest::AttachChild.encode();
            control::send(control.raw(), &message, &[theirs.raw()])
        };
        drop(theirs);
        let by_parent = sent.ok().filter(|()| !parent.is_gone());
        let control = match by_parent {
            Some(()) => ours,
            None => PATH
                .get()
                .and_then(|path| sys::unix_connect_seqpacket(path).ok())
                .ok_or(SERVICE_GONE)?,
        };
        let new = shake_hands(control, parent.domain, Some(&parent.memory));
        let new = new.map_err(|_| SERVICE_GONE)?;
        if new.domain != parent.domain {
            return Err(SERVICE_GONE);
        }
        let behind_times = new.epoch() != parent.epoch();
        drop(parent);
        publish(new);
        STATE.store(ATTACHED, Ordering::Release);
        let new = link().ok_or(TO_KERNEL)?;
        if behind_times {
            crate::restore::all(&new);
        }
        crate::fork::attached_in_child(&new);
        behind_times
    };
    if behind_times {
        crate::fork::attached_again();
    }
    link().ok_or(TO_KERNEL)
}

/// Attaches anew where the program has closed the descriptors of the old attachment. To the service
/// this is another process, so what the old one held is marked as shared first: the messages lie
/// in the old ring, which is read before the new process is let in.
#[cold]
fn attach_again() -> Result<Current, Errno> {
    {
        let _one = ATTACHING.lock()?;
        let old = link().ok_or(TO_KERNEL)?;
        if !old.is_lost() {
            return Ok(old);
        }
        placeholder::share_all(&old);
        let control = PATH.get().and_then(|path| sys::unix_connect_seqpacket(path).ok());
        let new =
            control.and_then(|control| shake_hands(control, old.domain, Some(&old.memory)).ok());
        // In another domain the old sockets' memory would mean nothing.
        let Some(new) = new.filter(|new| new.domain == old.domain) else {
            old.note_gone();
            old.lost.store(false, Ordering::Release);
            return Err(SERVICE_GONE);
        };
        old.channel().sender().abandon();
        old.channel().wake_offer_waiters();
        drop(old);
        publish(new);
    }
    placeholder::forget_templates();
    crate::fork::attached_again();
    link().ok_or(TO_KERNEL)
}

/// When the service's life was last looked at, in milliseconds of the monotonic clock.
static LOOKED_MS: AtomicU64 = AtomicU64::new(0);

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
    /// take; `None` where spinning makes no sense.
    pub(crate) fn patience_ns(&self, gaps: &Gaps) -> Option<u64> {
        (self.spin_us > 0).then(|| gaps.patience_ns(u64::from(self.spin_us) * 1000))
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

    /// The epoch of the server.
    pub(crate) fn epoch(&self) -> u32 {
        self.memory.epoch()
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
        if fate == Fate::Over {
            self.memory.set_over();
        }
        fate
    }

    /// What the epoch means to whose server is dead.
    fn fate_in(&self, epoch: u32) -> Fate {
        /// Time for the supervisor to find a server dead.
        const DEATH_MS: u64 = 2_000;
        /// Attempts to attach to a server that is said to be there.
        const TRIES: u32 = 50;
        if epoch == epoch::ENDED {
            return Fate::Over;
        }
        if epoch == self.epoch() {
            let since_ms = now_ms().saturating_sub(self.gone_ms.load(Ordering::Relaxed));
            return if since_ms < DEATH_MS { Fate::Awaited } else { Fate::Over };
        }
        if epoch::is_up(epoch) {
            let tried = self.tries.load(Ordering::Relaxed) >= TRIES;
            return if tried { Fate::Over } else { Fate::Replaced };
        }
        if self.is_supervisor_gone() { Fate::Over } else { Fate::Awaited }
    }

    /// While no server runs, its supervisor holds the attach socket; a look twice a second.
    fn is_supervisor_gone(&self) -> bool {
        const INTERVAL_MS: u64 = 500;
        let (now_ms, tried_ms) = (now_ms(), self.tried_ms.load(Ordering::Relaxed));
        if now_ms.saturating_sub(tried_ms.max(self.gone_ms.load(Ordering::Relaxed))) < INTERVAL_MS {
            return false;
        }
        self.tried_ms.store(now_ms, Ordering::Relaxed);
        let reached = PATH.get().map(|path| sys::unix_connect_seqpacket(path));
        matches!(reached, Some(Err(Errno::ECONNREFUSED | Errno::ENOENT)))
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
        if LOOKED_MS.swap(now_ms, Ordering::Relaxed) == now_ms {
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
                current().map(drop)
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
            return current()?.call(slot, generation, body);
        }
        let request = Request::about(slot, generation, body);
        // A sleeping service is woken within some 30 us; a little longer than that is worth it.
        let spin_us = self.spin_us.max(if self.spin_us > 0 { 50 } else { 0 });
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

/// Before a fork: no exchange may be half done in the child.
pub(crate) fn hold_for_fork() {
    ATTACHING.hold_for_fork();
    if let Some(attachment) = link() {
        attachment.offers.hold_for_fork();
        attachment.control.hold_for_fork();
    }
}

/// After a fork, on both sides.
pub(crate) fn release_after_fork() {
    if let Some(attachment) = link() {
        attachment.control.release_after_fork();
        attachment.offers.release_after_fork();
    }
    ATTACHING.release_after_fork();
}
