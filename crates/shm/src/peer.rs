//! What two servers of a service share: a ring of messages and a ring of frames in each direction,
//! in one segment, and how one wakes the other. Made by the supervisor for each pair of servers that
//! talk, and made anew when one of the two is started again; opened by `service::peers` (messages)
//! and `service::frame_peers` (frames). Read `dialogue` and `record_ring` first.
//!
//! ```text
//! ring of messages, first to second    ring of messages, second to first
//! ring of frames, first to second      ring of frames, second to first      (none, or both)
//! ```
//!
//! Waking: a server has one doorbell that all its peers ring, and says in its status segment that it
//! sleeps, once for everybody who may have work for it. The argument why no wake-up is lost is that
//! of `sleep`: before it sleeps the server announces it, fences, and looks at every ring of every
//! peer and application; a peer publishes first, fences, and reads the announcement.
//!
//! The other server is not trusted: what it writes is copied and checked by the rings, and a ring
//! that is corrupt gives nothing more.

use core::sync::atomic::AtomicU32;
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::dialogue::Dialogue;
use crate::doorbell::Doorbell;
use crate::record_ring::{RecordConsumer, RecordProducer, SharedRecords, record_ring_size};
use crate::ring::{SharedRing, ring_size};
use crate::segment::Segment;
use crate::status::AppStatus;
use crate::sys::{Errno, Fd, Result};

/// Messages that each direction holds.
pub const PEER_MESSAGES: u32 = 1024;
/// Cache lines of each direction's ring of frames: 1 MiB.
pub const PEER_FRAME_LINES: u32 = 1 << 14;

/// Which of two servers: the one with the lower number is the first.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum PeerSide {
    /// The lower number.
    First,
    /// The higher number.
    Second,
}

/// The segment of two servers, as its maker holds it until both have it.
#[derive(Debug)]
pub struct PeerSegment {
    segment: Segment,
}

/// One server's end, for frames.
#[derive(Debug)]
pub struct FrameEnd {
    /// To the other server.
    pub tx: RecordProducer,
    /// From the other server.
    pub rx: RecordConsumer,
}

/// How the other server is woken.
#[derive(Debug)]
pub struct PeerBell {
    status: AppStatus,
    /// The sleep it was last rung for.
    rung: AtomicU32,
    bell: Doorbell,
}

const fn messages_len() -> usize {
    ring_size(PEER_MESSAGES)
}

const fn segment_len(frames: bool) -> usize {
    let rings = if frames { 2 * record_ring_size(PEER_FRAME_LINES) } else { 0 };
    (2 * messages_len() + rings).next_multiple_of(4096)
}

impl PeerSegment {
    /// Makes a segment for two servers, with rings of frames if they are to hand frames on. Memory
    /// is taken as it is touched.
    ///
    /// # Errors
    /// When the system gives no memory or descriptors.
    pub fn create(frames: bool) -> Result<PeerSegment> {
        Ok(PeerSegment { segment: Segment::create("haypile-peers", segment_len(frames))? })
    }

    /// The descriptor to send to both. Owned by `self`.
    pub fn fd(&self) -> RawFd {
        // `create` keeps the descriptor.
        self.segment.fd().unwrap_or(-1)
    }
}

/// Opens one end of a fresh segment.
///
/// # Errors
/// `EINVAL` when it is no such segment.
pub fn open(
    fd: impl Into<Fd>,
    side: PeerSide,
    frames: bool,
) -> Result<(Dialogue, Option<FrameEnd>)> {
    let segment = Arc::new(Segment::from_fd(fd, segment_len(frames), false)?);
    let [tx, rx] = match side {
        PeerSide::First => [0, 1],
        PeerSide::Second => [1, 0],
    };
    let ring = |number: usize| {
        let at = number * messages_len();
        SharedRing::new(Arc::clone(&segment), at, PEER_MESSAGES).ok_or(Errno::EINVAL)
    };
    let messages = Dialogue::new(ring(tx)?, ring(rx)?);
    if !frames {
        return Ok((messages, None));
    }
    let records = |number: usize| {
        let at = 2 * messages_len() + number * record_ring_size(PEER_FRAME_LINES);
        SharedRecords::new(Arc::clone(&segment), at, PEER_FRAME_LINES).ok_or(Errno::EINVAL)
    };
    let (tx, rx) = (RecordProducer::new(records(tx)?), RecordConsumer::new(records(rx)?));
    Ok((messages, Some(FrameEnd { tx, rx })))
}

impl PeerBell {
    /// From the other server's status segment and the end of its doorbell.
    ///
    /// # Errors
    /// When the descriptor is no status segment of this version.
    pub fn new(status: impl Into<Fd>, bell: impl Into<Fd>) -> Result<PeerBell> {
        let status = AppStatus::open(status)?;
        Ok(PeerBell { status, rung: AtomicU32::new(0), bell: Doorbell::from_fd(bell) })
    }

    /// After something was published: rings if the other server sleeps. True if it was rung.
    pub fn wake(&self) -> bool {
        // A server that is gone needs no waking; its supervisor tells.
        self.status.must_wake(&self.rung) && self.bell.ring().is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::record_ring::Push;
    use crate::status::ServiceStatus;

    fn copy(fd: RawFd) -> Fd {
        let fd = Fd::from_raw(fd);
        let copy = fd.try_clone_at_least(0).unwrap();
        let _: RawFd = fd.into_raw();
        copy
    }

    #[test]
    fn messages_and_frames_cross_both_ways_and_do_not_mix() {
        let segment = PeerSegment::create(true).unwrap();
        let end = |side| open(copy(segment.fd()), side, true).unwrap();
        let (mut a, frames_a) = end(PeerSide::First);
        let (mut b, frames_b) = end(PeerSide::Second);
        let (mut frames_a, mut frames_b) = (frames_a.unwrap(), frames_b.unwrap());
        for round in 0..3 * u64::from(PEER_MESSAGES) {
            let other = (1 << 31) - round;
            assert!(a.push(&[round; 8]) && b.push(&[other; 8]));
            let frame = vec![round as u8; 1 + (round as usize * 37) % 3000];
            assert_eq!(frames_a.tx.push(round, &frame), Push::Written);
            assert_eq!(frames_b.tx.push(!round, &frame[..1]), Push::Written);
            let _: [bool; 2] = [frames_a.tx.publish(), frames_b.tx.publish()];
            let got = |number| Some([number, number, number, number, number, number, number, 0]);
            assert_eq!((b.pop(), a.pop()), (got(round), got(other)));
            let mut room = vec![0; 3000];
            let record = frames_b.rx.front().unwrap();
            assert_eq!((record.tag, record.len as usize), (round, frame.len()));
            frames_b.rx.take(record, &mut room);
            assert_eq!(room[..frame.len()], frame);
            let record = frames_a.rx.front().unwrap();
            assert_eq!((record.tag, record.len), (!round, 1));
            frames_a.rx.take(record, &mut room);
            let _: [bool; 2] = [frames_a.rx.release(), frames_b.rx.release()];
        }
        assert!(a.is_empty() && b.is_empty());
    }

    #[test]
    fn a_segment_of_another_shape_is_refused() {
        let segment = PeerSegment::create(false).unwrap();
        assert_eq!(open(copy(segment.fd()), PeerSide::First, true).unwrap_err(), Errno::EINVAL);
        assert!(open(copy(segment.fd()), PeerSide::First, false).unwrap().1.is_none());
        let status = ServiceStatus::create().unwrap();
        assert!(open(copy(status.fd()), PeerSide::First, false).is_err());
    }

    #[test]
    fn a_sleeper_is_rung_once_and_nobody_else() {
        let status = ServiceStatus::create().unwrap();
        let (own, theirs) = Doorbell::pair().unwrap();
        let bell = PeerBell::new(copy(status.fd()), theirs.into_fd()).unwrap();
        assert!(!bell.wake());
        for _ in 0..3 {
            status.prepare_sleep();
            assert!(bell.wake() && !bell.wake());
            status.awake();
            assert!(!bell.wake());
        }
        assert_eq!(own.drain(), Ok(true));
    }
}
