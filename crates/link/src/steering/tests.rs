//! The function against what it promises, and the kernel's program against the function.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::sys;

const STEERING: Steering = Steering { key: 0x1234_5678_9abc_def0, queues: 4 };

/// A frame with `tags` VLAN tags, an IP header and ports.
#[derive(Clone, Debug)]
struct Sample {
    v6: bool,
    tags: usize,
    source: [u8; 16],
    destination: [u8; 16],
    ports: (u16, u16),
    protocol: u8,
    fragment: u16,
    options: usize,
    len: usize,
}

impl Sample {
    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![7; 12];
        for tag in 0..self.tags {
            frame.extend_from_slice(&TYPES_VLAN[tag % 2].to_be_bytes());
            frame.extend_from_slice(&[0, 5]);
        }
        if self.v6 {
            frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, self.protocol, 64]);
            frame.extend_from_slice(&self.source);
            frame.extend_from_slice(&self.destination);
        } else {
            let [high, low] = self.fragment.to_be_bytes();
            let first = 0x45 + self.options as u8;
            frame.extend_from_slice(&[8, 0, first, 0, 0, 28, 0, 0, high, low, 64, self.protocol]);
            frame.extend_from_slice(&[0, 0]);
            frame.extend_from_slice(&self.source[..4]);
            frame.extend_from_slice(&self.destination[..4]);
            frame.extend(std::iter::repeat_n(1, 4 * self.options));
        }
        frame.extend_from_slice(&self.ports.0.to_be_bytes());
        frame.extend_from_slice(&self.ports.1.to_be_bytes());
        frame.extend_from_slice(&[0; 16]);
        frame.truncate(self.len.max(14));
        frame
    }

    fn reversed(&self) -> Sample {
        Sample {
            source: self.destination,
            destination: self.source,
            ports: (self.ports.1, self.ports.0),
            ..self.clone()
        }
    }
}

fn sample() -> impl Strategy<Value = Sample> {
    let protocol = prop_oneof![Just(TCP), Just(UDP), any::<u8>()];
    let fragment = prop_oneof![3 => Just(0), 1 => any::<u16>()];
    let len = prop_oneof![5 => Just(200usize), 1 => 14..100usize];
    (
        any::<(bool, [u8; 16], [u8; 16], (u16, u16))>(),
        0..3usize,
        protocol,
        fragment,
        0..11usize,
        len,
    )
        .prop_map(
            |((v6, source, destination, ports), tags, protocol, fragment, options, len)| Sample {
                v6,
                tags,
                source,
                destination,
                ports,
                protocol,
                fragment,
                options,
                len,
            },
        )
}

proptest! {
    #[test]
    fn both_directions_are_one_bucket(sample in sample()) {
        let bucket = STEERING.bucket(&sample.frame());
        prop_assert_eq!(bucket, STEERING.bucket(&sample.reversed().frame()));
        prop_assert!(bucket.is_none_or(|bucket| bucket < BUCKETS));
        prop_assert!(STEERING.queue(&sample.frame()) < STEERING.queues);
    }

    #[test]
    fn fragments_follow_their_addresses(sample in sample(), ports: (u16, u16)) {
        let first = Sample { v6: false, fragment: 0x2000, len: 200, ..sample };
        let other = Sample { ports, fragment: 185, ..first.clone() };
        prop_assert_eq!(STEERING.bucket(&first.frame()), STEERING.bucket(&other.frame()));
    }

    #[test]
    fn nonsense_has_a_queue(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        prop_assert!(STEERING.queue(&bytes) < STEERING.queues);
    }
}

#[test]
fn queues_own_equal_runs_of_buckets() {
    for queues in [1, 2, 3, 7, 256] {
        let steering = Steering { key: 1, queues };
        let mut owned: HashMap<u16, u32> = HashMap::new();
        for bucket in 0..BUCKETS {
            *owned.entry(steering.queue_of(bucket)).or_default() += 1;
        }
        assert_eq!(owned.len(), usize::from(queues));
        let (least, most) = (owned.values().min().unwrap(), owned.values().max().unwrap());
        assert!(most - least <= 1, "{queues} queues: {least} to {most}");
    }
}

#[test]
fn neighbouring_ports_spread() {
    let mut counts = [0; 4];
    for port in 32_768..36_768 {
        let mut sample = Sample {
            v6: false,
            tags: 0,
            source: [10; 16],
            destination: [11; 16],
            ports: (port, 80),
            protocol: TCP,
            fragment: 0,
            options: 0,
            len: 200,
        };
        sample.source[3] = 1;
        counts[usize::from(STEERING.queue(&sample.frame()))] += 1;
    }
    assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
}

/// What the kernel's program says of a frame. Its test call takes an Ethernet header off before the
/// program of this type sees the rest, so one more is put before.
fn asked(program: &std::os::fd::OwnedFd, frame: &[u8]) -> u16 {
    let input = [&[0; ETHERNET_HEADER_LEN], frame].concat();
    sys::bpf_test_run(std::os::fd::AsFd::as_fd(program), &input).expect("a test run") as u16
}

#[test]
fn the_kernels_program_agrees() {
    for queues in [1, 2, 3, 4, 16] {
        let steering = Steering { key: STEERING.key.wrapping_mul(queues.into()), queues };
        let program = match sys::bpf_load_socket_filter(&steering.program()) {
            Ok(program) => program,
            Err(error) => return println!("skipped: programs may not be loaded: {error}"),
        };
        let mut runner = proptest::test_runner::TestRunner::default();
        let agrees = runner.run(&sample(), |sample| {
            let frame = sample.frame();
            prop_assert_eq!(asked(&program, &frame), steering.queue(&frame));
            Ok(())
        });
        agrees.unwrap();
    }
}
