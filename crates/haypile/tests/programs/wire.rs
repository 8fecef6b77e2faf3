//! Two services joined by a wire: unmodified programs on both, as root and as somebody else, and ends that are
//! killed, leave and come again.

use crate::support::process::Process;
use crate::support::stage::{Stage, on_stage};
use crate::support::{PATIENCE, content, http, nginx, wait_until};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where wires of root meet.
const WIRES: &str = "/run/haypile/wires";
/// Tests run at the same time, and wires of root meet in one place.
static WIRES_MADE: AtomicU32 = AtomicU32::new(0);
/// A user without rights.
const NOBODY: &str = "65534";

/// The address of an end.
fn address(end: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([198, 18, 0, end], port))
}

/// A wire and how commands on it are started.
struct Wire<'a> {
    stage: &'a Stage,
    name: String,
    /// For another user: its run directory.
    run_directory: Option<PathBuf>,
}

impl<'a> Wire<'a> {
    fn of_root(stage: &'a Stage) -> Wire<'a> {
        let number = WIRES_MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("test{}-{number}", std::process::id());
        Wire { stage, name, run_directory: None }
    }

    /// The `haypile` binary, by the wire's user.
    fn haypile(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_haypile");
        match &self.run_directory {
            None => Command::new(program),
            Some(directory) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", program]);
                command.env("XDG_RUNTIME_DIR", directory);
                command
            }
        }
    }

    fn control(&self, end: u8) -> PathBuf {
        match &self.run_directory {
            // The test looks there whether anything is left.
            None if end == 1 => self.stage.control(),
            None => self.stage.path("other-end"),
            Some(directory) => directory.join(format!("end{end}")),
        }
    }

    /// Starts the service of an end.
    fn serve(&self, end: u8) -> Process {
        let mut command = self.haypile();
        command.arg("serve").arg("--control-dir").arg(self.control(end));
        command.args(["--link", &format!("wire:{}", self.name)]);
        command.args([
            "--addr",
            &format!("198.18.0.{end}/24"),
            "--addr",
            &format!("2001:2::{end}/64"),
        ]);
        let mut service = self.stage.start_command(&format!("serve{end}"), command);
        service.wait_for_output("ready");
        service
    }

    /// Starts a program on an end.
    fn run(&self, end: u8, words: &[&str]) -> Process {
        let mut command = self.haypile();
        command.arg("run").arg("--control-dir").arg(self.control(end)).arg("--").args(words);
        self.stage.start_command(&format!("run{end}"), command)
    }

    /// Fetches a page that the other end serves, again while nobody answers, and compares it.
    #[track_caller]
    fn fetch(&self, from: u8, server: SocketAddr, name: &str) {
        let file = self.control(from).with_extension("fetched");
        let url = http::url(server, name);
        let words = [&http::CURL[..], &["20", "--output", "-", &url]].concat();
        wait_until(&format!("{url} is fetched"), PATIENCE, || {
            let out = self.run(from, &words);
            let path = out.out_file();
            let finished = out.finish(PATIENCE);
            finished.status.success().then(|| fs::copy(path, &file).expect("copied"))
        });
        content::assert_same(&self.stage.served(name), &file);
        drop(fs::remove_file(file));
    }

    /// Starts nginx at port 8080 of an end.
    fn run_nginx(&self, end: u8) -> Process {
        let listen = [address(end, 8080).to_string(), format!("[2001:2::{end}]:8080")];
        let work = format!("nginx{end}");
        let words = nginx::command(self.stage, &work, &[&listen[0], &listen[1]]);
        if self.run_directory.is_some() {
            let user = NOBODY.parse().ok();
            std::os::unix::fs::chown(self.stage.path(&work), user, user).expect("given away");
        }
        self.run(end, &words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn link_of(&self, end: u8) -> String {
        let output = self
            .haypile()
            .args(["status", "--json", "--control-dir"])
            .arg(self.control(end))
            .output()
            .expect("status");
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["link"].as_str().unwrap_or_default().to_string()
    }

    /// Waits until both services say that they are joined.
    #[track_caller]
    fn wait_until_joined(&self) {
        wait_until("both ends are joined", PATIENCE, || {
            [1, 2].iter().all(|end| self.link_of(*end).contains("joined")).then_some(())
        });
    }

    /// Nothing of the wire is left; other wires may be there.
    #[track_caller]
    fn wait_until_gone(&self, directory: &Path) {
        wait_until("the wire's files are gone", PATIENCE, || {
            let left = |kind| directory.join(format!("{}.{kind}", self.name)).exists();
            (!left("sock") && !left("lock")).then_some(())
        });
    }
}

#[test]
fn a_wire_joins_the_programs_of_two_services() {
    let needs = ["nginx", "curl"];
    on_stage("a_wire_joins_the_programs_of_two_services", &needs, |stage| {
        content::write(&stage.served("page"), 100_000);
        content::write(&stage.served("big"), 50_000_000);
        let wire = Wire::of_root(stage);
        let (_one, _other) = (wire.serve(1), wire.serve(2));
        wire.wait_until_joined();
        let mut server = wire.run_nginx(2);
        let six: SocketAddr = "[2001:2::2]:8080".parse().expect("an address");
        for name in ["page", "big"] {
            wire.fetch(1, address(2, 8080), name);
            wire.fetch(1, six, name);
        }
        server.assert_alive();
        stage.say(&wire.link_of(1));
        drop((server, _one, _other));
        wire.wait_until_gone(WIRES.as_ref());
    });
}

#[test]
fn a_wire_needs_no_root() {
    on_stage("a_wire_needs_no_root", &["nginx", "curl", "setpriv"], |stage| {
        content::write(&stage.served("page"), 1_000_000);
        let directory = stage.path("run");
        fs::create_dir(&directory).expect("made");
        let id = NOBODY.parse().expect("a number");
        std::os::unix::fs::chown(&directory, Some(id), Some(id)).expect("given away");
        let wire = Wire { stage, name: "x".to_string(), run_directory: Some(directory.clone()) };
        let mut probe = wire.haypile();
        if !probe.arg("--version").output().is_ok_and(|output| output.status.success()) {
            return stage.say("skipped: another user may not execute the binary");
        }
        let (_one, _other) = (wire.serve(1), wire.serve(2));
        wire.wait_until_joined();
        let server = wire.run_nginx(2);
        wire.fetch(1, address(2, 8080), "page");
        drop((server, _one, _other));
        wire.wait_until_gone(&directory.join("haypile/wires"));
    });
}

#[test]
fn either_end_of_a_wire_may_be_killed_and_come_again() {
    let needs = ["nginx", "curl"];
    on_stage("either_end_of_a_wire_may_be_killed_and_come_again", &needs, |stage| {
        content::write(&stage.served("page"), 300_000);
        let wire = Wire::of_root(stage);
        let mut services = [wire.serve(1), wire.serve(2)];
        let mut servers = [wire.run_nginx(1), wire.run_nginx(2)];
        for round in 0..4 {
            wire.fetch(1, address(2, 8080), "page");
            wire.fetch(2, address(1, 8080), "page");
            // The first round kills the owner of the socket, the second whoever owns it then.
            let (victim, end) = (round % 2, round as u8 % 2 + 1);
            services[victim].signal("KILL");
            servers[victim].kill_group();
            let survivor = 3 - end;
            wait_until("the other end has noticed", PATIENCE, || {
                wire.link_of(survivor).contains("waits").then_some(())
            });
            let killed = std::mem::replace(&mut services[victim], wire.serve(end));
            drop(killed.finish(PATIENCE));
            drop(std::mem::replace(&mut servers[victim], wire.run_nginx(end)));
            services[1 - victim].assert_alive();
        }
        wire.fetch(1, address(2, 8080), "page");
        // Both at once: nothing is left either.
        for service in &services {
            service.signal("KILL");
        }
        drop((servers, services));
        wire.wait_until_gone(WIRES.as_ref());
    });
}

#[test]
fn a_wire_has_two_ends() {
    on_stage("a_wire_has_two_ends", &[], |stage| {
        let wire = Wire::of_root(stage);
        let (_one, _other) = (wire.serve(1), wire.serve(2));
        let mut third = wire.haypile();
        third.arg("serve").arg("--control-dir").arg(stage.path("third"));
        third.args(["--link", &format!("wire:{}", wire.name), "--addr", "198.18.0.3/24"]);
        let finished = stage.start_command("third", third).finish(PATIENCE);
        assert_eq!(finished.status.code(), Some(1));
        assert!(finished.err.contains("it has two ends already"), "{}", finished.err);
        assert_eq!(finished.err.lines().count(), 1, "{}", finished.err);
    });
}
