//! Plans: which servers run which of the three components.
//!
//! A plan is written in the notation of the PIKA paper: `TS2LS2CM2` is two servers that each are
//! transport server, link server and connection manager; `TS8LS8+CM2` is eight servers with the
//! first two parts combined and two more connection managers alone; `TS8LS8CM2` is eight servers
//! of which two are also connection managers. Called by `config`; `roster` keeps who is who while
//! the plan changes, `roles` is what one server sees of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The three components of the network service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// Owns flows (`TS`).
    Transport,
    /// Owns the queues of a link (`LS`).
    Link,
    /// Owns listeners and acceptors (`CM`).
    Manager,
}

/// Servers that run the same program: the components in it and how many servers have each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Components with the number of the group's servers that run them; at least one, each once.
    /// The number of servers is the largest of them.
    pub members: Vec<(Component, u16)>,
}

/// A checked plan. Every component is in exactly one group, with at least one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    groups: Vec<Group>,
}

/// One server of a plan: a process, with the components it runs. The numbers count the servers with
/// that component, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSpec {
    /// Its number among all servers of the plan, from 0, in the order of the groups.
    pub number: u16,
    /// Which transport server it is.
    pub transport: Option<u16>,
    /// Which link server it is: it owns the link's queue of this number.
    pub link: Option<u16>,
    /// Which connection manager it is.
    pub manager: Option<u16>,
}

impl ServerSpec {
    /// The names of its components.
    pub fn components(&self) -> Vec<String> {
        let has = [self.transport, self.link, self.manager];
        let names = ["transport", "link", "connection manager"];
        let own = has.iter().zip(names).filter(|(number, _)| number.is_some());
        own.map(|(_, name)| name.to_string()).collect()
    }
}

/// The most servers of one component that run.
pub const RUNNING_MAX: u16 = haypile_shm::epoch::EPOCH_SERVERS;

/// The most servers of one component that a plan may name.
pub const SERVERS_MAX: u16 = 1024;

impl Plan {
    /// The default: one server that is all three.
    pub fn combined() -> Plan {
        let members =
            vec![(Component::Transport, 1), (Component::Link, 1), (Component::Manager, 1)];
        Plan { groups: vec![Group { members }] }
    }

    /// The groups, in the order written.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The servers, in the order of their numbers. In a group the first servers have the components
    /// of which there are fewer.
    pub fn servers(&self) -> Vec<ServerSpec> {
        let mut servers = Vec::new();
        for group in &self.groups {
            let most = group.members.iter().map(|&(_, count)| count).max().unwrap_or(0);
            for place in 0..most {
                let has = |wanted: Component| {
                    let mut members = group.members.iter();
                    let found =
                        members.any(|&(component, count)| component == wanted && place < count);
                    found.then_some(place)
                };
                servers.push(ServerSpec {
                    number: servers.len() as u16,
                    transport: has(Component::Transport),
                    link: has(Component::Link),
                    manager: has(Component::Manager),
                });
            }
        }
        servers
    }

    /// How many servers have a component.
    pub fn count(&self, component: Component) -> u16 {
        let members = self.groups.iter().flat_map(|group| &group.members);
        members.filter(|member| member.0 == component).map(|member| member.1).sum()
    }

    /// The connection manager of a transport server: its own where the same server has both, else
    /// they are dealt out in turn.
    pub fn manager_of(&self, transport: u16) -> u16 {
        let own = self.servers().into_iter().find(|server| server.transport == Some(transport));
        let dealt = transport % self.count(Component::Manager).max(1);
        own.and_then(|server| server.manager).unwrap_or(dealt)
    }

    /// The link server over which a transport server sends: its own where the same server has both,
    /// else they are dealt out in turn.
    pub fn link_of(&self, transport: u16) -> u16 {
        let own = self.servers().into_iter().find(|server| server.transport == Some(transport));
        let dealt = transport % self.count(Component::Link).max(1);
        own.and_then(|server| server.link).unwrap_or(dealt)
    }

    /// Whether such a plan can run anywhere.
    ///
    /// # Errors
    /// When there are more servers of a component than applications and messages can name.
    pub fn check_runnable(&self) -> Result<(), Error> {
        for component in [Component::Transport, Component::Link, Component::Manager] {
            let count = self.count(component);
            if count > RUNNING_MAX {
                return Err(Error::usage(
                    format_args!("plan {self}"),
                    format_args!("{component}{count} is more than a service can have"),
                    format_args!("use at most {component}{RUNNING_MAX}"),
                ));
            }
        }
        Ok(())
    }

    /// Whether it can run on a link, which has one queue or as many as are wanted.
    ///
    /// # Errors
    /// When link servers would have to share a queue.
    pub fn check_link(&self, many_queues: bool) -> Result<(), Error> {
        let links = self.count(Component::Link);
        if links <= 1 || many_queues {
            return Ok(());
        }
        Err(Error::usage(
            format_args!("plan {self}"),
            format_args!("the link has one queue, which {links} link servers cannot share"),
            "use one link server (LS1), or a TAP",
        ))
    }
}

impl FromStr for Plan {
    type Err = Error;

    fn from_str(text: &str) -> Result<Plan, Error> {
        let fail = |why: String| {
            Error::usage(
                format_args!("plan \"{text}\""),
                why,
                "write TS, LS and CM each once with a number, for example TS1LS1CM1 or TS8LS8+CM2",
            )
        };
        if text.is_empty() {
            return Err(fail("empty".into()));
        }
        let mut groups = Vec::new();
        let mut seen = Vec::new();
        for part in text.split('+') {
            let members = parse_group(part).map_err(fail)?;
            for &(component, _) in &members {
                if seen.contains(&component) {
                    return Err(fail(format!("{component} is named twice")));
                }
                seen.push(component);
            }
            groups.push(Group { members });
        }
        for component in [Component::Transport, Component::Link, Component::Manager] {
            if !seen.contains(&component) {
                return Err(fail(format!("{component} is missing")));
            }
        }
        Ok(Plan { groups })
    }
}

fn parse_group(part: &str) -> Result<Vec<(Component, u16)>, String> {
    let mut members = Vec::new();
    let mut rest = part;
    while !rest.is_empty() {
        let (component, after) = parse_component(rest)?;
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number = &after[..digits];
        let count = number.parse::<u16>().ok().filter(|count| (1..=SERVERS_MAX).contains(count));
        let Some(count) = count else {
            return Err(format!("{component} needs a number from 1 to {SERVERS_MAX} after it"));
        };
        members.push((component, count));
        rest = &after[digits..];
    }
    if members.is_empty() {
        return Err("nothing on one side of a +".into());
    }
    Ok(members)
}

fn parse_component(text: &str) -> Result<(Component, &str), String> {
    for component in [Component::Transport, Component::Link, Component::Manager] {
        if let Some(rest) = text.strip_prefix(component.notation()) {
            return Ok((component, rest));
        }
    }
    Err(format!("\"{text}\" does not start with TS, LS or CM"))
}

impl Component {
    /// The two letters of the paper's notation.
    pub fn notation(self) -> &'static str {
        match self {
            Component::Transport => "TS",
            Component::Link => "LS",
            Component::Manager => "CM",
        }
    }

    /// The component's name in words.
    pub fn name(self) -> &'static str {
        match self {
            Component::Transport => "transport server",
            Component::Link => "link server",
            Component::Manager => "connection manager",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.notation())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, group) in self.groups.iter().enumerate() {
            if index > 0 {
                f.write_str("+")?;
            }
            for (component, count) in &group.members {
                write!(f, "{component}{count}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_papers_notation_and_prints_it_back() {
        for text in ["TS1LS1CM1", "TS2LS2CM2", "TS8LS8+CM2", "TS2+LS2+CM1", "TS8LS8CM2"] {
            assert_eq!(text.parse::<Plan>().unwrap().to_string(), text);
        }
        assert_eq!("TS1LS1CM1".parse::<Plan>().unwrap(), Plan::combined());
    }

    #[test]
    fn refuses_what_is_not_a_plan() {
        for (text, why) in [
            ("", "empty"),
            ("TS1LS1", "CM is missing"),
            ("TS1LS1CM0", "CM needs a number"),
            ("TS1LS1CM1TS1", "TS is named twice"),
            ("TS1LS1+", "nothing on one side"),
            ("XX1", "does not start with"),
            ("TSLS1CM1", "TS needs a number"),
            ("TS99999LS1CM1", "TS needs a number"),
        ] {
            let error = text.parse::<Plan>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn servers_have_the_components_of_their_group() {
        let servers = |text: &str| {
            let plan: Plan = text.parse().unwrap();
            let spec = |one: ServerSpec| (one.transport, one.link, one.manager);
            let list = plan.servers();
            assert!(list.iter().enumerate().all(|(at, one)| usize::from(one.number) == at));
            list.into_iter().map(spec).collect::<Vec<_>>()
        };
        assert_eq!(servers("TS1LS1CM1"), [(Some(0), Some(0), Some(0))]);
        let split = [(Some(0), None, None), (Some(1), None, None), (None, Some(0), None)];
        assert_eq!(servers("TS2+LS1+CM1"), [&split[..], &[(None, None, Some(0))]].concat());
        let subset = servers("TS4LS4CM2");
        assert_eq!(subset[1], (Some(1), Some(1), Some(1)));
        assert_eq!(subset[3], (Some(3), Some(3), None));
        let plan: Plan = "TS4LS4CM2".parse().unwrap();
        assert_eq!([0, 1, 2, 3].map(|server| plan.manager_of(server)), [0, 1, 0, 1]);
        assert_eq!([0, 1, 2, 3].map(|server| plan.link_of(server)), [0, 1, 2, 3]);
        let plan: Plan = "TS4+LS2CM1".parse().unwrap();
        assert_eq!([0, 1, 2, 3].map(|server| plan.link_of(server)), [0, 1, 0, 1]);
        assert_eq!(plan.count(Component::Transport), 4);
    }

    #[test]
    fn says_which_plans_run() {
        let check = |text: &str| text.parse::<Plan>().unwrap().check_runnable();
        for text in ["CM1TS1LS1", "TS2LS2CM2", "TS64+LS64+CM64", "TS4LS1+CM2"] {
            assert!(check(text).is_ok(), "{text}");
        }
        for (text, most) in [("TS65LS1CM1", "TS64"), ("TS1+LS1+CM65", "CM64")] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.contains(most), "{error}");
        }
        let plan: Plan = "TS2LS2CM1".parse().unwrap();
        assert!(plan.check_link(true).is_ok());
        let error = plan.check_link(false).unwrap_err().to_string();
        assert!(error.contains("one queue") && error.contains("LS1"), "{error}");
        assert!("TS2+LS1+CM1".parse::<Plan>().unwrap().check_link(false).is_ok());
    }
}
