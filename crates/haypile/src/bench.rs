//! `haypile bench`: its command line, and the way to the crate that measures. Called by `main`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use haypile_bench::cores::Placement;
use haypile_bench::options::{ClientKind, Experiment, LinkKind, Only, Options, ServerKind};
use haypile_bench::{experiments, parts};
use haypile_service::error::Error;

use crate::place;

/// `haypile bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure
    pub experiment: ExperimentName,
    /// What to measure beside it, in turn
    #[arg(long, value_enum, default_value_t = Against::Linux)]
    pub against: Against,
    /// How Haypile's side is joined: tap (client on the kernel) or wire (Haypile on both ends)
    #[arg(long, value_enum, default_value_t = LinkName::Tap)]
    pub link: LinkName,
    /// What makes the load: a program over sockets, or a stack of its own straight on the link
    #[arg(long, value_enum, default_value_t = ClientName::Program)]
    pub client: ClientName,
    /// Rounds; each measures every side once. Six or more for a 95 % interval
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub repeat: usize,
    /// Seconds that each measurement counts
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    pub duration: f64,
    /// Seconds of load before each measurement
    #[arg(long, value_name = "S", default_value_t = 0.5)]
    pub warmup: f64,
    /// Keep the cores out of their idle states, for both sides
    #[arg(long)]
    pub tuned: bool,
    /// Connections at a time, several cases apart by commas [default: 64; goodput 1,4; latency 1]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub connections: Vec<usize>,
    /// Open loop at this many requests a second instead of a closed loop
    #[arg(long, value_name = "N")]
    pub rate: Option<f64>,
    /// Bytes of a body or message [default: 128 and 64]
    #[arg(long, value_name = "BYTES")]
    pub size: Option<usize>,
    /// The server program [default: nginx for http if installed, else builtin]
    #[arg(long, value_enum)]
    pub server: Option<ServerName>,
    /// Congestion control of the kernel's side; Haypile's is cubic
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    pub congestion: String,
    /// Where the service runs: on the program's core (shared), on its own (own), all on one (one)
    #[arg(long, value_enum, default_value_t = PlacementName::Shared)]
    pub placement: PlacementName,
    /// Cores by part, over those chosen: client=1,program=2,service=3,client-service=0,bench=0
    #[arg(long, value_name = "PART=CORE,...")]
    pub cores: Option<String>,
    /// How often a run that others disturbed is repeated before it is kept and marked
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub retries: usize,
    /// Write everything to this file as one JSON object
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the experiment's figures as SVG files into this folder
    #[arg(long, value_name = "FOLDER")]
    pub plots: Option<PathBuf>,
    /// Little of everything, only to see that it works
    #[arg(long)]
    pub quick: bool,
    /// Only the half that is simulated, or only the half that is measured
    #[arg(long, value_enum)]
    pub only: Option<OnlyName>,
    /// Costs of the simulation, as in a report, instead of this version's own
    #[arg(long, value_name = "FILE")]
    pub costs: Option<PathBuf>,
    /// Seed of the simulation
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Plans of servers, several apart by commas [default: chosen by experiment and machine]
    #[arg(long, value_name = "PLAN,...", value_delimiter = ',')]
    pub plans: Vec<String>,
}

/// The experiments.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ExperimentName {
    /// Short HTTP connections and keep-alive requests
    Http,
    /// One request at a time; and the first request after quiet
    Latency,
    /// Bulk transfer in both directions
    Goodput,
    /// Small messages that come back, over kept connections
    Echo,
    /// Messages through shared memory between two cores, in cycles
    Messages,
    /// What an idle service costs
    Idle,
    /// The load generator itself, against a responder of known service time
    Generator,
    /// Balancing schemes: service times, messages and scaling simulated, uniform load measured (PIKA, figures 7 and 8)
    Schemes,
    /// Slow workers: simulated, and measured beside Linux (PIKA, figures 5, 6, 9 and 10)
    Balance,
    /// Connections and requests a second by number of servers (PIKA, figure 4 and Table 3)
    Accept,
    /// Plans: combined, split, subset (PIKA, figure 11, Tables 4 and 5)
    Configs,
    /// Cache misses of combined and split servers by size of cache (PIKA, figure 12)
    Cache,
}

/// Halves of an experiment.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OnlyName {
    /// In virtual time
    Simulated,
    /// On this machine
    Real,
}

/// The other side.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Against {
    /// The kernel's stack over veth
    Linux,
    /// Nothing: Haypile alone
    None,
}

/// Links.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LinkName {
    /// A TAP interface
    Tap,
    /// In memory
    Wire,
}

/// Clients.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ClientName {
    /// A program over sockets
    Program,
    /// A stack of its own on the link, which costs the same against both sides
    Engine,
}

/// Servers.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ServerName {
    /// nginx
    Nginx,
    /// The built-in responder
    Builtin,
}

/// Placements.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PlacementName {
    /// Program and service on one core, the client on another
    Shared,
    /// A core each
    Own,
    /// Everything on one core
    One,
}

/// A process of an experiment.
#[derive(Debug, Args)]
pub struct BenchPartArgs {
    /// What it is, as JSON
    pub part: String,
}

/// Runs an experiment.
///
/// # Errors
/// What the environment does not allow.
pub fn run(arguments: &BenchArgs) -> Result<ExitCode, Error> {
    let options = options(arguments)
        .map_err(|why| Error::new("bench", why, "haypile help bench has examples"))?;
    experiments::run(&options).map_err(|why| Error::new("bench", why, ""))?;
    Ok(ExitCode::SUCCESS)
}

/// Is a process of an experiment.
///
/// # Errors
/// What went wrong.
pub fn run_part(arguments: &BenchPartArgs) -> Result<ExitCode, Error> {
    parts::run(&arguments.part).map_err(|why| Error::new("bench", why, ""))
}

fn options(arguments: &BenchArgs) -> Result<Options, String> {
    let within =
        |name: &str, value: f64, least: f64, most: f64| match (least..=most).contains(&value) {
            true => Ok(value),
            false => Err(format!("--{name} {value}: from {least} to {most}")),
        };
    let counts = arguments.connections.iter();
    if let Some(wrong) = counts.into_iter().find(|count| !(1..=10_000).contains(*count)) {
        return Err(format!("--connections {wrong}: from 1 to 10000"));
    }
    let size =
        arguments.size.map(|size| within("size", size as f64, 1.0, 1_048_576.0)).transpose()?;
    Ok(Options {
        experiment: match arguments.experiment {
            ExperimentName::Http => Experiment::Http,
            ExperimentName::Latency => Experiment::Latency,
            ExperimentName::Goodput => Experiment::Goodput,
            ExperimentName::Echo => Experiment::Echo,
            ExperimentName::Messages => Experiment::Messages,
            ExperimentName::Idle => Experiment::Idle,
            ExperimentName::Generator => Experiment::Generator,
            ExperimentName::Schemes => Experiment::Schemes,
            ExperimentName::Balance => Experiment::Balance,
            ExperimentName::Accept => Experiment::Accept,
            ExperimentName::Configs => Experiment::Configs,
            ExperimentName::Cache => Experiment::Cache,
        },
        against_linux: matches!(arguments.against, Against::Linux),
        client: match arguments.client {
            ClientName::Program => ClientKind::Sockets,
            ClientName::Engine => ClientKind::Engine,
        },
        wires: place::wires(),
        link: match arguments.link {
            LinkName::Tap => LinkKind::Tap,
            LinkName::Wire => LinkKind::Wire,
        },
        repeat: within("repeat", arguments.repeat as f64, 1.0, 1000.0)? as usize,
        duration_s: within("duration", arguments.duration, 0.05, 600.0)?,
        warmup_s: within("warmup", arguments.warmup, 0.0, 60.0)?,
        tuned: arguments.tuned,
        server: arguments.server.map(|server| match server {
            ServerName::Nginx => ServerKind::Nginx,
            ServerName::Builtin => ServerKind::Builtin,
        }),
        connections: arguments.connections.clone(),
        rate: arguments.rate.map(|rate| within("rate", rate, 1.0, 1e8)).transpose()?,
        size: size.map(|size| size as usize),
        congestion: arguments.congestion.clone(),
        placement: match arguments.placement {
            PlacementName::Shared => Placement::Shared,
            PlacementName::Own => Placement::Own,
            PlacementName::One => Placement::One,
        },
        cores: arguments.cores.clone(),
        retries: arguments.retries.min(100),
        json: arguments.json.clone(),
        plots: arguments.plots.clone(),
        quick: arguments.quick,
        only: arguments.only.map(|only| match only {
            OnlyName::Simulated => Only::Simulated,
            OnlyName::Real => Only::Real,
        }),
        costs: arguments.costs.clone(),
        seed: arguments.seed,
        plans: arguments.plans.clone(),
    })
}
