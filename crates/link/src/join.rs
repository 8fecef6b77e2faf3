//! Owns joining: two ports whose frames go from one to the other over a path with faults, like two
//! interfaces plugged into one bad cable. Called by `haypile join`; its loop is [`Join::run`].

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use haypile_shm::pool::{FramePool, SUPERFRAME_SIZE};
use haypile_shm::sys::{self, PollFd};

use crate::error::LinkError;
use crate::fault::{Fault, FaultCounters, FaultSpec};
use crate::port::{PartialChecksum, Port, PortCounters, RxFrame, TxFrame};

/// Frames moved in one call.
const BURST: usize = 64;
/// Chunks of the pool: several bursts.
const FRAMES: u32 = 512;
/// Time without work before the loop sleeps, in nanoseconds.
const SPIN_NS: u64 = 20_000;
/// Time between two looks at the descriptors while there is work.
const LOOK_NS: u64 = 100_000;

/// Two ports and the path between them.
pub struct Join {
    one: Box<dyn Port>,
    /// The other port; what it sends comes from `one`.
    other: Fault<Box<dyn Port>>,
    pool: FramePool,
    received: Vec<RxFrame>,
    to_one: Vec<TxFrame>,
    to_other: Vec<TxFrame>,
}

impl Join {
    /// Joins two ports. `spec.outgoing` is the path from `one` to `other`, `spec.incoming` the path
    /// back.
    ///
    /// # Errors
    /// When the system gives no memory or descriptors.
    pub fn new(
        one: Box<dyn Port>,
        other: Box<dyn Port>,
        spec: &FaultSpec,
        seed: u64,
    ) -> Result<Join, LinkError> {
        let pool = FramePool::new(FRAMES, SUPERFRAME_SIZE)
            .map_err(|errno| LinkError::new("take memory for frames", errno.into()))?;
        let other = Fault::new(other, spec, seed)?;
        let (received, to_one, to_other) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Join { one, other, pool, received, to_one, to_other })
    }

    /// Moves a burst each way; whether anything moved.
    ///
    /// # Errors
    /// When a port is of no more use.
    pub fn step(&mut self) -> io::Result<bool> {
        let before = self.to_one.len();
        // While the port takes no more, the path holds the rest.
        if before == 0 {
            self.other.rx_burst(&mut self.pool, &mut self.received, BURST)?;
            self.to_one.extend(self.received.drain(..).map(forward));
        }
        let came = self.to_one.len() - before;
        let sent = match self.to_one.is_empty() {
            true => 0,
            false => self.one.tx_burst(&mut self.pool, &mut self.to_one)?,
        };
        let taken = self.one.rx_burst(&mut self.pool, &mut self.received, BURST)?;
        self.to_other.extend(self.received.drain(..).map(forward));
        if !self.to_other.is_empty() {
            self.other.tx_burst(&mut self.pool, &mut self.to_other)?;
        }
        Ok(came + sent + taken > 0)
    }

    /// Runs until `stop` is readable.
    ///
    /// # Errors
    /// When a port is of no more use.
    pub fn run(&mut self, stop: BorrowedFd<'_>) -> io::Result<()> {
        let mut worked_ns = sys::clock_monotonic_ns();
        let mut looked_ns = worked_ns;
        loop {
            let moved = self.step()?;
            let now_ns = sys::clock_monotonic_ns();
            if moved {
                worked_ns = now_ns;
            }
            let idle = now_ns - worked_ns >= SPIN_NS;
            if idle || now_ns - looked_ns >= LOOK_NS {
                if self.look(stop, idle) {
                    return Ok(());
                }
                looked_ns = sys::clock_monotonic_ns();
                if idle {
                    worked_ns = looked_ns;
                }
            }
        }
    }

    /// Looks at the descriptors, and sleeps on them if there is nothing to do. Whether to stop.
    fn look(&mut self, stop: BorrowedFd<'_>, idle: bool) -> bool {
        let sleeps = idle && self.one.prepare_sleep() && self.other.prepare_sleep();
        let fds = [stop, self.one.wait_fd(), self.other.wait_fd()].map(|fd| fd.as_raw_fd());
        let entry = |fd: RawFd| PollFd { fd, events: libc::POLLIN, revents: 0 };
        let mut entries = fds.map(entry);
        let timeout = if sleeps { None } else { Some(std::time::Duration::ZERO) };
        // A signal ends the wait early.
        let ready = sys::ppoll(&mut entries, timeout).is_ok_and(|ready| ready > 0);
        self.one.awake();
        self.other.awake();
        if ready && entries[1].revents != 0 {
            self.one.handle_ready();
        }
        if ready && entries[2].revents != 0 {
            self.other.handle_ready();
        }
        ready && entries[0].revents != 0
    }

    /// One line for each port: what it is.
    pub fn describe(&self) -> [String; 2] {
        [self.one.describe(), self.other.describe()]
    }

    /// What happened: on both ports, on the way back and on the way there.
    pub fn counters(&self) -> ([PortCounters; 2], FaultCounters, FaultCounters) {
        let (back, there) = self.other.fault_counters();
        ([self.one.counters(), self.other.counters()], there, back)
    }
}

/// A received frame as one to be sent. The path has cut superframes and finished checksums on the
/// way to `one`; on the way to the path they are as they came.
fn forward(frame: RxFrame) -> TxFrame {
    // The place of the checksum is found again by whoever finishes it.
    let unfinished = frame.checksum_valid.then_some(PartialChecksum { start: 0, offset: 0 });
    TxFrame {
        frame: frame.frame,
        offset: frame.offset,
        len: frame.len,
        checksum: unfinished,
        segment_size: frame.segment_size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::TX_HEADROOM;
    use crate::wire::{self, WIRE_LINES, Wire};
    use haypile_shm::Doorbell;
    use std::os::fd::{AsFd, OwnedFd};

    const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

    fn send(port: &mut Wire, pool: &mut FramePool, fill: u8) {
        let mut frame = pool.alloc().unwrap();
        pool.bytes_mut(&mut frame)[TX_HEADROOM..TX_HEADROOM + 60].fill(fill);
        let mut frames = vec![TxFrame::new(frame, 60)];
        port.tx_burst(pool, &mut frames).unwrap();
    }

    /// Sleeps until a frame comes, without a time-out that would hide a lost wake-up.
    fn receive(port: &mut Wire, pool: &mut FramePool) -> u8 {
        let mut out = Vec::new();
        while port.rx_burst(pool, &mut out, 1).unwrap() == 0 {
            if port.prepare_sleep() {
                let fd = port.wait_fd().as_raw_fd();
                let mut entry = [PollFd { fd, events: libc::POLLIN, revents: 0 }];
                let _: sys::Result<usize> = sys::ppoll(&mut entry, None);
                port.handle_ready();
            }
            port.awake();
        }
        let frame = out.remove(0);
        let first = frame.bytes(pool)[0];
        pool.free(frame.frame);
        first
    }

    #[test]
    fn frames_cross_both_ways_with_sleeps_between_until_it_is_stopped() {
        let (one, mut left) = wire::pair(1500, MACS, WIRE_LINES, true).unwrap();
        let (other, mut right) = wire::pair(1500, MACS, WIRE_LINES, true).unwrap();
        let spec = "delay=1ms".parse().unwrap();
        let mut join = Join::new(Box::new(one), Box::new(other), &spec, 1).unwrap();
        let (stop, told) = Doorbell::pair().unwrap();
        let told = OwnedFd::from(told.into_fd());
        let runner = std::thread::spawn(move || join.run(told.as_fd()).map(|()| join.counters()));
        let mut pool = FramePool::new(8, 2048).unwrap();
        for round in 0..50 {
            send(&mut left, &mut pool, round);
            assert_eq!(receive(&mut right, &mut pool), round);
            send(&mut right, &mut pool, 100 + round);
            assert_eq!(receive(&mut left, &mut pool), 100 + round);
        }
        stop.ring().unwrap();
        let (ports, there, back) = runner.join().unwrap().unwrap();
        assert_eq!((there.frames, back.frames), (50, 50));
        assert_eq!((ports[0].rx_frames, ports[1].tx_frames), (50, 50));
    }
}
