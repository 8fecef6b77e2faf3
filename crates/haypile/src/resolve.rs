//! `haypile resolve`: a name looked up by a service's own resolver. Called by `main`.

use std::process::ExitCode;
use std::time::Duration;

use haypile_service::control::Request;
use haypile_service::error::Error;
use haypile_service::resolve::Resolved;

use crate::asking::ask_within;
use crate::cli::ResolveArgs;
use crate::{place, table};

/// Time for the name servers to be asked, each more than once.
const ANSWER: Duration = Duration::from_secs(30);

/// Prints addresses or names, one a line.
///
/// # Errors
/// When no service answers, or nothing was found.
pub fn run(arguments: &ResolveArgs) -> Result<ExitCode, Error> {
    let directory = place::directory_of(&arguments.control)?;
    let request = Request::Resolve { name: arguments.wanted.clone() };
    let answer = ask_within(&directory, &request, ANSWER)?;
    let resolved: Resolved = table::parse(answer)?;
    if arguments.json {
        table::print(&resolved);
        return Ok(if resolved.error.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    if let Some(why) = resolved.error {
        let remedy = "check the name, and the name servers with haypile status";
        return Err(Error::new(format_args!("resolve {}", arguments.wanted), why, remedy));
    }
    for line in resolved.addresses.iter().chain(&resolved.names) {
        table::say(line);
    }
    Ok(ExitCode::SUCCESS)
}
