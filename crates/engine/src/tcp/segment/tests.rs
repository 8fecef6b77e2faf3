//! Tests of the header codec, with smoltcp's as the oracle in both directions.

use super::*;
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, Ipv4Address, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, TcpTimestampRepr,
};

const SOURCE: IpAddress = IpAddress::Ipv4(Ipv4Address::new(198, 18, 0, 1));
const DESTINATION: IpAddress = IpAddress::Ipv4(Ipv4Address::new(198, 18, 0, 2));

/// Options that fit one header: those of a SYN, or those of a data segment.
fn options() -> impl Strategy<Value = Options> {
    let timestamps = || {
        prop::option::of(
            (any::<u32>(), any::<u32>()).prop_map(|(value, echo)| Timestamps { value, echo }),
        )
    };
    let syn = (prop::option::of(1u16..), prop::option::of(0u8..=14), any::<bool>(), timestamps())
        .prop_map(|(mss, window_scale, sack_permitted, timestamps)| Options {
            mss,
            window_scale,
            sack_permitted,
            timestamps,
            ..Options::default()
        });
    let block = (any::<u32>(), any::<u32>()).prop_map(|(a, b)| (SeqNumber(a), SeqNumber(b)));
    let data = (timestamps(), [block.clone(), block.clone(), block.clone(), block], 0..=3u8)
        .prop_map(|(timestamps, mut sack, sack_len)| {
            sack[usize::from(sack_len)..].fill(Default::default());
            Options { timestamps, sack, sack_len, ..Options::default() }
        });
    prop_oneof![syn, data]
}

fn outgoing() -> impl Strategy<Value = Outgoing> {
    (any::<u32>(), any::<u32>(), any::<u8>(), any::<u16>(), options(), 0usize..100).prop_map(
        |(seq, ack, flags, window, options, payload_len)| Outgoing {
            seq: SeqNumber(seq),
            ack: SeqNumber(ack),
            flags: Flags(flags),
            window,
            options,
            payload_position: 0,
            payload_len,
            segment_size: 0,
        },
    )
}

fn emitted(outgoing: &Outgoing) -> Vec<u8> {
    let mut bytes = vec![0xaa; 200];
    let len = outgoing.emit(1234, 80, &mut bytes, |payload| {
        for (at, byte) in payload.iter_mut().enumerate() {
            *byte = at as u8;
        }
    });
    bytes.truncate(len);
    bytes
}

/// The flags smoltcp can name.
fn control(flags: Flags) -> Option<TcpControl> {
    match (Flags(flags.0 & 0x07), flags.contains(Flags::PSH)) {
        (Flags::NONE, false) => Some(TcpControl::None),
        (Flags::NONE, true) => Some(TcpControl::Psh),
        (Flags::SYN, _) => Some(TcpControl::Syn),
        (Flags::FIN, _) => Some(TcpControl::Fin),
        (Flags::RST, _) => Some(TcpControl::Rst),
        _ => None,
    }
}

proptest! {
    #[test]
    fn what_we_emit_we_parse(outgoing in outgoing()) {
        let bytes = emitted(&outgoing);
        let segment = Segment::parse(&bytes).unwrap();
        prop_assert_eq!(bytes.len(), outgoing.header_len() + outgoing.payload_len);
        prop_assert_eq!((segment.source_port, segment.destination_port), (1234, 80));
        prop_assert_eq!((segment.seq, segment.ack), (outgoing.seq, outgoing.ack));
        prop_assert_eq!((segment.flags, segment.window), (outgoing.flags, outgoing.window));
        prop_assert_eq!(segment.options, outgoing.options);
        prop_assert_eq!(segment.payload.len(), outgoing.payload_len);
        prop_assert!(segment.payload.iter().enumerate().all(|(at, &byte)| byte == at as u8));
    }

    #[test]
    fn smoltcp_reads_what_we_emit(outgoing in outgoing()) {
        let bytes = emitted(&outgoing);
        let packet = TcpPacket::new_checked(&bytes[..]).unwrap();
        prop_assert_eq!(packet.seq_number(), TcpSeqNumber(outgoing.seq.value() as i32));
        prop_assert_eq!(packet.ack_number(), TcpSeqNumber(outgoing.ack.value() as i32));
        prop_assert_eq!(packet.window_len(), outgoing.window);
        let flags = [
            packet.fin(), packet.syn(), packet.rst(), packet.psh(), packet.ack(), packet.urg(),
            packet.ece(), packet.cwr(),
        ];
        for (bit, set) in flags.into_iter().enumerate() {
            prop_assert_eq!(set, outgoing.flags.bits() & (1 << bit) != 0);
        }
        prop_assert_eq!(packet.payload().len(), outgoing.payload_len);
        if control(outgoing.flags).is_none() {
            return Ok(());
        }
        let repr = TcpRepr::parse(&packet, &SOURCE, &DESTINATION, &ChecksumCapabilities::ignored());
        let Ok(repr) = repr else { return Ok(()) };
        prop_assert_eq!(repr.max_seg_size, outgoing.options.mss);
        prop_assert_eq!(repr.window_scale, outgoing.options.window_scale);
        prop_assert_eq!(repr.sack_permitted, outgoing.options.sack_permitted);
        let times = repr.timestamp.map(|ts| Timestamps { value: ts.tsval, echo: ts.tsecr });
        prop_assert_eq!(times, outgoing.options.timestamps);
        let blocks = repr.sack_ranges.into_iter().flatten();
        let ours = outgoing.options.sack_blocks().iter().map(|(a, b)| (a.value(), b.value()));
        prop_assert_eq!(blocks.collect::<Vec<_>>(), ours.collect::<Vec<_>>());
    }

    #[test]
    fn we_read_what_smoltcp_emits(
        seq: i32,
        ack: i32,
        window: u16,
        syn: bool,
        mss in prop::option::of(1u16..),
        window_scale in prop::option::of(0u8..=14),
        sack_permitted: bool,
        times in prop::option::of((any::<u32>(), any::<u32>())),
        payload in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let repr = TcpRepr {
            src_port: 7,
            dst_port: 9,
            control: if syn { TcpControl::Syn } else { TcpControl::Psh },
            seq_number: TcpSeqNumber(seq),
            ack_number: Some(TcpSeqNumber(ack)),
            window_len: window,
            window_scale: window_scale.filter(|_| syn),
            max_seg_size: mss.filter(|_| syn),
            sack_permitted: sack_permitted && syn,
            sack_ranges: [None; 3],
            timestamp: times.map(|(tsval, tsecr)| TcpTimestampRepr { tsval, tsecr }),
            payload: &payload,
        };
        let mut bytes = vec![0; repr.buffer_len()];
        let mut packet = TcpPacket::new_unchecked(&mut bytes[..]);
        repr.emit(&mut packet, &SOURCE, &DESTINATION, &ChecksumCapabilities::ignored());
        let segment = Segment::parse(&bytes).unwrap();
        prop_assert_eq!(segment.seq.value() as i32, seq);
        prop_assert_eq!(segment.ack.value() as i32, ack);
        prop_assert_eq!(segment.window, window);
        prop_assert_eq!(segment.flags.contains(Flags::SYN), syn);
        prop_assert_eq!(segment.options.mss, repr.max_seg_size);
        prop_assert_eq!(segment.options.window_scale, repr.window_scale);
        prop_assert_eq!(segment.options.sack_permitted, repr.sack_permitted);
        let ours = segment.options.timestamps.map(|ts| (ts.value, ts.echo));
        prop_assert_eq!(ours, times);
        prop_assert_eq!(segment.payload, &payload[..]);
    }

    #[test]
    fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        match Segment::parse(&bytes) {
            Ok(segment) => {
                prop_assert!(segment.payload.len() <= bytes.len() - HEADER_LEN);
                prop_assert!(segment.options.sack_blocks().len() <= SACK_BLOCKS_MAX);
                prop_assert!(segment.options.window_scale.is_none_or(|s| s <= WINDOW_SCALE_MAX));
            }
            Err(Malformed::Truncated) => prop_assert!(bytes.len() < HEADER_LEN_MAX),
            Err(Malformed::DataOffset) => prop_assert!(bytes[12] >> 4 < 5),
        }
    }

    #[test]
    fn any_option_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..=40)) {
        let options = Options::parse(&bytes);
        prop_assert!(options.sack_len <= 4);
    }

    #[test]
    fn sequence_numbers_compare_around_the_wrap(start: u32, ahead in 1u32..1 << 31) {
        let (first, second) = (SeqNumber(start), SeqNumber(start) + ahead);
        prop_assert!(first.lt(second) && first.le(second) && !second.lt(first));
        prop_assert!(first.le(first) && !first.lt(first));
        prop_assert_eq!(second.distance(first), ahead as i32);
    }
}

#[test]
fn options_lie_as_linux_lays_them() {
    let timestamps = Some(Timestamps { value: 1, echo: 2 });
    let syn = Options {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps,
        ..Options::default()
    };
    let bytes = emitted(&Outgoing { options: syn, ..Outgoing::default() });
    let expected = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7];
    assert_eq!(bytes[20..], expected);
    let data = Options { timestamps, ..Options::default() };
    let bytes = emitted(&Outgoing { options: data, ..Outgoing::default() });
    assert_eq!(bytes[20..], [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
}

#[test]
fn garbage_ends_the_options_and_keeps_what_came_before() {
    let mss = [2, 4, 5, 180];
    for garbage in [&[3, 0][..], &[3, 1], &[3, 9, 1], &[99], &[8]] {
        let options = Options::parse(&[&mss, garbage].concat());
        assert_eq!(options, Options { mss: Some(1460), ..Options::default() }, "{garbage:?}");
    }
    // A known option with a wrong length is skipped, an unknown one too.
    let options = Options::parse(&[2, 3, 1, 99, 4, 0, 0, 3, 3, 200, 0, 2, 4, 1, 1]);
    assert_eq!(options, Options { window_scale: Some(14), ..Options::default() });
}

#[test]
fn headers_that_do_not_fit_are_refused() {
    let mut bytes = emitted(&Outgoing::default());
    assert_eq!(Segment::parse(&bytes[..19]), Err(Malformed::Truncated));
    bytes[12] = 6 << 4;
    assert_eq!(Segment::parse(&bytes), Err(Malformed::Truncated));
    bytes[12] = 4 << 4;
    assert_eq!(Segment::parse(&bytes), Err(Malformed::DataOffset));
}
