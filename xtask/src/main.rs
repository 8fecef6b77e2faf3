//! The project's own tool: `cargo xtask check` is what a change must pass before it is tested, `cargo xtask test` is
//! the whole test run that README.md names and that `.ci/run` calls.
//! Read `check.rs` for the list of checks, `style.rs` for the rules that only a tool keeps.
#![forbid(unsafe_code)]

mod arrows;
mod check;
mod cost;
mod licences;
mod metadata;
mod steps;
mod style;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask <COMMAND>

Commands:
  check   format, clippy, arrows between crates, licences, documentation, style ratchet
  test    check, then every test: unit, property, model (loom), simulation, real programs
  cost    counts what each stage of the service costs and compares with docs/cost.md (--check, or nothing);
          `cost --write` writes the table anew
  style   the style ratchet alone; `style --update` lowers the ratchet to what the tree now is

Examples:
  cargo xtask check
  cargo xtask test";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["check"] => check::run(),
        ["test"] => check::run().and_then(|()| test::run()).and_then(|()| cost::check()),
        ["cost"] | ["cost", "--check"] => cost::check(),
        ["cost", "--write"] => cost::write(),
        ["style"] => style::run(),
        ["style", "--update"] => style::update(),
        ["help" | "--help" | "-h"] | [] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("xtask: unknown command '{}': see `cargo xtask help`", words.join(" "));
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
