//! Congestion control: how many bytes may be in the network.
//!
//! [`Congestion`] owns the window and does what all algorithms share (RFC 5681: slow start, one
//! segment after a time-out; RFC 6928: the initial window); [`newreno`] and [`cubic`] decide growth
//! in congestion avoidance and how far to back off. Called by `loss.rs` and `transmit.rs`.

mod cubic;
mod newreno;

use crate::Instant;
use crate::carry::{Carry, Reader, Refusal, Writer, carried, demand};
use cubic::Cubic;
use newreno::NewReno;

/// Segments of the initial window, RFC 6928.
const INITIAL_SEGMENTS: u32 = 10;
/// Byte bound of the initial window, RFC 6928.
const INITIAL_BYTES: u32 = 14_600;
/// Windows never grow beyond this; RFC 7323 allows no larger send window.
const CWND_MAX: u32 = 1 << 30;

/// Numbers of the algorithms where a connection crosses to another server.
const CUBIC: u8 = 0;
const NEW_RENO: u8 = 1;

/// Which algorithm a connection uses.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum CongestionControl {
    /// RFC 9438.
    Cubic,
    /// RFC 5681 congestion avoidance.
    NewReno,
}

#[derive(Debug)]
enum Algorithm {
    Cubic(Cubic),
    NewReno(NewReno),
}

/// Congestion window of one connection, in bytes.
#[derive(Debug)]
pub(super) struct Congestion {
    /// Congestion window.
    pub(super) cwnd: u32,
    /// Slow start threshold; `u32::MAX` before the first loss.
    pub(super) ssthresh: u32,
    /// Data below this offset was sent while the window was in use; only its acknowledgement lets
    /// the window grow (RFC 7661 and Linux: an unused window proves nothing).
    used_until: u64,
    algorithm: Algorithm,
}

impl Congestion {
    /// Before the handshake.
    pub(super) fn new(control: CongestionControl) -> Congestion {
        let algorithm = match control {
            CongestionControl::Cubic => Algorithm::Cubic(Cubic::default()),
            CongestionControl::NewReno => Algorithm::NewReno(NewReno::default()),
        };
        Congestion { cwnd: 1, ssthresh: u32::MAX, used_until: 0, algorithm }
    }

    /// Handshake done. `syn_was_lost` halves trust: one segment (RFC 5681 section 3.1).
    pub(super) fn start(&mut self, mss: u32, syn_was_lost: bool) {
        self.cwnd = if syn_was_lost { mss } else { initial_window(mss) };
    }

    /// True in slow start.
    pub(super) fn in_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    /// New data up to `snd_nxt` was sent and `in_flight` bytes are out now.
    pub(super) fn on_sent(&mut self, snd_nxt: u64, in_flight: u32, mss: u32) {
        let filled = in_flight.saturating_add(mss) > self.cwnd;
        let half_filled = self.in_slow_start() && in_flight >= self.cwnd / 2;
        if filled || half_filled {
            self.used_until = snd_nxt;
        }
    }

    /// `acked` bytes up to `una` left the network while all was well.
    pub(super) fn on_ack(&mut self, now: Instant, una: u64, acked: u32, mss: u32, srtt_us: u32) {
        if una > self.used_until {
            return;
        }
        let mut acked = acked;
        if self.in_slow_start() {
            let step = acked.min(self.ssthresh - self.cwnd);
            self.cwnd = (self.cwnd + step).min(CWND_MAX);
            acked -= step;
        }
        if acked > 0 {
            self.cwnd = match &mut self.algorithm {
                Algorithm::Cubic(cubic) => cubic.on_ack(now, self.cwnd, acked, mss, srtt_us),
                Algorithm::NewReno(newreno) => newreno.on_ack(self.cwnd, acked, mss),
            }
            .min(CWND_MAX);
        }
    }

    /// A time-out's repair goes on: grow by at most one segment an acknowledgement (RFC 3465
    /// section 2.3).
    pub(super) fn on_ack_in_loss(&mut self, acked: u32, mss: u32) {
        if self.in_slow_start() {
            self.cwnd = self.cwnd.saturating_add(acked.min(mss)).min(CWND_MAX);
        }
    }

    /// Duplicate acknowledgements show a loss: back off once for this window. What was not used of
    /// it stays unused until the repair is over.
    pub(super) fn on_loss(&mut self, flight: u32, mss: u32) {
        self.back_off(flight, mss);
        self.cwnd = self.ssthresh.min(flight.max(2 * mss));
    }

    /// The retransmission timer ran out. `again` when this is not the first time for this data:
    /// then the threshold stays (RFC 5681 section 3.1).
    pub(super) fn on_timeout(&mut self, flight: u32, mss: u32, again: bool) {
        if !again {
            self.back_off(flight, mss);
        }
        self.cwnd = mss;
    }

    /// Sets the threshold after a loss.
    fn back_off(&mut self, flight: u32, mss: u32) {
        let reduced = match &mut self.algorithm {
            Algorithm::Cubic(cubic) => cubic.on_loss(self.cwnd, flight),
            Algorithm::NewReno(newreno) => newreno.on_loss(flight),
        };
        self.ssthresh = reduced.max(2 * mss);
    }

    /// Fast recovery is over: RFC 6582 section 3.2 step 3, the variant without a burst.
    pub(super) fn on_recovered(&mut self, flight: u32, mss: u32) {
        self.cwnd = self.ssthresh.min(flight.max(mss).saturating_add(mss));
    }

    /// Recovery with SACK is over: the scoreboard knew what was in flight, so the window may be used.
    pub(super) fn on_recovered_with_sack(&mut self) {
        self.cwnd = self.ssthresh;
    }

    /// Nothing was sent for `idle_us`: the window halves for every time-out that passed, down to
    /// the initial window (RFC 5681 section 4.1, as Linux does it).
    pub(super) fn restart_after_idle(&mut self, idle_us: u64, rto_us: u32, mss: u32) {
        let rto_us = u64::from(rto_us.max(1));
        let floor = initial_window(mss).min(self.cwnd);
        let mut idle_us = idle_us;
        if idle_us > rto_us {
            self.ssthresh = self.ssthresh.max(self.cwnd / 4 * 3);
            if let Algorithm::Cubic(cubic) = &mut self.algorithm {
                cubic.on_idle();
            }
        }
        while idle_us > rto_us && self.cwnd > floor {
            self.cwnd = (self.cwnd / 2).max(floor);
            idle_us -= rto_us;
        }
    }
}

/// RFC 6928 section 2.
fn initial_window(mss: u32) -> u32 {
    (INITIAL_SEGMENTS * mss).min((2 * mss).max(INITIAL_BYTES))
}

carried!(struct Congestion { cwnd, ssthresh, used_until, algorithm });

impl Carry for Algorithm {
    fn write(&self, out: &mut Writer) {
        match self {
            Algorithm::Cubic(cubic) => {
                CUBIC.write(out);
                cubic.write(out);
            }
            Algorithm::NewReno(newreno) => {
                NEW_RENO.write(out);
                newreno.write(out);
            }
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Algorithm, Refusal> {
        Ok(match u8::read(input)? {
            CUBIC => Algorithm::Cubic(Cubic::read(input)?),
            NEW_RENO => Algorithm::NewReno(NewReno::read(input)?),
            _ => return Err(Refusal::Impossible("congestion control")),
        })
    }
}

impl Congestion {
    /// That nothing computed from what was read can go wrong.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        demand((1..=CWND_MAX).contains(&self.cwnd) && self.ssthresh > 0, "congestion window")
    }
}

#[cfg(test)]
mod tests;
