//! Worker processes that sleep instead of computing: each takes one connection, answers its request
//! after its service time, closes, and takes the next. Ordinary programs over sockets of the standard
//! library, so that the same ones serve on the kernel and, under the preload library, on Haypile.
//!
//! Which worker is slow when stands in a file that the experiment writes when its window begins, and
//! that workers read at each request. Started by `parts`, as a parent and its workers.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use haypile_shm::sys;
use serde::{Deserialize, Serialize};

use crate::load::conversation::patterned;
use crate::parts::Part;
use crate::simulation::workload::Delays;

/// Requests with longer heads end the connection.
const HEAD_MAX: usize = 4096;
/// A client that says nothing is given up.
const PATIENCE: Duration = Duration::from_secs(5);
const BACKLOG: i32 = 4096;

/// A parent and its workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    /// Where they listen.
    pub address: SocketAddr,
    /// How many processes.
    pub workers: usize,
    /// A listener each (SO_REUSEPORT) instead of one that all inherit; the kernel's only.
    pub reuse_port: bool,
    /// Undisturbed service time, microseconds.
    pub base_us: u64,
    /// Who is slow when: see [`Clock`].
    pub clock: PathBuf,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// From 0.
    pub number: usize,
    /// What it belongs to.
    pub fleet: Fleet,
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clock {
    /// When delays count from, nanoseconds of the system's clock.
    pub epoch_ns: u64,
    /// The delays.
    pub delays: Delays,
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

impl Clock {
    /// Delays that count from now on.
    pub fn starting_now(delays: Delays) -> Clock {
        Clock { epoch_ns: now_ns(), delays }
    }

    /// Puts it where workers find it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let fail = |error: io::Error| format!("cannot write {}: {error}", path.display());
        let text = serde_json::to_string(self).map_err(|error| error.to_string())?;
        // At once, so that nobody reads half of it.
        let fresh = path.with_extension("new");
        fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, path)).map_err(fail)
    }

    /// What is there; nobody is slow without a file.
    fn read(path: &Path) -> Clock {
        let text = fs::read_to_string(path).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn factor(&self, worker: usize) -> f64 {
        let since_s = now_ns().saturating_sub(self.epoch_ns) as f64 / 1e9;
        self.delays.factor(worker, since_s)
    }
}

/// Is the parent: starts the workers and waits; ends when one of them does.
///
/// # Errors
/// When it cannot listen or start them, and when one has ended.
pub fn serve(fleet: &Fleet) -> Result<(), String> {
    let fail = |error: io::Error| format!("cannot serve at {}: {error}", fleet.address);
    let shared = match fleet.reuse_port {
        true => None,
        false => Some(TcpListener::bind(fleet.address).map_err(fail)?),
    };
    let program = std::env::current_exe().map_err(fail)?;
    let mut workers: Vec<Child> = Vec::new();
    for number in 0..fleet.workers {
        let words = Part::Worker(Worker { number, fleet: fleet.clone() }).words(&program);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdout(Stdio::null());
        command.stdin(match &shared {
            Some(listener) => Stdio::from(OwnedFd::from(listener.try_clone().map_err(fail)?)),
            None => Stdio::null(),
        });
        workers.push(command.spawn().map_err(fail)?);
    }
    loop {
        for (number, worker) in workers.iter_mut().enumerate() {
            if let Some(status) = worker.try_wait().map_err(fail)? {
                return Err(format!("worker {number} ended: {status}"));
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Is a worker.
///
/// # Errors
/// When there is nothing to accept from.
pub fn work(worker: &Worker) -> Result<(), String> {
    let fail = |error: io::Error| format!("worker {}: {error}", worker.number);
    let listener = match worker.fleet.reuse_port {
        true => own_listener(&worker.fleet.address)?,
        false => TcpListener::from(io::stdin().as_fd().try_clone_to_owned().map_err(fail)?),
    };
    loop {
        match listener.accept() {
            // A client that breaks off or talks nonsense concerns nobody else.
            Ok((stream, _)) => drop(answer(worker, stream)),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(fail(error)),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// A listener that shares its address with others.
fn own_listener(address: &SocketAddr) -> Result<TcpListener, String> {
    const AF_INET: i32 = 2;
    const AF_INET6: i32 = 10;
    const SOCK_STREAM: i32 = 1;
    const SOL_SOCKET: i32 = 1;
    const SO_REUSEPORT: i32 = 15;
    use std::os::fd::AsRawFd;
    let fail = |errno: haypile_shm::Errno| format!("cannot listen at {address}: {errno}");
    let domain = if address.is_ipv4() { AF_INET } else { AF_INET6 };
    let socket = sys::socket(domain, SOCK_STREAM, 0).map_err(fail)?;
    let number = socket.as_raw_fd();
    sys::setsockopt(number, SOL_SOCKET, SO_REUSEPORT, &1_i32.to_ne_bytes()).map_err(fail)?;
    sys::bind(number, address).map_err(fail)?;
    sys::listen(number, BACKLOG).map_err(fail)?;
    let copy = socket.as_fd().try_clone_to_owned();
    copy.map(TcpListener::from).map_err(|error| format!("cannot listen at {address}: {error}"))
}

/// Reads one request, sleeps, answers, closes.
fn answer(worker: &Worker, mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let bytes = stream.read(&mut buffer)?;
        if bytes == 0 || head.len() > HEAD_MAX {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..bytes]);
    }
    let times = Clock::read(&worker.fleet.clock).factor(worker.number);
    std::thread::sleep(Duration::from_nanos((worker.fleet.base_us as f64 * 1000.0 * times) as u64));
    let body = patterned(asked_for(&head).unwrap_or(0));
    let mut reply =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())
            .into_bytes();
    reply.extend_from_slice(&body);
    stream.write_all(&reply)
}

/// The number of bytes in `GET /BYTES`.
fn asked_for(head: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(head).ok()?;
    let path = text.strip_prefix("GET /")?.split(' ').next()?;
    path.parse().ok().filter(|bytes| *bytes <= 1 << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::workload::Delay;

    fn worker(number: usize, clock: &Path) -> Worker {
        let address = "127.0.0.1:0".parse().expect("an address");
        let clock = clock.to_path_buf();
        Worker {
            number,
            fleet: Fleet { address, workers: 1, reuse_port: false, base_us: 200, clock },
        }
    }

    fn ask(worker: Worker) -> (Vec<u8>, Duration) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            answer(&worker, stream).expect("an answer");
        });
        let started = std::time::Instant::now();
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(b"GET /7 HTTP/1.1\r\n\r\n").expect("sent");
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).expect("an answer");
        server.join().expect("it ends");
        (reply, started.elapsed())
    }

    #[test]
    fn a_worker_answers_after_its_time() {
        let path = std::env::temp_dir().join(format!("haypile-clock-{}", std::process::id()));
        let (reply, took) = ask(worker(0, &path));
        assert!(reply.ends_with(&patterned(7)) && took >= Duration::from_micros(200), "{took:?}");
        let delay = Delay { worker: 1, from_s: 0.0, to_s: 1e9, times: 50.0 };
        Clock::starting_now(Delays(vec![delay])).write(&path).expect("a temporary file");
        let (_, took) = ask(worker(1, &path));
        assert!(took >= Duration::from_millis(10), "{took:?}");
        fs::remove_file(&path).expect("it is there");
    }

    #[test]
    fn workers_share_an_address() {
        let first = own_listener(&"127.0.0.1:0".parse().expect("an address")).expect("a port");
        let address = first.local_addr().expect("its address");
        let second = own_listener(&address).expect("the same port");
        assert_eq!(second.local_addr().expect("its address"), address);
    }
}
