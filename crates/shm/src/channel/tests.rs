//! Channels: requests from threads and signal handlers, replies, offers, watchers.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::doorbell::Doorbell;
use crate::limits::{NO_REPLY, REPLY_CELLS, REQUEST_RING, WATCHER_RING};
use crate::messages::{Offer, Ready, Request, RequestBody, SocketReply};
use crate::status::{AppStatus, ServiceStatus};
use crate::sys::{self, Errno, Waited};

struct Pair {
    service: ServiceChannel,
    status: ServiceStatus,
    wake: Doorbell,
    application: Arc<AppChannel>,
}

fn copy_of(fd: RawFd) -> crate::sys::Fd {
    sys::dup_at_least(fd, 3).unwrap()
}

fn pair() -> Pair {
    let service = ServiceChannel::create().unwrap();
    let status = ServiceStatus::create().unwrap();
    let (wake, theirs) = Doorbell::pair().unwrap();
    let app_status = AppStatus::open(copy_of(status.fd())).unwrap();
    let application = AppChannel::open(copy_of(service.fd()), app_status, theirs).unwrap();
    Pair { service, status, wake, application: Arc::new(application) }
}

fn request(slot: u32) -> Request {
    Request::about(slot, 1, RequestBody::KickTx)
}

fn is_rung(bell: &Doorbell) -> bool {
    let mut fds = [sys::PollFd { fd: bell.raw(), events: libc::POLLIN, revents: 0 }];
    sys::ppoll(&mut fds, Some(Duration::ZERO)) == Ok(1)
}

#[test]
fn a_sleeping_service_is_rung() {
    let mut pair = pair();
    pair.application.sender().send(&request(1).encode()).unwrap();
    assert!(!is_rung(&pair.wake));
    pair.status.prepare_sleep();
    assert!(pair.service.has_requests(), "the last look");
    pair.application.sender().send(&request(2).encode()).unwrap();
    assert!(is_rung(&pair.wake));
    pair.status.awake();
    pair.wake.drain().unwrap();
    pair.application.sender().send(&request(3).encode()).unwrap();
    assert!(!is_rung(&pair.wake));
    for slot in 1..=3 {
        let message = pair.service.next_request().unwrap();
        assert_eq!(Request::decode(&message), Ok(request(slot)));
    }
    assert!(!pair.service.has_requests());
}

#[test]
fn threads_share_the_ring() {
    const EACH: u32 = 20_000;
    let mut pair = pair();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let application = &pair.application;
            scope.spawn(move || {
                for number in 0..EACH {
                    let message = Request::about(thread, number, RequestBody::KickRx).encode();
                    let sent = application.sender().send_patiently(&message, || true);
                    assert_eq!(sent, Ok(Sent::Now));
                }
            });
        }
        let mut next = [0; 3];
        while next != [EACH; 3] {
            let Some(message) = pair.service.next_request() else {
                std::thread::yield_now();
                continue;
            };
            let header = Request::decode(&message).unwrap().header;
            assert_eq!(header.generation, next[header.slot as usize]);
            next[header.slot as usize] += 1;
        }
    });
    assert!(!pair.service.is_corrupt());
}

#[test]
fn a_full_ring_is_said_and_waited_for() {
    let mut pair = pair();
    let sender = pair.application.sender();
    for slot in 0..REQUEST_RING {
        sender.send(&request(slot).encode()).unwrap();
    }
    assert_eq!(sender.send(&request(0).encode()), Err(SendError::Full));
    let mut asked = 0;
    let dead = sender.send_patiently(&request(0).encode(), || {
        asked += 1;
        asked < 3
    });
    assert_eq!((dead, asked), (Err(SendError::Gone), 3));
    assert!(pair.service.next_request().is_some());
    assert_eq!(sender.send(&request(0).encode()), Ok(Sent::Now));
    sender.abandon();
    assert_eq!(sender.send(&request(0).encode()), Err(SendError::Gone));
}

/// A real signal handler that sends while the threads it interrupts send, too. Nothing is lost,
/// nothing hangs.
#[test]
fn signal_handlers_may_send() {
    static CHANNEL: std::sync::OnceLock<Arc<AppChannel>> = std::sync::OnceLock::new();
    static SENT: AtomicUsize = AtomicUsize::new(0);
    static DEFERRED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn handler(_: i32) {
        let Some(channel) = CHANNEL.get() else { return };
        match channel.sender().send(&Request::about(9, 9, RequestBody::WantTx).encode()) {
            Ok(sent) => {
                SENT.fetch_add(1, Ordering::Relaxed);
                DEFERRED.fetch_add(usize::from(sent == Sent::Deferred), Ordering::Relaxed);
            }
            Err(SendError::Full | SendError::WouldDeadlock) => {}
            Err(error) => panic!("{error}"),
        }
    }

    let mut pair = pair();
    let _ = CHANNEL.set(Arc::clone(&pair.application));
    // SAFETY: the handler does only what is under test, which is made for handlers.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR1, &action, core::ptr::null_mut());
    }
    let stop = AtomicBool::new(false);
    let thread_id = AtomicU32::new(0);
    let own = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let application = &pair.application;
        let (stop, thread_id, own) = (&stop, &thread_id, &own);
        scope.spawn(move || {
            thread_id.store(sys::gettid() as u32, Ordering::SeqCst);
            while !stop.load(Ordering::SeqCst) {
                if application.sender().send(&request(1).encode()) == Ok(Sent::Now) {
                    own.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Whatever is still deferred goes out with the next message.
            while application.sender().send(&request(1).encode()) != Ok(Sent::Now) {
                sys::sched_yield();
            }
            own.fetch_add(1, Ordering::Relaxed);
            thread_id.store(u32::MAX, Ordering::SeqCst);
        });
        let (mut from_handler, mut from_thread, mut signals) = (0, 0, 0u32);
        loop {
            let target = thread_id.load(Ordering::SeqCst);
            if target != 0 && target != u32::MAX && signals < 20_000 {
                // SAFETY: sends a signal to a thread of this process.
                let _ = unsafe {
                    sys::syscall4(
                        libc::SYS_tgkill,
                        sys::getpid() as usize,
                        target as usize,
                        libc::SIGUSR1 as usize,
                        0,
                    )
                };
                signals += 1;
            }
            stop.store(signals >= 20_000, Ordering::SeqCst);
            while let Some(message) = pair.service.next_request() {
                match Request::decode(&message).unwrap().header.slot {
                    9 => from_handler += 1,
                    _ => from_thread += 1,
                }
            }
            if target == u32::MAX && !pair.service.has_requests() {
                break;
            }
        }
        assert_eq!(from_handler, SENT.load(Ordering::Relaxed));
        assert_eq!(from_thread, own.load(Ordering::Relaxed));
    });
    println!("{} of {} deferred", DEFERRED.load(Ordering::Relaxed), SENT.load(Ordering::Relaxed));
}

#[test]
fn calls_are_answered() {
    let mut pair = pair();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let application = &pair.application;
        let stop = &stop;
        let caller = scope.spawn(move || {
            for number in 0..2000 {
                // Spinning and sleeping by turns.
                let spin_us = if number % 2 == 0 { 0 } else { 200 };
                let payload = application.call(request(number), spin_us, || true).unwrap();
                let reply = SocketReply::decode(&payload).unwrap();
                assert_eq!(reply.slot, number);
            }
            stop.store(true, Ordering::SeqCst);
        });
        while !stop.load(Ordering::SeqCst) {
            while let Some(message) = pair.service.next_request() {
                let Request { header, .. } = Request::decode(&message).unwrap();
                let reply = SocketReply { errno: 0, slot: header.slot, generation: 0, local: None };
                assert!(pair.service.complete(header.reply, &reply.encode()));
            }
        }
        caller.join().unwrap();
    });
}

#[test]
fn cells_run_out_and_come_back() {
    let pair = pair();
    let cells: Vec<ReplyCell> = std::iter::from_fn(|| pair.application.allocate_reply()).collect();
    assert_eq!(cells.len(), REPLY_CELLS);
    assert_eq!(pair.application.call(request(1), 0, || true), Err(CallError::NoCell));
    for cell in cells {
        cell.cancel();
    }
    assert!(!pair.service.complete(3, &[0; 7]), "nobody waits");
    assert!(!pair.service.complete(REPLY_CELLS as u32, &[0; 7]));
    assert!(!pair.service.complete(NO_REPLY, &[0; 7]));
    let cell = pair.application.allocate_reply().unwrap();
    assert_eq!(cell.wait(10, || false), None);
    assert_eq!(pair.application.call(request(1), 0, || false), Err(CallError::Gone));
}

#[test]
fn offers_wake_blocked_accepts() {
    let mut pair = pair();
    let mut offers = pair.application.offers();
    let offer = Offer { listener: 1, listener_generation: 2, slot: 3, generation: 4 };
    std::thread::scope(|scope| {
        let application = &pair.application;
        let acceptor = scope.spawn(move || {
            loop {
                let ticket = application.prepare_offer_wait();
                if let Some(message) = offers.pop() {
                    return Offer::decode(&message);
                }
                let far_ns = sys::clock_monotonic_ns() + 60_000_000_000;
                assert_ne!(application.wait_offers(ticket, far_ns), Waited::TimedOut);
            }
        });
        assert!(pair.service.push_offer(&offer));
        pair.service.wake_acceptors();
        assert_eq!(acceptor.join().unwrap(), Ok(offer));
    });
}

#[test]
fn watchers_coalesce_and_report_backlog() {
    let mut pair = pair();
    let (ours, bell) = Doorbell::pair().unwrap();
    pair.service.open_watcher(127, ours).unwrap();
    assert_eq!(pair.service.open_watcher(128, Doorbell::pair().unwrap().0), Err(Errno::EINVAL));
    assert_eq!(pair.service.open_watcher(127, Doorbell::pair().unwrap().0), Err(Errno::EEXIST));
    assert!(pair.application.watcher(128).is_none());
    let mut events = pair.application.watcher(127).unwrap();
    let watcher = pair.service.watcher(127).unwrap();
    let ready = |slot| Ready { slot, generation: 1, bits: 1 };

    let position = watcher.push(&ready(1)).unwrap();
    watcher.wake().unwrap();
    assert!(watcher.is_pending(position) && !is_rung(&bell));
    events.prepare_sleep();
    assert!(!events.is_empty(), "the last look");
    events.awake();
    let mut out = [[0; 8]; 8];
    assert_eq!(events.pop_burst(&mut out), 1);
    assert_eq!(Ready::decode(&out[0]), Ok(ready(1)));
    assert!(!watcher.is_pending(position));

    events.prepare_sleep();
    for slot in 0..WATCHER_RING {
        assert!(watcher.push(&ready(slot)).is_some());
    }
    watcher.wake().unwrap();
    watcher.wake().unwrap();
    assert!(is_rung(&bell));
    assert_eq!(watcher.push(&ready(0)), None);
    assert!(watcher.mark_backlog());
    while events.pop().is_some() {}
    assert!(events.take_backlog());

    // Closed and opened again, the ring starts empty.
    assert!(watcher.push(&ready(5)).is_some());
    assert!(pair.service.close_watcher(127) && !pair.service.close_watcher(127));
    assert!(!pair.service.close_watcher(5000));
    let (ours, _bell) = Doorbell::pair().unwrap();
    pair.service.open_watcher(127, ours).unwrap();
    assert!(pair.application.watcher(127).unwrap().pop().is_none());
    assert!(!pair.service.is_corrupt());
}
