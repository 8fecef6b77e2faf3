//! `cargo xtask test`: every test there is, cheapest first. Tests with real programs and interfaces run in network
//! namespaces that they make themselves; without the right to make one they say so and are skipped.

use crate::steps;

/// Runs all tests, stops at the first group that fails.
///
/// # Errors
/// What failed and how to repeat it.
pub fn run() -> Result<(), String> {
    steps::run(
        "build",
        "cargo",
        &["build", "--workspace", "--profile", "checks", "--locked"],
        &[],
    )?;
    steps::run(
        "unit, property, simulation, programs",
        "cargo",
        &["test", "--workspace", "--profile", "checks", "--locked"],
        &[],
    )?;
    steps::run(
        "models (loom)",
        "cargo",
        &["test", "--package", "haypile-shm", "--profile", "checks", "--lib", "--locked", "loom"],
        &[("RUSTFLAGS", "--cfg loom"), ("CARGO_TARGET_DIR", "target/loom")],
    )
}
