//! Puts datagrams together from fragments, for both families, in bounded memory.
//!
//! The IP layers take a fragment's header apart and call [`Reassembly::handle`]; a finished
//! datagram comes back as an ordinary packet and is handled as if it had arrived whole. Read first:
//! RFC 791 section 3.2, RFC 8200 section 4.5, and RFC 5722: fragments that overlap are an attack,
//! and the datagram is dropped with all that still arrives of it. We apply that to IPv4 too. A
//! fragment that repeats another exactly is a duplicate of the network and ignored.

use std::net::IpAddr;

use hashbrown::{HashMap, HashTable};

use crate::counters::{Counter, Counters};
use crate::drop_reason::DropReason;
use crate::keys::{TableHash, address_bits};
use crate::limits::DATAGRAM_MAX;
use crate::lists::{Links, List};
use crate::slab::Slab;
use crate::socket_id::SocketId;
use crate::time::Instant;

/// How long fragments wait for the rest: Linux's time for IPv4.
const TIMEOUT_V4_US: u64 = 30_000_000;
/// RFC 8200 section 4.5: 60 seconds.
const TIMEOUT_V6_US: u64 = 60_000_000;
/// What a datagram is charged beyond its bytes, and for each piece.
const OVERHEAD_BYTES: usize = 512;
const PIECE_BYTES: usize = size_of::<Piece>();

/// Where a piece starts and ends. They lie apart and start at multiples of eight, so that a datagram has 8192 of
/// them at most.
type Piece = (u16, u16);

/// Which datagram a fragment belongs to.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct DatagramKey {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Identification; 16 bits in IPv4.
    pub identification: u32,
    /// Protocol of IPv4; 0 for IPv6, where it does not count.
    pub protocol: u8,
}

/// One fragment, its header already checked.
#[derive(Copy, Clone, Debug)]
pub struct Fragment<'a> {
    /// Its datagram.
    pub key: DatagramKey,
    /// Where its data lies in the datagram's payload, in bytes.
    pub offset: usize,
    /// More fragments follow.
    pub more: bool,
    /// All headers before the fragmented part, without the fragment header; used of the first
    /// fragment only. For IPv6 the field that named the fragment header names the next one.
    pub header: &'a [u8],
    /// Its data.
    pub data: &'a [u8],
}

/// A datagram that did not come together in time.
#[derive(Debug)]
pub struct Expired {
    /// Source of the fragments.
    pub source: IpAddr,
    /// Headers and first data, as far as the first fragment arrived.
    pub quote: Option<Vec<u8>>,
}

/// One datagram in the making.
#[derive(Debug)]
struct Datagram {
    key: DatagramKey,
    expires: Instant,
    header: Vec<u8>,
    data: Vec<u8>,
    /// Received pieces, sorted, apart.
    pieces: Vec<Piece>,
    /// Bytes in them.
    received: usize,
    /// Length, once the last piece is there.
    len: Option<usize>,
    /// An overlap was seen: swallow the rest.
    poisoned: bool,
    charged: usize,
}

/// All datagrams in the making.
#[derive(Debug)]
pub struct Reassembly {
    table: HashTable<SocketId>,
    hash: TableHash,
    datagrams: Slab<Datagram>,
    links: Links,
    /// By age; the families wait for different times.
    by_age: [List; 2],
    links_of_sources: Links,
    /// By source and age.
    per_source: HashMap<IpAddr, List, foldhash::quality::FixedState>,
    per_source_max: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Reassembly {
    /// Nothing in the making.
    pub fn new(
        seed: u64,
        datagrams_max: usize,
        per_source_max: usize,
        bytes_max: usize,
    ) -> Reassembly {
        Reassembly {
            table: HashTable::new(),
            hash: TableHash::new(seed),
            datagrams: Slab::new(datagrams_max),
            links: Links::default(),
            by_age: [List::new(); 2],
            links_of_sources: Links::default(),
            per_source: HashMap::with_hasher(foldhash::quality::FixedState::with_seed(seed)),
            per_source_max,
            bytes: 0,
            bytes_max,
        }
    }

    /// Takes a fragment; gives the datagram, with its headers, when it was the last one missing.
    ///
    /// # Errors
    /// Why the fragment was dropped, perhaps with its whole datagram.
    pub fn handle(
        &mut self,
        now: Instant,
        fragment: &Fragment<'_>,
        counters: &mut Counters,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        check(fragment)?;
        let name = match self.find(&fragment.key) {
            Some(name) => name,
            None => self.create(now, fragment.key, counters)?,
        };
        self.charge(name, fragment, counters)?;
        let Some(datagram) = self.datagrams.get_mut(name) else {
            return Err(DropReason::FragmentNoMemory);
        };
        if datagram.poisoned {
            return Err(DropReason::FragmentOverlap);
        }
        if let Err(reason) = datagram.place(fragment) {
            datagram.poison();
            self.settle(name);
            return Err(reason);
        }
        if !datagram.is_complete() {
            return Ok(None);
        }
        let finished = self.take(name).and_then(Datagram::finish);
        counters.count(Counter::DatagramsReassembled);
        finished.map(Some).ok_or(DropReason::FragmentMalformed)
    }

    /// The next datagram whose time is over at `now`, taken out.
    pub fn pop_expired(&mut self, now: Instant) -> Option<Expired> {
        let name = self.oldest()?;
        if self.datagrams.get(name)?.expires > now {
            return None;
        }
        let datagram = self.take(name)?;
        let has_first = datagram.pieces.first().is_some_and(|piece| piece.0 == 0);
        let quote = has_first.then(|| {
            let mut quote = datagram.header;
            let first_len = usize::from(datagram.pieces[0].1);
            quote.extend_from_slice(&datagram.data[..first_len]);
            quote
        });
        Some(Expired { source: datagram.key.source, quote })
    }

    /// When the next datagram's time is over.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.datagrams.get(self.oldest()?).map(|datagram| datagram.expires)
    }

    /// Begins a datagram, in the place of the oldest if need be: of the same source, if that has its share. What
    /// lacks a piece for good must not keep out what comes after it.
    fn create(
        &mut self,
        now: Instant,
        key: DatagramKey,
        counters: &mut Counters,
    ) -> Result<SocketId, DropReason> {
        let from_source = self.per_source.get(&key.source).copied().unwrap_or_default();
        if from_source.len() as usize >= self.per_source_max {
            let oldest = from_source.first().and_then(|index| self.datagrams.id_at(index));
            self.evict(oldest, counters);
        } else if self.datagrams.is_full() {
            self.evict_oldest(counters);
        }
        let timeout_us = if key.source.is_ipv4() { TIMEOUT_V4_US } else { TIMEOUT_V6_US };
        let datagram = Datagram {
            key,
            expires: now.plus_us(timeout_us),
            header: Vec::new(),
            data: Vec::new(),
            pieces: Vec::new(),
            received: 0,
            len: None,
            poisoned: false,
            charged: 0,
        };
        let name = self.datagrams.insert_with(|_| datagram).ok_or(DropReason::FragmentNoMemory)?;
        self.links.push_back(&mut self.by_age[family(&key)], name.index());
        let of_source = self.per_source.entry(key.source).or_default();
        self.links_of_sources.push_back(of_source, name.index());
        let (hasher, datagrams) = (&self.hash, &self.datagrams);
        let rehash = |name: &SocketId| datagrams.get(*name).map_or(0, |d| hash(hasher, &d.key));
        let _ = self.table.insert_unique(hash(hasher, &key), name, rehash);
        Ok(name)
    }

    /// Accounts for the memory a fragment will take; older datagrams make room.
    fn charge(
        &mut self,
        name: SocketId,
        fragment: &Fragment<'_>,
        counters: &mut Counters,
    ) -> Result<(), DropReason> {
        let datagram = self.datagrams.get(name).ok_or(DropReason::FragmentNoMemory)?;
        if datagram.poisoned {
            return Ok(());
        }
        let data_len = datagram.data.len().max(fragment.offset + fragment.data.len());
        let header_len = if fragment.offset == 0 { fragment.header.len() } else { 0 };
        let pieces_len = (datagram.pieces.len() + 1) * PIECE_BYTES;
        let wanted = OVERHEAD_BYTES + data_len + pieces_len + datagram.header.len().max(header_len);
        let more = wanted.saturating_sub(datagram.charged);
        while self.bytes + more > self.bytes_max {
            if self.oldest() == Some(name) {
                let _ = self.take(name);
                return Err(DropReason::FragmentNoMemory);
            }
            self.evict_oldest(counters);
        }
        if let Some(datagram) = self.datagrams.get_mut(name) {
            datagram.charged += more;
            self.bytes += more;
        }
        Ok(())
    }

    /// Gives back what a poisoned datagram no longer holds.
    fn settle(&mut self, name: SocketId) {
        if let Some(datagram) = self.datagrams.get_mut(name) {
            self.bytes -= datagram.charged - OVERHEAD_BYTES.min(datagram.charged);
            datagram.charged = OVERHEAD_BYTES.min(datagram.charged);
        }
    }

    fn evict_oldest(&mut self, counters: &mut Counters) {
        self.evict(self.oldest(), counters);
    }

    fn evict(&mut self, name: Option<SocketId>, counters: &mut Counters) {
        if let Some(name) = name {
            counters.count(Counter::ReassemblyEvicted);
            let _ = self.take(name);
        }
    }

    /// Takes a datagram out of everything.
    fn take(&mut self, name: SocketId) -> Option<Datagram> {
        let datagram = self.datagrams.remove(name)?;
        self.bytes -= datagram.charged;
        self.links.remove(&mut self.by_age[family(&datagram.key)], name.index());
        if let Ok(place) = self.table.find_entry(hash(&self.hash, &datagram.key), |o| *o == name) {
            let _ = place.remove();
        }
        if let Some(of_source) = self.per_source.get_mut(&datagram.key.source) {
            self.links_of_sources.remove(of_source, name.index());
            if of_source.is_empty() {
                let _ = self.per_source.remove(&datagram.key.source);
            }
        }
        Some(datagram)
    }

    /// The datagram that expires first.
    fn oldest(&self) -> Option<SocketId> {
        let first = |list: &List| self.datagrams.id_at(list.first()?);
        let names = self.by_age.iter().filter_map(first);
        names.min_by_key(|name| self.datagrams.get(*name).map(|datagram| datagram.expires))
    }

    fn find(&self, key: &DatagramKey) -> Option<SocketId> {
        let same = |name: &SocketId| self.datagrams.get(*name).is_some_and(|d| d.key == *key);
        self.table.find(hash(&self.hash, key), same).copied()
    }
}

impl Datagram {
    /// Puts a fragment in its place.
    fn place(&mut self, fragment: &Fragment<'_>) -> Result<(), DropReason> {
        let (start, end) = (fragment.offset, fragment.offset + fragment.data.len());
        let piece = (start as u16, end as u16);
        let at = self.pieces.partition_point(|other| other.0 < piece.0);
        if self.pieces.get(at) == Some(&piece) && self.data[start..end] == *fragment.data {
            return Ok(());
        }
        let meets_next = self.pieces.get(at).is_some_and(|next| next.0 < piece.1);
        let meets_previous = at > 0 && self.pieces[at - 1].1 > piece.0;
        if meets_next || meets_previous {
            return Err(DropReason::FragmentOverlap);
        }
        let last_end = self.pieces.last().map_or(0, |last| usize::from(last.1)).max(end);
        let len = if fragment.more { self.len } else { Some(end) };
        if len.is_some_and(|len| last_end > len) {
            return Err(DropReason::FragmentMalformed);
        }
        if !fragment.more && self.len.is_some_and(|len| len != end) {
            return Err(DropReason::FragmentMalformed);
        }
        self.len = len;
        if start == 0 {
            self.header.clear();
            self.header.extend_from_slice(fragment.header);
        }
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[start..end].copy_from_slice(fragment.data);
        self.pieces.insert(at, piece);
        self.received += fragment.data.len();
        Ok(())
    }

    /// Pieces lie apart, and none beyond the end.
    fn is_complete(&self) -> bool {
        self.len == Some(self.received)
    }

    fn poison(&mut self) {
        self.poisoned = true;
        self.header = Vec::new();
        self.data = Vec::new();
        self.pieces = Vec::new();
        self.received = 0;
    }

    /// Joins headers and data; the lengths in the headers are made right by the IP layer.
    fn finish(self) -> Option<Vec<u8>> {
        // The length field of IPv6 does not count the fixed header.
        let v6 = self.header.first().is_some_and(|byte| byte >> 4 == 6);
        let largest = DATAGRAM_MAX + if v6 { 40 } else { 0 };
        if self.header.len() + self.data.len() > largest {
            return None;
        }
        let mut packet = self.header;
        packet.extend_from_slice(&self.data);
        Some(packet)
    }
}

/// Refuses what cannot be part of any datagram.
fn check(fragment: &Fragment<'_>) -> Result<(), DropReason> {
    let end = fragment.offset + fragment.data.len();
    let unaligned = fragment.more && !fragment.data.len().is_multiple_of(8);
    if fragment.data.is_empty() || unaligned || end > DATAGRAM_MAX {
        return Err(DropReason::FragmentMalformed);
    }
    Ok(())
}

fn family(key: &DatagramKey) -> usize {
    usize::from(key.source.is_ipv6())
}

fn hash(hasher: &TableHash, key: &DatagramKey) -> u64 {
    let number = key.identification ^ u32::from(key.protocol) << 24;
    hasher.of_flow(address_bits(key.source), address_bits(key.destination), number)
}

#[cfg(test)]
mod tests;
