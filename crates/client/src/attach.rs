//! The tie between this process and the service: the control connection, the channel, and what
//! becomes of both in a forked child. Read `fork.rs` next.
//!
//! Attachments form a chain, one link a generation of `fork`: a child cannot use its parent's
//! channel, and other threads of the parent may hold references to it, so the old link stays where
//! it is and the new one hangs behind it. A process attaches once, in the shim's constructor; a
//! child when it first needs the service, and any process again when it finds that its program has
//! closed descriptors of ours by system calls of its own.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use haypile_shm::channel::Sent;
use haypile_shm::limits::{BUILD_VERSION, PROTOCOL_VERSION, TABLE_SIZE, build_text};
use haypile_shm::messages::{
    ControlReply, ControlRequest, DOMAIN_TOKEN_BYTES, OptionReply, Request, RequestBody,
    SocketReply,
};
use haypile_shm::spin::Gaps;
use haypile_shm::sys::{self, Fd, MESSAGE_FDS};
use haypile_shm::{AppChannel, AppStatus, Doorbell, Errno, Segment, control};

use crate::accept::Offers;
use crate::errno::{SERVICE_GONE, TO_KERNEL, of_call, of_send};
use crate::internal::{self, Internal};
use crate::lock::Lock;
use crate::{memory, placeholder};

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
/// Links to skip from the start of the chain.
static DEPTH: AtomicU32 = AtomicU32::new(0);
static FIRST: OnceLock<Box<Attachment>> = OnceLock::new();
/// Where the service is.
static PATH: OnceLock<Vec<u8>> = OnceLock::new();
/// Serialises children's threads that attach at the same time.
static ATTACHING: Lock<()> = Lock::new(());

/// One process's tie to the service.
#[derive(Debug)]
pub(crate) struct Attachment {
    control: Lock<Internal>,
    channel: AppChannel,
    offers: Lock<Offers>,
    process_id: u32,
    spin_us: u32,
    domain: DomainToken,
    gone: AtomicBool,
    /// The program has closed descriptors of ours: a new attachment is to take the place of this.
    lost: AtomicBool,
    next: OnceLock<Box<Attachment>>,
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
    let attachment = shake_hands(control, domain)?;
    let _: Result<(), Vec<u8>> = PATH.set(path.to_vec());
    let _: Result<(), Box<Attachment>> = FIRST.set(Box::new(attachment));
    STATE.store(ATTACHED, Ordering::Release);
    Ok(())
}

/// HELLO and WELCOME on a fresh control connection.
fn shake_hands(control: Fd, domain: DomainToken) -> Result<Attachment, AttachError> {
    let refused = AttachError::Refused;
    // The socket may not block for ever, whatever the service does.
    let limit = [CONTROL_LIMIT_S.to_ne_bytes(), 0i64.to_ne_bytes()].concat();
    sys::setsockopt(control.raw(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit).map_err(refused)?;
    let flags = sys::fcntl_getfl(control.raw()).map_err(refused)?;
    sys::fcntl_setfl(control.raw(), flags & !libc::O_NONBLOCK).map_err(refused)?;
    let control = Internal::new(control);
    let (version, build, program) = (PROTOCOL_VERSION, BUILD_VERSION, sys::thread_name());
    let hello = ControlRequest::Hello { version, build, program, domain };
    control::send(control.raw(), &hello.encode(), &[]).map_err(refused)?;
    let received = control::receive(control.raw()).map_err(refused)?;
    let reply = ControlReply::decode(&received.message).map_err(|_| refused(Errno::EPROTO))?;
    let ControlReply::Welcome { errno, version, build, process_id, spin_us, domain, .. } = reply
    else {
        return Err(refused(Errno::EPROTO));
    };
    match errno {
        0 => {}
        libc::EPROTO => return Err(AttachError::Version { protocol: version, build }),
        other => return Err(refused(Errno(other))),
    }
    let channel = map_welcome(received.fds).map_err(refused)?;
    let offers = Lock::new(Offers::new(channel.offers()));
    // One processor: whoever spins keeps the other side from working.
    let spin_us = if processors() > 1 { spin_us.min(1000) } else { 0 };
    Ok(Attachment {
        control: Lock::new(control),
        channel,
        offers,
        process_id,
        spin_us,
        domain,
        gone: AtomicBool::new(false),
        lost: AtomicBool::new(false),
        next: OnceLock::new(),
    })
}

fn processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Channel, status, table 0 and wake socket.
fn map_welcome(fds: ReplyFds) -> Result<AppChannel, Errno> {
    let [Some(channel), Some(status), Some(table), Some(wake), Some(_epoch), ..] = fds else {
        return Err(Errno::EPROTO);
    };
    memory::keep_first_table(Segment::from_fd(table, TABLE_SIZE, false)?);
    let wake = Doorbell::guarded(internal::keep(wake));
    AppChannel::open(channel, AppStatus::open(status)?, wake)
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

/// The link of the chain that belongs to this process, or to the ancestor that attached last.
fn link() -> Option<&'static Attachment> {
    let mut attachment: &'static Attachment = FIRST.get()?;
    for _ in 0..DEPTH.load(Ordering::Acquire) {
        attachment = attachment.next.get()?;
    }
    Some(attachment)
}

/// This process's attachment; a forked child makes it here.
///
/// # Errors
/// [`TO_KERNEL`] without a service; `ECONNRESET` when it has gone.
pub(crate) fn current() -> Result<&'static Attachment, Errno> {
    crate::fork::notice_unseen();
    match STATE.load(Ordering::Acquire) {
        ATTACHED => match link() {
            Some(attachment) if !attachment.lost.load(Ordering::Relaxed) => Ok(attachment),
            Some(_) => attach_again(),
            None => Err(TO_KERNEL),
        },
        FORKED => attach_child(),
        _ => Err(TO_KERNEL),
    }
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
            attachment.channel.sender().abandon();
        }
        STATE.store(FORKED, Ordering::Release);
    }
}

/// ATTACH_CHILD over the parent's connection, then HELLO over our own.
#[cold]
fn attach_child() -> Result<&'static Attachment, Errno> {
    let _one = ATTACHING.lock()?;
    if !is_forked() {
        return link().ok_or(TO_KERNEL);
    }
    let parent = link().ok_or(TO_KERNEL)?;
    let (ours, theirs) = sys::socketpair_seqpacket()?;
    {
        let control = parent.control.lock()?;
        let message = ControlRequest::AttachChild.encode();
        control::send(control.raw(), &message, &[theirs.raw()]).map_err(|_| SERVICE_GONE)?;
    }
    drop(theirs);
    let attachment = shake_hands(ours, parent.domain).map_err(|_| SERVICE_GONE)?;
    let attachment = &**parent.next.get_or_init(|| Box::new(attachment));
    DEPTH.fetch_add(1, Ordering::AcqRel);
    STATE.store(ATTACHED, Ordering::Release);
    crate::fork::attached_in_child(attachment);
    Ok(attachment)
}

/// Attaches anew where the program has closed the descriptors of the old attachment. To the service
/// this is another process, so what the old one held is marked as shared first: the messages lie
/// in the old ring, which is read before the new process is let in.
#[cold]
fn attach_again() -> Result<&'static Attachment, Errno> {
    let _one = ATTACHING.lock()?;
    let old = link().ok_or(TO_KERNEL)?;
    if !old.is_lost() {
        return Ok(old);
    }
    placeholder::share_all(old);
    let control = PATH.get().and_then(|path| sys::unix_connect_seqpacket(path).ok());
    let new = control.and_then(|control| shake_hands(control, old.domain).ok());
    // In another domain the old sockets' memory would mean nothing.
    let Some(new) = new.filter(|new| new.domain == old.domain) else {
        old.note_gone();
        old.lost.store(false, Ordering::Release);
        return Err(SERVICE_GONE);
    };
    let new = &**old.next.get_or_init(|| Box::new(new));
    old.channel.sender().abandon();
    DEPTH.fetch_add(1, Ordering::AcqRel);
    crate::fork::attached_again(new);
    old.channel.wake_offer_waiters();
    Ok(new)
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
        &self.channel
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
        self.gone.store(true, Ordering::Release);
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

    /// Whether the service is known to have gone: one load.
    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
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
        match self.channel.sender().send_patiently(&message, || self.is_alive()) {
            Ok(Sent::Now | Sent::Deferred) => Ok(()),
            Err(_) if !self.channel.sender().has_wake_socket() => {
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
            self.channel.sender().send_now(&message);
    }

    /// Sends a request and waits for its answer.
    fn call(&self, slot: u32, generation: u32, body: RequestBody) -> Result<[u64; 7], Errno> {
        if self.is_gone() {
            return Err(SERVICE_GONE);
        }
        if !self.channel.sender().has_wake_socket() {
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
            match self.channel.call(request, spin_us, || self.is_alive()) {
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
