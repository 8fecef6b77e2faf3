//! Sockets against a service without a network: accepting, reading and writing, connecting, life
//! and death of descriptors.

mod support;

use std::io::{IoSlice, IoSliceMut};
use std::time::{Duration, Instant};

use haypile_client::{self as client, Errno, TO_KERNEL};
use haypile_shm::messages::{OPTION_MORE, RequestBody};
use haypile_shm::sys;
use support::asleep::Sleeper;

fn receive(fd: i32, len: usize, flags: i32) -> Result<Vec<u8>, Errno> {
    let mut out = vec![0; len];
    let got = client::receive(fd, &mut [IoSliceMut::new(&mut out)], flags)?;
    out.truncate(got);
    Ok(out)
}

fn send(fd: i32, data: &[u8]) -> Result<usize, Errno> {
    client::send(fd, &[IoSlice::new(data)], 0)
}

#[test]
fn accept_hits_and_misses_without_a_round_trip() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    assert_eq!(client::accept(listener.0, 0).err(), Some(Errno::EAGAIN));
    assert!(fake.requests().iter().any(|(_, body)| *body == RequestBody::Acceptor));
    for _ in 0..5 {
        assert_eq!(client::accept(listener.0, 0).err(), Some(Errno::EAGAIN));
    }
    assert_eq!(fake.requests(), []);
    let slot = fake.arrive(listener.1, b"hello");
    let (fd, peer) = client::accept(listener.0, libc::SOCK_CLOEXEC).unwrap();
    assert_eq!(peer, "198.18.0.9:1234".parse().unwrap());
    assert_eq!(fake.requests(), [(slot, RequestBody::Claim)]);
    assert_eq!(sys::fcntl_getfd(fd), Ok(libc::FD_CLOEXEC));
    assert_eq!(receive(fd, 100, 0).unwrap(), b"hello");
    assert_eq!(send(fd, b"answer"), Ok(6));
    assert_eq!(fake.sent(slot), b"answer");
    client::close(fd).unwrap();
    assert!(!fake.knows(slot));
    assert_eq!(sys::fcntl_getfd(fd), Err(Errno::EBADF));
    client::close(listener.0).unwrap();
}

#[test]
fn a_late_claim_loses_and_registers_again() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    assert!(client::accept(listener.0, 0).is_err());
    let slot = fake.arrive(listener.1, b"");
    assert!(fake.revoke(slot));
    fake.requests();
    assert!(!fake.try_arrive(listener.1));
    assert_eq!(client::accept(listener.0, 0).err(), Some(Errno::EAGAIN));
    let requests = fake.requests();
    assert!(requests.iter().any(|(_, body)| *body == RequestBody::Acceptor), "{requests:?}");
    let second = fake.arrive(listener.1, b"");
    let (fd, _) = client::accept(listener.0, 0).unwrap();
    assert!(!fake.revoke(second));
    client::close(fd).unwrap();
    client::close(listener.0).unwrap();
}

#[test]
fn claim_and_revoke_never_both_win() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    for _ in 0..200 {
        let _ = client::accept(listener.0, 0);
        let slot = fake.arrive(listener.1, b"");
        let revoker = std::thread::spawn(move || fake.revoke(slot));
        let claimed = client::accept(listener.0, 0);
        let revoked = revoker.join().unwrap();
        assert_ne!(claimed.is_ok(), revoked);
        if let Ok((fd, _)) = claimed {
            client::close(fd).unwrap();
        }
    }
    client::close(listener.0).unwrap();
}

#[test]
fn blocking_accept_and_read_are_woken() {
    let (fake, _turn) = support::start();
    let listener = support::listener(false);
    let fd = listener.0;
    let (say, said) = std::sync::mpsc::channel();
    let thread = Sleeper::start(move || {
        let (connection, _) = client::accept(fd, 0).unwrap();
        say.send(Vec::new()).unwrap();
        for (len, flags) in [(10, 0), (6, libc::MSG_WAITALL), (10, 0)] {
            say.send(receive(connection, len, flags).unwrap()).unwrap();
        }
        connection
    });
    support::wait_for_acceptor(fake);
    thread.wait();
    let slot = fake.arrive(listener.1, b"");
    assert_eq!(said.recv().unwrap(), b"");
    thread.wait();
    fake.deliver(slot, b"first");
    assert_eq!(said.recv().unwrap(), b"first");
    thread.wait();
    fake.deliver(slot, b"abc");
    thread.wait();
    fake.deliver(slot, b"def");
    assert_eq!(said.recv().unwrap(), b"abcdef");
    thread.wait();
    fake.finish(slot);
    assert_eq!(said.recv().unwrap(), b"");
    client::close(thread.join().unwrap()).unwrap();
    client::close(listener.0).unwrap();
}

#[test]
fn peek_discard_timeouts_and_errors() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"0123456789");
    assert_eq!(client::readable_bytes(fd), Ok(10));
    assert_eq!(receive(fd, 4, libc::MSG_PEEK).unwrap(), b"0123");
    assert_eq!(client::receive(fd, &mut [IoSliceMut::new(&mut [0; 4])], libc::MSG_TRUNC), Ok(4));
    assert_eq!(receive(fd, 100, 0).unwrap(), b"456789");
    assert_eq!(receive(fd, 1, libc::MSG_DONTWAIT).err(), Some(Errno::EAGAIN));
    let limit = [0i64.to_ne_bytes(), 30_000i64.to_ne_bytes()].concat();
    client::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit).unwrap();
    let started = Instant::now();
    assert_eq!(receive(fd, 1, 0).err(), Some(Errno::EAGAIN));
    assert!(started.elapsed() >= Duration::from_millis(30));
    fake.deliver(slot, b"last words");
    fake.reset(slot);
    assert_eq!(receive(fd, 100, 0).unwrap(), b"last words");
    assert_eq!(receive(fd, 100, 0).err(), Some(Errno::ECONNRESET));
    assert_eq!(receive(fd, 100, 0).unwrap(), b"");
    assert_eq!(send(fd, b"x").err(), Some(Errno::EPIPE));
    client::close(fd).unwrap();
    client::close(listener.0).unwrap();
}

#[test]
fn a_big_write_blocks_and_gets_through_whole() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"");
    let data: Vec<u8> = (0..3_000_000u32).map(|value| (value % 251) as u8).collect();
    let expected = data.clone();
    let writer = std::thread::spawn(move || {
        let (one, two) = data.split_at(1_234_567);
        client::send(fd, &[IoSlice::new(one), IoSlice::new(two)], 0)
    });
    let mut got = Vec::new();
    let started = Instant::now();
    while got.len() < expected.len() && started.elapsed() < support::PATIENCE {
        got.extend(fake.sent(slot));
    }
    assert_eq!(writer.join().unwrap(), Ok(expected.len()));
    assert!(got == expected);
    client::shutdown(fd, libc::SHUT_WR).unwrap();
    assert_eq!(send(fd, b"x").err(), Some(Errno::EPIPE));
    client::close(fd).unwrap();
    client::close(listener.0).unwrap();
}

#[test]
fn connecting_in_the_background_and_in_vain() {
    let (fake, _turn) = support::start();
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
    let remote = "198.18.0.9:80".parse().unwrap();
    let fd = client::socket(libc::AF_INET, kind, 0).unwrap();
    assert_eq!(client::connect(fd, remote).err(), Some(Errno::EINPROGRESS));
    assert_eq!(client::connect(fd, remote).err(), Some(Errno::EALREADY));
    assert_eq!(client::remote_address(fd).err(), Some(Errno::ENOTCONN));
    let slot = fake.attempt();
    let mut fds = [sys::PollFd { fd, events: libc::POLLOUT, revents: 0 }];
    assert_eq!(support::poll(&mut fds, Some(Duration::ZERO)), Ok(0));
    fake.establish(slot);
    assert_eq!(support::poll(&mut fds, None), Ok(1));
    let mut error = [1; 4];
    client::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, &mut error).unwrap();
    assert_eq!(error, [0; 4]);
    assert_eq!(client::connect(fd, remote), Ok(()));
    assert_eq!(client::connect(fd, remote).err(), Some(Errno::EISCONN));
    assert_eq!(client::remote_address(fd), Ok(remote));
    client::close(fd).unwrap();

    let fd = client::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    let thread = std::thread::spawn(move || client::connect(fd, remote));
    let slot = loop {
        std::thread::sleep(Duration::from_millis(5));
        if fake.requests().iter().any(|(_, body)| matches!(body, RequestBody::Connect { .. })) {
            break fake.attempt();
        }
    };
    fake.fail(slot, libc::ECONNREFUSED);
    assert_eq!(thread.join().unwrap().err(), Some(Errno::ECONNREFUSED));
    client::close(fd).unwrap();
}

#[test]
fn the_kernels_addresses_stay_the_kernels() {
    let (fake, _turn) = support::start();
    let fd = client::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    assert!(!client::is_kernel(fd));
    let loopback = "127.0.0.1:0".parse().unwrap();
    assert_eq!(client::bind(fd, loopback).err(), Some(TO_KERNEL));
    assert!(client::is_kernel(fd));
    sys::bind(fd, &loopback).unwrap();
    sys::close(fd).unwrap();
    let datagrams = client::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    client::bind(datagrams, loopback).unwrap();
    assert!(client::is_kernel(datagrams));
    sys::close(datagrams).unwrap();
    let ping = client::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP);
    assert!(ping.is_err_and(|errno| errno != TO_KERNEL) || client::is_kernel(ping.unwrap()));
    fake.requests();
}

#[test]
fn a_wildcard_listener_serves_both_worlds() {
    let (fake, _turn) = support::start();
    let fd = client::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    client::bind(fd, "0.0.0.0:0".parse().unwrap()).unwrap();
    client::listen(fd, 5).unwrap();
    let port = client::local_address(fd).unwrap().port();
    assert_eq!(sys::getsockname(fd).unwrap().unwrap().port(), port);
    let (say, said) = std::sync::mpsc::channel();
    let thread = Sleeper::start(move || {
        for _ in 0..2 {
            say.send(client::accept(fd, 0).unwrap()).unwrap();
        }
    });
    support::wait_for_acceptor(fake);
    thread.wait();
    let over_kernel = sys::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    let loopback = std::net::SocketAddr::new([127, 0, 0, 1].into(), port);
    sys::connect(over_kernel.raw(), &loopback).unwrap();
    let (first, peer) = said.recv().unwrap();
    thread.wait();
    fake.arrive(port, b"");
    let (second, _) = said.recv().unwrap();
    thread.join().unwrap();
    assert!(client::is_kernel(first) && peer.ip().is_loopback());
    assert!(!client::is_kernel(second));
    sys::close(first).unwrap();
    client::close(second).unwrap();
    client::close(fd).unwrap();
}

#[test]
fn duplicates_share_and_the_last_one_ends() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"abc");
    let copy = client::duplicate(fd, 0, true).unwrap();
    let target = sys::dup_lowest(2, false).unwrap();
    client::duplicate_to(copy, target, 0).unwrap();
    client::set_nonblocking(target, true).unwrap();
    assert_ne!(client::status_flags(fd).unwrap() & libc::O_NONBLOCK, 0);
    assert_eq!(receive(copy, 1, 0).unwrap(), b"a");
    client::close(fd).unwrap();
    client::close(copy).unwrap();
    assert!(fake.knows(slot));
    assert_eq!(receive(target, 10, 0).unwrap(), b"bc");
    assert_eq!(sys::so_cookie(target), sys::so_cookie(target));
    client::share(target);
    assert_eq!(fake.cookie(slot), sys::so_cookie(target).ok());
    client::close(target).unwrap();
    // Shared: only the kernel's notice ends it.
    assert!(fake.knows(slot));
    client::close(listener.0).unwrap();
}

#[test]
fn a_socket_comes_back_by_its_placeholder() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, _) = support::accepted(fake, listener, 0, b"before");
    client::share(fd);
    fake.requests();
    // As it arrives over a Unix socket: a number that nobody has told us of.
    let arrived = sys::dup_lowest(fd, true).unwrap();
    assert!(client::is_kernel(arrived));
    client::adopt(arrived);
    assert!(!client::is_kernel(arrived));
    assert_eq!(receive(arrived, 10, 0).unwrap(), b"before");
    let stranger = sys::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    client::adopt(stranger.raw());
    assert!(client::is_kernel(stranger.raw()));
    for fd in [fd, arrived, listener.0] {
        client::close(fd).unwrap();
    }
}

#[test]
fn own_descriptors_are_out_of_reach() {
    let (_fake, _turn) = support::start();
    let own: Vec<i32> = (0..70_000).filter(|fd| client::is_internal(*fd)).collect();
    assert!(own.len() >= 2, "{own:?}");
    assert_eq!(client::close(own[0]).err(), Some(Errno::EBADF));
    assert_eq!(client::duplicate_to(2, own[0], 0).err(), Some(Errno::EBUSY));
    let mut ranges = Vec::new();
    client::close_range(own[0] as u32 - 1, own[0] as u32 + 1, 0, &mut |first, last, _| {
        ranges.push((first, last));
        Ok(())
    })
    .unwrap();
    assert_eq!(ranges[0], (own[0] as u32 - 1, own[0] as u32 - 1));
    assert!(ranges.iter().all(|(first, last)| !(*first..=*last).contains(&(own[0] as u32))));
}

#[test]
fn descriptors_closed_behind_our_back_are_made_anew() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"before");
    let before = fake.processes();
    let (stranger, other_end) = sys::socketpair_stream().unwrap();
    let lost: Vec<i32> = (0..70_000).filter(|fd| client::is_internal(*fd)).collect();
    for number in &lost {
        // Past the library: each number is a stranger's now.
        sys::dup3(stranger.raw(), *number, 0).unwrap();
    }
    let second = support::listener(true);
    assert_eq!(fake.processes(), before + 1);
    let (other, _) = support::accepted(fake, second, 0, b"to the new one");
    assert_eq!(receive(other, 100, 0).unwrap(), b"to the new one");
    // What was there before is shared now, and goes on.
    assert!(fake.cookie(slot).is_some());
    assert_eq!(receive(fd, 100, 0).unwrap(), b"before");
    assert_eq!(send(fd, b"after"), Ok(5));
    assert_eq!(fake.sent(slot), b"after");
    let set = support::epoll();
    support::control_epoll(set, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN, 1).unwrap();
    fake.deliver(slot, b"x");
    assert_eq!(support::epoll_wait(set, 4, support::PATIENCE_MS), [(libc::EPOLLIN as u32, 1)]);
    // Nothing went to the stranger, and nothing of it was closed.
    assert_eq!(sys::recv(other_end.raw(), &mut [0; 8], libc::MSG_DONTWAIT), Err(Errno::EAGAIN));
    for number in lost {
        sys::close(number).unwrap();
    }
    for fd in [set, other, fd, second.0, listener.0] {
        client::close(fd).unwrap();
    }
}

#[test]
fn lingering_low_marks_and_more_to_come() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"123");
    let option = (libc::SOL_SOCKET << 8 | libc::SO_LINGER) as u16;
    fake.requests();
    let value = [1i32, 0].map(i32::to_ne_bytes).concat();
    client::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, &value).unwrap();
    assert_eq!(fake.requests(), [(slot, RequestBody::SetOption { option, value: 0 })]);
    client::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, &[0; 8]).unwrap();
    assert_eq!(fake.requests(), [(slot, RequestBody::SetOption { option, value: -1 })]);

    client::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &5i32.to_ne_bytes()).unwrap();
    let mut fds = [sys::PollFd { fd, events: libc::POLLIN, revents: 0 }];
    assert_eq!(support::poll(&mut fds, Some(Duration::ZERO)), Ok(0));
    fake.deliver(slot, b"45");
    assert_eq!(support::poll(&mut fds, None), Ok(1));
    assert_eq!(receive(fd, 100, 0).unwrap(), b"12345");
    fake.requests();

    let more = |data: &[u8], flags| client::send(fd, &[IoSlice::new(data)], flags).unwrap();
    let told = |value| RequestBody::SetOption { option: OPTION_MORE, value };
    more(b"a", libc::MSG_MORE);
    assert_eq!(fake.requests(), [(slot, told(1)), (slot, RequestBody::KickTx)]);
    more(b"b", libc::MSG_MORE);
    assert_eq!(fake.requests(), [(slot, RequestBody::KickTx)]);
    more(b"c", 0);
    assert_eq!(fake.requests(), [(slot, RequestBody::KickTx), (slot, told(0))]);
    client::close(fd).unwrap();
    client::close(listener.0).unwrap();
}
