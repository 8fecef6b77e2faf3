//! How long a supervisor waits before it starts a dead server again. Pure: lives and times come as
//! arguments. Called by `supervisor`.

/// Wait after the first death.
pub const FIRST_US: u64 = 10_000;
/// Longest wait.
pub const LONGEST_US: u64 = 5_000_000;
/// A server that has lived so long was well: the next wait is the first one again.
pub const HEALTHY_US: u64 = 10_000_000;
/// Deaths in a row from which on a server is said to die again and again.
pub const LOOP_DEATHS: u32 = 10;

/// The deaths in a row of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    deaths: u32,
}

/// What to do after a death.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Delay {
    /// Wait so long.
    pub us: u64,
    /// It has just become clear that the server dies again and again: say so, once.
    pub is_loop: bool,
}

impl Backoff {
    /// A server has died after a life of `lived_us`.
    pub fn died(&mut self, lived_us: u64) -> Delay {
        if lived_us >= HEALTHY_US {
            self.deaths = 0;
        }
        let doublings = self.deaths.min(LONGEST_US.ilog2());
        self.deaths = self.deaths.saturating_add(1);
        let us = FIRST_US.saturating_mul(1 << doublings).min(LONGEST_US);
        Delay { us, is_loop: self.deaths == LOOP_DEATHS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(lives: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut backoff = Backoff::default();
        lives.into_iter().map(|lived_us| backoff.died(lived_us).us / 1000).collect()
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let expected = [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000, 5000];
        assert_eq!(waits([0; 12]), expected);
        assert_eq!(waits([HEALTHY_US - 1; 12]), expected);
    }

    #[test]
    fn a_healthy_life_starts_over() {
        assert_eq!(waits([0, 0, 0, HEALTHY_US, 0, u64::MAX, 0]), [10, 20, 40, 10, 20, 10, 20]);
    }

    #[test]
    fn a_loop_is_told_once_and_never_ends_the_waits() {
        let mut backoff = Backoff::default();
        let delays: Vec<Delay> = (0..100_000).map(|_| backoff.died(0)).collect();
        let told: Vec<usize> = (0..delays.len()).filter(|at| delays[*at].is_loop).collect();
        assert_eq!(told, [LOOP_DEATHS as usize - 1]);
        assert!(delays[20..].iter().all(|delay| delay.us == LONGEST_US));
        backoff.deaths = u32::MAX;
        assert_eq!(backoff.died(0), Delay { us: LONGEST_US, is_loop: false });
    }
}
