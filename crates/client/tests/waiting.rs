//! epoll and poll against a service without a network: level, edge and one-shot, mixes with kernel
//! descriptors, nesting, and the exact errors.

mod support;

use std::io::{IoSlice, IoSliceMut};
use std::time::{Duration, Instant};

use haypile_client::{self as client, Errno};
use haypile_shm::sys;
use libc::{EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLET, EPOLLIN, EPOLLONESHOT, EPOLLOUT};
use support::asleep::Sleeper;
use support::{control_epoll, epoll, epoll_wait};

const IN: u32 = EPOLLIN as u32;
const OUT: u32 = EPOLLOUT as u32;

fn drain(fd: i32) {
    client::receive(fd, &mut [IoSliceMut::new(&mut [0; 100])], libc::MSG_DONTWAIT).unwrap();
}

#[test]
fn level_edge_and_one_shot() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"");
    let (level, edge, once) = (epoll(), epoll(), epoll());
    control_epoll(level, EPOLL_CTL_ADD, fd, EPOLLIN, 1).unwrap();
    control_epoll(edge, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT | EPOLLET, 2).unwrap();
    control_epoll(once, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLONESHOT, 3).unwrap();
    assert_eq!(epoll_wait(level, 4, 0), []);
    assert_eq!(epoll_wait(edge, 4, 0), [(OUT, 2)]);
    assert_eq!(epoll_wait(edge, 4, 0), []);
    fake.deliver(slot, b"one");
    for _ in 0..3 {
        assert_eq!(epoll_wait(level, 4, support::PATIENCE_MS), [(IN, 1)]);
    }
    assert_eq!(epoll_wait(edge, 4, support::PATIENCE_MS), [(IN | OUT, 2)]);
    assert_eq!(epoll_wait(edge, 4, 0), []);
    assert_eq!(epoll_wait(once, 4, support::PATIENCE_MS), [(IN, 3)]);
    fake.deliver(slot, b"two");
    assert_eq!(epoll_wait(edge, 4, support::PATIENCE_MS), [(IN | OUT, 2)]);
    assert_eq!(epoll_wait(once, 4, 10), []);
    control_epoll(once, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT, 4).unwrap();
    assert_eq!(epoll_wait(once, 4, support::PATIENCE_MS), [(IN, 4)]);
    drain(fd);
    assert_eq!(epoll_wait(level, 4, 0), []);
    fake.finish(slot);
    assert_eq!(epoll_wait(level, 4, support::PATIENCE_MS), [(IN, 1)]);
    client::close(fd).unwrap();
    // Closed without EPOLL_CTL_DEL: gone from every set.
    for set in [level, edge, once] {
        assert_eq!(epoll_wait(set, 4, 0), []);
        client::close(set).unwrap();
    }
    client::close(listener.0).unwrap();
}

#[test]
fn an_edge_is_not_told_again_by_the_answer_to_its_registration() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"");
    let edge = epoll();
    control_epoll(edge, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT | EPOLLET, 2).unwrap();
    assert_eq!(epoll_wait(edge, 4, 0), [(OUT, 2)]);
    fake.answer(slot);
    assert_eq!(epoll_wait(edge, 4, 0), []);
    // Looked at on behalf of an answer, and something has happened: said, and once.
    fake.deliver(slot, b"one");
    fake.answer(slot);
    assert_eq!(epoll_wait(edge, 4, support::PATIENCE_MS), [(IN | OUT, 2)]);
    fake.answer(slot);
    assert_eq!(epoll_wait(edge, 4, 0), []);
    // A change counts as something that happens.
    control_epoll(edge, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT | EPOLLET, 3).unwrap();
    fake.answer(slot);
    assert_eq!(epoll_wait(edge, 4, 0), [(IN | OUT, 3)]);
    // The same bytes ready as at the last edge, but others.
    drain(fd);
    fake.deliver(slot, b"two");
    assert_eq!(epoll_wait(edge, 4, support::PATIENCE_MS), [(IN | OUT, 3)]);
    for fd in [edge, fd, listener.0] {
        client::close(fd).unwrap();
    }
}

#[test]
fn the_errors_of_epoll_ctl() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, _) = support::accepted(fake, listener, 0, b"");
    let set = epoll();
    let code = |operation, fd, events| control_epoll(set, operation, fd, events, 0).err();
    assert_eq!(code(EPOLL_CTL_MOD, fd, EPOLLIN), Some(Errno::ENOENT));
    assert_eq!(code(EPOLL_CTL_DEL, fd, 0), Some(Errno::ENOENT));
    assert_eq!(code(EPOLL_CTL_ADD, fd, EPOLLIN), None);
    assert_eq!(code(EPOLL_CTL_ADD, fd, EPOLLIN), Some(Errno::EEXIST));
    assert_eq!(code(99, fd, EPOLLIN), Some(Errno::EINVAL));
    assert_eq!(code(EPOLL_CTL_DEL, fd, 0), None);
    assert_eq!(code(EPOLL_CTL_DEL, fd, 0), Some(Errno::ENOENT));
    assert_eq!(code(EPOLL_CTL_ADD, 65_000, EPOLLIN), Some(Errno::EBADF));
    let exclusive = libc::EPOLLEXCLUSIVE;
    assert_eq!(code(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLONESHOT | exclusive), Some(Errno::EINVAL));
    assert_eq!(code(EPOLL_CTL_ADD, fd, EPOLLIN | exclusive), None);
    assert_eq!(code(EPOLL_CTL_MOD, fd, EPOLLIN), Some(Errno::EINVAL));
    for fd in [set, fd, listener.0] {
        client::close(fd).unwrap();
    }
}

#[test]
fn a_sleeping_wait_is_woken_and_a_limit_holds() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let set = epoll();
    control_epoll(set, EPOLL_CTL_ADD, listener.0, EPOLLIN, 1).unwrap();
    let started = Instant::now();
    assert_eq!(epoll_wait(set, 4, 30), []);
    assert!(started.elapsed() >= Duration::from_millis(30));
    for round in 0..50 {
        let thread = Sleeper::start(move || epoll_wait(set, 4, support::PATIENCE_MS));
        if round % 2 == 0 {
            thread.wait();
        }
        fake.arrive(listener.1, b"");
        assert_eq!(thread.join().unwrap(), [(IN, 1)]);
        let (fd, _) = client::accept(listener.0, 0).unwrap();
        client::close(fd).unwrap();
    }
    client::close(set).unwrap();
    client::close(listener.0).unwrap();
}

#[test]
fn both_worlds_in_one_set() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"");
    let (left, right) = sys::socketpair_stream().unwrap();
    let set = epoll();
    control_epoll(set, EPOLL_CTL_ADD, left.raw(), EPOLLIN, 7).unwrap();
    control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN, 8).unwrap();
    sys::send(right.raw(), b"x", 0).unwrap();
    assert_eq!(epoll_wait(set, 4, support::PATIENCE_MS), [(IN, 7)]);
    fake.deliver(slot, b"y");
    // The kernel's half is not forgotten while ours is busy.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        seen.extend(epoll_wait(set, 4, support::PATIENCE_MS).into_iter().map(|(_, data)| data));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [7, 8]);

    let mut fds = [
        sys::PollFd { fd: left.raw(), events: libc::POLLIN, revents: 0 },
        sys::PollFd { fd, events: libc::POLLIN | libc::POLLOUT, revents: 0 },
        sys::PollFd { fd: -1, events: libc::POLLIN, revents: 9 },
        sys::PollFd { fd: 65_000, events: libc::POLLIN, revents: 0 },
    ];
    assert!(client::any_ours(&fds));
    assert_eq!(support::poll(&mut fds, None), Ok(3));
    let answers = fds.map(|entry| entry.revents);
    assert_eq!(answers, [libc::POLLIN, libc::POLLIN | libc::POLLOUT, 0, libc::POLLNVAL]);
    for fd in [set, fd, listener.0] {
        client::close(fd).unwrap();
    }
}

#[test]
fn a_sleeping_poll_is_woken_again_and_again() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"");
    let (left, right) = sys::socketpair_stream().unwrap();
    for round in 0..30 {
        let number = left.raw();
        let thread = Sleeper::start(move || {
            let mut fds = [
                sys::PollFd { fd, events: libc::POLLIN, revents: 0 },
                sys::PollFd { fd: number, events: libc::POLLIN, revents: 0 },
            ];
            support::poll(&mut fds, Some(support::PATIENCE)).map(|_| fds[0].revents)
        });
        if round % 3 != 0 {
            thread.wait();
        }
        if round % 5 == 4 {
            sys::send(right.raw(), b"x", 0).unwrap();
            assert_eq!(thread.join().unwrap(), Ok(0));
            sys::recv(left.raw(), &mut [0; 8], 0).unwrap();
        } else {
            fake.deliver(slot, b"x");
            assert_eq!(thread.join().unwrap(), Ok(libc::POLLIN));
            drain(fd);
        }
    }
    // The same set again costs no message.
    fake.requests();
    let mut fds = [sys::PollFd { fd, events: libc::POLLIN, revents: 0 }];
    assert_eq!(support::poll(&mut fds, Some(Duration::from_millis(5))), Ok(0));
    assert_eq!(fake.requests(), []);
    client::close(fd).unwrap();
    client::close(listener.0).unwrap();
}

#[test]
fn duplicates_and_nesting_of_sets() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"");
    let inner = epoll();
    let copy = client::duplicate(inner, 0, true).unwrap();
    control_epoll(inner, EPOLL_CTL_ADD, fd, EPOLLIN, 1).unwrap();
    let outer = epoll();
    control_epoll(outer, EPOLL_CTL_ADD, inner, EPOLLIN, 2).unwrap();
    assert_eq!(epoll_wait(outer, 4, 0), []);
    fake.deliver(slot, b"x");
    assert_eq!(epoll_wait(outer, 4, support::PATIENCE_MS), [(IN, 2)]);
    assert_eq!(epoll_wait(copy, 4, support::PATIENCE_MS), [(IN, 1)]);
    // Still unread: still readable.
    assert_eq!(epoll_wait(outer, 4, support::PATIENCE_MS), [(IN, 2)]);
    drain(fd);
    assert_eq!(epoll_wait(copy, 4, 0), []);
    assert_eq!(epoll_wait(outer, 4, 20), []);
    client::close(inner).unwrap();
    fake.deliver(slot, b"y");
    assert_eq!(epoll_wait(copy, 4, support::PATIENCE_MS), [(IN, 1)]);
    for fd in [copy, outer, fd, listener.0] {
        client::close(fd).unwrap();
    }
}

#[test]
fn two_threads_on_one_set_share_the_work() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let pairs: Vec<_> = (0..2).map(|_| support::accepted(fake, listener, 0, b"")).collect();
    let set = epoll();
    for (place, (fd, _)) in pairs.iter().enumerate() {
        let events = EPOLLIN | EPOLLONESHOT;
        control_epoll(set, EPOLL_CTL_ADD, *fd, events, place as u64).unwrap();
    }
    for _ in 0..20 {
        let threads =
            [(); 2].map(|()| Sleeper::asleep(move || epoll_wait(set, 1, support::PATIENCE_MS)));
        for (_, slot) in &pairs {
            fake.deliver(*slot, b"x");
        }
        let mut seen: Vec<u64> =
            threads.into_iter().flat_map(|one| one.join().unwrap()).map(|one| one.1).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1]);
        for (place, (fd, _)) in pairs.iter().enumerate() {
            drain(*fd);
            let events = EPOLLIN | EPOLLONESHOT;
            control_epoll(set, EPOLL_CTL_MOD, *fd, events, place as u64).unwrap();
        }
    }
    for (fd, _) in pairs {
        client::close(fd).unwrap();
    }
    client::close(set).unwrap();
    client::close(listener.0).unwrap();
}

/// A program that polls and sends must find what poll says: one that is told of room and finds none
/// tries again at once, for as long as the service does not get the processor.
#[test]
fn room_is_not_reported_before_a_write_finds_it() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, _slot) = support::accepted(fake, listener, 0, b"");
    let mut wish = [sys::PollFd { fd, events: libc::POLLOUT, revents: 0 }];
    let send = || client::send(fd, &[IoSlice::new(&[1; 5000])], libc::MSG_DONTWAIT);
    for _ in 0..3 {
        let held = fake.hold();
        while send().is_ok() {}
        assert_eq!(support::poll(&mut wish, Some(Duration::ZERO)), Ok(0));
        drop(held);
        assert_eq!(support::poll(&mut wish, Some(support::PATIENCE)), Ok(1));
        assert!(send().is_ok());
    }
    client::close(fd).unwrap();
    client::close(listener.0).unwrap();
}

#[test]
fn sockets_added_before_they_are_anything() {
    let (fake, _turn) = support::start();
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
    let fd = client::socket(libc::AF_INET, kind, 0).unwrap();
    let set = epoll();
    control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLOUT, 5).unwrap();
    let hangup = libc::EPOLLHUP as u32;
    assert_eq!(epoll_wait(set, 4, 0), [(OUT | hangup, 5)]);
    assert!(client::connect(fd, "198.18.0.9:80".parse().unwrap()).is_err());
    assert_eq!(epoll_wait(set, 4, 0), []);
    fake.establish(fake.attempt());
    assert_eq!(epoll_wait(set, 4, support::PATIENCE_MS), [(OUT, 5)]);
    client::close(fd).unwrap();

    // One that turns out to be the kernel's goes on in the kernel's set.
    let fd = client::socket(libc::AF_INET, kind, 0).unwrap();
    control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLOUT | EPOLLET, 6).unwrap();
    let nobody = "127.0.0.1:1".parse().unwrap();
    assert_eq!(client::connect(fd, nobody).err(), Some(client::TO_KERNEL));
    let _ = sys::connect(fd, &nobody);
    let found = epoll_wait(set, 4, support::PATIENCE_MS);
    assert_eq!((found.len(), found[0].1), (1, 6));
    sys::close(fd).unwrap();
    client::close(set).unwrap();
}

#[test]
fn the_bell_of_another_process_rings_on() {
    /// As a parent has put it into the set: kind and number of the process.
    const FOREIGN_BELL: u64 = 0xf5a9_3c71 << 32 | 0x8000_0000 | 12_345;
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"");
    let (left, right) = sys::socketpair_stream().unwrap();
    let (bell, rope) = sys::socketpair_stream().unwrap();
    let set = epoll();
    control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN, 1).unwrap();
    control_epoll(set, EPOLL_CTL_ADD, left.raw(), EPOLLIN, 2).unwrap();
    sys::epoll_ctl(set, EPOLL_CTL_ADD, bell.raw(), IN, FOREIGN_BELL).unwrap();
    sys::send(rope.raw(), b"x", 0).unwrap();
    let started = Instant::now();
    assert_eq!(epoll_wait(set, 4, 50), []);
    assert!(started.elapsed() >= Duration::from_millis(50));
    for _ in 0..20 {
        let thread = Sleeper::asleep(move || epoll_wait(set, 4, support::PATIENCE_MS));
        fake.deliver(slot, b"x");
        assert_eq!(thread.join().unwrap(), [(IN, 1)]);
        drain(fd);
        let thread = std::thread::spawn(move || epoll_wait(set, 4, support::PATIENCE_MS));
        sys::send(right.raw(), b"x", 0).unwrap();
        assert_eq!(thread.join().unwrap(), [(IN, 2)]);
        sys::recv(left.raw(), &mut [0; 8], 0).unwrap();
    }
    for fd in [set, fd, listener.0] {
        client::close(fd).unwrap();
    }
}
