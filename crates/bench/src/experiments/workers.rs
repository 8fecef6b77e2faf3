//! One slow worker of four, for real: Haypile under two schemes and the kernel with one listener and
//! with SO_REUSEPORT, in turn, open loop, 20 % load, workers that sleep. Part of `balance` (PIKA,
//! figures 5 and 7).

use serde_json::json;

use super::simulated::{LOAD, PERCENTILES, curve, percentiles};
use super::{draw, place, publish};
use crate::cores::{Core, Cores, Placement, order};
use crate::frame::{self, Case, Rounds};
use crate::latency::Latencies;
use crate::load::{Pace, Spec, Work};
use crate::options::Options;
use crate::plot::{Plot, Scale};
use crate::report::{NamedCores, Report, Table, show};
use crate::schedule::Spread;
use crate::server_times::ServerTimes;
use crate::simulation::workload::Delays;
use crate::stage::Stage;
use crate::stage::fleets::{Fleets, Kind, Program};
use crate::statistics;

pub(super) const WORKERS: usize = 4;
/// Undisturbed service time; sleeps are longer than asked by some 60 us.
pub(super) const BASE_US: u64 = 1000;
const BODY_BYTES: usize = 64;
const SESSIONS: usize = 512;
const SCHEDULE_SEED: u64 = 5;
/// Shorter windows say nothing of the tail.
const SECONDS_MIN: f64 = 5.0;
/// The window when it has to be quick.
const SECONDS_QUICK: f64 = 1.0;

/// The plans without a choice: two workers for each manager, and one as in the paper.
pub(super) const PLANS: [&str; 2] = ["TS2LS2CM2", "TS4LS4CM4"];
/// The percentiles that delays must not move.
pub(super) const HELD: [f64; 2] = [95.0, 99.0];

/// Measures the undisturbed and the disturbed case on all sides, in turn.
///
/// # Errors
/// What does not work, in one line.
pub fn run(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    let cores = cores(options, topology)?;
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
    let cases =
        [("undisturbed", Delays::default()), ("one slow", Delays::one_slow(spec.duration_s))];
    let mut measured: Vec<Case> = Vec::new();
    for (title, _) in &cases {
        measured.push(Case::new(&mut stage, &format!("balance, {title}"), &spec));
    }
    for round in 0..repeat {
        for (case, (_, delays)) in measured.iter_mut().zip(&cases) {
            stage.set_delays(delays.clone());
            case.measure_round(&mut stage, round, rounds)?;
        }
    }
    publish(report, table(options, &measured, &spec));
    publish(report, ratios(&measured));
    let mut plot = Plot::lines(
        "Service times with one slow worker of four (paper: figures 5 and 7)",
        &format!(
            "measured, {:.0} connections/s, 20 % load, the delay for half of the time",
            rate(options)
        ),
        ["percentile of connections", "service time at the client, us"],
        [Scale::Tail, Scale::Log],
    );
    for (name, latencies) in measured[1].sides.iter().zip(together(&measured[1])) {
        plot.add(name, curve(&latencies));
    }
    draw(options, report, "figure-5-real", &plot)?;
    report.cores.push(NamedCores { name: "balance".into(), cores });
    Ok(())
}

/// Unless it was chosen otherwise, the client has a core of its own and everybody else all the others,
/// the same ones on all sides.
fn cores(options: &Options, topology: &[Core]) -> Result<Cores, String> {
    let mut cores = place(options, topology, options.placement)?;
    let order = order(topology);
    if options.cores.is_none() && options.placement == Placement::Shared && order.len() > 2 {
        cores.client = vec![order[0]];
        cores.client_service = vec![order[0]];
        cores.program = order[1..].to_vec();
        cores.service = order[1..].to_vec();
    }
    Ok(cores)
}

fn sides(options: &Options) -> Vec<(&'static str, Kind)> {
    let side = |scheme: &str, plan: &str| {
        let flags = ["--balance", scheme, "--plan", plan].map(str::to_string).to_vec();
        let tariff = if scheme == "tournament" { " 2" } else { "" };
        // Kept until the program ends: a few words of the command line.
        let name: &'static str = format!("{scheme}{tariff}, {plan}").leak();
        (name, Kind::Haypile(flags))
    };
    let mut plans: Vec<&str> = options.plans.iter().map(String::as_str).collect();
    if plans.is_empty() {
        plans = PLANS.to_vec();
    }
    let mut sides: Vec<_> = plans.iter().map(|plan| side("tournament", plan)).collect();
    // With a worker for each manager `naive` has no choice at all.
    sides.extend(plans.last().map(|plan| side("naive", plan)));
    if options.against_linux {
        sides.push(("linux, shared listener", Kind::LinuxShared));
        sides.push(("linux, SO_REUSEPORT", Kind::LinuxReusePort));
    }
    sides
}

/// Connections a second: what was asked for, or that at which undisturbed workers are busy for a fifth
/// of their time.
pub(super) fn rate(options: &Options) -> f64 {
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

/// A percentile of one run, microseconds.
fn percentile(run: &frame::Run, percent: f64) -> f64 {
    run.outcome.histogram().quantile_ns(percent / 100.0) as f64 / 1000.0
}

/// Of a table of what one slow worker does to the tail.
pub(super) fn header() -> Vec<String> {
    let parts = ["undisturbed, us", "one slow, us", "ratio"];
    let of = |percent| parts.map(|part| format!("p{percent} {part}"));
    [String::new()].into_iter().chain(HELD.into_iter().flat_map(of)).collect()
}

/// What one slow worker does to the tail, round by round.
fn ratios(cases: &[Case]) -> Table {
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    let cell = |values: &[f64]| match statistics::summary(values) {
        Some(of) => format!("{} ({} .. {})", show(of.median), show(of.min), show(of.max)),
        None => "-".into(),
    };
    for (side, name) in cases[0].sides.iter().enumerate() {
        let mut row = vec![name.to_string()];
        let mut figure = json!({ "side": name });
        for percent in HELD {
            let of = |case: &Case| -> Vec<f64> {
                case.runs[side].iter().map(|run| percentile(run, percent)).collect()
            };
            let (calm, slow) = (of(&cases[0]), of(&cases[1]));
            let ratios: Vec<f64> = slow.iter().zip(&calm).map(|(slow, calm)| slow / calm).collect();
            row.extend([cell(&calm), cell(&slow), cell(&ratios)]);
            figure[format!("p{percent}")] =
                json!({ "undisturbed_us": calm, "one_slow_us": slow, "ratio": ratios });
        }
        rows.push(row);
        figures.push(figure);
    }
    Table {
        title: "measured: what one slow worker does to the tail, median (least .. most) of rounds"
            .into(),
        header: header(),
        rows,
        figures: json!(figures),
    }
}

/// Part of the time of all servers that offers between managers took, over all rounds.
pub(super) fn offers_share(runs: &[frame::Run]) -> Option<f64> {
    let times: Vec<ServerTimes> = runs.iter().filter_map(|run| run.servers).collect();
    let sum = |value: fn(&ServerTimes) -> f64| times.iter().map(value).sum::<f64>();
    (!times.is_empty()).then(|| sum(|one| one.offers_us) / sum(|one| one.uptime_us).max(1.0))
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
            let offers = offers_share(runs);
            row.extend([latencies.count().to_string(), failed.to_string(), disturbed.to_string()]);
            row.push(offers.map_or("-".into(), |share| format!("{:.4} %", share * 100.0)));
            rows.push(row);
            figures.push(json!({
                "side": name, "case": which, "percentiles": PERCENTILES, "us": found,
                "count": latencies.count(), "failed": failed, "disturbed_rounds": disturbed,
                "offers_share": offers,
            }));
        }
    }
    let mut header = vec![String::new()];
    header.extend(PERCENTILES.iter().map(|share| format!("p{share}, us")));
    header.extend(
        ["connections", "failed", "disturbed rounds", "time for offers"].map(str::to_string),
    );
    Table {
        title: format!(
            "measured: {WORKERS} workers that sleep {BASE_US} us, {:.0} connections/s open loop, {} s; the \
             last worker forty times slower for half of the time",
            rate(options),
            spec.duration_s
        ),
        header,
        rows,
        figures: json!(figures),
    }
}
