//! Connections that cross to another server at any moment of their lives, and what is no connection at all.

use proptest::prelude::*;

use super::pair::{Pair, Side, socket_id};
use super::soak::faults;
use crate::carry::{Reader, Refusal, Writer};
use crate::random::Random;
use crate::tcp::*;
use crate::{Instant, SocketOption};

fn bytes_of(connection: &Connection, moment: Instant) -> Vec<u8> {
    let mut out = Writer::new(moment);
    connection.export(&mut out);
    out.into_bytes()
}

fn made_of(bytes: &[u8], moment: Instant) -> Result<Connection, Refusal> {
    let mut input = Reader::new(bytes, moment);
    let connection = Connection::import(&mut input)?;
    input.end()?;
    Ok(connection)
}

/// Replaces the connection of `side` by what crosses of it; false when it is over.
fn cross(pair: &mut Pair, side: Side) -> bool {
    let now = pair.now;
    let Some(connection) = &mut pair.host(side).connection else { return false };
    if connection.is_over() {
        return false;
    }
    let bytes = bytes_of(connection, now);
    let made = made_of(&bytes, now);
    let made = made.unwrap_or_else(|refusal| panic!("{refusal}: {connection:#?}"));
    assert_eq!(format!("{made:?}"), format!("{connection:?}"));
    assert_eq!(bytes_of(&made, now), bytes);
    *connection = made;
    true
}

/// Runs for `us` microseconds, in steps with crossings between them; how many there were.
fn run_crossing(pair: &mut Pair, us: u64, random: &mut Random) -> usize {
    let (end, mut count) = (pair.now.plus_us(us), 0);
    while pair.now < end {
        pair.run_until(pair.now.plus_us(1 + random.between(0, us / 8)).min(end));
        for side in [Side::A, Side::B] {
            count += usize::from(random.below(2) == 0 && cross(pair, side));
        }
    }
    count
}

/// A pair in the middle of something; `seed` says what.
fn drawn_pair(seed: u64) -> (Pair, Random) {
    let mut random = Random::new(seed);
    let mut pair = Pair::new();
    pair.a.iss = SeqNumber::new(random.next_u64() as u32 | 0xffff_0000);
    pair.b.iss = SeqNumber::new(random.next_u64() as u32);
    pair.a.mss = [536, 1220, 1460, 8960][random.below(4) as usize];
    pair.a.options.keep_alive = random.below(2) == 0;
    pair.b.options.receive_buffer = [4096, 20_000, 262_144][random.below(3) as usize];
    pair.a.limits.sack = random.below(4) > 0;
    pair.delay_us = 1 + random.below(50_000);
    pair.b.listens = true;
    pair.open(Side::A);
    if random.below(3) == 0 {
        pair.a.tcp().set_congestion_control(CongestionControl::NewReno);
    }
    pair.set_fault(faults(seed, random.next_u64() % 12));
    (pair, random)
}

#[test]
fn a_connection_goes_on_elsewhere_as_if_nothing_had_happened() {
    let mut crossings = 0;
    for seed in 0..300 {
        let (mut pair, mut random) = drawn_pair(seed);
        crossings += run_crossing(&mut pair, 20_000_000, &mut random);
        for _ in 0..1 + random.below(10) {
            pair.write(Side::A, random.below(60_000) as usize);
            pair.write(Side::B, random.below(5_000) as usize);
            let us = 1 + random.below(300_000);
            crossings += run_crossing(&mut pair, us, &mut random);
        }
        pair.shutdown_send(Side::A);
        crossings += run_crossing(&mut pair, 1_000_000, &mut random);
        pair.write(Side::B, random.below(20_000) as usize);
        pair.shutdown_send(Side::B);
        for _ in 0..600 {
            crossings += run_crossing(&mut pair, 1_000_000, &mut random);
            if pair.a.tcp().is_over() && pair.b.tcp().is_over() {
                break;
            }
        }
        for side in [Side::A, Side::B] {
            let progress = pair.host(side).tcp().progress();
            assert_eq!(progress.error, None, "seed {seed} {side:?}");
            assert!(progress.finished && progress.rx_fin, "seed {seed} {side:?} {progress:?}");
            pair.assert_delivered(side);
        }
    }
    assert!(crossings > 10_000, "{crossings}");
}

#[test]
fn clocks_of_two_servers_may_have_different_starts() {
    let mut pair = Pair::established();
    pair.write(Side::A, 5_000);
    pair.flush();
    let now = pair.now;
    let connection = pair.a.tcp();
    let bytes = bytes_of(connection, now);
    for other in [Instant::from_us(77), now.plus_us(1 << 45)] {
        let mut made = made_of(&bytes, other).expect("it was exported");
        let due = |connection: &Connection, at: Instant| {
            connection.next_timeout().map(|timeout| timeout.us() - at.us())
        };
        assert_eq!(due(&made, other), due(connection, now));
        // The timestamps that the peer sees go on from where they were.
        made.set_option(other, SocketOption::QuickAck(true));
        made.send_ready(other, 6_000);
        connection.send_ready(now, 6_000);
        let mut counters = TcpCounters::default();
        let there = made.poll_segment(other, &mut counters).map(|one| one.options);
        let here = made_of(&bytes, now).expect("it was exported");
        let mut here = here;
        here.send_ready(now, 6_000);
        assert_eq!(there, here.poll_segment(now, &mut counters).map(|one| one.options));
    }
}

/// Memory that takes everything.
struct Nowhere;

impl crate::Streams for Nowhere {
    fn write(&mut self, _id: crate::SocketId, _position: u64, data: &[u8]) -> usize {
        data.len()
    }

    fn read(&mut self, _id: crate::SocketId, _position: u64, out: &mut [u8]) {
        out.fill(0);
    }
}

/// Lets a connection live for a while, whatever it is.
fn live(mut connection: Connection, mut now: Instant, random: &mut Random) {
    let mut counters = TcpCounters::default();
    for _ in 0..40 {
        let _ = connection.handle_timers(now, &mut counters);
        let mut acks = [SeqNumber::default(); 3];
        for _ in 0..20 {
            let Some(outgoing) = connection.poll_superframe(now, 20_000, &mut counters) else {
                break;
            };
            acks.rotate_right(1);
            acks[0] = outgoing.seq + outgoing.payload_len as u32;
            let payload = vec![0; random.below(2_000) as usize];
            let mut options = outgoing.options;
            options.timestamps = options.timestamps.map(|stamps| Timestamps {
                value: stamps.echo.wrapping_add(random.below(3) as u32),
                echo: stamps.value,
            });
            options.sack[0] = (acks[0], acks[0] + 500);
            options.sack_len = random.below(2) as u8;
            let segment = Segment {
                source_port: 1,
                destination_port: 2,
                seq: outgoing.ack + random.below(3_000) as u32 * random.below(2) as u32,
                ack: acks[random.below(3) as usize],
                flags: Flags::ACK,
                window: random.next_u64() as u16,
                urgent: 0,
                options,
                payload: &payload,
                segment_size: 0,
            };
            let _ =
                connection.handle_segment(now, socket_id(), &segment, &mut Nowhere, &mut counters);
        }
        connection.send_ready(now, random.below(1 << 20));
        connection.receive_consumed(now, connection.progress().rx_end);
        let _ = connection.info(now);
        now = connection.next_timeout().unwrap_or(now).max(now).plus_us(random.below(100_000));
        if connection.is_over() {
            return;
        }
    }
    let _ = connection.close(now, crate::Close::Graceful);
    let _ = connection.poll_segment(now, &mut counters);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn damage_is_refused_or_harmless(
        seed in 0_u64..5_000,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (mut pair, mut random) = drawn_pair(seed);
        pair.run_for(random.below(2_000_000));
        pair.write(Side::A, random.below(90_000) as usize);
        pair.run_for(random.below(400_000));
        let now = pair.now;
        for side in [Side::A, Side::B] {
            let Some(connection) = &pair.host(side).connection else { continue };
            if connection.is_over() {
                continue;
            }
            let mut bytes = bytes_of(connection, now);
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
                prop_assert!(made_of(&bytes, now).is_err());
                continue;
            }
            for (at, value) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            if let Ok(made) = made_of(&bytes, now) {
                live(made, now, &mut random);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_harmless(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        let now = Instant::from_us(1_000_000);
        if let Ok(made) = made_of(&bytes, now) {
            live(made, now, &mut Random::new(1));
        }
    }
}
