//! A forked child of a process that uses Haypile, against a service without a network. It stands here and not with the
//! other tests of `haypile-client`, because only `fork` itself needs `unsafe`.

#[path = "../../client/tests/support/mod.rs"]
mod support;

use std::io::{IoSlice, IoSliceMut};
use std::time::Instant;

use haypile_client::{self as client, Errno};
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
fn a_child_attaches_anew_and_shares() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"from before");
    let before = fake.processes();
    client::before_fork();
    // SAFETY: the child uses only raw system calls and this crate, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        client::after_fork_in_child();
        let code = (|| {
            assert_eq!(receive(fd, 100, 0)?, b"from before");
            send(fd, b"from the child")?;
            Ok::<i32, Errno>(0)
        })();
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(code.unwrap_or(1)) };
    }
    client::after_fork_in_parent();
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(fake.processes(), before + 1);
    assert!(fake.cookie(slot).is_some());
    assert_eq!(fake.sent(slot), b"from the child");
    assert_eq!(send(fd, b"and the parent"), Ok(14));
    assert_eq!(fake.sent(slot), b"and the parent");
    client::close(fd).unwrap();
    client::close(listener.0).unwrap();
}

#[test]
fn a_child_leaves_its_parents_bell_in_the_set_that_both_have() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    // Such a child attaches when it first needs the service.
    let (fd, slot) = support::accepted(fake, listener, libc::SOCK_CLOEXEC, b"");
    let set = support::epoll();
    support::control_epoll(set, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN, 7).unwrap();
    assert_eq!(support::epoll_wait(set, 1, 0), []);
    client::before_fork();
    // SAFETY: the child uses only raw system calls and this crate, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        client::after_fork_in_child();
        let found = support::epoll_wait(set, 1, 0);
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(i32::from(!found.is_empty())) };
    }
    client::after_fork_in_parent();
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    let thread = Sleeper::asleep(move || support::epoll_wait(set, 4, support::PATIENCE_MS));
    let told = Instant::now();
    fake.deliver(slot, b"news");
    assert_eq!(thread.join().unwrap(), [(libc::EPOLLIN as u32, 7)]);
    // Also one that is not woken finds it at the end of its time.
    assert!(told.elapsed() < support::PATIENCE / 2, "woken by the bell");
    client::close(set).unwrap();
    client::close(fd).unwrap();
    client::close(listener.0).unwrap();
}
