//! The processes that an experiment is made of, each this binary again with one hidden word of
//! JSON: a program put in its place ([`Part::Exec`]), the load generator, the built-in responder, a
//! probe, and the keeper. Started by `process`.

use std::fs;
use std::io::{self, BufRead, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use haypile_link::netns::{self, Namespace};
use haypile_shm::sys;
use serde::{Deserialize, Serialize};

use crate::load::engine::{Engine, Link};
use crate::load::generator::{self, Window};
use crate::load::kernel::Sockets;
use crate::load::{Outcome, Pace, Spec};
use crate::{fleet, responder};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "bench-part";
/// The load generator says this when its counted window begins.
pub const BEGIN: &str = "begin";
/// The load generator says this when its counted window is over.
pub const END: &str = "end";
/// Share of the processor that the measured sessions get against others (`/proc/PID/autogroup`): sessions share it
/// equally otherwise, whatever `nice` says.
const AUTOGROUP_NICE: &str = "-5";
/// The longest that a server may take to answer for the first time.
const PROBE_LIMIT: Duration = Duration::from_secs(20);
/// What the keeper gives processes to end by themselves.
const KEEPER_PATIENCE: Duration = Duration::from_secs(5);
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// What carries a load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// Sockets of the system: the kernel's, or Haypile's under the preload library.
    Sockets,
    /// A stack of the generator's own, straight on a link.
    Engine {
        /// The link.
        link: Link,
        /// The generator's address on it.
        local: IpAddr,
    },
}

/// One part.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Goes to its place, then becomes a program.
    Exec {
        /// Path of the network namespace; stays where it is without one.
        namespace: Option<String>,
        /// Cores; all without any.
        cores: Vec<usize>,
        /// The program and its arguments.
        words: Vec<String>,
    },
    /// Makes a load, tells of its window and its outcome on standard output.
    Load {
        /// What load.
        spec: Spec,
        /// What carries it.
        over: Over,
    },
    /// The built-in server.
    Respond {
        /// Where to listen.
        address: SocketAddr,
        /// Threads.
        workers: usize,
        /// Service time of a request, microseconds.
        service_us: u64,
        /// Never sleep.
        polling: bool,
    },
    /// Worker processes that sleep instead of computing.
    Fleet(fleet::Fleet),
    /// One of them.
    Worker(fleet::Worker),
    /// Ends once a server answers such a load.
    Probe {
        /// The load.
        spec: Spec,
        /// What carries it.
        over: Over,
    },
    /// Outlives the experiment only to clean up after it.
    Keep(PathBuf),
}

impl Part {
    /// The words of the command line that start it.
    pub fn words(&self, program: &Path) -> Vec<String> {
        // Plain data always becomes JSON.
        let text = serde_json::to_string(self).unwrap_or_default();
        vec![program.display().to_string(), SUBCOMMAND.to_string(), text]
    }
}

/// Is one part.
///
/// # Errors
/// What went wrong, in one line.
pub fn run(text: &str) -> Result<ExitCode, String> {
    let part: Part =
        serde_json::from_str(text).map_err(|error| format!("{SUBCOMMAND}: {error}"))?;
    match part {
        Part::Exec { namespace, cores, words } => exec(namespace.as_deref(), &cores, &words),
        Part::Load { spec, over } => {
            let outcome = load(&spec, &over, &mut Lines)?;
            Lines::say(&serde_json::to_string(&outcome).map_err(|error| error.to_string())?);
            Ok(())
        }
        Part::Respond { address, workers, service_us, polling } => {
            let service = Duration::from_micros(service_us);
            let config = responder::Config { address, workers, service, polling };
            let ended = responder::serve(&config, |_| {});
            ended.map_err(|error| format!("cannot serve at {address}: {error}"))
        }
        Part::Fleet(fleet) => fleet::serve(&fleet),
        Part::Worker(worker) => fleet::work(&worker),
        Part::Probe { spec, over } => probe(&spec, &over),
        Part::Keep(folder) => {
            keep(&folder);
            Ok(())
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

fn exec(namespace: Option<&str>, cores: &[usize], words: &[String]) -> Result<(), String> {
    if let Some(path) = namespace {
        use std::os::fd::AsFd;
        let namespace = Namespace::open(path).map_err(|error| error.to_string())?;
        netns::enter(namespace.as_fd()).map_err(|error| error.to_string())?;
    }
    sys::setsid().map_err(|errno| format!("cannot start a session: {errno}"))?;
    // Without the right to it the run goes on; who disturbs it is measured anyway.
    drop(fs::write("/proc/self/autogroup", AUTOGROUP_NICE));
    if !cores.is_empty() {
        sys::set_affinity(cores)
            .map_err(|errno| format!("cannot run on cores {cores:?}: {errno}"))?;
    }
    let (program, arguments) = words.split_first().ok_or("no program")?;
    let error = Command::new(program).args(arguments).exec();
    Err(format!("cannot run {program}: {error}"))
}

/// Tells the starter by lines on standard output.
struct Lines;

impl Lines {
    fn say(line: &str) {
        let mut out = io::stdout();
        // A starter that is gone ends us by other means.
        drop(writeln!(out, "{line}").and_then(|()| out.flush()));
    }
}

impl Window for Lines {
    fn begins(&mut self) {
        Lines::say(BEGIN);
    }

    fn ends(&mut self) {
        Lines::say(END);
    }
}

fn load(spec: &Spec, over: &Over, window: &mut impl Window) -> Result<Outcome, String> {
    let outcome = match over {
        Over::Sockets => Sockets::new(spec.target, spec.connections, spec.polling)
            .map(|sockets| sockets.punctual(matches!(spec.pace, Pace::Open { .. })))
            .and_then(|mut sockets| generator::run(spec, &mut sockets, window)),
        Over::Engine { link, local } => {
            let mut engine = Engine::new(link, *local, spec.target, spec.connections)?;
            generator::run(spec, &mut engine, window)
        }
    };
    outcome.map_err(|error| format!("the load on {} failed: {error}", spec.target))
}

/// The outcome in the last line of a load generator.
///
/// # Errors
/// When it is none.
pub fn parse_outcome(line: &str) -> Result<Outcome, String> {
    serde_json::from_str(line).map_err(|error| format!("the load generator said '{line}': {error}"))
}

/// Makes the load until it is answered: a server may listen before it answers.
fn probe(spec: &Spec, over: &Over) -> Result<(), String> {
    let started = Instant::now();
    loop {
        match load(spec, over, &mut ()) {
            Ok(outcome) if outcome.completed > 0 => return Ok(()),
            Err(why) if started.elapsed() > PROBE_LIMIT => return Err(why),
            Ok(_) if started.elapsed() > PROBE_LIMIT => {
                return Err(format!("nobody answers at {}", spec.target));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Reads `group PID` and `gone PID` until the end of standard input, which comes with that of the
/// experiment, however it dies; then ends what is left and removes the folder.
fn keep(folder: &Path) {
    // Away from the terminal and its signals. Fails only for the leader of a group, which its starter did not make it.
    let _: Result<(), haypile_shm::Errno> = sys::setsid();
    let mut groups: Vec<u32> = Vec::new();
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match line.split_once(' ').map(|(word, pid)| (word, pid.parse::<u32>())) {
            Some(("group", Ok(pid))) => groups.push(pid),
            Some(("gone", Ok(pid))) => groups.retain(|group| *group != pid),
            _ => {}
        }
    }
    let alive = |group: &u32| sys::kill_group(*group, 0).is_ok();
    for (signal, patience) in [(SIGTERM, KEEPER_PATIENCE), (SIGKILL, Duration::from_secs(1))] {
        for group in &groups {
            let _: Result<(), haypile_shm::Errno> = sys::kill_group(*group, signal);
        }
        let asked = Instant::now();
        while groups.iter().any(alive) && asked.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    drop(fs::remove_dir_all(folder));
}
