//! The measuring frame: both sides in turn (A B, B A, A B ...), each run checked for disturbance
//! and repeated if it was, and what comes out of it by case. Called by `experiments`; the report is
//! `report`'s.

use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::load::{Outcome, Spec, Work};
use crate::parts::{self, Part};
use crate::processor_time::{Reading, Use, Used};
use crate::server_times::ServerTimes;
use crate::stage::Stage;

/// Others may use this share of one core during a run, and no more.
pub const OTHERS_MAX: f64 = 0.10;
/// The hypervisor may take this share of one core during a run, and no more.
pub const STEAL_MAX: f64 = 0.05;
/// What a load may take beyond warm-up and window.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// Which sides run first in a round: they take turns, so that a drift favours nobody.
pub fn order(round: usize, sides: usize) -> Vec<usize> {
    let forward = 0..sides;
    if round.is_multiple_of(2) { forward.collect() } else { forward.rev().collect() }
}

/// One run of one side.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// What the load generator saw.
    pub outcome: Outcome,
    /// Who used the processor; parts in the order of [`Run::parts`].
    pub used: Use,
    /// Names of the parts, the client first.
    pub parts: Vec<String>,
    /// Why it does not count for much.
    pub disturbed: Option<String>,
    /// What the servers say of their time in the window, where the side has any that are asked.
    pub servers: Option<ServerTimes>,
}

impl Run {
    /// What counts: completed requests, or 64 KiB pieces of bulk work.
    pub fn units(&self) -> f64 {
        if self.outcome.completed > 0 {
            self.outcome.completed as f64
        } else {
            self.outcome.bytes as f64 / 65_536.0
        }
    }

    /// Processor time of all parts.
    pub fn parts_s(&self) -> f64 {
        self.used.parts.iter().map(Used::total_s).sum()
    }
}

/// Why a run was disturbed, if it was.
pub fn disturbance(used: &Use, seconds: f64) -> Option<String> {
    let (others, steal) = (used.others_s / seconds, used.steal_s / seconds);
    if others > OTHERS_MAX {
        return Some(format!("other processes used {:.0} % of a core", others * 100.0));
    }
    (steal > STEAL_MAX).then(|| format!("the hypervisor took {:.0} % of a core", steal * 100.0))
}

/// All runs of one case.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What is measured, for people.
    pub title: String,
    /// The load; the target is the first side's.
    pub spec: Spec,
    /// The sides' names.
    pub sides: Vec<&'static str>,
    /// By side, the runs in order of rounds.
    pub runs: Vec<Vec<Run>>,
    /// Runs that were thrown away because something disturbed them.
    pub rejected: usize,
}

/// How often to measure.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// Rounds; each measures every side once.
    pub repeat: usize,
    /// Repetitions of a disturbed run.
    pub retries: usize,
}

/// Measures a case.
///
/// # Errors
/// When a side does not work, in one line.
pub fn measure(
    stage: &mut Stage,
    title: &str,
    spec: &Spec,
    rounds: Rounds,
) -> Result<Case, String> {
    let mut case = Case::new(stage, title, spec);
    for round in 0..rounds.repeat {
        case.measure_round(stage, round, rounds)?;
    }
    Ok(case)
}

impl Case {
    /// A case that has not been measured.
    pub fn new(stage: &mut Stage, title: &str, spec: &Spec) -> Case {
        let sides: Vec<&'static str> = stage.sides().iter().map(|side| side.name).collect();
        let runs = vec![Vec::new(); sides.len()];
        Case { title: title.to_string(), spec: spec.clone(), sides, runs, rejected: 0 }
    }

    /// Measures each side once.
    ///
    /// # Errors
    /// When a side does not work, in one line.
    pub fn measure_round(
        &mut self,
        stage: &mut Stage,
        round: usize,
        rounds: Rounds,
    ) -> Result<(), String> {
        for side in order(round, self.sides.len()) {
            let (title, name) = (&self.title, self.sides[side]);
            eprintln!("{title}: round {} of {}, {name}", round + 1, rounds.repeat);
            let mut run = run_once(stage, side, &self.spec)?;
            for _ in 0..rounds.retries {
                let Some(why) = &run.disturbed else { break };
                eprintln!("  disturbed: {why}; again");
                self.rejected += 1;
                run = run_once(stage, side, &self.spec)?;
            }
            self.runs[side].push(run);
        }
        Ok(())
    }
}

/// Runs the load once against one side.
fn run_once(stage: &mut Stage, index: usize, spec: &Spec) -> Result<Run, String> {
    let (side, launcher) = stage.side_and_launcher(index);
    let spec = Spec { target: side.target, ..spec.clone() };
    let part = Part::Load { spec: spec.clone(), over: side.over.clone() };
    let words = side.client_words(launcher.program(), part.words(launcher.program()));
    let mut load = launcher.start("load", &side.client, &words, true)?;
    let limit = LOAD_LIMIT + Duration::from_secs_f64(spec.warmup_s + spec.duration_s);
    let (program, control) = (launcher.program().to_path_buf(), side.control.clone());
    let mut times = Vec::new();
    let watched = watch(&mut load, limit, |edge| {
        if let Some(control) = &control {
            times.push(ServerTimes::ask(&program, control)?);
        }
        if edge == Edge::Begin { stage.start_delays() } else { Ok(()) }
    });
    let (side, _) = stage.side_and_launcher(index);
    side.assert_alive()?;
    let servers = match times[..] {
        [before, after] => Some(after.since(&before)),
        _ => None,
    };
    let Watched { outcome, before, after } = match watched {
        Ok(watched) => watched,
        Err(why) => return Err(format!("the {} side: {why}; {}", side.name, load.last_words())),
    };
    let mut roots = vec![load.pid()];
    roots.extend(side.part_pids());
    let used = after.since(&before, &roots, std::process::id());
    let mut parts = vec!["client".to_string()];
    parts.extend(side.part_names().into_iter().map(str::to_string));
    let disturbed = disturbance(&used, outcome.seconds.max(1e-3));
    Ok(Run { outcome, used, parts, disturbed, servers })
}

/// An end of the counted window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    Begin,
    End,
}

struct Watched {
    outcome: Outcome,
    before: Reading,
    after: Reading,
}

/// Reads what the load generator says, and the processor's times at both ends of its window.
fn watch(
    load: &mut crate::process::Process,
    limit: Duration,
    mut at_edge: impl FnMut(Edge) -> Result<(), String>,
) -> Result<Watched, String> {
    let output = load.output().ok_or("it has no output")?;
    let (tell, told) = mpsc::channel();
    // Ends with the load generator, which ends when it is dropped.
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    let started = Instant::now();
    let (mut before, mut after) = (None, None);
    loop {
        let left = limit.saturating_sub(started.elapsed());
        let line = told.recv_timeout(left).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => format!("no result within {limit:?}"),
            mpsc::RecvTimeoutError::Disconnected => "the load generator ended early".to_string(),
        })?;
        match line.as_str() {
            parts::BEGIN => {
                at_edge(Edge::Begin)?;
                before = Some(Reading::take());
            }
            parts::END => {
                after = Some(Reading::take());
                at_edge(Edge::End)?;
            }
            line => {
                let outcome = parts::parse_outcome(line)?;
                let (before, after) = before.zip(after).ok_or("a result without its window")?;
                return Ok(Watched { outcome, before, after });
            }
        }
    }
}

/// What the completed units of a kind of work are called.
pub fn unit(work: &Work) -> &'static str {
    match work {
        Work::Short => "connections/s",
        Work::KeepAlive => "requests/s",
        Work::Echo(_) => "messages/s",
        Work::Upload | Work::Download => "Gb/s",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_take_turns_in_being_first() {
        assert_eq!([order(0, 2), order(1, 2), order(2, 2)], [vec![0, 1], vec![1, 0], vec![0, 1]]);
        assert_eq!(order(3, 1), [0]);
    }

    #[test]
    fn only_the_disturbed_are_rejected() {
        let used = |others_s, steal_s| Use { others_s, steal_s, ..Use::default() };
        assert_eq!(disturbance(&used(0.19, 0.0), 2.0), None);
        assert!(disturbance(&used(0.21, 0.0), 2.0).is_some_and(|why| why.contains("processes")));
        assert!(disturbance(&used(0.0, 0.11), 2.0).is_some_and(|why| why.contains("hypervisor")));
    }
}
