//! The ledger of a transport server: which flows it has, in memory that outlives it, so that the server in its place
//! can find out who waits for an answer that will never come. Made by the supervisor, one for each transport server;
//! written by that server alone, a few words when a connection comes and one when it goes; read by the next one at
//! its start. Read `haypile_service::obituary` for what is done with it.
//!
//! ```text
//! 0    places in use or used before, from the first on
//! 64   place 0: word with family and ports (0: empty), our address, the peer's; place 1; ...
//! ```
//!
//! A place is empty until its first word is written, behind the others: whenever its writer dies, what is read is a
//! flow or nothing. The writer is not trusted, as it may have died of nonsense: what is read is checked.

use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::{AtomicU64, Ordering};
use std::os::fd::RawFd;

use crate::segment::Segment;
use crate::sys::{Errno, Fd, Result};

/// Most flows of a ledger: those beyond it are not noted.
pub const LEDGER_FLOWS: u32 = 1 << 20;
const COUNT_AT: usize = 0;
const PLACES_AT: usize = 64;
/// Words of 8 bytes.
const PLACE_WORDS: usize = 5;
const WORD: usize = 8;
const LEDGER_SIZE: usize =
    (PLACES_AT + LEDGER_FLOWS as usize * PLACE_WORDS * WORD).next_multiple_of(4096);

/// Both ends of a TCP flow.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct LedgerFlow {
    /// Our end.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
}

/// The memory, as its maker holds it.
#[derive(Debug)]
pub struct LedgerSegment {
    segment: Segment,
}

/// The ledger, in the hands of the server that writes it.
#[derive(Debug)]
pub struct Ledger {
    segment: Segment,
    /// Empty places among the first `count`.
    empty: Vec<u32>,
    count: u32,
}

impl LedgerSegment {
    /// Makes an empty one. Memory is taken as it is touched.
    ///
    /// # Errors
    /// When the system gives no memory or descriptors.
    pub fn create() -> Result<LedgerSegment> {
        Ok(LedgerSegment { segment: Segment::create("haypile-ledger", LEDGER_SIZE)? })
    }

    /// The descriptor to send to the server. Owned by `self`.
    pub fn fd(&self) -> RawFd {
        // `create` keeps the descriptor.
        self.segment.fd().unwrap_or(-1)
    }
}

impl Ledger {
    /// Opens it; with the flows of whoever wrote it before, which stay in their places until they are struck.
    ///
    /// # Errors
    /// `EINVAL` when it is no such memory.
    pub fn open(fd: impl Into<Fd>) -> Result<(Ledger, Vec<(u32, LedgerFlow)>)> {
        let segment = Segment::from_fd(fd, LEDGER_SIZE, false)?;
        let mut ledger = Ledger { segment, empty: Vec::new(), count: 0 };
        let count = ledger.word(COUNT_AT).ok_or(Errno::EINVAL)?.load(Ordering::Acquire);
        ledger.count = count.min(u64::from(LEDGER_FLOWS)) as u32;
        let mut flows = Vec::new();
        for place in (0..ledger.count).rev() {
            match ledger.read(place) {
                Some(flow) => flows.push((place, flow)),
                None => ledger.strike(place),
            }
        }
        Ok((ledger, flows))
    }

    /// Notes a flow; the place is for [`Ledger::strike`]. `None`: there is no place left.
    pub fn enter(&mut self, flow: LedgerFlow) -> Option<u32> {
        let place = match self.empty.pop() {
            Some(place) => place,
            None if self.count < LEDGER_FLOWS => {
                self.count += 1;
                self.word(COUNT_AT)?.store(u64::from(self.count), Ordering::Release);
                self.count - 1
            }
            None => return None,
        };
        let words = words_of(&flow);
        for (number, word) in words.iter().enumerate().rev() {
            self.word(word_at(place, number))?.store(*word, Ordering::Release);
        }
        Some(place)
    }

    /// The flow of a place is over. Once for each place that was given out or found.
    pub fn strike(&mut self, place: u32) {
        let word = self.word(word_at(place, 0)).filter(|_| place < self.count);
        if let Some(word) = word {
            word.store(0, Ordering::Release);
            self.empty.push(place);
        }
    }

    fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.segment.atomic_u64(at)
    }

    fn read(&self, place: u32) -> Option<LedgerFlow> {
        let mut words = [0; PLACE_WORDS];
        for (number, word) in words.iter_mut().enumerate() {
            *word = self.word(word_at(place, number))?.load(Ordering::Acquire);
        }
        flow_of(&words)
    }
}

fn word_at(place: u32, number: usize) -> usize {
    PLACES_AT + (place as usize * PLACE_WORDS + number) * WORD
}

fn words_of(flow: &LedgerFlow) -> [u64; PLACE_WORDS] {
    let family = if flow.local.is_ipv4() { 4 } else { 6 };
    let ports = u64::from(flow.local.port()) << 16 | u64::from(flow.remote.port()) << 32;
    let [a, b] = halves(flow.local.ip());
    let [c, d] = halves(flow.remote.ip());
    [family | ports, a, b, c, d]
}

fn flow_of(words: &[u64; PLACE_WORDS]) -> Option<LedgerFlow> {
    let [first, a, b, c, d] = *words;
    let ip = |one: u64, other: u64| match first as u8 {
        4 => Some(IpAddr::from((one as u32).to_be_bytes())),
        6 => {
            let octets: u128 = u128::from(one) << 64 | u128::from(other);
            Some(IpAddr::from(octets.to_be_bytes()))
        }
        _ => None,
    };
    let (local, remote) = ((first >> 16) as u16, (first >> 32) as u16);
    Some(LedgerFlow {
        local: SocketAddr::new(ip(a, b)?, local),
        remote: SocketAddr::new(ip(c, d)?, remote),
    })
}

fn halves(ip: IpAddr) -> [u64; 2] {
    match ip {
        IpAddr::V4(ip) => [u64::from(u32::from(ip)), 0],
        IpAddr::V6(ip) => {
            let whole = u128::from(ip);
            [(whole >> 64) as u64, whole as u64]
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn open(segment: &LedgerSegment) -> (Ledger, Vec<(u32, LedgerFlow)>) {
        let fd = Fd::from_raw(segment.fd());
        let copy = fd.try_clone_at_least(0).unwrap();
        let _: RawFd = fd.into_raw();
        Ledger::open(copy).unwrap()
    }

    fn flow(number: u16) -> LedgerFlow {
        let local = SocketAddr::from(([198, 18, 0, 2], 8080));
        LedgerFlow { local, remote: SocketAddr::from(([198, 18, 0, 1], number)) }
    }

    #[test]
    fn the_next_server_reads_what_was_not_struck() {
        let segment = LedgerSegment::create().unwrap();
        let (mut ledger, before) = open(&segment);
        assert!(before.is_empty());
        let places: Vec<u32> = (0..10).map(|one| ledger.enter(flow(one)).unwrap()).collect();
        for place in &places[3..7] {
            ledger.strike(*place);
        }
        drop(ledger);
        let (mut ledger, mut found) = open(&segment);
        found.sort_by_key(|(_, flow)| flow.remote.port());
        let ports: Vec<u16> = found.iter().map(|(_, flow)| flow.remote.port()).collect();
        assert_eq!(ports, [0, 1, 2, 7, 8, 9]);
        // What is still mourned keeps its place, what was empty is used again.
        let fresh: Vec<u32> = (20..24).map(|one| ledger.enter(flow(one)).unwrap()).collect();
        assert!(fresh.iter().all(|place| places[3..7].contains(place)), "{fresh:?}");
        assert_eq!(ledger.enter(flow(24)), Some(10));
        for (place, _) in found {
            ledger.strike(place);
        }
        drop(ledger);
        assert_eq!(open(&segment).1.len(), 5);
    }

    #[test]
    fn a_ledger_that_is_full_takes_no_more() {
        let segment = LedgerSegment::create().unwrap();
        let (mut ledger, _) = open(&segment);
        ledger.count = LEDGER_FLOWS - 1;
        assert_eq!(ledger.enter(flow(1)), Some(LEDGER_FLOWS - 1));
        assert_eq!(ledger.enter(flow(2)), None);
        ledger.strike(LEDGER_FLOWS - 1);
        ledger.strike(LEDGER_FLOWS);
        assert_eq!(ledger.enter(flow(3)), Some(LEDGER_FLOWS - 1));
    }

    #[test]
    fn a_count_that_is_nonsense_reads_no_further_than_there_is() {
        let segment = LedgerSegment::create().unwrap();
        let (ledger, _) = open(&segment);
        ledger.word(COUNT_AT).unwrap().store(u64::MAX, Ordering::Relaxed);
        ledger.word(word_at(5, 0)).unwrap().store(0xdead_0007, Ordering::Relaxed);
        let (ledger, found) = open(&segment);
        assert_eq!((ledger.count, found.len()), (LEDGER_FLOWS, 0));
    }

    proptest! {
        #[test]
        fn flows_survive(v6 in any::<bool>(), octets in any::<[[u8; 16]; 2]>(), ports in any::<[u16; 2]>()) {
            let ip = |octets: [u8; 16]| match v6 {
                true => IpAddr::from(octets),
                false => IpAddr::from(*octets.first_chunk::<4>().unwrap()),
            };
            let end = |one: usize| SocketAddr::new(ip(octets[one]), ports[one]);
            let flow = LedgerFlow { local: end(0), remote: end(1) };
            prop_assert_eq!(flow_of(&words_of(&flow)), Some(flow));
        }
    }
}
