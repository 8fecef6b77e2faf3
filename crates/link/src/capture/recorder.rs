//! Owns the path from the port's thread to the file: a bounded buffer that the port's thread fills
//! and a writer thread empties. The port's thread never waits for the file: it holds the lock for
//! copies alone, and a full buffer costs the capture frames, not the data path. Called by
//! `capture.rs` only.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use super::pcapng::{self, Direction};
use super::{CaptureOptions, CaptureReport, StopReason};
use crate::offload;

/// The writer looks for a partly filled buffer this often.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// From this much on the writer is woken at once.
const WAKE_LEN: usize = 256 * 1024;

/// What both threads share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// The blocks not yet written, and what is known of the capture.
#[derive(Debug)]
pub(super) struct State {
    buffer: Vec<u8>,
    snap_len: usize,
    limit_bytes: u64,
    report: CaptureReport,
}

impl State {
    /// Whether frames are still taken.
    pub(super) fn is_running(&self) -> bool {
        self.report.stopped.is_none()
    }

    pub(super) fn report(&self) -> &CaptureReport {
        &self.report
    }

    /// Appends the frames of a burst, in order, until one does not fit. Nothing counts before
    /// [`State::keep`].
    pub(super) fn append<'a>(
        &mut self,
        time_ns: u64,
        direction: Direction,
        frames: impl Iterator<Item = Recorded<'a>>,
    ) -> Burst {
        let mut burst = Burst { start: self.buffer.len(), recorded: 0, beyond: Beyond::Nothing };
        for Recorded { bytes: frame, may_lack_checksum } in frames {
            let captured = &frame[..frame.len().min(self.snap_len)];
            let block_len = pcapng::packet_block_len(captured.len());
            let burst_len = self.buffer.len() - burst.start + block_len;
            if self.report.bytes + burst_len as u64 > self.limit_bytes {
                burst.beyond = Beyond::Limit;
                break;
            }
            if self.buffer.len() + block_len > self.buffer.capacity() {
                burst.beyond = Beyond::Buffer;
                break;
            }
            let start = self.buffer.len() + pcapng::PACKET_DATA_AT;
            pcapng::packet(&mut self.buffer, time_ns, direction, captured, frame.len() as u32);
            if may_lack_checksum {
                finish_checksum(frame, &mut self.buffer[start..start + captured.len()]);
            }
            burst.recorded += 1;
        }
        burst
    }

    /// Settles a burst of which the first `passed` frames did pass: the others' blocks go again.
    pub(super) fn keep(&mut self, burst: &Burst, passed: usize) {
        let kept = burst.recorded.min(passed);
        let mut end = burst.start;
        for _ in 0..kept {
            end += pcapng::block_len_at(&self.buffer, end);
        }
        self.buffer.truncate(end);
        self.report.frames += kept as u64;
        self.report.bytes += (end - burst.start) as u64;
        let missing = (passed - kept) as u64;
        match burst.beyond {
            Beyond::Limit if missing > 0 => self.report.stopped = Some(StopReason::ByteLimit),
            Beyond::Buffer => self.report.lost_frames += missing,
            Beyond::Limit | Beyond::Nothing => {}
        }
    }
}

/// Writes into the recorded part of a frame the transport checksum that the whole frame should have.
fn finish_checksum(frame: &[u8], recorded: &mut [u8]) {
    if let Some((at, checksum)) = offload::right_checksum(frame)
        && let Some(place) = recorded.get_mut(at..at + 2)
    {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
}

/// A frame to be recorded.
#[derive(Copy, Clone, Debug)]
pub(super) struct Recorded<'a> {
    pub(super) bytes: &'a [u8],
    /// Its transport checksum may be unfinished.
    pub(super) may_lack_checksum: bool,
}

/// The blocks of one burst at the end of the buffer.
#[derive(Debug)]
pub(super) struct Burst {
    start: usize,
    recorded: usize,
    beyond: Beyond,
}

/// What the first frame that was not recorded ran into.
#[derive(Debug)]
enum Beyond {
    Nothing,
    Limit,
    Buffer,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the buffer whole: blocks are appended by code that cannot panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the capture for this reason, unless it has one already.
    pub(super) fn stop(&self, reason: StopReason) {
        self.lock().report.stopped.get_or_insert(reason);
        self.wake.notify_one();
    }

    /// Unlocks after a burst; wakes the writer when enough waits for it or the capture has ended.
    pub(super) fn unlock(&self, state: MutexGuard<'_, State>, burst: &Burst) {
        let crossed = burst.start < WAKE_LEN && state.buffer.len() >= WAKE_LEN;
        let ended = !state.is_running();
        drop(state);
        if crossed || ended {
            self.wake.notify_one();
        }
    }
}

/// Starts the writer thread. The file's header is counted against the byte limit.
pub(super) fn start(
    output: Box<dyn Write + Send>,
    interface_name: &str,
    options: &CaptureOptions,
) -> io::Result<(Arc<Shared>, JoinHandle<()>)> {
    let header = pcapng::header(interface_name, options.snap_len);
    let fixed_len = (header.len() + pcapng::STATISTICS_LEN) as u64;
    if fixed_len > options.limit_bytes || header.len() > options.buffer_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the capture's limit leaves no room for the file's header; raise it",
        ));
    }
    let mut buffer = Vec::with_capacity(options.buffer_bytes);
    buffer.extend_from_slice(&header);
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            buffer,
            snap_len: options.snap_len as usize,
            limit_bytes: options.limit_bytes,
            report: CaptureReport { bytes: fixed_len, ..CaptureReport::default() },
        }),
        wake: Condvar::new(),
    });
    let for_writer = Arc::clone(&shared);
    let spare = Vec::with_capacity(options.buffer_bytes);
    let writer = thread::Builder::new()
        .name("capture".to_owned())
        .spawn(move || write_all(&for_writer, output, spare))?;
    Ok((shared, writer))
}

/// The writer thread: empties the buffer until the capture has ended, then writes the last block.
fn write_all(shared: &Shared, mut output: Box<dyn Write + Send>, mut spare: Vec<u8>) {
    loop {
        let ended = {
            let mut state = shared.lock();
            if state.is_running() && state.buffer.len() < WAKE_LEN {
                state = shared
                    .wake
                    .wait_timeout(state, FLUSH_INTERVAL)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            std::mem::swap(&mut state.buffer, &mut spare);
            !state.is_running()
        };
        let written = output.write_all(&spare).and_then(|()| output.flush());
        spare.clear();
        if let Err(error) = written {
            shared.lock().report.fail(&error);
            return;
        }
        if ended {
            break;
        }
    }
    let report = shared.lock().report.clone();
    let seen = report.frames + report.lost_frames;
    let last = pcapng::statistics(now_ns(), seen, report.lost_frames);
    if let Err(error) = output.write_all(&last).and_then(|()| output.flush()) {
        shared.lock().report.fail(&error);
    }
}

/// Nanoseconds since 1970; 0 when the clock stands before that.
pub(super) fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
