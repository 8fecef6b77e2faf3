//! Programs that lock themselves in: another root, another user, no more descriptors, a filter of system calls. No
//! path leads them to the service any more, and servers die, come and leave, and connections move nevertheless.

use crate::growth::{set_plan, start_set_plan};
use crate::moves::traffic::Restless;
use crate::moves::{kill_server, pids};
use crate::real_programs::log_ins;
use crate::support::process::{Process, send_signal};
use crate::support::stage::{Stage, on_stage, service};
use crate::support::{PATIENCE, inspect, python, script, setting, wait_until};
use haypile_shm::control::{self, DOOR_SOCKET};
use haypile_shm::messages::ControlRequest;
use haypile_shm::sys;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

const PORT: u16 = 8080;

fn start_jailed(stage: &Stage) -> Process {
    let folder = stage.text("empty");
    fs::create_dir_all(&folder).expect("make an empty folder");
    // As directories of services are for programs that are not their user's: to be passed, not to be read.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).expect("open it");
    let address = service(PORT).ip().to_string();
    let words = [python(), &script("jailed.py"), &address, &PORT.to_string(), &folder];
    let mut jailed = stage.run(&words);
    jailed.wait_for_output("ready");
    jailed
}

/// A connection that is answered to its end, on the kernel's side.
fn exchange(byte: u8) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&service(PORT), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let sent = [byte; 100];
    stream.write_all(&sent)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard)?;
    Ok(heard == sent)
}

/// A datagram that is answered; any may be lost while its server changes.
fn datagram(socket: &UdpSocket, byte: u8) -> Option<()> {
    let mut heard = [0; 100];
    socket.send_to(&[byte; 50], service(PORT)).ok()?;
    let (len, from) = socket.recv_from(&mut heard).ok()?;
    (from == service(PORT) && heard[..len] == [byte; 50]).then_some(())
}

/// Every connection is answered, and datagrams are after a while.
#[track_caller]
fn assert_served(stage: &Stage, jailed: &mut Process, when: &str) {
    for byte in 0..20 {
        assert!(matches!(exchange(byte), Ok(true)), "{}: {when}: {:?}", stage.name, exchange(byte));
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    wait_until(&format!("datagrams are answered: {when}"), PATIENCE, || datagram(&socket, 7));
    jailed.assert_alive();
    let said = jailed.out();
    assert!(!said.contains("error"), "{when}: {said}");
}

#[test]
fn servers_change_under_a_program_in_another_root() {
    let test = "servers_change_under_a_program_in_another_root";
    on_stage(test, &["python3"], |stage| {
        let service = stage.serve_with(&["--plan", "TS2LS2CM2"]);
        let mut jailed = start_jailed(stage);
        assert_served(stage, &mut jailed, "at first");
        for number in [0, 1] {
            kill_server(stage, number);
            assert_served(stage, &mut jailed, "after a death");
        }
        for plan in ["TS4LS4CM4", "TS1LS1CM1", "TS2LS2CM2"] {
            set_plan(stage, plan).expect_success(plan);
            assert_served(stage, &mut jailed, plan);
        }
        kill_server(stage, 1);
        assert_served(stage, &mut jailed, "after a death of one that came");
        // It hears that there is nobody left, too.
        service.signal("KILL");
        let said = jailed.finish(PATIENCE).out;
        assert!(said.contains("error") && said.contains("end"), "{said}");
        drop(service.finish(PATIENCE));
    });
}

#[test]
fn a_flood_at_the_door_ends_nobody() {
    on_stage("a_flood_at_the_door_ends_nobody", &["python3"], |stage| {
        let service = stage.serve_with(&["--plan", "TS2LS2CM2"]);
        let mut jailed = start_jailed(stage);
        let door = stage.control().join(DOOR_SOCKET);
        let door = sys::unix_connect_datagram(door.as_os_str().as_encoded_bytes()).expect("a door");
        let flood = || {
            for number in 0..4000u16 {
                let (_ours, theirs) = sys::socketpair_seqpacket().expect("a pair of sockets");
                let fds = [theirs.raw()];
                let fds = if number % 5 == 0 { &[][..] } else { &fds };
                let enter = ControlRequest::Enter { server: number % 3 };
                control::send(door.raw(), &enter.encode(), fds).expect("room at the door");
            }
        };
        let stopped = pids(stage)[1].to_string();
        send_signal("STOP", &stopped);
        flood();
        let growth = start_set_plan(stage, "TS3LS3CM3");
        // It is told of the plan while what strangers have sent waits.
        thread::sleep(Duration::from_millis(300));
        send_signal("CONT", &stopped);
        flood();
        growth.finish(PATIENCE).expect_success("TS3LS3CM3");
        set_plan(stage, "TS2LS2CM2").expect_success("TS2LS2CM2");
        assert_served(stage, &mut jailed, "after a flood");
        let status = stage.ask("status", &[]).expect("haypile status");
        let rows = status["servers"].as_array().expect("servers");
        assert!(rows.iter().all(|row| row["restarts"] == 0), "{status}");
        let said = service.err();
        assert!(!said.contains("does not listen"), "{said}");
    });
}

#[test]
fn log_ins_while_connections_move() {
    let test = "log_ins_while_connections_move";
    on_stage(test, &["ssh", "sshd", "ssh-keygen"], |stage| {
        let _service = stage.serve_with(&["--plan", "TS3LS3CM3"]);
        let seed = setting("HAYPILE_E2E_SEED", 1);
        let restless = Restless::start(stage.control(), Duration::from_millis(5), seed);
        log_ins(stage, 6);
        let moved = restless.stop();
        stage.say(&format!("6 log-ins while {} connections moved", moved.connections));
        assert!(moved.connections > 0 && moved.unanswered == 0, "{moved:?}");
        inspect::wait_for_rest(stage);
    });
}
