//! Servers that leave while a process runs: it makes its home elsewhere, takes what those that leave still have for
//! it, and keeps nothing of them when they are gone.

mod support;

use std::time::{Duration, Instant};

use haypile_client as client;
use haypile_shm::messages::RequestBody;
use haypile_shm::sys::PollFd;
use libc::{EPOLL_CTL_ADD, EPOLLIN};
use support::asleep::Sleeper;
use support::{Fake, PATIENCE, PATIENCE_MS, come_to, control_epoll, epoll, epoll_wait, poll};

const IN: u32 = EPOLLIN as u32;

/// How many descriptors this process has.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn until(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn registers(fake: &Fake) -> bool {
    fake.requests().iter().any(|(_, body)| *body == RequestBody::Acceptor)
}

/// Takes a connection that comes to one of the servers; which call waits for it goes by `way`.
fn take_one(listener: (i32, u16), fake: &'static Fake, way: usize) {
    let waiting = Sleeper::asleep(move || {
        let fd = listener.0;
        match way {
            0 => {
                let mut fds = [PollFd { fd, events: libc::POLLIN, revents: 0 }];
                assert_eq!(poll(&mut fds, Some(PATIENCE)), Ok(1));
            }
            _ => {
                let set = epoll();
                control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN, 7).unwrap();
                assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(IN, 7)]);
                client::close(set).unwrap();
            }
        }
        client::accept(fd, 0).unwrap().0
    });
    fake.accept_for_home(listener.1);
    fake.arrive(listener.1, b"");
    client::close(waiting.join().unwrap()).unwrap();
}

#[test]
fn what_a_process_has_at_servers_that_leave_goes_on_at_others() {
    let (fakes, _turn) = support::start_several(3, 2);
    come_to(fakes, 3);
    let listener = support::listener(true);
    let set = epoll();
    control_epoll(set, EPOLL_CTL_ADD, listener.0, EPOLLIN, 9).unwrap();
    assert!(epoll_wait(set, 8, 0).is_empty());
    until("it registers at home", || registers(fakes[2]));
    for way in 0..2 {
        take_one(listener, fakes[1 + way], way);
    }
    let before = descriptors();
    fakes.iter().for_each(|fake| drop(fake.requests()));
    // They are to leave, and go on until then.
    come_to(fakes, 1);
    assert!(epoll_wait(set, 8, 0).is_empty());
    until("it registers elsewhere", || registers(fakes[0]));
    for (way, fake) in [fakes[1], fakes[2], fakes[0]].into_iter().enumerate() {
        take_one(listener, fake, way % 2);
    }
    // A new listener is for those that stay, as is whatever the process opens without one.
    let later = support::listener(true);
    assert_eq!([0, 1, 2].map(|server| fakes[server].count(later.1)), [1, 0, 0]);
    let waiting = Sleeper::asleep(move || epoll_wait(set, 8, PATIENCE_MS));
    fakes[1].die();
    fakes[2].die();
    come_to(fakes, 1);
    fakes[0].accept_for_home(listener.1);
    fakes[0].arrive(listener.1, b"");
    assert_eq!(waiting.join().unwrap(), [(IN, 9)]);
    let (accepted, _) = client::accept(listener.0, 0).unwrap();
    until("what it had of those that have left is gone", || {
        epoll_wait(set, 8, 0);
        descriptors() + 4 < before
    });
    let connection = client::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
    let connection = connection.unwrap();
    let started = client::connect(connection, "198.18.0.1:6000".parse().unwrap());
    assert_eq!(started, Err(client::Errno::EINPROGRESS));
    // They come again.
    fakes[1].rise();
    fakes[2].rise();
    come_to(fakes, 3);
    fakes.iter().for_each(|fake| drop(fake.requests()));
    assert!(epoll_wait(set, 8, 0).is_empty());
    until("it registers where its name belongs", || registers(fakes[2]));
    take_one(listener, fakes[1], 0);
    for fd in [accepted, connection, later.0, listener.0, set] {
        client::close(fd).unwrap();
    }
    assert!(fakes.iter().all(|fake| fake.count(listener.1) == 0));
}

#[test]
fn servers_that_have_left_and_come_again_meanwhile_are_the_process_s_again() {
    let (fakes, _turn) = support::start_several(3, 2);
    come_to(fakes, 3);
    let listener = support::listener(true);
    let set = epoll();
    control_epoll(set, EPOLL_CTL_ADD, listener.0, EPOLLIN, 9).unwrap();
    assert!(epoll_wait(set, 8, 0).is_empty());
    until("it registers at home", || registers(fakes[2]));
    let (connection, _) = support::accepted(fakes[2], listener, libc::SOCK_NONBLOCK, b"");
    come_to(fakes, 1);
    fakes[1].die();
    fakes[2].die();
    // It looks at what it had there, and at nothing else.
    let mut fds = [PollFd { fd: connection, events: libc::POLLIN, revents: 0 }];
    until("its connection has failed", || poll(&mut fds.clone(), Some(Duration::ZERO)) == Ok(1));
    assert_eq!(poll(&mut fds, Some(Duration::ZERO)), Ok(1));
    assert!(fds[0].revents & libc::POLLHUP != 0);
    fakes[1].rise();
    fakes[2].rise();
    come_to(fakes, 3);
    fakes.iter().for_each(|fake| drop(fake.requests()));
    until("it registers at home again", || {
        assert!(epoll_wait(set, 8, 0).is_empty());
        registers(fakes[2])
    });
    take_one(listener, fakes[1], 0);
    for fd in [connection, listener.0, set] {
        client::close(fd).unwrap();
    }
}

#[test]
fn nothing_can_be_read_of_a_udp_socket_because_its_server_leaves() {
    let (fakes, _turn) = support::start_several(3, 2);
    come_to(fakes, 3);
    let fd = client::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    client::bind(fd, "198.18.0.2:0".parse().unwrap()).unwrap();
    let look = |time| poll(&mut [PollFd { fd, events: libc::POLLIN, revents: 0 }], Some(time));
    assert_eq!(look(Duration::ZERO), Ok(0));
    come_to(fakes, 1);
    for fake in &fakes[1..] {
        fake.close_datagrams();
    }
    // A read would wait for the server where it is opened next.
    assert_eq!(look(Duration::from_millis(20)), Ok(0));
    let data = [std::io::IoSlice::new(b"!")];
    let peer = Some("198.18.0.9:53".parse().unwrap());
    let sent =
        client::send_to(fd, &data, libc::MSG_DONTWAIT, peer, &client::SendControl::default());
    assert_eq!(sent, Err(client::Errno::EAGAIN));
    for fake in &fakes[1..] {
        fake.die();
    }
    assert_eq!(look(Duration::from_millis(20)), Ok(0));
    assert_eq!(fakes.iter().map(|fake| fake.datagrams()).collect::<Vec<_>>(), [1, 0, 0]);
    for fake in &fakes[1..] {
        fake.rise();
    }
    come_to(fakes, 3);
    client::close(fd).unwrap();
}

/// A sleep in a poll, in the middle of which something happens that wakes nobody.
struct During<F: FnMut()>(F);

impl<F: FnMut()> client::Sleeper for During<F> {
    fn hold(&mut self) {}
    fn poll(&mut self, _: &mut [PollFd], _: Option<Duration>) -> Result<usize, client::Errno> {
        (self.0)();
        Ok(0)
    }
    fn poll_restarting(
        &mut self,
        fds: &mut [PollFd],
        timeout: Option<Duration>,
    ) -> Result<usize, client::Errno> {
        self.poll(fds, timeout)
    }
    fn epoll_wait(
        &mut self,
        _: i32,
        _: &mut [haypile_shm::sys::EpollEvent],
        _: i32,
    ) -> Result<usize, client::Errno> {
        self.poll(&mut [], None)
    }
}

#[test]
fn nothing_can_be_read_of_a_udp_socket_because_its_server_has_just_left() {
    let (fakes, _turn) = support::start_several(3, 2);
    come_to(fakes, 3);
    let fd = client::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    client::bind(fd, "198.18.0.2:0".parse().unwrap()).unwrap();
    let mut fds = [PollFd { fd, events: libc::POLLIN, revents: 0 }];
    let mut left = false;
    let mut sleeper = During(|| {
        if !std::mem::replace(&mut left, true) {
            come_to(fakes, 1);
            fakes[1..].iter().for_each(|fake| fake.die());
        }
        std::thread::sleep(Duration::from_millis(1));
    });
    let looked = client::poll(&mut fds, Some(Duration::from_millis(50)), &mut sleeper);
    assert_eq!((looked, fds[0].revents), (Ok(0), 0));
    assert_eq!(poll(&mut fds, Some(Duration::ZERO)), Ok(0));
    assert_eq!(fakes.iter().map(|fake| fake.datagrams()).collect::<Vec<_>>(), [1, 0, 0]);
    fakes[1..].iter().for_each(|fake| fake.rise());
    come_to(fakes, 3);
    client::close(fd).unwrap();
}

/// Sends a datagram that comes back.
fn send_one(fd: i32) {
    let peer = Some("198.18.0.9:53".parse().unwrap());
    let data = [std::io::IoSlice::new(b"!")];
    let control = client::SendControl::default();
    assert_eq!(client::send_to(fd, &data, libc::MSG_DONTWAIT, peer, &control), Ok(1));
}

#[test]
fn a_sleeping_set_has_its_udp_sockets_opened_where_servers_stay_and_hears_from_there() {
    let (fakes, _turn) = support::start_several(3, 2);
    come_to(fakes, 3);
    let set = epoll();
    let sockets: Vec<i32> = (0..3)
        .map(|number| {
            let fd = client::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
            client::bind(fd, "198.18.0.2:0".parse().unwrap()).unwrap();
            control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN, number).unwrap();
            fd
        })
        .collect();
    let waiting = Sleeper::asleep(move || epoll_wait(set, 8, PATIENCE_MS));
    come_to(fakes, 1);
    fakes[2].close_datagrams();
    fakes[1..].iter().for_each(|fake| fake.die());
    // Nobody looks at them but the sleeper.
    until("they are opened elsewhere", || fakes[0].datagrams() == sockets.len());
    waiting.wait();
    send_one(sockets[1]);
    assert_eq!(waiting.join().unwrap(), [(IN, 1)]);
    fakes[1..].iter().for_each(|fake| fake.rise());
    come_to(fakes, 3);
    sockets.into_iter().chain([set]).for_each(|fd| client::close(fd).unwrap());
}

#[test]
fn a_set_hears_from_where_a_udp_socket_was_opened_while_the_set_was_looked_at() {
    let (fakes, _turn) = support::start_several(3, 2);
    come_to(fakes, 3);
    // With this it is attached to all.
    let listener = support::listener(true);
    let fd = client::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    client::bind(fd, "198.18.0.2:0".parse().unwrap()).unwrap();
    let port = client::local_address(fd).unwrap().port();
    let set = epoll();
    control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN, 5).unwrap();
    assert!(epoll_wait(set, 8, 0).is_empty());
    // The look at the set finds the next server, which sends the socket on.
    fakes[2].die();
    fakes[2].redirect(port, 1);
    fakes[2].rise();
    let waiting = Sleeper::start(move || epoll_wait(set, 8, PATIENCE_MS));
    until("it is opened elsewhere", || fakes[1].datagrams() == 1);
    waiting.wait();
    send_one(fd);
    assert_eq!(waiting.join().unwrap(), [(IN, 5)]);
    [fd, listener.0, set].into_iter().for_each(|fd| client::close(fd).unwrap());
}
