//! Owns which queue of a multi-queue TAP a frame comes on: a symmetric, keyed hash of addresses and
//! ports names one of 4096 buckets, the bucket a queue. The same function exists twice: here, and as
//! a program for the kernel (`Steering::program`, `steering/assembler.rs`), which runs it for each
//! frame. Called by `tap/setup.rs`; tests compare both. Pure.
//!
//! Both directions of a flow fall into one bucket. Fragments go by addresses alone, whether or not
//! they have ports, and so does what is neither TCP nor UDP; what is not IP, or cut short, goes to
//! queue 0. Up to two VLAN tags are skipped.

mod assembler;
#[cfg(test)]
mod tests;

use crate::port::{ETHERNET_HEADER_LEN, VLAN_TAG_LEN};
use assembler::{Assembler, Register, Width};

/// Number of buckets.
pub const BUCKETS: u32 = 1 << BUCKET_BITS;
/// Most queues a TAP of Linux has (`MAX_TAP_QUEUES`).
pub const QUEUES_MAX: u16 = 256;

const BUCKET_BITS: u32 = 12;
/// An odd multiplier with well-mixed bits: 2^64 divided by the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const TYPE_AT: i32 = 12;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
const TYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];
const TAGS_MAX: usize = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_HEADER_LEN: i32 = 40;
/// More fragments, or a fragment offset.
const FRAGMENT_BITS: u16 = 0x3fff;

/// How frames are spread over queues.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Steering {
    /// Keys the hash, so that nobody outside can choose what falls into one bucket.
    pub key: u64,
    /// Number of queues, 1..=[`QUEUES_MAX`].
    pub queues: u16,
}

impl Steering {
    /// The queue of a bucket: each queue owns a run of buckets of equal length, give or take one.
    pub fn queue_of(&self, bucket: u32) -> u16 {
        (((bucket % BUCKETS) * u32::from(self.queues)) >> BUCKET_BITS) as u16
    }

    /// The queue that a frame comes on.
    pub fn queue(&self, frame: &[u8]) -> u16 {
        self.bucket(frame).map_or(0, |bucket| self.queue_of(bucket))
    }

    /// The bucket of a frame's flow; `None` for what is not IP, or cut short.
    pub fn bucket(&self, frame: &[u8]) -> Option<u32> {
        let mut ip = ETHERNET_HEADER_LEN;
        for _ in 0..TAGS_MAX {
            if TYPES_VLAN.contains(&half(frame, ip - 2)?) {
                ip += VLAN_TAG_LEN;
            }
        }
        match half(frame, ip - 2)? {
            TYPE_IPV4 => self.bucket_v4(frame, ip),
            TYPE_IPV6 => self.bucket_v6(frame, ip),
            _ => None,
        }
    }

    fn bucket_v4(&self, frame: &[u8], ip: usize) -> Option<u32> {
        let hash = mix(self.key, word(frame, ip + 12)? ^ word(frame, ip + 16)?);
        if half(frame, ip + 6)? & FRAGMENT_BITS != 0 {
            return Some(finish(hash, 0));
        }
        let protocol = *frame.get(ip + 9)?;
        let header_len = usize::from(*frame.get(ip)? & 0x0f) * 4;
        ports(frame, ip + header_len, protocol).map(|ports| finish(hash, ports))
    }

    fn bucket_v6(&self, frame: &[u8], ip: usize) -> Option<u32> {
        let mut hash = self.key;
        for part in 0..4 {
            hash = mix(hash, word(frame, ip + 8 + 4 * part)? ^ word(frame, ip + 24 + 4 * part)?);
        }
        let protocol = *frame.get(ip + 6)?;
        let ports = ports(frame, ip + IPV6_HEADER_LEN as usize, protocol)?;
        Some(finish(hash, ports))
    }

    /// The same as [`Steering::queue`] in eBPF: a program of the type `SOCKET_FILTER`. A load beyond
    /// the frame's end ends it with 0.
    pub(crate) fn program(&self) -> Vec<u64> {
        let mut asm = Assembler::default();
        let (v4, v6, ports, no_ports, last) =
            (asm.label(), asm.label(), asm.label(), asm.label(), asm.label());
        asm.keep_context();
        asm.set(L3, ETHERNET_HEADER_LEN as i32);
        asm.load_absolute(Width::Half, TYPE_AT);
        for _ in 0..TAGS_MAX {
            let (tagged, next) = (asm.label(), asm.label());
            for kind in TYPES_VLAN {
                asm.jump_if_equal(LOADED, i32::from(kind), tagged);
            }
            asm.jump(next);
            asm.place(tagged);
            asm.add(L3, VLAN_TAG_LEN as i32);
            asm.load(Width::Half, L3, -2);
            asm.place(next);
        }
        asm.jump_if_equal(LOADED, i32::from(TYPE_IPV4), v4);
        asm.jump_if_equal(LOADED, i32::from(TYPE_IPV6), v6);
        asm.set(LOADED, 0);
        asm.exit();

        asm.place(v4);
        asm.set_wide(HASH, self.key);
        emit_pair(&mut asm, 12, 16);
        asm.load(Width::Half, L3, 6);
        asm.and(LOADED, i32::from(FRAGMENT_BITS));
        asm.jump_unless_equal(LOADED, 0, no_ports);
        asm.load(Width::Byte, L3, 9);
        let has_ports = asm.label();
        asm.jump_if_equal(LOADED, i32::from(TCP), has_ports);
        asm.jump_unless_equal(LOADED, i32::from(UDP), no_ports);
        asm.place(has_ports);
        asm.load(Width::Byte, L3, 0);
        asm.and(LOADED, 0x0f);
        asm.shift_left(LOADED, 2);
        asm.add_register(L3, LOADED);
        asm.jump(ports);

        asm.place(v6);
        asm.set_wide(HASH, self.key);
        for part in 0..4 {
            emit_pair(&mut asm, 8 + 4 * part, 24 + 4 * part);
        }
        asm.load(Width::Byte, L3, 6);
        asm.add(L3, IPV6_HEADER_LEN);
        asm.jump_if_equal(LOADED, i32::from(TCP), ports);
        asm.jump_unless_equal(LOADED, i32::from(UDP), no_ports);

        asm.place(ports);
        emit_ports(&mut asm);
        asm.jump(last);
        asm.place(no_ports);
        asm.set(PART, 0);
        asm.place(last);
        emit_mix(&mut asm);
        asm.set_wide(SCRATCH, MULTIPLIER);
        asm.multiply_register(HASH, SCRATCH);
        asm.shift_right(HASH, 64 - BUCKET_BITS as i32);
        asm.multiply(HASH, i32::from(self.queues));
        asm.shift_right(HASH, BUCKET_BITS as i32);
        asm.copy(LOADED, HASH);
        asm.exit();
        asm.finish()
    }
}

/// Where loads leave their value; also the result.
const LOADED: Register = Register(0);
/// Lost by a load.
const SCRATCH: Register = Register(1);
/// Start of the IP header, then of the ports.
const L3: Register = Register(7);
/// The hash so far.
const HASH: Register = Register(8);
/// What goes into the hash next.
const PART: Register = Register(9);

/// Mixes in the difference of two words of the IP header.
fn emit_pair(asm: &mut Assembler, source: i32, destination: i32) {
    asm.load(Width::Word, L3, source);
    asm.copy(PART, LOADED);
    asm.load(Width::Word, L3, destination);
    asm.xor_register(PART, LOADED);
    emit_mix(asm);
}

/// [`mix`].
fn emit_mix(asm: &mut Assembler) {
    asm.add_register(HASH, PART);
    asm.set_wide(SCRATCH, MULTIPLIER);
    asm.multiply_register(HASH, SCRATCH);
    asm.copy(SCRATCH, HASH);
    asm.shift_right(SCRATCH, 32);
    asm.xor_register(HASH, SCRATCH);
}

/// [`both_ports`].
fn emit_ports(asm: &mut Assembler) {
    asm.load(Width::Half, L3, 0);
    asm.copy(PART, LOADED);
    asm.load(Width::Half, L3, 2);
    asm.copy(SCRATCH, PART);
    asm.add_register(SCRATCH, LOADED);
    asm.and(SCRATCH, 0xffff);
    asm.xor_register(PART, LOADED);
    asm.shift_left(PART, 16);
    asm.or_register(PART, SCRATCH);
}

/// The ports as one symmetric number; 0 for a protocol without any, `None` when they are cut off.
fn ports(frame: &[u8], at: usize, protocol: u8) -> Option<u32> {
    match protocol {
        TCP | UDP => Some(both_ports(half(frame, at)?, half(frame, at + 2)?)),
        _ => Some(0),
    }
}

fn both_ports(source: u16, destination: u16) -> u32 {
    u32::from(source ^ destination) << 16 | u32::from(source.wrapping_add(destination))
}

fn mix(hash: u64, part: u32) -> u64 {
    let product = hash.wrapping_add(u64::from(part)).wrapping_mul(MULTIPLIER);
    product ^ product >> 32
}

fn finish(hash: u64, part: u32) -> u32 {
    (mix(hash, part).wrapping_mul(MULTIPLIER) >> (64 - BUCKET_BITS)) as u32
}

fn half(frame: &[u8], at: usize) -> Option<u16> {
    crate::offload::read_u16(frame, at)
}

fn word(frame: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(half(frame, at)?) << 16 | u32::from(half(frame, at + 2)?))
}
