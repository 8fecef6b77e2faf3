//! One server of a plan: link server, transport server and connection manager as separate modules over
//! one state, moved forward by `step`. What the plan does not give to this server lies idle in it.
//!
//! [`Core`] is the state that the modules share: shard, records, processes, manager. [`Server`]
//! adds the link and the epoll set. Driven by `event_loop` in the
//! product and by virtual time in tests. One turn is bounded: bursts of 64 frames, 64 requests of
//! each process, 256 events.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsRawFd, RawFd};

use haypile_engine::steering::{Rule, SPEAKER};
use haypile_engine::{Close, Instant, Limits, Shard, ShardConfig, Steered};
use haypile_link::port::Port;
use haypile_shm::{EpochWriter, Errno, Fd, Message, ServiceStatus, epoch, sys};

use crate::attach::Adoption;
use crate::config::{Config, ServiceLimits};
use crate::conversation::Conversation;
use crate::diag::Diag;
use crate::error::Error;
use crate::farewell::Held;
use crate::freight::Depot;
use crate::homes::Homes;
use crate::inherited::{Inherited, Notice};
use crate::link_server::{self, LinkServer};
use crate::managers::Managers;
use crate::moving::Moving;
use crate::obituary::Obituary;
use crate::poller::{Poller, Token};
use crate::ports::Ports;
use crate::processes::{self, Processes};
use crate::rings::Rings;
use crate::roles::Roles;
use crate::roster::Roster;
use crate::slab::Key;
use crate::sockets::Store;
use crate::stats::{Counters, Load};
use crate::switch::{Switch, Switching};
use crate::times::Times;
use crate::welcome::Silent;
use haypile_engine::control::connection_manager::{ConnectionManager, ProcessId};
use haypile_engine::control::names::ListenerNames;

/// The state that transport server and connection manager work on.
pub struct Core {
    /// The engine.
    pub shard: Shard,
    /// Sockets and domains.
    pub store: Store,
    /// Listeners and acceptors.
    pub manager: ConnectionManager,
    /// Whom it speaks to about accepting.
    pub managers: Managers,
    /// Names of listeners.
    pub(crate) listener_names: ListenerNames,
    /// Attached processes.
    pub processes: Processes,
    /// What happened, beside what the engine and the link count.
    pub counters: Counters,
    /// Where the time goes.
    pub times: Times,
    pub(crate) ports: Ports,
    pub(crate) status: ServiceStatus,
    pub(crate) diag: Diag,
    pub(crate) limits: ServiceLimits,
    /// Time of the current turn.
    pub(crate) now: Instant,
    /// Writes that wait for the close behind them.
    pub(crate) held: Held,
    /// Whether writes wait at all: only a service that polls hears of the close in time.
    pub(crate) holds_writes: bool,
    /// Connections that wait for their peers' first words.
    pub(crate) silent: Silent,
    /// Sockets whose memory may be taken back.
    pub(crate) active: VecDeque<Key>,
    /// Closed sockets with unsent data, by the time they are given up.
    pub(crate) orphans: VecDeque<(Instant, Key)>,
    /// UDP sockets that have something to send.
    pub(crate) sending: VecDeque<Key>,
    /// Room for the requests of one process.
    pub(crate) request_room: Vec<Message>,
    /// Room for one datagram on its way to the shard.
    pub(crate) scratch: Vec<u8>,
    /// Number of the interface by which the host's kernel reaches us; 0: none.
    pub(crate) interface: u32,
    /// Sockets of hostile applications.
    pub(crate) to_abort: Vec<Key>,
    /// Processes that have ended, not yet applied.
    pub(crate) deaths: Vec<ProcessId>,
    /// Cookies of placeholders that are gone, not yet applied.
    pub(crate) destroyed: Vec<u64>,
    /// Cookies under observation of the witness.
    pub(crate) observed: HashSet<u64>,
    pub(crate) adoptions: Vec<Adoption>,
    pub(crate) new_diag: Vec<RawFd>,
    pub(crate) witness_asked: Instant,
    /// The life of the service that this server is part of.
    pub(crate) era: Era,
    /// Homes and names of processes.
    pub(crate) homes: Homes,
    /// The other servers of the plan.
    pub(crate) rings: Rings,
    /// What was said among them.
    pub(crate) conversation: Conversation,
    /// Buckets on their way to and from them.
    pub(crate) moving: Moving,
    /// The sockets of those.
    pub(crate) depot: Depot,
    /// Listeners of the server before this one.
    pub(crate) inherited: Inherited,
    /// What the supervisor is to be told.
    pub(crate) notices: Vec<Notice>,
    /// There is one who wants to be told of listeners.
    pub(crate) tells: bool,
    /// And of processes.
    pub(crate) tells_processes: bool,
    /// Tells who is at the other end of a control connection; tests put others there.
    pub(crate) peer_process: fn(RawFd) -> Result<(i32, Fd), Errno>,
    housekeeping_due: Instant,
    trim_due: Instant,
}

/// What a server stands on that outlives it.
pub struct Foundation {
    /// Which server of the plan it is.
    pub roles: Roles,
    /// Keys of sequence numbers and ports.
    pub secret: [u8; 32],
    /// Seeds tables and searches; never the same twice.
    pub seed: u64,
    /// Where the kernel tells of placeholders.
    pub diag: Diag,
    /// The epoch.
    pub era: Era,
    /// A supervisor wants to be told of listeners.
    pub tells: bool,
    /// And of processes.
    pub tells_processes: bool,
    /// Its flows, and those of the server before it.
    pub obituary: Obituary,
}

/// The epoch of a server, and the segment that tells applications when it is over.
#[derive(Debug)]
pub struct Era {
    /// Its number.
    pub epoch: u32,
    /// Where it can be read.
    pub segment: EraSegment,
}

/// The segment of the epoch.
#[derive(Debug)]
pub enum EraSegment {
    /// Ours to write: there is no supervisor.
    Own(EpochWriter),
    /// The supervisor's.
    Given(Fd),
}

impl Era {
    /// The descriptor of the segment.
    pub fn fd(&self) -> RawFd {
        match &self.segment {
            EraSegment::Own(writer) => writer.fd(),
            EraSegment::Given(fd) => fd.raw(),
        }
    }
}

impl Foundation {
    /// Without a supervisor: for tests, and for whoever drives a server alone.
    ///
    /// # Errors
    /// When the system gives no memory, descriptors or randomness.
    pub fn alone() -> Result<Foundation, Errno> {
        let writer = EpochWriter::create()?;
        let epoch = epoch::next_up(writer.get());
        writer.set(epoch);
        Ok(Foundation {
            roles: Roles::combined(),
            secret: random()?,
            seed: u64::from_ne_bytes(random()?),
            diag: Diag::new()?,
            era: Era { epoch, segment: EraSegment::Own(writer) },
            tells: false,
            tells_processes: false,
            obituary: Obituary::default(),
        })
    }
}

/// One server with its link.
pub struct Server<P: Port> {
    /// Transport server and connection manager.
    pub core: Core,
    /// Link server.
    pub link: LinkServer<P>,
    /// What the server sleeps on.
    pub poller: Poller,
    /// How busy it is.
    pub load: Load,
    /// How frames are spread over servers.
    rule: Rule,
    secret: [u8; 32],
}

/// What a turn did.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Frames received.
    pub received: usize,
    /// Frames made for sending.
    pub sent: usize,
    /// Requests of applications and messages of other servers.
    pub requests: usize,
    /// Events of the shard.
    pub events: usize,
}

/// A part of a turn that has just ended, for whoever measures turns.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Frames to the shard: hops R1 to R6.
    Receive,
    /// Requests of applications: hop T3, and the claims of connections.
    Requests,
    /// Ends of processes and sockets, and timers.
    Timers,
    /// Events of the shard: hop R7.
    Events,
    /// The connection manager: offers.
    Manager,
    /// Datagrams from their FIFOs to the shard.
    Datagrams,
    /// Frames from the shard: hops T4 to T7.
    Transmit,
    /// What is done once a turn: datagrams published, housekeeping, doorbells.
    Notices,
}

/// Time between two rounds over recently active sockets.
const HOUSEKEEPING_US: u64 = 100_000;
/// Time after which datagrams are offered to the shard again.
const SEND_AGAIN_US: u64 = 500;
/// Time between two looks for memory to give back to the system.
const TRIM_US: u64 = 1_000_000;
/// Chunks given back to the system at a time.
const TRIM_CHUNKS: usize = 256;
/// Rounds over all rings before an end is applied: a ring holds eight budgets.
const DRAIN_ROUNDS: usize = 9;

impl Work {
    /// Whether nothing moved.
    pub fn is_none(&self) -> bool {
        *self == Work::default()
    }
}

impl<P: Port> Server<P> {
    /// Puts a server together around a port.
    ///
    /// # Errors
    /// When the configuration is impossible or the system gives no memory or descriptors.
    pub fn new(config: &Config, port: P, now: Instant) -> Result<Self, Error> {
        let foundation = Foundation::alone().map_err(refused)?;
        Server::with(config, port, now, foundation)
    }

    /// As [`Server::new`], with randomness of the caller's.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn with_randomness(
        config: &Config,
        port: P,
        now: Instant,
        secret: [u8; 32],
        seed: u64,
    ) -> Result<Self, Error> {
        let foundation = Foundation::alone().map_err(refused)?;
        Server::with(config, port, now, Foundation { secret, seed, ..foundation })
    }

    /// As `new`, on what a supervisor gives.
    ///
    /// # Errors
    /// As `new`.
    pub fn with(
        config: &Config,
        port: P,
        now: Instant,
        foundation: Foundation,
    ) -> Result<Self, Error> {
        let switching = Switching::of(&foundation.roles, config.steer, &foundation.secret);
        let ports = Ports::new(foundation.seed.rotate_left(17));
        let shard = make_shard(config, &port, now, &foundation, switching.steered)?;
        let roles = foundation.roles;
        let depot = Depot::new(roles.place().server, foundation.era.epoch, &config.limits);
        let mut core = Core {
            shard,
            store: Store::new(config.limits.unclaimed_bytes),
            managers: Managers::of(&roles),
            manager: manager(config, &roles, foundation.seed),
            listener_names: ListenerNames::new(&foundation.secret),
            processes: Processes::default(),
            counters: Counters::default(),
            times: Times::new(now),
            ports,
            status: ServiceStatus::create().map_err(refused)?,
            diag: foundation.diag,
            limits: config.limits.clone(),
            now,
            held: Held::default(),
            holds_writes: false,
            silent: Silent::default(),
            active: VecDeque::new(),
            orphans: VecDeque::new(),
            sending: VecDeque::new(),
            request_room: Vec::new(),
            scratch: Vec::new(),
            interface: port.interface(),
            to_abort: Vec::new(),
            deaths: Vec::new(),
            destroyed: Vec::new(),
            observed: HashSet::new(),
            adoptions: Vec::new(),
            new_diag: Vec::new(),
            witness_asked: now,
            era: foundation.era,
            homes: Homes::new(roles.place(), &foundation.secret, foundation.seed),
            depot,
            inherited: Inherited::default(),
            moving: Moving::new(&roles),
            rings: Rings::new(roles),
            conversation: Conversation::default(),
            notices: Vec::new(),
            tells: foundation.tells,
            tells_processes: foundation.tells_processes,
            peer_process: processes::peer_process,
            housekeeping_due: now,
            trim_due: now,
        };
        core.store.obituary = foundation.obituary;
        let mut link = LinkServer::new(port).map_err(refused)?;
        if let Some(switch) = switching.switch {
            link.set_switch(switch);
        }
        Ok(Server {
            core,
            link,
            poller: Poller::new().map_err(refused)?,
            load: Load::new(now),
            rule: config.steer,
            secret: foundation.secret,
        })
    }

    /// There are other servers from now on. This one talks to those that are new once they are introduced; those
    /// that are there no more have left it. False, and nothing changed, when these are not the same servers.
    pub fn follow(&mut self, roster: Roster) -> bool {
        let Server { core, link, .. } = self;
        let Some(roles) = core.rings.roles().among(roster) else { return false };
        let staying = roles.roster().staying();
        let managers_before = core.managers_of_open();
        core.managers.follow(&roles);
        core.manager.set_peers(roles.manager_count() > 1);
        core.manager.set_homes(staying);
        if staying < core.homes.place().servers {
            core.homes.open(staying);
        }
        let was_steered = core.shard.steered().is_some();
        let Switching { steered, switch } =
            Switching::following(&roles, self.rule, &self.secret, was_steered);
        if let Some(steered) = steered {
            core.shard.set_servers(&steered);
        }
        if let Some(switch) = switch {
            link.follow(switch);
        }
        core.rings.set_roles(roles);
        core.move_open(core.now, managers_before);
        true
    }

    /// The descriptor of the link, to sleep on.
    pub fn link_fd(&self) -> RawFd {
        self.link.port().wait_fd().as_raw_fd()
    }

    /// One bounded turn: frames in, requests, timers, events, offers, frames out, notices.
    ///
    /// # Errors
    /// When the link is of no more use.
    pub fn step(&mut self, now: Instant) -> Result<Work, Error> {
        self.step_with(now, |_| {})
    }

    /// As [`Server::step`]; `ended` is told of each part of the turn when it has ended.
    ///
    /// # Errors
    /// As [`Server::step`].
    pub fn step_with(&mut self, now: Instant, mut ended: impl FnMut(Part)) -> Result<Work, Error> {
        let Server { core, link, poller, .. } = self;
        core.now = now;
        let failed = |error| Error::new("use the link", error, "look whether it was removed");
        let serves = core.serves(now);
        let received = match serves {
            true => {
                core.mourn(now);
                let (shard, mut inward) = core.inward();
                link.receive(now, shard, &mut inward).map_err(failed)?
            }
            false => 0,
        };
        core.settle_freight(now);
        ended(Part::Receive);
        let requests = if serves { core.handle_requests(now) } else { 0 };
        ended(Part::Requests);
        if serves {
            core.apply_what_was_noted(now, poller);
        }
        if core.shard.poll_timeout().is_some_and(|due| due <= now) {
            core.shard.handle_timers(now, &mut core.store);
        }
        ended(Part::Timers);
        let events = core.handle_events(now);
        core.release_held(now, false);
        core.welcome_silent(now);
        ended(Part::Events);
        let heard = core.hear_peers(now) + core.drive_moves(now);
        core.tell_open(now);
        core.run_manager(now);
        core.expel(now);
        ended(Part::Manager);
        let datagrams = core.send_datagrams(now);
        ended(Part::Datagrams);
        let sent = link.transmit(now, &mut core.shard, &mut core.store).map_err(failed)?;
        link.finish_turn(&mut core.shard, core.moving.outward());
        core.tell_map(link.switch().map(Switch::steering));
        ended(Part::Transmit);
        core.publish_datagrams();
        core.housekeeping(now);
        core.watch_new_diag(poller);
        core.speak_to_peers();
        core.processes.flush();
        ended(Part::Notices);
        Ok(Work { received, sent, requests: requests + datagrams + heard, events })
    }

    /// When `step` wants to be called even if nothing comes.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let core = &self.core;
        let housekeeping = !core.active.is_empty() || !core.orphans.is_empty() || core.has_strays();
        [
            core.shard.poll_timeout(),
            core.manager.poll_timeout(),
            core.witness_due(),
            core.held.due(),
            core.silent.due(),
            housekeeping.then_some(core.housekeeping_due),
            // The shard had no room for all of them.
            (!core.sending.is_empty()).then(|| core.now.plus_us(SEND_AGAIN_US)),
            core.inherited.due(),
            core.moving.due(),
            core.store.obituary.due(),
            (core.depot.has_news() || core.store.open.has_changed()).then_some(core.now),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Something came on a descriptor of the transport server; `attach` is the attach socket. The
    /// tokens of others mean nothing here.
    pub fn handle(&mut self, token: Token, attach: RawFd) {
        let Server { core, poller, .. } = self;
        match token {
            Token::Attach => core.accept_connections(attach, poller),
            Token::Connection(index) => core.read_connection(index, poller),
            Token::Pidfd(process) => core.note_death(process, poller),
            Token::Wake(process) => core.heard(process, poller),
            // Whose they were shows when all rings are drained: what is shared may be in one of them.
            Token::Diag => drop(core.diag.read(&mut core.destroyed)),
            // The next turn reads the link's frames.
            Token::Link => self.link.port_mut().handle_ready(),
            _ => {}
        }
    }
}

impl Core {
    /// Ends and adoptions, once every ring has been drained since they were noted.
    #[inline]
    fn apply_what_was_noted(&mut self, now: Instant, poller: &Poller) {
        let witness_due = self.diag.is_overrun() || self.is_witness_due(now);
        let nothing = self.deaths.is_empty()
            && self.destroyed.is_empty()
            && self.adoptions.is_empty()
            && !witness_due;
        if !nothing {
            self.apply_all(now, poller);
        }
    }

    #[inline(never)]
    fn apply_all(&mut self, now: Instant, poller: &Poller) {
        for _ in 0..DRAIN_ROUNDS {
            if self.handle_requests(now) == 0 {
                break;
            }
        }
        self.answer_adoptions(poller);
        self.apply_ends(now);
    }

    #[inline]
    fn housekeeping(&mut self, now: Instant) {
        if now >= self.housekeeping_due {
            self.keep_house(now);
        }
    }

    #[inline(never)]
    fn keep_house(&mut self, now: Instant) {
        self.housekeeping_due = now.plus_us(HOUSEKEEPING_US);
        self.reclaim(now);
        self.end_orphans(now);
        self.end_strays(now);
        if !self.inherited.is_empty() {
            self.end_inherited(now);
        }
        if now >= self.trim_due {
            self.trim_due = now.plus_us(TRIM_US);
            self.store.domains.trim(TRIM_CHUNKS);
        }
    }

    /// Closes every socket, as at the end of all applications; the listeners first.
    pub fn close_everything(&mut self, now: Instant) {
        let mut keys = self.store.sockets.keys();
        let listener = |key: &Key| {
            self.store
                .sockets
                .get(*key)
                .is_some_and(|socket| socket.kind == haypile_shm::messages::SocketKind::Listener)
        };
        keys.sort_by_key(|key| !listener(key));
        for key in keys {
            self.close_socket(now, key, false);
        }
        self.processes.flush();
    }

    /// Programs may come to so many transport servers from now on. Those that are here already are woken,
    /// so that they open their listeners at the new ones.
    pub fn open_to_programs(&mut self, servers: u16) {
        self.homes.open(servers);
        self.processes.wake_all();
    }

    /// Resets what has not closed in time.
    pub fn abort_everything(&mut self, now: Instant) {
        for key in self.store.sockets.keys() {
            if let Some(id) = self.store.sockets.get(key).and_then(|socket| socket.id) {
                self.shard.close(now, id, Close::Abort);
            }
        }
    }
}

/// Bytes that nobody can guess.
///
/// # Errors
/// When the system has none to give.
pub fn random<const N: usize>() -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    sys::random_bytes(&mut bytes)?;
    Ok(bytes)
}

/// The shard, with addresses where the server owns flows.
fn make_shard(
    config: &Config,
    port: &impl Port,
    now: Instant,
    foundation: &Foundation,
    steered: Option<Steered>,
) -> Result<Shard, Error> {
    let transport = foundation.roles.transport();
    // Others have no addresses and answer nothing.
    let addresses = transport.map(|_| config.addresses.clone());
    let shard_config = ShardConfig {
        mac: port.mac(),
        mtu: port.mtu(),
        addresses: addresses.unwrap_or_default(),
        routes: config.routes.clone(),
        limits: Limits::default(),
        secret: foundation.secret,
        seed: foundation.seed,
        offloads: link_server::offloads(port.features()),
        steered,
    };
    let mut shard = Shard::new(shard_config, now).map_err(|error| {
        Error::new("set up the network", error, "correct the addresses and routes")
    })?;
    // The first transport server finds addresses for all.
    let speaks = transport == Some(SPEAKER);
    if speaks && config.automatic.dhcp {
        shard.start_dhcp(now);
    }
    if speaks && config.automatic.slaac {
        shard.start_slaac(now);
    }
    shard.set_trace(config.limits.trace_records as usize);
    Ok(shard)
}

/// The connection manager, which only a server of that role uses.
fn manager(config: &Config, roles: &Roles, seed: u64) -> ConnectionManager {
    let timeout_us = config.limits.claim_timeout_us;
    let mut manager = ConnectionManager::new(timeout_us, config.balance, seed.rotate_left(31));
    manager.set_peers(roles.manager_count() > 1);
    manager.set_homes(roles.roster().staying());
    manager
}

fn refused(errno: Errno) -> Error {
    let error = std::io::Error::from(errno);
    Error::new("set up the service", error, "raise the limits of memory and descriptors")
}
