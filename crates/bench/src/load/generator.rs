//! The loop of the load generator: sessions as state machines over a [`Carrier`], a closed or an open loop, and the
//! window that is counted. Called by `parts` in a process of its own, and by tests over a made-up carrier with a clock
//! of its own.

use std::collections::VecDeque;
use std::io;

use super::conversation::{BULK_BYTES, Progress, Reader, Script};
use super::{Carrier, Outcome, Pace, Received, Spec, Work};
use crate::latency::Latencies;
use crate::schedule;

/// Failures that are told in words.
const ERRORS_KEPT: usize = 5;
/// Events handled between two looks at the clock of the window.
const EVENTS_PER_TURN: usize = 256;
/// Bulk pieces that one session moves before the next one has its turn.
const PIECES_PER_TURN: usize = 8;
/// A session that fails waits this long before it tries again, so that a dead server is not hammered.
const AFTER_FAILURE_NS: u64 = 10_000_000;
/// The longest that a load waits for its first connections beyond the warm-up.
const FIRST_ANSWER_LIMIT_NS: u64 = 20_000_000_000;

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing to do; connected or not.
    Idle,
    /// So many bytes of opening and request are sent.
    Sending(usize),
    /// The answer comes.
    Answer,
    /// The answer was complete; the server closes.
    Ending,
}

struct Session {
    stage: Stage,
    connected: bool,
    /// The opening of this connection is sent.
    opened: bool,
    /// What latency counts from, nanoseconds.
    since_ns: u64,
    /// When the answer was complete.
    answered_ns: u64,
    /// Not before this time.
    rest_until_ns: u64,
    reader: Reader,
}

/// A load that runs.
pub struct Generator<'a, C: Carrier> {
    carrier: &'a mut C,
    spec: &'a Spec,
    script: Script,
    sessions: Vec<Session>,
    buffer: Vec<u8>,
    /// Open loop: when requests are due, and which is next.
    due_ns: Vec<u64>,
    next_due: usize,
    /// Open loop: requests that are due and have no session yet.
    waiting: VecDeque<u64>,
    idle: Vec<usize>,
    /// Sessions that rest, with when they may go on, in that order.
    resting: VecDeque<(u64, usize)>,
    /// Sessions whose turn ended with work left.
    again: Vec<usize>,
    counting: bool,
    latencies: Latencies,
    outcome: Outcome,
    /// Requests completed since the start, warm-up included.
    answered: u64,
}

/// Tells the starter when the counted window begins and ends.
pub trait Window {
    /// It begins now.
    fn begins(&mut self);
    /// It is over.
    fn ends(&mut self);
}

/// Nobody is told.
impl Window for () {
    fn begins(&mut self) {}
    fn ends(&mut self) {}
}

/// Runs a load to its end.
///
/// # Errors
/// When the carrier is of no more use, or nothing was answered at all. Failed requests are no error; they are counted.
pub fn run<C: Carrier>(
    spec: &Spec,
    carrier: &mut C,
    window: &mut impl Window,
) -> io::Result<Outcome> {
    let mut generator = Generator::new(spec, carrier);
    let warm_from_ns = generator.carrier.now_ns();
    generator.schedule(warm_from_ns);
    for session in 0..spec.connections {
        generator.make_idle(session, warm_from_ns);
    }
    generator.run_until(warm_from_ns + seconds_ns(spec.warmup_s))?;
    // An overloaded machine may need longer than the warm-up for the first answer.
    let limit_ns = warm_from_ns + seconds_ns(spec.warmup_s) + FIRST_ANSWER_LIMIT_NS;
    while generator.answered == 0 && generator.outcome.failed == 0 {
        let now_ns = generator.carrier.now_ns();
        if now_ns >= limit_ns || matches!(spec.pace, Pace::Open { .. }) {
            break;
        }
        generator.run_until(now_ns + 10_000_000)?;
    }
    window.begins();
    let from_ns = generator.carrier.now_ns();
    generator.start_counting();
    let mut until_ns = from_ns + seconds_ns(spec.duration_s);
    generator.run_until(until_ns)?;
    // A short window on an overloaded machine may have seen nothing yet.
    let limit_ns = until_ns + FIRST_ANSWER_LIMIT_NS;
    while generator.counted_nothing() && until_ns < limit_ns {
        until_ns += 10_000_000;
        generator.run_until(until_ns)?;
    }
    let end_ns = generator.carrier.now_ns();
    window.ends();
    generator.finish(end_ns - from_ns)
}

fn seconds_ns(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

impl<'a, C: Carrier> Generator<'a, C> {
    fn new(spec: &'a Spec, carrier: &'a mut C) -> Self {
        let session = || Session {
            stage: Stage::Idle,
            connected: false,
            opened: false,
            since_ns: 0,
            answered_ns: 0,
            rest_until_ns: 0,
            reader: Reader::default(),
        };
        Generator {
            script: Script::new(&spec.work, spec.body_bytes),
            sessions: (0..spec.connections).map(|_| session()).collect(),
            buffer: vec![0; BULK_BYTES],
            due_ns: Vec::new(),
            next_due: 0,
            waiting: VecDeque::new(),
            idle: Vec::new(),
            resting: VecDeque::new(),
            again: Vec::new(),
            counting: false,
            latencies: Latencies::new(),
            outcome: Outcome::default(),
            answered: 0,
            carrier,
            spec,
        }
    }

    fn schedule(&mut self, from_ns: u64) {
        if let Pace::Open { rate, spread, seed } = self.spec.pace {
            let seconds = self.spec.warmup_s + self.spec.duration_s;
            self.due_ns = schedule::times_ns(rate, seconds, spread, seed);
            self.due_ns.iter_mut().for_each(|time| *time += from_ns);
        }
    }

    fn start_counting(&mut self) {
        self.counting = true;
        self.outcome =
            Outcome { errors: std::mem::take(&mut self.outcome.errors), ..Outcome::default() };
        self.latencies = Latencies::new();
    }

    fn counted_nothing(&self) -> bool {
        let Outcome { completed, failed, bytes, .. } = self.outcome;
        failed == 0 && if self.script.has_answers() { completed == 0 } else { bytes == 0 }
    }

    fn finish(mut self, counted_ns: u64) -> io::Result<Outcome> {
        self.outcome.congestion = self.carrier.congestion();
        self.carrier.end();
        self.outcome.backlog = self.waiting.len() as u64;
        self.outcome.seconds = counted_ns as f64 / 1e9;
        self.outcome.latencies = self.latencies.pack();
        let nothing = self.answered == 0 && self.outcome.bytes == 0;
        match self.outcome.errors.first() {
            Some(error) if nothing => {
                Err(io::Error::other(format!("nothing was answered: {error}")))
            }
            None if nothing => Err(io::Error::other("nothing was answered in the whole time")),
            _ => Ok(self.outcome),
        }
    }

    /// Handles events and starts requests until the time has come.
    fn run_until(&mut self, end_ns: u64) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        loop {
            let now_ns = self.carrier.now_ns();
            if now_ns >= end_ns {
                return Ok(());
            }
            self.wake_rested(now_ns);
            self.start_due(now_ns);
            let until_ns = if self.again.is_empty() { self.wait_until(end_ns) } else { now_ns };
            events.clear();
            events.append(&mut self.again);
            self.carrier.wait(until_ns, &mut events)?;
            for session in events.drain(..) {
                self.advance(session);
            }
        }
    }

    /// The next moment at which something is to be done of ourselves.
    fn wait_until(&self, end_ns: u64) -> u64 {
        let rested = self.resting.front().map_or(u64::MAX, |(at_ns, _)| *at_ns);
        let due = match self.idle.is_empty() {
            true => u64::MAX,
            false => self.due_ns.get(self.next_due).copied().unwrap_or(u64::MAX),
        };
        end_ns.min(rested).min(due)
    }

    fn wake_rested(&mut self, now_ns: u64) {
        while self.resting.front().is_some_and(|(at_ns, _)| *at_ns <= now_ns) {
            if let Some((_, session)) = self.resting.pop_front() {
                self.make_idle(session, now_ns);
            }
        }
    }

    /// Open loop: moves what is due to idle sessions, or into the line of those that wait for one.
    fn start_due(&mut self, now_ns: u64) {
        while self.due_ns.get(self.next_due).is_some_and(|due_ns| *due_ns <= now_ns) {
            let due_ns = self.due_ns[self.next_due];
            self.next_due += 1;
            match self.idle.pop() {
                Some(session) => self.begin(session, due_ns),
                None => self.waiting.push_back(due_ns),
            }
        }
    }

    /// A session has nothing to do: it asks again, or waits until something is due.
    fn make_idle(&mut self, session: usize, now_ns: u64) {
        self.sessions[session].stage = Stage::Idle;
        if self.sessions[session].rest_until_ns > now_ns {
            self.rest(session);
            return;
        }
        match self.spec.pace {
            Pace::Closed | Pace::AfterQuiet(_) => self.begin(session, now_ns),
            Pace::Open { .. } => match self.waiting.pop_front() {
                Some(due_ns) => self.begin(session, due_ns),
                None => self.idle.push(session),
            },
        }
    }

    fn rest(&mut self, session: usize) {
        let until_ns = self.sessions[session].rest_until_ns;
        let place = self.resting.partition_point(|(at_ns, _)| *at_ns <= until_ns);
        self.resting.insert(place, (until_ns, session));
    }

    /// Begins a request whose latency counts from `since_ns`.
    fn begin(&mut self, session: usize, since_ns: u64) {
        let state = &mut self.sessions[session];
        state.since_ns = since_ns;
        state.stage = Stage::Sending(0);
        state.reader.reset();
        if state.connected {
            self.advance(session);
            return;
        }
        state.opened = false;
        match self.carrier.open(session) {
            Ok(()) => self.sessions[session].connected = true,
            Err(error) => self.fail(session, &error.to_string()),
        }
    }

    /// Does what can be done for a session now.
    fn advance(&mut self, session: usize) {
        // A request that ends here may begin the next one, which ends at the latest when its answer must be waited for.
        match self.sessions[session].stage {
            Stage::Idle => self.look_for_end(session),
            Stage::Sending(sent) => self.send(session, sent),
            Stage::Answer | Stage::Ending => self.receive(session),
        }
    }

    /// An idle kept connection has an event: the server may have closed it.
    fn look_for_end(&mut self, session: usize) {
        if !self.sessions[session].connected {
            return;
        }
        match self.carrier.receive(session, &mut self.buffer) {
            Ok(Received::Nothing) => {}
            Ok(Received::Bytes(_)) => self.fail(session, "bytes that nobody asked for"),
            Ok(Received::End) | Err(_) => {
                self.carrier.close(session);
                self.sessions[session].connected = false;
            }
        }
    }

    fn send(&mut self, session: usize, mut sent: usize) {
        let endless = self.spec.work == Work::Upload;
        let opening = if self.sessions[session].opened { 0 } else { self.script.opening.len() };
        let end = opening + self.script.request.len();
        for _ in 0..PIECES_PER_TURN {
            let rest = match sent.checked_sub(opening) {
                None => &self.script.opening[sent..],
                Some(of_request) => &self.script.request[of_request..],
            };
            if rest.is_empty() {
                break;
            }
            match self.carrier.send(session, rest) {
                Ok(0) => {
                    self.sessions[session].stage = Stage::Sending(sent);
                    return;
                }
                Ok(count) => {
                    if endless && sent >= opening {
                        self.count_bytes(count);
                    }
                    sent += count;
                }
                Err(error) => {
                    self.fail(session, &format!("send: {error}"));
                    return;
                }
            }
            if endless && sent == end {
                sent = opening;
            }
        }
        if sent < end {
            // Its turn is over: the others first, then again.
            self.sessions[session].stage = Stage::Sending(sent);
            self.again.push(session);
        } else {
            self.sessions[session].opened = true;
            self.sessions[session].stage = Stage::Answer;
        }
    }

    fn receive(&mut self, session: usize) {
        for _ in 0..PIECES_PER_TURN {
            let received = match self.carrier.receive(session, &mut self.buffer) {
                Ok(received) => received,
                Err(error) => {
                    self.fail(session, &format!("receive: {error}"));
                    return;
                }
            };
            let bytes = match received {
                Received::Nothing => return,
                Received::End if self.sessions[session].stage == Stage::Ending => {
                    self.complete(session);
                    return;
                }
                Received::End => {
                    self.fail(session, "the server closed before its answer was complete");
                    return;
                }
                Received::Bytes(bytes) => bytes,
            };
            let progress = self.sessions[session].reader.take(&self.script, &self.buffer[..bytes]);
            match progress {
                Progress::Wrong(why) => {
                    self.fail(session, &why);
                    return;
                }
                Progress::Incomplete => self.count_bytes(bytes),
                Progress::Complete => {
                    self.count_bytes(bytes);
                    self.sessions[session].answered_ns = self.carrier.now_ns();
                    if !self.script.short {
                        self.complete(session);
                        return;
                    }
                    self.sessions[session].stage = Stage::Ending;
                }
            }
        }
        self.again.push(session);
    }

    fn count_bytes(&mut self, bytes: usize) {
        if self.counting {
            self.outcome.bytes += bytes as u64;
        }
        // Bulk work has no answers: its bytes show that the server is there.
        if !self.script.has_answers() {
            self.answered += 1;
        }
    }

    /// A request is answered, and its connection closed where it has its own.
    fn complete(&mut self, session: usize) {
        let (since_ns, answered_ns) =
            (self.sessions[session].since_ns, self.sessions[session].answered_ns);
        self.answered += 1;
        if self.counting {
            self.outcome.completed += 1;
            self.latencies.record(answered_ns.saturating_sub(since_ns));
        }
        if self.script.short {
            self.carrier.close(session);
            self.sessions[session].connected = false;
        }
        if let Pace::AfterQuiet(quiet_us) = self.spec.pace {
            self.sessions[session].rest_until_ns = answered_ns + quiet_us * 1000;
        }
        let now_ns = if self.script.short { self.carrier.now_ns() } else { answered_ns };
        self.make_idle(session, now_ns);
    }

    /// A request failed; the session begins anew a little later.
    fn fail(&mut self, session: usize, why: &str) {
        self.carrier.close(session);
        let now_ns = self.carrier.now_ns();
        let state = &mut self.sessions[session];
        state.connected = false;
        state.rest_until_ns = now_ns + AFTER_FAILURE_NS;
        self.outcome.failed += 1;
        if self.outcome.errors.len() < ERRORS_KEPT {
            self.outcome.errors.push(why.to_string());
        }
        self.sessions[session].stage = Stage::Idle;
        self.rest(session);
    }
}

#[cfg(test)]
mod tests;
