//! The demo's own HTTP client: ordinary blocking sockets of the standard library, run on the kernel's side of the link.
//! It makes short connections or keeps them alive, checks every byte, and records how long each request took.

use super::content::{Item, first_wrong};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How the requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A connection for every request.
    Short,
    /// Every client keeps its connection.
    KeepAlive,
}

/// One load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Where the server is.
    pub server: SocketAddr,
    /// What is asked for.
    pub item: Item,
    /// How.
    pub mode: Mode,
    /// Clients at the same time, each a thread.
    pub clients: usize,
    /// Requests in all.
    pub requests: usize,
}

/// What a load measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Requests answered rightly.
    pub right: usize,
    /// What went wrong, one sentence each, the first few.
    pub wrong: Vec<String>,
    /// Wall time of the whole load.
    pub seconds: f64,
    /// Microseconds each request took, sorted.
    pub latency_us: Vec<u64>,
}

const TIMEOUT: Duration = Duration::from_secs(20);
const WRONG_KEPT: usize = 5;

impl Measured {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.right as f64 / self.seconds } else { 0.0 }
    }

    /// The latency that `percent` of the requests did not exceed.
    pub fn percentile_us(&self, percent: f64) -> u64 {
        let last = self.latency_us.len().saturating_sub(1);
        let index = (last as f64 * percent / 100.0).round() as usize;
        self.latency_us.get(index).copied().unwrap_or(0)
    }

    fn absorb(&mut self, other: Measured) {
        self.right += other.right;
        self.latency_us.extend(other.latency_us);
        self.wrong.extend(other.wrong);
    }
}

/// Makes the load and waits for its end.
pub fn run(load: Load) -> Measured {
    let taken = AtomicUsize::new(0);
    let started = Instant::now();
    let mut total = Measured::default();
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..load.clients).map(|_| scope.spawn(|| one_client(load, &taken))).collect();
        for worker in workers {
            match worker.join() {
                Ok(measured) => total.absorb(measured),
                Err(_) => total.wrong.push("a client thread ended abnormally".to_string()),
            }
        }
    });
    total.seconds = started.elapsed().as_secs_f64();
    total.latency_us.sort_unstable();
    total
}

fn one_client(load: Load, taken: &AtomicUsize) -> Measured {
    let mut measured = Measured::default();
    let mut kept = None;
    let mut body = Vec::with_capacity(load.item.bytes);
    while taken.fetch_add(1, Ordering::Relaxed) < load.requests {
        let started = Instant::now();
        match one_request(load, &mut kept, &mut body) {
            Ok(()) => {
                measured.latency_us.push(started.elapsed().as_micros() as u64);
                match first_wrong(load.item, &body) {
                    None => measured.right += 1,
                    Some(position) => {
                        measured.note(format!("{}: byte {position} is wrong", load.item.name));
                    }
                }
            }
            Err(error) => {
                kept = None;
                measured.note(format!("{}: {error}", load.item.name));
            }
        }
    }
    measured
}

impl Measured {
    fn note(&mut self, what: String) {
        if self.wrong.len() < WRONG_KEPT {
            self.wrong.push(what);
        }
    }
}

fn connect(server: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(BufReader::with_capacity(64 * 1024, stream))
}

fn one_request(
    load: Load,
    kept: &mut Option<BufReader<TcpStream>>,
    body: &mut Vec<u8>,
) -> io::Result<()> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => connect(load.server)?,
    };
    let connection = if load.mode == Mode::Short { "close" } else { "keep-alive" };
    let request = format!(
        "GET /{} HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n\r\n",
        load.item.name, load.server
    );
    stream.get_mut().write_all(request.as_bytes())?;
    let length = read_head(&mut stream)?;
    body.clear();
    stream.by_ref().take(length).read_to_end(body)?;
    if load.mode == Mode::Short {
        expect_end(&mut stream)?;
    } else {
        *kept = Some(stream);
    }
    Ok(())
}

/// Reads the status line and the headers; returns the length of the body.
fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<u64> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
    let mut line = String::new();
    stream.read_line(&mut line)?;
    if line.split(' ').nth(1) != Some("200") {
        return Err(invalid(&format!("the server answered '{}'", line.trim())));
    }
    let mut length = None;
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(invalid("the answer ended in its headers"));
        }
        let header = line.trim();
        if header.is_empty() {
            return length.ok_or_else(|| invalid("the answer has no length"));
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok();
        }
    }
}

fn expect_end(stream: &mut BufReader<TcpStream>) -> io::Result<()> {
    let mut rest = [0; 1];
    if stream.read(&mut rest)? == 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "bytes after the end of the answer"))
}
