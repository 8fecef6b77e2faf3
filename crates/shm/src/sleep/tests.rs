//! The sleep flag between two real threads.

use super::*;

#[test]
fn two_threads_lose_no_wake_up() {
    const ROUNDS: u32 = 2000;
    let flag = AtomicU32::new(0);
    let work = AtomicU32::new(0);
    let bell = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let consumer = SleepFlag::new(&flag);
            for round in 1..=ROUNDS {
                while work.load(Ordering::Acquire) < round {
                    let heard = bell.load(Ordering::Relaxed);
                    consumer.prepare_sleep();
                    if work.load(Ordering::Acquire) < round {
                        // Without a time-out: a lost wake-up would hang the test.
                        let _: crate::sys::Waited = crate::sys::futex_wait(&bell, heard, None);
                    }
                    consumer.awake();
                }
            }
        });
        let producer = SleepFlag::new(&flag);
        for round in 1..=ROUNDS {
            work.store(round, Ordering::Release);
            if producer.must_wake() {
                let _: u32 = bell.fetch_add(1, Ordering::Relaxed);
                crate::sys::futex_wake(&bell, 1);
            }
            if round % 64 == 0 {
                std::thread::yield_now();
            }
        }
    });
}
