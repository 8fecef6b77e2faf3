//! CUBIC, RFC 9438, in integers: bytes and milliseconds, so that all machines agree.
//!
//! Growth follows `W(t) = C * (t - K)^3 + W_max` since the last loss, or what Reno would have
//! reached, if that is more. C is 0.4 segments per cubic second, beta is 0.7.

use crate::Instant;
use crate::carry::carried;

/// Time bound of one epoch in milliseconds; keeps the cube in range.
const EPOCH_MS_MAX: i64 = 1 << 20;

/// State since the last loss.
#[derive(Debug, Default)]
pub(super) struct Cubic {
    /// Window before the last loss, lowered by fast convergence (section 4.7); zero before any.
    w_max: u32,
    /// The plateau of the curve in this epoch.
    origin: u32,
    /// Milliseconds from the start of the epoch to the plateau.
    k_ms: u32,
    /// When this epoch of congestion avoidance began.
    epoch_start: Option<Instant>,
    /// What Reno would have reached (section 4.3).
    w_est: u32,
    /// Fractions of a byte still owed to the window and to `w_est`.
    cwnd_rest: u32,
    est_rest: u32,
}

impl Cubic {
    /// The window after `acked` bytes were acknowledged in congestion avoidance.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        cwnd: u32,
        acked: u32,
        mss: u32,
        srtt_us: u32,
    ) -> u32 {
        let epoch_start = *self.epoch_start.get_or_insert(now);
        if epoch_start == now && self.w_est == 0 {
            self.begin_epoch(cwnd, mss);
        }
        let elapsed_ms = (now.since(epoch_start) / 1000) as i64;
        let estimate = self.grow_estimate(cwnd, acked, mss);
        let curve_now = self.curve(elapsed_ms, mss);
        if curve_now < u64::from(estimate) {
            return cwnd.max(estimate);
        }
        let ahead = self.curve(elapsed_ms + i64::from(srtt_us / 1000), mss);
        let target = ahead.clamp(u64::from(cwnd), u64::from(cwnd) * 3 / 2);
        let owed = (target - u64::from(cwnd)) * u64::from(acked) + u64::from(self.cwnd_rest);
        self.cwnd_rest = (owed % u64::from(cwnd)) as u32;
        cwnd.saturating_add((owed / u64::from(cwnd)).min(u64::from(acked)) as u32)
    }

    /// Places the curve: section 4.2.
    fn begin_epoch(&mut self, cwnd: u32, mss: u32) {
        self.w_est = cwnd;
        self.cwnd_rest = 0;
        self.est_rest = 0;
        self.origin = self.w_max.max(cwnd);
        // K = cbrt((W_max - cwnd) / C) seconds, windows in segments.
        let below = u128::from(self.origin - cwnd) * 10 * 1_000_000_000 / (4 * u128::from(mss));
        self.k_ms = cube_root(below) as u32;
    }

    /// The curve after `elapsed_ms`, in bytes.
    fn curve(&self, elapsed_ms: i64, mss: u32) -> u64 {
        let t = (elapsed_ms - i64::from(self.k_ms)).clamp(-EPOCH_MS_MAX, EPOCH_MS_MAX);
        let cube = i128::from(t) * i128::from(t) * i128::from(t);
        let offset = cube * 4 * i128::from(mss) / (10 * 1_000_000_000);
        (i128::from(self.origin) + offset).max(0) as u64
    }

    /// What Reno with this back-off would have: section 4.3, alpha = 3 * 0.3 / 1.7 until it has
    /// regained the window before the loss, then 1.
    fn grow_estimate(&mut self, cwnd: u32, acked: u32, mss: u32) -> u32 {
        let (numerator, denominator) = if self.w_est < self.w_max { (9, 17) } else { (1, 1) };
        let unit = u64::from(cwnd) * denominator;
        let owed = u64::from(acked) * u64::from(mss) * numerator + u64::from(self.est_rest);
        self.est_rest = (owed % unit).min(u64::from(u32::MAX)) as u32;
        self.w_est = self.w_est.saturating_add((owed / unit).min(1 << 30) as u32);
        self.w_est
    }

    /// The threshold after a loss; ends the epoch. Sections 4.6 and 4.7. Of the window where less
    /// is in flight, as on Linux: windows grow only while they are used, and a request whose one
    /// segment was lost says nothing against the window of the requests before it.
    pub(super) fn on_loss(&mut self, cwnd: u32, flight: u32) -> u32 {
        let converge = cwnd < self.w_max;
        self.w_max = if converge { (u64::from(cwnd) * 17 / 20) as u32 } else { cwnd };
        self.on_idle();
        (u64::from(flight.max(cwnd)) * 7 / 10) as u32
    }

    /// Time without sending does not count: a new epoch begins with the next acknowledgement.
    pub(super) fn on_idle(&mut self) {
        self.epoch_start = None;
        self.w_est = 0;
    }
}

/// The integer part of the cube root.
fn cube_root(value: u128) -> u64 {
    let mut root: u128 = 0;
    for bit in (0..32).rev() {
        let candidate = root | 1 << bit;
        if candidate * candidate * candidate <= value {
            root = candidate;
        }
    }
    root as u64
}

carried!(struct Cubic { w_max, origin, k_ms, epoch_start, w_est, cwnd_rest, est_rest });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cube_roots_are_exact() {
        for root in [0u128, 1, 2, 7, 999, 65_536, 1_000_003] {
            assert_eq!(u128::from(cube_root(root * root * root)), root);
            assert_eq!(u128::from(cube_root((root + 1).pow(3) - 1)), root);
        }
    }

    #[test]
    fn returns_to_the_old_window_after_k() {
        let mss = 1000;
        let mut cubic = Cubic::default();
        let threshold = cubic.on_loss(100_000, 100_000);
        assert_eq!(threshold, 70_000);
        // K = cbrt(30 / 0.4) s = 4.217 s. A long round trip keeps Reno's estimate below the curve.
        let rtt_us = 500_000u32;
        let mut cwnd = threshold;
        let mut now = Instant::from_us(1);
        cwnd = cubic.on_ack(now, cwnd, mss, mss, rtt_us);
        assert_eq!(cubic.k_ms, 4217);
        while now.us() < 4_300_000 {
            now = now.plus_us(u64::from(rtt_us) * u64::from(mss) / u64::from(cwnd));
            cwnd = cubic.on_ack(now, cwnd, mss, mss, rtt_us);
        }
        assert!((97_000..=103_000).contains(&cwnd), "{cwnd}");
    }

    #[test]
    fn second_loss_on_the_way_up_gives_room_to_others() {
        let mut cubic = Cubic::default();
        let _ = cubic.on_loss(100_000, 100_000);
        let _ = cubic.on_loss(80_000, 80_000);
        assert_eq!(cubic.w_max, 68_000);
    }
}
