//! The event loop: virtual time, stations (servers, each a core that does one thing after the
//! other), workers (programs that serve one connection after the other), and connections.
//!
//! A station takes its tasks in order of arrival; what a task makes leaves when the task is done. A
//! message within a station is a call and costs nothing; between stations and with programs it costs
//! the sender, the way, and the receiver. Called by the experiments; what a station does with a task
//! is in `transport`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use haypile_engine::Instant;
use haypile_engine::control::messages::{BetweenManagers, ToManager, ToTransport};
use haypile_engine::control::names::{ConnectionName, ListenerName, ProcessName};
use haypile_engine::random::Random;
use haypile_engine::socket_id::SocketId;

use super::control::{Manager, Parameters};
use super::costs::Costs;
use super::outcome::{Outcome, Sample};
use super::shape::Shape;
use super::workload::{Load, Service};
use crate::schedule::Spread;

/// The one queue that everybody accepts from.
pub const LISTENER: ListenerName = ListenerName(1);
/// How often estimates are looked at: so many times in a run, but not more often than this.
const SAMPLES: f64 = 500.0;
/// See [`SAMPLES`].
const SAMPLE_MIN_S: f64 = 0.01;

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The servers.
    pub shape: Shape,
    /// How many workers; they are at home with the transport servers in turn.
    pub workers: usize,
    /// Scheme, tariff, estimator and the rest.
    pub parameters: Parameters,
    /// Arrivals.
    pub load: Load,
    /// Service times.
    pub service: Service,
    /// Costs of everything else.
    pub costs: Costs,
    /// Seconds before anything is counted; delays begin after them.
    pub warmup_s: f64,
    /// Seconds that are counted.
    pub seconds: f64,
    /// Where randomness begins.
    pub seed: u64,
}

/// Something happens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A client begins a connection.
    Arrival,
    /// A task reaches a station, by a message or not.
    Task(usize, Task, bool),
    /// A station is done with its task.
    Done(usize),
    /// An offer reaches a worker.
    Offered(usize, u32, u32),
    /// A worker looks at its offers.
    Look(usize),
    /// A worker has served a connection.
    Served(usize, u32),
    /// The client has the answer.
    Answered(u32),
    /// A manager's timer, and for when it was set.
    Timer(usize, u64),
    /// Estimates are written down.
    Sample,
}

/// What a station is asked to do. Numbers are those of connections in the table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    /// Frames at a link server of its own, and what they are.
    Frames(Frames, u32),
    /// The handshake and the request are here.
    Open(u32),
    /// CLAIM-CONNECTION from a worker.
    Claim(u32),
    /// The worker has answered and closed.
    Close(u32),
    /// The client's last frames: the connection is closed.
    Gone(u32),
    /// A worker says that it accepts.
    Accepting(usize),
    /// To the connection manager of this number.
    Manager(usize, ToManager),
    /// To the manager, from the other one.
    Between(usize, usize, BetweenManagers),
    /// The manager's timers.
    Timers(usize),
    /// From a connection manager to the transport server.
    Transport(ToTransport),
}

/// Frames by direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frames {
    Open,
    Answer,
    Gone,
}

/// The word on which claim and revocation compete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// With the server.
    Unclaimed,
    /// For this worker to take.
    Offered(usize),
    /// This worker's.
    Claimed(usize),
}

/// A connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub generation: u32,
    pub transport: usize,
    pub word: Word,
    /// How often it was offered: an old offer is not a new one.
    pub serial: u32,
    pub arrived_ns: u64,
    /// When the manager was told.
    pub told_ns: u64,
    pub offered_ns: u64,
    /// The client has everything.
    pub answered: bool,
}

/// A program that serves one connection after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Worker {
    pub offers: VecDeque<(u32, u32)>,
    pub busy: bool,
    pub served_since_change: u64,
    /// How slow it was when it was looked at last.
    pub factor: f64,
}

/// A server: a core of its own.
#[derive(Debug, Default)]
pub(super) struct Station {
    pub tasks: VecDeque<(Task, bool)>,
    pub busy: bool,
}

/// The world.
pub struct World {
    pub(super) setup: Setup,
    pub(super) now_ns: u64,
    events: BinaryHeap<Reverse<Timed>>,
    sequence: u64,
    pub(super) random: Random,
    pub(super) stations: Vec<Station>,
    pub(super) managers: Vec<Manager>,
    pub(super) timers: Vec<Option<u64>>,
    pub(super) workers: Vec<Worker>,
    pub(super) connections: Vec<Connection>,
    pub(super) free: Vec<u32>,
    /// Connections that a worker has claimed at a transport server and not closed.
    pub(super) open: HashMap<(usize, usize), u32>,
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
struct Timed {
    at_ns: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Timed) -> bool {
        (self.at_ns, self.sequence) == (other.at_ns, other.sequence)
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Timed) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Timed) -> std::cmp::Ordering {
        (self.at_ns, self.sequence).cmp(&(other.at_ns, other.sequence))
    }
}

impl World {
    /// Everything at rest; workers have said that they accept.
    pub fn new(setup: Setup) -> World {
        let shape = &setup.shape;
        let managers = shape.managers.len();
        let managers = (0..managers)
            .map(|number| Manager::new(number, managers, setup.parameters, setup.seed))
            .collect::<Vec<_>>();
        let mut world = World {
            now_ns: 0,
            events: BinaryHeap::new(),
            sequence: 0,
            random: Random::new(setup.seed),
            stations: (0..shape.stations).map(|_| Station::default()).collect(),
            timers: vec![None; managers.len()],
            managers,
            workers: vec![Worker::default(); setup.workers],
            connections: Vec::new(),
            free: Vec::new(),
            open: HashMap::new(),
            outcome: Outcome::new(setup.workers, shape.stations, setup.seconds),
            setup,
        };
        world.open_listeners();
        world
    }

    /// Runs to the end.
    pub fn run(mut self) -> Outcome {
        self.begin_load();
        let end_ns = ((self.setup.warmup_s + self.setup.seconds) * 1e9) as u64;
        self.at(self.setup_warmup_ns(), Event::Sample);
        while let Some(Reverse(next)) = self.events.pop() {
            if next.at_ns >= end_ns {
                break;
            }
            self.now_ns = next.at_ns;
            self.handle(next.event);
        }
        self.note_unfinished(end_ns);
        self.outcome.revoked = self.managers.iter().map(Manager::revoked).sum();
        self.outcome
    }

    /// Connections that still wait have waited at least so long.
    fn note_unfinished(&mut self, end_ns: u64) {
        let warmup_ns = self.setup_warmup_ns();
        let mut done = vec![false; self.connections.len()];
        self.free.iter().for_each(|number| done[*number as usize] = true);
        for (connection, done) in self.connections.iter().zip(done) {
            if !done && !connection.answered && connection.arrived_ns >= warmup_ns {
                self.outcome.latencies.record(end_ns - connection.arrived_ns);
                self.outcome.unfinished += 1;
            }
        }
    }

    fn open_listeners(&mut self) {
        for transport in 0..self.setup.shape.transports.len() {
            let manager = self.setup.shape.manager_of(transport);
            let server = transport as u16;
            self.managers[manager].tell(
                Instant::from_us(0),
                ToManager::ListenerOpened { listener: LISTENER, group: LISTENER, server },
            );
        }
        for worker in 0..self.setup.workers {
            let process = self.process(worker);
            let manager = self.setup.shape.manager_of(self.home(worker));
            self.managers[manager]
                .tell(Instant::from_us(0), ToManager::Acceptor { listener: LISTENER, process });
        }
        for manager in 0..self.managers.len() {
            let station = self.setup.shape.managers[manager];
            self.at(0, Event::Task(station, Task::Timers(manager), false));
        }
    }

    fn begin_load(&mut self) {
        match self.setup.load {
            Load::Open { .. } => self.at(0, Event::Arrival),
            Load::Closed { clients } => {
                for client in 0..clients {
                    // Apart, so that they do not come all at once.
                    self.at(client as u64 * 1000, Event::Arrival);
                }
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrival => self.handle_arrival(),
            Event::Task(station, task, by_message) => {
                self.stations[station].tasks.push_back((task, by_message));
                self.work(station);
            }
            Event::Done(station) => {
                self.stations[station].busy = false;
                self.work(station);
            }
            Event::Offered(worker, connection, serial) => {
                self.workers[worker].offers.push_back((connection, serial));
                if !self.workers[worker].busy {
                    self.workers[worker].busy = true;
                    self.after(self.setup.costs.wake_ns, Event::Look(worker));
                }
            }
            Event::Look(worker) => self.handle_look(worker),
            Event::Served(worker, connection) => self.handle_served(worker, connection),
            Event::Answered(connection) => self.handle_answered(connection),
            Event::Timer(manager, due_ns) => {
                // One that was set for later than the one after it has nothing to do.
                if self.timers[manager] != Some(due_ns) {
                    return;
                }
                self.timers[manager] = None;
                let station = self.setup.shape.managers[manager];
                self.at(self.now_ns, Event::Task(station, Task::Timers(manager), false));
            }
            Event::Sample => self.handle_sample(),
        }
    }

    /// A station that rests takes its next task.
    fn work(&mut self, station: usize) {
        if self.stations[station].busy {
            return;
        }
        let Some((task, by_message)) = self.stations[station].tasks.pop_front() else { return };
        self.stations[station].busy = true;
        let done_ns = self.perform(station, task, by_message);
        self.at(done_ns, Event::Done(station));
    }

    fn handle_arrival(&mut self) {
        let transports = self.setup.shape.transports.len() as u64;
        let transport = (self.random.next_u64() % transports) as usize;
        let connection = self.new_connection(transport);
        self.note_arrival(transport);
        let (shape, wire_ns) = (&self.setup.shape, self.setup.costs.wire_ns);
        let station = shape.transports[transport];
        let link = shape.links[shape.link_of(transport)];
        let task = match link == station {
            true => Event::Task(station, Task::Open(connection), false),
            false => Event::Task(link, Task::Frames(Frames::Open, connection), false),
        };
        self.after(wire_ns, task);
        if let Load::Open { rate, spread } = self.setup.load {
            let gap_ns = 1e9 / rate;
            let next_ns = match spread {
                Spread::Even => gap_ns,
                Spread::Poisson => -gap_ns * self.random.positive_fraction().ln(),
            };
            self.after(next_ns, Event::Arrival);
        }
    }

    fn note_arrival(&mut self, transport: usize) {
        if !self.counting() {
            return;
        }
        let at_s = self.at_s();
        self.outcome.arrived += 1;
        // Where several workers are at home, all have the chance.
        let transports = self.setup.shape.transports.len();
        for worker in (transport..self.setup.workers).step_by(transports) {
            Outcome::count(&mut self.outcome.came[worker], at_s);
        }
    }

    fn new_connection(&mut self, transport: usize) -> u32 {
        let fresh = Connection {
            generation: 1,
            transport,
            word: Word::Unclaimed,
            serial: 0,
            arrived_ns: self.now_ns,
            told_ns: 0,
            offered_ns: 0,
            answered: false,
        };
        match self.free.pop() {
            Some(number) => {
                let place = &mut self.connections[number as usize];
                *place = Connection { generation: place.generation + 1, ..fresh };
                number
            }
            None => {
                self.connections.push(fresh);
                (self.connections.len() - 1) as u32
            }
        }
    }

    /// The worker takes the first offer that is still one.
    fn handle_look(&mut self, worker: usize) {
        let costs = &self.setup.costs;
        let (claim_ns, delay_ns, foreign_ns) =
            (costs.claim_ns, costs.message_delay_ns, costs.foreign_ns);
        while let Some((number, serial)) = self.workers[worker].offers.pop_front() {
            let connection = &mut self.connections[number as usize];
            if connection.serial != serial || connection.word != Word::Offered(worker) {
                // Too late: it says again that it accepts.
                let home = self.setup.shape.transports[self.home(worker)];
                self.after(delay_ns, Event::Task(home, Task::Accepting(worker), true));
                self.outcome.messages.programs += u64::from(self.counting());
                continue;
            }
            connection.word = Word::Claimed(worker);
            let transport = connection.transport;
            let station = self.setup.shape.transports[transport];
            self.after(delay_ns, Event::Task(station, Task::Claim(number), true));
            self.note_claim(worker, transport);
            let local = transport == self.home(worker);
            let service_ns = self.setup.service.draw_ns(worker, self.at_s(), &mut self.random);
            let took_ns = claim_ns + service_ns as f64 + if local { 0.0 } else { foreign_ns };
            self.after(took_ns, Event::Served(worker, number));
            return;
        }
        self.workers[worker].busy = false;
    }

    fn note_claim(&mut self, worker: usize, transport: usize) {
        if !self.counting() {
            return;
        }
        let at_s = self.at_s();
        let local = transport == self.home(worker);
        self.outcome.messages.programs += 1;
        self.outcome.local += u64::from(local);
        Outcome::count(&mut self.outcome.claimed[worker], at_s);
        if local {
            Outcome::count(&mut self.outcome.claimed_local[worker], at_s);
        }
    }

    fn handle_served(&mut self, worker: usize, number: u32) {
        let transport = self.connections[number as usize].transport;
        let station = self.setup.shape.transports[transport];
        let delay_ns = self.setup.costs.message_delay_ns;
        self.after(delay_ns, Event::Task(station, Task::Close(number), true));
        self.outcome.messages.programs += u64::from(self.counting());
        self.workers[worker].served_since_change += 1;
        self.handle_look(worker);
    }

    /// The client has everything; its last frames are on their way.
    fn handle_answered(&mut self, number: u32) {
        let connection = &mut self.connections[number as usize];
        connection.answered = true;
        let (transport, arrived_ns) = (connection.transport, connection.arrived_ns);
        if self.counting() {
            self.outcome.served += 1;
            if arrived_ns >= self.setup_warmup_ns() {
                self.outcome.latencies.record(self.now_ns - arrived_ns);
            }
        }
        let shape = &self.setup.shape;
        let station = shape.transports[transport];
        let link = shape.links[shape.link_of(transport)];
        let task = match link == station {
            true => Event::Task(station, Task::Gone(number), false),
            false => Event::Task(link, Task::Frames(Frames::Gone, number), false),
        };
        self.after(self.setup.costs.wire_ns, task);
        if matches!(self.setup.load, Load::Closed { .. }) {
            self.at(self.now_ns, Event::Arrival);
        }
    }

    fn handle_sample(&mut self) {
        let at_s = self.at_s();
        let now = self.instant();
        for worker in 0..self.workers.len() {
            let manager = self.setup.shape.manager_of(self.home(worker));
            let process = self.process(worker);
            let factor = self.setup.service.delays.factor(worker, at_s);
            if self.workers[worker].factor != factor {
                (self.workers[worker].factor, self.workers[worker].served_since_change) =
                    (factor, 0);
            }
            let estimate_us = self.managers[manager].estimate_us(now, process);
            self.outcome.samples.push(Sample {
                at_s,
                worker,
                estimate_us,
                real_us: self.setup.service.mean_ns(worker, at_s) / 1000.0,
                served_since_change: self.workers[worker].served_since_change,
            });
        }
        let wait_s = (self.setup.seconds / SAMPLES).max(SAMPLE_MIN_S);
        self.after(wait_s * 1e9, Event::Sample);
    }

    pub(super) fn at(&mut self, at_ns: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse(Timed { at_ns, sequence: self.sequence, event }));
    }

    pub(super) fn after(&mut self, ns: f64, event: Event) {
        self.at(self.now_ns + ns as u64, event);
    }

    /// The moment as the engine counts it.
    pub(super) fn instant(&self) -> Instant {
        Instant::from_us(self.now_ns / 1000)
    }

    /// Seconds since counting began; negative before.
    pub(super) fn at_s(&self) -> f64 {
        self.now_ns as f64 / 1e9 - self.setup.warmup_s
    }

    pub(super) fn counting(&self) -> bool {
        self.now_ns >= self.setup_warmup_ns()
    }

    fn setup_warmup_ns(&self) -> u64 {
        (self.setup.warmup_s * 1e9) as u64
    }

    /// The transport server that a worker is at home with.
    pub(super) fn home(&self, worker: usize) -> usize {
        worker % self.setup.shape.transports.len()
    }

    pub(super) fn process(&self, worker: usize) -> ProcessName {
        ProcessName::new(self.home(worker) as u16, worker as u32)
    }

    pub(super) fn name(&self, number: u32) -> ConnectionName {
        let connection = &self.connections[number as usize];
        ConnectionName {
            server: connection.transport as u16,
            id: SocketId::new(number, connection.generation),
        }
    }

    /// The connection of a name, if it is still that one.
    pub(super) fn number(&self, name: ConnectionName) -> Option<u32> {
        let number = name.id.index();
        let connection = self.connections.get(number as usize)?;
        (connection.generation == name.id.generation()).then_some(number)
    }
}
