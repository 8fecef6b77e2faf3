//! What the demo found out: checks and figures of both sides, as a table or as JSON. Filled by [`super::run`].

use super::Options;
use super::client::{Measured, Mode};
use super::content::Item;
use super::server::Kind;
use crate::table;
use serde_json::{Value, json};
use std::net::SocketAddr;

/// The figures of one load.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    rate: f64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
}

impl Figures {
    /// The figures of `measured`.
    pub fn of(measured: &Measured) -> Figures {
        Figures {
            rate: measured.rate(),
            p50_us: measured.percentile_us(50.0),
            p90_us: measured.percentile_us(90.0),
            p99_us: measured.percentile_us(99.0),
        }
    }
}

/// Everything the demo has to say.
pub struct Report {
    kind: Kind,
    clients: usize,
    requests: usize,
    /// One line for every file that was checked.
    pub checks: Vec<String>,
    wrong: Vec<String>,
    rows: Vec<(&'static str, Mode, Figures)>,
}

/// Median, lowest and highest of `values`.
fn spread(mut values: Vec<f64>) -> Option<(f64, f64, f64)> {
    values.sort_by(f64::total_cmp);
    let (first, last) = (*values.first()?, *values.last()?);
    Some((values[values.len() / 2], first, last))
}

impl Report {
    /// An empty report.
    pub fn new(kind: Kind, options: &Options) -> Report {
        Report {
            kind,
            clients: options.clients,
            requests: options.requests,
            checks: Vec::new(),
            wrong: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Adds the result of one file.
    pub fn check(
        &mut self,
        side: &str,
        by: &str,
        address: SocketAddr,
        item: Item,
        result: Result<(), String>,
    ) {
        let what = format!("{side}: {} ({} bytes) from {address} by {by}", item.name, item.bytes);
        match result {
            Ok(()) => self.checks.push(format!("{what}: right")),
            Err(error) => {
                self.checks.push(format!("{what}: WRONG: {error}"));
                self.wrong.push(format!("{what}: {error}"));
            }
        }
    }

    /// Adds the figures of one load.
    pub fn figures(&mut self, side: &'static str, mode: Mode, figures: Figures, wrong: &[String]) {
        self.rows.push((side, mode, figures));
        self.wrong.extend(wrong.iter().map(|error| format!("{side}: {error}")));
    }

    /// True when every answer was right.
    pub fn all_right(&self) -> bool {
        self.wrong.is_empty()
    }

    fn values(&self, side: &str, mode: Mode, of: fn(&Figures) -> f64) -> Option<(f64, f64, f64)> {
        let rows = self.rows.iter().filter(|(name, kind, _)| *name == side && *kind == mode);
        spread(rows.map(|(_, _, figures)| of(figures)).collect())
    }

    /// Prints the table.
    pub fn print_table(&self) {
        table::say(&format!(
            "\n{} | {} clients on kernel sockets, {} requests of 512 bytes a run; median (lowest-highest)",
            self.kind.name(),
            self.clients,
            self.requests
        ));
        table::say(&format!(
            "{:<34}{:>28}{:>28}{:>8}",
            "", "Haypile on TAP", "Linux on veth", "ratio"
        ));
        for (mode, name, of) in LINES {
            let (ours, linux) = (self.values("Haypile", mode, of), self.values("Linux", mode, of));
            let (Some(ours), Some(linux)) = (ours, linux) else { continue };
            let shown = |v: (f64, f64, f64)| format!("{:.0} ({:.0}-{:.0})", v.0, v.1, v.2);
            table::say(&format!(
                "{name:<34}{:>28}{:>28}{:>8.2}",
                shown(ours),
                shown(linux),
                ours.0 / linux.0
            ));
        }
        for error in &self.wrong {
            table::say(&format!("WRONG: {error}"));
        }
        let verdict = if self.all_right() { "all answers were right" } else { "FAILED" };
        table::say(verdict);
    }

    /// Prints one JSON object.
    pub fn print_json(&self) {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(side, mode, figures)| {
                json!({
                    "side": side,
                    "mode": if *mode == Mode::Short { "short" } else { "keep-alive" },
                    "requests_per_second": figures.rate,
                    "latency_p50_us": figures.p50_us,
                    "latency_p90_us": figures.p90_us,
                    "latency_p99_us": figures.p99_us,
                })
            })
            .collect();
        let report = json!({
            "server": self.kind.name(),
            "clients": self.clients,
            "requests_per_run": self.requests,
            "checks": self.checks,
            "wrong": self.wrong,
            "runs": rows,
            "all_right": self.all_right(),
        });
        table::say(&report.to_string());
    }
}

type Line = (Mode, &'static str, fn(&Figures) -> f64);

const LINES: [Line; 8] = [
    (Mode::Short, "short connections/s", |f| f.rate),
    (Mode::Short, "  latency p50, us", |f| f.p50_us as f64),
    (Mode::Short, "  latency p90, us", |f| f.p90_us as f64),
    (Mode::Short, "  latency p99, us", |f| f.p99_us as f64),
    (Mode::KeepAlive, "keep-alive requests/s", |f| f.rate),
    (Mode::KeepAlive, "  latency p50, us", |f| f.p50_us as f64),
    (Mode::KeepAlive, "  latency p90, us", |f| f.p90_us as f64),
    (Mode::KeepAlive, "  latency p99, us", |f| f.p99_us as f64),
];

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn the_middle_and_the_ends() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(spread(vec![5.0]), Some((5.0, 5.0, 5.0)));
        assert_eq!(spread(Vec::new()), None);
    }
}
