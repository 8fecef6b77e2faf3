//! Who owns a control directory: claiming it for a service, giving it back at a clean end, and
//! removing what a dead service has left. Called by `serve`, `run` and `guard`.
//!
//! Two locks keep starters, enders and guardians apart. The file `lock` is locked by a service for
//! as long as it lives. The directory itself is locked for the few system calls of a claim or a
//! removal (a [`Turn`]), so that no removal begins on the files of a dead service and ends on those
//! of the next one. Read [`claim`] and [`remove_leavings`] first.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use haypile_service::attach::ATTACH_SOCKET;
use haypile_service::control::{CONTROL_SOCKET, Request};
use haypile_service::error::Error;
use haypile_shm::control::{DOOR_SOCKET, attach_path};
use haypile_shm::epoch::EPOCH_SERVERS;

use crate::asking::{ask, stopped};
use crate::place;
use crate::preload;

/// File that a service holds locked for as long as it lives. Its words say what goes with the
/// service beside its sockets; they outlive it.
pub const LOCK: &str = "lock";
/// Where a private service's complaints go.
const LOG: &str = "service.log";
/// Word of the lock file: we made the directory.
const MADE: &str = "directory";
/// Word of the lock file: we made the log.
const LOGGED: &str = "log";
/// Word of the lock file, before a process and its namespace of processes: whoever has locked it.
const HOLDER: &str = "process";
/// Longest text of a lock file.
const TEXT_MAX: u64 = 256;
/// Time for a service that is dying to be dead, and for a turn to come: milliseconds, unless others
/// want the cores more.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nobody's stop and start of a process takes longer, unless it is meant.
const STILLNESS: Duration = Duration::from_secs(1);
/// Pause between two looks at a lock.
const PAUSE: Duration = Duration::from_millis(2);

/// A control directory that this process owns; its files go when it is dropped.
#[derive(Debug)]
pub struct OwnedDirectory {
    /// What to remove; nothing once it was given away.
    leavings: Option<Leavings>,
    _lock: File,
}

/// What a service leaves in its directory.
#[derive(Clone, Debug)]
struct Leavings {
    path: PathBuf,
    /// The directory is ours to remove, unless somebody else has put something in it.
    made: bool,
    /// The log is ours.
    log: bool,
}

/// The right to claim a directory or to remove files from it.
struct Turn {
    _directory: File,
}

/// Makes and locks a control directory. Others may pass through it, so that programs which drop
/// their privileges still reach the service, but not list it. Waits for a service that is dying.
///
/// # Errors
/// When it cannot be made, or a living service has it.
pub fn claim(path: &Path, private: bool) -> Result<OwnedDirectory, Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut made = place::default_directory().is_ok_and(|default| default == path);
    loop {
        made |= make_directory(path)?;
        match try_claim(path, private, made, deadline) {
            Ok(Some(directory)) => return Ok(directory),
            // A service that was killed holds its lock, and even takes connections, until it is
            // dead; but it does not answer.
            Ok(None) => match ask(path, &Request::Version {}) {
                Err(error) if error.is_silence() => return Err(silent(path, &error)),
                Err(_) if Instant::now() <= deadline => std::thread::sleep(PAUSE),
                Ok(_) | Err(_) => return Err(fail_busy(path)),
            },
            // By the guardian of the service before, under our hands.
            Err(error) if error.kind() == ErrorKind::NotFound && Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(fail(path, error)),
        }
    }
}

/// Waits while `look` finds nothing and a service holds the directory: it starts, and will answer, or
/// dies, and will let go. What `look` has found at last.
///
/// # Errors
/// Of `look`. [`Error::is_silence`] when the service does neither: 1 s after it was stopped, else after 10 s.
pub fn wait_for_answer<T>(
    path: &Path,
    mut look: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<Option<T>, Error> {
    let begun = Instant::now();
    let what = format!("ask the service in {}", path.display());
    loop {
        // Before the look: a service answers until it lets go.
        let held = is_held(path);
        let found = look()?;
        if found.is_some() || !held {
            return Ok(found);
        }
        let waited = begun.elapsed();
        if waited > STILLNESS
            && let Some((why, remedy)) = stopped(path)
        {
            return Err(Error::silence(what, why, remedy));
        }
        if waited > PATIENCE {
            let why = format!("it holds the directory, and has not begun in {PATIENCE:?}");
            let remedy = "look at what haypile serve says, or end that one";
            return Err(Error::silence(what, why, remedy));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whether somebody holds the lock, as far as we may know.
fn is_held(path: &Path) -> bool {
    // Shared with others who look, not with owners.
    File::open(path.join(LOCK))
        .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// The process that holds the lock, if it is one of this namespace of processes.
pub fn holder(path: &Path) -> Option<u32> {
    if !is_held(path) {
        return None;
    }
    let text = read_words(&File::open(path.join(LOCK)).ok()?);
    let words = text.lines().find_map(|line| line.strip_prefix(HOLDER));
    let (process, namespace) = words?.trim().split_once(' ')?;
    (namespace == process_namespace()).then(|| process.parse().ok())?
}

/// The namespace that numbers of processes are of.
fn process_namespace() -> String {
    fs::read_link("/proc/self/ns/pid").unwrap_or_default().display().to_string()
}

fn read_words(lock: &File) -> String {
    let mut text = String::new();
    // What cannot be read is not ours.
    drop(lock.take(TEXT_MAX).read_to_string(&mut text));
    text
}

/// `None` while somebody else holds the lock.
fn try_claim(
    path: &Path,
    private: bool,
    made: bool,
    deadline: Instant,
) -> io::Result<Option<OwnedDirectory>> {
    let _turn = Turn::take(path, deadline)?;
    let Some(lock) = lock(path, true)? else { return Ok(None) };
    let before = Leavings::read(path, &lock);
    before.remove_sockets();
    if before.log && !private {
        drop(fs::remove_file(path.join(LOG)));
    }
    let leavings = Leavings { made: made || before.made, log: private, ..before };
    leavings.write(&lock)?;
    Ok(Some(OwnedDirectory { leavings: Some(leavings), _lock: lock }))
}

/// Makes the directory of a private service that this process is about to start, and opens its
/// log in there.
///
/// # Errors
/// When either cannot be made, or a living service has the directory.
pub fn prepare(path: &Path) -> Result<File, Error> {
    let mut directory = claim(path, true)?;
    let log = open_log(path).map_err(|error| fail(path, error))?;
    // The lock file says now what the service will own.
    directory.leavings = None;
    Ok(log)
}

/// The log of a private service, to write at its end and to read from its start.
///
/// # Errors
/// When it cannot be made.
pub fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path.join(LOG))
}

/// Removes what a service has left, unless a living one has the directory. `made`: it is known that
/// the service made the directory, even if it died before it could write that down.
pub fn remove_leavings(path: &Path, made: bool, keep_log: bool) {
    let Ok(_turn) = Turn::take(path, Instant::now() + PATIENCE) else { return };
    let lock = match lock(path, false) {
        Ok(Some(lock)) => lock,
        // Somebody else has it.
        Ok(None) => return,
        Err(_) => {
            if made {
                drop(fs::remove_dir(path));
            }
            return;
        }
    };
    let before = Leavings::read(path, &lock);
    let leavings = Leavings { made: made || before.made, ..before };
    match keep_log && leavings.log {
        true => leavings.remove_sockets(),
        false => leavings.remove(),
    }
}

/// The lock file, locked; `None` when somebody else holds it.
fn lock(path: &Path, create: bool) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.create(create).truncate(false).read(true).write(true).mode(0o600);
    let lock = options.open(path.join(LOCK))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Makes a control directory, and the ones it is in, so that others may pass but not list them.
/// True when it was not there.
///
/// # Errors
/// When it cannot be made, or belongs to somebody else.
fn make_directory(path: &Path) -> Result<bool, Error> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o711);
    if let Some(parent) = path.parent() {
        builder.recursive(true).create(parent).map_err(|error| fail(path, error))?;
    }
    let made = match builder.recursive(false).create(path) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
        Err(error) => return Err(fail(path, error)),
    };
    let data = match fs::metadata(path) {
        Ok(data) => data,
        // Removed since; whoever needs it comes again.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(made),
        Err(error) => return Err(fail(path, error)),
    };
    if !data.is_dir() {
        return Err(fail(path, "it is no directory"));
    }
    // Whoever owns the directory can put a file of their own in the place of ours.
    if data.uid() != place::effective_user() && !place::is_root() {
        return Err(fail(path, "it belongs to another user"));
    }
    if data.mode() & 0o022 != 0 {
        drop(fs::set_permissions(path, fs::Permissions::from_mode(0o711)));
    }
    Ok(made)
}

fn not_given(path: &Path, group: u32, why: io::Error) -> Error {
    Error::new(
        format_args!("give {} to the group {group}", path.display()),
        why,
        "name a group that this user is a member of, or be root",
    )
}

fn fail_busy(path: &Path) -> Error {
    Error::new(
        format_args!("use the control directory {}", path.display()),
        "a service already runs there",
        "stop it, or choose another directory with --control-dir",
    )
}

/// A service has the directory, and does not answer.
fn silent(path: &Path, error: &Error) -> Error {
    Error::silence(
        format_args!("use the control directory {}", path.display()),
        format_args!("a service already runs there, but does not answer: {}", error.why()),
        error.remedy(),
    )
}

fn fail(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(
        format_args!("use the control directory {}", path.display()),
        why,
        "choose another one with --control-dir",
    )
}

impl Turn {
    /// Waits for the turn at the directory that `path` names.
    ///
    /// # Errors
    /// `NotFound` without a directory, `TimedOut` when the turn has not come by `deadline`.
    fn take(path: &Path, deadline: Instant) -> io::Result<Turn> {
        loop {
            let directory = File::open(path)?;
            match directory.try_lock() {
                Ok(()) => {
                    let (locked, named) = (directory.metadata()?, fs::metadata(path)?);
                    if (locked.dev(), locked.ino()) == (named.dev(), named.ino()) {
                        return Ok(Turn { _directory: directory });
                    }
                    // Removed while we waited, and made again by somebody else.
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
                // A file system that cannot lock directories: the lock file must do.
                Err(TryLockError::Error(_)) => return Ok(Turn { _directory: directory }),
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(ErrorKind::TimedOut, "it is locked by somebody"));
            }
        }
    }
}

impl Leavings {
    fn read(path: &Path, lock: &File) -> Leavings {
        let text = read_words(lock);
        let says = |word| text.lines().any(|line| line == word);
        Leavings { path: path.to_path_buf(), made: says(MADE), log: says(LOGGED) }
    }

    fn write(&self, lock: &File) -> io::Result<()> {
        let words = [(self.made, MADE), (self.log, LOGGED)];
        let lines = words.iter().filter(|(said, _)| *said).map(|(_, word)| format!("{word}\n"));
        let holder = format!("{HOLDER} {} {}\n", std::process::id(), process_namespace());
        lock.set_len(0)?;
        lock.write_all_at((lines.collect::<String>() + &holder).as_bytes(), 0)
    }

    /// Removes the sockets and the preload library, also one that was only half written.
    fn remove_sockets(&self) {
        for name in [CONTROL_SOCKET, ATTACH_SOCKET, DOOR_SOCKET, preload::FILE_NAME] {
            drop(fs::remove_file(self.path.join(name)));
        }
        let Ok(entries) = fs::read_dir(&self.path) else { return };
        let ours = |name: &OsStr| preload::is_temporary(name) || is_attach_socket(name);
        for entry in entries.flatten().filter(|entry| ours(&entry.file_name())) {
            drop(fs::remove_file(entry.path()));
        }
    }

    /// Removes everything, the lock file last of the files: until then its words stand.
    fn remove(&self) {
        self.remove_sockets();
        if self.log {
            drop(fs::remove_file(self.path.join(LOG)));
        }
        drop(fs::remove_file(self.path.join(LOCK)));
        if self.made {
            // Fails when something else is in there, as it should.
            drop(fs::remove_dir(&self.path));
        }
    }
}

impl OwnedDirectory {
    /// Lets members of a group pass to the sockets, and no others.
    ///
    /// # Errors
    /// When this user may not give the directory to that group.
    pub fn keep_to(&self, group: u32) -> Result<(), Error> {
        let Some(Leavings { path, .. }) = &self.leavings else { return Ok(()) };
        chown(path, None, Some(group))
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o710)))
            .map_err(|error| not_given(path, group, error))
    }

    /// Lets members of a group give commands, once the socket for them is there.
    ///
    /// # Errors
    /// As [`OwnedDirectory::keep_to`].
    pub fn share_commands(&self, group: u32) -> Result<(), Error> {
        let Some(Leavings { path, .. }) = &self.leavings else { return Ok(()) };
        let socket = path.join(CONTROL_SOCKET);
        chown(&socket, None, Some(group)).map_err(|error| not_given(&socket, group, error))
    }

    /// Gives the directory back with the log in it, and the lock file, by which a later start finds
    /// both.
    pub fn leave_log(mut self) {
        if let Some(leavings) = self.leavings.take() {
            leavings.remove_sockets();
        }
    }
}

impl Drop for OwnedDirectory {
    fn drop(&mut self) {
        if let Some(leavings) = self.leavings.take() {
            // Only a stranger who can read the directory could keep its turn from us for so long.
            let _turn = Turn::take(&leavings.path, Instant::now() + PATIENCE);
            leavings.remove();
        }
    }
}

/// Whether a file bears the name of the attach socket of a transport server other than the first.
fn is_attach_socket(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let named = |server| attach_path(ATTACH_SOCKET.as_bytes(), server) == bytes;
    (1..EPOCH_SERVERS).any(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    #[test]
    fn a_directory_has_one_owner_and_is_left_empty() {
        let parent = parent();
        let path = parent.path().join("control");
        let owned = claim(&path, false).expect("free");
        assert!(path.join(LOCK).exists());
        let error = claim(&path, false).expect_err("taken").to_string();
        assert!(error.contains("already runs there"), "{error}");
        remove_leavings(&path, false, false);
        assert!(path.join(LOCK).exists());
        drop(owned);
        assert!(!path.exists());
    }

    #[test]
    fn an_answer_is_waited_for_while_somebody_may_give_it() {
        let parent = parent();
        let path = parent.path().join("control");
        let mut looks = 0;
        let mut look_for = |most: u32| {
            looks = 0;
            let found = wait_for_answer(&path, || {
                looks += 1;
                Ok((looks == most).then_some(()))
            });
            (found.expect("no error").is_some(), looks)
        };
        assert_eq!(look_for(2), (false, 1), "nobody is there");
        let owned = claim(&path, false).expect("free");
        assert_eq!(look_for(5), (true, 5));
        drop(owned);
        assert_eq!(look_for(2), (false, 1));
    }

    #[test]
    fn what_others_made_stays() {
        let parent = parent();
        let path = parent.path().join("theirs");
        fs::create_dir(&path).expect("made");
        drop(claim(&path, true).expect("free"));
        assert!(path.exists());
        fs::write(path.join(LOG), "theirs").expect("written");
        drop(claim(&path, false).expect("free"));
        assert_eq!(fs::read_dir(&path).expect("listed").count(), 1);
        let path = parent.path().join("ours");
        let owned = claim(&path, false).expect("free");
        fs::write(path.join("precious"), "").expect("written");
        drop(owned);
        assert_eq!(fs::read_dir(&path).expect("listed").count(), 1);
    }

    /// As the kernel leaves a directory behind when its service is killed.
    fn abandon(mut owned: OwnedDirectory) {
        let path = owned.leavings.take().expect("not given away").path;
        for name in [CONTROL_SOCKET, ATTACH_SOCKET, DOOR_SOCKET, preload::FILE_NAME] {
            fs::write(path.join(name), "").expect("written");
        }
        fs::write(path.join(format!("{}.17", preload::FILE_NAME)), "half").expect("written");
        fs::write(path.join("attach-63.sock"), "").expect("written");
    }

    #[test]
    fn leavings_of_the_dead_are_removed() {
        let parent = parent();
        for private in [false, true] {
            let path = parent.path().join("control");
            if private {
                drop(prepare(&path).expect("made"));
            }
            abandon(claim(&path, private).expect("free"));
            assert!(path.join(CONTROL_SOCKET).exists());
            remove_leavings(&path, false, false);
            assert!(!path.exists());
        }
    }

    #[test]
    fn the_next_service_inherits_the_directory() {
        let parent = parent();
        let path = parent.path().join("control");
        drop(prepare(&path).expect("made"));
        abandon(claim(&path, true).expect("free"));
        let next = claim(&path, false).expect("free again");
        let names = fs::read_dir(&path).expect("listed").flatten();
        let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
        assert_eq!(names, [LOCK]);
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn a_log_that_says_why_stays_until_the_next_service() {
        let parent = parent();
        let path = parent.path().join("control");
        let guardians: [fn(OwnedDirectory); 2] = [abandon, OwnedDirectory::leave_log];
        for end in guardians {
            fs::create_dir(&path).expect("made");
            drop(open_log(&path).expect("made"));
            end(claim(&path, true).expect("free"));
            remove_leavings(&path, false, true);
            let mut names: Vec<_> = fs::read_dir(&path)
                .expect("listed")
                .flatten()
                .map(|entry| entry.file_name())
                .collect();
            names.sort();
            assert_eq!(names, [LOCK, LOG]);
            fs::remove_dir_all(&path).expect("removed");
        }
    }
}
