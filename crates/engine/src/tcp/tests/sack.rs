//! Selective acknowledgements: what is reported, what is believed, and what is sent again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::pair::{DELAY_US, Fate, Pair, Seen, Side};
use crate::Instant;
use crate::tcp::*;

const PAYLOAD: usize = 1448;

/// Drops the segments of A with these numbers, counted from now.
fn drop_of_a(pair: &mut Pair, numbers: &'static [usize]) {
    pair.set_fault(|_, side, index, _| match side == Side::A && numbers.contains(&index) {
        true => Fate::Drop,
        false => Fate::Deliver,
    });
}

/// Blocks in segments of [`PAYLOAD`] bytes since the start of A's data.
fn blocks(pair: &Pair, seen: &Seen) -> Vec<(u32, u32)> {
    let unit = |seq: SeqNumber| seq.distance(pair.a.iss + 1) as u32 / PAYLOAD as u32;
    seen.options.sack_blocks().iter().map(|block| (unit(block.0), unit(block.1))).collect()
}

/// An acknowledgement of B's with these blocks, in bytes since the start of A's data.
fn acknowledge(pair: &mut Pair, ack: u32, held: &[(u32, u32)]) {
    let start = pair.a.iss + 1;
    let mut options = Options::default();
    for (block, (from, end)) in options.sack.iter_mut().zip(held) {
        *block = (start + *from, start + *end);
    }
    options.sack_len = held.len() as u8;
    let segment = Outgoing {
        seq: pair.b.iss + 1,
        ack: start + ack,
        flags: Flags::ACK,
        window: 4000,
        options,
        ..Outgoing::default()
    };
    pair.put_on_wire(Side::B, &segment);
    pair.run_for(DELAY_US);
}

/// A pair whose B says nothing of itself: the test speaks for it.
fn with_silent_b(segments: usize) -> Pair {
    let mut pair = Pair::established();
    pair.set_fault(|_, side, _, _| if side == Side::A { Fate::Drop } else { Fate::Deliver });
    pair.write(Side::A, segments * PAYLOAD);
    pair.flush();
    pair
}

#[test]
fn both_syns_have_to_permit_it() {
    for (ours, theirs) in [(true, true), (true, false), (false, true)] {
        let mut pair = Pair::new();
        pair.a.limits.sack = ours;
        pair.b.limits.sack = theirs;
        pair.b.listens = true;
        pair.open(Side::A);
        pair.run_for(4 * DELAY_US);
        let permitted: Vec<bool> = pair.seen.iter().map(|s| s.options.sack_permitted).collect();
        assert_eq!(permitted[..3], [ours, ours && theirs, false]);
        assert_eq!(pair.a.tcp().info(pair.now).sack_permitted, ours && theirs);
        assert_eq!(pair.b.tcp().info(pair.now).sack_permitted, ours && theirs);
        drop_of_a(&mut pair, &[0, 2]);
        pair.write(Side::A, 20 * PAYLOAD);
        pair.seen.clear();
        pair.run_for(1_000_000);
        let told = pair.from(Side::B).iter().any(|seen| seen.options.sack_len > 0);
        assert_eq!(told, ours && theirs);
        pair.assert_delivered(Side::A);
    }
}

#[test]
fn blocks_are_reported_most_recent_first() {
    let mut pair = Pair::established();
    drop_of_a(&mut pair, &[0, 2, 4, 6, 8]);
    pair.write(Side::A, 10 * PAYLOAD);
    pair.flush();
    pair.seen.clear();
    pair.run_for(DELAY_US);
    let last = pair.from(Side::B).last().copied().cloned().unwrap();
    assert_eq!(blocks(&pair, &last).len(), 3, "three fit beside timestamps");
    let told: BTreeSet<_> = pair.from(Side::B).iter().flat_map(|s| blocks(&pair, s)).collect();
    assert_eq!(told, BTreeSet::from([(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]), "all of a burst");
    let first = pair.from(Side::B)[0].clone();
    assert_eq!(blocks(&pair, &first), [(9, 10), (7, 8), (5, 6)]);
    assert!(pair.from(Side::B).len() <= 3, "not one for each segment");
}

#[test]
fn four_blocks_without_timestamps() {
    let mut pair = Pair::new();
    pair.set_fault(|_, side, _, _| if side == Side::A { Fate::Drop } else { Fate::Deliver });
    pair.open(Side::A);
    // The peer's SYN-ACK without timestamps.
    pair.flush();
    let segment = Outgoing {
        seq: pair.b.iss,
        ack: pair.a.iss + 1,
        flags: Flags::SYN | Flags::ACK,
        window: 60_000,
        options: Options { mss: Some(1460), sack_permitted: true, ..Options::default() },
        ..Outgoing::default()
    };
    pair.put_on_wire(Side::B, &segment);
    pair.run_for(2 * DELAY_US);
    assert_eq!(pair.a.state(), State::Established);
    pair.b.memory.sent = vec![3; 10_000];
    pair.seen.clear();
    for number in [8u32, 6, 4, 2, 1] {
        let at = 1_000 * number;
        let segment = Outgoing {
            seq: pair.b.iss + 1 + at,
            ack: pair.a.iss + 1,
            flags: Flags::ACK,
            window: 60_000,
            payload_position: u64::from(at),
            payload_len: 500,
            ..Outgoing::default()
        };
        pair.put_on_wire(Side::B, &segment);
        pair.run_for(DELAY_US);
    }
    let last = pair.from(Side::A).last().copied().cloned().unwrap();
    let start = pair.b.iss + 1;
    let held: Vec<i32> =
        last.options.sack_blocks().iter().map(|block| block.0.distance(start) / 1_000).collect();
    assert_eq!(held, [1, 2, 4, 6]);
}

#[test]
fn duplicates_are_reported_once_and_first() {
    let mut pair = Pair::established();
    pair.set_fault(|_, side, index, _| match (side, index) {
        (Side::A, 0) => Fate::Duplicate(1_000),
        (Side::A, 1) => Fate::Drop,
        (Side::A, 3) => Fate::Duplicate(2_000),
        _ => Fate::Deliver,
    });
    pair.write(Side::A, 4 * PAYLOAD);
    pair.flush();
    pair.seen.clear();
    pair.run_for(DELAY_US + 2_000);
    let told: Vec<_> = pair.from(Side::B).iter().map(|seen| blocks(&pair, seen)).collect();
    let below = [(0, 1), (2, 4)];
    let inside = [(3, 4), (2, 4)];
    assert_eq!(told[told.len() - 2..], [below, inside]);
    assert_eq!(pair.b.counters.dsacks_sent, 2);
    pair.run_for(1_000_000);
    assert_eq!(pair.a.counters.dsacks_received, 2);
    pair.assert_delivered(Side::A);
}

#[test]
fn many_holes_are_repaired_in_one_round_trip() {
    let mut pair = Pair::established();
    pair.write(Side::A, 40 * PAYLOAD);
    pair.run_for(10 * DELAY_US);
    drop_of_a(&mut pair, &[2, 5, 8, 11, 14]);
    pair.write(Side::A, 30 * PAYLOAD);
    let start = pair.now;
    while pair.a.tcp().progress().tx_acked < 70 * PAYLOAD as u64 {
        pair.run_for(1_000);
        assert!(pair.now.since(start) < 1_000_000, "{:?}", pair.a.tcp().info(pair.now));
    }
    // There and back with the loss, there and back with the repair.
    assert!(pair.now.since(start) <= 4 * DELAY_US + 1_000, "{}", pair.now.since(start));
    assert_eq!(pair.a.counters.retransmitted_segments, 5);
    assert_eq!(pair.a.counters.fast_retransmits, 1);
    assert_eq!(pair.a.counters.retransmission_timeouts, 0);
    let info = pair.a.tcp().info(pair.now);
    assert_eq!((info.sacked, info.lost, info.retransmitted), (0, 0, 0));
    assert_eq!((info.congestion_state, info.cwnd), (0, info.ssthresh));
}

#[test]
fn newreno_repairs_for_a_peer_without_sack() {
    let mut pair = Pair::new();
    pair.b.limits.sack = false;
    pair.connect();
    drop_of_a(&mut pair, &[1, 3, 5]);
    pair.write(Side::A, 10 * PAYLOAD);
    pair.run_for(12 * DELAY_US);
    pair.assert_delivered(Side::A);
    assert_eq!(pair.a.counters.fast_retransmits, 1, "one reduction for one window");
    assert_eq!(pair.a.counters.retransmission_timeouts, 0);
    assert_eq!(pair.a.counters.retransmitted_segments, 3);
}

#[test]
fn info_tells_what_is_held_lost_and_sent_again() {
    let mut pair = with_silent_b(10);
    let unit = PAYLOAD as u32;
    acknowledge(&mut pair, 0, &[(4 * unit, 6 * unit)]);
    let info = pair.a.tcp().info(pair.now);
    assert_eq!((info.sacked, info.lost, info.congestion_state), (2 * u64::from(unit), 0, 1));
    acknowledge(&mut pair, 0, &[(7 * unit, 9 * unit), (4 * unit, 6 * unit)]);
    let info = pair.a.tcp().info(pair.now);
    assert_eq!((info.sacked, info.lost), (4 * u64::from(unit), 4 * u64::from(unit)));
    assert_eq!(info.congestion_state, 3);
    assert_eq!(info.retransmitted, info.cwnd as u64 - 2 * u64::from(unit), "pipe fills cwnd");
    // What was sent again arrives: no sign of reordering.
    acknowledge(&mut pair, 0, &[(3 * unit, 6 * unit)]);
    let info = pair.a.tcp().info(pair.now);
    assert_eq!((info.lost, info.reordering), (3 * u64::from(unit), 3));
}

#[test]
fn late_arrival_shows_how_much_the_path_reorders() {
    let mut pair = with_silent_b(10);
    let unit = PAYLOAD as u32;
    acknowledge(&mut pair, 0, &[(8 * unit, 9 * unit)]);
    acknowledge(&mut pair, 0, &[(3 * unit, 4 * unit), (8 * unit, 9 * unit)]);
    assert_eq!(pair.a.tcp().info(pair.now).reordering, 6);
    acknowledge(&mut pair, 3 * unit, &[(8 * unit, 9 * unit)]);
    assert_eq!(pair.a.tcp().info(pair.now).reordering, 9);
}

#[test]
fn lost_end_of_the_flight_is_rescued() {
    let mut pair = Pair::established();
    for _ in 0..10 {
        pair.write(Side::A, 2 * PAYLOAD);
        pair.run_for(2 * DELAY_US);
    }
    drop_of_a(&mut pair, &[0, 9]);
    pair.write(Side::A, 10 * PAYLOAD);
    pair.run_for(12 * DELAY_US);
    pair.assert_delivered(Side::A);
    assert_eq!(pair.a.counters.rescue_retransmissions, 1);
    assert_eq!(pair.a.counters.retransmission_timeouts, 0);
    assert_eq!(pair.a.counters.retransmitted_segments, 2);
}

#[test]
fn what_lies_below_held_data_is_sent_again_when_nothing_else_is_left() {
    let mut pair = with_silent_b(10);
    let unit = PAYLOAD as u32;
    // 1 to 3 and 5 held: 0 is lost, of 4 nobody knows.
    acknowledge(&mut pair, 0, &[(unit, 4 * unit), (5 * unit, 6 * unit)]);
    let again: Vec<i32> = pair.from(Side::A)[10..]
        .iter()
        .map(|seen| seen.seq.distance(pair.a.iss + 1) / PAYLOAD as i32)
        .collect();
    assert_eq!(again, [0, 4]);
}

#[test]
fn hostile_blocks_are_counted_and_do_nothing() {
    let mut pair = with_silent_b(10);
    let unit = PAYLOAD as u32;
    acknowledge(&mut pair, 0, &[(10 * unit, 11 * unit), (3 * unit, 2 * unit), (2, 2)]);
    assert_eq!(pair.a.counters.sack_blocks_invalid, 3);
    acknowledge(&mut pair, 0, &[(0, 5 * unit)]);
    acknowledge(&mut pair, 0, &[(0u32.wrapping_sub(90_000), 0u32.wrapping_sub(80_000))]);
    let info = pair.a.tcp().info(pair.now);
    assert_eq!((info.sacked, info.lost, info.congestion_state), (0, 0, 0));
    assert_eq!(pair.a.counters.retransmitted_segments, 0);
    assert_eq!(pair.a.counters.dsacks_received, 1);
}

#[test]
fn splitting_into_single_bytes_is_bounded() {
    let mut pair = with_silent_b(10);
    for at in 1..3_000u32 {
        acknowledge(&mut pair, 0, &[(4 * at, 4 * at + 1), (4 * at + 2, 4 * at + 3)]);
        if pair.a.state() != State::Established {
            break;
        }
    }
    assert!(pair.a.counters.sack_blocks_refused > 1_000);
    assert!(pair.a.counters.retransmitted_segments < 2_000);
}

#[test]
fn reneging_is_noticed_and_repaired() {
    let mut pair = with_silent_b(10);
    let unit = PAYLOAD as u32;
    acknowledge(&mut pair, 0, &[(4 * unit, 6 * unit)]);
    pair.seen.clear();
    // Up to where it said it held data, and no further: it has thrown that away.
    acknowledge(&mut pair, 4 * unit, &[]);
    assert_eq!(pair.a.counters.sack_reneged, 1);
    let info = pair.a.tcp().info(pair.now);
    assert_eq!((info.sacked, info.congestion_state), (0, 4));
    let again = pair.from(Side::A)[0].clone();
    assert_eq!(again.seq, pair.a.iss + 1 + 4 * unit);
}

#[test]
fn timeout_forgets_what_the_peer_holds() {
    let mut pair = with_silent_b(10);
    let unit = PAYLOAD as u32;
    acknowledge(&mut pair, 0, &[(5 * unit, 6 * unit)]);
    pair.run_for(400_000);
    assert!(pair.a.counters.retransmission_timeouts > 0);
    let info = pair.a.tcp().info(pair.now);
    assert_eq!((info.sacked, info.lost), (0, 10 * u64::from(unit)));
    // Told again, it is believed again.
    acknowledge(&mut pair, unit, &[(3 * unit, 10 * unit)]);
    let info = pair.a.tcp().info(pair.now);
    assert_eq!((info.sacked, info.lost), (7 * u64::from(unit), 2 * u64::from(unit)));
    pair.seen.clear();
    acknowledge(&mut pair, 2 * unit, &[(3 * unit, 10 * unit)]);
    assert!(pair.occupying(Side::A).iter().all(|s| s.seq.distance(pair.a.iss + 1 + 3 * unit) < 0));
}

#[test]
fn data_segments_carry_blocks_and_still_fit() {
    let mut pair = Pair::established();
    drop_of_a(&mut pair, &[0]);
    pair.write(Side::A, 5 * PAYLOAD);
    pair.run_for(DELAY_US);
    pair.seen.clear();
    pair.write(Side::B, 5 * PAYLOAD);
    pair.flush();
    for seen in pair.occupying(Side::B) {
        assert_eq!(seen.options.sack_len, 1);
        assert!(seen.len + seen.options.encoded_len() <= 1460);
    }
    assert_eq!(pair.occupying(Side::B)[0].len, PAYLOAD - 12);
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
    pair.assert_delivered(Side::B);
}

/// What reached A or left it, with its time.
#[derive(Clone, Debug)]
enum Event {
    Told { ack: u32, held: Vec<(u32, u32)> },
    Sent { from: u32, end: u32 },
}

type Log = Rc<RefCell<Vec<(Instant, u8, Event)>>>;

/// A transfer with random faults; what A heard and sent, in order.
fn random_transfer(seed: u64) -> (Pair, Vec<Event>) {
    let log: Log = Rc::default();
    let record = Rc::clone(&log);
    let mut pair = Pair::established();
    if seed.is_multiple_of(2) {
        pair.a.tcp().set_congestion_control(CongestionControl::NewReno);
    }
    let start = pair.a.iss + 1;
    let mut numbers = crate::random::Random::new(seed);
    let mut random = move |bound: u64| numbers.between(0, bound - 1);
    let percent = 1 + random(6);
    pair.set_fault(move |now, side, _, segment| {
        let draw = random(100);
        let (fate, late) = match draw {
            draw if draw < percent => (Fate::Drop, None),
            draw if draw < 2 * percent => {
                let late = random(9_000);
                (Fate::Late(late), Some(late))
            }
            draw if draw < 3 * percent && side == Side::A => (Fate::Duplicate(4_000), Some(0)),
            _ => (Fate::Deliver, Some(0)),
        };
        let offset = |seq: SeqNumber| seq.distance(start) as u32;
        let mut log = record.borrow_mut();
        if side == Side::A && !segment.payload.is_empty() {
            let from = offset(segment.seq);
            let end = from + segment.payload.len() as u32;
            log.push((now, 1, Event::Sent { from, end }));
        } else if let Some(late) = late.filter(|_| side == Side::B) {
            let blocks = segment.options.sack_blocks().iter();
            let held = blocks.map(|block| (offset(block.0), offset(block.1))).collect();
            let told = Event::Told { ack: offset(segment.ack), held };
            log.push((now.plus_us(DELAY_US + late), 0, told));
        }
        fate
    });
    pair.write(Side::A, 600_000);
    pair.run_for(60_000_000);
    let mut events = std::mem::take(&mut *log.borrow_mut());
    events.sort_by_key(|event| (event.0, event.1));
    (pair, events.into_iter().map(|event| event.2).collect())
}

#[test]
fn nothing_that_the_peer_holds_is_sent_again() {
    let mut judged = 0;
    for seed in 0..120 {
        let (mut pair, events) = random_transfer(seed);
        pair.assert_delivered(Side::A);
        assert_eq!(pair.a.counters.sack_reneged + pair.a.counters.sack_blocks_invalid, 0);
        if pair.a.counters.retransmission_timeouts > 0 {
            continue;
        }
        judged += 1;
        let (mut una, mut held) = (0, BTreeSet::new());
        for event in events {
            match event {
                Event::Told { ack, held: blocks } => {
                    una = una.max(ack);
                    for (from, end) in blocks {
                        held.extend((from..end).step_by(4));
                    }
                }
                Event::Sent { from, end } => {
                    let known = from < una || held.range(from..end).next().is_some();
                    assert!(!known, "seed {seed}: {from}..{end} was sent again, una {una}");
                }
            }
        }
    }
    assert!(judged > 15, "only {judged} transfers without a time-out");
}

#[test]
fn limited_transmit_follows_the_blocks() {
    let mut pair = with_silent_b(15);
    let unit = PAYLOAD as u32;
    assert_eq!(pair.from(Side::A).len(), 10);
    acknowledge(&mut pair, 0, &[(unit, 2 * unit)]);
    assert_eq!(pair.occupying(Side::A).len(), 11);
    acknowledge(&mut pair, 0, &[(unit, 3 * unit)]);
    assert_eq!(pair.occupying(Side::A).len(), 12);
    acknowledge(&mut pair, 3 * unit, &[]);
    assert_eq!(pair.a.counters.retransmitted_segments, 0);
    assert_eq!(pair.a.tcp().info(pair.now).congestion_state, 0);
}

#[test]
fn lost_runs_go_out_again_as_one_frame_and_nothing_else_with_them() {
    let mut pair = with_silent_b(10);
    let unit = PAYLOAD as u32;
    let held = [(3 * unit, 5 * unit), (6 * unit, 7 * unit)];
    let ack = |pair: &mut Pair, held: &[(u32, u32)]| {
        let mut options = Options { sack_len: held.len() as u8, ..Options::default() };
        for (block, (from, end)) in options.sack.iter_mut().zip(held) {
            *block = (pair.a.iss + 1 + *from, pair.a.iss + 1 + *end);
        }
        Outgoing {
            seq: pair.b.iss + 1,
            ack: pair.a.iss + 1,
            flags: Flags::ACK,
            window: 4000,
            options,
            ..Outgoing::default()
        }
    };
    let segment = ack(&mut pair, &held);
    let mut bytes = vec![0; 100];
    let len = segment.emit(80, 40_000, &mut bytes, |_| {});
    pair.deliver(Side::A, &bytes[..len]);
    let (now, mut counters) = (pair.now, TcpCounters::default());
    let frame = pair.a.tcp().poll_superframe(now, 60_000, &mut counters).unwrap();
    assert_eq!((frame.payload_position, frame.payload_len), (0, 3 * PAYLOAD));
    assert_eq!((frame.segment_size, counters.retransmitted_segments), (PAYLOAD as u16, 3));
}

/// A copy that is lost too is found by new data that was sent later and arrived (RFC 8985), so
/// nothing waits for the timer.
#[test]
fn lost_copies_are_sent_again_without_a_timeout() {
    for losses in 1..6usize {
        let mut pair = Pair::established();
        let mut left = losses;
        let unlucky = pair.a.iss + 1 + 4 * PAYLOAD as u32;
        pair.set_fault(move |_, side, _, segment| {
            let hit = side == Side::A && segment.seq == unlucky && left > 0;
            left -= usize::from(hit);
            if hit { Fate::Drop } else { Fate::Deliver }
        });
        pair.write(Side::A, 600 * PAYLOAD);
        let start = pair.now;
        while pair.a.tcp().progress().tx_acked < 600 * PAYLOAD as u64 {
            pair.run_for(1_000);
            assert!(pair.now.since(start) < 5_000_000, "{losses}");
        }
        pair.assert_delivered(Side::A);
        let counters = &pair.a.counters;
        let found = (counters.retransmission_timeouts, counters.lost_retransmissions);
        assert_eq!(found, (0, losses as u64 - 1));
        assert_eq!(counters.retransmitted_segments, losses as u64, "nothing is sent in vain");
        assert_eq!(counters.fast_retransmits, 1);
    }
}

/// Copies that prove each other lost.
#[test]
fn a_lost_copy_shows_by_copies_that_were_sent_later() {
    let mut pair = Pair::established();
    pair.write(Side::A, 20 * PAYLOAD);
    // Every second segment of the first ten, and the first copy of the first two.
    drop_of_a(&mut pair, &[0, 2, 4, 6, 8]);
    pair.run_for(2 * DELAY_US + 100);
    let mut copies = 0;
    let end = pair.a.iss + 1 + 10 * PAYLOAD as u32;
    pair.set_fault(move |_, side, _, segment| {
        let is_copy = side == Side::A && segment.seq.le(end) && !segment.payload.is_empty();
        copies += usize::from(is_copy);
        if is_copy && copies == 1 { Fate::Drop } else { Fate::Deliver }
    });
    pair.run_for(190_000);
    pair.assert_delivered(Side::A);
    assert_eq!(pair.a.counters.retransmission_timeouts, 0);
}

/// The last segments of a flight are lost: nothing arrives later that could show it, so a probe asks
/// (RFC 8985 section 7).
#[test]
fn a_lost_tail_is_probed_for_before_the_timer() {
    for lost in [&[8usize, 9][..], &[7, 8, 9], &[5, 6, 7, 8, 9]] {
        let mut pair = Pair::established();
        pair.set_fault(move |_, side, index, _| match side == Side::A && lost.contains(&index) {
            true => Fate::Drop,
            false => Fate::Deliver,
        });
        pair.write(Side::A, 10 * PAYLOAD);
        pair.run_for(12 * DELAY_US);
        pair.assert_delivered(Side::A);
        let counters = pair.a.counters.clone();
        assert_eq!(counters.retransmission_timeouts, 0, "{lost:?}");
        assert_eq!(counters.retransmitted_segments, lost.len() as u64, "{lost:?}");
        // A loss is a loss: the window is smaller once more has been acknowledged.
        pair.write(Side::A, PAYLOAD);
        pair.run_for(1_000_000);
        assert!(pair.a.tcp().info(pair.now).ssthresh < u32::MAX, "{lost:?}");
    }
}

#[test]
fn a_probe_is_new_data_where_there_is_some_and_costs_nothing_where_nothing_was_lost() {
    let mut pair = Pair::established();
    // Acknowledgements are late once: the flight of ten is followed by new data.
    pair.set_fault(|_, side, index, _| match side == Side::B && index < 10 {
        true => Fate::Late(40_000),
        false => Fate::Deliver,
    });
    pair.write(Side::A, 12 * PAYLOAD);
    pair.run_for(6 * DELAY_US);
    assert_eq!(pair.occupying(Side::A).len(), 11, "one more than the window");
    assert_eq!((pair.a.counters.tail_loss_probes, pair.a.counters.retransmitted_segments), (1, 0));
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
    // And once more with nothing left to send: the copy was not needed.
    pair.set_fault(|_, side, index, _| match side == Side::B && index < 10 {
        true => Fate::Late(40_000),
        false => Fate::Deliver,
    });
    pair.write(Side::A, 4 * PAYLOAD);
    pair.run_for(1_000_000);
    pair.write(Side::A, 4 * PAYLOAD);
    pair.run_for(1_000_000);
    pair.assert_delivered(Side::A);
    let counters = &pair.a.counters;
    assert_eq!((counters.tail_loss_probes, counters.retransmitted_segments), (3, 2));
    assert_eq!((counters.tail_losses_repaired, counters.retransmission_timeouts), (0, 0));
    assert_eq!(pair.a.tcp().info(pair.now).ssthresh, u32::MAX);
}
