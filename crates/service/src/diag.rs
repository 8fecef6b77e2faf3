//! The kernel's word for the end of a placeholder: the last close of a socket, whoever held it.
//!
//! Owns two sources. The *destroy multicast* of socket diagnostics tells the cookie of every TCP
//! and UDP socket of one network namespace that goes, within microseconds; it needs no privilege.
//! The *witness* is an epoll set that shared placeholders are put into: the kernel drops an item
//! when the last descriptor of its file goes, wherever that was, so the set's listing is the exact
//! set of living ones. It is read after the multicast overran and at a slow interval, and is the
//! only source for placeholders of other namespaces. Called by `server`; see netlink(7),
//! sock_diag(7), and `Documentation/filesystems/proc` on `/proc/PID/fdinfo`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, RawFd};

use haypile_link::netns::{self, Namespace};
use haypile_shm::sys::{self, Errno, Fd};

/// Opens the multicast in the network namespace (by its cookie) that a process is in.
pub type Opener = Box<dyn FnMut(i32, u64) -> Option<Fd>>;

/// Both sources of ends of placeholders.
pub struct Diag {
    /// A multicast socket for each network namespace that placeholders are made in, with the
    /// namespace's cookie.
    multicasts: Vec<(u64, Fd)>,
    witness: Fd,
    /// What the kernel says of `witness`; opened once, because a server may open no files later.
    listing: File,
    opener: Opener,
    /// Messages were lost since the last look at the witness.
    overrun: bool,
    counters: DiagCounters,
}

/// What the kernel has told so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiagCounters {
    /// Destroy messages read, foreign sockets included.
    pub messages: u64,
    /// Times the kernel said that messages were lost.
    pub overruns: u64,
    /// Looks at the witness.
    pub listings: u64,
}

const NETLINK_SOCK_DIAG: i32 = 4;
const SOL_NETLINK: i32 = 270;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
/// SKNLGRP_INET_TCP_DESTROY, INET_UDP_DESTROY, INET6_TCP_DESTROY, INET6_UDP_DESTROY.
const GROUPS: [u32; 4] = [1, 2, 3, 4];
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// A message that asks nothing (NLMSG_NOOP): length 16, type 1.
const NOOP: [u8; 16] = [16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Offset of the two words of the cookie: netlink header, family..retrans, ports, two addresses,
/// interface.
const COOKIE_OFFSET: usize = 60;
const BUFFER_BYTES: i32 = 8 << 20;
/// Network namespaces listened to at a time.
const NAMESPACES_MAX: usize = 64;
/// Messages read in one turn.
const BURST: usize = 4096;

impl Diag {
    /// Makes the witness. The multicast starts with the first shared socket, because listening
    /// makes every socket of the namespace a little dearer.
    ///
    /// # Errors
    /// When the process may open no more descriptors.
    pub fn new() -> Result<Diag, Errno> {
        Diag::with(Box::new(open_in))
    }

    /// As `new`; `opener` opens multicasts, for which a confined server has no right.
    ///
    /// # Errors
    /// As `new`.
    pub fn with(opener: Opener) -> Result<Diag, Errno> {
        let witness = sys::epoll_create()?;
        let listing = File::open(format!("/proc/self/fdinfo/{}", witness.raw()))
            .map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))?;
        Ok(Diag {
            multicasts: Vec::new(),
            witness,
            listing,
            opener,
            overrun: false,
            counters: DiagCounters::default(),
        })
    }

    /// What has been heard.
    pub fn counters(&self) -> DiagCounters {
        self.counters
    }

    /// Starts to listen in the network namespace with this cookie, which process `pid` is in, if
    /// that has not been done yet; answers the descriptor to wait on when it was just made.
    /// Without the multicast (no right to enter that namespace) the witness alone must do.
    pub fn listen_for(&mut self, pid: i32, namespace: u64) -> Option<RawFd> {
        if self.multicasts.len() >= NAMESPACES_MAX || self.hears(namespace) {
            return None;
        }
        let fd = (self.opener)(pid, namespace)?;
        let raw = fd.raw();
        self.multicasts.push((namespace, fd));
        Some(raw)
    }

    /// Whether any multicast is listened to.
    pub fn listens(&self) -> bool {
        !self.multicasts.is_empty()
    }

    /// Whether the end of placeholders made in this network namespace is told at once.
    pub fn hears(&self, namespace: u64) -> bool {
        self.multicasts.iter().any(|(known, _)| *known == namespace)
    }

    /// Puts a shared placeholder under observation and answers its cookie. The descriptor may be
    /// closed afterwards: the witness holds no reference.
    ///
    /// # Errors
    /// When it is not a socket, or the kernel's limit of watches is reached.
    pub fn observe(&mut self, placeholder: &Fd) -> Result<u64, Errno> {
        let cookie = sys::so_cookie(placeholder.raw())?;
        let add = libc::EPOLL_CTL_ADD;
        let once = libc::EPOLLONESHOT as u32;
        match sys::epoll_ctl(self.witness.raw(), add, placeholder.raw(), once, cookie) {
            Ok(()) | Err(Errno::EEXIST) => Ok(cookie),
            Err(errno) => Err(errno),
        }
    }

    /// Reads the cookies of sockets that are gone, at most a burst of each namespace; true if more
    /// may be waiting.
    pub fn read(&mut self, gone: &mut Vec<u64>) -> bool {
        let mut more = false;
        for (_, fd) in &self.multicasts {
            more |= read_burst(fd, gone, &mut self.counters, &mut self.overrun);
        }
        more
    }

    /// Whether messages were lost.
    pub fn is_overrun(&self) -> bool {
        self.overrun
    }

    /// Whether messages were lost, so that `living` has to be asked; forgets it.
    pub fn take_overrun(&mut self) -> bool {
        std::mem::take(&mut self.overrun)
    }

    /// Cookies of all placeholders under observation that still exist.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn living(&mut self) -> std::io::Result<HashSet<u64>> {
        self.counters.listings += 1;
        let (mut text, mut part) = (Vec::new(), [0; 16_384]);
        self.listing.rewind()?;
        // By plain reads: a confined server may not ask how large the file is.
        loop {
            match self.listing.read(&mut part)? {
                0 => break,
                len => text.extend_from_slice(&part[..len]),
            }
        }
        Ok(String::from_utf8_lossy(&text).lines().filter_map(witness_cookie).collect())
    }
}

/// One burst of messages of one namespace; true if it was a whole one.
fn read_burst(
    fd: &Fd,
    gone: &mut Vec<u64>,
    counters: &mut DiagCounters,
    overrun: &mut bool,
) -> bool {
    let mut bytes = [0; 512];
    for _ in 0..BURST {
        match sys::recv(fd.raw(), &mut bytes, libc::MSG_DONTWAIT) {
            Ok(len) => {
                counters.messages += 1;
                gone.extend(cookie_of(&bytes[..len.min(bytes.len())]));
            }
            Err(Errno::ENOBUFS) => {
                *overrun = true;
                counters.overruns += 1;
            }
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Opens the multicast in the network namespace with this cookie, which process `pid` is in. Others'
/// namespaces can be entered by the privileged alone.
pub fn open_in(pid: i32, namespace: u64) -> Option<Fd> {
    let own = open_multicast().ok()?;
    if sys::network_namespace(own.raw()) == Ok(namespace) {
        return Some(own);
    }
    let theirs = Namespace::open(&format!("/proc/{pid}/ns/net")).ok()?;
    let fd = netns::run_in(theirs.as_fd(), open_multicast).ok()?.ok()?;
    // The process may have gone elsewhere, or be another by now.
    (sys::network_namespace(fd.raw()) == Ok(namespace)).then_some(fd)
}

fn open_multicast() -> Result<Fd, Errno> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let fd = sys::socket(libc::AF_NETLINK, kind, NETLINK_SOCK_DIAG)?;
    let size = BUFFER_BYTES.to_ne_bytes();
    if sys::setsockopt(fd.raw(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &size).is_err() {
        // Without the privilege the system's maximum has to do.
        let _: Result<(), Errno> =
            sys::setsockopt(fd.raw(), libc::SOL_SOCKET, libc::SO_RCVBUF, &size);
    }
    // Sending anything gives the socket its own port; one without a port hears nothing, because its
    // port is taken for the kernel's own.
    sys::send(fd.raw(), &NOOP, 0)?;
    for group in GROUPS {
        sys::setsockopt(fd.raw(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group.to_ne_bytes())?;
    }
    Ok(fd)
}

/// The cookie in one destroy message (`inet_diag_msg`).
fn cookie_of(message: &[u8]) -> Option<u64> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    if kind != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let word = |at: usize| {
        let bytes = message.get(at..at + 4)?;
        Some(u64::from(u32::from_ne_bytes(bytes.try_into().ok()?)))
    };
    Some(word(COOKIE_OFFSET)? | word(COOKIE_OFFSET + 4)? << 32)
}

/// One line of the witness: `tfd: 5 events: 40000000 data: 1e3b pos:0 ino:.. sdev:..`.
fn witness_cookie(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("tfd:")?;
    let mut words = rest.split_whitespace().skip_while(|word| !word.starts_with("data:"));
    let first = words.next()?.strip_prefix("data:")?;
    let digits = if first.is_empty() { words.next()? } else { first };
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::OwnedFd;
    use std::time::{Duration, Instant};

    fn placeholder() -> Fd {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        sys::socket(libc::AF_INET, kind, 0).unwrap()
    }

    #[test]
    fn the_multicast_tells_the_cookie_of_the_last_close() {
        let mut diag = Diag::new().unwrap();
        let own = std::process::id() as i32;
        let socket = placeholder();
        let namespace = sys::network_namespace(socket.raw()).unwrap();
        assert!(!diag.hears(namespace));
        assert!(diag.listen_for(own, namespace).is_some());
        assert!(diag.listen_for(own, namespace).is_none());
        assert!(diag.hears(namespace));
        let cookie = diag.observe(&socket).unwrap();
        let other = sys::dup_at_least(socket.raw(), 0).unwrap();
        drop(socket);
        assert!(diag.living().unwrap().contains(&cookie));
        drop(other);
        assert!(!diag.living().unwrap().contains(&cookie));
        let mut gone = Vec::new();
        let start = Instant::now();
        while !gone.contains(&cookie) && start.elapsed() < Duration::from_secs(60) {
            diag.read(&mut gone);
        }
        assert!(gone.contains(&cookie));
        assert!(diag.counters().messages >= 1);
    }

    #[test]
    fn the_witness_sees_sockets_it_has_no_descriptor_of() {
        let mut diag = Diag::new().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let fd = Fd::from(OwnedFd::from(socket.try_clone().unwrap()));
        let cookie = diag.observe(&fd).unwrap();
        assert_eq!(diag.observe(&fd).unwrap(), cookie);
        drop(fd);
        assert_eq!(diag.living().unwrap().into_iter().collect::<Vec<_>>(), [cookie]);
        drop(socket);
        assert!(diag.living().unwrap().is_empty());
    }

    #[test]
    fn other_messages_are_no_cookies() {
        assert_eq!(cookie_of(&[]), None);
        assert_eq!(cookie_of(&[0; 100]), None);
        assert_eq!(witness_cookie("pos:\t0"), None);
        let line = "tfd:        5 events: 40000000 data:             1e3b  pos:0 ino:1 sdev:8";
        assert_eq!(witness_cookie(line), Some(0x1e3b));
    }
}
