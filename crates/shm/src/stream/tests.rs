//! Streams: against plain byte arrays as oracle, moved by their messages alone, between threads,
//! and the owner words.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::arena::Arena;
use crate::limits::{CHUNK_SIZE, FIFO_BYTES, FIFO_USABLE, OWNER_CONTENDED};
use crate::segment::Segment;
use crate::sys::{self, Waited};
use crate::table::SocketTable;

const BUFFER: u64 = FIFO_USABLE as u64;
const PROCESS: u32 = 7;

pub(super) struct Host {
    pub table: SocketTable,
    pub arena: Arena,
}

impl Host {
    pub fn new() -> Host {
        Host { table: SocketTable::new(1000), arena: Arena::new(1 << 26) }
    }

    pub fn stream(&mut self) -> (ServiceStream, AppStream) {
        let place = self.table.allocate().unwrap();
        let service = ServiceStream::new(place.clone());
        let application =
            AppStream::open(place.table, place.slot, place.generation, PROCESS).unwrap();
        (service, application)
    }
}

/// The byte of every position of a stream, so that a misplaced one shows.
pub(super) fn byte(position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8
}

pub(super) fn bytes(position: u64, len: usize) -> Vec<u8> {
    (position..position + len as u64).map(byte).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Receive { ahead: u64, len: usize },
    Read { len: usize, split: usize },
    Peek { len: usize, skip: u64 },
    Discard { len: u64 },
    ObserveHead,
    Write { len: usize, split: usize },
    ObserveTail,
    Transmit { at: u64, len: usize },
    Acknowledge { part: u64 },
    Want,
    Reclaim,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let chunk = CHUNK_SIZE;
    let len = prop_oneof![0usize..3000, chunk - 2..chunk + 2, 0usize..4 * chunk];
    let ahead = prop_oneof![Just(0u64), 0..3 * chunk as u64, 0..2 * FIFO_BYTES as u64];
    let step = prop_oneof![
        3 => (ahead, len.clone()).prop_map(|(ahead, len)| Step::Receive { ahead, len }),
        2 => (len.clone(), 0usize..5000).prop_map(|(len, split)| Step::Read { len, split }),
        1 => (0usize..9000, 0u64..100_000).prop_map(|(len, skip)| Step::Peek { len, skip }),
        1 => (0u64..100_000).prop_map(|len| Step::Discard { len }),
        1 => Just(Step::ObserveHead),
        3 => (len.clone(), 0usize..5000).prop_map(|(len, split)| Step::Write { len, split }),
        1 => Just(Step::ObserveTail),
        2 => (any::<u64>(), len).prop_map(|(at, len)| Step::Transmit { at, len }),
        2 => (0u64..=1000).prop_map(|part| Step::Acknowledge { part }),
        2 => Just(Step::Want),
        1 => Just(Step::Reclaim),
    ];
    prop::collection::vec(step, 0..60)
}

/// What has been received: spans of positions, merged.
#[derive(Default)]
struct Spans(BTreeMap<u64, u64>);

impl Spans {
    fn add(&mut self, start: u64, end: u64) {
        if end > start {
            let known = self.0.entry(start).or_insert(end);
            *known = end.max(*known);
        }
    }

    fn in_order_end(&self) -> u64 {
        self.0.iter().fold(0, |end, (from, to)| if *from <= end { end.max(*to) } else { end })
    }
}

struct Model {
    host: Host,
    service: ServiceStream,
    application: AppStream,
    received: Spans,
    read: u64,
    written: u64,
    acknowledged: u64,
}

impl Model {
    fn new() -> Model {
        let mut host = Host::new();
        let (mut service, application) = host.stream();
        assert!(!service.grant_tx(BUFFER, &mut host.arena));
        let received = Spans::default();
        Model { host, service, application, received, read: 0, written: 0, acknowledged: 0 }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Receive { ahead, len } => self.receive(ahead, len),
            Step::Read { len, split } => self.read(len, split),
            Step::Peek { len, skip } => self.peek(len, skip),
            Step::Discard { len } => {
                let outcome = self.application.discard(len).unwrap();
                let left = self.received.in_order_end() - self.read;
                assert_eq!(outcome.bytes as u64, len.min(left));
                self.read += outcome.bytes as u64;
            }
            Step::ObserveHead => {
                let head = self.service.observe_rx_head(&mut self.host.arena).unwrap();
                assert_eq!(head, self.read);
            }
            Step::Write { len, split } => self.write(len, split),
            Step::ObserveTail => {
                assert_eq!(self.service.observe_tx_tail().unwrap(), self.written);
            }
            Step::Transmit { at, len } => self.transmit(at, len),
            Step::Acknowledge { part } => {
                let tail = self.service.tx_tail();
                self.acknowledged += (tail - self.acknowledged) * part / 1000;
                self.service.acked(self.acknowledged, BUFFER, &mut self.host.arena);
                assert_eq!(self.service.tx_head(), self.acknowledged);
            }
            Step::Want => {
                self.service.want_tx(BUFFER, &mut self.host.arena).unwrap();
                let full = self.written - self.acknowledged > BUFFER * 2 / 3;
                assert!(full || self.application.writable() > 0);
            }
            Step::Reclaim => {
                self.service.try_reclaim_idle(&mut self.host.arena).unwrap();
            }
        }
        assert_eq!(self.application.readable(), self.received.in_order_end() - self.read);
        assert_eq!(self.service.chunk_count(), self.host.arena.used_chunks() as usize);
        assert!(self.service.chunk_count() <= 2 * FIFO_SLOTS);
    }

    fn receive(&mut self, ahead: u64, len: usize) {
        let position = self.received.in_order_end() + ahead;
        let stored = self.service.write_rx(position, &bytes(position, len), &mut self.host.arena);
        assert!(stored <= len);
        let end = position + len as u64;
        assert!(stored == len || end > self.service.rx_head() + BUFFER, "the FIFO has room");
        self.received.add(position, position + stored as u64);
        self.service.commit_rx(self.received.in_order_end());
    }

    fn read(&mut self, len: usize, split: usize) {
        let mut out = vec![0; len];
        let (first, second) = out.split_at_mut(split.min(len));
        let buffers = &mut [IoSliceMut::new(first), IoSliceMut::new(second)];
        let outcome = self.application.read_vectored(buffers, &self.host.arena).unwrap();
        let left = self.received.in_order_end() - self.read;
        assert_eq!(outcome.bytes as u64, left.min(len as u64));
        assert_eq!(out[..outcome.bytes], bytes(self.read, outcome.bytes));
        self.read += outcome.bytes as u64;
    }

    fn peek(&mut self, len: usize, skip: u64) {
        let mut out = vec![0; len];
        let buffers = &mut [IoSliceMut::new(&mut out)];
        let outcome = self.application.peek_vectored(buffers, skip, &self.host.arena).unwrap();
        let left = (self.received.in_order_end() - self.read).saturating_sub(skip);
        assert_eq!(outcome.bytes as u64, left.min(len as u64));
        assert_eq!(out[..outcome.bytes], bytes(self.read + skip, outcome.bytes));
    }

    fn write(&mut self, len: usize, split: usize) {
        let data = bytes(self.written, len);
        let (first, second) = data.split_at(split.min(len));
        let room = self.application.writable();
        let buffers = [IoSlice::new(first), IoSlice::new(second)];
        let outcome = self.application.write_vectored(&buffers, &self.host.arena).unwrap();
        assert_eq!(outcome.bytes as u64, room.min(len as u64));
        self.written += outcome.bytes as u64;
        assert!(self.written - self.acknowledged <= BUFFER);
    }

    fn transmit(&mut self, at: u64, len: usize) {
        let (head, tail) = (self.service.tx_head(), self.service.tx_tail());
        let position = head + at % (tail - head + 1);
        let len = len.min((tail - position) as usize);
        let mut out = vec![0; len];
        assert!(self.service.read_tx(position, &mut out, &self.host.arena));
        assert_eq!(out, bytes(position, len));
        assert!(!self.service.read_tx(tail, &mut [0], &self.host.arena));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn behaves_as_two_byte_streams(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
        }
        let Model { mut host, service, .. } = model;
        service.retire(&mut host.arena);
        prop_assert_eq!(host.arena.used_chunks(), 0);
    }
}

/// The service looks only when a message says so; everything still gets through, with any buffer.
#[test]
fn messages_alone_keep_both_directions_moving() {
    const TOTAL: u64 = 3 << 20;
    for buffer in [4096, 100_000, BUFFER] {
        let mut host = Host::new();
        let (mut service, application) = host.stream();
        service.set_rx_kick_step(buffer / 3);
        service.grant_tx(buffer, &mut host.arena);
        let (mut received, mut heard_head, mut read) = (0u64, 0u64, 0u64);
        let (mut written, mut sent) = (0u64, 0u64);
        for turn in 0u64.. {
            assert!(turn < 100_000, "stuck at {read} read and {sent} sent");
            if read == TOTAL && sent == TOTAL {
                break;
            }
            // The network: as much as the window that the service knows of allows.
            let len = (heard_head + buffer - received).min(TOTAL - received).min(10_000) as usize;
            let stored = service.write_rx(received, &bytes(received, len), &mut host.arena);
            received += stored as u64;
            service.commit_rx(received);

            let mut out = [0; 3001];
            let outcome = application.read(&mut out, &host.arena).unwrap();
            assert_eq!(out[..outcome.bytes], bytes(read, outcome.bytes));
            read += outcome.bytes as u64;
            if outcome.kick {
                heard_head = service.observe_rx_head(&mut host.arena).unwrap();
            }

            let len = (TOTAL - written).min(turn % 9000) as usize;
            let outcome = application.write(&bytes(written, len), &host.arena).unwrap();
            written += outcome.bytes as u64;
            if outcome.kick {
                service.observe_tx_tail().unwrap();
                service.grant_tx(buffer, &mut host.arena);
            }
            if outcome.want {
                service.want_tx(buffer, &mut host.arena).unwrap();
            }
            let len = (service.tx_tail() - sent).min(5000) as usize;
            let mut out = vec![0; len];
            assert!(service.read_tx(sent, &mut out, &host.arena));
            assert_eq!(out, bytes(sent, len));
            sent += len as u64;
            service.acked(sent, buffer, &mut host.arena);
        }
    }
}

/// Blocking reader and writer in threads of their own against a service thread: bytes, kicks and
/// wake-ups. No wait has a time-out short enough to hide a lost wake-up.
#[test]
fn threads_with_blocking_calls_get_everything() {
    const TOTAL: u64 = 8 << 20;
    let mut host = Host::new();
    let (service, application) = host.stream();
    let segments: Vec<Arc<Segment>> = {
        let chunk = host.arena.allocate().unwrap();
        host.arena.free(chunk);
        (0..1).map(|index| Arc::clone(host.arena.segment(index).unwrap())).collect()
    };
    let chunks = |index: u32| segments.get(index as usize).cloned();
    // Messages: a bit each, and a word to sleep on.
    let (kick_rx, kick_tx, want) =
        (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
    let bell = AtomicU32::new(0);
    let ring = || {
        bell.fetch_add(1, Ordering::SeqCst);
        sys::futex_wake(&bell, 1);
    };
    let far_ns = sys::clock_monotonic_ns() + 60_000_000_000;
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let reader = application.clone();
        let (chunks, ring, kick_rx, done) = (&chunks, &ring, &kick_rx, &done);
        scope.spawn(move || {
            let mut read = 0;
            let mut out = vec![0; 50_000];
            loop {
                let outcome = reader.read(&mut out, chunks).unwrap();
                assert_eq!(out[..outcome.bytes], bytes(read, outcome.bytes));
                read += outcome.bytes as u64;
                if outcome.kick {
                    kick_rx.store(true, Ordering::SeqCst);
                    ring();
                }
                if outcome.end_of_stream {
                    break;
                }
                if outcome.bytes == 0 {
                    let ticket = reader.prepare_wait();
                    let ended = reader.status() & status::RX_FIN != 0;
                    if reader.readable() == 0 && !ended {
                        assert_ne!(reader.wait(ticket, far_ns), Waited::TimedOut);
                    }
                }
            }
            assert_eq!(read, TOTAL);
            done.fetch_add(1, Ordering::SeqCst);
            ring();
        });
        let writer = application.clone();
        let (kick_tx, want) = (&kick_tx, &want);
        scope.spawn(move || {
            let data = bytes(0, TOTAL as usize);
            let mut written = 0;
            while written < data.len() {
                let end = data.len().min(written + 70_000);
                let outcome = writer.write(&data[written..end], chunks).unwrap();
                written += outcome.bytes;
                if outcome.kick {
                    kick_tx.store(true, Ordering::SeqCst);
                }
                if outcome.want {
                    want.store(true, Ordering::SeqCst);
                }
                if outcome.kick || outcome.want {
                    ring();
                }
                if outcome.bytes == 0 {
                    let ticket = writer.prepare_wait();
                    if writer.writable() == 0 {
                        assert_ne!(writer.wait(ticket, far_ns), Waited::TimedOut);
                    }
                }
            }
        });
        let (mut service, mut host) = (service, host);
        let bell = &bell;
        scope.spawn(move || {
            service.grant_tx(BUFFER, &mut host.arena);
            let (mut received, mut heard_head, mut sent) = (0u64, 0u64, 0u64);
            loop {
                let heard = bell.load(Ordering::SeqCst);
                if kick_rx.swap(false, Ordering::SeqCst) {
                    heard_head = service.observe_rx_head(&mut host.arena).unwrap();
                }
                if kick_tx.swap(false, Ordering::SeqCst) {
                    service.observe_tx_tail().unwrap();
                    service.grant_tx(BUFFER, &mut host.arena);
                }
                if want.swap(false, Ordering::SeqCst) {
                    service.want_tx(BUFFER, &mut host.arena).unwrap();
                }
                let room = (heard_head + BUFFER - received).min(TOTAL - received).min(30_000);
                let data = bytes(received, room as usize);
                received += service.write_rx(received, &data, &mut host.arena) as u64;
                service.commit_rx(received);
                if received == TOTAL {
                    service.set_status(status::CONNECTED | status::RX_FIN);
                }
                let mut out = vec![0; (service.tx_tail() - sent).min(30_000) as usize];
                assert!(service.read_tx(sent, &mut out, &host.arena));
                assert_eq!(out, bytes(sent, out.len()));
                sent += out.len() as u64;
                service.acked(sent, BUFFER, &mut host.arena);
                service.wake();
                if sent == TOTAL && done.load(Ordering::SeqCst) == 1 {
                    break;
                }
                if room == 0 && out.is_empty() {
                    let limit = Some(Duration::from_secs(60));
                    assert_ne!(sys::futex_wait(bell, heard, limit), Waited::TimedOut);
                }
            }
            service.retire(&mut host.arena);
            assert_eq!(host.arena.used_chunks(), 0);
        });
    });
}

#[test]
fn early_bytes_come_after_the_record_is_made() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    assert_eq!(service.write_rx(0, b"hello ", &mut host.arena), 6);
    assert_eq!(service.write_rx(6, b"world", &mut host.arena), 5);
    service.commit_rx(11);
    service.set_status(status::CONNECTED | status::RX_FIN);
    let mut out = [0; 32];
    let outcome = application.read(&mut out, &host.arena).unwrap();
    assert_eq!(&out[..outcome.bytes], b"hello world");
    let outcome = application.read(&mut out, &host.arena).unwrap();
    assert!(outcome.bytes == 0 && outcome.end_of_stream);
}

#[test]
fn idle_connections_hold_no_memory() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    service.grant_tx(BUFFER, &mut host.arena);
    service.write_rx(0, &[1; 100], &mut host.arena);
    service.commit_rx(100);
    assert_eq!(service.chunk_count(), 2);
    // Unread bytes keep their chunk, granted ones do not.
    assert_eq!(service.try_reclaim_idle(&mut host.arena), Ok(1));
    application.read(&mut [0; 200], &host.arena).unwrap();
    assert_eq!(service.try_reclaim_idle(&mut host.arena), Ok(1));
    assert_eq!((service.chunk_count(), host.arena.used_chunks()), (0, 0));
    // Room is still announced; writing asks for it.
    assert_eq!(application.writable(), 0);
    assert!(application.tx_room() > 0);
    let outcome = application.write(b"x", &host.arena).unwrap();
    assert!(outcome.bytes == 0 && outcome.want && outcome.room_beyond);
    assert_eq!(service.want_tx(BUFFER, &mut host.arena), Ok(true));
    assert_eq!(application.write(b"x", &host.arena).unwrap().bytes, 1);
    // Unacknowledged bytes keep their chunk.
    assert_eq!(service.observe_tx_tail(), Ok(1));
    assert_eq!(service.try_reclaim_idle(&mut host.arena), Ok(0));
}

#[test]
fn memory_that_runs_out_is_asked_for_again() {
    let mut host = Host::new();
    host.arena = Arena::new(CHUNK_SIZE as u64);
    let (mut service, application) = host.stream();
    assert_eq!(service.write_rx(0, &[0; 10], &mut host.arena), 10);
    assert_eq!(service.write_rx(CHUNK_SIZE as u64 - 5, &[0; 10], &mut host.arena), 5);
    assert!(!service.grant_tx(BUFFER, &mut host.arena));
    assert!(application.write(b"x", &host.arena).unwrap().want);
    assert_eq!(service.want_tx(BUFFER, &mut host.arena), Ok(false));
    assert!(service.tx_wanted());
    service.commit_rx(10);
    application.discard(10).unwrap();
    host.arena = {
        let mut more = Arena::new(2 * CHUNK_SIZE as u64);
        let chunk = more.allocate().unwrap();
        assert_eq!(chunk, 0);
        more
    };
    assert!(service.grant_tx(BUFFER, &mut host.arena), "the application hears of it");
    assert!(!service.tx_wanted());
}

#[test]
fn offers_are_claimed_or_revoked_once() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    assert_eq!(service.offer_state(), Ok(OfferState::None));
    assert!(!application.claim());
    service.offer();
    assert_eq!(service.offer_state(), Ok(OfferState::Offered));
    assert!(application.claim());
    assert!(!application.claim());
    assert_eq!(service.revoke(), Ok(false));
    assert_eq!(service.offer_state(), Ok(OfferState::Claimed));
    service.offer();
    assert_eq!(service.revoke(), Ok(true));
    assert!(!application.claim());
    assert_eq!(service.revoke(), Err(Hostile::Offer));
}

#[test]
fn state_and_addresses_are_published() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    assert_eq!((application.local_address(), application.remote_address()), (None, None));
    let local = "198.18.0.1:80".parse().unwrap();
    let remote = "[2001:db8::7]:65535".parse().unwrap();
    service.set_local(Some(local));
    service.set_remote(Some(remote));
    assert_eq!(application.local_address(), Some(local));
    assert_eq!(application.remote_address(), Some(remote));
    service.set_error(104);
    service.set_status(status::FAILED | status::FINISHED);
    assert_eq!(application.status(), service.status());
    assert!(application.has_error());
    assert_eq!((application.take_error(), application.take_error()), (104, 0));
}

#[test]
fn a_used_slot_makes_old_handles_stale() {
    let mut host = Host::new();
    let (service, old) = host.stream();
    let slot = service.slot();
    service.retire(&mut host.arena);
    assert_eq!(old.status(), status::CLOSED);
    host.table.free(slot);
    let (mut service, new) = host.stream();
    assert_eq!(service.slot(), slot);
    assert!(!host.table.is_current(slot, old.generation()));
    assert!(host.table.is_current(slot, new.generation()));
    service.grant_tx(BUFFER, &mut host.arena);
    assert_eq!(old.write(b"x", &host.arena), Err(StreamError::Stale));
    assert_eq!(old.read(&mut [0], &host.arena), Err(StreamError::Stale));
    assert_eq!(new.write(b"x", &host.arena).unwrap().bytes, 1);
}

#[test]
fn owners_exclude_each_other_and_the_dead_are_cleared() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    service.grant_tx(BUFFER, &mut host.arena);
    let other = AppStream::open(
        host.table.segment(0).unwrap().clone(),
        service.slot(),
        service.generation(),
        PROCESS + 1,
    )
    .unwrap();
    let table = host.table.segment(0).unwrap().clone();
    let tx_owner = table.atomic_u32(crate::limits::slot_offset(service.slot()) + 132).unwrap();
    // The other process dies in the middle of a write: its mark stays.
    let dying = |_: u32| -> Option<Arc<Segment>> {
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| application.write(b"late", &host.arena));
            while tx_owner.load(Ordering::SeqCst) & OWNER_CONTENDED == 0 {
                std::thread::yield_now();
            }
            // What its death does: the word goes free while the write is still "under way".
            service.clear_owner(PROCESS);
            service.clear_owner(PROCESS + 1);
            assert_eq!(waiting.join().unwrap().unwrap().bytes, 4);
        });
        None
    };
    assert_eq!(other.write(b"never", &dying), Err(StreamError::Unmapped(0)));
    assert_eq!(service.observe_tx_tail(), Ok(4));
}

#[test]
fn the_service_waits_for_no_writer() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    service.grant_tx(BUFFER, &mut host.arena);
    let service = std::cell::RefCell::new(service);
    let segment = host.arena.segment(0).unwrap().clone();
    let arena = std::cell::RefCell::new(host.arena);
    let chunks = |_: u32| {
        // In the middle of the copy.
        let reclaimed = service.borrow_mut().try_reclaim_idle(&mut arena.borrow_mut());
        assert_eq!(reclaimed, Ok(0));
        Some(segment.clone())
    };
    assert_eq!(application.write(b"x", &chunks).unwrap().bytes, 1);
    assert_eq!(service.borrow_mut().observe_tx_tail(), Ok(1));
}

#[test]
fn re_entry_by_the_same_thread_is_refused() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    service.grant_tx(BUFFER, &mut host.arena);
    service.write_rx(0, b"abc", &mut host.arena);
    service.commit_rx(3);
    let chunks = |index: u32| {
        let again = application.write(b"y", &host.arena);
        assert_eq!(again, Err(StreamError::WouldDeadlock));
        // The other direction is free.
        assert_eq!(application.peek(&mut [0; 3], &host.arena).unwrap().bytes, 3);
        host.arena.segment(index).cloned()
    };
    assert_eq!(application.write(b"x", &chunks).unwrap().bytes, 1);
}

#[test]
fn a_forked_child_forgets_the_locks_of_its_parent() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    service.grant_tx(BUFFER, &mut host.arena);
    let chunks = |index: u32| {
        application.reset_after_fork(PROCESS + 5);
        service.clear_owner(PROCESS);
        assert_eq!(application.write(b"y", &host.arena).unwrap().bytes, 1);
        host.arena.segment(index).cloned()
    };
    application.write(b"x", &chunks).unwrap();
}

#[test]
fn unmapped_arenas_and_bad_records_are_errors() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    service.write_rx(0, b"abc", &mut host.arena);
    service.commit_rx(3);
    assert_eq!(application.read(&mut [0], &|_| None), Err(StreamError::Unmapped(0)));
    let table = host.table.segment(0).unwrap().clone();
    assert!(AppStream::open(table.clone(), 0, 0, PROCESS).is_none());
    assert!(AppStream::open(table.clone(), 0, 1, 0).is_none());
    assert!(AppStream::open(table, 0, 1, u32::MAX).is_none());
    let short = Arc::new(Segment::create("test", 4096).unwrap());
    assert!(AppStream::open(short, 8, 1, PROCESS).is_none());
}

#[test]
fn files_are_read_straight_into_the_stream() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    let file = Segment::create("test-file", 3 * CHUNK_SIZE).unwrap();
    let content = bytes(0, 3 * CHUNK_SIZE);
    assert!(file.copy_in(0, &content));
    let fd = file.fd().unwrap();
    let (mut from, mut written) = (1000, 0);
    service.grant_tx(BUFFER, &mut host.arena);
    for turn in 0.. {
        assert!(turn < 20, "it moves on");
        let (outcome, stop) =
            application.write_file(fd, from as u64, usize::MAX, &host.arena).unwrap();
        if matches!(stop, Some(FileStop::Refused(sys::Errno(libc::EOPNOTSUPP)))) {
            return println!("skipped: no file is read here without waiting");
        }
        written += outcome.bytes;
        from += outcome.bytes;
        if stop == Some(FileStop::End) {
            assert!(!outcome.want, "nothing is left to be written");
            break;
        }
        assert_eq!(stop, None);
        assert!(outcome.want || application.writable() > 0, "more room is asked for");
        service.want_tx(BUFFER, &mut host.arena).unwrap();
    }
    assert_eq!(written, content.len() - 1000);
    let mut out = vec![0; written];
    service.observe_tx_tail().unwrap();
    assert!(service.read_tx(0, &mut out, &host.arena));
    assert!(out == content[1000..]);
    service.acked(written as u64, BUFFER, &mut host.arena);
    service.want_tx(BUFFER, &mut host.arena).unwrap();
    let (outcome, stop) = application.write_file(fd, 5, 7, &host.arena).unwrap();
    assert_eq!((outcome.bytes, outcome.want, stop), (7, false, None), "no more than asked for");
    let (outcome, stop) = application.write_file(-1, 0, 7, &host.arena).unwrap();
    assert_eq!((outcome.bytes, stop), (0, Some(FileStop::Refused(sys::Errno(libc::EBADF)))));
    let beyond = i64::MAX as u64;
    let (outcome, stop) = application.write_file(fd, beyond, 7, &host.arena).unwrap();
    assert!(outcome.bytes == 0 && stop.is_some(), "{stop:?}");
}

#[test]
fn a_record_that_has_moved_gives_and_takes_no_bytes() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    service.grant_tx(BUFFER, &mut host.arena);
    service.write_rx(0, &bytes(0, 100), &mut host.arena);
    service.commit_rx(100);
    let place = NewPlace { server: 5, epoch: 0xffff_fff0, slot: 77, generation: u32::MAX };
    service.set_new_place(place);
    service.set_status(status::CONNECTED | status::MOVED);
    let mut out = [0; 10];
    assert_eq!(application.read(&mut out, &host.arena), Err(StreamError::Moved));
    assert_eq!(application.peek(&mut out, &host.arena), Err(StreamError::Moved));
    assert_eq!(application.discard(5), Err(StreamError::Moved));
    assert_eq!(application.write(b"x", &host.arena), Err(StreamError::Moved));
    assert_eq!(application.write_file(0, 0, 5, &host.arena), Err(StreamError::Moved));
    assert_eq!(application.new_place(), Some(place));
    assert_eq!(
        (service.observe_rx_head(&mut host.arena), service.observe_tx_tail()),
        (Ok(0), Ok(0))
    );
    // The death of the server that had it is nothing to it, that of the other is its end.
    application.fail(libc::ECONNRESET);
    assert_eq!(application.status() & status::FAILED, 0);
    application.fail_where_moved(libc::ECONNRESET);
    assert_eq!(application.status() & status::FAILED, status::FAILED);
    assert_eq!(application.take_error(), libc::ECONNRESET);
    service.retire(&mut host.arena);
    assert_eq!(application.read(&mut out, &host.arena), Err(StreamError::Stale));
}

#[test]
fn calls_on_a_frozen_stream_wait_and_can_be_made_again() {
    let mut host = Host::new();
    let (mut service, application) = host.stream();
    service.grant_tx(BUFFER, &mut host.arena);
    service.write_rx(0, &bytes(0, 5), &mut host.arena);
    service.commit_rx(5);
    assert_eq!(service.freeze(&mut host.arena), Ok(true));
    let mut out = [0; 10];
    // Longer than anybody waits for another process; a second thread waits for the first one then.
    std::thread::scope(|scope| {
        let other = application.clone();
        let arena = &host.arena;
        let second = scope.spawn(move || other.discard(1));
        assert_eq!(application.read(&mut out, arena), Err(StreamError::Frozen));
        assert_eq!(second.join().unwrap(), Err(StreamError::Frozen));
        assert_eq!(application.write(b"x", arena), Err(StreamError::Frozen));
    });
    service.thaw();
    assert_eq!(application.read(&mut out, &host.arena).map(|outcome| outcome.bytes), Ok(5));
    assert_eq!(application.write(b"x", &host.arena).map(|outcome| outcome.bytes), Ok(1));
}
