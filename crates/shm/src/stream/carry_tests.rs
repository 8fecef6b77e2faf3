//! Streams that are held still, and go on in another table.

use super::{AppStream, Hostile, ServiceStream, StreamError, StreamPositions, chunks_for, status};
use crate::arena::Arena;
use crate::limits::{CHUNK_SIZE, FIFO_BYTES, SERVICE_OWNER, slot_offset};
use crate::table::SocketTable;

struct Side {
    table: SocketTable,
    arena: Arena,
}

impl Side {
    fn new() -> Side {
        Side { table: SocketTable::new(8), arena: Arena::new(64 << 20) }
    }

    fn app(&mut self, stream: &ServiceStream) -> AppStream {
        let table = self.table.segment(0).unwrap().clone();
        AppStream::open(table, stream.slot(), stream.generation(), 7).unwrap()
    }

    /// Goes on here with what is at `from`.
    fn resume(&mut self, stream: &ServiceStream, from: &Side) -> ServiceStream {
        let at = stream.positions();
        let mut new = ServiceStream::resume(self.table.allocate().unwrap(), &at);
        for (position, len) in stream.rx_runs() {
            let mut run = vec![0; len];
            assert!(stream.copy_run(position, &mut run, &from.arena));
            assert_eq!(new.write_rx(position, &run, &mut self.arena), len);
        }
        let mut sent = vec![0; (at.tx_tail - at.tx_head) as usize];
        assert!(stream.read_tx(at.tx_head, &mut sent, &from.arena));
        assert!(new.restore_tx(&sent, &mut self.arena));
        new.commit_rx(at.rx_tail);
        new.grant_tx(1 << 20, &mut self.arena);
        assert_eq!(new.positions(), at);
        new
    }
}

fn pattern(start: u64, len: usize) -> Vec<u8> {
    (start..start + len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
}

#[test]
fn a_stream_goes_on_elsewhere_with_what_was_not_read_and_not_acknowledged() {
    let (mut old, mut new) = (Side::new(), Side::new());
    let mut stream = ServiceStream::new(old.table.allocate().unwrap());
    stream.grant_tx(1 << 20, &mut old.arena);
    let app = old.app(&stream);
    // In order up to 200,000; a run behind a gap of two chunks.
    let data = pattern(0, 500_000);
    assert_eq!(stream.write_rx(0, &data[..200_000], &mut old.arena), 200_000);
    stream.commit_rx(200_000);
    assert_eq!(stream.write_rx(400_000, &data[400_000..], &mut old.arena), 100_000);
    let mut read = vec![0; 70_000];
    assert_eq!(app.read(&mut read, &old.arena).unwrap().bytes, 70_000);
    let sent = app.write(&pattern(9, 60_000), &old.arena).unwrap().bytes;
    stream.observe_tx_tail().unwrap();
    stream.acked(1_000, 1 << 20, &mut old.arena);
    assert_eq!(stream.freeze(&mut old.arena), Ok(true));
    assert_eq!(stream.freeze(&mut old.arena), Ok(true), "it is");
    let at = stream.positions();
    assert_eq!((at.rx_head, at.rx_tail, at.rx_end), (70_000, 200_000, 500_000));
    assert_eq!((at.tx_head, at.tx_tail), (1_000, sent as u64));
    assert_eq!(stream.rx_runs().len(), 2);

    let mut there = new.resume(&stream, &old);
    stream.set_new_place(super::NewPlace { server: 1, epoch: 3, slot: 0, generation: 1 });
    stream.set_status(status::MOVED);
    stream.release_all(&mut old.arena);
    stream.thaw();
    assert_eq!((old.arena.used_chunks(), app.new_place().unwrap().epoch), (0, 3));

    let app = new.app(&there);
    let mut rest = vec![0; 500_000];
    assert_eq!(app.read(&mut rest, &new.arena).unwrap().bytes, 130_000);
    assert!(rest[..130_000] == data[70_000..200_000]);
    // The gap is filled.
    assert_eq!(there.observe_rx_head(&mut new.arena), Ok(200_000));
    assert_eq!(there.write_rx(200_000, &data[200_000..400_000], &mut new.arena), 200_000);
    there.commit_rx(500_000);
    assert_eq!(app.read(&mut rest, &new.arena).unwrap().bytes, 300_000);
    assert!(rest[..300_000] == data[200_000..]);
    // What was written is there, and more can be.
    let mut out = vec![0; sent - 1_000];
    assert!(there.read_tx(1_000, &mut out, &new.arena));
    assert!(out == pattern(9, 60_000)[1_000..sent]);
    there.want_tx(1 << 20, &mut new.arena).unwrap();
    assert!(app.write(b"more", &new.arena).unwrap().bytes == 4);
    assert_eq!(there.observe_tx_tail(), Ok(sent as u64 + 4));
    there.retire(&mut new.arena);
    assert_eq!(new.arena.used_chunks(), 0);
}

#[test]
fn nobody_reads_or_writes_while_a_stream_is_held_still() {
    let mut side = Side::new();
    let mut stream = ServiceStream::new(side.table.allocate().unwrap());
    stream.grant_tx(1 << 20, &mut side.arena);
    let app = side.app(&stream);
    stream.write_rx(0, b"bytes", &mut side.arena);
    stream.commit_rx(5);
    // Who is in the middle of a copy is not interrupted.
    let during = |stream: &std::cell::RefCell<ServiceStream>, arena: &std::cell::RefCell<Arena>| {
        let held = stream.borrow_mut().freeze(&mut arena.borrow_mut());
        assert_eq!(held, Ok(false));
        assert!(!stream.borrow().is_frozen());
    };
    let (cell, arena) = (std::cell::RefCell::new(stream), std::cell::RefCell::new(side.arena));
    let chunks = |index| {
        during(&cell, &arena);
        arena.borrow().segment(index).cloned()
    };
    assert_eq!(app.read(&mut [0; 2], &chunks).unwrap().bytes, 2);
    assert_eq!(app.write(b"x", &chunks).unwrap().bytes, 1);
    let (mut stream, mut arena) = (cell.into_inner(), arena.into_inner());
    assert_eq!(stream.freeze(&mut arena), Ok(true));
    assert_eq!(stream.positions().rx_head, 2);
    // Whoever wants it meanwhile has it as soon as it is free.
    let reader = {
        let (app, segment) = (app.clone(), arena.segment(0).cloned());
        std::thread::spawn(move || app.read(&mut [0; 9], &move |_| segment.clone()))
    };
    let table = side.table.segment(0).unwrap();
    let owner = table.atomic_u64(slot_offset(stream.slot()) + 128).unwrap();
    assert_eq!(owner.load(std::sync::atomic::Ordering::Relaxed) as u32, SERVICE_OWNER);
    stream.thaw();
    assert_eq!(reader.join().unwrap().unwrap().bytes, 3);
}

#[test]
fn who_waits_for_a_stream_that_ends_is_told() {
    let mut side = Side::new();
    let mut stream = ServiceStream::new(side.table.allocate().unwrap());
    let app = side.app(&stream);
    assert_eq!(stream.freeze(&mut side.arena), Ok(true));
    let reader = std::thread::spawn(move || app.read(&mut [0; 9], &|_| None));
    stream.retire(&mut side.arena);
    assert_eq!(reader.join().unwrap(), Err(StreamError::Stale));
}

#[test]
fn impossible_positions_are_found_when_a_stream_is_held_still() {
    for (offset, found) in [(64, Hostile::RxHead), (72, Hostile::TxTail)] {
        let mut side = Side::new();
        let mut stream = ServiceStream::new(side.table.allocate().unwrap());
        let table = side.table.segment(0).unwrap().clone();
        let word = table.atomic_u64(slot_offset(stream.slot()) + offset).unwrap();
        word.store(1 << 40, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(stream.freeze(&mut side.arena), Err(found));
        assert!(!stream.is_frozen());
    }
}

#[test]
fn positions_are_checked() {
    let possible = StreamPositions { rx_head: 5, rx_tail: 9, rx_end: 9, tx_head: 1, tx_tail: 2 };
    assert!(possible.is_possible() && StreamPositions::default().is_possible());
    let fifo = FIFO_BYTES as u64;
    for wrong in [
        StreamPositions { rx_head: 10, ..possible },
        StreamPositions { rx_tail: 10, ..possible },
        StreamPositions { rx_end: fifo + 1, ..possible },
        StreamPositions { tx_head: 3, ..possible },
        StreamPositions { tx_tail: fifo + 1, ..possible },
        StreamPositions { rx_head: u64::MAX, rx_tail: u64::MAX, rx_end: u64::MAX, ..possible },
    ] {
        assert!(!wrong.is_possible(), "{wrong:?}");
        // Whoever asks nevertheless gets an empty stream.
        let mut side = Side::new();
        let stream = ServiceStream::resume(side.table.allocate().unwrap(), &wrong);
        assert_eq!(stream.positions(), StreamPositions::default());
    }
    let chunk = CHUNK_SIZE as u64;
    let takes = [(0, 0, 0), (0, 1, 1), (chunk - 1, 1, 1), (chunk - 1, 2, 2), (3, CHUNK_SIZE, 2)];
    for (position, bytes, chunks) in takes {
        assert_eq!(chunks_for(position, bytes), chunks);
    }
}
