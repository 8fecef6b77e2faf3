//! What an idle service costs: processor time of Haypile's side, and of the kernel's, while a server waits and nobody
//! asks. Called by `run`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{place, say};
use crate::cores::Core;
use crate::options::{Options, ServerKind};
use crate::processor_time::Reading;
use crate::report::{NamedCores, Report, Table, format_table};
use crate::stage::{Stage, Wanted};
use crate::statistics;

/// Shorter windows may fall between two timers.
const SECONDS_MIN: f64 = 5.0;
/// Timers of the last connections run out meanwhile.
const SETTLE: Duration = Duration::from_secs(1);

/// Watches both sides at once, round by round.
///
/// # Errors
/// What does not work, in one line.
pub fn run(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    let cores = place(options, topology, options.placement)?;
    let wanted = Wanted {
        link: options.link,
        client: options.client,
        wires: options.wires.clone(),
        linux: options.against_linux,
        server: options.server.unwrap_or(ServerKind::Builtin),
        body_bytes: 128,
        congestion: options.congestion.clone(),
        cores: cores.clone(),
    };
    let mut stage = Stage::build(&wanted)?;
    std::thread::sleep(SETTLE);
    let parts: Vec<(String, u32)> = stage
        .sides()
        .iter()
        .flat_map(|side| {
            let name = move |part| format!("{}: {part}", side.name);
            side.part_names().into_iter().map(name).zip(side.part_pids())
        })
        .collect();
    let pids: Vec<u32> = parts.iter().map(|(_, pid)| *pid).collect();
    let mut shares: Vec<Vec<f64>> = vec![Vec::new(); parts.len()];
    let seconds = options.duration_s.max(SECONDS_MIN);
    for round in 0..options.repeat.max(1) {
        eprintln!("idle: round {} of {}, {seconds:.0} s", round + 1, options.repeat.max(1));
        let (before, started) = (Reading::take().exact_s(&pids), Instant::now());
        std::thread::sleep(Duration::from_secs_f64(seconds));
        let after = Reading::take().exact_s(&pids);
        let seconds = started.elapsed().as_secs_f64();
        for (share, (after, before)) in shares.iter_mut().zip(after.iter().zip(&before)) {
            share.push((after - before) / seconds * 100.0);
        }
        stage.sides().iter_mut().try_for_each(|side| side.assert_alive())?;
    }
    let table = table(&parts, &shares, seconds);
    say(&format!("\n{}\n{}", table.title, format_table(&table.header, &table.rows)));
    report.tables.push(table);
    report.cores.push(NamedCores { name: "idle".into(), cores });
    Ok(())
}

fn table(parts: &[(String, u32)], shares: &[Vec<f64>], seconds: f64) -> Table {
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for ((name, _), shares) in parts.iter().zip(shares) {
        let Some(summary) = statistics::summary(shares) else { continue };
        let cell = format!("{:.4} [{:.4} .. {:.4}]", summary.median, summary.min, summary.max);
        rows.push(vec![name.clone(), cell]);
        figures.push(json!({ "part": name, "percent_of_a_core": summary, "rounds": shares }));
    }
    Table {
        title: format!("idle, with a server that waits: windows of {seconds:.0} s"),
        header: vec![String::new(), "% of a core [min .. max]".into()],
        rows,
        figures: json!(figures),
    }
}
