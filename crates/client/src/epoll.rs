//! Epoll sets over both worlds. The kernel's own epoll object stays what it is for kernel
//! descriptors; beside it this process keeps the interest in Haypile sockets (`epoll/interest.rs`)
//! and has put two descriptors of its own into the kernel's set: the doorbell that the service
//! rings, and an alarm that this process rings itself.
//!
//! Because of the doorbell, one sleep in the kernel waits for both worlds, and duplicates, nesting
//! and inheritance of epoll descriptors work by themselves. The alarm makes the set readable while
//! events are at hand and somebody else sleeps on it: another thread, or an outer epoll or poll.
//! Haypile sockets are never in the kernel's set, except the listening half of a dual listener.
//! A forked child that goes on with the set puts its own doorbell beside its parent's.

mod interest;
mod posts;

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use haypile_shm::Errno;
use haypile_shm::spin::{Gaps, Spinner};
use haypile_shm::sys::{self, EpollEvent};

use crate::attach;
use crate::datagram;
use crate::descriptors::{self, Owner};
use crate::entry::{self, Phase, Pinned, flag};
use crate::errno::TO_KERNEL;
use crate::lock::{Guard, Lock};
use crate::slab::{Entry, Slab};
use crate::sleep::Sleeper;
use interest::Interest;

/// Marks the data of our own entries in a kernel set: no address, no small number.
const MARK: u64 = 0xf5a9_3c71 << 32;
const MARK_MASK: u64 = 0xffff_ffff << 32;
/// In the low half: a doorbell or an alarm, with the number of its process. Without these bits it
/// is the number of a registration.
const KIND_MASK: u32 = 0xc000_0000;
const BELL: u32 = 0x8000_0000;
const ALARM: u32 = 0xc000_0000;

/// The mark of a doorbell or alarm of a process. Processes that share an epoll object by `fork` see
/// each other's.
fn mark(kind: u32, process: u32) -> u64 {
    MARK | u64::from(kind | process & !KIND_MASK)
}

/// With events in hand the kernel's half is looked at one time in so many.
const KERNEL_TURN: u32 = 16;
/// While spinning, the kernel's half is looked at so often, in nanoseconds.
const KERNEL_INTERVAL_NS: u64 = 50_000;
/// Longest sleep while the server is dead and another is expected, in milliseconds.
const AWAITING_MS: i32 = 5;
/// How long a wait rests from a set in which another process's doorbell rings on. Its own doorbell
/// ends the rest.
const REST: Duration = Duration::from_millis(10);

/// One epoll object.
#[derive(Debug)]
pub(crate) struct Epoll {
    uses: AtomicU32,
    descriptors: AtomicU32,
    number: AtomicI32,
    /// Threads asleep in the kernel's set, or about to be.
    sleepers: AtomicU32,
    /// Another epoll or poll waits on this one.
    nested: AtomicBool,
    /// Kernel descriptors were added.
    has_kernel: AtomicBool,
    /// Haypile sockets were added.
    has_ours: AtomicBool,
    /// The last look at the kernel's half found something.
    kernel_lately: AtomicBool,
    /// The last look saw the doorbell of another process.
    foreign_bell: AtomicBool,
    /// A socket has changed while its thread held the interest, or its servers were out of reach: whoever takes that
    /// next makes up for it.
    missed: AtomicBool,
    turn: AtomicU32,
    /// How long its waits take.
    gaps: Gaps,
    interest: Lock<Interest>,
}

impl Default for Epoll {
    fn default() -> Self {
        Epoll {
            uses: AtomicU32::new(0),
            descriptors: AtomicU32::new(0),
            number: AtomicI32::new(-1),
            sleepers: AtomicU32::new(0),
            nested: AtomicBool::new(false),
            has_kernel: AtomicBool::new(false),
            has_ours: AtomicBool::new(false),
            kernel_lately: AtomicBool::new(false),
            foreign_bell: AtomicBool::new(false),
            missed: AtomicBool::new(false),
            turn: AtomicU32::new(0),
            gaps: Gaps::new(),
            interest: Lock::new(Interest::default()),
        }
    }
}

impl Entry for Epoll {
    fn uses(&self) -> &AtomicU32 {
        &self.uses
    }
}

static EPOLLS: Slab<Epoll> = Slab::new();

/// An epoll object that cannot go away while this lives.
struct Held {
    index: u32,
    epoll: &'static Epoll,
}

impl std::ops::Deref for Held {
    type Target = Epoll;
    fn deref(&self) -> &Epoll {
        self.epoll
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if EPOLLS.unpin(self.index) {
            // The sockets forget the set first, so that none calls back into it.
            if let Ok(mut interest) = self.epoll.interest.lock() {
                interest.clear(self.index);
            }
            EPOLLS.put(self.index);
        }
    }
}

fn hold(index: u32) -> Option<Held> {
    EPOLLS.pin(index).map(|epoll| Held { index, epoll })
}

/// The epoll object behind a descriptor.
fn behind(fd: RawFd) -> Result<Held, Errno> {
    loop {
        match descriptors::owner(fd) {
            Owner::Kernel => return Err(TO_KERNEL),
            Owner::Internal => return Err(Errno::EBADF),
            Owner::Socket(_) => return Err(Errno::EINVAL),
            Owner::Epoll(index) => {
                if let Some(held) = hold(index)
                    && descriptors::owner(fd) == Owner::Epoll(index)
                {
                    return Ok(held);
                }
            }
        }
    }
}

/// epoll_create1(2) has made this descriptor.
pub fn epoll_made(fd: RawFd) {
    crate::socket::forget_number(fd);
    if !attach::is_attached() {
        return;
    }
    if let Ok((index, epoll)) = EPOLLS.take() {
        epoll.descriptors.store(0, Ordering::Relaxed);
        epoll.sleepers.store(0, Ordering::Relaxed);
        let flags = [&epoll.nested, &epoll.has_kernel, &epoll.has_ours];
        let lately = [&epoll.kernel_lately, &epoll.foreign_bell, &epoll.missed];
        for flag in flags.into_iter().chain(lately) {
            flag.store(false, Ordering::Relaxed);
        }
        let held = Held { index, epoll };
        enter(fd, held.index);
    }
}

/// Enters a descriptor number for an epoll object.
pub(crate) fn enter(fd: RawFd, index: u32) {
    let Some(held) = hold(index) else { return };
    held.descriptors.fetch_add(1, Ordering::AcqRel);
    held.uses.fetch_add(1, Ordering::AcqRel);
    held.number.store(fd, Ordering::Release);
    if !descriptors::enter(fd, Owner::Epoll(index)) {
        held.descriptors.fetch_sub(1, Ordering::AcqRel);
        held.uses.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A descriptor number of an epoll object is out of the table and about to be closed.
pub(crate) fn leave(index: u32) {
    let Some(held) = hold(index) else { return };
    if held.descriptors.fetch_sub(1, Ordering::AcqRel) > 1 {
        descriptors::for_each_in(0, u32::MAX, |fd, owner| {
            if owner == Owner::Epoll(index) {
                held.number.store(fd, Ordering::Release);
            }
        });
    }
    held.uses.fetch_sub(1, Ordering::AcqRel);
}

/// Calls `visit` with the number of every epoll object.
pub(crate) fn for_each(mut visit: impl FnMut(u32)) {
    EPOLLS.for_each(|index, _| visit(index));
}

impl Epoll {
    /// The interest, with the watcher of this process behind it if there are Haypile sockets.
    fn interest(&self, epoll: RawFd) -> Result<Guard<'_, Interest>, Errno> {
        let mut interest = self.interest.lock()?;
        if self.has_ours.load(Ordering::Acquire) {
            interest.ensure_watchers(epoll)?;
            if self.missed.swap(false, Ordering::AcqRel) {
                interest.catch_up(epoll);
            }
        }
        Ok(interest)
    }

    /// Somebody else may sleep on the set: he must be rung for what comes, and for what is there.
    fn settle(&self, epoll: RawFd, interest: &mut Interest) {
        let others =
            self.sleepers.load(Ordering::SeqCst) > 0 || self.nested.load(Ordering::Acquire);
        interest.settle(epoll, others);
    }
}

/// epoll_ctl(2).
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn epoll_ctl(
    epoll: RawFd,
    operation: i32,
    fd: RawFd,
    event: Option<EpollEvent>,
) -> Result<(), Errno> {
    let held = behind(epoll)?;
    match descriptors::owner(fd) {
        Owner::Internal => Err(Errno::EBADF),
        Owner::Kernel => {
            held.has_kernel.store(true, Ordering::Release);
            Err(TO_KERNEL)
        }
        Owner::Epoll(inner) => {
            held.has_kernel.store(true, Ordering::Release);
            if operation != libc::EPOLL_CTL_DEL {
                nest(inner, fd);
            }
            Err(TO_KERNEL)
        }
        Owner::Socket(_) => {
            let socket = entry::behind(fd)?;
            if socket.phase() == Phase::Kernel {
                held.has_kernel.store(true, Ordering::Release);
                return Err(TO_KERNEL);
            }
            control(&held, epoll, operation, fd, &socket, event)
        }
    }
}

/// From now on somebody waits on an epoll object from outside.
pub(crate) fn nest(inner: u32, fd: RawFd) {
    let Some(held) = hold(inner) else { return };
    held.nested.store(true, Ordering::Release);
    if let Ok(mut interest) = held.interest(fd) {
        held.settle(fd, &mut interest);
    }
}

fn control(
    held: &Held,
    epoll: RawFd,
    operation: i32,
    fd: RawFd,
    socket: &Pinned,
    event: Option<EpollEvent>,
) -> Result<(), Errno> {
    const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;
    let (events, data) = event.map_or((0, 0), |event| (event.events, event.u64));
    let exclusive = events & EXCLUSIVE != 0;
    match operation {
        libc::EPOLL_CTL_ADD => {
            // epoll_ctl(2): with EPOLLEXCLUSIVE only these may be given.
            let allowed = EXCLUSIVE
                | (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLWAKEUP | libc::EPOLLET) as u32
                | (libc::EPOLLERR | libc::EPOLLHUP) as u32;
            if exclusive && events & !allowed != 0 {
                return Err(Errno::EINVAL);
            }
            held.has_ours.store(true, Ordering::Release);
            if socket.has(flag::DATAGRAM) {
                held.has_kernel.store(true, Ordering::Release);
            }
            let mut interest = held.interest(epoll)?;
            interest.add(epoll, fd, socket, events, data)?;
            socket.note_epoll(held.index);
            held.settle(epoll, &mut interest);
        }
        libc::EPOLL_CTL_MOD => {
            let mut interest = held.interest(epoll)?;
            interest.modify(epoll, fd, socket, events, data, exclusive)?;
            held.settle(epoll, &mut interest);
        }
        libc::EPOLL_CTL_DEL => {
            let mut interest = held.interest(epoll)?;
            if interest.remove(epoll, fd, socket)? {
                socket.forget_epoll(held.index);
            }
            held.settle(epoll, &mut interest);
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// epoll_wait(2) and its relatives.
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn epoll_wait(
    epoll: RawFd,
    out: &mut [EpollEvent],
    timeout_ms: i32,
    sleeper: &mut dyn Sleeper,
) -> Result<usize, Errno> {
    let held = behind(epoll)?;
    let mut wait: Option<Wait> = None;
    loop {
        // A set of kernel descriptors alone costs one system call, as ever.
        let has_ours = held.has_ours.load(Ordering::Acquire);
        if has_ours {
            attach::follow_changes();
            let ready = look(&held, epoll, out, timeout_ms != 0)?;
            if ready > 0 || timeout_ms == 0 {
                if let Some(wait) = &wait {
                    wait.ended(&held);
                }
                return Ok(ready);
            }
        }
        // The clock is read only by those who find nothing.
        let wait = wait.get_or_insert_with(|| Wait::new(timeout_ms));
        if has_ours && let Some(ready) = spin(&held, epoll, out, wait)? {
            wait.ended(&held);
            return Ok(ready);
        }
        if has_ours {
            sleeper.hold();
        }
        match doze(&held, epoll, out, wait.deadline_ns, sleeper)? {
            Dozed::Ready(ready) => {
                wait.ended(&held);
                return Ok(ready);
            }
            Dozed::TimedOut if held.has_ours.load(Ordering::Acquire) => {
                return look(&held, epoll, out, false);
            }
            Dozed::TimedOut => return Ok(0),
            Dozed::LookAgain => {}
        }
    }
}

/// One wait: when it started and when it ends, on the monotonic clock.
struct Wait {
    started_ns: u64,
    deadline_ns: u64,
    has_spun: bool,
}

impl Wait {
    fn new(timeout_ms: i32) -> Wait {
        let started_ns = sys::clock_monotonic_ns();
        let deadline_ns = match u64::try_from(timeout_ms) {
            Ok(timeout_ms) => started_ns + timeout_ms * 1_000_000,
            Err(_) => u64::MAX,
        };
        Wait { started_ns, deadline_ns, has_spun: false }
    }

    /// It has ended with what it waited for.
    fn ended(&self, held: &Held) {
        held.gaps.note(sys::clock_monotonic_ns() - self.started_ns);
    }
}

/// Looks at the service's half, and at the kernel's half if it is due. Whoever `may_sleep` looks at
/// the kernel's half by that, and earlier only if there was something the last time.
fn look(
    held: &Held,
    epoll: RawFd,
    out: &mut [EpollEvent],
    may_sleep: bool,
) -> Result<usize, Errno> {
    let mut interest = held.interest(epoll)?;
    if held.nested.load(Ordering::Acquire) {
        interest.quiet(epoll, false);
    }
    let kernel = held.has_kernel.load(Ordering::Acquire);
    let turn = held.turn.fetch_add(1, Ordering::Relaxed);
    let mut ready = 0;
    if kernel && turn.is_multiple_of(KERNEL_TURN) && interest.has_news() {
        // The kernel's events go first: our sockets may fill each answer, if it has room for few.
        drop(interest);
        ready = look_at_kernel(held, epoll, out, false)?;
        interest = match held.interest(epoll) {
            Err(_) if ready > 0 => return Ok(ready),
            again => again?,
        };
    }
    ready += interest.collect(epoll, &mut out[ready..]);
    held.settle(epoll, &mut interest);
    let stranded = interest.take_stranded();
    drop(interest);
    if !stranded.is_empty() {
        bring_back(held, stranded);
    }
    let due = !may_sleep || held.kernel_lately.load(Ordering::Relaxed);
    if ready == 0 && kernel && due {
        ready = look_at_kernel(held, epoll, out, true)?;
    }
    Ok(ready)
}

/// Opens UDP sockets at other servers.
#[cold]
fn bring_back(held: &Held, stranded: Vec<u32>) {
    let tried: Vec<(u32, bool)> = stranded
        .into_iter()
        .filter_map(|index| entry::pin(index).map(|socket| (index, datagram::bring_back(&socket))))
        .collect();
    // What was collected is given out whatever comes of it.
    if let Ok(mut interest) = held.interest.lock() {
        interest.give_back(tried.into_iter());
    }
}

/// What the kernel's half has, and, if wanted, what the service's half has after that.
fn look_at_kernel(
    held: &Held,
    epoll: RawFd,
    out: &mut [EpollEvent],
    collects: bool,
) -> Result<usize, Errno> {
    let found = sys::epoll_wait(epoll, out, 0)?;
    sift(held, epoll, out, found, collects)
}

/// Takes our own entries out of what the kernel reported, and acts on them. The room that is left
/// is filled with events of our own sockets, if that is wanted.
fn sift(
    held: &Held,
    epoll: RawFd,
    events: &mut [EpollEvent],
    found: usize,
    collects: bool,
) -> Result<usize, Errno> {
    if !events[..found].iter().any(|event| event.u64 & MARK_MASK == MARK) {
        held.kernel_lately.store(found > 0, Ordering::Relaxed);
        return Ok(found);
    }
    let mut kept = 0;
    let own = match attach::current() {
        Err(errno) if attach::is_awaited_by_child(errno) => None,
        attachment => Some(attachment?.process_mark() & !KIND_MASK),
    };
    let mut rung = false;
    let mut interest = held.interest(epoll)?;
    for at in 0..found {
        let event = events[at];
        let data = event.u64;
        if data & MARK_MASK != MARK {
            events[kept] = event;
            kept += 1;
            continue;
        }
        match data as u32 & KIND_MASK {
            BELL | ALARM if Some(data as u32 & !KIND_MASK) != own => {
                held.foreign_bell.store(true, Ordering::Relaxed);
            }
            BELL => rung = true,
            ALARM => interest.silence(),
            _ => interest.kernel_half_ready(data as u32, event.events),
        }
    }
    if rung {
        interest.quiet(epoll, true);
    }
    held.kernel_lately.store(kept > 0, Ordering::Relaxed);
    if collects {
        kept += interest.collect(epoll, &mut events[kept..]);
    }
    held.settle(epoll, &mut interest);
    Ok(kept)
}

/// Spins once for an event of ours, looking at the kernel's half now and then.
fn spin(
    held: &Held,
    epoll: RawFd,
    out: &mut [EpollEvent],
    wait: &mut Wait,
) -> Result<Option<usize>, Errno> {
    if std::mem::replace(&mut wait.has_spun, true) {
        return Ok(None);
    }
    let attachment = match attach::current() {
        Err(errno) if attach::is_awaited_by_child(errno) => return Ok(None),
        attachment => attachment?,
    };
    let Some(patience_ns) = attachment.patience_ns(&held.gaps) else { return Ok(None) };
    drop(attachment);
    let patience_ns = patience_ns.min(wait.deadline_ns - wait.started_ns);
    let mut spinner = Spinner::new(wait.started_ns, patience_ns);
    let mut kernel_ns = wait.started_ns + KERNEL_INTERVAL_NS;
    loop {
        let goes_on = spinner.rest();
        // Looks take a lock that other threads may want.
        if held.interest(epoll)?.has_news() {
            let ready = look(held, epoll, out, true)?;
            if ready > 0 {
                return Ok(Some(ready));
            }
        }
        if !goes_on {
            return Ok(None);
        }
        if held.has_kernel.load(Ordering::Relaxed) && spinner.is_past(kernel_ns) {
            kernel_ns += KERNEL_INTERVAL_NS;
            let ready = look_at_kernel(held, epoll, out, true)?;
            if ready > 0 {
                return Ok(Some(ready));
            }
        }
    }
}

enum Dozed {
    Ready(usize),
    TimedOut,
    LookAgain,
}

/// Sleeps in the kernel's set, after the announcement that makes the service ring.
fn doze(
    held: &Held,
    epoll: RawFd,
    out: &mut [EpollEvent],
    deadline_ns: u64,
    sleeper: &mut dyn Sleeper,
) -> Result<Dozed, Errno> {
    let _asleep = Asleep::new(held);
    let mut awaiting = false;
    if held.has_ours.load(Ordering::Acquire) {
        let mut interest = held.interest(epoll)?;
        // Who was woken for more servers finds them here, whoever has taken the message.
        let missed = held.missed.load(Ordering::Acquire);
        if !interest.prepare_sleep() || attach::has_changed() || missed {
            return Ok(Dozed::LookAgain);
        }
        awaiting = interest.is_uncertain();
    }
    let now_ns = sys::clock_monotonic_ns();
    if held.foreign_bell.swap(false, Ordering::Relaxed) && now_ns < deadline_ns {
        return rest(held, epoll, deadline_ns - now_ns, sleeper);
    }
    let left_ms = match deadline_ns {
        u64::MAX => -1,
        // Rounded up: a wait may be longer than asked for, never shorter.
        deadline_ns => {
            let left_ms = deadline_ns.saturating_sub(now_ns).div_ceil(1_000_000);
            i32::try_from(left_ms).unwrap_or(i32::MAX)
        }
    };
    // Nobody rings when the next server comes.
    let slice_ms = match left_ms {
        left_ms if !awaiting => left_ms,
        ..0 => AWAITING_MS,
        left_ms => left_ms.min(AWAITING_MS),
    };
    let slept = sleeper.epoll_wait(epoll, out, slice_ms);
    drop(_asleep);
    if held.has_ours.load(Ordering::Acquire) {
        let mut interest = held.interest(epoll)?;
        interest.awake();
        held.settle(epoll, &mut interest);
    }
    let found = slept?;
    if found == 0 {
        let over = left_ms >= 0 && sys::clock_monotonic_ns() >= deadline_ns;
        let again = left_ms < 0 || awaiting && !over;
        return Ok(if again { Dozed::LookAgain } else { Dozed::TimedOut });
    }
    match sift(held, epoll, out, found, true)? {
        0 if sys::clock_monotonic_ns() >= deadline_ns => Ok(Dozed::TimedOut),
        0 => Ok(Dozed::LookAgain),
        ready => Ok(Dozed::Ready(ready)),
    }
}

/// Sleeps on our own doorbells alone, for a moment.
fn rest(
    held: &Held,
    epoll: RawFd,
    left_ns: u64,
    sleeper: &mut dyn Sleeper,
) -> Result<Dozed, Errno> {
    let bells = held.interest(epoll)?.bells();
    let mut fds: Vec<sys::PollFd> =
        bells.into_iter().map(|fd| sys::PollFd { fd, events: libc::POLLIN, revents: 0 }).collect();
    let slept = sleeper.poll(&mut fds, Some(REST.min(Duration::from_nanos(left_ns))));
    let mut interest = held.interest(epoll)?;
    interest.awake();
    held.settle(epoll, &mut interest);
    slept.map(|_| Dozed::LookAgain)
}

/// Counts a sleeper, also when the sleep ends by an error.
struct Asleep<'a>(&'a Epoll);

impl<'a> Asleep<'a> {
    fn new(epoll: &'a Epoll) -> Asleep<'a> {
        epoll.sleepers.fetch_add(1, Ordering::SeqCst);
        Asleep(epoll)
    }
}

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Does something to the interest of an epoll object that a socket is in.
fn with_interest(epoll: u32, act: impl FnOnce(&mut Interest, RawFd)) {
    let Some(held) = hold(epoll) else { return };
    let number = held.number.load(Ordering::Acquire);
    if let Ok(mut interest) = held.interest.lock() {
        act(&mut interest, number);
        held.settle(number, &mut interest);
    }
}

/// The last descriptor of a socket is gone: so is its registration.
pub(crate) fn drop_socket(epoll: u32, socket: u32) {
    with_interest(epoll, |interest, number| interest.drop_socket(number, socket));
}

/// A socket has turned out to be the kernel's: the kernel's set takes it over.
pub(crate) fn hand_to_kernel(epoll: u32, socket: u32) {
    if let Some(held) = hold(epoll) {
        held.has_kernel.store(true, Ordering::Release);
    }
    with_interest(epoll, |interest, number| interest.hand_to_kernel(number, socket));
}

/// A socket has got a record, or another meaning.
pub(crate) fn socket_changed(epoll: u32, socket: u32) {
    let mut told = false;
    with_interest(epoll, |interest, number| told = interest.socket_changed(number, socket));
    if !told && let Some(held) = hold(epoll) {
        held.missed.store(true, Ordering::Release);
    }
}

pub(crate) fn hold_for_fork() {
    EPOLLS.for_each(|_, epoll| epoll.interest.hold_for_fork());
    EPOLLS.hold_for_fork();
}

pub(crate) fn release_after_fork() {
    EPOLLS.release_after_fork();
    EPOLLS.for_each(|_, epoll| epoll.interest.release_after_fork());
}

/// This process has a new attachment: sleepers are to be rung over it.
pub(crate) fn attached_again() {
    EPOLLS.for_each(|_, epoll| {
        let number = epoll.number.load(Ordering::Acquire);
        // One that this thread holds is looked at when it goes on.
        if epoll.has_ours.load(Ordering::Acquire)
            && let Ok(mut interest) = epoll.interest.lock()
            && interest.ensure_watchers(number).is_ok()
        {
            epoll.settle(number, &mut interest);
        }
    });
}

/// A forked child has attached: its parent's threads do not sleep here.
pub(crate) fn attached_in_child() {
    EPOLLS.for_each(|_, epoll| epoll.sleepers.store(0, Ordering::SeqCst));
}
