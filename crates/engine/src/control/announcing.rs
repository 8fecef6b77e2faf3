//! What connection managers tell each other: each its best application for a queue, and only when
//! there is something to say.
//!
//! The paper sends these *offers* every 50 us, which would break its own table 3 (tens of updates a
//! second). Here a queue says something new when its best application is another, or costs something
//! else, by at least [`SIGNIFICANT`]: at most every [`ANNOUNCE_MIN_US`]. Smaller changes, down to
//! [`NOTICEABLE`], are said at most every [`ANNOUNCE_SLOW_US`]: ten a second, half of what table 3 has
//! for each manager. And whatever happens no more than one every [`ANNOUNCE_EACH_US`] in the long run.
//! And whom they keep waiting: a manager knows one application of each other manager, so that only its own can name
//! another when it does not claim in time or cannot be reached (`Busy`). What one manager has said stands until it
//! says otherwise, or is gone: it does not say it again, whatever becomes of servers and listeners elsewhere.
//! Halves of `connection_manager`; read that first.

use std::cmp::Reverse;

use super::connection_manager::ConnectionManager;
use super::estimator::SAMPLE_INTERVAL_US;
use super::messages::BetweenManagers;
use super::names::{ListenerName, ServerNumber};
use super::queue::{Acceptor, Queue, Source, Taker};
use crate::time::Instant;

/// Least time between two announcements of one queue.
pub const ANNOUNCE_MIN_US: u64 = 50;
/// Least time between two announcements of which the second says little.
pub const ANNOUNCE_SLOW_US: u64 = 100_000;
/// What one announcement uses up of the time that a queue has for them: whatever its applications do,
/// it says no more than table 3 has for each manager.
pub const ANNOUNCE_EACH_US: u64 = 50_000;
/// How far ahead of that time it may be: so many of them come at once.
const AHEAD_US: u64 = 8 * ANNOUNCE_EACH_US;
/// A change of cost that matters at once, as a part of it.
pub const SIGNIFICANT: f64 = 0.25;
/// A change that matters at all.
pub const NOTICEABLE: f64 = 0.05;
/// Queues looked at in one call.
const LOOKS: usize = 16;

impl ConnectionManager {
    /// Whether there are other connection managers to speak to; none at first.
    pub fn set_peers(&mut self, has_peers: bool) {
        self.has_peers = has_peers;
        self.announce_anew();
    }

    /// Tells the others everything again: one of them is new.
    pub fn announce_anew(&mut self) {
        let mut groups: Vec<ListenerName> = self.queues.keys().copied().collect();
        groups.sort_unstable();
        for group in groups {
            if let Some(queue) = self.queues.get_mut(&group) {
                queue.announced.again = true;
            }
            self.may_announce(group);
        }
    }

    /// Another manager is gone, with its offers.
    pub fn manager_gone(&mut self, gone: ServerNumber) {
        let groups: Vec<ListenerName> = self.queues.keys().copied().collect();
        for group in groups {
            self.withdraw_offers(group, |from, _| from == gone);
        }
    }

    /// What the connection manager of another server says about its applications.
    pub fn handle_offer(&mut self, now: Instant, sender: ServerNumber, offer: BetweenManagers) {
        self.counters.heard += 1;
        match offer {
            BetweenManagers::Best { group, listener, process, service_time_us } => {
                let taker = Taker { listener, process };
                self.withdraw_offers(group, |from, other| from == sender && other != taker);
                // It may come before we hear of the queue ourselves.
                let queue = self.queues.entry(group).or_default();
                if queue.find(taker).is_none() {
                    queue.add(Acceptor::offer(taker, sender));
                }
                let Some(acceptor) = queue.find(taker) else { return };
                if let Source::Offer { from, cost_us, .. } = &mut acceptor.source {
                    // Its home may have moved from one manager to another.
                    (*from, *cost_us) = (sender, service_time_us);
                    // Its manager has heard of it since.
                    acceptor.rests_until = acceptor.rests_until.min(now);
                    (acceptor.listed, acceptor.saturated) = (true, false);
                }
                queue.offers_changed();
                self.may_assign(group);
            }
            BetweenManagers::Nobody { group } => {
                self.withdraw_offers(group, |from, _| from == sender);
            }
            BetweenManagers::Busy { group, listener, process } => {
                self.let_rest(now, group, Taker { listener, process });
            }
        }
    }

    /// An application of ours keeps another manager waiting: if there is another one that takes connections, that
    /// is the best for now. It claims late, or never, and we would not see either.
    fn let_rest(&mut self, now: Instant, group: ListenerName, taker: Taker) {
        let Some(queue) = self.queues.get_mut(&group) else { return };
        let others = queue.acceptors.iter().filter(|other| other.taker != taker);
        if !others.clone().any(|other| other.is_local() && other.can_take(now)) {
            return;
        }
        let Some(acceptor) = queue.find(taker).filter(|one| one.is_local() && one.can_take(now))
        else {
            return;
        };
        let due = acceptor.rest(now);
        self.retries.push(Reverse((due, group, taker)));
        self.may_announce(group);
    }

    /// Only its own manager knows of others than a remote application that does not claim in time.
    pub(super) fn ask_for_another(&mut self, now: Instant, group: ListenerName, taker: Taker) {
        let acceptor = self.queues.get_mut(&group).and_then(|queue| queue.find(taker));
        if acceptor.is_some_and(|one| !one.is_local() && one.listed && one.asks(now)) {
            let Taker { listener, process } = taker;
            self.busy.push_back(BetweenManagers::Busy { group, listener, process });
        }
    }

    /// Offers that do not stand any more: what was given to them is still watched.
    fn withdraw_offers(
        &mut self,
        group: ListenerName,
        which: impl Fn(ServerNumber, Taker) -> bool,
    ) {
        let Some(queue) = self.queues.get_mut(&group) else { return };
        queue.acceptors.retain_mut(|acceptor| {
            let Source::Offer { from, .. } = acceptor.source else { return true };
            acceptor.listed &= !which(from, acceptor.taker);
            acceptor.listed || acceptor.outstanding > 0
        });
        queue.offers_changed();
        self.forget_if_done(group);
    }

    /// Whether `poll_offer` has something to look at.
    #[inline]
    pub fn may_have_offers(&self, now: Instant) -> bool {
        let due = self.to_announce.first().is_some_and(|(due, _)| *due <= now);
        due || !self.ended.is_empty() || !self.busy.is_empty()
    }

    /// What the other connection managers are to be told. Call until it answers `None`.
    pub fn poll_offer(&mut self, now: Instant) -> Option<BetweenManagers> {
        self.asked = now;
        if let Some(group) = self.ended.pop_front() {
            self.counters.announced += 1;
            return Some(BetweenManagers::Nobody { group });
        }
        if let Some(busy) = self.busy.pop_front() {
            return Some(busy);
        }
        for _ in 0..LOOKS {
            let &(due, group) = self.to_announce.first().filter(|(due, _)| *due <= now)?;
            self.to_announce.remove(&(due, group));
            let said = self.look_for_news(now, group);
            if said.is_some() {
                self.counters.announced += 1;
                return said;
            }
        }
        // The next call looks at the others.
        None
    }

    /// What is to be said of a queue now; if that is for later, it is looked at again then.
    fn look_for_news(&mut self, now: Instant, group: ListenerName) -> Option<BetweenManagers> {
        let queue = self.queues.get_mut(&group)?;
        let kind = self.balance.estimator;
        let best = queue
            .best(now, kind)
            .map(|(taker, cost_us)| (taker, queue.announced.level_us(kind, now, cost_us)));
        queue.announced.looked = now;
        queue.announcing = None;
        match queue.announcement(now, best) {
            Announcement::Nothing => None,
            Announcement::NotBefore(due) => {
                queue.announcing = Some(due);
                self.to_announce.insert((due, group));
                None
            }
            Announcement::Now => {
                queue.announced.best = best;
                queue.announced.at = Some(now);
                queue.announced.used_up =
                    queue.announced.used_up.max(now).plus_us(ANNOUNCE_EACH_US);
                queue.announced.again = false;
                Some(match best {
                    None => BetweenManagers::Nobody { group },
                    Some((Taker { listener, process }, service_time_us)) => {
                        BetweenManagers::Best { group, listener, process, service_time_us }
                    }
                })
            }
        }
    }

    /// An application has got a little slower or faster, or busier: looked at as often as the paper
    /// looks at its median.
    pub(super) fn may_announce_soon(&mut self, now: Instant, group: ListenerName) {
        let soon = |queue: &Queue| now.since(queue.announced.looked) >= SAMPLE_INTERVAL_US;
        if self.has_peers && self.queues.get(&group).is_some_and(soon) {
            self.may_announce(group);
        }
    }

    /// The queue's best application may have changed: it is looked at next, even if it has something to say later.
    pub(super) fn may_announce(&mut self, group: ListenerName) {
        if !self.has_peers {
            return;
        }
        let Some(queue) = self.queues.get_mut(&group) else { return };
        // Behind those that have waited since the last look.
        let next = self.asked;
        match queue.announcing {
            Some(due) if due <= next => return,
            Some(due) => drop(self.to_announce.remove(&(due, group))),
            None => {}
        }
        queue.announcing = Some(next);
        self.to_announce.insert((next, group));
    }
}

/// What there is to say about a queue.
enum Announcement {
    Nothing,
    NotBefore(Instant),
    Now,
}

impl Queue {
    fn announcement(&self, now: Instant, best: Option<(Taker, u32)>) -> Announcement {
        let told = self.announced.best;
        let allowed = Instant::from_us(self.announced.used_up.us().saturating_sub(AHEAD_US));
        let after = |wait_us: u64| match self.announced.at.map(|at| at.plus_us(wait_us)) {
            Some(due) if due.max(allowed) > now => Announcement::NotBefore(due.max(allowed)),
            _ => Announcement::Now,
        };
        if self.announced.again && (best.is_some() || told.is_some()) {
            return after(ANNOUNCE_MIN_US);
        }
        let ((taker, cost), (old_taker, old_cost)) = match (best, told) {
            (None, None) => return Announcement::Nothing,
            (Some(best), Some(told)) => (best, told),
            _ => return after(ANNOUNCE_MIN_US),
        };
        // An application that takes no more must not stay the best one.
        let left = taker != old_taker
            && !self.acceptors.iter().any(|old| old.taker == old_taker && old.can_take(now));
        let unknown = (cost == 0) != (old_cost == 0);
        let change = f64::from(cost.abs_diff(old_cost)) / f64::from(cost.min(old_cost).max(1));
        match change {
            _ if left || unknown => after(ANNOUNCE_MIN_US),
            change if change >= SIGNIFICANT => after(ANNOUNCE_MIN_US),
            change if change >= NOTICEABLE => after(ANNOUNCE_SLOW_US),
            _ => Announcement::Nothing,
        }
    }
}
