//! Programs of other makes: event loops, virtual machines, TLS libraries and shells' helpers that use sockets
//! each in their own way. All of them are unmodified; those that are not installed are skipped.

use crate::support::process::Process;
use crate::support::stage::{Stage, host, on_stage, service};
use crate::support::{PATIENCE, content, http, inspect, python, script};
use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

const SIZE: u64 = 5 << 20;

/// Fetches the served file several times from a server of the test.
fn check_server(stage: &Stage, address: SocketAddr, server: &mut Process) {
    stage.wait_for_listener(address, server);
    for _ in 0..3 {
        http::fetch(stage, &http::url(address, "page"), &stage.path("fetched"), 60);
        content::assert_same(&stage.served("page"), &stage.path("fetched"));
    }
}

/// A python file server on the kernel's side.
fn kernel_server(stage: &Stage) -> Process {
    let (program, root) = (script("http_server.py"), stage.text("root"));
    let mut server = stage.start(&[python(), &program, "198.18.0.1", "8000", &root]);
    server.wait_for_output("ready");
    server
}

/// Sends a file through `command`, which gives back what it gets, and compares.
fn check_echo(stage: &Stage, name: &str, mut command: Command) {
    let sent = fs::File::open(stage.served("page")).expect("open the file to send");
    command.stdin(Stdio::from(sent));
    let echo = stage.start_reading(name, command);
    let echoed = echo.out_file();
    echo.finish(PATIENCE).expect_success(name);
    content::assert_same(&stage.served("page"), &echoed);
}

#[test]
fn node_serves_and_fetches() {
    on_stage("node_serves_and_fetches", &["node", "curl", "python3"], |stage| {
        content::write(&stage.served("page"), SIZE);
        let _service = stage.serve();
        let root = stage.text("root");
        let program = format!(
            "const fs = require('fs'); require('http').createServer((q, s) => \
             fs.createReadStream('{root}' + q.url).pipe(s)).listen(8080, '198.18.0.2')"
        );
        let mut server = stage.run(&["node", "-e", &program]);
        check_server(stage, service(8080), &mut server);
        let _kernel = kernel_server(stage);
        let out = stage.text("by-node");
        let program = format!(
            "require('http').get('http://198.18.0.1:8000/page', \
             r => r.pipe(require('fs').createWriteStream('{out}')))"
        );
        stage.run(&["node", "-e", &program]).finish(PATIENCE).expect_success("node");
        content::assert_same(&stage.served("page"), &stage.path("by-node"));
        server.terminate();
        inspect::wait_for_rest(stage);
    });
}

const JAVA_SERVER: &str = r#"
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.file.*;
import java.util.concurrent.Executors;

public class Server {
    public static void main(String[] words) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("198.18.0.2", 8080), 100);
        server.createContext("/", exchange -> {
            byte[] body = Files.readAllBytes(Path.of(words[0] + exchange.getRequestURI().getPath()));
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
    }
}
"#;

#[test]
fn java_serves() {
    on_stage("java_serves", &["java", "curl"], |stage| {
        content::write(&stage.served("page"), SIZE);
        let source = stage.path("Server.java");
        fs::write(&source, JAVA_SERVER).expect("write the program");
        let _service = stage.serve();
        let (source, root) = (source.display().to_string(), stage.text("root"));
        let mut server = stage.run(&["java", &source, &root]);
        check_server(stage, service(8080), &mut server);
        server.terminate();
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn wget_fetches() {
    on_stage("wget_fetches", &["wget", "python3"], |stage| {
        content::write(&stage.served("page"), SIZE);
        let _service = stage.serve();
        let _kernel = kernel_server(stage);
        let (out, url) = (stage.text("by-wget"), http::url(host(8000), "page"));
        let words = ["wget", "--quiet", "--no-proxy", "--output-document", &out, &url];
        stage.run(&words).finish(PATIENCE).expect_success("wget");
        content::assert_same(&stage.served("page"), &stage.path("by-wget"));
    });
}

#[test]
fn openssl_serves_tls() {
    on_stage("openssl_serves_tls", &["openssl", "curl"], |stage| {
        content::write(&stage.served("page"), SIZE);
        let (key, certificate) = (stage.text("key.pem"), stage.text("certificate.pem"));
        let request =
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test"];
        let files = ["-keyout", &key, "-out", &certificate, "-days", "2"];
        let words = [&request[..], &files].concat();
        stage.output(&words, PATIENCE).expect_success("make a certificate");
        let _service = stage.serve();
        let mut command = stage.haypile("run");
        command.args(["--", "openssl", "s_server", "-accept", "198.18.0.2:8443", "-WWW", "-quiet"]);
        command.args(["-cert", &certificate, "-key", &key]).current_dir(stage.path("root"));
        let mut server = stage.start_command("openssl", command);
        stage.wait_for_listener(service(8443), &mut server);
        let out = stage.text("fetched");
        let words = [&http::CURL[..], &["20", "--insecure", "--output", &out]].concat();
        let words = [&words[..], &["https://198.18.0.2:8443/page"]].concat();
        for _ in 0..3 {
            stage.output(&words, PATIENCE).expect_success("curl with TLS");
            content::assert_same(&stage.served("page"), &stage.path("fetched"));
        }
    });
}

#[test]
fn socat_serves_and_connects() {
    on_stage("socat_serves_and_connects", &["socat"], |stage| {
        content::write(&stage.served("page"), SIZE);
        let _service = stage.serve();
        let echo = ["TCP-LISTEN:8080,bind=198.18.0.2,fork,reuseaddr", "EXEC:cat"];
        let mut server = stage.run(&["socat", echo[0], echo[1]]);
        stage.wait_for_listener(service(8080), &mut server);
        let mut near = Command::new("socat");
        near.args(["-t", "10", "-", "TCP:198.18.0.2:8080"]);
        check_echo(stage, "socat", near);
        let kernel = ["TCP-LISTEN:8000,bind=198.18.0.1,fork,reuseaddr", "EXEC:cat"];
        let mut peer = stage.start(&["socat", kernel[0], kernel[1]]);
        stage.wait_for_listener(host(8000), &mut peer);
        let mut far = stage.haypile("run");
        far.args(["--quiet", "--", "socat", "-t", "10", "-", "TCP:198.18.0.1:8000"]);
        check_echo(stage, "run-socat", far);
        server.terminate();
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn perl_serves_from_forked_children() {
    on_stage("perl_serves_from_forked_children", &["perl", "socat"], |stage| {
        content::write(&stage.served("page"), SIZE);
        let _service = stage.serve();
        let program = "$s = IO::Socket::INET->new(LocalAddr => '198.18.0.2', LocalPort => 8080, \
                       Listen => 5, ReuseAddr => 1) or die $!; $SIG{CHLD} = 'IGNORE'; \
                       while ($c = $s->accept) { if (!fork) { while (sysread($c, $b, 65536)) \
                       { $o = 0; $o += syswrite($c, $b, length($b) - $o, $o) \
                       while $o < length($b) } exit } close $c }";
        let mut server = stage.run(&["perl", "-MIO::Socket::INET", "-e", program]);
        stage.wait_for_listener(service(8080), &mut server);
        let mut near = Command::new("socat");
        near.args(["-t", "10", "-", "TCP:198.18.0.2:8080"]);
        check_echo(stage, "socat", near);
        server.terminate();
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn git_clones() {
    on_stage("git_clones", &["git"], |stage| {
        content::write(&stage.served("page"), SIZE);
        let root = stage.text("root");
        let git = |words: &[&str]| {
            let who = ["-c", "user.name=test", "-c", "user.email=test@localhost"];
            let words = [&["git", "-C", &root][..], &who, words].concat();
            stage.output(&words, PATIENCE).expect_success("git");
        };
        git(&["init", "--quiet"]);
        git(&["add", "page"]);
        git(&["commit", "--quiet", "--message", "One file"]);
        let _service = stage.serve();
        let base = format!("--base-path={}", stage.text(""));
        let words = ["git", "daemon", "--listen=198.18.0.1", "--reuseaddr", &base, "--export-all"];
        let mut daemon = stage.start(&words);
        stage.wait_for_listener(host(9418), &mut daemon);
        let clone = stage.text("clone");
        let words = ["git", "clone", "--quiet", "git://198.18.0.1/root", &clone];
        stage.run(&words).finish(PATIENCE).expect_success("git clone");
        content::assert_same(&stage.served("page"), &stage.path("clone/page"));
    });
}
