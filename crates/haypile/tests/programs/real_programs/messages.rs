//! TLS and event loops: openssl's own server and client, python's asyncio.

use super::world::World;
use crate::support::{PATIENCE, content, python, script};
use std::fs;

/// A certificate of the case's own, as files `key.pem` and `certificate.pem`.
fn make_certificate(world: &World<'_>) {
    let words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test"];
    let files = ["-keyout", "key.pem", "-out", "certificate.pem", "-days", "2"];
    world.prepare(&[&words[..], &files].concat());
}

/// `s_client` fetches the page from `s_server`, and what comes is compared.
pub fn openssl(world: &World<'_>) -> String {
    make_certificate(world);
    let at = world.at(world.port).to_string();
    let (key, certificate) = (world.text("key.pem"), world.text("certificate.pem"));
    let words = ["openssl", "s_server", "-accept", &at, "-WWW", "-quiet", "-cert", &certificate];
    let mut server = world.server_command(&[&words[..], &["-key", &key]].concat());
    server.current_dir(world.root());
    let _server = world.serve_command("s_server", server, world.port);
    let request = world.write("request", "GET /page HTTP/1.0\r\n\r\n");
    let words = ["openssl", "s_client", "-connect", &at, "-quiet", "-ign_eof"];
    for _ in 0..3 {
        let mut client = world.client_command(&words);
        client.stdin(fs::File::open(&request).expect("open the request"));
        let client = world.start_command("s_client", client);
        let out = client.out_file();
        client.finish(PATIENCE);
        let answer = fs::read(out).expect("read the answer");
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        fs::write(world.path("body"), &answer[head..]).expect("write the body");
        content::assert_same(&world.page(), &world.path("body"));
    }
    "3 pages over TLS, all the same".to_string()
}

fn asyncio_with(world: &World<'_>, kind: &str) -> String {
    let (address, port) = (world.address().to_string(), world.port.to_string());
    let program = script("asyncio_echo.py");
    let _server = world.serve(&[python(), &program, "server", kind, &address, &port], world.port);
    world.ask(&[python(), &program, "client", kind, &address, &port]).out.trim().to_string()
}

/// Many streams at a time, each with its own content.
pub fn asyncio(world: &World<'_>) -> String {
    asyncio_with(world, "plain")
}

/// The same, after a change to TLS on the running connection.
pub fn asyncio_tls(world: &World<'_>) -> String {
    make_certificate(world);
    asyncio_with(world, "tls")
}
