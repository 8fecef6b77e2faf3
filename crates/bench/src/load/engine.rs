//! The load generator's sessions over Haypile's engine, straight on a link: one thread that polls, no
//! service between. It costs the same whether the other end is a service of ours (over a wire) or
//! the kernel (over a TAP interface in the server's namespace). Called by `parts`; what drives a
//! shard in the product is `haypile_service`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use haypile_engine::{
    Cidr, Close, Event, Instant, Limits, Offloads, Progress, RxMeta, Shard, ShardConfig, SocketId,
    SocketOptions, Streams, TxMeta,
};
use haypile_link::netlink::Netlink;
use haypile_link::port::{PartialChecksum, Port, RxFrame, TX_HEADROOM, TxFrame, local_mac};
use haypile_link::tap::{Offload, Tap, TapConfig};
use haypile_link::wire::{Wire, WireConfig};
use haypile_shm::FramePool;
use haypile_shm::pool::SUPERFRAME_SIZE;
use haypile_shm::sys;
use serde::{Deserialize, Serialize};

use super::{Carrier, Received};

/// Frames moved at once.
const BURST: usize = 64;
/// Frames in the pool: as many as may be out at once.
const FRAMES: u32 = 512;
const FRAME_SIZE: usize = 2048;
/// Bytes of each direction of a connection that are held: at least the largest window.
const RING: usize = 1 << 20;
const MTU: u16 = 1500;
/// What the last frames may take.
const END_LIMIT: std::time::Duration = std::time::Duration::from_millis(500);
/// What the other end of a wire may take to come.
const JOIN_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// The link of a generator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// A wire to a service.
    Wire {
        /// Where wires meet.
        directory: PathBuf,
        /// Its name.
        name: String,
    },
    /// A TAP interface, made in the namespace we are in, to its kernel.
    Tap {
        /// Its name.
        name: String,
        /// Address of the kernel's end.
        host: IpAddr,
        /// Congestion control that the kernel uses with us.
        congestion: String,
    },
}

/// The bytes of all connections.
#[derive(Default)]
struct Memory {
    slots: Vec<Rings>,
}

#[derive(Default)]
struct Rings {
    received: Vec<u8>,
    /// Position up to which received bytes are taken.
    taken: u64,
    to_send: Vec<u8>,
}

impl Memory {
    /// The rings of a new connection.
    fn reset(&mut self, id: SocketId) {
        let index = id.index() as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, Rings::default);
        }
        let rings = &mut self.slots[index];
        rings.taken = 0;
        if rings.received.is_empty() {
            rings.received = vec![0; RING];
            rings.to_send = vec![0; RING];
        }
    }

    fn rings(&mut self, id: SocketId) -> Option<&mut Rings> {
        self.slots.get_mut(id.index() as usize)
    }
}

/// Copies into a ring from `position` on.
fn put(ring: &mut [u8], position: u64, data: &[u8]) {
    let at = position as usize % ring.len();
    let first = data.len().min(ring.len() - at);
    ring[at..at + first].copy_from_slice(&data[..first]);
    ring[..data.len() - first].copy_from_slice(&data[first..]);
}

/// Copies out of a ring from `position` on.
fn take(ring: &[u8], position: u64, out: &mut [u8]) {
    let at = position as usize % ring.len();
    let first = out.len().min(ring.len() - at);
    out[..first].copy_from_slice(&ring[at..at + first]);
    let rest = out.len() - first;
    out[first..].copy_from_slice(&ring[..rest]);
}

impl Streams for Memory {
    fn write(&mut self, id: SocketId, position: u64, data: &[u8]) -> usize {
        let Some(rings) = self.rings(id).filter(|rings| !rings.received.is_empty()) else {
            return 0;
        };
        let room = (rings.taken + RING as u64).saturating_sub(position) as usize;
        let stored = data.len().min(room);
        put(&mut rings.received, position, &data[..stored]);
        stored
    }

    fn read(&mut self, id: SocketId, position: u64, out: &mut [u8]) {
        match self.rings(id).filter(|rings| !rings.to_send.is_empty()) {
            Some(rings) => take(&rings.to_send, position, out),
            None => out.fill(0),
        }
    }
}

/// One session's connection.
#[derive(Clone, Copy)]
struct Connection {
    id: SocketId,
    progress: Progress,
    /// Position up to which bytes were given to send.
    tail: u64,
    /// Position up to which received bytes are taken.
    taken: u64,
}

/// Sessions over a shard of our own.
pub struct Engine {
    target: SocketAddr,
    port: Box<dyn Port>,
    pool: FramePool,
    shard: Shard,
    memory: Memory,
    received: Vec<RxFrame>,
    to_send: Vec<TxFrame>,
    sessions: Vec<Option<Connection>>,
    /// By index of the socket: its session, while that holds it.
    owners: Vec<Option<(SocketId, usize)>>,
}

impl Engine {
    /// Opens the link, with `local` as our address on it.
    ///
    /// # Errors
    /// What the environment does not allow, in one line.
    pub fn new(
        link: &Link,
        local: IpAddr,
        target: SocketAddr,
        sessions: usize,
    ) -> Result<Engine, String> {
        let mac = local_mac(&format!("bench {local}"));
        let port = open(link, local, mac)?;
        let features = port.features();
        let superframes = features.rx_segmentation_max > 0 || features.tx_segmentation_max > 0;
        let size = if superframes { SUPERFRAME_SIZE } else { FRAME_SIZE };
        let pool = FramePool::new(FRAMES, size)
            .map_err(|errno| format!("no memory for frames: {errno}"))?;
        let config = ShardConfig {
            mac,
            mtu: port.mtu(),
            addresses: vec![Cidr::new(local, 24)],
            routes: Vec::new(),
            limits: Limits::default(),
            // The same in every run, with a clock that goes on from run to run: a connection that meets the TIME-WAIT
            // of an earlier run's comes later in its sequence numbers and time stamps, as a host's own would.
            secret: [0x5a; 32],
            seed: sys::clock_monotonic_ns(),
            offloads: Offloads {
                tx_checksum: features.tx_checksum,
                tx_segmentation: features.tx_segmentation_max,
            },
            steered: None,
        };
        let shard =
            Shard::new(config, now()).map_err(|error| format!("the generator's stack: {error}"))?;
        Ok(Engine {
            target,
            port,
            pool,
            shard,
            memory: Memory::default(),
            received: Vec::with_capacity(BURST),
            to_send: Vec::with_capacity(BURST),
            sessions: vec![None; sessions],
            owners: Vec::new(),
        })
    }

    fn receive_frames(&mut self, now: Instant) -> io::Result<()> {
        self.port.rx_burst(&mut self.pool, &mut self.received, BURST)?;
        for frame in self.received.drain(..) {
            let meta =
                RxMeta { checksum_valid: frame.checksum_valid, segment_size: frame.segment_size };
            self.shard.handle_frame(now, frame.bytes(&self.pool), meta, &mut self.memory);
            self.pool.free(frame.frame);
        }
        Ok(())
    }

    fn handle_events(&mut self, events: &mut Vec<usize>) {
        while let Some(event) = self.shard.poll_event() {
            let Event::Progress { id, progress } = event else { continue };
            let owner = self.owners.get(id.index() as usize).copied().flatten();
            let Some((_, session)) = owner.filter(|(owned, _)| *owned == id) else { continue };
            // The session may have begun its next connection already.
            let open = self.sessions.get_mut(session).and_then(Option::as_mut);
            if let Some(connection) = open.filter(|open| open.id == id) {
                connection.progress = progress;
                events.push(session);
            }
        }
    }

    fn send_frames(&mut self, now: Instant) -> io::Result<()> {
        while self.to_send.len() < BURST {
            let Some(mut frame) = self.pool.alloc() else { break };
            let room = &mut self.pool.bytes_mut(&mut frame)[TX_HEADROOM..];
            let Some(meta) = self.shard.poll_transmit(now, room, &mut self.memory) else {
                self.pool.free(frame);
                break;
            };
            let TxMeta { len, checksum, segment_size, .. } = meta;
            let checksum = checksum
                .map(|checksum| PartialChecksum { start: checksum.start, offset: checksum.offset });
            self.to_send.push(TxFrame {
                checksum,
                segment_size,
                ..TxFrame::new(frame, len as u32)
            });
        }
        if !self.to_send.is_empty() {
            self.port.tx_burst(&mut self.pool, &mut self.to_send)?;
        }
        Ok(())
    }

    fn connection(&mut self, session: usize) -> io::Result<&mut Connection> {
        let connection = self.sessions[session].as_mut().ok_or(io::ErrorKind::NotConnected)?;
        match connection.progress.error {
            Some(error) => Err(io::Error::other(format!("{error:?}"))),
            None => Ok(connection),
        }
    }
}

/// Microseconds of the monotonic clock, which goes on from process to process.
fn now() -> Instant {
    Instant::from_us(sys::clock_monotonic_us())
}

fn open(link: &Link, local: IpAddr, mac: [u8; 6]) -> Result<Box<dyn Port>, String> {
    match link {
        Link::Wire { directory, name } => {
            let config = WireConfig { mtu: MTU, mac, superframes: true };
            let wire = Wire::open(directory, name, &config).map_err(|error| error.to_string())?;
            Ok(Box::new(joined(wire, name)?))
        }
        Link::Tap { name, host, congestion } => {
            let mut config = TapConfig::new(MTU, mac);
            config.name = Some(name.clone());
            config.host_addresses = vec![(*host, 24)];
            config.offload = Offload::Segmentation;
            let tap = Tap::open(&config).map_err(|error| error.to_string())?;
            let mut netlink = Netlink::open().map_err(|error| error.to_string())?;
            netlink
                .add_host_route_with_congestion_control(local, tap.index(), congestion)
                .map_err(|error| error.to_string())?;
            Ok(Box::new(tap))
        }
    }
}

/// Waits until the other end is there: what is sent before is lost, and sent again only after a second.
fn joined(mut wire: Wire, name: &str) -> Result<Wire, String> {
    let mut pool = FramePool::new(1, SUPERFRAME_SIZE).map_err(|errno| errno.to_string())?;
    let mut early: Vec<RxFrame> = Vec::new();
    let started = std::time::Instant::now();
    while !wire.is_joined() {
        if started.elapsed() > JOIN_LIMIT {
            return Err(format!("nobody is at the other end of the wire {name}"));
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        wire.rx_burst(&mut pool, &mut early, 1).map_err(|error| error.to_string())?;
        // Nobody speaks to us yet but by mistake.
        early.drain(..).for_each(|frame| pool.free(frame.frame));
    }
    Ok(wire)
}

impl Carrier for Engine {
    fn now_ns(&mut self) -> u64 {
        sys::clock_monotonic_ns()
    }

    fn open(&mut self, session: usize) -> io::Result<()> {
        let options = SocketOptions { no_delay: true, ..SocketOptions::default() };
        let connected = self.shard.connect(now(), None, self.target, options);
        let id = connected.map_err(|error| io::Error::other(format!("connect: {error:?}")))?;
        self.memory.reset(id);
        let index = id.index() as usize;
        if self.owners.len() <= index {
            self.owners.resize(index + 1, None);
        }
        self.owners[index] = Some((id, session));
        self.sessions[session] =
            Some(Connection { id, progress: Progress::default(), tail: 0, taken: 0 });
        Ok(())
    }

    fn send(&mut self, session: usize, bytes: &[u8]) -> io::Result<usize> {
        let connection = self.connection(session)?;
        if !connection.progress.connected {
            return Ok(0);
        }
        let waiting = (connection.tail - connection.progress.tx_acked) as usize;
        let sent = bytes.len().min(RING - waiting);
        let (id, position) = (connection.id, connection.tail);
        connection.tail += sent as u64;
        let tail = connection.tail;
        if let Some(rings) = self.memory.rings(id) {
            put(&mut rings.to_send, position, &bytes[..sent]);
        }
        if sent > 0 {
            self.shard.send_ready(now(), id, tail);
        }
        Ok(sent)
    }

    fn receive(&mut self, session: usize, out: &mut [u8]) -> io::Result<Received> {
        let connection = self.connection(session)?;
        let Progress { rx_end, rx_fin, .. } = connection.progress;
        let bytes = out.len().min((rx_end - connection.taken) as usize);
        if bytes == 0 {
            return Ok(if rx_fin { Received::End } else { Received::Nothing });
        }
        let (id, position) = (connection.id, connection.taken);
        connection.taken += bytes as u64;
        let taken = connection.taken;
        if let Some(rings) = self.memory.rings(id) {
            rings.taken = taken;
            self::take(&rings.received, position, &mut out[..bytes]);
        }
        self.shard.receive_consumed(now(), id, taken);
        Ok(Received::Bytes(bytes))
    }

    fn close(&mut self, session: usize) {
        if let Some(connection) = self.sessions[session].take() {
            // The shard may still send what waits; its memory stays until the index is used again.
            self.shard.close(now(), connection.id, Close::Graceful);
        }
    }

    /// Resets what is open and sends that: a connection left over at the server would keep the first of a later run
    /// that has the same port waiting for a second.
    fn end(&mut self) {
        for connection in std::mem::take(&mut self.sessions).into_iter().flatten() {
            self.shard.close(now(), connection.id, Close::Abort);
        }
        let started = std::time::Instant::now();
        while started.elapsed() < END_LIMIT && !(self.shard.is_quiet() && self.to_send.is_empty()) {
            // A link that is gone takes everything along.
            if self.wait(0, &mut Vec::new()).is_err() {
                return;
            }
        }
    }

    /// One turn: it never sleeps, and returns early.
    fn wait(&mut self, _until_ns: u64, events: &mut Vec<usize>) -> io::Result<()> {
        let now = now();
        self.receive_frames(now)?;
        if self.shard.poll_timeout().is_some_and(|at| at <= now) {
            self.shard.handle_timers(now, &mut self.memory);
        }
        self.handle_events(events);
        self.send_frames(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_wrap() {
        let mut ring = vec![0; 8];
        put(&mut ring, 6, &[1, 2, 3, 4]);
        let mut out = [0; 4];
        take(&ring, 6, &mut out);
        assert_eq!((out, &ring[..2]), ([1, 2, 3, 4], &[3, 4][..]));
        take(&ring, 14, &mut out);
        assert_eq!(out, [1, 2, 3, 4]);
    }
}
