//! Clients on Haypile against servers on the kernel's side, and programs on Haypile that talk to each other.

use crate::support::process::Process;
use crate::support::stage::{HOST6, Stage, host, on_stage, service};
use crate::support::{PATIENCE, content, http, inspect, nginx, python, script};
use std::net::SocketAddr;
use std::time::Duration;

/// A python server with uploads on the kernel's side.
fn kernel_server(stage: &Stage, address: &str, port: &str) -> Process {
    let mut server =
        stage.start(&[python(), &script("http_server.py"), address, port, &stage.text("root")]);
    server.wait_for_output("ready");
    server
}

/// curl on the test's service.
fn run_curl(stage: &Stage, words: &[&str]) {
    let words = [&http::CURL[..], &["60"], words].concat();
    stage.run(&words).finish(Duration::from_secs(65)).expect_success("curl on haypile");
}

#[test]
fn curl_downloads_and_uploads() {
    on_stage("curl_downloads_and_uploads", &["curl", "python3"], |stage| {
        let _service = stage.serve();
        let _server = kernel_server(stage, "198.18.0.1", "8000");
        let _server6 = kernel_server(stage, "2001:2::1", "8000");
        for size in [0, 1, 1460, 100_000, 20 << 20] {
            let name = format!("down{size}");
            content::write(&stage.served(&name), size);
            let up = stage.path(&format!("up{size}"));
            content::write(&up, size);
            for address in [host(8000), SocketAddr::new(HOST6.into(), 8000)] {
                let out = stage.text("fetched");
                run_curl(stage, &["--output", &out, &http::url(address, &name)]);
                content::assert_same(&stage.served(&name), &stage.path("fetched"));
                let target = http::url(address, &format!("up{size}"));
                run_curl(stage, &["--upload-file", &up.display().to_string(), &target]);
                content::assert_same(&up, &stage.served(&format!("up{size}")));
                std::fs::remove_file(stage.served(&format!("up{size}"))).expect("remove upload");
            }
        }
        inspect::wait_for_rest(stage);
    });
}

#[test]
fn a_client_hears_of_refusal_and_of_silence() {
    on_stage("a_client_hears_of_refusal_and_of_silence", &["python3"], |stage| {
        let _service = stage.serve();
        let try_connect = |address: &str, timeout: &str| {
            let program = format!(
                "import socket\ntry:\n socket.create_connection(('{address}', 9), {timeout})\n\
                 except OSError as error: print(type(error).__name__, error.errno)"
            );
            let run = stage.run(&[python(), "-c", &program]).finish(PATIENCE);
            run.expect_success("python").out.trim().to_string()
        };
        assert_eq!(try_connect("198.18.0.1", "10"), "ConnectionRefusedError 111");
        assert_eq!(try_connect("2001:2::1", "10"), "ConnectionRefusedError 111");
        // Nobody has this address: the program's own limit ends the wait, or the missing neighbour.
        let answer = try_connect("198.18.0.77", "1");
        assert!(["TimeoutError None", "OSError 113"].contains(&answer.as_str()), "{answer}");
    });
}

#[test]
fn two_programs_on_haypile_talk_to_each_other() {
    on_stage("two_programs_on_haypile_talk_to_each_other", &["nginx", "curl"], |stage| {
        content::write(&stage.served("page"), 3 << 20);
        let _service = stage.serve();
        let _server = nginx::start(stage, 8080);
        for _ in 0..5 {
            let out = stage.text("fetched");
            run_curl(stage, &["--output", &out, &http::url(service(8080), "page")]);
            content::assert_same(&stage.served("page"), &stage.path("fetched"));
        }
        inspect::wait_for_rest(stage);
    });
}
