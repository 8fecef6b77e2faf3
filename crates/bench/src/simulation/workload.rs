//! What a simulated or real experiment asks of its workers: how connections arrive, how long each
//! is served, and which workers are slow when (PIKA, figure 6a). Pure; called by `world`, `linux`,
//! `outcome` and, for real, by `workers`.

use haypile_engine::random::Random;
use serde::{Deserialize, Serialize};

use crate::schedule::Spread;

/// When connections arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// At a rate, whatever the answers do.
    Open {
        /// Connections a second.
        rate: f64,
        /// How they are spread.
        spread: Spread,
    },
    /// Each client asks again as soon as it is answered.
    Closed {
        /// Clients.
        clients: usize,
    },
}

/// One worker is slower for a while.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delay {
    /// Which, from 0.
    pub worker: usize,
    /// From when, seconds since the start of what is counted.
    pub from_s: f64,
    /// Until when, seconds; infinite is written as a large number.
    pub to_s: f64,
    /// So many times the undisturbed service time.
    pub times: f64,
}

/// All delays of an experiment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delays(pub Vec<Delay>);

/// How long the figures of the paper run, seconds.
pub const FIGURE_SECONDS: f64 = 5.0;

impl Delays {
    /// The delays of figure 6a for eight workers: the second is slower for a short while, the fourth
    /// much slower for longer, the eighth slightly from three seconds on, the sixth is always slow.
    /// The paper's text gives the times, its figure the sizes as curves without numbers; the sizes
    /// here are ours, chosen so that what is large is larger than the tariff can hide.
    pub fn figure_6a() -> Delays {
        let delay = |worker, from_s, to_s, times| Delay { worker, from_s, to_s, times };
        Delays(vec![
            delay(1, 0.5, 1.0, 5.0),
            delay(3, 1.5, 4.0, 40.0),
            delay(7, 3.0, 1e9, 3.0),
            delay(5, -1e9, 1e9, 40.0),
        ])
    }

    /// The fourth worker alone, for half of a run of so many seconds: the figure's large delay.
    pub fn one_slow(seconds: f64) -> Delays {
        let mut delays = Delays::figure_6a();
        delays.0.retain(|delay| delay.worker == 3);
        delays.over(seconds)
    }

    /// The same within so many seconds instead of those of the paper's figures.
    #[must_use]
    pub fn over(mut self, seconds: f64) -> Delays {
        let scale = seconds / FIGURE_SECONDS;
        for delay in &mut self.0 {
            delay.from_s *= scale;
            delay.to_s *= scale;
        }
        self
    }

    /// How many times longer than undisturbed a worker takes at this time.
    pub fn factor(&self, worker: usize, at_s: f64) -> f64 {
        let now =
            |delay: &&Delay| delay.worker == worker && (delay.from_s..delay.to_s).contains(&at_s);
        self.0.iter().filter(now).map(|delay| delay.times).product()
    }
}

/// How long workers serve.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Undisturbed, nanoseconds.
    pub base_ns: u64,
    /// Share by which single ones differ, evenly to both sides.
    pub jitter: f64,
    /// Who is slow when.
    pub delays: Delays,
}

impl Service {
    /// The time that the load gives so many workers, so that they are busy for this share of it.
    pub fn at_load(share: f64, workers: usize, rate: f64, delays: Delays) -> Service {
        Service { base_ns: (share * workers as f64 / rate * 1e9) as u64, jitter: 0.1, delays }
    }

    /// What a worker takes for a connection that it begins now.
    pub fn draw_ns(&self, worker: usize, at_s: f64, random: &mut Random) -> u64 {
        let jitter = 1.0 + self.jitter * (2.0 * random.positive_fraction() - 1.0);
        (self.mean_ns(worker, at_s) * jitter) as u64
    }

    /// Its mean.
    pub fn mean_ns(&self, worker: usize, at_s: f64) -> f64 {
        self.base_ns as f64 * self.delays.factor(worker, at_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_hold_for_their_time() {
        let delays = Delays::figure_6a();
        assert_eq!([0.4, 0.5, 0.99, 1.0].map(|at| delays.factor(1, at)), [1.0, 5.0, 5.0, 1.0]);
        assert_eq!((delays.factor(5, 0.0), delays.factor(0, 2.0)), (40.0, 1.0));
        let stretched = Delays::one_slow(10.0);
        assert_eq!([2.9, 3.0, 7.9, 8.0].map(|at| stretched.factor(3, at)), [1.0, 40.0, 40.0, 1.0]);
    }

    #[test]
    fn the_load_is_what_was_asked_for() {
        let service = Service::at_load(0.2, 8, 30_000.0, Delays::default());
        assert_eq!(service.base_ns, 53_333);
        let mut random = Random::new(1);
        let times: Vec<u64> = (0..20_000).map(|_| service.draw_ns(0, 0.0, &mut random)).collect();
        let mean = times.iter().sum::<u64>() as f64 / times.len() as f64;
        assert!((mean / 53_333.0 - 1.0).abs() < 0.005, "{mean}");
        assert!(times.iter().all(|time| (48_000..58_700).contains(time)));
    }
}
