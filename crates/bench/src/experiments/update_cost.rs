//! What one update of a manager's list of other managers' applications costs here and now: the real
//! connection manager takes offers in a loop. Called by the experiments that multiply it.

use std::hint::black_box;
use std::time::Instant as Clock;

use haypile_engine::Instant;
use haypile_engine::control::messages::BetweenManagers;
use haypile_engine::control::names::ProcessName;

use crate::simulation::control::{Manager, Parameters};
use crate::simulation::costs::{Cost, Costs};
use crate::simulation::world::LISTENER;
use crate::statistics;

/// Updates between two looks at the clock.
const BATCH: u32 = 1000;
const BATCHES: usize = 31;
/// The most of the paper's Table 3.
const MANAGERS: usize = 16;

/// Nanoseconds of an update, the median of batches; its instructions are those of the file of costs.
pub fn measure() -> Cost {
    let mut manager = Manager::new(0, MANAGERS, Parameters::default(), 1);
    let mut now_us = 1_000_000;
    let mut batches = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let started = Clock::now();
        for number in 0..BATCH {
            now_us += 50;
            // From all others in turn, each time another figure.
            let from = 1 + number as usize % (MANAGERS - 1);
            let message = BetweenManagers::Best {
                group: LISTENER,
                listener: LISTENER,
                process: ProcessName::new(from as u16, number % 7),
                service_time_us: 100 + number % 5,
            };
            manager.hear(Instant::from_us(now_us), from, black_box(message));
            while black_box(manager.poll(Instant::from_us(now_us))).is_some() {}
        }
        batches.push(started.elapsed().as_nanos() as f64 / f64::from(BATCH));
    }
    let instructions = Costs::of_this_tree().map_or(0.0, |costs| costs.update.instructions);
    Cost { ns: statistics::median(&batches).unwrap_or(0.0), instructions }
}
