//! Large echo requests in fragments, and their replies.

use super::harness::*;
use crate::shard::headers::transport_checksum;
use crate::shard::ipv4::emit_ipv4_fragment;
use crate::shard::ipv6::emit_ipv6_fragment;
use crate::*;
use smoltcp::wire::checksum;

const US: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn echo_request(v6: bool, len: usize) -> Vec<u8> {
    let mut message = vec![if v6 { 128 } else { 8 }, 0, 0, 0, 0x12, 0x34, 0, 1];
    message.extend((0..len).map(|n| (n % 251) as u8));
    let (source, destination) =
        if v6 { ("2001:db8::9", "2001:db8::1") } else { ("198.18.0.9", "198.18.0.1") };
    let sum = if v6 {
        transport_checksum(ip(source), ip(destination), 58, &message)
    } else {
        !checksum::data(&message)
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(source, destination, if v6 { 58 } else { 1 }, &message)
}

fn fragments(packet: &[u8], identification: u32) -> Vec<Vec<u8>> {
    let v6 = packet[0] >> 4 == 6;
    let header = if v6 { 40 } else { 20 };
    let mut sent = 0;
    let mut fragments = Vec::new();
    while header + sent < packet.len() {
        let mut out = vec![0; 1500];
        let (len, part) = if v6 {
            emit_ipv6_fragment(packet, sent, identification, 1500, &mut out)
        } else {
            emit_ipv4_fragment(packet, sent, identification as u16, 1500, &mut out)
        };
        out.truncate(len);
        sent += part;
        fragments.push(out);
    }
    fragments
}

fn ping(v6: bool, len: usize) {
    let mut host = Host::new(config(1));
    let mut other = Host::new(config(9));
    let request = echo_request(v6, len);
    let mut pieces = if request.len() > 1500 { fragments(&request, 7) } else { vec![request] };
    let count = pieces.len();
    pieces.rotate_left(1);
    let mut replies = Vec::new();
    for piece in &pieces {
        replies.extend(host.exchange(START, &frame(US, piece)));
    }
    // The reply waits for the neighbour's address first.
    assert_eq!(replies.len(), 1);
    let answers = other.exchange(START, &replies[0]);
    let replies = host.exchange(START, &answers[0]);
    assert_eq!(replies.len(), count);
    assert!(replies.iter().all(|frame| frame.len() <= 1514));
    for reply in &replies {
        assert!(other.exchange(START, reply).is_empty());
    }
    if count > 1 {
        assert_eq!(host.count(Counter::DatagramsReassembled), 1);
        assert_eq!(other.count(Counter::DatagramsReassembled), 1);
        assert_eq!(host.count(Counter::FragmentsSent), count as u64);
    }
    // The reply came together with a good checksum: only its type is of no use to a shard.
    assert_eq!(other.dropped(DropReason::IcmpUnknownType), 1);
}

#[test]
fn a_ping_of_8000_bytes_comes_back_over_ipv4() {
    ping(false, 8000);
}

#[test]
fn a_ping_of_8000_bytes_comes_back_over_ipv6() {
    ping(true, 8000);
}

#[test]
fn the_largest_pings_come_back() {
    ping(false, 65_507);
    ping(true, 65_487);
    ping(false, 1472);
    ping(true, 1452);
}

#[test]
fn an_overlap_loses_the_datagram() {
    for v6 in [false, true] {
        let mut host = Host::new(config(1));
        let request = echo_request(v6, 3000);
        let mut pieces = fragments(&request, 7);
        let at = if v6 { 43 } else { 7 };
        // The second piece begins eight bytes early.
        pieces[1][at] -= if v6 { 8 } else { 1 };
        if !v6 {
            let mut header = smoltcp::wire::Ipv4Packet::new_unchecked(&mut pieces[1][..]);
            header.fill_checksum();
        }
        for piece in &pieces {
            assert!(host.exchange(START, &frame(US, piece)).is_empty());
        }
        assert_eq!(host.dropped(DropReason::FragmentOverlap), 2, "v6: {v6}");
    }
}

#[test]
fn missing_fragments_end_in_a_time_out_that_is_told() {
    for (v6, wait_us, kind) in [(false, 30_000_000, 11), (true, 60_000_000, 3)] {
        let mut pair = Pair::with(config(1), config(9));
        let pieces = fragments(&echo_request(v6, 3000), 7);
        let now = pair.now;
        assert!(pair.hosts[0].exchange(now, &frame(US, &pieces[0])).is_empty());
        let seen = std::rc::Rc::new(std::cell::Cell::new(0));
        let log = seen.clone();
        pair.lose = Box::new(move |receiver, bytes| {
            let at = if v6 { 54 } else { 34 };
            if receiver == 1 && bytes.get(at) == Some(&kind) && bytes[at + 1] == 1 {
                log.set(log.get() + 1);
            }
            false
        });
        pair.run(wait_us - 1000);
        assert_eq!(seen.get(), 0);
        pair.run(2_000_000);
        assert_eq!(seen.get(), 1, "v6: {v6}");
        assert_eq!(pair.hosts[0].count(Counter::ReassemblyTimeouts), 1);
        let reason = if v6 { DropReason::IcmpErrorUnmatched } else { DropReason::IcmpUnknownType };
        assert_eq!(pair.hosts[1].dropped(reason), 1);
    }
}

#[test]
fn an_ipv6_fragment_that_is_whole_needs_no_others() {
    let mut host = Host::new(config(1));
    let request = echo_request(true, 100);
    let mut whole = fragments(&request, 7).remove(0);
    assert_eq!(whole[6], 44);
    whole[47] = 9;
    assert_eq!(host.exchange(START, &frame(US, &whole)).len(), 1, "asks for the neighbour");
    assert_eq!(host.count(Counter::EchoRepliesSent), 1);
    assert_eq!(host.count(Counter::FragmentsReceived), 0);
}

#[test]
fn fragments_within_fragments_are_refused() {
    let mut host = Host::new(config(1));
    let inner = fragments(&echo_request(true, 3000), 7).remove(0);
    // One piece with its own fragment header is a little too large for one more header.
    for piece in fragments(&inner, 8) {
        let _ = host.exchange(START, &frame(US, &piece));
    }
    assert_eq!(host.count(Counter::DatagramsReassembled), 1);
    assert_eq!(host.dropped(DropReason::Ipv6BadExtension), 1);
}
