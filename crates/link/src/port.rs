//! Owns the contract between the service and whatever carries its frames: the [`Port`] trait, the
//! frames that cross it, what a port can do ([`Features`]) and what it counted ([`PortCounters`]).
//! Called by the service's link loop; implemented by `tap.rs`, `wire.rs` and the decorator
//! `capture.rs`. Ethernet frames are without preamble and frame check sequence.

use std::io;
use std::os::fd::BorrowedFd;

use haypile_shm::pool::{Frame, FramePool};

/// Bytes before a frame to be sent that belong to the port: it may write its own header there.
///
/// 18 puts the IP header, 14 bytes into the frame, on a 32-byte boundary of the chunk.
pub const TX_HEADROOM: usize = 18;

/// A received frame may exceed the MTU by both.
pub use haypile_engine::steering::frames::{ETHERNET_HEADER_LEN, VLAN_TAG_LEN};

/// The largest IP packet of a superframe, in bytes: what its length field can tell (RFC 791 section
/// 3.1; an IPv6 packet is kept within the same).
pub const SUPERFRAME_PACKET_MAX: u32 = 65_535;

/// A received frame; whoever holds it owns its chunk and gives it back with `FramePool::free`.
#[derive(Debug)]
pub struct RxFrame {
    /// The chunk.
    pub frame: Frame,
    /// Where the Ethernet header starts in the chunk, in bytes.
    pub offset: u16,
    /// Length of the Ethernet frame, in bytes.
    pub len: u32,
    /// The transport checksum was verified already, or the frame never left memory; its field may
    /// then hold the pseudo header's sum alone ([`PartialChecksum`]).
    pub checksum_valid: bool,
    /// 0 = an ordinary frame; else a batch of TCP segments of one flow in one IP packet: all but the
    /// last carried this many bytes of payload. Only with [`Features::rx_segmentation_max`].
    pub segment_size: u16,
}

/// A transport checksum that the port has to finish: the field holds the folded sum of the pseudo
/// header, not complemented (virtio 1.2 section 5.1.6.2).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct PartialChecksum {
    /// Where the summed bytes start, in bytes from the Ethernet header's start; they end with the
    /// IP packet.
    pub start: u16,
    /// Where the checksum lies, in bytes from `start`.
    pub offset: u16,
}

impl RxFrame {
    /// The Ethernet frame.
    pub fn bytes<'a>(&self, pool: &'a FramePool) -> &'a [u8] {
        &pool.bytes(&self.frame)[usize::from(self.offset)..][..self.len as usize]
    }
}

/// A frame to be sent.
#[derive(Debug)]
pub struct TxFrame {
    /// The chunk.
    pub frame: Frame,
    /// Where the Ethernet header starts in the chunk: at least [`TX_HEADROOM`], in bytes.
    pub offset: u16,
    /// Length of the Ethernet frame, in bytes.
    pub len: u32,
    /// What the port has to finish; `None` = complete. Only with [`Features::tx_checksum`].
    pub checksum: Option<PartialChecksum>,
    /// 0 = one frame; else the port, or whoever takes the frame from it, cuts the TCP segment into
    /// ones of this many bytes of payload and a shorter last one. Only with
    /// [`Features::tx_segmentation_max`], and then with `checksum`.
    pub segment_size: u16,
}

impl TxFrame {
    /// A complete frame of `len` bytes that was written right behind the headroom.
    pub fn new(frame: Frame, len: u32) -> TxFrame {
        TxFrame { frame, offset: TX_HEADROOM as u16, len, checksum: None, segment_size: 0 }
    }

    /// The Ethernet frame.
    pub fn bytes<'a>(&self, pool: &'a FramePool) -> &'a [u8] {
        &pool.bytes(&self.frame)[usize::from(self.offset)..][..self.len as usize]
    }
}

/// What a port does for its user, as negotiated (not as hoped for).
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// Received frames may come with their transport checksum verified ([`RxFrame::checksum_valid`]).
    pub rx_checksum: bool,
    /// The port finishes transport checksums of frames sent ([`TxFrame::checksum`]).
    pub tx_checksum: bool,
    /// The largest IP packet, in bytes, that the port takes to be cut into TCP segments; 0 = none
    /// beyond the MTU.
    pub tx_segmentation_max: u32,
    /// The largest IP packet, in bytes, of merged TCP segments that it may hand over
    /// ([`RxFrame::segment_size`]); 0 = none beyond the MTU.
    pub rx_segmentation_max: u32,
    /// Further queues can be opened on the same interface.
    pub multi_queue: bool,
}

/// What happened on a port since it was opened. All count upwards and never reset.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct PortCounters {
    /// Frames received and handed on.
    pub rx_frames: u64,
    /// Bytes of those frames.
    pub rx_bytes: u64,
    /// Dropped on receive: too long for a chunk of the pool.
    pub rx_too_long: u64,
    /// Dropped on receive: shorter than an Ethernet header.
    pub rx_too_short: u64,
    /// Dropped on receive: a batch still to be segmented, which was not negotiated.
    pub rx_unsegmented: u64,
    /// Received with a transport checksum that its sender left unfinished; handed on as valid.
    pub rx_partial_checksum: u64,
    /// Received as a batch of TCP segments.
    pub rx_superframes: u64,
    /// Bursts cut short because the pool had no free chunk.
    pub rx_no_chunk: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes of those frames.
    pub tx_bytes: u64,
    /// Sent with a transport checksum that the other side finishes.
    pub tx_partial_checksum: u64,
    /// Sent as a batch of TCP segments, which the other side cuts.
    pub tx_superframes: u64,
    /// Dropped on send: longer than the MTU allows, or without room for the port's header.
    pub tx_too_long: u64,
    /// Dropped on send: shorter than an Ethernet header.
    pub tx_too_short: u64,
    /// Dropped on send: the other side refused the frame.
    pub tx_refused: u64,
    /// Bursts cut short because the other side took no more for now; the rest was kept.
    pub tx_blocked: u64,
    /// Bursts received and frames sent while the interface was down; the frames were dropped.
    pub interface_down: u64,
}

impl PortCounters {
    /// Number of counters.
    pub const COUNT: usize = 17;

    /// Both together.
    pub fn plus(&self, other: &PortCounters) -> PortCounters {
        PortCounters {
            rx_frames: self.rx_frames + other.rx_frames,
            rx_bytes: self.rx_bytes + other.rx_bytes,
            rx_too_long: self.rx_too_long + other.rx_too_long,
            rx_too_short: self.rx_too_short + other.rx_too_short,
            rx_unsegmented: self.rx_unsegmented + other.rx_unsegmented,
            rx_partial_checksum: self.rx_partial_checksum + other.rx_partial_checksum,
            rx_superframes: self.rx_superframes + other.rx_superframes,
            rx_no_chunk: self.rx_no_chunk + other.rx_no_chunk,
            tx_frames: self.tx_frames + other.tx_frames,
            tx_bytes: self.tx_bytes + other.tx_bytes,
            tx_partial_checksum: self.tx_partial_checksum + other.tx_partial_checksum,
            tx_superframes: self.tx_superframes + other.tx_superframes,
            tx_too_long: self.tx_too_long + other.tx_too_long,
            tx_too_short: self.tx_too_short + other.tx_too_short,
            tx_refused: self.tx_refused + other.tx_refused,
            tx_blocked: self.tx_blocked + other.tx_blocked,
            interface_down: self.interface_down + other.interface_down,
        }
    }

    /// Every counter with its name, in a fixed order.
    pub fn named(&self) -> [(&'static str, u64); PortCounters::COUNT] {
        [
            ("rx_frames", self.rx_frames),
            ("rx_bytes", self.rx_bytes),
            ("rx_too_long", self.rx_too_long),
            ("rx_too_short", self.rx_too_short),
            ("rx_unsegmented", self.rx_unsegmented),
            ("rx_partial_checksum", self.rx_partial_checksum),
            ("rx_superframes", self.rx_superframes),
            ("rx_no_chunk", self.rx_no_chunk),
            ("tx_frames", self.tx_frames),
            ("tx_bytes", self.tx_bytes),
            ("tx_partial_checksum", self.tx_partial_checksum),
            ("tx_superframes", self.tx_superframes),
            ("tx_too_long", self.tx_too_long),
            ("tx_too_short", self.tx_too_short),
            ("tx_refused", self.tx_refused),
            ("tx_blocked", self.tx_blocked),
            ("interface_down", self.interface_down),
        ]
    }
}

/// One queue of frames to and from somewhere. Used by one thread at a time; never blocks.
pub trait Port: Send {
    /// Receives up to `max` frames into chunks of `pool` and appends them to `out`; returns how
    /// many. Fewer than `max` means that nothing more waits, or that the pool is empty.
    ///
    /// # Errors
    /// Only when the port is of no more use (the interface was removed, or the pool's chunks are
    /// smaller than the MTU needs). What can be lost on a network is counted, not returned.
    fn rx_burst(
        &mut self,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        max: usize,
    ) -> io::Result<usize>;

    /// Sends from the front of `frames`, removes and frees what was sent (or dropped and counted),
    /// and returns how many those were. What could not be sent now stays.
    ///
    /// # Errors
    /// As [`Port::rx_burst`].
    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Vec<TxFrame>) -> io::Result<usize>;

    /// What this port does, as negotiated.
    fn features(&self) -> Features;

    /// The largest IP packet, in bytes.
    fn mtu(&self) -> u16;

    /// The Ethernet address of our end.
    fn mac(&self) -> [u8; 6];

    /// Readable when [`Port::rx_burst`] would return frames (or after a full link has room again);
    /// some ports promise that only after [`Port::prepare_sleep`].
    fn wait_fd(&self) -> BorrowedFd<'_>;

    /// Announces that the caller is about to sleep until [`Port::wait_fd`] is readable. False: do
    /// not, there is something to do already. [`Port::awake`] follows a sleep, in every case.
    fn prepare_sleep(&mut self) -> bool {
        true
    }

    /// Takes the announcement of [`Port::prepare_sleep`] back.
    fn awake(&mut self) {}

    /// [`Port::wait_fd`] was found readable: takes what made it so, apart from frames, now or in the next
    /// [`Port::prepare_sleep`]; now if it was readable before, and nothing was taken since. Called now and then
    /// by a busy caller too.
    fn handle_ready(&mut self) {}

    /// What was counted so far.
    fn counters(&self) -> PortCounters;

    /// What was counted beside, with names of their own.
    fn more_counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// One line that names the link and its mode.
    fn describe(&self) -> String;

    /// The number of the interface by which the host's kernel reaches us; 0 where there is none.
    fn interface(&self) -> u32 {
        0
    }
}

impl<P: Port + ?Sized> Port for Box<P> {
    fn rx_burst(
        &mut self,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        max: usize,
    ) -> io::Result<usize> {
        (**self).rx_burst(pool, out, max)
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Vec<TxFrame>) -> io::Result<usize> {
        (**self).tx_burst(pool, frames)
    }

    fn features(&self) -> Features {
        (**self).features()
    }

    fn mtu(&self) -> u16 {
        (**self).mtu()
    }

    fn mac(&self) -> [u8; 6] {
        (**self).mac()
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        (**self).wait_fd()
    }

    fn prepare_sleep(&mut self) -> bool {
        (**self).prepare_sleep()
    }

    fn awake(&mut self) {
        (**self).awake();
    }

    fn handle_ready(&mut self) {
        (**self).handle_ready();
    }

    fn more_counters(&self) -> Vec<(&'static str, u64)> {
        (**self).more_counters()
    }

    fn counters(&self) -> PortCounters {
        (**self).counters()
    }

    fn describe(&self) -> String {
        (**self).describe()
    }

    fn interface(&self) -> u32 {
        (**self).interface()
    }
}

/// A locally administered, individual Ethernet address (IEEE 802, section 8.2) that depends only on
/// `seed`: the same configuration gives the same address.
pub fn local_mac(seed: &str) -> [u8; 6] {
    // FNV-1a, 64 bits: spreads short names well; nothing here needs to resist an adversary.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in seed.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let bytes = hash.to_be_bytes();
    let mut mac =
        [bytes[0], bytes[1], bytes[2], bytes[3] ^ bytes[6], bytes[4], bytes[5] ^ bytes[7]];
    mac[0] = mac[0] & !GROUP_BIT | LOCAL_BIT;
    mac
}

const GROUP_BIT: u8 = 0x01;
const LOCAL_BIT: u8 = 0x02;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_mac_is_individual_local_stable_and_differs_by_seed() {
        let first = local_mac("haypile0");
        assert_eq!(first, local_mac("haypile0"));
        assert_ne!(first, local_mac("haypile1"));
        for seed in ["", "a", "haypile0", "198.18.0.2"] {
            assert_eq!(local_mac(seed)[0] & 0x03, LOCAL_BIT);
        }
    }
}
