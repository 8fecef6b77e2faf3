//! Peers and routers that misbehave: blind attacks, wrong acknowledgements, garbage, ICMP.

use proptest::prelude::*;

use super::pair::{DELAY_US, Fate, Pair, Side};
use crate::SocketError;
use crate::tcp::*;

/// A segment of A's that B takes as in order.
fn next_of_a(pair: &mut Pair) -> Outgoing {
    let ours = pair.a.tcp().time_wait_record();
    Outgoing {
        seq: ours.snd_nxt,
        ack: ours.rcv_nxt,
        flags: Flags::ACK,
        window: 1000,
        ..Outgoing::default()
    }
}

#[test]
fn acknowledgements_of_the_future_and_of_long_ago_are_challenged() {
    let mut pair = Pair::established();
    let segment = next_of_a(&mut pair);
    let future = Outgoing { ack: segment.ack + 1, ..segment };
    pair.put_on_wire(Side::A, &future);
    pair.run_for(2 * DELAY_US);
    assert_eq!(pair.b.counters.drop_bad_ack, 1);
    assert_eq!(pair.from(Side::B).len(), 1);
    pair.run_for(200_000);
    let long_ago = SeqNumber::new(segment.ack.value().wrapping_sub(1 << 30));
    pair.put_on_wire(Side::A, &Outgoing { ack: long_ago, ..segment });
    pair.run_for(2 * DELAY_US);
    assert_eq!(pair.b.counters.drop_bad_ack, 2);
    assert_eq!(pair.from(Side::B).len(), 2);
    // Within a window of what is acknowledged, but B never sent it.
    pair.run_for(200_000);
    let first = pair.b.tcp().time_wait_record().snd_nxt;
    let before = SeqNumber::new(first.value().wrapping_sub(2));
    pair.put_on_wire(Side::A, &Outgoing { ack: before, ..segment });
    pair.run_for(2 * DELAY_US);
    assert_eq!(pair.b.counters.drop_bad_ack, 3);
    assert_eq!(pair.b.state(), State::Established);
}

#[test]
fn challenges_are_rate_limited() {
    let mut pair = Pair::established();
    let segment = next_of_a(&mut pair);
    for offset in 1..50 {
        let blind = Outgoing { seq: segment.seq + offset, flags: Flags::RST, ..segment };
        pair.put_on_wire(Side::A, &blind);
        pair.run_for(1_000);
    }
    pair.run_for(10_000);
    assert_eq!(pair.b.state(), State::Established);
    assert_eq!(pair.from(Side::B).len(), 1);
    assert_eq!(pair.b.counters.challenge_acks_sent, 1);
    assert_eq!(pair.b.counters.challenge_acks_limited, 48);
}

#[test]
fn data_outside_the_window_is_refused_and_answered() {
    let mut pair = Pair::established();
    pair.a.memory.sent = vec![1; 5000];
    let segment = next_of_a(&mut pair);
    let far = Outgoing { seq: segment.seq + 10_000_000, payload_len: 100, ..segment };
    pair.put_on_wire(Side::A, &far);
    pair.run_for(2 * DELAY_US);
    assert_eq!(pair.b.counters.drop_out_of_window, 1);
    assert_eq!(pair.from(Side::B).len(), 1);
    assert!(pair.b.memory.received.is_empty());
}

#[test]
fn data_is_cut_at_the_window() {
    let mut pair = Pair::new();
    pair.b.limits.receive_buffer_max = 3000;
    pair.b.reads = false;
    pair.connect();
    pair.a.memory.sent = vec![1; 5000];
    let segment = next_of_a(&mut pair);
    for position in [0, 1400, 2800] {
        let piece = Outgoing {
            seq: segment.seq + position,
            payload_position: u64::from(position),
            payload_len: 1400,
            ..segment
        };
        pair.put_on_wire(Side::A, &piece);
    }
    pair.run_for(DELAY_US);
    assert_eq!(pair.b.tcp().progress().rx_end, 3000);
}

#[test]
fn second_fin_elsewhere_does_not_count() {
    let mut pair = Pair::established();
    pair.a.memory.sent = vec![1; 5000];
    let segment = next_of_a(&mut pair);
    let fin = Flags::FIN | Flags::ACK;
    let first = Outgoing { seq: segment.seq + 1000, flags: fin, payload_len: 100, ..segment };
    let second = Outgoing { seq: segment.seq + 100, flags: fin, payload_len: 100, ..segment };
    let beyond = Outgoing { seq: segment.seq + 2000, payload_len: 100, ..segment };
    for piece in [first, second, beyond] {
        pair.put_on_wire(Side::A, &piece);
    }
    pair.run_for(DELAY_US);
    assert_eq!(pair.b.counters.out_of_order_bytes, 200);
    pair.put_on_wire(Side::A, &Outgoing { payload_len: 1400, ..segment });
    pair.run_for(DELAY_US);
    assert_eq!(pair.b.tcp().progress().rx_end, 1100);
    assert_eq!(pair.b.state(), State::CloseWait);
}

#[test]
fn urgent_data_stays_in_line() {
    let mut pair = Pair::established();
    pair.a.memory.sent = vec![9; 10];
    let segment = next_of_a(&mut pair);
    let flags = Flags::ACK | Flags::URG;
    pair.put_on_wire(Side::A, &Outgoing { flags, payload_len: 10, ..segment });
    pair.run_for(DELAY_US);
    assert_eq!(pair.b.tcp().progress().rx_end, 10);
}

#[test]
fn peer_that_takes_its_window_back() {
    let mut pair = Pair::established();
    pair.b.memory.sent = vec![0; 1];
    pair.write(Side::B, 100_000);
    pair.flush();
    let segment = next_of_a(&mut pair);
    let in_flight = pair.b.tcp().info(pair.now).unacknowledged;
    assert!(in_flight > 10_000);
    pair.set_fault(|_, _, _, _| Fate::Drop);
    let bytes = {
        let mut bytes = vec![0; 60];
        let len = Outgoing { window: 0, ..segment }.emit(40_000, 80, &mut bytes, |_| {});
        bytes.truncate(len);
        bytes
    };
    pair.deliver(Side::B, &bytes);
    pair.run_for(10_000_000);
    assert_eq!(pair.b.state(), State::Established);
    assert_eq!(pair.b.tcp().info(pair.now).unacknowledged, in_flight);
}

#[test]
fn closed_window_over_data_in_flight_is_borne_while_the_peer_answers() {
    let mut pair = Pair::established();
    pair.set_fault(|_, from, _, _| if from == Side::A { Fate::Drop } else { Fate::Deliver });
    pair.write(Side::A, 10_000);
    let peer = pair.b.tcp().time_wait_record();
    let flags = Flags::ACK;
    let closed = Outgoing { seq: peer.snd_nxt, ack: peer.rcv_nxt, flags, ..Outgoing::default() };
    for _ in 0..100 {
        pair.put_on_wire(Side::B, &closed);
        pair.run_for(60_000_000);
    }
    assert_eq!(pair.a.state(), State::Established);
    assert!(pair.a.tcp().info(pair.now).unacknowledged > 0);
    pair.run_for(1_200_000_000);
    assert_eq!(pair.a.state(), State::Closed, "silence ends it");
}

#[test]
fn tiny_segment_sizes_are_not_believed() {
    let mut pair = Pair::new();
    pair.a.options.max_segment = 1;
    pair.connect();
    assert_eq!(pair.b.tcp().info(pair.now).send_mss, 48 - 12);
}

#[test]
fn icmp_counts_only_when_it_quotes_what_is_in_flight() {
    let mut pair = Pair::established();
    pair.write(Side::A, 10_000);
    pair.flush();
    let now = pair.now;
    let mut counters = TcpCounters::default();
    let too_big = IcmpError::PacketTooBig { mss: 1000 };
    let stray = pair.a.iss + 500_000;
    assert!(!pair.a.tcp().handle_icmp(now, too_big, stray, &mut counters));
    assert_eq!(pair.a.tcp().info(now).path_mtu, 1500);
    assert_eq!((pair.a.tcp().info(now).send_mss, counters.drop_bad_icmp), (1448, 1));
    let quoted = pair.a.iss + 1;
    assert!(pair.a.tcp().handle_icmp(now, too_big, quoted, &mut counters));
    let told = |pair: &mut Pair| (pair.a.tcp().info(now).send_mss, pair.a.tcp().info(now).path_mtu);
    assert_eq!(told(&mut pair), (988, 1040));
    let tiny = IcmpError::PacketTooBig { mss: 1 };
    assert!(pair.a.tcp().handle_icmp(now, tiny, quoted, &mut counters));
    assert_eq!(told(&mut pair), (512 - 12, 552));
}

#[test]
fn smaller_path_mtu_is_repaired_without_a_timeout() {
    let mut pair = Pair::established();
    pair.set_fault(|_, side, _, segment| match side == Side::A && segment.payload.len() > 1000 {
        true => Fate::Drop,
        false => Fate::Deliver,
    });
    pair.write(Side::A, 100_000);
    pair.flush();
    let now = pair.now;
    let quoted = pair.a.iss + 1;
    let error = IcmpError::PacketTooBig { mss: 1012 };
    assert!(pair.a.tcp().handle_icmp(now, error, quoted, &mut TcpCounters::default()));
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
    assert_eq!(pair.a.counters.retransmission_timeouts, 0);
}

#[test]
fn unreachable_ends_an_opening_and_only_explains_a_timeout_later() {
    let mut pair = Pair::new();
    pair.open(Side::A);
    pair.flush();
    let now = pair.now;
    let (quoted, mut counters) = (pair.a.iss, TcpCounters::default());
    let host = IcmpError::Unreachable(Unreachable::Host);
    assert!(pair.a.tcp().handle_icmp(now, host, quoted, &mut counters));
    assert_eq!(pair.a.tcp().progress().error, Some(SocketError::HostUnreachable));

    let mut pair = Pair::established();
    pair.a.tcp().set_option(now, crate::SocketOption::UserTimeout(1_000));
    pair.write(Side::A, 100);
    pair.set_fault(|_, _, _, _| Fate::Drop);
    pair.flush();
    let now = pair.now;
    let quoted = pair.a.iss + 1;
    assert!(pair.a.tcp().handle_icmp(now, host, quoted, &mut counters));
    assert_eq!(pair.a.state(), State::Established);
    pair.run_for(3_000_000);
    assert_eq!(pair.a.tcp().progress().error, Some(SocketError::HostUnreachable));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Whatever bytes come, the connection neither panics nor breaks its promises.
    #[test]
    fn random_segments_never_panic(
        pieces in prop::collection::vec(
            (any::<i16>(), any::<i16>(), any::<u8>(), any::<u16>(), 0usize..300, any::<bool>()),
            1..60,
        ),
        blocks in prop::collection::vec((any::<u16>(), -100i16..3_000), 1..40),
        wire_start: u32,
    ) {
        let mut pair = Pair::new();
        pair.a.iss = SeqNumber::new(wire_start);
        pair.b.iss = SeqNumber::new(!wire_start);
        pair.connect();
        pair.write(Side::B, 50_000);
        pair.flush();
        let base = next_of_a(&mut pair);
        pair.a.connection = None;
        pair.a.memory.sent = vec![5; 1000];
        let mut told = blocks.iter().cycle();
        for (seq, ack, flags, window, payload_len, timestamps) in pieces {
            let mut sack = [(SeqNumber::default(), SeqNumber::default()); 4];
            for (block, (from, len)) in sack.iter_mut().zip(&mut told) {
                let from = base.ack + u32::from(*from);
                *block = (from, SeqNumber::new(from.value().wrapping_add_signed((*len).into())));
            }
            let option = Timestamps { value: wire_start.rotate_left(7) + 1100, echo: 0 };
            let segment = Outgoing {
                seq: SeqNumber::new(base.seq.value().wrapping_add_signed(seq.into())),
                ack: SeqNumber::new(base.ack.value().wrapping_add_signed(i32::from(ack) * 2)),
                flags: Flags::from_bits(flags),
                window,
                options: Options {
                    timestamps: timestamps.then_some(option),
                    sack,
                    sack_len: (flags >> 5).min(4),
                    ..Options::default()
                },
                payload_position: 0,
                payload_len,
                segment_size: 0,
            };
            pair.put_on_wire(Side::A, &segment);
            pair.run_for(20_000);
            let progress = pair.b.tcp().progress();
            prop_assert!(progress.tx_acked <= 50_000);
        }
        pair.run_for(100_000);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        if let Ok(segment) = Segment::parse(&bytes) {
            let mut pair = Pair::established();
            pair.deliver(Side::B, &bytes);
            prop_assert!(segment.payload.len() <= 100);
        }
    }
}
