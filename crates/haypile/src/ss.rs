//! `haypile ss`: the sockets of a service. Called by `main`.

use std::process::ExitCode;

use haypile_service::control::Request;
use haypile_service::error::Error;
use haypile_service::report::{SocketRow, Sockets};

use crate::asking::ask;
use crate::cli::SsArgs;
use crate::{place, table};

/// Prints the sockets.
///
/// # Errors
/// When no service answers.
pub fn run(arguments: &SsArgs) -> Result<ExitCode, Error> {
    let directory = place::directory_of(&arguments.control)?;
    let SsArgs { listening, all, tcp, udp, .. } = *arguments;
    let request = Request::Ss { listening, all, tcp, udp };
    let answer = ask(&directory, &request)?;
    let sockets: Sockets = table::parse(answer)?;
    if arguments.json {
        table::print(&sockets);
    } else {
        let rows: Vec<Vec<String>> = sockets.sockets.iter().map(cells).collect();
        table::show(
            &["Proto", "State", "Recv-Q", "Send-Q", "Local", "Peer", "Process"],
            &rows,
            &[2, 3],
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn cells(row: &SocketRow) -> Vec<String> {
    let process = match (&row.program, row.pid) {
        (Some(program), Some(pid)) => format!("{program} ({pid})"),
        (None, Some(pid)) => pid.to_string(),
        _ => "-".to_string(),
    };
    vec![
        row.protocol.clone(),
        row.state.clone(),
        row.recv_queue.to_string(),
        row.send_queue.to_string(),
        row.local.clone(),
        row.remote.clone().unwrap_or_else(|| "*".to_string()),
        process,
    ]
}
