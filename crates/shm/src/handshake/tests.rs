//! The process-local lock: exclusion, re-entry, limits.

use super::*;

#[test]
fn the_lock_excludes() {
    let lock = LocalLock::new();
    let value = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5000 {
                    let _held = lock.lock(Duration::from_secs(60)).unwrap();
                    // Not one atomic step, so that two holders would lose one.
                    value.store(value.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(value.load(Ordering::Relaxed), 20_000);
}

#[test]
fn re_entry_and_long_waits_are_refused() {
    let lock = LocalLock::new();
    let held = lock.lock(Duration::ZERO).unwrap();
    assert_eq!(lock.lock(Duration::from_secs(1)).unwrap_err(), LockFailure::Reentered);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| lock.lock(Duration::from_millis(3)).map(drop));
        assert_eq!(other.join().unwrap(), Err(LockFailure::TimedOut));
    });
    drop(held);
    assert!(lock.lock(Duration::ZERO).is_ok());
}

#[test]
fn kicks_coalesce() {
    let word = AtomicU32::new(0);
    assert!(raise_kick(&word));
    assert!(!raise_kick(&word));
    take_kick(&word);
    assert!(raise_kick(&word));
}

#[test]
fn only_waiters_are_notified() {
    let (sequence, waiters) = (AtomicU32::new(0), AtomicU32::new(0));
    assert!(!notify(&sequence, &waiters));
    let ticket = prepare_wait(&sequence, &waiters);
    assert!(notify(&sequence, &waiters));
    assert!(!notify(&sequence, &waiters));
    assert_eq!(futex::wait(&sequence, ticket.sequence, None), Waited::Changed);
}

#[test]
fn threads_have_different_tokens() {
    let here = thread_token();
    assert_eq!(here, thread_token());
    std::thread::scope(|scope| {
        assert_ne!(scope.spawn(thread_token).join().unwrap(), here);
    });
}
