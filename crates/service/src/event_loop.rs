//! The event loop of a service: spins while there is work and briefly after, sleeps otherwise, and
//! looks at the kernel's descriptors now and then while busy.
//!
//! Lost wake-ups: before it sleeps the loop announces it in the status segment and to the link,
//! looks at every request ring once more, and only then waits; an application publishes a request, and only then
//! reads the announcement (`haypile_shm::sleep` has the argument). Everything else that wakes it is
//! a descriptor in the epoll set. Called by `start`.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use haypile_engine::Instant;
use haypile_link::capture::{Capture, CaptureOptions};
use haypile_link::port::Port;
use haypile_shm::spin::{Gaps, Spinner};
use haypile_shm::sys::{self, Errno, Fd};
use serde_json::{Value, json};

use crate::control::{self, ControlSocket, Request};
use crate::error::Error;
use crate::poller::Token;
use crate::report::{Facts, SocketChoice};
use crate::resolve::{Lookup, Resolved};
use crate::server::Server;
use crate::trace;

/// A service that runs: one server, its sockets, and what ends it.
pub struct Service<P: Port> {
    /// The server.
    pub server: Server<Capture<P>>,
    pub(crate) attach: Fd,
    pub(crate) control: ControlSocket,
    pub(crate) facts: Facts,
    /// Readable when SIGTERM or SIGINT has come.
    pub(crate) signals: UnixStream,
    /// For a private service: the process it was started for.
    pub(crate) owner: Option<Owner>,
    /// Whoever removes the service's files should it be killed.
    guardian: Option<Guardian>,
    /// Told to end.
    ending: Ending,
    tokens: Vec<Token>,
    looked: Instant,
    /// Clients that wait for name servers.
    lookups: Vec<Lookup>,
}

/// The process that a private service was started for, until it ends.
#[derive(Debug)]
pub struct Owner {
    pub(crate) pidfd: Fd,
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

/// Turns without work, until the next with some.
struct Idle {
    since: Instant,
    spinner: Spinner,
}

impl Idle {
    fn new(since: Instant, patience_ns: u64) -> Idle {
        Idle { since, spinner: Spinner::new(since.us() * 1000, patience_ns) }
    }
}

/// How far the end of the service has come.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// Connections are being closed until this time.
    Closing(Instant),
    /// Resets are being sent until this time.
    Resetting(Instant),
}

/// Time without work before the loop sleeps, where it has a core to spare and work does not usually
/// come so soon that a longer spin pays: the time in which a program that was woken answers.
const SPIN_NS: u64 = 50_000;
/// Clients whose names are looked up at a time.
const LOOKUPS_MAX: usize = 16;
/// Turns or time between two looks at the kernel's descriptors while there is work.
const LOOK_TURNS: u32 = 64;
const LOOK_US: u64 = 100;
/// How long a private service waits for somebody after the last process that used it.
const GRACE_US: u64 = 500_000;
/// Time for resets to leave.
const RESET_US: u64 = 50_000;

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

impl<P: Port> Service<P> {
    /// Puts a service together; `start` makes the parts.
    ///
    /// # Errors
    /// When the kernel takes no more descriptors to wait on.
    pub fn new(
        server: Server<Capture<P>>,
        attach: Fd,
        control: ControlSocket,
        facts: Facts,
        signals: UnixStream,
        owner: Option<Owner>,
    ) -> Result<Self, Error> {
        let poller = &server.poller;
        let wanted = [
            (server.link_fd(), Token::Link),
            (attach.raw(), Token::Attach),
            (control.raw_fd(), Token::Control),
            (signals.as_raw_fd(), Token::Signal),
        ];
        let owner_fd = owner.as_ref().map(|owner| (owner.pidfd.raw(), Token::Owner));
        for (fd, token) in wanted.into_iter().chain(owner_fd) {
            poller.add(fd, token).map_err(|errno| {
                Error::new("wait for events", std::io::Error::from(errno), "raise the limits")
            })?;
        }
        Ok(Service {
            server,
            attach,
            control,
            facts,
            signals,
            owner,
            guardian: None,
            ending: Ending::No,
            tokens: Vec::new(),
            looked: now(),
            lookups: Vec::new(),
        })
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
        self.server.poller.add(channel.as_raw_fd(), Token::Guardian)?;
        self.guardian = Some(Guardian { channel, ended });
        Ok(())
    }

    /// Runs until a signal, a command, or the end of whoever a private service was started for.
    ///
    /// # Errors
    /// When the link is of no more use.
    pub fn run(&mut self) -> Result<(), Error> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let floor_ns = if cores > 1 { SPIN_NS } else { 0 };
        let gaps = Gaps::new();
        self.server.core.holds_writes = cores > 1;
        let mut idle: Option<Idle> = None;
        let mut turns_since_look = 0;
        loop {
            let start = now();
            let work = self.server.step(start)?;
            if !self.lookups.is_empty() {
                self.finish_lookups();
            }
            let end = now();
            let busy = !work.is_none();
            self.server.load.turn(start, end, busy);
            turns_since_look += 1;
            if busy && let Some(idle) = idle.take() {
                gaps.note(start.since(idle.since).saturating_mul(1000));
            }
            if turns_since_look >= LOOK_TURNS || end.since(self.looked) >= LOOK_US {
                turns_since_look = 0;
                self.look(0);
            } else if !busy {
                let idle = idle.get_or_insert_with(|| {
                    let patience_ns = if cores > 1 { gaps.patience_ns(floor_ns) } else { 0 };
                    Idle::new(end, patience_ns)
                });
                if !idle.spinner.rest() {
                    turns_since_look = 0;
                    self.sleep();
                    // Awake without work, for a timer or a command: no reason to spin again.
                    idle.spinner = Spinner::new(0, 0);
                }
            }
            if self.is_over(now()) {
                return Ok(());
            }
        }
    }

    /// Sleeps until something comes or a timer is due.
    fn sleep(&mut self) {
        let core = &mut self.server.core;
        if core.release_held(now(), true) > 0 {
            return;
        }
        core.status.prepare_sleep();
        let port = self.server.link.port_mut();
        if !core.processes.any_requests() && port.prepare_sleep() {
            self.server.load.sleeps += 1;
            let timeout_ms = self.timeout_ms(now());
            self.look(timeout_ms);
        }
        self.server.link.port_mut().awake();
        self.server.core.status.awake();
    }

    /// Time to sleep, in milliseconds rounded up; -1 for ever.
    fn timeout_ms(&self, now: Instant) -> i32 {
        let ending = match self.ending {
            Ending::No => {
                self.owner.as_ref().and_then(|owner| Some(owner.unused_since?.plus_us(GRACE_US)))
            }
            // The end of a connection is seen in the shard, not told.
            Ending::Closing(_) | Ending::Resetting(_) => Some(now.plus_us(1000)),
        };
        let blocked = self.server.link.is_blocked().then(|| now.plus_us(1000));
        match [self.server.poll_timeout(), ending, blocked].into_iter().flatten().min() {
            Some(due) => due.since(now).div_ceil(1000).min(60_000) as i32,
            None => -1,
        }
    }

    /// Looks at the kernel's descriptors, waiting up to `timeout_ms`.
    fn look(&mut self, timeout_ms: i32) {
        let mut tokens = std::mem::take(&mut self.tokens);
        self.server.poller.wait(timeout_ms, &mut tokens);
        self.looked = now();
        self.server.core.now = self.looked;
        for token in tokens.drain(..) {
            self.handle(token);
        }
        self.tokens = tokens;
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Control => {
                while let Some((id, fd)) = self.control.accept() {
                    // A client that cannot be waited for is dropped with its connection.
                    let _: Result<(), Errno> = self.server.poller.add(fd, Token::Client(id));
                }
            }
            Token::Client(id) => self.serve_client(id),
            Token::Signal => {
                let mut bytes = [0; 16];
                let _: Result<usize, Errno> = sys::read(self.signals.as_raw_fd(), &mut bytes);
                self.end();
            }
            Token::Owner => {
                if let Some(owner) = &mut self.owner {
                    owner.alive = false;
                    self.server.poller.remove(owner.pidfd.raw());
                }
            }
            Token::Guardian => {
                if let Some(Guardian { channel, ended }) = self.guardian.take() {
                    self.server.poller.remove(channel.as_raw_fd());
                    ended();
                }
            }
            other => self.server.handle(other, self.attach.raw()),
        }
    }

    fn serve_client(&mut self, id: control::ClientId) {
        let fd = self.control.client_fd(id);
        let mut unsent = self.control.flush(id);
        for request in self.control.read(id) {
            if let Some(answer) = self.answer(id, request) {
                unsent = self.control.answer(id, &answer);
            }
        }
        if let Some(fd) = fd.filter(|_| self.control.client_fd(id).is_some()) {
            self.server.poller.set_writable(fd, Token::Client(id), unsent);
        }
    }

    /// The answer to a request, unless it has to wait.
    fn answer(&mut self, client: control::ClientId, request: Request) -> Option<Value> {
        Some(match request {
            Request::Resolve { name } => return self.begin_lookup(client, &name),
            Request::Version {} => control::acceptance(json!({
                "version": env!("CARGO_PKG_VERSION"),
                "protocol": haypile_shm::PROTOCOL_VERSION,
                "pid": std::process::id(),
                "addresses": self.server.core.usable_addresses(),
            })),
            Request::Status {} => control::acceptance(self.server.status(&self.facts, now())),
            Request::Ss { listening, all, tcp, udp } => {
                let choice = SocketChoice { listening, all, tcp, udp };
                control::acceptance(self.server.core.socket_rows(&choice))
            }
            Request::Trace { since } => match trace::part(&self.server.core.shard, since) {
                Some(part) => control::acceptance(part),
                None => control::refusal(
                    "the trace is off: set limits.trace_records in the configuration",
                ),
            },
            Request::CaptureStart { path, max_bytes } => self.start_capture(&path, max_bytes),
            Request::CaptureStop {} => self.stop_capture(),
            Request::Shutdown {} => {
                self.end();
                control::acceptance(json!({}))
            }
        })
    }

    /// Asks the name servers; the answer now if that is impossible, else later.
    fn begin_lookup(&mut self, client: control::ClientId, name: &str) -> Option<Value> {
        if self.lookups.len() >= LOOKUPS_MAX {
            return Some(control::refusal("too many names are being looked up"));
        }
        let servers = &self.facts.name_servers;
        let shard = &mut self.server.core.shard;
        match Lookup::start(client, name, servers, shard, now()) {
            Ok(lookup) => {
                self.lookups.push(lookup);
                None
            }
            Err(error) => Some(control::acceptance(Resolved::failure(name, error))),
        }
    }

    /// Answers whose name servers have answered.
    fn finish_lookups(&mut self) {
        let mut lookups = std::mem::take(&mut self.lookups);
        lookups.retain_mut(|lookup| {
            let Some(outcome) = lookup.poll(&mut self.server.core.shard) else { return true };
            let answer = control::acceptance(outcome);
            let unsent = self.control.answer(lookup.client, &answer);
            if let Some(fd) = self.control.client_fd(lookup.client) {
                self.server.poller.set_writable(fd, Token::Client(lookup.client), unsent);
            }
            false
        });
        self.lookups = lookups;
    }

    fn start_capture(&mut self, path: &std::path::Path, max_bytes: u64) -> Value {
        let capture = self.server.link.port_mut();
        if capture.report().is_some_and(|report| report.stopped.is_none()) {
            return control::refusal("a capture runs already; stop it with haypile capture --stop");
        }
        let mut options = CaptureOptions::default();
        if max_bytes > 0 {
            options.limit_bytes = max_bytes;
        }
        // A file that exists is somebody's; the service may be more privileged than who asks.
        let file = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
        let started = file.and_then(|file| capture.start(file, "haypile", &options));
        match started {
            Ok(_) => control::acceptance(json!({ "path": path })),
            Err(error) => {
                control::refusal(&format!("cannot capture to {}: {error}", path.display()))
            }
        }
    }

    fn stop_capture(&mut self) -> Value {
        match self.server.link.port_mut().stop() {
            Some(finished) => {
                // Waits for the file alone; a slow disk must not stop the traffic.
                let report = std::thread::spawn(move || finished.wait());
                drop(report);
                control::acceptance(json!({}))
            }
            None => control::refusal("no capture runs; start one with haypile capture -w FILE"),
        }
    }

    /// Starts to end the service.
    fn end(&mut self) {
        if self.ending == Ending::No {
            let now = now();
            self.server.core.now = now;
            self.server.core.close_everything(now);
            let patience = self.server.core.limits.shutdown_timeout_us;
            self.ending = Ending::Closing(now.plus_us(patience));
        }
    }

    /// Whether the service has ended.
    fn is_over(&mut self, now: Instant) -> bool {
        match self.ending {
            Ending::No => {
                self.look_for_users(now);
                false
            }
            Ending::Closing(until) => {
                if self.server.core.shard.is_quiet() && !self.server.link.is_blocked() {
                    return true;
                }
                if now >= until {
                    self.server.core.abort_everything(now);
                    self.ending = Ending::Resetting(now.plus_us(RESET_US));
                }
                false
            }
            Ending::Resetting(until) => {
                now >= until
                    || (self.server.core.shard.is_quiet() && !self.server.link.is_blocked())
            }
        }
    }

    /// A private service ends some time after the last process that used it.
    fn look_for_users(&mut self, now: Instant) {
        let used = self.server.core.is_used();
        let Some(owner) = &mut self.owner else { return };
        if owner.alive || used {
            owner.unused_since = None;
            return;
        }
        let since = *owner.unused_since.get_or_insert(now);
        if now.since(since) >= GRACE_US {
            self.end();
            // Data that a program left behind is delivered as after any close.
            let patience = self.server.core.limits.orphan_timeout_us;
            self.ending = Ending::Closing(now.plus_us(patience));
        }
    }
}

/// The service's clock.
pub fn now() -> Instant {
    Instant::from_us(sys::clock_monotonic_us())
}
