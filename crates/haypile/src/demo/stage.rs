//! The two sides of the demo: a network namespace of our own with a private Haypile service and its TAP, and a second
//! one, joined by veth, where the same server runs on the kernel's stack. All of it ends when the [`Stage`] is dropped.

use super::content;
use super::server::Kind;
use haypile_link::netlink::{Netlink, PeerNamespace};
use haypile_link::netns::{self, Namespace};
use haypile_shm::sys;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where a server's standard error goes, in its own folder.
const LOG: &str = "log";
const PORT: u16 = 8080;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const START_LIMIT: Duration = Duration::from_secs(20);
const END_LIMIT: Duration = Duration::from_secs(10);

/// One server that the demo measures.
pub struct Side {
    /// `Haypile` or `Linux`.
    pub name: &'static str,
    /// Where it answers, IPv4 first.
    pub addresses: Vec<SocketAddr>,
    work: PathBuf,
    process: Child,
}

/// Both sides, ready to answer.
pub struct Stage {
    sides: Vec<Side>,
    folder: PathBuf,
    _kernel_side: Namespace,
}

fn haypile_addresses() -> [SocketAddr; 2] {
    address_pair(Ipv4Addr::new(198, 18, 0, 2), Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 2))
}

fn linux_addresses() -> [SocketAddr; 2] {
    address_pair(Ipv4Addr::new(198, 19, 0, 2), Ipv6Addr::new(0x2001, 2, 0, 1, 0, 0, 0, 2))
}

fn address_pair(v4: Ipv4Addr, v6: Ipv6Addr) -> [SocketAddr; 2] {
    [SocketAddr::new(IpAddr::V4(v4), PORT), SocketAddr::new(IpAddr::V6(v6), PORT)]
}

impl Stage {
    /// Builds both sides and waits until both answer.
    ///
    /// # Errors
    /// What could not be made, why, and what to do.
    pub fn build(kind: Kind) -> Result<Stage, String> {
        let folder = new_folder()?;
        let root = folder.join("root");
        let prepared = fs::create_dir(&root).and_then(|()| content::write(&root));
        prepared.map_err(|error| format!("cannot write the demo's files: {error}"))?;
        let namespace = enter_own_namespace()?;
        let mut stage = Stage { sides: Vec::new(), folder, _kernel_side: namespace };
        stage.start_haypile(kind, &root)?;
        stage.start_linux(kind, &root)?;
        for side in &mut stage.sides {
            wait_until_it_answers(side)?;
        }
        Ok(stage)
    }

    /// The sides, Haypile first.
    pub fn sides(&self) -> &[Side] {
        &self.sides
    }

    fn start_haypile(&mut self, kind: Kind, root: &Path) -> Result<(), String> {
        let own =
            std::env::current_exe().map_err(|error| format!("cannot find myself: {error}"))?;
        let control = self.folder.join("control");
        let addresses = kind.served(&haypile_addresses());
        let work = self.new_work()?;
        let server = command(kind, &addresses, root, &work)?;
        let mut haypile = Command::new(&own);
        haypile.args(["run", "--quiet"]).arg("--control-dir").arg(&control);
        haypile.args(["--addr", "198.18.0.2/24", "--addr", "2001:2::2/64", "--"]).args(server);
        self.sides.push(start("Haypile", addresses, work, haypile)?);
        Ok(())
    }

    fn start_linux(&mut self, kind: Kind, root: &Path) -> Result<(), String> {
        let prefix = |addr: &SocketAddr| if addr.is_ipv4() { 24 } else { 64 };
        let fail = |error: haypile_link::LinkError| error.to_string();
        let other = Namespace::create().map_err(fail)?;
        let mut netlink = Netlink::open().map_err(fail)?;
        let peer = PeerNamespace::Descriptor(other.as_fd());
        netlink.create_veth("demo0", "demo1", peer).map_err(fail)?;
        let near = netlink.link_by_name("demo0").map_err(fail)?.index;
        for address in linux_addresses() {
            netlink.add_address(near, first_host(address.ip()), prefix(&address)).map_err(fail)?;
        }
        netlink.set_up(near).map_err(fail)?;
        let far_side = netns::run_in(other.as_fd(), || {
            netns::loopback_up()?;
            let mut netlink = Netlink::open()?;
            let far = netlink.link_by_name("demo1")?.index;
            for address in linux_addresses() {
                netlink.add_address(far, address.ip(), prefix(&address))?;
            }
            netlink.set_up(far)?;
            netlink.wait_until_running(far)
        });
        far_side.and_then(|result| result).map_err(fail)?;
        netlink.wait_until_running(near).map_err(fail)?;
        let addresses = kind.served(&linux_addresses());
        let work = self.new_work()?;
        let words = command(kind, &addresses, root, &work)?;
        let mut server = Command::new(&words[0]);
        server.args(&words[1..]);
        let started = netns::run_in(other.as_fd(), || start("Linux", addresses, work, server));
        self.sides.push(started.map_err(fail)??);
        Ok(())
    }

    fn new_work(&self) -> Result<PathBuf, String> {
        let work = self.folder.join(format!("server{}", self.sides.len()));
        fs::create_dir(&work)
            .map_err(|error| format!("cannot make {}: {error}", work.display()))?;
        Ok(work)
    }
}

/// The other end's address on a link: the same with 1 in its last place.
fn first_host(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, 1))
        }
        IpAddr::V6(v6) => {
            let mut segments = v6.segments();
            segments[7] = 1;
            IpAddr::V6(segments.into())
        }
    }
}

fn new_folder() -> Result<PathBuf, String> {
    let folder = std::env::temp_dir().join(format!("haypile-demo-{}", std::process::id()));
    fs::create_dir_all(&folder)
        .map_err(|error| format!("cannot make {}: {error}; set TMPDIR", folder.display()))?;
    Ok(folder)
}

fn enter_own_namespace() -> Result<Namespace, String> {
    let made = netns::new_network_namespace().and_then(|namespace| {
        netns::loopback_up()?;
        Ok(namespace)
    });
    made.map_err(|error| error.to_string())
}

fn command(
    kind: Kind,
    addresses: &[SocketAddr],
    root: &Path,
    work: &Path,
) -> Result<Vec<String>, String> {
    kind.command(addresses, root, work)
        .map_err(|error| format!("cannot prepare {}: {error}", kind.name()))
}

fn start(
    name: &'static str,
    addresses: Vec<SocketAddr>,
    work: PathBuf,
    mut command: Command,
) -> Result<Side, String> {
    let log =
        File::create(work.join(LOG)).map_err(|error| format!("cannot make a log: {error}"))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
    let process = command
        .spawn()
        .map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
    Ok(Side { name, addresses, work, process })
}

fn wait_until_it_answers(side: &mut Side) -> Result<(), String> {
    let started = Instant::now();
    while started.elapsed() < START_LIMIT {
        if let Ok(Some(status)) = side.process.try_wait() {
            return Err(format!(
                "the server on {} ended: {status}; {}",
                side.name,
                last_words(side)
            ));
        }
        let step = Duration::from_millis(200);
        if side.addresses.iter().all(|address| TcpStream::connect_timeout(address, step).is_ok()) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let words = last_words(side);
    Err(format!("the server on {} did not answer within {START_LIMIT:?}; {words}", side.name))
}

/// The last line that the server wrote on its standard error.
fn last_words(side: &Side) -> String {
    let log = fs::read_to_string(side.work.join(LOG)).unwrap_or_default();
    match log.lines().last() {
        Some(line) => format!("its last words: {line}"),
        None => "it said nothing".to_string(),
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The group, so that a master's workers and Haypile's children end too.
        let _ = sys::kill_group(self.process.id(), SIGTERM);
        let asked = Instant::now();
        while asked.elapsed() < END_LIMIT {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = sys::kill_group(self.process.id(), SIGKILL);
        drop(self.process.wait());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.sides.clear();
        drop(fs::remove_dir_all(&self.folder));
    }
}
