//! Replies: service to application, in a reply cell, seven words. Which of the two shapes a reply
//! has follows from the request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Malformed, address_words, pair, unpair, word32, words_address};

/// What a reply cell carries.
pub type ReplyPayload = [u64; 7];

/// The errno of a reply that means: this address is not ours, let the kernel do it.
pub const NOT_OURS: i32 = -1;

/// The errno of a reply that means: another transport server keeps this flow or port, its number is
/// in `slot`. The same request is to be made there; here nothing was opened.
pub const ELSEWHERE: i32 = -2;

/// Bytes of an option value that fit in a reply.
pub const OPTION_BYTES: usize = 48;

/// Reply to Bind, Listen, Connect, Open and SetOption.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SocketReply {
    /// 0, a positive errno, [`NOT_OURS`] or [`ELSEWHERE`].
    pub errno: i32,
    /// The socket; `NO_SLOT` on failure to open one; with [`ELSEWHERE`] the number of a server.
    pub slot: u32,
    /// Its generation.
    pub generation: u32,
    /// Its local address, if it has one.
    pub local: Option<SocketAddr>,
}

impl SocketReply {
    /// A failure that opened no socket.
    pub fn failure(errno: i32) -> SocketReply {
        SocketReply { errno, slot: crate::limits::NO_SLOT, generation: 0, local: None }
    }

    /// The request is another transport server's to answer; nothing was opened here.
    pub fn elsewhere(server: u16) -> SocketReply {
        SocketReply { errno: ELSEWHERE, slot: u32::from(server), generation: 0, local: None }
    }

    /// As the payload of a cell.
    pub fn encode(&self) -> ReplyPayload {
        let SocketReply { errno, slot, generation, local } = *self;
        let [a, b, c] = address_words(local);
        [u64::from(errno as u32), pair(slot, generation), a, b, c, 0, 0]
    }

    /// From the payload of a cell.
    pub fn decode(payload: &ReplyPayload) -> Result<SocketReply, Malformed> {
        let (slot, generation) = unpair(payload[1]);
        Ok(SocketReply {
            errno: word32(payload[0])? as i32,
            slot,
            generation,
            local: words_address(&[payload[2], payload[3], payload[4]])?,
        })
    }
}

/// Reply to GetOption and TcpInfo: up to 48 bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// 0 or a positive errno.
    pub errno: i32,
    len: u32,
    bytes: [u8; OPTION_BYTES],
}

impl OptionReply {
    /// A value; bytes beyond the 48th are cut off.
    pub fn value(value: &[u8]) -> OptionReply {
        let len = value.len().min(OPTION_BYTES);
        let mut bytes = [0; OPTION_BYTES];
        bytes[..len].copy_from_slice(&value[..len]);
        OptionReply { errno: 0, len: len as u32, bytes }
    }

    /// A failure.
    pub fn failure(errno: i32) -> OptionReply {
        OptionReply { errno, len: 0, bytes: [0; OPTION_BYTES] }
    }

    /// The value.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }

    /// As the payload of a cell.
    pub fn encode(&self) -> ReplyPayload {
        let mut payload = [0; 7];
        payload[0] = pair(self.errno as u32, self.len);
        for (word, chunk) in payload[1..].iter_mut().zip(self.bytes.chunks_exact(8)) {
            let mut whole = [0; 8];
            whole.copy_from_slice(chunk);
            *word = u64::from_ne_bytes(whole);
        }
        payload
    }

    /// From the payload of a cell.
    pub fn decode(payload: &ReplyPayload) -> Result<OptionReply, Malformed> {
        let (errno, len) = unpair(payload[0]);
        if len as usize > OPTION_BYTES {
            return Err(Malformed);
        }
        let mut bytes = [0; OPTION_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(&payload[1..]) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(OptionReply { errno: errno as i32, len, bytes })
    }
}

/// What the answer to `Route` carries: a destination that is the service's.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RouteAnswer {
    /// Largest IP packet on the way there, as far as known.
    pub mtu: u32,
    /// It is a broadcast address.
    pub broadcast: bool,
    /// It is one of the service's own addresses.
    pub local: bool,
    /// Number of the interface by which the host's kernel reaches the service; 0: none.
    pub interface: u32,
}

impl RouteAnswer {
    /// As the value of an `OptionReply`.
    pub fn encode(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.mtu.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.interface.to_le_bytes());
        bytes[8] = u8::from(self.broadcast);
        bytes[9] = u8::from(self.local);
        bytes
    }

    /// From the value of an `OptionReply`.
    pub fn decode(bytes: &[u8]) -> Result<RouteAnswer, Malformed> {
        let [a, b, c, d, e, f, g, h, broadcast @ 0..=1, local @ 0..=1, 0, 0] = *bytes else {
            return Err(Malformed);
        };
        Ok(RouteAnswer {
            mtu: u32::from_le_bytes([a, b, c, d]),
            interface: u32::from_le_bytes([e, f, g, h]),
            broadcast: broadcast == 1,
            local: local == 1,
        })
    }
}

/// What the answer to `Address` carries: one of the service's own addresses.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AddressAnswer {
    /// The address.
    pub address: IpAddr,
    /// Leading bits that name its network.
    pub prefix_len: u8,
    /// Number of the interface by which the host's kernel reaches the service; 0: none.
    pub interface: u32,
}

impl AddressAnswer {
    /// As the value of an `OptionReply`.
    pub fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..4].copy_from_slice(&self.interface.to_le_bytes());
        bytes[4] = self.prefix_len;
        bytes[5] = if self.address.is_ipv6() { 6 } else { 4 };
        match self.address {
            IpAddr::V4(address) => bytes[8..12].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => bytes[8..].copy_from_slice(&address.octets()),
        }
        bytes
    }

    /// From the value of an `OptionReply`.
    pub fn decode(bytes: &[u8]) -> Result<AddressAnswer, Malformed> {
        let [a, b, c, d, prefix_len, family, 0, 0, octets @ ..] = bytes else {
            return Err(Malformed);
        };
        let address = match (family, octets) {
            (4, [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) => IpAddr::from([*a, *b, *c, *d]),
            (6, octets) => IpAddr::from(<[u8; 16]>::try_from(octets).map_err(|_| Malformed)?),
            _ => return Err(Malformed),
        };
        if *prefix_len > if address.is_ipv6() { 128 } else { 32 } {
            return Err(Malformed);
        }
        let interface = u32::from_le_bytes([*a, *b, *c, *d]);
        Ok(AddressAnswer { address, prefix_len: *prefix_len, interface })
    }
}

/// What the answer to `TakeDatagramError` carries.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct DatagramError {
    /// What it means to the socket, a positive errno.
    pub errno: u8,
    /// `SO_EE_ORIGIN_LOCAL`, `_ICMP` or `_ICMP6`.
    pub origin: u8,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// Where the datagram went.
    pub remote: SocketAddr,
    /// Path MTU, where that was the trouble; else 0.
    pub mtu: u32,
    /// Who sent the error.
    pub offender: Option<IpAddr>,
    /// Bytes of the datagram's payload that can be asked for (`DatagramErrorPayload`).
    pub payload_len: u16,
    /// Tells this error from the one taken after it.
    pub serial: u16,
}

impl DatagramError {
    /// As the value of an `OptionReply`.
    pub fn encode(&self) -> [u8; OPTION_BYTES] {
        let mut bytes = [0; OPTION_BYTES];
        bytes[..4].copy_from_slice(&[self.errno, self.origin, self.kind, self.code]);
        bytes[4..8].copy_from_slice(&self.mtu.to_le_bytes());
        put_ip(Some(self.remote.ip()), &mut bytes[8..25]);
        put_ip(self.offender, &mut bytes[25..42]);
        for (at, field) in [(42, self.remote.port()), (44, self.payload_len), (46, self.serial)] {
            bytes[at..at + 2].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// From the value of an `OptionReply`.
    pub fn decode(bytes: &[u8]) -> Result<DatagramError, Malformed> {
        let bytes: &[u8; OPTION_BYTES] = bytes.try_into().map_err(|_| Malformed)?;
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let remote = take_ip(&bytes[8..25])?.ok_or(Malformed)?;
        Ok(DatagramError {
            errno: bytes[0],
            origin: bytes[1],
            kind: bytes[2],
            code: bytes[3],
            mtu: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            remote: SocketAddr::new(remote, field(42)),
            offender: take_ip(&bytes[25..42])?,
            payload_len: field(44),
            serial: field(46),
        })
    }
}

/// Family (0 none, 4, 6) and 16 bytes.
fn put_ip(ip: Option<IpAddr>, out: &mut [u8]) {
    match ip {
        None => {}
        Some(IpAddr::V4(v4)) => {
            out[0] = 4;
            out[1..5].copy_from_slice(&v4.octets());
        }
        Some(IpAddr::V6(v6)) => {
            out[0] = 6;
            out[1..17].copy_from_slice(&v6.octets());
        }
    }
}

fn take_ip(bytes: &[u8]) -> Result<Option<IpAddr>, Malformed> {
    let (family, rest) = bytes.split_first().ok_or(Malformed)?;
    let address: [u8; 16] = rest.try_into().map_err(|_| Malformed)?;
    match family {
        0 => Ok(None),
        4 => {
            let [a, b, c, d, ..] = address;
            Ok(Some(Ipv4Addr::new(a, b, c, d).into()))
        }
        6 => Ok(Some(Ipv6Addr::from(address).into())),
        _ => Err(Malformed),
    }
}
