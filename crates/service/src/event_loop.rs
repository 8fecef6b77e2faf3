//! The event loop of a service: spins while there is work and briefly after, sleeps otherwise, and
//! looks at the kernel's descriptors now and then while busy.
//!
//! Lost wake-ups: before it sleeps the loop announces it in the status segment and to the link,
//! looks at every request ring once more, and only then waits; an application publishes a request, and only then
//! reads the announcement (`haypile_shm::sleep` has the argument). Everything else that wakes it is
//! a descriptor in the epoll set. Called by `start`.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use haypile_engine::Instant;
use haypile_link::capture::{Capture, CaptureOptions};
use haypile_link::port::Port;
use haypile_shm::Doorbell;
use haypile_shm::spin::{self, Gaps, Spinner};
use haypile_shm::sys::{self, Errno, Fd, privilege};
use serde_json::{Value, json};

use crate::control::{self, ControlSocket, Failure, Request};
use crate::error::Error;
use crate::inherited::Notice;
use crate::listing::Listing;
use crate::moving::{JobId, MoveReport};
use crate::poller::Token;
use crate::report::{Facts, SocketChoice};
use crate::resolve::{Lookup, Resolved};
use crate::roster::Roster;
use crate::server::Server;
use crate::server_process::PutOff;
use crate::sharing::{Sharing, Step};
use crate::supervisor::orders::{self, Fds, ListenerRecord, Order, Report};
use crate::trace;

/// A server that runs: with its sockets, and the supervisor that commands it.
pub struct Service<P: Port> {
    /// The server.
    pub server: Server<Capture<P>>,
    ends: Ends,
    /// Another server rang since the last sleep, and that is not taken yet.
    rung: bool,
    control: ControlSocket,
    facts: Facts,
    /// Orders that came while the server waited for another answer.
    put_off: Rc<PutOff>,
    /// Reports that the channel did not take yet.
    reports: VecDeque<Report>,
    /// What the supervisor was last told of users.
    used: bool,
    /// Where the next capture goes.
    file: Option<File>,
    /// Told to end.
    ending: Ending,
    tokens: Vec<Token>,
    looked: Instant,
    /// Clients that wait for name servers.
    lookups: Vec<Lookup>,
    /// Programs open their listeners here, until this time.
    opening: Option<Instant>,
    /// Buckets that are being handed to new servers.
    sharing: Option<Sharing>,
    /// Clients that wait for buckets to move.
    movers: HashMap<JobId, control::ClientId>,
    /// Answers that are given in slices.
    listings: HashMap<control::ClientId, Listing>,
}

/// The descriptors that reach a server from outside.
pub struct Ends {
    /// Where applications attach; none at a server that is no transport server.
    pub attach: Option<Fd>,
    /// The supervisor.
    pub channel: Rc<Fd>,
    /// What the other servers ring.
    pub bell: Doorbell,
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
    /// Everything has gone to others.
    Leaving,
}

/// Time without work before the loop sleeps, where it has a core to spare and work does not usually
/// come so soon that a longer spin pays: the time in which a program that was woken answers.
const SPIN_NS: u64 = 50_000;
/// Clients whose names are looked up at a time.
const LOOKUPS_MAX: usize = 16;
/// Turns or time between two looks at the kernel's descriptors while there is work.
const LOOK_TURNS: u32 = 64;
const LOOK_US: u64 = 100;
/// Turns between two such looks at least: the first turns after a sleep have somebody waiting for them.
const LOOK_TURNS_MIN: u32 = 4;
/// The first turns after a sleep, in which whoever was woken is given the core at once. Later, under load,
/// others have it when there is nothing to do.
const FRESH_TURNS: u32 = 4;
/// Time for programs to open their listeners at a new server, before it gets buckets: what they have not
/// opened by then is held there for them.
const OPENING_US: u64 = 5_000_000;
/// Buckets in one report.
const MOVED_AT_ONCE: usize = 64;
/// Time for resets to leave.
const RESET_US: u64 = 50_000;

impl<P: Port> Service<P> {
    /// Puts a service together; `server_process` makes the parts.
    ///
    /// # Errors
    /// When the kernel takes no more descriptors to wait on.
    pub fn new(
        server: Server<Capture<P>>,
        ends: Ends,
        facts: Facts,
        put_off: Rc<PutOff>,
    ) -> Result<Self, Error> {
        let wanted = [
            Some((server.link_fd(), Token::Link)),
            ends.attach.as_ref().map(|attach| (attach.raw(), Token::Attach)),
            Some((ends.channel.raw(), Token::Channel(u32::from(facts.server)))),
            Some((ends.bell.raw(), Token::Peers)),
        ];
        for (fd, token) in wanted.into_iter().flatten() {
            server.poller.add(fd, token).map_err(|errno| {
                Error::new("wait for events", std::io::Error::from(errno), "raise the limits")
            })?;
        }
        Ok(Service {
            server,
            ends,
            rung: false,
            control: ControlSocket::default(),
            facts,
            put_off,
            reports: VecDeque::new(),
            used: false,
            file: None,
            ending: Ending::No,
            tokens: Vec::new(),
            looked: now(),
            lookups: Vec::new(),
            opening: None,
            sharing: None,
            movers: HashMap::new(),
            listings: HashMap::new(),
        })
    }

    /// Runs until the supervisor says so, or is gone.
    ///
    /// # Errors
    /// When the link is of no more use.
    pub fn run(&mut self) -> Result<(), Error> {
        let spins = spin::others_run();
        let mut turns_awake: u32 = 0;
        let gaps = Gaps::new();
        self.server.core.holds_writes = spins;
        let mut idle: Option<Idle> = None;
        let mut turns_since_look = 0;
        // Who is there already is known before the first frame is taken.
        self.obey_put_off();
        loop {
            let start = now();
            let work = self.server.step(start)?;
            if !self.lookups.is_empty() {
                self.finish_lookups();
            }
            if !self.movers.is_empty() {
                self.finish_moves();
            }
            let end = now();
            let busy = !work.is_none();
            self.server.load.turn(start, end, busy);
            if self.server.core.moving.has_moved() {
                self.report_moved();
            }
            if self.opening.is_some() || self.sharing.is_some() {
                self.follow_plan(end);
            }
            self.report()?;
            self.obey_put_off();
            turns_since_look += 1;
            turns_awake = turns_awake.saturating_add(1);
            let fresh = spins && busy && turns_awake <= FRESH_TURNS;
            if fresh && !self.server.core.processes.any_requests() {
                // Somebody was woken by this turn, and may be waiting for this very core.
                spin::offer();
            }
            if busy && let Some(idle) = idle.take() {
                gaps.note(start.since(idle.since).saturating_mul(1000));
            }
            let late = end.since(self.looked) >= LOOK_US && turns_since_look >= LOOK_TURNS_MIN;
            if late || turns_since_look >= LOOK_TURNS {
                turns_since_look = 0;
                self.look(0)?;
            } else if !busy {
                let idle = idle.get_or_insert_with(|| {
                    self.server.core.status.set_core(sys::current_core());
                    Idle::new(end, if spins { gaps.patience_ns(SPIN_NS) } else { 0 })
                });
                if !idle.spinner.rest() {
                    turns_since_look = 0;
                    self.sleep()?;
                    turns_awake = 0;
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
    fn sleep(&mut self) -> Result<(), Error> {
        let core = &mut self.server.core;
        if core.release_held(now(), true) > 0 {
            return Ok(());
        }
        core.quiet_bells(&self.server.poller);
        self.quiet_bell();
        let core = &mut self.server.core;
        core.status.prepare_sleep();
        let (port, frames) = self.server.link.parts_mut();
        let mut looked = Ok(());
        let quiet =
            !core.processes.any_requests() && !core.rings.any_messages() && !frames.any_frames();
        if quiet && port.prepare_sleep() {
            self.server.load.sleeps += 1;
            let timeout_ms = self.timeout_ms(now());
            looked = self.look(timeout_ms);
        }
        self.server.link.port_mut().awake();
        self.server.core.status.awake();
        looked
    }

    /// Time to sleep, in milliseconds rounded up; -1 for ever.
    fn timeout_ms(&self, now: Instant) -> i32 {
        let ending = match self.ending {
            Ending::No => None,
            // The end of a connection is seen in the shard, not told.
            Ending::Closing(_) | Ending::Resetting(_) | Ending::Leaving => Some(now.plus_us(1000)),
        };
        let unreported = (!self.reports.is_empty()).then(|| now.plus_us(1000));
        let waits = self.server.link.is_blocked() || self.server.core.rings.is_blocked();
        let blocked = waits.then(|| now.plus_us(1000));
        // The rows of a move are taken in the turn after the one in which it ends.
        let sharing = self.sharing.is_some().then(|| now.plus_us(1000));
        let own = [ending, blocked, unreported, self.opening, sharing];
        match [self.server.poll_timeout()].into_iter().chain(own).flatten().min() {
            Some(due) => due.since(now).div_ceil(1000).min(60_000) as i32,
            None => -1,
        }
    }

    /// Looks at the kernel's descriptors, waiting up to `timeout_ms`.
    fn look(&mut self, timeout_ms: i32) -> Result<(), Error> {
        let mut tokens = std::mem::take(&mut self.tokens);
        self.server.poller.wait(timeout_ms, &mut tokens);
        self.looked = now();
        self.server.core.now = self.looked;
        let mut outcome = Ok(());
        for token in tokens.drain(..) {
            outcome = outcome.and(self.handle(token));
        }
        self.tokens = tokens;
        outcome
    }

    /// What wakes a server that serves is handled right here: the rest is large, and cold after a rest.
    #[inline]
    fn handle(&mut self, token: Token) -> Result<(), Error> {
        let Server { core, link, poller, .. } = &mut self.server;
        match token {
            Token::Link => link.port_mut().handle_ready(),
            Token::Wake(process) => core.heard(process, poller),
            other => return self.handle_rare(other),
        }
        Ok(())
    }

    #[inline(never)]
    fn handle_rare(&mut self, token: Token) -> Result<(), Error> {
        match token {
            Token::Channel(_) => return self.read_orders(),
            Token::Client(id) => self.serve_client(id),
            Token::Attach => {
                if let Some(attach) = &self.ends.attach {
                    self.server.handle(token, attach.raw());
                }
            }
            // The ends are never closed from outside: we hold a copy of the other one. Peers have
            // theirs, and nothing worse than a turn for nothing follows from a ring.
            Token::Peers => {
                self.quiet_bell();
                self.rung = true;
            }
            other => self.server.handle(other, -1),
        }
        Ok(())
    }

    /// Takes the rings of other servers, if any were heard: before each sleep, or when they are heard again,
    /// because whoever rings waits.
    fn quiet_bell(&mut self) {
        if std::mem::take(&mut self.rung) {
            // One that failed could only be closed, and a copy of it is ours.
            let _: Result<bool, Errno> = self.ends.bell.drain();
        }
    }

    /// Takes what the supervisor has said. Without a supervisor there is no server.
    fn read_orders(&mut self) -> Result<(), Error> {
        // Those that came earlier come first.
        self.obey_put_off();
        loop {
            match orders::receive(self.ends.channel.raw(), orders::decode::<Order>) {
                Ok((order, fds)) => self.obey(order, fds),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(supervisor_lost(errno)),
            }
        }
    }

    fn obey_put_off(&mut self) {
        // Said while a turn waited for the supervisor, so there are few.
        for (order, fds) in self.put_off.take() {
            self.obey(order, fds);
        }
    }

    fn obey(&mut self, order: Order, fds: Fds) {
        let [first, second, third, ..] = fds;
        match order {
            Order::Client {} => {
                let client = first.map(|fd| UnixStream::from(OwnedFd::from(fd)));
                if let Some((id, fd)) = client.and_then(|client| self.control.add(client)) {
                    // A client that cannot be waited for is dropped with its connection.
                    let _: Result<(), Errno> = self.server.poller.add(fd, Token::Client(id));
                }
            }
            Order::Newcomer {} => {
                if let Some(fd) = first {
                    let Server { core, poller, .. } = &mut self.server;
                    core.add_connection(fd, poller);
                }
            }
            Order::Peer { server, frames } => {
                // Without it this end stays alone, and what is said to it is counted.
                if let (Some(segment), Some(status), Some(bell)) = (first, second, third) {
                    let _: Result<(), Errno> =
                        self.server.join_peer(now(), server, frames, [segment, status, bell]);
                }
            }
            Order::PeerGone { server } => self.server.leave_peer(now(), server),
            Order::Servers { roster } => self.follow_roster(*roster),
            Order::Beside { listener, open } => self.hold_beside(&listener, open),
            Order::Open { servers } => {
                self.server.core.open_to_programs(servers);
                self.opening = Some(now().plus_us(OPENING_US));
            }
            Order::Share { first } => {
                self.sharing = Some(Sharing::begin(&self.server.core, first));
            }
            Order::Part { patience_us } => {
                self.sharing = Some(Sharing::part(now(), &self.server.core, patience_us));
            }
            Order::Leave {} => self.ending = Ending::Leaving,
            Order::File {} => self.file = first.map(|fd| File::from(OwnedFd::from(fd))),
            Order::End { patience_us } => self.end(patience_us),
            // Said at the start, or answered where it was asked.
            Order::Start(_)
            | Order::Link { .. }
            | Order::Listener(_)
            | Order::Run {}
            | Order::Begin {}
            | Order::Notices { .. } => {}
        }
    }

    fn follow_roster(&mut self, roster: Roster) {
        self.facts.plan = roster.plan().to_string();
        if self.server.follow(roster) {
            self.reports.push_back(Report::Known {});
        }
    }

    fn hold_beside(&mut self, listener: &ListenerRecord, open: bool) {
        let (now, core) = (now(), &mut self.server.core);
        core.now = now;
        match open {
            // One that cannot be held is the application's to miss.
            true => drop(core.hold_beside(now, listener)),
            false => core.hold_no_more(now, listener.domain, listener.cookie),
        }
    }

    /// Goes on with what a change of the plan asks of this server.
    fn follow_plan(&mut self, now: Instant) {
        let core = &mut self.server.core;
        if self.opening.is_some_and(|until| core.inherited.is_empty() || now >= until) {
            self.opening = None;
            self.reports.push_back(Report::Opened {});
        }
        let Some(sharing) = &mut self.sharing else { return };
        match sharing.step(now, core) {
            Step::Waiting => {}
            Step::Done => {
                let report = match sharing.parts() {
                    false => Report::Shared {},
                    true => Report::Parted { buckets: core.buckets(), stubs: core.stubs() as u32 },
                };
                self.sharing = None;
                self.reports.push_back(report);
            }
        }
    }

    /// Buckets have moved, for whatever reason: the supervisor has the kernel bring their frames to where they are.
    #[cold]
    fn report_moved(&mut self) {
        let mut moved = self.server.core.moving.take_moved();
        moved.sort_by_key(|(to, _)| *to);
        for of_one in moved.chunk_by(|one, other| one.0 == other.0) {
            for some in of_one.chunks(MOVED_AT_ONCE) {
                let buckets = some.iter().map(|(_, bucket)| *bucket).collect();
                self.reports.push_back(Report::Moved { to: some[0].0, buckets });
            }
        }
    }

    /// Tells the supervisor what it wants to know.
    #[inline]
    fn report(&mut self) -> Result<(), Error> {
        let core = &self.server.core;
        if core.notices.is_empty() && self.reports.is_empty() && !core.tells_processes {
            return Ok(());
        }
        self.report_all()
    }

    #[inline(never)]
    fn report_all(&mut self) -> Result<(), Error> {
        let core = &mut self.server.core;
        for notice in std::mem::take(&mut core.notices) {
            match notice {
                Notice::Listening(record) => self.reports.push_back(Report::Listening(record)),
                Notice::NotListening(domain, cookie) => {
                    self.reports.push_back(Report::NotListening { domain, cookie });
                }
                Notice::Attached(pidfd) => {
                    // Without it the supervisor goes by what is said of users.
                    let report = Report::Attached {};
                    let _: Result<(), Errno> =
                        orders::send(self.ends.channel.raw(), &report, &[pidfd.raw()]);
                }
            }
        }
        let used = core.tells_processes && core.is_used();
        if used != self.used {
            self.used = used;
            self.reports.push_back(Report::Used { used });
        }
        while let Some(report) = self.reports.front() {
            match orders::send(self.ends.channel.raw(), report, &[]) {
                Ok(()) => drop(self.reports.pop_front()),
                Err(Errno::EAGAIN | Errno::ENOBUFS) => return Ok(()),
                Err(errno) => return Err(supervisor_lost(errno)),
            }
        }
        Ok(())
    }

    fn serve_client(&mut self, id: control::ClientId) {
        let fd = self.control.client_fd(id);
        let mut unsent = self.control.flush(id);
        for request in self.control.read(id) {
            // One answer after the other.
            while self.listings.contains_key(&id) {
                self.list_some(id);
            }
            if let Some(answer) = self.answer(id, request) {
                unsent = self.control.answer(id, &answer);
            }
        }
        if !unsent && self.listings.contains_key(&id) {
            unsent = self.list_some(id);
        }
        if let Some(fd) = fd.filter(|_| self.control.client_fd(id).is_some()) {
            self.server.poller.set_writable(fd, Token::Client(id), unsent);
        }
    }

    /// One slice more of a listing; true while there is something left to say.
    fn list_some(&mut self, id: control::ClientId) -> bool {
        let Some(listing) = self.listings.get_mut(&id) else { return false };
        let mut text = Vec::new();
        let over = listing.write_some(&self.server.core, &mut text);
        let unsent = self.control.answer_text(id, &text);
        if over || self.control.client_fd(id).is_none() {
            self.listings.remove(&id);
        }
        unsent || !over
    }

    /// The answer to a request, unless it has to wait.
    fn answer(&mut self, client: control::ClientId, request: Request) -> Option<Value> {
        Some(match request {
            Request::Resolve { name } => return self.begin_lookup(client, &name),
            Request::Status {} => control::acceptance(self.server.status(&self.facts, now())),
            Request::Steer {} => control::acceptance(self.server.core.steer_report()),
            Request::SteerMove { what, to, patience_ms } => {
                match self.server.core.begin_moves(now(), what, to, patience_ms) {
                    Ok(Some(job)) => {
                        self.movers.insert(job, client);
                        return None;
                    }
                    Ok(None) => control::acceptance(MoveReport::default()),
                    Err(why) => control::refusal(&why),
                }
            }
            Request::Balance { change } => {
                let busy_us = self.server.load.busy_us;
                match self.server.core.balance(now(), &change, busy_us) {
                    Ok(report) => control::acceptance(report),
                    Err(error) => control::refusal(&error.to_string()),
                }
            }
            Request::Ss { listening, all, tcp, udp } => {
                let choice = SocketChoice { listening, all, tcp, udp };
                self.listings.insert(client, Listing::new(&self.server.core, &choice));
                return None;
            }
            Request::Trace { since, .. } => match trace::part(&self.server.core.shard, since) {
                Some(part) => control::acceptance(part),
                None => control::refusal(
                    "the trace is off: set limits.trace_records in the configuration",
                ),
            },
            Request::CaptureStart { path, max_bytes } => self.start_capture(&path, max_bytes),
            Request::CaptureStop {} => self.stop_capture(),
            Request::Fail { how: Failure::Panic, .. } => panic!("asked to fail"),
            Request::Fail { how: Failure::ForbiddenCall, .. } => {
                let outcome = privilege::call_something_forbidden();
                control::refusal(&format!("the call was not forbidden: {outcome:?}"))
            }
            Request::Version {} => control::acceptance(json!({
                "version": env!("CARGO_PKG_VERSION"),
                "protocol": haypile_shm::PROTOCOL_VERSION,
                "pid": std::process::id(),
                "addresses": self.server.core.usable_addresses(),
            })),
            Request::Shutdown {} | Request::PlanSet { .. } | Request::PlanState {} => {
                control::refusal("ask the supervisor")
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

    /// Answers whose buckets have moved, or will not in time.
    fn finish_moves(&mut self) {
        let Service { movers, control, server, .. } = self;
        movers.retain(|job, client| {
            let Some(moves) = server.core.moving.take_done(*job) else { return true };
            let unsent = control.answer(*client, &control::acceptance(MoveReport { moves }));
            if let Some(fd) = control.client_fd(*client) {
                server.poller.set_writable(fd, Token::Client(*client), unsent);
            }
            false
        });
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
        let Some(file) = self.file.take() else { return control::refusal("there is no file") };
        let started = capture.start(file, "haypile", &options);
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
    fn end(&mut self, patience_us: u64) {
        if self.ending == Ending::No {
            let now = now();
            self.server.core.now = now;
            // The supervisor knows that everything ends.
            self.server.core.tells = false;
            self.server.core.close_everything(now);
            self.ending = Ending::Closing(now.plus_us(patience_us));
        }
    }

    /// Whether the service has ended.
    fn is_over(&mut self, now: Instant) -> bool {
        match self.ending {
            Ending::No => false,
            Ending::Leaving => !self.server.link.is_blocked(),
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
}

fn supervisor_lost(errno: Errno) -> Error {
    let why = match errno {
        Errno::EPIPE => "it has ended".to_string(),
        errno => std::io::Error::from(errno).to_string(),
    };
    Error::new("listen to the supervisor", why, "start the service again")
}

/// The service's clock.
pub fn now() -> Instant {
    Instant::from_us(sys::clock_monotonic_us())
}
