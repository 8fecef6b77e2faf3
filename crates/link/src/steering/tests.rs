//! The kernel's program against the function that it is to be.

use std::os::fd::{AsFd, OwnedFd};

use proptest::prelude::*;

use super::*;

const KEY: u64 = 0x1234_5678_9abc_def0;

/// A frame, or a packet that an error quotes.
#[derive(Clone, Debug)]
struct Sample {
    v6: bool,
    tags: usize,
    source: [u8; 16],
    destination: [u8; 16],
    ports: (u16, u16),
    protocol: u8,
    /// More fragments, and the offset.
    fragment: u16,
    /// Words of IPv4 options.
    options: usize,
    /// Kinds of extension headers, and how many words of eight bytes they have more than one.
    extensions: Vec<(u8, u8)>,
    /// Type of an ICMP message.
    message: u8,
    len: usize,
}

impl Sample {
    fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        if self.v6 {
            let next = |at: usize| self.extensions.get(at).map_or(self.protocol, |one| one.0);
            packet.extend([0x60, 0, 0, 0, 0, 8, next(0), 64]);
            packet.extend(self.source);
            packet.extend(self.destination);
            for (at, (kind, more)) in self.extensions.iter().enumerate() {
                let [high, low] = self.fragment.to_be_bytes();
                let more = if *kind == 44 { 0 } else { more % 4 };
                packet.extend([next(at + 1), more, high, low, 0, 0, 0, 0]);
                packet.extend(std::iter::repeat_n(0, 8 * usize::from(more)));
            }
        } else {
            let [high, low] = self.fragment.to_be_bytes();
            let first = 0x45 + self.options as u8;
            packet.extend([first, 0, 0, 28, 0, 0, high, low, 64, self.protocol, 0, 0]);
            packet.extend(&self.source[..4]);
            packet.extend(&self.destination[..4]);
            packet.extend(std::iter::repeat_n(1, 4 * self.options));
        }
        packet.extend(payload);
        packet
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        bytes.extend([0; 16]);
        bytes
    }

    fn frame(&self, quoted: Option<&Sample>) -> Vec<u8> {
        let mut frame = vec![7; 12];
        for tag in 0..self.tags {
            frame.extend(TYPES_VLAN[tag % 2].to_be_bytes());
            frame.extend([0, 5]);
        }
        frame.extend((if self.v6 { TYPE_IPV6 } else { TYPE_IPV4 }).to_be_bytes());
        let payload = match quoted {
            None => self.transport(),
            Some(quoted) => {
                let quoted = Sample { v6: self.v6, ..quoted.clone() };
                let mut message = vec![self.message, 0, 0, 0, 0, 0, 0, 0];
                message.extend(quoted.packet(&quoted.transport()));
                message
            }
        };
        frame.extend(self.packet(&payload));
        frame.truncate(self.len.max(14));
        frame
    }
}

fn sample() -> impl Strategy<Value = Sample> {
    let protocol =
        prop_oneof![4 => Just(6u8), 4 => Just(17), 2 => Just(1), 2 => Just(58), 1 => any::<u8>()];
    let fragment = prop_oneof![
        6 => Just(0u16), 1 => Just(1), 1 => Just(0x2000), 1 => any::<u16>()
    ];
    let kind = prop_oneof![Just(0u8), Just(43), Just(44), Just(60), any::<u8>()];
    let extensions = prop_oneof![
        3 => Just(Vec::new()),
        2 => prop::collection::vec((kind, any::<u8>()), 1..10)
    ];
    let message = prop_oneof![Just(3u8), Just(11), Just(12), Just(1), Just(135), any::<u8>()];
    let len = prop_oneof![5 => Just(800usize), 1 => 14..260usize];
    (
        any::<(bool, [u8; 16], [u8; 16], (u16, u16))>(),
        (0..4usize, 0..11usize),
        (protocol, fragment, extensions, message, len),
    )
        .prop_map(|((v6, source, destination, ports), (tags, options), rest)| {
            let (protocol, fragment, extensions, message, len) = rest;
            Sample {
                v6,
                tags,
                source,
                destination,
                ports,
                protocol,
                fragment,
                options,
                extensions,
                message,
                len,
            }
        })
}

/// What the kernel's program says of a frame. Its test call takes an Ethernet header off before the
/// program of this type sees the rest, so one more is put before.
fn asked(program: &OwnedFd, frame: &[u8]) -> u16 {
    let input = [&[0; ETHERNET_HEADER_LEN], frame].concat();
    sys::bpf_test_run(program.as_fd(), &input).expect("a test run") as u16
}

/// Map and program, where they may be loaded.
fn loaded(steering: &Steering) -> Option<(SteeringMap, OwnedFd)> {
    let loaded = SteeringMap::new(steering).and_then(|map| {
        let program = map.load_program(steering)?;
        Ok((map, program))
    });
    match loaded {
        Ok(loaded) => Some(loaded),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            println!("skipped: programs may not be loaded: {error}");
            None
        }
        Err(error) => panic!("the kernel refuses the program: {error}"),
    }
}

#[test]
fn the_kernels_program_agrees() {
    for rule in [Rule::Hash, Rule::Low12] {
        for queues in [1, 2, 3, 16, 200] {
            let steering = Steering::new(KEY.wrapping_mul(queues.into()), rule, queues);
            let Some((_map, program)) = loaded(&steering) else { return };
            let mut runner = proptest::test_runner::TestRunner::default();
            let frames = (sample(), proptest::option::of(sample()));
            let agrees = runner.run(&frames, |(sample, quoted)| {
                let protocol = if sample.v6 { 58 } else { 1 };
                let sample = match quoted {
                    Some(_) => Sample { protocol, ..sample },
                    None => sample,
                };
                let frame = sample.frame(quoted.as_ref());
                prop_assert_eq!(asked(&program, &frame), steering.queue(&frame));
                Ok(())
            });
            agrees.unwrap();
            let agrees = runner.run(&prop::collection::vec(any::<u8>(), 14..100), |frame| {
                prop_assert_eq!(asked(&program, &frame), steering.queue(&frame));
                Ok(())
            });
            agrees.unwrap();
        }
    }
}

/// The strategy above has many ways to be nonsense: errors about every kind of packet of ours, one by one.
#[test]
fn the_kernels_program_reads_what_errors_quote() {
    for rule in [Rule::Hash, Rule::Low12] {
        let steering = Steering::new(KEY, rule, 64);
        let Some((_map, program)) = loaded(&steering) else { return };
        for v6 in [false, true] {
            for (number, protocol) in [6, 17, 6, 17, 99].into_iter().enumerate() {
                let fragments = number > 1 && v6;
                let quoted = Sample {
                    v6,
                    tags: 0,
                    source: [number as u8; 16],
                    destination: [9; 16],
                    ports: (40_000 + number as u16, 443),
                    protocol,
                    fragment: if fragments { 1 } else { 0 },
                    options: 0,
                    extensions: if fragments { vec![(44, 0)] } else { Vec::new() },
                    message: 0,
                    len: 800,
                };
                let whole = Sample {
                    protocol: if v6 { 58 } else { 1 },
                    extensions: Vec::new(),
                    fragment: 0,
                    message: 3,
                    ..quoted.clone()
                };
                let frame = whole.frame(Some(&quoted));
                let bucket = steering.bucket(&frame);
                assert_eq!(bucket.is_some(), protocol != 99, "{v6} {protocol}");
                assert_eq!(asked(&program, &frame), steering.queue(&frame), "{v6} {protocol}");
            }
        }
    }
}

#[test]
fn buckets_move_under_a_program_that_runs() {
    let mut steering = Steering::new(KEY, Rule::Hash, 4);
    let Some((map, program)) = loaded(&steering) else { return };
    let mut runner = proptest::test_runner::TestRunner::default();
    for round in 0..20 {
        for bucket in (round..4096).step_by(7) {
            steering.move_bucket(bucket, (bucket + round) % 4);
        }
        map.update(&steering).unwrap();
        let agrees = runner.run(&sample(), |sample| {
            let frame = sample.frame(None);
            prop_assert_eq!(asked(&program, &frame), steering.queue(&frame));
            Ok(())
        });
        agrees.unwrap();
    }
}
