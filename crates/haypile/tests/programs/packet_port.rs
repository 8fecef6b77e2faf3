//! A service on a packet socket: on a veth pair of its own, and beside the kernel on an interface that is there.
//! Transfers both ways compared, checksums on the wire judged by tshark, batches of datagrams.

use crate::support::stage::{HOST, Stage, host, on_stage, service, service6};
use crate::support::{PATIENCE, content, http, nginx, python, wait_until};
use crate::transfer::link_counter;
use std::fs;
use std::time::Duration;

const NEEDS: [&str; 4] = ["nginx", "curl", "tshark", "ip"];
const ADDRESSES: [&str; 4] = ["--addr", "198.18.0.2/24", "--addr", "2001:2::2/64"];

/// Starts a service on `link` with the addresses of every test.
fn serve(stage: &Stage, link: &str, more: &[&str]) -> crate::support::process::Process {
    let mut command = stage.haypile("serve");
    command.args(["--link", link]).args(ADDRESSES).args(more);
    let mut service = stage.start_command("serve", command);
    service.wait_for_output("ready");
    service
}

fn ip(stage: &Stage, words: &str) {
    let words: Vec<&str> = ["ip"].into_iter().chain(words.split(' ')).collect();
    stage.output(&words, PATIENCE).expect_success("ip");
}

/// A veth pair in this namespace, of which the kernel uses `left`.
fn make_pair(stage: &Stage) {
    ip(stage, "link add left type veth peer right");
    ip(stage, "addr add 198.18.0.1/24 dev left");
    ip(stage, "addr add 2001:2::1/64 dev left nodad");
    ip(stage, "link set left up");
}

/// Files there and back over both families, in superframes, without a wrong checksum.
fn transfer(stage: &Stage) {
    let size = 5_000_001;
    content::write(&stage.served("big"), size);
    let _server = nginx::start_on(stage, "nginx", &[service(8080), service6(8080)]);
    let file = stage.text("all.pcapng");
    let command = |words: &[&str]| {
        let mut command = stage.haypile("capture");
        command.args(words);
        let done = stage.start_command("capture", command).finish(PATIENCE);
        done.expect_success("command a capture");
    };
    command(&["-w", &file]);
    for address in [service(8080), service6(8080)] {
        let seconds = http::fetch(stage, &http::url(address, "big"), &stage.path("fetched"), 60);
        stage.say(&format!("{:.0} MB/s from {address}", size as f64 / seconds / 1e6));
        content::assert_same(&stage.served("big"), &stage.path("fetched"));
        if nginx::can_put() {
            let target = http::url(address, "up/big");
            let seconds = http::upload(stage, &target, &stage.served("big"), 60);
            stage.say(&format!("{:.0} MB/s to {address}", size as f64 / seconds / 1e6));
            content::assert_same(&stage.served("big"), &stage.served("up/big"));
            fs::remove_file(stage.served("up/big")).expect("remove the upload");
        }
    }
    command(&["--stop"]);
    assert!(link_counter(stage, "tx_superframes") > 10, "sent in superframes");
    assert!(!nginx::can_put() || link_counter(stage, "rx_superframes") > 10);
    let count = |filter: &str| {
        let checks = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"];
        let words = [&["tshark", "-n", "-r", &file][..], &checks, &["-Y", filter]].concat();
        stage.output(&words, Duration::from_secs(60)).out.lines().count()
    };
    wait_until("the capture's file is whole", PATIENCE, || {
        (count("tcp.len > 10000 && ip") > 10 && count("tcp.len > 10000 && ipv6") > 10).then_some(())
    });
    assert_eq!(count("tcp.checksum.status != 1 || ip.checksum.status != 1 || _ws.malformed"), 0);
    assert_eq!(count("tcp.flags.reset == 1"), 0, "the kernel does not answer for us");
}

/// A client on Haypile fetches from a server on the kernel's stack.
fn fetch_from_kernel(stage: &Stage) {
    let listen = [host(8081).to_string()];
    let words = nginx::command(stage, "kernels", &[&listen[0]]);
    let mut server = stage.start(&words.iter().map(String::as_str).collect::<Vec<_>>());
    stage.wait_for_listener(host(8081), &mut server);
    let (out, url) = (stage.text("by-haypile"), http::url(host(8081), "big"));
    let words = [&http::CURL[..], &["30", "--output", &out, &url]].concat();
    stage.run(&words).finish(PATIENCE * 2).expect_success("curl on Haypile");
    content::assert_same(&stage.served("big"), &stage.path("by-haypile"));
}

/// The kernel cuts no batch of datagrams for a packet socket: the port does.
fn batches_of_datagrams(stage: &Stage) {
    let receive = "import socket, hashlib
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('198.18.0.2', 9000))
print('bound', flush=True)
parts = [s.recv(2000) for part in range(8)]
print([len(part) for part in parts], hashlib.sha256(b''.join(parts)).hexdigest(), flush=True)";
    let mut receiver = stage.run(&[python(), "-c", receive]);
    receiver.wait_for_output("bound");
    let send = format!(
        "import socket, hashlib
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('{HOST}', 0))
s.setsockopt(17, 103, 1000)
data = bytes(number * number % 251 for number in range(7300))
s.sendto(data, ('198.18.0.2', 9000))
print([1000] * 7 + [300], hashlib.sha256(data).hexdigest())"
    );
    let sent = stage.output(&[python(), "-c", &send], PATIENCE).expect_success("the sender");
    let received = receiver.finish(PATIENCE).expect_success("the receiver");
    assert_eq!(received.out.lines().nth(1), sent.out.lines().next(), "{}", received.err);
}

#[test]
fn a_pair_of_its_own() {
    on_stage("a_pair_of_its_own", &NEEDS, |stage| {
        let mut service = serve(
            stage,
            "packet:",
            &["--host-addr", "198.18.0.1/24", "--host-addr", "2001:2::1/64"],
        );
        transfer(stage);
        fetch_from_kernel(stage);
        batches_of_datagrams(stage);
        assert_eq!(link_counter(stage, "rx_unsegmented"), 0);
        service.assert_alive();
        // The interfaces go with the service, however it ends.
        service.kill_group();
        drop(service.finish(PATIENCE));
    });
}

#[test]
fn beside_the_kernel_on_an_interface() {
    on_stage("beside_the_kernel_on_an_interface", &NEEDS, |stage| {
        make_pair(stage);
        let service = serve(stage, "packet:right", &[]);
        assert!(service.out().contains("packet right: beside the kernel"), "{}", service.out());
        transfer(stage);
        fetch_from_kernel(stage);
        service.terminate();
        ip(stage, "link del left");
    });
}

#[test]
fn without_offloads_when_sending() {
    on_stage("without_offloads_when_sending", &NEEDS, |stage| {
        make_pair(stage);
        let server = serve(stage, "packet:right", &["--offload", "none"]);
        content::write(&stage.served("big"), 1_000_000);
        let _nginx = nginx::start(stage, 8080);
        http::fetch(stage, &http::url(service(8080), "big"), &stage.path("fetched"), 60);
        content::assert_same(&stage.served("big"), &stage.path("fetched"));
        assert_eq!(link_counter(stage, "tx_superframes"), 0);
        assert_eq!(link_counter(stage, "tx_partial_checksum"), 0);
        server.terminate();
        ip(stage, "link del left");
    });
}
