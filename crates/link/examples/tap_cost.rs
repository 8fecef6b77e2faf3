//! What a frame costs on a TAP: nanoseconds for reading and writing one, 64 and 1514 bytes, by
//! bursts of 64, in a network namespace of its own. Run as root, on a quiet machine:
//! `cargo run --release -p haypile-link --example tap_cost`. Prints the median of the rounds.
//!
//! Reading: the kernel's queue is filled before the clock starts. Writing: frames of an EtherType
//! that nobody handles, so the kernel's part is the TAP alone.

use std::error::Error;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Instant;

use haypile_link::netlink::Netlink;
use haypile_link::netns::{self, Namespace};
use haypile_link::port::{Port, RxFrame, TX_HEADROOM, TxFrame, local_mac};
use haypile_link::tap::{Offload, Tap, TapConfig};
use haypile_shm::pool::{FramePool, SUPERFRAME_SIZE};

const ROUNDS: usize = 41;
const FRAMES_A_ROUND: usize = 1024;
const BURST: usize = 64;
const MTU: u16 = 1500;
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const OURS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Ethernet, IPv4 and UDP headers.
const HEADERS_LEN: usize = 14 + 20 + 8;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let namespace = Namespace::create()?;
    netns::run_in(namespace.as_fd(), measure)?
}

fn measure() -> Outcome<()> {
    for offload in [Offload::None, Offload::Checksum, Offload::Segmentation] {
        let mut config = TapConfig::new(MTU, local_mac("tap_cost"));
        config.host_addresses = vec![(HOST.into(), 24)];
        config.offload = offload;
        let mut tap = Tap::open(&config)?;
        Netlink::open()?.add_neighbour(tap.index(), OURS.into(), tap.mac())?;
        let mut pool = FramePool::new(2 * BURST as u32, frame_size(offload))
            .map_err(|error| format!("{error:?}"))?;
        println!("{}", tap.describe());
        for len in [64, 1514] {
            let (read, lost) = read_cost(&mut tap, &mut pool, len)?;
            let write = write_cost(&mut tap, &mut pool, len)?;
            println!("{len:5} bytes: read {read} ns, write {write} ns a frame ({lost} not read)");
        }
    }
    Ok(())
}

fn frame_size(offload: Offload) -> usize {
    if offload == Offload::Segmentation { SUPERFRAME_SIZE } else { 2048 }
}

/// Median cost of reading a frame of `len` bytes, and how many of those sent did not come.
fn read_cost(tap: &mut Tap, pool: &mut FramePool, len: usize) -> Outcome<(u64, usize)> {
    let socket = UdpSocket::bind((HOST, 0))?;
    socket.connect((OURS, 9))?;
    let payload = vec![0; len - HEADERS_LEN];
    let mut out = Vec::with_capacity(BURST);
    let mut costs = Vec::with_capacity(ROUNDS);
    let mut lost = 0;
    for _ in 0..ROUNDS {
        while receive(tap, pool, &mut out)? > 0 {}
        for _ in 0..FRAMES_A_ROUND {
            socket.send(&payload)?;
        }
        let started = Instant::now();
        let mut received = 0;
        loop {
            match receive(tap, pool, &mut out)? {
                0 => break,
                count => received += count,
            }
        }
        costs.push(started.elapsed().as_nanos() as u64 / received.max(1) as u64);
        lost += FRAMES_A_ROUND.saturating_sub(received);
    }
    Ok((median(costs), lost))
}

fn receive(tap: &mut Tap, pool: &mut FramePool, out: &mut Vec<RxFrame>) -> Outcome<usize> {
    let received = tap.rx_burst(pool, out, BURST)?;
    for frame in out.drain(..) {
        pool.free(frame.frame);
    }
    Ok(received)
}

/// Median cost of writing a frame of `len` bytes.
fn write_cost(tap: &mut Tap, pool: &mut FramePool, len: usize) -> Outcome<u64> {
    let mut bytes = vec![0; len];
    bytes[..6].copy_from_slice(&[0xff; 6]);
    bytes[6..12].copy_from_slice(&tap.mac());
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    let mut frames = Vec::with_capacity(BURST);
    let mut costs = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for _ in 0..FRAMES_A_ROUND / BURST {
            while frames.len() < BURST {
                let mut frame = pool.alloc().ok_or("the pool is empty")?;
                let chunk = pool.bytes_mut(&mut frame);
                chunk[TX_HEADROOM..TX_HEADROOM + len].copy_from_slice(&bytes);
                frames.push(TxFrame::new(frame, len as u32));
            }
            if tap.tx_burst(pool, &mut frames)? != BURST {
                return Err("the TAP took less than a burst".into());
            }
        }
        costs.push(started.elapsed().as_nanos() as u64 / FRAMES_A_ROUND as u64);
    }
    Ok(median(costs))
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}
