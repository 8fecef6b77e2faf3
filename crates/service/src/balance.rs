//! How a connection manager balances, for `haypile balance`: its parameters, its accept queues with
//! the applications that compete, and what it has assigned. Called by `event_loop` for the control
//! socket; several servers' answers become one by listing their managers.

use haypile_engine::Instant;
use haypile_engine::control::names::{ListenerName, ProcessName};
use haypile_engine::control::summary::{AcceptorSummary, QueueSummary};
use serde::{Deserialize, Serialize};

use crate::config::BalanceChange;
use crate::error::Error;
use crate::server::Core;
use crate::times::TimesRow;

/// The answer to the question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BalanceReport {
    /// The connection managers.
    pub managers: Vec<ManagerRow>,
}

/// One connection manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManagerRow {
    /// Its number.
    pub manager: u16,
    /// Its parameters.
    pub balance: BalanceChange,
    /// Connections offered to its own applications.
    pub local: u64,
    /// Connections offered to applications of other managers.
    pub remote: u64,
    /// Offers (of applications) sent to other managers.
    pub offers_sent: u64,
    /// Offers received from them.
    pub offers_received: u64,
    /// Connections that were not claimed in time.
    pub timed_out: u64,
    /// Where the time of its server went.
    #[serde(default)]
    pub times: TimesRow,
    /// Its accept queues.
    pub queues: Vec<QueueRow>,
}

/// One accept queue at one manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueRow {
    /// Where it listens, or a name where this server has no listener of it.
    pub queue: String,
    /// Connections that wait for an application.
    pub waiting: usize,
    /// Who competes for its connections.
    pub acceptors: Vec<AcceptorRow>,
}

/// One application that may take connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AcceptorRow {
    /// Process id, where the process is attached to this server.
    pub pid: Option<i32>,
    /// Its program, likewise.
    pub program: Option<String>,
    /// Home and number, which every server calls it by.
    pub name: String,
    /// The manager that offers it; none: it is local.
    pub offered_by: Option<u16>,
    /// It is given connections now.
    pub ready: bool,
    /// The estimate in microseconds; none: not known yet.
    pub estimate_us: Option<u32>,
    /// Offers that it has not claimed.
    pub unclaimed: u32,
    /// Connections that it has, as far as this manager knows.
    pub open: u32,
    /// Connections that this manager gave it, ever.
    pub assigned: u64,
    /// Its part of all that this manager assigned from the queue, 0 to 1.
    pub share: f64,
}

impl Core {
    /// Changes the parameters as asked, and says how things are; `busy_us` is what the server has
    /// spent in turns with work. The supervisor gives a change to the server that takes this one's place.
    ///
    /// # Errors
    /// What is wrong with the change.
    pub fn balance(
        &mut self,
        now: Instant,
        change: &BalanceChange,
        busy_us: u64,
    ) -> Result<BalanceReport, Error> {
        if !change.is_empty() {
            let balance = change.apply(self.manager.balance())?;
            self.manager.set_balance(balance);
        }
        let Some(manager) = self.managers.manager() else {
            return Ok(BalanceReport { managers: Vec::new() });
        };
        let queues: Vec<QueueSummary> = self.manager.summaries(now);
        let counters = self.manager.counters();
        let row = ManagerRow {
            manager,
            balance: BalanceChange::all_of(&self.manager.balance()),
            local: counters.local,
            remote: counters.remote,
            offers_sent: counters.announced,
            offers_received: counters.heard,
            timed_out: counters.timed_out,
            times: self.times.row(now, busy_us),
            queues: queues.iter().map(|queue| self.queue_row(queue)).collect(),
        };
        Ok(BalanceReport { managers: vec![row] })
    }

    fn queue_row(&self, queue: &QueueSummary) -> QueueRow {
        let address = |listener: &ListenerName| {
            let key = self.store.listeners.get(listener)?;
            Some(self.store.sockets.get(*key)?.local?.to_string())
        };
        let mut names = queue.listeners.iter();
        let name = names.find_map(address).unwrap_or_else(|| format!("{:016x}", queue.group.0));
        let total: u64 = queue.acceptors.iter().map(|acceptor| acceptor.assigned).sum();
        let rows = queue.acceptors.iter().map(|acceptor| self.acceptor_row(acceptor, total));
        QueueRow { queue: name, waiting: queue.waiting, acceptors: rows.collect() }
    }

    fn acceptor_row(&self, acceptor: &AcceptorSummary, total: u64) -> AcceptorRow {
        let name: ProcessName = acceptor.process;
        let process = self.processes.named(name).and_then(|id| self.processes.get(id));
        AcceptorRow {
            pid: process.map(|process| process.pid),
            program: process.map(|process| process.program.clone()),
            name: format!("{}.{}", name.home(), name.number()),
            offered_by: acceptor.offered_by,
            ready: acceptor.ready,
            estimate_us: acceptor.cost_us,
            unclaimed: acceptor.outstanding,
            open: acceptor.open,
            assigned: acceptor.assigned,
            share: if total > 0 { acceptor.assigned as f64 / total as f64 } else { 0.0 },
        }
    }
}
