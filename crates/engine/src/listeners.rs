//! Who listens where: lookup by address and port, with wildcards, both families and shared ports.
//!
//! The shard asks for every SYN that belongs to no flow. The most exact listener wins: the address
//! itself, then all addresses of the family, then an IPv6 listener that takes IPv4 too (RFC 3493
//! section 5.3). Listeners that share a port (SO_REUSEPORT) are chosen by the hash of the flow. What
//! a listener holds, [`Listener`], lives in the slab of sockets.

use std::net::{IpAddr, SocketAddr};

use hashbrown::hash_table::Entry;
use hashbrown::{HashMap, HashTable};

use crate::error::ListenError;
use crate::keys::{TableHash, address_bits};
use crate::lists::List;
use crate::options::SocketOptions;
use crate::socket_id::SocketId;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    /// Address and port; an unspecified address stands for all of its family.
    pub local: SocketAddr,
    /// Takes no IPv4 although its address is `::`.
    pub v6only: bool,
    /// Connections in the accept queue may be one more than this.
    pub backlog: u32,
    /// It is not open at all servers yet: until then a SYN gets no answer.
    pub opening: bool,
    /// Options of its connections.
    pub template: SocketOptions,
    /// Connections in SYN-RECEIVED, oldest first.
    pub half_open: List,
    /// Established connections that nobody has claimed.
    pub accept_queue: List,
}

impl Listener {
    /// Whether one more connection would be too many (Linux's rule: longer than the backlog).
    pub fn is_full(&self) -> bool {
        self.accept_queue.len() > self.backlog
    }
}

/// Listeners that a packet to one place can reach.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Scope {
    /// One address.
    Exact(IpAddr),
    /// All IPv4 addresses, by an IPv4 listener.
    AllV4,
    /// All IPv6 addresses.
    AllV6,
    /// All IPv4 addresses, by an IPv6 listener.
    Mapped,
}

impl Scope {
    /// The places where a listener is entered.
    fn of(local: SocketAddr, v6only: bool) -> (Scope, Option<Scope>) {
        match local.ip() {
            IpAddr::V4(addr) if addr.is_unspecified() => (Scope::AllV4, None),
            IpAddr::V6(addr) if addr.is_unspecified() => {
                (Scope::AllV6, (!v6only).then_some(Scope::Mapped))
            }
            addr => (Scope::Exact(addr), None),
        }
    }

    fn hash(self, hash: &TableHash, port: u16) -> u64 {
        let (addr, kind) = match self {
            Scope::Exact(addr) => (address_bits(addr), 0),
            Scope::AllV4 => (0, 1),
            Scope::AllV6 => (0, 2),
            Scope::Mapped => (0, 3),
        };
        hash.of_scope(addr, kind << 16 | u32::from(port))
    }
}

/// Listeners of one place and port; several only when they share it.
#[derive(Debug)]
struct Group {
    scope: Scope,
    port: u16,
    members: Vec<SocketId>,
}

/// What is known of a listener without the slab.
#[derive(Copy, Clone, Debug)]
struct Registered {
    id: SocketId,
    local: SocketAddr,
    v6only: bool,
    reuse_port: bool,
}

impl Registered {
    /// Whether some packet could reach both.
    fn overlaps(&self, other: &Registered) -> bool {
        let takes = |one: &Registered, addr: IpAddr| match (one.local.ip(), addr) {
            (IpAddr::V4(own), IpAddr::V4(addr)) => own.is_unspecified() || own == addr,
            (IpAddr::V6(own), IpAddr::V6(addr)) => own.is_unspecified() || own == addr,
            (IpAddr::V6(own), IpAddr::V4(_)) => own.is_unspecified() && !one.v6only,
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
        };
        takes(self, other.local.ip()) || takes(other, self.local.ip())
    }
}

/// All listeners of a shard.
#[derive(Debug)]
pub struct Listeners {
    groups: HashTable<Group>,
    hash: TableHash,
    by_port: HashMap<u16, Vec<Registered>, foldhash::quality::FixedState>,
}

impl Listeners {
    /// No listeners.
    pub fn new(seed: u64) -> Listeners {
        Listeners {
            groups: HashTable::new(),
            hash: TableHash::new(seed),
            by_port: HashMap::with_hasher(foldhash::quality::FixedState::with_seed(seed)),
        }
    }

    /// Whether a new listener may have this address and port.
    ///
    /// # Errors
    /// [`ListenError::AddressInUse`] when another overlaps it and not both share.
    pub fn check(
        &self,
        local: SocketAddr,
        v6only: bool,
        reuse_port: bool,
    ) -> Result<(), ListenError> {
        let new = Registered { id: SocketId::new(0, 0), local, v6only, reuse_port };
        let collides =
            |other: &Registered| !(reuse_port && other.reuse_port) && new.overlaps(other);
        let others = self.by_port.get(&local.port()).map_or(&[][..], Vec::as_slice);
        if others.iter().any(collides) { Err(ListenError::AddressInUse) } else { Ok(()) }
    }

    /// Enters a listener that [`Listeners::check`] has passed.
    pub fn insert(&mut self, id: SocketId, local: SocketAddr, v6only: bool, reuse_port: bool) {
        let registered = Registered { id, local, v6only, reuse_port };
        self.by_port.entry(local.port()).or_default().push(registered);
        let (scope, second) = Scope::of(local, v6only);
        for scope in [Some(scope), second].into_iter().flatten() {
            match self.entry(scope, local.port()) {
                Entry::Occupied(mut place) => place.get_mut().members.push(id),
                Entry::Vacant(place) => {
                    let group = Group { scope, port: local.port(), members: vec![id] };
                    let _ = place.insert(group);
                }
            }
        }
    }

    /// Takes a listener out.
    pub fn remove(&mut self, id: SocketId, local: SocketAddr, v6only: bool) {
        if let Some(registered) = self.by_port.get_mut(&local.port()) {
            registered.retain(|other| other.id != id);
            if registered.is_empty() {
                let _ = self.by_port.remove(&local.port());
            }
        }
        let (scope, second) = Scope::of(local, v6only);
        for scope in [Some(scope), second].into_iter().flatten() {
            if let Entry::Occupied(mut place) = self.entry(scope, local.port()) {
                place.get_mut().members.retain(|member| *member != id);
                if place.get().members.is_empty() {
                    let _ = place.remove();
                }
            }
        }
    }

    /// The listener for a SYN to `local`; `flow_hash` decides between those that share the place.
    pub fn lookup(&self, local: SocketAddr, flow_hash: u64) -> Option<SocketId> {
        let (all, mapped) = match local.ip() {
            IpAddr::V4(_) => (Scope::AllV4, Some(Scope::Mapped)),
            IpAddr::V6(_) => (Scope::AllV6, None),
        };
        let scopes = [Some(Scope::Exact(local.ip())), Some(all), mapped];
        let group =
            scopes.into_iter().flatten().find_map(|scope| self.group(scope, local.port()))?;
        // The upper half, scaled: every member gets an equal part of the hashes.
        let choice = ((flow_hash >> 32) * group.members.len() as u64) >> 32;
        group.members.get(choice as usize).copied()
    }

    /// Whether someone listens on this port at any address: not to be chosen for `connect`.
    pub fn has_port(&self, port: u16) -> bool {
        self.by_port.contains_key(&port)
    }

    fn group(&self, scope: Scope, port: u16) -> Option<&Group> {
        let same = |group: &Group| group.scope == scope && group.port == port;
        self.groups.find(scope.hash(&self.hash, port), same)
    }

    fn entry(&mut self, scope: Scope, port: u16) -> Entry<'_, Group> {
        let hasher = &self.hash;
        self.groups.entry(
            scope.hash(hasher, port),
            |group| group.scope == scope && group.port == port,
            |group| group.scope.hash(hasher, group.port),
        )
    }
}

#[cfg(test)]
mod tests;
