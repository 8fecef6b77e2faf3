//! Every message between an application and the service, and between servers, typed, with its encoding in eight words.
//! Knows what the words mean, not where they travel: `channel` (rings, reply cells) and `control`
//! (the control connection) do that.
//!
//! Every decoder is total: any eight words give a value or [`Malformed`], never a panic, and
//! encoding what was decoded gives the same words again but for bits that mean nothing.

mod control;
mod reply;
mod request;
mod server;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use control::{
    CHOSEN_HOME, ControlReply, ControlRequest, DOMAIN_TOKEN_BYTES, SocketKind, home_of_name,
};
pub use reply::{
    AddressAnswer, DatagramError, ELSEWHERE, NOT_OURS, OPTION_BYTES, OptionReply, ReplyPayload,
    RouteAnswer, SocketReply,
};
pub use request::{OPTION_MORE, Request, RequestBody, RequestHeader, Shutdown};
pub use server::{SERVER_MESSAGE_VERSION, ServerConnection, ServerMessage, ServerMessageKind};

/// One message: a cache line. The upper half of the last word is 0 in all messages that go on a
/// ring, which puts its stamp there (`ring`); those of the control connection use it.
pub type Message = [u64; 8];

/// Readiness bits and masks: the values of poll(2) and epoll(7).
pub mod ready {
    /// There is something to read, or to accept.
    pub const IN: u32 = 0x1;
    /// There is urgent data.
    pub const PRI: u32 = 0x2;
    /// There is room to write.
    pub const OUT: u32 = 0x4;
    /// An error is pending.
    pub const ERR: u32 = 0x8;
    /// Both directions are done.
    pub const HUP: u32 = 0x10;
    /// The peer sends no more.
    pub const RDHUP: u32 = 0x2000;
    /// All of them.
    pub const ALL: u32 = IN | PRI | OUT | ERR | HUP | RDHUP;
    /// In [`Ready`](super::Ready) only: nothing need have happened, this answers WATCH or DRAINED.
    pub const ANSWER: u32 = 0x8000_0000;
}

/// A message that no sender of this version makes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Malformed;

impl core::fmt::Display for Malformed {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.write_str("malformed message")
    }
}

impl core::error::Error for Malformed {}

/// READY (service to application, watcher ring): look at this socket.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The socket.
    pub slot: u32,
    /// Its generation.
    pub generation: u32,
    /// What it was ready for when the message was sent ([`ready`]); a hint, the state is in the
    /// record.
    pub bits: u32,
}

/// OFFER (service to application, offers ring): this connection may be claimed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The listener it came to.
    pub listener: u32,
    /// The listener's generation.
    pub listener_generation: u32,
    /// The connection.
    pub slot: u32,
    /// Its generation.
    pub generation: u32,
}

const READY_KIND: u64 = 0x101;
const OFFER_KIND: u64 = 0x102;

impl Ready {
    /// As a message.
    pub fn encode(&self) -> Message {
        let Ready { slot, generation, bits } = *self;
        [READY_KIND, pair(slot, generation), u64::from(bits), 0, 0, 0, 0, 0]
    }

    /// From a message.
    pub fn decode(message: &Message) -> Result<Ready, Malformed> {
        if message[0] != READY_KIND {
            return Err(Malformed);
        }
        let (slot, generation) = unpair(message[1]);
        Ok(Ready { slot, generation, bits: word32(message[2])? })
    }
}

impl Offer {
    /// As a message.
    pub fn encode(&self) -> Message {
        let Offer { listener, listener_generation, slot, generation } = *self;
        let connection = pair(slot, generation);
        [OFFER_KIND, pair(listener, listener_generation), connection, 0, 0, 0, 0, 0]
    }

    /// From a message.
    pub fn decode(message: &Message) -> Result<Offer, Malformed> {
        if message[0] != OFFER_KIND {
            return Err(Malformed);
        }
        let (listener, listener_generation) = unpair(message[1]);
        let (slot, generation) = unpair(message[2]);
        Ok(Offer { listener, listener_generation, slot, generation })
    }
}

/// An address in five 32-bit words: family (0 none, 4, 6) and port, then 16 bytes.
pub(crate) fn encode_address(address: Option<SocketAddr>) -> [u32; 5] {
    let mut bytes = [0u8; 16];
    let (family, port) = match address {
        None => (0, 0),
        Some(SocketAddr::V4(v4)) => {
            bytes[..4].copy_from_slice(&v4.ip().octets());
            (4, v4.port())
        }
        Some(SocketAddr::V6(v6)) => {
            bytes = v6.ip().octets();
            (6, v6.port())
        }
    };
    let mut words = [family | u32::from(port) << 16, 0, 0, 0, 0];
    for (word, chunk) in words[1..].iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    words
}

/// The reverse of [`encode_address`].
pub(crate) fn decode_address(words: [u32; 5]) -> Result<Option<SocketAddr>, Malformed> {
    let mut bytes = [0u8; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(&words[1..]) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    let port = (words[0] >> 16) as u16;
    let ip: IpAddr = match words[0] & 0xffff {
        0 => return Ok(None),
        4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        6 => Ipv6Addr::from(bytes).into(),
        _ => return Err(Malformed),
    };
    Ok(Some(SocketAddr::new(ip, port)))
}

/// An address in three message words.
fn address_words(address: Option<SocketAddr>) -> [u64; 3] {
    let words = encode_address(address);
    [pair(words[0], words[1]), pair(words[2], words[3]), u64::from(words[4])]
}

fn words_address(words: &[u64; 3]) -> Result<Option<SocketAddr>, Malformed> {
    let ((a, b), (c, d)) = (unpair(words[0]), unpair(words[1]));
    decode_address([a, b, c, d, word32(words[2])?])
}

/// Two 32-bit values in a word, the first in the low half.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn unpair(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

fn word32(word: u64) -> Result<u32, Malformed> {
    u32::try_from(word).map_err(|_| Malformed)
}

/// Decodes bytes as every kind of message, for fuzzing: whatever they are, nothing panics, and
/// what decodes is the same after another encoding.
pub fn fuzz_decode(bytes: &[u8]) {
    for piece in bytes.chunks(64) {
        if let Ok(record) = piece.try_into()
            && let Ok(value) = crate::DatagramHeader::decode(record)
        {
            assert_eq!(crate::DatagramHeader::decode(&value.encode()), Ok(value));
        }
        let mut message: Message = [0; 8];
        for (word, part) in message.iter_mut().zip(piece.chunks(8)) {
            let mut whole = [0u8; 8];
            whole[..part.len()].copy_from_slice(part);
            *word = u64::from_ne_bytes(whole);
        }
        fuzz_decode_message(&message);
    }
}

fn fuzz_decode_message(message: &Message) {
    // The upper half of the last word is the ring's.
    let fits = |message: Message| assert!(message[7] >> 32 == 0, "{message:?}");
    if let Ok(value) = Request::decode(message) {
        fits(value.encode());
        assert_eq!(Request::decode(&value.encode()), Ok(value));
    }
    if let Ok(value) = Ready::decode(message) {
        fits(value.encode());
        assert_eq!(Ready::decode(&value.encode()), Ok(value));
    }
    if let Ok(value) = Offer::decode(message) {
        fits(value.encode());
        assert_eq!(Offer::decode(&value.encode()), Ok(value));
    }
    if let Ok(value) = ServerMessage::decode(message) {
        fits(value.encode());
        assert_eq!(ServerMessage::decode(&value.encode()), Ok(value));
    }
    if let Ok(value) = ControlRequest::decode(message) {
        assert_eq!(ControlRequest::decode(&value.encode()), Ok(value));
    }
    if let Ok(value) = ControlReply::decode(message) {
        assert_eq!(ControlReply::decode(&value.encode()), Ok(value));
    }
    let payload: &ReplyPayload = &core::array::from_fn(|index| message[index]);
    if let Ok(value) = SocketReply::decode(payload) {
        assert_eq!(SocketReply::decode(&value.encode()), Ok(value));
    }
    if let Ok(value) = OptionReply::decode(payload) {
        assert_eq!(OptionReply::decode(&value.encode()), Ok(value));
        if let Ok(error) = DatagramError::decode(value.bytes()) {
            assert_eq!(DatagramError::decode(&error.encode()), Ok(error));
        }
        if let Ok(answer) = RouteAnswer::decode(value.bytes()) {
            assert_eq!(RouteAnswer::decode(&answer.encode()), Ok(answer));
        }
        if let Ok(answer) = AddressAnswer::decode(value.bytes()) {
            assert_eq!(AddressAnswer::decode(&answer.encode()), Ok(answer));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
