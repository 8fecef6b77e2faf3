//! How the two ends of a wire meet, and meet again. Each end has a thread of its own here, off the
//! data path, which ends with its port. Whoever locks the wire's lock file first owns its socket;
//! the other end connects to it and is sent the segment and a doorbell. Both keep the connection
//! open: its end tells that the other is gone. When the owner goes, the kernel frees the lock, and
//! the end that is left takes it.
//!
//! The files lie in a directory that only their user may enter. They are removed by their owner, or,
//! if that was killed, by whoever comes next ([`remove_leavings`]).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use haypile_shm::sys::{self, Fd, PollFd};
use haypile_shm::{Doorbell, Errno, Message, Segment, control};

use super::{Side, WIRE_LINES, segment_len};
use crate::error::LinkError;

/// Version of segment and messages; both ends must have the same.
const VERSION: u64 = 1;
/// "wire" in the first word of each message.
const MAGIC: u64 = 0x7769_7265;
/// How long a start waits for an end that is dying, or slow to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause before meeting is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// Longest name of a wire.
const NAME_MAX: usize = 32;
const POLLIN: i16 = libc::POLLIN;

/// Kinds of messages, the second word.
const WELCOME: u64 = 1;
const TAKEN: u64 = 2;
const LEAVE: u64 = 3;

/// The port's end of the channel to its thread.
#[derive(Debug)]
pub(super) struct Meeting {
    channel: Fd,
}

/// Where one end of a wire meets the other, again and again: a thread, which ends with the port that
/// has the other end of its channel, and removes the wire's files if they are ours.
#[derive(Debug)]
pub struct Rendezvous {
    thread: JoinHandle<()>,
}

/// What the thread knows.
struct Host {
    directory: PathBuf,
    name: String,
    mtu: u16,
    /// To the port; its end is ours.
    channel: Fd,
    /// To [`Rendezvous::start`], until it has heard how the first try went.
    starter: Option<SyncSender<Outcome>>,
}

/// How a try went.
#[derive(Debug)]
enum Outcome {
    /// We own the wire, or have joined its owner.
    Fine,
    /// Two others have it.
    Taken,
    /// The other end is of another version or MTU.
    Differs(String),
    Failed(LinkError),
}

/// The files of a wire that is ours. Removed when dropped.
struct Owned {
    listener: Fd,
    paths: Paths,
    _lock: File,
}

#[derive(Clone, Debug)]
struct Paths {
    directory: PathBuf,
    lock: PathBuf,
    socket: PathBuf,
}

/// Why a wait ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Wake {
    /// The port is gone.
    Over,
    /// The port wants the other end dropped.
    Leave,
    /// The descriptor at this place has something to say.
    Ready(usize),
    Timeout,
}

impl Rendezvous {
    /// Starts the thread and waits until it owns the wire `name` or has joined its owner. Gives the
    /// port's end of the channel too, for [`super::Wire::from_channel`], here or in another
    /// process. `mtu`: largest IP packet, in bytes.
    ///
    /// # Errors
    /// As [`super::Wire::open`].
    pub fn start(directory: &Path, name: &str, mtu: u16) -> Result<(Rendezvous, Fd), LinkError> {
        let (thread, channel) = start(directory, name, mtu)?;
        Ok((Rendezvous { thread }, channel))
    }

    /// Waits until the thread has ended, which takes the end of its port.
    pub fn wait(self) {
        // One that panicked has nothing more to say.
        drop(self.thread.join());
    }
}

fn start(directory: &Path, name: &str, mtu: u16) -> Result<(JoinHandle<()>, Fd), LinkError> {
    let attempt = || format!("open the wire {name}");
    let refuse = |why: String| LinkError::new(attempt(), io::Error::other(why));
    check_name(name).map_err(|why| refuse(why.to_owned()))?;
    let (ours, theirs) =
        sys::socketpair_seqpacket().map_err(|errno| LinkError::new(attempt(), errno.into()))?;
    let (starter, outcomes) = mpsc::sync_channel(1);
    let host = Host {
        directory: directory.to_owned(),
        name: name.to_owned(),
        mtu,
        channel: theirs,
        starter: Some(starter),
    };
    let thread = thread::Builder::new()
        .name(format!("wire {name}"))
        .spawn(move || host.run())
        .map_err(|error| LinkError::new(attempt(), error))?;
    // The thread answers in time unless the file system hangs.
    let error = match outcomes.recv_timeout(PATIENCE * 2) {
        Ok(Outcome::Fine) => return Ok((thread, ours)),
        Ok(Outcome::Failed(error)) => error,
        Ok(Outcome::Differs(why)) => refuse(why),
        Ok(Outcome::Taken) => refuse("it has two ends already: choose another name".to_owned()),
        Err(_) => refuse("its other end does not answer".to_owned()),
    };
    drop(ours);
    drop(thread.join());
    Err(error)
}

/// Whether a wire can have this name: up to 32 letters, digits, dashes and underscores.
///
/// # Errors
/// The rule, in words.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(legal) {
        true => Ok(()),
        false => Err("not a name for a wire: use up to 32 letters, digits, dashes and underscores"),
    }
}

/// Removes the files that an end of the wire has left, unless a living end owns them.
pub fn remove_leavings(directory: &Path, name: &str) {
    let paths = Paths::new(directory, name);
    let options = OpenOptions::new().write(true).open(&paths.lock);
    if let Ok(lock) = options
        && lock.try_lock().is_ok()
        && paths.is_locked_by(&lock)
    {
        paths.remove();
    }
}

impl Meeting {
    pub(super) fn new(channel: Fd) -> Meeting {
        Meeting { channel }
    }

    /// The descriptor to wait on.
    pub(super) fn raw(&self) -> i32 {
        self.channel.raw()
    }

    /// The next connection, if one was made. An error: there will be none any more.
    pub(super) fn next(&self) -> Result<Option<(Arc<Segment>, Doorbell, Side)>, Errno> {
        let received = match control::receive(self.channel.raw()) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let side = if received.message[4] == 0 { Side::First } else { Side::Second };
        let [Some(segment), Some(bell), ..] = received.fds else { return Ok(None) };
        // What cannot be mapped, or is not sealed, is no segment of a wire.
        let Ok(segment) = Segment::from_fd(segment, segment_len(WIRE_LINES), false) else {
            self.leave();
            return Ok(None);
        };
        Ok(Some((Arc::new(segment), Doorbell::from_fd(bell), side)))
    }

    /// Tells the thread to drop the other end and to meet again.
    pub(super) fn leave(&self) {
        // A thread that is gone has dropped it already.
        let _: Result<(), Errno> =
            control::send(self.channel.raw(), &message(LEAVE, 0, Side::First), &[]);
    }
}

fn message(kind: u64, mtu: u16, side: Side) -> Message {
    let side = u64::from(side == Side::Second);
    [MAGIC << 32 | VERSION, kind, mtu.into(), WIRE_LINES.into(), side, 0, 0, 0]
}

impl Host {
    fn run(mut self) {
        let started = Instant::now();
        loop {
            let outcome = match self.own() {
                Ok(Some(owned)) => {
                    self.tell(Outcome::Fine);
                    return self.serve(&owned);
                }
                Ok(None) => self.join(),
                Err(error) => Outcome::Failed(error),
            };
            // Somebody may be dying, or the owner's files half made.
            if started.elapsed() >= PATIENCE || !matches!(outcome, Outcome::Taken) {
                self.tell(outcome);
            }
            if self.wait(&[], Some(RETRY)) == Wake::Over {
                return;
            }
        }
    }

    /// Tells the starter how the first try went.
    fn tell(&mut self, outcome: Outcome) {
        if let Some(starter) = self.starter.take() {
            // A starter that has lost its patience needs no answer.
            drop(starter.send(outcome));
        }
    }

    /// Takes the wire; `None` when somebody else has it.
    fn own(&self) -> Result<Option<Owned>, LinkError> {
        let paths = Paths::new(&self.directory, &self.name);
        let fail = |error| LinkError::new(format!("use {}", paths.socket.display()), error);
        make_directory(&self.directory)
            .map_err(|error| LinkError::new(format!("use {}", self.directory.display()), error))?;
        let Some(lock) = paths.lock().map_err(fail)? else { return Ok(None) };
        // Of an owner that was killed.
        drop(fs::remove_file(&paths.socket));
        let listener = sys::unix_listen_seqpacket(paths.socket.as_os_str().as_bytes(), 4)
            .map_err(|errno| fail(errno.into()))?;
        fs::set_permissions(&paths.socket, Permissions::from_mode(0o600)).map_err(fail)?;
        Ok(Some(Owned { listener, paths, _lock: lock }))
    }

    /// Lets others join, one at a time, until the port is gone.
    fn serve(&self, owned: &Owned) {
        let mut other: Option<Fd> = None;
        loop {
            let fds: Vec<i32> = other.iter().map(Fd::raw).chain([owned.listener.raw()]).collect();
            match self.wait(&fds, None) {
                Wake::Over => return,
                Wake::Leave => other = None,
                // It has nothing to say but its end, and that comes before a new one.
                Wake::Ready(0) if other.is_some() => other = None,
                Wake::Ready(_) => {
                    let Ok((connection, _)) = sys::accept4(owned.listener.raw(), CONNECTION) else {
                        continue;
                    };
                    if other.is_some() {
                        let taken = message(TAKEN, self.mtu, Side::Second);
                        let _: Result<(), Errno> = control::send(connection.raw(), &taken, &[]);
                    } else if self.welcome(&connection).is_ok() {
                        other = Some(connection);
                    }
                    // Nobody can make us do this all the time.
                    self.pause();
                }
                Wake::Timeout => {}
            }
        }
    }

    fn pause(&self) {
        thread::sleep(Duration::from_millis(2));
    }

    /// Makes a segment and gives it to both ends.
    fn welcome(&self, connection: &Fd) -> Result<(), Errno> {
        let segment = Segment::create("haypile-wire", segment_len(WIRE_LINES))?;
        let (ours, theirs) = Doorbell::pair()?;
        let memory = segment.fd().ok_or(Errno::EBADF)?;
        let second = message(WELCOME, self.mtu, Side::Second);
        control::send(connection.raw(), &second, &[memory, theirs.raw()])?;
        let first = message(WELCOME, self.mtu, Side::First);
        control::send(self.channel.raw(), &first, &[memory, ours.raw()])
    }

    /// Joins the owner and stays until it or the port is gone.
    fn join(&mut self) -> Outcome {
        let paths = Paths::new(&self.directory, &self.name);
        let kind = libc::SOCK_SEQPACKET | CONNECTION;
        let connection = sys::socket(libc::AF_UNIX, kind, 0).and_then(|fd| {
            sys::unix_connect(fd.raw(), paths.socket.as_os_str().as_bytes()).map(|()| fd)
        });
        // The owner is about to make the socket, or is dying.
        let Ok(connection) = connection else { return Outcome::Taken };
        let received = match self.wait(&[connection.raw()], Some(PATIENCE)) {
            Wake::Ready(_) => control::receive(connection.raw()),
            _ => return Outcome::Taken,
        };
        let Ok(received) = received else { return Outcome::Taken };
        match self.check(&received.message) {
            Outcome::Fine => {}
            other => return other,
        }
        if let [Some(segment), Some(bell), ..] = &received.fds {
            let second = message(WELCOME, self.mtu, Side::Second);
            let fds = [segment.raw(), bell.raw()];
            if control::send(self.channel.raw(), &second, &fds).is_err() {
                return Outcome::Taken;
            }
        }
        drop(received);
        self.tell(Outcome::Fine);
        // The connection has nothing to say but its end.
        self.wait(&[connection.raw()], None);
        Outcome::Fine
    }

    /// Whether the owner's message is an invitation that we can follow.
    fn check(&self, message: &Message) -> Outcome {
        if message[0] != MAGIC << 32 | VERSION || message[3] != u64::from(WIRE_LINES) {
            return Outcome::Differs("its other end is of another version of Haypile".to_owned());
        }
        match message[1] {
            WELCOME if message[2] == u64::from(self.mtu) => Outcome::Fine,
            WELCOME => Outcome::Differs(format!(
                "its other end has an MTU of {} bytes, this one {}: use the same --mtu",
                message[2], self.mtu
            )),
            _ => Outcome::Taken,
        }
    }

    /// Waits for the port's end, for one of `fds`, or for the time to pass.
    fn wait(&self, fds: &[i32], timeout: Option<Duration>) -> Wake {
        let entry = |fd: i32| PollFd { fd, events: POLLIN, revents: 0 };
        let mut entries: Vec<PollFd> =
            [self.channel.raw()].iter().chain(fds).map(|fd| entry(*fd)).collect();
        if !sys::ppoll(&mut entries, timeout).is_ok_and(|ready| ready > 0) {
            return Wake::Timeout;
        }
        if entries[0].revents != 0 {
            let received = control::receive(self.channel.raw());
            return if received.is_ok() { Wake::Leave } else { Wake::Over };
        }
        match entries[1..].iter().position(|entry| entry.revents != 0) {
            Some(index) => Wake::Ready(index),
            None => Wake::Timeout,
        }
    }
}

/// How both ends make their connections.
const CONNECTION: i32 = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

impl Paths {
    fn new(directory: &Path, name: &str) -> Paths {
        Paths {
            directory: directory.to_owned(),
            lock: directory.join(format!("{name}.lock")),
            socket: directory.join(format!("{name}.sock")),
        }
    }

    /// The lock file, locked; `None` when somebody else has it, or removes it just now.
    fn lock(&self) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        let opened = options.create(true).truncate(false).write(true).mode(0o600).open(&self.lock);
        let lock = match opened {
            Ok(lock) => lock,
            // The directory, by the end of another wire.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match lock.try_lock() {
            Ok(()) => Ok(self.is_locked_by(&lock).then_some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether the name still stands for the file that is locked.
    fn is_locked_by(&self, lock: &File) -> bool {
        let same = |one: &fs::Metadata, other: &fs::Metadata| {
            (one.dev(), one.ino()) == (other.dev(), other.ino())
        };
        match (lock.metadata(), fs::metadata(&self.lock)) {
            (Ok(one), Ok(other)) => same(&one, &other),
            _ => false,
        }
    }

    /// Removes everything, the lock last of the files.
    fn remove(&self) {
        drop(fs::remove_file(&self.socket));
        drop(fs::remove_file(&self.lock));
        // Fails while there are other wires.
        drop(fs::remove_dir(&self.directory));
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.paths.remove();
    }
}

/// Makes the directory of the wires, which nobody else may enter.
fn make_directory(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().mode(0o711).recursive(true).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        other => return other,
    }
    // Whoever may write to the directory could put a socket of their own in the place of ours.
    let data = fs::symlink_metadata(path)?;
    let own = fs::metadata("/proc/self")?.uid();
    if !data.is_dir() || data.uid() != own || data.mode() & 0o077 != 0 {
        let why = "it is not a directory of ours that nobody else may enter";
        return Err(io::Error::new(ErrorKind::PermissionDenied, why));
    }
    Ok(())
}
