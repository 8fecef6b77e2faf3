//! The estimators against the definition of a median, delays that change, and connections that stay.

use proptest::prelude::*;

use super::*;

fn at(us: u64) -> Instant {
    Instant::from_us(us)
}

/// The median of what came last, by sorting it.
fn median_of(values: &[u32]) -> u32 {
    let mut last: Vec<u64> = values.iter().rev().take(WINDOW).map(|v| u64::from(*v)).collect();
    last.sort_unstable();
    match last.len() {
        0 => 0,
        count => ((last[(count - 1) / 2] + last[count / 2]) / 2) as u32,
    }
}

proptest! {
    #[test]
    fn the_window_has_the_median_of_the_last(values in prop::collection::vec(0_u32..50, 0..400)) {
        let mut window = Window::default();
        for (count, value) in values.iter().enumerate() {
            window.push(*value);
            prop_assert_eq!(window.median(), median_of(&values[..=count]));
        }
    }
}

#[test]
fn an_estimate_follows_the_delay_within_128_connections() {
    for (before, after) in [(1_000, 3_000), (3_000, 1_000), (200, 50_000)] {
        let mut estimator = Estimator::default();
        let mut now = at(0);
        let mut serve = |estimator: &mut Estimator, time: u32, jitter: u32| {
            estimator.claimed(now);
            now = now.plus_us(u64::from(time));
            // Up to 5 % more or less.
            let time = time - time / 20 + (time / 10) * (jitter % 11) / 10;
            estimator.served(now, time, 0);
            now
        };
        for number in 0..300 {
            serve(&mut estimator, before, number * 7);
        }
        let mut last = at(0);
        for number in 0..128 {
            last = serve(&mut estimator, after, number * 7);
        }
        let cost = estimator.cost_us(EstimatorKind::Median, last.plus_us(SAMPLE_INTERVAL_US), 0);
        let error = f64::from(cost.unwrap().abs_diff(after)) / f64::from(after);
        assert!(error < 0.1, "{before} to {after}: {cost:?}");
    }
}

#[test]
fn the_median_is_looked_at_now_and_then() {
    let mut estimator = Estimator::default();
    assert_eq!(estimator.cost_us(EstimatorKind::Median, at(0), 0), None);
    estimator.served(at(1000), 100, 0);
    assert_eq!(estimator.cost_us(EstimatorKind::Median, at(1000), 0), Some(100));
    estimator.served(at(1001), 300, 0);
    assert_eq!(estimator.cost_us(EstimatorKind::Median, at(1499), 0), Some(100));
    assert_eq!(estimator.cost_us(EstimatorKind::Median, at(1500), 0), Some(200));
}

#[test]
fn a_connection_that_stays_open_counts_with_its_age_once_it_is_clearly_longer() {
    let mut estimator = Estimator::default();
    for number in 0..100 {
        estimator.claimed(at(number * 1000));
        estimator.served(at(number * 1000 + 1000), 1000, 0);
    }
    let kind = EstimatorKind::Median;
    estimator.claimed(at(200_000));
    assert_eq!(estimator.cost_us(kind, at(207_999), 0), Some(1000));
    assert_eq!(estimator.cost_us(kind, at(208_000), 0), Some(8000));
    assert_eq!(estimator.cost_us(kind, at(900_000), 0), Some(32_000), "and not for ever more");
    estimator.open.set(0, 2);
    // Another one closes: it lives.
    estimator.claimed(at(900_000));
    estimator.served(at(901_000), 1000, 0);
    assert_eq!(estimator.cost_us(kind, at(902_000), 0), Some(1000));
    assert_eq!(estimator.open(), 1);
}

#[test]
fn a_silence_counts_until_a_close_comes_sooner() {
    let kind = EstimatorKind::Median;
    let mut estimator = Estimator::default();
    let mut now = at(0);
    let mut serve = |estimator: &mut Estimator, time: u32| {
        estimator.claimed(now);
        now = now.plus_us(u64::from(time));
        let changed = estimator.served(now, time, 0);
        (estimator.cost_us(kind, now.plus_us(SAMPLE_INTERVAL_US), 0).unwrap(), changed)
    };
    assert_eq!(serve(&mut estimator, 1000), (1000, true));
    for _ in 0..200 {
        assert_eq!(serve(&mut estimator, 1000), (1000, false));
    }
    // Forty times slower from now on: the median does not know for a long time.
    assert_eq!(serve(&mut estimator, 40_000), (32_000, true));
    for _ in 0..20 {
        assert_eq!(serve(&mut estimator, 40_000), (32_000, false));
    }
    // One that was fast: all is well again.
    assert_eq!(serve(&mut estimator, 1000), (1000, true));
    assert_eq!(serve(&mut estimator, 1000), (1000, false));
    // Times that chance makes are no silence.
    assert_eq!(serve(&mut estimator, 7000), (1000, false));
}

#[test]
fn outstanding_counts_connections_and_peak_ewma_rises_at_once() {
    let mut estimator = Estimator::default();
    let kind = EstimatorKind::Outstanding;
    assert_eq!(estimator.cost_us(kind, at(0), 0), Some(CONNECTION_US));
    estimator.open.add(0);
    assert_eq!(estimator.cost_us(kind, at(0), 2), Some(4 * CONNECTION_US));
    let kind = EstimatorKind::PeakEwma;
    assert_eq!(estimator.cost_us(kind, at(0), 0), None);
    estimator.served(at(0), 100, 0);
    estimator.served(at(10), 5000, 1);
    assert_eq!(estimator.cost_us(kind, at(10), 0), Some(5000));
    assert_eq!(estimator.cost_us(kind, at(10), 1), Some(10_000));
    for number in 1..60 {
        estimator.served(at(number * 100_000), 100, 1);
    }
    let cost = estimator.cost_us(kind, at(6_000_000), 0).unwrap();
    assert!((100..130).contains(&cost), "{cost}: forgotten after some seconds");
}

#[test]
fn patience_follows_the_claims() {
    let mut claims = ClaimTimes::default();
    assert_eq!(claims.patience_us(200_000), 200_000, "not measured yet");
    for _ in 0..50 {
        claims.add(40);
    }
    assert_eq!(claims.patience_us(200_000), CLAIM_PATIENCE_MIN_US);
    for _ in 0..20 {
        claims.add(10_000);
    }
    let patience = claims.patience_us(200_000);
    assert!((9_000..60_000).contains(&patience), "{patience}");
    for _ in 0..50 {
        claims.add(10_000_000);
    }
    assert_eq!(claims.patience_us(200_000), 200_000, "the limit holds");
}

#[test]
fn connections_count_where_they_are() {
    let mut open = OpenConnections::default();
    open.add(0);
    open.add(0);
    open.set(3, 5);
    assert_eq!(open.total(), 7);
    // One has moved from server 0 to server 1: both say what they have, in any order.
    open.set(1, 1);
    open.set(0, 1);
    assert_eq!(open.total(), 7);
    open.subtract(1);
    open.subtract(1);
    open.subtract(0);
    assert_eq!(open.total(), 5, "what one server says too often takes nothing from another");
    open.set(3, 0);
    assert_eq!(open.total(), 0);
}
