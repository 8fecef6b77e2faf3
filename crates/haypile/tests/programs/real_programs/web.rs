//! Web servers, proxies and clients. Servers are loaded by curl, clients ask nginx or python.

use super::world::World;
use crate::support::http::CURL;
use crate::support::process::Process;
use crate::support::{content, python, script};
use std::fs;

/// Fetches the page whole, in parts and in many connections at a time, and compares.
fn check_by_curl(world: &World<'_>, port: u16) -> String {
    let url = format!("http://{}/page", world.at(port));
    let curl = [&CURL[..], &["30"]].concat();
    for _ in 0..3 {
        world.ask(&[&curl[..], &["--output", "whole", &url]].concat());
        world.assert_page("whole");
    }
    let parallel = ["--parallel", "--parallel-max", "10", "--output", "p#1"];
    let many = format!("{url}?[1-10]");
    let glob: Vec<&str> = curl.iter().copied().filter(|word| *word != "--globoff").collect();
    world.ask(&[&glob[..], &parallel, &[&many]].concat());
    for number in 1..=10 {
        world.assert_page(&format!("p{number}"));
    }
    "13 pages, all the same".to_string()
}

/// One range in the middle of the page.
fn check_range(world: &World<'_>, port: u16) {
    let url = format!("http://{}/page", world.at(port));
    let range = ["30", "--range", "1000001-3000000", "--output", "part", &url];
    world.ask(&[&CURL[..], &range].concat());
    let (page, part) = (fs::read(world.page()), fs::read(world.path("part")));
    let page = page.expect("read the page");
    assert!(part.expect("read the part") == page[1_000_001..=3_000_000], "another range came");
}

/// The configuration of an nginx in the case's folder.
fn nginx_words(world: &World<'_>) -> Vec<String> {
    let (work, root) = (world.text(""), world.root());
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {work}/{kind};\n"))
        .collect();
    let config = world.write(
        "nginx.conf",
        &format!(
            "daemon off; worker_processes 2; user root; pid {work}/nginx.pid; error_log stderr warn;\n\
             events {{ worker_connections 512; }}\n\
             http {{ access_log off; {paths} sendfile on; tcp_nopush on;\n\
             keepalive_requests 1000000;\n\
             server {{ listen {}; root {root}; }} }}\n",
            world.at(world.port)
        ),
    );
    let words = ["nginx", "-p", &work, "-c", &config, "-e", "stderr"];
    words.map(str::to_string).to_vec()
}

fn start_nginx(world: &World<'_>) -> Process {
    let words = nginx_words(world);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    world.serve(&words, world.port)
}

/// sendfile and `TCP_CORK`, two workers on one inherited listener.
pub fn nginx(world: &World<'_>) -> String {
    let _server = start_nginx(world);
    check_range(world, world.port);
    check_by_curl(world, world.port)
}

pub fn lighttpd(world: &World<'_>) -> String {
    let (address, port, root) = (world.address(), world.port, world.root());
    let config = world.write(
        "lighttpd.conf",
        &format!(
            "server.document-root = \"{root}\"\nserver.bind = \"{address}\"\nserver.port = {port}\n\
             server.upload-dirs = ( \"{}\" )\n",
            world.text("")
        ),
    );
    let _server = world.serve(&["lighttpd", "-D", "-f", &config], port);
    check_range(world, port);
    check_by_curl(world, port)
}

/// A proxy: accepts on its side, connects to a server at the client's place.
pub fn haproxy(world: &World<'_>) -> String {
    let far = world.far_address().to_string();
    let (port, behind) = (world.port, world.port + 1);
    let (program, root) = (script("http_server.py"), world.root());
    let _behind = world.serve_far(&[python(), &program, &far, &behind.to_string(), &root], behind);
    let config = world.write(
        "haproxy.cfg",
        &format!(
            "global\n maxconn 200\ndefaults\n mode http\n timeout connect 10s\n timeout client 20s\n \
             timeout server 20s\n option splice-auto\nfrontend near\n bind {}\n default_backend far\n\
             backend far\n server one {far}:{behind}\n",
            world.at(port)
        ),
    );
    let _server = world.serve(&["haproxy", "-db", "-f", &config], port);
    check_by_curl(world, port)
}

pub fn python_threads(world: &World<'_>) -> String {
    let (address, port) = (world.address().to_string(), world.port.to_string());
    let words = [python(), &script("http_server.py"), &address, &port, &world.root()];
    let _server = world.serve(&words, world.port);
    check_by_curl(world, world.port)
}

pub fn node_server(world: &World<'_>) -> String {
    let program = format!(
        "const fs = require('fs'); require('http').createServer((q, s) => \
         fs.createReadStream('{}').pipe(s)).listen({}, '{}')",
        world.page().display(),
        world.port,
        world.address()
    );
    let _server = world.serve(&["node", "-e", &program], world.port);
    check_by_curl(world, world.port)
}

pub fn node_client(world: &World<'_>) -> String {
    let _server = start_nginx(world);
    let program = format!(
        "for (let i = 0; i < 8; i++) require('http').get('http://{}/page', \
         r => r.pipe(require('fs').createWriteStream('n' + i)))",
        world.at(world.port)
    );
    world.ask(&["node", "-e", &program]);
    for number in 0..8 {
        world.assert_page(&format!("n{number}"));
    }
    "8 pages, all the same".to_string()
}

const JAVA: &str = r#"
import java.net.*;
import java.net.http.*;
import java.nio.file.*;
import java.util.concurrent.Executors;
import com.sun.net.httpserver.HttpServer;

public class Page {
    public static void main(String[] words) throws Exception {
        if (words[0].equals("get")) {
            HttpClient client = HttpClient.newHttpClient();
            for (int i = 0; i < 5; i++) {
                HttpRequest request = HttpRequest.newBuilder(URI.create(words[1])).build();
                client.send(request, HttpResponse.BodyHandlers.ofFile(Path.of("j" + i)));
            }
            return;
        }
        InetSocketAddress at = new InetSocketAddress(words[1], Integer.parseInt(words[2]));
        HttpServer server = HttpServer.create(at, 100);
        byte[] page = Files.readAllBytes(Path.of(words[3]));
        server.createContext("/", exchange -> {
            exchange.sendResponseHeaders(200, page.length);
            exchange.getResponseBody().write(page);
            exchange.close();
        });
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
    }
}
"#;

/// Java's own HTTP server and its non-blocking client.
pub fn java(world: &World<'_>) -> String {
    let source = world.write("Page.java", JAVA);
    let (address, port) = (world.address().to_string(), world.port.to_string());
    let page = world.page().display().to_string();
    let _server = world.serve(&["java", &source, "serve", &address, &port, &page], world.port);
    let url = format!("http://{}/page", world.at(world.port));
    world.ask(&["java", &source, "get", &url]);
    for number in 0..5 {
        world.assert_page(&format!("j{number}"));
    }
    "5 pages, all the same".to_string()
}

/// Down and up, by a server that stores uploads.
pub fn curl(world: &World<'_>) -> String {
    let (address, port) = (world.address().to_string(), world.port.to_string());
    let up = world.text("root");
    fs::create_dir(&up).expect("make a folder for uploads");
    fs::copy(world.page(), world.path("root/page")).expect("copy the page");
    let words = [python(), &script("http_server.py"), &address, &port, &up];
    let _server = world.serve(&words, world.port);
    let told = check_by_curl(world, world.port);
    content::write(&world.path("up"), 3 << 20);
    let url = format!("http://{}/arrived", world.at(world.port));
    world.ask(&[&CURL[..], &["30", "--upload-file", "up", &url]].concat());
    content::assert_same(&world.path("up"), &world.path("root/arrived"));
    format!("{told}, one upload")
}

pub fn wget(world: &World<'_>) -> String {
    let _server = start_nginx(world);
    let url = format!("http://{}/page", world.at(world.port));
    let words = ["wget", "--quiet", "--no-proxy", "--tries=1", "--output-document", "got"];
    world.ask(&[&words[..], &[&url]].concat());
    world.assert_page("got");
    "one page, the same".to_string()
}

/// The number that follows a label in what a program told.
fn number_after(told: &str, label: &str) -> f64 {
    let rest = told.split_once(label).map_or("", |(_, rest)| rest);
    let word = rest.split_whitespace().next().unwrap_or_default();
    word.parse().unwrap_or_else(|_| panic!("no number after '{label}' in {told}"))
}

/// With and without keep-alive; ab counts failures and lengths that differ.
pub fn ab(world: &World<'_>) -> String {
    let _server = start_nginx(world);
    let url = format!("http://{}/small", world.at(world.port));
    let mut rates = Vec::new();
    for more in [&["-k"][..], &[]] {
        let words = [&["ab", "-q", "-n", "3000", "-c", "10"][..], more, &[&url]].concat();
        let told = world.ask(&words).out;
        assert_eq!(number_after(&told, "Failed requests:"), 0.0, "{told}");
        assert_eq!(number_after(&told, "Complete requests:"), 3000.0, "{told}");
        rates.push(format!("{:.0}", number_after(&told, "Requests per second:")));
    }
    format!("{} requests a second with keep-alive, without", rates.join(", "))
}

pub fn wrk(world: &World<'_>) -> String {
    let _server = start_nginx(world);
    let url = format!("http://{}/small", world.at(world.port));
    let told = world.ask(&["wrk", "-t2", "-c10", "-d1s", "--timeout", "30s", &url]).out;
    for failure in ["Socket errors", "Non-2xx"] {
        assert!(!told.contains(failure), "{told}");
    }
    format!("{:.0} requests a second", number_after(&told, "Requests/sec:"))
}
