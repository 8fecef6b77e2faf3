//! A bucket on its way to another server: its connections and TIME-WAIT records as bytes.
//!
//! [`crate::Shard::export_bucket`] makes them and [`crate::Shard::import_bucket`] takes them, both in
//! `shard/migration.rs`; what servers say to each other meanwhile is [`protocol`]. What is no business of the engine,
//! the bytes of streams and whose they are, crosses as the baggage of each connection, which [`Freight`] packs and
//! unpacks. Bytes from another server are decoded totally, and taken all or not at all. Read first: decisions 0013
//! and 0015 in `docs/decisions`.

pub mod protocol;

use std::net::SocketAddr;

use crate::carry::{Carry, Reader, Refusal, Writer, carried, demand};
use crate::control::names::ServerNumber;
use crate::socket_id::SocketId;
use crate::streams::Streams;
use crate::tcp::{Connection, TimeWait};
use crate::time::Instant;

/// Of what is written here. A server takes its own version only: those of a service are of one build.
pub const VERSION: u16 = 1;
/// Most bytes of what [`Freight`] writes for a connection: two streams of a MiB, and what is to be said of them.
pub const BAGGAGE_MAX: usize = (2 << 20) + (64 << 10);

/// What of a connection is no business of the shard, for those who move: its bytes, and whose it is.
pub trait Freight: Streams {
    /// The connection has left the shard: what the new server needs to go on with its streams, at most
    /// [`BAGGAGE_MAX`] bytes, is appended to `out`.
    fn pack(&mut self, id: SocketId, out: &mut Vec<u8>);

    /// Whether the baggage of all connections of a bucket, from another server, can be unpacked.
    fn check(&mut self, baggage: &mut dyn Iterator<Item = &[u8]>) -> bool;

    /// A connection has come, and is called `id` here. How far its application is, by what the memory says:
    /// commands that were on their way to the old server may have been lost.
    fn unpack(&mut self, id: SocketId, baggage: &[u8]) -> Positions;

    /// What the old server has to know of the connections that were unpacked since this was asked last, in parts of
    /// at most [`protocol::STATE_MAX`] bytes, each to be understood alone. Asked until there is no more.
    fn receipt(&mut self) -> Option<Vec<u8>>;

    /// A part of what server `from` says of connections that were packed here. They are there for good.
    fn deliver(&mut self, from: ServerNumber, receipt: &[u8]);
}

/// How far an application is with the streams of a connection.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Positions {
    /// It has written up to here; 0 when nothing is known.
    pub written: u64,
    /// It has read up to here; 0 when nothing is known.
    pub read: u64,
}

/// What has left a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exported {
    /// The move, as [`crate::steering::Steering::version_of_flows`] counts.
    pub version: u32,
    /// Everything of the bucket.
    pub bytes: Vec<u8>,
    /// The names that its connections had.
    pub ids: Vec<SocketId>,
    /// Their two ends, ours first.
    pub flows: Vec<(SocketAddr, SocketAddr)>,
    /// How many TIME-WAIT records it had.
    pub time_wait: usize,
}

/// What has come to a shard.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Imported {
    /// Connections.
    pub connections: usize,
    /// TIME-WAIT records.
    pub time_wait: usize,
    /// Connections that nobody had accepted and whose listener is gone here: they were reset, or forgotten when
    /// half-open.
    pub without_listener: usize,
    /// Packets that had waited for the bucket.
    pub held: usize,
}

/// Why a bucket was not exported.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum NotExported {
    /// It is another server's, or on its way.
    NotOurs,
    /// It is ours already, or there is no such server.
    NotThere,
}

/// Whose a connection is, where listeners have no names yet.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum CarriedStage {
    /// See `shard/entry.rs`.
    HalfOpen,
    /// See there.
    Unclaimed,
    /// See there.
    Owned,
    /// See there.
    Orphan,
}

carried!(
    enum CarriedStage {
        HalfOpen = 0,
        Unclaimed = 1,
        Owned = 2,
        Orphan = 3,
    }
);

/// A connection with what its shard knows of it.
#[derive(Debug)]
pub(crate) struct CarriedConnection {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub stage: CarriedStage,
    pub opened_at: Instant,
    pub defer_accept_s: u32,
    pub type_of_service: u8,
    pub hop_limit: u8,
    pub connection: Connection,
    pub baggage: Vec<u8>,
}

/// A TIME-WAIT record with its flow.
#[derive(Copy, Clone, Debug)]
pub(crate) struct CarriedTimeWait {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub record: TimeWait,
    pub expires: Instant,
    pub type_of_service: u8,
    pub hop_limit: u8,
}

carried!(struct CarriedTimeWait { local, remote, record, expires, type_of_service, hop_limit });

impl CarriedConnection {
    fn write(&self, out: &mut Writer) {
        let CarriedConnection {
            local,
            remote,
            stage,
            opened_at,
            defer_accept_s,
            type_of_service,
            hop_limit,
            connection,
            baggage,
        } = self;
        local.write(out);
        remote.write(out);
        stage.write(out);
        opened_at.write(out);
        defer_accept_s.write(out);
        type_of_service.write(out);
        hop_limit.write(out);
        connection.export(out);
        out.bytes(baggage);
    }

    fn read(input: &mut Reader<'_>) -> Result<CarriedConnection, Refusal> {
        let carried = CarriedConnection {
            local: SocketAddr::read(input)?,
            remote: SocketAddr::read(input)?,
            stage: CarriedStage::read(input)?,
            opened_at: Instant::read(input)?,
            defer_accept_s: u32::read(input)?,
            type_of_service: u8::read(input)?,
            hop_limit: u8::read(input)?,
            connection: Connection::import(input)?,
            baggage: input.bytes(BAGGAGE_MAX)?.to_vec(),
        };
        check_addresses(carried.local, carried.remote)?;
        let connection = &carried.connection;
        demand(connection.is_ipv6() == carried.remote.is_ipv6(), "address family")?;
        demand(carried.hop_limit > 0, "hop limit")?;
        let accepted = !matches!(carried.stage, CarriedStage::HalfOpen | CarriedStage::Unclaimed);
        demand(accepted || connection.is_passive(), "an accepted connection that was opened here")?;
        let fits = match carried.stage {
            CarriedStage::HalfOpen => !connection.progress().connected,
            CarriedStage::Unclaimed => connection.progress().connected,
            CarriedStage::Owned | CarriedStage::Orphan => true,
        };
        demand(fits, "whose the connection is")?;
        Ok(carried)
    }
}

impl CarriedTimeWait {
    fn check(self) -> Result<CarriedTimeWait, Refusal> {
        check_addresses(self.local, self.remote)?;
        self.record.check()?;
        demand(self.hop_limit > 0, "hop limit")?;
        Ok(self)
    }
}

fn check_addresses(local: SocketAddr, remote: SocketAddr) -> Result<(), Refusal> {
    let mapped = |addr: SocketAddr| match addr {
        SocketAddr::V4(_) => false,
        SocketAddr::V6(addr) => addr.ip().to_ipv4_mapped().is_some(),
    };
    demand(local.is_ipv4() == remote.is_ipv4(), "addresses of two families")?;
    demand(!mapped(local) && !mapped(remote), "a mapped address")?;
    demand(local.port() != 0 && remote.port() != 0, "port 0")
}

/// Everything of a bucket.
#[derive(Debug, Default)]
pub(crate) struct Cargo {
    /// Until then a SYN cookie for one of its flows may come back.
    pub cookies_until: Instant,
    pub connections: Vec<CarriedConnection>,
    /// Oldest first.
    pub time_wait: Vec<CarriedTimeWait>,
}

impl Cargo {
    /// As bytes; `now` is the moment that all its times are told from.
    pub fn encode(&self, bucket: u16, now: Instant) -> Vec<u8> {
        let mut out = Writer::new(now);
        VERSION.write(&mut out);
        bucket.write(&mut out);
        now.us().write(&mut out);
        self.cookies_until.write(&mut out);
        (self.connections.len() as u32).write(&mut out);
        for connection in &self.connections {
            connection.write(&mut out);
        }
        (self.time_wait.len() as u32).write(&mut out);
        for waiting in &self.time_wait {
            waiting.write(&mut out);
        }
        out.into_bytes()
    }

    /// From bytes that are nobody's word. Clocks of servers on one machine are one, so that the time on the way
    /// counts; a moment that has yet to come is taken for `now`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn decode(bytes: &[u8], bucket: u16, now: Instant) -> Result<Cargo, Refusal> {
        let mut input = Reader::new(bytes, now);
        let version = u16::read(&mut input)?;
        if version != VERSION {
            return Err(Refusal::Version(version));
        }
        demand(u16::read(&mut input)? == bucket, "another bucket")?;
        let moment = Instant::from_us(u64::read(&mut input)?).min(now);
        let mut input = input.at(moment);
        let mut cargo = Cargo { cookies_until: Instant::read(&mut input)?, ..Cargo::default() };
        // Counts are believed as far as there are bytes for them: no memory is taken before.
        for _ in 0..u32::read(&mut input)? {
            cargo.connections.push(CarriedConnection::read(&mut input)?);
        }
        for _ in 0..u32::read(&mut input)? {
            cargo.time_wait.push(CarriedTimeWait::read(&mut input)?.check()?);
        }
        input.end()?;
        Ok(cargo)
    }
}
