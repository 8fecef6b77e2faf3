//! Owns the program by which the kernel chooses the queue of a multi-queue TAP for each frame: the
//! function of `haypile_engine::steering` up to the queue of a bucket, which it reads from a map that
//! can be written while it runs. Called by `tap/setup.rs`; tests compare the program with the function.
//!
//! What goes by no bucket, or is cut short, comes on queue 0. That a frame for several servers, or a
//! port with a home of its own, is more than a queue, the servers know themselves.

mod assembler;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

pub use haypile_engine::steering::{Rule, Steering};

use crate::sys;
use assembler::{Assembler, Label, Register, Width};
use haypile_engine::steering::frames::*;
use haypile_engine::steering::{BUCKET_BITS, BUCKETS, MULTIPLIER};

/// Most queues a TAP of Linux has (`MAX_TAP_QUEUES`).
pub const QUEUES_MAX: u16 = 256;
/// Where a frame says its Ethernet type.
const TYPE_AT: i32 = 12;
/// The map from buckets to queues that a program reads. The kernel keeps it as long as the program.
#[derive(Debug)]
pub struct SteeringMap {
    map: OwnedFd,
}

impl SteeringMap {
    /// A map as `steering` has it, whose owners are queues.
    ///
    /// # Errors
    /// When the kernel lets us have none: it takes privileges that root of a user namespace lacks.
    pub(crate) fn new(steering: &Steering) -> io::Result<SteeringMap> {
        let map = sys::bpf_create_array(BUCKETS * size_of::<u16>())?;
        let map = SteeringMap { map };
        map.update(steering)?;
        Ok(map)
    }

    /// Gives every bucket the queue that `steering` says. Frames are steered meanwhile, each by the old
    /// queue or the new one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn update(&self, steering: &Steering) -> io::Result<()> {
        sys::bpf_set_array(self.map.as_fd(), steering.owners())
    }

    /// Loads the program that reads this map.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub(crate) fn load_program(&self, steering: &Steering) -> io::Result<OwnedFd> {
        sys::bpf_load_socket_filter(&program(steering, self.map.as_raw_fd()))
    }
}

/// Where loads leave their value; also the result.
const LOADED: Register = Register(0);
/// Lost by a load.
const SCRATCH: Register = Register(1);
/// Start of the header that is looked at.
const AT: Register = Register(7);
/// The hash so far.
const HASH: Register = Register(8);
/// Which header comes next; then what goes into the hash next.
const PART: Register = Register(9);

/// The places that several ways through the program lead to.
struct Ends {
    /// TCP: at its ports.
    tcp: Label,
    /// UDP: at its ports.
    udp: Label,
    /// The same in a packet of ours that an error quotes.
    tcp_quoted: Label,
    udp_quoted: Label,
    /// Goes by addresses alone.
    addresses: Label,
    /// Goes by no bucket.
    speaker: Label,
}

/// [`Steering::queue`] in eBPF: a program of the type `SOCKET_FILTER`. A load beyond the frame's end ends
/// it with 0.
fn program(steering: &Steering, map: RawFd) -> Vec<u64> {
    let mut asm = Assembler::default();
    let (v4, v6) = (asm.label(), asm.label());
    let ends = Ends {
        tcp: asm.label(),
        udp: asm.label(),
        tcp_quoted: asm.label(),
        udp_quoted: asm.label(),
        addresses: asm.label(),
        speaker: asm.label(),
    };
    let key = steering.key();
    asm.keep_context();
    emit_ethernet(&mut asm);
    asm.jump_if_equal(LOADED, TYPE_IPV4, v4);
    asm.jump_if_equal(LOADED, TYPE_IPV6, v6);
    asm.place(ends.speaker);
    asm.set(LOADED, 0);
    asm.exit();
    asm.place(v4);
    emit_v4(&mut asm, key, &ends);
    asm.place(v6);
    emit_v6(&mut asm, key, &ends);
    emit_ends(&mut asm, steering, &ends, map);
    asm.finish()
}

/// Skips VLAN tags: leaves the Ethernet type loaded, and the start of what follows.
fn emit_ethernet(asm: &mut Assembler) {
    asm.set(AT, ETHERNET_HEADER_LEN as i32);
    asm.load_absolute(Width::Half, TYPE_AT);
    for _ in 0..TAGS_MAX {
        let (tagged, next) = (asm.label(), asm.label());
        for kind in TYPES_VLAN {
            asm.jump_if_equal(LOADED, kind, tagged);
        }
        asm.jump(next);
        asm.place(tagged);
        asm.add(AT, VLAN_TAG_LEN as i32);
        asm.load(Width::Half, AT, -2);
        asm.place(next);
    }
}

fn emit_v4(asm: &mut Assembler, key: u64, ends: &Ends) {
    let quote = asm.label();
    emit_header_v4(asm, key, FRAGMENT_BITS_V4, ends.addresses);
    asm.jump_if_equal(PART, TCP, ends.tcp);
    asm.jump_if_equal(PART, UDP, ends.udp);
    asm.jump_unless_equal(PART, ICMP, ends.speaker);
    asm.load(Width::Byte, AT, 0);
    for kind in ERRORS_V4 {
        asm.jump_if_equal(LOADED, kind, quote);
    }
    asm.jump(ends.speaker);
    asm.place(quote);
    asm.add(AT, ICMP_HEADER_LEN as i32);
    emit_header_v4(asm, key, OFFSET_BITS_V4, ends.speaker);
    emit_quoted(asm, ends);
}

/// Hashes the addresses, leaves the protocol in `PART` and goes behind the header; goes elsewhere if any
/// of these bits of the fragment's place is set.
fn emit_header_v4(asm: &mut Assembler, key: u64, bits: u16, if_set: Label) {
    asm.set_wide(HASH, key);
    emit_pair(asm, 12, 16);
    asm.load(Width::Half, AT, 6);
    asm.and(LOADED, bits.into());
    asm.jump_unless_equal(LOADED, 0, if_set);
    asm.load(Width::Byte, AT, 9);
    asm.copy(PART, LOADED);
    asm.load(Width::Byte, AT, 0);
    asm.and(LOADED, 0x0f);
    asm.shift_left(LOADED, 2);
    asm.add_register(AT, LOADED);
}

fn emit_v6(asm: &mut Assembler, key: u64, ends: &Ends) {
    let (read, no_fragment) = (asm.label(), asm.label());
    emit_header_v6(asm, key);
    for _ in 0..EXTENSIONS_MAX {
        let (extension, fragment, next) = (asm.label(), asm.label(), asm.label());
        for kind in EXTENSIONS {
            asm.jump_if_equal(PART, kind, extension);
        }
        asm.jump_if_equal(PART, FRAGMENT, fragment);
        asm.jump(read);
        asm.place(extension);
        asm.load(Width::Byte, AT, 0);
        asm.copy(PART, LOADED);
        asm.load(Width::Byte, AT, 1);
        asm.add(LOADED, 1);
        asm.shift_left(LOADED, 3);
        asm.add_register(AT, LOADED);
        asm.jump(next);
        asm.place(fragment);
        emit_fragment_header(asm, FRAGMENT_BITS_V6, ends.addresses);
        asm.place(next);
    }
    asm.place(read);
    asm.jump_if_equal(PART, TCP, ends.tcp);
    asm.jump_if_equal(PART, UDP, ends.udp);
    asm.jump_unless_equal(PART, ICMPV6, ends.speaker);
    asm.load(Width::Byte, AT, 0);
    asm.and(LOADED, NO_ERROR_V6.into());
    asm.jump_unless_equal(LOADED, 0, ends.speaker);
    asm.add(AT, ICMP_HEADER_LEN as i32);
    emit_header_v6(asm, key);
    asm.jump_unless_equal(PART, FRAGMENT, no_fragment);
    emit_fragment_header(asm, OFFSET_BITS_V6, ends.speaker);
    asm.place(no_fragment);
    emit_quoted(asm, ends);
}

/// As [`emit_header_v4`], for the fixed header.
fn emit_header_v6(asm: &mut Assembler, key: u64) {
    asm.set_wide(HASH, key);
    for part in 0..4 {
        emit_pair(asm, 8 + 4 * part, 24 + 4 * part);
    }
    asm.load(Width::Byte, AT, 6);
    asm.copy(PART, LOADED);
    asm.add(AT, IPV6_HEADER_LEN as i32);
}

fn emit_fragment_header(asm: &mut Assembler, bits: u16, if_set: Label) {
    asm.load(Width::Half, AT, 2);
    asm.and(LOADED, bits.into());
    asm.jump_unless_equal(LOADED, 0, if_set);
    asm.load(Width::Byte, AT, 0);
    asm.copy(PART, LOADED);
    asm.add(AT, FRAGMENT_HEADER_LEN as i32);
}

fn emit_quoted(asm: &mut Assembler, ends: &Ends) {
    asm.jump_if_equal(PART, TCP, ends.tcp_quoted);
    asm.jump_if_equal(PART, UDP, ends.udp_quoted);
    asm.jump(ends.speaker);
}

/// From the ports to the queue.
fn emit_ends(asm: &mut Assembler, steering: &Steering, ends: &Ends, map: RawFd) {
    let (finish, port, lookup) = (asm.label(), asm.label(), asm.label());
    match steering.rule() {
        Rule::Hash => {
            asm.place(ends.tcp);
            asm.place(ends.tcp_quoted);
            emit_ports(asm);
            asm.jump(finish);
        }
        Rule::Low12 => {
            asm.place(ends.tcp);
            emit_port(asm, 2, 0);
            asm.jump(port);
            asm.place(ends.tcp_quoted);
            emit_port(asm, 0, 2);
            asm.jump(port);
        }
    }
    asm.place(ends.udp_quoted);
    emit_port(asm, 2, 0);
    asm.jump(port);
    asm.place(ends.udp);
    emit_port(asm, 0, 2);
    asm.place(port);
    match steering.rule() {
        Rule::Hash => {
            asm.copy(PART, LOADED);
            asm.set_wide(HASH, steering.key());
            asm.jump(finish);
        }
        Rule::Low12 => asm.jump(lookup),
    }
    asm.place(ends.addresses);
    asm.set(PART, 0);
    asm.place(finish);
    emit_mix(asm);
    asm.set_wide(SCRATCH, MULTIPLIER);
    asm.multiply_register(HASH, SCRATCH);
    asm.shift_right(HASH, 64 - BUCKET_BITS as i32);
    asm.copy(LOADED, HASH);
    asm.place(lookup);
    asm.and(LOADED, BUCKETS as i32 - 1);
    asm.shift_left(LOADED, 1);
    asm.set_map_value(SCRATCH, map);
    asm.add_register(SCRATCH, LOADED);
    asm.load_half_at(LOADED, SCRATCH);
    asm.exit();
}

/// Loads one port; the other must be there too.
fn emit_port(asm: &mut Assembler, other: i32, wanted: i32) {
    asm.load(Width::Half, AT, other);
    asm.load(Width::Half, AT, wanted);
}

/// Mixes in the difference of two words of the IP header.
fn emit_pair(asm: &mut Assembler, source: i32, destination: i32) {
    asm.load(Width::Word, AT, source);
    asm.copy(PART, LOADED);
    asm.load(Width::Word, AT, destination);
    asm.xor_register(PART, LOADED);
    emit_mix(asm);
}

fn emit_mix(asm: &mut Assembler) {
    asm.add_register(HASH, PART);
    asm.set_wide(SCRATCH, MULTIPLIER);
    asm.multiply_register(HASH, SCRATCH);
    asm.copy(SCRATCH, HASH);
    asm.shift_right(SCRATCH, 32);
    asm.xor_register(HASH, SCRATCH);
}

/// Both ports as one symmetric number.
fn emit_ports(asm: &mut Assembler) {
    asm.load(Width::Half, AT, 0);
    asm.copy(PART, LOADED);
    asm.load(Width::Half, AT, 2);
    asm.copy(SCRATCH, PART);
    asm.add_register(SCRATCH, LOADED);
    asm.and(SCRATCH, 0xffff);
    asm.xor_register(PART, LOADED);
    asm.shift_left(PART, 16);
    asm.or_register(PART, SCRATCH);
}
