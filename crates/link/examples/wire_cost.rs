//! Prints what a wire costs on this machine, between two pinned threads that poll: frames one way,
//! and round trips, through the same port that the service uses.
//!
//! `cargo run --release -p haypile-link --example wire_cost [CORE CORE]`

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use haypile_link::port::{PartialChecksum, Port, TX_HEADROOM, TxFrame};
use haypile_link::wire::{WIRE_LINES, Wire, pair};
use haypile_shm::FramePool;
use haypile_shm::pool::SUPERFRAME_SIZE;
use haypile_shm::sys;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const ROUND_TRIPS: usize = 300_000;

fn main() {
    let cores: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let cores = if let [first, second] = cores[..] { [first, second] } else { [0, 1] };
    println!("cores {} and {}, {} KiB a direction", cores[0], cores[1], WIRE_LINES / 16);
    for (len, count) in [(64, 20_000_000), (1514, 10_000_000), (65_549, 500_000)] {
        one_way(cores, len, count);
    }
    for len in [64, 1514, 65_549] {
        round_trip(cores, len);
    }
}

fn pin(core: usize) {
    if sys::set_affinity(&[core]).is_err() {
        eprintln!("core {core}: cannot pin, figures will vary");
    }
}

fn wires() -> (Wire, Wire) {
    pair(1500, MACS, WIRE_LINES, true).expect("memory")
}

fn pool(len: usize) -> FramePool {
    let size = if len > 2000 { SUPERFRAME_SIZE } else { 2048 };
    FramePool::new(128, size).expect("memory")
}

fn frame(pool: &mut FramePool, len: usize) -> TxFrame {
    let mut frame = pool.alloc().expect("enough frames");
    pool.bytes_mut(&mut frame)[TX_HEADROOM] = 1;
    let large = len > 1514;
    TxFrame {
        checksum: large.then_some(PartialChecksum { start: 34, offset: 16 }),
        segment_size: if large { 1460 } else { 0 },
        ..TxFrame::new(frame, len as u32)
    }
}

fn one_way(cores: [usize; 2], len: usize, count: usize) {
    let (mut one, mut other) = wires();
    // As many as the service hands over at once.
    let burst = if len > 2000 { 4 } else { 64 };
    let sender = std::thread::spawn(move || {
        pin(cores[0]);
        let mut pool = pool(len);
        let (mut frames, mut sent) = (Vec::new(), 0);
        while sent < count {
            while frames.len() < burst {
                frames.push(frame(&mut pool, len));
            }
            sent += one.tx_burst(&mut pool, &mut frames).expect("joined");
        }
    });
    pin(cores[1]);
    let mut pool = pool(len);
    let (mut out, mut received) = (Vec::new(), 0);
    let mut start = Instant::now();
    while received < count {
        let came = other.rx_burst(&mut pool, &mut out, 64).expect("joined");
        if received == 0 && came > 0 {
            start = Instant::now();
        }
        received += came;
        out.drain(..).for_each(|frame| pool.free(frame.frame));
    }
    let seconds = start.elapsed().as_secs_f64();
    sender.join().expect("the sender ends");
    let rate = count as f64 / seconds;
    let gigabits = rate * len as f64 * 8.0 / 1e9;
    println!(
        "one way, {len:5} B: {:7.1} ns a frame, {:6.2} M/s, {gigabits:6.1} Gb/s",
        1e9 / rate,
        rate / 1e6
    );
}

fn round_trip(cores: [usize; 2], len: usize) {
    static STOP: AtomicBool = AtomicBool::new(false);
    STOP.store(false, Ordering::Relaxed);
    let (mut one, mut other) = wires();
    let echo = std::thread::spawn(move || {
        pin(cores[0]);
        let (mut pool, mut out, mut frames) = (pool(len), Vec::new(), Vec::new());
        while !STOP.load(Ordering::Relaxed) {
            if one.rx_burst(&mut pool, &mut out, 1).expect("joined") > 0 {
                out.drain(..).for_each(|frame| pool.free(frame.frame));
                frames.push(frame(&mut pool, len));
                one.tx_burst(&mut pool, &mut frames).expect("joined");
            }
        }
    });
    pin(cores[1]);
    let (mut pool, mut out, mut frames) = (pool(len), Vec::new(), Vec::new());
    let mut times: Vec<u64> = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        frames.push(frame(&mut pool, len));
        other.tx_burst(&mut pool, &mut frames).expect("joined");
        while other.rx_burst(&mut pool, &mut out, 1).expect("joined") == 0 {
            std::hint::spin_loop();
        }
        out.drain(..).for_each(|frame| pool.free(frame.frame));
        times.push(start.elapsed().as_nanos() as u64);
    }
    STOP.store(true, Ordering::Relaxed);
    echo.join().expect("the echo ends");
    times.sort_unstable();
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    println!("round trip, {len:5} B: median {} ns, 99 % {} ns", at(0.5), at(0.99));
}
