//! A doorbell whose number the program has closed and used again, past the library. In a process of its own: to the
//! library its server is gone then.

mod support;

use haypile_client as client;
use haypile_shm::sys;
use support::asleep::Sleeper;

#[test]
fn a_bell_closed_behind_our_back_takes_nothing_from_a_stranger() {
    let (fake, _turn) = support::start();
    let listener = support::listener(true);
    let (fd, slot) = support::accepted(fake, listener, 0, b"");
    let own = || (0..70_000).filter(|fd| client::is_internal(*fd)).collect::<Vec<i32>>();
    let (before, set) = (own(), support::epoll());
    support::control_epoll(set, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN, 1).unwrap();
    let bell = own().into_iter().find(|fd| !before.contains(fd)).unwrap();
    // As a fork leaves it: the kernel's set knows the bell as long as a copy of it lives, by its old number.
    client::before_fork();
    client::after_fork_in_parent();
    let _copy = sys::dup_lowest(bell, true).unwrap();
    let (stranger, other_end) = sys::socketpair_stream().unwrap();
    sys::send(other_end.raw(), b"theirs", 0).unwrap();
    sys::dup3(stranger.raw(), bell, 0).unwrap();
    let thread = Sleeper::asleep(move || support::epoll_wait(set, 4, support::PATIENCE_MS));
    fake.deliver(slot, b"x");
    assert_eq!(thread.join().unwrap(), [(libc::EPOLLIN as u32, 1)]);
    let mut bytes = [0; 8];
    assert_eq!(sys::recv(stranger.raw(), &mut bytes, libc::MSG_DONTWAIT), Ok(6));
}
