//! Questions to a running service from the command line, which do not wait for one that cannot answer: what its
//! processes do says why it is silent. Called by the subcommands; what is asked is in `haypile_service::control`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use haypile_service::control::{self, Reason, Request};
use haypile_service::error::Error;
use serde_json::Value;

use crate::claim;

/// Time for a service to begin its answer: milliseconds, unless others want the cores more.
const ANSWER: Duration = Duration::from_secs(10);

/// Asks a running service.
///
/// # Errors
/// When no service answers at that directory, or it refuses. [`Error::is_silence`] when one has the directory and
/// does not answer: within 2 s when its supervisor or one of its servers is stopped, else after 10 s.
pub fn ask(directory: &Path, request: &Request) -> Result<Value, Error> {
    ask_within(directory, request, ANSWER)
}

/// As [`ask`], of what takes longer.
///
/// # Errors
/// As [`ask`], after `limit` when nothing is known to be in the way.
pub fn ask_within(directory: &Path, request: &Request, limit: Duration) -> Result<Value, Error> {
    // One that has just begun to start listens soon.
    match claim::wait_for_answer(directory, || control::connect(directory))? {
        Some(stream) => {
            control::ask_over(stream, directory, request, limit, &mut || stopped(directory))
        }
        None => Err(control::nobody(directory)),
    }
}

/// Which process of the service that holds a directory is stopped, and what to do about it.
pub fn stopped(directory: &Path) -> Option<Reason> {
    let supervisor = claim::holder(directory)?;
    if is_stopped(supervisor) {
        return Some(reason(supervisor, "its supervisor"));
    }
    let mut servers = children(supervisor).into_iter().filter(|child| is_server(*child));
    let server = servers.find(|server| is_stopped(*server))?;
    Some(reason(server, "one of its servers"))
}

/// As [`stopped`], of a process that is more than looked at by a debugger: after a second it still is.
pub fn stays_stopped(directory: &Path) -> Option<Reason> {
    stopped(directory)?;
    std::thread::sleep(Duration::from_secs(1));
    stopped(directory)
}

fn reason(process: u32, which: &str) -> Reason {
    let why = format!("process {process}, {which}, is stopped (by a signal or a debugger)");
    (why, format!("let it go on with kill -CONT {process}, or end it with kill -KILL {process}"))
}

/// Whether a process is stopped by a signal or a tracer (proc_pid_stat(5)).
pub fn is_stopped(process: u32) -> bool {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name before it may have blanks and parentheses.
    let state = text.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|state| state.starts_with(['T', 't']))
}

fn children(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let texts = threads.filter_map(|one| fs::read_to_string(one.path().join("children")).ok());
    let number = |word: &str| word.parse().ok();
    texts.flat_map(|text| text.split(' ').filter_map(number).collect::<Vec<u32>>()).collect()
}

/// Beside its servers a supervisor has a guardian.
fn is_server(process: u32) -> bool {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(b"server")
}
