//! How well connections follow the speed of workers (PIKA, section 5.3): simulated, eight servers and
//! eight web servers with the paper's delays (figures 5, 6, 9 and 10) and the shares that stay local;
//! for real, four workers beside the kernel's (`workers`). Called by `run`.

use serde_json::json;

use super::simulated::{Contestant, compare, costs, eight, kernels, run as simulate};
use super::{draw, noiseless, publish, update_cost, workers};
use crate::cores::Core;
use crate::options::{Only, Options};
use crate::plot::{Kind, Plot, Scale};
use crate::report::{Report, Table, show};
use crate::schedule::Spread;
use crate::simulation::control::{Parameters, Scheme};
use crate::simulation::costs::Costs;
use crate::simulation::outcome::{Outcome, PIECE_S};
use crate::simulation::shape::Shape;
use crate::simulation::workload::{Delay, Delays, Load, Service};
use crate::simulation::world::Setup;

/// Connections after which an estimate is to be right: the window of the paper.
const SETTLED: u64 = 128;

/// Runs what was asked for.
///
/// # Errors
/// What does not work, in one line.
pub fn run(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    if options.only != Some(Only::Real) {
        simulated(options, report)?;
    }
    if options.only != Some(Only::Simulated) {
        workers::run(options, topology, report)?;
    }
    Ok(())
}

fn simulated(options: &Options, report: &mut Report) -> Result<(), String> {
    let costs = Costs { update: update_cost::measure(), ..costs(options)? };
    report.notes.push(format!("costs of the simulation: {}", costs.from));
    report.costs = Some(costs.clone());
    let schemes = [
        ("tournament 2", Parameters::of(Scheme::Tournament, 2.0)),
        ("filtered 2", Parameters::of(Scheme::Filtered, 2.0)),
        ("unfiltered 2", Parameters::of(Scheme::Unfiltered, 2.0)),
    ];
    let setup = eight(options, &costs, schemes[0].1);
    let all: Vec<Contestant> = schemes
        .iter()
        .map(|(name, parameters)| simulate(name, eight(options, &costs, *parameters)))
        .collect();
    draw_share_of_time(options, report, &all)?;
    draw_estimates(options, report, &setup, &all[0].outcome)?;
    publish(report, estimates(&setup, &all[0].outcome));
    draw_throughput(options, report, &all[0].outcome)?;
    let mut against = kernels(&setup);
    against.insert(0, all.into_iter().next().ok_or("nobody was simulated")?);
    let title = "simulated: service times, 8 servers, 8 web servers, 30,000 connections/s, the delays \
                 of figure 6a (paper: figure 5)";
    let heading = "Service times beside models of the kernel (paper: figure 5)";
    compare(options, report, [title, heading], "figure-5-service-times", &against)?;
    publish(report, local_shares(options, &costs));
    publish(report, noiseless::table(options, &costs)?);
    Ok(())
}

/// Figure 6: what workers take, and what their managers believe.
fn draw_estimates(
    options: &Options,
    report: &mut Report,
    setup: &Setup,
    outcome: &Outcome,
) -> Result<(), String> {
    let labels = ["time, s", "service time, us"];
    let plots = [
        ("figure-6a-service-times", "Service times of the web servers (paper: figure 6a)"),
        ("figure-6b-estimates", "What the connection managers believe of them (paper: figure 6b)"),
    ];
    for (which, (file, title)) in plots.into_iter().enumerate() {
        let mut plot = Plot::lines(title, "simulated", labels, [Scale::Linear, Scale::Log]);
        for worker in 0..setup.workers {
            let of = outcome.samples.iter().filter(|sample| sample.worker == worker);
            let point = |sample: &crate::simulation::outcome::Sample| {
                let us = if which == 0 { Some(sample.real_us) } else { sample.estimate_us };
                us.map(|us| (sample.at_s, us))
            };
            plot.add(&format!("web server {worker}"), of.filter_map(point).collect());
        }
        draw(options, report, file, &plot)?;
    }
    Ok(())
}

/// How far estimates are off, worker by worker.
fn estimates(setup: &Setup, outcome: &Outcome) -> Table {
    let path_us = setup.costs.path_ns() / 1000.0;
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for worker in 0..setup.workers {
        let settled = || {
            let of = outcome.samples.iter().filter(|sample| sample.worker == worker);
            of.filter(|sample| sample.served_since_change >= SETTLED)
        };
        let off: Vec<f64> = settled()
            .filter_map(|sample| Some(sample.estimate_us? / (sample.real_us + path_us) - 1.0))
            .collect();
        let worst = off
            .iter()
            .copied()
            .fold(0.0, |worst: f64, off| if off.abs() > worst.abs() { off } else { worst });
        let within =
            off.iter().filter(|off| off.abs() <= 0.1).count() as f64 / off.len().max(1) as f64;
        let times: Vec<f64> = settled().map(|sample| sample.real_us).collect();
        let least = times.iter().copied().reduce(f64::min);
        let most = times.iter().copied().reduce(f64::max);
        rows.push(vec![
            worker.to_string(),
            least
                .zip(most)
                .map_or("-".into(), |(least, most)| format!("{} .. {}", show(least), show(most))),
            off.len().to_string(),
            format!("{:.1} %", within * 100.0),
            format!("{:+.1} %", worst * 100.0),
        ]);
        figures.push(json!({ "worker": worker, "looks": off.len(), "within_a_tenth": within, "worst": worst }));
    }
    let header = ["web server", "takes, us", "looks", "within 10 %", "worst"];
    Table {
        title: format!(
            "simulated: estimates against what a web server really takes, {SETTLED} connections after \
             each change (paper: figure 6); the path to it and back, {} us, is part of a service time",
            show(path_us)
        ),
        header: header.map(str::to_string).to_vec(),
        rows,
        figures: json!(figures),
    }
}

/// Figure 9: who serves how many.
fn draw_throughput(
    options: &Options,
    report: &mut Report,
    outcome: &Outcome,
) -> Result<(), String> {
    let mut plot = Plot::lines(
        "Connections per second by web server, tournament 2 (paper: figure 9)",
        "simulated",
        ["time, s", "connections/s"],
        [Scale::Linear; 2],
    );
    plot.kind = Kind::Stacked;
    for (worker, pieces) in outcome.claimed.iter().enumerate() {
        plot.add(&format!("web server {worker}"), a_second(pieces, outcome.seconds));
    }
    draw(options, report, "figure-9-throughput", &plot)
}

/// Figure 10: what stays with the web server that gets slightly slower.
fn draw_share_of_time(
    options: &Options,
    report: &mut Report,
    all: &[Contestant],
) -> Result<(), String> {
    const WORKER: usize = 7;
    let mut plot = Plot::lines(
        "Connections that web server 7 gets from its own server (paper: figure 10)",
        "simulated; it is slightly slower from 3/5 of the time on",
        ["time, s", "connections/s"],
        [Scale::Linear; 2],
    );
    let mut rows = Vec::new();
    for Contestant { name, outcome } in all {
        let points = a_second(&outcome.claimed_local[WORKER], outcome.seconds);
        let half = |from: f64, to: f64| {
            let within = points
                .iter()
                .filter(|point| (from * outcome.seconds..to * outcome.seconds).contains(&point.0));
            let values: Vec<f64> = within.map(|point| point.1).collect();
            values.iter().sum::<f64>() / values.len().max(1) as f64
        };
        rows.push(vec![name.clone(), show(half(0.0, 0.6)), show(half(0.65, 1.0))]);
        plot.add(name, points);
    }
    let table = Table {
        title:
            "simulated: connections/s that web server 7 gets from its own server (paper: figure 10)"
                .into(),
        header: ["", "before it is slower", "after"].map(str::to_string).to_vec(),
        figures: json!(rows),
        rows,
    };
    publish(report, table);
    draw(options, report, "figure-10-local", &plot)
}

/// Pieces of time as rates; the last one is not whole.
fn a_second(pieces: &[u64], seconds: f64) -> Vec<(f64, f64)> {
    let whole = (seconds / PIECE_S) as usize;
    let pieces = pieces.iter().take(whole).enumerate();
    pieces.map(|(index, count)| (index as f64 * PIECE_S, *count as f64 / PIECE_S)).collect()
}

/// What stays local with one slow application, and under uniform load, by scheme and number of
/// managers.
fn local_shares(options: &Options, costs: &Costs) -> Table {
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for scheme in [Scheme::Tournament, Scheme::Filtered, Scheme::Unfiltered] {
        for managers in [2, 4, 8] {
            let share = |delays: Delays| {
                let setup = shared(options, costs, scheme, managers, delays);
                let name = format!("{scheme:?}, {managers} managers");
                let outcome = simulate(&name, setup).outcome;
                let sum = |rows: &[Vec<u64>]| rows.first().map_or(0, |row| row.iter().sum::<u64>());
                sum(&outcome.claimed_local) as f64 / sum(&outcome.came).max(1) as f64
            };
            let slow = Delay { worker: 0, from_s: -1e9, to_s: 1e9, times: 3.0 };
            let (slow, uniform) = (share(Delays(vec![slow])), share(Delays::default()));
            rows.push(vec![
                format!("{scheme:?} 2").to_lowercase(),
                managers.to_string(),
                format!("{slow:.2}"),
                format!("{uniform:.2}"),
            ]);
            figures.push(json!({
                "scheme": format!("{scheme:?}"), "managers": managers, "slow": slow, "uniform": uniform,
            }));
        }
    }
    Table {
        title: "simulated: share of connections that stay local".into(),
        header: ["", "managers", "local application three times slower", "uniform load"]
            .map(str::to_string)
            .to_vec(),
        rows,
        figures: json!(figures),
    }
}

/// A light load, so that nothing but the schemes decides, and a service that is long beside the way
/// to it: 5,000 connections at each.
fn shared(
    options: &Options,
    costs: &Costs,
    scheme: Scheme,
    managers: usize,
    delays: Delays,
) -> Setup {
    const EACH: f64 = 5000.0;
    const RATE_EACH: f64 = 10.0;
    let seconds = EACH / RATE_EACH / if options.quick { 5.0 } else { 1.0 };
    let rate = RATE_EACH * managers as f64;
    let mut service = Service::at_load(0.02, managers, rate, delays);
    service.jitter = 0.02;
    Setup {
        shape: Shape::combined(managers),
        workers: managers,
        parameters: Parameters::of(scheme, 2.0),
        load: Load::Open { rate, spread: Spread::Poisson },
        service,
        costs: costs.clone(),
        // Every estimate has its window.
        warmup_s: 30.0,
        seconds,
        seed: options.seed.unwrap_or(1),
    }
}
