//! Requests of applications: one handler for each kind of message on the request ring.
//!
//! Every field was decoded from a private copy; every socket name is checked against the domain of
//! the process that sent it. Called by `server` with a budget for each process and turn.

use std::net::{IpAddr, SocketAddr};

use haypile_engine::{Close, DatagramOptions, Instant, ListenOptions, Progress, SocketOption};
use haypile_shm::limits::{NO_REPLY, NO_SLOT};
use haypile_shm::messages::{
    NOT_OURS, OPTION_BYTES, OPTION_MORE, OptionReply, Request, RequestBody, RequestHeader,
    SocketKind, SocketReply,
};

use crate::errno::{self, Refusal};
use crate::options;
use crate::ports::Binding;
use crate::server::Core;
use crate::slab::Key;
use crate::sockets::Socket;
use haypile_engine::control::connection_manager::ProcessId;

/// Requests of one process handled in one turn.
pub const BUDGET: usize = 64;

impl Core {
    /// Handles up to `BUDGET` requests of every process; how many there were.
    pub(crate) fn handle_requests(&mut self, now: Instant) -> usize {
        let mut total = 0;
        for process in 1..=self.processes.highest() {
            total += self.handle_requests_of(now, process);
        }
        total
    }

    /// One burst of requests of one process; how many.
    // A row of docs/cost.md.
    #[inline(never)]
    pub(crate) fn handle_requests_of(&mut self, now: Instant, process: ProcessId) -> usize {
        // Kept from turn to turn, because most find nothing and clearing it costs more than looking.
        let mut messages = std::mem::take(&mut self.request_room);
        messages.resize(BUDGET, [0; 8]);
        let count = self.processes.take_requests(process, &mut messages);
        self.counters.requests += count as u64;
        for message in &messages[..count] {
            match Request::decode(message) {
                Ok(request) => self.handle_request(now, process, &request),
                Err(_) => {
                    self.counters.malformed_requests += 1;
                    self.processes.mark_hostile(process);
                }
            }
        }
        self.request_room = messages;
        count
    }

    fn handle_request(&mut self, now: Instant, process: ProcessId, request: &Request) {
        let RequestHeader { slot, generation, reply } = request.header;
        let domain = match self.processes.get(process) {
            Some(process) => process.domain,
            None => return,
        };
        let key = self.store.domains.get(domain).and_then(|d| d.socket_at(slot, generation));
        if slot != NO_SLOT && key.is_none() && !matches!(request.body, RequestBody::Drained { .. })
        {
            // The socket went while the request was under way.
            self.counters.stale_requests += 1;
            return self.answer_stale(process, reply, &request.body);
        }
        if key.is_some_and(|key| self.handle_late_request(process, key, request)) {
            return;
        }
        match request.body {
            RequestBody::Bind { .. }
            | RequestBody::Listen { .. }
            | RequestBody::Connect { .. }
            | RequestBody::Open { .. }
            | RequestBody::BindDatagram { .. }
            | RequestBody::ConnectDatagram { .. } => {
                let answer = self.open_or_use(now, process, domain, key, &request.body);
                self.reply(process, reply, &answer);
            }
            RequestBody::SetOption { option, value } => {
                let errno = key.map_or(libc::EBADF, |key| self.set_option(now, key, option, value));
                let answer = SocketReply { errno, slot, generation, local: None };
                self.reply(process, reply, &answer);
            }
            body @ (RequestBody::GetOption { .. }
            | RequestBody::TcpInfo { .. }
            | RequestBody::Route { .. }
            | RequestBody::Address { .. }
            | RequestBody::TakeDatagramError
            | RequestBody::DatagramErrorPayload { .. }) => {
                let answer = self.look_up(key, &body);
                self.reply_option(process, reply, answer);
            }
            RequestBody::Group { join, group, interface } => {
                let errno = key
                    .map_or(libc::EBADF, |key| self.change_group(now, key, join, group, interface));
                let answer = SocketReply { errno, slot, generation, local: None };
                self.reply(process, reply, &answer);
            }
            RequestBody::Drained { watcher } => self.drained(process, watcher),
            RequestBody::Arrive => {
                let errno = key.map_or(libc::EBADF, |key| self.arrive(process, key));
                let local = key.and_then(|key| self.store.sockets.get(key)?.local);
                self.reply(process, reply, &SocketReply { errno, slot, generation, local });
            }
            body => {
                if let Some(key) = key {
                    self.handle_notice(now, process, key, &body);
                }
            }
        }
    }

    /// What a question about a socket, or about the network, is answered.
    fn look_up(&mut self, key: Option<Key>, body: &RequestBody) -> Result<OptionReply, i32> {
        match (*body, key) {
            (RequestBody::Route { remote }, _) => self.route(remote),
            (RequestBody::Address { index }, _) => self.own_address(index),
            (RequestBody::GetOption { option }, Some(key)) => self.get_option(key, option),
            (RequestBody::TcpInfo { part }, Some(key)) => self.tcp_info(key, part),
            (RequestBody::TakeDatagramError, Some(key)) => self.take_datagram_error(key),
            (RequestBody::DatagramErrorPayload { serial, part }, Some(key)) => {
                self.datagram_error_payload(key, serial, part)
            }
            _ => Err(libc::EBADF),
        }
    }

    /// Requests without an answer, about a socket that exists.
    fn handle_notice(&mut self, now: Instant, process: ProcessId, key: Key, body: &RequestBody) {
        match *body {
            RequestBody::Acceptor => {
                self.counters.acceptors += 1;
                self.set_acceptor(now, process, key, true);
            }
            RequestBody::NotAcceptor => self.set_acceptor(now, process, key, false),
            RequestBody::Claim => {
                self.counters.claims += 1;
                self.claim(now, process, key);
            }
            RequestBody::Refuse => self.refuse(now, process, key),
            RequestBody::KickTx => self.kick_tx(now, key),
            RequestBody::KickRx => self.kick_rx(now, key),
            RequestBody::WantTx => {
                self.kick_tx(now, key);
                self.want_tx(key);
            }
            RequestBody::Shutdown { how } => self.shutdown_socket(now, key, how),
            RequestBody::Close { abort } => {
                let shared = self.store.sockets.get(key).is_some_and(|socket| socket.shared);
                if !shared {
                    self.close_socket(now, key, abort);
                }
            }
            RequestBody::Watch { watcher, mask, one_shot } => {
                self.watch(process, key, watcher, mask, one_shot);
            }
            RequestBody::Unwatch { watcher } => self.unwatch(process, key, watcher),
            RequestBody::Shared { cookie } => self.share(process, key, cookie),
            _ => {}
        }
    }

    fn answer_stale(&mut self, process: ProcessId, reply: u32, body: &RequestBody) {
        match body {
            RequestBody::GetOption { .. }
            | RequestBody::TcpInfo { .. }
            | RequestBody::TakeDatagramError
            | RequestBody::DatagramErrorPayload { .. } => {
                self.reply_option(process, reply, Err(libc::EBADF));
            }
            _ => self.reply(process, reply, &SocketReply::failure(libc::EBADF)),
        }
    }

    fn reply(&mut self, process: ProcessId, cell: u32, answer: &SocketReply) {
        if cell != NO_REPLY {
            self.processes.reply(process, cell, &answer.encode());
        }
    }

    fn reply_option(&mut self, process: ProcessId, cell: u32, answer: Result<OptionReply, i32>) {
        if cell != NO_REPLY {
            let answer = answer.unwrap_or_else(OptionReply::failure);
            self.processes.reply(process, cell, &answer.encode());
        }
    }

    /// Requests that make a socket if there is none yet, and undo that on failure.
    fn open_or_use(
        &mut self,
        now: Instant,
        process: ProcessId,
        domain: Key,
        existing: Option<Key>,
        body: &RequestBody,
    ) -> SocketReply {
        let Some(key) = existing.or_else(|| self.store.open(domain, process, now)) else {
            return SocketReply::failure(libc::ENOBUFS);
        };
        if existing.is_none()
            && let Some(process) = self.processes.get_mut(process)
        {
            process.sockets.insert(key);
        }
        let outcome = match *body {
            RequestBody::Bind { address, reuse_address, reuse_port, v6only } => {
                let address = unmapped(address);
                let binding = Binding { address, reuse_address, reuse_port, v6_only: v6only };
                self.bind(now, key, binding).map_err(Refusal::from)
            }
            RequestBody::Listen { backlog, v6only, reuse_port, cookie, opening } => {
                let outcome = self.listen(now, key, backlog, v6only, reuse_port, cookie);
                let id = self.store.sockets.get(key).and_then(|socket| socket.id);
                if let (Ok(()), Some(id)) = (outcome, id) {
                    self.shard.set_opening(id, opening);
                }
                let unknown = |socket: &Socket| socket.cookie.is_none() && cookie != 0;
                if outcome.is_ok() && self.store.sockets.get(key).is_some_and(unknown) {
                    self.store.set_cookie(key, cookie);
                }
                self.note_listening(key);
                outcome.map_err(Refusal::from)
            }
            RequestBody::Connect { remote } => self.connect(now, key, unmapped(remote)),
            RequestBody::BindDatagram { address, reuse_address, reuse_port, v6only } => {
                let defaults = DatagramOptions::default();
                let options = DatagramOptions { v6only, reuse_address, reuse_port, ..defaults };
                self.bind_datagram(now, key, unmapped(address), options)
            }
            RequestBody::ConnectDatagram { remote } => {
                self.connect_datagram(now, key, remote.map(unmapped))
            }
            _ => Ok(()),
        };
        let socket = self.store.sockets.get(key);
        let name = socket.and_then(|socket| socket.name());
        let local = socket.and_then(|socket| socket.local);
        match (outcome, name) {
            (Ok(()), Some((slot, generation))) => SocketReply { errno: 0, slot, generation, local },
            (Err(Refusal::Errno(errno)), Some((slot, generation))) if existing.is_some() => {
                SocketReply { errno, slot, generation, local }
            }
            (Err(elsewhere), _) if existing.is_some() => elsewhere.reply(),
            (outcome, _) => {
                self.end_datagrams(now, key);
                outcome.err().unwrap_or(Refusal::Errno(libc::ENOBUFS)).reply()
            }
        }
    }

    pub(crate) fn bind(&mut self, now: Instant, key: Key, binding: Binding) -> Result<(), i32> {
        let ip = binding.address.ip();
        if !ip.is_unspecified() && !self.shard.owns_address(ip) {
            return Err(NOT_OURS);
        }
        let socket = self.store.sockets.get_mut(key).ok_or(libc::EBADF)?;
        if socket.binding.is_some() || socket.kind != SocketKind::Plain {
            return Err(libc::EINVAL);
        }
        let domain = socket.domain;
        let address = match self.ports.bind(key, binding) {
            Some(address) => address,
            // Whoever had the port may be gone without anybody having said so yet.
            None => {
                self.ask_witness(now);
                self.yield_inherited(now, domain, binding.address.port());
                self.ports.bind(key, binding).ok_or(libc::EADDRINUSE)?
            }
        };
        let socket = self.store.sockets.get_mut(key).ok_or(libc::EBADF)?;
        socket.binding = Some(Binding { address, ..binding });
        socket.local = Some(address);
        if let Some(stream) = &mut socket.stream {
            stream.set_local(Some(address));
        }
        Ok(())
    }

    pub(crate) fn listen(
        &mut self,
        now: Instant,
        key: Key,
        backlog: u32,
        v6only: bool,
        reuse_port: bool,
        cookie: u64,
    ) -> Result<(), i32> {
        let socket = self.store.sockets.get(key).ok_or(libc::EBADF)?;
        match (socket.kind, socket.id) {
            (SocketKind::Listener, Some(id)) => {
                self.shard.set_backlog(id, backlog);
                return Ok(());
            }
            (SocketKind::Plain, _) => {}
            _ => return Err(libc::EINVAL),
        }
        if socket.binding.is_none() {
            let anywhere = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0);
            self.bind(
                now,
                key,
                Binding { address: anywhere, reuse_address: false, reuse_port, v6_only: v6only },
            )?;
        }
        let socket = self.store.sockets.get_mut(key).ok_or(libc::EBADF)?;
        let binding = socket.binding.ok_or(libc::EINVAL)?;
        if !self.ports.listen(key, binding.address.port()) {
            return Err(libc::EADDRINUSE);
        }
        let template = socket.options;
        let options = ListenOptions {
            backlog,
            v6only: v6only || binding.v6_only,
            reuse_port: reuse_port || binding.reuse_port,
            template,
        };
        let id = self
            .shard
            .listen(binding.address, options)
            .map_err(|error| errno::of_listen_error(error).errno())?;
        socket.kind = SocketKind::Listener;
        socket.rx_shut = false;
        socket.publish_status();
        self.store.set_id(key, id);
        self.listener_opened(now, key, cookie);
        Ok(())
    }

    fn connect(&mut self, now: Instant, key: Key, remote: SocketAddr) -> Result<(), Refusal> {
        let socket = self.store.sockets.get_mut(key).ok_or(libc::EBADF)?;
        match socket.kind {
            SocketKind::Plain => {}
            SocketKind::Listener => return Err(libc::EISCONN.into()),
            SocketKind::Datagram => return Err(libc::EOPNOTSUPP.into()),
            SocketKind::Connection if socket.progress.connected => return Err(libc::EISCONN.into()),
            SocketKind::Connection if socket.progress.error.is_none() => {
                return Err(libc::EALREADY.into());
            }
            // The last attempt failed; Linux allows another one.
            SocketKind::Connection => self.forget_attempt(now, key),
        }
        let socket = self.store.sockets.get_mut(key).ok_or(libc::EBADF)?;
        let ip = remote.ip();
        if ip.is_unspecified() || !self.shard.routes_to(ip) {
            let bound_to_us =
                socket.binding.is_some_and(|binding| !binding.address.ip().is_unspecified());
            return Err((if bound_to_us { libc::ENETUNREACH } else { NOT_OURS }).into());
        }
        let local = match socket.binding.map(|binding| binding.address) {
            Some(address) if address.ip().is_unspecified() => {
                let source = self.shard.source_for(ip).ok_or(libc::ENETUNREACH)?;
                Some(SocketAddr::new(source, address.port()))
            }
            other => other,
        };
        let id = self
            .shard
            .connect(now, local, remote, socket.options)
            .map_err(errno::of_connect_error)?;
        socket.kind = SocketKind::Connection;
        // It may have been a listener that was shut down.
        socket.rx_shut = false;
        socket.local = self.shard.local_address(id).or(local);
        socket.remote = Some(remote);
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        if let (Some(stream), Some(domain)) = (&mut socket.stream, domain) {
            stream.set_local(socket.local);
            stream.set_remote(Some(remote));
            stream.set_rx_kick_step(u64::from(socket.options.receive_buffer) / 3);
            stream.grant_tx(u64::from(socket.options.send_buffer), &mut domain.arena);
        }
        socket.publish_status();
        self.store.set_id(key, id);
        self.store.note_flow(key);
        self.touch(key);
        Ok(())
    }

    /// Makes a plain socket of one whose connection attempt has failed.
    fn forget_attempt(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        if let Some(id) = socket.id {
            self.shard.close(now, id, Close::Abort);
        }
        socket.kind = SocketKind::Plain;
        socket.progress = Progress::default();
        self.store.clear_id(key);
    }

    pub(crate) fn set_option(&mut self, now: Instant, key: Key, option: u16, value: i64) -> i32 {
        let errno = self.put_option(now, key, option, value);
        if errno == 0 {
            self.note_listening(key);
        }
        errno
    }

    fn put_option(&mut self, now: Instant, key: Key, option: u16, value: i64) -> i32 {
        let Some(socket) = self.store.sockets.get_mut(key) else { return libc::EBADF };
        if socket.kind == SocketKind::Datagram {
            return self.set_datagram_option(key, option, value);
        }
        match option {
            options::LINGER => {
                socket.resets = value == 0;
                return 0;
            }
            OPTION_MORE => {
                socket.more = value != 0;
                self.put_cork(now, key);
                return 0;
            }
            _ => {}
        }
        let parsed = match options::parse(option, value) {
            Ok(parsed) => parsed,
            Err(errno) => return errno,
        };
        let Some(socket) = self.store.sockets.get_mut(key) else { return libc::EBADF };
        socket.options.set(parsed);
        match parsed {
            SocketOption::Cork(_) => self.let_go(now, key),
            parsed => {
                if let Some(id) = socket.id {
                    self.shard.set_option(now, id, parsed);
                }
                if parsed == SocketOption::NoDelay(true) {
                    self.let_go(now, key);
                }
            }
        }
        let Some(socket) = self.store.sockets.get_mut(key) else { return libc::EBADF };
        if let (SocketKind::Connection, Some(stream)) = (socket.kind, &mut socket.stream) {
            stream.set_rx_kick_step(u64::from(socket.options.receive_buffer) / 3);
        }
        0
    }

    /// What `MSG_MORE` has held back may go.
    fn let_go(&mut self, now: Instant, key: Key) {
        if let Some(socket) = self.store.sockets.get_mut(key) {
            socket.more = false;
            self.put_cork(now, key);
        }
    }

    /// The shard knows one cork, which is both the option and the flag of a send.
    fn put_cork(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get(key) else { return };
        if let Some(id) = socket.id {
            let cork = SocketOption::Cork(socket.options.cork || socket.more);
            self.shard.set_option(now, id, cork);
        }
    }

    fn get_option(&self, key: Key, option: u16) -> Result<OptionReply, i32> {
        let socket = self.store.sockets.get(key).ok_or(libc::EBADF)?;
        let info = socket.id.and_then(|id| self.shard.tcp_info(id));
        let value = options::value(option, &socket.options, info.map(|info| info.send_mss))?;
        Ok(OptionReply::value(&value.to_ne_bytes()))
    }

    fn tcp_info(&self, key: Key, part: u16) -> Result<OptionReply, i32> {
        let socket = self.store.sockets.get(key).ok_or(libc::EBADF)?;
        let mut bytes = [0; options::TCP_INFO_BYTES];
        match socket.id.and_then(|id| self.shard.tcp_info(id)) {
            Some(info) => bytes = options::tcp_info(&info),
            None => bytes[0] = if socket.kind == SocketKind::Listener { LISTEN } else { CLOSE },
        }
        let start = (usize::from(part) * OPTION_BYTES).min(bytes.len());
        let end = (start + OPTION_BYTES).min(bytes.len());
        Ok(OptionReply::value(&bytes[start..end]))
    }
}

/// Linux's numbers of two states.
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// An IPv4 address in IPv6's clothes (RFC 4291 section 2.5.5.2) is an IPv4 address.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
