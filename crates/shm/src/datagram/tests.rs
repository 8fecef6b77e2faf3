//! The record header: what was written can be read, and any bytes can be read without harm.

use proptest::prelude::*;

use super::*;

fn address() -> impl Strategy<Value = Option<SocketAddr>> {
    prop_oneof![
        Just(None),
        any::<([u8; 4], u16)>().prop_map(|(ip, port)| Some((ip, port).into())),
        any::<([u8; 16], u16)>().prop_map(|(ip, port)| Some((ip, port).into())),
    ]
}

fn header() -> impl Strategy<Value = DatagramHeader> {
    let fixed = (any::<u16>(), any::<u16>(), any::<u32>(), any::<u64>());
    (fixed, address(), address(), any::<Option<u8>>(), any::<Option<u8>>()).prop_map(
        |((len, segment_size, drops, time_ns), remote, local, hop_limit, type_of_service)| {
            DatagramHeader {
                len,
                remote,
                local,
                hop_limit,
                type_of_service,
                segment_size,
                drops,
                time_ns,
            }
        },
    )
}

proptest! {
    #[test]
    fn headers_come_back_as_written(header in header()) {
        prop_assert_eq!(DatagramHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in any::<[u8; RECORD_HEADER]>()) {
        if let Ok(header) = DatagramHeader::decode(&bytes) {
            prop_assert_eq!(DatagramHeader::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn one_wrong_byte_does_no_harm(header in header(), at in 0..RECORD_HEADER, value in any::<u8>()) {
        let mut bytes = header.encode();
        bytes[at] = value;
        if let Ok(other) = DatagramHeader::decode(&bytes) {
            prop_assert!(other.record_bytes() <= RECORD_MAX);
        }
    }
}

#[test]
fn lengths_and_versions_out_of_range_are_refused() {
    let good = DatagramHeader { len: 9, ..DatagramHeader::default() }.encode();
    assert_eq!(DatagramHeader::decode(&good).unwrap().record_bytes(), RECORD_HEADER + 16);
    for (at, value) in [(2, 1), (4, 0), (4, 2), (5, 4), (8, 5), (50, 1)] {
        let mut bytes = good;
        bytes[at] = value;
        assert_eq!(DatagramHeader::decode(&bytes), Err(Malformed), "byte {at} = {value}");
    }
}
