//! UDP programs of other makes, each with Haypile on one side and the kernel on the other: file copies,
//! name servers and queries, measured streams. Those that are not installed are skipped.

use crate::support::process::Process;
use crate::support::stage::{Stage, on_stage};
use crate::support::{PATIENCE, content, inspect, wait_until};
use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// The two sides of a test: who listens, at which address, and who asks.
#[derive(Copy, Clone)]
enum Server {
    OnHaypile,
    OnKernel,
}

impl Server {
    fn address(self) -> &'static str {
        match self {
            Server::OnHaypile => "198.18.0.2",
            Server::OnKernel => "198.18.0.1",
        }
    }

    fn start(self, stage: &Stage, words: &[&str]) -> Process {
        match self {
            Server::OnHaypile => stage.run(words),
            Server::OnKernel => stage.start(words),
        }
    }

    /// A command for the other side.
    fn client(self, stage: &Stage, words: &[&str]) -> Command {
        let mut command = match self {
            Server::OnHaypile => Command::new(words[0]),
            Server::OnKernel => {
                let mut command = stage.haypile("run");
                command.args(["--quiet", "--", words[0]]);
                command
            }
        };
        command.args(&words[1..]);
        command
    }
}

/// Waits until a UDP socket has the port, on either side.
fn wait_for_port(stage: &Stage, server: &mut Process, port: u16) {
    let in_kernel = format!(":{port:04X} ");
    wait_until(&format!("a UDP socket has port {port}"), PATIENCE, || {
        server.assert_alive();
        let kernel = || stage.output(&["cat", "/proc/net/udp"], PATIENCE).out.contains(&in_kernel);
        (is_listed(stage, "udp", port) || kernel()).then_some(())
    });
}

/// Waits until somebody listens at a TCP port, on either side, without a connection: iperf3 takes one for a
/// client that fails, and opens its listener anew.
fn wait_for_quiet_listener(stage: &Stage, server: &mut Process, port: u16) {
    wait_until(&format!("somebody listens at port {port}"), PATIENCE, || {
        server.assert_alive();
        (is_listed(stage, "tcp", port) || inspect::kernel_listens(port)).then_some(())
    });
}

/// Whether the service has a socket at the port that no peer is connected to.
fn is_listed(stage: &Stage, protocol: &str, port: u16) -> bool {
    let listed = stage.ask("ss", &["-l"]).unwrap_or_default();
    let name = format!(":{port}");
    listed["sockets"].as_array().into_iter().flatten().any(|row| {
        row["protocol"] == protocol && row["local"].as_str().is_some_and(|at| at.ends_with(&name))
    })
}

/// Sends the page by `command`, which waits for an answer for as many seconds as it is told; no end
/// of datagrams tells it that all is there. Again, and longer, where others had the cores.
fn check_echo(stage: &Stage, name: &str, command: impl Fn(&str) -> Command) {
    let page = stage.served("page");
    for seconds in ["1", "5", "20"] {
        let mut command = command(seconds);
        command.stdin(Stdio::from(fs::File::open(&page).expect("open the file to send")));
        let echo = stage.start_reading(name, command);
        let echoed = echo.out_file();
        echo.finish(LIMIT).expect_success(name);
        let is_empty = echoed.metadata().is_ok_and(|data| data.len() == 0);
        if !is_empty || seconds == "20" {
            return content::assert_same(&page, &echoed);
        }
    }
}

#[test]
fn socat_echoes_datagrams_both_ways() {
    on_stage("socat_echoes_datagrams_both_ways", &["socat"], |stage| {
        // One datagram: what follows it may come before socat's child has a socket of its own.
        content::write(&stage.served("page"), 1000);
        let _service = stage.serve();
        for (server, port) in [(Server::OnHaypile, 6001), (Server::OnKernel, 6002)] {
            let listen = format!("UDP-LISTEN:{port},bind={},fork", server.address());
            let mut echo = server.start(stage, &["socat", &listen, "EXEC:cat"]);
            wait_for_port(stage, &mut echo, port);
            let there = format!("UDP:{}:{port}", server.address());
            for _ in 0..2 {
                check_echo(stage, "socat", |seconds| {
                    server.client(stage, &["socat", "-b", "1000", "-t", seconds, "-", &there])
                });
            }
            echo.terminate();
        }
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn nc_talks_by_datagrams_both_ways() {
    on_stage("nc_talks_by_datagrams_both_ways", &["nc", "sh"], |stage| {
        let _service = stage.serve();
        for (server, port) in [(Server::OnHaypile, 6003), (Server::OnKernel, 6004)] {
            let port_text = port.to_string();
            let words = ["nc", "-u", "-l", server.address(), &port_text];
            let mut listener = server.start(stage, &words);
            wait_for_port(stage, &mut listener, port);
            let words = ["nc", "-u", "-w", "1", server.address(), &port_text];
            let mut command = server.client(stage, &words);
            let text = stage.path("text");
            fs::write(&text, "said by a client\n").expect("write the text");
            command.stdin(Stdio::from(fs::File::open(&text).expect("open the text")));
            stage.start_reading("nc", command).finish(LIMIT);
            listener.wait_for_output("said by a client\n");
            assert_eq!(listener.out(), "said by a client\n");
            listener.terminate();
        }
    });
}

#[test]
fn dig_asks_dnsmasq_both_ways() {
    on_stage("dig_asks_dnsmasq_both_ways", &["dig", "dnsmasq"], |stage| {
        let _service = stage.serve();
        for (server, port) in [(Server::OnHaypile, 5301), (Server::OnKernel, 5302)] {
            let six = match server {
                Server::OnHaypile => "2001:2::2",
                Server::OnKernel => "2001:2::1",
            };
            let port_text = port.to_string();
            let listen = format!("--listen-address={},{six}", server.address());
            let words = ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts"];
            let where_run = ["--user=root", "--bind-interfaces", &listen, "--port", &port_text];
            let names = ["--pid-file", "--address=/name.example/192.0.2.7"];
            let words = [&words[..], &where_run, &names].concat();
            let mut name_server = server.start(stage, &words);
            wait_for_port(stage, &mut name_server, port);
            for (address, more) in
                [(server.address(), "+notcp"), (server.address(), "+tcp"), (six, "+notcp")]
            {
                let at = format!("@{address}");
                let words = ["dig", "+short", "+tries=2", more, "-p", &port_text, &at];
                let mut command = server.client(stage, &[&words[..], &["name.example"]].concat());
                command.stdin(Stdio::null());
                let answer = stage.start_reading("dig", command).finish(LIMIT);
                assert_eq!(
                    answer.expect_success("dig").out.trim(),
                    "192.0.2.7",
                    "{address} {more}"
                );
            }
            name_server.terminate();
        }
        inspect::wait_for_rest(stage);
    });
}

/// Share of the datagrams that the receiver missed, in percent, and how many there were; or what iperf3
/// complains of. Where none came, the share is none.
fn loss(report: &str) -> Result<(f64, u64), String> {
    let report: Value = serde_json::from_str(report).expect("a report of iperf3");
    if let Some(error) = report["error"].as_str() {
        return Err(error.to_owned());
    }
    let sum = &report["end"]["sum"];
    let count = sum["packets"].as_u64().expect("a number of datagrams");
    Ok((sum["lost_percent"].as_f64().unwrap_or(100.0), count))
}

/// Runs a client of iperf3 over datagrams, some times if a busy machine loses them or lets none be sent;
/// a stack that loses them does so each time.
fn stream(stage: &Stage, server: Server, words: &[&str], mut wait_for_listener: impl FnMut()) {
    let mut seen = Vec::new();
    for _ in 0..5 {
        wait_for_listener();
        let mut command = server.client(stage, words);
        command.stdin(Stdio::null());
        let report = stage.start_reading("iperf3", command).finish(LIMIT);
        let (lost, count) = match loss(&report.out) {
            Ok(seen) => {
                report.expect_success("iperf3");
                seen
            }
            Err(error) => {
                // Its server closes the listener after each test, with who came in between.
                assert!(error.contains("reset by peer") || error.contains("refused"), "{error}");
                stage.say(&format!("{words:?}: {error}"));
                (100.0, 0)
            }
        };
        stage.say(&format!("{words:?}: {count} sent, {lost:.2} % lost"));
        if count > 50 && lost < 50.0 {
            return;
        }
        seen.push((lost, count));
    }
    panic!("{words:?}: percents lost of datagrams, each time: {seen:?}");
}

#[test]
fn iperf3_streams_datagrams_both_ways() {
    on_stage("iperf3_streams_datagrams_both_ways", &["iperf3"], |stage| {
        let _service = stage.serve();
        for (server, port) in [(Server::OnHaypile, 5201), (Server::OnKernel, 5202)] {
            let port_text = port.to_string();
            let words = ["iperf3", "-s", "-B", server.address(), "-p", &port_text];
            let mut iperf = server.start(stage, &words);
            for more in [&[][..], &["-R"], &["-P", "3"], &["-l", "20000"]] {
                let words = ["iperf3", "-c", server.address(), "-p", &port_text, "-u", "-J"];
                let words = [&words[..], &["-b", "20M", "-t", "1"], more].concat();
                stream(stage, server, &words, || {
                    wait_for_quiet_listener(stage, &mut iperf, port);
                });
            }
            iperf.terminate();
        }
        inspect::wait_for_rest(stage);
    });
}
