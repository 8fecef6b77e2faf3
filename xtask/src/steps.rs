//! Runs one named step, an outside command, and says how it went. Used by `check` and `test`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// The root of the checkout.
pub fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}

/// Runs `program arguments` in the root with the extra `environment`; its output goes to the terminal.
///
/// # Errors
/// The step's name and what to run by hand when the command fails or cannot be started.
pub fn run(
    name: &str,
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<(), String> {
    let started = Instant::now();
    println!("== {name}");
    let status = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root())
        .status()
        .map_err(|error| format!("{name}: cannot start {program}: {error}"))?;
    if !status.success() {
        let shown: Vec<String> =
            environment.iter().map(|(key, value)| format!("{key}='{value}'")).collect();
        return Err(format!(
            "{name} failed ({status}); to repeat it: {} {program} {}",
            shown.join(" "),
            arguments.join(" ")
        ));
    }
    println!("== {name}: ok ({:.1} s)", started.elapsed().as_secs_f64());
    Ok(())
}
