//! What servers say to each other while a bucket moves: a pure state machine, one [`Mover`] a transport server.
//!
//! ```text
//!  old owner O                     new owner N                  everyone who steers (O and N too)
//!     |-- Coming, State ... ---------->|  its packets wait            |
//!     |   packets are sent after it -->|                              |
//!     |                             import                            |
//!     |<---------- Receipt ..., Taken -|                              |
//!     |-- announcement: N has it ------------------------------------>|  steers to N
//!     |<------------- Switched, behind the last frame steered to O ---|
//!     |-- Settled, behind the last --->|  may move it on
//! ```
//!
//! What O has for N goes one way, in order: the shard's queue of [`Forward`](crate::Forward)s, in which packets
//! stand too. Nothing is lost: until N has the state its packets wait there; whatever comes to O is sent on until
//! all have switched; and only then may the bucket move again, so that no frame steered by an older map is on its
//! way. A server may refuse: then O takes back what it has kept. The caller carries messages, and says who steers
//! and who has died; a server is among those who steer, and its shard hears of an announcement
//! ([`Shard::note_move`]) before it has switched.
//!
//! | what of a bucket | what becomes of it |
//! |---|---|
//! | connections, closing and orphaned ones too | move with all variables; applications follow (`Freight`) |
//! | half-open connections | move to the new server's listener; forgotten where there is none |
//! | complete, waiting to be accepted | announced anew by the new server; reset where the listener is gone |
//! | TIME-WAIT records | move with what is left of their time |
//! | SYN cookies | one secret and clock for all; the new server takes them as long as the old one would |
//! | connections that are over but not closed | have no flow; stay |
//! | UDP, fragments, listeners | do not move: by port, by addresses, everywhere |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use super::{Freight, Imported, NotExported};
use crate::Knocked;
use crate::carry::{Carry, Reader, Refusal, Writer, demand};
use crate::control::names::ServerNumber;
use crate::shard::Shard;
use crate::steering::BUCKETS;
use crate::time::Instant;

/// Most bytes of one [`MoveMessage::State`].
pub const STATE_MAX: usize = 32 * 1024;
/// Most bytes of a bucket: more is refused before memory is taken for it.
pub const BUCKET_BYTES_MAX: u32 = 64 << 20;

/// Whoever has a map and sends frames by it; in a service a process of the plan.
pub type Steerer = u16;

/// One server to another.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum MoveMessage {
    /// The bucket is coming, by this move, in `len` bytes of [`MoveMessage::State`].
    Coming {
        /// Which.
        bucket: u16,
        /// The number of the move.
        version: u32,
        /// Bytes.
        len: u32,
    },
    /// The next bytes of the bucket that is coming stand beside this message.
    State {
        /// Which.
        bucket: u16,
    },
    /// What the receiver has to know of the connections that the sender has taken stands beside this message:
    /// [`Freight::receipt`].
    Receipt {
        /// Which.
        bucket: u16,
    },
    /// The sender has taken the bucket over.
    Taken {
        /// Which.
        bucket: u16,
        /// The number of the move.
        version: u32,
    },
    /// The sender does not take the bucket: it is the receiver's by the next move.
    Refused {
        /// Which.
        bucket: u16,
        /// The number of the move.
        version: u32,
    },
    /// All who steer know of the move; nothing comes by way of the sender any more.
    Settled {
        /// Which.
        bucket: u16,
        /// The number of the move.
        version: u32,
    },
}

impl MoveMessage {
    /// As a record between servers: kind, bucket, number of the move, length, and what stands beside it.
    pub fn encode(&self, body: &[u8]) -> Vec<u8> {
        let (kind, bucket, version, len): (u8, u16, u32, u32) = match *self {
            MoveMessage::Coming { bucket, version, len } => (0, bucket, version, len),
            MoveMessage::State { bucket } => (1, bucket, 0, body.len() as u32),
            MoveMessage::Taken { bucket, version } => (2, bucket, version, 0),
            MoveMessage::Refused { bucket, version } => (3, bucket, version, 0),
            MoveMessage::Settled { bucket, version } => (4, bucket, version, 0),
            MoveMessage::Receipt { bucket } => (5, bucket, 0, body.len() as u32),
        };
        let mut out = Writer::new(Instant::default());
        kind.write(&mut out);
        bucket.write(&mut out);
        version.write(&mut out);
        len.write(&mut out);
        let mut bytes = out.into_bytes();
        if matches!(self, MoveMessage::State { .. } | MoveMessage::Receipt { .. }) {
            bytes.extend_from_slice(body);
        }
        bytes
    }

    /// What [`MoveMessage::encode`] wrote, with what stands beside it.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn decode(bytes: &[u8]) -> Result<(MoveMessage, &[u8]), Refusal> {
        let mut input = Reader::new(bytes, Instant::default());
        let kind = u8::read(&mut input)?;
        let bucket = u16::read(&mut input)?;
        demand(usize::from(bucket) < BUCKETS, "number of a bucket")?;
        let (version, len) = (u32::read(&mut input)?, u32::read(&mut input)?);
        let named = version > 0 && version < u32::MAX;
        let message = match kind {
            0 if named => MoveMessage::Coming { bucket, version, len },
            1 | 5 if version == 0 && len as usize <= STATE_MAX => {
                let body = input.take(len as usize)?;
                input.end()?;
                let message = match kind {
                    1 => MoveMessage::State { bucket },
                    _ => MoveMessage::Receipt { bucket },
                };
                return Ok((message, body));
            }
            2 if named && len == 0 => MoveMessage::Taken { bucket, version },
            3 if named && len == 0 => MoveMessage::Refused { bucket, version },
            4 if named && len == 0 => MoveMessage::Settled { bucket, version },
            _ => return Err(Refusal::Impossible("message about a move")),
        };
        input.end()?;
        Ok((message, &[]))
    }
}

/// To everyone who steers: the flows of the bucket are with `server`. The answer is [`Mover::handle_switched`],
/// behind every frame that was steered before.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Announcement {
    /// Whom to tell.
    pub to: Steerer,
    /// Which bucket.
    pub bucket: u16,
    /// The number of the move.
    pub version: u32,
    /// Who has it.
    pub server: ServerNumber,
}

/// Why a bucket is not given away.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum NotGiven {
    /// See [`NotExported`].
    NotExported(NotExported),
    /// Its last move is not settled yet.
    Unsettled,
}

/// What has come of a move.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The bucket is ours, with so much.
    Arrived(Imported),
    /// We have refused the bucket.
    Refused(Refusal),
    /// The other server has it; those who steer are being told.
    Left,
    /// The other server did not take it, and it is ours again.
    TakenBack(Imported),
    /// As before, but it could not be put back: its connections are lost, and their peers asked about them.
    Lost(Refusal),
    /// The move is over.
    Settled,
    /// The server that it came from died before it said to anybody, as far as we know, that we have it: those whose
    /// connections these are may have been told that they are lost.
    Unheard,
}

/// A bucket that we give away.
#[derive(Debug)]
struct Leaving {
    to: ServerNumber,
    version: u32,
    /// Kept until the other has taken it.
    state: Option<Vec<u8>>,
    /// The two ends of its connections.
    flows: Vec<(SocketAddr, SocketAddr)>,
    /// Who has yet to switch, once the other has taken it.
    steered_by: BTreeSet<Steerer>,
}

/// A bucket that is coming.
#[derive(Debug)]
struct Coming {
    from: ServerNumber,
    version: u32,
    len: usize,
    state: Vec<u8>,
    /// Who has begun to steer since: the old server may not have known them when it told all.
    newcomers: BTreeSet<Steerer>,
}

/// A bucket that has come.
#[derive(Copy, Clone, Debug)]
struct Unsettled {
    version: u32,
    /// Who will say that it is settled.
    from: ServerNumber,
    /// They have said that we have it.
    heard: bool,
}

/// What has left with a bucket.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Given {
    /// Connections.
    pub connections: usize,
    /// TIME-WAIT records.
    pub time_wait: usize,
    /// Bytes of all.
    pub bytes: usize,
}

/// A server's part in moves.
#[derive(Debug, Default)]
pub struct Mover {
    steerers: BTreeSet<Steerer>,
    leaving: BTreeMap<u16, Leaving>,
    coming: BTreeMap<u16, Coming>,
    /// Taken over, and not settled.
    unsettled: BTreeMap<u16, Unsettled>,
    announcements: VecDeque<Announcement>,
}

impl Mover {
    /// Among those who steer.
    pub fn new(steerers: impl IntoIterator<Item = Steerer>) -> Mover {
        Mover { steerers: steerers.into_iter().collect(), ..Mover::default() }
    }

    /// No bucket is on its way, and all moves are settled.
    pub fn is_idle(&self) -> bool {
        self.leaving.is_empty() && self.coming.is_empty() && self.unsettled.is_empty()
    }

    /// How many buckets are on their way from us and not taken yet.
    pub fn leaving(&self) -> usize {
        self.leaving.values().filter(|one| one.state.is_some()).count()
    }

    /// How many buckets are on their way to us.
    pub fn coming(&self) -> usize {
        self.coming.len()
    }

    /// How many moves, from us or to us, have been made and not every server that steers knows.
    pub fn unsettled(&self) -> usize {
        self.leaving.len() - self.leaving() + self.unsettled.len()
    }

    /// Whether [`Mover::give`] would give a bucket away.
    ///
    /// # Errors
    /// See [`NotGiven`].
    pub fn check_give(&self, bucket: u16, to: ServerNumber, shard: &Shard) -> Result<(), NotGiven> {
        if self.leaving.contains_key(&bucket) || self.unsettled.contains_key(&bucket) {
            return Err(NotGiven::Unsettled);
        }
        shard.may_export(bucket, to).map_err(NotGiven::NotExported)
    }

    /// Gives a bucket of ours to another server.
    ///
    /// # Errors
    /// See [`NotGiven`]; nothing has changed.
    pub fn give(
        &mut self,
        now: Instant,
        bucket: u16,
        to: ServerNumber,
        shard: &mut Shard,
        freight: &mut impl Freight,
    ) -> Result<Given, NotGiven> {
        self.check_give(bucket, to, shard)?;
        let exported =
            shard.export_bucket(now, bucket, to, freight).map_err(NotGiven::NotExported)?;
        let (version, state) = (exported.version, exported.bytes);
        let len = state.len() as u32;
        shard.send_move(to, MoveMessage::Coming { bucket, version, len }, Vec::new());
        for part in state.chunks(STATE_MAX) {
            shard.send_move(to, MoveMessage::State { bucket }, part.to_vec());
        }
        let (connections, time_wait) = (exported.ids.len(), exported.time_wait);
        let given = Given { connections, time_wait, bytes: state.len() };
        let (flows, steered_by) = (exported.flows, BTreeSet::new());
        self.leaving.insert(bucket, Leaving { to, version, state: Some(state), flows, steered_by });
        Ok(given)
    }

    /// Another server says something; `body` stands beside a [`MoveMessage::State`] or [`MoveMessage::Receipt`].
    ///
    /// # Errors
    /// What cannot be said now, or not by this server: it is ignored.
    pub fn handle(
        &mut self,
        now: Instant,
        from: ServerNumber,
        message: MoveMessage,
        body: &[u8],
        shard: &mut Shard,
        freight: &mut impl Freight,
    ) -> Result<Option<Outcome>, Refusal> {
        match message {
            MoveMessage::Coming { bucket, version, len } => {
                Ok(self.handle_coming(from, bucket, version, len, shard))
            }
            MoveMessage::State { bucket } => {
                self.handle_state(now, from, bucket, body, shard, freight)
            }
            MoveMessage::Receipt { bucket } => {
                let untaken = self
                    .leaving
                    .get(&bucket)
                    .is_some_and(|one| one.to == from && one.state.is_some());
                demand(untaken, "a receipt for a bucket that was not given")?;
                freight.deliver(from, body);
                Ok(None)
            }
            MoveMessage::Taken { bucket, version } => {
                let leaving = self.leaving_to(from, bucket, version)?;
                demand(leaving.state.take().is_some(), "taken twice")?;
                self.announce(bucket, version, from);
                if let Some(leaving) = self.leaving.get_mut(&bucket) {
                    leaving.steered_by = self.steerers.clone();
                }
                Ok(self.settle(bucket, shard).or(Some(Outcome::Left)))
            }
            MoveMessage::Refused { bucket, version } => {
                let untaken = self.leaving_to(from, bucket, version)?.state.is_some();
                demand(untaken, "refused after it was taken")?;
                Ok(self.take_back(now, bucket, shard, freight))
            }
            MoveMessage::Settled { bucket, version } => {
                let known = self.unsettled.get(&bucket).map(|one| (one.version, one.from));
                demand(known == Some((version, from)), "a move that is not ours is settled")?;
                self.unsettled.remove(&bucket);
                Ok(Some(Outcome::Settled))
            }
        }
    }

    /// A server announces a move: if it is one to us, it has heard that we have the bucket.
    pub fn handle_announced(&mut self, from: ServerNumber, bucket: u16, version: u32) {
        if let Some(one) = self.unsettled.get_mut(&bucket) {
            one.heard |= (one.version, one.from) == (version, from);
        }
    }

    /// Whoever was told by [`Mover::poll_announcement`] steers by the new map, and all frames that it steered to us
    /// before have come.
    pub fn handle_switched(
        &mut self,
        steerer: Steerer,
        bucket: u16,
        version: u32,
        shard: &mut Shard,
    ) -> Option<Outcome> {
        let leaving = self.leaving.get_mut(&bucket).filter(|one| one.version == version)?;
        leaving.steered_by.remove(&steerer);
        self.settle(bucket, shard)
    }

    /// The next one to tell.
    pub fn poll_announcement(&mut self) -> Option<Announcement> {
        self.announcements.pop_front()
    }

    /// Somebody new steers, or has missed what it was told: it hears of all moves that have been made, as far as we
    /// know. (Whoever made them may have died, and so may whoever has the buckets.)
    pub fn add_steerer(&mut self, steerer: Steerer, shard: &Shard) {
        self.steerers.insert(steerer);
        let Some(steered) = shard.steered() else { return };
        for (bucket, version, server) in steered.steering.moves() {
            if let Some(coming) = self.coming.get_mut(&bucket) {
                coming.newcomers.insert(steerer);
                continue;
            }
            if let Some(leaving) = self.leaving.get_mut(&bucket) {
                // What is on its way may come back; who has begun to steer by then is told when it is there.
                if leaving.state.is_some() {
                    continue;
                }
                leaving.steered_by.insert(steerer);
            }
            self.announcements.push_back(Announcement { to: steerer, bucket, version, server });
        }
    }

    /// One of those who steer has died, and with it the frames on their way.
    pub fn remove_steerer(&mut self, steerer: Steerer, shard: &mut Shard) {
        self.steerers.remove(&steerer);
        for coming in self.coming.values_mut() {
            coming.newcomers.remove(&steerer);
        }
        self.announcements.retain(|one| one.to != steerer);
        let buckets: Vec<u16> = self.leaving.keys().copied().collect();
        for bucket in buckets {
            if let Some(leaving) = self.leaving.get_mut(&bucket) {
                leaving.steered_by.remove(&steerer);
            }
            let _: Option<Outcome> = self.settle(bucket, shard);
        }
    }

    /// A server has died, and with it what was on its ways. What it had not taken is ours again; what was coming
    /// from it is lost with it, and its bucket ours, as is one whose move it can settle no more. To be called with
    /// whoever steered there removed. What has come of buckets that were on their way there.
    pub fn remove_server(
        &mut self,
        now: Instant,
        server: ServerNumber,
        shard: &mut Shard,
        freight: &mut impl Freight,
    ) -> Vec<(u16, Outcome)> {
        let mut outcomes = Vec::new();
        let leaving: Vec<u16> = self.leaving.keys().copied().collect();
        for bucket in leaving {
            let Some(one) = self.leaving.get(&bucket).filter(|one| one.to == server) else {
                continue;
            };
            if one.state.is_some() {
                let outcome = self.take_back(now, bucket, shard, freight);
                outcomes.extend(outcome.map(|outcome| (bucket, outcome)));
            } else {
                self.leaving.remove(&bucket);
            }
        }
        let mut ours: Vec<(u16, u32)> = Vec::new();
        for (bucket, coming) in &self.coming {
            if coming.from == server {
                ours.push((*bucket, coming.version));
            }
        }
        for (bucket, _) in &ours {
            self.coming.remove(bucket);
            shard.stop_expecting(now, *bucket, freight);
        }
        for (bucket, one) in self.unsettled.iter().filter(|(_, one)| one.from == server) {
            ours.push((*bucket, one.version));
            outcomes.extend((!one.heard).then_some((*bucket, Outcome::Unheard)));
        }
        self.unsettled.retain(|_, one| one.from != server);
        let own = shard.steered().map(|steered| steered.server);
        for (bucket, version) in ours {
            if let Some(own) = own {
                self.announce(bucket, version, own);
            }
        }
        outcomes
    }

    fn leaving_to(
        &mut self,
        to: ServerNumber,
        bucket: u16,
        version: u32,
    ) -> Result<&mut Leaving, Refusal> {
        let leaving = self.leaving.get_mut(&bucket);
        leaving
            .filter(|one| one.to == to && one.version == version)
            .ok_or(Refusal::Impossible("a bucket that was not given"))
    }

    /// The bucket is expected, or refused at once.
    fn handle_coming(
        &mut self,
        from: ServerNumber,
        bucket: u16,
        version: u32,
        len: u32,
        shard: &mut Shard,
    ) -> Option<Outcome> {
        let owner = shard.steered().map(|steered| steered.steering.owner_of_flows(bucket));
        match self.check_coming(from, bucket, len, owner) {
            Ok(()) if shard.expect_bucket(bucket, version) => {
                let (state, newcomers) = (Vec::new(), BTreeSet::new());
                let coming = Coming { from, version, len: len as usize, state, newcomers };
                self.coming.insert(bucket, coming);
                None
            }
            refusal => {
                shard.send_move(from, MoveMessage::Refused { bucket, version }, Vec::new());
                if owner == Some(from) {
                    shard.note_move(bucket, version + 1, from);
                }
                let refusal = refusal.err().unwrap_or(Refusal::Impossible("an old move"));
                Some(Outcome::Refused(refusal))
            }
        }
    }

    fn check_coming(
        &self,
        from: ServerNumber,
        bucket: u16,
        len: u32,
        owner: Option<ServerNumber>,
    ) -> Result<(), Refusal> {
        let moves = self.coming.contains_key(&bucket)
            || self.leaving.contains_key(&bucket)
            || self.unsettled.contains_key(&bucket);
        demand(!moves, "a bucket that moves already")?;
        demand(owner == Some(from), "a bucket that is not the sender's")?;
        demand((1..=BUCKET_BYTES_MAX).contains(&len), "length of a bucket")
    }

    fn handle_state(
        &mut self,
        now: Instant,
        from: ServerNumber,
        bucket: u16,
        body: &[u8],
        shard: &mut Shard,
        freight: &mut impl Freight,
    ) -> Result<Option<Outcome>, Refusal> {
        let coming = self.coming.get_mut(&bucket).filter(|coming| coming.from == from);
        // Of a bucket that was refused at once, all the rest is under way.
        let Some(coming) = coming else { return Ok(None) };
        coming.state.extend_from_slice(body);
        if coming.state.len() < coming.len {
            return Ok(None);
        }
        let Some(coming) = self.coming.remove(&bucket) else { return Ok(None) };
        let Coming { version, len, state, newcomers, .. } = coming;
        let fits = demand(state.len() == len, "more state than was said");
        let imported = fits.and_then(|()| shard.import_bucket(now, bucket, &state, freight));
        Ok(Some(match imported {
            Ok(imported) => {
                self.unsettled.insert(bucket, Unsettled { version, from, heard: false });
                let own = shard.steered().map(|steered| steered.server);
                for (to, server) in newcomers.into_iter().zip(std::iter::repeat(own)) {
                    let news = server.map(|server| Announcement { to, bucket, version, server });
                    self.announcements.extend(news);
                }
                while let Some(receipt) = freight.receipt() {
                    shard.send_move(from, MoveMessage::Receipt { bucket }, receipt);
                }
                shard.send_move(from, MoveMessage::Taken { bucket, version }, Vec::new());
                Outcome::Arrived(imported)
            }
            Err(refusal) => {
                shard.send_move(from, MoveMessage::Refused { bucket, version }, Vec::new());
                shard.give_up_bucket(now, bucket, version + 1, from, freight);
                Outcome::Refused(refusal)
            }
        }))
    }

    /// The other server has not taken what we gave: we go on with what was kept.
    fn take_back(
        &mut self,
        now: Instant,
        bucket: u16,
        shard: &mut Shard,
        freight: &mut impl Freight,
    ) -> Option<Outcome> {
        let Leaving { version, state, flows, .. } = self.leaving.remove(&bucket)?;
        let state = state?;
        shard.expect_bucket(bucket, version + 1);
        // Nobody has heard that it was to leave, but who came meanwhile was told nothing of it at all.
        if let Some(own) = shard.steered().map(|steered| steered.server) {
            self.announce(bucket, version + 1, own);
        }
        Some(match shard.import_bucket(now, bucket, &state, freight) {
            Ok(imported) => Outcome::TakenBack(imported),
            Err(refusal) => {
                shard.stop_expecting(now, bucket, freight);
                // Their peers hear so when they answer.
                for (local, remote) in flows {
                    let _: Knocked = shard.knock(now, local, remote);
                }
                Outcome::Lost(refusal)
            }
        })
    }

    fn announce(&mut self, bucket: u16, version: u32, server: ServerNumber) {
        let all = self.steerers.iter();
        self.announcements.extend(all.map(|to| Announcement { to: *to, bucket, version, server }));
    }

    /// Ends a move when nobody is left who steers by the old map.
    fn settle(&mut self, bucket: u16, shard: &mut Shard) -> Option<Outcome> {
        let leaving = self.leaving.get(&bucket)?;
        if leaving.state.is_some() || !leaving.steered_by.is_empty() {
            return None;
        }
        let (to, version) = (leaving.to, leaving.version);
        self.leaving.remove(&bucket);
        shard.send_move(to, MoveMessage::Settled { bucket, version }, Vec::new());
        Some(Outcome::Settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = MoveMessage> {
        let numbers = (0..BUCKETS as u16, 1..u32::MAX, any::<u32>(), 0..6);
        numbers.prop_map(|(bucket, version, len, kind)| match kind {
            0 => MoveMessage::Coming { bucket, version, len },
            1 => MoveMessage::State { bucket },
            2 => MoveMessage::Taken { bucket, version },
            3 => MoveMessage::Refused { bucket, version },
            4 => MoveMessage::Settled { bucket, version },
            _ => MoveMessage::Receipt { bucket },
        })
    }

    proptest! {
        #[test]
        fn messages_survive(message in message(), body in prop::collection::vec(any::<u8>(), 0..100)) {
            let bytes = message.encode(&body);
            let carries = matches!(message, MoveMessage::State { .. } | MoveMessage::Receipt { .. });
            let beside = if carries { &body[..] } else { &[] };
            prop_assert_eq!(MoveMessage::decode(&bytes), Ok((message, beside)));
            prop_assert!(MoveMessage::decode(&bytes[..bytes.len() - 1]).is_err());
            prop_assert!(MoveMessage::decode(&[&bytes[..], &[0]].concat()).is_err());
        }

        #[test]
        fn nonsense_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok((message, body)) = MoveMessage::decode(&bytes) {
                prop_assert_eq!(message.encode(body), bytes);
            }
        }
    }
}
