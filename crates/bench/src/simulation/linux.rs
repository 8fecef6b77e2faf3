//! Models of the kernel's ways to hand connections to workers, for the same arrivals, service times
//! and delays as `world`'s. They are models: no locks, no caches, no scheduler; the kernel's work for
//! a connection is a constant on the worker's core. Called by the experiments.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use haypile_engine::random::Random;

use super::costs::Costs;
use super::outcome::Outcome;
use super::workload::{Load, Service};
use crate::schedule::times_ns;

/// How connections find a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// One listener, workers in epoll: the first idle one in the order of registration is woken.
    SharedEpoll,
    /// One listener, workers in `accept`: who has slept longest is woken.
    SharedAccept,
    /// A listener each (SO_REUSEPORT): a hash decides, whoever is busy.
    ReusePort,
}

impl Kernel {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::SharedEpoll => "linux shared, epoll (model)",
            Kernel::SharedAccept => "linux shared, accept (model)",
            Kernel::ReusePort => "linux SO_REUSEPORT (model)",
        }
    }

    /// All of them.
    pub const ALL: [Kernel; 3] = [Kernel::SharedEpoll, Kernel::SharedAccept, Kernel::ReusePort];
}

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Which model.
    pub kernel: Kernel,
    /// How many workers.
    pub workers: usize,
    /// Arrivals; an open loop.
    pub load: Load,
    /// Service times.
    pub service: Service,
    /// What the kernel costs.
    pub costs: Costs,
    /// Seconds before anything is counted.
    pub warmup_s: f64,
    /// Seconds that are counted.
    pub seconds: f64,
    /// Where randomness begins.
    pub seed: u64,
}

struct Model {
    setup: Setup,
    random: Random,
    /// Queues of connections by arrival: one for all, or one a worker.
    queues: Vec<VecDeque<u64>>,
    /// Idle workers, who went to sleep first in front.
    idle: Vec<usize>,
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    outcome: Outcome,
}

/// Runs a model. Without an open loop there is nothing to run.
pub fn run(setup: Setup) -> Outcome {
    let outcome = Outcome::new(setup.workers, 0, setup.seconds);
    let Load::Open { rate, spread } = setup.load else { return outcome };
    let arrivals = times_ns(rate, setup.warmup_s + setup.seconds, spread, setup.seed);
    let queues = if setup.kernel == Kernel::ReusePort { setup.workers } else { 1 };
    let mut model = Model {
        random: Random::new(setup.seed ^ 0x5eed),
        queues: vec![VecDeque::new(); queues],
        idle: (0..setup.workers).collect(),
        ends: BinaryHeap::new(),
        outcome,
        setup,
    };
    for at_ns in arrivals {
        model.advance_to(at_ns);
        model.arrive(at_ns);
    }
    let end_ns = ((model.setup.warmup_s + model.setup.seconds) * 1e9) as u64;
    model.advance_to(end_ns);
    model.note_unfinished(end_ns);
    model.outcome
}

impl Model {
    fn advance_to(&mut self, until_ns: u64) {
        while let Some(&Reverse((at_ns, worker))) = self.ends.peek() {
            if at_ns > until_ns {
                return;
            }
            self.ends.pop();
            let queue = self.queue_of(worker);
            match self.queues[queue].pop_front() {
                Some(arrived_ns) => self.serve(worker, arrived_ns, at_ns),
                None => self.idle.push(worker),
            }
        }
    }

    fn arrive(&mut self, at_ns: u64) {
        self.outcome.arrived += u64::from(self.counted(at_ns));
        let queue = (self.random.next_u64() % self.queues.len() as u64) as usize;
        let wake_ns = self.setup.costs.wake_ns as u64;
        match self.choose(queue) {
            Some(place) => {
                let worker = self.idle.remove(place);
                self.serve(worker, at_ns, at_ns + wake_ns);
            }
            None => self.queues[queue].push_back(at_ns),
        }
    }

    /// The idle worker that is woken for a queue.
    fn choose(&self, queue: usize) -> Option<usize> {
        match self.setup.kernel {
            Kernel::SharedEpoll => {
                let order = self.idle.iter().enumerate();
                order.min_by_key(|(_, worker)| **worker).map(|(place, _)| place)
            }
            Kernel::SharedAccept => (!self.idle.is_empty()).then_some(0),
            Kernel::ReusePort => self.idle.iter().position(|worker| *worker == queue),
        }
    }

    fn serve(&mut self, worker: usize, arrived_ns: u64, from_ns: u64) {
        let at_s = from_ns as f64 / 1e9 - self.setup.warmup_s;
        let service_ns = self.setup.service.draw_ns(worker, at_s, &mut self.random);
        let end_ns = from_ns + service_ns + self.setup.costs.kernel_ns as u64;
        self.ends.push(Reverse((end_ns, worker)));
        if self.counted(arrived_ns) {
            let wires_ns = 2 * self.setup.costs.wire_ns as u64;
            self.outcome.latencies.record(end_ns - arrived_ns + wires_ns);
            self.outcome.served += 1;
            Outcome::count(&mut self.outcome.claimed[worker], at_s);
        }
    }

    /// Connections that still wait have waited at least so long.
    fn note_unfinished(&mut self, end_ns: u64) {
        let warmup_ns = self.setup.warmup_s * 1e9;
        let waiting = self.queues.iter().flatten().filter(|at_ns| **at_ns as f64 >= warmup_ns);
        for at_ns in waiting {
            self.outcome.latencies.record(end_ns - at_ns);
            self.outcome.unfinished += 1;
        }
    }

    fn counted(&self, at_ns: u64) -> bool {
        at_ns as f64 >= self.setup.warmup_s * 1e9
    }

    fn queue_of(&self, worker: usize) -> usize {
        if self.queues.len() == 1 { 0 } else { worker }
    }
}
