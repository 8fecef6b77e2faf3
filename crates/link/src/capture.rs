//! Owns capturing: [`Capture`] wraps any port and, while switched on, writes what passes to a pcapng
//! file with nanosecond times and directions. Called by the service around its port; costs one
//! branch a burst while off. A full disk, a slow disk or the byte limit ends or thins the capture,
//! never the traffic. Superframes are recorded whole; checksums that their senders left to the link
//! are finished in the recorded copy, so that a reader finds no errors. Read
//! `capture/recorder.rs` for that, `capture/pcapng.rs` for the format.

mod pcapng;
mod recorder;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;

use haypile_shm::pool::FramePool;

use crate::port::{Features, Port, PortCounters, RxFrame, TxFrame};
use pcapng::Direction;
use recorder::{Recorded, Shared, State};

/// How much a capture may take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CaptureOptions {
    /// Bytes kept of each frame, from its start.
    pub snap_len: u32,
    /// The file never grows beyond this many bytes.
    pub limit_bytes: u64,
    /// Bytes that may wait for the file (twice this is allocated); what comes while it is full is
    /// counted as lost.
    pub buffer_bytes: usize,
}

impl Default for CaptureOptions {
    /// Whole frames, 1 GiB at most, 4 MiB waiting.
    fn default() -> CaptureOptions {
        CaptureOptions { snap_len: 262_144, limit_bytes: 1 << 30, buffer_bytes: 4 << 20 }
    }
}

/// Why a capture ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// It was stopped, or its port was dropped.
    Requested,
    /// The next frame would have gone beyond the byte limit.
    ByteLimit,
    /// The file could not be written: the system's words.
    WriteFailed(String),
}

/// How a capture stands, or stood when it ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CaptureReport {
    /// Frames recorded.
    pub frames: u64,
    /// Frames that passed while the buffer was full.
    pub lost_frames: u64,
    /// Bytes of the file, those still in memory and the file's last block included.
    pub bytes: u64,
    /// Why it ended; `None` while it runs.
    pub stopped: Option<StopReason>,
}

impl CaptureReport {
    /// A failed write is the reason that counts: the file is not whole.
    fn fail(&mut self, error: &io::Error) {
        self.stopped = Some(StopReason::WriteFailed(error.to_string()));
    }
}

/// A capture being written.
#[derive(Debug)]
struct Recording {
    shared: Arc<Shared>,
    writer: JoinHandle<()>,
}

impl Recording {
    /// Locks the buffer for a burst; `None` when the capture has ended by itself.
    fn lock(&self) -> Option<(&Shared, MutexGuard<'_, State>)> {
        let state = self.shared.lock();
        state.is_running().then_some((&*self.shared, state))
    }
}

/// A capture that takes no more frames; its file is complete after [`FinishedCapture::wait`].
#[derive(Debug)]
pub struct FinishedCapture {
    recording: Recording,
}

impl FinishedCapture {
    /// Waits until the file is complete (not for the port's thread to do) and reports.
    pub fn wait(self) -> CaptureReport {
        // A writer that panicked has nothing to add to the report.
        let _ = self.recording.writer.join();
        self.recording.shared.lock().report().clone()
    }
}

/// A port that can record what passes through it.
#[derive(Debug)]
pub struct Capture<P: Port> {
    port: P,
    recording: Option<Recording>,
}

impl<P: Port> Capture<P> {
    /// Wraps a port; nothing is recorded yet.
    pub fn new(port: P) -> Capture<P> {
        Capture { port, recording: None }
    }

    /// Starts recording to `output`, which a thread of its own writes. A capture that still ran is
    /// stopped and returned.
    ///
    /// # Errors
    /// When the limits leave no room for the file's header, or the thread cannot be started.
    pub fn start(
        &mut self,
        output: impl Write + Send + 'static,
        interface_name: &str,
        options: &CaptureOptions,
    ) -> io::Result<Option<FinishedCapture>> {
        let (shared, writer) = recorder::start(Box::new(output), interface_name, options)?;
        let previous = self.stop();
        self.recording = Some(Recording { shared, writer });
        Ok(previous)
    }

    /// Stops recording, without waiting for the file; `None` when nothing was started. Also fetches
    /// the report of a capture that ended by itself.
    pub fn stop(&mut self) -> Option<FinishedCapture> {
        let recording = self.recording.take()?;
        recording.shared.stop(StopReason::Requested);
        Some(FinishedCapture { recording })
    }

    /// How the capture started last stands; `None` before the first one and after [`Capture::stop`].
    pub fn report(&self) -> Option<CaptureReport> {
        self.recording.as_ref().map(|recording| recording.shared.lock().report().clone())
    }

    /// The port inside.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// The port inside, to be used past the capture.
    pub fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }
}

impl<P: Port> Drop for Capture<P> {
    fn drop(&mut self) {
        // The file is to be whole when the service has ended.
        if let Some(finished) = self.stop() {
            finished.wait();
        }
    }
}

impl<P: Port> Port for Capture<P> {
    fn rx_burst(
        &mut self,
        pool: &mut FramePool,
        out: &mut Vec<RxFrame>,
        max: usize,
    ) -> io::Result<usize> {
        let first = out.len();
        let result = self.port.rx_burst(pool, out, max);
        let received = &out[first..];
        if let Some((shared, mut state)) = self.recording.as_ref().and_then(Recording::lock)
            && !received.is_empty()
        {
            let frames = received.iter().map(|frame| Recorded {
                bytes: frame.bytes(pool),
                may_lack_checksum: frame.checksum_valid,
            });
            let burst = state.append(recorder::now_ns(), Direction::Inbound, frames);
            state.keep(&burst, received.len());
            shared.unlock(state, &burst);
        }
        result
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Vec<TxFrame>) -> io::Result<usize> {
        let Some((shared, mut state)) = self.recording.as_ref().and_then(Recording::lock) else {
            return self.port.tx_burst(pool, frames);
        };
        // Frames are recorded before they are sent, because then they are gone; those that the port
        // does not take come by again, so their blocks are removed. The lock is held meanwhile:
        // nobody but the writer thread waits for it.
        let waiting = frames.len();
        let contents = frames.iter().map(|frame| Recorded {
            bytes: frame.bytes(pool),
            may_lack_checksum: frame.checksum.is_some(),
        });
        let burst = state.append(recorder::now_ns(), Direction::Outbound, contents);
        let result = self.port.tx_burst(pool, frames);
        state.keep(&burst, waiting - frames.len());
        shared.unlock(state, &burst);
        result
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
        self.port.wait_fd()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.port.prepare_sleep()
    }

    fn awake(&mut self) {
        self.port.awake();
    }

    fn handle_ready(&mut self) {
        self.port.handle_ready();
    }

    fn more_counters(&self) -> Vec<(&'static str, u64)> {
        self.port.more_counters()
    }

    fn counters(&self) -> PortCounters {
        self.port.counters()
    }

    fn describe(&self) -> String {
        self.port.describe()
    }

    fn interface(&self) -> u32 {
        self.port.interface()
    }
}
