//! One direction of a bad path: which frames get on it, what becomes of them, and when they come
//! out. Pure: time is an argument, randomness comes from the seed. Called by `fault.rs`.
//!
//! The order of a frame's fate: lost; waits for the rate, or is dropped because too many wait;
//! damaged; held back to be overtaken; travels. A second copy follows directly behind.

use std::collections::VecDeque;

use haypile_engine::random::Random;

use super::spec::PathSpec;
use crate::port::ETHERNET_HEADER_LEN;

/// How many frames overtake one that is reordered, and how long it waits for them.
const OVERTAKEN_BY: u32 = 3;
const HELD_NS: u64 = 5_000_000;
/// Frames on the path at most, whatever the delay: 64 Ki of 1500 bytes are 98 MB.
const FRAMES_MAX: usize = 1 << 16;
/// Frames that wait for the rate, unless told otherwise.
const QUEUE_DEFAULT: u32 = 1000;

/// What happened on one direction. All count upwards.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct FaultCounters {
    /// Frames that came to the path.
    pub frames: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Held back to be overtaken.
    pub reordered: u64,
    /// With a bit flipped.
    pub corrupted: u64,
    /// Dropped because too many waited.
    pub queue_dropped: u64,
}

/// A frame on the path.
#[derive(Debug)]
struct Travelling {
    due_ns: u64,
    bytes: Vec<u8>,
}

/// A frame that is held back.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    /// How many frames have still to overtake it.
    left: u32,
    /// When it has waited long enough.
    until_ns: u64,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Path {
    spec: PathSpec,
    random: Random,
    travelling: VecDeque<Travelling>,
    held: Option<Held>,
    /// When frames leave that still wait for the rate.
    leaving: VecDeque<u64>,
    /// Buffers of frames that have arrived.
    spare: Vec<Vec<u8>>,
    counters: FaultCounters,
}

impl FaultCounters {
    /// Every counter with its name.
    pub fn named(&self, incoming: bool) -> [(&'static str, u64); 6] {
        let FaultCounters { frames, lost, duplicated, reordered, corrupted, queue_dropped } = *self;
        let counts = [frames, lost, duplicated, reordered, corrupted, queue_dropped];
        let names = if incoming { NAMES_RX } else { NAMES_TX };
        std::array::from_fn(|index| (names[index], counts[index]))
    }
}

const NAMES_RX: [&str; 6] = [
    "fault_rx_frames",
    "fault_rx_lost",
    "fault_rx_duplicated",
    "fault_rx_reordered",
    "fault_rx_corrupted",
    "fault_rx_queue_dropped",
];
const NAMES_TX: [&str; 6] = [
    "fault_tx_frames",
    "fault_tx_lost",
    "fault_tx_duplicated",
    "fault_tx_reordered",
    "fault_tx_corrupted",
    "fault_tx_queue_dropped",
];

impl Path {
    pub(super) fn new(spec: PathSpec, seed: u64) -> Path {
        Path {
            spec,
            random: Random::new(seed),
            travelling: VecDeque::new(),
            held: None,
            leaving: VecDeque::new(),
            spare: Vec::new(),
            counters: FaultCounters::default(),
        }
    }

    pub(super) fn counters(&self) -> FaultCounters {
        self.counters
    }

    /// A complete frame comes to the path. Each draws the same numbers whatever becomes of it, so
    /// that a change of one fault does not move the others.
    pub(super) fn send(&mut self, now_ns: u64, frame: &[u8]) {
        self.counters.frames += 1;
        let [lost, twice, damaged, late] = [
            self.spec.loss_ppm,
            self.spec.duplicate_ppm,
            self.spec.corrupt_ppm,
            self.spec.reorder_ppm,
        ]
        .map(|ppm| self.chance(ppm));
        let (bit, jitter) =
            (self.random.next_u64(), self.random.below(self.spec.jitter_ns.saturating_add(1)));
        if lost {
            self.counters.lost += 1;
            return;
        }
        let full = self.travelling.len() >= FRAMES_MAX;
        let Some(left_ns) = self.leave(now_ns, frame.len()).filter(|_| !full) else {
            self.counters.queue_dropped += 1;
            return;
        };
        let due_ns = left_ns + self.spec.delay_ns + jitter;
        let mut bytes = self.copy(frame);
        if damaged && is_ip(&bytes) {
            self.counters.corrupted += 1;
            flip(&mut bytes, bit);
        }
        let second = twice.then(|| self.copy(&bytes));
        if late && self.held.is_none() {
            self.counters.reordered += 1;
            let until_ns = due_ns.saturating_add(HELD_NS);
            self.held = Some(Held { bytes, left: OVERTAKEN_BY, until_ns });
        } else {
            self.travel(due_ns, bytes);
            self.overtake(due_ns);
        }
        if let Some(second) = second {
            self.counters.duplicated += 1;
            self.travel(due_ns, second);
        }
    }

    /// When the frame has left, at the path's rate; `None` when too many wait already.
    fn leave(&mut self, now_ns: u64, len: usize) -> Option<u64> {
        if self.spec.rate_bits == 0 {
            return Some(now_ns);
        }
        while self.leaving.front().is_some_and(|left| *left <= now_ns) {
            self.leaving.pop_front();
        }
        let room = if self.spec.queue_frames == 0 { QUEUE_DEFAULT } else { self.spec.queue_frames };
        if self.leaving.len() >= room as usize {
            return None;
        }
        let takes_ns = (len as u128 * 8_000_000_000).div_ceil(self.spec.rate_bits.into()) as u64;
        let left_ns = self.leaving.back().copied().unwrap_or(now_ns).max(now_ns) + takes_ns;
        self.leaving.push_back(left_ns);
        Some(left_ns)
    }

    /// A frame sets out, behind all others.
    fn travel(&mut self, due_ns: u64, bytes: Vec<u8>) {
        let last = self.travelling.back().map_or(0, |last| last.due_ns);
        self.travelling.push_back(Travelling { due_ns: due_ns.max(last), bytes });
    }

    /// A frame has passed the one that is held back.
    fn overtake(&mut self, due_ns: u64) {
        let Some(held) = &mut self.held else { return };
        held.left -= 1;
        if held.left == 0
            && let Some(held) = self.held.take()
        {
            self.travel(due_ns, held.bytes);
        }
    }

    /// Whether a frame is due; one that was held back for long enough is, too.
    pub(super) fn is_due(&mut self, now_ns: u64) -> bool {
        if self.held.as_ref().is_some_and(|held| held.until_ns <= now_ns)
            && let Some(held) = self.held.take()
        {
            self.travel(held.until_ns, held.bytes);
        }
        self.travelling.front().is_some_and(|first| first.due_ns <= now_ns)
    }

    /// When the next frame is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        let travelling = self.travelling.front().map(|first| first.due_ns);
        let held = self.held.as_ref().map(|held| held.until_ns);
        travelling.into_iter().chain(held).min()
    }

    /// Takes the first frame into `out`; gives its length. `None`: there is none, or it was longer
    /// than `out` and is dropped.
    pub(super) fn take(&mut self, out: &mut [u8]) -> Option<usize> {
        let Travelling { bytes, .. } = self.travelling.pop_front()?;
        let len = bytes.len();
        let fits = out.get_mut(..len).map(|out| out.copy_from_slice(&bytes));
        self.spare.push(bytes);
        fits.map(|()| len)
    }

    /// A frame in a buffer of its own, an old one if there is any.
    fn copy(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(frame);
        bytes
    }

    fn chance(&mut self, ppm: u32) -> bool {
        self.random.below(1_000_000) < u64::from(ppm)
    }
}

fn is_ip(frame: &[u8]) -> bool {
    frame.len() > ETHERNET_HEADER_LEN && matches!(frame[12..14], [0x08, 0x00] | [0x86, 0xdd])
}

/// Flips one bit behind the Ethernet header.
fn flip(frame: &mut [u8], random: u64) {
    let bits = (frame.len() - ETHERNET_HEADER_LEN) as u64 * 8;
    let bit = (random % bits) as usize;
    frame[ETHERNET_HEADER_LEN + bit / 8] ^= 1 << (bit % 8);
}
