//! The TCP header codec: bytes to [`Segment`] and [`Outgoing`] to bytes.
//!
//! Owns the wire layout of RFC 9293 section 3.1 and of the options of RFC 6691, RFC 7323 and
//! RFC 2018. The shard calls [`Segment::parse`] on receive and [`Outgoing::emit`] on transmit; both
//! leave the checksum to the shard, which knows the pseudo header. Parsing never fails on options:
//! like Linux it stops at the first one that makes no sense and keeps what came before.

use std::fmt;
use std::ops::{Add, BitOr};

/// Bytes of a TCP header without options.
pub const HEADER_LEN: usize = 20;
/// Bytes of the longest TCP header: the data offset field counts up to 15 words.
pub const HEADER_LEN_MAX: usize = 60;
/// Largest window scale shift, RFC 7323 section 2.3.
pub const WINDOW_SCALE_MAX: u8 = 14;
/// Bytes the timestamps option occupies in a header, with its two NOPs.
pub const TIMESTAMPS_LEN: usize = 12;
/// Most SACK blocks one header can carry.
pub const SACK_BLOCKS_MAX: usize = 4;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_WINDOW_SCALE: u8 = 3;
const OPTION_SACK_PERMITTED: u8 = 4;
const OPTION_SACK: u8 = 5;
const OPTION_TIMESTAMPS: u8 = 8;

/// A 32-bit sequence number; compares modulo 2^32 (RFC 9293 section 3.4).
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct SeqNumber(u32);

impl SeqNumber {
    /// The sequence number with this value on the wire.
    pub const fn new(value: u32) -> SeqNumber {
        SeqNumber(value)
    }

    /// The value on the wire.
    pub const fn value(self) -> u32 {
        self.0
    }

    /// How far `self` lies ahead of `other`; negative when it lies behind.
    pub const fn distance(self, other: SeqNumber) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }

    /// True when `self` comes before `other`.
    pub const fn lt(self, other: SeqNumber) -> bool {
        self.distance(other) < 0
    }

    /// True when `self` comes before `other` or is equal to it.
    pub const fn le(self, other: SeqNumber) -> bool {
        self.distance(other) <= 0
    }
}

impl Add<u32> for SeqNumber {
    type Output = SeqNumber;

    fn add(self, count: u32) -> SeqNumber {
        SeqNumber(self.0.wrapping_add(count))
    }
}

/// The control bits of a segment.
#[derive(Copy, Clone, PartialEq, Eq, Default, Hash)]
pub struct Flags(u8);

impl Flags {
    /// No bit set.
    pub const NONE: Flags = Flags(0);
    /// No more data from the sender.
    pub const FIN: Flags = Flags(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Flags = Flags(0x02);
    /// Reset the connection.
    pub const RST: Flags = Flags(0x04);
    /// Hand the data to the application without waiting for more.
    pub const PSH: Flags = Flags(0x08);
    /// The acknowledgement field counts.
    pub const ACK: Flags = Flags(0x10);
    /// The urgent pointer counts.
    pub const URG: Flags = Flags(0x20);
    /// Echo of congestion, RFC 3168.
    pub const ECE: Flags = Flags(0x40);
    /// Congestion window reduced, RFC 3168.
    pub const CWR: Flags = Flags(0x80);

    /// The flags with these bits, as in the header's flags byte.
    pub const fn from_bits(bits: u8) -> Flags {
        Flags(bits)
    }

    /// The header's flags byte.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// True when every bit of `other` is set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LETTERS: [char; 8] = ['F', 'S', 'R', 'P', 'A', 'U', 'E', 'C'];
        let set = (0..8).filter(|bit| self.0 & (1 << bit) != 0);
        let text: String = set.map(|bit| LETTERS[bit]).collect();
        formatter.write_str(if text.is_empty() { "-" } else { &text })
    }
}

/// The timestamps option, RFC 7323 section 3.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Timestamps {
    /// TSval: the sender's clock.
    pub value: u32,
    /// TSecr: the latest timestamp the sender got; counts only with ACK.
    pub echo: u32,
}

/// The options of one header.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Largest segment the sender takes, RFC 6691; meaningful on SYN only.
    pub mss: Option<u16>,
    /// Window scale shift, at most 14; meaningful on SYN only.
    pub window_scale: Option<u8>,
    /// The sender takes SACK blocks; meaningful on SYN only.
    pub sack_permitted: bool,
    /// Timestamps.
    pub timestamps: Option<Timestamps>,
    /// SACK blocks as (first sequence number, one past the last); `sack_len` of them count.
    pub sack: [(SeqNumber, SeqNumber); SACK_BLOCKS_MAX],
    /// Number of SACK blocks, at most 4 (3 beside timestamps).
    pub sack_len: u8,
}

impl Options {
    /// Reads options until the end, the end-of-options byte, or the first malformed one.
    pub fn parse(mut bytes: &[u8]) -> Options {
        let mut options = Options::default();
        while let [kind, rest @ ..] = bytes {
            match *kind {
                OPTION_END => break,
                OPTION_NOP => bytes = rest,
                kind => {
                    let Some(&len) = rest.first() else { break };
                    let Some(body) = bytes.get(2..usize::from(len)) else { break };
                    options.take(kind, body);
                    bytes = &bytes[usize::from(len)..];
                }
            }
        }
        options
    }

    /// Keeps one option; a known kind with a wrong length is ignored.
    fn take(&mut self, kind: u8, body: &[u8]) {
        match (kind, body) {
            (OPTION_MSS, &[high, low]) => self.mss = Some(u16::from_be_bytes([high, low])),
            (OPTION_WINDOW_SCALE, &[shift]) => {
                self.window_scale = Some(shift.min(WINDOW_SCALE_MAX));
            }
            (OPTION_SACK_PERMITTED, []) => self.sack_permitted = true,
            (OPTION_TIMESTAMPS, body) if body.len() == 8 => {
                self.timestamps =
                    Some(Timestamps { value: read_u32(&body[..4]), echo: read_u32(&body[4..]) });
            }
            (OPTION_SACK, body) if body.len() % 8 == 0 && body.len() <= 8 * SACK_BLOCKS_MAX => {
                for (block, bytes) in self.sack.iter_mut().zip(body.chunks_exact(8)) {
                    *block = (SeqNumber(read_u32(&bytes[..4])), SeqNumber(read_u32(&bytes[4..])));
                }
                self.sack_len = (body.len() / 8) as u8;
            }
            _ => {}
        }
    }

    /// SACK blocks that count.
    pub fn sack_blocks(&self) -> &[(SeqNumber, SeqNumber)] {
        let len = usize::from(self.sack_len).min(SACK_BLOCKS_MAX);
        &self.sack[..len]
    }

    /// SACK blocks there is room for: four, or three beside timestamps.
    fn sack_blocks_sent(&self) -> &[(SeqNumber, SeqNumber)] {
        let room = if self.timestamps.is_some() { SACK_BLOCKS_MAX - 1 } else { SACK_BLOCKS_MAX };
        let blocks = self.sack_blocks();
        &blocks[..blocks.len().min(room)]
    }

    /// Bytes these options take in a header; a multiple of four.
    ///
    /// SACK blocks are left out where they do not fit, which happens beside SYN options only.
    pub fn encoded_len(&self) -> usize {
        let mut len = if self.mss.is_some() { 4 } else { 0 };
        len += match (self.timestamps.is_some(), self.sack_permitted) {
            (true, _) => TIMESTAMPS_LEN,
            (false, true) => 4,
            (false, false) => 0,
        };
        len += if self.window_scale.is_some() { 4 } else { 0 };
        let sack_len = match self.sack_blocks_sent().len() {
            0 => 0,
            blocks => 4 + 8 * blocks,
        };
        if len + sack_len <= HEADER_LEN_MAX - HEADER_LEN { len + sack_len } else { len }
    }

    /// Writes the options into `out`, which has exactly [`Options::encoded_len`] bytes, in the order
    /// and with the padding that Linux uses.
    fn emit(&self, out: &mut [u8]) {
        let mut writer = Writer { out, at: 0 };
        if let Some(mss) = self.mss {
            writer.bytes(&[OPTION_MSS, 4]);
            writer.bytes(&mss.to_be_bytes());
        }
        if let Some(timestamps) = self.timestamps {
            let pad =
                if self.sack_permitted { [OPTION_SACK_PERMITTED, 2] } else { [OPTION_NOP; 2] };
            writer.bytes(&pad);
            writer.bytes(&[OPTION_TIMESTAMPS, 10]);
            writer.bytes(&timestamps.value.to_be_bytes());
            writer.bytes(&timestamps.echo.to_be_bytes());
        } else if self.sack_permitted {
            writer.bytes(&[OPTION_NOP, OPTION_NOP, OPTION_SACK_PERMITTED, 2]);
        }
        if let Some(shift) = self.window_scale {
            writer.bytes(&[OPTION_NOP, OPTION_WINDOW_SCALE, 3, shift]);
        }
        let blocks = self.sack_blocks_sent();
        if writer.at < writer.out.len() && !blocks.is_empty() {
            writer.bytes(&[OPTION_NOP, OPTION_NOP, OPTION_SACK, 2 + 8 * blocks.len() as u8]);
            for (first, end) in blocks {
                writer.bytes(&first.0.to_be_bytes());
                writer.bytes(&end.0.to_be_bytes());
            }
        }
    }
}

/// Why bytes are no TCP segment.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Fewer bytes than a header, or than its data offset says.
    Truncated,
    /// The data offset is below five words.
    DataOffset,
}

/// A received segment; the payload borrows from the frame.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// SEG.SEQ: sequence number of the first payload byte, or of the SYN.
    pub seq: SeqNumber,
    /// SEG.ACK; counts only with [`Flags::ACK`].
    pub ack: SeqNumber,
    /// Control bits.
    pub flags: Flags,
    /// SEG.WND as on the wire, not scaled.
    pub window: u16,
    /// SEG.UP; read for completeness, the stack ignores urgency.
    pub urgent: u16,
    /// Options.
    pub options: Options,
    /// Payload.
    pub payload: &'a [u8],
    /// 0 = one segment; else the link has merged several, all but the last of this payload.
    pub segment_size: u16,
}

impl<'a> Segment<'a> {
    /// Takes the header apart. The checksum is not looked at.
    ///
    /// # Errors
    /// [`Malformed`] when the header does not fit; bad options are no error.
    pub fn parse(bytes: &'a [u8]) -> Result<Segment<'a>, Malformed> {
        let header = bytes.get(..HEADER_LEN).ok_or(Malformed::Truncated)?;
        let header_len = usize::from(header[12] >> 4) * 4;
        if header_len < HEADER_LEN {
            return Err(Malformed::DataOffset);
        }
        let options = bytes.get(HEADER_LEN..header_len).ok_or(Malformed::Truncated)?;
        Ok(Segment {
            source_port: read_u16(&header[0..2]),
            destination_port: read_u16(&header[2..4]),
            seq: SeqNumber(read_u32(&header[4..8])),
            ack: SeqNumber(read_u32(&header[8..12])),
            flags: Flags(header[13]),
            window: read_u16(&header[14..16]),
            urgent: read_u16(&header[18..20]),
            options: Options::parse(options),
            payload: &bytes[header_len..],
            segment_size: 0,
        })
    }

    /// How many segments of the wire it stands for: 1 unless the link has merged some.
    pub fn count(&self) -> u64 {
        match self.segment_size {
            0 => 1,
            size => (self.payload.len() as u64).div_ceil(u64::from(size)).max(1),
        }
    }

    /// SEG.LEN: the sequence numbers this segment occupies, SYN and FIN included.
    pub fn sequence_len(&self) -> u32 {
        self.payload.len() as u32
            + u32::from(self.flags.contains(Flags::SYN))
            + u32::from(self.flags.contains(Flags::FIN))
    }
}

/// A segment to send: header fields, and where in the send stream its payload lies.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Outgoing {
    /// Sequence number.
    pub seq: SeqNumber,
    /// Acknowledgement number; zero without [`Flags::ACK`].
    pub ack: SeqNumber,
    /// Control bits.
    pub flags: Flags,
    /// Window as it goes on the wire, already scaled.
    pub window: u16,
    /// Options.
    pub options: Options,
    /// Stream position of the first payload byte, in bytes since the start of the send stream.
    pub payload_position: u64,
    /// Payload bytes.
    pub payload_len: usize,
    /// 0 = one segment; else the payload is cut into segments of this many bytes and a shorter last
    /// one, all with this header's options.
    pub segment_size: u16,
}

impl Outgoing {
    /// How many segments of the wire it becomes: 1 unless it is cut.
    pub fn count(&self) -> u32 {
        match usize::from(self.segment_size) {
            0 => 1,
            size => self.payload_len.div_ceil(size).max(1) as u32,
        }
    }

    /// Bytes of the header with its options.
    pub fn header_len(&self) -> usize {
        HEADER_LEN + self.options.encoded_len()
    }

    /// Writes header and payload to the start of `out`, which must hold both, and returns their
    /// length. `fill_payload` gets exactly the payload's place. The checksum field is left zero.
    pub fn emit(
        &self,
        source_port: u16,
        destination_port: u16,
        out: &mut [u8],
        fill_payload: impl FnOnce(&mut [u8]),
    ) -> usize {
        let header_len = self.header_len();
        let total = header_len + self.payload_len;
        let (header, payload) = out[..total].split_at_mut(header_len);
        let mut writer = Writer { out: header, at: 0 };
        writer.bytes(&source_port.to_be_bytes());
        writer.bytes(&destination_port.to_be_bytes());
        writer.bytes(&self.seq.0.to_be_bytes());
        writer.bytes(&self.ack.0.to_be_bytes());
        writer.bytes(&[(header_len as u8 / 4) << 4, self.flags.0]);
        writer.bytes(&self.window.to_be_bytes());
        writer.bytes(&[0; 4]);
        self.options.emit(&mut header[HEADER_LEN..]);
        if !payload.is_empty() {
            fill_payload(payload);
        }
        total
    }
}

/// Appends bytes to a slice.
struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

/// Reads two bytes in network order; `bytes` is two long.
fn read_u16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// Reads four bytes in network order; `bytes` is four long.
fn read_u32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests;
