//! Loom models of the kick and of the waiters' word.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};

use super::{notify, prepare_wait, raise_kick, take_kick};

/// The send direction: the application publishes its tail and raises the kick; the service handles
/// every kick that came as a message. What was published is never left unseen.
#[test]
fn loom_kick_coalescing_loses_no_tail() {
    struct Words {
        tail: AtomicU32,
        kick: AtomicU32,
        messages: AtomicU32,
    }
    loom::model(|| {
        let words = Arc::new(Words {
            tail: AtomicU32::new(0),
            kick: AtomicU32::new(0),
            messages: AtomicU32::new(0),
        });
        let shared = Arc::clone(&words);
        let application = loom::thread::spawn(move || {
            for tail in 1..=2 {
                shared.tail.store(tail, Ordering::Release);
                if raise_kick(&shared.kick) {
                    let _: u32 = shared.messages.fetch_add(1, Ordering::Release);
                }
            }
        });
        let mut handled = 0;
        let mut seen = 0;
        let mut handle = |words: &Words| {
            while handled < words.messages.load(Ordering::Acquire) {
                handled += 1;
                take_kick(&words.kick);
                seen = words.tail.load(Ordering::Acquire);
            }
        };
        handle(&words);
        application.join().unwrap();
        handle(&words);
        assert_eq!(seen, 2, "bytes were published and no kick left to tell");
    });
}

/// A blocked call: it sees the change, or its futex wait does not sleep.
#[test]
fn loom_waiter_is_woken() {
    loom::model(|| {
        let words = Arc::new((AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0)));
        let shared = Arc::clone(&words);
        let service = loom::thread::spawn(move || {
            shared.2.store(1, Ordering::Relaxed);
            let _: bool = notify(&shared.0, &shared.1);
        });
        let ticket = prepare_wait(&words.0, &words.1);
        let ready = words.2.load(Ordering::Relaxed) == 1;
        service.join().unwrap();
        // The service is through: a sleeper it has not woken would sleep for ever.
        let sleeps = words.0.load(Ordering::Relaxed) == ticket.sequence;
        assert!(ready || !sleeps);
    });
}

/// Two waiters that wait for different things and one word for both: a wake-up that takes the
/// announcement of one must not leave the other asleep through the change it waits for.
#[test]
fn loom_waiters_for_different_things_are_woken() {
    struct Words {
        sequence: AtomicU32,
        waiters: AtomicU32,
        state: [AtomicU32; 2],
    }
    loom::model(|| {
        let words = Arc::new(Words {
            sequence: AtomicU32::new(0),
            waiters: AtomicU32::new(0),
            state: [AtomicU32::new(0), AtomicU32::new(0)],
        });
        let shared = Arc::clone(&words);
        let service = loom::thread::spawn(move || {
            for state in &shared.state {
                state.store(1, Ordering::Relaxed);
                let _: bool = notify(&shared.sequence, &shared.waiters);
            }
        });
        let shared = Arc::clone(&words);
        let other = loom::thread::spawn(move || {
            let _ = prepare_wait(&shared.sequence, &shared.waiters);
        });
        let ticket = prepare_wait(&words.sequence, &words.waiters);
        let ready = words.state[1].load(Ordering::Relaxed) == 1;
        service.join().unwrap();
        let sleeps = words.sequence.load(Ordering::Relaxed) == ticket.sequence;
        assert!(ready || !sleeps);
        other.join().unwrap();
    });
}

/// A blocked accept sleeps on the offer words of several servers at once (futex_waitv): tickets from
/// all of them, then a look at all their rings, then the sleep, which a moved word prevents.
#[test]
fn loom_a_waiter_on_several_servers_is_woken() {
    struct Server {
        sequence: AtomicU32,
        waiters: AtomicU32,
        offers: AtomicU32,
    }
    loom::model(|| {
        let servers: [_; 2] = std::array::from_fn(|_| {
            Arc::new(Server {
                sequence: AtomicU32::new(0),
                waiters: AtomicU32::new(0),
                offers: AtomicU32::new(0),
            })
        });
        let threads = servers.clone().map(|server| {
            loom::thread::spawn(move || {
                server.offers.store(1, Ordering::Relaxed);
                let _: bool = notify(&server.sequence, &server.waiters);
            })
        });
        let tickets: [_; 2] =
            std::array::from_fn(|at| prepare_wait(&servers[at].sequence, &servers[at].waiters));
        let ready = servers.iter().any(|server| server.offers.load(Ordering::Relaxed) == 1);
        for thread in threads {
            thread.join().unwrap();
        }
        // Both servers are through: a sleeper they have not woken would sleep for ever.
        let unmoved = |(server, ticket): (&Arc<Server>, &super::WaitTicket)| {
            server.sequence.load(Ordering::Relaxed) == ticket.sequence
        };
        let sleeps = servers.iter().zip(&tickets).all(unmoved);
        assert!(ready || !sleeps);
    });
}
