//! Opening: option mixes, retries, simultaneous open, refusals.

use super::pair::{DELAY_US, Fate, Pair, Side};
use crate::tcp::*;
use crate::{Close, SocketError, SocketOption};

#[test]
fn three_segments_establish_both_sides() {
    let mut pair = Pair::new();
    pair.b.listens = true;
    pair.open(Side::A);
    pair.run_for(10 * DELAY_US);
    let flags: Vec<Flags> = pair.seen.iter().map(|seen| seen.flags).collect();
    assert_eq!(flags, [Flags::SYN, Flags::SYN | Flags::ACK, Flags::ACK]);
    assert_eq!(pair.a.dispositions, [Disposition::Established]);
    assert_eq!(pair.b.dispositions, [Disposition::Established]);
    assert!(pair.a.tcp().progress().connected && pair.b.tcp().take_changed());
    let info = pair.a.tcp().info(pair.now);
    assert_eq!((info.srtt_us, info.rto_us), (10_000, 210_000));
    assert_eq!(info.cwnd, 10 * 1448);
    assert_eq!(info.window_scale, Some((4, 4)));
}

/// Rewrites a SYN's options by replacing them with NOPs.
fn without_option(bytes: &[u8], kind: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let end = usize::from(bytes[12] >> 4) * 4;
    let mut at = 20;
    while at < end {
        let len = if bytes[at] == 1 { 1 } else { usize::from(bytes[at + 1]) };
        if bytes[at] == kind {
            bytes[at..at + len].fill(1);
        }
        at += len;
    }
    bytes
}

#[test]
fn every_mix_of_options_works() {
    for removed in 0..8u8 {
        for from_answer in [false, true] {
            let mut pair = Pair::new();
            pair.b.listens = true;
            pair.open(Side::A);
            let now = pair.now;
            let syn = pair.a.tcp().poll_segment(now, &mut TcpCounters::default()).unwrap();
            let mut bytes = vec![0; 60];
            let len = syn.emit(40_000, 80, &mut bytes, |_| {});
            let mut bytes = bytes[..len].to_vec();
            let strip = |bytes: &mut Vec<u8>| {
                for (bit, kind) in [2, 3, 8].into_iter().enumerate() {
                    if removed & (1 << bit) != 0 {
                        *bytes = without_option(bytes, kind);
                    }
                }
            };
            if !from_answer {
                strip(&mut bytes);
            }
            pair.deliver(Side::B, &bytes);
            let answer = pair.b.tcp().poll_segment(now, &mut TcpCounters::default()).unwrap();
            let mut bytes = vec![0; 60];
            let len = answer.emit(80, 40_000, &mut bytes, |_| {});
            let mut bytes = bytes[..len].to_vec();
            let answer = Segment::parse(&bytes).unwrap().options;
            if !from_answer {
                assert!(answer.mss.is_some());
                assert_eq!(answer.window_scale.is_some(), removed & 2 == 0);
                assert_eq!(answer.timestamps.is_some(), removed & 4 == 0);
            } else {
                strip(&mut bytes);
            }
            pair.deliver(Side::A, &bytes);
            let info = pair.a.tcp().info(now);
            assert_eq!(info.state, State::Established);
            assert_eq!(info.window_scale.is_some(), removed & 2 == 0);
            assert_eq!(info.timestamps, removed & 4 == 0);
            let whole: u16 = if removed & 1 != 0 && from_answer { 536 } else { 1460 };
            assert_eq!(info.send_mss, whole - if removed & 4 == 0 { 12 } else { 0 });
            if !from_answer {
                pair.write(Side::A, 300_000);
                pair.write(Side::B, 300_000);
                pair.run_for(60_000_000);
                pair.assert_delivered(Side::A);
                pair.assert_delivered(Side::B);
            }
        }
    }
}

#[test]
fn syn_is_sent_again_after_one_two_four_seconds() {
    let mut pair = Pair::new();
    pair.open(Side::A);
    pair.set_fault(|_, _, _, _| Fate::Drop);
    let start = pair.now;
    pair.run_for(200_000_000);
    let times: Vec<u64> = pair.seen.iter().map(|seen| seen.at.since(start) / 1_000_000).collect();
    assert_eq!(times, [0, 1, 3, 7, 15, 31, 63]);
    assert_eq!(pair.a.timer_outcomes, [TimerOutcome::Closed(None)]);
    assert_eq!(pair.a.tcp().progress().error, Some(SocketError::TimedOut));
    assert!(pair.a.tcp().progress().finished);
}

#[test]
fn repeated_syn_is_the_one_that_is_echoed() {
    let mut pair = Pair::new();
    pair.b.listens = true;
    pair.set_fault(|_, from, _, _| if from == Side::B { Fate::Drop } else { Fate::Deliver });
    let mut syn = Outgoing { flags: Flags::SYN, seq: pair.a.iss, ..Outgoing::default() };
    for value in [1000, 2000] {
        syn.options.timestamps = Some(Timestamps { value, echo: 0 });
        pair.put_on_wire(Side::A, &syn);
        pair.run_for(2 * DELAY_US);
    }
    let echoes: Vec<u32> =
        pair.from(Side::B).iter().map(|seen| seen.options.timestamps.unwrap().echo).collect();
    assert_eq!(echoes, [1000, 2000]);
}

#[test]
fn syn_ack_is_sent_again_and_given_up() {
    let mut pair = Pair::new();
    pair.b.listens = true;
    pair.open(Side::A);
    pair.set_fault(|_, side, _, _| if side == Side::B { Fate::Drop } else { Fate::Deliver });
    pair.flush();
    pair.run_for(DELAY_US);
    pair.a.connection = None;
    pair.run_for(100_000_000);
    assert_eq!(pair.from(Side::B).len(), 6);
    assert_eq!(pair.b.timer_outcomes, [TimerOutcome::Closed(None)]);
}

#[test]
fn lost_segments_of_the_handshake_are_repaired() {
    for lost in 0..3 {
        let mut pair = Pair::new();
        pair.b.listens = true;
        pair.open(Side::A);
        let mut count = 0;
        pair.set_fault(move |_, _, _, _| {
            count += 1;
            if count - 1 == lost { Fate::Drop } else { Fate::Deliver }
        });
        pair.run_for(3_000_000);
        pair.write(Side::A, 5000);
        pair.write(Side::B, 5000);
        pair.run_for(3_000_000);
        pair.assert_delivered(Side::A);
        pair.assert_delivered(Side::B);
    }
}

#[test]
fn simultaneous_open() {
    let mut pair = Pair::new();
    pair.open(Side::A);
    pair.open(Side::B);
    pair.run_for(20 * DELAY_US);
    assert_eq!((pair.a.state(), pair.b.state()), (State::Established, State::Established));
    assert_eq!(pair.a.dispositions, [Disposition::Established]);
    let syn_acks = pair.seen.iter().filter(|seen| seen.flags == Flags::SYN | Flags::ACK).count();
    assert_eq!(syn_acks, 2);
    pair.write(Side::A, 20_000);
    pair.write(Side::B, 20_000);
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
    pair.assert_delivered(Side::B);
}

#[test]
fn nobody_listens() {
    let mut pair = Pair::new();
    pair.open(Side::A);
    pair.run_for(10 * DELAY_US);
    assert_eq!(pair.a.dispositions, [Disposition::Reset]);
    assert_eq!(pair.a.tcp().progress().error, Some(SocketError::ConnectionRefused));
}

#[test]
fn syn_sent_answers_a_wrong_acknowledgement_with_reset() {
    let mut pair = Pair::new();
    pair.open(Side::A);
    pair.flush();
    let stray = Outgoing {
        seq: SeqNumber::new(5),
        ack: SeqNumber::new(77),
        flags: Flags::SYN | Flags::ACK,
        ..Outgoing::default()
    };
    pair.b.connection = None;
    pair.put_on_wire(Side::B, &stray);
    pair.set_fault(|_, _, _, _| Fate::Drop);
    pair.run_for(DELAY_US);
    let reset = pair.from(Side::A).last().copied().unwrap().clone();
    assert_eq!((reset.flags, reset.seq), (Flags::RST, SeqNumber::new(77)));
    assert_eq!(pair.a.state(), State::SynSent);
    // A bare reset without the right acknowledgement does nothing.
    let blind = Outgoing { seq: SeqNumber::new(1), flags: Flags::RST, ..Outgoing::default() };
    let mut bytes = vec![0; 60];
    let len = blind.emit(80, 40_000, &mut bytes, |_| {});
    pair.deliver(Side::A, &bytes[..len]);
    assert_eq!(pair.a.state(), State::SynSent);
}

#[test]
fn old_duplicate_syn_is_undone_by_reset() {
    // RFC 9293 figure 9: B answers an old SYN, A's reset removes the half-open connection.
    let mut pair = Pair::new();
    pair.b.listens = true;
    pair.open(Side::A);
    let old = Outgoing { seq: SeqNumber::new(1 << 30), flags: Flags::SYN, ..Outgoing::default() };
    pair.put_on_wire(Side::A, &old);
    pair.set_fault(|_, _, _, segment| {
        let first = segment.flags == Flags::SYN;
        if first { Fate::Late(30_000) } else { Fate::Deliver }
    });
    pair.run_for(3 * DELAY_US + 1);
    assert_eq!(pair.b.dispositions, [Disposition::Reset]);
    pair.b.connection = None;
    pair.b.dispositions.clear();
    pair.run_for(100_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::Established, State::Established));
}

#[test]
fn duplicate_syn_of_an_open_connection_is_challenged() {
    let mut pair = Pair::established();
    let syn = Outgoing { seq: pair.a.iss, flags: Flags::SYN, ..Outgoing::default() };
    pair.put_on_wire(Side::A, &syn);
    pair.run_for(3 * DELAY_US);
    assert_eq!((pair.a.state(), pair.b.state()), (State::Established, State::Established));
    assert_eq!(pair.from(Side::B).len(), 1);
    assert_eq!(pair.b.counters.drop_unexpected_syn, 1);
}

#[test]
fn half_open_peer_discovers_the_crash() {
    // RFC 9293 figure 10: A has forgotten the connection and opens it again.
    let mut pair = Pair::established();
    pair.a.iss = SeqNumber::new(5_000_000);
    pair.open(Side::A);
    pair.run_for(5 * DELAY_US);
    assert_eq!(pair.b.dispositions.last(), Some(&Disposition::Reset));
    pair.b.connection = None;
    pair.run_for(1_100_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::Established, State::Established));
}

#[test]
fn data_and_close_queued_before_the_handshake_go_out_after_it() {
    let mut pair = Pair::new();
    pair.b.listens = true;
    pair.open(Side::A);
    pair.write(Side::A, 3000);
    pair.shutdown_send(Side::A);
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
    assert_eq!((pair.a.state(), pair.b.state()), (State::FinWait2, State::CloseWait));
}

#[test]
fn close_in_syn_sent_is_silent() {
    let mut pair = Pair::new();
    pair.open(Side::A);
    pair.flush();
    pair.close(Side::A, Close::Graceful);
    assert_eq!(pair.a.state(), State::Closed);
    assert_eq!(pair.seen.len(), 1);
}

#[test]
fn close_in_syn_received_sends_fin_after_the_handshake() {
    let mut pair = Pair::new();
    pair.b.listens = true;
    pair.open(Side::A);
    pair.flush();
    pair.run_for(DELAY_US);
    assert_eq!(pair.b.state(), State::SynReceived);
    pair.close(Side::B, Close::Graceful);
    pair.run_for(10 * DELAY_US);
    assert_eq!((pair.a.state(), pair.b.state()), (State::CloseWait, State::FinWait2));
}

#[test]
fn window_scale_follows_the_buffer_limit() {
    use crate::tcp::window::shift_for;
    assert_eq!([shift_for(65_535), shift_for(65_536), shift_for(960 << 10)], [0, 1, 4]);
    assert_eq!(shift_for(u32::MAX), 14);
}

#[test]
fn user_limits_the_segment() {
    let mut pair = Pair::new();
    pair.b.options.set(SocketOption::MaxSegment(1000));
    pair.connect();
    assert_eq!(pair.a.tcp().info(pair.now).send_mss, 988);
    assert_eq!(pair.b.tcp().info(pair.now).send_mss, 988);
}
