//! The built-in server: HTTP answers of a fixed body, echo, sink and source on one port, one thread
//! a worker. An ordinary program over sockets of the standard library, so that the same binary
//! serves on the kernel and, under the preload library, on Haypile. With a service time it answers
//! one request after the other, each after exactly that time, which is what the load generator is
//! checked against. Started by `parts`; what it is asked is in `load::conversation`.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::load::conversation::{BULK_BYTES, ECHO, SINK, SOURCE, patterned};

/// Requests with longer heads are refused.
const HEAD_MAX: usize = 16 * 1024;
/// Largest body that a request may ask for.
const BODY_MAX: usize = 16 << 20;
/// Bulk pieces that one connection moves before the next one has its turn.
const PIECES_PER_TURN: usize = 8;
/// Echoed bytes that wait for a slow reader before we stop reading.
const ECHO_WAITING_MAX: usize = 1 << 20;
const LISTENER: Token = Token(usize::MAX);

/// How to serve.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub address: SocketAddr,
    /// Threads, each with its own connections.
    pub workers: usize,
    /// Each request takes this long, during which a worker does nothing else.
    pub service: Duration,
    /// Look for events without ever sleeping.
    pub polling: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The first line has not come yet.
    Unknown,
    Http,
    Echo,
    Sink,
    Source,
}

struct Connection {
    stream: TcpStream,
    mode: Mode,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// Close when everything is sent.
    last: bool,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It waits for an event.
    Waits,
    /// It has more to do.
    Again,
    /// It is over.
    Over,
}

struct Worker {
    config: Config,
    poll: Poll,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    again: Vec<usize>,
    buffer: Vec<u8>,
    bulk: Vec<u8>,
    body: Vec<u8>,
}

/// Serves until the process is killed. `ready` is called once it listens.
///
/// # Errors
/// When it cannot listen.
pub fn serve(config: &Config, ready: impl FnOnce(SocketAddr)) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(config.address)?;
    listener.set_nonblocking(true)?;
    ready(listener.local_addr()?);
    let copies: Vec<std::net::TcpListener> =
        (1..config.workers.max(1)).map(|_| listener.try_clone()).collect::<io::Result<_>>()?;
    std::thread::scope(|scope| {
        for copy in copies {
            scope.spawn(|| Worker::new(config, copy).and_then(|mut worker| worker.run()));
        }
        Worker::new(config, listener)?.run()
    })
}

impl Worker {
    fn new(config: &Config, listener: std::net::TcpListener) -> io::Result<Worker> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Worker {
            config: config.clone(),
            poll,
            listener,
            connections: Vec::new(),
            free: Vec::new(),
            again: Vec::new(),
            buffer: vec![0; BULK_BYTES],
            bulk: patterned(BULK_BYTES),
            body: Vec::new(),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            let busy = self.config.polling || !self.again.is_empty();
            match self.poll.poll(&mut events, busy.then_some(Duration::ZERO)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            for index in std::mem::take(&mut self.again) {
                self.turn(index);
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    Token(index) => self.turn(index),
                }
            }
        }
    }

    /// Takes every connection that waits; one that another worker took first, or that broke off, concerns nobody.
    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            // Without it small answers may wait for an acknowledgement.
            drop(stream.set_nodelay(true));
            let index = self.free.pop().unwrap_or(self.connections.len());
            let interest = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().register(&mut stream, Token(index), interest).is_err() {
                self.free.push(index);
                continue;
            }
            let connection = Connection {
                stream,
                mode: Mode::Unknown,
                input: Vec::new(),
                output: Vec::new(),
                sent: 0,
                last: false,
            };
            match self.connections.get_mut(index) {
                Some(place) => *place = Some(connection),
                None => self.connections.push(Some(connection)),
            }
        }
    }

    fn turn(&mut self, index: usize) {
        let Some(mut connection) = self.connections.get_mut(index).and_then(Option::take) else {
            return;
        };
        match self.converse(&mut connection) {
            Ok(Turn::Over) | Err(_) => self.free.push(index),
            Ok(turn) => {
                self.connections[index] = Some(connection);
                if turn == Turn::Again {
                    self.again.push(index);
                }
            }
        }
    }

    /// Reads, answers and sends until the connection waits, is over, or has had its turn.
    fn converse(&mut self, connection: &mut Connection) -> io::Result<Turn> {
        for _ in 0..PIECES_PER_TURN {
            if connection.mode == Mode::Source && !connection.flush()? {
                return Ok(Turn::Waits);
            }
            if connection.mode == Mode::Source {
                match connection.stream.write(&self.bulk) {
                    Err(error) if waits(&error) => return Ok(Turn::Waits),
                    result => drop(result?),
                }
                continue;
            }
            let all_sent = connection.flush()?;
            if connection.last {
                return Ok(if all_sent { Turn::Over } else { Turn::Waits });
            }
            if connection.output.len() - connection.sent > ECHO_WAITING_MAX {
                return Ok(Turn::Waits);
            }
            let bytes = match connection.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(Turn::Over),
                Err(error) if waits(&error) => return Ok(Turn::Waits),
                result => result?,
            };
            let input = std::mem::take(&mut self.buffer);
            let understood = self.take(connection, &input[..bytes]);
            self.buffer = input;
            if !understood {
                return Ok(Turn::Over);
            }
        }
        connection.flush()?;
        Ok(Turn::Again)
    }

    /// Handles received bytes. False: nothing that we understand.
    fn take(&mut self, connection: &mut Connection, bytes: &[u8]) -> bool {
        match connection.mode {
            Mode::Sink => return true,
            Mode::Source => return true,
            Mode::Echo => {
                self.work();
                connection.output.extend_from_slice(bytes);
                return true;
            }
            Mode::Unknown | Mode::Http => connection.input.extend_from_slice(bytes),
        }
        if connection.mode == Mode::Unknown {
            let Some(end) = connection.input.iter().position(|byte| *byte == b'\n') else {
                return connection.input.len() <= HEAD_MAX;
            };
            connection.mode = match &connection.input[..=end] {
                ECHO => Mode::Echo,
                SINK => Mode::Sink,
                SOURCE => Mode::Source,
                _ => Mode::Http,
            };
            if connection.mode != Mode::Http {
                let rest = connection.input.split_off(end + 1);
                return rest.is_empty() || self.take(connection, &rest);
            }
        }
        self.answer_requests(connection)
    }

    fn answer_requests(&mut self, connection: &mut Connection) -> bool {
        while let Some(at) = connection.input.windows(4).position(|four| four == b"\r\n\r\n") {
            let Some(request) = Request::parse(&connection.input[..at]) else { return false };
            connection.input.drain(..at + 4);
            self.work();
            if self.body.len() != request.body_bytes {
                self.body = patterned(request.body_bytes);
            }
            let word = if request.close { "close" } else { "keep-alive" };
            let head = format!(
                "HTTP/1.1 200 OK\r\nServer: haypile-bench\r\nContent-Length: {}\r\nConnection: {word}\r\n\r\n",
                self.body.len()
            );
            connection.output.extend_from_slice(head.as_bytes());
            connection.output.extend_from_slice(&self.body);
            connection.last = request.close;
        }
        connection.input.len() <= HEAD_MAX
    }

    /// The service time: busy, because a sleep would be longer than asked.
    fn work(&self) {
        if self.config.service > Duration::ZERO {
            let started = Instant::now();
            while started.elapsed() < self.config.service {
                std::hint::spin_loop();
            }
        }
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl Connection {
    /// Sends what waits. True: all of it.
    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if waits(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(true)
    }
}

/// What an HTTP request asks: `GET /BYTES`.
struct Request {
    body_bytes: usize,
    close: bool,
}

impl Request {
    /// From a head without its end. `None`: not such a request.
    fn parse(head: &[u8]) -> Option<Request> {
        let text = std::str::from_utf8(head).ok()?;
        let mut lines = text.split("\r\n");
        let path = lines.next()?.strip_prefix("GET /")?.split(' ').next()?;
        let body_bytes = path.parse().ok().filter(|bytes| *bytes <= BODY_MAX)?;
        let close = lines.any(|line| line.eq_ignore_ascii_case("connection: close"));
        Some(Request { body_bytes, close })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::kernel::Sockets;
    use crate::load::{Pace, Spec, Work, generator};
    use std::sync::mpsc;

    fn start(service: Duration, workers: usize) -> SocketAddr {
        let address = "127.0.0.1:0".parse().expect("an address");
        let config = Config { address, workers, service, polling: false };
        let (tell, told) = mpsc::channel();
        // It serves until the tests end.
        std::thread::spawn(move || {
            serve(&config, |address| tell.send(address).expect("somebody waits"))
        });
        told.recv_timeout(Duration::from_secs(60)).expect("it listens")
    }

    /// The load of a fifth of a second, or of longer windows if others let it complete nothing in that.
    fn load(target: SocketAddr, work: Work, connections: usize) -> crate::load::Outcome {
        for window_s in [0.2, 2.0] {
            match load_for(window_s, target, &work, connections) {
                Ok(outcome) if outcome.completed > 0 || outcome.bytes > 0 => return outcome,
                _ => {}
            }
        }
        load_for(20.0, target, &work, connections).expect("answers")
    }

    fn load_for(
        duration_s: f64,
        target: SocketAddr,
        work: &Work,
        connections: usize,
    ) -> std::io::Result<crate::load::Outcome> {
        let spec = Spec {
            target,
            work: work.clone(),
            pace: Pace::Closed,
            connections,
            warmup_s: 0.02,
            duration_s,
            polling: false,
            body_bytes: 500,
        };
        let mut sockets = Sockets::new(target, connections, false).expect("epoll");
        generator::run(&spec, &mut sockets, &mut ())
    }

    #[test]
    fn it_answers_every_kind_of_work() {
        let target = start(Duration::ZERO, 2);
        for work in [Work::Short, Work::KeepAlive, Work::Echo(1), Work::Echo(10_000)] {
            let outcome = load(target, work.clone(), 3);
            assert_eq!(outcome.failed, 0, "{work:?}: {:?}", outcome.errors);
            assert!(outcome.completed > 0, "{work:?}");
            assert_eq!(outcome.histogram().count(), outcome.completed);
        }
        for work in [Work::Upload, Work::Download] {
            let outcome = load(target, work.clone(), 2);
            assert_eq!(outcome.failed, 0, "{work:?}: {:?}", outcome.errors);
            assert!(outcome.bytes > 0, "{work:?}");
        }
    }

    /// No latency is below the service time, and no rate above what it allows, however busy the machine is.
    #[test]
    fn a_known_service_time_bounds_latency_and_rate() {
        let service = Duration::from_micros(300);
        let target = start(service, 1);
        for connections in [1, 8] {
            let outcome = load(target, Work::KeepAlive, connections);
            let latencies = outcome.histogram();
            let shortest_ns = latencies.quantile_ns(0.0);
            assert!(shortest_ns as f64 >= 0.999 * service.as_nanos() as f64, "{shortest_ns} ns");
            // Those under way at both ends of the window may add one for each connection.
            let most = outcome.seconds / service.as_secs_f64() + connections as f64;
            assert!(outcome.completed as f64 <= most, "{} of {most}", outcome.completed);
        }
    }

    #[test]
    fn nonsense_ends_the_connection() {
        let target = start(Duration::ZERO, 1);
        for nonsense in [
            "GET /x HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\n\r\n",
            "GET /99999999999 HTTP/1.1\r\n\r\n",
        ] {
            let mut stream = std::net::TcpStream::connect(target).expect("it listens");
            stream.write_all(nonsense.as_bytes()).expect("sent");
            let mut rest = Vec::new();
            // A reset is an end as well.
            drop(stream.read_to_end(&mut rest));
            assert!(rest.is_empty(), "{nonsense}");
        }
    }
}
