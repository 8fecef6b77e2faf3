//! What the service tells about itself: the rows of `haypile ss` and the parts of `haypile status`.
//!
//! Owns the shapes of these answers on the control socket, so that the command line reads the same
//! types that the service writes. Called by `event_loop`; never on the data path.

use std::net::IpAddr;

use haypile_engine::shard::{SocketState, SocketSummary};
use haypile_engine::{AddressState, AddressSummary, Instant, Origin, SocketId, State};
use haypile_link::port::Port;
use haypile_shm::limits::CHUNK_SIZE;
use haypile_shm::messages::SocketKind;
use haypile_shm::stream::ServiceStream;
use serde::{Deserialize, Serialize};

use crate::sandbox::Confinement;
use crate::server::{Core, Server};
use crate::slab::Key;
use crate::sockets::Socket;
use crate::times::TimesRow;

/// One line of `haypile ss`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketRow {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// State, as ss(8) names it.
    pub state: String,
    /// Bytes received and not read; for a listener, connections that wait.
    pub recv_queue: u64,
    /// Bytes not acknowledged; for a listener, its backlog.
    pub send_queue: u64,
    /// Own address and port.
    pub local: String,
    /// The peer's; `None` for a listener.
    pub remote: Option<String>,
    /// The process that has it; `None` where nobody or several have.
    pub pid: Option<i32>,
    /// Its program.
    pub program: Option<String>,
    /// When the next timer is due, in milliseconds.
    pub timer_ms: Option<u64>,
}

/// Which sockets are asked for.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketChoice {
    /// Listeners and UDP sockets without a peer, instead of the others.
    pub listening: bool,
    /// Everything, TIME-WAIT records too.
    pub all: bool,
    /// TCP sockets; with `udp` too, or neither: both.
    pub tcp: bool,
    /// UDP sockets.
    pub udp: bool,
}

/// All lines of `haypile ss`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockets {
    /// One each.
    pub sockets: Vec<SocketRow>,
}

/// Addresses and what is needed beside them, configured or learned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// One row each.
    pub addresses: Vec<AddressRow>,
    /// Default routers.
    pub gateways: Vec<String>,
    /// Name servers.
    pub name_servers: Vec<String>,
    /// What a DHCP server gave.
    pub lease: Option<LeaseRow>,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRow {
    /// With its prefix.
    pub address: String,
    /// `configured`, `dhcp`, `link-local` or `router`.
    pub origin: String,
    /// `tentative`, `preferred`, `deprecated` or `duplicate`.
    pub state: String,
    /// Seconds until it ends; `None` for never.
    pub valid_s: Option<u64>,
}

/// A DHCP lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// The address with its prefix.
    pub address: String,
    /// Who gave it.
    pub server: String,
    /// Seconds until it is prolonged.
    pub renew_s: u64,
    /// Seconds until it ends.
    pub expires_s: u64,
}

/// The answer to `haypile status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Process id of the service: its supervisor's.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Its plan.
    pub plan: String,
    /// The link and its mode, in one line.
    pub link: String,
    /// The service's addresses that are in use.
    pub addresses: Vec<String>,
    /// All of them, with where they came from.
    pub network: Network,
    /// The link's other end.
    pub host_addresses: Vec<String>,
    /// One row each.
    pub servers: Vec<ServerRow>,
    /// Frames and other things dropped, by reason; only reasons that have happened.
    pub drops: Vec<CountRow>,
    /// Everything else that was counted; only what has happened.
    pub counters: Vec<CountRow>,
    /// Stream memory.
    pub memory: Memory,
    /// One row each.
    pub processes: Vec<ProcessRow>,
}

/// One server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ServerRow {
    /// Its number.
    pub server: u32,
    /// Its process; 0 while it is being started again.
    pub pid: i32,
    /// The processor it is tied to.
    pub core: Option<u32>,
    /// The user it is.
    pub user: u32,
    /// Its sandbox: on or off, and what could not be given up.
    pub sandbox: String,
    /// How often it was started again.
    pub restarts: u64,
    /// What it is.
    pub components: Vec<String>,
    /// Share of the last second spent with work, 0 to 100.
    pub busy_percent: f64,
    /// Turns in all.
    pub turns: u64,
    /// Turns in which something moved.
    pub busy_turns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Frames received.
    pub rx_frames: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Connections, half-open and closing ones included.
    pub connections: u64,
    /// Where its time went.
    #[serde(default)]
    pub times: TimesRow,
}

/// Something counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountRow {
    /// Its name.
    pub name: String,
    /// What it means.
    pub text: String,
    /// How often.
    pub count: u64,
}

/// Stream memory of all domains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Trust domains.
    pub domains: u64,
    /// Sockets with a record in a domain.
    pub sockets: u64,
    /// Bytes of chunks in use.
    pub stream_bytes: u64,
    /// Bytes of connections that nobody has claimed.
    pub unclaimed_bytes: u64,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRow {
    /// Process id.
    pub pid: i32,
    /// Program.
    pub program: String,
    /// Sockets that it holds alone.
    pub sockets: u64,
    /// Offers that it has not answered.
    pub offers: u64,
}

/// What `status` says that the server itself does not know.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Its plan.
    pub plan: String,
    /// The service's addresses.
    pub addresses: Vec<String>,
    /// The link's other end.
    pub host_addresses: Vec<String>,
    /// Configured name servers.
    pub name_servers: Vec<IpAddr>,
    /// Which server of the plan speaks.
    pub server: u16,
    /// How it is confined.
    pub confinement: Confinement,
}

impl Core {
    /// The sockets that `haypile ss` asks for, as they are now, in no order.
    pub fn sockets_chosen(&self, choice: &SocketChoice) -> Vec<SocketSummary> {
        let SocketChoice { listening, all, tcp, udp } = *choice;
        let wanted = |summary: &SocketSummary| {
            // As with ss(8), a UDP socket without a peer is among the listeners.
            let listener = match summary.state {
                SocketState::Datagram => summary.remote.is_none(),
                state => state == SocketState::Listen,
            };
            let protocol = protocol(summary);
            // Both or neither: all.
            if tcp != udp && tcp != (protocol == "tcp") {
                return false;
            }
            let hidden = summary.state == SocketState::Tcp(State::TimeWait);
            all || (listener == listening && !hidden)
        };
        self.shard.sockets().filter(wanted).collect()
    }

    /// What is to be said of one of them.
    pub fn socket_row(&self, summary: &SocketSummary) -> SocketRow {
        let owner = summary.id.and_then(|id| self.owner_of(id));
        SocketRow {
            protocol: protocol(summary).to_string(),
            state: state_name(summary.state, summary.remote.is_some()).to_string(),
            recv_queue: self.received(summary),
            send_queue: self.unacknowledged(summary),
            local: summary.local.to_string(),
            remote: summary.remote.map(|remote| remote.to_string()),
            pid: owner.map(|process| process.pid),
            program: owner.map(|process| process.program.clone()),
            timer_ms: summary.timeout.map(|due| due.since(self.now) / 1000),
        }
    }

    /// What waits to be read: the shard hears only now and then how far a program is.
    fn received(&self, summary: &SocketSummary) -> u64 {
        let Some(socket) = self.socket_of(summary) else { return summary.receive_queue };
        match &socket.stream {
            Some(stream) => stream.rx_waiting(),
            None => summary.receive_queue,
        }
    }

    /// What is not acknowledged, with what is written and that the shard has yet to hear of.
    fn unacknowledged(&self, summary: &SocketSummary) -> u64 {
        let stream = self.socket_of(summary).filter(|one| one.kind == SocketKind::Connection);
        let unheard =
            stream.and_then(|one| one.stream.as_ref()).map_or(0, ServiceStream::tx_unheard);
        summary.send_queue + unheard
    }

    fn socket_of(&self, summary: &SocketSummary) -> Option<&Socket> {
        self.store.sockets.get(self.store.key_of(summary.id?)?)
    }

    /// The addresses that can be used now.
    pub fn usable_addresses(&self) -> Vec<String> {
        let usable = self.shard.addresses().filter(|address| {
            matches!(address.state, AddressState::Preferred | AddressState::Deprecated)
        });
        usable.map(|address| address.cidr.to_string()).collect()
    }

    fn network(&self, configured: &[IpAddr]) -> Network {
        let seconds = |at: Instant| at.since(self.now) / 1_000_000;
        let row = |address: AddressSummary| AddressRow {
            address: address.cidr.to_string(),
            origin: match address.origin {
                Origin::Static => "configured",
                Origin::Dhcp => "dhcp",
                Origin::LinkLocal => "link-local",
                Origin::RouterAdvertisement => "router",
            }
            .to_string(),
            state: match address.state {
                AddressState::Tentative => "tentative",
                AddressState::Preferred => "preferred",
                AddressState::Deprecated => "deprecated",
                AddressState::Duplicate => "duplicate",
            }
            .to_string(),
            valid_s: address.valid_until.map(seconds),
        };
        let name_servers = configured.iter().copied().chain(self.shard.name_servers());
        Network {
            addresses: self.shard.addresses().map(row).collect(),
            gateways: self.shard.gateways().map(|gateway| gateway.to_string()).collect(),
            name_servers: name_servers.map(|server| server.to_string()).collect(),
            lease: self.shard.lease().map(|lease| LeaseRow {
                address: lease.cidr.to_string(),
                server: lease.server.to_string(),
                renew_s: seconds(lease.renew_at),
                expires_s: seconds(lease.expires_at),
            }),
        }
    }

    fn owner_of(&self, id: SocketId) -> Option<&crate::processes::Process> {
        let key = self.store.key_of(id)?;
        self.processes.get(self.store.sockets.get(key)?.owner?)
    }

    fn memory(&self) -> Memory {
        let mut memory =
            Memory { unclaimed_bytes: self.store.unclaimed_bytes(), ..Memory::default() };
        for (_, domain) in self.store.domains.iter() {
            memory.domains += 1;
            memory.sockets += u64::from(domain.table.used());
            memory.stream_bytes += u64::from(domain.arena.used_chunks()) * CHUNK_SIZE as u64;
        }
        memory
    }

    /// It is a socket, and not what stays of one that has moved to another server.
    fn is_here(&self, key: Key) -> bool {
        self.store.sockets.get(key).is_some_and(|socket| socket.stub.is_none())
    }

    fn process_rows(&self) -> Vec<ProcessRow> {
        self.processes
            .iter()
            .map(|(_, process)| ProcessRow {
                pid: process.pid,
                program: process.program.clone(),
                sockets: process.sockets.iter().filter(|key| self.is_here(**key)).count() as u64,
                offers: process.offers.values().map(|count| u64::from(*count)).sum(),
            })
            .collect()
    }
}

impl<P: Port> Server<P> {
    /// Everything that `haypile status` shows.
    pub fn status(&self, facts: &Facts, now: Instant) -> Status {
        let port = self.link.port();
        let link = port.counters();
        let row = ServerRow {
            server: u32::from(facts.server),
            pid: facts.confinement.pid,
            core: facts.confinement.core,
            user: facts.confinement.user,
            sandbox: facts.confinement.describe(),
            restarts: 0,
            components: self.core.rings.roles().own().components(),
            busy_percent: self.load.percent(now),
            turns: self.load.turns,
            busy_turns: self.load.busy_turns,
            sleeps: self.load.sleeps,
            rx_frames: link.rx_frames,
            tx_frames: link.tx_frames,
            connections: self.core.shard.connection_count() as u64,
            times: self.core.times.row(now, self.load.busy_us),
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_string(),
            pid: std::process::id(),
            uptime_s: self.load.uptime_us(now) / 1_000_000,
            plan: facts.plan.clone(),
            link: self.core.rings.roles().link().map(|_| port.describe()).unwrap_or_default(),
            addresses: self.core.usable_addresses(),
            network: self.core.network(&facts.name_servers),
            host_addresses: facts.host_addresses.clone(),
            servers: vec![row],
            drops: self.drops(),
            counters: self.counts(),
            memory: self.core.memory(),
            processes: self.core.process_rows(),
        }
    }

    fn drops(&self) -> Vec<CountRow> {
        let drops = self.core.shard.counters().drops();
        happened(drops.map(|(reason, count)| (reason.name(), reason.text(), count)))
    }

    fn counts(&self) -> Vec<CountRow> {
        let engine = self.core.shard.counters().iter();
        let engine = engine.map(|(counter, count)| (counter.name(), counter.text(), count));
        let link = self.link.port().counters().named().into_iter();
        let link = link.chain(self.link.port().more_counters());
        let link = link.map(|(name, count)| (name, "of the link", count));
        let manager = self.core.manager.counters();
        let manager = [
            ("connections_offered", "offers sent to acceptors", manager.offered),
            ("connections_claimed", "connections claimed by applications", manager.claimed),
            ("offers_revoked", "offers taken back", manager.revoked),
            ("offers_sent", "best applications told to other managers", manager.announced),
            ("offers_heard", "best applications of other managers", manager.heard),
            ("offers_timed_out", "offers not claimed in time", manager.timed_out),
            ("offers_refused", "offers that could not be used or taken", manager.refused),
        ];
        let diag = self.core.diag.counters();
        let diag = [
            ("destroy_messages", "sockets destroyed, as told by the kernel", diag.messages),
            ("destroy_overruns", "times the kernel lost such messages", diag.overruns),
            ("witness_listings", "listings of living placeholders", diag.listings),
            ("stream_misses", "bytes asked of sockets without any", self.core.store.misses),
        ];
        let own = self.core.counters.rows();
        let rings = self.core.rings.counters();
        let rings = [
            ("peer_messages_sent", "messages to other servers", rings.sent),
            ("peer_messages_heard", "messages of other servers", rings.received),
            ("peer_rings", "other servers woken for messages", rings.rung),
            ("peer_absent", "messages to servers that were not there", rings.absent),
            ("peer_overrun", "messages that another server did not take in time", rings.overrun),
            ("peer_corrupt", "rings in which another server wrote nonsense", rings.corrupt),
        ];
        let switch = self.link.switch().map(|switch| switch.counters().named());
        let switch = switch.into_iter().flatten();
        let switch: Vec<(String, u64)> =
            switch.map(|(name, count)| (format!("switch_{name}"), count)).collect();
        let switch = switch.iter().map(|(name, count)| (name.as_str(), "at the switch", *count));
        let said: Vec<(String, u64)> = self.core.conversation.rows().collect();
        let said = said.iter().map(|(name, count)| (name.as_str(), "among servers", *count));
        let own = own.into_iter().chain(rings).chain(switch).chain(said);
        happened(engine.chain(link).chain(manager).chain(diag).chain(own))
    }
}

fn happened<'a>(counts: impl Iterator<Item = (&'a str, &'a str, u64)>) -> Vec<CountRow> {
    counts
        .filter(|(_, _, count)| *count > 0)
        .map(|(name, text, count)| CountRow { name: name.into(), text: text.into(), count })
        .collect()
}

fn protocol(summary: &SocketSummary) -> &'static str {
    if summary.state == SocketState::Datagram { "udp" } else { "tcp" }
}

/// The name of ss(8) for a connection's state.
pub fn state_of(state: State) -> &'static str {
    state_name(SocketState::Tcp(state), true)
}

/// The names of ss(8).
fn state_name(state: SocketState, has_peer: bool) -> &'static str {
    match state {
        SocketState::Datagram if has_peer => "ESTAB",
        SocketState::Listen => "LISTEN",
        SocketState::Tcp(State::Closed) | SocketState::Datagram => "UNCONN",
        SocketState::Tcp(State::SynSent) => "SYN-SENT",
        SocketState::Tcp(State::SynReceived) => "SYN-RECV",
        SocketState::Tcp(State::Established) => "ESTAB",
        SocketState::Tcp(State::FinWait1) => "FIN-WAIT-1",
        SocketState::Tcp(State::FinWait2) => "FIN-WAIT-2",
        SocketState::Tcp(State::CloseWait) => "CLOSE-WAIT",
        SocketState::Tcp(State::Closing) => "CLOSING",
        SocketState::Tcp(State::LastAck) => "LAST-ACK",
        SocketState::Tcp(State::TimeWait) => "TIME-WAIT",
    }
}
