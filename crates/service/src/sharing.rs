//! A transport server's part in a plan that changes. One that has grown: once programs have opened their
//! listeners at the new servers, each of the others hands them a fair share of its buckets, a few at a time. One
//! that shrinks: a server that is to leave hands all of its buckets to those that stay, and waits for programs to
//! follow their connections. Driven by `event_loop`, as the supervisor orders; read `moving` for how a bucket
//! moves, `supervisor::growth` for when.
//!
//! A bucket that cannot leave for the moment is tried once more after all others; then it stays where it
//! is, which is no harm, or is tried again until patience is over.

use std::collections::VecDeque;

use haypile_engine::Instant;
use haypile_engine::control::names::ServerNumber;
use haypile_engine::steering::{BUCKETS, Steering};

use crate::moving::JobId;
use crate::server::Core;

/// Buckets that are asked to move at a time, all to one server.
const AT_A_TIME: usize = 32;
/// Time for them, and for those that are tried again, in microseconds.
const PATIENCE_US: u64 = 500_000;
const AGAIN_US: u64 = 3_000_000;
/// Between two looks of one that gives everything for what is left.
const LOOK_US: u64 = 5_000;

/// Buckets for one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Who is to have them.
    pub to: ServerNumber,
    /// Which.
    pub buckets: Vec<u16>,
}

/// Buckets that are being handed over.
#[derive(Debug, Default)]
pub struct Sharing {
    waiting: VecDeque<Share>,
    again: Vec<Share>,
    /// The last round.
    last: bool,
    job: Option<JobId>,
    /// Everything goes, as far as it can by then, and is followed.
    all_until: Option<Instant>,
    /// When to look again for programs that have followed.
    look_at: Instant,
}

/// What has come of a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet.
    Waiting,
    /// All that could have.
    Done,
}

/// What transport server `own` gives each of those from `first` on, as it knows the map: as many as make
/// all equal if everyone gives alike, and no more than a new one lacks.
fn fair_shares(steering: &Steering, own: ServerNumber, first: ServerNumber) -> Vec<Share> {
    let servers = usize::from(steering.servers());
    let mut has = vec![0; servers];
    let mut ours = Vec::new();
    for bucket in 0..BUCKETS as u16 {
        let owner = steering.owner_of_flows(bucket);
        has[usize::from(owner)] += 1;
        if owner == own {
            ours.push(bucket);
        }
    }
    let share = |to: ServerNumber| {
        let lacks = (BUCKETS / servers).saturating_sub(has[usize::from(to)]);
        let theirs = ours.iter().enumerate().filter(|(at, _)| at % servers == usize::from(to));
        let buckets = theirs.map(|(_, bucket)| *bucket).take(lacks).collect();
        Share { to, buckets }
    };
    let new = first..servers as ServerNumber;
    new.filter(|to| *to != own).map(share).collect()
}

/// What a transport server gives those that stay: all that it has.
fn all_in_shares(steering: &Steering, own: ServerNumber) -> Vec<Share> {
    let staying = usize::from(steering.staying());
    let has = (0..BUCKETS as u16).filter(|bucket| steering.owner_of_flows(*bucket) == own);
    let has: Vec<u16> = has.collect();
    let share = |to: usize| {
        let theirs = has.iter().enumerate().filter(|(at, _)| at % staying == to);
        Share { to: to as ServerNumber, buckets: theirs.map(|(_, bucket)| *bucket).collect() }
    };
    let shares = (0..staying).map(share).filter(|share| !share.buckets.is_empty());
    shares.collect()
}

/// A few of each in turn, so that no new server waits for all of another's.
fn in_turn(shares: &[Share]) -> VecDeque<Share> {
    let mut chunks = VecDeque::new();
    let most = shares.iter().map(|share| share.buckets.len()).max().unwrap_or_default();
    for from in (0..most).step_by(AT_A_TIME) {
        for Share { to, buckets } in shares {
            let until = buckets.len().min(from + AT_A_TIME);
            if from < until {
                chunks.push_back(Share { to: *to, buckets: buckets[from..until].to_vec() });
            }
        }
    }
    chunks
}

impl Sharing {
    /// Begins to give the servers from `first` on their shares.
    pub fn begin(core: &Core, first: ServerNumber) -> Sharing {
        let steered = core.shard.steered();
        let shares = steered.map(|own| fair_shares(&own.steering, own.server, first));
        Sharing { waiting: in_turn(&shares.unwrap_or_default()), ..Sharing::default() }
    }

    /// Begins to give everything to those that stay, as long as patience lasts.
    pub fn part(now: Instant, core: &Core, patience_us: u64) -> Sharing {
        let all_until = Some(now.plus_us(patience_us));
        Sharing { waiting: what_is_left(core), all_until, look_at: now, ..Sharing::default() }
    }

    /// Whether the server gives everything.
    pub fn parts(&self) -> bool {
        self.all_until.is_some()
    }

    /// Goes on, once a turn.
    pub fn step(&mut self, now: Instant, core: &mut Core) -> Step {
        if let Some(job) = self.job {
            let Some(rows) = core.moving.take_done(job) else { return Step::Waiting };
            self.job = None;
            let Some(share) = self.waiting.pop_front() else { return Step::Waiting };
            let is_there = |bucket: &u16| rows.iter().any(|row| row.bucket == *bucket && row.moved);
            let stayed: Vec<u16> =
                share.buckets.into_iter().filter(|bucket| !is_there(bucket)).collect();
            if !stayed.is_empty() {
                self.again.push(Share { to: share.to, buckets: stayed });
            }
            return Step::Waiting;
        }
        if self.all_until.is_some_and(|until| until <= now) {
            return Step::Done;
        }
        if self.waiting.is_empty() && !std::mem::replace(&mut self.last, true) {
            self.waiting = std::mem::take(&mut self.again).into();
        }
        if self.waiting.is_empty() && self.goes_on(now, core) {
            return Step::Waiting;
        }
        let Some(Share { to, buckets }) = self.waiting.front() else { return Step::Done };
        let patience_us = if self.last { AGAIN_US } else { PATIENCE_US };
        self.job = Some(core.moving.wish(now, buckets, *to, patience_us));
        Step::Waiting
    }

    /// One that gives everything looks again for what is left, and then for programs that have yet to follow and for
    /// peers that are still asked about connections of the server before.
    fn goes_on(&mut self, now: Instant, core: &mut Core) -> bool {
        let Some(until) = self.all_until.filter(|until| now < *until) else { return false };
        if now < self.look_at {
            return true;
        }
        self.look_at = now.plus_us(LOOK_US);
        self.again.clear();
        self.waiting = what_is_left(core);
        if self.waiting.is_empty() {
            // Nobody else asks the peers of the server that was here before.
            let waits = core.stubs() > 0 || core.store.obituary.mourned() > 0;
            return !core.moving.is_idle() || waits && now < until;
        }
        true
    }
}

impl Core {
    /// How many buckets are ours, or on their way to us.
    pub fn buckets(&self) -> u16 {
        (0..BUCKETS as u16).filter(|bucket| self.owns(*bucket)).count() as u16
    }
}

/// The buckets that we have, in the order in which they go to those that stay.
fn what_is_left(core: &Core) -> VecDeque<Share> {
    let steered = core.shard.steered();
    let shares = steered.map(|own| all_in_shares(&own.steering, own.server));
    in_turn(&shares.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use haypile_engine::steering::Rule;

    use super::*;

    fn after_growth(before: u16, servers: u16) -> (Steering, Vec<usize>) {
        let mut steering = Steering::new(5, Rule::Hash, before);
        steering.set_servers(servers, servers);
        let map = steering.clone();
        for own in 0..before {
            for Share { to, buckets } in fair_shares(&map, own, before) {
                for bucket in buckets {
                    assert!(map.owner_of_flows(bucket) == own && to >= before);
                    assert!(steering.move_flows(bucket, 1, to));
                }
            }
        }
        let mut has = vec![0; usize::from(servers)];
        (0..BUCKETS as u16).for_each(|one| has[usize::from(steering.owner_of_flows(one))] += 1);
        (steering, has)
    }

    #[test]
    fn shares_make_all_equal_whatever_the_plans() {
        for before in 1..12 {
            for servers in before..20 {
                let (steering, has) = after_growth(before, servers);
                let fair = BUCKETS / usize::from(servers);
                let near = |count: &usize| count.abs_diff(fair) <= usize::from(before + servers);
                assert!(has.iter().all(near), "{before} to {servers}: {has:?}, not {fair}");
                // Asked once more, nobody gives any more to speak of.
                let more = (0..before).flat_map(|own| fair_shares(&steering, own, before));
                let more: usize = more.map(|share| share.buckets.len()).sum();
                assert!(more <= usize::from(before * before * servers), "{more}");
            }
        }
    }

    #[test]
    fn one_that_leaves_gives_all_that_it_has_to_those_that_stay() {
        let mut steering = Steering::new(5, Rule::Hash, 4);
        assert!(steering.move_flows(0, 1, 3));
        steering.set_servers(4, 3);
        let shares = all_in_shares(&steering, 3);
        let counts: Vec<usize> = shares.iter().map(|share| share.buckets.len()).collect();
        assert_eq!(counts.iter().sum::<usize>(), 1025);
        assert!(shares.iter().all(|share| share.to < 3), "{shares:?}");
        assert!(counts.iter().all(|count| count.abs_diff(341) <= 1), "{counts:?}");
    }

    #[test]
    fn a_few_go_at_a_time_to_one_server_after_the_other() {
        let shares = [
            Share { to: 1, buckets: (0..70).collect() },
            Share { to: 2, buckets: (100..110).collect() },
        ];
        let chunks = in_turn(&shares);
        let sizes: Vec<(u16, usize)> =
            chunks.iter().map(|one| (one.to, one.buckets.len())).collect();
        assert_eq!(sizes, [(1, 32), (2, 10), (1, 32), (1, 6)]);
        assert!(in_turn(&[]).is_empty());
    }
}
