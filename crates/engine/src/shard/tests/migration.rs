//! Buckets between two servers of a service: what moves, what is refused, and what damage does. Whole services with
//! bad paths are in `sim`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::harness::*;
use crate::carry::Refusal;
use crate::migration::protocol::{Announcement, Given, MoveMessage, Mover, NotGiven, Outcome};
use crate::steering::{Rule, Steering};
use crate::*;

const LISTENER: &str = "198.18.0.2:80";
const BUCKET_KEY: u64 = 0x1234_5678_9abc_def1;

/// A server of the service that host 2 of a pair is.
fn server(number: u16, limits: Limits) -> ShardConfig {
    let steering = Arc::new(Steering::new(BUCKET_KEY, Rule::Low12, 2));
    ShardConfig { steered: Some(Steered { server: number, steering }), limits, ..config(2) }
}

/// The streams of connections between two servers, by their tickets.
type Depot = BTreeMap<u8, (Option<Vec<u8>>, Option<Vec<u8>>)>;

struct Hands<'a>(&'a mut Memory, &'a mut Depot);

impl Streams for Hands<'_> {
    fn write(&mut self, id: SocketId, position: u64, data: &[u8]) -> usize {
        self.0.write(id, position, data)
    }

    fn read(&mut self, id: SocketId, position: u64, out: &mut [u8]) {
        self.0.read(id, position, out);
    }
}

impl Freight for Hands<'_> {
    fn pack(&mut self, id: SocketId, out: &mut Vec<u8>) {
        let ticket = self.1.len() as u8;
        self.1.insert(ticket, (self.0.received.remove(&id), self.0.sent.remove(&id)));
        out.push(ticket);
    }

    fn check(&mut self, baggage: &mut dyn Iterator<Item = &[u8]>) -> bool {
        let mut baggage = baggage;
        Iterator::all(&mut baggage, |one| matches!(one, [ticket] if self.1.contains_key(ticket)))
    }

    fn unpack(&mut self, id: SocketId, baggage: &[u8]) -> Positions {
        let (received, sent) = self.1.remove(&baggage[0]).expect("it was checked");
        let written = sent.as_ref().map_or(0, Vec::len) as u64;
        self.0.received.extend(received.map(|bytes| (id, bytes)));
        self.0.sent.extend(sent.map(|bytes| (id, bytes)));
        Positions { written, read: 0 }
    }

    fn receipt(&mut self) -> Option<Vec<u8>> {
        None
    }

    fn deliver(&mut self, _from: u16, _receipt: &[u8]) {}
}

/// A client, a server on the wire with it, and another server of the same service.
struct Stage {
    pair: Pair,
    other: Host,
    depot: Depot,
    /// The client's connection, and the server's.
    client: SocketId,
    accepted: SocketId,
    bucket: u16,
}

fn stage(limits: Limits) -> Stage {
    let bucket_owner =
        |port: u16| Steering::new(BUCKET_KEY, Rule::Low12, 2).owner_of_flows(port % 4096);
    let mut pair = Pair::with(config(1), server(0, Limits::default()));
    let _ = pair.hosts[1].shard.listen(at(LISTENER), ListenOptions::default()).expect("free");
    let port = (40_000..).find(|port| bucket_owner(*port) == 0).expect("half of them");
    let local = Some(at(&format!("198.18.0.1:{port}")));
    let client = pair.hosts[0].shard.connect(START, local, at(LISTENER), SocketOptions::default());
    pair.run(10_000);
    let accepted = pair.hosts[1].accepted()[0];
    let other = Host::new(server(1, limits));
    let client = client.expect("a free port");
    Stage { pair, other, depot: Depot::new(), client, accepted, bucket: port % 4096 }
}

impl Stage {
    fn now(&self) -> Instant {
        self.pair.now
    }

    fn export(&mut self) -> Exported {
        let now = self.now();
        let Host { shard, memory, .. } = &mut self.pair.hosts[1];
        let hands = &mut Hands(memory, &mut self.depot);
        shard.export_bucket(now, self.bucket, 1, hands).expect("it is ours")
    }

    fn import(&mut self, bytes: &[u8]) -> Result<Imported, Refusal> {
        let now = self.now();
        let Host { shard, memory, .. } = &mut self.other;
        shard.import_bucket(now, self.bucket, bytes, &mut Hands(memory, &mut self.depot))
    }

    /// The other server takes the place of the first on the wire.
    fn swap(&mut self) {
        std::mem::swap(&mut self.pair.hosts[1], &mut self.other);
    }
}

#[test]
fn a_connection_goes_on_in_another_server() {
    let mut stage = stage(Limits::default());
    let bytes: Vec<u8> = (0..60_000_u32).map(|at| at as u8).collect();
    let (client, accepted) = (stage.client, stage.accepted);
    stage.pair.hosts[1].shard.claimed(accepted);
    let now = stage.now();
    stage.pair.hosts[0].send(now, client, &bytes);
    stage.pair.hosts[1].send(now, accepted, &bytes);
    stage.pair.run(100);
    let exported = stage.export();
    assert_eq!((exported.version, &exported.ids[..]), (1, &[accepted][..]));
    let old = &stage.pair.hosts[1].shard;
    assert_eq!((old.connection_count(), old.tcp_info(accepted)), (0, None));
    assert!(stage.other.shard.expect_bucket(stage.bucket, exported.version));
    let imported = stage.import(&exported.bytes).expect("it was exported");
    assert_eq!((imported.connections, imported.without_listener), (1, 0));
    stage.swap();
    stage.pair.run(3_000_000);
    let host = &stage.pair.hosts[1];
    let id = *host.progress.keys().next().expect("it was told of its connection");
    assert_eq!(host.memory.received[&id], bytes);
    assert_eq!(stage.pair.hosts[0].memory.received[&client], bytes);
    assert_eq!(host.progress(id).error, None);
    // Whoever has given a bucket away has it no more, and sends what comes after it.
    let (bucket, now) = (stage.bucket, stage.now());
    let Host { shard, memory, .. } = &mut stage.other;
    let again = shard.export_bucket(now, bucket, 1, &mut Hands(memory, &mut stage.depot));
    assert_eq!(again, Err(NotExported::NotOurs));
}

#[test]
fn who_waits_to_be_accepted_waits_at_the_new_server_or_is_reset() {
    for listens in [true, false] {
        let mut stage = stage(Limits::default());
        let listener = listens.then(|| {
            stage.other.shard.listen(at(LISTENER), ListenOptions::default()).expect("free")
        });
        let exported = stage.export();
        assert!(stage.other.shard.expect_bucket(stage.bucket, exported.version));
        let imported = stage.import(&exported.bytes).expect("it was exported");
        assert_eq!(imported.without_listener, usize::from(!listens));
        stage.swap();
        stage.pair.run(1_000_000);
        let accepted = stage.pair.hosts[1].accepted();
        assert_eq!(accepted.len(), usize::from(listens));
        let waiting = listener.map(|id| stage.pair.hosts[1].shard.unclaimed(id));
        assert_eq!(waiting.unwrap_or_default(), accepted);
        let error = stage.pair.hosts[0].progress(stage.client).error;
        assert_eq!(error, (!listens).then_some(SocketError::ConnectionReset));
    }
}

#[test]
fn what_is_damaged_is_refused_whole() {
    let mut first = stage(Limits::default());
    let (client, now) = (first.client, first.now());
    first.pair.hosts[0].send(now, client, &[7; 10_000]);
    first.pair.run(50);
    let exported = first.export();
    assert!(first.other.shard.expect_bucket(first.bucket, exported.version));
    for len in 0..exported.bytes.len() {
        assert!(first.import(&exported.bytes[..len]).is_err());
    }
    assert_eq!(first.import(&[&exported.bytes[..], &[0]].concat()), Err(Refusal::TooLong));
    let newer = [&2_u16.to_le_bytes(), &exported.bytes[2..]].concat();
    assert_eq!(first.import(&newer), Err(Refusal::Version(2)));
    assert_eq!((first.other.shard.connection_count(), first.depot.len()), (0, 1));
    let mut taken = 0;
    for at in 0..exported.bytes.len() {
        let mut stage = Stage {
            pair: Pair::with(config(1), config(2)),
            other: Host::new(server(1, Limits::default())),
            depot: Depot::from([(0, (None, Some(vec![0; 100_000])))]),
            ..first
        };
        assert!(stage.other.shard.expect_bucket(stage.bucket, 1));
        let mut bytes = exported.bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        if stage.import(&bytes).is_ok() {
            taken += 1;
            for second in 0..200 {
                let _ = stage.other.drain(START.plus_us(second * 1_000_000));
            }
        }
        first.depot = Depot::from([(0, (None, None))]);
    }
    assert!(taken > 20, "{taken}");
}

#[test]
fn packets_wait_for_their_bucket_and_follow_it() {
    let mut stage = stage(Limits { loopback_packets: 3, ..Limits::default() });
    let (client, now) = (stage.client, stage.now());
    stage.pair.hosts[1].shard.claimed(stage.accepted);
    let exported = stage.export();
    assert!(stage.other.shard.expect_bucket(stage.bucket, exported.version));
    stage.pair.hosts[0].send(now, client, &[7; 10_000]);
    let frames = stage.pair.hosts[0].drain(now);
    assert!(frames.len() > 3);
    // They come to the new server before the bucket: as many as fit wait.
    for frame in &frames {
        assert!(stage.other.exchange(now, frame).is_empty());
    }
    assert_eq!(stage.other.count(Counter::PacketsHeld), 3);
    assert_eq!(stage.other.count(Counter::HeldDropped), frames.len() as u64 - 3);
    // And to the old one, which sends them on.
    for frame in &frames {
        assert!(stage.pair.hosts[1].exchange(now, frame).is_empty());
    }
    let mut forwards: Vec<Forward> = Vec::new();
    while let Some(forward) = stage.pair.hosts[1].shard.poll_forward() {
        assert_eq!(forward.to, 1);
        forwards.push(forward);
    }
    assert_eq!(forwards.len(), frames.len());
    assert_eq!(stage.import(&exported.bytes).expect("it was exported").held, 3);
    for Forward { kind, packet, .. } in forwards {
        let Host { shard, memory, .. } = &mut stage.other;
        shard.handle_forwarded(now, kind, &packet, memory);
    }
    let id = *stage.other.memory.received.keys().next().expect("the connection");
    assert_eq!(stage.other.memory.received[&id], [7; 10_000]);
}

/// Carries all that one server has for the other; what came of it.
fn carry(
    movers: &mut [Mover; 2],
    stage: &mut Stage,
    from: u16,
) -> (Vec<Outcome>, Vec<Announcement>) {
    let (now, mut outcomes) = (stage.now(), Vec::new());
    let Stage { pair, other, depot, .. } = stage;
    let (giver, taker) = match from {
        0 => (&mut pair.hosts[1], other),
        _ => (other, &mut pair.hosts[1]),
    };
    while let Some(Forward { kind, packet, .. }) = giver.shard.poll_forward() {
        let ForwardKind::Move(message) = kind else { panic!("{kind:?}") };
        let (message, body) = (message.encode(&packet), packet);
        let (message, beside) = MoveMessage::decode(&message).expect("it was encoded");
        let Host { shard, memory, .. } = &mut *taker;
        assert_eq!(beside, body);
        let mover = &mut movers[usize::from(1 - from)];
        let outcome = mover.handle(now, from, message, beside, shard, &mut Hands(memory, depot));
        outcomes.extend(outcome.expect("it may say so"));
    }
    let announcements = std::iter::from_fn(|| movers[usize::from(from)].poll_announcement());
    (outcomes, announcements.collect())
}

fn give(movers: &mut [Mover; 2], stage: &mut Stage) -> Result<Given, NotGiven> {
    let now = stage.now();
    let Host { shard, memory, .. } = &mut stage.pair.hosts[1];
    movers[0].give(now, stage.bucket, 1, shard, &mut Hands(memory, &mut stage.depot))
}

#[test]
fn a_move_is_over_when_all_who_steer_have_switched() {
    let mut stage = stage(Limits::default());
    let mut movers = [Mover::new([0, 1, 7]), Mover::new([0, 1, 7])];
    let given = give(&mut movers, &mut stage).expect("it is ours");
    assert_eq!((given.connections, given.time_wait), (1, 0));
    assert_eq!(give(&mut movers, &mut stage), Err(NotGiven::Unsettled));
    let (outcomes, _) = carry(&mut movers, &mut stage, 0);
    assert!(matches!(outcomes[..], [Outcome::Arrived(_)]));
    let (outcomes, _) = carry(&mut movers, &mut stage, 1);
    assert_eq!(outcomes, [Outcome::Left]);
    let (_, announced) = carry(&mut movers, &mut stage, 0);
    assert_eq!(announced.iter().map(|one| one.to).collect::<Vec<_>>(), [0, 1, 7]);
    let bucket = stage.bucket;
    let shard = &mut stage.pair.hosts[1].shard;
    assert_eq!(movers[0].handle_switched(0, bucket, 1, shard), None);
    assert_eq!(movers[0].handle_switched(1, bucket, 9, shard), None, "of another move");
    assert_eq!(movers[0].handle_switched(1, bucket, 1, shard), None);
    assert!(!movers[0].is_idle());
    // The last one has died.
    movers[0].remove_steerer(7, shard);
    assert!(movers[0].is_idle() && !movers[1].is_idle());
    let (outcomes, _) = carry(&mut movers, &mut stage, 0);
    assert_eq!((outcomes, movers[1].is_idle()), (vec![Outcome::Settled], true));
    // Somebody new hears from the owner.
    movers[1].add_steerer(8, &stage.other.shard);
    let told = movers[1].poll_announcement().expect("a bucket has moved here");
    assert_eq!((told.to, told.bucket, told.version, told.server), (8, bucket, 1, 1));
}

#[test]
fn who_begins_to_steer_while_a_bucket_moves_hears_of_it_once_it_is_there() {
    let mut stage = stage(Limits::default());
    let mut movers = [Mover::new([0, 1]), Mover::new([0, 1])];
    give(&mut movers, &mut stage).expect("it is ours");
    let bucket = stage.bucket;
    // Steerer 7 knows the new server while the bucket is on its way, and the old one after it has told all.
    let arrived = {
        let now = stage.now();
        let Stage { pair, other, depot, .. } = &mut stage;
        let mut outcome = None;
        while let Some(Forward { kind, packet, .. }) = pair.hosts[1].shard.poll_forward() {
            let ForwardKind::Move(message) = kind else { panic!("{kind:?}") };
            let Host { shard, memory, .. } = &mut *other;
            let handled =
                movers[1].handle(now, 0, message, &packet, shard, &mut Hands(memory, depot));
            outcome = handled.expect("it may say so");
            movers[1].add_steerer(7, shard);
            assert!(outcome.is_some() || movers[1].poll_announcement().is_none());
        }
        outcome
    };
    assert!(matches!(arrived, Some(Outcome::Arrived(_))), "{arrived:?}");
    let told = movers[1].poll_announcement().expect("it is there");
    assert_eq!((told.to, told.bucket, told.version, told.server), (7, bucket, 1, 1));
    let (outcomes, _) = carry(&mut movers, &mut stage, 1);
    assert_eq!(outcomes, [Outcome::Left]);
    // Whoever comes to the old server while others have not switched is waited for as well.
    while movers[0].poll_announcement().is_some() {}
    let shard = &mut stage.pair.hosts[1].shard;
    movers[0].add_steerer(8, shard);
    let told = movers[0].poll_announcement().expect("it is not settled");
    assert_eq!((told.to, told.server), (8, 1));
    for (steerer, settles) in [(0, false), (1, false), (8, true)] {
        let outcome = movers[0].handle_switched(steerer, bucket, 1, shard);
        assert_eq!(outcome == Some(Outcome::Settled), settles);
    }
    // A server that was started again knows nothing of what it had.
    movers[0].add_steerer(1, shard);
    let told = movers[0].poll_announcement().expect("it has a bucket");
    assert_eq!((told.to, told.bucket, told.server), (1, bucket, 1));
}

#[test]
fn what_is_not_taken_comes_back() {
    // Refused for lack of room; lost with the other server before it was taken.
    for dies in [false, true] {
        let mut stage = stage(Limits { connections: 1, half_open: 1, ..Limits::default() });
        let _ = stage.other.shard.listen(at("198.18.0.2:81"), ListenOptions::default());
        let mut movers = [Mover::new([0, 1]), Mover::new([0, 1])];
        give(&mut movers, &mut stage).expect("it is ours");
        if dies {
            let now = stage.now();
            let Host { shard, memory, .. } = &mut stage.pair.hosts[1];
            // Who comes while it is on its way is told when it is clear where it is.
            movers[0].add_steerer(7, shard);
            assert_eq!(movers[0].poll_announcement(), None);
            movers[0].remove_steerer(1, shard);
            let mut hands = Hands(memory, &mut stage.depot);
            let outcomes = movers[0].remove_server(now, 1, shard, &mut hands);
            let back =
                matches!(outcomes[..], [(bucket, Outcome::TakenBack(_))] if bucket == stage.bucket);
            assert!(back, "{outcomes:?}");
            let told: Vec<_> = std::iter::from_fn(|| movers[0].poll_announcement()).collect();
            let told = told.iter().map(|one| (one.to, one.version, one.server));
            assert_eq!(told.collect::<Vec<_>>(), [(0, 2, 0), (7, 2, 0)]);
        } else {
            let (outcomes, _) = carry(&mut movers, &mut stage, 0);
            assert_eq!(outcomes, [Outcome::Refused(Refusal::NoRoom)]);
            let (outcomes, _) = carry(&mut movers, &mut stage, 1);
            assert!(matches!(outcomes[..], [Outcome::TakenBack(_)]), "{outcomes:?}");
            assert!(movers[1].is_idle());
        }
        assert!(movers[0].is_idle());
        let bytes = vec![3; 5_000];
        let (client, now) = (stage.client, stage.now());
        stage.pair.hosts[0].send(now, client, &bytes);
        stage.pair.run(1_000_000);
        let host = &stage.pair.hosts[1];
        let id = *host.memory.received.keys().next_back().expect("the connection");
        assert_eq!(host.memory.received[&id], bytes);
    }
}

/// Nobody takes what nobody can read: its peer is not left waiting for data that never come.
#[test]
fn who_is_lost_on_the_way_is_told() {
    let mut stage = stage(Limits::default());
    let mut movers = [Mover::new([0, 1]), Mover::new([0, 1])];
    give(&mut movers, &mut stage).expect("it is ours");
    stage.depot.clear();
    let (outcomes, _) = carry(&mut movers, &mut stage, 0);
    assert!(matches!(outcomes[..], [Outcome::Refused(_)]), "{outcomes:?}");
    let (outcomes, _) = carry(&mut movers, &mut stage, 1);
    assert!(matches!(outcomes[..], [Outcome::Lost(_)]), "{outcomes:?}");
    assert!(movers[0].is_idle() && movers[1].is_idle());
    let client = stage.client;
    stage.pair.run(100_000);
    let error = stage.pair.hosts[0].progress(client).error;
    assert_eq!(error, Some(SocketError::ConnectionReset));
}
