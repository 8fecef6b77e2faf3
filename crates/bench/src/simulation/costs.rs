//! How long everything takes in the simulation, and how many instructions it is. The stack's part
//! comes from the counted and timed trace of `docs/cost.json` (`cargo xtask cost --write`), the rest
//! from `costs.json` beside this file or from the file of `--costs`, which has the same shape and
//! may leave things out. Called by the experiments.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What was counted and timed of a short connection in one server.
const TRACE: &str = include_str!("../../../../docs/cost.json");
/// What was measured beside it.
const MEASURED: &str = include_str!("costs.json");

/// One operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Nanoseconds.
    pub ns: f64,
    /// Instructions.
    pub instructions: f64,
}

impl Cost {
    /// Both parts times a factor.
    #[must_use]
    pub fn times(self, factor: f64) -> Cost {
        Cost { ns: self.ns * factor, instructions: self.instructions * factor }
    }

    /// Both parts of both.
    #[must_use]
    pub fn plus(self, other: Cost) -> Cost {
        Cost { ns: self.ns + other.ns, instructions: self.instructions + other.instructions }
    }
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Where they come from, for people.
    pub from: String,
    /// Transport server: the frames that open a short connection, the request with them.
    pub open: Cost,
    /// Transport server: the program's messages, the answer, and the frames that close it.
    pub close: Cost,
    /// Transport server: filling a record and telling the program of an offer.
    pub offer: Cost,
    /// Connection manager: everything about one connection.
    pub manage: Cost,
    /// The same where there are other managers, 63 of them.
    pub manage_among: Cost,
    /// Connection manager: taking another one's best application into its list.
    pub update: Cost,
    /// One frame at the link server (part of `open` and `close` where it is the same server).
    pub frame: Cost,
    /// One frame through the link, for whoever holds it: the kernel's part, whose instructions do not
    /// count.
    pub link: Cost,
    /// Putting a message on a ring to another process.
    pub send: Cost,
    /// Taking it off and dispatching it.
    pub receive: Cost,
    /// From one core to another, nanoseconds.
    pub message_delay_ns: f64,
    /// A sleeping program wakes up, nanoseconds.
    pub wake_ns: f64,
    /// A program takes an offer, nanoseconds.
    pub claim_ns: f64,
    /// What a connection costs a program more that came by another server than its own: lines that
    /// its core has not seen, nanoseconds.
    pub foreign_ns: f64,
    /// One way to the client, nanoseconds.
    pub wire_ns: f64,
    /// The kernel's work for a short connection, on the core of the worker (models of the kernel).
    pub kernel_ns: f64,
}

/// Frames that open a short connection: in and out; then those that end it.
pub const FRAMES_OPEN: [f64; 2] = [3.0, 1.0];
/// See [`FRAMES_OPEN`].
pub const FRAMES_CLOSE: [f64; 2] = [2.0, 2.0];

impl Costs {
    /// The costs of this tree.
    ///
    /// # Errors
    /// When a file of the tree is not what it should be.
    pub fn of_this_tree() -> Result<Costs, String> {
        let wrong = |error: serde_json::Error| format!("costs of the tree: {error}");
        let mut all = stack(&serde_json::from_str(TRACE).map_err(wrong)?)?;
        overlay(&mut all, serde_json::from_str(MEASURED).map_err(wrong)?);
        serde_json::from_value(all).map_err(wrong)
    }

    /// The costs of this tree, with those of a file instead where it has any.
    ///
    /// # Errors
    /// When the file cannot be read or says nothing useful.
    pub fn read(path: Option<&Path>) -> Result<Costs, String> {
        let Some(path) = path else { return Costs::of_this_tree() };
        let name = path.display();
        let text = fs::read_to_string(path).map_err(|error| format!("--costs {name}: {error}"))?;
        let wrong = |error: serde_json::Error| {
            format!("--costs {name}: {error}; the costs in a report (--json) show the shape")
        };
        let mut all = serde_json::to_value(Costs::of_this_tree()?).map_err(wrong)?;
        overlay(&mut all, serde_json::from_str(&text).map_err(wrong)?);
        let costs: Costs = serde_json::from_value(all).map_err(wrong)?;
        match costs.figures().all(|figure| figure.is_finite() && (0.0..1e9).contains(&figure)) {
            true => Ok(costs),
            false => Err(format!("--costs {name}: costs are numbers from 0 to a second")),
        }
    }

    fn figures(&self) -> impl Iterator<Item = f64> + use<> {
        let both = [
            self.open,
            self.close,
            self.offer,
            self.manage,
            self.manage_among,
            self.update,
            self.frame,
            self.link,
            self.send,
            self.receive,
        ];
        let single = [
            self.message_delay_ns,
            self.wake_ns,
            self.claim_ns,
            self.foreign_ns,
            self.wire_ns,
            self.kernel_ns,
        ];
        both.into_iter().flat_map(|cost| [cost.ns, cost.instructions]).chain(single)
    }

    /// What a service time holds beside the service, nanoseconds: from the offer at the server until
    /// the worker's close is there.
    pub fn path_ns(&self) -> f64 {
        self.message_delay_ns + self.wake_ns + self.claim_ns + self.message_delay_ns
    }

    /// All that one server spends on a connection that it gives to its own program.
    pub fn local_connection(&self) -> Cost {
        // The offer, the claim and the close are messages with the program.
        let messages = self.send.plus(self.receive.times(2.0));
        [self.open, self.close, self.offer, self.manage].into_iter().fold(messages, Cost::plus)
    }
}

/// The stack's part of the trace of a short connection.
fn stack(trace: &Value) -> Result<Value, String> {
    let short = &trace["scenarios"]["short-connection"];
    let read = |kind: &str, name: &str| {
        short[kind][name].as_f64().ok_or(format!("docs/cost.json: no {kind} of '{name}'"))
    };
    let part = |ns: &str, instructions: &str| -> Result<Cost, String> {
        Ok(Cost { ns: read("ns", ns)?, instructions: read("instructions", instructions)? })
    };
    let receive = part("receive", "R2 LinkServer::receive")?;
    let transmit = part("transmit", "T6 LinkServer::transmit")?;
    let events = part("events", "R7 events")?;
    let requests = part("requests", "T3 requests")?;
    let manage = part("manager", "CM run_manager")?;
    let turn = part("turn", "whole turn")?;
    let many = &trace["scenarios"]["short-connection-of-64"];
    let grown = |kind: &str, name: &str| -> Result<f64, String> {
        let there = many[kind][name].as_f64();
        let there = there.ok_or(format!("docs/cost.json: no {kind} of '{name}' among many"))?;
        Ok((there - read(kind, name)?).max(0.0))
    };
    // Everything that other managers make dearer, wherever in the turn; time is too noisy for that.
    let instructions = grown("instructions", "whole turn")?;
    let among = Cost { ns: turn.ns / turn.instructions * instructions, instructions };
    let known =
        [receive, transmit, events, requests, manage].into_iter().fold(Cost::default(), Cost::plus);
    let rest = turn.plus(known.times(-1.0));
    let (all_in, all_out) = (FRAMES_OPEN[0] + FRAMES_CLOSE[0], FRAMES_OPEN[1] + FRAMES_CLOSE[1]);
    let frames =
        |count: [f64; 2]| receive.times(count[0] / all_in).plus(transmit.times(count[1] / all_out));
    // What the link server does itself: the row without the rows below it.
    let own =
        read("instructions", "R2 LinkServer::receive")? - read("instructions", "R3 handle_frame")?;
    let frame = receive.times(own / receive.instructions / all_in);
    let value = serde_json::json!({
        "open": frames(FRAMES_OPEN).plus(events.times(0.5)),
        "offer": events.times(0.5),
        "close": frames(FRAMES_CLOSE).plus(requests).plus(rest),
        "manage": manage,
        "manage_among": manage.plus(among),
        "frame": frame,
    });
    Ok(value)
}

/// Puts what the second has over what the first has, objects within objects alike.
fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                overlay(under.entry(name).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the parts are together is what was counted of the whole; only messages come on top.
    #[test]
    fn the_parts_are_the_whole_turn() {
        let costs = Costs::of_this_tree().expect("the files of the tree");
        let parts = [costs.open, costs.close, costs.offer, costs.manage];
        let sum = parts.into_iter().fold(Cost::default(), Cost::plus);
        let trace: Value = serde_json::from_str(TRACE).expect("JSON");
        let short = &trace["scenarios"]["short-connection"];
        let turn = short["instructions"]["whole turn"].as_f64().expect("counted");
        assert!((sum.instructions - turn).abs() < 1.0, "{} of {turn}", sum.instructions);
        assert!((sum.ns - short["ns"]["turn"].as_f64().expect("timed")).abs() < 1.0, "{}", sum.ns);
        assert!(costs.figures().all(|figure| figure >= 0.0), "{costs:?}");
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let path = std::env::temp_dir().join(format!("haypile-costs-{}", std::process::id()));
        let tree = Costs::of_this_tree().expect("the files of the tree");
        fs::write(&path, r#"{"wake_ns": 7, "send": {"ns": 9}}"#).expect("a temporary file");
        let read = Costs::read(Some(&path)).expect("right");
        assert_eq!((read.wake_ns, read.send.ns, read.receive), (7.0, 9.0, tree.receive));
        assert_eq!(read.send.instructions, tree.send.instructions);
        for wrong in ["", "[]", r#"{"wake_ns": "x"}"#, r#"{"wake_ns": -1}"#] {
            fs::write(&path, wrong).expect("a temporary file");
            assert!(Costs::read(Some(&path)).is_err(), "{wrong}");
        }
        fs::remove_file(&path).expect("it is there");
    }
}
