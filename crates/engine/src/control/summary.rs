//! What a connection manager tells people about balancing: one summary of each accept queue.

use super::names::{ListenerName, ProcessName, ServerNumber};

/// An application as the manager of a queue sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptorSummary {
    /// The process.
    pub process: ProcessName,
    /// The listener by which it accepts.
    pub listener: ListenerName,
    /// The connection manager that offers it; `None`: it is local.
    pub offered_by: Option<ServerNumber>,
    /// It is given connections now: neither too slow to claim, nor full, nor resting.
    pub ready: bool,
    /// Its cost in microseconds; `None`: not known yet.
    pub cost_us: Option<u32>,
    /// Offers that it has not answered.
    pub outstanding: u32,
    /// Connections claimed and not closed, as far as this manager knows.
    pub open: u32,
    /// Connections that this manager offered it, ever.
    pub assigned: u64,
}

/// One accept queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSummary {
    /// Its name.
    pub group: ListenerName,
    /// Listeners of it.
    pub listeners: Vec<ListenerName>,
    /// Connections that wait for an acceptor.
    pub waiting: usize,
    /// Local applications first, then offers.
    pub acceptors: Vec<AcceptorSummary>,
    /// What the others were told last: process and cost.
    pub announced: Option<(ProcessName, u32)>,
}
