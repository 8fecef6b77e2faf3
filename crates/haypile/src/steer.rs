//! `haypile steer`: which transport server has how many buckets and TCP flows, and what has moved; moves buckets of
//! a running service. Called by `main`; the service makes the rows.

use std::process::ExitCode;
use std::time::Duration;

use haypile_service::control::Request;
use haypile_service::error::Error;
use haypile_service::moving::{MoveReport, MoveRow, Selection, SteerReport, SteerRow};

use crate::asking::{ask, ask_within};
use crate::cli::{SteerAction, SteerArgs, SteerMoveArgs};
use crate::{place, table};

/// Buckets that did not move and are named one by one.
const NAMED_MAX: usize = 10;
/// For the answer, when patience is over.
const ANSWER: Duration = Duration::from_secs(30);

/// Prints how things are, or moves what is asked for.
///
/// # Errors
/// When a number is wrong, or no service answers.
pub fn run(arguments: &SteerArgs) -> Result<ExitCode, Error> {
    if let Some(SteerAction::Move(arguments)) = &arguments.action {
        return move_buckets(arguments);
    }
    let directory = place::directory_of(&arguments.control)?;
    let report: SteerReport = table::parse(ask(&directory, &Request::Steer {})?)?;
    if arguments.json {
        table::print(&report)
    } else {
        show(&report)
    }
    Ok(ExitCode::SUCCESS)
}

fn show(report: &SteerReport) {
    let header = [
        "Server",
        "Buckets",
        "Connections",
        "TIME-WAIT",
        "Waiting",
        "Leaving",
        "Coming",
        "Unsettled",
        "Left",
        "Arrived",
        "Came back",
        "Refused",
        "Busy",
        "Longest us",
        "Most connections in",
    ];
    let rows: Vec<Vec<String>> = report.servers.iter().map(row).collect();
    table::show(&header, &rows, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
    for row in &report.servers {
        if let Some(why) = &row.last_refusal {
            table::say(&format!("server {} last refused a bucket: {why}", row.server));
        }
    }
}

fn row(row: &SteerRow) -> Vec<String> {
    let counters = &row.counters;
    let numbers = [
        u64::from(row.server),
        row.buckets as u64,
        row.connections as u64,
        row.time_wait as u64,
        row.wished as u64,
        row.leaving as u64,
        row.coming as u64,
        row.unsettled as u64,
        counters.taken,
        counters.arrived,
        counters.taken_back,
        counters.refused,
        counters.busy,
        counters.longest_us,
    ];
    let busiest = row.busiest.iter().filter(|row| row.connections > 0);
    let busiest = busiest.map(|row| format!("{} ({})", row.bucket, row.connections));
    let busiest: Vec<String> = busiest.collect();
    numbers.iter().map(u64::to_string).chain([busiest.join(" ")]).collect()
}

fn move_buckets(arguments: &SteerMoveArgs) -> Result<ExitCode, Error> {
    let (what, to) = selection(arguments)?;
    let directory = place::directory_of(&arguments.control)?;
    let patience_ms = arguments.patience_ms;
    let request = Request::SteerMove { what, to, patience_ms };
    let limit = Duration::from_millis(patience_ms).saturating_add(ANSWER);
    let report: MoveReport = table::parse(ask_within(&directory, &request, limit)?)?;
    if arguments.json {
        table::print(&report)
    } else {
        tell(what, &report.moves)
    }
    let all = !report.moves.is_empty() && report.moves.iter().all(|row| row.moved);
    let nothing_to_move = report.moves.is_empty() && matches!(what, Selection::AllOf(_));
    Ok(if all || nothing_to_move { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is to move, and where to.
fn selection(arguments: &SteerMoveArgs) -> Result<(Selection, u16), Error> {
    let wrong = |why: &str| {
        let remedy = "try haypile steer move BUCKET TO, see haypile help steer move";
        Err(Error::new("move flows", why, remedy))
    };
    let what = match (arguments.all_of, arguments.connection) {
        (Some(server), _) => Some(Selection::AllOf(server)),
        (_, Some((local, remote))) => Some(Selection::Connection { local, remote }),
        _ => None,
    };
    match (what, &arguments.numbers[..]) {
        (Some(what), [to]) => Ok((what, *to)),
        (None, [bucket, to]) => Ok((Selection::Bucket(*bucket), *to)),
        (Some(_), _) => wrong("beside --all-of or --connection there is one number: the server"),
        (None, _) => wrong("two numbers are wanted: the bucket, and the server that it goes to"),
    }
}

fn tell(what: Selection, rows: &[MoveRow]) {
    match (what, rows) {
        (Selection::AllOf(server), []) => table::say(&format!("server {server} has no bucket")),
        (_, []) => table::say("no server that runs has it now: look again with haypile steer"),
        (_, [row]) => table::say(&sentence(row)),
        (_, rows) => tell_all(rows),
    }
}

fn sentence(row: &MoveRow) -> String {
    let MoveRow { bucket, from, to, connections, time_wait, bytes, us, .. } = row;
    match &row.why {
        None => format!(
            "bucket {bucket} went from server {from} to server {to} in {us} us, with {} and {} ({bytes} bytes)",
            count(*connections, "connection"),
            count(*time_wait, "TIME-WAIT record"),
        ),
        Some(why) => format!("bucket {bucket} is not with server {to}: {why}"),
    }
}

fn tell_all(rows: &[MoveRow]) {
    let (moved, stayed): (Vec<&MoveRow>, Vec<&MoveRow>) = rows.iter().partition(|row| row.moved);
    let sum = |of: fn(&MoveRow) -> usize| moved.iter().map(|row| of(row)).sum::<usize>();
    let longest_us = moved.iter().map(|row| row.us).max().unwrap_or_default();
    table::say(&format!(
        "{} moved, with {} and {} ({} bytes); the longest took {longest_us} us",
        count(moved.len(), "bucket"),
        count(sum(|row| row.connections), "connection"),
        count(sum(|row| row.time_wait), "TIME-WAIT record"),
        sum(|row| row.bytes),
    ));
    for row in stayed.iter().take(NAMED_MAX) {
        table::say(&sentence(row));
    }
    if stayed.len() > NAMED_MAX {
        table::say(&format!("and {} more did not move", stayed.len() - NAMED_MAX));
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    use crate::cli::{Cli, Command};

    fn parsed(words: &[&str]) -> Option<SteerMoveArgs> {
        let line = ["haypile", "steer", "move"].iter().chain(words);
        match Cli::try_parse_from(line).ok()?.command {
            Command::Steer(SteerArgs { action: Some(SteerAction::Move(arguments)), .. }) => {
                Some(arguments)
            }
            _ => None,
        }
    }

    #[test]
    fn what_is_to_move_is_said_in_three_ways() {
        let said = |words: &[&str]| selection(&parsed(words)?).ok();
        assert_eq!(said(&["17", "1"]), Some((Selection::Bucket(17), 1)));
        assert_eq!(said(&["--all-of", "2", "0"]), Some((Selection::AllOf(2), 0)));
        let ends = "10.0.0.1:80-[::1]:9".split_once('-').unwrap();
        let (local, remote) = (ends.0.parse().unwrap(), ends.1.parse().unwrap());
        let connection = Some((Selection::Connection { local, remote }, 3));
        assert_eq!(said(&["--connection", "10.0.0.1:80-[::1]:9", "3"]), connection);
        for wrong in [
            &["17"][..],
            &["1", "2", "3"],
            &["--all-of", "1", "2", "3"],
            &["--all-of", "1", "--connection", "10.0.0.1:80-10.0.0.2:9", "2"],
            &["--connection", "10.0.0.1-10.0.0.2:9", "2"],
            &["-1", "2"],
            &[],
        ] {
            assert_eq!(said(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn sentences_say_what_moved_or_why_not() {
        let row = MoveRow {
            bucket: 17,
            from: 0,
            to: 1,
            moved: true,
            why: None,
            connections: 1,
            time_wait: 0,
            bytes: 900,
            us: 150,
        };
        let text = "bucket 17 went from server 0 to server 1 in 150 us, with 1 connection and \
                    0 TIME-WAIT records (900 bytes)";
        assert_eq!(sentence(&row), text);
        let stayed = MoveRow { moved: false, why: Some("it is there already".into()), ..row };
        assert_eq!(sentence(&stayed), "bucket 17 is not with server 1: it is there already");
    }
}
