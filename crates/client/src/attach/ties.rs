//! Which servers this process is attached to: one *tie* for each transport server of the service,
//! and the ways by which an attachment is made. Called by everything, by [`current`] and [`of`].
//!
//! Server 0 names the home of a process; the others are attached to when a call first needs them,
//! under the name that the home has given. A tie ends with the death of its server, and with nothing
//! else: attachments to other servers are left alone.
//!
//! How this process follows servers that come and leave is in `changes`.

mod changes;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard};

use haypile_shm::epoch::{self, EPOCH_SERVERS};
use haypile_shm::messages::{CHOSEN_HOME, ControlRequest};
use haypile_shm::sys::{self, Fd};
use haypile_shm::{EpochReader, Errno, control};

use super::greeting::{AttachError, Greeting, Identity, greet};
use super::{Attachment, DomainToken, Fate, door, sleep_ms};
use crate::errno::{SERVICE_GONE, TO_KERNEL};
use crate::lock::{Guard, Lock};
use crate::memory::Memory;
use crate::placeholder;

use changes::move_home;
pub(crate) use changes::{
    follow_changes, goes_on_without, has_changed, has_left, hear_of_changes, leaves,
};

/// Transport servers that a service may have.
const SERVERS: usize = EPOCH_SERVERS as usize;
const _: () = assert!(SERVERS.is_power_of_two());

/// Of a process: not tried yet, or no service: everything goes to the kernel. Of a tie: none.
const NONE: u32 = 0;
/// The present attachment of the tie works; the process has a home.
const ATTACHED: u32 = 1;
/// Of a process: a forked child that has not needed the service yet. Of a tie: the attachment is an
/// ancestor's.
const FORKED: u32 = 2;

/// What this process has to do with one server.
struct Tie {
    state: AtomicU32,
    /// The place of the present attachment.
    at: AtomicU32,
}

static TIES: [Tie; SERVERS] =
    [const { Tie { state: AtomicU32::new(NONE), at: AtomicU32::new(u32::MAX) } }; SERVERS];
/// Places for attachments: the present ones, and those that somebody still uses.
const PLACES: usize = 2 * SERVERS + 64;
static ATTACHMENTS: [RwLock<Option<Attachment>>; PLACES] = [const { RwLock::new(None) }; PLACES];
/// Which places hold an attachment, a bit each: a walk over all places would make a forked child copy
/// every page of them. Changed with the lock of the place held.
static OCCUPIED: [AtomicU64; PLACES.div_ceil(64)] =
    [const { AtomicU64::new(0) }; PLACES.div_ceil(64)];
/// The state of the process.
static STATE: AtomicU32 = AtomicU32::new(NONE);
/// The home, or that of the ancestor who was attached.
static HOME: AtomicU32 = AtomicU32::new(0);
/// How many transport servers the service has, as far as this process knows.
static COUNT: AtomicU32 = AtomicU32::new(1);
/// How many it has had: there may be ties to some that are about to leave.
static REACH: AtomicU32 = AtomicU32::new(1);
/// Where it stands how many there are now.
static GROWTH: OnceLock<EpochReader> = OnceLock::new();
/// What the word of changes was when this process last followed; 0: the process is new.
static FOLLOWED: AtomicU32 = AtomicU32::new(0);
/// Serialises threads that open listeners at servers that have come.
static FOLLOWING: Lock<()> = Lock::new(());
/// The serial of the present attachment to the home; the largest number in a child without one.
static PRESENT: AtomicU32 = AtomicU32::new(u32::MAX);
/// The name of this process, and what it shows with it; read and written with `ATTACHING` held.
static NAME: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// This child has waited for a home in vain: until there is one, whoever asks hears at once that there is none.
static TIRED: AtomicBool = AtomicBool::new(false);
/// Where server 0 is.
static PATH: OnceLock<Vec<u8>> = OnceLock::new();
/// Serialises threads that attach at the same time.
static ATTACHING: Lock<()> = Lock::new(());

/// The present attachment to a server, borrowed.
pub(crate) struct Current(RwLockReadGuard<'static, Option<Attachment>>);

impl std::ops::Deref for Current {
    type Target = Attachment;
    fn deref(&self) -> &Attachment {
        // `link` gives out none that is empty.
        self.0.as_ref().expect("an attachment")
    }
}

fn tie(server: u16) -> &'static Tie {
    &TIES[usize::from(server) % SERVERS]
}

impl Tie {
    fn is_attached(&self) -> bool {
        self.state.load(Ordering::Acquire) == ATTACHED
    }

    /// The attachment of this process, or of the ancestor that attached last.
    fn link(&self) -> Option<Current> {
        // Fails only while the place is being given to another one, and then there is a new place.
        for _ in 0..1000 {
            let at = self.at.load(Ordering::Acquire) as usize;
            if let Ok(place) = ATTACHMENTS.get(at)?.try_read()
                && place.is_some()
            {
                return Some(Current(place));
            }
            std::hint::spin_loop();
        }
        None
    }

    /// The attachment of this process, renewed if there is a reason to.
    fn look(&self) -> Result<Current, Errno> {
        let attachment = self.link().ok_or(TO_KERNEL)?;
        if attachment.is_gone() {
            renew(attachment)
        } else if attachment.is_lost() {
            let server = attachment.server();
            drop(attachment);
            attach_again(server)
        } else {
            Ok(attachment)
        }
    }
}

/// The home of this process.
#[inline]
pub(crate) fn home() -> u16 {
    HOME.load(Ordering::Relaxed) as u16
}

/// How many transport servers there are.
#[inline]
pub(crate) fn servers() -> u16 {
    COUNT.load(Ordering::Relaxed) as u16
}

/// All servers that may have something for this process, those about to leave too; the home first, in an order that
/// goes round.
pub(crate) fn all_from_home() -> impl Iterator<Item = u16> + Clone {
    let (home, servers) = (home(), (REACH.load(Ordering::Acquire) as u16).max(servers()));
    (0..servers).map(move |step| (home % servers + step) % servers)
}

/// The path of a server's attach socket.
pub(super) fn path(server: u16) -> Option<Vec<u8>> {
    PATH.get().map(|path| control::attach_path(path, server))
}

/// Whether calls may concern the service at all.
#[inline]
pub fn is_attached() -> bool {
    STATE.load(Ordering::Acquire) != NONE
}

/// The token of our trust domain, to hand on by the environment.
pub fn domain() -> Option<DomainToken> {
    is_attached().then(|| tie(home()).link().map(|attachment| attachment.domain)).flatten()
}

/// Attaches this process to the service at a path, that of server 0. `domain` is the token of the
/// trust domain to join, from the environment; zero: a new one. Once attached it does nothing.
///
/// # Errors
/// When there is no service, or it refuses; the library then leaves everything to the kernel.
pub fn attach(path: &[u8], domain: DomainToken) -> Result<(), AttachError> {
    if is_attached() {
        return Ok(());
    }
    let _: Result<(), Vec<u8>> = PATH.set(path.to_vec());
    settle(find_home(domain)?);
    door::find(path);
    tell_of_new_program();
    Ok(())
}

/// The attachment to the home of this process. A forked child makes it here, and so does a process
/// whose server has died once there is another; until then it gets the dead one.
///
/// # Errors
/// [`TO_KERNEL`] without a service; `ECONNRESET` when it has gone.
pub(crate) fn current() -> Result<Current, Errno> {
    crate::fork::notice_unseen();
    let tie = tie(home());
    let found = if tie.is_attached() { tie.look() } else { attach_child(None) }?;
    if found.is_gone() && leaves(found.server()) { move_home(found) } else { Ok(found) }
}

/// The attachment to a server, as [`current`]; made here if there is none yet.
///
/// # Errors
/// As [`current`].
pub(crate) fn of(server: u16) -> Result<Current, Errno> {
    crate::fork::notice_unseen();
    let tie = tie(server);
    if tie.is_attached() { tie.look() } else { attach_to(server) }
}

/// As [`of`], for a call about a connection that the server keeps: a forked child without a home makes
/// its home there, because most children have one connection and need no other server.
///
/// # Errors
/// As [`current`].
pub(crate) fn near(server: u16) -> Result<Current, Errno> {
    crate::fork::notice_unseen();
    let tie = tie(server);
    if tie.is_attached() {
        return tie.look();
    }
    if is_forked() {
        drop(attach_child(Some(server))?);
    }
    of(server)
}

/// The attachment to a server, if there is one.
pub(crate) fn existing(server: u16) -> Option<Current> {
    let tie = tie(server);
    tie.is_attached().then(|| tie.link()).flatten()
}

/// Attaches to every server that can be reached now; what is at hand of the others comes later.
///
/// # Errors
/// When the home is out of reach.
pub(crate) fn all() -> Result<(), Errno> {
    drop(current()?);
    for server in 0..servers() {
        let _: Result<Current, Errno> = of(server);
    }
    Ok(())
}

/// As [`current`], for calls that open something: waits for another server, if one is expected.
pub(crate) fn present() -> Result<Current, Errno> {
    wait_for(current)
}

/// As [`of`], for calls that open something.
pub(crate) fn present_of(server: u16) -> Result<Current, Errno> {
    let until_us = sys::clock_monotonic_us() + PATIENCE_US;
    while !tie(server).is_attached()
        && !ATTACHING.is_held_by_caller()
        && current()?.memory().now().of(server).is_some_and(|epoch| epoch::is_between(epoch.get()))
        && sys::clock_monotonic_us() < until_us
    {
        sleep_ms(2);
    }
    wait_for(|| of(server))
}

/// For calls that open something and may be made again: the server after one that died over such a
/// call.
///
/// # Errors
/// What the call said, unless that is the reason and another server has come.
#[cold]
pub(crate) fn successor(dead: &Attachment, errno: Errno) -> Result<Current, Errno> {
    if errno != SERVICE_GONE {
        return Err(errno);
    }
    if has_left(dead.server()) {
        // What was asked of it is asked of another.
        return present();
    }
    if !dead.is_awaited() {
        return Err(errno);
    }
    let next = present_of(dead.server())?;
    if next.serial() == dead.serial() { Err(errno) } else { Ok(next) }
}

/// Longest wait for another server, in microseconds: a program that is told of an error tries again
/// by itself.
const PATIENCE_US: u64 = 2_000_000;

fn wait_for(attachment: impl Fn() -> Result<Current, Errno>) -> Result<Current, Errno> {
    let until_us = sys::clock_monotonic_us() + PATIENCE_US;
    loop {
        let attachment = attachment()?;
        // Whoever is in the middle of attaching is who would have to attach to the next one, too.
        let hopeless =
            matches!(attachment.fate(), Fate::Alive | Fate::Over) || ATTACHING.is_held_by_caller();
        if hopeless || sys::clock_monotonic_us() >= until_us {
            return Ok(attachment);
        }
        drop(attachment);
        sleep_ms(2);
    }
}

/// The serial of the present attachment to the home, without a look at it.
#[inline]
pub(crate) fn present_serial() -> u32 {
    PRESENT.load(Ordering::Acquire)
}

/// Whether a server is dead.
pub(crate) fn is_gone(server: u16) -> bool {
    tie(server).link().is_some_and(|attachment| attachment.is_gone())
}

/// The present epoch of a server, as the supervisor says it.
pub(crate) fn epoch_of(server: u16) -> Option<u32> {
    let home = tie(home()).link()?;
    home.memory().now().of(server).map(|epoch| epoch.get())
}

/// Whether this thread is in the middle of attaching.
pub(crate) fn is_attaching() -> bool {
    ATTACHING.is_held_by_caller()
}

/// Keeps other threads from attaching anew.
///
/// # Errors
/// `EAGAIN` when this thread is at that itself.
pub(crate) fn hold() -> Result<Guard<'static, ()>, Errno> {
    ATTACHING.lock()
}

/// Whether a server is dead and another is expected in its place, without a look at it.
pub(crate) fn is_between(server: u16) -> bool {
    let now = tie(home()).link().and_then(|home| home.memory().now().of(server));
    now.is_some_and(|epoch| epoch::is_between(epoch.get()))
}

/// Whether this process is a child that has yet to attach.
fn is_forked() -> bool {
    STATE.load(Ordering::Relaxed) == FORKED
}

/// Whether this process is a child that has yet to attach to a server its ancestor was attached to.
#[inline]
pub(crate) fn is_forked_from(server: u16) -> bool {
    tie(server).state.load(Ordering::Relaxed) == FORKED
}

// --- making attachments ------------------------------------------------------------------------

/// A fresh control connection: over the one to the same server that we have from an ancestor, which
/// needs no path, else by the path.
fn reach(server: u16) -> Result<Fd, Errno> {
    let tie = tie(server);
    if tie.state.load(Ordering::Acquire) == FORKED
        && let Some(parent) = tie.link()
        && !parent.is_gone()
        && let Ok(control) = parent.control.lock()
        && control.is_ours()
    {
        let (ours, theirs) = sys::socketpair_seqpacket()?;
        let message = ControlRequest::AttachChild.encode();
        if control::send(control.raw(), &message, &[theirs.raw()]).is_ok() {
            return Ok(ours);
        }
    }
    door::call(server)
}

/// The memory of the last attachment to a server.
fn memory_of(server: u16) -> Option<Arc<Memory>> {
    tie(server).link().map(|attachment| Arc::clone(attachment.memory()))
}

/// HELLO to a server, without a home.
fn knock(server: u16, domain: DomainToken, identity: Identity) -> Result<Greeting, AttachError> {
    // The supervisor's socket takes a HELLO in the place of a dead server, and nobody answers until the next one.
    if tie(home()).link().is_some() && !is_up(server) {
        return Err(AttachError::Unreachable(SERVICE_GONE));
    }
    let control = reach(server).map_err(AttachError::Unreachable)?;
    let greeting = greet(control, domain, identity, memory_of(server).as_ref());
    note_end(server, greeting)
}

/// A server that dies at the sight of a forked child is not reached over its parent's connection
/// again.
fn note_end(server: u16, greeting: Result<Greeting, AttachError>) -> Result<Greeting, AttachError> {
    let ended = [Errno::EPIPE, Errno::ECONNRESET].map(AttachError::Refused);
    if greeting.as_ref().is_err_and(|error| ended.contains(error))
        && is_forked_from(server)
        && let Some(parent) = tie(server).link()
    {
        parent.note_gone();
    }
    greeting
}

type Found = (Box<Attachment>, u16);

fn welcomed(greeting: Greeting) -> Option<Found> {
    match greeting {
        Greeting::Welcome(attachment, servers) => Some((attachment, servers)),
        Greeting::Home(..) => None,
    }
}

/// The home of a process that has none: server 0 says which. Who cannot go there stays where it has
/// asked; who cannot even ask stays with a server of its ancestor's.
fn find_home(domain: DomainToken) -> Result<Found, AttachError> {
    let nonsense = AttachError::Refused(Errno::EPROTO);
    let stranger = Identity::default();
    let error = match knock(0, domain, stranger) {
        Ok(Greeting::Welcome(attachment, servers)) => return Ok((attachment, servers)),
        Ok(Greeting::Home(server, control)) => {
            if let Some(found) = knock(server, domain, stranger).ok().and_then(welcomed) {
                return Ok(found);
            }
            let again = greet(control, domain, stranger, memory_of(0).as_ref())?;
            return welcomed(again).ok_or(nonsense);
        }
        Err(error) => error,
    };
    let ancestors = (1..servers()).filter(|server| is_forked_from(*server));
    let mut found = ancestors.filter_map(|server| welcomed(knock(server, domain, stranger).ok()?));
    found.next().ok_or(error)
}

/// As [`find_home`]; when a server has died in the middle of it, or was dead before, the next one is
/// waited for.
fn find_home_patiently(domain: DomainToken) -> Result<Found, AttachError> {
    let until_us = sys::clock_monotonic_us() + PATIENCE_US;
    loop {
        let error = match find_home(domain) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        if !is_home_expected() || TIRED.load(Ordering::Relaxed) {
            return Err(error);
        }
        if sys::clock_monotonic_us() >= until_us {
            TIRED.store(true, Ordering::Relaxed);
            return Err(error);
        }
        sleep_ms(2);
    }
}

/// Whether the server that is to be asked for a home is dead, and its successor is expected.
fn is_home_expected() -> bool {
    tie(home()).link().is_some_and(|ancestors| {
        // One that lives and lets nobody in is not expected for ever.
        ancestors.fate() == Fate::Awaited
            || ancestors.fate() == Fate::Replaced && {
                ancestors.may_try();
                ancestors.fate() == Fate::Replaced
            }
    }) || changes::is_awaited()
}

/// Whether a call has failed because this process is a child that cannot have a home yet, but is to have one: a
/// wait goes on.
#[cold]
pub(crate) fn is_awaited_by_child(errno: Errno) -> bool {
    errno == SERVICE_GONE && is_forked() && is_home_expected()
}

/// Makes this process at home with an attachment.
fn settle((attachment, servers): Found) {
    let (server, identity, serial) =
        (attachment.server(), attachment.identity, attachment.serial());
    NAME[0].store(identity.name, Ordering::Relaxed);
    NAME[1].store(identity.proof, Ordering::Relaxed);
    let _: Result<(), EpochReader> = GROWTH.set(attachment.memory().now().clone());
    publish(*attachment);
    let servers = u32::from(servers).clamp(1, SERVERS as u32);
    COUNT.store(servers, Ordering::Release);
    REACH.fetch_max(servers, Ordering::AcqRel);
    hear_of_changes();
    let changes = GROWTH.get().map_or(0, EpochReader::changes);
    match changes & 0xffff {
        // What the server says may be older.
        now if now != 0 && now != servers || u32::from(server) >= servers => {
            FOLLOWED.store(servers, Ordering::Release);
        }
        // A child has listeners that its ancestor may not have opened everywhere yet.
        _ => {
            let _: Result<u32, u32> =
                FOLLOWED.compare_exchange(0, changes, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
    HOME.store(u32::from(server), Ordering::Relaxed);
    PRESENT.store(serial, Ordering::Release);
    STATE.store(ATTACHED, Ordering::Release);
    TIRED.store(false, Ordering::Relaxed);
}

/// The program before this one in the same process may have been attached to other servers; they
/// cannot see that it is gone.
fn tell_of_new_program() {
    let message = ControlRequest::NewProgram { name: NAME[0].load(Ordering::Relaxed) }.encode();
    for server in (0..servers()).filter(|server| *server != home()) {
        // The next server knows nothing of it.
        if is_up(server)
            && let Some(path) = path(server)
            && let Ok(control) = sys::unix_connect_seqpacket(&path)
        {
            let _: Result<(), Errno> = control::send(control.raw(), &message, &[]);
        }
    }
}

/// Whether a server lives, as the supervisor says.
fn is_up(server: u16) -> bool {
    let home = tie(home()).link();
    let epoch = home.and_then(|home| home.memory().now().of(server));
    epoch.is_some_and(|epoch| epoch::is_up(epoch.get()))
}

/// A home at a server of the child's own choice.
fn choose_home(server: u16, domain: DomainToken) -> Option<Found> {
    let settler = Identity { name: 0, proof: CHOSEN_HOME };
    is_up(server).then(|| welcomed(knock(server, domain, settler).ok()?)).flatten()
}

/// Attaches a forked child to its home, at the server that it wishes if that lives. What it is told of
/// the connections that it has from its parent comes from their own servers, when it looks at them.
#[cold]
fn attach_child(wish: Option<u16>) -> Result<Current, Errno> {
    if !is_attached() {
        return Err(TO_KERNEL);
    }
    let behind_times = {
        let _one = ATTACHING.lock()?;
        if !is_forked() {
            return tie(home()).link().ok_or(TO_KERNEL);
        }
        let domain = domain().ok_or(TO_KERNEL)?;
        let chosen = wish.and_then(|server| choose_home(server, domain));
        let (attachment, servers) = match chosen {
            Some(found) => found,
            None => find_home_patiently(domain).map_err(|_| SERVICE_GONE)?,
        };
        if attachment.domain != domain {
            return Err(SERVICE_GONE);
        }
        let server = attachment.server();
        let behind_times = is_behind_times(&attachment);
        settle((attachment, servers));
        crate::fork::attached_in_child();
        arrive(server)?;
        behind_times
    };
    if behind_times {
        crate::fork::attached_again(home());
    }
    tie(home()).link().ok_or(TO_KERNEL)
}

/// Attaches to a server beside the home.
#[cold]
fn attach_to(server: u16) -> Result<Current, Errno> {
    // A child goes home first, for its name.
    if is_forked() || !is_attached() {
        drop(attach_child(None)?);
    }
    if server >= EPOCH_SERVERS {
        return Err(Errno::EPROTO);
    }
    if server >= servers() {
        // Here a lock may be held, so that the listeners follow with a later call.
        hear_of_changes();
    }
    // Nobody would answer in the place of a dead server.
    if !is_up(server) {
        return Err(SERVICE_GONE);
    }
    let behind_times = {
        let _one = ATTACHING.lock()?;
        let tie = tie(server);
        if tie.is_attached() {
            return tie.link().ok_or(TO_KERNEL);
        }
        let attachment = greet_by_name(server, reach(server).map_err(|_| SERVICE_GONE)?)?;
        let behind_times = is_behind_times(&attachment);
        publish(*attachment);
        arrive(server)?;
        behind_times
    };
    if behind_times {
        crate::fork::attached_again(server);
    }
    tie(server).link().ok_or(TO_KERNEL)
}

/// HELLO under the name that this process has, in the domain that it is in.
fn greet_by_name(server: u16, control: Fd) -> Result<Box<Attachment>, Errno> {
    let domain = domain().ok_or(TO_KERNEL)?;
    let [name, proof] = [0, 1].map(|at| NAME[at].load(Ordering::Relaxed));
    let identity = Identity { name, proof };
    let greeting = note_end(server, greet(control, domain, identity, memory_of(server).as_ref()));
    let found = welcomed(greeting.map_err(|_| SERVICE_GONE)?);
    // In another domain our sockets would not be found.
    let right = |one: &Attachment| one.domain == domain && one.server() == server;
    found.map(|(attachment, _)| attachment).filter(|one| right(one)).ok_or(SERVICE_GONE)
}

/// Whether the server has died since an ancestor attached to it.
fn is_behind_times(attachment: &Attachment) -> bool {
    let before = tie(attachment.server()).link();
    before.is_some_and(|before| before.epoch() != attachment.epoch())
}

/// A child or a process is attached to a server for the first time. What the server does not know
/// because it is not the one that an ancestor knew, or was dead when it was to be told, it hears now.
fn arrive(server: u16) -> Result<(), Errno> {
    let attachment = tie(server).link().ok_or(TO_KERNEL)?;
    crate::fork::attached_to(&attachment);
    crate::restore::all(&attachment);
    Ok(())
}

/// The server is dead: attaches to its successor, once there is one.
#[cold]
fn renew(old: Current) -> Result<Current, Errno> {
    // What cannot be tried is not counted as tried.
    if old.fate() != Fate::Replaced || ATTACHING.is_held_by_caller() || !old.may_try() {
        return Ok(old);
    }
    let server = old.server();
    drop(old);
    {
        let Ok(_one) = ATTACHING.lock() else { return tie(server).link().ok_or(TO_KERNEL) };
        let old = tie(server).link().ok_or(TO_KERNEL)?;
        // Another thread may have been faster.
        if old.fate() != Fate::Replaced {
            return Ok(old);
        }
        let Ok(new) = door::call(server).and_then(|control| greet_by_name(server, control)) else {
            return Ok(old);
        };
        drop(old);
        publish(*new);
        crate::restore::all(&*tie(server).link().ok_or(TO_KERNEL)?);
    }
    crate::fork::attached_again(server);
    retire();
    tie(server).link().ok_or(TO_KERNEL)
}

/// Attaches anew where the program has closed the descriptors of the old attachment. To the service
/// this is another process, so what the old one held is marked as shared first: the messages lie
/// in the old ring, which is read before the new process is let in.
#[cold]
fn attach_again(server: u16) -> Result<Current, Errno> {
    {
        let _one = ATTACHING.lock()?;
        let old = tie(server).link().ok_or(TO_KERNEL)?;
        if !old.is_lost() {
            return Ok(old);
        }
        placeholder::share_all(&old);
        if let Some(path) = path(0) {
            // Closed with the others, perhaps.
            door::find(&path);
        }
        let Ok(new) = door::call(server).and_then(|control| greet_by_name(server, control)) else {
            old.note_gone();
            old.lost.store(false, Ordering::Release);
            return Err(SERVICE_GONE);
        };
        old.channel().sender().abandon();
        old.channel().wake_offer_waiters();
        drop(old);
        publish(*new);
    }
    placeholder::forget_templates();
    crate::fork::attached_again(server);
    tie(server).link().ok_or(TO_KERNEL)
}

// --- their places ------------------------------------------------------------------------------

fn is_occupied(place: usize) -> bool {
    OCCUPIED[place / 64].load(Ordering::Acquire) & 1 << (place % 64) != 0
}

fn note_occupied(place: usize, occupied: bool) {
    let bit = 1 << (place % 64);
    let _: u64 = match occupied {
        true => OCCUPIED[place / 64].fetch_or(bit, Ordering::AcqRel),
        false => OCCUPIED[place / 64].fetch_and(!bit, Ordering::AcqRel),
    };
}

fn is_present(place: usize) -> bool {
    TIES.iter().any(|tie| tie.at.load(Ordering::Acquire) as usize == place)
}

/// Makes an attachment the present one to its server. Those that nobody uses any more go.
fn publish(attachment: Attachment) {
    let (server, serial) = (attachment.server(), attachment.serial());
    // It may be one that is about to leave, which those that are open do not reach to.
    REACH.fetch_max(u32::from(server) + 1, Ordering::AcqRel);
    let mut spare = Some(attachment);
    // Those of the past that are still used go last.
    let free = (0..PLACES).filter(|index| !is_occupied(*index));
    for index in free.chain(0..PLACES) {
        if spare.is_none() {
            break;
        }
        if is_present(index) {
            continue;
        }
        let Ok(mut place) = ATTACHMENTS[index].try_write() else { continue };
        let old = std::mem::replace(&mut *place, spare.take());
        note_occupied(index, true);
        let tie = tie(server);
        // Before the place is free for all, so that nobody takes it for one of the past.
        tie.at.store(index as u32, Ordering::Release);
        drop(place);
        tie.state.store(ATTACHED, Ordering::Release);
        if server == home() && STATE.load(Ordering::Acquire) == ATTACHED {
            PRESENT.store(serial, Ordering::Release);
        }
        drop(old);
    }
    retire();
}

/// Drops attachments of the past that nobody uses any more.
fn retire() {
    for (index, place) in ATTACHMENTS.iter().enumerate() {
        if is_occupied(index)
            && !is_present(index)
            && let Ok(mut place) = place.try_write()
        {
            let old = place.take();
            note_occupied(index, false);
            drop(place);
            drop(old);
        }
    }
}

// --- fork --------------------------------------------------------------------------------------

/// In a forked child: the channels are the parent's from now on.
pub(crate) fn set_forked() {
    for tie in TIES.iter().filter(|tie| tie.is_attached()) {
        if let Some(attachment) = tie.link() {
            attachment.channel().sender().abandon();
        }
        tie.state.store(FORKED, Ordering::Release);
    }
    if is_attached() {
        PRESENT.store(u32::MAX, Ordering::Release);
        STATE.store(FORKED, Ordering::Release);
    }
}

/// Before a fork: no exchange may be half done in the child.
pub(crate) fn hold_for_fork() {
    FOLLOWING.hold_for_fork();
    ATTACHING.hold_for_fork();
    door::hold_for_fork();
    for attachment in TIES.iter().filter_map(Tie::link) {
        attachment.offers.hold_for_fork();
        attachment.control.hold_for_fork();
    }
}

/// After a fork, on both sides.
pub(crate) fn release_after_fork() {
    for attachment in TIES.iter().filter_map(Tie::link) {
        attachment.control.release_after_fork();
        attachment.offers.release_after_fork();
    }
    door::release_after_fork();
    ATTACHING.release_after_fork();
    FOLLOWING.release_after_fork();
}
