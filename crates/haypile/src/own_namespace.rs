//! Haypile without root: whether a private service needs a user and network namespace of its own,
//! making it, and which link it takes there. Called by `run` before it starts the service, and, as a
//! trial in a process of its own, by `doctor`. Read `docs/decisions/0009` for why the user stays who
//! it is, and `haypile_link::netns` for the calls.

use std::fs::{self, OpenOptions};
use std::process::{Command, ExitCode};

use haypile_link::capabilities::{self, Capability};
use haypile_link::netns;
use haypile_link::packet::{Attachment, Packet, PacketConfig};
use haypile_link::port::local_mac;
use haypile_link::tap::{Offload, Tap, TapConfig};
use haypile_service::config::LinkChoice;
use haypile_service::error::Error;
use haypile_service::links::link_error;
use serde::{Deserialize, Serialize};

use crate::{place, table};

/// The device of TAP interfaces.
const TAP_DEVICE: &str = "/dev/net/tun";
/// What a service in a namespace of its own needs there: interfaces and addresses, packet sockets,
/// and network namespaces (that of its end of a veth pair, and those its programs make).
const FOR_THE_SERVICE: [Capability; 3] =
    [Capability::NetAdmin, Capability::NetRaw, Capability::SysAdmin];
/// Settings of the new network namespace: it is its user's own, who may use every port there, and
/// send echo requests.
const PORT_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
const PING_GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";

/// What can be had in a user and network namespace of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Why there is no such namespace.
    pub namespace: Option<String>,
    /// Why there is no TAP in it.
    pub tap: Option<String>,
    /// Why there is no packet socket on a veth pair in it.
    pub packet: Option<String>,
}

/// Where a private service runs, and on what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The link to name to the service, where the user has named none.
    pub link: Option<&'static str>,
    /// For the start-up line: empty, or how it is and why not better.
    pub note: String,
    /// A namespace was made: the program must not keep its rights there.
    pub in_own_namespace: bool,
}

impl Settled {
    fn here() -> Settled {
        Settled { link: None, note: String::new(), in_own_namespace: false }
    }
}

/// Settles where a private service runs; `named`: the link that the user wants. Makes the namespace
/// if one is needed: the process must have one thread, which is in it afterwards.
///
/// # Errors
/// When the link that was named needs a namespace, and none can be had.
pub fn settle(named: Option<&LinkChoice>) -> Result<Settled, Error> {
    if named.is_some_and(|link| !link.has_host_end()) || may_make_interfaces(named) {
        return Ok(Settled::here());
    }
    match (enter(), named) {
        (Err(error), Some(_)) => Err(link_error(error)),
        (Err(error), None) => Ok(Settled {
            link: Some("wire:"),
            note: format!("the programs reach each other only, because it {error}"),
            in_own_namespace: false,
        }),
        (Ok(()), Some(_)) => Ok(Settled {
            link: None,
            note: "in a network namespace of its own".to_string(),
            in_own_namespace: true,
        }),
        (Ok(()), None) => Ok(best_link()),
    }
}

/// What `haypile run` would do here: the link, and how it is or why not better.
pub fn forecast(trial: &Trial) -> (&'static str, String) {
    match may_make_interfaces(None) {
        true => ("tap:", "right here, where this user may make interfaces".to_string()),
        false => forecast_in_namespace(trial),
    }
}

fn forecast_in_namespace(trial: &Trial) -> (&'static str, String) {
    let alone = "the programs reach each other only";
    match (&trial.namespace, &trial.tap, &trial.packet) {
        (Some(why), ..) => ("wire:", format!("{alone}: {why}")),
        (None, None, _) => ("tap:", "in a namespace of its own".to_string()),
        (None, Some(tap), None) => ("packet:", format!("in a namespace of its own: {tap}")),
        (None, Some(tap), Some(packet)) => {
            ("wire:", format!("in a namespace of its own, {alone}: {tap}; {packet}"))
        }
    }
}

/// Tries what can be had, in a process of its own.
///
/// # Errors
/// When that process cannot be started, or says nothing.
pub fn trial() -> Result<Trial, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(program)
        .arg("try-namespace")
        .env_remove("LD_PRELOAD")
        .output()
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        format!("the trial ended with {}, saying: {}", output.status, said(&output.stderr))
    })
}

fn said(text: &[u8]) -> String {
    String::from_utf8_lossy(text).trim().to_string()
}

/// Whether the service can make its link right here.
fn may_make_interfaces(named: Option<&LinkChoice>) -> bool {
    let device = || OpenOptions::new().read(true).write(true).open(TAP_DEVICE).is_ok();
    let privileged = Capability::NetAdmin.is_effective();
    match named {
        Some(LinkChoice::Packet(_)) => privileged && Capability::SysAdmin.is_effective(),
        // Root without the device is told about the device.
        _ => privileged && (place::is_root() || device()),
    }
}

/// The best link that can be had in the namespace that this process has just made.
fn best_link() -> Settled {
    let mut note = "in a network namespace of its own".to_string();
    let mut link = "tap:";
    if let Err(why) = try_tap() {
        note.push_str(&format!(", no TAP ({why})"));
        link = "packet:";
        if let Err(why) = try_packet() {
            note.push_str(&format!(
                ", no packet socket ({why}), so that the programs reach each other only"
            ));
            link = "wire:";
        }
    }
    Settled { link: Some(link), note, in_own_namespace: true }
}

/// Makes a user and network namespace and sets it up for a service and its programs.
fn enter() -> Result<(), haypile_link::LinkError> {
    netns::new_user_and_network_namespace()?;
    netns::loopback_up()?;
    // What a kernel does not know is no reason to stop: then ports are as elsewhere.
    drop(fs::write(PORT_START, "0"));
    if let Some(group) = place::effective_group() {
        drop(fs::write(PING_GROUPS, format!("{group} {group}")));
    }
    Ok(())
}

/// Makes a TAP and removes it again.
fn try_tap() -> Result<String, String> {
    let mut config = TapConfig::new(1500, local_mac("trial"));
    config.offload = Offload::Segmentation;
    let tap = Tap::open(&config);
    tap.map(|tap| haypile_link::port::Port::describe(&tap)).map_err(|error| why(&error))
}

/// Makes a veth pair with a packet socket and removes it again.
fn try_packet() -> Result<String, String> {
    let port = Packet::open(&PacketConfig {
        attachment: Attachment::Pair(Vec::new()),
        mtu: 1500,
        mac: local_mac("trial"),
        offload: Offload::Segmentation,
    });
    port.map(|port| haypile_link::port::Port::describe(&port)).map_err(|error| why(&error))
}

/// What was tried and why it failed, without advice.
pub fn why(error: &haypile_link::LinkError) -> String {
    let whole = error.to_string();
    whole.strip_suffix(error.advice()).unwrap_or(&whole).trim_end_matches([';', ' ']).to_string()
}

/// Lets the programs that this process starts from now on have the rights that a service needs in
/// the namespace.
///
/// # Errors
/// When this process has not made one.
pub fn hand_rights_on() -> Result<(), Error> {
    capabilities::hand_on(&FOR_THE_SERVICE).map_err(|error| {
        Error::new("hand rights on to the service", error, "run it as root, or take --link wire:")
    })
}

/// Gives up all rights in the namespace, before the program runs that the user wants.
///
/// # Errors
/// When the system does not take them.
pub fn give_rights_up() -> Result<(), Error> {
    capabilities::give_up()
        .map_err(|error| Error::new("give the rights in the namespace up", error, "report this"))
}

/// Is the trial: says as JSON what can be had (the hidden subcommand of `doctor`).
///
/// # Errors
/// None.
pub fn run_trial() -> Result<ExitCode, Error> {
    let trial = match enter() {
        Err(error) => Trial {
            namespace: Some(why(&error)),
            tap: Some("no namespace".to_string()),
            packet: Some("no namespace".to_string()),
        },
        Ok(()) => Trial { namespace: None, tap: try_tap().err(), packet: try_packet().err() },
    };
    table::print(&trial);
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_link_is_foretold() {
        let no = |what: &str| Some(format!("no {what}"));
        let trial = |namespace, tap, packet| Trial { namespace, tap, packet };
        assert_eq!(forecast_in_namespace(&trial(None, None, None)).0, "tap:");
        assert_eq!(forecast_in_namespace(&trial(None, no("tun"), None)).0, "packet:");
        let (link, why) = forecast_in_namespace(&trial(None, no("tun"), no("veth")));
        assert_eq!(link, "wire:");
        assert!(why.contains("no tun") && why.contains("no veth"), "{why}");
        let (link, why) = forecast_in_namespace(&trial(no("namespaces"), no("x"), no("x")));
        assert_eq!((link, why.contains("no namespaces")), ("wire:", true));
    }
}
