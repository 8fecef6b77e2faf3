//! The connection manager of the product in the place of the abstract one: it makes its own choices,
//! and its time runs from one of its timers to the next.

use std::hash::Hasher;

use haypile_engine::Instant;
use haypile_engine::control::balancer::Balance;
use haypile_engine::control::connection_manager::ConnectionManager;
use haypile_engine::control::messages::{BetweenManagers, ToManager, ToTransport};

use super::Shape;
use super::manager::Manager;
use super::state::SIDE;

/// The claim time-out, in microseconds of the manager's own time. Any will do.
const CLAIM_TIMEOUT_US: u64 = 1_000;

/// The real connection manager.
pub struct RealManager {
    manager: ConnectionManager,
    number: u8,
    managers: u8,
    now: Instant,
}

impl Manager for RealManager {
    type Between = BetweenManagers;

    fn new(shape: &Shape, number: u8) -> RealManager {
        let mut manager = ConnectionManager::new(CLAIM_TIMEOUT_US, Balance::default(), 7);
        manager.set_peers(shape.managers > 1);
        RealManager { manager, number, managers: shape.managers, now: Instant::from_us(0) }
    }

    fn handle(&mut self, message: ToManager) {
        self.manager.handle(self.now, message);
    }

    fn handle_between(&mut self, from: u8, message: BetweenManagers) {
        self.manager.handle_offer(self.now, from.into(), message);
    }

    fn handle_restart_of(&mut self, other: u8) {
        self.manager.manager_gone(other.into());
        self.manager.announce_anew();
    }

    fn choices(&self, _: &mut Vec<(u8, u8)>) {}

    fn assign(&mut self, _: u8, _: u8) {}

    fn timers(&self, out: &mut Vec<u8>) {
        out.extend(self.manager.poll_timeout().map(|_| 0));
    }

    fn expire(&mut self, _: u8) {
        self.now = self.manager.poll_timeout().unwrap_or(self.now).max(self.now);
        self.manager.handle_timers(self.now);
    }

    fn poll(
        &mut self,
        to_transport: &mut Vec<ToTransport>,
        between: &mut Vec<(u8, BetweenManagers)>,
    ) {
        to_transport.extend(std::iter::from_fn(|| self.manager.poll_action(self.now)));
        while let Some(word) = self.manager.poll_offer(self.now) {
            let others = (0..self.managers).filter(|other| *other != self.number);
            between.extend(others.map(|other| (other, word)));
        }
    }

    fn serials(_: &[RealManager; SIDE]) -> [u8; SIDE] {
        [0; SIDE]
    }

    fn digest<H: Hasher>(&self, _: &[u8; SIDE], _: &mut H) {}

    fn digest_word<H: Hasher>(_: &BetweenManagers, _: &[u8; SIDE], _: &mut H) {}
}
