//! Messages through shared memory between two cores: the paper's Table 2 (PIKA, section 5.1) for this
//! machine. Both ends poll. Called by `run`.
//!
//! * bare: one word there, one word back, nothing else: what the machine's cache coherence can do;
//! * messages: lines of 64 bytes on the rings that two servers share, one outstanding (synchronous) or
//!   several (concurrent, in bursts as servers work);
//! * dispatch: every message is also decoded, checked and handled by its kind, on both ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use haypile_shm::messages::{Request, RequestBody};
use haypile_shm::peer::PEER_MESSAGES;
use haypile_shm::ring::{SharedRing, ring_size};
use haypile_shm::sys::{self, cycle_counter};
use haypile_shm::{Dialogue, Message, Segment};
use serde_json::json;

use super::{draw, publish};
use crate::cores::{Core, order};
use crate::options::Options;
use crate::plot::{Plot, Scale};
use crate::report::{Report, Table, show};
use crate::statistics;

/// Messages of each ring, as between servers: more than are ever outstanding.
const RING: u32 = PEER_MESSAGES;
/// Messages taken at once, as servers do.
const BURST: usize = 64;
/// Round trips between two looks at the clock.
const BATCH: u64 = 512;
/// Outstanding messages that are measured.
const OUTSTANDING: &[usize] = &[2, 4, 16, 64, 256, 1000];
/// The longest that one measurement counts, seconds: there are many.
const SECONDS_MAX: f64 = 0.25;
/// The same when it has to be quick.
const SECONDS_QUICK: f64 = 0.02;
/// Two cores that share the last cache.
const NEAR: &str = "one core complex";
/// Two that do not, the farthest first.
const FAR: [&str; 2] = ["two sockets", "two core complexes, one socket"];

/// What is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exchange {
    /// `None`: bare words.
    outstanding: Option<usize>,
    dispatch: bool,
}

impl Exchange {
    /// Every row of the table.
    fn all() -> Vec<Exchange> {
        let mut rows = vec![Exchange { outstanding: None, dispatch: false }];
        for outstanding in [1].iter().chain(OUTSTANDING) {
            for dispatch in [false, true] {
                rows.push(Exchange { outstanding: Some(*outstanding), dispatch });
            }
        }
        rows
    }

    fn name(&self) -> String {
        let with = if self.dispatch { ", dispatch" } else { "" };
        match self.outstanding {
            None => "bare words, round trip".into(),
            Some(1) => format!("messages, synchronous{with}"),
            Some(count) => format!("messages, {count} outstanding{with}"),
        }
    }

    /// The paper's figures, cycles: on one socket, and between two; concurrent ones are for many.
    fn paper(&self) -> [&'static str; 2] {
        match (self.outstanding, self.dispatch) {
            (None, _) => ["186", "964"],
            (Some(1), false) => ["597", "1,898"],
            (Some(1), true) => ["706", "2,058"],
            (Some(256..), false) => ["150", "370"],
            (Some(256..), true) => ["378", "857"],
            _ => ["", ""],
        }
    }
}

/// A word on a line of its own; two lines, because processors fetch in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

/// Measures all rows on all kinds of pairs of cores.
///
/// # Errors
/// With one core, or without memory.
pub fn run(options: &Options, topology: &[Core], report: &mut Report) -> Result<(), String> {
    let pairs = pairs(topology);
    if pairs.is_empty() {
        return Err("messages between cores need two cores; allow another one (taskset)".into());
    }
    let cycles_per_ns = cycles_per_ns();
    let seconds = options.duration_s.min(SECONDS_MAX);
    let repeat = if options.quick { 1 } else { options.repeat.max(1) };
    let seconds = if options.quick { SECONDS_QUICK } else { seconds };
    let mut medians = Vec::new();
    for (name, cores) in pairs {
        let rows = Exchange::all();
        let mut cycles: Vec<Vec<f64>> = vec![Vec::new(); rows.len()];
        for round in 0..repeat {
            eprintln!("messages, {name}: round {} of {repeat}", round + 1);
            for (row, found) in rows.iter().zip(&mut cycles) {
                found.push(measure(*row, cores, Duration::from_secs_f64(seconds))?);
            }
        }
        publish(report, table(&name, cores, &rows, &cycles, cycles_per_ns));
        let median = |cycles: &Vec<f64>| statistics::median(cycles).unwrap_or(f64::NAN);
        medians.push((name, cycles.iter().map(median).collect::<Vec<f64>>()));
    }
    publish(report, table_2(&medians));
    draw(options, report, "table-2-messages", &plot(&medians))?;
    report.notes.push(format!(
        "a cycle is one of the time stamp counter: {cycles_per_ns:.3} of them are a nanosecond; \
         medians of {repeat} rounds"
    ));
    report.notes.push(
        "paper: PIKA, Table 2, on its Xeons; a cost is for request and reply together. Its cache misses need \
         hardware counters, its microthreads Haypile does not have"
            .into(),
    );
    Ok(())
}

/// One pair of each kind that the machine has.
fn pairs(topology: &[Core]) -> Vec<(String, [usize; 2])> {
    let order = order(topology);
    let find = |number: &usize| topology.iter().find(|core| core.number == *number);
    let cores: Vec<&Core> = order.iter().filter_map(find).collect();
    let mut pairs = Vec::new();
    let mut add = |name: &str, fits: &dyn Fn(&Core, &Core) -> bool| {
        let found = cores.iter().enumerate().find_map(|(at, one)| {
            cores[at + 1..]
                .iter()
                .find(|other| fits(one, other))
                .map(|other| [one.number, other.number])
        });
        pairs.extend(found.map(|pair| (name.to_string(), pair)));
    };
    let threads = |one: &Core, other: &Core| one.siblings.contains(&other.number);
    let complex = |one: &Core, other: &Core| one.complex.contains(&other.number);
    add(NEAR, &|one, other| complex(one, other) && !threads(one, other));
    add("two threads of one core", &threads);
    add(FAR[1], &|one, other| !complex(one, other) && one.package == other.package);
    add(FAR[0], &|one, other| one.package != other.package);
    pairs
}

/// Cycles of the counter in a nanosecond.
fn cycles_per_ns() -> f64 {
    let (started, from) = (Instant::now(), cycle_counter());
    while started.elapsed() < Duration::from_millis(50) {
        std::hint::spin_loop();
    }
    (cycle_counter() - from) as f64 / started.elapsed().as_nanos() as f64
}

/// Cycles for each request and its reply.
fn measure(exchange: Exchange, cores: [usize; 2], time: Duration) -> Result<f64, String> {
    match exchange.outstanding {
        None => bare(cores, time),
        Some(outstanding) => rings(outstanding, exchange.dispatch, cores, time),
    }
}

fn pin(core: usize) -> Result<(), String> {
    sys::set_affinity(&[core]).map_err(|errno| format!("cannot run on core {core}: {errno}"))
}

/// One thread answers, the other, `ask`, is measured; both on their cores.
fn together(
    cores: [usize; 2],
    answer: impl FnOnce(&AtomicBool) + Send,
    ask: impl FnOnce() -> f64 + Send,
) -> Result<f64, String> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let answerer = scope.spawn(|| {
            pin(cores[1])?;
            answer(&over);
            Ok::<(), String>(())
        });
        let asker = scope.spawn(|| {
            let asked = pin(cores[0]).map(|()| ask());
            over.store(true, Ordering::Release);
            asked
        });
        let asked = asker.join().map_err(|_| "a thread broke".to_string())?;
        answerer.join().map_err(|_| "a thread broke".to_string())??;
        asked
    })
}

/// The median cost of batches of `BATCH` messages over `time`, so that a batch that was interrupted does not count.
fn batches(time: Duration, mut batch: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut costs = Vec::new();
    // The first one finds cold memory.
    batch();
    while started.elapsed() < time || costs.is_empty() {
        let from = cycle_counter();
        batch();
        costs.push((cycle_counter() - from) as f64 / BATCH as f64);
    }
    statistics::median(&costs).unwrap_or(f64::NAN)
}

fn bare(cores: [usize; 2], time: Duration) -> Result<f64, String> {
    let (there, back) = (Line::default(), Line::default());
    let answer = |over: &AtomicBool| {
        let mut wanted = 1;
        loop {
            let mut looks = 0_u32;
            while there.0.load(Ordering::Acquire) != wanted {
                std::hint::spin_loop();
                looks += 1;
                // Rarely, because the flag is on another line.
                if looks.is_multiple_of(4096) && over.load(Ordering::Acquire) {
                    return;
                }
            }
            back.0.store(wanted, Ordering::Release);
            wanted += 1;
        }
    };
    let ask = || {
        let mut sent = 0;
        batches(time, || {
            for _ in 0..BATCH {
                sent += 1;
                there.0.store(sent, Ordering::Release);
                while back.0.load(Ordering::Acquire) != sent {
                    std::hint::spin_loop();
                }
            }
        })
    };
    together(cores, answer, ask)
}

/// What a dispatcher knows; handlers change it, so that none can be left out.
#[derive(Default)]
struct Served {
    kicks: u64,
    claims: u64,
    others: u64,
    nonsense: u64,
}

impl Served {
    /// Decodes a message, handles it by its kind, and says the answer.
    #[inline]
    fn dispatch(&mut self, message: &Message) -> Message {
        let Ok(request) = Request::decode(message) else {
            self.nonsense += 1;
            return *message;
        };
        match request.body {
            RequestBody::KickTx => self.kicks += 1,
            RequestBody::Claim => self.claims += 1,
            _ => self.others += 1,
        }
        Request::about(request.header.slot, request.header.generation, request.body).encode()
    }
}

fn rings(
    outstanding: usize,
    dispatch: bool,
    cores: [usize; 2],
    time: Duration,
) -> Result<f64, String> {
    let fail = |errno| format!("no shared memory: {errno}");
    let segment = Segment::create("haypile-bench", 2 * ring_size(RING)).map_err(fail)?;
    let segment = Arc::new(segment);
    let ring =
        |offset| SharedRing::new(Arc::clone(&segment), offset, RING).ok_or("a ring does not fit");
    let (there, back) = (ring(0)?, ring(ring_size(RING))?);
    let mut asker = Asker {
        end: Dialogue::new(there.clone(), back.clone()),
        outstanding,
        under_way: 0,
        messages: [Request::about(7, 1, RequestBody::KickTx).encode(); BURST],
        served: dispatch.then(Served::default),
    };
    let answer = move |over: &AtomicBool| {
        let mut end = Dialogue::new(back, there);
        let mut served = dispatch.then(Served::default);
        let mut burst = [Message::default(); BURST];
        let mut looks = 0_u32;
        loop {
            let count = end.pop_burst(&mut burst);
            if count == 0 {
                std::hint::spin_loop();
                looks += 1;
                if looks.is_multiple_of(4096) && over.load(Ordering::Acquire) {
                    return;
                }
                continue;
            }
            if let Some(served) = &mut served {
                burst[..count].iter_mut().for_each(|message| *message = served.dispatch(message));
            }
            // There is always room: the asker never has more than a ring's messages outstanding.
            end.push_burst(&burst[..count]);
        }
    };
    together(cores, answer, move || batches(time, || asker.batch()))
}

/// The measured end.
struct Asker {
    end: Dialogue,
    outstanding: usize,
    under_way: usize,
    /// What it sends next: made before, because making it is not part of what is measured.
    messages: [Message; BURST],
    served: Option<Served>,
}

impl Asker {
    /// Receives the replies of one batch, with so many requests outstanding all the time.
    fn batch(&mut self) {
        let mut burst = [Message::default(); BURST];
        let mut received = 0;
        while received < BATCH as usize {
            let wanted = (self.outstanding - self.under_way).min(BURST);
            if wanted > 0 {
                self.under_way += self.end.push_burst(&self.messages[..wanted]);
            }
            let count = self.end.pop_burst(&mut burst);
            if count == 0 {
                std::hint::spin_loop();
                continue;
            }
            if let Some(served) = &mut self.served {
                let answers = self.messages.iter_mut().zip(&burst[..count]);
                answers.for_each(|(next, message)| *next = served.dispatch(message));
            }
            self.under_way -= count;
            received += count;
        }
    }
}

/// The paper's Table 2, with this machine beside it: what it has no cores for is left empty.
fn table_2(medians: &[(String, Vec<f64>)]) -> Table {
    let of = |names: &[&str]| {
        let known = |name: &&str| medians.iter().find(|(found, _)| found == *name);
        names.iter().find_map(known).map(|(_, cycles)| cycles)
    };
    let here = [of(&[NEAR]), of(&FAR)];
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for (index, row) in Exchange::all().iter().enumerate() {
        let cell = |side: usize| here[side].and_then(|cycles| cycles.get(index).copied());
        let shown = |side: usize| cell(side).map_or("-".into(), show);
        let paper = row.paper().map(str::to_string);
        let [near, far] = paper;
        rows.push(vec![row.name(), shown(0), near, shown(1), far]);
        figures.push(json!({ "row": row.name(), "near": cell(0), "far": cell(1) }));
    }
    let header = ["", "on, cycles", "paper: on", "off, cycles", "paper: off"];
    Table {
        title: "the paper's Table 2: on one core complex and off it; the paper: on one socket and off it".into(),
        header: header.map(str::to_string).to_vec(),
        rows,
        figures: json!(figures),
    }
}

/// Cost against how many are outstanding.
fn plot(medians: &[(String, Vec<f64>)]) -> Plot {
    let mut plot = Plot::lines(
        "Messages between two cores (paper: table 2)",
        "request and reply together, cycles of the time stamp counter",
        ["requests outstanding", "cycles"],
        [Scale::Log, Scale::Log],
    );
    for (name, cycles) in medians {
        for dispatch in [false, true] {
            let rows = Exchange::all().into_iter().zip(cycles);
            let points =
                rows.filter(|(row, _)| row.dispatch == dispatch).filter_map(|(row, cycles)| {
                    row.outstanding.map(|outstanding| (outstanding as f64, *cycles))
                });
            let what = if dispatch { "dispatch" } else { "messages" };
            plot.add(&format!("{what}, {name}"), points.collect());
        }
    }
    plot
}

fn table(
    name: &str,
    cores: [usize; 2],
    rows: &[Exchange],
    cycles: &[Vec<f64>],
    cycles_per_ns: f64,
) -> Table {
    let bare = cycles.first().map_or(&[][..], Vec::as_slice);
    let mut lines = Vec::new();
    let mut figures = Vec::new();
    for (row, cycles) in rows.iter().zip(cycles) {
        let Some(summary) = statistics::summary(cycles) else { continue };
        // Of the same round: what the hypervisor does with the cores changes from round to round.
        let of_bare: Vec<f64> = cycles.iter().zip(bare).map(|(cost, bare)| cost / bare).collect();
        let Some(of_bare) = statistics::summary(&of_bare) else { continue };
        lines.push(vec![
            row.name(),
            format!("{} [{} .. {}]", show(summary.median), show(summary.min), show(summary.max)),
            show(summary.median / cycles_per_ns),
            format!("{:.2} [{:.2} .. {:.2}]", of_bare.median, of_bare.min, of_bare.max),
            row.paper()[usize::from(name != NEAR)].to_string(),
        ]);
        figures.push(json!({
            "outstanding": row.outstanding,
            "dispatch": row.dispatch,
            "cycles": summary,
            "ns": summary.median / cycles_per_ns,
            "of_bare": of_bare,
            "rounds": cycles,
        }));
    }
    let header =
        ["", "cycles a message [min .. max]", "ns", "of bare [min .. max]", "paper, cycles"];
    Table {
        title: format!("messages between two cores of {name}: {} and {}", cores[0], cores[1]),
        header: header.map(str::to_string).to_vec(),
        rows: lines,
        figures: json!({ "cores": cores, "cycles_per_ns": cycles_per_ns, "rows": figures }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(number: usize, siblings: &[usize], complex: &[usize], package: usize) -> Core {
        Core { number, siblings: siblings.to_vec(), complex: complex.to_vec(), package }
    }

    #[test]
    fn each_kind_of_pair_is_found_once() {
        let topology = [
            core(0, &[0, 2], &[0, 1, 2], 0),
            core(1, &[1], &[0, 1, 2], 0),
            core(2, &[0, 2], &[0, 1, 2], 0),
            core(3, &[3], &[3], 0),
            core(4, &[4], &[4], 1),
        ];
        let names: Vec<String> = pairs(&topology).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(pairs(&topology[..1]), []);
    }

    /// Every message comes back, whatever the window; both threads may share a core.
    #[test]
    fn every_exchange_ends() {
        let cores: Vec<usize> =
            crate::cores::read().expect("sysfs").iter().map(|core| core.number).collect();
        let [first, last] = [cores[0], cores[cores.len() - 1]];
        if first == last {
            return;
        }
        for exchange in Exchange::all() {
            let cycles =
                measure(exchange, [first, last], Duration::from_millis(1)).expect("two cores");
            assert!(cycles > 0.0, "{exchange:?}");
        }
    }
}
