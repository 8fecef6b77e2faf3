//! What a simulation counts. Filled by `world` and `linux`, read by the experiments.

use crate::latency::Latencies;

/// Length of the pieces of time in which connections are told apart, seconds.
pub const PIECE_S: f64 = 0.05;

/// Messages, by who talks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// Servers and programs: offers, claims, closes.
    pub programs: u64,
    /// Between servers, about single connections.
    pub servers: u64,
    /// Between connection managers: best applications (the paper's offers).
    pub updates: u64,
}

impl Messages {
    /// All of them.
    pub fn all(&self) -> u64 {
        self.programs + self.servers + self.updates
    }
}

/// An estimate at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// When, seconds.
    pub at_s: f64,
    /// Of which worker.
    pub worker: usize,
    /// What its manager believes, microseconds; none yet without anything served.
    pub estimate_us: Option<f64>,
    /// What it takes at the moment, microseconds, without any waiting.
    pub real_us: f64,
    /// Connections that it has served since the last change of its delay.
    pub served_since_change: u64,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Seconds that were counted.
    pub seconds: f64,
    /// Connections that arrived, and those that were served to the end.
    pub arrived: u64,
    /// See `arrived`.
    pub served: u64,
    /// Connections that were not served when the time was over; their latency counts until then.
    pub unfinished: u64,
    /// From the first frame to the last byte of the answer at the client.
    pub latencies: Latencies,
    /// Connections given to a worker of the server they came to.
    pub local: u64,
    /// By worker and piece of time: connections claimed.
    pub claimed: Vec<Vec<u64>>,
    /// By worker and piece of time: connections that its own server had, and whoever got them.
    pub came: Vec<Vec<u64>>,
    /// By worker and piece of time: those of its own server that it claimed.
    pub claimed_local: Vec<Vec<u64>>,
    /// Messages.
    pub messages: Messages,
    /// Instructions of all servers, counted work alone.
    pub instructions: f64,
    /// Of that, spent on lists of other managers' applications.
    pub update_instructions: f64,
    /// Busy nanoseconds of each server.
    pub busy_ns: Vec<f64>,
    /// Nanoseconds that were spent on messages.
    pub message_ns: f64,
    /// Nanoseconds from arrival at a transport server to the offer there.
    pub assigning: Latencies,
    /// Offers that were taken back.
    pub revoked: u64,
    /// Estimates.
    pub samples: Vec<Sample>,
}

impl Outcome {
    /// Nothing yet, for so many workers.
    pub fn new(workers: usize, servers: usize, seconds: f64) -> Outcome {
        let pieces = (seconds / PIECE_S).ceil() as usize + 1;
        let empty = vec![vec![0; pieces]; workers];
        Outcome {
            seconds,
            claimed: empty.clone(),
            came: empty.clone(),
            claimed_local: empty,
            busy_ns: vec![0.0; servers],
            ..Outcome::default()
        }
    }

    /// Share of the connections that stayed where they came.
    pub fn local_share(&self) -> f64 {
        self.local as f64 / self.claimed.iter().flatten().sum::<u64>().max(1) as f64
    }

    /// Messages for each connection.
    pub fn messages_each(&self) -> f64 {
        self.messages.all() as f64 / self.served.max(1) as f64
    }

    /// Instructions of servers for each connection.
    pub fn instructions_each(&self) -> f64 {
        self.instructions / self.served.max(1) as f64
    }

    /// Connections a second.
    pub fn rate(&self) -> f64 {
        self.served as f64 / self.seconds
    }

    /// Connections a second that the servers could do if all of them were always busy with what
    /// they spent on these: a projection.
    pub fn projected_rate(&self) -> f64 {
        let busy_s = self.busy_ns.iter().sum::<f64>() / self.busy_ns.len().max(1) as f64 / 1e9;
        if busy_s > 0.0 { self.served as f64 / busy_s } else { 0.0 }
    }

    /// Adds one to a piece of time.
    pub fn count(row: &mut [u64], at_s: f64) {
        if let Some(piece) = row.get_mut((at_s.max(0.0) / PIECE_S) as usize) {
            *piece += 1;
        }
    }

    /// The worst estimate of workers that have served at least so many connections since their
    /// delay changed: share by which it is off.
    pub fn worst_estimate(&self, served: u64) -> Option<f64> {
        let old = self.samples.iter().filter(|sample| sample.served_since_change >= served);
        let off = |sample: &Sample| Some((sample.estimate_us? / sample.real_us - 1.0).abs());
        old.filter_map(off).reduce(f64::max)
    }
}
