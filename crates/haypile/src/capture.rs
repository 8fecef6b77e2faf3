//! `haypile capture`: starts and stops a capture inside a running service. Called by `main`.

use std::path::Path;
use std::process::ExitCode;

use haypile_service::control::Request;
use haypile_service::error::Error;

use crate::asking::ask;
use crate::cli::CaptureArgs;
use crate::{place, table};

/// Starts or stops a capture.
///
/// # Errors
/// When no service answers, or it refuses.
pub fn run(arguments: &CaptureArgs) -> Result<ExitCode, Error> {
    let directory = place::directory_of(&arguments.control)?;
    let (request, done) = match &arguments.write {
        Some(path) => {
            let path = absolute(path)?;
            let done = format!("capturing to {}; end it with --stop", path.display());
            (Request::CaptureStart { path, max_bytes: arguments.max_bytes }, done)
        }
        None => (Request::CaptureStop {}, "capture ended".to_string()),
    };
    let answer = ask(&directory, &request)?;
    if arguments.json {
        table::print(&answer);
    } else {
        table::say(&done);
    }
    Ok(ExitCode::SUCCESS)
}

/// The service has another working directory.
fn absolute(path: &Path) -> Result<std::path::PathBuf, Error> {
    std::path::absolute(path)
        .map_err(|error| Error::new(format_args!("find {}", path.display()), error, ""))
}
