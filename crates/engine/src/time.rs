//! The engine's clock reading: an argument of every call that needs it, never read from a machine.
//!
//! Called by everyone. The service converts a monotonic clock, the simulator counts virtual time.

/// A point in time, in microseconds since an arbitrary start that all callers of one shard share.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Instant {
    us: u64,
}

impl Instant {
    /// The point `us` microseconds after the start.
    pub const fn from_us(us: u64) -> Instant {
        Instant { us }
    }

    /// Microseconds since the start.
    pub const fn us(self) -> u64 {
        self.us
    }

    /// The point `us` microseconds later; stays at the end of time instead of wrapping.
    #[must_use]
    pub const fn plus_us(self, us: u64) -> Instant {
        Instant { us: self.us.saturating_add(us) }
    }

    /// Microseconds from `earlier` to this point; 0 if `earlier` is in fact later.
    pub const fn since(self, earlier: Instant) -> u64 {
        self.us.saturating_sub(earlier.us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let end = Instant::from_us(u64::MAX);
        assert_eq!(end.plus_us(1), end);
        assert_eq!(Instant::from_us(3).since(Instant::from_us(5)), 0);
        assert_eq!(Instant::from_us(5).since(Instant::from_us(3)), 2);
    }
}
