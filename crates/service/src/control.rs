//! The control socket: one JSON object a line in, one JSON object a line out.
//!
//! Owns the Unix socket, its connections and the words of the protocol; what a request means is
//! `server`'s business. Called by `event_loop` when a descriptor is readable. Try it by hand:
//! `echo '{"command":"status"}' | socat - UNIX-CONNECT:/run/haypile/control.sock`.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::Permissions;
use std::io::{BufRead, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::BalanceChange;
use crate::error::Error;
use crate::moving::Selection;

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Version of the program and of the shared layouts.
    Version {},
    /// Servers, link, memory, processes, drop reasons.
    Status {},
    /// How connections are balanced, after this change.
    Balance {
        /// What is to be different; nothing that is left out.
        #[serde(default)]
        change: BalanceChange,
    },
    /// Which transport server has which TCP flows.
    Steer {},
    /// Moves TCP flows to another transport server; answered when that is done, or patience is over.
    SteerMove {
        /// Which.
        what: Selection,
        /// To which transport server.
        to: u16,
        /// How long to go on trying, in milliseconds.
        patience_ms: u64,
    },
    /// TCP and UDP sockets.
    Ss {
        /// Listeners only.
        #[serde(default)]
        listening: bool,
        /// Everything, TIME-WAIT records too.
        #[serde(default)]
        all: bool,
        /// TCP sockets; without `udp`, those alone.
        #[serde(default)]
        tcp: bool,
        /// UDP sockets; without `tcp`, those alone.
        #[serde(default)]
        udp: bool,
    },
    /// What happened to connections.
    Trace {
        /// Which transport server's: each counts its own events.
        #[serde(default)]
        server: u16,
        /// Number of the first event wanted; 0 = the oldest there is.
        #[serde(default)]
        since: u64,
    },
    /// Writes every frame to a pcapng file until stopped.
    CaptureStart {
        /// Absolute path of the file; it must not exist.
        path: PathBuf,
        /// Stop after this many bytes; 0 = the service's default.
        #[serde(default)]
        max_bytes: u64,
    },
    /// Ends a capture.
    CaptureStop {},
    /// Looks a name up, or the names of an address; answered when the name servers have answered.
    Resolve {
        /// A name or an address.
        name: String,
    },
    /// Makes a server fail in this way, for tests of what happens then.
    Fail {
        /// Which server of the plan.
        #[serde(default)]
        server: u16,
        /// In which.
        how: Failure,
    },
    /// Changes the plan; `PlanState` says when that is done.
    PlanSet {
        /// The new plan, in the notation TS1LS1CM1.
        plan: String,
    },
    /// How far the last change of the plan is.
    PlanState {},
    /// Closes all connections and ends the service.
    Shutdown {},
}

/// The answer to [`Request::PlanState`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanState {
    /// The plan.
    pub plan: String,
    /// Servers of the plan.
    pub servers: u16,
    /// What is waited for, in words; `None` when the plan is as it is to be.
    pub awaits: Option<String>,
}

/// A way for a server to fail.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// An assertion of ours breaks.
    Panic,
    /// A system call that the sandbox forbids.
    ForbiddenCall,
}

/// Names one connection of the control socket.
pub type ClientId = u64;

/// The listening control socket and its connections, or connections alone: a server's come from its
/// supervisor.
#[derive(Default)]
pub struct ControlSocket {
    listening: Option<(UnixListener, PathBuf)>,
    clients: HashMap<ClientId, Client>,
    next: ClientId,
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// File name of the control socket in the control directory.
pub const CONTROL_SOCKET: &str = "control.sock";
const CLIENTS_MAX: usize = 32;
const LINE_MAX: usize = 64 * 1024;
const OUTPUT_MAX: usize = 256 << 20;
/// Without an answer for so long somebody looks why.
const SILENCE: Duration = Duration::from_secs(1);

impl ControlSocket {
    /// Makes the socket with mode 0660.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn bind(directory: &Path) -> Result<ControlSocket, Error> {
        let path = directory.join(CONTROL_SOCKET);
        let fail = |why: std::io::Error| {
            Error::new(
                format_args!("control socket {}", path.display()),
                why,
                "choose another directory with --control-dir",
            )
        };
        let listener = UnixListener::bind(&path).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o660)).map_err(fail)?;
        let mut socket = ControlSocket::default();
        socket.listening = Some((listener, path));
        Ok(socket)
    }

    /// The descriptor to wait for new connections on, if it listens.
    pub fn raw_fd(&self) -> Option<RawFd> {
        self.listening.as_ref().map(|(listener, _)| listener.as_raw_fd())
    }

    /// Takes one new connection; the caller waits on its descriptor. `None` when there is none.
    pub fn accept(&mut self) -> Option<(ClientId, RawFd)> {
        let (stream, _) = self.listening.as_ref()?.0.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        self.add(stream)
    }

    /// Takes a non-blocking connection that somebody else has made.
    pub fn add(&mut self, stream: UnixStream) -> Option<(ClientId, RawFd)> {
        if self.clients.len() >= CLIENTS_MAX {
            return None;
        }
        let id = self.next;
        self.next += 1;
        let fd = stream.as_raw_fd();
        self.clients.insert(id, Client { stream, input: Vec::new(), output: Vec::new() });
        Some((id, fd))
    }

    /// Reads what a client has written. Complete lines are parsed; a line that is no request is
    /// answered here. A client that is gone or sends too much is dropped.
    pub fn read(&mut self, id: ClientId) -> Vec<Request> {
        let Some(client) = self.clients.get_mut(&id) else { return Vec::new() };
        let mut requests = Vec::new();
        let alive = client.fill() && client.input.len() <= LINE_MAX;
        let lines = client.take_lines();
        for line in lines {
            match serde_json::from_slice::<Request>(&line) {
                Ok(request) => requests.push(request),
                Err(error) => {
                    let why = format!("not a request: {error}");
                    self.answer(id, &refusal(&why));
                }
            }
        }
        if !alive && requests.is_empty() {
            self.clients.remove(&id);
        }
        requests
    }

    /// Queues one answer and writes what the client takes now. True while some is left to write:
    /// the caller waits until the descriptor is writable and calls `flush`.
    pub fn answer(&mut self, id: ClientId, answer: &Value) -> bool {
        self.answer_text(id, format!("{answer}\n").as_bytes())
    }

    /// As [`ControlSocket::answer`], with a line of JSON or a piece of one, in the order of the pieces.
    pub fn answer_text(&mut self, id: ClientId, text: &[u8]) -> bool {
        if let Some(client) = self.clients.get_mut(&id)
            && client.output.len() < OUTPUT_MAX
        {
            client.output.extend_from_slice(text);
        }
        self.flush(id)
    }

    /// Writes more of the answers. True while some is left.
    pub fn flush(&mut self, id: ClientId) -> bool {
        let Some(client) = self.clients.get_mut(&id) else { return false };
        match client.drain() {
            Ok(()) => !client.output.is_empty(),
            Err(_) => {
                self.clients.remove(&id);
                false
            }
        }
    }

    /// Descriptor of a client.
    pub fn client_fd(&self, id: ClientId) -> Option<RawFd> {
        self.clients.get(&id).map(|client| client.stream.as_raw_fd())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.listening {
            drop(std::fs::remove_file(path));
        }
    }
}

impl Client {
    /// Reads until nothing is left; false at the end of the stream.
    fn fill(&mut self) -> bool {
        let mut bytes = [0; 4096];
        while self.input.len() <= LINE_MAX {
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(len) => self.input.extend_from_slice(&bytes[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }

    fn take_lines(&mut self) -> Vec<Vec<u8>> {
        let Some(end) = self.input.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.input.split_off(end + 1);
        let complete = std::mem::replace(&mut self.input, rest);
        complete
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.iter().all(u8::is_ascii_whitespace))
            .map(<[u8]>::to_vec)
            .collect()
    }

    fn drain(&mut self) -> std::io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => drop(self.output.drain(..len)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// An answer that says no.
pub fn refusal(why: &str) -> Value {
    json!({ "ok": false, "error": why })
}

/// An answer that says yes, with the fields of `body` (an object).
pub fn acceptance(body: impl Serialize) -> Value {
    let mut answer = json!({ "ok": true });
    if let (Value::Object(all), Ok(Value::Object(more))) = (&mut answer, serde_json::to_value(body))
    {
        all.extend(more);
    }
    answer
}

/// Why a service is silent and what to do, in words, once that is known.
pub type Reason = (String, String);

/// Asks a running service, which begins to answer within 30 s; for tests and tools.
///
/// # Errors
/// When no service answers at that directory, or it refuses.
pub fn ask(directory: &Path, request: &Request) -> Result<Value, Error> {
    let stream = connect(directory)?.ok_or_else(|| nobody(directory))?;
    ask_over(stream, directory, request, Duration::from_secs(30), &mut || None)
}

/// Connects to the service at a directory. `None` when nobody listens there, or not yet.
///
/// # Errors
/// When there is a socket that does not let us in.
pub fn connect(directory: &Path) -> Result<Option<UnixStream>, Error> {
    match UnixStream::connect(directory.join(CONTROL_SOCKET)) {
        Ok(stream) => Ok(Some(stream)),
        // The second: it is bound, and will listen in a moment, or has ended and left it behind.
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(error) => Err(unreached(directory, error)),
    }
}

/// There is nobody to be asked at a directory.
pub fn nobody(directory: &Path) -> Error {
    unreached(directory, "no service runs there")
}

fn unreached(directory: &Path, why: impl Display) -> Error {
    let remedy = "start one with haypile serve, or name its directory with --control-dir";
    Error::new(asking(directory), why, remedy)
}

fn asking(directory: &Path) -> String {
    format!("ask the service at {}", directory.join(CONTROL_SOCKET).display())
}

/// As [`ask`], over a connection that is there, with another limit. Every second without an answer `reason` is asked
/// why; with one there is no more to wait for.
///
/// # Errors
/// As [`ask`]. [`Error::is_silence`] when somebody listens there and does not answer.
pub fn ask_over(
    mut stream: UnixStream,
    directory: &Path,
    request: &Request,
    limit: Duration,
    reason: &mut dyn FnMut() -> Option<Reason>,
) -> Result<Value, Error> {
    let what = asking(directory);
    let fail = |why: String| unreached(directory, why);
    let timeouts =
        stream.set_read_timeout(Some(SILENCE)).and(stream.set_write_timeout(Some(limit)));
    timeouts.map_err(|error| fail(error.to_string()))?;
    let mut line = serde_json::to_vec(request).map_err(|error| fail(error.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(|error| fail(error.to_string()))?;
    let mut reader = std::io::BufReader::new(stream);
    let mut answer = Vec::new();
    let until = Instant::now() + limit;
    // What has come stays in `answer` when the time for one look is over.
    while let Err(error) = reader.read_until(b'\n', &mut answer) {
        if error.kind() != ErrorKind::WouldBlock {
            return Err(fail(error.to_string()));
        }
        if let Some((why, remedy)) = reason() {
            return Err(Error::silence(&what, why, remedy));
        }
        if Instant::now() >= until {
            let why = format!("no answer in {} s", limit.as_secs());
            return Err(Error::silence(&what, why, "ask again later, or end it and start another"));
        }
    }
    let answer: Value = serde_json::from_slice(&answer)
        .map_err(|_| fail("it closed the connection without an answer".into()))?;
    if answer["ok"] == Value::Bool(true) {
        return Ok(answer);
    }
    let why = answer["error"].as_str().unwrap_or("refused without a reason");
    Err(Error::new(format_args!("the service in {}", directory.display()), why, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> (tempfile::TempDir, ControlSocket) {
        let directory = tempfile::tempdir().unwrap();
        let socket = ControlSocket::bind(directory.path()).unwrap();
        (directory, socket)
    }

    #[test]
    fn requests_are_parsed_strictly_and_answers_are_lines() {
        let (directory, mut socket) = socket();
        let mut client = UnixStream::connect(directory.path().join(CONTROL_SOCKET)).unwrap();
        let (id, _) = socket.accept().unwrap();
        client.write_all(b"{\"command\":\"ss\",\"all\":true}\n{\"command\":\"fly\"}\n{").unwrap();
        assert_eq!(
            socket.read(id),
            [Request::Ss { listening: false, all: true, tcp: false, udp: false }]
        );
        assert!(!socket.answer(id, &acceptance(json!({ "sockets": [] }))));
        let mut text = [0; 4096];
        let len = client.read(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..len]).to_string();
        let mut lines = text.lines();
        assert!(lines.next().unwrap().contains("unknown variant `fly`"));
        assert_eq!(lines.next().unwrap(), "{\"ok\":true,\"sockets\":[]}");
    }

    #[test]
    fn an_endless_line_ends_the_client() {
        let (directory, mut socket) = socket();
        let mut client = UnixStream::connect(directory.path().join(CONTROL_SOCKET)).unwrap();
        let (id, _) = socket.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        for _ in 0..100 {
            drop(client.write(&[b'x'; 4096]));
            assert!(socket.read(id).is_empty());
        }
        assert!(socket.client_fd(id).is_none());
    }

    #[test]
    fn the_socket_is_removed_and_guarded() {
        let (directory, socket) = socket();
        let path = directory.path().join(CONTROL_SOCKET);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists());
        let error = ask(directory.path(), &Request::Status {}).unwrap_err();
        assert!(error.to_string().contains("haypile serve"));
    }
}
