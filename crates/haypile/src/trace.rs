//! `haypile trace`: what happened to a service's connections. Called by `main`; the service makes
//! the rows (its `trace.rs`), filters and words are here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use haypile_service::control::Request;
use haypile_service::error::Error;
use haypile_service::trace::{TracePart, TraceRow};

use crate::asking::ask;
use crate::cli::TraceArgs;
use crate::{place, table};

/// Time between two looks when nothing is new.
const PAUSE: Duration = Duration::from_millis(100);
/// The kinds of `event=`.
const KINDS: [&str; 7] = ["received", "sent", "again", "timer", "ended", "dropped", "state"];

/// One condition.
#[derive(Debug, PartialEq, Eq)]
enum Filter {
    Port(u16),
    Host(IpAddr),
    Event(String),
    Connection(String),
}

/// Prints the events that fit.
///
/// # Errors
/// When a filter is none, no service answers, or its trace is off.
pub fn run(arguments: &TraceArgs) -> Result<ExitCode, Error> {
    let directory = place::directory_of(&arguments.control)?;
    let filters: Vec<Filter> =
        arguments.filters.iter().map(|text| parse(text)).collect::<Result<_, _>>()?;
    let mut states = HashMap::new();
    // Each transport server has a trace of its own; how many there are the first one tells.
    let mut since = vec![0];
    loop {
        let mut more = false;
        for server in 0.. {
            let Some(next) = since.get(usize::from(server)).copied() else { break };
            let mut part = ask_for(&directory, server, next)?;
            for row in &mut part.events {
                name_server(row, server, part.servers);
                let before = state_before(&mut states, row);
                let fits = filters.iter().all(|filter| filter.fits(row, before.is_some()));
                // A closed pipe is the reader's choice, and the end.
                if fits && !show(row, before.as_deref(), arguments.json) {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            since[usize::from(server)] = part.next;
            since.resize(since.len().max(part.servers.into()), 0);
            more |= part.more;
        }
        if !more {
            if !arguments.follow {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn ask_for(directory: &Path, server: u16, since: u64) -> Result<TracePart, Error> {
    let part: TracePart = table::parse(ask(directory, &Request::Trace { server, since })?)?;
    if part.lost > 0 {
        eprintln!("haypile: {} events were overwritten before they were read", part.lost);
    }
    Ok(part)
}

/// Servers name their connections without knowing of each other.
fn name_server(row: &mut TraceRow, server: u16, servers: u16) {
    if let Some(connection) = row.connection.as_mut().filter(|_| servers > 1) {
        *connection = format!("{server}/{connection}");
    }
}

/// The state before the event, if the event changed it.
fn state_before(states: &mut HashMap<String, String>, row: &TraceRow) -> Option<String> {
    let connection = row.connection.as_ref()?;
    let before = states.insert(connection.clone(), row.state.clone());
    before.filter(|before| *before != row.state)
}

fn parse(text: &str) -> Result<Filter, Error> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let filter = match key {
        "port" => value.parse().ok().map(Filter::Port),
        "host" => value.parse().ok().map(Filter::Host),
        "event" => KINDS.contains(&value).then(|| Filter::Event(value.to_string())),
        "connection" => (!value.is_empty()).then(|| Filter::Connection(value.to_string())),
        _ => None,
    };
    filter.ok_or_else(|| {
        Error::new(
            format_args!("filter \"{text}\""),
            "not a filter",
            format_args!(
                "use port=N, host=ADDRESS, connection=NAME or event= one of {}",
                KINDS.join(", ")
            ),
        )
    })
}

impl Filter {
    fn fits(&self, row: &TraceRow, changed_state: bool) -> bool {
        let ends = || [&row.local, &row.remote].into_iter().filter_map(|end| end.parse().ok());
        match self {
            Filter::Port(port) => ends().any(|end: SocketAddr| end.port() == *port),
            Filter::Host(host) => ends().any(|end: SocketAddr| end.ip() == *host),
            Filter::Event(kind) if kind == "state" => changed_state,
            Filter::Event(kind) => row.event == *kind,
            Filter::Connection(name) => row.connection.as_ref() == Some(name),
        }
    }
}

/// Prints an event; false when nobody reads any more.
fn show(row: &TraceRow, before: Option<&str>, as_json: bool) -> bool {
    let line = match as_json {
        true => serde_json::to_string(row).unwrap_or_default(),
        false => line(row, before),
    };
    table::write(format!("{line}\n").as_bytes())
}

fn line(row: &TraceRow, before: Option<&str>) -> String {
    let (seconds, micros) = (row.at_us / 1_000_000, row.at_us % 1_000_000);
    let mut line = format!(
        "{seconds}.{micros:06} {} {} {} {}",
        row.connection.as_deref().unwrap_or("-"),
        row.local,
        row.remote,
        row.event
    );
    if let Some(reason) = &row.reason {
        line += &format!(" ({reason})");
    }
    if !row.flags.is_empty() {
        let TraceRow { flags, seq, ack, len, window, .. } = row;
        line += &format!(" [{flags}] seq {seq} ack {ack} len {len} win {window}");
    }
    match before {
        Some(before) => line += &format!(" {before} -> {}", row.state),
        None => line += &format!(" {}", row.state),
    }
    if row.cwnd > 0 {
        let TraceRow { cwnd, srtt_us, rto_us, retransmits, .. } = row;
        let ssthresh = row.ssthresh.map_or("-".to_string(), |bytes| bytes.to_string());
        line += &format!(" cwnd {cwnd} ssthresh {ssthresh} rtt {srtt_us} us rto {rto_us} us");
        if *retransmits > 0 {
            line += &format!(" again {retransmits}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_nonsense_is_refused() {
        assert_eq!(parse("port=80").expect("good"), Filter::Port(80));
        assert_eq!(parse("host=::1").expect("good"), Filter::Host("::1".parse().expect("address")));
        assert_eq!(parse("event=again").expect("good"), Filter::Event("again".into()));
        for bad in ["", "port", "port=x", "port=65536", "host=a", "event=", "event=x", "what=1"] {
            assert!(parse(bad).expect_err(bad).to_string().contains("use port=N"));
        }
    }
}
