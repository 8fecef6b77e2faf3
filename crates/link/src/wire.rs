//! Owns the wire: two ports joined by shared memory, within a process ([`pair`]) or between two
//! processes that meet under a name ([`Wire::open`]). Called by the service (`--link wire:NAME`),
//! by `haypile join`, and by tests. Frames are copied once in and once out; superframes and
//! unfinished checksums cross as they are. A wire whose other end is absent refuses what is sent,
//! as a cable would lose it.
//!
//! One sealed segment holds a ring of records for each direction (`haypile_shm::record_ring` has the
//! layout and the argument why no wake-up is lost), and a doorbell wakes the end that sleeps. The
//! other end is not trusted: its nonsense ends that connection, is counted, and a new one is made.
//! Read `wire/rendezvous.rs` for how two processes meet.

mod rendezvous;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use haypile_shm::pool::FramePool;
use haypile_shm::record_ring::{Push, Record, record_max, record_ring_size};
use haypile_shm::sys::{self, Fd};
use haypile_shm::{Doorbell, Errno, RecordConsumer, RecordProducer, Segment, SharedRecords};

use crate::error::LinkError;
use crate::port::{
    ETHERNET_HEADER_LEN, Features, PartialChecksum, Port, PortCounters, RxFrame, TX_HEADROOM,
    TxFrame, VLAN_TAG_LEN,
};
use rendezvous::Meeting;

pub use rendezvous::{Rendezvous, check_name, remove_leavings};

/// Cache lines of each direction: 1 MiB, so that both rings stay in a core's second-level cache.
pub const WIRE_LINES: u32 = 1 << 14;
/// The largest IP packet that crosses, in bytes: the largest there is.
const PACKET_MAX: usize = 65_535;

const _: () = assert!(record_max(WIRE_LINES) >= PACKET_MAX + ETHERNET_HEADER_LEN + VLAN_TAG_LEN);

/// How a wire is to be.
#[derive(Clone, Debug)]
pub struct WireConfig {
    /// Largest IP packet, in bytes; both ends must have the same.
    pub mtu: u16,
    /// Ethernet address of our end.
    pub mac: [u8; 6],
    /// Whether our user hands over superframes and unfinished checksums. Those that come are
    /// received in any case.
    pub superframes: bool,
}

/// One end of a wire.
#[derive(Debug)]
pub struct Wire {
    name: String,
    config: WireConfig,
    /// Holds the doorbell and the channel.
    epoll: Fd,
    peer: Option<Peer>,
    /// It was readable since the last sleep, and what made it so is not taken yet.
    rung: bool,
    /// Length of the frame that found no room.
    blocked_len: Option<usize>,
    counters: PortCounters,
    own: WireCounters,
    meeting: Option<Meeting>,
    /// Ends when the meeting is dropped.
    rendezvous: Option<Rendezvous>,
}

/// What a wire counts beside [`PortCounters`].
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct WireCounters {
    /// Times another end was joined.
    pub joined: u64,
    /// Times the other end left or died.
    pub left: u64,
    /// Times the other end wrote nonsense into the shared memory.
    pub corrupt: u64,
}

/// The other end, as long as it is there.
#[derive(Debug)]
struct Peer {
    tx: RecordProducer,
    rx: RecordConsumer,
    bell: Doorbell,
    /// It has left; what it sent before is still taken.
    gone: bool,
    #[cfg(test)]
    segment: Arc<Segment>,
}

/// Which end of a wire: whoever made the segment is the first.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Side {
    First,
    Second,
}

/// Makes two joined ports in this process, with rings of `lines` cache lines (a power of two).
///
/// # Errors
/// When the system gives no memory or descriptors.
pub fn pair(
    mtu: u16,
    macs: [[u8; 6]; 2],
    lines: u32,
    superframes: bool,
) -> Result<(Wire, Wire), LinkError> {
    let fail = |errno: Errno| LinkError::new("make a wire", errno.into());
    let segment = Arc::new(Segment::create("haypile-wire", segment_len(lines)).map_err(fail)?);
    let (one, other) = Doorbell::pair().map_err(fail)?;
    let port = |mac, bell, side| -> Result<Wire, LinkError> {
        let config = WireConfig { mtu, mac, superframes };
        let mut wire = Wire::new("", &config, None).map_err(fail)?;
        wire.attach(Arc::clone(&segment), lines, bell, side).map_err(fail)?;
        Ok(wire)
    };
    Ok((port(macs[0], one, Side::First)?, port(macs[1], other, Side::Second)?))
}

fn segment_len(lines: u32) -> usize {
    (2 * record_ring_size(lines)).next_multiple_of(4096)
}

impl Wire {
    /// Opens our end of the wire `name` in `directory`, which is made if it is not there. The other
    /// end may come later, leave, and come again.
    ///
    /// # Errors
    /// When the directory cannot be used, the wire has two ends already, or the other end is of
    /// another version or MTU.
    pub fn open(directory: &Path, name: &str, config: &WireConfig) -> Result<Wire, LinkError> {
        let (rendezvous, channel) = Rendezvous::start(directory, name, config.mtu)?;
        let mut wire = Wire::from_channel(channel, name, config)?;
        wire.rendezvous = Some(rendezvous);
        Ok(wire)
    }

    /// Our end of a wire whose [`Rendezvous`] is in another process: the two share `channel`. Opens
    /// no file and makes no socket, now or later.
    ///
    /// # Errors
    /// When the process may open no more descriptors.
    pub fn from_channel(
        channel: impl Into<Fd>,
        name: &str,
        config: &WireConfig,
    ) -> Result<Wire, LinkError> {
        let mut wire = Wire::new(name, config, Some(Meeting::new(channel.into())))
            .map_err(|errno| LinkError::new(format!("open the wire {name}"), errno.into()))?;
        wire.handle_ready();
        Ok(wire)
    }

    /// A wire without another end, now or ever: what is sent is dropped and counted. For a service
    /// whose programs reach each other alone.
    ///
    /// # Errors
    /// When the process may open no more descriptors.
    pub fn alone(config: &WireConfig) -> Result<Wire, LinkError> {
        Wire::new("", config, None).map_err(|errno| LinkError::new("open a wire", errno.into()))
    }

    fn new(name: &str, config: &WireConfig, meeting: Option<Meeting>) -> Result<Wire, Errno> {
        let epoll = sys::epoll_create()?;
        if let Some(meeting) = &meeting {
            watch(&epoll, meeting.raw())?;
        }
        Ok(Wire {
            name: name.to_owned(),
            config: config.clone(),
            epoll,
            peer: None,
            rung: false,
            blocked_len: None,
            counters: PortCounters::default(),
            own: WireCounters::default(),
            meeting,
            rendezvous: None,
        })
    }

    /// Whether the other end is there, as far as known.
    pub fn is_joined(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| !peer.gone)
    }

    /// What was counted beside [`PortCounters`].
    pub fn wire_counters(&self) -> WireCounters {
        self.own
    }

    fn attach(
        &mut self,
        segment: Arc<Segment>,
        lines: u32,
        bell: Doorbell,
        side: Side,
    ) -> Result<(), Errno> {
        let at = |offset| SharedRecords::new(Arc::clone(&segment), offset, lines);
        let (Some(one), Some(other)) = (at(0), at(record_ring_size(lines))) else {
            return Err(Errno::EINVAL);
        };
        let (outgoing, incoming) = match side {
            Side::First => (one, other),
            Side::Second => (other, one),
        };
        self.detach();
        watch(&self.epoll, bell.raw())?;
        let (tx, rx) = (RecordProducer::new(outgoing), RecordConsumer::new(incoming));
        self.peer = Some(Peer {
            tx,
            rx,
            bell,
            gone: false,
            #[cfg(test)]
            segment,
        });
        self.own.joined += 1;
        Ok(())
    }

    /// Gives the other end up, with what it sent and was not taken.
    fn detach(&mut self) {
        if let Some(peer) = self.peer.take()
            && !peer.gone
        {
            unwatch(&self.epoll, peer.bell.raw());
            self.own.left += 1;
        }
    }

    /// The other end has left: nothing is sent to it any more.
    fn hang_up(&mut self) {
        if let Some(peer) = &mut self.peer
            && !peer.gone
        {
            peer.gone = true;
            unwatch(&self.epoll, peer.bell.raw());
            self.own.left += 1;
        }
    }

    /// Ends the connection to an end that writes nonsense; a new one is made.
    fn expel(&mut self) {
        self.own.corrupt += 1;
        self.detach();
        if let Some(meeting) = &self.meeting {
            meeting.leave();
        }
    }

    /// Whether our end has found the rings corrupt.
    fn is_corrupt(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.tx.is_corrupt() || peer.rx.is_corrupt())
    }

    /// Takes what made the descriptor readable, apart from frames.
    fn take_rings(&mut self) {
        self.rung = false;
        let heard =
            self.peer.as_ref().is_none_or(|peer| peer.gone || peer.bell.drain() == Ok(true));
        if !heard {
            self.hang_up();
        }
        self.meet();
    }

    /// Takes new connections that the rendezvous has made.
    fn meet(&mut self) {
        while let Some(meeting) = &self.meeting {
            match meeting.next() {
                Ok(Some((segment, bell, side))) => {
                    // Without descriptors to spare this end stays alone.
                    let _: Result<(), Errno> = self.attach(segment, WIRE_LINES, bell, side);
                }
                Ok(None) => return,
                Err(_) => {
                    unwatch(&self.epoll, meeting.raw());
                    self.meeting = None;
                }
            }
        }
    }

    /// Whether a record can be a frame of ours; counts it if not.
    fn judge(&mut self, record: Record, room: usize) -> Option<RxTag> {
        let tag = RxTag::decode(record.tag);
        let len = record.len as usize;
        if len < ETHERNET_HEADER_LEN {
            self.counters.rx_too_short += 1;
            return None;
        }
        let packet_max = if tag.segment_size == 0 { self.config.mtu.into() } else { PACKET_MAX };
        if len > packet_max + ETHERNET_HEADER_LEN + VLAN_TAG_LEN || len > room {
            self.counters.rx_too_long += 1;
            return None;
        }
        Some(tag)
    }

    /// Takes one record; false when there is none, or no chunk for it.
    fn take(&mut self, pool: &mut FramePool, out: &mut Vec<RxFrame>) -> bool {
        let Some(record) = self.peer.as_mut().and_then(|peer| peer.rx.front()) else {
            return false;
        };
        let Some(mut frame) = pool.alloc() else {
            self.counters.rx_no_chunk += 1;
            return false;
        };
        let tag = self.judge(record, pool.frame_size().saturating_sub(TX_HEADROOM));
        let Some(peer) = &mut self.peer else { return false };
        let Some(tag) = tag else {
            peer.rx.take(record, &mut []);
            pool.free(frame);
            return true;
        };
        let len = record.len as usize;
        peer.rx.take(record, &mut pool.bytes_mut(&mut frame)[TX_HEADROOM..TX_HEADROOM + len]);
        self.counters.rx_frames += 1;
        self.counters.rx_bytes += len as u64;
        self.counters.rx_partial_checksum += u64::from(tag.unfinished);
        out.push(RxFrame {
            frame,
            offset: TX_HEADROOM as u16,
            len: record.len,
            // Its sender has left it to whoever sends it on: it has been nowhere but in memory.
            checksum_valid: tag.unfinished,
            segment_size: tag.segment_size,
        });
        true
    }

    /// Whether a frame can be sent at all; counts it if not.
    fn may_send(&mut self, frame: &TxFrame, chunk_len: usize) -> bool {
        let (offset, len) = (usize::from(frame.offset), frame.len as usize);
        if len < ETHERNET_HEADER_LEN {
            self.counters.tx_too_short += 1;
            return false;
        }
        let single = frame.segment_size == 0;
        let packet_max = if single { self.config.mtu.into() } else { PACKET_MAX };
        let fits = len <= packet_max + ETHERNET_HEADER_LEN && offset >= TX_HEADROOM;
        if !fits || offset + len > chunk_len || !(single || self.config.superframes) {
            self.counters.tx_too_long += 1;
            return false;
        }
        if !self.is_joined() {
            self.counters.tx_refused += 1;
            return false;
        }
        true
    }

    /// Sends one frame; false when it must wait.
    fn put(&mut self, pool: &FramePool, frame: &TxFrame) -> bool {
        let chunk = pool.bytes(&frame.frame);
        if !self.may_send(frame, chunk.len()) {
            return true;
        }
        let Some(peer) = &mut self.peer else { return true };
        let (offset, len) = (usize::from(frame.offset), frame.len as usize);
        match peer.tx.push(encode_tag(frame), &chunk[offset..offset + len]) {
            Push::Written => {
                self.counters.tx_frames += 1;
                self.counters.tx_bytes += len as u64;
                true
            }
            Push::TooLong => {
                self.counters.tx_too_long += 1;
                true
            }
            Push::Full => {
                self.blocked_len = Some(len);
                false
            }
        }
    }
}

impl Peer {
    /// Rings if the other end sleeps. False: it is gone.
    fn ring(&self, must: bool) -> bool {
        !must || self.gone || self.bell.ring().is_ok()
    }
}

impl Port for Wire {
    // A row of docs/cost.md.
    #[inline(never)]
    fn rx_burst(
        &mut self,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        max: usize,
    ) -> io::Result<usize> {
        let before = out.len();
        // Dropped frames count towards `max` too, so that a flood of them cannot hold the caller.
        for _ in 0..max {
            if !self.take(pool, out) {
                break;
            }
        }
        let Some(peer) = &mut self.peer else { return Ok(0) };
        let waits = peer.rx.release();
        let alive = peer.ring(waits);
        if self.is_corrupt() {
            self.expel();
        } else if !alive {
            self.hang_up();
        }
        if let Some(peer) = &mut self.peer
            && peer.gone
            && peer.rx.is_empty()
        {
            self.peer = None;
        }
        Ok(out.len() - before)
    }

    // A row of docs/cost.md.
    #[inline(never)]
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Vec<TxFrame>) -> io::Result<usize> {
        self.blocked_len = None;
        let mut done = 0;
        for frame in frames.iter() {
            if !self.put(pool, frame) {
                self.counters.tx_blocked += 1;
                break;
            }
            done += 1;
        }
        if let Some(peer) = &mut self.peer
            && done > 0
        {
            let sleeps = peer.tx.publish();
            if !peer.ring(sleeps) {
                self.hang_up();
            }
        }
        if self.is_corrupt() {
            self.expel();
        }
        for sent in frames.drain(..done) {
            pool.free(sent.frame);
        }
        Ok(done)
    }

    fn features(&self) -> Features {
        let packet_max = PACKET_MAX as u32;
        Features {
            rx_checksum: true,
            tx_checksum: self.config.superframes,
            tx_segmentation_max: if self.config.superframes { packet_max } else { 0 },
            rx_segmentation_max: packet_max,
            multi_queue: false,
        }
    }

    fn mtu(&self) -> u16 {
        self.config.mtu
    }

    fn mac(&self) -> [u8; 6] {
        self.config.mac
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn prepare_sleep(&mut self) -> bool {
        if self.rung {
            self.take_rings();
        }
        let Some(peer) = &mut self.peer else { return true };
        if peer.gone {
            return false;
        }
        let nothing_came = peer.rx.prepare_sleep();
        let still_full = self.blocked_len.is_none_or(|len| peer.tx.prepare_sleep(len));
        if nothing_came && still_full {
            return true;
        }
        self.awake();
        false
    }

    fn awake(&mut self) {
        if let Some(peer) = &mut self.peer {
            peer.rx.awake();
            peer.tx.awake();
        }
    }

    fn handle_ready(&mut self) {
        // After a sleep frames have come, nearly always, and whoever sent them waits: what rang is taken
        // before the next sleep, or when a busy caller looks again.
        if self.is_joined() && !std::mem::replace(&mut self.rung, true) {
            return;
        }
        self.take_rings();
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn more_counters(&self) -> Vec<(&'static str, u64)> {
        let WireCounters { joined, left, corrupt } = self.own;
        vec![("wire_joined", joined), ("wire_left", left), ("wire_corrupt", corrupt)]
    }

    fn describe(&self) -> String {
        let place = match (self.name.as_str(), self.is_joined()) {
            ("", true) => "wire: in this process".to_owned(),
            ("", false) => {
                "wire: without another end, the programs reach each other only".to_owned()
            }
            (name, true) => format!("wire {name}: joined"),
            (name, false) => format!("wire {name}: waits for its other end"),
        };
        let frames = match self.config.superframes {
            true => "frames up to 64 KiB, checksums left unfinished",
            false => "complete frames sent",
        };
        format!("{place}, MTU {}, one queue, shared memory, {frames}", self.config.mtu)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The rendezvous ends with the channel.
        self.meeting = None;
        if let Some(rendezvous) = self.rendezvous.take() {
            rendezvous.wait();
        }
    }
}

/// What a record's tag says of a received frame.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct RxTag {
    segment_size: u16,
    unfinished: bool,
}

const UNFINISHED: u64 = 1 << 48;

impl RxTag {
    fn decode(tag: u64) -> RxTag {
        RxTag { segment_size: tag as u16, unfinished: tag & UNFINISHED != 0 }
    }
}

/// Segment size, place of the checksum, and whether it is unfinished.
fn encode_tag(frame: &TxFrame) -> u64 {
    let checksum = frame.checksum.map_or(0, |PartialChecksum { start, offset }| {
        UNFINISHED | u64::from(start) << 16 | u64::from(offset) << 32
    });
    u64::from(frame.segment_size) | checksum
}

fn watch(epoll: &Fd, fd: i32) -> Result<(), Errno> {
    let interest = libc::EPOLLIN as u32;
    sys::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, interest, 0)
}

fn unwatch(epoll: &Fd, fd: i32) {
    // Fails only for a descriptor that is not watched.
    let _: Result<(), Errno> = sys::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, 0, 0);
}
