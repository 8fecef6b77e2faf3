//! Owns the bad path: [`Fault`] wraps any port and loses, doubles, reorders, damages, delays and
//! slows down what passes, each direction on its own, from a seed. Called by the service
//! (`--fault SPEC`) and by `haypile join`. Superframes are cut and checksums finished before
//! anything happens to them, so that faults hit single frames, as on a network. Read
//! `fault/spec.rs` for what can be asked for, `fault/path.rs` for what becomes of a frame.
//!
//! Everything that depends on time takes it from one [`Clock`]. While its user sleeps, a timer
//! descriptor stands for the frame that is due next.

mod path;
mod spec;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use haypile_shm::pool::FramePool;
use haypile_shm::sys::{self, Fd};

use crate::error::LinkError;
use crate::offload;
use crate::port::{Features, Port, PortCounters, RxFrame, TX_HEADROOM, TxFrame};
use crate::sys::{set_timer, timer_descriptor};
use path::Path;

pub use path::FaultCounters;
pub use spec::{FaultSpec, PathSpec};

/// Frames handed to the port inside in one call.
const BURST: usize = 64;
/// When a port that takes no more is tried again at the latest, while its user sleeps.
const RETRY_NS: u64 = 1_000_000;
/// The longest frame that one segment can be: the largest IP packet with its Ethernet header.
const FRAME_MAX: usize = 65_535 + 18;
/// Pieces of one superframe at most: with fewer bytes each it is nonsense, and the rest is dropped.
const PIECES_MAX: usize = 1024;

/// Where the time comes from.
pub trait Clock: Send {
    /// Nanoseconds since some moment; never less than before.
    fn now_ns(&self) -> u64;
}

/// The system's monotonic clock.
#[derive(Copy, Clone, Debug, Default)]
pub struct Monotonic;

impl Clock for Monotonic {
    fn now_ns(&self) -> u64 {
        sys::clock_monotonic_ns()
    }
}

/// A port behind a bad path.
#[derive(Debug)]
pub struct Fault<P: Port, C: Clock = Monotonic> {
    port: P,
    clock: C,
    description: String,
    /// From the port to its user, and back.
    incoming: Path,
    outgoing: Path,
    /// Taken from the port, not yet on the path.
    received: Vec<RxFrame>,
    /// Due, not yet taken by the port.
    to_send: Vec<TxFrame>,
    /// One frame while it is cut out of a superframe.
    scratch: Vec<u8>,
    /// Holds the port's descriptor and the timer.
    epoll: Fd,
    timer: File,
    /// The timer will go, or has gone.
    armed: bool,
}

impl<P: Port> Fault<P> {
    /// Puts a port behind a path. The same `seed` and frames at the same times give the same
    /// faults.
    ///
    /// # Errors
    /// When the process may open no more descriptors.
    pub fn new(port: P, spec: &FaultSpec, seed: u64) -> Result<Fault<P>, LinkError> {
        Fault::with_clock(port, spec, seed, Monotonic)
    }
}

impl<P: Port, C: Clock> Fault<P, C> {
    /// As [`Fault::new`], by another clock.
    ///
    /// # Errors
    /// As [`Fault::new`].
    pub fn with_clock(
        port: P,
        spec: &FaultSpec,
        seed: u64,
        clock: C,
    ) -> Result<Fault<P, C>, LinkError> {
        let fail = |error: io::Error| LinkError::new("make a path with faults", error);
        let epoll = sys::epoll_create().map_err(|errno| fail(errno.into()))?;
        let timer = File::from(timer_descriptor().map_err(fail)?);
        for fd in [port.wait_fd().as_raw_fd(), timer.as_raw_fd()] {
            sys::epoll_ctl(epoll.raw(), libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN as u32, 0)
                .map_err(|errno| fail(errno.into()))?;
        }
        Ok(Fault {
            port,
            clock,
            description: match *spec == FaultSpec::default() {
                true => "no faults".to_string(),
                false => format!("fault {spec}, seed {seed}"),
            },
            incoming: Path::new(spec.incoming, seed),
            outgoing: Path::new(spec.outgoing, !seed),
            received: Vec::new(),
            to_send: Vec::new(),
            scratch: vec![0; FRAME_MAX],
            epoll,
            timer,
            armed: false,
        })
    }

    /// What happened to frames from the port, and to frames to it.
    pub fn fault_counters(&self) -> (FaultCounters, FaultCounters) {
        (self.incoming.counters(), self.outgoing.counters())
    }

    /// The port inside.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// Hands what is due to the port.
    fn send_due(&mut self, pool: &mut FramePool, now_ns: u64) -> io::Result<()> {
        // Bounded: what is due was there before.
        loop {
            while self.to_send.len() < BURST
                && self.outgoing.is_due(now_ns)
                && let Some(mut frame) = pool.alloc()
            {
                let len = self.outgoing.take(room_of(pool, &mut frame));
                match len {
                    Some(len) => self.to_send.push(TxFrame::new(frame, len as u32)),
                    None => pool.free(frame),
                }
            }
            let waiting = self.to_send.len();
            if waiting == 0 || self.port.tx_burst(pool, &mut self.to_send)? < waiting {
                return Ok(());
            }
        }
    }

    /// When something is to be done next, without anything coming.
    fn next_due(&self, now_ns: u64) -> Option<u64> {
        let retry = (!self.to_send.is_empty()).then_some(now_ns + RETRY_NS);
        [self.incoming.next_due(), self.outgoing.next_due(), retry].into_iter().flatten().min()
    }

    fn arm(&mut self, after_ns: Option<u64>) {
        if after_ns.is_some() || self.armed {
            // Fails only for times that are none.
            self.armed = set_timer(self.timer.as_fd(), after_ns.unwrap_or(0)).is_ok();
        }
        self.armed &= after_ns.is_some();
    }
}

/// Where a frame goes in its chunk.
fn room_of<'a>(pool: &'a mut FramePool, frame: &mut haypile_shm::Frame) -> &'a mut [u8] {
    pool.bytes_mut(frame).get_mut(TX_HEADROOM..).unwrap_or_default()
}

/// Puts a frame on a path: cut, and with its checksum finished.
fn put(path: &mut Path, now_ns: u64, frame: &[u8], cut: Cut, scratch: &mut [u8]) {
    if cut.segment_size == 0 {
        let Some(whole) = scratch.get_mut(..frame.len()) else { return };
        whole.copy_from_slice(frame);
        if cut.unfinished {
            offload::complete_checksum(whole);
        }
        return path.send(now_ns, whole);
    }
    for index in 0..PIECES_MAX {
        match offload::segment(frame, cut.segment_size, index, scratch) {
            Some(len) => path.send(now_ns, &scratch[..len]),
            None => return,
        }
    }
}

/// What is to be done to a frame before it is one of a network.
#[derive(Copy, Clone)]
struct Cut {
    segment_size: u16,
    unfinished: bool,
}

impl<P: Port, C: Clock> Port for Fault<P, C> {
    fn rx_burst(
        &mut self,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        max: usize,
    ) -> io::Result<usize> {
        let now_ns = self.clock.now_ns();
        self.send_due(pool, now_ns)?;
        let mut received = std::mem::take(&mut self.received);
        let result = self.port.rx_burst(pool, &mut received, max);
        for frame in received.drain(..) {
            // A checksum that is valid may be valid because nobody has finished it.
            let cut = Cut { segment_size: frame.segment_size, unfinished: frame.checksum_valid };
            put(&mut self.incoming, now_ns, frame.bytes(pool), cut, &mut self.scratch);
            pool.free(frame.frame);
        }
        self.received = received;
        result?;
        let before = out.len();
        while out.len() - before < max
            && self.incoming.is_due(now_ns)
            && let Some(mut frame) = pool.alloc()
        {
            let offset = TX_HEADROOM as u16;
            match self.incoming.take(room_of(pool, &mut frame)) {
                Some(len) => out.push(RxFrame {
                    frame,
                    offset,
                    len: len as u32,
                    checksum_valid: false,
                    segment_size: 0,
                }),
                None => pool.free(frame),
            }
        }
        Ok(out.len() - before)
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Vec<TxFrame>) -> io::Result<usize> {
        let now_ns = self.clock.now_ns();
        let count = frames.len();
        for frame in frames.drain(..) {
            let unfinished = frame.checksum.is_some();
            let cut = Cut { segment_size: frame.segment_size, unfinished };
            put(&mut self.outgoing, now_ns, frame.bytes(pool), cut, &mut self.scratch);
            pool.free(frame.frame);
        }
        self.send_due(pool, now_ns)?;
        Ok(count)
    }

    fn features(&self) -> Features {
        self.port.features()
    }

    fn mtu(&self) -> u16 {
        self.port.mtu()
    }

    fn mac(&self) -> [u8; 6] {
        self.port.mac()
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn prepare_sleep(&mut self) -> bool {
        let now_ns = self.clock.now_ns();
        let due = self.next_due(now_ns);
        if due.is_some_and(|due| due <= now_ns) || !self.port.prepare_sleep() {
            return false;
        }
        self.arm(due.map(|due| due - now_ns));
        true
    }

    fn awake(&mut self) {
        self.port.awake();
    }

    fn handle_ready(&mut self) {
        // Nothing to read while the timer has not gone.
        drop((&self.timer).read(&mut [0; 8]));
        self.port.handle_ready();
    }

    fn counters(&self) -> PortCounters {
        self.port.counters()
    }

    fn more_counters(&self) -> Vec<(&'static str, u64)> {
        let mut all = self.port.more_counters();
        all.extend(self.incoming.counters().named(true));
        all.extend(self.outgoing.counters().named(false));
        all
    }

    fn describe(&self) -> String {
        format!("{}; {}", self.port.describe(), self.description)
    }
}
