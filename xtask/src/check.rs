//! `cargo xtask check`: everything that can be said of the tree without running it.

use crate::{arrows, licences, steps, style};

/// Runs every check, stops at the first that fails.
///
/// # Errors
/// What failed and how to repeat it.
pub fn run() -> Result<(), String> {
    steps::run("format", "cargo", &["fmt", "--all", "--check"], &[])?;
    inner("arrows", arrows::run)?;
    inner("licences", licences::run)?;
    inner("style", style::run)?;
    steps::run(
        "clippy",
        "cargo",
        &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
        &[],
    )?;
    steps::run(
        "documentation",
        "cargo",
        &["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"],
        &[("RUSTDOCFLAGS", "-D warnings")],
    )
}

fn inner(name: &str, check: fn() -> Result<(), String>) -> Result<(), String> {
    println!("== {name}");
    check().map_err(|message| format!("{name}:\n{message}"))?;
    println!("== {name}: ok");
    Ok(())
}
