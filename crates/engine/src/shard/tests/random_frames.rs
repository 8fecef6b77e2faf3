//! Whatever arrives, nothing panics, and every frame is counted once.

use proptest::prelude::*;
use smoltcp::wire::Ipv4Packet;

use super::harness::*;
use crate::*;

/// Frames of all kinds that two hosts exchange.
fn valid_frames() -> Vec<Vec<u8>> {
    let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = seen.clone();
    let mut pair = Pair::new();
    pair.lose = Box::new(move |receiver, frame| {
        if receiver == 1 {
            log.borrow_mut().push(frame.to_vec());
        }
        false
    });
    for to in ["198.18.0.2:80", "[2001:db8::2]:80"] {
        let (client, server, _) = pair.connect(to);
        let now = pair.now;
        pair.hosts[0].send(now, client, &[1; 5000]);
        pair.hosts[1].send(now, server, &[2; 5000]);
        pair.run(100_000);
        let now = pair.now;
        pair.hosts[0].shard.close(now, client, Close::Graceful);
        pair.run(100_000);
    }
    let us = [2, 0, 0, 0, 0, 2];
    let mut frames = seen.borrow().clone();
    for payload in [[8, 0, 0xf7, 0xff, 0, 0, 0, 0], [3, 3, 0, 0, 0, 0, 0, 0]] {
        frames.push(frame(us, &packet("198.18.0.1", "198.18.0.2", 1, &payload)));
    }
    frames.push(frame(us, &packet("198.18.0.1", "198.18.0.2", 17, &[0, 1, 0, 2, 0, 8, 0, 0])));
    let chain = [60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 1, 9, 9];
    frames.push(frame(us, &packet("2001:db8::1", "2001:db8::2", 0, &chain)));
    frames
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(usize, u8),
    Cut(usize),
    Extend(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<usize>(), any::<u8>()).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => any::<usize>().prop_map(Damage::Cut),
        1 => (0_usize..64).prop_map(Damage::Extend),
    ]
}

fn apply(frame: &mut Vec<u8>, damage: &Damage) {
    match *damage {
        Damage::Flip(at, bits) if !frame.is_empty() => {
            // The headers are worth most attempts.
            let at = at % frame.len().min(100);
            frame[at] ^= bits;
        }
        Damage::Flip(..) => {}
        Damage::Cut(at) => frame.truncate(at % (frame.len() + 1)),
        Damage::Extend(by) => frame.resize(frame.len() + by, 0xa5),
    }
}

/// Makes an IPv4 header checksum right again, so that damage gets beyond it.
fn repair(frame: &mut [u8]) {
    if frame.get(12..14) == Some(&[8, 0]) && Ipv4Packet::new_checked(&frame[14..]).is_ok() {
        Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
    }
}

/// A host with listeners and half-open connections to host 1.
fn victim() -> Host {
    let mut host = Host::new(config(2));
    for to in ["0.0.0.0:80", "[::]:81"] {
        let _ = host.shard.listen(at(to), ListenOptions::default()).expect("free port");
    }
    for to in ["198.18.0.1:80", "[2001:db8::1]:80"] {
        let options = SocketOptions::default();
        let _ = host.shard.connect(START, None, at(to), options).expect("connect");
    }
    host
}

fn feed(host: &mut Host, now: Instant, frame: &[u8], meta: RxMeta) {
    host.shard.handle_frame(now, frame, meta, &mut host.memory);
    host.check_counters();
    let _ = host.drain(now);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn noise_is_survived(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
        checksum_valid in any::<bool>(),
    ) {
        let mut host = victim();
        for mut bytes in frames {
            if bytes.len() > 14 {
                bytes[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
                bytes[6] &= 0xfe;
                let kinds = [[8, 0], [8, 6], [0x86, 0xdd]];
                let kind = kinds[usize::from(bytes[12]) % 3];
                bytes[12..14].copy_from_slice(&kind);
            }
            feed(&mut host, START, &bytes, RxMeta { checksum_valid, ..RxMeta::default() });
        }
    }

    #[test]
    fn damaged_frames_are_survived(
        steps in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::vec(damage(), 0..4), 0_u64..2_000_000),
            1..60,
        ),
        checksum_valid in any::<bool>(),
    ) {
        thread_local! {
            static FRAMES: Vec<Vec<u8>> = valid_frames();
        }
        let frames = FRAMES.with(Clone::clone);
        let mut host = victim();
        let mut now = START;
        for (index, damages, wait_us) in steps {
            let mut bytes = index.get(&frames).clone();
            for damage in &damages {
                apply(&mut bytes, damage);
            }
            if checksum_valid {
                repair(&mut bytes);
            }
            now = now.plus_us(wait_us);
            host.shard.handle_timers(now, &mut host.memory);
            feed(&mut host, now, &bytes, RxMeta { checksum_valid, ..RxMeta::default() });
        }
        let received = host.count(Counter::FramesReceived);
        prop_assert!(host.count(Counter::FramesAccepted) <= received);
    }
}
