//! Reassembly against a plain oracle, and its bounds.

use super::*;
use proptest::prelude::*;

const HEADER: [u8; 20] = [0x45; 20];

fn key(source: u8, identification: u32) -> DatagramKey {
    DatagramKey {
        source: IpAddr::from([10, 0, 0, source]),
        destination: IpAddr::from([10, 0, 0, 1]),
        identification,
        protocol: 17,
    }
}

fn fragment(key: DatagramKey, offset: usize, more: bool, data: &[u8]) -> Fragment<'_> {
    Fragment { key, offset, more, header: &HEADER, data }
}

fn reassembly() -> Reassembly {
    Reassembly::new(1, 8, 4, 200_000)
}

#[test]
fn pieces_in_any_order_make_the_whole() {
    let payload: Vec<u8> = (0..3000_u32).map(|n| n as u8).collect();
    let cuts = [(0, 800), (800, 1600), (1600, 2400), (2400, 3000)];
    for rotation in 0..cuts.len() {
        let mut reassembly = reassembly();
        let mut counters = Counters::new();
        for step in 0..cuts.len() {
            let (start, end) = cuts[(step + rotation) % cuts.len()];
            let piece = fragment(key(2, 7), start, end != 3000, &payload[start..end]);
            let result = reassembly.handle(Instant::default(), &piece, &mut counters);
            let result = result.expect("no reason to drop");
            assert_eq!(result.is_some(), step + 1 == cuts.len());
            if let Some(packet) = result {
                assert_eq!(packet[..20], HEADER);
                assert_eq!(packet[20..], payload);
            }
        }
        assert_eq!((reassembly.bytes, reassembly.datagrams.len()), (0, 0));
        assert!(reassembly.per_source.is_empty());
    }
}

#[test]
fn an_overlap_kills_the_datagram_and_all_that_follows() {
    let mut reassembly = reassembly();
    let mut counters = Counters::new();
    let data = [1_u8; 64];
    let mut give = |offset, more, data: &[u8]| {
        let fragment = fragment(key(2, 7), offset, more, data);
        reassembly.handle(Instant::default(), &fragment, &mut counters)
    };
    assert_eq!(give(0, true, &data), Ok(None));
    assert_eq!(give(0, true, &data), Ok(None), "an exact duplicate is harmless");
    assert_eq!(give(32, true, &data), Err(DropReason::FragmentOverlap));
    assert_eq!(give(64, false, &data), Err(DropReason::FragmentOverlap));
    assert_eq!(give(0, true, &data), Err(DropReason::FragmentOverlap));
    assert_eq!(reassembly.bytes, OVERHEAD_BYTES);
    assert!(reassembly.pop_expired(Instant::from_us(TIMEOUT_V4_US)).is_some());
    assert_eq!(reassembly.bytes, 0);
}

#[test]
fn impossible_fragments_are_refused() {
    let mut counters = Counters::new();
    for (offset, more, len) in [(0, true, 0), (0, true, 12), (65_528, false, 8)] {
        let data = vec![0; len];
        let fragment = fragment(key(2, 7), offset, more, &data);
        let result = reassembly().handle(Instant::default(), &fragment, &mut counters);
        assert_eq!(result, Err(DropReason::FragmentMalformed), "{offset} {more} {len}");
    }
    let mut reassembly = reassembly();
    let mut give = |offset, more| {
        let fragment = fragment(key(2, 7), offset, more, &[0; 8]);
        reassembly.handle(Instant::default(), &fragment, &mut counters)
    };
    assert_eq!(give(64, false), Ok(None));
    assert_eq!(give(128, true), Err(DropReason::FragmentMalformed), "beyond the end");
}

#[test]
fn one_source_cannot_take_all_places() {
    let mut reassembly = reassembly();
    let mut counters = Counters::new();
    let mut give = |source, identification| {
        let fragment = fragment(key(source, identification), 0, true, &[0; 8]);
        reassembly.handle(Instant::default(), &fragment, &mut counters)
    };
    for identification in 0..4 {
        assert_eq!(give(2, identification), Ok(None));
    }
    assert_eq!(give(2, 4), Ok(None), "the source's oldest makes room");
    for source in 3..20 {
        assert_eq!(give(source, 0), Ok(None));
    }
    assert_eq!(reassembly.datagrams.len(), 8);
    assert_eq!(counters.get(Counter::ReassemblyEvicted), 14);
}

#[test]
fn what_never_becomes_whole_keeps_nothing_out() {
    let mut reassembly = reassembly();
    let mut counters = Counters::new();
    let mut give = |identification, offset, more| {
        let fragment = fragment(key(2, identification), offset, more, &[0; 8]);
        reassembly.handle(Instant::default(), &fragment, &mut counters)
    };
    for identification in (0..40).step_by(2) {
        assert_eq!(give(identification, 0, true), Ok(None), "its second half is lost");
        assert_eq!(give(identification + 1, 0, true), Ok(None));
        let whole = give(identification + 1, 8, false).expect("no reason to drop");
        assert_eq!(whole.map(|packet| packet.len()), Some(HEADER.len() + 16));
    }
    let mut bad = |offset| give(100, offset, false);
    assert_eq!(bad(64), Ok(None));
    assert_eq!(bad(72), Err(DropReason::FragmentMalformed));
    for identification in 101..120 {
        assert_eq!(give(identification, 0, true), Ok(None));
    }
    assert_eq!(reassembly.datagrams.len(), 4);
    assert!(reassembly.find(&key(2, 100)).is_none(), "what is poisoned goes as well");
}

#[test]
fn the_least_pieces_make_the_largest_datagram() {
    let payload: Vec<u8> = (0..65_480_u32).map(|n| (n % 251) as u8).collect();
    for backwards in [false, true] {
        let mut reassembly = Reassembly::new(1, 8, 4, 4 << 20);
        let mut counters = Counters::new();
        let mut starts: Vec<usize> = (0..payload.len()).step_by(8).collect();
        if backwards {
            starts.reverse();
        }
        let mut whole = None;
        for start in starts {
            assert!(whole.is_none());
            let more = start + 8 < payload.len();
            let piece = fragment(key(2, 7), start, more, &payload[start..start + 8]);
            let result = reassembly.handle(Instant::default(), &piece, &mut counters);
            whole = result.expect("no reason to drop");
        }
        assert!(whole.is_some_and(|packet| packet[20..] == payload));
        assert_eq!((reassembly.bytes, reassembly.datagrams.len()), (0, 0));
    }
}

#[test]
fn memory_is_bounded_and_the_oldest_goes_first() {
    let mut reassembly = reassembly();
    let mut counters = Counters::new();
    for source in 2..10 {
        let fragment = fragment(key(source, 0), 60_000, true, &[0; 8]);
        assert_eq!(reassembly.handle(Instant::default(), &fragment, &mut counters), Ok(None));
        assert!(reassembly.bytes <= reassembly.bytes_max);
    }
    assert_eq!(reassembly.datagrams.len(), 3);
    assert!(reassembly.find(&key(9, 0)).is_some());
}

#[test]
fn time_ends_a_datagram_with_a_quote_of_its_start() {
    let mut reassembly = reassembly();
    let mut counters = Counters::new();
    for (identification, offset) in [(1, 0), (2, 8)] {
        let fragment = fragment(key(2, identification), offset, true, &[9; 8]);
        assert_eq!(reassembly.handle(Instant::default(), &fragment, &mut counters), Ok(None));
    }
    assert_eq!(reassembly.next_timeout(), Some(Instant::from_us(TIMEOUT_V4_US)));
    assert!(reassembly.pop_expired(Instant::from_us(TIMEOUT_V4_US - 1)).is_none());
    let first = reassembly.pop_expired(Instant::from_us(TIMEOUT_V4_US)).expect("expired");
    assert_eq!(first.quote.map(|quote| quote.len()), Some(28));
    let second = reassembly.pop_expired(Instant::from_us(TIMEOUT_V4_US)).expect("expired");
    assert_eq!(second.quote, None);
    assert_eq!(reassembly.next_timeout(), None);
}

/// The plain way: a map of bytes.
#[derive(Default)]
struct Oracle {
    bytes: std::collections::BTreeMap<usize, u8>,
    seen: Vec<(usize, bool, Vec<u8>)>,
    len: Option<usize>,
    dead: bool,
}

impl Oracle {
    fn handle(&mut self, offset: usize, more: bool, data: &[u8]) -> Result<Option<Vec<u8>>, ()> {
        if data.is_empty() || (more && !data.len().is_multiple_of(8)) {
            return Err(());
        }
        if self.dead {
            return Err(());
        }
        let end = offset + data.len();
        let duplicate = self.seen.iter().any(|(o, _, d)| *o == offset && d == data);
        if !duplicate {
            let overlap = (offset..end).any(|at| self.bytes.contains_key(&at));
            let len = if more { self.len } else { Some(end) };
            let changed = !more && self.len.is_some_and(|len| len != end);
            let edge = self.bytes.keys().last().map_or(0, |last| last + 1).max(end);
            if overlap || changed || len.is_some_and(|len| edge > len) {
                self.dead = true;
                return Err(());
            }
            self.len = len;
            self.bytes.extend((offset..end).zip(data.iter().copied()));
            self.seen.push((offset, more, data.to_vec()));
        }
        if self.len == Some(self.bytes.len()) {
            let whole = std::mem::take(&mut self.bytes).into_values().collect();
            *self = Oracle::default();
            return Ok(Some(whole));
        }
        Ok(None)
    }
}

proptest! {
    #[test]
    fn it_agrees_with_a_map_of_bytes(
        steps in prop::collection::vec((0_usize..8, 0_usize..4, any::<bool>(), 0_u8..2), 1..40),
    ) {
        let mut reassembly = reassembly();
        let mut oracle = Oracle::default();
        let mut counters = Counters::new();
        for (offset, len, more, fill) in steps {
            let data = vec![fill; len * 8];
            let piece = fragment(key(2, 1), offset * 8, more, &data);
            let ours = reassembly.handle(Instant::default(), &piece, &mut counters);
            let ours = ours.map(|done| done.map(|packet| packet[HEADER.len()..].to_vec()));
            prop_assert_eq!(ours.map_err(|_| ()), oracle.handle(offset * 8, more, &data));
            let charged: usize = reassembly.datagrams.iter().map(|(_, d)| d.charged).sum();
            prop_assert_eq!(charged, reassembly.bytes);
        }
    }
}
