//! Loom models of the two agreements that a stream makes about positions, in the order in which
//! `service` and `application` do their steps: KICK_RX against its mark, and the chunk number
//! against the tail that stands for it. (The kick of the send direction is in `handshake`.)

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering, fence};

use crate::handshake::{raise_kick, take_kick};

/// The application reads past the mark while the service moves it: the service sees the head, or
/// is kicked.
#[test]
fn loom_rx_mark_and_head_do_not_miss_each_other() {
    struct Words {
        head: AtomicU32,
        mark: AtomicU32,
        kick: AtomicU32,
    }
    const MARK: u32 = 2;
    loom::model(|| {
        let words = Arc::new(Words {
            head: AtomicU32::new(0),
            mark: AtomicU32::new(u32::MAX),
            kick: AtomicU32::new(0),
        });
        let shared = Arc::clone(&words);
        let application = loom::thread::spawn(move || {
            let mut kicked = false;
            for head in 1..=MARK {
                shared.head.store(head, Ordering::Release);
                fence(Ordering::SeqCst);
                if head >= shared.mark.load(Ordering::Relaxed) {
                    kicked |= raise_kick(&shared.kick);
                }
            }
            kicked
        });
        take_kick(&words.kick);
        words.mark.store(MARK, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let seen = words.head.load(Ordering::Acquire);
        let kicked = application.join().unwrap();
        assert!(seen >= MARK || kicked, "the mark was passed and nobody knows");
    });
}

/// Bytes and chunk numbers are there once the position that stands for them is.
#[test]
fn loom_positions_publish_bytes_and_chunks() {
    struct Memory {
        bytes: UnsafeCell<u8>,
        chunk: AtomicU32,
        tail: AtomicU32,
        head: AtomicU32,
    }
    // SAFETY: loom's cell checks every access of the model.
    unsafe impl Sync for Memory {}
    // SAFETY: as above.
    unsafe impl Send for Memory {}

    loom::model(|| {
        let memory = Arc::new(Memory {
            bytes: UnsafeCell::new(0),
            chunk: AtomicU32::new(u32::MAX),
            tail: AtomicU32::new(0),
            head: AtomicU32::new(0),
        });
        let shared = Arc::clone(&memory);
        let reader = loom::thread::spawn(move || {
            if shared.tail.load(Ordering::Acquire) == 1 {
                assert_eq!(shared.chunk.load(Ordering::Relaxed), 5);
                // SAFETY: loom checks that nobody writes.
                assert_eq!(shared.bytes.with(|bytes| unsafe { *bytes }), 7);
                shared.head.store(1, Ordering::Release);
            }
        });
        // SAFETY: loom checks that nobody reads.
        memory.bytes.with_mut(|bytes| unsafe { *bytes = 7 });
        memory.chunk.store(5, Ordering::Relaxed);
        memory.tail.store(1, Ordering::Release);
        if memory.head.load(Ordering::Acquire) == 1 {
            // The chunk is passed: it may be given to another.
            // SAFETY: loom checks that nobody reads.
            memory.bytes.with_mut(|bytes| unsafe { *bytes = 0 });
        }
        reader.join().unwrap();
    });
}
