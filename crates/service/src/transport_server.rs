//! The transport server: between the shard's connections and the records that applications see.
//!
//! Shard events become stream positions, status bits and readiness; the kicks of applications
//! become commands to the shard. Also the end of sockets: close, reset, orphans, and the return of
//! idle memory. Called by `server` after each burst and by `requests`. The bytes themselves move
//! in `sockets` (`Streams`).

use haypile_engine::limits::{SEND_BUFFER_DEFAULT, SEND_BUFFER_MAX};
use haypile_engine::{Close, Event, Instant, Progress, SocketId, SocketOptions};
use haypile_shm::messages::{Shutdown, SocketKind, ready};

use crate::errno;
use crate::server::Core;
use crate::slab::Key;
use crate::sockets::Offered;
use haypile_engine::control::connection_manager::ProcessId;
use haypile_engine::control::messages::ToManager;

/// Events of the shard handled in one turn.
const EVENTS_PER_TURN: usize = 256;
/// A socket whose memory is taken back has been quiet for this long.
const IDLE_US: u64 = 1_000_000;
/// Recently active sockets looked at in one round of housekeeping.
const RECLAIM_PER_ROUND: usize = 1024;

impl Core {
    /// Takes what the shard has to tell; how much.
    // A row of docs/cost.md.
    #[inline(never)]
    pub(crate) fn handle_events(&mut self, now: Instant) -> usize {
        for count in 0..EVENTS_PER_TURN {
            match self.shard.poll_event() {
                Some(Event::Accepted { listener, id, local, remote }) => {
                    self.accepted(now, listener, id, local, remote);
                }
                Some(Event::Progress { id, progress }) => self.progress(id, progress),
                Some(Event::Released { id }) => self.released(id),
                // Addresses are looked up when they are shown, answers by who waits for them.
                Some(Event::NetworkChanged | Event::Resolved { .. }) => {}
                Some(Event::DatagramError { id, error, report }) => {
                    self.datagram_error(id, error, *report);
                }
                None => return count,
            }
        }
        EVENTS_PER_TURN
    }

    fn accepted(
        &mut self,
        now: Instant,
        listener: SocketId,
        id: SocketId,
        local: std::net::SocketAddr,
        remote: std::net::SocketAddr,
    ) {
        let Some(listener_key) = self.store.key_of(listener) else { return };
        let key = self.store.accepted(id, listener_key, now);
        if let Some(socket) = self.store.sockets.get_mut(key) {
            socket.local = Some(local);
            socket.remote = Some(remote);
            socket.progress.connected = true;
            socket.came_to = Some(listener_key);
        }
        self.store.note_flow(key);
        self.has_come(now, key);
    }

    /// Publishes how far a connection has come and tells whom it concerns.
    fn progress(&mut self, id: SocketId, progress: Progress) {
        let Some(key) = self.store.key_of(id) else { return };
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let before = std::mem::replace(&mut socket.progress, progress);
        let mut writable = false;
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        if let (Some(stream), Some(domain)) = (&mut socket.stream, domain) {
            stream.commit_rx(progress.rx_end);
            let send_buffer = send_buffer(&socket.options, &progress);
            writable = stream.acked(progress.tx_acked, send_buffer, &mut domain.arena);
            if let Some(error) = progress.error.filter(|_| before.error.is_none()) {
                stream.set_error(errno::of_socket_error(error));
            }
            socket.publish_status();
        }
        let bits = changes(&before, &progress, writable);
        let silent = socket.closed || bits == 0;
        if before.rx_end == 0
            && (progress.rx_end > 0 || progress.rx_fin || progress.error.is_some())
        {
            self.hear_first(key, progress.rx_end > 0);
        }
        if progress.rx_end > before.rx_end {
            self.heard_after_write(key);
        }
        self.touch(key);
        if !silent {
            self.announce(key, bits);
        }
    }

    /// The shard has forgotten a connection, so nobody needs its record any more.
    fn released(&mut self, id: SocketId) {
        let Some(key) = self.store.key_of(id) else { return };
        let accepting = self.store.sockets.get(key).and_then(|socket| socket.accepting.as_ref());
        if let Some(accepting) = accepting {
            if let Some(Offered { process, by, .. }) = accepting.offered {
                self.processes.offer_settled(process, by);
            }
            let connection = self.connection_name(id);
            self.tell_own_manager(self.now, ToManager::Gone { connection });
        }
        self.forget(key);
    }

    /// Removes a record and everything that points to it.
    pub(crate) fn forget(&mut self, key: Key) {
        let Some(socket) = self.store.remove(key) else { return };
        if let Some(binding) = socket.binding {
            self.ports.release(key, binding.address.port());
        }
        if let Some(process) = socket.owner.and_then(|owner| self.processes.get_mut(owner)) {
            process.sockets.remove(&key);
        }
    }

    /// KICK_TX: the application has written.
    // A row of docs/cost.md.
    #[inline(never)]
    pub(crate) fn kick_tx(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        if socket.kind == SocketKind::Datagram {
            return self.kick_datagrams(key);
        }
        let (Some(stream), Some(id)) = (&mut socket.stream, socket.id) else { return };
        match stream.observe_tx_tail() {
            Ok(tail) => {
                if !self.hold(now, key, tail) {
                    self.shard.send_ready(now, id, tail);
                }
                self.touch(key);
            }
            Err(_) => self.hostile_socket(key),
        }
    }

    /// KICK_RX: the application has read.
    pub(crate) fn kick_rx(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        let (Some(stream), Some(domain)) = (&mut socket.stream, domain) else { return };
        match stream.observe_rx_head(&mut domain.arena) {
            Ok(head) => {
                if let Some(id) = socket.id.filter(|_| socket.kind == SocketKind::Connection) {
                    self.shard.receive_consumed(now, id, head);
                }
                self.touch(key);
            }
            Err(_) => self.hostile_socket(key),
        }
    }

    /// WANT_TX: the application has used up what it was granted.
    pub(crate) fn want_tx(&mut self, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        match socket.kind {
            SocketKind::Connection => {}
            SocketKind::Datagram => return self.want_records(key),
            _ => return,
        }
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        let (Some(stream), Some(domain)) = (&mut socket.stream, domain) else { return };
        let send_buffer = send_buffer(&socket.options, &socket.progress);
        match stream.want_tx(send_buffer, &mut domain.arena) {
            Ok(true) => {
                self.touch(key);
                self.announce(key, ready::OUT);
            }
            Ok(false) => self.touch(key),
            Err(_) => self.hostile_socket(key),
        }
    }

    /// SHUTDOWN of one or both directions. A listener whose reading half is closed listens no more, as on Linux.
    pub(crate) fn shutdown_socket(&mut self, now: Instant, key: Key, how: Shutdown) {
        match self.store.sockets.get(key).map(|socket| socket.kind) {
            Some(SocketKind::Datagram) => return self.shutdown_datagrams(now, key, how),
            Some(SocketKind::Listener) if how == Shutdown::Write => return,
            Some(SocketKind::Listener) => return self.listen_no_more(now, key),
            _ => {}
        }
        self.kick_tx(now, key);
        if how != Shutdown::Read {
            self.send_written(now, key);
            self.closes_after_write(now, key);
        }
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let Some(id) = socket.id.filter(|_| socket.kind == SocketKind::Connection) else { return };
        if how != Shutdown::Read && !socket.tx_shut {
            socket.tx_shut = true;
            self.shard.shutdown_send(now, id);
        }
        // Closing the reading half alone ends waits but, as on Linux, what comes can still be read.
        // With both halves closed nobody will: whoever sends more gets a reset.
        socket.rx_shut |= how != Shutdown::Write;
        if socket.rx_shut && socket.tx_shut {
            self.shard.shutdown_receive(now, id);
        }
        socket.publish_status();
        let bits = socket.ready_bits();
        self.announce(key, bits);
    }

    /// The last holder has let a socket go. Unread data, `abort` or `SO_LINGER` with time 0 means a
    /// reset (RFC 1122 section 4.2.2.13); otherwise what was written is still delivered.
    pub(crate) fn close_socket(&mut self, now: Instant, key: Key, abort: bool) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        if socket.stub.is_some() {
            return self.end_stub(key, abort);
        }
        if socket.closed {
            return;
        }
        match socket.kind {
            SocketKind::Listener => return self.close_listener(now, key),
            SocketKind::Datagram => return self.close_datagrams(now, key, abort),
            SocketKind::Plain | SocketKind::Connection => {}
        }
        let Some(id) = socket.id else { return self.forget(key) };
        self.closes_after_write(now, key);
        let (unread, tail) = self.last_look(now, key);
        let abort = abort || self.store.sockets.get(key).is_some_and(|socket| socket.resets);
        let how = if abort || unread { Close::Abort } else { Close::Graceful };
        if let Some(tail) = tail {
            self.shard.send_ready(now, id, tail);
        }
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        socket.closed = true;
        let served = socket.served.take();
        socket.watches.clear();
        socket.publish_status();
        if let Some(stream) = &socket.stream {
            stream.wake();
        }
        if let Some(process) = socket.owner.take().and_then(|id| self.processes.get_mut(id)) {
            process.sockets.remove(&key);
        }
        if let Some(served) = served {
            self.store.open.subtract(&served);
            self.tell_served(now, served);
        }
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let unsent = tail.is_some_and(|tail| tail > socket.progress.tx_acked);
        self.shard.close(now, id, how);
        if unsent && how == Close::Graceful {
            let until = now.plus_us(self.limits.orphan_timeout_us);
            socket.orphan_until = Some(until);
            self.orphans.push_back((until, key));
        }
    }

    /// Whether received bytes are unread, and how far the application has written. Nonsense in
    /// the record counts as unread: the connection is reset.
    fn last_look(&mut self, now: Instant, key: Key) -> (bool, Option<u64>) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return (false, None) };
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        let (Some(stream), Some(domain)) = (&mut socket.stream, domain) else {
            return (false, None);
        };
        let head = stream.observe_rx_head(&mut domain.arena);
        let tail = stream.observe_tx_tail();
        let unread = head.map_or(true, |head| head < stream.rx_tail()) && !socket.rx_shut;
        // What was read since the last KICK_RX must not count as unread with the shard either.
        if let (Ok(head), Some(id)) = (head, socket.id) {
            self.shard.receive_consumed(now, id, head);
        }
        (unread || tail.is_err(), tail.ok())
    }

    /// A record holds what no honest application writes: its connection is reset, its process
    /// dropped.
    pub(crate) fn hostile_socket(&mut self, key: Key) {
        self.counters.hostile_sockets += 1;
        if let Some(owner) = self.store.sockets.get(key).and_then(|socket| socket.owner) {
            self.processes.mark_hostile(owner);
        }
        self.to_abort.push(key);
    }

    /// Resets the connections of hostile applications and drops the processes.
    #[inline]
    pub(crate) fn expel(&mut self, now: Instant) {
        if !self.to_abort.is_empty() || !self.processes.hostile.is_empty() {
            self.expel_all(now);
        }
    }

    #[cold]
    fn expel_all(&mut self, now: Instant) {
        for key in std::mem::take(&mut self.to_abort) {
            self.close_socket(now, key, true);
        }
        for process in std::mem::take(&mut self.processes.hostile) {
            if self.processes.get(process).is_some() {
                self.counters.hostile_processes += 1;
                self.end_process(now, process, true);
            }
        }
    }

    /// Puts a socket on the list of those whose memory may be taken back later.
    pub(crate) fn touch(&mut self, key: Key) {
        let now = self.now;
        if let Some(socket) = self.store.sockets.get_mut(key) {
            socket.touched = now;
            if !socket.active {
                socket.active = true;
                self.active.push_back(key);
            }
        }
    }

    /// One round over the recently active sockets: those that have been quiet give their memory
    /// back. Returns how many are still on the list.
    pub(crate) fn reclaim(&mut self, now: Instant) -> usize {
        for _ in 0..self.active.len().min(RECLAIM_PER_ROUND) {
            let Some(key) = self.active.pop_front() else { break };
            if !self.reclaim_one(now, key) {
                self.active.push_back(key);
            }
        }
        self.active.len()
    }

    /// True: the socket has nothing left to take back.
    fn reclaim_one(&mut self, now: Instant, key: Key) -> bool {
        let Some(socket) = self.store.sockets.get_mut(key) else { return true };
        if socket.stub.is_some() {
            socket.active = false;
            return true;
        }
        if now.since(socket.touched) < IDLE_US {
            return false;
        }
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        let (Some(stream), Some(domain)) = (&mut socket.stream, domain) else {
            socket.active = false;
            return true;
        };
        let before = stream.rx_head();
        if stream.try_reclaim_idle(&mut domain.arena).is_err() {
            socket.active = false;
            self.hostile_socket(key);
            return true;
        }
        let (head, empty) = (stream.rx_head(), stream.chunk_count() == 0);
        socket.active = !empty;
        let connection = socket.kind == SocketKind::Connection;
        if let Some(id) = socket.id.filter(|_| connection && head > before) {
            self.shard.receive_consumed(now, id, head);
        }
        empty
    }

    /// Resets closed connections that have not got rid of their data in time.
    pub(crate) fn end_orphans(&mut self, now: Instant) {
        while let Some(&(due, key)) = self.orphans.front() {
            let gone = self.store.sockets.get(key).is_none();
            if due > now && !gone {
                return;
            }
            self.orphans.pop_front();
            let id = self.store.sockets.get(key).and_then(|socket| socket.id);
            let unsent = self.store.sockets.get(key).is_some_and(|socket| {
                socket.stream.as_ref().is_some_and(|stream| stream.tx_head() < stream.tx_tail())
            });
            if let Some(id) = id.filter(|_| unsent) {
                self.shard.close(now, id, Close::Abort);
            }
        }
    }

    /// A process accepts (or no more) from a listener. What waits is offered at once, so that it
    /// comes before the answer to a later request.
    pub(crate) fn set_acceptor(
        &mut self,
        now: Instant,
        process: ProcessId,
        key: Key,
        accepts: bool,
    ) {
        if accepts {
            self.accepts(process, key);
            self.run_manager(now);
        } else {
            self.accepts_no_more(process, key);
        }
    }
}

/// Most bytes that a connection may have unacknowledged: what the application chose, else as much as
/// the congestion window asks for (`Progress::tx_wish`), so that a fast path is not held back and a
/// slow one does not fill up memory.
pub(crate) fn send_buffer(options: &SocketOptions, progress: &Progress) -> u64 {
    let chosen = options.send_buffer;
    match chosen {
        SEND_BUFFER_DEFAULT => u64::from(progress.tx_wish.clamp(chosen, SEND_BUFFER_MAX)),
        _ => u64::from(chosen),
    }
}

/// The readiness that has come up between two states of a connection.
fn changes(before: &Progress, after: &Progress, writable: bool) -> u32 {
    let mut bits = 0;
    if after.rx_end > before.rx_end {
        bits |= ready::IN;
    }
    if after.rx_fin && !before.rx_fin {
        bits |= ready::IN | ready::RDHUP;
    }
    if writable || (after.connected && !before.connected) {
        bits |= ready::OUT;
    }
    if after.error.is_some() && before.error.is_none() {
        bits |= ready::IN | ready::OUT | ready::ERR;
    }
    if after.finished && !before.finished {
        bits |= ready::IN | ready::OUT | ready::RDHUP | ready::HUP;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_send_buffer_follows_the_congestion_window_unless_chosen() {
        let mut options = SocketOptions::default();
        let wish = |tx_wish| Progress { tx_wish, ..Progress::default() };
        let default = u64::from(SEND_BUFFER_DEFAULT);
        assert_eq!(send_buffer(&options, &wish(0)), default, "never below the default");
        assert_eq!(send_buffer(&options, &wish(SEND_BUFFER_DEFAULT + 1)), default + 1);
        assert_eq!(send_buffer(&options, &wish(u32::MAX)), u64::from(SEND_BUFFER_MAX));
        options.send_buffer = 9000;
        assert_eq!(send_buffer(&options, &wish(u32::MAX)), 9000);
    }
}
