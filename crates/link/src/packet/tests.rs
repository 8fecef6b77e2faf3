//! Packet ports in namespaces the tests make: the kernel's frames as we see them, ours as its
//! sockets do.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use super::*;
use crate::netlink::{Netlink, PeerNamespace};
use crate::netns::{self, Namespace};
use crate::port::{PartialChecksum, local_mac};

const HOST_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const OURS_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1);
/// No test waits longer for what must come.
const PATIENCE: Duration = Duration::from_secs(60);
const CHUNKS: u32 = 64;

fn in_namespace(test: impl FnOnce() + Send) {
    match Namespace::create() {
        Ok(namespace) => netns::run_in(namespace.as_fd(), test).unwrap(),
        Err(error) => println!("skipped: {error}"),
    }
}

fn config() -> PacketConfig {
    PacketConfig {
        attachment: Attachment::Pair(vec![(HOST_V4.into(), 24), (HOST_V6.into(), 64)]),
        mtu: 1500,
        mac: local_mac("test"),
        offload: Offload::Segmentation,
    }
}

/// A port with a pool.
struct Bench {
    port: Packet,
    pool: FramePool,
}

impl Bench {
    fn new(port: Packet) -> Bench {
        Bench { port, pool: FramePool::new(CHUNKS, 69_632).unwrap() }
    }

    /// All frames that wait, and what is said of them.
    fn receive(&mut self, max: usize) -> Vec<(Vec<u8>, bool, u16)> {
        let mut out = Vec::new();
        let count = self.port.rx_burst(&mut self.pool, &mut out, max).unwrap();
        assert_eq!(count, out.len());
        assert!(count <= max);
        let mut list = Vec::new();
        for received in out {
            let bytes = received.bytes(&self.pool).to_vec();
            list.push((bytes, received.checksum_valid, received.segment_size));
            self.pool.free(received.frame);
        }
        list
    }

    /// The UDP datagrams among the next frames, until there are `count`.
    fn datagrams(&mut self, count: usize) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut found = Vec::new();
        while found.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} came", found.len());
            let frames = self.receive(16);
            let udp = frames.into_iter().filter(|(frame, valid, _)| is_udp_v4(frame) && *valid);
            found.extend(udp.map(|(frame, ..)| frame[42..].to_vec()));
            std::thread::yield_now();
        }
        found
    }

    fn list(&mut self, frames: &[Vec<u8>]) -> Vec<TxFrame> {
        let mut list = Vec::new();
        for bytes in frames {
            let mut frame = self.pool.alloc().unwrap();
            let chunk = self.pool.bytes_mut(&mut frame);
            chunk[TX_HEADROOM..TX_HEADROOM + bytes.len()].copy_from_slice(bytes);
            list.push(TxFrame::new(frame, bytes.len() as u32));
        }
        list
    }

    fn tell_host_our_mac(&self) {
        let (index, mac) = (self.port.interface(), self.port.mac());
        Netlink::open().unwrap().add_neighbour(index, OURS_V4.into(), mac).unwrap();
    }

    fn host_mac(&self) -> [u8; 6] {
        let links = Netlink::open().unwrap().links().unwrap();
        let host = links.into_iter().find(|link| link.index == self.port.interface());
        host.and_then(|link| link.mac).unwrap()
    }
}

fn is_udp_v4(frame: &[u8]) -> bool {
    frame.len() > 42 && frame[12..14] == [8, 0] && frame[23] == 17
}

/// A UDP datagram from us to the host with a right checksum.
fn datagram(bench: &Bench, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&bench.host_mac()[..], &bench.port.mac(), &[8, 0]].concat();
    let len = (28 + payload.len()) as u16;
    let [high, low] = len.to_be_bytes();
    frame.extend_from_slice(&[0x45, 0, high, low, 0, 1, 0, 0, 64, 17, 0, 0]);
    frame.extend_from_slice(&OURS_V4.octets());
    frame.extend_from_slice(&HOST_V4.octets());
    frame.extend_from_slice(&[0, 9]);
    frame.extend_from_slice(&port.to_be_bytes());
    frame.extend_from_slice(&(len - 20).to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(payload);
    let mut sum: u32 =
        frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    assert!(offload::complete_checksum(&mut frame));
    frame
}

fn host_socket() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind((HOST_V4, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

#[test]
fn datagrams_cross_both_ways() {
    in_namespace(|| {
        let mut bench = Bench::new(Packet::open(&config()).unwrap());
        bench.tell_host_our_mac();
        let (host, port) = host_socket();
        for number in 0..100u8 {
            host.send_to(&[number; 3], (OURS_V4, 7)).unwrap();
        }
        let expected: Vec<Vec<u8>> = (0..100).map(|number| vec![number; 3]).collect();
        assert_eq!(bench.datagrams(100), expected);
        let frames: Vec<Vec<u8>> =
            (0..40).map(|number| datagram(&bench, port, &[number, 1])).collect();
        let mut list = bench.list(&frames);
        assert_eq!(bench.port.tx_burst(&mut bench.pool, &mut list).unwrap(), 40);
        let mut buffer = [0; 9];
        for number in 0..40 {
            assert_eq!(host.recv(&mut buffer).unwrap(), 2);
            assert_eq!(buffer[..2], [number, 1]);
        }
        let counters = bench.port.counters();
        assert_eq!(counters.tx_frames, 40);
        assert!(counters.rx_frames >= 100 && counters.rx_partial_checksum >= 100);
        assert_eq!(bench.port.more_counters()[0], ("rx_socket_full", 0));
        assert_eq!(bench.pool.available(), CHUNKS as usize);
        // None of our own came back.
        assert!(bench.receive(64).iter().all(|(frame, ..)| !is_udp_v4(frame)));
    });
}

#[test]
fn the_pair_goes_with_the_last_descriptor() {
    in_namespace(|| {
        let port = Packet::open(&config()).unwrap();
        let other =
            Packet::open(&PacketConfig { attachment: Attachment::Pair(vec![]), ..config() });
        assert_ne!(other.unwrap().facts().name, port.facts().name);
        let (name, facts) = (port.facts().name.clone(), port.facts().clone());
        let socket = port.socket().unwrap();
        drop(port);
        let wrong = PacketFacts { bound_to: facts.bound_to + 1, ..facts.clone() };
        assert!(Packet::from_socket(socket.try_clone().unwrap(), wrong).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Packet::from_socket(file.into(), facts.clone()).is_err());
        let mut again = Bench::new(Packet::from_socket(socket, facts).unwrap());
        again.tell_host_our_mac();
        host_socket().0.send_to(b"again", (OURS_V4, 7)).unwrap();
        assert_eq!(again.datagrams(1), [b"again".to_vec()]);
        drop(again);
        let deadline = Instant::now() + PATIENCE;
        while Netlink::open().unwrap().link_by_name(&name).is_ok() {
            assert!(Instant::now() < deadline, "{name} stays");
            std::thread::yield_now();
        }
    });
}

#[test]
fn an_interface_that_is_there_serves_until_it_goes() {
    in_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        netlink.create_veth("left", "right", PeerNamespace::Same).unwrap();
        let left = netlink.link_by_name("left").unwrap();
        netlink.set_up(left.index).unwrap();
        netlink.add_address(left.index, HOST_V4.into(), 24).unwrap();
        let at = |name: &str| PacketConfig {
            attachment: Attachment::Interface(name.into()),
            ..config()
        };
        let errno = |config: &PacketConfig| Packet::open(config).unwrap_err().errno();
        assert_eq!(errno(&at("lo")), Some(libc::EPROTONOSUPPORT));
        assert_eq!(errno(&at("none")), Some(libc::ENODEV));
        assert_eq!(errno(&PacketConfig { mtu: 1600, ..at("right") }), Some(libc::EMSGSIZE));
        let mut bench = Bench::new(Packet::open(&at("right")).unwrap());
        netlink.wait_until_local(HOST_V4.into()).unwrap();
        // Its carrier came with ours; before the kernel has noted it, what the host sends is lost.
        netlink.wait_until_running(left.index).unwrap();
        netlink.add_neighbour(left.index, OURS_V4.into(), bench.port.mac()).unwrap();
        host_socket().0.send_to(b"over there", (OURS_V4, 7)).unwrap();
        assert_eq!(bench.datagrams(1), [b"over there".to_vec()]);
        netlink.set_down(bench.port.interface()).unwrap();
        let mut list = bench.list(&[vec![0xff; 60]]);
        assert_eq!(bench.port.tx_burst(&mut bench.pool, &mut list).unwrap(), 1);
        bench.receive(1);
        assert!(bench.port.counters().interface_down >= 1);
        netlink.delete_link(left.index).unwrap();
        let mut list = bench.list(&[vec![0xff; 60], vec![0xff; 60]]);
        let Bench { port, pool } = &mut bench;
        // The first call may still hear that it is down.
        let gone = (0..3).any(|_| port.tx_burst(pool, &mut list).is_err());
        assert!(gone, "{:?}", port.counters());
        list.drain(..).for_each(|left| pool.free(left.frame));
        assert_eq!(pool.available(), CHUNKS as usize);
    });
}

#[test]
fn nonsense_is_counted_and_the_rest_is_sent() {
    in_namespace(|| {
        let mut bench =
            Bench::new(Packet::open(&PacketConfig { offload: Offload::None, ..config() }).unwrap());
        let (host, port) = host_socket();
        let good = datagram(&bench, port, b"good");
        let frames = [good.clone(), vec![0; 9], good.clone(), vec![0; 1600], good.clone(), good];
        let mut list = bench.list(&frames);
        list[4].segment_size = 10;
        list[4].checksum = Some(PartialChecksum { start: 60_000, offset: 6 });
        let sent = bench.port.tx_burst(&mut bench.pool, &mut list).unwrap();
        assert_eq!((sent, list.len()), (6, 0));
        for _ in 0..3 {
            assert_eq!(host.recv(&mut [0; 9]).unwrap(), 4);
        }
        let counters = bench.port.counters();
        assert_eq!((counters.tx_too_short, counters.tx_too_long), (1, 1));
        assert_eq!((counters.tx_refused, counters.tx_frames), (1, 3));
        assert_eq!(bench.port.features().tx_segmentation_max, 0);
        let mut small = FramePool::new(1, 4096).unwrap();
        assert!(bench.port.rx_burst(&mut small, &mut Vec::new(), 1).is_err());
    });
}

#[test]
fn what_the_kernel_hands_over_is_judged() {
    in_namespace(|| {
        let mut bench = Bench::new(Packet::open(&config()).unwrap());
        let mut header = [0; HEADER_LEN];
        let good = Received { len: HEADER_LEN + 60, is_cut: false, is_of_vlan: false };
        let mut judge = |header: [u8; HEADER_LEN], message: Received| {
            let Bench { port, pool } = &mut bench;
            let mut frame = pool.alloc().unwrap();
            pool.bytes_mut(&mut frame)[RX_HEADER_OFFSET..RX_FRAME_OFFSET].copy_from_slice(&header);
            let mut out = Vec::new();
            port.take(pool, frame, message, &mut out);
            let judged = out.pop().map(|frame| {
                let facts = (frame.len, frame.checksum_valid, frame.segment_size);
                pool.free(frame.frame);
                facts
            });
            assert_eq!(pool.available(), CHUNKS as usize);
            judged
        };
        assert_eq!(judge(header, good), Some((60, false, 0)));
        assert_eq!(judge(header, Received { len: HEADER_LEN + 13, ..good }), None);
        assert_eq!(judge(header, Received { len: 3, ..good }), None);
        assert_eq!(judge(header, Received { is_cut: true, ..good }), None);
        assert_eq!(judge(header, Received { is_of_vlan: true, ..good }), None);
        header[..6].copy_from_slice(&[1, 4, 74, 0, 0xa8, 5]);
        assert_eq!(judge(header, good), Some((60, true, 1448)));
        header[1] = 3;
        assert_eq!(judge(header, good), None);
        // A batch of datagrams without one in it.
        header[1] = 5;
        assert_eq!(judge(header, good), None);
        let counters = bench.port.counters();
        assert_eq!((counters.rx_too_short, counters.rx_too_long), (2, 1));
        assert_eq!((counters.rx_unsegmented, counters.rx_superframes), (2, 1));
        assert_eq!(bench.port.more_counters()[1], ("rx_vlan_tag", 1));
    });
}

#[test]
fn batches_of_datagrams_become_single_ones() {
    in_namespace(|| {
        let mut bench = Bench::new(Packet::open(&config()).unwrap());
        let payload: Vec<u8> = (0..250u8).collect();
        let whole = datagram(&bench, 7, &payload);
        let Bench { port, pool } = &mut bench;
        let mut frame = pool.alloc().unwrap();
        let chunk = pool.bytes_mut(&mut frame);
        chunk[RX_FRAME_OFFSET..][..whole.len()].copy_from_slice(&whole);
        let (offset, len) = (RX_FRAME_OFFSET as u16, whole.len() as u32);
        let batch = RxFrame { frame, offset, len, checksum_valid: true, segment_size: 0 };
        port.cut(pool, batch, 100);
        assert!(!port.prepare_sleep());
        // One at a time, so that the rest waits.
        let mut pieces = Vec::new();
        while pieces.len() < 3 {
            let frames = bench.receive(1);
            pieces.extend(frames.into_iter().filter(|(frame, ..)| is_udp_v4(frame)));
        }
        assert!(bench.port.prepare_sleep());
        for (index, (mut frame, valid, segment_size)) in pieces.into_iter().enumerate() {
            assert!(valid && segment_size == 0);
            let expected = &payload[index * 100..payload.len().min(index * 100 + 100)];
            assert_eq!(frame[42..], *expected);
            let before = frame.clone();
            assert!(offload::complete_checksum(&mut frame) && frame == before);
        }
        assert_eq!(bench.pool.available(), CHUNKS as usize);
    });
}
