//! poll(2), and select through it, over sets of both worlds. A call that has to sleep borrows a
//! lookout from the pool, a watcher for each server that knows one of our sockets, has the servers
//! report to them, and sleeps in one kernel poll over the kernel's descriptors and the watchers'
//! doorbells.
//!
//! What a watcher has been told to watch is remembered with it, so that a loop over the same set
//! sends nothing after its first turn. Used by the shim, and by `accept.rs` for dual listeners.

use std::time::Duration;

use haypile_shm::Errno;
use haypile_shm::messages::RequestBody;
use haypile_shm::spin::{Gaps, Spinner};
use haypile_shm::sys::{self, PollFd};

use crate::attach::{self, Attachment, Current, Fate};
use crate::datagram::{self, World};
use crate::descriptors::{self, Owner};
use crate::entry::{self, Phase, Pinned, flag};
use crate::lock::Lock;
use crate::sleep::{Restarting, Sleeper};
use crate::watchers::Watcher;
use crate::{accept, epoll, following, readiness};

/// Watchers kept for later calls.
const POOL: usize = 16;
/// Sockets that a pooled watcher may go on watching between calls.
const REMEMBERED: usize = 64;
/// Without a watcher to sleep on, the sockets are looked at so often.
const BLIND_SLICE: Duration = Duration::from_millis(2);
/// The longest sleep without a service.
const GONE_SLICE: Duration = Duration::from_secs(1);

/// Watchers, one a server, and what they have been told to watch.
#[derive(Debug, Default)]
struct Lookout {
    posts: Vec<Post>,
}

/// A watcher and what it has been told to watch.
#[derive(Debug)]
struct Post {
    watcher: Watcher,
    watched: Vec<Watched>,
    /// Its doorbell's place in the kernel's array of the present call.
    bell_place: usize,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Watched {
    slot: u32,
    generation: u32,
    mask: u32,
}

static LOOKOUTS: Lock<Vec<Lookout>> = Lock::new(Vec::new());

/// One of our sockets in a poll set.
struct Ours {
    /// Its place in the application's array.
    place: usize,
    socket: Pinned,
    wanted: u32,
    /// The place of its kernel half in the kernel's array.
    kernel_place: Option<usize>,
}

/// Waits until a descriptor is readable in either world.
///
/// # Errors
/// `EAGAIN` when the time is over, `EBADF` if it was closed meanwhile, or the errno of the sleep.
pub(crate) fn until_readable(
    fd: i32,
    deadline_ns: Option<u64>,
    sleeper: &mut dyn Sleeper,
) -> Result<(), Errno> {
    let left = deadline_ns.map(|deadline_ns| {
        Duration::from_nanos(deadline_ns.saturating_sub(sys::clock_monotonic_ns()))
    });
    let mut fds = [PollFd { fd, events: libc::POLLIN, revents: 0 }];
    let ready = match left {
        None => poll(&mut fds, None, &mut Restarting(sleeper)),
        left => poll(&mut fds, left, sleeper),
    };
    match ready? {
        0 => Err(Errno::EAGAIN),
        _ if fds[0].revents & libc::POLLNVAL != 0 => Err(Errno::EBADF),
        _ => Ok(()),
    }
}

/// Whether a poll set has a descriptor that is not the kernel's alone.
pub fn any_ours(fds: &[PollFd]) -> bool {
    fds.iter().any(|entry| entry.fd >= 0 && !descriptors::is_kernel(entry.fd))
}

/// A poll set taken apart.
struct Set {
    ours: Vec<Ours>,
    /// The kernel's part, with the place of each in the application's array; `None` for the kernel
    /// half of a dual listener, which answers through `ours`.
    kernel: Vec<PollFd>,
    places: Vec<Option<usize>>,
    /// There is a listener, and there were so many servers when it was looked at.
    listens: bool,
    servers: u16,
}

impl Set {
    fn of(fds: &mut [PollFd]) -> Set {
        let mut set = Set {
            ours: Vec::new(),
            kernel: Vec::new(),
            places: Vec::new(),
            listens: false,
            servers: attach::servers(),
        };
        for (place, entry) in fds.iter_mut().enumerate() {
            entry.revents = 0;
            match descriptors::owner(entry.fd) {
                Owner::Socket(_) => set.add_socket(place, entry),
                Owner::Epoll(index) => {
                    epoll::nest(index, entry.fd);
                    set.add_kernel(Some(place), entry);
                }
                Owner::Kernel => set.add_kernel(Some(place), entry),
                Owner::Internal => entry.revents = libc::POLLNVAL,
            }
        }
        set
    }

    fn add_kernel(&mut self, place: Option<usize>, entry: &PollFd) {
        self.kernel.push(PollFd { fd: entry.fd, events: entry.events, revents: 0 });
        self.places.push(place);
    }

    fn add_socket(&mut self, place: usize, entry: &PollFd) {
        let Ok(socket) = entry::ours(entry.fd) else {
            return self.add_kernel(Some(place), entry);
        };
        let mut kernel_place = None;
        if socket.phase() == Phase::Listening {
            attach::follow_changes();
            let _: Result<(), Errno> = accept::register(&socket);
            (self.listens, self.servers) = (true, attach::servers());
            if socket.has(flag::DUAL) {
                kernel_place = Some(self.kernel.len());
                self.add_kernel(None, entry);
                socket.set(flag::WATCHED);
            }
        }
        let wanted = u32::from(entry.events as u16);
        if socket.has(flag::DATAGRAM) {
            datagram::bring_back(&socket);
            if socket.world() == World::Kernel {
                return self.add_kernel(Some(place), entry);
            }
            if let Some(wish) = datagram::kernel_wish(&socket, wanted) {
                kernel_place = Some(self.kernel.len());
                let half = PollFd { fd: entry.fd, events: wish as u16 as i16, revents: 0 };
                self.add_kernel(None, &half);
            }
        }
        self.ours.push(Ours { place, socket, wanted, kernel_place });
    }

    /// Looks at our sockets; how many are ready.
    fn look(&self, fds: &mut [PollFd]) -> usize {
        let mut ready = 0;
        for ours in &self.ours {
            let always = (libc::POLLERR | libc::POLLHUP) as u32;
            let mut bits = readiness::of_socket(&ours.socket, ours.wanted) & (ours.wanted | always);
            if let Some(place) = ours.kernel_place
                && ours.socket.has(flag::DATAGRAM)
            {
                bits |= u32::from(self.kernel[place].revents as u16) & (ours.wanted | always);
            } else if let Some(place) = ours.kernel_place
                && self.kernel[place].revents & libc::POLLIN != 0
            {
                ours.socket.set(flag::KERNEL_READY);
                bits |= libc::POLLIN as u32 & ours.wanted;
            }
            fds[ours.place].revents = bits as u16 as i16;
            ready += usize::from(bits != 0);
        }
        ready
    }

    /// Whether a connection is elsewhere and could not be followed there yet.
    fn any_moved(&self) -> bool {
        self.ours.iter().any(|ours| ours.socket.is_moved())
    }

    /// Copies what the kernel said to the application's array; how many of its own are ready.
    fn copy_kernel(&self, fds: &mut [PollFd]) -> usize {
        let mut ready = 0;
        for (entry, place) in self.kernel.iter().zip(&self.places) {
            if let Some(place) = place {
                fds[*place].revents = entry.revents;
                ready += usize::from(entry.revents != 0);
            }
        }
        ready
    }

    /// A look at everything without sleeping.
    fn look_at_all(&mut self, fds: &mut [PollFd]) -> Result<usize, Errno> {
        if !self.kernel.is_empty() {
            sys::ppoll(&mut self.kernel, Some(Duration::ZERO))?;
        }
        let invalid = fds.iter().filter(|entry| entry.revents & libc::POLLNVAL != 0).count();
        let kernel = self.copy_kernel(fds);
        Ok(invalid + kernel + self.look(fds))
    }
}

/// How long the waits of this process take.
static GAPS: Gaps = Gaps::new();

/// poll(2).
///
/// # Errors
/// The errno of the sleep, `EINTR` above all.
pub fn poll(
    fds: &mut [PollFd],
    timeout: Option<Duration>,
    sleeper: &mut dyn Sleeper,
) -> Result<usize, Errno> {
    let started_ns = sys::clock_monotonic_ns();
    let deadline_ns = timeout.map(|timeout| {
        started_ns.saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX))
    });
    loop {
        // Once more when the server has died meanwhile, or another has come.
        if let Some(ready) = poll_once(fds, started_ns, deadline_ns, sleeper)? {
            return Ok(ready);
        }
    }
}

/// One attempt; `None`: it has to be made again from the start.
fn poll_once(
    fds: &mut [PollFd],
    started_ns: u64,
    deadline_ns: Option<u64>,
    sleeper: &mut dyn Sleeper,
) -> Result<Option<usize>, Errno> {
    let mut set = Set::of(fds);
    let ready = set.look_at_all(fds)?;
    let over = |deadline_ns| sys::clock_monotonic_ns() >= deadline_ns;
    if ready > 0 || deadline_ns.is_some_and(over) {
        return Ok(Some(ready));
    }
    if let Some(first) = set.ours.iter().find(|one| one.socket.phase() == Phase::Stream) {
        // A child that waits for its connection needs the server of that. (Its end is seen anyway.)
        let _: Result<Current, Errno> = first.socket.attachment();
    }
    let attachment = match attach::current() {
        Err(errno) if attach::is_awaited_by_child(errno) => {
            return rest(&mut set, fds, deadline_ns, sleeper);
        }
        attachment => attachment?,
    };
    if !set.ours.is_empty()
        && let Some(patience_ns) = attachment.patience_ns(&GAPS)
        && Spinner::new(started_ns, patience_ns).until(|| set.look(fds) > 0)
    {
        GAPS.note(sys::clock_monotonic_ns() - started_ns);
        return set.look_at_all(fds).map(Some);
    }
    sleeper.hold();
    let followed = following::count();
    let mut lookout = if set.ours.is_empty() { None } else { Some(borrow()) };
    let seen = lookout.as_mut().is_none_or(|lookout| lookout.watch(&set.ours));
    let watched = Watching { seen, followed };
    let outcome = wait(&attachment, &mut set, fds, lookout.as_mut(), watched, deadline_ns, sleeper);
    if let Some(lookout) = lookout {
        give_back(lookout);
    }
    GAPS.note(sys::clock_monotonic_ns() - started_ns);
    outcome
}

/// A child that can have no home yet sleeps over the kernel's descriptors for a moment.
#[cold]
fn rest(
    set: &mut Set,
    fds: &mut [PollFd],
    deadline_ns: Option<u64>,
    sleeper: &mut dyn Sleeper,
) -> Result<Option<usize>, Errno> {
    sleeper.hold();
    sleeper.poll(&mut set.kernel, slice(deadline_ns, Some(BLIND_SLICE)))?;
    let ready = set.copy_kernel(fds) + set.look(fds);
    let over = deadline_ns.is_some_and(|deadline_ns| sys::clock_monotonic_ns() >= deadline_ns);
    Ok((ready > 0 || over).then_some(ready))
}

/// What is watched.
#[derive(Copy, Clone, Debug)]
struct Watching {
    /// Everything of ours, so that a bell rings for it.
    seen: bool,
    /// The count of connections that had been followed when it was looked for.
    followed: u64,
}

/// Sleeps until something is ready.
fn wait(
    attachment: &Attachment,
    set: &mut Set,
    fds: &mut [PollFd],
    mut lookout: Option<&mut Lookout>,
    watched: Watching,
    deadline_ns: Option<u64>,
    sleeper: &mut dyn Sleeper,
) -> Result<Option<usize>, Errno> {
    if let Some(lookout) = &mut lookout {
        lookout.enter(&mut set.kernel);
    }
    loop {
        if let Some(lookout) = &mut lookout {
            lookout.prepare_sleep();
        }
        // Who was woken for it finds it here, whoever has taken the message.
        if set.listens && (attach::has_changed() || attach::servers() != set.servers) {
            if let Some(lookout) = &lookout {
                lookout.awake();
            }
            return Ok(None);
        }
        // The look after the announcement: what comes from now on rings.
        let ready = set.look(fds);
        if ready == 0 && watched.followed != following::count() {
            // A connection may be at another server than the one that reports it.
            if let Some(lookout) = &lookout {
                lookout.awake();
            }
            return Ok(None);
        }
        let seen = watched.seen && !set.any_moved();
        let news = lookout.as_mut().is_some_and(|lookout| lookout.has_news());
        if ready > 0 || news {
            if let Some(lookout) = &lookout {
                lookout.awake();
            }
            let ready = finish(set, fds)?;
            if ready > 0 {
                return Ok(Some(ready));
            }
            continue;
        }
        // Nobody rings any more for whose server is gone.
        let gone = attachment.is_gone().then_some(GONE_SLICE);
        let is_over = gone.is_some() && attachment.fate() == Fate::Over;
        let slice = slice(deadline_ns, if seen || is_over { gone } else { Some(BLIND_SLICE) });
        let slept = sleeper.poll(&mut set.kernel, slice);
        if let Some(lookout) = &lookout {
            lookout.awake();
        }
        slept?;
        if let Some(lookout) = &mut lookout
            && lookout.hear(&set.kernel)? == Heard::Death
        {
            return Ok(None);
        }
        let ready = set.copy_kernel(fds) + set.look(fds);
        let over = deadline_ns.is_some_and(|deadline_ns| sys::clock_monotonic_ns() >= deadline_ns);
        if ready > 0 || over {
            return Ok(Some(ready));
        }
        if !seen {
            // What could not be watched may be by now: its server is back.
            return Ok(None);
        }
    }
}

/// How long to sleep at most: until the deadline, and not longer than `longest`.
fn slice(deadline_ns: Option<u64>, longest: Option<Duration>) -> Option<Duration> {
    let left = deadline_ns.map(|deadline_ns| {
        Duration::from_nanos(deadline_ns.saturating_sub(sys::clock_monotonic_ns()))
    });
    left.into_iter().chain(longest).min()
}

/// The last look, with the kernel's part as it is now.
fn finish(set: &mut Set, fds: &mut [PollFd]) -> Result<usize, Errno> {
    sys::ppoll(&mut set.kernel, Some(Duration::ZERO))?;
    Ok(set.copy_kernel(fds) + set.look(fds))
}

/// What the doorbells say.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Heard {
    /// Look.
    News,
    /// A server is dead.
    Death,
}

impl Lookout {
    /// Puts the doorbells into the kernel's array.
    fn enter(&mut self, kernel: &mut Vec<PollFd>) {
        for post in &mut self.posts {
            post.bell_place = kernel.len();
            kernel.push(PollFd { fd: post.watcher.bell(), events: libc::POLLIN, revents: 0 });
        }
    }

    /// Takes what was reported and announces sleep.
    fn prepare_sleep(&mut self) {
        for post in &mut self.posts {
            if let Some(attachment) = attach::existing(post.watcher.server()) {
                post.watcher.drain(&attachment, |_| {});
            }
            post.watcher.prepare_sleep();
        }
    }

    fn awake(&self) {
        self.posts.iter().for_each(|post| post.watcher.awake());
    }

    fn has_news(&mut self) -> bool {
        self.posts.iter_mut().any(|post| !post.watcher.is_empty())
    }

    /// Takes the rings of the doorbells after a sleep. One whose server has died would ring for ever, and goes.
    fn hear(&mut self, kernel: &[PollFd]) -> Result<Heard, Errno> {
        let mut heard = Heard::News;
        for at in (0..self.posts.len()).rev() {
            let post = &self.posts[at];
            if kernel[post.bell_place].revents == 0 || post.watcher.quiet_bell() {
                continue;
            }
            let attachment = attach::existing(post.watcher.server());
            let attachment = attachment.filter(|one| post.watcher.belongs_to(one));
            if !post.watcher.has_bell() {
                // The program has closed it; a new wait makes another.
                if let Some(attachment) = attachment {
                    attachment.note_lost();
                }
                return Err(Errno::EINTR);
            }
            if let Some(attachment) = attachment {
                attachment.note_gone();
            }
            self.posts.swap_remove(at);
            heard = Heard::Death;
        }
        Ok(heard)
    }

    /// Has the servers report these sockets. False: not all could be.
    fn watch(&mut self, ours: &[Ours]) -> bool {
        let mut seen = true;
        for ours in ours {
            let mut known = false;
            ours.socket.for_each_name(|attachment, name| {
                if let Some(post) = self.post(attachment) {
                    post.watch(attachment, name, ours.wanted);
                    known = true;
                } else {
                    seen = false;
                }
            });
            // Without a record there is nothing to report, and with a dead server nobody to.
            seen &= known || !ours.socket.has_record();
        }
        self.forget(ours);
        seen
    }

    /// The watcher of a server, made if there is none; `None` if there can be none.
    fn post(&mut self, attachment: &Attachment) -> Option<&mut Post> {
        if attachment.is_gone() {
            return None;
        }
        let server = attachment.server();
        let known = self.posts.iter().position(|post| post.watcher.server() == server);
        let at = match known {
            Some(at) if self.posts[at].watcher.belongs_to(attachment) => at,
            other => {
                if let Some(at) = other {
                    self.posts.swap_remove(at);
                }
                let watcher = Watcher::new(attachment).ok()?;
                self.posts.push(Post { watcher, watched: Vec::new(), bell_place: 0 });
                self.posts.len() - 1
            }
        };
        self.posts.get_mut(at)
    }

    /// Where more is watched than can be remembered, stops watching what is not in the present set.
    fn forget(&mut self, ours: &[Ours]) {
        for post in &mut self.posts {
            if post.watched.len() > REMEMBERED.max(ours.len())
                && let Some(attachment) = attach::existing(post.watcher.server())
            {
                post.forget(&attachment, ours);
            }
        }
    }
}

impl Post {
    /// Has the server report a socket, unless it does already.
    fn watch(&mut self, attachment: &Attachment, (slot, generation): (u32, u32), wanted: u32) {
        let mask = readiness::watch_mask(wanted);
        let known = self.watched.iter_mut().find(|watched| watched.slot == slot);
        let mask = match known {
            Some(watched) if watched.generation == generation => {
                if watched.mask & mask == mask {
                    return;
                }
                watched.mask |= mask;
                watched.mask
            }
            Some(watched) => {
                *watched = Watched { slot, generation, mask };
                mask
            }
            None => {
                self.watched.push(Watched { slot, generation, mask });
                mask
            }
        };
        let body = RequestBody::Watch { watcher: self.watcher.number(), mask, one_shot: false };
        let _: Result<(), Errno> = attachment.tell(slot, generation, body);
    }

    /// Stops watching what is not in the present set.
    fn forget(&mut self, attachment: &Attachment, ours: &[Ours]) {
        let names = ours.iter().filter_map(|ours| ours.socket.name_in(attachment));
        let mut present: Vec<u32> = names.map(|name| name.0).collect();
        present.sort_unstable();
        let number = self.watcher.number();
        self.watched.retain(|watched| {
            let stays = present.binary_search(&watched.slot).is_ok();
            if !stays {
                let body = RequestBody::Unwatch { watcher: number };
                let _: Result<(), Errno> = attachment.tell(watched.slot, watched.generation, body);
            }
            stays
        });
    }
}

/// A lookout from the pool, or a new one.
fn borrow() -> Lookout {
    LOOKOUTS.lock().ok().and_then(|mut lookouts| lookouts.pop()).unwrap_or_default()
}

fn give_back(lookout: Lookout) {
    // Dropped outside the lock if there is no room: that sends a message.
    let mut spare = Some(lookout);
    if let Ok(mut lookouts) = LOOKOUTS.lock()
        && lookouts.len() < POOL
        && let Some(lookout) = spare.take()
    {
        lookouts.push(lookout);
    }
}

/// Makes what a poll sleeps on now, for a time when it cannot be made.
pub(crate) fn get_ready() {
    let mut lookout = borrow();
    for server in 0..attach::servers() {
        if let Some(attachment) = attach::existing(server) {
            // Without one, polls look at their sockets again and again.
            let _: Option<&mut Post> = lookout.post(&attachment);
        }
    }
    give_back(lookout);
}

/// In a forked child: the watchers are the parent's.
pub(crate) fn forget_all() {
    if let Ok(mut lookouts) = LOOKOUTS.lock() {
        lookouts.clear();
    }
}

pub(crate) fn hold_for_fork() {
    LOOKOUTS.hold_for_fork();
}

pub(crate) fn release_after_fork() {
    LOOKOUTS.release_after_fork();
}
