//! The link server: frames from the port to the shard and back, in bursts.
//!
//! Owns the port and the pool of frames. Called by `server` once a turn: `receive` is hop one of a
//! packet's way in (link `rx_burst` to `Shard::handle_frame`), `transmit` the last of its way out
//! (`Shard::poll_transmit` to link `tx_burst`). Both are bounded by [`BURST`]; neither allocates.

use std::io;

use haypile_engine::{Instant, Offloads, RxMeta, Shard, Streams, TxMeta};
use haypile_link::port::{Features, PartialChecksum, Port, RxFrame, TX_HEADROOM, TxFrame};
use haypile_shm::pool::Frame;
use haypile_shm::{Errno, FramePool};

/// Frames moved in one call.
pub const BURST: usize = 64;
const FRAMES: u32 = 2048;
const FRAME_SIZE_SMALL: usize = 2048;
const FRAME_SIZE_LARGE: usize = 4096;
/// Room a frame needs beside its IP packet: the port's header, Ethernet, a VLAN tag, and a byte by
/// which the port sees that nothing was cut off.
const FRAME_OVERHEAD: usize = TX_HEADROOM + 14 + 4 + 1;
/// The largest IP packet that fits a frame of the pool.
pub const MTU_MAX: u16 = (FRAME_SIZE_LARGE - FRAME_OVERHEAD) as u16;

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

/// One port with its frames.
pub struct LinkServer<P: Port> {
    port: P,
    pool: FramePool,
    received: Vec<RxFrame>,
    to_send: Vec<TxFrame>,
}

impl<P: Port> LinkServer<P> {
    /// Takes a port over.
    ///
    /// # Errors
    /// When the system gives no memory for frames.
    pub fn new(port: P) -> Result<Self, Errno> {
        let fits = usize::from(port.mtu()) + FRAME_OVERHEAD <= FRAME_SIZE_SMALL;
        let size = if fits { FRAME_SIZE_SMALL } else { FRAME_SIZE_LARGE };
        Ok(LinkServer {
            port,
            pool: FramePool::new(FRAMES, size)?,
            received: Vec::with_capacity(BURST),
            to_send: Vec::with_capacity(BURST),
        })
    }

    /// The port.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// The port, to command it.
    pub fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// Hands one burst of received frames to the shard; returns how many.
    ///
    /// # Errors
    /// When the port is of no more use.
    pub fn receive(
        &mut self,
        now: Instant,
        shard: &mut Shard,
        streams: &mut impl Streams,
    ) -> io::Result<usize> {
        let count = self.port.rx_burst(&mut self.pool, &mut self.received, BURST)?;
        for frame in self.received.drain(..) {
            let meta =
                RxMeta { checksum_valid: frame.checksum_valid, segment_size: frame.segment_size };
            shard.handle_frame(now, frame.bytes(&self.pool), meta, streams);
            self.pool.free(frame.frame);
        }
        Ok(count)
    }

    /// Sends one burst of what the shard has to say; returns how many frames it had. While the
    /// port takes no more, nothing is asked of the shard, so that its queues hold the rest.
    ///
    /// # Errors
    /// When the port is of no more use.
    pub fn transmit(
        &mut self,
        now: Instant,
        shard: &mut Shard,
        streams: &mut impl Streams,
    ) -> io::Result<usize> {
        let before = self.to_send.len();
        while self.to_send.len() < BURST {
            let Some(mut frame) = self.pool.alloc() else { break };
            let room = &mut self.pool.bytes_mut(&mut frame)[TX_HEADROOM..];
            match shard.poll_transmit(now, room, streams) {
                Some(meta) => self.to_send.push(tx_frame(frame, meta)),
                None => {
                    self.pool.free(frame);
                    break;
                }
            }
        }
        let fresh = self.to_send.len() - before;
        if !self.to_send.is_empty() {
            self.port.tx_burst(&mut self.pool, &mut self.to_send)?;
        }
        Ok(fresh)
    }

    /// Whether frames wait for the port to take them.
    pub fn is_blocked(&self) -> bool {
        !self.to_send.is_empty()
    }
}
