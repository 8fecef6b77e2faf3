//! What a supervisor and its servers say to each other, over one `SOCK_SEQPACKET` channel each.
//!
//! A message is a header (mark, version, length) and JSON that is decoded strictly: another
//! version, a wrong length, an unknown field or the wrong number of descriptors is refused whole.
//! [`Order`]s go to the server, [`Report`]s come back; a report of a forbidden system call is
//! eight bytes made by a signal handler (`haypile_shm::sys::privilege`). Owns the encoding; what
//! the messages mean is `supervisor`'s and `server_process`'s business.

use std::net::SocketAddr;
use std::os::fd::RawFd;

use haypile_shm::sys::privilege::FORBIDDEN_CALL_MARK;
use haypile_shm::sys::{self, Errno, Fd, MESSAGE_FDS};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::domains::Token;
use crate::links::LinkFacts;
use crate::roster::Roster;
use crate::sandbox::{Cell, Confinement};

/// Supervisor and server are the same program, so this differs only where something is very wrong.
pub const VERSION: u32 = 3;
const MARK: u32 = 0x6861_7970;
const HEADER_LEN: usize = 12;
/// Longest message, in bytes.
pub const MESSAGE_MAX: usize = 128 * 1024;

/// Supervisor to server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// The first: what the server is, with descriptors: epoch segment, and the attach socket and ledger
    /// if it has them.
    Start(Box<Start>),
    /// Next descriptors of the link.
    Link {
        /// How many, at most `LINK_FDS_MAX`.
        count: usize,
    },
    /// A listener of the server before this one, to be held for its application.
    Listener(ListenerRecord),
    /// There are no more listeners: confine yourself, and run.
    Run {},
    /// Another server that this one talks to is there, for the first time or again: with
    /// descriptors, the segment of both, its status segment, its doorbell.
    Peer {
        /// Its number among all servers.
        server: u16,
        /// The segment has rings of frames.
        frames: bool,
    },
    /// Another server is gone.
    PeerGone {
        /// Its number.
        server: u16,
    },
    /// Who there is from now on: new ones are introduced when they run, those that are missing have left.
    /// Answered by `Known`.
    Servers {
        /// All of them.
        roster: Box<Roster>,
    },
    /// A listener that is open at the other servers, for one that is new among them: to be held for its
    /// application, or to be held no more.
    Beside {
        /// It.
        listener: ListenerRecord,
        /// It is open there.
        open: bool,
    },
    /// Programs may come to so many transport servers. Answered by `Opened`.
    Open {
        /// How many.
        servers: u16,
    },
    /// Give the transport servers from `first` on their share of your buckets. Answered by `Shared`.
    Share {
        /// The first new one.
        first: u16,
    },
    /// Give all your buckets to the transport servers that stay. Answered by `Parted`.
    Part {
        /// Time for that, and for programs to follow their connections, in microseconds.
        patience_us: u64,
    },
    /// You are needed no more: end. What programs still have here ends for them as by a death.
    Leave {},
    /// The epoch is yours: take applications in. Said when the servers of the plan are there.
    Begin {},
    /// A connection that asks as on the control socket, with one descriptor.
    Client {},
    /// A control connection of a process that came to the door, with one descriptor.
    Newcomer {},
    /// The file for the next capture, with one descriptor.
    File {},
    /// Answer to `WantNotices`, with one descriptor if it is granted.
    Notices {
        /// Whether there is one.
        granted: bool,
    },
    /// Close everything and end.
    End {
        /// Time for connections to close, in microseconds.
        patience_us: u64,
    },
}

/// What a server is given at its start.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The configuration, with addresses.
    pub config: Config,
    /// Who there is.
    pub roster: Roster,
    /// Which server it is.
    pub server: u16,
    /// Transport servers that programs come to.
    pub open: u16,
    /// What the link is, whether or not this server has a part of it.
    pub link: LinkFacts,
    /// How many descriptors of the link this server is given.
    pub link_descriptors: u16,
    /// Keys of sequence numbers and ports: the same in every life of the service.
    pub secret: [u8; 32],
    /// Applications attach to it: the attach socket comes along, and its ledger.
    pub attaches: bool,
    /// The epoch that this server opens.
    pub epoch: u32,
    /// How it is to be confined.
    pub cell: Cell,
    /// Tell of every process that attaches.
    pub tell_processes: bool,
}

/// A listener, as the supervisor remembers it from one server to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerRecord {
    /// The trust domain it is in.
    pub domain: Token,
    /// Cookie of its placeholder: with the domain, its name.
    pub cookie: u64,
    /// Address and port.
    pub address: SocketAddr,
    /// The name of the process that alone has it; 0 where several have, or it is not known.
    pub owner: u64,
    /// As given to listen(2).
    pub backlog: u32,
    /// `IPV6_V6ONLY`
    pub v6only: bool,
    /// `SO_REUSEADDR`
    pub reuse_address: bool,
    /// `SO_REUSEPORT`
    pub reuse_port: bool,
    /// Options that its connections inherit, numbers and values as in SET_OPTION.
    pub options: Vec<(u16, i64)>,
}

/// Server to supervisor.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Report {
    /// It runs. With descriptors for its peers: its status segment, the other end of its doorbell.
    Ready {
        /// How it is confined.
        confinement: Confinement,
        /// The link and its mode.
        link: String,
    },
    /// It cannot start.
    Failed {
        /// What failed.
        what: String,
        /// Why.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// A listener is there, or has changed.
    Listening(ListenerRecord),
    /// A listener is gone.
    NotListening {
        /// Its domain.
        domain: Token,
        /// Its cookie.
        cookie: u64,
    },
    /// The servers of the last `Servers` are known.
    Known {},
    /// Programs have opened their listeners here, or had time to.
    Opened {},
    /// These buckets have moved, on order or because somebody wished it.
    Moved {
        /// To this transport server.
        to: u16,
        /// Which.
        buckets: Vec<u16>,
    },
    /// All that could be given away is.
    Shared {},
    /// Everything that could be given away is, and programs have followed it, or had time to.
    Parted {
        /// Buckets that could not.
        buckets: u16,
        /// Connections that programs have not followed.
        stubs: u32,
    },
    /// Asks for the kernel's notices of sockets that end in a process's network namespace.
    WantNotices {
        /// The process.
        pid: i32,
        /// The namespace, by its cookie.
        namespace: u64,
    },
    /// A process has attached; its pidfd comes along.
    Attached {},
    /// Whether anybody uses the service, as far as the server can tell.
    Used {
        /// Somebody does.
        used: bool,
    },
    /// The server has made a system call that its sandbox forbids, and ends.
    #[serde(skip)]
    Forbidden {
        /// The number of the call.
        number: u32,
    },
}

/// A message that is none.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The descriptors of a message.
pub type Fds = [Option<Fd>; MESSAGE_FDS];

/// Messages know how many descriptors belong to them.
pub trait Carries {
    /// How many.
    fn descriptors(&self) -> usize;
}

/// Most descriptors of one `Order::Link`.
pub const LINK_FDS_MAX: usize = MESSAGE_FDS;

impl Carries for Order {
    fn descriptors(&self) -> usize {
        match self {
            Order::Start(start) if start.attaches => 3,
            Order::Start(_) => 1,
            Order::Peer { .. } => 3,
            Order::Link { count } => *count,
            Order::Client {}
            | Order::Newcomer {}
            | Order::File {}
            | Order::Notices { granted: true } => 1,
            _ => 0,
        }
    }
}

impl Carries for Report {
    fn descriptors(&self) -> usize {
        match self {
            Report::Ready { .. } => 2,
            Report::Attached {} => 1,
            _ => 0,
        }
    }
}

/// As bytes.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    // Our own types have string keys and no maps that could fail.
    let json = serde_json::to_vec(message).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADER_LEN + json.len());
    for word in [MARK, VERSION, json.len() as u32] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&json);
    bytes
}

/// From bytes.
///
/// # Errors
/// When anything is not as `encode` makes it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    let (header, json) = bytes.split_at_checked(HEADER_LEN).ok_or(Malformed)?;
    let words = header.as_chunks::<4>().0;
    let expected = [MARK, VERSION, u32::try_from(json.len()).map_err(|_| Malformed)?];
    let right = words.iter().zip(expected).all(|(word, value)| u32::from_le_bytes(*word) == value);
    if !right || bytes.len() > MESSAGE_MAX {
        return Err(Malformed);
    }
    serde_json::from_slice(json).map_err(|_| Malformed)
}

/// From bytes: a report, made by `encode` or by the handler of forbidden calls.
///
/// # Errors
/// As [`decode`].
pub fn decode_report(bytes: &[u8]) -> Result<Report, Malformed> {
    if let ([mark, number], []) = bytes.as_chunks::<4>()
        && u32::from_ne_bytes(*mark) == FORBIDDEN_CALL_MARK
    {
        return Ok(Report::Forbidden { number: u32::from_ne_bytes(*number) });
    }
    decode(bytes)
}

/// Sends a message without ever waiting.
///
/// # Errors
/// `EAGAIN` while the channel is full, `EPIPE` when the other end is gone.
pub fn send(channel: RawFd, message: &impl Serialize, fds: &[RawFd]) -> Result<(), Errno> {
    sys::send_fds(channel, &encode(message), fds, libc::MSG_DONTWAIT).map(drop)
}

/// Receives one message without ever waiting, with exactly the descriptors that belong to it.
///
/// # Errors
/// `EAGAIN` when there is none, `EPIPE` when the other end is gone, `EPROTO` for nonsense.
pub fn receive<T: Carries>(
    channel: RawFd,
    decode: fn(&[u8]) -> Result<T, Malformed>,
) -> Result<(T, Fds), Errno> {
    let mut bytes = vec![0; MESSAGE_MAX + 1];
    let received = loop {
        match sys::recv_fds(channel, &mut bytes, libc::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Err(Errno::EPIPE),
            other => break other?,
        }
    };
    if received.len == 0 {
        return Err(Errno::EPIPE);
    }
    if received.truncated || received.len > MESSAGE_MAX {
        return Err(Errno::EPROTO);
    }
    let message = decode(&bytes[..received.len]).map_err(|_| Errno::EPROTO)?;
    let count = received.fds.iter().flatten().count();
    if count != message.descriptors() {
        return Err(Errno::EPROTO);
    }
    Ok((message, received.fds))
}

#[cfg(test)]
mod tests;
