//! Where services live: the default control directory, directories of private services, and the
//! removal of those whose service and guardian are dead. Called by `run` and `serve`; `claim` owns
//! what is in a directory.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use haypile_link::wire;
use haypile_service::error::Error;

use crate::claim::LOCK;
use crate::cli::ControlArgs;

/// The control directory of root.
const ROOT_DIRECTORY: &str = "/run/haypile";
/// First part of the name of a private service's directory.
const PRIVATE_PREFIX: &str = "run-";
/// The same among temporary files.
const TEMPORARY_PREFIX: &str = "haypile-run-";
/// Name of the directory of wires.
const WIRES: &str = "wires";

/// The default control directory when none is named.
///
/// # Errors
/// Without root and without `XDG_RUNTIME_DIR` there is no safe place.
pub fn default_directory() -> Result<PathBuf, Error> {
    if is_root() {
        return Ok(PathBuf::from(ROOT_DIRECTORY));
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

/// The directory that the command line names, if it names one.
///
/// # Errors
/// When the name is none, or there is no place for names.
pub fn given(control: &ControlArgs) -> Result<Option<PathBuf>, Error> {
    let Some(name) = &control.name else { return Ok(control.control_dir.clone()) };
    let taken = name == WIRES || name.starts_with(PRIVATE_PREFIX);
    if taken || wire::check_name(name).is_err() {
        return Err(Error::usage(
            format_args!("name a service \"{name}\""),
            "not a name for one",
            "use up to 32 letters, digits, dashes and underscores",
        ));
    }
    Ok(Some(default_directory()?.join(name)))
}

/// The directory of the service that the command line names, or of the default one.
///
/// # Errors
/// As [`given`] and [`default_directory`].
pub fn directory_of(control: &ControlArgs) -> Result<PathBuf, Error> {
    directory(given(control)?.as_deref())
}

/// The directory of the service that root has started for everybody, for other users.
pub fn of_root() -> Option<PathBuf> {
    (!is_root()).then(|| PathBuf::from(ROOT_DIRECTORY))
}

/// Where wires have their sockets; `None` where there is no safe place.
pub fn wires() -> Option<PathBuf> {
    default_directory().ok().map(|base| base.join(WIRES))
}

/// The directory given, or the default.
///
/// # Errors
/// As [`default_directory`].
pub fn directory(given: Option<&Path>) -> Result<PathBuf, Error> {
    match given {
        Some(path) if path.to_str().is_none() => Err(Error::usage(
            format_args!("use the directory {}", path.display()),
            "its name is not UTF-8 text",
            "choose another one",
        )),
        Some(path) => std::path::absolute(path).map_err(|error| fail(path, error)),
        None => default_directory(),
    }
}

/// A new directory for a private service, with a name that others cannot guess: beside the default
/// one, or, where there is no such place, among everybody's temporary files. Directories of private
/// services there that died together with their guardians are removed.
///
/// # Errors
/// When the system gives no randomness.
pub fn private_directory() -> Result<PathBuf, Error> {
    let Ok(parent) = default_directory() else { return temporary_directory() };
    sweep(&parent, PRIVATE_PREFIX);
    unguessable(&parent, PRIVATE_PREFIX)
}

/// As [`private_directory`], among everybody's temporary files.
///
/// # Errors
/// When the system gives no randomness.
pub fn temporary_directory() -> Result<PathBuf, Error> {
    let parent = std::env::temp_dir();
    sweep(&parent, TEMPORARY_PREFIX);
    unguessable(&parent, TEMPORARY_PREFIX)
}

fn unguessable(parent: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let secret: String = random::<8>()?.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(parent.join(format!("{prefix}{}-{secret}", std::process::id())))
}

/// Removes directories of private services that died together with their guardians.
fn sweep(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with(prefix) {
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

fn fail(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(
        format_args!("use the control directory {}", path.display()),
        why,
        "choose another one with --control-dir",
    )
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    effective_user() == 0
}

/// The number of a group by its name in the system's list; a number stands for itself.
///
/// # Errors
/// When there is no such group.
pub fn find_group(name: &str) -> Result<u32, Error> {
    let list = fs::read_to_string("/etc/group").unwrap_or_default();
    group_in(&list, name).ok_or_else(|| {
        Error::new(
            format_args!("use the group {name}"),
            "there is no such group in /etc/group",
            "name another one, or a number, with --group",
        )
    })
}

/// From lines of group(5): name, password, number, members.
fn group_in(list: &str, name: &str) -> Option<u32> {
    let number = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    name.parse().ok().or_else(|| list.lines().find_map(number))
}

/// Whether a file is this user's own.
pub fn owns(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.uid() == effective_user())
}

/// The effective user, who owns the files that this process makes.
pub fn effective_user() -> u32 {
    fs::metadata("/proc/self").map_or(u32::MAX, |data| data.uid())
}

/// The effective group, if the system tells it.
pub fn effective_group() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|data| data.gid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::claim;

    #[test]
    fn groups_are_found_by_name_and_number() {
        let list = "root:x:0:\nweb:x:33:one,two\nbroken:x\nworse:x:y:\n";
        assert_eq!(group_in(list, "web"), Some(33));
        assert_eq!(group_in(list, "4711"), Some(4711));
        for name in ["we", "broken", "worse", "", "x"] {
            assert_eq!(group_in(list, name), None, "{name}");
        }
        assert!(find_group("no such group").expect_err("none").to_string().contains("--group"));
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
        sweep(parent.path(), PRIVATE_PREFIX);
        assert!(living.exists());
        assert!(!dead.exists());
    }
}
