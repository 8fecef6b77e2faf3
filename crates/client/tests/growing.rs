//! Servers that come while a process runs: calls that wait are woken, and its listeners are open at the
//! new ones from then on.

mod support;

use std::time::{Duration, Instant};

use haypile_client as client;
use haypile_shm::sys::PollFd;
use libc::{EPOLL_CTL_ADD, EPOLLIN};
use support::asleep::Sleeper;
use support::{PATIENCE, PATIENCE_MS, control_epoll, epoll, epoll_wait, poll};

/// A call that waits on a listener until a connection is there, and takes it.
fn sleeper(listener: i32, way: usize) -> Sleeper<i32> {
    Sleeper::asleep(move || {
        match way {
            0 => {}
            1 => {
                let set = epoll();
                control_epoll(set, EPOLL_CTL_ADD, listener, EPOLLIN, 7).unwrap();
                assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(EPOLLIN as u32, 7)]);
                client::close(set).unwrap();
            }
            _ => {
                let mut fds = [PollFd { fd: listener, events: libc::POLLIN, revents: 0 }];
                assert_eq!(poll(&mut fds, Some(PATIENCE)), Ok(1));
            }
        }
        client::accept(listener, 0).unwrap().0
    })
}

#[test]
fn listeners_are_opened_at_servers_that_come() {
    let (fakes, _turn) = support::start_first(1, 3, 0);
    let nobody_listens = support::listener(true);
    let listeners: Vec<(i32, u16)> = (0..3).map(|way| support::listener(way != 0)).collect();
    assert_eq!(fakes.iter().map(|fake| fake.processes()).collect::<Vec<_>>(), [1, 0, 0]);
    let waiting: Vec<Sleeper<i32>> =
        listeners.iter().enumerate().map(|(way, listener)| sleeper(listener.0, way)).collect();
    support::grow(fakes);
    let started = Instant::now();
    // Those that wait, and all others of the process with them.
    for (_, port) in listeners.iter().chain([&nobody_listens]) {
        for fake in &fakes[1..] {
            while !fake.listens(*port) {
                assert!(started.elapsed() < PATIENCE, "nobody listens at {port}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    for (way, (listener, waiting)) in listeners.into_iter().zip(waiting).enumerate() {
        // Once it sleeps again it hears of connections to the new ones.
        waiting.wait();
        let fake = fakes[1 + way % 2];
        fake.accept_for_home(listener.1);
        fake.arrive(listener.1, b"");
        let connection = waiting.join().unwrap();
        for fd in [connection, listener.0] {
            client::close(fd).unwrap();
        }
    }
    let later = support::listener(true);
    assert!(fakes.iter().all(|fake| fake.count(later.1) == 1));
    for fd in [later.0, nobody_listens.0] {
        client::close(fd).unwrap();
    }
    assert!(fakes.iter().all(|fake| fake.count(later.1) == 0));
}
