//! The homes of processes: which transport server a new process is told to make its home, and how
//! servers that share nothing know the name under which it comes to them. Called by `attach`.
//!
//! Server 0 deals homes out, in turn for each trust domain, so that the workers of one program are
//! spread evenly whatever else starts meanwhile. A home gives names out; every server can check one,
//! because all servers of a service have the same secret. A process keeps its name when its home
//! dies and is started again, so that the other servers need not hear of it.

use std::collections::HashMap;

use haypile_engine::control::names::{ProcessName, ServerNumber};
use haypile_engine::control::proofs::Proofs;
use haypile_shm::Errno;
use haypile_shm::epoch::EPOCH_SERVERS;

use crate::domains::Token;

/// Trust domains whose turn is remembered; past that all turns start over.
const TURNS: usize = 4096;

/// Which transport server this is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub server: ServerNumber,
    /// How many there are, at least 1.
    pub servers: u16,
}

impl Default for Place {
    fn default() -> Place {
        Place { server: 0, servers: 1 }
    }
}

/// Deals out homes and names.
#[derive(Debug)]
pub struct Homes {
    place: Place,
    proofs: Proofs,
    /// The number of the next name; another in each life of a server, so that names of processes
    /// that have not come back yet are not given out again.
    number: u32,
    /// Whose turn it is among the programs, and among the processes of each domain.
    turn: u16,
    turns: HashMap<Token, u16>,
}

impl Homes {
    /// For a server at this place. `seed` differs from life to life.
    pub fn new(place: Place, secret: &[u8; 32], seed: u64) -> Homes {
        let proofs = Proofs::new(secret);
        let number = (seed >> 32) as u32;
        Homes { place, proofs, number, turn: 0, turns: HashMap::new() }
    }

    /// Where this is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Programs come to this many transport servers from now on.
    pub fn open(&mut self, servers: u16) {
        self.place.servers = servers.max(1);
    }

    /// The home of a process of a domain (zero: of one that is yet to be made). Servers other than 0
    /// send nobody away.
    pub fn deal(&mut self, domain: Token) -> ServerNumber {
        let Place { server, servers } = self.place;
        if server != 0 || servers <= 1 {
            return server;
        }
        let known = (domain != Token::default()).then(|| self.turns.get(&domain)).flatten();
        let home = known.copied().unwrap_or(self.turn) % servers;
        if known.is_none() {
            self.turn = (self.turn + 1) % servers;
        }
        if domain != Token::default() {
            if self.turns.len() >= TURNS {
                self.turns.clear();
            }
            self.turns.insert(domain, (home + 1) % servers);
        }
        home
    }

    /// A name for a process that makes this server its home; `taken` says which have been given out.
    pub fn name(&mut self, taken: impl Fn(ProcessName) -> bool) -> ProcessName {
        loop {
            self.number = self.number.wrapping_add(1);
            let name = ProcessName::new(self.place.server, self.number);
            // No name is the word 0.
            if name.word() != 0 && !taken(name) {
                return name;
            }
        }
    }

    /// What a process shows with its name.
    pub fn proof(&self, name: ProcessName, pid: i32) -> u64 {
        self.proofs.of(name, pid)
    }

    /// The name that a process brings. Whoever gave it may have left the service since, or not be known here yet.
    ///
    /// # Errors
    /// `EACCES` if it is not its own, or names no server that there may be.
    pub fn check(&self, word: u64, proof: u64, pid: i32) -> Result<ProcessName, Errno> {
        let name = ProcessName::from_word(word);
        let known = name.home() < EPOCH_SERVERS && self.proofs.holds(name, pid, proof);
        if known { Ok(name) } else { Err(Errno::EACCES) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn homes(server: u16, servers: u16) -> Homes {
        Homes::new(Place { server, servers }, &[1; 32], 5 << 32)
    }

    #[test]
    fn the_workers_of_a_program_are_spread_whatever_starts_meanwhile() {
        let mut homes = homes(0, 2);
        let (program, other) = ([7; 16], [8; 16]);
        let mut workers = [0; 2];
        for _ in 0..4 {
            workers[usize::from(homes.deal(program))] += 1;
            homes.deal([0; 16]);
            homes.deal(other);
            homes.deal(other);
            homes.deal(other);
        }
        assert_eq!(workers, [2, 2]);
        let fresh: Vec<u16> = (0..4).map(|_| homes.deal([0; 16])).collect();
        assert!(fresh == [0, 1, 0, 1] || fresh == [1, 0, 1, 0], "{fresh:?}");
    }

    #[test]
    fn a_server_that_has_come_later_gets_its_turn_once_programs_may_come() {
        let mut homes = homes(0, 1);
        assert!((0..4).all(|_| homes.deal([7; 16]) == 0));
        homes.open(3);
        let workers: Vec<u16> = (0..6).map(|_| homes.deal([7; 16])).collect();
        assert_eq!(
            [0, 1, 2].map(|one| workers.iter().filter(|home| **home == one).count()),
            [2; 3]
        );
    }

    #[test]
    fn no_more_turns_are_remembered_than_there_is_room_for() {
        let mut homes = homes(0, 3);
        for number in 0..3 * TURNS as u128 {
            assert!(homes.deal((number + 1).to_ne_bytes()) < 3);
        }
        assert!(homes.turns.len() <= TURNS);
    }

    #[test]
    fn other_servers_and_lone_ones_keep_whoever_comes() {
        assert_eq!(homes(1, 3).deal([0; 16]), 1);
        assert_eq!(homes(0, 1).deal([0; 16]), 0);
    }

    #[test]
    fn names_are_new_and_known_in_every_server() {
        let (mut home, other) = (homes(1, 2), homes(0, 2));
        let first = home.name(|_| false);
        let second = home.name(|name| name == ProcessName::new(1, first.number() + 1));
        assert_eq!((first.home(), second.number()), (1, first.number() + 2));
        let proof = home.proof(first, 33);
        assert_eq!(other.check(first.word(), proof, 33), Ok(first));
        assert_eq!(other.check(first.word(), proof, 34), Err(Errno::EACCES));
        assert_eq!(other.check(first.word(), proof ^ 1, 33), Err(Errno::EACCES));
        let stranger = ProcessName::new(EPOCH_SERVERS, 1);
        let proof = home.proof(stranger, 33);
        assert_eq!(other.check(stranger.word(), proof, 33), Err(Errno::EACCES));
    }

    #[test]
    fn a_server_that_is_started_after_others_have_left_knows_the_names_that_they_gave() {
        let (mut gone, stays) = (homes(2, 3), homes(0, 1));
        let name = gone.name(|_| false);
        assert_eq!(stays.check(name.word(), gone.proof(name, 33), 33), Ok(name));
    }

    #[test]
    fn no_name_is_zero() {
        let mut homes = homes(0, 1);
        homes.number = u32::MAX;
        assert_eq!(homes.name(|_| false).number(), 1);
    }
}
