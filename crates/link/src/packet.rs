//! Owns the packet port: frames through a packet(7) socket, on our end of a veth pair that is made
//! for it ([`Attachment::Pair`]) or on an interface that is there already. Called by the service
//! where no TAP can be had, and by tests. Each frame is preceded by the first 10 bytes of the
//! virtio-net header (`virtio.rs`), by which checksums and the cutting of TCP segments are left to
//! the other side, as on a TAP; up to 32 frames cross in one call. Set up by `packet/setup.rs`. Read
//! packet(7) first.
//!
//! The kernel looks at every frame too, but our end has an Ethernet address of its own, so that it
//! drops what is for us before it looks at addresses of IP.

mod setup;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use haypile_shm::pool::{Frame, FramePool};

use crate::error::LinkError;
use crate::offload;
use crate::port::{
    ETHERNET_HEADER_LEN, Features, Port, PortCounters, RxFrame, SUPERFRAME_PACKET_MAX, TX_HEADROOM,
    TxFrame, VLAN_TAG_LEN,
};
use crate::sys::packet::{self as sys, BURST_MAX, Received};
use crate::tap::{Offload, small_chunks};
use crate::virtio::{self, Batch};

/// The part of the virtio-net header that packet sockets know, in bytes: all but `num_buffers`.
const HEADER_LEN: usize = virtio::HEADER_LEN - 2;
/// Where a received frame starts in its chunk, as on a TAP.
const RX_FRAME_OFFSET: usize = TX_HEADROOM;
const RX_HEADER_OFFSET: usize = RX_FRAME_OFFSET - HEADER_LEN;
/// Frames that the first call of a burst asks for when the last one found few.
const BURST_MIN: usize = 4;
/// Datagrams of a batch at most (UDP_MAX_SEGMENTS of the kernel).
const DATAGRAMS_MAX: usize = 128;
/// The longest single IP packet of a batch, in bytes.
const PACKET_LEN_MAX: usize = 9216;
/// A call that a signal cut short is made again at most this often.
const INTERRUPTED_MAX: u32 = 8;

/// How to open a packet port.
#[derive(Clone, Debug)]
pub struct PacketConfig {
    /// Where.
    pub attachment: Attachment,
    /// Largest IP packet, in bytes; an interface that is there must have at least this.
    pub mtu: u16,
    /// Ethernet address of our end, beside the one that the kernel has there.
    pub mac: [u8; 6],
    /// What we leave to the other side in what we send. What it leaves to us is taken in any case.
    pub offload: Offload,
}

/// What a packet port is attached to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attachment {
    /// A veth pair of its own: the host's end here, with the first free name of haypile0,
    /// haypile1, ... and these addresses; ours in a network namespace that only the socket keeps,
    /// so that both go with the last descriptor of it, also by a kill.
    Pair(Vec<(IpAddr, u8)>),
    /// The interface of this name, which is set up if it is down.
    Interface(String),
}

/// All that is known of a port beside its descriptor: plain data, from which another process that
/// has the descriptor makes the same port again ([`Packet::from_socket`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PacketFacts {
    /// Name of the host's end of the pair, or of the interface.
    pub name: String,
    /// The kernel's number of it, in the namespace it was opened in.
    pub index: u32,
    /// The kernel's number of the interface the socket is bound to, in the socket's namespace.
    pub bound_to: u32,
    /// It is a pair of our own.
    pub is_pair: bool,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Ethernet address of our end.
    pub mac: [u8; 6],
    /// What we leave to the other side in what we send.
    pub offload: Offload,
}

/// A packet socket with what belongs to it.
#[derive(Debug)]
pub struct Packet {
    socket: OwnedFd,
    facts: PacketFacts,
    counters: PortCounters,
    /// Dropped on receive: frames of a VLAN.
    tagged: u64,
    /// Dropped by the kernel, because the socket had no room for it.
    overrun: Cell<u64>,
    /// Frames to ask for.
    burst: usize,
    /// What did not fit into the burst of a batch of datagrams.
    cut: VecDeque<RxFrame>,
    /// Chunks for one call, empty between calls.
    chunks: Vec<Frame>,
}

/// What became of the first of the frames to be sent.
enum Sent {
    /// As many are done with.
    Done(usize),
    Blocked,
    Gone(io::Error),
}

impl Packet {
    /// Opens a port in the calling thread's network namespace. A pair is set up and its host end has
    /// its addresses, which can be bound, when this returns.
    ///
    /// # Errors
    /// EPERM without the right to: a pair takes CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN, an
    /// interface CAP_NET_RAW alone if it is up. ENODEV when the interface does not exist, ENETDOWN
    /// when it is down and may not be set up, EMSGSIZE when its MTU is smaller than asked for.
    pub fn open(config: &PacketConfig) -> Result<Packet, LinkError> {
        let (socket, facts) = setup::open(config)?;
        Ok(Packet::new(socket, facts))
    }

    /// Makes a port of a socket that another process, or this one, has opened; its counters start at
    /// 0. What the socket holds already is received first.
    ///
    /// # Errors
    /// When the descriptor is no packet socket on the interface that the facts name, or its frames
    /// have no virtio-net header.
    pub fn from_socket(socket: OwnedFd, facts: PacketFacts) -> Result<Packet, LinkError> {
        setup::check_socket(&socket, &facts)?;
        Ok(Packet::new(socket, facts))
    }

    fn new(socket: OwnedFd, facts: PacketFacts) -> Packet {
        Packet {
            socket,
            facts,
            counters: PortCounters::default(),
            tagged: 0,
            overrun: Cell::new(0),
            burst: BURST_MIN,
            cut: VecDeque::new(),
            chunks: Vec::with_capacity(BURST_MAX),
        }
    }

    /// The socket's descriptor, to be kept or handed on. A pair lives as long as any copy of it.
    ///
    /// # Errors
    /// When the process may open no more descriptors.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// What [`Packet::from_socket`] wants to know.
    pub fn facts(&self) -> &PacketFacts {
        &self.facts
    }

    /// Length of a chunk that holds every frame: the other side may send superframes at any time.
    fn chunk_len_min() -> usize {
        RX_FRAME_OFFSET + ETHERNET_HEADER_LEN + VLAN_TAG_LEN + SUPERFRAME_PACKET_MAX as usize + 1
    }

    /// Receives up to `wanted` frames in one call; true when the socket has no more.
    fn receive(
        &mut self,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        wanted: usize,
    ) -> io::Result<bool> {
        let mut chunks = std::mem::take(&mut self.chunks);
        while chunks.len() < wanted
            && let Some(frame) = pool.alloc()
        {
            chunks.push(frame);
        }
        let asked = chunks.len();
        self.counters.rx_no_chunk += u64::from(asked < wanted);
        let mut received = [Received::default(); BURST_MAX];
        let result = match chunks.is_empty() {
            true => Ok(0),
            false => self.receive_messages(pool, &mut chunks, &mut received),
        };
        let count = *result.as_ref().unwrap_or(&0);
        for (index, frame) in chunks.drain(..).enumerate() {
            match received.get(index) {
                Some(message) if index < count => self.take(pool, frame, *message, out),
                _ => pool.free(frame),
            }
        }
        self.chunks = chunks;
        result.map(|count| count < wanted)
    }

    fn receive_messages(
        &mut self,
        pool: &mut FramePool,
        chunks: &mut [Frame],
        received: &mut [Received; BURST_MAX],
    ) -> io::Result<usize> {
        for _ in 0..INTERRUPTED_MAX {
            match sys::receive(self.socket.as_fd(), pool, chunks, RX_HEADER_OFFSET, received) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {
                    // Said once; removed interfaces are told from those down by their name.
                    self.counters.interface_down += 1;
                    return setup::is_bound(&self.socket, &self.facts).map(|()| 0);
                }
                result => return result,
            }
        }
        Ok(0)
    }

    /// Judges a received message; hands the frame on, drops and counts it, or cuts it.
    fn take(
        &mut self,
        pool: &mut FramePool,
        frame: Frame,
        message: Received,
        out: &mut Vec<RxFrame>,
    ) {
        let chunk = pool.bytes(&frame);
        let mut header = [0; virtio::HEADER_LEN];
        header[..HEADER_LEN].copy_from_slice(&chunk[RX_HEADER_OFFSET..RX_FRAME_OFFSET]);
        let len = message.len.saturating_sub(HEADER_LEN);
        let parsed = virtio::parse(&header).filter(|_| len >= ETHERNET_HEADER_LEN);
        let counters = &mut self.counters;
        let counter = match parsed {
            _ if message.is_cut => &mut counters.rx_too_long,
            _ if message.is_of_vlan => &mut self.tagged,
            None => &mut counters.rx_too_short,
            Some(header) => {
                counters.rx_partial_checksum += u64::from(header.needs_checksum);
                let checksum_valid = header.data_valid || header.needs_checksum;
                let (offset, len) = (RX_FRAME_OFFSET as u16, len as u32);
                let mut received = RxFrame { frame, offset, len, checksum_valid, segment_size: 0 };
                match header.batch {
                    Batch::One => return self.hand_on(received, out),
                    Batch::Tcp(size) => {
                        counters.rx_superframes += 1;
                        received.segment_size = size;
                        return self.hand_on(received, out);
                    }
                    Batch::Udp(size) => return self.cut(pool, received, size),
                    Batch::Unknown => {
                        counters.rx_unsegmented += 1;
                        return pool.free(received.frame);
                    }
                }
            }
        };
        *counter += 1;
        pool.free(frame);
    }

    fn hand_on(&mut self, received: RxFrame, out: &mut Vec<RxFrame>) {
        self.counters.rx_frames += 1;
        self.counters.rx_bytes += u64::from(received.len);
        out.push(received);
    }

    /// A batch of UDP datagrams becomes single frames, which are received next.
    fn cut(&mut self, pool: &mut FramePool, batch: RxFrame, segment_size: u16) {
        for index in 0..DATAGRAMS_MAX {
            let Some(mut frame) = pool.alloc() else {
                self.counters.rx_no_chunk += 1;
                break;
            };
            let mut piece = [0; ETHERNET_HEADER_LEN + VLAN_TAG_LEN + PACKET_LEN_MAX];
            let cut = offload::segment(batch.bytes(pool), segment_size, index, &mut piece);
            let Some(len) = cut else {
                // None at all: it was none.
                self.counters.rx_unsegmented += u64::from(index == 0);
                pool.free(frame);
                break;
            };
            pool.bytes_mut(&mut frame)[RX_FRAME_OFFSET..][..len].copy_from_slice(&piece[..len]);
            let (offset, len) = (RX_FRAME_OFFSET as u16, len as u32);
            let received = RxFrame { frame, offset, len, checksum_valid: true, segment_size: 0 };
            self.cut.push_back(received);
        }
        pool.free(batch.frame);
    }

    /// Writes the header of a frame to be sent before it; false: it cannot be sent, and is counted.
    fn prepare(&mut self, pool: &mut FramePool, frame: &mut TxFrame) -> bool {
        let (offset, len) = (usize::from(frame.offset), frame.len as usize);
        if len < ETHERNET_HEADER_LEN {
            self.counters.tx_too_short += 1;
            return false;
        }
        let is_superframe = frame.segment_size != 0;
        let packet_max = match is_superframe && self.facts.offload == Offload::Segmentation {
            true => SUPERFRAME_PACKET_MAX as usize,
            false => usize::from(self.facts.mtu),
        };
        let chunk = pool.bytes_mut(&mut frame.frame);
        let too_long = len > ETHERNET_HEADER_LEN + packet_max;
        if too_long || offset < HEADER_LEN || offset + len > chunk.len() {
            self.counters.tx_too_long += 1;
            return false;
        }
        let bytes = &chunk[offset..offset + len];
        let Some(header) = virtio::header_of(frame.checksum, frame.segment_size, bytes) else {
            self.counters.tx_refused += 1;
            return false;
        };
        chunk[offset - HEADER_LEN..offset].copy_from_slice(&header[..HEADER_LEN]);
        true
    }

    /// Sends frames from the front, in one call, up to the first that cannot be sent.
    fn send(&mut self, pool: &mut FramePool, frames: &mut [TxFrame]) -> Sent {
        let count = frames.len().min(BURST_MAX);
        let (frames, _) = frames.split_at_mut(count);
        let sendable = frames.iter_mut().position(|frame| !self.prepare(pool, frame));
        if sendable == Some(0) {
            return Sent::Done(1);
        }
        let frames = &frames[..sendable.unwrap_or(count)];
        let mut messages: [&[u8]; BURST_MAX] = [&[]; BURST_MAX];
        for (message, frame) in messages.iter_mut().zip(frames) {
            let (offset, len) = (usize::from(frame.offset), frame.len as usize);
            *message = &pool.bytes(&frame.frame)[offset - HEADER_LEN..offset + len];
        }
        let sent = match self.send_messages(&messages[..frames.len()]) {
            Sent::Done(sent) => sent,
            other => return other,
        };
        for frame in &frames[..sent] {
            self.counters.tx_superframes += u64::from(frame.segment_size != 0);
            self.counters.tx_partial_checksum += u64::from(frame.checksum.is_some());
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += u64::from(frame.len);
        }
        // What could not be prepared was counted and is done with, if all before it were sent.
        Sent::Done(sent + usize::from(sendable == Some(sent)))
    }

    fn send_messages(&self, messages: &[&[u8]]) -> Sent {
        for _ in 0..INTERRUPTED_MAX {
            match sys::send(self.socket.as_fd(), messages) {
                Ok(sent) => return Sent::Done(sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Sent::Gone(error),
            }
        }
        Sent::Blocked
    }

    /// The kernel has refused the first frame.
    fn refuse(&mut self, error: io::Error) -> Result<(), io::Error> {
        match error.raw_os_error() {
            Some(libc::ENXIO | libc::ENODEV | libc::EBADF) => return Err(error),
            Some(libc::ENETDOWN) => self.counters.interface_down += 1,
            // ENOBUFS is a full queue of the device, which drops as well.
            _ => self.counters.tx_refused += 1,
        }
        Ok(())
    }
}

impl Port for Packet {
    fn rx_burst(
        &mut self,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        max: usize,
    ) -> io::Result<usize> {
        if pool.frame_size() < Packet::chunk_len_min() {
            return Err(small_chunks());
        }
        let (before, mut budget) = (out.len(), max);
        loop {
            while budget > 0
                && let Some(received) = self.cut.pop_front()
            {
                self.hand_on(received, out);
                budget -= 1;
            }
            let wanted = self.burst.min(budget).min(BURST_MAX);
            if wanted == 0 {
                break;
            }
            // Dropped frames count towards `max` too, so that a flood of them cannot hold the caller.
            let empty = self.receive(pool, out, wanted)?;
            budget -= wanted;
            self.burst = if empty { BURST_MIN } else { (self.burst * 2).min(BURST_MAX) };
            if empty && self.cut.is_empty() {
                break;
            }
        }
        Ok(out.len() - before)
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Vec<TxFrame>) -> io::Result<usize> {
        let mut done = 0;
        let mut gone = None;
        while done < frames.len() {
            match self.send(pool, &mut frames[done..]) {
                Sent::Done(count) => done += count,
                Sent::Blocked => {
                    self.counters.tx_blocked += 1;
                    break;
                }
                Sent::Gone(error) => match self.refuse(error) {
                    Ok(()) => done += 1,
                    Err(error) => {
                        gone = Some(error);
                        break;
                    }
                },
            }
        }
        for sent in frames.drain(..done) {
            pool.free(sent.frame);
        }
        gone.map_or(Ok(done), Err)
    }

    fn features(&self) -> Features {
        let offload = self.facts.offload;
        Features {
            rx_checksum: true,
            tx_checksum: offload >= Offload::Checksum,
            tx_segmentation_max: match offload {
                Offload::Segmentation => SUPERFRAME_PACKET_MAX,
                _ => 0,
            },
            rx_segmentation_max: SUPERFRAME_PACKET_MAX,
            multi_queue: false,
        }
    }

    fn mtu(&self) -> u16 {
        self.facts.mtu
    }

    fn mac(&self) -> [u8; 6] {
        self.facts.mac
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.cut.is_empty()
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn more_counters(&self) -> Vec<(&'static str, u64)> {
        // The kernel starts again from 0 at each look.
        let drops = sys::drops(self.socket.as_fd()).unwrap_or(0);
        self.overrun.set(self.overrun.get() + u64::from(drops));
        vec![("rx_socket_full", self.overrun.get()), ("rx_vlan_tag", self.tagged)]
    }

    fn interface(&self) -> u32 {
        self.facts.index
    }

    fn describe(&self) -> String {
        let PacketFacts { name, mtu, offload, is_pair, .. } = &self.facts;
        let what = match is_pair {
            true => "a veth pair of its own",
            false => "beside the kernel, promiscuous",
        };
        let sends = match offload {
            Offload::None => "no offloads when sending",
            Offload::Checksum => "no segmentation offload when sending",
            Offload::Segmentation => "checksum and TCP segmentation offload both ways",
        };
        format!("packet {name}: {what}, MTU {mtu}, virtio-net header, {sends}, bursts of 32 frames")
    }
}
