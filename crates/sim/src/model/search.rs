//! Looks at every state that can be reached, breadth first, so that what is wrong is shown by the
//! shortest way to it.
//!
//! States are told apart by a fingerprint of 128 bits; two of a million share one by chance with a
//! probability of 10^-26. Liveness: from every state, and for every process that may be the only one
//! that goes on accepting, the fair way (`Step::rank`) must come to rest, with every connection
//! somebody's or ended. As each step of it leads to a state that is itself looked at, one successor
//! for each state and process is enough to know that.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use haypile_engine::random::mix;

use super::Shape;
use super::manager::Manager;
use super::state::State;
use super::steps::{Step, apply, check_rest, enabled};

/// What a search has seen.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub transitions: u64,
    /// Steps to the farthest.
    pub depth: u32,
    /// The limit was reached first: not all states were looked at.
    pub cut: bool,
}

/// What is wrong, and how it comes to that.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The broken sentence.
    pub sentence: String,
    /// The shortest way there.
    pub trace: Vec<Step>,
    /// The states seen until then.
    pub states: usize,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} (after {} states):", self.sentence, self.states)?;
        for (number, step) in self.trace.iter().enumerate() {
            writeln!(out, "  {:2}. {step:?}", number + 1)?;
        }
        Ok(())
    }
}

/// No successor: the state is at rest.
const REST: u32 = u32::MAX;

struct Search<'a> {
    shape: &'a Shape,
    seen: HashMap<u128, u32, BuildHasherDefault<Identity>>,
    /// How each state was reached first.
    origin: Vec<(u32, Step)>,
    /// For each state and process that may be the only one that accepts, what a fair world does next.
    next: Vec<u32>,
}

/// Looks at all states of `shape`, at most `limit`.
///
/// # Errors
/// The first thing that is wrong.
pub fn explore<M: Manager + Clone>(shape: &Shape, limit: usize) -> Result<Report, Failure> {
    let mut search =
        Search { shape, seen: HashMap::default(), origin: Vec::new(), next: Vec::new() };
    let start = State::<M>::new(shape);
    search.seen.insert(fingerprint(&start), 0);
    search.origin.push((0, Step::Close));
    let mut frontier = VecDeque::from([(0u32, 0u32, start)]);
    let mut report = Report { states: 0, transitions: 0, depth: 0, cut: false };
    let mut steps = Vec::new();
    while let Some((index, depth, state)) = frontier.pop_front() {
        report.depth = depth;
        if search.origin.len() > limit {
            report.cut = true;
            break;
        }
        enabled(shape, &state, &mut steps);
        report.transitions += steps.len() as u64;
        let mut successors = Vec::with_capacity(steps.len());
        for &step in &steps {
            let mut after = state.clone();
            if let Err(sentence) = apply(shape, &mut after, step) {
                return Err(search.failure(sentence, index, Some(step)));
            }
            let known = search.origin.len() as u32;
            let found = *search.seen.entry(fingerprint(&after)).or_insert(known);
            if found == known {
                search.origin.push((index, step));
                frontier.push_back((found, depth + 1, after));
            }
            successors.push(found);
        }
        search.note_fair(&state, index, &steps, &successors)?;
    }
    report.states = search.origin.len();
    if !report.cut {
        search.check_no_circle()?;
    }
    Ok(report)
}

impl Search<'_> {
    /// The processes that may be the only one that goes on accepting; one entry if none lives.
    fn futures(&self) -> usize {
        usize::from(self.shape.processes)
    }

    /// Notes for each future where a fair world goes from a state; if nowhere, all must be well.
    fn note_fair<M: Manager>(
        &mut self,
        state: &State<M>,
        index: u32,
        steps: &[Step],
        successors: &[u32],
    ) -> Result<(), Failure> {
        debug_assert_eq!(self.next.len(), index as usize * self.futures());
        for process in 0..self.shape.processes {
            let ready = state.processes[usize::from(process)].alive.then_some(process);
            let ranked = steps.iter().zip(successors);
            let ranked = ranked.filter_map(|(step, to)| Some((step.rank(ready)?, *to)));
            match ranked.min_by_key(|(rank, _)| *rank) {
                Some((_, to)) => self.next.push(to),
                None => {
                    self.next.push(REST);
                    if let Err(sentence) = check_rest(self.shape, state, ready) {
                        return Err(self.failure(sentence, index, None));
                    }
                }
            }
        }
        Ok(())
    }

    /// A fair world must come to rest from everywhere.
    fn check_no_circle(&self) -> Result<(), Failure> {
        let futures = self.futures();
        let mut done = vec![0u32; self.next.len()];
        for start in 0..self.next.len() {
            let (future, mut at) = (start % futures, start);
            let mark = start as u32 + 1;
            while done[at] == 0 {
                done[at] = mark;
                match self.next[at] {
                    REST => break,
                    to => at = to as usize * futures + future,
                }
                if done[at] == mark {
                    let sentence = format!("process {future} accepts and it never comes to rest");
                    return Err(self.failure(sentence, (at / futures) as u32, None));
                }
            }
        }
        Ok(())
    }

    fn failure(&self, sentence: String, index: u32, last: Option<Step>) -> Failure {
        let mut trace: Vec<Step> = last.into_iter().collect();
        let mut at = index;
        while at != 0 {
            let (before, step) = self.origin[at as usize];
            trace.push(step);
            at = before;
        }
        trace.reverse();
        Failure { sentence, trace, states: self.origin.len() }
    }
}

/// A fingerprint of 128 bits of everything that a state hashes.
fn fingerprint<M: Manager>(state: &State<M>) -> u128 {
    let mut hasher = Fingerprint { low: 0x243F_6A88_85A3_08D3, high: 0x1319_8A2E_0370_7344 };
    state.hash(&mut hasher);
    u128::from(mix(hasher.low)) | u128::from(mix(hasher.high)) << 64
}

struct Fingerprint {
    low: u64,
    high: u64,
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        self.low
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
    fn write_u64(&mut self, value: u64) {
        self.low = mix(self.low ^ value).wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.high = (self.high.rotate_left(23) ^ value).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    }
}

/// Fingerprints are mixed already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}
