//! What a transport server does with what comes to it. Each function is one step, and answers with
//! the sentence that was broken if one was.

use haypile_engine::control::messages::{ToManager, ToTransport};

use super::Shape;
use super::manager::Manager;
use super::state::{
    Handover, Hold, OfferEntry, Place, QUEUE, Request, State, connection_name, connection_of, pair,
    process_name, process_of,
};

/// The sentence that was broken.
pub type Outcome = Result<(), String>;

/// The world while something happens in it.
pub struct Scene<'a, M: Manager> {
    /// Its size and rules.
    pub shape: &'a Shape,
    /// What there is.
    pub state: &'a mut State<M>,
}

impl<M: Manager> Scene<'_, M> {
    /// A message to the manager of `transport`; lost while the two do not know each other.
    pub fn tell(&mut self, transport: u8, message: ToManager) {
        if !self.state.transports[usize::from(transport)].resync {
            self.state.to_manager[usize::from(transport)].push_back(message);
        }
    }

    fn here(&self, transport: u8) -> Vec<u8> {
        let at = |c: &u8| self.state.connections[usize::from(*c)].place == Place::At(transport);
        (0..self.shape.connections).filter(at).collect()
    }

    fn hold(&self, connection: u8) -> Hold {
        self.state.connections[usize::from(connection)].hold
    }

    fn set_hold(&mut self, connection: u8, hold: Hold) {
        self.state.connections[usize::from(connection)].hold = hold;
    }

    /// A message from the manager.
    pub fn from_manager(&mut self, transport: u8, message: ToTransport) -> Outcome {
        match message {
            ToTransport::Offer { connection, process, .. } => {
                self.offer(transport, connection_of(connection), process_of(process))
            }
            ToTransport::Revoke { connection, process } => {
                let (connection, process) = (connection_of(connection), process_of(process));
                if self.state.connections[usize::from(connection)].place == Place::At(transport) {
                    self.revoke(transport, connection, process);
                }
                Ok(())
            }
        }
    }

    fn offer(&mut self, transport: u8, connection: u8, process: u8) -> Outcome {
        if self.state.connections[usize::from(connection)].place != Place::At(transport) {
            return Ok(());
        }
        if self.hold(connection) != Hold::Waiting {
            return Err(format!("connection {connection} is offered while it is not waiting"));
        }
        if !self.state.transports[usize::from(transport)].open {
            return Err(format!("connection {connection} is offered after its listener closed"));
        }
        let channel = pair(process, transport);
        let full = self.state.offers[channel].len() >= usize::from(self.shape.offers_max);
        if full || !self.state.knows(transport, process) {
            let connection = connection_name(transport, connection);
            self.tell(transport, ToManager::OfferFailed { connection });
            return Ok(());
        }
        self.set_hold(connection, Hold::Offered(process));
        self.state.offers[channel].push_back(OfferEntry { connection, stale: false });
        Ok(())
    }

    /// The offer could not be made for want of memory.
    pub fn fail_offer(&mut self, transport: u8) {
        let head = self.state.to_transport[usize::from(transport)].pop_front();
        let Some(ToTransport::Offer { connection, .. }) = head else { return };
        let place = self.state.connections[usize::from(connection_of(connection))].place;
        if place == Place::At(transport) {
            self.tell(transport, ToManager::OfferFailed { connection });
        }
    }

    /// The word goes from OFFERED to REVOKED: the entry in the ring is of no use any more.
    fn spoil(&mut self, transport: u8, connection: u8, process: u8) {
        let channel = pair(process, transport);
        for entry in &mut self.state.offers[channel] {
            entry.stale |= entry.connection == connection;
        }
        self.set_hold(connection, Hold::Waiting);
    }

    fn settle(&mut self, transport: u8, connection: u8, process: u8) {
        self.set_hold(connection, Hold::Owned(process));
        let connection = connection_name(transport, connection);
        self.tell(transport, ToManager::Claimed { connection, counts: true });
    }

    fn revoke(&mut self, transport: u8, connection: u8, process: u8) {
        let asks = self.shape.design.revoke_asks_the_word;
        match self.hold(connection) {
            Hold::Claimed(by) if by == process && asks => {
                self.settle(transport, connection, process);
            }
            Hold::Offered(by) | Hold::Claimed(by) if by == process => {
                self.spoil(transport, connection, process);
                let connection = connection_name(transport, connection);
                self.tell(transport, ToManager::Revoked { connection });
            }
            Hold::Waiting if !self.shape.design.offers_end_once => {
                let connection = connection_name(transport, connection);
                self.tell(transport, ToManager::Revoked { connection });
            }
            // Settled meanwhile, and said so.
            _ => {}
        }
    }

    /// A message of a process.
    pub fn from_process(&mut self, process: u8, transport: u8, request: Request) -> Outcome {
        let server = &mut self.state.transports[usize::from(transport)];
        match request {
            Request::Acceptor => {
                if server.open {
                    server.acceptors |= 1 << process;
                    let process = process_name(self.shape, process);
                    self.tell(transport, ToManager::Acceptor { listener: QUEUE, process });
                }
            }
            Request::Claim(connection) => {
                let record = self.state.connections[usize::from(connection)];
                if record.place == Place::At(transport) {
                    match record.hold {
                        Hold::Claimed(by) if by == process => {
                            self.settle(transport, connection, process);
                        }
                        Hold::Owned(by) if by == process => {}
                        _ => return Err(format!("process {process} claims what it has not got")),
                    }
                }
            }
            Request::Refuse(connection) => self.refuse(process, transport, connection),
        }
        Ok(())
    }

    fn refuse(&mut self, process: u8, transport: u8, connection: u8) {
        let record = self.state.connections[usize::from(connection)];
        if record.place != Place::At(transport) {
            // Settled and moved: its server resets it, as below.
            let gone = matches!(record.hold, Hold::Owned(by) if by == process);
            if gone && record.place != Place::Ended {
                self.end(connection);
            }
        } else if record.hold == Hold::Claimed(process) {
            self.set_hold(connection, Hold::Waiting);
            let connection = connection_name(transport, connection);
            self.tell(transport, ToManager::Refused { connection });
        } else if record.hold == Hold::Owned(process) {
            // Found claimed before: its private copy is gone, and with it the connection.
            self.end(connection);
        }
    }

    fn end(&mut self, connection: u8) {
        let record = &mut self.state.connections[usize::from(connection)];
        (record.place, record.hold, record.holder) = (Place::Ended, Hold::Waiting, None);
        for ring in &mut self.state.offers {
            for entry in ring {
                entry.stale |= entry.connection == connection;
            }
        }
    }

    /// Resets a connection that nobody has; an error if somebody has it.
    fn reset(&mut self, transport: u8, connection: u8) -> Outcome {
        if let Some(holder) = self.state.connections[usize::from(connection)].holder
            && self.state.processes[usize::from(holder)].alive
        {
            return Err(format!(
                "connection {connection} is reset while process {holder} holds it"
            ));
        }
        self.end(connection);
        let connection = connection_name(transport, connection);
        self.tell(transport, ToManager::Gone { connection });
        Ok(())
    }

    /// The peer resets a connection that nobody has been given for good.
    pub fn peer_resets(&mut self, transport: u8, connection: u8) {
        self.end(connection);
        let connection = connection_name(transport, connection);
        self.tell(transport, ToManager::Gone { connection });
    }

    /// The end of the listener arrives.
    pub fn close(&mut self, transport: u8) -> Outcome {
        let asks = self.shape.design.close_asks_the_word;
        for connection in self.here(transport) {
            match self.hold(connection) {
                Hold::Claimed(process) if asks => self.settle(transport, connection, process),
                Hold::Owned(_) => {}
                _ => self.reset(transport, connection)?,
            }
        }
        let server = &mut self.state.transports[usize::from(transport)];
        (server.open, server.closing, server.acceptors) = (false, false, 0);
        self.tell(
            transport,
            ToManager::ListenerClosed { listener: QUEUE, server: transport.into() },
        );
        Ok(())
    }

    /// The next listener of the name arrives. In a group it may come before the last has gone.
    pub fn open(&mut self, transport: u8) {
        let server = &mut self.state.transports[usize::from(transport)];
        server.opening = false;
        if server.closing {
            server.closing = false;
        } else {
            server.open = true;
            self.say_open(transport);
        }
    }

    fn say_open(&mut self, transport: u8) {
        self.tell(
            transport,
            ToManager::ListenerOpened { listener: QUEUE, group: QUEUE, server: transport.into() },
        );
    }

    /// The notice that a process is dead arrives; what it wrote and nobody has read is lost.
    pub fn notice_death(&mut self, process: u8, transport: u8) {
        let channel = pair(process, transport);
        self.state.requests[channel].clear();
        self.state.offers[channel].clear();
        let server = &mut self.state.transports[usize::from(transport)];
        server.knows &= !(1 << process);
        server.acceptors &= !(1 << process);
        let home = self.shape.home(process) == transport;
        let withdraws = home || self.shape.design.death_is_everybodys;
        for connection in self.here(transport) {
            match self.hold(connection) {
                Hold::Offered(by) if by == process && withdraws => {
                    self.revoke(transport, connection, process);
                }
                Hold::Claimed(by) if by == process && withdraws => {
                    self.settle(transport, connection, process);
                    self.end(connection);
                }
                Hold::Owned(by) if by == process && withdraws => self.end(connection),
                _ => {}
            }
        }
        if home {
            let process = process_name(self.shape, process);
            self.tell(transport, ToManager::ProcessDied { process });
        }
    }

    /// The server learns that its manager knows nothing, and says everything anew.
    pub fn resync(&mut self, transport: u8) {
        if self.shape.design.resync_revokes {
            for connection in self.here(transport) {
                match self.hold(connection) {
                    Hold::Offered(process) => self.spoil(transport, connection, process),
                    Hold::Claimed(process) => self.set_hold(connection, Hold::Owned(process)),
                    _ => {}
                }
            }
        }
        let server = &mut self.state.transports[usize::from(transport)];
        server.resync = false;
        let (open, acceptors) = (server.open, server.acceptors);
        if open {
            self.say_open(transport);
        }
        if !self.shape.design.resync {
            return;
        }
        for process in (0..self.shape.processes).filter(|process| acceptors & (1 << process) != 0) {
            let process = process_name(self.shape, process);
            self.tell(transport, ToManager::Acceptor { listener: QUEUE, process });
        }
        for connection in self.here(transport) {
            if matches!(self.hold(connection), Hold::Waiting | Hold::Offered(_)) {
                let connection = connection_name(transport, connection);
                self.tell(transport, ToManager::Arrived { listener: QUEUE, connection });
            }
        }
    }

    /// Gives a bucket away.
    pub fn give_bucket(&mut self, transport: u8, connection: u8, to: u8) {
        let asks = self.shape.design.move_asks_the_word;
        match self.hold(connection) {
            Hold::Claimed(process) if asks => self.settle(transport, connection, process),
            Hold::Owned(_) => {}
            Hold::Offered(process) | Hold::Claimed(process) => {
                self.spoil(transport, connection, process);
            }
            Hold::Waiting => {}
        }
        if self.hold(connection) == Hold::Waiting {
            let connection = connection_name(transport, connection);
            self.tell(transport, ToManager::Gone { connection });
        }
        let record = &mut self.state.connections[usize::from(connection)];
        record.place = Place::Between(transport, to);
        if !self.shape.design.map_follows_the_bucket {
            record.steered_to = to;
        }
        if self.shape.design.old_owner_forwards {
            self.state.transports[usize::from(transport)].gave[usize::from(connection)] = Some(to);
        }
        let channel = pair(transport, to);
        self.state.handover[channel].push_back(Handover::Bucket(connection));
    }

    /// A message of another transport server.
    pub fn from_transport(&mut self, transport: u8, message: Handover) -> Outcome {
        let connection = match message {
            Handover::Packet(connection) => return self.packet(transport, connection),
            Handover::Bucket(connection) => connection,
        };
        let record = &mut self.state.connections[usize::from(connection)];
        record.steered_to = transport;
        if record.place == Place::Ended {
            return Ok(());
        }
        record.place = Place::At(transport);
        let hold = record.hold;
        match hold {
            Hold::Owned(process) if !self.state.knows(transport, process) => self.end(connection),
            Hold::Owned(_) => {}
            _ if !self.state.transports[usize::from(transport)].open => {
                self.reset(transport, connection)?;
            }
            _ => {
                let connection = connection_name(transport, connection);
                self.tell(transport, ToManager::Arrived { listener: QUEUE, connection });
            }
        }
        Ok(())
    }

    /// A packet of a connection, from the link or forwarded.
    pub fn packet(&mut self, transport: u8, connection: u8) -> Outcome {
        let place = self.state.connections[usize::from(connection)].place;
        if matches!(place, Place::Ended) || place == Place::At(transport) {
            return Ok(());
        }
        let gave = self.state.transports[usize::from(transport)].gave[usize::from(connection)];
        let Some(to) = gave else {
            return Err(format!("server {transport} resets connection {connection}, which lives"));
        };
        let channel = pair(transport, to);
        self.state.handover[channel].push_back(Handover::Packet(connection));
        Ok(())
    }

    /// The server dies, and everything that it held or had on its way.
    pub fn die(&mut self, transport: u8) {
        for connection in 0..self.shape.connections {
            let dies = match self.state.connections[usize::from(connection)].place {
                Place::At(at) => at == transport,
                Place::Between(from, to) => from == transport || to == transport,
                _ => false,
            };
            if dies {
                self.end(connection);
                self.state.connections[usize::from(connection)].steered_to = transport;
            }
        }
        let at = usize::from(transport);
        for process in 0..self.shape.processes {
            self.state.requests[pair(process, transport)].clear();
            self.state.offers[pair(process, transport)].clear();
            let process = &mut self.state.processes[usize::from(process)];
            process.untold = process.untold.filter(|(server, _)| *server != transport);
        }
        for other in 0..self.shape.transports {
            self.state.handover[pair(transport, other)].clear();
            self.state.handover[pair(other, transport)].clear();
        }
        self.state.to_manager[at].clear();
        self.state.to_transport[at].clear();
        self.state.packets[at].clear();
        let server = &mut self.state.transports[at];
        (server.alive, server.knows, server.acceptors) = (false, 0, 0);
        server.gave.fill(None);
    }

    /// The server comes again, with the listeners that the supervisor has noted.
    pub fn restart(&mut self, transport: u8) {
        let server = &mut self.state.transports[usize::from(transport)];
        server.alive = true;
        server.open = (server.open && !server.closing) || server.opening;
        (server.closing, server.opening) = (false, false);
        // The other managers have heard by now that the one before it is gone.
        let own = self.shape.manager_of(transport);
        for other in (0..self.shape.managers).filter(|other| *other != own) {
            let gone = ToManager::ServerGone { server: transport.into() };
            self.state.managers[usize::from(other)].handle(gone);
        }
        let server = &mut self.state.transports[usize::from(transport)];
        if server.resync {
            // Its manager is as new as itself.
            server.resync = false;
        } else {
            self.tell(transport, ToManager::ServerGone { server: transport.into() });
        }
        if self.state.transports[usize::from(transport)].open {
            self.say_open(transport);
        }
    }
}
