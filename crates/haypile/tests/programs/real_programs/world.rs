//! The world of one case: where its server and its client run, under which addresses, and files of its own. The
//! link is a parameter: on a TAP link one of the two programs is on Haypile and the other on the kernel's side,
//! or both are on Haypile; on a wire the server is on one service and the client on another.

use crate::support::process::{Finished, Process};
use crate::support::stage::{HOST, SERVICE, Stage};
use crate::support::{content, inspect, wait_until};
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What lies between the two programs.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// A TAP interface between the service and the kernel.
    Tap,
    /// Two services joined by memory: servers on one, clients on the other.
    Wire,
}

impl Link {
    pub fn name(self) -> &'static str {
        match self {
            Link::Tap => "tap",
            Link::Wire => "wire",
        }
    }

    /// The roles of a case that this link has room for.
    pub fn roles(self, wanted: &'static [Role]) -> &'static [Role] {
        match self {
            Link::Tap => wanted,
            Link::Wire => &[Role::Both],
        }
    }
}

/// Which of the two programs is on Haypile.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The server; the client is on the kernel's stack.
    Server,
    /// The client; the server is on the kernel's stack.
    Client,
    /// Both.
    Both,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Client => "client",
            Role::Both => "server, client",
        }
    }
}

/// A place that programs run at.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Place {
    /// On the test's service.
    Haypile,
    /// On the first service of a wire.
    Near,
    /// On the second.
    Far,
    /// On the kernel's stack.
    Kernel,
}

/// One case's world.
pub struct World<'a> {
    stage: &'a Stage,
    server: Place,
    client: Place,
    folder: PathBuf,
    /// A port that no other case of this run uses, and the next ones up to 9 after it.
    pub port: u16,
}

/// The longest that one program of a case may take.
const LIMIT: Duration = Duration::from_secs(120);

impl<'a> World<'a> {
    pub fn new(stage: &'a Stage, link: Link, role: Role, number: usize) -> World<'a> {
        let (server, client) = match (link, role) {
            (Link::Tap, Role::Server) => (Place::Haypile, Place::Kernel),
            (Link::Tap, Role::Client) => (Place::Kernel, Place::Haypile),
            (Link::Tap, Role::Both) => (Place::Haypile, Place::Haypile),
            (Link::Wire, _) => (Place::Far, Place::Near),
        };
        let folder = stage.path(&format!("{}-{number}", link.name()));
        fs::create_dir_all(&folder).expect("make a folder for the case");
        World { stage, server, client, folder, port: 10_000 + 10 * number as u16 }
    }

    /// Address of the server's place.
    pub fn address(&self) -> IpAddr {
        address_of(self.server)
    }

    /// The same with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(), port)
    }

    /// Address of the client's place.
    pub fn far_address(&self) -> IpAddr {
        address_of(self.client)
    }

    /// A file of the case, as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A file of the case.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file of the case and returns its path as text.
    pub fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).expect("write a file of the case");
        self.text(name)
    }

    /// The folder with the file `page` that programs move.
    pub fn root(&self) -> String {
        self.stage.text("root")
    }

    /// That file.
    pub fn page(&self) -> PathBuf {
        self.stage.served("page")
    }

    /// Fails unless a file of the case is the page.
    #[track_caller]
    pub fn assert_page(&self, name: &str) {
        content::assert_same(&self.page(), &self.path(name));
    }

    /// A command at the server's place.
    pub fn server_command(&self, words: &[&str]) -> Command {
        self.command(self.server, words)
    }

    /// A command at the client's place.
    pub fn client_command(&self, words: &[&str]) -> Command {
        self.command(self.client, words)
    }

    fn command(&self, place: Place, words: &[&str]) -> Command {
        let mut command = match place {
            Place::Kernel => Command::new(words[0]),
            Place::Haypile | Place::Near | Place::Far => {
                let mut command = haypile(self.stage, place, "run");
                command.args(["--quiet", "--", words[0]]);
                command
            }
        };
        command.args(&words[1..]).current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// Starts a server and waits until it listens at `port`.
    #[track_caller]
    pub fn serve(&self, words: &[&str], port: u16) -> Process {
        self.serve_command(words[0], self.server_command(words), port)
    }

    /// As [`World::serve`], of a prepared command.
    #[track_caller]
    pub fn serve_command(&self, name: &str, command: Command, port: u16) -> Process {
        let mut server = self.stage.start_reading(name, command);
        self.wait_for_listener(self.server, port, &mut server);
        server
    }

    /// Starts a server at the client's place and waits until it listens at `port`.
    #[track_caller]
    pub fn serve_far(&self, words: &[&str], port: u16) -> Process {
        let mut server = self.stage.start_reading(words[0], self.client_command(words));
        self.wait_for_listener(self.client, port, &mut server);
        server
    }

    /// Waits for a listener without connecting to it: some servers take one connection only.
    #[track_caller]
    fn wait_for_listener(&self, place: Place, port: u16, server: &mut Process) {
        wait_until(&format!("a server listens at port {port}"), LIMIT, || {
            server.assert_alive();
            let listens = match place {
                Place::Kernel => inspect::kernel_listens(port),
                _ => service_listens(self.stage, place, port),
            };
            listens.then_some(())
        });
    }

    /// Runs a client to its end; it must succeed.
    #[track_caller]
    pub fn ask(&self, words: &[&str]) -> Finished {
        self.ask_command(words[0], self.client_command(words))
    }

    /// As [`World::ask`], of a prepared command.
    #[track_caller]
    pub fn ask_command(&self, name: &str, command: Command) -> Finished {
        self.start_command(name, command).finish(LIMIT).expect_success(name)
    }

    /// Runs a client that reads the page from its standard input; what it wrote to its standard
    /// output must be the page.
    #[track_caller]
    pub fn echo_page(&self, words: &[&str]) {
        let mut command = self.client_command(words);
        command.stdin(fs::File::open(self.page()).expect("open the page"));
        let client = self.start_command(words[0], command);
        let echoed = client.out_file();
        client.finish(LIMIT).expect_success(words[0]);
        content::assert_same(&self.page(), &echoed);
    }

    /// Starts a prepared command.
    pub fn start_command(&self, name: &str, command: Command) -> Process {
        self.stage.start_reading(name, command)
    }

    /// Runs a helper on the kernel's side that needs no network.
    #[track_caller]
    pub fn prepare(&self, words: &[&str]) -> Finished {
        self.ask_command(words[0], self.command(Place::Kernel, words))
    }
}

fn address_of(place: Place) -> IpAddr {
    match place {
        Place::Haypile | Place::Far => SERVICE.into(),
        Place::Kernel | Place::Near => HOST.into(),
    }
}

/// The command for the service of a place.
fn haypile(stage: &Stage, place: Place, subcommand: &str) -> Command {
    match place {
        Place::Near => at(stage, "near", subcommand),
        Place::Far => at(stage, "far", subcommand),
        Place::Haypile | Place::Kernel => stage.haypile(subcommand),
    }
}

fn at(stage: &Stage, name: &str, subcommand: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_haypile"));
    command.arg(subcommand).arg("--control-dir").arg(stage.path(name));
    command
}

/// Starts the two services of a wire and waits until both answer.
pub fn join(stage: &Stage) -> [Process; 2] {
    [(Place::Near, "198.18.0.1/24"), (Place::Far, "198.18.0.2/24")].map(|(place, address)| {
        let mut command = haypile(stage, place, "serve");
        command.args(["--link", &format!("wire:programs{}", std::process::id())]);
        command.args(["--addr", address]);
        let mut service = stage.start_command("serve", command);
        wait_until("a service of the wire answers", LIMIT, || {
            service.assert_alive();
            let status = haypile(stage, place, "status").output().ok()?;
            status.status.success().then_some(())
        });
        service
    })
}

/// Whether a service has a listener at a port.
fn service_listens(stage: &Stage, place: Place, port: u16) -> bool {
    let output = haypile(stage, place, "ss").args(["--all", "--json"]).output();
    let Ok(output) = output else { return false };
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    told["sockets"].as_array().into_iter().flatten().any(|socket| {
        let local = socket["local"].as_str().unwrap_or_default();
        inspect::state(socket) == "LISTEN" && local.ends_with(&format!(":{port}"))
    })
}
