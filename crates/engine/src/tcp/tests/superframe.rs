//! Superframes against single segments: cut, they must be exactly what the connection would have
//! sent one by one; and merged segments on receive.

use proptest::prelude::*;

use super::pair::{Fate, Pair, Side, socket_id};
use crate::tcp::*;
use crate::{Instant, SocketOption};

const PAYLOAD: usize = 1448;
/// What fits a packet of 65535 bytes beside the longest headers.
const PAYLOAD_MAX: u32 = 65_435;

/// How a sender has come to have something to send.
#[derive(Clone, Debug)]
struct Story {
    /// Written, delivered and acknowledged before: opens the congestion window.
    before: usize,
    /// Written before the last poll in portions, some still in flight.
    portions: Vec<usize>,
    /// Receive buffer of the peer.
    buffer: u32,
    no_delay: bool,
    cork: bool,
    shuts: bool,
    lost: bool,
}

impl Story {
    /// A pair whose first host has something to send now.
    fn tell(&self) -> Pair {
        let mut pair = Pair::new();
        pair.b.options.set(SocketOption::ReceiveBuffer(self.buffer));
        pair.a.options.set(SocketOption::NoDelay(self.no_delay));
        pair.connect();
        if self.before > 0 {
            pair.write(Side::A, self.before);
            pair.run_for(3_000_000);
        }
        if self.lost {
            pair.set_fault(|_, side, number, _| match (side, number) {
                (Side::A, 1) => Fate::Drop,
                _ => Fate::Deliver,
            });
        }
        for &portion in &self.portions[1..] {
            pair.write(Side::A, portion);
            pair.run_for(2_000);
        }
        pair.a.tcp().set_option(pair.now, SocketOption::Cork(self.cork));
        pair.write(Side::A, self.portions[0]);
        if self.shuts {
            pair.shutdown_send(Side::A);
        }
        pair
    }
}

fn story() -> impl Strategy<Value = Story> {
    let portions = prop::collection::vec(
        prop_oneof![1..5_000usize, 1..300_000usize, (1..60usize).prop_map(|n| n * PAYLOAD)],
        1..5,
    );
    let buffer = prop_oneof![5_000..40_000u32, Just(256 * 1024)];
    (prop_oneof![Just(0), 1..600_000usize], portions, buffer, any::<[bool; 4]>()).prop_map(
        |(before, portions, buffer, [no_delay, cork, shuts, lost])| Story {
            before,
            portions,
            buffer,
            no_delay,
            cork,
            shuts,
            lost,
        },
    )
}

/// Sequence number, payload and flags of all segments that one side sends now, superframes cut.
fn sent_now(pair: &mut Pair, payload_max: u32) -> Vec<(u32, usize, Flags)> {
    let now = pair.now;
    let mut list = Vec::new();
    while let Some(outgoing) = pair.a.connection.as_mut().expect("open").poll_superframe(
        now,
        payload_max,
        &mut pair.a.counters,
    ) {
        let size = usize::from(outgoing.segment_size);
        assert!(outgoing.payload_len <= (payload_max as usize).max(PAYLOAD));
        assert!(size == 0 || outgoing.payload_len > size);
        let count = outgoing.count() as usize;
        for number in 0..count {
            let from = number * size;
            let part = (outgoing.payload_len - from).min(if size == 0 { usize::MAX } else { size });
            let seq = outgoing.seq + from as u32;
            let last = number + 1 == count;
            list.push((seq.value(), part, if last { outgoing.flags } else { Flags::ACK }));
        }
    }
    list
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cut_superframes_are_the_single_segments(story in story(), max in 0..PAYLOAD_MAX) {
        let (mut single, mut super_) = (story.tell(), story.tell());
        let before = super_.a.counters.data_segments_sent;
        let wanted = sent_now(&mut single, 0);
        for payload_max in [max, PAYLOAD_MAX] {
            let mut cut = story.tell();
            prop_assert_eq!(sent_now(&mut cut, payload_max), wanted.clone());
        }
        let _ = sent_now(&mut super_, PAYLOAD_MAX);
        prop_assert_eq!(&super_.a.counters, &single.a.counters);
        prop_assert!(super_.a.counters.data_segments_sent >= before);
        let info = |pair: &mut Pair| { let now = pair.now; pair.a.tcp().info(now) };
        prop_assert_eq!(info(&mut super_), info(&mut single));
        prop_assert_eq!(
            super_.a.tcp().next_timeout(), single.a.tcp().next_timeout()
        );
    }
}

#[test]
fn a_superframe_takes_what_the_windows_allow() {
    let mut pair = Pair::established();
    pair.write(Side::A, 600_000);
    pair.run_for(200_000);
    pair.assert_delivered(Side::A);
    pair.write(Side::A, 100 * PAYLOAD + 7);
    let now = pair.now;
    let mut take = || {
        pair.a
            .connection
            .as_mut()
            .unwrap()
            .poll_superframe(now, PAYLOAD_MAX, &mut pair.a.counters)
            .unwrap()
    };
    let (first, second) = (take(), take());
    assert_eq!((first.payload_len, first.segment_size), (45 * PAYLOAD, PAYLOAD as u16));
    assert_eq!(second.seq, first.seq + first.payload_len as u32);
    assert!(!first.flags.contains(Flags::PSH));
    let last = take();
    assert_eq!((last.payload_len, last.count()), (10 * PAYLOAD + 7, 11));
    assert!(last.flags.contains(Flags::PSH));
}

/// What the receiver says to one segment of `count` merged ones of `size` bytes.
fn answers_to(pair: &mut Pair, at: usize, size: usize, count: usize) -> Vec<Outgoing> {
    let payload: Vec<u8> = (0..size * count).map(|byte| byte as u8).collect();
    let now: Instant = pair.now;
    let segment = Segment {
        source_port: 40_000,
        destination_port: 80,
        seq: pair.a.iss + 1 + at as u32,
        ack: pair.b.iss + 1,
        flags: Flags::ACK,
        window: 1000,
        urgent: 0,
        options: Options::default(),
        payload: &payload,
        segment_size: if count > 1 { size as u16 } else { 0 },
    };
    let b = &mut pair.b;
    let connection = b.connection.as_mut().expect("open");
    let _ = connection.handle_segment(now, socket_id(), &segment, &mut b.memory, &mut b.counters);
    std::iter::from_fn(|| connection.poll_segment(now, &mut b.counters)).collect()
}

#[test]
fn merged_segments_are_acknowledged_at_once_and_tell_their_size() {
    let mut pair = Pair::new();
    pair.a.mss = 1000;
    pair.connect();
    // Past the quick acknowledgements of the start, a lone segment waits.
    let mut at = 0;
    for _ in 0..40 {
        let _ = answers_to(&mut pair, at, 1000, 1);
        at += 1000;
    }
    let before = pair.b.tcp().info(pair.now).receive_mss;
    assert_eq!(before, 1000);
    let answers = answers_to(&mut pair, at, 1000, 44);
    at += 44_000;
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].ack, pair.a.iss + 1 + at as u32);
    assert_eq!(pair.b.tcp().info(pair.now).receive_mss, 1000, "not the superframe's length");
    assert_eq!(pair.b.tcp().progress().rx_end, at as u64);
}
