//! One process that a test started, with its process group: output kept in files, signals, and an end that
//! is certain. Started by `Stage`.

use super::{PATIENCE, wait_until};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

/// A started process. Dropping it ends its whole group, first gently.
pub struct Process {
    child: Child,
    name: String,
    out: PathBuf,
    err: PathBuf,
    status: Option<ExitStatus>,
}

/// What a process that ended left behind.
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Finished {
    /// Fails, with the output, unless the process succeeded.
    #[track_caller]
    pub fn expect_success(self, what: &str) -> Finished {
        let Finished { status, out, err } = &self;
        assert!(status.success(), "{what}: {status}\n--- out\n{out}\n--- err\n{err}");
        self
    }
}

const GRACE: Duration = Duration::from_secs(20);

impl Process {
    /// Starts `command` in a process group of its own, its output in `out` and `err`, its input as
    /// the command says.
    pub fn start(name: &str, mut command: Command, out: PathBuf, err: PathBuf) -> Process {
        let file = |path: &PathBuf| File::create(path).expect("make a file for output");
        command.stdout(file(&out)).stderr(file(&err)).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {name}: {error}"));
        Process { child, name: name.to_string(), out, err, status: None }
    }

    /// Its process id, which is also that of its group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file that its standard output goes to.
    pub fn out_file(&self) -> PathBuf {
        self.out.clone()
    }

    /// What it has written to its standard output so far.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// What it has written to its standard error so far.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    /// Its exit status once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait for a child");
        }
        self.status
    }

    /// Fails when it has ended, with what it said.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} ended: {status}\n{}{}", self.name, self.out(), self.err());
        }
    }

    /// Waits until it ends by itself; a test fails when that takes longer than `limit`.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Finished {
        let started = Instant::now();
        while self.ended().is_none() && started.elapsed() < limit {
            thread::sleep(Duration::from_millis(2));
        }
        let (out, err) = (self.out(), self.err());
        match self.ended() {
            Some(status) => Finished { status, out, err },
            None => panic!("{} still runs after {limit:?}\n{out}{err}", self.name),
        }
    }

    /// Waits until its standard output contains `text`.
    #[track_caller]
    pub fn wait_for_output(&mut self, text: &str) {
        let what = format!("{} says '{text}'", self.name);
        wait_until(&what, PATIENCE, || {
            let said = self.out().contains(text);
            if !said {
                self.assert_alive();
            }
            said.then_some(())
        });
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: &str) {
        send_signal(signal, &self.pid().to_string());
    }

    /// Ends the group without asking.
    pub fn kill_group(&self) {
        send_signal("KILL", &format!("-{}", self.pid()));
    }

    /// Asks the group to end and waits for it.
    pub fn terminate(self) {
        drop(self);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            send_signal("TERM", &format!("-{}", self.pid()));
            let asked = Instant::now();
            while self.ended().is_none() && asked.elapsed() < GRACE {
                thread::sleep(Duration::from_millis(5));
            }
        }
        // Also when the leader has ended: members of its group may still be there.
        self.kill_group();
        if self.status.is_none() {
            drop(self.child.wait());
        }
    }
}

/// Sends a signal to a process (`123`) or a process group (`-123`); one that is gone is fine.
pub fn send_signal(signal: &str, target: &str) {
    // The shell's own kill: the standard library cannot signal groups.
    let line = format!("kill -s {signal} -- {target} 2>/dev/null");
    drop(Command::new("sh").args(["-c", &line]).status());
}

/// The signal that ended a process, for messages.
pub fn ended_by(status: ExitStatus) -> Option<i32> {
    status.signal()
}
