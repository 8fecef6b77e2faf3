//! A forked child of a process with a service of several servers. (The test goes on as its own
//! child: what the library does after a fork, without the other process.)

mod support;

use std::io::IoSliceMut;
use std::time::Duration;

use haypile_client as client;
use haypile_shm::messages::RequestBody;
use haypile_shm::sys::PollFd;
use support::poll;

fn receive(fd: i32) -> Vec<u8> {
    let mut out = vec![0; 100];
    let got = client::receive(fd, &mut [IoSliceMut::new(&mut out)], libc::MSG_DONTWAIT).unwrap();
    out.truncate(got);
    out
}

fn counts(fakes: &[&support::Fake]) -> Vec<usize> {
    fakes.iter().map(|fake| fake.processes()).collect()
}

#[test]
fn a_child_has_a_home_of_its_own_and_goes_on_with_what_it_inherited() {
    let (fakes, _turn) = support::start_several(3, 1);
    // The program before this one in the process is over at the other servers.
    for (server, fake) in fakes.iter().enumerate().filter(|(server, _)| *server != 1) {
        let mut told = Vec::new();
        while told.is_empty() {
            std::thread::yield_now();
            told.extend(fake.new_programs());
        }
        assert_eq!(told.len(), 1, "server {server}");
        assert_eq!(told[0] >> 32, 1, "the name has the home in it");
    }
    assert!(fakes[1].new_programs().is_empty());
    let listener = support::listener(true);
    let look = || {
        let mut fds = [PollFd { fd: listener.0, events: libc::POLLIN, revents: 0 }];
        poll(&mut fds, Some(Duration::ZERO))
    };
    assert_eq!(look(), Ok(0));
    fakes[2].accept_for_home(listener.1);
    let slot = fakes[2].arrive(listener.1, b"");
    let (connection, _) = client::accept(listener.0, 0).unwrap();
    let processes: Vec<usize> = fakes.iter().map(|fake| fake.processes()).collect();
    assert_eq!(processes, [1, 1, 1]);
    for fake in fakes {
        fake.requests();
    }

    // Whatever server 0 would say: a child with a connection is at home where that is.
    fakes[0].send_home(1);
    client::before_fork();
    client::after_fork_in_child();

    for fake in fakes {
        let shared = |body: &RequestBody| matches!(body, RequestBody::Shared { .. });
        assert!(fake.requests().iter().any(|(_, body)| shared(body)));
    }
    // The connection would survive exec, so that its server is known already.
    fakes[2].deliver(slot, b"for the child");
    assert_eq!(receive(connection), b"for the child");
    assert_eq!(counts(fakes), [1, 1, 2]);
    // Accepting takes it to all.
    assert_eq!(look(), Ok(0));
    assert_eq!(counts(fakes), [2, 2, 2]);
    let acceptor = |fake: &&support::Fake| {
        fake.requests().iter().any(|(_, body)| *body == RequestBody::Acceptor)
    };
    assert_eq!(fakes.iter().map(acceptor).collect::<Vec<_>>(), [false, false, true]);
    for fake in [fakes[0], fakes[1]] {
        fake.accept_for_home(listener.1);
        fake.arrive(listener.1, b"x");
        let (fd, _) = client::accept(listener.0, 0).unwrap();
        assert_eq!(receive(fd), b"x");
        client::close(fd).unwrap();
    }
    client::close(connection).unwrap();
    client::close(listener.0).unwrap();
}
