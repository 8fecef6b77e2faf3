//! The load from the kernel's side: threads that ask again and again and compare every byte, may be halted, and know
//! when they were last answered; and echo servers for clients on Haypile.

use crate::support::content;
use crate::support::random::Random;
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes of the page that is asked for.
pub const PAGE_BYTES: usize = 30_000;
/// Requests on a connection that is kept.
const KEPT: usize = 50;
/// How long a call waits before it looks whether the service has died.
const SLICE: Duration = Duration::from_millis(100);
/// A peer that lives answers within this time.
const SILENCE: Duration = Duration::from_secs(60);
/// Between two requests of a thread, so that the load leaves the machine something.
const PAUSE: Duration = Duration::from_millis(1);

/// Ports that are opened and closed.
pub const DOORS: u16 = 8;

const RUN: u8 = 0;
const HALT: u8 = 1;
const END: u8 = 2;

/// What a thread does.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Pages on connections that are kept.
    HttpKept,
    /// Pages on a connection each.
    HttpShort,
    /// Bytes to an echo server and back.
    Echo,
    /// Datagrams to an echo server and back.
    Datagram,
    /// A connection each to listeners that are opened and closed, for one block.
    Door,
    /// Datagrams to sockets that are opened and closed.
    DoorDatagram,
}

/// Microseconds since the first call.
pub fn now_us() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_micros() as u64
}

/// One thread's record.
pub struct Strand {
    /// What it does.
    pub kind: Kind,
    /// Requests answered rightly.
    pub right: AtomicU64,
    /// When the last of them was begun and answered.
    begun_us: AtomicU64,
    answered_us: AtomicU64,
    /// What went wrong, and how often.
    failures: Mutex<BTreeMap<String, u64>>,
}

impl Strand {
    fn note(&self, what: String) {
        *self.failures.lock().expect("failures").entry(what).or_default() += 1;
    }

    /// When a request was answered that was begun after `since_us`.
    pub fn answered_since(&self, since_us: u64) -> Option<u64> {
        let answered = self.answered_us.load(Ordering::Acquire);
        (self.begun_us.load(Ordering::Acquire) >= since_us).then_some(answered)
    }

    /// What went wrong since the last call.
    pub fn take_failures(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.failures.lock().expect("failures"))
    }
}

struct Shared {
    state: AtomicU8,
    halted: AtomicUsize,
    /// Deaths of servers and supervisors, after which peers may hear nothing.
    deaths: AtomicU64,
    /// Deaths of link servers: what they had on the way is lost. TCP sends again all but a reset, which is what ends
    /// connections of listeners that are closed.
    losses: AtomicU64,
    page: Vec<u8>,
}

impl Shared {
    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Acquire) == state
    }
}

/// The threads.
pub struct Load {
    shared: Arc<Shared>,
    /// Their records.
    pub strands: Vec<Arc<Strand>>,
    threads: Vec<JoinHandle<()>>,
}

/// Where the servers are.
#[derive(Copy, Clone)]
pub struct Targets {
    pub http: SocketAddr,
    pub echo: SocketAddr,
    pub datagrams: SocketAddr,
    /// The first of [`DOORS`] ports.
    pub doors: SocketAddr,
}

impl Load {
    /// Starts threads of every kind. The page is that of [`content::write`].
    pub fn start(targets: Targets, seed: u64) -> Load {
        let shared = Arc::new(Shared {
            state: AtomicU8::new(RUN),
            halted: AtomicUsize::new(0),
            deaths: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            page: content::bytes(PAGE_BYTES, 0),
        });
        use Kind::{Datagram, Door, DoorDatagram, Echo, HttpKept, HttpShort};
        let kinds =
            [HttpKept, HttpKept, HttpShort, HttpShort, Echo, Echo, Datagram, Door, DoorDatagram];
        let (mut strands, mut threads) = (Vec::new(), Vec::new());
        for (number, kind) in kinds.into_iter().enumerate() {
            let strand = Arc::new(Strand {
                kind,
                right: AtomicU64::new(0),
                begun_us: AtomicU64::new(0),
                answered_us: AtomicU64::new(0),
                failures: Mutex::default(),
            });
            let mut worker = Worker {
                shared: Arc::clone(&shared),
                strand: Arc::clone(&strand),
                targets,
                random: Random::new(seed.wrapping_add(1000 + number as u64)),
                deaths: AtomicU64::new(0),
                serial: 0,
            };
            strands.push(strand);
            threads.push(thread::spawn(move || worker.run()));
        }
        Load { shared, strands, threads }
    }

    /// A server or supervisor is about to die.
    pub fn note_death(&self) {
        self.shared.deaths.fetch_add(1, Ordering::Release);
    }

    /// A link server is about to die, or has died.
    pub fn note_loss(&self) {
        self.shared.losses.fetch_add(1, Ordering::Release);
    }

    /// Has every thread end its connections and wait.
    pub fn halt(&self) {
        self.shared.state.store(HALT, Ordering::Release);
        let started = Instant::now();
        while self.shared.halted.load(Ordering::Acquire) < self.threads.len() {
            assert!(started.elapsed() < SILENCE * 2, "the load does not halt");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Lets them go on.
    pub fn go_on(&self) {
        self.shared.state.store(RUN, Ordering::Release);
    }

    /// Ends the threads.
    pub fn stop(&mut self) {
        self.shared.state.store(END, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.join().expect("a thread of the load");
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    strand: Arc<Strand>,
    targets: Targets,
    random: Random,
    /// Deaths when the present request was begun.
    deaths: AtomicU64,
    serial: u64,
}

impl Worker {
    fn run(&mut self) {
        loop {
            match self.shared.state.load(Ordering::Acquire) {
                END => return,
                HALT => {
                    self.shared.halted.fetch_add(1, Ordering::AcqRel);
                    while self.shared.is(HALT) {
                        thread::sleep(Duration::from_millis(2));
                    }
                    self.shared.halted.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                _ => {}
            }
            let outcome = match self.strand.kind {
                Kind::HttpKept => self.pages(KEPT),
                Kind::HttpShort => self.pages(1),
                Kind::Echo => self.echo(),
                Kind::Datagram => self.datagrams(),
                Kind::Door => self.door(),
                Kind::DoorDatagram => self.door_datagram(),
            };
            if let Err(error) = outcome {
                self.strand.note(in_words(&error));
                // A refused connection is answered at once: leave the server time to come back.
                thread::sleep(Duration::from_millis(3));
            }
        }
    }

    /// A request is about to be made, on a connection that was alive a moment ago.
    fn begin(&self) -> u64 {
        self.deaths.store(self.count_deaths(), Ordering::Relaxed);
        now_us()
    }

    /// Events after which an answer may never come.
    fn count_deaths(&self) -> u64 {
        let losses = match self.strand.kind {
            Kind::Door => self.shared.losses.load(Ordering::Acquire),
            _ => 0,
        };
        self.shared.deaths.load(Ordering::Acquire) + losses
    }

    fn answered(&self, begun_us: u64) {
        self.strand.begun_us.store(begun_us, Ordering::Release);
        self.strand.answered_us.store(now_us(), Ordering::Release);
        self.strand.right.fetch_add(1, Ordering::Relaxed);
    }

    /// After a slice in which nothing came: whether to go on waiting. A server that was killed tells nobody.
    fn wait_on(&self, since: Instant) -> io::Result<()> {
        if self.count_deaths() != self.deaths.load(Ordering::Relaxed) {
            return Err(io::Error::other("cut off by a death"));
        }
        if since.elapsed() > SILENCE {
            return Err(io::Error::other("SILENCE"));
        }
        Ok(())
    }

    fn connect(&self, server: SocketAddr) -> io::Result<Patient<'_>> {
        let since = Instant::now();
        loop {
            match TcpStream::connect_timeout(&server, SLICE * 12) {
                Err(error) if error.kind() == ErrorKind::TimedOut => self.wait_on(since)?,
                Err(error) => return Err(error),
                Ok(stream) => {
                    stream.set_read_timeout(Some(SLICE))?;
                    stream.set_write_timeout(Some(SLICE))?;
                    stream.set_nodelay(true)?;
                    return Ok(Patient { worker: self, stream });
                }
            }
        }
    }

    fn pages(&mut self, count: usize) -> io::Result<()> {
        let mut begun_us = self.begin();
        let server = self.targets.http;
        let how = if count > 1 { "keep-alive" } else { "close" };
        let request = format!("GET /page HTTP/1.1\r\nHost: {server}\r\nConnection: {how}\r\n\r\n");
        let deaths = Arc::clone(&self.shared);
        let mut body = vec![0; PAGE_BYTES];
        let mut stream = BufReader::with_capacity(32 * 1024, self.connect(server)?);
        for _ in 0..count {
            if !deaths.is(RUN) {
                break;
            }
            stream.get_mut().write_all(request.as_bytes())?;
            let length = read_head(&mut stream)?;
            if length != PAGE_BYTES {
                return Err(io::Error::other(format!("WRONG length {length}")));
            }
            stream.read_exact(&mut body)?;
            if body != self.shared.page {
                return Err(io::Error::other("WRONG page"));
            }
            self.answered(begun_us);
            thread::sleep(PAUSE);
            begun_us = self.begin();
        }
        Ok(())
    }

    fn echo(&mut self) -> io::Result<()> {
        let mut begun_us = self.begin();
        let rounds = 1 + self.random.below(20);
        let sizes: Vec<usize> =
            (0..rounds).map(|_| 1 + self.random.below(20_000) as usize).collect();
        let first = self.random.next();
        let mut stream = self.connect(self.targets.echo)?;
        for (round, size) in sizes.into_iter().enumerate() {
            if !self.shared.is(RUN) {
                break;
            }
            let block = content::bytes(size, first.wrapping_add(round as u64));
            stream.write_all(&block)?;
            let mut heard = vec![0; size];
            stream.read_exact(&mut heard)?;
            if heard != block {
                return Err(io::Error::other("WRONG echo"));
            }
            self.answered(begun_us);
            thread::sleep(PAUSE);
            begun_us = self.begin();
        }
        Ok(())
    }

    fn datagrams(&mut self) -> io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(self.targets.datagrams)?;
        socket.set_read_timeout(Some(SLICE))?;
        while self.shared.is(RUN) {
            let begun_us = self.begin();
            self.serial += 1;
            let size = self.random.below(3000) as usize;
            let block = numbered(self.serial, size);
            socket.send(&block)?;
            if !self.hear(&socket, &block)? {
                self.strand.note("datagram lost".to_string());
                continue;
            }
            self.answered(begun_us);
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// One of the ports that are opened and closed.
    fn some_door(&mut self) -> SocketAddr {
        let mut door = self.targets.doors;
        door.set_port(door.port() + self.random.below(DOORS.into()) as u16);
        door
    }

    fn door(&mut self) -> io::Result<()> {
        let begun_us = self.begin();
        self.serial += 1;
        let block = content::bytes(1 + self.random.below(3000) as usize, self.serial);
        let door = self.some_door();
        let mut stream = self.connect(door)?;
        stream.write_all(&block)?;
        let mut heard = vec![0; block.len()];
        stream.read_exact(&mut heard)?;
        if heard != block {
            return Err(io::Error::other("WRONG echo"));
        }
        self.answered(begun_us);
        thread::sleep(PAUSE);
        Ok(())
    }

    fn door_datagram(&mut self) -> io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(self.some_door())?;
        socket.set_read_timeout(Some(SLICE))?;
        let begun_us = self.begin();
        self.serial += 1;
        let block = numbered(self.serial, self.random.below(3000) as usize);
        socket.send(&block)?;
        match self.hear(&socket, &block)? {
            true => self.answered(begun_us),
            false => self.strand.note("datagram lost".to_string()),
        }
        thread::sleep(PAUSE);
        Ok(())
    }

    /// Whether the answer came; those to earlier questions are checked, too.
    fn hear(&self, socket: &UdpSocket, block: &[u8]) -> io::Result<bool> {
        let mut heard = [0; 4000];
        loop {
            let len = match socket.recv(&mut heard) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            let number = heard.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            if len < 8 || number > self.serial || heard[..len] != numbered(number, len - 8) {
                return Err(io::Error::other("WRONG datagram"));
            }
            if heard[..len] == *block {
                return Ok(true);
            }
        }
    }
}

/// A number and `size` bytes that follow from it.
fn numbered(number: u64, size: usize) -> Vec<u8> {
    [&number.to_le_bytes()[..], &content::bytes(size, number)].concat()
}

fn in_words(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::Other => error.to_string(),
        kind => format!("{kind:?}"),
    }
}

fn read_head(stream: &mut impl BufRead) -> io::Result<usize> {
    let mut length = None;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        match line.trim().split_once(':') {
            None if line.trim().is_empty() => {
                return length.ok_or_else(|| io::Error::other("WRONG head"));
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().ok();
            }
            _ => {}
        }
    }
}

/// A stream whose waits end when the service has died, or after [`SILENCE`].
struct Patient<'a> {
    worker: &'a Worker,
    stream: TcpStream,
}

impl Patient<'_> {
    fn patiently<T>(
        &mut self,
        mut attempt: impl FnMut(&mut TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        let since = Instant::now();
        loop {
            match attempt(&mut self.stream) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.worker.wait_on(since)?
                }
                other => return other,
            }
        }
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.patiently(|stream| stream.read(out))
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.patiently(|stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Echo servers on the kernel's side, for streams and datagrams at one port.
pub struct EchoServers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// The port of both.
    pub port: u16,
}

impl EchoServers {
    pub fn start() -> EchoServers {
        let listener = TcpListener::bind("0.0.0.0:0").expect("listen on the kernel's side");
        let port = listener.local_addr().expect("an address").port();
        listener.set_nonblocking(true).expect("not blocking");
        let socket = UdpSocket::bind(("0.0.0.0", port)).expect("a socket on the kernel's side");
        socket.set_read_timeout(Some(SLICE)).expect("set a limit");
        let stop = Arc::new(AtomicBool::new(false));
        let (for_streams, for_datagrams) = (Arc::clone(&stop), Arc::clone(&stop));
        let streams = thread::spawn(move || serve_streams(&listener, &for_streams));
        let datagrams = thread::spawn(move || {
            let mut block = [0; 1 << 16];
            while !for_datagrams.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut block) {
                    // One whose sender is dead cannot be answered.
                    drop(socket.send_to(&block[..len], from));
                }
            }
        });
        EchoServers { stop, threads: vec![streams, datagrams], port }
    }

    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("an echo server"));
    }
}

fn serve_streams(listener: &TcpListener, stop: &Arc<AtomicBool>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let stop = Arc::clone(stop);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread::spawn(move || drop(echo_all(stream, &stop))));
    }
    threads.into_iter().for_each(|thread| thread.join().expect("an echo"));
}

fn echo_all(mut stream: TcpStream, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SLICE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut block = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(len) => stream.write_all(&block[..len])?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
