//! Messages on the control connection, one per process: attach, map, watchers, adoption. Some carry
//! descriptors, named beside each. Word 0 is the kind.

use super::{Malformed, Message, pair, unpair, word32};
use crate::epoch::EPOCH_SERVERS;

/// Bytes of the token that names a trust domain.
pub const DOMAIN_TOKEN_BYTES: usize = 16;

/// Bytes of the name of a program, the kernel's own limit.
pub const PROGRAM_BYTES: usize = 16;

/// The proof of a process without a name that wants to stay where it says HELLO: a forked child
/// whose connection is there.
pub const CHOSEN_HOME: u64 = 1;

/// The home of a process with this name while there are `servers` transport servers: the one that has given the name
/// out, or another where that one has left. Servers say the same (`ProcessName::home_among` in the engine).
pub const fn home_of_name(name: u64, servers: u16) -> u16 {
    let first = (name >> 32) as u16;
    if servers == 0 { first } else { first % servers }
}

type Token = [u8; DOMAIN_TOKEN_BYTES];

/// Bits of the name of a process: a number of 32 bits, above it its home.
const NAME_BITS: u32 = 48;
const NAME_MASK: u64 = (1 << NAME_BITS) - 1;

/// Application to service.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ControlRequest {
    /// First message of a process. Answered by `Welcome`, `Refused` or `Home`.
    Hello {
        /// `PROTOCOL_VERSION` of the application.
        version: u32,
        /// `BUILD_VERSION` of the application, 48 bits.
        build: u64,
        /// Name of its program, ended by a 0 byte unless it fills the array.
        program: [u8; PROGRAM_BYTES],
        /// The trust domain to join; zero: a new one.
        domain: Token,
        /// The name of the process in all servers, 48 bits; 0: it has no home yet.
        name: u64,
        /// What its home has given it to show with the name. Without a name: [`CHOSEN_HOME`] if the
        /// process has a reason to make this server its home, else 0.
        proof: u64,
    },
    /// Said to a server that the process is not attached to, on a connection of its own: the process
    /// runs another program now, and what it was there under another name is over. Not answered.
    NewProgram {
        /// The name of the process, 48 bits.
        name: u64,
    },
    /// From a forked child, on the connection inherited from its parent, with one descriptor: an
    /// end of a socket pair, which becomes the child's own control connection. Not answered.
    AttachChild,
    /// Asks for a socket table. Answered by `TableMapped`.
    MapTable {
        /// Which table of the domain.
        index: u32,
    },
    /// Asks for an arena. Answered by `ArenaMapped`.
    MapArena {
        /// Which arena of the domain.
        index: u32,
    },
    /// Starts a watcher, with one descriptor: the end of its doorbell that the service rings.
    /// Answered by `WatcherMade`; the ring may be used from then on.
    NewWatcher {
        /// Which watcher of this process.
        watcher: u32,
    },
    /// Ends a watcher. Not answered.
    DropWatcher {
        /// Which watcher of this process.
        watcher: u32,
    },
    /// Asks what socket a placeholder stands for, with one descriptor: the placeholder. Answered by
    /// `Adopted`.
    Adopt,
    /// Asks for the listener that the service has held for a placeholder since the server before
    /// died, with one descriptor: the placeholder. Answered by `Adopted`.
    Restore {
        /// Other processes may hold it too.
        shared: bool,
    },
    /// After `Restore` of every listener that the process has: what the service still holds of those
    /// that were its alone was closed while no server heard of it. Not answered.
    Restored,
    /// Said at the supervisor's door, with one descriptor: an end of a socket pair, which becomes a control connection
    /// of a transport server as if it had come to its attach socket; closed if that does not run. Without a descriptor
    /// it asks for nothing, and who sends it learns whether the door is there. Not answered.
    Enter {
        /// The transport server.
        server: u16,
    },
}

/// Service to application.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ControlReply {
    /// Answer to `Hello`: no.
    Refused {
        /// Why, never 0; `EPROTO`: the versions differ.
        errno: i32,
        /// `PROTOCOL_VERSION` of the service.
        version: u32,
        /// `BUILD_VERSION` of the service, 48 bits.
        build: u64,
    },
    /// Answer to a `Hello` without a name: the process is to make another server its home. One that
    /// cannot reach it says HELLO again, on the same connection, and may stay.
    Home {
        /// The transport server to go to.
        server: u16,
        /// How many there are.
        servers: u16,
    },
    /// Answer to `Hello`, with five descriptors: channel, status, socket table 0, wake socket,
    /// epoch.
    Welcome {
        /// The epoch of the server (`epoch`, the word of its number): another one means another
        /// server.
        epoch: u32,
        /// The number of this process in owner words.
        process_id: u32,
        /// How long a blocking call should spin before it sleeps, in microseconds.
        spin_us: u32,
        /// The trust domain, to hand on by the environment.
        domain: Token,
        /// Which transport server this is: one of those, or one that is about to leave and has connections yet.
        server: u16,
        /// How many programs come to.
        servers: u16,
        /// The name of the process in all servers, 48 bits.
        name: u64,
        /// What it has to show with the name.
        proof: u64,
    },
    /// Answer to `MapTable`, with the descriptor of the table unless it failed.
    TableMapped {
        /// Which table.
        index: u32,
        /// 0 or a positive errno.
        errno: i32,
    },
    /// Answer to `MapArena`, with the descriptor of the arena unless it failed.
    ArenaMapped {
        /// Which arena.
        index: u32,
        /// 0 or a positive errno.
        errno: i32,
    },
    /// Answer to `NewWatcher`.
    WatcherMade {
        /// Which watcher.
        watcher: u32,
        /// 0 or a positive errno.
        errno: i32,
    },
    /// Answer to `Adopt`.
    Adopted {
        /// 0 or a positive errno; `ENOENT`: a socket of the kernel.
        errno: i32,
        /// The socket.
        slot: u32,
        /// Its generation.
        generation: u32,
        /// What it is.
        kind: SocketKind,
    },
}

/// What a socket is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SocketKind {
    /// Neither connected nor listening.
    Plain = 0,
    /// A connection, or a connection attempt.
    Connection = 1,
    /// A listener.
    Listener = 2,
    /// A datagram socket.
    Datagram = 3,
}

/// The numbers of the kinds.
mod kind {
    pub const HELLO: u64 = 0x201;
    pub const ATTACH_CHILD: u64 = 0x202;
    pub const MAP_TABLE: u64 = 0x203;
    pub const MAP_ARENA: u64 = 0x204;
    pub const NEW_WATCHER: u64 = 0x205;
    pub const DROP_WATCHER: u64 = 0x206;
    pub const ADOPT: u64 = 0x207;
    pub const RESTORE: u64 = 0x208;
    pub const RESTORED: u64 = 0x20a;
    pub const NEW_PROGRAM: u64 = 0x209;
    pub const ENTER: u64 = 0x20b;
    /// With an errno: refused.
    pub const WELCOME: u64 = 0x301;
    pub const HOME: u64 = 0x302;
    pub const TABLE_MAPPED: u64 = 0x303;
    pub const ARENA_MAPPED: u64 = 0x304;
    pub const WATCHER_MADE: u64 = 0x305;
    pub const ADOPTED: u64 = 0x307;
}

fn token_words(token: Token) -> [u64; 2] {
    let value = u128::from_ne_bytes(token);
    [value as u64, (value >> 64) as u64]
}

fn words_token(words: [u64; 2]) -> Token {
    (u128::from(words[0]) | u128::from(words[1]) << 64).to_ne_bytes()
}

impl ControlRequest {
    /// As a message.
    pub fn encode(&self) -> Message {
        match *self {
            ControlRequest::Hello { version, build, program, domain, name, proof } => {
                let [a, b] = token_words(domain);
                let [c, d] = token_words(program);
                // Without a name it says its version where every version has looked for it.
                let (number, home) = (name as u32, name >> 32 << NAME_BITS);
                let build = build & NAME_MASK | home;
                [kind::HELLO, pair(version, number), a, b, build, c, d, proof]
            }
            ControlRequest::NewProgram { name } => {
                [kind::NEW_PROGRAM, name & NAME_MASK, 0, 0, 0, 0, 0, 0]
            }
            ControlRequest::AttachChild => [kind::ATTACH_CHILD, 0, 0, 0, 0, 0, 0, 0],
            ControlRequest::MapTable { index } => number(kind::MAP_TABLE, index),
            ControlRequest::MapArena { index } => number(kind::MAP_ARENA, index),
            ControlRequest::NewWatcher { watcher } => number(kind::NEW_WATCHER, watcher),
            ControlRequest::DropWatcher { watcher } => number(kind::DROP_WATCHER, watcher),
            ControlRequest::Adopt => [kind::ADOPT, 0, 0, 0, 0, 0, 0, 0],
            ControlRequest::Restore { shared } => number(kind::RESTORE, u32::from(shared)),
            ControlRequest::Restored => [kind::RESTORED, 0, 0, 0, 0, 0, 0, 0],
            ControlRequest::Enter { server } => number(kind::ENTER, u32::from(server)),
        }
    }

    /// From a message.
    pub fn decode(message: &Message) -> Result<ControlRequest, Malformed> {
        // The version comes before everything else, whatever it is.
        let value = || word32(message[1]);
        Ok(match message[0] {
            kind::HELLO => {
                let (version, number) = unpair(message[1]);
                ControlRequest::Hello {
                    version,
                    domain: words_token([message[2], message[3]]),
                    build: message[4] & NAME_MASK,
                    program: words_token([message[5], message[6]]),
                    name: message[4] >> NAME_BITS << 32 | u64::from(number),
                    proof: message[7],
                }
            }
            kind::NEW_PROGRAM => ControlRequest::NewProgram { name: message[1] & NAME_MASK },
            kind::ATTACH_CHILD => ControlRequest::AttachChild,
            kind::MAP_TABLE => ControlRequest::MapTable { index: value()? },
            kind::MAP_ARENA => ControlRequest::MapArena { index: value()? },
            kind::NEW_WATCHER => ControlRequest::NewWatcher { watcher: value()? },
            kind::DROP_WATCHER => ControlRequest::DropWatcher { watcher: value()? },
            kind::ADOPT => ControlRequest::Adopt,
            kind::RESTORE => match value()? {
                0 => ControlRequest::Restore { shared: false },
                1 => ControlRequest::Restore { shared: true },
                _ => return Err(Malformed),
            },
            kind::RESTORED => ControlRequest::Restored,
            kind::ENTER => match u16::try_from(value()?) {
                Ok(server) if server < EPOCH_SERVERS => ControlRequest::Enter { server },
                _ => return Err(Malformed),
            },
            _ => return Err(Malformed),
        })
    }
}

/// A server's number and how many programs come to, from one word. A server that is about to leave has a number
/// beyond those.
fn places(word: u32) -> Result<(u16, u16), Malformed> {
    let (server, servers) = (word as u16, (word >> 16) as u16);
    let are_possible = server < EPOCH_SERVERS && (1..=EPOCH_SERVERS).contains(&servers);
    if are_possible { Ok((server, servers)) } else { Err(Malformed) }
}

fn number(kind: u64, value: u32) -> Message {
    [kind, u64::from(value), 0, 0, 0, 0, 0, 0]
}

fn numbered(kind: u64, value: u32, errno: i32) -> Message {
    [kind, pair(value, errno as u32), 0, 0, 0, 0, 0, 0]
}

impl ControlReply {
    /// As a message.
    pub fn encode(&self) -> Message {
        match *self {
            ControlReply::Refused { errno, version, build } => {
                [kind::WELCOME, pair(version, errno as u32), 0, 0, 0, build & NAME_MASK, 0, 0]
            }
            ControlReply::Home { server, servers } => {
                number(kind::HOME, u32::from(server) | u32::from(servers) << 16)
            }
            ControlReply::Welcome {
                epoch,
                process_id,
                spin_us,
                domain,
                server,
                servers,
                name,
                proof,
            } => {
                let [a, b] = token_words(domain);
                let second = pair(process_id, spin_us);
                let which = pair(epoch, u32::from(server) | u32::from(servers) << 16);
                [kind::WELCOME, 0, second, a, b, name & NAME_MASK, which, proof]
            }
            ControlReply::TableMapped { index, errno } => {
                numbered(kind::TABLE_MAPPED, index, errno)
            }
            ControlReply::ArenaMapped { index, errno } => {
                numbered(kind::ARENA_MAPPED, index, errno)
            }
            ControlReply::WatcherMade { watcher, errno } => {
                numbered(kind::WATCHER_MADE, watcher, errno)
            }
            ControlReply::Adopted { errno, slot, generation, kind } => {
                let socket = pair(slot, generation);
                [kind::ADOPTED, pair(kind as u32, errno as u32), socket, 0, 0, 0, 0, 0]
            }
        }
    }

    /// From a message.
    pub fn decode(message: &Message) -> Result<ControlReply, Malformed> {
        let (first, second) = unpair(message[1]);
        let errno = second as i32;
        Ok(match message[0] {
            kind::WELCOME if errno != 0 => {
                ControlReply::Refused { errno, version: first, build: message[5] & NAME_MASK }
            }
            kind::WELCOME => {
                let (process_id, spin_us) = unpair(message[2]);
                let domain = words_token([message[3], message[4]]);
                let (epoch, which) = unpair(message[6]);
                let (server, servers) = places(which)?;
                let (name, proof) = (message[5] & NAME_MASK, message[7]);
                ControlReply::Welcome {
                    epoch,
                    process_id,
                    spin_us,
                    domain,
                    server,
                    servers,
                    name,
                    proof,
                }
            }
            kind::HOME => {
                let (server, servers) = places(word32(message[1])?)?;
                if server >= servers {
                    return Err(Malformed);
                }
                ControlReply::Home { server, servers }
            }
            kind::TABLE_MAPPED => ControlReply::TableMapped { index: first, errno },
            kind::ARENA_MAPPED => ControlReply::ArenaMapped { index: first, errno },
            kind::WATCHER_MADE => ControlReply::WatcherMade { watcher: first, errno },
            kind::ADOPTED => {
                let (slot, generation) = unpair(message[2]);
                let kind = match first {
                    0 => SocketKind::Plain,
                    1 => SocketKind::Connection,
                    2 => SocketKind::Listener,
                    3 => SocketKind::Datagram,
                    _ => return Err(Malformed),
                };
                ControlReply::Adopted { errno, slot, generation, kind }
            }
            _ => return Err(Malformed),
        })
    }
}
