//! The inside of a service whose buckets move: several who steer (the servers and others), each by a map of its
//! own, and ways between all of them that keep the order and take time. Frames from the wire come to one of those
//! who steer, go to the server that its map says, and are sent on from there when they come too late. Driven by
//! [`crate::world`]; [`crate::migration`] moves buckets.

use crate::application::Application;
use crate::host::{Host, Unclaimed, key};
use crate::memory::{Memory, Moving};
use haypile_engine::migration::protocol::{Announcement, Mover, NotGiven, Outcome, Steerer};
use haypile_engine::random::Random;
use haypile_engine::steering::{Destination, Steering};
use haypile_engine::{
    Forward, ForwardKind, Freight, Instant, Positions, Progress, Shard, SocketId, Streams,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Range;

/// What happened inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveCounts {
    /// Moves begun.
    pub begun: u64,
    /// Buckets that have arrived, the connections in them, their TIME-WAIT records, and packets that had waited.
    pub arrived: u64,
    /// See `arrived`.
    pub connections: u64,
    /// See `arrived`.
    pub time_wait: u64,
    /// See `arrived`.
    pub held: u64,
    /// Buckets that were refused and taken back.
    pub taken_back: u64,
    /// Moves that are over.
    pub settled: u64,
}

/// Who is at an end of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Server(u16),
    Steerer(Steerer),
}

/// What is on a way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Frame(Vec<u8>),
    /// Which of the packets that are kept apart, because their kinds have no order.
    Packet(u64),
    Announcement {
        bucket: u16,
        version: u32,
        server: u16,
    },
    Switched {
        steerer: Steerer,
        bucket: u16,
        version: u32,
    },
}

/// When, in which order, from where, to where, what.
type OnTheWay = Reverse<(u64, u64, Place, Place, Item)>;

/// Connections between two servers, with what belongs to them outside the engine.
#[derive(Debug, Default)]
pub struct Depot {
    next: u64,
    /// By their tickets, with the server that they came from.
    moving: BTreeMap<u64, (u16, Luggage)>,
    /// What each server has unpacked and not said so.
    unsaid: BTreeMap<u16, Vec<u64>>,
    /// What was unpacked by another server, of which the server that packed it has not heard.
    undelivered: BTreeSet<u64>,
}

/// The memory of a connection and its program, or its place in the queue for `accept`.
#[derive(Debug)]
struct Luggage {
    memory: Moving,
    program: Option<Application>,
    unclaimed: Option<Unclaimed>,
    progress: Option<Progress>,
}

/// One server's hands, while something is exported or imported.
struct Hands<'a> {
    server: u16,
    now: Instant,
    depot: &'a mut Depot,
    memory: &'a mut Memory,
    programs: &'a mut BTreeMap<(u32, u32), Application>,
    unclaimed: &'a mut BTreeMap<(u32, u32), Unclaimed>,
    progress: &'a mut BTreeMap<(u32, u32), Progress>,
    random: &'a mut Random,
    refusal_ppm: u32,
}

impl Streams for Hands<'_> {
    fn write(&mut self, id: SocketId, position: u64, data: &[u8]) -> usize {
        self.memory.write(id, position, data)
    }

    fn read(&mut self, id: SocketId, position: u64, out: &mut [u8]) {
        self.memory.read(id, position, out);
    }
}

impl Freight for Hands<'_> {
    fn pack(&mut self, id: SocketId, out: &mut Vec<u8>) {
        let luggage = Luggage {
            memory: self.memory.take(id),
            program: self.programs.remove(&key(id)),
            unclaimed: self.unclaimed.remove(&key(id)),
            progress: self.progress.remove(&key(id)),
        };
        self.depot.next += 1;
        self.depot.moving.insert(self.depot.next, (self.server, luggage));
        out.extend_from_slice(&self.depot.next.to_be_bytes());
    }

    fn check(&mut self, baggage: &mut dyn Iterator<Item = &[u8]>) -> bool {
        let mut baggage = baggage;
        Iterator::all(&mut baggage, |one| {
            let ticket = <[u8; 8]>::try_from(one).map(u64::from_be_bytes);
            let found = ticket.ok().and_then(|ticket| self.depot.moving.get(&ticket));
            // Whoever takes back what it has given does not refuse.
            found.is_some_and(|(from, _)| {
                *from == self.server || !self.random.chance(self.refusal_ppm)
            })
        })
    }

    fn unpack(&mut self, id: SocketId, baggage: &[u8]) -> Positions {
        let ticket = <[u8; 8]>::try_from(baggage).map(u64::from_be_bytes);
        let found = ticket.ok().and_then(|ticket| self.depot.moving.remove(&ticket));
        let Some((from, Luggage { memory, program, unclaimed, progress })) = found else {
            return Positions::default();
        };
        if let (true, Ok(ticket)) = (from != self.server, ticket) {
            self.depot.unsaid.entry(self.server).or_default().push(ticket);
            self.depot.undelivered.insert(ticket);
        }
        self.memory.put(id, memory);
        // It is announced anew, so its place in the old queue means nothing.
        let _: Option<Unclaimed> = unclaimed;
        self.progress.extend(progress.map(|progress| (key(id), progress)));
        let Some(mut program) = program else { return Positions::default() };
        let (written, read) = program.follow(id, self.random);
        program.pause_until(self.now.us() + self.random.between(0, 2_000));
        self.programs.insert(key(id), program);
        Positions { written, read }
    }

    fn receipt(&mut self) -> Option<Vec<u8>> {
        const TICKETS_MAX: usize = 3;
        let unsaid = self.depot.unsaid.get_mut(&self.server).filter(|unsaid| !unsaid.is_empty())?;
        let some = unsaid.drain(..unsaid.len().min(TICKETS_MAX));
        Some(some.flat_map(u64::to_be_bytes).collect())
    }

    fn deliver(&mut self, _from: u16, receipt: &[u8]) {
        for ticket in receipt.as_chunks::<8>().0 {
            self.depot.undelivered.remove(&u64::from_be_bytes(*ticket));
        }
    }
}

/// The inside of one service.
pub struct Inside {
    members: Range<usize>,
    movers: Vec<Mover>,
    /// The map of each who steers; those of servers, which have their own, are not looked at.
    maps: Vec<Steering>,
    ways: BTreeMap<(Place, Place), u64>,
    on_the_way: BinaryHeap<OnTheWay>,
    packets: BTreeMap<u64, (ForwardKind, Vec<u8>)>,
    serial: u64,
    depot: Depot,
    random: Random,
    /// The longest that something is on a way, in microseconds.
    pub delay_us: u64,
    /// A frame or packet inside is lost.
    pub loss_ppm: u32,
    /// A connection that comes is refused, and its bucket with it.
    pub refusal_ppm: u32,
    /// What happened.
    pub counts: MoveCounts,
}

impl Inside {
    /// Of the servers at `members`, who steer, as do so many others.
    pub fn new(members: Range<usize>, steering: &Steering, others: u16, seed: u64) -> Inside {
        let steerers = members.len() as u16 + others;
        Inside {
            movers: members.clone().map(|_| Mover::new(0..steerers)).collect(),
            members,
            maps: (0..steerers).map(|_| steering.clone()).collect(),
            ways: BTreeMap::new(),
            on_the_way: BinaryHeap::new(),
            packets: BTreeMap::new(),
            serial: 0,
            depot: Depot::default(),
            random: Random::new(seed ^ 0x1417),
            delay_us: 0,
            loss_ppm: 0,
            refusal_ppm: 0,
            counts: MoveCounts::default(),
        }
    }

    /// The places of the servers.
    pub fn members(&self) -> Range<usize> {
        self.members.clone()
    }

    /// When the next thing arrives.
    pub fn next_us(&self) -> Option<u64> {
        self.on_the_way.peek().map(|Reverse((at_us, ..))| *at_us)
    }

    /// No bucket is on its way, and everybody has the same map.
    pub fn is_settled(&self, hosts: &[Host]) -> bool {
        let maps = self.members.clone().filter_map(|member| hosts[member].shard.steered());
        let others = &self.maps[self.members.len()..];
        let agrees = |map: &Steering| others.iter().all(|other| owners(other) == owners(map));
        self.movers.iter().all(Mover::is_idle)
            && self.depot.moving.is_empty()
            && self.depot.undelivered.is_empty()
            && maps.clone().all(|steered| agrees(&steered.steering))
            && maps.map(|steered| owners(&steered.steering)).collect::<BTreeSet<_>>().len() == 1
    }

    /// A frame from the wire comes to one of those who steer.
    pub fn receive(&mut self, now: Instant, hosts: &[Host], frame: &[u8]) {
        let steerer = self.random.between(0, self.maps.len() as u64 - 1) as usize;
        // A server that steers looks at its own map, which knows of its own moves before the others, and has one
        // way to each other server for all it has.
        let member = self.members.clone().nth(steerer);
        let own = member.and_then(|member| hosts[member].shard.steered());
        let place = match own {
            Some(steered) => Place::Server(steered.server),
            None => Place::Steerer(steerer as u16),
        };
        let destination = match own {
            Some(steered) => steered.steering.destination(frame),
            None => self.maps[steerer].destination(frame),
        };
        match destination {
            Destination::Server(server) => {
                self.send_frame(now, place, server, frame.to_vec());
            }
            Destination::Everyone => {
                for server in 0..self.movers.len() as u16 {
                    self.send_frame(now, place, server, frame.to_vec());
                }
            }
        }
    }

    fn send_frame(&mut self, now: Instant, from: Place, server: u16, frame: Vec<u8>) {
        if !self.random.chance(self.loss_ppm) {
            self.send(now, from, Place::Server(server), Item::Frame(frame));
        }
    }

    /// Puts something on a way, behind what is there.
    fn send(&mut self, now: Instant, from: Place, to: Place, item: Item) {
        let at_us = now.us() + self.random.between(0, self.delay_us);
        let last_us = self.ways.entry((from, to)).or_default();
        *last_us = at_us.max(*last_us);
        self.serial += 1;
        self.on_the_way.push(Reverse((*last_us, self.serial, from, to, item)));
    }

    /// Begins to move a bucket from whoever has it to `to`; false when it is not to be had now.
    pub fn move_bucket(
        &mut self,
        now: Instant,
        hosts: &mut [Host],
        bucket: u16,
        to: u16,
    ) -> Result<bool, String> {
        let owns = |member: &usize| {
            let steered = hosts[*member].shard.steered();
            steered.is_some_and(|one| one.steering.owner_of_flows(bucket) == one.server)
        };
        // One that is on its way has no owner that could give it, or one that refuses.
        let Some(member) = self.members.clone().find(owns) else { return Ok(false) };
        let server = (member - self.members.start) as u16;
        let given = self.with_hands(now, hosts, server, |mover, shard, hands| {
            mover.give(now, bucket, to, shard, hands)
        });
        match given {
            Ok(_) => {
                self.counts.begun += 1;
                self.collect(now, hosts, server);
                Ok(true)
            }
            Err(NotGiven::Unsettled | NotGiven::NotExported(_)) => Ok(false),
        }
    }

    /// Lends a server's mover the server's memory and programs.
    fn with_hands<T>(
        &mut self,
        now: Instant,
        hosts: &mut [Host],
        server: u16,
        work: impl FnOnce(&mut Mover, &mut Shard, &mut Hands<'_>) -> T,
    ) -> T {
        let host = &mut hosts[self.members.start + usize::from(server)];
        let Host { shard, memory, programs, unclaimed, progress, .. } = host;
        let mut hands = Hands {
            server,
            now,
            depot: &mut self.depot,
            memory,
            programs,
            unclaimed,
            progress,
            random: &mut self.random,
            refusal_ppm: self.refusal_ppm,
        };
        work(&mut self.movers[usize::from(server)], shard, &mut hands)
    }

    /// Puts what a server has for others on the ways.
    pub fn collect(&mut self, now: Instant, hosts: &mut [Host], server: u16) {
        let member = self.members.start + usize::from(server);
        while let Some(Forward { to, kind, packet }) = hosts[member].shard.poll_forward() {
            let may_be_lost = !matches!(kind, ForwardKind::Move(_));
            if may_be_lost && self.random.chance(self.loss_ppm) {
                continue;
            }
            self.packets.insert(self.serial + 1, (kind, packet));
            let item = Item::Packet(self.serial + 1);
            self.send(now, Place::Server(server), Place::Server(to), item);
        }
        while let Some(Announcement { to, bucket, version, server: owner }) =
            self.movers[usize::from(server)].poll_announcement()
        {
            let item = Item::Announcement { bucket, version, server: owner };
            self.send(now, Place::Server(server), Place::Steerer(to), item);
        }
    }

    /// Delivers what has arrived; which hosts have got something.
    ///
    /// # Errors
    /// When somebody says what cannot be.
    pub fn deliver(&mut self, now: Instant, hosts: &mut [Host]) -> Result<Vec<usize>, String> {
        let mut woken = Vec::new();
        while self.next_us().is_some_and(|at_us| at_us <= now.us()) {
            let Some(Reverse((_, _, from, to, item))) = self.on_the_way.pop() else { break };
            match to {
                Place::Server(server) => {
                    self.deliver_to_server(now, hosts, from, server, item)?;
                    woken.push(self.members.start + usize::from(server));
                }
                Place::Steerer(steerer) => {
                    self.deliver_to_steerer(now, hosts, from, steerer, &item);
                }
            }
        }
        Ok(woken)
    }

    /// Whoever steers takes the new map, and says so behind what it has steered by the old one.
    fn deliver_to_steerer(
        &mut self,
        now: Instant,
        hosts: &mut [Host],
        from: Place,
        steerer: u16,
        item: &Item,
    ) {
        if let Item::Announcement { bucket, version, server } = *item {
            // The first ones are the servers themselves.
            match self.members.clone().nth(usize::from(steerer)) {
                Some(member) => hosts[member].shard.note_move(bucket, version, server),
                None => self.maps[usize::from(steerer)].move_flows(bucket, version, server),
            };
            let place = match self.members.clone().nth(usize::from(steerer)) {
                Some(_) => Place::Server(steerer),
                None => Place::Steerer(steerer),
            };
            self.send(now, place, from, Item::Switched { steerer, bucket, version });
        }
    }

    fn deliver_to_server(
        &mut self,
        now: Instant,
        hosts: &mut [Host],
        from: Place,
        server: u16,
        item: Item,
    ) -> Result<(), String> {
        let member = self.members.start + usize::from(server);
        match (item, from) {
            (Item::Frame(frame), _) => hosts[member].handle_frames(now, vec![frame]),
            (Item::Packet(serial), Place::Server(from)) => {
                let (kind, packet) = self.packets.remove(&serial).ok_or("a packet twice")?;
                if let ForwardKind::Move(message) = kind {
                    let handled = self.with_hands(now, hosts, server, |mover, shard, hands| {
                        mover.handle(now, from, message, &packet, shard, hands)
                    });
                    self.note(handled.map_err(|refusal| format!("{message:?}: {refusal}"))?)?;
                } else {
                    let Host { shard, memory, .. } = &mut hosts[member];
                    shard.handle_forwarded(now, kind, &packet, memory);
                }
            }
            (Item::Switched { steerer, bucket, version }, _) => {
                let shard = &mut hosts[member].shard;
                let mover = &mut self.movers[usize::from(server)];
                let outcome = mover.handle_switched(steerer, bucket, version, shard);
                self.note(outcome)?;
            }
            (item, from) => return Err(format!("{item:?} from {from:?}")),
        }
        Ok(())
    }

    fn note(&mut self, outcome: Option<Outcome>) -> Result<(), String> {
        match outcome {
            // What programs were told is no business of hosts that have none.
            None | Some(Outcome::Left | Outcome::Refused(_) | Outcome::Unheard) => {}
            Some(Outcome::Arrived(imported)) => {
                self.counts.arrived += 1;
                self.counts.connections += imported.connections as u64;
                self.counts.time_wait += imported.time_wait as u64;
                self.counts.held += imported.held as u64;
            }
            Some(Outcome::TakenBack(_)) => self.counts.taken_back += 1,
            Some(Outcome::Settled) => self.counts.settled += 1,
            Some(Outcome::Lost(refusal)) => return Err(format!("a bucket is lost: {refusal}")),
        }
        Ok(())
    }
}

fn owners(steering: &Steering) -> Vec<u16> {
    (0..4096).map(|bucket| steering.owner_of_flows(bucket)).collect()
}
