//! Buckets that leave and come: what a shard does when the TCP flows of a bucket move to another server.
//!
//! [`Shard::export_bucket`] takes everything of a bucket out; packets that still come for it are sent after it. A
//! shard that expects a bucket ([`Shard::expect_bucket`]) keeps its packets until [`Shard::import_bucket`] or
//! [`Shard::give_up_bucket`], and plays them then in their order. Who calls when is in `migration/protocol.rs` of
//! the crate, what crosses in `migration/mod.rs`. Nothing here is asked about a segment that finds its connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Shard;
use super::elsewhere::{Forward, ForwardKind};
use super::entry::{Socket, Stage};
use super::lifecycle::QueuedEvent;
use super::receive::IpPacket;
use crate::carry::{Refusal, demand};
use crate::control::names::ServerNumber;
use crate::counters::Counter;
use crate::drop_reason::DropReason;
use crate::event::Event;
use crate::flow_table::{FlowKey, FlowOwner};
use crate::migration::protocol::MoveMessage;
use crate::migration::{
    Cargo, CarriedConnection, CarriedStage, CarriedTimeWait, Exported, Freight, Imported,
    NotExported,
};
use crate::options::Close;
use crate::socket_id::SocketId;
use crate::steering::BUCKETS;
use crate::streams::Streams;
use crate::time::Instant;
use crate::time_wait_table::Waiting;

/// A packet is sent after its flow so often at most. Two are usual; a bucket that is refused by one server after
/// the other takes its packets along each time. Maps that disagree for good must not keep a packet for ever.
const TIMES_MAX: u8 = 64;

/// Buckets that are on their way to us.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    /// With the packets that wait for each.
    pub buckets: BTreeMap<u16, VecDeque<Held>>,
    /// Packets that wait for any.
    pub held: usize,
}

/// A packet that waits for its bucket.
#[derive(Debug)]
pub(super) struct Held {
    kind: ForwardKind,
    packet: Vec<u8>,
}

impl Shard {
    /// The connections of a bucket that [`Shard::export_bucket`] would take, in an order that repeats. Looks at every
    /// flow.
    pub fn connections_in_bucket(&self, bucket: u16) -> Vec<SocketId> {
        self.flows_of(bucket).0
    }

    /// How many connections each bucket has here, and how many TIME-WAIT records; those that have any. Looks at every
    /// flow.
    pub fn flows_by_bucket(&self) -> BTreeMap<u16, (usize, usize)> {
        let mut counts: BTreeMap<u16, (usize, usize)> = BTreeMap::new();
        let Some(steered) = &self.steered else { return counts };
        for (key, owner) in self.flows.iter() {
            let bucket = steered.steering.bucket_of_flow(key.local(), key.remote());
            let (connections, time_wait) = counts.entry(bucket).or_default();
            match owner {
                FlowOwner::Connection(_) => *connections += 1,
                FlowOwner::TimeWait(_) => *time_wait += 1,
            }
        }
        counts
    }

    /// Flows here: connections and TIME-WAIT records.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// Whether [`Shard::export_bucket`] would hand this bucket over.
    ///
    /// # Errors
    /// See [`NotExported`].
    pub fn may_export(&self, bucket: u16, to: ServerNumber) -> Result<(), NotExported> {
        self.check_export(bucket, to).map(drop)
    }

    /// Hands the TCP flows of a bucket, 0..[`BUCKETS`], to server `to`: its connections and TIME-WAIT records leave
    /// without an event, and the bucket is `to`'s from now on. Looks at every flow.
    ///
    /// # Errors
    /// See [`NotExported`]; nothing has changed.
    pub fn export_bucket(
        &mut self,
        now: Instant,
        bucket: u16,
        to: ServerNumber,
        freight: &mut impl Freight,
    ) -> Result<Exported, NotExported> {
        self.now = now;
        let version = self.check_export(bucket, to)?;
        let (connections, time_wait) = self.flows_of(bucket);
        let mut cargo = Cargo { cookies_until: self.cookies_until, ..Cargo::default() };
        self.forget_events_of(&connections);
        for id in &connections {
            cargo.connections.extend(self.take_connection(*id, freight));
        }
        for name in time_wait {
            cargo.time_wait.extend(self.take_time_wait(name));
        }
        if let Some(steered) = &mut self.steered {
            steered.move_flows(bucket, version, to);
        }
        self.counters.count(Counter::BucketsExported);
        self.counters.add(Counter::ConnectionsExported, cargo.connections.len() as u64);
        self.counters.add(Counter::TimeWaitExported, cargo.time_wait.len() as u64);
        let time_wait = cargo.time_wait.len();
        let flows = cargo.connections.iter().map(|one| (one.local, one.remote)).collect();
        let bytes = cargo.encode(bucket, now);
        Ok(Exported { version, bytes, ids: connections, flows, time_wait })
    }

    /// A bucket is on its way to us by move number `version`: its packets wait, as many as fit. False, and nothing
    /// changed, if that is no news.
    pub fn expect_bucket(&mut self, bucket: u16, version: u32) -> bool {
        let Some(steered) = &mut self.steered else { return false };
        let own = steered.server;
        let news = usize::from(bucket) < BUCKETS && steered.move_flows(bucket, version, own);
        if news {
            self.arriving.buckets.entry(bucket).or_default();
        }
        news
    }

    /// Takes what [`Shard::export_bucket`] of another server wrote of a bucket that is expected, and then the
    /// packets that have waited.
    ///
    /// # Errors
    /// See [`Refusal`]; nothing has changed, and the bucket is still expected.
    pub fn import_bucket(
        &mut self,
        now: Instant,
        bucket: u16,
        bytes: &[u8],
        freight: &mut impl Freight,
    ) -> Result<Imported, Refusal> {
        self.now = now;
        demand(self.arriving.buckets.contains_key(&bucket), "a bucket that nobody expects")?;
        let cargo = Cargo::decode(bytes, bucket, now)?;
        self.check_cargo(bucket, &cargo, freight)?;
        let mut imported = Imported {
            connections: cargo.connections.len(),
            time_wait: cargo.time_wait.len(),
            ..Imported::default()
        };
        self.cookies_until = self.cookies_until.max(cargo.cookies_until);
        for carried in cargo.connections {
            imported.without_listener += usize::from(!self.put_connection(carried, freight));
        }
        for carried in &cargo.time_wait {
            self.put_time_wait(carried);
        }
        self.counters.count(Counter::BucketsImported);
        self.counters.add(Counter::ConnectionsImported, imported.connections as u64);
        self.counters.add(Counter::TimeWaitImported, imported.time_wait as u64);
        imported.held = self.play_held(bucket, freight);
        Ok(imported)
    }

    /// A bucket that was expected does not come: by move number `version` it is with `server`, and so its packets
    /// go there.
    pub fn give_up_bucket(
        &mut self,
        now: Instant,
        bucket: u16,
        version: u32,
        server: ServerNumber,
        streams: &mut impl Streams,
    ) {
        self.now = now;
        if let Some(steered) = &mut self.steered {
            steered.move_flows(bucket, version, server);
        }
        let _: usize = self.play_held(bucket, streams);
    }

    /// The state of a bucket that was expected will never come: it is ours as it is, and its packets find nothing.
    pub fn stop_expecting(&mut self, now: Instant, bucket: u16, streams: &mut impl Streams) {
        self.now = now;
        let _: usize = self.play_held(bucket, streams);
    }

    /// Queues what another server has to be told about a move, behind what it gets before.
    pub fn send_move(&mut self, to: ServerNumber, message: MoveMessage, body: Vec<u8>) {
        self.forwards.push_back(Forward { to, kind: ForwardKind::Move(message), packet: body });
    }

    /// The flows of a bucket have moved between two other servers, or to us, who have them by then. False if that
    /// is no news.
    pub fn note_move(&mut self, bucket: u16, version: u32, server: ServerNumber) -> bool {
        self.steered.as_mut().is_some_and(|steered| steered.move_flows(bucket, version, server))
    }

    /// A packet of a flow that nobody here has: it waits for its bucket, or is sent after it. `None` when the flow
    /// is ours.
    pub(super) fn follow_flow(
        &mut self,
        packet: &IpPacket<'_>,
        key: &FlowKey,
    ) -> Option<Result<(), DropReason>> {
        let steered = self.steered.as_ref()?;
        let bucket = steered.steering.bucket_of_flow(key.local(), key.remote());
        let to = steered.steering.owner_of_flows(bucket);
        let is_ours = to == steered.server;
        if is_ours && !self.arriving.buckets.contains_key(&bucket) {
            return None;
        }
        let ingress = packet.ingress;
        let has_moved = is_ours || steered.steering.version_of_flows(bucket) > 0;
        if !has_moved || ingress.forwarded >= TIMES_MAX {
            return Some(Err(DropReason::TcpElsewhere));
        }
        let mut copy = self.buffers.take(packet.whole.len());
        copy.copy_from_slice(packet.whole);
        let (wire, segment_size) = (ingress.wire, ingress.segment_size);
        let times = ingress.forwarded + u8::from(!is_ours);
        let kind = ForwardKind::Moved { wire, times, segment_size };
        if is_ours {
            self.hold(bucket, Held { kind, packet: copy });
        } else {
            self.counters.count(Counter::PacketsSentAfterFlows);
            self.queue_forward(Forward { to, kind, packet: copy });
        }
        Some(Ok(()))
    }

    fn hold(&mut self, bucket: u16, held: Held) {
        match self.arriving.buckets.get_mut(&bucket) {
            Some(waiting) if self.arriving.held < self.limits.loopback_packets as usize => {
                waiting.push_back(held);
                self.arriving.held += 1;
                self.counters.count(Counter::PacketsHeld);
            }
            _ => {
                self.counters.count(Counter::HeldDropped);
                self.buffers.give(held.packet);
            }
        }
    }

    /// The bucket is expected no longer: what has waited for it goes its way. How much that was.
    fn play_held(&mut self, bucket: u16, streams: &mut impl Streams) -> usize {
        let waiting: VecDeque<Held> = self.arriving.buckets.remove(&bucket).unwrap_or_default();
        let count = waiting.len();
        self.arriving.held -= count;
        for Held { kind, packet } in waiting {
            self.handle_forwarded(self.now, kind, &packet, streams);
            self.buffers.give(packet);
        }
        count
    }

    fn check_export(&self, bucket: u16, to: ServerNumber) -> Result<u32, NotExported> {
        let Some(steered) = &self.steered else { return Err(NotExported::NotOurs) };
        let is_ours = usize::from(bucket) < BUCKETS
            && steered.steering.owner_of_flows(bucket) == steered.server
            && !self.arriving.buckets.contains_key(&bucket);
        if !is_ours {
            return Err(NotExported::NotOurs);
        }
        if to == steered.server || to >= steered.steering.servers() {
            return Err(NotExported::NotThere);
        }
        Ok(steered.steering.version_of_flows(bucket) + 1)
    }

    /// The connections of a bucket in an order that repeats, and its TIME-WAIT records, oldest first.
    fn flows_of(&self, bucket: u16) -> (Vec<SocketId>, Vec<SocketId>) {
        let (mut connections, mut time_wait) = (Vec::new(), Vec::new());
        let Some(steered) = &self.steered else { return (connections, time_wait) };
        for (key, owner) in self.flows.iter() {
            if steered.steering.bucket_of_flow(key.local(), key.remote()) == bucket {
                match owner {
                    FlowOwner::Connection(id) => connections.push(id),
                    FlowOwner::TimeWait(name) => time_wait.push(name),
                }
            }
        }
        connections.sort_unstable();
        let expires = |name: &SocketId| self.time_wait.get(*name).map(|one| (one.expires, *name));
        time_wait.sort_unstable_by_key(expires);
        (connections, time_wait)
    }

    /// Events of connections that leave are nobody's: their new server says anew what holds.
    fn forget_events_of(&mut self, leaving: &[SocketId]) {
        self.events.retain(|event| match event {
            QueuedEvent::Ready(Event::Accepted { id, .. }) | QueuedEvent::Progress(id) => {
                leaving.binary_search(id).is_err()
            }
            QueuedEvent::Ready(_) => true,
        });
    }

    fn take_connection(
        &mut self,
        id: SocketId,
        freight: &mut impl Freight,
    ) -> Option<CarriedConnection> {
        self.leave_listener(id);
        self.stop_sending(id);
        self.wheel.cancel(id.index());
        let Some(Socket::Connection(entry)) = self.sockets.remove(id) else { return None };
        self.flows.remove(&entry.key, FlowOwner::Connection(id));
        let mut baggage = Vec::new();
        freight.pack(id, &mut baggage);
        let stage = match entry.stage {
            Stage::HalfOpen(_) => CarriedStage::HalfOpen,
            Stage::Unclaimed(_) => CarriedStage::Unclaimed,
            Stage::Owned => CarriedStage::Owned,
            Stage::Orphan => CarriedStage::Orphan,
        };
        Some(CarriedConnection {
            local: entry.key.local(),
            remote: entry.key.remote(),
            stage,
            opened_at: entry.opened_at,
            defer_accept_s: entry.defer_accept_s,
            type_of_service: entry.type_of_service,
            hop_limit: entry.hop_limit,
            connection: entry.connection,
            baggage,
        })
    }

    fn take_time_wait(&mut self, name: SocketId) -> Option<CarriedTimeWait> {
        let Waiting { key, record, expires, type_of_service, hop_limit } =
            self.time_wait.remove(name)?;
        self.flows.remove(&key, FlowOwner::TimeWait(name));
        let (local, remote) = (key.local(), key.remote());
        Some(CarriedTimeWait { local, remote, record, expires, type_of_service, hop_limit })
    }

    /// That all of it can be put here.
    fn check_cargo(
        &self,
        bucket: u16,
        cargo: &Cargo,
        freight: &mut impl Freight,
    ) -> Result<(), Refusal> {
        let connections = cargo.connections.iter().map(|one| (one.local, one.remote));
        let flows = connections.chain(cargo.time_wait.iter().map(|one| (one.local, one.remote)));
        let steering = self.steered.as_ref().map(|steered| &steered.steering);
        let mut seen = BTreeSet::new();
        for (local, remote) in flows {
            let right = steering.is_some_and(|map| map.bucket_of_flow(local, remote) == bucket);
            demand(right, "a flow of another bucket")?;
            demand(seen.insert((local, remote)), "a flow twice")?;
            if self.flows.lookup(&FlowKey::new(local, remote)).is_some() {
                return Err(Refusal::Occupied);
            }
        }
        if cargo.connections.len() > self.sockets.room() {
            return Err(Refusal::NoRoom);
        }
        for carried in &cargo.connections {
            if self.routing.next_hop(carried.remote.ip()).is_none() {
                return Err(Refusal::NoRoute);
            }
        }
        let mut baggage = cargo.connections.iter().map(|one| &one.baggage[..]);
        demand(freight.check(&mut baggage), "the baggage of a connection")
    }

    /// Adds a connection from elsewhere; false when it should be in the queue of a listener that is gone.
    fn put_connection(&mut self, carried: CarriedConnection, freight: &mut impl Freight) -> bool {
        let key = FlowKey::new(carried.local, carried.remote);
        let Some(next_hop) = self.routing.next_hop(carried.remote.ip()) else { return false };
        let listener = self.listener_for(&key);
        let stage = match (carried.stage, listener) {
            (CarriedStage::HalfOpen, Some(listener)) => Stage::HalfOpen(listener),
            // As where a listener closes: without a word.
            (CarriedStage::HalfOpen, None) => return false,
            (CarriedStage::Unclaimed, Some(listener)) => Stage::Unclaimed(listener),
            (CarriedStage::Unclaimed, None) | (CarriedStage::Owned, _) => Stage::Owned,
            (CarriedStage::Orphan, _) => Stage::Orphan,
        };
        let options = *carried.connection.options();
        let mut entry = self.entry(carried.connection, key, next_hop, stage, &options);
        entry.opened_at = carried.opened_at;
        entry.defer_accept_s = carried.defer_accept_s;
        entry.type_of_service = carried.type_of_service;
        entry.hop_limit = carried.hop_limit;
        let Some(id) = self.insert_connection(entry) else { return false };
        let positions = freight.unpack(id, &carried.baggage);
        self.join_listener(id);
        if let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut)
            && !matches!(entry.stage, Stage::HalfOpen(_) | Stage::Orphan)
        {
            entry.connection.send_ready(self.now, positions.written);
            entry.connection.receive_consumed(self.now, positions.read);
        }
        let stranded = carried.stage == CarriedStage::Unclaimed && listener.is_none();
        if stranded {
            self.close(self.now, id, Close::Abort);
        }
        self.tell_progress(id);
        self.settle(id);
        !stranded
    }

    /// A connection that came from elsewhere takes its place in its listener's queue, and is announced here.
    fn join_listener(&mut self, id: SocketId) {
        let Some(entry) = self.sockets.get(id).and_then(Socket::connection) else { return };
        let (local, remote) = (entry.key.local(), entry.key.remote());
        let (Stage::HalfOpen(listener_id) | Stage::Unclaimed(listener_id)) = entry.stage else {
            return;
        };
        let half_open = matches!(entry.stage, Stage::HalfOpen(_));
        if let Some(listener) = self.sockets.get_mut(listener_id).and_then(Socket::listener_mut) {
            let list = if half_open { &mut listener.half_open } else { &mut listener.accept_queue };
            self.queue_links.push_back(list, id.index());
        }
        if half_open {
            self.half_open += 1;
        } else {
            let announced = Event::Accepted { listener: listener_id, id, local, remote };
            self.events.push_back(QueuedEvent::Ready(announced));
        }
    }

    /// Whoever owns a connection hears how far it is.
    fn tell_progress(&mut self, id: SocketId) {
        let socket = self.sockets.get_mut(id).and_then(Socket::connection_mut);
        if let Some(entry) = socket
            && matches!(entry.stage, Stage::Unclaimed(_) | Stage::Owned)
            && !std::mem::replace(&mut entry.event_queued, true)
        {
            self.events.push_back(QueuedEvent::Progress(id));
        }
    }

    fn put_time_wait(&mut self, carried: &CarriedTimeWait) {
        let CarriedTimeWait { local, remote, record, expires, type_of_service, hop_limit } =
            *carried;
        let key = FlowKey::new(local, remote);
        if self.time_wait.is_full()
            && let Some((name, oldest)) = self.time_wait.pop_oldest()
        {
            self.counters.count(Counter::TcpTimeWaitEvicted);
            self.flows.remove(&oldest.key, FlowOwner::TimeWait(name));
        }
        let waiting = Waiting { key, record, expires, type_of_service, hop_limit };
        if let Some(name) = self.time_wait.insert_moved(self.now, waiting) {
            self.flows.replace(key, FlowOwner::TimeWait(name));
        }
    }
}
