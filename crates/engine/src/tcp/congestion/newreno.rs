//! Congestion avoidance of RFC 5681: one segment a round trip, half the flight at a loss.

use crate::carry::carried;

/// State of the additive increase.
#[derive(Debug, Default)]
pub(super) struct NewReno {
    /// Bytes acknowledged since the window last grew (RFC 3465 section 2.1).
    acked: u32,
}

impl NewReno {
    /// The window after `acked` bytes were acknowledged in congestion avoidance.
    pub(super) fn on_ack(&mut self, cwnd: u32, acked: u32, mss: u32) -> u32 {
        self.acked = self.acked.saturating_add(acked);
        if self.acked < cwnd {
            return cwnd;
        }
        self.acked -= cwnd;
        cwnd.saturating_add(mss)
    }

    /// The threshold after a loss, RFC 5681 equation 4.
    pub(super) fn on_loss(&mut self, flight: u32) -> u32 {
        self.acked = 0;
        flight / 2
    }
}

carried!(struct NewReno { acked });
