//! Floods of SYNs: who still gets in, with what options, and what is kept of the others.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::connections::{pattern, transfer};
use super::harness::*;
use crate::shard::headers::{TCP, transport_checksum, write_u16};
use crate::steering::{Rule, Steering};
use crate::tcp::{Flags, Options, Outgoing, Segment, SeqNumber, Timestamps};
use crate::*;

const V4: &str = "198.18.0.2:80";
const V6: &str = "[2001:db8::2]:80";
const SECOND_US: u64 = 1_000_000;
/// Half-open connections of the host under attack.
const ROOM: u32 = 4;

/// Host 2 with little room for half-open connections.
fn small() -> ShardConfig {
    let mut config = config(2);
    config.limits.half_open = ROOM;
    config
}

/// A frame to host 2 with a segment of `from`.
fn tcp_frame(from: &str, to: &str, segment: &Outgoing, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (at(from), at(to));
    let mut bytes = vec![0; 60 + payload.len()];
    let segment = Outgoing { payload_len: payload.len(), ..*segment };
    let len = segment.emit(source.port(), destination.port(), &mut bytes, |place| {
        place.copy_from_slice(payload);
    });
    bytes.truncate(len);
    let sum = transport_checksum(source.ip(), destination.ip(), TCP, &bytes);
    write_u16(&mut bytes, 16, sum);
    let (source, destination) = (source.ip().to_string(), destination.ip().to_string());
    frame([2, 0, 0, 0, 0, 2], &packet(&source, &destination, TCP, &bytes))
}

fn syn(seq: u32, options: Options) -> Outgoing {
    Outgoing { seq: SeqNumber::new(seq), flags: Flags::SYN, window: 9000, options, ..ack(0, 0) }
}

fn ack(seq: u32, ack: u32) -> Outgoing {
    let (seq, ack) = (SeqNumber::new(seq), SeqNumber::new(ack));
    Outgoing { seq, ack, flags: Flags::ACK, window: 9000, ..Outgoing::default() }
}

/// SYNs of made-up neighbours, `count` of them.
fn flood(host: &mut Host, now: Instant, to: &str, count: u32) {
    for number in 0..count {
        let source = match at(to).is_ipv4() {
            true => format!("198.18.0.{}:{}", 100 + number % 100, 2000 + number / 100),
            false => format!("[2001:db8::1:{:x}]:2000", number % 0xffff),
        };
        let options = Options { mss: Some(1460), ..Options::default() };
        let bytes = tcp_frame(&source, to, &syn(number * 7, options), &[]);
        let _ = host.exchange(now, &bytes);
    }
}

/// Host 2 alone, flooded, with host 9 as its neighbour.
struct Flooded {
    host: Host,
    listener: SocketId,
    now: Instant,
}

impl Flooded {
    fn new(options: ListenOptions) -> Flooded {
        let mut host = Host::new(small());
        let listener = host.shard.listen(at(V4), options).expect("free port");
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 198, 18, 0, 9];
        body.extend([0, 0, 0, 0, 0, 0, 198, 18, 0, 2]);
        let _ = host.exchange(START, &arp_frame([0xff; 6], &body));
        flood(&mut host, START, V4, ROOM);
        assert_eq!(host.shard.connection_count(), ROOM as usize);
        Flooded { host, listener, now: START }
    }

    /// What host 9 gets in answer to a segment from its port 4000.
    fn ask(&mut self, segment: &Outgoing, payload: &[u8]) -> Vec<(SeqNumber, SeqNumber, Flags)> {
        self.ask_from(4000, segment, payload)
    }

    fn ask_from(
        &mut self,
        port: u16,
        segment: &Outgoing,
        payload: &[u8],
    ) -> Vec<(SeqNumber, SeqNumber, Flags)> {
        let bytes = tcp_frame(&format!("198.18.0.9:{port}"), V4, segment, payload);
        let frames = self.host.exchange(self.now, &bytes);
        // Now and then it is also asked whether it is still there.
        let to_us = frames.iter().filter(|frame| frame[12..14] == [8, 0]);
        let parsed = to_us.map(|frame| Segment::parse(&frame[34..]).expect("a segment"));
        parsed.map(|segment| (segment.seq, segment.ack, segment.flags)).collect()
    }

    /// The cookie in answer to a SYN without options.
    fn cookie(&mut self, port: u16) -> u32 {
        let answers = self.ask_from(port, &syn(999, Options::default()), &[]);
        let [(cookie, acked, flags)] = answers[..] else { panic!("{answers:?}") };
        assert_eq!((acked.value(), flags), (1000, Flags::SYN | Flags::ACK));
        cookie.value()
    }
}

fn real_clients_get_in(to: &str) {
    let mut pair = Pair::with(config(1), small());
    let _ = pair.hosts[1].shard.listen(at(to), ListenOptions::default()).expect("free port");
    flood(&mut pair.hosts[1], START, to, 1000);
    let (client, server) = pair.connect_to(to);
    assert_eq!(pair.hosts[1].count(Counter::TcpCookiesValid), 1);
    for (host, id) in [(0, client), (1, server)] {
        let info = pair.hosts[host].shard.tcp_info(id).expect("a connection");
        assert!(info.timestamps && info.sack_permitted, "{info:?}");
        assert_eq!(info.window_scale, Some((4, 4)));
    }
    let mut count = 0_u32;
    pair.lose = Box::new(move |_, _| {
        count += 1;
        count.is_multiple_of(29)
    });
    transfer(&mut pair, 0, (client, server), &pattern(400_000));
    transfer(&mut pair, 1, (server, client), &pattern(400_000));
    let info = pair.hosts[0].shard.tcp_info(client).expect("a connection");
    assert!(info.send_window > 0xffff, "scaled: {info:?}");
    let now = pair.now;
    pair.hosts[0].shard.close(now, client, Close::Graceful);
    pair.hosts[1].shard.close(now, server, Close::Graceful);
    pair.run(300 * SECOND_US);
    assert_eq!(pair.hosts[1].shard.sockets().count(), 1, "the listener");
    assert_eq!(pair.hosts[1].count(Counter::TcpCookiesRefused), 0);
}

#[test]
fn clients_get_in_with_their_options_during_a_flood() {
    real_clients_get_in(V4);
    real_clients_get_in(V6);
}

/// The frame with its timestamps replaced by NOPs; its checksum is wrong then.
fn without_timestamps(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let at = frame[54..].windows(2).position(|pair| pair == [8, 10]).expect("timestamps") + 54;
    frame[at..at + 10].fill(1);
    frame
}

#[test]
fn clients_without_timestamps_get_in_without_scaling() {
    let mut pair = Pair::with(config(1), small());
    let _ = pair.hosts[1].shard.listen(at(V4), ListenOptions::default()).expect("free port");
    flood(&mut pair.hosts[1], START, V4, 100);
    let changed = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&changed);
    pair.lose = Box::new(move |receiver, frame| {
        let is_syn = receiver == 1 && frame[12..14] == [8, 0] && frame[47] == Flags::SYN.bits();
        if is_syn {
            log.borrow_mut().push(without_timestamps(frame));
        }
        is_syn
    });
    let options = SocketOptions::default();
    let client = pair.hosts[0].shard.connect(START, None, at(V4), options).expect("connect");
    pair.run(1000);
    let meta = RxMeta { checksum_valid: true, ..RxMeta::default() };
    let now = pair.now;
    let host = &mut pair.hosts[1];
    let [syn] = &changed.borrow()[..] else { panic!("one SYN") };
    host.shard.handle_frame(now, syn, meta, &mut host.memory);
    pair.run(1000);
    let server = pair.hosts[1].accepted()[0];
    assert_eq!(pair.hosts[1].count(Counter::TcpCookiesValid), 1);
    for (host, id) in [(0, client), (1, server)] {
        let info = pair.hosts[host].shard.tcp_info(id).expect("a connection");
        assert!(!info.timestamps && !info.sack_permitted, "{info:?}");
        assert_eq!(info.window_scale, None);
    }
    transfer(&mut pair, 0, (client, server), &pattern(300_000));
    transfer(&mut pair, 1, (server, client), &pattern(300_000));
}

#[test]
fn nothing_grows_with_the_flood() {
    let mut flooded = Flooded::new(ListenOptions::default());
    let host = &mut flooded.host;
    let before = host.shard.sockets().count();
    flood(host, START, V4, 10_000);
    assert_eq!(host.shard.sockets().count(), before);
    assert_eq!(host.shard.flows.lookup(&flow("198.18.0.199:2050")), None);
    // Their SYN-ACKs that nobody can be asked for are dropped like any other packet.
    assert!(host.count(Counter::TcpCookiesSent) > 9000);
    assert_eq!(host.count(Counter::TcpHalfOpenEvicted), 0);
    // Replies that are not fetched are bounded, and such a SYN counts as no cookie sent.
    let sent = host.count(Counter::TcpCookiesSent);
    for number in 0..5000 {
        let source = format!("198.18.0.77:{}", 1000 + number);
        let bytes = tcp_frame(&source, V4, &syn(number, Options::default()), &[]);
        host.shard.handle_frame(START, &bytes, RxMeta::default(), &mut host.memory);
    }
    let limit = u64::from(Limits::default().replies);
    assert_eq!(host.count(Counter::TcpCookiesSent), sent + limit);
    assert_eq!(host.count(Counter::RepliesDropped), 5000 - limit);
}

fn flow(remote: &str) -> crate::flow_table::FlowKey {
    crate::flow_table::FlowKey::new(at(V4), at(remote))
}

#[test]
fn data_and_fin_may_come_with_the_acknowledgement() {
    let mut flooded = Flooded::new(ListenOptions::default());
    let cookie = flooded.cookie(4000);
    let last = Outgoing { flags: Flags::ACK | Flags::FIN, ..ack(1000, cookie + 1) };
    let _ = flooded.ask(&last, b"hello");
    let server = flooded.host.accepted()[0];
    assert_eq!(flooded.host.memory.received[&server], b"hello");
    let progress = flooded.host.progress(server);
    assert!(progress.connected && progress.rx_fin && progress.rx_end == 5);
    assert_eq!(flooded.host.shard.unclaimed(flooded.listener), [server]);
    assert_eq!(flooded.host.shard.counters().tcp.established, 1);
    flooded.host.shard.claimed(server);
    // What it sends starts behind the cookie, in a segment no longer than the peer's default.
    flooded.host.send(flooded.now, server, &pattern(1000));
    let frames = flooded.host.drain(flooded.now);
    let first = Segment::parse(&frames[0][34..]).expect("a segment");
    assert_eq!((first.seq.value(), first.payload.len()), (cookie.wrapping_add(1), 536));
}

#[test]
fn a_full_accept_queue_takes_the_acknowledgement_later() {
    let mut flooded = Flooded::new(ListenOptions { backlog: 0, ..ListenOptions::default() });
    let (first, second) = (flooded.cookie(4000), flooded.cookie(4001));
    assert!(flooded.ask_from(4000, &ack(1000, first + 1), &[]).is_empty());
    // Neither it nor what comes behind it is reset.
    assert!(flooded.ask_from(4001, &ack(1000, second + 1), &[]).is_empty());
    assert!(flooded.ask_from(4001, &ack(1005, second + 1), b"later").is_empty());
    assert_eq!(flooded.host.accepted().len(), 1);
    assert_eq!(flooded.host.dropped(DropReason::TcpListenerFull), 2);
    assert_eq!(flooded.host.count(Counter::TcpListenOverflows), 2);
    let server = flooded.host.accepted()[0];
    flooded.host.shard.claimed(server);
    let _ = flooded.ask_from(4001, &ack(1000, second + 1), b"hello");
    assert_eq!(flooded.host.accepted().len(), 2);
    assert_eq!(flooded.host.count(Counter::TcpCookiesRefused), 0);
}

#[test]
fn a_bad_cookie_is_reset() {
    let mut flooded = Flooded::new(ListenOptions::default());
    let cookie = flooded.cookie(4000);
    let reset = |ack: u32| vec![(SeqNumber::new(ack), SeqNumber::new(0), Flags::RST)];
    for (port, seq, number) in
        [(4000, 1000, cookie), (4000, 1000, cookie + 2), (4001, 1000, cookie + 1)]
    {
        assert_eq!(flooded.ask_from(port, &ack(seq, number), &[]), reset(number));
    }
    assert_eq!(flooded.host.count(Counter::TcpCookiesRefused), 3);
    let with_syn = Outgoing { flags: Flags::ACK | Flags::SYN, ..ack(1000, cookie + 1) };
    assert_eq!(flooded.ask(&with_syn, &[]), reset(cookie + 1));
    let with_reset = Outgoing { flags: Flags::ACK | Flags::RST, ..ack(1000, cookie + 1) };
    assert!(flooded.ask(&with_reset, &[]).is_empty());
    assert!(flooded.host.accepted().is_empty());
    // Two periods later it is worth nothing, and nobody looks at it any more.
    flooded.now = START.plus_us(128 * SECOND_US);
    assert_eq!(flooded.ask(&ack(1000, cookie + 1), &[]), reset(cookie + 1));
    assert_eq!(flooded.host.count(Counter::TcpCookiesRefused), 3);
    assert_eq!(flooded.host.count(Counter::TcpCookiesValid), 0);
}

/// To reset what has overtaken the last ACK, or follows a lost one, would end a sound connection.
#[test]
fn what_overtakes_the_acknowledgement_is_dropped() {
    let mut flooded = Flooded::new(ListenOptions::default());
    let cookie = flooded.cookie(4000);
    assert!(flooded.ask(&ack(1005, cookie + 1), b" world").is_empty());
    assert_eq!(flooded.host.dropped(DropReason::TcpCookieAhead), 1);
    assert!(flooded.host.accepted().is_empty());
    let _ = flooded.ask(&ack(1000, cookie + 1), b"hello");
    let _ = flooded.ask(&ack(1005, cookie + 1), b" world");
    let server = flooded.host.accepted()[0];
    assert_eq!(flooded.host.memory.received[&server], b"hello world");
    assert_eq!(flooded.host.count(Counter::TcpCookiesRefused), 0);
    assert_eq!(flooded.host.count(Counter::TcpResetsSent), 0);
}

#[test]
fn a_cookie_whose_listener_is_gone_is_reset() {
    let mut flooded = Flooded::new(ListenOptions::default());
    let cookie = flooded.cookie(4000);
    flooded.host.shard.close(flooded.now, flooded.listener, Close::Graceful);
    let answers = flooded.ask(&ack(1000, cookie + 1), &[]);
    assert_eq!(answers, [(SeqNumber::new(cookie + 1), SeqNumber::new(0), Flags::RST)]);
}

/// Each has a chance of 2^-28 to be let in, so that one in 13,000 such tests would see that, and of 2^-16
/// to be taken for one that overtook another. The numbers follow a seed.
#[test]
fn acknowledgements_drawn_at_random_open_nothing() {
    let mut flooded = Flooded::new(ListenOptions::default());
    let _ = flooded.cookie(4000);
    let before = flooded.host.shard.sockets().count();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as u32
    };
    for number in 0..20_000_u32 {
        let timestamps = Timestamps { value: draw(), echo: draw() };
        let timestamps = Some(timestamps).filter(|_| number % 2 == 0);
        let options = Options { timestamps, ..Options::default() };
        let guess = Outgoing { options, ..ack(draw(), draw()) };
        let answers = flooded.ask_from(1 + (draw() >> 16) as u16 % 60_000, &guess, b"x");
        assert!(answers.len() <= 1);
    }
    let ahead = flooded.host.dropped(DropReason::TcpCookieAhead);
    assert!(ahead < 8, "{ahead}");
    assert_eq!(flooded.host.count(Counter::TcpCookiesRefused), 20_000 - ahead);
    assert_eq!(flooded.host.count(Counter::TcpCookiesValid), 0);
    assert_eq!(flooded.host.shard.sockets().count(), before);
}

#[test]
fn without_a_flood_nobody_looks_for_cookies() {
    let mut host = Host::new(config(2));
    let _ = host.shard.listen(at(V4), ListenOptions::default()).expect("free port");
    let _ = host.exchange(START, &tcp_frame("198.18.0.9:4000", V4, &ack(1, 2), &[]));
    assert_eq!(host.dropped(DropReason::TcpNoFlow), 1);
    assert_eq!(host.count(Counter::TcpCookiesRefused), 0);
}

#[test]
fn a_full_table_makes_room_for_who_has_proved_its_address() {
    let mut config = small();
    config.limits.connections = 1 + ROOM;
    let mut pair = Pair::with(super::harness::config(1), config);
    let _ = pair.hosts[1].shard.listen(at(V4), ListenOptions::default()).expect("free port");
    flood(&mut pair.hosts[1], START, V4, 50);
    assert_eq!(pair.hosts[1].count(Counter::TcpHalfOpenEvicted), 0);
    for taken in 1..=u64::from(ROOM) {
        let _ = pair.connect_to(V4);
        assert_eq!(pair.hosts[1].count(Counter::TcpHalfOpenEvicted), taken);
    }
    // Established connections are not given up.
    let options = SocketOptions::default();
    let now = pair.now;
    let late = pair.hosts[0].shard.connect(now, None, at(V4), options).expect("connect");
    pair.run(10_000);
    assert!(!pair.hosts[0].progress(late).connected);
    assert!(pair.hosts[1].dropped(DropReason::TcpSocketLimit) > 0);
    assert_eq!(pair.hosts[1].count(Counter::TcpCookiesValid), u64::from(ROOM));
}

#[test]
fn a_flow_in_time_wait_gets_a_connection_and_no_cookie() {
    let mut pair = Pair::with(config(1), small());
    let (client, server, _) = pair.connect(V4);
    let local = pair.hosts[0].shard.local_address(client);
    let now = pair.now;
    pair.hosts[1].shard.close(now, server, Close::Graceful);
    pair.run(10_000);
    let now = pair.now;
    pair.hosts[0].shard.close(now, client, Close::Graceful);
    pair.run(2 * SECOND_US);
    assert_eq!(pair.hosts[1].count(Counter::TcpTimeWaitEntered), 1);
    let now = pair.now;
    flood(&mut pair.hosts[1], now, V4, 50);
    let sent = pair.hosts[1].count(Counter::TcpCookiesSent);
    let options = SocketOptions::default();
    let again = pair.hosts[0].shard.connect(now, local, at(V4), options).expect("connect");
    pair.run(10_000);
    assert!(pair.hosts[0].progress(again).connected);
    let host = &pair.hosts[1];
    assert_eq!(host.count(Counter::TcpTimeWaitReused), 1);
    assert_eq!(host.count(Counter::TcpHalfOpenEvicted), 1);
    assert_eq!(host.count(Counter::TcpCookiesSent), sent);
    assert_eq!(host.count(Counter::TcpCookiesValid), 0);
}

#[test]
fn flows_of_other_servers_get_no_cookie() {
    let steering = Arc::new(Steering::new(77, Rule::Hash, 2));
    let steered = Some(Steered { server: 0, steering: Arc::clone(&steering) });
    let mut host = Host::new(ShardConfig { steered, ..small() });
    let _ = host.shard.listen(at(V4), ListenOptions::default()).expect("free port");
    flood(&mut host, START, V4, 200);
    let sent = host.count(Counter::TcpCookiesSent);
    assert!(sent > 0);
    let owner = |port: u16| steering.owner_of_flow(at(V4), at(&format!("198.18.0.9:{port}")));
    let port = (1024..).find(|&port| owner(port) == 1).expect("half of them");
    let source = format!("198.18.0.9:{port}");
    let before = host.dropped(DropReason::TcpElsewhere);
    for segment in [syn(1, Options::default()), ack(1000, 2000)] {
        assert!(host.exchange(START, &tcp_frame(&source, V4, &segment, &[])).is_empty());
    }
    assert_eq!(host.dropped(DropReason::TcpElsewhere), before + 2);
    assert_eq!(host.count(Counter::TcpCookiesSent), sent);
    assert_eq!(host.count(Counter::TcpCookiesRefused), 0);
}
