//! The connection manager: listeners, acceptors, and the speculative accept handshake.
//!
//! A pure state machine. It owns which process is offered which connection; it touches no memory
//! and sends nothing: it is told by `handle`, `poll_action` says what the transport servers shall
//! do, and they report back. One compare-and-swap on the offer word of a connection decides between
//! claim and revocation, so a connection is never lost and never given twice, whatever dies when;
//! this file only follows those decisions. Driven by the service between bursts.
//!
//! ```text
//!   arrived ---> Waiting --offer--> Offered --claimed--> (the process's; forgotten here)
//!                   ^                  | time-out while another acceptor waits,
//!                   |                  | process dead, listener closed
//!                   +---- revoked -- Revoking --claimed--> (it was faster: the process's)
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use super::OwnMap;
use super::balancer::Balance;
use super::estimator::{CLAIM_PATIENCE_MIN_US, EstimatorKind, OpenConnections};
use super::messages::{BetweenManagers, ToManager, ToTransport};
use super::names::{ConnectionName, ListenerName, ProcessName, ServerNumber};
pub use super::queue::OUTSTANDING_MAX;
use super::queue::{Acceptor, Queue, Source, Taker};
use super::summary::{AcceptorSummary, QueueSummary};
use crate::random::Random;
use crate::time::Instant;

/// A process attached to a server, as numbered there.
pub type ProcessId = u32;

/// Where a connection is on its way to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Offered {
        to: Taker,
        registration: u64,
    },
    /// `late`: it was not claimed in time.
    Revoking {
        to: Taker,
        registration: u64,
        late: bool,
    },
}

struct Pending {
    /// The listener it came to.
    listener: ListenerName,
    group: ListenerName,
    /// How many had come before.
    number: u64,
    stage: Stage,
}

/// A listener of the group.
struct Listener {
    group: ListenerName,
    /// The transport servers that have it.
    servers: Vec<ServerNumber>,
}

/// The state of all listeners of one connection manager.
pub struct ConnectionManager {
    listeners: OwnMap<ListenerName, Listener>,
    pub(super) queues: OwnMap<ListenerName, Queue>,
    pending: OwnMap<ConnectionName, Pending>,
    /// Connections of applications that are no acceptors now, or not yet.
    open: OwnMap<Taker, OpenConnections>,
    /// When to look at the oldest offer of an acceptor again.
    looks: BinaryHeap<Reverse<(Instant, ListenerName, Taker)>>,
    /// Acceptors that could not take more: when to try them again.
    pub(super) retries: BinaryHeap<Reverse<(Instant, ListenerName, Taker)>>,
    registrations: u64,
    actions: VecDeque<ToTransport>,
    /// Queues whose waiting connections may find an acceptor.
    to_assign: VecDeque<ListenerName>,
    /// Queues whose best application may have changed, by when to look at them.
    pub(super) to_announce: BTreeSet<(Instant, ListenerName)>,
    /// Queues that are no more, of which others have an application of ours.
    pub(super) ended: VecDeque<ListenerName>,
    /// What is to be said of applications of others that keep us waiting.
    pub(super) busy: VecDeque<BetweenManagers>,
    /// When it was last asked what is to be announced.
    pub(super) asked: Instant,
    /// There are other managers.
    pub(super) has_peers: bool,
    /// Transport servers at which processes are at home.
    homes: u16,
    pub(super) balance: Balance,
    random: Random,
    claim_timeout_us: u64,
    pub(super) counters: ManagerCounters,
}

/// What the connection manager has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ManagerCounters {
    /// Connections that came to a listener.
    pub arrived: u64,
    /// Offers sent to acceptors.
    pub offered: u64,
    /// Connections claimed.
    pub claimed: u64,
    /// Offers taken back, for whatever reason.
    pub revoked: u64,
    /// Offers that were not claimed in time.
    pub timed_out: u64,
    /// Offers that the process could not use (no descriptor left) or take (ring full).
    pub refused: u64,
    /// Connections offered to applications of this manager.
    pub local: u64,
    /// Connections offered to applications of other managers.
    pub remote: u64,
    /// What other managers were told of our best applications.
    pub announced: u64,
    /// What they told us of theirs.
    pub heard: u64,
}

impl ConnectionManager {
    /// An empty manager; offers are reconsidered after `claim_timeout_us` at the latest. `seed` is that
    /// of its choices.
    pub fn new(claim_timeout_us: u64, balance: Balance, seed: u64) -> Self {
        ConnectionManager {
            listeners: OwnMap::default(),
            queues: OwnMap::default(),
            pending: OwnMap::default(),
            open: OwnMap::default(),
            looks: BinaryHeap::new(),
            retries: BinaryHeap::new(),
            registrations: 0,
            actions: VecDeque::new(),
            to_assign: VecDeque::new(),
            to_announce: BTreeSet::new(),
            ended: VecDeque::new(),
            busy: VecDeque::new(),
            asked: Instant::default(),
            has_peers: false,
            homes: 0,
            balance,
            random: Random::new(seed),
            claim_timeout_us,
            counters: ManagerCounters::default(),
        }
    }

    /// What has been done so far.
    pub fn counters(&self) -> ManagerCounters {
        self.counters
    }

    /// What a transport server says. Afterwards `poll_action` may have something to do.
    pub fn handle(&mut self, now: Instant, message: ToManager) {
        match message {
            ToManager::ListenerOpened { listener, group, server } => {
                self.listener_opened(listener, group, server);
            }
            ToManager::ListenerClosed { listener, server } => {
                self.listener_closed(listener, server)
            }
            ToManager::Acceptor { listener, process } => {
                self.acceptor(now, Taker { listener, process });
            }
            ToManager::NotAcceptor { listener, process } => {
                self.not_acceptor(Taker { listener, process });
            }
            ToManager::Arrived { listener, connection } => self.arrived(listener, connection),
            ToManager::Claimed { connection, counts } => self.claimed(now, connection, counts),
            ToManager::Revoked { connection } => self.revoked(now, connection),
            ToManager::Refused { connection } => self.refused(now, connection),
            ToManager::OfferFailed { connection } => self.offer_failed(now, connection),
            ToManager::Gone { connection } => self.connection_gone(connection),
            ToManager::Served { listener, process, service_time_us, server } => {
                self.served(now, Taker { listener, process }, service_time_us, server);
            }
            ToManager::Open { listener, process, open, server } => {
                self.has_open(now, Taker { listener, process }, open, server);
            }
            ToManager::ProcessDied { process } => self.process_died(process),
            ToManager::ServerGone { server } => self.server_gone(server),
        }
    }

    /// How it balances.
    pub fn balance(&self) -> Balance {
        self.balance
    }

    /// Balances otherwise from now on.
    pub fn set_balance(&mut self, balance: Balance) {
        self.balance = balance;
        self.announce_anew();
    }

    /// Processes are at home at the first `homes` transport servers from now on. Those whose home is another by
    /// that register there; what they were offered stays offered.
    pub fn set_homes(&mut self, homes: u16) {
        let before = std::mem::replace(&mut self.homes, homes);
        self.drop_acceptors(|acceptor| {
            let process = acceptor.taker.process;
            process.home_among(before) != process.home_among(homes)
        });
    }

    /// Connections that nobody has claimed, and listeners, are none.
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.queues.is_empty() && self.pending.is_empty()
    }

    fn listener_opened(
        &mut self,
        listener: ListenerName,
        group: ListenerName,
        server: ServerNumber,
    ) {
        let queues = &mut self.queues;
        let entry = self.listeners.entry(listener).or_insert_with(|| {
            queues.entry(group).or_default().listeners += 1;
            Listener { group, servers: Vec::new() }
        });
        if !entry.servers.contains(&server) {
            entry.servers.push(server);
        }
    }

    fn arrived(&mut self, listener: ListenerName, connection: ConnectionName) {
        let Some(group) = self.group_of(listener) else { return };
        let Some(queue) = self.queues.get_mut(&group) else { return };
        let number = self.counters.arrived;
        self.counters.arrived += 1;
        queue.waiting.push_back(connection);
        queue.waiting_count += 1;
        if !std::mem::replace(&mut queue.assigning, true) {
            self.to_assign.push_back(group);
        }
        self.pending.insert(connection, Pending { listener, group, number, stage: Stage::Waiting });
    }

    fn connection_gone(&mut self, connection: ConnectionName) {
        let Some(pending) = self.pending.remove(&connection) else { return };
        match pending.stage {
            Stage::Waiting => {
                if let Some(queue) = self.queues.get_mut(&pending.group) {
                    queue.waiting_count = queue.waiting_count.saturating_sub(1);
                    self.forget_gone(pending.group);
                }
            }
            Stage::Offered { to, .. } | Stage::Revoking { to, .. } => {
                self.forget_offer(pending.group, to, connection);
                self.offer_ended(pending.group, to);
            }
        }
    }

    fn acceptor(&mut self, now: Instant, taker: Taker) {
        let Some(group) = self.group_of(taker.listener) else { return };
        let Some(queue) = self.queues.get_mut(&group) else { return };
        self.registrations += 1;
        let registration = self.registrations;
        if queue.find(taker).is_some_and(|known| !known.is_local()) {
            // Its home is ours now, and nobody else's to take back.
            queue.acceptors.retain(|known| known.taker != taker);
            queue.offers_changed();
        }
        if let Some(acceptor) = queue.find(taker) {
            (acceptor.saturated, acceptor.late, acceptor.listed) = (false, false, true);
            acceptor.registration = registration;
            acceptor.is_back(now);
            if let Some(since) = acceptor.late_since.take() {
                acceptor.claims.add(now.since(since));
            }
            // Others that gave it up for being slow hear that it is back.
            queue.announced.again |= queue.announced.best.is_some_and(|(best, _)| best == taker);
        } else {
            // What a process of this name was offered before may still be on its way back.
            let out = self.pending.values().filter(|pending| pending.taker() == Some(taker));
            let outstanding = out.count() as u32;
            let mut acceptor = Acceptor::local(taker);
            (acceptor.outstanding, acceptor.registration) = (outstanding, registration);
            if let Source::Local(estimator) = &mut acceptor.source {
                estimator.open = self.open.remove(&taker).unwrap_or_default();
            }
            queue.add(acceptor);
        }
        self.may_assign(group);
        self.may_announce(group);
    }

    /// What was offered already stays offered.
    fn not_acceptor(&mut self, taker: Taker) {
        let Some(group) = self.group_of(taker.listener) else { return };
        if let Some(acceptor) = self.find_acceptor(group, taker) {
            acceptor.listed = false;
            self.may_announce(group);
        }
    }

    fn claimed(&mut self, now: Instant, connection: ConnectionName, counts: bool) {
        let Some(pending) = self.pending.remove(&connection) else { return };
        self.counters.claimed += 1;
        let Some(queue) = self.queues.get_mut(&pending.group) else { return };
        let (Stage::Offered { to, .. } | Stage::Revoking { to, .. }) = pending.stage else {
            queue.waiting_count = queue.waiting_count.saturating_sub(1);
            return;
        };
        let acceptor = queue.find(to).map(|acceptor| acceptor.has_claimed(now, connection, counts));
        if counts && acceptor.is_none() {
            self.open.entry(to).or_default().add(connection.server);
        }
        self.offer_ended(pending.group, to);
    }

    /// A connection has closed; `server` is its transport server.
    fn served(&mut self, now: Instant, taker: Taker, time_us: u32, server: ServerNumber) {
        let Some((group, estimator)) = self.estimator_of(taker) else {
            return self.change_open(taker, |open| open.subtract(server));
        };
        if estimator.served(now, time_us, server) {
            self.may_announce(group);
        } else {
            self.may_announce_soon(now, group);
        }
    }

    /// Back to the queue. A process that was too slow comes off the list here and not when its time
    /// was up: if it claims after that and before the revocation, it never learns that there was one,
    /// and would not register again.
    fn revoked(&mut self, now: Instant, connection: ConnectionName) {
        self.counters.revoked += 1;
        let stage = self.pending.get(&connection).map(|pending| pending.stage);
        if let Some(Stage::Revoking { late: true, .. }) = stage {
            self.was_offered_in_vain(now, connection);
        }
        self.return_to_queue(connection);
    }

    /// Whoever has not taken `connection` gets no more for now.
    fn was_offered_in_vain(&mut self, now: Instant, connection: ConnectionName) {
        let again = self.holder(connection).and_then(|acceptor| acceptor.is_of_no_use(now));
        if let Some((group, to)) = self.offer_of(connection) {
            self.retries.extend(again.map(|due| Reverse((due, group, to))));
            self.may_announce(group);
        }
    }

    /// Who was offered `connection`, unless it has registered again since: then it may not know that
    /// it has to once more. (Its registration comes from its home, the end of the offer from the
    /// connection's server: in any order.)
    fn holder(&mut self, connection: ConnectionName) -> Option<&mut Acceptor> {
        let pending = self.pending.get(&connection)?;
        let (Stage::Offered { to, registration } | Stage::Revoking { to, registration, .. }) =
            pending.stage
        else {
            return None;
        };
        let acceptor = self.queues.get_mut(&pending.group)?.find(to)?;
        (acceptor.registration == registration).then_some(acceptor)
    }

    fn refused(&mut self, now: Instant, connection: ConnectionName) {
        self.counters.refused += 1;
        self.was_offered_in_vain(now, connection);
        if let Some((group, to)) = self.offer_of(connection) {
            self.ask_for_another(now, group, to);
        }
        self.return_to_queue(connection);
    }

    /// The process gets no more until it claims one or registers again, or some time has passed. Of another
    /// manager's only that one knows who else there is.
    fn offer_failed(&mut self, now: Instant, connection: ConnectionName) {
        self.counters.refused += 1;
        if let Some((group, to)) = self.offer_of(connection)
            && let Some(acceptor) = self.find_acceptor(group, to)
            && !acceptor.saturated
        {
            acceptor.saturated = true;
            self.retries.push(Reverse((now.plus_us(self.claim_timeout_us), group, to)));
            self.ask_for_another(now, group, to);
        }
        self.return_to_queue(connection);
    }

    /// Revokes offers that were not claimed in time, if somebody else would take them, and tries
    /// those again that could take no more. At most 64 of each a call.
    pub fn handle_timers(&mut self, now: Instant) {
        for _ in 0..64 {
            let Some(&Reverse((due, group, taker))) = self.retries.peek() else { break };
            if due > now {
                break;
            }
            self.retries.pop();
            if let Some(acceptor) = self.find_acceptor(group, taker) {
                acceptor.saturated = false;
                self.may_assign(group);
                self.may_announce(group);
            }
        }
        for _ in 0..64 {
            let Some(&Reverse((due, group, taker))) = self.looks.peek() else { return };
            if due > now {
                return;
            }
            self.looks.pop();
            self.look_at(now, group, taker);
        }
    }

    /// Whether `handle_timers`, `poll_action` and `poll_offer` have nothing to do now.
    #[inline]
    pub fn is_quiet(&self, now: Instant) -> bool {
        let later = |due: Option<&Reverse<(Instant, ListenerName, Taker)>>| {
            due.is_none_or(|&Reverse((due, ..))| due > now)
        };
        self.actions.is_empty()
            && self.to_assign.is_empty()
            && !self.may_have_offers(now)
            && later(self.looks.peek())
            && later(self.retries.peek())
    }

    /// When `handle_timers` or `poll_offer` has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let look = self.looks.peek().map(|Reverse((due, _, _))| *due);
        let retry = self.retries.peek().map(|Reverse((due, _, _))| *due);
        let announcement = self.to_announce.first().map(|(due, _)| *due);
        let unsaid = !self.ended.is_empty() || !self.busy.is_empty();
        let unsaid = unsaid.then_some(self.asked);
        [look, retry, announcement, unsaid].into_iter().flatten().min()
    }

    /// What to do next; assigns waiting connections on the way. Call until it answers `None`.
    pub fn poll_action(&mut self, now: Instant) -> Option<ToTransport> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            let group = *self.to_assign.front()?;
            if !self.assign_one(now, group) {
                self.to_assign.pop_front();
                if let Some(queue) = self.queues.get_mut(&group) {
                    queue.assigning = false;
                }
            }
        }
    }

    /// Every queue with everything that is known of it, for people. Walks everything.
    pub fn summaries(&mut self, now: Instant) -> Vec<QueueSummary> {
        let mut summaries = Vec::new();
        for (&group, queue) in &mut self.queues {
            let names = self.listeners.iter().filter(|(_, listener)| listener.group == group);
            let mut listeners: Vec<_> = names.map(|(name, _)| *name).collect();
            listeners.sort_unstable();
            let announced = queue.announced.best.map(|(taker, cost)| (taker.process, cost));
            let waiting = queue.waiting_count;
            let mut acceptors: Vec<_> =
                queue.acceptors.iter_mut().map(|one| summary(one, now, &self.balance)).collect();
            acceptors.sort_by_key(|acceptor| (acceptor.offered_by, acceptor.process));
            summaries.push(QueueSummary { group, listeners, waiting, acceptors, announced });
        }
        summaries.sort_by_key(|summary| summary.group);
        summaries
    }

    /// Connections of a queue that no process has been offered.
    pub fn waiting(&self, group: ListenerName) -> usize {
        self.queues.get(&group).map_or(0, |queue| queue.waiting_count)
    }

    /// The processes that take connections of a queue now, those of other managers included.
    pub fn acceptors(&self, group: ListenerName) -> impl Iterator<Item = ProcessName> + '_ {
        let queue = self.queues.get(&group).into_iter();
        queue.flat_map(|queue| {
            let listed = queue.acceptors.iter().filter(|acceptor| acceptor.listed);
            listed.map(|acceptor| acceptor.taker.process)
        })
    }

    /// Offers the oldest waiting connection to whom the queue chooses. False when there is nothing
    /// to give or nobody to give it to.
    fn assign_one(&mut self, now: Instant, group: ListenerName) -> bool {
        let Some(queue) = self.queues.get_mut(&group) else { return false };
        let Some(&connection) = queue.waiting.front() else { return false };
        let Some(pending) = self.pending.get_mut(&connection).filter(|one| one.waits()) else {
            queue.waiting.pop_front();
            return true;
        };
        let Some(place) = queue.choose(now, &self.balance, &mut self.random) else { return false };
        queue.waiting.pop_front();
        queue.waiting_count = queue.waiting_count.saturating_sub(1);
        queue.offered += 1;
        let acceptor = &mut queue.acceptors[place];
        acceptor.outstanding += 1;
        acceptor.assigned += 1;
        acceptor.offers.push_back((now, connection));
        let (to, registration) = (acceptor.taker, acceptor.registration);
        let arms = !std::mem::replace(&mut acceptor.armed, true);
        self.counters.offered += 1;
        match acceptor.is_local() {
            true => self.counters.local += 1,
            false => self.counters.remote += 1,
        }
        pending.stage = Stage::Offered { to, registration };
        if arms {
            let patience_us = self.patience_us(now, group, to);
            self.looks.push(Reverse((now.plus_us(patience_us), group, to)));
        }
        let Taker { listener, process } = to;
        self.actions.push_back(ToTransport::Offer { listener, connection, process });
        true
    }

    /// How long an offer is left with an acceptor while others have nothing to do: as long as its
    /// claims usually take, but no longer than others would have taken for the whole connection,
    /// twice over. A process that serves one connection after the other claims as late as it is slow.
    fn patience_us(&mut self, now: Instant, group: ListenerName, taker: Taker) -> u64 {
        let (kind, longest_us) = (self.balance.estimator, self.claim_timeout_us);
        let Some(queue) = self.queues.get_mut(&group) else { return longest_us };
        let usual_us = match kind {
            EstimatorKind::Median => queue.usual_us(now, taker, kind),
            _ => None,
        };
        let others_us = usual_us.map_or(longest_us, |us| 2 * u64::from(us));
        let Some(acceptor) = queue.find(taker) else { return longest_us };
        acceptor.claims.patience_us(longest_us).min(others_us.max(CLAIM_PATIENCE_MIN_US))
    }

    /// Looks whether the oldest offer of an acceptor has been out for too long: longer than its
    /// claims usually take while another acceptor has nothing to do, or for the claim time-out while
    /// another has room. With nobody else to take it, it stays where it is: taking it from the only
    /// acceptor would help no one.
    fn look_at(&mut self, now: Instant, group: ListenerName, taker: Taker) {
        let Some(queue) = self.queues.get_mut(&group) else { return };
        let Some(acceptor) = queue.find(taker) else { return };
        acceptor.armed = false;
        while let Some(&(_, connection)) = acceptor.offers.front()
            && !self.pending.get(&connection).is_some_and(|pending| pending.is_offered_to(taker))
        {
            acceptor.offers.pop_front();
        }
        let Some(&(since, _)) = acceptor.offers.front() else { return };
        let patience_us = self.patience_us(now, group, taker);
        let Some(queue) = self.queues.get_mut(&group) else { return };
        let (mut due, last) = (since.plus_us(patience_us), since.plus_us(self.claim_timeout_us));
        if due <= now {
            if queue.would_take(now, taker, self.balance.scheme, last > now) {
                return self.take_from(group, taker, since);
            }
            self.ask_for_another(now, group, taker);
            due = if last > now {
                last.min(now.plus_us(patience_us))
            } else {
                now.plus_us(patience_us)
            };
        }
        if let Some(acceptor) = self.find_acceptor(group, taker) {
            acceptor.armed = true;
            self.looks.push(Reverse((due, group, taker)));
        }
    }

    /// The paper drops a slow acceptor from the list; it registers again when it comes back. What it
    /// was offered goes to others.
    fn take_from(&mut self, group: ListenerName, taker: Taker, since: Instant) {
        let Some(acceptor) = self.find_acceptor(group, taker) else { return };
        (acceptor.late, acceptor.late_since) = (true, Some(since));
        for (_, connection) in std::mem::take(&mut acceptor.offers) {
            if let Some(pending) = self.pending.get_mut(&connection)
                && let Stage::Offered { to, registration } = pending.stage
                && to == taker
            {
                pending.stage = Stage::Revoking { to, registration, late: true };
                self.counters.timed_out += 1;
                let process = taker.process;
                self.actions.push_back(ToTransport::Revoke { connection, process });
            }
        }
        self.may_announce(group);
    }

    /// Back to its place in the queue, before those that have come later; forgotten if its server has
    /// closed the listener, which resets it.
    fn return_to_queue(&mut self, connection: ConnectionName) {
        let Some((group, to)) = self.offer_of(connection) else { return };
        let Some(pending) = self.pending.get_mut(&connection) else { return };
        let (listener, number) = (pending.listener, pending.number);
        let open = |entry: &Listener| entry.servers.contains(&connection.server);
        if self.listeners.get(&listener).is_some_and(open) {
            pending.stage = Stage::Waiting;
            if let Some(queue) = self.queues.get_mut(&group) {
                // As a rule the first is one of those.
                let pending = &self.pending;
                let later = |other: &ConnectionName| {
                    pending.get(other).is_some_and(|other| other.number > number)
                };
                let place = queue.waiting.iter().position(later).unwrap_or(queue.waiting.len());
                queue.waiting.insert(place, connection);
                queue.waiting_count += 1;
            }
        } else {
            self.pending.remove(&connection);
        }
        self.forget_offer(group, to, connection);
        self.offer_ended(group, to);
    }

    /// An offer that has ended without a claim is not watched any more.
    fn forget_offer(&mut self, group: ListenerName, to: Taker, connection: ConnectionName) {
        if let Some(acceptor) = self.find_acceptor(group, to) {
            acceptor.forget_offer(connection);
        }
    }

    fn offer_ended(&mut self, group: ListenerName, to: Taker) {
        let Some(queue) = self.queues.get_mut(&group) else { return };
        queue.offered = queue.offered.saturating_sub(1);
        let mut took_none = false;
        if let Some(acceptor) = queue.find(to) {
            took_none = acceptor.late || acceptor.outstanding >= OUTSTANDING_MAX;
            acceptor.outstanding = acceptor.outstanding.saturating_sub(1);
            // However it ended, if that did not take it off the list.
            acceptor.late = false;
        }
        if !queue.waiting.is_empty() && !std::mem::replace(&mut queue.assigning, true) {
            self.to_assign.push_back(group);
        }
        if queue.listeners == 0 {
            self.forget_if_done(group);
        }
        if took_none {
            // Others may have been told that there is nobody.
            self.may_announce(group);
        }
    }

    pub(super) fn forget_if_done(&mut self, group: ListenerName) {
        let stands = |acceptor: &Acceptor| acceptor.listed || acceptor.is_local();
        let done = |queue: &Queue| {
            let nothing_out = queue.listeners == 0 && queue.offered == 0;
            nothing_out && !queue.acceptors.iter().any(stands)
        };
        if self.queues.get(&group).is_some_and(done)
            && let Some(queue) = self.queues.remove(&group)
        {
            if let Some(due) = queue.announcing {
                self.to_announce.remove(&(due, group));
            }
            if queue.announced.best.is_some() && self.has_peers {
                self.ended.push_back(group);
            }
        }
    }

    /// The queue may have something to assign.
    pub(super) fn may_assign(&mut self, group: ListenerName) {
        if let Some(queue) = self.queues.get_mut(&group)
            && !std::mem::replace(&mut queue.assigning, true)
        {
            self.to_assign.push_back(group);
        }
    }

    fn group_of(&self, listener: ListenerName) -> Option<ListenerName> {
        Some(self.listeners.get(&listener)?.group)
    }

    fn offer_of(&self, connection: ConnectionName) -> Option<(ListenerName, Taker)> {
        let pending = self.pending.get(&connection)?;
        Some((pending.group, pending.taker()?))
    }

    fn find_acceptor(&mut self, group: ListenerName, taker: Taker) -> Option<&mut Acceptor> {
        self.queues.get_mut(&group)?.find(taker)
    }
}

fn summary(acceptor: &mut Acceptor, now: Instant, balance: &Balance) -> AcceptorSummary {
    let offered_by = match acceptor.source {
        Source::Local(_) => None,
        Source::Offer { from, .. } => Some(from),
    };
    let Taker { listener, process } = acceptor.taker;
    AcceptorSummary {
        process,
        listener,
        offered_by,
        ready: acceptor.can_take(now),
        cost_us: acceptor.cost_us(balance.estimator, now),
        outstanding: acceptor.outstanding,
        open: acceptor.open(),
        assigned: acceptor.assigned,
    }
}

impl Pending {
    fn waits(&self) -> bool {
        self.stage == Stage::Waiting
    }

    fn taker(&self) -> Option<Taker> {
        match self.stage {
            Stage::Waiting => None,
            Stage::Offered { to, .. } | Stage::Revoking { to, .. } => Some(to),
        }
    }

    fn is_offered_to(&self, taker: Taker) -> bool {
        matches!(self.stage, Stage::Offered { to, .. } if to == taker)
    }
}

mod gone;
mod open;

#[cfg(test)]
mod balancing_tests;
#[cfg(test)]
mod lasting_tests;
#[cfg(test)]
mod tests;
