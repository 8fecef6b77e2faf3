//! Services killed by -9: their guardians remove what they leave, and nothing that belongs to the next service.

use crate::support::process::{Process, send_signal};
use crate::support::random::Random;
use crate::support::stage::{INTERFACE, Stage, on_stage};
use crate::support::{PATIENCE, inspect, setting, wait_until};
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// The guardian that a service has started.
#[track_caller]
fn guardian_of(service: u32) -> u32 {
    wait_until(&format!("service {service} has a guardian"), PATIENCE, || {
        let guards = |pid: &u32| inspect::describe(*pid).contains(" guard ");
        inspect::children_of(service).into_iter().find(guards)
    })
}

/// The process id of the service in a directory.
fn service_in(directory: &Path) -> Option<u32> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_haypile"));
    let output =
        command.args(["status", "--json", "--control-dir"]).arg(directory).output().ok()?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    status["pid"].as_u64()?.try_into().ok()
}

fn names_in(directory: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

/// Waits until service, guardian, interface and directory are gone; `others` live on.
#[track_caller]
fn wait_until_nothing_is_left(stage: &Stage, directory: &Path, others: &[u32]) {
    wait_until("nothing of the killed service is left", PATIENCE, || {
        let mut processes = stage.processes().into_iter().filter(|pid| !others.contains(pid));
        let gone = processes.all(|pid| !inspect::is_alive(pid)) && stage.interfaces().is_empty();
        (gone && !directory.exists()).then_some(())
    });
}

#[test]
fn a_killed_service_leaves_nothing() {
    on_stage("a_killed_service_leaves_nothing", &[], |stage| {
        let service = stage.serve();
        let guardian = guardian_of(service.pid());
        service.signal("KILL");
        drop(service.finish(PATIENCE));
        let died = Instant::now();
        wait_until_nothing_is_left(stage, &stage.control(), &[]);
        let seconds = died.elapsed().as_secs_f64();
        stage.say(&format!("nothing is left after {seconds:.3} s"));
        assert!(!inspect::is_alive(guardian));
        // With everyone in its group, as from a shell.
        let service = stage.serve();
        service.kill_group();
        drop(service.finish(PATIENCE));
        wait_until_nothing_is_left(stage, &stage.control(), &[]);
    });
}

#[test]
fn a_directory_named_by_a_configuration_goes_too() {
    on_stage("a_directory_named_by_a_configuration_goes_too", &[], |stage| {
        let directory = stage.path("configured");
        let file = stage.path("haypile.toml");
        fs::write(&file, format!("control_dir = {:?}\n", directory.display())).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_haypile"));
        command.args(["serve", "--link", &format!("tap:{INTERFACE}"), "--config"]).arg(&file);
        let mut service = stage.start_command("serve", command);
        service.wait_for_output("ready");
        assert_eq!(service_in(&directory), Some(service.pid()));
        service.signal("KILL");
        drop(service.finish(PATIENCE));
        wait_until_nothing_is_left(stage, &directory, &[]);
    });
}

#[test]
fn what_was_in_the_directory_stays() {
    on_stage("what_was_in_the_directory_stays", &[], |stage| {
        fs::create_dir(stage.control()).expect("made");
        for (signal, precious) in [("KILL", true), ("KILL", false), ("TERM", false)] {
            let file = stage.control().join("precious");
            if precious {
                fs::write(&file, "").expect("written");
            }
            let service = stage.serve();
            service.signal(signal);
            drop(service.finish(PATIENCE));
            let left = if precious { vec![OsString::from("precious")] } else { Vec::new() };
            wait_until("only what was there is left", PATIENCE, || {
                (stage.processes().is_empty() && names_in(&stage.control()) == left).then_some(())
            });
            assert!(stage.control().exists());
            drop(fs::remove_file(file));
        }
    });
}

/// Kills the private service of a program that runs; the program lives on.
#[track_caller]
fn kill_private(stage: &Stage, mut program: Process) {
    let directory = wait_until("the program runs", PATIENCE, || {
        let environment = fs::read(format!("/proc/{}/environ", program.pid())).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let attach = variables.find_map(|variable| variable.strip_prefix(b"HAYPILE_ATTACH="))?;
        PathBuf::from(String::from_utf8_lossy(attach).as_ref()).parent().map(Path::to_path_buf)
    });
    let service = service_in(&directory).expect("a service");
    guardian_of(service);
    send_signal("KILL", &service.to_string());
    wait_until_nothing_is_left(stage, &directory, &[program.pid()]);
    program.assert_alive();
    program.signal("KILL");
    drop(program.finish(PATIENCE));
}

#[test]
fn a_killed_private_service_leaves_nothing() {
    on_stage("a_killed_private_service_leaves_nothing", &["sleep"], |stage| {
        kill_private(stage, stage.run_alone(&["sleep", "1000"]));
        // In a directory that it chooses itself.
        let mut command = Command::new(env!("CARGO_BIN_EXE_haypile"));
        command.args(["run", "--addr", "198.18.0.2/24", "--", "sleep", "1000"]);
        kill_private(stage, stage.start_command("run", command));
    });
}

/// Every service is started while the one before is dying or its guardian is at work.
#[test]
fn the_next_service_starts_at_once() {
    on_stage("the_next_service_starts_at_once", &["true"], |stage| {
        let mut service = stage.serve();
        for _ in 0..setting("HAYPILE_E2E_KILLS", 30) {
            let guardian = guardian_of(service.pid());
            service.signal("KILL");
            let next = stage.serve();
            drop(service.finish(PATIENCE));
            wait_until("the old guardian is gone", PATIENCE, || {
                (!inspect::is_alive(guardian)).then_some(())
            });
            assert_eq!(service_in(&stage.control()), Some(next.pid()));
            let mut names = names_in(&stage.control());
            names.sort();
            let expected =
                ["attach.sock", "control.sock", "door.sock", "libhaypile_shim.so", "lock"];
            assert_eq!(names, expected);
            stage.run(&["true"]).finish(PATIENCE).expect_success("a program on the new service");
            service = next;
        }
        service.signal("KILL");
        drop(service.finish(PATIENCE));
        wait_until_nothing_is_left(stage, &stage.control(), &[]);
    });
}

/// A private service takes the directory over from one that is dying, and from its own kind.
#[test]
fn the_next_private_service_starts_at_once() {
    on_stage("the_next_private_service_starts_at_once", &["sleep"], |stage| {
        for _ in 0..setting("HAYPILE_E2E_KILLS", 15) {
            let program = stage.run_alone(&["sleep", "1000"]);
            let first = wait_until("a service answers", PATIENCE, || service_in(&stage.control()));
            send_signal("KILL", &first.to_string());
            let ended = stage.run_alone(&["sleep", "0"]).finish(PATIENCE);
            ended.expect_success("a program on the next private service");
            wait_until_nothing_is_left(stage, &stage.control(), &[program.pid()]);
            program.signal("KILL");
            drop(program.finish(PATIENCE));
        }
    });
}

/// Also in the middle of its start, which takes some tens of milliseconds.
#[test]
fn a_service_killed_at_any_moment_leaves_nothing() {
    on_stage("a_service_killed_at_any_moment_leaves_nothing", &[], |stage| {
        let mut random = Random::for_test(9);
        for _ in 0..setting("HAYPILE_E2E_KILLS", 30) {
            let mut command = stage.haypile("serve");
            command.args(["--addr", "198.18.0.2/24"]);
            let service = stage.start_command("serve", command);
            // The moment is the point of the test, nothing is waited for.
            thread::sleep(Duration::from_micros(random.below(40_000)));
            service.signal("KILL");
            drop(service.finish(PATIENCE));
            wait_until_nothing_is_left(stage, &stage.control(), &[]);
        }
    });
}

#[test]
fn a_service_lives_on_without_its_guardian() {
    on_stage("a_service_lives_on_without_its_guardian", &["true"], |stage| {
        let mut service = stage.serve();
        let guardian = guardian_of(service.pid());
        send_signal("KILL", &guardian.to_string());
        wait_until("the service has seen it", PATIENCE, || {
            let gone = !stage.processes().contains(&guardian);
            (gone && service.err().contains("the guardian has ended")).then_some(())
        });
        service.assert_alive();
        assert_eq!(service.err().lines().count(), 1, "{}", service.err());
        stage.run(&["true"]).finish(PATIENCE).expect_success("a program");
        let used = inspect::processor_seconds(service.pid());
        thread::sleep(Duration::from_millis(300));
        let used = inspect::processor_seconds(service.pid()) - used;
        assert!(used < 0.1, "{used} s of processor time in 0.3 s of idleness");
        // What nobody removes, the next one replaces; its end is clean.
        service.signal("KILL");
        drop(service.finish(PATIENCE));
        assert!(stage.control().join("control.sock").exists());
        let next = stage.serve();
        next.signal("TERM");
        assert_eq!(next.finish(PATIENCE).status.code(), Some(0));
        assert_eq!(stage.processes(), Vec::<u32>::new());
        assert!(!stage.control().exists());
    });
}

#[test]
fn a_guardian_holds_nothing_of_its_service() {
    on_stage("a_guardian_holds_nothing_of_its_service", &["sh"], |stage| {
        let service = stage.haypile("serve");
        let mut command = Command::new("sh");
        // With a descriptor that the service itself was given.
        command.args(["-c", "exec 9</etc/passwd; exec \"$@\"", "sh"]).arg(service.get_program());
        command.args(service.get_args()).args(["--link", &format!("tap:{INTERFACE}")]);
        let mut service = stage.start_command("serve", command);
        service.wait_for_output("ready");
        let guardian = guardian_of(service.pid());
        let folder = PathBuf::from(format!("/proc/{guardian}"));
        let mut files: Vec<String> = names_in(&folder.join("fd"))
            .iter()
            .map(|number| fs::read_link(folder.join("fd").join(number)).expect("a link"))
            .map(|file| file.to_string_lossy().split(':').next().unwrap_or_default().to_string())
            .collect();
        files.sort();
        // The pidfd and the channel.
        let wanted = ["/dev/null", "/dev/null", "/dev/null", "anon_inode", "socket"];
        assert_eq!(files, wanted);
        assert_eq!(fs::read_link(folder.join("cwd")).expect("a link"), Path::new("/"));
        assert_eq!(inspect::session_of(guardian), Some(guardian));
        assert!(inspect::processor_seconds(guardian) < 0.1);
        service.signal("TERM");
        assert_eq!(service.finish(PATIENCE).status.code(), Some(0));
        assert_eq!(stage.processes(), Vec::<u32>::new());
    });
}

/// What a service tells its guardian before it dies, and what is left then.
#[test]
fn a_guardian_does_what_it_was_told() {
    on_stage("a_guardian_does_what_it_was_told", &["sleep"], |stage| {
        let everything: &[&str] = &["control.sock", "lock", "service.log"];
        let cases: [(&[u8], &[&str]); 4] =
            [(b"", everything), (b"c", &[]), (b"cl", &everything[1..]), (b"cd", everything)];
        for (words, left) in cases {
            fs::create_dir(stage.control()).expect("made");
            fs::write(stage.control().join("control.sock"), "").expect("written");
            fs::write(stage.control().join("service.log"), "why").expect("written");
            fs::write(stage.control().join("lock"), "directory\nlog\n").expect("written");
            let service = stage.start(&["sleep", "1000"]);
            let (mut channel, theirs) = UnixStream::pair().expect("a channel");
            let mut command = Command::new(env!("CARGO_BIN_EXE_haypile"));
            command.args(["guard", &service.pid().to_string()]).arg(stage.control());
            command.stdin(OwnedFd::from(theirs));
            let guardian = stage.start_reading("guard", command);
            channel.read_exact(&mut [0]).expect("it is ready");
            channel.write_all(words).expect("told");
            service.signal("KILL");
            drop(service.finish(PATIENCE));
            drop(channel);
            guardian.finish(PATIENCE).expect_success("the guardian");
            let mut names = names_in(&stage.control());
            names.sort();
            assert_eq!(names, left, "{words:?}");
            drop(fs::remove_dir_all(stage.control()));
        }
    });
}
