//! What routers said of the MTU towards destinations: a small cache, for datagrams.
//!
//! Connections keep their own. Filled by `shard/udp_errors.rs` from errors about datagrams that a
//! socket of ours may have sent, asked by `shard/udp_send.rs`. Read first: RFC 1191, RFC 8201.

use std::collections::VecDeque;
use std::net::IpAddr;

use hashbrown::HashMap;

use crate::time::Instant;

/// How long a report counts (RFC 1191 section 6.3, RFC 8201 section 4: 10 minutes).
const LIFETIME_US: u64 = 600_000_000;

/// The cache. When it is full the oldest report is forgotten.
#[derive(Debug)]
pub struct PathMtus {
    known: HashMap<IpAddr, (usize, Instant), foldhash::quality::FixedState>,
    /// Destinations in the order of their first report.
    order: VecDeque<IpAddr>,
    limit: usize,
}

impl PathMtus {
    /// An empty cache of at most `limit` destinations.
    pub fn new(seed: u64, limit: usize) -> PathMtus {
        let known = HashMap::with_hasher(foldhash::quality::FixedState::with_seed(seed));
        PathMtus { known, order: VecDeque::new(), limit }
    }

    /// A router reports a smaller MTU; a larger one than known is not believed.
    pub fn learn(&mut self, now: Instant, destination: IpAddr, mtu: usize) {
        if self.of(now, destination).is_some_and(|known| known <= mtu) {
            return;
        }
        if self.known.insert(destination, (mtu, now.plus_us(LIFETIME_US))).is_some() {
            return;
        }
        self.order.push_back(destination);
        while self.order.len() > self.limit {
            if let Some(oldest) = self.order.pop_front() {
                let _ = self.known.remove(&oldest);
            }
        }
    }

    /// The MTU towards a destination, where one was reported lately.
    pub fn of(&self, now: Instant, destination: IpAddr) -> Option<usize> {
        if self.known.is_empty() {
            return None;
        }
        let (mtu, expires) = self.known.get(&destination)?;
        (now < *expires).then_some(*mtu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_shrink_age_and_make_room() {
        let mut mtus = PathMtus::new(1, 2);
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let start = Instant::from_us(5);
        mtus.learn(start, address(1), 1400);
        mtus.learn(start, address(1), 1450);
        assert_eq!(mtus.of(start, address(1)), Some(1400));
        mtus.learn(start, address(1), 1300);
        assert_eq!(mtus.of(start, address(1)), Some(1300));
        let later = start.plus_us(LIFETIME_US);
        assert_eq!(mtus.of(later, address(1)), None);
        mtus.learn(later, address(1), 1490);
        assert_eq!(mtus.of(later, address(1)), Some(1490));
        mtus.learn(later, address(2), 1400);
        mtus.learn(later, address(3), 1400);
        assert_eq!(mtus.of(later, address(1)), None);
        assert_eq!(mtus.of(later, address(3)), Some(1400));
        assert_eq!(mtus.order.len(), 2);
    }
}
