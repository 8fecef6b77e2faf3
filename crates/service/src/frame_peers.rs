//! The other servers of the plan, for frames: a ring of records each way to every server that this
//! one hands frames to. Owned by `link_server`; `event_loop` joins and leaves peers as the supervisor
//! tells. Superframes and unfinished checksums cross untouched: what is said of a frame is in its
//! tag, as on a wire (`haypile_link::wire`). Read `haypile_shm::peer` for the memory.
//!
//! The other end is not trusted: lengths are checked by the ring, contents are frames like those of
//! any link.

use std::rc::Rc;

use haypile_shm::peer::{FrameEnd, PeerBell};
use haypile_shm::record_ring::{Push, Record};

use crate::roles::ProcessNumber;

/// The peers of one server.
#[derive(Debug, Default)]
pub struct FramePeers {
    /// By their numbers; `None`: not there now.
    peers: Vec<Option<FramePeer>>,
    /// The numbers of those that are there.
    present: Vec<ProcessNumber>,
    /// Those that have come since they were last asked for.
    joined: Vec<ProcessNumber>,
    counters: FrameCounters,
}

#[derive(Debug)]
struct FramePeer {
    end: FrameEnd,
    bell: Rc<PeerBell>,
    /// Frames were written since the last `flush`.
    written: bool,
    /// Frames were taken since the last `flush`.
    taken: bool,
}

/// What happened to frames between servers.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameCounters {
    /// Frames handed to another server.
    pub sent: u64,
    /// Frames that another server handed to us.
    pub received: u64,
    /// Frames dropped because the other server was not there.
    pub absent: u64,
    /// Frames that found no room.
    pub full: u64,
    /// Rings in which a peer wrote nonsense.
    pub corrupt: u64,
}

/// What became of a frame.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum PushFrame {
    /// Written; seen by the other server after [`FramePeers::flush`].
    Written,
    /// There is no room now.
    Full,
    /// The other server is not there, or the frame longer than any: it is lost.
    Lost,
}

impl FramePeers {
    /// A peer is there, on fresh rings.
    pub fn join(&mut self, server: ProcessNumber, end: FrameEnd, bell: Rc<PeerBell>) {
        self.leave(server);
        let place = usize::from(server);
        if place >= self.peers.len() {
            self.peers.resize_with(place + 1, || None);
        }
        self.peers[place] = Some(FramePeer { end, bell, written: false, taken: false });
        self.present.push(server);
        self.joined.push(server);
    }

    /// A peer is gone, with the frames that were on their way.
    pub fn leave(&mut self, server: ProcessNumber) {
        self.present.retain(|other| *other != server);
        if let Some(peer) = self.peers.get_mut(usize::from(server)) {
            *peer = None;
        }
    }

    /// Those that have come, on fresh rings, since the last call.
    pub fn take_joined(&mut self) -> Vec<ProcessNumber> {
        std::mem::take(&mut self.joined)
    }

    /// Those that are there.
    pub fn present(&self) -> &[ProcessNumber] {
        &self.present
    }

    /// What happened so far.
    pub fn counters(&self) -> FrameCounters {
        self.counters
    }

    /// Hands a frame to another server, with whatever `tag` says of it.
    #[inline]
    pub fn push_frame(&mut self, server: ProcessNumber, tag: u64, frame: &[u8]) -> PushFrame {
        let Some(Some(peer)) = self.peers.get_mut(usize::from(server)) else {
            self.counters.absent += 1;
            return PushFrame::Lost;
        };
        match peer.end.tx.push(tag, frame) {
            Push::Written => {
                peer.written = true;
                self.counters.sent += 1;
                PushFrame::Written
            }
            Push::Full => {
                self.counters.full += 1;
                PushFrame::Full
            }
            Push::TooLong => PushFrame::Lost,
        }
    }

    /// The next frame of one peer, its length checked; take it with [`FramePeers::take_frame`].
    #[inline]
    pub fn front_frame(&mut self, server: ProcessNumber) -> Option<Record> {
        let peer = self.peers.get_mut(usize::from(server))?.as_mut()?;
        peer.end.rx.front()
    }

    /// Copies the frame that [`FramePeers::front_frame`] gave, as much of it as `out` holds, and
    /// goes on to the next.
    #[inline]
    pub fn take_frame(&mut self, server: ProcessNumber, record: Record, out: &mut [u8]) {
        if let Some(Some(peer)) = self.peers.get_mut(usize::from(server)) {
            peer.end.rx.take(record, out);
            peer.taken = true;
            self.counters.received += 1;
        }
    }

    /// Ends a turn: frames are shown, room is given back, and sleepers are rung. A peer whose ring
    /// is nonsense is given up.
    pub fn flush(&mut self) {
        for at in (0..self.present.len()).rev() {
            let server = self.present[at];
            let Some(peer) = &mut self.peers[usize::from(server)] else { continue };
            // Who sleeps is told by its status segment, for all rings at once.
            let mut wakes = false;
            if std::mem::take(&mut peer.written) {
                let _: bool = peer.end.tx.publish();
                wakes = true;
            }
            if std::mem::take(&mut peer.taken) {
                wakes |= peer.end.rx.release();
            }
            if wakes {
                peer.bell.wake();
            }
            if peer.end.tx.is_corrupt() || peer.end.rx.is_corrupt() {
                self.counters.corrupt += 1;
                self.leave(server);
            }
        }
    }

    /// Whether a peer has handed frames over: the last look before a sleep.
    pub fn any_frames(&mut self) -> bool {
        self.present.iter().any(|server| {
            self.peers[usize::from(*server)].as_mut().is_some_and(|peer| !peer.end.rx.is_empty())
        })
    }

    /// Before a sleep while a frame of `len` bytes waits for room: the peer rings when there is.
    /// False: there is room now.
    pub fn wait_for_room(&mut self, server: ProcessNumber, len: usize) -> bool {
        let Some(Some(peer)) = self.peers.get_mut(usize::from(server)) else { return false };
        peer.end.tx.prepare_sleep(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PeerPair, peer_pair};

    fn joined() -> (FramePeers, FramePeers, PeerPair) {
        let mut pair = peer_pair(true);
        let (mut one, mut other) = (FramePeers::default(), FramePeers::default());
        let (end, bell) = pair.first.take().unwrap();
        one.join(5, end.1.unwrap(), bell);
        let (end, bell) = pair.second.take().unwrap();
        other.join(0, end.1.unwrap(), bell);
        (one, other, pair)
    }

    #[test]
    fn frames_cross_with_what_is_said_of_them() {
        let (mut one, mut other, pair) = joined();
        let frame: Vec<u8> = (0..60_000).map(|at| at as u8).collect();
        let mut sent = 0;
        while one.push_frame(5, sent, &frame) == PushFrame::Written {
            sent += 1;
        }
        assert!(sent >= 8);
        pair.second_status.prepare_sleep();
        one.flush();
        assert!(other.any_frames());
        assert_eq!(pair.second_bell.drain(), Ok(true));
        assert!(one.wait_for_room(5, frame.len()));
        let mut got = 0;
        while let Some(record) = other.front_frame(0) {
            assert_eq!((record.tag, record.len), (got, 60_000));
            let mut room = vec![0; 60_000];
            other.take_frame(0, record, &mut room);
            assert_eq!(room, frame);
            got += 1;
        }
        pair.first_status.prepare_sleep();
        other.flush();
        // Whoever waits for room hears of it.
        assert_eq!((got, pair.first_bell.drain()), (sent, Ok(true)));
        assert!(!one.wait_for_room(5, frame.len()));
        assert_eq!(one.push_frame(5, 0, &frame), PushFrame::Written);
        assert_eq!(one.push_frame(4, 0, &frame), PushFrame::Lost);
        let counters = one.counters();
        assert_eq!((counters.sent, counters.full, counters.absent), (sent + 1, 1, 1));
    }
}
