//! The experiments with a client and a server: http, latency, goodput, echo. Called by `run`.

use super::{place, say};
use crate::cores::{Core, Placement};
use crate::frame::{self, Rounds};
use crate::load::{Pace, Spec, Work};
use crate::options::{Experiment, Options, ServerKind};
use crate::report::{CaseReport, NamedCores, Report};
use crate::schedule::Spread;
use crate::stage::{Stage, Wanted, find_program};

const BODY_BYTES: usize = 128;
const MESSAGE_BYTES: usize = 64;
const SCHEDULE_SEED: u64 = 1;
/// Quiet before each request of the first-after-idle case, microseconds.
const QUIET_US: u64 = 100_000;
/// That case counts at least this long, because each request takes a tenth of a second.
const QUIET_SECONDS_MIN: f64 = 3.0;

/// One case before it is measured.
struct Planned {
    title: String,
    spec: Spec,
}

/// Measures all cases.
///
/// # Errors
/// What does not work, in one line.
pub fn run(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    let server = server(options)?;
    for placement in placements(options) {
        let cores = place(options, topology, placement)?;
        let wanted = Wanted {
            link: options.link,
            client: options.client,
            wires: options.wires.clone(),
            linux: options.against_linux,
            server,
            body_bytes: body_bytes(options),
            congestion: options.congestion.clone(),
            cores: cores.clone(),
        };
        let name = placement_name(placement);
        eprintln!("building the sides, {name} ...");
        let mut stage = Stage::build(&wanted)?;
        for Planned { title, spec } in cases(options, server) {
            let title = format!("{title}, {name}");
            let rounds = Rounds { repeat: options.repeat.max(1), retries: options.retries };
            let case = frame::measure(&mut stage, &title, &spec, rounds)?;
            let case = CaseReport::new(&case, &cores.measured());
            say(&format!("\n{}", case.table()));
            report.cases.push(case);
        }
        report.cores.push(NamedCores { name: name.to_string(), cores });
    }
    add_notes(options, server, report);
    Ok(())
}

fn placement_name(placement: Placement) -> &'static str {
    match placement {
        Placement::Shared => "two cores",
        Placement::Own => "a core each",
        Placement::One => "one core",
    }
}

fn placements(options: &Options) -> Vec<Placement> {
    match options.experiment {
        Experiment::Latency if options.placement != Placement::One => {
            vec![options.placement, Placement::One]
        }
        _ => vec![options.placement],
    }
}

/// The server: nginx speaks HTTP only.
fn server(options: &Options) -> Result<ServerKind, String> {
    let installed = find_program("nginx").is_some();
    let http = options.experiment == Experiment::Http;
    match options.server {
        Some(ServerKind::Nginx) if !installed => {
            Err("nginx is not installed; use --server builtin".into())
        }
        Some(ServerKind::Nginx)
            if matches!(options.experiment, Experiment::Goodput | Experiment::Echo) =>
        {
            Err("nginx neither echoes nor swallows bytes; use --server builtin".into())
        }
        Some(server) => Ok(server),
        None if http && installed => Ok(ServerKind::Nginx),
        None => Ok(ServerKind::Builtin),
    }
}

fn body_bytes(options: &Options) -> usize {
    options.size.unwrap_or(BODY_BYTES)
}

fn cases(options: &Options, server: ServerKind) -> Vec<Planned> {
    let message = Work::Echo(options.size.unwrap_or(MESSAGE_BYTES));
    let one_request = if server == ServerKind::Nginx { Work::KeepAlive } else { message.clone() };
    let works = match options.experiment {
        Experiment::Http => vec![Work::Short, Work::KeepAlive],
        Experiment::Latency => vec![one_request],
        Experiment::Goodput => vec![Work::Download, Work::Upload],
        _ => vec![message],
    };
    let default: &[usize] = match options.experiment {
        Experiment::Latency => &[1],
        Experiment::Goodput => &[1, 4],
        _ => &[64],
    };
    let counts = if options.connections.is_empty() { default } else { &options.connections };
    let mut planned = Vec::new();
    for work in &works {
        for connections in counts {
            planned.push(plan(options, work, *connections));
        }
        if options.experiment == Experiment::Latency {
            planned.push(after_quiet(options, work));
        }
    }
    planned
}

fn plan(options: &Options, work: &Work, connections: usize) -> Planned {
    let bulk = matches!(work, Work::Upload | Work::Download);
    let open = options.rate.filter(|_| !bulk);
    let pace = open.map_or(Pace::Closed, |rate| Pace::Open {
        rate,
        spread: Spread::Poisson,
        seed: SCHEDULE_SEED,
    });
    let what = match work {
        Work::Short => "short HTTP connections".to_string(),
        Work::KeepAlive => "HTTP requests over kept connections".to_string(),
        Work::Echo(bytes) => format!("messages of {bytes} B that come back"),
        Work::Upload => "bulk, client to server".to_string(),
        Work::Download => "bulk, server to client".to_string(),
    };
    let how = match open {
        Some(rate) => format!("open loop at {rate:.0}/s over at most {connections} connections"),
        None if connections == 1 => "1 at a time".to_string(),
        None => format!("{connections} connections"),
    };
    Planned { title: format!("{what}, {how}"), spec: spec(options, work, pace, connections) }
}

fn after_quiet(options: &Options, work: &Work) -> Planned {
    let mut spec = spec(options, work, Pace::AfterQuiet(QUIET_US), 1);
    spec.duration_s = spec.duration_s.max(QUIET_SECONDS_MIN);
    Planned { title: format!("first request after {} ms of quiet", QUIET_US / 1000), spec }
}

fn spec(options: &Options, work: &Work, pace: Pace, connections: usize) -> Spec {
    Spec {
        // Each side puts its own server here.
        target: std::net::SocketAddr::from(([0, 0, 0, 0], 0)),
        work: work.clone(),
        pace,
        connections: connections.max(1),
        warmup_s: options.warmup_s,
        duration_s: options.duration_s,
        polling: false,
        body_bytes: body_bytes(options),
    }
}

fn add_notes(options: &Options, server: ServerKind, report: &mut Report) {
    let server = match server {
        ServerKind::Nginx => "nginx, a worker for each of its cores",
        ServerKind::Builtin => "the built-in responder, a thread for each of its cores",
    };
    report.notes.push(format!("server: {server}; client: the built-in load generator, one thread"));
    let used = report.cases.iter().flat_map(|case| &case.sides).flat_map(|side| &side.runs);
    let mut seen: Vec<String> = used.filter_map(|run| run.congestion.clone()).collect();
    seen.sort_unstable();
    seen.dedup();
    let wanted = &options.congestion;
    report.notes.push(format!(
        "congestion control: Haypile cubic; kernel {wanted}, set by route; the clients' sockets said {}",
        if seen.is_empty() { "nothing".to_string() } else { seen.join(", ") }
    ));
    if wanted != "cubic" {
        report.notes.push(format!("the sides differ: Haypile uses cubic, the kernel {wanted}"));
    }
    if report.cases.iter().any(|case| case.unit == "Gb/s") {
        report.notes.push("bulk counts the payload at the client; CPU is for each 64 KiB".into());
    }
}
