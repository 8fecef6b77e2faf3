//! Schemes under uniform load, for real: two servers and two workers that are always busy, the schemes
//! in turn (PIKA, figure 8), with what offers between managers cost (Table 3). Part of `schemes`.

use serde_json::json;

use super::plans::{spec, spread};
use super::publish;
use super::workers::offers_share;
use crate::cores::Core;
use crate::frame::{self, Case, Rounds};
use crate::load::Work;
use crate::options::{Options, ServerKind};
use crate::report::{NamedCores, Report, Table, show};
use crate::simulation::shape::Shape;
use crate::stage::fleets::{Fleets, Kind, Program};
use crate::stage::{Stage, find_program};
use crate::statistics;

const PLAN: &str = "TS2LS2CM2";
/// What all others are compared with comes first.
const SCHEMES: [&str; 3] = ["naive", "tournament", "unfiltered"];
const BODY_BYTES: usize = 4;
/// Enough to keep everybody busy.
const CONNECTIONS: usize = 64;

/// Measures the schemes in turn, under one plan after the other.
///
/// # Errors
/// What does not work, in one line.
pub fn run(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    let mut plans: Vec<&str> = options.plans.iter().map(String::as_str).collect();
    if plans.is_empty() {
        plans = vec![PLAN];
    }
    for plan in plans {
        measure(options, topology, &Shape::parse(plan)?, report)?;
    }
    Ok(())
}

fn measure(
    options: &Options,
    topology: &[Core],
    plan: &Shape,
    report: &mut Report,
) -> Result<(), String> {
    let workers = plan.transports.len();
    let nginx = options.server != Some(ServerKind::Builtin) && find_program("nginx").is_some();
    let flags = |scheme: &str| {
        ["--plan", &plan.to_string(), "--balance", scheme].map(str::to_string).to_vec()
    };
    let cores = spread(topology, plan.stations, workers);
    let wanted = Fleets {
        sides: SCHEMES.map(|scheme| (scheme, Kind::Haypile(flags(scheme)))).to_vec(),
        workers,
        program: if nginx { Program::Nginx } else { Program::Sleepers(0) },
        body_bytes: BODY_BYTES,
        congestion: options.congestion.clone(),
        cores: cores.clone(),
    };
    let mut stage = Stage::build_fleets(&wanted)?;
    let connections = options.connections.first().copied().unwrap_or(CONNECTIONS);
    let spec = spec(options, Work::Short, connections);
    let rounds = match options.quick {
        true => Rounds { repeat: 1, retries: 0 },
        false => Rounds { repeat: options.repeat.max(1), retries: options.retries },
    };
    let case = frame::measure(&mut stage, &format!("schemes, {plan}"), &spec, rounds)?;
    publish(report, table(plan, connections, &case));
    report.cores.push(NamedCores { name: format!("schemes, {plan}"), cores });
    Ok(())
}

fn table(plan: &Shape, connections: usize, case: &Case) -> Table {
    let rates = |side: usize| -> Vec<f64> {
        case.runs[side].iter().map(|run| run.outcome.rate()).collect()
    };
    let base = rates(0);
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for (side, name) in case.sides.iter().enumerate() {
        let runs = &case.runs[side];
        let own = rates(side);
        let rate = statistics::summary(&own);
        let ratio = statistics::paired_ratio(&own, &base);
        let (t_cm, t_msg) = (mean(runs, |one| one.t_cm_us()), mean(runs, |one| one.t_msg_us()));
        let (t_busy, offers) = (mean(runs, |one| one.t_busy_us()), offers_share(runs));
        let failed: u64 = runs.iter().map(|run| run.outcome.failed).sum();
        let disturbed = runs.iter().filter(|run| run.disturbed.is_some()).count();
        let range = |of: statistics::Summary| {
            format!("{} ({} .. {})", show(of.median), show(of.min), show(of.max))
        };
        rows.push(vec![
            name.to_string(),
            rate.map_or("-".into(), range),
            ratio.map_or("-".into(), |of| {
                format!("{:.3} ({:.3} .. {:.3})", of.median, of.low, of.high)
            }),
            offers.map_or("-".into(), |share| format!("{:.4} %", share * 100.0)),
            show(t_cm),
            show(t_busy),
            show(t_msg),
            failed.to_string(),
            disturbed.to_string(),
        ]);
        figures.push(json!({
            "scheme": name, "rates": own, "ratio": ratio, "offers_share": offers, "t_cm_us": t_cm,
            "t_busy_us": t_busy, "t_msg_us": t_msg, "failed": failed, "disturbed_rounds": disturbed,
        }));
    }
    let header = [
        "",
        "connections/s (least .. most)",
        "of naive (interval)",
        "time for offers",
        "T_CM, us",
        "T_busy, us",
        "T_msg, us",
        "failed",
        "disturbed rounds",
    ];
    Table {
        title: format!(
            "measured: uniform load, {plan}, short connections, {connections} at a time (paper: figure 8; \
             table 3: 0.03 % of the time for offers with 2 managers)"
        ),
        header: header.map(str::to_string).to_vec(),
        rows,
        figures: json!(figures),
    }
}

/// The mean over rounds.
fn mean(runs: &[frame::Run], value: impl Fn(&crate::server_times::ServerTimes) -> f64) -> f64 {
    let found: Vec<f64> = runs.iter().filter_map(|run| run.servers.as_ref()).map(value).collect();
    found.iter().sum::<f64>() / found.len().max(1) as f64
}
