//! Connections that are held while servers come, leave or die, and the prefork server that echoes on them.

use super::process::Process;
use super::stage::{Stage, service};
use super::{PATIENCE, python, script};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A server whose children share a listener at `port`.
pub fn start_prefork(stage: &Stage, port: u16, children: &str) -> Process {
    let words = [python(), &script("prefork_server.py"), "198.18.0.2", &port.to_string(), children];
    let mut server = stage.run(&words);
    server.wait_for_output("ready");
    stage.wait_for_listener(service(port), &mut server);
    server
}

/// A connection to such a server on which [`echo`] works.
pub fn hold(server: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a limit");
    stream.write_all(b"echo 10\n").expect("send");
    assert!(echo(&mut stream), "an echo");
    stream
}

/// Says something and hears it again; false when the connection was reset.
pub fn echo(stream: &mut TcpStream) -> bool {
    let word = *b"0123456789";
    let mut heard = [0; 10];
    let done = stream.write_all(&word).and_then(|()| stream.read_exact(&mut heard));
    match done {
        Ok(()) => heard == word,
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::WouldBlock, "no answer");
            false
        }
    }
}
