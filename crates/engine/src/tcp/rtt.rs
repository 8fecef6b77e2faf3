//! Round trip estimation and the retransmission time-out, RFC 6298.
//!
//! One segment a flight is timed by our own clock; where that fails (Karn: it was sent again), the
//! echoed timestamp gives the sample (RFC 7323 section 4). As on Linux the minimum applies to the
//! variance term, so the time-out is never less than the round trip plus the minimum.

use super::seam::Parameters;
use crate::Instant;
use crate::carry::carried;

/// Round trip state of one connection.
#[derive(Debug)]
pub(super) struct RoundTrip {
    /// Smoothed round trip; zero before the first sample.
    pub(super) srtt_us: u32,
    /// Mean deviation.
    pub(super) rttvar_us: u32,
    /// Smallest sample; `u32::MAX` before the first.
    pub(super) min_us: u32,
    /// Retransmission time-out without back-off.
    pub(super) rto_us: u32,
    /// One past the timed segment; zero when none is timed.
    timed_end: u64,
    timed_at: Instant,
}

impl RoundTrip {
    /// No sample yet.
    pub(super) fn new(parameters: &Parameters) -> RoundTrip {
        RoundTrip {
            srtt_us: 0,
            rttvar_us: 0,
            min_us: u32::MAX,
            rto_us: parameters.rto_initial_us,
            timed_end: 0,
            timed_at: Instant::default(),
        }
    }

    /// Times the segment that ends at offset `end`, unless another is being timed.
    pub(super) fn start_timing(&mut self, end: u64, now: Instant) {
        if self.timed_end == 0 {
            self.timed_end = end;
            self.timed_at = now;
        }
    }

    /// Something was sent again: an acknowledgement no longer tells which copy it answers (Karn).
    pub(super) fn abandon_timing(&mut self) {
        self.timed_end = 0;
    }

    /// The sample of the timed segment, once `una` has passed it.
    pub(super) fn take_timing(&mut self, una: u64, now: Instant) -> Option<u64> {
        if self.timed_end == 0 || una < self.timed_end {
            return None;
        }
        self.timed_end = 0;
        Some(now.since(self.timed_at))
    }

    /// Takes a sample, RFC 6298 section 2.2 and 2.3.
    pub(super) fn sample(&mut self, rtt_us: u64, parameters: &Parameters) {
        let rtt_us = rtt_us.clamp(1, u64::from(parameters.rto_max_us)) as u32;
        self.min_us = self.min_us.min(rtt_us);
        if self.srtt_us == 0 {
            self.srtt_us = rtt_us;
            self.rttvar_us = rtt_us / 2;
        } else {
            let error_us = self.srtt_us.abs_diff(rtt_us);
            self.rttvar_us = self.rttvar_us - self.rttvar_us / 4 + error_us / 4;
            self.srtt_us = (self.srtt_us - self.srtt_us / 8 + rtt_us / 8).max(1);
        }
        let variance_us = self.rttvar_us.saturating_mul(4).max(parameters.rto_min_us);
        self.rto_us = self.srtt_us.saturating_add(variance_us).min(parameters.rto_max_us);
    }
}

carried!(struct RoundTrip { srtt_us, rttvar_us, min_us, rto_us, timed_end, timed_at });

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TcpLimits;

    fn parameters() -> Parameters {
        Parameters::new(&TcpLimits::default(), &crate::SocketOptions::default())
    }

    #[test]
    fn follows_rfc_6298_with_linux_minimum() {
        let parameters = parameters();
        let mut rtt = RoundTrip::new(&parameters);
        assert_eq!(rtt.rto_us, 1_000_000);
        rtt.sample(100_000, &parameters);
        assert_eq!((rtt.srtt_us, rtt.rttvar_us, rtt.rto_us), (100_000, 50_000, 300_000));
        rtt.sample(180_000, &parameters);
        assert_eq!((rtt.srtt_us, rtt.rttvar_us), (110_000, 57_500));
        assert_eq!(rtt.rto_us, 340_000);
        for _ in 0..100 {
            rtt.sample(10_000, &parameters);
        }
        assert!((209_000..=211_000).contains(&rtt.rto_us), "{}", rtt.rto_us);
        rtt.sample(u64::MAX, &parameters);
        assert_eq!(rtt.rto_us, parameters.rto_max_us);
    }

    #[test]
    fn times_one_segment_at_a_time() {
        let mut rtt = RoundTrip::new(&parameters());
        rtt.start_timing(100, Instant::from_us(5));
        rtt.start_timing(200, Instant::from_us(6));
        assert_eq!(rtt.take_timing(99, Instant::from_us(7)), None);
        assert_eq!(rtt.take_timing(100, Instant::from_us(9)), Some(4));
        assert_eq!(rtt.take_timing(100, Instant::from_us(9)), None);
        rtt.start_timing(300, Instant::from_us(10));
        rtt.abandon_timing();
        assert_eq!(rtt.take_timing(300, Instant::from_us(11)), None);
    }
}
