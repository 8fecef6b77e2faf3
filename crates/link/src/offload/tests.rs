//! Checksums against a slow oracle, segments against what they must add up to.

use proptest::prelude::*;

use super::*;

/// An Ethernet frame with `tags` VLAN tags and a TCP segment with 12 bytes of options.
fn tcp_frame(v6: bool, tags: usize, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for _ in 0..tags {
        frame.extend_from_slice(&[0x81, 0, 0, 7]);
    }
    let len = 32 + payload.len();
    if v6 {
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend_from_slice(&(len as u16).to_be_bytes());
        frame.extend_from_slice(&[TCP, 64]);
        frame.extend((0..32).map(|byte| byte * 7));
    } else {
        frame.extend_from_slice(&[8, 0, 0x45, 0]);
        frame.extend_from_slice(&(20 + len as u16).to_be_bytes());
        frame.extend_from_slice(&[0xff, 0xfe, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    frame.extend_from_slice(&[0x30, 0x39, 0, 80, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 9, 0x80, flags]);
    frame.extend_from_slice(&[1, 0, 0xab, 0xcd, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    frame.extend_from_slice(payload);
    frame
}

/// Words one by one, with the carry added at once.
fn slow_sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let word = u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
        (sum + word) % 0xffff
    })
}

/// Whether the transport checksum of a frame is right.
fn verifies(frame: &[u8]) -> bool {
    let layout = Layout::of(frame).expect("a transport header");
    let data = &frame[layout.transport..layout.end];
    let addresses = if layout.is_ipv6 { layout.ip + 8 } else { layout.ip + 12 };
    let addresses = &frame[addresses..addresses + if layout.is_ipv6 { 32 } else { 8 }];
    let pseudo = slow_sum(addresses, u32::from(layout.protocol) + data.len() as u32);
    slow_sum(data, pseudo).is_multiple_of(0xffff)
}

proptest! {
    #[test]
    fn a_completed_checksum_verifies(
        v6: bool, tags in 0..3usize, payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut frame = tcp_frame(v6, tags, 0x10, &payload);
        prop_assert!(complete_checksum(&mut frame));
        prop_assert!(verifies(&frame));
        let again = frame.clone();
        complete_checksum(&mut frame);
        prop_assert_eq!(frame, again);
    }

    #[test]
    fn segments_add_up(
        v6: bool, tags in 0..3usize, size in 1..700u16, len in 0..3000usize,
    ) {
        let payload: Vec<u8> = (0..len).map(|at| (at * 31 % 251) as u8).collect();
        let whole = tcp_frame(v6, tags, 0x99, &payload);
        let header_len = whole.len() - len;
        let tcp = header_len - 32;
        let mut out = vec![0; 2000];
        let mut seen = Vec::new();
        let mut index = 0;
        while let Some(len) = segment(&whole, size, index, &mut out) {
            let frame = &out[..len];
            prop_assert!(verifies(frame));
            let layout = Layout::of(frame).expect("a segment");
            prop_assert_eq!(layout.end, len);
            if !v6 {
                prop_assert_eq!(slow_sum(&frame[layout.ip..layout.ip + 20], 0) % 0xffff, 0);
            }
            let sequence = u32::from_be_bytes(frame[tcp + 4..tcp + 8].try_into().unwrap());
            prop_assert_eq!(sequence, 0xffff_fff0_u32.wrapping_add(seen.len() as u32));
            seen.extend_from_slice(&frame[header_len..]);
            let last = seen.len() == payload.len();
            let wanted = 0x10 | if last { 9 } else { 0 } | if index == 0 { 0x80 } else { 0 };
            prop_assert_eq!(frame[tcp + 13], wanted);
            index += 1;
        }
        prop_assert_eq!(index, len.div_ceil(usize::from(size)).max(1));
        prop_assert_eq!(seen, payload);
    }

    #[test]
    fn nonsense_is_left_alone(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), size: u16) {
        let mut out = [0; 200];
        for kind in [[8, 0], [0x86, 0xdd], [0x81, 0]] {
            if let Some(place) = bytes.get_mut(12..14) {
                place.copy_from_slice(&kind);
            }
            for index in [0, 1, 7, usize::MAX] {
                let _ = segment(&bytes, size, index, &mut out);
            }
            let mut copy = bytes.clone();
            if !complete_checksum(&mut copy) {
                prop_assert_eq!(&copy, &bytes);
            }
        }
    }
}

#[test]
fn fragments_and_other_protocols_are_not_touched() {
    let mut frame = tcp_frame(false, 0, 0x10, b"data");
    frame[20] |= 0x20;
    let before = frame.clone();
    assert!(!complete_checksum(&mut frame));
    assert_eq!(frame, before);
    let mut frame = tcp_frame(true, 0, 0x10, b"data");
    frame[20] = FRAGMENT;
    assert!(!complete_checksum(&mut frame));
    let mut out = [0; 200];
    assert_eq!(segment(&frame, 10, 0, &mut out), None);
}
