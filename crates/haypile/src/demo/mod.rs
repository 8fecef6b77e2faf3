//! `haypile demo`: an unmodified server on Haypile, loaded and checked from the kernel's side, beside
//! the same server on the kernel's own stack. Everything happens in network namespaces made for it,
//! which end with it.
//! Called by `main.rs`. Read [`run`] first; [`stage`] builds the two sides, [`client`] makes the load.

pub mod client;
pub mod content;
pub mod report;
pub mod server;
pub mod stage;

use crate::cli::{DemoArgs, DemoServerArgs};
use crate::table;
use client::{Load, Mode};
use content::{ITEMS, SMALL};
use haypile_service::error::Error;
use report::{Figures, Report};
use stage::{Side, Stage};
use std::net::SocketAddr;
use std::process::{Command, ExitCode};

/// What the user may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests of one load.
    pub requests: usize,
    /// How often both sides are measured, in turn.
    pub rounds: usize,
    /// Clients at the same time.
    pub clients: usize,
    /// Print one JSON object instead of the table.
    pub json: bool,
}

/// `haypile demo`.
///
/// # Errors
/// When the stage cannot be built.
pub fn command(arguments: &DemoArgs) -> Result<ExitCode, Error> {
    let options = Options {
        requests: arguments.requests.max(1),
        rounds: arguments.rounds.max(1),
        clients: arguments.clients.clamp(1, 1000),
        json: arguments.json,
    };
    let right = run(&options).map_err(|why| Error::new("cannot run the demo", why, ""))?;
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The hidden `haypile demo-server`.
///
/// # Errors
/// When it cannot listen.
pub fn server_command(arguments: &DemoServerArgs) -> Result<ExitCode, Error> {
    server::serve(&arguments.addresses, &arguments.root)
        .map_err(|error| Error::new("cannot listen", error, "choose another address"))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the demo and prints its report.
///
/// # Errors
/// When the stage cannot be built. A wrong answer is no error here: the result is `false`.
pub fn run(options: &Options) -> Result<bool, String> {
    let kind = server::Kind::best();
    let say = |text: &str| {
        if !options.json {
            table::say(text);
        }
    };
    say(&format!("haypile demo: {} on Haypile, and the same on the kernel's stack", kind.name()));
    let stage = Stage::build(kind)?;
    let mut report = Report::new(kind, options);
    for side in stage.sides() {
        check_side(side, &mut report);
    }
    for line in &report.checks {
        say(&format!("  {line}"));
    }
    for round in 0..options.rounds {
        say(&format!("  measuring, round {} of {} ...", round + 1, options.rounds));
        for side in stage.sides() {
            measure_side(side, kind, options, &mut report);
        }
    }
    drop(stage);
    if options.json {
        report.print_json()
    } else {
        report.print_table()
    }
    Ok(report.all_right())
}

/// Every file over every address of the side, every byte compared.
fn check_side(side: &Side, report: &mut Report) {
    let by = if server::find_program("curl").is_some() { "curl" } else { "the built-in client" };
    for address in &side.addresses {
        for item in ITEMS {
            let result = if by == "curl" {
                fetch_with_curl(*address, item)
            } else {
                fetch_with_own(*address, item)
            };
            report.check(side.name, by, *address, item, result);
        }
    }
}

fn fetch_with_curl(address: SocketAddr, item: content::Item) -> Result<(), String> {
    let url = format!("http://{address}/{}", item.name);
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--globoff", "--noproxy", "*"])
        .args(["--max-time", "60", &url])
        .output()
        .map_err(|error| format!("cannot start curl: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_string());
    }
    match content::first_wrong(item, &output.stdout) {
        None => Ok(()),
        Some(position) => Err(format!("byte {position} of {} is wrong", item.bytes)),
    }
}

fn fetch_with_own(address: SocketAddr, item: content::Item) -> Result<(), String> {
    let load = Load { server: address, item, mode: Mode::Short, clients: 1, requests: 1 };
    match client::run(load).wrong.first() {
        None => Ok(()),
        Some(wrong) => Err(wrong.clone()),
    }
}

fn measure_side(side: &Side, kind: server::Kind, options: &Options, report: &mut Report) {
    let Some(address) = side.addresses.first().copied() else { return };
    let modes: &[Mode] =
        if kind.keeps_alive() { &[Mode::Short, Mode::KeepAlive] } else { &[Mode::Short] };
    for mode in modes {
        let load = Load {
            server: address,
            item: SMALL,
            mode: *mode,
            clients: options.clients,
            requests: options.requests,
        };
        let measured = client::run(load);
        report.figures(side.name, *mode, Figures::of(&measured), &measured.wrong);
    }
}
