//! Replies: service to application, in a reply cell, seven words. Which of the two shapes a reply
//! has follows from the request.

use std::net::SocketAddr;

use super::{Malformed, address_words, pair, unpair, word32, words_address};

/// What a reply cell carries.
pub type ReplyPayload = [u64; 7];

/// The errno of a reply that means: this address is not ours, let the kernel do it.
pub const NOT_OURS: i32 = -1;

/// Bytes of an option value that fit in a reply.
pub const OPTION_BYTES: usize = 48;

/// Reply to Bind, Listen, Connect, Open and SetOption.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SocketReply {
    /// 0, a positive errno, or [`NOT_OURS`].
    pub errno: i32,
    /// The socket; `NO_SLOT` on failure to open one.
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
