//! The table: its rows, docs/cost.json and its rendering in docs/cost.md.

use serde_json::Value;
use std::fmt::Write as _;
use std::fs;

use crate::steps::root;

/// What counts depend on beside the code.
pub const TOOLS: [&str; 3] = ["compiler", "valgrind", "memory functions"];
/// Rows of what is not the service.
pub const OTHERS: [&str; 2] = ["peer", "application"];

/// One row: a function of the hop table in ARCHITECTURE.md, with everything it calls.
pub struct Row {
    /// Its name in the table.
    pub name: &'static str,
    /// What it is part of: how far its name is set in.
    depth: usize,
    /// Whether a function is the row's.
    pub is_it: fn(&str) -> bool,
    /// The part of the turn that the clock measures, if it is one.
    timed: Option<&'static str>,
}

const fn row(
    name: &'static str,
    depth: usize,
    timed: Option<&'static str>,
    is_it: fn(&str) -> bool,
) -> Row {
    Row { name, depth, is_it, timed }
}

/// The rows in the order of a turn.
pub const ROWS: &[Row] = &[
    row("whole turn", 0, Some("turn"), |f| f.ends_with("haypile_cost::busy_turn")),
    row("R2 LinkServer::receive", 1, Some("receive"), |f| f.ends_with("LinkServer<P>::receive")),
    row("R1 rx_burst", 2, None, |f| f.ends_with("Port>::rx_burst")),
    row("R3 handle_frame", 2, None, |f| f.ends_with("::handle_frame")),
    row("R4 handle_tcp", 3, None, |f| f.ends_with("::handle_tcp")),
    row("R5 handle_segment", 4, None, |f| f.ends_with("connection::Connection>::handle_segment")),
    row("R6 Streams::write", 5, None, |f| f.ends_with("Streams>::write")),
    row("R6 Streams::write_datagram", 3, None, |f| f.ends_with("Streams>::write_datagram")),
    row("T3 requests", 1, Some("requests"), |f| f.ends_with("::handle_requests_of")),
    row("T3 kick_tx", 2, None, |f| f.ends_with("::kick_tx")),
    row("R7 events", 1, Some("events"), |f| f.ends_with("::handle_events")),
    row("R7 announce", 2, None, |f| f.ends_with("::announce_to")),
    row("CM run_manager", 1, Some("manager"), |f| f.ends_with("::run_manager")),
    row("send_datagrams", 1, Some("datagrams"), |f| f.ends_with("::send_datagrams")),
    row("T6 LinkServer::transmit", 1, Some("transmit"), |f| f.ends_with("LinkServer<P>::transmit")),
    row("T4 poll_transmit", 2, None, |f| f.ends_with("::poll_transmit")),
    row("T5 poll_superframe", 3, None, |f| f.ends_with("::poll_superframe")),
    row("T7 tx_burst", 2, None, |f| f.ends_with("Port>::tx_burst")),
    row("copying and clearing", 1, None, |f| {
        f.starts_with("__memcpy") || f.starts_with("__memmove") || f.starts_with("__memset")
    }),
    row("checksums", 1, None, |f| f.ends_with("headers::transport_checksum")),
];

/// The scenarios in the order of the table, and what one operation is.
pub const SCENARIOS: &[(&str, &str)] = &[
    (
        "short-connection",
        "Connect, request of 100 bytes, answer of 512, close by the server; 16 at a time",
    ),
    (
        "short-connection-of-64",
        "The same at one of 64 connection managers, whose applications are all as fast",
    ),
    ("keep-alive", "Request of 100 bytes and answer of 512, on 16 connections at a time"),
    ("keep-alive-alone", "The same, one at a time: nothing is shared in a turn"),
    ("received-small", "Segment of 64 bytes received, on 16 connections at a time"),
    ("received-full", "Segment of 1448 bytes received, 16 at a time of one stream"),
    (
        "received-superframe",
        "Packet of 65160 bytes received, 4 at a time of one stream; no checksum",
    ),
    ("sent-small", "Segment of 64 bytes sent, on 16 connections at a time"),
    ("sent-full", "Segment of 1448 bytes sent, 16 at a time of one stream"),
    ("sent-superframe", "Packet of 65160 bytes sent, of one stream; no checksum"),
    ("datagram-received", "UDP datagram of 64 bytes received, 16 at a time"),
    ("datagram-sent", "UDP datagram of 64 bytes sent, 16 at a time"),
    ("empty-turn", "A turn that finds nothing to do (part of no other scenario)"),
];

const START: &str = "<!-- table: written by cargo xtask cost --write -->";
const END: &str = "<!-- end of the table -->";

/// The checked-in table.
///
/// # Errors
/// When it is not there or no table.
pub fn load() -> Result<Value, String> {
    let path = root().join("docs/cost.json");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes both files.
///
/// # Errors
/// When a file cannot be written, or docs/cost.md has no place for the table.
pub fn store(table: &Value) -> Result<(), String> {
    let mut text = serde_json::to_string_pretty(table).map_err(|error| error.to_string())?;
    text.push('\n');
    fs::write(root().join("docs/cost.json"), text).map_err(|error| error.to_string())?;
    let path = root().join("docs/cost.md");
    let page = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (Some((before, _)), Some((_, after))) = (page.split_once(START), page.split_once(END))
    else {
        return Err("docs/cost.md has lost the marks between which the table stands".into());
    };
    let page = format!("{before}{START}\n\n{}\n{END}{after}", render(table));
    fs::write(path, page).map_err(|error| error.to_string())
}

fn render(table: &Value) -> String {
    let mut out = String::new();
    for tool in TOOLS {
        let _ = writeln!(out, "* {tool}: {}", table[tool].as_str().unwrap_or("?"));
    }
    for (name, meaning) in SCENARIOS {
        let scenario = &table["scenarios"][*name];
        let _ = writeln!(
            out,
            "\n### {name}\n\n{meaning}. Frames in and out: {} and {}.\n",
            scenario["frames"][0], scenario["frames"][1]
        );
        out.push_str("| stage | instructions | ns |\n|---|---:|---:|\n");
        for row in ROWS {
            let count = scenario["instructions"][row.name].as_f64().unwrap_or(0.0);
            let ns = row.timed.and_then(|part| scenario["ns"][part].as_f64());
            if count > 0.0 {
                let ns = ns.map(|ns| format!("{ns:.0}")).unwrap_or_default();
                let _ = writeln!(
                    out,
                    "| {}{} | {count:.0} | {ns} |",
                    "&emsp;".repeat(row.depth),
                    row.name
                );
            }
        }
        for other in OTHERS {
            let count = scenario["instructions"][other].as_f64().unwrap_or(0.0);
            if count > 0.0 {
                let _ = writeln!(out, "| *beside it: the {other}* | {count:.0} | |");
            }
        }
    }
    out
}
