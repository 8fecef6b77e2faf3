//! The neighbour cache, for ARP (RFC 826) and neighbour discovery (RFC 4861) alike: which Ethernet
//! address an on-link IP address has.
//!
//! The shard asks before it sends, tells what it hears, and fetches requests to send and neighbours
//! whose waiting packets can go (or never will). States are those of RFC 4861 section 7.3.2:
//!
//! ```text
//!  (none) --needed--> INCOMPLETE --answer--> REACHABLE --30 s--> STALE --used--> DELAY --5 s--> PROBE
//!                     3 requests, 1 s apart      ^-----------answer----------------'---3 requests--> (none)
//! ```
//!
//! Nobody can make us learn an address we neither need nor were asked by: unsolicited replies
//! never create entries, and an entry confirmed within the last second keeps its address.

use std::collections::VecDeque;
use std::net::IpAddr;

use hashbrown::HashTable;

use crate::counters::{Counter, Counters};
use crate::keys::TableHash;
use crate::limits::Limits;
use crate::lists::{Links, List};
use crate::rate_limit::RateLimit;
use crate::slab::Slab;
use crate::socket_id::SocketId;
use crate::time::Instant;
use crate::timer_wheel::TimerWheel;

/// REACHABLE_TIME, RFC 4861 section 10.
const REACHABLE_US: u64 = 30_000_000;
/// DELAY_FIRST_PROBE_TIME.
const DELAY_US: u64 = 5_000_000;
/// RETRANS_TIMER.
const RETRANSMIT_US: u64 = 1_000_000;
/// MAX_MULTICAST_SOLICIT and MAX_UNICAST_SOLICIT.
const TRIES_MAX: u8 = 3;
/// How long a confirmed address cannot be changed by an unsolicited message.
const LOCK_US: u64 = 1_000_000;
/// How fresh a neighbour's place in the order of use is kept.
const USE_GRAIN_US: u64 = 1_000_000;

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum State {
    Incomplete { tries: u8 },
    Reachable,
    Stale,
    Delay,
    Probe { tries: u8 },
}

impl State {
    fn is_probing(self) -> bool {
        matches!(self, State::Delay | State::Probe { .. })
    }
}

/// One neighbour.
#[derive(Debug)]
struct Neighbour {
    addr: IpAddr,
    mac: [u8; 6],
    state: State,
    confirmed_at: Instant,
    /// Another address was claimed since: only an answer tells who is right, no hint does.
    contested: bool,
    used_at: Instant,
    pending: VecDeque<Vec<u8>>,
    waiting: List,
    request_queued: bool,
}

/// What the cache says about a neighbour.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// Its Ethernet address.
    Known([u8; 6]),
    /// It is being asked for; the name is for [`Neighbours::enqueue`] and [`Neighbours::waiting`].
    Asked(SocketId),
    /// There is no room to ask, or too much was asked lately.
    Refused,
}

/// A request to send.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Whose Ethernet address is asked for.
    pub addr: IpAddr,
    /// Its last known Ethernet address when it is only probed.
    pub probe: Option<[u8; 6]>,
}

/// A neighbour whose wait is over.
#[derive(Debug)]
pub struct Released {
    /// Its Ethernet address; `None` when it did not answer or had to make room.
    pub mac: Option<[u8; 6]>,
    /// IP packets that waited.
    pub pending: VecDeque<Vec<u8>>,
    /// Connections that waited, by index.
    pub waiting: List,
}

/// What a neighbour says of itself in a reply or advertisement.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Its Ethernet address, if given.
    pub mac: Option<[u8; 6]>,
    /// It answers a request of ours.
    pub solicited: bool,
    /// It may replace an address we have.
    pub replace: bool,
}

/// The cache.
#[derive(Debug)]
pub struct Neighbours {
    table: HashTable<SocketId>,
    hash: TableHash,
    entries: Slab<Neighbour>,
    links: Links,
    /// Entries without an address, oldest first.
    incomplete: List,
    /// The others, longest unused first.
    known: List,
    wheel: TimerWheel,
    due: Vec<u32>,
    requests: VecDeque<SocketId>,
    released: VecDeque<Released>,
    asking: RateLimit,
    packets_max: usize,
    /// Entries that are about to be probed, or are.
    probing: u32,
}

impl Neighbours {
    /// An empty cache.
    pub fn new(now: Instant, seed: u64, limits: &Limits) -> Neighbours {
        let requests_per_second = limits.neighbour_requests_per_second;
        Neighbours {
            table: HashTable::new(),
            hash: TableHash::new(seed),
            entries: Slab::new(limits.neighbours as usize),
            links: Links::default(),
            incomplete: List::new(),
            known: List::new(),
            wheel: TimerWheel::new(now),
            due: Vec::new(),
            requests: VecDeque::new(),
            released: VecDeque::new(),
            asking: RateLimit::new(now, requests_per_second, requests_per_second),
            packets_max: limits.packets_per_neighbour as usize,
            probing: 0,
        }
    }

    /// The Ethernet address to send to; begins to ask when it is not known.
    pub fn resolve(&mut self, now: Instant, addr: IpAddr, counters: &mut Counters) -> Resolution {
        let Some(name) = self.find(addr) else {
            return self.begin(now, addr, counters);
        };
        let Some(entry) = self.entries.get_mut(name) else { return Resolution::Refused };
        let mac = entry.mac;
        if let State::Incomplete { .. } = entry.state {
            return Resolution::Asked(name);
        }
        let expired = now.since(entry.confirmed_at) >= REACHABLE_US;
        if entry.state == State::Stale || (entry.state == State::Reachable && expired) {
            entry.state = State::Delay;
            self.probing += 1;
            self.wheel.schedule(name.index(), now.plus_us(DELAY_US));
        }
        if now.since(entry.used_at) >= USE_GRAIN_US {
            entry.used_at = now;
            self.links.remove(&mut self.known, name.index());
            self.links.push_back(&mut self.known, name.index());
        }
        Resolution::Known(mac)
    }

    /// Whether one more packet may wait for a neighbour.
    pub fn has_room(&self, name: SocketId) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.pending.len() < self.packets_max)
    }

    /// Keeps a packet until the neighbour answers.
    ///
    /// # Errors
    /// Gives the packet back when the neighbour's queue is full.
    pub fn enqueue(&mut self, name: SocketId, packet: Vec<u8>) -> Result<(), Vec<u8>> {
        match self.entries.get_mut(name) {
            Some(entry) if entry.pending.len() < self.packets_max => {
                entry.pending.push_back(packet);
                Ok(())
            }
            _ => Err(packet),
        }
    }

    /// The list of connections that wait for a neighbour.
    pub fn waiting(&mut self, name: SocketId) -> Option<&mut List> {
        self.entries.get_mut(name).map(|entry| &mut entry.waiting)
    }

    /// A neighbour asked for an address of ours: it wants to talk, so its address is worth keeping
    /// (RFC 826, RFC 4861 section 7.2.3).
    pub fn hear_request(
        &mut self,
        now: Instant,
        addr: IpAddr,
        mac: [u8; 6],
        counters: &mut Counters,
    ) {
        match self.find(addr) {
            Some(name) => self.hear_in_passing(now, name, mac, counters),
            None => {
                if let Some(name) = self.create(now, addr, counters) {
                    self.learn(now, name, mac, State::Stale, counters);
                }
            }
        }
    }

    /// A neighbour tells its address to nobody in particular; only what we know is brought up to
    /// date. False when we do not know it.
    pub fn hear_announcement(
        &mut self,
        now: Instant,
        addr: IpAddr,
        mac: [u8; 6],
        counters: &mut Counters,
    ) -> bool {
        let found = self.find(addr);
        if let Some(name) = found {
            self.hear_in_passing(now, name, mac, counters);
        }
        found.is_some()
    }

    /// A neighbour answers (RFC 4861 section 7.2.5). False when nobody asked.
    pub fn hear_answer(
        &mut self,
        now: Instant,
        addr: IpAddr,
        answer: Answer,
        counters: &mut Counters,
    ) -> bool {
        let Some(name) = self.find(addr) else { return false };
        let Some(entry) = self.entries.get_mut(name) else { return false };
        let fresh = if answer.solicited { State::Reachable } else { State::Stale };
        if let State::Incomplete { .. } = entry.state {
            if let Some(mac) = answer.mac {
                self.learn(now, name, mac, fresh, counters);
            }
            return true;
        }
        let mac = answer.mac.unwrap_or(entry.mac);
        let changed = mac != entry.mac;
        let asked = matches!(entry.state, State::Probe { .. });
        let locked = !asked && now.since(entry.confirmed_at) < LOCK_US;
        if changed && (!answer.replace || locked) {
            if entry.state == State::Reachable && !locked {
                entry.state = State::Stale;
            }
        } else if changed || answer.solicited {
            self.learn(now, name, mac, fresh, counters);
        }
        true
    }

    /// What the neighbour sent us proves that it gets what we send: a hint of a transport protocol
    /// (RFC 4861 section 7.3.1).
    pub fn confirm(&mut self, now: Instant, addr: IpAddr) {
        let Some(name) = self.find(addr) else { return };
        let Some(entry) = self.entries.get_mut(name) else { return };
        if !matches!(entry.state, State::Incomplete { .. }) && !entry.contested {
            self.probing -= u32::from(entry.state.is_probing());
            entry.state = State::Reachable;
            entry.confirmed_at = now;
            self.wheel.cancel(name.index());
        }
    }

    /// Whether some neighbour is about to be probed, so that [`Neighbours::confirm`] could spare it.
    pub fn wants_hints(&self) -> bool {
        self.probing > 0
    }

    /// Runs timers that are due, at most `budget` of them.
    pub fn handle_timers(&mut self, now: Instant, budget: usize, counters: &mut Counters) {
        let mut due = std::mem::take(&mut self.due);
        let _: bool = self.wheel.expire(now, budget, &mut due);
        for index in due.drain(..) {
            if let Some(name) = self.entries.id_at(index) {
                self.handle_timer(now, name, counters);
            }
        }
        self.due = due;
    }

    /// When a timer is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.wheel.next_timeout()
    }

    /// The next request to send.
    pub fn poll_request(&mut self) -> Option<Request> {
        while let Some(name) = self.requests.pop_front() {
            let Some(entry) = self.entries.get_mut(name) else { continue };
            entry.request_queued = false;
            match entry.state {
                State::Incomplete { .. } => return Some(Request { addr: entry.addr, probe: None }),
                State::Probe { .. } => {
                    return Some(Request { addr: entry.addr, probe: Some(entry.mac) });
                }
                State::Reachable | State::Stale | State::Delay => {}
            }
        }
        None
    }

    /// The next neighbour whose packets need wait no longer.
    pub fn poll_released(&mut self) -> Option<Released> {
        self.released.pop_front()
    }

    /// Begins to ask for an address.
    fn begin(&mut self, now: Instant, addr: IpAddr, counters: &mut Counters) -> Resolution {
        if !self.asking.admit(now) {
            return Resolution::Refused;
        }
        let Some(name) = self.create(now, addr, counters) else { return Resolution::Refused };
        self.request(now, name);
        Resolution::Asked(name)
    }

    /// Queues a request and sets the time to repeat it.
    fn request(&mut self, now: Instant, name: SocketId) {
        self.wheel.schedule(name.index(), now.plus_us(RETRANSMIT_US));
        if let Some(entry) = self.entries.get_mut(name)
            && !entry.request_queued
        {
            entry.request_queued = true;
            self.requests.push_back(name);
        }
    }

    fn handle_timer(&mut self, now: Instant, name: SocketId, counters: &mut Counters) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        match &mut entry.state {
            State::Incomplete { tries } | State::Probe { tries } if *tries >= TRIES_MAX => {
                counters.count(Counter::NeighboursFailed);
                self.forget(name);
            }
            State::Incomplete { tries } | State::Probe { tries } => {
                *tries += 1;
                self.request(now, name);
            }
            State::Delay => {
                entry.state = State::Probe { tries: 1 };
                self.request(now, name);
            }
            State::Reachable | State::Stale => {}
        }
    }

    /// An address heard without being asked for; new addresses are believed, but not confirmed.
    fn hear_in_passing(
        &mut self,
        now: Instant,
        name: SocketId,
        mac: [u8; 6],
        counters: &mut Counters,
    ) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let incomplete = matches!(entry.state, State::Incomplete { .. });
        let locked = now.since(entry.confirmed_at) < LOCK_US;
        if incomplete || (entry.mac != mac && !locked) {
            self.learn(now, name, mac, State::Stale, counters);
        } else if entry.mac != mac {
            // Two claim it within a second. Perhaps the neighbour was exchanged: whoever we know is
            // asked soon, instead of being believed for as long as he was last confirmed.
            entry.contested = true;
            if entry.state == State::Reachable {
                entry.state = State::Delay;
                self.probing += 1;
                self.wheel.schedule(name.index(), now.plus_us(LOCK_US));
            }
        }
    }

    /// Takes an address over and releases what waited for it.
    fn learn(
        &mut self,
        now: Instant,
        name: SocketId,
        mac: [u8; 6],
        state: State,
        counters: &mut Counters,
    ) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        if let State::Incomplete { .. } = entry.state {
            counters.count(Counter::NeighboursLearned);
            self.links.remove(&mut self.incomplete, name.index());
            self.links.push_back(&mut self.known, name.index());
        }
        self.probing -= u32::from(entry.state.is_probing());
        entry.mac = mac;
        entry.contested = false;
        entry.state = state;
        if state == State::Reachable {
            entry.confirmed_at = now;
        }
        self.wheel.cancel(name.index());
        if !entry.pending.is_empty() || !entry.waiting.is_empty() {
            let pending = std::mem::take(&mut entry.pending);
            let waiting = std::mem::take(&mut entry.waiting);
            self.released.push_back(Released { mac: Some(mac), pending, waiting });
        }
    }

    fn create(&mut self, now: Instant, addr: IpAddr, counters: &mut Counters) -> Option<SocketId> {
        if self.entries.is_full() {
            // Strangers can make us ask for many neighbours, so those without an address go first.
            let victim = self.incomplete.first().or(self.known.first())?;
            counters.count(Counter::NeighboursEvicted);
            self.forget(self.entries.id_at(victim)?);
        }
        let name = self.entries.insert_with(|_| Neighbour {
            addr,
            mac: [0; 6],
            state: State::Incomplete { tries: 1 },
            confirmed_at: Instant::default(),
            contested: false,
            used_at: now,
            pending: VecDeque::new(),
            waiting: List::new(),
            request_queued: false,
        })?;
        self.links.push_back(&mut self.incomplete, name.index());
        let (hasher, entries) = (&self.hash, &self.entries);
        let rehash =
            |other: &SocketId| entries.get(*other).map_or(0, |entry| hasher.of_address(entry.addr));
        let _ = self.table.insert_unique(hasher.of_address(addr), name, rehash);
        Some(name)
    }

    /// Takes an entry out and releases what waited for it.
    fn forget(&mut self, name: SocketId) {
        let Some(entry) = self.entries.remove(name) else { return };
        let found = self.table.find_entry(self.hash.of_address(entry.addr), |other| *other == name);
        if let Ok(place) = found {
            let _ = place.remove();
        }
        self.probing -= u32::from(entry.state.is_probing());
        let list = match entry.state {
            State::Incomplete { .. } => &mut self.incomplete,
            _ => &mut self.known,
        };
        self.links.remove(list, name.index());
        self.wheel.cancel(name.index());
        if !entry.pending.is_empty() || !entry.waiting.is_empty() {
            let (pending, waiting) = (entry.pending, entry.waiting);
            self.released.push_back(Released { mac: None, pending, waiting });
        }
    }

    fn find(&self, addr: IpAddr) -> Option<SocketId> {
        let same = |name: &SocketId| self.entries.get(*name).is_some_and(|e| e.addr == addr);
        self.table.find(self.hash.of_address(addr), same).copied()
    }
}

#[cfg(test)]
mod tests;
