//! The figures of repeated measurements: median, spread, and the ratio of two sides with an interval.
//! Pure; called by `frame` and `report`.
//!
//! The interval of a ratio comes from the order statistics of the paired ratios (each round gives one): it needs no
//! model of the noise, and its coverage is exact for independent rounds. With few rounds 95 % cannot be reached;
//! then it is the whole range, and the coverage says what that is worth.

use serde::Serialize;

/// Name of the method, for the output.
pub const INTERVAL_METHOD: &str = "order statistics of the paired ratios";
/// Coverage that an interval aims at.
pub const COVERAGE_WANTED: f64 = 0.95;

/// Middle and ends of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Middle value, or the mean of the two middle ones.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Values.
    pub count: usize,
}

/// A median with the interval that holds the true one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Median of the sample.
    pub median: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Probability that the interval holds the true median, 0 to 1.
    pub coverage: f64,
}

/// The median; `None` of nothing. Values that are no numbers are left out.
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        even if even.is_multiple_of(2) => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        _ => Some(sorted[middle]),
    }
}

/// Median and range; `None` of nothing.
pub fn summary(values: &[f64]) -> Option<Summary> {
    let sorted = sorted(values);
    Some(Summary {
        median: median(&sorted)?,
        min: *sorted.first()?,
        max: *sorted.last()?,
        count: sorted.len(),
    })
}

/// Ratio of two sides, measured in pairs, with its interval; pairs whose second value is not positive are left out.
pub fn paired_ratio(first: &[f64], second: &[f64]) -> Option<Interval> {
    let pairs = first.iter().zip(second).filter(|(_, below)| **below > 0.0);
    let ratios: Vec<f64> = pairs.map(|(above, below)| above / below).collect();
    interval_of_median(&ratios)
}

/// Median with the narrowest symmetric order-statistic interval of at least [`COVERAGE_WANTED`], or the whole range.
pub fn interval_of_median(values: &[f64]) -> Option<Interval> {
    let sorted = sorted(values);
    let count = sorted.len();
    let median = median(&sorted)?;
    // The interval from the k-th smallest to the k-th largest misses the median when fewer than k values fall on one
    // side of it: probability 2 * P(Binomial(n, 1/2) < k).
    let coverage = |k: usize| 1.0 - 2.0 * binomial_below(count, k);
    let k = (1..=count.div_ceil(2)).rev().find(|k| coverage(*k) >= COVERAGE_WANTED).unwrap_or(1);
    let coverage = coverage(k).max(0.0);
    Some(Interval { median, low: sorted[k - 1], high: sorted[count - k], coverage })
}

/// P(X < k) of X ~ Binomial(n, 1/2).
fn binomial_below(n: usize, k: usize) -> f64 {
    let mut term = 0.5_f64.powi(n.min(1000) as i32);
    let mut sum = 0.0;
    for i in 0..k {
        sum += term;
        term *= (n - i) as f64 / (i + 1) as f64;
    }
    sum
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_nothing() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[f64::NAN, 1.0]), Some(1.0));
        let whole = summary(&[5.0, 1.0, 3.0]).expect("values");
        assert_eq!(whole, Summary { median: 3.0, min: 1.0, max: 5.0, count: 3 });
    }

    /// Table of D'Agostino and others, "confidence interval for the median": n = 6 needs the whole range (96.9 %),
    /// n = 9 the second from each end (96.1 %), n = 20 the sixth (95.9 %).
    #[test]
    fn intervals_have_the_known_ranks() {
        let values = |n: usize| (1..=n).map(|value| value as f64).collect::<Vec<_>>();
        for (n, rank, coverage) in [(6, 1, 0.96875), (9, 2, 0.9609), (20, 6, 0.9586)] {
            let interval = interval_of_median(&values(n)).expect("values");
            assert_eq!(interval.low, rank as f64, "n = {n}");
            assert_eq!(interval.high, (n + 1 - rank) as f64, "n = {n}");
            assert!((interval.coverage - coverage).abs() < 1e-3, "n = {n}: {interval:?}");
        }
    }

    #[test]
    fn few_values_say_what_their_range_is_worth() {
        let interval = interval_of_median(&[1.0, 2.0, 3.0]).expect("values");
        assert_eq!((interval.low, interval.high), (1.0, 3.0));
        assert!((interval.coverage - 0.75).abs() < 1e-9);
        assert_eq!(interval_of_median(&[2.0]).expect("a value").coverage, 0.0);
    }

    #[test]
    fn ratios_are_of_pairs() {
        let interval = paired_ratio(&[2.0, 6.0, 9.0], &[1.0, 2.0, 0.0]).expect("pairs");
        assert_eq!((interval.low, interval.median, interval.high), (2.0, 2.5, 3.0));
        assert_eq!(paired_ratio(&[1.0], &[0.0]), None);
    }

    /// The stated coverage holds: of many samples of a known distribution, about that many intervals hold its median.
    #[test]
    fn coverage_holds_for_samples_of_a_known_median() {
        let mut state = 0x1234_5678_9abc_def1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        let rounds = 4000;
        let mut held = 0;
        for _ in 0..rounds {
            let sample: Vec<f64> = (0..9).map(|_| -uniform().max(1e-12).ln()).collect();
            let interval = interval_of_median(&sample).expect("values");
            held += usize::from((interval.low..=interval.high).contains(&2.0_f64.ln()));
        }
        let share = held as f64 / f64::from(rounds);
        assert!((share - 0.9609).abs() < 0.015, "{share}");
    }
}
