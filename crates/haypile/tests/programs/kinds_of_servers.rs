//! Servers of every make on Haypile: one that forks, one with threads, select, poll, epoll, asyncio, children
//! that share a listener, connections that become a program's standard input and output, survive exec, or
//! travel to another process. Each is an echo server and has to give back every byte of every client.

use crate::support::stage::{Stage, on_stage, service, service6};
use crate::support::{content, inspect, python, script};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

const SILENCE: Duration = Duration::from_secs(60);

/// Sends bytes while reading them back, ends the sending direction, and expects the peer's end.
fn converse(server: SocketAddr, len: usize, seed: u64) {
    let mut stream = TcpStream::connect_timeout(&server, SILENCE).expect("connect");
    stream.set_read_timeout(Some(SILENCE)).expect("set a limit");
    stream.set_write_timeout(Some(SILENCE)).expect("set a limit");
    let sent = content::bytes(len, seed);
    let mut got = Vec::with_capacity(len);
    thread::scope(|scope| {
        let mut writer = stream.try_clone().expect("a second handle");
        let sent = &sent;
        scope.spawn(move || {
            writer.write_all(sent).expect("send");
            writer.shutdown(Shutdown::Write).expect("end the sending direction");
        });
        if let Err(error) = stream.read_to_end(&mut got) {
            panic!("{} of {len} bytes, then: {error}", got.len());
        }
    });
    assert_eq!(got.len(), len, "the echo is shorter");
    assert!(got == sent, "the echo has wrong bytes");
}

/// Clients one after the other, then many at once, small and large.
fn check_echo(stage: &Stage, server: SocketAddr) {
    for (seed, len) in [0, 1, 1460, 200_000].into_iter().enumerate() {
        converse(server, len, seed as u64);
    }
    let panicked = thread::scope(|scope| {
        let clients: Vec<_> = (0..16_u64)
            .map(|client| {
                scope.spawn(move || converse(server, 50_000 + 9_999 * client as usize, client))
            })
            .collect();
        clients.into_iter().map(|client| client.join()).filter(Result::is_err).count()
    });
    assert_eq!(panicked, 0, "{}: clients failed", stage.name);
}

fn echo_test(test: &'static str, kind: &'static str) {
    on_stage(test, &["python3"], move |stage| {
        let _service = stage.serve();
        for (name, address) in [("198.18.0.2", service(7007)), ("2001:2::2", service6(7007))] {
            let mut server = stage.run(&[python(), &script("echo_server.py"), kind, name, "7007"]);
            server.wait_for_output("ready");
            check_echo(stage, address);
            server.assert_alive();
            inspect::wait_for_rest(stage);
            server.terminate();
        }
    });
}

macro_rules! echo_tests {
    ($($test:ident: $kind:literal,)*) => { $(
        #[test]
        fn $test() {
            echo_test(stringify!($test), $kind);
        }
    )* };
}

echo_tests! {
    a_server_that_forks_for_each_client: "fork",
    a_server_with_a_thread_for_each_client: "thread",
    a_server_on_select: "select",
    a_server_on_poll: "poll",
    a_server_on_epoll: "epoll",
    a_server_on_edge_triggered_epoll: "edge",
    a_server_on_asyncio: "asyncio",
    children_that_accept_on_one_listener: "prefork",
    a_connection_as_standard_input_and_output: "inetd",
    a_connection_that_survives_exec: "exec",
    a_connection_passed_to_another_process: "pass",
}
