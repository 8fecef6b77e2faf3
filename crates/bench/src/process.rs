//! Starting and ending the processes of an experiment. Owns its folder and its keeper, so that nothing is left behind
//! however the experiment ends: by itself, by Ctrl-C, or killed. Called by `stage` and `frame`.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use haypile_link::netns::Namespace;
use haypile_shm::sys;

use crate::parts::Part;

const END_LIMIT: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// Starts processes.
#[derive(Debug)]
pub struct Launcher {
    program: PathBuf,
    folder: PathBuf,
    keeper: Rc<RefCell<Keeper>>,
    started: usize,
}

#[derive(Debug)]
struct Keeper {
    child: Child,
}

/// Where a process runs.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Path of its network namespace; ours without one.
    pub namespace: Option<String>,
    /// Its cores; all without any.
    pub cores: Vec<usize>,
}

/// The path under which children find a namespace that this process holds.
pub fn namespace_path(namespace: &Namespace) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd())
}

/// A process of the experiment, with all that it starts. Ended when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    keeper: Rc<RefCell<Keeper>>,
}

impl Launcher {
    /// Makes the folder and starts the keeper.
    ///
    /// # Errors
    /// When either is impossible.
    pub fn new() -> Result<Launcher, String> {
        let program =
            std::env::current_exe().map_err(|error| format!("cannot find myself: {error}"))?;
        let folder = std::env::temp_dir().join(format!("haypile-bench-{}", std::process::id()));
        fs::create_dir_all(&folder)
            .map_err(|error| format!("cannot make {}: {error}; set TMPDIR", folder.display()))?;
        let words = Part::Keep(folder.clone()).words(&program);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| {
            drop(fs::remove_dir_all(&folder));
            format!("cannot start the keeper: {error}")
        })?;
        let keeper = Rc::new(RefCell::new(Keeper { child }));
        Ok(Launcher { program, folder, keeper, started: 0 })
    }

    /// The experiment's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// This binary.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts words in a place. Its standard output is read by the caller, if `piped`; else it is lost.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        &mut self,
        name: &str,
        place: &Place,
        words: &[String],
        piped: bool,
    ) -> Result<Process, String> {
        let fail = |error: std::io::Error| format!("cannot start {name}: {error}");
        self.started += 1;
        let log = self.folder.join(format!("{:03}-{name}.log", self.started));
        let Place { namespace, cores } = place.clone();
        let words = Part::Exec { namespace, cores, words: words.to_vec() }.words(&self.program);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        command.stdout(if piped { Stdio::piped() } else { Stdio::null() });
        command.stderr(File::create(&log).map_err(fail)?);
        let child = command.spawn().map_err(fail)?;
        self.keeper.borrow_mut().tell("group", child.id());
        Ok(Process { name: name.to_string(), child, log, keeper: Rc::clone(&self.keeper) })
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let mut keeper = self.keeper.borrow_mut();
        // It sees the end of its input, and removes the folder.
        drop(keeper.child.stdin.take());
        drop(keeper.child.wait());
    }
}

impl Keeper {
    fn tell(&mut self, word: &str, pid: u32) {
        if let Some(channel) = &mut self.child.stdin {
            // A keeper that is gone only means that a killed experiment would leave something.
            drop(writeln!(channel, "{word} {pid}"));
        }
    }
}

impl Process {
    /// Its number, which is also that of its session and group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, once.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Fails if it has ended, with its last words.
    ///
    /// # Errors
    /// Then.
    pub fn assert_alive(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(format!("{} ended ({status}); {}", self.name, self.last_words()))
            }
            Err(error) => Err(format!("cannot watch {}: {error}", self.name)),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it takes longer than `limit` or fails.
    pub fn finish(&mut self, limit: Duration) -> Result<(), String> {
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(format!("{} failed ({status}); {}", self.name, self.last_words()));
                }
                Ok(None) if started.elapsed() < limit => {
                    std::thread::sleep(Duration::from_millis(2))
                }
                Ok(None) => {
                    return Err(format!(
                        "{} did not end within {limit:?}; {}",
                        self.name,
                        self.last_words()
                    ));
                }
                Err(error) => return Err(format!("cannot watch {}: {error}", self.name)),
            }
        }
    }

    /// The last line of its standard error.
    pub fn last_words(&self) -> String {
        let mut text = String::new();
        // A log that cannot be read is told as silence.
        drop(File::open(&self.log).and_then(|mut log| log.read_to_string(&mut text)));
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("its last words: {}", line.trim_start_matches("haypile: ")),
            None => "it said nothing".to_string(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = self.child.id();
        for (signal, limit) in [(SIGTERM, END_LIMIT), (SIGKILL, Duration::from_secs(2))] {
            // The group, so that a master's workers end too. Before its `setsid` the child has no group of its own.
            if sys::kill_group(pid, signal).is_err() && matches!(self.child.try_wait(), Ok(None)) {
                drop(self.child.kill());
            }
            let asked = Instant::now();
            while asked.elapsed() < limit {
                // The leader's number is kept until it is waited for, so the group cannot be somebody else's.
                let leader_lives = matches!(self.child.try_wait(), Ok(None));
                if !leader_lives && sys::kill_group(pid, 0).is_err() {
                    self.keeper.borrow_mut().tell("gone", pid);
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.keeper.borrow_mut().tell("gone", pid);
    }
}
