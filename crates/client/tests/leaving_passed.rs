//! A descriptor of a connection at a server that is about to leave comes to a process that is not attached there. (The
//! test goes on as its own child, which is attached nowhere.)

mod support;

use std::io::IoSliceMut;
use std::time::Duration;

use haypile_client as client;
use haypile_shm::sys::PollFd;
use support::{come_to, poll};

#[test]
fn what_is_passed_is_found_at_a_server_that_leaves() {
    let (fakes, _turn) = support::start_several(3, 0);
    let listener = support::listener(true);
    let mut fds = [PollFd { fd: listener.0, events: libc::POLLIN, revents: 0 }];
    assert_eq!(poll(&mut fds, Some(Duration::ZERO)), Ok(0));
    fakes[2].accept_for_home(listener.1);
    let slot = fakes[2].arrive(listener.1, b"");
    let (connection, _) = client::accept(listener.0, libc::SOCK_CLOEXEC).unwrap();
    client::before_fork();
    client::after_fork_in_child();
    // As if it came over a unix socket.
    let passed = haypile_shm::sys::dup_lowest(connection, true).unwrap();
    client::close(connection).unwrap();
    client::close(listener.0).unwrap();
    assert!(client::is_kernel(passed));
    // Servers 1 and 2 are to leave, and have their connections yet.
    come_to(fakes, 1);
    let datagrams = client::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    client::bind(datagrams, "198.18.0.2:0".parse().unwrap()).unwrap();
    // A call that waits has the process follow.
    let mut fds = [PollFd { fd: datagrams, events: libc::POLLIN, revents: 0 }];
    assert_eq!(poll(&mut fds, Some(Duration::ZERO)), Ok(0));
    client::adopt(passed);
    assert!(!client::is_kernel(passed), "it is not found");
    fakes[2].deliver(slot, b"for whoever has it");
    let mut out = [0; 100];
    let got = client::receive(passed, &mut [IoSliceMut::new(&mut out)], libc::MSG_DONTWAIT);
    assert_eq!(got.map(|len| &out[..len]), Ok(&b"for whoever has it"[..]));
    client::close(passed).unwrap();
    client::close(datagrams).unwrap();
}
