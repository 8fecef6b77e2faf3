//! What the user may choose. Filled by the command line of `haypile`; read everywhere.

use std::path::PathBuf;

use serde::Serialize;

use crate::cores::Placement;

/// The experiments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Experiment {
    /// Short HTTP connections and keep-alive requests.
    Http,
    /// One request at a time; and the first request after quiet.
    Latency,
    /// Bulk transfer, both directions, one stream and several.
    Goodput,
    /// Small messages that come back, over kept connections.
    Echo,
    /// Messages through shared memory: the paper's Table 2.
    Messages,
    /// What an idle service costs.
    Idle,
    /// The load generator against a responder of known service time.
    Generator,
    /// The balancing schemes: the paper's figures 7 and 8.
    Schemes,
    /// How well connections follow the speed of workers: figures 5, 6, 9 and 10.
    Balance,
    /// Connections and requests a second by number of servers: figure 4 and Table 3.
    Accept,
    /// Plans of servers: figure 11, Tables 4 and 5.
    Configs,
    /// Misses of caches by their size: figure 12.
    Cache,
}

/// Half of an experiment that is measured and simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Only {
    /// What is simulated.
    Simulated,
    /// What is measured.
    Real,
}

/// How Haypile's side is joined to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// The client is on the kernel, the server on Haypile over a TAP interface.
    Tap,
    /// The client is on one service, the server on another, joined in memory.
    Wire,
}

/// What makes the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientKind {
    /// A program over sockets.
    Sockets,
    /// A stack of the generator's own, straight on a link: it costs the same against both sides.
    Engine,
}

/// The server program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerKind {
    /// nginx.
    Nginx,
    /// The built-in responder.
    Builtin,
}

/// All choices of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Options {
    /// What to measure.
    pub experiment: Experiment,
    /// Measure the kernel's stack as well, in turn.
    pub against_linux: bool,
    /// How Haypile's side is joined.
    pub link: LinkKind,
    /// What makes the load.
    pub client: ClientKind,
    /// Rounds; each measures every side once.
    pub repeat: usize,
    /// Seconds that each measurement counts.
    pub duration_s: f64,
    /// Seconds before it.
    pub warmup_s: f64,
    /// Keep idle states off for both sides.
    pub tuned: bool,
    /// The server; chosen by experiment if not given.
    pub server: Option<ServerKind>,
    /// Numbers of connections to measure with; chosen by experiment if empty.
    pub connections: Vec<usize>,
    /// Open loop at this many requests a second.
    pub rate: Option<f64>,
    /// Bytes of a body or message; chosen by experiment if not given.
    pub size: Option<usize>,
    /// Congestion control of the kernel's side.
    pub congestion: String,
    /// Where services run in relation to programs.
    pub placement: Placement,
    /// Cores, over those chosen.
    pub cores: Option<String>,
    /// How often a disturbed measurement is repeated.
    pub retries: usize,
    /// Where wires meet.
    pub wires: Option<PathBuf>,
    /// Where the JSON report goes.
    pub json: Option<PathBuf>,
    /// The folder that plots go to.
    pub plots: Option<PathBuf>,
    /// Little of everything, to see that it works.
    pub quick: bool,
    /// Half of it alone.
    pub only: Option<Only>,
    /// Costs of the simulation instead of those of the tree.
    pub costs: Option<PathBuf>,
    /// Where the randomness of simulations begins.
    pub seed: Option<u64>,
    /// Plans of servers; chosen by experiment if empty.
    pub plans: Vec<String>,
}
