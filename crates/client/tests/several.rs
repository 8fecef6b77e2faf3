//! A process and a service of three servers: its home is server 1, listeners are open at all, and
//! the death of one ends nothing that another keeps.

mod support;

use std::io::{IoSlice, IoSliceMut};
use std::time::{Duration, Instant};

use haypile_client::{self as client, Errno};
use haypile_shm::messages::RequestBody;
use haypile_shm::sys::{self, PollFd};
use libc::{EPOLL_CTL_ADD, EPOLLIN};
use support::asleep::{Sleeper, once_asleep};
use support::{Fake, PATIENCE, PATIENCE_MS, control_epoll, epoll, epoll_wait, poll};

const SERVERS: u16 = 3;
const HOME: usize = 1;
const IN: u32 = EPOLLIN as u32;

type Turn = std::sync::MutexGuard<'static, ()>;

fn start() -> (&'static [&'static Fake], Turn) {
    support::start_several(SERVERS, HOME as u16)
}

fn receive(fd: i32) -> Result<Vec<u8>, Errno> {
    let mut out = vec![0; 100];
    let got = client::receive(fd, &mut [IoSliceMut::new(&mut out)], libc::MSG_DONTWAIT)?;
    out.truncate(got);
    Ok(out)
}

/// Waits until something has become true.
fn until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < PATIENCE, "it never happened");
        std::thread::yield_now();
    }
}

fn is_acceptor(request: &(u32, RequestBody)) -> bool {
    request.1 == RequestBody::Acceptor
}

/// A listener of which this process is an acceptor, at every server.
fn accepting(fakes: &[&'static Fake], nonblocking: bool) -> (i32, u16) {
    let listener = support::listener(nonblocking);
    let mut fds = [PollFd { fd: listener.0, events: libc::POLLIN, revents: 0 }];
    assert_eq!(poll(&mut fds, Some(Duration::ZERO)), Ok(0));
    for (server, fake) in fakes.iter().enumerate() {
        let told = fake.requests().iter().any(is_acceptor);
        assert_eq!(told, server == HOME, "server {server}");
        if server != HOME {
            fake.accept_for_home(listener.1);
        }
    }
    listener
}

/// Closes a listener; no server knows it any more.
fn close_listener(fakes: &[&'static Fake], listener: (i32, u16)) {
    client::close(listener.0).unwrap();
    let counts: Vec<usize> = fakes.iter().map(|fake| fake.count(listener.1)).collect();
    assert_eq!(counts, [0; SERVERS as usize]);
}

/// A connection of a server, accepted.
fn accepted(fake: &Fake, listener: (i32, u16), first_bytes: &[u8]) -> (i32, u32) {
    let slot = fake.arrive(listener.1, first_bytes);
    let (fd, _) = client::accept(listener.0, 0).unwrap();
    (fd, slot)
}

#[test]
fn a_listener_is_open_at_every_server_and_closed_at_every_one() {
    let (fakes, _turn) = start();
    let listener = support::listener(true);
    for fake in fakes {
        assert_eq!(fake.count(listener.1), 1);
        fake.requests();
    }
    client::listen(listener.0, 99).unwrap();
    let on = 1i32.to_ne_bytes();
    client::setsockopt(listener.0, libc::IPPROTO_TCP, libc::TCP_NODELAY, &on).unwrap();
    for fake in fakes {
        let requests = fake.requests();
        let listens = |body: &RequestBody| matches!(body, RequestBody::Listen { backlog: 99, .. });
        assert!(requests.iter().any(|(_, body)| listens(body)), "{requests:?}");
        let sets = |body: &RequestBody| matches!(body, RequestBody::SetOption { value: 1, .. });
        assert!(requests.iter().any(|(_, body)| sets(body)), "{requests:?}");
    }
    close_listener(fakes, listener);
}

#[test]
fn no_server_answers_before_all_have_the_listener() {
    let (fakes, _turn) = start();
    // What the tests before this one have left.
    fakes.iter().for_each(|fake| drop(fake.requests()));
    let listener = support::listener(true);
    for fake in fakes {
        let said = fake.requests().into_iter().filter_map(|(_, body)| match body {
            RequestBody::Listen { opening, .. } => Some(opening),
            _ => None,
        });
        assert_eq!(said.collect::<Vec<_>>(), [true, false]);
    }
    close_listener(fakes, listener);
}

#[test]
fn a_listener_that_is_shut_down_is_shut_at_all_servers() {
    let (fakes, _turn) = start();
    let listener = accepting(fakes, false);
    fakes[2].arrive(listener.1, b"");
    let acceptor = {
        // The offer that waits is claimed first.
        let (taken, _) = client::accept(listener.0, 0).unwrap();
        client::close(taken).unwrap();
        Sleeper::asleep(move || client::accept(listener.0, 0))
    };
    assert_eq!(client::shutdown(listener.0, libc::SHUT_WR), Ok(()));
    assert!(!acceptor.is_over() && fakes.iter().all(|fake| fake.listens(listener.1)));
    assert_eq!(client::shutdown(listener.0, libc::SHUT_RD), Ok(()));
    assert!(fakes.iter().all(|fake| !fake.listens(listener.1)));
    assert_eq!(acceptor.join().unwrap().err(), Some(Errno::EINVAL));
    assert_eq!(client::shutdown(listener.0, libc::SHUT_RD), Err(Errno::ENOTCONN));
    client::listen(listener.0, 5).unwrap();
    assert!(fakes.iter().all(|fake| fake.listens(listener.1)));
    close_listener(fakes, listener);
}

#[test]
fn an_offer_of_a_listener_that_was_shut_down_is_void() {
    let (fakes, _turn) = start();
    let listener = accepting(fakes, true);
    let slot = fakes[HOME].arrive(listener.1, b"");
    client::shutdown(listener.0, libc::SHUT_RDWR).unwrap();
    assert!(fakes[HOME].revoke(slot));
    client::listen(listener.0, 5).unwrap();
    let mut fds = [PollFd { fd: listener.0, events: libc::POLLIN, revents: 0 }];
    assert_eq!(poll(&mut fds, Some(Duration::ZERO)), Ok(0));
    close_listener(fakes, listener);
}

#[test]
fn the_refusal_of_one_server_undoes_the_others() {
    let (fakes, _turn) = start();
    let fd = client::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    client::bind(fd, "198.18.0.2:7777".parse().unwrap()).unwrap();
    fakes[2].refuse(7777);
    assert_eq!(client::listen(fd, 5), Err(Errno::EADDRINUSE));
    let counts: Vec<usize> = fakes.iter().map(|fake| fake.count(7777)).collect();
    assert_eq!(counts, [1, 0, 0], "bound at server 0, as before the listen");
    // It is no listener.
    assert_eq!(client::accept(fd, 0).err(), Some(Errno::EINVAL));
    assert_eq!(client::local_address(fd), Ok("198.18.0.2:7777".parse().unwrap()));
    client::close(fd).unwrap();
    assert_eq!(fakes[0].count(7777), 0);
}

#[test]
fn a_server_that_has_yet_to_hear_of_an_end_is_asked_again() {
    let (fakes, _turn) = start();
    let fd = client::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    client::bind(fd, "198.18.0.2:7779".parse().unwrap()).unwrap();
    // Server 0 has given the port: whoever has it there has ended.
    fakes[1].refuse_times(7779, 3);
    assert_eq!(client::listen(fd, 5), Ok(()));
    let counts: Vec<usize> = fakes.iter().map(|fake| fake.count(7779)).collect();
    assert_eq!(counts, [1, 1, 1]);
    client::close(fd).unwrap();
}

#[test]
fn connections_of_all_servers_are_accepted_in_turn_and_misses_say_nothing() {
    let (fakes, _turn) = start();
    let listener = accepting(fakes, true);
    for _ in 0..5 {
        assert_eq!(client::accept(listener.0, 0).err(), Some(Errno::EAGAIN));
    }
    for fake in fakes {
        assert_eq!(fake.requests(), []);
        for _ in 0..2 {
            fake.arrive(listener.1, b"x");
        }
    }
    let mut from = Vec::new();
    for _ in 0..6 {
        let (fd, _) = client::accept(listener.0, 0).unwrap();
        assert_eq!(receive(fd).unwrap(), b"x");
        let claims =
            |fake: &&Fake| fake.requests().iter().any(|(_, body)| *body == RequestBody::Claim);
        from.push(fakes.iter().position(claims).unwrap());
        client::close(fd).unwrap();
        fakes.iter().for_each(|fake| drop(fake.requests()));
    }
    assert_eq!(from, [1, 2, 0, 1, 2, 0]);
    assert_eq!(client::accept(listener.0, 0).err(), Some(Errno::EAGAIN));
    close_listener(fakes, listener);
}

#[test]
fn a_blocking_accept_is_woken_by_every_server() {
    let (fakes, _turn) = start();
    for limit_ms in [0, i64::from(PATIENCE_MS)] {
        let listener = accepting(fakes, false);
        let limit = [limit_ms / 1000, 0i64].map(i64::to_ne_bytes).concat();
        client::setsockopt(listener.0, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit).unwrap();
        for fake in fakes {
            let thread = Sleeper::asleep(move || client::accept(listener.0, 0).unwrap().0);
            fake.arrive(listener.1, b"");
            let fd = thread.join().unwrap();
            client::close(fd).unwrap();
        }
        close_listener(fakes, listener);
    }
}

#[test]
fn waits_see_a_listener_and_connections_of_all_servers() {
    let (fakes, _turn) = start();
    let listener = accepting(fakes, true);
    let set = epoll();
    control_epoll(set, EPOLL_CTL_ADD, listener.0, EPOLLIN, 100).unwrap();
    let mut connections = Vec::new();
    for (number, fake) in fakes.iter().enumerate() {
        let fake: &'static Fake = fake;
        let later = once_asleep(move || fake.arrive(listener.1, b""));
        assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(IN, 100)], "server {number}");
        let slot = later.join().unwrap();
        let (fd, _) = client::accept(listener.0, 0).unwrap();
        control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN, number as u64).unwrap();
        assert_eq!(epoll_wait(set, 8, 0), []);
        connections.push((fd, slot, fake));
    }
    for (number, (fd, slot, fake)) in connections.iter().copied().enumerate() {
        let later = once_asleep(move || fake.deliver(slot, b"news"));
        assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(IN, number as u64)]);
        later.join().unwrap();
        assert_eq!(receive(fd).unwrap(), b"news");
    }
    // And so does poll.
    let all = connections.iter().map(|(fd, ..)| *fd).chain([listener.0]);
    let mut fds: Vec<PollFd> =
        all.map(|fd| PollFd { fd, events: libc::POLLIN, revents: 0 }).collect();
    for (at, (fd, slot, fake)) in connections.iter().copied().enumerate() {
        let later = once_asleep(move || fake.deliver(slot, b"more"));
        assert_eq!(poll(&mut fds, Some(PATIENCE)), Ok(1));
        later.join().unwrap();
        let ready: Vec<bool> = fds.iter().map(|fd| fd.revents != 0).collect();
        assert_eq!(ready.iter().position(|ready| *ready), Some(at));
        assert_eq!(receive(fd).unwrap(), b"more");
    }
    // A repeated wait tells the servers nothing.
    fakes.iter().for_each(|fake| drop(fake.requests()));
    for _ in 0..3 {
        assert_eq!(poll(&mut fds, Some(Duration::from_millis(5))), Ok(0));
        assert_eq!(epoll_wait(set, 8, 5), []);
    }
    for fake in fakes {
        assert_eq!(fake.requests(), []);
    }
    for fd in connections.iter().map(|(fd, ..)| *fd).chain([listener.0, set]) {
        client::close(fd).unwrap();
    }
}

/// One server dies and another takes its place, while a program waits in `epoll_wait`.
fn death_of(server: usize) {
    let (fakes, _turn) = start();
    let listener = accepting(fakes, true);
    let connections: Vec<(i32, u32)> =
        fakes.iter().map(|fake| accepted(fake, listener, b"early")).collect();
    let set = epoll();
    for (number, (fd, _)) in connections.iter().enumerate() {
        control_epoll(set, EPOLL_CTL_ADD, *fd, EPOLLIN, number as u64).unwrap();
        assert_eq!(receive(*fd).unwrap(), b"early");
    }
    control_epoll(set, EPOLL_CTL_ADD, listener.0, EPOLLIN, 100).unwrap();
    assert_eq!(epoll_wait(set, 8, 0), []);
    fakes.iter().for_each(|fake| drop(fake.requests()));
    let fake = fakes[server];
    let later = once_asleep(move || fake.die());
    // Its connection has failed, and nothing else has.
    let events = epoll_wait(set, 8, PATIENCE_MS);
    assert_eq!(events.iter().map(|event| event.1).collect::<Vec<_>>(), [server as u64]);
    later.join().unwrap();
    for (number, (fd, slot)) in connections.iter().enumerate() {
        if number == server {
            assert_eq!(receive(*fd), Err(Errno::ECONNRESET));
            client::close(*fd).unwrap();
        } else {
            fakes[number].deliver(*slot, b"later");
            until(|| epoll_wait(set, 8, 1000).contains(&(IN, number as u64)));
            assert_eq!(receive(*fd).unwrap(), b"later");
            let sent = client::send(*fd, &[IoSlice::new(b"answer")], 0);
            assert_eq!(sent, Ok(6));
            assert_eq!(fakes[number].sent(*slot), b"answer");
        }
    }
    // The others go on accepting meanwhile.
    for (number, fake) in fakes.iter().enumerate().filter(|(number, _)| *number != server) {
        fake.arrive(listener.1, b"");
        assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(IN, 100)], "{number} without {server}");
        let (fd, _) = client::accept(listener.0, 0).unwrap();
        client::close(fd).unwrap();
    }
    fake.rise();
    until(|| {
        epoll_wait(set, 8, 1);
        fake.listens(listener.1)
    });
    // The home is told once more who accepts, as it may have found no way to us.
    until(|| {
        epoll_wait(set, 8, 1);
        fakes[HOME].requests().iter().any(is_acceptor)
    });
    if server != HOME {
        fake.accept_for_home(listener.1);
    }
    fake.arrive(listener.1, b"new");
    assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(IN, 100)]);
    let (fd, _) = client::accept(listener.0, 0).unwrap();
    assert_eq!(receive(fd).unwrap(), b"new");
    client::close(fd).unwrap();
    for (number, (fd, _)) in connections.iter().enumerate() {
        if number != server {
            client::close(*fd).unwrap();
        }
    }
    close_listener(fakes, listener);
    client::close(set).unwrap();
}

#[test]
fn the_death_of_the_first_server_ends_its_own_alone() {
    death_of(0);
}

#[test]
fn the_death_of_the_home_ends_its_own_alone() {
    death_of(HOME);
}

#[test]
fn the_death_of_another_server_ends_its_own_alone() {
    death_of(2);
}

#[test]
fn a_blocking_accept_outlives_every_server() {
    let (fakes, _turn) = start();
    let listener = accepting(fakes, false);
    for (server, fake) in fakes.iter().enumerate() {
        let thread = Sleeper::asleep(move || client::accept(listener.0, 0).unwrap().0);
        fake.die();
        thread.wait();
        fake.rise();
        until(|| fake.listens(listener.1));
        if server != HOME {
            fake.accept_for_home(listener.1);
        } else {
            until(|| fake.requests().iter().any(is_acceptor));
        }
        fake.arrive(listener.1, b"");
        client::close(thread.join().unwrap()).unwrap();
    }
    close_listener(fakes, listener);
}

#[test]
fn a_server_that_is_dead_gets_the_listener_when_it_is_back() {
    let (fakes, _turn) = start();
    fakes[2].die();
    let listener = support::listener(true);
    assert_eq!([0, 1].map(|server| fakes[server].count(listener.1)), [1, 1]);
    fakes[2].rise();
    until(|| {
        let mut fds = [PollFd { fd: listener.0, events: libc::POLLIN, revents: 0 }];
        assert_eq!(poll(&mut fds, Some(Duration::ZERO)), Ok(0));
        fakes.iter().all(|fake| fake.count(listener.1) == 1)
    });
    close_listener(fakes, listener);
}

#[test]
fn calls_that_open_something_outlive_the_server_that_dies_over_them() {
    let (fakes, _turn) = start();
    let stream = || client::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    let any = "198.18.0.2:0".parse().unwrap();
    for server in 0..fakes.len() {
        // Over bind at server 0, over listen at the others.
        let death = fakes[server].die_over_the_next_request();
        let fd = stream();
        client::bind(fd, any).unwrap();
        client::listen(fd, 5).unwrap();
        let port = client::local_address(fd).unwrap().port();
        death.join().unwrap();
        until(|| {
            let mut fds = [PollFd { fd, events: libc::POLLIN, revents: 0 }];
            assert_eq!(poll(&mut fds, Some(Duration::ZERO)), Ok(0));
            fakes.iter().all(|fake| fake.count(port) == 1 && fake.listens(port))
        });
        close_listener(fakes, (fd, port));
    }
    let fd = stream();
    client::bind(fd, any).unwrap();
    let death = fakes[0].die_over_the_next_request();
    client::listen(fd, 5).unwrap();
    let port = client::local_address(fd).unwrap().port();
    death.join().unwrap();
    assert!(fakes.iter().all(|fake| fake.count(port) == 1 && fake.listens(port)));
    close_listener(fakes, (fd, port));
    let death = fakes[HOME].die_over_the_next_request();
    let fd = client::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    client::bind(fd, any).unwrap();
    death.join().unwrap();
    assert_eq!(fakes[HOME].count(client::local_address(fd).unwrap().port()), 1);
    client::close(fd).unwrap();
}

#[test]
fn memory_that_goes_with_its_server_is_a_failed_connection() {
    let (fakes, _turn) = start();
    let home = fakes[HOME];
    // Nothing of the next one is mapped.
    home.die();
    home.rise();
    let fd = client::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).unwrap();
    let outcome = client::connect(fd, "198.18.0.1:4002".parse().unwrap());
    assert_eq!(outcome, Err(Errno::EINPROGRESS));
    let slot = home.attempt();
    home.establish(slot);
    home.deliver(slot, b"never read");
    let death = home.die_over_the_next_message();
    assert_eq!(receive(fd), Err(Errno::ECONNRESET));
    death.join().unwrap();
    client::close(fd).unwrap();
}

#[test]
fn a_server_that_dies_while_sockets_are_restored_cuts_nobody_off() {
    let (fakes, _turn) = start();
    let home = fakes[HOME];
    let bound = || {
        let fd = client::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        client::bind(fd, "198.18.0.2:0".parse().unwrap()).unwrap();
        (fd, client::local_address(fd).unwrap().port())
    };
    let before: Vec<(i32, u16)> = (0..4).map(|_| bound()).collect();
    home.die();
    home.rise();
    // Over the first of them, which is opened again before anything else is asked.
    let death = home.die_over_the_next_request();
    let after = bound();
    death.join().unwrap();
    assert_eq!(home.count(after.1), 1);
    for (fd, port) in before {
        // What has not come back by itself does so with the first call.
        until(|| {
            let (data, peer) = ([IoSlice::new(b"x")], "198.18.0.1:9".parse().unwrap());
            let control = client::SendControl::default();
            let sent = client::send_to(fd, &data, libc::MSG_DONTWAIT, Some(peer), &control);
            sent.is_ok() && home.count(port) == 1
        });
        client::close(fd).unwrap();
    }
    client::close(after.0).unwrap();
}

#[test]
fn calls_follow_answers_that_name_another_server() {
    let (fakes, _turn) = start();
    // A connection whose flow is another's, with options that must be there before it.
    for early in [false, true] {
        fakes[HOME].redirect(4001, 2);
        let fd = client::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).unwrap();
        if early {
            let small = 9000i32.to_ne_bytes();
            client::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &small).unwrap();
        }
        let outcome = client::connect(fd, "198.18.0.1:4001".parse().unwrap());
        assert_eq!(outcome, Err(Errno::EINPROGRESS));
        let slot = fakes[2].attempt();
        fakes[2].establish(slot);
        until(|| client::remote_address(fd).is_ok());
        fakes[2].deliver(slot, b"there");
        assert_eq!(receive(fd).unwrap(), b"there");
        client::close(fd).unwrap();
        assert!(!fakes[2].knows(slot));
    }
    // A bound socket goes along.
    fakes[0].redirect(4002, 2);
    let fd = client::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).unwrap();
    client::bind(fd, "198.18.0.2:5555".parse().unwrap()).unwrap();
    assert_eq!((fakes[0].count(5555), fakes[2].count(5555)), (1, 0));
    let outcome = client::connect(fd, "198.18.0.1:4002".parse().unwrap());
    assert_eq!(outcome, Err(Errno::EINPROGRESS));
    assert_eq!(fakes[0].count(5555), 0);
    let slot = fakes[2].attempt();
    fakes[2].establish(slot);
    client::close(fd).unwrap();
    assert!(!fakes[2].knows(slot));
    // UDP by its port.
    fakes[HOME].redirect(5353, 0);
    let fd = client::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    client::bind(fd, "198.18.0.2:5353".parse().unwrap()).unwrap();
    assert_eq!((fakes[0].count(5353), fakes[HOME].count(5353)), (1, 0));
    client::close(fd).unwrap();
    assert_eq!(fakes[0].count(5353), 0);
}

#[test]
fn servers_that_send_a_call_to_and_fro_are_not_believed_for_ever() {
    let (fakes, _turn) = start();
    fakes[HOME].redirect(4003, 2);
    fakes[2].redirect(4003, HOME as u16);
    let fd = client::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    let outcome = client::connect(fd, "198.18.0.1:4003".parse().unwrap());
    assert_eq!(outcome, Err(Errno::EHOSTUNREACH));
    fakes[0].redirect(4004, 77);
    let outcome = client::bind(fd, "198.18.0.2:4004".parse().unwrap());
    assert!(outcome.is_err());
    client::close(fd).unwrap();
}

#[test]
fn a_socket_from_elsewhere_is_found_at_the_server_that_has_it() {
    let (fakes, _turn) = start();
    // As another process of the domain would have made them.
    let connection = {
        fakes[HOME].redirect(4005, 2);
        let fd = client::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).unwrap();
        let outcome = client::connect(fd, "198.18.0.1:4005".parse().unwrap());
        assert_eq!(outcome, Err(Errno::EINPROGRESS));
        fd
    };
    let slot = fakes[2].attempt();
    fakes[2].establish(slot);
    let listener = support::listener(true);
    for fd in [connection, listener.0] {
        client::share(fd);
    }
    for fake in fakes {
        let listener = fake.listener(listener.1);
        assert!(fake.cookie(listener).is_some());
    }
    let copies = [connection, listener.0].map(|fd| sys::dup_lowest(fd, true).unwrap());
    for fd in copies {
        client::adopt(fd);
        assert!(client::is_haypile(fd));
    }
    fakes[2].deliver(slot, b"for the copy");
    assert_eq!(receive(copies[0]).unwrap(), b"for the copy");
    let mut fds = [PollFd { fd: copies[1], events: libc::POLLIN, revents: 0 }];
    assert_eq!(poll(&mut fds, Some(Duration::ZERO)), Ok(0));
    fakes[2].accept_for_home(listener.1);
    fakes[2].arrive(listener.1, b"");
    client::close(listener.0).unwrap();
    let (fd, _) = client::accept(copies[1], 0).unwrap();
    for fd in [fd, connection, copies[0], copies[1]] {
        client::close(fd).unwrap();
    }
}
