//! `haypile doctor`: what this machine allows, what is in the way, and what to do. Owns the list of
//! checks and their display; each check tries what it speaks of, in a network namespace of its own
//! where it would change anything. Called by `main`; the checks are in the files beside.

mod link;
mod machine;
mod measure;
mod programs;

use std::path::Path;
use std::process::ExitCode;

use haypile_service::error::Error;
use serde::Serialize;

use crate::cli::DoctorArgs;
use crate::{place, table};

/// How well a check went.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Good to know.
    Note,
    /// Works, but something is slower or missing.
    Limited,
    /// Haypile does not run.
    Broken,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Note => "note",
            Verdict::Limited => "LIMITED",
            Verdict::Broken => "BROKEN",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when nothing.
    pub remedy: String,
}

impl Check {
    /// A check that found something.
    pub fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Check {
        Check { name, verdict, found: found.into(), remedy: String::new() }
    }

    /// With advice.
    pub fn advise(mut self, remedy: impl Into<String>) -> Check {
        self.remedy = remedy.into();
        self
    }
}

#[derive(Serialize)]
struct Report<'a> {
    runs: bool,
    checks: &'a [Check],
}

/// Looks at everything and prints it. The exit status is 0 if Haypile runs here.
///
/// # Errors
/// When the control directory has an impossible name.
pub fn run(arguments: &DoctorArgs) -> Result<ExitCode, Error> {
    let given = place::given(&arguments.control)?;
    let directory = match given {
        Some(path) => Some(place::directory(Some(&path))?),
        None => place::default_directory().ok(),
    };
    let checks = examine(directory.as_deref());
    let runs = checks.iter().all(|check| check.verdict != Verdict::Broken);
    if arguments.json {
        table::print(&Report { runs, checks: &checks });
    } else {
        show(&checks, runs);
    }
    Ok(if runs { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine(directory: Option<&Path>) -> Vec<Check> {
    let mut checks = machine::checks();
    checks.extend(link::checks());
    checks.extend(programs::checks(directory));
    checks.extend(measure::checks());
    checks
}

fn show(checks: &[Check], runs: bool) {
    let rows: Vec<Vec<String>> = checks
        .iter()
        .map(|check| vec![check.verdict.text().to_string(), check.name.into(), check.found.clone()])
        .collect();
    table::show(&["Verdict", "Check", "Found"], &rows, &[]);
    let advice = checks.iter().filter(|check| !check.remedy.is_empty());
    for (index, check) in advice.enumerate() {
        if index == 0 {
            table::say("");
        }
        table::say(&format!("{}: {}", check.name, check.remedy));
    }
    table::say("");
    table::say(if runs {
        "Haypile runs here; try haypile demo, or haypile run -- CMD"
    } else {
        "Haypile does not run here until what is marked BROKEN is mended"
    });
}

/// A small file of /proc or /sys as trimmed text.
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_string())
}
