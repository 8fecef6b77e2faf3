//! What the simulated experiments share: the paper's eight servers and eight web servers, who takes
//! part, tables of percentiles, and their plot. Called by `schemes`, `balance`, `accept` and
//! `configs`.

use serde_json::{Value, json};

use super::{draw, publish};
use crate::latency::Latencies;
use crate::options::Options;
use crate::plot::{Plot, Scale};
use crate::report::{Report, Table, show};
use crate::schedule::Spread;
use crate::simulation::control::Parameters;
use crate::simulation::costs::Costs;
use crate::simulation::linux::{self, Kernel};
use crate::simulation::outcome::Outcome;
use crate::simulation::shape::Shape;
use crate::simulation::workload::{Delays, FIGURE_SECONDS, Load, Service};
use crate::simulation::world::{Setup, World};

/// Servers and web servers of the paper's balancing experiments.
pub(super) const SERVERS: usize = 8;
/// Connections a second of all of them.
pub(super) const RATE: f64 = 30_000.0;
/// Share of the workers' time that undisturbed connections take.
pub(super) const LOAD: f64 = 0.2;
const WARMUP_S: f64 = 0.3;
const SEED: u64 = 20_131_020;
/// Percentiles that tables show.
pub(super) const PERCENTILES: [f64; 5] = [50.0, 80.0, 95.0, 99.0, 99.9];

/// Somebody's result.
pub(super) struct Contestant {
    pub name: String,
    pub outcome: Outcome,
}

/// Seconds of the paper's figures; a fifth of them when it has to be quick.
pub(super) fn seconds(options: &Options) -> f64 {
    if options.quick { FIGURE_SECONDS / 5.0 } else { FIGURE_SECONDS }
}

/// The costs that were asked for.
///
/// # Errors
/// When their file is of no use.
pub(super) fn costs(options: &Options) -> Result<Costs, String> {
    Costs::read(options.costs.as_deref())
}

/// Eight servers with eight workers, 30,000 connections a second.
pub(super) fn eight(options: &Options, costs: &Costs, parameters: Parameters) -> Setup {
    let seconds = seconds(options);
    let delays = Delays::figure_6a().over(seconds);
    Setup {
        shape: Shape::combined(SERVERS),
        workers: SERVERS,
        parameters,
        load: Load::Open { rate: RATE, spread: Spread::Poisson },
        service: Service::at_load(LOAD, SERVERS, RATE, delays),
        costs: costs.clone(),
        warmup_s: WARMUP_S,
        seconds,
        seed: options.seed.unwrap_or(SEED),
    }
}

/// So many servers with a worker each, all equally busy as in the paper's eight: uniform load.
pub(super) fn equal(
    options: &Options,
    costs: &Costs,
    servers: usize,
    parameters: Parameters,
) -> Setup {
    let rate = RATE / SERVERS as f64 * servers as f64;
    Setup {
        shape: Shape::combined(servers),
        workers: servers,
        parameters,
        load: Load::Open { rate, spread: Spread::Poisson },
        service: Service::at_load(LOAD, servers, rate, Delays::default()),
        costs: costs.clone(),
        warmup_s: WARMUP_S,
        seconds: if options.quick { 0.3 } else { 2.0 },
        seed: options.seed.unwrap_or(SEED),
    }
}

/// Clients that ask again and again, so that the servers are the bottleneck.
pub(super) fn saturated(
    options: &Options,
    costs: &Costs,
    shape: Shape,
    parameters: Parameters,
) -> Setup {
    const CLIENTS_EACH: usize = 24;
    const SERVICE_NS: u64 = 500;
    let workers = shape.transports.len();
    Setup {
        shape,
        workers,
        parameters,
        load: Load::Closed { clients: CLIENTS_EACH * workers },
        service: Service { base_ns: SERVICE_NS, jitter: 0.1, delays: Delays::default() },
        costs: costs.clone(),
        warmup_s: 0.02,
        seconds: if options.quick { 0.03 } else { 0.2 },
        seed: options.seed.unwrap_or(SEED),
    }
}

/// The same arrivals and delays on the models of the kernel.
pub(super) fn kernels(setup: &Setup) -> Vec<Contestant> {
    let run = |kernel: Kernel| Contestant {
        name: kernel.name().to_string(),
        outcome: linux::run(linux::Setup {
            kernel,
            workers: setup.workers,
            load: setup.load,
            service: setup.service.clone(),
            costs: setup.costs.clone(),
            warmup_s: setup.warmup_s,
            seconds: setup.seconds,
            seed: setup.seed,
        }),
    };
    Kernel::ALL.into_iter().map(run).collect()
}

/// Runs a world under a name.
pub(super) fn run(name: &str, setup: Setup) -> Contestant {
    eprintln!("simulating {name}");
    Contestant { name: name.to_string(), outcome: World::new(setup).run() }
}

/// The row of percentiles, microseconds.
pub(super) fn percentiles(latencies: &Latencies) -> Vec<f64> {
    PERCENTILES.iter().map(|share| latencies.quantile_ns(share / 100.0) as f64 / 1000.0).collect()
}

/// The table of percentiles of everybody, and its plot with a heading of its own.
///
/// # Errors
/// When a plot cannot be written.
pub(super) fn compare(
    options: &Options,
    report: &mut Report,
    [title, heading]: [&str; 2],
    file: &str,
    contestants: &[Contestant],
) -> Result<(), String> {
    let labels = ["percentile of connections", "service time at the client, us"];
    let who = "simulated: 8 servers, 8 web servers, 30,000 connections/s, the delays of figure 6a";
    let mut plot = Plot::lines(heading, who, labels, [Scale::Tail, Scale::Log]);
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for Contestant { name, outcome } in contestants {
        let found = percentiles(&outcome.latencies);
        let mut row = vec![name.clone()];
        row.extend(found.iter().map(|us| show(*us)));
        row.push(show(outcome.latencies.mean_ns() / 1000.0));
        // The models of the kernel have no servers, and so nothing local.
        let ours = !outcome.busy_ns.is_empty();
        row.push(if ours { format!("{:.2}", outcome.local_share()) } else { "-".into() });
        row.push(if ours { show(outcome.messages_each()) } else { "-".into() });
        rows.push(row);
        figures.push(figure(name, outcome));
        plot.add(name, curve(&outcome.latencies));
    }
    let mut header = vec![String::new()];
    header.extend(PERCENTILES.iter().map(|share| format!("p{share}, us")));
    header.extend(["mean, us", "stay local", "messages each"].map(str::to_string));
    publish(report, Table { title: title.into(), header, rows, figures: json!(figures) });
    draw(options, report, file, &plot)
}

fn figure(name: &str, outcome: &Outcome) -> Value {
    json!({
        "name": name,
        "percentiles": PERCENTILES,
        "us": percentiles(&outcome.latencies),
        "mean_us": outcome.latencies.mean_ns() / 1000.0,
        "arrived": outcome.arrived,
        "served": outcome.served,
        "local_share": outcome.local_share(),
        "messages_each": outcome.messages_each(),
        "instructions_each": outcome.instructions_each(),
        "offers_taken_back": outcome.revoked,
    })
}

/// Points of a distribution, more of them towards its end.
pub(super) fn curve(latencies: &Latencies) -> Vec<(f64, f64)> {
    let left = (0..=60).map(|step| 100.0 * (1e-3_f64).powf(step as f64 / 60.0));
    left.map(|left| 100.0 - left)
        .map(|share| (share, latencies.quantile_ns(share / 100.0) as f64 / 1000.0))
        .collect()
}
