//! The command itself: services that stay, programs that join them, exit statuses, errors, ends.

use crate::support::process::{ended_by, send_signal};
use crate::support::stage::{INTERFACE, Stage, on_stage, service};
use crate::support::{PATIENCE, content, http, inspect, nginx, python, script, wait_until};
use std::time::Instant;

#[test]
fn sigterm_ends_a_service_cleanly() {
    on_stage("sigterm_ends_a_service_cleanly", &["nginx", "curl"], |stage| {
        content::write(&stage.served("page"), 100_000);
        for signal in ["TERM", "INT"] {
            let service_process = stage.serve();
            assert_eq!(stage.interfaces().len(), 1);
            let server = nginx::start(stage, 8080);
            http::fetch(stage, &http::url(service(8080), "page"), &stage.path("fetched"), 60);
            let asked = Instant::now();
            service_process.signal(signal);
            let ended = service_process.finish(PATIENCE);
            let seconds = asked.elapsed().as_secs_f64();
            assert_eq!(ended.status.code(), Some(0), "SIG{signal}: {}", ended.err);
            // After that its server would be killed.
            assert!(seconds < 5.0, "SIG{signal}: ended after {seconds:.2} s");
            stage.say(&format!("SIG{signal}: ended after {seconds:.2} s"));
            assert_eq!(stage.interfaces(), Vec::<String>::new());
            let sockets: Vec<String> =
                stage.control_files().into_iter().filter(|name| name.ends_with(".sock")).collect();
            assert_eq!(sockets, Vec::<String>::new());
            server.terminate();
        }
    });
}

/// Commands about a service of which `process` is stopped: the same line and status from all, soon.
#[track_caller]
fn assert_told_of(stage: &Stage, process: u32, which: &str, stopped_at: &str) {
    let other = ["--link", "tap:haypile1"];
    let wanted: [(&str, &[&str]); 4] =
        [("status", &[]), ("ss", &["--json"]), ("run", &["--", "true"]), ("serve", &other)];
    for (subcommand, words) in wanted {
        // What a stopped server has to do with another service of the directory nobody asks.
        if subcommand == "serve" && which != "its supervisor" {
            continue;
        }
        let mut command = stage.haypile(subcommand);
        command.args(words);
        let asked = Instant::now();
        let told = stage.start_command(subcommand, command).finish(PATIENCE);
        let seconds = asked.elapsed().as_secs_f64();
        assert!(seconds < 6.0, "{subcommand}, {stopped_at}: {seconds:.1} s, {}", told.err);
        assert_eq!(told.status.code(), Some(1), "{subcommand}, {stopped_at}: {}", told.err);
        assert_eq!(told.err.lines().count(), 1, "{subcommand}, {stopped_at}: {}", told.err);
        let reason = format!("process {process}, {which}, is stopped");
        for text in [&reason, &format!("kill -CONT {process}"), &format!("kill -KILL {process}")] {
            assert!(told.err.contains(text.as_str()), "{subcommand}, {stopped_at}: {}", told.err);
        }
        stage.say(&format!("{stopped_at}: {subcommand} after {seconds:.1} s: {}", told.err.trim()));
    }
}

#[test]
fn a_stopped_service_is_named_soon() {
    on_stage("a_stopped_service_is_named_soon", &[], |stage| {
        let service = stage.serve_with(&["--plan", "TS2LS2CM2"]);
        service.signal("STOP");
        assert_told_of(stage, service.pid(), "its supervisor", "while it runs");
        service.signal("CONT");
        stage.ask("status", &[]).expect("it goes on");
        let is_server = |pid: &u32| inspect::describe(*pid).ends_with(" server)");
        let servers: Vec<u32> =
            inspect::children_of(service.pid()).into_iter().filter(is_server).collect();
        assert_eq!(servers.len(), 2, "{servers:?}");
        for server in servers {
            send_signal("STOP", &server.to_string());
            assert_told_of(stage, server, "one of its servers", "a server");
            send_signal("CONT", &server.to_string());
            stage.ask("status", &[]).expect("it goes on");
        }
        service.terminate();
        // Wherever in its start it is then.
        let mut command = stage.haypile("serve");
        command.args(["--link", &format!("tap:{INTERFACE}")]);
        let service = stage.start_command("serve", command);
        wait_until("it has the directory", PATIENCE, || {
            let text = std::fs::read_to_string(stage.control().join("lock")).ok()?;
            (!text.is_empty()).then_some(())
        });
        service.signal("STOP");
        assert_told_of(stage, service.pid(), "its supervisor", "while it starts");
        service.signal("CONT");
        wait_until("it has started after all", PATIENCE, || stage.ask("status", &[]).ok());
        service.terminate();
    });
}

#[test]
fn a_private_service_that_is_stopped_while_it_starts_is_given_up() {
    on_stage("a_private_service_that_is_stopped_while_it_starts_is_given_up", &[], |stage| {
        // It may have started before it is stopped.
        for trial in 1..=10 {
            let run = stage.run_alone(&["true"]);
            let service = wait_until("it starts a service", PATIENCE, || {
                let serves = |pid: &u32| inspect::describe(*pid).contains(" serve ");
                inspect::children_of(run.pid()).into_iter().find(serves)
            });
            send_signal("STOP", &service.to_string());
            let stopped = Instant::now();
            let told = run.finish(PATIENCE);
            let seconds = stopped.elapsed().as_secs_f64();
            send_signal("CONT", &service.to_string());
            if told.status.success() {
                continue;
            }
            assert!(seconds < 6.0, "{seconds:.1} s: {}", told.err);
            assert_eq!(told.status.code(), Some(1), "{}", told.err);
            assert!(told.err.contains(&format!("process {service} was stopped")), "{}", told.err);
            return stage.say(&format!("trial {trial}: {seconds:.1} s: {}", told.err.trim()));
        }
        panic!("every service had started before it was stopped");
    });
}

#[test]
fn two_programs_share_a_service() {
    on_stage("two_programs_share_a_service", &["nginx", "python3", "curl"], |stage| {
        content::write(&stage.served("page"), 100_000);
        let _service = stage.serve();
        let _nginx = nginx::start(stage, 8080);
        let root = stage.text("root");
        let mut python_server =
            stage.run(&[python(), &script("http_server.py"), "198.18.0.2", "8081", &root]);
        python_server.wait_for_output("ready");
        for port in [8080, 8081] {
            http::fetch(stage, &http::url(service(port), "page"), &stage.path("fetched"), 60);
            content::assert_same(&stage.served("page"), &stage.path("fetched"));
        }
        let listed = inspect::sockets(stage);
        let owner = |port: u16| {
            let end = format!(":{port}");
            let mut listeners = listed.iter().filter(|socket| {
                inspect::state(socket) == "LISTEN"
                    && socket["local"].as_str().is_some_and(|local| local.ends_with(&end))
            });
            let listener = listeners.next().unwrap_or_else(|| panic!("{end} in {listed:?}"));
            listener["program"].as_str().map(str::to_string)
        };
        // A listener that master and workers share names none of them.
        assert!(owner(8080).is_none_or(|program| program == "nginx"), "{listed:?}");
        assert!(owner(8081).is_some_and(|program| program.contains("python")), "{listed:?}");
        let status = stage.ask("status", &[]).expect("haypile status --json");
        let attached = status["processes"].as_array().cloned().unwrap_or_default();
        let count = |name: &str| {
            let program = |row: &serde_json::Value| {
                row["program"].as_str().is_some_and(|program| program.contains(name))
            };
            attached.iter().filter(|row| program(row)).count()
        };
        assert!(count("nginx") >= 1 && count("python") >= 1, "{attached:?}");
    });
}

#[test]
fn exit_statuses_are_passed_on() {
    on_stage("exit_statuses_are_passed_on", &[], |stage| {
        let _service = stage.serve();
        for code in [0, 1, 7, 200] {
            let line = format!("exit {code}");
            let ended = stage.run(&["sh", "-c", &line]).finish(PATIENCE);
            assert_eq!(ended.status.code(), Some(code), "{}", ended.err);
        }
        let killed = stage.run(&["sh", "-c", "kill -TERM $$"]).finish(PATIENCE).status;
        let as_shells_do = killed.code() == Some(128 + 15) || ended_by(killed) == Some(15);
        assert!(as_shells_do, "a program that SIGTERM ended: {killed}");
    });
}

#[test]
fn a_private_service_ends_with_its_program() {
    on_stage("a_private_service_ends_with_its_program", &["python3", "curl"], |stage| {
        let ended = stage.run_alone(&["sh", "-c", "exit 9"]).finish(PATIENCE);
        assert_eq!(ended.status.code(), Some(9), "{}", ended.err);
        wait_for_the_end(stage);
        content::write(&stage.served("page"), 100_000);
        let root = stage.text("root");
        let words = [python(), "-m", "http.server", "-b", "198.18.0.2", "-d", &root, "8080"];
        let mut server = stage.run_alone(&words);
        stage.wait_for_listener(service(8080), &mut server);
        http::fetch(stage, &http::url(service(8080), "page"), &stage.path("fetched"), 60);
        // A terminal's Ctrl-C reaches the whole group.
        crate::support::process::send_signal("INT", &format!("-{}", server.pid()));
        server.finish(PATIENCE);
        wait_for_the_end(stage);
    });
}

fn wait_for_the_end(stage: &Stage) {
    wait_until("everything has ended", PATIENCE, || {
        (stage.processes().is_empty() && stage.interfaces().is_empty()).then_some(())
    });
}

#[test]
fn mistakes_are_told_in_one_line() {
    on_stage("mistakes_are_told_in_one_line", &[], |stage| {
        let mistakes: [(&str, &[&str], i32); 12] = [
            ("run", &["--quiet", "--", "no-such-program-anywhere"], 127),
            ("run", &["--quiet", "--", "/etc/passwd"], 126),
            ("run", &["--mtu", "5", "--", "true"], 2),
            ("ss", &[], 1),
            ("serve", &["--addr", "198.18.0.999/24"], 2),
            ("serve", &["--addr", "127.0.0.5/8"], 2),
            ("serve", &["--addr", "224.0.0.1/24"], 2),
            ("serve", &["--addr", "10.9.0.2/24", "--host-addr", "10.9.0.2/24"], 2),
            ("serve", &["--addr", "10.9.0.2/24", "--addr", "10.9.0.2/16"], 2),
            ("serve", &["--link", "tap:a-name-that-is-much-too-long"], 2),
            ("serve", &["--plan", "TS0LS1CM1"], 2),
            ("serve", &["--config", "/no/such/file"], 1),
        ];
        for (subcommand, words, code) in mistakes {
            let mut command = stage.haypile(subcommand);
            command.args(words);
            let ended = stage.start_command("mistake", command).finish(PATIENCE);
            let what = format!("{subcommand} {words:?}");
            assert_eq!(ended.status.code(), Some(code), "{what}: {}", ended.err);
            assert_eq!(ended.err.trim().lines().count(), 1, "{what}:\n{}", ended.err);
            assert!(!ended.err.contains("panicked"), "{what}:\n{}", ended.err);
            wait_for_the_end(stage);
        }
        let ended = stage.start_command("usage", stage.haypile("no-such-subcommand"));
        assert_eq!(ended.finish(PATIENCE).status.code(), Some(2));
    });
}

#[test]
fn refusals_and_lost_output_are_told() {
    on_stage("refusals_and_lost_output_are_told", &[], |stage| {
        let _service = stage.serve();
        let mut refused = stage.haypile("capture");
        refused.arg("--stop");
        let ended = stage.start_command("refused", refused).finish(PATIENCE);
        assert_eq!(ended.status.code(), Some(1), "{}", ended.err);
        // The service runs: nobody is told to start one.
        assert!(!ended.err.contains("start one with haypile serve"), "{}", ended.err);
        for subcommand in ["status", "ss", "balance"] {
            let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
            let mut command = stage.haypile(subcommand);
            let output = command.stdout(full).output().expect("started");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{subcommand}: {said}");
            assert!(said.contains("write the output"), "{subcommand}: {said}");
        }
    });
}

#[test]
fn the_doctor_finds_a_machine_that_carries_these_tests_fit() {
    on_stage("the_doctor_finds_a_machine_that_carries_these_tests_fit", &[], |stage| {
        let before = stage.interfaces();
        let report = stage.ask("doctor", &[]).expect("haypile doctor --json");
        assert_eq!(report["runs"], true, "{report}");
        let checks = report["checks"].as_array().expect("checks");
        let verdict = |name: &str| {
            let check = checks.iter().find(|check| check["name"] == name);
            check.unwrap_or_else(|| panic!("{name} in {report}"))["verdict"].clone()
        };
        for name in ["kernel", "TAP device", "link tap", "preload library"] {
            assert_eq!(verdict(name), "good", "{name} in {report}");
        }
        assert_eq!(stage.interfaces(), before, "its trials leave nothing");
    });
}

#[test]
fn addresses_that_were_kept_for_later_are_addresses() {
    on_stage("addresses_that_were_kept_for_later_are_addresses", &["python3"], |stage| {
        let _service = stage.serve_with(&["--addr", "240.1.2.3/24", "--host-addr", "240.1.2.1/24"]);
        let words = [python(), &script("asyncio_echo.py"), "server", "plain", "0.0.0.0", "8080"];
        let mut server = stage.run(&words);
        stage.wait_for_listener("240.1.2.3:8080".parse().expect("an address"), &mut server);
        // The other way: a program on Haypile connects to the host.
        let host = std::net::TcpListener::bind("240.1.2.1:0").expect("bind");
        let port = host.local_addr().expect("an address").port();
        let program = format!(
            "import socket; print(socket.create_connection(('240.1.2.1', {port}), 9).getsockname()[0])"
        );
        let client = stage.run(&[python(), "-c", &program]);
        let done = client.finish(PATIENCE).expect_success("a connection");
        assert_eq!(done.out.trim(), "240.1.2.3");
    });
}

#[test]
fn programs_see_the_limits_that_they_set() {
    on_stage("programs_see_the_limits_that_they_set", &["python3"], |stage| {
        let _service = stage.serve();
        let program = r#"
import os, resource, socket, sys
server = socket.create_server(("198.18.0.2", 8123))
if len(sys.argv) == 1:
    print(resource.getrlimit(resource.RLIMIT_AS), resource.getrlimit(resource.RLIMIT_NOFILE))
    for limits in [(6 << 30, 7 << 30), (5 << 30, (7 << 30) - 5), (4 << 30, 6 << 30)]:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        print(resource.getrlimit(resource.RLIMIT_AS), resource.prlimit(0, resource.RLIMIT_AS))
    print(resource.prlimit(0, resource.RLIMIT_AS, (3 << 30, 5 << 30)))
    server.close()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, sys.argv[0], "again"])
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, limits)
print(limits, resource.getrlimit(resource.RLIMIT_AS))
"#;
        let file = stage.path("limits.py");
        std::fs::write(&file, program).expect("write a program");
        let file = file.to_str().expect("a path").to_string();
        let seen = stage.run(&[python(), &file]).finish(PATIENCE).expect_success("on Haypile");
        let elsewhere = program.replace("198.18.0.2", "127.0.0.1");
        std::fs::write(&file, elsewhere).expect("write a program");
        let kernels = stage.output(&[python(), &file], PATIENCE).expect_success("the kernel's");
        assert_eq!(seen.out, kernels.out);
    });
}
