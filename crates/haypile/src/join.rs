//! `haypile join`: two links joined over a path with faults, until a signal. Called by `main`; what
//! moves the frames is in the link crate's `join.rs`.

use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

use haypile_link::LinkError;
use haypile_link::join::Join;
use haypile_link::netns::{self, Namespace};
use haypile_link::packet::{Attachment, Packet, PacketConfig};
use haypile_link::port::{Port, local_mac};
use haypile_link::tap::{Offload, Tap, TapConfig};
use haypile_link::wire::{Wire, WireConfig};
use haypile_service::config::{self, LinkChoice};
use haypile_service::error::Error;
use haypile_service::links::link_error;
use haypile_service::start::catch_signals;
use serde_json::{Value, json};

use crate::cli::JoinArgs;
use crate::guard::{self, Guardian};
use crate::{place, table};

/// One end as the command line describes it.
struct End<'a> {
    link: &'a str,
    namespace: Option<&'a str>,
    addresses: &'a [String],
}

/// Joins two links until SIGTERM or SIGINT, then says what happened.
///
/// # Errors
/// When a link cannot be opened, or is taken away.
pub fn run(arguments: &JoinArgs) -> Result<ExitCode, Error> {
    let JoinArgs {
        one, other, fault, seed, netns_a, netns_b, addresses_a, addresses_b, mtu, ..
    } = arguments;
    let spec = config::parse_fault(fault)?;
    let signals = catch_signals()?;
    let ends = [
        End { link: one, namespace: netns_a.as_deref(), addresses: addresses_a },
        End { link: other, namespace: netns_b.as_deref(), addresses: addresses_b },
    ];
    // Dropped last: they remove what the ports leave if we are killed.
    let mut guardians = Vec::new();
    let [one, other] = ends.map(|end| end.open(config::check_mtu(*mtu)?, &mut guardians));
    let mut join = Join::new(one?, other?, &spec, *seed).map_err(link_error)?;
    for line in join.describe() {
        table::say(&format!("link  {line}"));
    }
    let clean = spec == Default::default();
    let fault = if clean { "none".to_string() } else { format!("{spec}, seed {seed}") };
    table::say(&format!("fault {fault}"));
    table::say("ready");
    drop(std::io::stdout().flush());
    let outcome = join.run(signals.as_fd());
    report(&join, arguments.json);
    drop(join);
    drop(guardians);
    match outcome {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Error::new("use a link", error, "look whether it was removed")),
    }
}

impl End<'_> {
    fn open(
        &self,
        mtu: u16,
        guardians: &mut Vec<Option<Guardian>>,
    ) -> Result<Box<dyn Port>, Error> {
        let wires = place::wires();
        let link = config::parse_link(self.link, wires.as_deref())?;
        match &link {
            LinkChoice::Tap(name) => Ok(Box::new(self.open_tap(name.clone(), mtu)?)),
            LinkChoice::Packet(interface) => self.open_packet(interface.clone(), mtu),
            LinkChoice::Alone => {
                let what = format_args!("link \"{}\"", self.link).to_string();
                Err(Error::new(what, "has nobody to join", "name the wire: wire:NAME"))
            }
            LinkChoice::Wire { directory, name } => {
                if self.namespace.is_some() || !self.addresses.is_empty() {
                    let remedy = "leave its --netns and --addr out";
                    let why = "has no kernel at its end, so no namespace and no address";
                    return Err(Error::new(format_args!("link \"{}\"", self.link), why, remedy));
                }
                guardians.push(guard::start(directory, &link));
                let mac = local_mac(name);
                let config = WireConfig { mtu, mac, superframes: true };
                Ok(Box::new(Wire::open(directory, name, &config).map_err(link_error)?))
            }
        }
    }

    fn open_packet(&self, interface: Option<String>, mtu: u16) -> Result<Box<dyn Port>, Error> {
        let addresses = config::parse_cidrs("address", self.addresses)?;
        if interface.is_some() && !addresses.is_empty() {
            let remedy = "leave its --addr out";
            let why = "is there already, with the addresses it has";
            return Err(Error::new(format_args!("link \"{}\"", self.link), why, remedy));
        }
        let addresses = addresses.iter().map(|cidr| (cidr.addr, cidr.prefix_len)).collect();
        let packet = PacketConfig {
            attachment: interface.map_or(Attachment::Pair(addresses), Attachment::Interface),
            mtu,
            mac: local_mac(self.link),
            offload: Offload::Segmentation,
        };
        let opened = match self.namespace {
            None => Packet::open(&packet),
            Some(name) => open_namespace(name)
                .and_then(|namespace| netns::run_in(namespace.as_fd(), || Packet::open(&packet))?),
        };
        Ok(Box::new(opened.map_err(link_error)?))
    }

    fn open_tap(&self, name: Option<String>, mtu: u16) -> Result<Tap, Error> {
        let mut tap = TapConfig::new(mtu, local_mac(self.link));
        tap.name = name;
        let addresses = config::parse_cidrs("address", self.addresses)?;
        tap.host_addresses = addresses.iter().map(|cidr| (cidr.addr, cidr.prefix_len)).collect();
        let opened = match self.namespace {
            None => Tap::open(&tap),
            Some(name) => open_namespace(name)
                .and_then(|namespace| netns::run_in(namespace.as_fd(), || Tap::open(&tap))?),
        };
        opened.map_err(link_error)
    }
}

/// A namespace by the id of a process in it, by its name under /run/netns, or by its path.
fn open_namespace(name: &str) -> Result<Namespace, LinkError> {
    let path = match name {
        path if path.contains('/') => path.to_string(),
        pid if pid.bytes().all(|byte| byte.is_ascii_digit()) => format!("/proc/{pid}/ns/net"),
        name => format!("/run/netns/{name}"),
    };
    Namespace::open(&path)
}

/// Says what happened on the path.
fn report(join: &Join, as_json: bool) {
    let (ports, there, back) = join.counters();
    let named = |counters: haypile_link::fault::FaultCounters| -> serde_json::Map<String, Value> {
        let strip = |name: &str| name.trim_start_matches("fault_tx_").to_string();
        counters.named(false).iter().map(|(name, count)| (strip(name), json!(count))).collect()
    };
    let links = ports.map(|port| {
        let counts = port.named().into_iter().filter(|(_, count)| *count > 0);
        counts
            .map(|(name, count)| (name.to_string(), json!(count)))
            .collect::<serde_json::Map<_, _>>()
    });
    if as_json {
        return table::print(
            &json!({ "there": named(there), "back": named(back), "links": links }),
        );
    }
    for (way, counters) in [("there", named(there)), ("back", named(back))] {
        let words: Vec<String> =
            counters.iter().map(|(name, count)| format!("{count} {name}")).collect();
        table::say(&format!("{way:5} {}", words.join(", ")));
    }
}
