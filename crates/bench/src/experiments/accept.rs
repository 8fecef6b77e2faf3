//! Connections and requests a second by number of servers (PIKA, figure 4, and Table 3's column of
//! updates): measured as far as the machine has cores, with the kernel beside; simulated beyond.
//! Called by `run`.

use serde_json::json;

use super::plans::{measure, servers_max};
use super::simulated::{costs, equal, run as simulate};
use super::{draw, publish, update_cost};
use crate::cores::Core;
use crate::options::{Only, Options};
use crate::plot::{Plot, Scale};
use crate::report::{Report, Table, show};
use crate::simulation::control::Parameters;
use crate::simulation::costs::Costs;
use crate::simulation::shape::Shape;
use crate::stage::fleets::Kind;

/// Runs what was asked for.
///
/// # Errors
/// What does not work, in one line.
pub fn run(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    let labels = ["servers", "connections or requests/s"];
    let mut plot = Plot::lines(
        "Requests per second by number of servers (paper: figure 4)",
        "measured where it says so; the rest is simulated with calibrated costs",
        labels,
        [Scale::Log, Scale::Log],
    );
    if options.only != Some(Only::Simulated) {
        real(options, topology, report, &mut plot)?;
    }
    if options.only != Some(Only::Real) {
        simulated(options, report, &mut plot)?;
    }
    draw(options, report, "figure-4-accept", &plot)
}

/// Plans that were asked for, or combined ones as large as the machine.
fn plans(options: &Options, topology: &[Core]) -> Result<Vec<Shape>, String> {
    match options.plans.is_empty() {
        true => Ok((1..=servers_max(topology)).map(Shape::combined).collect()),
        false => options.plans.iter().map(|plan| Shape::parse(plan)).collect(),
    }
}

fn real(
    options: &Options,
    topology: &[Core],
    report: &mut Report,
    plot: &mut Plot,
) -> Result<(), String> {
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    let mut lines: [Vec<(f64, f64)>; 4] = Default::default();
    for plan in plans(options, topology)? {
        let found = match measure(options, topology, &plan, Kind::LinuxShared) {
            Ok(found) => found,
            Err(why) => {
                rows.push(vec![plan.to_string(), why]);
                continue;
            }
        };
        let servers = plan.transports.len() as f64;
        let mut row = vec![plan.to_string()];
        for (at, work) in ["short", "kept"].into_iter().enumerate() {
            for side in 0..2 {
                let rate = found.rates.get(work).and_then(|rates| rates[side]);
                lines[2 * at + side].extend(rate.map(|rate| (servers, rate)));
                row.push(rate.map_or("-".into(), show));
            }
        }
        row.push(found.disturbed.to_string());
        rows.push(row);
        figures.push(json!({
            "plan": plan.to_string(), "rates": found.rates, "disturbed_rounds": found.disturbed,
        }));
    }
    let names = [
        "short, haypile (measured)",
        "short, linux (measured)",
        "kept, haypile (measured)",
        "kept, linux (measured)",
    ];
    for (name, points) in names.into_iter().zip(lines) {
        if !points.is_empty() {
            plot.add(name, points);
        }
    }
    let header = [
        "",
        "short connections/s",
        "linux",
        "requests/s, kept connections",
        "linux",
        "disturbed rounds",
    ];
    publish(
        report,
        Table {
            title: "measured: by number of servers, one worker process for each".into(),
            header: header.map(str::to_string).to_vec(),
            rows,
            figures: json!(figures),
        },
    );
    Ok(())
}

fn simulated(options: &Options, report: &mut Report, plot: &mut Plot) -> Result<(), String> {
    let costs = Costs { update: update_cost::measure(), ..costs(options)? };
    report.costs = Some(costs.clone());
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    let (mut points, mut ideal) = (Vec::new(), Vec::new());
    let largest = if options.quick { 4 } else { 64 };
    for servers in (0..).map(|power| 1_usize << power).take_while(|servers| *servers <= largest) {
        let setup = equal(options, &costs, servers, Parameters::default());
        let outcome = simulate(&format!("{servers} servers"), setup).outcome;
        let rate = outcome.projected_rate();
        points.push((servers as f64, rate));
        ideal.push((servers as f64, points[0].1 * servers as f64));
        let updates = outcome.messages.updates as f64 / servers as f64 / outcome.seconds;
        let share = updates * (costs.update.ns + costs.receive.ns) / 1e9;
        rows.push(vec![
            servers.to_string(),
            show(rate),
            format!("{:.3}", rate / ideal[ideal.len() - 1].1),
            show(outcome.messages_each()),
            show(updates),
            format!("{:.4} %", share * 100.0),
        ]);
        figures.push(json!({
            "servers": servers, "rate": rate, "messages_each": outcome.messages_each(),
            "updates_each_s": updates, "update_share": share,
        }));
    }
    plot.add("short (projection)", points);
    plot.add("ideal: one server's times their number", ideal);
    let header = [
        "servers",
        "connections/s",
        "of ideal",
        "messages each",
        "updates/s at each",
        "time updating",
    ];
    publish(
        report,
        Table {
            title:
                "simulated with calibrated costs, a projection: short connections/s, tournament 2 \
                (paper: figure 4a, table 3)"
                    .into(),
            header: header.map(str::to_string).to_vec(),
            rows,
            figures: json!(figures),
        },
    );
    Ok(())
}
