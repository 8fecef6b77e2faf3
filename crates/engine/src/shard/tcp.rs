//! Which connection a segment belongs to, and where a SYN becomes a connection.
//!
//! Called by `receive.rs`. The order is: checksum, header, flow table (connection or TIME-WAIT
//! record), listener, reset. What a connection does with its segment is in `tcp/receive.rs` of the
//! crate; what becomes of the connection afterwards is in `lifecycle.rs`. Read first: RFC 9293
//! section 3.10.7.

use std::net::SocketAddr;

use super::Shard;
use super::entry::{Entry, Socket, Stage};
use super::headers::{TCP, header_len, transport_checksum};
use super::receive::IpPacket;
use crate::counters::Counter;
use crate::drop_reason::DropReason;
use crate::flow_table::{FlowKey, FlowOwner};
use crate::routing::NextHop;
use crate::socket_id::SocketId;
use crate::streams::Streams;
use crate::tcp::segment::HEADER_LEN;
use crate::tcp::{
    Connection, Disposition, Flags, Outgoing, Segment, SeqNumber, Setup, TimeWaitAnswer,
};

/// How far a new initial sequence number is put past the end of the connection that was in
/// TIME-WAIT, when its own would not lie there: more than any window it could have had in flight.
const PAST_OLD_CONNECTION: u32 = 65_535 + 2;

/// What a SYN gets.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Admission {
    /// A half-open connection.
    Connection,
    /// A cookie: there are too many half-open ones.
    Cookie,
}

impl Shard {
    /// A TCP segment for one of our addresses.
    // A row of docs/cost.md.
    #[inline(never)]
    pub(super) fn handle_tcp(
        &mut self,
        packet: &IpPacket<'_>,
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        if packet.group {
            return Err(DropReason::TcpNotUnicast);
        }
        let (source, destination) = (packet.source, packet.destination);
        if !packet.ingress.checksum_valid
            && transport_checksum(source, destination, TCP, packet.payload) != 0
        {
            return Err(DropReason::TcpBadChecksum);
        }
        let mut segment = Segment::parse(packet.payload).map_err(|_| DropReason::TcpMalformed)?;
        segment.segment_size = packet.ingress.segment_size;
        if segment.source_port == 0 || segment.destination_port == 0 {
            return Err(DropReason::TcpPortZero);
        }
        self.counters.add(Counter::TcpSegmentsReceived, segment.count());
        let local = SocketAddr::new(destination, segment.destination_port);
        let remote = SocketAddr::new(source, segment.source_port);
        let key = FlowKey::new(local, remote);
        let owner = self.flows.lookup(&key);
        let handled = match owner {
            Some(FlowOwner::Connection(id)) => self.handle_segment(id, &segment, streams),
            Some(FlowOwner::TimeWait(name)) => self.handle_late_segment(name, key, &segment),
            None => self.handle_stray_segment(packet, key, &segment, streams),
        };
        self.trace_received(owner, key, &segment, handled.err());
        handled
    }

    /// A segment of a connection.
    pub(super) fn handle_segment(
        &mut self,
        id: SocketId,
        segment: &Segment<'_>,
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        let Some(entry) = self.sockets.get(id).and_then(Socket::connection) else {
            return Err(DropReason::TcpNoFlow);
        };
        if let Stage::HalfOpen(listener) = entry.stage {
            let admitted = self.check_completion(listener, entry, segment);
            if admitted == Err(DropReason::TcpListenerFull) {
                self.counters.count(Counter::TcpListenOverflows);
            }
            admitted?;
        }
        let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut) else {
            return Err(DropReason::TcpNoFlow);
        };
        let hints = self.neighbours.wants_hints();
        let acked = if hints { entry.connection.progress().tx_acked } else { 0 };
        let counters = &mut self.counters.tcp;
        let disposition = entry.connection.handle_segment(self.now, id, segment, streams, counters);
        match disposition {
            Disposition::Continue => {}
            Disposition::Established => self.handle_established(id),
            Disposition::Reply(reply) => self.reply_for(id, &reply),
            Disposition::EnterTimeWait(acknowledgement) => {
                if let Some(acknowledgement) = acknowledgement {
                    self.reply_for(id, &acknowledgement);
                }
                self.enter_time_wait(id);
            }
            Disposition::Reset => {
                self.counters.count(Counter::TcpResets);
                self.conclude(id);
            }
            Disposition::Closed => self.conclude(id),
            Disposition::Aborted(reset) => {
                self.counters.count(Counter::TcpResets);
                self.reply_for(id, &reset);
                self.conclude(id);
            }
        }
        self.settle(id);
        if hints {
            self.hint_neighbour(id, acked);
        }
        Ok(())
    }

    /// Whether the ACK that completes a handshake may be taken now. Linux's rule: not while the
    /// accept queue is full (our SYN-ACK is sent again, and so is the peer's ACK), nor while the
    /// listener waits for data.
    fn check_completion(
        &self,
        listener: SocketId,
        entry: &Entry,
        segment: &Segment<'_>,
    ) -> Result<(), DropReason> {
        let flags = segment.flags;
        let completes = flags.contains(Flags::ACK)
            && !flags.contains(Flags::RST)
            && !flags.contains(Flags::SYN);
        if !completes {
            return Ok(());
        }
        if let Some(Socket::Listener(listener)) = self.sockets.get(listener)
            && listener.is_full()
        {
            return Err(DropReason::TcpListenerFull);
        }
        let waits = self.now.since(entry.opened_at) < u64::from(entry.defer_accept_s) * 1_000_000;
        if waits && segment.payload.is_empty() && !flags.contains(Flags::FIN) {
            return Err(DropReason::TcpDeferred);
        }
        Ok(())
    }

    /// A segment of a connection that is in TIME-WAIT.
    fn handle_late_segment(
        &mut self,
        name: SocketId,
        key: FlowKey,
        segment: &Segment<'_>,
    ) -> Result<(), DropReason> {
        let Some(waiting) = self.time_wait.get_mut(name) else {
            return Err(DropReason::TcpNoFlow);
        };
        let (type_of_service, hop_limit) = (waiting.type_of_service, waiting.hop_limit);
        match waiting.record.handle_segment(self.now, segment) {
            TimeWaitAnswer::Ignore => Err(DropReason::TcpTimeWait),
            TimeWaitAnswer::Acknowledge { reply, restart } => {
                if restart {
                    self.time_wait.restart(self.now, name);
                }
                self.reply_segment(&key, &reply, type_of_service, hop_limit);
                Ok(())
            }
            TimeWaitAnswer::Reuse { snd_nxt } => {
                // A new connection to a port that nobody listens on any more is refused like any other:
                // silence would make the client wait for its own time-out.
                let Some(listener) = self.listener_for(&key) else {
                    self.send_reset(&key, segment);
                    return Err(DropReason::TcpNoFlow);
                };
                if self.check_admission(listener, &key)? == Admission::Cookie {
                    // The sequence number has to follow the old connection's, which no cookie does.
                    self.evict_half_open(listener)?;
                }
                self.forget_time_wait(name);
                self.counters.count(Counter::TcpTimeWaitReused);
                self.admit(listener, key, segment, Some(snd_nxt))
            }
        }
    }

    /// A segment that belongs to nothing: a new connection, a flow of another server, or a mistake.
    fn handle_stray_segment(
        &mut self,
        packet: &IpPacket<'_>,
        key: FlowKey,
        segment: &Segment<'_>,
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        let flags = segment.flags;
        if let Some(followed) = self.follow_flow(packet, &key) {
            return followed;
        }
        if flags.contains(Flags::RST) {
            return Err(DropReason::TcpNoFlowReset);
        }
        if flags.contains(Flags::ACK) {
            return self.handle_stray_acknowledgement(key, segment, streams);
        }
        let Some(listener) = self.listener_for(&key) else {
            self.send_reset(&key, segment);
            return Err(DropReason::TcpNoFlow);
        };
        // Linux drops SYN with FIN too; neither is anything a sound peer sends.
        if !flags.contains(Flags::SYN) || flags.contains(Flags::FIN) {
            return Err(DropReason::TcpSynMalformed);
        }
        match self.check_admission(listener, &key)? {
            Admission::Connection => self.admit(listener, key, segment, None),
            Admission::Cookie => self.send_cookie(listener, key, segment),
        }
    }

    pub(super) fn listener_for(&self, key: &FlowKey) -> Option<SocketId> {
        self.listeners.lookup(key.local(), self.flows.hash(key))
    }

    /// Whether a listener can take a SYN now, and how.
    fn check_admission(
        &mut self,
        listener_id: SocketId,
        key: &FlowKey,
    ) -> Result<Admission, DropReason> {
        let Some(Socket::Listener(listener)) = self.sockets.get(listener_id) else {
            return Err(DropReason::TcpNoFlow);
        };
        if listener.opening {
            return Err(DropReason::TcpListenerOpening);
        }
        if listener.is_full() {
            self.counters.count(Counter::TcpListenOverflows);
            return Err(DropReason::TcpListenerFull);
        }
        if self.routing.next_hop(key.remote().ip()).is_none() {
            return Err(DropReason::TcpNoRoute);
        }
        let own_limit = listener.backlog.max(self.limits.half_open_per_listener);
        let full = self.sockets.is_full();
        if full && listener.half_open.is_empty() {
            return Err(DropReason::TcpSocketLimit);
        }
        let crowded = listener.half_open.len() >= own_limit
            || self.half_open >= self.limits.half_open
            || full;
        Ok(if crowded { Admission::Cookie } else { Admission::Connection })
    }

    /// Gives up the oldest half-open connection of a listener for one that has proved its address.
    pub(super) fn evict_half_open(&mut self, listener_id: SocketId) -> Result<(), DropReason> {
        let oldest = match self.sockets.get(listener_id) {
            Some(Socket::Listener(listener)) => listener.half_open.first(),
            _ => None,
        };
        let oldest = oldest.and_then(|index| self.sockets.id_at(index));
        let oldest = oldest.ok_or(DropReason::TcpSocketLimit)?;
        self.counters.count(Counter::TcpHalfOpenEvicted);
        self.conclude(oldest);
        Ok(())
    }

    /// A SYN becomes a half-open connection; `after` is the end of the flow's last connection.
    fn admit(
        &mut self,
        listener_id: SocketId,
        key: FlowKey,
        syn: &Segment<'_>,
        after: Option<SeqNumber>,
    ) -> Result<(), DropReason> {
        let next_hop = self.routing.next_hop(key.remote().ip()).ok_or(DropReason::TcpNoRoute)?;
        let Some(Socket::Listener(listener)) = self.sockets.get(listener_id) else {
            return Err(DropReason::TcpNoFlow);
        };
        let template = listener.template;
        let setup = self.setup(&key, template, after);
        let connection = Connection::open_passive(self.now, setup, syn);
        let stage = Stage::HalfOpen(listener_id);
        let entry = self.entry(connection, key, next_hop, stage, &template);
        let id = self.insert_half_open(listener_id, entry)?;
        self.settle(id);
        Ok(())
    }

    /// Adds a half-open connection to its listener.
    pub(super) fn insert_half_open(
        &mut self,
        listener_id: SocketId,
        entry: Entry,
    ) -> Result<SocketId, DropReason> {
        let id = self.insert_connection(entry).ok_or(DropReason::TcpSocketLimit)?;
        if let Some(listener) = self.sockets.get_mut(listener_id).and_then(Socket::listener_mut) {
            self.queue_links.push_back(&mut listener.half_open, id.index());
        }
        self.half_open += 1;
        self.counters.count(Counter::TcpPassiveOpens);
        Ok(id)
    }

    /// Adds a connection to the slab and the flow table.
    pub(super) fn insert_connection(&mut self, entry: Entry) -> Option<SocketId> {
        let key = entry.key;
        let id = self.sockets.insert_with(|_| Socket::Connection(entry))?;
        if !self.flows.insert(key, FlowOwner::Connection(id)) {
            let _ = self.sockets.remove(id);
            return None;
        }
        Some(id)
    }

    /// What a connection of this flow starts from.
    pub(super) fn setup(
        &self,
        key: &FlowKey,
        options: crate::SocketOptions,
        after: Option<SeqNumber>,
    ) -> Setup<'_> {
        let (local, remote) = (key.local(), key.remote());
        let mut iss = self.keys.initial_sequence(self.now, local, remote);
        if let Some(after) = after
            && iss.le(after)
        {
            iss = after + PAST_OLD_CONNECTION;
        }
        Setup {
            local,
            remote,
            iss,
            timestamp_offset: self.keys.timestamp_offset(local.ip(), remote.ip()),
            mss: (self.link_mtu(remote.ip()) - header_len(remote.ip()) - HEADER_LEN) as u16,
            options,
            limits: &self.limits.tcp,
        }
    }

    /// A connection as the slab holds it.
    pub(super) fn entry(
        &self,
        connection: Connection,
        key: FlowKey,
        next_hop: NextHop,
        stage: Stage,
        options: &crate::SocketOptions,
    ) -> Entry {
        Entry {
            connection,
            key,
            next_hop,
            stage,
            gone: false,
            parked: None,
            unreachable: false,
            turn: 0,
            event_queued: false,
            opened_at: self.now,
            defer_accept_s: options.defer_accept_s,
            type_of_service: options.type_of_service,
            hop_limit: options.hop_limit,
        }
    }

    /// Answers a segment of no connection (RFC 9293 section 3.10.7.1).
    pub(super) fn send_reset(&mut self, key: &FlowKey, segment: &Segment<'_>) {
        let reset = if segment.flags.contains(Flags::ACK) {
            Outgoing { seq: segment.ack, flags: Flags::RST, ..Outgoing::default() }
        } else {
            Outgoing {
                ack: segment.seq + segment.sequence_len(),
                flags: Flags::RST | Flags::ACK,
                ..Outgoing::default()
            }
        };
        self.reply_segment(key, &reset, 0, super::headers::HOP_LIMIT);
    }

    /// Data that the peer acknowledges anew, beyond `acked`, proves that it hears us (RFC 4861 section
    /// 7.3.1).
    fn hint_neighbour(&mut self, id: SocketId, acked: u64) {
        let Some(entry) = self.sockets.get(id).and_then(Socket::connection) else { return };
        if entry.connection.progress().tx_acked > acked
            && let NextHop::Neighbour(hop) = entry.next_hop
        {
            self.neighbours.confirm(self.now, hop);
        }
    }
}
