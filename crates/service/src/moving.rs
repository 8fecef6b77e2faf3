//! Buckets on their way from this transport server to others, and from others to it: what is wished for is tried
//! until it can be done or patience is over, what the others say is handed to the engine's `Mover`, and all who
//! steer are told.
//!
//! [`Moving`] is a part of `server::Core`, which drives it once a turn (`Core::drive_moves`); what crosses with
//! the frames comes in by [`Desk`], in order with them. `event_loop` asks for moves and for [`SteerReport`], for
//! `haypile steer`. Read first: `haypile_engine::migration::protocol`, then `freight` for what belongs to connections
//! beside the engine's state.

mod peers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use haypile_engine::control::names::ServerNumber;
use haypile_engine::migration::protocol::{
    Announcement, Given, MoveMessage, Mover, NotGiven, Outcome,
};
use haypile_engine::migration::{Imported, NotExported};
use haypile_engine::steering::BUCKETS;
use haypile_engine::{Datagram, Instant, Shard, SocketId, Streams};
use serde::{Deserialize, Serialize};

use crate::aside::{Aside, Inward, Outward, Sayer, Switched};
use crate::freight::{Busy, Hands};
use crate::managers::wire::{FlowsMoved, Incoming};
use crate::roles::{ProcessNumber, Roles};
use crate::server::Core;

/// Buckets that may be on their way from here at a time: each keeps its state until it is taken.
const ON_THE_WAY_MAX: usize = 32;
/// Buckets given away in one turn, and wishes looked at.
const GIVEN_AT_ONCE: usize = 4;
const WISHES_AT_ONCE: usize = 64;
/// Flows looked at for that in one turn: each trial looks at every flow, while no frame is taken.
const FLOWS_AT_ONCE: usize = 1 << 16;
/// After a wish could not be granted.
const AGAIN_US: u64 = 1_000;
/// After the other server did not take a bucket: its state was written down for nothing.
const NOT_TAKEN_US: u64 = 20_000;
const NOT_TAKEN: &str = "the other server did not take it: haypile steer says why";
/// Buckets with the most connections in a report.
const BUSIEST: usize = 8;
/// Longest patience of a request, in milliseconds.
pub const PATIENCE_MAX_MS: u64 = 600_000;

/// A server's part in moves.
#[derive(Debug, Default)]
pub struct Moving {
    mover: Mover,
    /// The process that we are, where we have flows.
    own: Option<ProcessNumber>,
    wishes: VecDeque<Wish>,
    /// Given away, and not yet heard of.
    given: BTreeMap<u16, Giving>,
    jobs: BTreeMap<JobId, Job>,
    jobs_seen: JobId,
    done: BTreeMap<JobId, Vec<MoveRow>>,
    /// Buckets that are somewhere else than before, and where, of which the supervisor has not heard.
    moved: Vec<(ServerNumber, u16)>,
    outward: Outward,
    notices: VecDeque<(ServerNumber, Vec<u8>)>,
    outcomes: Vec<(u16, Outcome)>,
    /// Something has happened that the next turn has to look at.
    stirred: bool,
    last_refusal: Option<String>,
    /// Peers that have said which moves they know of. Before that we may take an old owner for the present one.
    told: BTreeSet<ProcessNumber>,
    /// Peers that are told so behind the news.
    to_assure: Vec<ProcessNumber>,
    /// Whether frames and requests are taken yet.
    entry: peers::Entry,
    counters: MoveCounters,
}

/// Names a request for moves.
pub type JobId = u64;

/// What is to be moved.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// One bucket.
    Bucket(u16),
    /// Every bucket of a transport server.
    AllOf(ServerNumber),
    /// The bucket of one connection.
    Connection {
        /// Our end.
        local: SocketAddr,
        /// The peer's.
        remote: SocketAddr,
    },
}

/// A bucket that is to go to another server.
#[derive(Copy, Clone, Debug)]
struct Wish {
    bucket: u16,
    to: ServerNumber,
    job: JobId,
    next: Instant,
    until: Instant,
    /// Why it waits.
    why: &'static str,
}

/// A bucket that was given away.
#[derive(Copy, Clone, Debug)]
struct Giving {
    job: JobId,
    to: ServerNumber,
    since: Instant,
    given: Given,
}

#[derive(Debug)]
struct Job {
    rows: Vec<MoveRow>,
    /// Wishes without an outcome.
    open: usize,
    until: Instant,
}

/// What came of the trial to give a bucket away.
enum Trial {
    Given(Given),
    Later(&'static str),
    Never(&'static str),
}

/// What has become of one bucket that was to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRow {
    /// The bucket.
    pub bucket: u16,
    /// Who had it.
    pub from: ServerNumber,
    /// Who was to have it.
    pub to: ServerNumber,
    /// It is there.
    pub moved: bool,
    /// Why not, if it is not.
    pub why: Option<String>,
    /// Connections that moved with it.
    pub connections: usize,
    /// TIME-WAIT records, likewise.
    pub time_wait: usize,
    /// Bytes that crossed for it.
    pub bytes: usize,
    /// From when its connections stood still until the other server had them, in microseconds.
    pub us: u64,
}

/// The answer to a request for moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveReport {
    /// One row a bucket; none if no server that runs has any that was meant.
    pub moves: Vec<MoveRow>,
}

/// What happened. All count upwards, but for the last.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveCounters {
    /// Buckets given away.
    pub given: u64,
    /// Buckets that another server has taken.
    pub taken: u64,
    /// Connections in them.
    pub connections_taken: u64,
    /// TIME-WAIT records in them.
    pub time_wait_taken: u64,
    /// Moves from here or to here that all know of.
    pub settled: u64,
    /// Buckets that came back, because the other server did not take them.
    pub taken_back: u64,
    /// Buckets that could not be put back: their connections are lost.
    pub lost: u64,
    /// Buckets that have come.
    pub arrived: u64,
    /// Connections in them.
    pub connections_arrived: u64,
    /// TIME-WAIT records in them.
    pub time_wait_arrived: u64,
    /// Packets that had waited for them.
    pub packets_held: u64,
    /// Connections in them whose listener is gone here.
    pub without_listener: u64,
    /// Buckets that have come from a server that died before it heard so.
    pub unheard: u64,
    /// Buckets that were refused.
    pub refused: u64,
    /// Trials in which a program was in the middle of a copy.
    pub busy: u64,
    /// What others said of moves that they may not say.
    pub nonsense: u64,
    /// The longest time on the way, in microseconds.
    pub longest_us: u64,
}

/// The answer to `haypile steer`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SteerReport {
    /// The transport servers.
    pub servers: Vec<SteerRow>,
}

/// The buckets of one transport server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SteerRow {
    /// Its number.
    pub server: ServerNumber,
    /// Buckets whose TCP flows it has, as it knows.
    pub buckets: usize,
    /// Connections in them.
    pub connections: usize,
    /// TIME-WAIT records in them.
    pub time_wait: usize,
    /// Its buckets with the most connections.
    pub busiest: Vec<BucketRow>,
    /// Buckets that wait to leave.
    pub wished: usize,
    /// Buckets on their way from it.
    pub leaving: usize,
    /// Buckets on their way to it.
    pub coming: usize,
    /// Moves, from it or to it, of which not all know yet.
    pub unsettled: usize,
    /// Buckets that it has by a move.
    pub moved_here: usize,
    /// Why it last refused a bucket.
    pub last_refusal: Option<String>,
    /// What happened.
    pub counters: MoveCounters,
}

/// One bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRow {
    /// Its number.
    pub bucket: u16,
    /// Its connections.
    pub connections: usize,
    /// Its TIME-WAIT records.
    pub time_wait: usize,
}

impl Moving {
    /// Of one server of a plan.
    pub fn new(roles: &Roles) -> Moving {
        let own = roles.transport().map(|_| roles.own().number);
        Moving { mover: Mover::new(own), own, ..Moving::default() }
    }

    /// What happened.
    pub fn counters(&self) -> MoveCounters {
        self.counters
    }

    /// No bucket waits to leave, none is on its way, and all know of all moves from and to here.
    pub fn is_idle(&self) -> bool {
        let has_begun = self.entry.due().is_none();
        has_begun && self.mover.is_idle() && self.wishes.is_empty() && self.outward.is_empty()
    }

    /// A connection that has moved to `server` was asked something here: `notice` goes behind everything that
    /// goes there before.
    pub fn send_notice(&mut self, server: ServerNumber, notice: Vec<u8>) {
        self.outward.notices.push_back((server, notice));
    }

    /// Whether there is a notice for a connection that has moved here.
    #[inline]
    pub(crate) fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// The next notice for a connection that has moved here, with the server that sent it.
    pub fn poll_notice(&mut self) -> Option<(ServerNumber, Vec<u8>)> {
        self.notices.pop_front()
    }

    /// Whether [`Moving::take_moved`] has something.
    #[inline]
    pub fn has_moved(&self) -> bool {
        !self.moved.is_empty()
    }

    /// Buckets that have moved since the last call, with where they are: for the kernel's map of queues.
    pub fn take_moved(&mut self) -> Vec<(ServerNumber, u16)> {
        std::mem::take(&mut self.moved)
    }

    /// What has become of each bucket, once a request for moves is done.
    pub fn take_done(&mut self, job: JobId) -> Option<Vec<MoveRow>> {
        self.done.remove(&job)
    }

    /// Wishes that buckets of ours go to another server, each as soon as it can, as long as `patience_us` lasts.
    /// [`Moving::take_done`] says what came of it: ask until it does.
    pub fn wish(
        &mut self,
        now: Instant,
        buckets: &[u16],
        to: ServerNumber,
        patience_us: u64,
    ) -> JobId {
        self.jobs_seen += 1;
        let (job, until) = (self.jobs_seen, now.plus_us(patience_us));
        let why = "others went before it";
        let wish = |bucket: &u16| Wish { bucket: *bucket, to, job, next: now, until, why };
        self.wishes.extend(buckets.iter().map(wish));
        self.jobs.insert(job, Job { rows: Vec::new(), open: buckets.len(), until });
        self.stirred = true;
        job
    }

    /// What the turn has for others.
    pub(crate) fn outward(&mut self) -> &mut Outward {
        &mut self.outward
    }

    /// When the next turn has something to do even if nothing comes.
    pub(crate) fn due(&self) -> Option<Instant> {
        let wish = match self.given.len() < ON_THE_WAY_MAX {
            true => self.wishes.iter().map(|wish| wish.next).min(),
            false => None,
        };
        let patience = self.jobs.values().map(|job| job.until).min();
        let stirred = self.stirred.then_some(Instant::default());
        [wish, patience, stirred, self.entry.due()].into_iter().flatten().min()
    }

    fn note(&mut self, bucket: u16, outcome: Option<Outcome>) {
        self.stirred = true;
        self.outcomes.extend(outcome.map(|outcome| (bucket, outcome)));
    }

    /// Counts, and tells whoever wished it.
    fn take_outcome(&mut self, now: Instant, own: ServerNumber, bucket: u16, outcome: Outcome) {
        match outcome {
            Outcome::Arrived(imported) => self.count_arrived(&imported),
            Outcome::Refused(refusal) => {
                self.counters.refused += 1;
                self.last_refusal = Some(refusal.to_string());
            }
            Outcome::Left => self.left(now, own, bucket),
            Outcome::Settled => {
                // At once, where nobody else steers.
                self.left(now, own, bucket);
                self.counters.settled += 1;
            }
            Outcome::Unheard => {
                self.moved.push((own, bucket));
                self.counters.unheard += 1;
            }
            Outcome::TakenBack(_) => {
                self.counters.taken_back += 1;
                self.try_again(now, bucket);
            }
            Outcome::Lost(refusal) => {
                self.counters.lost += 1;
                self.last_refusal = Some(refusal.to_string());
                self.stayed(
                    now,
                    own,
                    bucket,
                    "the other server did not take it, and it could not be put back",
                );
            }
        }
    }

    fn count_arrived(&mut self, imported: &Imported) {
        let counters = &mut self.counters;
        counters.arrived += 1;
        counters.connections_arrived += imported.connections as u64;
        counters.time_wait_arrived += imported.time_wait as u64;
        counters.packets_held += imported.held as u64;
        counters.without_listener += imported.without_listener as u64;
    }

    fn left(&mut self, now: Instant, own: ServerNumber, bucket: u16) {
        let Some(giving) = self.given.remove(&bucket) else { return };
        self.moved.push((giving.to, bucket));
        let us = now.since(giving.since);
        let counters = &mut self.counters;
        counters.taken += 1;
        counters.connections_taken += giving.given.connections as u64;
        counters.time_wait_taken += giving.given.time_wait as u64;
        counters.longest_us = counters.longest_us.max(us);
        let Given { connections, time_wait, bytes } = giving.given;
        let row = row(bucket, own, giving.to, None);
        self.report(giving.job, MoveRow { connections, time_wait, bytes, us, ..row });
    }

    /// The other server may take it another time: it has more room then, or lives again.
    fn try_again(&mut self, now: Instant, bucket: u16) {
        let Some(Giving { job, to, .. }) = self.given.remove(&bucket) else { return };
        let Some(until) = self.jobs.get(&job).map(|job| job.until) else { return };
        let (next, why) = (now.plus_us(NOT_TAKEN_US).min(until), NOT_TAKEN);
        self.wishes.push_back(Wish { bucket, to, job, next, until, why });
    }

    fn stayed(&mut self, now: Instant, own: ServerNumber, bucket: u16, why: &str) {
        let Some(giving) = self.given.remove(&bucket) else { return };
        let us = now.since(giving.since);
        self.report(giving.job, MoveRow { us, ..row(bucket, own, giving.to, Some(why)) });
    }

    fn report(&mut self, job: JobId, row: MoveRow) {
        if let Some(job) = self.jobs.get_mut(&job) {
            job.rows.push(row);
            job.open = job.open.saturating_sub(1);
        }
    }

    /// Requests of which everything is known, or whose time is over.
    fn finish_jobs(&mut self, now: Instant, own: ServerNumber) {
        let over = |job: &Job| job.open == 0 || now >= job.until;
        let finished: Vec<JobId> =
            self.jobs.iter().filter(|(_, job)| over(job)).map(|(id, _)| *id).collect();
        for id in finished {
            let Some(mut job) = self.jobs.remove(&id) else { continue };
            for wish in self.wishes.iter().filter(|wish| wish.job == id) {
                job.rows.push(row(wish.bucket, own, wish.to, Some(wish.why)));
            }
            self.wishes.retain(|wish| wish.job != id);
            for (bucket, giving) in self.given.iter().filter(|(_, giving)| giving.job == id) {
                let why = "it is on its way: haypile steer says when it is there";
                job.rows.push(row(*bucket, own, giving.to, Some(why)));
            }
            job.rows.sort_by_key(|row| row.bucket);
            self.done.insert(id, job.rows);
        }
    }
}

/// How many buckets a turn may try to give away with so many flows here: one at least.
fn trials_at_once(flows: usize) -> usize {
    (FLOWS_AT_ONCE / flows.max(1)).clamp(1, WISHES_AT_ONCE)
}

fn row(bucket: u16, from: ServerNumber, to: ServerNumber, why: Option<&str>) -> MoveRow {
    MoveRow {
        bucket,
        from,
        to,
        moved: why.is_none(),
        why: why.map(str::to_string),
        connections: 0,
        time_wait: 0,
        bytes: 0,
        us: 0,
    }
}

/// Takes in, for the shard, bytes of streams and what is said between the frames.
#[derive(Debug)]
pub struct Desk<'a> {
    hands: Hands<'a>,
    moving: &'a mut Moving,
}

impl Streams for Desk<'_> {
    #[inline]
    fn write(&mut self, id: SocketId, position: u64, data: &[u8]) -> usize {
        self.hands.write(id, position, data)
    }

    #[inline]
    fn write_datagram(&mut self, id: SocketId, datagram: &Datagram, payload: &[u8]) -> bool {
        self.hands.write_datagram(id, datagram, payload)
    }

    #[inline]
    fn read(&mut self, id: SocketId, position: u64, out: &mut [u8]) {
        self.hands.read(id, position, out);
    }
}

impl Inward for Desk<'_> {
    fn handle_aside(
        &mut self,
        now: Instant,
        from: Sayer,
        what: Aside,
        bytes: &[u8],
        shard: &mut Shard,
    ) -> bool {
        let understood = match what {
            Aside::Move => self.handle_move(now, from, bytes, shard),
            Aside::Notice => from.server.is_some_and(|server| {
                self.moving.notices.push_back((server, bytes.to_vec()));
                self.moving.stirred = true;
                true
            }),
            Aside::Switched => Switched::decode(bytes).is_some_and(|switched| {
                let Switched { bucket, version } = switched;
                let mover = &mut self.moving.mover;
                let outcome = mover.handle_switched(from.process, bucket, version, shard);
                self.moving.note(bucket, outcome);
                true
            }),
        };
        self.moving.counters.nonsense += u64::from(!understood);
        understood
    }
}

impl Desk<'_> {
    fn handle_move(&mut self, now: Instant, from: Sayer, bytes: &[u8], shard: &mut Shard) -> bool {
        let (Some(server), Ok((message, body))) = (from.server, MoveMessage::decode(bytes)) else {
            return false;
        };
        let (MoveMessage::Coming { bucket, .. }
        | MoveMessage::State { bucket }
        | MoveMessage::Receipt { bucket }
        | MoveMessage::Taken { bucket, .. }
        | MoveMessage::Refused { bucket, .. }
        | MoveMessage::Settled { bucket, .. }) = message;
        let mover = &mut self.moving.mover;
        let handled = mover.handle(now, server, message, body, shard, &mut self.hands);
        self.moving.note(bucket, handled.ok().flatten());
        handled.is_ok()
    }
}

impl Core {
    /// The shard, and who takes in for it.
    #[inline]
    pub(crate) fn inward(&mut self) -> (&mut Shard, Desk<'_>) {
        let Core { shard, store, processes, depot, moving, .. } = self;
        (shard, Desk { hands: Hands { store, processes, depot }, moving })
    }

    /// Goes on with moves: looks at what has come, tries what is wished, tells those who steer. How much there was.
    #[inline]
    pub(crate) fn drive_moves(&mut self, now: Instant) -> usize {
        let moving = &self.moving;
        if !moving.stirred && moving.wishes.is_empty() && moving.jobs.is_empty() {
            return 0;
        }
        self.move_on(now)
    }

    fn move_on(&mut self, now: Instant) -> usize {
        let own = self.managers.server();
        let stirred = std::mem::take(&mut self.moving.stirred);
        // What has come of a move is about that: the next one of its bucket may begin below.
        self.take_outcomes(now, own);
        let granted = self.try_wishes(now, own);
        self.tell_those_who_steer();
        self.take_outcomes(now, own);
        self.moving.finish_jobs(now, own);
        granted + usize::from(stirred)
    }

    fn take_outcomes(&mut self, now: Instant, own: ServerNumber) {
        for (bucket, outcome) in std::mem::take(&mut self.moving.outcomes) {
            if matches!(outcome, Outcome::Left | Outcome::Settled | Outcome::Lost(_)) {
                self.fail_stubs_of(now, bucket);
            }
            if matches!(outcome, Outcome::TakenBack(_)) {
                self.forget_taken_back();
            }
            self.store.obituary.settle(bucket);
            self.moving.take_outcome(now, own, bucket, outcome);
        }
    }

    fn try_wishes(&mut self, now: Instant, own: ServerNumber) -> usize {
        let (mut granted, mut trials) = (0, trials_at_once(self.shard.flow_count()));
        for _ in 0..self.moving.wishes.len().min(WISHES_AT_ONCE) {
            let full = self.moving.given.len() >= ON_THE_WAY_MAX || granted == GIVEN_AT_ONCE;
            if full || trials == 0 {
                break;
            }
            let Some(wish) = self.moving.wishes.pop_front() else { break };
            let Wish { bucket, to, job, next, until, .. } = wish;
            if next > now {
                self.moving.wishes.push_back(wish);
                continue;
            }
            trials -= 1;
            match self.try_to_give(now, bucket, to) {
                Trial::Given(given) => {
                    granted += 1;
                    self.moving.counters.given += 1;
                    self.moving.given.insert(bucket, Giving { job, to, since: now, given });
                }
                Trial::Later(why) if now < until => {
                    let next = now.plus_us(AGAIN_US);
                    self.moving.wishes.push_back(Wish { next, why, ..wish });
                }
                Trial::Later(why) | Trial::Never(why) => {
                    self.moving.report(job, row(bucket, own, to, Some(why)));
                }
            }
        }
        granted
    }

    fn try_to_give(&mut self, now: Instant, bucket: u16, to: ServerNumber) -> Trial {
        match self.moving.mover.check_give(bucket, to, &self.shard) {
            Ok(()) => {}
            Err(NotGiven::Unsettled) => return Trial::Later("its last move is not settled yet"),
            Err(NotGiven::NotExported(NotExported::NotThere)) => {
                return Trial::Never("it is there already");
            }
            Err(NotGiven::NotExported(NotExported::NotOurs)) if self.owns(bucket) => {
                return Trial::Later("it is on its way here");
            }
            Err(NotGiven::NotExported(NotExported::NotOurs)) => {
                return Trial::Never("another server has it by now");
            }
        }
        let process = self.rings.roles().process_of_transport(to);
        if !process.is_some_and(|process| self.rings.is_present(process)) {
            return Trial::Later("the server that it was to go to does not run");
        }
        if !self.knows_all_moves() {
            return Trial::Later("other servers have yet to say what has moved");
        }
        if let Err(Busy) = self.prepare_move(bucket) {
            self.moving.counters.busy += 1;
            return Trial::Later("a program is in the middle of a copy from or to a connection");
        }
        let Core { shard, store, processes, depot, moving, .. } = self;
        let hands = &mut Hands { store, processes, depot };
        match moving.mover.give(now, bucket, to, shard, hands) {
            Ok(given) => {
                self.store.obituary.leave(bucket, &mut self.depot.places);
                Trial::Given(given)
            }
            Err(_) => {
                // What was checked above.
                self.cancel_move(bucket);
                Trial::Later("it could not be given away")
            }
        }
    }

    /// The map says that we have the flows of a bucket, or that they are on their way to us.
    pub(crate) fn owns(&self, bucket: u16) -> bool {
        let owner = |bucket| {
            let steered = self.shard.steered()?;
            Some(steered.steering.owner_of_flows(bucket) == steered.server)
        };
        owner(bucket).unwrap_or_default()
    }

    fn tell_those_who_steer(&mut self) {
        while let Some(news) = self.moving.mover.poll_announcement() {
            let Announcement { to, bucket, version, server } = news;
            if Some(to) == self.moving.own {
                let Core { shard, moving, .. } = self;
                shard.note_move(bucket, version, server);
                let outcome = moving.mover.handle_switched(to, bucket, version, shard);
                moving.outcomes.extend(outcome.map(|outcome| (bucket, outcome)));
            } else {
                self.say(Some(to), &Incoming::FlowsMoved(FlowsMoved { bucket, version, server }));
            }
        }
        for peer in std::mem::take(&mut self.moving.to_assure) {
            self.say(Some(peer), &Incoming::MovesTold);
        }
    }

    /// Begins to move what is asked for, as far as it is ours: `None` where nothing is.
    ///
    /// # Errors
    /// What is wrong with the request, in one line.
    pub fn begin_moves(
        &mut self,
        now: Instant,
        what: Selection,
        to: ServerNumber,
        patience_ms: u64,
    ) -> Result<Option<JobId>, String> {
        let buckets = self.select(what, to, patience_ms)?;
        match buckets.is_empty() {
            true => Ok(None),
            false => Ok(Some(self.moving.wish(now, &buckets, to, patience_ms * 1000))),
        }
    }

    fn select(
        &self,
        what: Selection,
        to: ServerNumber,
        patience_ms: u64,
    ) -> Result<Vec<u16>, String> {
        let Some(steered) = self.shard.steered() else {
            return Err("the plan has one transport server, which has every bucket".into());
        };
        if (steered.steering.staying()..steered.steering.servers()).contains(&to) {
            return Err(format!("transport server {to} is about to leave"));
        }
        let there = |server: ServerNumber| match server < steered.steering.servers() {
            true => Ok(()),
            false => Err(format!(
                "there is no transport server {server}: they are 0 to {}",
                steered.steering.servers() - 1
            )),
        };
        there(to)?;
        if patience_ms > PATIENCE_MAX_MS {
            return Err(format!("patience is {PATIENCE_MAX_MS} ms at most"));
        }
        match what {
            Selection::Bucket(bucket) if usize::from(bucket) >= BUCKETS => {
                Err(format!("there is no bucket {bucket}: they are 0 to {}", BUCKETS - 1))
            }
            Selection::Bucket(bucket) => {
                Ok(self.owns(bucket).then_some(bucket).into_iter().collect())
            }
            Selection::AllOf(server) if server == to => {
                Err(format!("they are with server {to} already"))
            }
            Selection::AllOf(server) => {
                there(server)?;
                let ours = (0..BUCKETS as u16).filter(|bucket| self.owns(*bucket));
                Ok(if server == steered.server { ours.collect() } else { Vec::new() })
            }
            Selection::Connection { local, remote } => {
                let bucket = steered.steering.bucket_of_flow(local, remote);
                let is_it = |one: &haypile_engine::shard::SocketSummary| {
                    one.local == local && one.remote == Some(remote)
                };
                match self.owns(bucket) {
                    true if !self.shard.sockets().any(|one| is_it(&one)) => {
                        Err(format!("there is no connection {local}-{remote}: see haypile ss"))
                    }
                    owns => Ok(owns.then_some(bucket).into_iter().collect()),
                }
            }
        }
    }

    /// Which buckets we have, and what happened to them.
    pub fn steer_report(&self) -> SteerReport {
        let Some(steered) = self.shard.steered() else {
            // One transport server has everything.
            let server = self.managers.server();
            let row = SteerRow { server, buckets: BUCKETS, ..SteerRow::default() };
            return SteerReport { servers: vec![row] };
        };
        let flows = self.shard.flows_by_bucket();
        let mut busiest: Vec<BucketRow> = flows
            .iter()
            .map(|(bucket, (connections, time_wait))| BucketRow {
                bucket: *bucket,
                connections: *connections,
                time_wait: *time_wait,
            })
            .collect();
        busiest.sort_by_key(|row| std::cmp::Reverse((row.connections, row.time_wait, row.bucket)));
        busiest.truncate(BUSIEST);
        let moved = steered.steering.moves().filter(|(_, _, server)| *server == steered.server);
        let Moving { mover, wishes, counters, last_refusal, .. } = &self.moving;
        let row = SteerRow {
            server: steered.server,
            buckets: self.buckets().into(),
            connections: flows.values().map(|flows| flows.0).sum(),
            time_wait: flows.values().map(|flows| flows.1).sum(),
            busiest,
            wished: wishes.len(),
            leaving: mover.leaving(),
            coming: mover.coming(),
            unsettled: mover.unsettled(),
            moved_here: moved.count(),
            last_refusal: last_refusal.clone(),
            counters: *counters,
        };
        SteerReport { servers: vec![row] }
    }
}

#[cfg(test)]
mod tests;
