//! Owns the 12-byte header that precedes each frame on a TAP opened with IFF_VNET_HDR (virtio 1.2,
//! section 5.1.6, `struct virtio_net_hdr` with `num_buffers`; all fields little-endian), and of which
//! packet sockets have the first 10 bytes. Called by `tap.rs` and `packet.rs` for each frame; pure.

use haypile_engine::steering::frames::TYPE_IPV6;

use crate::offload::read_u16;
use crate::port::{ETHERNET_HEADER_LEN, PartialChecksum};

/// Where the data offset and the flags lie in a TCP header, and the flag CWR.
const TCP_DATA_OFFSET_AT: usize = 12;
const TCP_FLAGS_AT: usize = 13;
const TCP_CWR: u8 = 0x80;

/// Length of the header, in bytes.
pub(crate) const HEADER_LEN: usize = 12;

/// The checksum field holds only the pseudo header's sum: the sender left the rest to the device.
const NEEDS_CSUM: u8 = 1;
/// The checksum was verified by whoever handed the frame over.
const DATA_VALID: u8 = 2;
/// The frame is one packet, not a batch to be segmented.
const GSO_NONE: u8 = 0;
/// A batch of TCP segments over IPv4.
const GSO_TCPV4: u8 = 1;
/// A batch of TCP segments over IPv6.
const GSO_TCPV6: u8 = 4;
/// A batch of UDP datagrams.
const GSO_UDP_L4: u8 = 5;
/// The first segment carries CWR, the others do not (RFC 3168).
const GSO_ECN: u8 = 0x80;

/// What a received header says of its frame.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct RxHeader {
    /// The transport checksum was verified.
    pub(crate) data_valid: bool,
    /// The transport checksum was left unfinished; the data never left this machine's memory.
    pub(crate) needs_checksum: bool,
    /// What the frame holds.
    pub(crate) batch: Batch,
}

/// Whether a received frame is one packet.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Batch {
    /// One packet.
    One,
    /// TCP segments of this many bytes of payload.
    Tcp(u16),
    /// UDP datagrams of this many bytes of payload.
    Udp(u16),
    /// Something that was not negotiated, or without a size.
    Unknown,
}

/// Reads the header at the start of `bytes`; `None` when it is cut short.
pub(crate) fn parse(bytes: &[u8]) -> Option<RxHeader> {
    let header = bytes.first_chunk::<HEADER_LEN>()?;
    let segment_size = u16::from_le_bytes([header[4], header[5]]);
    Some(RxHeader {
        data_valid: header[0] & DATA_VALID != 0,
        needs_checksum: header[0] & NEEDS_CSUM != 0,
        batch: match header[1] & !GSO_ECN {
            GSO_NONE => Batch::One,
            GSO_TCPV4 | GSO_TCPV6 if segment_size != 0 => Batch::Tcp(segment_size),
            GSO_UDP_L4 if segment_size != 0 => Batch::Udp(segment_size),
            _ => Batch::Unknown,
        },
    })
}

/// The header of a frame that is complete: checksums done, nothing to segment.
pub(crate) const COMPLETE: [u8; HEADER_LEN] = [0; HEADER_LEN];

/// The header of a frame whose checksum the kernel finishes.
pub(crate) fn unfinished(checksum: PartialChecksum) -> [u8; HEADER_LEN] {
    let mut header = COMPLETE;
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&checksum.start.to_le_bytes());
    header[8..10].copy_from_slice(&checksum.offset.to_le_bytes());
    header
}

/// What the kernel has to know to cut a batch of TCP segments.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct TcpBatch {
    /// Over IPv6.
    pub(crate) is_ipv6: bool,
    /// The first segment carries CWR.
    pub(crate) congestion_window_reduced: bool,
    /// Bytes of the Ethernet, IP and TCP headers.
    pub(crate) header_len: u16,
    /// Bytes of payload of each segment.
    pub(crate) segment_size: u16,
}

/// The header of a superframe.
pub(crate) fn superframe(checksum: PartialChecksum, batch: &TcpBatch) -> [u8; HEADER_LEN] {
    let mut header = unfinished(checksum);
    header[1] = if batch.is_ipv6 { GSO_TCPV6 } else { GSO_TCPV4 };
    header[1] |= if batch.congestion_window_reduced { GSO_ECN } else { 0 };
    header[2..4].copy_from_slice(&batch.header_len.to_le_bytes());
    header[4..6].copy_from_slice(&batch.segment_size.to_le_bytes());
    header
}

/// The virtio-net header of a frame to be sent; `None` when what is asked for the frame cannot be.
pub(crate) fn header_of(
    checksum: Option<PartialChecksum>,
    segment_size: u16,
    frame: &[u8],
) -> Option<[u8; HEADER_LEN]> {
    let Some(checksum) = checksum else {
        return (segment_size == 0).then_some(COMPLETE);
    };
    if segment_size == 0 {
        return Some(unfinished(checksum));
    }
    let tcp = usize::from(checksum.start);
    let data_offset = usize::from(*frame.get(tcp + TCP_DATA_OFFSET_AT)? >> 4) * 4;
    let flags = *frame.get(tcp + TCP_FLAGS_AT)?;
    let batch = TcpBatch {
        is_ipv6: read_u16(frame, ETHERNET_HEADER_LEN - 2)? == TYPE_IPV6,
        congestion_window_reduced: flags & TCP_CWR != 0,
        header_len: u16::try_from(tcp + data_offset).ok()?,
        segment_size,
    };
    Some(superframe(checksum, &batch))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKSUM: PartialChecksum = PartialChecksum { start: 34, offset: 16 };

    #[test]
    fn flags_are_read_and_a_short_header_is_refused() {
        let mut bytes = [0; HEADER_LEN];
        let complete = RxHeader { data_valid: false, needs_checksum: false, batch: Batch::One };
        assert_eq!(parse(&COMPLETE), Some(complete));
        bytes[0] = NEEDS_CSUM;
        assert_eq!(parse(&bytes), Some(RxHeader { needs_checksum: true, ..complete }));
        bytes[0] = DATA_VALID;
        bytes[1] = GSO_TCPV4;
        let valid = RxHeader { data_valid: true, batch: Batch::Unknown, ..complete };
        assert_eq!(parse(&bytes), Some(valid), "a batch without a size");
        bytes[4] = 100;
        assert_eq!(parse(&bytes), Some(RxHeader { batch: Batch::Tcp(100), ..valid }));
        for unknown in [2, 3, 6, 0x7f, 0xff] {
            bytes[1] = unknown;
            assert_eq!(parse(&bytes), Some(valid));
        }
        bytes[1] = GSO_UDP_L4;
        assert_eq!(parse(&bytes), Some(RxHeader { batch: Batch::Udp(100), ..valid }));
        assert_eq!(parse(&bytes[..11]), None);
    }

    #[test]
    fn what_is_sent_reads_back() {
        let batch = TcpBatch {
            is_ipv6: true,
            congestion_window_reduced: true,
            header_len: 86,
            segment_size: 1428,
        };
        let header = superframe(CHECKSUM, &batch);
        assert_eq!(header, [1, 0x84, 86, 0, 0x94, 5, 34, 0, 16, 0, 0, 0]);
        let read = parse(&header).expect("a header");
        assert_eq!((read.needs_checksum, read.batch), (true, Batch::Tcp(1428)));
        assert_eq!(unfinished(CHECKSUM), [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
    }

    #[test]
    fn a_superframe_without_a_header_to_cut_is_refused() {
        let checksum = Some(PartialChecksum { start: 34, offset: 16 });
        assert_eq!(header_of(None, 1448, &[0; 100]), None);
        assert_eq!(header_of(checksum, 1448, &[0; 46]), None);
        assert_eq!(header_of(None, 0, &[]), Some(COMPLETE));
        let mut frame = [0; 100];
        (frame[46], frame[47]) = (0x80, TCP_CWR);
        let header = header_of(checksum, 1448, &frame).unwrap();
        assert_eq!(header, [1, 0x81, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    }
}
