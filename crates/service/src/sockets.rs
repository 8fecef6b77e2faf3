//! Socket records: the service's private truth about every socket, and the bytes behind it.
//!
//! Owns the way from every name of a socket (engine id, slot of a domain, cookie of a placeholder)
//! to its record. [`Store`] implements the engine's `Streams`: payload of a connection that an
//! application holds or is offered goes to its domain's FIFO; payload of one that nobody has
//! claimed yet is (also) kept in private, bounded memory, so that an offer can be taken back and
//! given to another domain. Called by the engine through `Streams`, and by the transport server.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroU64;

use haypile_engine::{Datagram, Instant, Progress, SocketId, SocketOptions, Streams};
use haypile_shm::ServiceStream;
use haypile_shm::messages::{SocketKind, ready};
use haypile_shm::stream::{NewPlace, status};

use crate::datagrams::DatagramState;
use crate::domains::Domains;
use crate::farewell::Habit;
use crate::freight::{Came, Stub, StubStage};
use crate::obituary::Obituary;
use crate::open::OpenCounts;
use crate::ports::Binding;
use crate::slab::{Key, OwnMap, Slab};
use crate::welcome::Openings;
use haypile_engine::control::connection_manager::ProcessId;
use haypile_engine::control::names::{ListenerName, ProcessName};

/// One socket.
#[derive(Debug)]
pub struct Socket {
    /// What it is.
    pub kind: SocketKind,
    /// Its name in the shard; `None` before LISTEN or CONNECT and after the shard forgot it.
    pub id: Option<SocketId>,
    /// The trust domain that has, or is offered, the socket.
    pub domain: Option<Key>,
    /// The shared record in that domain.
    pub stream: Option<ServiceStream>,
    /// Options as set; what the shard is given.
    pub options: SocketOptions,
    /// `SO_LINGER` with time 0: the last close is a reset.
    pub resets: bool,
    /// The last send had `MSG_MORE`.
    pub more: bool,
    /// What only a UDP socket has.
    pub datagram: Option<Box<DatagramState>>,
    /// What the shard last said.
    pub progress: Progress,
    /// Where it is bound, if it is.
    pub binding: Option<Binding>,
    /// Its own address, once it has one.
    pub local: Option<SocketAddr>,
    /// The peer's address.
    pub remote: Option<SocketAddr>,
    /// The process that holds it alone; `None` once shared, and while unclaimed.
    pub owner: Option<ProcessId>,
    /// Several processes may hold it: the end of its placeholder ends it.
    pub shared: bool,
    /// Cookie of the placeholder, once known.
    pub cookie: Option<u64>,
    /// Accepting: the listener it came to and how far it is on its way to a process.
    pub accepting: Option<Accepting>,
    /// Whom to tell of readiness.
    pub watches: Vec<Watch>,
    /// The application has closed it; it lives on until the shard releases it.
    pub closed: bool,
    /// `SHUT_WR` was asked for.
    pub tx_shut: bool,
    /// `SHUT_RD` was asked for.
    pub rx_shut: bool,
    /// When it is given up, if it is closed and has something to send.
    pub orphan_until: Option<Instant>,
    /// It is on the list of recently active sockets.
    pub active: bool,
    /// When something last moved.
    pub touched: Instant,
    /// The listener it came to.
    pub came_to: Option<Key>,
    /// When it was written to last, unless the peer has spoken since.
    pub wrote: Option<Instant>,
    /// What was written waits for the close behind it.
    pub held: bool,
    /// Of a listener: what all servers call it.
    pub listener: Option<ListenerName>,
    /// Of an accepted connection: what the connection manager hears when it is closed.
    pub served: Option<Served>,
    /// The connection has moved to another server, or is about to: this is what stays.
    pub stub: Option<Box<Stub>>,
    /// The connection has moved here, and not everybody who has it is known to have followed.
    pub came: Option<Box<Came>>,
    /// Of a listener: how its connections end.
    pub habit: Habit,
    /// Of a listener: how its connections begin.
    pub openings: Openings,
    /// The place of its flow in the ledger.
    pub(crate) place: Option<u32>,
}

/// A connection that no process has claimed yet.
#[derive(Debug)]
pub struct Accepting {
    /// The listener.
    pub listener: Key,
    /// To whom it is offered now.
    pub offered: Option<Offered>,
    /// The connection manager is to hear of it with its peer's first words.
    pub silent: bool,
    /// The processor's counter when the manager was told, until it is offered first.
    pub came: Option<NonZeroU64>,
    /// All bytes received so far, from position 0, kept until the claim.
    bytes: Vec<u8>,
}

/// An offer that is out.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// To this process,
    pub process: ProcessId,
    /// by this listener of its.
    pub by: Key,
    /// Since when.
    pub since: Instant,
}

/// What is told of an accepted connection when it is closed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Who took it.
    pub process: ProcessName,
    /// By this listener.
    pub listener: ListenerName,
    /// When it was offered.
    pub since: Instant,
}

/// One registration of a watcher.
#[derive(Debug)]
pub struct Watch {
    /// The process.
    pub process: ProcessId,
    /// Which of its watchers.
    pub watcher: u32,
    /// Which use of the watcher.
    pub serial: u32,
    /// What it wants to hear of.
    pub mask: u32,
    /// Only once.
    pub one_shot: bool,
    /// Not yet said, or not one-shot.
    pub armed: bool,
    /// Ring position of the last READY.
    pub last: Option<u32>,
    /// Waits in the watcher's private backlog.
    pub backlogged: bool,
}

/// All sockets of a transport server, with the domains their bytes live in.
#[derive(Debug)]
pub struct Store {
    /// The records.
    pub sockets: Slab<Socket>,
    /// The domains.
    pub domains: Domains,
    by_id: Vec<Option<(SocketId, Key)>>,
    /// Listeners by the name that all servers call them.
    pub(crate) listeners: OwnMap<ListenerName, Key>,
    /// Those that the shard has forgotten and given the place of, before it was heard.
    superseded: VecDeque<(SocketId, Key)>,
    /// A cookie can be claimed in several domains, because claims are not trusted.
    by_cookie: HashMap<u64, Vec<Key>>,
    unclaimed_bytes: u64,
    unclaimed_max: u64,
    /// UDP sockets with datagrams that are not published yet.
    pub(crate) fresh: Vec<Key>,
    /// Sockets found hostile in the middle of a burst.
    pub(crate) hostile: Vec<Key>,
    /// Reads and writes of the shard for sockets that have no bytes; stays 0.
    pub misses: u64,
    /// What applications have of them.
    pub(crate) open: OpenCounts,
    /// The flows, for the server after this one.
    pub(crate) obituary: Obituary,
    /// Lists of sockets that are gone, for the next ones.
    spare: Spare,
}

/// Empty lists with memory: a short connection asks the system for none.
#[derive(Debug, Default)]
struct Spare {
    watches: Vec<Vec<Watch>>,
    bytes: Vec<Vec<u8>>,
}

/// Lists of each kind that are kept.
const SPARE_MAX: usize = 256;
/// Longest list that is kept, in watches and in bytes.
const SPARE_WATCHES: usize = 16;
const SPARE_BYTES: usize = 16 * 1024;

impl Spare {
    fn keep_watches(&mut self, mut list: Vec<Watch>) {
        list.clear();
        if (1..=SPARE_WATCHES).contains(&list.capacity()) && self.watches.len() < SPARE_MAX {
            self.watches.push(list);
        }
    }

    fn keep_bytes(&mut self, mut list: Vec<u8>) {
        list.clear();
        if (1..=SPARE_BYTES).contains(&list.capacity()) && self.bytes.len() < SPARE_MAX {
            self.bytes.push(list);
        }
    }
}

impl Store {
    /// No sockets; at most `unclaimed_max` bytes of unclaimed connections.
    pub fn new(unclaimed_max: u64) -> Store {
        Store {
            sockets: Slab::default(),
            domains: Domains::default(),
            by_id: Vec::new(),
            listeners: OwnMap::default(),
            superseded: VecDeque::new(),
            by_cookie: HashMap::new(),
            unclaimed_bytes: 0,
            unclaimed_max,
            fresh: Vec::new(),
            hostile: Vec::new(),
            misses: 0,
            open: OpenCounts::default(),
            obituary: Obituary::default(),
            spare: Spare::default(),
        }
    }

    /// The record of a socket of the shard.
    pub fn key_of(&self, id: SocketId) -> Option<Key> {
        match self.by_id.get(id.index() as usize) {
            Some(Some((current, key))) if *current == id => Some(*key),
            _ => self.superseded.iter().find(|(old, _)| *old == id).map(|(_, key)| *key),
        }
    }

    /// Ties a record to its name in the shard.
    pub fn set_id(&mut self, key: Key, id: SocketId) {
        let index = id.index() as usize;
        if self.by_id.len() <= index {
            self.by_id.resize(index + 1, None);
        }
        if let Some((old_id, old)) = self.by_id[index].replace((id, key))
            && let Some(stale) = self.sockets.get(old)
        {
            if stale.stream.is_none() && stale.accepting.is_some() {
                // The shard gave a half-open connection up whose first bytes had come already.
                self.remove(old);
            } else if stale.id == Some(old_id) {
                // The shard has given the place to another; that it has is still to be heard.
                self.superseded.push_back((old_id, old));
            }
        }
        if let Some(socket) = self.sockets.get_mut(key) {
            socket.id = Some(id);
        }
    }

    /// The shard has forgotten the name.
    pub fn clear_id(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        if let Some(id) = socket.id.take()
            && let Some(entry) = self.by_id.get_mut(id.index() as usize)
        {
            if entry.is_some_and(|(current, _)| current == id) {
                *entry = None;
            } else if let Some(at) = self.superseded.iter().position(|(old, _)| *old == id) {
                self.superseded.remove(at);
            }
        }
    }

    /// The records that claim a placeholder.
    pub fn by_cookie(&self, cookie: u64) -> &[Key] {
        self.by_cookie.get(&cookie).map_or(&[], Vec::as_slice)
    }

    /// The record of a placeholder in one domain.
    pub fn by_cookie_in(&self, cookie: u64, domain: Key) -> Option<Key> {
        let in_domain = |key: &&Key| {
            self.sockets.get(**key).is_some_and(|socket| socket.domain == Some(domain))
        };
        self.by_cookie(cookie).iter().find(in_domain).copied()
    }

    /// Notes what an application says is the cookie of a socket's placeholder.
    pub fn set_cookie(&mut self, key: Key, cookie: u64) {
        self.clear_cookie(key);
        if let Some(socket) = self.sockets.get_mut(key) {
            socket.cookie = Some(cookie);
            self.by_cookie.entry(cookie).or_default().push(key);
        }
    }

    fn clear_cookie(&mut self, key: Key) {
        let Some(cookie) = self.sockets.get_mut(key).and_then(|socket| socket.cookie.take()) else {
            return;
        };
        if let Some(keys) = self.by_cookie.get_mut(&cookie) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.by_cookie.remove(&cookie);
            }
        }
    }

    pub(crate) fn insert(&mut self, now: Instant) -> Key {
        let watches = self.spare.watches.pop().unwrap_or_default();
        self.sockets.insert(Socket { watches, ..Socket::new(now) })
    }

    /// A new socket of an application, with a slot in its domain. `None`: the quota is used up.
    pub fn open(&mut self, domain_key: Key, owner: ProcessId, now: Instant) -> Option<Key> {
        let key = self.insert(now);
        let place = self.domains.get_mut(domain_key).and_then(|d| d.allocate_slot(key));
        let (Some(place), Some(socket)) = (place, self.sockets.get_mut(key)) else {
            self.sockets.remove(key);
            return None;
        };
        socket.owner = Some(owner);
        socket.domain = Some(domain_key);
        socket.stream = Some(ServiceStream::new(place));
        Some(key)
    }

    /// The record of a connection that has just been accepted; the shard may have written to it
    /// already.
    pub fn accepted(&mut self, id: SocketId, listener: Key, now: Instant) -> Key {
        let key = self.key_of(id).unwrap_or_else(|| self.new_unclaimed(id, now));
        let inherited = self.sockets.get(listener).map(|socket| (socket.options, socket.resets));
        if let Some(socket) = self.sockets.get_mut(key) {
            (socket.options, socket.resets) = inherited.unwrap_or_default();
            if let Some(accepting) = &mut socket.accepting {
                accepting.listener = listener;
            }
        }
        key
    }

    /// A connection has both ends, and its peer may wait for an answer from now on.
    pub(crate) fn note_flow(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        if let (Some(local), Some(remote)) = (socket.local, socket.remote) {
            self.obituary.strike(socket.place.take());
            socket.place = self.obituary.enter(local, remote);
        }
    }

    fn new_unclaimed(&mut self, id: SocketId, now: Instant) -> Key {
        let key = self.insert(now);
        let bytes = self.spare.bytes.pop().unwrap_or_default();
        if let Some(socket) = self.sockets.get_mut(key) {
            socket.kind = SocketKind::Connection;
            socket.accepting =
                Some(Accepting { listener: key, offered: None, silent: false, came: None, bytes });
        }
        self.set_id(key, id);
        key
    }

    /// A connection that nobody has claimed has come with its first bytes, for which there is room.
    pub(crate) fn put_unclaimed(&mut self, id: SocketId, bytes: &[u8]) {
        let key = self.new_unclaimed(id, Instant::default());
        let accepting = self.sockets.get_mut(key).and_then(|socket| socket.accepting.as_mut());
        if let Some(accepting) = accepting {
            accepting.bytes.extend_from_slice(bytes);
            self.unclaimed_bytes += bytes.len() as u64;
        }
    }

    /// Gives an unclaimed connection a record in a domain, with all its bytes. False, and nothing
    /// changed, when the domain has no slot or memory left.
    pub fn place_in_domain(&mut self, key: Key, domain_key: Key) -> bool {
        let Some(domain) = self.domains.get_mut(domain_key) else { return false };
        let Some(place) = domain.allocate_slot(key) else { return false };
        let slot = place.slot;
        let mut stream = ServiceStream::new(place);
        let Some(socket) = self.sockets.get_mut(key) else {
            stream.retire(&mut domain.arena);
            domain.free_slot(slot);
            return false;
        };
        let bytes = socket.accepting.as_ref().map_or(&[][..], |accepting| &accepting.bytes);
        if stream.write_rx(0, bytes, &mut domain.arena) < bytes.len() {
            stream.retire(&mut domain.arena);
            domain.free_slot(slot);
            return false;
        }
        stream.set_rx_kick_step(u64::from(socket.options.receive_buffer) / 3);
        stream.set_local(socket.local);
        stream.set_remote(socket.remote);
        stream.commit_rx(socket.progress.rx_end);
        stream.grant_tx(u64::from(socket.options.send_buffer), &mut domain.arena);
        if let Some(error) = socket.progress.error {
            stream.set_error(crate::errno::of_socket_error(error));
        }
        socket.domain = Some(domain_key);
        socket.stream = Some(stream);
        socket.publish_status();
        true
    }

    /// Takes the record in its domain away from a socket: its slot and memory are free again.
    pub fn leave_domain(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        let (stream, domain_key) = (socket.stream.take(), socket.domain.take());
        let (Some(stream), Some(domain_key)) = (stream, domain_key) else { return };
        if let Some(domain) = self.domains.get_mut(domain_key) {
            let slot = stream.slot();
            stream.retire(&mut domain.arena);
            domain.free_slot(slot);
            domain.shared.remove(&key);
        }
        self.domains.remove_if_unused(domain_key);
    }

    /// The connection is a process's from now on: its bytes need no private copy any more. `served`: what is told
    /// of it in the end.
    pub fn claimed(&mut self, key: Key, owner: ProcessId, served: Option<Served>) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        if let Some(accepting) = socket.accepting.take() {
            served.iter().for_each(|served| self.open.add(served));
            socket.served = served;
            self.unclaimed_bytes -= accepting.bytes.len() as u64;
            self.spare.keep_bytes(accepting.bytes);
        }
        socket.owner = Some(owner);
    }

    /// A connection of an application is here no more, whatever has become of it.
    pub(crate) fn clear_served(&mut self, key: Key) {
        let socket = self.sockets.get_mut(key);
        if let Some(served) = socket.and_then(|socket| socket.served.take()) {
            self.open.subtract(&served);
            self.open.note(&served);
        }
    }

    /// A connection of an application has come from another server, or is back.
    pub(crate) fn set_served(&mut self, key: Key, served: Option<Served>) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        socket.served = served;
        if let Some(served) = &served {
            self.open.add(served);
            self.open.note(served);
        }
    }

    /// Forgets a socket and everything it has. Answers the record, without its lists, for whoever has to
    /// undo more.
    pub fn remove(&mut self, key: Key) -> Option<Socket> {
        self.clear_id(key);
        self.clear_cookie(key);
        self.leave_domain(key);
        self.clear_served(key);
        let mut socket = self.sockets.remove(key)?;
        self.obituary.strike(socket.place.take());
        self.spare.keep_watches(std::mem::take(&mut socket.watches));
        if let Some(accepting) = &mut socket.accepting {
            self.unclaimed_bytes -= accepting.bytes.len() as u64;
            self.spare.keep_bytes(std::mem::take(&mut accepting.bytes));
        }
        Some(socket)
    }

    /// Private bytes of unclaimed connections.
    pub fn unclaimed_bytes(&self) -> u64 {
        self.unclaimed_bytes
    }

    /// How many more there may be.
    pub fn unclaimed_room(&self) -> u64 {
        self.unclaimed_max.saturating_sub(self.unclaimed_bytes)
    }

    /// What has come of an unclaimed connection so far.
    pub fn unclaimed_of(&self, key: Key) -> Option<&[u8]> {
        let accepting = self.sockets.get(key)?.accepting.as_ref()?;
        Some(&accepting.bytes)
    }

    /// Keeps bytes of an unclaimed connection; how many.
    fn keep(&mut self, key: Key, position: u64, data: &[u8]) -> usize {
        let left = self.unclaimed_max.saturating_sub(self.unclaimed_bytes);
        let Some(accepting) = self.sockets.get_mut(key).and_then(|s| s.accepting.as_mut()) else {
            return 0;
        };
        let bytes = &mut accepting.bytes;
        // The shard asks only inside the window, which is far below 4 GiB.
        let start = position.min(u64::from(u32::MAX)) as usize;
        let end = start + data.len();
        let growth = end.saturating_sub(bytes.len()) as u64;
        if growth > left {
            return 0;
        }
        if growth > 0 {
            bytes.resize(end, 0);
            self.unclaimed_bytes += growth;
        }
        bytes[start..end].copy_from_slice(data);
        data.len()
    }
}

impl Streams for Store {
    // A row of docs/cost.md.
    #[inline(never)]
    fn write(&mut self, id: SocketId, position: u64, data: &[u8]) -> usize {
        let key = match self.key_of(id) {
            Some(key) => key,
            None => self.new_unclaimed(id, Instant::default()),
        };
        let Some(socket) = self.sockets.get_mut(key) else { return 0 };
        let unclaimed = socket.accepting.is_some();
        let mut stored = data.len();
        if let (Some(stream), Some(domain)) =
            (&mut socket.stream, socket.domain.and_then(|domain| self.domains.get_mut(domain)))
        {
            stored = stream.write_rx(position, data, &mut domain.arena);
        } else if !unclaimed {
            self.misses += 1;
            return 0;
        }
        if unclaimed { self.keep(key, position, &data[..stored]) } else { stored }
    }

    // A row of docs/cost.md.
    #[inline(never)]
    fn write_datagram(&mut self, id: SocketId, datagram: &Datagram, payload: &[u8]) -> bool {
        self.store_datagram(id, datagram, payload)
    }

    fn read(&mut self, id: SocketId, position: u64, out: &mut [u8]) {
        let socket = self.key_of(id).and_then(|key| self.sockets.get(key));
        let copied = socket.is_some_and(|socket| {
            let domain = socket.domain.and_then(|domain| self.domains.get(domain));
            match (&socket.stream, domain) {
                (Some(stream), Some(domain)) => stream.read_tx(position, out, &domain.arena),
                _ => false,
            }
        });
        if !copied {
            out.fill(0);
            self.misses += 1;
        }
    }
}

impl Socket {
    fn new(now: Instant) -> Socket {
        Socket {
            kind: SocketKind::Plain,
            id: None,
            domain: None,
            stream: None,
            options: SocketOptions::default(),
            resets: false,
            more: false,
            datagram: None,
            progress: Progress::default(),
            binding: None,
            local: None,
            remote: None,
            owner: None,
            shared: false,
            cookie: None,
            accepting: None,
            watches: Vec::new(),
            closed: false,
            tx_shut: false,
            rx_shut: false,
            orphan_until: None,
            active: false,
            touched: now,
            came_to: None,
            wrote: None,
            held: false,
            listener: None,
            served: None,
            stub: None,
            came: None,
            habit: Habit::default(),
            openings: Openings::default(),
            place: None,
        }
    }

    /// Writes the status bits for the application, after everything they speak of.
    pub fn publish_status(&mut self) {
        let bits = self.status_bits();
        if let Some(stream) = &mut self.stream
            && stream.status() != bits
        {
            stream.set_status(bits);
        }
    }

    fn status_bits(&self) -> u32 {
        let Progress { connected, rx_fin, error, finished, .. } = self.progress;
        let connection = self.kind == SocketKind::Connection;
        let bit = |condition: bool, bit: u32| if condition { bit } else { 0 };
        bit(connected, status::CONNECTED)
            | bit(connection && !connected && error.is_none(), status::CONNECTING)
            | bit(rx_fin, status::RX_FIN)
            | bit(error.is_some(), status::FAILED)
            | bit(finished, status::FINISHED)
            | bit(self.kind == SocketKind::Listener, status::LISTENING)
            | bit(self.closed, status::CLOSED)
            | bit(self.tx_shut, status::TX_SHUT)
            | bit(self.rx_shut, status::RX_SHUT)
            | bit(self.new_place().is_some(), status::MOVED)
            | bit(self.datagram.as_ref().is_some_and(|one| !one.errors.is_empty()), status::ERRORS)
    }

    /// What poll(2) would say of it now, as far as the service knows; listeners excepted, whose
    /// readiness is a matter of offers.
    pub fn ready_bits(&self) -> u32 {
        let Progress { connected, rx_fin, error, finished, .. } = self.progress;
        let bit = |condition: bool, bit: u32| if condition { bit } else { 0 };
        match self.kind {
            SocketKind::Listener => 0,
            SocketKind::Plain => ready::OUT | ready::HUP,
            SocketKind::Datagram => self.datagram_bits(),
            SocketKind::Connection if !connected && error.is_none() => 0,
            SocketKind::Connection => {
                let stream = self.stream.as_ref();
                let readable = stream.is_some_and(|stream| stream.rx_tail() > stream.rx_head());
                let writable = stream.is_some_and(|stream| stream.tx_granted() > 0);
                let ended = rx_fin || self.rx_shut;
                bit(readable || ended || error.is_some(), ready::IN)
                    | bit(writable || self.tx_shut || error.is_some(), ready::OUT)
                    | bit(ended || finished, ready::RDHUP)
                    | bit(finished || (ended && self.tx_shut), ready::HUP)
                    | bit(error.is_some(), ready::ERR)
            }
        }
    }

    /// Where the connection is, if it is known to have moved.
    pub fn new_place(&self) -> Option<NewPlace> {
        match self.stub.as_ref()?.stage {
            StubStage::Delivered(place) => Some(place),
            StubStage::Frozen | StubStage::Packed => None,
        }
    }

    /// Slot and generation in its domain.
    pub fn name(&self) -> Option<(u32, u32)> {
        self.stream.as_ref().map(|stream| (stream.slot(), stream.generation()))
    }
}
