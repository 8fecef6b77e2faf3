//! Connections that move between the servers of a service while a program uses them, which notices nothing.

mod support;

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use haypile_client::{self as client, Errno};
use haypile_shm::messages::RequestBody;
use haypile_shm::sys::{self, PollFd};
use libc::{EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLET, EPOLLIN, EPOLLONESHOT, EPOLLOUT};
use support::asleep::{Sleeper, once_asleep};
use support::{Fake, PATIENCE, PATIENCE_MS, control_epoll, epoll, epoll_wait, poll};

const SERVERS: u16 = 3;
const HOME: usize = 1;
const IN: u32 = EPOLLIN as u32;
const OUT: u32 = EPOLLOUT as u32;

type Turn = std::sync::MutexGuard<'static, ()>;

fn start() -> (&'static [&'static Fake], Turn) {
    support::start_several(SERVERS, HOME as u16)
}

fn receive(fd: i32, len: usize, flags: i32) -> Result<Vec<u8>, Errno> {
    let mut out = vec![0; len];
    let got = client::receive(fd, &mut [IoSliceMut::new(&mut out)], flags)?;
    out.truncate(got);
    Ok(out)
}

fn look(fd: i32) -> Result<Vec<u8>, Errno> {
    receive(fd, 1000, libc::MSG_DONTWAIT)
}

fn send(fd: i32, data: &[u8]) -> Result<usize, Errno> {
    client::send(fd, &[IoSlice::new(data)], 0)
}

fn until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < PATIENCE, "it never happened");
        std::thread::yield_now();
    }
}

/// A connection that blocks, at a server; its descriptor and slot.
fn connection(fakes: &[&'static Fake], server: usize) -> (i32, u32) {
    let fd = client::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).unwrap();
    let port = 6000 + server as u16;
    if server != HOME {
        fakes[HOME].redirect(port, server as u16);
    }
    let remote = format!("198.18.0.1:{port}").parse().unwrap();
    assert_eq!(client::connect(fd, remote), Err(Errno::EINPROGRESS));
    let slot = fakes[server].attempt();
    fakes[server].establish(slot);
    client::set_nonblocking(fd, false).unwrap();
    fakes.iter().for_each(|fake| drop(fake.requests()));
    (fd, slot)
}

fn is_told(fake: &Fake, what: impl Fn(&RequestBody) -> bool) -> bool {
    fake.requests().iter().any(|(_, body)| what(body))
}

#[test]
fn bytes_of_both_directions_go_on_where_the_connection_is() {
    let (fakes, _turn) = start();
    for server in 0..fakes.len() {
        let (fd, slot) = connection(fakes, server);
        let to = fakes[(server + 1) % 3];
        fakes[server].deliver(slot, b"unread and ");
        fakes[server].acknowledge(false);
        assert_eq!(send(fd, b"not acknowledged, "), Ok(18));
        assert_eq!(client::unsent_bytes(fd), Ok(18));
        let there = fakes[server].move_to(slot, to);
        fakes[server].acknowledge(true);
        to.deliver(there, b"new");
        assert!(!to.is_arrived(there));
        assert_eq!(look(fd).unwrap(), b"unread and new");
        assert!(to.is_arrived(there));
        assert!(is_told(fakes[server], |body| *body == RequestBody::Left));
        assert!(!fakes[server].knows(slot));
        assert_eq!(send(fd, b"written there"), Ok(13));
        assert_eq!(to.sent(there), b"not acknowledged, written there");
        assert_eq!(look(fd), Err(Errno::EAGAIN));
        to.finish(there);
        assert_eq!(look(fd).unwrap(), b"");
        client::close(fd).unwrap();
        assert!(!to.knows(there));
    }
}

#[test]
fn whatever_is_called_first_finds_the_connection() {
    let (fakes, _turn) = start();
    type Call = fn(i32);
    let calls: [Call; 14] = [
        |fd| assert_eq!(receive(fd, 3, libc::MSG_PEEK).unwrap(), b"abc"),
        |fd| assert_eq!(client::discard(fd, 2, 0), Ok(2)),
        |fd| assert_eq!(receive(fd, 9, libc::MSG_WAITALL).unwrap(), b"abcdefghi"),
        |fd| assert_eq!(client::readable_bytes(fd), Ok(9)),
        |fd| assert_eq!(client::unsent_bytes(fd), Ok(4)),
        |fd| assert_eq!(send(fd, b"more"), Ok(4)),
        |fd| assert!(client::remote_address(fd).is_ok()),
        |fd| assert_eq!(client::local_address(fd), Ok("198.18.0.2:50000".parse().unwrap())),
        |fd| {
            let mut value = [0; 4];
            let got = client::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &mut value);
            assert_eq!((got, value), (Ok(4), 1i32.to_ne_bytes()));
        },
        |fd| {
            let mut value = [0; 104];
            let got = client::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut value);
            assert_eq!(got, Ok(4));
        },
        |fd| {
            let mut value = [9; 4];
            let got = client::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, &mut value);
            assert_eq!((got, value), (Ok(4), [0; 4]));
        },
        |fd| {
            let again = client::connect(fd, "198.18.0.1:6001".parse().unwrap());
            assert!(matches!(again, Ok(()) | Err(Errno::EISCONN)), "{again:?}");
        },
        |fd| {
            let mut fds = [PollFd { fd, events: libc::POLLIN | libc::POLLOUT, revents: 0 }];
            assert_eq!(poll(&mut fds, Some(Duration::ZERO)), Ok(1));
            assert_eq!(fds[0].revents, libc::POLLIN | libc::POLLOUT);
        },
        |fd| {
            let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
            assert_eq!(client::send_file(fd, file.as_raw_fd(), 0, 5).unwrap().0, 5);
        },
    ];
    for (number, call) in calls.into_iter().enumerate() {
        let (fd, slot) = connection(fakes, HOME);
        fakes[HOME].deliver(slot, b"abcdefghi");
        fakes[HOME].acknowledge(false);
        assert_eq!(send(fd, b"four"), Ok(4));
        let there = fakes[HOME].move_to(slot, fakes[2]);
        fakes[HOME].acknowledge(true);
        call(fd);
        // Everything is in order afterwards, whether it was needed to know where it is or not.
        fakes[2].deliver(there, b"!");
        until(|| look(fd).is_ok_and(|bytes| bytes.ends_with(b"!")));
        assert!(fakes[2].is_arrived(there) && !fakes[HOME].knows(slot), "call {number}");
        client::close(fd).unwrap();
        assert!(!fakes[2].knows(there));
    }
}

#[test]
fn notices_to_the_old_server_are_handed_on() {
    let (fakes, _turn) = start();
    let on = 1i32.to_ne_bytes();
    for moved in [false, true] {
        let (fd, slot) = connection(fakes, HOME);
        fakes[HOME].freeze(slot);
        let hand_over = || fakes[HOME].hand_over(slot, fakes[0]);
        let early = moved.then(hand_over);
        client::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &on).unwrap();
        if !moved {
            // Half-way, so that nothing is known of the new place.
            client::shutdown(fd, libc::SHUT_WR).unwrap();
            drop(fakes[HOME].requests());
        }
        let there = early.unwrap_or_else(hand_over);
        if moved {
            client::shutdown(fd, libc::SHUT_WR).unwrap();
        }
        drop(fakes[HOME].requests());
        let told = fakes[0].requests();
        let has = |what: fn(&RequestBody) -> bool| told.iter().any(|(_, body)| what(body));
        assert!(has(|body| matches!(body, RequestBody::SetOption { value: 1, .. })), "{told:?}");
        assert!(has(|body| matches!(body, RequestBody::Shutdown { .. })), "{told:?}");
        assert_eq!(send(fd, b"x"), Err(Errno::EPIPE));
        client::close(fd).unwrap();
        drop(fakes[HOME].requests());
        assert!(!fakes[0].knows(there) && !fakes[HOME].knows(slot));
    }
}

#[test]
fn blocked_calls_go_on_waiting_where_the_connection_is() {
    let (fakes, _turn) = start();
    let limit = [60i64, 0].map(i64::to_ne_bytes).concat();
    for limited in [false, true] {
        let (fd, mut slot) = connection(fakes, HOME);
        if limited {
            client::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit).unwrap();
        }
        let thread = Sleeper::asleep(move || receive(fd, 6, libc::MSG_WAITALL));
        for turn in 0..6 {
            let (from, to) = (fakes[(HOME + turn) % 3], fakes[(HOME + turn + 1) % 3]);
            slot = from.move_to(slot, to);
            until(|| to.is_arrived(slot));
            thread.wait();
            to.deliver(slot, &[b'a' + turn as u8]);
            if turn < 5 {
                thread.wait();
            }
        }
        assert_eq!(thread.join().unwrap().unwrap(), b"abcdef");
        client::close(fd).unwrap();
    }
}

#[test]
fn the_time_limit_of_a_blocked_call_is_what_it_was() {
    let (fakes, _turn) = start();
    let (fd, slot) = connection(fakes, HOME);
    let limit = [0i64, 300_000].map(i64::to_ne_bytes).concat();
    client::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit).unwrap();
    let started = Instant::now();
    let thread = Sleeper::asleep(move || receive(fd, 6, 0));
    fakes[HOME].move_to(slot, fakes[0]);
    assert_eq!(thread.join().unwrap(), Err(Errno::EAGAIN));
    assert!(started.elapsed() >= Duration::from_millis(300));
    client::close(fd).unwrap();
}

#[test]
fn a_blocked_writer_and_a_blocked_reader_follow_together() {
    let (fakes, _turn) = start();
    let (fd, mut slot) = connection(fakes, HOME);
    let data: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    let sent = data.clone();
    let reader = Sleeper::asleep(move || receive(fd, 5, libc::MSG_WAITALL));
    let writer = Sleeper::start(move || send(fd, &sent));
    let mut came = Vec::new();
    let mut at = HOME;
    let start = Instant::now();
    while came.len() < data.len() {
        assert!(start.elapsed() < PATIENCE, "{} bytes came", came.len());
        let to = (at + 1) % 3;
        slot = fakes[at].move_to(slot, fakes[to]);
        at = to;
        came.extend(fakes[at].sent(slot));
        until(|| fakes[at].is_arrived(slot));
        fakes[at].poke();
    }
    assert_eq!(writer.join().unwrap(), Ok(data.len()));
    assert!(came == data);
    fakes[at].deliver(slot, b"hello");
    assert_eq!(reader.join().unwrap().unwrap(), b"hello");
    client::close(fd).unwrap();
}

#[test]
fn a_frozen_connection_is_waited_for_even_by_calls_that_do_not_block() {
    let (fakes, _turn) = start();
    for stays in [false, true] {
        let (fd, slot) = connection(fakes, HOME);
        fakes[HOME].deliver(slot, b"early");
        fakes[HOME].freeze(slot);
        let reader = std::thread::spawn(move || look(fd));
        let writer = std::thread::spawn(move || {
            client::send(fd, &[IoSlice::new(b"word")], libc::MSG_DONTWAIT)
        });
        // Longer than anybody would have to be patient with another process.
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!reader.is_finished() && !writer.is_finished());
        let (server, slot) = match stays {
            false => (fakes[2], fakes[HOME].hand_over(slot, fakes[2])),
            true => {
                fakes[HOME].thaw(slot);
                (fakes[HOME], slot)
            }
        };
        assert_eq!(reader.join().unwrap().unwrap(), b"early");
        assert_eq!(writer.join().unwrap(), Ok(4));
        assert_eq!(server.sent(slot), b"word");
        client::close(fd).unwrap();
    }
}

#[test]
fn a_server_that_dies_with_a_frozen_connection_is_no_reason_to_try_again() {
    let (fakes, _turn) = start();
    for flags in [0, libc::MSG_PEEK] {
        let (fd, slot) = connection(fakes, HOME);
        fakes[HOME].freeze(slot);
        let reader = Sleeper::asleep(move || receive(fd, 10, flags));
        let writer = Sleeper::asleep(move || send(fd, b"word"));
        fakes[HOME].die();
        fakes[HOME].rise();
        let outcomes = [reader.join().unwrap().map(drop), writer.join().unwrap().map(drop)];
        let told = |outcome: &Result<(), Errno>| *outcome == Err(Errno::ECONNRESET);
        assert!(outcomes.iter().any(told), "{outcomes:?}");
        assert!(!outcomes.contains(&Err(Errno::EAGAIN)), "{outcomes:?}");
        client::close(fd).unwrap();
    }
}

#[test]
fn a_question_about_an_option_waits_for_the_move() {
    let (fakes, _turn) = start();
    let (fd, slot) = connection(fakes, HOME);
    fakes[HOME].freeze(slot);
    let asker = Sleeper::start(move || {
        let mut value = [0; 4];
        client::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &mut value).map(|_| value)
    });
    asker.wait();
    fakes[HOME].hand_over(slot, fakes[0]);
    assert_eq!(asker.join().unwrap(), Ok(1i32.to_ne_bytes()));
    client::close(fd).unwrap();
}

#[test]
fn an_epoll_set_hears_of_the_connection_where_it_is() {
    let (fakes, _turn) = start();
    for (number, extra) in [0, EPOLLET, EPOLLONESHOT].into_iter().enumerate() {
        let (fd, mut slot) = connection(fakes, HOME);
        let copy = client::duplicate(fd, 0, true).unwrap();
        let (set, other) = (epoll(), epoll());
        control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN | extra, 1).unwrap();
        control_epoll(other, EPOLL_CTL_ADD, copy, EPOLLIN, 2).unwrap();
        assert_eq!(epoll_wait(set, 8, 0), []);
        assert_eq!(epoll_wait(other, 8, 0), []);
        let mut at = HOME;
        for turn in 0..5 {
            let (from, to) = (fakes[at], fakes[(at + 1) % 3]);
            at = (at + 1) % 3;
            let mover = once_asleep(move || {
                let there = from.move_to(slot, to);
                // Nobody touches it but the set.
                until(|| to.is_arrived(there));
                to.deliver(there, b"news");
                there
            });
            assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(IN, 1)], "{number} turn {turn}");
            slot = mover.join().unwrap();
            assert_eq!(epoll_wait(other, 8, PATIENCE_MS), [(IN, 2)]);
            assert_eq!(look(copy).unwrap(), b"news");
            assert_eq!(epoll_wait(set, 8, 0), []);
            assert_eq!(epoll_wait(other, 8, 0), []);
            if extra == EPOLLONESHOT {
                control_epoll(set, EPOLL_CTL_MOD, fd, EPOLLIN | extra, 1).unwrap();
                assert_eq!(epoll_wait(set, 8, 0), []);
            }
            // What it hears of from now on comes from the new one alone.
            fakes[at].deliver(slot, b"more");
            assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(IN, 1)]);
            assert_eq!(look(fd).unwrap(), b"more");
            if extra == EPOLLONESHOT {
                control_epoll(set, EPOLL_CTL_MOD, fd, EPOLLIN | extra, 1).unwrap();
            }
            assert_eq!(epoll_wait(other, 8, 0), []);
            assert_eq!(epoll_wait(set, 8, 0), []);
        }
        for fd in [fd, copy, set, other] {
            client::close(fd).unwrap();
        }
        assert!(!fakes[at].knows(slot));
    }
}

#[test]
fn a_disarmed_registration_is_at_the_right_server_once_it_is_armed() {
    let (fakes, _turn) = start();
    let (fd, slot) = connection(fakes, HOME);
    let set = epoll();
    control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLONESHOT, 1).unwrap();
    fakes[HOME].deliver(slot, b"x");
    assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(IN, 1)]);
    assert_eq!(look(fd).unwrap(), b"x");
    let there = fakes[HOME].move_to(slot, fakes[0]);
    // Somebody else follows.
    assert_eq!(look(fd), Err(Errno::EAGAIN));
    assert_eq!(epoll_wait(set, 8, 0), []);
    control_epoll(set, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT, 1).unwrap();
    let later = once_asleep(move || fakes[0].deliver(there, b"y"));
    assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(IN, 1)]);
    later.join().unwrap();
    control_epoll(set, EPOLL_CTL_MOD, fd, EPOLLOUT, 3).unwrap();
    assert_eq!(epoll_wait(set, 8, PATIENCE_MS), [(OUT, 3)]);
    client::close(fd).unwrap();
    client::close(set).unwrap();
}

#[test]
fn a_poll_hears_of_the_connection_where_it_is() {
    let (fakes, _turn) = start();
    let (fd, mut slot) = connection(fakes, HOME);
    let (still, still_slot) = connection(fakes, 2);
    for turn in 0..6 {
        let (from, to) = (fakes[(HOME + turn) % 3], fakes[(HOME + turn + 1) % 3]);
        let mover = once_asleep(move || {
            let there = from.move_to(slot, to);
            until(|| to.is_arrived(there));
            std::thread::yield_now();
            to.deliver(there, b"news");
            there
        });
        let mut fds = [still, fd].map(|fd| PollFd { fd, events: libc::POLLIN, revents: 0 });
        assert_eq!(poll(&mut fds, Some(PATIENCE)), Ok(1));
        assert_eq!(fds[1].revents, libc::POLLIN);
        slot = mover.join().unwrap();
        assert_eq!(look(fd).unwrap(), b"news");
        // A time limit is kept.
        assert_eq!(poll(&mut fds, Some(Duration::from_millis(3))), Ok(0));
    }
    fakes[2].deliver(still_slot, b"other");
    let mut fds = [still, fd].map(|fd| PollFd { fd, events: libc::POLLIN, revents: 0 });
    assert_eq!(poll(&mut fds, Some(PATIENCE)), Ok(1));
    assert_eq!(fds[0].revents, libc::POLLIN);
    for fd in [fd, still] {
        client::close(fd).unwrap();
    }
}

#[test]
fn a_connection_that_has_gone_through_several_servers_is_found() {
    let (fakes, _turn) = start();
    let (fd, slot) = connection(fakes, HOME);
    let second = fakes[HOME].move_to(slot, fakes[2]);
    let third = fakes[2].move_to(second, fakes[0]);
    let back = fakes[0].move_to(third, fakes[HOME]);
    fakes[HOME].deliver(back, b"here");
    assert_eq!(receive(fd, 10, 0).unwrap(), b"here");
    assert!(!fakes[HOME].knows(slot) && !fakes[2].knows(second) && !fakes[0].knows(third));
    client::close(fd).unwrap();
    assert!(!fakes[HOME].knows(back));
}

#[test]
fn the_death_of_the_old_server_does_not_end_what_has_left() {
    let (fakes, _turn) = start();
    for waits in [false, true] {
        let (fd, slot) = connection(fakes, 2);
        let (idle, idle_slot) = connection(fakes, 2);
        let (closed, closed_slot) = connection(fakes, 2);
        let set = epoll();
        control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN, 1).unwrap();
        let there = fakes[2].move_to(slot, fakes[0]);
        let idle_there = fakes[2].move_to(idle_slot, fakes[0]);
        let closed_there = fakes[2].move_to(closed_slot, fakes[0]);
        fakes[2].die();
        client::close(closed).unwrap();
        assert!(!fakes[0].knows(closed_there));
        if !waits {
            fakes[2].rise();
        }
        fakes[0].deliver(there, b"alive");
        until(|| epoll_wait(set, 8, 1000) == [(IN, 1)]);
        assert_eq!(look(fd).unwrap(), b"alive");
        fakes[0].deliver(there, b"well");
        until(|| epoll_wait(set, 8, 1000) == [(IN, 1)]);
        assert_eq!(look(fd).unwrap(), b"well");
        if waits {
            fakes[2].rise();
        }
        // It was looked at by nobody until now.
        client::shutdown(idle, libc::SHUT_WR).unwrap();
        fakes[0].deliver(idle_there, b"too");
        assert_eq!(look(idle).unwrap(), b"too");
        assert!(is_told(fakes[0], |body| matches!(body, RequestBody::Shutdown { .. })));
        for fd in [fd, idle, set] {
            client::close(fd).unwrap();
        }
        assert!(!fakes[0].knows(there) && !fakes[0].knows(idle_there));
    }
}

#[test]
fn a_connection_dies_with_the_server_it_has_gone_to() {
    let (fakes, _turn) = start();
    for rises in [false, true] {
        let (fd, slot) = connection(fakes, HOME);
        let (watched, watched_slot) = connection(fakes, HOME);
        let set = epoll();
        fakes[HOME].move_to(slot, fakes[2]);
        fakes[2].die();
        if rises {
            fakes[2].rise();
        }
        control_epoll(set, EPOLL_CTL_ADD, watched, EPOLLIN, 1).unwrap();
        assert_eq!(epoll_wait(set, 8, 0), []);
        assert_eq!(look(fd), Err(Errno::ECONNRESET));
        assert_eq!(look(fd).unwrap(), b"");
        assert_eq!(send(fd, b"x"), Err(Errno::EPIPE));
        if !rises {
            fakes[2].rise();
        }
        let there = fakes[HOME].move_to(watched_slot, fakes[2]);
        until(|| {
            epoll_wait(set, 8, 10);
            fakes[2].is_arrived(there)
        });
        let blocked = Sleeper::asleep(move || receive(watched, 10, 0));
        let death = once_asleep(move || fakes[2].die());
        let events = epoll_wait(set, 8, PATIENCE_MS);
        assert_eq!(events.iter().map(|event| event.1).collect::<Vec<_>>(), [1]);
        death.join().unwrap();
        assert_eq!(blocked.join().unwrap(), Err(Errno::ECONNRESET));
        fakes[2].rise();
        for fd in [fd, watched, set] {
            client::close(fd).unwrap();
        }
    }
}

#[test]
fn close_lingers_where_the_connection_is() {
    let (fakes, _turn) = start();
    for during in [false, true] {
        let (fd, slot) = connection(fakes, HOME);
        let linger = [1, 60].map(i32::to_ne_bytes).concat();
        client::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger).unwrap();
        fakes[HOME].acknowledge(false);
        fakes[0].acknowledge(false);
        assert_eq!(send(fd, b"last words"), Ok(10));
        let mut there = None;
        if !during {
            there = Some(fakes[HOME].move_to(slot, fakes[0]));
        } else {
            fakes[HOME].freeze(slot);
        }
        let closer = Sleeper::start(move || client::close(fd));
        closer.wait();
        let there = there.unwrap_or_else(|| {
            let there = fakes[HOME].hand_over(slot, fakes[0]);
            until(|| fakes[0].is_arrived(there));
            there
        });
        closer.wait();
        fakes[HOME].acknowledge(true);
        fakes[0].acknowledge(true);
        assert_eq!(fakes[0].sent(there), b"last words");
        // The acknowledgement has come: the program is woken by what else happens there.
        fakes[0].deliver(there, b"");
        closer.join().unwrap().unwrap();
        assert!(!fakes[0].knows(there));
        drop(fakes[HOME].requests());
    }
}

#[test]
fn a_socket_from_elsewhere_is_found_where_it_has_gone() {
    let (fakes, _turn) = start();
    for shared_first in [false, true] {
        let (fd, slot) = connection(fakes, 2);
        if shared_first {
            client::share(fd);
            assert!(fakes[2].cookie(slot).is_some());
        }
        let there = fakes[2].move_to(slot, fakes[0]);
        client::share(fd);
        let copy = sys::dup_lowest(fd, true).unwrap();
        client::adopt(copy);
        assert!(client::is_haypile(copy));
        fakes[0].deliver(there, b"for the copy");
        assert_eq!(look(copy).unwrap(), b"for the copy");
        fakes[0].deliver(there, b"for the first");
        assert_eq!(look(fd).unwrap(), b"for the first");
        assert!(fakes[0].cookie(there).is_some());
        for fd in [fd, copy] {
            client::close(fd).unwrap();
        }
    }
}

#[test]
fn streams_are_whole_while_their_connection_never_rests() {
    let (fakes, _turn) = start();
    let (fd, mut slot) = connection(fakes, HOME);
    let total = 400_000usize;
    let byte = |at: usize| (at * 7 % 253) as u8;
    let writer = std::thread::spawn(move || {
        let mut done = 0;
        while done < total {
            let data: Vec<u8> = (done..(done + 1500).min(total)).map(byte).collect();
            done += send(fd, &data).unwrap();
        }
    });
    let reader = std::thread::spawn(move || {
        let mut done = 0;
        while done < total {
            let got = receive(fd, 4000, 0).unwrap();
            assert!(!got.is_empty(), "an end after {done}");
            assert!(got.iter().enumerate().all(|(at, found)| *found == byte(done + at)));
            done += got.len();
        }
    });
    let set = epoll();
    control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT | EPOLLET, 1).unwrap();
    let (mut came, mut given, mut at) = (Vec::new(), 0, HOME);
    let start = Instant::now();
    while came.len() < total || given < total {
        assert!(start.elapsed() < PATIENCE, "{} came, {given} were given", came.len());
        let next = (given + 3000).min(total);
        fakes[at].deliver(slot, &(given..next).map(byte).collect::<Vec<u8>>());
        given = next;
        let to = (at + 1 + given % 2) % 3;
        slot = fakes[at].move_to(slot, fakes[to]);
        at = to;
        came.extend(fakes[at].sent(slot));
        epoll_wait(set, 8, 0);
        // What the reader has not read must leave room for more.
        until(|| client::readable_bytes(fd).is_ok_and(|waiting| waiting < 200_000));
    }
    writer.join().unwrap();
    reader.join().unwrap();
    assert!(came.iter().enumerate().all(|(at, found)| *found == byte(at)));
    for fd in [fd, set] {
        client::close(fd).unwrap();
    }
    assert!(!fakes[at].knows(slot));
}
