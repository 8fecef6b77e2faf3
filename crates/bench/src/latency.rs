//! Latencies: an HDR histogram (three significant digits, up to a minute), its percentiles, and its way from the load
//! generator's process to the one that reports. Called by `load` and `frame`.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest latency that is told apart; longer ones count as this.
const MAX_NS: u64 = 60_000_000_000;

/// Latencies in nanoseconds.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
}

/// What a table shows of them, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of them are at most this.
    pub p50_us: f64,
    /// 90 %.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    pub p99_9_us: f64,
    /// The longest.
    pub max_us: f64,
    /// How many were recorded.
    pub count: u64,
}

/// Recorded values with their counts, as they travel between processes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Packed(Vec<(u64, u64)>);

impl Default for Latencies {
    fn default() -> Self {
        Latencies::new()
    }
}

impl Latencies {
    /// None yet.
    pub fn new() -> Latencies {
        let histogram =
            Histogram::new_with_bounds(1, MAX_NS, 3).expect("constant bounds are right");
        Latencies { histogram }
    }

    /// Adds one.
    pub fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns.max(1));
    }

    /// Adds all of another.
    pub fn add(&mut self, other: &Latencies) {
        self.histogram.add(&other.histogram).expect("both have the same bounds");
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Mean, nanoseconds.
    pub fn mean_ns(&self) -> f64 {
        self.histogram.mean()
    }

    /// The value that `share` (0 to 1) of them do not exceed, nanoseconds, within 0.1 %.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        self.histogram.value_at_quantile(share)
    }

    /// The percentiles that tables show.
    pub fn percentiles(&self) -> Percentiles {
        let us = |share| self.quantile_ns(share) as f64 / 1000.0;
        Percentiles {
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p99_9_us: us(0.999),
            max_us: self.histogram.max() as f64 / 1000.0,
            count: self.count(),
        }
    }

    /// For another process.
    pub fn pack(&self) -> Packed {
        let recorded = self.histogram.iter_recorded();
        Packed(recorded.map(|step| (step.value_iterated_to(), step.count_at_value())).collect())
    }

    /// From another process.
    pub fn unpack(packed: &Packed) -> Latencies {
        let mut latencies = Latencies::new();
        for (value, count) in &packed.0 {
            latencies.histogram.saturating_record_n(*value, *count);
        }
        latencies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let mut latencies = Latencies::new();
        for us in 1..=100_000_u64 {
            latencies.record(us * 1000);
        }
        let percentiles = latencies.percentiles();
        let near = |found: f64, wanted: f64| (found / wanted - 1.0).abs() <= 0.001;
        assert!(near(percentiles.p50_us, 50_000.0), "{percentiles:?}");
        assert!(near(percentiles.p99_us, 99_000.0), "{percentiles:?}");
        assert!(near(percentiles.p99_9_us, 99_900.0), "{percentiles:?}");
        assert!(near(percentiles.max_us, 100_000.0), "{percentiles:?}");
        assert_eq!(percentiles.count, 100_000);
    }

    #[test]
    fn packing_keeps_counts_and_quantiles() {
        let mut latencies = Latencies::new();
        for value in [0, 5, 5, 1_000_000, 123_456_789, u64::MAX] {
            latencies.record(value);
        }
        let text = serde_json::to_string(&latencies.pack()).expect("plain numbers");
        let back = Latencies::unpack(&serde_json::from_str(&text).expect("the same shape"));
        assert_eq!(back.count(), 6);
        for share in [0.1, 0.5, 0.7, 0.9, 1.0] {
            assert_eq!(back.quantile_ns(share), latencies.quantile_ns(share), "{share}");
        }
    }

    #[test]
    fn sums_hold_both() {
        let (mut one, mut other) = (Latencies::new(), Latencies::new());
        one.record(10);
        other.record(1000);
        one.add(&other);
        assert_eq!((one.count(), one.quantile_ns(1.0)), (2, 1000));
    }
}
