//! Connections between two servers of one service: bytes, state and owners, while applications, peers and requests go
//! on. The two servers are whole; the rings between them are real.

use std::net::SocketAddr;

use haypile_engine::{SocketId, SocketOptions};
use haypile_shm::messages::RequestBody;
use haypile_shm::stream::{NewPlace, status};

use super::harness::{App, SERVER, Sock, World};
use crate::moving::{JobId, MoveRow};
use crate::plan::Plan;
use crate::roles::Roles;
use crate::server::Core;
use crate::testing::{PeerPair, peer_pair};

/// Two servers of one service, and one other host.
struct Pair {
    worlds: [World; 2],
    _bells: Vec<PeerPair>,
}

impl Pair {
    fn new() -> Pair {
        Pair::with("")
    }

    fn with(settings: &str) -> Pair {
        let plan: Plan = "TS2LS2CM2".parse().unwrap();
        let mut worlds = [0, 1].map(|own| World::at(Roles::new(&plan, own), settings, false));
        worlds[1].peer.is_elsewhere = true;
        let mut pair = Pair { worlds, _bells: Vec::new() };
        pair.introduce();
        pair
    }

    fn introduce(&mut self) {
        let mut bells = peer_pair(true);
        let ends = [bells.first.take().unwrap(), bells.second.take().unwrap()];
        for (own, (ends, bell)) in ends.into_iter().enumerate() {
            let world = &mut self.worlds[own];
            world.server.greet_peer(world.now, 1 - own as u16, ends, bell);
        }
        self._bells.push(bells);
        self.settle();
    }

    /// Everybody takes turns until nothing moves; no time passes.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut moved = false;
            let [first, second] = &mut self.worlds;
            for world in [&mut *first, &mut *second] {
                moved |= world.look() | !world.turn().is_none();
            }
            moved |= first.peer.take_over(first.now, &mut second.peer) > 0;
            if !(moved | first.peer.step(first.now)) {
                return;
            }
        }
        panic!("they never come to rest");
    }

    fn run_for(&mut self, us: u64) {
        let end = self.worlds[0].now.plus_us(us);
        loop {
            self.settle();
            let peer = self.worlds[0].peer.shard.poll_timeout();
            let servers = self.worlds.iter().filter_map(|world| world.server.poll_timeout());
            let Some(next) = servers.chain(peer).min().filter(|due| *due <= end) else { break };
            let next = next.max(self.worlds[0].now.plus_us(1));
            self.worlds.iter_mut().for_each(|world| world.now = next);
        }
        self.worlds.iter_mut().for_each(|world| world.now = end);
        self.settle();
    }

    fn core(&mut self, server: usize) -> &mut Core {
        &mut self.worlds[server].server.core
    }

    /// Gives a bucket away; it is on its way then.
    fn give(&mut self, from: usize, bucket: u16) -> JobId {
        let now = self.worlds[from].now;
        let job = self.core(from).moving.wish(now, &[bucket], 1 - from as u16, 1_000_000);
        self.worlds[from].turn();
        job
    }

    /// Moves a bucket, and what has come of it.
    fn move_bucket(&mut self, from: usize, bucket: u16) -> MoveRow {
        let job = self.give(from, bucket);
        self.settle();
        self.core(from).moving.take_done(job).expect("it is done").remove(0)
    }

    /// The bucket of a connection of the peer's.
    fn bucket_of(&self, id: SocketId, port: u16) -> u16 {
        let remote = self.worlds[0].peer.shard.local_address(id).unwrap();
        let steered = self.worlds[0].server.core.shard.steered().unwrap();
        steered.steering.bucket_of_flow(server_at(port), remote)
    }

    /// The server that has a bucket.
    fn owner_of(&self, bucket: u16) -> usize {
        let steered = self.worlds[0].server.core.shard.steered().unwrap();
        usize::from(steered.steering.owner_of_flows(bucket))
    }

    /// The peer connects, from such a port that server 0 has the flow.
    fn dial(&mut self, port: u16) -> SocketId {
        let now = self.worlds[0].now;
        for local in 20_000.. {
            let local = SocketAddr::new(super::harness::PEER.parse().unwrap(), local);
            let steered = self.worlds[0].server.core.shard.steered().unwrap();
            if steered.steering.owner_of_flow(server_at(port), local) != 0 {
                continue;
            }
            let peer = &mut self.worlds[0].peer.shard;
            let (to, options) = (server_at(port), SocketOptions::default());
            if let Ok(id) = peer.connect(now, Some(local), to, options) {
                self.settle();
                return id;
            }
        }
        panic!("no port is left");
    }

    fn peer_sends(&mut self, id: SocketId, data: &[u8]) {
        self.worlds[0].peer_sends(id, data);
        self.settle();
    }

    fn peer_received(&mut self, id: SocketId) -> Vec<u8> {
        let bytes = self.worlds[0].peer_received(id);
        self.settle();
        bytes
    }
}

fn server_at(port: u16) -> SocketAddr {
    SocketAddr::new(SERVER.parse().unwrap(), port)
}

/// A process that is attached to both servers.
struct Program {
    apps: [App; 2],
}

/// A socket of it, and where it is.
struct Place {
    server: usize,
    socket: Sock,
}

impl Program {
    fn new(pair: &mut Pair) -> Program {
        let [first, second] = &mut pair.worlds;
        let app = first.app();
        let other = second.app_from(&app);
        pair.settle();
        Program { apps: [app, other] }
    }

    fn listen(&self, pair: &mut Pair, port: u16) -> [Sock; 2] {
        [0, 1].map(|server| {
            let socket = self.apps[server].listen(&mut pair.worlds[server], port);
            pair.settle();
            socket
        })
    }

    fn accept(&mut self, pair: &mut Pair, server: usize) -> Option<Place> {
        let socket = self.apps[server].accept(&mut pair.worlds[server])?;
        pair.settle();
        Some(Place { server, socket })
    }

    /// Does what a process does that finds that its connection has moved.
    fn follow(&self, pair: &mut Pair, place: &mut Place) {
        while place.socket.stream.status() & status::MOVED != 0 {
            let NewPlace { server, epoch, slot, generation } =
                place.socket.stream.new_place().unwrap();
            let to = usize::from(server);
            assert_eq!(epoch, pair.worlds[to].server.core.era.epoch);
            let world = &mut pair.worlds[to];
            let asked = self.apps[to].ask(world, (slot, generation), RequestBody::Arrive);
            let socket = asked.unwrap().0;
            let old = std::mem::replace(place, Place { server: to, socket });
            self.apps[old.server].tell(
                &mut pair.worlds[old.server],
                &old.socket,
                RequestBody::Left,
            );
            pair.settle();
        }
    }

    fn read(&self, pair: &mut Pair, place: &Place, most: usize) -> Vec<u8> {
        let world = &mut pair.worlds[place.server];
        let bytes = self.apps[place.server].read(world, &place.socket, most);
        pair.settle();
        bytes
    }

    fn write(&self, pair: &mut Pair, place: &Place, data: &[u8]) -> usize {
        let world = &mut pair.worlds[place.server];
        let written = self.apps[place.server].write(world, &place.socket, data);
        pair.settle();
        written
    }

    fn tell(&self, pair: &mut Pair, place: &Place, body: RequestBody) {
        self.apps[place.server].tell(&mut pair.worlds[place.server], &place.socket, body);
        pair.settle();
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|number| (number.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect()
}

/// One connection at server 0, accepted.
fn connected() -> (Pair, Program, Place, SocketId, u16) {
    let mut pair = Pair::new();
    let mut program = Program::new(&mut pair);
    program.listen(&mut pair, 80);
    let peer = pair.dial(80);
    let place = program.accept(&mut pair, 0).unwrap();
    let bucket = pair.bucket_of(peer, 80);
    (pair, program, place, peer, bucket)
}

#[test]
fn a_connection_goes_there_and_back_with_its_bytes() {
    let (mut pair, program, mut place, peer, bucket) = connected();
    let data = pattern(300_000);
    let (mut sent, mut read, mut written) = (0, Vec::new(), 0);
    for round in 0..8 {
        // Some bytes wait on both sides when it moves.
        pair.peer_sends(peer, &data[sent..sent + 20_000]);
        sent += 20_000;
        read.extend(program.read(&mut pair, &place, 7_000));
        written += program.write(&mut pair, &place, &data[written..written + 9_000]);
        let from = pair.owner_of(bucket);
        assert_eq!((from, place.server), (round % 2, round % 2));
        let row = pair.move_bucket(from, bucket);
        assert!(row.moved && row.connections == 1, "{row:?}");
        program.follow(&mut pair, &mut place);
        assert_eq!(place.server, 1 - from);
        read.extend(program.read(&mut pair, &place, 1_000));
        written += program.write(&mut pair, &place, &data[written..written + 100]);
    }
    for _ in 0..1000 {
        let more = program.read(&mut pair, &place, 10_000);
        read.extend(more);
        pair.run_for(1000);
        if read.len() == sent {
            break;
        }
    }
    assert!(read == data[..sent], "{} of {sent}", read.len());
    pair.run_for(1_000_000);
    assert!(pair.peer_received(peer) == data[..written]);
    // Nothing is left where it was.
    for world in &pair.worlds {
        let sockets = &world.server.core.store.sockets;
        assert!(sockets.iter().all(|(_, socket)| socket.stub.is_none()));
    }
    program.tell(&mut pair, &place, RequestBody::Close { abort: false });
    assert!(pair.worlds[0].peer.progress(peer).rx_fin);
}
