//! Haypile by a user without rights: private services in a namespace of their own, on every link, their end, and
//! who may join whose service. Run as root, which becomes that user.

use crate::support::process::{Process, send_signal};
use crate::support::stage::{Stage, on_stage};
use crate::support::{PATIENCE, content, http, inspect, nginx, wait_until};
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A user and group without rights.
const NOBODY: u32 = 65_534;
/// The address of private services here, and a port that elsewhere is root's.
const ADDRESS: &str = "198.18.0.2";
const PORT: u16 = 80;
/// Programs that all of these tests need.
const NEEDS: [&str; 4] = ["nginx", "curl", "setpriv", "unshare"];

/// A user without rights, with a run directory, whose name is short because those of sockets must be.
pub struct Nobody<'a> {
    stage: &'a Stage,
    /// A TAP device that the user may open, to be put in place of the system's.
    device: Option<PathBuf>,
}

impl<'a> Nobody<'a> {
    /// `None`: such a user cannot run the binary, or has no namespaces.
    fn new(stage: &'a Stage) -> Option<Nobody<'a>> {
        for directory in ["r", "work"] {
            fs::create_dir_all(stage.path(directory)).expect("made");
            chown(stage.path(directory), Some(NOBODY), Some(NOBODY)).expect("given away");
        }
        let nobody = Nobody { stage, device: None };
        let works =
            |mut command: Command| command.output().is_ok_and(|output| output.status.success());
        let mut version = nobody.haypile();
        version.arg("--version");
        if !works(version) {
            stage.say("skipped: another user may not execute the binary");
            return None;
        }
        let mut namespaces = nobody.command(&["unshare", "--user", "--net", "true"]);
        namespaces.env_remove("LD_PRELOAD");
        if !works(namespaces) {
            stage.say("skipped: no user namespaces for plain users");
            return None;
        }
        Some(nobody)
    }

    /// The same with a device of its own; `None`: this system does not let us make one.
    pub fn with_tap(stage: &'a Stage) -> Option<Nobody<'a>> {
        let mut nobody = Nobody::new(stage)?;
        let device = stage.path("tun");
        let made = Command::new("mknod").arg(&device).args(["c", "10", "200"]).status();
        let opens = || fs::OpenOptions::new().read(true).write(true).open(&device).is_ok();
        if !made.is_ok_and(|status| status.success()) || !opens() {
            stage.say("skipped: no device can be made in the folder of the test");
            return None;
        }
        fs::set_permissions(&device, Permissions::from_mode(0o666)).expect("opened to all");
        nobody.device = Some(device);
        Some(nobody)
    }

    /// A command by this user.
    pub fn command(&self, words: &[&str]) -> Command {
        let (id, mut command) = (NOBODY.to_string(), Command::new("unshare"));
        let prepare = match &self.device {
            Some(device) => format!("mount --bind {} /dev/net/tun && ", device.display()),
            None => String::new(),
        };
        command.args(["--mount", "sh", "-c", &format!("{prepare}exec \"$@\""), "sh"]);
        command.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"]);
        command.args(words).env("XDG_RUNTIME_DIR", self.stage.path("r"));
        command.current_dir(self.stage.path("work"));
        command
    }

    fn haypile(&self) -> Command {
        self.command(&[env!("CARGO_BIN_EXE_haypile")])
    }

    /// Runs a shell script on a private service.
    fn run(&self, flags: &[&str], script: &str) -> Process {
        let mut command = self.haypile();
        command.arg("run").args(["--addr", &format!("{ADDRESS}/24")]).args(flags);
        command.args(["--", "sh", "-c", script]);
        self.stage.start_command("run", command)
    }

    /// Private services that have left their directory.
    fn directories(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.stage.path("r/haypile")).into_iter().flatten().flatten();
        let named = |path: &PathBuf| path.to_string_lossy().contains("/run-");
        entries.map(|entry| entry.path()).filter(named).collect()
    }

    /// Waits until nothing is left in the network namespace with this number, and no directory.
    #[track_caller]
    fn wait_until_nothing_is_left(&self, namespace: u64) {
        wait_until("nothing of the private service is left", PATIENCE, || {
            let processes = inspect::processes_in(namespace).into_iter();
            let living = processes.filter(|pid| inspect::is_alive(*pid)).count();
            (living == 0 && self.directories().is_empty()).then_some(())
        });
    }
}

/// Waits until the script has said its namespace, and holds that: the next one of another test would
/// have its number. `None` when the script has ended before.
fn hold_namespace(program: &Process, work: &Path) -> Option<fs::File> {
    let entry = format!("/proc/{}", program.pid());
    let held = wait_until("the script says its namespace", PATIENCE * 3, || {
        let said = fs::read_to_string(work.join("namespace")).is_ok_and(|text| !text.is_empty());
        let over = !inspect::is_alive(program.pid());
        (said || over).then(|| fs::File::open(format!("{entry}/ns/net")).ok())
    });
    fs::write(work.join("held"), "").expect("told");
    held
}

/// Serves files with nginx on a private service of `nobody` and fetches them by curl on it, and, where the
/// link has a host's end, by curl on the kernel's stack; compares all.
fn serve_and_fetch(nobody: &Nobody<'_>, flags: &[&str], expected: &str, port: u16) {
    let stage = nobody.stage;
    content::write(&stage.served("page"), 20_000_000);
    fs::set_permissions(stage.path("root"), Permissions::from_mode(0o755)).expect("readable");
    let listen: SocketAddr = format!("{ADDRESS}:{port}").parse().expect("an address");
    let words = nginx::command(stage, "nginx", &[&listen.to_string()]);
    chown(stage.path("nginx"), Some(NOBODY), Some(NOBODY)).expect("given away");
    let host =
        if expected.contains("reach each other only") { "true" } else { "env -u LD_PRELOAD" };
    let fetch =
        format!("{} 30 {}", http::CURL.join(" ").replace('*', "'*'"), http::url(listen, "page"));
    let script = format!(
        "{} & server=$!
         for turn in $(seq 100); do {fetch} >/dev/null 2>&1 && break; sleep 0.2; done
         {fetch} --output own || exit 3
         {host} {fetch} --output kernels || exit 4
         id -u > user; readlink /proc/self/ns/net > namespace
         until test -e held; do sleep 0.1; done
         kill $server; wait $server",
        words.join(" ").replace("daemon off;", "'daemon off;'")
    );
    let program = nobody.run(flags, &script);
    let held = hold_namespace(&program, &stage.path("work"));
    let finished = program.finish(PATIENCE * 3);
    assert!(finished.err.contains(expected), "{}", finished.err);
    assert!(finished.status.success(), "{:?} {}", finished.status, finished.err);
    let work = stage.path("work");
    content::assert_same(&stage.served("page"), &work.join("own"));
    if host != "true" {
        content::assert_same(&stage.served("page"), &work.join("kernels"));
    }
    let read = |name: &str| fs::read_to_string(work.join(name)).expect("written");
    assert_eq!(read("user").trim(), NOBODY.to_string());
    assert_eq!(fs::metadata(work.join("own")).expect("there").uid(), NOBODY);
    let digits: String = read("namespace").chars().filter(char::is_ascii_digit).collect();
    let namespace = digits.parse().expect("a number");
    let is_own = namespace != inspect::own_namespace();
    assert_eq!(is_own, !flags.contains(&"wire:"), "{}", finished.err);
    if is_own {
        nobody.wait_until_nothing_is_left(namespace);
    }
    drop(held);
    stage.say(finished.err.lines().next().unwrap_or_default());
}

#[test]
fn a_user_on_a_packet_socket() {
    on_stage("a_user_on_a_packet_socket", &NEEDS, |stage| {
        let Some(nobody) = Nobody::new(stage) else { return };
        let device = "/dev/net/tun";
        match fs::metadata(device).map(|data| data.mode() & 0o006) {
            Ok(6) => serve_and_fetch(&nobody, &["--link", "packet:"], "; packet haypile", PORT),
            _ => serve_and_fetch(&nobody, &[], "no TAP (cannot open /dev/net/tun", PORT),
        }
    });
}

#[test]
fn a_user_on_a_tap() {
    on_stage("a_user_on_a_tap", &NEEDS, |stage| {
        let Some(nobody) = Nobody::with_tap(stage) else { return };
        serve_and_fetch(&nobody, &[], "in a network namespace of its own; tap haypile0", PORT);
    });
}

#[test]
fn a_user_on_a_wire() {
    on_stage("a_user_on_a_wire", &NEEDS, |stage| {
        let Some(nobody) = Nobody::new(stage) else { return };
        let flags = ["--link", "wire:"];
        serve_and_fetch(&nobody, &flags, "the programs reach each other only", 8080);
    });
}

/// The directory of the private service that a program uses.
fn directory_of(program: &mut Process) -> PathBuf {
    wait_until("the program runs", PATIENCE, || {
        program.assert_alive();
        let environment = fs::read(format!("/proc/{}/environ", program.pid())).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let attach = variables.find_map(|variable| variable.strip_prefix(b"HAYPILE_ATTACH="))?;
        PathBuf::from(String::from_utf8_lossy(attach).as_ref()).parent().map(Path::to_path_buf)
    })
}

fn service_in(directory: &Path) -> u32 {
    wait_until("the service says its process", PATIENCE, || {
        number_at(&status_in(directory)?, "/pid")
    })
}

fn number_at(status: &serde_json::Value, pointer: &str) -> Option<u32> {
    status.pointer(pointer)?.as_u64()?.try_into().ok()
}

/// `None` while the service does not answer, as when its server dies over the question.
fn status_in(directory: &Path) -> Option<serde_json::Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_haypile"));
    let output = command.args(["status", "--json", "--control-dir"]).arg(directory).output();
    let text = output.expect("status").stdout;
    serde_json::from_slice(&text).ok()
}

/// Its supervisor starts a server again without root too, and its listeners live on.
#[test]
fn a_killed_server_comes_again() {
    on_stage("a_killed_server_comes_again", &NEEDS, |stage| {
        let Some(nobody) = Nobody::new(stage) else { return };
        content::write(&stage.served("page"), 1_000_000);
        let words = nginx::command(stage, "nginx", &[&format!("{ADDRESS}:{PORT}")]);
        chown(stage.path("nginx"), Some(NOBODY), Some(NOBODY)).expect("given away");
        let url = format!("http://{ADDRESS}:{PORT}/page");
        let fetch = format!("curl --silent --fail --max-time 5 {url} --output");
        let script = format!(
            "{} & server=$!
             until {fetch} before; do sleep 0.1; done; echo > fetched
             until test -e go; do sleep 0.1; done
             until {fetch} after; do sleep 0.1; done
             kill $server; wait $server",
            words.join(" ").replace("daemon off;", "'daemon off;'")
        );
        let mut program = nobody.run(&[], &script);
        let directory = directory_of(&mut program);
        let fetched = stage.path("work/fetched");
        wait_until("the page was fetched", PATIENCE, || fetched.exists().then_some(()));
        let status = || wait_until("the service answers", PATIENCE, || status_in(&directory));
        let server = || number_at(&status(), "/servers/0/pid");
        let Some(first) = server() else {
            program.kill_group();
            drop(program.finish(PATIENCE));
            return stage.say("skipped: the servers of this service are no processes");
        };
        send_signal("KILL", &first.to_string());
        wait_until("another server runs", PATIENCE, || server().filter(|pid| *pid != first));
        fs::write(stage.path("work/go"), "").expect("told");
        program.finish(PATIENCE * 2).expect_success("the script");
        content::assert_same(&stage.served("page"), &stage.path("work/after"));
    });
}

#[test]
fn kills_leave_nothing() {
    on_stage("kills_leave_nothing", &NEEDS, |stage| {
        let Some(nobody) = Nobody::new(stage) else { return };
        for victim in ["program", "service", "both", "program, politely"] {
            let mut program = nobody.run(&[], "exec sleep 1000");
            let directory = directory_of(&mut program);
            // Held, so that no other gets its number.
            let held = fs::File::open(format!("/proc/{}/ns/net", program.pid()));
            let held = held.expect("a namespace");
            let namespace = held.metadata().expect("its number").ino();
            assert_ne!(namespace, inspect::own_namespace());
            let service = service_in(&directory);
            if victim != "program" && !victim.contains("polite") {
                send_signal("KILL", &service.to_string());
            }
            if victim == "service" {
                wait_until("the directory is gone", PATIENCE, || {
                    (!directory.exists()).then_some(())
                });
                program.assert_alive();
            }
            program.signal(if victim.contains("polite") { "TERM" } else { "KILL" });
            drop(program.finish(PATIENCE));
            nobody.wait_until_nothing_is_left(namespace);
        }
    });
}

#[test]
fn refusals_are_one_line() {
    on_stage("refusals_are_one_line", &NEEDS, |stage| {
        let Some(nobody) = Nobody::new(stage) else { return };
        for (link, expected) in [
            ("tap:x", "/dev/net/tun"),
            ("packet:", "CAP_SYS_ADMIN"),
            ("packet:lo", "it carries no Ethernet frames"),
            ("packet:none", "check that the interface"),
        ] {
            let mut command = nobody.haypile();
            command.args(["serve", "--link", link, "--addr", "198.18.0.2/24"]);
            let finished = stage.start_command("serve", command).finish(PATIENCE);
            assert_eq!(finished.status.code(), Some(1), "{link}");
            assert_eq!(finished.err.lines().count(), 1, "{}", finished.err);
            assert!(finished.err.contains(expected), "{link}: {}", finished.err);
        }
        assert!(!stage.path("r/haypile/lock").exists());
    });
}

/// The capabilities named on the command line of setpriv are enough.
#[test]
fn capabilities_are_enough() {
    on_stage("capabilities_are_enough", &NEEDS, |stage| {
        let Some(nobody) = Nobody::with_tap(stage) else { return };
        stage
            .output(&["ip", "link", "add", "left", "type", "veth", "peer", "right"], PATIENCE)
            .expect_success("a veth pair");
        stage.output(&["ip", "link", "set", "right", "up"], PATIENCE).expect_success("up");
        for (link, capability, expected) in
            [("tap:x", "net_admin", "tap x"), ("packet:right", "net_raw", "packet right")]
        {
            let sets = format!("+{capability}");
            let program = env!("CARGO_BIN_EXE_haypile");
            let mut command = nobody.command(&["--inh-caps", &sets, "--ambient-caps", &sets]);
            command.args([program, "serve", "--link", link, "--addr", "198.18.0.2/24"]);
            let mut service = stage.start_command("serve", command);
            service.wait_for_output("ready");
            assert!(service.out().contains(expected), "{}", service.out());
            service.signal("TERM");
            service.finish(PATIENCE).expect_success("a clean end");
        }
        stage.output(&["ip", "link", "del", "left"], PATIENCE).expect_success("gone");
    });
}

/// The doctor says beforehand what `haypile run` takes, and why not the better.
#[test]
fn the_doctor_knows() {
    on_stage("the_doctor_knows", &NEEDS, |stage| {
        if !fs::metadata("/dev/net/tun").is_ok_and(|data| data.mode() & 0o006 != 6) {
            return stage.say("skipped: everybody may open /dev/net/tun here");
        }
        for (with_tap, expected) in [
            (false, "packet: in a namespace of its own: cannot open"),
            (true, "tap: in a namespace"),
        ] {
            let nobody = if with_tap { Nobody::with_tap(stage) } else { Nobody::new(stage) };
            let Some(nobody) = nobody else { return };
            let mut command = nobody.haypile();
            command.args(["doctor", "--json"]);
            let finished = stage.start_command("doctor", command).finish(PATIENCE);
            let finished = finished.expect_success("a machine that runs Haypile without root");
            let report: serde_json::Value = serde_json::from_str(&finished.out).expect("a report");
            let checks = report["checks"].as_array().expect("checks");
            let found = |name: &str| {
                let check = checks.iter().find(|check| check["name"] == name).expect("it is there");
                check["found"].as_str().unwrap_or_default().to_string()
            };
            assert!(found("haypile run takes").starts_with(expected), "{checks:?}");
            assert!(found("user namespaces").contains("packet: works"), "{checks:?}");
            assert!(found("link tap").contains("not right here"), "{checks:?}");
        }
    });
}

/// Root's service lets everybody in whom its directory lets pass, and nobody else.
#[test]
fn a_user_joins_root() {
    on_stage("a_user_joins_root", &NEEDS, |stage| {
        let Some(nobody) = Nobody::new(stage) else { return };
        fs::set_permissions(stage.path(""), Permissions::from_mode(0o711)).expect("passable");
        let _service = stage.serve();
        let mut server = {
            let words = nginx::command(stage, "nginx", &["198.18.0.2:8080"]);
            chown(stage.path("nginx"), Some(NOBODY), Some(NOBODY)).expect("given away");
            content::write(&stage.served("page"), 100_000);
            let mut command = nobody.haypile();
            command.arg("run").arg("--control-dir").arg(stage.control()).arg("--").args(&words);
            stage.start_command("run", command)
        };
        let address = crate::support::stage::service(8080);
        stage.wait_for_listener(address, &mut server);
        http::fetch(stage, &http::url(address, "page"), &stage.path("fetched"), 60);
        content::assert_same(&stage.served("page"), &stage.path("fetched"));
        assert!(server.err().contains("joined the service"), "{}", server.err());
        drop(server);
        fs::set_permissions(stage.control(), Permissions::from_mode(0o700)).expect("closed");
        let mut command = nobody.haypile();
        command.arg("run").arg("--control-dir").arg(stage.control()).args(["--", "true"]);
        let refused = stage.start_command("run", command).finish(PATIENCE);
        assert_eq!(refused.status.code(), Some(1));
        assert!(refused.err.contains("its owner does not let this user in"), "{}", refused.err);
        assert_eq!(refused.err.lines().count(), 1, "{}", refused.err);
    });
}

/// `--group` lets its members in, and nobody else.
#[test]
fn a_group_joins() {
    on_stage("a_group_joins", &NEEDS, |stage| {
        /// A group that nobody of these tests is in.
        const GROUP: &str = "1";
        let Some(nobody) = Nobody::new(stage) else { return };
        fs::set_permissions(stage.path(""), Permissions::from_mode(0o711)).expect("passable");
        let mut service = stage.serve_with(&["--group", GROUP]);
        let id = NOBODY.to_string();
        let join = |groups: &[&str]| {
            let user = ["setpriv", "--reuid", &id, "--regid", &id];
            let mut command = Command::new(user[0]);
            command.args(&user[1..]).args(groups).arg(env!("CARGO_BIN_EXE_haypile"));
            command.arg("run").arg("--control-dir").arg(stage.control()).args(["--", "true"]);
            command.env("XDG_RUNTIME_DIR", nobody.stage.path("r"));
            stage.start_command("run", command).finish(PATIENCE)
        };
        let member = join(&["--groups", GROUP]).expect_success("a member of the group");
        assert!(member.err.contains("reach it at 198.18.0.2"), "{}", member.err);
        let stranger = join(&["--clear-groups"]);
        assert_eq!(stranger.status.code(), Some(1));
        assert!(stranger.err.contains("its owner does not let this user in"), "{}", stranger.err);
        service.assert_alive();
        let mut unknown = stage.haypile("serve");
        unknown.args(["--group", "no-such-group"]);
        let finished = stage.start_command("serve", unknown).finish(PATIENCE);
        assert!(finished.err.contains("there is no such group"), "{}", finished.err);
    });
}
