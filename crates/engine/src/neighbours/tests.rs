//! The states of RFC 4861 section 7.3.2, and who may change what.

use super::*;

const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
const SECOND_US: u64 = 1_000_000;

struct Cache {
    neighbours: Neighbours,
    counters: Counters,
    now: Instant,
}

impl Cache {
    fn new(limit: u32) -> Cache {
        let now = Instant::from_us(60 * SECOND_US);
        Cache {
            neighbours: Neighbours::new(now, 1, &limits(limit, 1000)),
            counters: Counters::new(),
            now,
        }
    }

    fn resolve(&mut self, host: u8) -> Resolution {
        self.neighbours.resolve(self.now, ip(host), &mut self.counters)
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.now = self.now.plus_us(SECOND_US / 4);
            self.neighbours.handle_timers(self.now, 100, &mut self.counters);
        }
    }

    fn answer(&mut self, host: u8, mac: [u8; 6], solicited: bool, replace: bool) -> bool {
        let answer = Answer { mac: Some(mac), solicited, replace };
        self.neighbours.hear_answer(self.now, ip(host), answer, &mut self.counters)
    }

    fn requests(&mut self) -> usize {
        std::iter::from_fn(|| self.neighbours.poll_request()).count()
    }
}

fn limits(neighbours: u32, requests: u32) -> Limits {
    Limits {
        neighbours,
        packets_per_neighbour: 2,
        neighbour_requests_per_second: requests,
        ..Limits::default()
    }
}

fn ip(host: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, host])
}

fn asked(resolution: Resolution) -> SocketId {
    match resolution {
        Resolution::Asked(name) => name,
        other => panic!("expected to be asked for, got {other:?}"),
    }
}

#[test]
fn packets_wait_for_the_answer_and_no_more_than_fit() {
    let mut cache = Cache::new(10);
    let name = asked(cache.resolve(1));
    assert_eq!(asked(cache.resolve(1)), name);
    assert_eq!(cache.neighbours.poll_request(), Some(Request { addr: ip(1), probe: None }));
    assert_eq!(cache.requests(), 0);
    assert_eq!(cache.neighbours.enqueue(name, vec![1]), Ok(()));
    assert_eq!(cache.neighbours.enqueue(name, vec![2]), Ok(()));
    assert!(!cache.neighbours.has_room(name));
    assert_eq!(cache.neighbours.enqueue(name, vec![3]), Err(vec![3]));
    assert!(cache.answer(1, A, true, true));
    let released = cache.neighbours.poll_released().expect("released");
    assert_eq!(released.mac, Some(A));
    assert_eq!(released.pending, [vec![1], vec![2]]);
    assert_eq!(cache.resolve(1), Resolution::Known(A));
}

#[test]
fn silence_ends_after_three_requests() {
    let mut cache = Cache::new(10);
    let name = asked(cache.resolve(1));
    assert_eq!(cache.neighbours.enqueue(name, vec![1]), Ok(()));
    let mut requests = 0;
    for _ in 0..10 {
        requests += cache.requests();
        cache.wait(1);
    }
    assert_eq!(requests, 3);
    let released = cache.neighbours.poll_released().expect("released");
    assert_eq!((released.mac, released.pending.len()), (None, 1));
    assert_eq!(cache.counters.get(Counter::NeighboursFailed), 1);
    assert_eq!(cache.neighbours.next_timeout(), None);
}

#[test]
fn a_used_neighbour_is_probed_after_it_went_stale() {
    let mut cache = Cache::new(10);
    let _ = cache.resolve(1);
    assert!(cache.answer(1, A, true, true));
    cache.wait(31);
    assert_eq!(cache.requests(), 0, "an unused neighbour is left alone");
    assert_eq!(cache.resolve(1), Resolution::Known(A));
    cache.wait(5);
    let probe = cache.neighbours.poll_request().expect("a probe");
    assert_eq!(probe, Request { addr: ip(1), probe: Some(A) });
    assert!(cache.answer(1, A, true, true));
    cache.wait(10);
    assert_eq!(cache.requests(), 0);
    cache.wait(30);
    let _ = cache.resolve(1);
    cache.wait(12);
    assert!(matches!(cache.resolve(1), Resolution::Asked(_)), "no answer: forgotten");
}

#[test]
fn a_hint_from_above_saves_the_probe() {
    let mut cache = Cache::new(10);
    let _ = cache.resolve(1);
    assert!(cache.answer(1, A, true, true));
    let requests = cache.requests();
    cache.wait(31);
    let _ = cache.resolve(1);
    cache.neighbours.confirm(cache.now, ip(1));
    cache.wait(10);
    assert_eq!(cache.requests(), 0, "{requests} before");
}

#[test]
fn nobody_teaches_us_what_we_do_not_need() {
    let mut cache = Cache::new(10);
    assert!(!cache.answer(1, A, true, true));
    assert!(!cache.neighbours.hear_announcement(cache.now, ip(1), A, &mut cache.counters));
    assert!(matches!(cache.resolve(1), Resolution::Asked(_)));
}

#[test]
fn a_fresh_address_resists_and_an_old_one_can_move() {
    let mut cache = Cache::new(10);
    let _ = cache.resolve(1);
    assert!(cache.answer(1, A, true, true));
    assert!(cache.neighbours.hear_announcement(cache.now, ip(1), B, &mut cache.counters));
    assert_eq!(cache.resolve(1), Resolution::Known(A));
    assert!(cache.answer(1, B, false, true));
    assert_eq!(cache.resolve(1), Resolution::Known(A));
    cache.wait(2);
    assert!(cache.answer(1, B, false, false));
    assert_eq!(cache.resolve(1), Resolution::Known(A), "not without the override flag");
    assert!(cache.answer(1, B, false, true));
    assert_eq!(cache.resolve(1), Resolution::Known(B));
}

#[test]
fn who_asks_for_us_is_remembered() {
    let mut cache = Cache::new(10);
    cache.neighbours.hear_request(cache.now, ip(1), A, &mut cache.counters);
    assert_eq!(cache.resolve(1), Resolution::Known(A));
    assert_eq!(cache.counters.get(Counter::NeighboursLearned), 1);
}

#[test]
fn a_full_cache_gives_up_those_without_an_address_first() {
    let mut cache = Cache::new(3);
    cache.neighbours.hear_request(cache.now, ip(1), A, &mut cache.counters);
    let name = asked(cache.resolve(2));
    assert_eq!(cache.neighbours.enqueue(name, vec![2]), Ok(()));
    let _ = asked(cache.resolve(3));
    let _ = asked(cache.resolve(4));
    assert_eq!(cache.counters.get(Counter::NeighboursEvicted), 1);
    assert_eq!(cache.neighbours.poll_released().map(|released| released.mac), Some(None));
    assert_eq!(cache.resolve(1), Resolution::Known(A));
    for host in 5..100 {
        let _ = cache.resolve(host);
        cache.neighbours.hear_request(cache.now, ip(host), B, &mut cache.counters);
    }
    assert_eq!(cache.neighbours.entries.len(), 3);
    assert_eq!(cache.neighbours.table.len(), 3);
}

#[test]
fn asking_is_limited() {
    let now = Instant::from_us(0);
    let mut neighbours = Neighbours::new(now, 1, &limits(1000, 10));
    let mut counters = Counters::new();
    let refused = (0..50)
        .filter(|&host| neighbours.resolve(now, ip(host), &mut counters) == Resolution::Refused)
        .count();
    assert_eq!(refused, 40);
}

#[test]
fn a_neighbour_exchanged_within_the_lock_is_found_soon() {
    let mut cache = Cache::new(10);
    let _ = asked(cache.resolve(1));
    assert_eq!(cache.requests(), 1);
    assert!(cache.answer(1, A, true, true));
    // Another asks for us with the same address, once, and waits for what we send.
    cache.neighbours.hear_request(cache.now, ip(1), B, &mut cache.counters);
    assert_eq!(cache.resolve(1), Resolution::Known(A), "not believed so soon");
    // What it acknowledges came by the old address.
    cache.neighbours.confirm(cache.now, ip(1));
    cache.wait(2);
    let probe = cache.neighbours.poll_request();
    assert_eq!(probe, Some(Request { addr: ip(1), probe: Some(A) }), "who we knew is asked");
    cache.wait(6);
    // He does not answer: whoever has the address may.
    let _ = asked(cache.resolve(1));
    assert!(cache.answer(1, B, true, true));
    assert_eq!(cache.resolve(1), Resolution::Known(B));
}

#[test]
fn a_claim_that_the_neighbour_answers_changes_nothing() {
    let mut cache = Cache::new(10);
    let _ = asked(cache.resolve(1));
    assert!(cache.answer(1, A, true, true));
    cache.neighbours.hear_request(cache.now, ip(1), B, &mut cache.counters);
    cache.wait(1);
    assert!(cache.answer(1, A, true, true));
    cache.wait(6);
    assert_eq!(cache.resolve(1), Resolution::Known(A));
}
