//! The stage of one test: a network namespace, a folder, a control directory, and the certainty that
//! nothing of it is left afterwards. Tests call [`on_stage`]; everything else starts from a [`Stage`].

use super::process::{Finished, Process};
use super::{PATIENCE, find_program, inspect, say, wait_until};
use haypile_link::netlink::Netlink;
use haypile_link::netns;
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// The service's IPv4 address in every test.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The kernel's IPv4 address on the same link.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The service's IPv6 address.
pub const SERVICE6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 2);
/// The kernel's IPv6 address on the same link.
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1);
/// Name of the TAP interface of a service that [`Stage::serve`] starts.
pub const INTERFACE: &str = "haypile0";

/// What both ends of the link are called, as flags.
const ADDRESSES: [&str; 8] = [
    "--addr",
    "198.18.0.2/24",
    "--addr",
    "2001:2::2/64",
    "--host-addr",
    "198.18.0.1/24",
    "--host-addr",
    "2001:2::1/64",
];

/// One test's own world.
pub struct Stage {
    /// Name of the test, for what it prints.
    pub name: &'static str,
    folder: PathBuf,
    namespace: u64,
    started: AtomicU32,
}

/// Runs `body` on a thread in a new network namespace, then checks that nothing is left. Without one of
/// the programs in `needs` or the right to make namespaces the test is skipped.
pub fn on_stage(name: &'static str, needs: &[&str], body: impl FnOnce(&Stage) + Send + 'static) {
    if let Some(missing) = needs.iter().find(|program| find_program(program).is_none()) {
        return say(name, &format!("skipped: {missing} is not installed"));
    }
    let run = move || -> Result<(), String> {
        let namespace = netns::new_network_namespace().and_then(|namespace| {
            netns::loopback_up()?;
            Ok(namespace)
        });
        let _namespace = namespace.map_err(|error| error.to_string())?;
        let stage = Stage::new(name);
        let result = catch_unwind(AssertUnwindSafe(|| body(&stage)));
        stage.end(result);
        Ok(())
    };
    let worker = thread::Builder::new().name(name.to_string()).spawn(run).expect("start a thread");
    match worker.join() {
        Ok(Ok(())) => {}
        Ok(Err(why)) => say(name, &format!("skipped: {why}")),
        Err(payload) => resume_unwind(payload),
    }
}

impl Stage {
    fn new(name: &'static str) -> Stage {
        let folder =
            std::env::temp_dir().join(format!("haypile-e2e-{}-{name}", std::process::id()));
        // Of a run that was killed and had our process id.
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(folder.join("root")).expect("make the test's folder");
        Stage { name, folder, namespace: inspect::own_namespace(), started: AtomicU32::new(0) }
    }

    /// Prints a figure or a remark.
    pub fn say(&self, text: &str) {
        say(self.name, text);
    }

    /// A file or folder of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file of the document root that servers of the test use.
    pub fn served(&self, name: &str) -> PathBuf {
        self.folder.join("root").join(name)
    }

    /// The same as text, for command lines.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The control directory.
    pub fn control(&self) -> PathBuf {
        self.path("control")
    }

    /// Starts a program on the kernel's side.
    pub fn start(&self, words: &[&str]) -> Process {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        self.start_command(words[0], command)
    }

    /// Starts a prepared command, without input.
    pub fn start_command(&self, name: &str, mut command: Command) -> Process {
        command.stdin(Stdio::null());
        self.start_reading(name, command)
    }

    /// Starts a prepared command with the input that was prepared.
    pub fn start_reading(&self, name: &str, command: Command) -> Process {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let short = Path::new(name).file_name().map_or("".into(), |name| name.to_string_lossy());
        let log = |kind: &str| self.path(&format!("{number:03}-{short}.{kind}"));
        Process::start(&short, command, log("out"), log("err"))
    }

    /// Runs a program on the kernel's side to its end.
    #[track_caller]
    pub fn output(&self, words: &[&str], limit: Duration) -> Finished {
        self.start(words).finish(limit)
    }

    /// The `haypile` binary with a subcommand and the control directory of the test.
    pub fn haypile(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_haypile"));
        command.arg(subcommand).arg("--control-dir").arg(self.control());
        command
    }

    /// Starts a service that stays, and waits until it answers.
    pub fn serve(&self) -> Process {
        self.serve_with(&[])
    }

    /// The same with more flags.
    pub fn serve_with(&self, more: &[&str]) -> Process {
        let mut command = self.haypile("serve");
        command.args(more);
        command.args(["--link", &format!("tap:{INTERFACE}")]);
        command.args(ADDRESSES);
        let mut service = self.start_command("serve", command);
        wait_until("the service answers", PATIENCE, || {
            service.assert_alive();
            self.ask("status", &[]).ok()
        });
        service
    }

    /// Starts a program on the test's service, or on a private one when none runs.
    pub fn run(&self, words: &[&str]) -> Process {
        let mut command = self.haypile("run");
        command.arg("--").args(words);
        self.start_command(&format!("run-{}", words[0].replace('/', "_")), command)
    }

    /// Starts a program on a private service with both addresses.
    pub fn run_alone(&self, words: &[&str]) -> Process {
        let mut command = self.haypile("run");
        command.args(ADDRESSES);
        command.arg("--").args(words);
        self.start_command(&format!("run-{}", words[0].replace('/', "_")), command)
    }

    /// Waits until somebody accepts connections at `address`.
    #[track_caller]
    pub fn wait_for_listener(&self, address: SocketAddr, server: &mut Process) {
        wait_until(&format!("a server answers at {address}"), PATIENCE, || {
            server.assert_alive();
            TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()
        });
    }

    /// Asks the service by `haypile SUBCOMMAND --json`.
    ///
    /// # Errors
    /// What the command said when it failed.
    pub fn ask(&self, subcommand: &str, more: &[&str]) -> Result<Value, String> {
        let output = self
            .haypile(subcommand)
            .arg("--json")
            .args(more)
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).map_err(|error| format!("{error} in '{text}'"))
    }

    /// Process ids of this namespace, the tests themselves left out.
    pub fn processes(&self) -> Vec<u32> {
        inspect::processes_in(self.namespace)
    }

    /// Checks that nothing is left, cleans up, and passes a failure of the test on.
    fn end(self, result: thread::Result<()>) {
        let leftovers = match result {
            Ok(()) => self.leftovers(),
            Err(_) => Vec::new(),
        };
        for pid in self.processes() {
            super::process::send_signal("KILL", &pid.to_string());
        }
        if result.is_err() || !leftovers.is_empty() {
            self.show_logs();
        }
        if std::env::var_os("HAYPILE_E2E_KEEP").is_none() {
            drop(fs::remove_dir_all(&self.folder));
        }
        if let Err(payload) = result {
            resume_unwind(payload);
        }
        assert!(leftovers.is_empty(), "left behind: {}", leftovers.join("; "));
    }

    /// What is still there once everything had time to end, in words.
    fn leftovers(&self) -> Vec<String> {
        let all = || {
            let mut left: Vec<String> =
                self.processes().iter().map(|pid| inspect::describe(*pid)).collect();
            left.extend(self.interfaces().iter().map(|name| format!("interface {name}")));
            left.extend(self.control_files().iter().map(|file| format!("file {file}")));
            left
        };
        let started = std::time::Instant::now();
        let mut left = all();
        while !left.is_empty() && started.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(20));
            left = all();
        }
        left
    }

    /// Haypile's interfaces in this namespace.
    pub fn interfaces(&self) -> Vec<String> {
        let links = Netlink::open().and_then(|mut netlink| netlink.links()).expect("list links");
        let ours = links.into_iter().filter(|link| link.name.starts_with("haypile"));
        ours.map(|link| link.name).collect()
    }

    /// Files of the control directory that a service makes for its life only.
    pub fn control_files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.control()) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.collect()
    }

    fn show_logs(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            let log = file.extension().is_some_and(|kind| kind == "out" || kind == "err");
            let Ok(text) = fs::read(&file) else { continue };
            if log && !text.is_empty() {
                let from = text.len().saturating_sub(2000);
                let tail = str::from_utf8(&text[from..]);
                let shown = match tail {
                    Ok(tail) => tail.to_string(),
                    Err(_) => format!("{} bytes that are no text", text.len()),
                };
                say(self.name, &format!("--- {}\n{shown}", file.display()));
            }
        }
    }
}

/// The service's IPv4 address with a port.
pub fn service(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(SERVICE), port)
}

/// The service's IPv6 address with a port.
pub fn service6(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(SERVICE6), port)
}

/// The kernel's IPv4 address with a port.
pub fn host(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(HOST), port)
}

/// The inode of a namespace file, which names the namespace.
pub fn inode(path: &str) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}
