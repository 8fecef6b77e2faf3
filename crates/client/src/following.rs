//! Connections that have moved to another server while this process had them. The old record says so by one
//! bit of its status, which is read anyway, and says where the new one is. Whoever finds the bit *follows*: he
//! attaches to that server, asks for the record there, puts it in the place of the old one and tells the old
//! server that he has left it. Called by everything that looks at a record; the program notices nothing.
//!
//! Any thread may follow at any time, and the old record may be gone once it has: what looks ended is looked
//! for at the socket's present record before it is believed. What was said to the old server until then is
//! handed on by that. An epoll set finds out that a connection is elsewhere when it looks at it, which the old
//! server has it do.

use std::sync::atomic::{AtomicU64, Ordering};

use haypile_shm::Errno;
use haypile_shm::epoch::EPOCH_SERVERS;
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::{ELSEWHERE, OptionReply, RequestBody};
use haypile_shm::stream::{NewPlace, status};
use haypile_shm::sys;

use crate::attach::{self, Attachment, Fate};
use crate::entry::{FullName, Phase, Socket, flag};
use crate::errno::SERVICE_GONE;
use crate::lock::Lock;
use crate::memory::{self, Record};
use crate::placeholder;
use crate::places::StreamRef;

/// One thread at a time follows the connections that share a lock. Taken inside the lock of an epoll set, and
/// outside that of attaching.
static FOLLOWING: [Lock<()>; LOCKS] = [const { Lock::new(()) }; LOCKS];
const LOCKS: usize = 64;
/// Connections that this process has followed.
static COUNT: AtomicU64 = AtomicU64::new(0);
/// Servers that a connection may have gone through before we look for it.
const HOPS: u32 = 64;
/// How long a call that cannot wait for what it is about waits for what it needs to find out, in milliseconds.
const PATIENCE_MS: u32 = 2000;
/// How long a question about a connection that moves is put, in milliseconds: no program expects to hear that it
/// should try again.
const ANSWER_MS: u64 = 10_000;

/// In a status: there may be more to know.
pub(crate) const ELSEWHERE_OR_OVER: u32 = status::MOVED | status::CLOSED;

/// What came of looking for a connection elsewhere.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    /// Look again: the socket has another record, or its record says that the connection has died.
    LookAgain,
    /// The record is the present one.
    Here,
    /// It is elsewhere, and cannot be reached at this moment.
    NotNow,
    /// This call has interrupted the one that would find it: it must end first.
    Interrupted,
}

/// Whether a status says that the connection is to be looked for elsewhere.
pub(crate) fn is_moved(state: u32) -> bool {
    state & (status::MOVED | status::FAILED) == status::MOVED
}

/// How many connections this process has followed.
#[inline]
pub(crate) fn count() -> u64 {
    COUNT.load(Ordering::Acquire)
}

impl Socket {
    /// Whether the connection is at another server than we know.
    pub(crate) fn is_moved(&self) -> bool {
        self.stream().is_some_and(|stream| is_moved(stream.status()))
    }

    /// The record, once it is the present one, for calls that wait for nothing else.
    pub(crate) fn present(&self) -> Option<StreamRef<'_>> {
        let stream = self.stream()?;
        if stream.status() & ELSEWHERE_OR_OVER == 0 { Some(stream) } else { self.pursue(stream) }
    }

    #[cold]
    fn pursue<'a>(&'a self, mut stream: StreamRef<'a>) -> Option<StreamRef<'a>> {
        for _ in 0..PATIENCE_MS {
            match self.follow(stream) {
                Followed::LookAgain => {}
                Followed::NotNow => attach::sleep_ms(1),
                Followed::Here | Followed::Interrupted => return self.stream(),
            }
            stream = self.stream()?;
            if stream.status() & ELSEWHERE_OR_OVER == 0 {
                break;
            }
        }
        Some(stream)
    }

    /// What a look at the record gives, if the record was the present one when it was looked at.
    pub(crate) fn observe<T>(&self, look: impl Fn(&Record) -> T) -> Option<T> {
        let mut seen = None;
        for _ in 0..HOPS {
            let stream = self.present()?;
            seen = Some(look(&stream));
            // The state after the look: what a record says is true until it says that it has moved.
            if stream.status() & ELSEWHERE_OR_OVER == 0
                || self.stream().is_none_or(|now| now.name() == stream.name())
            {
                break;
            }
        }
        seen
    }

    /// Looks for the connection where its record says it is. The record that was seen is given back first, so
    /// that another can take its place.
    #[cold]
    pub(crate) fn follow(&self, seen: StreamRef<'_>) -> Followed {
        let name = seen.name();
        drop(seen);
        match self.stream() {
            None => return Followed::NotNow,
            Some(now) if now.name() != name => return Followed::LookAgain,
            Some(now) if !is_moved(now.status()) => return Followed::Here,
            Some(_) => {}
        }
        let lock = &FOLLOWING[std::ptr::from_ref(self).addr() / size_of::<Socket>() % LOCKS];
        match lock.lock() {
            Ok(_one) => self.follow_alone(name),
            Err(_) if lock.is_held_by_caller() => Followed::Interrupted,
            Err(_) => Followed::NotNow,
        }
    }

    fn follow_alone(&self, seen: FullName) -> Followed {
        let mut outcome = Followed::Here;
        for _ in 0..HOPS {
            // A copy, so that the place can be filled anew.
            let Some(record) = self.stream().map(|stream| (*stream).clone()) else {
                return Followed::NotNow;
            };
            if record.name() != seen {
                outcome = Followed::LookAgain;
            }
            if !is_moved(record.status()) {
                return outcome;
            }
            if let Err(failure) = self.go_after(&record) {
                return failure;
            }
            outcome = Followed::LookAgain;
        }
        outcome
    }

    /// Goes to where a record says that the connection is, or finds that it died there.
    fn go_after(&self, record: &Record) -> Result<(), Followed> {
        let lost = || record.fail_where_moved(SERVICE_GONE.0);
        let Some(place) = record.new_place().filter(|place| place.server < EPOCH_SERVERS) else {
            lost();
            return Ok(());
        };
        let Some(attachment) = reach(place)? else {
            lost();
            return Ok(());
        };
        match attachment.ask_socket(place.slot, place.generation, RequestBody::Arrive) {
            // It may be about to leave, or have left, that server as well: its record says so.
            Ok(reply) if matches!(reply.errno, 0 | ELSEWHERE) => {}
            Ok(_) => {
                lost();
                return Ok(());
            }
            Err(errno) => return Err(not_now(errno)),
        }
        let next = memory::open_stream(&attachment, place.slot, place.generation);
        self.set_record(next.map_err(not_now)?).map_err(not_now)?;
        COUNT.fetch_add(1, Ordering::AcqRel);
        if self.has(flag::SHARED) {
            placeholder::show_connection(self, &attachment);
        }
        leave(record);
        Ok(())
    }

    // --- messages about connections ------------------------------------------------------------

    /// Sends a notice about a connection to the server that has it. One that has handed it over passes the
    /// notice on, until it has heard that we have left; one that crosses with that is said again.
    pub(crate) fn tell_of_connection(&self, body: RequestBody) -> Result<(), Errno> {
        let mut told = Ok(());
        for _ in 0..HOPS {
            let name = self.full_name();
            told = tell(name, body);
            let same = self.full_name() == name;
            // Where the old server is dead, nobody passes anything on.
            let stranded = told.is_err() && self.is_moved();
            if same && !(stranded && self.catch_up()) {
                break;
            }
        }
        match told {
            // As if its server had heard it, and died.
            Err(Untold::Nowhere) | Ok(()) => Ok(()),
            Err(Untold::Failed(errno)) => Err(errno),
        }
    }

    /// Follows; true if the connection was reached.
    fn catch_up(&self) -> bool {
        self.present().is_some_and(|stream| stream.status() & status::MOVED == 0)
    }

    /// Before a close: a server that is dead cannot pass it on.
    pub(crate) fn leave_dead_server(&self) {
        if self.phase() == Phase::Stream && attach::is_gone(self.server()) && self.is_moved() {
            self.catch_up();
        }
    }

    /// A question about an option to the server that has the socket.
    pub(crate) fn ask_option(&self, body: RequestBody) -> Result<OptionReply, Errno> {
        let until_ns = sys::clock_monotonic_ns() + ANSWER_MS * 1_000_000;
        loop {
            let name = self.full_name();
            let attachment = self.attachment();
            let answer = attachment.and_then(|at| at.ask_option(name.slot, name.generation, body));
            let Err(errno) = answer else { return answer };
            if sys::clock_monotonic_ns() >= until_ns {
                return Err(if errno.0 == ELSEWHERE { Errno::EAGAIN } else { errno });
            }
            let again = self.full_name() != name
                || self.is_moved() && self.catch_up()
                || errno.0 == ELSEWHERE;
            if !again {
                return Err(errno);
            }
            if errno.0 == ELSEWHERE {
                self.wait_for_move();
            }
        }
    }

    /// Waits for a moment while the connection is on its way.
    fn wait_for_move(&self) {
        const SLICE_NS: u64 = 10_000_000;
        let Some(stream) = self.stream() else { return };
        let ticket = stream.prepare_wait();
        if stream.status() & ELSEWHERE_OR_OVER == 0 {
            stream.wait(ticket, sys::clock_monotonic_ns() + SLICE_NS);
        }
    }
}

/// Why nobody was told.
enum Untold {
    /// The server that knew the connection is gone.
    Nowhere,
    Failed(Errno),
}

fn tell(name: FullName, body: RequestBody) -> Result<(), Untold> {
    let attachment = attach::near(memory::server_of(name.life)).map_err(Untold::Failed)?;
    if name.slot == NO_SLOT || attachment.life() != name.life {
        return Err(Untold::Nowhere);
    }
    attachment.tell(name.slot, name.generation, body).map_err(Untold::Failed)
}

/// The attachment to the server that a connection has gone to; `None`: that server is dead.
fn reach(place: NewPlace) -> Result<Option<attach::Current>, Followed> {
    let attachment = attach::near(place.server);
    if let Ok(attachment) = attachment
        && attachment.epoch() == place.epoch
    {
        return match attachment.fate() {
            Fate::Alive => Ok(Some(attachment)),
            Fate::Awaited if attach::epoch_of(place.server) == Some(place.epoch) => {
                Err(not_now(Errno::EAGAIN))
            }
            _ => Ok(None),
        };
    }
    match attach::epoch_of(place.server) {
        Some(epoch) if epoch == place.epoch => Err(not_now(Errno::EAGAIN)),
        _ => Ok(None),
    }
}

fn not_now(_: Errno) -> Followed {
    if attach::is_attaching() { Followed::Interrupted } else { Followed::NotNow }
}

/// Tells the old server that we are there no more.
fn leave(record: &Record) {
    if let Some(attachment) = attach::existing(record.memory.server())
        && is_keeper(&attachment, record)
    {
        let _: Result<(), Errno> =
            attachment.tell(record.slot(), record.generation(), RequestBody::Left);
    }
}

fn is_keeper(attachment: &Attachment, record: &Record) -> bool {
    attachment.life() == record.memory.life() && !attachment.is_gone()
}

impl Record {
    /// Sends a kick: that there is something in this very record.
    pub(crate) fn kick(&self, body: RequestBody) -> Result<(), Errno> {
        let told = attach::near(self.memory.server()).and_then(|attachment| {
            match attachment.life() == self.memory.life() {
                true => attachment.tell(self.slot(), self.generation(), body),
                false => Ok(()),
            }
        });
        match told {
            // Whoever has it now knows what was in it.
            Err(_) if is_moved(self.status()) => Ok(()),
            told => told,
        }
    }
}

pub(crate) fn hold_for_fork() {
    FOLLOWING.iter().for_each(Lock::hold_for_fork);
}

pub(crate) fn release_after_fork() {
    FOLLOWING.iter().for_each(Lock::release_after_fork);
}
