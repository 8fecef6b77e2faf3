//! UDP sockets between applications and the shard: bind, connect, groups, options, what is sent, what
//! comes in, and errors.
//!
//! Received datagrams go straight from the shard into the socket's FIFO ([`Store`] implements the
//! engine's `Streams`) and are published once a turn. Datagrams to be sent are taken from the FIFOs
//! a budget at a time, sockets in turn. Called by `requests`, `transport_server` and `server`.
//! Read docs/decisions/0007 first.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use haypile_engine::error::GroupError;
use haypile_engine::{
    Close, Datagram, DatagramOption, DatagramOptions, DatagramReport, Instant, ListenError,
    PathMtu, SendError, SendTo, SocketError, SocketId,
};
use haypile_shm::DatagramHeader;
use haypile_shm::datagram::RECORD_PAYLOAD_MAX;
use haypile_shm::limits::FIFO_USABLE;
use haypile_shm::messages::{
    AddressAnswer, DatagramError, NOT_OURS, OPTION_BYTES, OptionReply, RouteAnswer, Shutdown,
    SocketKind, ready,
};

use crate::errno::{self, Refusal};
use crate::options::number;
use crate::server::Core;
use crate::slab::Key;
use crate::sockets::{Socket, Store};

/// Datagrams of one socket sent in one turn.
const SEND_BUDGET: usize = 64;
/// Errors that wait on one socket; more push the oldest out.
const ERRORS_MAX: usize = 64;
/// What SO_RCVBUF and SO_SNDBUF are unless set: the kernel's `net.core.rmem_default`.
const BUFFER_DEFAULT: u64 = 212_992;
/// Least buffer.
const BUFFER_MIN: u64 = 2048;

/// What only a UDP socket has.
#[derive(Debug)]
pub struct DatagramState {
    /// Options as set; what the shard is given.
    pub options: DatagramOptions,
    /// Bytes of records that may wait to be read.
    pub receive_buffer: u64,
    /// Bytes of records that may wait to be sent.
    pub send_buffer: u64,
    /// Datagrams dropped because more than that waited.
    pub drops: u32,
    /// Errors for `MSG_ERRQUEUE`, with what they quote of the datagram's payload.
    pub errors: VecDeque<(DatagramError, Box<[u8]>)>,
    /// Serial number and payload of the one taken last.
    taken: (u16, Box<[u8]>),
    /// Arrival times are wanted.
    timestamps: bool,
    /// Something was stored that is not published yet.
    fresh: bool,
    /// On the list of those that have something to send.
    sending: bool,
}

impl DatagramState {
    fn new(options: DatagramOptions) -> DatagramState {
        DatagramState {
            options,
            receive_buffer: BUFFER_DEFAULT,
            send_buffer: BUFFER_DEFAULT,
            drops: 0,
            errors: VecDeque::new(),
            taken: Default::default(),
            timestamps: false,
            fresh: false,
            sending: false,
        }
    }
}

/// What is left of a socket's datagrams after some were sent.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    /// More than the budget, or more than the shard takes now.
    Some,
}

impl Store {
    /// Stores a datagram for a socket of the shard. False: there is no room.
    pub(crate) fn store_datagram(
        &mut self,
        id: SocketId,
        datagram: &Datagram,
        payload: &[u8],
    ) -> bool {
        let Some(key) = self.key_of(id) else { return false };
        let Some(socket) = self.sockets.get_mut(key) else { return false };
        let domain = socket.domain.and_then(|domain| self.domains.get_mut(domain));
        let (Some(stream), Some(state), Some(domain)) =
            (&mut socket.stream, &mut socket.datagram, domain)
        else {
            return false;
        };
        let Ok(len) = u16::try_from(payload.len()) else { return false };
        let header = DatagramHeader {
            len,
            remote: Some(datagram.remote),
            local: Some(datagram.local),
            hop_limit: Some(datagram.hop_limit),
            type_of_service: Some(datagram.type_of_service),
            segment_size: 0,
            drops: state.drops,
            time_ns: if state.timestamps { wall_clock_ns() } else { 0 },
        };
        match stream.push_record(&header, payload, state.receive_buffer, &mut domain.arena) {
            Ok(true) => {
                if !state.fresh {
                    state.fresh = true;
                    self.fresh.push(key);
                }
                true
            }
            Ok(false) => {
                state.drops = state.drops.wrapping_add(1);
                false
            }
            Err(_) => {
                self.hostile.push(key);
                false
            }
        }
    }
}

/// Nanoseconds since 1970, for arrival times.
fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Core {
    // --- names ---------------------------------------------------------------------------------

    /// Binds a socket that has just been opened.
    ///
    /// # Errors
    /// The errno; `NOT_OURS` for an address of the kernel's.
    pub(crate) fn bind_datagram(
        &mut self,
        now: Instant,
        key: Key,
        address: SocketAddr,
        options: DatagramOptions,
    ) -> Result<(), Refusal> {
        let ip = address.ip();
        let socket = self.store.sockets.get(key).ok_or(libc::EBADF)?;
        if socket.kind != SocketKind::Plain {
            return Err(libc::EINVAL.into());
        }
        let ours = ip.is_unspecified()
            || ip.is_multicast()
            || self.shard.owns_address(ip)
            || (self.shard.is_broadcast(ip) && !is_limited_broadcast(ip));
        if !ours {
            return Err(NOT_OURS.into());
        }
        let id = match self.shard.open_datagram(address, options) {
            // Whoever had the port may be gone without anybody having said so yet.
            Err(ListenError::AddressInUse) => {
                self.ask_witness(now);
                self.shard.open_datagram(address, options)
            }
            other => other,
        };
        let id = id.map_err(|error| match error {
            ListenError::NoPort => Refusal::Errno(libc::EADDRINUSE),
            other => errno::of_listen_error(other),
        })?;
        self.start_datagrams(key, id, options);
        Ok(())
    }

    fn start_datagrams(&mut self, key: Key, id: SocketId, options: DatagramOptions) {
        let local = self.shard.local_address(id);
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let state = DatagramState::new(options);
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        if let (Some(stream), Some(domain)) = (&mut socket.stream, domain) {
            stream.set_local(local);
            stream.set_rx_kick_step(state.receive_buffer / 2);
            stream.settle_records(state.send_buffer, &mut domain.arena);
        }
        socket.kind = SocketKind::Datagram;
        socket.local = local;
        socket.datagram = Some(Box::new(state));
        socket.publish_status();
        self.store.set_id(key, id);
        self.touch(key);
    }

    /// Fixes the peer of a socket, or dissolves that.
    ///
    /// # Errors
    /// The errno; `NOT_OURS` for a peer that the service does not reach.
    pub(crate) fn connect_datagram(
        &mut self,
        now: Instant,
        key: Key,
        remote: Option<SocketAddr>,
    ) -> Result<(), Refusal> {
        let socket = self.store.sockets.get(key).ok_or(libc::EBADF)?;
        if let Some(remote) = remote
            && (remote.ip().is_unspecified() || !self.shard.routes_to(remote.ip()))
        {
            return Err(NOT_OURS.into());
        }
        let id = match (socket.kind, socket.id) {
            (SocketKind::Datagram, Some(id)) => id,
            (SocketKind::Plain, None) if remote.is_some() => {
                let anywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
                self.bind_datagram(now, key, anywhere, DatagramOptions::default())?;
                let socket = self.store.sockets.get(key).ok_or(libc::EBADF)?;
                socket.id.ok_or(libc::EBADF)?
            }
            _ => return Err(libc::EINVAL.into()),
        };
        // What was written before goes to the old peer.
        self.send_some(now, key, usize::MAX);
        self.shard.connect_datagram(id, remote).map_err(errno::of_connect_error)?;
        let local = self.shard.local_address(id);
        let Some(socket) = self.store.sockets.get_mut(key) else { return Err(libc::EBADF.into()) };
        socket.local = local;
        socket.remote = remote;
        socket.progress.connected = remote.is_some();
        if let Some(stream) = &mut socket.stream {
            stream.set_local(local);
            stream.set_remote(remote);
        }
        socket.publish_status();
        Ok(())
    }

    /// Whose a destination is.
    ///
    /// # Errors
    /// `NOT_OURS`.
    pub(crate) fn route(&self, remote: IpAddr) -> Result<OptionReply, i32> {
        let remote = remote.to_canonical();
        if !remote.is_unspecified() && !self.shard.routes_to(remote) {
            return Err(NOT_OURS);
        }
        let answer = RouteAnswer {
            mtu: u32::try_from(self.shard.path_mtu(remote)).unwrap_or(u32::MAX),
            broadcast: self.shard.is_broadcast(remote),
            local: self.shard.owns_address(remote),
            interface: self.interface,
        };
        Ok(OptionReply::value(&answer.encode()))
    }

    /// One of our addresses that are in use.
    pub(crate) fn own_address(&self, index: u16) -> Result<OptionReply, i32> {
        let mut used = self.shard.addresses().filter(|one| self.shard.owns_address(one.cidr.addr));
        let cidr = used.nth(usize::from(index)).ok_or(libc::ENOENT)?.cidr;
        let answer = AddressAnswer {
            address: cidr.addr,
            prefix_len: cidr.prefix_len,
            interface: self.interface,
        };
        Ok(OptionReply::value(&answer.encode()))
    }

    /// Joins or leaves a group; 0 or the errno.
    pub(crate) fn change_group(
        &mut self,
        now: Instant,
        key: Key,
        join: bool,
        group: IpAddr,
        interface: IpAddr,
    ) -> i32 {
        let id = self.store.sockets.get(key).and_then(|socket| socket.id);
        let Some(id) = id else { return libc::EBADF };
        let done = if join {
            self.shard.join_group(now, id, group.to_canonical(), interface.to_canonical())
        } else {
            self.shard.leave_group(now, id, group.to_canonical(), interface.to_canonical())
        };
        done.map_or_else(of_group_error, |()| 0)
    }

    /// An option; 0 or the errno.
    pub(crate) fn set_datagram_option(&mut self, key: Key, option: u16, value: i64) -> i32 {
        let Some(socket) = self.store.sockets.get_mut(key) else { return libc::EBADF };
        let Some(state) = &mut socket.datagram else { return libc::EINVAL };
        let buffer = u64::try_from(value).unwrap_or(0).clamp(BUFFER_MIN, FIFO_USABLE as u64);
        match option {
            SO_RCVBUF => {
                state.receive_buffer = buffer;
                if let Some(stream) = &mut socket.stream {
                    stream.set_rx_kick_step(buffer / 2);
                }
                self.observe(key);
                return 0;
            }
            SO_SNDBUF => {
                state.send_buffer = buffer;
                return 0;
            }
            SO_TIMESTAMP | SO_TIMESTAMPNS => {
                state.timestamps = value != 0;
                return 0;
            }
            _ => {}
        }
        match parse(option, value) {
            Ok(parsed) => {
                state.options.set(parsed);
                if let Some(id) = socket.id {
                    self.shard.set_datagram_option(id, parsed);
                }
                0
            }
            Err(errno) => errno,
        }
    }

    /// The application may have read past a mark that has just been moved.
    fn observe(&mut self, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        if let (Some(stream), Some(domain)) = (&mut socket.stream, domain)
            && stream.observe_rx_head(&mut domain.arena).is_err()
        {
            self.store.hostile.push(key);
        }
    }

    // --- receiving -----------------------------------------------------------------------------

    /// Lets applications see what has been stored since the last call. Once a burst.
    #[inline]
    pub(crate) fn publish_datagrams(&mut self) {
        if !self.store.fresh.is_empty() || !self.store.hostile.is_empty() {
            self.publish_all();
        }
    }

    #[inline(never)]
    fn publish_all(&mut self) {
        for key in std::mem::take(&mut self.store.hostile) {
            self.hostile_socket(key);
        }
        let mut fresh = std::mem::take(&mut self.store.fresh);
        for key in fresh.drain(..) {
            let Some(socket) = self.store.sockets.get_mut(key) else { continue };
            if let Some(state) = &mut socket.datagram {
                state.fresh = false;
            }
            let new = socket.stream.as_mut().is_some_and(|stream| stream.publish_records());
            self.touch(key);
            if new {
                self.announce(key, ready::IN);
            }
        }
        // The list keeps its memory.
        self.store.fresh = fresh;
    }

    // --- sending -------------------------------------------------------------------------------

    /// KICK_TX on a UDP socket.
    pub(crate) fn kick_datagrams(&mut self, key: Key) {
        let state = self.store.sockets.get_mut(key).and_then(|socket| socket.datagram.as_mut());
        if let Some(state) = state
            && !state.sending
        {
            state.sending = true;
            self.sending.push_back(key);
        }
    }

    /// Hands what applications have written to the shard, sockets in turn; how many datagrams.
    // A row of docs/cost.md.
    #[inline(never)]
    pub(crate) fn send_datagrams(&mut self, now: Instant) -> usize {
        let mut sent = 0;
        for _ in 0..self.sending.len() {
            let Some(key) = self.sending.pop_front() else { break };
            let (count, left) = self.send_some(now, key, SEND_BUDGET);
            sent += count;
            match left {
                Left::Some => self.sending.push_back(key),
                Left::Nothing => self.sent_all(now, key),
            }
        }
        sent
    }

    fn sent_all(&mut self, now: Instant, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        if let Some(state) = &mut socket.datagram {
            state.sending = false;
        }
        if socket.closed {
            self.end_datagrams(now, key);
        }
    }

    /// Sends up to `budget` datagrams of a socket.
    fn send_some(&mut self, now: Instant, key: Key, budget: usize) -> (usize, Left) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(RECORD_PAYLOAD_MAX, 0);
        let outcome = self.send_through(now, key, budget, &mut scratch);
        self.scratch = scratch;
        outcome
    }

    fn send_through(
        &mut self,
        now: Instant,
        key: Key,
        budget: usize,
        scratch: &mut [u8],
    ) -> (usize, Left) {
        let nothing = (0, Left::Nothing);
        let Some(socket) = self.store.sockets.get_mut(key) else { return nothing };
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        let (Some(stream), Some(state), Some(domain), Some(id)) =
            (&mut socket.stream, &mut socket.datagram, domain, socket.id)
        else {
            return nothing;
        };
        let (mut sent, mut failed) = (0, None);
        let mut hostile = stream.observe_tx_tail().is_err();
        while !hostile && sent < budget {
            let header = match stream.peek_record(scratch, &domain.arena) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(_) => {
                    hostile = true;
                    break;
                }
            };
            let payload = &scratch[..usize::from(header.len)];
            match self.shard.send_datagram(now, id, &send_to(&header), payload) {
                Err(SendError::Busy) => break,
                Ok(()) => {}
                Err(error) => failed = Some((error, header)),
            }
            stream.take_record(&header);
            sent += 1;
        }
        let left = if stream.untaken() > 0 { Left::Some } else { Left::Nothing };
        let writable = stream.settle_records(state.send_buffer, &mut domain.arena);
        self.touch(key);
        if hostile {
            self.hostile_socket(key);
            return (sent, Left::Nothing);
        }
        if writable {
            self.announce(key, ready::OUT);
        }
        if let Some((error, header)) = failed {
            self.send_failed(key, error, &header);
        }
        (sent, left)
    }

    /// WANT_TX on a UDP socket. True: it may write now.
    pub(crate) fn want_records(&mut self, key: Key) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let domain = socket.domain.and_then(|domain| self.store.domains.get_mut(domain));
        let (Some(stream), Some(state), Some(domain)) =
            (&mut socket.stream, &socket.datagram, domain)
        else {
            return;
        };
        match stream.want_records(state.send_buffer, &mut domain.arena) {
            Ok(true) => {
                self.touch(key);
                self.announce(key, ready::OUT);
            }
            Ok(false) => self.touch(key),
            Err(_) => self.hostile_socket(key),
        }
    }

    // --- errors --------------------------------------------------------------------------------

    /// A datagram that the application has got rid of could not be sent: told by the next call.
    fn send_failed(&mut self, key: Key, error: SendError, header: &DatagramHeader) {
        let errno = of_send_error(error);
        let mtu = match error {
            SendError::MessageTooLong { mtu } => mtu,
            _ => 0,
        };
        let remote = header.remote.or_else(|| self.store.sockets.get(key)?.remote);
        let local = remote.map(|remote| DatagramError {
            errno: errno as u8,
            origin: ORIGIN_LOCAL,
            kind: 0,
            code: 0,
            remote,
            mtu,
            offender: None,
            payload_len: 0,
            serial: 0,
        });
        let queued = local.filter(|_| matches!(error, SendError::MessageTooLong { .. }));
        self.raise(key, errno, queued.map(|entry| (entry, Box::default())));
    }

    /// ICMP has answered a datagram of this socket.
    pub(crate) fn datagram_error(
        &mut self,
        id: SocketId,
        error: SocketError,
        report: DatagramReport,
    ) {
        let Some(key) = self.store.key_of(id) else { return };
        let DatagramReport { remote, icmp_type, icmp_code, mtu, offender, payload } = report;
        let errno = errno::of_socket_error(error);
        let entry = DatagramError {
            errno: errno as u8,
            origin: match (offender, remote.is_ipv6()) {
                (None, _) => ORIGIN_LOCAL,
                (_, false) => ORIGIN_ICMP,
                (_, true) => ORIGIN_ICMP6,
            },
            kind: icmp_type,
            code: icmp_code,
            remote,
            mtu,
            offender,
            payload_len: 0,
            serial: 0,
        };
        self.raise(key, errno, Some((entry, payload)));
    }

    /// Leaves an error for the next call, and one in the queue if the socket keeps one.
    fn raise(&mut self, key: Key, errno: i32, entry: Option<(DatagramError, Box<[u8]>)>) {
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        let (Some(stream), Some(state)) = (&mut socket.stream, &mut socket.datagram) else {
            return;
        };
        stream.set_error(errno);
        if let Some(entry) = entry.filter(|_| state.options.receive_errors) {
            if state.errors.len() >= ERRORS_MAX {
                state.errors.pop_front();
            }
            state.errors.push_back(entry);
        }
        socket.publish_status();
        self.announce(key, ready::IN | ready::OUT | ready::ERR);
    }

    /// `MSG_ERRQUEUE`: the oldest error. As on Linux the pending error is then the next one's.
    ///
    /// # Errors
    /// EAGAIN without any.
    pub(crate) fn take_datagram_error(&mut self, key: Key) -> Result<OptionReply, i32> {
        let socket = self.store.sockets.get_mut(key).ok_or(libc::EBADF)?;
        let state = socket.datagram.as_mut().ok_or(libc::EINVAL)?;
        let (mut entry, payload) = state.errors.pop_front().ok_or(libc::EAGAIN)?;
        let next = state.errors.front().map_or(0, |(next, _)| i32::from(next.errno));
        entry.serial = state.taken.0.wrapping_add(1);
        entry.payload_len = payload.len() as u16;
        state.taken = (entry.serial, payload);
        if let Some(stream) = &mut socket.stream {
            stream.set_error(next);
        }
        socket.publish_status();
        Ok(OptionReply::value(&entry.encode()))
    }

    /// A part of what the error taken last quotes.
    ///
    /// # Errors
    /// EAGAIN if another one was taken since.
    pub(crate) fn datagram_error_payload(
        &self,
        key: Key,
        serial: u16,
        part: u16,
    ) -> Result<OptionReply, i32> {
        let socket = self.store.sockets.get(key).ok_or(libc::EBADF)?;
        let (taken, payload) = &socket.datagram.as_ref().ok_or(libc::EINVAL)?.taken;
        if *taken != serial {
            return Err(libc::EAGAIN);
        }
        let start = (usize::from(part) * OPTION_BYTES).min(payload.len());
        let end = (start + OPTION_BYTES).min(payload.len());
        Ok(OptionReply::value(&payload[start..end]))
    }

    // --- the end -------------------------------------------------------------------------------

    /// shutdown(2) on a UDP socket.
    pub(crate) fn shutdown_datagrams(&mut self, now: Instant, key: Key, how: Shutdown) {
        self.send_some(now, key, SEND_BUDGET);
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        socket.tx_shut |= how != Shutdown::Read;
        socket.rx_shut |= how != Shutdown::Write;
        socket.publish_status();
        let bits = socket.ready_bits();
        self.announce(key, bits);
    }

    /// The last holder has let a UDP socket go. What it had written is still sent.
    pub(crate) fn close_datagrams(&mut self, now: Instant, key: Key, abort: bool) {
        let left = if abort { Left::Nothing } else { self.send_some(now, key, SEND_BUDGET).1 };
        let Some(socket) = self.store.sockets.get_mut(key) else { return };
        socket.closed = true;
        socket.watches.clear();
        socket.publish_status();
        if let Some(stream) = &socket.stream {
            stream.wake();
        }
        let owner = socket.owner.take();
        if let Some(process) = owner.and_then(|id| self.processes.get_mut(id)) {
            process.sockets.remove(&key);
        }
        match left {
            Left::Some => self.kick_datagrams(key),
            Left::Nothing => self.end_datagrams(now, key),
        }
    }

    /// Forgets a socket that is closed, or came to nothing, here and in the shard.
    pub(crate) fn end_datagrams(&mut self, now: Instant, key: Key) {
        let socket = self.store.sockets.get(key);
        let datagrams = socket.filter(|socket| socket.kind == SocketKind::Datagram);
        if let Some(id) = datagrams.and_then(|socket| socket.id) {
            self.shard.close(now, id, Close::Abort);
        }
        self.forget(key);
    }
}

impl Socket {
    /// What poll(2) would say of a UDP socket, as far as the service knows.
    pub(crate) fn datagram_bits(&self) -> u32 {
        let Some(stream) = &self.stream else { return ready::OUT };
        let bit = |condition: bool, bit: u32| if condition { bit } else { 0 };
        let errors = self.datagram.as_ref().is_some_and(|state| !state.errors.is_empty());
        bit(stream.rx_tail() > stream.rx_head() || self.rx_shut, ready::IN)
            | bit(stream.has_record_room(), ready::OUT)
            | bit(self.rx_shut, ready::RDHUP)
            | bit(self.rx_shut && self.tx_shut, ready::HUP)
            | bit(errors, ready::ERR)
    }
}

/// `SO_EE_ORIGIN_LOCAL`, `_ICMP`, `_ICMP6` of linux/errqueue.h.
const ORIGIN_LOCAL: u8 = 1;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;

fn is_limited_broadcast(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
}

/// What a record asks of the shard.
fn send_to(header: &DatagramHeader) -> SendTo {
    SendTo {
        remote: header.remote,
        source: header.local.map(|local| local.ip()),
        hop_limit: header.hop_limit,
        type_of_service: header.type_of_service,
        segment_size: header.segment_size,
    }
}

/// Errno of a datagram that was not sent.
fn of_send_error(error: SendError) -> i32 {
    match error {
        SendError::MessageTooLong { .. } => libc::EMSGSIZE,
        SendError::NoRoute => libc::ENETUNREACH,
        SendError::NotConnected => libc::EDESTADDRREQ,
        SendError::BroadcastRefused => libc::EACCES,
        SendError::FamilyMismatch => libc::EAFNOSUPPORT,
        SendError::AddressNotOurs | SendError::BadRemote | SendError::BadSegmentSize => {
            libc::EINVAL
        }
        SendError::NoSocket => libc::EBADF,
        SendError::Busy => libc::EAGAIN,
    }
}

/// Errno of a refused membership.
fn of_group_error(error: GroupError) -> i32 {
    match error {
        GroupError::NotMulticast => libc::EINVAL,
        GroupError::NoInterface => libc::ENODEV,
        GroupError::AlreadyMember => libc::EADDRINUSE,
        GroupError::NotMember => libc::EADDRNOTAVAIL,
        GroupError::TooManyGroups => libc::ENOBUFS,
        GroupError::NoSocket => libc::EBADF,
    }
}

const SO_RCVBUF: u16 = number(libc::SOL_SOCKET, libc::SO_RCVBUF);
const SO_SNDBUF: u16 = number(libc::SOL_SOCKET, libc::SO_SNDBUF);
const SO_BROADCAST: u16 = number(libc::SOL_SOCKET, libc::SO_BROADCAST);
const SO_REUSEADDR: u16 = number(libc::SOL_SOCKET, libc::SO_REUSEADDR);
const SO_TIMESTAMP: u16 = number(libc::SOL_SOCKET, libc::SO_TIMESTAMP);
const SO_TIMESTAMPNS: u16 = number(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS);
const IP_TOS: u16 = number(libc::IPPROTO_IP, libc::IP_TOS);
const IP_TTL: u16 = number(libc::IPPROTO_IP, libc::IP_TTL);
const IP_MTU_DISCOVER: u16 = number(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
const IP_RECVERR: u16 = number(libc::IPPROTO_IP, libc::IP_RECVERR);
const IP_MULTICAST_TTL: u16 = number(libc::IPPROTO_IP, libc::IP_MULTICAST_TTL);
const IP_MULTICAST_LOOP: u16 = number(libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP);
/// Number from linux/in.h.
const IP_MULTICAST_ALL: u16 = number(libc::IPPROTO_IP, 49);
const IPV6_TCLASS: u16 = number(libc::IPPROTO_IPV6, libc::IPV6_TCLASS);
const IPV6_UNICAST_HOPS: u16 = number(libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS);
const IPV6_MTU_DISCOVER: u16 = number(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
const IPV6_RECVERR: u16 = number(libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
const IPV6_MULTICAST_HOPS: u16 = number(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS);
const IPV6_MULTICAST_LOOP: u16 = number(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP);

/// The engine's option for a number and value, which the kernel has checked on the placeholder.
fn parse(option: u16, value: i64) -> Result<DatagramOption, i32> {
    let on = value != 0;
    let octet = |lowest: u8| {
        let given = u8::try_from(value).map_err(|_| libc::EINVAL)?;
        if given < lowest { Err(libc::EINVAL) } else { Ok(given) }
    };
    Ok(match option {
        SO_BROADCAST => DatagramOption::Broadcast(on),
        SO_REUSEADDR => DatagramOption::ReuseAddress(on),
        IP_TOS | IPV6_TCLASS => DatagramOption::TypeOfService(octet(0)?),
        IP_TTL | IPV6_UNICAST_HOPS => DatagramOption::HopLimit(octet(1)?),
        IP_MULTICAST_TTL | IPV6_MULTICAST_HOPS => DatagramOption::MulticastHopLimit(octet(0)?),
        IP_MULTICAST_LOOP | IPV6_MULTICAST_LOOP => DatagramOption::MulticastLoop(on),
        IP_MULTICAST_ALL => DatagramOption::MulticastAll(on),
        IP_RECVERR | IPV6_RECVERR => DatagramOption::ReceiveErrors(on),
        IP_MTU_DISCOVER | IPV6_MTU_DISCOVER => DatagramOption::DontFragment(match value {
            0 => PathMtu::Dont,
            1 => PathMtu::Want,
            2 => PathMtu::Do,
            3 => PathMtu::Probe,
            4 => PathMtu::Interface,
            5 => PathMtu::Omit,
            _ => return Err(libc::EINVAL),
        }),
        _ => return Err(libc::ENOPROTOOPT),
    })
}
