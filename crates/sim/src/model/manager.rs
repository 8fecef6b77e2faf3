//! A connection manager: the interface, and the abstract one, which may make any choice that a real
//! one could make.
//!
//! It knows nothing of estimates and weights: any acceptor of its own and the best of any other
//! manager will do. So what holds for it holds for every balancing scheme.

use std::fmt::Debug;
use std::hash::{Hash, Hasher};

use haypile_engine::control::messages::{ToManager, ToTransport};
use haypile_engine::control::names::ConnectionName;

use super::state::{QUEUE, SIDE, connection_name, connection_of, process_name, process_of};
use super::{Design, Shape};

/// What the model asks of a connection manager.
pub trait Manager: Sized {
    /// What managers say to each other.
    type Between: Copy + Debug + Hash;

    /// The manager of this number, that knows nothing.
    fn new(shape: &Shape, number: u8) -> Self;
    /// A message of a transport server.
    fn handle(&mut self, message: ToManager);
    /// A message of another manager.
    fn handle_between(&mut self, from: u8, message: Self::Between);
    /// Another manager has restarted and knows nothing.
    fn handle_restart_of(&mut self, other: u8);
    /// The choices open to it: connection and process. None if it has made them already.
    fn choices(&self, out: &mut Vec<(u8, u8)>);
    /// Makes a choice.
    fn assign(&mut self, connection: u8, process: u8);
    /// Offers that may time out now, and whatever else is a matter of time, by a number of its own.
    fn timers(&self, out: &mut Vec<u8>);
    /// Time has come.
    fn expire(&mut self, timer: u8);
    /// What it says to transport servers and to managers, since it was last asked.
    fn poll(&mut self, to_transport: &mut Vec<ToTransport>, between: &mut Vec<(u8, Self::Between)>);
    /// The present number of each process's registration: only how far another is behind counts.
    fn serials(managers: &[Self; SIDE]) -> [u8; SIDE];
    /// Everything that decides what it will do, in a form that does not depend on history.
    fn digest<H: Hasher>(&self, serials: &[u8; SIDE], hasher: &mut H);
    /// The same of a message between managers.
    fn digest_word<H: Hasher>(word: &Self::Between, serials: &[u8; SIDE], hasher: &mut H);
}

/// Where a connection is on its way.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Unknown,
    Waiting(u8),
    Offered(u8, Best),
    /// As `Offered`, but it is to be taken back, as it was not claimed in time.
    Revoking(u8, Best),
}

/// The best acceptor of a manager, and which of its registrations that is.
pub type Best = (u8, u8);

/// What abstract managers say to each other.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Word {
    /// My best acceptor.
    Best(Best),
    /// I have none.
    Nobody,
    /// Your acceptor did not claim in time, or refused.
    Late(Best),
    /// Your acceptor could not be reached.
    Full(Best),
}

/// Any connection manager.
#[derive(Clone)]
pub struct AnyManager {
    number: u8,
    /// Transport servers that listen.
    open: u8,
    /// Acceptors at home here, oldest registration first.
    acceptors: Vec<Best>,
    /// How often each process has registered here, modulo `VOID`.
    registrations: [u8; SIDE],
    /// Processes that could take no more, a bit each.
    full: u8,
    pending: [Stage; SIDE],
    /// What the others said.
    best: [Option<Best>; SIDE],
    /// What the others were told.
    said: Option<Best>,
    to_transport: Vec<ToTransport>,
    between: Vec<(u8, Word)>,
    shape: Shape,
}

/// The number of a registration with a manager that is no more; the others are below, and used
/// again when so many have passed that no message of the old one can be left.
const VOID: u8 = 16;

fn relative(best: Best, serials: &[u8; SIDE]) -> Best {
    if best.1 == VOID {
        return best;
    }
    (best.0, serials[usize::from(best.0)].wrapping_sub(best.1) % VOID)
}

/// The timer that lets full processes be tried again; the others are connections.
const TRY_AGAIN: u8 = u8::MAX;

impl Manager for AnyManager {
    type Between = Word;

    fn new(shape: &Shape, number: u8) -> AnyManager {
        AnyManager {
            number,
            open: 0,
            acceptors: Vec::new(),
            registrations: [0; SIDE],
            full: 0,
            pending: [Stage::Unknown; SIDE],
            best: [None; SIDE],
            said: None,
            to_transport: Vec::new(),
            between: Vec::new(),
            shape: *shape,
        }
    }

    fn handle(&mut self, message: ToManager) {
        if self.is_of_another_life(&message) {
            return;
        }
        match message {
            ToManager::ListenerOpened { server, .. } => self.open |= 1 << server,
            ToManager::ListenerClosed { server, .. } => self.closed(server as u8),
            ToManager::Acceptor { process, .. } => self.register(process_of(process)),
            ToManager::NotAcceptor { process, .. } | ToManager::ProcessDied { process } => {
                self.acceptors.retain(|&(other, _)| other != process_of(process));
            }
            ToManager::Arrived { connection, .. } => {
                if self.has_moved(connection) {
                    return;
                }
                self.set(connection_of(connection), Stage::Waiting(connection.server as u8));
            }
            ToManager::Claimed { connection, .. } => {
                if let Some((process, _)) = self.offered_to(connection_of(connection)) {
                    self.full &= !(1 << process);
                }
                self.set(connection_of(connection), Stage::Unknown);
            }
            ToManager::Revoked { connection } => self.revoked(connection_of(connection)),
            ToManager::Refused { connection } => self.refused(connection_of(connection)),
            ToManager::OfferFailed { connection } => self.failed(connection_of(connection)),
            ToManager::Gone { connection } => self.set(connection_of(connection), Stage::Unknown),
            ToManager::Served { .. } | ToManager::Open { .. } => {}
            ToManager::ServerGone { server } => self.server_gone(server as u8),
        }
        self.say_best(false);
    }

    fn handle_between(&mut self, from: u8, message: Word) {
        match message {
            Word::Best(best) => {
                self.best[usize::from(from)] = Some(best);
                self.full &= !(1 << best.0);
            }
            Word::Nobody => self.best[usize::from(from)] = None,
            Word::Late(best) => self.remove_registration(best),
            Word::Full(best) => {
                if self.acceptors.contains(&best) {
                    self.full |= 1 << best.0;
                }
            }
        }
        self.say_best(false);
    }

    fn handle_restart_of(&mut self, other: u8) {
        if self.design().registrations_end_with_their_manager {
            let shape = self.shape;
            for stage in &mut self.pending {
                if let Stage::Offered(_, best) | Stage::Revoking(_, best) = stage
                    && shape.manager_of(shape.home(best.0)) == other
                {
                    best.1 = VOID;
                }
            }
        }
        self.best[usize::from(other)] = None;
        if self.design().best_said_anew
            && let Some(best) = self.said
        {
            self.between.push((other, Word::Best(best)));
        }
    }

    fn choices(&self, out: &mut Vec<(u8, u8)>) {
        for (connection, stage) in (0..).zip(&self.pending) {
            if matches!(stage, Stage::Waiting(_)) {
                let candidates = self.candidates();
                out.extend((0..8).filter(|p| candidates & (1 << p) != 0).map(|p| (connection, p)));
            }
        }
    }

    fn assign(&mut self, connection: u8, process: u8) {
        let Stage::Waiting(server) = self.pending[usize::from(connection)] else { return };
        let Some(best) = self.registration(process) else { return };
        self.set(connection, Stage::Offered(server, best));
        self.to_transport.push(ToTransport::Offer {
            listener: QUEUE,
            connection: connection_name(server, connection),
            process: process_name(&self.shape, process),
        });
    }

    fn timers(&self, out: &mut Vec<u8>) {
        for (connection, stage) in (0..).zip(&self.pending) {
            let Stage::Offered(_, (process, _)) = *stage else { continue };
            // Taking it from the only acceptor would help no one; but of another manager's
            // acceptors only one is known here.
            if self.is_remote(process) || self.candidates() & !(1 << process) != 0 {
                out.push(connection);
            }
        }
        if self.full != 0 && self.design().full_ones_are_tried_again {
            out.push(TRY_AGAIN);
        }
    }

    fn expire(&mut self, timer: u8) {
        if timer == TRY_AGAIN {
            self.full = 0;
        } else if let Stage::Offered(server, best) = self.pending[usize::from(timer)] {
            if !self.design().dropped_when_revoked {
                self.drop_acceptor(best);
            }
            self.set(timer, Stage::Revoking(server, best));
            self.to_transport.push(ToTransport::Revoke {
                connection: connection_name(server, timer),
                process: process_name(&self.shape, best.0),
            });
        }
        self.say_best(false);
    }

    fn poll(&mut self, to_transport: &mut Vec<ToTransport>, between: &mut Vec<(u8, Word)>) {
        to_transport.append(&mut self.to_transport);
        between.append(&mut self.between);
    }

    fn serials(managers: &[Self; SIDE]) -> [u8; SIDE] {
        let shape = &managers[0].shape;
        let home = |process| usize::from(shape.manager_of(shape.home(process as u8)));
        std::array::from_fn(|process| managers[home(process)].registrations[process])
    }

    fn digest<H: Hasher>(&self, serials: &[u8; SIDE], hasher: &mut H) {
        let age = |best: Best| relative(best, serials);
        (self.open, self.full, self.said.map(age)).hash(hasher);
        self.acceptors.len().hash(hasher);
        self.acceptors.iter().for_each(|best| age(*best).hash(hasher));
        self.best.map(|best| best.map(age)).hash(hasher);
        for stage in self.pending {
            match stage {
                Stage::Unknown => 0u8.hash(hasher),
                Stage::Waiting(server) => (1u8, server).hash(hasher),
                Stage::Offered(server, best) => (2u8, server, age(best)).hash(hasher),
                Stage::Revoking(server, best) => (3u8, server, age(best)).hash(hasher),
            }
        }
    }

    fn digest_word<H: Hasher>(word: &Word, serials: &[u8; SIDE], hasher: &mut H) {
        let (kind, best) = match *word {
            Word::Best(best) => (0u8, best),
            Word::Nobody => return 9u8.hash(hasher),
            Word::Late(best) => (1, best),
            Word::Full(best) => (2, best),
        };
        (kind, relative(best, serials)).hash(hasher);
    }
}

impl AnyManager {
    /// Its arrival at its first server is heard of after that at the one it was moved to.
    fn has_moved(&self, connection: ConnectionName) -> bool {
        let number = connection_of(connection);
        let first = u16::from(number % self.shape.transports) == connection.server;
        first && self.pending[usize::from(number)] != Stage::Unknown
    }

    /// The end of a connection that has been moved may be told after its arrival at the new server.
    fn is_of_another_life(&self, message: &ToManager) -> bool {
        let (ToManager::Claimed { connection, .. }
        | ToManager::Revoked { connection }
        | ToManager::Refused { connection }
        | ToManager::OfferFailed { connection }
        | ToManager::Gone { connection }) = *message
        else {
            return false;
        };
        match self.pending[usize::from(connection_of(connection))] {
            Stage::Unknown => false,
            Stage::Waiting(server) | Stage::Offered(server, _) | Stage::Revoking(server, _) => {
                u16::from(server) != connection.server
            }
        }
    }

    fn design(&self) -> Design {
        self.shape.design
    }

    fn set(&mut self, connection: u8, stage: Stage) {
        self.pending[usize::from(connection)] = stage;
    }

    fn is_remote(&self, process: u8) -> bool {
        let shape = &self.shape;
        shape.manager_of(shape.home(process)) != self.number
    }

    fn candidates(&self) -> u8 {
        let best = self.best.iter().flatten();
        let all = self.acceptors.iter().chain(best).fold(0, |mask, &(p, _)| mask | 1 << p);
        all & !self.full
    }

    fn registration(&self, process: u8) -> Option<Best> {
        let mut all = self.acceptors.iter().chain(self.best.iter().flatten());
        all.find(|best| best.0 == process).copied()
    }

    fn offered_to(&self, connection: u8) -> Option<Best> {
        match self.pending[usize::from(connection)] {
            Stage::Offered(_, best) | Stage::Revoking(_, best) => Some(best),
            _ => None,
        }
    }

    fn register(&mut self, process: u8) {
        if self.open == 0 {
            return;
        }
        let count = &mut self.registrations[usize::from(process)];
        *count = (*count + 1) % VOID;
        let entry = (process, *count);
        match self.acceptors.iter_mut().find(|(other, _)| *other == process) {
            Some(known) => *known = entry,
            None => self.acceptors.push(entry),
        }
        self.full &= !(1 << process);
    }

    /// An offer has ended without a claim.
    fn back(&mut self, connection: u8, returns: bool) {
        if let Stage::Offered(server, _) | Stage::Revoking(server, _) =
            self.pending[usize::from(connection)]
        {
            let open = self.open & (1 << server) != 0;
            let stage = if returns && open { Stage::Waiting(server) } else { Stage::Unknown };
            self.set(connection, stage);
        }
    }

    fn revoked(&mut self, connection: u8) {
        if let Stage::Revoking(_, best) = self.pending[usize::from(connection)] {
            self.drop_acceptor(best);
        }
        self.back(connection, true);
    }

    fn refused(&mut self, connection: u8) {
        if let Some(best) = self.offered_to(connection) {
            self.drop_acceptor(best);
        }
        self.back(connection, self.design().refused_returns);
    }

    fn failed(&mut self, connection: u8) {
        if let Some(best) = self.offered_to(connection) {
            self.full |= 1 << best.0;
            if let Some(home) = self.home_elsewhere(best.0) {
                self.between.push((home, Word::Full(best)));
            }
        }
        self.back(connection, self.design().failed_offer_returns);
    }

    /// The manager of a process's home, unless this is it.
    fn home_elsewhere(&self, process: u8) -> Option<u8> {
        let shape = &self.shape;
        self.is_remote(process).then(|| shape.manager_of(shape.home(process)))
    }

    /// The process did not claim in time, or refused: it has to register again.
    fn drop_acceptor(&mut self, best: Best) {
        match self.home_elsewhere(best.0) {
            None => self.remove_registration(best),
            Some(home) => {
                let known = &mut self.best[usize::from(home)];
                *known = known.filter(|other| *other != best);
                if self.design().home_hears_of_time_outs {
                    self.between.push((home, Word::Late(best)));
                }
            }
        }
    }

    /// Takes a process off the list, unless it has registered again since.
    fn remove_registration(&mut self, best: Best) {
        let exact = self.design().time_outs_name_the_registration;
        let is_it = |other: &Best| other.0 == best.0 && (!exact || other.1 == best.1);
        self.acceptors.retain(|other| !is_it(other));
    }

    fn closed(&mut self, server: u8) {
        self.open &= !(1 << server);
        self.forget_connections_of(server);
        if self.open == 0 {
            self.acceptors.clear();
        }
    }

    fn server_gone(&mut self, server: u8) {
        self.open &= !(1 << server);
        self.forget_connections_of(server);
        let shape = self.shape;
        self.acceptors.retain(|&(process, _)| shape.home(process) != server);
    }

    fn forget_connections_of(&mut self, server: u8) {
        for stage in &mut self.pending {
            let of = match *stage {
                Stage::Unknown => continue,
                Stage::Waiting(of) | Stage::Offered(of, _) | Stage::Revoking(of, _) => of,
            };
            if of == server {
                *stage = Stage::Unknown;
            }
        }
    }

    fn say_best(&mut self, anew: bool) {
        let full = self.full;
        let best = self.acceptors.iter().copied().find(|(process, _)| full & (1 << process) == 0);
        if best == self.said && !anew {
            return;
        }
        self.said = best;
        let word = best.map_or(Word::Nobody, Word::Best);
        for other in (0..self.shape.managers).filter(|other| *other != self.number) {
            self.between.push((other, word));
        }
    }
}
