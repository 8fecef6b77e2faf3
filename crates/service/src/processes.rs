//! Attached processes: control connections, channels, doorbells, watchers' rings.
//!
//! Owns everything the service holds of a process apart from sockets. A control connection outlives
//! its process, because forked children inherit it and send theirs over it; the life of a process
//! is its pidfd. Called by `attach` (control messages), `requests` (rings) and `readiness`.

use std::collections::VecDeque;
use std::mem;
use std::os::fd::RawFd;

use haypile_shm::messages::{Offer, Ready, ReplyPayload};
use haypile_shm::sys::{self, Errno, Fd};
use haypile_shm::{Doorbell, Message, ServiceChannel};

use crate::slab::{Key, OwnMap, OwnSet, Slab};
use crate::sockets::Watch;
use haypile_engine::control::connection_manager::ProcessId;
use haypile_engine::control::names::ProcessName;

/// One attached process.
#[derive(Debug)]
pub struct Process {
    /// Process id in the kernel's words.
    pub pid: i32,
    /// Its name in all servers.
    pub name: ProcessName,
    /// Name of the program, as it says itself.
    pub program: String,
    /// Its trust domain.
    pub domain: Key,
    /// The network namespace that its placeholders are made in, by its cookie.
    pub namespace: Option<u64>,
    /// Readable once it has ended.
    pub pidfd: Fd,
    /// Requests, offers, replies, events.
    pub channel: ServiceChannel,
    /// Rung by the process when the service sleeps.
    pub wake: Doorbell,
    /// It rang since the last sleep of the service, and that is not taken yet.
    rung: bool,
    /// Sockets that it holds alone.
    pub sockets: OwnSet<Key>,
    /// Listeners that it has said it accepts from.
    pub accepts: OwnSet<Key>,
    /// Offers it has not answered, by listener.
    pub offers: OwnMap<Key, u32>,
    /// Which of all watchers ever opened each is, so that an old registration reaches no new watcher,
    /// of this process or of the next one with its number.
    watcher_serials: OwnMap<u32, u32>,
    /// Sockets whose READY found a full ring.
    backlogs: OwnMap<u32, VecDeque<Key>>,
}

/// A control connection.
#[derive(Debug)]
pub struct Connection {
    /// The socket.
    pub fd: Fd,
    /// The process that said HELLO on it.
    pub process: Option<ProcessId>,
    /// It was told of another home once; if it says HELLO again, it may stay.
    pub sent_home: bool,
}

/// All processes.
#[derive(Debug, Default)]
pub struct Processes {
    slab: Slab<Process>,
    /// By their names in all servers.
    names: OwnMap<ProcessName, ProcessId>,
    /// Control connections.
    pub connections: Slab<Connection>,
    /// Watchers to ring at the end of the turn.
    rings: Vec<(ProcessId, u32)>,
    /// Processes whose blocked accepts are to be woken at the end of the turn.
    acceptors: Vec<ProcessId>,
    /// Processes that rang, which is not taken yet.
    rung: Vec<ProcessId>,
    /// Processes whose shared memory contradicts itself; to be dropped.
    pub hostile: Vec<ProcessId>,
    /// Watchers opened so far, by all processes.
    watchers_opened: u32,
}

/// What became of a READY.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is queued, or was already, or is in the backlog.
    Yes,
    /// The watcher does not exist (any more): the registration is void.
    NoWatcher,
}

impl Processes {
    /// Adds a process; its number is in the answer. Numbers start at 1.
    pub fn insert(&mut self, process: Process) -> ProcessId {
        let name = process.name;
        let id = self.slab.insert(process).index() + 1;
        self.names.insert(name, id);
        id
    }

    /// Takes a process out.
    pub fn remove(&mut self, id: ProcessId) -> Option<Process> {
        let (key, process) = self.slab.at(id.checked_sub(1)?)?;
        // The name may be another's by now: the same process, attached anew.
        if self.names.get(&process.name) == Some(&id) {
            let name = process.name;
            self.names.remove(&name);
        }
        self.slab.remove(key)
    }

    /// The process of a name, if it is attached here.
    pub fn named(&self, name: ProcessName) -> Option<ProcessId> {
        self.names.get(&name).copied()
    }

    /// A process.
    pub fn get(&self, id: ProcessId) -> Option<&Process> {
        Some(self.slab.at(id.checked_sub(1)?)?.1)
    }

    /// A process, to be changed.
    pub fn get_mut(&mut self, id: ProcessId) -> Option<&mut Process> {
        let (key, _) = self.slab.at(id.checked_sub(1)?)?;
        self.slab.get_mut(key)
    }

    /// All processes with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (ProcessId, &Process)> {
        self.slab.iter().map(|(key, process)| (key.index() + 1, process))
    }

    /// Number of processes.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Numbers are at most this.
    pub fn highest(&self) -> ProcessId {
        self.slab.places()
    }

    /// Takes requests of a process from its ring; how many. A corrupt ring marks it hostile.
    pub fn take_requests(&mut self, id: ProcessId, out: &mut [Message]) -> usize {
        let Some(process) = self.get_mut(id) else { return 0 };
        let count = process.channel.next_requests(out);
        if count == 0 && process.channel.is_corrupt() {
            self.mark_hostile(id);
        }
        count
    }

    /// Whether any process has a request: the last look before the service sleeps.
    pub fn any_requests(&mut self) -> bool {
        (1..=self.highest())
            .any(|id| self.get_mut(id).is_some_and(|process| process.channel.has_requests()))
    }

    /// A process rings. True: that can be taken before the next sleep ([`Processes::next_rung`]); false:
    /// it was put off already.
    pub fn put_off(&mut self, id: ProcessId) -> bool {
        let first = self.get_mut(id).is_some_and(|process| !mem::replace(&mut process.rung, true));
        if first {
            self.rung.push(id);
        }
        first
    }

    /// One whose ring was put off.
    pub fn next_rung(&mut self) -> Option<ProcessId> {
        let id = self.rung.pop()?;
        if let Some(process) = self.get_mut(id) {
            process.rung = false;
        }
        Some(id)
    }

    /// The process contradicts itself in shared memory; it is dropped at the end of the turn.
    pub fn mark_hostile(&mut self, id: ProcessId) {
        if self.get(id).is_some() && !self.hostile.contains(&id) {
            self.hostile.push(id);
        }
    }

    /// Answers a request.
    pub fn reply(&mut self, id: ProcessId, cell: u32, payload: &ReplyPayload) {
        if let Some(process) = self.get_mut(id) {
            // A cell that nobody waits on is the application's own affair.
            let _: bool = process.channel.complete(cell, payload);
        }
    }

    // --- offers --------------------------------------------------------------------------------

    /// Sends an offer of a connection of `listener`. False: it takes no more.
    pub fn push_offer(&mut self, id: ProcessId, listener: Key, offer: &Offer) -> bool {
        let Some(process) = self.get_mut(id) else { return false };
        if !process.channel.push_offer(offer) {
            return false;
        }
        *process.offers.entry(listener).or_default() += 1;
        if !self.acceptors.contains(&id) {
            self.acceptors.push(id);
        }
        true
    }

    /// An offer was claimed, refused or revoked.
    pub fn offer_settled(&mut self, id: ProcessId, listener: Key) {
        let Some(process) = self.get_mut(id) else { return };
        if let Some(count) = process.offers.get_mut(&listener) {
            *count -= 1;
            if *count == 0 {
                process.offers.remove(&listener);
            }
        }
    }

    /// A listener is gone: nobody accepts from it.
    pub fn forget_listener(&mut self, listener: Key) {
        for id in 1..=self.highest() {
            if let Some(process) = self.get_mut(id) {
                process.accepts.remove(&listener);
            }
        }
    }

    /// Whether an offer for `listener` waits at the process.
    pub fn has_offer(&self, id: ProcessId, listener: Key) -> bool {
        self.get(id).is_some_and(|process| process.offers.contains_key(&listener))
    }

    // --- watchers ------------------------------------------------------------------------------

    /// Starts a watcher.
    ///
    /// # Errors
    /// As `ServiceChannel::open_watcher`; ENOENT without a process.
    pub fn open_watcher(&mut self, id: ProcessId, watcher: u32, bell: Fd) -> Result<(), Errno> {
        let process = self.get_mut(id).ok_or(Errno::ENOENT)?;
        process.channel.open_watcher(watcher, Doorbell::from_fd(bell))?;
        self.watchers_opened = self.watchers_opened.wrapping_add(1);
        let serial = self.watchers_opened;
        if let Some(process) = self.get_mut(id) {
            process.watcher_serials.insert(watcher, serial);
        }
        Ok(())
    }

    /// Ends a watcher.
    pub fn close_watcher(&mut self, id: ProcessId, watcher: u32) {
        if let Some(process) = self.get_mut(id) {
            process.channel.close_watcher(watcher);
            process.backlogs.remove(&watcher);
            process.watcher_serials.remove(&watcher);
        }
    }

    /// Which use of a watcher is current; `None` if it does not exist.
    pub fn watcher_serial(&self, id: ProcessId, watcher: u32) -> Option<u32> {
        self.get(id)?.watcher_serials.get(&watcher).copied()
    }

    /// Tells a watcher that a socket is worth a look, unless it will look anyway.
    pub fn tell(&mut self, watch: &mut Watch, socket: Key, ready: &Ready) -> Told {
        if self.watcher_serial(watch.process, watch.watcher) != Some(watch.serial) {
            return Told::NoWatcher;
        }
        let Some(process) = self.get_mut(watch.process) else { return Told::NoWatcher };
        let Some(ring) = process.channel.watcher(watch.watcher) else { return Told::NoWatcher };
        if watch.backlogged || watch.last.is_some_and(|position| ring.is_pending(position)) {
            return Told::Yes;
        }
        let mut pushed = ring.push(ready);
        // With others in the backlog the ring is marked, or DRAINED is on its way. Marking it once
        // more could take the mark away just before the consumer looks at it.
        let marked = process.backlogs.get(&watch.watcher).is_some_and(|others| !others.is_empty());
        if pushed.is_none() && !marked && !ring.mark_backlog() {
            pushed = ring.push(ready);
        }
        match pushed {
            Some(position) => watch.last = Some(position),
            None => {
                watch.backlogged = true;
                process.backlogs.entry(watch.watcher).or_default().push_back(socket);
            }
        }
        if process.channel.is_corrupt() {
            self.mark_hostile(watch.process);
        } else if !self.rings.contains(&(watch.process, watch.watcher)) {
            self.rings.push((watch.process, watch.watcher));
        }
        Told::Yes
    }

    /// How many READYs wait for room in the watcher's ring.
    pub fn backlog_len(&self, id: ProcessId, watcher: u32) -> usize {
        let backlog = self.get(id).and_then(|process| process.backlogs.get(&watcher));
        backlog.map_or(0, VecDeque::len)
    }

    /// The next socket whose READY waits for room in the watcher's ring, if there is room.
    pub fn next_backlogged(&mut self, id: ProcessId, watcher: u32) -> Option<Key> {
        let process = self.get_mut(id)?;
        if process.backlogs.get(&watcher)?.is_empty() {
            process.backlogs.remove(&watcher);
            return None;
        }
        let ring = process.channel.watcher(watcher)?;
        if ring.free() == 0 && ring.mark_backlog() {
            return None;
        }
        process.backlogs.get_mut(&watcher)?.pop_front()
    }

    /// Wakes every blocked accept and wait, by a message about nothing: what there is to see stands
    /// elsewhere.
    pub fn wake_all(&mut self) {
        let (slot, generation) = (haypile_shm::NO_SLOT, 0);
        let offer = Offer { listener: slot, listener_generation: 0, slot, generation };
        let ready = Ready { slot, generation, bits: 0 };
        for id in 1..=self.highest() {
            let Some(process) = self.get_mut(id) else { continue };
            // Who has no room for it has other reasons to look.
            let _: bool = process.channel.push_offer(&offer);
            let watchers: Vec<u32> = process.watcher_serials.keys().copied().collect();
            for watcher in &watchers {
                if let Some(ring) = process.channel.watcher(*watcher) {
                    let _: Option<u32> = ring.push(&ready);
                }
            }
            self.acceptors.push(id);
            self.rings.extend(watchers.into_iter().map(|watcher| (id, watcher)));
        }
    }

    /// Wakes the processes that accept from a listener, by a message about nothing.
    pub fn wake_acceptors_of(&mut self, listener: Key) {
        let (slot, generation) = (haypile_shm::NO_SLOT, 0);
        let nothing = Offer { listener: slot, listener_generation: 0, slot, generation };
        for id in 1..=self.highest() {
            if let Some(process) = self.get_mut(id)
                && process.accepts.contains(&listener)
            {
                // Who has no room for it has other reasons to look.
                let _: bool = process.channel.push_offer(&nothing);
                self.acceptors.push(id);
            }
        }
    }

    /// Rings everybody who has news and sleeps: once a turn, after everything is published.
    pub fn flush(&mut self) {
        let mut rings = std::mem::take(&mut self.rings);
        for (id, watcher) in rings.drain(..) {
            let ring = self.get_mut(id).and_then(|process| process.channel.watcher(watcher));
            // A doorbell that is gone belongs to a process that is going.
            if ring.is_some_and(|ring| ring.wake().is_err()) {
                self.close_watcher(id, watcher);
            }
        }
        let mut acceptors = std::mem::take(&mut self.acceptors);
        for id in acceptors.drain(..) {
            if let Some(process) = self.get(id) {
                process.channel.wake_acceptors();
            }
        }
        // The lists keep their memory.
        (self.rings, self.acceptors) = (rings, acceptors);
    }
}

impl Process {
    /// A process that has just said HELLO on the control connection `control`.
    ///
    /// # Errors
    /// When the system gives no memory for its channel.
    pub fn new(
        control: RawFd,
        pid: i32,
        name: ProcessName,
        program: String,
        domain: Key,
        pidfd: Fd,
        wake: Doorbell,
    ) -> Result<Process, Errno> {
        Ok(Process {
            pid,
            name,
            program,
            domain,
            namespace: sys::network_namespace(control).ok(),
            pidfd,
            channel: ServiceChannel::create()?,
            wake,
            rung: false,
            sockets: OwnSet::default(),
            accepts: OwnSet::default(),
            offers: OwnMap::default(),
            watcher_serials: OwnMap::default(),
            backlogs: OwnMap::default(),
        })
    }
}

/// Name of a program, for display: up to the first 0 byte, and nothing that moves a cursor.
pub fn program_name(bytes: &[u8]) -> String {
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let shown = |c: char| if c.is_control() { '?' } else { c };
    String::from_utf8_lossy(name).chars().map(shown).collect()
}

/// The process at the other end of a control connection: its id and a descriptor of it.
///
/// # Errors
/// When it has ended already, or is not visible from here.
pub fn peer_process(connection: RawFd) -> Result<(i32, Fd), Errno> {
    let credentials = sys::peer_credentials(connection)?;
    let mut value = [0; 4];
    let pidfd = match sys::getsockopt(connection, libc::SOL_SOCKET, SO_PEERPIDFD, &mut value) {
        Ok(4) => Fd::from_raw(i32::from_ne_bytes(value)),
        // Kernels before 6.5; there the number could be another process's by now, if it died.
        _ => sys::pidfd_open(credentials.pid)?,
    };
    Ok((credentials.pid, pidfd))
}

const SO_PEERPIDFD: i32 = 77;
