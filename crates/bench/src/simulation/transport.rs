//! What stations do with their tasks: transport servers between the wire, the connection managers
//! and the workers, link servers where they are on their own. Called by `world`; decisions are the
//! managers'.

use haypile_engine::control::messages::{ToManager, ToTransport};

use super::control::Said;
use super::costs::{Cost, FRAMES_CLOSE, FRAMES_OPEN};
use super::world::{Event, Frames, LISTENER, Task, Word, World};

/// What a task has cost so far and what it makes.
struct Turn {
    station: usize,
    cost: Cost,
    message_ns: f64,
    /// Calls within the station.
    calls: Vec<Task>,
    /// What leaves when the turn is over, after so many nanoseconds on the way.
    out: Vec<(f64, Event)>,
}

impl Turn {
    fn pay(&mut self, cost: Cost) {
        self.cost = self.cost.plus(cost);
    }
}

impl World {
    /// Does a task and everything that it calls; returns when the station is done.
    pub(super) fn perform(&mut self, station: usize, task: Task, by_message: bool) -> u64 {
        let mut turn = Turn {
            station,
            cost: Cost::default(),
            message_ns: 0.0,
            calls: vec![task],
            out: Vec::new(),
        };
        if by_message {
            let receive = self.setup.costs.receive;
            turn.message_ns += receive.ns;
            turn.pay(receive);
        }
        while let Some(task) = turn.calls.pop() {
            self.step(&mut turn, task);
        }
        let done_ns = self.now_ns + turn.cost.ns as u64;
        if self.counting() {
            self.outcome.instructions += turn.cost.instructions;
            self.outcome.busy_ns[station] += turn.cost.ns;
            self.outcome.message_ns += turn.message_ns;
        }
        for (way_ns, event) in turn.out {
            self.at(done_ns + way_ns as u64, event);
        }
        done_ns
    }

    fn step(&mut self, turn: &mut Turn, task: Task) {
        match task {
            Task::Frames(frames, number) => self.pass_frames(turn, frames, number),
            Task::Open(number) => self.open(turn, number),
            Task::Claim(number) => {
                let transport = self.connections[number as usize].transport;
                self.tell_claimed(turn, transport, number);
            }
            Task::Close(number) => self.close(turn, number),
            Task::Gone(number) => self.free.push(number),
            Task::Accepting(worker) => {
                let process = self.process(worker);
                let message = ToManager::Acceptor { listener: LISTENER, process };
                self.tell_manager(turn, self.home(worker), message);
            }
            Task::Manager(manager, message) => {
                if let ToManager::Arrived { .. } = message {
                    let costs = &self.setup.costs;
                    let alone = self.managers.len() == 1;
                    turn.pay(if alone { costs.manage } else { costs.manage_among });
                }
                let now = self.instant();
                self.managers[manager].tell(now, message);
                self.listen_to(turn, manager);
            }
            Task::Between(manager, from, message) => {
                let update = self.setup.costs.update;
                turn.pay(update);
                if self.counting() {
                    let receive = self.setup.costs.receive;
                    self.outcome.update_instructions += update.plus(receive).instructions;
                }
                let now = self.instant();
                self.managers[manager].hear(now, from, message);
                self.listen_to(turn, manager);
            }
            Task::Timers(manager) => {
                let now = self.instant();
                self.managers[manager].handle_timers(now);
                self.listen_to(turn, manager);
            }
            Task::Transport(message) => self.obey(turn, message),
        }
    }

    /// A link server of its own passes frames on.
    fn pass_frames(&mut self, turn: &mut Turn, frames: Frames, number: u32) {
        let count = match frames {
            Frames::Open => FRAMES_OPEN[0] + FRAMES_OPEN[1],
            Frames::Answer => FRAMES_CLOSE[1],
            Frames::Gone => FRAMES_CLOSE[0],
        };
        // Each frame is a record on a ring between link server and transport server.
        let ring = self.setup.costs.send;
        turn.pay(self.setup.costs.frame.plus(self.setup.costs.link).plus(ring).times(count));
        turn.message_ns += ring.ns * count;
        self.count_servers(count as u64);
        let transport = self.setup.shape.transports[self.connections[number as usize].transport];
        let delay_ns = self.setup.costs.message_delay_ns;
        let wire_ns = self.setup.costs.wire_ns;
        turn.out.push(match frames {
            Frames::Open => (delay_ns, Event::Task(transport, Task::Open(number), true)),
            Frames::Gone => (delay_ns, Event::Task(transport, Task::Gone(number), true)),
            Frames::Answer => (wire_ns, Event::Answered(number)),
        });
    }

    /// What frames cost a transport server beside the stack: the link, or rings to the link server.
    fn pay_frames(&mut self, turn: &mut Turn, transport: usize, count: f64) {
        let shape = &self.setup.shape;
        if shape.links[shape.link_of(transport)] != turn.station {
            let ring = self.setup.costs.receive;
            turn.pay(ring.plus(self.setup.costs.frame.times(-1.0)).times(count));
            turn.message_ns += ring.ns * count;
        } else {
            turn.pay(self.setup.costs.link.times(count));
        }
    }

    /// The handshake is complete and the request is there: the manager is told.
    fn open(&mut self, turn: &mut Turn, number: u32) {
        turn.pay(self.setup.costs.open);
        let transport = self.connections[number as usize].transport;
        self.pay_frames(turn, transport, FRAMES_OPEN[0] + FRAMES_OPEN[1]);
        self.connections[number as usize].told_ns = self.now_ns;
        let connection = self.name(number);
        let message = ToManager::Arrived { listener: LISTENER, connection };
        self.tell_manager(turn, transport, message);
    }

    /// The answer and the server's FIN go out.
    fn close(&mut self, turn: &mut Turn, number: u32) {
        turn.pay(self.setup.costs.close);
        self.tell_served(turn, number);
        let transport = self.connections[number as usize].transport;
        self.pay_frames(turn, transport, FRAMES_CLOSE[0] + FRAMES_CLOSE[1]);
        let shape = &self.setup.shape;
        let link = shape.links[shape.link_of(transport)];
        turn.out.push(match link == turn.station {
            true => (self.setup.costs.wire_ns, Event::Answered(number)),
            false => {
                let delay_ns = self.setup.costs.message_delay_ns;
                let task = Task::Frames(Frames::Answer, number);
                (delay_ns, Event::Task(link, task, true))
            }
        });
    }

    /// The worker has claimed: its home's manager hears of it too.
    fn tell_claimed(&mut self, turn: &mut Turn, transport: usize, number: u32) {
        let connection = self.name(number);
        let Word::Claimed(worker) = self.connections[number as usize].word else { return };
        let open = self.open.entry((worker, transport)).or_default();
        *open += 1;
        let open = *open;
        let (home, shape) = (self.home(worker), &self.setup.shape);
        let counts = shape.manager_of(home) == shape.manager_of(transport);
        self.tell_manager(turn, transport, ToManager::Claimed { connection, counts });
        if !counts {
            let (listener, process, server) = (LISTENER, self.process(worker), transport as u16);
            self.tell_manager(turn, home, ToManager::Open { listener, process, open, server });
        }
    }

    /// The worker has closed: the service time goes to the manager of its home.
    fn tell_served(&mut self, turn: &mut Turn, number: u32) {
        let connection = &self.connections[number as usize];
        let Word::Claimed(worker) = connection.word else { return };
        let service_time_us = (self.now_ns - connection.offered_ns) / 1000;
        if let Some(open) = self.open.get_mut(&(worker, connection.transport)) {
            *open -= 1;
        }
        let message = ToManager::Served {
            listener: LISTENER,
            process: self.process(worker),
            server: connection.transport as u16,
            service_time_us: service_time_us as u32,
        };
        self.tell_manager(turn, self.home(worker), message);
    }

    /// A manager wants an offer made or taken back.
    fn obey(&mut self, turn: &mut Turn, message: ToTransport) {
        match message {
            ToTransport::Offer { connection, process, .. } => {
                let Some(number) = self.number(connection) else { return };
                let worker = process.number() as usize;
                turn.pay(self.setup.costs.offer.plus(self.setup.costs.send));
                turn.message_ns += self.setup.costs.send.ns;
                let (now_ns, counting) = (self.now_ns + turn.cost.ns as u64, self.counting());
                let entry = &mut self.connections[number as usize];
                entry.word = Word::Offered(worker);
                entry.serial += 1;
                entry.offered_ns = now_ns;
                if counting {
                    self.outcome.messages.programs += 1;
                    self.outcome.assigning.record(now_ns - entry.told_ns);
                }
                let offered = Event::Offered(worker, number, entry.serial);
                turn.out.push((self.setup.costs.message_delay_ns, offered));
            }
            ToTransport::Revoke { connection, .. } => {
                let Some(number) = self.number(connection) else { return };
                let entry = &mut self.connections[number as usize];
                // Claimed: the worker was faster, and its message is on the way.
                if matches!(entry.word, Word::Offered(_)) {
                    entry.word = Word::Unclaimed;
                    let transport = entry.transport;
                    self.tell_manager(turn, transport, ToManager::Revoked { connection });
                }
            }
        }
    }

    /// To the connection manager of a transport server: a call, or a message.
    fn tell_manager(&mut self, turn: &mut Turn, transport: usize, message: ToManager) {
        let manager = self.setup.shape.manager_of(transport);
        let station = self.setup.shape.managers[manager];
        self.pass_on(turn, station, Task::Manager(manager, message));
    }

    fn pass_on(&mut self, turn: &mut Turn, station: usize, task: Task) {
        if station == turn.station {
            turn.calls.push(task);
            return;
        }
        let send = self.setup.costs.send;
        turn.pay(send);
        turn.message_ns += send.ns;
        let delay_ns = self.setup.costs.message_delay_ns;
        turn.out.push((delay_ns, Event::Task(station, task, true)));
        match task {
            Task::Between(..) => self.outcome.messages.updates += u64::from(self.counting()),
            _ => self.count_servers(1),
        }
    }

    fn count_servers(&mut self, count: u64) {
        if self.counting() {
            self.outcome.messages.servers += count;
        }
    }

    /// Does what a manager says, and sets its timer.
    fn listen_to(&mut self, turn: &mut Turn, manager: usize) {
        let now = self.instant();
        while let Some(said) = self.managers[manager].poll(now) {
            match said {
                Said::ToTransport(message) => {
                    let (ToTransport::Offer { connection, .. }
                    | ToTransport::Revoke { connection, .. }) = message;
                    let station = self.setup.shape.transports[connection.server as usize];
                    self.pass_on(turn, station, Task::Transport(message));
                }
                Said::ToManagers(message) => {
                    for other in (0..self.managers.len()).filter(|other| *other != manager) {
                        let station = self.setup.shape.managers[other];
                        self.pass_on(turn, station, Task::Between(other, manager, message));
                    }
                }
            }
        }
        let Some(due) = self.managers[manager].poll_timeout() else { return };
        let due_ns = (due.us() * 1000).max(self.now_ns + 1000);
        if self.timers[manager].is_none_or(|set_ns| due_ns < set_ns) {
            self.timers[manager] = Some(due_ns);
            self.at(due_ns, Event::Timer(manager, due_ns));
        }
    }
}
