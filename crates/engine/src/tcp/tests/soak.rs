//! Random loss, reordering, duplication and delay over many seeds: every byte arrives exactly once
//! and in order, and both sides end in order.

use super::pair::{Fate, Pair, Side};
use crate::Close;
use crate::tcp::*;

/// A small generator (SplitMix64), so that a seed tells the whole story.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Faults by percent from a seed.
fn faults(
    seed: u64,
    percent: u64,
) -> impl FnMut(crate::Instant, Side, usize, &Segment<'_>) -> Fate {
    let mut random = Random(seed ^ 0xfa11);
    move |_, _, _, _| match random.below(100) {
        draw if draw < percent => Fate::Drop,
        draw if draw < 2 * percent => Fate::Duplicate(random.below(40_000)),
        draw if draw < 3 * percent => Fate::Late(random.below(30_000)),
        _ => Fate::Deliver,
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let mut pair = Pair::new();
    pair.a.iss = SeqNumber::new(random.next() as u32 | 0xffff_0000);
    pair.b.iss = SeqNumber::new(random.next() as u32);
    pair.a.options.no_delay = random.below(2) == 0;
    pair.a.mss = [536, 1220, 1460, 8960][random.below(4) as usize];
    pair.b.options.receive_buffer = [4096, 20_000, 262_144][random.below(3) as usize];
    pair.delay_us = 1 + random.below(50_000);
    pair.b.listens = true;
    pair.open(Side::A);
    let percent = random.below(12);
    pair.set_fault(faults(seed, percent));
    pair.run_for(20_000_000);
    if random.below(2) == 0 {
        pair.a.tcp().set_congestion_control(CongestionControl::NewReno);
    }
    let rounds = 1 + random.below(20);
    for _ in 0..rounds {
        pair.write(Side::A, random.below(20_000) as usize);
        pair.write(Side::B, random.below(5_000) as usize);
        pair.run_for(random.below(300_000));
    }
    pair.shutdown_send(Side::A);
    pair.run_for(random.below(1_000_000));
    pair.write(Side::B, random.below(20_000) as usize);
    pair.shutdown_send(Side::B);
    for _ in 0..600 {
        pair.run_for(1_000_000);
        let over = |state| matches!(state, State::Closed | State::TimeWait);
        if over(pair.a.state()) && over(pair.b.state()) {
            break;
        }
    }
    for side in [Side::A, Side::B] {
        let progress = pair.host(side).tcp().progress();
        assert_eq!(progress.error, None, "seed {seed} {side:?}");
        assert!(progress.finished && progress.rx_fin, "seed {seed} {side:?} {progress:?}");
        pair.assert_delivered(side);
    }
}

#[test]
fn every_byte_arrives_once_and_in_order() {
    for seed in 0..400 {
        run(seed);
    }
}

#[test]
fn aborts_at_any_time_leave_nothing_behind() {
    for seed in 1000..1200 {
        let mut random = Random(seed);
        let mut pair = Pair::new();
        pair.b.listens = true;
        pair.open(Side::A);
        pair.set_fault(faults(seed, 5));
        pair.write(Side::A, 200_000);
        pair.run_for(random.below(200_000));
        let how = if random.below(2) == 0 { Close::Abort } else { Close::Graceful };
        pair.close(Side::A, how);
        pair.run_for(random.below(200_000));
        if pair.b.connection.is_some() {
            pair.close(Side::B, Close::Graceful);
        }
        pair.run_for(2_000_000_000);
        for side in [Side::A, Side::B] {
            let host = pair.host(side);
            let over = host.connection.as_ref().is_none_or(|tcp| tcp.is_over());
            assert!(over, "seed {seed} {side:?} {:?}", host.state());
            assert!(host.connection.as_ref().is_none_or(|tcp| tcp.next_timeout().is_none()));
        }
    }
}
