//! Programs that move much: iperf3, nuttcp, rsync, git.

use super::world::World;
use crate::support::content;
use serde_json::Value;
use std::fs;

fn iperf(world: &World<'_>, more: &[&str]) -> String {
    let (address, port) = (world.address().to_string(), world.port.to_string());
    let _server = world.serve(&["iperf3", "-s", "-B", &address, "-p", &port], world.port);
    let words = ["iperf3", "-J", "-c", &address, "-p", &port, "-t", "1"];
    let told = world.ask(&[&words[..], more].concat()).out;
    let told: Value = serde_json::from_str(&told).expect("iperf3 writes JSON");
    assert!(told["error"].is_null(), "iperf3: {}", told["error"]);
    let sum = |side: &str, what: &str| told["end"][side][what].as_f64().unwrap_or(0.0);
    let (sent, received) = (sum("sum_sent", "bytes"), sum("sum_received", "bytes"));
    // What is under way when the time is over is not counted as received.
    assert!(received > 1e6 && received <= sent, "{sent} bytes sent, {received} received");
    format!("{:.2} Gbit/s", sum("sum_received", "bits_per_second") / 1e9)
}

pub fn iperf3(world: &World<'_>) -> String {
    iperf(world, &[])
}

pub fn iperf3_reverse(world: &World<'_>) -> String {
    iperf(world, &["-R"])
}

pub fn iperf3_parallel(world: &World<'_>) -> String {
    iperf(world, &["-P", "4"])
}

pub fn iperf3_sendfile(world: &World<'_>) -> String {
    iperf(world, &["-Z", "-F", &world.page().display().to_string()])
}

/// A modest rate of datagrams; iperf3 counts those that are lost. A busy machine may make some, so that
/// one run of several must be good; a stack that loses them does so in each.
pub fn iperf3_datagrams(world: &World<'_>) -> String {
    let (address, port) = (world.address().to_string(), world.port.to_string());
    let _server = world.serve(&["iperf3", "-s", "-B", &address, "-p", &port], world.port);
    let words = ["iperf3", "-J", "-c", &address, "-p", &port, "-t", "1", "-u", "-b", "20M"];
    let mut seen = Vec::new();
    for _ in 0..5 {
        let (packets, lost) = datagrams_of_iperf(world, &words);
        if packets > 500 && lost < packets / 20 {
            return format!("{packets} datagrams, {lost} lost");
        }
        seen.push((packets, lost));
    }
    panic!("datagrams and how many of them were lost, each time: {seen:?}");
}

/// How many datagrams a run of iperf3 sent, and how many of them were lost.
fn datagrams_of_iperf(world: &World<'_>, words: &[&str]) -> (u64, u64) {
    let told = world.ask(words).out;
    let told: Value = serde_json::from_str(&told).expect("iperf3 writes JSON");
    assert!(told["error"].is_null(), "iperf3: {}", told["error"]);
    let sum = &told["end"]["sum"];
    let (packets, lost) = (sum["packets"].as_u64(), sum["lost_packets"].as_u64());
    (packets.unwrap_or(0), lost.unwrap_or(u64::MAX))
}

/// A program that talks through `FILE` on its control connection.
pub fn nuttcp(world: &World<'_>) -> String {
    let (address, port) = (world.address().to_string(), world.port.to_string());
    let data = (world.port + 1).to_string();
    let _server = world.serve(&["nuttcp", "-S", "--nofork", "-P", &port], world.port);
    let mut figures = Vec::new();
    for direction in ["-t", "-r"] {
        let words = ["nuttcp", direction, "-P", &port, "-p", &data, "-T1", "-fparse", &address];
        let told = world.ask(&words).out;
        let rate = told.split_whitespace().find_map(|word| word.strip_prefix("rate_Mbps="));
        let rate: f64 = rate.and_then(|text| text.parse().ok()).unwrap_or(0.0);
        assert!(rate > 1.0, "nuttcp {direction}: {told}");
        figures.push(format!("{:.2}", rate / 1000.0));
    }
    format!("{} Gbit/s there, back", figures.join(", "))
}

/// A tree down from a daemon and up to it.
pub fn rsync(world: &World<'_>) -> String {
    let (address, port) = (world.address().to_string(), world.port.to_string());
    for folder in ["from", "up", "down"] {
        fs::create_dir(world.path(folder)).expect("make a folder");
    }
    content::write(&world.path("from/large"), 4 << 20);
    for number in 0..50 {
        content::write(&world.path(&format!("from/small{number}")), 1000 * number);
    }
    let (from, up, folder) = (world.text("from"), world.text("up"), world.text(""));
    let config = world.write(
        "rsyncd.conf",
        &format!(
            "use chroot = no\nuid = root\ngid = root\nlock file = {folder}/lock\n\
             [from]\npath = {from}\n[up]\npath = {up}\nread only = no\n"
        ),
    );
    let daemon = ["rsync", "--daemon", "--no-detach", "--config", &config, "--address", &address];
    let _server = world.serve(&[&daemon[..], &["--port", &port]].concat(), world.port);
    let url = |module: &str| format!("rsync://{address}:{port}/{module}/");
    world.ask(&["rsync", "-a", &url("from"), &world.text("down/")]);
    world.ask(&["rsync", "-a", &world.text("from/"), &url("up")]);
    for folder in ["down", "up"] {
        let (original, copy) = (world.text("from"), world.text(folder));
        world.prepare(&["diff", "-r", &original, &copy]);
    }
    "51 files down, 51 up, all the same".to_string()
}

/// A clone from the daemon, and a push back to it.
pub fn git(world: &World<'_>) -> String {
    let (address, port) = (world.address().to_string(), world.port.to_string());
    let (near, bare, clone) = (world.text("near"), world.text("bare.git"), world.text("clone"));
    let in_folder = |folder: &str, words: &[&str]| {
        let who = ["-c", "user.name=test", "-c", "user.email=test@localhost"];
        world.prepare(&[&["git", "-C", folder][..], &who, words].concat()).out
    };
    world.prepare(&["git", "init", "--quiet", "-b", "main", &near]);
    fs::copy(world.page(), world.path("near/page")).expect("copy the page");
    in_folder(&near, &["add", "page"]);
    in_folder(&near, &["commit", "--quiet", "--message", "One file"]);
    world.prepare(&["git", "clone", "--quiet", "--bare", &near, &bare]);
    let (base, listen, at) = (
        format!("--base-path={}", world.text("")),
        format!("--listen={address}"),
        format!("--port={port}"),
    );
    let daemon = ["git", "daemon", &listen, &at, "--reuseaddr", &base, "--export-all"];
    let push = ["--enable=receive-pack", "--informative-errors"];
    let _server = world.serve(&[&daemon[..], &push].concat(), world.port);
    let url = format!("git://{address}:{port}/bare.git");
    world.ask(&["git", "clone", "--quiet", &url, &clone]);
    world.assert_page("clone/page");
    content::write(&world.path("clone/more"), 1 << 20);
    in_folder(&clone, &["add", "more"]);
    in_folder(&clone, &["commit", "--quiet", "--message", "Another"]);
    world.ask(&["git", "-C", &clone, "push", "--quiet", "origin", "main"]);
    in_folder(&bare, &["fsck", "--full"]);
    assert_eq!(in_folder(&bare, &["rev-parse", "main"]), in_folder(&clone, &["rev-parse", "main"]));
    "cloned and pushed".to_string()
}
