//! When the requests of an open loop are due: fixed before the run starts, so that a slow answer delays no request and
//! hides none (no coordinated omission). Pure; called by `load`.

use haypile_engine::random::Random;

/// How requests are spread in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// Equal distances.
    Even,
    /// Exponential distances: a Poisson process.
    Poisson,
}

/// Times at which requests are due, in nanoseconds from the start, ascending, all below `seconds`.
/// The same seed gives the same schedule. At most 50 million; the caller checks `rate` to be positive.
pub fn times_ns(rate: f64, seconds: f64, spread: Spread, seed: u64) -> Vec<u64> {
    let end_ns = seconds * 1e9;
    let step_ns = 1e9 / rate;
    let wanted = ((rate * seconds * 1.1) as usize + 16).min(REQUESTS_MAX);
    let mut random = Random::new(seed);
    let mut times = Vec::with_capacity(wanted);
    let mut at_ns = 0.0;
    while at_ns < end_ns && times.len() < REQUESTS_MAX {
        times.push(at_ns as u64);
        at_ns = match spread {
            // Not summed up, so that no rounding adds up.
            Spread::Even => times.len() as f64 * step_ns,
            Spread::Poisson => at_ns - step_ns * random.positive_fraction().ln(),
        };
    }
    times
}

const REQUESTS_MAX: usize = 50_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_times_are_exact() {
        let times = times_ns(1_000_000.0 / 3.0, 0.9, Spread::Even, 1);
        assert_eq!(times.len(), 300_000);
        assert_eq!(times[299_999], 299_999 * 3000);
    }

    #[test]
    fn poisson_times_repeat_ascend_and_have_the_rate() {
        let times = times_ns(100_000.0, 2.0, Spread::Poisson, 7);
        assert_eq!(times, times_ns(100_000.0, 2.0, Spread::Poisson, 7));
        assert_ne!(times, times_ns(100_000.0, 2.0, Spread::Poisson, 8));
        assert!(times.is_sorted() && times.iter().all(|time| *time < 2_000_000_000));
        // Five standard deviations of a Poisson count of 200,000.
        assert!(times.len().abs_diff(200_000) < 5 * 447, "{}", times.len());
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // The standard deviation of exponential gaps is their mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "{}", variance.sqrt() / mean);
    }
}
