//! Random loss, reordering, duplication and delay over many seeds: every byte arrives exactly once
//! and in order, and both sides end in order.

use super::pair::{Fate, Pair, Side};
use crate::Close;
use crate::random::Random;
use crate::tcp::*;

/// Faults by percent from a seed.
pub(super) fn faults(
    seed: u64,
    percent: u64,
) -> impl FnMut(crate::Instant, Side, usize, &Segment<'_>) -> Fate {
    let mut random = Random::new(seed ^ 0xfa11);
    move |_, _, _, _| match random.between(0, 99) {
        draw if draw < percent => Fate::Drop,
        draw if draw < 2 * percent => Fate::Duplicate(random.between(0, 39_999)),
        draw if draw < 3 * percent => Fate::Late(random.between(0, 29_999)),
        _ => Fate::Deliver,
    }
}

fn run(seed: u64) {
    let mut random = Random::new(seed);
    let mut pair = Pair::new();
    pair.a.iss = SeqNumber::new(random.next_u64() as u32 | 0xffff_0000);
    pair.b.iss = SeqNumber::new(random.next_u64() as u32);
    pair.a.options.no_delay = random.between(0, 1) == 0;
    pair.a.mss = [536, 1220, 1460, 8960][random.between(0, 3) as usize];
    pair.b.options.receive_buffer = [4096, 20_000, 262_144][random.between(0, 2) as usize];
    pair.delay_us = 1 + random.between(0, 49_999);
    pair.b.listens = true;
    pair.open(Side::A);
    let percent = random.between(0, 11);
    pair.set_fault(faults(seed, percent));
    pair.run_for(20_000_000);
    if random.between(0, 1) == 0 {
        pair.a.tcp().set_congestion_control(CongestionControl::NewReno);
    }
    let rounds = 1 + random.between(0, 19);
    for _ in 0..rounds {
        pair.write(Side::A, random.between(0, 19_999) as usize);
        pair.write(Side::B, random.between(0, 4999) as usize);
        pair.run_for(random.between(0, 299_999));
    }
    pair.shutdown_send(Side::A);
    pair.run_for(random.between(0, 999_999));
    pair.write(Side::B, random.between(0, 19_999) as usize);
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
        let mut random = Random::new(seed);
        let mut pair = Pair::new();
        pair.b.listens = true;
        pair.open(Side::A);
        pair.set_fault(faults(seed, 5));
        pair.write(Side::A, 200_000);
        pair.run_for(random.between(0, 199_999));
        let how = if random.between(0, 1) == 0 { Close::Abort } else { Close::Graceful };
        pair.close(Side::A, how);
        pair.run_for(random.between(0, 199_999));
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
