//! TAPs in namespaces the tests make: the kernel's frames as we see them, ours as its sockets do.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use super::setup::DEVICE;
use super::*;
use crate::netlink::Netlink;
use crate::netns::{self, Namespace};
use crate::port::{PartialChecksum, local_mac};

const HOST_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const OURS_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1);
const OURS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 2);
const UDP: u8 = 17;
/// No test waits longer for a frame that must come.
const PATIENCE: Duration = Duration::from_secs(60);

fn in_namespace(test: impl FnOnce() + Send) {
    match Namespace::create() {
        Ok(namespace) if File::open(DEVICE).is_ok() => {
            netns::run_in(namespace.as_fd(), test).unwrap();
        }
        Ok(_) => println!("skipped: {DEVICE} cannot be opened"),
        Err(error) => println!("skipped: {error}"),
    }
}

fn config() -> TapConfig {
    let mut config = TapConfig::new(1500, local_mac("test"));
    config.host_addresses = vec![(HOST_V4.into(), 24), (HOST_V6.into(), 64)];
    config
}

/// A TAP with a pool, received frames as vectors.
struct Bench {
    tap: Tap,
    pool: FramePool,
}

impl Bench {
    fn new(config: &TapConfig) -> Bench {
        Bench { tap: Tap::open(config).unwrap(), pool: FramePool::new(256, 2048).unwrap() }
    }

    /// The first frame that `wanted` says yes to, and whether its checksum is valid.
    fn wait_for(&mut self, wanted: impl Fn(&[u8]) -> bool) -> (Vec<u8>, bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut out = Vec::new();
        while Instant::now() < deadline {
            self.tap.rx_burst(&mut self.pool, &mut out, 16).unwrap();
            let mut found = None;
            for received in out.drain(..) {
                let bytes = received.bytes(&self.pool);
                if found.is_none() && wanted(bytes) {
                    found = Some((bytes.to_vec(), received.checksum_valid));
                }
                self.pool.free(received.frame);
            }
            if let Some(found) = found {
                assert_eq!(self.pool.available(), 256);
                return found;
            }
            std::thread::yield_now();
        }
        panic!("no such frame came");
    }

    fn send(&mut self, frames: &[Vec<u8>]) -> io::Result<usize> {
        let mut list = Vec::new();
        for bytes in frames {
            let mut frame = self.pool.alloc().unwrap();
            let chunk = self.pool.bytes_mut(&mut frame);
            chunk[TX_HEADROOM..TX_HEADROOM + bytes.len()].copy_from_slice(bytes);
            list.push(TxFrame::new(frame, bytes.len() as u32));
        }
        let sent = self.tap.tx_burst(&mut self.pool, &mut list);
        list.drain(..).for_each(|left| self.pool.free(left.frame));
        assert_eq!(self.pool.available(), 256);
        sent
    }

    fn host_mac(&self) -> [u8; 6] {
        Netlink::open().unwrap().link_by_name(self.tap.name()).unwrap().mac.unwrap()
    }

    fn tell_host_our_mac(&self) {
        let mut netlink = Netlink::open().unwrap();
        for address in [IpAddr::from(OURS_V4), IpAddr::from(OURS_V6)] {
            netlink.add_neighbour(self.tap.index(), address, self.tap.mac()).unwrap();
        }
    }
}

/// The ones' complement sum of 16-bit words (RFC 1071), not yet complemented.
fn sum(bytes: &[u8], mut start: u32) -> u32 {
    for pair in bytes.chunks(2) {
        start += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
    }
    while start > 0xffff {
        start = (start & 0xffff) + (start >> 16);
    }
    start
}

/// The pseudo header's part of a UDP checksum.
fn pseudo_sum(source: &[u8], destination: &[u8], len: usize) -> u32 {
    sum(source, 0) + sum(destination, 0) + u32::from(UDP) + len as u32
}

fn udp(source: &[u8], destination: &[u8], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len();
    let mut datagram = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    datagram.extend_from_slice(&(len as u16).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    let checksum = !(sum(&datagram, pseudo_sum(source, destination, len)) as u16);
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    datagram
}

fn frame_v4(to: [u8; 6], from: [u8; 6], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let datagram = udp(&OURS_V4.octets(), &HOST_V4.octets(), ports, payload);
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, UDP, 0, 0];
    header[2..4].copy_from_slice(&(20 + datagram.len() as u16).to_be_bytes());
    header.extend_from_slice(&OURS_V4.octets());
    header.extend_from_slice(&HOST_V4.octets());
    let checksum = !(sum(&header, 0) as u16);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    [to.as_slice(), &from, &[8, 0], &header, &datagram].concat()
}

fn frame_v6(to: [u8; 6], from: [u8; 6], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let datagram = udp(&OURS_V6.octets(), &HOST_V6.octets(), ports, payload);
    let len = (datagram.len() as u16).to_be_bytes();
    let header = [0x60, 0, 0, 0, len[0], len[1], UDP, 64];
    [to.as_slice(), &from, &[0x86, 0xdd], &header, &OURS_V6.octets(), &HOST_V6.octets(), &datagram]
        .concat()
}

fn is_udp_v4(frame: &[u8]) -> bool {
    frame.len() > 42
        && frame[12..14] == [8, 0]
        && frame[23] == UDP
        && frame[30..34] == OURS_V4.octets()
}

fn is_udp_v6(frame: &[u8]) -> bool {
    frame.len() > 62
        && frame[12..14] == [0x86, 0xdd]
        && frame[20] == UDP
        && frame[38..54] == OURS_V6.octets()
}

#[test]
fn the_kernel_asks_for_our_addresses() {
    in_namespace(|| {
        let mut bench = Bench::new(&config());
        let v4 = UdpSocket::bind((HOST_V4, 0)).unwrap();
        v4.send_to(b"x", (OURS_V4, 7)).unwrap();
        let is_request = |frame: &[u8]| frame.len() >= 42 && frame[12..14] == [8, 6];
        let (request, _) = bench.wait_for(is_request);
        assert_eq!(request[..6], [0xff; 6]);
        assert_eq!(request[6..12], bench.host_mac());
        assert_eq!(request[20..22], [0, 1]);
        assert_eq!(
            (&request[28..32], &request[38..42]),
            (&HOST_V4.octets()[..], &OURS_V4.octets()[..])
        );

        // Binding works at once only when duplicate address detection was skipped.
        let v6 = UdpSocket::bind((HOST_V6, 0)).unwrap();
        v6.send_to(b"x", (OURS_V6, 7)).unwrap();
        let is_solicitation = |frame: &[u8]| {
            frame.len() >= 78
                && frame[12..14] == [0x86, 0xdd]
                && frame[20] == 58
                && frame[54] == 135
                && frame[62..78] == OURS_V6.octets()
        };
        let (solicitation, _) = bench.wait_for(is_solicitation);
        assert_eq!(solicitation[..6], [0x33, 0x33, 0xff, 0, 0, 2]);
        assert_eq!(solicitation[22..38], HOST_V6.octets());
    });
}

#[test]
fn datagrams_of_the_kernel_arrive_whole() {
    in_namespace(|| {
        let mut bench = Bench::new(&config());
        bench.tell_host_our_mac();
        let payload: Vec<u8> = (0..1472).map(|n| n as u8).collect();
        let v4 = UdpSocket::bind((HOST_V4, 0)).unwrap();
        v4.send_to(&payload, (OURS_V4, 7)).unwrap();
        let (frame, valid) = bench.wait_for(is_udp_v4);
        assert_eq!((&frame[..6], frame.len()), (&bench.tap.mac()[..], 1514));
        assert_eq!(frame[42..], payload);
        assert!(!valid, "nobody verified it");
        let pseudo = pseudo_sum(&frame[26..30], &frame[30..34], frame.len() - 34);
        assert_eq!(sum(&frame[34..], pseudo), 0xffff, "the kernel filled it in");

        let v6 = UdpSocket::bind((HOST_V6, 0)).unwrap();
        v6.send_to(b"six", (OURS_V6, 7)).unwrap();
        let (frame, _) = bench.wait_for(is_udp_v6);
        assert_eq!(frame[62..], *b"six");
        assert_eq!(bench.tap.counters().rx_partial_checksum, 0);
        assert!(bench.tap.counters().rx_bytes >= 1514);
    });
}

#[test]
fn unfinished_checksums_count_as_valid() {
    in_namespace(|| {
        let mut bench = Bench::new(&TapConfig { offload: Offload::Checksum, ..config() });
        assert!(bench.tap.features().rx_checksum);
        bench.tell_host_our_mac();
        let v4 = UdpSocket::bind((HOST_V4, 0)).unwrap();
        v4.send_to(b"unfinished", (OURS_V4, 7)).unwrap();
        let (frame, valid) = bench.wait_for(is_udp_v4);
        assert_eq!(frame[42..], *b"unfinished");
        assert!(valid && bench.tap.counters().rx_partial_checksum >= 1);
    });
}

#[test]
fn our_frames_reach_the_kernels_sockets() {
    in_namespace(|| {
        let mut bench = Bench::new(&config());
        let (to, from) = (bench.host_mac(), bench.tap.mac());
        let v4 = UdpSocket::bind((HOST_V4, 0)).unwrap();
        let v6 = UdpSocket::bind((HOST_V6, 0)).unwrap();
        let port = |socket: &UdpSocket| (9, socket.local_addr().unwrap().port());
        let payload: Vec<u8> = (0..1472).map(|n| n as u8).collect();
        let frames = vec![
            frame_v4(to, from, port(&v4), &payload),
            frame_v6(to, from, port(&v6), b"six"),
            frame_v4(to, from, port(&v4), b"second"),
        ];
        assert_eq!(bench.send(&frames).unwrap(), 3);
        let receive = |socket: &UdpSocket| {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut buffer = [0; 2000];
            let (len, sender) = socket.recv_from(&mut buffer).unwrap();
            (buffer[..len].to_vec(), sender)
        };
        assert_eq!(receive(&v4), (payload, (OURS_V4, 9).into()));
        assert_eq!(receive(&v4).0, b"second");
        assert_eq!(receive(&v6), (b"six".to_vec(), (OURS_V6, 9).into()));
        assert_eq!(bench.tap.counters().tx_frames, 3);
    });
}

#[test]
fn names_are_the_first_free_and_go_with_the_descriptor() {
    in_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let plain = TapConfig::new(1500, local_mac("test"));
        let (first, second) = (Tap::open(&plain).unwrap(), Tap::open(&plain).unwrap());
        assert_eq!((first.name(), second.name()), ("haypile0", "haypile1"));
        let link = netlink.link_by_name("haypile0").unwrap();
        assert_eq!((link.index, link.mtu, link.is_up()), (first.index(), 1500, true));
        let taken = Tap::open(&TapConfig { name: Some("haypile1".into()), ..plain.clone() });
        let taken = taken.unwrap_err();
        assert!(taken.to_string().contains("cannot create the interface haypile1"), "{taken}");
        drop(first);
        assert!(netlink.link_by_name("haypile0").is_err());
        assert_eq!(Tap::open(&plain).unwrap().name(), "haypile0");
        let long = TapConfig { name: Some("a".repeat(16)), ..plain.clone() };
        assert_eq!(Tap::open(&long).unwrap_err().errno(), Some(libc::EINVAL));
        // A failed set-up leaves nothing behind.
        let odd = TapConfig { mtu: 20, name: Some("odd".into()), ..plain };
        assert!(Tap::open(&odd).unwrap_err().to_string().contains("MTU of odd"));
        assert!(netlink.link_by_name("odd").is_err());
    });
}

#[test]
fn an_interface_that_is_down_or_gone() {
    in_namespace(|| {
        let mut bench = Bench::new(&config());
        let mut netlink = Netlink::open().unwrap();
        let frame = frame_v4(bench.host_mac(), bench.tap.mac(), (1, 2), b"x");
        netlink.set_down(bench.tap.index()).unwrap();
        assert_eq!(bench.send(&[frame.clone(), frame.clone()]).unwrap(), 2);
        assert_eq!(bench.tap.counters().interface_down, 2);
        netlink.delete_link(bench.tap.index()).unwrap();
        assert!(bench.send(&[frame]).is_err());
        let mut out = Vec::new();
        assert!(bench.tap.rx_burst(&mut bench.pool, &mut out, 4).is_err());
        assert_eq!(bench.pool.available(), 256);
    });
}

#[test]
fn misfits_are_dropped_and_counted() {
    in_namespace(|| {
        let mut bench = Bench::new(&config());
        bench.tell_host_our_mac();
        assert_eq!(bench.send(&[vec![0; 13], vec![0; 1515]]).unwrap(), 2);
        let counters = bench.tap.counters();
        assert_eq!((counters.tx_too_short, counters.tx_too_long), (1, 1));
        // Somebody raises the host's MTU: what does not fit a chunk is dropped, the rest arrives.
        Netlink::open().unwrap().set_mtu(bench.tap.index(), 4000).unwrap();
        let v4 = UdpSocket::bind((HOST_V4, 0)).unwrap();
        v4.send_to(&[0; 3000], (OURS_V4, 7)).unwrap();
        v4.send_to(b"after", (OURS_V4, 7)).unwrap();
        assert_eq!(bench.wait_for(is_udp_v4).0[42..], *b"after");
        assert_eq!(bench.tap.counters().rx_too_long, 1);
    });
}

#[test]
fn headers_are_judged() {
    in_namespace(|| {
        let mut bench = Bench::new(&config());
        let tap = &mut bench.tap;
        let judged = |checksum_valid| Some(Judged { len: 60, checksum_valid, segment_size: 0 });
        let mut header = [0; virtio::HEADER_LEN];
        assert_eq!(tap.judge(&header, 72, 2000), judged(false));
        assert_eq!(tap.judge(&header, 11, 2000), None);
        assert_eq!(tap.judge(&header, 25, 2000), None);
        assert_eq!(tap.judge(&header, 2000, 2000), None);
        header[0] = 2;
        assert_eq!(tap.judge(&header, 72, 2000), judged(true));
        header[0] = 1;
        assert_eq!(tap.judge(&header, 72, 2000), judged(true));
        header[1] = 1;
        assert_eq!(tap.judge(&header, 72, 2000), None);
        let counters = tap.counters();
        assert_eq!((counters.rx_too_short, counters.rx_too_long), (2, 1));
        assert_eq!((counters.rx_partial_checksum, counters.rx_unsegmented), (1, 1));
        assert_eq!((counters.rx_frames, counters.rx_bytes), (3, 180));
    });
}

#[test]
fn small_chunks_and_an_empty_pool() {
    in_namespace(|| {
        let mut bench = Bench::new(&TapConfig { mtu: 4000, ..config() });
        let mut out = Vec::new();
        let error = bench.tap.rx_burst(&mut bench.pool, &mut out, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let mut large = FramePool::new(1, 4096).unwrap();
        assert!(bench.tap.rx_burst(&mut large, &mut out, 1).is_ok());
        let held = if out.is_empty() { large.alloc() } else { None };
        assert_eq!(bench.tap.rx_burst(&mut large, &mut out, 1).unwrap(), 0);
        assert_eq!(bench.tap.counters().rx_no_chunk, 1);
        held.into_iter()
            .chain(out.into_iter().map(|received| received.frame))
            .for_each(|frame| large.free(frame));
        assert_eq!(large.available(), 1);
    });
}

#[test]
fn further_queues_share_the_interface() {
    in_namespace(|| {
        let first = Tap::open(&TapConfig { multi_queue: true, ..config() }).unwrap();
        let second = first.another_queue().unwrap();
        assert_eq!((first.name(), first.index()), (second.name(), second.index()));
        let pool = FramePool::new(256, 2048).unwrap();
        let mut bench = Bench { tap: second, pool };
        let v4 = UdpSocket::bind((HOST_V4, 0)).unwrap();
        v4.set_read_timeout(Some(PATIENCE)).unwrap();
        let ports = (9, v4.local_addr().unwrap().port());
        let frame = frame_v4(bench.host_mac(), bench.tap.mac(), ports, b"second queue");
        drop(first);
        bench.send(&[frame]).unwrap();
        let mut buffer = [0; 64];
        assert_eq!(v4.recv(&mut buffer).unwrap(), 12);
        let name = bench.tap.name().to_owned();
        drop(bench);
        assert!(Netlink::open().unwrap().link_by_name(&name).is_err());
        let single = Tap::open(&config()).unwrap();
        assert_eq!(single.another_queue().unwrap_err().errno(), Some(libc::EINVAL));
    });
}

#[test]
fn batches_are_taken_only_where_negotiated() {
    in_namespace(|| {
        let mut header = [0; virtio::HEADER_LEN];
        header[..6].copy_from_slice(&[1, 1, 54, 0, 0xa8, 5]);
        let mut plain = Tap::open(&TapConfig { offload: Offload::Checksum, ..config() }).unwrap();
        assert_eq!(plain.judge(&header, 9000, 69_000), None);
        assert_eq!(plain.counters().rx_unsegmented, 1);
        let config = TapConfig { offload: Offload::Segmentation, ..config() };
        let mut tap = Tap::open(&config).unwrap();
        let judged = Judged { len: 8988, checksum_valid: true, segment_size: 1448 };
        assert_eq!(tap.judge(&header, 9000, 69_000), Some(judged));
        assert_eq!(tap.counters().rx_superframes, 1);
        header[1] = 5;
        assert_eq!(tap.judge(&header, 9000, 69_000), None, "UDP was not asked for");
        let features = tap.features();
        assert_eq!((features.tx_segmentation_max, features.rx_segmentation_max), (65_535, 65_535));
        let mut small = FramePool::new(1, 4096).unwrap();
        assert!(tap.rx_burst(&mut small, &mut Vec::new(), 1).is_err());
    });
}

#[test]
fn the_kernel_finishes_checksums_and_refuses_nonsense() {
    in_namespace(|| {
        let mut bench = Bench::new(&TapConfig { offload: Offload::Checksum, ..config() });
        let v6 = UdpSocket::bind((HOST_V6, 0)).unwrap();
        v6.set_read_timeout(Some(PATIENCE)).unwrap();
        let ports = (9, v6.local_addr().unwrap().port());
        let mut bytes = frame_v6(bench.host_mac(), bench.tap.mac(), ports, b"unfinished");
        let pseudo = pseudo_sum(&bytes[22..38], &bytes[38..54], bytes.len() - 54);
        let folded = ((pseudo & 0xffff) + (pseudo >> 16)) as u16;
        bytes[60..62].copy_from_slice(&folded.to_be_bytes());
        let mut list = Vec::new();
        let beyond = PartialChecksum { start: 60_000, offset: 6 };
        for checksum in [Some(beyond), Some(PartialChecksum { start: 54, offset: 6 })] {
            let mut frame = bench.pool.alloc().unwrap();
            let chunk = bench.pool.bytes_mut(&mut frame);
            chunk[TX_HEADROOM..TX_HEADROOM + bytes.len()].copy_from_slice(&bytes);
            list.push(TxFrame { checksum, ..TxFrame::new(frame, bytes.len() as u32) });
        }
        let Bench { tap, pool } = &mut bench;
        assert_eq!(tap.tx_burst(pool, &mut list).unwrap(), 2);
        let mut buffer = [0; 64];
        assert_eq!(v6.recv(&mut buffer).unwrap(), 10);
        let counters = tap.counters();
        assert_eq!((counters.tx_refused, counters.tx_frames), (1, 1));
    });
}

#[test]
fn a_queue_outlives_its_port_and_becomes_one_again() {
    in_namespace(|| {
        let first = Tap::open(&TapConfig { offload: Offload::Checksum, ..config() }).unwrap();
        let (queue, facts) = (first.queue().unwrap(), first.facts().clone());
        drop(first);
        let tap = Tap::from_queue(queue, facts.clone()).unwrap();
        assert_eq!((tap.facts(), tap.mac(), tap.mtu()), (&facts, local_mac("test"), 1500));
        let mut bench = Bench { tap, pool: FramePool::new(256, 2048).unwrap() };
        bench.tell_host_our_mac();
        let v4 = UdpSocket::bind((HOST_V4, 0)).unwrap();
        v4.send_to(b"again", (OURS_V4, 7)).unwrap();
        assert_eq!(bench.wait_for(is_udp_v4).0[42..], *b"again");
        // Neither another interface's queue nor another file will do.
        let other = TapFacts { name: "other".into(), ..facts.clone() };
        let error = Tap::from_queue(bench.tap.queue().unwrap(), other).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EBADFD));
        let file: OwnedFd = File::open("/dev/null").unwrap().into();
        assert!(Tap::from_queue(file, facts).is_err());
    });
}

#[test]
fn every_flow_comes_on_its_queue() {
    in_namespace(|| {
        let config = TapConfig { offload: Offload::Checksum, ..config() };
        let mut queues = Tap::open_queues(&config, 4).unwrap();
        let Some(steering) = queues[0].facts().steering.clone() else {
            return println!("skipped: no program may be loaded");
        };
        let mut netlink = Netlink::open().unwrap();
        for address in [IpAddr::from(OURS_V4), IpAddr::from(OURS_V6)] {
            netlink.add_neighbour(queues[0].index(), address, queues[0].mac()).unwrap();
        }
        for port in 7..107 {
            let v4 = UdpSocket::bind((HOST_V4, 0)).unwrap();
            v4.send_to(b"flow", (OURS_V4, port)).unwrap();
            // Cut into fragments, which all go by their addresses.
            v4.send_to(&[1; 4000], (OURS_V4, 7)).unwrap();
            let v6 = UdpSocket::bind((HOST_V6, 0)).unwrap();
            v6.send_to(b"flow", (OURS_V6, port)).unwrap();
        }
        let mut pool = FramePool::new(2048, 2048).unwrap();
        let (mut seen, deadline) = ([0; 4], Instant::now() + PATIENCE);
        while seen.iter().sum::<u32>() < 500 && Instant::now() < deadline {
            for (number, queue) in queues.iter_mut().enumerate() {
                let mut out = Vec::new();
                queue.rx_burst(&mut pool, &mut out, 600).unwrap();
                for received in out {
                    let frame = received.bytes(&pool);
                    assert_eq!(usize::from(steering.queue(frame)), number, "{frame:?}");
                    seen[number] += u32::from(is_udp_v4(frame) || is_udp_v6(frame));
                    pool.free(received.frame);
                }
            }
        }
        let total: u32 = seen.iter().sum();
        assert!(total == 500 && seen.iter().all(|&count| count > 10), "{seen:?}");
    });
}

#[test]
fn a_queue_that_goes_gives_its_number_to_the_last() {
    in_namespace(|| {
        let config = TapConfig { offload: Offload::Checksum, ..config() };
        let mut queues = Tap::open_queues(&config, 3).unwrap();
        let (Some(steering), Some(map)) =
            (queues[0].facts().steering.clone(), queues[0].take_steering_map())
        else {
            return println!("skipped: no program may be loaded");
        };
        let (index, mac) = (queues[0].index(), queues[0].mac());
        Netlink::open().unwrap().add_neighbour(index, OURS_V4.into(), mac).unwrap();
        Tap::detach_queue(queues[1].wait_fd()).unwrap();
        assert!(Tap::detach_queue(queues[1].wait_fd()).is_err(), "it is gone");
        // Frames of the queue that is gone come on the first, those of the last on what is number 1 now.
        let now = steering.renumbered(|_, queue| u16::from(queue == 2));
        map.update(&now).unwrap();
        for port in 7..107 {
            UdpSocket::bind((HOST_V4, 0)).unwrap().send_to(b"flow", (OURS_V4, port)).unwrap();
        }
        let mut pool = FramePool::new(2048, 2048).unwrap();
        let (mut seen, deadline) = ([0; 3], Instant::now() + PATIENCE);
        while seen.iter().sum::<u32>() < 100 && Instant::now() < deadline {
            for (number, queue) in queues.iter_mut().enumerate() {
                let mut out = Vec::new();
                queue.rx_burst(&mut pool, &mut out, 600).unwrap();
                for received in out {
                    let frame = received.bytes(&pool);
                    assert_eq!(now.queue(frame) == 1, number == 2, "{frame:?}");
                    seen[number] += u32::from(is_udp_v4(frame));
                    pool.free(received.frame);
                }
            }
        }
        assert!(seen[0] + seen[2] == 100 && seen[2] > 10 && seen[1] == 0, "{seen:?}");
    });
}

#[test]
fn several_queues_are_one_port() {
    in_namespace(|| {
        let queues = Tap::open_queues(&config(), 3).unwrap();
        let mut port = TapQueues::new(queues).unwrap();
        let (index, mac) = (port.queues()[0].index(), port.mac());
        Netlink::open().unwrap().add_neighbour(index, OURS_V4.into(), mac).unwrap();
        for _ in 0..50 {
            UdpSocket::bind((HOST_V4, 0)).unwrap().send_to(b"flow", (OURS_V4, 7)).unwrap();
        }
        let mut pool = FramePool::new(256, 2048).unwrap();
        let (mut found, mut out) = (0, Vec::new());
        let deadline = Instant::now() + PATIENCE;
        while found < 50 && Instant::now() < deadline {
            port.rx_burst(&mut pool, &mut out, 7).unwrap();
            for received in out.drain(..) {
                found += u32::from(is_udp_v4(received.bytes(&pool)));
                pool.free(received.frame);
            }
        }
        assert_eq!((found, pool.available()), (50, 256));
        assert!(port.counters().rx_frames >= 50);
        let steering = port.steering().unwrap().clone();
        let (mut frames, mut wanted) = (Vec::new(), [0; 3]);
        let host_mac = Netlink::open().unwrap().link_by_name(port.queues()[0].name());
        let host_mac = host_mac.unwrap().mac.unwrap();
        for number in 0..60 {
            let bytes = frame_v4(host_mac, mac, (9, 1000 + number), b"by its own queue");
            wanted[usize::from(steering.queue(&bytes))] += 1;
            let mut frame = pool.alloc().unwrap();
            let room = &mut pool.bytes_mut(&mut frame)[TX_HEADROOM..];
            room[..bytes.len()].copy_from_slice(&bytes);
            frames.push(TxFrame::new(frame, bytes.len() as u32));
        }
        assert_eq!(port.tx_burst(&mut pool, &mut frames).unwrap(), 60);
        let sent: Vec<u64> = port.queues().iter().map(|queue| queue.counters().tx_frames).collect();
        assert_eq!(sent, wanted);
        assert!(wanted.iter().all(|count| *count > 3) && pool.available() == 256, "{wanted:?}");
        assert!(TapQueues::new(Vec::new()).is_err() && Tap::open_queues(&config(), 0).is_err());
    });
}
