//! The preload library inside the binary: built and embedded by `build.rs`, written once into the
//! control directory, named in the environment of programs. Called by `serve` and `run`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use haypile_service::error::Error;

/// Its name in the control directory.
pub const FILE_NAME: &str = "libhaypile_shim.so";
/// Names another library, for development.
const OVERRIDE: &str = "HAYPILE_SHIM";
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libhaypile_shim.so"));

/// Writes the library into the directory, readable for everyone. A program that is loading it
/// never sees half a file.
///
/// # Errors
/// When the file cannot be written.
pub fn install(directory: &Path) -> Result<PathBuf, Error> {
    let path = directory.join(FILE_NAME);
    let temporary = directory.join(format!("{FILE_NAME}.{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(LIBRARY)?;
            // The mode of `open` is subject to the umask.
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        })
        .and_then(|()| fs::rename(&temporary, &path));
    match written {
        Ok(()) => Ok(path),
        Err(error) => {
            drop(fs::remove_file(&temporary));
            Err(Error::new(
                format_args!("write {}", path.display()),
                error,
                "choose another directory with --control-dir",
            ))
        }
    }
}

/// Whether a file of a control directory is a library that [`install`] had not finished.
pub fn is_temporary(name: &OsStr) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix(FILE_NAME)?.strip_prefix('.'));
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The library that programs on the service at `directory` load.
///
/// # Errors
/// When HAYPILE_SHIM names no file, or the service's own is gone.
pub fn library(directory: &Path) -> Result<PathBuf, Error> {
    let (path, remedy) = match std::env::var_os(OVERRIDE) {
        Some(path) => (PathBuf::from(path), "correct or unset HAYPILE_SHIM"),
        None => (directory.join(FILE_NAME), "restart the service"),
    };
    let path = fs::canonicalize(&path).map_err(|error| {
        Error::new(format_args!("find the preload library {}", path.display()), error, remedy)
    })?;
    // The dynamic loader splits the list at these, without any way to quote them.
    if path.as_os_str().as_encoded_bytes().iter().any(|byte| b": ".contains(byte)) {
        return Err(Error::new(
            format_args!("preload {}", path.display()),
            "the loader takes no path with a space or a colon",
            "choose another directory with --control-dir",
        ));
    }
    Ok(path)
}

/// `LD_PRELOAD` with the library first and whatever was there behind it.
pub fn preload_list(library: &Path, before: Option<&OsStr>) -> OsString {
    let mut list = library.as_os_str().to_os_string();
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        list.push(":");
        list.push(before);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_library_is_written_whole_and_readable() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = install(directory.path()).expect("written");
        let bytes = fs::read(&path).expect("readable");
        assert_eq!(bytes, LIBRARY);
        assert_eq!(&bytes[..4], b"\x7fELF");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
    }

    #[test]
    fn the_library_goes_before_other_preloads() {
        let library = Path::new("/a.so");
        assert_eq!(preload_list(library, None), "/a.so");
        assert_eq!(preload_list(library, Some(OsStr::new(""))), "/a.so");
        assert_eq!(preload_list(library, Some(OsStr::new("/b.so"))), "/a.so:/b.so");
    }
}
