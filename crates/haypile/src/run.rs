//! `haypile run`: joins a running service or starts a private one, then becomes the program.
//!
//! The program takes this process's place (exec), so its exit status, its signals and its terminal
//! are its own. Without the right to make interfaces this process first moves to a namespace of its
//! own (`own_namespace`), which the service and the program share. A private service is a process of
//! its own, in a session of its own; it watches this process and everyone who attaches, and removes
//! everything after the last of them. Called by `main`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use haypile_service::attach::ATTACH_SOCKET;
use haypile_service::config::{self, LinkChoice};
use haypile_service::control::Request;
use haypile_service::error::Error;
use haypile_shm::Errno;
use haypile_shm::control::{ATTACH_VARIABLE, DOMAIN_VARIABLE};
use haypile_shm::sys;

use crate::cli::{RunArgs, ServiceArgs};
use crate::serve::Announcement;
use crate::{asking, claim, own_namespace, place, preload, reach};

/// Without a word of a service that starts for so long somebody looks why.
const SILENCE: Duration = Duration::from_secs(1);

/// The service that the program will use.
struct Joined {
    directory: PathBuf,
    addresses: Vec<String>,
    /// What was taken, for the one line on stderr.
    note: String,
    /// This process has made a namespace for the service, and has all rights there.
    in_own_namespace: bool,
}

/// Becomes the program; comes back only when that fails.
///
/// # Errors
/// When there is no service and none can be started, or the program cannot be executed.
pub fn run(arguments: &RunArgs) -> Result<ExitCode, Error> {
    let joined = find_or_start(arguments)?;
    if !arguments.quiet {
        match joined.addresses.as_slice() {
            [] => eprintln!("haypile: {}, which tells its addresses to its owner", joined.note),
            list => eprintln!("haypile: {}; reach it at {}", joined.note, list.join(" or ")),
        }
    }
    if !arguments.quiet
        && let Some(program) = arguments.command.first()
        && let Some(obstacle) = reach::obstacle(program)
    {
        eprintln!("haypile: {obstacle}");
    }
    execute(arguments, &joined)
}

fn find_or_start(arguments: &RunArgs) -> Result<Joined, Error> {
    let given = place::given(&arguments.control)?;
    let particular = !arguments.service.is_default();
    match given {
        Some(path) => {
            let path = place::directory(Some(&path))?;
            // One that is starting just now answers soon.
            match claim::wait_for_answer(&path, || join(&path))? {
                Some(_) if particular => Err(Error::new(
                    format_args!("start a service in {}", path.display()),
                    "one runs there already, with settings of its own",
                    "leave the settings out to join it, or name another --control-dir",
                )),
                Some(joined) => Ok(joined),
                None => start_private(arguments, path),
            }
        }
        None if particular => start_private(arguments, place::private_directory()?),
        None => {
            // Ours before root's, which serves everybody whom it lets.
            for path in place::default_directory().ok().into_iter().chain(place::of_root()) {
                // One that is starting just now answers soon.
                match claim::wait_for_answer(&path, || join(&path)) {
                    Ok(Some(joined)) => return Ok(joined),
                    // A program that was meant for it would be on another network.
                    Err(error) if error.is_silence() => return Err(error),
                    Ok(None) | Err(_) => {}
                }
            }
            start_private(arguments, place::private_directory()?)
        }
    }
}

/// The service in a directory, if one answers.
///
/// # Errors
/// When one is there that does not let us in, or does not answer.
fn join(directory: &Path) -> Result<Option<Joined>, Error> {
    let note = format!("joined the service in {}", directory.display());
    let joined = |addresses| Joined {
        directory: directory.to_path_buf(),
        addresses,
        note: note.clone(),
        in_own_namespace: false,
    };
    let asked = asking::ask(directory, &Request::Version {});
    if let Err(error) = &asked
        && error.is_silence()
    {
        return Err(error.clone());
    }
    if let Ok(answer) = asked {
        // The program would be stopped with it.
        if let Some((why, remedy)) = asking::stays_stopped(directory) {
            let what = format_args!("join the service in {}", directory.display());
            return Err(Error::silence(what, why, remedy));
        }
        let Some(addresses) = answer["addresses"].as_array() else { return Ok(None) };
        let addresses = addresses.iter().filter_map(|address| address.as_str());
        let addresses = addresses.map(|text| text.split('/').next().unwrap_or(text).to_string());
        return Ok(Some(joined(addresses.collect())));
    }
    // Another user's does not tell us what only its owner may know, but may let us attach.
    let socket = directory.join(ATTACH_SOCKET);
    match sys::unix_connect_seqpacket(socket.as_os_str().as_bytes()) {
        Ok(_) if !place::owns(directory) => Ok(Some(joined(Vec::new()))),
        Err(errno) if errno == Errno::EACCES => Err(Error::new(
            format_args!("join the service in {}", directory.display()),
            "its owner does not let this user in",
            "ask the owner for haypile serve --group, or name another --control-dir",
        )),
        _ => Ok(None),
    }
}

/// Starts a service that lives as long as this process, which becomes the program, or anyone else
/// who uses it.
fn start_private(arguments: &RunArgs, directory: PathBuf) -> Result<Joined, Error> {
    let mut service = arguments.service.clone();
    let named = named_link(&service)?;
    let settled = own_namespace::settle(named.as_ref())?;
    if let Some(link) = settled.link {
        service.link = Some(link.to_string());
    }
    if settled.in_own_namespace {
        own_namespace::hand_rights_on()?;
    }
    let log = claim::prepare(&directory)?;
    let error_output = log.try_clone().map_err(|error| fail(error.to_string()))?;
    let mut child = spawn_service(&service, &directory, error_output)?;
    let failed = match wait_for_announcement(&mut child).map(|line| serde_json::from_str(&line)) {
        Err(why) => Error::new("start a private service", why, "run it again"),
        Ok(Err(_)) => fail(format!("it ended at once, saying: {}", said(log))),
        Ok(Ok(announcement)) => match announcement {
            Announcement::Ready { link, addresses } => {
                let mut note = format!("private service, {link}");
                if !settled.note.is_empty() {
                    note = format!("private service {}; {link}", settled.note);
                }
                let in_own_namespace = settled.in_own_namespace;
                return Ok(Joined { directory, addresses, note, in_own_namespace });
            }
            Announcement::Failed { what, why, remedy, is_usage } => match is_usage {
                true => Error::usage(what, why, remedy),
                false => Error::new(what, why, remedy),
            },
        },
    };
    drop(child.wait());
    claim::remove_leavings(&directory, false, false);
    Err(failed)
}

/// Waits for the line that a service says when it runs, or that it cannot; an early end of it is an empty line.
///
/// # Errors
/// Why there will be none: the service is stopped. It is ended then.
fn wait_for_announcement(child: &mut Child) -> Result<String, String> {
    let Some(output) = child.stdout.take() else { return Ok(String::new()) };
    let (tells, hears) = mpsc::channel();
    let listener = thread::spawn(move || {
        let mut line = String::new();
        drop(BufReader::new(output).read_line(&mut line));
        drop(tells.send(line));
    });
    loop {
        match hears.recv_timeout(SILENCE) {
            Err(RecvTimeoutError::Timeout) if asking::is_stopped(child.id()) => {
                // Its guardian removes what it has made.
                drop(child.kill());
                let service = child.id();
                return Err(format!(
                    "process {service} was stopped while it started, and is ended"
                ));
            }
            Err(RecvTimeoutError::Timeout) => {}
            heard => {
                // One thread alone becomes the program.
                drop(listener.join());
                return Ok(heard.unwrap_or_default());
            }
        }
    }
}

fn fail(why: String) -> Error {
    Error::new("start a private service", why, "try haypile serve to see more")
}

/// The link that the user has named, on the command line or in a file.
fn named_link(service: &ServiceArgs) -> Result<Option<LinkChoice>, Error> {
    if let Some(link) = &service.link {
        return config::parse_link(link, place::wires().as_deref()).map(Some);
    }
    match &service.config {
        Some(file) => config::link_in_file(file, place::wires().as_deref()),
        None => Ok(None),
    }
}

fn spawn_service(
    service: &ServiceArgs,
    directory: &Path,
    error_output: File,
) -> Result<Child, Error> {
    let program = std::env::current_exe().map_err(|error| fail(error.to_string()))?;
    Command::new(program)
        .arg("serve")
        .args(service.words())
        .arg("--control-dir")
        .arg(directory)
        .args(["--private-for", &std::process::id().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(error_output)
        .env_remove("LD_PRELOAD")
        .spawn()
        .map_err(|error| fail(error.to_string()))
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
    if joined.in_own_namespace {
        own_namespace::give_rights_up()?;
    }
    let error = command.exec();
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    let what = format!("run {}", program.to_string_lossy());
    let told = Error::new(what, error, "check the name and the permissions of the program");
    eprintln!("haypile: {told}");
    // As shells and env(1) have it.
    Ok(ExitCode::from(if missing { 127 } else { 126 }))
}
