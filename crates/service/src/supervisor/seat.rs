//! One server of the plan as the supervisor sees it: its process while it lives, the wait until it
//! is started again, and how often that happened. Owns starting and ending the process; what is
//! said over the channel is `supervisor`'s business.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

use haypile_engine::Instant;
use haypile_shm::LedgerSegment;
use haypile_shm::sys::privilege::{self, FORBIDDEN_CALL_STATUS};
use haypile_shm::sys::{self, Errno, Fd};

use super::backoff::{Backoff, Delay, LONGEST_US};
use super::orders::ListenerRecord;
use crate::domains::Token as DomainToken;
use crate::plan::ServerSpec;
use crate::sandbox::Confinement;
use crate::server_process::PANIC_STATUS;

/// This very program, also if its file was replaced since it was started.
const OURSELVES: &str = "/proc/self/exe";
/// The hidden subcommand that is a server.
const SUBCOMMAND: &str = "server";

/// Listeners by domain and cookie.
pub type Listeners = HashMap<(DomainToken, u64), ListenerRecord>;

/// A server and its lives.
#[derive(Debug, Default)]
pub struct Seat {
    /// What it is.
    pub spec: ServerSpec,
    /// Its listeners, which the next life is to hold.
    pub listeners: Listeners,
    /// Whether anybody uses it, as it says itself.
    pub used: bool,
    /// Its process.
    pub life: Option<Life>,
    /// When it is to be started again.
    pub restart_at: Option<Instant>,
    /// How often it was.
    pub restarts: u64,
    /// Its flows, from one life to the next, if it is a transport server that was ever started.
    ledger: Option<LedgerSegment>,
    backoff: Backoff,
}

/// A server process.
#[derive(Debug)]
pub struct Life {
    child: Child,
    /// Readable once it has ended.
    pub pidfd: Fd,
    /// Orders and reports.
    pub channel: Fd,
    /// How it is confined, once it runs.
    pub confinement: Option<Confinement>,
    /// The link and its mode, once it runs.
    pub link: String,
    /// How its peers see that it sleeps and how they wake it, once it runs.
    pub waking: Option<Waking>,
    /// It serves applications, and its peers know it.
    pub begun: bool,
    /// The forbidden system call that it has made.
    pub forbidden: Option<u32>,
    born: Instant,
}

/// What a server's peers are given of it.
#[derive(Debug)]
pub struct Waking {
    /// Its status segment.
    pub status: Fd,
    /// The other end of its doorbell.
    pub bell: Fd,
}

/// How a life ended.
#[derive(Debug)]
pub struct Death {
    /// Its process.
    pub pid: u32,
    /// Why, in words.
    pub why: String,
    /// Whether it said itself that it is done.
    pub clean: bool,
    /// When to start it again.
    pub delay: Delay,
}

impl Seat {
    /// The seat of a server that has not been started.
    pub fn new(spec: ServerSpec) -> Seat {
        Seat { spec, ..Seat::default() }
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.spec.number
    }

    /// The descriptor of the ledger.
    pub fn ledger(&self) -> Option<RawFd> {
        self.ledger.as_ref().map(LedgerSegment::fd)
    }

    /// Starts the process; what it is to do it hears over the channel.
    ///
    /// # Errors
    /// The system's.
    pub fn start(&mut self, now: Instant) -> io::Result<&mut Life> {
        if self.spec.transport.is_some() && self.ledger.is_none() {
            self.ledger = Some(LedgerSegment::create()?);
        }
        let (channel, theirs) = sys::socketpair_seqpacket()?;
        let child = Command::new(OURSELVES)
            .arg0("haypile")
            .arg(SUBCOMMAND)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .current_dir("/")
            .env_clear()
            .spawn()?;
        let pidfd = sys::pidfd_open(child.id() as i32)?;
        self.restart_at = None;
        Ok(self.life.insert(Life {
            child,
            pidfd,
            channel,
            confinement: None,
            link: String::new(),
            waking: None,
            begun: false,
            forbidden: None,
            born: now,
        }))
    }

    /// The pidfd says that the process has ended. `None`: not yet.
    pub fn bury(&mut self, now: Instant) -> Option<Death> {
        let life = self.life.as_mut()?;
        let status = life.child.try_wait().ok()??;
        let (forbidden, lived_us) = (life.forbidden, now.since(life.born));
        let pid = life.child.id();
        self.life = None;
        self.used = false;
        let delay = self.backoff.died(lived_us);
        self.restart_at = Some(now.plus_us(delay.us));
        Some(Death { pid, why: describe(status, forbidden), clean: status.success(), delay })
    }

    /// It could not be started: a half-started one is a dead one; without any there is no death to count.
    pub fn fail_to_start(&mut self, now: Instant) {
        match &self.life {
            Some(life) => life.kill(),
            None => self.restart_at = Some(now.plus_us(LONGEST_US)),
        }
    }

    /// Whether it runs, serves applications, and its peers know it.
    pub fn has_begun(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.begun)
    }

    /// Whether it runs and has said so.
    pub fn is_ready(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.confinement.is_some())
    }
}

impl Life {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The descriptors to wait on: its end, and its words.
    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.pidfd.as_raw_fd(), self.channel.as_raw_fd()]
    }

    /// Ends it at once.
    pub fn kill(&self) {
        // One that is dead already needs no killing.
        let _: Result<(), Errno> = privilege::signal_process(&self.pidfd, libc::SIGKILL);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // A supervisor that ends leaves no server behind, and no zombie.
        self.kill();
        drop(self.child.wait());
    }
}

fn describe(status: ExitStatus, forbidden: Option<u32>) -> String {
    match (forbidden, status.signal(), status.code()) {
        (Some(call), _, _) => format!("it made the forbidden system call {}", call_name(call)),
        (None, Some(libc::SIGSYS), _) => "it made a forbidden system call".to_string(),
        (None, Some(signal), _) => format!("killed by signal {signal}"),
        (None, None, Some(FORBIDDEN_CALL_STATUS)) => "it made a forbidden system call".to_string(),
        (None, None, Some(PANIC_STATUS)) => "a broken assertion, told above".to_string(),
        (None, None, code) => format!("exit status {}", code.unwrap_or_default()),
    }
}

/// The number of a system call, with its name if it is one of the usual suspects.
fn call_name(number: u32) -> String {
    let names = [
        (libc::SYS_openat, "openat"),
        (libc::SYS_socket, "socket"),
        (libc::SYS_connect, "connect"),
        (libc::SYS_bind, "bind"),
        (libc::SYS_ioctl, "ioctl"),
        (libc::SYS_execve, "execve"),
        (libc::SYS_ptrace, "ptrace"),
        (libc::SYS_kill, "kill"),
        (libc::SYS_prctl, "prctl"),
        (libc::SYS_fcntl, "fcntl"),
        (libc::SYS_mmap, "mmap"),
        (libc::SYS_mprotect, "mprotect"),
        (libc::SYS_clone, "clone"),
        (libc::SYS_getcwd, "getcwd"),
        (libc::SYS_setsockopt, "setsockopt"),
        (libc::SYS_statx, "statx"),
        (libc::SYS_newfstatat, "newfstatat"),
        (libc::SYS_fstat, "fstat"),
    ];
    let name = names.iter().find(|(of, _)| *of == i64::from(number)).map(|(_, name)| *name);
    match name {
        Some(name) => format!("{number} ({name})"),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_words() {
        let status = ExitStatus::from_raw;
        assert_eq!(describe(status(9), None), "killed by signal 9");
        assert_eq!(describe(status(1 << 8), None), "exit status 1");
        assert_eq!(describe(status(PANIC_STATUS << 8), None), "a broken assertion, told above");
        let forbidden = describe(status(FORBIDDEN_CALL_STATUS << 8), Some(libc::SYS_getcwd as u32));
        assert!(forbidden.ends_with("(getcwd)"), "{forbidden}");
    }
}
