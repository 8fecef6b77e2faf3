//! The harness: two hosts with one connection each, joined by a wire.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::tcp::*;
use crate::{Close, Instant, SocketId, SocketOptions, Streams};

pub(in crate::tcp) const MSS: u16 = 1460;
/// One way, in microseconds.
pub(in crate::tcp) const DELAY_US: u64 = 5_000;

/// One of the two hosts.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(in crate::tcp) enum Side {
    A,
    B,
}

impl Side {
    pub(in crate::tcp) fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// What the wire does with a segment.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(in crate::tcp) enum Fate {
    Deliver,
    Drop,
    /// Deliver twice, the second that many microseconds later.
    Duplicate(u64),
    /// Deliver that many microseconds late.
    Late(u64),
}

/// A segment as seen on the wire.
#[derive(Clone, Debug)]
pub(in crate::tcp) struct Seen {
    pub at: Instant,
    pub from: Side,
    pub seq: SeqNumber,
    pub flags: Flags,
    pub window: u16,
    pub options: Options,
    pub len: usize,
}

impl Seen {
    pub(in crate::tcp) fn has(&self, flags: Flags) -> bool {
        self.flags.contains(flags)
    }
}

/// The streams of one host's connection.
#[derive(Default)]
pub(in crate::tcp) struct Memory {
    pub sent: Vec<u8>,
    pub received: Vec<u8>,
    /// Bytes of the receive stream there is memory for.
    pub limit: usize,
}

impl Streams for Memory {
    fn write(&mut self, _id: SocketId, position: u64, data: &[u8]) -> usize {
        let at = position as usize;
        let len = data.len().min(self.limit.saturating_sub(at));
        if self.received.len() < at + len {
            self.received.resize(at + len, 0);
        }
        self.received[at..at + len].copy_from_slice(&data[..len]);
        len
    }

    fn read(&mut self, _id: SocketId, position: u64, out: &mut [u8]) {
        let at = position as usize;
        out.copy_from_slice(&self.sent[at..at + out.len()]);
    }
}

/// A host: at most one connection, its streams and a TIME-WAIT record.
pub(in crate::tcp) struct Host {
    pub connection: Option<Connection>,
    pub memory: Memory,
    pub counters: TcpCounters,
    pub options: SocketOptions,
    pub limits: TcpLimits,
    pub iss: SeqNumber,
    pub mss: u16,
    pub listens: bool,
    /// The application reads whatever arrives.
    pub reads: bool,
    pub time_wait: Option<TimeWait>,
    pub dispositions: Vec<Disposition>,
    pub timer_outcomes: Vec<TimerOutcome>,
    pub address: SocketAddr,
}

impl Host {
    fn new(address: &str, iss: u32) -> Host {
        Host {
            connection: None,
            memory: Memory { limit: usize::MAX, ..Memory::default() },
            counters: TcpCounters::default(),
            options: SocketOptions::default(),
            limits: TcpLimits::default(),
            iss: SeqNumber::new(iss),
            mss: MSS,
            listens: false,
            reads: true,
            time_wait: None,
            dispositions: Vec::new(),
            timer_outcomes: Vec::new(),
            address: address.parse().unwrap(),
        }
    }

    pub(in crate::tcp) fn tcp(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("host has a connection")
    }

    pub(in crate::tcp) fn state(&self) -> State {
        self.connection.as_ref().map_or(State::Closed, Connection::state)
    }
}

type Fault = Box<dyn FnMut(Instant, Side, usize, &Segment<'_>) -> Fate>;

/// Two hosts and the wire between them.
pub(in crate::tcp) struct Pair {
    pub now: Instant,
    pub a: Host,
    pub b: Host,
    pub delay_us: u64,
    pub seen: Vec<Seen>,
    fault: Fault,
    counts: [usize; 2],
    wire: BTreeMap<(Instant, u64), (Side, Vec<u8>)>,
    serial: u64,
}

pub(in crate::tcp) fn socket_id() -> SocketId {
    SocketId::new(7, 1)
}

impl Pair {
    /// Two silent hosts.
    pub(in crate::tcp) fn new() -> Pair {
        Pair {
            now: Instant::from_us(1_000_000),
            a: Host::new("198.18.0.1:40000", 1_000),
            b: Host::new("198.18.0.2:80", 900_000),
            delay_us: DELAY_US,
            seen: Vec::new(),
            fault: Box::new(|_, _, _, _| Fate::Deliver),
            counts: [0; 2],
            wire: BTreeMap::new(),
            serial: 0,
        }
    }

    /// Two hosts after a handshake.
    pub(in crate::tcp) fn established() -> Pair {
        let mut pair = Pair::new();
        pair.connect();
        pair
    }

    pub(in crate::tcp) fn host(&mut self, side: Side) -> &mut Host {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    pub(in crate::tcp) fn setup<'a>(host: &'a Host, remote: SocketAddr) -> Setup<'a> {
        Setup {
            local: host.address,
            remote,
            iss: host.iss,
            timestamp_offset: host.iss.value().rotate_left(7),
            mss: host.mss,
            options: host.options,
            limits: &host.limits,
        }
    }

    /// Starts an active open at `side`.
    pub(in crate::tcp) fn open(&mut self, side: Side) {
        let remote = self.host(side.other()).address;
        let now = self.now;
        let host = self.host(side);
        host.connection = Some(Connection::open_active(now, Pair::setup(host, remote)));
    }

    /// A connects to B and both sides establish.
    pub(in crate::tcp) fn connect(&mut self) {
        self.b.listens = true;
        self.open(Side::A);
        self.run_for(4 * self.delay_us);
        assert_eq!((self.a.state(), self.b.state()), (State::Established, State::Established));
        self.seen.clear();
        self.counts = [0; 2];
    }

    /// What happens to segments from now on; the number counts the segments of a side from zero.
    pub(in crate::tcp) fn set_fault(
        &mut self,
        fault: impl FnMut(Instant, Side, usize, &Segment<'_>) -> Fate + 'static,
    ) {
        self.counts = [0; 2];
        self.fault = Box::new(fault);
    }

    /// The application of `side` writes `len` bytes of its pattern.
    pub(in crate::tcp) fn write(&mut self, side: Side, len: usize) {
        let now = self.now;
        let host = self.host(side);
        let start = host.memory.sent.len();
        let salt = host.address.port() as usize;
        host.memory.sent.extend((start..start + len).map(|at| ((at * 31 + salt) % 251) as u8));
        let tail = host.memory.sent.len() as u64;
        host.tcp().send_ready(now, tail);
    }

    pub(in crate::tcp) fn shutdown_send(&mut self, side: Side) {
        let now = self.now;
        self.host(side).tcp().shutdown_send(now);
    }

    pub(in crate::tcp) fn close(&mut self, side: Side, how: Close) {
        let now = self.now;
        if let Some(reset) = self.host(side).tcp().close(now, how) {
            self.put_on_wire(side, &reset);
        }
    }

    /// The application of `side` reads all there is.
    pub(in crate::tcp) fn read(&mut self, side: Side) {
        let now = self.now;
        let end = self.host(side).tcp().progress().rx_end;
        self.host(side).tcp().receive_consumed(now, end);
    }

    /// Puts a segment on the wire as if `from` had sent it.
    pub(in crate::tcp) fn put_on_wire(&mut self, from: Side, outgoing: &Outgoing) {
        let mut bytes = vec![0; 65_536];
        let ports = (self.host(from).address.port(), self.host(from.other()).address.port());
        let memory = &mut self.host(from).memory;
        let len = outgoing.emit(ports.0, ports.1, &mut bytes, |payload| {
            memory.read(socket_id(), outgoing.payload_position, payload);
        });
        bytes.truncate(len);
        self.put_bytes(from, bytes);
    }

    /// Puts raw bytes on the wire.
    pub(in crate::tcp) fn put_bytes(&mut self, from: Side, bytes: Vec<u8>) {
        let segment = Segment::parse(&bytes).expect("own segments parse");
        self.seen.push(Seen {
            at: self.now,
            from,
            seq: segment.seq,

            flags: segment.flags,
            window: segment.window,
            options: segment.options,
            len: segment.payload.len(),
        });
        let index = self.counts[from as usize];
        self.counts[from as usize] += 1;
        let fate = (self.fault)(self.now, from, index, &segment);
        let arrival = self.now.plus_us(self.delay_us);
        match fate {
            Fate::Deliver => self.schedule(arrival, from.other(), bytes),
            Fate::Drop => {}
            Fate::Duplicate(later_us) => {
                self.schedule(arrival, from.other(), bytes.clone());
                self.schedule(arrival.plus_us(later_us), from.other(), bytes);
            }
            Fate::Late(later_us) => self.schedule(arrival.plus_us(later_us), from.other(), bytes),
        }
    }

    fn schedule(&mut self, at: Instant, to: Side, bytes: Vec<u8>) {
        self.serial += 1;
        self.wire.insert((at, self.serial), (to, bytes));
    }

    /// Sends all that both sides have to send.
    pub(in crate::tcp) fn flush(&mut self) {
        for side in [Side::A, Side::B] {
            for sent in 0.. {
                assert!(sent < 10_000, "a connection sends without end");
                let now = self.now;
                let host = self.host(side);
                let Some(connection) = &mut host.connection else { break };
                // As a shard does: who wants nothing is not asked, so no timer may depend on it.
                if !connection.wants_transmit(now) {
                    break;
                }
                let outgoing = connection.poll_segment(now, &mut host.counters);
                let outgoing = outgoing.expect("wants_transmit tells the truth");
                self.put_on_wire(side, &outgoing);
            }
        }
    }

    /// When something happens next.
    fn next_event(&self) -> Option<Instant> {
        let wire = self.wire.keys().next().map(|key| key.0);
        let timer = |host: &Host| host.connection.as_ref().and_then(Connection::next_timeout);
        [wire, timer(&self.a), timer(&self.b)].into_iter().flatten().min()
    }

    /// Lets everything happen until `until`.
    pub(in crate::tcp) fn run_until(&mut self, until: Instant) {
        self.flush();
        for steps in 0.. {
            assert!(steps < 1_000_000, "the pair never rests");
            let Some(next) = self.next_event().filter(|&at| at <= until) else { break };
            self.now = self.now.max(next);
            self.deliver_due();
            self.run_timers();
            self.flush();
        }
        self.now = until;
    }

    pub(in crate::tcp) fn run_for(&mut self, us: u64) {
        self.run_until(self.now.plus_us(us));
    }

    fn deliver_due(&mut self) {
        while let Some((&key, _)) = self.wire.first_key_value()
            && key.0 <= self.now
        {
            let (to, bytes) = self.wire.remove(&key).unwrap();
            self.deliver(to, &bytes);
        }
    }

    /// What a shard does with a segment.
    pub(in crate::tcp) fn deliver(&mut self, to: Side, bytes: &[u8]) {
        let segment = Segment::parse(bytes).expect("segments on the wire parse");
        let now = self.now;
        if self.host(to).time_wait.is_some() {
            return self.deliver_to_time_wait(to, &segment);
        }
        let remote = self.host(to.other()).address;
        let host = self.host(to);
        if host.connection.is_none() && host.listens && segment.flags == Flags::SYN {
            let connection = Connection::open_passive(now, Pair::setup(host, remote), &segment);
            host.connection = Some(connection);
            return;
        }
        let Some(connection) = host.connection.as_mut().filter(|tcp| !tcp.is_over()) else {
            return self.answer_unknown(to, &segment);
        };
        let disposition = connection.handle_segment(
            now,
            socket_id(),
            &segment,
            &mut host.memory,
            &mut host.counters,
        );
        if host.reads && !connection.is_over() {
            let end = connection.progress().rx_end;
            connection.receive_consumed(now, end);
        }
        if disposition != Disposition::Continue {
            host.dispositions.push(disposition);
        }
        if matches!(disposition, Disposition::EnterTimeWait(_)) {
            host.time_wait = Some(connection.time_wait_record());
        }
        match disposition {
            Disposition::Reply(reply)
            | Disposition::Aborted(reply)
            | Disposition::EnterTimeWait(Some(reply)) => self.put_on_wire(to, &reply),
            _ => {}
        }
    }

    fn deliver_to_time_wait(&mut self, to: Side, segment: &Segment<'_>) {
        let now = self.now;
        let record = self.host(to).time_wait.as_mut().unwrap();
        match record.handle_segment(now, segment) {
            TimeWaitAnswer::Ignore => {}
            TimeWaitAnswer::Acknowledge { reply, .. } => self.put_on_wire(to, &reply),
            TimeWaitAnswer::Reuse { snd_nxt } => {
                let host = self.host(to);
                host.time_wait = None;
                host.connection = None;
                host.iss = snd_nxt + 64_000;
                let remote = self.host(to.other()).address;
                let host = self.host(to);
                let setup = Pair::setup(host, remote);
                host.connection = Some(Connection::open_passive(now, setup, segment));
            }
        }
    }

    /// RFC 9293 section 3.10.7.1.
    fn answer_unknown(&mut self, to: Side, segment: &Segment<'_>) {
        if segment.flags.contains(Flags::RST) {
            return;
        }
        let reset = match segment.flags.contains(Flags::ACK) {
            true => Outgoing { seq: segment.ack, flags: Flags::RST, ..Outgoing::default() },
            false => Outgoing {
                ack: segment.seq + segment.sequence_len(),
                flags: Flags::RST | Flags::ACK,
                ..Outgoing::default()
            },
        };
        self.put_on_wire(to, &reset);
    }

    fn run_timers(&mut self) {
        for side in [Side::A, Side::B] {
            let now = self.now;
            let host = self.host(side);
            let Some(connection) = &mut host.connection else { continue };
            if connection.next_timeout().is_none_or(|at| at > now) {
                continue;
            }
            let outcome = connection.handle_timers(now, &mut host.counters);
            if let TimerOutcome::Closed(reset) = outcome {
                host.timer_outcomes.push(outcome);
                if let Some(reset) = reset {
                    self.put_on_wire(side, &reset);
                }
            }
        }
    }

    /// Segments that `side` put on the wire.
    pub(in crate::tcp) fn from(&self, side: Side) -> Vec<&Seen> {
        self.seen.iter().filter(|seen| seen.from == side).collect()
    }

    /// Segments with data, FIN or SYN that `side` put on the wire.
    pub(in crate::tcp) fn occupying(&self, side: Side) -> Vec<&Seen> {
        let takes_room =
            |seen: &&Seen| seen.len > 0 || seen.has(Flags::FIN) || seen.has(Flags::SYN);
        self.seen.iter().filter(|seen| seen.from == side).filter(takes_room).collect()
    }

    /// Everything `from` wrote has arrived, once and in order.
    pub(in crate::tcp) fn assert_delivered(&mut self, from: Side) {
        let sent = std::mem::take(&mut self.host(from).memory.sent);
        let to = self.host(from.other());
        assert_eq!(to.tcp().progress().rx_end, sent.len() as u64);
        assert!(to.memory.received[..sent.len()] == sent[..], "bytes differ");
        self.host(from).memory.sent = sent;
        let tail = self.host(from).memory.sent.len() as u64;
        assert_eq!(self.host(from).tcp().progress().tx_acked, tail);
    }

    /// Runs a while and then checks as [`Pair::assert_delivered`].
    pub(in crate::tcp) fn assert_eventually(&mut self, from: Side) {
        self.run_for(1_000_000);
        self.assert_delivered(from);
    }
}
