//! The engine's real connection manager at a station of the simulation, and the balancing that
//! experiments compare. Called by `world` and `transport`; all decisions are the engine's.

use haypile_engine::Instant;
use haypile_engine::control::balancer::Balance;
use haypile_engine::control::connection_manager::ConnectionManager;
use haypile_engine::control::messages::{BetweenManagers, ToManager, ToTransport};
use haypile_engine::control::names::{ProcessName, ServerNumber};

pub use haypile_engine::control::balancer::Scheme;
pub use haypile_engine::control::estimator::EstimatorKind;

use super::world::LISTENER;

/// How a manager balances.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameters {
    /// Scheme, tariff, estimator, watermarks.
    pub balance: Balance,
    /// Offers are given to others after this at the latest.
    pub claim_timeout_us: u64,
}

impl Default for Parameters {
    /// As the service has it.
    fn default() -> Parameters {
        Parameters { balance: Balance::default(), claim_timeout_us: 200_000 }
    }
}

impl Parameters {
    /// A scheme with a tariff; the rest as the service has it.
    pub fn of(scheme: Scheme, tariff: f64) -> Parameters {
        let balance = Balance { scheme, tariff, ..Balance::default() };
        Parameters { balance, ..Parameters::default() }
    }

    /// The same with another estimator.
    #[must_use]
    pub fn with(self, estimator: EstimatorKind) -> Parameters {
        Parameters { balance: Balance { estimator, ..self.balance }, ..self }
    }
}

/// A claim time-out as small as the paper asks for.
const PROMPT_US: u64 = 5_000;

/// Everybody that the paper compares, and the estimators that came after it.
pub fn contestants() -> Vec<(String, Parameters)> {
    let tournament = Parameters::of(Scheme::Tournament, 2.0);
    let prompt = Parameters { claim_timeout_us: PROMPT_US, ..tournament };
    let all = [
        ("tournament 2", tournament),
        ("tournament 2, claims in 5 ms", prompt),
        ("filtered 2", Parameters::of(Scheme::Filtered, 2.0)),
        ("unfiltered 2", Parameters::of(Scheme::Unfiltered, 2.0)),
        ("unfiltered 100", Parameters::of(Scheme::Unfiltered, 100.0)),
        ("naive", Parameters::of(Scheme::Naive, 2.0)),
        ("tournament 2, outstanding", tournament.with(EstimatorKind::Outstanding)),
        ("tournament 2, peak-ewma", tournament.with(EstimatorKind::PeakEwma)),
    ];
    all.map(|(name, parameters)| (name.to_string(), parameters)).to_vec()
}

/// What a manager says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// To the transport server that owns the connection.
    ToTransport(ToTransport),
    /// To all other managers.
    ToManagers(BetweenManagers),
}

/// A connection manager.
pub struct Manager {
    manager: ConnectionManager,
}

impl Manager {
    /// One of `managers`; `seed` is that of the whole simulation.
    pub fn new(number: usize, managers: usize, parameters: Parameters, seed: u64) -> Manager {
        // Neighbouring seeds would begin with neighbouring states.
        let own = seed ^ (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut manager =
            ConnectionManager::new(parameters.claim_timeout_us, parameters.balance, own);
        manager.set_peers(managers > 1);
        Manager { manager }
    }

    /// A transport server says something.
    pub fn tell(&mut self, now: Instant, message: ToManager) {
        self.manager.handle(now, message);
    }

    /// Another manager says something.
    pub fn hear(&mut self, now: Instant, from: usize, message: BetweenManagers) {
        self.manager.handle_offer(now, from as ServerNumber, message);
    }

    /// Time has passed.
    pub fn handle_timers(&mut self, now: Instant) {
        self.manager.handle_timers(now);
    }

    /// When it has something to do by itself.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.manager.poll_timeout()
    }

    /// What it says next. Call until it answers `None`.
    pub fn poll(&mut self, now: Instant) -> Option<Said> {
        let action = self.manager.poll_action(now).map(Said::ToTransport);
        action.or_else(|| self.manager.poll_offer(now).map(Said::ToManagers))
    }

    /// What it believes of one of its own applications, microseconds.
    pub fn estimate_us(&mut self, now: Instant, process: ProcessName) -> Option<f64> {
        let queues = self.manager.summaries(now);
        let all = queues
            .iter()
            .filter(|queue| queue.group == LISTENER)
            .flat_map(|queue| &queue.acceptors);
        let mut own = all.filter(|one| one.process == process && one.offered_by.is_none());
        own.next()?.cost_us.map(f64::from)
    }

    /// Offers that it has taken back.
    pub fn revoked(&self) -> u64 {
        self.manager.counters().revoked
    }
}
