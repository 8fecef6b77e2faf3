//! System calls: each wrapper against the kernel.

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use super::*;

#[test]
fn futex_waits_end_for_the_right_reason() {
    let word = AtomicU32::new(3);
    let soon = Duration::from_millis(2);
    assert_eq!(futex_wait(&word, 4, None), Waited::Changed);
    assert_eq!(futex_wait(&word, 3, Some(soon)), Waited::TimedOut);
    assert_eq!(futex_wait_until(&word, 4, u64::MAX), Waited::Changed);
    assert_eq!(futex_wait_until(&word, 3, clock_monotonic_ns() + 2_000_000), Waited::TimedOut);
    assert_eq!(futex_wake(&word, 1), 0);
    for deadline in [false, true] {
        word.store(0, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                while word.load(Ordering::SeqCst) == 0 {
                    if deadline {
                        let _: Waited = futex_wait_until(&word, 0, u64::MAX / 2);
                    } else {
                        let _: Waited = futex_wait(&word, 0, None);
                    }
                }
            });
            word.store(1, Ordering::SeqCst);
            futex_wake(&word, u32::MAX);
            sleeper.join().unwrap();
        });
    }
}

#[test]
fn descriptors_travel_with_messages() {
    let (left, right) = socketpair_seqpacket().unwrap();
    let (inner, other) = socketpair_stream().unwrap();
    assert_eq!(send_fds(left.raw(), b"take", &[inner.raw(), other.raw()], 0), Ok(4));
    drop((inner, other));
    let mut out = [0; 16];
    let mut received = recv_fds(right.raw(), &mut out, 0).unwrap();
    assert_eq!((&out[..received.len], received.truncated), (&b"take"[..], false));
    let inner = received.fds[0].take().unwrap();
    let other = received.fds[1].take().unwrap();
    assert!(received.fds.iter().all(Option::is_none));
    assert_eq!(fcntl_getfd(inner.raw()), Ok(libc::FD_CLOEXEC));
    assert_eq!(write(inner.raw(), b"hello"), Ok(5));
    assert_eq!(read(other.raw(), &mut out), Ok(5));
    assert_eq!(recv(right.raw(), &mut out, 0), Err(Errno::EAGAIN));
    assert_eq!(send_fds(left.raw(), b"x", &[0; MESSAGE_FDS + 1], 0), Err(Errno::EINVAL));

    // Too long for the reader: said so, and the descriptors do not leak.
    send_fds(left.raw(), &[7; 40], &[inner.raw()], 0).unwrap();
    let received = recv_fds(right.raw(), &mut out, 0).unwrap();
    assert!(received.truncated && received.fds[0].is_some());

    drop(left);
    assert_eq!(recv_fds(right.raw(), &mut out, 0).unwrap().len, 0);
    assert_eq!(send(right.raw(), b"x", libc::MSG_NOSIGNAL), Err(Errno::EPIPE));
}

#[test]
fn duplicates_and_flags() {
    let (left, _right) = socketpair_stream().unwrap();
    let high = dup_at_least(left.raw(), 500).unwrap();
    assert!(high.raw() >= 500);
    assert_eq!(so_cookie(high.raw()), so_cookie(left.raw()));
    let low = Fd::from_raw(dup_lowest(high.raw(), false).unwrap());
    assert_eq!(fcntl_getfd(low.raw()), Ok(0));
    fcntl_setfd(low.raw(), libc::FD_CLOEXEC).unwrap();
    assert_eq!(fcntl_getfd(low.raw()), Ok(libc::FD_CLOEXEC));
    let flags = fcntl_getfl(low.raw()).unwrap();
    assert_ne!(flags & libc::O_NONBLOCK, 0);
    fcntl_setfl(low.raw(), flags & !libc::O_NONBLOCK).unwrap();
    assert_eq!(fcntl_getfl(high.raw()).unwrap() & libc::O_NONBLOCK, 0);
    assert_eq!(dup3(low.raw(), high.raw(), libc::O_CLOEXEC), Ok(high.raw()));
    let owned: std::os::fd::OwnedFd = high.into();
    assert!(fcntl_getfd(owned.as_raw_fd()).is_ok());
    assert_eq!(close(-1), Err(Errno::EBADF));
}

#[test]
fn socket_facts() {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    let socket = socket(libc::AF_INET6, kind, 0).unwrap();
    assert_eq!(so_domain(socket.raw()), Ok(libc::AF_INET6));
    assert_eq!(so_type(socket.raw()), Ok(libc::SOCK_STREAM));
    assert_eq!(so_protocol(socket.raw()), Ok(libc::IPPROTO_TCP));
    setsockopt(socket.raw(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1i32.to_ne_bytes()).unwrap();
    let mut value = [0; 4];
    let len = getsockopt(socket.raw(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, &mut value);
    assert_eq!((len, value), (Ok(4), 1i32.to_ne_bytes()));
    let (left, _right) = socketpair_seqpacket().unwrap();
    assert_eq!(peer_credentials(left.raw()).unwrap().pid, getpid());
    assert_eq!(getsockname(left.raw()), Ok(None));
}

#[test]
fn addresses_survive_encoding() {
    for text in ["1.2.3.4:5", "[2001:db8::1]:65535", "0.0.0.0:0", "[::]:0"] {
        let address: SocketAddr = text.parse().unwrap();
        let mut bytes = [0; ADDRESS_BYTES];
        let len = encode_address(&address, &mut bytes);
        assert_eq!(decode_address(&bytes[..len]), Some(address));
        // A v4 address is whole before its padding is.
        let needed = if address.is_ipv4() { 8 } else { 24 };
        assert_eq!(decode_address(&bytes[..needed - 1]), None);
    }
    assert_eq!(decode_address(&[1, 0, 0, 0, 0, 0, 0, 0]), None);
}

#[test]
fn what_nobody_has_received_is_counted() {
    let (left, right) = socketpair_seqpacket().unwrap();
    assert_eq!(unreceived(left.raw()), Ok(0));
    send(left.raw(), &[1; 1000], 0).unwrap();
    assert!(unreceived(left.raw()).unwrap() >= 1000);
    assert_eq!(recv(right.raw(), &mut [0; 2000], 0), Ok(1000));
    assert_eq!(unreceived(left.raw()), Ok(0));
    assert!(unreceived(-1).is_err());
}

#[test]
fn unix_paths_connect() {
    // An abstract name leaves no file behind.
    let name = format!("\0haypile-shm-test-{}", getpid());
    let listener = unix_listen_seqpacket(name.as_bytes(), 4).unwrap();
    let client = unix_connect_seqpacket(name.as_bytes()).unwrap();
    let (server, address) = accept4(listener.raw(), libc::SOCK_CLOEXEC).unwrap();
    assert_eq!(address, None);
    assert_eq!(send(client.raw(), b"hi", 0), Ok(2));
    assert_eq!(recv(server.raw(), &mut [0; 4], 0), Ok(2));
    assert_eq!(shutdown(client.raw(), libc::SHUT_RDWR), Ok(()));
    assert!(unix_connect_seqpacket(&[b'x'; 200]).is_err());
    assert!(unix_connect_seqpacket(b"").is_err());
    // A full queue is somebody, too.
    for _ in 0..8 {
        assert_eq!(unix_reach_seqpacket(name.as_bytes()), Ok(()));
    }
    drop(listener);
    assert_eq!(unix_reach_seqpacket(name.as_bytes()), Err(Errno::ECONNREFUSED));
}

#[test]
fn polls_see_what_is_ready() {
    let (left, right) = socketpair_stream().unwrap();
    let epoll = epoll_create().unwrap();
    let mask = libc::EPOLLIN as u32;
    epoll_ctl(epoll.raw(), libc::EPOLL_CTL_ADD, right.raw(), mask, 42).unwrap();
    let mut events = [EpollEvent { events: 0, u64: 0 }; 4];
    assert_eq!(epoll_wait(epoll.raw(), &mut events, 0), Ok(0));
    let mut fds = [PollFd { fd: right.raw(), events: libc::POLLIN, revents: 0 }];
    assert_eq!(ppoll(&mut fds, Some(Duration::from_millis(1))), Ok(0));
    send(left.raw(), b"x", 0).unwrap();
    assert_eq!(epoll_wait(epoll.raw(), &mut events, -1), Ok(1));
    assert_eq!({ events[0].u64 }, 42);
    assert_eq!(ppoll(&mut fds, None), Ok(1));
    assert_eq!(fds[0].revents, libc::POLLIN);
}

#[test]
fn processes_and_limits() {
    assert_eq!(getpid(), std::process::id() as i32);
    assert_ne!(gettid(), 0);
    assert!(pidfd_open(getpid()).is_ok());
    let (soft, hard) = rlimit_nofile().unwrap();
    assert!(soft > 0 && soft <= hard);
    assert_eq!(set_rlimit_nofile(soft, hard), Ok(()));
    for leader in [0, 1, u32::MAX] {
        assert_eq!(kill_group(leader, 0), Err(Errno::EINVAL));
    }
    let before = clock_monotonic_us();
    sched_yield();
    assert!(clock_monotonic_us() >= before);
}

#[test]
fn errors_have_names() {
    assert_eq!(Errno::EAGAIN.to_string(), "EAGAIN");
    assert_eq!(Errno(9999).to_string(), "errno 9999");
    assert_eq!(std::io::Error::from(Errno::EPIPE).kind(), std::io::ErrorKind::BrokenPipe);
}

/// Sends `signal` to a thread until `done`.
fn bombard(target: i32, signal: i32, done: &core::sync::atomic::AtomicBool) {
    while !done.load(Ordering::SeqCst) {
        let (pid, target) = (getpid() as usize, target as usize);
        // SAFETY: sends a signal to a thread of this process.
        let _ = unsafe { syscall4(libc::SYS_tgkill, pid, target, signal as usize, 0) };
        sched_yield();
    }
}

/// A wait with a deadline goes on after a handler with `SA_RESTART`, as the kernel's blocking
/// socket calls do, and ends after one without.
#[test]
fn waits_follow_the_flags_of_signal_handlers() {
    extern "C" fn handler(_: i32) {}
    for (signal, flags) in [(libc::SIGUSR2, libc::SA_RESTART), (libc::SIGURG, 0)] {
        // SAFETY: the handler does nothing.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = flags;
            libc::sigaction(signal, &action, core::ptr::null_mut());
        }
        let word = AtomicU32::new(0);
        let target = AtomicU32::new(0);
        let done = core::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                target.store(gettid() as u32, Ordering::SeqCst);
                let wait_ms = if flags == 0 { 60_000 } else { 50 };
                let deadline_ns = clock_monotonic_ns() + wait_ms * 1_000_000;
                let waited = futex_wait_until(&word, 0, deadline_ns);
                done.store(true, Ordering::SeqCst);
                waited
            });
            while target.load(Ordering::SeqCst) == 0 {
                sched_yield();
            }
            bombard(target.load(Ordering::SeqCst) as i32, signal, &done);
            let expected = if flags == 0 { Waited::Interrupted } else { Waited::TimedOut };
            assert_eq!(sleeper.join().unwrap(), expected);
        });
    }
}
