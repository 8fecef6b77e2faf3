//! The servers that a service has, with numbers that last. A plan names servers by their place in
//! it, so that in a larger plan a number may be that of another process than the one that runs; here
//! those that run keep their numbers, components, managers and link servers; what a larger plan
//! adds comes behind, and what a smaller one lacks goes from there. Pure. Made from the plan at the
//! start by `supervisor`, which has a seat for each server in this order.

use haypile_engine::control::names::{ProcessName, ServerNumber};
use haypile_engine::steering::{Rule, Steering};
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
    /// To how many these were folded since, as some have left: one after the other.
    folds: Vec<u16>,
    /// Transport servers that are not about to leave: processes are at home there.
    staying: u16,
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
            folds: Vec::new(),
            staying: plan.count(Component::Transport),
            servers: plan.servers(),
            manager_of: transports.clone().map(|server| plan.manager_of(server)).collect(),
            link_of: transports.map(|server| plan.link_of(server)).collect(),
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Transport servers that have ports and fragments, and flows that have never moved: those of the start that
    /// have not left since. The others have what moves to them.
    pub fn spread_over(&self) -> u16 {
        self.folds.last().copied().unwrap_or(self.spread_over)
    }

    /// The map of buckets before any has moved.
    pub fn steering(&self, key: u64, rule: Rule) -> Steering {
        let mut steering = Steering::new(key, rule, self.spread_over);
        self.folds.iter().for_each(|servers| steering.fold(*servers));
        steering.set_servers(self.transport_count(), self.staying);
        steering
    }

    /// Transport servers that are not about to leave.
    pub fn staying(&self) -> u16 {
        self.staying
    }

    /// The home of a process: where it says that it accepts.
    pub fn home_of(&self, process: ProcessName) -> ServerNumber {
        process.home_among(self.staying)
    }

    /// How many transport servers there are.
    pub fn transport_count(&self) -> u16 {
        self.manager_of.len() as u16
    }

    /// Whether these are the same servers, and maybe more or fewer.
    pub fn continues(&self, before: &Roster) -> bool {
        let (few, many) = match self.servers.len() < before.servers.len() {
            true => (self, before),
            false => (before, self),
        };
        self.spread_over == before.spread_over
            && self.folds.starts_with(&before.folds)
            && many.servers.starts_with(&few.servers)
            && many.manager_of.starts_with(&few.manager_of)
            && many.link_of.starts_with(&few.link_of)
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
        grown.staying = grown.transport_count();
        Ok(grown)
    }

    /// The servers that stay when those are to leave that `to` has not, the last ones. `None`: a smaller plan is
    /// not what `to` is.
    ///
    /// # Errors
    /// When others than the last ones would have to leave, or one would be left without its manager or link server.
    pub fn shrunk(&self, to: &Plan) -> Option<Result<Roster, Error>> {
        let wanted = to.servers();
        let stays = |server: &ServerSpec| wanted.iter().any(|other| parts(other) == parts(server));
        let staying: Vec<&ServerSpec> = self.servers.iter().filter(|one| stays(one)).collect();
        if staying.len() != wanted.len() || staying.len() == self.servers.len() {
            return None;
        }
        Some(self.without_the_last(to, &staying))
    }

    fn without_the_last(&self, to: &Plan, staying: &[&ServerSpec]) -> Result<Roster, Error> {
        let refusal = |why: String| {
            let what = format_args!("change plan {} to {to}", self.plan);
            Err(Error::new(what, why, "name a plan without the last servers"))
        };
        let holds = self.servers.iter().zip(staying).find(|(one, other)| one != *other);
        if let Some((leaving, other)) = holds {
            let (number, other) = (leaving.number, other.number);
            return refusal(format!("server {number} would leave before server {other}"));
        }
        let mut shrunk = self.clone();
        let transports = to.count(Component::Transport);
        shrunk.plan = to.clone();
        shrunk.servers.truncate(staying.len());
        shrunk.manager_of.truncate(usize::from(transports));
        shrunk.link_of.truncate(usize::from(transports));
        shrunk.staying = transports;
        let lost = |of: &[u16], component| of.iter().any(|one| *one >= to.count(component));
        if lost(&shrunk.manager_of, Component::Manager) || lost(&shrunk.link_of, Component::Link) {
            return refusal("a server that stays goes by one that would leave".into());
        }
        shrunk.fold();
        Ok(shrunk)
    }

    /// These servers, of which those that `to` lacks are about to leave.
    pub fn parting(&self, to: &Roster) -> Roster {
        Roster { plan: to.plan.clone(), staying: to.staying, ..self.clone() }
    }

    /// The servers about to leave have no buckets any more, and those that stay have their ports and fragments.
    pub fn folded(&self) -> Roster {
        let mut folded = self.clone();
        folded.fold();
        folded
    }

    fn fold(&mut self) {
        if self.staying < self.spread_over() {
            self.folds.push(self.staying);
        }
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
            "name a plan that only adds servers or only lacks the last ones, or start the service again",
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

    fn shrunk(from: &Roster, to: &str) -> Option<Result<Roster, String>> {
        Some(from.shrunk(&plan(to))?.map_err(|error| error.to_string()))
    }

    fn bases(roster: &Roster) -> Vec<u16> {
        roster.steering(5, Rule::Hash).owners().to_vec()
    }

    #[test]
    fn the_last_servers_leave_and_others_take_their_place_later() {
        let four = Roster::of(&plan("TS4LS4CM4"));
        let two = shrunk(&four, "TS2LS2CM2").unwrap().unwrap();
        assert_eq!(two.servers(), plan("TS2LS2CM2").servers());
        assert_eq!((two.transport_count(), two.staying(), two.spread_over()), (2, 2, 2));
        let parting = four.parting(&two);
        assert_eq!((parting.transport_count(), parting.staying()), (4, 2));
        assert_eq!(bases(&parting), bases(&four), "until they have given all away");
        assert_eq!(bases(&parting.folded()), bases(&two));
        for (one, next) in [(&four, &parting), (&parting, &parting.folded()), (&parting, &two)] {
            assert!(next.continues(one));
        }
        let names = [(3, 1), (2, 0), (1, 1), (0, 0)];
        for (home, now) in names {
            assert_eq!(two.home_of(ProcessName::new(home, 7)), now);
            assert_eq!(four.home_of(ProcessName::new(home, 7)), home);
        }
        let again = two.grown(&plan("TS4LS4CM4")).unwrap();
        assert_eq!(again.servers(), four.servers());
        assert_eq!((again.staying(), again.spread_over()), (4, 2));
        assert!(bases(&again).iter().all(|owner| *owner < 2));
    }

    #[test]
    fn servers_that_came_later_leave_alone_what_was_spread_at_the_start() {
        let one = Roster::of(&plan("TS1LS1CM1"));
        let four = one.grown(&plan("TS4LS4CM4")).unwrap();
        assert_eq!(shrunk(&four, "TS1LS1CM1").unwrap().unwrap(), one);
        let split = Roster::of(&plan("TS2+LS1+CM1"));
        let more = split.grown(&plan("TS3+LS2+CM2")).unwrap();
        assert_eq!(shrunk(&more, "TS2+LS1+CM1").unwrap().unwrap(), split);
    }

    #[test]
    fn a_map_is_folded_step_by_step() {
        let roster = Roster::of(&plan("TS4LS4CM4"));
        let three = shrunk(&roster, "TS3LS3CM3").unwrap().unwrap();
        let two = shrunk(&three, "TS2LS2CM2").unwrap().unwrap();
        assert!(bases(&three).iter().all(|owner| *owner < 3));
        let owners = bases(&three).into_iter().zip(bases(&two));
        assert!(owners.into_iter().all(|(three, two)| two == three % 2));
    }

    #[test]
    fn who_is_not_among_the_last_cannot_leave() {
        let split = Roster::of(&plan("TS2+LS1+CM1"));
        let why = shrunk(&split, "TS1+LS1+CM1").unwrap().unwrap_err();
        assert!(why.contains("server 1 would leave before server 2") && why.lines().count() == 1);
        for other in ["TS2+LS1+CM1", "TS1LS1CM1", "TS3+LS1+CM1"] {
            assert!(shrunk(&split, other).is_none(), "{other}");
        }
        let uneven = Roster::of(&plan("TS4LS4CM2"));
        assert!(shrunk(&uneven, "TS2LS2CM2").unwrap().is_ok());
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
