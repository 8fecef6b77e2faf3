//! Datagrams in a byte FIFO: one record each, a header of 64 bytes and the payload after it, filled
//! up to a multiple of eight. The stream's positions count the bytes of records, so that datagrams
//! need no memory management of their own (docs/decisions/0007).
//!
//! ```text
//! word  0: payload bytes        word  1: version u8, flags u8, segment size u16
//! words 2..7: remote address    words 7..12: local address
//! word 12: hop limit u8, type of service u8, zero u16
//! word 13: datagrams dropped    words 14..16: time, nanoseconds since 1970
//! ```
//!
//! Written by `ServiceStream::push_record` and read by `AppStream::read_record` on the way in, and
//! by `AppStream::write_record` and `ServiceStream::peek_record` on the way out. Knows no protocol:
//! what the fields mean is between the engine and the application.

use std::net::SocketAddr;

use crate::messages::{Malformed, decode_address, encode_address};

/// Bytes of a record before its payload.
pub const RECORD_HEADER: usize = 64;
/// Most bytes of payload in a record.
pub const RECORD_PAYLOAD_MAX: usize = u16::MAX as usize;
/// Most bytes of a whole record.
pub const RECORD_MAX: usize = record_bytes(RECORD_PAYLOAD_MAX);

/// Version of the record's layout.
const VERSION: u8 = 1;
const HAS_HOP_LIMIT: u8 = 1;
const HAS_TYPE_OF_SERVICE: u8 = 2;
const FLAGS: u8 = HAS_HOP_LIMIT | HAS_TYPE_OF_SERVICE;

/// Bytes of a record with a payload of `len` bytes.
pub const fn record_bytes(len: usize) -> usize {
    RECORD_HEADER + len.next_multiple_of(8)
}

/// What a record says of its datagram.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct DatagramHeader {
    /// Bytes of payload.
    pub len: u16,
    /// Received: where it came from. To be sent: where to; `None`: to the connected peer.
    pub remote: Option<SocketAddr>,
    /// Received: the address it was sent to. To be sent: the source address; `None`: as usual.
    pub local: Option<SocketAddr>,
    /// Received: of the packet. To be sent: for this one.
    pub hop_limit: Option<u8>,
    /// Received: of the packet. To be sent: for this one.
    pub type_of_service: Option<u8>,
    /// To be sent: cut the payload into datagrams of so many bytes; 0: one.
    pub segment_size: u16,
    /// Received: datagrams that the socket had dropped until then, modulo 2^32.
    pub drops: u32,
    /// Received: when, in nanoseconds since 1970; 0: not noted.
    pub time_ns: u64,
}

impl DatagramHeader {
    /// As bytes.
    pub fn encode(&self) -> [u8; RECORD_HEADER] {
        let flags = if self.hop_limit.is_some() { HAS_HOP_LIMIT } else { 0 }
            | if self.type_of_service.is_some() { HAS_TYPE_OF_SERVICE } else { 0 };
        let mut words = [0u32; RECORD_HEADER / 4];
        words[0] = u32::from(self.len);
        words[1] = u32::from_le_bytes([VERSION, flags, 0, 0]) | u32::from(self.segment_size) << 16;
        words[2..7].copy_from_slice(&encode_address(self.remote));
        words[7..12].copy_from_slice(&encode_address(self.local));
        let hop_limit = self.hop_limit.unwrap_or(0);
        words[12] = u32::from_le_bytes([hop_limit, self.type_of_service.unwrap_or(0), 0, 0]);
        words[13] = self.drops;
        words[14] = self.time_ns as u32;
        words[15] = (self.time_ns >> 32) as u32;
        let mut bytes = [0; RECORD_HEADER];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From bytes, whatever they are.
    ///
    /// # Errors
    /// [`Malformed`] for what [`DatagramHeader::encode`] never makes.
    pub fn decode(bytes: &[u8; RECORD_HEADER]) -> Result<DatagramHeader, Malformed> {
        let mut words = [0u32; RECORD_HEADER / 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        let [version, flags, ..] = words[1].to_le_bytes();
        let [hop_limit, type_of_service, rest @ ..] = words[12].to_le_bytes();
        if version != VERSION || flags & !FLAGS != 0 || rest != [0, 0] {
            return Err(Malformed);
        }
        let five = |from: usize| core::array::from_fn(|index| words[from + index]);
        Ok(DatagramHeader {
            len: u16::try_from(words[0]).map_err(|_| Malformed)?,
            remote: decode_address(five(2))?,
            local: decode_address(five(7))?,
            hop_limit: (flags & HAS_HOP_LIMIT != 0).then_some(hop_limit),
            type_of_service: (flags & HAS_TYPE_OF_SERVICE != 0).then_some(type_of_service),
            segment_size: (words[1] >> 16) as u16,
            drops: words[13],
            time_ns: u64::from(words[14]) | u64::from(words[15]) << 32,
        })
    }

    /// Bytes of the whole record.
    pub fn record_bytes(&self) -> usize {
        record_bytes(usize::from(self.len))
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
