//! The link server: frames from the port to the shard and back, in bursts.
//!
//! Owns the port and the pool of frames. Called by `server` once a turn: `receive` is hop one of a
//! packet's way in (link `rx_burst` to `Shard::handle_frame`), `transmit` the last of its way out
//! (`Shard::poll_transmit` to link `tx_burst`). Both are bounded by [`BURST`]; neither allocates.

use std::io;

use haypile_engine::{Instant, Offloads, RxMeta, Shard, Streams, TxMeta};
use haypile_link::port::{
    Features, PartialChecksum, Port, RxFrame, SUPERFRAME_PACKET_MAX, TX_HEADROOM, TxFrame,
};
use haypile_shm::pool::{Frame, SUPERFRAME_SIZE};
use haypile_shm::{Errno, FramePool};

use crate::aside::Inward;
use crate::frame_peers::FramePeers;
use crate::switch::Switch;

/// Frames moved in one call.
pub const BURST: usize = 64;
/// Frames handed from the port to the shard, or back, at once while they may be superframes, and
/// bytes after which frames to be sent go: what was copied in is copied out while it is in the
/// cache of the core.
const SUPERFRAMES_AT_ONCE: usize = 4;
const BYTES_AT_ONCE: usize = 192 * 1024;
/// Bytes moved in one call after which a turn goes on to the rest of its work.
const BYTES_PER_CALL: usize = 1024 * 1024;
const FRAME_SIZE_SMALL: usize = 2048;
const FRAME_SIZE_LARGE: usize = 4096;
/// Room a frame needs beside its IP packet: the port's header, Ethernet, a VLAN tag, and a byte by
/// which the port sees that nothing was cut off.
const FRAME_OVERHEAD: usize = TX_HEADROOM + 14 + 4 + 1;
/// The largest IP packet of a port: Linux lets no interface with Ethernet headers go beyond.
pub const MTU_MAX: u16 = 65_521;

const _: () = assert!(SUPERFRAME_PACKET_MAX as usize + FRAME_OVERHEAD <= SUPERFRAME_SIZE);
const _: () = assert!(MTU_MAX as usize + FRAME_OVERHEAD <= SUPERFRAME_SIZE);

/// What the shard may leave to a port.
pub fn offloads(features: Features) -> Offloads {
    Offloads { tx_checksum: features.tx_checksum, tx_segmentation: features.tx_segmentation_max }
}

/// What the shard says of a frame, in the port's words.
fn tx_frame(frame: Frame, meta: TxMeta) -> TxFrame {
    let checksum = meta
        .checksum
        .map(|checksum| PartialChecksum { start: checksum.start, offset: checksum.offset });
    TxFrame { checksum, segment_size: meta.segment_size, ..TxFrame::new(frame, meta.len as u32) }
}

/// Size and number of the frames for a port: chunks of 64 KiB only where such frames come or go,
/// and as many as are out at once, because each is as large as a core's first cache.
fn frames_for(mtu: u16, features: Features) -> (usize, u32) {
    let segments = features.rx_segmentation_max > 0 || features.tx_segmentation_max > 0;
    match usize::from(mtu) + FRAME_OVERHEAD {
        _ if segments => (SUPERFRAME_SIZE, 256),
        len if len <= FRAME_SIZE_SMALL => (FRAME_SIZE_SMALL, 2048),
        len if len <= FRAME_SIZE_LARGE => (FRAME_SIZE_LARGE, 2048),
        _ => (SUPERFRAME_SIZE, 256),
    }
}

/// What one call of `build` gave.
struct Built {
    bytes: usize,
    /// There is no more for now.
    is_last: bool,
}

/// One port with its frames.
pub struct LinkServer<P: Port> {
    pub(crate) port: P,
    /// The servers that frames are handed to and come from.
    pub(crate) peers: FramePeers,
    /// Who they are, where there are any.
    pub(crate) switch: Option<Box<Switch>>,
    pub(crate) pool: FramePool,
    /// Frames received before they are handed on.
    at_once: usize,
    received: Vec<RxFrame>,
    pub(crate) to_send: Vec<TxFrame>,
}

impl<P: Port> LinkServer<P> {
    /// Takes a port over.
    ///
    /// # Errors
    /// When the system gives no memory for frames.
    pub fn new(port: P) -> Result<Self, Errno> {
        let (size, count) = frames_for(port.mtu(), port.features());
        let at_once = if size == SUPERFRAME_SIZE { SUPERFRAMES_AT_ONCE } else { BURST };
        Ok(LinkServer {
            port,
            peers: FramePeers::default(),
            switch: None,
            pool: FramePool::new(count, size)?,
            at_once,
            received: Vec::with_capacity(BURST),
            to_send: Vec::with_capacity(BURST),
        })
    }

    /// The port.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// The port, and the servers that frames come from as they do from the port.
    pub fn parts_mut(&mut self) -> (&mut P, &mut FramePeers) {
        (&mut self.port, &mut self.peers)
    }

    /// The port, to command it.
    pub fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// Hands one burst of received frames to the shard, or to the server that they are for, and takes
    /// what other servers have handed over; returns how many.
    ///
    /// # Errors
    /// When the port is of no more use.
    // A row of docs/cost.md.
    #[inline(never)]
    pub fn receive(
        &mut self,
        now: Instant,
        shard: &mut Shard,
        streams: &mut impl Inward,
    ) -> io::Result<usize> {
        let (mut count, mut bytes) = (0, 0);
        while count < BURST && bytes < BYTES_PER_CALL {
            let wanted = self.at_once.min(BURST - count);
            let came = self.port.rx_burst(&mut self.pool, &mut self.received, wanted)?;
            for frame in self.received.drain(..) {
                let meta = RxMeta {
                    checksum_valid: frame.checksum_valid,
                    segment_size: frame.segment_size,
                };
                bytes += frame.len as usize;
                let content = frame.bytes(&self.pool);
                match &mut self.switch {
                    None => shard.handle_frame(now, content, meta, streams),
                    Some(switch) => {
                        let way = switch.way(shard.steered(), content);
                        if switch.pass(&mut self.peers, way, content, meta) {
                            shard.handle_frame(now, content, meta, streams);
                        }
                    }
                }
                self.pool.free(frame.frame);
            }
            count += came;
            if came < wanted {
                break;
            }
        }
        if self.switch.is_some() {
            count += self.receive_from_peers(now, shard, streams);
        }
        Ok(count)
    }

    /// Sends one burst of what the shard has to say; returns how many frames it had. While the
    /// port takes no more, nothing is asked of the shard, so that its queues hold the rest.
    ///
    /// # Errors
    /// When the port is of no more use.
    // A row of docs/cost.md.
    #[inline(never)]
    pub fn transmit(
        &mut self,
        now: Instant,
        shard: &mut Shard,
        streams: &mut impl Streams,
    ) -> io::Result<usize> {
        let (mut fresh, mut bytes) = (0, 0);
        let mut is_done = false;
        while !is_done && fresh < BURST && bytes < BYTES_PER_CALL {
            let before = self.to_send.len();
            let built = self.build(now, shard, streams, BURST - fresh);
            is_done = built.is_last;
            fresh += self.to_send.len() - before;
            bytes += built.bytes;
            if self.to_send.is_empty() {
                break;
            }
            self.send()?;
            if !self.to_send.is_empty() {
                break;
            }
        }
        Ok(fresh)
    }

    /// Asks the shard for frames, as many as stay in the cache and `frames_max` at most.
    fn build(
        &mut self,
        now: Instant,
        shard: &mut Shard,
        streams: &mut impl Streams,
        frames_max: usize,
    ) -> Built {
        let mut bytes = 0;
        for _ in self.to_send.len()..BURST.min(self.to_send.len() + frames_max) {
            let Some(mut frame) = self.pool.alloc() else { return Built { bytes, is_last: true } };
            let room = &mut self.pool.bytes_mut(&mut frame)[TX_HEADROOM..];
            let Some(meta) = shard.poll_transmit(now, room, streams) else {
                self.pool.free(frame);
                return Built { bytes, is_last: true };
            };
            bytes += meta.len;
            self.to_send.push(tx_frame(frame, meta));
            if bytes >= BYTES_AT_ONCE {
                return Built { bytes, is_last: false };
            }
        }
        Built { bytes, is_last: false }
    }

    /// Whether something waits for the port, or for another server, to take it.
    pub fn is_blocked(&self) -> bool {
        !self.to_send.is_empty() || self.has_untold()
    }
}
