//! Checks of the links: what carries frames here. Tries a TAP interface in a network namespace of
//! its own, which disappears with the thread that made it.

use std::fs::OpenOptions;
use std::net::IpAddr;

use haypile_link::netns;
use haypile_link::port::{Port, local_mac};
use haypile_link::tap::{Offload, Tap, TapConfig};

use super::{Check, Verdict, read};

const DEVICE: &str = "/dev/net/tun";

/// All of them.
pub fn checks() -> Vec<Check> {
    vec![device(), tap(), namespaces(), forwarding()]
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
        let _namespace = netns::new_network_namespace().map_err(|error| error.to_string())?;
        let mut config = TapConfig::new(1500, local_mac("doctor"));
        config.host_addresses = vec![(IpAddr::from([198, 18, 0, 1]), 24)];
        config.offload = Offload::Segmentation;
        config.multi_queue = true;
        Tap::open(&config).map(|tap| tap.describe()).map_err(|error| error.to_string())
    });
    match made.join() {
        Ok(Ok(mode)) => Check::new("link tap", Verdict::Good, mode),
        Ok(Err(why)) => Check::new("link tap", Verdict::Limited, why).advise(
            "the default link needs root, or CAP_NET_ADMIN and a TAP device that may be opened",
        ),
        Err(_) => Check::new("link tap", Verdict::Broken, "the trial failed unexpectedly"),
    }
}

fn namespaces() -> Check {
    let allowed = |path: &str| read(path).and_then(|text| text.parse::<u64>().ok());
    let users = allowed("/proc/sys/user/max_user_namespaces").unwrap_or(0);
    let switched_off = allowed("/proc/sys/kernel/unprivileged_userns_clone") == Some(0);
    let restricted = allowed("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1);
    if users == 0 || switched_off {
        return Check::new("user namespaces", Verdict::Limited, "not for plain users")
            .advise("without root Haypile needs them: sysctl user.max_user_namespaces=15000");
    }
    if restricted {
        return Check::new("user namespaces", Verdict::Limited, "restricted by AppArmor").advise(
            "without root Haypile needs them: sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        );
    }
    Check::new("user namespaces", Verdict::Good, format!("allowed, {users} at most"))
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
