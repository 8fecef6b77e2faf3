//! What an experiment found: one JSON object with everything, and plain tables with units. Called
//! by `experiments`; the figures of a case come from `frame`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::cores::{Core, Cores};
use crate::frame::{Case, Run, unit};
use crate::latency::{Latencies, Percentiles};
use crate::load::{Pace, Work};
use crate::machine::{Facts, Noise};
use crate::options::Options;
use crate::simulation::costs::Costs;
use crate::statistics::{self, INTERVAL_METHOD, Interval, Summary};

/// Version of the shape of the JSON report.
pub const FORMAT: u32 = 1;

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Shape of this report.
    pub format: u32,
    /// Version of Haypile.
    pub version: &'static str,
    /// What was asked for.
    pub options: Options,
    /// The machine.
    pub machine: Facts,
    /// Its cores.
    pub topology: Vec<Core>,
    /// What ran where.
    pub cores: Vec<NamedCores>,
    /// How quiet it was before.
    pub noise: Noise,
    /// How intervals were made.
    pub interval_method: &'static str,
    /// What to know when reading it.
    pub notes: Vec<String>,
    /// Costs that a simulation went by.
    pub costs: Option<Costs>,
    /// By case.
    pub cases: Vec<CaseReport>,
    /// Tables of experiments that have no sides.
    pub tables: Vec<Table>,
}

/// The cores of a stage.
#[derive(Clone, Debug, Serialize)]
pub struct NamedCores {
    /// The stage's name.
    pub name: String,
    /// What runs where.
    pub cores: Cores,
}

/// One table as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Over it.
    pub title: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// Rows.
    pub rows: Vec<Vec<String>>,
    /// The same figures for programs.
    pub figures: Value,
}

/// One case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// What was measured.
    pub title: String,
    /// Unit of `rate`.
    pub unit: &'static str,
    /// Kind of work.
    pub work: Work,
    /// When requests were made.
    pub pace: Pace,
    /// Sessions at a time.
    pub connections: usize,
    /// By side.
    pub sides: Vec<SideReport>,
    /// By metric: first side over second, paired by round.
    pub ratios: BTreeMap<&'static str, Interval>,
    /// Disturbed runs that were thrown away.
    pub rejected: usize,
}

/// One side of a case.
#[derive(Clone, Debug, Serialize)]
pub struct SideReport {
    /// Its name.
    pub name: &'static str,
    /// By metric.
    pub summary: BTreeMap<&'static str, Summary>,
    /// Of all runs together.
    pub latency: Percentiles,
    /// Median processor time of each part, microseconds a unit of work.
    pub parts_cpu_us: BTreeMap<String, f64>,
    /// By round.
    pub runs: Vec<RunReport>,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// By metric.
    pub metrics: BTreeMap<&'static str, f64>,
    /// Percentiles.
    pub latency: Percentiles,
    /// Processor seconds by part.
    pub parts_cpu_s: BTreeMap<String, f64>,
    /// Busy share by core.
    pub cores_busy: BTreeMap<usize, f64>,
    /// Seconds counted.
    pub seconds: f64,
    /// Requests completed.
    pub completed: u64,
    /// Requests failed.
    pub failed: u64,
    /// Why, the first few.
    pub errors: Vec<String>,
    /// Open loop: due and not begun at the end.
    pub backlog: u64,
    /// Congestion control that the client's kernel used; none where it was not asked.
    pub congestion: Option<String>,
    /// Why it does not count for much, although it was kept.
    pub disturbed: Option<String>,
}

/// A metric: its key, its name in tables.
const METRICS: &[(&str, &str)] = &[
    ("rate", ""),
    ("p50_us", "latency p50, us"),
    ("p90_us", "latency p90, us"),
    ("p99_us", "latency p99, us"),
    ("p99_9_us", "latency p99.9, us"),
    ("max_us", "latency max, us"),
    ("parts_cpu_us", "CPU of all parts, us each"),
    ("cores_cpu_us", "busy time of their cores, us each"),
];

fn metrics(work: &Work, run: &Run, cores: &[usize]) -> BTreeMap<&'static str, f64> {
    let mut metrics = BTreeMap::new();
    let bulk = matches!(work, Work::Upload | Work::Download);
    metrics.insert("rate", if bulk { run.outcome.gigabits() } else { run.outcome.rate() });
    let latencies = run.outcome.histogram();
    if latencies.count() > 0 {
        let percentiles = latencies.percentiles();
        metrics.insert("p50_us", percentiles.p50_us);
        metrics.insert("p90_us", percentiles.p90_us);
        metrics.insert("p99_us", percentiles.p99_us);
        metrics.insert("p99_9_us", percentiles.p99_9_us);
        metrics.insert("max_us", percentiles.max_us);
    }
    let units = run.units();
    if units > 0.0 {
        let busy_s: f64 = cores
            .iter()
            .filter_map(|core| run.used.cores.get(core))
            .map(|core| core.busy_s())
            .sum();
        metrics.insert("parts_cpu_us", run.parts_s() * 1e6 / units);
        metrics.insert("cores_cpu_us", busy_s * 1e6 / units);
    }
    metrics
}

impl CaseReport {
    /// The figures of a case; `cores` are all that its sides run on.
    pub fn new(case: &Case, cores: &[usize]) -> CaseReport {
        let sides: Vec<SideReport> = case
            .sides
            .iter()
            .zip(&case.runs)
            .map(|(name, runs)| SideReport::new(name, &case.spec.work, runs, cores))
            .collect();
        let mut ratios = BTreeMap::new();
        if let [first, second] = &sides[..] {
            for (key, _) in METRICS {
                if let Some(ratio) =
                    statistics::paired_ratio(&first.values(key), &second.values(key))
                {
                    ratios.insert(*key, ratio);
                }
            }
        }
        CaseReport {
            title: case.title.clone(),
            unit: unit(&case.spec.work),
            work: case.spec.work.clone(),
            pace: case.spec.pace,
            connections: case.spec.connections,
            sides,
            ratios,
            rejected: case.rejected,
        }
    }

    /// Runs that were kept although something disturbed them.
    pub fn disturbed(&self) -> usize {
        self.sides.iter().flat_map(|side| &side.runs).filter(|run| run.disturbed.is_some()).count()
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut header = vec![String::new()];
        header.extend(self.sides.iter().map(|side| format!("{} [min .. max]", side.name)));
        if self.sides.len() == 2 {
            let coverage = self.ratios.values().map(|ratio| ratio.coverage).fold(1.0, f64::min);
            header.push(format!("ratio [{:.0} % interval]", coverage * 100.0));
        }
        let mut rows = Vec::new();
        for (key, name) in METRICS {
            let name = if *key == "rate" { self.unit } else { name };
            let mut row = vec![name.to_string()];
            for side in &self.sides {
                row.push(side.summary.get(key).map_or("-".into(), show_summary));
            }
            if row.iter().skip(1).all(|cell| cell == "-") {
                continue;
            }
            if self.sides.len() == 2 {
                row.push(self.ratios.get(key).map_or("-".into(), show_interval));
            }
            rows.push(row);
        }
        rows.push(self.row_of_parts());
        format!("{}\n{}{}", self.title, format_table(&header, &rows), self.remarks())
    }

    fn row_of_parts(&self) -> Vec<String> {
        let mut row = vec!["  by part, us each".to_string()];
        for side in &self.sides {
            let parts = side.parts_cpu_us.iter().map(|(name, us)| format!("{name} {}", show(*us)));
            row.push(parts.collect::<Vec<_>>().join(", "));
        }
        row
    }

    fn remarks(&self) -> String {
        let mut remarks = String::new();
        let runs =
            || self.sides.iter().flat_map(|side| side.runs.iter().map(move |run| (side.name, run)));
        let failed: u64 = runs().map(|(_, run)| run.failed).sum();
        if failed > 0 {
            let first =
                runs().find_map(|(side, run)| Some(format!("{side}: {}", run.errors.first()?)));
            remarks +=
                &format!("  ! {failed} requests failed, first {}\n", first.unwrap_or_default());
        }
        let backlog = runs().map(|(_, run)| run.backlog).max().unwrap_or(0);
        if backlog > 0 {
            remarks += &format!(
                "  ! up to {backlog} requests were due and not begun at the end: over capacity\n"
            );
        }
        if self.rejected + self.disturbed() > 0 {
            remarks += &format!(
                "  ! {} disturbed runs repeated, {} kept disturbed\n",
                self.rejected,
                self.disturbed()
            );
        }
        remarks
    }
}

impl SideReport {
    fn new(name: &'static str, work: &Work, runs: &[Run], cores: &[usize]) -> SideReport {
        let mut all = Latencies::new();
        runs.iter().for_each(|run| all.add(&run.outcome.histogram()));
        let reports: Vec<RunReport> =
            runs.iter().map(|run| RunReport::new(work, run, cores)).collect();
        let values = |key: &str| -> Vec<f64> {
            reports.iter().filter_map(|run| run.metrics.get(key).copied()).collect()
        };
        let summary =
            METRICS.iter().filter_map(|(key, _)| Some((*key, statistics::summary(&values(key))?)));
        let mut parts_cpu_us = BTreeMap::new();
        for (index, part) in
            runs.first().map(|run| &run.parts[..]).unwrap_or_default().iter().enumerate()
        {
            let us = |run: &Run| {
                run.used.parts.get(index).map(|part| part.total_s() * 1e6 / run.units().max(1.0))
            };
            let values: Vec<f64> = runs.iter().filter_map(us).collect();
            parts_cpu_us.insert(part.clone(), statistics::median(&values).unwrap_or(0.0));
        }
        SideReport {
            name,
            summary: summary.collect(),
            latency: all.percentiles(),
            parts_cpu_us,
            runs: reports,
        }
    }

    /// A metric by round; rounds without it count as not measured.
    fn values(&self, key: &str) -> Vec<f64> {
        self.runs.iter().map(|run| run.metrics.get(key).copied().unwrap_or(f64::NAN)).collect()
    }
}

impl RunReport {
    fn new(work: &Work, run: &Run, cores: &[usize]) -> RunReport {
        let seconds = run.outcome.seconds;
        let parts = run.parts.iter().cloned().zip(run.used.parts.iter().map(|used| used.total_s()));
        let busy =
            run.used.cores.iter().map(|(core, time)| (*core, time.busy_s() / seconds.max(1e-3)));
        RunReport {
            metrics: metrics(work, run, cores),
            latency: run.outcome.histogram().percentiles(),
            parts_cpu_s: parts.collect(),
            cores_busy: busy.collect(),
            seconds,
            completed: run.outcome.completed,
            failed: run.outcome.failed,
            errors: run.outcome.errors.clone(),
            backlog: run.outcome.backlog,
            congestion: run.outcome.congestion.clone(),
            disturbed: run.disturbed.clone(),
        }
    }
}

impl Report {
    /// Empty, for these options.
    pub fn new(options: &Options, topology: Vec<Core>, noise: Noise) -> Report {
        Report {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION"),
            options: options.clone(),
            machine: Facts::read(),
            topology,
            cores: Vec::new(),
            noise,
            interval_method: INTERVAL_METHOD,
            notes: Vec::new(),
            costs: None,
            cases: Vec::new(),
            tables: Vec::new(),
        }
    }

    /// The lines over the tables.
    pub fn head(&self) -> String {
        let machine = &self.machine;
        let place = if machine.virtual_machine { "virtual machine" } else { "real machine" };
        let mut text = format!(
            "machine: {}, cores {}, {place}, Linux {}, idle: {} [{}]{}\n",
            machine.processor,
            machine.cores,
            machine.kernel,
            machine.idle,
            machine.idle_states.join(", "),
            if self.options.tuned { ", idle states off (--tuned)" } else { "" },
        );
        text += &format!(
            "noise: others {:.1} % of a core, steal {:.1} %, equal work p90/median {:.2}, slowest/fastest {:.2}\n",
            self.noise.others_share * 100.0,
            self.noise.steal_share * 100.0,
            self.noise.spin_p90,
            self.noise.spin_slowest,
        );
        if let Some(warning) = self.noise.warning() {
            text += &format!("  ! {warning}: figures of such a machine only illustrate\n");
        }
        text
    }

    /// What to know when reading it, and where everything ran.
    pub fn foot(&self) -> String {
        let mut text = String::new();
        for NamedCores { name, cores } in &self.cores {
            text += &format!(
                "cores, {name}: client {:?}, its service {:?}, program {:?}, service {:?}; \
                 kernel's side: client {:?}, program {:?}; bench {:?}\n",
                cores.client,
                cores.client_service,
                cores.program,
                cores.service,
                cores.kernel_client(),
                cores.kernel_program(),
                cores.bench,
            );
        }
        for note in &self.notes {
            text += &format!("note: {note}\n");
        }
        text
    }

    /// Writes the JSON object.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        fs::write(path, text + "\n")
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    }
}

fn show_summary(summary: &Summary) -> String {
    format!("{} [{} .. {}]", show(summary.median), show(summary.min), show(summary.max))
}

fn show_interval(interval: &Interval) -> String {
    format!("{:.2} [{:.2} .. {:.2}]", interval.median, interval.low, interval.high)
}

/// A number with about three digits; thousands are set apart.
pub fn show(value: f64) -> String {
    let magnitude = value.abs();
    match magnitude {
        _ if magnitude >= 999.5 => {
            let digits = format!("{:.0}", magnitude);
            let mut text = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            if value < 0.0 { format!("-{text}") } else { text }
        }
        _ if magnitude >= 99.95 => format!("{value:.0}"),
        _ if magnitude >= 9.995 => format!("{value:.1}"),
        _ if magnitude >= 0.9995 || magnitude == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Columns as wide as their widest cell; all but the first to the right.
pub fn format_table(header: &[String], rows: &[Vec<String>]) -> String {
    let columns = header.len();
    let all = || std::iter::once(header).chain(rows.iter().map(Vec::as_slice));
    let width = |column: usize| {
        all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in all() {
        let cells =
            row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
        text += &format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests;
