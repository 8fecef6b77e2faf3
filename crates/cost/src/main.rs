//! `haypile-cost`: runs one scenario of the trace, for `cargo xtask cost`. `count` is to be run under
//! callgrind, which looks for [`busy_turn`] by its name; `time` reads the clock.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::process::ExitCode;

use haypile_cost::clock::{self, PARTS};
use haypile_cost::trace::{Scenario, Trace};
use haypile_engine::Instant;
use haypile_link::wire::Wire;
use haypile_service::server::{Server, Work};
use haypile_shm::sys::{self, Errno};

const HELP: &str = "\
Usage: haypile-cost list
       haypile-cost count SCENARIO OPERATIONS
       haypile-cost time SCENARIO OPERATIONS REPETITIONS
       haypile-cost where

Runs one scenario of the fixed trace behind docs/cost.md; `cargo xtask cost` calls it.

Example:
  valgrind --tool=callgrind --toggle-collect='*busy_turn*' haypile-cost count keep-alive 1000";

fn main() -> ExitCode {
    if let Err(errno) = stay_on_one_core() {
        eprintln!("haypile-cost: cannot stay on one core: {}", std::io::Error::from(errno));
        return ExitCode::FAILURE;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["list"] => {
            Scenario::ALL.iter().for_each(|scenario| println!("{}", scenario.name()));
            Some(())
        }
        ["where"] => {
            // For those who follow a trace of addresses: where a counted turn begins.
            println!("{}", busy_turn as *const () as usize);
            Some(())
        }
        ["count", name, operations] => count(name, operations),
        ["time", name, operations, repetitions] => time(name, operations, repetitions),
        _ => None,
    };
    match done {
        Some(()) => ExitCode::SUCCESS,
        None => {
            eprintln!("{HELP}");
            ExitCode::from(2)
        }
    }
}

/// Large payloads are copied in another way when the application was last seen on another core than the
/// server, which here means that this thread has moved.
fn stay_on_one_core() -> Result<(), Errno> {
    sys::current_core().map_or(Ok(()), |core| sys::set_affinity(&[core as usize]))
}

/// A turn that has something to do: what is counted.
#[inline(never)]
fn busy_turn(server: &mut Server<Wire>, now: Instant) -> Work {
    black_box(server.step(now).expect("the link holds"))
}

/// Says how many operations and frames there were, and how many turns were not what was foretold.
fn count(name: &str, operations: &str) -> Option<()> {
    let mut trace = Trace::start(Scenario::by_name(name)?);
    let operations: usize = operations.parse().ok()?;
    trace.world.driver = Box::new(|server, now, busy| match busy {
        true => busy_turn(server, now),
        false => server.step(now).expect("the link holds"),
    });
    let before = trace.frames();
    let done = trace.run(operations);
    let [received, sent] = trace.frames();
    println!(
        "{{\"operations\": {done}, \"received\": {}, \"sent\": {}, \"misjudged\": {}}}",
        received - before[0],
        sent - before[1],
        trace.world.misjudged
    );
    Some(())
}

/// Says the median time of each part for one operation, in nanoseconds.
fn time(name: &str, operations: &str, repetitions: &str) -> Option<()> {
    let scenario = Scenario::by_name(name)?;
    let (operations, repetitions): (usize, usize) =
        (operations.parse().ok()?, repetitions.parse().ok()?);
    let mut columns = vec![Vec::with_capacity(repetitions); PARTS.len() + 1];
    for _ in 0..repetitions {
        // The peer keeps every byte, so each repetition has a world of its own.
        let mut trace = Trace::start(scenario);
        let laps = clock::attach(&mut trace);
        let done = trace.run(operations) as f64;
        let sums = *laps.borrow();
        for (column, sum) in columns.iter_mut().zip(sums.iter().chain([&sums.iter().sum()])) {
            column.push(*sum as f64 / done);
        }
    }
    let names = PARTS.iter().map(|(_, name)| *name).chain(["turn"]);
    let medians: Vec<String> = names
        .zip(&mut columns)
        .map(|(name, column)| {
            column.sort_by(f64::total_cmp);
            let median = column.get(column.len() / 2).copied().unwrap_or_default();
            format!("\"{name}\": {median:.1}")
        })
        .collect();
    println!("{{{}}}", medians.join(", "));
    Some(())
}
