//! The other servers of the plan, for messages: a ring each way to every server that this one talks
//! to. Owned by `server::Core`; `conversation` says what goes on them and hears what comes, `event_loop`
//! joins and leaves peers as the supervisor tells. Read `haypile_shm::peer` for the memory; frames
//! are in `frame_peers`.
//!
//! Nothing waits: what finds no room in a ring is kept here, in order, and a peer that takes nothing
//! for so long that this is full is told nothing more until it has taken what there is. What was
//! lost then is made good by saying everything anew ([`Rings::take_overrun`]).

use std::collections::VecDeque;
use std::rc::Rc;

use haypile_shm::peer::PeerBell;
use haypile_shm::{Dialogue, Message};

use crate::roles::{ProcessNumber, Roles};

/// Messages kept for one peer beside its ring.
pub const KEPT_MAX: usize = 65_536;

/// The peers of one server.
#[derive(Debug)]
pub struct Rings {
    roles: Roles,
    /// By their numbers; `None`: not there now.
    peers: Vec<Option<Peer>>,
    /// The numbers of those that are there.
    present: Vec<ProcessNumber>,
    /// Whether something was said since the last `flush`.
    said: bool,
    counters: RingCounters,
}

#[derive(Debug)]
struct Peer {
    end: Dialogue,
    bell: Rc<PeerBell>,
    /// What found no room, in order.
    kept: VecDeque<Message>,
    /// Something was lost: everything has to be said anew.
    overrun: bool,
    /// Something was published since it was last woken.
    published: bool,
}

/// What happened among the servers.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// Messages sent.
    pub sent: u64,
    /// Messages received.
    pub received: u64,
    /// Rings rung because they slept.
    pub rung: u64,
    /// Messages for a server that is not there.
    pub absent: u64,
    /// Messages that a peer did not take in time.
    pub overrun: u64,
    /// Rings in which a peer wrote nonsense.
    pub corrupt: u64,
}

impl Rings {
    /// A server of a plan, whose peers join later.
    pub fn new(roles: Roles) -> Rings {
        Rings {
            roles,
            peers: Vec::new(),
            present: Vec::new(),
            said: false,
            counters: RingCounters::default(),
        }
    }

    /// Who is who.
    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// Who is who from now on, when there are more.
    pub fn set_roles(&mut self, roles: Roles) {
        self.roles = roles;
    }

    /// What happened so far.
    pub fn counters(&self) -> RingCounters {
        self.counters
    }

    /// A peer is there, on fresh rings; what was kept for the one before it is forgotten.
    pub fn join(&mut self, server: ProcessNumber, end: Dialogue, bell: Rc<PeerBell>) {
        self.leave(server);
        let place = usize::from(server);
        if place >= self.peers.len() {
            self.peers.resize_with(place + 1, || None);
        }
        let kept = VecDeque::new();
        self.peers[place] = Some(Peer { end, bell, kept, overrun: false, published: false });
        self.present.push(server);
    }

    /// A peer is gone, with what it said and was not heard. True if it was there.
    pub fn leave(&mut self, server: ProcessNumber) -> bool {
        self.present.retain(|other| *other != server);
        self.peers.get_mut(usize::from(server)).is_some_and(|peer| peer.take().is_some())
    }

    /// Whether a peer is there.
    pub fn is_present(&self, server: ProcessNumber) -> bool {
        self.peers.get(usize::from(server)).is_some_and(Option::is_some)
    }

    /// Those that are there.
    pub fn present(&self) -> &[ProcessNumber] {
        &self.present
    }

    /// Sends a message, without its last word; seen after [`Rings::flush`] at the latest. What is said
    /// to a server that is not there is lost: it hears everything anew when it comes.
    pub fn push_message(&mut self, server: ProcessNumber, message: &Message) {
        let Some(Some(peer)) = self.peers.get_mut(usize::from(server)) else {
            self.counters.absent += 1;
            return;
        };
        if peer.overrun {
            self.counters.overrun += 1;
            return;
        }
        self.counters.sent += 1;
        self.said = true;
        if peer.kept.is_empty() && peer.end.push(message) {
            peer.published = true;
        } else if peer.kept.len() < KEPT_MAX {
            peer.kept.push_back(*message);
        } else {
            self.counters.overrun += 1;
            peer.overrun = true;
        }
    }

    /// Takes up to `out.len()` messages of one peer; returns how many. A ring in which nonsense was
    /// written gives nothing more.
    pub fn pop_messages(&mut self, server: ProcessNumber, out: &mut [Message]) -> usize {
        let Some(Some(peer)) = self.peers.get_mut(usize::from(server)) else { return 0 };
        let count = peer.end.pop_burst(out);
        self.counters.received += count as u64;
        if peer.end.is_corrupt() {
            self.counters.corrupt += 1;
            self.leave(server);
        }
        count
    }

    /// A peer that has been told too much has taken everything since: says which, once. Tell it
    /// everything anew.
    pub fn take_overrun(&mut self) -> Option<ProcessNumber> {
        if self.counters.overrun == 0 {
            return None;
        }
        let recovered = |server: &&ProcessNumber| {
            self.peers[usize::from(**server)].as_ref().is_some_and(Peer::has_recovered)
        };
        let server = *self.present.iter().find(recovered)?;
        if let Some(peer) = &mut self.peers[usize::from(server)] {
            peer.overrun = false;
        }
        Some(server)
    }

    /// Ends a turn: what was kept goes as far as there is room, and sleepers are rung.
    pub fn flush(&mut self) {
        if !self.said {
            return;
        }
        self.said = false;
        for server in &self.present {
            let Some(peer) = &mut self.peers[usize::from(*server)] else { continue };
            peer.send_kept();
            self.said |= !peer.kept.is_empty();
            if std::mem::take(&mut peer.published) {
                self.counters.rung += u64::from(peer.bell.wake());
            }
        }
    }

    /// Whether a peer has said something: the last look before a sleep.
    pub fn any_messages(&mut self) -> bool {
        self.present.iter().any(|server| {
            self.peers[usize::from(*server)].as_mut().is_some_and(|peer| !peer.end.is_empty())
        })
    }

    /// Whether something waits for room in a ring, which nobody rings for, or for the next turn: a peer has taken
    /// everything and is to be told anew what it has missed.
    pub fn is_blocked(&self) -> bool {
        self.said || self.peers.iter().flatten().any(Peer::has_recovered)
    }
}

impl Peer {
    /// Something was lost, and all that was said before is taken.
    fn has_recovered(&self) -> bool {
        self.overrun && self.kept.is_empty()
    }

    fn send_kept(&mut self) {
        while let Some(message) = self.kept.front() {
            if !self.end.push(message) {
                return;
            }
            self.published = true;
            self.kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PeerPair, peer_pair};

    fn joined() -> (Rings, Rings, PeerPair) {
        let mut pair = peer_pair(false);
        let plan = "TS2LS2CM2".parse().unwrap();
        let rings = |own| Rings::new(Roles::new(&plan, own));
        let (mut one, mut other) = (rings(0), rings(1));
        let (end, bell) = pair.first.take().unwrap();
        one.join(1, end.0, bell);
        let (end, bell) = pair.second.take().unwrap();
        other.join(0, end.0, bell);
        (one, other, pair)
    }

    #[test]
    fn everything_arrives_in_order_however_slow_the_other_is() {
        let (mut one, mut other, _pair) = joined();
        let total = 10_000u64;
        for number in 0..total {
            one.push_message(1, &[number; 8]);
        }
        assert!(one.is_blocked() || one.counters().sent == total);
        let mut room = [[0; 8]; 100];
        let mut expected = 0;
        while expected < total {
            one.flush();
            let count = other.pop_messages(0, &mut room);
            assert!(count > 0, "{expected}");
            for message in &room[..count] {
                assert_eq!(message[..7], [expected; 7]);
                expected += 1;
            }
        }
        one.flush();
        assert!(!one.is_blocked() && !other.any_messages());
        assert_eq!((one.counters().sent, other.counters().received), (total, total));
    }

    #[test]
    fn a_peer_that_takes_nothing_is_told_everything_anew_later() {
        let (mut one, mut other, _pair) = joined();
        for number in 0..2 * KEPT_MAX as u64 {
            one.push_message(1, &[number; 8]);
        }
        assert!(one.counters().overrun > 0);
        assert_eq!(one.take_overrun(), None);
        let mut room = [[0; 8]; 256];
        let mut taken = 0;
        loop {
            one.flush();
            match other.pop_messages(0, &mut room) {
                0 => break,
                count => taken += count,
            }
        }
        assert_eq!(taken, KEPT_MAX + haypile_shm::peer::PEER_MESSAGES as usize);
        assert!(one.is_blocked(), "nobody may sleep before that");
        assert_eq!((one.take_overrun(), one.take_overrun()), (Some(1), None));
        assert!(!one.is_blocked());
        one.push_message(1, &[7; 8]);
        one.flush();
        assert_eq!(other.pop_messages(0, &mut room), 1);
    }

    #[test]
    fn nobody_is_told_anything_when_nobody_is_there() {
        let mut rings = Rings::new(Roles::combined());
        rings.push_message(3, &[1; 8]);
        rings.flush();
        assert_eq!((rings.counters().absent, rings.counters().sent), (1, 0));
        assert!(!rings.leave(3) && !rings.is_present(3) && !rings.any_messages());
        assert_eq!(rings.pop_messages(3, &mut [[0; 8]; 4]), 0);
    }

    #[test]
    fn a_peer_comes_again_on_fresh_rings() {
        let (mut one, mut other, _pair) = joined();
        one.push_message(1, &[1; 8]);
        one.flush();
        let mut pair = peer_pair(false);
        let (end, bell) = pair.first.take().unwrap();
        one.join(1, end.0, bell);
        let (end, bell) = pair.second.take().unwrap();
        other.join(0, end.0, bell);
        let mut room = [[0; 8]; 4];
        assert_eq!(other.pop_messages(0, &mut room), 0);
        one.push_message(1, &[2; 8]);
        one.flush();
        assert_eq!((other.pop_messages(0, &mut room), &room[0][..7]), (1, &[2; 7][..]));
        assert!(other.leave(0) && !other.leave(0));
    }

    #[test]
    fn a_sleeper_is_rung() {
        let (mut one, _other, pair) = joined();
        one.push_message(1, &[1; 8]);
        one.flush();
        assert_eq!(one.counters().rung, 0);
        pair.second_status.prepare_sleep();
        one.push_message(1, &[1; 8]);
        one.flush();
        assert_eq!(one.counters().rung, 1);
        assert_eq!(pair.second_bell.drain(), Ok(true));
    }
}
