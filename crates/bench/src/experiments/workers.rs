//! One slow worker of four, for real: Haypile under two schemes and the kernel with one listener and
//! with SO_REUSEPORT, in turn, open loop, 20 % load, workers that sleep. Part of `balance` (PIKA,
//! figures 5 and 7).

use serde_json::json;

use super::simulated::{LOAD, PERCENTILES, curve, percentiles};
use super::{draw, place, publish};
use crate::cores::Core;
use crate::frame::{self, Case, Rounds};
use crate::latency::Latencies;
use crate::load::{Pace, Spec, Work};
use crate::options::Options;
use crate::plot::{Plot, Scale};
use crate::report::{NamedCores, Report, Table, show};
use crate::schedule::Spread;
use crate::simulation::workload::Delays;
use crate::stage::Stage;
use crate::stage::fleets::{Fleets, Kind, Program};

const WORKERS: usize = 4;
/// Undisturbed service time; sleeps are longer than asked by some 60 us.
const BASE_US: u64 = 1000;
const BODY_BYTES: usize = 64;
const SESSIONS: usize = 512;
const SCHEDULE_SEED: u64 = 5;
/// Shorter windows say nothing of the tail.
const SECONDS_MIN: f64 = 5.0;
/// The window when it has to be quick.
const SECONDS_QUICK: f64 = 1.0;

/// Measures the undisturbed and the disturbed case on all sides.
///
/// # Errors
/// What does not work, in one line.
pub fn run(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    let cores = place(options, topology, options.placement)?;
    let wanted = Fleets {
        sides: sides(options),
        workers: WORKERS,
        program: Program::Sleepers(BASE_US),
        body_bytes: BODY_BYTES,
        congestion: options.congestion.clone(),
        cores: cores.clone(),
    };
    let mut stage = Stage::build_fleets(&wanted)?;
    let spec = spec(options);
    let repeat = if options.quick { 1 } else { options.repeat.max(1) };
    let rounds = Rounds { repeat, retries: if options.quick { 0 } else { options.retries } };
    let mut cases = Vec::new();
    let seconds = spec.duration_s;
    for (title, delays) in
        [("undisturbed", Delays::default()), ("one slow", Delays::one_slow(seconds))]
    {
        stage.set_delays(delays);
        cases.push(frame::measure(&mut stage, &format!("balance, {title}"), &spec, rounds)?);
    }
    publish(report, table(options, &cases, &spec));
    let mut plot = Plot::lines(
        "Service times with one slow worker of four (paper: figures 5 and 7)",
        &format!(
            "measured, {:.0} connections/s, 20 % load, the delay for half of the time",
            rate(options)
        ),
        ["percentile of connections", "service time at the client, us"],
        [Scale::Tail, Scale::Log],
    );
    for (name, latencies) in cases[1].sides.iter().zip(together(&cases[1])) {
        plot.add(name, curve(&latencies));
    }
    draw(options, report, "figure-5-real", &plot)?;
    report.cores.push(NamedCores { name: "balance".into(), cores });
    Ok(())
}

fn sides(options: &Options) -> Vec<(&'static str, Kind)> {
    let scheme = |name: &str| {
        let mut flags = vec!["--balance".to_string(), name.to_string()];
        flags.extend(
            options.plans.first().iter().flat_map(|plan| ["--plan".to_string(), plan.to_string()]),
        );
        Kind::Haypile(flags)
    };
    let mut sides =
        vec![("haypile, tournament 2", scheme("tournament")), ("haypile, naive", scheme("naive"))];
    if options.against_linux {
        sides.push(("linux, shared listener", Kind::LinuxShared));
        sides.push(("linux, SO_REUSEPORT", Kind::LinuxReusePort));
    }
    sides
}

/// Connections a second: what was asked for, or that at which undisturbed workers are busy for a fifth
/// of their time.
fn rate(options: &Options) -> f64 {
    options.rate.unwrap_or(LOAD * WORKERS as f64 / (BASE_US as f64 / 1e6))
}

fn spec(options: &Options) -> Spec {
    let seconds = if options.quick { SECONDS_QUICK } else { options.duration_s.max(SECONDS_MIN) };
    Spec {
        // Each side puts its own server here.
        target: std::net::SocketAddr::from(([0, 0, 0, 0], 0)),
        work: Work::Short,
        pace: Pace::Open { rate: rate(options), spread: Spread::Poisson, seed: SCHEDULE_SEED },
        connections: SESSIONS,
        warmup_s: options.warmup_s,
        duration_s: seconds,
        polling: false,
        body_bytes: BODY_BYTES,
    }
}

/// All rounds of each side.
fn together(case: &Case) -> Vec<Latencies> {
    let all = |runs: &Vec<frame::Run>| {
        let mut all = Latencies::new();
        runs.iter().for_each(|run| all.add(&run.outcome.histogram()));
        all
    };
    case.runs.iter().map(all).collect()
}

fn table(options: &Options, cases: &[Case], spec: &Spec) -> Table {
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for (case, which) in cases.iter().zip(["undisturbed", "one slow"]) {
        for ((name, latencies), runs) in case.sides.iter().zip(together(case)).zip(&case.runs) {
            let found = percentiles(&latencies);
            let failed: u64 = runs.iter().map(|run| run.outcome.failed).sum();
            let disturbed = runs.iter().filter(|run| run.disturbed.is_some()).count();
            let mut row = vec![format!("{name}, {which}")];
            row.extend(found.iter().map(|us| show(*us)));
            row.extend([latencies.count().to_string(), failed.to_string(), disturbed.to_string()]);
            rows.push(row);
            figures.push(json!({
                "side": name, "case": which, "percentiles": PERCENTILES, "us": found,
                "count": latencies.count(), "failed": failed, "disturbed_rounds": disturbed,
            }));
        }
    }
    let mut header = vec![String::new()];
    header.extend(PERCENTILES.iter().map(|share| format!("p{share}, us")));
    header.extend(["connections", "failed", "disturbed rounds"].map(str::to_string));
    Table {
        title: format!(
            "measured: {WORKERS} workers that sleep {BASE_US} us, {:.0} connections/s open loop, {} s; the \
             last worker twenty times slower for half of the time",
            rate(options),
            spec.duration_s
        ),
        header,
        rows,
        figures: json!(figures),
    }
}
