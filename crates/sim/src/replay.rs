//! Hostile input for one host: a byte string is read as a list of things that happen to a shard with a listener and an
//! open connection attempt: raw frames, well-addressed packets, TCP segments near the window, time, commands of the
//! application. The fuzz target `frames` and the test that replays its corpus both call [`replay`].

use crate::memory::Memory;
use crate::scenario::{build_host, host_address};
use haypile_engine::{
    Close, Counters, DatagramOption, Event, Instant, ListenOptions, RxMeta, SendTo, Shard,
    SocketId, SocketOptions, SocketState,
};
use std::net::SocketAddr;

const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The peer's port of datagrams.
const DATAGRAM_PEER: u16 = 7000;
const LISTEN_PORT: u16 = 80;
const PEER_PORT: u16 = 4000;
/// Ports of the UDP sockets, and one that nobody has.
const DATAGRAM_PORTS: [u16; 4] = [53, 54, 5353, 9];
/// First operation byte that concerns datagrams.
const DATAGRAM_OPERATIONS: u8 = 0xF0;
const OPERATIONS_MAX: usize = 2_000;
const FRAMES_PER_TURN_MAX: usize = 10_000;

/// As [`play`], for the fuzzer.
pub fn replay(input: &[u8]) {
    let _: Counters = play(input);
}

/// Plays `input` to a host and gives what it counted. Panics only when the engine does, or breaks a
/// promise about its names.
pub fn play(input: &[u8]) -> Counters {
    let mut player = Player::new(input);
    for _ in 0..OPERATIONS_MAX {
        if player.operation().is_none() {
            break;
        }
        player.settle();
    }
    player.end();
    player.shard.counters().clone()
}

struct Player<'a> {
    input: &'a [u8],
    shard: Shard,
    memory: Memory,
    now: Instant,
    frame: Vec<u8>,
    last: Vec<u8>,
    open: Vec<SocketId>,
    datagrams: Vec<SocketId>,
    sent: u64,
    /// What the shard last said in TCP: ports, sequence and acknowledgement number.
    heard: Heard,
}

#[derive(Clone, Copy)]
struct Heard {
    our_port: u16,
    peer_port: u16,
    seq: u32,
    ack: u32,
}

impl<'a> Player<'a> {
    fn new(input: &'a [u8]) -> Player<'a> {
        let mut shard = build_host(0, 1500, 1).shard;
        let now = Instant::from_us(1_000_000);
        let local = SocketAddr::new(host_address(0, false), LISTEN_PORT);
        let options = ListenOptions { backlog: 4, ..ListenOptions::default() };
        let listening = shard.listen(local, options).is_ok();
        assert!(listening, "a fresh shard can listen");
        let any: [std::net::IpAddr; 3] = [[0; 4].into(), host_address(0, false), [0_u16; 8].into()];
        let datagrams = any.into_iter().zip(DATAGRAM_PORTS).map(|(addr, port)| {
            let opened = shard.open_datagram(SocketAddr::new(addr, port), Default::default());
            opened.expect("a fresh shard has room for UDP sockets")
        });
        let datagrams: Vec<SocketId> = datagrams.collect();
        let peer = SocketAddr::new(host_address(1, false), PEER_PORT);
        let opened = shard.connect(now, None, peer, SocketOptions::default());
        let heard = Heard { our_port: LISTEN_PORT, peer_port: PEER_PORT, seq: 0, ack: 0 };
        Player {
            input,
            shard,
            memory: Memory::default(),
            now,
            frame: vec![0; 2048],
            last: Vec::new(),
            open: opened.into_iter().collect(),
            datagrams,
            sent: 0,
            heard,
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.input.split_first()?;
        self.input = rest;
        Some(*first)
    }

    fn half(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.input.split_at(most.min(self.input.len()));
        self.input = rest;
        taken
    }

    /// One operation; `None` when the input is used up.
    fn operation(&mut self) -> Option<()> {
        let kind = self.byte()?;
        if kind >= DATAGRAM_OPERATIONS {
            return self.datagram_operation(kind);
        }
        match kind % 7 {
            0 => {
                let len = usize::from(self.half()?);
                let frame = self.take(len).to_vec();
                self.deliver(frame);
            }
            1 => self.packet_v4()?,
            2 => self.packet_v6()?,
            3 => self.segment()?,
            4 => {
                let exponent = self.byte()? % 28;
                self.now = self.now.plus_us(1 << exponent);
            }
            5 => self.command()?,
            _ => self.repeat_with_a_flip()?,
        }
        Some(())
    }

    /// A datagram or an error about one arrives, or a UDP socket is told to do something.
    fn datagram_operation(&mut self, kind: u8) -> Option<()> {
        match kind % 4 {
            0 => {
                let datagram = self.datagram(false)?;
                self.deliver(datagram);
            }
            1 => {
                let datagram = self.datagram(true)?;
                self.deliver(datagram);
            }
            2 => self.datagram_command()?,
            _ => self.datagram_error()?,
        }
        Some(())
    }

    /// A datagram from the peer with a right checksum, or none.
    fn datagram(&mut self, group: bool) -> Option<Vec<u8>> {
        let choice = self.byte()?;
        let port = DATAGRAM_PORTS[usize::from(choice % 4)];
        let len = usize::from(self.half()?) % 1400;
        let payload = self.take(len).to_vec();
        let mut udp = DATAGRAM_PEER.to_be_bytes().to_vec();
        udp.extend(port.to_be_bytes());
        udp.extend((8 + payload.len() as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(payload);
        let mut frame = frame_v4(17, 0, &udp);
        if group {
            let address = if choice & 0x80 == 0 { [239, 1, 2, 3] } else { [198, 18, 0, 255] };
            frame[30..34].copy_from_slice(&address);
            frame[24..26].fill(0);
            let sum = checksum(&frame[14..34], 0);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            frame[..6].fill(0xFF);
        }
        Some(frame)
    }

    fn datagram_command(&mut self) -> Option<()> {
        let (what, option) = (self.byte()?, self.byte()?);
        let id = *self.datagrams.get(usize::from(what >> 4) % self.datagrams.len().max(1))?;
        let group = std::net::IpAddr::from([239, 1, 2, 3]);
        let any = std::net::IpAddr::from([0, 0, 0, 0]);
        let peer = SocketAddr::new(host_address(1, option & 1 == 1), DATAGRAM_PEER);
        match what % 6 {
            0 => {
                let len = usize::from(self.half()?);
                let to = SendTo {
                    remote: (option & 4 == 0).then_some(peer),
                    segment_size: if option & 8 == 0 { 0 } else { u16::from(option) * 8 },
                    ..SendTo::default()
                };
                let _ = self.shard.send_datagram(self.now, id, &to, &vec![7; len]);
            }
            1 => {
                let _ = self.shard.join_group(self.now, id, group, any);
            }
            2 => {
                let _ = self.shard.leave_group(self.now, id, group, any);
            }
            3 => {
                let _ = self.shard.connect_datagram(id, (option & 2 == 0).then_some(peer));
            }
            4 => {
                let on = option & 1 == 1;
                self.shard.set_datagram_option(id, DatagramOption::ReceiveErrors(on));
                self.shard.set_datagram_option(id, DatagramOption::MulticastAll(!on));
            }
            _ => {
                self.datagrams.retain(|open| *open != id);
                self.shard.close(self.now, id, Close::Graceful);
            }
        }
        Some(())
    }

    /// An ICMP error about a datagram that we may have sent.
    fn datagram_error(&mut self) -> Option<()> {
        let (kind, code, mtu) = (self.byte()?, self.byte()?, self.half()?);
        let port = DATAGRAM_PORTS[usize::from(self.byte()? % 4)];
        let mut quote = vec![0x45, 0, 0, 100, 0, 0, 0, 0, 64, 17, 0, 0];
        quote.extend(octets(0, false));
        quote.extend(octets(1, false));
        quote.extend(port.to_be_bytes());
        quote.extend(DATAGRAM_PEER.to_be_bytes());
        quote.extend([0, 80, 0, 0]);
        let mut message = vec![kind % 13, code % 16, 0, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend(quote);
        let sum = checksum(&message, 0);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.deliver(frame_v4(1, 0, &message));
        Some(())
    }

    fn deliver(&mut self, frame: Vec<u8>) {
        let meta = RxMeta::default();
        self.shard.handle_frame(self.now, &frame, meta, &mut self.memory);
        self.last = frame;
    }

    fn packet_v4(&mut self) -> Option<()> {
        let protocol = [1, 6, 17, self.byte()?][usize::from(self.byte()? % 4)];
        let fragment = if self.byte()?.is_multiple_of(4) { self.half()? } else { 0 };
        let len = usize::from(self.half()?) % 1480;
        let payload = self.take(len).to_vec();
        let frame = frame_v4(protocol, fragment, &payload);
        self.deliver(frame);
        Some(())
    }

    fn packet_v6(&mut self) -> Option<()> {
        let next_header = [0, 6, 43, 44, 58, 60, 17, self.byte()?][usize::from(self.byte()? % 8)];
        let len = usize::from(self.half()?) % 1440;
        let payload = self.take(len).to_vec();
        let mut frame = ethernet([0x86, 0xDD]);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([next_header, 255]);
        frame.extend(octets(1, true));
        frame.extend(octets(0, true));
        frame.extend(payload);
        self.deliver(frame);
        Some(())
    }

    /// A TCP segment with a right checksum, its numbers near those the shard last used.
    fn segment(&mut self) -> Option<()> {
        let flags = self.byte()?;
        let (seq_shift, ack_shift) = (self.byte()? as i8, self.byte()? as i8);
        let stretch = 1i32 << (self.byte()? % 20);
        let window = self.half()?;
        let options_len = usize::from(self.byte()? % 11) * 4;
        let options = self.take(options_len).to_vec();
        let payload_len = usize::from(self.half()?) % 1400;
        let payload = self.take(payload_len).to_vec();
        let to_listener = self.heard.our_port == LISTEN_PORT || stretch & 1 == 1;
        let our_port = if to_listener { LISTEN_PORT } else { self.heard.our_port };
        let seq = self.heard.ack.wrapping_add_signed(i32::from(seq_shift).wrapping_mul(stretch));
        let ack = self.heard.seq.wrapping_add_signed(i32::from(ack_shift).wrapping_mul(stretch));
        let mut tcp = Vec::new();
        tcp.extend(self.heard.peer_port.to_be_bytes());
        tcp.extend(our_port.to_be_bytes());
        tcp.extend(seq.to_be_bytes());
        tcp.extend(ack.to_be_bytes());
        let words = 5 + options.len().div_ceil(4);
        tcp.extend([(words as u8) << 4, flags]);
        tcp.extend(window.to_be_bytes());
        tcp.extend([0, 0, 0, 0]);
        tcp.extend(&options);
        tcp.resize(words * 4, 0);
        tcp.extend(payload);
        let sum = checksum(&tcp, pseudo_header_v4(tcp.len()));
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let frame = frame_v4(6, 0, &tcp);
        self.deliver(frame);
        Some(())
    }

    fn command(&mut self) -> Option<()> {
        let what = self.byte()?;
        let Some(id) = self.open.get(usize::from(what >> 4) % self.open.len().max(1)).copied()
        else {
            return Some(());
        };
        match what % 6 {
            0 => {
                self.sent += u64::from(self.half()?);
                self.shard.send_ready(self.now, id, self.sent);
            }
            1 => {
                let position = u64::from(self.half()?);
                self.shard.receive_consumed(self.now, id, position);
            }
            2 => self.shard.shutdown_send(self.now, id),
            3 => self.shard.shutdown_receive(self.now, id),
            4 => self.close(id, Close::Graceful),
            _ => self.close(id, Close::Abort),
        }
        Some(())
    }

    fn close(&mut self, id: SocketId, how: Close) {
        self.open.retain(|open| *open != id);
        self.shard.close(self.now, id, how);
    }

    fn repeat_with_a_flip(&mut self) -> Option<()> {
        let place = usize::from(self.half()?);
        let mut frame = self.last.clone();
        if !frame.is_empty() {
            let index = place / 8 % frame.len();
            frame[index] ^= 1 << (place % 8);
        }
        self.deliver(frame);
        Some(())
    }

    /// Timers, events and everything the shard wants to send.
    fn settle(&mut self) {
        self.shard.handle_timers(self.now, &mut self.memory);
        self.drain_events();
        for _ in 0..FRAMES_PER_TURN_MAX {
            let sent = self.shard.poll_transmit(self.now, &mut self.frame, &mut self.memory);
            let Some(meta) = sent else { break };
            self.hear(meta.len);
        }
        self.drain_events();
    }

    fn drain_events(&mut self) {
        while let Some(event) = self.shard.poll_event() {
            match event {
                Event::Accepted { id, .. } => {
                    self.shard.claimed(id);
                    self.open.push(id);
                }
                Event::Progress { .. }
                | Event::DatagramError { .. }
                | Event::NetworkChanged
                | Event::Resolved { .. } => {}
                Event::Released { id } => {
                    assert!(!self.open.contains(&id), "{id:?} was released before its close");
                }
            }
        }
    }

    fn hear(&mut self, len: usize) {
        let frame = &self.frame[..len];
        if len < 54 || frame[12..14] != [0x08, 0x00] || frame[14] != 0x45 || frame[23] != 6 {
            return;
        }
        let half = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let word = |at: usize| (u32::from(half(at)) << 16) | u32::from(half(at + 2));
        let end = u32::from(frame[47] & 3 != 0) + (len - 34) as u32 - u32::from(frame[46] >> 4) * 4;
        self.heard = Heard {
            our_port: half(34),
            peer_port: half(36),
            seq: word(38).wrapping_add(end),
            ack: word(42),
        };
    }

    /// Everything is closed; after the longest timers nothing but the listener may be left.
    fn end(&mut self) {
        let datagrams = std::mem::take(&mut self.datagrams);
        for id in std::mem::take(&mut self.open).into_iter().chain(datagrams) {
            self.shard.close(self.now, id, Close::Abort);
        }
        for _ in 0..2_000 {
            self.settle();
            let Some(next) = self.shard.poll_timeout() else { break };
            self.now = next.max(self.now.plus_us(1_000));
        }
        let left: Vec<_> =
            self.shard.sockets().filter(|s| s.state != SocketState::Listen).collect();
        assert!(left.is_empty(), "left after everything was closed: {left:?}");
    }
}

fn ethernet(kind: [u8; 2]) -> Vec<u8> {
    let mut frame = OUR_MAC.to_vec();
    frame.extend(PEER_MAC);
    frame.extend(kind);
    frame
}

fn octets(host: usize, ipv6: bool) -> Vec<u8> {
    match host_address(host, ipv6) {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn frame_v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + payload.len() as u16).to_be_bytes());
    header.extend([0, 7]);
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(octets(1, false));
    header.extend(octets(0, false));
    let sum = checksum(&header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet([0x08, 0x00]);
    frame.extend(header);
    frame.extend(payload);
    frame
}

fn pseudo_header_v4(len: usize) -> u32 {
    let mut pseudo = octets(1, false);
    pseudo.extend(octets(0, false));
    pseudo.extend([0, 6]);
    pseudo.extend((len as u16).to_be_bytes());
    !u32::from(checksum(&pseudo, 0)) & 0xFFFF
}

/// The Internet checksum (RFC 1071) of `bytes`, beginning with `start`.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += (u32::from(pair[0]) << 8) | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    !(sum as u16)
}
