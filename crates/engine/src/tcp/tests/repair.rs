//! Loss and its repair: time-outs, fast retransmit, NewReno, timestamps, reordering.

use super::pair::{DELAY_US, Fate, Pair, Side};
use crate::tcp::*;
use crate::{Instant, SocketError};

const PAYLOAD: usize = 1448;

/// Drops the segments of A with these numbers, counted from now.
fn drop_of_a(pair: &mut Pair, numbers: &'static [usize]) {
    pair.set_fault(|_, side, index, _| match side == Side::A && numbers.contains(&index) {
        true => Fate::Drop,
        false => Fate::Deliver,
    });
}

#[test]
fn timeouts_double() {
    let mut pair = Pair::established();
    pair.set_fault(|_, _, _, _| Fate::Drop);
    pair.write(Side::A, 100);
    pair.flush();
    let rto_us = u64::from(pair.a.tcp().info(pair.now).rto_us);
    let start = pair.now;
    pair.run_for(20_000_000);
    let times: Vec<u64> = pair.from(Side::A).iter().map(|seen| seen.at.since(start)).collect();
    let expected: Vec<u64> = (0..7).map(|doublings| rto_us * ((1 << doublings) - 1)).collect();
    assert_eq!(times, expected);
}

#[test]
fn retransmission_gives_up_after_the_time_linux_takes() {
    let mut pair = Pair::established();
    pair.set_fault(|_, _, _, _| Fate::Drop);
    pair.write(Side::A, 100);
    let start = pair.now;
    let mut ended = Instant::default();
    for _ in 0..2000 {
        pair.run_for(1_000_000);
        if pair.a.state() == State::Closed {
            ended = pair.now;
            break;
        }
    }
    let waited_s = ended.since(start) / 1_000_000;
    assert!((924..=1050).contains(&waited_s), "{waited_s}");
    assert_eq!(pair.a.tcp().progress().error, Some(SocketError::TimedOut));
}

#[test]
fn third_duplicate_acknowledgement_sends_again() {
    let mut pair = Pair::established();
    drop_of_a(&mut pair, &[0]);
    let start = pair.now;
    pair.write(Side::A, 4 * PAYLOAD);
    pair.run_for(2 * DELAY_US);
    let again = pair.occupying(Side::A)[4].clone();
    assert_eq!(again.at.since(start), 2 * DELAY_US);
    assert_eq!(again.seq, pair.a.iss + 1);
    assert_eq!(pair.a.counters.fast_retransmits, 1);
    pair.run_for(2 * DELAY_US);
    pair.assert_delivered(Side::A);
    assert_eq!(pair.a.counters.retransmission_timeouts, 0);
}

#[test]
fn two_duplicates_are_not_enough_but_let_new_data_go() {
    let mut pair = Pair::established();
    drop_of_a(&mut pair, &[0]);
    // The window is ten segments; two more may go out on the two duplicates (RFC 3042).
    pair.write(Side::A, 3 * PAYLOAD);
    pair.run_for(2 * DELAY_US);
    assert_eq!(pair.a.counters.fast_retransmits, 0);
    pair.run_for(1_000_000);
    assert_eq!(pair.a.counters.retransmission_timeouts, 1);
    pair.assert_delivered(Side::A);
}

#[test]
fn limited_transmit_sends_on_the_first_two_duplicates() {
    let mut pair = Pair::established();
    pair.set_fault(|_, side, index, _| match (side, index) {
        (Side::A, 0) => Fate::Drop,
        (Side::A, 3..=9) => Fate::Late(20_000),
        _ => Fate::Deliver,
    });
    pair.write(Side::A, 20 * PAYLOAD);
    pair.flush();
    assert_eq!(pair.occupying(Side::A).len(), 10);
    pair.run_for(2 * DELAY_US);
    assert_eq!(pair.occupying(Side::A).len(), 12);
    pair.run_for(5_000_000);
    pair.assert_delivered(Side::A);
}

#[test]
fn partial_acknowledgements_repair_one_hole_a_round_trip() {
    let mut pair = Pair::established();
    drop_of_a(&mut pair, &[1, 3, 5]);
    pair.write(Side::A, 10 * PAYLOAD);
    pair.run_for(12 * DELAY_US);
    pair.assert_delivered(Side::A);
    assert_eq!(pair.a.counters.fast_retransmits, 1, "one reduction for one window");
    assert_eq!(pair.a.counters.retransmission_timeouts, 0);
    assert_eq!(pair.a.counters.retransmitted_segments, 3);
    let info = pair.a.tcp().info(pair.now);
    assert_eq!(info.congestion_state, 0);
    assert!(info.cwnd <= 7 * PAYLOAD as u32 + PAYLOAD as u32, "{}", info.cwnd);
}

#[test]
fn timeout_sends_everything_again_in_slow_start() {
    let mut pair = Pair::new();
    // Without SACK there is no tail probe.
    pair.a.limits.sack = false;
    pair.connect();
    drop_of_a(&mut pair, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    pair.write(Side::A, 10 * PAYLOAD);
    pair.flush();
    pair.seen.clear();
    pair.run_for(250_000);
    let times: Vec<u64> = pair.occupying(Side::A).iter().map(|seen| seen.at.us()).collect();
    let burst = |at: usize| times.iter().filter(|&&time| time == times[at]).count();
    assert_eq!((burst(0), burst(1), burst(3)), (1, 2, 3));
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
    assert_eq!(pair.a.counters.retransmission_timeouts, 1);
    assert_eq!(pair.a.tcp().info(pair.now).ssthresh, 7 * PAYLOAD as u32);
}

#[test]
fn lost_retransmission_waits_for_the_timer() {
    let mut pair = Pair::established();
    drop_of_a(&mut pair, &[0, 10]);
    pair.write(Side::A, 10 * PAYLOAD);
    pair.run_for(2_000_000);
    pair.assert_delivered(Side::A);
    assert_eq!(pair.a.counters.fast_retransmits, 1);
    assert_eq!(pair.a.counters.retransmission_timeouts, 1);
}

#[test]
fn out_of_order_data_waits_in_its_final_place() {
    let mut pair = Pair::established();
    pair.set_fault(|_, side, index, _| match (side, index) {
        (Side::A, 0) => Fate::Late(1_000),
        _ => Fate::Deliver,
    });
    pair.write(Side::A, 2 * PAYLOAD);
    pair.run_for(DELAY_US + 500);
    assert_eq!(pair.b.tcp().progress().rx_end, 0);
    assert_eq!(pair.b.counters.out_of_order_bytes, PAYLOAD as u64);
    assert_eq!(pair.from(Side::B).len(), 1, "a hole is acknowledged at once");
    pair.run_for(500);
    assert_eq!(pair.from(Side::B).len(), 2, "and so is its filling");
    pair.assert_eventually(Side::A);
    assert_eq!(pair.a.counters.retransmitted_segments, 0);
}

#[test]
fn too_many_holes_are_not_stored() {
    let mut pair = Pair::new();
    pair.a.limits.send_buffer_max = 900_000;
    pair.a.options.no_delay = true;
    pair.connect();
    pair.write(Side::A, 900_000);
    pair.run_for(250_000);
    pair.set_fault(|_, side, index, _| match side == Side::A && index < 300 && index % 2 == 0 {
        true => Fate::Drop,
        false => Fate::Deliver,
    });
    pair.write(Side::A, 300 * PAYLOAD);
    pair.run_for(DELAY_US);
    assert!(pair.b.counters.drop_too_many_ranges > 0);
    pair.run_for(60_000_000);
    pair.assert_delivered(Side::A);
}

#[test]
fn duplicates_do_no_harm() {
    let mut pair = Pair::established();
    pair.set_fault(|_, _, _, _| Fate::Duplicate(3_000));
    pair.write(Side::A, 100_000);
    pair.write(Side::B, 100_000);
    pair.run_for(2_000_000);
    pair.assert_delivered(Side::A);
    pair.assert_delivered(Side::B);
}

#[test]
fn old_timestamps_are_refused() {
    let mut pair = Pair::established();
    pair.write(Side::A, 100);
    pair.run_for(1_000_000);
    let recent = pair.occupying(Side::A)[0].options.timestamps.unwrap();
    let before = pair.b.tcp().progress().rx_end;
    let old = Timestamps { value: recent.value.wrapping_sub(10), echo: recent.echo };
    let segment = Outgoing {
        seq: pair.a.iss + 101,
        ack: pair.b.iss + 1,
        flags: Flags::ACK,
        window: 100,
        options: Options { timestamps: Some(old), ..Options::default() },
        payload_position: 0,
        payload_len: 50,
        segment_size: 0,
    };
    pair.seen.clear();
    pair.put_on_wire(Side::A, &segment);
    pair.run_for(DELAY_US);
    assert_eq!(pair.b.counters.drop_old_timestamp, 1);
    assert_eq!(pair.b.tcp().progress().rx_end, before);
    assert_eq!(pair.from(Side::B).len(), 1, "answered with an acknowledgement");
    // A reset is not judged by its timestamp.
    let reset = Outgoing { flags: Flags::RST, payload_len: 0, ..segment };
    pair.put_on_wire(Side::A, &reset);
    pair.run_for(DELAY_US);
    assert_eq!(pair.b.state(), State::Closed);
}

#[test]
fn timestamps_give_a_sample_after_a_retransmission() {
    let mut pair = Pair::established();
    drop_of_a(&mut pair, &[0]);
    pair.delay_us = 60_000;
    pair.write(Side::A, 100);
    pair.run_for(1_000_000);
    let srtt_us = pair.a.tcp().info(pair.now).srtt_us;
    assert!(srtt_us > 15_000, "{srtt_us}");
}

#[test]
fn old_echo_after_lost_acknowledgements_does_not_poison_the_timer() {
    let mut pair = Pair::established();
    // All that B says is lost for long, so that A's time-outs double many times.
    let until = pair.now.plus_us(30_000_000);
    pair.set_fault(move |now, side, _, _| match side == Side::B && now < until {
        true => Fate::Drop,
        false => Fate::Deliver,
    });
    pair.write(Side::A, 3 * PAYLOAD);
    pair.run_until(until);
    // B speaks first, and echoes what it got long ago.
    pair.write(Side::B, 10);
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
    let rto_us = pair.a.tcp().info(pair.now).rto_us;
    assert!(rto_us < 5_000_000, "{rto_us}");
}

#[test]
fn sequence_numbers_wrap() {
    for before_wrap in [0u32, 1, 2, 1000, 1449, 200_000] {
        let mut pair = Pair::new();
        pair.a.iss = SeqNumber::new(u32::MAX - before_wrap);
        pair.b.iss = SeqNumber::new(u32::MAX - before_wrap / 2);
        pair.connect();
        pair.set_fault(|_, _, index, _| if index % 17 == 5 { Fate::Drop } else { Fate::Deliver });
        pair.write(Side::A, 400_000);
        pair.write(Side::B, 400_000);
        pair.run_for(60_000_000);
        pair.assert_delivered(Side::A);
        pair.assert_delivered(Side::B);
    }
}

#[test]
fn newreno_carries_data_too() {
    let mut pair = Pair::established();
    pair.a.tcp().set_congestion_control(CongestionControl::NewReno);
    pair.set_fault(|_, side, index, _| match side == Side::A && index % 50 == 7 {
        true => Fate::Drop,
        false => Fate::Deliver,
    });
    pair.write(Side::A, 900_000);
    pair.run_for(60_000_000);
    pair.assert_delivered(Side::A);
    assert!(pair.a.tcp().info(pair.now).ssthresh < u32::MAX);
}

#[test]
fn lost_fin_is_sent_again() {
    let mut pair = Pair::established();
    drop_of_a(&mut pair, &[0]);
    pair.shutdown_send(Side::A);
    pair.run_for(1_000_000);
    assert_eq!((pair.a.state(), pair.b.state()), (State::FinWait2, State::CloseWait));
    assert_eq!(pair.a.counters.retransmitted_segments, 1);
}

#[test]
fn fin_behind_a_hole_is_answered_like_data() {
    let mut pair = Pair::established();
    drop_of_a(&mut pair, &[0]);
    pair.write(Side::A, 2 * PAYLOAD);
    let (seq, ack) = (pair.a.iss + 1, pair.b.iss + 1);
    pair.flush();
    // A FIN of its own, in the same burst as the data.
    let mut fin = Outgoing { flags: Flags::FIN | Flags::ACK, seq, ack, ..Outgoing::default() };
    fin.seq = seq + 2 * PAYLOAD as u32;
    let now = pair.now;
    let value = pair.seen.last().unwrap().options.timestamps.unwrap();
    fin.options.timestamps = Some(value);
    fin.window = 1000;
    pair.put_on_wire(Side::A, &fin);
    pair.run_until(now.plus_us(DELAY_US));
    assert_eq!(pair.from(Side::B).len(), 2, "one for the data, one for the FIN");
}

#[test]
fn fin_before_its_data_waits() {
    let mut pair = Pair::established();
    drop_of_a(&mut pair, &[0]);
    pair.write(Side::A, 3 * PAYLOAD);
    pair.shutdown_send(Side::A);
    pair.run_for(DELAY_US);
    assert_eq!(pair.b.state(), State::Established);
    pair.run_for(1_000_000);
    assert_eq!(pair.b.state(), State::CloseWait);
    assert!(pair.b.tcp().progress().rx_fin);
    pair.assert_delivered(Side::A);
}
