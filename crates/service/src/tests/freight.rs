//! Connections between two servers of one service: bytes, state and owners, while applications, peers and requests go
//! on. The two servers are whole; the rings between them are real.

use std::net::SocketAddr;

use haypile_engine::{Freight, SocketId, SocketOptions};
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::{ELSEWHERE, RequestBody, Shutdown, SocketReply, ready};
use haypile_shm::stream::{NewPlace, status};
use haypile_shm::sys;

use super::harness::{App, SERVER, Sock, World};
use crate::freight::baggage::{Arrival, Receipt};
use crate::freight::{Busy, Hands};
use crate::managers::wire::Incoming;
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

    fn with(second: &str) -> Pair {
        let plan: Plan = "TS2LS2CM2".parse().unwrap();
        let world = |(own, settings)| World::at(Roles::new(&plan, own), settings, false);
        let mut worlds = [(0, ""), (1, second)].map(world);
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
        self.dial_in(port, None)
    }

    /// As [`Pair::dial`], into one bucket.
    fn dial_in(&mut self, port: u16, bucket: Option<u16>) -> SocketId {
        let now = self.worlds[0].now;
        for local in 20_000.. {
            let local = SocketAddr::new(super::harness::PEER.parse().unwrap(), local);
            let steered = self.worlds[0].server.core.shard.steered().unwrap();
            let its = steered.steering.bucket_of_flow(server_at(port), local);
            if steered.steering.owner_of_flows(its) != 0 || bucket.is_some_and(|one| one != its) {
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
            let (app, world) = (&self.apps[server], &mut pair.worlds[server]);
            let socket = app.bind(world, &format!("0.0.0.0:{port}")).unwrap();
            let body = RequestBody::Listen {
                backlog: 16,
                v6only: false,
                reuse_port: false,
                // The same at both servers.
                cookie: u64::from(port) << 40,
                opening: false,
            };
            app.ask(world, (socket.slot, socket.generation), body).unwrap();
            pair.settle();
            socket
        })
    }

    /// It accepts, at both servers.
    fn accepts(&self, pair: &mut Pair, listeners: &[Sock; 2]) {
        for (server, listener) in listeners.iter().enumerate() {
            let world = &mut pair.worlds[server];
            self.apps[server].tell(world, listener, RequestBody::Acceptor);
        }
        pair.settle();
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

    /// A server hears that it has ended.
    fn ends_at(&self, pair: &mut Pair, server: usize) {
        pair.core(server).deaths.push(self.apps[server].process_id);
        pair.settle();
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

fn placeholder() -> (sys::Fd, u64) {
    let fd = sys::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0).unwrap();
    let cookie = sys::so_cookie(fd.raw()).unwrap();
    (fd, cookie)
}

/// One connection at server 0, accepted.
fn connected() -> (Pair, Program, Place, SocketId, u16) {
    connected_in(Pair::new())
}

fn connected_in(mut pair: Pair) -> (Pair, Program, Place, SocketId, u16) {
    let mut program = Program::new(&mut pair);
    let listeners = program.listen(&mut pair, 80);
    program.accepts(&mut pair, &listeners);
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

/// Both ends can say something, and the other hears it.
fn assert_talk(pair: &mut Pair, program: &Program, place: &Place, peer: SocketId) {
    let before = pair.peer_received(peer).len();
    if place.socket.stream.writable() == 0 {
        // Its memory was taken back while it was idle; asking brings it.
        assert_eq!(program.write(pair, place, b"ping"), 0);
    }
    assert_eq!(program.write(pair, place, b"ping"), 4);
    // Something before it may have to be acknowledged first.
    pair.run_for(300_000);
    assert_eq!(&pair.peer_received(peer)[before..], b"ping");
    pair.peer_sends(peer, b"pong");
    assert_eq!(program.read(pair, place, 100), b"pong");
}

fn used_chunks(pair: &mut Pair, server: usize) -> u32 {
    pair.core(server).store.domains.iter().map(|(_, domain)| domain.arena.used_chunks()).sum()
}

fn sockets(pair: &mut Pair, server: usize) -> usize {
    pair.core(server).store.sockets.len()
}

#[test]
fn the_old_server_gives_the_memory_back_and_the_slot_when_the_process_has_followed() {
    let (mut pair, program, mut place, peer, bucket) = connected();
    pair.peer_sends(peer, &pattern(100_000));
    let before = sockets(&mut pair, 0);
    assert!(used_chunks(&mut pair, 0) > 0);
    assert!(pair.move_bucket(0, bucket).moved);
    assert_eq!((used_chunks(&mut pair, 0), sockets(&mut pair, 0)), (0, before));
    assert!(used_chunks(&mut pair, 1) > 0);
    program.follow(&mut pair, &mut place);
    assert_eq!(sockets(&mut pair, 0), before - 1);
    assert_eq!(pair.core(1).counters.followed, 1);
    assert_eq!(program.read(&mut pair, &place, 200_000), pattern(100_000));
    assert_talk(&mut pair, &program, &place, peer);
}

#[test]
fn nothing_moves_while_somebody_is_in_the_middle_of_a_copy() {
    let (mut pair, program, mut place, peer, bucket) = connected();
    pair.peer_sends(peer, b"some bytes");
    program.apps[0].arena(&mut pair.worlds[0], 0);
    let tried = std::cell::Cell::new(0);
    let worlds = std::cell::RefCell::new(&mut pair.worlds);
    let chunks = |index| {
        tried.set(tried.get() + 1);
        let core = &mut worlds.borrow_mut()[0].server.core;
        assert_eq!(core.prepare_move(bucket), Err(Busy));
        (program.apps[0].chunks())(index)
    };
    let mut bytes = [0; 100];
    assert_eq!(place.socket.stream.read(&mut bytes, &chunks).unwrap().bytes, 10);
    assert_eq!(place.socket.stream.write(b"more", &chunks).unwrap().bytes, 4);
    assert_eq!(tried.get(), 2);
    program.tell(&mut pair, &place, RequestBody::KickTx);
    assert_eq!(pair.peer_received(peer), b"more");
    // Ready to leave, and then it stays.
    let core = pair.core(0);
    core.prepare_move(bucket).unwrap();
    core.cancel_move(bucket);
    assert_talk(&mut pair, &program, &place, peer);
    assert!(pair.move_bucket(0, bucket).moved);
    program.follow(&mut pair, &mut place);
    assert_talk(&mut pair, &program, &place, peer);
}

#[test]
fn a_server_begins_no_connection_before_it_has_heard_what_has_moved() {
    let plan: Plan = "TS2LS2CM2".parse().unwrap();
    let mut world = World::at(Roles::new(&plan, 0), "", false);
    let mut pair = peer_pair(true);
    let (ends, bell) = pair.first.take().unwrap();
    world.server.greet_peer(world.now, 1, ends, bell);
    let app = world.app();
    let remote = SocketAddr::new(super::harness::PEER.parse().unwrap(), 9_000);
    app.say_of((NO_SLOT, 0), RequestBody::Connect { remote });
    for _ in 0..10 {
        world.turn();
    }
    assert_eq!(
        world.server.core.shard.connection_count(),
        0,
        "its port would be chosen by an old map"
    );
    let ((mut other, _), _) = pair.second.take().unwrap();
    assert!(other.push(&Incoming::MovesTold.encode()));
    for _ in 0..3 {
        world.turn();
    }
    assert_eq!(world.server.core.shard.connection_count(), 1);
}

#[test]
fn a_bucket_may_leave_in_the_turn_in_which_it_hears_that_its_last_move_is_over() {
    let (mut pair, program, mut place, peer, bucket) = connected();
    pair.give(0, bucket);
    let unsettled =
        |pair: &mut Pair| [0, 1].map(|at| pair.core(at).steer_report().servers[0].unsettled);
    for _ in 0..10 {
        if unsettled(&mut pair) == [0, 1] {
            break;
        }
        pair.worlds[1].turn();
        pair.worlds[0].turn();
    }
    assert_eq!(unsettled(&mut pair), [0, 1], "the last word about it is on its way to server 1");
    pair.give(1, bucket);
    assert_eq!(pair.core(1).moving.counters().given, 1);
    pair.settle();
    assert_eq!(pair.owner_of(bucket), 0);
    program.follow(&mut pair, &mut place);
    assert_eq!(place.server, 0);
    assert_talk(&mut pair, &program, &place, peer);
}

#[test]
fn what_nobody_has_accepted_is_accepted_where_it_has_gone() {
    for offered in [false, true] {
        let mut pair = Pair::new();
        let mut program = Program::new(&mut pair);
        let listeners = program.listen(&mut pair, 80);
        if offered {
            program.accepts(&mut pair, &listeners);
        }
        let peer = pair.dial(80);
        pair.peer_sends(peer, b"to whom it may concern");
        let offer = program.apps[0].next_offer();
        assert_eq!(offer.is_some(), offered);
        assert_eq!(pair.core(0).store.unclaimed_bytes(), 22);
        let bucket = pair.bucket_of(peer, 80);
        assert!(pair.move_bucket(0, bucket).moved);
        assert_eq!(pair.core(0).store.unclaimed_bytes(), 0);
        assert!(offer.is_none_or(|offer| !offer.stream.claim()), "it is somewhere else");
        if !offered {
            assert_eq!(pair.core(1).store.unclaimed_bytes(), 22);
            program.accepts(&mut pair, &listeners);
        }
        let place = program.accept(&mut pair, 1).unwrap();
        assert_eq!(program.read(&mut pair, &place, 100), b"to whom it may concern");
        assert_eq!(pair.core(1).store.unclaimed_bytes(), 0);
        assert_talk(&mut pair, &program, &place, peer);
        assert_eq!(sockets(&mut pair, 0), 1, "the listener");
    }
}

#[test]
fn a_claim_that_was_not_said_yet_counts() {
    let mut pair = Pair::new();
    let mut program = Program::new(&mut pair);
    let listeners = program.listen(&mut pair, 80);
    program.accepts(&mut pair, &listeners);
    let peer = pair.dial(80);
    pair.peer_sends(peer, b"hello");
    let socket = program.apps[0].next_offer().unwrap();
    assert!(socket.stream.claim());
    let bucket = pair.bucket_of(peer, 80);
    assert!(pair.move_bucket(0, bucket).moved);
    let mut place = Place { server: 0, socket };
    program.tell(&mut pair, &place, RequestBody::Claim);
    program.follow(&mut pair, &mut place);
    assert_eq!((place.server, program.read(&mut pair, &place, 100)), (1, b"hello".to_vec()));
    assert_talk(&mut pair, &program, &place, peer);
    // The manager hears how long it was served, wherever it is.
    let served = pair.core(1).store.sockets.iter().find_map(|(_, socket)| socket.served);
    assert_eq!(served.unwrap().process.word(), program.apps[0].name.0);
    // Claimed, and the process has no descriptor for it.
    let peer = pair.dial(80);
    let socket = program.apps[0].next_offer().unwrap();
    assert!(socket.stream.claim());
    let bucket = pair.bucket_of(peer, 80);
    assert!(pair.move_bucket(0, bucket).moved);
    program.tell(&mut pair, &Place { server: 0, socket }, RequestBody::Refuse);
    assert!(pair.worlds[0].peer.progress(peer).error.is_some());
}

#[test]
fn a_closed_connection_delivers_the_rest_from_where_it_has_gone() {
    let (mut pair, program, place, peer, bucket) = connected();
    let data = pattern(200_000);
    program.apps[0].map(&mut pair.worlds[0]);
    let written = program.apps[0].write_now(&place.socket, &data);
    program.apps[0].say(&place.socket, RequestBody::Close { abort: false });
    // The peer says nothing meanwhile.
    for _ in 0..4 {
        pair.worlds[0].turn();
    }
    let job = pair.give(0, bucket);
    assert_eq!(sockets(&mut pair, 0), 1, "the listener");
    pair.settle();
    assert!(pair.core(0).moving.take_done(job).unwrap()[0].moved);
    let now = pair.worlds[0].now;
    assert!(pair.core(1).orphans.iter().any(|(until, _)| *until > now));
    pair.run_for(3_000_000);
    assert!(written > 10_000 && pair.peer_received(peer) == data[..written]);
    assert!(pair.worlds[0].peer.progress(peer).rx_fin);
    pair.worlds[0].peer.close(now, peer);
    pair.run_for(3_000_000);
    assert_eq!(sockets(&mut pair, 1), 1, "the listener");
    assert_eq!(used_chunks(&mut pair, 1), 0);
}

#[test]
fn an_attempt_to_connect_goes_on_where_it_has_gone() {
    let mut pair = Pair::new();
    let program = Program::new(&mut pair);
    let socket = program.apps[0].connect(&mut pair.worlds[0], super::harness::PEER, 99);
    let mut place = Place { server: 0, socket: socket.unwrap() };
    pair.settle();
    assert_ne!(place.socket.stream.status() & status::FAILED, 0, "nobody listens yet");
    pair.worlds[0].peer_listens(99);
    let remote = SocketAddr::new(super::harness::PEER.parse().unwrap(), 99);
    program.apps[0].say(&place.socket, RequestBody::Connect { remote });
    pair.worlds[0].turn();
    let core = pair.core(0);
    let summary = core.shard.sockets().find(|one| one.remote == Some(remote)).unwrap();
    let bucket = core.shard.steered().unwrap().steering.bucket_of_flow(summary.local, remote);
    assert!(pair.move_bucket(0, bucket).moved);
    program.follow(&mut pair, &mut place);
    pair.run_for(3_000_000);
    assert_eq!(place.server, 1);
    assert_ne!(place.socket.stream.status() & status::CONNECTED, 0);
    let peer = pair.worlds[0].peer.accepted[0];
    assert_talk(&mut pair, &program, &place, peer);
}

#[test]
fn what_is_said_on_the_way_comes_after() {
    let (mut pair, program, mut place, peer, bucket) = connected();
    program.write(&mut pair, &place, b"before");
    pair.give(0, bucket);
    let app = &program.apps[0];
    let quiet = RequestBody::SetOption {
        option: crate::options::number(libc::IPPROTO_TCP, libc::TCP_NODELAY),
        value: 1,
    };
    app.say(&place.socket, quiet);
    app.say(&place.socket, RequestBody::KickRx);
    app.say(&place.socket, RequestBody::WantTx);
    app.say(&place.socket, RequestBody::Shutdown { how: Shutdown::Write });
    pair.worlds[0].turn();
    assert!(!pair.worlds[0].peer.progress(peer).rx_fin);
    pair.settle();
    assert_eq!(pair.peer_received(peer), b"before");
    assert!(pair.worlds[0].peer.progress(peer).rx_fin);
    // And what is said when it is known to be gone.
    program.tell(&mut pair, &place, RequestBody::Shutdown { how: Shutdown::Write });
    assert_eq!(pair.core(1).counters.late_heard, 3);
    program.follow(&mut pair, &mut place);
    assert_ne!(place.socket.stream.status() & status::TX_SHUT, 0);
    let moved = pair.core(1).store.sockets.iter().find(|(_, one)| one.tx_shut).unwrap().1;
    assert!(moved.options.no_delay);
    pair.peer_sends(peer, b"after");
    assert_eq!(program.read(&mut pair, &place, 100), b"after");
}

#[test]
fn questions_are_answered_elsewhere() {
    let (mut pair, program, place, _, bucket) = connected();
    let name = (place.socket.slot, place.socket.generation);
    let app = &program.apps[0];
    let option = crate::options::number(libc::SOL_SOCKET, libc::SO_RCVBUF);
    let job = pair.give(0, bucket);
    for known in [false, true] {
        let world = &mut pair.worlds[0];
        for body in [RequestBody::GetOption { option }, RequestBody::TcpInfo { part: 0 }] {
            assert_eq!(app.ask_option(world, &place.socket, body), Err(ELSEWHERE));
        }
        let body = RequestBody::SetOption { option, value: 1 };
        let reply = SocketReply::decode(&app.call(world, name, body)).unwrap();
        let server = if known { 1 } else { haypile_shm::NO_SLOT };
        assert_eq!((reply.errno, reply.slot), (ELSEWHERE, server));
        if !known {
            pair.settle();
            assert!(pair.core(0).moving.take_done(job).unwrap()[0].moved);
        }
    }
}

#[test]
fn watchers_hear_that_a_connection_has_moved() {
    let (mut pair, program, place, peer, bucket) = connected();
    let app = &program.apps[0];
    let mut before = app.watcher(&mut pair.worlds[0], 0);
    app.watch(&mut pair.worlds[0], &before, &place.socket, ready::IN);
    assert_eq!(before.next(), None);
    let mut meanwhile = app.watcher(&mut pair.worlds[0], 1);
    pair.give(0, bucket);
    app.watch(&mut pair.worlds[0], &meanwhile, &place.socket, ready::IN);
    assert_eq!((before.next(), meanwhile.next()), (None, None));
    pair.settle();
    for watcher in [&mut before, &mut meanwhile] {
        assert_eq!(watcher.next().map(|ready| ready.slot), Some(place.socket.slot));
    }
    assert_ne!(place.socket.stream.status() & status::MOVED, 0);
    let mut after = app.watcher(&mut pair.worlds[0], 2);
    app.watch(&mut pair.worlds[0], &after, &place.socket, ready::IN);
    assert!(after.next().is_some());
    // At the new place it is as with any socket.
    let mut place = place;
    program.follow(&mut pair, &mut place);
    let mut there = program.apps[1].watcher(&mut pair.worlds[1], 0);
    program.apps[1].watch(&mut pair.worlds[1], &there, &place.socket, ready::IN);
    assert_eq!(there.next(), None);
    pair.peer_sends(peer, b"x");
    assert!(there.next().is_some_and(|ready| ready.slot == place.socket.slot));
}

#[test]
fn who_has_no_room_refuses_and_all_is_as_before() {
    let (mut pair, program, place, peer, bucket) =
        connected_in(Pair::with("[limits]\nsockets_per_domain = 16\n"));
    // Its domain is full there.
    while program.apps[1].bind(&mut pair.worlds[1], "0.0.0.0:0").is_ok() {}
    pair.peer_sends(peer, &pattern(50_000));
    program.write(&mut pair, &place, b"before");
    let job = pair.give(0, bucket);
    let app = &program.apps[0];
    assert!(place.socket.stream.want_tx());
    app.say(&place.socket, RequestBody::WantTx);
    app.say(&place.socket, RequestBody::Shutdown { how: Shutdown::Write });
    pair.worlds[0].turn();
    pair.settle();
    assert!(place.socket.stream.want_tx(), "it was answered");
    // It is tried again as long as patience lasts.
    pair.run_for(1_500_000);
    let row = pair.core(0).moving.take_done(job).unwrap().remove(0);
    assert!(!row.moved, "{row:?}");
    assert_eq!(pair.core(0).depot.packed, [], "nothing is on its way");
    assert_eq!(place.socket.stream.status() & status::MOVED, 0);
    // What was said meanwhile is done now.
    assert_ne!(place.socket.stream.status() & status::TX_SHUT, 0);
    assert!(pair.worlds[0].peer.progress(peer).rx_fin);
    assert_eq!(pair.peer_received(peer), b"before");
    assert_eq!(program.read(&mut pair, &place, 100_000), pattern(50_000));
    program.tell(&mut pair, &place, RequestBody::Close { abort: false });
    let now = pair.worlds[0].now;
    pair.worlds[0].peer.close(now, peer);
    pair.run_for(3_000_000);
    assert_eq!(sockets(&mut pair, 0), 1, "the listener");
}

#[test]
fn a_server_that_dies_before_it_has_taken_a_connection_changes_nothing() {
    let (mut pair, program, place, peer, bucket) = connected();
    pair.peer_sends(peer, b"unread");
    pair.give(0, bucket);
    let now = pair.worlds[0].now;
    pair.worlds[0].server.leave_peer(now, 1);
    pair.settle();
    assert_eq!(program.read(&mut pair, &place, 100), b"unread");
    assert_talk(&mut pair, &program, &place, peer);
}

#[test]
fn what_is_left_of_a_connection_that_died_with_its_server_is_freed_in_silence() {
    let (mut pair, program, place, _, bucket) = connected();
    assert!(pair.move_bucket(0, bucket).moved);
    let NewPlace { epoch, .. } = place.socket.stream.new_place().unwrap();
    let now = pair.worlds[0].now;
    // Another server by that number: what was meant for the one before is not for it.
    pair.worlds[0].server.leave_peer(now, 1);
    pair.core(1).era.epoch = epoch.wrapping_add(4);
    pair.introduce();
    let before = sockets(&mut pair, 0);
    program.tell(&mut pair, &place, RequestBody::Close { abort: false });
    assert_eq!(sockets(&mut pair, 0), before - 1);
    assert_eq!((pair.core(0).counters.late_sent, pair.core(1).counters.late_heard), (1, 0));
}

#[test]
fn who_does_not_follow_before_the_old_server_dies_has_a_while() {
    for (attached, arrives) in [(false, false), (false, true), (true, false)] {
        let (mut pair, program, place, peer, bucket) = match attached {
            true => connected(),
            false => {
                let mut pair = Pair::new();
                let mut app = pair.worlds[0].app();
                app.listen(&mut pair.worlds[0], 80);
                let peer = pair.dial(80);
                let socket = app.accept(&mut pair.worlds[0]).unwrap();
                let bucket = pair.bucket_of(peer, 80);
                let other = pair.worlds[1].app();
                let program = Program { apps: [app, other] };
                (pair, program, Place { server: 0, socket }, peer, bucket)
            }
        };
        assert!(pair.move_bucket(0, bucket).moved);
        let at = place.socket.stream.new_place().unwrap();
        let now = pair.worlds[1].now;
        pair.worlds[1].server.leave_peer(now, 0);
        pair.run_for(59_000_000);
        let live = |pair: &Pair| pair.worlds[0].peer.progress(peer).error.is_none();
        assert!(live(&pair));
        if arrives {
            let app = pair.worlds[1].app_from(&program.apps[0]);
            app.ask(&mut pair.worlds[1], (at.slot, at.generation), RequestBody::Arrive).unwrap();
            pair.run_for(10_000_000);
            assert!(live(&pair));
            continue;
        }
        pair.run_for(10_000_000);
        assert_eq!(live(&pair), attached);
        assert_eq!(pair.core(1).counters.strays, u64::from(!attached));
    }
}

/// Nobody looks at a connection that several processes have, when the server that it came from leaves: it lives as
/// long as its placeholder, or as a process that may have it.
#[test]
fn a_shared_connection_that_nobody_follows_lives_as_long_as_its_placeholder() {
    for by_placeholder in [true, false] {
        let (mut pair, program, place, peer, bucket) = connected();
        let (fd, cookie) = placeholder();
        program.tell(&mut pair, &place, RequestBody::Shared { cookie });
        assert!(pair.move_bucket(0, bucket).moved);
        let now = pair.worlds[1].now;
        pair.worlds[1].server.leave_peer(now, 0);
        pair.run_for(200_000_000);
        let state = pair.worlds[0].peer.progress(peer);
        assert!(state.error.is_none() && !state.rx_fin, "{:?}", state.error);
        assert_eq!(pair.core(1).counters.strays, 0);
        if by_placeholder {
            drop(fd);
        } else {
            program.ends_at(&mut pair, 1);
        }
        let start = std::time::Instant::now();
        while !pair.worlds[0].peer.progress(peer).rx_fin {
            assert!(start.elapsed().as_secs() < 60, "{by_placeholder}: nobody has ended it");
            pair.settle();
        }
    }
}

/// The old server dies when the new one has the connection and it has not heard so: its process is told that the
/// connection is lost, and so it is.
#[test]
fn what_a_process_was_told_is_lost_is_kept_by_nobody() {
    for announced in [false, true] {
        let (mut pair, program, place, peer, bucket) = connected();
        pair.give(0, bucket);
        pair.worlds[1].turn();
        assert_eq!(pair.core(1).counters.moved_lost, 0);
        if announced {
            // It has heard, and said so to all before it died, but nobody has listened yet.
            pair.worlds[0].turn();
            assert!(place.socket.stream.new_place().is_some());
        }
        let now = pair.worlds[1].now;
        pair.worlds[1].server.leave_peer(now, 0);
        pair.run_for(10_000);
        let error = pair.worlds[0].peer.progress(peer).error;
        assert_eq!(error.is_some(), !announced, "{error:?}");
        assert_eq!(sockets(&mut pair, 1), 1 + usize::from(announced), "the listener");
        let counters = (pair.core(1).counters.moved_lost, pair.core(1).moving.counters().unheard);
        assert_eq!(counters, if announced { (0, 0) } else { (1, 1) });
        drop(program);
    }
}

/// A connection has gone on before its process came; the server in between dies.
#[test]
fn who_cannot_find_the_way_any_more_is_waited_for_by_nobody() {
    for found in [false, true] {
        let (mut pair, program, mut place, peer, bucket) = connected();
        assert!(pair.move_bucket(0, bucket).moved);
        if found {
            program.follow(&mut pair, &mut place);
        }
        assert!(pair.move_bucket(1, bucket).moved);
        let now = pair.worlds[0].now;
        pair.worlds[0].server.leave_peer(now, 1);
        pair.run_for(10_000);
        assert_eq!(pair.worlds[0].peer.progress(peer).error.is_none(), found);
        assert_eq!(pair.core(0).counters.moved_lost, u64::from(!found));
    }
}

/// A server that leaves waits until somebody who has a shared connection has been there, if it only passed through:
/// from there on he finds the way without it.
#[test]
fn a_server_on_the_way_of_a_shared_connection_waits_until_it_is_found() {
    let (mut pair, program, place, peer, bucket) = connected();
    let (fd, cookie) = placeholder();
    program.tell(&mut pair, &place, RequestBody::Shared { cookie });
    assert!(pair.move_bucket(0, bucket).moved);
    assert_eq!(pair.core(0).stubs(), 0, "where it was accepted, its record is known");
    assert!(pair.move_bucket(1, bucket).moved);
    assert_eq!(pair.core(1).stubs(), 1);
    let at = place.socket.stream.new_place().unwrap();
    let name = (at.slot, at.generation);
    program.apps[1].ask(&mut pair.worlds[1], name, RequestBody::Arrive).unwrap();
    pair.settle();
    assert_eq!(pair.core(1).stubs(), 0);
    let now = pair.worlds[0].now;
    pair.worlds[0].server.leave_peer(now, 1);
    pair.run_for(10_000);
    assert!(pair.worlds[0].peer.progress(peer).error.is_none());
    assert_eq!(pair.core(0).counters.moved_lost, 0);
    drop(fd);
}

#[test]
fn the_death_of_a_process_ends_what_it_has_not_followed() {
    let (mut pair, program, _, peer, bucket) = connected();
    assert!(pair.move_bucket(0, bucket).moved);
    // Only the old server hears of it.
    program.ends_at(&mut pair, 0);
    assert!(pair.worlds[0].peer.progress(peer).rx_fin);
}

#[test]
fn a_shared_connection_is_followed_by_each_process_and_ends_with_its_placeholder() {
    let (mut pair, program, mut place, peer, bucket) = connected();
    let (fd, cookie) = placeholder();
    program.tell(&mut pair, &place, RequestBody::Shared { cookie });
    let child = program.apps[0].fork(&mut pair.worlds[0]);
    let child_there = pair.worlds[1].app_from(&child);
    assert!(pair.move_bucket(0, bucket).moved);
    program.follow(&mut pair, &mut place);
    assert_talk(&mut pair, &program, &place, peer);
    // The stub is there for the others.
    let old = child.adopt(&mut pair.worlds[0], fd.raw()).unwrap();
    let at = old.stream.new_place().unwrap();
    let name = (at.slot, at.generation);
    let (new, _) = child_there.ask(&mut pair.worlds[1], name, RequestBody::Arrive).unwrap();
    child.tell(&mut pair.worlds[0], &old, RequestBody::Left);
    assert_eq!(child_there.write(&mut pair.worlds[1], &new, b"child"), 5);
    pair.settle();
    assert!(pair.peer_received(peer).ends_with(b"child"));
    // Neither a CLOSE nor the end of all processes at the new server ends it.
    program.tell(&mut pair, &place, RequestBody::Close { abort: false });
    program.ends_at(&mut pair, 1);
    pair.core(1).deaths.push(child_there.process_id);
    pair.settle();
    assert!(pair.core(1).processes.is_empty());
    assert!(!pair.worlds[0].peer.progress(peer).rx_fin);
    drop(fd);
    let start = std::time::Instant::now();
    while !pair.worlds[0].peer.progress(peer).rx_fin {
        assert!(start.elapsed().as_secs() < 60, "the kernel never said so");
        pair.settle();
    }
    assert!(sockets(&mut pair, 0) <= 1 && child.process_id > 0);
}

/// What is closed goes on wherever it is, and keeps its bucket from going nowhere.
#[test]
fn a_shared_connection_that_was_closed_moves_as_often_as_it_is_asked_to() {
    let (mut pair, program, place, peer, bucket) = connected();
    let (fd, cookie) = placeholder();
    program.tell(&mut pair, &place, RequestBody::Shared { cookie });
    drop(fd);
    let start = std::time::Instant::now();
    while !pair.worlds[0].peer.progress(peer).rx_fin {
        assert!(start.elapsed().as_secs() < 60, "the kernel never said so");
        pair.settle();
    }
    for round in 0..4 {
        let row = pair.move_bucket(round % 2, bucket);
        assert!(row.moved && row.connections == 1, "{round}: {row:?}");
    }
    // It is there to hear the end of its peer.
    let now = pair.worlds[0].now;
    pair.worlds[0].peer.close(now, peer);
    pair.run_for(1_000_000);
    assert_eq!(pair.worlds[0].peer.progress(peer).error, None);
    assert_eq!(pair.core(0).counters.moved_lost + pair.core(1).counters.moved_lost, 0);
}

/// No placeholder has the number 0, and no bucket is lost by who says so.
#[test]
fn a_placeholder_that_there_cannot_be_is_none() {
    let (mut pair, program, mut place, peer, bucket) = connected();
    program.tell(&mut pair, &place, RequestBody::Shared { cookie: 0 });
    for round in 0..2 {
        assert!(pair.move_bucket(round % 2, bucket).moved);
        program.follow(&mut pair, &mut place);
    }
    assert_talk(&mut pair, &program, &place, peer);
}

#[test]
fn what_cannot_be_written_down_ends_alone() {
    let (mut pair, mut program, place, peer, bucket) = connected();
    let core = pair.core(0);
    let key = core.store.sockets.iter().find(|(_, one)| one.came_to.is_some()).unwrap().0;
    // There is no placeholder by which it could be.
    core.store.sockets.get_mut(key).unwrap().shared = true;
    let neighbour = pair.dial_in(80, Some(bucket));
    let mut its_place = program.accept(&mut pair, 0).unwrap();
    let row = pair.move_bucket(0, bucket);
    assert!(row.moved && row.connections == 2, "{row:?}");
    pair.run_for(10_000);
    assert_eq!(
        pair.worlds[0].peer.progress(peer).error,
        Some(haypile_engine::SocketError::ConnectionReset)
    );
    assert_eq!(place.socket.stream.take_error(), libc::ECONNRESET);
    assert_ne!(place.socket.stream.status() & status::FAILED, 0);
    program.follow(&mut pair, &mut its_place);
    assert_talk(&mut pair, &program, &its_place, neighbour);
}

#[test]
fn a_connection_that_becomes_shared_on_the_way_is_shared_there() {
    let (mut pair, program, mut place, peer, bucket) = connected();
    let (fd, cookie) = placeholder();
    pair.give(0, bucket);
    program.apps[0].say(&place.socket, RequestBody::Shared { cookie });
    pair.worlds[0].turn();
    pair.settle();
    let shared = |pair: &mut Pair, server| {
        let keys = pair.core(server).store.by_cookie(cookie).to_vec();
        keys.iter().all(|key| pair.core(server).store.sockets.get(*key).unwrap().shared)
            && !keys.is_empty()
    };
    assert!(shared(&mut pair, 0) && shared(&mut pair, 1));
    program.follow(&mut pair, &mut place);
    assert_talk(&mut pair, &program, &place, peer);
    drop(fd);
}

#[test]
fn a_process_follows_along_a_chain_of_servers() {
    let (mut pair, program, mut place, peer, bucket) = connected();
    pair.peer_sends(peer, b"unread");
    for round in 0..5 {
        assert!(pair.move_bucket(round % 2, bucket).moved);
    }
    program.follow(&mut pair, &mut place);
    assert_eq!(place.server, 1);
    assert_eq!(program.read(&mut pair, &place, 100), b"unread");
    assert_talk(&mut pair, &program, &place, peer);
    let stubs = |pair: &mut Pair, server| {
        let sockets = &pair.core(server).store.sockets;
        sockets.iter().filter(|(_, socket)| socket.stub.is_some()).count()
    };
    assert_eq!((stubs(&mut pair, 0), stubs(&mut pair, 1)), (0, 0));
    // The end of one that was never followed goes the same way.
    let (mut pair, program, place, peer, bucket) = connected();
    for round in 0..3 {
        assert!(pair.move_bucket(round % 2, bucket).moved);
    }
    program.tell(&mut pair, &place, RequestBody::Close { abort: false });
    assert!(pair.worlds[0].peer.progress(peer).rx_fin);
    assert_eq!((stubs(&mut pair, 0), stubs(&mut pair, 1)), (0, 0));
}

#[test]
fn what_is_lost_on_the_way_is_reset() {
    for arrived in [false, true] {
        let (mut pair, program, place, _, bucket) = connected();
        pair.give(0, bucket);
        let now = pair.worlds[0].now;
        if arrived {
            // The other server had no memory for it after all.
            let core = pair.core(0);
            let stub = core.store.sockets.iter().find(|(_, one)| one.stub.is_some()).unwrap().0;
            let arrival = Arrival { stub: stub.number(), slot: u32::MAX, generation: 0 };
            let receipt = Receipt { epoch: 1, arrivals: vec![arrival] }.encode();
            let (store, processes) = (&mut core.store, &mut core.processes);
            Hands { store, processes, depot: &mut core.depot }.deliver(1, &receipt);
        } else {
            pair.core(0).fail_stubs_of(now, bucket);
        }
        pair.worlds[0].turn();
        assert_eq!(place.socket.stream.status() & status::MOVED, 0);
        assert_ne!(place.socket.stream.status() & status::FAILED, 0);
        assert_eq!(place.socket.stream.take_error(), libc::ECONNRESET);
        // Nobody waits for it in vain.
        assert_eq!(place.socket.stream.discard(1).unwrap().bytes, 0);
        let before = sockets(&mut pair, 0);
        program.tell(&mut pair, &place, RequestBody::Close { abort: false });
        assert_eq!(sockets(&mut pair, 0), before - 1);
    }
}

#[test]
fn an_impossible_position_ends_the_connection_and_not_the_move() {
    let (mut pair, program, place, peer, bucket) = connected();
    // As a program does that scribbles over its record.
    let core = pair.core(0);
    let domain = core.store.domains.find(&program.apps[0].domain).unwrap();
    let table = core.store.domains.get_mut(domain).unwrap().table.segment(0).unwrap();
    let tx_tail = haypile_shm::limits::slot_offset(place.socket.slot) + 72;
    table.atomic_u64(tx_tail).unwrap().store(1 << 40, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(pair.core(0).prepare_move(bucket), Err(Busy));
    pair.settle();
    assert!(pair.worlds[0].peer.progress(peer).error.is_some());
    assert!(pair.move_bucket(0, bucket).moved);
}
