//! Data stores and their clients: redis, memcached, postgres.

use super::world::World;
use crate::support::{python, script, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// redis-benchmark's own failures, and a large value there and back.
pub fn redis(world: &World<'_>) -> String {
    let (address, port, folder) =
        (world.address().to_string(), world.port.to_string(), world.text(""));
    let words = ["redis-server", "--bind", &address, "--port", &port, "--save", "", "--dir"];
    let more = [&folder, "--appendonly", "no", "--protected-mode", "no"];
    let _server = world.serve(&[&words[..], &more].concat(), world.port);
    let words = ["redis-benchmark", "-h", &address, "-p", &port, "-q", "-c", "20", "-n", "10000"];
    let told = world.ask(&[&words[..], &["-P", "4", "-t", "set,get,lpush"]].concat()).out;
    assert!(!told.to_lowercase().contains("error"), "redis-benchmark: {told}");
    let cli = ["redis-cli", "-h", &address, "-p", &port];
    let mut set = world.client_command(&[&cli[..], &["-x", "set", "page"]].concat());
    set.stdin(fs::File::open(world.page()).expect("open the page"));
    assert_eq!(world.ask_command("redis-cli", set).out.trim(), "OK");
    let get = world.client_command(&[&cli[..], &["get", "page"]].concat());
    let get = world.start_command("redis-cli", get);
    let out = get.out_file();
    get.finish(crate::support::PATIENCE).expect_success("redis-cli get");
    let mut got = fs::read(out).expect("read what redis-cli wrote");
    assert_eq!(got.pop(), Some(b'\n'), "redis-cli ends a value with a line end");
    assert!(got == fs::read(world.page()).expect("read the page"), "another value came back");
    let statistics = world.ask(&[&cli[..], &["info", "stats"]].concat()).out;
    assert!(statistics.contains("total_error_replies:0"), "errors: {statistics}");
    let rates: Vec<&str> = told
        .split(['\r', '\n'])
        .filter(|line| line.contains("requests per second"))
        .filter_map(|line| line.split_once(" requests").map(|(rate, _)| rate))
        .collect();
    format!("requests a second: {}", rates.join(", "))
}

fn start_memcached(world: &World<'_>) -> crate::support::process::Process {
    let (address, port) = (world.address().to_string(), world.port.to_string());
    let words = ["memcached", "-l", &address, "-p", &port, "-U", "0", "-u", "root", "-t", "2"];
    world.serve(&words, world.port)
}

/// Values of many sizes, each compared.
pub fn memcached(world: &World<'_>) -> String {
    let _server = start_memcached(world);
    let (address, port) = (world.address().to_string(), world.port.to_string());
    world.ask(&[python(), &script("memcached_client.py"), &address, &port]).out.trim().to_string()
}

/// The protocol's conformance test of libmemcached.
pub fn memccapable(world: &World<'_>) -> String {
    let _server = start_memcached(world);
    let (address, port) = (world.address().to_string(), world.port.to_string());
    let told = world.ask(&["memccapable", "-h", &address, "-p", &port]);
    let all = [told.out, told.err].concat();
    assert!(all.contains("All tests passed"), "memccapable: {all}");
    format!("{} tests", all.matches("[pass]").count())
}

/// pgbench's own failures, and a value of the page's size there and back.
pub fn postgres(world: &World<'_>) -> String {
    // The server refuses to run as root.
    let (nobody, data) = ("65534", world.path("data"));
    let (address, port, folder) =
        (world.address().to_string(), world.port.to_string(), world.text("data"));
    fs::create_dir(&data).expect("make a folder for the database");
    std::os::unix::fs::chown(&data, Some(65534), Some(65534)).expect("give the folder away");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).expect("close the folder");
    let lower = ["setpriv", "--reuid", nobody, "--regid", nobody, "--clear-groups"];
    let make = ["initdb", "--no-sync", "-U", "tester", "-A", "trust", "-D", &folder];
    world.prepare(&[&lower[..], &make].concat());
    fs::write(data.join("pg_hba.conf"), "host all all all trust\n").expect("open the database");
    let mut words = [&lower[..], &["postgres", "-D", &folder, "-k", "", "-p", &port]].concat();
    let listen = format!("listen_addresses={address}");
    words.extend(["-c", &listen, "-c", "fsync=off", "-c", "jit=off"]);
    let _server = world.serve(&words, world.port);
    let who = ["-h", &address, "-p", &port, "-U", "tester"];
    // It listens before it takes questions.
    wait_until("the database answers", crate::support::PATIENCE, || {
        let question = [&["psql"], &who[..], &["-d", "postgres", "-Atqc", "select 1"]].concat();
        let asked = world.start_command("psql", world.client_command(&question));
        asked.finish(crate::support::PATIENCE).status.success().then_some(())
    });
    let sql = |command: &str| {
        let words = [&["psql"], &who[..], &["-d", "postgres", "-Atqc", command]].concat();
        world.ask(&words).out.trim().to_string()
    };
    let text = "string_agg(md5(i::text), '' order by i) from generate_series(1, 60000) as i";
    let far = sql(&format!("select md5(all_of.them) from (select {text}) as all_of (them)"));
    let near = sql(&format!("select {text}"));
    assert_eq!(near.len(), 32 * 60_000);
    fs::write(world.path("near"), near).expect("write what came");
    let sum = world.prepare(&["md5sum", &world.text("near")]).out;
    assert!(sum.starts_with(&far), "another value came: {far}, {sum}");
    world.ask(&[&["pgbench"], &who[..], &["-i", "-q", "postgres"]].concat());
    let load = ["-c", "4", "-T", "1", "-S", "postgres"];
    let told = world.ask(&[&["pgbench"], &who[..], &load].concat()).out;
    assert!(told.contains("number of failed transactions: 0"), "pgbench: {told}");
    let rate = told.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap_or("unknown");
    format!("{} transactions a second", rate.split_whitespace().next().unwrap_or(rate))
}
