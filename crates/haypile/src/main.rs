//! The `haypile` command. Owns the way from the command line to a subcommand and from a result to
//! the exit status: 0 success, 1 failure, 2 wrong usage. Read `cli` for what there is.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

mod asking;
mod balance;
mod bench;
mod capture;
mod claim;
mod cli;
mod completions;
mod demo;
mod doctor;
mod guard;
mod join;
mod own_namespace;
mod place;
mod plan;
mod preload;
mod reach;
mod resolve;
mod run;
mod serve;
mod ss;
mod status;
mod steer;
mod table;
mod trace;

use cli::{Cli, Command};
use haypile_service::server_process;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(arguments) => demo::command(&arguments),
        Command::DemoServer(arguments) => demo::server_command(&arguments),
        Command::Guard(arguments) => guard::run(&arguments),
        Command::TryNamespace => own_namespace::run_trial(),
        Command::Run(arguments) => run::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Server => server_process::run(),
        Command::Ss(arguments) => ss::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Balance(arguments) => balance::run(&arguments),
        Command::Steer(arguments) => steer::run(&arguments),
        Command::Resolve(arguments) => resolve::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::BenchPart(arguments) => bench::run_part(&arguments),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::Join(arguments) => join::run(&arguments),
        Command::Capture(arguments) => capture::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Completions(arguments) => completions::completions(&arguments),
        Command::Man(arguments) => completions::man(&arguments),
    };
    match result {
        Ok(code) => table::end(code),
        Err(error) => {
            eprintln!("haypile: {error}");
            if error.is_usage() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
