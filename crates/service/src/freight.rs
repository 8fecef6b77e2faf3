//! What of a socket crosses when its connection moves to another server, beside the engine's state.
//!
//! [`Hands`] is what the engine's `migration` sees of a server: the streams of its connections, and the [`Freight`]
//! of those that move. Called by the engine while a bucket is exported and imported, and by `server` each turn as
//! the shard's streams. What crosses is in [`baggage`]; what stays at the old server, and what comes too late, in
//! [`stubs`]. Read first: decision 0015, and `haypile_engine::migration`.

pub mod baggage;
pub mod stubs;

use std::collections::{HashMap, VecDeque};

use haypile_engine::control::names::ServerNumber;
use haypile_engine::{Datagram, Freight, Instant, Positions, Progress, SocketId, Streams};
use haypile_shm::limits::{CHUNK_SIZE, NO_SLOT};
use haypile_shm::messages::SocketKind;
use haypile_shm::stream::{NewPlace, ServiceStream};

use crate::config::ServiceLimits;
use crate::domains::Token;
use crate::processes::Processes;
use crate::slab::Key;
use crate::sockets::{Offered, Socket, Store};
use crate::transport_server::send_buffer;
use baggage::{ARRIVALS_MAX, Arrival, Baggage, Held, Receipt};
pub use stubs::{Busy, Came, Stub, StubStage};

/// A server's sockets and processes, in the hands of its shard.
#[derive(Debug)]
pub struct Hands<'a> {
    /// The sockets, with their bytes.
    pub store: &'a mut Store,
    /// The processes that have them.
    pub processes: &'a mut Processes,
    /// Those on their way.
    pub depot: &'a mut Depot,
}

/// What is to be said and done about sockets that move, beyond what [`Hands`] can do at once.
#[derive(Debug, Default)]
pub struct Depot {
    server: ServerNumber,
    epoch: u32,
    sockets_per_domain: u32,
    memory_per_domain: u64,
    /// Stubs of connections on their way, and of some that are back until the end of that move is heard.
    pub(crate) packed: Vec<Key>,
    /// Places in the ledger of those that leave no stub.
    pub(crate) places: Vec<u32>,
    /// Connections that have come, of which the old server has not heard.
    arrivals: Vec<Arrival>,
    /// Stubs that say where their connections are since the last turn.
    delivered: Vec<Key>,
    /// Sockets that were taken back, with what became of them meanwhile.
    taken_back: Vec<(Key, Stub)>,
    /// Connections whose bytes could not be kept.
    lost: Vec<SocketId>,
    /// Stubs of connections that were lost on arrival.
    failed: Vec<Key>,
    /// Closed sockets that have come, and when they are given up.
    orphans: Vec<(Instant, Key)>,
    /// Connections whose old server is gone before their processes have followed, by when they are given up.
    strays: VecDeque<(Instant, Key)>,
}

impl Depot {
    /// Of transport server `server` in its life `epoch`.
    pub fn new(server: ServerNumber, epoch: u32, limits: &ServiceLimits) -> Depot {
        Depot {
            server,
            epoch,
            sockets_per_domain: limits.sockets_per_domain,
            memory_per_domain: limits.memory_per_domain,
            ..Depot::default()
        }
    }

    /// Whether `Core::settle_freight` has something to do.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        !(self.delivered.is_empty()
            && self.taken_back.is_empty()
            && self.lost.is_empty()
            && self.failed.is_empty()
            && self.orphans.is_empty())
    }
}

impl Streams for Hands<'_> {
    #[inline]
    fn write(&mut self, id: SocketId, position: u64, data: &[u8]) -> usize {
        self.store.write(id, position, data)
    }

    #[inline]
    fn write_datagram(&mut self, id: SocketId, datagram: &Datagram, payload: &[u8]) -> bool {
        Streams::write_datagram(self.store, id, datagram, payload)
    }

    #[inline]
    fn read(&mut self, id: SocketId, position: u64, out: &mut [u8]) {
        self.store.read(id, position, out);
    }
}

impl Freight for Hands<'_> {
    fn pack(&mut self, id: SocketId, out: &mut Vec<u8>) {
        let baggage = self.store.key_of(id).and_then(|key| self.pack_socket(key));
        baggage.unwrap_or(Baggage::Empty).encode(out);
    }

    fn check(&mut self, baggage: &mut dyn Iterator<Item = &[u8]>) -> bool {
        let mut needs = Needs::default();
        for bytes in baggage {
            match Baggage::decode(bytes) {
                Ok(Baggage::Empty | Baggage::Lost) => {}
                // What was packed here had room here, and would be lost if it were refused.
                Ok(Baggage::Unclaimed { server, .. }) if server == self.depot.server => {}
                Ok(Baggage::Held(held)) if held.server == self.depot.server => {}
                Ok(Baggage::Unclaimed { bytes, .. }) => needs.unclaimed += bytes.len() as u64,
                Ok(Baggage::Held(held)) => {
                    let (slots, chunks) = needs.domains.entry(held.token).or_default();
                    *slots += 1;
                    *chunks += held.chunks();
                }
                Err(_) => return false,
            }
        }
        self.has_room(&needs)
    }

    fn unpack(&mut self, id: SocketId, baggage: &[u8]) -> Positions {
        match Baggage::decode(baggage) {
            Ok(Baggage::Held(held)) => self.unpack_socket(id, &held),
            Ok(Baggage::Unclaimed { bytes, .. }) => {
                self.store.put_unclaimed(id, &bytes);
                Positions::default()
            }
            Ok(Baggage::Empty) => Positions::default(),
            Ok(Baggage::Lost) | Err(_) => {
                self.depot.lost.push(id);
                Positions::default()
            }
        }
    }

    fn receipt(&mut self) -> Option<Vec<u8>> {
        let arrivals = &mut self.depot.arrivals;
        if arrivals.is_empty() {
            return None;
        }
        let some = arrivals.drain(..arrivals.len().min(ARRIVALS_MAX)).collect();
        Some(Receipt { epoch: self.depot.epoch, arrivals: some }.encode())
    }

    fn deliver(&mut self, from: ServerNumber, receipt: &[u8]) {
        let Ok(Receipt { epoch, arrivals }) = Receipt::decode(receipt) else { return };
        for Arrival { stub, slot, generation } in arrivals {
            let key = Key::from_number(stub);
            let place = NewPlace { server: from, epoch, slot, generation };
            if self.store.deliver(key, place) {
                match generation {
                    0 => self.depot.failed.push(key),
                    _ => self.depot.delivered.push(key),
                }
            }
        }
    }
}

/// What the connections of a bucket take here.
#[derive(Debug, Default)]
struct Needs {
    unclaimed: u64,
    /// Slots and chunks.
    domains: HashMap<Token, (u64, u64)>,
}

impl Hands<'_> {
    fn has_room(&self, needs: &Needs) -> bool {
        let domains = &self.store.domains;
        let new = (self.depot.sockets_per_domain, self.depot.memory_per_domain / CHUNK_SIZE as u64);
        let fits = |(token, (slots, chunks)): (&Token, &(u64, u64))| {
            let domain = domains.find(token).and_then(|key| domains.get(key));
            let (free_slots, free_chunks) = domain.map_or(new, |domain| {
                let arena = &domain.arena;
                (domain.table.room(), u64::from(arena.quota_chunks() - arena.used_chunks()))
            });
            *slots <= u64::from(free_slots) && *chunks <= free_chunks
        };
        needs.unclaimed <= self.store.unclaimed_room() && needs.domains.iter().all(fits)
    }

    /// The stub that something which was packed here belongs to, if it waits.
    fn own_stub(&self, held: &Held) -> Option<Key> {
        let key = Key::from_number(held.stub);
        let stub = self.store.sockets.get(key)?.stub.as_ref()?;
        let ours = held.server == self.depot.server && !held.closed;
        (ours && matches!(stub.stage, StubStage::Packed)).then_some(key)
    }

    fn pack_socket(&mut self, key: Key) -> Option<Baggage> {
        let socket = self.store.sockets.get(key)?;
        if let Some(accepting) = &socket.accepting {
            if let Some(Offered { process, by, .. }) = accepting.offered {
                self.processes.offer_settled(process, by);
            }
            let bytes = self.store.unclaimed_of(key)?.to_vec();
            self.remove_packed(key);
            return Some(Baggage::Unclaimed { server: self.depot.server, bytes });
        }
        let held = self.describe(key)?;
        if held.closed {
            self.remove_packed(key);
        } else {
            self.store.clear_id(key);
            self.store.clear_served(key);
            let socket = self.store.sockets.get_mut(key)?;
            debug_assert!(socket.stub.is_some(), "it was made ready");
            socket.stub.get_or_insert_default().stage = StubStage::Packed;
            self.depot.packed.push(key);
        }
        if held.check().is_ok() {
            return Some(Baggage::Held(Box::new(held)));
        }
        // Nobody would take the bucket with it: it ends alone.
        if !held.closed {
            self.depot.failed.push(key);
        }
        Some(Baggage::Lost)
    }

    /// Nothing of it stays here but its flow, which is ours until another server has it.
    fn remove_packed(&mut self, key: Key) {
        if let Some(socket) = self.store.sockets.get_mut(key) {
            self.depot.places.extend(socket.place.take());
        }
        self.store.remove(key);
    }

    /// Everything of a socket that is, or was, an application's.
    fn describe(&self, key: Key) -> Option<Held> {
        let socket = self.store.sockets.get(key)?;
        let (stream, domain) = (socket.stream.as_ref()?, self.store.domains.get(socket.domain?)?);
        let awaited = socket.came.as_ref().and_then(|came| came.awaits);
        let owner = socket.owner.and_then(|owner| self.processes.get(owner));
        let owner = owner.map(|process| process.name).or(awaited);
        let mut positions = stream.positions();
        let mut received = Vec::new();
        // What nobody will read needs not come along.
        let runs = if socket.closed { Vec::new() } else { stream.rx_runs() };
        if socket.closed {
            (positions.rx_head, positions.rx_end) = (positions.rx_tail, positions.rx_tail);
        }
        for (position, len) in runs {
            let mut run = vec![0; len];
            let copied = stream.copy_run(position, &mut run, &domain.arena);
            debug_assert!(copied, "a run lies in chunks");
            received.push((position, run));
        }
        let mut sent = vec![0; (positions.tx_tail - positions.tx_head) as usize];
        let copied = stream.read_tx(positions.tx_head, &mut sent, &domain.arena);
        debug_assert!(copied, "what was written lies in chunks");
        let listener = socket.came_to.and_then(|key| self.store.sockets.get(key));
        Some(Held {
            server: self.depot.server,
            stub: key.number(),
            token: domain.token,
            closed: socket.closed,
            orphan_until: socket.orphan_until,
            found: socket.came.as_ref().is_none_or(|came| came.arrived),
            owner: owner.filter(|_| !socket.shared && !socket.closed),
            // Its placeholder is gone with whoever closed it.
            shared: socket.shared && !socket.closed,
            cookie: socket.cookie.unwrap_or_default(),
            options: socket.options,
            resets: socket.resets,
            more: socket.more,
            tx_shut: socket.tx_shut,
            rx_shut: socket.rx_shut,
            connected: socket.progress.connected,
            rx_fin: socket.progress.rx_fin,
            tx_wish: socket.progress.tx_wish,
            error: stream.pending_error().clamp(0, 4095),
            served: socket.served,
            came_to: listener.and_then(|listener| listener.listener),
            local: socket.local,
            remote: socket.remote,
            positions,
            received,
            sent,
        })
    }

    fn unpack_socket(&mut self, id: SocketId, held: &Held) -> Positions {
        let positions = held.positions;
        let positions = Positions { written: positions.tx_tail, read: positions.rx_head };
        if let Some(key) = self.own_stub(held) {
            let stub = self.store.take_back_stub(key, id);
            self.store.set_served(key, held.served);
            self.depot.taken_back.push((key, stub));
            return positions;
        }
        let ours = held.server == self.depot.server;
        let key = if ours && !held.closed { None } else { self.settle_in(id, held) };
        if key.is_none() {
            // The system gives less memory than the quotas promise, or this was never packed here.
            self.depot.lost.push(id);
        }
        if held.closed {
            self.depot.orphans.extend(held.orphan_until.zip(key));
        }
        if held.closed || ours {
            return positions;
        }
        let name = key.and_then(|key| self.store.sockets.get(key)).and_then(Socket::name);
        let (slot, generation) = name.unwrap_or((NO_SLOT, 0));
        self.depot.arrivals.push(Arrival { stub: held.stub, slot, generation });
        positions
    }

    /// Makes a socket of what has come. `None`: there is no memory.
    fn settle_in(&mut self, id: SocketId, held: &Held) -> Option<Key> {
        let (slots, memory) = (self.depot.sockets_per_domain, self.depot.memory_per_domain);
        let domain_key = self.store.domains.join(held.token, slots, memory);
        let key = self.store.insert(Instant::default());
        let Some(stream) = self.resume(key, domain_key, held) else {
            self.store.sockets.remove(key);
            self.store.domains.remove_if_unused(domain_key);
            return None;
        };
        let came_to = held.came_to.and_then(|name| self.store.listeners.get(&name).copied());
        let owner = held.owner.and_then(|name| self.processes.named(name));
        let owner = owner.and_then(|id| Some((id, self.processes.get_mut(id)?)));
        let owner = owner.filter(|(_, process)| process.domain == domain_key);
        let socket = self.store.sockets.get_mut(key)?;
        if let Some((id, process)) = owner {
            process.sockets.insert(key);
            socket.owner = Some(id);
        }
        socket.domain = Some(domain_key);
        socket.came_to = came_to;
        held.fill(socket);
        let domain = self.store.domains.get_mut(domain_key);
        if let (false, Some(domain)) = (held.closed, domain) {
            if held.shared {
                domain.shared.insert(key);
            }
            socket.start(stream, &mut domain.arena, held.error);
        } else {
            socket.stream = Some(stream);
        }
        self.store.set_id(key, id);
        self.store.set_served(key, held.served);
        self.store.note_flow(key);
        if held.cookie != 0 && !held.closed {
            self.store.set_cookie(key, held.cookie);
        }
        Some(key)
    }

    /// A record in the domain with all bytes.
    fn resume(&mut self, key: Key, domain: Key, held: &Held) -> Option<ServiceStream> {
        let domain = self.store.domains.get_mut(domain)?;
        let place = domain.allocate_slot(key)?;
        let slot = place.slot;
        let mut stream = ServiceStream::resume(place, &held.positions);
        let arena = &mut domain.arena;
        let mut complete = stream.restore_tx(&held.sent, arena);
        for (position, run) in &held.received {
            complete = complete && stream.write_rx(*position, run, arena) == run.len();
        }
        if !complete {
            stream.retire(arena);
            domain.free_slot(slot);
            return None;
        }
        stream.commit_rx(held.positions.rx_tail);
        Some(stream)
    }
}

impl Held {
    /// What is said of a socket that has come.
    fn fill(&self, socket: &mut Socket) {
        socket.kind = SocketKind::Connection;
        socket.options = self.options;
        (socket.resets, socket.more) = (self.resets, self.more);
        (socket.tx_shut, socket.rx_shut) = (self.tx_shut, self.rx_shut);
        (socket.closed, socket.orphan_until) = (self.closed, self.orphan_until);
        socket.shared = self.shared;
        (socket.local, socket.remote) = (self.local, self.remote);
        socket.progress = Progress {
            connected: self.connected,
            rx_end: self.positions.rx_tail,
            rx_fin: self.rx_fin,
            tx_acked: self.positions.tx_head,
            tx_wish: self.tx_wish,
            ..Progress::default()
        };
        if !self.closed {
            socket.came = Some(Box::new(Came {
                from: Some(self.server),
                awaits: self.owner,
                found: self.found,
                arrived: false,
            }));
        }
    }
}

impl Socket {
    /// Shows what is known of a connection in the record that it has been given.
    fn start(&mut self, mut stream: ServiceStream, arena: &mut haypile_shm::Arena, error: i32) {
        stream.set_rx_kick_step(u64::from(self.options.receive_buffer) / 3);
        stream.set_local(self.local);
        stream.set_remote(self.remote);
        stream.grant_tx(send_buffer(&self.options, &self.progress), arena);
        if error != 0 {
            stream.set_error(error);
        }
        self.stream = Some(stream);
        self.publish_status();
    }
}

impl Store {
    /// A connection is called `id` here again: whoever waits for its streams goes on. What its stub was.
    fn take_back_stub(&mut self, key: Key, id: SocketId) -> Stub {
        self.set_id(key, id);
        let Some(socket) = self.sockets.get_mut(key) else { return Stub::default() };
        if let Some(stream) = &mut socket.stream {
            stream.thaw();
        }
        socket.stub.take().map(|stub| *stub).unwrap_or_default()
    }

    /// A stub hears where its connection is: it says so, and its bytes are not needed any more. False if it waits for
    /// nothing of the kind. With generation 0 the connection was lost.
    fn deliver(&mut self, key: Key, place: NewPlace) -> bool {
        let Some(socket) = self.sockets.get_mut(key) else { return false };
        let Some(stub) = socket.stub.as_mut() else { return false };
        if !matches!(stub.stage, StubStage::Packed) {
            return false;
        }
        if place.generation == 0 {
            return true;
        }
        stub.stage = StubStage::Delivered(place);
        if let Some(stream) = &mut socket.stream {
            stream.set_new_place(place);
        }
        socket.publish_status();
        let domain = socket.domain.and_then(|domain| self.domains.get_mut(domain));
        if let (Some(stream), Some(domain)) = (&mut socket.stream, domain) {
            // Whoever gets the owner word sees MOVED, which was set before it was free.
            stream.release_all(&mut domain.arena);
            stream.thaw();
        }
        true
    }
}
