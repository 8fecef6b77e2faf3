//! Starting a service: opens the link, makes the sockets in the control directory, and tells what
//! was taken. Called by the binary; read `event_loop` for what runs then.

use std::fs::Permissions;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use haypile_engine::Cidr;
use haypile_link::LinkError;
use haypile_link::address_plan::{self, Reservation};
use haypile_link::capture::Capture;
use haypile_link::fault::Fault;
use haypile_link::packet::{Attachment, Packet, PacketConfig};
use haypile_link::port::{Port, local_mac};
use haypile_link::tap::{Offload, Tap, TapConfig, TapQueues};
use haypile_link::wire::{Wire, WireConfig};
use haypile_shm::sys::{self, Errno, Fd};

use crate::attach::ATTACH_SOCKET;
use crate::config::{Config, LinkChoice};
use crate::control::ControlSocket;
use crate::error::Error;
use crate::event_loop::{Owner, Service, now};
use crate::report::Facts;
use crate::server::Server;

/// A service that is ready to run.
pub struct Started {
    service: Service<Box<dyn Port>>,
    lines: Vec<String>,
    attach_path: PathBuf,
    /// Keeps other services from the same addresses.
    _reservation: Option<Reservation>,
}

/// Connections of applications that may wait to be taken.
const ATTACH_BACKLOG: i32 = 1024;

/// Opens everything that `config` names. `owner`: the process that a private service is for.
///
/// # Errors
/// What could not be had, why, and what to do.
pub fn start(mut config: Config, owner: Option<i32>) -> Result<Started, Error> {
    config.plan.check_runnable()?;
    let owner = owner.map(Owner::new).transpose()?;
    let reservation = choose_addresses(&mut config)?;
    let signals = catch_signals()?;
    raise_descriptor_limit();
    let tap = open_link(&config)?;
    let mode = tap.describe();
    let server = Server::new(&config, Capture::new(tap), now())?;
    let attach_path = config.control_dir.join(ATTACH_SOCKET);
    let attach = bind_attach(&attach_path)?;
    let control = ControlSocket::bind(&config.control_dir)?;
    let lines = describe(&config, &mode, &attach_path, control.path());
    let facts = Facts {
        plan: config.plan.to_string(),
        addresses: config.addresses.iter().map(ToString::to_string).collect(),
        host_addresses: config.host_addresses.iter().map(ToString::to_string).collect(),
        name_servers: config.name_servers.clone(),
    };
    let service = Service::new(server, attach, control, facts, signals, owner)?;
    Ok(Started { service, lines, attach_path, _reservation: reservation })
}

impl Started {
    /// What was taken: one line each, for the start of the output.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The service's addresses, without prefixes.
    pub fn addresses(&self) -> Vec<String> {
        let addresses = self.service.facts.addresses.iter();
        addresses.map(|text| text.split('/').next().unwrap_or_default().to_string()).collect()
    }

    /// The link and its mode.
    pub fn link(&self) -> String {
        self.service.server.link.port().describe()
    }

    /// Calls `ended` once when `channel` is hung up, which only the end of the guardian does: the
    /// process that removes the files should the service be killed.
    ///
    /// # Errors
    /// When the kernel takes no more descriptors to wait on.
    pub fn watch_guardian(
        &mut self,
        channel: UnixStream,
        ended: Box<dyn FnOnce()>,
    ) -> Result<(), Error> {
        self.service.watch_guardian(channel, ended).map_err(|errno| {
            Error::new("wait for events", std::io::Error::from(errno), "raise the limits")
        })
    }

    /// Runs it until it is told to end; its files are gone then.
    ///
    /// # Errors
    /// When the link is of no more use.
    pub fn run(mut self) -> Result<(), Error> {
        self.service.run()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.attach_path));
    }
}

/// Without addresses in the configuration, a free network of the range kept for benchmarks.
fn choose_addresses(config: &mut Config) -> Result<Option<Reservation>, Error> {
    if !config.addresses.is_empty() || config.automatic.any() {
        return Ok(None);
    }
    let reservation = address_plan::plan().map_err(link_error)?;
    let cidr = |(addr, prefix_len): (IpAddr, u8)| Cidr { addr, prefix_len };
    config.addresses = reservation.plan().service().into_iter().map(cidr).collect();
    if config.host_addresses.is_empty() && config.link.has_host_end() {
        config.host_addresses = reservation.plan().host().into_iter().map(cidr).collect();
    }
    Ok(Some(reservation))
}

fn open_link(config: &Config) -> Result<Box<dyn Port>, Error> {
    let mut seed: Vec<String> =
        config.addresses.iter().map(|address| address.addr.to_string()).collect();
    if config.automatic.any() {
        // Servers tell clients apart by this address: one for each service of each machine.
        let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        seed.push(format!("{} {}", config.control_dir.display(), machine.trim()));
    }
    let mac = local_mac(&seed.join(" "));
    let port: Box<dyn Port> = match &config.link {
        LinkChoice::Tap(name) => open_tap(config, name.clone(), mac)?,
        LinkChoice::Packet(interface) => {
            let packet = packet_config(config, interface.clone(), mac);
            Box::new(Packet::open(&packet).map_err(link_error)?)
        }
        LinkChoice::Alone => {
            let superframes = config.offload == Offload::Segmentation;
            let wire = WireConfig { mtu: config.mtu, mac, superframes };
            Box::new(Wire::alone(&wire).map_err(link_error)?)
        }
        LinkChoice::Wire { directory, name } => {
            let superframes = config.offload == Offload::Segmentation;
            let wire = WireConfig { mtu: config.mtu, mac, superframes };
            Box::new(Wire::open(directory, name, &wire).map_err(link_error)?)
        }
    };
    match &config.fault {
        None => Ok(port),
        Some((spec, seed)) => Ok(Box::new(Fault::new(port, spec, *seed).map_err(link_error)?)),
    }
}

fn packet_config(config: &Config, interface: Option<String>, mac: [u8; 6]) -> PacketConfig {
    let addresses = &config.host_addresses;
    let attachment = match interface {
        Some(name) => Attachment::Interface(name),
        None => {
            Attachment::Pair(addresses.iter().map(|cidr| (cidr.addr, cidr.prefix_len)).collect())
        }
    };
    PacketConfig { attachment, mtu: config.mtu, mac, offload: config.offload }
}

fn open_tap(config: &Config, name: Option<String>, mac: [u8; 6]) -> Result<Box<dyn Port>, Error> {
    let mut tap = TapConfig::new(config.mtu, mac);
    tap.name = name;
    tap.host_addresses =
        config.host_addresses.iter().map(|cidr| (cidr.addr, cidr.prefix_len)).collect();
    tap.offload = config.offload;
    if config.queues == 1 {
        return Ok(Box::new(Tap::open(&tap).map_err(link_error)?));
    }
    let queues = Tap::open_queues(&tap, config.queues).and_then(TapQueues::new);
    Ok(Box::new(queues.map_err(link_error)?))
}

/// The error of a link, in the service's form.
pub fn link_error(error: LinkError) -> Error {
    let what = format!("cannot {}", error.attempt());
    let whole = error.to_string();
    // The error prints as "WHAT: WHY; ADVICE"; the parts are wanted here.
    let why = whole.strip_prefix(&what).unwrap_or(&whole).trim_start_matches([':', ' ']);
    let why = why.strip_suffix(error.advice()).unwrap_or(why).trim_end_matches([';', ' ']);
    Error::new(what, why, error.advice())
}

/// The socket that applications attach to. Everyone may connect: who may reach a service is decided
/// by who may pass its directory, and programs change their user after they were started.
fn bind_attach(path: &Path) -> Result<Fd, Error> {
    let fail = |why: String| {
        Error::new(
            format_args!("attach socket {}", path.display()),
            why,
            "choose another, shorter directory with --control-dir",
        )
    };
    let bytes = path.as_os_str().as_bytes();
    let fd = sys::unix_listen_seqpacket(bytes, ATTACH_BACKLOG)
        .map_err(|errno| fail(std::io::Error::from(errno).to_string()))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o666))
        .map_err(|error| fail(error.to_string()))?;
    Ok(fd)
}

/// SIGTERM and SIGINT become bytes on a socket; SIGHUP ends a service like the others.
///
/// # Errors
/// When the process may open no more descriptors.
pub fn catch_signals() -> Result<UnixStream, Error> {
    let fail = |error: std::io::Error| Error::new("catch signals", error, "raise the limits");
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    ours.set_nonblocking(true).map_err(fail)?;
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let end = theirs.try_clone().map_err(fail)?;
        signal_hook::low_level::pipe::register(signal, end).map_err(fail)?;
    }
    Ok(ours)
}

/// Three descriptors for each process; the soft limit is often 1024.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = sys::rlimit_nofile()
        && soft < hard
    {
        // Fewer processes can attach if this fails; they are told so then.
        let _: Result<(), Errno> = sys::set_rlimit_nofile(hard, hard);
    }
}

fn queue_count(config: &Config) -> String {
    match (&config.link, config.queues) {
        (LinkChoice::Tap(_), queues) if queues > 1 => format!("{queues} queues"),
        _ => "1 queue".to_owned(),
    }
}

/// What is configured, and what is still to be found.
fn addresses_line(config: &Config, join: &dyn Fn(&[Cidr]) -> String) -> String {
    let fixed = (!config.addresses.is_empty()).then(|| join(&config.addresses));
    let dhcp = config.automatic.dhcp.then(|| "IPv4 from DHCP".to_string());
    let slaac = config.automatic.slaac.then(|| "IPv6 from router advertisements".to_string());
    let all: Vec<String> = [fixed, dhcp, slaac].into_iter().flatten().collect();
    if all.is_empty() { "none".to_string() } else { all.join(", ") }
}

fn describe(config: &Config, mode: &str, attach: &Path, control: &Path) -> Vec<String> {
    let join = |list: &[Cidr]| {
        let texts: Vec<String> = list.iter().map(ToString::to_string).collect();
        if texts.is_empty() { "none".to_string() } else { texts.join(", ") }
    };
    let routes: Vec<String> = config
        .routes
        .iter()
        .map(|route| match route.gateway {
            Some(gateway) => format!("{} via {gateway}", route.destination),
            None => format!("{} on link", route.destination),
        })
        .collect();
    let mut lines = vec![
        format!("plan      {}: 1 server, {}", config.plan, queue_count(config)),
        format!("link      {mode}"),
        format!("addresses {}", addresses_line(config, &join)),
        format!("host end  {}", join(&config.host_addresses)),
        format!("control   {}", control.display()),
        format!("attach    {}", attach.display()),
    ];
    if !routes.is_empty() {
        lines.push(format!("routes    {}", routes.join(", ")));
    }
    lines
}
