//! How long a supervisor waits before it starts a dead server again. Pure: lives and times come as
//! arguments. Called by `supervisor`.
//!
//! Each death doubles the wait, and each second of life takes one death back. A server that dies as soon as
//! it has started comes to the longest wait, so that it costs next to nothing; one that has served for a second
//! is back at once whoever killed it, however often: a start costs little beside such a life, and nobody answers
//! for the address while it is away (Linux asks for three seconds before it tells a peer that there is no host).

/// Wait after the first death.
pub const FIRST_US: u64 = 10_000;
/// Longest wait.
pub const LONGEST_US: u64 = 5_000_000;
/// A life of so long takes one death back.
pub const FORGIVING_US: u64 = 1_000_000;
/// With so many deaths that were not taken back a server is said to die again and again. No more are counted.
pub const LOOP_DEATHS: u32 = 10;

/// The deaths of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    /// Those that were not taken back, in [`FORGIVING_US`] each.
    debt_us: u64,
    /// It was said that the server dies again and again, and it has not been well since.
    told: bool,
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
        let most_us = u64::from(LOOP_DEATHS) * FORGIVING_US;
        self.debt_us = self.debt_us.saturating_sub(lived_us);
        self.told &= self.debt_us > 0;
        let doublings = self.debt_us / FORGIVING_US;
        let us = FIRST_US.saturating_mul(1 << doublings).min(LONGEST_US);
        self.debt_us = (self.debt_us + FORGIVING_US).min(most_us);
        let is_loop = self.debt_us == most_us && !self.told;
        self.told |= is_loop;
        Delay { us, is_loop }
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
    }

    #[test]
    fn who_has_served_is_back_at_once_however_often_it_dies() {
        assert_eq!(waits([FORGIVING_US; 100]), [10; 100]);
        // A few quick deaths among the others, and the mean life is long enough.
        let lives = (0..100).map(|death| if death % 4 == 0 { 0 } else { FORGIVING_US * 3 / 2 });
        assert!(waits(lives).into_iter().all(|wait_ms| wait_ms <= 40));
    }

    #[test]
    fn a_life_takes_deaths_back() {
        assert_eq!(waits([0, 0, 0, 0, FORGIVING_US, 2 * FORGIVING_US]), [10, 20, 40, 80, 80, 40]);
        assert_eq!(
            waits([0, 0, 0, 3 * FORGIVING_US, 0, u64::MAX, 0]),
            [10, 20, 40, 10, 20, 10, 20]
        );
    }

    #[test]
    fn the_shorter_the_lives_the_sooner_a_loop_is_slow() {
        let slow = |lived_us| waits([lived_us; 1000]).iter().position(|wait_ms| *wait_ms == 5000);
        assert_eq!([0, FORGIVING_US / 2, FORGIVING_US].map(slow), [Some(9), Some(18), None]);
    }

    #[test]
    fn a_loop_is_told_once_and_never_ends_the_waits() {
        let mut backoff = Backoff::default();
        let delays: Vec<Delay> = (0..100_000).map(|_| backoff.died(0)).collect();
        let told: Vec<usize> = (0..delays.len()).filter(|at| delays[*at].is_loop).collect();
        assert_eq!(told, [LOOP_DEATHS as usize - 1]);
        assert!(delays[20..].iter().all(|delay| delay.us == LONGEST_US));
        // Once it was well the next loop is told, too.
        assert_eq!(backoff.died(u64::MAX), Delay { us: FIRST_US, is_loop: false });
        assert_eq!((0..100).filter(|_| backoff.died(0).is_loop).count(), 1);
    }
}
