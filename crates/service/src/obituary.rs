//! What becomes of the peers of a server that has died: each is asked about its connection, so that it hears that
//! there is none any more.
//!
//! The flows of a transport server stand in its ledger, which outlives it (`haypile_shm::ledger`). The next server
//! reads it at its start and knocks at each (`Shard::knock`), a few times, because a knock may be lost. Nothing of this
//! decides about a connection: whoever has it answers for it, wherever it is by now, and where nobody has it the answer
//! is a reset. So a flow that stands in the ledger too long does no harm; none may be struck too early: one that moves
//! stands in the old server's until the new one has it. Called by `server` each turn, and by `sockets` and `freight`.

use std::collections::VecDeque;
use std::net::SocketAddr;

use haypile_engine::{Instant, Knocked};
use haypile_shm::{Ledger, LedgerFlow};

use crate::server::Core;

/// Waits between knocks, in microseconds; after the last one the flow is forgotten.
const AGAIN_US: [u64; 2] = [1_000_000, 3_000_000];
/// Knocks in a turn.
const AT_ONCE: usize = 64;

/// The flows of this server's ledger, and of the server before it.
#[derive(Debug, Default)]
pub struct Obituary {
    ledger: Option<Ledger>,
    /// By when they are due.
    mourned: VecDeque<Mourned>,
    /// Unclaimed connections that have left with a bucket, until it is known who has that.
    leaving: Vec<(u16, u32)>,
    /// Flows for which there was no place.
    unnoted: u64,
}

/// A flow of the server before this one.
#[derive(Copy, Clone, Debug)]
struct Mourned {
    due: Instant,
    knocks: usize,
    place: u32,
    flow: LedgerFlow,
}

impl Obituary {
    /// With a ledger, and what the server before has left in it.
    pub fn new(now: Instant, ledger: Ledger, left: Vec<(u32, LedgerFlow)>) -> Obituary {
        let mourned = |(place, flow)| Mourned { due: now, knocks: 0, place, flow };
        let mourned = left.into_iter().map(mourned).collect();
        Obituary { ledger: Some(ledger), mourned, ..Obituary::default() }
    }

    /// A connection is there; its place.
    pub(crate) fn enter(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
        let place = self.ledger.as_mut()?.enter(LedgerFlow { local, remote });
        self.unnoted += u64::from(place.is_none());
        place
    }

    /// The connection of a place is over.
    pub(crate) fn strike(&mut self, place: Option<u32>) {
        if let (Some(ledger), Some(place)) = (&mut self.ledger, place) {
            ledger.strike(place);
        }
    }

    /// Connections leave with a bucket, and nothing of them stays here.
    pub(crate) fn leave(&mut self, bucket: u16, places: &mut Vec<u32>) {
        self.leaving.extend(places.drain(..).map(|place| (bucket, place)));
    }

    /// It is known who has a bucket.
    pub(crate) fn settle(&mut self, bucket: u16) {
        let Obituary { ledger: Some(ledger), leaving, .. } = self else { return };
        leaving.retain(|(other, place)| {
            if *other == bucket {
                ledger.strike(*place);
            }
            *other != bucket
        });
    }

    /// Flows of the server before that are still asked about.
    pub fn mourned(&self) -> usize {
        self.mourned.len()
    }

    /// When the next one is to be asked about.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.mourned.front().map(|one| one.due)
    }
}

impl Core {
    /// Asks about connections of the server before this one, as many as a turn may.
    #[inline]
    pub(crate) fn mourn(&mut self, now: Instant) {
        if self.store.obituary.mourned.is_empty() {
            return;
        }
        self.knock_at_all(now);
    }

    #[cold]
    fn knock_at_all(&mut self, now: Instant) {
        for _ in 0..AT_ONCE {
            let obituary = &mut self.store.obituary;
            let Some(one) = obituary.mourned.front().copied() else { return };
            if one.due > now {
                return;
            }
            let LedgerFlow { local, remote } = one.flow;
            if self.shard.knock(now, local, remote) == Knocked::NoRoom {
                return;
            }
            obituary.mourned.pop_front();
            match AGAIN_US.get(one.knocks) {
                // They go round in one order, so that the first in the queue is the first that is due.
                Some(us) => obituary.mourned.push_back(Mourned {
                    due: now.plus_us(*us),
                    knocks: one.knocks + 1,
                    ..one
                }),
                None => obituary.strike(Some(one.place)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{PEER, SERVER, World};
    use crate::sharing::{Sharing, Step};
    use haypile_engine::Counter;
    use haypile_shm::messages::RequestBody;
    use haypile_shm::{Fd, LedgerSegment};

    fn open(segment: &LedgerSegment) -> (Ledger, Vec<(u32, LedgerFlow)>) {
        let fd = Fd::from_raw(segment.fd());
        let copy = fd.try_clone_at_least(0).unwrap();
        let _: i32 = fd.into_raw();
        Ledger::open(copy).unwrap()
    }

    fn begin(segment: &LedgerSegment) -> World {
        let mut world = World::new();
        let (ledger, left) = open(segment);
        world.server.core.store.obituary = Obituary::new(world.now, ledger, left);
        world
    }

    fn ports(segment: &LedgerSegment) -> Vec<u16> {
        let mut ports: Vec<u16> =
            open(segment).1.iter().map(|(_, flow)| flow.remote.port()).collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn every_connection_stands_in_the_ledger_until_it_is_over() {
        let segment = LedgerSegment::create().unwrap();
        let mut world = begin(&segment);
        let mut app = world.app();
        app.listen(&mut world, 80);
        assert_eq!(ports(&segment), [0; 0], "a listener is no connection");
        let peer = world.dial(80);
        world.settle();
        let port = world.peer.shard.local_address(peer).unwrap().port();
        assert_eq!(ports(&segment), [port], "nobody has accepted it yet");
        let socket = app.accept(&mut world).unwrap();
        world.peer_listens(9_000);
        let out = app.connect(&mut world, PEER, 9_000).unwrap();
        world.settle();
        let mut both = [port, 9_000];
        both.sort_unstable();
        assert_eq!(ports(&segment), both);
        app.tell(&mut world, &out, RequestBody::Close { abort: true });
        world.settle();
        assert_eq!(ports(&segment), [port]);
        app.tell(&mut world, &socket, RequestBody::Close { abort: false });
        let now = world.now;
        world.peer.close(now, peer);
        world.run_for(1_000_000);
        assert_eq!(ports(&segment), [0; 0]);
    }

    #[test]
    fn who_leaves_the_service_asks_to_the_end_first() {
        let segment = LedgerSegment::create().unwrap();
        let local = SocketAddr::new(SERVER.parse().unwrap(), 80);
        let remote = SocketAddr::new(PEER.parse().unwrap(), 1);
        open(&segment).0.enter(LedgerFlow { local, remote });
        let mut world = begin(&segment);
        let mut parting = Sharing::part(world.now, &world.server.core, 30_000_000);
        for (us, expected) in
            [(100_000, Step::Waiting), (3_000_000, Step::Waiting), (2_000_000, Step::Done)]
        {
            world.run_for(us);
            // It looks now and then.
            let mut step = Step::Waiting;
            for _ in 0..3 {
                world.run_for(10_000);
                step = parting.step(world.now, &mut world.server.core);
            }
            assert_eq!(step, expected, "{us}");
        }
        assert_eq!(ports(&segment), [0; 0]);
    }

    #[test]
    fn what_the_server_before_has_left_is_asked_about_thrice() {
        let segment = LedgerSegment::create().unwrap();
        let (mut ledger, _) = open(&segment);
        for port in 1..=100 {
            let local = SocketAddr::new(SERVER.parse().unwrap(), 80);
            ledger
                .enter(LedgerFlow { local, remote: SocketAddr::new(PEER.parse().unwrap(), port) });
        }
        let mut world = begin(&segment);
        let knocks = |world: &World| world.server.core.shard.counters().get(Counter::TcpKnocks);
        for (us, expected) in [(100_000, 100), (1_000_000, 200), (3_000_000, 300)] {
            assert_eq!(ports(&segment).len(), 100);
            world.run_for(us);
            assert_eq!(knocks(&world), expected);
        }
        assert_eq!((ports(&segment).len(), world.server.core.store.obituary.mourned()), (0, 0));
        world.run_for(10_000_000);
        assert_eq!(knocks(&world), 300);
    }
}
