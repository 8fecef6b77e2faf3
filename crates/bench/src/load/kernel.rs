//! The load generator's sessions over sockets of the operating system, non-blocking, watched by epoll (mio). Ordinary
//! sockets of the standard library: under the preload library they are Haypile's. Called by `parts`.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use haypile_shm::control::ATTACH_VARIABLE;
use haypile_shm::sys;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::{Carrier, Received};

/// Below this distance from its time a wait polls instead of sleeping, because epoll counts in milliseconds.
const POLL_BELOW: Duration = Duration::from_millis(2);
/// The longest sleep, so that ends are seen.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// Sessions over sockets.
pub struct Sockets {
    target: SocketAddr,
    sessions: Vec<Option<TcpStream>>,
    poll: Poll,
    events: Events,
    started: Instant,
    polling: bool,
    punctual: bool,
}

impl Sockets {
    /// So many sessions, none connected yet. `polling`: never sleep.
    ///
    /// # Errors
    /// When the system gives no epoll descriptor.
    pub fn new(target: SocketAddr, sessions: usize, polling: bool) -> io::Result<Sockets> {
        Ok(Sockets {
            target,
            sessions: (0..sessions).map(|_| None).collect(),
            poll: Poll::new()?,
            events: Events::with_capacity(256),
            started: Instant::now(),
            polling,
            punctual: false,
        })
    }

    /// Waits end on time, by polling at their ends: for an open loop. Without it they sleep, and so does the core.
    pub fn punctual(mut self, punctual: bool) -> Sockets {
        self.punctual = punctual;
        self
    }

    fn stream(&mut self, session: usize) -> io::Result<&mut TcpStream> {
        self.sessions[session].as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// Whether an error only means that there is nothing to be done yet.
fn not_yet(error: &io::Error) -> bool {
    // A socket that is still connecting says that it is not connected.
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected | io::ErrorKind::Interrupted
    )
}

impl Carrier for Sockets {
    fn now_ns(&mut self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn open(&mut self, session: usize) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.target)?;
        stream.set_nodelay(true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(session), interest)?;
        self.sessions[session] = Some(stream);
        Ok(())
    }

    fn send(&mut self, session: usize, bytes: &[u8]) -> io::Result<usize> {
        match self.stream(session)?.write(bytes) {
            Err(error) if not_yet(&error) => Ok(0),
            result => result,
        }
    }

    fn receive(&mut self, session: usize, out: &mut [u8]) -> io::Result<Received> {
        match self.stream(session)?.read(out) {
            Ok(0) => Ok(Received::End),
            Ok(bytes) => Ok(Received::Bytes(bytes)),
            Err(error) if not_yet(&error) => Ok(Received::Nothing),
            Err(error) => Err(error),
        }
    }

    fn close(&mut self, session: usize) {
        // Closing takes it out of epoll as well.
        self.sessions[session] = None;
    }

    fn wait(&mut self, until_ns: u64, events: &mut Vec<usize>) -> io::Result<()> {
        let left = Duration::from_nanos(until_ns.saturating_sub(self.now_ns()));
        let sleep = match (self.polling, self.punctual) {
            (true, _) => Duration::ZERO,
            (false, true) if left < POLL_BELOW => Duration::ZERO,
            // Early rather than late, because epoll rounds milliseconds up: the rest is polled.
            (false, true) => (left - POLL_BELOW).min(SLEEP_MAX),
            (false, false) => left.min(SLEEP_MAX),
        };
        match self.poll.poll(&mut self.events, Some(sleep)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => result?,
        }
        events.extend(self.events.iter().map(|event| event.token().0));
        Ok(())
    }

    fn end(&mut self) {
        self.sessions.iter_mut().for_each(|session| *session = None);
    }

    fn congestion(&self) -> Option<String> {
        // The kernel itself is asked, past the preload library: on Haypile it knows only placeholders.
        const IPPROTO_TCP: i32 = 6;
        const TCP_CONGESTION: i32 = 13;
        if std::env::var_os(ATTACH_VARIABLE).is_some() {
            return None;
        }
        let stream = self.sessions.iter().flatten().next()?;
        let mut name = [0; 16];
        let len =
            sys::getsockopt(stream.as_raw_fd(), IPPROTO_TCP, TCP_CONGESTION, &mut name).ok()?;
        let text = name[..len].split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}
