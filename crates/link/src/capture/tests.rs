//! Captures of an in-process link: the file's bytes block by block, tshark's view of it when it is
//! installed, and captures that run into their limits while the traffic goes on.

use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::port::TX_HEADROOM;
use crate::wire::{Wire, pair};

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

/// An output that keeps what was written.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output that blocks until its channel is closed.
struct Stuck(Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A captured port, its peer, and a pool that both use.
struct Bench {
    captured: Capture<Wire>,
    peer: Wire,
    pool: FramePool,
}

impl Bench {
    fn new(lines: u32) -> Bench {
        Bench::with(lines, false, FramePool::new(128, 2048).unwrap())
    }

    fn with(lines: u32, superframes: bool, pool: FramePool) -> Bench {
        let (one, other) = pair(1500, MACS, lines, superframes).unwrap();
        Bench { captured: Capture::new(one), peer: other, pool }
    }

    fn frame(&mut self, bytes: &[u8]) -> TxFrame {
        let mut frame = self.pool.alloc().unwrap();
        let target = &mut self.pool.bytes_mut(&mut frame)[TX_HEADROOM..TX_HEADROOM + bytes.len()];
        target.copy_from_slice(bytes);
        TxFrame::new(frame, bytes.len() as u32)
    }

    /// The captured port sends, the peer takes everything off the wire.
    fn send(&mut self, bytes: &[u8]) {
        let mut frames = vec![self.frame(bytes)];
        assert_eq!(self.captured.tx_burst(&mut self.pool, &mut frames).unwrap(), 1);
        assert_eq!(self.drain_peer(), 1);
    }

    fn drain_peer(&mut self) -> usize {
        let mut out = Vec::new();
        let received = self.peer.rx_burst(&mut self.pool, &mut out, 64).unwrap();
        out.into_iter().for_each(|frame| self.pool.free(frame.frame));
        received
    }

    /// The captured port receives.
    fn receive(&mut self, bytes: &[u8]) {
        let mut frames = vec![self.frame(bytes)];
        assert_eq!(self.peer.tx_burst(&mut self.pool, &mut frames).unwrap(), 1);
        let mut out = Vec::new();
        assert_eq!(self.captured.rx_burst(&mut self.pool, &mut out, 64).unwrap(), 1);
        out.into_iter().for_each(|frame| self.pool.free(frame.frame));
    }
}

/// A frame with an EtherType kept for experiments (IEEE 802, 88b5).
fn sample(len: usize, fill: u8) -> Vec<u8> {
    let mut bytes = vec![fill; len];
    bytes[..6].copy_from_slice(&MACS[1]);
    bytes[6..12].copy_from_slice(&MACS[0]);
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

/// Splits a file into blocks (type, body), checking both lengths of each.
fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
    let mut list = Vec::new();
    while !file.is_empty() {
        let len = u32_at(file, 4) as usize;
        assert_eq!(len % 4, 0);
        assert_eq!(u32_at(file, len - 4) as usize, len);
        list.push((u32_at(file, 0), &file[8..len - 4]));
        file = &file[len..];
    }
    list
}

/// Splits options into (code, value); the end of options must be there.
fn options(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut list = Vec::new();
    loop {
        let word = u32_at(bytes, 0).to_ne_bytes();
        let code = u16::from_ne_bytes([word[0], word[1]]);
        let len = usize::from(u16::from_ne_bytes([word[2], word[3]]));
        if code == 0 {
            assert_eq!((len, bytes.len()), (0, 4));
            return list;
        }
        list.push((code, &bytes[4..4 + len]));
        bytes = &bytes[4 + len.next_multiple_of(4)..];
    }
}

#[test]
fn the_file_says_what_passed() {
    let mut bench = Bench::new(512);
    let kept = Kept::default();
    bench.send(&sample(60, 0xaa));
    let before = recorder::now_ns();
    bench.captured.start(kept.clone(), "haypile0", &CaptureOptions::default()).unwrap();
    bench.send(&sample(61, 1));
    bench.receive(&sample(1514, 2));
    let report = bench.captured.stop().unwrap().wait();
    let after = recorder::now_ns();
    bench.send(&sample(60, 0xbb));
    let file = kept.bytes();
    assert_eq!((report.frames, report.lost_frames), (2, 0));
    assert_eq!((report.bytes, report.stopped), (file.len() as u64, Some(StopReason::Requested)));

    let blocks = blocks(&file);
    let kinds: Vec<u32> = blocks.iter().map(|block| block.0).collect();
    assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 6, 5]);
    assert_eq!(u32_at(blocks[0].1, 0), 0x1a2b_3c4d);
    assert_eq!(blocks[0].1[4..8], [1_u16.to_ne_bytes(), 0_u16.to_ne_bytes()].concat());
    assert_eq!(blocks[1].1[..4], [1_u16.to_ne_bytes(), 0_u16.to_ne_bytes()].concat());
    let interface = options(&blocks[1].1[8..]);
    assert_eq!(interface, [(2, b"haypile0".as_slice()), (9, [9].as_slice())]);

    for (block, (len, fill, direction)) in blocks[2..4].iter().zip([(61, 1, 2), (1514, 2, 1_u32)]) {
        let body = block.1;
        let time = u64::from(u32_at(body, 4)) << 32 | u64::from(u32_at(body, 8));
        assert!(before <= time && time <= after);
        assert_eq!((u32_at(body, 12), u32_at(body, 16)), (len as u32, len as u32));
        assert_eq!(body[20..20 + len], sample(len, fill));
        let flags = options(&body[20 + len.next_multiple_of(4)..]);
        assert_eq!(flags, [(2, direction.to_ne_bytes().as_slice())]);
    }
    let totals = options(&blocks[4].1[12..]);
    assert_eq!(totals[0], (4, 2_u64.to_ne_bytes().as_slice()));
    assert_eq!(totals[1], (5, 0_u64.to_ne_bytes().as_slice()));
}

#[test]
fn tshark_reads_the_file() {
    let mut bench = Bench::new(512);
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = file.reopen().unwrap();
    bench.captured.start(output, "haypile7", &CaptureOptions::default()).unwrap();
    bench.send(&sample(60, 1));
    bench.receive(&sample(333, 2));
    bench.captured.stop().unwrap().wait();
    let fields = ["frame.len", "frame.interface_name", "frame.packet_flags_direction", "eth.type"];
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file.path()).args(["-T", "fields"]);
    command.args(fields.iter().flat_map(|field| ["-e", field]));
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return println!("skipped: tshark: {error}"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.len(), 2, "{text}");
    for (row, (len, direction)) in rows.iter().zip([("60", "2"), ("333", "1")]) {
        assert_eq!(row[..2], [len, "haypile7"]);
        // Versions print the flag as a decimal or hexadecimal number.
        assert!(row[2].ends_with(direction), "{text}");
        assert_eq!(row[3], "0x88b5");
    }
}

#[test]
fn snap_len_cuts_frames_but_tells_their_length() {
    let mut bench = Bench::new(512);
    let kept = Kept::default();
    let options = CaptureOptions { snap_len: 33, ..CaptureOptions::default() };
    bench.captured.start(kept.clone(), "x", &options).unwrap();
    bench.send(&sample(500, 3));
    bench.captured.stop().unwrap().wait();
    let file = kept.bytes();
    let blocks = blocks(&file);
    assert_eq!((u32_at(blocks[2].1, 12), u32_at(blocks[2].1, 16)), (33, 500));
    assert_eq!(blocks[2].1[20..53], sample(500, 3)[..33]);
}

#[test]
fn the_byte_limit_ends_the_capture_and_not_the_traffic() {
    let mut bench = Bench::new(512);
    let kept = Kept::default();
    let options = CaptureOptions { limit_bytes: 1000, ..CaptureOptions::default() };
    bench.captured.start(kept.clone(), "x", &options).unwrap();
    for _ in 0..20 {
        bench.send(&sample(200, 4));
    }
    assert_eq!(bench.captured.report().unwrap().stopped, Some(StopReason::ByteLimit));
    let report = bench.captured.stop().unwrap().wait();
    let file = kept.bytes();
    assert!(file.len() <= 1000 && file.len() as u64 == report.bytes);
    assert_eq!(report.frames, 3);
    assert_eq!(blocks(&file).len(), 2 + 3 + 1);
    assert_eq!(report.stopped, Some(StopReason::ByteLimit));

    let options = CaptureOptions { limit_bytes: 50, ..CaptureOptions::default() };
    assert!(bench.captured.start(kept, "x", &options).is_err());
}

#[test]
fn a_full_disk_ends_the_capture_and_not_the_traffic() {
    let mut bench = Bench::new(512);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    bench.captured.start(full, "x", &CaptureOptions::default()).unwrap();
    bench.send(&sample(200, 5));
    let report = bench.captured.stop().unwrap().wait();
    assert!(matches!(&report.stopped, Some(StopReason::WriteFailed(why)) if why.contains("space")));
    bench.send(&sample(200, 5));
}

#[test]
fn a_slow_file_costs_frames_of_the_capture_only() {
    let mut bench = Bench::new(512);
    let (release, blocked) = channel();
    let options = CaptureOptions { buffer_bytes: 2000, ..CaptureOptions::default() };
    bench.captured.start(Stuck(blocked), "x", &options).unwrap();
    for _ in 0..50 {
        bench.send(&sample(200, 6));
    }
    let report = bench.captured.report().unwrap();
    // Two buffers of 2000 bytes hold 7 blocks of 244 each, and the header.
    assert!(report.frames <= 16 && report.frames + report.lost_frames == 50, "{report:?}");
    drop(release);
    assert_eq!(bench.captured.stop().unwrap().wait().lost_frames, report.lost_frames);
}

#[test]
fn frames_that_wait_are_recorded_once() {
    let mut bench = Bench::new(4);
    let kept = Kept::default();
    bench.captured.start(kept.clone(), "x", &CaptureOptions::default()).unwrap();
    let mut frames: Vec<_> = (0..5).map(|n| bench.frame(&sample(60, n))).collect();
    while !frames.is_empty() {
        let sent = bench.captured.tx_burst(&mut bench.pool, &mut frames).unwrap();
        assert_eq!(bench.drain_peer(), sent);
    }
    let report = bench.captured.stop().unwrap().wait();
    assert_eq!(report.frames, 5);
    let file = kept.bytes();
    let fills: Vec<u8> = blocks(&file)[2..7].iter().map(|block| block.1[20 + 59]).collect();
    assert_eq!(fills, [0, 1, 2, 3, 4]);
}

#[test]
fn a_second_start_replaces_the_first_and_drop_completes_the_file() {
    let mut bench = Bench::new(512);
    let (first, second) = (Kept::default(), Kept::default());
    assert!(bench.captured.stop().is_none() && bench.captured.report().is_none());
    let options = CaptureOptions::default();
    assert!(bench.captured.start(first.clone(), "x", &options).unwrap().is_none());
    bench.send(&sample(60, 1));
    let replaced = bench.captured.start(second.clone(), "x", &options).unwrap().unwrap();
    assert_eq!(replaced.wait().frames, 1);
    bench.send(&sample(60, 2));
    drop(bench);
    assert_eq!(blocks(&first.bytes()).len(), 4);
    assert_eq!(blocks(&second.bytes()).len(), 4);
}

#[test]
fn an_unfinished_checksum_is_finished_in_the_copy() {
    let pool = FramePool::new(16, haypile_shm::pool::SUPERFRAME_SIZE).unwrap();
    let mut bench = Bench::with(4096, true, pool);
    let mut unfinished = vec![2; 14];
    unfinished[12..14].copy_from_slice(&[8, 0]);
    unfinished.extend_from_slice(&[0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    unfinished.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    unfinished.extend_from_slice(&[0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 4, 0]);
    unfinished.extend_from_slice(&[0x14, 0x1b, 0, 0, 1, 2, 3, 4]);
    let mut finished = unfinished.clone();
    assert!(crate::offload::complete_checksum(&mut finished) && finished != unfinished);
    for (snap_len, kept_len) in [(262_144, 58), (51, 51), (40, 40)] {
        let kept = Kept::default();
        let options = CaptureOptions { snap_len, ..CaptureOptions::default() };
        bench.captured.start(kept.clone(), "x", &options).unwrap();
        let checksum = Some(crate::port::PartialChecksum { start: 34, offset: 16 });
        let mut frames = vec![TxFrame { checksum, ..bench.frame(&unfinished) }];
        assert_eq!(bench.captured.tx_burst(&mut bench.pool, &mut frames).unwrap(), 1);
        assert_eq!(bench.drain_peer(), 1);
        bench.captured.stop().unwrap().wait();
        let file = kept.bytes();
        // With only half of the field in the copy there is nothing to be right or wrong.
        let wanted = if kept_len == 51 { &unfinished } else { &finished };
        assert_eq!(blocks(&file)[2].1[20..20 + kept_len], wanted[..kept_len]);
    }
}
