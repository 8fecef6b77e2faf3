//! Two hosts on a wire in virtual time, and hand-made frames for one of them.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use crate::shard::headers::{IpHeader, TYPE_ARP, emit_ethernet, ethernet_type};
use crate::*;

pub const MTU: u16 = 1500;

/// Streams in vectors.
#[derive(Default)]
pub struct Memory {
    pub received: BTreeMap<SocketId, Vec<u8>>,
    pub sent: BTreeMap<SocketId, Vec<u8>>,
    pub datagrams: Vec<(SocketId, Datagram, Vec<u8>)>,
    /// No datagram finds room.
    pub full: bool,
}

impl Streams for Memory {
    fn write(&mut self, id: SocketId, position: u64, data: &[u8]) -> usize {
        let stream = self.received.entry(id).or_default();
        let end = position as usize + data.len();
        if stream.len() < end {
            stream.resize(end, 0);
        }
        stream[position as usize..end].copy_from_slice(data);
        data.len()
    }

    fn read(&mut self, id: SocketId, position: u64, out: &mut [u8]) {
        let at = position as usize;
        out.copy_from_slice(&self.sent[&id][at..at + out.len()]);
    }

    fn write_datagram(&mut self, id: SocketId, datagram: &Datagram, payload: &[u8]) -> bool {
        if !self.full {
            self.datagrams.push((id, *datagram, payload.to_vec()));
        }
        !self.full
    }
}

/// One shard with the memory of its connections.
pub struct Host {
    pub shard: Shard,
    pub memory: Memory,
    pub events: Vec<Event>,
    pub progress: BTreeMap<SocketId, Progress>,
    pub consumed: BTreeMap<SocketId, u64>,
    /// Reads nothing by itself.
    pub lazy: bool,
}

pub fn at(text: &str) -> SocketAddr {
    text.parse().expect("socket address")
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

pub fn config(host: u8) -> ShardConfig {
    let address = |text: String| text.parse().expect("address");
    ShardConfig {
        mac: [2, 0, 0, 0, 0, host],
        mtu: MTU,
        addresses: vec![
            address(format!("198.18.0.{host}/24")),
            address(format!("2001:db8::{host}/64")),
            address(format!("fe80::{host}/64")),
        ],
        routes: Vec::new(),
        limits: Limits::default(),
        secret: [host; 32],
        seed: u64::from(host),
        offloads: Offloads::default(),
        steered: None,
    }
}

pub const START: Instant = Instant::from_us(1_000_000_000);

impl Host {
    pub fn new(config: ShardConfig) -> Host {
        Host {
            shard: Shard::new(config, START).expect("a good configuration"),
            memory: Memory::default(),
            events: Vec::new(),
            progress: BTreeMap::new(),
            consumed: BTreeMap::new(),
            lazy: false,
        }
    }

    /// Gives the shard one frame and fetches everything it wants to send.
    pub fn exchange(&mut self, now: Instant, frame: &[u8]) -> Vec<Vec<u8>> {
        self.shard.handle_frame(now, frame, RxMeta::default(), &mut self.memory);
        self.drain(now)
    }

    /// Fetches everything the shard wants to send, and its events.
    pub fn drain(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for _ in 0..100_000 {
            let mut out = vec![0; usize::from(MTU) + 14];
            match self.shard.poll_transmit(now, &mut out, &mut self.memory) {
                Some(meta) => {
                    out.truncate(meta.len);
                    frames.push(out);
                }
                None if self.shard.poll_timeout().is_some_and(|timeout| timeout <= now) => {
                    self.shard.handle_timers(now, &mut self.memory);
                }
                None => {
                    if !self.handle_events(now) {
                        self.check_counters();
                        return frames;
                    }
                }
            }
        }
        panic!("the shard never stops sending");
    }

    fn handle_events(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(event) = self.shard.poll_event() {
            any = true;
            self.events.push(event.clone());
            if let Event::Progress { id, progress } = event {
                let _ = self.progress.insert(id, progress);
                if !self.lazy && self.consumed.get(&id) != Some(&progress.rx_end) {
                    let _ = self.consumed.insert(id, progress.rx_end);
                    self.shard.receive_consumed(now, id, progress.rx_end);
                }
            }
        }
        any
    }

    /// Every frame is counted once.
    pub fn check_counters(&self) {
        let counters = self.shard.counters();
        let arrived =
            counters.get(Counter::FramesReceived) + counters.get(Counter::LoopbackPackets);
        let accounted = counters.get(Counter::FramesAccepted) + counters.dropped_total();
        assert_eq!(arrived, accounted, "{:?}", counters.drops().filter(|d| d.1 > 0).count());
    }

    pub fn send(&mut self, now: Instant, id: SocketId, data: &[u8]) {
        let stream = self.memory.sent.entry(id).or_default();
        stream.extend_from_slice(data);
        let tail = stream.len() as u64;
        self.shard.send_ready(now, id, tail);
    }

    /// Opens a UDP socket with default options.
    pub fn open(&mut self, local: &str) -> SocketId {
        self.shard.open_datagram(at(local), DatagramOptions::default()).expect("a free port")
    }

    /// Sends a datagram.
    pub fn send_to(
        &mut self,
        now: Instant,
        id: SocketId,
        to: &str,
        payload: &[u8],
    ) -> Result<(), SendError> {
        let to = SendTo { remote: Some(at(to)), ..SendTo::default() };
        self.shard.send_datagram(now, id, &to, payload)
    }

    /// What a UDP socket has received since it was last asked.
    pub fn take_datagrams(&mut self, id: SocketId) -> Vec<(Datagram, Vec<u8>)> {
        let all = std::mem::take(&mut self.memory.datagrams);
        let (own, others) = all.into_iter().partition(|(owner, ..)| *owner == id);
        self.memory.datagrams = others;
        let own: Vec<(SocketId, Datagram, Vec<u8>)> = own;
        own.into_iter().map(|(_, datagram, payload)| (datagram, payload)).collect()
    }

    /// The ICMP errors that UDP sockets were told.
    pub fn datagram_errors(&self) -> Vec<(SocketId, SocketError, u8, u8, u32)> {
        let error_of = |event: &Event| match event {
            Event::DatagramError { id, error, report } => {
                Some((*id, *error, report.icmp_type, report.icmp_code, report.mtu))
            }
            _ => None,
        };
        self.events.iter().filter_map(error_of).collect()
    }

    /// What these errors quoted of the datagrams.
    pub fn quoted_payloads(&self) -> Vec<Box<[u8]>> {
        let payload_of = |event: &Event| match event {
            Event::DatagramError { report, .. } => Some(report.payload.clone()),
            _ => None,
        };
        self.events.iter().filter_map(payload_of).collect()
    }

    /// The connections accepted so far.
    pub fn accepted(&self) -> Vec<SocketId> {
        let id_of = |event: &Event| match event {
            Event::Accepted { id, .. } => Some(*id),
            _ => None,
        };
        self.events.iter().filter_map(id_of).collect()
    }

    pub fn released(&self, id: SocketId) -> bool {
        self.events.contains(&Event::Released { id })
    }

    pub fn progress(&self, id: SocketId) -> Progress {
        self.progress.get(&id).copied().unwrap_or_default()
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.shard.counters().get(counter)
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.shard.counters().dropped(reason)
    }
}

/// Decides by receiver and frame.
type Lose = dyn FnMut(usize, &[u8]) -> bool;

/// Two hosts, 1 and 2, on a wire.
pub struct Pair {
    pub now: Instant,
    pub hosts: [Host; 2],
    wire: VecDeque<(usize, Vec<u8>)>,
    /// Frames that the wire loses: gets the receiver and the frame.
    pub lose: Box<Lose>,
    pub frames: u64,
}

/// Time a frame takes.
const LATENCY_US: u64 = 50;

impl Pair {
    pub fn new() -> Pair {
        Pair::with(config(1), config(2))
    }

    pub fn with(first: ShardConfig, second: ShardConfig) -> Pair {
        Pair {
            now: START,
            hosts: [Host::new(first), Host::new(second)],
            wire: VecDeque::new(),
            lose: Box::new(|_, _| false),
            frames: 0,
        }
    }

    /// Runs until nothing happens before `us` microseconds have passed.
    pub fn run(&mut self, us: u64) {
        let end = self.now.plus_us(us);
        for _ in 0..2_000_000 {
            for host in 0..2 {
                for frame in self.hosts[host].drain(self.now) {
                    self.wire.push_back((1 - host, frame));
                }
            }
            if let Some((receiver, frame)) = self.wire.pop_front() {
                self.frames += 1;
                if self.frames.is_multiple_of(16) {
                    self.now = self.now.plus_us(LATENCY_US);
                }
                if !(self.lose)(receiver, &frame) {
                    let host = &mut self.hosts[receiver];
                    host.shard.handle_frame(self.now, &frame, RxMeta::default(), &mut host.memory);
                }
                continue;
            }
            let next = self.hosts.iter().filter_map(|host| host.shard.poll_timeout()).min();
            match next {
                Some(next) if next <= end => {
                    self.now = self.now.max(next);
                    for host in &mut self.hosts {
                        host.shard.handle_timers(self.now, &mut host.memory);
                    }
                }
                _ => {
                    self.now = self.now.max(end);
                    return;
                }
            }
        }
        panic!("the two never come to rest");
    }

    /// A connection from host 1 to a listener of host 2; gives both ends and the listener.
    pub fn connect(&mut self, to: &str) -> (SocketId, SocketId, SocketId) {
        let listener =
            self.hosts[1].shard.listen(at(to), ListenOptions::default()).expect("free port");
        let (client, server) = self.connect_to(to);
        (client, server, listener)
    }

    /// A connection to a listener that is there.
    pub fn connect_to(&mut self, to: &str) -> (SocketId, SocketId) {
        let client = self.hosts[0]
            .shard
            .connect(self.now, None, at(to), SocketOptions::default())
            .expect("connect");
        self.run(1_000);
        let server = *self.hosts[1].accepted().last().expect("accepted");
        self.hosts[1].shard.claimed(server);
        assert!(self.hosts[0].progress(client).connected);
        (client, server)
    }
}

/// An Ethernet frame from host 9 to `to` around an IP packet.
pub fn frame(to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    framed(to, ethernet_type(packet), packet)
}

/// An ARP frame.
pub fn arp_frame(to: [u8; 6], body: &[u8]) -> Vec<u8> {
    framed(to, TYPE_ARP, body)
}

fn framed(to: [u8; 6], kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14 + body.len()];
    emit_ethernet([2, 0, 0, 0, 0, 9], to, kind, &mut frame);
    frame[14..].copy_from_slice(body);
    frame
}

/// An IP packet around a transport payload.
pub fn packet(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = IpHeader::of_reply(ip(source), ip(destination), protocol);
    let mut packet = vec![0; header.len() + payload.len()];
    packet[header.len()..].copy_from_slice(payload);
    header.emit(&mut packet);
    packet
}
