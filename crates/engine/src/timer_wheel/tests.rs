//! The wheel against a sorted map.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const TICK_US: u64 = 1 << TICK_BITS;

#[derive(Clone, Debug)]
enum Step {
    Schedule(u32, u64),
    Cancel(u32),
    Advance(u64),
}

fn delay_us() -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..2_000,
        0_u64..200_000,
        0_u64..30_000_000,
        0_u64..10_000_000_000,
        0_u64..3_000_000_000_000,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u32..40, delay_us()).prop_map(|(key, delay)| Step::Schedule(key, delay)),
        1 => (0_u32..40).prop_map(Step::Cancel),
        3 => delay_us().prop_map(Step::Advance),
    ]
}

/// Expires everything due at `now`, a few entries at a time.
fn expire_all(wheel: &mut TimerWheel, now: Instant, budget: usize) -> Vec<u32> {
    let mut due = Vec::new();
    for _ in 0..100_000 {
        if !wheel.expire(now, budget, &mut due) {
            return due;
        }
        assert!(wheel.next_timeout().expect("work is left") <= now);
    }
    panic!("expiry does not end");
}

proptest! {
    #[test]
    fn it_agrees_with_a_sorted_map(
        start in 0_u64..1 << 40,
        budget in 1_usize..10,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut now = Instant::from_us(start);
        let mut wheel = TimerWheel::new(now);
        let mut oracle: BTreeMap<u32, Instant> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Schedule(key, delay) => {
                    wheel.schedule(key, now.plus_us(delay));
                    oracle.insert(key, now.plus_us(delay));
                }
                Step::Cancel(key) => {
                    wheel.cancel(key);
                    oracle.remove(&key);
                }
                Step::Advance(delay) => {
                    now = now.plus_us(delay);
                    for key in expire_all(&mut wheel, now, budget) {
                        let deadline = oracle.remove(&key).expect("fired once, and armed");
                        prop_assert!(deadline <= now, "fired early");
                    }
                    for deadline in oracle.values() {
                        prop_assert!(deadline.us() + TICK_US > now.us(), "fired late");
                    }
                }
            }
            for (key, deadline) in &oracle {
                prop_assert_eq!(wheel.deadline(*key), Some(*deadline));
            }
            prop_assert_eq!(wheel.armed, oracle.len());
            prop_assert_eq!(wheel.next_timeout().is_none(), oracle.is_empty());
            if let (Some(next), Some(first)) = (wheel.next_timeout(), oracle.values().min()) {
                prop_assert!(next.us() < first.us().max(now.us()) + TICK_US);
            }
        }
    }
}

#[test]
fn waiting_for_the_next_timeout_reaches_every_timer() {
    let mut wheel = TimerWheel::new(Instant::from_us(0));
    let deadlines = [1, 300, 70_000, 200_000, 7_200_000_000, 20_000_000_000_000];
    for (key, deadline) in deadlines.iter().enumerate() {
        wheel.schedule(key as u32, Instant::from_us(*deadline));
    }
    let mut fired = Vec::new();
    let mut turns = 0;
    while let Some(next) = wheel.next_timeout() {
        assert!(!wheel.expire(next, 100, &mut fired));
        turns += 1;
        assert!(turns < 100, "too many turns");
    }
    assert_eq!(fired, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_later_deadline_moves_nothing() {
    let mut wheel = TimerWheel::new(Instant::from_us(0));
    wheel.schedule(7, Instant::from_us(200_000));
    let slot = wheel.entries[7].slot;
    wheel.schedule(7, Instant::from_us(900_000));
    assert_eq!(wheel.entries[7].slot, slot);
    let mut due = Vec::new();
    assert!(!wheel.expire(Instant::from_us(300_000), 10, &mut due));
    assert!(due.is_empty());
    assert!(!wheel.expire(Instant::from_us(901_000), 10, &mut due));
    assert_eq!(due, [7]);
}

#[test]
fn a_turn_touches_no_more_than_its_budget() {
    let mut wheel = TimerWheel::new(Instant::from_us(0));
    for key in 0..1000 {
        wheel.schedule(key, Instant::from_us(100));
    }
    let mut due = Vec::new();
    assert!(wheel.expire(Instant::from_us(1_000), 300, &mut due));
    assert_eq!(due.len(), 300);
    assert!(wheel.next_timeout().expect("more is due") <= Instant::from_us(1_000));
}
