//! `cargo xtask cost`: what each stage of the service costs, counted by valgrind over one fixed trace (crates/cost),
//! compared with the checked-in table docs/cost.json, or written to it and to docs/cost.md. What is counted and how to
//! read it stands in docs/cost.md. Read `measure` for the runs, `table` for the files.

mod callgrind;
mod measure;
mod table;

use serde_json::Value;
use std::process::Command;

/// A row may grow by this part of itself before it fails.
const TOLERANCE: f64 = 0.02;
/// And by this many instructions, because small rows are rounded.
const TOLERANCE_LEAST: f64 = 8.0;

/// Counts and compares with the table.
///
/// # Errors
/// Every row that grew, with its old and new count, or why nothing could be counted.
pub fn check() -> Result<(), String> {
    if !is_there("valgrind") {
        println!("== cost: skipped, valgrind is not installed");
        return Ok(());
    }
    let old = table::load()?;
    let new = measure::count()?;
    let Verdict { grew, shrank } = compare(&old, &new);
    for line in &shrank {
        println!("{line}");
    }
    if !shrank.is_empty() {
        println!(
            "cost: cheaper than the table says: `cargo xtask cost --write` holds what was won"
        );
    }
    if grew.is_empty() {
        return Ok(());
    }
    let rows = grew.join("\n");
    let advice = "run `cargo xtask cost --write`, look at docs/cost.md, and say in the commit why it is worth it";
    let differs: Vec<&str> =
        table::TOOLS.iter().filter(|tool| old[**tool] != new[**tool]).copied().collect();
    if differs.is_empty() {
        return Err(format!("cost grew:\n{rows}\n{advice}"));
    }
    println!("{rows}");
    for tool in differs {
        println!("cost: {tool} was {} when the table was written and is {}", old[tool], new[tool]);
    }
    println!("cost: counts of different tools say nothing of the change: not held against it");
    Ok(())
}

/// Counts and times, and writes the table.
///
/// # Errors
/// Why it could not be measured or written.
pub fn write() -> Result<(), String> {
    if !is_there("valgrind") {
        return Err("cost: valgrind is not installed: apt-get install valgrind".into());
    }
    let mut new = measure::count()?;
    measure::time(&mut new)?;
    table::store(&new)
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[derive(Default)]
struct Verdict {
    grew: Vec<String>,
    shrank: Vec<String>,
}

/// Compares all rows of the service; what a peer or an application costs is shown, not held.
fn compare(old: &Value, new: &Value) -> Verdict {
    let mut verdict = Verdict::default();
    for (scenario, rows) in new["scenarios"].as_object().into_iter().flatten() {
        for (row, count) in rows["instructions"].as_object().into_iter().flatten() {
            let before = old["scenarios"][scenario]["instructions"][row].as_f64();
            let (before, after) = (before.unwrap_or(0.0), count.as_f64().unwrap_or(0.0));
            if table::OTHERS.contains(&row.as_str()) {
                continue;
            }
            let line = format!("{scenario}, {row}: {before} instructions, now {after}");
            let slack = (before * TOLERANCE).max(TOLERANCE_LEAST);
            if after == 0.0 && before > slack {
                verdict.grew.push(format!(
                    "{scenario}, {row}: not seen any more; #[inline(never)] shows its function"
                ));
            } else if after > before + slack {
                verdict.grew.push(line);
            } else if after < before - slack {
                verdict.shrank.push(line);
            }
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::compare;
    use serde_json::json;

    #[test]
    fn more_than_two_percent_is_told_both_ways() {
        let table = |turn: f64, peer: f64| {
            let counts = json!({"turn": turn, "peer": peer});
            json!({"scenarios": {"short": {"instructions": counts}}})
        };
        for (old, new, grew, shrank) in [
            (1000.0, 1020.0, 0, 0),
            (1000.0, 1021.0, 1, 0),
            (1000.0, 979.0, 0, 1),
            (10.0, 18.0, 0, 0),
            (10.0, 19.0, 1, 0),
            (10.0, 0.0, 1, 0),
        ] {
            let verdict = compare(&table(old, 5.0), &table(new, 500.0));
            assert_eq!((verdict.grew.len(), verdict.shrank.len()), (grew, shrank), "{old} {new}");
        }
        assert_eq!(compare(&json!({}), &table(70.0, 7.0)).grew.len(), 1);
    }
}
