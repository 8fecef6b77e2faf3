//! A link that does what network cards do: finishes checksums, cuts superframes into segments, and merges segments
//! that arrive together. Called by [`crate::host`]. Written without the product's code, so that both check each other.

use haypile_engine::TxMeta;

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const FIN_PSH: u8 = 0x09;
const ACK_PSH: u8 = 0x18;
const ACK: u8 = 0x10;
/// Bytes of the largest packet that merging makes.
const PACKET_MAX: usize = 65_535;

/// The frames that a frame becomes on the wire: itself, or its segments, all with complete checksums.
///
/// # Panics
/// When the engine asks for something that no link can do.
pub fn to_wire(frame: &[u8], meta: &TxMeta) -> Vec<Vec<u8>> {
    let Some(checksum) = meta.checksum else {
        assert_eq!(meta.segment_size, 0, "a superframe with a complete checksum");
        return vec![frame.to_vec()];
    };
    let (start, at) = (usize::from(checksum.start), usize::from(checksum.start + checksum.offset));
    if meta.segment_size == 0 {
        let mut whole = frame.to_vec();
        let sum = finished(&whole[start..]);
        whole[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        return vec![whole];
    }
    let header_len = start + usize::from(frame[start + 12] >> 4) * 4;
    let (header, payload) = frame.split_at(header_len);
    let size = usize::from(meta.segment_size);
    assert!(payload.len() > size, "a superframe of one segment");
    let count = payload.len().div_ceil(size);
    let cut = |(number, part): (usize, &[u8])| {
        let mut segment = [header, part].concat();
        let sequence = number_at(header, start + 4).wrapping_add((number * size) as u32);
        segment[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
        if number + 1 < count {
            segment[start + 13] &= !FIN_PSH;
        }
        set_packet_len(&mut segment);
        let sum = !fold(transport_sum(&segment, start) - u64::from(word_at(&segment, at)));
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    };
    payload.chunks(size).enumerate().map(cut).collect()
}

/// Merges what may be merged of frames that arrive one after another, as a card or a kernel does before the stack
/// sees them. Gives each frame with the size of its segments, 0 for one as it came.
pub fn merge(frames: Vec<Vec<u8>>) -> Vec<(Vec<u8>, u16)> {
    let mut merged: Vec<(Vec<u8>, u16)> = Vec::new();
    for frame in frames {
        if let Some((last, size)) = merged.last_mut()
            && let Some(part) = joins(last, *size, &frame)
        {
            *size = part;
            let header_len = header_len(&frame).unwrap_or(frame.len());
            last.extend_from_slice(&frame[header_len..]);
            last[transport_at(&frame) + 13] |= frame[transport_at(&frame) + 13];
            set_packet_len(last);
        } else {
            merged.push((frame, 0));
        }
    }
    merged
}

/// Whether `next` continues `first`; the size of the segments then.
fn joins(first: &[u8], size: u16, next: &[u8]) -> Option<u16> {
    let (len, next_len) = (header_len(first)?, header_len(next)?);
    let tcp = transport_at(first);
    let (payload, part) = (first.len() - len, next.len() - next_len);
    let size = if size == 0 { payload } else { usize::from(size) };
    let sequence = number_at(first, tcp + 4).wrapping_add(payload as u32);
    let same = len == next_len
        && first[..ETHERNET] == next[..ETHERNET]
        && addresses(first) == addresses(next)
        && first[tcp..tcp + 4] == next[tcp..tcp + 4]
        && first[tcp + 8..tcp + 12] == next[tcp + 8..tcp + 12]
        && first[tcp + 14..tcp + 16] == next[tcp + 14..tcp + 16]
        && first[tcp + 20..len] == next[tcp + 20..len];
    let follows = sequence == number_at(next, tcp + 4)
        && first[tcp + 13] == ACK
        && matches!(next[tcp + 13], ACK | ACK_PSH)
        && part > 0
        && part <= size
        && payload % size.max(1) == 0
        && first.len() + part <= PACKET_MAX;
    let intact = fold(transport_sum(next, tcp)) == 0xffff
        && (size < payload || fold(transport_sum(first, tcp)) == 0xffff);
    (same && follows && intact).then_some(size as u16)
}

/// Length of the headers of an unfragmented TCP segment over an IP header without options whose packet fills the
/// frame; none for everything else.
fn header_len(frame: &[u8]) -> Option<usize> {
    let tcp = transport_at(frame);
    let (version, protocol, packet_len) = match frame.get(12..14)? {
        [8, 0] => (0x45, *frame.get(23)?, usize::from(word_at(frame, 16))),
        [0x86, 0xdd] if frame.len() > 54 => {
            (frame[14] & 0xf0, frame[20], 40 + usize::from(word_at(frame, 18)))
        }
        _ => return None,
    };
    let is_fragment = version == 0x45 && word_at(frame, 20) & 0x3fff != 0;
    let sound = frame[14] & 0xf0 == version & 0xf0 && (version != 0x45 || frame[14] == 0x45);
    let len = tcp + usize::from(*frame.get(tcp + 12)? >> 4) * 4;
    let whole = packet_len + ETHERNET == frame.len() && len >= tcp + 20 && len <= frame.len();
    let intact = version != 0x45 || fold(sum(&frame[14..34])) == 0xffff;
    (sound && protocol == TCP && !is_fragment && whole && intact).then_some(len)
}

fn transport_at(frame: &[u8]) -> usize {
    if frame.get(12) == Some(&0x86) { 54 } else { 34 }
}

fn addresses(frame: &[u8]) -> &[u8] {
    if frame[12] == 0x86 { &frame[22..54] } else { &frame[26..34] }
}

fn set_packet_len(frame: &mut [u8]) {
    let len = frame.len();
    if frame[12] == 0x86 {
        frame[18..20].copy_from_slice(&((len - 54) as u16).to_be_bytes());
        return;
    }
    frame[16..18].copy_from_slice(&((len - ETHERNET) as u16).to_be_bytes());
    frame[24..26].fill(0);
    let checksum = !fold(sum(&frame[14..34]));
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

/// The sum over pseudo header and segment.
fn transport_sum(frame: &[u8], tcp: usize) -> u64 {
    sum(addresses(frame)) + u64::from(TCP) + (frame.len() - tcp) as u64 + sum(&frame[tcp..])
}

/// The complement of the sum over bytes that hold the sum of the pseudo header.
fn finished(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low)))
        .sum()
}

fn fold(sum: u64) -> u16 {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn word_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn number_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(word_at(bytes, at)) << 16 | u32::from(word_at(bytes, at + 2))
}
