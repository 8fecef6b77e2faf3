//! One accept queue: connections that wait, the applications that may take them, and the offers of
//! other connection managers. Owned by [`connection_manager`](super::connection_manager), which knows the phases of
//! a connection; here is who gets the next one.
//!
//! **Among local applications** those with the fewest unanswered offers come first: whoever owes us
//! an answer is busy right now. Among them each gets its share, 1/s, in turn and not by lot (start-time
//! fair queueing), so that equals take strict turns. But nobody is chosen for being idle alone while
//! another would sooner be done, s for each that it owes included: a slow application is idle because
//! it gets little. Whoever has no estimate yet and no connection is tried first; with a connection out
//! it counts as the best.
//!
//! **Who serves one connection after the other** comes to the next when it is done with the one it has, so
//! that one counts like an unanswered offer. Whoever was seen with two connections is not asked how many it has.
//!
//! **Offers** compete as `balancer` says. A queue without local applications passes all
//! its connections on, under every scheme.

use std::collections::VecDeque;

use super::balancer::{self, Balance, Local, Scheme};
use super::estimator::{ClaimTimes, Estimator, EstimatorKind};
use super::names::{ConnectionName, ListenerName, ProcessName, ServerNumber};
use crate::random::Random;
use crate::time::Instant;

/// Offers one acceptor may have out at a time; the others wait for a claim.
pub const OUTSTANDING_MAX: u32 = 128;
/// How long an application rests, at first, after it did not claim in time what another manager than its own gave it.
const REST_US: u64 = 10_000;
/// And at most.
const REST_MAX_US: u64 = 1_000_000;
/// Behind a connection that takes less the next one waits rather than go to another manager's application: as long as
/// it takes to wake two cores on the way there.
const WORTH_LEAVING_US: u32 = 100;

/// Who takes a connection: a process by one of its listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Taker {
    pub listener: ListenerName,
    pub process: ProcessName,
}

/// Where an acceptor's cost comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// One of our own applications.
    Local(Box<Estimator>),
    /// The best of another connection manager, as that says; a cost of 0 is not known yet.
    Offer { from: ServerNumber, cost_us: u32, passed: bool },
}

/// An application that may take connections.
#[derive(Debug)]
pub(super) struct Acceptor {
    pub taker: Taker,
    pub source: Source,
    /// It has said that it accepts, and has not been found too slow since.
    pub listed: bool,
    /// Offers out.
    pub outstanding: u32,
    /// It was seen with two connections at a time.
    pub takes_several: bool,
    /// Which registration this is: what is late to tell of an earlier one does not concern it.
    pub registration: u64,
    /// An offer could not be delivered. Cleared by a claim, a registration or time: nobody says
    /// when there is memory again.
    pub saturated: bool,
    /// It has not claimed in time, and its offers are being taken back.
    pub late: bool,
    /// Offers by age, but for those that are being taken back.
    pub offers: VecDeque<(Instant, ConnectionName)>,
    /// A look at the oldest offer is due.
    pub armed: bool,
    pub claims: ClaimTimes,
    /// When it was offered what it did not claim in time.
    pub late_since: Option<Instant>,
    /// Until then it is given nothing.
    pub rests_until: Instant,
    /// How long it rests next.
    rest_us: u64,
    /// From then on its manager may be asked for another one.
    asks_from: Instant,
    /// Connections that it was offered, ever.
    pub assigned: u64,
    /// Its turn: the finish tag of fair queueing.
    tag: u64,
}

/// The queue of one listener, or of a group of them.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Local ones first: a connection that stays costs the same however many managers there are.
    pub acceptors: Vec<Acceptor>,
    /// Waiting connections, oldest first; names of connections that are gone stay until their turn.
    pub waiting: VecDeque<ConnectionName>,
    /// How many of `waiting` still wait.
    pub waiting_count: usize,
    /// Offers that are out; a queue without listeners is forgotten when it is zero.
    pub offered: u32,
    /// Listeners of the group.
    pub listeners: u32,
    /// It is on the list of those that may have something to assign.
    pub assigning: bool,
    /// When it is to be looked whether there is something to tell other managers, if at all.
    pub announcing: Option<Instant>,
    pub announced: Announced,
    /// The virtual time of fair queueing.
    clock: u64,
    /// No offer is known to cost less; may be out of date only towards 0.
    cheapest_us: u32,
    /// An offer passed the filter when it was last renewed.
    any_passed: bool,
}

/// What other managers were told.
#[derive(Debug, Default)]
pub(super) struct Announced {
    /// The best application and its cost; `None`: that there is nobody.
    pub best: Option<(Taker, u32)>,
    /// Until when the time for announcements is used up.
    pub used_up: Instant,
    /// When it was last considered whether there is something to say.
    pub looked: Instant,
    /// The cost of the best application over time, where the estimator follows each connection.
    level_us: f64,
    /// When.
    pub at: Option<Instant>,
    /// It has to be said again, changed or not.
    pub again: bool,
}

impl Acceptor {
    pub fn local(taker: Taker) -> Acceptor {
        Acceptor::new(taker, Source::Local(Box::default()))
    }

    pub fn offer(taker: Taker, from: ServerNumber) -> Acceptor {
        Acceptor::new(taker, Source::Offer { from, cost_us: 0, passed: false })
    }

    fn new(taker: Taker, source: Source) -> Acceptor {
        Acceptor {
            taker,
            source,
            listed: true,
            outstanding: 0,
            takes_several: false,
            registration: 0,
            saturated: false,
            late: false,
            offers: VecDeque::new(),
            armed: false,
            claims: ClaimTimes::default(),
            late_since: None,
            rests_until: Instant::default(),
            rest_us: REST_US,
            asks_from: Instant::default(),
            assigned: 0,
            tag: 0,
        }
    }

    pub fn is_local(&self) -> bool {
        matches!(self.source, Source::Local(_))
    }

    /// Whether it may be offered one more.
    pub fn can_take(&self, now: Instant) -> bool {
        let able = self.listed && !self.saturated && !self.late && now >= self.rests_until;
        able && self.outstanding < OUTSTANDING_MAX
    }

    /// How many it comes to before the next one.
    fn before_next(&self) -> u32 {
        self.outstanding + u32::from(!self.takes_several && self.open() > 0)
    }

    /// Whether it is ours and has closed a connection.
    fn is_known(&self) -> bool {
        matches!(&self.source, Source::Local(estimator) if estimator.is_known())
    }

    /// What an offer says that it costs; `None`: not known yet, or it is local.
    fn offered_us(&self) -> Option<u32> {
        match self.source {
            Source::Offer { cost_us, .. } => Some(cost_us).filter(|cost| *cost > 0),
            Source::Local(_) => None,
        }
    }

    /// Its cost; `None`: not known yet.
    pub fn cost_us(&mut self, kind: EstimatorKind, now: Instant) -> Option<u32> {
        match &mut self.source {
            Source::Local(estimator) => estimator.cost_us(kind, now, self.outstanding),
            Source::Offer { .. } => self.offered_us(),
        }
    }

    /// Connections claimed and not closed, as far as we know.
    pub fn open(&self) -> u32 {
        match &self.source {
            Source::Local(estimator) => estimator.open(),
            Source::Offer { .. } => 0,
        }
    }

    /// An offer was claimed: the oldest, as a rule.
    /// `counts`: it is one more of those that it has.
    pub fn has_claimed(&mut self, now: Instant, connection: ConnectionName, counts: bool) {
        self.saturated = false;
        if let Some(&(since, oldest)) = self.offers.front()
            && oldest == connection
        {
            self.offers.pop_front();
            self.claims.add(now.since(since));
        } else {
            self.forget_offer(connection);
        }
        self.rest_us = REST_US;
        if let Source::Local(estimator) = &mut self.source {
            estimator.claimed(now);
            if counts {
                // Of one server, because two would say so in any order.
                self.takes_several |= estimator.open.add(connection.server) > 1;
            }
        }
    }

    /// An offer has ended out of turn.
    pub fn forget_offer(&mut self, connection: ConnectionName) {
        if let Some(place) = self.offers.iter().position(|(_, one)| *one == connection) {
            self.offers.remove(place);
        }
    }

    /// It is there again: what was before does not count.
    pub fn is_back(&mut self, now: Instant) {
        (self.rest_us, self.rests_until) = (REST_US, self.rests_until.min(now));
    }

    /// It has kept another manager waiting since it last claimed anything here.
    fn has_rested(&self) -> bool {
        self.rest_us > REST_US
    }

    /// It is given nothing for a while, twice as long each time; until when.
    pub fn rest(&mut self, now: Instant) -> Instant {
        self.rests_until = now.plus_us(self.rest_us);
        self.rest_us = (self.rest_us * 2).min(REST_MAX_US);
        self.rests_until
    }

    /// The manager of a remote application is to be asked for another one: not again for a while, twice as long
    /// each time.
    pub fn asks(&mut self, now: Instant) -> bool {
        let due = self.asks_from <= now;
        if due {
            self.asks_from = now.plus_us(self.rest_us);
            self.rest_us = (self.rest_us * 2).min(REST_MAX_US);
        }
        due
    }

    /// It has not claimed in time, or refused: no more until it comes back, or has rested, which is when. That is
    /// nothing new of one that rests: it was late once, with all its offers.
    pub fn is_of_no_use(&mut self, now: Instant) -> Option<Instant> {
        match self.source {
            Source::Local(_) => {
                self.listed = false;
                None
            }
            Source::Offer { .. } => (self.rests_until <= now).then(|| self.rest(now)),
        }
    }
}

/// Time in which the cost that others are told forgets all but 1/e of what it was, where the estimator
/// counts single connections: long beside those, short beside what managers could do about it.
const LEVEL_US: f64 = 100_000.0;

impl Announced {
    /// What others are to be told that an application costs which costs `cost_us` now. An estimator that
    /// counts connections changes with each of them: what matters to others is the level.
    pub fn level_us(&mut self, kind: EstimatorKind, now: Instant, cost_us: u32) -> u32 {
        if kind == EstimatorKind::Median || cost_us == 0 {
            return cost_us;
        }
        let keep = (-(now.since(self.looked) as f64) / LEVEL_US).exp();
        if self.level_us < 1.0 {
            self.level_us = f64::from(cost_us);
        }
        self.level_us = self.level_us * keep + f64::from(cost_us) * (1.0 - keep);
        (self.level_us as u32).max(1)
    }
}

impl Queue {
    pub fn find(&mut self, taker: Taker) -> Option<&mut Acceptor> {
        self.acceptors.iter_mut().find(|acceptor| acceptor.taker == taker)
    }

    /// Whether any application of ours accepts.
    pub fn has_local(&self) -> bool {
        self.acceptors[..self.locals()].iter().any(|acceptor| acceptor.listed)
    }

    /// Whether somebody other than `taker` would take what is taken from it; `idle`: only somebody
    /// who owes no answer. Offers of other managers count where nobody local is left.
    pub fn would_take(&self, now: Instant, taker: Taker, scheme: Scheme, idle: bool) -> bool {
        let others = || self.acceptors.iter().filter(|other| other.taker != taker);
        let room = |other: &Acceptor| other.can_take(now) && (!idle || other.before_next() == 0);
        others().any(|other| room(other) && (other.is_local() || scheme != Scheme::Naive))
    }

    /// How long others than `taker` take for a connection: the least of them; nothing is known: none.
    pub fn usual_us(&mut self, now: Instant, taker: Taker, kind: EstimatorKind) -> Option<u32> {
        let locals = self.locals();
        let local = self.acceptors[..locals].iter_mut().filter(|other| other.taker != taker);
        let local = local.filter(|other| other.can_take(now));
        let offers = self.cheapest_us;
        let least = local.filter_map(|other| other.cost_us(kind, now)).min();
        least.into_iter().chain((1..u32::MAX).contains(&offers).then_some(offers)).min()
    }

    /// Adds an acceptor, whose turn has come.
    pub fn add(&mut self, acceptor: Acceptor) {
        let place = if acceptor.is_local() { self.locals() } else { self.acceptors.len() };
        self.acceptors.insert(place, Acceptor { tag: self.clock, ..acceptor });
    }

    /// How many of the acceptors are local; the offers come after them.
    fn locals(&self) -> usize {
        self.acceptors.partition_point(Acceptor::is_local)
    }

    /// An offer is there, gone or another.
    pub fn offers_changed(&mut self) {
        let offers = &self.acceptors[self.locals()..];
        self.cheapest_us = offers.iter().filter_map(Acceptor::offered_us).min().unwrap_or(u32::MAX);
    }

    /// Chooses who gets the next connection; its place.
    pub fn choose(
        &mut self,
        now: Instant,
        balance: &Balance,
        random: &mut Random,
    ) -> Option<usize> {
        // The common case needs no arithmetic.
        if let [only] = &self.acceptors[..] {
            return only.can_take(now).then_some(0);
        }
        let local = self.local_round(now, balance, random);
        let chosen = match local {
            // Without an estimate there is nothing to compare: it is tried.
            Some((place, _, None)) => Some(place),
            Some((place, local, Some(best_us))) => {
                let elsewhere = self.elsewhere(now, balance, place, random);
                elsewhere.or_else(|| {
                    if !self.may_leave(balance, best_us) {
                        return Some(place);
                    }
                    self.filter(balance, best_us);
                    let offers = self.offers(now, true);
                    balancer::choose(balance, Some(local), offers, random).or(Some(place))
                })
            }
            None if self.has_local() && balance.scheme == Scheme::Naive => None,
            None => balancer::choose(balance, None, self.offers(now, false), random),
        }?;
        if let Some((_, local, _)) = local {
            self.take_turn(chosen, local.winner_us);
        }
        Some(chosen)
    }

    /// Whom else to give a connection to for which the one of ours at `place`, the best, has no time yet: somebody
    /// whom another manager offers, who may have. Only where what it would wait for is long beside the way there, and
    /// one connection, not several: where those queue, others are no better off.
    fn elsewhere(
        &mut self,
        now: Instant,
        balance: &Balance,
        place: usize,
        random: &mut Random,
    ) -> Option<usize> {
        let any = self.acceptors.last().is_some_and(|last| !last.is_local());
        if !any || balance.scheme != Scheme::Tournament || self.acceptors[place].before_next() != 1
        {
            return None;
        }
        let own_us = self.acceptors[place].cost_us(balance.estimator, now)?;
        if balance.estimator != EstimatorKind::Median || own_us < WORTH_LEAVING_US {
            return None;
        }
        // Half of it is over, on average.
        let limit_us = own_us.saturating_add(own_us / 2);
        let offers = self.offers(now, false).filter(|(_, cost_us)| *cost_us <= limit_us);
        balancer::choose(balance, None, offers, random)
    }

    /// Whether any offer may compete with local applications of which the best costs `best_us`: the
    /// cheapest would, or one did until now. Most connections stay, and look at no offer.
    fn may_leave(&self, balance: &Balance, best_us: u32) -> bool {
        let any = self.acceptors.last().is_some_and(|last| !last.is_local());
        any && (self.any_passed || balance.passes(best_us, self.cheapest_us, false))
    }

    /// Renews which offers compete with local applications of which the best costs `best_us`.
    fn filter(&mut self, balance: &Balance, best_us: u32) {
        let locals = self.locals();
        self.any_passed = false;
        for acceptor in &mut self.acceptors[locals..] {
            if let Source::Offer { cost_us, passed, .. } = &mut acceptor.source {
                *passed = *cost_us > 0 && balance.passes(best_us, *cost_us, *passed);
                self.any_passed |= *passed;
            }
        }
    }

    /// Places and costs of the offers with room, all or those that passed the filter. One without an
    /// estimate costs what the others do, which is as good as any guess.
    fn offers(
        &self,
        now: Instant,
        filtered: bool,
    ) -> impl Iterator<Item = (usize, u32)> + Clone + '_ {
        let locals = self.locals();
        let usual = if self.cheapest_us == u32::MAX { 1 } else { self.cheapest_us };
        self.acceptors.iter().enumerate().skip(locals).filter_map(move |(place, acceptor)| {
            let Source::Offer { cost_us, passed, .. } = acceptor.source else { return None };
            let competes = acceptor.can_take(now) && (passed || !filtered);
            competes.then_some((place, if cost_us > 0 { cost_us } else { usual }))
        })
    }

    /// The local application whose turn it is, what all of them weigh, and the least cost of any.
    fn local_round(
        &mut self,
        now: Instant,
        balance: &Balance,
        random: &mut Random,
    ) -> Option<(usize, Local, Option<u32>)> {
        let (kind, clock, locals) = (balance.estimator, self.clock, self.locals());
        let any_known = self.acceptors[..locals].iter().any(Acceptor::is_known);
        let (mut best_us, mut weight) = (None, 0.0);
        let mut winner: Option<(usize, (u32, u32, u32, u64))> = None;
        let mut untried: Option<(usize, u64)> = None;
        let mut soonest: Option<(u64, usize)> = None;
        for (place, acceptor) in self.acceptors[..locals].iter_mut().enumerate() {
            if !acceptor.can_take(now) {
                continue;
            }
            let cost = acceptor.cost_us(kind, now);
            let out = acceptor.outstanding + acceptor.open();
            if cost.is_none() && out == 0 && untried.is_none_or(|(_, tag)| acceptor.tag < tag) {
                untried = Some((place, acceptor.tag));
            }
            if let Some(cost) = cost {
                weight += 1.0 / f64::from(cost);
                best_us = Some(best_us.map_or(cost, |best: u32| best.min(cost)));
                let done_us = u64::from(cost) * u64::from(acceptor.before_next() + 1);
                soonest = soonest.filter(|best| best.0 <= done_us).or(Some((done_us, place)));
            }
            let turn = acceptor.tag.max(clock);
            let (before, owes) = (acceptor.before_next(), acceptor.outstanding);
            let rank = match kind {
                EstimatorKind::Median if any_known => (before, owes, 0, turn),
                EstimatorKind::Median => (before, owes, acceptor.open(), turn),
                EstimatorKind::Outstanding | EstimatorKind::PeakEwma => (0, 0, out, turn),
            };
            if winner.is_none_or(|(_, best)| rank < best) {
                winner = Some((place, rank));
            }
        }
        let (mut place, _) = winner?;
        if let Some((fresh, _)) = untried {
            place = fresh;
            best_us = None;
        } else if let (EstimatorKind::PeakEwma, Some(usual)) = (kind, best_us) {
            place = self.better_of_two(now, usual, random).unwrap_or(place);
        } else if let (EstimatorKind::Median, Some((done_us, sooner))) = (kind, soonest) {
            let busier = self.acceptors[sooner].before_next() > self.acceptors[place].before_next();
            let own_us = self.acceptors[place].cost_us(kind, now);
            if busier && own_us.is_some_and(|own_us| u64::from(own_us) > done_us) {
                place = sooner;
            }
        }
        let winner_us = self.acceptors[place].cost_us(kind, now).or(best_us).unwrap_or(1);
        let weight = if weight > 0.0 { weight } else { 1.0 / f64::from(winner_us) };
        Some((place, Local { weight, winner_us }, best_us))
    }

    /// The power of two choices: two by lot, of which the cheaper one; what is not known costs `usual`.
    fn better_of_two(&mut self, now: Instant, usual: u32, random: &mut Random) -> Option<usize> {
        let locals = self.locals();
        let local = &mut self.acceptors[..locals];
        let able = |acceptor: &Acceptor| acceptor.can_take(now);
        let count = local.iter().filter(|acceptor| able(acceptor)).count();
        if count < 2 {
            return None;
        }
        let first = random.below(count as u64) as usize;
        let second = (first + 1 + random.below(count as u64 - 1) as usize) % count;
        let (mut one, mut other) = (None, None);
        let able = local.iter_mut().enumerate().filter(|(_, acceptor)| able(acceptor));
        for (number, (place, acceptor)) in able.enumerate() {
            if number == first || number == second {
                let cost = acceptor.cost_us(EstimatorKind::PeakEwma, now).unwrap_or(usual);
                let drawn = if number == first { &mut one } else { &mut other };
                *drawn = Some((place, cost));
            }
        }
        // Among equals the first drawn, so that no place is better than another.
        let ((one, cost), (other, other_cost)) = (one?, other?);
        Some(if other_cost < cost { other } else { one })
    }

    /// Moves the turn of who was chosen behind its share.
    fn take_turn(&mut self, place: usize, cost_us: u32) {
        let acceptor = &mut self.acceptors[place];
        if acceptor.is_local() {
            let start = acceptor.tag.max(self.clock);
            acceptor.tag = start + u64::from(cost_us);
            self.clock = start;
        }
    }

    /// The best application of ours for others, with its cost; 0: not known yet.
    pub fn best(&mut self, now: Instant, kind: EstimatorKind) -> Option<(Taker, u32)> {
        let mut best: Option<(bool, u32, Taker)> = None;
        let locals = self.locals();
        for acceptor in self.acceptors[..locals].iter_mut().filter(|one| one.can_take(now)) {
            let cost = acceptor.cost_us(kind, now).unwrap_or(0);
            // Who has kept nobody waiting is better than who has, and then one that is known than one that is
            // not.
            let rank = (acceptor.has_rested(), cost.wrapping_sub(1));
            if best.is_none_or(|(rested, other, _)| rank < (rested, other.wrapping_sub(1))) {
                best = Some((rank.0, cost, acceptor.taker));
            }
        }
        best.map(|(_, cost, taker)| (taker, cost))
    }
}
