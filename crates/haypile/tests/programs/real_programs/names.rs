//! Name servers and their clients.

use super::world::World;
use crate::support::process::Process;

/// A dnsmasq that knows 50 names, its text records as long as they may be.
fn start_dnsmasq(world: &World<'_>) -> Process {
    let hosts: String =
        (1..=50).map(|number| format!("192.0.2.{number} host{number}.test\n")).collect();
    let hosts = format!("--addn-hosts={}", world.write("hosts", &hosts));
    let port = format!("--port={}", world.port);
    let text = "x".repeat(200);
    let long: Vec<String> =
        (0..12).map(|number| format!("--txt-record=long.test,{number}-{text}")).collect();
    let mut words = vec![
        "dnsmasq",
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
    ];
    let listen = format!("--listen-address={}", world.address());
    words.extend(["--user=root", "--pid-file=", "--bind-interfaces", &listen, &hosts, &port]);
    words.extend(long.iter().map(String::as_str));
    world.serve(&words, world.port)
}

fn ask(world: &World<'_>, more: &[&str]) -> String {
    let (server, port) = (format!("@{}", world.address()), world.port.to_string());
    let words = ["dig", &server, "-p", &port, "+time=30", "+tries=1", "+noedns"];
    world.ask(&[&words[..], more].concat()).out
}

/// Single questions by datagrams and by TCP, and one answer of several segments.
pub fn dnsmasq(world: &World<'_>) -> String {
    let _server = start_dnsmasq(world);
    for number in [1, 7, 50] {
        for way in ["+notcp", "+tcp"] {
            let told = ask(world, &[way, "+short", &format!("host{number}.test")]);
            assert_eq!(told.trim(), format!("192.0.2.{number}"));
        }
    }
    let told = ask(world, &["+tcp", "+short", "long.test", "TXT"]);
    assert_eq!(told.lines().filter(|line| line.len() > 200).count(), 12, "{told}");
    "7 answers, all as expected".to_string()
}
