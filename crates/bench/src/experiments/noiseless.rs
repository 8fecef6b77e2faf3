//! The measured half of `balance` without a machine's noise: the same four workers, arrivals and delay, simulated
//! under the same plans, beside models of the kernel's queues. It says what a scheme and what the workload itself do
//! to the tail; what is measured beyond that is the machine. Called by `balance`.

use serde_json::json;

use super::simulated::kernels;
use super::workers::{BASE_US, HELD, PLANS, WORKERS, header, rate};
use crate::latency::Latencies;
use crate::options::Options;
use crate::report::{Table, show};
use crate::schedule::Spread;
use crate::simulation::costs::Costs;
use crate::simulation::linux::Kernel;
use crate::simulation::shape::Shape;
use crate::simulation::workload::{Delays, Load, Service};
use crate::simulation::world::{Setup, World};

/// Runs with seeds of their own that one row is made of.
const SEEDS: u64 = 20;
/// Counted in each, the delay in half of them.
const SECONDS: f64 = 5.0;
/// Estimates have their windows then.
const WARMUP_S: f64 = 1.0;
/// One manager for all: what no plan can be better than, but for chance.
const ONE_MANAGER: &str = "TS1LS1CM1";

/// What one slow worker does to the tail of everybody.
///
/// # Errors
/// When a plan is of no use.
pub fn table(options: &Options, costs: &Costs) -> Result<Table, String> {
    let mut plans: Vec<&str> = options.plans.iter().map(String::as_str).collect();
    if plans.is_empty() {
        plans = [&[ONE_MANAGER], &PLANS[..]].concat();
    }
    let mut found: Vec<(String, [Latencies; 2])> = Vec::new();
    for plan in plans {
        eprintln!("simulating {WORKERS} workers, {plan}");
        let shape = Shape::parse(plan)?;
        let name = format!("tournament 2, {plan}");
        let both = over_seeds(options, |seed, delays| {
            let setup = setup(options, costs, shape.clone(), seed, delays);
            vec![World::new(setup).run().latencies]
        });
        found.extend(both.into_iter().map(|both| (name.clone(), both)));
    }
    let both = over_seeds(options, |seed, delays| {
        let setup = setup(options, costs, Shape::combined(1), seed, delays);
        kernels(&setup).into_iter().map(|model| model.outcome.latencies).collect()
    });
    found.extend(Kernel::ALL.map(|model| model.name().to_string()).into_iter().zip(both));
    Ok(rows(&found, options))
}

/// Undisturbed and with the slow worker, all seeds together, for each of those that `run` gives.
fn over_seeds(
    options: &Options,
    run: impl Fn(u64, Delays) -> Vec<Latencies>,
) -> Vec<[Latencies; 2]> {
    let seeds = if options.quick { 2 } else { SEEDS };
    let first = options.seed.unwrap_or(1);
    let mut all: Vec<[Latencies; 2]> = Vec::new();
    for seed in first..first + seeds {
        for (case, delays) in [Delays::default(), Delays::one_slow(SECONDS)].into_iter().enumerate()
        {
            for (place, latencies) in run(seed, delays).iter().enumerate() {
                if place == all.len() {
                    all.push([Latencies::new(), Latencies::new()]);
                }
                all[place][case].add(latencies);
            }
        }
    }
    all
}

fn setup(options: &Options, costs: &Costs, shape: Shape, seed: u64, delays: Delays) -> Setup {
    Setup {
        shape,
        workers: WORKERS,
        parameters: Default::default(),
        load: Load::Open { rate: rate(options), spread: Spread::Poisson },
        service: Service { base_ns: BASE_US * 1000, jitter: 0.0, delays },
        costs: costs.clone(),
        warmup_s: WARMUP_S,
        seconds: SECONDS,
        seed,
    }
}

fn rows(found: &[(String, [Latencies; 2])], options: &Options) -> Table {
    let (mut rows, mut figures) = (Vec::new(), Vec::new());
    for (name, both) in found {
        let mut row = vec![name.clone()];
        let mut figure = json!({ "side": name });
        for percent in HELD {
            let us = |of: &Latencies| of.quantile_ns(percent / 100.0) as f64 / 1000.0;
            let (calm, slow) = (us(&both[0]), us(&both[1]));
            row.extend([show(calm), show(slow), format!("{:.2}", slow / calm)]);
            figure[format!("p{percent}")] = json!({ "undisturbed_us": calm, "one_slow_us": slow });
        }
        rows.push(row);
        figures.push(figure);
    }
    Table {
        title: format!(
            "simulated: the measured half without noise: {WORKERS} workers that take {BASE_US} us, {:.0} \
             connections/s, the last worker forty times slower for half of the time",
            rate(options)
        ),
        header: header(),
        rows,
        figures: json!(figures),
    }
}
