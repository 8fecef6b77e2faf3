//! Random walks through worlds that are too large to look at whole, and through worlds with the real
//! connection manager. A walk does what can happen, in any order, and at last lets one process that
//! lives go on accepting: then everything must come to a good end.

use std::collections::HashMap;

use super::manager::Manager;
use super::state::State;
use super::steps::{Step, apply, check_rest, enabled};
use super::{Budget, Design, Shape};
use haypile_engine::random::Random;

/// What a walk has seen.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Steps done.
    pub steps: u32,
    /// Connections that a process was given.
    pub given: u32,
    /// Processes, servers and managers that died.
    pub died: u32,
}

/// A world of `managers` managers drawn from `random`, with everything that can go wrong.
pub fn draw_shape(random: &mut Random, managers: u8) -> Shape {
    let mut upto = |high: u64| random.between(0, high) as u8;
    let budget = Budget {
        deaths: upto(2),
        server_deaths: upto(1),
        manager_deaths: upto(1),
        closes: upto(1),
        reopens: upto(1),
        refusals: upto(2),
        failures: upto(2),
        resets: upto(1),
        // Back at its first server a connection would have its old name, which no real one has.
        moves: upto(1),
        packets: upto(3),
        early_timers: upto(6),
    };
    let (processes, connections) = (1 + upto(2), 1 + upto(2));
    let transports = managers.max(1 + upto(2));
    let (offers_max, combined) = (1 + upto(1), upto(1) == 1);
    let design = Design::SOUND;
    Shape { transports, managers, processes, connections, offers_max, combined, budget, design }
}

/// Walks through the world of `seed`.
///
/// # Errors
/// What went wrong, with all the steps.
pub fn walk<M: Manager>(seed: u64, managers: u8) -> Result<Walked, String> {
    let mut random = Random::new(seed);
    let shape = draw_shape(&mut random, managers);
    let mut state = State::<M>::new(&shape);
    let (mut steps, mut done) = (Vec::new(), Vec::new());
    let mut walked = Walked::default();
    let told = |sentence: String, done: &[Step]| {
        let steps: Vec<String> = done.iter().map(|step| format!("{step:?}")).collect();
        format!("{sentence}\nin {shape:?}\nafter {}", steps.join(" "))
    };
    for _ in 0..random.between(10, 400) {
        enabled(&shape, &state, &mut steps);
        if steps.is_empty() {
            break;
        }
        let step = steps[random.between(0, steps.len() as u64 - 1) as usize];
        if is_failure(step) && !random.chance(60_000) {
            continue;
        }
        done.push(step);
        walked.died +=
            u32::from(matches!(step, Step::Die(_) | Step::ServerDies(_) | Step::ManagerDies(_)));
        walked.given += u32::from(matches!(step, Step::Claim(_)));
        apply(&shape, &mut state, step).map_err(|sentence| told(sentence, &done))?;
    }
    let living = (0..shape.processes).filter(|p| state.processes[usize::from(*p)].alive);
    let living: Vec<u8> = living.collect();
    let ready = match living.len() as u64 {
        0 => None,
        count => Some(living[random.between(0, count - 1) as usize]),
    };
    // Time passes for all alike: of the timers, one that has run out less often comes first.
    let mut ran_out: HashMap<(u8, u8), u32> = HashMap::new();
    for _ in 0..END_STEPS_MAX {
        enabled(&shape, &state, &mut steps);
        let next = steps.iter().filter_map(|step| {
            let rank = step.rank(ready)?;
            let turn = step.timer().map(|timer| ran_out.get(&timer).copied().unwrap_or_default());
            Some(((rank.min(Step::TIMERS_RANK), turn, rank), *step))
        });
        let next = next.min_by_key(|(order, _)| *order);
        let quiet = next.is_none_or(|((rank, ..), _)| rank >= Step::TIMERS_RANK);
        if quiet && check_rest(&shape, &state, ready).is_ok() {
            walked.steps = done.len() as u32;
            return Ok(walked);
        }
        let Some((_, step)) = next else { break };
        if let Some(timer) = step.timer() {
            *ran_out.entry(timer).or_default() += 1;
        }
        done.push(step);
        apply(&shape, &mut state, step).map_err(|sentence| told(sentence, &done))?;
    }
    let sentence = check_rest(&shape, &state, ready).err();
    Err(told(sentence.unwrap_or_else(|| "it never comes to rest".into()), &done))
}

/// Enough for every message and a hundred time-outs.
const END_STEPS_MAX: usize = 2_000;

fn is_failure(step: Step) -> bool {
    matches!(
        step,
        Step::Die(_)
            | Step::ServerDies(_)
            | Step::ManagerDies(_)
            | Step::Close
            | Step::Reopen
            | Step::OfferFails(_)
            | Step::PeerResets(_)
            | Step::Move(..)
            | Step::Refuse(_)
    )
}
