//! The load of the tests of moves, from the kernel's side: threads that go on until they are told to stop, compare
//! every byte, and note everything that was not as it should be. And the thread that moves buckets meanwhile.

use crate::support::random::Random;
use haypile_service::control::{Request, ask};
use haypile_service::moving::{MoveReport, Selection, SteerReport};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A peer that lives answers within this time.
pub const SILENCE: Duration = Duration::from_secs(60);
/// Longest block that is sent before it is read back: it fits into the buffers on the way.
const BLOCK_MAX: u64 = 60_000;
/// Exchanges on a connection before it is closed and another made.
const EXCHANGES: u64 = 60;

/// Threads of load, with what they have reached.
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Of the service that is asked about connections on which nothing comes.
    control: PathBuf,
    stop: AtomicBool,
    right: AtomicU64,
    /// What went wrong, and how often.
    failures: Mutex<BTreeMap<String, u64>>,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.right.fetch_add(1, Ordering::Relaxed);
    }
}

impl Traffic {
    /// None yet, at the service with this control directory.
    pub fn at(control: PathBuf) -> Traffic {
        let (stop, right, failures) = Default::default();
        let shared = Arc::new(Shared { control, stop, right, failures });
        Traffic { shared, threads: Vec::new() }
    }

    /// Starts a thread that does `work` again and again; `work` counts what was right, and looks whether it is to stop.
    fn start(&mut self, name: &str, work: impl Fn(&Tally<'_>) -> io::Result<()> + Send + 'static) {
        let (shared, name) = (Arc::clone(&self.shared), name.to_string());
        self.threads.push(thread::spawn(move || {
            while !shared.is_over() {
                let Err(error) = work(&Tally(&shared)) else { continue };
                let mut failures = shared.failures.lock().expect("no thread panics");
                *failures.entry(format!("{name}: {:?} {error}", error.kind())).or_default() += 1;
                drop(failures);
                thread::sleep(Duration::from_millis(5));
            }
        }));
    }

    /// Exchanges that were right so far.
    pub fn right(&self) -> u64 {
        self.shared.right.load(Ordering::Relaxed)
    }

    /// Ends all threads after what they are at; how often things went right, and what went wrong.
    pub fn stop(self) -> (u64, BTreeMap<String, u64>) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a thread of the load");
        }
        let failures = std::mem::take(&mut *self.shared.failures.lock().expect("failures"));
        (self.shared.right.load(Ordering::Relaxed), failures)
    }

    /// Clients of an echo server, each with a connection that it keeps for a while.
    pub fn echo(&mut self, clients: u64, server: SocketAddr, seed: u64) {
        for number in 0..clients {
            let random = Mutex::new(Random::new(seed ^ number << 32));
            self.start("echo", move |tally| {
                let mut random = random.lock().expect("one thread");
                let mut stream = connect(server)?;
                for _ in 0..EXCHANGES {
                    let block = block(random.next() % BLOCK_MAX + 1, random.next());
                    stream.write_all(&block)?;
                    let mut heard = vec![0; block.len()];
                    stream.read_exact(&mut heard)?;
                    same(&block, &heard)?;
                    tally.count();
                    if tally.is_over() {
                        break;
                    }
                }
                stream.shutdown(Shutdown::Write)?;
                match stream.read(&mut [0; 16])? {
                    0 => Ok(()),
                    more => Err(io::Error::other(format!("{more} bytes behind the last"))),
                }
            });
        }
    }

    /// Clients of an echo server that send all the while and read later, so that windows close.
    pub fn flood(&mut self, clients: u64, server: SocketAddr, seed: u64) {
        const TOTAL: usize = 4 << 20;
        for number in 0..clients {
            self.start("flood", move |tally| {
                let stream = connect(server)?;
                let sent = block(TOTAL as u64, seed + number);
                let mut writer = stream.try_clone()?;
                let bytes = sent.clone();
                let writing = thread::spawn(move || {
                    writer.write_all(&bytes)?;
                    writer.shutdown(Shutdown::Write)
                });
                let mut heard = Vec::new();
                let reading = read_slowly(stream, &mut heard);
                writing.join().map_err(|_| io::Error::other("the writer panics"))??;
                reading?;
                same(&sent, &heard)?;
                tally.count();
                Ok(())
            });
        }
    }

    /// Clients of an HTTP server that ask for `name` again and again on a connection that they keep.
    pub fn pages(&mut self, clients: usize, server: SocketAddr, name: &str, body: Vec<u8>) {
        let body = Arc::new(body);
        for _ in 0..clients {
            let (body, name) = (Arc::clone(&body), name.to_string());
            self.start(&format!("kept /{name}"), move |tally| {
                let mut stream = BufReader::new(connect(server)?);
                for number in 0..EXCHANGES {
                    let line = format!("GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n");
                    stream.get_mut().write_all(line.as_bytes())?;
                    let checked = check_answer(&mut stream, &body);
                    checked.map_err(|error| tally.explain(error, number, stream.get_ref()))?;
                    tally.count();
                    if tally.is_over() {
                        break;
                    }
                }
                Ok(())
            });
        }
    }

    /// The same with a connection for each.
    pub fn short_pages(&mut self, clients: usize, server: SocketAddr, name: &str, body: Vec<u8>) {
        let body = Arc::new(body);
        for _ in 0..clients {
            let (body, name) = (Arc::clone(&body), name.to_string());
            self.start(&format!("short /{name}"), move |tally| {
                let mut stream = BufReader::new(connect(server)?);
                let line = format!("GET /{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                stream.get_mut().write_all(line.as_bytes())?;
                let checked = check_answer(&mut stream, &body);
                checked.map_err(|error| tally.explain(error, 0, stream.get_ref()))?;
                tally.count();
                Ok(())
            });
        }
    }

    /// Clients that store `body` by PUT on a connection that they keep, and look what has arrived in the folder `up`.
    pub fn uploads(&mut self, clients: usize, server: SocketAddr, up: &Path, body: Vec<u8>) {
        let body = Arc::new(body);
        for client in 0..clients {
            let (body, file) = (Arc::clone(&body), up.join(format!("file{client}")));
            self.start("upload", move |tally| {
                let mut stream = BufReader::new(connect(server)?);
                for number in 0..3 {
                    let len = body.len();
                    let line = format!(
                        "PUT /up/file{client} HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n"
                    );
                    let written = stream.get_mut().write_all(line.as_bytes());
                    let written = written.and_then(|()| stream.get_mut().write_all(&body));
                    let checked = written.and_then(|()| check_answer(&mut stream, &[]));
                    checked.map_err(|error| tally.explain(error, number, stream.get_ref()))?;
                    same(&body, &std::fs::read(&file)?)?;
                    std::fs::remove_file(&file)?;
                    tally.count();
                    if tally.is_over() {
                        break;
                    }
                }
                Ok(())
            });
        }
    }
}

/// What a thread of load tells.
struct Tally<'a>(&'a Shared);

impl Tally<'_> {
    fn count(&self) {
        self.0.count();
    }

    fn is_over(&self) -> bool {
        self.0.is_over()
    }

    /// When nothing has come for too long: with what the service says of the connection.
    fn explain(&self, error: io::Error, exchanges: u64, stream: &TcpStream) -> io::Error {
        let (ErrorKind::WouldBlock, Ok(local)) = (error.kind(), stream.local_addr()) else {
            return error;
        };
        let local = local.to_string();
        let rows = |request: &Request, name: &str| -> Vec<String> {
            let answer = ask(&self.0.control, request).unwrap_or_default();
            let rows = answer[name].as_array().cloned().unwrap_or_default();
            rows.iter().map(ToString::to_string).filter(|row| row.contains(&local)).collect()
        };
        let all = Request::Ss { listening: false, all: true, tcp: true, udp: false };
        let sockets = rows(&all, "sockets");
        let events: Vec<String> = (0..4)
            .map(|server| rows(&Request::Trace { server, since: 0 }, "events"))
            .map(|mut rows| rows.split_off(rows.len().saturating_sub(12)).join("\n"))
            .collect();
        io::Error::new(
            ErrorKind::WouldBlock,
            format!("{local} after {exchanges} exchanges: {sockets:?}\n{}", events.join("\n\n")),
        )
    }
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn block(len: u64, seed: u64) -> Vec<u8> {
    crate::support::content::bytes(len as usize, seed)
}

fn same(wanted: &[u8], got: &[u8]) -> io::Result<()> {
    if wanted == got {
        return Ok(());
    }
    let at = wanted.iter().zip(got).position(|(one, other)| one != other);
    let what = format!("wrong bytes: {} of {}, first at {at:?}", got.len(), wanted.len());
    Err(io::Error::new(ErrorKind::InvalidData, what))
}

fn read_slowly(mut stream: TcpStream, heard: &mut Vec<u8>) -> io::Result<()> {
    let mut room = vec![0; 1 << 18];
    loop {
        match stream.read(&mut room)? {
            0 => return Ok(()),
            len => heard.extend_from_slice(&room[..len]),
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A whole answer with this body, and success.
fn check_answer(stream: &mut BufReader<TcpStream>, body: &[u8]) -> io::Result<()> {
    let (mut line, mut length, mut first) = (String::new(), None, None);
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if first.is_none() {
            first = Some(line.clone());
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok();
        }
    }
    let first = first.unwrap_or_default();
    if !first.starts_with("HTTP/1.1 2") {
        return Err(io::Error::other(format!("answer {first:?}")));
    }
    let mut got = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut got)?;
    if body.is_empty() { Ok(()) } else { same(body, &got) }
}

/// What a [`Restless`] has done.
#[derive(Clone, Debug, Default)]
pub struct Moved {
    /// Buckets that moved.
    pub buckets: u64,
    /// Connections in them.
    pub connections: u64,
    /// TIME-WAIT records in them.
    pub time_wait: u64,
    /// The longest that a bucket was on the way, in microseconds.
    pub longest_us: u64,
    /// Why others did not, and how often.
    pub stayed: BTreeMap<String, u64>,
    /// Questions that the service did not answer.
    pub unanswered: u64,
}

/// A thread that moves the buckets with the most connections to another server, again and again.
pub struct Restless {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Moved>,
}

impl Restless {
    /// Of the service at this control directory; pauses for `pause` after each round.
    pub fn start(control: PathBuf, pause: Duration, seed: u64) -> Restless {
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut moved, mut random) = (Moved::default(), Random::new(seed));
            while !over.load(Ordering::Relaxed) {
                if let Some(report) = look(&control) {
                    let lost = report.servers.iter().map(|row| row.counters.lost).sum::<u64>();
                    assert_eq!(lost, 0, "buckets that could not be put back: {report:?}");
                    round(&control, &report, &mut random, &mut moved);
                } else {
                    moved.unanswered += 1;
                }
                thread::sleep(pause);
            }
            moved
        });
        Restless { stop, thread }
    }

    /// Ends it after the move that is under way.
    pub fn stop(self) -> Moved {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread that moves buckets")
    }
}

/// What `haypile steer` shows; `None` while the service cannot say.
pub fn look(control: &Path) -> Option<SteerReport> {
    serde_json::from_value(ask(control, &Request::Steer {}).ok()?).ok()
}

/// The buckets with the most connections of each server go to another.
fn round(control: &Path, report: &SteerReport, random: &mut Random, moved: &mut Moved) {
    let servers = report.servers.len() as u64;
    for row in &report.servers {
        for busy in &row.busiest {
            let away = 1 + random.next() % servers.saturating_sub(1).max(1);
            let to = ((u64::from(row.server) + away) % servers) as u16;
            let what = Selection::Bucket(busy.bucket);
            let request = Request::SteerMove { what, to, patience_ms: 5000 };
            let answer = ask(control, &request).ok();
            let rows = answer.and_then(|answer| serde_json::from_value::<MoveReport>(answer).ok());
            let Some(MoveReport { moves }) = rows else {
                moved.unanswered += 1;
                continue;
            };
            for row in moves {
                moved.longest_us = moved.longest_us.max(row.us);
                match row.why {
                    None => {
                        moved.buckets += 1;
                        moved.connections += row.connections as u64;
                        moved.time_wait += row.time_wait as u64;
                    }
                    Some(why) => *moved.stayed.entry(why).or_default() += 1,
                }
            }
        }
    }
}
