//! Who is who among the servers of a plan: which components this one runs, and which process runs
//! the components that it talks to. Made from the roster, and anew when that changes; read by everybody
//! who says something to another server. Applications know transport servers alone, messages name components, rings
//! lead to processes: this file turns one number into the other.

use haypile_engine::control::names::{ProcessName, ServerNumber};

use crate::homes::Place;
use crate::plan::{Plan, ServerSpec};
use crate::roster::Roster;

/// A server's number among all servers of the plan.
pub type ProcessNumber = u16;

/// The servers as one of them sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles {
    roster: Roster,
    own: ServerSpec,
    /// Processes of the transport servers, link servers and managers, by their numbers.
    transports: Vec<ProcessNumber>,
    links: Vec<ProcessNumber>,
    managers: Vec<ProcessNumber>,
}

impl Roles {
    /// Server `own` of a plan, at its start.
    ///
    /// # Panics
    /// When the plan has no such server.
    pub fn new(plan: &Plan, own: ProcessNumber) -> Roles {
        Roles::of(Roster::of(plan), own).expect("a server of the plan")
    }

    /// Server `own` of these; `None` when there is no such server.
    pub fn of(roster: Roster, own: ProcessNumber) -> Option<Roles> {
        let servers = roster.servers();
        let own = *servers.get(usize::from(own))?;
        let processes = |component: fn(&ServerSpec) -> Option<u16>| {
            let mut list: Vec<(u16, u16)> =
                servers.iter().filter_map(|spec| Some((component(spec)?, spec.number))).collect();
            list.sort_unstable();
            list.into_iter().map(|(_, process)| process).collect::<Vec<ProcessNumber>>()
        };
        let transports = processes(|spec| spec.transport);
        let links = processes(|spec| spec.link);
        let managers = processes(|spec| spec.manager);
        Some(Roles { own, transports, links, managers, roster })
    }

    /// The same server among more or fewer of them; `None` unless these are the same servers.
    pub fn among(&self, roster: Roster) -> Option<Roles> {
        let continues = roster.continues(&self.roster);
        continues.then(|| Roles::of(roster, self.own.number)).flatten()
    }

    /// The only server of its plan.
    pub fn combined() -> Roles {
        Roles::new(&Plan::combined(), 0)
    }

    /// Who there is.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// This server.
    pub fn own(&self) -> ServerSpec {
        self.own
    }

    /// The home of a process.
    pub fn home_of(&self, process: ProcessName) -> ServerNumber {
        self.roster.home_of(process)
    }

    /// Which transport server this is to applications.
    pub fn place(&self) -> Place {
        Place { server: self.own.transport.unwrap_or_default(), servers: self.transport_count() }
    }

    /// Which transport server this one is, if it is one.
    pub fn transport(&self) -> Option<ServerNumber> {
        self.own.transport
    }

    /// Which connection manager this one is, if it is one.
    pub fn manager(&self) -> Option<ServerNumber> {
        self.own.manager
    }

    /// Which link server this one is, if it is one.
    pub fn link(&self) -> Option<u16> {
        self.own.link
    }

    /// All servers of the plan, by process.
    pub fn servers(&self) -> &[ServerSpec] {
        self.roster.servers()
    }

    /// How many transport servers there are.
    pub fn transport_count(&self) -> u16 {
        self.transports.len() as u16
    }

    /// How many connection managers there are.
    pub fn manager_count(&self) -> u16 {
        self.managers.len() as u16
    }

    /// How many link servers there are.
    pub fn link_count(&self) -> u16 {
        self.links.len() as u16
    }

    /// The process of a transport server.
    pub fn process_of_transport(&self, server: ServerNumber) -> Option<ProcessNumber> {
        self.transports.get(usize::from(server)).copied()
    }

    /// The process of a connection manager.
    pub fn process_of_manager(&self, manager: ServerNumber) -> Option<ProcessNumber> {
        self.managers.get(usize::from(manager)).copied()
    }

    /// The process of a link server.
    pub fn process_of_link(&self, link: u16) -> Option<ProcessNumber> {
        self.links.get(usize::from(link)).copied()
    }

    /// The connection manager of a transport server, which any number from outside may name: one
    /// that there is not has that of the first.
    pub fn manager_of(&self, server: ServerNumber) -> ServerNumber {
        self.roster.manager_of(server).unwrap_or_default()
    }

    /// The link server over which a transport server sends.
    pub fn link_of(&self, server: ServerNumber) -> u16 {
        self.roster.link_of(server).unwrap_or_default()
    }

    /// Whether another server says anything to this one, or this one to it.
    pub fn talks_to(&self, other: ProcessNumber) -> bool {
        let Some(other) = self.servers().get(usize::from(other)) else { return false };
        other.number != self.own.number && talk(&self.own, other)
    }

    /// Whether this server and another hand frames to each other.
    pub fn shares_frames_with(&self, other: ProcessNumber) -> bool {
        let Some(other) = self.servers().get(usize::from(other)) else { return false };
        other.number != self.own.number && share_frames(&self.own, other)
    }
}

/// Whether two servers of a plan talk: those that hand frames to each other do, transport servers
/// and managers know each other, and so do managers.
pub fn talk(one: &ServerSpec, other: &ServerSpec) -> bool {
    let pair = |a: &ServerSpec, b: &ServerSpec| a.transport.is_some() && b.manager.is_some();
    let managers = one.manager.is_some() && other.manager.is_some();
    share_frames(one, other) || pair(one, other) || pair(other, one) || managers
}

/// Whether frames cross between two servers of a plan: from link servers to transport servers and
/// back, and between transport servers (`switch` says what).
pub fn share_frames(one: &ServerSpec, other: &ServerSpec) -> bool {
    let pair = |a: &ServerSpec, b: &ServerSpec| {
        a.transport.is_some() && (b.link.is_some() || b.transport.is_some())
    };
    pair(one, other) || pair(other, one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(plan: &str, own: u16) -> Roles {
        Roles::new(&plan.parse().unwrap(), own)
    }

    #[test]
    fn components_are_found_wherever_they_run() {
        let split = roles("TS2+LS1+CM2", 3);
        assert_eq!((split.transport(), split.link(), split.manager()), (None, None, Some(0)));
        assert_eq!(split.process_of_transport(1), Some(1));
        assert_eq!(split.process_of_link(0), Some(2));
        assert_eq!(split.process_of_manager(1), Some(4));
        assert_eq!(split.process_of_manager(2), None);
        assert_eq!((split.manager_of(1), split.manager_of(900)), (1, 0));
        let counts = (split.transport_count(), split.link_count(), split.manager_count());
        assert_eq!(counts, (2, 1, 2));
        let combined = roles("TS2LS2CM2", 1);
        assert_eq!((combined.transport(), combined.link_of(1)), (Some(1), 1));
    }

    #[test]
    fn servers_talk_to_those_that_they_need() {
        let link = roles("TS2+LS1+CM2", 2);
        assert_eq!(
            [0, 1, 2, 3, 4].map(|other| link.talks_to(other)),
            [true, true, false, false, false]
        );
        let transport = roles("TS2+LS1+CM2", 0);
        assert_eq!(
            [0, 1, 2, 3, 4, 5].map(|other| transport.talks_to(other)),
            [false, true, true, true, true, false]
        );
        assert!(
            transport.shares_frames_with(2)
                && transport.shares_frames_with(1)
                && !transport.shares_frames_with(3)
        );
        let manager = roles("TS2+LS1+CM2", 3);
        assert!(manager.talks_to(4) && !manager.shares_frames_with(4));
        assert!(!Roles::combined().talks_to(0) && !Roles::combined().talks_to(1));
    }
}
