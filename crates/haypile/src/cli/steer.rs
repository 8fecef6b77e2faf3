//! What `haypile steer` is told on the command line. Part of `cli`; acted on by `steer`.

use std::net::SocketAddr;

use clap::{Args, Subcommand};

use super::ControlArgs;

/// `haypile steer`.
#[derive(Debug, Args)]
pub struct SteerArgs {
    /// The service to ask.
    #[command(flatten)]
    pub control: ControlArgs,
    /// One JSON object instead of the table
    #[arg(long)]
    pub json: bool,
    /// What to do beside looking.
    #[command(subcommand)]
    pub action: Option<SteerAction>,
}

/// What `haypile steer` can do beside looking.
#[derive(Debug, Subcommand)]
pub enum SteerAction {
    /// Move a bucket, or several, to another transport server
    #[command(after_help = "Examples:
  haypile steer move 1234 1
  haypile steer move --all-of 1 0 --patience-ms 30000
  haypile steer move --connection '[fd00:9::2]:80-[fd00:9::1]:40000' 1 --json

A bucket cannot leave while a program is in the middle of a copy from or to one of its connections, while
its last move is not known to all servers, or while the other server does not run: it is tried again until
it can, or patience is over. The exit status is 0 only if everything moved.")]
    Move(SteerMoveArgs),
}

/// `haypile steer move`.
#[derive(Debug, Args)]
pub struct SteerMoveArgs {
    /// The bucket, unless an option says what to move, and the transport server that it goes to
    #[arg(value_name = "BUCKET TO", num_args = 1..=2, required = true)]
    pub numbers: Vec<u16>,
    /// Every bucket of this transport server
    #[arg(long, value_name = "SERVER", conflicts_with = "connection")]
    pub all_of: Option<u16>,
    /// The bucket of the connection with these two ends, ours first, as haypile ss shows them
    #[arg(long, value_name = "LOCAL-REMOTE", value_parser = parse_connection)]
    pub connection: Option<(SocketAddr, SocketAddr)>,
    /// How long to go on trying, in milliseconds
    #[arg(long, value_name = "N", default_value_t = 5000)]
    pub patience_ms: u64,
    /// The service to ask.
    #[command(flatten)]
    pub control: ControlArgs,
    /// One JSON object instead of sentences
    #[arg(long)]
    pub json: bool,
}

/// Both ends of a connection, as `haypile steer move` takes them.
fn parse_connection(text: &str) -> Result<(SocketAddr, SocketAddr), String> {
    let ends = text.split_once('-').and_then(|(local, remote)| {
        Some((local.trim().parse().ok()?, remote.trim().parse().ok()?))
    });
    ends.ok_or_else(|| {
        "two addresses with ports are wanted, such as 10.9.0.2:80-10.9.0.1:40000".into()
    })
}
