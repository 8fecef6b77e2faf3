//! HTTP clients on the kernel's side: curl, and one on the standard library's sockets that tells apart how a
//! connection ended, for tests that kill servers.

use super::process::Finished;
use super::stage::Stage;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The words of a curl command that fails on anything but success.
pub const CURL: [&str; 8] =
    ["curl", "--silent", "--show-error", "--fail", "--globoff", "--noproxy", "*", "--max-time"];

/// Fetches `url` into `file` by curl and returns the seconds it took.
#[track_caller]
pub fn fetch(stage: &Stage, url: &str, file: &Path, limit_s: u64) -> f64 {
    let (limit, file) = (limit_s.to_string(), file.display().to_string());
    let words = [&CURL[..], &[&limit, "--output", &file, url]].concat();
    let started = Instant::now();
    curl(stage, &words, limit_s).expect_success(&format!("fetch {url}"));
    started.elapsed().as_secs_f64()
}

/// Sends `file` to `url` by PUT and returns the seconds it took.
#[track_caller]
pub fn upload(stage: &Stage, url: &str, file: &Path, limit_s: u64) -> f64 {
    let (limit, file) = (limit_s.to_string(), file.display().to_string());
    let words = [&CURL[..], &[&limit, "--upload-file", &file, url]].concat();
    let started = Instant::now();
    curl(stage, &words, limit_s).expect_success(&format!("upload to {url}"));
    started.elapsed().as_secs_f64()
}

fn curl(stage: &Stage, words: &[&str], limit_s: u64) -> Finished {
    stage.output(words, Duration::from_secs(limit_s + 5))
}

/// The URL of a file.
pub fn url(address: SocketAddr, name: &str) -> String {
    format!("http://{address}/{name}")
}

/// How requests of a [`Load`] ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Answered in full.
    pub right: u64,
    /// Refused, reset, or ended before the answer was complete: what a killed server may cause.
    pub broken: u64,
    /// Nothing came for as long as the client waits: what must never happen.
    pub silent: u64,
    /// The same, of the connection itself.
    pub unconnected: u64,
    /// Answered, but not as asked.
    pub wrong: u64,
}

/// Clients that ask again and again until they are told to stop.
pub struct Load {
    stop: std::sync::Arc<AtomicBool>,
    clients: Vec<JoinHandle<Outcome>>,
}

const SILENCE: Duration = Duration::from_secs(30);

impl Load {
    /// Starts `clients` threads that fetch `name`, which has `len` bytes, on a connection each time.
    pub fn start(clients: usize, server: SocketAddr, name: &str, len: u64) -> Load {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let client = |_| {
            let (stop, name) = (stop.clone(), name.to_string());
            thread::spawn(move || ask_until(&stop, server, &name, len))
        };
        let clients = (0..clients).map(client).collect();
        Load { stop, clients }
    }

    /// Ends the load after the requests that are under way.
    pub fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Outcome::default();
        for client in self.clients {
            let one = client.join().expect("a client's thread");
            total.right += one.right;
            total.broken += one.broken;
            total.silent += one.silent;
            total.unconnected += one.unconnected;
            total.wrong += one.wrong;
        }
        total
    }
}

fn ask_until(stop: &AtomicBool, server: SocketAddr, name: &str, len: u64) -> Outcome {
    let mut outcome = Outcome::default();
    while !stop.load(Ordering::Relaxed) {
        match ask(server, name) {
            Ok(got) if got == len => outcome.right += 1,
            Ok(_) => outcome.wrong += 1,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => outcome.silent += 1,
                ErrorKind::TimedOut => outcome.unconnected += 1,
                _ => {
                    outcome.broken += 1;
                    // A refused connection is answered at once: leave the server time to come back.
                    thread::sleep(Duration::from_millis(2));
                }
            },
        }
    }
    outcome
}

/// One request on a connection of its own; the number of bytes of the answer's body.
///
/// # Errors
/// Of the socket; `UnexpectedEof` when the answer is shorter than its head says.
pub fn ask(server: SocketAddr, name: &str) -> io::Result<u64> {
    let mut stream = TcpStream::connect_timeout(&server, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let request = format!("GET /{name} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut stream = BufReader::with_capacity(64 * 1024, stream);
    let length = read_head(&mut stream)?;
    let got = io::copy(&mut stream.by_ref().take(length), &mut io::sink())?;
    if got == length { Ok(got) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<u64> {
    let mut line = String::new();
    let mut length = None;
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let header = line.trim();
        if header.is_empty() {
            return length.ok_or_else(|| io::Error::other("the answer has no length"));
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok();
        }
    }
}
