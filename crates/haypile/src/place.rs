//! Where services live: the default control directory, directories of private services, and the
//! removal of those whose service is dead. Called by `run` and `serve`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use haypile_service::error::Error;

/// File that a service holds locked for as long as it lives.
pub const LOCK: &str = "lock";
/// First part of the name of a private service's directory.
const PRIVATE_PREFIX: &str = "run-";

/// A control directory that this process owns; its files go when it is dropped.
#[derive(Debug)]
pub struct OwnedDirectory {
    path: PathBuf,
    private: bool,
    _lock: File,
}

/// The control directory when none is named.
///
/// # Errors
/// Without root and without `XDG_RUNTIME_DIR` there is no safe place.
pub fn default_directory() -> Result<PathBuf, Error> {
    if is_root() {
        return Ok(PathBuf::from("/run/haypile"));
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(directory) if !directory.is_empty() => Ok(PathBuf::from(directory).join("haypile")),
        _ => Err(Error::new(
            "choose a control directory",
            "not root, and XDG_RUNTIME_DIR is not set",
            "name one with --control-dir",
        )),
    }
}

/// The directory given, or the default.
///
/// # Errors
/// As [`default_directory`].
pub fn directory(given: Option<&Path>) -> Result<PathBuf, Error> {
    match given {
        Some(path) => std::path::absolute(path).map_err(|error| fail(path, error)),
        None => default_directory(),
    }
}

/// Makes and locks a control directory. Others may pass through it, so that programs which drop
/// their privileges still reach the service, but not list it.
///
/// # Errors
/// When it cannot be made, or a living service has it.
pub fn claim(path: &Path, private: bool) -> Result<OwnedDirectory, Error> {
    make_directory(path)?;
    let lock_path = path.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|error| fail(path, error))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::new(
                format_args!("use the control directory {}", path.display()),
                "a service already runs there",
                "stop it, or choose another directory with --control-dir",
            ));
        }
        Err(TryLockError::Error(error)) => return Err(fail(path, error)),
    }
    let directory = OwnedDirectory { path: path.to_path_buf(), private, _lock: lock };
    directory.remove_files();
    Ok(directory)
}

/// A name for a private service's directory that others cannot guess.
///
/// # Errors
/// When the system gives no randomness.
pub fn private_directory(parent: &Path) -> Result<PathBuf, Error> {
    let secret: String = random::<8>()?.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(parent.join(format!("{PRIVATE_PREFIX}{}-{secret}", std::process::id())))
}

/// Removes directories of private services that died without cleaning up.
pub fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with(PRIVATE_PREFIX) {
            continue;
        }
        // Made a moment ago: its service may not have locked it yet.
        let fresh = entry.metadata().and_then(|data| data.modified()).is_ok_and(|made| {
            made.elapsed().is_ok_and(|age| age < std::time::Duration::from_secs(30))
        });
        if let (false, Ok(lock)) = (fresh, File::open(entry.path().join(LOCK)))
            && lock.try_lock().is_ok()
        {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// Bytes that nobody can guess.
///
/// # Errors
/// When the system gives none.
pub fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .map_err(|error| Error::new("read /dev/urandom", error, "mount /dev"))?;
    Ok(bytes)
}

/// Makes a control directory, and the ones it is in, so that others may pass but not list them.
///
/// # Errors
/// When it cannot be made, or belongs to somebody else.
pub fn make_directory(path: &Path) -> Result<(), Error> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o711);
    builder.create(path).map_err(|error| fail(path, error))?;
    let data = fs::metadata(path).map_err(|error| fail(path, error))?;
    // Whoever owns the directory can put a file of their own in the place of ours.
    if data.uid() != effective_user() && !is_root() {
        return Err(fail(path, "it belongs to another user"));
    }
    if data.mode() & 0o022 != 0 {
        drop(fs::set_permissions(path, fs::Permissions::from_mode(0o711)));
    }
    Ok(())
}

fn fail(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(
        format_args!("use the control directory {}", path.display()),
        why,
        "choose another one with --control-dir",
    )
}

fn is_root() -> bool {
    effective_user() == 0
}

/// The effective user, who owns the files that this process makes.
fn effective_user() -> u32 {
    fs::metadata("/proc/self").map_or(u32::MAX, |data| data.uid())
}

impl OwnedDirectory {
    /// Removes what a service leaves: its sockets, the preload library, the log of a private one.
    fn remove_files(&self) {
        for name in ["control.sock", "attach.sock", crate::preload::FILE_NAME] {
            drop(fs::remove_file(self.path.join(name)));
        }
    }
}

impl Drop for OwnedDirectory {
    fn drop(&mut self) {
        self.remove_files();
        if self.private {
            drop(fs::remove_file(self.path.join(LOG)));
        }
        drop(fs::remove_file(self.path.join(LOCK)));
        // Fails when something else is in there, as it should.
        drop(fs::remove_dir(&self.path));
    }
}

/// Where a private service's complaints go.
pub const LOG: &str = "service.log";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_and_is_left_empty() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("control");
        let owned = claim(&path, false).expect("free");
        assert!(path.join(LOCK).exists());
        let error = claim(&path, false).expect_err("taken").to_string();
        assert!(error.contains("already runs there"), "{error}");
        drop(owned);
        assert!(!path.exists());
    }

    #[test]
    fn only_dead_private_directories_are_swept() {
        let parent = tempfile::tempdir().expect("a directory");
        let living = parent.path().join("run-1-aa");
        let _owned = claim(&living, true).expect("free");
        let dead = parent.path().join("run-2-bb");
        fs::create_dir(&dead).expect("made");
        fs::write(dead.join(LOCK), "").expect("written");
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        for path in [&living, &dead] {
            File::open(path).and_then(|file| file.set_modified(old)).expect("dated back");
        }
        sweep(parent.path());
        assert!(living.exists());
        assert!(!dead.exists());
    }
}
