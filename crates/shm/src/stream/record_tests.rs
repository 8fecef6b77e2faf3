//! Datagrams over the stream record: against queues of byte vectors as oracle, and an application
//! that writes nonsense into its own FIFO.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};

use proptest::prelude::*;

use super::tests::{Host, bytes};
use super::*;
use crate::datagram::{
    DatagramHeader, RECORD_HEADER, RECORD_MAX, RECORD_PAYLOAD_MAX, record_bytes,
};

const LIMIT: u64 = 200_000;

#[derive(Clone, Debug)]
enum Step {
    Receive { len: usize },
    Publish,
    Read { room: usize, split: usize, peek: bool },
    Write { len: usize, split: usize },
    Want,
    Take { count: usize },
    Reclaim,
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(0),
        1usize..40,
        1000usize..3000,
        60_000usize..=RECORD_PAYLOAD_MAX,
        Just(RECORD_PAYLOAD_MAX)
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => len().prop_map(|len| Step::Receive { len }),
        2 => Just(Step::Publish),
        4 => (len(), any::<usize>(), any::<bool>())
            .prop_map(|(room, split, peek)| Step::Read { room, split, peek }),
        4 => (len(), any::<usize>()).prop_map(|(len, split)| Step::Write { len, split }),
        1 => Just(Step::Want),
        3 => (0usize..9).prop_map(|count| Step::Take { count }),
        1 => Just(Step::Reclaim),
    ]
}

/// A header that no other datagram of the test has.
fn header(number: u64, len: usize) -> DatagramHeader {
    DatagramHeader {
        len: len as u16,
        remote: Some(([198, 18, number as u8, 1], number as u16).into()),
        hop_limit: number.is_multiple_of(3).then_some(number as u8),
        drops: number as u32,
        time_ns: number,
        ..DatagramHeader::default()
    }
}

struct World {
    host: Host,
    service: ServiceStream,
    application: AppStream,
    number: u64,
    stored: VecDeque<(DatagramHeader, Vec<u8>)>,
    readable: VecDeque<(DatagramHeader, Vec<u8>)>,
    written: VecDeque<(DatagramHeader, Vec<u8>)>,
}

impl World {
    fn new() -> World {
        let mut host = Host::new();
        let (mut service, application) = host.stream();
        service.settle_records(LIMIT, &mut host.arena);
        let number = 0;
        let empty = VecDeque::new;
        World {
            host,
            service,
            application,
            number,
            stored: empty(),
            readable: empty(),
            written: empty(),
        }
    }

    fn apply(&mut self, step: &Step) {
        self.number += 1;
        match *step {
            Step::Receive { len } => self.receive(len),
            Step::Publish => {
                assert_eq!(self.service.publish_records(), !self.stored.is_empty());
                self.readable.append(&mut self.stored);
            }
            Step::Read { room, split, peek } => self.read(room, split, peek),
            Step::Write { len, split } => self.write(len, split),
            Step::Want => {
                if self.application.want_tx() {
                    self.service.want_records(LIMIT, &mut self.host.arena).unwrap();
                }
            }
            Step::Take { count } => self.take(count),
            Step::Reclaim => {
                self.service.try_reclaim_idle(&mut self.host.arena).unwrap();
            }
        }
    }

    fn receive(&mut self, len: usize) {
        let (header, payload) = (header(self.number, len), bytes(self.number, len));
        let waiting: usize =
            self.stored.iter().chain(&self.readable).map(|(header, _)| header.record_bytes()).sum();
        let fits = waiting == 0 || waiting + header.record_bytes() <= LIMIT as usize;
        let stored =
            self.service.push_record(&header, &payload, LIMIT, &mut self.host.arena).unwrap();
        assert_eq!(stored, fits);
        if stored {
            self.stored.push_back((header, payload));
        }
    }

    fn read(&mut self, room: usize, split: usize, peek: bool) {
        let mut out = vec![0; room];
        let (first, second) = out.split_at_mut(split % (room + 1));
        let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second)];
        let read = if peek {
            self.application.peek_record(&mut parts, &self.host.arena)
        } else {
            self.application.read_record(&mut parts, &self.host.arena)
        };
        let want = if peek { self.readable.front().cloned() } else { self.readable.pop_front() };
        match (read.unwrap(), want) {
            (None, None) => {}
            (Some(read), Some((header, payload))) => {
                assert_eq!(read.header, header);
                assert_eq!(read.copied, room.min(payload.len()));
                assert_eq!(out[..read.copied], payload[..read.copied]);
                if read.kick {
                    self.service.observe_rx_head(&mut self.host.arena).unwrap();
                }
            }
            (read, want) => panic!("{read:?} instead of {:?}", want.map(|(header, _)| header)),
        }
    }

    fn write(&mut self, len: usize, split: usize) {
        let (header, payload) = (header(self.number, len), bytes(self.number, len));
        let granted = self.application.writable();
        let (first, second) = payload.split_at(split % (len + 1));
        let parts = [IoSlice::new(first), IoSlice::new(second)];
        let outcome = self.application.write_record(&header, &parts, &self.host.arena).unwrap();
        let fits = header.record_bytes() as u64 <= granted;
        assert_eq!(outcome.bytes, if fits { header.record_bytes() } else { 0 });
        assert!(fits || outcome.room_beyond || !self.application.has_record_room());
        if fits {
            self.written.push_back((header, payload));
        } else if outcome.want {
            self.service.want_records(LIMIT, &mut self.host.arena).unwrap();
        }
    }

    fn take(&mut self, count: usize) {
        let mut scratch = vec![0; RECORD_PAYLOAD_MAX];
        self.service.observe_tx_tail().unwrap();
        for _ in 0..count {
            let found = self.service.peek_record(&mut scratch, &self.host.arena).unwrap();
            let want = self.written.pop_front();
            assert_eq!(found, want.as_ref().map(|(header, _)| *header));
            let (Some(found), Some((_, payload))) = (found, want) else { break };
            assert_eq!(scratch[..payload.len()], payload);
            self.service.take_record(&found);
        }
        self.service.settle_records(LIMIT, &mut self.host.arena);
        let left: usize = self.written.iter().map(|(header, _)| header.record_bytes()).sum();
        assert_eq!(self.service.untaken(), left as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn datagrams_pass_whole_and_in_order(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
        }
        world.take(usize::MAX);
        assert!(world.written.is_empty());
        let World { mut host, service, .. } = world;
        service.retire(&mut host.arena);
        assert_eq!(host.arena.used_chunks(), 0);
    }

    /// What an application can write into its send FIFO is a datagram, nothing, or hostile; the
    /// service takes no more than was written and its memory comes back.
    #[test]
    fn nonsense_in_the_fifo_is_refused(
        nonsense in prop::collection::vec(any::<u8>(), 1..4096),
        good in any::<bool>(),
        len in 0u32..70_000,
    ) {
        let mut host = Host::new();
        let (mut service, application) = host.stream();
        let (mut other, other_application) = host.stream();
        for stream in [&mut service, &mut other] {
            stream.settle_records(LIMIT, &mut host.arena);
        }
        let mut bytes = nonsense;
        if good && bytes.len() >= RECORD_HEADER {
            // A header that decodes, with any length.
            bytes[..RECORD_HEADER].copy_from_slice(&header(1, 0).encode());
            bytes[..4].copy_from_slice(&len.to_le_bytes());
        }
        application.write(&bytes, &host.arena).unwrap();
        let tail = service.observe_tx_tail().unwrap();
        let mut scratch = vec![0; RECORD_PAYLOAD_MAX];
        for _ in 0..bytes.len() {
            match service.peek_record(&mut scratch, &host.arena) {
                Ok(Some(header)) => service.take_record(&header),
                Ok(None) => break,
                Err(hostile) => {
                    prop_assert_eq!(hostile, Hostile::Record);
                    break;
                }
            }
        }
        service.settle_records(LIMIT, &mut host.arena);
        prop_assert!(service.tx_head() <= tail);
        let parts = [IoSlice::new(b"fine")];
        other_application.write_record(&header(2, 4), &parts, &host.arena).unwrap();
        other.observe_tx_tail().unwrap();
        let found = other.peek_record(&mut scratch, &host.arena).unwrap();
        prop_assert_eq!(found, Some(header(2, 4)));
        service.retire(&mut host.arena);
        other.retire(&mut host.arena);
        prop_assert_eq!(host.arena.used_chunks(), 0);
    }
}

#[test]
fn a_single_datagram_passes_whatever_the_limits_are() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    service.settle_records(1, &mut host.arena);
    let payload = bytes(0, RECORD_PAYLOAD_MAX);
    let header = header(0, RECORD_PAYLOAD_MAX);
    let parts = [IoSlice::new(&payload)];
    let first = application.write_record(&header, &parts, &host.arena).unwrap();
    assert!(first.bytes == 0 && first.want && first.room_beyond);
    assert!(application.has_record_room() && service.has_record_room());
    assert!(service.want_records(1, &mut host.arena).unwrap());
    let second = application.write_record(&header, &parts, &host.arena).unwrap();
    assert_eq!(second.bytes, RECORD_MAX);
    assert!(second.kick && !application.has_record_room());
    assert!(service.push_record(&header, &payload, 1, &mut host.arena).unwrap());
    assert!(!service.push_record(&header, &payload, 1, &mut host.arena).unwrap());
    assert_eq!(application.readable(), 0);
    assert!(service.publish_records() && !service.publish_records());
    assert_eq!(application.readable(), record_bytes(RECORD_PAYLOAD_MAX) as u64);
    assert!(application.read_record(&mut [], &host.arena).unwrap().is_some());
    assert!(service.push_record(&header, &payload, 1, &mut host.arena).unwrap());
}
