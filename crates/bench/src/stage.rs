//! The sides of a comparison: network namespaces of their own, services, server programs, and where the client of each
//! side runs. Everything ends when the [`Stage`] is dropped. Called by `frame`.
//!
//! ```text
//! tap, haypile:  client on the kernel [near] -- TAP -- service <- server program
//! wire, haypile: client program -> service a == wire == service b <- server program
//! linux:         client on the kernel [near] -- veth -- [far] server program on the kernel
//!
//! with the generator on a stack of its own:
//! haypile:       generator == wire == service b <- server program
//! linux:         generator -- TAP -- [far] server program on the kernel
//! ```

pub mod fleets;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use haypile_link::LinkError;
use haypile_link::netlink::{Netlink, PeerNamespace};
use haypile_link::netns::{self, Namespace};

use crate::cores::Cores;
use crate::load::conversation::patterned;
use crate::load::engine::Link;
use crate::load::{Pace, Spec, Work};
use crate::options::{ClientKind, LinkKind, ServerKind};
use crate::parts::{Over, Part};
use crate::process::{Launcher, Place, Process, namespace_path};
use crate::simulation::workload::Delays;

/// Interface of Haypile's side in the namespace of the client.
const TAP: &str = "haypile0";
const VETH_NEAR: &str = "bench0";
const VETH_FAR: &str = "bench1";
/// Interface of the generator's own stack in the namespace of the kernel's server.
const TAP_FAR: &str = "bench2";
/// The kernel's end of that interface; the server's address is on the loopback interface.
const LINUX_GATE: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 3);
const HAYPILE_NEAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const HAYPILE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const LINUX_NEAR: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
const LINUX: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);
const PREFIX: u8 = 24;
const PORT: u16 = 8080;
const START_LIMIT: Duration = Duration::from_secs(30);

/// What to build.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How Haypile's side is joined.
    pub link: LinkKind,
    /// What makes the load.
    pub client: ClientKind,
    /// Where wires meet.
    pub wires: Option<PathBuf>,
    /// With a side on the kernel.
    pub linux: bool,
    /// The server.
    pub server: ServerKind,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Congestion control of the kernel's side.
    pub congestion: String,
    /// Who runs where.
    pub cores: Cores,
}

/// One side.
#[derive(Debug)]
pub struct Side {
    /// `haypile` or `linux`.
    pub name: &'static str,
    /// Where its server answers.
    pub target: SocketAddr,
    /// Where its client runs.
    pub client: Place,
    /// What carries its load.
    pub over: Over,
    /// The service that the client program uses.
    pub client_control: Option<PathBuf>,
    /// The service under its server program, where that says how its time goes.
    pub control: Option<PathBuf>,
    /// Its processes with the names of their parts, the server program first.
    parts: Vec<(&'static str, Process)>,
}

/// Both sides.
#[derive(Debug)]
pub struct Stage {
    sides: Vec<Side>,
    near: Namespace,
    far: Option<Namespace>,
    /// Who is slow when, where workers can be.
    delays: Option<Delays>,
    /// Ends last: it removes the folder.
    launcher: Launcher,
}

impl Side {
    /// Names of the parts.
    pub fn part_names(&self) -> Vec<&'static str> {
        self.parts.iter().map(|(name, _)| *name).collect()
    }

    /// Process numbers of the parts.
    pub fn part_pids(&self) -> Vec<u32> {
        self.parts.iter().map(|(_, process)| process.pid()).collect()
    }

    /// Fails if a part has ended.
    ///
    /// # Errors
    /// Then, with its last words.
    pub fn assert_alive(&mut self) -> Result<(), String> {
        self.parts.iter_mut().try_for_each(|(_, process)| process.assert_alive())
    }

    /// The words that start a program as this side's client.
    pub fn client_words(&self, program: &Path, words: Vec<String>) -> Vec<String> {
        match &self.client_control {
            Some(control) => run_words(program, control, words),
            None => words,
        }
    }
}

/// The words that run a program on the service of a control directory.
fn run_words(program: &Path, control: &Path, words: Vec<String>) -> Vec<String> {
    let start =
        [program.display().to_string(), "run".into(), "--quiet".into(), "--control-dir".into()];
    let mut all = start.to_vec();
    all.extend([control.display().to_string(), "--".into()]);
    all.extend(words);
    all
}

fn text(error: LinkError) -> String {
    error.to_string()
}

impl Stage {
    /// Builds both sides and waits until both answer.
    ///
    /// # Errors
    /// What the environment does not allow, in one line; nothing is left behind.
    pub fn build(wanted: &Wanted) -> Result<Stage, String> {
        let near = Namespace::create().map_err(text)?;
        netns::run_in(near.as_fd(), netns::loopback_up).and_then(|result| result).map_err(text)?;
        let launcher = Launcher::new()?;
        let mut stage = Stage { sides: Vec::new(), near, far: None, launcher, delays: None };
        stage.build_haypile(wanted)?;
        if wanted.linux {
            stage.build_linux(wanted)?;
        }
        for index in 0..stage.sides.len() {
            stage.wait_until_it_answers(index, wanted.body_bytes)?;
        }
        Ok(stage)
    }

    /// The sides, Haypile first.
    pub fn sides(&mut self) -> &mut [Side] {
        &mut self.sides
    }

    /// One side, and what starts its load.
    pub fn side_and_launcher(&mut self, index: usize) -> (&mut Side, &mut Launcher) {
        (&mut self.sides[index], &mut self.launcher)
    }

    fn build_haypile(&mut self, wanted: &Wanted) -> Result<(), String> {
        match (wanted.link, wanted.client) {
            (LinkKind::Tap, ClientKind::Sockets) => self.build_tap(wanted),
            (LinkKind::Wire, ClientKind::Sockets) => self.build_wire(wanted),
            (LinkKind::Wire, ClientKind::Engine) => self.build_wire_to_engine(wanted),
            (LinkKind::Tap, ClientKind::Engine) => {
                Err("--client engine reaches Haypile over a wire only; add --link wire".into())
            }
        }
    }

    fn build_tap(&mut self, wanted: &Wanted) -> Result<(), String> {
        let control = self.launcher.folder().join("control");
        let link = format!("tap:{TAP}");
        let (ours, hosts) = (format!("{HAYPILE}/{PREFIX}"), format!("{HAYPILE_NEAR}/{PREFIX}"));
        let flags = ["--link", &link, "--addr", &ours, "--host-addr", &hosts];
        let service = self.start_service("service", &wanted.cores.service, &control, &flags)?;
        netns::run_in(self.near.as_fd(), || route(TAP, HAYPILE.into(), &wanted.congestion))
            .and_then(|result| result)
            .map_err(text)?;
        self.add_haypile_side(wanted, &control, vec![("service", service)], None, Over::Sockets)
    }

    fn build_wire(&mut self, wanted: &Wanted) -> Result<(), String> {
        let service = self.start_wired_service(wanted)?;
        let control = self.launcher.folder().join("client-control");
        let (link, ours) = (format!("wire:{}", wire_name()), format!("{HAYPILE_NEAR}/{PREFIX}"));
        let flags = ["--link", &link, "--addr", &ours];
        let cores = &wanted.cores.client_service;
        let client_service = self.start_service("client-service", cores, &control, &flags)?;
        let parts = vec![("service", service), ("client service", client_service)];
        self.add_haypile_side(wanted, &self.server_control(), parts, Some(control), Over::Sockets)
    }

    fn build_wire_to_engine(&mut self, wanted: &Wanted) -> Result<(), String> {
        let directory =
            wanted.wires.clone().ok_or("no directory for wires; set XDG_RUNTIME_DIR")?;
        let service = self.start_wired_service(wanted)?;
        let link = Link::Wire { directory, name: wire_name() };
        let over = Over::Engine { link, local: HAYPILE_NEAR.into() };
        let parts = vec![("service", service)];
        self.add_haypile_side(wanted, &self.server_control(), parts, None, over)
    }

    fn server_control(&self) -> PathBuf {
        self.launcher.folder().join("control")
    }

    /// The server's service, at one end of the wire.
    fn start_wired_service(&mut self, wanted: &Wanted) -> Result<Process, String> {
        let (link, ours) = (format!("wire:{}", wire_name()), format!("{HAYPILE}/{PREFIX}"));
        let flags = ["--link", &link, "--addr", &ours];
        self.start_service("service", &wanted.cores.service, &self.server_control(), &flags)
    }

    /// Starts the server program on the service of `control`, and adds the side.
    fn add_haypile_side(
        &mut self,
        wanted: &Wanted,
        control: &Path,
        services: Vec<(&'static str, Process)>,
        client_control: Option<PathBuf>,
        over: Over,
    ) -> Result<(), String> {
        let near = Some(namespace_path(&self.near));
        let target = SocketAddr::new(HAYPILE.into(), PORT);
        let server = self.server_words(wanted, target, "haypile", wanted.cores.program.len())?;
        let words = run_words(self.launcher.program(), control, server);
        let place = Place { namespace: near.clone(), cores: wanted.cores.program.clone() };
        let program = self.launcher.start("program", &place, &words, false)?;
        let mut parts = vec![("program", program)];
        parts.extend(services);
        let client = Place { namespace: near, cores: wanted.cores.client.clone() };
        self.sides.push(Side {
            name: "haypile",
            target,
            client,
            over,
            client_control,
            control: None,
            parts,
        });
        Ok(())
    }

    fn start_service(
        &mut self,
        name: &str,
        cores: &[usize],
        control: &Path,
        flags: &[&str],
    ) -> Result<Process, String> {
        let place = Place { namespace: Some(namespace_path(&self.near)), cores: cores.to_vec() };
        let mut words = vec![self.launcher.program().display().to_string(), "serve".into()];
        words.extend(["--control-dir".to_string(), control.display().to_string()]);
        words.extend(flags.iter().map(|flag| flag.to_string()));
        let mut service = self.launcher.start(name, &place, &words, false)?;
        wait_for_socket(control, &mut service)?;
        Ok(service)
    }

    fn build_linux(&mut self, wanted: &Wanted) -> Result<(), String> {
        let far = Namespace::create().map_err(text)?;
        netns::run_in(far.as_fd(), netns::loopback_up).and_then(|result| result).map_err(text)?;
        let (client, over) = match wanted.client {
            ClientKind::Sockets => {
                self.join_by_veth(&far, &wanted.congestion).map_err(text)?;
                (namespace_path(&self.near), Over::Sockets)
            }
            ClientKind::Engine => {
                netns::run_in(far.as_fd(), || {
                    let mut netlink = Netlink::open()?;
                    let loopback = netlink.link_by_name("lo")?.index;
                    netlink.add_address(loopback, LINUX.into(), 32)
                })
                .and_then(|result| result)
                .map_err(text)?;
                let congestion = wanted.congestion.clone();
                let link = Link::Tap { name: TAP_FAR.into(), host: LINUX_GATE.into(), congestion };
                (namespace_path(&far), Over::Engine { link, local: LINUX_NEAR.into() })
            }
        };
        let target = SocketAddr::new(LINUX.into(), PORT);
        let cores = wanted.cores.kernel_program();
        let words = self.server_words(wanted, target, "linux", cores.len())?;
        let place = Place { namespace: Some(namespace_path(&far)), cores };
        let program = self.launcher.start("program-linux", &place, &words, false)?;
        self.far = Some(far);
        self.sides.push(Side {
            name: "linux",
            target,
            client: Place { namespace: Some(client), cores: wanted.cores.kernel_client() },
            over,
            client_control: None,
            control: None,
            parts: vec![("program", program)],
        });
        Ok(())
    }

    /// Joins both namespaces; connections use this congestion control on both ends.
    fn join_by_veth(&self, far: &Namespace, congestion: &str) -> Result<(), LinkError> {
        let peer = far.as_fd();
        netns::run_in(self.near.as_fd(), || {
            let mut netlink = Netlink::open()?;
            netlink.create_veth(VETH_NEAR, VETH_FAR, PeerNamespace::Descriptor(peer))?;
            set_up(&mut netlink, VETH_NEAR, LINUX_NEAR.into())
        })??;
        netns::run_in(peer, || {
            set_up(&mut Netlink::open()?, VETH_FAR, LINUX.into())?;
            route(VETH_FAR, LINUX_NEAR.into(), congestion)
        })??;
        netns::run_in(self.near.as_fd(), || {
            route(VETH_NEAR, LINUX.into(), congestion)?;
            // It was set up before its peer: its carrier may not be noted yet.
            let mut netlink = Netlink::open()?;
            let near = netlink.link_by_name(VETH_NEAR)?.index;
            netlink.wait_until_running(near)
        })?
    }

    /// The words that start the server, a worker for each of its cores.
    fn server_words(
        &self,
        wanted: &Wanted,
        address: SocketAddr,
        side: &str,
        workers: usize,
    ) -> Result<Vec<String>, String> {
        let workers = workers.max(1);
        match wanted.server {
            ServerKind::Builtin => {
                let part = Part::Respond { address, workers, service_us: 0, polling: false };
                Ok(part.words(self.launcher.program()))
            }
            ServerKind::Nginx => self.nginx_words(side, address, workers, wanted.body_bytes),
        }
    }

    /// The words that start nginx with a folder of its own.
    fn nginx_words(
        &self,
        name: &str,
        address: SocketAddr,
        workers: usize,
        body_bytes: usize,
    ) -> Result<Vec<String>, String> {
        let work = self.launcher.folder().join(format!("nginx-{name}"));
        let config = write_nginx(&work, address, workers, body_bytes)
            .map_err(|error| format!("cannot prepare nginx: {error}"))?;
        let program =
            find_program("nginx").ok_or("nginx is not installed; use --server builtin")?;
        let words = [program, "-p".into(), work, "-c".into(), config, "-e".into(), "stderr".into()];
        Ok(words.iter().map(|word| word.display().to_string()).collect())
    }

    fn wait_until_it_answers(&mut self, index: usize, body_bytes: usize) -> Result<(), String> {
        let side = &mut self.sides[index];
        let spec = Spec {
            target: side.target,
            work: Work::Short,
            pace: Pace::Closed,
            connections: 1,
            warmup_s: 0.0,
            duration_s: 0.01,
            polling: false,
            body_bytes,
        };
        let part = Part::Probe { spec, over: side.over.clone() };
        let program = self.launcher.program();
        let words = side.client_words(program, part.words(program));
        let mut probe = self.launcher.start("probe", &side.client, &words, false)?;
        let answered = probe.finish(START_LIMIT);
        // A part that has ended says more than that nobody answers.
        side.assert_alive()?;
        answered.map_err(|error| format!("the {} side does not work: {error}", side.name))
    }
}

/// Name of this run's wire.
fn wire_name() -> String {
    format!("bench{}", std::process::id())
}

impl Drop for Stage {
    fn drop(&mut self) {
        for side in &mut self.sides {
            // Programs before their services.
            while !side.parts.is_empty() {
                drop(side.parts.remove(0));
            }
        }
    }
}

/// Waits until a service has made its sockets.
fn wait_for_socket(control: &Path, service: &mut Process) -> Result<(), String> {
    let started = std::time::Instant::now();
    while started.elapsed() < START_LIMIT {
        service.assert_alive()?;
        if control.join("attach.sock").exists() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(format!("the service did not start within {START_LIMIT:?}; {}", service.last_words()))
}

fn set_up(netlink: &mut Netlink, name: &str, address: IpAddr) -> Result<(), LinkError> {
    let index = netlink.link_by_name(name)?.index;
    netlink.add_address(index, address, PREFIX)?;
    netlink.set_up(index)
}

/// Connections with `peer` over this interface use this congestion control.
fn route(interface: &str, peer: IpAddr, congestion: &str) -> Result<(), LinkError> {
    let mut netlink = Netlink::open()?;
    let index = netlink.link_by_name(interface)?.index;
    netlink.add_host_route_with_congestion_control(peer, index, congestion)
}

/// One file of the pattern, named by its length, and a configuration. Returns the configuration's path.
fn write_nginx(
    work: &Path,
    address: SocketAddr,
    workers: usize,
    body_bytes: usize,
) -> std::io::Result<PathBuf> {
    let root = work.join("root");
    fs::create_dir_all(&root)?;
    fs::write(root.join(body_bytes.to_string()), patterned(body_bytes))?;
    let config = work.join("nginx.conf");
    let (work, root) = (work.display(), root.display());
    let text = format!(
        "daemon off; worker_processes {workers}; user root; pid {work}/nginx.pid;\n\
         error_log stderr warn;\n\
         events {{ worker_connections 8192; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; open_file_cache max=16;\n\
         client_body_temp_path {work}/body; proxy_temp_path {work}/proxy;\n\
         fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;\n\
         server {{ listen {address}; root {root}; }} }}\n"
    );
    fs::write(&config, text)?;
    Ok(config)
}

/// The path of an executable that the shell would find, also in the system folders that users' paths leave out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let folders = std::env::split_paths(&path).chain(system);
    folders.map(|folder| folder.join(name)).find(|candidate| {
        use std::os::unix::fs::PermissionsExt;
        let executable =
            |data: fs::Metadata| data.is_file() && data.permissions().mode() & 0o111 != 0;
        candidate.metadata().is_ok_and(executable)
    })
}
