//! Token buckets for answers that a stranger can provoke.
//!
//! Used for ICMP errors, echo replies and requests to neighbours. Whole tokens in integer
//! arithmetic, so that a simulation repeats exactly.

use crate::time::Instant;

/// One bucket: `per_second` on average, `burst` at once after a pause.
#[derive(Debug)]
pub struct RateLimit {
    per_second: u64,
    burst: u64,
    /// Millionths of a token.
    level: u64,
    filled_at: Instant,
}

const TOKEN: u64 = 1_000_000;

impl RateLimit {
    /// A full bucket.
    pub fn new(now: Instant, per_second: u32, burst: u32) -> RateLimit {
        let burst = u64::from(burst.max(1));
        let per_second = u64::from(per_second);
        RateLimit { per_second, burst, level: burst * TOKEN, filled_at: now }
    }

    /// Takes one token; false when there is none.
    pub fn admit(&mut self, now: Instant) -> bool {
        // Millionths of a token come in at one per second and microsecond: no division needed.
        let gained = now.since(self.filled_at).saturating_mul(self.per_second);
        self.level = self.level.saturating_add(gained).min(self.burst * TOKEN);
        self.filled_at = self.filled_at.max(now);
        let admitted = self.level >= TOKEN;
        if admitted {
            self.level -= TOKEN;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut limit = RateLimit::new(Instant::from_us(0), 100, 5);
        let admitted = |limit: &mut RateLimit, us| {
            (0..50).filter(|_| limit.admit(Instant::from_us(us))).count()
        };
        assert_eq!(admitted(&mut limit, 0), 5);
        assert_eq!(admitted(&mut limit, 10_000), 1);
        assert_eq!(admitted(&mut limit, 10_001), 0);
        assert_eq!(admitted(&mut limit, 40_000), 3);
        assert_eq!(admitted(&mut limit, 90_000_000), 5);
    }
}
