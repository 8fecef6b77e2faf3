//! Both ends of an in-process link, on one thread and on two.

use std::os::fd::AsRawFd;

use super::*;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

fn pool(count: u32) -> FramePool {
    FramePool::new(count, 2048).unwrap()
}

fn frame(pool: &mut FramePool, bytes: &[u8]) -> TxFrame {
    let mut frame = pool.alloc().unwrap();
    pool.bytes_mut(&mut frame)[TX_HEADROOM..TX_HEADROOM + bytes.len()].copy_from_slice(bytes);
    TxFrame::new(frame, bytes.len() as u32)
}

/// Whether a wait on the port would return at once.
fn readable(port: &MemoryPort) -> bool {
    let counter =
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", port.wait_fd().as_raw_fd()));
    let counter = counter.unwrap();
    let line = counter.lines().find(|line| line.starts_with("eventfd-count:")).unwrap();
    !line.ends_with(" 0")
}

fn receive_all(port: &mut MemoryPort, pool: &mut FramePool) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    port.rx_burst(pool, &mut out, 64).unwrap();
    out.into_iter()
        .map(|received| {
            let bytes = received.bytes(pool).to_vec();
            pool.free(received.frame);
            bytes
        })
        .collect()
}

#[test]
fn frames_cross_in_order_and_the_descriptor_tells() {
    let (mut one, mut other) = pair(1500, MACS, 8).unwrap();
    let mut pool = pool(16);
    assert!(!readable(&other));
    let mut frames = vec![frame(&mut pool, &[1; 60]), frame(&mut pool, &[2; 1514])];
    assert_eq!(one.tx_burst(&mut pool, &mut frames).unwrap(), 2);
    assert_eq!(pool.available(), 16);
    assert!(readable(&other) && !readable(&one));
    assert_eq!(receive_all(&mut other, &mut pool), [vec![1; 60], vec![2; 1514]]);
    assert!(!readable(&other));
    assert_eq!((one.counters().tx_frames, other.counters().rx_bytes), (2, 1574));
}

#[test]
fn a_full_direction_keeps_frames_and_rings_when_there_is_room() {
    let (mut one, mut other) = pair(1500, MACS, 2).unwrap();
    let mut pool = pool(16);
    let mut frames: Vec<_> = (0..3).map(|n| frame(&mut pool, &[n; 60])).collect();
    assert_eq!(one.tx_burst(&mut pool, &mut frames).unwrap(), 2);
    assert_eq!((frames.len(), one.counters().tx_blocked), (1, 1));
    assert_eq!(receive_all(&mut other, &mut pool).len(), 2);
    assert!(readable(&one));
    assert!(receive_all(&mut one, &mut pool).is_empty());
    assert!(!readable(&one));
    assert_eq!(one.tx_burst(&mut pool, &mut frames).unwrap(), 1);
    assert_eq!(receive_all(&mut other, &mut pool), [vec![2; 60]]);
}

#[test]
fn an_empty_pool_leaves_frames_waiting() {
    let (mut one, mut other) = pair(1500, MACS, 4).unwrap();
    let (mut sending, mut receiving) = (pool(4), pool(1));
    let mut frames: Vec<_> = (0..2).map(|n| frame(&mut sending, &[n; 60])).collect();
    one.tx_burst(&mut sending, &mut frames).unwrap();
    let mut out = Vec::new();
    assert_eq!(other.rx_burst(&mut receiving, &mut out, 64).unwrap(), 1);
    assert_eq!(other.counters().rx_no_chunk, 1);
    assert!(readable(&other));
    receiving.free(out.pop().unwrap().frame);
    assert_eq!(receive_all(&mut other, &mut receiving), [vec![1; 60]]);
}

#[test]
fn misfits_and_a_lost_peer_are_counted() {
    let (mut one, other) = pair(1280, MACS, 4).unwrap();
    let mut pool = pool(8);
    let mut frames = vec![
        frame(&mut pool, &[0; 13]),
        frame(&mut pool, &[0; 1295]),
        TxFrame { offset: 3, ..TxFrame::new(pool.alloc().unwrap(), 60) },
        TxFrame { offset: 2000, ..TxFrame::new(pool.alloc().unwrap(), 60) },
    ];
    assert_eq!(one.tx_burst(&mut pool, &mut frames).unwrap(), 4);
    assert_eq!((one.counters().tx_too_short, one.counters().tx_too_long), (1, 3));
    drop(other);
    assert!(readable(&one));
    frames.push(frame(&mut pool, &[0; 60]));
    assert_eq!(one.tx_burst(&mut pool, &mut frames).unwrap(), 1);
    assert_eq!((one.counters().tx_refused, pool.available()), (1, 8));
}

#[test]
fn two_threads_lose_nothing() {
    const COUNT: u32 = 20_000;
    let (mut one, mut other) = pair(1500, MACS, 32).unwrap();
    let sender = std::thread::spawn(move || {
        let mut pool = pool(64);
        let mut frames = Vec::new();
        let mut next = 0;
        while next < COUNT || !frames.is_empty() {
            while next < COUNT && frames.len() < 16 {
                let mut bytes = [0; 60];
                bytes[..4].copy_from_slice(&next.to_ne_bytes());
                frames.push(frame(&mut pool, &bytes));
                next += 1;
            }
            one.tx_burst(&mut pool, &mut frames).unwrap();
            std::thread::yield_now();
        }
        one
    });
    let mut pool = pool(64);
    let mut expected = 0;
    while expected < COUNT {
        for bytes in receive_all(&mut other, &mut pool) {
            assert_eq!(bytes[..4], expected.to_ne_bytes());
            expected += 1;
        }
        std::thread::yield_now();
    }
    assert_eq!(sender.join().unwrap().counters().tx_frames, u64::from(COUNT));
}
