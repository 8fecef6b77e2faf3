//! What transport servers and connection managers say to each other about accepting. Where both are
//! one server these are calls; between servers the service puts them on rings.

use super::names::{ConnectionName, ListenerName, ProcessName, ServerNumber};

/// Transport server to connection manager.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum ToManager {
    /// The transport server has this listener from now on.
    ListenerOpened {
        /// The listener.
        listener: ListenerName,
        /// The accept queue that it shares with others (`SO_REUSEPORT`); else its own name.
        group: ListenerName,
        /// Who says so.
        server: ServerNumber,
    },
    /// It does not any more: its offers are to be revoked, its waiting connections are forgotten.
    ListenerClosed {
        /// The listener.
        listener: ListenerName,
        /// Who says so.
        server: ServerNumber,
    },
    /// ACCEPT-CONNECTION: a process accepts from now on (said by its home).
    Acceptor {
        /// The listener it accepts from; it is given what comes to any of the group.
        listener: ListenerName,
        /// Who accepts.
        process: ProcessName,
    },
    /// The opposite; what was offered stays offered.
    NotAcceptor {
        /// The listener.
        listener: ListenerName,
        /// Who no longer accepts.
        process: ProcessName,
    },
    /// A connection has completed its handshake.
    Arrived {
        /// The listener it came to.
        listener: ListenerName,
        /// The connection.
        connection: ConnectionName,
    },
    /// CLAIM-CONNECTION, or a revocation that came too late.
    Claimed {
        /// The connection.
        connection: ConnectionName,
        /// The process's home has this manager, which counts the connection by this; another hears
        /// `Open`.
        counts: bool,
    },
    /// The offer was taken back: the connection waits again.
    Revoked {
        /// The connection.
        connection: ConnectionName,
    },
    /// The process has no descriptor for it; it must say again that it accepts.
    Refused {
        /// The connection.
        connection: ConnectionName,
    },
    /// The offer could not be delivered (process unknown here, ring full, no memory).
    OfferFailed {
        /// The connection.
        connection: ConnectionName,
    },
    /// A connection is gone before it was claimed.
    Gone {
        /// The connection.
        connection: ConnectionName,
    },
    /// A claimed connection has closed: its service time, to the manager of the process's home.
    Served {
        /// The listener by which the process accepted it.
        listener: ListenerName,
        /// Who served it.
        process: ProcessName,
        /// From offered to closed, in microseconds.
        service_time_us: u32,
        /// The transport server of the connection.
        server: ServerNumber,
    },
    /// How many connections a process has at a transport server, to the manager of its home: said
    /// where neither `Claimed` nor `Served` says it.
    Open {
        /// The listener by which the process accepted them.
        listener: ListenerName,
        /// Who has them.
        process: ProcessName,
        /// How many there are now.
        open: u32,
        /// The transport server.
        server: ServerNumber,
    },
    /// A process is dead (said by its home).
    ProcessDied {
        /// Which.
        process: ProcessName,
    },
    /// A transport server is dead with all its connections, or says everything anew after this.
    ServerGone {
        /// Which.
        server: ServerNumber,
    },
}

/// Connection manager to transport server.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum ToTransport {
    /// Send CONNECTION-AVAILABLE for `connection` to `process`.
    Offer {
        /// The listener from which the process accepts; in a group not always the one that the
        /// connection came to.
        listener: ListenerName,
        /// The established connection.
        connection: ConnectionName,
        /// The acceptor chosen for it.
        process: ProcessName,
    },
    /// Take the offer back, unless it is claimed.
    Revoke {
        /// The connection offered.
        connection: ConnectionName,
        /// The process that has not claimed it.
        process: ProcessName,
    },
}

/// Connection manager to connection manager: an *offer* in the paper's sense (section 3.3).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum BetweenManagers {
    /// The sender's best application for a queue.
    Best {
        /// The accept queue.
        group: ListenerName,
        /// The listener from which the application accepts.
        listener: ListenerName,
        /// The application with the shortest estimate.
        process: ProcessName,
        /// Its estimate, in microseconds; 0: not known yet.
        service_time_us: u32,
    },
    /// An application, offered by the manager that is told this, has not claimed in time what the sender gave
    /// it, has refused it or could not be reached, and the sender knows nobody else for the queue.
    Busy {
        /// The accept queue.
        group: ListenerName,
        /// The listener from which the application accepts.
        listener: ListenerName,
        /// The application.
        process: ProcessName,
    },
    /// The sender has no application for this queue any more.
    Nobody {
        /// The accept queue.
        group: ListenerName,
    },
}
