//! The experiments: what each builds, which cases it measures, and what a reader must know. Called by the command.

mod accept;
mod balance;
mod cache;
mod configs;
mod generator;
mod idle;
mod messages;
mod network;
mod noiseless;
mod plans;
mod schemes;
mod simulated;
mod uniform;
mod update_cost;
mod updates;
mod workers;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use haypile_shm::sys;

use crate::cores::{self, Core, Cores, Placement};
use crate::machine;
use crate::options::{Experiment, LinkKind, Options};
use crate::plot::Plot;
use crate::report::{Report, Table, format_table};

/// How long the machine is watched before anything is measured.
const NOISE_LOOK: Duration = Duration::from_millis(1500);

/// Runs an experiment, prints its tables, writes its report.
///
/// # Errors
/// What the environment does not allow, in one line.
pub fn run(options: &Options) -> Result<(), String> {
    let topology = cores::read()?;
    let _tuning = options.tuned.then(hold_idle_states_off).transpose()?;
    eprintln!("watching the machine for {:.1} s ...", NOISE_LOOK.as_secs_f64());
    let noise = machine::noise(NOISE_LOOK);
    let mut report = Report::new(options, topology.clone(), noise);
    say(&report.head());
    let outcome = match options.experiment {
        Experiment::Http | Experiment::Latency | Experiment::Goodput | Experiment::Echo => {
            network::run(options, &topology, &mut report)
        }
        Experiment::Messages => messages::run(options, &topology, &mut report),
        Experiment::Idle => idle::run(options, &topology, &mut report),
        Experiment::Generator => generator::run(options, &topology, &mut report),
        Experiment::Schemes => schemes::run(options, &topology, &mut report),
        Experiment::Balance => balance::run(options, &topology, &mut report),
        Experiment::Accept => accept::run(options, &topology, &mut report),
        Experiment::Configs => configs::run(options, &topology, &mut report),
        Experiment::Cache => cache::run(options, &mut report),
    };
    outcome?;
    say(&report.foot());
    match &options.json {
        Some(path) => report.write(path),
        None => Ok(()),
    }
}

/// Prints to standard output.
pub(crate) fn say(text: &str) {
    // A closed pipe is the reader's choice and no failure of ours.
    drop(writeln!(std::io::stdout(), "{}", text.trim_end()));
}

/// Prints a table and keeps it for the report.
pub(crate) fn publish(report: &mut Report, table: Table) {
    say(&format!("\n{}\n{}", table.title, format_table(&table.header, &table.rows)));
    report.tables.push(table);
}

/// Writes a plot into the folder of plots, if there is one.
pub(crate) fn draw(
    options: &Options,
    report: &mut Report,
    name: &str,
    plot: &Plot,
) -> Result<(), String> {
    let Some(folder) = &options.plots else { return Ok(()) };
    std::fs::create_dir_all(folder)
        .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    let path = folder.join(format!("{name}.svg"));
    plot.write(&path)?;
    report.notes.push(format!("plot: {}", path.display()));
    Ok(())
}

/// Keeps every core out of its idle states as long as the file is held.
fn hold_idle_states_off() -> Result<File, String> {
    const DEVICE: &str = "/dev/cpu_dma_latency";
    let fail = |error: std::io::Error| {
        format!("--tuned: cannot hold {DEVICE} at 0: {error}; run as root, or without --tuned")
    };
    let mut device = OpenOptions::new().write(true).open(DEVICE).map_err(fail)?;
    device.write_all(&0_i32.to_ne_bytes()).map_err(fail)?;
    Ok(device)
}

/// The cores of a stage; this process goes to its own.
pub(crate) fn place(
    options: &Options,
    topology: &[Core],
    placement: Placement,
) -> Result<Cores, String> {
    let allowed: Vec<usize> = topology.iter().map(|core| core.number).collect();
    let chosen = cores::choose(topology, placement, options.link == LinkKind::Wire);
    let cores = match &options.cores {
        Some(text) if placement != Placement::One => chosen.with(text, &allowed)?,
        _ => chosen,
    };
    sys::set_affinity(&cores.bench)
        .map_err(|errno| format!("cannot run on cores {:?}: {errno}", cores.bench))?;
    Ok(cores)
}
