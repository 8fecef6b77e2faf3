//! A forked child whose connection moves on, and its server leaves, just when the child looks for that server. (The
//! test goes on as its own child.)

mod support;

use std::io::IoSliceMut;
use std::time::Duration;

use haypile_client as client;
use haypile_shm::sys::PollFd;
use support::{come_to, poll};

#[test]
fn a_child_reads_from_a_server_that_leaves_when_it_comes() {
    let (fakes, _turn) = support::start_several(3, 0);
    let listener = support::listener(true);
    let mut fds = [PollFd { fd: listener.0, events: libc::POLLIN, revents: 0 }];
    assert_eq!(poll(&mut fds, Some(Duration::ZERO)), Ok(0));
    fakes[2].accept_for_home(listener.1);
    let slot = fakes[2].arrive(listener.1, b"for the child");
    let (connection, _) = client::accept(listener.0, libc::SOCK_CLOEXEC).unwrap();
    client::before_fork();
    client::after_fork_in_child();
    come_to(fakes, 1);
    let leaving = fakes[2].leave_over_the_next_message(slot, fakes[0]);
    let mut out = [0; 100];
    let got = client::receive(connection, &mut [IoSliceMut::new(&mut out)], libc::MSG_DONTWAIT);
    assert_eq!(got.map(|len| &out[..len]), Ok(&b"for the child"[..]));
    leaving.join().unwrap();
    client::close(connection).unwrap();
    client::close(listener.0).unwrap();
}
