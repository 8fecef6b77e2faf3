//! Checks of the links: what carries frames here. Tries a TAP and a packet socket in a network
//! namespace of its own, which disappears with the thread that made it, and the same without root in
//! a process of its own (`own_namespace`).

use std::fs::OpenOptions;
use std::net::IpAddr;

use haypile_link::netns;
use haypile_link::packet::{Attachment, Packet, PacketConfig};
use haypile_link::port::{Port, local_mac};
use haypile_link::tap::{Offload, Tap, TapConfig};
use haypile_link::wire;

use super::{Check, Verdict, read};
use crate::own_namespace::{self, Trial, why};

/// Size of the rings of the wire that is tried, in cache lines.
const WIRE_LINES: u32 = 64;
const DEVICE: &str = "/dev/net/tun";

/// All of them.
pub fn checks() -> Vec<Check> {
    let trial = own_namespace::trial();
    let mut checks = vec![device(), tap(), packet(), namespaces(&trial), wire()];
    checks.extend(trial.as_ref().ok().map(choice));
    checks.push(forwarding());
    checks
}

fn device() -> Check {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => Check::new("TAP device", Verdict::Good, format!("{DEVICE} opens")),
        Err(error) => Check::new("TAP device", Verdict::Limited, format!("{DEVICE}: {error}"))
            .advise(match error.kind() {
                std::io::ErrorKind::NotFound => "load the kernel module: modprobe tun",
                _ => "run as root, or give this user the device: chmod 0666 /dev/net/tun",
            }),
    }
}

/// Makes one, with an address, as `serve` does.
fn tap() -> Check {
    let made = std::thread::spawn(|| {
        let _namespace = netns::new_network_namespace().map_err(|error| why(&error))?;
        let mut config = TapConfig::new(1500, local_mac("doctor"));
        config.host_addresses = vec![(IpAddr::from([198, 18, 0, 1]), 24)];
        config.offload = Offload::Segmentation;
        config.multi_queue = true;
        Tap::open(&config).map(|tap| tap.describe()).map_err(|error| why(&error))
    });
    verdict("link tap", made.join().ok())
}

/// Makes a pair with a packet socket, as `serve --link packet:` does.
fn packet() -> Check {
    let made = std::thread::spawn(|| {
        let _namespace = netns::new_network_namespace().map_err(|error| why(&error))?;
        let port = Packet::open(&PacketConfig {
            attachment: Attachment::Pair(vec![(IpAddr::from([198, 18, 0, 1]), 24)]),
            mtu: 1500,
            mac: local_mac("doctor"),
            offload: Offload::Segmentation,
        });
        port.map(|port| port.describe()).map_err(|error| why(&error))
    });
    verdict("link packet", made.join().ok())
}

fn verdict(name: &'static str, made: Option<Result<String, String>>) -> Check {
    match made {
        Some(Ok(mode)) => Check::new(name, Verdict::Good, mode),
        Some(Err(error)) => Check::new(name, Verdict::Limited, format!("not right here: {error}"))
            .advise("as root, or as haypile run does in a namespace of its own (below)"),
        None => Check::new(name, Verdict::Limited, "the trial failed unexpectedly"),
    }
}

/// The link that needs nothing but memory.
fn wire() -> Check {
    match wire::pair(1500, [local_mac("one"), local_mac("other")], WIRE_LINES, true) {
        Ok((one, _)) => Check::new("link wire", Verdict::Good, one.describe()),
        Err(error) => Check::new("link wire", Verdict::Broken, error.to_string())
            .advise("without it nothing runs: this needs memory files (memfd_create)"),
    }
}

/// Really makes a user namespace, with links in it.
fn namespaces(trial: &Result<Trial, String>) -> Check {
    const NAME: &str = "user namespaces";
    let number = |path: &str| read(path).and_then(|text| text.parse::<u64>().ok());
    let found = match trial {
        Ok(Trial { namespace: None, tap, packet }) => {
            let word =
                |reason: &Option<String>| reason.clone().unwrap_or_else(|| "works".to_string());
            let found = format!("allowed; in one, tap: {}, packet: {}", word(tap), word(packet));
            return Check::new(NAME, Verdict::Good, found);
        }
        Ok(Trial { namespace: Some(reason), .. }) | Err(reason) => reason,
    };
    let check = Check::new(NAME, Verdict::Limited, found);
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return check.advise("allow them: sysctl user.max_user_namespaces=15000");
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return check.advise("allow them: sysctl kernel.unprivileged_userns_clone=1");
    }
    if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return check.advise("allow them: sysctl kernel.apparmor_restrict_unprivileged_userns=0");
    }
    check.advise("a container or a filter of system calls forbids them: ask whoever runs it")
}

/// What `haypile run` takes for this user.
fn choice(trial: &Trial) -> Check {
    let (link, reason) = own_namespace::forecast(trial);
    let verdict = if link == "wire:" { Verdict::Limited } else { Verdict::Good };
    Check::new("haypile run takes", verdict, format!("{link} {reason}"))
}

fn forwarding() -> Check {
    let on = |path: &str| read(path).as_deref() == Some("1");
    let v4 = on("/proc/sys/net/ipv4/ip_forward");
    let v6 = on("/proc/sys/net/ipv6/conf/all/forwarding");
    let word = |on: bool| if on { "on" } else { "off" };
    let found = format!("IPv4 {}, IPv6 {}", word(v4), word(v6));
    let check = Check::new("forwarding", Verdict::Note, found);
    if v4 {
        return check;
    }
    check.advise(
        "this host reaches a service on a TAP by itself; for other hosts: sysctl \
         net.ipv4.ip_forward=1, and a route there",
    )
}
