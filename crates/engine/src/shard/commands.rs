//! What applications ask for: listen, connect, send, receive, options, close.
//!
//! Called by the service between bursts. Names of sockets that are gone are ignored: their
//! `Released` event may still be on its way to the caller.

use std::net::{IpAddr, SocketAddr};

use super::Shard;
use super::entry::{Entry, Socket, Stage};
use crate::counters::Counter;
use crate::error::{ConnectError, ListenError};
use crate::flow_table::{FlowKey, FlowOwner};
use crate::limits::BACKLOG_MAX;
use crate::listeners::Listener;
use crate::lists::List;
use crate::options::{Close, ListenOptions, SocketOption, SocketOptions};
use crate::socket_id::SocketId;
use crate::steering::BUCKETS;
use crate::tcp::{Connection, SeqNumber};
use crate::time::Instant;

/// How old a TIME-WAIT record must be before an outgoing connection may take its addresses over,
/// by RFC 6191 with the timestamps of both ends (Linux's `tcp_tw_reuse`).
const REUSE_AFTER_US: u64 = 1_000_000;

/// What is in the way of a new flow.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Occupant {
    Nobody,
    /// A TIME-WAIT record that may be replaced, with the end of its sequence numbers.
    Replaceable(SocketId, SeqNumber),
    Somebody,
}

impl Shard {
    /// Opens a listener at `local`; an unspecified address stands for all of ours of its family.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn listen(
        &mut self,
        local: SocketAddr,
        options: ListenOptions,
    ) -> Result<SocketId, ListenError> {
        let ListenOptions { backlog, v6only, reuse_port, template } = options;
        if local.port() == 0 {
            return Err(ListenError::NoPort);
        }
        if !local.ip().is_unspecified() && !self.routing.is_ours(local.ip()) {
            return Err(ListenError::AddressNotAvailable);
        }
        self.listeners.check(local, v6only, reuse_port)?;
        let listener = Listener {
            local,
            v6only,
            backlog: backlog.min(BACKLOG_MAX),
            opening: false,
            template,
            half_open: List::new(),
            accept_queue: List::new(),
        };
        let id = self
            .sockets
            .insert_with(|_| Socket::Listener(Box::new(listener)))
            .ok_or(ListenError::TooManySockets)?;
        self.listeners.insert(id, local, v6only, reuse_port);
        self.listener_count += 1;
        Ok(id)
    }

    /// Changes how many connections may wait for `accept`.
    pub fn set_backlog(&mut self, listener: SocketId, backlog: u32) {
        if let Some(listener) = self.sockets.get_mut(listener).and_then(Socket::listener_mut) {
            listener.backlog = backlog.min(BACKLOG_MAX);
        }
    }

    /// Has a listener leave SYNs without an answer while it is being opened at other servers too: who
    /// has been answered by one of them must not be refused by the next.
    pub fn set_opening(&mut self, listener: SocketId, opening: bool) {
        if let Some(listener) = self.sockets.get_mut(listener).and_then(Socket::listener_mut) {
            listener.opening = opening;
        }
    }

    /// How many connections may wait for `accept`; `None` for what is no listener.
    pub fn backlog(&self, listener: SocketId) -> Option<u32> {
        match self.sockets.get(listener)? {
            Socket::Listener(listener) => Some(listener.backlog),
            _ => None,
        }
    }

    /// Somebody took a connection from its listener's accept queue: the place is free again.
    pub fn claimed(&mut self, id: SocketId) {
        self.leave_listener_as(id, Stage::Owned);
    }

    /// Opens a connection. `local` may leave out port (0) and address (unspecified); both are
    /// chosen then. The handshake goes on by itself; its end is told as progress.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(
        &mut self,
        now: Instant,
        local: Option<SocketAddr>,
        remote: SocketAddr,
        options: SocketOptions,
    ) -> Result<SocketId, ConnectError> {
        self.now = now;
        self.check_remote(remote)?;
        let next_hop =
            self.routing.next_hop(remote.ip()).ok_or(ConnectError::NetworkUnreachable)?;
        let address = self.choose_source(local, remote)?;
        if self.sockets.is_full() {
            return Err(ConnectError::TooManySockets);
        }
        let (key, occupant) = match local.map_or(0, |local| local.port()) {
            0 => {
                if let Some(owner) = self.owner_of_all_flows_to(remote) {
                    return Err(ConnectError::Elsewhere(owner));
                }
                let chosen = self.choose_port(address, remote);
                chosen.ok_or_else(|| self.why_no_port(address, remote))?
            }
            port => {
                let key = FlowKey::new(SocketAddr::new(address, port), remote);
                if let Some(owner) = self.flow_owner(key.local(), remote) {
                    return Err(ConnectError::Elsewhere(owner));
                }
                (key, self.occupant(&key))
            }
        };
        let after = match occupant {
            Occupant::Nobody => None,
            Occupant::Replaceable(name, snd_nxt) => {
                self.forget_time_wait(name);
                self.counters.count(Counter::TcpTimeWaitReused);
                Some(snd_nxt)
            }
            Occupant::Somebody => return Err(ConnectError::AddressInUse),
        };
        let connection = Connection::open_active(now, self.setup(&key, options, after));
        let entry = self.entry(connection, key, next_hop, Stage::Owned, &options);
        let id = self.insert_connection(entry).ok_or(ConnectError::TooManySockets)?;
        self.counters.count(Counter::TcpActiveOpens);
        self.settle(id);
        Ok(id)
    }

    /// The application has written up to stream position `tail`.
    pub fn send_ready(&mut self, now: Instant, id: SocketId, tail: u64) {
        self.command(now, id, |entry| entry.connection.send_ready(now, tail));
    }

    /// The application has read up to stream position `position`, so that memory is free again.
    pub fn receive_consumed(&mut self, now: Instant, id: SocketId, position: u64) {
        self.command(now, id, |entry| entry.connection.receive_consumed(now, position));
    }

    /// The application will send no more: FIN after all data.
    pub fn shutdown_send(&mut self, now: Instant, id: SocketId) {
        self.command(now, id, |entry| entry.connection.shutdown_send(now));
    }

    /// The application will read no more: later data is acknowledged and discarded, or, with sending shut as well,
    /// answered with a reset, as on Linux.
    pub fn shutdown_receive(&mut self, now: Instant, id: SocketId) {
        self.command(now, id, |entry| entry.connection.shutdown_receive(now));
    }

    /// Changes an option; of a listener, what its later connections start with.
    pub fn set_option(&mut self, now: Instant, id: SocketId, option: SocketOption) {
        if let Some(listener) = self.sockets.get_mut(id).and_then(Socket::listener_mut) {
            listener.template.set(option);
            return;
        }
        self.command(now, id, |entry| {
            match option {
                SocketOption::TypeOfService(class) => entry.type_of_service = class & 0xfc,
                SocketOption::HopLimit(hops) => entry.hop_limit = hops.max(1),
                SocketOption::DeferAccept(seconds) => entry.defer_accept_s = seconds,
                _ => {}
            }
            entry.connection.set_option(now, option);
        });
    }

    /// The owner lets go of a socket. A connection goes on by itself until its data is delivered
    /// (or not at all, with [`Close::Abort`]); a listener takes its unclaimed connections along; a
    /// UDP socket is gone at once, without a `Released` event.
    pub fn close(&mut self, now: Instant, id: SocketId, how: Close) {
        self.now = now;
        match self.sockets.get(id) {
            Some(Socket::Listener(_)) => self.close_listener(id),
            Some(Socket::Connection(_)) => self.close_connection(id, how),
            Some(Socket::Datagram(_)) => self.close_datagram(id),
            None => {}
        }
    }

    fn close_connection(&mut self, id: SocketId, how: Close) {
        self.leave_listener_as(id, Stage::Orphan);
        let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut) else { return };
        if matches!(entry.stage, Stage::HalfOpen(_)) {
            return;
        }
        entry.stage = Stage::Orphan;
        if entry.gone {
            self.release(id);
            return;
        }
        if let Some(reset) = entry.connection.close(self.now, how) {
            self.counters.count(Counter::TcpResets);
            self.reply_for(id, &reset);
        }
        self.settle(id);
    }

    /// Unclaimed connections are reset; half-open ones are forgotten without a word, as on Linux.
    fn close_listener(&mut self, id: SocketId) {
        while let Some(half_open) = self.first_of(id, |listener| listener.half_open) {
            self.conclude(half_open);
        }
        while let Some(unclaimed) = self.first_of(id, |listener| listener.accept_queue) {
            self.close_connection(unclaimed, Close::Abort);
        }
        if let Some(Socket::Listener(listener)) = self.sockets.remove(id) {
            self.listeners.remove(id, listener.local, listener.v6only);
            self.listener_count -= 1;
        }
    }

    /// The connections of a listener whose handshake is complete and that nobody has claimed,
    /// oldest first.
    pub fn unclaimed(&self, listener: SocketId) -> Vec<SocketId> {
        let Some(Socket::Listener(listener)) = self.sockets.get(listener) else {
            return Vec::new();
        };
        let first = listener.accept_queue.first();
        let indices = std::iter::successors(first, |&index| self.queue_links.next(index));
        indices.filter_map(|index| self.sockets.id_at(index)).collect()
    }

    fn first_of(&self, id: SocketId, list: impl Fn(&Listener) -> List) -> Option<SocketId> {
        match self.sockets.get(id) {
            Some(Socket::Listener(listener)) => self.sockets.id_at(list(listener).first()?),
            _ => None,
        }
    }

    /// An unclaimed connection leaves the accept queue; others stay as they are.
    fn leave_listener_as(&mut self, id: SocketId, stage: Stage) {
        let socket = self.sockets.get(id).and_then(Socket::connection);
        if !socket.is_some_and(|entry| matches!(entry.stage, Stage::Unclaimed(_))) {
            return;
        }
        self.leave_listener(id);
        if let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut) {
            entry.stage = stage;
        }
    }

    /// Steps a connection that has an owner and a flow.
    fn command(&mut self, now: Instant, id: SocketId, step: impl FnOnce(&mut Entry)) {
        self.now = now;
        let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut) else { return };
        if !matches!(entry.stage, Stage::HalfOpen(_) | Stage::Orphan) && !entry.gone {
            step(entry);
            self.settle(id);
        }
    }

    fn check_remote(&self, remote: SocketAddr) -> Result<(), ConnectError> {
        let group = match remote.ip() {
            IpAddr::V4(addr) => self.routing.is_broadcast(addr),
            IpAddr::V6(addr) => addr.to_ipv4_mapped().is_some(),
        };
        let addr = remote.ip();
        if remote.port() == 0 || group || addr.is_unspecified() || addr.is_multicast() {
            return Err(ConnectError::BadRemote);
        }
        Ok(())
    }

    fn choose_source(
        &self,
        local: Option<SocketAddr>,
        remote: SocketAddr,
    ) -> Result<IpAddr, ConnectError> {
        match local {
            Some(local) if local.is_ipv4() != remote.is_ipv4() => Err(ConnectError::FamilyMismatch),
            Some(local) if !local.ip().is_unspecified() => {
                let ours = self.routing.is_ours(local.ip());
                if ours { Ok(local.ip()) } else { Err(ConnectError::AddressNotAvailable) }
            }
            _ => self.routing.source_for(remote.ip()).ok_or(ConnectError::NetworkUnreachable),
        }
    }

    /// A local port for a flow: one that is free, or else one whose TIME-WAIT record may be
    /// replaced.
    fn choose_port(&mut self, local: IpAddr, remote: SocketAddr) -> Option<(FlowKey, Occupant)> {
        let start = self.keys.port_choice(local, remote);
        for replace in [false, true] {
            let mut ports = std::mem::take(&mut self.ports);
            let mut found = None;
            let port = ports.choose(start, |port| {
                if self.listeners.has_port(port) {
                    return false;
                }
                let key = FlowKey::new(SocketAddr::new(local, port), remote);
                if self.is_elsewhere(&key) {
                    return false;
                }
                let occupant = self.occupant(&key);
                let usable = match occupant {
                    Occupant::Nobody => true,
                    Occupant::Replaceable(..) => replace,
                    Occupant::Somebody => false,
                };
                if usable {
                    found = Some((key, occupant));
                }
                usable
            });
            self.ports = ports;
            if port.is_some() {
                return found;
            }
        }
        None
    }

    /// A server that has come while the service runs may have no bucket yet, and any may have given all of its
    /// buckets away: whoever has one of them takes the connection, by where it goes. Few buckets have few ports, which
    /// are soon in use: then the one with most buckets is asked, whose word is the last.
    fn why_no_port(&self, local: IpAddr, remote: SocketAddr) -> ConnectError {
        let Some(own) = &self.steered else { return ConnectError::NoPortLeft };
        let mut usable = vec![0u16; usize::from(own.steering.servers())];
        for bucket in 0..BUCKETS as u16 {
            let owner = own.steering.owner_of_flows(bucket);
            let arrives = owner == own.server && self.arriving.buckets.contains_key(&bucket);
            if let Some(count) = usable.get_mut(usize::from(owner)).filter(|_| !arrives) {
                *count += 1;
            }
        }
        let ours = usable.get(usize::from(own.server)).copied().unwrap_or(0);
        let bucket = self.keys.port_choice(local, remote).0 as usize % BUCKETS;
        let by_chance = own.steering.owner_of_flows(bucket as u16);
        let most = (0..own.steering.servers()).max_by_key(|server| usable[usize::from(*server)]);
        match most {
            Some(_) if ours == 0 && by_chance != own.server => ConnectError::Elsewhere(by_chance),
            Some(most) if usable[usize::from(most)] > ours => ConnectError::Elsewhere(most),
            _ => ConnectError::NoPortLeft,
        }
    }

    fn occupant(&self, key: &FlowKey) -> Occupant {
        match self.flows.lookup(key) {
            None => Occupant::Nobody,
            Some(FlowOwner::Connection(_)) => Occupant::Somebody,
            Some(FlowOwner::TimeWait(name)) => match self.time_wait.get(name) {
                Some(waiting)
                    if waiting.record.ts_recent.is_some()
                        && self.time_wait.age_us(self.now, waiting) >= REUSE_AFTER_US =>
                {
                    Occupant::Replaceable(name, waiting.record.snd_nxt)
                }
                _ => Occupant::Somebody,
            },
        }
    }
}
