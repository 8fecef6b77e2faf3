//! Owns the bytes of a pcapng file (draft-ietf-opsawg-pcapng): Section Header, one Interface
//! Description, Enhanced Packet and Interface Statistics Blocks, in the machine's byte order. Called
//! by `capture.rs`; writes into memory only, and into memory that is already there.

/// The link type of Ethernet (LINKTYPE_ETHERNET).
const LINKTYPE_ETHERNET: u16 = 1;
const SECTION_HEADER_BLOCK: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION_BLOCK: u32 = 1;
const INTERFACE_STATISTICS_BLOCK: u32 = 5;
const ENHANCED_PACKET_BLOCK: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const VERSION_MAJOR: u16 = 1;
const VERSION_MINOR: u16 = 0;
const SECTION_LEN_UNKNOWN: u64 = u64::MAX;

const OPTION_END: u16 = 0;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
/// Timestamps count 10^-9 s.
const NANOSECONDS: u8 = 9;

/// Bytes of an Enhanced Packet Block besides the padded packet.
const PACKET_OVERHEAD: usize = 28 + 8 + 4 + 4;

/// Which way a frame went, as the low two bits of `epb_flags`.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Inbound = 1,
    Outbound = 2,
}

/// Section header and interface description: the start of a file.
pub(crate) fn header(interface_name: &str, snap_len: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let start = open_block(&mut out, SECTION_HEADER_BLOCK);
    out.extend_from_slice(&BYTE_ORDER_MAGIC.to_ne_bytes());
    out.extend_from_slice(&VERSION_MAJOR.to_ne_bytes());
    out.extend_from_slice(&VERSION_MINOR.to_ne_bytes());
    out.extend_from_slice(&SECTION_LEN_UNKNOWN.to_ne_bytes());
    option(&mut out, SHB_USERAPPL, concat!("haypile ", env!("CARGO_PKG_VERSION")).as_bytes());
    option(&mut out, OPTION_END, &[]);
    close_block(&mut out, start);

    let start = open_block(&mut out, INTERFACE_DESCRIPTION_BLOCK);
    out.extend_from_slice(&LINKTYPE_ETHERNET.to_ne_bytes());
    out.extend_from_slice(&0_u16.to_ne_bytes());
    out.extend_from_slice(&snap_len.to_ne_bytes());
    option(&mut out, IF_NAME, interface_name.as_bytes());
    option(&mut out, IF_TSRESOL, &[NANOSECONDS]);
    option(&mut out, OPTION_END, &[]);
    close_block(&mut out, start);
    out
}

/// Length of the block of a packet of which `captured` bytes are kept.
pub(crate) fn packet_block_len(captured: usize) -> usize {
    PACKET_OVERHEAD + captured.next_multiple_of(4)
}

/// Where the captured bytes start in a block that [`packet`] wrote.
pub(crate) const PACKET_DATA_AT: usize = 28;

/// Appends the block of one frame: `captured` are its first bytes, `original_len` its real length,
/// `time_ns` nanoseconds since 1970.
pub(crate) fn packet(
    out: &mut Vec<u8>,
    time_ns: u64,
    direction: Direction,
    captured: &[u8],
    original_len: u32,
) {
    let start = open_block(out, ENHANCED_PACKET_BLOCK);
    out.extend_from_slice(&0_u32.to_ne_bytes());
    timestamp(out, time_ns);
    out.extend_from_slice(&(captured.len() as u32).to_ne_bytes());
    out.extend_from_slice(&original_len.to_ne_bytes());
    out.extend_from_slice(captured);
    pad(out);
    option(out, EPB_FLAGS, &(direction as u32).to_ne_bytes());
    option(out, OPTION_END, &[]);
    close_block(out, start);
}

/// Length of the block that starts at `offset`; the block was written by [`packet`].
pub(crate) fn block_len_at(bytes: &[u8], offset: usize) -> usize {
    let len = &bytes[offset + 4..offset + 8];
    u32::from_ne_bytes([len[0], len[1], len[2], len[3]]) as usize
}

/// The last block of a file: how many frames were seen, and how many of those are missing from it.
pub(crate) fn statistics(time_ns: u64, seen: u64, lost: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let start = open_block(&mut out, INTERFACE_STATISTICS_BLOCK);
    out.extend_from_slice(&0_u32.to_ne_bytes());
    timestamp(&mut out, time_ns);
    option(&mut out, ISB_IFRECV, &seen.to_ne_bytes());
    option(&mut out, ISB_IFDROP, &lost.to_ne_bytes());
    option(&mut out, OPTION_END, &[]);
    close_block(&mut out, start);
    out
}

/// Length of the block that [`statistics`] makes.
pub(crate) const STATISTICS_LEN: usize = 8 + 12 + 12 + 12 + 4 + 4;

fn open_block(out: &mut Vec<u8>, kind: u32) -> usize {
    let start = out.len();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    start
}

fn close_block(out: &mut Vec<u8>, start: usize) {
    let len = ((out.len() + 4 - start) as u32).to_ne_bytes();
    out[start + 4..start + 8].copy_from_slice(&len);
    out.extend_from_slice(&len);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend_from_slice(&code.to_ne_bytes());
    out.extend_from_slice(&(value.len() as u16).to_ne_bytes());
    out.extend_from_slice(value);
    pad(out);
}

/// The high half of the time comes first, whatever the byte order.
fn timestamp(out: &mut Vec<u8>, time_ns: u64) {
    out.extend_from_slice(&((time_ns >> 32) as u32).to_ne_bytes());
    out.extend_from_slice(&(time_ns as u32).to_ne_bytes());
}

/// Every block and option starts on a multiple of four, as `out` itself does.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}
