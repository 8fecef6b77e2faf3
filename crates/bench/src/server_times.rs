//! What the servers of a service say of their time (`haypile status --json`): the connection manager,
//! messages between servers, offers between managers, and how long connections waited for theirs.
//! Called by `frame` at both ends of a window.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Sums over all servers of a service, microseconds where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerTimes {
    /// Time of all servers together.
    pub uptime_us: f64,
    /// In turns in which something moved.
    pub busy_us: f64,
    /// In connection managers.
    pub manager_us: f64,
    /// With messages of other servers.
    pub messages_us: f64,
    /// With what connection managers tell each other.
    pub offers_us: f64,
    /// From the handshake of connections to their offer.
    pub assigning_us: f64,
    /// So many connections.
    pub assigned: f64,
}

impl ServerTimes {
    /// Asks the service of a control directory.
    ///
    /// # Errors
    /// What it said instead, in one line.
    pub fn ask(program: &Path, control: &Path) -> Result<ServerTimes, String> {
        let mut command = Command::new(program);
        command.args(["status", "--json", "--control-dir"]).arg(control);
        let output = command.stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("cannot ask the service: {error}"))?;
        let wrong = || {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("the service does not say how it is: {}", said.trim())
        };
        let status: Value = serde_json::from_slice(&output.stdout).map_err(|_| wrong())?;
        ServerTimes::read(&status).ok_or_else(wrong)
    }

    fn read(status: &Value) -> Option<ServerTimes> {
        let rows = status["servers"].as_array()?;
        let mut sum = ServerTimes::default();
        for row in rows {
            let one: ServerTimes = serde_json::from_value(row["times"].clone()).ok()?;
            sum = sum.with(&one, |sum, one| sum + one);
        }
        Some(sum)
    }

    /// What was spent since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &ServerTimes) -> ServerTimes {
        self.with(earlier, |now, then| (now - then).max(0.0))
    }

    fn with(&self, other: &ServerTimes, join: impl Fn(f64, f64) -> f64) -> ServerTimes {
        ServerTimes {
            uptime_us: join(self.uptime_us, other.uptime_us),
            busy_us: join(self.busy_us, other.busy_us),
            manager_us: join(self.manager_us, other.manager_us),
            messages_us: join(self.messages_us, other.messages_us),
            offers_us: join(self.offers_us, other.offers_us),
            assigning_us: join(self.assigning_us, other.assigning_us),
            assigned: join(self.assigned, other.assigned),
        }
    }

    /// Part of the time that went into offers between managers, 0 to 1.
    pub fn offers_share(&self) -> f64 {
        self.offers_us / self.uptime_us.max(1.0)
    }

    /// T_CM: from handshake to offer, microseconds of each connection.
    pub fn t_cm_us(&self) -> f64 {
        self.assigning_us / self.assigned.max(1.0)
    }

    /// T_busy: work of all servers without messages, microseconds of each connection.
    pub fn t_busy_us(&self) -> f64 {
        (self.busy_us - self.messages_us).max(0.0) / self.assigned.max(1.0)
    }

    /// T_msg: messages between servers, microseconds of each connection.
    pub fn t_msg_us(&self) -> f64 {
        self.messages_us / self.assigned.max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn servers_are_added_and_earlier_readings_taken_away() {
        let row = |busy: u64| {
            json!({"times": {
                "uptime_us": 1000, "busy_us": busy, "manager_us": 1.5, "messages_us": 100.0,
                "offers_us": 0.5, "assigning_us": 20.0, "assigned": 5,
            }})
        };
        let sum = ServerTimes::read(&json!({"servers": [row(200), row(300)]})).expect("two rows");
        assert_eq!((sum.uptime_us, sum.busy_us, sum.assigned), (2000.0, 500.0, 10.0));
        assert_eq!(sum.offers_share(), 0.0005);
        assert_eq!((sum.t_cm_us(), sum.t_busy_us(), sum.t_msg_us()), (4.0, 30.0, 20.0));
        let one = ServerTimes::read(&json!({"servers": [row(200)]})).expect("a row");
        assert_eq!((sum.since(&one).busy_us, sum.since(&one).assigned), (300.0, 5.0));
        assert_eq!(ServerTimes::read(&json!({"servers": [{}]})), None);
        let error = ServerTimes::ask(Path::new("/bin/false"), Path::new("/")).expect_err("nothing");
        assert!(error.starts_with("the service does not say how it is"), "{error}");
    }
}
