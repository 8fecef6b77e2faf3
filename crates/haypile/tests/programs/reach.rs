//! Who reaches what: ping, loopback beside Haypile, programs that are none of Haypile's business, and what the
//! wire looks like to a protocol analyser.

use crate::support::process::Process;
use crate::support::stage::{INTERFACE, Stage, on_stage, service, service6};
use crate::support::{PATIENCE, content, http, inspect, nginx, python, script, wait_until};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

#[test]
fn the_service_answers_ping() {
    on_stage("the_service_answers_ping", &["ping"], |stage| {
        let _service = stage.serve();
        let both = ["198.18.0.2", "2001:2::2"];
        // 8000 bytes travel as fragments in both directions.
        for (address, size) in both.iter().flat_map(|address| [(address, "56"), (address, "8000")])
        {
            let words = ["ping", "-c", "5", "-i", "0.2", "-W", "5", "-s", size, address];
            let output = stage.output(&words, PATIENCE).expect_success("ping").out;
            assert!(output.contains(" 0% packet loss"), "{output}");
            let times = output.lines().rfind(|line| line.contains("min/avg/max"));
            stage.say(&format!("ping -s {size} {address}: {}", times.unwrap_or("?").trim()));
        }
        // The kernel's own addresses are not taken over.
        for own in ["127.0.0.1", "::1", "198.18.0.1"] {
            stage.output(&["ping", "-c", "1", "-W", "5", own], PATIENCE).expect_success(own);
        }
    });
}

#[test]
fn a_wildcard_listener_answers_in_both_worlds() {
    on_stage(
        "a_wildcard_listener_answers_in_both_worlds",
        &["python3", "curl", "nginx"],
        |stage| {
            content::write(&stage.served("page"), 300_000);
            let _service = stage.serve();
            let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8080);
            let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 8081);
            let root = stage.text("root");
            let program = script("http_server.py");
            let mut one = stage.run(&[python(), &program, "0.0.0.0", "8080", &root]);
            let mut two = stage.run(&[python(), &program, "::", "8081", &root]);
            one.wait_for_output("ready");
            two.wait_for_output("ready");
            let wildcard = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 8082);
            let _nginx = nginx::start_on(stage, "nginx", &[wildcard]);
            let nginx_at = |address: [u8; 4]| SocketAddr::new(IpAddr::from(address), 8082);
            let everywhere = [
                v4,
                service(8080),
                v6,
                service6(8081),
                service(8081),
                nginx_at([127, 0, 0, 1]),
                nginx_at([198, 18, 0, 2]),
            ];
            for address in everywhere.iter().cycle().take(everywhere.len() * 3) {
                let file = stage.path("fetched");
                http::fetch(stage, &http::url(*address, "page"), &file, 60);
                content::assert_same(&stage.served("page"), &file);
            }
            inspect::wait_for_rest(stage);
        },
    );
}

#[test]
fn programs_that_look_for_addresses_see_those_of_the_service() {
    let name = "programs_that_look_for_addresses_see_those_of_the_service";
    on_stage(name, &["python3"], |stage| {
        let service = stage.serve();
        let program = script("interfaces.py");
        let listed = |words: &[&str]| stage.run(words).finish(PATIENCE).expect_success(name).out;
        let said = listed(&[python(), &program]);
        let kernels = stage.output(&[python(), &program], PATIENCE).expect_success(name).out;
        let v4 = format!("{INTERFACE} 198.18.0.2 255.255.255.0 198.18.0.255");
        let v6 = format!("{INTERFACE} 2001:2::2 ffff:ffff:ffff:ffff:: -");
        let (ours, rest): (Vec<&str>, Vec<&str>) =
            said.lines().partition(|line| [&v4, &v6].contains(&&line.to_string()));
        assert_eq!(ours.len(), 2, "{said}");
        // What the kernel has is seen as it is, behind ours.
        assert_eq!(rest.join("\n"), kernels.trim_end(), "{said}");
        assert!(said.starts_with(ours[0]), "{said}");
        service.terminate();
    });
}

#[test]
fn a_loopback_program_is_left_to_the_kernel() {
    on_stage("a_loopback_program_is_left_to_the_kernel", &["python3", "curl"], |stage| {
        content::write(&stage.served("page"), 300_000);
        let _service = stage.serve();
        let root = stage.text("root");
        let program = script("http_server.py");
        let mut server = stage.run(&[python(), &program, "127.0.0.1", "8080", &root]);
        server.wait_for_output("ready");
        let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8080);
        http::fetch(stage, &http::url(loopback, "page"), &stage.path("fetched"), 60);
        content::assert_same(&stage.served("page"), &stage.path("fetched"));
        let refused = TcpStream::connect_timeout(&service(8080), Duration::from_secs(5));
        let why = refused.expect_err("nobody listens on the service's address").kind();
        assert_eq!(why, std::io::ErrorKind::ConnectionRefused);
        let listed = inspect::sockets(stage);
        assert!(!listed.iter().any(|socket| inspect::state(socket) == "LISTEN"), "{listed:?}");
        // A client's connections to loopback are the kernel's too.
        let (file, address) = (stage.text("again"), http::url(loopback, "page"));
        let words = [&http::CURL[..], &["10", "--output", &file, &address]].concat();
        stage.run(&words).finish(PATIENCE).expect_success("curl to loopback");
        content::assert_same(&stage.served("page"), &stage.path("again"));
    });
}

/// Starts a capture of the interface and waits until it has begun.
fn start_capture(stage: &Stage, file: &str) -> Process {
    let mut capture = stage.start(&["tshark", "-q", "-n", "-i", INTERFACE, "-w", file]);
    wait_until("the capture has begun", PATIENCE, || {
        capture.assert_alive();
        // The file appears when the packet socket is open.
        fs::metadata(file).ok().filter(|metadata| metadata.len() > 0)
    });
    capture
}

/// How many frames of the capture match a display filter.
fn count(stage: &Stage, file: &str, filter: &str) -> usize {
    let checks = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"];
    let words = [&["tshark", "-n", "-r", file][..], &checks, &["-Y", filter]].concat();
    // Its status is of no use: a file that is still being written may end amid a packet.
    stage.output(&words, PATIENCE).out.lines().count()
}

#[test]
fn an_analyser_finds_nothing_wrong_on_the_wire() {
    let needs = ["tshark", "nginx", "curl"];
    on_stage("an_analyser_finds_nothing_wrong_on_the_wire", &needs, |stage| {
        content::write(&stage.served("page"), 100_000);
        // With offloads on, the host finishes our checksums behind the point where it captures.
        let _service = stage.serve_with(&["--offload", "none"]);
        let _server = nginx::start_on(stage, "nginx", &[service(8080), service6(8080)]);
        inspect::wait_for_rest(stage);
        until_unhurried(stage, |turn| {
            let outside = stage.text(&format!("outside{turn}.pcapng"));
            let capture = start_capture(stage, &outside);
            for address in [service(8080), service6(8080)].into_iter().cycle().take(REQUESTS) {
                http::fetch(stage, &http::url(address, "page"), &stage.path("fetched"), 60);
            }
            inspect::wait_for_rest(stage);
            // Packets wait in the capture's buffers: a later one in the file means that all are there.
            wait_until("the capture has written everything", PATIENCE, || {
                stage.output(&["ping", "-c", "1", "198.18.0.2"], PATIENCE).expect_success("ping");
                (count(stage, &outside, "icmp.type == 8") > 0).then_some(())
            });
            capture.signal("INT");
            capture.finish(PATIENCE).expect_success("tshark");
            outside
        });
    });
}

#[test]
fn a_capture_from_inside_shows_the_same() {
    let needs = ["tshark", "nginx", "curl"];
    on_stage("a_capture_from_inside_shows_the_same", &needs, |stage| {
        content::write(&stage.served("page"), 100_000);
        let _service = stage.serve();
        let _server = nginx::start(stage, 8080);
        inspect::wait_for_rest(stage);
        let capture = |words: &[&str]| {
            let mut command = stage.haypile("capture");
            command.args(words);
            stage.start_command("capture", command).finish(PATIENCE).expect_success("capture");
        };
        until_unhurried(stage, |turn| {
            let inside = stage.text(&format!("inside{turn}.pcapng"));
            capture(&["--write", &inside]);
            for _ in 0..REQUESTS {
                http::fetch(stage, &http::url(service(8080), "page"), &stage.path("fetched"), 60);
            }
            inspect::wait_for_rest(stage);
            capture(&["--stop"]);
            inside
        });
    });
}

/// How many requests are captured.
const REQUESTS: usize = 5;
/// Marks of segments sent again, and what they lead to.
const AGAIN: [&str; 4] = ["retransmission", "lost_segment", "out_of_order", "duplicate_ack"];

/// Checks captures until one shows nothing sent again. When others have the cores for a fifth of a
/// second, either end sends again what was not lost, as it should; without that, nothing may be.
fn until_unhurried(stage: &Stage, mut capture: impl FnMut(usize) -> String) {
    for turn in 0..5 {
        let file = capture(turn);
        let again: Vec<usize> =
            AGAIN.iter().map(|mark| count(stage, &file, &format!("tcp.analysis.{mark}"))).collect();
        if again.iter().sum::<usize>() == 0 {
            return check_capture(stage, &file, REQUESTS);
        }
        stage.say(&format!("sent again: {AGAIN:?} {again:?}"));
        assert!(turn < 4, "something is sent again each time, the last time {AGAIN:?} {again:?}");
    }
}

fn check_capture(stage: &Stage, file: &str, requests: usize) {
    let ours = "(ip.src == 198.18.0.2 || ipv6.src == 2001:2::2)";
    assert_eq!(count(stage, file, "tcp.flags.syn == 1 && tcp.flags.ack == 1"), requests);
    assert_eq!(count(stage, file, &format!("{ours} && tcp.flags.fin == 1")), requests);
    assert_eq!(count(stage, file, "_ws.malformed"), 0);
    // Frames of the kernel may carry checksums that the kernel leaves to its offloads.
    let bad = "(tcp.checksum.status == \"Bad\" || ip.checksum.status == \"Bad\")";
    assert_eq!(count(stage, file, &format!("{ours} && {bad}")), 0);
    assert_eq!(count(stage, file, &format!("{ours} && tcp.flags.reset == 1")), 0);
    let frames = count(stage, file, "tcp");
    stage.say(&format!("{frames} frames for {requests} requests of 100000 bytes, none wrong"));
}
