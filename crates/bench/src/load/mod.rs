//! The load generator: requests over any [`Carrier`], closed loop (each session asks again as soon
//! as it is answered) or open loop (each request has a time fixed beforehand, and its latency
//! counts from that time).
//!
//! The same requests and the same state machine run over the kernel's sockets ([`kernel`]) and over
//! Haypile's engine straight on a link ([`engine`]), so that the generator costs the same against
//! both. Runs as a process of its own, started by `parts`; [`Spec`] and [`Outcome`] travel as JSON.
//! Read [`generator`] for the loop, [`conversation`] for what is said.

pub mod conversation;
pub mod engine;
pub mod generator;
pub mod kernel;

use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::latency::{Latencies, Packed};
use crate::schedule::Spread;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A connection for each HTTP request: connect, GET, answer, the server closes.
    Short,
    /// HTTP requests over kept connections.
    KeepAlive,
    /// Messages of this many bytes that come back, over kept connections.
    Echo(usize),
    /// Bytes from us to the server, without end.
    Upload,
    /// Bytes from the server to us, without end.
    Download,
}

/// When requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// Every session asks again as soon as it is answered.
    Closed,
    /// As before, but every request waits first, so that everybody has gone to sleep: microseconds.
    AfterQuiet(u64),
    /// At a rate of requests a second over all sessions, whatever the answers do.
    Open {
        /// Requests a second.
        rate: f64,
        /// How they are spread.
        spread: Spread,
        /// Seed of the schedule.
        seed: u64,
    },
}

/// One load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Where the server is.
    pub target: SocketAddr,
    /// What is asked.
    pub work: Work,
    /// When.
    pub pace: Pace,
    /// Sessions at the same time.
    pub connections: usize,
    /// Seconds before anything is counted.
    pub warmup_s: f64,
    /// Seconds that are counted.
    pub duration_s: f64,
    /// Look for events without ever sleeping.
    pub polling: bool,
    /// Bytes of the body of each HTTP answer; other lengths are failures.
    pub body_bytes: usize,
}

/// What a load measured, as it travels between processes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Seconds that were counted.
    pub seconds: f64,
    /// Requests answered rightly, connections closed included where each has its own.
    pub completed: u64,
    /// Requests that failed.
    pub failed: u64,
    /// What went wrong, the first few.
    pub errors: Vec<String>,
    /// Bytes of bulk work, or of answers.
    pub bytes: u64,
    /// Open loop: requests that were due and not yet begun when the time was over.
    pub backlog: u64,
    /// Congestion control that the kernel said of our sockets; none where it was not asked.
    pub congestion: Option<String>,
    /// Latencies of the completed ones.
    pub latencies: Packed,
}

impl Outcome {
    /// Completed requests a second.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.completed as f64 / self.seconds } else { 0.0 }
    }

    /// Bits a second of bulk work, in 10^9.
    pub fn gigabits(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 * 8.0 / self.seconds / 1e9 } else { 0.0 }
    }

    /// The histogram.
    pub fn histogram(&self) -> Latencies {
        Latencies::unpack(&self.latencies)
    }
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes.
    Bytes(usize),
    /// Nothing yet; an event follows.
    Nothing,
    /// The peer has closed.
    End,
}

/// What carries bytes: sockets of the kernel, the engine on a link, or a made-up world in tests. Sessions are numbered
/// from 0; none is used by two threads.
pub trait Carrier {
    /// Nanoseconds on its clock.
    fn now_ns(&mut self) -> u64;
    /// Begins a connection for a session that has none; an event tells when bytes can be sent.
    ///
    /// # Errors
    /// When that is impossible at once.
    fn open(&mut self, session: usize) -> io::Result<()>;
    /// Sends from the front of `bytes`; returns how many were taken. 0: not connected yet, or full;
    /// an event follows.
    ///
    /// # Errors
    /// What ended the connection.
    fn send(&mut self, session: usize, bytes: &[u8]) -> io::Result<usize>;
    /// Takes received bytes.
    ///
    /// # Errors
    /// What ended the connection.
    fn receive(&mut self, session: usize, out: &mut [u8]) -> io::Result<Received>;
    /// Ends a session's connection, if it has one.
    fn close(&mut self, session: usize);
    /// Waits until something happens to a session or the time has come, and names the sessions to look at. May name
    /// some in vain, and may return early.
    ///
    /// # Errors
    /// When the carrier is of no more use.
    fn wait(&mut self, until_ns: u64, events: &mut Vec<usize>) -> io::Result<()>;
    /// The load is over: ends all connections, so that the server is as it was.
    fn end(&mut self);
    /// The congestion control of its connections, where the kernel tells.
    fn congestion(&self) -> Option<String> {
        None
    }
}
