//! Prints what the shared-memory parts cost on this machine: messages between two pinned threads
//! (one way, round trip), sending through the shared request ring, and bytes through a stream.
//!
//! `cargo run --release -p haypile-shm --example ring_cost [CORE CORE]`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use haypile_shm::limits::{FIFO_USABLE, REQUEST_RING};
use haypile_shm::messages::{Message, Request, RequestBody};
use haypile_shm::ring::{Consumer, Producer, SharedRing, ring_size};
use haypile_shm::{
    AppChannel, AppStatus, AppStream, Arena, Doorbell, Segment, ServiceChannel, ServiceStatus,
    ServiceStream, SocketTable, sys,
};

const MESSAGES: u64 = 20_000_000;
const ROUND_TRIPS: usize = 500_000;
const STREAM_BYTES: u64 = 4 << 30;

fn main() {
    let cores: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let cores = if let [first, second] = cores[..] { [first, second] } else { [0, 1] };
    println!("cores {} and {}", cores[0], cores[1]);
    for burst in [1, 16, 64] {
        one_way(cores, burst);
    }
    round_trip(cores);
    request_sender();
    for size in [64, 1448, 16 * 1024, 64 * 1024] {
        stream_one_thread(size);
    }
    for size in [1448, 16 * 1024, 64 * 1024] {
        stream_two_threads(cores, size);
    }
}

fn pin(core: usize) {
    if sys::set_affinity(&[core]).is_err() {
        eprintln!("core {core}: cannot pin, figures will vary");
    }
}

fn new_ring(capacity: u32) -> (Producer, Consumer) {
    let segment = Segment::create("ring-cost", ring_size(capacity).next_multiple_of(4096));
    let ring = SharedRing::new(Arc::new(segment.expect("memory")), 0, capacity).expect("it fits");
    (Producer::new(ring.clone()), Consumer::new(ring))
}

fn one_way(cores: [usize; 2], burst: usize) {
    let (mut producer, mut consumer) = new_ring(256);
    let sender = std::thread::spawn(move || {
        pin(cores[0]);
        let messages = vec![[7u64; 8]; burst];
        let mut sent = 0;
        while sent < MESSAGES {
            let left = (MESSAGES - sent).min(burst as u64) as usize;
            sent += producer.push_burst(&messages[..left]) as u64;
        }
    });
    pin(cores[1]);
    let start = Instant::now();
    let mut out: Vec<Message> = vec![[0; 8]; burst];
    let mut received = 0;
    while received < MESSAGES {
        received += consumer.pop_burst(&mut out) as u64;
    }
    let seconds = start.elapsed().as_secs_f64();
    sender.join().expect("the sender ends");
    let (cost_ns, rate) = (seconds * 1e9 / MESSAGES as f64, MESSAGES as f64 / seconds / 1e6);
    println!("one way, bursts of {burst:2}:      {cost_ns:7.1} ns a message, {rate:6.1} M/s");
}

fn round_trip(cores: [usize; 2]) {
    let (mut there, mut there_end) = new_ring(64);
    let (mut back, mut back_end) = new_ring(64);
    let echo = std::thread::spawn(move || {
        pin(cores[0]);
        for _ in 0..ROUND_TRIPS {
            let message = spin_for(&mut there_end);
            assert!(back.push(&message));
        }
    });
    pin(cores[1]);
    let mut times_ns = Vec::with_capacity(ROUND_TRIPS);
    for number in 0..ROUND_TRIPS as u64 {
        let start = Instant::now();
        assert!(there.push(&[number; 8]));
        assert_eq!(spin_for(&mut back_end), [number; 8]);
        times_ns.push(start.elapsed().as_nanos() as u64);
    }
    echo.join().expect("the echo ends");
    times_ns.sort_unstable();
    let at = |share: f64| times_ns[(share * (times_ns.len() - 1) as f64) as usize];
    println!("round trip:                {:7} ns median, {} ns 99th percentile", at(0.5), at(0.99));
}

fn spin_for(consumer: &mut Consumer) -> Message {
    loop {
        match consumer.pop() {
            Some(message) => return message,
            None => std::hint::spin_loop(),
        }
    }
}

/// The whole path of a request in one thread: lock, ring, look at the sleep flag, and the
/// service's pop and decode.
fn request_sender() {
    let mut service = ServiceChannel::create().expect("memory");
    let status = ServiceStatus::create().expect("memory");
    let (_ours, theirs) = Doorbell::pair().expect("a socket pair");
    let copy = |fd| sys::dup_at_least(fd, 3).expect("a descriptor");
    let status = AppStatus::open(copy(status.fd())).expect("mapping");
    let application = AppChannel::open(copy(service.fd()), status, theirs).expect("mapping");
    let message = Request::about(1, 1, RequestBody::KickTx).encode();
    let rounds = 10_000;
    let batch = u64::from(REQUEST_RING / 2);
    let start = Instant::now();
    for _ in 0..rounds {
        for _ in 0..batch {
            application.sender().send(&message).expect("room");
        }
        while let Some(message) = service.next_request() {
            Request::decode(&message).expect("a request");
        }
    }
    let cost_ns = start.elapsed().as_nanos() as f64 / (rounds * batch) as f64;
    println!("request, lock to decode:   {cost_ns:7.1} ns, one thread");
}

struct Host {
    arena: Arena,
    service: ServiceStream,
    application: AppStream,
}

fn host() -> Host {
    let mut table = SocketTable::new(10);
    let mut arena = Arena::new(1 << 26);
    let place = table.allocate().expect("a slot");
    let application =
        AppStream::open(place.table.clone(), place.slot, place.generation, 1).expect("a record");
    let mut service = ServiceStream::new(place);
    service.grant_tx(FIFO_USABLE as u64, &mut arena);
    Host { arena, service, application }
}

/// Written by the application, read by the service, acknowledged at once: two copies.
fn stream_one_thread(size: usize) {
    let Host { mut arena, mut service, application } = host();
    let data = vec![7; size];
    let mut out = vec![0; size];
    let rounds = (STREAM_BYTES / 8 / size as u64).min(3_000_000);
    let start = Instant::now();
    let mut sent = 0;
    for _ in 0..rounds {
        let mut done = 0;
        while done < size {
            let outcome = application.write(&data[done..], &arena).expect("a write");
            done += outcome.bytes;
            if outcome.want {
                service.want_tx(FIFO_USABLE as u64, &mut arena).expect("honest");
            }
            let tail = service.observe_tx_tail().expect("honest");
            let len = (tail - sent) as usize;
            assert!(service.read_tx(sent, &mut out[..len], &arena));
            sent = tail;
            service.acked(sent, FIFO_USABLE as u64, &mut arena);
        }
    }
    report("one thread", size, sent, start);
}

/// Written by the service, read by the application, each on a core, two copies.
fn stream_two_threads(cores: [usize; 2], size: usize) {
    let Host { mut arena, mut service, application } = host();
    let chunk = arena.allocate().expect("a chunk");
    let segment = arena.segment(0).expect("the first arena").clone();
    arena.free(chunk);
    let total = STREAM_BYTES;
    let kicked = AtomicBool::new(false);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let kicked = &kicked;
        scope.spawn(move || {
            pin(cores[0]);
            let data = vec![7; size];
            let (mut received, mut head) = (0u64, 0);
            while received < total {
                if kicked.load(Ordering::Relaxed) && kicked.swap(false, Ordering::AcqRel) {
                    head = service.observe_rx_head(&mut arena).expect("honest");
                }
                let room = (head + FIFO_USABLE as u64 - received).min(size as u64) as usize;
                if room == size {
                    received += service.write_rx(received, &data, &mut arena) as u64;
                    service.commit_rx(received);
                } else {
                    std::hint::spin_loop();
                }
            }
        });
        pin(cores[1]);
        let chunks = |_: u32| Some(segment.clone());
        let mut out = vec![0; size];
        let mut read = 0;
        while read < total {
            let outcome = application.read(&mut out, &chunks).expect("a read");
            read += outcome.bytes as u64;
            if outcome.kick {
                kicked.store(true, Ordering::Release);
            }
        }
    });
    report("two threads", size, total, start);
}

fn report(how: &str, size: usize, bytes: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let rate = bytes as f64 / seconds / 1e9;
    let cost_ns = seconds * 1e9 / (bytes as f64 / size as f64);
    println!("stream, {how:11} {size:5} B: {rate:6.2} GB/s, {cost_ns:8.1} ns a call pair");
}
