//! Which socket a segment belongs to: a hash table from addresses and ports to its owner.
//!
//! Asked once per segment, by the shard. One table serves both families and also TIME-WAIT
//! records, so that a connection's addresses and ports exist once.

use std::net::SocketAddr;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::keys::{TableHash, address_bits, address_from_bits};
use crate::socket_id::SocketId;

/// Addresses and ports of both ends; IPv4 in v4-mapped form.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct FlowKey {
    local: u128,
    remote: u128,
    ports: u32,
}

impl FlowKey {
    /// The flow between `local`, ours, and `remote`.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> FlowKey {
        FlowKey {
            local: address_bits(local.ip()),
            remote: address_bits(remote.ip()),
            ports: u32::from(local.port()) << 16 | u32::from(remote.port()),
        }
    }

    /// Our address and port.
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(address_from_bits(self.local), (self.ports >> 16) as u16)
    }

    /// The peer's address and port.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(address_from_bits(self.remote), self.ports as u16)
    }
}

/// Who answers for a flow.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum FlowOwner {
    /// A connection, by its name.
    Connection(SocketId),
    /// A TIME-WAIT record, by its name in the table of records.
    TimeWait(SocketId),
}

/// The table.
#[derive(Debug)]
pub struct FlowTable {
    table: HashTable<(FlowKey, FlowOwner)>,
    hash: TableHash,
}

impl FlowTable {
    /// An empty table.
    pub fn new(seed: u64) -> FlowTable {
        FlowTable { table: HashTable::new(), hash: TableHash::new(seed) }
    }

    /// The seeded hash of a flow; also decides between listeners that share a port.
    pub fn hash(&self, key: &FlowKey) -> u64 {
        self.hash.of_flow(key.local, key.remote, key.ports)
    }

    /// Who answers for the flow.
    pub fn lookup(&self, key: &FlowKey) -> Option<FlowOwner> {
        self.table.find(self.hash(key), |(other, _)| other == key).map(|(_, owner)| *owner)
    }

    /// Adds a flow; false, and nothing changed, if it has an owner.
    pub fn insert(&mut self, key: FlowKey, owner: FlowOwner) -> bool {
        match self.entry(&key) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                let _ = place.insert((key, owner));
                true
            }
        }
    }

    /// Gives a flow to `owner`, whoever had it.
    pub fn replace(&mut self, key: FlowKey, owner: FlowOwner) {
        match self.entry(&key) {
            Entry::Occupied(mut place) => place.get_mut().1 = owner,
            Entry::Vacant(place) => {
                let _ = place.insert((key, owner));
            }
        }
    }

    /// Forgets a flow if `owner` has it.
    pub fn remove(&mut self, key: &FlowKey, owner: FlowOwner) {
        if let Entry::Occupied(place) = self.entry(key)
            && place.get().1 == owner
        {
            let _ = place.remove();
        }
    }

    /// All flows, in no order: it looks at every place.
    pub fn iter(&self) -> impl Iterator<Item = (FlowKey, FlowOwner)> + '_ {
        self.table.iter().copied()
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    fn entry(&mut self, key: &FlowKey) -> Entry<'_, (FlowKey, FlowOwner)> {
        let hash = self.hash(key);
        let hasher = &self.hash;
        let rehash =
            |(key, _): &(FlowKey, FlowOwner)| hasher.of_flow(key.local, key.remote, key.ports);
        self.table.entry(hash, |(other, _)| other == key, rehash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    fn address() -> impl Strategy<Value = SocketAddr> {
        // Few values, so that flows meet; the same bits in both families.
        (any::<bool>(), 0_u8..3, 0_u16..4).prop_map(|(six, host, port)| {
            let four = Ipv4Addr::new(0, 0, 0, host);
            let addr = if six { IpAddr::V6(Ipv6Addr::from(u128::from(host))) } else { four.into() };
            SocketAddr::new(addr, port)
        })
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map(
            seed in any::<u64>(),
            steps in prop::collection::vec((0_u8..4, address(), address(), 0_u32..5), 0..300),
        ) {
            let mut table = FlowTable::new(seed);
            let mut oracle: HashMap<(SocketAddr, SocketAddr), FlowOwner> = HashMap::new();
            for (step, local, remote, name) in steps {
                let key = FlowKey::new(local, remote);
                prop_assert_eq!((key.local(), key.remote()), (local, remote));
                let owner = if name % 2 == 0 {
                    FlowOwner::Connection(SocketId::new(name, 1))
                } else {
                    FlowOwner::TimeWait(SocketId::new(name, 1))
                };
                match step {
                    0 => {
                        let fresh = !oracle.contains_key(&(local, remote));
                        prop_assert_eq!(table.insert(key, owner), fresh);
                        let _ = oracle.entry((local, remote)).or_insert(owner);
                    }
                    1 => {
                        table.replace(key, owner);
                        let _ = oracle.insert((local, remote), owner);
                    }
                    2 => {
                        table.remove(&key, owner);
                        if oracle.get(&(local, remote)) == Some(&owner) {
                            let _ = oracle.remove(&(local, remote));
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(table.lookup(&key), oracle.get(&(local, remote)).copied());
                prop_assert_eq!(table.len(), oracle.len());
            }
        }
    }
}
