//! Checks of what programs need: a control directory, the preload library, a service that runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use haypile_service::control::Request;

use super::{Check, Verdict};
use crate::asking::ask;
use crate::{place, preload};

/// All of them.
pub fn checks(directory: Option<&Path>) -> Vec<Check> {
    vec![preloading(), loader_file(), service(directory)]
}

/// A folder that is removed with this.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Loads the library into a program that does nothing. The loader says on stderr what it did not
/// like, and goes on without it.
fn preloading() -> Check {
    const NAME: &str = "preload library";
    match load_into_true() {
        Ok(complaint) if complaint.is_empty() => {
            Check::new(NAME, Verdict::Good, "loads into programs here")
        }
        Ok(complaint) => Check::new(NAME, Verdict::Broken, complaint)
            .advise("use a system with glibc, and a control directory that is not mounted noexec"),
        Err(why) => Check::new(NAME, Verdict::Broken, why)
            .advise("name a writable directory with TMPDIR or --control-dir"),
    }
}

fn load_into_true() -> Result<String, String> {
    let name = place::temporary_directory().map_err(|error| error.to_string())?;
    std::fs::create_dir(&name).map_err(|error| format!("{}: {error}", name.display()))?;
    let folder = Folder(name);
    let library = preload::install(&folder.0).map_err(|error| error.to_string())?;
    let output = Command::new("true")
        .env("LD_PRELOAD", &library)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("run true: {error}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    Ok(complaint.lines().next().unwrap_or_default().to_string())
}

fn loader_file() -> Check {
    const NAME: &str = "other libraries";
    let system = super::read("/etc/ld.so.preload").filter(|text| !text.is_empty());
    let own = std::env::var("LD_PRELOAD").ok().filter(|text| !text.is_empty());
    match (system, own) {
        (None, None) => Check::new(NAME, Verdict::Good, "none is preloaded"),
        (system, own) => {
            let all: Vec<String> = [system, own].into_iter().flatten().collect();
            Check::new(NAME, Verdict::Note, all.join(" "))
                .advise("libraries preloaded beside ours may take the same functions")
        }
    }
}

fn service(directory: Option<&Path>) -> Check {
    const NAME: &str = "service";
    let Some(directory) = directory else {
        let found = "XDG_RUNTIME_DIR is not set; haypile run takes a temporary directory";
        return Check::new(NAME, Verdict::Note, found)
            .advise("for a service that stays set it, or name a place with --control-dir");
    };
    match ask(directory, &Request::Version {}) {
        Ok(answer) => {
            let version = answer["version"].as_str().unwrap_or("unknown");
            let found = format!("version {version} runs at {}", directory.display());
            if version == env!("CARGO_PKG_VERSION") {
                return Check::new(NAME, Verdict::Good, found);
            }
            Check::new(NAME, Verdict::Limited, found)
                .advise("it is not of this command's version: restart it")
        }
        Err(error) if error.is_silence() => {
            let found = format!("one at {} is silent: {}", directory.display(), error.why());
            Check::new(NAME, Verdict::Limited, found).advise(error.remedy())
        }
        Err(_) => {
            let found = format!("none at {}", directory.display());
            Check::new(NAME, Verdict::Note, format!("{found}; haypile run starts one of its own"))
        }
    }
}
