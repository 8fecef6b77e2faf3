//! Bytes arrive as they were sent: files of all sizes from python and nginx on Haypile, uploads too.

use crate::support::stage::{INTERFACE, Stage, on_stage, service, service6};
use crate::support::{PATIENCE, content, http, inspect, nginx, python, setting, wait_until};
use haypile_link::netlink::Netlink;
use serde_json::Value;
use std::fs;
use std::time::Duration;

/// Sizes around the borders of segments, windows and chunks, and one of many windows.
const SIZES: [u64; 8] = [0, 1, 1459, 1460, 1461, 65_536, 100_000, 20 << 20];

#[test]
fn python_serves_files_over_both_families() {
    on_stage("python_serves_files_over_both_families", &["python3", "curl"], |stage| {
        for size in SIZES {
            content::write(&stage.served(&size.to_string()), size);
        }
        let root = stage.text("root");
        // One wildcard IPv6 listener serves both families; the service is private to this program.
        let words = [python(), "-m", "http.server", "--bind", "::", "--directory", &root, "8080"];
        let mut server = stage.run_alone(&words);
        for address in [service(8080), service6(8080)] {
            stage.wait_for_listener(address, &mut server);
            for size in SIZES {
                let (name, file) = (size.to_string(), stage.path("fetched"));
                let seconds = http::fetch(stage, &http::url(address, &name), &file, 60);
                content::assert_same(&stage.served(&name), &file);
                if size > 1 << 20 {
                    let rate = size as f64 / seconds / 1e6;
                    stage.say(&format!("{size} bytes from {address}: {rate:.0} MB/s"));
                }
            }
        }
    });
}

#[test]
fn nginx_workers_send_and_store_a_big_file() {
    on_stage("nginx_workers_send_and_store_a_big_file", &["nginx", "curl"], |stage| {
        let size = setting("HAYPILE_E2E_BIG", 64 << 20);
        let limit_s = 60 + size / (4 << 20);
        content::write(&stage.served("big"), size);
        let service_process = stage.serve();
        let addresses = [service(8080), service6(8080)];
        let server = nginx::start_on(stage, "nginx", &addresses);
        let rate = |seconds: f64| size as f64 / seconds / 1e6;
        for address in addresses {
            let file = stage.path("fetched");
            let seconds = http::fetch(stage, &http::url(address, "big"), &file, limit_s);
            content::assert_same(&stage.served("big"), &file);
            stage.say(&format!("GET {size} bytes from {address}: {:.0} MB/s", rate(seconds)));
            if !nginx::can_put() {
                stage.say("skipped: this nginx stores no uploads (no dav module)");
                continue;
            }
            let target = http::url(address, "up/big");
            let seconds = http::upload(stage, &target, &stage.served("big"), limit_s);
            content::assert_same(&stage.served("big"), &stage.served("up/big"));
            fs::remove_file(stage.served("up/big")).expect("remove the upload");
            stage.say(&format!("PUT {size} bytes to {address}: {:.0} MB/s", rate(seconds)));
        }
        server.terminate();
        service_process.terminate();
    });
}

#[test]
fn many_transfers_at_once_stay_apart() {
    on_stage("many_transfers_at_once_stay_apart", &["nginx", "curl"], |stage| {
        const FILES: u64 = 8;
        for file in 0..FILES {
            content::write(&stage.served(&file.to_string()), (1 << 20) * (file + 1) + file * 777);
        }
        let _service = stage.serve();
        let _server = nginx::start(stage, 8080);
        let fetches: Vec<_> = (0..FILES * 2)
            .map(|number| {
                let file = number % FILES;
                let target = stage.path(&format!("fetched{number}"));
                let (address, out) =
                    (http::url(service(8080), &file.to_string()), target.display().to_string());
                let words = [&http::CURL[..], &["60", "--output", &out, &address]].concat();
                (file, target, stage.start(&words))
            })
            .collect();
        for (file, target, process) in fetches {
            process.finish(Duration::from_secs(65)).expect_success("fetch one of many");
            content::assert_same(&stage.served(&file.to_string()), &target);
        }
    });
}

#[test]
fn a_slow_reader_gets_every_byte() {
    on_stage("a_slow_reader_gets_every_byte", &["nginx", "curl"], |stage| {
        let size = 6 << 20;
        content::write(&stage.served("big"), size);
        let _service = stage.serve();
        let _server = nginx::start(stage, 8080);
        let (out, address) = (stage.text("slow"), http::url(service(8080), "big"));
        let slowly = ["60", "--limit-rate", "3M", "--output", &out, &address];
        let words = [&http::CURL[..], &slowly].concat();
        let slow = stage.start(&words);
        // Others are not held up by it.
        for number in 0..5 {
            let file = stage.path(&format!("fast{number}"));
            http::fetch(stage, &address, &file, 60);
            content::assert_same(&stage.served("big"), &file);
        }
        slow.finish(Duration::from_secs(65)).expect_success("the slow reader");
        content::assert_same(&stage.served("big"), &stage.path("slow"));
    });
}

/// Frames of this namespace's interface that the kernel dropped because the service's queue was full.
fn dropped_by_kernel() -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").expect("read the interface table");
    let line = table.lines().find(|line| line.trim_start().starts_with(INTERFACE));
    let fields = line.and_then(|line| line.split_once(':')).map(|(_, fields)| fields);
    let dropped = fields.and_then(|fields| fields.split_whitespace().nth(11));
    dropped.and_then(|field| field.parse().ok()).expect("the interface has counters")
}

#[test]
fn a_short_queue_loses_frames_but_no_bytes() {
    on_stage("a_short_queue_loses_frames_but_no_bytes", &["nginx", "curl"], |stage| {
        let size = 4 << 20;
        content::write(&stage.served("big"), size);
        let _service = stage.serve();
        let _server = nginx::start(stage, 8080);
        let mut netlink = Netlink::open().expect("a route socket");
        let index = netlink.link_by_name(INTERFACE).expect("the interface").index;
        // A window of superframes is only a few frames.
        netlink.set_queue_len(index, 2).expect("shorten the queue");
        let url = http::url(service(8080), "big");
        // The kernel drops what does not fit: data of the upload, acknowledgements of the download.
        http::fetch(stage, &url, &stage.path("fetched"), 60);
        content::assert_same(&stage.served("big"), &stage.path("fetched"));
        if nginx::can_put() {
            let target = http::url(service(8080), "up/big");
            http::upload(stage, &target, &stage.served("big"), 60);
            content::assert_same(&stage.served("big"), &stage.served("up/big"));
            let dropped = dropped_by_kernel();
            stage.say(&format!("{size} bytes each way although {dropped} frames were dropped"));
            assert!(dropped > 0, "the queue was long enough after all");
        }
        inspect::wait_for_rest(stage);
    });
}

/// What the link of the running service has counted.
pub fn link_counter(stage: &Stage, name: &str) -> u64 {
    let status = stage.ask("status", &[]).expect("the service answers");
    let counters = status["counters"].as_array().cloned().unwrap_or_default();
    let of_name = |counter: &&Value| counter["name"] == name;
    counters.iter().find(of_name).and_then(|counter| counter["count"].as_u64()).unwrap_or(0)
}

#[test]
fn superframes_leave_a_clean_capture() {
    on_stage("superframes_leave_a_clean_capture", &["nginx", "curl", "tshark"], |stage| {
        let size = 3_000_001;
        content::write(&stage.served("big"), size);
        let _service = stage.serve();
        let _server = nginx::start_on(stage, "nginx", &[service(8080), service6(8080)]);
        let file = stage.text("all.pcapng");
        let command = |words: &[&str]| {
            let mut command = stage.haypile("capture");
            command.args(words);
            let done = stage.start_command("capture", command).finish(PATIENCE);
            done.expect_success("command a capture");
        };
        command(&["-w", &file]);
        for address in [service(8080), service6(8080)] {
            http::fetch(stage, &http::url(address, "big"), &stage.path("fetched"), 60);
            content::assert_same(&stage.served("big"), &stage.path("fetched"));
            if nginx::can_put() {
                let target = http::url(address, "up/big");
                http::upload(stage, &target, &stage.served("big"), 60);
                content::assert_same(&stage.served("big"), &stage.served("up/big"));
                fs::remove_file(stage.served("up/big")).expect("remove the upload");
            }
        }
        assert!(link_counter(stage, "tx_superframes") > 10, "sent in superframes");
        assert!(!nginx::can_put() || link_counter(stage, "rx_superframes") > 10);
        command(&["--stop"]);
        // Every checksum in the file is right, and nothing is malformed. Status 1 is "good".
        let bad = "tcp.checksum.status != 1 || ip.checksum.status != 1 || _ws.malformed";
        let count = |filter: &str| {
            let checks = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"];
            let words = [&["tshark", "-n", "-r", &file][..], &checks, &["-Y", filter]].concat();
            stage.output(&words, Duration::from_secs(60)).out.lines().count()
        };
        wait_until("the capture's file is whole", PATIENCE, || {
            (count("tcp.len > 10000 && ip") > 10 && count("tcp.len > 10000 && ipv6") > 10)
                .then_some(())
        });
        assert_eq!(count(bad), 0);
    });
}

#[test]
fn bytes_arrive_whatever_the_link_does() {
    on_stage("bytes_arrive_whatever_the_link_does", &["nginx", "curl"], |stage| {
        let size = 5_000_003;
        content::write(&stage.served("big"), size);
        let links: [&[&str]; 6] = [
            &["--offload", "none"],
            &["--offload", "checksum", "--mtu", "9000"],
            &["--queues", "4"],
            &["--mtu", "1280"],
            &["--mtu", "65521"],
            &["--mtu", "65521", "--offload", "none", "--queues", "2"],
        ];
        for link in links {
            let service_process = stage.serve_with(link);
            let server = nginx::start_on(stage, "nginx", &[service(8080), service6(8080)]);
            for address in [service(8080), service6(8080)] {
                let seconds =
                    http::fetch(stage, &http::url(address, "big"), &stage.path("fetched"), 60);
                content::assert_same(&stage.served("big"), &stage.path("fetched"));
                stage.say(&format!("{link:?}: {:.0} MB/s", size as f64 / seconds / 1e6));
                if nginx::can_put() {
                    let target = http::url(address, "up/big");
                    http::upload(stage, &target, &stage.served("big"), 60);
                    content::assert_same(&stage.served("big"), &stage.served("up/big"));
                    fs::remove_file(stage.served("up/big")).expect("remove the upload");
                }
            }
            server.terminate();
            service_process.terminate();
        }
    });
}
