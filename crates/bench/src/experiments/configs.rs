//! Plans: combined, split, subset (PIKA, section 5.4, figure 11, Tables 4 and 5): the paper's eight
//! transport servers simulated with calibrated costs, and small plans measured where they run.
//! Called by `run`.

use serde_json::json;

use super::plans::measure;
use super::simulated::{Contestant, costs, run as simulate, saturated};
use super::{draw, publish, update_cost};
use crate::cores::Core;
use crate::options::{Only, Options};
use crate::plot::{Kind as PlotKind, Plot, Scale};
use crate::report::{Report, Table, show};
use crate::simulation::control::Parameters;
use crate::simulation::costs::Costs;
use crate::simulation::shape::Shape;
use crate::simulation::workload::Load;
use crate::stage::fleets::Kind;

/// The plans of figure 11, in its order; the last is what they are compared with.
const FIGURE_11: &[&str] = &[
    "TS8CM8+LS1",
    "TS8CM8+LS2",
    "TS8CM8+LS4",
    "TS8CM8+LS8",
    "TS8LS8+CM1",
    "TS8LS8+CM2",
    "TS8LS8+CM4",
    "TS8LS8+CM8",
    "TS8+LS8+CM1",
    "TS8+LS8+CM2",
    "TS8+LS8+CM4",
    "TS8+LS8+CM8",
    "TS8LS8CM1",
    "TS8LS8CM2",
    "TS8LS8CM4",
    "TS8LS8CM8",
];
/// Small ones, measured.
const SMALL: &[&str] = &["TS1LS1CM1", "TS1LS1+CM1", "TS2LS2CM2", "TS2LS2+CM1", "TS2+LS1+CM1"];
/// The paper's times (Tables 4 and 5): plan, then T_CM, T_busy, T_msg, microseconds.
const PAPER: &[(&str, &str)] = &[
    ("TS1LS1CM1", "0.31, 3.13, 7.12"),
    ("TS1LS1+CM1", "9.24, 3.67, 7.34"),
    ("TS8LS8CM8", "0.39, 3.26, 10.05"),
    ("TS8LS8+CM1", "17.78, 5.17, 8.61"),
    ("TS8LS8+CM2", "14.73, 4.96, 8.59"),
    ("TS8LS8+CM4", "13.67, 4.99, 10.05"),
    ("TS8LS8CM1", "6766.68, 5.91, 10.91"),
    ("TS8LS8CM2", "39.73, 5.92, 11.57"),
    ("TS8LS8CM4", "10.46, 5.18, 12.38"),
];

/// Runs what was asked for.
///
/// # Errors
/// What does not work, in one line.
pub fn run(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    if options.only != Some(Only::Real) {
        simulated(options, report)?;
    }
    if options.only != Some(Only::Simulated) {
        real(options, topology, report)?;
    }
    Ok(())
}

fn simulated(options: &Options, report: &mut Report) -> Result<(), String> {
    let costs = Costs { update: update_cost::measure(), ..costs(options)? };
    report.notes.push(format!("costs of the simulation: {}", costs.from));
    report.costs = Some(costs.clone());
    let mut loaded = Vec::new();
    for plan in FIGURE_11 {
        let setup = saturated(options, &costs, Shape::parse(plan)?, Parameters::default());
        loaded.push((simulate(plan, setup), Shape::parse(plan)?.stations));
    }
    let mut plot = Plot::lines(
        "Connections per second by plan, eight transport servers (paper: figure 11)",
        "simulated with calibrated costs: a projection, not a measurement",
        ["plan", "connections/s"],
        [Scale::Linear, Scale::Linear],
    );
    plot.kind = PlotKind::Bars;
    plot.groups = FIGURE_11.iter().map(|plan| plan.to_string()).collect();
    let rates = loaded.iter().enumerate();
    plot.add(
        "connections/s",
        rates.map(|(at, (one, _))| (at as f64, one.outcome.rate())).collect(),
    );
    draw(options, report, "figure-11-configs", &plot)?;
    publish(report, times("simulated, full load (paper: figure 11, table 5)", &loaded));
    let mut alone = Vec::new();
    for plan in ["TS1LS1CM1", "TS1LS1+CM1"] {
        let mut setup = saturated(options, &costs, Shape::parse(plan)?, Parameters::default());
        setup.load = Load::Closed { clients: 1 };
        alone.push((simulate(plan, setup), Shape::parse(plan)?.stations));
    }
    publish(report, times("simulated, a single client (paper: table 4)", &alone));
    Ok(())
}

/// The times of the paper's tables, and the rates.
fn times(title: &str, found: &[(Contestant, usize)]) -> Table {
    let base = found.last().map_or(1.0, |(last, _)| last.outcome.rate());
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for (Contestant { name, outcome }, cores) in found {
        let served = outcome.served.max(1) as f64;
        let manager_us = outcome.assigning.mean_ns() / 1000.0;
        let message_us = outcome.message_ns / served / 1000.0;
        let busy_us = outcome.busy_ns.iter().sum::<f64>() / served / 1000.0 - message_us;
        let total_us = outcome.latencies.mean_ns() / 1000.0;
        let paper = PAPER.iter().find(|(plan, _)| plan == name).map_or("", |(_, said)| said);
        rows.push(vec![
            name.clone(),
            cores.to_string(),
            show(outcome.rate()),
            format!("{:.2}", outcome.rate() / base),
            show(outcome.rate() / *cores as f64),
            show(manager_us),
            show(busy_us),
            show(message_us),
            show(total_us),
            paper.to_string(),
        ]);
        figures.push(json!({
            "plan": name, "processes": cores, "rate": outcome.rate(), "t_cm_us": manager_us,
            "t_busy_us": busy_us, "t_msg_us": message_us, "t_total_us": total_us,
        }));
    }
    let header = [
        "plan",
        "servers' cores",
        "connections/s",
        "of the last",
        "for each core",
        "T_CM, us",
        "T_busy, us",
        "T_msg, us",
        "T_total, us",
        "paper: T_CM, T_busy, T_msg",
    ];
    Table {
        title: title.into(),
        header: header.map(str::to_string).to_vec(),
        rows,
        figures: json!(figures),
    }
}

/// Small plans beside TS1LS1CM1, in the same rounds.
fn real(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    let chosen: Vec<String> = match options.plans.is_empty() {
        true => SMALL.iter().map(|plan| plan.to_string()).collect(),
        false => options.plans.clone(),
    };
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for plan in &chosen {
        let shape = Shape::parse(plan)?;
        let base = Kind::Haypile(vec!["--plan".into(), "TS1LS1CM1".into()]);
        let found = match measure(options, topology, &shape, base) {
            Ok(found) => found,
            Err(why) => {
                rows.push(vec![plan.clone(), why]);
                continue;
            }
        };
        let cell = |figure: Option<f64>| figure.map_or("-".into(), show);
        let [short, kept] =
            ["short", "kept"].map(|work| found.rates.get(work).copied().unwrap_or_default());
        rows.push(vec![
            plan.clone(),
            cell(short[0]),
            cell(short[1]),
            cell(kept[0]),
            cell(kept[1]),
            cell(found.alone_us[0]),
            cell(found.alone_us[1]),
            found.disturbed.to_string(),
        ]);
        figures.push(json!({
            "plan": plan, "rates": found.rates, "t_total_us": found.alone_us,
            "disturbed_rounds": found.disturbed,
        }));
    }
    let header = [
        "plan",
        "short connections/s",
        "TS1LS1CM1",
        "requests/s, kept",
        "TS1LS1CM1",
        "T_total, single client, us",
        "TS1LS1CM1",
        "disturbed rounds",
    ];
    publish(
        report,
        Table {
            title: "measured: plans, each beside TS1LS1CM1 in the same rounds".into(),
            header: header.map(str::to_string).to_vec(),
            rows,
            figures: json!(figures),
        },
    );
    Ok(())
}
