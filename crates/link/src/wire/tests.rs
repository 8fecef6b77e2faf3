//! Wires within a process and between ends that meet by name: order, content, blocking, sleepers,
//! superframes, ends that leave, come again, or write nonsense.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const LINES: u32 = 64;

fn pool(count: u32) -> FramePool {
    FramePool::new(count, 2048).unwrap()
}

fn frame(pool: &mut FramePool, bytes: &[u8]) -> TxFrame {
    let mut frame = pool.alloc().unwrap();
    pool.bytes_mut(&mut frame)[TX_HEADROOM..TX_HEADROOM + bytes.len()].copy_from_slice(bytes);
    TxFrame::new(frame, bytes.len() as u32)
}

/// Whether a sleep on the port would end at once.
fn readable(port: &Wire) -> bool {
    let mut entry = [sys::PollFd { fd: port.wait_fd().as_raw_fd(), events: 1, revents: 0 }];
    sys::ppoll(&mut entry, Some(Duration::ZERO)).unwrap() > 0
}

fn receive_all(port: &mut Wire, pool: &mut FramePool) -> Vec<Vec<u8>> {
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

fn send(port: &mut Wire, pool: &mut FramePool, bytes: &[u8]) -> usize {
    let mut frames = vec![frame(pool, bytes)];
    let sent = port.tx_burst(pool, &mut frames).unwrap();
    frames.into_iter().for_each(|frame| pool.free(frame.frame));
    sent
}

#[test]
fn frames_cross_in_order_and_only_a_sleeper_is_rung() {
    let (mut one, mut other) = pair(1500, MACS, LINES, false).unwrap();
    let mut pool = pool(16);
    let mut frames = vec![frame(&mut pool, &[1; 60]), frame(&mut pool, &[2; 1514])];
    assert_eq!(one.tx_burst(&mut pool, &mut frames).unwrap(), 2);
    assert_eq!(pool.available(), 16);
    assert!(!readable(&other), "awake: nobody rings");
    assert!(!other.prepare_sleep(), "frames wait");
    assert_eq!(receive_all(&mut other, &mut pool), [vec![1; 60], vec![2; 1514]]);
    assert!(other.prepare_sleep() && !readable(&other));
    assert_eq!(send(&mut one, &mut pool, &[3; 60]), 1);
    assert!(readable(&other) && !readable(&one));
    other.awake();
    other.handle_ready();
    assert_eq!(receive_all(&mut other, &mut pool), [vec![3; 60]]);
    assert!(readable(&other), "the ring is taken before the next sleep, frames first");
    assert!(other.prepare_sleep() && !readable(&other));
    other.awake();
    assert_eq!((one.counters().tx_frames, other.counters().rx_bytes), (3, 1634));
}

#[test]
fn a_busy_end_takes_the_ring_when_it_looks_again() {
    let (mut one, mut other) = pair(1500, MACS, LINES, false).unwrap();
    let mut pool = pool(4);
    assert!(other.prepare_sleep());
    assert_eq!(send(&mut one, &mut pool, &[1; 60]), 1);
    other.awake();
    other.handle_ready();
    assert!(readable(&other));
    other.handle_ready();
    assert!(!readable(&other));
    assert!(!other.prepare_sleep(), "the frame is there still");
}

#[test]
fn a_full_direction_keeps_frames_and_rings_when_there_is_room() {
    let (mut one, mut other) = pair(1500, MACS, LINES, false).unwrap();
    let mut pool = pool(16);
    let mut frames: Vec<_> = (0..4).map(|n| frame(&mut pool, &[n; 1500])).collect();
    assert_eq!(one.tx_burst(&mut pool, &mut frames).unwrap(), 2);
    assert_eq!((frames.len(), one.counters().tx_blocked), (2, 1));
    assert!(one.prepare_sleep() && !readable(&one));
    assert_eq!(receive_all(&mut other, &mut pool).len(), 2);
    assert!(readable(&one));
    one.awake();
    one.handle_ready();
    assert_eq!(one.tx_burst(&mut pool, &mut frames).unwrap(), 2);
    assert_eq!(receive_all(&mut other, &mut pool), [vec![2; 1500], vec![3; 1500]]);
    assert!(one.prepare_sleep(), "nothing is blocked any more");
}

#[test]
fn an_empty_pool_leaves_frames_waiting() {
    let (mut one, mut other) = pair(1500, MACS, LINES, false).unwrap();
    let (mut sending, mut receiving) = (pool(4), pool(1));
    let mut frames: Vec<_> = (0..2).map(|n| frame(&mut sending, &[n; 60])).collect();
    one.tx_burst(&mut sending, &mut frames).unwrap();
    let mut out = Vec::new();
    assert_eq!(other.rx_burst(&mut receiving, &mut out, 64).unwrap(), 1);
    assert_eq!(other.counters().rx_no_chunk, 1);
    assert!(!other.prepare_sleep());
    receiving.free(out.pop().unwrap().frame);
    assert_eq!(receive_all(&mut other, &mut receiving), [vec![1; 60]]);
}

#[test]
fn misfits_and_a_lost_peer_are_counted() {
    let (mut one, mut other) = pair(1280, MACS, LINES, false).unwrap();
    let mut pool = pool(8);
    let plain = |frame, offset, len| TxFrame { offset, ..TxFrame::new(frame, len) };
    let mut frames = vec![
        frame(&mut pool, &[0; 13]),
        frame(&mut pool, &[0; 1295]),
        plain(pool.alloc().unwrap(), 3, 60),
        plain(pool.alloc().unwrap(), 2000, 60),
        TxFrame { segment_size: 100, ..frame(&mut pool, &[0; 60]) },
    ];
    assert_eq!(one.tx_burst(&mut pool, &mut frames).unwrap(), 5);
    assert_eq!((one.counters().tx_too_short, one.counters().tx_too_long), (1, 4));
    // What was sent before the end is still received.
    assert_eq!(send(&mut other, &mut pool, &[7; 60]), 1);
    drop(other);
    assert!(readable(&one));
    one.handle_ready();
    assert!(one.is_joined(), "found out when it looks again, or before it sleeps");
    assert!(!one.prepare_sleep() && !readable(&one) && !one.is_joined());
    assert_eq!(receive_all(&mut one, &mut pool), [vec![7; 60]]);
    assert_eq!(send(&mut one, &mut pool, &[0; 60]), 1);
    assert_eq!((one.counters().tx_refused, pool.available()), (1, 8));
    assert_eq!(one.wire_counters(), WireCounters { joined: 1, left: 1, corrupt: 0 });
    assert!(one.prepare_sleep());
}

#[test]
fn superframes_and_unfinished_checksums_cross_untouched() {
    let (mut one, mut other) = pair(1500, MACS, WIRE_LINES, true).unwrap();
    let mut pool = pool(4);
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let mut frames = vec![
        TxFrame { checksum, segment_size: 700, ..frame(&mut pool, &[5; 2000]) },
        frame(&mut pool, &[6; 1000]),
    ];
    assert_eq!(one.tx_burst(&mut pool, &mut frames).unwrap(), 2);
    let mut out = Vec::new();
    assert_eq!(other.rx_burst(&mut pool, &mut out, 64).unwrap(), 2);
    assert_eq!((out[0].len, out[0].segment_size, out[0].checksum_valid), (2000, 700, true));
    assert_eq!((out[1].len, out[1].segment_size, out[1].checksum_valid), (1000, 0, false));
    assert_eq!(out[0].bytes(&pool), [5; 2000]);
    assert_eq!(other.counters().rx_partial_checksum, 1);
}

/// A port in place of whose other end the test writes records.
fn scribbled() -> (Wire, RecordProducer, Doorbell, Arc<Segment>) {
    let segment = Arc::new(Segment::create("test", segment_len(LINES)).unwrap());
    let (ours, theirs) = Doorbell::pair().unwrap();
    let config = WireConfig { mtu: 1500, mac: MACS[0], superframes: true };
    let mut port = Wire::new("", &config, None).unwrap();
    port.attach(Arc::clone(&segment), LINES, ours, Side::First).unwrap();
    let ring = SharedRecords::new(Arc::clone(&segment), record_ring_size(LINES), LINES).unwrap();
    (port, RecordProducer::new(ring), theirs, segment)
}

proptest! {
    /// Whatever the other end writes: no panic, no frame that cannot be one, no endless loop.
    #[test]
    fn a_hostile_end_is_expelled_or_harmless(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        at in 0usize..9000,
        records in prop::collection::vec((0usize..3000, any::<u64>()), 0..6),
    ) {
        let (mut port, mut producer, _bell, segment) = scribbled();
        for (len, tag) in &records {
            let _: Push = producer.push(*tag, &vec![0x45; *len]);
        }
        let _: bool = producer.publish();
        let _: bool = segment.copy_in(at.min(segment.len() - bytes.len()), &bytes);
        let mut pool = pool(8);
        for _ in 0..8 {
            let mut out = Vec::new();
            port.rx_burst(&mut pool, &mut out, 4).unwrap();
            for received in out {
                let len = received.bytes(&pool).len();
                prop_assert!((14..=2048).contains(&len));
                prop_assert!(received.segment_size != 0 || len <= 1518);
                pool.free(received.frame);
            }
            prop_assert!(send(&mut port, &mut pool, &[1; 60]) <= 1);
            let _: bool = port.prepare_sleep();
            port.awake();
        }
        prop_assert_eq!(pool.available(), 8);
        let own = port.wire_counters();
        prop_assert_eq!(port.is_joined(), own.corrupt == 0);
    }
}

#[test]
fn two_threads_lose_nothing() {
    const COUNT: u32 = 20_000;
    let (mut one, mut other) = pair(1500, MACS, LINES, false).unwrap();
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
            if one.tx_burst(&mut pool, &mut frames).unwrap() == 0 {
                sleep_on(&mut one);
            }
        }
        one
    });
    let mut pool = pool(64);
    let mut expected = 0;
    while expected < COUNT {
        let received = receive_all(&mut other, &mut pool);
        for bytes in &received {
            assert_eq!(bytes[..4], expected.to_ne_bytes());
            expected += 1;
        }
        if received.is_empty() {
            sleep_on(&mut other);
        }
    }
    assert_eq!(sender.join().unwrap().counters().tx_frames, u64::from(COUNT));
}

/// Sleeps as the service does, without a time-out that would hide a lost wake-up.
fn sleep_on(port: &mut Wire) {
    if port.prepare_sleep() {
        let mut entry = [sys::PollFd { fd: port.wait_fd().as_raw_fd(), events: 1, revents: 0 }];
        let _: Result<usize, Errno> = sys::ppoll(&mut entry, None);
        port.handle_ready();
    }
    port.awake();
}

impl Peer {
    /// Writes a producer's position that cannot be right.
    fn scribble(&self) {
        let ends = [0, record_ring_size(WIRE_LINES)];
        ends.iter().for_each(|at| assert!(self.segment.copy_in(*at, &[0xff; 4])));
    }
}

fn open(directory: &Path, name: &str) -> Result<Wire, LinkError> {
    Wire::open(directory, name, &WireConfig { mtu: 1500, mac: MACS[0], superframes: true })
}

/// Waits on the port's descriptor until it has seen what the test waits for.
#[track_caller]
fn wait_until(port: &mut Wire, what: impl Fn(&Wire) -> bool) {
    let started = Instant::now();
    while !what(port) {
        assert!(started.elapsed() < Duration::from_secs(60), "never seen: {}", port.describe());
        let mut entry = [sys::PollFd { fd: port.wait_fd().as_raw_fd(), events: 1, revents: 0 }];
        let _: Result<usize, Errno> = sys::ppoll(&mut entry, Some(Duration::from_millis(100)));
        port.handle_ready();
        let mut pool = pool(1);
        receive_all(port, &mut pool);
    }
}

fn check_crossing(one: &mut Wire, other: &mut Wire) {
    let mut pool = pool(4);
    assert_eq!(send(one, &mut pool, &[9; 100]), 1);
    assert_eq!(receive_all(other, &mut pool), [vec![9; 100]]);
    assert_eq!(send(other, &mut pool, &[8; 100]), 1);
    assert_eq!(receive_all(one, &mut pool), [vec![8; 100]]);
}

/// The same while the ends may still part and meet again, which loses what is under way: sends until
/// a frame has come.
fn check_crossing_in_the_end(from: &mut Wire, to: &mut Wire) {
    let (mut pool, started) = (pool(64), Instant::now());
    let mut got = Vec::new();
    while got.is_empty() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "nothing crosses: {}",
            from.describe()
        );
        from.handle_ready();
        send(from, &mut pool, &[9; 100]);
        to.handle_ready();
        got = receive_all(to, &mut pool);
        // What the other end does about nonsense of ours, it does when it looks.
        receive_all(from, &mut pool);
        std::thread::yield_now();
    }
    assert!(got.iter().all(|bytes| *bytes == [9; 100]));
}

#[test]
fn ends_meet_leave_and_meet_again_and_nothing_is_left() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("wires");
    let mut one = open(&directory, "x").unwrap();
    assert!(!one.is_joined());
    let mode = fs::metadata(&directory).unwrap().mode() & 0o777;
    let socket = fs::metadata(directory.join("x.sock")).unwrap().mode() & 0o777;
    assert_eq!((mode, socket), (0o700, 0o600));
    let mut pool = pool(4);
    assert_eq!(send(&mut one, &mut pool, &[1; 60]), 1);
    assert_eq!(one.counters().tx_refused, 1);
    for _ in 0..3 {
        let mut other = open(&directory, "x").unwrap();
        wait_until(&mut one, Wire::is_joined);
        wait_until(&mut other, Wire::is_joined);
        check_crossing(&mut one, &mut other);
        drop(other);
        wait_until(&mut one, |one| !one.is_joined());
    }
    assert_eq!((one.wire_counters().joined, one.wire_counters().left), (3, 3));
    // The owner leaves: the end that stays becomes the owner, and its files stay.
    let mut other = open(&directory, "x").unwrap();
    wait_until(&mut other, Wire::is_joined);
    drop(one);
    wait_until(&mut other, |other| !other.is_joined());
    let mut third = open(&directory, "x").unwrap();
    wait_until(&mut third, Wire::is_joined);
    wait_until(&mut other, Wire::is_joined);
    check_crossing(&mut third, &mut other);
    // A second wire in the same directory.
    let fourth = open(&directory, "y").unwrap();
    drop((third, other));
    assert!(directory.exists());
    drop(fourth);
    assert!(!directory.exists());
}

#[test]
fn a_third_end_another_mtu_and_a_bad_name_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("wires");
    let mut one = open(&directory, "x").unwrap();
    let config = WireConfig { mtu: 9000, mac: MACS[0], superframes: true };
    let error = Wire::open(&directory, "x", &config).unwrap_err().to_string();
    assert!(error.contains("MTU of 1500") && error.contains("9000"), "{error}");
    let other = open(&directory, "x").unwrap();
    wait_until(&mut one, Wire::is_joined);
    let error = open(&directory, "x").unwrap_err().to_string();
    assert!(error.contains("two ends already"), "{error}");
    assert!(other.wire_counters().joined == 1 && one.is_joined());
    for name in ["", "a/b", "..", "a b", &"x".repeat(33)] {
        let error = open(&directory, name).unwrap_err().to_string();
        assert!(error.contains("not a name"), "{error}");
    }
}

#[test]
fn files_of_the_dead_are_taken_over_or_removed() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("wires");
    let stale = || {
        // As after a kill: the socket is there, nobody has the lock.
        std::os::unix::net::UnixListener::bind(directory.join("x.sock")).unwrap();
        fs::write(directory.join("x.lock"), "").unwrap();
    };
    drop(open(&directory, "x").unwrap());
    DirBuilder::new().mode(0o700).create(&directory).unwrap();
    stale();
    let mut one = open(&directory, "x").unwrap();
    let mut other = open(&directory, "x").unwrap();
    wait_until(&mut one, Wire::is_joined);
    wait_until(&mut other, Wire::is_joined);
    remove_leavings(&directory, "x");
    assert!(directory.join("x.sock").exists(), "a living end has it");
    drop((one, other));
    assert!(!directory.exists());
    DirBuilder::new().mode(0o700).create(&directory).unwrap();
    stale();
    remove_leavings(&directory, "x");
    assert!(!directory.exists());
}

#[test]
fn a_directory_that_others_may_enter_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("wires");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    let error = open(&directory, "x").unwrap_err().to_string();
    assert!(error.contains("nobody else may enter"), "{error}");
}

#[test]
fn an_end_that_writes_nonsense_is_dropped_and_a_new_one_made() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("wires");
    let mut one = open(&directory, "x").unwrap();
    let mut other = open(&directory, "x").unwrap();
    wait_until(&mut one, Wire::is_joined);
    wait_until(&mut other, Wire::is_joined);
    // The other end says that more was sent than the ring can hold.
    let mut pool = pool(4);
    other.peer.as_mut().unwrap().scribble();
    assert!(receive_all(&mut one, &mut pool).is_empty());
    assert_eq!((one.wire_counters().corrupt, one.is_joined()), (1, false));
    wait_until(&mut one, Wire::is_joined);
    // The other end has scribbled over its own ring too, and may leave for that once more.
    wait_until(&mut other, |other| other.wire_counters().joined >= 2);
    check_crossing_in_the_end(&mut one, &mut other);
    check_crossing_in_the_end(&mut other, &mut one);
    assert!(one.wire_counters().corrupt == 1 && other.wire_counters().corrupt <= 1);
}
