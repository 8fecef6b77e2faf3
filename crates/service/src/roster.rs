//! The servers that a service has, with numbers that last. A plan names servers by their place in
//! it, so that in a larger plan a number may be that of another process than the one that runs; here
//! those that run keep their numbers, components, managers and link servers, and what a larger plan
//! adds comes behind. Pure. Made from the plan at the start by `supervisor`, which has a seat for
//! each server in this order.

use serde::{Deserialize, Serialize};

use crate::config::text;
use crate::error::Error;
use crate::plan::{Component, Plan, ServerSpec};

/// Who there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roster {
    #[serde(with = "text::one")]
    plan: Plan,
    /// Transport servers at the start of the service, over which its buckets are spread.
    spread_over: u16,
    servers: Vec<ServerSpec>,
    /// Connection managers and link servers of the transport servers, by their numbers.
    manager_of: Vec<u16>,
    link_of: Vec<u16>,
}

impl Roster {
    /// The servers of a plan at its start.
    pub fn of(plan: &Plan) -> Roster {
        let transports = 0..plan.count(Component::Transport);
        Roster {
            plan: plan.clone(),
            spread_over: plan.count(Component::Transport),
            servers: plan.servers(),
            manager_of: transports.clone().map(|server| plan.manager_of(server)).collect(),
            link_of: transports.map(|server| plan.link_of(server)).collect(),
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Transport servers at the start of the service: the others have what moves to them.
    pub fn spread_over(&self) -> u16 {
        self.spread_over
    }

    /// How many transport servers there are.
    pub fn transport_count(&self) -> u16 {
        self.manager_of.len() as u16
    }

    /// Whether these are the same servers and maybe more.
    pub fn continues(&self, before: &Roster) -> bool {
        self.spread_over == before.spread_over
            && self.servers.starts_with(&before.servers)
            && self.manager_of.starts_with(&before.manager_of)
            && self.link_of.starts_with(&before.link_of)
    }

    /// The servers, in the order of their numbers.
    pub fn servers(&self) -> &[ServerSpec] {
        &self.servers
    }

    /// The connection manager of a transport server. `None`: there is no such server.
    pub fn manager_of(&self, transport: u16) -> Option<u16> {
        self.manager_of.get(usize::from(transport)).copied()
    }

    /// The link server over which a transport server sends. `None`: there is no such server.
    pub fn link_of(&self, transport: u16) -> Option<u16> {
        self.link_of.get(usize::from(transport)).copied()
    }

    /// The same servers, and behind them those that `to` has more. Transport servers that there are
    /// keep their manager and link server; new ones have those of the new plan.
    ///
    /// # Errors
    /// When a server that runs would have to end, or to become something else, or the plan cannot
    /// run at all.
    pub fn grown(&self, to: &Plan) -> Result<Roster, Error> {
        to.check_runnable()?;
        let mut wanted = to.servers();
        for server in &self.servers {
            let same = |other: &ServerSpec| parts(other) == parts(server);
            let Some(place) = wanted.iter().position(same) else {
                return Err(self.refusal(to, server));
            };
            wanted.remove(place);
        }
        let mut grown = self.clone();
        grown.plan = to.clone();
        for mut server in wanted {
            server.number = grown.servers.len() as u16;
            grown.servers.push(server);
        }
        for transport in self.manager_of.len() as u16..to.count(Component::Transport) {
            grown.manager_of.push(to.manager_of(transport));
            grown.link_of.push(to.link_of(transport));
        }
        Ok(grown)
    }

    fn refusal(&self, to: &Plan, server: &ServerSpec) -> Error {
        let shares_one = |other: &ServerSpec| {
            let (own, others) = (parts(server), parts(other));
            own.iter().zip(others).any(|(one, other)| one.is_some() && *one == other)
        };
        let what = server.components().join(" and ");
        let why = match to.servers().iter().any(shares_one) {
            true => {
                format!("server {} is {what}, and would have to be something else", server.number)
            }
            false => format!("server {} ({what}) would have to end", server.number),
        };
        Error::new(
            format_args!("change plan {} to {to}", self.plan),
            why,
            "name a plan that only adds servers, or start the service again",
        )
    }
}

/// What a server is, whatever its number.
fn parts(server: &ServerSpec) -> [Option<u16>; 3] {
    [server.transport, server.link, server.manager]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Plan {
        text.parse().unwrap()
    }

    fn grown(from: &str, to: &str) -> Result<Roster, String> {
        Roster::of(&plan(from)).grown(&plan(to)).map_err(|error| error.to_string())
    }

    #[test]
    fn servers_that_run_keep_their_numbers() {
        let roster = grown("TS2LS2+CM1", "TS4LS4+CM2").unwrap();
        // The manager stays process 2, although the plan itself would make it process 4.
        assert_eq!(roster.servers()[..3], plan("TS2LS2+CM1").servers());
        let added: Vec<_> = roster.servers()[3..].iter().map(parts).collect();
        let pair = |number| [Some(number), Some(number), None];
        assert_eq!(added, [pair(2), pair(3), [None, None, Some(1)]]);
        let numbers = roster.servers().iter().map(|server| server.number);
        assert!(numbers.eq(0..6), "{roster:?}");
        assert_eq!(roster.plan().to_string(), "TS4LS4+CM2");
    }

    #[test]
    fn transport_servers_that_run_keep_whom_they_talk_to() {
        let before = Roster::of(&plan("TS3+LS1+CM1"));
        let after = before.grown(&plan("TS4+LS2+CM2")).unwrap();
        let all = |roster: &Roster, of: fn(&Roster, u16) -> Option<u16>| {
            (0..5).map(|server| of(roster, server)).collect::<Vec<_>>()
        };
        let managers = [Some(0), Some(0), Some(0), Some(1), None];
        assert_eq!(all(&after, Roster::manager_of), managers);
        assert_eq!(all(&after, Roster::link_of), managers);
        // A service that was started so has them dealt out.
        let fresh = Roster::of(&plan("TS4+LS2+CM2"));
        assert_eq!(all(&fresh, Roster::manager_of), [Some(0), Some(1), Some(0), Some(1), None]);
    }

    #[test]
    fn growing_by_steps_is_growing_at_once() {
        let step = grown("TS1LS1CM1", "TS2LS2CM2").unwrap().grown(&plan("TS4LS4CM2")).unwrap();
        assert_eq!(step, grown("TS1LS1CM1", "TS4LS4CM2").unwrap());
        assert_eq!(step, step.grown(&plan("TS4LS4CM2")).unwrap());
    }

    #[test]
    fn what_is_no_growth_is_refused_in_one_line() {
        for (from, to, why) in [
            ("TS2LS2CM2", "TS1LS1CM1", "would have to end"),
            ("TS2LS2CM1", "TS2LS2CM2", "would have to be something else"),
            ("TS2LS2CM2", "TS2LS2+CM2", "would have to be something else"),
            ("TS2LS2CM2", "TS65LS2CM2", "TS65 is more"),
        ] {
            let error = grown(from, to).unwrap_err();
            assert!(error.contains(why) && error.lines().count() == 1, "{from} {to}: {error}");
        }
    }
}
