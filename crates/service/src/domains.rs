//! Trust domains: one attached process tree each, with its own tables of socket records and its
//! own stream memory. Owns tokens, quotas and the way from a slot to a socket. Called by
//! `processes` (attach, descriptors of segments) and by the transport server.

use std::collections::HashMap;

use haypile_shm::table::Place;
use haypile_shm::{Arena, SocketTable};

use crate::slab::{Key, OwnSet, Slab};

/// Proves membership of a domain; whoever knows it may join.
pub type Token = [u8; 16];

/// One trust domain.
#[derive(Debug)]
pub struct Domain {
    /// Its token.
    pub token: Token,
    /// Its socket records.
    pub table: SocketTable,
    /// Its stream memory.
    pub arena: Arena,
    /// Which socket a slot belongs to.
    slots: Vec<Option<Key>>,
    /// Attached processes.
    pub processes: u32,
    /// Sockets that the kernel's word alone ends.
    pub shared: OwnSet<Key>,
    /// Some of them are in a network namespace that the service does not hear.
    pub unheard: bool,
}

/// All trust domains.
#[derive(Debug, Default)]
pub struct Domains {
    slab: Slab<Domain>,
    by_token: HashMap<Token, Key>,
}

impl Domains {
    /// The domain of a token, made if there is none.
    pub fn join(&mut self, token: Token, sockets: u32, memory: u64) -> Key {
        if let Some(key) = self.by_token.get(&token) {
            return *key;
        }
        let key = self.slab.insert(Domain {
            token,
            table: SocketTable::new(sockets),
            arena: Arena::new(memory),
            slots: Vec::new(),
            processes: 0,
            shared: OwnSet::default(),
            unheard: false,
        });
        self.by_token.insert(token, key);
        key
    }

    /// The domain of a token, if there is one.
    pub fn find(&self, token: &Token) -> Option<Key> {
        self.by_token.get(token).copied()
    }

    /// A domain.
    pub fn get(&self, key: Key) -> Option<&Domain> {
        self.slab.get(key)
    }

    /// A domain, to be changed.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut Domain> {
        self.slab.get_mut(key)
    }

    /// All domains.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &Domain)> {
        self.slab.iter()
    }

    /// Forgets a domain that has neither processes nor sockets left.
    pub fn remove_if_unused(&mut self, key: Key) {
        let Some(domain) = self.slab.get(key) else { return };
        if domain.processes == 0 && domain.table.used() == 0 {
            self.by_token.remove(&domain.token);
            self.slab.remove(key);
        }
    }

    /// Gives memory that has been free for a while back to the system, a little at a time.
    pub fn trim(&mut self, most: usize) {
        for key in self.slab.keys() {
            if let Some(domain) = self.slab.get_mut(key) {
                domain.arena.trim(most);
            }
        }
    }
}

impl Domain {
    /// Takes a slot for a socket; `None` when the quota is used up.
    pub fn allocate_slot(&mut self, socket: Key) -> Option<Place> {
        let place = self.table.allocate()?;
        let index = place.slot as usize;
        if self.slots.len() <= index {
            self.slots.resize(index + 1, None);
        }
        self.slots[index] = Some(socket);
        Some(place)
    }

    /// Gives a slot back.
    pub fn free_slot(&mut self, slot: u32) {
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            *entry = None;
        }
        self.table.free(slot);
    }

    /// The socket that an application names, if the name is current.
    pub fn socket_at(&self, slot: u32, generation: u32) -> Option<Key> {
        if !self.table.is_current(slot, generation) {
            return None;
        }
        *self.slots.get(slot as usize)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sockets_are_checked() {
        let mut keys = Slab::default();
        let socket = keys.insert(());
        let mut domains = Domains::default();
        let key = domains.join([1; 16], 2, 1 << 20);
        assert_eq!(domains.join([1; 16], 2, 1 << 20), key);
        let domain = domains.get_mut(key).unwrap();
        let place = domain.allocate_slot(socket).unwrap();
        assert_eq!(domain.socket_at(place.slot, place.generation), Some(socket));
        assert_eq!(domain.socket_at(place.slot, place.generation + 1), None);
        assert_eq!(domain.socket_at(place.slot + 1, place.generation), None);
        assert!(domain.allocate_slot(socket).is_some());
        assert!(domain.allocate_slot(socket).is_none());
        domain.free_slot(place.slot);
        domain.free_slot(place.slot + 1);
        assert_eq!(domain.socket_at(place.slot, place.generation), None);
        domains.remove_if_unused(key);
        assert!(domains.get(key).is_none());
        assert_ne!(domains.join([1; 16], 2, 1 << 20), key);
    }
}
