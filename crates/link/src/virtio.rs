//! Owns the 12-byte header that precedes each frame on a TAP opened with IFF_VNET_HDR (virtio 1.2,
//! section 5.1.6, `struct virtio_net_hdr` with `num_buffers`; all fields little-endian). Called by
//! `tap.rs` for each frame; pure.

/// Length of the header, in bytes.
pub(crate) const HEADER_LEN: usize = 12;

/// The checksum field holds only the pseudo header's sum: the sender left the rest to the device.
const NEEDS_CSUM: u8 = 1;
/// The checksum was verified by whoever handed the frame over.
const DATA_VALID: u8 = 2;
/// The frame is one packet, not a batch to be segmented.
const GSO_NONE: u8 = 0;

/// What a received header says of its frame.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct RxHeader {
    /// The transport checksum was verified.
    pub(crate) data_valid: bool,
    /// The transport checksum was left unfinished; the data never left this machine's memory.
    pub(crate) needs_checksum: bool,
    /// The frame is larger than the MTU and waits for segmentation.
    pub(crate) unsegmented: bool,
}

/// Reads the header at the start of `bytes`; `None` when it is cut short.
pub(crate) fn parse(bytes: &[u8]) -> Option<RxHeader> {
    let header = bytes.first_chunk::<HEADER_LEN>()?;
    Some(RxHeader {
        data_valid: header[0] & DATA_VALID != 0,
        needs_checksum: header[0] & NEEDS_CSUM != 0,
        unsegmented: header[1] != GSO_NONE,
    })
}

/// The header of a frame that is complete: checksums done, nothing to segment.
pub(crate) const COMPLETE: [u8; HEADER_LEN] = [0; HEADER_LEN];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_and_a_short_header_is_refused() {
        let mut bytes = [0; HEADER_LEN];
        let complete = RxHeader { data_valid: false, needs_checksum: false, unsegmented: false };
        assert_eq!(parse(&COMPLETE), Some(complete));
        bytes[0] = NEEDS_CSUM;
        assert_eq!(parse(&bytes), Some(RxHeader { needs_checksum: true, ..complete }));
        bytes[0] = DATA_VALID;
        bytes[1] = 1;
        let valid = RxHeader { data_valid: true, unsegmented: true, ..complete };
        assert_eq!(parse(&bytes), Some(valid));
        assert_eq!(parse(&bytes[..11]), None);
    }
}
