//! Which UDP socket a datagram is for: the connected one, else the most exact open one, else none;
//! for a group all that match.
//!
//! Asked by the shard for every datagram and every ICMP error about one. The rules are Linux's: four
//! matching numbers beat a specific local address, that beats all addresses of the family, and that
//! beats an IPv6 socket that takes IPv4 too. Among equals SO_REUSEPORT spreads by hash, otherwise
//! the socket opened last wins.

use std::net::{IpAddr, SocketAddr};

use hashbrown::HashMap;

use crate::error::ListenError;
use crate::keys::{TableHash, address_bits};
use crate::socket_id::SocketId;

/// What the table knows of a socket.
#[derive(Copy, Clone, Debug)]
pub struct Place {
    /// Its name.
    pub id: SocketId,
    /// Our address and port; an unspecified address stands for all of its family.
    pub local: SocketAddr,
    /// The peer of a connected socket.
    pub remote: Option<SocketAddr>,
    /// Takes no IPv4 although its address is `::`.
    pub v6only: bool,
    /// SO_REUSEADDR.
    pub reuse_address: bool,
    /// SO_REUSEPORT.
    pub reuse_port: bool,
}

impl Place {
    /// How well the local address fits a destination; `None`: not at all.
    fn rank(&self, destination: IpAddr) -> Option<u8> {
        match (self.local.ip(), destination) {
            (own, destination) if own == destination => Some(2),
            (IpAddr::V4(own), IpAddr::V4(_)) if own.is_unspecified() => Some(1),
            (IpAddr::V6(own), IpAddr::V6(_)) if own.is_unspecified() => Some(1),
            (IpAddr::V6(own), IpAddr::V4(_)) if own.is_unspecified() && !self.v6only => Some(0),
            _ => None,
        }
    }

    /// Whether some datagram could reach both.
    fn overlaps(&self, other: &Place) -> bool {
        self.rank(other.local.ip()).is_some() || other.rank(self.local.ip()).is_some()
    }

    /// Whether both agree to have overlapping addresses.
    fn shares_with(&self, other: &Place) -> bool {
        (self.reuse_address && other.reuse_address) || (self.reuse_port && other.reuse_port)
    }

    fn key(&self) -> Option<Key> {
        self.remote.map(|remote| key(self.local, remote))
    }
}

/// Addresses and ports of both ends.
type Key = (u128, u128, u32);

fn key(local: SocketAddr, remote: SocketAddr) -> Key {
    let ports = u32::from(local.port()) << 16 | u32::from(remote.port());
    (address_bits(local.ip()), address_bits(remote.ip()), ports)
}

/// Sockets of one port, in order of their opening.
#[derive(Debug, Default)]
struct Port {
    open: Vec<Place>,
    connected: Vec<Place>,
}

type Map<K, V> = HashMap<K, V, foldhash::quality::FixedState>;

/// All UDP sockets of a shard.
#[derive(Debug)]
pub struct DatagramTable {
    ports: Map<u16, Port>,
    /// Several of one key only with SO_REUSEADDR or SO_REUSEPORT.
    flows: Map<Key, Vec<SocketId>>,
    hash: TableHash,
}

impl DatagramTable {
    /// No sockets.
    pub fn new(seed: u64) -> DatagramTable {
        let state = foldhash::quality::FixedState::with_seed(seed);
        DatagramTable {
            ports: HashMap::with_hasher(state.clone()),
            flows: HashMap::with_hasher(state),
            hash: TableHash::new(seed),
        }
    }

    /// Whether a new socket may have this place.
    ///
    /// # Errors
    /// [`ListenError::AddressInUse`] when another overlaps it and they do not share.
    pub fn check(&self, new: &Place) -> Result<(), ListenError> {
        let Some(port) = self.ports.get(&new.local.port()) else { return Ok(()) };
        let mut others = port.open.iter().chain(&port.connected);
        let collides = |other: &Place| new.overlaps(other) && !new.shares_with(other);
        if others.any(collides) { Err(ListenError::AddressInUse) } else { Ok(()) }
    }

    /// Enters a socket.
    pub fn insert(&mut self, place: Place) {
        let port = self.ports.entry(place.local.port()).or_default();
        match place.key() {
            Some(key) => {
                port.connected.push(place);
                self.flows.entry(key).or_default().push(place.id);
            }
            None => port.open.push(place),
        }
    }

    /// Takes a socket out, which was entered with this place.
    pub fn remove(&mut self, place: &Place) {
        if let Some(port) = self.ports.get_mut(&place.local.port()) {
            let list = if place.remote.is_some() { &mut port.connected } else { &mut port.open };
            list.retain(|other| other.id != place.id);
            if port.open.is_empty() && port.connected.is_empty() {
                let _ = self.ports.remove(&place.local.port());
            }
        }
        let Some(key) = place.key() else { return };
        if let Some(ids) = self.flows.get_mut(&key) {
            ids.retain(|id| *id != place.id);
            if ids.is_empty() {
                let _ = self.flows.remove(&key);
            }
        }
    }

    /// The socket for a datagram from `remote` to our unicast address `local`.
    pub fn lookup(&self, local: SocketAddr, remote: SocketAddr) -> Option<SocketId> {
        if let Some(ids) = self.flows.get(&key(local, remote)) {
            return ids.last().copied();
        }
        let port = self.ports.get(&local.port())?;
        let rank_of = |place: &Place| place.rank(local.ip());
        let best = port.open.iter().filter_map(rank_of).max()?;
        let mut equals = port.open.iter().filter(|place| rank_of(place) == Some(best));
        let last = equals.clone().next_back()?;
        if !last.reuse_port {
            return Some(last.id);
        }
        let group = equals.clone().filter(|place| place.reuse_port).count() as u64;
        let (local_bits, remote_bits, ports) = key(local, remote);
        let hash = self.hash.of_flow(local_bits, remote_bits, ports);
        // The upper half, scaled: every member gets an equal part of the hashes.
        let choice = ((hash >> 32) * group) >> 32;
        let mut members = equals.by_ref().filter(|place| place.reuse_port);
        members.nth(choice as usize).map(|place| place.id)
    }

    /// Appends all sockets to `found` that a datagram from `remote` to the group or broadcast
    /// address `local` may reach.
    pub fn lookup_all(&self, local: SocketAddr, remote: SocketAddr, found: &mut Vec<SocketId>) {
        let Some(port) = self.ports.get(&local.port()) else { return };
        let matches = |place: &&Place| {
            place.rank(local.ip()).is_some() && place.remote.is_none_or(|peer| peer == remote)
        };
        found.extend(port.open.iter().chain(&port.connected).filter(matches).map(|p| p.id));
    }
}

#[cfg(test)]
mod tests;
