//! Data without loss: delayed acknowledgements, Nagle, cork, windows, probes, keep-alive.

use super::pair::{DELAY_US, Fate, Pair, Side};
use crate::tcp::*;
use crate::{Instant, SocketError, SocketOption};

const PAYLOAD: usize = 1448;

#[test]
fn both_directions_carry_data() {
    let mut pair = Pair::established();
    pair.write(Side::A, 1_000_000);
    pair.write(Side::B, 700_000);
    pair.run_for(5_000_000);
    pair.assert_delivered(Side::A);
    pair.assert_delivered(Side::B);
    assert_eq!(pair.a.counters.retransmitted_segments, 0);
}

#[test]
fn window_above_64_kib_is_used() {
    let mut pair = Pair::established();
    pair.delay_us = 50_000;
    pair.write(Side::A, 900_000);
    let mut most = 0;
    for _ in 0..200 {
        pair.run_for(10_000);
        most = most.max(pair.a.tcp().info(pair.now).unacknowledged);
    }
    assert!(most > 200_000, "{most}");
    pair.assert_delivered(Side::A);
}

#[test]
fn receive_buffer_grows_with_the_reader() {
    let mut pair = Pair::established();
    pair.delay_us = 50_000;
    for _ in 0..40 {
        pair.write(Side::A, 400_000);
        pair.run_for(200_000);
    }
    let info = pair.b.tcp().info(pair.now);
    assert!(info.receive_window > 900_000, "{}", info.receive_window);
}

#[test]
fn fixed_receive_buffer_stays() {
    let mut pair = Pair::new();
    pair.b.options.set(SocketOption::ReceiveBuffer(20_000));
    pair.connect();
    for _ in 0..20 {
        pair.write(Side::A, 100_000);
        pair.run_for(500_000);
    }
    pair.assert_delivered(Side::A);
    assert!(pair.b.tcp().info(pair.now).receive_window <= 20_000);
}

#[test]
fn first_segments_are_acknowledged_at_once_and_conversation_with_delay() {
    let mut pair = Pair::established();
    pair.write(Side::A, 100);
    pair.run_for(DELAY_US);
    let acks = pair.from(Side::B);
    assert_eq!(acks.len(), 1, "quick acknowledgement at the start");
    // B answers, and A answers the answer: acknowledgements ride on data from then on.
    pair.run_for(DELAY_US);
    for _ in 0..3 {
        pair.write(Side::B, 10);
        pair.run_for(DELAY_US);
        pair.write(Side::A, 10);
        pair.run_for(DELAY_US);
    }
    pair.run_for(1_000_000);
    let before = pair.b.counters.delayed_acks_sent;
    pair.write(Side::A, 10);
    pair.run_for(DELAY_US);
    pair.write(Side::B, 10);
    pair.run_for(DELAY_US);
    pair.write(Side::A, 10);
    pair.run_for(DELAY_US);
    let sent = pair.now;
    pair.seen.clear();
    pair.run_for(200_000);
    let ack = pair.from(Side::B)[0];
    assert_eq!((ack.len, ack.at.since(sent)), (0, 40_000));
    assert_eq!(pair.b.counters.delayed_acks_sent, before + 1);
}

/// Establishes a pair whose receiver B has used up its quick acknowledgements.
fn without_quick_acks() -> Pair {
    let mut pair = Pair::established();
    for _ in 0..20 {
        pair.write(Side::A, 2 * PAYLOAD);
        pair.run_for(2 * DELAY_US);
    }
    pair.run_for(100_000);
    pair.seen.clear();
    pair
}

#[test]
fn second_full_segment_is_acknowledged_at_once() {
    let mut pair = without_quick_acks();
    pair.write(Side::A, 4 * PAYLOAD);
    let start = pair.now;
    pair.run_for(DELAY_US);
    let times: Vec<u64> = pair.from(Side::B).iter().map(|ack| ack.at.since(start)).collect();
    assert_eq!(times, [DELAY_US], "one acknowledgement for the burst, at once");
    pair.run_for(DELAY_US);
    // A full segment that is not the end of what was written.
    pair.a.options.cork = true;
    pair.a.tcp().set_option(Instant::default(), SocketOption::Cork(true));
    pair.write(Side::A, PAYLOAD + 10);
    pair.seen.clear();
    let start = pair.now;
    pair.run_for(100_000);
    assert_eq!(pair.from(Side::B)[0].at.since(start), DELAY_US + 40_000);
}

/// One that only listens acknowledges when it has read, or a peer with Nagle's algorithm would send
/// one small write in 40 ms.
#[test]
fn writes_one_way_are_acknowledged_without_the_delay() {
    let mut pair = without_quick_acks();
    for round in 0..30 {
        let start = pair.now;
        pair.seen.clear();
        pair.write(Side::A, 100);
        pair.flush();
        pair.write(Side::A, 100);
        pair.run_for(8 * DELAY_US);
        let held = pair.occupying(Side::A)[1].at.since(start);
        assert_eq!((round, held), (round, 2 * DELAY_US + 500));
    }
}

/// In a conversation an acknowledgement waits for the answer, once: who is silent for longer leaves
/// it, and the pieces that follow do not wait again.
#[test]
fn a_request_in_pieces_waits_for_one_delay() {
    let mut pair = without_quick_acks();
    for round in 0..5 {
        for _ in 0..2 {
            pair.write(Side::A, 50);
            pair.run_for(DELAY_US + 100);
            pair.write(Side::B, 10);
            pair.run_for(2 * DELAY_US);
        }
        pair.seen.clear();
        let start = pair.now;
        for _ in 0..4 {
            pair.write(Side::A, 100);
            pair.run_for(100);
        }
        pair.run_for(80_000);
        pair.write(Side::A, 100);
        pair.run_for(100);
        pair.write(Side::A, 100);
        pair.run_for(60_000);
        let times: Vec<u64> = pair.occupying(Side::A).iter().map(|s| s.at.since(start)).collect();
        let second = 2 * DELAY_US + 40_000;
        let third = 80_400;
        let expected = [0, second, third, third + 2 * DELAY_US + 500];
        assert_eq!((round, &times[..]), (round, &expected[..]));
    }
}

/// A second small segment is acknowledged when it was read, conversation or not.
#[test]
fn second_small_segment_is_acknowledged_without_the_delay() {
    let mut pair = without_quick_acks();
    pair.a.tcp().set_option(Instant::default(), SocketOption::NoDelay(true));
    for _ in 0..3 {
        pair.write(Side::A, 50);
        pair.run_for(DELAY_US + 100);
        pair.write(Side::B, 10);
        pair.run_for(2 * DELAY_US);
    }
    pair.seen.clear();
    let start = pair.now;
    pair.write(Side::A, 100);
    pair.run_for(100);
    pair.write(Side::A, 100);
    pair.run_for(60_000);
    let acks: Vec<u64> = pair.from(Side::B).iter().map(|seen| seen.at.since(start)).collect();
    assert_eq!(acks, [DELAY_US + 100 + 500]);
}

#[test]
fn nagle_holds_the_second_small_segment() {
    let mut pair = Pair::established();
    pair.write(Side::A, 100);
    pair.flush();
    pair.write(Side::A, 100);
    pair.flush();
    pair.write(Side::A, 100);
    pair.flush();
    assert_eq!(pair.from(Side::A).len(), 1);
    pair.run_for(3 * DELAY_US);
    let lens: Vec<usize> = pair.occupying(Side::A).iter().map(|seen| seen.len).collect();
    assert_eq!(lens, [100, 200]);
}

#[test]
fn minshall_lets_a_small_segment_follow_full_ones() {
    let mut pair = Pair::established();
    pair.write(Side::A, 2 * PAYLOAD + 100);
    pair.flush();
    let lens: Vec<usize> = pair.from(Side::A).iter().map(|seen| seen.len).collect();
    assert_eq!(lens, [PAYLOAD, PAYLOAD, 100]);
    let pushed: Vec<bool> = pair.from(Side::A).iter().map(|seen| seen.has(Flags::PSH)).collect();
    assert_eq!(pushed, [false, false, true]);
}

#[test]
fn no_delay_sends_small_segments_at_once() {
    let mut pair = Pair::new();
    pair.a.options.no_delay = true;
    pair.connect();
    for _ in 0..3 {
        pair.write(Side::A, 100);
        pair.flush();
    }
    assert_eq!(pair.from(Side::A).len(), 3);
}

#[test]
fn cork_holds_until_full_pulled_or_200_ms() {
    let mut pair = Pair::new();
    pair.a.options.cork = true;
    pair.connect();
    let start = pair.now;
    pair.write(Side::A, PAYLOAD + 10);
    pair.run_for(3 * DELAY_US);
    assert_eq!(pair.occupying(Side::A).len(), 1);
    pair.run_for(500_000);
    let last = pair.occupying(Side::A)[1].clone();
    assert_eq!(last.len, 10);
    let waited = last.at.since(start);
    assert!((200_000..=260_000).contains(&waited), "{waited}");
    pair.write(Side::A, 10);
    pair.flush();
    assert_eq!(pair.occupying(Side::A).len(), 2);
    let now = pair.now;
    pair.a.tcp().set_option(now, SocketOption::Cork(false));
    pair.flush();
    assert_eq!(pair.occupying(Side::A).len(), 3);
}

#[test]
fn setting_no_delay_pushes_what_the_cork_holds() {
    let mut pair = Pair::new();
    pair.a.options.cork = true;
    pair.connect();
    pair.write(Side::A, 80);
    pair.run_for(DELAY_US);
    assert!(pair.occupying(Side::A).is_empty());
    let now = pair.now;
    pair.a.tcp().set_option(now, SocketOption::NoDelay(true));
    pair.flush();
    assert_eq!(pair.occupying(Side::A).len(), 1);
    // The cork is still in.
    pair.write(Side::A, 10);
    pair.run_for(DELAY_US);
    assert_eq!(pair.occupying(Side::A).len(), 1);
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
}

#[test]
fn zero_window_is_probed_with_backoff_and_reopens() {
    let mut pair = Pair::new();
    pair.b.options.set(SocketOption::ReceiveBuffer(8 * 1448));
    pair.connect();
    pair.b.reads = false;
    pair.write(Side::A, 50_000);
    pair.run_for(1_000_000);
    assert_eq!(pair.b.tcp().progress().rx_end, 8 * 1448);
    assert_eq!(pair.from(Side::B).last().unwrap().window, 0);
    let filled = pair.occupying(Side::A).last().unwrap().at;
    pair.seen.clear();
    pair.run_until(filled.plus_us(20_000_000));
    let probes: Vec<u64> = pair.from(Side::A).iter().map(|seen| seen.at.us()).collect();
    let gaps: Vec<u64> = probes.windows(2).map(|pair| (pair[1] - pair[0]) / 10_000).collect();
    assert!(gaps.len() >= 3, "{gaps:?}");
    assert!(gaps.windows(2).all(|pair| pair[1].abs_diff(2 * pair[0]) <= 2), "{gaps:?}");
    assert!(pair.from(Side::A).iter().all(|seen| seen.len == 0));
    pair.b.reads = true;
    pair.read(Side::B);
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
    assert_eq!(pair.a.counters.retransmitted_segments, 0);
}

#[test]
fn window_that_cannot_be_told_is_no_news() {
    let mut pair = Pair::new();
    pair.b.reads = false;
    pair.b.listens = true;
    pair.set_fault(|_, from, _, _| if from == Side::B { Fate::Drop } else { Fate::Deliver });
    // A peer without window scaling, and a receive buffer of more than 64 KiB.
    let mut syn = Outgoing { flags: Flags::SYN, seq: pair.a.iss, ..Outgoing::default() };
    syn.window = 65_535;
    pair.put_on_wire(Side::A, &syn);
    pair.run_for(2 * DELAY_US);
    let acknowledgement = pair.b.iss + 1;
    let mut data = Outgoing { flags: Flags::ACK, seq: syn.seq + 1, ..Outgoing::default() };
    (data.ack, data.window, data.payload_len) = (acknowledgement, 65_535, 10);
    pair.a.memory.sent = vec![7; 10];
    pair.put_on_wire(Side::A, &data);
    pair.run_for(1_000_000);
    assert_eq!(pair.b.tcp().progress().rx_end, 10);
    pair.seen.clear();
    pair.read(Side::B);
    pair.run_for(1_000_000);
    assert!(pair.from(Side::B).is_empty(), "{:?}", pair.seen);
}

#[test]
fn lost_window_update_is_found_by_a_probe() {
    let mut pair = Pair::new();
    pair.b.options.set(SocketOption::ReceiveBuffer(8 * 1448));
    pair.connect();
    pair.b.reads = false;
    pair.write(Side::A, 50_000);
    pair.run_for(3_000_000);
    pair.set_fault(|_, side, index, _| match (side, index) {
        (Side::B, 0) => Fate::Drop,
        _ => Fate::Deliver,
    });
    pair.b.reads = true;
    pair.read(Side::B);
    pair.run_for(10_000_000);
    pair.assert_delivered(Side::A);
}

#[test]
fn probes_go_on_while_answered_and_user_timeout_ends_them() {
    let mut pair = Pair::new();
    pair.b.options.set(SocketOption::ReceiveBuffer(8 * 1448));
    pair.connect();
    pair.b.reads = false;
    pair.write(Side::A, 50_000);
    pair.run_for(10_000_000_000);
    assert_eq!(pair.a.state(), State::Established);
    let now = pair.now;
    pair.a.tcp().set_option(now, SocketOption::UserTimeout(5_000));
    pair.run_for(400_000_000);
    assert_eq!(pair.a.tcp().progress().error, Some(SocketError::TimedOut));
}

#[test]
fn silly_windows_are_not_offered() {
    let mut pair = Pair::new();
    pair.b.options.set(SocketOption::ReceiveBuffer(8 * 1448));
    pair.connect();
    pair.b.reads = false;
    pair.write(Side::A, 50_000);
    pair.run_for(3_000_000);
    pair.seen.clear();
    // The application reads a little at a time: the peer hears of it once there is room for a
    // segment, and sends full segments only.
    let mut position = 0;
    for _ in 0..100 {
        position += 100;
        let now = pair.now;
        pair.b.tcp().receive_consumed(now, position);
        pair.run_for(20_000);
    }
    let offers: Vec<u16> = pair.from(Side::B).iter().map(|seen| seen.window).collect();
    let openings = offers.windows(2).filter(|pair| pair[0] < 16 && pair[1] > pair[0]);
    assert!(openings.clone().count() >= 4);
    assert!(openings.clone().all(|pair| usize::from(pair[1]) * 16 >= PAYLOAD), "{offers:?}");
    let full = pair.occupying(Side::A).iter().filter(|seen| seen.len == PAYLOAD).count();
    assert!(full >= 4);
}

#[test]
fn narrow_window_is_used_when_it_is_all_there_is() {
    let mut pair = Pair::new();
    pair.b.limits.receive_buffer_max = 1000;
    pair.connect();
    pair.write(Side::A, 5000);
    pair.run_for(5_000_000);
    pair.assert_delivered(Side::A);
}

#[test]
fn memory_shortage_counts_as_not_received() {
    let mut pair = Pair::established();
    pair.b.memory.limit = 5_000;
    pair.write(Side::A, 40_000);
    pair.run_for(500_000);
    assert_eq!(pair.b.tcp().progress().rx_end, 5_000);
    assert!(pair.b.counters.drop_no_memory > 0);
    pair.b.memory.limit = usize::MAX;
    pair.run_for(20_000_000);
    pair.assert_delivered(Side::A);
}

#[test]
fn keep_alive_asks_and_gives_up() {
    let mut pair = Pair::new();
    pair.a.options.keep_alive = true;
    pair.a.options.keep_idle_s = 10;
    pair.a.options.keep_interval_s = 2;
    pair.a.options.keep_count = 3;
    pair.connect();
    let start = pair.now;
    pair.run_for(35_000_000);
    assert_eq!(pair.a.counters.keepalive_probes_sent, 3);
    assert_eq!(pair.from(Side::B).len(), 3, "the peer answers probes");
    pair.seen.clear();
    pair.set_fault(|_, _, _, _| Fate::Drop);
    pair.run_for(60_000_000);
    let probes: Vec<u64> =
        pair.from(Side::A).iter().map(|seen| seen.at.since(start) / 1_000_000).collect();
    assert_eq!(probes.len(), 4);
    assert_eq!(probes[1] - probes[0], 2);
    assert!(pair.from(Side::A)[3].has(Flags::RST));
    assert_eq!(pair.a.tcp().progress().error, Some(SocketError::TimedOut));
}

#[test]
fn user_timeout_ends_a_silent_connection_in_time() {
    let mut pair = Pair::new();
    pair.a.options.user_timeout_ms = 3_000;
    pair.connect();
    pair.set_fault(|_, _, _, _| Fate::Drop);
    pair.write(Side::A, 100);
    let start = pair.now;
    pair.flush();
    let mut ended = Instant::default();
    for _ in 0..1000 {
        pair.run_for(10_000);
        if pair.a.state() == State::Closed {
            ended = pair.now;
            break;
        }
    }
    let waited = ended.since(start);
    assert!((3_000_000..=3_010_000).contains(&waited), "{waited}");
    assert_eq!(pair.a.tcp().progress().error, Some(SocketError::TimedOut));
}

#[test]
fn idle_connection_starts_slowly_again() {
    let mut pair = Pair::established();
    for _ in 0..20 {
        pair.write(Side::A, 200_000);
        pair.run_for(100_000);
    }
    let before = pair.a.tcp().info(pair.now).cwnd;
    assert!(before > 100_000, "{before}");
    pair.run_for(10_000_000);
    pair.write(Side::A, 10);
    pair.run_for(100_000);
    assert!(pair.a.tcp().info(pair.now).cwnd <= 11 * 1448);
}

#[test]
fn unused_window_does_not_grow() {
    let mut pair = Pair::established();
    for _ in 0..200 {
        pair.write(Side::A, 100);
        pair.run_for(3 * DELAY_US);
    }
    assert_eq!(pair.a.tcp().info(pair.now).cwnd, 10 * 1448);
}

#[test]
fn shutdown_receive_discards_and_acknowledges() {
    let mut pair = Pair::established();
    pair.b.reads = false;
    pair.write(Side::A, 1000);
    pair.run_for(100_000);
    let now = pair.now;
    pair.b.tcp().shutdown_receive(now);
    pair.write(Side::A, 900_000);
    pair.run_for(3_000_000);
    assert_eq!(pair.a.tcp().progress().tx_acked, 901_000);
    assert_eq!(pair.b.tcp().progress().rx_end, 1000);
    assert_eq!(pair.b.memory.received.len(), 1000);
    assert_eq!(pair.b.counters.discarded_after_shutdown, 900_000);
}

#[test]
fn send_ready_is_monotonic_and_bounded() {
    let mut pair = Pair::new();
    pair.a.limits.send_buffer_max = 10_000;
    pair.connect();
    pair.set_fault(|_, _, _, _| Fate::Drop);
    pair.a.memory.sent = vec![0; 10_000];
    let now = pair.now;
    pair.a.tcp().send_ready(now, 5_000);
    pair.a.tcp().send_ready(now, 4_000);
    assert_eq!(pair.a.tcp().info(now).not_sent, 5_000);
    pair.a.tcp().send_ready(now, u64::MAX);
    pair.run_for(1_000_000);
    assert_eq!(pair.a.tcp().info(now).unacknowledged, 10_000);
    pair.a.tcp().receive_consumed(now, u64::MAX);
    assert_eq!(pair.a.tcp().info(now).receive_queue, 0);
}

#[test]
fn bulk_uses_the_fast_path() {
    let mut pair = Pair::established();
    for _ in 0..20 {
        pair.write(Side::A, 200_000);
        pair.run_for(100_000);
    }
    let data = pair.a.counters.data_segments_sent;
    assert!(pair.b.counters.fast_path_segments > data * 95 / 100);
    assert!(pair.a.counters.fast_path_segments > 20);
}

#[test]
fn connection_is_compact() {
    assert!(size_of::<Connection>() <= 512, "{}", size_of::<Connection>());
}

#[test]
fn data_written_into_a_closed_window_is_probed_for() {
    let mut pair = Pair::new();
    pair.b.options.set(SocketOption::ReceiveBuffer(8 * 1448));
    pair.connect();
    pair.b.reads = false;
    pair.write(Side::A, 8 * 1448);
    pair.run_for(1_000_000);
    assert_eq!(pair.a.tcp().info(pair.now).unacknowledged, 0);
    assert_eq!(pair.a.tcp().next_timeout(), None);
    pair.write(Side::A, 10);
    assert!(pair.a.tcp().next_timeout().is_some());
    pair.run_for(1_000_000);
    assert!(pair.a.counters.window_probes_sent > 0);
    pair.shutdown_send(Side::A);
    pair.b.reads = true;
    pair.read(Side::B);
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
    assert_eq!(pair.b.state(), State::CloseWait);
}

#[test]
fn fin_alone_waits_for_a_closed_window() {
    let mut pair = Pair::new();
    pair.b.options.set(SocketOption::ReceiveBuffer(8 * 1448));
    pair.connect();
    pair.b.reads = false;
    pair.write(Side::A, 8 * 1448);
    pair.run_for(1_000_000);
    pair.shutdown_send(Side::A);
    pair.run_for(3_000_000);
    assert_eq!(pair.b.state(), State::Established);
    pair.b.reads = true;
    pair.read(Side::B);
    pair.run_for(3_000_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::FinWait2, State::CloseWait));
}
