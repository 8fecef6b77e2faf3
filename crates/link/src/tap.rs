//! Owns the TAP port: an Ethernet interface of the kernel whose other end is this process. Called by
//! the service, and by tests and benches inside namespaces of their own. Frames carry the virtio-net
//! header (`virtio.rs`), by which the kernel leaves checksums and the cutting of TCP segments to us
//! and takes both from us; the interface is set up by `tap/setup.rs`. It is gone when the last
//! descriptor is closed, also by a kill. Read Documentation/networking/tuntap.rst of the kernel.

mod queues;
mod setup;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use haypile_shm::pool::FramePool;

pub use self::queues::TapQueues;

use crate::error::LinkError;
use crate::port::{
    ETHERNET_HEADER_LEN, Features, Port, PortCounters, RxFrame, SUPERFRAME_PACKET_MAX, TX_HEADROOM,
    TxFrame, VLAN_TAG_LEN,
};
use crate::steering::{Rule, Steering, SteeringMap};
use crate::virtio::{self, Batch};

/// Where a received frame starts in its chunk: as for sent frames, so that the IP header is aligned.
const RX_FRAME_OFFSET: usize = TX_HEADROOM;
const RX_HEADER_OFFSET: usize = RX_FRAME_OFFSET - virtio::HEADER_LEN;
/// A call that a signal cut short is made again at most this often.
const INTERRUPTED_MAX: u32 = 8;

const _: () = assert!(TX_HEADROOM >= virtio::HEADER_LEN);

/// How to make a TAP.
#[derive(Clone, Debug)]
pub struct TapConfig {
    /// Name of the interface, at most 15 bytes, not taken yet; `None` = the first free of haypile0,
    /// haypile1, ...
    pub name: Option<String>,
    /// Largest IP packet, in bytes: 68..=65521 (1280 at least for IPv6).
    pub mtu: u16,
    /// Ethernet address of our end (the host's end keeps the one the kernel chose).
    pub mac: [u8; 6],
    /// Addresses of the host's end with their prefix lengths.
    pub host_addresses: Vec<(IpAddr, u8)>,
    /// How many frames may wait for us before the kernel drops, 1 at least.
    pub queue_len: u32,
    /// What the two ends leave to each other.
    pub offload: Offload,
    /// Allows [`Tap::another_queue`].
    pub multi_queue: bool,
    /// How [`Tap::open_queues`] spreads flows: the owners of its buckets are queues. `None` = evenly,
    /// by a key of its own.
    pub steering: Option<Steering>,
}

impl TapConfig {
    /// A TAP with the first free name, without host addresses, checksum offload or further queues.
    /// Its queue holds a frame of each of many thousand connections, because they do speak at once
    /// and each frame that the kernel drops costs its sender a time-out.
    pub fn new(mtu: u16, mac: [u8; 6]) -> TapConfig {
        TapConfig {
            name: None,
            mtu,
            mac,
            host_addresses: Vec::new(),
            queue_len: 16_384,
            offload: Offload::None,
            multi_queue: false,
            steering: None,
        }
    }
}

/// What the two ends of a TAP leave to each other, both ways.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Offload {
    /// Nothing: every frame is as on a wire.
    #[default]
    None,
    /// Transport checksums may be unfinished.
    Checksum,
    /// Checksums, and TCP segments come and go in superframes of up to 65535 bytes. The pool's
    /// chunks must hold [`crate::port::SUPERFRAME_PACKET_MAX`].
    Segmentation,
}

/// All that is known of a queue beside its descriptor: plain data, from which another process that
/// has the descriptor makes the same port again ([`Tap::from_queue`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TapFacts {
    /// Name of the interface.
    pub name: String,
    /// The kernel's number of the interface, in the namespace it was made in.
    pub index: u32,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Ethernet address of our end.
    pub mac: [u8; 6],
    /// What was negotiated.
    pub offload: Offload,
    /// Further queues can be opened.
    pub multi_queue: bool,
    /// Queues that were opened at the start.
    pub queues: u16,
    /// By what rule the kernel chooses a frame's queue; `None` = it takes the queue that last sent a
    /// frame of the flow.
    pub steering: Option<Steering>,
    /// The kernel could hand out batches of UDP datagrams too. It is not asked to: it cuts them
    /// itself for what a further copy here would cost.
    pub udp_batches_known: bool,
}

/// One queue of a TAP interface.
#[derive(Debug)]
pub struct Tap {
    device: File,
    facts: TapFacts,
    counters: PortCounters,
    /// What the kernel's program reads; with the queue that was opened first.
    steering_map: Option<SteeringMap>,
}

/// What is known of a frame that is handed on.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Judged {
    len: u32,
    checksum_valid: bool,
    segment_size: u16,
}

/// What became of one frame to be sent.
enum Sent {
    Done,
    Blocked,
    Gone(io::Error),
}

impl Tap {
    /// Makes the interface in the calling thread's network namespace, sets it up and gives it its
    /// host addresses, which can be bound and receive when this returns.
    ///
    /// # Errors
    /// When the device cannot be opened, the name is taken, or the kernel refuses a setting; nothing
    /// is left behind then.
    pub fn open(config: &TapConfig) -> Result<Tap, LinkError> {
        let (device, facts) = setup::open(config)?;
        Ok(Tap { device, facts, counters: PortCounters::default(), steering_map: None })
    }

    /// As [`Tap::open`], with `count` queues, 1..=[`crate::steering::QUEUES_MAX`], over which the kernel spreads flows
    /// by [`Steering`]; where it takes no program (loading one needs privileges that root of a user
    /// namespace has not), by the queue that last sent a frame of the flow.
    ///
    /// # Errors
    /// EINVAL for an impossible count; else as [`Tap::open`].
    pub fn open_queues(config: &TapConfig, count: u16) -> Result<Vec<Tap>, LinkError> {
        let (opened, map) = setup::open_queues(config, count)?;
        let port = |(device, facts)| Tap {
            device,
            facts,
            counters: PortCounters::default(),
            steering_map: None,
        };
        let mut queues: Vec<Tap> = opened.into_iter().map(port).collect();
        if let Some(first) = queues.first_mut() {
            first.steering_map = map;
        }
        Ok(queues)
    }

    /// Opens a further queue of the same interface. A flow's frames come on the queue that last
    /// sent a frame of that flow.
    ///
    /// # Errors
    /// EINVAL when the TAP was made without `multi_queue`; else as [`Tap::open`]. Must be called in
    /// the namespace the TAP was made in.
    pub fn another_queue(&self) -> Result<Tap, LinkError> {
        let device = setup::open_further_queue(&self.facts)?;
        Ok(Tap {
            device,
            facts: self.facts.clone(),
            counters: PortCounters::default(),
            steering_map: None,
        })
    }

    /// Opens a further queue of the interface that the facts name, for whoever keeps its queues. Must be
    /// called in the namespace that the TAP was made in.
    ///
    /// # Errors
    /// As [`Tap::another_queue`].
    pub fn open_queue_of(facts: &TapFacts) -> Result<OwnedFd, LinkError> {
        setup::open_further_queue(facts).map(OwnedFd::from)
    }

    /// Takes a queue from its interface, whoever else has a descriptor of it. What was in it is dropped, and the
    /// last queue of the interface gets its number.
    ///
    /// # Errors
    /// When the descriptor is no queue of an interface that may have several.
    pub fn detach_queue(queue: BorrowedFd<'_>) -> io::Result<()> {
        crate::sys::tun_detach_queue(queue)
    }

    /// Has the kernel spread the frames of an interface over its queues by `steering`, whose owners are
    /// queues, through any queue of it. To be done before there is a second one, so that no frame is
    /// spread otherwise meanwhile.
    ///
    /// # Errors
    /// When the kernel takes no program.
    pub fn steer_by(queue: BorrowedFd<'_>, steering: &Steering) -> io::Result<SteeringMap> {
        setup::steer(queue, steering)
    }

    /// Makes a port of a queue that another process, or this one, has opened; its counters start
    /// at 0. The descriptor stays non-blocking for all who hold it.
    ///
    /// # Errors
    /// When the descriptor is no queue of the interface that the facts name, or its frames have no
    /// virtio-net header of ours.
    pub fn from_queue(queue: OwnedFd, facts: TapFacts) -> Result<Tap, LinkError> {
        setup::check_queue(&queue, &facts)?;
        Ok(Tap {
            device: queue.into(),
            facts,
            counters: PortCounters::default(),
            steering_map: None,
        })
    }

    /// The map by which the kernel chooses queues, to change it while frames come. Only of the first
    /// queue of [`Tap::open_queues`], and where the kernel takes a program.
    pub fn take_steering_map(&mut self) -> Option<SteeringMap> {
        self.steering_map.take()
    }

    /// The queue's descriptor, to be kept or handed on. The queue lives as long as any copy of it.
    ///
    /// # Errors
    /// When the process may open no more descriptors.
    pub fn queue(&self) -> io::Result<OwnedFd> {
        self.device.as_fd().try_clone_to_owned()
    }

    /// What [`Tap::from_queue`] wants to know.
    pub fn facts(&self) -> &TapFacts {
        &self.facts
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// The kernel's number of the interface, in the namespace it was made in.
    pub fn index(&self) -> u32 {
        self.facts.index
    }

    /// The largest IP packet that may come or go in one frame.
    fn packet_max(&self) -> usize {
        match self.facts.offload {
            Offload::Segmentation => SUPERFRAME_PACKET_MAX as usize,
            _ => usize::from(self.facts.mtu),
        }
    }

    /// Length of a chunk that holds every frame of this MTU, and shows when one is longer.
    fn chunk_len_min(&self) -> usize {
        RX_FRAME_OFFSET + ETHERNET_HEADER_LEN + VLAN_TAG_LEN + self.packet_max() + 1
    }

    /// Judges what was read: `received` bytes with the header into a buffer of `capacity`. `None` =
    /// dropped and counted.
    fn judge(&mut self, header: &[u8], received: usize, capacity: usize) -> Option<Judged> {
        // The kernel cuts what does not fit without a word: a full buffer may be a cut frame.
        if received >= capacity {
            self.counters.rx_too_long += 1;
            return None;
        }
        let (Some(len), Some(header)) =
            (received.checked_sub(virtio::HEADER_LEN), virtio::parse(header))
        else {
            self.counters.rx_too_short += 1;
            return None;
        };
        if len < ETHERNET_HEADER_LEN {
            self.counters.rx_too_short += 1;
            return None;
        }
        let segment_size = match header.batch {
            Batch::One => 0,
            Batch::Tcp(size) if self.facts.offload == Offload::Segmentation => size,
            Batch::Tcp(_) | Batch::Udp(_) | Batch::Unknown => {
                self.counters.rx_unsegmented += 1;
                return None;
            }
        };
        self.counters.rx_superframes += u64::from(segment_size != 0);
        self.counters.rx_partial_checksum += u64::from(header.needs_checksum);
        self.counters.rx_frames += 1;
        self.counters.rx_bytes += len as u64;
        let checksum_valid = header.data_valid || header.needs_checksum;
        Some(Judged { len: len as u32, checksum_valid, segment_size })
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for _ in 0..INTERRUPTED_MAX {
            match (&self.device).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&mut self, pool: &mut FramePool, frame: &mut TxFrame) -> Sent {
        let (offset, len) = (usize::from(frame.offset), frame.len as usize);
        if len < ETHERNET_HEADER_LEN {
            self.counters.tx_too_short += 1;
            return Sent::Done;
        }
        let chunk = pool.bytes_mut(&mut frame.frame);
        let is_superframe = frame.segment_size != 0;
        let packet_max =
            if is_superframe { self.packet_max() } else { usize::from(self.facts.mtu) };
        let too_long = len > ETHERNET_HEADER_LEN + packet_max;
        if too_long || offset < virtio::HEADER_LEN || offset + len > chunk.len() {
            self.counters.tx_too_long += 1;
            return Sent::Done;
        }
        let header =
            virtio::header_of(frame.checksum, frame.segment_size, &chunk[offset..offset + len]);
        let Some(header) = header else {
            self.counters.tx_refused += 1;
            return Sent::Done;
        };
        self.counters.tx_superframes += u64::from(is_superframe);
        self.counters.tx_partial_checksum += u64::from(frame.checksum.is_some());
        let bytes = &mut chunk[offset - virtio::HEADER_LEN..offset + len];
        bytes[..virtio::HEADER_LEN].copy_from_slice(&header);
        self.write(bytes, len)
    }

    fn write(&mut self, bytes: &[u8], len: usize) -> Sent {
        for _ in 0..INTERRUPTED_MAX {
            let Err(error) = (&self.device).write(bytes) else {
                self.counters.tx_frames += 1;
                self.counters.tx_bytes += len as u64;
                return Sent::Done;
            };
            match (error.kind(), error.raw_os_error()) {
                (io::ErrorKind::Interrupted, _) => {}
                (io::ErrorKind::WouldBlock, _) => break,
                (_, Some(libc::EIO)) => {
                    self.counters.interface_down += 1;
                    return Sent::Done;
                }
                (_, Some(libc::EBADFD | libc::ENODEV)) => return Sent::Gone(error),
                _ => {
                    self.counters.tx_refused += 1;
                    return Sent::Done;
                }
            }
        }
        self.counters.tx_blocked += 1;
        Sent::Blocked
    }
}

/// Sends frames in their order, each by `send`, until one has to wait; how many are done.
fn send_each(
    pool: &mut FramePool,
    frames: &mut Vec<TxFrame>,
    mut send: impl FnMut(&mut FramePool, &mut TxFrame) -> Sent,
) -> io::Result<usize> {
    let mut done = 0;
    let mut gone = None;
    for frame in frames.iter_mut() {
        match send(pool, frame) {
            Sent::Done => done += 1,
            Sent::Blocked => break,
            Sent::Gone(error) => {
                gone = Some(error);
                break;
            }
        }
    }
    for sent in frames.drain(..done) {
        pool.free(sent.frame);
    }
    gone.map_or(Ok(done), Err)
}

impl Port for Tap {
    fn rx_burst(
        &mut self,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        max: usize,
    ) -> io::Result<usize> {
        let mut received = 0;
        // Dropped frames count towards `max` too, so that a flood of them cannot hold the caller.
        for _ in 0..max {
            let Some(mut frame) = pool.alloc() else {
                self.counters.rx_no_chunk += 1;
                break;
            };
            let chunk = pool.bytes_mut(&mut frame);
            if chunk.len() < self.chunk_len_min() {
                pool.free(frame);
                return Err(small_chunks());
            }
            let buffer = &mut chunk[RX_HEADER_OFFSET..];
            let result = self.read(buffer);
            let accepted = match &result {
                Ok(len) => self.judge(buffer, *len, buffer.len()),
                Err(_) => None,
            };
            let Some(judged) = accepted else {
                pool.free(frame);
                match result {
                    Ok(_) => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                        self.counters.interface_down += 1;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            };
            let Judged { len, checksum_valid, segment_size } = judged;
            let offset = RX_FRAME_OFFSET as u16;
            out.push(RxFrame { frame, offset, len, checksum_valid, segment_size });
            received += 1;
        }
        Ok(received)
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Vec<TxFrame>) -> io::Result<usize> {
        send_each(pool, frames, |pool, frame| self.send(pool, frame))
    }

    fn features(&self) -> Features {
        let segmentation_max = match self.facts.offload {
            Offload::Segmentation => SUPERFRAME_PACKET_MAX,
            _ => 0,
        };
        Features {
            rx_checksum: self.facts.offload >= Offload::Checksum,
            tx_checksum: self.facts.offload >= Offload::Checksum,
            tx_segmentation_max: segmentation_max,
            rx_segmentation_max: segmentation_max,
            multi_queue: self.facts.multi_queue,
        }
    }

    fn mtu(&self) -> u16 {
        self.facts.mtu
    }

    fn mac(&self) -> [u8; 6] {
        self.facts.mac
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn interface(&self) -> u32 {
        self.index()
    }

    fn describe(&self) -> String {
        let TapFacts { name, mtu, offload, multi_queue, udp_batches_known, steering, .. } =
            &self.facts;
        let count = self.facts.queues;
        let queues = match (multi_queue, steering, count) {
            (false, ..) | (true, _, 1) => "one queue".to_owned(),
            (true, Some(steering), count) => {
                let rule = match steering.rule() {
                    Rule::Hash => "a hash of addresses and ports",
                    Rule::Low12 => "the low 12 bits of the peer's port",
                };
                format!("{count} queues steered by {rule}")
            }
            (true, None, count) => {
                format!(
                    "{count} queues chosen by the sender of a flow's last frame (no program allowed)"
                )
            }
        };
        let offload = match offload {
            Offload::None => "no offloads",
            Offload::Checksum => "checksum offload both ways, no segmentation offload",
            Offload::Segmentation => "checksum and TCP segmentation offload both ways",
        };
        let datagrams = match udp_batches_known {
            true => "UDP batches cut by the kernel",
            false => "no UDP batches in this kernel",
        };
        format!(
            "tap {name}: MTU {mtu}, {queues}, virtio-net header, {offload}, {datagrams}, one read \
             or write a frame"
        )
    }
}

pub(crate) fn small_chunks() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "the frame pool's chunks are smaller than the MTU needs; lower the MTU or enlarge them",
    )
}
