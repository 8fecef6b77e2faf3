//! Requests: application to service, on the request ring.
//!
//! ```text
//! word 0: kind u16, flags u16, slot u32      word 1: generation u32, reply cell u32
//! words 2..8: the body
//! ```

use std::net::{IpAddr, SocketAddr};

use super::{Malformed, Message, address_words, pair, unpair, word32, words_address};

/// What every request says.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// The socket it is about; `NO_SLOT` where there is none yet.
    pub slot: u32,
    /// The socket's generation; 0 with `NO_SLOT`.
    pub generation: u32,
    /// The cell for the reply; `NO_REPLY` if none is wanted.
    pub reply: u32,
}

/// A request.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What every request says.
    pub header: RequestHeader,
    /// What this one asks.
    pub body: RequestBody,
}

/// Number in `SetOption` for `MSG_MORE`: segments that are not full wait while the value is not 0, as
/// with `TCP_CORK`. Level and name of no option of setsockopt(2).
pub const OPTION_MORE: u16 = 0x06ff;

/// A direction, or both, to shut down. The numbers are those of shutdown(2).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Shutdown {
    /// `SHUT_RD`
    Read = 0,
    /// `SHUT_WR`
    Write = 1,
    /// `SHUT_RDWR`
    Both = 2,
}

impl Shutdown {
    fn decode(word: u64) -> Result<Shutdown, Malformed> {
        match word {
            0 => Ok(Shutdown::Read),
            1 => Ok(Shutdown::Write),
            2 => Ok(Shutdown::Both),
            _ => Err(Malformed),
        }
    }
}

/// What a request asks. "Sync" ones are answered in a reply cell.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// Sync: bind, opening a new socket if the slot is `NO_SLOT`. The reply is a `SocketReply`.
    Bind {
        /// Address and port; port 0: any.
        address: SocketAddr,
        /// `SO_REUSEADDR`
        reuse_address: bool,
        /// `SO_REUSEPORT`
        reuse_port: bool,
        /// `IPV6_V6ONLY`
        v6only: bool,
    },
    /// Sync: listen, or change the backlog of a listener.
    Listen {
        /// As in listen(2), already clamped to 0 or more.
        backlog: u32,
        /// `IPV6_V6ONLY`
        v6only: bool,
        /// `SO_REUSEPORT`
        reuse_port: bool,
        /// Cookie of the placeholder, by which the listener is found again after the death of a
        /// server; 0: unknown.
        cookie: u64,
        /// It is being opened at other servers too, and answers nobody until the same comes without
        /// this.
        opening: bool,
    },
    /// Sync: connect, opening a new socket if the slot is `NO_SLOT`. The reply comes when the SYN
    /// is queued; the outcome shows in the record.
    Connect {
        /// Where to.
        remote: SocketAddr,
    },
    /// Sync: a new socket without an address, because an option had to be set first.
    Open {
        /// IPv6 rather than IPv4.
        v6: bool,
    },
    /// This process accepts from the listener.
    Acceptor,
    /// This process accepts from the listener no more.
    NotAcceptor,
    /// The offered connection was claimed (its offer word says so already).
    Claim,
    /// The offered connection was claimed, but no descriptor could be made for it.
    Refuse,
    /// `tx_tail` has moved.
    KickTx,
    /// `rx_head` has moved far enough.
    KickRx,
    /// Room to write is wanted.
    WantTx,
    /// shutdown(2).
    Shutdown {
        /// Which direction.
        how: Shutdown,
    },
    /// The last descriptor of a socket that was never shared is closed.
    Close {
        /// Reset the connection (`SO_LINGER` on with time 0).
        abort: bool,
    },
    /// Sets an option; the reply, if wanted, is a `SocketReply` with the errno.
    SetOption {
        /// Which; the numbers are agreed between client and service.
        option: u16,
        /// Its value.
        value: i64,
    },
    /// Sync: reads an option. The reply is an `OptionReply`.
    GetOption {
        /// Which; the numbers are agreed between client and service.
        option: u16,
    },
    /// Sync: reads a part of `TCP_INFO`. The reply is an `OptionReply`.
    TcpInfo {
        /// Which 48 bytes, counted from 0.
        part: u16,
    },
    /// Reports readiness of the socket to a watcher.
    Watch {
        /// Which watcher of this process.
        watcher: u32,
        /// For what (`ready`).
        mask: u32,
        /// Once only, until the next `Watch`.
        one_shot: bool,
    },
    /// Reports the socket to the watcher no more.
    Unwatch {
        /// Which watcher of this process.
        watcher: u32,
    },
    /// The watcher's ring was drained while it had a backlog.
    Drained {
        /// Which watcher of this process.
        watcher: u32,
    },
    /// The socket may have several holders from now on: only the kernel's notice that the
    /// placeholder is gone ends it.
    Shared {
        /// `SO_COOKIE` of the placeholder.
        cookie: u64,
    },
    /// Sync: bind a datagram socket, opening a new one if the slot is `NO_SLOT`. The reply is a
    /// `SocketReply`.
    BindDatagram {
        /// Address and port; port 0: any.
        address: SocketAddr,
        /// `SO_REUSEADDR`
        reuse_address: bool,
        /// `SO_REUSEPORT`
        reuse_port: bool,
        /// `IPV6_V6ONLY`
        v6only: bool,
    },
    /// Sync: fix the peer of a datagram socket, opening a new one if the slot is `NO_SLOT`. The
    /// reply is a `SocketReply`.
    ConnectDatagram {
        /// The peer; `None`: no peer any more.
        remote: Option<SocketAddr>,
    },
    /// Sync: whose a destination is. The reply is an `OptionReply` with a `RouteAnswer`, or the errno
    /// `NOT_OURS`.
    Route {
        /// The destination; unspecified: asks about the link alone.
        remote: IpAddr,
    },
    /// Sync: an address of the service. The reply is an `OptionReply` with an `AddressAnswer`, or the
    /// errno `ENOENT` behind the last.
    Address {
        /// Its place among those in use, from 0.
        index: u16,
    },
    /// Sync: takes the oldest of the errors that wait on a datagram socket. The reply is an
    /// `OptionReply` with a `DatagramError`, or `EAGAIN`.
    TakeDatagramError,
    /// Sync: reads a part of the payload of the error taken last. The reply is an `OptionReply`;
    /// `EAGAIN` if another error was taken since.
    DatagramErrorPayload {
        /// The `serial` of the error.
        serial: u16,
        /// Which 48 bytes, counted from 0.
        part: u16,
    },
    /// Sync: joins or leaves a multicast group. The reply is a `SocketReply`.
    Group {
        /// Joins rather than leaves.
        join: bool,
        /// The group.
        group: IpAddr,
        /// The address of the interface; unspecified: any.
        interface: IpAddr,
    },
    /// Sync: this process has found where a connection is that has moved to this server, and uses the
    /// record here from now on. The reply is a `SocketReply`.
    Arrive,
    /// This process has followed a connection that has moved from this server, and uses the record here
    /// no more.
    Left,
}

const FLAG_A: u16 = 1;
const FLAG_B: u16 = 2;
const FLAG_C: u16 = 4;

/// The numbers of the kinds.
mod kind {
    pub const BIND: u16 = 1;
    pub const LISTEN: u16 = 2;
    pub const CONNECT: u16 = 3;
    pub const OPEN: u16 = 4;
    pub const ACCEPTOR: u16 = 5;
    pub const NOT_ACCEPTOR: u16 = 6;
    pub const CLAIM: u16 = 7;
    pub const REFUSE: u16 = 8;
    pub const KICK_TX: u16 = 9;
    pub const KICK_RX: u16 = 10;
    pub const WANT_TX: u16 = 11;
    pub const SHUTDOWN: u16 = 12;
    pub const CLOSE: u16 = 13;
    pub const SET_OPTION: u16 = 14;
    pub const GET_OPTION: u16 = 15;
    pub const TCP_INFO: u16 = 16;
    pub const WATCH: u16 = 17;
    pub const UNWATCH: u16 = 18;
    pub const DRAINED: u16 = 19;
    pub const SHARED: u16 = 20;
    pub const BIND_DATAGRAM: u16 = 21;
    pub const CONNECT_DATAGRAM: u16 = 22;
    pub const ROUTE: u16 = 23;
    pub const TAKE_DATAGRAM_ERROR: u16 = 24;
    pub const GROUP: u16 = 25;
    pub const DATAGRAM_ERROR_PAYLOAD: u16 = 26;
    pub const ARRIVE: u16 = 27;
    pub const LEFT: u16 = 28;
    pub const ADDRESS: u16 = 29;
}

fn flag(set: bool, bit: u16) -> u16 {
    if set { bit } else { 0 }
}

fn with_address(address: SocketAddr) -> [u64; 6] {
    let words = address_words(Some(address));
    [words[0], words[1], words[2], 0, 0, 0]
}

fn address_of(body: &[u64; 6]) -> Result<SocketAddr, Malformed> {
    words_address(&[body[0], body[1], body[2]])?.ok_or(Malformed)
}

impl Request {
    /// A request about a socket, without a reply.
    pub fn about(slot: u32, generation: u32, body: RequestBody) -> Request {
        let header = RequestHeader { slot, generation, reply: crate::limits::NO_REPLY };
        Request { header, body }
    }

    /// The same request, to be answered in a reply cell.
    pub fn with_reply(mut self, cell: u32) -> Request {
        self.header.reply = cell;
        self
    }

    /// As a message.
    pub fn encode(&self) -> Message {
        let RequestHeader { slot, generation, reply } = self.header;
        let (kind, flags, body) = self.body.encode();
        let first = u64::from(kind) | u64::from(flags) << 16 | u64::from(slot) << 32;
        let [a, b, c, d, e, f] = body;
        [first, pair(generation, reply), a, b, c, d, e, f]
    }

    /// From a message.
    pub fn decode(message: &Message) -> Result<Request, Malformed> {
        let [first, second, a, b, c, d, e, f] = *message;
        let (kind, flags) = (first as u16, (first >> 16) as u16);
        let slot = (first >> 32) as u32;
        let (generation, reply) = unpair(second);
        let body = RequestBody::decode(kind, flags, &[a, b, c, d, e, f])?;
        Ok(Request { header: RequestHeader { slot, generation, reply }, body })
    }
}

impl RequestBody {
    /// Kind, flags and body words.
    fn encode(&self) -> (u16, u16, [u64; 6]) {
        let one = |word: u64| [word, 0, 0, 0, 0, 0];
        let none = [0; 6];
        match *self {
            RequestBody::Bind { address, reuse_address, reuse_port, v6only } => {
                let flags =
                    flag(reuse_address, FLAG_A) | flag(reuse_port, FLAG_B) | flag(v6only, FLAG_C);
                (kind::BIND, flags, with_address(address))
            }
            RequestBody::Listen { backlog, v6only, reuse_port, cookie, opening } => {
                let flags = flag(v6only, FLAG_A) | flag(reuse_port, FLAG_B) | flag(opening, FLAG_C);
                (kind::LISTEN, flags, [u64::from(backlog), cookie, 0, 0, 0, 0])
            }
            RequestBody::Connect { remote } => (kind::CONNECT, 0, with_address(remote)),
            RequestBody::Open { v6 } => (kind::OPEN, flag(v6, FLAG_A), none),
            RequestBody::Acceptor => (kind::ACCEPTOR, 0, none),
            RequestBody::NotAcceptor => (kind::NOT_ACCEPTOR, 0, none),
            RequestBody::Claim => (kind::CLAIM, 0, none),
            RequestBody::Refuse => (kind::REFUSE, 0, none),
            RequestBody::KickTx => (kind::KICK_TX, 0, none),
            RequestBody::KickRx => (kind::KICK_RX, 0, none),
            RequestBody::WantTx => (kind::WANT_TX, 0, none),
            RequestBody::Shutdown { how } => (kind::SHUTDOWN, 0, one(u64::from(how as u32))),
            RequestBody::Close { abort } => (kind::CLOSE, flag(abort, FLAG_A), none),
            RequestBody::SetOption { option, value } => {
                (kind::SET_OPTION, 0, [u64::from(option), value as u64, 0, 0, 0, 0])
            }
            RequestBody::GetOption { option } => (kind::GET_OPTION, 0, one(u64::from(option))),
            RequestBody::TcpInfo { part } => (kind::TCP_INFO, 0, one(u64::from(part))),
            RequestBody::Watch { watcher, mask, one_shot } => {
                (kind::WATCH, flag(one_shot, FLAG_A), one(pair(watcher, mask)))
            }
            RequestBody::Unwatch { watcher } => (kind::UNWATCH, 0, one(u64::from(watcher))),
            RequestBody::Drained { watcher } => (kind::DRAINED, 0, one(u64::from(watcher))),
            RequestBody::Shared { cookie } => (kind::SHARED, 0, one(cookie)),
            RequestBody::BindDatagram { address, reuse_address, reuse_port, v6only } => {
                let flags =
                    flag(reuse_address, FLAG_A) | flag(reuse_port, FLAG_B) | flag(v6only, FLAG_C);
                (kind::BIND_DATAGRAM, flags, with_address(address))
            }
            RequestBody::ConnectDatagram { remote } => {
                let [x, y, z] = address_words(remote);
                (kind::CONNECT_DATAGRAM, 0, [x, y, z, 0, 0, 0])
            }
            RequestBody::Route { remote } => {
                (kind::ROUTE, 0, with_address(SocketAddr::new(remote, 0)))
            }
            RequestBody::Address { index } => (kind::ADDRESS, 0, one(u64::from(index))),
            RequestBody::TakeDatagramError => (kind::TAKE_DATAGRAM_ERROR, 0, none),
            RequestBody::Arrive => (kind::ARRIVE, 0, none),
            RequestBody::Left => (kind::LEFT, 0, none),
            RequestBody::DatagramErrorPayload { serial, part } => {
                let which = u64::from(serial) << 16 | u64::from(part);
                (kind::DATAGRAM_ERROR_PAYLOAD, 0, one(which))
            }
            RequestBody::Group { join, group, interface } => {
                let [x, y, z] = address_words(Some(SocketAddr::new(group, 0)));
                let [u, v, w] = address_words(Some(SocketAddr::new(interface, 0)));
                (kind::GROUP, flag(join, FLAG_A), [x, y, z, u, v, w])
            }
        }
    }

    fn decode(kind: u16, flags: u16, body: &[u64; 6]) -> Result<RequestBody, Malformed> {
        let (a, b, c) = (flags & FLAG_A != 0, flags & FLAG_B != 0, flags & FLAG_C != 0);
        let small = |word: u64| u16::try_from(word).map_err(|_| Malformed);
        Ok(match kind {
            kind::BIND => RequestBody::Bind {
                address: address_of(body)?,
                reuse_address: a,
                reuse_port: b,
                v6only: c,
            },
            kind::LISTEN => {
                let backlog = word32(body[0])?;
                let cookie = body[1];
                RequestBody::Listen { backlog, v6only: a, reuse_port: b, cookie, opening: c }
            }
            kind::CONNECT => RequestBody::Connect { remote: address_of(body)? },
            kind::OPEN => RequestBody::Open { v6: a },
            kind::ACCEPTOR => RequestBody::Acceptor,
            kind::NOT_ACCEPTOR => RequestBody::NotAcceptor,
            kind::CLAIM => RequestBody::Claim,
            kind::REFUSE => RequestBody::Refuse,
            kind::KICK_TX => RequestBody::KickTx,
            kind::KICK_RX => RequestBody::KickRx,
            kind::WANT_TX => RequestBody::WantTx,
            kind::SHUTDOWN => RequestBody::Shutdown { how: Shutdown::decode(body[0])? },
            kind::CLOSE => RequestBody::Close { abort: a },
            kind::SET_OPTION => {
                RequestBody::SetOption { option: small(body[0])?, value: body[1] as i64 }
            }
            kind::GET_OPTION => RequestBody::GetOption { option: small(body[0])? },
            kind::TCP_INFO => RequestBody::TcpInfo { part: small(body[0])? },
            kind::WATCH => {
                let (watcher, mask) = unpair(body[0]);
                RequestBody::Watch { watcher, mask, one_shot: a }
            }
            kind::UNWATCH => RequestBody::Unwatch { watcher: word32(body[0])? },
            kind::DRAINED => RequestBody::Drained { watcher: word32(body[0])? },
            kind::SHARED => RequestBody::Shared { cookie: body[0] },
            kind::BIND_DATAGRAM => RequestBody::BindDatagram {
                address: address_of(body)?,
                reuse_address: a,
                reuse_port: b,
                v6only: c,
            },
            kind::CONNECT_DATAGRAM => RequestBody::ConnectDatagram {
                remote: words_address(&[body[0], body[1], body[2]])?,
            },
            kind::ROUTE => RequestBody::Route { remote: address_of(body)?.ip() },
            kind::ADDRESS => RequestBody::Address { index: small(body[0])? },
            kind::TAKE_DATAGRAM_ERROR => RequestBody::TakeDatagramError,
            kind::ARRIVE => RequestBody::Arrive,
            kind::LEFT => RequestBody::Left,
            kind::DATAGRAM_ERROR_PAYLOAD => RequestBody::DatagramErrorPayload {
                serial: small(body[0] >> 16)?,
                part: body[0] as u16,
            },
            kind::GROUP => RequestBody::Group {
                join: a,
                group: address_of(body)?.ip(),
                interface: address_of(&[body[3], body[4], body[5], 0, 0, 0])?.ip(),
            },
            _ => return Err(Malformed),
        })
    }
}
