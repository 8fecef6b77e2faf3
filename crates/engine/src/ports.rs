//! The choice of local ports for outgoing connections, by RFC 6056 section 3.3.4 (double hash).
//!
//! The sequence of ports towards one peer starts at a place only we can compute and then counts up,
//! so that a port comes back late; different peers use different sequences. Called by `connect`.

use crate::limits::{EPHEMERAL_FIRST, EPHEMERAL_LAST};

/// Counters; a power of two.
const COUNTERS: usize = 1024;
/// Ports to choose from.
const RANGE: u32 = EPHEMERAL_LAST as u32 - EPHEMERAL_FIRST as u32 + 1;

/// The counters of all sequences.
#[derive(Debug, Default)]
pub struct Ports {
    counters: Vec<u32>,
}

impl Ports {
    /// Counters that start at places given by the seed.
    pub fn new(seed: u64) -> Ports {
        let mut state = seed;
        let counters = (0..COUNTERS)
            .map(|_| {
                // A linear congruential generator; the offset of each sequence is keyed anyway.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 32) as u32
            })
            .collect();
        Ports { counters }
    }

    /// The next port of a sequence that `is_free`; `None` when no port of the range is.
    pub fn choose(
        &mut self,
        (offset, counter): (u32, u32),
        mut is_free: impl FnMut(u16) -> bool,
    ) -> Option<u16> {
        let counter = self.counters.get_mut(counter as usize % COUNTERS)?;
        for _ in 0..RANGE {
            let place = offset.wrapping_add(*counter) % RANGE;
            *counter = counter.wrapping_add(1);
            let port = EPHEMERAL_FIRST + place as u16;
            if is_free(port) {
                return Some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_sequence_visits_every_port_once_before_it_repeats() {
        let mut ports = Ports::new(3);
        let mut seen = HashSet::new();
        for _ in 0..RANGE {
            let port = ports.choose((77, 5), |_| true).expect("a port");
            assert!((EPHEMERAL_FIRST..=EPHEMERAL_LAST).contains(&port));
            assert!(seen.insert(port), "{port} twice");
        }
    }

    #[test]
    fn taken_ports_are_passed_over_and_exhaustion_is_told() {
        let mut ports = Ports::new(3);
        assert_eq!(ports.choose((1, 1), |port| port == 40_000), Some(40_000));
        assert_eq!(ports.choose((1, 1), |_| false), None);
    }
}
