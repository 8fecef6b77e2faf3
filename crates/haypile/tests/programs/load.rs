//! Many requests: ab and wrk against nginx on Haypile, what is left afterwards, clients that never speak,
//! and what an idle service costs.

use crate::support::stage::{Stage, on_stage, service};
use crate::support::{content, http, inspect, nginx, python, script, setting};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

/// The number that ab prints behind `label`.
fn figure_of_ab(output: &str, label: &str) -> f64 {
    let line = output.lines().find(|line| line.starts_with(label));
    let line = line.unwrap_or_else(|| panic!("ab printed no '{label}':\n{output}"));
    let number = line[label.len()..].split_whitespace().next().and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("no number in '{line}'"))
}

fn run_ab(stage: &Stage, requests: u64, clients: u64, keep_alive: bool) {
    let (requests_text, clients_text) = (requests.to_string(), clients.to_string());
    let url = http::url(service(8080), "small");
    let mut words = vec!["ab", "-q", "-s", "60", "-n", &requests_text, "-c", &clients_text];
    if keep_alive {
        words.push("-k");
    }
    words.push(&url);
    let limit = Duration::from_secs(60 + requests / 500);
    let output = stage.output(&words, limit).expect_success("ab").out;
    assert_eq!(figure_of_ab(&output, "Failed requests:"), 0.0, "{output}");
    assert_eq!(figure_of_ab(&output, "Complete requests:"), requests as f64, "{output}");
    assert!(!output.contains("Non-2xx"), "{output}");
    let rate = figure_of_ab(&output, "Requests per second:");
    let kind = if keep_alive { "kept connections" } else { "a connection each" };
    stage.say(&format!("ab: {requests} requests by {clients} clients, {kind}: {rate:.0}/s"));
}

#[test]
fn ab_has_no_failed_request() {
    on_stage("ab_has_no_failed_request", &["nginx", "ab"], |stage| {
        content::write(&stage.served("small"), 512);
        let _service = stage.serve();
        let _server = nginx::start(stage, 8080);
        let requests = setting("HAYPILE_E2E_REQUESTS", 20_000);
        run_ab(stage, requests, 50, false);
        run_ab(stage, requests, 50, true);
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn wrk_with_many_connections_has_no_error() {
    on_stage("wrk_with_many_connections_has_no_error", &["nginx", "wrk"], |stage| {
        content::write(&stage.served("small"), 512);
        let _service = stage.serve();
        let _server = nginx::start(stage, 8080);
        let url = http::url(service(8080), "small");
        let words =
            ["wrk", "-t", "2", "-c", "500", "-d", "5", "--timeout", "30", "--latency", &url];
        let output = stage.output(&words, Duration::from_secs(60)).expect_success("wrk").out;
        assert!(!output.contains("Socket errors"), "{output}");
        assert!(!output.contains("Non-2xx"), "{output}");
        for label in ["Requests/sec:", "50%", "99%"] {
            let line = output.lines().find(|line| line.trim().starts_with(label));
            stage.say(&format!("wrk -c 500: {}", line.unwrap_or("?").trim()));
        }
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn thousands_of_clients_at_once_are_all_served() {
    let needs = ["nginx", "wrk", "sh"];
    on_stage("thousands_of_clients_at_once_are_all_served", &needs, |stage| {
        content::write(&stage.served("small"), 512);
        let _service = stage.serve();
        let _server = nginx::start(stage, 8080);
        let url = http::url(service(8080), "small");
        // A descriptor for each client, which is more than most shells start with.
        let line = format!("ulimit -n 10000 && exec wrk -t 2 -c 4000 -d 4 --latency {url}");
        let output = stage.output(&["sh", "-c", &line], Duration::from_secs(60));
        if output.err.contains("ulimit") {
            return stage.say("skipped: may not open 10000 descriptors");
        }
        let output = output.expect_success("wrk").out;
        // Slow answers are shown by the figures; what was reset or refused is an error.
        let errors = output.lines().find(|line| line.contains("Socket errors"));
        assert!(errors.is_none_or(|line| line.contains("connect 0, read 0, write 0")), "{output}");
        assert!(!output.contains("Non-2xx"), "{output}");
        for label in ["Requests/sec:", "50%", "99%"] {
            let line = output.lines().find(|line| line.trim().starts_with(label));
            stage.say(&format!("wrk -c 4000: {}", line.unwrap_or("?").trim()));
        }
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn clients_that_never_speak_hold_up_nobody() {
    on_stage("clients_that_never_speak_hold_up_nobody", &["nginx", "python3", "curl"], |stage| {
        content::write(&stage.served("page"), 30_000);
        let _service = stage.serve();
        let _nginx = nginx::start(stage, 8080);
        let root = stage.text("root");
        let mut threads =
            stage.run(&[python(), &script("http_server.py"), "198.18.0.2", "8081", &root]);
        threads.wait_for_output("ready");
        for port in [8080, 8081] {
            let limit = Duration::from_secs(5);
            let silent: Vec<TcpStream> = (0..200)
                .map(|_| TcpStream::connect_timeout(&service(port), limit).expect("connect"))
                .collect();
            let started = Instant::now();
            for _ in 0..20 {
                let file = stage.path("fetched");
                http::fetch(stage, &http::url(service(port), "page"), &file, 60);
                content::assert_same(&stage.served("page"), &file);
            }
            let each = started.elapsed().as_secs_f64() * 1000.0 / 20.0;
            stage.say(&format!("port {port}: {each:.1} ms a fetch beside 200 silent clients"));
            drop(silent);
        }
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn a_listener_that_never_accepts_hurts_only_itself() {
    let needs = ["nginx", "python3", "curl"];
    on_stage("a_listener_that_never_accepts_hurts_only_itself", &needs, |stage| {
        content::write(&stage.served("page"), 30_000);
        let _service = stage.serve();
        let _server = nginx::start(stage, 8080);
        let stuck = "import socket, time; l = socket.create_server(('198.18.0.2', 8082), backlog=5); \
                     print('ready', flush=True); time.sleep(600)";
        let mut stuck = stage.run(&[python(), "-c", stuck]);
        stuck.wait_for_output("ready");
        // More than its backlog; those beyond it may wait in vain, so none may take long.
        let limit = Duration::from_millis(100);
        let held: Vec<_> = (0..30)
            .filter_map(|_| TcpStream::connect_timeout(&service(8082), limit).ok())
            .collect();
        stage.say(&format!("{} of 30 connections to a backlog of 5 completed", held.len()));
        for _ in 0..10 {
            let file = stage.path("fetched");
            http::fetch(stage, &http::url(service(8080), "page"), &file, 60);
            content::assert_same(&stage.served("page"), &file);
        }
        drop(held);
        stuck.terminate();
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn an_idle_service_sleeps() {
    on_stage("an_idle_service_sleeps", &["nginx", "curl"], |stage| {
        content::write(&stage.served("page"), 30_000);
        let service_process = stage.serve();
        let _server = nginx::start(stage, 8080);
        http::fetch(stage, &http::url(service(8080), "page"), &stage.path("fetched"), 60);
        inspect::wait_for_rest(stage);
        let workers = nginx::workers(nginx::master(stage, "nginx-8080"));
        let all = || -> f64 { workers.iter().map(|pid| inspect::processor_seconds(*pid)).sum() };
        // The supervisor, its servers and the guardian.
        let mut parts = inspect::children_of(service_process.pid());
        parts.push(service_process.pid());
        let service_seconds =
            || -> f64 { parts.iter().map(|pid| inspect::processor_seconds(*pid)).sum() };
        let (service_before, workers_before) = (service_seconds(), all());
        let started = Instant::now();
        // The time over which is measured, not a wait for something to happen.
        thread::sleep(Duration::from_secs(setting("HAYPILE_E2E_IDLE", 5)));
        let seconds = started.elapsed().as_secs_f64();
        let percent = |used: f64| used / seconds * 100.0;
        let service_share = percent(service_seconds() - service_before);
        let workers_share = percent(all() - workers_before);
        stage.say(&format!(
            "idle for {seconds:.0} s: service {service_share:.2} % of a core, \
             nginx workers {workers_share:.2} %"
        ));
        assert!(service_share < 5.0, "an idle service used {service_share:.2} % of a core");
        assert!(workers_share < 5.0, "idle workers used {workers_share:.2} % of a core");
    });
}
