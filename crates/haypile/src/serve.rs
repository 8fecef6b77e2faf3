//! `haypile serve`: the service in the foreground; with a hidden flag, the private service of one
//! `haypile run`, which tells its starter on stdout that it is ready. Called by `main`.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;

use haypile_service::config::{Config, Flags};
use haypile_service::error::Error;
use haypile_service::start::{self, Started};
use haypile_service::supervisor::End;
use haypile_shm::sys;
use serde::{Deserialize, Serialize};

use crate::claim::{self, OwnedDirectory};
use crate::cli::{ServeArgs, ServiceArgs};
use crate::guard::{self, Guardian};
use crate::{place, preload, table};

/// The line that a private service says to its starter.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Announcement {
    /// It runs.
    Ready {
        /// The link and its mode.
        link: String,
        /// The service's addresses.
        addresses: Vec<String>,
    },
    /// It cannot.
    Failed {
        /// What failed.
        what: String,
        /// Why.
        why: String,
        /// What to do.
        remedy: String,
        /// It was asked for what can never be.
        is_usage: bool,
    },
}

/// A service that is ready to run. What is dropped whole ends in this order, the guardian last.
struct Prepared {
    started: Started,
    directory: OwnedDirectory,
    guardian: Option<Guardian>,
}

/// Runs a service until it is told to end.
///
/// # Errors
/// When it cannot start, or its link goes.
pub fn run(arguments: &ServeArgs) -> Result<ExitCode, Error> {
    match arguments.private_for {
        Some(pid) => Ok(run_private(arguments, pid)),
        None => {
            let Prepared { started, directory, guardian } = prepare(arguments, None)?;
            for line in started.lines() {
                table::say(&line);
            }
            table::say("ready");
            drop(std::io::stdout().flush());
            let _: End = started.run();
            drop(directory);
            drop(guardian);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// As `run`, for one `haypile run`: away from its terminal, and silent after one line.
fn run_private(arguments: &ServeArgs, pid: i32) -> ExitCode {
    // Fails only for the leader of a group, which its starter did not make it.
    let _: Result<(), haypile_shm::Errno> = sys::setsid();
    let Prepared { started, directory, guardian } = match prepare(arguments, Some(pid)) {
        Ok(prepared) => prepared,
        Err(error) => {
            announce(&Announcement::Failed {
                what: error.what().to_string(),
                why: error.why().to_string(),
                remedy: error.remedy().to_string(),
                is_usage: error.is_usage(),
            });
            return ExitCode::FAILURE;
        }
    };
    announce(&Announcement::Ready { link: started.link(), addresses: started.addresses() });
    match started.run() {
        End::Clean => drop(directory),
        // Standard error is the log in the directory, which stays for once.
        End::Failing => directory.leave_log(),
    }
    drop(guardian);
    ExitCode::SUCCESS
}

fn announce(announcement: &Announcement) {
    table::print(announcement);
    // The starter may be gone already; the service finds that out by its pidfd.
    drop(std::io::stdout().flush());
}

/// Servers can be tied only to processors that this process may use.
fn check_cores(cores: &[u32]) -> Result<(), Error> {
    let allowed = sys::privilege::allowed_processors().unwrap_or_default();
    match cores.iter().find(|core| !allowed.contains(core)) {
        Some(core) if !allowed.is_empty() => {
            let names: Vec<String> = allowed.iter().map(u32::to_string).collect();
            Err(Error::usage(
                format_args!("core {core}"),
                format_args!("this process may use the cores {}", names.join(", ")),
                "choose from those, or leave --core out",
            ))
        }
        _ => Ok(()),
    }
}

fn prepare(arguments: &ServeArgs, private_for: Option<i32>) -> Result<Prepared, Error> {
    let config = load(arguments)?;
    check_cores(&config.confine.cores)?;
    let group = arguments.group.as_deref().map(place::find_group).transpose()?;
    let path = place::directory(Some(&config.control_dir))?;
    let guardian = guard::start(&path, &config.link);
    if let Some(guardian) = &guardian {
        guardian.claiming(&path);
    }
    let directory = claim::claim(&path, private_for.is_some())?;
    if let Some(group) = group {
        directory.keep_to(group)?;
    }
    if private_for.is_some() {
        complain_to_log(&path);
        guardian.iter().for_each(Guardian::leave_log_of_panic);
    }
    preload::install(&path)?;
    let config = Config { control_dir: path.clone(), ..config };
    let mut started = start::start(config, private_for)?;
    if let Some(group) = group {
        directory.share_commands(group)?;
    }
    if let Some(guardian) = &guardian {
        guardian.watch(&mut started, &path)?;
    }
    Ok(Prepared { started, directory, guardian })
}

fn load(arguments: &ServeArgs) -> Result<Config, Error> {
    let given = place::given(&arguments.control)?;
    let fallback = place::directory(given.as_deref());
    let flags = flags(&arguments.service, given);
    let file = arguments.service.config.as_deref();
    match (file, fallback) {
        // The file may name the directory.
        (Some(_), Err(_)) => Config::load(file, &flags, "".as_ref()),
        (_, Err(error)) => Err(error),
        (_, Ok(directory)) => Config::load(file, &flags, &directory),
    }
}

/// The starter has opened the log for us; the guardian of the service before may have removed that
/// one before we claimed the directory.
fn complain_to_log(directory: &Path) {
    if let Ok(log) = claim::open_log(directory) {
        // Fails only for descriptors that are not open.
        let _: Result<i32, haypile_shm::Errno> =
            sys::dup3(log.as_raw_fd(), std::io::stderr().as_raw_fd(), 0);
    }
}

/// The command line as the configuration wants it.
fn flags(arguments: &ServiceArgs, control_dir: Option<std::path::PathBuf>) -> Flags {
    let ServiceArgs {
        config: _,
        link,
        addresses,
        host_addresses,
        gateways,
        name_servers,
        mtu,
        offload,
        queues,
        host_cores,
        plan,
        steer,
        scheme,
        tariff,
        estimator,
        fault,
        fault_seed,
        user,
        cores,
        no_sandbox,
    } = arguments.clone();
    let wires = place::wires();
    Flags {
        link,
        addresses,
        host_addresses,
        gateways,
        name_servers,
        mtu,
        offload,
        queues,
        host_cores,
        wires,
        plan,
        steer,
        scheme,
        tariff,
        estimator,
        fault,
        fault_seed,
        control_dir,
        user,
        cores,
        no_sandbox,
    }
}
