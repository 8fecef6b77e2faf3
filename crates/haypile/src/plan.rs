//! `haypile plan`: which server of a plan gets which processor, which queues and which components, and
//! why; and whether the plan runs here. `haypile plan set` changes that of a running service.
//! Called by `main`; read `haypile_service::plan`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use haypile_service::control::{PlanState, Request};
use haypile_service::error::Error;
use haypile_service::plan::{Component, Plan, ServerSpec};
use haypile_service::sandbox;
use haypile_shm::sys::privilege;
use serde::Serialize;
use serde_json::json;

use crate::asking::ask;
use crate::cli::{PlanArgs, PlanChange, PlanSetArgs};
use crate::{place, table};

/// Time for a change of the plan.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time after which it is said what is waited for, again and again.
const PROGRESS: Duration = Duration::from_secs(2);
/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// One server of a plan.
#[derive(Debug, Serialize)]
struct Row {
    server: u16,
    /// The processor, if it is known before the start.
    processor: Option<u32>,
    transport: Option<u16>,
    link: Option<u16>,
    manager: Option<u16>,
    /// The queue of the link that it owns.
    queue: Option<u16>,
    /// The link server that sends for it.
    sends_over: Option<u16>,
    /// The connection manager that it tells of its connections.
    tells: Option<u16>,
}

/// Prints the servers of a plan. Exit status 1 if it does not run here.
///
/// # Errors
/// When the text is no plan.
pub fn run(arguments: &PlanArgs) -> Result<ExitCode, Error> {
    if let Some(PlanChange::Set(change)) = &arguments.change {
        return set(change);
    }
    let plan: Plan = arguments.plan.parse()?;
    let runnable = plan.check_runnable();
    let runnable = runnable.and_then(|()| plan.check_link(arguments.link.starts_with("tap")));
    let rows: Vec<Row> =
        plan.servers().iter().map(|spec| row(&plan, spec, &arguments.cores)).collect();
    let reasons = reasons(&plan, rows.len(), &arguments.cores);
    if arguments.json {
        table::print(&json!({
            "plan": plan.to_string(),
            "servers": rows,
            "reasons": reasons,
            "runs": runnable.is_ok(),
        }));
    } else {
        show(&rows);
        reasons.iter().for_each(|reason| table::say(reason));
    }
    match runnable {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("haypile: {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Changes the plan of a running service, and returns when it is changed.
fn set(arguments: &PlanSetArgs) -> Result<ExitCode, Error> {
    let directory = place::directory_of(&arguments.control)?;
    let plan: Plan = arguments.plan.parse()?;
    let answer = ask(&directory, &Request::PlanSet { plan: plan.to_string() })?;
    let mut state: PlanState = table::parse(answer)?;
    let (asked, mut told) = (Instant::now(), Instant::now());
    while let Some(awaits) = state.awaits {
        if asked.elapsed() >= PATIENCE {
            let what = format_args!("change the plan to {plan}");
            let remedy = "look at what the service says; it goes on trying";
            return Err(Error::new(what, format_args!("still waiting for {awaits}"), remedy));
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprintln!("haypile: waiting for {awaits}");
        }
        std::thread::sleep(INTERVAL);
        state = table::parse(ask(&directory, &Request::PlanState {})?)?;
    }
    match arguments.json {
        true => table::print(&state),
        false => {
            let servers = if state.servers == 1 { "server runs" } else { "servers run" };
            table::say(&format!("plan {}: {} {servers}", state.plan, state.servers));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(plan: &Plan, spec: &ServerSpec, cores: &[u32]) -> Row {
    Row {
        server: spec.number,
        processor: cores.get(usize::from(spec.number) % cores.len().max(1)).copied(),
        transport: spec.transport,
        link: spec.link,
        manager: spec.manager,
        queue: spec.link,
        sends_over: spec.transport.map(|transport| plan.link_of(transport)),
        tells: spec.transport.map(|transport| plan.manager_of(transport)),
    }
}

fn show(rows: &[Row]) {
    let number = |number: Option<u16>| number.map_or("-".to_string(), |number| number.to_string());
    let cells = |row: &Row| {
        vec![
            row.server.to_string(),
            row.processor.map_or("chosen".to_string(), |core| core.to_string()),
            number(row.transport),
            number(row.link),
            number(row.manager),
            number(row.queue),
            number(row.sends_over),
            number(row.tells),
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let header = ["Server", "Processor", "TS", "LS", "CM", "Queue", "Sends over LS", "Tells CM"];
    table::show(&header, &rows, &[0, 1, 2, 3, 4, 5, 6, 7]);
    table::say("");
}

/// Why it is so.
fn reasons(plan: &Plan, servers: usize, cores: &[u32]) -> Vec<String> {
    let allowed = privilege::allowed_processors().unwrap_or_default().len();
    let mut reasons = vec![match cores {
        [] if allowed < sandbox::FEW_CORES => format!(
            "Processors: any, since this machine gives {allowed} and the scheduler knows better."
        ),
        [] => {
            format!("Processors: one after the other of the {allowed} here, from a random one on.")
        }
        _ => "Processors: those given, dealt out in turn.".to_string(),
    }];
    let own = match cores {
        [] => allowed,
        cores => cores.len(),
    };
    if own > 0 && servers > own {
        reasons.push(format!(
            "{servers} servers share {own} processors: more than one wait for each."
        ));
    }
    let links = plan.count(Component::Link);
    reasons.push(match links {
        1 => "Queues: one link server has them all.".to_string(),
        links => format!(
            "Queues: one for each of {links} link servers; flows are spread by the servers' own rule, \
             so that most frames come to the server that owns them."
        ),
    });
    reasons.push(
        "A transport server sends over the link server, and tells the connection manager, in its own \
         process; those without one there are dealt out in turn."
            .to_string(),
    );
    reasons
}
