//! The supervisor: holds what must outlive a server (link queues, the attach and control sockets,
//! the epoch, secrets, the list of listeners), starts each server of the plan as a process of its
//! own, watches it, and starts it again when it dies. No packet and no request of an application
//! passes through it.
//!
//! Made by `start`, which also says what was taken; [`Supervisor::run`] is its loop. Read `servers`
//! for how servers are started, introduced to each other and started again, [`orders`] for what is
//! said to them, [`seat`] for their lives, [`backoff`] for the waits between them, `answers` for the
//! control socket, `door` for programs that no path leads here, `growth` and `shrinking` for servers
//! that come and leave later, and `docs/decisions/0008` and `0011`.

mod answers;
pub mod backoff;
mod door;
mod growth;
pub mod merge;
pub mod orders;
pub mod questions;
pub mod seat;
mod servers;
mod shrinking;

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use haypile_engine::Instant;
use haypile_shm::sys::{self, Errno, Fd};
use haypile_shm::{EpochWriter, epoch};

use crate::config::Config;
use crate::control::ControlSocket;
use crate::error::Error;
use crate::event_loop::now;
use crate::links::LinkHandle;
use crate::plan::ServerSpec;
use crate::poller::{Poller, Token};
use crate::roster::Roster;
use crate::sandbox::{self, Confinement};
use growth::Growth;
use orders::Order;
use questions::Questions;
use seat::{Life, Seat};

/// What a supervisor is made of.
pub struct Parts {
    /// The configuration, with addresses.
    pub config: Config,
    /// The link.
    pub link: LinkHandle,
    /// Where applications attach to each transport server.
    pub attach: Vec<Fd>,
    /// Where those come that no path leads to any of these.
    pub door: Fd,
    /// Where commands come from.
    pub control: ControlSocket,
    /// Readable when SIGTERM, SIGINT or SIGHUP has come.
    pub signals: UnixStream,
    /// For a private service: the process it is for.
    pub owner: Option<Owner>,
    /// What nobody outside may guess: keys of sequence numbers, names and steering.
    pub secret: [u8; 32],
}

/// A service: its supervisor, with the servers.
pub struct Supervisor {
    /// One for each server of the plan. Before the link, so that they are gone when that goes.
    seats: Vec<Seat>,
    parts: Parts,
    poller: Poller,
    epoch: EpochWriter,
    user: Option<(u32, u32)>,
    started: Instant,
    /// Who there is: `seats`, in the same order.
    roster: Roster,
    /// Transport servers that programs may come to.
    open: u16,
    /// The change of the plan that is under way.
    growth: Option<Growth>,
    questions: Questions,
    /// Of answers, since memory was last given back.
    answered_bytes: usize,
    guardian: Option<Guardian>,
    /// Processes that use a private service.
    users: HashMap<u64, Fd>,
    users_seen: u64,
    /// Not all servers have said for the first time that they run.
    starting: bool,
    /// Told to end: when patience is over.
    ending: Option<Instant>,
    /// A server did not run when it was told so.
    failing: bool,
    /// Why a server did not start.
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
    /// As told, while a server was dead: the log says why.
    Failing,
}

/// How long a private service waits for somebody after the last process that used it.
const GRACE_US: u64 = 500_000;
/// Time for a server to end beyond the patience with its connections.
const LAST_WORDS_US: u64 = 5_000_000;
/// Time for the servers to say for the first time that they run.
const START_US: u64 = 20_000_000;
/// Most listeners remembered of one server.
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
            Some((parts.door.raw(), Token::Door)),
            parts.owner.as_ref().map(|owner| (owner.pidfd.raw(), Token::Owner)),
        ];
        for (fd, token) in wanted.into_iter().flatten() {
            poller.add(fd, token).map_err(fail)?;
        }
        // Only the privileged can become somebody else.
        let privileged = sys::privilege::effective_user() == 0;
        let user = sandbox::find_user(&parts.config.confine.user)?;
        let roster = Roster::of(&parts.config.plan);
        let open = roster.transport_count();
        let mut supervisor = Supervisor {
            parts,
            poller,
            epoch: EpochWriter::create().map_err(fail)?,
            user: privileged.then_some(user),
            started: now(),
            seats: Vec::new(),
            roster,
            open,
            growth: None,
            questions: Questions::default(),
            answered_bytes: 0,
            guardian: None,
            users: HashMap::new(),
            users_seen: 0,
            starting: true,
            ending: None,
            failing: false,
            refusal: None,
        };
        supervisor.seats = supervisor.roster.servers().iter().copied().map(Seat::new).collect();
        supervisor.epoch.set_servers(open);
        for server in 0..supervisor.seats.len() {
            supervisor.start_server(server, now())?;
        }
        supervisor.wait_for_start()?;
        // Who asks before that waits for the answer, which says then that the service runs.
        if let Some(fd) = supervisor.parts.control.raw_fd() {
            supervisor.poller.add(fd, Token::Control).map_err(fail)?;
        }
        Ok(supervisor)
    }

    fn wait_for_start(&mut self) -> Result<(), Error> {
        let until = now().plus_us(START_US);
        while self.starting {
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
        let owner = self.seats.iter().find(|seat| seat.spec.link.is_some());
        let life = owner.and_then(|seat| seat.life.as_ref());
        life.map(|life| life.link.clone()).unwrap_or_default()
    }

    /// The servers, each with how it is confined.
    pub fn confinements(&self) -> Vec<(ServerSpec, Confinement)> {
        let confinement = |seat: &Seat| {
            let life = seat.life.as_ref();
            life.and_then(|life| life.confinement.clone()).unwrap_or_default()
        };
        self.seats.iter().map(|seat| (seat.spec, confinement(seat))).collect()
    }

    /// Runs until a signal, a command, or the end of whoever a private service was started for.
    pub fn run(&mut self) -> End {
        loop {
            let timeout_ms = self.timeout_ms(now());
            self.look(timeout_ms);
            let now = now();
            for server in 0..self.seats.len() {
                let due = self.seats[server].restart_at.is_some_and(|at| at <= now);
                if due && self.ending.is_none() {
                    self.restart(server, now);
                }
            }
            self.look_for_users(now);
            self.look_at_growth(now);
            if self.is_over(now) {
                for transport in self.seats.iter().filter_map(|seat| seat.spec.transport) {
                    self.epoch.of(transport).set(epoch::ENDED);
                }
                return if self.failing { End::Failing } else { End::Clean };
            }
        }
    }

    fn is_over(&mut self, now: Instant) -> bool {
        let Some(until) = self.ending else { return false };
        let lives = || self.seats.iter().filter_map(|seat| seat.life.as_ref());
        if now >= until {
            lives().for_each(Life::kill);
        }
        lives().next().is_none()
    }

    fn timeout_ms(&self, now: Instant) -> i32 {
        let unused = self.parts.owner.as_ref().and_then(|owner| owner.unused_since);
        let unused = unused.filter(|_| self.ending.is_none()).map(|since| since.plus_us(GRACE_US));
        let restart = self.seats.iter().filter_map(|seat| seat.restart_at).min();
        let restart = restart.filter(|_| self.ending.is_none());
        match [unused, restart, self.ending, self.growth_due()].into_iter().flatten().min() {
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
            Token::Door => self.open_door(),
            Token::Client(id) => self.serve_client(id),
            Token::Answer(id) => self.pass_answer(id),
            // What comes of one that has left comes too late.
            Token::Channel(server) | Token::Exit(server) if server as usize >= self.seats.len() => {
            }
            Token::Channel(server) => self.read_reports(server as usize),
            Token::Exit(server) => self.server_ended(server as usize),
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

    /// Starts to end the service.
    fn end(&mut self, patience_us: u64) {
        if self.ending.is_some() {
            return;
        }
        self.failing = self.seats.iter().any(|seat| seat.life.is_none());
        self.ending = Some(now().plus_us(patience_us + LAST_WORDS_US));
        for seat in self.seats.iter().filter(|seat| seat.spec.transport.is_some()) {
            if let Some(life) = &seat.life
                && orders::send(life.channel.raw(), &Order::End { patience_us }, &[]).is_err()
            {
                life.kill();
            }
        }
        self.end_the_others();
    }

    /// A private service ends some time after the last process that used it.
    fn look_for_users(&mut self, now: Instant) {
        let used = self.seats.iter().any(|seat| seat.used) || !self.users.is_empty();
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
}

/// One line for the log; a closed one is no reason to stop.
fn complain(text: &str) {
    drop(writeln!(std::io::stderr(), "haypile: {text}"));
}
