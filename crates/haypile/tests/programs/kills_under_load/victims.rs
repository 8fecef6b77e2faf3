//! Who is killed, how often, and what that explains: whatever else goes wrong with anybody is a failure of the test.

use super::load::Kind;
use crate::support::random::Random;
use haypile_service::plan::{Plan, ServerSpec};

/// Who is killed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// A client on Haypile, of the kernel's servers or of those on Haypile.
    Client,
    /// A worker of nginx.
    NginxWorker,
    /// A child that accepts in blocking calls.
    PreforkChild,
    /// A child that opens and closes listeners and UDP sockets.
    DoorChild,
    /// The server of datagrams.
    DatagramServer,
    /// A server process that owns connections.
    Server,
    /// One that is a link server, or a connection manager, and nothing else.
    Helper,
    /// Two server processes, one soon after the other.
    TwoServers,
    /// The service's supervisor.
    Supervisor,
    /// Nobody dies: somebody is stopped for a moment.
    Nobody,
}

use Victim::{
    Client, DatagramServer, DoorChild, Helper, NginxWorker, Nobody, PreforkChild, Server,
    Supervisor, TwoServers,
};

/// Of twenty kills so many are of this kind, under one server and under several. The first are those without which a
/// short run would show little.
const OF_ONE: [(Victim, usize); 7] = [
    (Server, 4),
    (Supervisor, 2),
    (NginxWorker, 4),
    (DatagramServer, 3),
    (PreforkChild, 2),
    (Client, 3),
    (DoorChild, 2),
];
const OF_SEVERAL: [(Victim, usize); 9] = [
    (Helper, 4),
    (Server, 4),
    (TwoServers, 2),
    (DoorChild, 2),
    (NginxWorker, 2),
    (DatagramServer, 2),
    (PreforkChild, 1),
    (Client, 2),
    (Supervisor, 1),
];

/// The order of the victims: each has its share, and at least one place while there are places.
pub fn deck(plan: &Plan, kills: usize, random: &mut Random) -> Vec<Victim> {
    let servers = plan.servers();
    let has_helpers = servers.iter().any(|spec| spec.transport.is_none());
    let mut shares = if servers.len() > 1 { OF_SEVERAL.to_vec() } else { OF_ONE.to_vec() };
    shares.retain(|(victim, _)| *victim != Helper || has_helpers);
    // One of each kind, in order of weight, and then the rest of the shares.
    let mut deck: Vec<Victim> = shares.iter().map(|(victim, _)| *victim).collect();
    for (victim, share) in &shares {
        deck.extend(std::iter::repeat_n(*victim, (kills * share / 20).saturating_sub(1)));
    }
    deck.truncate(kills);
    while deck.len() < kills {
        deck.push(shares[random.below(shares.len() as u64) as usize].0);
    }
    for place in (1..deck.len()).rev() {
        deck.swap(place, random.below(place as u64 + 1) as usize);
    }
    deck
}

/// Servers that may be killed as `victim`.
pub fn servers_for(victim: Victim, plan: &Plan) -> Vec<ServerSpec> {
    let fits = |spec: &ServerSpec| match victim {
        Server => spec.transport.is_some(),
        Helper => spec.transport.is_none(),
        _ => true,
    };
    plan.servers().into_iter().filter(fits).collect()
}

/// What may go wrong with the load from the kernel's side when a victim dies.
pub fn is_explained(victim: Victim, kind: Kind, what: &str) -> bool {
    if what.contains("WRONG") || what == "SILENCE" {
        return false;
    }
    // The end of a process: what it had accepted is reset, or was cut short by its close.
    let ended = ["ConnectionReset", "UnexpectedEof", "BrokenPipe"].contains(&what);
    let (lost, refused) = (what == "datagram lost", what == "ConnectionRefused");
    match (victim, kind) {
        // Datagrams may always be lost on a busy machine.
        (_, Kind::Datagram | Kind::DoorDatagram) if lost => true,
        // Doors are closed all the time.
        (_, Kind::Door) if ended || refused => true,
        (_, Kind::DoorDatagram) if refused => true,
        (Helper, Kind::Door) => what == "cut off by a death",
        (NginxWorker, Kind::HttpKept | Kind::HttpShort) | (PreforkChild, Kind::Echo) => ended,
        // Nobody has the port until the next one is there.
        (DatagramServer | Server | TwoServers, Kind::Datagram) => refused,
        (Server | TwoServers, _) => ended || what == "cut off by a death",
        // The interface goes, and with it the way there.
        (Supervisor, _) => true,
        _ => false,
    }
}

/// What programs on Haypile may say when a victim dies: `what` is an errno's name, `inside` whether the program talks
/// to others on Haypile.
pub fn is_explained_inside(victim: Victim, inside: bool, place: &str, what: &str) -> bool {
    let ended = ["ECONNRESET", "EPIPE"].contains(&what);
    match victim {
        PreforkChild => inside && ended && place != "datagram",
        DatagramServer => inside && what == "ECONNREFUSED" && place == "datagram",
        Server | TwoServers => ended || (what == "ECONNREFUSED" && place == "datagram"),
        _ => false,
    }
}

/// Whether somebody's connections end without a word, so that peers need not wait for an answer.
pub fn ends_connections(victim: Victim) -> bool {
    !matches!(victim, Nobody | Helper)
}
