//! Bad paths by a clock of the test's own: what is asked for happens, as often as asked for, the
//! same way again from the same seed; superframes come out as whole frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::port::{PartialChecksum, SUPERFRAME_PACKET_MAX};
use crate::wire::{self, WIRE_LINES, Wire};

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const MS: u64 = 1_000_000;

fn path(text: &str, seed: u64) -> Path {
    Path::new(text.parse().unwrap(), seed)
}

/// An IPv4 frame that carries a number.
fn numbered(number: u32) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[40..44].copy_from_slice(&number.to_be_bytes());
    frame
}

/// Everything that is due: numbers.
fn arrived(path: &mut Path, now_ns: u64) -> Vec<u32> {
    let (mut numbers, mut out) = (Vec::new(), [0; 2000]);
    while path.is_due(now_ns) {
        assert_eq!(path.take(&mut out), Some(60));
        numbers.push(u32::from_be_bytes([out[40], out[41], out[42], out[43]]));
    }
    numbers
}

fn run(text: &str, seed: u64, count: u32) -> (Vec<u32>, FaultCounters) {
    let mut path = path(text, seed);
    let mut numbers = Vec::new();
    for number in 0..count {
        path.send(u64::from(number) * 1000, &numbered(number));
        numbers.extend(arrived(&mut path, u64::from(number) * 1000));
    }
    numbers.extend(arrived(&mut path, u64::MAX));
    (numbers, path.counters())
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let text = "loss=5%,dup=3%,reorder=4%,delay=1ms,jitter=500us";
    assert_eq!(run(text, 7, 5000), run(text, 7, 5000));
    assert_ne!(run(text, 7, 5000), run(text, 8, 5000));
    // A further fault does not move the others.
    let lost = |text| run(text, 7, 5000).1.lost;
    assert_eq!(lost("loss=5%"), lost("loss=5%,dup=10%,corrupt=5%,delay=3ms"));
}

#[test]
fn faults_happen_as_often_as_asked_for() {
    let (_, counters) = run("loss=10%,dup=1%,reorder=2%,corrupt=0.5%", 3, 100_000);
    let near = |count: u64, expected: f64| {
        let ratio = count as f64 / expected;
        assert!((0.9..1.1).contains(&ratio), "{count} for {expected}: {counters:?}");
    };
    near(counters.lost, 10_000.0);
    let rest = 90_000.0;
    near(counters.duplicated, rest * 0.01);
    near(counters.reordered, rest * 0.02 * 0.95);
    near(counters.corrupted, rest * 0.005);
    assert_eq!((counters.frames, counters.queue_dropped), (100_000, 0));
}

#[test]
fn a_clean_path_changes_nothing() {
    let (numbers, counters) = run("", 1, 1000);
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    assert_eq!(counters, FaultCounters { frames: 1000, ..FaultCounters::default() });
}

#[test]
fn a_reordered_frame_is_overtaken_by_three_or_waits_for_5_ms() {
    let mut one = path("reorder=100%", 1);
    for number in 0..4 {
        one.send(0, &numbered(number));
    }
    assert_eq!(arrived(&mut one, 0), [1, 2, 3, 0]);
    one.send(0, &numbered(4));
    assert!(arrived(&mut one, 5 * MS - 1).is_empty());
    assert_eq!(one.next_due(), Some(5 * MS));
    assert_eq!(arrived(&mut one, 5 * MS), [4]);
}

#[test]
fn delay_and_jitter_keep_the_order() {
    let mut one = path("delay=10ms,jitter=2ms", 5);
    for number in 0..100 {
        one.send(u64::from(number), &numbered(number));
    }
    assert!(one.next_due().is_some_and(|due| (10 * MS..12 * MS + 100).contains(&due)));
    assert!(!one.is_due(10 * MS - 1));
    assert_eq!(arrived(&mut one, 12 * MS + 100), (0..100).collect::<Vec<_>>());
}

#[test]
fn a_rate_makes_frames_wait_and_a_full_queue_drops() {
    // 60 bytes at 480 kbit/s take 1 ms.
    let mut one = path("rate=480kbit,queue=3,delay=1ms", 1);
    for number in 0..5 {
        one.send(0, &numbered(number));
    }
    assert_eq!(one.counters().queue_dropped, 2);
    assert!(arrived(&mut one, 2 * MS - 1).is_empty());
    assert_eq!(arrived(&mut one, 2 * MS), [0]);
    assert_eq!(arrived(&mut one, 4 * MS), [1, 2]);
    // Two have left by then: two more fit.
    one.send(100 * MS, &numbered(9));
    assert_eq!(one.next_due(), Some(102 * MS));
}

#[test]
fn damage_is_one_bit_of_an_ip_packet() {
    let mut one = path("corrupt=100%", 9);
    for number in 0..500 {
        one.send(0, &numbered(number));
        let mut out = [0; 60];
        assert_eq!(one.take(&mut out), Some(60));
        let bits = |from: usize, to: usize| -> u32 {
            let sent = numbered(number);
            out[from..to].iter().zip(&sent[from..to]).map(|(a, b)| (a ^ b).count_ones()).sum()
        };
        assert_eq!((bits(0, 14), bits(14, 60)), (0, 1));
    }
    one.send(0, &[0; 60]);
    let mut out = [1; 60];
    assert_eq!((one.take(&mut out), out), (Some(60), [0; 60]));
    assert_eq!(one.counters().corrupted, 500);
}

#[test]
fn specs_are_read_as_they_are_written() {
    let text = "loss=1%,dup=0.1%,reorder=2%,corrupt=0.01%,delay=10ms,jitter=2ms,rate=100mbit,\
                queue=100";
    let spec: FaultSpec = text.parse().unwrap();
    let expected = PathSpec {
        loss_ppm: 10_000,
        duplicate_ppm: 1000,
        reorder_ppm: 20_000,
        corrupt_ppm: 100,
        delay_ns: 10 * MS,
        jitter_ns: 2 * MS,
        rate_bits: 100_000_000,
        queue_frames: 100,
    };
    assert_eq!((spec.incoming, spec.outgoing), (expected, expected));
    let spec: FaultSpec = "rx:loss=50%; tx:delay=1.5s, rate=1gbit".parse().unwrap();
    assert_eq!((spec.incoming.loss_ppm, spec.incoming.delay_ns), (500_000, 0));
    assert_eq!((spec.outgoing.delay_ns, spec.outgoing.rate_bits), (1500 * MS, 1_000_000_000));
    for bad in [
        "loss",
        "loss=",
        "loss=1",
        "loss=101%",
        "loss=-1%",
        "loss=1e1%",
        "speed=3",
        "delay=10",
        "delay=61s",
        "rate=1",
        "rate=10bit",
        "queue=5",
        "queue=0,rate=1mbit",
        "up:loss=1%",
        "loss=nan%",
        "delay=infs",
        "loss=.%",
    ] {
        let error = bad.parse::<FaultSpec>().unwrap_err();
        assert!(error.contains('"') || error.contains("rate too"), "{bad}: {error}");
    }
}

proptest! {
    #[test]
    fn specs_survive_being_printed(
        chances in prop::array::uniform4(0u32..=1_000_000),
        times in prop::array::uniform2(0u64..60_000_000),
        rate_kbit in 1u64..1_000_000_000,
        queue in 0u32..1000,
    ) {
        let spec = PathSpec {
            loss_ppm: chances[0],
            duplicate_ppm: chances[1],
            reorder_ppm: chances[2],
            corrupt_ppm: chances[3],
            delay_ns: times[0] * 1000,
            jitter_ns: times[1] * 1000,
            rate_bits: rate_kbit * 1000,
            queue_frames: queue,
        };
        let whole = FaultSpec { incoming: spec, outgoing: PathSpec::default() };
        prop_assert_eq!(spec.to_string().parse::<PathSpec>().unwrap(), spec);
        prop_assert_eq!(whole.to_string().parse::<FaultSpec>().unwrap(), whole);
    }

    #[test]
    fn no_text_and_no_frame_makes_it_panic(
        text in "[a-z0-9=%,.;:]{0,40}",
        frame in prop::collection::vec(any::<u8>(), 14..200),
        segment_size in any::<u16>(),
        unfinished in any::<bool>(),
    ) {
        drop(text.parse::<FaultSpec>());
        let mut one = path("corrupt=50%,dup=50%,reorder=50%", 1);
        let cut = Cut { segment_size, unfinished };
        put(&mut one, 0, &frame, cut, &mut [0; 300]);
        let mut out = [0; 300];
        while one.is_due(u64::MAX) {
            prop_assert!(one.take(&mut out).is_some_and(|len| len >= 14));
        }
    }
}

/// A clock that the test sets.
#[derive(Clone, Debug, Default)]
struct Hand(Arc<AtomicU64>);

impl Clock for Hand {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn pool() -> FramePool {
    FramePool::new(128, 4096).unwrap()
}

fn bad_wire(text: &str) -> (Fault<Wire, Hand>, Wire, Hand) {
    let (one, other) = wire::pair(1500, MACS, WIRE_LINES, true).unwrap();
    let hand = Hand::default();
    let fault = Fault::with_clock(one, &text.parse().unwrap(), 1, hand.clone()).unwrap();
    (fault, other, hand)
}

fn tx_frame(pool: &mut FramePool, bytes: &[u8]) -> TxFrame {
    let mut frame = pool.alloc().unwrap();
    pool.bytes_mut(&mut frame)[TX_HEADROOM..TX_HEADROOM + bytes.len()].copy_from_slice(bytes);
    TxFrame::new(frame, bytes.len() as u32)
}

fn receive(port: &mut impl Port, pool: &mut FramePool) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    port.rx_burst(pool, &mut out, 64).unwrap();
    let bytes = out.iter().map(|frame| frame.bytes(pool).to_vec()).collect();
    out.into_iter().for_each(|frame| pool.free(frame.frame));
    bytes
}

/// An IPv4 TCP superframe with `payload` bytes and nonsense for checksums.
fn superframe(payload: usize) -> Vec<u8> {
    let mut frame = vec![0; 54 + payload];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&(40 + payload as u16).to_be_bytes());
    (frame[22], frame[23]) = (64, 6);
    frame[26..34].copy_from_slice(&[198, 18, 0, 1, 198, 18, 0, 2]);
    (frame[46], frame[47]) = (0x50, 0x18);
    for (index, byte) in frame[54..].iter_mut().enumerate() {
        *byte = (index % 251) as u8;
    }
    frame
}

fn check_pieces(pieces: &[Vec<u8>], payload: usize) {
    assert!(payload < SUPERFRAME_PACKET_MAX as usize);
    let mut whole = Vec::new();
    for piece in pieces {
        let (at, right) = offload::right_checksum(piece).unwrap();
        assert_eq!(piece[at..at + 2], right.to_be_bytes());
        assert!(piece.len() <= 1054);
        whole.extend_from_slice(&piece[54..]);
    }
    assert_eq!(whole, superframe(payload)[54..]);
}

#[test]
fn superframes_come_out_as_whole_frames_both_ways() {
    let (mut fault, mut other, _) = bad_wire("");
    let mut pool = pool();
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let super_tx = |pool: &mut _| TxFrame {
        checksum,
        segment_size: 1000,
        ..tx_frame(pool, &superframe(2500))
    };
    let mut frames = vec![super_tx(&mut pool)];
    assert_eq!(fault.tx_burst(&mut pool, &mut frames).unwrap(), 1);
    let pieces = receive(&mut other, &mut pool);
    assert_eq!(pieces.len(), 3);
    check_pieces(&pieces, 2500);
    let mut frames = vec![super_tx(&mut pool)];
    assert_eq!(other.tx_burst(&mut pool, &mut frames).unwrap(), 1);
    check_pieces(&receive(&mut fault, &mut pool), 2500);
    assert_eq!(pool.available(), 128);
    let (incoming, outgoing) = fault.fault_counters();
    assert_eq!((incoming.frames, outgoing.frames), (3, 3));
}

#[test]
fn each_direction_has_faults_of_its_own() {
    let (mut fault, mut other, hand) = bad_wire("rx:delay=3ms;tx:loss=100%");
    let mut pool = pool();
    let mut frames = vec![tx_frame(&mut pool, &numbered(1))];
    fault.tx_burst(&mut pool, &mut frames).unwrap();
    assert!(receive(&mut other, &mut pool).is_empty());
    let mut frames = vec![tx_frame(&mut pool, &numbered(2))];
    other.tx_burst(&mut pool, &mut frames).unwrap();
    assert!(receive(&mut fault, &mut pool).is_empty());
    hand.0.store(3 * MS, Ordering::Relaxed);
    assert!(!fault.prepare_sleep(), "a frame is due");
    assert_eq!(receive(&mut fault, &mut pool), [numbered(2)]);
    let counters = fault.more_counters();
    assert!(counters.contains(&("fault_tx_lost", 1)) && counters.contains(&("fault_rx_lost", 0)));
}

#[test]
fn a_full_port_keeps_what_is_due() {
    let (one, mut other) = wire::pair(1500, MACS, 4, false).unwrap();
    let hand = Hand::default();
    let mut fault = Fault::with_clock(one, &FaultSpec::default(), 1, hand).unwrap();
    let mut pool = pool();
    let mut frames: Vec<_> = (0..5).map(|n| tx_frame(&mut pool, &numbered(n))).collect();
    assert_eq!(fault.tx_burst(&mut pool, &mut frames).unwrap(), 5);
    let mut numbers = Vec::new();
    for _ in 0..5 {
        numbers.extend(receive(&mut other, &mut pool).iter().map(|frame| frame[43]));
        assert!(receive(&mut fault, &mut pool).is_empty());
    }
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
}

/// By the real clock: a sleeper is woken for what is due, and for what comes meanwhile.
#[test]
fn a_sleeper_is_woken_when_a_frame_is_due() {
    let (one, mut other) = wire::pair(1500, MACS, WIRE_LINES, true).unwrap();
    let mut fault = Fault::new(one, &"delay=5ms".parse().unwrap(), 1).unwrap();
    let mut pool = pool();
    let started = Monotonic.now_ns();
    let mut frames = vec![tx_frame(&mut pool, &numbered(1))];
    fault.tx_burst(&mut pool, &mut frames).unwrap();
    let mut back = vec![tx_frame(&mut pool, &numbered(2))];
    other.tx_burst(&mut pool, &mut back).unwrap();
    let (mut there, mut here) = (Vec::new(), Vec::new());
    while there.is_empty() || here.is_empty() {
        if fault.prepare_sleep() {
            let fd = fault.wait_fd().as_raw_fd();
            let mut entry = [sys::PollFd { fd, events: libc::POLLIN, revents: 0 }];
            // Without a time-out: a timer that never goes would hang the test.
            let _: sys::Result<usize> = sys::ppoll(&mut entry, None);
            fault.handle_ready();
        }
        fault.awake();
        here.extend(receive(&mut fault, &mut pool));
        there.extend(receive(&mut other, &mut pool));
    }
    assert!(Monotonic.now_ns() - started >= 5 * MS);
    assert_eq!((there, here), (vec![numbered(1)], vec![numbered(2)]));
}
