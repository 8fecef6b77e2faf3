//! nginx as the tests use it: two workers forked from a master that already listens, a document root, and
//! uploads by PUT where its WebDAV module was built in.

use super::process::Process;
use super::stage::{Stage, service};
use super::{PATIENCE, inspect, wait_until};
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

/// True when this nginx can store uploads.
pub fn can_put() -> bool {
    let output = Command::new("nginx").arg("-V").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("http_dav_module"))
}

/// The command line of an nginx that listens on `addresses`; its files are in the folder `work`.
pub fn command(stage: &Stage, work: &str, addresses: &[&str]) -> Vec<String> {
    let folder = stage.path(work);
    fs::create_dir_all(&folder).expect("make a folder for nginx");
    fs::create_dir_all(stage.served("up")).expect("make a folder for uploads");
    let (work, root) = (folder.display(), stage.text("root"));
    let listen: String = addresses.iter().map(|address| format!("listen {address}; ")).collect();
    let dav = if can_put() { "dav_methods PUT;" } else { "" };
    let config = format!(
        "daemon off; worker_processes 2; worker_rlimit_nofile 10000; user root;\n\
         pid {work}/nginx.pid;\n\
         error_log stderr warn;\n\
         events {{ worker_connections 8192; }}\n\
         http {{ access_log off; keepalive_requests 1000000; client_max_body_size 0;\n\
         lingering_close off;\n\
         client_body_temp_path {work}/body; proxy_temp_path {work}/proxy;\n\
         fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi;\n\
         scgi_temp_path {work}/scgi;\n\
         server {{ {listen}root {root}; location / {{ {dav} }} }} }}\n"
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, config).expect("write nginx.conf");
    let words =
        ["nginx", "-p", &work.to_string(), "-c", &path.display().to_string(), "-e", "stderr"];
    words.map(str::to_string).to_vec()
}

/// Starts nginx on the test's service at [`service`]`(port)` and waits until it answers.
pub fn start(stage: &Stage, port: u16) -> Process {
    start_on(stage, &format!("nginx-{port}"), &[service(port)])
}

/// Starts nginx on the test's service at `addresses` and waits until it answers at all of them.
pub fn start_on(stage: &Stage, work: &str, addresses: &[SocketAddr]) -> Process {
    let listen: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
    let words = command(stage, work, &listen);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut nginx = stage.run(&words);
    for address in addresses {
        stage.wait_for_listener(*address, &mut nginx);
    }
    nginx
}

/// The master of the nginx whose files are in `work`.
pub fn master(stage: &Stage, work: &str) -> u32 {
    let file = stage.path(work).join("nginx.pid");
    wait_until("nginx has written its process id", PATIENCE, || {
        fs::read_to_string(&file).ok()?.trim().parse().ok()
    })
}

/// The workers of a master, once both are there.
pub fn workers(master: u32) -> Vec<u32> {
    wait_until("nginx has two workers", PATIENCE, || {
        let alive = |pid: &u32| inspect::is_alive(*pid);
        let workers: Vec<u32> = inspect::children_of(master).into_iter().filter(alive).collect();
        (workers.len() == 2).then_some(workers)
    })
}
