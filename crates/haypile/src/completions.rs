//! `haypile completions` and `haypile man`: both made from the definitions in `cli`, so that they
//! cannot say anything else than `--help` does. Called by `main`.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use haypile_service::error::Error;

use crate::cli::{Cli, CompletionsArgs, ManArgs};
use crate::table;

const NAME: &str = "haypile";

/// Prints a completion script.
///
/// # Errors
/// None; a reader that has gone away ends the output quietly.
pub fn completions(arguments: &CompletionsArgs) -> Result<ExitCode, Error> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), NAME, &mut script);
    table::write(&script);
    Ok(ExitCode::SUCCESS)
}

/// Prints the manual page, or writes all pages.
///
/// # Errors
/// When a page cannot be written.
pub fn man(arguments: &ManArgs) -> Result<ExitCode, Error> {
    match &arguments.dir {
        Some(directory) => write_pages(directory)?,
        None => {
            table::write(&page(Cli::command()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn page(command: clap::Command) -> Vec<u8> {
    let mut page = Vec::new();
    // Writing to memory does not fail.
    drop(clap_mangen::Man::new(command).render(&mut page));
    page
}

fn write_pages(directory: &Path) -> Result<(), Error> {
    let fail = |path: &Path, error: std::io::Error| {
        Error::new(format_args!("write {}", path.display()), error, "choose another directory")
    };
    std::fs::create_dir_all(directory).map_err(|error| fail(directory, error))?;
    let mut all = Cli::command();
    all.build();
    let path = directory.join(format!("{NAME}.1"));
    std::fs::write(&path, page(all.clone())).map_err(|error| fail(&path, error))?;
    for command in all
        .get_subcommands()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help")
    {
        let name = format!("{NAME}-{}", command.get_name());
        let path = directory.join(format!("{name}.1"));
        std::fs::write(&path, page(command.clone())).map_err(|error| fail(&path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shown_command_has_a_page_with_its_examples() {
        let directory = tempfile::tempdir().expect("a directory");
        write_pages(directory.path()).expect("written");
        let page = |name: &str| std::fs::read_to_string(directory.path().join(name));
        assert!(page("haypile.1").expect("the main page").contains("haypile demo"));
        assert!(page("haypile-run.1").expect("of run").contains("redis"));
        assert!(page("haypile-guard.1").is_err(), "hidden commands have none");
    }

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }
}
