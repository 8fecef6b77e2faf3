//! Stubs: what stays with a server of a connection that has moved to another one.
//!
//! A stub keeps the slot, so that every process which has the socket finds there where it is; what is said about it
//! too late is passed on; its end is the end of the connection. Also the other side: sockets that have come and
//! whose processes have yet to follow. Called by the driver of moves (`prepare_move`, `cancel_move`), by `server` each
//! turn (`settle_freight`), by `requests`, `transport_server` and `life`. Read `freight` first.
//!
//! ```text
//!  Frozen --pack--> Packed --receipt--> Delivered --Left, Close, end of the process or placeholder--> gone
//!     |                |
//!     +--cancel        +--taken back: an ordinary socket again
//! ```

use haypile_engine::control::messages::ToManager;
use haypile_engine::control::names::{ProcessName, ServerNumber};
use haypile_engine::{Close, Instant, SocketError};
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::{ELSEWHERE, OptionReply, Request, RequestBody, SocketReply, ready};
use haypile_shm::stream::NewPlace;

use super::baggage::{LateNotice, Said};
use crate::server::Core;
use crate::slab::Key;
use haypile_engine::control::connection_manager::ProcessId;

/// Late notices about one socket; an application that has more to say has gone astray.
const SAID_MAX: u32 = 256;
/// How long a connection whose old server is gone waits for its process to follow.
const STRAY_US: u64 = 60_000_000;
/// Rounds in which events are fetched before a bucket leaves: each is as many as a turn fetches.
const EVENT_ROUNDS: usize = 1024;
/// Whatever a watcher waits for: the application is to look for itself.
const ANYTHING: u32 = ready::IN | ready::OUT | ready::RDHUP | ready::HUP | ready::ERR;

/// A bucket has a connection that cannot leave now; it may a moment later.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Busy;

/// What stays with a server of a connection that moves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stub {
    /// How far it is.
    pub stage: StubStage,
    /// What was said about it, for the server that has it.
    pub waiting: Vec<Said>,
    /// Things said so far.
    pub said: u32,
    /// An application has asked for memory to write to.
    pub wanted: bool,
    /// Nobody has it any more.
    pub ended: bool,
}

/// How far a connection is on its way.
#[derive(Copy, Clone, Debug, Default, PartialEq)]
pub enum StubStage {
    /// It is about to leave: no application reads or writes.
    #[default]
    Frozen,
    /// It is on its way, or back soon.
    Packed,
    /// It is there.
    Delivered(NewPlace),
}

/// A connection that has come from another server.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Came {
    /// Who has its stub, and tells its end.
    pub from: Option<ServerNumber>,
    /// The process that has it alone and may have yet to follow.
    pub awaits: Option<ProcessName>,
    /// Its processes had followed to the server with the stub: they find the way from there over its death.
    pub found: bool,
    /// A process has followed.
    pub arrived: bool,
}

/// Before a bucket leaves.
impl Core {
    /// Makes everything of a bucket ready to leave: applications neither read nor write what they have of it, and
    /// nothing of it is offered to any. To be followed by its export at once, or by [`Core::cancel_move`].
    ///
    /// # Errors
    /// [`Busy`]; then everything goes on.
    pub fn prepare_move(&mut self, bucket: u16) -> Result<(), Busy> {
        let now = self.now;
        for _ in 0..EVENT_ROUNDS {
            if self.handle_events(now) == 0 {
                break;
            }
        }
        let ids = self.shard.connections_in_bucket(bucket);
        let keys: Vec<Key> = ids.iter().filter_map(|id| self.store.key_of(*id)).collect();
        let frozen = keys.iter().all(|key| !self.is_held(*key) || self.freeze(now, *key));
        if !(frozen && self.end_offers(now, &keys)) {
            self.thaw(now, &keys);
            return Err(Busy);
        }
        for key in keys {
            self.let_leave(now, key);
        }
        Ok(())
    }

    /// The bucket does not leave after all.
    pub fn cancel_move(&mut self, bucket: u16) {
        let now = self.now;
        let ids = self.shard.connections_in_bucket(bucket);
        let keys: Vec<Key> = ids.iter().filter_map(|id| self.store.key_of(*id)).collect();
        for key in &keys {
            self.tell_of(now, *key);
        }
        self.thaw(now, &keys);
    }

    /// An application has it.
    fn is_held(&self, key: Key) -> bool {
        let socket = self.store.sockets.get(key);
        socket.is_some_and(|socket| socket.accepting.is_none() && !socket.closed)
    }

    /// Holds a stream still, and tells the shard how far it is. False: that is not possible now.
    fn freeze(&mut self, now: Instant, key: Key) -> bool {
        let Some(socket) = self.store.sockets.get_mut(key) else { return true };
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        let (Some(stream), Some(domain), Some(id)) = (&mut socket.stream, domain, socket.id) else {
            return false;
        };
        match stream.freeze(&mut domain.arena) {
            Ok(true) => {
                let (read, written) = (stream.rx_head(), stream.tx_tail());
                // What waits for the close behind it waits no more.
                socket.held = false;
                socket.stub.get_or_insert_default();
                self.shard.send_ready(now, id, written);
                self.shard.receive_consumed(now, id, read);
                true
            }
            Ok(false) => false,
            Err(_) => {
                self.hostile_socket(key);
                false
            }
        }
    }

    /// Takes all offers of these connections back; who was claimed meanwhile is frozen. False: one of those cannot be,
    /// and the others are to be offered again.
    fn end_offers(&mut self, now: Instant, keys: &[Key]) -> bool {
        let mut back = Vec::new();
        for key in keys {
            let Some(socket) = self.store.sockets.get(*key) else { continue };
            let offered = socket.accepting.as_ref().is_some_and(|one| one.offered.is_some());
            if !offered {
                continue;
            }
            if self.take_back(now, *key) {
                back.push(*key);
            } else if !self.freeze(now, *key) {
                for key in back {
                    let id = self.store.sockets.get(key).and_then(|socket| socket.id);
                    if let Some(id) = id {
                        let connection = self.connection_name(id);
                        self.tell_own_manager(now, ToManager::Revoked { connection });
                    }
                }
                return false;
            }
        }
        true
    }

    /// What is nobody's is forgotten by the connection manager; what nobody has any more needs no port.
    fn let_leave(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let (unclaimed, id) = (socket.accepting.is_some() && socket.came_to.is_some(), socket.id);
        let binding = if socket.closed { socket.binding.take() } else { None };
        if let Some(binding) = binding {
            self.ports.release(key, binding.address.port());
        }
        if let Some(id) = id.filter(|_| unclaimed) {
            let connection = self.connection_name(id);
            self.tell_own_manager(now, ToManager::Gone { connection });
        }
    }

    /// A connection stays here: what was said about it meanwhile is done now.
    fn go_on(&mut self, now: Instant, key: Key, stub: Stub) {
        self.touch(key);
        if stub.wanted {
            self.want_tx(key);
        }
        for said in stub.waiting {
            self.hear_late(now, key, said);
        }
        // Who has begun to watch it meanwhile, or asked about it, was not answered.
        let bits = self.store.sockets.get(key).map_or(0, |socket| socket.ready_bits());
        self.announce(key, bits);
    }

    /// Those that are frozen go on.
    fn thaw(&mut self, now: Instant, keys: &[Key]) {
        for key in keys {
            let Some(socket) = self.store.sockets.get_mut(*key) else { continue };
            let Some(stub) = socket.stub.take() else { continue };
            if let Some(stream) = &mut socket.stream {
                stream.thaw();
            }
            self.go_on(now, *key, *stub);
        }
    }
}

/// After a bucket has come or left.
impl Core {
    /// Does what sockets that have moved leave to be done. Called each turn, before applications are heard.
    #[inline]
    pub(crate) fn settle_freight(&mut self, now: Instant) {
        if self.depot.has_news() || self.moving.has_notices() {
            self.settle_all_freight(now);
        }
    }

    fn settle_all_freight(&mut self, now: Instant) {
        for (key, stub) in std::mem::take(&mut self.depot.taken_back) {
            self.go_on(now, key, stub);
        }
        for key in std::mem::take(&mut self.depot.delivered) {
            self.announce(key, ANYTHING);
            self.send_waiting(key);
        }
        for key in std::mem::take(&mut self.depot.failed) {
            self.fail_stub(now, key);
        }
        for id in std::mem::take(&mut self.depot.lost) {
            self.counters.moved_lost += 1;
            self.shard.close(now, id, Close::Abort);
        }
        for orphan in std::mem::take(&mut self.depot.orphans) {
            let at = self.orphans.partition_point(|other| other.0 <= orphan.0);
            self.orphans.insert(at, orphan);
        }
        while let Some((_, bytes)) = self.moving.poll_notice() {
            match LateNotice::decode(&bytes) {
                Ok(notice) => self.hear_notice(now, &notice),
                Err(_) => self.counters.late_nonsense += 1,
            }
        }
    }

    /// What was said while the connection was on its way goes after it.
    fn send_waiting(&mut self, key: Key) {
        let Some(stub) = self.stub_mut(key) else { return };
        let (waiting, ended) = (std::mem::take(&mut stub.waiting), stub.ended);
        for said in waiting {
            self.send_late(key, said);
        }
        if ended {
            self.forget(key);
        }
    }

    /// The connection was lost on arrival: its applications see a reset.
    fn fail_stub(&mut self, now: Instant, key: Key) {
        self.counters.moved_lost += 1;
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let stub = socket.stub.take();
        socket.progress.error = Some(SocketError::ConnectionReset);
        socket.progress.finished = true;
        if let Some(stream) = &mut socket.stream {
            stream.set_error(libc::ECONNRESET);
        }
        socket.publish_status();
        if let Some(stream) = &mut socket.stream {
            stream.thaw();
        }
        self.announce(key, ANYTHING);
        if stub.is_some_and(|stub| stub.ended) {
            self.close_socket(now, key, true);
        }
    }

    /// The move of a bucket has had its end: what of it is still on its way here will never be anywhere.
    pub(crate) fn fail_stubs_of(&mut self, now: Instant, bucket: u16) {
        for key in std::mem::take(&mut self.depot.packed) {
            let Some(socket) = self.store.sockets.get(key) else { continue };
            let waits = socket.stub.as_ref().is_some_and(|stub| stub.stage == StubStage::Packed);
            let steering = self.shard.steered().map(|steered| &steered.steering);
            let flow = socket.local.zip(socket.remote);
            let its =
                steering.zip(flow).map(|(map, (local, remote))| map.bucket_of_flow(local, remote));
            if waits && its == Some(bucket) {
                self.fail_stub(now, key);
            } else if waits {
                self.depot.packed.push(key);
            }
        }
    }

    /// Buckets are ours again: what of them had been on its way is not.
    pub(crate) fn forget_taken_back(&mut self) {
        let sockets = &self.store.sockets;
        self.depot.packed.retain(|key| {
            let stub = sockets.get(*key).and_then(|socket| socket.stub.as_ref());
            stub.is_some_and(|stub| stub.stage == StubStage::Packed)
        });
    }

    /// A late notice of another server.
    fn hear_notice(&mut self, now: Instant, notice: &LateNotice) {
        if notice.epoch != self.era.epoch {
            return;
        }
        let domain = self.store.domains.find(&notice.token);
        let domain = domain.and_then(|domain| self.store.domains.get(domain));
        let key = domain.and_then(|domain| domain.socket_at(notice.slot, notice.generation));
        match key {
            Some(key) => {
                self.counters.late_heard += 1;
                self.hear_late(now, key, notice.said);
            }
            None => self.counters.stale_requests += 1,
        }
    }

    /// What was said too late where the connection was, about the socket or the stub that we have of it.
    fn hear_late(&mut self, now: Instant, key: Key, said: Said) {
        let is_stub = self.store.sockets.get(key).is_some_and(|socket| socket.stub.is_some());
        match said {
            Said::End(abort) => self.close_socket(now, key, abort),
            Said::Shared(cookie) => self.share(0, key, cookie),
            Said::Arrived => {
                let socket = self.store.sockets.get_mut(key);
                if let Some(came) = socket.and_then(|socket| socket.came.as_mut()) {
                    came.found = true;
                }
            }
            said if is_stub => self.pass_on(0, key, said),
            Said::Shutdown(how) => self.shutdown_socket(now, key, how),
            Said::SetOption { option, value } => {
                // Whoever said it did not ask whether it could be done.
                let _: i32 = self.set_option(now, key, option, value);
            }
        }
    }

    fn stub_mut(&mut self, key: Key) -> Option<&mut Stub> {
        self.store.sockets.get_mut(key)?.stub.as_deref_mut()
    }

    /// Says something about a connection that has moved to the server that has it, now or once it is there.
    pub(crate) fn pass_on(&mut self, process: ProcessId, key: Key, said: Said) {
        let Some(stub) = self.stub_mut(key) else { return };
        stub.said += 1;
        if stub.said > SAID_MAX {
            return self.processes.mark_hostile(process);
        }
        match stub.stage {
            StubStage::Delivered(_) => self.send_late(key, said),
            StubStage::Frozen | StubStage::Packed => stub.waiting.push(said),
        }
    }

    fn send_late(&mut self, key: Key, said: Said) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        let domain = socket.domain.and_then(|domain| self.store.domains.get(domain));
        let (Some(place), Some(domain)) = (socket.new_place(), domain) else { return };
        let NewPlace { server, epoch, slot, generation } = place;
        let notice = LateNotice { epoch, token: domain.token, slot, generation, said };
        self.counters.late_sent += 1;
        self.moving.send_notice(server, notice.encode());
    }

    /// Nobody has the socket of a stub any more.
    pub(crate) fn end_stub(&mut self, key: Key, abort: bool) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let Some(stub) = socket.stub.as_mut() else { return };
        if std::mem::replace(&mut stub.ended, true) {
            return;
        }
        // The end is said whatever was said before.
        let waits = !matches!(stub.stage, StubStage::Delivered(_));
        if waits {
            stub.waiting.push(Said::End(abort));
        }
        socket.watches.clear();
        if let Some(process) = socket.owner.take().and_then(|id| self.processes.get_mut(id)) {
            process.sockets.remove(&key);
        }
        if !waits {
            self.send_late(key, Said::End(abort));
            self.forget(key);
        }
    }

    /// Another transport server is gone: nobody tells the ends of sockets that came from there. Whoever has one and
    /// is not here has a while to follow, if he had come there: from where he was before he does not find us.
    pub(crate) fn stubs_are_gone(&mut self, now: Instant, server: ServerNumber) {
        for key in self.store.sockets.keys() {
            let came = self.store.sockets.get(key).and_then(|socket| socket.came.as_deref());
            if came.is_some_and(|came| came.from == Some(server) && !came.arrived && !came.found) {
                self.counters.moved_lost += 1;
                self.close_socket(now, key, true);
                continue;
            }
            let Some(socket) = self.store.sockets.get_mut(key) else { continue };
            let Some(came) = socket.came.as_mut().filter(|came| came.from == Some(server)) else {
                continue;
            };
            came.from = None;
            if !came.arrived && socket.owner.is_none() {
                self.depot.strays.push_back((now.plus_us(STRAY_US), key));
            }
            let domain = socket.domain.filter(|_| socket.shared);
            if let Some(domain) = domain.and_then(|domain| self.store.domains.get_mut(domain)) {
                domain.unheard = true;
                self.hear_for_a_member(key);
            }
        }
    }

    /// Sees to it that the end of a shared socket is heard, if a process of its domain is here: any of them may
    /// have it. False: none is.
    fn hear_for_a_member(&mut self, key: Key) -> bool {
        let domain = self.store.sockets.get(key).and_then(|socket| socket.domain);
        let mut processes = self.processes.iter();
        let member = processes.find(|(_, one)| Some(one.domain) == domain).map(|(id, _)| id);
        let Some(member) = member else { return false };
        drop(processes);
        self.hear_end_of(member, key);
        true
    }

    /// A connection has come here, and nobody who has it has.
    fn is_unfound(&self, key: Key) -> bool {
        let came = self.store.sockets.get(key).and_then(|socket| socket.came.as_deref());
        came.is_some_and(|came| !came.arrived)
    }

    /// Connections that have left and that nobody will find any more once this server is gone: a program that has one
    /// alone has yet to follow it; or several may have it, and none has been here, so that all look for it here first.
    pub fn stubs(&self) -> usize {
        let keys = self.store.sockets.keys().into_iter();
        let waits = |key: &Key| {
            let socket = self.store.sockets.get(*key).filter(|socket| socket.stub.is_some());
            socket.is_some_and(|socket| !socket.shared || self.is_unfound(*key))
        };
        keys.filter(waits).count()
    }

    /// A bucket came from a server that died before it heard so: processes were told there that its connections are
    /// lost, unless they have followed already. They are.
    pub(crate) fn end_unheard(&mut self, now: Instant, from: ServerNumber, bucket: u16) {
        for id in self.shard.connections_in_bucket(bucket) {
            let Some(key) = self.store.key_of(id) else { continue };
            let came = self.store.sockets.get(key).and_then(|socket| socket.came.as_deref());
            if came.is_some_and(|came| came.from == Some(from) && !came.arrived) {
                self.counters.moved_lost += 1;
                self.close_socket(now, key, true);
            }
        }
    }

    /// Whether somebody has yet to follow who may never come.
    pub(crate) fn has_strays(&self) -> bool {
        !self.depot.strays.is_empty()
    }

    /// Resets what nobody has followed in time.
    pub(crate) fn end_strays(&mut self, now: Instant) {
        while let Some(&(due, key)) = self.depot.strays.front()
            && due <= now
        {
            self.depot.strays.pop_front();
            let Some(socket) = self.store.sockets.get_mut(key) else { continue };
            let Some(came) = socket.came.as_deref().copied() else { continue };
            // It ends with its placeholder, or with the last process of the domain.
            if socket.shared && !came.arrived && self.hear_for_a_member(key) {
                continue;
            }
            let Some(socket) = self.store.sockets.get_mut(key) else { continue };
            let awaited = came.awaits.and_then(|name| self.processes.named(name));
            let awaited = awaited.and_then(|id| Some((id, self.processes.get_mut(id)?)));
            let awaited = awaited.filter(|(_, one)| Some(one.domain) == socket.domain);
            match awaited {
                _ if came.arrived || socket.owner.is_some() => {}
                Some((id, process)) if !socket.shared => {
                    socket.owner = Some(id);
                    process.sockets.insert(key);
                }
                _ => {
                    self.counters.strays += 1;
                    self.close_socket(now, key, true);
                }
            }
        }
    }
}

/// Requests of applications.
impl Core {
    /// ARRIVE: a process has followed a connection that has moved here. 0, or an errno.
    pub(crate) fn arrive(&mut self, process: ProcessId, key: Key) -> i32 {
        let Some(socket) = self.store.sockets.get_mut(key) else { return libc::EBADF };
        if socket.shared {
            if let Some(came) = &mut socket.came {
                came.arrived = true;
            }
            self.counters.followed += 1;
            self.hear_end_of(process, key);
            return 0;
        }
        let own = socket.owner == Some(process);
        let awaited = socket.owner.is_none() && socket.came.is_some();
        if !(own || awaited) || socket.closed {
            return libc::EBADF;
        }
        let Some(entry) = self.processes.get_mut(process) else { return libc::EBADF };
        entry.sockets.insert(key);
        socket.owner = Some(process);
        // From here on it ends with its process.
        socket.came = None;
        self.counters.followed += 1;
        0
    }

    /// LEFT: a process has followed a connection that has moved from here.
    fn left(&mut self, process: ProcessId, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        socket.watches.retain(|watch| watch.process != process);
        let others = socket.owner.is_some_and(|owner| owner != process);
        if !socket.shared && !others && socket.new_place().is_some() {
            self.forget(key);
        }
    }

    /// A request about a stub. True: it was one.
    pub(crate) fn handle_late_request(
        &mut self,
        process: ProcessId,
        key: Key,
        request: &Request,
    ) -> bool {
        let Some(socket) = self.store.sockets.get(key) else { return false };
        if socket.stub.is_none() {
            return false;
        }
        let (shared, place) = (socket.shared, socket.new_place());
        let mine = socket.owner == Some(process);
        let reply = request.header.reply;
        match request.body {
            RequestBody::WantTx => {
                if let Some(stub) = self.stub_mut(key) {
                    stub.wanted = true;
                }
            }
            RequestBody::KickTx
            | RequestBody::KickRx
            | RequestBody::Claim
            | RequestBody::Acceptor
            | RequestBody::NotAcceptor => {}
            // It was found claimed when it was made ready.
            RequestBody::Refuse if mine && !shared => self.end_stub(key, true),
            RequestBody::Refuse => {}
            RequestBody::Watch { watcher, mask, one_shot } => {
                self.register_watch(process, key, watcher, mask, one_shot);
                if place.is_some() {
                    self.announce_to(key, Some(process), ANYTHING);
                }
            }
            RequestBody::Unwatch { watcher } => self.unwatch(process, key, watcher),
            RequestBody::Shutdown { how } => self.pass_on(process, key, Said::Shutdown(how)),
            RequestBody::Close { abort } if !shared => self.end_stub(key, abort),
            RequestBody::Close { .. } => {}
            RequestBody::Shared { cookie } => self.share(process, key, cookie),
            RequestBody::SetOption { option, value } if reply == haypile_shm::limits::NO_REPLY => {
                self.pass_on(process, key, Said::SetOption { option, value });
            }
            RequestBody::Left => self.left(process, key),
            RequestBody::Arrive => {
                let is_first = self.is_unfound(key);
                let errno = self.arrive(process, key);
                if is_first && errno == 0 {
                    self.pass_on(process, key, Said::Arrived);
                }
                self.answer_about(process, key, reply, errno);
            }
            RequestBody::GetOption { .. }
            | RequestBody::TcpInfo { .. }
            | RequestBody::Route { .. }
            | RequestBody::TakeDatagramError
            | RequestBody::DatagramErrorPayload { .. } => {
                self.reply_late(process, reply, &OptionReply::failure(ELSEWHERE).encode());
            }
            _ => {
                let slot = place.map_or(NO_SLOT, |place| u32::from(place.server));
                let answer = SocketReply { slot, ..SocketReply::failure(ELSEWHERE) };
                self.reply_late(process, reply, &answer.encode());
            }
        }
        true
    }

    /// Answers with the name of a socket.
    pub(crate) fn answer_about(&mut self, process: ProcessId, key: Key, cell: u32, errno: i32) {
        let socket = self.store.sockets.get(key);
        let (slot, generation) = socket.and_then(|socket| socket.name()).unwrap_or((NO_SLOT, 0));
        let local = socket.and_then(|socket| socket.local);
        let answer = SocketReply { errno, slot, generation, local };
        self.reply_late(process, cell, &answer.encode());
    }

    fn reply_late(
        &mut self,
        process: ProcessId,
        cell: u32,
        payload: &haypile_shm::messages::ReplyPayload,
    ) {
        if cell != haypile_shm::limits::NO_REPLY {
            self.processes.reply(process, cell, payload);
        }
    }
}
