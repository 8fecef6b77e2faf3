//! Programs of the shell: socat, nc, perl, ssh.

use super::world::World;
use crate::support::{PATIENCE, content};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A server that forks a child with pipes for each connection; a client with both directions busy.
pub fn socat(world: &World<'_>) -> String {
    let (address, port) = (world.address(), world.port);
    let listen = format!("TCP-LISTEN:{port},bind={address},fork,reuseaddr");
    let _server = world.serve(&["socat", &listen, "EXEC:cat"], port);
    let connect = format!("TCP:{address}:{port}");
    for _ in 0..3 {
        world.echo_page(&["socat", "-t", "10", "-", &connect]);
    }
    "3 pages there and back, all the same".to_string()
}

/// One file a direction, with the end of one told by a half close.
pub fn nc(world: &World<'_>) -> String {
    let address = world.address().to_string();
    content::write(&world.path("answer"), 1 << 20);
    for round in 0..2 {
        let port = world.port + round;
        let words = ["nc", "-l", "-N", &address, &port.to_string()];
        let mut server = world.server_command(&words);
        server.stdin(fs::File::open(world.path("answer")).expect("open the answer"));
        let server = world.serve_command("nc", server, port);
        let arrived = server.out_file();
        let mut client = world.client_command(&["nc", "-N", &address, &port.to_string()]);
        client.stdin(fs::File::open(world.page()).expect("open the page"));
        let client = world.start_command("nc", client);
        let answered = client.out_file();
        client.finish(PATIENCE).expect_success("nc");
        server.finish(PATIENCE).expect_success("nc -l");
        content::assert_same(&world.page(), &arrived);
        content::assert_same(&world.path("answer"), &answered);
    }
    "2 files there and 2 back, all the same".to_string()
}

/// A server in perl that forks; buffered and plain input and output.
pub fn perl(world: &World<'_>) -> String {
    let (address, port) = (world.address(), world.port);
    let program = format!(
        "$s = IO::Socket::INET->new(LocalAddr => '{address}', LocalPort => {port}, Listen => 5, \
         ReuseAddr => 1) or die $!; $SIG{{CHLD}} = 'IGNORE'; while ($c = $s->accept) {{ if (!fork) \
         {{ while (sysread($c, $b, 65536)) {{ $o = 0; $o += syswrite($c, $b, length($b) - $o, $o) \
         while $o < length($b) }} exit }} close $c }}"
    );
    let _server = world.serve(&["perl", "-MIO::Socket::INET", "-e", &program], port);
    let connect = format!("TCP:{address}:{port}");
    world.echo_page(&["socat", "-t", "10", "-", &connect]);
    "one page there and back, the same".to_string()
}

/// A server that executes itself anew for each connection and lowers its rights; a file through it.
pub fn ssh(world: &World<'_>) -> String {
    log_in(world, 1);
    "one page there and back, the same".to_string()
}

/// Starts such a server and logs in so many times.
pub fn log_in(world: &World<'_>, count: usize) {
    for key in ["host_key", "user_key"] {
        world.prepare(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &world.text(key)]);
    }
    let sshd = crate::support::find_program("sshd").expect("sshd was found").display().to_string();
    // Compiled into sshd; usually made at start-up of the machine.
    fs::create_dir_all("/run/sshd").expect("make sshd's folder");
    fs::copy(world.path("user_key.pub"), world.path("keys")).expect("copy the key");
    fs::set_permissions(world.path("keys"), fs::Permissions::from_mode(0o600)).expect("close it");
    let config = world.write(
        "sshd_config",
        &format!(
            "ListenAddress {}\nPort {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\n\
             PidFile none\nUsePAM no\nPermitRootLogin yes\n",
            world.address(),
            world.port,
            world.text("host_key"),
            world.text("keys")
        ),
    );
    let _server = world.serve(&[&sshd, "-D", "-e", "-f", &config], world.port);
    let (key, port) = (world.text("user_key"), world.port.to_string());
    let options = [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "BatchMode=yes",
    ];
    let mut words = vec!["ssh", "-F", "none", "-i", &key, "-p", &port];
    options.iter().for_each(|option| words.extend(["-o", option]));
    let who = format!("root@{}", world.address());
    words.extend([who.as_str(), "cat"]);
    for _ in 0..count {
        world.echo_page(&words);
    }
}

/// A server whose children give up their rights, further descriptors and most address space before they use the
/// connection; data connections come to it, and go from it.
pub fn vsftpd(world: &World<'_>) -> String {
    let empty = world.path("empty");
    fs::create_dir_all(&empty).expect("make an empty folder");
    // Its filter of system calls is too narrow for today's C library, with the kernel's stack too.
    let config = world.write(
        "vsftpd.conf",
        &format!(
            "listen=YES\nlisten_address={}\nlisten_port={}\nbackground=NO\nanonymous_enable=YES\n\
             anon_root={}\nno_anon_password=YES\nsecure_chroot_dir={}\nseccomp_sandbox=NO\n",
            world.address(),
            world.port,
            world.root(),
            empty.display(),
        ),
    );
    let _server = world.serve(&["vsftpd", &config], world.port);
    let url = format!("ftp://{}/page", world.at(world.port));
    for way in [&["--ftp-pasv"][..], &["--ftp-port", "-"]] {
        let mut words = vec!["curl", "--silent", "--show-error", "--output", "fetched"];
        words.extend_from_slice(way);
        words.push(&url);
        world.ask(&words);
        world.assert_page("fetched");
    }
    "one page each way of data connections, the same".to_string()
}
