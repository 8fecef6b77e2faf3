//! The supervisor: holds what must outlive a server (link queues, the attach and control sockets,
//! the epoch, secrets, the list of listeners), starts each server of the plan as a process of its
//! own, watches it, and starts it again when it dies. No packet and no request of an application
//! passes through it.
//!
//! Made by `start`, which also says what was taken; [`Supervisor::run`] is its loop. Read [`orders`]
//! for what is said to servers, [`seat`] for their lives, [`backoff`] for the waits between them,
//! and `docs/decisions/0008`.

pub mod backoff;
pub mod orders;
pub mod questions;
pub mod seat;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use haypile_engine::Instant;
use haypile_shm::sys::{self, Errno, Fd};
use haypile_shm::{EpochWriter, epoch};
use serde_json::{Value, json};

use crate::config::Config;
use crate::control::{self, ClientId, ControlSocket, Request};
use crate::diag;
use crate::domains::Token as DomainToken;
use crate::error::Error;
use crate::event_loop::now;
use crate::links::LinkHandle;
use crate::poller::{Poller, Token};
use crate::report::{Memory, ServerRow, Status};
use crate::sandbox::{self, Cell, Confinement};
use backoff::Delay;
use orders::{ListenerRecord, Order, Report, Start};
use questions::{Outcome, Questions};
use seat::Seat;

/// What a supervisor is made of.
pub struct Parts {
    /// The configuration, with addresses.
    pub config: Config,
    /// The link.
    pub link: LinkHandle,
    /// Where applications attach.
    pub attach: Fd,
    /// Where commands come from.
    pub control: ControlSocket,
    /// Readable when SIGTERM, SIGINT or SIGHUP has come.
    pub signals: UnixStream,
    /// For a private service: the process it is for.
    pub owner: Option<Owner>,
}

/// A service: its supervisor, with the servers.
pub struct Supervisor {
    /// Before the link, so that the server is gone when that goes.
    seat: Seat,
    parts: Parts,
    poller: Poller,
    epoch: EpochWriter,
    secret: [u8; 32],
    user: Option<(u32, u32)>,
    started: Instant,
    listeners: HashMap<(DomainToken, u64), ListenerRecord>,
    questions: Questions,
    guardian: Option<Guardian>,
    /// Processes that use a private service.
    users: HashMap<u64, Fd>,
    users_seen: u64,
    /// Whether anybody uses it, as the server says.
    used: bool,
    /// Told to end: when patience is over.
    ending: Option<Instant>,
    /// No server ran when it was told so.
    failing: bool,
    /// Why the first server did not start.
    refusal: Option<Error>,
}

/// The process that a private service was started for, until it ends.
#[derive(Debug)]
pub struct Owner {
    pidfd: Fd,
    alive: bool,
    /// Since when nobody has used the service.
    unused_since: Option<Instant>,
}

/// The process that removes what the service leaves should it be killed.
struct Guardian {
    /// Readable when it has ended.
    channel: UnixStream,
    ended: Box<dyn FnOnce()>,
}

/// How a service has ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As told.
    Clean,
    /// As told, while its server was dead: the log says why.
    Failing,
}

/// The only server that plans have today.
const SERVER: u32 = 0;
/// How long a private service waits for somebody after the last process that used it.
const GRACE_US: u64 = 500_000;
/// Time for a server to end beyond the patience with its connections.
const LAST_WORDS_US: u64 = 5_000_000;
/// Time for the first server to say that it runs.
const START_US: u64 = 20_000_000;
/// Most listeners remembered.
const LISTENERS_MAX: usize = 65_536;

impl Owner {
    /// The process with this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(pid: i32) -> Result<Owner, Error> {
        let pidfd = sys::pidfd_open(pid).map_err(|errno| {
            Error::new(
                format_args!("watch process {pid}"),
                std::io::Error::from(errno),
                "start the service with haypile run",
            )
        })?;
        Ok(Owner { pidfd, alive: true, unused_since: None })
    }
}

impl Supervisor {
    /// Starts the servers of the plan and waits until they run.
    ///
    /// # Errors
    /// What a server could not have, or the system did not give.
    pub fn start(parts: Parts) -> Result<Supervisor, Error> {
        let fail = |errno: Errno| {
            Error::new("start a supervisor", std::io::Error::from(errno), "raise the limits")
        };
        let poller = Poller::new().map_err(fail)?;
        let wanted = [
            Some((parts.signals.as_raw_fd(), Token::Signal)),
            parts.owner.as_ref().map(|owner| (owner.pidfd.raw(), Token::Owner)),
        ];
        for (fd, token) in wanted.into_iter().flatten() {
            poller.add(fd, token).map_err(fail)?;
        }
        // Only the privileged can become somebody else.
        let privileged = sys::privilege::effective_user() == 0;
        let user = sandbox::find_user(&parts.config.confine.user)?;
        let mut supervisor = Supervisor {
            parts,
            poller,
            epoch: EpochWriter::create().map_err(fail)?,
            secret: crate::server::random().map_err(fail)?,
            user: privileged.then_some(user),
            started: now(),
            seat: Seat::default(),
            listeners: HashMap::new(),
            questions: Questions::default(),
            guardian: None,
            users: HashMap::new(),
            users_seen: 0,
            used: false,
            ending: None,
            failing: false,
            refusal: None,
        };
        supervisor.start_server(now())?;
        supervisor.wait_for_start()?;
        // Who asks before that waits for the answer, which says then that the service runs.
        if let Some(fd) = supervisor.parts.control.raw_fd() {
            supervisor.poller.add(fd, Token::Control).map_err(fail)?;
        }
        Ok(supervisor)
    }

    fn wait_for_start(&mut self) -> Result<(), Error> {
        let until = now().plus_us(START_US);
        while !self.seat.is_ready() {
            self.look(50);
            if let Some(error) = self.refusal.take() {
                return Err(error);
            }
            if now() >= until || self.ending.is_some() {
                let why = "it does not say that it runs";
                return Err(Error::new("start a server", why, "look at what it said above"));
            }
        }
        Ok(())
    }

    /// Calls `ended` once when `channel` is hung up, which only the end of the guardian does.
    ///
    /// # Errors
    /// When the kernel takes no more descriptors to wait on.
    pub fn watch_guardian(
        &mut self,
        channel: UnixStream,
        ended: Box<dyn FnOnce()>,
    ) -> Result<(), Errno> {
        self.poller.add(channel.as_raw_fd(), Token::Guardian)?;
        self.guardian = Some(Guardian { channel, ended });
        Ok(())
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.parts.config
    }

    /// The link and its mode.
    pub fn link(&self) -> String {
        self.seat.life.as_ref().map(|life| life.link.clone()).unwrap_or_default()
    }

    /// How the server is confined.
    pub fn confinement(&self) -> Confinement {
        let life = self.seat.life.as_ref();
        life.and_then(|life| life.confinement.clone()).unwrap_or_default()
    }

    /// Runs until a signal, a command, or the end of whoever a private service was started for.
    pub fn run(&mut self) -> End {
        loop {
            let timeout_ms = self.timeout_ms(now());
            self.look(timeout_ms);
            let now = now();
            if self.seat.restart_at.is_some_and(|at| at <= now) && self.ending.is_none() {
                self.restart(now);
            }
            self.look_for_users(now);
            if self.is_over(now) {
                self.epoch.set(epoch::ENDED);
                return if self.failing { End::Failing } else { End::Clean };
            }
        }
    }

    fn is_over(&mut self, now: Instant) -> bool {
        let Some(until) = self.ending else { return false };
        if let Some(life) = self.seat.life.as_ref().filter(|_| now >= until) {
            life.kill();
        }
        self.seat.life.is_none()
    }

    fn timeout_ms(&self, now: Instant) -> i32 {
        let unused = self.parts.owner.as_ref().and_then(|owner| owner.unused_since);
        let unused = unused.filter(|_| self.ending.is_none()).map(|since| since.plus_us(GRACE_US));
        let restart = self.seat.restart_at.filter(|_| self.ending.is_none());
        match [unused, restart, self.ending].into_iter().flatten().min() {
            Some(due) => due.since(now).div_ceil(1000).clamp(1, 60_000) as i32,
            None => -1,
        }
    }

    fn look(&mut self, timeout_ms: i32) {
        let mut tokens = Vec::new();
        self.poller.wait(timeout_ms, &mut tokens);
        for token in tokens {
            self.handle(token);
        }
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Control => {
                while let Some((id, fd)) = self.parts.control.accept() {
                    // A client that cannot be waited for is dropped with its connection.
                    let _: Result<(), Errno> = self.poller.add(fd, Token::Client(id));
                }
            }
            Token::Client(id) => self.serve_client(id),
            Token::Answer(id) => self.pass_answer(id),
            Token::Channel(_) => self.read_reports(),
            Token::Exit(_) => self.server_ended(),
            Token::Signal => {
                let mut bytes = [0; 16];
                let _: Result<usize, Errno> = sys::read(self.parts.signals.as_raw_fd(), &mut bytes);
                self.end(self.parts.config.limits.shutdown_timeout_us);
            }
            Token::Owner => {
                if let Some(owner) = &mut self.parts.owner {
                    owner.alive = false;
                    self.poller.remove(owner.pidfd.raw());
                }
            }
            Token::User(id) => {
                if let Some(pidfd) = self.users.remove(&id) {
                    self.poller.remove(pidfd.raw());
                }
            }
            Token::Guardian => {
                if let Some(Guardian { channel, ended }) = self.guardian.take() {
                    self.poller.remove(channel.as_raw_fd());
                    ended();
                }
            }
            // Those of a server's own loop.
            _ => {}
        }
    }

    // --- the server ----------------------------------------------------------------------------

    fn start_server(&mut self, now: Instant) -> Result<(), Error> {
        let fail = |why: std::io::Error| Error::new("start a server", why, "raise the limits");
        let epoch = epoch::next_up(self.epoch.get());
        let life = self.seat.start(now).map_err(fail)?;
        let [pidfd, channel] = life.descriptors();
        let added = self.poller.add(pidfd, Token::Exit(SERVER));
        let added = added.and_then(|()| self.poller.add(channel, Token::Channel(SERVER)));
        let told = added.and_then(|()| self.tell_start(epoch, channel));
        told.map_err(|errno| fail(errno.into()))
    }

    /// Everything that a server needs, and the listeners that it is to hold.
    fn tell_start(&self, epoch: u32, channel: i32) -> Result<(), Errno> {
        let Parts { config, link, attach, owner, .. } = &self.parts;
        let confine = &config.confine;
        let core = sandbox::choose_core(&confine.cores, SERVER, std::process::id());
        let start = Order::Start(Box::new(Start {
            config: config.clone(),
            server: SERVER,
            link: link.facts.clone(),
            secret: self.secret,
            epoch,
            cell: Cell { user: self.user, core, filter: confine.filter },
            tell_processes: owner.is_some(),
        }));
        // The channel is fresh, but may be full of listeners: the server takes them as it starts.
        let patient = |order: &Order, fds: &[i32]| {
            sys::send_fds(channel, &orders::encode(order), fds, 0).map(drop)
        };
        sys::fcntl_setfl(channel, 0)?;
        patient(&start, &[attach.raw(), self.epoch.fd()])?;
        for fds in link.raw().chunks(orders::LINK_FDS_MAX) {
            patient(&Order::Link { count: fds.len() }, fds)?;
        }
        for record in self.listeners.values() {
            patient(&Order::Listener(record.clone()), &[])?;
        }
        patient(&Order::Run {}, &[])?;
        sys::fcntl_setfl(channel, libc::O_NONBLOCK)
    }

    fn restart(&mut self, now: Instant) {
        self.seat.restarts += 1;
        let renewed = self.parts.link.renew(&self.parts.config);
        if let Err(error) = renewed.and_then(|()| self.start_server(now)) {
            complain(&error.to_string());
            // A half-started one is a dead one; without any there is no death to count.
            match &self.seat.life {
                Some(life) => life.kill(),
                None => self.seat.restart_at = Some(now.plus_us(backoff::LONGEST_US)),
            }
        }
    }

    fn server_ended(&mut self) {
        self.read_reports();
        if let Some(life) = &self.seat.life {
            let [pidfd, channel] = life.descriptors();
            self.poller.remove(pidfd);
            self.poller.remove(channel);
        }
        let was_ready = self.seat.is_ready();
        let Some(death) = self.seat.bury(now()) else { return };
        if epoch::is_up(self.epoch.get()) {
            // Everyone who used it hears of it now.
            self.epoch.set(self.epoch.get() + 1);
        }
        self.used = false;
        if !was_ready && self.seat.restarts == 0 {
            let remedy = "look at what it said above";
            let error = || Error::new("start a server", death.why, remedy);
            self.refusal.get_or_insert_with(error);
            return;
        }
        if self.ending.is_some() && death.clean {
            return;
        }
        let (pid, why, Delay { us, is_loop }) = (death.pid, death.why, death.delay);
        if self.ending.is_some() {
            return complain(&format!("server {SERVER} (process {pid}) ended: {why}"));
        }
        let wait_ms = us / 1000;
        complain(&format!(
            "server {SERVER} (process {pid}) ended: {why}; starting it again in {wait_ms} ms"
        ));
        if is_loop {
            let deaths = backoff::LOOP_DEATHS;
            let longest_s = backoff::LONGEST_US / 1_000_000;
            complain(&format!(
                "server {SERVER} has died {deaths} times in a row; going on, every {longest_s} s \
                 in the end"
            ));
        }
    }

    fn read_reports(&mut self) {
        loop {
            let Some(life) = &self.seat.life else { return };
            match orders::receive(life.channel.raw(), orders::decode_report) {
                Ok((report, fds)) => self.take_report(report, fds),
                Err(Errno::EAGAIN) => return,
                // Its end follows.
                Err(Errno::EPIPE) => return self.poller.remove(life.channel.raw()),
                Err(_) => {
                    complain(&format!("server {SERVER} speaks nonsense; ending it"));
                    life.kill();
                    return self.poller.remove(life.channel.raw());
                }
            }
        }
    }

    fn take_report(&mut self, report: Report, fds: orders::Fds) {
        match report {
            Report::Ready { confinement, link } => {
                if let Some(life) = &mut self.seat.life {
                    (life.confinement, life.link) = (Some(confinement), link);
                    self.epoch.set(epoch::next_up(self.epoch.get()));
                    // One that does not hear it has ended.
                    let channel = life.channel.raw();
                    let _: Result<(), Errno> = orders::send(channel, &Order::Begin {}, &[]);
                }
            }
            Report::Failed { what, why, remedy } => {
                let error = Error::new(what, why, remedy);
                if self.seat.restarts > 0 {
                    complain(&error.to_string());
                }
                self.refusal = Some(error);
            }
            Report::Listening(record) => {
                let name = (record.domain, record.cookie);
                if self.listeners.len() < LISTENERS_MAX || self.listeners.contains_key(&name) {
                    self.listeners.insert(name, record);
                }
            }
            Report::NotListening { domain, cookie } => {
                self.listeners.remove(&(domain, cookie));
            }
            Report::WantNotices { pid, namespace } => self.give_notices(pid, namespace),
            Report::Attached {} => {
                if let [Some(pidfd), ..] = fds {
                    let id = self.users_seen;
                    self.users_seen += 1;
                    if self.poller.add(pidfd.raw(), Token::User(id)).is_ok() {
                        self.users.insert(id, pidfd);
                    }
                }
            }
            Report::Used { used } => self.used = used,
            Report::Forbidden { number } => {
                if let Some(life) = &mut self.seat.life {
                    life.forbidden = Some(number);
                }
            }
        }
    }

    /// The server may not open what tells the ends of sockets in a process's network namespace.
    fn give_notices(&self, pid: i32, namespace: u64) {
        let Some(life) = &self.seat.life else { return };
        let socket = diag::open_in(pid, namespace);
        let order = Order::Notices { granted: socket.is_some() };
        let fds: Vec<i32> = socket.iter().map(Fd::raw).collect();
        // One that does not listen hears its own time-out.
        let _: Result<(), Errno> = orders::send(life.channel.raw(), &order, &fds);
    }

    /// Starts to end the service.
    fn end(&mut self, patience_us: u64) {
        if self.ending.is_some() {
            return;
        }
        self.failing = self.seat.life.is_none();
        self.ending = Some(now().plus_us(patience_us + LAST_WORDS_US));
        if let Some(life) = &self.seat.life
            && orders::send(life.channel.raw(), &Order::End { patience_us }, &[]).is_err()
        {
            life.kill();
        }
    }

    /// A private service ends some time after the last process that used it.
    fn look_for_users(&mut self, now: Instant) {
        let used = self.used || !self.users.is_empty();
        let Some(owner) = &mut self.parts.owner else { return };
        if owner.alive || used || self.ending.is_some() {
            owner.unused_since = None;
            return;
        }
        let since = *owner.unused_since.get_or_insert(now);
        if now.since(since) >= GRACE_US {
            // Data that a program left behind is delivered as after any close.
            self.end(self.parts.config.limits.orphan_timeout_us);
        }
    }

    // --- the control socket --------------------------------------------------------------------

    fn serve_client(&mut self, id: ClientId) {
        let fd = self.parts.control.client_fd(id);
        let mut unsent = self.parts.control.flush(id);
        for request in self.parts.control.read(id) {
            if let Some(answer) = self.answer(id, request) {
                unsent = self.parts.control.answer(id, &answer);
            }
        }
        if let Some(fd) = fd.filter(|_| self.parts.control.client_fd(id).is_some()) {
            self.poller.set_writable(fd, Token::Client(id), unsent);
        }
    }

    /// The answer, unless a server has to give it.
    fn answer(&mut self, id: ClientId, request: Request) -> Option<Value> {
        match &request {
            Request::Version {} if !self.seat.is_ready() => Some(self.version()),
            Request::Shutdown {} => {
                self.end(self.parts.config.limits.shutdown_timeout_us);
                Some(control::acceptance(json!({})))
            }
            Request::Status {} if !self.seat.is_ready() => Some(self.status_without_server()),
            Request::CaptureStart { path, .. } => {
                let path = path.clone();
                self.hand_over_file(&path).and_then(|()| self.hand_on(id, request)).err()
            }
            _ => self.hand_on(id, request).err(),
        }
    }

    /// While no server runs: without addresses that it found by itself.
    fn version(&self) -> Value {
        let addresses: Vec<String> =
            self.parts.config.addresses.iter().map(ToString::to_string).collect();
        control::acceptance(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": haypile_shm::PROTOCOL_VERSION,
            "pid": std::process::id(),
            "addresses": addresses,
        }))
    }

    /// Opens the file of a capture, for which the server has no right.
    fn hand_over_file(&mut self, path: &Path) -> Result<(), Value> {
        // A file that exists is somebody's; the service may be more privileged than who asks.
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let refused = |error: std::io::Error| {
            control::refusal(&format!("cannot capture to {}: {error}", path.display()))
        };
        let file = file.map_err(refused)?;
        self.tell(&Order::File {}, file.as_raw_fd())
    }

    fn hand_on(&mut self, id: ClientId, request: Request) -> Result<(), Value> {
        let theirs = self.questions.ask(id, request);
        let theirs = theirs.map_err(|error| control::refusal(&error.to_string()))?;
        self.tell(&Order::Client {}, theirs.as_raw_fd())?;
        if let Some(fd) = self.questions.descriptor(id) {
            let added = self.poller.add(fd, Token::Answer(id));
            added.map_err(|errno| control::refusal(&std::io::Error::from(errno).to_string()))?;
        }
        Ok(())
    }

    fn tell(&self, order: &Order, fd: i32) -> Result<(), Value> {
        let away = || control::refusal("the server is being started again; ask once more");
        let life = self.seat.life.as_ref().filter(|_| self.seat.is_ready()).ok_or_else(away)?;
        orders::send(life.channel.raw(), order, &[fd]).map_err(|_| away())
    }

    fn pass_answer(&mut self, id: ClientId) {
        let answer = match self.questions.read(id) {
            Outcome::Waiting => return,
            Outcome::Answered(Request::Status {}, answer) => self.complete_status(answer),
            Outcome::Answered(Request::Version {}, mut answer) => {
                answer["pid"] = json!(std::process::id());
                answer
            }
            Outcome::Answered(_, answer) => answer,
            Outcome::Failed => control::refusal("the server has ended; ask once more"),
        };
        let unsent = self.parts.control.answer(id, &answer);
        if let Some(fd) = self.parts.control.client_fd(id) {
            self.poller.set_writable(fd, Token::Client(id), unsent);
        }
    }

    /// What the server does not know of itself and of the service.
    fn complete_status(&self, mut answer: Value) -> Value {
        answer["pid"] = json!(std::process::id());
        answer["uptime_s"] = json!(now().since(self.started) / 1_000_000);
        if let Some(servers) = answer["servers"].as_array_mut() {
            for server in servers {
                server["restarts"] = json!(self.seat.restarts);
            }
        }
        answer
    }

    /// While none runs.
    fn status_without_server(&self) -> Value {
        let texts = |list: &[haypile_engine::Cidr]| list.iter().map(ToString::to_string).collect();
        let config = &self.parts.config;
        let row = ServerRow {
            server: SERVER,
            sandbox: "being started again".into(),
            restarts: self.seat.restarts,
            ..ServerRow::default()
        };
        control::acceptance(Status {
            version: env!("CARGO_PKG_VERSION").to_string(),
            pid: std::process::id(),
            uptime_s: now().since(self.started) / 1_000_000,
            plan: config.plan.to_string(),
            link: String::new(),
            addresses: texts(&config.addresses),
            host_addresses: texts(&config.host_addresses),
            servers: vec![row],
            network: Default::default(),
            drops: Vec::new(),
            counters: Vec::new(),
            memory: Memory::default(),
            processes: Vec::new(),
        })
    }
}

/// One line for the log; a closed one is no reason to stop.
fn complain(text: &str) {
    drop(writeln!(std::io::stderr(), "haypile: {text}"));
}
