//! Plans of servers measured for real, each beside another side, short connections and kept ones:
//! what `accept` and `configs` share.

use std::collections::BTreeMap;

use crate::cores::{Core, Cores, order};
use crate::frame::{self, Case, Rounds};
use crate::load::{Pace, Spec, Work};
use crate::options::{Options, ServerKind};
use crate::simulation::shape::Shape;
use crate::stage::Stage;
use crate::stage::find_program;
use crate::stage::fleets::{Fleets, Kind, Program};
use crate::statistics;

/// Bytes of the paper's page.
const BODY_BYTES: usize = 4;
/// Clients of the paper.
const CONNECTIONS: usize = 192;

/// What a plan reached, and what the side beside it did, in the same rounds.
pub(super) struct Found {
    /// By name of the work: medians of our side and the other.
    pub rates: BTreeMap<&'static str, [Option<f64>; 2]>,
    /// Median latency with a single client, microseconds, of both.
    pub alone_us: [Option<f64>; 2],
    /// Rounds that others disturbed.
    pub disturbed: usize,
}

/// Plans with so many servers as the machine has cores for: one for the client, one for each server
/// and one for each of its workers; one at least.
pub(super) fn servers_max(topology: &[Core]) -> usize {
    (topology.len().saturating_sub(1) / 2).max(1)
}

/// Places parts so that each server and worker has a core, as far as there are any beside the client's.
pub(super) fn spread(topology: &[Core], servers: usize, workers: usize) -> Cores {
    let order = order(topology);
    let others = if order.len() > 1 { &order[1..] } else { &order[..] };
    let core = |index: usize| match index {
        0 => order[0],
        index => others[(index - 1) % others.len()],
    };
    let mut service: Vec<usize> = (1..=servers).map(core).collect();
    let mut program: Vec<usize> = (servers + 1..=servers + workers).map(core).collect();
    for cores in [&mut service, &mut program] {
        cores.sort_unstable();
        cores.dedup();
    }
    Cores {
        client: vec![core(0)],
        client_service: vec![core(0)],
        program,
        service,
        bench: vec![core(0)],
    }
}

/// Measures one plan beside another side.
///
/// # Errors
/// What does not work, in one line; also when the plan does not run here.
pub(super) fn measure(
    options: &Options,
    topology: &[Core],
    plan: &Shape,
    beside: Kind,
) -> Result<Found, String> {
    let workers = plan.transports.len();
    let nginx = options.server != Some(ServerKind::Builtin) && find_program("nginx").is_some();
    let flags = vec!["--plan".to_string(), plan.to_string()];
    let mut sides = vec![("plan", Kind::Haypile(flags))];
    if options.against_linux || beside != Kind::LinuxShared {
        sides.push(("beside", beside));
    }
    let wanted = Fleets {
        sides,
        workers,
        program: if nginx { Program::Nginx } else { Program::Sleepers(0) },
        body_bytes: BODY_BYTES,
        congestion: options.congestion.clone(),
        cores: spread(topology, plan.stations, workers),
    };
    let mut stage = Stage::build_fleets(&wanted)?;
    let rounds = match options.quick {
        true => Rounds { repeat: 1, retries: 0 },
        false => Rounds { repeat: options.repeat.max(1), retries: options.retries },
    };
    let mut found = Found { rates: BTreeMap::new(), alone_us: [None; 2], disturbed: 0 };
    let works = [
        ("short", Work::Short, CONNECTIONS),
        ("kept", Work::KeepAlive, CONNECTIONS),
        ("alone", Work::Short, 1),
    ];
    for (name, work, connections) in works {
        // Our own workers answer one request a connection.
        if name == "kept" && !nginx {
            continue;
        }
        let spec = spec(options, work, connections);
        let case = frame::measure(&mut stage, &format!("{plan}, {name}"), &spec, rounds)?;
        found.disturbed += case.runs.iter().flatten().filter(|run| run.disturbed.is_some()).count();
        match name {
            "alone" => {
                found.alone_us = both(&case, |run| run.outcome.histogram().mean_ns() / 1000.0)
            }
            name => {
                found.rates.insert(name, both(&case, |run| run.outcome.rate()));
            }
        }
    }
    Ok(found)
}

fn both(case: &Case, value: impl Fn(&frame::Run) -> f64) -> [Option<f64>; 2] {
    let median = |side: usize| {
        let runs = case.runs.get(side)?;
        statistics::median(&runs.iter().map(&value).collect::<Vec<_>>())
    };
    [median(0), median(1)]
}

pub(super) fn spec(options: &Options, work: Work, connections: usize) -> Spec {
    Spec {
        // Each side puts its own server here.
        target: std::net::SocketAddr::from(([0, 0, 0, 0], 0)),
        work,
        pace: Pace::Closed,
        connections,
        warmup_s: if options.quick { 0.1 } else { options.warmup_s },
        duration_s: if options.quick { 0.3 } else { options.duration_s },
        polling: false,
        body_bytes: BODY_BYTES,
    }
}
