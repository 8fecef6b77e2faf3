//! The stage: `World` (server, link, peer, clock), `App` (a process of an application), `Peer`.
//!
//! For this crate's tests, and with the feature `harness` for the trace that the cost table is made
//! of. Everything is as in the product except that time is virtual, randomness comes from fixed
//! seeds and processes only sleep. Panics where a test would.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use haypile_engine::{
    Close, Datagram, Event, Instant, Limits, ListenOptions, Progress, Shard, ShardConfig, SocketId,
    SocketOptions, Streams,
};
use haypile_link::port::Port;
use haypile_link::wire::{self, Wire};
use haypile_shm::DatagramHeader;
use haypile_shm::limits::{ARENA_SIZE, CHUNK_SIZE, NO_SLOT, TABLE_SIZE};
use haypile_shm::messages::{
    ControlReply, ControlRequest, Offer, OptionReply, Ready, Request, RequestBody, SocketReply,
};
use haypile_shm::sys::{self, Errno, Fd};
use haypile_shm::{
    AppChannel, AppStatus, AppStream, Consumer, Doorbell, PROTOCOL_VERSION, Segment, control,
};

use crate::aside::Inward;
use crate::config::{Config, Flags};
use crate::link_server::{self, BURST, LinkServer};
use crate::poller::Token;
use crate::requests::BUDGET;
use crate::roles::Roles;
use crate::server::{Foundation, Server, Work};

/// The server's address.
pub const SERVER: &str = "198.18.0.1";
/// The peer's address.
pub const PEER: &str = "198.18.0.2";

/// What gives the server its turns; told whether there is anything to do in this one.
pub type Driver = Box<dyn FnMut(&mut Server<Wire>, Instant, bool) -> Work>;

/// Everything a test needs.
pub struct World {
    /// The server under test.
    pub server: Server<Wire>,
    /// The other host.
    pub peer: Peer,
    /// The time it is.
    pub now: Instant,
    /// Gives the server its turns.
    pub driver: Driver,
    /// Turns for which it was foretold wrongly whether there is anything to do.
    pub misjudged: u64,
    /// The last turn may have left something undone.
    unfinished: bool,
    attach: Fd,
    directory: tempfile::TempDir,
}

/// The other host: a shard with its bytes in vectors.
pub struct Peer {
    /// Its stack.
    pub shard: Shard,
    link: LinkServer<Wire>,
    /// It stands at another link of its service: what comes from this one is for [`Peer::take_over`].
    pub is_elsewhere: bool,
    /// Its bytes.
    pub streams: Vectors,
    /// Connections that came.
    pub accepted: Vec<SocketId>,
    /// Connections that are forgotten.
    pub released: Vec<SocketId>,
}

/// Streams in vectors.
#[derive(Default)]
pub struct Vectors {
    /// What came, from position 0.
    pub received: HashMap<SocketId, Vec<u8>>,
    /// What is to be sent, from position 0.
    pub sent: HashMap<SocketId, Vec<u8>>,
    /// What the shard last said.
    pub progress: HashMap<SocketId, Progress>,
    /// Bytes of datagrams that came.
    pub datagram_bytes: u64,
}

impl Streams for Vectors {
    fn write(&mut self, id: SocketId, position: u64, data: &[u8]) -> usize {
        let bytes = self.received.entry(id).or_default();
        let end = position as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[position as usize..end].copy_from_slice(data);
        data.len()
    }

    fn read(&mut self, id: SocketId, position: u64, out: &mut [u8]) {
        let bytes = &self.sent[&id];
        out.copy_from_slice(&bytes[position as usize..][..out.len()]);
    }

    fn write_datagram(&mut self, _: SocketId, _: &Datagram, payload: &[u8]) -> bool {
        self.datagram_bytes += payload.len() as u64;
        true
    }
}

impl Inward for Vectors {}

thread_local! {
    /// Who will say HELLO next: sleeping processes stand for applications.
    static NEXT_PROCESS: RefCell<VecDeque<i32>> = const { RefCell::new(VecDeque::new()) };
    /// What keeps processes alive whose end nobody can see.
    static IMMORTAL: RefCell<Vec<Fd>> = const { RefCell::new(Vec::new()) };
}

fn next_process(_: RawFd) -> Result<(i32, Fd), Errno> {
    let pid = NEXT_PROCESS.with_borrow_mut(VecDeque::pop_front).ok_or(Errno::EPERM)?;
    match sys::pidfd_open(pid) {
        // Valgrind knows no such call: the process seems to live as long as the test.
        Err(Errno::ENOSYS) => {
            let (held, given) = sys::socketpair_seqpacket()?;
            IMMORTAL.with_borrow_mut(|all| all.push(held));
            Ok((pid, given))
        }
        pidfd => Ok((pid, pidfd?)),
    }
}

impl Default for World {
    fn default() -> World {
        World::new()
    }
}

impl World {
    /// A world as it comes.
    pub fn new() -> World {
        World::with("")
    }

    /// A world with further settings, as in a configuration file.
    pub fn with(settings: &str) -> World {
        World::over(settings, false)
    }

    /// A world whose link may take superframes and unfinished checksums both ways.
    pub fn over(settings: &str, superframes: bool) -> World {
        World::at(Roles::combined(), settings, superframes)
    }

    /// A world whose server is one of several.
    pub fn at(roles: Roles, settings: &str, superframes: bool) -> World {
        let directory = tempfile::tempdir().unwrap();
        let text = format!("addresses = [\"{SERVER}/24\", \"2001:2::1/64\"]\n{settings}");
        let config = Config::from_text(&text, &Flags::default(), directory.path()).unwrap();
        let macs = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
        let (port, other) = wire::pair(1500, macs, wire::WIRE_LINES, superframes).unwrap();
        let now = Instant::from_us(1_000_000);
        let foundation =
            Foundation { roles, secret: [5; 32], seed: 11, ..Foundation::alone().unwrap() };
        let mut server = Server::with(&config, port, now, foundation).unwrap();
        server.core.peer_process = next_process;
        let path = directory.path().join("attach.sock");
        let attach = sys::unix_listen_seqpacket(path.as_os_str().as_bytes(), 64).unwrap();
        server.poller.add(attach.raw(), Token::Attach).unwrap();
        World {
            server,
            peer: Peer::new(other, now),
            now,
            driver: Box::new(|server, now, _| server.step(now).unwrap()),
            misjudged: 0,
            unfinished: false,
            attach,
            directory,
        }
    }

    /// The server polls, so that it holds a last write for the close behind it, as on a machine
    /// with cores to spare.
    pub fn hold_writes(&mut self) {
        self.server.core.holds_writes = true;
    }

    /// One turn of the server.
    pub fn turn(&mut self) -> Work {
        let foretold = self.has_work();
        let work = (self.driver)(&mut self.server, self.now, foretold);
        self.misjudged += u64::from(foretold == work.is_none());
        // A turn is bounded. (Bytes need not be looked at: no test fills a turn with superframes.)
        self.unfinished = work.sent >= BURST || work.received >= BURST || work.requests >= BUDGET;
        work
    }

    /// Whether the next turn will find something to do.
    fn has_work(&mut self) -> bool {
        let due = self.server.poll_timeout().is_some_and(|due| due <= self.now);
        let came = !self.server.link.port_mut().prepare_sleep();
        self.server.link.port_mut().awake();
        due || came || self.unfinished || self.server.core.processes.any_requests()
    }

    /// Both hosts take turns until nothing moves, while `us` pass.
    pub fn run_for(&mut self, us: u64) {
        let end = self.now.plus_us(us);
        loop {
            self.settle();
            let next = [self.server.poll_timeout(), self.peer.shard.poll_timeout()];
            let next = next.into_iter().flatten().min().filter(|due| *due <= end);
            let Some(next) = next else { break };
            self.now = next.max(self.now.plus_us(1));
        }
        self.now = end;
        self.settle();
    }

    /// Both hosts take turns until nothing moves; no time passes.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            let looked = self.look();
            let work = self.turn();
            if !self.peer.step(self.now) && work.is_none() && !looked {
                return;
            }
        }
        panic!("the hosts never come to rest");
    }

    /// Reads the kernel's events, as the event loop does. Whether there were any but frames, which
    /// the next turn takes.
    pub fn look(&mut self) -> bool {
        let mut tokens = Vec::new();
        self.server.poller.wait(0, &mut tokens);
        for token in &tokens {
            self.server.handle(*token, self.attach.raw());
        }
        !tokens.is_empty()
    }

    /// Looks until the kernel has said what the test waits for; it may take a while.
    pub fn look_until(&mut self, what: impl Fn(&World) -> bool) {
        let start = std::time::Instant::now();
        while !what(self) {
            assert!(start.elapsed().as_secs() < 60, "the kernel never said so");
            self.settle();
        }
    }

    /// A new application in a domain of its own.
    pub fn app(&mut self) -> App {
        self.app_in([0; 16])
    }

    /// A new application in a domain.
    pub fn app_in(&mut self, domain: [u8; 16]) -> App {
        let control = self.connect_control();
        App::attach(self, sleeper(), control, domain)
    }

    /// Another program in an existing process.
    pub fn app_of(&mut self, pid: i32) -> App {
        let control = self.connect_control();
        NEXT_PROCESS.with_borrow_mut(|next| next.push_back(pid));
        App::greet(self, sleeper(), control, [0; 16], (0, 0))
    }

    /// A process that is attached to another server of the service already.
    pub fn app_from(&mut self, other: &App) -> App {
        let control = self.connect_control();
        NEXT_PROCESS.with_borrow_mut(|next| next.push_back(other.child.id() as i32));
        App::greet(self, sleeper(), control, other.domain, other.name)
    }

    /// The answer to a HELLO of the process `pid`, on a control connection.
    pub fn greet(&mut self, control: &Fd, pid: i32, name: u64, proof: u64) -> ControlReply {
        NEXT_PROCESS.with_borrow_mut(|next| next.push_back(pid));
        let (version, build) = (PROTOCOL_VERSION, haypile_shm::BUILD_VERSION);
        let (program, domain) = ([0; 16], [3; 16]);
        let hello = ControlRequest::Hello { version, build, program, domain, name, proof };
        control::send(control.raw(), &hello.encode(), &[]).unwrap();
        self.settle();
        let reply = ControlReply::decode(&control::receive(control.raw()).unwrap().message);
        // Not asked for if it was sent home.
        NEXT_PROCESS.with_borrow_mut(VecDeque::clear);
        reply.unwrap()
    }

    /// Who will be at the other end of the next connection that is asked about.
    pub fn next_is(&self, pid: i32) {
        NEXT_PROCESS.with_borrow_mut(|next| next.push_back(pid));
    }

    /// A control connection that nothing was said on yet.
    pub fn connect_control(&self) -> Fd {
        let path = self.directory.path().join("attach.sock");
        sys::unix_connect_seqpacket(path.as_os_str().as_bytes()).unwrap()
    }

    /// A connection from the peer to a port of the server.
    pub fn dial(&mut self, port: u16) -> SocketId {
        let remote = SocketAddr::new(SERVER.parse().unwrap(), port);
        let options = SocketOptions::default();
        let id = self.peer.shard.connect(self.now, None, remote, options).unwrap();
        self.settle();
        id
    }

    /// The peer sends bytes.
    pub fn peer_sends(&mut self, id: SocketId, data: &[u8]) {
        let bytes = self.peer.streams.sent.entry(id).or_default();
        bytes.extend_from_slice(data);
        let tail = bytes.len() as u64;
        self.peer.shard.send_ready(self.now, id, tail);
        self.settle();
    }

    /// The peer takes everything that has come in order.
    pub fn peer_received(&mut self, id: SocketId) -> Vec<u8> {
        let end = self.peer.progress(id).rx_end;
        self.peer.shard.receive_consumed(self.now, id, end);
        let bytes = self.peer.streams.received.get(&id).cloned().unwrap_or_default();
        bytes[..end as usize].to_vec()
    }

    /// The peer listens.
    pub fn peer_listens(&mut self, port: u16) -> SocketId {
        let local = SocketAddr::new(PEER.parse().unwrap(), port);
        self.peer.shard.listen(local, ListenOptions::default()).unwrap()
    }
}

impl Peer {
    /// At the end of a wire.
    pub fn new(port: Wire, now: Instant) -> Peer {
        let offloads = link_server::offloads(port.features());
        let config = ShardConfig {
            mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
            addresses: vec![format!("{PEER}/24").parse().unwrap()],
            routes: Vec::new(),
            limits: Limits::default(),
            secret: [9; 32],
            seed: 7,
            offloads,
            steered: None,
        };
        Peer {
            shard: Shard::new(config, now).unwrap(),
            link: LinkServer::new(port).unwrap(),
            is_elsewhere: false,
            streams: Vectors::default(),
            accepted: Vec::new(),
            released: Vec::new(),
        }
    }

    /// Its turn; whether anything moved. Never inlined, so that profilers see it.
    #[inline(never)]
    pub fn step(&mut self, now: Instant) -> bool {
        if self.is_elsewhere {
            return false;
        }
        let received = self.link.receive(now, &mut self.shard, &mut self.streams).unwrap();
        self.shard.handle_timers(now, &mut self.streams);
        while let Some(event) = self.shard.poll_event() {
            match event {
                Event::Accepted { id, .. } => {
                    self.shard.claimed(id);
                    self.accepted.push(id);
                }
                Event::Progress { id, progress } => {
                    self.streams.progress.insert(id, progress);
                }
                Event::Released { id } => self.released.push(id),
                Event::DatagramError { .. } | Event::NetworkChanged | Event::Resolved { .. } => {}
            }
        }
        let sent = self.link.transmit(now, &mut self.shard, &mut self.streams).unwrap();
        received + sent > 0
    }

    /// Takes the frames that have come at another link of the same service; how many.
    pub fn take_over(&mut self, now: Instant, other: &mut Peer) -> usize {
        other.link.receive(now, &mut self.shard, &mut self.streams).unwrap()
    }

    /// What the shard last said of a connection.
    pub fn progress(&self, id: SocketId) -> Progress {
        self.streams.progress.get(&id).copied().unwrap_or_default()
    }

    /// Closes a connection.
    pub fn close(&mut self, now: Instant, id: SocketId) {
        self.shard.close(now, id, Close::Graceful);
    }

    /// Forgets the bytes of a connection that is gone.
    pub fn forget(&mut self, id: SocketId) {
        self.streams.received.remove(&id);
        self.streams.sent.remove(&id);
        self.streams.progress.remove(&id);
    }
}

/// A process that does nothing but live.
fn sleeper() -> Child {
    let mut command = Command::new("sleep");
    // It must not hold a pipe open that somebody reads to its end.
    command.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// What an application does between turns. Never inlined, so that profilers see it.
#[inline(never)]
fn application<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// A process of an application, as the client library would be.
pub struct App {
    child: Child,
    /// Its control connection.
    pub control: Fd,
    /// Its rings.
    pub channel: AppChannel,
    offers: Consumer,
    /// Its number with the service.
    pub process_id: u32,
    /// Token of its trust domain.
    pub domain: [u8; 16],
    /// Its name in all servers, and what it shows with it.
    pub name: (u64, u64),
    table: Arc<Segment>,
    arenas: RefCell<HashMap<u32, Arc<Segment>>>,
}

/// One socket of an application.
pub struct Sock {
    /// Its end of the stream.
    pub stream: AppStream,
    /// Slot in the domain.
    pub slot: u32,
    /// Which use of the slot.
    pub generation: u32,
}

/// A watcher of an application.
pub struct Watcher {
    /// Where READYs come.
    pub ring: Consumer,
    /// Its number in the process.
    pub number: u32,
    bell: Doorbell,
}

impl Drop for App {
    fn drop(&mut self) {
        self.kill();
    }
}

impl App {
    fn attach(world: &mut World, child: Child, control: Fd, domain: [u8; 16]) -> App {
        NEXT_PROCESS.with_borrow_mut(|next| next.push_back(child.id() as i32));
        App::greet(world, child, control, domain, (0, 0))
    }

    fn greet(
        world: &mut World,
        child: Child,
        control: Fd,
        domain: [u8; 16],
        (name, proof): (u64, u64),
    ) -> App {
        let (build, program) = (haypile_shm::BUILD_VERSION, *b"application\0\0\0\0\0");
        let hello = ControlRequest::Hello {
            version: PROTOCOL_VERSION,
            build,
            program,
            domain,
            name,
            proof: if name == 0 { haypile_shm::messages::CHOSEN_HOME } else { proof },
        };
        control::send(control.raw(), &hello.encode(), &[]).unwrap();
        world.settle();
        let received = control::receive(control.raw()).unwrap();
        let reply = ControlReply::decode(&received.message).unwrap();
        let ControlReply::Welcome { process_id, domain, name, proof, .. } = reply else {
            panic!("refused: {reply:?}");
        };
        let [channel, status, table, wake, ..] = received.fds;
        let wake = Doorbell::from_fd(wake.unwrap());
        let status = AppStatus::open(status.unwrap()).unwrap();
        let channel = AppChannel::open(channel.unwrap(), status, wake).unwrap();
        let table = Arc::new(Segment::from_fd(table.unwrap(), TABLE_SIZE, false).unwrap());
        App {
            child,
            control,
            offers: channel.offers(),
            channel,
            process_id,
            domain,
            name: (name, proof),
            table,
            arenas: RefCell::default(),
        }
    }

    /// A forked child of this process, attached over the connection it inherited.
    pub fn fork(&self, world: &mut World) -> App {
        let (ours, theirs) = sys::socketpair_seqpacket().unwrap();
        let message = ControlRequest::AttachChild.encode();
        control::send(self.control.raw(), &message, &[theirs.raw()]).unwrap();
        world.settle();
        App::attach(world, sleeper(), ours, self.domain)
    }

    /// Ends the process as kill -9 does.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Ends the process and lets the server notice.
    pub fn die(mut self, world: &mut World) {
        self.kill();
        let id = self.process_id;
        world.look_until(|world| world.server.core.processes.get(id).is_none());
    }

    /// Sends a request that is not answered.
    pub fn tell(&self, world: &mut World, socket: &Sock, body: RequestBody) {
        self.say(socket, body);
        world.settle();
    }

    /// As `tell`, without giving the server a turn.
    pub fn say(&self, socket: &Sock, body: RequestBody) {
        self.say_of((socket.slot, socket.generation), body);
    }

    /// As `say`, of the socket with a name.
    pub fn say_of(&self, (slot, generation): (u32, u32), body: RequestBody) {
        let request = Request::about(slot, generation, body);
        self.channel.sender().send_now(&request.encode()).unwrap();
    }

    /// Sends a request and gives the bytes of its answer.
    pub fn call(
        &self,
        world: &mut World,
        name: (u32, u32),
        body: RequestBody,
    ) -> haypile_shm::messages::ReplyPayload {
        let cell = self.channel.allocate_reply().unwrap();
        let request = Request::about(name.0, name.1, body).with_reply(cell.index());
        self.channel.sender().send_now(&request.encode()).unwrap();
        world.settle();
        cell.wait(0, || panic!("no answer")).unwrap()
    }

    /// Sends a request that answers with a socket; on success with an end of it.
    pub fn ask(
        &self,
        world: &mut World,
        name: (u32, u32),
        body: RequestBody,
    ) -> Result<(Sock, SocketReply), i32> {
        let reply = SocketReply::decode(&self.call(world, name, body)).unwrap();
        if reply.errno != 0 {
            return Err(reply.errno);
        }
        Ok((self.sock(reply.slot, reply.generation), reply))
    }

    /// Asks for an option's value.
    pub fn ask_option(
        &self,
        world: &mut World,
        socket: &Sock,
        body: RequestBody,
    ) -> Result<Vec<u8>, i32> {
        let name = (socket.slot, socket.generation);
        let reply = OptionReply::decode(&self.call(world, name, body)).unwrap();
        if reply.errno == 0 { Ok(reply.bytes().to_vec()) } else { Err(reply.errno) }
    }

    /// The socket of a name.
    pub fn sock(&self, slot: u32, generation: u32) -> Sock {
        let table = Arc::clone(&self.table);
        let stream = AppStream::open(table, slot, generation, self.process_id).unwrap();
        Sock { stream, slot, generation }
    }

    /// Binds a new socket, with SO_REUSEADDR.
    pub fn bind(&self, world: &mut World, address: &str) -> Result<Sock, i32> {
        self.bind_with(world, address, false).map(|(socket, _)| socket)
    }

    /// Binds a new socket; the answer too.
    pub fn bind_with(
        &self,
        world: &mut World,
        address: &str,
        reuse_port: bool,
    ) -> Result<(Sock, SocketReply), i32> {
        let address = address.parse().unwrap();
        let body = RequestBody::Bind { address, reuse_address: true, reuse_port, v6only: false };
        self.ask(world, (NO_SLOT, 0), body)
    }

    /// Binds, listens, and accepts from now on.
    pub fn listen(&self, world: &mut World, port: u16) -> Sock {
        let socket = self.bind(world, &format!("0.0.0.0:{port}")).unwrap();
        self.listen_on(world, &socket, 128).unwrap();
        self.tell(world, &socket, RequestBody::Acceptor);
        socket
    }

    /// Listens.
    pub fn listen_on(&self, world: &mut World, socket: &Sock, backlog: u32) -> Result<(), i32> {
        let body = RequestBody::Listen {
            backlog,
            v6only: false,
            reuse_port: false,
            cookie: 0,
            opening: false,
        };
        self.ask(world, (socket.slot, socket.generation), body).map(drop)
    }

    /// Connects a new socket.
    pub fn connect(&self, world: &mut World, ip: &str, port: u16) -> Result<Sock, i32> {
        let ip: IpAddr = ip.parse().unwrap();
        let body = RequestBody::Connect { remote: SocketAddr::new(ip, port) };
        self.ask(world, (NO_SLOT, 0), body).map(|(socket, _)| socket)
    }

    /// The next offer, if there is one.
    pub fn next_offer(&mut self) -> Option<Sock> {
        loop {
            let offer = Offer::decode(&self.offers.pop()?).unwrap();
            // One about nothing wakes, and no more.
            if offer.slot != NO_SLOT {
                return Some(self.sock(offer.slot, offer.generation));
            }
        }
    }

    /// Accepts: claims the next offer and says so.
    pub fn accept(&mut self, world: &mut World) -> Option<Sock> {
        while let Some(socket) = self.next_offer() {
            if socket.stream.claim() {
                self.tell(world, &socket, RequestBody::Claim);
                return Some(socket);
            }
        }
        None
    }

    /// Maps an arena as the client does.
    pub fn arena(&self, world: &mut World, index: u32) {
        if self.arenas.borrow().contains_key(&index) {
            return;
        }
        let message = ControlRequest::MapArena { index }.encode();
        control::send(self.control.raw(), &message, &[]).unwrap();
        world.settle();
        let mut received = control::receive(self.control.raw()).unwrap();
        let segment = Segment::from_fd(received.fds[0].take().unwrap(), ARENA_SIZE, false);
        self.arenas.borrow_mut().insert(index, Arc::new(segment.unwrap()));
    }

    /// The arenas that are mapped.
    pub fn chunks(&self) -> impl Fn(u32) -> Option<Arc<Segment>> + '_ {
        |index| self.arenas.borrow().get(&index).cloned()
    }

    /// Reads what is there, at most `most` bytes, and kicks if asked to.
    pub fn read(&self, world: &mut World, socket: &Sock, most: usize) -> Vec<u8> {
        self.arena(world, 0);
        let mut bytes = vec![0; most];
        let outcome = socket.stream.read(&mut bytes, &self.chunks()).unwrap();
        if outcome.kick {
            self.tell(world, socket, RequestBody::KickRx);
        }
        bytes.truncate(outcome.bytes);
        bytes
    }

    /// Writes what fits and says so; how much.
    pub fn write(&self, world: &mut World, socket: &Sock, data: &[u8]) -> usize {
        self.arena(world, 0);
        let outcome = socket.stream.write(data, &self.chunks()).unwrap();
        if outcome.kick {
            self.say(socket, RequestBody::KickTx);
        }
        if outcome.want {
            self.say(socket, RequestBody::WantTx);
        }
        world.settle();
        outcome.bytes
    }

    /// Opens a UDP socket.
    pub fn bind_datagram(&self, world: &mut World, address: &str) -> Result<Sock, i32> {
        let body = RequestBody::BindDatagram {
            address: address.parse().unwrap(),
            reuse_address: false,
            reuse_port: false,
            v6only: false,
        };
        self.ask(world, (NO_SLOT, 0), body).map(|(socket, _)| socket)
    }

    /// Sends a datagram, if there is room; whether there was.
    pub fn send_to(&self, world: &mut World, socket: &Sock, to: Option<&str>, data: &[u8]) -> bool {
        self.arena(world, 0);
        let remote = to.map(|to| to.parse().unwrap());
        let len = data.len() as u16;
        let header = DatagramHeader { len, remote, ..Default::default() };
        let parts = [std::io::IoSlice::new(data)];
        let outcome = socket.stream.write_record(&header, &parts, &self.chunks()).unwrap();
        if outcome.kick {
            self.say(socket, RequestBody::KickTx);
        }
        if outcome.want {
            self.say(socket, RequestBody::WantTx);
        }
        world.settle();
        outcome.bytes > 0
    }

    /// Writes a datagram without a word about it.
    pub fn write_silently(&self, socket: &Sock, header: &DatagramHeader, data: &[u8]) {
        let parts = [std::io::IoSlice::new(data)];
        assert!(socket.stream.write_record(header, &parts, &self.chunks()).unwrap().bytes > 0);
    }

    /// Receives a datagram: what it says, and its payload.
    pub fn receive(&self, world: &mut World, socket: &Sock) -> Option<(DatagramHeader, Vec<u8>)> {
        self.arena(world, 0);
        let mut bytes = vec![0; usize::from(u16::MAX)];
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let read = socket.stream.read_record(&mut parts, &self.chunks()).unwrap()?;
        if read.kick {
            self.tell(world, socket, RequestBody::KickRx);
        }
        bytes.truncate(read.copied);
        Some((read.header, bytes))
    }

    /// Maps the first arena, so that `read_now` and `write_now` find their chunks.
    pub fn map(&self, world: &mut World) {
        self.arena(world, 0);
    }

    /// As `read` into `out`, without giving the server a turn.
    pub fn read_now(&self, socket: &Sock, out: &mut [u8]) -> usize {
        application(|| {
            let outcome = socket.stream.read(out, &self.chunks()).unwrap();
            if outcome.kick {
                self.say(socket, RequestBody::KickRx);
            }
            outcome.bytes
        })
    }

    /// As `write`, without giving the server a turn.
    pub fn write_now(&self, socket: &Sock, data: &[u8]) -> usize {
        application(|| {
            let outcome = socket.stream.write(data, &self.chunks()).unwrap();
            if outcome.kick {
                self.say(socket, RequestBody::KickTx);
            }
            if outcome.want {
                self.say(socket, RequestBody::WantTx);
            }
            outcome.bytes
        })
    }

    /// Takes one datagram into `out`, without giving the server a turn; its length.
    pub fn receive_now(&self, socket: &Sock, out: &mut [u8]) -> Option<usize> {
        application(|| {
            let mut parts = [IoSliceMut::new(out)];
            let read = socket.stream.read_record(&mut parts, &self.chunks()).unwrap()?;
            if read.kick {
                self.say(socket, RequestBody::KickRx);
            }
            Some(read.copied)
        })
    }

    /// Sends one datagram, without giving the server a turn. False: there is no room now.
    pub fn send_now(&self, socket: &Sock, remote: SocketAddr, data: &[u8]) -> bool {
        application(|| {
            let len = data.len() as u16;
            let header = DatagramHeader { len, remote: Some(remote), ..DatagramHeader::default() };
            let parts = [IoSlice::new(data)];
            let outcome = socket.stream.write_record(&header, &parts, &self.chunks()).unwrap();
            if outcome.kick {
                self.say(socket, RequestBody::KickTx);
            }
            let left = socket.stream.writable();
            let runs_low = left < CHUNK_SIZE as u64 / 4 && socket.stream.tx_room() > left;
            if outcome.want || (outcome.bytes > 0 && runs_low && socket.stream.want_tx()) {
                self.say(socket, RequestBody::WantTx);
            }
            outcome.bytes > 0
        })
    }

    /// Accepts, without giving the server a turn.
    pub fn accept_now(&mut self) -> Option<Sock> {
        while let Some(socket) = self.next_offer() {
            let claimed = application(|| {
                let claimed = socket.stream.claim();
                if claimed {
                    self.say(&socket, RequestBody::Claim);
                }
                claimed
            });
            if claimed {
                return Some(socket);
            }
        }
        None
    }

    /// Opens a watcher.
    pub fn watcher(&self, world: &mut World, number: u32) -> Watcher {
        let (ours, theirs) = Doorbell::pair().unwrap();
        let message = ControlRequest::NewWatcher { watcher: number }.encode();
        control::send(self.control.raw(), &message, &[theirs.raw()]).unwrap();
        world.settle();
        let received = control::receive(self.control.raw()).unwrap();
        let reply = ControlReply::decode(&received.message).unwrap();
        assert_eq!(reply, ControlReply::WatcherMade { watcher: number, errno: 0 });
        Watcher { ring: self.channel.watcher(number).unwrap(), number, bell: ours }
    }

    /// Registers a watcher with a socket.
    pub fn watch(&self, world: &mut World, watcher: &Watcher, socket: &Sock, mask: u32) {
        let body = RequestBody::Watch { watcher: watcher.number, mask, one_shot: false };
        self.tell(world, socket, body);
    }

    /// Asks what a placeholder stands for.
    pub fn adopt(&self, world: &mut World, placeholder: RawFd) -> Result<Sock, i32> {
        let message = ControlRequest::Adopt.encode();
        control::send(self.control.raw(), &message, &[placeholder]).unwrap();
        world.settle();
        let received = control::receive(self.control.raw()).unwrap();
        match ControlReply::decode(&received.message).unwrap() {
            ControlReply::Adopted { errno: 0, slot, generation, .. } => {
                Ok(self.sock(slot, generation))
            }
            ControlReply::Adopted { errno, .. } => Err(errno),
            other => panic!("not an answer: {other:?}"),
        }
    }
}

impl Watcher {
    /// The next event.
    #[expect(clippy::should_implement_trait, reason = "events may come after a None")]
    pub fn next(&mut self) -> Option<Ready> {
        let mut messages = [[0; 8]];
        let count = self.ring.pop_burst(&mut messages);
        (count > 0).then(|| Ready::decode(&messages[0]).unwrap())
    }

    /// Whether the doorbell was rung since the last call.
    pub fn rung(&self) -> bool {
        let mut bytes = [0; 16];
        sys::recv(self.bell.raw(), &mut bytes, libc::MSG_DONTWAIT).is_ok_and(|len| len > 0)
    }
}
