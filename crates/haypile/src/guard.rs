//! The guardian: a small process that outlives a service only to remove its files, so that nothing
//! is left behind however the service dies.
//!
//! `serve` starts one before it opens anything ([`start`]), and has one end of a socket pair that
//! nobody else holds; the guardian ([`run`], the hidden subcommand) reads the other end. Words on it
//! tell the guardian what there is to do at its end, which the kernel makes when the service is
//! dead. Read `claim` for what may be removed.

use std::cell::RefCell;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use haypile_link::wire;
use haypile_service::config::LinkChoice;
use haypile_service::error::Error;
use haypile_service::start::Started;
use haypile_shm::sys::{self, Fd, PollFd};

use crate::claim;
use crate::cli::GuardArgs;

/// From the guardian: it waits.
const READY: u8 = b'r';
/// From the service: it is about to claim the directory.
const CLAIMING: u8 = b'c';
/// From the service: the directory is not there yet, so it is ours if it appears.
const MAKING: u8 = b'm';
/// From the service: its log says why it dies.
const LEAVE_LOG: u8 = b'l';
/// From the service: it has removed everything itself.
const DONE: u8 = b'd';
/// Time for the guardian to start, and to end: milliseconds, unless others want the cores more.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between the first and the last step of a process's death.
const DYING: Duration = Duration::from_secs(30);
const POLLIN: i16 = 1;

/// The service's side. Told of the clean end, and waited for, when it is dropped.
pub struct Guardian {
    channel: UnixStream,
    child: Rc<RefCell<Child>>,
}

/// Starts the guardian of a directory that is about to be claimed. Without one a service runs as
/// well; the reason is told on standard error.
pub fn start(directory: &Path, link: &LinkChoice) -> Option<Guardian> {
    match try_start(directory, link) {
        Ok(guardian) => Some(guardian),
        Err(why) => {
            let path = directory.display();
            complain(&format!("no guardian: {why}; files stay in {path} if the service is killed"));
            None
        }
    }
}

fn try_start(directory: &Path, link: &LinkChoice) -> io::Result<Guardian> {
    let (channel, theirs) = UnixStream::pair()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["guard", &std::process::id().to_string()]).arg(directory);
    if let LinkChoice::Wire { directory, name } = link {
        command.arg("--wire").arg(directory.join(name));
    }
    let child = command
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .env_remove("LD_PRELOAD")
        .spawn()?;
    let guardian = Guardian { channel, child: Rc::new(RefCell::new(child)) };
    // From now on no signal to our group or terminal reaches it.
    guardian.channel.set_read_timeout(Some(PATIENCE))?;
    let mut word = [0];
    (&guardian.channel).read_exact(&mut word)?;
    Ok(guardian)
}

/// One line for the log; a closed one is no reason to stop.
fn complain(text: &str) {
    drop(writeln!(io::stderr(), "haypile: {text}"));
}

impl Guardian {
    /// The directory is about to be claimed: what we put there goes with us from now on, even if
    /// we die before it is ours.
    pub fn claiming(&self, directory: &Path) {
        if !directory.exists() {
            self.tell(MAKING);
        }
        self.tell(CLAIMING);
    }

    /// A panic, which ends the service at once, is told by the log: that stays then.
    pub fn leave_log_of_panic(&self) {
        let Ok(channel) = self.channel.try_clone() else { return };
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            drop((&channel).write(&[LEAVE_LOG]));
            before(panic);
        }));
    }

    /// Has the service tell the log when its guardian is gone.
    ///
    /// # Errors
    /// When the service can wait for no more descriptors.
    pub fn watch(&self, started: &mut Started, directory: &Path) -> Result<(), Error> {
        // Without a descriptor for it, its end goes unnoticed.
        let Ok(channel) = self.channel.try_clone() else { return Ok(()) };
        let (child, path) = (Rc::clone(&self.child), directory.display().to_string());
        let ended = move || {
            complain(&format!("the guardian has ended; files stay in {path} if this is killed"));
            drop(child.borrow_mut().try_wait());
        };
        started.watch_guardian(channel, Box::new(ended))
    }

    fn tell(&self, word: u8) {
        // A guardian that is gone was complained of.
        drop((&self.channel).write(&[word]));
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.tell(DONE);
        drop(self.channel.shutdown(Shutdown::Both));
        let (asked, mut child) = (Instant::now(), self.child.borrow_mut());
        while asked.elapsed() < PATIENCE && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Is the guardian: waits for the end of the service that started it, removes what that left.
///
/// # Errors
/// When it was not started by a service.
pub fn run(arguments: &GuardArgs) -> Result<ExitCode, Error> {
    let fail = |why: io::Error| {
        Error::new("guard the files of a service", why, "start one with haypile serve")
    };
    let channel = take_channel().map_err(fail)?;
    // Fails only for the leader of a group, which its starter did not make it.
    let _: Result<(), haypile_shm::Errno> = sys::setsid();
    close_others(channel.as_raw_fd());
    let service = sys::pidfd_open(arguments.service).map_err(|errno| fail(errno.into()))?;
    (&channel).write_all(&[READY]).map_err(fail)?;
    let words = read_words(&channel);
    if !words.contains(&DONE) {
        wait_for_death(&service);
        let (made, keep_log) = (words.contains(&MAKING), words.contains(&LEAVE_LOG));
        if words.contains(&CLAIMING) {
            claim::remove_leavings(&arguments.directory, made, keep_log);
        }
        remove_wire(arguments.wire.as_deref());
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes the socket of a wire, unless its other end has it now.
fn remove_wire(wire: Option<&Path>) {
    if let Some((directory, name)) = wire.and_then(|path| Some((path.parent()?, path.file_name()?)))
    {
        wire::remove_leavings(directory, &name.to_string_lossy());
    }
}

/// The channel, which comes as standard input; /dev/null takes its place.
fn take_channel() -> io::Result<UnixStream> {
    let input = io::stdin();
    let channel = input.as_fd().try_clone_to_owned()?;
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    sys::dup3(null.as_raw_fd(), input.as_raw_fd(), 0)?;
    Ok(UnixStream::from(channel))
}

/// Closes what the service itself was given: pipes and terminals whose end somebody may wait for.
fn close_others(channel: RawFd) {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let numbers: Vec<RawFd> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2 && *number != channel) {
        // One of them was the list itself and is closed already.
        let _: Result<(), haypile_shm::Errno> = sys::close(number);
    }
}

/// All words until the end of the channel, which comes with that of the service.
fn read_words(mut channel: &UnixStream) -> Vec<u8> {
    let mut words = Vec::new();
    // A broken channel is an end as well.
    drop(channel.read_to_end(&mut words));
    words
}

/// The channel is closed in the middle of the service's death, maybe before its lock is given up.
fn wait_for_death(service: &Fd) {
    let started = Instant::now();
    while let Some(left) = DYING.checked_sub(started.elapsed()) {
        let mut wanted = [PollFd { fd: service.raw(), events: POLLIN, revents: 0 }];
        // A signal that was not deadly ends the wait early.
        if sys::ppoll(&mut wanted, Some(left)).is_ok_and(|ready| ready > 0) {
            return;
        }
    }
}
