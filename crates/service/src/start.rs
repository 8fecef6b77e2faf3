//! Starting a service: makes the link and the sockets in the control directory, hands them to a
//! supervisor, and tells what was taken. Called by the binary; read `supervisor` for what runs then.

use std::ffi::OsString;
use std::fs::Permissions;
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use haypile_engine::Cidr;
use haypile_link::address_plan::{self, Reservation};
use haypile_shm::control::{DOOR_SOCKET, attach_path};
use haypile_shm::sys::{self, Errno, Fd};

use crate::attach::ATTACH_SOCKET;
use crate::config::{Config, LinkChoice};
use crate::control::{CONTROL_SOCKET, ControlSocket};
use crate::error::Error;
use crate::links::{self, link_error};
use crate::plan::{Component, ServerSpec};
use crate::sandbox::Confinement;
use crate::server::random;
use crate::supervisor::{End, Owner, Parts, Supervisor};

/// A service that is ready to run.
pub struct Started {
    supervisor: Supervisor,
    /// Keeps other services from the same addresses.
    _reservation: Option<Reservation>,
}

/// Connections of applications that may wait to be taken.
const ATTACH_BACKLOG: i32 = 1024;

/// Opens everything that `config` names, and starts the servers. `owner`: the process that a
/// private service is for.
///
/// # Errors
/// What could not be had, why, and what to do.
pub fn start(mut config: Config, owner: Option<i32>) -> Result<Started, Error> {
    config.plan.check_runnable()?;
    let owner = owner.map(Owner::new).transpose()?;
    let reservation = choose_addresses(&mut config)?;
    let signals = catch_signals()?;
    raise_descriptor_limit();
    share_link(&mut config)?;
    let secret = random().map_err(|errno| {
        let why = std::io::Error::from(errno);
        Error::new("draw the secret of the service", why, "look why there is no randomness")
    })?;
    let link = links::make(&config, &secret)?;
    let transports = config.plan.count(Component::Transport);
    let attach = (0..transports).map(|one| bind_attach(&attach_path_of(&config, one)));
    let attach = attach.collect::<Result<_, _>>()?;
    let door = bind_for_all(&door_path_of(&config), "door", sys::unix_bind_datagram)?;
    let control = ControlSocket::bind(&config.control_dir)?;
    let parts = Parts { config, link, attach, door, control, signals, owner, secret };
    let supervisor = Supervisor::start(parts)?;
    Ok(Started { supervisor, _reservation: reservation })
}

impl Started {
    /// What was taken: one line each, for the start of the output.
    pub fn lines(&self) -> Vec<String> {
        describe(&self.supervisor)
    }

    /// The service's addresses, without prefixes.
    pub fn addresses(&self) -> Vec<String> {
        self.supervisor.config().addresses.iter().map(|cidr| cidr.addr.to_string()).collect()
    }

    /// The link and its mode.
    pub fn link(&self) -> String {
        self.supervisor.link()
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
        self.supervisor.watch_guardian(channel, ended).map_err(|errno| {
            Error::new("wait for events", std::io::Error::from(errno), "raise the limits")
        })
    }

    /// Runs it until it is told to end; its files are gone then.
    pub fn run(mut self) -> End {
        self.supervisor.run()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let config = self.supervisor.config();
        for transport in 0..config.plan.count(Component::Transport) {
            drop(std::fs::remove_file(attach_path_of(config, transport)));
        }
        drop(std::fs::remove_file(door_path_of(config)));
    }
}

/// Where applications attach to a transport server.
pub(crate) fn attach_path_of(config: &Config, transport: u16) -> PathBuf {
    let first = config.control_dir.join(ATTACH_SOCKET);
    PathBuf::from(OsString::from_vec(attach_path(first.as_os_str().as_bytes(), transport)))
}

/// Where those come that no path leads to an attach socket.
fn door_path_of(config: &Config) -> PathBuf {
    config.control_dir.join(DOOR_SOCKET)
}

/// Each link server has queues of its own.
fn share_link(config: &mut Config) -> Result<(), Error> {
    config.plan.check_link(matches!(config.link, LinkChoice::Tap(_)))?;
    config.queues = config.queues.max(config.plan.count(Component::Link));
    Ok(())
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

/// The socket that applications attach to.
pub(crate) fn bind_attach(path: &Path) -> Result<Fd, Error> {
    let listen = |path: &[u8]| sys::unix_listen_seqpacket(path, ATTACH_BACKLOG);
    bind_for_all(path, "attach socket", listen)
}

/// A socket in the control directory that everyone may connect to: who may reach a service is decided
/// by who may pass its directory, and programs change their user after they were started.
fn bind_for_all(
    path: &Path,
    what: &str,
    bind: impl FnOnce(&[u8]) -> Result<Fd, Errno>,
) -> Result<Fd, Error> {
    let fail = |why: std::io::Error| {
        Error::new(
            format_args!("{what} {}", path.display()),
            why,
            "choose another, shorter directory with --control-dir",
        )
    };
    let fd = bind(path.as_os_str().as_bytes()).map_err(|errno| fail(errno.into()))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(fail)?;
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

fn server_line(spec: &ServerSpec, confinement: &Confinement) -> String {
    let core = confinement.core.map_or("any processor".into(), |core| format!("processor {core}"));
    format!(
        "{:<9} process {}, {core}, user {}, sandbox {}",
        format!("server {}", spec.number),
        confinement.pid,
        confinement.user,
        confinement.describe()
    )
}

fn describe(supervisor: &Supervisor) -> Vec<String> {
    let config = supervisor.config();
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
    let servers = supervisor.confinements();
    let plural = if servers.len() == 1 { "" } else { "s" };
    let mut lines = vec![
        format!(
            "plan      {}: {} server{plural}, {}",
            config.plan,
            servers.len(),
            queue_count(config)
        ),
        format!("link      {}", supervisor.link()),
        format!("addresses {}", addresses_line(config, &join)),
        format!("host end  {}", join(&config.host_addresses)),
        format!("control   {}", config.control_dir.join(CONTROL_SOCKET).display()),
        format!("attach    {}", config.control_dir.join(ATTACH_SOCKET).display()),
    ];
    lines.extend(servers.iter().map(|(spec, confinement)| server_line(spec, confinement)));
    if !routes.is_empty() {
        lines.push(format!("routes    {}", routes.join(", ")));
    }
    lines
}
