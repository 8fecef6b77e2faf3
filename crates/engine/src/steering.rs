//! Owns which server a frame is for: a keyed hash of addresses and ports names one of 4096 buckets,
//! a map the server of each bucket. Pure. Shards ask it which flows and ports are theirs, the
//! service where frames go, and the link crate writes the same function as a program for the kernel,
//! whose tests compare both.
//!
//! | frame | goes by |
//! |---|---|
//! | TCP | addresses and ports, the same in both directions; or the peer's port alone ([`Rule`]) |
//! | UDP | our port, so that a socket has one home |
//! | ICMP errors | the packet that they quote |
//! | fragments | addresses, to the server that puts them together; those to a group to everyone |
//! | ARP and neighbour discovery | to everyone: all learn, the speaker answers |
//! | all else, and what is cut short | the speaker |
//!
//! TCP flows can move from one server to another, a bucket at a time ([`crate::migration`]); a map knows of
//! each bucket how often its flows have moved, so that news may come in any order. The rest of a bucket stays.
//!
//! The *speaker* is server 0. Read first: PIKA section 4.1.

pub mod frames;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher24;

use crate::control::names::ServerNumber;
use crate::keys::choice_key;
use frames::*;

/// Number of buckets.
pub const BUCKETS: usize = 1 << BUCKET_BITS;
/// Bits of a bucket's number.
pub const BUCKET_BITS: u32 = 12;
/// An odd multiplier with well-mixed bits: 2^64 divided by the golden ratio.
pub const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// The server that answers for all.
pub const SPEAKER: ServerNumber = 0;

/// The speaker's DHCP client hears here before it has an address.
const DHCP_CLIENT_PORT: u16 = 68;

/// What TCP goes by.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Rule {
    /// A keyed hash of both addresses and ports.
    #[default]
    Hash,
    /// The low 12 bits of the peer's port, as PIKA has it: whoever knows it can choose.
    Low12,
}

impl core::fmt::Display for Rule {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Rule::Hash => "hash",
            Rule::Low12 => "low12",
        })
    }
}

impl core::str::FromStr for Rule {
    type Err = UnknownRule;

    fn from_str(text: &str) -> Result<Rule, UnknownRule> {
        match text {
            "hash" => Ok(Rule::Hash),
            "low12" => Ok(Rule::Low12),
            _ => Err(UnknownRule),
        }
    }
}

/// A text that names no [`Rule`].
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct UnknownRule;

/// Whom a frame is for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// One server.
    Server(ServerNumber),
    /// Every server.
    Everyone,
}

/// How frames are spread over servers.
#[derive(Clone, PartialEq, Eq)]
pub struct Steering {
    key: u64,
    rule: Rule,
    servers: u16,
    /// The servers that got buckets at the start; those that came later have none but by moves.
    spread_over: u16,
    /// The servers that are to stay: all, unless some are about to leave.
    staying: u16,
    /// The server of each bucket.
    owners: Box<[ServerNumber; BUCKETS]>,
    /// Where the TCP flows of buckets are now, once one has moved.
    moves: Option<Box<Moves>>,
}

/// TCP flows may move to another server and back; UDP ports and fragments stay where their buckets are.
#[derive(Clone, PartialEq, Eq)]
struct Moves {
    /// The server of each bucket's flows; means nothing where the version is 0.
    servers: [ServerNumber; BUCKETS],
    /// How often the flows of each bucket have moved.
    versions: [u32; BUCKETS],
}

impl core::fmt::Debug for Steering {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Neither the key, which is a secret, nor four thousand numbers.
        write!(f, "Steering({:?} over {} servers)", self.rule, self.servers)
    }
}

/// What a frame goes by.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Kind {
    /// A TCP flow, by its bucket.
    Flow(u16),
    /// A UDP port, by its bucket.
    Port(u16),
    /// A fragment: the bucket of its addresses.
    Fragment(u16),
    /// For the DHCP client.
    Dhcp(u16),
    /// ARP and neighbour discovery.
    Neighbours,
    /// The speaker's.
    Other,
}

/// Whose packet is looked at.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Sender {
    /// The packet has come to us.
    Peer,
    /// It is ours, quoted by an error about it.
    Us,
}

impl Steering {
    /// Gives each of `servers` (1 at least) a run of buckets of equal length, give or take one. The
    /// key is a secret, so that nobody outside can choose what falls into one bucket.
    pub fn new(key: u64, rule: Rule, servers: u16) -> Steering {
        let servers = servers.max(1);
        let owner = |bucket: usize| ((bucket * usize::from(servers)) >> BUCKET_BITS) as u16;
        let mut owners = Box::new([0; BUCKETS]);
        for (bucket, place) in owners.iter_mut().enumerate() {
            *place = owner(bucket);
        }
        let (spread_over, staying) = (servers, servers);
        Steering { key, rule, servers, spread_over, staying, owners, moves: None }
    }

    /// There are so many servers now, 1 at least, of which so many are to stay. New ones have no bucket until
    /// one moves to them; those that are there no more must have none.
    pub fn set_servers(&mut self, servers: u16, staying: u16) {
        (self.servers, self.staying) = (servers.max(1), staying.clamp(1, servers.max(1)));
    }

    /// The servers from `servers` (1 at least) on give their buckets up to the others, with ports and fragments;
    /// of flows, those of buckets that have never moved.
    pub fn fold(&mut self, servers: u16) {
        let servers = servers.max(1);
        self.spread_over = self.spread_over.min(servers);
        for owner in self.owners.iter_mut().filter(|owner| **owner >= servers) {
            *owner %= servers;
        }
    }

    /// As another map of the same service has it: who there is, and whose ports and fragments are.
    pub fn follow(&mut self, other: &Steering) {
        self.set_servers(other.servers, other.staying);
        if other.spread_over < self.spread_over {
            self.fold(other.spread_over);
        }
    }

    /// The key that belongs to the secret of a service; the same in all its servers.
    pub fn key_of(secret: &[u8; 32]) -> u64 {
        SipHasher24::new_with_key(&choice_key(secret)).hash(b"steering")
    }

    /// The same spread with other numbers, such as those of the queues from which the servers get
    /// their frames: `number_of` is given a bucket and its server.
    pub fn renumbered(&self, number_of: impl Fn(u16, ServerNumber) -> u16) -> Steering {
        let mut other = Steering { moves: None, ..self.clone() };
        for (bucket, owner) in other.owners.iter_mut().enumerate() {
            *owner = number_of(bucket as u16, *owner);
        }
        other.servers = other.owners.iter().max().map_or(1, |most| most + 1);
        (other.spread_over, other.staying) = (other.servers, other.servers);
        other
    }

    /// The key.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// What TCP goes by.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// How many servers there are.
    pub fn servers(&self) -> u16 {
        self.servers
    }

    /// How many of them are to stay.
    pub fn staying(&self) -> u16 {
        self.staying
    }

    /// The server of each bucket.
    pub fn owners(&self) -> &[ServerNumber; BUCKETS] {
        &self.owners
    }

    /// Gives a bucket, 0..[`BUCKETS`], to another server.
    pub fn move_bucket(&mut self, bucket: u16, server: ServerNumber) {
        self.owners[usize::from(bucket) % BUCKETS] = server;
    }

    /// The server of a bucket.
    pub fn owner_of(&self, bucket: u16) -> ServerNumber {
        self.owners[usize::from(bucket) % BUCKETS]
    }

    /// The server of a bucket's TCP flows.
    pub fn owner_of_flows(&self, bucket: u16) -> ServerNumber {
        let bucket = usize::from(bucket) % BUCKETS;
        match &self.moves {
            Some(moves) if moves.versions[bucket] > 0 => moves.servers[bucket],
            _ => self.owners[bucket],
        }
    }

    /// How often the flows of a bucket have moved, as far as this map knows.
    pub fn version_of_flows(&self, bucket: u16) -> u32 {
        self.moves.as_ref().map_or(0, |moves| moves.versions[usize::from(bucket) % BUCKETS])
    }

    /// The flows of a bucket are with `server` by move number `version`. False, and nothing changed, if
    /// that is no news: whoever hears of moves in any order, and more than once, ends with the same map.
    pub fn move_flows(&mut self, bucket: u16, version: u32, server: ServerNumber) -> bool {
        if version <= self.version_of_flows(bucket) || server >= self.servers {
            return false;
        }
        let nothing = || Box::new(Moves { servers: [0; BUCKETS], versions: [0; BUCKETS] });
        let moves = self.moves.get_or_insert_with(nothing);
        moves.servers[usize::from(bucket) % BUCKETS] = server;
        moves.versions[usize::from(bucket) % BUCKETS] = version;
        true
    }

    /// What a server that starts has to be told: buckets whose flows have moved, how often, and where to.
    pub fn moves(&self) -> impl Iterator<Item = (u16, u32, ServerNumber)> + '_ {
        self.moves.iter().flat_map(|moves| {
            let moved = moves.versions.iter().zip(&moves.servers).enumerate();
            moved
                .filter(|(_, (version, _))| **version > 0)
                .map(|(bucket, (version, server))| (bucket as u16, *version, *server))
        })
    }

    /// The bucket that decides about a frame: all that the kernel's program knows. `None`, which
    /// means the speaker, for what goes by no bucket.
    pub fn bucket(&self, frame: &[u8]) -> Option<u16> {
        match self.kind(frame)? {
            Kind::Flow(bucket)
            | Kind::Port(bucket)
            | Kind::Fragment(bucket)
            | Kind::Dhcp(bucket) => Some(bucket),
            Kind::Neighbours | Kind::Other => None,
        }
    }

    /// What the kernel's program says of a frame: the owner of its bucket, or the speaker. It does not
    /// follow flows that move; whoever takes the frame from the queue does.
    pub fn queue(&self, frame: &[u8]) -> u16 {
        self.bucket(frame).map_or(SPEAKER, |bucket| self.owner_of(bucket))
    }

    /// Whom a frame from outside is for.
    pub fn destination(&self, frame: &[u8]) -> Destination {
        let is_group = frame.first().is_some_and(|first| first & 1 != 0);
        self.settle(self.kind(frame).unwrap_or(Kind::Other), is_group)
    }

    /// Whom an IP packet is for: one that was put together from fragments, or goes from one of us to
    /// another.
    pub fn destination_of_packet(&self, packet: &[u8]) -> Destination {
        let kind = match packet.first().map(|first| first >> 4) {
            Some(4) => self.kind_v4(packet, 0),
            Some(6) => self.kind_v6(packet, 0),
            _ => None,
        };
        self.settle(kind.unwrap_or(Kind::Other), false)
    }

    /// Whether a server has UDP ports, and the groups of fragments that go with their buckets.
    pub fn has_ports(&self, server: ServerNumber) -> bool {
        server < self.spread_over
    }

    /// Whether a server has the flows of any bucket.
    pub fn has_flows(&self, server: ServerNumber) -> bool {
        match &self.moves {
            None => self.has_ports(server),
            Some(_) => (0..BUCKETS as u16).any(|bucket| self.owner_of_flows(bucket) == server),
        }
    }

    /// A server that has what this one lacks, and stays.
    pub fn stand_in_for(&self, server: ServerNumber) -> ServerNumber {
        server % self.spread_over.min(self.staying)
    }

    /// The server of a TCP flow.
    pub fn owner_of_flow(&self, local: SocketAddr, remote: SocketAddr) -> ServerNumber {
        self.owner_of_flows(self.bucket_of_flow(local, remote))
    }

    /// The bucket of a TCP flow.
    pub fn bucket_of_flow(&self, local: SocketAddr, remote: SocketAddr) -> u16 {
        match self.rule {
            Rule::Low12 => low12(remote.port()),
            Rule::Hash => {
                let hash = match (local.ip(), remote.ip()) {
                    (IpAddr::V4(one), IpAddr::V4(other)) => {
                        mix(self.key, u32::from(one) ^ u32::from(other))
                    }
                    (one, other) => {
                        let (one, other) = (octets_v6(one), octets_v6(other));
                        self.hash_v6(|at| word(&one, at), |at| word(&other, at)).unwrap_or(0)
                    }
                };
                finish(hash, both_ports(local.port(), remote.port()))
            }
        }
    }

    /// The home of a UDP port of ours.
    pub fn owner_of_port(&self, port: u16) -> ServerNumber {
        match port {
            DHCP_CLIENT_PORT => SPEAKER,
            port => self.owner_of(self.bucket_of_port(port)),
        }
    }

    /// Whether the server of a flow depends on our port, so that another port can be chosen.
    pub fn depends_on_local_port(&self) -> bool {
        self.rule == Rule::Hash
    }

    fn settle(&self, kind: Kind, is_group: bool) -> Destination {
        match kind {
            Kind::Neighbours => Destination::Everyone,
            // Only members of the group would put them together, and nobody here knows who they are.
            Kind::Fragment(_) if is_group => Destination::Everyone,
            Kind::Flow(bucket) => Destination::Server(self.owner_of_flows(bucket)),
            Kind::Port(bucket) | Kind::Fragment(bucket) => {
                Destination::Server(self.owner_of(bucket))
            }
            Kind::Dhcp(_) | Kind::Other => Destination::Server(SPEAKER),
        }
    }

    fn kind(&self, frame: &[u8]) -> Option<Kind> {
        let mut ip = ETHERNET_HEADER_LEN;
        for _ in 0..TAGS_MAX {
            if TYPES_VLAN.contains(&half(frame, ip - 2)?) {
                ip += VLAN_TAG_LEN;
            }
        }
        match half(frame, ip - 2)? {
            TYPE_IPV4 => self.kind_v4(frame, ip),
            TYPE_IPV6 => self.kind_v6(frame, ip),
            TYPE_ARP => Some(Kind::Neighbours),
            _ => None,
        }
    }

    fn kind_v4(&self, frame: &[u8], ip: usize) -> Option<Kind> {
        let hash = self.hash_v4_at(frame, ip)?;
        if half(frame, ip + 6)? & FRAGMENT_BITS_V4 != 0 {
            return Some(Kind::Fragment(finish(hash, 0)));
        }
        let protocol = *frame.get(ip + 9)?;
        let at = ip + usize::from(*frame.get(ip)? & 0x0f) * 4;
        if protocol != ICMP {
            return self.kind_of_transport(frame, at, protocol, hash, Sender::Peer);
        }
        match frame.get(at)? {
            kind if ERRORS_V4.contains(kind) => self.kind_of_quote_v4(frame, at + ICMP_HEADER_LEN),
            _ => Some(Kind::Other),
        }
    }

    fn kind_of_quote_v4(&self, frame: &[u8], ip: usize) -> Option<Kind> {
        let hash = self.hash_v4_at(frame, ip)?;
        if half(frame, ip + 6)? & OFFSET_BITS_V4 != 0 {
            return Some(Kind::Other);
        }
        let protocol = *frame.get(ip + 9)?;
        let at = ip + usize::from(*frame.get(ip)? & 0x0f) * 4;
        self.kind_of_transport(frame, at, protocol, hash, Sender::Us)
    }

    fn kind_v6(&self, frame: &[u8], ip: usize) -> Option<Kind> {
        let hash = self.hash_v6_at(frame, ip)?;
        let (mut next, mut at) = (*frame.get(ip + 6)?, ip + IPV6_HEADER_LEN);
        for _ in 0..EXTENSIONS_MAX {
            if EXTENSIONS.contains(&next) {
                next = *frame.get(at)?;
                at += (usize::from(*frame.get(at + 1)?) + 1) * 8;
            } else if next == FRAGMENT {
                if half(frame, at + 2)? & FRAGMENT_BITS_V6 != 0 {
                    return Some(Kind::Fragment(finish(hash, 0)));
                }
                next = *frame.get(at)?;
                at += FRAGMENT_HEADER_LEN;
            } else {
                break;
            }
        }
        if next != ICMPV6 {
            return self.kind_of_transport(frame, at, next, hash, Sender::Peer);
        }
        match *frame.get(at)? {
            kind if kind & NO_ERROR_V6 == 0 => self.kind_of_quote_v6(frame, at + ICMP_HEADER_LEN),
            kind if DISCOVERY.contains(&kind) => Some(Kind::Neighbours),
            _ => Some(Kind::Other),
        }
    }

    /// What we send has a fragment header and no other extension.
    fn kind_of_quote_v6(&self, frame: &[u8], ip: usize) -> Option<Kind> {
        let hash = self.hash_v6_at(frame, ip)?;
        let (mut next, mut at) = (*frame.get(ip + 6)?, ip + IPV6_HEADER_LEN);
        if next == FRAGMENT {
            if half(frame, at + 2)? & OFFSET_BITS_V6 != 0 {
                return Some(Kind::Other);
            }
            next = *frame.get(at)?;
            at += FRAGMENT_HEADER_LEN;
        }
        self.kind_of_transport(frame, at, next, hash, Sender::Us)
    }

    fn kind_of_transport(
        &self,
        frame: &[u8],
        at: usize,
        protocol: u8,
        hash: u64,
        sender: Sender,
    ) -> Option<Kind> {
        if protocol != TCP && protocol != UDP {
            return Some(Kind::Other);
        }
        let (source, destination) = (half(frame, at)?, half(frame, at + 2)?);
        let (peer, ours) = match sender {
            Sender::Peer => (source, destination),
            Sender::Us => (destination, source),
        };
        Some(match (protocol, self.rule) {
            (UDP, _) if ours == DHCP_CLIENT_PORT => Kind::Dhcp(self.bucket_of_port(ours)),
            (UDP, _) => Kind::Port(self.bucket_of_port(ours)),
            (_, Rule::Hash) => Kind::Flow(finish(hash, both_ports(source, destination))),
            (_, Rule::Low12) => Kind::Flow(low12(peer)),
        })
    }

    fn bucket_of_port(&self, port: u16) -> u16 {
        match self.rule {
            Rule::Hash => finish(self.key, port.into()),
            Rule::Low12 => low12(port),
        }
    }

    fn hash_v4_at(&self, frame: &[u8], ip: usize) -> Option<u64> {
        Some(mix(self.key, word(frame, ip + 12)? ^ word(frame, ip + 16)?))
    }

    fn hash_v6_at(&self, frame: &[u8], ip: usize) -> Option<u64> {
        self.hash_v6(|at| word(frame, ip + 8 + at), |at| word(frame, ip + 24 + at))
    }

    fn hash_v6(
        &self,
        one: impl Fn(usize) -> Option<u32>,
        other: impl Fn(usize) -> Option<u32>,
    ) -> Option<u64> {
        let mut hash = self.key;
        for at in [0, 4, 8, 12] {
            hash = mix(hash, one(at)? ^ other(at)?);
        }
        Some(hash)
    }
}

fn octets_v6(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}

/// Both ports as one number that is the same in both directions.
fn both_ports(one: u16, other: u16) -> u32 {
    u32::from(one ^ other) << 16 | u32::from(one.wrapping_add(other))
}

fn low12(port: u16) -> u16 {
    port & (BUCKETS as u16 - 1)
}

fn mix(hash: u64, part: u32) -> u64 {
    let product = hash.wrapping_add(u64::from(part)).wrapping_mul(MULTIPLIER);
    product ^ product >> 32
}

fn finish(hash: u64, part: u32) -> u16 {
    (mix(hash, part).wrapping_mul(MULTIPLIER) >> (64 - BUCKET_BITS)) as u16
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*bytes))
}
