//! Reading and writing connections, with the flags and the blocking of the send and recv families.
//!
//! The bytes are copied by `AppStream`; here is what happens when there are none, or no room: an
//! error, the end, EAGAIN, or a wait. A wait spins for a moment and then sleeps in the kernel, in a
//! call that signals interrupt by the same rules as the kernel's own reads (`SA_RESTART`), and in
//! slices, so that a service that dies leaves nobody hanging.
//!
//! A look that finds that the connection is at another server by now has done nothing: the call follows it
//! there (`following.rs`) and looks again, with what it has done and what is left of its time.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use haypile_shm::messages::{OPTION_MORE, RequestBody};
use haypile_shm::spin::Spinner;
use haypile_shm::stream::{FileStop, ReadOutcome, StreamError, WriteOutcome, status};
use haypile_shm::sys::{self, Waited};
use haypile_shm::{CHUNK_SIZE, Errno};

use crate::attach::{self, Current};
use crate::datagram;
use crate::entry::{self, Phase, Pinned, flag};
use crate::errno::{SERVICE_GONE, TO_KERNEL};
use crate::following::{ELSEWHERE_OR_OVER, Followed, is_moved};
use crate::memory::Record;
use crate::places::StreamRef;

/// Longest sleep before the life of the service is looked at again.
const SLICE_NS: u64 = 1_000_000_000;
/// The same where the sleep does not end by itself when the server dies.
const SHORT_SLICE_NS: u64 = 50_000_000;
/// How long a writer that only waits for memory spins, where spinning makes sense at all: the
/// service answers within a turn, or once it is woken.
const GRANT_SPIN_NS: u64 = 100_000;

/// One call's wait: its limit, and whether it has spun already.
pub(crate) struct Wait<'a> {
    attachment: Current,
    socket: &'a Pinned,
    fd: RawFd,
    deadline_ns: u64,
    spin_left: bool,
}

impl<'a> Wait<'a> {
    /// A wait that ends when a time limit of the socket says so; 0 is never.
    pub(crate) fn new(
        socket: &'a Pinned,
        fd: RawFd,
        limit_us: &AtomicU64,
    ) -> Result<Wait<'a>, Errno> {
        Wait::until(socket, fd, limit_us.load(Ordering::Relaxed))
    }

    /// A wait of so many microseconds; 0 is for ever.
    pub(crate) fn until(socket: &'a Pinned, fd: RawFd, limit_us: u64) -> Result<Wait<'a>, Errno> {
        let deadline_ns = match limit_us {
            0 => u64::MAX,
            limit_us => sys::clock_monotonic_ns().saturating_add(limit_us.saturating_mul(1000)),
        };
        let attachment = match socket.attachment() {
            // Nobody waits for a server that has left, but looks where the connection is now.
            Err(_) if socket.is_moved() => attach::current()?,
            attachment => attachment?,
        };
        Ok(Wait { attachment, socket, fd, deadline_ns, spin_left: true })
    }

    /// Waits until `done` may have become true. Look at everything again afterwards.
    pub(crate) fn once(&mut self, stream: &Record, done: impl Fn() -> bool) -> Result<(), Errno> {
        let started_ns = sys::clock_monotonic_ns();
        if std::mem::take(&mut self.spin_left)
            && let Some(patience_ns) = self.attachment.patience_ns(&self.socket.gaps)
            && Spinner::new(started_ns, patience_ns).until(&done)
        {
            self.socket.gaps.note(sys::clock_monotonic_ns() - started_ns);
            return Ok(());
        }
        if stream.is_dead() {
            // The look that follows finds the error.
            return Ok(());
        }
        let ticket = stream.prepare_wait();
        if done() {
            return Ok(());
        }
        let now_ns = sys::clock_monotonic_ns();
        if now_ns >= self.deadline_ns {
            return Err(Errno::EAGAIN);
        }
        let until_ns = self.deadline_ns.min(now_ns + SLICE_NS);
        // With a time limit every handler ends the call (signal(7)).
        let waited = match self.deadline_ns {
            u64::MAX => {
                let memory = &stream.memory;
                stream.wait_both(ticket, memory.now().word(), memory.epoch(), until_ns)
            }
            _ => stream.wait_interruptibly(ticket, until_ns.min(now_ns + SHORT_SLICE_NS)),
        };
        if waited == Waited::Interrupted {
            return Err(Errno::EINTR);
        }
        // Another thread may have closed the descriptor, or put something else in its place.
        if !self.socket.is_behind(self.fd) {
            return Err(Errno::EBADF);
        }
        self.socket.gaps.note(sys::clock_monotonic_ns() - started_ns);
        if waited == Waited::TimedOut && !self.attachment.is_alive() {
            // Told by the epoch, or by nobody if there is nobody left.
            self.attachment.fate();
        }
        Ok(())
    }

    /// Waits a moment because nothing can be found out now.
    fn pause(&self, stream: &Record) -> Result<(), Errno> {
        const PAUSE_NS: u64 = 2_000_000;
        let now_ns = sys::clock_monotonic_ns();
        if now_ns >= self.deadline_ns {
            return Err(Errno::EAGAIN);
        }
        let ticket = stream.prepare_wait();
        match stream.wait_interruptibly(ticket, self.deadline_ns.min(now_ns + PAUSE_NS)) {
            Waited::Interrupted => Err(Errno::EINTR),
            _ if !self.socket.is_behind(self.fd) => Err(Errno::EBADF),
            _ => Ok(()),
        }
    }
}

/// How a call looks at a record.
struct View<'a> {
    stream: StreamRef<'a>,
    /// What looks ended has ended: it was looked for elsewhere.
    sure: bool,
}

impl<'a> View<'a> {
    fn of(socket: &'a Pinned) -> Result<View<'a>, Errno> {
        let stream = socket.stream().ok_or(Errno::EAGAIN)?;
        Ok(View { stream, sure: false })
    }

    /// Whether a state is to be believed. (One that was looked for, and found here, may move after that.)
    #[inline]
    fn is_certain(&self, state: u32) -> bool {
        state & ELSEWHERE_OR_OVER == 0 || self.sure && !is_moved(state)
    }
}

/// Why a look at a record gave nothing.
enum Failure {
    /// For the application.
    Errno(Errno),
    /// The connection may be elsewhere.
    Elsewhere,
    /// The service has held the record for long.
    Frozen,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Errno(errno)
    }
}

impl Failure {
    /// What a call on the stream means. (One that is sure of the record hears what is wrong with it.)
    #[cold]
    fn of(view: &View<'_>, error: StreamError) -> Failure {
        let stream = &view.stream;
        match error {
            // A server that dies while it has the record keeps it for ever.
            StreamError::Frozen if stream.is_dead() => Failure::Errno(match stream.take_error() {
                0 => SERVICE_GONE,
                errno => Errno(errno),
            }),
            StreamError::Frozen => Failure::Frozen,
            StreamError::Moved if is_moved(stream.status()) => Failure::Elsewhere,
            StreamError::Moved | StreamError::Stale if !view.sure => Failure::Elsewhere,
            StreamError::Moved => Failure::Errno(SERVICE_GONE),
            error => Failure::Errno(stream.errno_of(error)),
        }
    }
}

/// The record to look at after a look that has failed: the same one or another, or why the call ends.
#[cold]
fn look_again<'a>(
    wait: &mut Option<Wait<'a>>,
    limit: Option<(&'a Pinned, RawFd, &AtomicU64)>,
    socket: &'a Pinned,
    view: View<'a>,
    failure: Failure,
) -> Result<View<'a>, Errno> {
    match failure {
        Failure::Errno(errno) => return Err(errno),
        Failure::Frozen => return Ok(view),
        Failure::Elsewhere => {}
    }
    let followed = socket.follow(view.stream);
    let view = View { sure: followed == Followed::Here, ..View::of(socket)? };
    match (followed, limit) {
        (Followed::LookAgain, _) => {
            // The time that it has left is what it was.
            if let Some(wait) = wait
                && let Ok(attachment) = socket.attachment()
            {
                wait.attachment = attachment;
            }
        }
        (Followed::Here, _) => {}
        (Followed::NotNow, Some((socket, fd, limit_us))) => match wait {
            Some(wait) => wait.pause(&view.stream)?,
            None => wait.insert(Wait::new(socket, fd, limit_us)?).pause(&view.stream)?,
        },
        (Followed::NotNow | Followed::Interrupted, _) => return Err(Errno::EAGAIN),
    }
    Ok(view)
}

/// The socket behind a descriptor for reading or writing: a forked child attaches first, so that
/// the owner words bear its own number.
pub(crate) fn connection(fd: RawFd) -> Result<Pinned, Errno> {
    let socket = entry::ours(fd)?;
    if attach::is_forked_from(socket.server())
        && !socket.is_moved()
        && let Err(errno) = socket.attachment()
        // It may have moved meanwhile, and its server have left.
        && !socket.is_moved()
    {
        return Err(errno);
    }
    Ok(socket)
}

const ENDED: u32 = status::FAILED | status::CLOSED;

/// Waits for the outcome of a connect that has started.
///
/// # Errors
/// The reason it failed; `EINPROGRESS` when the send time-out is over.
pub(crate) fn wait_connected(socket: &Pinned, fd: RawFd) -> Result<(), Errno> {
    let limit_us = &socket.send_timeout_us;
    let mut wait = Some(Wait::new(socket, fd, limit_us)?);
    let mut view = View::of(socket)?;
    loop {
        let state = view.stream.status();
        if !view.is_certain(state) {
            let limit = Some((socket, fd, limit_us));
            view = look_again(&mut wait, limit, socket, view, Failure::Elsewhere)?;
            continue;
        }
        let stream = &view.stream;
        if state & ENDED != 0 {
            return Err(match stream.take_error() {
                0 => Errno::ECONNABORTED,
                errno => Errno(errno),
            });
        }
        if state & status::CONNECTED != 0 {
            socket.set(flag::CONNECT_REPORTED);
            return Ok(());
        }
        let waiting = match &mut wait {
            Some(wait) => wait,
            None => wait.insert(Wait::new(socket, fd, limit_us)?),
        };
        let news = status::CONNECTED | ENDED | status::MOVED;
        match waiting.once(stream, || stream.status() & news != 0) {
            Err(Errno::EAGAIN) => return Err(Errno::EINPROGRESS),
            other => other?,
        }
    }
}

// --- receiving ---------------------------------------------------------------------------------

/// What a look at the receiving side gave.
enum Look {
    /// This many bytes.
    Bytes(usize),
    /// The end of the stream.
    End,
    /// Nothing yet.
    Nothing,
}

/// recvmsg(2) and its family, into several buffers.
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn receive(fd: RawFd, out: &mut [IoSliceMut<'_>], flags: i32) -> Result<usize, Errno> {
    let want = out.iter().map(|slice| slice.len()).sum();
    if flags & libc::MSG_TRUNC != 0 && flags & libc::MSG_PEEK == 0 {
        return discard(fd, want, flags);
    }
    let peek = flags & libc::MSG_PEEK != 0;
    receive_with(fd, want, flags, |stream, done| {
        if peek {
            // A peek starts over each time, so that it is whole when it is enough.
            return stream.peek_vectored(out, done as u64, &*stream.memory);
        }
        match done {
            0 => stream.read_vectored(out, &*stream.memory),
            done => read_rest(stream, out, done),
        }
    })
}

/// Goes on reading where an earlier read has stopped, one buffer at a time.
fn read_rest(
    stream: &Record,
    out: &mut [IoSliceMut<'_>],
    done: usize,
) -> Result<ReadOutcome, StreamError> {
    let mut skip = done;
    for buffer in out.iter_mut() {
        if skip < buffer.len() {
            return stream.read(&mut buffer[skip..], &*stream.memory);
        }
        skip -= buffer.len();
    }
    Ok(ReadOutcome::default())
}

/// Takes up to `want` bytes without copying them (`MSG_TRUNC`).
///
/// # Errors
/// As [`receive`].
pub fn discard(fd: RawFd, want: usize, flags: i32) -> Result<usize, Errno> {
    receive_with(fd, want, flags, |stream, done| stream.discard((want - done) as u64))
}

/// What `TCP_INQ` tells after a receive: bytes left, and one more for the end of the stream, so that the program
/// goes on reading. `None` unless it was asked for.
fn rest(socket: &Pinned) -> Option<i32> {
    let left = |stream: &Record| {
        let end = u64::from(stream.status() & status::RX_FIN != 0);
        i32::try_from(stream.readable() + end).unwrap_or(i32::MAX)
    };
    socket.stored.tells_rest().then(|| socket.observe(left).unwrap_or(0))
}

/// Writes the control data that a connection wants after a receive into `out`: bytes used, and whether something
/// did not fit.
pub fn receive_control(fd: RawFd, out: &mut [u8]) -> (usize, bool) {
    let rest = entry::ours(fd).ok().and_then(|socket| rest(&socket));
    rest.map_or((0, false), |rest| datagram::control::put_rest(out, rest))
}

/// `step` looks at a record from so many bytes on: those that this call has taken, or for a peek those that it
/// skips.
fn receive_with(
    fd: RawFd,
    want: usize,
    flags: i32,
    mut step: impl FnMut(&Record, usize) -> Result<ReadOutcome, StreamError>,
) -> Result<usize, Errno> {
    let socket = connection(fd)?;
    if socket.phase() != Phase::Stream {
        return Err(Errno::ENOTCONN);
    }
    if flags & libc::MSG_OOB != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & libc::MSG_ERRQUEUE != 0 {
        return Err(Errno::EAGAIN);
    }
    let mut view = View::of(&socket)?;
    let blocking = flags & libc::MSG_DONTWAIT == 0 && !socket.has(flag::NONBLOCKING);
    let limit = blocking.then_some((&socket, fd, &socket.receive_timeout_us));
    let target = match flags & libc::MSG_WAITALL {
        _ if !blocking => 1,
        0 => want.min(socket.receive_low.load(Ordering::Relaxed) as usize),
        _ => want,
    };
    let peek = flags & libc::MSG_PEEK != 0;
    let skip = if peek { socket.stored.peek_offset().unwrap_or(0) as usize } else { 0 };
    let finish = |done: usize| {
        socket.stored.move_peek_offset(peek, done);
        Ok(done)
    };
    let mut wait: Option<Wait<'_>> = None;
    let mut done = 0;
    loop {
        if want == 0 {
            return Ok(0);
        }
        let started = if peek { 0 } else { done };
        match look(&socket, &view, || step(&view.stream, skip + started)) {
            Ok(Look::Bytes(bytes)) => {
                done = started + bytes;
                if done >= target {
                    return finish(done);
                }
            }
            Ok(Look::End) => return finish(done),
            Ok(Look::Nothing) if !blocking => return Err(Errno::EAGAIN),
            Ok(Look::Nothing) => {}
            Err(failure) => {
                view = match look_again(&mut wait, limit, &socket, view, failure) {
                    Ok(view) => view,
                    Err(errno) => return if done > 0 { finish(done) } else { Err(errno) },
                };
                continue;
            }
        }
        let stream = &view.stream;
        let slept = match &mut wait {
            Some(wait) => wait,
            None => wait.insert(Wait::new(&socket, fd, &socket.receive_timeout_us)?),
        }
        .once(stream, || {
            let enough = if peek { (skip + done) as u64 } else { 0 };
            stream.readable() > enough || stream.status() & (READ_END | status::MOVED) != 0
        });
        if let Err(errno) = slept {
            return if done > 0 { finish(done) } else { Err(errno) };
        }
    }
}

const READ_END: u32 = status::RX_FIN | status::RX_SHUT | ENDED;

/// One attempt to read, and what it means if there was nothing: Linux gives data first, then the
/// end, then the error, then the end for ever.
fn look(
    socket: &Pinned,
    view: &View<'_>,
    step: impl FnOnce() -> Result<ReadOutcome, StreamError>,
) -> Result<Look, Failure> {
    let stream = &view.stream;
    // The state comes first: what is found missing after it was ended is missing for ever.
    let state = stream.status();
    if !view.is_certain(state) {
        return Err(Failure::Elsewhere);
    }
    // As on Linux an error comes before the end that the program itself has made.
    let has_failed = state & status::FAILED != 0;
    if socket.has(flag::SHUT_READ) && stream.readable() == 0 && !has_failed {
        return Ok(Look::End);
    }
    // What one that has moved had received has gone with it.
    let outcome = match state & status::MOVED {
        0 => step().map_err(|error| Failure::of(view, error))?,
        _ => ReadOutcome::default(),
    };
    if outcome.kick {
        stream.kick(RequestBody::KickRx)?;
    }
    if outcome.bytes > 0 {
        return Ok(Look::Bytes(outcome.bytes));
    }
    if outcome.end_of_stream || state & status::RX_SHUT != 0 && !has_failed {
        return Ok(Look::End);
    }
    if state & ENDED == 0 && !stream.is_dead() {
        return Ok(Look::Nothing);
    }
    match stream.take_error() {
        0 => Ok(Look::End),
        errno => Err(Errno(errno).into()),
    }
}

/// `FIONREAD`: bytes that can be read now.
///
/// # Errors
/// `TO_KERNEL`, or `EINVAL` for a listener, as on Linux.
pub fn readable_bytes(fd: RawFd) -> Result<usize, Errno> {
    let socket = connection(fd)?;
    if socket.has(flag::DATAGRAM) {
        return datagram::receive::next_len(&socket);
    }
    match socket.phase() {
        Phase::Listening => Err(Errno::EINVAL),
        _ => Ok(socket.observe(|stream| stream.readable() as usize).unwrap_or(0)),
    }
}

/// `TIOCOUTQ`: bytes that the peer has not acknowledged.
///
/// # Errors
/// As [`readable_bytes`].
pub fn unsent_bytes(fd: RawFd) -> Result<usize, Errno> {
    let socket = connection(fd)?;
    if socket.has(flag::DATAGRAM) && socket.world() == datagram::World::Kernel {
        return Err(TO_KERNEL);
    }
    match socket.phase() {
        Phase::Listening => Err(Errno::EINVAL),
        _ => Ok(socket.observe(|stream| stream.unacknowledged() as usize).unwrap_or(0)),
    }
}

// --- sending -----------------------------------------------------------------------------------

/// sendmsg(2) and its family, from several buffers. With `MSG_MORE` a segment that is not full waits
/// for the next send without it, or 200 ms. `SIGPIPE` is the caller's to raise on `EPIPE`.
///
/// # Errors
/// `TO_KERNEL` if the kernel must do it, or the errno.
pub fn send(fd: RawFd, data: &[IoSlice<'_>], flags: i32) -> Result<usize, Errno> {
    let socket = connection(fd)?;
    if socket.has(flag::DATAGRAM) {
        drop(socket);
        return datagram::send::send(fd, data, flags);
    }
    if socket.phase() != Phase::Stream {
        return Err(Errno::EPIPE);
    }
    if flags & libc::MSG_OOB != 0 && data.iter().any(|slice| !slice.is_empty()) {
        return Err(Errno::EOPNOTSUPP);
    }
    let more = flags & libc::MSG_MORE != 0;
    if more && !socket.has(flag::MORE) && socket.set(flag::MORE) {
        socket.tell(RequestBody::SetOption { option: OPTION_MORE, value: 1 })?;
    }
    let sent = send_all(&socket, fd, data, flags);
    let len: usize = data.iter().map(|slice| slice.len()).sum();
    // What did not fit is sent as if nothing were to follow, as on Linux.
    if socket.has(flag::MORE) && !(more && sent == Ok(len)) && socket.clear(flag::MORE) {
        socket.tell(RequestBody::SetOption { option: OPTION_MORE, value: 0 })?;
    }
    sent
}

fn send_all(socket: &Pinned, fd: RawFd, data: &[IoSlice<'_>], flags: i32) -> Result<usize, Errno> {
    let want: usize = data.iter().map(|slice| slice.len()).sum();
    send_with(socket, fd, want, flags, |stream, done| {
        Ok(Written { outcome: write_from(stream, data, done)?, is_last: false })
    })
}

/// sendfile(2) of up to `count` bytes of a file from `position` on: the kernel reads them to where
/// the service finds them. Also why it stopped, unless that was for lack of room or all is sent;
/// what the kernel cannot read that way is left to the caller.
///
/// # Errors
/// As [`send`].
pub fn send_file(
    fd: RawFd,
    file: RawFd,
    position: u64,
    count: usize,
) -> Result<(usize, Option<FileStop>), Errno> {
    let socket = connection(fd)?;
    if socket.has(flag::DATAGRAM) {
        // Datagrams are copied by whoever calls.
        return Ok((0, Some(FileStop::Refused(Errno::EAGAIN))));
    }
    if socket.phase() != Phase::Stream {
        return Err(Errno::EPIPE);
    }
    let mut stop = None;
    let sent = send_with(&socket, fd, count, 0, |stream, done| {
        let from = position.saturating_add(done as u64);
        let (outcome, why) = stream.write_file(file, from, count - done, &*stream.memory)?;
        stop = why;
        Ok(Written { outcome, is_last: why.is_some() })
    });
    // What an earlier send kept back for more goes, too.
    if socket.has(flag::MORE) && socket.clear(flag::MORE) {
        socket.tell(RequestBody::SetOption { option: OPTION_MORE, value: 0 })?;
    }
    Ok((sent?, stop))
}

/// What one attempt to write did.
struct Written {
    outcome: WriteOutcome,
    /// Nothing more will come.
    is_last: bool,
}

/// Writes until `want` bytes are written, or it would have to wait and must not. `write` writes what
/// follows the first so many bytes.
fn send_with(
    socket: &Pinned,
    fd: RawFd,
    want: usize,
    flags: i32,
    mut write: impl FnMut(&Record, usize) -> Result<Written, StreamError>,
) -> Result<usize, Errno> {
    let mut view = View::of(socket)?;
    let blocking = flags & libc::MSG_DONTWAIT == 0 && !socket.has(flag::NONBLOCKING);
    let limit = blocking.then_some((socket, fd, &socket.send_timeout_us));
    let mut wait: Option<Wait<'_>> = None;
    let mut done = 0;
    loop {
        let step = check_writable(socket, &view).and_then(|open| match open {
            true => write_some(&view, done, &mut write),
            false => Ok((0, false)),
        });
        match step {
            Ok((bytes, true)) => return Ok(done + bytes),
            Ok((bytes, false)) => done += bytes,
            Err(failure) => {
                view = match look_again(&mut wait, limit, socket, view, failure) {
                    Ok(view) => view,
                    Err(errno) => return if done > 0 { Ok(done) } else { Err(errno) },
                };
                continue;
            }
        }
        if done >= want {
            return Ok(done);
        }
        if !blocking {
            return if done > 0 { Ok(done) } else { Err(Errno::EAGAIN) };
        }
        let stream = &view.stream;
        let slept = match &mut wait {
            Some(wait) => wait,
            None => wait.insert(Wait::new(socket, fd, &socket.send_timeout_us)?),
        }
        .once(stream, || {
            let state = stream.status();
            state & (ENDED | status::TX_SHUT | status::MOVED) != 0
                || state & status::CONNECTED != 0 && stream.writable() > 0
        });
        if let Err(errno) = slept {
            return if done > 0 { Ok(done) } else { Err(errno) };
        }
    }
}

/// False: the connection is not established yet.
fn check_writable(socket: &Pinned, view: &View<'_>) -> Result<bool, Failure> {
    let stream = &view.stream;
    let state = stream.status();
    if !view.is_certain(state) {
        return Err(Failure::Elsewhere);
    }
    let ended = || match stream.take_error() {
        0 => Err(Errno::EPIPE.into()),
        errno => Err(Errno(errno).into()),
    };
    if state & ENDED != 0 {
        return ended();
    }
    if state & status::TX_SHUT != 0 || socket.has(flag::SHUT_WRITE) {
        return Err(Errno::EPIPE.into());
    }
    if stream.is_dead() {
        return ended();
    }
    Ok(state & status::CONNECTED != 0)
}

/// Writes as much as there is room for, and asks for more room once if that is worth it. How many
/// bytes, and whether they are the last.
fn write_some(
    view: &View<'_>,
    done: usize,
    write: &mut impl FnMut(&Record, usize) -> Result<Written, StreamError>,
) -> Result<(usize, bool), Failure> {
    let stream = &view.stream;
    let written = write(stream, done).map_err(|error| Failure::of(view, error))?;
    let Written { outcome, is_last } = written;
    report(stream, &outcome)?;
    let spins = || attach::near(stream.memory.server()).is_ok_and(|at| at.spin_us() > 0);
    let granted = (outcome.room_beyond && spins())
        && Spinner::new(sys::clock_monotonic_ns(), GRANT_SPIN_NS)
            .until(|| stream.writable() > 0 || stream.status() & (ENDED | status::MOVED) != 0);
    if !granted {
        return Ok((outcome.bytes, is_last));
    }
    match write(stream, done + outcome.bytes) {
        Ok(more) => {
            report(stream, &more.outcome)?;
            Ok((outcome.bytes + more.outcome.bytes, more.is_last))
        }
        // The next look says so again, and what was written is written.
        Err(_) if outcome.bytes > 0 => Ok((outcome.bytes, is_last)),
        Err(error) => Err(Failure::of(view, error)),
    }
}

fn report(stream: &Record, outcome: &WriteOutcome) -> Result<(), Errno> {
    if outcome.kick {
        stream.kick(RequestBody::KickTx)?;
    }
    if outcome.want || outcome.bytes > 0 && runs_low(stream) && stream.want_tx() {
        stream.kick(RequestBody::WantTx)?;
    }
    Ok(())
}

/// Whether the next write may find no room although there is memory to be had: it is asked for
/// now, so that it is there by then.
fn runs_low(stream: &Record) -> bool {
    let left = stream.writable();
    left < CHUNK_SIZE as u64 / 2 && stream.tx_room() > left
}

/// Writes what follows the first `done` bytes of several buffers.
fn write_from(
    stream: &Record,
    data: &[IoSlice<'_>],
    done: usize,
) -> Result<WriteOutcome, StreamError> {
    if done == 0 {
        return stream.write_vectored(data, &*stream.memory);
    }
    let mut skip = done;
    for (index, buffer) in data.iter().enumerate() {
        if skip >= buffer.len() {
            skip -= buffer.len();
            continue;
        }
        let first = stream.write(&buffer[skip..], &*stream.memory)?;
        let rest = &data[index + 1..];
        if first.bytes < buffer.len() - skip || rest.is_empty() {
            return Ok(first);
        }
        // What was written is written, whatever has become of the connection since.
        let second = stream.write_vectored(rest, &*stream.memory).unwrap_or_default();
        return Ok(WriteOutcome {
            bytes: first.bytes + second.bytes,
            kick: first.kick || second.kick,
            want: second.want,
            room_beyond: second.room_beyond,
        });
    }
    Ok(WriteOutcome::default())
}
