//! UDP sockets against a service without a network, which sends everything back: whose a datagram is,
//! both worlds on one socket, and the flags of the calls.

mod support;

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use haypile_client::{self as client, Arrival, Errno, Received, SendControl, TO_KERNEL};
use haypile_shm::messages::RequestBody;
use haypile_shm::sys::{self, Fd, PollFd};
use libc::{EPOLL_CTL_ADD, EPOLLIN, EPOLLOUT};
use support::asleep::Sleeper;
use support::{PATIENCE, control_epoll, epoll, epoll_wait};

const PEER: &str = "198.18.0.9:53";

fn socket(kind: i32) -> i32 {
    client::socket(libc::AF_INET, libc::SOCK_DGRAM | kind, 0).unwrap()
}

fn bound(address: &str, kind: i32) -> i32 {
    let fd = socket(kind);
    client::bind(fd, address.parse().unwrap()).unwrap();
    fd
}

fn send_to(fd: i32, data: &[u8], remote: &str, flags: i32) -> Result<usize, Errno> {
    let remote: Option<SocketAddr> = (!remote.is_empty()).then(|| remote.parse().unwrap());
    client::send_to(fd, &[IoSlice::new(data)], flags, remote, &SendControl::default())
}

/// A receive with the kernel's own calls behind it.
fn receive(fd: i32, room: usize, flags: i32) -> Result<(Received, Vec<u8>), Errno> {
    let mut out = vec![0; room];
    let mut by_kernel = vec![0; room];
    let mut kernel = |flags| sys::recv(fd, &mut by_kernel, flags);
    let received = client::receive_from(
        fd,
        &mut [IoSliceMut::new(&mut out)],
        flags,
        &mut kernel,
        &mut client::Plain,
    )?;
    match &received {
        Received::Kernel(len) => by_kernel.truncate(*len),
        Received::Datagram(arrival) => {
            out.truncate(arrival.copied);
            by_kernel = out;
        }
        _ => by_kernel.clear(),
    }
    Ok((received, by_kernel))
}

fn datagram(fd: i32, room: usize, flags: i32) -> (Arrival, Vec<u8>) {
    match receive(fd, room, flags).unwrap() {
        (Received::Datagram(arrival), bytes) => (arrival, bytes),
        (other, _) => panic!("{other:?}"),
    }
}

/// As kernels before 4.7: programs that ask do without.
#[test]
fn looks_that_go_on_are_refused() {
    let (_fake, _turn) = support::start();
    let fd = socket(0);
    let set = |value: i32| {
        client::setsockopt(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &value.to_ne_bytes())
    };
    assert_eq!((set(0), set(7)), (Err(Errno::EOPNOTSUPP), Err(Errno::EOPNOTSUPP)));
    assert_eq!(set(-1), Ok(()));
    client::close(fd).unwrap();
}

#[test]
fn datagrams_keep_their_bounds() {
    let (_fake, _turn) = support::start();
    let fd = bound("198.18.0.2:0", 0);
    for data in [&b""[..], b"one", b"another"] {
        assert_eq!(send_to(fd, data, PEER, 0), Ok(data.len()));
    }
    assert_eq!(send_to(fd, &[7; 60_000], PEER, 0), Ok(60_000));
    let (empty, bytes) = datagram(fd, 100, 0);
    assert_eq!((empty.len, bytes.len()), (0, 0));
    assert_eq!(empty.remote, Some(PEER.parse().unwrap()));
    // The echo takes its time: the peek waits for it.
    assert_eq!(datagram(fd, 100, libc::MSG_PEEK).1, b"one");
    assert_eq!(client::readable_bytes(fd), Ok(3));
    assert_eq!(datagram(fd, 100, 0).1, b"one");
    let (cut, bytes) = datagram(fd, 4, 0);
    assert_eq!((cut.len, &bytes[..]), (7, &b"anot"[..]));
    assert_eq!(datagram(fd, 65_536, 0).1, [7; 60_000]);
    assert_eq!(receive(fd, 1, libc::MSG_DONTWAIT).err(), Some(Errno::EAGAIN));
    client::close(fd).unwrap();
}

#[test]
fn a_send_that_blocks_waits_for_the_next_server_as_long_as_one_is_expected() {
    let (fake, _turn) = support::start();
    let fd = bound("198.18.0.2:0", 0);
    assert_eq!(send_to(fd, b"one", PEER, 0), Ok(3));
    fake.die();
    assert_eq!(send_to(fd, b"two", PEER, libc::MSG_DONTWAIT), Err(Errno::EAGAIN));
    let sending = std::thread::spawn(move || send_to(fd, b"three", PEER, 0));
    // Longer than calls that open something wait.
    std::thread::sleep(Duration::from_millis(2_500));
    fake.rise();
    assert_eq!(sending.join().unwrap(), Ok(5));
    client::close(fd).unwrap();
}

/// The server has bound the socket anew and dies before it has connected it: that is done at the next one, and nobody
/// takes the socket for one without a peer meanwhile.
#[test]
fn a_connected_socket_that_was_only_bound_again_is_connected_at_the_next_server() {
    let (fake, _turn) = support::start();
    let fd = socket(0);
    client::connect(fd, PEER.parse().unwrap()).unwrap();
    assert_eq!(send_to(fd, b"one", "", 0), Ok(3));
    fake.die();
    let is_connect = |body: &RequestBody| matches!(body, RequestBody::ConnectDatagram { .. });
    let death = fake.die_over(is_connect);
    fake.rise();
    let mut sent = Err(Errno::EAGAIN);
    let started = Instant::now();
    while sent == Err(Errno::EAGAIN) && started.elapsed() < PATIENCE {
        sent = send_to(fd, b"two", "", libc::MSG_DONTWAIT);
    }
    assert_eq!(sent, Ok(3));
    death.join().unwrap();
    assert_eq!(datagram(fd, 100, 0).1, b"two");
    let connected = RequestBody::ConnectDatagram { remote: Some(PEER.parse().unwrap()) };
    assert!(fake.requests().iter().any(|(_, body)| *body == connected));
    client::close(fd).unwrap();
}

/// Servers die one after the other over the request to open a socket again.
#[test]
fn a_receive_goes_on_however_many_servers_die_over_it() {
    let (fake, _turn) = support::start();
    let fd = bound("198.18.0.2:5300", 0);
    assert_eq!(send_to(fd, b"one", PEER, 0), Ok(3));
    assert_eq!(datagram(fd, 100, 0).1, b"one");
    for _ in 0..3 {
        let waiting = Sleeper::asleep(move || datagram(fd, 100, 0).1);
        for _ in 0..3 {
            fake.die();
            let is_bind = |body: &RequestBody| matches!(body, RequestBody::BindDatagram { .. });
            let death = fake.die_over(is_bind);
            fake.rise();
            death.join().unwrap();
        }
        // What is sent while a socket is opened again may be lost, as datagrams may.
        let started = Instant::now();
        while !waiting.is_over() {
            assert!(started.elapsed() < PATIENCE, "nothing is heard");
            assert_eq!(send_to(fd, b"two", PEER, 0), Ok(3));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(waiting.join().unwrap(), b"two");
        while receive(fd, 100, libc::MSG_DONTWAIT).is_ok() {}
    }
    client::close(fd).unwrap();
}

#[test]
fn what_cannot_be_sent_is_refused_at_once() {
    let (_fake, _turn) = support::start();
    let fd = bound("198.18.0.2:0", 0);
    assert_eq!(send_to(fd, b"x", "", 0), Err(Errno::EDESTADDRREQ));
    assert_eq!(send_to(fd, b"x", "198.18.0.9:0", 0), Err(Errno::EINVAL));
    assert_eq!(send_to(fd, b"x", "127.0.0.1:9", 0), Err(Errno::ENETUNREACH));
    assert_eq!(send_to(fd, &[0; 65_508], PEER, 0), Err(Errno::EMSGSIZE));
    assert_eq!(send_to(fd, b"x", PEER, libc::MSG_OOB), Err(Errno::EOPNOTSUPP));
    let whole = libc::IP_PMTUDISC_DO.to_ne_bytes();
    client::setsockopt(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &whole).unwrap();
    assert_eq!(send_to(fd, &[0; 1473], PEER, 0), Err(Errno::EMSGSIZE));
    assert_eq!(send_to(fd, &[0; 1472], PEER, 0), Ok(1472));
    assert_eq!(client::listen(fd, 1).err(), Some(Errno::EOPNOTSUPP));
    assert_eq!(client::bind(fd, "198.18.0.2:0".parse().unwrap()).err(), Some(Errno::EINVAL));
    client::close(fd).unwrap();
}

#[test]
fn a_connected_socket_can_be_dissolved_and_go_to_the_other_world() {
    let (fake, _turn) = support::start();
    let fd = socket(0);
    client::connect(fd, PEER.parse().unwrap()).unwrap();
    assert_eq!(client::remote_address(fd), Ok(PEER.parse().unwrap()));
    assert_eq!(client::send(fd, &[IoSlice::new(b"query")], 0), Ok(5));
    assert_eq!(datagram(fd, 10, 0).1, b"query");
    client::disconnect(fd).unwrap();
    assert_eq!(client::remote_address(fd), Err(TO_KERNEL));
    assert_eq!(client::connect(fd, "127.0.0.1:9".parse().unwrap()).err(), Some(TO_KERNEL));
    sys::connect(fd, &"127.0.0.1:9".parse().unwrap()).unwrap();
    assert_eq!(send_to(fd, b"x", "", 0), Err(TO_KERNEL));
    client::connect(fd, PEER.parse().unwrap()).unwrap();
    assert_eq!(sys::getpeername(fd).err(), Some(Errno::ENOTCONN));
    fake.requests();
    client::close(fd).unwrap();
    let requests = fake.requests();
    assert!(matches!(requests[..], [(_, RequestBody::Close { .. })]), "{requests:?}");
}

#[test]
fn a_wildcard_socket_hears_both_worlds() {
    let (_fake, _turn) = support::start();
    for implicit in [false, true] {
        let fd = if implicit { socket(0) } else { bound("0.0.0.0:0", 0) };
        assert_eq!(send_to(fd, b"by haypile", PEER, 0), Ok(10));
        let port = client::local_address(fd).unwrap().port();
        assert_eq!(sys::getsockname(fd).unwrap().unwrap().port(), port, "one port in both worlds");
        assert_eq!(datagram(fd, 20, 0).1, b"by haypile");
        assert_eq!(send_to(fd, b"x", "127.0.0.1:9", 0), Err(TO_KERNEL));
        let thread = Sleeper::asleep(move || receive(fd, 20, 0).unwrap());
        let kernel = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        sys::connect(kernel.raw(), &SocketAddr::new([127, 0, 0, 1].into(), port)).unwrap();
        sys::send(kernel.raw(), b"by the kernel", 0).unwrap();
        let (received, bytes) = thread.join().unwrap();
        assert_eq!((received, &bytes[..]), (Received::Kernel(13), &b"by the kernel"[..]));
        client::close(fd).unwrap();
    }
}

fn kernel_sender(port: u16) -> Fd {
    let kernel = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    sys::connect(kernel.raw(), &SocketAddr::new([127, 0, 0, 1].into(), port)).unwrap();
    kernel
}

#[test]
fn waits_see_both_worlds() {
    let (_fake, _turn) = support::start();
    let set = epoll();
    let fd = socket(libc::SOCK_NONBLOCK);
    let (incoming, room) = (EPOLLIN as u32, EPOLLOUT as u32);
    control_epoll(set, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT, 5).unwrap();
    assert_eq!(epoll_wait(set, 4, 0), [(room, 5)], "an unbound socket is writable");
    client::bind(fd, "0.0.0.0:0".parse().unwrap()).unwrap();
    assert_eq!(epoll_wait(set, 4, 0), [(room, 5)]);
    control_epoll(set, libc::EPOLL_CTL_MOD, fd, EPOLLIN, 6).unwrap();
    assert_eq!(epoll_wait(set, 4, 0), []);
    let sender = kernel_sender(client::local_address(fd).unwrap().port());
    sys::send(sender.raw(), b"kernel", 0).unwrap();
    assert_eq!(epoll_wait(set, 4, support::PATIENCE_MS), [(incoming, 6)]);
    assert_eq!(receive(fd, 10, 0).unwrap().1, b"kernel");
    assert_eq!(epoll_wait(set, 4, 0), []);
    send_to(fd, b"haypile", PEER, 0).unwrap();
    assert_eq!(epoll_wait(set, 4, support::PATIENCE_MS), [(incoming, 6)]);
    let mut fds = [PollFd { fd, events: libc::POLLIN, revents: 0 }];
    assert_eq!(support::poll(&mut fds, Some(support::PATIENCE)), Ok(1));
    assert_eq!(datagram(fd, 10, 0).1, b"haypile");
    assert_eq!(support::poll(&mut fds, Some(Duration::ZERO)), Ok(0));
    sys::send(sender.raw(), b"again", 0).unwrap();
    assert_eq!(support::poll(&mut fds, Some(support::PATIENCE)), Ok(1));
    assert_eq!(fds[0].revents, libc::POLLIN);
    client::close(fd).unwrap();
}

#[test]
fn corked_parts_are_one_datagram() {
    let (_fake, _turn) = support::start();
    let fd = bound("198.18.0.2:0", 0);
    assert_eq!(send_to(fd, b"to", PEER, libc::MSG_MORE), Ok(2));
    assert_eq!(receive(fd, 1, libc::MSG_DONTWAIT).err(), Some(Errno::EAGAIN));
    assert_eq!(send_to(fd, b"gether", PEER, 0), Ok(6));
    assert_eq!(datagram(fd, 20, 0).1, b"together");
    const UDP_CORK: i32 = 1;
    client::setsockopt(fd, libc::SOL_UDP, UDP_CORK, &1i32.to_ne_bytes()).unwrap();
    assert_eq!(send_to(fd, b"held", PEER, 0), Ok(4));
    assert_eq!(receive(fd, 1, libc::MSG_DONTWAIT).err(), Some(Errno::EAGAIN));
    client::setsockopt(fd, libc::SOL_UDP, UDP_CORK, &0i32.to_ne_bytes()).unwrap();
    assert_eq!(datagram(fd, 20, 0).1, b"held");
    client::close(fd).unwrap();
}

#[test]
fn control_data_comes_as_wanted() {
    let (_fake, _turn) = support::start();
    let fd = bound("198.18.0.2:0", 0);
    for option in [libc::IP_PKTINFO, libc::IP_RECVTTL] {
        client::setsockopt(fd, libc::IPPROTO_IP, option, &1i32.to_ne_bytes()).unwrap();
    }
    let control = SendControl { hop_limit: Some(3), ..SendControl::default() };
    let remote = Some(PEER.parse().unwrap());
    client::send_to(fd, &[IoSlice::new(b"x")], 0, remote, &control).unwrap();
    let (arrival, _) = datagram(fd, 10, 0);
    let mut room = [0; 128];
    let (used, truncated) = arrival.control(&mut room);
    // Interface 7 and 198.18.0.2 twice; then the hop limit.
    assert_eq!((used, truncated), (32 + 24, false));
    assert_eq!(room[16..28], [7, 0, 0, 0, 198, 18, 0, 2, 198, 18, 0, 2]);
    assert_eq!(room[48..52], [3, 0, 0, 0]);
    client::close(fd).unwrap();
}

#[test]
fn a_burst_costs_one_kick_and_no_room_is_said() {
    let (fake, _turn) = support::start();
    let fd = bound("198.18.0.2:0", libc::SOCK_NONBLOCK);
    fake.requests();
    let mut sent = 0;
    // The echo fills the receive queue and loses the rest; the send queue always empties, in time.
    let limit = std::time::Instant::now() + support::PATIENCE;
    while sent < 500 {
        match send_to(fd, &[1; 1000], PEER, 0) {
            Ok(1000) => sent += 1,
            Err(errno) if errno == Errno::EAGAIN => {
                assert!(std::time::Instant::now() < limit, "no room any more after {sent}");
                std::thread::yield_now();
            }
            other => panic!("{other:?} after {sent}"),
        }
    }
    let requests = fake.requests();
    let kicks = requests.iter().filter(|(_, body)| *body == RequestBody::KickTx).count();
    assert!(kicks >= 1 && kicks <= sent, "{kicks} kicks for {sent} datagrams");
    client::close(fd).unwrap();
}
