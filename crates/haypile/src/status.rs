//! `haypile status`: servers, load, drops, memory, processes. Called by `main`.

use std::process::ExitCode;

use haypile_service::control::Request;
use haypile_service::error::Error;
use haypile_service::report::{CountRow, Network, Status};

use crate::asking::ask;
use crate::cli::StatusArgs;
use crate::{place, table};

/// Prints how a service is doing.
///
/// # Errors
/// When no service answers.
pub fn run(arguments: &StatusArgs) -> Result<ExitCode, Error> {
    let directory = place::directory_of(&arguments.control)?;
    let answer = ask(&directory, &Request::Status {})?;
    let status: Status = table::parse(answer)?;
    if arguments.json {
        table::print(&status);
    } else {
        show(&status);
    }
    Ok(ExitCode::SUCCESS)
}

fn show(status: &Status) {
    table::say(&format!(
        "haypile {}, process {}, up {} s, plan {}",
        status.version, status.pid, status.uptime_s, status.plan
    ));
    table::say(&format!("link {}", status.link));
    table::say(&format!("addresses {}", status.addresses.join(", ")));
    show_network(&status.network);
    table::say(&format!("host end {}", status.host_addresses.join(", ")));
    let memory = &status.memory;
    table::say(&format!(
        "memory {} KiB of streams, {} KiB unclaimed; {} sockets in {} domains",
        memory.stream_bytes / 1024,
        memory.unclaimed_bytes.div_ceil(1024),
        memory.sockets,
        memory.domains
    ));
    table::say("");
    show_servers(status);
    show_processes(status);
    show_counts("Dropped", &status.drops);
    show_counts("Counted", &status.counters);
}

/// What was learned or waits for something; what is merely configured stands above.
fn show_network(network: &Network) {
    for row in network.addresses.iter().filter(|row| row.origin != "configured") {
        let until = row.valid_s.map_or(String::new(), |s| format!(", {s} s left"));
        table::say(&format!("address {}: {} ({}{until})", row.address, row.state, row.origin));
    }
    if let Some(lease) = &network.lease {
        table::say(&format!(
            "lease {} from {}, renewed in {} s, ends in {} s",
            lease.address, lease.server, lease.renew_s, lease.expires_s
        ));
    }
    if !network.gateways.is_empty() {
        table::say(&format!("gateways {}", network.gateways.join(", ")));
    }
    if !network.name_servers.is_empty() {
        table::say(&format!("nameservers {}", network.name_servers.join(", ")));
    }
}

fn show_servers(status: &Status) {
    let rows: Vec<Vec<String>> = status
        .servers
        .iter()
        .map(|row| {
            vec![
                row.server.to_string(),
                format!("{:.1}", row.busy_percent),
                row.turns.to_string(),
                row.sleeps.to_string(),
                row.rx_frames.to_string(),
                row.tx_frames.to_string(),
                row.connections.to_string(),
                row.components.join(", "),
            ]
        })
        .collect();
    let header =
        ["Server", "Busy %", "Turns", "Sleeps", "Received", "Sent", "Connections", "Components"];
    table::show(&header, &rows, &[0, 1, 2, 3, 4, 5, 6]);
    let rows: Vec<Vec<String>> = status
        .servers
        .iter()
        .map(|row| {
            vec![
                row.server.to_string(),
                row.pid.to_string(),
                row.core.map_or("any".into(), |core| core.to_string()),
                row.user.to_string(),
                row.restarts.to_string(),
                row.sandbox.clone(),
            ]
        })
        .collect();
    table::say("");
    let header = ["Server", "Process", "Processor", "User", "Restarts", "Sandbox"];
    table::show(&header, &rows, &[0, 1, 2, 3, 4]);
}

fn show_processes(status: &Status) {
    if status.processes.is_empty() {
        return;
    }
    let rows: Vec<Vec<String>> = status
        .processes
        .iter()
        .map(|row| {
            let numbers = [row.pid.to_string(), row.sockets.to_string(), row.offers.to_string()];
            numbers.into_iter().chain([row.program.clone()]).collect()
        })
        .collect();
    table::say("");
    table::show(&["Process", "Sockets", "Offers", "Program"], &rows, &[0, 1, 2]);
}

fn show_counts(title: &str, counts: &[CountRow]) {
    if counts.is_empty() {
        return;
    }
    let rows: Vec<Vec<String>> = counts
        .iter()
        .map(|row| vec![row.count.to_string(), row.name.clone(), row.text.clone()])
        .collect();
    table::say("");
    table::show(&[title, "Name", "Meaning"], &rows, &[0]);
}
