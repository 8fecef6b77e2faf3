//! The scenarios: so many operations of one kind, in rounds that always look the same.
//!
//! [`Trace::start`] sets everything up, [`Trace::run`] does operations. Rounds are bursts of
//! [`BURST`] operations, because the costs of a turn are shared by what is done in it; the
//! scenarios that end in `alone` do one at a time. Read `haypile_service::harness` first.

use std::net::SocketAddr;

use haypile_engine::control::messages::BetweenManagers;
use haypile_engine::control::names::ProcessName;
use haypile_engine::{DatagramOptions, SendTo, SocketId, SocketOption, SocketOptions};
use haypile_link::port::Port;
use haypile_service::harness::{App, PEER, SERVER, Sock, Watcher, World};
use haypile_service::options;
use haypile_shm::messages::{RequestBody, ready};

/// Linux's numbers (tcp(7)).
const IPPROTO_TCP: i32 = 6;
const TCP_NODELAY: i32 = 1;

/// Operations in one round.
pub const BURST: usize = 16;
/// Superframes in one round: as many as fit the windows.
const SUPERFRAMES: usize = 4;
/// Bytes of a request.
const REQUEST: usize = 100;
/// Bytes of an answer.
const ANSWER: usize = 512;
/// Bytes of a small segment's, or datagram's, payload.
const SMALL: usize = 64;
/// Payload of a full segment: 1500 less IP, TCP and timestamps.
const FULL: usize = 1448;
/// Payload of a superframe: the most full segments that one IP packet holds.
const SUPER: usize = 45 * FULL;
/// Where the application listens, or is bound.
const PORT: u16 = 80;
/// Where the peer's UDP socket is bound.
const PEER_PORT: u16 = 9000;

/// Rounds after which everything has the memory it needs, and windows are open.
const WARM_UP_ROUNDS: usize = 40;

/// Connection managers where there are many.
const MANAGERS: u16 = 64;

/// Virtual time between two rounds.
const ROUND_US: u64 = 50;

/// What one operation is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// A turn that finds nothing to do.
    EmptyTurn,
    /// Connect, request, answer, close by the server.
    Short,
    /// The same where `MANAGERS` - 1 other connection managers have offered an application.
    ShortAmongMany,
    /// A request and its answer on one of 16 connections, 16 at a time.
    KeepAlive,
    /// The same, one at a time on one connection.
    KeepAliveAlone,
    /// A segment of 64 bytes for each of 16 connections.
    ReceivedSmall,
    /// A full segment of one stream.
    ReceivedFull,
    /// A superframe of one stream.
    ReceivedSuper,
    /// A segment of 64 bytes from each of 16 connections.
    SentSmall,
    /// A full segment of one stream.
    SentFull,
    /// A superframe of one stream.
    SentSuper,
    /// A datagram of 64 bytes to one socket.
    DatagramReceived,
    /// A datagram of 64 bytes from one socket.
    DatagramSent,
}

impl Scenario {
    /// All of them, in the order of the table.
    pub const ALL: [Scenario; 13] = [
        Scenario::EmptyTurn,
        Scenario::Short,
        Scenario::ShortAmongMany,
        Scenario::KeepAlive,
        Scenario::KeepAliveAlone,
        Scenario::ReceivedSmall,
        Scenario::ReceivedFull,
        Scenario::ReceivedSuper,
        Scenario::SentSmall,
        Scenario::SentFull,
        Scenario::SentSuper,
        Scenario::DatagramReceived,
        Scenario::DatagramSent,
    ];

    /// Its name on the command line and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::EmptyTurn => "empty-turn",
            Scenario::Short => "short-connection",
            Scenario::ShortAmongMany => "short-connection-of-64",
            Scenario::KeepAlive => "keep-alive",
            Scenario::KeepAliveAlone => "keep-alive-alone",
            Scenario::ReceivedSmall => "received-small",
            Scenario::ReceivedFull => "received-full",
            Scenario::ReceivedSuper => "received-superframe",
            Scenario::SentSmall => "sent-small",
            Scenario::SentFull => "sent-full",
            Scenario::SentSuper => "sent-superframe",
            Scenario::DatagramReceived => "datagram-received",
            Scenario::DatagramSent => "datagram-sent",
        }
    }

    /// The scenario of a name.
    pub fn by_name(name: &str) -> Option<Scenario> {
        Scenario::ALL.into_iter().find(|scenario| scenario.name() == name)
    }

    /// Whether the link takes superframes.
    fn superframes(self) -> bool {
        matches!(self, Scenario::ReceivedSuper | Scenario::SentSuper)
    }

    /// Connections that are there from the start.
    fn connections(self) -> usize {
        match self {
            Scenario::EmptyTurn | Scenario::Short | Scenario::ShortAmongMany => 0,
            Scenario::DatagramReceived | Scenario::DatagramSent => 0,
            Scenario::KeepAlive | Scenario::ReceivedSmall | Scenario::SentSmall => BURST,
            _ => 1,
        }
    }

    /// Whether connections come and go.
    fn is_short(self) -> bool {
        matches!(self, Scenario::Short | Scenario::ShortAmongMany)
    }

    /// Operations in one round.
    pub fn burst(self) -> usize {
        match self {
            Scenario::EmptyTurn | Scenario::KeepAliveAlone => 1,
            Scenario::ReceivedSuper | Scenario::SentSuper => SUPERFRAMES,
            _ => BURST,
        }
    }
}

/// A connection, both ends.
struct Line {
    socket: Sock,
    peer: SocketId,
}

/// A scenario that has been set up.
pub struct Trace {
    /// The stage.
    pub world: World,
    scenario: Scenario,
    app: App,
    watcher: Watcher,
    lines: Vec<Line>,
    datagrams: Option<(Sock, SocketId)>,
    buffer: Vec<u8>,
}

impl Trace {
    /// Sets a scenario up and lets it run until nothing is done for the first time.
    pub fn start(scenario: Scenario) -> Trace {
        let mut world = World::over("", scenario.superframes());
        world.hold_writes();
        let app = world.app();
        let watcher = app.watcher(&mut world, 0);
        let listener = app.listen(&mut world, PORT);
        app.watch(&mut world, &watcher, &listener, ready::IN);
        let mut trace = Trace {
            world,
            scenario,
            app,
            watcher,
            lines: Vec::new(),
            datagrams: None,
            buffer: vec![0x5a; SUPER],
        };
        // With the first connection the domain has memory that can be mapped.
        trace.lines = trace.dial(1);
        trace.app.map(&mut trace.world);
        let others = trace.dial(scenario.connections().saturating_sub(1));
        trace.lines.extend(others);
        if scenario == Scenario::SentSmall {
            trace.send_at_once();
        }
        if scenario == Scenario::ShortAmongMany {
            trace.hear_many_managers();
        }
        if matches!(scenario, Scenario::DatagramReceived | Scenario::DatagramSent) {
            let local = SocketAddr::new(PEER.parse().expect("an address"), PEER_PORT);
            let peer = trace.world.peer.shard.open_datagram(local, DatagramOptions::default());
            let socket = trace.app.bind_datagram(&mut trace.world, &format!("{SERVER}:{PORT}"));
            let socket = socket.expect("a free port");
            trace.app.watch(&mut trace.world, &trace.watcher, &socket, ready::IN);
            trace.datagrams = Some((socket, peer.expect("a free port")));
        }
        trace.world.run_for(300_000);
        trace.run(scenario.burst() * WARM_UP_ROUNDS);
        trace.world.misjudged = 0;
        trace
    }

    /// Sets TCP_NODELAY, without which small segments wait for acknowledgements.
    fn send_at_once(&mut self) {
        let option = options::number(IPPROTO_TCP, TCP_NODELAY);
        for line in &self.lines {
            let body = RequestBody::SetOption { option, value: 1 };
            let name = (line.socket.slot, line.socket.generation);
            let answer = self.app.ask(&mut self.world, name, body);
            assert!(answer.is_ok(), "TCP_NODELAY");
        }
    }

    /// Every other manager has an application that is as fast as ours.
    fn hear_many_managers(&mut self) {
        let (core, now) = (&mut self.world.server.core, self.world.now);
        core.manager.set_peers(true);
        let queue = core.manager.summaries(now).pop().expect("the listener's queue");
        for manager in 1..MANAGERS {
            let process = ProcessName::new(manager, 1);
            let (group, listener) = (queue.group, queue.group);
            let best = BetweenManagers::Best {
                group,
                listener,
                process,
                service_time_us: ROUND_US as u32,
            };
            core.between_managers(now, manager, best);
        }
    }

    /// Does at least `operations`, whole rounds; how many.
    pub fn run(&mut self, operations: usize) -> usize {
        let rounds = operations.div_ceil(self.scenario.burst());
        for _ in 0..rounds {
            // Timers stay quiet, but what is due by the microsecond becomes due.
            if self.scenario != Scenario::EmptyTurn {
                self.world.now = self.world.now.plus_us(ROUND_US);
            }
            self.round();
            while self.watcher.next().is_some() {}
        }
        rounds * self.scenario.burst()
    }

    fn round(&mut self) {
        match self.scenario {
            Scenario::EmptyTurn => self.empty_turn(),
            Scenario::Short | Scenario::ShortAmongMany => self.short_connections(),
            Scenario::KeepAlive | Scenario::KeepAliveAlone => self.requests(),
            Scenario::ReceivedSmall => self.receive(SMALL),
            Scenario::ReceivedFull => self.receive(BURST * FULL),
            Scenario::ReceivedSuper => self.receive(SUPERFRAMES * SUPER),
            Scenario::SentSmall => self.send(SMALL),
            Scenario::SentFull => self.send(BURST * FULL),
            Scenario::SentSuper => self.send(SUPERFRAMES * SUPER),
            Scenario::DatagramReceived => self.receive_datagrams(),
            Scenario::DatagramSent => self.send_datagrams(),
        }
    }

    /// Driven as if there were work, so that it is counted.
    fn empty_turn(&mut self) {
        let world = &mut self.world;
        let work = (world.driver)(&mut world.server, world.now, true);
        assert!(work.is_none(), "{work:?}");
    }

    /// Connections of the peer that the application has accepted and watches.
    fn dial(&mut self, count: usize) -> Vec<Line> {
        let remote = SocketAddr::new(SERVER.parse().expect("an address"), PORT);
        let now = self.world.now;
        let peers: Vec<SocketId> = (0..count)
            .map(|_| {
                let shard = &mut self.world.peer.shard;
                let id = shard.connect(now, None, remote, SocketOptions::default());
                let id = id.expect("a free port");
                shard.set_option(now, id, SocketOption::NoDelay(true));
                id
            })
            .collect();
        self.world.peer.step(now);
        self.world.settle();
        if self.scenario.is_short() {
            // A client does not wait to be accepted.
            self.peer_writes(peers.iter().copied(), REQUEST);
            self.world.settle();
        }
        let mut lines = Vec::with_capacity(count);
        for peer in peers {
            let socket = self.app.accept_now().expect("an offer");
            let watch = RequestBody::Watch {
                watcher: self.watcher.number,
                mask: ready::IN | ready::RDHUP,
                one_shot: false,
            };
            self.app.say(&socket, watch);
            lines.push(Line { socket, peer });
        }
        self.world.settle();
        lines
    }

    fn short_connections(&mut self) {
        let lines = self.dial(BURST);
        self.answer(&lines);
        for line in &lines {
            self.app.say(&line.socket, RequestBody::Close { abort: false });
        }
        self.world.settle();
        self.peer_reads(&lines, ANSWER);
        for line in &lines {
            self.world.peer.close(self.world.now, line.peer);
        }
        self.world.settle();
        for line in &lines {
            self.world.peer.forget(line.peer);
        }
        assert_eq!(self.world.peer.released.len(), lines.len(), "connections end");
        self.world.peer.released.clear();
    }

    fn requests(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        self.peer_writes(peers_of(&lines), REQUEST);
        self.world.settle();
        self.answer(&lines);
        self.peer_reads(&lines, ANSWER);
        self.lines = lines;
    }

    /// The application reads the request that has come on each connection, and answers.
    fn answer(&mut self, lines: &[Line]) {
        for line in lines {
            let got = self.app.read_now(&line.socket, &mut self.buffer[..2 * REQUEST]);
            assert_eq!(got, REQUEST, "the request");
            assert_eq!(self.app.write_now(&line.socket, &self.buffer[..ANSWER]), ANSWER);
        }
        self.world.settle();
    }

    /// The peer sends `bytes` on each connection.
    fn receive(&mut self, bytes: usize) {
        let lines = std::mem::take(&mut self.lines);
        self.peer_writes(peers_of(&lines), bytes);
        let mut left = bytes * lines.len();
        while left > 0 {
            self.world.settle();
            for line in &lines {
                left -= self.app.read_now(&line.socket, &mut self.buffer);
            }
        }
        self.world.settle();
        self.lines = lines;
    }

    /// The application sends `bytes` on each connection.
    fn send(&mut self, bytes: usize) {
        let lines = std::mem::take(&mut self.lines);
        for line in &lines {
            let mut left = bytes;
            while left > 0 {
                left -= self.app.write_now(&line.socket, &self.buffer[..left.min(SUPER)]);
                if left > 0 {
                    self.world.settle();
                }
            }
        }
        self.world.settle();
        self.peer_reads(&lines, bytes);
        self.lines = lines;
    }

    fn receive_datagrams(&mut self) {
        let Some((socket, peer)) = &self.datagrams else { return };
        let to = SendTo {
            remote: Some(SocketAddr::new(SERVER.parse().expect("an address"), PORT)),
            ..SendTo::default()
        };
        let (now, world) = (self.world.now, &mut self.world);
        for _ in 0..BURST {
            let sent = world.peer.shard.send_datagram(now, *peer, &to, &self.buffer[..SMALL]);
            sent.expect("room for a datagram");
        }
        world.settle();
        for _ in 0..BURST {
            let got = self.app.receive_now(socket, &mut self.buffer[..2 * SMALL]);
            assert_eq!(got, Some(SMALL), "a datagram");
        }
        world.settle();
    }

    fn send_datagrams(&mut self) {
        let Some((socket, _)) = &self.datagrams else { return };
        let remote = SocketAddr::new(PEER.parse().expect("an address"), PEER_PORT);
        let before = self.world.peer.streams.datagram_bytes;
        for _ in 0..BURST {
            let sent = self.app.send_now(socket, remote, &self.buffer[..SMALL]);
            assert!(sent, "room for a datagram");
        }
        self.world.settle();
        let came = self.world.peer.streams.datagram_bytes - before;
        assert_eq!(came, (BURST * SMALL) as u64, "the datagrams come");
    }

    /// The peer writes, each connection's bytes for a frame of their own.
    fn peer_writes(&mut self, peers: impl Iterator<Item = SocketId>, bytes: usize) {
        let world = &mut self.world;
        for peer in peers {
            let written = world.peer.streams.sent.entry(peer).or_default();
            written.resize(written.len() + bytes, 0xa5);
            let tail = written.len() as u64;
            world.peer.shard.send_ready(world.now, peer, tail);
        }
    }

    /// The peer has got `bytes` more on each connection, and takes them.
    fn peer_reads(&mut self, lines: &[Line], bytes: usize) {
        let world = &mut self.world;
        for line in lines {
            let end = world.peer.progress(line.peer).rx_end;
            assert_eq!(end % bytes as u64, 0, "all of it comes");
            world.peer.shard.receive_consumed(world.now, line.peer, end);
        }
        world.settle();
    }

    /// Frames that the server has received and sent so far.
    pub fn frames(&self) -> [u64; 2] {
        let counters = self.world.server.link.port().counters();
        [counters.rx_frames, counters.tx_frames]
    }
}

fn peers_of(lines: &[Line]) -> impl Iterator<Item = SocketId> + '_ {
    lines.iter().map(|line| line.peer)
}
