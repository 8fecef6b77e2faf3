//! A service without a network: answers requests over the real shared memory and lets a test play
//! the peer. Addresses of 198.18.0.0/15 and wildcards are its own, all others are the kernel's.
//!
//! One thread for the process, one test at a time. Read `Fake` for what a test can do.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use haypile_shm::control;
use haypile_shm::limits::{NO_REPLY, NO_SLOT, PROTOCOL_VERSION};
use haypile_shm::messages::{
    CHOSEN_HOME, ControlReply, ControlRequest, NOT_OURS, Offer, OptionReply, Ready, Request,
    RequestBody, SocketKind, SocketReply, ready,
};
use haypile_shm::stream::status;
use haypile_shm::sys::{self, Errno, Fd, PollFd};
use haypile_shm::{
    Arena, Doorbell, EpochWriter, ServiceChannel, ServiceStatus, ServiceStream, SocketTable,
};

pub mod asleep;
mod datagrams;
mod moves;

const SEND_BUFFER: u64 = 256 * 1024;

struct Watch {
    process: usize,
    watcher: u32,
    mask: u32,
    last: Option<u32>,
}

struct Socket {
    stream: ServiceStream,
    kind: SocketKind,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    watches: Vec<Watch>,
    offered: bool,
    cookie: Option<u64>,
    received: Vec<u8>,
    /// It is about to leave for another server, or has left.
    stub: Option<moves::Stub>,
    /// It has come from another server, and a process has said that it is here.
    arrived: bool,
}

impl Socket {
    fn new(stream: ServiceStream) -> Socket {
        Socket {
            stream,
            kind: SocketKind::Plain,
            local: None,
            remote: None,
            watches: Vec::new(),
            offered: false,
            cookie: None,
            received: Vec::new(),
            stub: None,
            arrived: false,
        }
    }
}

struct Process {
    control: Fd,
    sent_home: bool,
    channel: Option<ServiceChannel>,
    wake: Option<Doorbell>,
}

/// Everything the service knows.
pub struct State {
    epoch: EpochWriter,
    status: ServiceStatus,
    table: SocketTable,
    arena: Arena,
    processes: Vec<Process>,
    sockets: HashMap<u32, Socket>,
    acceptors: Vec<(usize, u32)>,
    log: Vec<(u32, RequestBody)>,
    next_port: u16,
    /// Which server this is, of how many.
    server: u16,
    servers: u16,
    /// Homes of the next processes that have none.
    homes: Vec<u16>,
    /// Ports that are another server's.
    elsewhere: Vec<(u16, u16)>,
    /// Ports that cannot be listened on here.
    /// Ports, and how often each is refused.
    refused: Vec<(u16, u32)>,
    /// Programs that were said to run no more, by the names of those that run now.
    new_programs: Vec<u64>,
    /// The next request kills it.
    deadly: Option<fn(&RequestBody) -> bool>,
    /// What is written is not acknowledged by itself.
    silent: bool,
}

/// The fake service.
pub struct Fake {
    state: Mutex<State>,
    wake: Doorbell,
}

/// No test waits longer for what must come.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The same in milliseconds, as epoll takes it.
pub const PATIENCE_MS: i32 = 60_000;

static FAKES: OnceLock<Vec<&'static Fake>> = OnceLock::new();
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Starts the service and attaches this process, once; holds off other tests while it lives.
pub fn start() -> (&'static Fake, MutexGuard<'static, ()>) {
    let (fakes, turn) = start_several(1, 0);
    (fakes[0], turn)
}

/// Starts a service of several servers and attaches this process to its `home`, once; holds off
/// other tests while it lives.
pub fn start_several(
    servers: u16,
    home: u16,
) -> (&'static [&'static Fake], MutexGuard<'static, ()>) {
    start_first(servers, servers, home)
}

/// As [`start_several`], of which programs may come to the `first` ones alone, until [`grow`].
pub fn start_first(
    first: u16,
    servers: u16,
    home: u16,
) -> (&'static [&'static Fake], MutexGuard<'static, ()>) {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let fakes = FAKES.get_or_init(|| {
        let path = format!("\0haypile-fake-{}", std::process::id());
        let epochs = EpochWriter::create().unwrap();
        let start = |server| {
            let path = control::attach_path(path.as_bytes(), server);
            let listener = sys::unix_listen_seqpacket(&path, 16).unwrap();
            let (wake, woken) = Doorbell::pair().unwrap();
            let state = State::new(epochs.of(server), server, first);
            let fake: &'static Fake = Box::leak(Box::new(Fake { state: Mutex::new(state), wake }));
            std::thread::spawn(move || serve(fake, &listener, &woken));
            fake
        };
        let fakes: Vec<_> = (0..servers).map(start).collect();
        fakes[0].send_home(home);
        haypile_client::attach(path.as_bytes(), [0; 16]).unwrap();
        fakes
    });
    (fakes, turn)
}

/// Programs may come to all servers: says so where they look, and wakes them.
pub fn grow(fakes: &[&'static Fake]) {
    come_to(fakes, fakes.len() as u16);
}

/// Programs may come to the first `servers`: says so where they look, and wakes them.
pub fn come_to(fakes: &[&'static Fake], servers: u16) {
    fakes[0].lock().epoch.set_servers(servers);
    for fake in fakes {
        let mut state = fake.settle();
        state.servers = servers;
        state.wake_all();
    }
}

/// Waits until a thread has said that it will accept, among requests that nobody has looked at.
pub fn wait_for_acceptor(fake: &Fake) {
    while !fake.requests().iter().any(|(_, body)| *body == RequestBody::Acceptor) {
        std::thread::yield_now();
    }
}

fn serve(fake: &'static Fake, listener: &Fd, woken: &Doorbell) {
    loop {
        let mut fds = {
            let mut state = fake.lock();
            while let Ok((control, _)) = sys::accept4(listener.raw(), libc::SOCK_CLOEXEC) {
                state.add_process(control);
            }
            state.handle_control();
            state.handle_requests();
            state.status.prepare_sleep();
            if state.any_requests() {
                state.status.awake();
                continue;
            }
            state.descriptors()
        };
        for fd in [listener.raw(), woken.raw()] {
            fds.push(PollFd { fd, events: libc::POLLIN, revents: 0 });
        }
        sys::ppoll(&mut fds, Some(Duration::from_millis(500))).unwrap();
        fake.lock().status.awake();
        let _ = woken.drain();
    }
}

impl Fake {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Lets the service handle everything that was sent so far.
    fn settle(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.handle_requests();
        state
    }

    /// Keeps the service from doing anything until what is returned is dropped.
    pub fn hold(&self) -> impl Drop + '_ {
        self.settle()
    }

    /// The home of the next process that has none.
    pub fn send_home(&self, server: u16) {
        self.lock().homes.push(server);
    }

    /// What is asked about a port is another server's to answer.
    pub fn redirect(&self, port: u16, server: u16) {
        self.settle().elsewhere.push((port, server));
    }

    /// Nobody may listen on a port from now on.
    pub fn refuse(&self, port: u16) {
        self.refuse_times(port, u32::MAX);
    }

    /// The next so many requests about a port are refused.
    pub fn refuse_times(&self, port: u16, times: u32) {
        self.settle().refused.push((port, times));
    }

    /// Names of processes in which another program was said to run.
    pub fn new_programs(&self) -> Vec<u64> {
        std::mem::take(&mut self.lock().new_programs)
    }

    /// Whether a port is listened on.
    pub fn listens(&self, port: u16) -> bool {
        let state = self.settle();
        let at = |socket: &Socket| {
            socket.kind == SocketKind::Listener
                && socket.local.is_some_and(|local| local.port() == port)
        };
        state.sockets.values().any(at)
    }

    /// How many sockets of a port there are.
    pub fn count(&self, port: u16) -> usize {
        let state = self.settle();
        let at = |socket: &&Socket| socket.local.is_some_and(|local| local.port() == port);
        state.sockets.values().filter(at).count()
    }

    /// The last process that attached is the acceptor of a listener, as another server says.
    pub fn accept_for_home(&self, port: u16) {
        let listener = self.listener(port);
        let mut state = self.lock();
        let process = state.processes.iter().rposition(|process| process.channel.is_some());
        state.acceptors.retain(|(_, of)| *of != listener);
        state.acceptors.push((process.expect("a process"), listener));
    }

    /// The server dies: nothing that it knew is left.
    pub fn die(&self) {
        self.settle().die();
        self.poke();
    }

    /// How many UDP sockets it has.
    pub fn datagrams(&self) -> usize {
        let state = self.settle();
        state.sockets.values().filter(|socket| socket.kind == SocketKind::Datagram).count()
    }

    /// The server closes all UDP sockets that it has, as one that leaves does.
    pub fn close_datagrams(&self) {
        let mut state = self.settle();
        let is_one = |(_, socket): &(&u32, &Socket)| socket.kind == SocketKind::Datagram;
        let slots: Vec<u32> = state.sockets.iter().filter(is_one).map(|(slot, _)| *slot).collect();
        slots.into_iter().for_each(|slot| state.drop_socket(slot));
    }

    /// The server dies over the next request, which it does not look at, and another takes its place
    /// a moment later.
    pub fn die_over_the_next_request(&'static self) -> std::thread::JoinHandle<()> {
        self.die_over(|_| true)
    }

    /// As [`Fake::die_over_the_next_request`], over the next that is of this kind.
    pub fn die_over(&'static self, kind: fn(&RequestBody) -> bool) -> std::thread::JoinHandle<()> {
        self.settle().deadly = Some(kind);
        std::thread::spawn(move || {
            let started = std::time::Instant::now();
            while self.lock().deadly.is_some() {
                assert!(started.elapsed() < PATIENCE, "no request comes");
                std::thread::sleep(Duration::from_millis(1));
            }
            self.poke();
            std::thread::sleep(Duration::from_millis(20));
            self.rise();
        })
    }

    /// The server dies over the next message on a control connection, and what tells everybody comes a
    /// moment later. Waits until messages may come.
    pub fn die_over_the_next_message(&'static self) -> std::thread::JoinHandle<()> {
        self.over_the_next_message(|fake| {
            std::thread::sleep(Duration::from_millis(20));
            fake.die();
            fake.rise();
        })
    }

    /// The server takes no message any more from the next one on, and then does as it is told. Waits until messages
    /// may come.
    pub(crate) fn over_the_next_message(
        &'static self,
        act: impl FnOnce(&'static Fake) + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut state = self.settle();
            ready.send(()).unwrap();
            let controls =
                state.processes.iter().map(|one| one.control.raw()).filter(|fd| *fd >= 0);
            let wanted = controls.map(|fd| PollFd { fd, events: libc::POLLIN, revents: 0 });
            let ready = sys::ppoll(&mut wanted.collect::<Vec<_>>(), Some(PATIENCE));
            assert!(ready.is_ok_and(|ready| ready > 0), "no message comes");
            for process in &mut state.processes {
                process.control = Fd::from_raw(-1);
            }
            drop(state);
            act(self);
        });
        is_ready.recv().unwrap();
        thread
    }

    /// Another server takes its place.
    pub fn rise(&self) {
        let state = self.lock();
        let next = haypile_shm::epoch::next_up(state.epoch.get());
        state.epoch.set(next);
    }

    /// The slot of the listener at a port.
    pub fn listener(&self, port: u16) -> u32 {
        let state = self.settle();
        let found = state.sockets.iter().find(|(_, socket)| {
            socket.kind == SocketKind::Listener
                && socket.local.is_some_and(|local| local.port() == port)
        });
        *found.expect("a listener").0
    }

    /// A peer connects: the connection is offered to every acceptor's process; its slot.
    pub fn arrive(&self, port: u16, first_bytes: &[u8]) -> u32 {
        let listener = self.listener(port);
        let slot = self.lock().arrive(listener, first_bytes);
        slot.expect("an acceptor")
    }

    /// Whether a connection could be offered at all.
    pub fn try_arrive(&self, port: u16) -> bool {
        let listener = self.listener(port);
        self.lock().arrive(listener, b"").is_some()
    }

    /// Takes an offer back; false if it was claimed first.
    pub fn revoke(&self, slot: u32) -> bool {
        let mut state = self.settle();
        let revoked = state.socket(slot).stream.revoke().unwrap();
        if revoked {
            state.acceptors.clear();
            state.drop_socket(slot);
        }
        revoked
    }

    /// The peer sends bytes.
    pub fn deliver(&self, slot: u32, data: &[u8]) {
        let mut state = self.settle();
        let State { sockets, arena, .. } = &mut *state;
        let stream = &mut sockets.get_mut(&slot).unwrap().stream;
        stream.observe_rx_head(arena).unwrap();
        let tail = stream.rx_tail();
        assert_eq!(stream.write_rx(tail, data, arena), data.len());
        stream.commit_rx(tail + data.len() as u64);
        state.announce(slot, ready::IN);
    }

    /// The peer sends its FIN.
    pub fn finish(&self, slot: u32) {
        let mut state = self.settle();
        let stream = &mut state.socket(slot).stream;
        stream.set_status(stream.status() | status::RX_FIN);
        state.announce(slot, ready::IN | ready::RDHUP);
    }

    /// Says once more what a socket is ready for, as the service answers WATCH.
    pub fn answer(&self, slot: u32) {
        let mut state = self.settle();
        state.announce(slot, ready::IN | ready::OUT | ready::ANSWER);
    }

    /// The peer resets.
    pub fn reset(&self, slot: u32) {
        let mut state = self.settle();
        let stream = &mut state.socket(slot).stream;
        stream.set_error(libc::ECONNRESET);
        stream.set_status(stream.status() | status::FAILED | status::FINISHED);
        state.announce(slot, ready::ALL);
    }

    /// The connection attempt succeeds.
    pub fn establish(&self, slot: u32) {
        let mut state = self.settle();
        let stream = &mut state.socket(slot).stream;
        stream.set_status(status::CONNECTED);
        state.announce(slot, ready::OUT);
    }

    /// The connection attempt fails.
    pub fn fail(&self, slot: u32, errno: i32) {
        let mut state = self.settle();
        let stream = &mut state.socket(slot).stream;
        stream.set_error(errno);
        stream.set_status(status::FAILED | status::FINISHED);
        state.announce(slot, ready::ALL);
    }

    /// The slot of the only attempt to connect to a port.
    pub fn attempt(&self) -> u32 {
        let state = self.settle();
        let found = state.sockets.iter().find(|(_, socket)| {
            socket.kind == SocketKind::Connection
                && socket.stream.status() & status::CONNECTING != 0
        });
        *found.expect("an attempt to connect").0
    }

    /// What the application has sent on a connection; acknowledges it.
    pub fn sent(&self, slot: u32) -> Vec<u8> {
        let mut state = self.settle();
        state.take_sent(slot);
        std::mem::take(&mut state.socket(slot).received)
    }

    /// Whether what is written is acknowledged by itself.
    pub fn acknowledge(&self, by_itself: bool) {
        self.settle().silent = !by_itself;
    }

    /// Requests that came since the last call, with the slots they are about.
    pub fn requests(&self) -> Vec<(u32, RequestBody)> {
        std::mem::take(&mut self.settle().log)
    }

    /// Whether the socket is known.
    pub fn knows(&self, slot: u32) -> bool {
        self.settle().sockets.contains_key(&slot)
    }

    /// The cookie that SHARED named.
    pub fn cookie(&self, slot: u32) -> Option<u64> {
        self.settle().socket(slot).cookie
    }

    /// Processes that said HELLO.
    pub fn processes(&self) -> usize {
        self.lock().processes.iter().filter(|process| process.channel.is_some()).count()
    }

    /// Makes the thread look for new control messages.
    pub fn poke(&self) {
        self.wake.ring().unwrap();
    }
}

impl State {
    fn new(epoch: EpochWriter, server: u16, servers: u16) -> State {
        epoch.set(haypile_shm::epoch::next_up(epoch.get()));
        State::unborn(epoch, server, servers)
    }

    fn unborn(epoch: EpochWriter, server: u16, servers: u16) -> State {
        State {
            epoch,
            status: ServiceStatus::create().unwrap(),
            table: SocketTable::new(10_000),
            arena: Arena::new(64 << 20),
            processes: Vec::new(),
            sockets: HashMap::new(),
            acceptors: Vec::new(),
            log: Vec::new(),
            // Each server has ports of its own to give out.
            next_port: 40_000 + 1000 * server,
            server,
            servers,
            homes: Vec::new(),
            elsewhere: Vec::new(),
            refused: Vec::new(),
            new_programs: Vec::new(),
            deadly: None,
            silent: false,
        }
    }

    /// What it knew goes with it.
    fn die(&mut self) {
        self.epoch.set(self.epoch.get() | 1);
        let mut fresh = State::unborn(self.epoch.clone(), self.server, self.servers);
        // Its ports may be in use at the others.
        fresh.next_port = self.next_port;
        *self = fresh;
    }

    fn socket(&mut self, slot: u32) -> &mut Socket {
        self.sockets.get_mut(&slot).expect("the socket")
    }

    fn add_process(&mut self, control: Fd) {
        self.processes.push(Process { control, sent_home: false, channel: None, wake: None });
    }

    fn descriptors(&self) -> Vec<PollFd> {
        let wakes = self.processes.iter().filter_map(|one| one.wake.as_ref().map(Doorbell::raw));
        let controls = self.processes.iter().map(|one| one.control.raw());
        let all = wakes.chain(controls).filter(|fd| *fd >= 0);
        all.map(|fd| PollFd { fd, events: libc::POLLIN, revents: 0 }).collect()
    }

    fn any_requests(&mut self) -> bool {
        let mut channels = self.processes.iter_mut().filter_map(|one| one.channel.as_mut());
        channels.any(|channel| channel.has_requests())
    }

    // --- the control connection ----------------------------------------------------------------

    fn handle_control(&mut self) {
        for index in 0..self.processes.len() {
            if let Some(wake) = &self.processes[index].wake {
                let _ = wake.drain();
            }
            loop {
                let fd = self.processes[index].control.raw();
                let mut set = [PollFd { fd, events: libc::POLLIN, revents: 0 }];
                if sys::ppoll(&mut set, Some(Duration::ZERO)) != Ok(1) {
                    break;
                }
                match control::receive(fd) {
                    Ok(received) => self.handle_message(index, received),
                    Err(_) => {
                        self.processes[index].control = Fd::from_raw(-1);
                        break;
                    }
                }
            }
        }
    }

    fn handle_message(&mut self, index: usize, received: control::Received) {
        let [first, ..] = received.fds;
        let (reply, fds) = match ControlRequest::decode(&received.message).unwrap() {
            ControlRequest::Hello { version, name, proof, .. } => {
                assert_eq!(version, PROTOCOL_VERSION);
                let undecided = name == 0 && proof != CHOSEN_HOME;
                let greets = undecided && !self.processes[index].sent_home;
                match if greets { self.homes.pop() } else { None } {
                    Some(home) if home != self.server => {
                        self.processes[index].sent_home = true;
                        let servers = self.servers;
                        (ControlReply::Home { server: home, servers }, vec![])
                    }
                    _ => return self.welcome(index, name),
                }
            }
            ControlRequest::NewProgram { name } => return self.new_programs.push(name),
            ControlRequest::AttachChild => return self.add_process(first.unwrap()),
            ControlRequest::MapTable { index } => {
                (ControlReply::TableMapped { index, errno: libc::ENOENT }, vec![])
            }
            ControlRequest::MapArena { index } => {
                let fd = self.arena.segment(index).unwrap().fd().unwrap();
                (ControlReply::ArenaMapped { index, errno: 0 }, vec![fd])
            }
            ControlRequest::NewWatcher { watcher } => {
                let channel = self.processes[index].channel.as_mut().unwrap();
                let opened = channel.open_watcher(watcher, Doorbell::from_fd(first.unwrap()));
                let errno = opened.err().map_or(0, |errno| errno.0);
                (ControlReply::WatcherMade { watcher, errno }, vec![])
            }
            ControlRequest::DropWatcher { watcher } => {
                self.processes[index].channel.as_mut().unwrap().close_watcher(watcher);
                for socket in self.sockets.values_mut() {
                    socket.watches.retain(|one| one.process != index || one.watcher != watcher);
                }
                return;
            }
            ControlRequest::Restored | ControlRequest::Enter { .. } => return,
            ControlRequest::Adopt | ControlRequest::Restore { .. } => {
                (self.adopt(&first.unwrap()), vec![])
            }
        };
        control::send(self.processes[index].control.raw(), &reply.encode(), &fds).unwrap();
    }

    fn adopt(&self, placeholder: &Fd) -> ControlReply {
        let cookie = sys::so_cookie(placeholder.raw()).ok();
        let found = self.sockets.iter().find(|(_, socket)| socket.cookie == cookie);
        let (errno, slot, generation, kind) = match found {
            Some((slot, socket)) => (0, *slot, socket.stream.generation(), socket.kind),
            None => (libc::ENOENT, NO_SLOT, 0, SocketKind::Plain),
        };
        ControlReply::Adopted { errno, slot, generation, kind }
    }

    fn welcome(&mut self, index: usize, name: u64) {
        let channel = ServiceChannel::create().unwrap();
        let (wake, theirs) = Doorbell::pair().unwrap();
        let status = self.status.fd();
        let table = self.table.segment(0).unwrap().fd().unwrap();
        let reply = ControlReply::Welcome {
            epoch: self.epoch.get(),
            process_id: index as u32 + 1,
            spin_us: 20,
            domain: [7; 16],
            server: self.server,
            servers: self.servers,
            name: if name == 0 { u64::from(self.server) << 32 | (index as u64 + 1) } else { name },
            proof: 1,
        };
        let fds = [channel.fd(), status, table, theirs.raw(), self.epoch.fd()];
        control::send(self.processes[index].control.raw(), &reply.encode(), &fds).unwrap();
        self.processes[index].channel = Some(channel);
        self.processes[index].wake = Some(wake);
    }

    // --- requests ------------------------------------------------------------------------------

    fn handle_requests(&mut self) {
        self.take_notices();
        for index in 0..self.processes.len() {
            let next = |state: &mut State| state.processes[index].channel.as_mut()?.next_request();
            while let Some(message) = next(self) {
                let request = Request::decode(&message).unwrap();
                if self.deadly.is_some_and(|kind| kind(&request.body)) {
                    return self.die();
                }
                self.log.push((request.header.slot, request.body));
                let reply = self.handle(index, &request);
                let cell = request.header.reply;
                if cell != NO_REPLY {
                    let channel = self.processes[index].channel.as_mut().unwrap();
                    assert!(channel.complete(cell, &reply.expect("a reply")));
                }
            }
        }
    }

    fn handle(&mut self, process: usize, request: &Request) -> Option<[u64; 7]> {
        let slot = request.header.slot;
        let known = slot == NO_SLOT
            || self.table.is_current(slot, request.header.generation)
                && self.sockets.contains_key(&slot);
        if !known {
            return Some(SocketReply::failure(libc::EBADF).encode());
        }
        match self.at_stub(process, slot, &request.body) {
            Some(answer) => answer,
            None => self.handle_about(process, slot, &request.body),
        }
    }

    fn handle_about(&mut self, process: usize, slot: u32, body: &RequestBody) -> Option<[u64; 7]> {
        match *body {
            RequestBody::Bind { .. }
            | RequestBody::Listen { .. }
            | RequestBody::Connect { .. }
            | RequestBody::Open { .. } => {
                return Some(self.name(slot, body).encode());
            }
            RequestBody::Acceptor => self.acceptors.push((process, slot)),
            RequestBody::NotAcceptor => self.acceptors.retain(|one| *one != (process, slot)),
            RequestBody::Claim => {
                let state = self.socket(slot).stream.offer_state().unwrap();
                assert_eq!(state, haypile_shm::stream::OfferState::Claimed);
                self.socket(slot).offered = false;
            }
            RequestBody::Refuse | RequestBody::Close { .. } => self.drop_socket(slot),
            RequestBody::KickTx if self.socket(slot).kind == SocketKind::Datagram => {
                self.echo(slot);
            }
            RequestBody::KickTx if self.silent => {}
            RequestBody::KickTx => self.take_sent(slot),
            RequestBody::KickRx => {
                let State { sockets, arena, .. } = self;
                sockets.get_mut(&slot).unwrap().stream.observe_rx_head(arena).unwrap();
            }
            RequestBody::WantTx => {
                let State { sockets, arena, .. } = self;
                let Socket { stream, kind, .. } = sockets.get_mut(&slot).unwrap();
                let answered = match kind {
                    SocketKind::Datagram => stream.want_records(SEND_BUFFER, arena),
                    _ => stream.want_tx(SEND_BUFFER, arena),
                };
                if answered.unwrap() {
                    self.announce(slot, ready::OUT);
                }
            }
            RequestBody::Shutdown { how } => self.shut(slot, how as u32),
            RequestBody::SetOption { .. } => return Some(SocketReply::failure(0).encode()),
            RequestBody::GetOption { .. } | RequestBody::TcpInfo { .. } => {
                return Some(OptionReply::value(&1i32.to_ne_bytes()).encode());
            }
            RequestBody::Watch { watcher, mask, .. } => self.watch(process, slot, watcher, mask),
            RequestBody::Unwatch { watcher } => self.unwatch(process, slot, watcher),
            RequestBody::Drained { .. } => {}
            RequestBody::BindDatagram { .. }
            | RequestBody::ConnectDatagram { .. }
            | RequestBody::Route { .. }
            | RequestBody::Address { .. }
            | RequestBody::TakeDatagramError
            | RequestBody::DatagramErrorPayload { .. }
            | RequestBody::Group { .. } => return Some(self.datagram_request(slot, body)),
            RequestBody::Shared { cookie } => self.socket(slot).cookie = Some(cookie),
            RequestBody::Arrive => return self.arrive_at(slot),
            RequestBody::Left => panic!("somebody has left a connection that is here"),
        }
        None
    }

    fn shut(&mut self, slot: u32, how: u32) {
        if self.socket(slot).kind == SocketKind::Listener {
            self.socket(slot).kind = SocketKind::Plain;
            self.socket(slot).stream.set_status(status::RX_SHUT);
            self.acceptors.retain(|(_, listener)| *listener != slot);
            return self.announce(slot, ready::OUT | ready::HUP);
        }
        let bits = [status::RX_SHUT, status::TX_SHUT, status::RX_SHUT | status::TX_SHUT];
        let stream = &mut self.socket(slot).stream;
        stream.set_status(stream.status() | bits[how as usize]);
        self.announce(slot, ready::ALL);
    }

    fn name(&mut self, slot: u32, body: &RequestBody) -> SocketReply {
        let ours = |ip: IpAddr| {
            ip.is_unspecified()
                || matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 198 && v4.octets()[1] & !1 == 18)
        };
        match *body {
            RequestBody::Bind { address, .. } if !ours(address.ip()) => {
                return SocketReply::failure(NOT_OURS);
            }
            RequestBody::Connect { remote } if !ours(remote.ip()) => {
                return SocketReply::failure(NOT_OURS);
            }
            RequestBody::Bind { address, .. } | RequestBody::Connect { remote: address } => {
                let found = self.elsewhere.iter().find(|(port, _)| *port == address.port());
                if let Some((_, server)) = found {
                    return SocketReply::elsewhere(*server);
                }
            }
            _ => {}
        }
        let port = match *body {
            RequestBody::Bind { address, .. } => address.port(),
            RequestBody::Listen { .. } => self.socket(slot).local.map_or(0, |local| local.port()),
            _ => 0,
        };
        let refused = self.refused.iter_mut().find(|(of, times)| *of == port && *times > 0);
        if let Some((_, times)) = refused {
            *times -= 1;
            return SocketReply::failure(libc::EADDRINUSE);
        }
        let slot = if slot == NO_SLOT { self.open() } else { slot };
        match *body {
            RequestBody::Bind { mut address, .. } => {
                if address.port() == 0 {
                    self.next_port += 1;
                    address.set_port(self.next_port);
                }
                let socket = self.socket(slot);
                socket.local = Some(address);
                socket.stream.set_local(Some(address));
            }
            RequestBody::Listen { cookie, .. } => {
                let socket = self.socket(slot);
                socket.cookie.get_or_insert(cookie);
                socket.kind = SocketKind::Listener;
                socket.stream.set_status(status::LISTENING);
            }
            RequestBody::Connect { remote } => {
                let State { sockets, arena, .. } = self;
                let socket = sockets.get_mut(&slot).unwrap();
                socket.kind = SocketKind::Connection;
                socket.local = Some("198.18.0.2:50000".parse().unwrap());
                socket.remote = Some(remote);
                socket.stream.set_local(socket.local);
                socket.stream.set_remote(socket.remote);
                socket.stream.set_status(status::CONNECTING);
                socket.stream.grant_tx(SEND_BUFFER, arena);
            }
            _ => {}
        }
        let socket = self.socket(slot);
        let generation = socket.stream.generation();
        SocketReply { errno: 0, slot, generation, local: socket.local }
    }

    fn open(&mut self) -> u32 {
        let place = self.table.allocate().unwrap();
        let slot = place.slot;
        let socket = Socket::new(ServiceStream::new(place));
        self.sockets.insert(slot, socket);
        slot
    }

    fn drop_socket(&mut self, slot: u32) {
        if let Some(socket) = self.sockets.remove(&slot) {
            socket.stream.retire(&mut self.arena);
            self.table.free(slot);
            self.acceptors.retain(|(_, listener)| *listener != slot);
        }
    }

    fn take_sent(&mut self, slot: u32) {
        let State { sockets, arena, .. } = self;
        let Some(socket) = sockets.get_mut(&slot) else { return };
        let from = socket.stream.tx_head();
        let to = socket.stream.observe_tx_tail().unwrap();
        let mut bytes = vec![0; (to - from) as usize];
        assert!(socket.stream.read_tx(from, &mut bytes, arena));
        socket.received.extend(bytes);
        if socket.stream.acked(to, SEND_BUFFER, arena) {
            self.announce(slot, ready::OUT);
        }
    }

    fn arrive(&mut self, listener: u32, first_bytes: &[u8]) -> Option<u32> {
        let acceptors: Vec<usize> = self
            .acceptors
            .iter()
            .filter(|(_, of)| *of == listener)
            .map(|(process, _)| *process)
            .collect();
        let process = *acceptors.first()?;
        let slot = self.open();
        let listener_generation = self.socket(listener).stream.generation();
        let State { sockets, arena, .. } = self;
        let socket = sockets.get_mut(&slot).unwrap();
        socket.kind = SocketKind::Connection;
        socket.offered = true;
        socket.local = Some("198.18.0.2:80".parse().unwrap());
        socket.remote = Some("198.18.0.9:1234".parse().unwrap());
        socket.stream.set_local(socket.local);
        socket.stream.set_remote(socket.remote);
        socket.stream.write_rx(0, first_bytes, arena);
        socket.stream.commit_rx(first_bytes.len() as u64);
        socket.stream.grant_tx(SEND_BUFFER, arena);
        socket.stream.set_status(status::CONNECTED);
        socket.stream.offer();
        let offer =
            Offer { listener, listener_generation, slot, generation: socket.stream.generation() };
        let channel = self.processes[process].channel.as_mut().unwrap();
        assert!(channel.push_offer(&offer));
        channel.wake_acceptors();
        self.announce(listener, ready::IN);
        Some(slot)
    }

    fn watch(&mut self, process: usize, slot: u32, watcher: u32, mask: u32) {
        let watches = &mut self.socket(slot).watches;
        let same = |one: &&mut Watch| one.process == process && one.watcher == watcher;
        match watches.iter_mut().find(same) {
            Some(watch) => watch.mask = mask,
            None => watches.push(Watch { process, watcher, mask, last: None }),
        }
        // What is ready already is told at once.
        let bits = mask & self.ready_bits(slot);
        if bits != 0 {
            self.announce(slot, bits | ready::ANSWER);
        }
    }

    fn unwatch(&mut self, process: usize, slot: u32, watcher: u32) {
        let watches = &mut self.socket(slot).watches;
        watches.retain(|one| one.process != process || one.watcher != watcher);
    }

    fn ready_bits(&mut self, slot: u32) -> u32 {
        let offered = self.sockets.values().any(|socket| socket.offered);
        let State { sockets, arena, .. } = self;
        let socket = sockets.get_mut(&slot).unwrap();
        if socket.kind == SocketKind::Listener {
            return if offered { ready::IN } else { 0 };
        }
        let state = socket.stream.status();
        if socket.stub.is_some() {
            return if state & status::MOVED != 0 { ready::ALL } else { 0 };
        }
        if socket.kind == SocketKind::Datagram {
            let waiting = socket.stream.rx_waiting() > 0;
            return if waiting { ready::IN | ready::OUT } else { ready::OUT };
        }
        let head = socket.stream.observe_rx_head(arena).unwrap();
        let mut bits = if state & status::FAILED != 0 { ready::ALL } else { 0 };
        if state & status::CONNECTED != 0 {
            bits |= ready::OUT;
        }
        if head < socket.stream.rx_tail() || state & status::RX_FIN != 0 {
            bits |= ready::IN;
        }
        bits
    }

    fn wake_all(&mut self) {
        let (slot, generation) = (NO_SLOT, 0);
        let offer = Offer { listener: slot, listener_generation: 0, slot, generation };
        for channel in self.processes.iter_mut().filter_map(|process| process.channel.as_mut()) {
            assert!(channel.push_offer(&offer));
            channel.wake_acceptors();
            for watcher in 0..haypile_shm::limits::WATCHERS as u32 {
                if let Some(watcher) = channel.watcher(watcher) {
                    watcher.push(&Ready { slot, generation, bits: 0 }).expect("room in the ring");
                    let _ = watcher.wake();
                }
            }
        }
    }

    fn announce(&mut self, slot: u32, bits: u32) {
        let State { sockets, processes, .. } = self;
        let socket = sockets.get_mut(&slot).unwrap();
        socket.stream.wake();
        let message = Ready { slot, generation: socket.stream.generation(), bits };
        for watch in &mut socket.watches {
            if bits & (watch.mask | ready::ERR | ready::HUP) == 0 {
                continue;
            }
            let Some(channel) = &mut processes[watch.process].channel else { continue };
            let Some(watcher) = channel.watcher(watch.watcher) else { continue };
            if watch.last.is_none_or(|last| !watcher.is_pending(last)) {
                watch.last = Some(watcher.push(&message).expect("room in the ring"));
            }
            let _ = watcher.wake();
        }
    }
}

/// A listener at 198.18.0.2, not dual; its descriptor and port.
pub fn listener(nonblocking: bool) -> (i32, u16) {
    let kind = libc::SOCK_STREAM | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    let fd = haypile_client::socket(libc::AF_INET, kind, 0).unwrap();
    haypile_client::bind(fd, "198.18.0.2:0".parse().unwrap()).unwrap();
    haypile_client::listen(fd, 16).unwrap();
    (fd, haypile_client::local_address(fd).unwrap().port())
}

/// A connection accepted from a listener; its descriptor and slot.
pub fn accepted(fake: &Fake, listener: (i32, u16), flags: i32, first_bytes: &[u8]) -> (i32, u32) {
    // The first accept registers.
    if !fake.try_register(listener) {
        panic!("cannot register");
    }
    let slot = fake.arrive(listener.1, first_bytes);
    let (fd, _) = haypile_client::accept(listener.0, flags).unwrap();
    (fd, slot)
}

impl Fake {
    /// Has the process registered as an acceptor of a non-blocking listener.
    pub fn try_register(&self, listener: (i32, u16)) -> bool {
        let mut fds = [PollFd { fd: listener.0, events: libc::POLLIN, revents: 0 }];
        poll(&mut fds, Some(Duration::ZERO)) == Ok(0)
    }
}

/// poll with the kernel's own sleep.
pub fn poll(fds: &mut [PollFd], timeout: Option<Duration>) -> Result<usize, Errno> {
    haypile_client::poll(fds, timeout, &mut haypile_client::Plain)
}

/// epoll_wait with the kernel's own sleep.
pub fn epoll_wait(epoll: i32, most: usize, timeout_ms: i32) -> Vec<(u32, u64)> {
    let mut events = vec![sys::EpollEvent { events: 0, u64: 0 }; most];
    let count =
        haypile_client::epoll_wait(epoll, &mut events, timeout_ms, &mut haypile_client::Plain)
            .unwrap();
    events[..count].iter().map(|event| (event.events, event.u64)).collect()
}

/// A new epoll set.
pub fn epoll() -> i32 {
    let fd = sys::epoll_create().unwrap().into_raw();
    haypile_client::epoll_made(fd);
    fd
}

/// epoll_ctl as an application calls it: the kernel's part included.
pub fn control_epoll(
    epoll: i32,
    operation: i32,
    fd: i32,
    events: i32,
    data: u64,
) -> Result<(), Errno> {
    let event = sys::EpollEvent { events: events as u32, u64: data };
    match haypile_client::epoll_ctl(epoll, operation, fd, Some(event)) {
        Err(haypile_client::TO_KERNEL) => sys::epoll_ctl(epoll, operation, fd, events as u32, data),
        other => other,
    }
}
