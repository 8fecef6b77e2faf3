//! What managers spend on the lists of each other's applications (PIKA, Table 3): updates that the real managers
//! sent in the simulation, times what an update costs here, measured in the same run. Part of `schemes`.

use haypile_engine::control::ANNOUNCE_EACH_US;
use serde_json::json;

use super::simulated::{equal, run as simulate};
use crate::options::Options;
use crate::report::{Table, show};
use crate::simulation::control::Parameters;
use crate::simulation::costs::Costs;
use crate::simulation::outcome::Outcome;
use crate::simulation::workload::Delays;
use crate::simulation::world::Setup;

/// Managers, updates a second at each, and the share of time, of the paper's Table 3.
const PAPER: [(usize, f64, f64); 4] =
    [(2, 21.0, 0.0003), (4, 63.0, 0.0007), (8, 147.0, 0.0013), (16, 315.0, 0.0034)];
/// The delays count so long: all of the figure's changes.
const SECONDS: f64 = 5.0;

/// One number of managers.
struct Row {
    managers: usize,
    /// Updates a second that each hears: under uniform load, under the delays of figure 6a, and at most.
    heard: [f64; 3],
}

/// Names of [`Row::heard`].
const LOADS: [&str; 3] = ["uniform load", "delays of figure 6a", "at most"];

/// The table, by number of servers; `uniform` are their outcomes under uniform load.
pub(super) fn table(
    options: &Options,
    costs: &Costs,
    parameters: Parameters,
    sizes: &[usize],
    uniform: &[Outcome],
) -> Table {
    let several = sizes.iter().zip(uniform).filter(|(managers, _)| **managers > 1);
    let rows: Vec<Row> = several
        .map(|(&managers, uniform)| {
            let seconds = if options.quick { SECONDS / 10.0 } else { SECONDS };
            let delayed = delayed(equal(options, costs, managers, parameters), seconds);
            let heard = [heard(managers, uniform), heard(managers, &delayed), at_most(managers)];
            Row { managers, heard }
        })
        .collect();
    show_rows(&rows, costs)
}

/// Updates a second that each manager hears.
fn heard(managers: usize, outcome: &Outcome) -> f64 {
    outcome.messages.updates as f64 / managers as f64 / outcome.seconds
}

/// What managers allow themselves for one queue, whatever its applications do.
fn at_most(managers: usize) -> f64 {
    (managers - 1) as f64 * 1e6 / ANNOUNCE_EACH_US as f64
}

/// The same servers with the delays of the paper's web servers.
fn delayed(mut setup: Setup, seconds: f64) -> Outcome {
    setup.seconds = seconds;
    setup.service.delays = Delays::figure_6a().over(seconds);
    simulate(&format!("updates under delays, {}", setup.shape), setup).outcome
}

/// What one update costs, nanoseconds: its share of telling, its message, and the list. In the mean a manager tells
/// as many as it hears.
fn each_ns(costs: &Costs) -> f64 {
    costs.send.ns + costs.receive.ns + costs.update.ns
}

fn show_rows(rows: &[Row], costs: &Costs) -> Table {
    let each_ns = each_ns(costs);
    let share = |updates: f64| updates * each_ns / 1e9;
    let mut cells = Vec::new();
    let mut figures = Vec::new();
    for Row { managers, heard } in rows {
        let paper = PAPER.iter().find(|(size, ..)| size == managers);
        let cell = |updates: f64| format!("{}, {:.4} %", show(updates), share(updates) * 100.0);
        let mut row = vec![managers.to_string()];
        row.extend(heard.map(cell));
        row.push(paper.map_or(String::new(), |(_, updates, share)| {
            format!("{updates:.0}, {:.2} %", share * 100.0)
        }));
        cells.push(row);
        for (load, updates) in LOADS.iter().zip(heard) {
            figures.push(json!({
                "managers": managers, "load": load, "updates_each_s": updates, "update_ns": each_ns,
                "share": share(*updates), "paper_share": paper.map(|(_, _, share)| share),
            }));
        }
    }
    let mut header = vec!["managers".to_string()];
    header.extend(LOADS.map(|load| format!("{load}: updates/s, share")));
    header.push("paper: updates/s, share".into());
    Table {
        title: format!(
            "simulated updates/s at each manager of the list of others' applications, times the cost of one: {} ns \
             measured in this run and {} ns for its message (paper: table 3)",
            show(costs.update.ns),
            show(costs.send.ns + costs.receive.ns)
        ),
        header,
        rows: cells,
        figures: json!(figures),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Spread;
    use crate::simulation::shape::Shape;
    use crate::simulation::workload::{Load, Service};

    fn setup(managers: usize, costs: &Costs) -> Setup {
        let rate = 3750.0 * managers as f64;
        Setup {
            shape: Shape::combined(managers),
            workers: managers,
            parameters: Parameters::default(),
            load: Load::Open { rate, spread: Spread::Poisson },
            service: Service::at_load(0.2, managers, rate, Delays::default()),
            costs: costs.clone(),
            warmup_s: 0.3,
            seconds: SECONDS,
            seed: 4,
        }
    }

    /// By count of updates times the cost of one, as the tree has it: 0.34 % of the time at 16 managers in the
    /// paper, also where managers have much to say.
    #[test]
    fn sixteen_managers_spend_less_than_the_papers_on_updates() {
        let costs = Costs::of_this_tree().expect("costs");
        for (managers, updates, paper) in PAPER {
            let delayed = heard(managers, &delayed(setup(managers, &costs), 2.0));
            assert!(delayed > 0.0, "{managers} managers have nothing to say under delays");
            for heard in [delayed, at_most(managers)] {
                let share = heard * each_ns(&costs) / 1e9;
                assert!(share < paper, "{managers} managers: {share} of the time");
            }
            assert!(at_most(managers) <= updates, "{managers}: more updates than the paper's");
        }
    }

    #[test]
    fn a_share_is_updates_times_their_cost() {
        let mut costs = Costs::of_this_tree().expect("costs");
        (costs.update.ns, costs.send.ns, costs.receive.ns) = (700.0, 100.0, 200.0);
        let table = show_rows(&[Row { managers: 16, heard: [0.0, 1000.0, 300.0] }], &costs);
        assert_eq!(table.rows[0][2], "1,000, 0.1000 %");
        let figure = &table.figures[1];
        assert!((figure["share"].as_f64().expect("a share") - 0.001).abs() < 1e-12, "{figure}");
        assert_eq!(figure["paper_share"], 0.0034);
    }
}
