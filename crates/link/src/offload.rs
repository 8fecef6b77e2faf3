//! Owns in software what a link with offloads does in its stead: finishing a transport checksum
//! ([`complete_checksum`]) and cutting a superframe into the frames a wire carries ([`segment`]).
//! Called by decorators that must show or damage single frames (`capture.rs`) and by links whose
//! far end takes none. Pure and total: a frame that is not what it should be is left alone.

#[cfg(test)]
mod tests;

use haypile_engine::steering::frames::{
    ETHERNET_HEADER_LEN, EXTENSIONS, EXTENSIONS_MAX, FRAGMENT, FRAGMENT_BITS_V4, IPV6_HEADER_LEN,
    TAGS_MAX, TCP, TYPE_IPV4, TYPE_IPV6, TYPES_VLAN, UDP, VLAN_TAG_LEN,
};

const IPV4_HEADER_LEN: usize = 20;
/// TCP flags in the 14th byte of the header.
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Where the parts of a frame with a whole TCP segment or UDP datagram lie.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// Start of the IP header.
    pub(crate) ip: usize,
    /// Its version is 6.
    pub(crate) is_ipv6: bool,
    /// TCP or UDP.
    pub(crate) protocol: u8,
    /// Start of the transport header.
    pub(crate) transport: usize,
    /// End of the IP packet; padding may follow.
    pub(crate) end: usize,
}

impl Layout {
    /// Reads it off a frame; `None` for everything else, fragments included.
    pub(crate) fn of(frame: &[u8]) -> Option<Layout> {
        let mut ip = ETHERNET_HEADER_LEN;
        for _ in 0..TAGS_MAX {
            if TYPES_VLAN.contains(&read_u16(frame, ip - 2)?) {
                ip += VLAN_TAG_LEN;
            }
        }
        match read_u16(frame, ip - 2)? {
            TYPE_IPV4 => layout_v4(frame, ip),
            TYPE_IPV6 => layout_v6(frame, ip),
            _ => None,
        }
    }

    /// Where the checksum lies.
    fn checksum_at(&self) -> usize {
        self.transport + if self.protocol == TCP { 16 } else { 6 }
    }

    /// Length of the transport header.
    pub(crate) fn transport_header_len(&self, frame: &[u8]) -> Option<usize> {
        let len = match self.protocol {
            TCP => usize::from(*frame.get(self.transport + 12)? >> 4) * 4,
            _ => 8,
        };
        let least = if self.protocol == TCP { 20 } else { 8 };
        (len >= least && self.transport + len <= self.end).then_some(len)
    }

    /// The sum over the pseudo header of a transport segment of `len` bytes.
    fn pseudo_sum(&self, frame: &[u8], len: usize) -> u64 {
        let addresses = match self.is_ipv6 {
            true => &frame[self.ip + 8..self.ip + IPV6_HEADER_LEN],
            false => &frame[self.ip + 12..self.ip + IPV4_HEADER_LEN],
        };
        sum(addresses) + u64::from(self.protocol) + len as u64
    }
}

fn layout_v4(frame: &[u8], ip: usize) -> Option<Layout> {
    let header = frame.get(ip..ip + IPV4_HEADER_LEN)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let end = ip + usize::from(read_u16(header, 2)?);
    let is_fragment = read_u16(header, 6)? & FRAGMENT_BITS_V4 != 0;
    let sound = header[0] >> 4 == 4 && header_len >= IPV4_HEADER_LEN && !is_fragment;
    let layout =
        Layout { ip, is_ipv6: false, protocol: header[9], transport: ip + header_len, end };
    checked(layout, frame).filter(|_| sound)
}

fn layout_v6(frame: &[u8], ip: usize) -> Option<Layout> {
    let header = frame.get(ip..ip + IPV6_HEADER_LEN)?;
    let end = ip + IPV6_HEADER_LEN + usize::from(read_u16(header, 4)?);
    let (mut protocol, mut transport) = (header[6], ip + IPV6_HEADER_LEN);
    for _ in 0..EXTENSIONS_MAX {
        match protocol {
            extension if EXTENSIONS.contains(&extension) => {
                let extension = frame.get(transport..transport + 2)?;
                protocol = extension[0];
                transport += (usize::from(extension[1]) + 1) * 8;
            }
            FRAGMENT => return None,
            _ => break,
        }
    }
    let layout = Layout { ip, is_ipv6: true, protocol, transport, end };
    checked(layout, frame).filter(|_| header[0] >> 4 == 6)
}

/// Only TCP and UDP, and only if their fixed headers lie in the frame.
fn checked(layout: Layout, frame: &[u8]) -> Option<Layout> {
    let least = match layout.protocol {
        TCP => 20,
        UDP => 8,
        _ => return None,
    };
    (layout.transport + least <= layout.end && layout.end <= frame.len()).then_some(layout)
}

/// Writes the right transport checksum into a frame with a TCP segment or UDP datagram, whatever
/// stands in its place; false when the frame holds none.
pub fn complete_checksum(frame: &mut [u8]) -> bool {
    let Some((at, checksum)) = right_checksum(frame) else { return false };
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

/// Where a frame's transport checksum lies, and what it has to be.
pub(crate) fn right_checksum(frame: &[u8]) -> Option<(usize, u16)> {
    let layout = Layout::of(frame)?;
    let at = layout.checksum_at();
    let found = u64::from(read_u16(frame, at)?);
    let data = &frame[layout.transport..layout.end];
    // Taking the field out again: adding the complement of a word subtracts it (RFC 1624).
    let total = layout.pseudo_sum(frame, data.len()) + sum(data) + (0xffff - found);
    Some((at, as_sent(fold(total), layout.protocol)))
}

/// The complement; UDP has no zero checksum (RFC 768).
fn as_sent(folded: u16, protocol: u8) -> u16 {
    if protocol == UDP && folded == 0xffff { 0xffff } else { !folded }
}

/// Writes the segment number `index` of a superframe to the start of `out`, complete with lengths,
/// sequence number, flags and checksums; returns the frame's length. `segment_size`: bytes of
/// payload of each segment. `None` after the last, for frames that are neither TCP nor UDP, for a
/// size of 0, and when `out` is too short.
pub fn segment(frame: &[u8], segment_size: u16, index: usize, out: &mut [u8]) -> Option<usize> {
    let layout = Layout::of(frame)?;
    let header_len = layout.transport + layout.transport_header_len(frame)?;
    let payload = &frame[header_len..layout.end];
    let size = usize::from(segment_size);
    let from = index.checked_mul(size)?;
    if size == 0 || (from >= payload.len() && index > 0) {
        return None;
    }
    let part = &payload[from..payload.len().min(from + size)];
    let len = header_len + part.len();
    let out = out.get_mut(..len)?;
    out[..header_len].copy_from_slice(&frame[..header_len]);
    out[header_len..].copy_from_slice(part);
    let is_last = from + part.len() == payload.len();
    match layout.protocol {
        TCP => fix_tcp(out, layout.transport, from as u32, index == 0, is_last),
        _ => write_u16(out, layout.transport + 4, (len - layout.transport) as u16),
    }
    fix_ip(out, &layout, index as u16);
    complete_checksum(out);
    Some(len)
}

fn fix_tcp(frame: &mut [u8], tcp: usize, from: u32, is_first: bool, is_last: bool) {
    let number = &mut frame[tcp + 4..tcp + 8];
    let sequence = u32::from_be_bytes([number[0], number[1], number[2], number[3]]);
    number.copy_from_slice(&sequence.wrapping_add(from).to_be_bytes());
    if !is_last {
        frame[tcp + 13] &= !FIN_PSH;
    }
    if !is_first {
        frame[tcp + 13] &= !CWR;
    }
}

fn fix_ip(frame: &mut [u8], layout: &Layout, index: u16) {
    let (ip, len) = (layout.ip, frame.len());
    if layout.is_ipv6 {
        return write_u16(frame, ip + 4, (len - ip - IPV6_HEADER_LEN) as u16);
    }
    let identification = read_u16(frame, ip + 4).unwrap_or_default().wrapping_add(index);
    write_u16(frame, ip + 2, (len - ip) as u16);
    write_u16(frame, ip + 4, identification);
    write_u16(frame, ip + 10, 0);
    let checksum = !fold(sum(&frame[ip..layout.transport]));
    write_u16(frame, ip + 10, checksum);
}

/// The sum of big-endian 16-bit words (RFC 1071), unfolded; an odd last byte counts as its high one.
fn sum(bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<4>();
    let whole: u64 = chunks.iter().map(|chunk| u64::from(u32::from_be_bytes(*chunk))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    whole + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum of 16-bit and 32-bit words.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
