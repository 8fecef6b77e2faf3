//! What servers tell each other of moves when one comes or goes, and how long one that comes waits for that.
//!
//! A server that is started knows the map of the beginning. If it took frames by that, it would answer for flows that
//! others have: reset those that live, and admit connections that nobody sends anything any more; and connections that
//! programs begin here would be in buckets that others have. So it takes no frame, from the link or from others, and no
//! request before all who were there have said which moves they know ([`Core::serves`]); until then they wait in rings
//! and queues. Part of `moving`; called by `server` and `conversation`.

use haypile_engine::Instant;
use haypile_engine::migration::protocol::Outcome;
use haypile_engine::steering::Steering;
use haypile_shm::Message;
use haypile_shm::peer::PEER_MESSAGES;

use crate::freight::Hands;
use crate::managers::wire::{FlowsMoved, Incoming};
use crate::plan::ServerSpec;
use crate::roles::ProcessNumber;
use crate::server::Core;

/// Longest time that frames and requests wait for the others to say what has moved: one that is stopped says nothing.
const ENTRY_US: u64 = 1_000_000;
/// Messages of a dead server looked at together.
const LAST_WORDS: usize = 64;

/// How far a server is with beginning to serve.
#[derive(Copy, Clone, Debug, Default)]
pub(super) enum Entry {
    /// It has not looked who is there.
    #[default]
    New,
    /// It waits for those, but not for ever.
    Waits(Instant),
    /// It takes frames and requests.
    Open,
}

impl Entry {
    /// When it serves at the latest.
    pub(super) fn due(self) -> Option<Instant> {
        match self {
            Entry::Waits(until) => Some(until),
            Entry::New | Entry::Open => None,
        }
    }
}

impl Core {
    /// Whether frames and requests may be taken: everybody who was there when we came has said what has moved.
    #[inline]
    pub(crate) fn serves(&mut self, now: Instant) -> bool {
        matches!(self.moving.entry, Entry::Open) || self.may_enter(now)
    }

    #[cold]
    fn may_enter(&mut self, now: Instant) -> bool {
        let until = self.moving.entry.due().unwrap_or(now.plus_us(ENTRY_US));
        let enters = now >= until || self.knows_all_moves();
        self.moving.entry = if enters { Entry::Open } else { Entry::Waits(until) };
        enters
    }

    /// A server has told all moves that it knows of.
    pub(crate) fn hear_all_of(&mut self, from: ProcessNumber) {
        self.moving.told.insert(from);
    }

    /// What a server that is gone has still said of moves. All else that it said died with it.
    pub(crate) fn hear_last_words(&mut self, peer: ProcessNumber) {
        let mut room: [Message; LAST_WORDS] = [[0; 8]; LAST_WORDS];
        for _ in 0..=PEER_MESSAGES as usize / LAST_WORDS {
            let count = self.rings.pop_messages(peer, &mut room);
            for message in &room[..count] {
                if let Ok(Incoming::FlowsMoved(moved)) = Incoming::decode(message)
                    && moved.server < self.rings.roles().transport_count()
                {
                    self.hear_of_move(peer, moved);
                }
            }
            if count < LAST_WORDS {
                return;
            }
        }
    }

    /// Everybody there who tells us what has moved has done so.
    pub(crate) fn knows_all_moves(&self) -> bool {
        let roles = self.rings.roles();
        let tells = |spec: &ServerSpec| match (roles.transport(), roles.link()) {
            (Some(_), _) => spec.transport.is_some() || spec.link.is_some(),
            (None, Some(_)) => spec.transport.is_some(),
            (None, None) => false,
        };
        let present = self.rings.present().iter();
        let mut silent = present.filter(|peer| !self.moving.told.contains(peer));
        !silent.any(|peer| roles.servers().get(usize::from(*peer)).is_some_and(tells))
    }

    /// A server tells of a move: a shard steers by it from now on, a switch without one from the end of the turn on,
    /// when we say so.
    pub(crate) fn hear_of_move(&mut self, from: ProcessNumber, moved: FlowsMoved) {
        let teller = self.rings.roles().servers().get(usize::from(from));
        if let Some(teller) = teller.and_then(|spec| spec.transport) {
            self.moving.mover.handle_announced(teller, moved.bucket, moved.version);
        }
        self.shard.note_move(moved.bucket, moved.version, moved.server);
        self.moving.outward.heard.push_back((from, moved));
    }

    /// A peer is new, or has missed something: it hears of moves.
    pub(crate) fn tell_moves_anew(&mut self, peer: ProcessNumber) {
        let roles = self.rings.roles();
        let Some(spec) = roles.servers().get(usize::from(peer)).copied() else { return };
        if roles.transport().is_some() && (spec.transport.is_some() || spec.link.is_some()) {
            self.moving.mover.add_steerer(peer, &self.shard);
            self.moving.to_assure.push(peer);
            self.moving.stirred = true;
        }
        // Transport servers may all have died, and with them what they knew of each other's buckets.
        if roles.transport().is_none() && roles.link().is_some() && spec.transport.is_some() {
            self.moving.outward.to_tell.push(peer);
        }
    }

    /// A link server tells those who have come which moves it knows of.
    #[inline]
    pub(crate) fn tell_map(&mut self, map: Option<&Steering>) {
        for peer in std::mem::take(&mut self.moving.outward.to_tell) {
            for (bucket, version, server) in map.iter().flat_map(|map| map.moves()) {
                let moved = FlowsMoved { bucket, version, server };
                self.say(Some(peer), &Incoming::FlowsMoved(moved));
            }
            self.say(Some(peer), &Incoming::MovesTold);
        }
    }

    /// A peer is gone: what it had not taken is ours again.
    pub(crate) fn moves_without(&mut self, now: Instant, peer: ProcessNumber) {
        let spec = self.rings.roles().servers().get(usize::from(peer)).copied();
        let Core { shard, store, processes, depot, moving, .. } = self;
        moving.told.remove(&peer);
        moving.mover.remove_steerer(peer, shard);
        if let Some(server) = spec.and_then(|spec| spec.transport) {
            let hands = &mut Hands { store, processes, depot };
            let outcomes = moving.mover.remove_server(now, server, shard, hands);
            moving.stirred = true;
            for (bucket, outcome) in &outcomes {
                if *outcome == Outcome::Unheard {
                    self.end_unheard(now, server, *bucket);
                }
            }
            self.moving.outcomes.extend(outcomes);
        }
        self.moving.stirred = true;
    }
}
