//! Values that a stranger must not guess, from keyed hashes: initial sequence numbers (RFC 6528),
//! timestamp offsets (RFC 7323 section 5.4), the choice of local ports (RFC 6056) and SYN cookies
//! (RFC 4987).
//!
//! Also the seeded, fast hash of the tables, which needs no more than to spread well for those who
//! do not know the seed. Called by the shard when it opens connections.

use core::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use foldhash::SharedSeed;
use foldhash::quality::FoldHasher;
use siphasher::sip::SipHasher24;

use crate::tcp::SeqNumber;
use crate::time::Instant;

/// What a hash is for: the same words give unrelated values for different purposes. All purposes of both keys
/// stand here, as whoever hashes begins with one.
const FOR_SEQUENCE: u8 = 1;
const FOR_TIMESTAMPS: u8 = 2;
const FOR_PORT_OFFSET: u8 = 3;
const FOR_PORT_COUNTER: u8 = 4;
const FOR_NUMBERS: u8 = 5;
const FOR_COOKIES: u8 = 6;
pub(crate) const FOR_PROCESS_NAMES: u8 = 7;
pub(crate) const FOR_PLACEHOLDERS: u8 = 8;
pub(crate) const FOR_GROUPS: u8 = 9;
pub(crate) const FOR_LISTENER_NUMBERS: u8 = 10;

/// The secret of a shard.
#[derive(Debug)]
pub struct Keys {
    sequence: [u8; 16],
    choice: [u8; 16],
    /// Numbers drawn so far.
    drawn: u64,
}

impl Keys {
    /// Divides the secret into its two keys.
    pub fn new(secret: &[u8; 32]) -> Keys {
        let mut sequence = [0; 16];
        sequence.copy_from_slice(&secret[..16]);
        Keys { sequence, choice: choice_key(secret), drawn: 0 }
    }

    /// RFC 6528 section 3: a clock of 4 us plus a keyed hash of the connection's addresses.
    pub fn initial_sequence(
        &self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> SeqNumber {
        let hash = keyed(&self.sequence, FOR_SEQUENCE, local, remote);
        SeqNumber::new((now.us() / 4) as u32) + hash as u32
    }

    /// What is added to the clock in timestamps; the same for all connections of two hosts, so that
    /// timestamps grow from one connection to the next, as RFC 6191 and PAWS like it.
    pub fn timestamp_offset(&self, local: IpAddr, remote: IpAddr) -> u32 {
        let (local, remote) = (SocketAddr::new(local, 0), SocketAddr::new(remote, 0));
        keyed(&self.sequence, FOR_TIMESTAMPS, local, remote) as u32
    }

    /// The two hashes of a SYN cookie: of a flow, a period of time and what the cookie tells; and of
    /// these with the peer's initial sequence number.
    pub fn cookie(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        period: u64,
        told: [u8; 2],
        peer_iss: u32,
    ) -> (u64, u64) {
        let mut hasher = hasher_of(&self.sequence, FOR_COOKIES, local, remote);
        hasher.write(&period.to_be_bytes());
        hasher.write(&told);
        let flow = hasher.finish();
        hasher.write(&peer_iss.to_be_bytes());
        (flow, hasher.finish())
    }

    /// A number that nobody else can foresee: the keyed hash of a counter.
    pub fn draw(&mut self) -> u64 {
        self.drawn += 1;
        let mut hasher = SipHasher24::new_with_key(&self.choice);
        hasher.write_u8(FOR_NUMBERS);
        hasher.write_u64(self.drawn);
        hasher.finish()
    }

    /// The two hashes of RFC 6056 section 3.3.4: where to start, and which counter to use.
    pub fn port_choice(&self, local: IpAddr, remote: SocketAddr) -> (u32, u32) {
        let local = SocketAddr::new(local, 0);
        let offset = keyed(&self.choice, FOR_PORT_OFFSET, local, remote);
        let counter = keyed(&self.choice, FOR_PORT_COUNTER, local, remote);
        (offset as u32, counter as u32)
    }
}

/// The half of a service's secret by which everything but sequence numbers is chosen, named and spread.
pub(crate) fn choice_key(secret: &[u8; 32]) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&secret[16..]);
    key
}

fn keyed(key: &[u8; 16], purpose: u8, local: SocketAddr, remote: SocketAddr) -> u64 {
    hasher_of(key, purpose, local, remote).finish()
}

fn hasher_of(key: &[u8; 16], purpose: u8, local: SocketAddr, remote: SocketAddr) -> SipHasher24 {
    let mut hasher = SipHasher24::new_with_key(key);
    hasher.write_u8(purpose);
    hasher.write(&address_bits(local.ip()).to_be_bytes());
    hasher.write(&address_bits(remote.ip()).to_be_bytes());
    hasher.write(&local.port().to_be_bytes());
    hasher.write(&remote.port().to_be_bytes());
    hasher
}

/// An address as 128 bits; IPv4 as its v4-mapped form, which no packet on the wire may carry.
pub fn address_bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(addr.to_ipv6_mapped()),
        IpAddr::V6(addr) => u128::from(addr),
    }
}

/// The address that [`address_bits`] made these bits from.
pub fn address_from_bits(bits: u128) -> IpAddr {
    let addr = std::net::Ipv6Addr::from(bits);
    addr.to_ipv4_mapped().map_or(IpAddr::V6(addr), IpAddr::V4)
}

/// The seeded hash of the tables.
#[derive(Clone)]
pub struct TableHash {
    shared: SharedSeed,
    seed: u64,
}

impl TableHash {
    /// A hash of its own for each seed.
    pub fn new(seed: u64) -> TableHash {
        TableHash { shared: SharedSeed::from_u64(seed), seed }
    }

    /// Hash of a connection's addresses and ports.
    pub fn of_flow(&self, local: u128, remote: u128, ports: u32) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.seed, &self.shared);
        hasher.write_u128(local);
        hasher.write_u128(remote);
        hasher.write_u32(ports);
        hasher.finish()
    }

    /// Hash of an address.
    pub fn of_address(&self, addr: IpAddr) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.seed, &self.shared);
        hasher.write_u128(address_bits(addr));
        hasher.finish()
    }

    /// Hash of an address, or none, with a number.
    pub fn of_scope(&self, addr: u128, number: u32) -> u64 {
        self.of_flow(addr, 0, number)
    }
}

impl std::fmt::Debug for TableHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TableHash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    #[test]
    fn sequence_numbers_follow_the_clock_and_the_addresses() {
        let keys = Keys::new(&[9; 32]);
        let (local, remote) = (socket("10.0.0.1:80"), socket("10.0.0.2:1024"));
        let first = keys.initial_sequence(Instant::from_us(0), local, remote);
        let later = keys.initial_sequence(Instant::from_us(4000), local, remote);
        assert_eq!(later.distance(first), 1000);
        let other = keys.initial_sequence(Instant::from_us(0), local, socket("10.0.0.2:1025"));
        assert_ne!(first, other);
        let secret = Keys::new(&[8; 32]).initial_sequence(Instant::from_us(0), local, remote);
        assert_ne!(first, secret);
    }

    #[test]
    fn timestamp_offsets_are_of_hosts() {
        let keys = Keys::new(&[9; 32]);
        let [a, b, c] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|ip| ip.parse().expect("address"));
        assert_eq!(keys.timestamp_offset(a, b), keys.timestamp_offset(a, b));
        assert_ne!(keys.timestamp_offset(a, b), keys.timestamp_offset(a, c));
    }

    #[test]
    fn addresses_survive_their_bits() {
        for text in ["10.1.2.3", "2001:db8::7", "::1"] {
            let addr: IpAddr = text.parse().expect("address");
            assert_eq!(address_from_bits(address_bits(addr)), addr);
        }
    }
}
