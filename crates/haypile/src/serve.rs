//! `haypile serve`: the service in the foreground; with a hidden flag, the private service of one
//! `haypile run`, which tells its starter on stdout that it is ready. Called by `main`.

use std::io::Write;
use std::process::ExitCode;

use haypile_service::config::{Config, Flags};
use haypile_service::error::Error;
use haypile_service::start::{self, Started};
use serde::{Deserialize, Serialize};

use crate::cli::{ServeArgs, ServiceArgs};
use crate::place::{self, OwnedDirectory};
use crate::{preload, table};

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
    },
}

/// Runs a service until it is told to end.
///
/// # Errors
/// When it cannot start, or its link goes.
pub fn run(arguments: &ServeArgs) -> Result<ExitCode, Error> {
    match arguments.private_for {
        Some(pid) => Ok(run_private(arguments, pid)),
        None => {
            let (started, _directory) = prepare(arguments, None)?;
            for line in started.lines() {
                table::say(line);
            }
            table::say("ready");
            drop(std::io::stdout().flush());
            started.run()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// As `run`, for one `haypile run`: away from its terminal, and silent after one line.
fn run_private(arguments: &ServeArgs, pid: i32) -> ExitCode {
    // Fails only for the leader of a group, which its starter did not make it.
    let _: Result<(), haypile_shm::Errno> = haypile_shm::sys::setsid();
    let (started, directory) = match prepare(arguments, Some(pid)) {
        Ok(prepared) => prepared,
        Err(error) => {
            announce(&Announcement::Failed {
                what: error.what().to_string(),
                why: error.why().to_string(),
                remedy: error.remedy().to_string(),
            });
            return ExitCode::FAILURE;
        }
    };
    announce(&Announcement::Ready { link: started.link(), addresses: started.addresses() });
    let outcome = started.run();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the log in the directory, which stays for once.
            drop(writeln!(std::io::stderr(), "haypile: {error}"));
            std::mem::forget(directory);
            ExitCode::FAILURE
        }
    }
}

fn announce(announcement: &Announcement) {
    table::print(announcement);
    // The starter may be gone already; the service finds that out by its pidfd.
    drop(std::io::stdout().flush());
}

fn prepare(
    arguments: &ServeArgs,
    private_for: Option<i32>,
) -> Result<(Started, OwnedDirectory), Error> {
    let fallback = place::directory(arguments.control.control_dir.as_deref());
    let flags = flags(&arguments.service, arguments.control.control_dir.clone());
    let config = match (&arguments.service.config, fallback) {
        // The file may name the directory.
        (Some(_), Err(_)) => {
            Config::load(arguments.service.config.as_deref(), &flags, "".as_ref())?
        }
        (_, Err(error)) => return Err(error),
        (file, Ok(directory)) => Config::load(file.as_deref(), &flags, &directory)?,
    };
    let path = place::directory(Some(&config.control_dir))?;
    let directory = place::claim(&path, private_for.is_some())?;
    preload::install(&path)?;
    let started = start::start(Config { control_dir: path, ..config }, private_for)?;
    Ok((started, directory))
}

/// The command line as the configuration wants it.
fn flags(arguments: &ServiceArgs, control_dir: Option<std::path::PathBuf>) -> Flags {
    let ServiceArgs { config: _, link, addresses, host_addresses, gateways, mtu, plan } =
        arguments.clone();
    Flags { link, addresses, host_addresses, gateways, mtu, plan, control_dir }
}
