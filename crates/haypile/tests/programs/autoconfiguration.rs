//! Addresses found by itself: dnsmasq on the kernel's side gives a lease and advertises a router, the
//! service takes both, shows them, and is reached by them.

use crate::support::process::Process;
use crate::support::stage::{INTERFACE, Stage, on_stage};
use crate::support::{PATIENCE, find_program, wait_until};
use serde_json::Value;
use std::time::Duration;

const RANGE: &str = "10.77.0.50,10.77.0.60,255.255.255.0,120";

/// A service that finds its addresses, with the kernel's end at 10.77.0.1 and fd77::1.
fn serve(stage: &Stage, flags: &[&str]) -> Process {
    let mut command = stage.haypile("serve");
    command.args(["--link", &format!("tap:{INTERFACE}")]);
    command.args(["--host-addr", "10.77.0.1/24", "--host-addr", "fd77::1/64"]).args(flags);
    let mut service = stage.start_command("serve", command);
    wait_until("the service answers", PATIENCE, || {
        service.assert_alive();
        stage.ask("status", &[]).ok()
    });
    service
}

/// dnsmasq on the kernel's end of the link, as DHCP server, router and name server.
fn dnsmasq(stage: &Stage) -> Process {
    let program = find_program("dnsmasq").expect("the test needs it");
    let leases = format!("--dhcp-leasefile={}", stage.text("leases"));
    let range = format!("--dhcp-range={RANGE}");
    let program = program.display().to_string();
    stage.start(&[
        &program,
        "--no-daemon",
        "--conf-file=/dev/null",
        "--user=root",
        "--pid-file=",
        "--no-resolv",
        "--no-hosts",
        "--local=/test/",
        "--interface=haypile0",
        "--bind-dynamic",
        "--dhcp-authoritative",
        "--no-ping",
        &leases,
        &range,
        "--dhcp-option=option:router,10.77.0.1",
        "--enable-ra",
        "--ra-param=haypile0,10,600",
        "--dhcp-range=fd77::,ra-only,64,600",
        "--host-record=pile.test,10.77.0.9,fd77::9",
        "--host-record=other.test,10.77.0.10",
        "--cname=alias.test,pile.test",
        "--ptr-record=9.0.77.10.in-addr.arpa,pile.test",
    ])
}

fn network(stage: &Stage) -> Value {
    stage.ask("status", &[]).expect("the service answers")["network"].clone()
}

fn address_of(network: &Value, origin: &str) -> Option<String> {
    let rows = network["addresses"].as_array()?;
    let row = rows.iter().find(|row| row["origin"] == origin && row["state"] == "preferred")?;
    row["address"].as_str().map(str::to_string)
}

#[test]
fn a_lease_and_a_router_are_found() {
    on_stage("a_lease_and_a_router_are_found", &["dnsmasq", "ping"], |stage| {
        let service = serve(stage, &["--addr", "dhcp", "--addr", "auto"]);
        let server = dnsmasq(stage);
        let found =
            wait_until("a lease and an advertised address", Duration::from_secs(60), || {
                let network = network(stage);
                let both = address_of(&network, "dhcp").zip(address_of(&network, "router"));
                both.map(|(v4, v6)| (network, v4, v6))
            });
        let (network, v4, v6) = found;
        assert!(v4.starts_with("10.77.0.5") || v4 == "10.77.0.60/24", "{v4}");
        assert!(v6.starts_with("fd77::"), "{v6}");
        assert_eq!(network["lease"]["server"], "10.77.0.1");
        assert!(network["lease"]["expires_s"].as_u64().is_some_and(|s| s > 60 && s <= 120));
        let gateways: Vec<&str> = texts(&network["gateways"]);
        assert!(gateways.contains(&"10.77.0.1"), "{gateways:?}");
        assert!(gateways.iter().any(|gateway| gateway.starts_with("fe80::")), "{gateways:?}");
        assert!(texts(&network["name_servers"]).contains(&"10.77.0.1"));
        let text = stage.haypile("status").output().expect("status").stdout;
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(text.contains(&format!("lease {v4} from 10.77.0.1")), "{text}");
        for address in [&v4, &v6] {
            let address = address.split('/').next().expect("an address");
            let words = ["ping", "-c", "3", "-i", "0.2", "-W", "5", address];
            let output = stage.output(&words, PATIENCE).expect_success("ping").out;
            assert!(output.contains(" 0% packet loss"), "{output}");
        }
        stage.say(&format!("{v4} by DHCP, {v6} from a router"));
        drop(service);
        drop(server);
    });
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn names_are_looked_up() {
    on_stage("names_are_looked_up", &["dnsmasq"], |stage| {
        let server = dnsmasq(stage);
        let _service = serve(stage, &["--addr", "10.77.0.2/24", "--nameserver", "10.77.0.1"]);
        let ask = |name: &str| stage.ask("resolve", &[name]).unwrap_or_default();
        let found = wait_until("dnsmasq answers", PATIENCE, || {
            let answer = ask("pile.test");
            (!texts(&answer["addresses"]).is_empty()).then_some(answer)
        });
        assert_eq!(texts(&found["addresses"]), ["10.77.0.9", "fd77::9"]);
        assert_eq!(texts(&ask("alias.test")["addresses"]), ["10.77.0.9", "fd77::9"]);
        assert_eq!(texts(&ask("OTHER.test.")["addresses"]), ["10.77.0.10"]);
        assert_eq!(texts(&ask("10.77.0.9")["names"]), ["pile.test"]);
        let fails = |name: &str| {
            let output = stage.haypile("resolve").arg(name).output().expect("haypile resolve");
            assert_eq!(output.status.code(), Some(1), "{name}");
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        assert!(fails("nobody.test").contains("no such name"), "{}", fails("nobody.test"));
        assert!(fails("a..b").contains("not a possible name"));
        let text = stage.haypile("resolve").arg("pile.test").output().expect("resolve").stdout;
        assert_eq!(String::from_utf8_lossy(&text), "10.77.0.9\nfd77::9\n");
        drop(server);
    });
}
