//! What there is in the model at one moment, small enough to be copied and compared a million times.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use haypile_engine::SocketId;
use haypile_engine::control::messages::{ToManager, ToTransport};
use haypile_engine::control::names::{ConnectionName, ListenerName, ProcessName, ServerNumber};

use super::manager::Manager;
use super::{Budget, Shape};

/// The one accept queue.
pub const QUEUE: ListenerName = ListenerName(7);

/// Where a connection is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// It has not come yet.
    ToCome,
    /// At a transport server.
    At(u8),
    /// In a message from one transport server to another.
    Between(u8, u8),
    /// Closed by its owner's end, reset, or gone with its server.
    Ended,
}

/// Whose a connection is: the offer word, and what the transport server has made of it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// FREE: nobody's.
    Waiting,
    /// OFFERED to a process.
    Offered(u8),
    /// CLAIMED by a process; the transport server has not noticed.
    Claimed(u8),
    /// Settled.
    Owned(u8),
}

/// A connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Where it is.
    pub place: Place,
    /// Whose it is.
    pub hold: Hold,
    /// The process that has been given it by `accept`: the truth that the rest is measured by.
    pub holder: Option<u8>,
    /// The server that its bucket steers to.
    pub steered_to: u8,
}

/// A process that accepts.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// It lives.
    pub alive: bool,
    /// It believes that it is on its manager's list.
    pub registered: bool,
    /// It has swapped the word of a connection (server, connection) and said nothing yet.
    pub untold: Option<(u8, u8)>,
}

/// A transport server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transport {
    /// It lives.
    pub alive: bool,
    /// It listens.
    pub open: bool,
    /// The end of the listener is on its way to it.
    pub closing: bool,
    /// The next listener of the same name is on its way to it.
    pub opening: bool,
    /// Its manager is another than the one that it last spoke to.
    pub resync: bool,
    /// Attached processes whose death it has not noticed, a bit each.
    pub knows: u8,
    /// Processes at home here that accept.
    pub acceptors: u8,
    /// Connections whose bucket it has given away, and to whom.
    pub gave: [Option<u8>; SIDE],
}

/// An entry of an offers ring.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct OfferEntry {
    /// The connection.
    pub connection: u8,
    /// Its word says REVOKED (or is another's by now).
    pub stale: bool,
}

/// Process to transport server.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// ACCEPT-CONNECTION.
    Acceptor,
    /// CLAIM-CONNECTION.
    Claim(u8),
    /// Claimed, but there is no descriptor.
    Refuse(u8),
}

/// Transport server to transport server.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Handover {
    /// The bucket of a connection, with the connection.
    Bucket(u8),
    /// A packet that came to the old owner.
    Packet(u8),
}

/// Most servers, processes and connections of a world.
pub const SIDE: usize = 3;

/// First in, first out.
pub type Fifo<T> = VecDeque<T>;

/// A channel from each to each: `grid[pair(from, to)]`.
pub type Grid<T> = [Fifo<T>; SIDE * SIDE];

/// The place of a channel in its grid.
pub fn pair(from: u8, to: u8) -> usize {
    usize::from(from) * SIDE + usize::from(to)
}

/// Everything. What is beyond the shape stays as it was made.
#[derive(Clone)]
pub struct State<M: Manager> {
    /// What may still go wrong.
    pub budget: Budget,
    /// By number.
    pub processes: [Process; SIDE],
    /// By number.
    pub transports: [Transport; SIDE],
    /// By number.
    pub managers: [M; SIDE],
    /// By number.
    pub connections: [Connection; SIDE],
    /// By transport server.
    pub to_manager: [Fifo<ToManager>; SIDE],
    /// By transport server.
    pub to_transport: [Fifo<ToTransport>; SIDE],
    /// From manager to manager.
    pub between: Grid<M::Between>,
    /// From manager to manager: the second does not know yet that the first has restarted.
    pub hello: [bool; SIDE * SIDE],
    /// From process (!) and transport server.
    pub offers: Grid<OfferEntry>,
    /// As `offers`.
    pub requests: Grid<Request>,
    /// From transport server to transport server.
    pub handover: Grid<Handover>,
    /// Packets that the link has for each transport server.
    pub packets: [Fifo<u8>; SIDE],
}

impl<M: Manager> Hash for State<M> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.budget, &self.processes, &self.transports, &self.connections).hash(hasher);
        (&self.to_manager, &self.to_transport, self.hello).hash(hasher);
        (&self.offers, &self.requests, &self.handover, &self.packets).hash(hasher);
        let serials = M::serials(&self.managers);
        for channel in &self.between {
            channel.len().hash(hasher);
            channel.iter().for_each(|word| M::digest_word(word, &serials, hasher));
        }
        self.managers.iter().for_each(|manager| manager.digest(&serials, hasher));
    }
}

impl<M: Manager> State<M> {
    /// Every server runs and listens, every process is attached to every server, nobody accepts.
    ///
    /// # Panics
    /// If the shape is larger than `SIDE`.
    pub fn new(shape: &Shape) -> State<M> {
        let sizes = [shape.transports, shape.managers, shape.processes, shape.connections];
        assert!(sizes.iter().all(|size| (1..=SIDE).contains(&usize::from(*size))));
        let transport = || Transport {
            alive: true,
            open: true,
            closing: false,
            opening: false,
            resync: false,
            knows: (1 << shape.processes) - 1,
            acceptors: 0,
            gave: [None; SIDE],
        };
        let connection = |number| Connection {
            place: Place::ToCome,
            hold: Hold::Waiting,
            holder: None,
            steered_to: number as u8 % shape.transports,
        };
        let mut state = State {
            budget: shape.budget,
            processes: [Process { alive: true, registered: false, untold: None }; SIDE],
            transports: [transport(), transport(), transport()],
            managers: std::array::from_fn(|number| M::new(shape, number as u8)),
            connections: std::array::from_fn(connection),
            to_manager: Default::default(),
            to_transport: Default::default(),
            between: Default::default(),
            hello: [false; SIDE * SIDE],
            offers: Default::default(),
            requests: Default::default(),
            handover: Default::default(),
            packets: Default::default(),
        };
        for server in 0..shape.transports {
            let opened =
                ToManager::ListenerOpened { listener: QUEUE, group: QUEUE, server: server.into() };
            state.managers[usize::from(shape.manager_of(server))].handle(opened);
        }
        state
    }

    /// Its transport servers, by number.
    pub fn servers(&self, shape: &Shape) -> impl Iterator<Item = (u8, &Transport)> {
        (0..shape.transports).zip(&self.transports)
    }

    /// Its connections, by number.
    pub fn all_connections(&self, shape: &Shape) -> impl Iterator<Item = (u8, &Connection)> {
        (0..shape.connections).zip(&self.connections)
    }

    /// Whether the server is known to have the process attached.
    pub fn knows(&self, transport: u8, process: u8) -> bool {
        self.transports[usize::from(transport)].knows & (1 << process) != 0
    }
}

/// The name of a process.
pub fn process_name(shape: &Shape, process: u8) -> ProcessName {
    ProcessName::new(ServerNumber::from(shape.home(process)), u32::from(process))
}

/// The process of a name.
pub fn process_of(name: ProcessName) -> u8 {
    name.number() as u8
}

/// The name of a connection at a server.
pub fn connection_name(transport: u8, connection: u8) -> ConnectionName {
    ConnectionName {
        server: ServerNumber::from(transport),
        id: SocketId::new(u32::from(connection), 1),
    }
}

/// The connection of a name.
pub fn connection_of(name: ConnectionName) -> u8 {
    name.id.index() as u8
}
