//! What was written can be read; what was damaged is refused, or is something else that is possible.

use haypile_engine::SocketOption;
use proptest::prelude::*;

use super::*;

fn held() -> impl Strategy<Value = Held> {
    let flags = any::<[bool; 8]>();
    let numbers = (any::<u16>(), any::<u64>(), any::<[u8; 16]>(), 1..u64::MAX, 0..4096_i32);
    let places = (0..1_u64 << 40, 0..30_000_u64, 0..30_000_u64, 0..1_u64 << 40, 0..30_000_usize);
    let addresses = (any::<SocketAddr>(), any::<Option<SocketAddr>>());
    (flags, numbers, places, addresses, any::<(u64, u64, u64)>()).prop_map(
        |(flags, numbers, places, addresses, (owner, listener, since))| {
            let [closed, shared, resets, more, tx_shut, rx_shut, connected, rx_fin] = flags;
            let (server, stub, mut token, cookie, error) = numbers;
            token[0] |= 1;
            let (rx_head, readable, ahead, tx_head, written) = places;
            let positions = StreamPositions {
                rx_head,
                rx_tail: rx_head + readable,
                rx_end: rx_head + readable + ahead,
                tx_head,
                tx_tail: tx_head + written as u64,
            };
            // What can be read, and something behind a gap.
            let mut received = Vec::new();
            if readable > 0 {
                received.push((rx_head, vec![7; readable as usize]));
            }
            if ahead > 1 {
                let start = positions.rx_tail + ahead / 2;
                received.push((start, vec![9; (positions.rx_end - start) as usize]));
            }
            let mut options = SocketOptions::default();
            options.set(SocketOption::KeepIdle(owner as u32));
            let process = ProcessName::from_word(owner);
            let since = Instant::from_us((since >> 8) + 1);
            let plain = |addr: SocketAddr| SocketAddr::new(addr.ip(), addr.port());
            Held {
                server,
                stub,
                token,
                closed,
                orphan_until: closed.then_some(since),
                found: connected,
                owner: (!shared).then_some(process),
                shared,
                cookie,
                options,
                resets,
                more,
                tx_shut,
                rx_shut,
                connected,
                rx_fin,
                tx_wish: listener as u32,
                error,
                served: more.then_some(Served { process, listener: ListenerName(listener), since }),
                came_to: rx_shut.then_some(ListenerName(listener)),
                local: Some(plain(addresses.0)),
                remote: addresses.1.map(plain),
                positions,
                received,
                sent: vec![3; written],
            }
        },
    )
}

fn encoded(baggage: &Baggage) -> Vec<u8> {
    let mut bytes = Vec::new();
    baggage.encode(&mut bytes);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_socket_survives(held in held()) {
        let baggage = Baggage::Held(Box::new(held));
        prop_assert_eq!(Baggage::decode(&encoded(&baggage)), Ok(baggage));
    }

    #[test]
    fn damage_is_found_or_harmless(held in held(), at: prop::sample::Index, bit in 0..8, end: prop::sample::Index) {
        let mut bytes = encoded(&Baggage::Held(Box::new(held)));
        let cut = end.index(bytes.len());
        prop_assert!(Baggage::decode(&bytes[..cut]).is_err());
        // Most of it is bytes of streams, which mean nothing here.
        let at = at.index(bytes.len().min(400));
        bytes[at] ^= 1_u8 << bit;
        fuzz_decode(&bytes);
        bytes.push(0);
        prop_assert!(Baggage::decode(&bytes).is_err());
    }

    #[test]
    fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0..4_u8) {
        fuzz_decode(&bytes);
        let mut likely = VERSION.to_le_bytes().to_vec();
        likely.push(kind);
        likely.extend(bytes);
        fuzz_decode(&likely);
    }

    #[test]
    fn receipts_survive(epoch: u32, some in prop::collection::vec(any::<(u64, u32, u32)>(), 0..100)) {
        let arrival = |(stub, slot, generation)| Arrival { stub, slot, generation };
        let receipt = Receipt { epoch, arrivals: some.into_iter().map(arrival).collect() };
        let bytes = receipt.encode();
        prop_assert!(bytes.len() <= STATE_MAX);
        prop_assert!(Receipt::decode(&bytes[..bytes.len() - 1]).is_err());
        prop_assert_eq!(Receipt::decode(&bytes), Ok(receipt));
    }

    #[test]
    fn late_notices_survive(epoch: u32, token: [u8; 16], slot in 0..u32::MAX, generation: u32, value: i64) {
        for said in [
            Said::Shutdown(Shutdown::Both),
            Said::End(value > 0),
            Said::Shared(value as u64),
            Said::SetOption { option: slot as u16, value },
            Said::Arrived,
        ] {
            let notice = LateNotice { epoch, token, slot, generation, said };
            let bytes = notice.encode();
            prop_assert!(LateNotice::decode(&bytes[1..]).is_err());
            prop_assert_eq!(LateNotice::decode(&bytes), Ok(notice));
        }
    }
}

#[test]
fn what_nobody_has_survives_and_other_versions_do_not() {
    let unclaimed = |bytes| Baggage::Unclaimed { server: 7, bytes };
    for baggage in [Baggage::Empty, unclaimed(vec![1, 2, 3]), unclaimed(vec![])] {
        let mut bytes = encoded(&baggage);
        assert_eq!(Baggage::decode(&bytes), Ok(baggage));
        bytes[0] += 1;
        assert_eq!(Baggage::decode(&bytes), Err(Refusal::Version(VERSION + 1)));
    }
}

#[test]
fn a_full_receipt_fits_into_one_message_between_servers() {
    let arrival = Arrival { stub: 1, slot: 2, generation: 3 };
    let receipt = Receipt { epoch: 1, arrivals: vec![arrival; ARRIVALS_MAX] };
    assert!(receipt.encode().len() <= STATE_MAX);
    let more = Receipt { epoch: 1, arrivals: vec![arrival; ARRIVALS_MAX + 1] };
    assert!(Receipt::decode(&more.encode()).is_err());
}
