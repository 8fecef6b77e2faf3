//! The balancing schemes side by side, simulated: under the paper's delays (PIKA, figure 7), and
//! under uniform load for growing numbers of servers (figure 8), with what offers between managers
//! cost (Table 3). Uniform load for real is `uniform`'s. Called by `run`.

use serde_json::json;

use super::simulated::{Contestant, compare, costs, eight, equal, kernels, run as simulate};
use super::{draw, publish, uniform, update_cost, updates};
use crate::cores::Core;
use crate::options::{Only, Options};
use crate::plot::{Plot, Scale};
use crate::report::{Report, Table, show};
use crate::simulation::control::{Parameters, contestants};
use crate::simulation::costs::Costs;
use crate::simulation::outcome::Outcome;

/// Runs what was asked for.
///
/// # Errors
/// When costs cannot be read, plots not be written, or a side does not work.
pub fn run(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    if options.only != Some(Only::Real) {
        simulated(options, report)?;
    }
    if options.only != Some(Only::Simulated) {
        uniform::run(options, topology, report)?;
    }
    Ok(())
}

fn simulated(options: &Options, report: &mut Report) -> Result<(), String> {
    let costs = Costs { update: update_cost::measure(), ..costs(options)? };
    report.notes.push(format!("costs of the simulation: {}", costs.from));
    report.costs = Some(costs.clone());
    delayed(options, &costs, report)?;
    scaling(options, &costs, report)
}

/// Figure 7.
fn delayed(options: &Options, costs: &Costs, report: &mut Report) -> Result<(), String> {
    let mut all = Vec::new();
    for (name, parameters) in contestants() {
        all.push(simulate(&name, eight(options, costs, parameters)));
    }
    all.extend(kernels(&eight(options, costs, Parameters::default())));
    let title = "simulated: service times by scheme, 8 servers, 8 web servers, 30,000 connections/s, \
                 the delays of figure 6a (paper: figure 7)";
    let heading = "Service times by scheme (paper: figure 7)";
    compare(options, report, [title, heading], "figure-7-schemes", &all)
}

/// Numbers of servers.
fn sizes(options: &Options) -> Vec<usize> {
    let largest = if options.quick { 8 } else { 64 };
    (0..).map(|power| 1 << power).take_while(|size| *size <= largest).collect()
}

/// Figure 8, and Table 3 beside it.
fn scaling(options: &Options, costs: &Costs, report: &mut Report) -> Result<(), String> {
    let sizes = sizes(options);
    let mut found: Vec<(String, Vec<Outcome>)> = Vec::new();
    for (name, parameters) in contestants() {
        let mut outcomes = Vec::new();
        for size in &sizes {
            let setup = equal(options, costs, *size, parameters);
            let Contestant { outcome, .. } = simulate(&format!("{name}, {size} servers"), setup);
            outcomes.push(outcome);
        }
        found.push((name, outcomes));
    }
    counted(&sizes, &found, report, "messages for each connection", &Outcome::messages_each);
    counted(&sizes, &found, report, "instructions of servers for each connection", &|outcome| {
        outcome.instructions_each()
    });
    counted(&sizes, &found, report, "share of connections that stay local", &|outcome| {
        outcome.local_share()
    });
    counted(&sizes, &found, report, "projection: connections/s", &Outcome::projected_rate);
    let mut plot = Plot::lines(
        "Connections per second by scheme, uniform load (paper: figure 8)",
        "simulated with calibrated costs: a projection, not a measurement",
        ["servers", "connections/s"],
        [Scale::Log, Scale::Log],
    );
    for (name, outcomes) in &found {
        let points = sizes.iter().zip(outcomes);
        plot.add(
            name,
            points.map(|(size, outcome)| (*size as f64, outcome.projected_rate())).collect(),
        );
    }
    draw(options, report, "figure-8-scaling", &plot)?;
    let first = contestants().into_iter().zip(&found).next();
    if let Some(((_, parameters), (_, outcomes))) = first {
        publish(report, updates::table(options, costs, parameters, &sizes, outcomes));
    }
    Ok(())
}

/// One figure by scheme and number of servers.
fn counted(
    sizes: &[usize],
    found: &[(String, Vec<Outcome>)],
    report: &mut Report,
    what: &str,
    value: &dyn Fn(&Outcome) -> f64,
) {
    let mut header = vec!["servers".to_string()];
    header.extend(sizes.iter().map(usize::to_string));
    header.push("most/least".into());
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for (name, outcomes) in found {
        let values: Vec<f64> = outcomes.iter().map(value).collect();
        let most = values.iter().copied().fold(f64::MIN, f64::max);
        let least = values.iter().copied().fold(f64::MAX, f64::min);
        let mut row = vec![name.clone()];
        row.extend(values.iter().map(|value| show(*value)));
        row.push(format!("{:.3}", most / least));
        rows.push(row);
        figures.push(json!({ "name": name, "servers": sizes, "values": values }));
    }
    let title = format!("simulated, uniform load (paper: figure 8): {what}");
    publish(report, Table { title, header, rows, figures: json!(figures) });
}
