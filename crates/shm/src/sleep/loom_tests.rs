//! Loom model of the sleep flag.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};

use super::{SleepCount, SleepFlag};

#[test]
fn loom_sleeper_with_work_is_woken() {
    loom::model(|| {
        let words = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
        let shared = Arc::clone(&words);
        let producer = loom::thread::spawn(move || {
            shared.1.store(1, Ordering::Relaxed);
            SleepFlag::new(&shared.0).must_wake()
        });
        let flag = SleepFlag::new(&words.0);
        flag.prepare_sleep();
        let sleeps = words.1.load(Ordering::Relaxed) == 0;
        if !sleeps {
            flag.awake();
        }
        let rung = producer.join().unwrap();
        assert!(!sleeps || rung, "asleep with work and nobody rang");
    });
}

#[test]
fn loom_one_of_two_producers_wakes() {
    loom::model(|| {
        let words = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
        let producers: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&words);
                loom::thread::spawn(move || {
                    let _: u32 = shared.1.fetch_add(1, Ordering::Relaxed);
                    SleepFlag::new(&shared.0).must_wake()
                })
            })
            .collect();
        let flag = SleepFlag::new(&words.0);
        flag.prepare_sleep();
        let sleeps = words.1.load(Ordering::Relaxed) < 2;
        let rings = producers.into_iter().filter(|_| true).map(|p| p.join().unwrap());
        let rung = rings.filter(|rung| *rung).count();
        assert!(!sleeps || rung == 1, "asleep without all the work: exactly one rings");
    });
}

/// The consumer sleeps twice, the producer publishes twice and rings each sleep once.
#[test]
fn loom_count_rings_every_sleep_with_work() {
    const WORK: u32 = 2;
    loom::model(|| {
        // The count, the work published, the rings.
        let words = Arc::new((AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0)));
        let shared = Arc::clone(&words);
        let producer = loom::thread::spawn(move || {
            let rung = AtomicU32::new(0);
            for _ in 0..WORK {
                let _: u32 = shared.1.fetch_add(1, Ordering::Relaxed);
                if SleepCount::new(&shared.0).must_wake(&rung) {
                    let _: u32 = shared.2.fetch_add(1, Ordering::Release);
                }
            }
        });
        let count = SleepCount::new(&words.0);
        let mut heard = 0;
        let mut asleep = false;
        for _ in 0..=WORK {
            count.prepare_sleep();
            if words.1.load(Ordering::Relaxed) == WORK {
                count.awake();
                break;
            }
            // Asleep: only a ring ends this.
            if words.2.load(Ordering::Acquire) == heard {
                asleep = true;
                break;
            }
            heard += 1;
            count.awake();
        }
        producer.join().unwrap();
        let rings = words.2.load(Ordering::Acquire);
        assert!(!asleep || rings > heard, "asleep with work and nobody rang");
    });
}

/// One sleeper, several servers: each has a ring with a flag of its own, the doorbell is one. The
/// sleeper announces itself on all rings and then looks at all of them.
fn several_rings(announce_first: bool) {
    const RINGS: usize = 2;
    loom::model(move || {
        let words: [_; RINGS] =
            std::array::from_fn(|_| Arc::new((AtomicU32::new(0), AtomicU32::new(0))));
        let servers = words.clone().map(|shared| {
            loom::thread::spawn(move || {
                shared.1.store(1, Ordering::Relaxed);
                SleepFlag::new(&shared.0).must_wake()
            })
        });
        let announce = || words.iter().for_each(|ring| SleepFlag::new(&ring.0).prepare_sleep());
        let found = || words.iter().any(|ring| ring.1.load(Ordering::Relaxed) == 1);
        let sleeps = if announce_first {
            announce();
            !found()
        } else {
            let sleeps = !found();
            announce();
            sleeps
        };
        if !sleeps {
            words.iter().for_each(|ring| SleepFlag::new(&ring.0).awake());
        }
        let rung = servers.map(|server| server.join().unwrap()).contains(&true);
        assert!(!sleeps || rung, "asleep with work in a ring and nobody rang");
    });
}

#[test]
fn loom_a_sleeper_on_several_rings_is_woken() {
    several_rings(true);
}

/// The model can fail: a look before the announcement misses what comes between the two.
#[test]
#[should_panic(expected = "nobody rang")]
fn loom_a_look_before_the_announcement_is_not_enough() {
    several_rings(false);
}

/// A server and several that send it messages: they read one count, which they may not write, and
/// each remembers for itself which sleep it has rung for. The server looks at all rings.
#[test]
fn loom_one_count_serves_several_rings() {
    loom::model(|| {
        // The count, the rings, how often the doorbell rang.
        let words = Arc::new((
            AtomicU32::new(0),
            [AtomicU32::new(0), AtomicU32::new(0)],
            AtomicU32::new(0),
        ));
        let servers = [0, 1].map(|ring| {
            let shared = Arc::clone(&words);
            loom::thread::spawn(move || {
                let rung = AtomicU32::new(0);
                shared.1[ring].store(1, Ordering::Relaxed);
                if SleepCount::new(&shared.0).must_wake(&rung) {
                    let _: u32 = shared.2.fetch_add(1, Ordering::Release);
                }
            })
        });
        let count = SleepCount::new(&words.0);
        let (mut heard, mut asleep) = (0, false);
        for _ in 0..3 {
            count.prepare_sleep();
            if words.1.iter().all(|ring| ring.load(Ordering::Relaxed) == 1) {
                break;
            }
            let rings = words.2.load(Ordering::Acquire);
            if rings == heard {
                asleep = true;
                break;
            }
            heard = rings;
            count.awake();
        }
        for server in servers {
            server.join().unwrap();
        }
        let rings = words.2.load(Ordering::Acquire);
        assert!(!asleep || rings > heard, "asleep with work and nobody rang");
    });
}
