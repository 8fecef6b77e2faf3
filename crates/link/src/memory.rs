//! Owns the in-process link: two ports joined by bounded queues in memory. Used by tests of the
//! service that need a wire but no root; the far end may live on another thread. Nothing allocates
//! after [`pair`]. What one port sends is copied once and received by the other in order.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use haypile_shm::pool::FramePool;

use crate::error::LinkError;
use crate::port::{
    ETHERNET_HEADER_LEN, Features, Port, PortCounters, RxFrame, TX_HEADROOM, TxFrame,
};
use crate::sys;

/// One direction's frames: a ring of slots, all of them allocated from the start.
#[derive(Debug)]
struct Slots {
    slots: Box<[Slot]>,
    first: usize,
    count: usize,
    /// The receiver's event descriptor is readable.
    signalled: bool,
    /// The sender found the ring full and wants its own event descriptor rung when it is not.
    sender_waits: bool,
}

#[derive(Debug)]
struct Slot {
    bytes: Box<[u8]>,
    len: usize,
}

/// One direction: its frames, and the event descriptor that its receiver waits on.
#[derive(Debug)]
struct Lane {
    slots: Mutex<Slots>,
    event: File,
    /// One of the two ports is gone.
    closed: AtomicBool,
}

/// One end of an in-process link. Made by [`pair`].
#[derive(Debug)]
pub struct MemoryPort {
    incoming: Arc<Lane>,
    outgoing: Arc<Lane>,
    mtu: u16,
    mac: [u8; 6],
    counters: PortCounters,
}

/// Makes two joined ports of this `mtu` (bytes of an IP packet) with these Ethernet addresses.
/// `capacity` frames fit in each direction (1 at least); a full direction makes the sender keep its
/// frames.
///
/// # Errors
/// When the process may open no more descriptors.
pub fn pair(
    mtu: u16,
    macs: [[u8; 6]; 2],
    capacity: usize,
) -> Result<(MemoryPort, MemoryPort), LinkError> {
    let (there, back) = (lane(mtu, capacity)?, lane(mtu, capacity)?);
    let port = |incoming: &Arc<Lane>, outgoing: &Arc<Lane>, mac| MemoryPort {
        incoming: Arc::clone(incoming),
        outgoing: Arc::clone(outgoing),
        mtu,
        mac,
        counters: PortCounters::default(),
    };
    Ok((port(&back, &there, macs[0]), port(&there, &back, macs[1])))
}

fn lane(mtu: u16, capacity: usize) -> Result<Arc<Lane>, LinkError> {
    let event = sys::event_descriptor()
        .map_err(|error| LinkError::new("make an event descriptor", error))?;
    let frame_len = ETHERNET_HEADER_LEN + usize::from(mtu);
    let slot = || Slot { bytes: vec![0; frame_len].into_boxed_slice(), len: 0 };
    let slots = Slots {
        slots: (0..capacity.max(1)).map(|_| slot()).collect(),
        first: 0,
        count: 0,
        signalled: false,
        sender_waits: false,
    };
    Ok(Arc::new(Lane {
        slots: Mutex::new(slots),
        event: event.into(),
        closed: AtomicBool::new(false),
    }))
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        // The guarded code does not panic half-way; a panic elsewhere leaves the slots whole.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the event descriptor readable. An event counter cannot overflow here: it is 0 or 1.
    fn signal(&self, slots: &mut Slots) {
        if !slots.signalled {
            slots.signalled = (&self.event).write(&1_u64.to_ne_bytes()).is_ok();
        }
    }

    fn clear(&self, slots: &mut Slots) {
        if slots.signalled {
            let mut count = [0; 8];
            slots.signalled = (&self.event).read(&mut count).is_err();
        }
    }
}

impl Slots {
    /// Copies a frame in; `false` when all slots are full.
    fn push(&mut self, frame: &[u8]) -> bool {
        if self.count == self.slots.len() {
            return false;
        }
        let last = (self.first + self.count) % self.slots.len();
        let slot = &mut self.slots[last];
        slot.bytes[..frame.len()].copy_from_slice(frame);
        slot.len = frame.len();
        self.count += 1;
        true
    }

    /// The oldest frame.
    fn front(&self) -> Option<&[u8]> {
        let slot = &self.slots[self.first];
        (self.count > 0).then(|| &slot.bytes[..slot.len])
    }

    fn pop(&mut self) {
        self.first = (self.first + 1) % self.slots.len();
        self.count -= 1;
    }
}

impl MemoryPort {
    /// Moves frames out of the ring into chunks; returns how many.
    fn take(
        &mut self,
        slots: &mut Slots,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        max: usize,
    ) -> usize {
        let mut received = 0;
        while received < max {
            let Some(bytes) = slots.front() else { break };
            let Some(mut frame) = pool.alloc() else {
                self.counters.rx_no_chunk += 1;
                break;
            };
            let len = bytes.len();
            match pool.bytes_mut(&mut frame).get_mut(TX_HEADROOM..TX_HEADROOM + len) {
                Some(target) => {
                    target.copy_from_slice(bytes);
                    self.counters.rx_frames += 1;
                    self.counters.rx_bytes += len as u64;
                    let offset = TX_HEADROOM as u16;
                    // Nothing between the two ends can damage a frame.
                    out.push(RxFrame {
                        frame,
                        offset,
                        len: len as u32,
                        checksum_valid: true,
                        segment_size: 0,
                    });
                    received += 1;
                }
                None => {
                    self.counters.rx_too_long += 1;
                    pool.free(frame);
                }
            }
            slots.pop();
        }
        received
    }

    /// Puts one frame into the ring; `false` when it must wait.
    fn put(&mut self, slots: &mut Slots, chunk: &[u8], frame: &TxFrame) -> bool {
        let (offset, len) = (usize::from(frame.offset), frame.len as usize);
        if len < ETHERNET_HEADER_LEN {
            self.counters.tx_too_short += 1;
            return true;
        }
        let fits = len <= ETHERNET_HEADER_LEN + usize::from(self.mtu) && offset >= TX_HEADROOM;
        let Some(bytes) = chunk.get(offset..offset + len).filter(|_| fits) else {
            self.counters.tx_too_long += 1;
            return true;
        };
        if self.outgoing.closed.load(Ordering::Relaxed) {
            self.counters.tx_refused += 1;
            return true;
        }
        let taken = slots.push(bytes);
        if taken {
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += len as u64;
        }
        taken
    }
}

impl Port for MemoryPort {
    fn rx_burst(
        &mut self,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        max: usize,
    ) -> io::Result<usize> {
        let lane = Arc::clone(&self.incoming);
        let mut slots = lane.lock();
        let waiting = slots.count;
        let received = self.take(&mut slots, pool, out, max);
        if slots.count == 0 {
            lane.clear(&mut slots);
        }
        let wake_sender = slots.count < waiting && std::mem::take(&mut slots.sender_waits);
        drop(slots);
        if wake_sender {
            // The other port waits on the event descriptor of what comes to it: our outgoing lane.
            let mut slots = self.outgoing.lock();
            self.outgoing.signal(&mut slots);
        }
        Ok(received)
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Vec<TxFrame>) -> io::Result<usize> {
        let lane = Arc::clone(&self.outgoing);
        let mut slots = lane.lock();
        let mut done = 0;
        for frame in frames.iter() {
            if !self.put(&mut slots, pool.bytes(&frame.frame), frame) {
                slots.sender_waits = true;
                self.counters.tx_blocked += 1;
                break;
            }
            done += 1;
        }
        if slots.count > 0 {
            lane.signal(&mut slots);
        }
        drop(slots);
        for sent in frames.drain(..done) {
            pool.free(sent.frame);
        }
        Ok(done)
    }

    fn features(&self) -> Features {
        Features { rx_checksum: true, ..Features::default() }
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.incoming.event.as_fd()
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }

    fn describe(&self) -> String {
        format!("memory: MTU {}, one queue, in this process", self.mtu)
    }
}

impl Drop for MemoryPort {
    fn drop(&mut self) {
        // The other port's frames are refused from now on; if it waits for room, let it see that.
        self.incoming.closed.store(true, Ordering::Relaxed);
        self.outgoing.closed.store(true, Ordering::Relaxed);
        let mut slots = self.outgoing.lock();
        self.outgoing.signal(&mut slots);
    }
}
