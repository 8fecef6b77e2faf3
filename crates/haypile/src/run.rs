//! `haypile run`: joins a running service or starts a private one, then becomes the program.
//!
//! The program takes this process's place (exec), so its exit status, its signals and its terminal
//! are its own. A private service is a process of its own, in a session of its own; it watches this
//! process and everyone who attaches, and removes everything after the last of them. Called by
//! `main`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use haypile_service::attach::ATTACH_SOCKET;
use haypile_service::control::{Request, ask};
use haypile_service::error::Error;
use haypile_shm::control::{ATTACH_VARIABLE, DOMAIN_VARIABLE};

use crate::claim;
use crate::cli::RunArgs;
use crate::place;
use crate::preload;
use crate::serve::Announcement;

/// The service that the program will use.
struct Joined {
    directory: PathBuf,
    addresses: Vec<String>,
    /// What was taken, for the one line on stderr.
    note: String,
}

/// Becomes the program; comes back only when that fails.
///
/// # Errors
/// When there is no service and none can be started, or the program cannot be executed.
pub fn run(arguments: &RunArgs) -> Result<ExitCode, Error> {
    let joined = find_or_start(arguments)?;
    if !arguments.quiet {
        eprintln!("haypile: {}; reach it at {}", joined.note, joined.addresses.join(" or "));
    }
    execute(arguments, &joined)
}

fn find_or_start(arguments: &RunArgs) -> Result<Joined, Error> {
    let given = place::given(&arguments.control)?;
    let particular = !arguments.service.is_default();
    match given {
        Some(path) => {
            let path = place::directory(Some(&path))?;
            match join(&path) {
                Some(_) if particular => Err(Error::new(
                    format_args!("start a service in {}", path.display()),
                    "one runs there already, with settings of its own",
                    "leave the settings out to join it, or name another --control-dir",
                )),
                Some(joined) => Ok(joined),
                None => start_private(arguments, path),
            }
        }
        None => {
            let default = place::default_directory();
            if let (false, Ok(path)) = (particular, &default)
                && let Some(joined) = join(path)
            {
                return Ok(joined);
            }
            let parent = default.unwrap_or_else(|_| std::env::temp_dir());
            place::sweep(&parent);
            start_private(arguments, place::private_directory(&parent)?)
        }
    }
}

/// The service in a directory, if one answers.
fn join(directory: &Path) -> Option<Joined> {
    let answer = ask(directory, &Request::Version {}).ok()?;
    let addresses = answer["addresses"].as_array()?;
    let addresses = addresses.iter().filter_map(|address| address.as_str());
    let addresses: Vec<String> =
        addresses.map(|text| text.split('/').next().unwrap_or(text).to_string()).collect();
    let note = format!("joined the service in {}", directory.display());
    Some(Joined { directory: directory.to_path_buf(), addresses, note })
}

/// Starts a service that lives as long as this process, which becomes the program, or anyone else
/// who uses it.
fn start_private(arguments: &RunArgs, directory: PathBuf) -> Result<Joined, Error> {
    let fail =
        |why: String| Error::new("start a private service", why, "try haypile serve to see more");
    let program = std::env::current_exe().map_err(|error| fail(error.to_string()))?;
    let log = claim::prepare(&directory)?;
    let error_output = log.try_clone().map_err(|error| fail(error.to_string()))?;
    let mut child = Command::new(program)
        .arg("serve")
        .args(arguments.service.words())
        .arg("--control-dir")
        .arg(&directory)
        .args(["--private-for", &std::process::id().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(error_output)
        .env_remove("LD_PRELOAD")
        .spawn()
        .map_err(|error| fail(error.to_string()))?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        // An early end of the service is an empty line here.
        drop(BufReader::new(output).read_line(&mut line));
    }
    match serde_json::from_str(&line) {
        Ok(Announcement::Ready { link, addresses }) => {
            let note = format!("private service, {link}");
            Ok(Joined { directory, addresses, note })
        }
        Ok(Announcement::Failed { what, why, remedy }) => {
            drop(child.wait());
            claim::remove_leavings(&directory, false, false);
            Err(Error::new(what, why, remedy))
        }
        Err(_) => {
            drop(child.wait());
            claim::remove_leavings(&directory, false, false);
            Err(fail(format!("it ended at once, saying: {}", said(log))))
        }
    }
}

/// What a log says. Its file may have been removed by now.
fn said(mut log: File) -> String {
    let mut text = Vec::new();
    // Half a log is better than none.
    drop(std::io::Seek::rewind(&mut log).and_then(|()| log.read_to_end(&mut text)));
    String::from_utf8_lossy(&text).trim().to_string()
}

/// Becomes the program, with the preload library in its environment.
fn execute(arguments: &RunArgs, joined: &Joined) -> Result<ExitCode, Error> {
    let Some((program, rest)) = arguments.command.split_first() else {
        return Ok(ExitCode::from(2));
    };
    let library = preload::library(&joined.directory)?;
    let preload = preload::preload_list(&library, std::env::var_os("LD_PRELOAD").as_deref());
    let mut command = Command::new(program);
    command
        .args(rest)
        .env("LD_PRELOAD", preload)
        .env(ATTACH_VARIABLE, joined.directory.join(ATTACH_SOCKET));
    if std::env::var_os(DOMAIN_VARIABLE).is_none() {
        // One trust domain for everything that the program starts.
        let token: [u8; 16] = place::random()?;
        let text: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
        command.env(DOMAIN_VARIABLE, OsString::from(text));
    }
    let error = command.exec();
    Err(Error::new(
        format_args!("run {}", program.to_string_lossy()),
        error,
        "check the name and the permissions of the program",
    ))
}
