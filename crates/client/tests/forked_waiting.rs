//! A forked child that first needs the service while no server runs: its waits go on until one does. (The test goes on
//! as its own child, as in `several_forked.rs`.)

mod support;

use std::time::{Duration, Instant};

use haypile_client as client;
use haypile_shm::messages::RequestBody;
use haypile_shm::sys::PollFd;
use libc::{EPOLL_CTL_ADD, EPOLLIN, POLLIN};
use support::asleep::Sleeper;
use support::{PATIENCE, PATIENCE_MS, control_epoll, epoll, epoll_wait, poll};

/// Longer than calls that open something wait for a server.
const AWAY: Duration = Duration::from_millis(2_500);

/// Waits for a connection and takes it.
fn take_one(fd: i32, way: usize) {
    match way {
        0 => {
            let mut fds = [PollFd { fd, events: POLLIN, revents: 0 }];
            assert_eq!(poll(&mut fds, Some(PATIENCE)), Ok(1));
        }
        1 => {
            let set = epoll();
            control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN, 7).unwrap();
            assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(EPOLLIN as u32, 7)]);
            client::close(set).unwrap();
        }
        _ => {}
    }
    client::close(client::accept(fd, 0).unwrap().0).unwrap();
}

#[test]
fn a_child_waits_for_a_server_that_is_away_for_long() {
    let (fake, _turn) = support::start();
    let listener = support::listener(false);
    for way in 0..3 {
        client::before_fork();
        client::after_fork_in_child();
        fake.die();
        let waiting = Sleeper::start(move || take_one(listener.0, way));
        std::thread::sleep(AWAY);
        // One with a time limit keeps it.
        let mut fds = [PollFd { fd: listener.0, events: POLLIN, revents: 0 }];
        assert_eq!(poll(&mut fds, Some(Duration::from_millis(5))), Ok(0));
        fake.rise();
        let risen = Instant::now();
        while !fake.requests().iter().any(|(_, body)| *body == RequestBody::Acceptor) {
            assert!(risen.elapsed() < PATIENCE, "nobody waits any more");
            std::thread::sleep(Duration::from_millis(1));
        }
        fake.arrive(listener.1, b"");
        waiting.join().unwrap();
    }
    client::close(listener.0).unwrap();
}
