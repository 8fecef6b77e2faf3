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
    words.extend(["--user=root", "--pid-file=", &hosts, &port]);
    words.extend(long.iter().map(String::as_str));
    world.serve(&words, world.port)
}

fn ask(world: &World<'_>, more: &[&str]) -> String {
    let (server, port) = (format!("@{}", world.address()), world.port.to_string());
    let words = ["dig", &server, "-p", &port, "+time=5", "+tries=1", "+noedns"];
    world.ask(&[&words[..], more].concat()).out
}

/// Single questions and one answer of several segments.
pub fn over_tcp(world: &World<'_>) -> String {
    let _server = start_dnsmasq(world);
    for number in [1, 7, 50] {
        let told = ask(world, &["+tcp", "+short", &format!("host{number}.test")]);
        assert_eq!(told.trim(), format!("192.0.2.{number}"));
    }
    let told = ask(world, &["+tcp", "+short", "long.test", "TXT"]);
    assert_eq!(told.lines().filter(|line| line.len() > 200).count(), 12, "{told}");
    "4 answers, all as expected".to_string()
}
