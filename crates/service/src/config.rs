//! Configuration: a strict TOML file and command-line flags become one typed, checked `Config`.
//!
//! Owns the names, defaults and checks of every setting. Called by the binary before anything is
//! opened; the rest of the service gets a `Config` by value and reads no file and no environment.
//! Unknown keys are refused, with the line they stand on. Read `plan` for the plan notation, and
//! `config/text.rs` for how a configuration travels to the servers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use haypile_engine::control::balancer::Balance;
use haypile_engine::steering::Rule;
use haypile_engine::{Cidr, Route};
use haypile_link::fault::FaultSpec;
use haypile_link::steering::QUEUES_MAX;
use haypile_link::tap::Offload;
use haypile_link::wire;
use serde::{Deserialize, Serialize};

pub use self::balance::BalanceChange;
use self::balance::FileBalance;
use crate::error::Error;
use crate::link_server::MTU_MAX;
use crate::plan::Plan;

/// Everything the service needs to know before it starts. The supervisor hands it to its servers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The link to open.
    pub link: LinkChoice,
    /// The service's own addresses with the prefix of their network.
    #[serde(with = "text::list")]
    pub addresses: Vec<Cidr>,
    /// Addresses that it finds by itself.
    pub automatic: Automatic,
    /// Name servers to ask before those that were learned.
    pub name_servers: Vec<IpAddr>,
    /// Addresses that the kernel's end of a TAP link gets, so that the host reaches the service.
    /// Unless they are given, one other address of each network of `addresses`.
    #[serde(with = "text::list")]
    pub host_addresses: Vec<Cidr>,
    /// Routes beside the networks of `addresses`, gateways included.
    #[serde(with = "text::routes")]
    pub routes: Vec<Route>,
    /// IP MTU in bytes, [`MTU_MIN`]..=`link_server::MTU_MAX`.
    pub mtu: u16,
    /// What the link and its peer leave to each other.
    #[serde(with = "text::offload")]
    pub offload: Offload,
    /// Queues of a TAP; one server polls them all.
    pub queues: u16,
    /// Cores on which the host does its half of the work for a TAP; none: inside our writes.
    pub host_cores: Vec<usize>,
    /// Which servers run which components.
    #[serde(with = "text::one")]
    pub plan: Plan,
    /// What decides which transport server a TCP connection is for.
    #[serde(with = "text::one")]
    pub steer: Rule,
    /// A bad path behind the link, and its seed.
    #[serde(with = "text::fault")]
    pub fault: Option<(FaultSpec, u64)>,
    /// How new connections are shared among applications.
    #[serde(with = "text::balance")]
    pub balance: Balance,
    /// Bounds on memory, sockets and time.
    pub limits: ServiceLimits,
    /// Where the sockets for applications and for commands are.
    pub control_dir: PathBuf,
    /// How servers are confined.
    pub confine: Confine,
}

/// How servers are confined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confine {
    /// The user that servers become where the service is started by root.
    pub user: String,
    /// The processors of the servers, in order; empty: of those allowed, one for each.
    pub cores: Vec<u32>,
    /// Whether system calls that a server does not need are forbidden it.
    pub filter: bool,
}

/// How a service finds addresses by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Automatic {
    /// `--addr dhcp`: IPv4 from a DHCP server.
    pub dhcp: bool,
    /// `--addr auto`: IPv6 from router advertisements.
    pub slaac: bool,
}

impl Automatic {
    /// Whether there is anything to wait for.
    pub fn any(self) -> bool {
        self.dhcp || self.slaac
    }
}

/// A link as named by `--link`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkChoice {
    /// `tap:NAME`: a TAP interface that the service makes; `None` lets the kernel choose a name.
    Tap(Option<String>),
    /// `packet:IFACE`: a packet socket on an interface that is there; `None`, for `packet:`: on our
    /// end of a veth pair that the service makes.
    Packet(Option<String>),
    /// `wire:`: no other end, so that the service's programs reach each other alone.
    Alone,
    /// `wire:NAME`: shared memory between two services.
    Wire {
        /// Where wires have their sockets.
        directory: PathBuf,
        /// Its name.
        name: String,
    },
}

impl LinkChoice {
    /// Whether the kernel of this host has the other end, with addresses of its own.
    pub fn has_host_end(&self) -> bool {
        matches!(self, LinkChoice::Tap(_) | LinkChoice::Packet(None))
    }
}

/// Bounds of the service; everything an application can make grow is in here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceLimits {
    /// Attached processes in all.
    pub processes: u32,
    /// Sockets of one trust domain.
    pub sockets_per_domain: u32,
    /// Stream memory of one trust domain, in bytes; a multiple of the arena size.
    pub memory_per_domain: u64,
    /// Bytes of connections that no application has been offered yet, in all.
    pub unclaimed_bytes: u64,
    /// How long an acceptor may at most leave an offer unclaimed while another acceptor has room; as a
    /// rule its own claims say how long.
    pub claim_timeout_us: u64,
    /// How long unsent data of a closed socket is kept for its peer.
    pub orphan_timeout_us: u64,
    /// How long connections may take to close when the service is shut down.
    pub shutdown_timeout_us: u64,
    /// Events that the trace keeps; 0 = it is off.
    pub trace_records: u32,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        ServiceLimits {
            processes: 4096,
            sockets_per_domain: 1 << 20,
            memory_per_domain: 4 << 30,
            unclaimed_bytes: 256 << 20,
            claim_timeout_us: 200_000,
            orphan_timeout_us: 60_000_000,
            shutdown_timeout_us: 2_000_000,
            trace_records: 1 << 14,
        }
    }
}

/// What the command line gives; every field that is set wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--link`.
    pub link: Option<String>,
    /// `--addr`, repeatable.
    pub addresses: Vec<String>,
    /// `--host-addr`, repeatable.
    pub host_addresses: Vec<String>,
    /// `--gateway`, one for each family.
    pub gateways: Vec<String>,
    /// `--nameserver`, repeatable.
    pub name_servers: Vec<String>,
    /// `--mtu`.
    pub mtu: Option<u16>,
    /// `--offload`.
    pub offload: Option<String>,
    /// `--queues`.
    pub queues: Option<u16>,
    /// `--host-core`, repeatable.
    pub host_cores: Vec<usize>,
    /// `--plan`.
    pub plan: Option<String>,
    /// `--steer`.
    pub steer: Option<String>,
    /// `--balance`.
    pub scheme: Option<String>,
    /// `--tariff`.
    pub tariff: Option<f64>,
    /// `--estimator`.
    pub estimator: Option<String>,
    /// `--fault`.
    pub fault: Option<String>,
    /// `--fault-seed`.
    pub fault_seed: Option<u64>,
    /// `--control-dir`.
    pub control_dir: Option<PathBuf>,
    /// Where wires have their sockets; no flag, but the same base as that of control directories.
    pub wires: Option<PathBuf>,
    /// `--user`.
    pub user: Option<String>,
    /// `--core`, repeatable.
    pub cores: Vec<u32>,
    /// `--no-sandbox`.
    pub no_sandbox: bool,
}

/// The file, as written. Kept apart from `Config` so that checking happens in one place.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    link: Option<String>,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    host_addresses: Vec<String>,
    #[serde(default)]
    gateways: Vec<String>,
    #[serde(default)]
    nameservers: Vec<String>,
    mtu: Option<u16>,
    offload: Option<String>,
    queues: Option<u16>,
    #[serde(default)]
    host_cores: Vec<usize>,
    plan: Option<String>,
    steer: Option<String>,
    fault: Option<String>,
    fault_seed: Option<u64>,
    control_dir: Option<PathBuf>,
    user: Option<String>,
    #[serde(default)]
    cores: Vec<u32>,
    sandbox: Option<bool>,
    #[serde(default)]
    route: Vec<FileRoute>,
    #[serde(default)]
    balance: FileBalance,
    #[serde(default)]
    limits: FileLimits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRoute {
    destination: String,
    gateway: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    processes: Option<u32>,
    sockets_per_domain: Option<u32>,
    memory_per_domain_mib: Option<u64>,
    unclaimed_mib: Option<u64>,
    claim_timeout_ms: Option<u64>,
    orphan_timeout_s: Option<u64>,
    shutdown_timeout_ms: Option<u64>,
    trace_records: Option<u64>,
}

/// The user that servers become unless told otherwise.
pub const USER_DEFAULT: &str = "nobody";
/// Default IP MTU of a TAP link.
pub const MTU_DEFAULT: u16 = 1500;
/// The smallest MTU that IPv6 allows (RFC 8200 section 5).
pub const MTU_MIN: u16 = 1280;
const INTERFACE_NAME_MAX: usize = 15;
/// The kernel knows no more cores than this.
const CORES_MAX: usize = 8192;
const MEBIBYTE: u64 = 1 << 20;

impl Config {
    /// Reads `file` where one is given, lays `flags` over it, fills in defaults and checks all.
    ///
    /// # Errors
    /// One line that names the file and line or the flag, what is wrong, and what is right.
    pub fn load(file: Option<&Path>, flags: &Flags, control_dir: &Path) -> Result<Config, Error> {
        let from_file = match file {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        from_file.into_config(flags, control_dir)
    }

    /// The same from the text of a file, for tests and for `haypile plan`.
    ///
    /// # Errors
    /// As `load`.
    pub fn from_text(text: &str, flags: &Flags, control_dir: &Path) -> Result<Config, Error> {
        parse_text("configuration", text)?.into_config(flags, control_dir)
    }
}

fn read_file(path: &Path) -> Result<File, Error> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::new(format_args!("read {name}"), error, "check the path given with --config")
    })?;
    parse_text(&name, &text)
}

fn parse_text(name: &str, text: &str) -> Result<File, Error> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = 1 + text.as_bytes().iter().take(start).filter(|byte| **byte == b'\n').count();
        Error::usage(format_args!("{name} line {line}"), error.message(), "correct the file")
    })
}

impl File {
    fn into_config(self, flags: &Flags, control_dir: &Path) -> Result<Config, Error> {
        let addresses = choose(&flags.addresses, &self.addresses);
        let host_addresses = choose(&flags.host_addresses, &self.host_addresses);
        let host_addresses = parse_cidrs("host address", host_addresses)?;
        let gateways = choose(&flags.gateways, &self.gateways);
        let name_servers = choose(&flags.name_servers, &self.nameservers);
        let name_servers = name_servers
            .iter()
            .map(|text| parse_ip("nameserver", text))
            .collect::<Result<_, _>>()?;
        let (automatic, addresses) = parse_addresses(addresses)?;
        let mut routes = Vec::new();
        for route in &self.route {
            routes.push(parse_route(route)?);
        }
        for gateway in gateways {
            routes.push(default_route(gateway)?);
        }
        check_own(&addresses, &host_addresses)?;
        if !automatic.any() {
            check_gateways(&routes, &addresses)?;
        }
        let plan = match flags.plan.as_ref().or(self.plan.as_ref()) {
            Some(text) => text.parse()?,
            None => Plan::combined(),
        };
        let fault = flags.fault.as_deref().or(self.fault.as_deref());
        let seed = flags.fault_seed.or(self.fault_seed).unwrap_or(1);
        let link = flags.link.as_deref().or(self.link.as_deref()).unwrap_or("tap:");
        let link = parse_link(link, flags.wires.as_deref())?;
        let host_addresses = match host_addresses.is_empty() {
            true if link.has_host_end() => neighbours_of(&addresses),
            true => {
                check_addresses(&link, &addresses, automatic)?;
                Vec::new()
            }
            false if link.has_host_end() || matches!(link, LinkChoice::Wire { .. }) => {
                host_addresses
            }
            false => {
                return Err(Error::usage(
                    "host address",
                    "the link has no end of this host that could get one",
                    "leave --host-addr out",
                ));
            }
        };
        Ok(Config {
            link,
            addresses,
            automatic,
            name_servers,
            host_addresses,
            routes,
            mtu: check_mtu(flags.mtu.or(self.mtu).unwrap_or(MTU_DEFAULT))?,
            offload: check_offload(flags.offload.as_deref().or(self.offload.as_deref()))?,
            queues: check_queues(flags.queues.or(self.queues).unwrap_or(1))?,
            host_cores: check_host_cores(either(&flags.host_cores, self.host_cores))?,
            plan,
            steer: check_steer(flags.steer.as_deref().or(self.steer.as_deref()))?,
            fault: fault.map(parse_fault).transpose()?.map(|spec| (spec, seed)),
            balance: self.balance.into_balance(flags)?,
            limits: self.limits.into_limits()?,
            control_dir: choose_directory(flags, self.control_dir, control_dir),
            confine: choose_confinement(flags, self.user, self.cores, self.sandbox),
        })
    }
}

/// The control directory: by flags, file and default.
fn choose_directory(flags: &Flags, file: Option<PathBuf>, default: &Path) -> PathBuf {
    flags.control_dir.clone().or(file).unwrap_or_else(|| default.to_path_buf())
}

/// How servers are confined: by flags, file and default.
fn choose_confinement(
    flags: &Flags,
    user: Option<String>,
    cores: Vec<u32>,
    sandbox: Option<bool>,
) -> Confine {
    Confine {
        user: flags.user.clone().or(user).unwrap_or_else(|| USER_DEFAULT.into()),
        cores: if flags.cores.is_empty() { cores } else { flags.cores.clone() },
        filter: !flags.no_sandbox && sandbox.unwrap_or(true),
    }
}

impl FileLimits {
    fn into_limits(self) -> Result<ServiceLimits, Error> {
        let default = ServiceLimits::default();
        let mib = |bytes: u64| bytes / MEBIBYTE;
        Ok(ServiceLimits {
            processes: within(
                "processes",
                self.processes.map(u64::from),
                default.processes.into(),
                1,
                1 << 16,
            )? as u32,
            sockets_per_domain: within(
                "sockets_per_domain",
                self.sockets_per_domain.map(u64::from),
                default.sockets_per_domain.into(),
                16,
                1 << 22,
            )? as u32,
            memory_per_domain: within(
                "memory_per_domain_mib",
                self.memory_per_domain_mib,
                mib(default.memory_per_domain),
                64,
                1 << 18,
            )? * MEBIBYTE,
            unclaimed_bytes: within(
                "unclaimed_mib",
                self.unclaimed_mib,
                mib(default.unclaimed_bytes),
                1,
                1 << 18,
            )? * MEBIBYTE,
            claim_timeout_us: within(
                "claim_timeout_ms",
                self.claim_timeout_ms,
                default.claim_timeout_us / 1000,
                1,
                60_000,
            )? * 1000,
            orphan_timeout_us: within(
                "orphan_timeout_s",
                self.orphan_timeout_s,
                default.orphan_timeout_us / 1_000_000,
                1,
                3600,
            )? * 1_000_000,
            shutdown_timeout_us: within(
                "shutdown_timeout_ms",
                self.shutdown_timeout_ms,
                default.shutdown_timeout_us / 1000,
                0,
                60_000,
            )? * 1000,
            trace_records: within(
                "trace_records",
                self.trace_records,
                default.trace_records.into(),
                0,
                1 << 22,
            )? as u32,
        })
    }
}

/// The value of a limit, or its default.
fn within(name: &str, value: Option<u64>, default: u64, low: u64, high: u64) -> Result<u64, Error> {
    let value = value.unwrap_or(default);
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(Error::usage(
        format_args!("limits.{name} = {value}"),
        "out of range",
        format_args!("choose {low} to {high}"),
    ))
}

/// A list on the command line replaces the file's list as a whole.
fn choose<'a>(flags: &'a [String], file: &'a [String]) -> &'a [String] {
    if flags.is_empty() { file } else { flags }
}

/// A link by its name on the command line; `wires`: where wires have their sockets.
///
/// # Errors
/// What is wrong with the name, and what is right.
pub fn parse_link(text: &str, wires: Option<&Path>) -> Result<LinkChoice, Error> {
    let fail =
        |why: String, remedy: &str| Err(Error::usage(format!("link \"{text}\""), why, remedy));
    let Some((kind, name)) = text.split_once(':') else {
        return fail("has no kind".into(), LINK_KINDS);
    };
    let legal = |c: char| c.is_ascii_graphic() && c != '/' && c != ':' && c != '%';
    let is_interface =
        name.len() <= INTERFACE_NAME_MAX && name.chars().all(legal) && name != "." && name != "..";
    match kind {
        "tap" | "packet" if !is_interface => {
            fail("not a name for an interface".into(), "use up to 15 letters, digits and dashes")
        }
        "tap" => Ok(LinkChoice::Tap((!name.is_empty()).then(|| name.to_string()))),
        "packet" => Ok(LinkChoice::Packet((!name.is_empty()).then(|| name.to_string()))),
        "wire" if name.is_empty() => Ok(LinkChoice::Alone),
        "wire" if wire::check_name(name).is_err() => fail(
            "not a name for a wire".into(),
            "use up to 32 letters, digits, dashes and underscores",
        ),
        "wire" => match wires.map(Path::to_path_buf) {
            Some(directory) => Ok(LinkChoice::Wire { directory, name: name.to_string() }),
            None => fail("no directory to meet in".into(), "set XDG_RUNTIME_DIR, or be root"),
        },
        _ => fail(format!("links of kind {kind} are not known here"), LINK_KINDS),
    }
}

/// The link that a configuration file names, if it names one; `wires` as for [`parse_link`].
///
/// # Errors
/// When the file cannot be read or understood, or the link's name is wrong.
pub fn link_in_file(file: &Path, wires: Option<&Path>) -> Result<Option<LinkChoice>, Error> {
    read_file(file)?.link.map(|link| parse_link(&link, wires)).transpose()
}

/// What a link may be.
const LINK_KINDS: &str = "write tap:NAME, tap:, packet:INTERFACE, packet:, wire:NAME or wire:";

/// The faults of a path.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_fault(text: &str) -> Result<FaultSpec, Error> {
    text.parse().map_err(|why: String| {
        Error::usage(format_args!("fault \"{text}\""), why, "see haypile help serve")
    })
}

/// Where others are at the link's other end, nobody here can choose free addresses among theirs.
fn check_addresses(
    link: &LinkChoice,
    addresses: &[Cidr],
    automatic: Automatic,
) -> Result<(), Error> {
    let what = match link {
        LinkChoice::Wire { .. } => "a service on a wire",
        LinkChoice::Packet(Some(_)) => "a service on an interface",
        _ => return Ok(()),
    };
    match addresses.is_empty() && !automatic.any() {
        false => Ok(()),
        true => Err(Error::usage(
            what,
            "has no address",
            "give each end one of the same network with --addr, like 198.18.0.1/24 and .2",
        )),
    }
}

/// Addresses with their prefixes; `what` names them in errors.
///
/// # Errors
/// Which one is wrong, and how to write it.
pub fn parse_cidrs(what: &str, texts: &[String]) -> Result<Vec<Cidr>, Error> {
    texts.iter().map(|text| parse_cidr(what, text)).collect()
}

fn parse_cidr(what: &str, text: &str) -> Result<Cidr, Error> {
    text.parse::<Cidr>().map_err(|_| {
        Error::usage(
            format_args!("{what} \"{text}\""),
            "not an address with a prefix length",
            "write it like 198.18.0.1/24 or 2001:2::1/64",
        )
    })
}

/// Addresses, and the words that stand for those to be found.
fn parse_addresses(texts: &[String]) -> Result<(Automatic, Vec<Cidr>), Error> {
    let mut automatic = Automatic::default();
    let mut addresses = Vec::new();
    for text in texts {
        match text.as_str() {
            "dhcp" => automatic.dhcp = true,
            "auto" => automatic.slaac = true,
            _ => addresses.push(parse_cidr("address", text)?),
        }
    }
    Ok((automatic, addresses))
}

fn parse_gateway(text: &str) -> Result<IpAddr, Error> {
    parse_ip("gateway", text)
}

fn parse_ip(what: &str, text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| {
        Error::usage(
            format_args!("{what} \"{text}\""),
            "not an address",
            "write it like 198.18.0.254",
        )
    })
}

fn parse_route(route: &FileRoute) -> Result<Route, Error> {
    let destination = parse_cidr("route destination", &route.destination)?;
    let gateway = route.gateway.as_deref().map(parse_gateway).transpose()?;
    if gateway.is_some_and(|gateway| gateway.is_ipv4() != destination.addr.is_ipv4()) {
        return Err(Error::usage(
            format_args!("route to {}", route.destination),
            "destination and gateway are of different families",
            "give a gateway of the destination's family",
        ));
    }
    Ok(Route { destination, gateway })
}

fn default_route(gateway: &str) -> Result<Route, Error> {
    let gateway = parse_gateway(gateway)?;
    let everything = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    Ok(Route { destination: parse_cidr("route", everything)?, gateway: Some(gateway) })
}

/// The service's addresses are its own, and such as a host on a link can have.
fn check_own(addresses: &[Cidr], host_addresses: &[Cidr]) -> Result<(), Error> {
    for (at, own) in addresses.iter().enumerate() {
        let why = if own.addr.is_loopback() {
            "loopback addresses stay the kernel's"
        } else if !is_of_a_host(own.addr) {
            "not an address of one host"
        } else if addresses[..at].iter().any(|before| before.addr == own.addr) {
            "given twice"
        } else if host_addresses.iter().any(|host| host.addr == own.addr) {
            "is to be the service's and the host's at the same time"
        } else {
            continue;
        };
        let remedy = "choose another one, like 198.18.0.1/24 or 2001:2::1/64";
        return Err(Error::usage(format_args!("address {own}"), why, remedy));
    }
    Ok(())
}

/// Not a group, and not what stands for "this host" or "all hosts" (RFC 6890). Addresses of 240.0.0.0/4 are a host's
/// with Linux.
fn is_of_a_host(addr: IpAddr) -> bool {
    let no_network = match addr {
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unspecified(),
    };
    !no_network && !addr.is_multicast() && !addr.is_loopback()
}

/// A gateway has to be a neighbour: inside the network of one of the service's addresses. An address that is
/// alone in its network says nothing of its neighbours.
fn check_gateways(routes: &[Route], addresses: &[Cidr]) -> Result<(), Error> {
    for gateway in routes.iter().filter_map(|route| route.gateway) {
        let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let alone = |own: &Cidr| {
            let bits = if own.addr.is_ipv4() { 32 } else { 128 };
            own.prefix_len == bits && own.addr.is_ipv4() == gateway.is_ipv4()
        };
        let may_be = |own: &Cidr| own.contains(gateway) || alone(own);
        if !link_local && !addresses.iter().any(may_be) {
            return Err(Error::usage(
                format_args!("gateway {gateway}"),
                "not in the network of any address of the service",
                "give an address whose prefix covers the gateway",
            ));
        }
    }
    Ok(())
}

/// One host address of each network that the service has addresses in.
fn neighbours_of(addresses: &[Cidr]) -> Vec<Cidr> {
    let mut neighbours: Vec<Cidr> = Vec::new();
    for neighbour in addresses.iter().filter_map(|own| neighbour_of(own, addresses)) {
        if neighbours.iter().all(|before| before.addr != neighbour.addr) {
            neighbours.push(neighbour);
        }
    }
    neighbours
}

/// Another host address of the network of `own`: its first one that is not the service's, or the other
/// one of a network of two (RFC 3021, RFC 6164). Where a network begins with what is no host's, as one of all
/// addresses does, it is one of the network of 256 that `own` is in.
fn neighbour_of(own: &Cidr, taken: &[Cidr]) -> Option<Cidr> {
    let near = |addr: IpAddr| Cidr { addr, prefix_len: if addr.is_ipv4() { 24 } else { 64 } };
    let neighbour = host_beside(own, taken);
    match neighbour {
        Some(host) if !is_of_a_host(host.addr) || own.prefix_len == 0 => {
            host_beside(&near(own.addr), taken)
        }
        other => other,
    }
}

fn host_beside(own: &Cidr, taken: &[Cidr]) -> Option<Cidr> {
    let two = match own.addr {
        IpAddr::V4(v4) if own.prefix_len == 31 => Some(Ipv4Addr::from(u32::from(v4) ^ 1).into()),
        IpAddr::V6(v6) if own.prefix_len == 127 => Some(Ipv6Addr::from(u128::from(v6) ^ 1).into()),
        _ => None,
    };
    let other = two.map(|addr| Cidr { addr, prefix_len: own.prefix_len });
    let candidates = (1u8..=3).filter_map(|host| network_plus(own, host)).chain(other);
    let free = |candidate: &Cidr| taken.iter().all(|address| address.addr != candidate.addr);
    candidates.into_iter().find(|candidate| free(candidate) && own.contains(candidate.addr))
}

/// The network's address plus `host`; `None` where networks have no room for another host.
fn network_plus(own: &Cidr, host: u8) -> Option<Cidr> {
    let addr = match own.addr {
        IpAddr::V4(v4) if own.prefix_len <= 30 => {
            let mask = u32::MAX.checked_shl(u32::from(32 - own.prefix_len)).unwrap_or(0);
            Ipv4Addr::from((u32::from(v4) & mask) + u32::from(host)).into()
        }
        IpAddr::V6(v6) if own.prefix_len <= 126 => {
            let mask = u128::MAX.checked_shl(u32::from(128 - own.prefix_len)).unwrap_or(0);
            Ipv6Addr::from((u128::from(v6) & mask) + u128::from(host)).into()
        }
        _ => return None,
    };
    Some(Cidr { addr, prefix_len: own.prefix_len })
}

/// What the flags say, or else the file.
fn either<T: Clone>(flags: &[T], file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags.to_vec() }
}

fn check_host_cores(cores: Vec<usize>) -> Result<Vec<usize>, Error> {
    match cores.iter().find(|core| **core >= CORES_MAX) {
        None => Ok(cores),
        Some(core) => {
            let why = "no machine has so many cores";
            Err(Error::usage(format_args!("host core {core}"), why, "choose from those of lscpu"))
        }
    }
}

fn check_queues(queues: u16) -> Result<u16, Error> {
    if (1..=QUEUES_MAX).contains(&queues) {
        return Ok(queues);
    }
    let why = "not a number of queues that a TAP can have";
    Err(Error::usage(format_args!("queues {queues}"), why, format!("choose 1 to {QUEUES_MAX}")))
}

fn check_steer(text: Option<&str>) -> Result<Rule, Error> {
    let Some(text) = text else { return Ok(Rule::default()) };
    let fail = |_| Error::usage(format_args!("steer {text}"), "unknown", "choose hash or low12");
    text.parse().map_err(fail)
}

fn check_offload(text: Option<&str>) -> Result<Offload, Error> {
    match text {
        None | Some("segmentation") => Ok(Offload::Segmentation),
        Some("checksum") => Ok(Offload::Checksum),
        Some("none") => Ok(Offload::None),
        Some(other) => Err(Error::usage(
            format_args!("offload {other}"),
            "unknown",
            "choose none, checksum or segmentation",
        )),
    }
}

/// Whether links can have this MTU, in bytes.
///
/// # Errors
/// What is possible.
pub fn check_mtu(mtu: u16) -> Result<u16, Error> {
    if (MTU_MIN..=MTU_MAX).contains(&mtu) {
        return Ok(mtu);
    }
    let why = if mtu < MTU_MIN { "smaller than IPv6 allows" } else { "larger than a frame" };
    let remedy = format!("choose {MTU_MIN} to {MTU_MAX}");
    Err(Error::usage(format_args!("mtu {mtu}"), why, remedy))
}

pub mod balance;
pub mod text;

#[cfg(test)]
mod tests;
