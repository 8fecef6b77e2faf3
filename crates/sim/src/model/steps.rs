//! What can happen next, in which order a fair world lets it happen, and what it does.

use haypile_engine::control::messages::ToTransport;

use super::Shape;
use super::manager::Manager;
use super::state::{Hold, Place, Request, State, pair};
use super::transport::{Outcome, Scene};

/// One step. Numbers are those of processes (p), transport servers (t), managers (m), connections.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A connection completes its handshake.
    Arrive(u8),
    /// A process that is on no list calls accept: it says so to its home.
    Register(u8),
    /// Process p takes the oldest offer of server t and swaps its word.
    Take(u8, u8),
    /// The process says what it has claimed.
    Claim(u8),
    /// It has no descriptor for it.
    Refuse(u8),
    /// Process p attaches to server t, which has restarted.
    Attach(u8, u8),
    /// Server t reads a message of process p.
    Request(u8, u8),
    /// The manager reads a message of server t.
    ToManager(u8),
    /// Server t reads a message of its manager.
    ToTransport(u8),
    /// Manager `.1` reads a message of manager `.0`.
    Between(u8, u8),
    /// Server `.1` reads a message of server `.0`.
    Handover(u8, u8),
    /// Server t reads a packet.
    Packet(u8),
    /// Manager m gives connection to process.
    Assign(u8, u8, u8),
    /// A timer of manager m runs out.
    Timer(u8, u8),
    /// Server t learns that process p is dead.
    Notice(u8, u8),
    /// The end of the listener reaches server t.
    CloseAt(u8),
    /// The next listener of the same name reaches server t.
    OpenAt(u8),
    /// Server t comes again.
    Restart(u8),
    /// Server t hears that its manager has restarted.
    Resync(u8),
    /// Manager `.1` hears that manager `.0` has restarted.
    Hello(u8, u8),
    /// A process dies.
    Die(u8),
    /// A transport server dies.
    ServerDies(u8),
    /// A manager dies and comes again.
    ManagerDies(u8),
    /// The application closes the listener.
    Close,
    /// It opens another under the same name.
    Reopen,
    /// Server t has no memory for the offer.
    OfferFails(u8),
    /// The peer resets a connection.
    PeerResets(u8),
    /// The bucket of a connection is to be moved to a server.
    Move(u8, u8),
    /// The peer sends a packet.
    Send(u8),
}

impl Step {
    /// The rank of the first timer: all messages have come.
    pub const TIMERS_RANK: u16 = 7;

    /// In a fair world in which only process `ready` goes on accepting: the smaller comes first;
    /// `None` if it need not come at all.
    pub fn rank(self, ready: Option<u8>) -> Option<u16> {
        let rank = match self {
            Step::Request(..) | Step::ToManager(_) | Step::ToTransport(_) | Step::Between(..) => 0,
            Step::Handover(..) | Step::Packet(_) => 1,
            Step::Notice(..) | Step::CloseAt(_) | Step::OpenAt(_) => 2,
            Step::Restart(_) | Step::Resync(_) | Step::Hello(..) => 2,
            Step::Attach(p, _) | Step::Claim(p) | Step::Register(p) if Some(p) == ready => 3,
            Step::Take(p, _) if Some(p) == ready => 4,
            // Managers choose whom they like: the ready one last.
            Step::Assign(_, _, p) => 5 + u16::from(Some(p) == ready),
            Step::Timer(_, timer) if ready.is_some() => Step::TIMERS_RANK + u16::from(timer),
            _ => return None,
        };
        Some(rank)
    }

    /// The manager and the number of the timer that runs out, if this is one.
    pub fn timer(self) -> Option<(u8, u8)> {
        match self {
            Step::Timer(manager, timer) => Some((manager, timer)),
            _ => None,
        }
    }
}

/// Everything that can happen in `state`.
pub fn enabled<M: Manager>(shape: &Shape, state: &State<M>, out: &mut Vec<Step>) {
    out.clear();
    from_processes(shape, state, out);
    from_servers(shape, state, out);
    from_managers(shape, state, out);
    let under_way = |step: &Step| step.rank(None).is_some();
    if state.budget.early_timers > 0 || !out.iter().any(under_way) {
        timers(shape, state, out);
    }
    from_outside(shape, state, out);
}

fn from_processes<M: Manager>(shape: &Shape, state: &State<M>, out: &mut Vec<Step>) {
    for (p, process) in (0..shape.processes).zip(&state.processes) {
        if !process.alive {
            for t in (0..shape.transports).filter(|t| state.knows(*t, p)) {
                out.push(Step::Notice(p, t));
            }
        } else if process.untold.is_some() {
            out.push(Step::Claim(p));
            if state.budget.refusals > 0 {
                out.push(Step::Refuse(p));
            }
        } else {
            for (t, server) in state.servers(shape) {
                if server.alive && !state.knows(t, p) {
                    out.push(Step::Attach(p, t));
                }
                if !state.offers[pair(p, t)].is_empty() {
                    out.push(Step::Take(p, t));
                }
            }
            let home = &state.transports[usize::from(shape.home(p))];
            let here = home.open && !home.opening && home.knows & (1 << p) != 0;
            if !process.registered && here {
                out.push(Step::Register(p));
            }
        }
        for t in 0..shape.transports {
            let alive = state.transports[usize::from(t)].alive;
            if alive && !state.requests[pair(p, t)].is_empty() {
                out.push(Step::Request(p, t));
            }
        }
    }
}

fn from_servers<M: Manager>(shape: &Shape, state: &State<M>, out: &mut Vec<Step>) {
    for (t, server) in state.servers(shape) {
        if !server.alive {
            out.push(Step::Restart(t));
            continue;
        }
        let at = usize::from(t);
        if server.resync {
            out.push(Step::Resync(t));
        } else {
            match state.to_transport[at].front() {
                Some(ToTransport::Offer { .. }) if state.budget.failures > 0 => {
                    out.extend([Step::ToTransport(t), Step::OfferFails(t)]);
                }
                Some(_) => out.push(Step::ToTransport(t)),
                None => {}
            }
        }
        if server.closing {
            out.push(Step::CloseAt(t));
        }
        if server.opening {
            out.push(Step::OpenAt(t));
        }
        if !state.packets[at].is_empty() {
            out.push(Step::Packet(t));
        }
        for from in 0..shape.transports {
            let channel = pair(from, t);
            if !state.handover[channel].is_empty() {
                out.push(Step::Handover(from, t));
            }
        }
    }
}

fn from_managers<M: Manager>(shape: &Shape, state: &State<M>, out: &mut Vec<Step>) {
    let mut choices = Vec::new();
    for t in 0..shape.transports {
        if !state.to_manager[usize::from(t)].is_empty() {
            out.push(Step::ToManager(t));
        }
    }
    for (m, manager) in (0..shape.managers).zip(&state.managers) {
        choices.clear();
        manager.choices(&mut choices);
        out.extend(choices.iter().map(|&(c, p)| Step::Assign(m, c, p)));
        for from in 0..shape.managers {
            let channel = pair(from, m);
            if state.hello[channel] {
                out.push(Step::Hello(from, m));
            } else if !state.between[channel].is_empty() {
                out.push(Step::Between(from, m));
            }
        }
    }
}

fn timers<M: Manager>(shape: &Shape, state: &State<M>, out: &mut Vec<Step>) {
    let mut timers = Vec::new();
    for (m, manager) in (0..shape.managers).zip(&state.managers) {
        timers.clear();
        manager.timers(&mut timers);
        out.extend(timers.iter().map(|&timer| Step::Timer(m, timer)));
    }
}

fn from_outside<M: Manager>(shape: &Shape, state: &State<M>, out: &mut Vec<Step>) {
    let budget = &state.budget;
    for (c, connection) in state.all_connections(shape) {
        match connection.place {
            Place::ToCome => {
                let server = &state.transports[usize::from(connection.steered_to)];
                if server.alive && server.open {
                    out.push(Step::Arrive(c));
                }
            }
            Place::At(at) => {
                let unsettled = !matches!(connection.hold, Hold::Owned(_));
                if unsettled && budget.resets > 0 {
                    out.push(Step::PeerResets(c));
                }
                if budget.moves > 0 {
                    out.extend(may_take(shape, state, c, at).map(|to| Step::Move(c, to)));
                }
            }
            Place::Between(..) | Place::Ended => {}
        }
        let here = matches!(connection.place, Place::At(_) | Place::Between(..));
        let alive = state.transports[usize::from(connection.steered_to)].alive;
        if here && alive && budget.packets > 0 {
            out.push(Step::Send(c));
        }
    }
    let living = |(_, process): &(u8, &super::state::Process)| process.alive;
    if budget.deaths > 0 {
        out.extend(
            (0..shape.processes).zip(&state.processes).filter(living).map(|(p, _)| Step::Die(p)),
        );
    }
    for (t, server) in state.servers(shape) {
        if budget.server_deaths > 0 && server.alive {
            out.push(Step::ServerDies(t));
        }
    }
    if budget.manager_deaths > 0 {
        out.extend((0..shape.managers).map(Step::ManagerDies));
    }
    let idle = state.servers(shape).all(|(_, server)| !server.closing && !server.opening);
    if budget.closes > 0 && idle && state.servers(shape).any(|(_, server)| server.open) {
        out.push(Step::Close);
    }
    if budget.reopens > 0 && state.servers(shape).any(|(_, server)| server.closing || !server.open)
    {
        out.push(Step::Reopen);
    }
}

/// The servers that can take the bucket of a connection: they live, they are attached to its owner,
/// and know of no end of their listener.
fn may_take<M: Manager>(
    shape: &Shape,
    state: &State<M>,
    connection: u8,
    at: u8,
) -> impl Iterator<Item = u8> {
    let hold = state.connections[usize::from(connection)].hold;
    (0..shape.transports).filter(move |to| {
        let known = match hold {
            Hold::Owned(process) | Hold::Claimed(process) => state.knows(*to, process),
            _ => true,
        };
        *to != at && state.transports[usize::from(*to)].alive && known
    })
}

/// Does a step.
///
/// # Errors
/// The sentence that it breaks.
pub fn apply<M: Manager>(shape: &Shape, state: &mut State<M>, step: Step) -> Outcome {
    let mut scene = Scene { shape, state };
    let outcome = match step {
        Step::Request(p, t) => {
            let channel = pair(p, t);
            match scene.state.requests[channel].pop_front() {
                Some(request) => scene.from_process(p, t, request),
                None => Ok(()),
            }
        }
        Step::ToTransport(t) => match scene.state.to_transport[usize::from(t)].pop_front() {
            Some(message) => scene.from_manager(t, message),
            None => Ok(()),
        },
        Step::Handover(from, to) => {
            let channel = pair(from, to);
            match scene.state.handover[channel].pop_front() {
                Some(message) => scene.from_transport(to, message),
                None => Ok(()),
            }
        }
        Step::Packet(t) => match scene.state.packets[usize::from(t)].pop_front() {
            Some(connection) => scene.packet(t, connection),
            None => Ok(()),
        },
        Step::CloseAt(t) => scene.close(t),
        Step::Take(p, t) => scene.take(p, t),
        step => {
            scene.apply_quietly(step);
            Ok(())
        }
    };
    outcome?;
    scene.let_managers_speak();
    scene.talk_within_processes()
}

impl<M: Manager> Scene<'_, M> {
    /// Steps that cannot break a sentence by themselves.
    fn apply_quietly(&mut self, step: Step) {
        let state = &mut *self.state;
        match step {
            Step::Arrive(c) => self.arrive(c),
            Step::Register(p) => {
                state.processes[usize::from(p)].registered = true;
                let channel = pair(p, self.shape.home(p));
                self.state.requests[channel].push_back(Request::Acceptor);
            }
            Step::Claim(p) => self.say(p, Request::Claim),
            Step::Refuse(p) => self.give_up(p),
            Step::Attach(p, t) => self.attach(p, t),
            Step::ToManager(t) => {
                let message = state.to_manager[usize::from(t)].pop_front();
                if let Some(message) = message {
                    state.managers[usize::from(self.shape.manager_of(t))].handle(message);
                }
            }
            Step::Between(from, to) => {
                let channel = pair(from, to);
                if let Some(message) = state.between[channel].pop_front() {
                    state.managers[usize::from(to)].handle_between(from, message);
                }
            }
            Step::Assign(m, c, p) => state.managers[usize::from(m)].assign(c, p),
            Step::Timer(m, timer) => {
                state.budget.early_timers = state.budget.early_timers.saturating_sub(1);
                state.managers[usize::from(m)].expire(timer);
            }
            Step::Hello(from, to) => {
                state.hello[pair(from, to)] = false;
                state.managers[usize::from(to)].handle_restart_of(from);
            }
            step => self.apply_failure(step),
        }
    }

    /// Steps that nobody asked for, and what follows from them.
    fn apply_failure(&mut self, step: Step) {
        let budget = &mut self.state.budget;
        match step {
            Step::Notice(p, t) => self.notice_death(p, t),
            Step::OpenAt(t) => self.open(t),
            Step::Restart(t) => self.restart(t),
            Step::Resync(t) => self.resync(t),
            Step::Die(p) => {
                budget.deaths -= 1;
                self.state.processes[usize::from(p)].alive = false;
                self.state.processes[usize::from(p)].untold = None;
            }
            Step::ServerDies(t) => {
                budget.server_deaths -= 1;
                self.die(t);
                if self.shape.combined && t < self.shape.managers {
                    self.manager_dies(t);
                }
            }
            Step::ManagerDies(m) => {
                budget.manager_deaths -= 1;
                self.manager_dies(m);
            }
            Step::Close => {
                budget.closes -= 1;
                for server in &mut self.state.transports {
                    server.closing = server.open;
                }
            }
            Step::Reopen => {
                budget.reopens -= 1;
                for server in &mut self.state.transports {
                    server.opening = server.closing || !server.open;
                }
                for process in &mut self.state.processes {
                    process.registered = false;
                }
            }
            Step::OfferFails(t) => {
                budget.failures -= 1;
                self.fail_offer(t);
            }
            Step::PeerResets(c) => {
                budget.resets -= 1;
                if let Place::At(t) = self.state.connections[usize::from(c)].place {
                    self.peer_resets(t, c);
                }
            }
            Step::Move(c, to) => {
                budget.moves -= 1;
                if let Place::At(t) = self.state.connections[usize::from(c)].place {
                    self.give_bucket(t, c, to);
                }
            }
            Step::Send(c) => {
                budget.packets -= 1;
                let t = self.state.connections[usize::from(c)].steered_to;
                self.state.packets[usize::from(t)].push_back(c);
            }
            _ => unreachable!("{step:?} is done elsewhere"),
        }
    }

    fn arrive(&mut self, connection: u8) {
        use haypile_engine::control::messages::ToManager;
        let record = &mut self.state.connections[usize::from(connection)];
        let t = record.steered_to;
        record.place = Place::At(t);
        let connection = super::state::connection_name(t, connection);
        self.tell(t, ToManager::Arrived { listener: super::state::QUEUE, connection });
    }

    /// The process takes an offer from its ring and swaps the word.
    fn take(&mut self, process: u8, transport: u8) -> Outcome {
        let channel = pair(process, transport);
        let Some(entry) = self.state.offers[channel].pop_front() else { return Ok(()) };
        let record = &mut self.state.connections[usize::from(entry.connection)];
        let connection = entry.connection;
        if entry.stale || record.hold != Hold::Offered(process) {
            if self.shape.design.late_claimer_registers {
                self.state.processes[usize::from(process)].registered = false;
            }
            return Ok(());
        }
        if let Some(other) = record.holder {
            return Err(format!("connection {connection} is {process}'s, and {other}'s already"));
        }
        if !self.state.transports[usize::from(transport)].open {
            return Err(format!("process {process} is given {connection} by a closed listener"));
        }
        record.hold = Hold::Claimed(process);
        record.holder = Some(process);
        self.state.processes[usize::from(process)].untold = Some((transport, connection));
        Ok(())
    }

    fn say(&mut self, process: u8, request: fn(u8) -> Request) {
        let Some((t, c)) = self.state.processes[usize::from(process)].untold.take() else { return };
        let channel = pair(process, t);
        self.state.requests[channel].push_back(request(c));
    }

    fn give_up(&mut self, process: u8) {
        self.state.budget.refusals -= 1;
        let Some((_, c)) = self.state.processes[usize::from(process)].untold else { return };
        let record = &mut self.state.connections[usize::from(c)];
        if record.holder == Some(process) {
            record.holder = None;
        }
        if self.shape.design.refuser_registers {
            self.state.processes[usize::from(process)].registered = false;
        }
        self.say(process, Request::Refuse);
    }

    fn attach(&mut self, process: u8, transport: u8) {
        self.state.transports[usize::from(transport)].knows |= 1 << process;
        if self.shape.home(process) == transport || self.shape.design.attach_registers {
            self.state.processes[usize::from(process)].registered = false;
        }
    }

    /// A manager dies; the next one has rings of its own with everybody.
    fn manager_dies(&mut self, manager: u8) {
        let (shape, state) = (self.shape, &mut *self.state);
        state.managers[usize::from(manager)] = M::new(shape, manager);
        for t in (0..shape.transports).filter(|t| shape.manager_of(*t) == manager) {
            state.to_manager[usize::from(t)].clear();
            state.to_transport[usize::from(t)].clear();
            state.transports[usize::from(t)].resync = true;
        }
        for other in (0..shape.managers).filter(|other| *other != manager) {
            let (to, from) = (pair(manager, other), pair(other, manager));
            state.between[to].clear();
            state.between[from].clear();
            state.hello[to] = true;
        }
    }

    /// Carries messages between servers that are one process, until there are none.
    fn talk_within_processes(&mut self) -> Outcome {
        for t in (0..self.shape.transports).filter(|t| self.shape.is_direct(*t)) {
            loop {
                if let Some(message) = self.state.to_manager[usize::from(t)].pop_front() {
                    self.state.managers[usize::from(self.shape.manager_of(t))].handle(message);
                    self.let_managers_speak();
                } else if let Some(message) = self.next_for(t) {
                    self.from_manager(t, message)?;
                } else {
                    break;
                }
            }
        }
        Ok(())
    }

    /// A message to a server of the manager's own process. An offer may still fail, which is a step.
    fn next_for(&mut self, transport: u8) -> Option<ToTransport> {
        let queue = &mut self.state.to_transport[usize::from(transport)];
        let may_fail = self.state.budget.failures > 0;
        if may_fail && matches!(queue.front(), Some(ToTransport::Offer { .. })) {
            return None;
        }
        queue.pop_front()
    }

    /// Puts on the channels what the managers have to say.
    fn let_managers_speak(&mut self) {
        let (mut messages, mut words) = (Vec::new(), Vec::new());
        let managers = self.shape.managers;
        for m in 0..managers {
            self.state.managers[usize::from(m)].poll(&mut messages, &mut words);
            for (to, word) in words.drain(..) {
                // Lost while the receiver does not know that the other is new.
                if !self.state.hello[pair(to, m)] {
                    self.state.between[pair(m, to)].push_back(word);
                }
            }
        }
        for message in messages {
            let (ToTransport::Offer { connection, .. } | ToTransport::Revoke { connection, .. }) =
                message;
            let server = usize::from(connection.server);
            let known = &self.state.transports[server];
            if known.alive && !known.resync {
                self.state.to_transport[server].push_back(message);
            }
        }
    }
}

/// What is wrong with a state in which nothing more happens unless somebody asks, with process
/// `ready` the only one that still accepts.
///
/// # Errors
/// The sentence.
pub fn check_rest<M: Manager>(shape: &Shape, state: &State<M>, ready: Option<u8>) -> Outcome {
    for (c, connection) in state.all_connections(shape) {
        match (connection.place, connection.hold) {
            (Place::ToCome | Place::Ended, _) => {}
            (Place::Between(..), _) => return Err(format!("connection {c} is nowhere")),
            (_, Hold::Owned(process) | Hold::Claimed(process)) => {
                if !state.processes[usize::from(process)].alive {
                    return Err(format!("connection {c} outlives process {process}"));
                }
            }
            (Place::At(t), Hold::Waiting | Hold::Offered(_)) => {
                if !state.transports[usize::from(t)].open {
                    return Err(format!("connection {c} outlives its listener"));
                }
                if let Some(ready) = ready {
                    return Err(format!("connection {c} waits while process {ready} accepts"));
                }
            }
        }
    }
    Ok(())
}
