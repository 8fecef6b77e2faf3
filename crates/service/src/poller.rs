//! The kernel's epoll set with everything the service sleeps on. Owns the tokens that tell one
//! descriptor from another. Used by `event_loop`, and by whoever opens or closes a descriptor.

use std::os::fd::RawFd;

use haypile_shm::sys::{self, EpollEvent, Errno, Fd};

/// What a descriptor is for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// The link.
    Link,
    /// New processes.
    Attach,
    /// The control connection in this place.
    Connection(u32),
    /// A process has ended.
    Pidfd(u32),
    /// A process rings.
    Wake(u32),
    /// Another server rings.
    Peers,
    /// Sockets were destroyed.
    Diag,
    /// Processes that come to the supervisor's door.
    Door,
    /// New clients of the control socket.
    Control,
    /// A client of the control socket.
    Client(u64),
    /// A signal has come.
    Signal,
    /// The process a private service was started for has ended.
    Owner,
    /// The guardian of the control directory has ended.
    Guardian,
    /// The channel between a supervisor and its server with this number.
    Channel(u32),
    /// The server with this number has ended.
    Exit(u32),
    /// The answer of a server for this client of the control socket.
    Answer(u64),
    /// A process that used the service has ended.
    User(u64),
}

/// The epoll set.
#[derive(Debug)]
pub struct Poller {
    epoll: Fd,
}

/// Events taken in one look.
pub const EVENTS: usize = 256;
const KIND_SHIFT: u32 = 56;

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// When the process may open no more descriptors.
    pub fn new() -> Result<Poller, Errno> {
        Ok(Poller { epoll: sys::epoll_create()? })
    }

    /// Waits until `fd` is readable (or hung up), again and again.
    ///
    /// # Errors
    /// When the kernel takes no more.
    pub fn add(&self, fd: RawFd, token: Token) -> Result<(), Errno> {
        let interest = libc::EPOLLIN as u32;
        sys::epoll_ctl(self.epoll.raw(), libc::EPOLL_CTL_ADD, fd, interest, token.encode())
    }

    /// Also (or no longer) waits until `fd` is writable.
    pub fn set_writable(&self, fd: RawFd, token: Token, writable: bool) {
        let out = if writable { libc::EPOLLOUT as u32 } else { 0 };
        let interest = libc::EPOLLIN as u32 | out;
        // Fails only for a descriptor that is not in the set, which has nothing to wait for.
        let _: Result<(), Errno> =
            sys::epoll_ctl(self.epoll.raw(), libc::EPOLL_CTL_MOD, fd, interest, token.encode());
    }

    /// Takes `fd` out, before it is closed: somebody else may hold a copy of it.
    pub fn remove(&self, fd: RawFd) {
        let _: Result<(), Errno> = sys::epoll_ctl(self.epoll.raw(), libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    /// Waits up to `timeout_ms` (-1: for ever); the tokens of what is ready.
    pub fn wait(&self, timeout_ms: i32, out: &mut Vec<Token>) {
        let mut events = [EpollEvent { events: 0, u64: 0 }; EVENTS];
        // A signal ends the wait early, like an event.
        let count = sys::epoll_wait(self.epoll.raw(), &mut events, timeout_ms).unwrap_or(0);
        out.extend(events[..count].iter().filter_map(|event| Token::decode(event.u64)));
    }
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, value) = match self {
            Token::Link => (1, 0),
            Token::Attach => (2, 0),
            Token::Connection(index) => (3, u64::from(index)),
            Token::Pidfd(process) => (4, u64::from(process)),
            Token::Wake(process) => (5, u64::from(process)),
            Token::Diag => (6, 0),
            Token::Control => (7, 0),
            Token::Client(id) => (8, id),
            Token::Signal => (9, 0),
            Token::Owner => (10, 0),
            Token::Guardian => (11, 0),
            Token::Channel(server) => (12, u64::from(server)),
            Token::Exit(server) => (13, u64::from(server)),
            Token::Answer(id) => (14, id),
            Token::User(id) => (15, id),
            Token::Peers => (16, 0),
            Token::Door => (17, 0),
        };
        kind << KIND_SHIFT | (value & ((1 << KIND_SHIFT) - 1))
    }

    fn decode(word: u64) -> Option<Token> {
        let value = word & ((1 << KIND_SHIFT) - 1);
        Some(match word >> KIND_SHIFT {
            1 => Token::Link,
            2 => Token::Attach,
            3 => Token::Connection(value as u32),
            4 => Token::Pidfd(value as u32),
            5 => Token::Wake(value as u32),
            6 => Token::Diag,
            7 => Token::Control,
            8 => Token::Client(value),
            9 => Token::Signal,
            10 => Token::Owner,
            11 => Token::Guardian,
            12 => Token::Channel(value as u32),
            13 => Token::Exit(value as u32),
            14 => Token::Answer(value),
            15 => Token::User(value),
            16 => Token::Peers,
            17 => Token::Door,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use haypile_shm::Doorbell;

    #[test]
    fn tokens_come_back() {
        let poller = Poller::new().unwrap();
        let (here, there) = Doorbell::pair().unwrap();
        poller.add(here.raw(), Token::Wake(7)).unwrap();
        let mut ready = Vec::new();
        poller.wait(0, &mut ready);
        assert!(ready.is_empty());
        there.ring().unwrap();
        poller.wait(1000, &mut ready);
        assert_eq!(ready, [Token::Wake(7)]);
        poller.remove(here.raw());
        ready.clear();
        poller.wait(0, &mut ready);
        assert!(ready.is_empty());
    }
}
