//! The event trace of two shards: what is in it agrees with what was counted, from the SYN to the
//! end, and nothing is in it while it is off.

use super::harness::*;
use crate::*;

fn events(host: &Host) -> Vec<TraceRecord> {
    host.shard.trace_since(0).map(|(_, record)| *record).collect()
}

#[test]
fn a_connection_is_traced_from_its_syn_to_its_end() {
    let mut pair = Pair::new();
    pair.hosts.iter_mut().for_each(|host| host.shard.set_trace(1000));
    let (client, server, _) = pair.connect("198.18.0.2:80");
    let now = pair.now;
    pair.hosts[0].send(now, client, &[7; 5000]);
    pair.run(50_000);
    for (host, id) in [(0, client), (1, server)] {
        let now = pair.now;
        pair.hosts[host].shard.close(now, id, Close::Graceful);
        pair.run(50_000);
    }
    for (host, id, other) in [(0, client, 1), (1, server, 0)] {
        let events = events(&pair.hosts[host]);
        let of = |kind: TraceKind| -> Vec<&TraceRecord> {
            events.iter().filter(|event| event.kind == kind && event.id == Some(id)).collect()
        };
        let (sent, received) = (of(TraceKind::Sent), of(TraceKind::Received));
        let counted = pair.hosts[host].count(Counter::TcpSegmentsSent);
        assert_eq!(
            sent.len() as u64 + of(TraceKind::SentAgain(Reason::Probe)).len() as u64,
            counted
        );
        let arrived = pair.hosts[host].count(Counter::TcpSegmentsReceived);
        assert!(received.len() as u64 >= arrived - 1, "the last may belong to TIME-WAIT");
        assert!(sent[0].segment.flags.bits() & 0x02 != 0, "the first is a SYN");
        let bytes = |list: &[&TraceRecord]| list.iter().map(|e| e.segment.len).sum::<u32>();
        let expected = if host == 0 { (5000, 0) } else { (0, 5000) };
        assert_eq!((bytes(&sent), bytes(&received)), expected);
        assert!(sent.iter().any(|event| event.vitals.state == State::Established));
        assert!(sent.last().is_some_and(|event| event.vitals.cwnd > 0));
        assert_eq!(of(TraceKind::Ended).len(), 1);
        assert_eq!(
            events[0].remote(),
            pair.hosts[other].shard.trace_since(0).next().unwrap().1.local()
        );
        assert!(events.windows(2).all(|two| two[0].at <= two[1].at));
    }
}

#[test]
fn strays_are_traced_with_their_reason_and_nothing_is_while_off() {
    let mut pair = Pair::new();
    assert_eq!(pair.hosts[1].shard.trace_next(), None);
    pair.hosts[1].shard.set_trace(8);
    let now = pair.now;
    let nobody = at("198.18.0.2:81");
    pair.hosts[0].shard.connect(now, None, nobody, SocketOptions::default()).unwrap();
    pair.run(50_000);
    let events = events(&pair.hosts[1]);
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].kind, events[0].id), (TraceKind::Dropped(DropReason::TcpNoFlow), None));
    assert_eq!(events[0].local(), nobody);
    pair.hosts[1].shard.set_trace(0);
    assert_eq!(pair.hosts[1].shard.trace_since(0).count(), 0);
    assert_eq!(pair.hosts[0].shard.trace_since(0).count(), 0);
}
