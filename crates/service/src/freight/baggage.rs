//! The forms in which sockets cross between two servers: the baggage of a connection that moves, the receipt for those
//! that have come, and notices about one that come after it.
//!
//! Written by `freight` and `stubs`, and read by them: what comes from another server is decoded totally, never
//! panics, and takes memory only for bytes that are there. Numbers are those of `haypile_engine::carry`; points in
//! time are those of the one clock of the machine.

use std::net::SocketAddr;

use haypile_engine::carry::{Carry, Reader, Refusal, Writer, demand};
use haypile_engine::control::names::{ListenerName, ProcessName};
use haypile_engine::migration::protocol::STATE_MAX;
use haypile_engine::{Instant, SocketOptions};
use haypile_shm::Message;
use haypile_shm::limits::{FIFO_BYTES, FIFO_SLOTS};
use haypile_shm::messages::{Request, RequestBody, Shutdown};
use haypile_shm::stream::{StreamPositions, chunks_for};

use crate::domains::Token;
use crate::sockets::Served;

/// Of what is written here. A server takes its own version only: those of a service are of one build.
pub const VERSION: u16 = 2;

/// What a connection brings along, beside what the engine knows of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Baggage {
    /// Nothing.
    Empty,
    /// No process has it yet.
    Unclaimed {
        /// The server that writes this.
        server: u16,
        /// What has come so far, from position 0.
        bytes: Vec<u8>,
    },
    /// An application has it, or had until it closed it.
    Held(Box<Held>),
    /// What an application has made of it cannot be written down: it ends where it comes.
    Lost,
}

/// A socket.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// The server that writes this.
    pub server: u16,
    /// Its number for what stays with it.
    pub stub: u64,
    /// The trust domain.
    pub token: Token,
    /// Nobody has it any more: it goes on by itself.
    pub closed: bool,
    /// When it is given up, if it is closed and has something to send.
    pub orphan_until: Option<Instant>,
    /// Whoever has it has found it at the server that writes this.
    pub found: bool,
    /// The process that has it alone.
    pub owner: Option<ProcessName>,
    /// Several processes may have it.
    pub shared: bool,
    /// Of its placeholder; 0: not known.
    pub cookie: u64,
    /// As set.
    pub options: SocketOptions,
    /// See `sockets::Socket`.
    pub resets: bool,
    /// See `sockets::Socket`.
    pub more: bool,
    /// See `sockets::Socket`.
    pub tx_shut: bool,
    /// See `sockets::Socket`.
    pub rx_shut: bool,
    /// See `haypile_engine::Progress`.
    pub connected: bool,
    /// See `haypile_engine::Progress`.
    pub rx_fin: bool,
    /// See `haypile_engine::Progress`.
    pub tx_wish: u32,
    /// Pending errno; 0: none.
    pub error: i32,
    /// What the connection manager hears when it is closed.
    pub served: Option<Served>,
    /// The listener it came to.
    pub came_to: Option<ListenerName>,
    /// Its address.
    pub local: Option<SocketAddr>,
    /// The peer's.
    pub remote: Option<SocketAddr>,
    /// How far both directions are.
    pub positions: StreamPositions,
    /// Received and not read: runs of bytes by their positions, in order.
    pub received: Vec<(u64, Vec<u8>)>,
    /// Written and not acknowledged.
    pub sent: Vec<u8>,
}

impl Baggage {
    /// Appends it.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let mut out = Writer::new(Instant::default());
        VERSION.write(&mut out);
        match self {
            Baggage::Empty => 0_u8.write(&mut out),
            Baggage::Unclaimed { server, bytes } => {
                (1_u8, *server).write(&mut out);
                out.bytes(bytes);
            }
            Baggage::Held(held) => {
                2_u8.write(&mut out);
                held.write(&mut out);
            }
            Baggage::Lost => 3_u8.write(&mut out),
        }
        bytes.extend(out.into_bytes());
    }

    /// What [`Baggage::encode`] wrote, and all of it possible.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn decode(bytes: &[u8]) -> Result<Baggage, Refusal> {
        let mut input = Reader::new(bytes, Instant::default());
        let version = u16::read(&mut input)?;
        if version != VERSION {
            return Err(Refusal::Version(version));
        }
        let baggage = match u8::read(&mut input)? {
            0 => Baggage::Empty,
            1 => {
                let server = u16::read(&mut input)?;
                Baggage::Unclaimed { server, bytes: input.bytes(FIFO_BYTES)?.to_vec() }
            }
            2 => Baggage::Held(Box::new(Held::read(&mut input)?)),
            3 => Baggage::Lost,
            _ => return Err(Refusal::Impossible("kind of baggage")),
        };
        input.end()?;
        if let Baggage::Held(held) = &baggage {
            held.check()?;
        }
        Ok(baggage)
    }
}

impl Held {
    /// Chunks of stream memory that its bytes take.
    pub fn chunks(&self) -> u64 {
        let received = self.received.iter().map(|(position, run)| chunks_for(*position, run.len()));
        received.sum::<u64>() + chunks_for(self.positions.tx_head, self.sent.len())
    }

    fn write(&self, out: &mut Writer) {
        let Held {
            server,
            stub,
            token,
            closed,
            orphan_until,
            found,
            owner,
            shared,
            cookie,
            options,
            resets,
            more,
            tx_shut,
            rx_shut,
            connected,
            rx_fin,
            tx_wish,
            error,
            served,
            came_to,
            local,
            remote,
            positions,
            received,
            sent,
        } = self;
        (*server, *stub).write(out);
        token.write(out);
        closed.write(out);
        orphan_until.write(out);
        found.write(out);
        owner.map(ProcessName::word).write(out);
        shared.write(out);
        cookie.write(out);
        options.write(out);
        [*resets, *more, *tx_shut, *rx_shut, *connected, *rx_fin].write(out);
        tx_wish.write(out);
        u32::try_from(*error).unwrap_or_default().write(out);
        let name = |served: &Served| (served.process.word(), (served.listener.0, served.since));
        served.as_ref().map(name).write(out);
        came_to.map(|name| name.0).write(out);
        local.write(out);
        remote.write(out);
        let StreamPositions { rx_head, rx_tail, rx_end, tx_head, tx_tail } = *positions;
        [rx_head, rx_tail, rx_end, tx_head, tx_tail].write(out);
        (received.len() as u32).write(out);
        for (position, run) in received {
            position.write(out);
            out.bytes(run);
        }
        out.bytes(sent);
    }

    fn read(input: &mut Reader<'_>) -> Result<Held, Refusal> {
        let (server, stub) = <(u16, u64)>::read(input)?;
        let token = Token::read(input)?;
        let closed = bool::read(input)?;
        let orphan_until = Option::read(input)?;
        let found = bool::read(input)?;
        let owner = Option::<u64>::read(input)?.map(ProcessName::from_word);
        let shared = bool::read(input)?;
        let cookie = u64::read(input)?;
        let options = SocketOptions::read(input)?;
        let [resets, more, tx_shut, rx_shut, connected, rx_fin] = Carry::read(input)?;
        let tx_wish = u32::read(input)?;
        let error = u32::read(input)? as i32;
        let served = Option::<(u64, (u64, Instant))>::read(input)?;
        let served = served.map(|(process, (listener, since))| Served {
            process: ProcessName::from_word(process),
            listener: ListenerName(listener),
            since,
        });
        let came_to = Option::read(input)?.map(ListenerName);
        let local = Option::read(input)?;
        let remote = Option::read(input)?;
        let [rx_head, rx_tail, rx_end, tx_head, tx_tail] = Carry::read(input)?;
        let positions = StreamPositions { rx_head, rx_tail, rx_end, tx_head, tx_tail };
        let count = u32::read(input)?;
        demand(count as usize <= FIFO_SLOTS, "more runs of bytes than a stream has")?;
        let mut received = Vec::new();
        for _ in 0..count {
            received.push((u64::read(input)?, input.bytes(FIFO_BYTES)?.to_vec()));
        }
        let sent = input.bytes(FIFO_BYTES)?.to_vec();
        Ok(Held {
            server,
            stub,
            token,
            closed,
            orphan_until,
            found,
            owner,
            shared,
            cookie,
            options,
            resets,
            more,
            tx_shut,
            rx_shut,
            connected,
            rx_fin,
            tx_wish,
            error,
            served,
            came_to,
            local,
            remote,
            positions,
            received,
            sent,
        })
    }

    /// That the parts fit each other.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn check(&self) -> Result<(), Refusal> {
        let StreamPositions { rx_head, rx_tail, rx_end, tx_head, tx_tail } = self.positions;
        demand(self.positions.is_possible(), "positions of a stream")?;
        demand(self.token != Token::default(), "no trust domain")?;
        demand(!self.shared || self.cookie != 0, "a shared socket without a placeholder")?;
        demand(!(self.shared && self.owner.is_some()), "a shared socket of one process")?;
        demand((0..4096).contains(&self.error), "errno")?;
        self.options.check()?;
        demand(self.sent.len() as u64 == tx_tail - tx_head, "bytes that were written")?;
        // What can be read is there without a gap, and nothing lies outside.
        let mut at = rx_head;
        for (position, run) in &self.received {
            let apart = *position == at || (*position > at && at >= rx_tail);
            demand(apart && !run.is_empty(), "bytes that were received")?;
            at = position.saturating_add(run.len() as u64);
        }
        demand(at >= rx_tail && at <= rx_end, "bytes that were received")
    }
}

/// What a server says of connections that have come to it: to be understood alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The epoch of the server that says so.
    pub epoch: u32,
    /// Which.
    pub arrivals: Vec<Arrival>,
}

/// A connection that has come.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// See [`Held::stub`].
    pub stub: u64,
    /// The slot of its record at the new server.
    pub slot: u32,
    /// The generation of that record; 0: it was lost on arrival.
    pub generation: u32,
}

/// Bytes of an arrival.
const ARRIVAL_BYTES: usize = 16;
/// Arrivals of one receipt: it stays below what one message between servers carries.
pub const ARRIVALS_MAX: usize = (STATE_MAX - 16) / ARRIVAL_BYTES;

impl Receipt {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(Instant::default());
        VERSION.write(&mut out);
        self.epoch.write(&mut out);
        (self.arrivals.len() as u32).write(&mut out);
        for Arrival { stub, slot, generation } in &self.arrivals {
            (*stub, (*slot, *generation)).write(&mut out);
        }
        out.into_bytes()
    }

    /// What [`Receipt::encode`] wrote.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn decode(bytes: &[u8]) -> Result<Receipt, Refusal> {
        let mut input = Reader::new(bytes, Instant::default());
        let version = u16::read(&mut input)?;
        if version != VERSION {
            return Err(Refusal::Version(version));
        }
        let epoch = u32::read(&mut input)?;
        let count = u32::read(&mut input)? as usize;
        demand(count <= ARRIVALS_MAX, "more arrivals than a receipt has")?;
        let mut arrivals = Vec::new();
        for _ in 0..count {
            let (stub, (slot, generation)) = Carry::read(&mut input)?;
            arrivals.push(Arrival { stub, slot, generation });
        }
        input.end()?;
        Ok(Receipt { epoch, arrivals })
    }
}

/// What an application, or the end of one, had to say about a connection that has moved, for the server that has it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct LateNotice {
    /// The epoch of the server that it is for: another one by that number knows nothing of it.
    pub epoch: u32,
    /// The trust domain.
    pub token: Token,
    /// The slot there.
    pub slot: u32,
    /// The generation there.
    pub generation: u32,
    /// What was said.
    pub said: Said,
}

/// What can be said late.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// SHUTDOWN.
    Shutdown(Shutdown),
    /// It has ended; whether by a reset.
    End(bool),
    /// SHARED, with the cookie of the placeholder.
    Shared(u64),
    /// SET_OPTION.
    SetOption {
        /// Which.
        option: u16,
        /// To what.
        value: i64,
    },
    /// ARRIVE: whoever has it has found it at the server that says so, and finds the way from there.
    Arrived,
}

impl Said {
    fn body(self) -> RequestBody {
        match self {
            Said::Shutdown(how) => RequestBody::Shutdown { how },
            Said::End(abort) => RequestBody::Close { abort },
            Said::Shared(cookie) => RequestBody::Shared { cookie },
            Said::SetOption { option, value } => RequestBody::SetOption { option, value },
            Said::Arrived => RequestBody::Arrive,
        }
    }

    fn of(body: &RequestBody) -> Option<Said> {
        Some(match *body {
            RequestBody::Shutdown { how } => Said::Shutdown(how),
            RequestBody::Close { abort } => Said::End(abort),
            RequestBody::Shared { cookie } => Said::Shared(cookie),
            RequestBody::SetOption { option, value } => Said::SetOption { option, value },
            RequestBody::Arrive => Said::Arrived,
            _ => return None,
        })
    }
}

impl LateNotice {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let LateNotice { epoch, token, slot, generation, said } = *self;
        let mut out = Writer::new(Instant::default());
        VERSION.write(&mut out);
        epoch.write(&mut out);
        token.write(&mut out);
        let line: Message = Request::about(slot, generation, said.body()).encode();
        line.write(&mut out);
        out.into_bytes()
    }

    /// What [`LateNotice::encode`] wrote.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn decode(bytes: &[u8]) -> Result<LateNotice, Refusal> {
        let mut input = Reader::new(bytes, Instant::default());
        let version = u16::read(&mut input)?;
        if version != VERSION {
            return Err(Refusal::Version(version));
        }
        let epoch = u32::read(&mut input)?;
        let token = Token::read(&mut input)?;
        let line = Message::read(&mut input)?;
        input.end()?;
        let request = Request::decode(&line).ok();
        let said = request.as_ref().and_then(|request| Said::of(&request.body));
        match (request, said) {
            (Some(Request { header, .. }), Some(said)) => {
                let (slot, generation) = (header.slot, header.generation);
                Ok(LateNotice { epoch, token, slot, generation, said })
            }
            _ => Err(Refusal::Impossible("a late notice")),
        }
    }
}

/// For fuzzing: reads anything as baggage, receipt and notice; what can be read is the same when it is written and
/// read again.
///
/// # Panics
/// When it is not.
pub fn fuzz_decode(input: &[u8]) {
    if let Ok(baggage) = Baggage::decode(input) {
        let mut bytes = Vec::new();
        baggage.encode(&mut bytes);
        assert_eq!(Baggage::decode(&bytes), Ok(baggage));
    }
    if let Ok(receipt) = Receipt::decode(input) {
        assert_eq!(Receipt::decode(&receipt.encode()), Ok(receipt));
    }
    if let Ok(notice) = LateNotice::decode(input) {
        assert_eq!(LateNotice::decode(&notice.encode()), Ok(notice));
    }
}

#[cfg(test)]
mod tests;
