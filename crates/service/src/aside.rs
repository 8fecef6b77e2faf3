//! What crosses between servers on the rings of frames, in order with the frames, and is none: buckets on their
//! way, notices that came too late to the old server of a connection, and answers of those who steer.
//!
//! [`Inward`] takes it (`moving` in the product), [`Outward`] is what a turn has of it beside the shard's own, and
//! [`Outboxes`] keep what may not be lost while a ring is full. Used by `switch`; read `moving` for what it means.

use std::collections::VecDeque;

use haypile_engine::NetworkUpdate;
use haypile_engine::control::names::ServerNumber;
use haypile_engine::migration::protocol::MoveMessage;
use haypile_engine::steering::BUCKETS;
use haypile_engine::{Instant, Shard, Streams};

use crate::frame_peers::{FramePeers, PushFrame};
use crate::managers::wire::{FlowsMoved, Incoming};
use crate::roles::ProcessNumber;

/// Bytes of frames kept behind what may not be lost, for each server; what is more is dropped.
const BEHIND_MAX: usize = 1 << 20;

/// What a record is that is no frame.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Aside {
    /// A `MoveMessage` with what stands beside it.
    Move,
    /// A request of an application about a connection that has moved to the receiver.
    Notice,
    /// The sender steers by a move that the receiver has announced: a [`Switched`].
    Switched,
}

/// Who says something on a ring of frames.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Sayer {
    /// Its process.
    pub process: ProcessNumber,
    /// The transport server in it.
    pub server: Option<ServerNumber>,
}

/// Takes what comes in: bytes of streams, and all that is said between the frames.
pub trait Inward: Streams {
    /// False if it means nothing, or may not be said.
    fn handle_aside(
        &mut self,
        now: Instant,
        from: Sayer,
        what: Aside,
        bytes: &[u8],
        shard: &mut Shard,
    ) -> bool {
        let _ = (now, from, what, bytes, shard);
        false
    }
}

/// What a turn has for others, to go behind the frames that it has for them.
#[derive(Debug, Default)]
pub struct Outward {
    /// Moves that others have told us of: each is answered once we steer by it.
    pub heard: VecDeque<(ProcessNumber, FlowsMoved)>,
    /// For the servers that connections have moved to.
    pub notices: VecDeque<(ServerNumber, Vec<u8>)>,
    /// Who has yet to hear from a link server which moves it knows.
    pub to_tell: Vec<ProcessNumber>,
}

impl Outward {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.heard.is_empty() && self.notices.is_empty() && self.to_tell.is_empty()
    }
}

/// Bucket and number of a move, by which the sender steers.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Switched {
    /// Which bucket.
    pub bucket: u16,
    /// The number of the move.
    pub version: u32,
}

impl Switched {
    /// As a record.
    pub fn encode(self) -> [u8; 6] {
        let ([a, b], [c, d, e, f]) = (self.bucket.to_le_bytes(), self.version.to_le_bytes());
        [a, b, c, d, e, f]
    }

    /// From a record; `None` for what no server writes.
    pub fn decode(bytes: &[u8]) -> Option<Switched> {
        let [a, b, c, d, e, f] = *bytes else { return None };
        let bucket = u16::from_le_bytes([a, b]);
        let version = u32::from_le_bytes([c, d, e, f]);
        (usize::from(bucket) < BUCKETS && version > 0).then_some(Switched { bucket, version })
    }
}

/// Gives bytes to every decoder of what servers say to each other, on the rings of frames and of messages; for
/// fuzzing.
///
/// # Panics
/// When a value is not the same after it was written and read again: a mistake of ours.
pub fn fuzz_decode(bytes: &[u8]) {
    if let Some(switched) = Switched::decode(bytes) {
        assert_eq!(switched.encode(), bytes);
    }
    if let Ok((message, beside)) = MoveMessage::decode(bytes) {
        assert_eq!(message.encode(beside), bytes);
    }
    if let Some(update) = NetworkUpdate::decode(bytes) {
        assert_eq!(NetworkUpdate::decode(&update.encode()), Some(update));
    }
    for line in bytes.as_chunks::<64>().0 {
        let word =
            |at: usize| line.as_chunks::<8>().0.get(at).map_or(0, |word| u64::from_le_bytes(*word));
        if let Ok(message) = Incoming::decode(&std::array::from_fn(word)) {
            assert_eq!(Incoming::decode(&message.encode()), Ok(message));
        }
    }
}

/// Records that wait for room in the rings of others, in order.
#[derive(Debug, Default)]
pub struct Outboxes {
    /// By the processes that they are for.
    boxes: Vec<Outbox>,
    /// In all.
    waiting: usize,
}

#[derive(Debug, Default)]
struct Outbox {
    records: VecDeque<Waiting>,
    /// Bytes of those that may be lost.
    behind: usize,
}

#[derive(Debug)]
struct Waiting {
    tag: u64,
    bytes: Vec<u8>,
    precious: bool,
}

impl Outboxes {
    /// Hands a record over; one that is `precious` waits for room, and others behind it. False when it is lost.
    #[inline]
    pub fn push(
        &mut self,
        peers: &mut FramePeers,
        to: ProcessNumber,
        tag: u64,
        bytes: &[u8],
        precious: bool,
    ) -> bool {
        if self.waiting == 0 || !self.has(to) {
            match peers.push_frame(to, tag, bytes) {
                PushFrame::Written => return true,
                PushFrame::Full if precious => {}
                PushFrame::Full | PushFrame::Lost => return false,
            }
        }
        self.keep(to, Waiting { tag, bytes: bytes.to_vec(), precious })
    }

    /// Whether anything waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Whether something waits for a process: nothing may overtake it that counts on the order.
    #[inline]
    pub fn has(&self, process: ProcessNumber) -> bool {
        self.boxes.get(usize::from(process)).is_some_and(|one| !one.records.is_empty())
    }

    /// A process is gone, and what waited for it with it.
    pub fn forget(&mut self, process: ProcessNumber) {
        if let Some(one) = self.boxes.get_mut(usize::from(process)) {
            self.waiting -= one.records.len();
            *one = Outbox::default();
        }
    }

    /// Hands over what there is room for by now; how many records were lost for want of a receiver.
    pub fn flush(&mut self, peers: &mut FramePeers) -> u64 {
        let mut lost = 0;
        for (process, one) in self.boxes.iter_mut().enumerate() {
            while let Some(Waiting { tag, bytes, precious }) = one.records.front() {
                match peers.push_frame(process as ProcessNumber, *tag, bytes) {
                    PushFrame::Full => {
                        // It rings when there is room; if there is by now, the next turn finds it.
                        let _: bool = peers.wait_for_room(process as ProcessNumber, bytes.len());
                        break;
                    }
                    PushFrame::Written => {}
                    PushFrame::Lost => lost += 1,
                }
                if !precious {
                    one.behind -= bytes.len();
                }
                one.records.pop_front();
                self.waiting -= 1;
            }
        }
        lost
    }

    fn keep(&mut self, to: ProcessNumber, record: Waiting) -> bool {
        let place = usize::from(to);
        if place >= self.boxes.len() {
            self.boxes.resize_with(place + 1, Outbox::default);
        }
        let one = &mut self.boxes[place];
        if !record.precious {
            if one.behind + record.bytes.len() > BEHIND_MAX {
                return false;
            }
            one.behind += record.bytes.len();
        }
        one.records.push_back(record);
        self.waiting += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::peer_pair;
    use proptest::prelude::*;

    #[test]
    fn what_is_precious_waits_and_what_is_behind_it_too() {
        let mut pair = peer_pair(true);
        let (mut one, mut other) = (FramePeers::default(), FramePeers::default());
        let (end, bell) = pair.first.take().unwrap();
        one.join(1, end.1.unwrap(), bell);
        let (end, bell) = pair.second.take().unwrap();
        other.join(0, end.1.unwrap(), bell);
        let mut boxes = Outboxes::default();
        let frame = vec![7; 32 * 1024];
        let mut sent = 0;
        while boxes.push(&mut one, 1, sent, &frame, false) {
            sent += 1;
        }
        assert!(boxes.is_empty(), "a frame that finds no room is lost");
        let first = sent;
        for _ in 0..100 {
            assert!(boxes.push(&mut one, 1, sent, &frame, true));
            sent += 1;
        }
        // A little one behind would find room before the large one.
        assert!(boxes.push(&mut one, 1, sent, &[1], false));
        sent += 1;
        assert!(boxes.has(1) && !boxes.has(0));
        let lost = (0..100).filter(|_| !boxes.push(&mut one, 1, u64::MAX, &frame, false)).count();
        assert!((68..100).contains(&lost), "{lost}");
        let mut expected = 0;
        let mut room = vec![0; 64 * 1024];
        while expected < sent {
            one.flush();
            let before = expected;
            while let Some(record) = other.front_frame(0) {
                other.take_frame(0, record, &mut room);
                assert!(record.tag == expected || record.tag == u64::MAX, "{expected}");
                expected += u64::from(record.tag == expected);
            }
            other.flush();
            assert_eq!(boxes.flush(&mut one), 0);
            assert!(expected > before && expected > first - 1);
        }
        boxes.flush(&mut one);
        boxes.push(&mut one, 1, 0, &[1], true);
        one.leave(1);
        assert!(!boxes.push(&mut one, 1, 0, &[1], true), "nobody is there");
        boxes.forget(1);
        boxes.forget(9);
        assert!(boxes.is_empty());
    }

    proptest! {
        #[test]
        fn answers_survive_and_nonsense_does_not(bytes in prop::collection::vec(any::<u8>(), 0..9)) {
            if let Some(switched) = Switched::decode(&bytes) {
                prop_assert_eq!(switched.encode().to_vec(), bytes);
            }
        }

        #[test]
        fn every_answer_is_understood(bucket in 0..BUCKETS as u16, version in 1..=u32::MAX) {
            let switched = Switched { bucket, version };
            prop_assert_eq!(Switched::decode(&switched.encode()), Some(switched));
        }
    }
}
